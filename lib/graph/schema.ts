/**
 * The one schema of kernels: codes, operands and parameters of every instruction that a program can hold.
 * `tools/generate_schema.ts` writes it into Rust; its hash stands in every program and in the native library.
 *
 * @module
 */

import { DTYPES } from "./dtypes.ts";

/** Element-wise functions of one operand, by code; `affine` is `alpha * x + beta`. */
export const UNARY = {
  affine: 0,
  silu: 1,
  gelu_tanh: 2,
  gelu_erf: 3,
  quick_gelu: 4,
  relu: 5,
  sigmoid: 6,
  tanh: 7,
  exp: 8,
  log: 9,
  sqrt: 10,
  rsqrt: 11,
  sin: 12,
  cos: 13,
  abs: 14,
} as const;

/** The name of a function of one operand. */
export type UnaryKind = keyof typeof UNARY;

/** The activations that a matrix multiply, convolution or norm can apply to its result, by code. */
export const ACTIVATION: Readonly<Record<ActivationKind, number>> = {
  none: 0,
  silu: 1,
  gelu_tanh: 2,
  gelu_erf: 3,
  quick_gelu: 4,
  relu: 5,
};

/** The name of a fused activation. */
export type ActivationKind = "none" | "silu" | "gelu_tanh" | "gelu_erf" | "quick_gelu" | "relu";

/** Element-wise functions of two operands, by code. */
export const BINARY = { add: 0, sub: 1, mul: 2, div: 3, max: 4, min: 5 } as const;

/** The name of a function of two operands. */
export type BinaryKind = keyof typeof BINARY;

/** Reductions of the last axis, by code. */
export const REDUCE = { sum: 0, mean: 1, max: 2 } as const;

/** The name of a reduction. */
export type ReduceKind = keyof typeof REDUCE;

/**
 * How a quantized weight is stored, by code. Codes stand row by row, (N, K):
 *
 * - `int8`: i8, symmetric, -128 to 127: the largest magnitude is at 127.5.
 * - `int4`: u8 (N, K / 2), two's complement nibbles of -8 to 7, the lower nibble first.
 * - `e4m3`, `e5m2`: u8, OCP fp8 (e4m3fn: largest 448; e5m2: largest 57344).
 * - `fpx`: u8 (N, ceil(K * bits / 8)), small floats of `ebits` and `mbits` with a sign, no infinities or NaN; code k
 *   takes bits k * bits and on, counted from the lowest bit of the row's first byte.
 * - `sparse_int8`: u8 (N, K / 2 + K / 8), int8 with two of each four values kept: first the kept values, then their
 *   places in the group, two bits each, lower place first, the lowest bits first; K a multiple of 8.
 */
export const FORMAT: Readonly<Record<FormatKind, number>> = {
  int8: 0,
  int4: 1,
  e4m3: 2,
  e5m2: 3,
  fpx: 4,
  sparse_int8: 5,
};

/** The name of a stored format of weights. */
export type FormatKind = "int8" | "int4" | "e4m3" | "e5m2" | "fpx" | "sparse_int8";

/**
 * How rows of activations are quantized at run time, by code. A quantized row of K values takes `rowBytes(K)` bytes,
 * u8: K codes, zeros up to a multiple of 64, then the row's scale (f32), its zero point (i32), and zeros.
 *
 * - `int8`: symmetric, scale = max|x| / 127.5, codes -128 to 127; `int8_asym`: scale = (max - min) / 255 over a range
 *   that holds 0, and a zero point, -128 to 127.
 * - `e4m3`, `e5m2`: fp8, scale = max|x| / (448 or 57344).
 */
export const ROWS: Readonly<Record<RowsKind, number>> = { none: 0, int8: 1, int8_asym: 2, e4m3: 3, e5m2: 4 };

/** The name of a form of quantized rows. */
export type RowsKind = "none" | "int8" | "int8_asym" | "e4m3" | "e5m2";

/** How a kernel reads or writes an operand: any strides; a dense last axis; rows of equal distance; no gaps at all. */
export type Layout = "strided" | "inner" | "rows" | "dense";

/** An operand of a kernel. */
export interface OperandSpec {
  /** Whether it may be absent. */
  readonly optional?: true;
  /** What strides the kernel takes. */
  readonly layout: Layout;
}

/** The type of a parameter: an integer, a float, or a code of one of the tables above. */
export type ParamType = "i32" | "f32" | "unary" | "activation" | "binary" | "reduce" | "format" | "rows";

