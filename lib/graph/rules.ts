/**
 * The rewrites, as tables: what is simplified, what is fused, and what kernels need.
 *
 * @module
 */

import { DTYPES, widens } from "./dtypes.ts";
import type { Node } from "./node.ts";
import { sameShape, sizeOf } from "./ops.ts";
import type { Rewriter, Rule } from "./rewrite.ts";
import { ACTIVATION } from "./schema.ts";

const shapeOf = (n: Node) => n.params.shape as readonly number[];
const axesOf = (n: Node) => n.params.axes as readonly number[];
const number = (n: Node, name: string) => n.params[name] as number;
const input = (n: Node, index = 0) => n.inputs[index]!;

/** Whether a node is a unary operation of a kind. */
const isUnary = (n: Node, kind: string) => n.op === "unary" && n.params.kind === kind;

/** One of a commutative node's operands that satisfies a condition, and the other one. */
function eitherOperand(n: Node, condition: (x: Node) => boolean): [Node, Node] | undefined {
  const [a, b] = [input(n), input(n, 1)];
  if (condition(a)) return [a, b];
  if (condition(b)) return [b, a];
  return undefined;
}

/** A node with some operands or parameters changed. */
function remake(
  g: Rewriter,
  n: Node,
  change: { inputs?: Record<number, Node>; params?: Record<string, number | string> },
): Node {
  const inputs = n.inputs.map((x, i) => change.inputs?.[i] ?? x);
  return g.make(n.op, inputs, { ...n.params, ...change.params });
}

/** Views that change nothing, views of views, arithmetic with constants, casts. */
export const SIMPLIFY: readonly Rule[] = [
  {
    name: "reshape to the same shape",
    ops: ["reshape", "expand"],
    apply: (n) => sameShape(n.shape, input(n).shape) ? input(n) : undefined,
  },
  {
    name: "reshape of a reshape",
    ops: ["reshape"],
    apply: (n, g) => input(n).op === "reshape" ? g.make("reshape", [input(input(n))], n.params) : undefined,
  },
  {
    name: "permute to the same order",
    ops: ["permute"],
    apply: (n) => axesOf(n).every((axis, i) => axis === i) ? input(n) : undefined,
  },
  {
    name: "permute of a permute",
    ops: ["permute"],
    apply: (n, g) => {
      const inner = input(n);
      if (inner.op !== "permute") return undefined;
      return g.make("permute", [input(inner)], { axes: axesOf(n).map((axis) => axesOf(inner)[axis]!) });
    },
  },
  {
    name: "slice of everything",
    ops: ["slice"],
    apply: (n) => sameShape(n.shape, input(n).shape) ? input(n) : undefined,
  },
  {
    name: "slice of a slice",
    ops: ["slice"],
    apply: (n, g) => {
      const inner = input(n);
      if (inner.op !== "slice" || inner.params.axis !== n.params.axis) return undefined;
      const start = number(inner, "start");
      return g.make("slice", [input(inner)], {
        axis: n.params.axis!,
        start: start + number(n, "start"),
        end: start + number(n, "end"),
      });
    },
  },
  {
    name: "cast to the same type",
    ops: ["cast"],
    apply: (n) => n.dtype === input(n).dtype ? input(n) : undefined,
  },
  {
    name: "cast of a cast that loses nothing",
    ops: ["cast"],
    apply: (n, g) => {
      const inner = input(n);
      if (inner.op !== "cast" || !widens(input(inner).dtype, inner.dtype)) return undefined;
      return g.make("cast", [input(inner)], n.params);
    },
  },
  {
    name: "x * 1 + 0",
    ops: ["unary"],
    apply: (n) => isUnary(n, "affine") && n.params.alpha === 1 && n.params.beta === 0 ? input(n) : undefined,
  },
  {
    name: "affine of affine",
    ops: ["unary"],
    apply: (n, g) => {
      const inner = input(n);
      // In 16 bits the value between the two is rounded, as it is in PyTorch.
      if (!isUnary(n, "affine") || !isUnary(inner, "affine") || n.dtype !== "f32") return undefined;
      const [alpha, beta] = [number(n, "alpha"), number(n, "beta")];
      return g.make("unary", [input(inner)], {
        kind: "affine",
        alpha: alpha * number(inner, "alpha"),
        beta: alpha * number(inner, "beta") + beta,
      });
    },
  },
  {
    name: "matmul times a number",
    ops: ["unary"],
    apply: (n, g) => {
      const inner = input(n);
      if (!isUnary(n, "affine") || n.params.beta !== 0 || inner.op !== "matmul" || !g.once(inner)) return undefined;
      return remake(g, inner, { params: { alpha: number(inner, "alpha") * number(n, "alpha") } });
    },
  },
];

