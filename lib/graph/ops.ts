/**
 * The one table of operations: what each takes, and the shape and dtype that it gives. Those with the name of a kernel
 * lower to that kernel; the others are views, or lower to `copy`.
 *
 * @module
 */

import { type Dtype, DTYPES } from "./dtypes.ts";
import { nextNodeId, type Node, type OpName, type Params, RATE, type Rate } from "./node.ts";
import {
  quantizedBytes,
  quantizedConvBytes,
  refusal,
  rowsBytes,
  storedRowBytes,
  type WeightFormat,
} from "./quantized.ts";
import type { ActivationKind, BinaryKind, FormatKind, ReduceKind, RowsKind, UnaryKind } from "./schema.ts";

/** A shape and an element type. */
export interface TypeOf {
  /** The shape. */
  readonly shape: readonly number[];
  /** The element type. */
  readonly dtype: Dtype;
}

/** One operation's rule. */
interface OpRule {
  /** The names of the operands; a trailing `?` marks an optional one. */
  readonly operands: readonly string[];
  /** Checks operands and parameters; gives the type of the result. */
  readonly infer: (inputs: readonly (Node | null)[], params: Params) => TypeOf;
}

const text = (shape: readonly number[]) => `[${shape.join(", ")}]`;

/**
 * The number of elements of a shape.
 *
 * @param shape The shape.
 * @returns The product of its sizes.
 */
export function sizeOf(shape: readonly number[]): number {
  let size = 1;
  for (const n of shape) size *= n;
  return size;
}

/**
 * Whether two shapes are the same.
 *
 * @param a One shape.
 * @param b The other.
 * @returns Whether rank and sizes are equal.
 */
export function sameShape(a: readonly number[], b: readonly number[]): boolean {
  if (a.length !== b.length) return false;
  for (let i = 0; i < a.length; i++) if (a[i] !== b[i]) return false;
  return true;
}

/**
 * The shape that two shapes broadcast to, by numpy's rule.
 *
 * @param a One shape.
 * @param b The other.
 * @returns The common shape.
 */
export function broadcastShapes(a: readonly number[], b: readonly number[]): number[] {
  const rank = Math.max(a.length, b.length);
  const shape: number[] = [];
  for (let i = 0; i < rank; i++) {
    const x = a[a.length - rank + i] ?? 1;
    const y = b[b.length - rank + i] ?? 1;
    if (x !== y && x !== 1 && y !== 1) throw new TypeError(`Cannot broadcast ${text(a)} with ${text(b)}`);
    shape.push(x === 1 ? y : x);
  }
  return shape;
}

function broadcastsTo(from: readonly number[], to: readonly number[]): boolean {
  if (from.length > to.length) return false;
  const lead = to.length - from.length;
  return from.every((n, i) => n === 1 || n === to[lead + i]);
}

function need(condition: boolean, message: () => string): asserts condition {
  if (!condition) throw new TypeError(message());
}

const at = (inputs: readonly (Node | null)[], i: number): Node => inputs[i]!;
const num = (params: Params, key: string): number => params[key] as number;
const same = (x: Node): TypeOf => ({ shape: x.shape, dtype: x.dtype });

function needFloat(op: string, ...nodes: (Node | null | undefined)[]): void {
  for (const x of nodes) {
    if (x) need(DTYPES[x.dtype].float, () => `Cannot apply ${op} to ${x.dtype}: cast it to a float type first`);
  }
}

function needSameDtype(op: string, a: Node, b: Node | null | undefined): void {
  if (b) {
    need(a.dtype === b.dtype, () => `Cannot apply ${op} to ${a.dtype} and ${b.dtype}: cast one to the other's type`);
  }
}

function needVector(op: string, name: string, v: Node | null | undefined, size: number): void {
  if (v) {
    need(sameShape(v.shape, [size]), () => `${op} takes a ${name} of [${size}], got ${text(v.shape)}`);
    needFloat(op, v);
  }
}

