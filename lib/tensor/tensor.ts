/**
 * The lazy tensor: its methods record a graph and compute nothing. Values appear when a tensor is realized, alone
 * (`await tensor.data()`) or with a whole compiled function.
 *
 * @module
 */

import type { Dtype } from "../graph/dtypes.ts";
import type { Node, OpName, Params } from "../graph/node.ts";
import { type ActivationQuantization, FLOAT_ACTIVATION, linearParams, node, sizeOf } from "../graph/ops.ts";
import type { BinaryKind, ReduceKind, RowsKind, UnaryKind } from "../graph/schema.ts";

/** What attention takes besides q, k and v. */
export interface AttentionOptions {
  /** Added to the scores before the softmax; broadcasts to (batch, heads, queries, keys). */
  bias?: Tensor | undefined;
  /** Whether a token sees only itself and those before it. */
  causal?: boolean;
  /** What scores are multiplied by; 1 / sqrt(size) by default. */
  scale?: number;
}

/** What group norm takes besides its input. */
export interface GroupNormOptions {
  /** In how many groups the channels are. */
  groups: number;
  /** (channels). */
  weight?: Tensor | undefined;
  /** (channels). */
  bias?: Tensor | undefined;
  /** Added to the variance. */
  eps: number;
  /**
   * What the norm is multiplied by, of as many axes as the input, and sizes that divide its own: each pixel is for a
   * block of pixels of the input, as if enlarged by nearest neighbour. Comes with `shift`.
   */
  scale?: Tensor | undefined;
  /** What is added then, of the scale's shape. */
  shift?: Tensor | undefined;
  /** Whether the first frame of scale and shift is for the first frame alone, the others for blocks of those after it. */
  firstApart?: boolean;
}

/** A convolution's settings. */
export interface Conv2dOptions {
  /** The bias, (filters). */
  bias?: Tensor | undefined;
  /** Steps between outputs, 1 by default. */
  stride?: number;
  /** Zeros around the input: one number, or top, left, bottom, right; 0 by default. */
  padding?: number | readonly [number, number, number, number];
  /** What the input is quantized to, by one scale, where the weight is quantized; nothing by default. */
  rows?: RowsKind;
}

/** The settings of a convolution over frames. */
export interface Conv3dOptions extends Conv2dOptions {
  /** The frames before the first, (batch, kernel time - 1, height, width, channels); the first again by default. */
  cache?: Tensor | undefined;
}

/** A lazy tensor. */
export class Tensor {
  /** The node of the graph that makes its value. */
  readonly node: Node;

  /** Wraps a node. */
  constructor(node: Node) {
    this.node = node;
  }

  /** The sizes, outermost first. */
  get shape(): readonly number[] {
    return this.node.shape;
  }

  /** The element type. */
  get dtype(): Dtype {
    return this.node.dtype;
  }

  /** The size of one axis; negative ones count from the end. */
  size(axis: number): number {
    return this.shape[this.#axis(axis)]!;
  }

  #axis(axis: number): number {
    const rank = this.shape.length;
    const positive = axis < 0 ? axis + rank : axis;
    if (!Number.isInteger(positive) || positive < 0 || positive >= rank) {
      throw new RangeError(`Axis ${axis} is not one of the ${rank} of [${this.shape.join(", ")}]`);
    }
    return positive;
  }