/**
 * What is computed row by row commutes with a selection of rows: when the rows themselves change less often than which
 * of them are selected (one row a step), they are computed all at once, before the steps.
 */
export const HOIST: readonly Rule[] = [
  {
    name: "function of selected rows",
    ops: ["unary", "cast"],
    apply: (n, g) => {
      const rows = input(n);
      if (!isSelection(rows)) return undefined;
      const table = g.make(n.op, [input(rows, 1)], n.params);
      return g.make("embedding", [input(rows), table], { dtype: n.dtype });
    },
  },
  {
    name: "linear of selected rows",
    ops: ["linear"],
    apply: (n, g) => {
      const rows = input(n);
      const constant = n.inputs.slice(1).every((x) => x === null || x.rate === 0);
      // One scale for the rows of a step is not one for those of all.
      if (!isSelection(rows) || !constant || n.params.perTensor === 1) return undefined;
      const table = remake(g, n, { inputs: { 0: input(rows, 1) } });
      return g.make("embedding", [input(rows), table], { dtype: n.dtype });
    },
  },
  {
    name: "selected rows of a slice",
    ops: ["embedding"],
    apply: (n, g) => {
      const table = input(n, 1);
      if (!isSelection(n) || table.op !== "slice" || table.params.axis !== 1) return undefined;
      const rows = g.make("embedding", [input(n), input(table)], n.params);
      return g.make("slice", [rows], { ...table.params, axis: rows.shape.length - 1 });
    },
  },
];

const isSelection = (n: Node) =>
  n.op === "embedding" && input(n, 1).rate < input(n).rate && input(n, 1).rate > 0 && n.dtype === input(n, 1).dtype;

/** Operations that a kernel computes with another one. */
export const FUSE: readonly Rule[] = [
  {
    name: "activation of linear, conv or group_norm",
    ops: ["unary"],
    apply: (n, g) => {
      const x = input(n);
      const kind = n.params.kind as string;
      const fusible = x.op === "linear" || x.op === "conv" || x.op === "group_norm";
      if (!fusible || !(kind in ACTIVATION) || !g.once(x) || x.params.act !== "none" || hasEpilogue(x)) {
        return undefined;
      }
      return remake(g, x, { params: { act: kind } });
    },
  },
  {
    name: "layer_norm * (1 + scale)",
    ops: ["binary"],
    apply: (n, g) => {
      if (n.params.kind !== "mul") return undefined;
      const found = eitherOperand(n, (x) => x.op === "layer_norm" && !x.inputs[3] && !x.inputs[4] && g.once(x));
      if (!found || !isPlusOne(found[1]) || !sameShape(n.shape, found[0].shape)) return undefined;
      return remake(g, found[0], { inputs: { 3: input(found[1]) } });
    },
  },
  {
    name: "layer_norm + shift",
    ops: ["binary"],
    apply: (n, g) => {
      if (n.params.kind !== "add") return undefined;
      const found = eitherOperand(n, (x) => x.op === "layer_norm" && x.inputs[3] !== null && !x.inputs[4] && g.once(x));
      if (!found || !sameShape(n.shape, found[0].shape)) return undefined;
      return remake(g, found[0], { inputs: { 4: found[1] } });
    },
  },
  {
    name: "rope of rms_norm",
    ops: ["rope"],
    apply: (n, g) => {
      const x = input(n);
      if (x.op !== "rms_norm" || !g.once(x)) return undefined;
      return g.make("rms_norm_rope", [input(x), x.inputs[1]!, input(n, 1), input(n, 2)], x.params);
    },
  },
  {
    name: "rope of tokens one after another",
    ops: ["rope"],
    apply: (n, g) => {
      const x = input(n);
      if (x.op !== "concat" || x.params.axis !== 1 || !g.once(x)) return undefined;
      let start = 0;
      const parts = x.inputs.map((part) => {
        const rows = { axis: 0, start, end: start += part!.shape[1]! };
        return g.make("rope", [part, g.make("slice", [input(n, 1)], rows), g.make("slice", [input(n, 2)], rows)], {});
      });
      return g.make("concat", parts, x.params);
    },
  },
  {
    name: "conv of an enlarged image",
    ops: ["conv"],
    apply: (n, g) => {
      const x = input(n);
      if (x.op !== "upsample_nearest" || n.params.upsample !== 1) return undefined;
      return remake(g, n, { inputs: { 0: input(x) }, params: { upsample: number(x, "factor") } });
    },
  },
  {
    name: "gate * linear",
    ops: ["binary"],
    apply: (n, g) => {
      if (n.params.kind !== "mul") return undefined;
      const open = (x: Node) => x.op === "linear" && !hasEpilogue(x) && sameShape(x.shape, n.shape) && g.once(x);
      const found = eitherOperand(n, open);
      return found && remake(g, found[0], { inputs: { 3: found[1] } });
    },
  },
  {
    name: "residual + linear or conv",
    ops: ["binary"],
    apply: (n, g) => {
      if (n.params.kind !== "add") return undefined;
      const open = (x: Node) =>
        (x.op === "linear" ? !x.inputs[4] : x.op === "conv" && !x.inputs[3]) && sameShape(x.shape, n.shape) &&
        g.once(x);
      const found = eitherOperand(n, open);
      return found && remake(g, found[0], { inputs: { [found[0].op === "linear" ? 4 : 3]: found[1] } });
    },
  },
];