function needBroadcast(op: string, name: string, v: Node | null | undefined, out: TypeOf): void {
  if (v) {
    need(
      broadcastsTo(v.shape, out.shape),
      () => `${op} takes a ${name} that broadcasts to ${text(out.shape)}, got ${text(v.shape)}`,
    );
    need(v.dtype === out.dtype, () => `${op} takes a ${name} of ${out.dtype}, got ${v.dtype}`);
  }
}

const last = (x: Node): number => {
  need(x.shape.length > 0, () => "Cannot take the last axis of a scalar");
  return x.shape[x.shape.length - 1]!;
};

/** The bytes that a weight takes once it is packed: rows to a multiple of 64, columns to one of 4, on every level. */
export function packedBytes(rows: number, columns: number, elementBytes: number): number {
  return Math.ceil(rows / 64) * 64 * Math.ceil(columns / 4) * 4 * elementBytes;
}

/** The operations. */
export const OPS: Readonly<Record<OpName, OpRule>> = {
  leaf: {
    operands: [],
    infer: () => {
      throw new TypeError("A leaf is made by `leaf`");
    },
  },
  reshape: {
    operands: ["x"],
    infer: ([x], params) => {
      const shape = params.shape as readonly number[];
      need(sizeOf(shape) === sizeOf(x!.shape), () => `Cannot reshape ${text(x!.shape)} to ${text(shape)}`);
      return { shape, dtype: x!.dtype };
    },
  },
  permute: {
    operands: ["x"],
    infer: ([x], params) => {
      const axes = params.axes as readonly number[];
      need(
        axes.length === x!.shape.length && new Set(axes).size === axes.length &&
          axes.every((a) => Number.isInteger(a) && a >= 0 && a < axes.length),
        () => `Cannot permute ${text(x!.shape)} by ${text(axes)}: name each axis once`,
      );
      return { shape: axes.map((a) => x!.shape[a]!), dtype: x!.dtype };
    },
  },
  slice: {
    operands: ["x"],
    infer: ([x], params) => {
      const [axis, start, end] = [num(params, "axis"), num(params, "start"), num(params, "end")];
      const size = x!.shape[axis];
      need(
        size !== undefined && Number.isInteger(start) && Number.isInteger(end) && start >= 0 && start <= end &&
          end <= size,
        () => `Cannot slice ${start}..${end} of axis ${axis} of ${text(x!.shape)}`,
      );
      return { shape: x!.shape.map((n, i) => i === axis ? end - start : n), dtype: x!.dtype };
    },
  },
  expand: {
    operands: ["x"],
    infer: ([x], params) => {
      const shape = params.shape as readonly number[];
      need(broadcastsTo(x!.shape, shape), () => `Cannot expand ${text(x!.shape)} to ${text(shape)}`);
      return { shape, dtype: x!.dtype };
    },
  },
  concat: {
    operands: ["x..."],
    infer: (inputs, params) => {
      const axis = num(params, "axis");
      const first = at(inputs, 0);
      need(axis >= 0 && axis < first.shape.length, () => `Cannot concat ${text(first.shape)} along axis ${axis}`);
      let size = 0;
      for (const x of inputs) {
        needSameDtype("concat", first, x);
        need(
          x!.shape.length === first.shape.length && x!.shape.every((n, i) => i === axis || n === first.shape[i]),
          () => `Cannot concat ${text(first.shape)} and ${text(x!.shape)} along axis ${axis}`,
        );
        size += x!.shape[axis]!;
      }
      return { shape: first.shape.map((n, i) => i === axis ? size : n), dtype: first.dtype };
    },
  },
  cast: { operands: ["x"], infer: ([x], params) => ({ shape: x!.shape, dtype: params.dtype as Dtype }) },
  unary: {
    operands: ["x"],
    infer: ([x], params) => {
      needFloat(params.kind as UnaryKind, x);
      return same(x!);
    },
  },
  binary: {
    operands: ["a", "b"],
    infer: ([a, b], params) => {
      needSameDtype(params.kind as BinaryKind, a!, b);
      needFloat(params.kind as BinaryKind, a, b);
      return { shape: broadcastShapes(a!.shape, b!.shape), dtype: a!.dtype };
    },
  },
  reduce: {
    operands: ["x"],
    infer: ([x], params) => {
      needFloat(params.kind as ReduceKind, x);
      need(last(x!) > 0, () => `Cannot take the ${params.kind} of no elements`);
      return { shape: x!.shape.slice(0, -1), dtype: x!.dtype };
    },
  },
  softmax: {
    operands: ["x"],
    infer: ([x]) => {
      needFloat("softmax", x);
      last(x!);
      return same(x!);
    },
  },
  linear: {
    operands: ["x", "weight", "bias?", "gate?", "residual?"],
    infer: ([x, weight, bias, gate, residual], params) => {
      const n = num(params, "n");
      const k = num(params, "k");
      needFloat("linear", x);
      need(last(x!) === k, () => `A linear layer of ${k} inputs cannot take ${text(x!.shape)}`);
      if (weight!.op === "pack_linear") {
        need(
          weight!.shape[0] === packedBytes(n, k, DTYPES[x!.dtype].size),
          () => `A packed weight of (${n}, ${k}) cannot have ${weight!.shape[0]} bytes`,
        );
      } else {
        needFloat("linear", weight);
        need(
          sameShape(weight!.shape, [n, k]),
          () => `A linear layer takes a weight of [${n}, ${k}], got ${text(weight!.shape)}`,
        );
      }
      needVector("linear", "bias", bias, n);
      const out = { shape: [...x!.shape.slice(0, -1), n], dtype: x!.dtype };
      needBroadcast("linear", "gate", gate, out);
      needBroadcast("linear", "residual", residual, out);
      return out;
    },
  },
  pack_linear: {
    operands: ["weight"],
    infer: ([weight], params) => {
      needFloat("pack_linear", weight);
      need(weight!.shape.length === 2, () => `A linear weight has two axes, got ${text(weight!.shape)}`);
      const bytes = packedBytes(weight!.shape[0]!, weight!.shape[1]!, DTYPES[params.dtype as Dtype].size);
      return { shape: [bytes], dtype: "u8" };
    },
  },
  matmul: {
    operands: ["a", "b"],
    infer: ([a, b]) => {
      needFloat("matmul", a, b);
      needSameDtype("matmul", a!, b);
      need(
        a!.shape.length >= 2 && b!.shape.length >= 2 && a!.shape.at(-1) === b!.shape.at(-2),
        () => `Cannot multiply ${text(a!.shape)} by ${text(b!.shape)}`,
      );
      const lead = broadcastShapes(a!.shape.slice(0, -2), b!.shape.slice(0, -2));
      return { shape: [...lead, a!.shape.at(-2)!, b!.shape.at(-1)!], dtype: a!.dtype };
    },
  },
  attention: {
    operands: ["q", "k", "v", "bias?"],
    infer: ([q, k, v, bias]) => {
      needFloat("attention", q, k, v, bias);
      needSameDtype("attention", q!, k);
      needSameDtype("attention", q!, v);
      const [b, h, sq, d] = q!.shape;
      const sk = k!.shape[2];
      need(
        q!.shape.length === 4 && sameShape(k!.shape, [b!, h!, sk!, d!]) && sameShape(v!.shape, k!.shape),
        () =>
          `Attention takes q, k, v of (batch, heads, tokens, size), got ${text(q!.shape)}, ${text(k!.shape)}, ` +
          text(v!.shape),
      );
      if (bias) {
        need(
          broadcastsTo(bias.shape, [b!, h!, sq!, sk!]),
          () => `Attention takes a bias that broadcasts to ${text([b!, h!, sq!, sk!])}, got ${text(bias.shape)}`,
        );
      }
      return same(q!);
    },
  },
  layer_norm: {
    operands: ["x", "weight?", "bias?", "scale?", "shift?"],
    infer: ([x, weight, bias, scale, shift], params) => {
      needFloat("layer_norm", x);
      needVector("layer_norm", "weight", weight, last(x!));
      needVector("layer_norm", "bias", bias, last(x!));
      needBroadcast("layer_norm", "scale", scale, same(x!));
      needBroadcast("layer_norm", "shift", shift, same(x!));
      return normType(x!, params);
    },
  },
  rms_norm: {
    operands: ["x", "weight?"],
    infer: ([x, weight], params) => {
      needFloat("rms_norm", x);
      needVector("rms_norm", "weight", weight, last(x!));
      return normType(x!, params);
    },
  },
  rope: { operands: ["x", "cos", "sin"], infer: ([x, cos, sin]) => inferRope(x!, cos!, sin!) },
  rms_norm_rope: {
    operands: ["x", "weight?", "cos", "sin"],
    infer: ([x, weight, cos, sin]) => {
      needVector("rms_norm_rope", "weight", weight, last(x!));
      return inferRope(x!, cos!, sin!);
    },
  },
  group_norm: {
    operands: ["x", "weight?", "bias?", "scale?", "shift?"],
    infer: ([x, weight, bias, scale, shift], params) => {
      needFloat("group_norm", x);
      const groups = num(params, "groups");
      need(
        isPictures(x!) && Number.isInteger(groups) && groups > 0 && last(x!) % groups === 0,
        () =>
          "Group norm takes (batch, height, width, channels) or (batch, frames, height, width, channels) with " +
          `channels in ${groups} groups, got ${text(x!.shape)}`,
      );
      needVector("group_norm", "weight", weight, last(x!));
      needVector("group_norm", "bias", bias, last(x!));
      need(!scale === !shift, () => "Group norm takes a scale and a shift together");
      needBlocks(x!, scale, params);
      needBlocks(x!, shift, params);
      return same(x!);
    },
  },
  conv: {
    operands: ["x", "weight", "bias?", "residual?", "cache?"],
    infer: ([x, weight, bias, residual, cache], params) => {
      const [filters, channels, ...kernel] = filterShape(params);
      if (weight!.op === "pack_conv") {
        need(
          weight!.shape[0] === packedBytes(filters, channels, DTYPES[x!.dtype].size) * sizeOf(kernel),
          () => `A packed convolution weight cannot have ${weight!.shape[0]} bytes`,
        );
      } else {
        const shape = [filters, channels, ...(x!.shape.length === 4 ? kernel.slice(1) : kernel)];
        need(
          sameShape(weight!.shape, shape),
          () => `A convolution takes a weight of ${text(shape)}, got ${text(weight!.shape)}`,
        );
      }
      return inferConv([x!, bias, residual, cache], params);
    },
  },
  pack_conv: {
    operands: ["weight"],
    infer: ([weight], params) => {
      needFloat("pack_conv", weight);
      const [filters, channels, ...kernel] = weight!.shape;
      need(isPictures(weight!), () => `A convolution's weight has four or five axes, got ${text(weight!.shape)}`);
      const bytes = packedBytes(filters!, channels!, DTYPES[params.dtype as Dtype].size) * sizeOf(kernel);
      return { shape: [bytes], dtype: "u8" };
    },
  },
  upsample_nearest: {
    operands: ["x"],
    infer: ([x], params) => {
      needFloat("upsample_nearest", x);
      const factor = num(params, "factor");
      need(
        x!.shape.length === 4 && Number.isInteger(factor) && factor > 0,
        () => `Upsampling takes (batch, height, width, channels), got ${text(x!.shape)}`,
      );
      const [b, h, w, c] = x!.shape;
      return { shape: [b!, h! * factor, w! * factor, c!], dtype: x!.dtype };
    },
  },
  embedding: {
    operands: ["ids", "table"],
    infer: ([ids, table], params) => {
      needFloat("embedding", table);
      need(ids!.dtype === "i32", () => `An embedding takes i32 ids, got ${ids!.dtype}`);
      need(table!.shape.length === 2, () => `An embedding's table has two axes, got ${text(table!.shape)}`);
      return { shape: [...ids!.shape, table!.shape[1]!], dtype: params.dtype as Dtype };
    },
  },
  timestep_embedding: {
    operands: ["t"],
    infer: ([t], params) => {
      need(t!.dtype === "f32" && t!.shape.length === 1, () => `A timestep embedding takes f32 (batch)`);
      return { shape: [t!.shape[0]!, num(params, "size")], dtype: "f32" };
    },
  },
  rotary_embedding: {
    operands: ["ids"],
    infer: ([ids], params) => {
      const axes = [0, 1, 2, 3].map((i) => num(params, `axis${i}`));
      const used = axes.filter((n) => n > 0);
      need(
        ids!.dtype === "f32" && ids!.shape.length === 2 && ids!.shape[1] === used.length &&
          axes.every((n) => Number.isInteger(n) && n >= 0 && n % 2 === 0),
        () => `Rotary positions take f32 ids (tokens, ${used.length}) and even sizes, got ${text(ids!.shape)}`,
      );
      return { shape: [2, ids!.shape[0]!, used.reduce((a, b) => a + b, 0)], dtype: "f32" };
    },
  },
  quantize_scale: {
    operands: ["weight"],
    infer: ([weight], params) => {
      const [n, k] = matrixOf("quantize_scale", weight!);
      if (params.group === 0) return { shape: [1, 1], dtype: "f32" };
      const { group } = needFormat("quantize_scale", params, k);
      return { shape: [n, k / group], dtype: "f32" };
    },
  },
  quantize_zero_point: {
    operands: ["weight", "scale"],
    infer: ([weight, scale], params) => {
      const [n, k] = matrixOf("quantize_zero_point", weight!);
      needScales("quantize_zero_point", needFormat("quantize_zero_point", params, k), [n, k], [scale!, null]);
      return { shape: scale!.shape, dtype: "i8" };
    },
  },
  quantize_codes: {
    operands: ["weight", "scale", "zero?"],
    infer: ([weight, scale, zero], params) => {
      const [n, k] = matrixOf("quantize_codes", weight!);
      const format = needFormat("quantize_codes", params, k);
      needScales("quantize_codes", format, [n, k], [scale!, zero]);
      return codesType(format, n, k);
    },
  },
  dequantize: {
    operands: ["codes", "scale", "zero?"],
    infer: ([codes, scale, zero], params) => {
      const [n, k] = [num(params, "n"), num(params, "k")];
      const format = needFormat("dequantize", params, k);
      needCodes("dequantize", codes!, codesType(format, n, k));
      needScales("dequantize", format, [n, k], [scale!, zero]);
      return { shape: [n, k], dtype: params.dtype as Dtype };
    },
  },
  pack_quantized: {
    operands: ["codes", "scale", "zero?"],
    infer: ([codes, scale, zero], params) => {
      const [n, k] = [num(params, "n"), num(params, "k")];
      const format = needFormat("pack_quantized", params, k);
      needCodes("pack_quantized", codes!, codesType(format, n, k));
      needScales("pack_quantized", format, [n, k], [scale!, zero]);
      return { shape: [quantizedBytes(format, n, k, zero !== null)], dtype: "u8" };
    },
  },
  quantized_linear: {
    operands: ["x", "weight", "bias?", "gate?", "residual?"],
    infer: ([x, weight, bias, gate, residual], params) => {
      const [n, k] = [num(params, "n"), num(params, "k")];
      const format = needFormat("quantized_linear", params, k);
      const dtype = params.dtype as Dtype;
      const want: TypeOf = params.rows === "none"
        ? { shape: [...x!.shape.slice(0, -1), k], dtype }
        : { shape: [...x!.shape.slice(0, -1), rowsBytes(k)], dtype: "u8" };
      need(
        x!.dtype === want.dtype && sameShape(x!.shape, want.shape),
        () => `quantized_linear takes x of ${want.dtype} ${text(want.shape)}, got ${x!.dtype} ${text(x!.shape)}`,
      );
      need(
        weight!.dtype === "u8" && sameShape(weight!.shape, [quantizedBytes(format, n, k, params.zero === 1)]),
        () => `A packed ${format.format} weight of (${n}, ${k}) cannot be ${weight!.dtype} ${text(weight!.shape)}`,
      );
      needVector("quantized_linear", "bias", bias, n);
      const out = { shape: [...x!.shape.slice(0, -1), n], dtype };
      needBroadcast("quantized_linear", "gate", gate, out);
      needBroadcast("quantized_linear", "residual", residual, out);
      return out;
    },
  },
  quantize_rows: {
    operands: ["x", "amax?"],
    infer: ([x, amax], params) => {
      needFloat("quantize_rows", x);
      need(params.rows !== "none", () => "quantize_rows takes a kind of rows, not none");
      needVector("quantize_rows", "amax", amax, 1);
      return normType(x!, params);
    },
  },
  abs_max: {
    operands: ["x"],
    infer: ([x]) => {
      needFloat("abs_max", x);
      return { shape: [1], dtype: "f32" };
    },
  },
  quantized_embedding: {
    operands: ["ids", "codes", "scale"],
    infer: ([ids, codes, scale], params) => {
      need(ids!.dtype === "i32", () => `An embedding takes i32 ids, got ${ids!.dtype}`);
      need(
        codes!.dtype === "i8" && codes!.shape.length === 2 && scale!.dtype === "f32" &&
          sameShape(scale!.shape, [codes!.shape[0]!, 1]),
        () =>
          `A quantized table is i8 (rows, size) with f32 (rows, 1), got ${text(codes!.shape)}, ${text(scale!.shape)}`,
      );
      return { shape: [...ids!.shape, codes!.shape[1]!], dtype: params.dtype as Dtype };
    },
  },
  pack_quantized_conv: {
    operands: ["codes", "scale"],
    infer: ([codes, scale], params) => {
      const filters = codes!.shape[0]!;
      const shape = filterShape({ ...params, filters });
      const format: WeightFormat = { ...formatOf(params), group: sizeOf(shape.slice(1)) };
      needCodes("pack_quantized_conv", codes!, codesType(format, filters, format.group));
      needScales("pack_quantized_conv", format, [filters, format.group], [scale!, null]);
      return { shape: [quantizedConvBytes(shape)], dtype: "u8" };
    },
  },
  quantized_conv: {
    operands: ["x", "weight", "bias?", "residual?", "cache?", "amax?"],
    infer: ([x, weight, bias, residual, cache, amax], params) => {
      need(
        weight!.dtype === "u8" && sameShape(weight!.shape, [quantizedConvBytes(filterShape(params))]),
        () => `A packed quantized convolution weight cannot be ${weight!.dtype} ${text(weight!.shape)}`,
      );
      needVector("quantized_conv", "amax", amax, 1);
      return inferConv([x!, bias, residual, cache], params);
    },
  },
  prune_semi_structured: {
    operands: ["weight"],
    infer: ([weight]) => {
      const [, k] = matrixOf("prune_semi_structured", weight!);
      need(k % 4 === 0, () => `Pruning two of four takes a multiple of 4 columns, got ${k}`);
      return same(weight!);
    },
  },
};