/** One kind of instruction. */
export interface KernelSpec {
  /** The number that programs use. */
  readonly code: number;
  /** Operands in order; the last is the result. */
  readonly operands: Readonly<Record<string, OperandSpec>>;
  /** Parameters in order. */
  readonly params: Readonly<Record<string, ParamType>>;
}

const strided = { layout: "strided" } as const;
const inner = { layout: "inner" } as const;
const rows = { layout: "rows" } as const;
const dense = { layout: "dense" } as const;
const optional = <L extends Layout>(layout: L) => ({ layout, optional: true }) as const;

/** The names of the kernels. */
export type KernelName =
  | "copy"
  | "unary"
  | "binary"
  | "reduce"
  | "softmax"
  | "linear"
  | "pack_linear"
  | "matmul"
  | "attention"
  | "layer_norm"
  | "rms_norm"
  | "rope"
  | "rms_norm_rope"
  | "group_norm"
  | "conv"
  | "pack_conv"
  | "upsample_nearest"
  | "embedding"
  | "timestep_embedding"
  | "rotary_embedding"
  | "quantize_scale"
  | "quantize_zero_point"
  | "quantize_codes"
  | "dequantize"
  | "pack_quantized"
  | "quantized_linear"
  | "quantize_rows"
  | "abs_max"
  | "quantized_embedding"
  | "pack_quantized_conv"
  | "quantized_conv"
  | "prune_semi_structured";

/**
 * The kernels. `variant` picks one of the ways that a device has for a call; 0 is its own guess, and so is one that it
 * lacks. The result is the same within rounding.
 */