  #record(op: OpName, inputs: (Tensor | undefined)[], params: Params): Tensor {
    return record(op, [this, ...inputs], params);
  }

  /** The same elements in another shape; one size may be -1. */
  reshape(...shape: number[]): Tensor {
    const hole = shape.indexOf(-1);
    const sizes = [...shape];
    if (hole >= 0) {
      const rest = sizeOf(shape.filter((_, i) => i !== hole));
      sizes[hole] = rest === 0 ? 0 : sizeOf(this.shape) / rest;
    }
    if (sizes.some((n) => !Number.isSafeInteger(n) || n < 0)) {
      throw new TypeError(`Cannot reshape [${this.shape.join(", ")}] to [${shape.join(", ")}]`);
    }
    return this.#record("reshape", [], { shape: sizes });
  }

  /** The axes in another order. */
  permute(...axes: number[]): Tensor {
    return this.#record("permute", [], { axes: axes.map((a) => this.#axis(a)) });
  }

  /** Two axes exchanged. */
  transpose(a: number, b: number): Tensor {
    const axes = this.shape.map((_, i) => i);
    const [i, j] = [this.#axis(a), this.#axis(b)];
    axes[i] = j;
    axes[j] = i;
    return this.#record("permute", [], { axes });
  }

  /** Elements `start` to `end` (not included) of an axis. */
  slice(axis: number, start: number, end?: number): Tensor {
    const i = this.#axis(axis);
    return this.#record("slice", [], { axis: i, start, end: end ?? this.shape[i]! });
  }

  /** Parts of given sizes along an axis. */
  split(sizes: readonly number[], axis = -1): Tensor[] {
    let start = 0;
    const parts = sizes.map((n) => this.slice(axis, start, start += n));
    if (start !== this.size(axis)) {
      throw new TypeError(`Cannot split ${this.size(axis)} elements into [${sizes.join(", ")}]`);
    }
    return parts;
  }

  /** Equal parts along an axis. */
  chunk(count: number, axis = -1): Tensor[] {
    const size = this.size(axis);
    if (size % count !== 0) throw new TypeError(`Cannot chunk ${size} elements into ${count} equal parts`);
    return this.split(Array.from({ length: count }, () => size / count), axis);
  }

  /** A new axis of size 1. */
  unsqueeze(axis: number): Tensor {
    const at = axis < 0 ? axis + this.shape.length + 1 : axis;
    return this.reshape(...this.shape.slice(0, at), 1, ...this.shape.slice(at));
  }

  /** Without an axis of size 1. */
  squeeze(axis: number): Tensor {
    const at = this.#axis(axis);
    if (this.shape[at] !== 1) throw new TypeError(`Axis ${axis} of [${this.shape.join(", ")}] is not of size 1`);
    return this.reshape(...this.shape.slice(0, at), ...this.shape.slice(at + 1));
  }

  /** Repeated along axes of size 1, without a copy. */
  expand(...shape: number[]): Tensor {
    return this.#record("expand", [], { shape });
  }

  /** In another element type, rounded to nearest even. */
  cast(dtype: Dtype): Tensor {
    return dtype === this.dtype ? this : this.#record("cast", [], { dtype });
  }

  #unary(kind: UnaryKind, alpha = 0, beta = 0): Tensor {
    return this.#record("unary", [], { kind, alpha, beta });
  }

  #binary(kind: BinaryKind, other: Tensor): Tensor {
    return this.#record("binary", [other], { kind });
  }

  /** Plus a tensor (broadcast) or a number. */
  add(other: Tensor | number): Tensor {
    return typeof other === "number" ? this.#unary("affine", 1, other) : this.#binary("add", other);
  }

  /** Minus a tensor (broadcast) or a number. */
  sub(other: Tensor | number): Tensor {
    return typeof other === "number" ? this.#unary("affine", 1, -other) : this.#binary("sub", other);
  }

  /** Times a tensor (broadcast) or a number. */
  mul(other: Tensor | number): Tensor {
    return typeof other === "number" ? this.#unary("affine", other, 0) : this.#binary("mul", other);
  }

  /** Divided by a tensor (broadcast) or a number. */
  div(other: Tensor | number): Tensor {
    return typeof other === "number" ? this.#unary("affine", 1 / other, 0) : this.#binary("div", other);
  }

  /** The larger of each pair. */
  maximum(other: Tensor): Tensor {
    return this.#binary("max", other);
  }

  /** The smaller of each pair. */
  minimum(other: Tensor): Tensor {
    return this.#binary("min", other);
  }

  /** Negated. */
  neg(): Tensor {
    return this.#unary("affine", -1, 0);
  }

  /** x * sigmoid(x). */
  silu(): Tensor {
    return this.#unary("silu");
  }

  /** The Gaussian error linear unit, exact or in its tanh approximation. */
  gelu(approximate: "none" | "tanh" = "none"): Tensor {
    return this.#unary(approximate === "tanh" ? "gelu_tanh" : "gelu_erf");
  }

  /** x * sigmoid(1.702 x), CLIP's approximation of GELU. */
  quickGelu(): Tensor {
    return this.#unary("quick_gelu");
  }

  /** max(x, 0). */
  relu(): Tensor {
    return this.#unary("relu");
  }

  /** 1 / (1 + e^-x). */
  sigmoid(): Tensor {
    return this.#unary("sigmoid");
  }

  /** Hyperbolic tangent. */
  tanh(): Tensor {
    return this.#unary("tanh");
  }

  /** e^x. */
  exp(): Tensor {
    return this.#unary("exp");
  }

  /** Natural logarithm. */
  log(): Tensor {
    return this.#unary("log");
  }

  /** Square root. */
  sqrt(): Tensor {
    return this.#unary("sqrt");
  }

  /** 1 / sqrt(x). */
  rsqrt(): Tensor {
    return this.#unary("rsqrt");
  }

  /** Sine. */
  sin(): Tensor {
    return this.#unary("sin");
  }

  /** Cosine. */
  cos(): Tensor {
    return this.#unary("cos");
  }

  /** Absolute value. */
  abs(): Tensor {
    return this.#unary("abs");
  }

  #reduce(kind: ReduceKind, axis: number): Tensor {
    const at = this.#axis(axis);
    const end = this.shape.length - 1;
    const x = at === end ? this : this.transpose(at, end);
    const reduced = x.#record("reduce", [], { kind });
    if (at === end) return reduced;
    // The last axis now stands where the reduced one was: move it back behind the others.
    const axes = reduced.shape.map((_, i) => i);
    axes.splice(axes.indexOf(at), 1);
    axes.push(at);
    return at === end - 1 ? reduced : reduced.permute(...axes);
  }

  /** The sum over an axis. */
  sum(axis = -1): Tensor {
    return this.#reduce("sum", axis);
  }

  /** The mean over an axis. */
  mean(axis = -1): Tensor {
    return this.#reduce("mean", axis);
  }

  /** The largest over an axis. */
  max(axis = -1): Tensor {
    return this.#reduce("max", axis);
  }

  /** Softmax over the last axis. */
  softmax(): Tensor {
    return this.#record("softmax", [], {});
  }

  /** x W^T + bias: (..., K) by a weight (N, K) to (..., N). What the input is quantized to matters to quantized weights. */
  linear(weight: Tensor, bias?: Tensor, activation: ActivationQuantization = FLOAT_ACTIVATION): Tensor {
    const [n = -1, k = -1] = weight.shape;
    return this.#record("linear", [weight, bias, undefined, undefined], { ...linearParams(n, k, activation) });
  }

  /** The matrix product over the last two axes; those before them broadcast. */
  matmul(other: Tensor): Tensor {
    return this.#record("matmul", [other], { alpha: 1 });
  }

  /** Layer norm over the last axis. */
  layerNorm(options: { weight?: Tensor | undefined; bias?: Tensor | undefined; eps: number }): Tensor {
    return this.#record("layer_norm", [options.weight, options.bias, undefined, undefined], {
      eps: options.eps,
      rows: "none",
    });
  }

  /** RMS norm over the last axis. */
  rmsNorm(options: { weight?: Tensor | undefined; eps: number }): Tensor {
    return this.#record("rms_norm", [options.weight], { eps: options.eps, rows: "none" });
  }

  /** Rotates pairs of neighbours of (batch, tokens, heads, size) by f32 cosines and sines (tokens, size). */
  rope(cos: Tensor, sin: Tensor): Tensor {
    return this.#record("rope", [cos, sin], {});
  }

  /** Group norm of (batch, height, width, channels) or (batch, frames, height, width, channels). */
  groupNorm(options: GroupNormOptions): Tensor {
    const { groups, weight, bias, eps, scale, shift, firstApart = false } = options;
    const first = firstApart ? 1 : 0;
    return this.#record("group_norm", [weight, bias, scale, shift], { groups, eps, act: "none", first });
  }

  /** Convolution of (batch, height, width, channels) by a weight (filters, channels, height, width). */
  conv2d(weight: Tensor, options: Conv2dOptions = {}): Tensor {
    const [filters = -1, channels = -1, ...kernel] = weight.shape;
    return this.#conv([filters, channels, 1, ...kernel], weight, options);
  }

  /**
   * Convolution of (batch, frames, height, width, channels) by a weight (filters, channels, time, height, width), causal
   * in time: a frame of the result is of the same frame and those before it. Stride and padding are of height and width.
   */
  conv3d(weight: Tensor, options: Conv3dOptions = {}): Tensor {
    return this.#conv(weight.shape, weight, options);
  }

  #conv(shape: readonly number[], weight: Tensor, options: Conv3dOptions): Tensor {
    const { bias, cache, stride = 1, padding = 0, rows = "none" } = options;
    const [padTop, padLeft, padBottom, padRight] = typeof padding === "number"
      ? [padding, padding, padding, padding] as const
      : padding;
    const [filters = -1, channels = -1, kt = -1, kh = -1, kw = -1] = shape;
    return this.#record("conv", [weight, bias, undefined, cache], {
      filters,
      channels,
      kt,
      kh,
      kw,
      stride,
      padTop,
      padLeft,
      padBottom,
      padRight,
      upsample: 1,
      act: "none",
      rows,
      variant: 0,
    });
  }

  /** (batch, height, width, channels) enlarged by repeating pixels. */
  upsampleNearest(factor: number): Tensor {
    return this.#record("upsample_nearest", [], { factor });
  }
}