/** Whether a node is of (batch, height, width, channels), or with frames before the height. */
const isPictures = (x: Node) => x.shape.length === 4 || x.shape.length === 5;

/** Checks that each pixel of a norm's scale or shift is for a block of pixels of x. */
function needBlocks(x: Node, grid: Node | null | undefined, params: Params): void {
  if (!grid) return;
  needSameDtype("group_norm", x, grid);
  const sizes = (shape: readonly number[]) => shape.slice(1, -1);
  const first = num(params, "first");
  const divides = (whole: number, part: number) => part > 0 ? whole % part === 0 : whole === 0;
  need(
    grid.shape.length === x.shape.length && grid.shape[0] === x.shape[0] && last(grid) === last(x) &&
      sizes(x.shape).every((size, axis) => {
        const apart = axis === 0 && x.shape.length === 5 ? first : 0;
        return divides(size - apart, sizes(grid.shape)[axis]! - apart);
      }),
    () =>
      `Group norm of ${text(x.shape)} takes a scale and a shift of sizes that divide its own` +
      `${first ? ", the first frame apart" : ""}, got ${text(grid.shape)}`,
  );
}

/** The shape of a convolution's weight: filters, channels, and the kernel's time, height and width. */
function filterShape(params: Params): [number, number, number, number, number] {
  return ["filters", "channels", "kt", "kh", "kw"].map((key) => num(params, key)) as ReturnType<typeof filterShape>;
}