/** Whether something is applied to the result after the activation. */
function hasEpilogue(x: Node): boolean {
  if (x.op === "linear") return x.inputs[3] !== null || x.inputs[4] !== null;
  return x.op === "conv" && x.inputs[3] !== null;
}

const isPlusOne = (x: Node) => isUnary(x, "affine") && x.params.alpha === 1 && x.params.beta === 1;

/** Equal views of several parts become one view of the parts together, which producers can write side by side. */
export const GATHER_VIEWS: readonly Rule[] = [
  {
    name: "concat of slices",
    ops: ["concat"],
    apply: (n, g) => {
      const first = input(n);
      if (first.op !== "slice" || first.params.axis === n.params.axis || !alike(n)) return undefined;
      return g.make("slice", [g.make("concat", n.inputs.map((x) => input(x!)), n.params)], first.params);
    },
  },
  {
    name: "concat of reshapes",
    ops: ["concat"],
    apply: (n, g) => {
      const axis = number(n, "axis");
      const same = (x: Node) =>
        x.op === "reshape" && sameShape(shapeOf(x).slice(0, axis + 1), input(x).shape.slice(0, axis + 1)) &&
        sameShape(input(x).shape.slice(axis + 1), input(input(n)).shape.slice(axis + 1)) && isView(input(x));
      if (!n.inputs.every((x) => same(x!))) return undefined;
      return g.make("reshape", [g.make("concat", n.inputs.map((x) => input(x!)), n.params)], { shape: n.shape });
    },
  },
];

/** Quantized weights on top of each other are one quantized weight. */
export const GATHER_WEIGHTS: readonly Rule[] = [
  {
    name: "concat of quantized weights",
    ops: ["concat"],
    apply: (n, g) => {
      if (n.params.axis !== 0 || !n.inputs.every((x) => sameFormat(x!, input(n)))) return undefined;
      const part = (i: number) => g.make("concat", n.inputs.map((x) => input(x!, i)), { axis: 0 });
      const zero = input(n).inputs[2] ? part(2) : null;
      return g.make("dequantize", [part(0), part(1), zero], { ...input(n).params, n: n.shape[0]! });
    },
  },
];

/** Whether two nodes are weights that are quantized in the same way. */
function sameFormat(a: Node, b: Node): boolean {
  return a.op === "dequantize" && b.op === "dequantize" && formatKey(a) === formatKey(b);
}

/** What tells the ways apart in which weights are quantized. */
const formatKey = ({ params, inputs }: Node) =>
  [params.k, params.format, params.ebits, params.mbits, params.group, params.dtype, inputs[2] !== null].join();

/**
 * What quantized weights lower to: the layer that reads them packed, its input quantized where the layer asks for it.
 * In a pass before the one in which a norm and its quantization become one: only then is it known that layers that
 * share an input share its quantization.
 */
