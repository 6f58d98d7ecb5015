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
export const ACTIVATION = { none: 0, silu: 1, gelu_tanh: 2, gelu_erf: 3, quick_gelu: 4, relu: 5 } as const;

/** The name of a fused activation. */
export type ActivationKind = keyof typeof ACTIVATION;

/** Element-wise functions of two operands, by code. */
export const BINARY = { add: 0, sub: 1, mul: 2, div: 3, max: 4, min: 5 } as const;

/** The name of a function of two operands. */
export type BinaryKind = keyof typeof BINARY;

/** Reductions of the last axis, by code. */
export const REDUCE = { sum: 0, mean: 1, max: 2 } as const;

/** The name of a reduction. */
export type ReduceKind = keyof typeof REDUCE;

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
export type ParamType = "i32" | "f32" | "unary" | "activation" | "binary" | "reduce";

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
  | "conv2d"
  | "pack_conv2d"
  | "upsample_nearest"
  | "embedding"
  | "timestep_embedding"
  | "rotary_embedding";

/** The kernels. */
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
    params: { n: "i32", k: "i32", act: "activation" },
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
    params: { scale: "f32", causal: "i32" },
  },
  /** y = (x - mean) / sqrt(var + eps) * weight + bias, then y * (1 + scale) + shift; scale, shift broadcast to x. */
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
    params: { eps: "f32" },
  },
  /** x / sqrt(mean(x^2) + eps) * weight, over the last axis; weight f32. */
  rms_norm: { code: 11, operands: { x: inner, weight: optional("dense"), out: inner }, params: { eps: "f32" } },
  /** Rotates pairs (2i, 2i + 1) of x (B, S, H, D) by cos, sin f32 (S, D). */
  rope: { code: 12, operands: { x: inner, cos: inner, sin: inner, out: inner }, params: {} },
  /** rms_norm, then rope. */
  rms_norm_rope: {
    code: 13,
    operands: { x: inner, weight: optional("dense"), cos: inner, sin: inner, out: inner },
    params: { eps: "f32" },
  },
  /** x, out (B, H, W, C), channels last; weight, bias f32 (C). */
  group_norm: {
    code: 14,
    operands: { x: inner, weight: optional("dense"), bias: optional("dense"), out: inner },
    params: { groups: "i32", eps: "f32", act: "activation" },
  },
  /**
   * Cross-correlation, channels last: x (B, H, W, C) to out (B, Ho, Wo, O), weight packed from (O, C, kh, kw). Reads
   * x as if enlarged `upsample` times by nearest neighbour. What lies outside x is zero, below and to the right as
   * far as out reaches. out = residual + act(conv + bias).
   */
  conv2d: {
    code: 15,
    operands: {
      x: inner,
      weight: dense,
      bias: optional("dense"),
      residual: optional("strided"),
      out: inner,
    },
    params: {
      kh: "i32",
      kw: "i32",
      stride: "i32",
      padTop: "i32",
      padLeft: "i32",
      upsample: "i32",
      act: "activation",
    },
  },
  /** Rearranges (O, C, kh, kw) of any float dtype into the level's layout for x of dtype code `dtype`. */
  pack_conv2d: { code: 16, operands: { weight: strided, out: dense }, params: { dtype: "i32" } },
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
};

/** The most dimensions that an operand may have. */
export const MAX_RANK = 8;

/**
 * The schema's hash: two FNV-1a sums of its canonical text, as they stand in a program's header.
 *
 * @returns Two unsigned 32-bit integers.
 */
export function schemaHash(): [number, number] {
  const text = JSON.stringify({ DTYPES, UNARY, ACTIVATION, BINARY, REDUCE, KERNELS, MAX_RANK });
  return [fnv1a(text, 0x811c9dc5), fnv1a(text, 0x01000193)];
}

function fnv1a(text: string, basis: number): number {
  let hash = basis;
  for (let i = 0; i < text.length; i++) hash = Math.imul(hash ^ text.charCodeAt(i), 0x01000193);
  return hash >>> 0;
}