function inferConv([x, bias, residual, cache]: [Node, ...(Node | null | undefined)[]], params: Params): TypeOf {
  const p = (key: string) => num(params, key);
  const [filters, channels, kt, kh, kw] = filterShape(params);
  needFloat("conv", x);
  need(
    (x.shape.length === 5 || (x.shape.length === 4 && kt === 1)) && last(x) === channels,
    () =>
      `A convolution of ${channels} channels takes (batch, height, width, ${channels}), or ` +
      `(batch, frames, height, width, ${channels}), got ${text(x.shape)}`,
  );
  needVector("conv", "bias", bias, filters);
  if (cache) {
    const shape = [x.shape[0]!, kt - 1, ...x.shape.slice(2)];
    need(
      kt > 1 && sameShape(cache.shape, shape),
      () =>
        `A convolution over ${kt} frames of ${text(x.shape)} takes a cache of ${text(shape)}, got ${text(cache.shape)}`,
    );
    needSameDtype("conv", x, cache);
  }
  const [rows, columns] = x.shape.slice(-3);
  const extent = (size: number, kernel: number, before: number, after: number) =>
    Math.floor((size * p("upsample") + before + after - kernel) / p("stride")) + 1;
  const height = extent(rows!, kh, p("padTop"), p("padBottom"));
  const width = extent(columns!, kw, p("padLeft"), p("padRight"));
  need(height > 0 && width > 0, () => `${text(x.shape)} is too small for a ${kh} by ${kw} convolution`);
  const out = { shape: [...x.shape.slice(0, -3), height, width, filters], dtype: x.dtype };
  needBroadcast("conv", "residual", residual, out);
  return out;
}