export const QUANTIZE: readonly Rule[] = [
  {
    name: "linear of a quantized weight",
    ops: ["linear"],
    apply: (n, g) => {
      const weight = input(n, 1);
      if (weight.op !== "dequantize") return undefined;
      const { params, dtype } = n;
      const { k, format, ebits, mbits, group } = weight.params;
      const x = params.rows === "none" ? input(n) : quantizedRows(input(n), n, g);
      const shared = { n: params.n!, k: k!, format: format!, ebits: ebits!, mbits: mbits!, group: group! };
      const packed = g.make("pack_quantized", weight.inputs, { ...shared, rows: params.rows!, dtype });
      return g.make("quantized_linear", [x, packed, ...n.inputs.slice(2)], {
        ...shared,
        act: params.act!,
        zero: weight.inputs[2] ? 1 : 0,
        rows: params.rows!,
        variant: params.variant!,
        dtype,
      });
    },
  },
  {
    name: "conv of a quantized weight",
    ops: ["conv"],
    apply: (n, g) => {
      const weight = baseOfWeight(input(n, 1));
      if (weight.op !== "dequantize") return undefined;
      const { params, dtype } = n;
      const { channels, kt, kh, kw, rows } = params;
      const { format } = weight.params;
      const packed = g.make("pack_quantized_conv", weight.inputs.slice(0, 2), {
        channels: channels!,
        kt: kt!,
        kh: kh!,
        kw: kw!,
        format: format!,
        rows: rows!,
        dtype,
      });
      const amax = rows === "none" ? null : largest([input(n), n.inputs[4]], g);
      return g.make("quantized_conv", [input(n), packed, ...n.inputs.slice(2), amax], { ...params, format: format! });
    },
  },
  {
    name: "embedding of a quantized table",
    ops: ["embedding"],
    apply: (n, g) => {
      const table = input(n, 1);
      if (table.op !== "dequantize" || table.params.format !== "int8" || table.params.group !== table.params.k) {
        return undefined;
      }
      return g.make("quantized_embedding", [input(n), input(table), input(table, 1)], n.params);
    },
  },
];

/** The largest magnitude of an input and of what may come with it. */
function largest(xs: readonly (Node | null | undefined)[], g: Rewriter): Node {
  return xs.filter((x) => !!x).map((x) => g.make("abs_max", [x], {}))
    .reduce((a, b) => g.make("binary", [a, b], { kind: "max" }));
}

const baseOfWeight = (weight: Node) => weight.op === "reshape" ? input(weight) : weight;

function quantizedRows(x: Node, { params }: Node, g: Rewriter): Node {
  const amax = params.perTensor === 1 ? g.make("abs_max", [x], {}) : null;
  return g.make("quantize_rows", [x, amax], { rows: params.rows! });
}

/** Whether a node is a part of what one kernel computes. */
const isView = (n: Node) => n.op === "slice" && n.rate > 0;

/** Whether all operands of a concat are the same slice of computed values that could be concatenated themselves. */
function alike(n: Node): boolean {
  const first = input(n);
  const base = input(first).shape;
  return n.inputs.every((x) =>
    x!.op === "slice" && x!.params.axis === first.params.axis && x!.params.start === first.params.start &&
    x!.params.end === first.params.end && x!.rate > 0 && input(x!).op !== "leaf" &&
    input(x!).shape.every((size, axis) => axis === n.params.axis || size === base[axis])
  );
}