/**
 * Records an operation.
 *
 * @param op The operation.
 * @param inputs Its operands, `undefined` where an optional one is absent.
 * @param params Its parameters.
 * @returns The result.
 */
export function record(op: OpName, inputs: readonly (Tensor | undefined)[], params: Params): Tensor {
  return new Tensor(node(op, inputs.map((t) => t?.node ?? null), params));
}

/**
 * Tensors one after another along an axis.
 *
 * @param tensors At least one tensor.
 * @param axis The axis; negative ones count from the end.
 * @returns The result.
 */
export function concat(tensors: readonly Tensor[], axis = -1): Tensor {
  const first = tensors[0];
  if (first === undefined) throw new TypeError("Cannot concat no tensors");
  if (tensors.length === 1) return first;
  return record("concat", tensors, { axis: axis < 0 ? axis + first.shape.length : axis });
}

/**
 * softmax(scale q k^T + bias) v.
 *
 * @param q Queries, (batch, heads, queries, size).
 * @param k Keys, (batch, heads, keys, size).
 * @param v Values, (batch, heads, keys, size).
 * @param options Bias, causality, scale.
 * @returns (batch, heads, queries, size).
 */
export function attention(q: Tensor, k: Tensor, v: Tensor, options: AttentionOptions = {}): Tensor {
  const scale = options.scale ?? 1 / Math.sqrt(q.size(-1));
  return record("attention", [q, k, v, options.bias], { scale, causal: options.causal ? 1 : 0, variant: 0 });
}