/** The format in an operation's parameters. */
function formatOf(params: Params): WeightFormat {
  const [ebits, mbits, group] = [params.ebits ?? 0, params.mbits ?? 0, params.group] as [number, number, number];
  return { format: params.format as FormatKind, ebits, mbits, group };
}

/** Checks that a format takes a weight (n, k). */
function needFormat(op: string, params: Params, k: number): WeightFormat {
  const format = formatOf(params);
  const reason = refusal(format, k);
  need(reason === undefined, () => `Cannot apply ${op} to a weight of ${k} inputs as ${format.format}: ${reason}`);
  return format;
}

/** Checks scales, and zero points where there are any, of a weight (n, k). */
function needScales(
  op: string,
  { group }: WeightFormat,
  [n, k]: readonly [number, number],
  [scale, zero]: readonly [Node, Node | null | undefined],
): void {
  const shape = [n, k / group];
  need(
    scale.dtype === "f32" && sameShape(scale.shape, shape),
    () => `${op} takes scales of f32 ${text(shape)}, got ${scale.dtype} ${text(scale.shape)}`,
  );
  if (zero) {
    need(
      zero.dtype === "i8" && sameShape(zero.shape, shape),
      () => `${op} takes zero points of i8 ${text(shape)}, got ${zero.dtype} ${text(zero.shape)}`,
    );
  }
}