export const KERNELS: Readonly<Record<KernelName, KernelSpec>> = {
  /** out = x in out's dtype; any strides on both sides. */
  copy: { code: 1, operands: { x: strided, out: strided }, params: {} },
  /** out = f(x); alpha and beta are affine's. */
  unary: { code: 2, operands: { x: strided, out: strided }, params: { kind: "unary", alpha: "f32", beta: "f32" } },
  /** out = f(a, b); a and b already broadcast to out's shape by strides of 0. */
  binary: { code: 3, operands: { a: strided, b: strided, out: strided }, params: { kind: "binary" } },
  /** x (..., N) to out (...). */
  reduce: { code: 4, operands: { x: inner, out: strided }, params: { kind: "reduce" } },
  /** Over the last axis. */
  softmax: { code: 5, operands: { x: inner, out: inner }, params: {} },
  /**
   * out = residual + gate * act(x W^T + bias). x (..., K), weight packed from (N, K), bias f32 (N), gate and residual
   * broadcast to out (..., N).
   */
  linear: {
    code: 6,
    operands: {
      x: rows,
      weight: dense,
      bias: optional("dense"),
      gate: optional("strided"),
      residual: optional("strided"),
      out: inner,
    },
    params: { n: "i32", k: "i32", act: "activation", variant: "i32" },
  },
  /** Rearranges rows (N, K) of any float dtype into the level's layout for x of dtype code `dtype`. */
  pack_linear: { code: 7, operands: { weight: inner, out: dense }, params: { dtype: "i32" } },
  /** out = alpha * a b. a (..., M, K), b (..., K, N), out (..., M, N); leading axes broadcast by strides of 0. */
  matmul: { code: 8, operands: { a: strided, b: strided, out: inner }, params: { alpha: "f32" } },
  /**
   * softmax(scale * q k^T + bias) v. q, k, v, out (B, H, S, D) with dense D; bias f32, strided, (B, H, Sq, Sk) with
   * broadcast axes of stride 0. With causal = 1, query i sees keys up to i + Sk - Sq.
   */
  attention: {
    code: 9,
    operands: { q: inner, k: inner, v: inner, bias: optional("strided"), out: inner },
    params: { scale: "f32", causal: "i32", variant: "i32" },
  },
  /**
   * y = (x - mean) / sqrt(var + eps) * weight + bias, then y * (1 + scale) + shift; scale, shift broadcast to x. With
   * `rows`, out is the quantized rows of y.
   */
  layer_norm: {
    code: 10,
    operands: {
      x: inner,
      weight: optional("dense"),
      bias: optional("dense"),
      scale: optional("strided"),
      shift: optional("strided"),
      out: inner,
    },
    params: { eps: "f32", rows: "rows" },
  },
  /** x / sqrt(mean(x^2) + eps) * weight, over the last axis; weight f32. With `rows`, out is its quantized rows. */
  rms_norm: {
    code: 11,
    operands: { x: inner, weight: optional("dense"), out: inner },
    params: { eps: "f32", rows: "rows" },
  },
  /** Rotates pairs (2i, 2i + 1) of x (B, S, H, D) by cos, sin f32 (S, D). */
  rope: { code: 12, operands: { x: inner, cos: inner, sin: inner, out: inner }, params: {} },
  /** rms_norm, then rope. */
  rms_norm_rope: {
    code: 13,
    operands: { x: inner, weight: optional("dense"), cos: inner, sin: inner, out: inner },
    params: { eps: "f32" },
  },
  /**
   * x, out (B, H, W, C) or (B, T, H, W, C), channels last; weight, bias f32 (C). Moments are of all pixels of all frames.
   * out = act(norm * scale + shift), scale and shift of (B, t, h, w, C), which divide T, H and W: each of their pixels
   * is for a block of equally many of x. With `first` = 1 the first frame of each is for the other's first alone, and
   * T - 1 is a multiple of t - 1.
   */
  group_norm: {
    code: 14,
    operands: {
      x: inner,
      weight: optional("dense"),
      bias: optional("dense"),
      scale: optional("inner"),
      shift: optional("inner"),
      out: inner,
    },
    params: { groups: "i32", eps: "f32", act: "activation", first: "i32" },
  },
  /**
   * Cross-correlation, channels last: x (B, T, H, W, C) to out (B, T, Ho, Wo, O), or both without T by a kernel of
   * kt = 1; weight packed from (O, C, kt, kh, kw). Causal in time: frame t of out is of frames t - (kt - 1) to t of x,
   * of which those before the first are cache (B, kt - 1, H, W, C), or the first again. Reads frames as if enlarged
   * `upsample` times by nearest neighbour. What lies outside a frame is zero, below and to the right as far as out
   * reaches. out = residual + act(conv + bias).
   */
  conv: {
    code: 15,
    operands: {
      x: inner,
      weight: dense,
      bias: optional("dense"),
      residual: optional("strided"),
      cache: optional("inner"),
      out: inner,
    },
    params: {
      kt: "i32",
      kh: "i32",
      kw: "i32",
      stride: "i32",
      padTop: "i32",
      padLeft: "i32",
      upsample: "i32",
      act: "activation",
      variant: "i32",
    },
  },
  /** Rearranges (O, C, kt, kh, kw) or (O, C, kh, kw) of any float dtype into the level's layout for x of dtype code `dtype`. */
  pack_conv: { code: 16, operands: { weight: strided, out: dense }, params: { dtype: "i32" } },
  /** Nearest-neighbour enlargement of (B, H, W, C). */
  upsample_nearest: { code: 17, operands: { x: inner, out: inner }, params: { factor: "i32" } },
  /** Rows of table (V, D) by ids i32 (...): out (..., D); an id outside the table is an error of the run. */
  embedding: { code: 18, operands: { ids: strided, table: inner, out: inner }, params: {} },
  /**
   * Sinusoids of t f32 (B): out (B, D). Frequencies exp(-ln(maxPeriod) i / (D / 2 - shift)); sines first, or
   * cosines first with flip = 1; t is multiplied by scale.
   */
  timestep_embedding: {
    code: 19,
    operands: { t: strided, out: inner },
    params: { flip: "i32", shift: "f32", maxPeriod: "f32", scale: "f32" },
  },
  /**
   * Cosines (out[0]) and sines (out[1]) of rotary positions: ids f32 (S, A), out f32 (2, S, D), D the sum of the axes'
   * sizes; each frequency theta^(-2i/size) stands twice, side by side. Computed in f64.
   */
  rotary_embedding: {
    code: 20,
    operands: { ids: strided, out: dense },
    params: { theta: "f32", axis0: "i32", axis1: "i32", axis2: "i32", axis3: "i32" },
  },
  /**
   * The scales of a weight (N, K), f32 (N, K / group), or (1, 1) of the whole weight with group = 0. Computed in the
   * dtype of code `dtype`, to which the weight is rounded first, as torchao does. `symmetric` = 0 is for int4 with zero
   * points: scale = (max - min) / 15 over a range that holds 0.
   */
  quantize_scale: {
    code: 21,
    operands: { weight: inner, out: dense },
    params: { format: "format", ebits: "i32", mbits: "i32", group: "i32", symmetric: "i32", dtype: "i32" },
  },
  /** The zero points of a weight (N, K), i8 (N, K / group): int4 alone, -8 to 7. */
  quantize_zero_point: {
    code: 22,
    operands: { weight: inner, scale: dense, out: dense },
    params: { format: "format", group: "i32", dtype: "i32" },
  },
  /** The codes of a weight (N, K) in their stored form; scale f32 (N, K / group), zero i8 of its shape. */
  quantize_codes: {
    code: 23,
    operands: { weight: inner, scale: dense, zero: optional("dense"), out: dense },
    params: { format: "format", ebits: "i32", mbits: "i32", group: "i32", dtype: "i32" },
  },
  /** out (N, K) = (codes - zero) * scale; scale f32 (N, K / group), zero i8 of its shape. */
  dequantize: {
    code: 24,
    operands: { codes: inner, scale: dense, zero: optional("dense"), out: dense },
    params: { n: "i32", k: "i32", format: "format", ebits: "i32", mbits: "i32", group: "i32" },
  },
  /**
   * Rearranges codes, scales and zero points into the level's layout, `quantizedBytes` long, for x of quantized rows of
   * kind `rows`, or else of the float dtype of code `dtype`.
   */
  pack_quantized: {
    code: 25,
    operands: { codes: inner, scale: dense, zero: optional("dense"), out: dense },
    params: {
      n: "i32",
      k: "i32",
      format: "format",
      ebits: "i32",
      mbits: "i32",
      group: "i32",
      rows: "rows",
      dtype: "i32",
    },
  },
  /**
   * `linear` by a weight of `pack_quantized` of the same parameters. x is (..., K) of a float dtype, or quantized rows;
   * `zero` = 1 where the weight has zero points.
   */
  quantized_linear: {
    code: 26,
    operands: {
      x: rows,
      weight: dense,
      bias: optional("dense"),
      gate: optional("strided"),
      residual: optional("strided"),
      out: inner,
    },
    params: {
      n: "i32",
      k: "i32",
      act: "activation",
      format: "format",
      ebits: "i32",
      mbits: "i32",
      group: "i32",
      zero: "i32",
      rows: "rows",
      variant: "i32",
    },
  },
  /** The quantized rows of x (..., K); with amax, f32 (1), of one scale for all. */
  quantize_rows: { code: 27, operands: { x: inner, amax: optional("dense"), out: inner }, params: { rows: "rows" } },
  /** The largest magnitude in x, f32 (1). */
  abs_max: { code: 28, operands: { x: strided, out: dense }, params: {} },
  /** `embedding` of a table of int8 codes (V, D) with scales f32 (V, 1). */
  quantized_embedding: { code: 29, operands: { ids: strided, codes: inner, scale: dense, out: inner }, params: {} },
  /**
   * Rearranges codes (O, C * kt * kh * kw) of int8 or fp8 and scales f32 (O, 1) into the level's layout,
   * `quantizedConvBytes` long.
   */
  pack_quantized_conv: {
    code: 30,
    operands: { codes: inner, scale: dense, out: dense },
    params: {
      channels: "i32",
      kt: "i32",
      kh: "i32",
      kw: "i32",
      format: "format",
      rows: "rows",
      dtype: "i32",
    },
  },
  /**
   * `conv` by a weight of `pack_quantized_conv`. With `rows` = int8, x and cache are quantized as they are read, by the
   * scale amax / 127 of all of them.
   */
  quantized_conv: {
    code: 31,
    operands: {
      x: inner,
      weight: dense,
      bias: optional("dense"),
      residual: optional("strided"),
      cache: optional("inner"),
      amax: optional("dense"),
      out: inner,
    },
    params: {
      kt: "i32",
      kh: "i32",
      kw: "i32",
      stride: "i32",
      padTop: "i32",
      padLeft: "i32",
      upsample: "i32",
      act: "activation",
      format: "format",
      rows: "rows",
      variant: "i32",
    },
  },
  /** A weight (N, K) with the two smallest magnitudes of each four of a row set to zero; of equals, the later ones. */
  prune_semi_structured: { code: 32, operands: { weight: inner, out: dense }, params: {} },
};

/** The most dimensions that an operand may have. */
export const MAX_RANK = 8;

/**
 * The schema's hash: two FNV-1a sums of its canonical text, as they stand in a program's header.
 *
 * @returns Two unsigned 32-bit integers.
 */
export function schemaHash(): [number, number] {
  const text = JSON.stringify({ DTYPES, UNARY, ACTIVATION, BINARY, REDUCE, FORMAT, ROWS, KERNELS, MAX_RANK });
  return [fnv1a(text, 0x811c9dc5), fnv1a(text, 0x01000193)];
}

function fnv1a(text: string, basis: number): number {
  let hash = basis;
  for (let i = 0; i < text.length; i++) hash = Math.imul(hash ^ text.charCodeAt(i), 0x01000193);
  return hash >>> 0;
}