/** What kernels take: packed weights, vectors in f32; and rows that are quantized while they are at hand. */
export const LEGALIZE: readonly Rule[] = [
  {
    name: "quantized rows of a norm",
    ops: ["quantize_rows"],
    apply: (n, g) => {
      const norm = input(n);
      if ((norm.op !== "layer_norm" && norm.op !== "rms_norm") || n.inputs[1] || !g.once(norm)) return undefined;
      return g.make(norm.op, norm.inputs, { ...norm.params, rows: n.params.rows! });
    },
  },
  {
    name: "pack a weight",
    ops: ["linear", "conv"],
    apply: (n, g) => {
      const weight = input(n, 1);
      const op = n.op === "linear" ? "pack_linear" : "pack_conv";
      if (weight.op === op) return undefined;
      return remake(g, n, { inputs: { 1: g.make(op, [weight], { dtype: n.dtype }) } });
    },
  },
  {
    name: "pack a cast weight",
    ops: ["pack_linear", "pack_conv"],
    apply: (n, g) => {
      const weight = input(n);
      if (weight.op !== "cast" || !widens(input(weight).dtype, weight.dtype)) return undefined;
      return g.make(n.op, [input(weight)], n.params);
    },
  },
  {
    name: "rows of a cast table",
    ops: ["embedding"],
    apply: (n, g) => {
      const table = input(n, 1);
      if (table.op !== "cast" || !widens(input(table).dtype, table.dtype)) return undefined;
      return remake(g, n, { inputs: { 1: input(table) } });
    },
  },
  {
    name: "vectors in f32",
    ops: ["linear", "conv", "quantized_linear", "quantized_conv"],
    apply: (n, g) => inFloat32(n, g, [2]),
  },
  { name: "vectors in f32", ops: ["layer_norm", "group_norm"], apply: (n, g) => inFloat32(n, g, [1, 2]) },
  { name: "vectors in f32", ops: ["rms_norm", "rms_norm_rope"], apply: (n, g) => inFloat32(n, g, [1]) },
  { name: "scores' bias in f32", ops: ["attention"], apply: (n, g) => inFloat32(n, g, [3]) },
];

function inFloat32(n: Node, g: Rewriter, operands: readonly number[]): Node | undefined {
  const inputs: Record<number, Node> = {};
  for (const i of operands) {
    const x = n.inputs[i];
    if (x && x.dtype !== "f32") inputs[i] = g.make("cast", [x], { dtype: "f32" });
  }
  return Object.keys(inputs).length > 0 ? remake(g, n, { inputs }) : undefined;
}

/** The bytes that weights of linear layers may have together to be joined: they are copied once to be packed. */
const JOINED_BYTES = 64 << 20;

/**
 * Linear layers of one input, none of which has an epilogue of its own, become one with their weights on top of each
 * other; each of them is a slice of its result.
 *
 * @param linears All linear nodes that may be joined.
 * @param g The graph that they stand in.
 * @returns What replaces which.
 */
export function joinLinears(linears: readonly Node[], g: Pick<Rewriter, "make">): Map<Node, Node> {
  const groups = new Map<string, Node[]>();
  for (const n of linears) {
    const [x, weight, bias] = [input(n), input(n, 1), n.inputs[2]];
    if (weight.rate > 0 || (bias?.rate ?? 0) > 0 || hasEpilogue(n) || n.params.act !== "none") continue;
    const format = weight.op === "dequantize" ? formatKey(weight) : weight.dtype;
    const key = [x.id, format, bias?.dtype, n.params.rows, n.params.perTensor].join();
    groups.set(key, [...(groups.get(key) ?? []), n]);
  }
  const replacements = new Map<Node, Node>();
  for (const group of groups.values()) {
    for (const part of boundedParts(group)) if (part.length > 1) join(part, g, replacements);
  }
  return replacements;
}

function boundedParts(group: readonly Node[]): Node[][] {
  const parts: Node[][] = [];
  let bytes = Infinity;
  for (const n of group) {
    const weight = input(n, 1);
    const size = weight.op === "dequantize" ? sizeOf(input(weight).shape) : sizeOf(weight.shape) * DTYPES[n.dtype].size;
    if (bytes + size > JOINED_BYTES) {
      parts.push([]);
      bytes = 0;
    }
    parts.at(-1)!.push(n);
    bytes += size;
  }
  return parts;
}

function join(part: readonly Node[], g: Pick<Rewriter, "make">, replacements: Map<Node, Node>): void {
  const first = part[0]!;
  const weight = g.make("concat", part.map((n) => input(n, 1)), { axis: 0 });
  const bias = first.inputs[2] ? g.make("concat", part.map((n) => n.inputs[2]!), { axis: 0 }) : null;
  const joined = g.make("linear", [input(first), weight, bias, null, null], { ...first.params, n: weight.shape[0]! });
  let start = 0;
  for (const n of part) {
    const end = start + number(n, "n");
    replacements.set(n, g.make("slice", [joined], { axis: joined.shape.length - 1, start, end }));
    start = end;
  }
}