/** The type of a weight's codes in their stored form. */
function codesType(format: WeightFormat, n: number, k: number): TypeOf {
  return { shape: [n, storedRowBytes(format, k)], dtype: format.format === "int8" ? "i8" : "u8" };
}

function needCodes(op: string, codes: Node, want: TypeOf): void {
  need(
    codes.dtype === want.dtype && sameShape(codes.shape, want.shape),
    () => `${op} takes codes of ${want.dtype} ${text(want.shape)}, got ${codes.dtype} ${text(codes.shape)}`,
  );
}

/** The rows and columns of a weight that is to be quantized. */
function matrixOf(op: string, weight: Node): [number, number] {
  needFloat(op, weight);
  need(weight.shape.length === 2, () => `${op} takes a weight of two axes, got ${text(weight.shape)}`);
  return [weight.shape[0]!, weight.shape[1]!];
}

/** What a norm gives: x's own type, or its quantized rows. */
function normType(x: Node, params: Params): TypeOf {
  const { rows = "none" } = params as { rows?: RowsKind };
  return rows === "none" ? same(x) : { shape: [...x.shape.slice(0, -1), rowsBytes(last(x))], dtype: "u8" };
}

function inferRope(x: Node, cos: Node, sin: Node): TypeOf {
  needFloat("rope", x);
  const want = [x.shape[1]!, x.shape[3]!];
  need(
    x.shape.length === 4 && want[1]! % 2 === 0 && sameShape(cos.shape, want) && sameShape(sin.shape, want) &&
      cos.dtype === "f32" && sin.dtype === "f32",
    () =>
      `Rope takes (batch, tokens, heads, size) and f32 (tokens, size), got ${text(x.shape)}, ${text(cos.shape)}, ` +
      text(sin.shape),
  );
  return same(x);
}