/**
 * Rows of a table.
 *
 * @param ids Row numbers, i32 of any shape.
 * @param table (rows, size).
 * @param dtype The result's element type; the table's by default.
 * @returns (..., size).
 */
export function embedding(ids: Tensor, table: Tensor, dtype: Dtype = table.dtype): Tensor {
  return record("embedding", [ids, table], { dtype });
}

/**
 * Sinusoids of timesteps, as diffusers' `get_timestep_embedding`.
 *
 * @param t Timesteps, f32 (batch).
 * @param options The size of an embedding; whether cosines come first; the shift of the frequencies' denominator.
 * @returns f32 (batch, size).
 */
export function timestepEmbedding(
  t: Tensor,
  options: { size: number; flipSinToCos?: boolean; downscaleFreqShift?: number; scale?: number; maxPeriod?: number },
): Tensor {
  const { size, flipSinToCos = false, downscaleFreqShift = 1, scale = 1, maxPeriod = 10000 } = options;
  return record("timestep_embedding", [t], {
    size,
    flip: flipSinToCos ? 1 : 0,
    shift: downscaleFreqShift,
    maxPeriod,
    scale,
  });
}

/**
 * Cosines and sines of rotary positions, as diffusers' `get_1d_rotary_pos_embed` for each axis.
 *
 * @param ids Positions, f32 (tokens, axes).
 * @param options The size that each axis takes of a head, and the base of the frequencies.
 * @returns Cosines and sines, f32 (tokens, size).
 */
export function rotaryEmbedding(
  ids: Tensor,
  options: { axes: readonly number[]; theta: number },
): { cos: Tensor; sin: Tensor } {
  const [axis0 = 0, axis1 = 0, axis2 = 0, axis3 = 0] = options.axes;
  const both = record("rotary_embedding", [ids], { theta: options.theta, axis0, axis1, axis2, axis3 });
  return { cos: both.slice(0, 0, 1).squeeze(0), sin: both.slice(0, 1, 2).squeeze(0) };
}