/**
 * Checks an operation's operands and parameters and gives the type of its result.
 *
 * @param op The operation.
 * @param inputs Its operands.
 * @param params Its parameters.
 * @returns The shape and element type of the result.
 */
export function inferOp(op: OpName, inputs: readonly (Node | null)[], params: Params): TypeOf {
  const rule = OPS[op];
  if (op !== "concat") {
    need(inputs.length === rule.operands.length, () => `${op} takes ${rule.operands.join(", ")}, got ${inputs.length}`);
    rule.operands.forEach((name, i) =>
      need(inputs[i] !== null || name.endsWith("?"), () => `${op} needs its operand ${name}`)
    );
  }
  return rule.infer(inputs, params);
}

/** How the input of a layer is quantized at run time. */
export interface ActivationQuantization {
  /** The form of its rows. */
  readonly rows: RowsKind;
  /** Whether one scale is for all rows, 1, or each has its own, 0. */
  readonly perTensor: 0 | 1;
}

/** Activations as they are. */
export const FLOAT_ACTIVATION: ActivationQuantization = { rows: "none", perTensor: 0 };

/**
 * The parameters that a linear layer starts with, before any fusion.
 *
 * @param n Outputs.
 * @param k Inputs.
 * @param activation How its input is quantized.
 * @returns The parameters.
 */
export function linearParams(
  n: number,
  k: number,
  activation: ActivationQuantization = FLOAT_ACTIVATION,
): { n: number; k: number; act: ActivationKind; variant: number } & ActivationQuantization {
  return { n, k, act: "none", variant: 0, ...activation };
}

/**
 * Makes a node of an operation, checking operands and inferring shape and dtype.
 *
 * @param op The operation.
 * @param inputs Its operands in the op's order, `null` where an optional one is absent.
 * @param params Its parameters.
 * @returns The node.
 */
export function node(op: OpName, inputs: readonly (Node | null)[], params: Params): Node {
  const { shape, dtype } = inferOp(op, inputs, params);
  let rate: Rate = RATE.constant;
  for (const input of inputs) if (input && input.rate > rate) rate = input.rate;
  return { id: nextNodeId(), op, inputs, params, shape, dtype, rate };
}
