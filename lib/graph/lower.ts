/**
 * From a graph to kernel calls: views become offsets and strides, producers write where their results are wanted, and
 * copies stand only where a kernel cannot read or write what it would have to.
 *
 * @module
 */

import type { Dtype } from "./dtypes.ts";
import { type Node, type OpName, topological } from "./node.ts";
import { sizeOf } from "./ops.ts";
import { type KernelName, KERNELS, type KernelSpec, type Layout } from "./schema.ts";

/** A piece of memory: of the arena, or a buffer that a run binds. */
export interface Storage {
  /** The elements' type. */
  readonly dtype: Dtype;
  /** How many elements it has. */
  readonly size: number;
  /** The node whose dense value a bound buffer holds; `undefined` for memory of the arena. */
  readonly external?: Node;
  /** Whether the program writes it. */
  written: boolean;
}

/** Elements of a storage in some order. */
export interface View {
  /** The memory. */
  readonly storage: Storage;
  /** The first element. */
  readonly offset: number;
  /** The sizes. */
  readonly shape: readonly number[];
  /** Distances in elements; 0 where an axis repeats. */
  readonly strides: readonly number[];
}

/** A kernel call. */
export interface Instruction {
  /** The kernel. */
  readonly kernel: KernelName;
  /** Its operands in the schema's order; the last is written. */
  readonly operands: readonly (View | null)[];
  /** Its parameters by name. */
  readonly params: Readonly<Record<string, number | string | readonly number[]>>;
}

/** Kernel calls and the buffers that they take. */
export interface Lowered {
  /** The calls, in order. */
  readonly instructions: readonly Instruction[];
  /** The bound buffers: what is read, then what is written. */
  readonly externals: readonly Storage[];
}

const dense = (shape: readonly number[]): number[] => {
  const strides = new Array<number>(shape.length);
  let step = 1;
  for (let axis = shape.length - 1; axis >= 0; axis--) {
    strides[axis] = step;
    step *= shape[axis]!;
  }
  return strides;
};

/** The same elements in another shape, or `undefined` where strides cannot say it. */
export function reshapeView(view: View, shape: readonly number[]): View | undefined {
  const strides = new Array<number>(shape.length).fill(0);
  const from = view.shape.map((size, axis) => ({ size, stride: view.strides[axis]! })).filter((a) => a.size !== 1);
  if (sizeOf(shape) === 0) return { ...view, shape, strides: dense(shape) };
  let axis = 0;
  let at = 0;
  while (at < from.length) {
    // The shortest runs of old and new axes with equally many elements.
    let end = at + 1;
    let old = from[at]!.size;
    const first = axis;
    let now = 1;
    while (now !== old) {
      if (now < old) now *= shape[axis++]!;
      else old *= from[end++]!.size;
    }
    for (let i = at; i + 1 < end; i++) {
      if (from[i]!.stride !== from[i + 1]!.stride * from[i + 1]!.size) return undefined;
    }
    let step = from[end - 1]!.stride;
    for (let i = axis - 1; i >= first; i--) {
      strides[i] = step;
      step *= shape[i]!;
    }
    at = end;
  }
  return { ...view, shape, strides };
}

/** Whether a kernel takes a view as an operand of a layout. */
export function fits(view: View, layout: Layout): boolean {
  const { shape, strides } = view;
  const rank = shape.length;
  if (layout === "strided" || rank === 0) return true;
  if (layout === "dense") {
    let step = 1;
    for (let axis = rank - 1; axis >= 0; axis--) {
      if (shape[axis] !== 1 && strides[axis] !== step) return false;
      step *= shape[axis]!;
    }
    return true;
  }
  if (shape[rank - 1]! > 1 && strides[rank - 1] !== 1) return false;
  return layout === "inner" || reshapeView({ ...view, shape: shape.slice(0, -1), strides: strides.slice(0, -1) }, [
        sizeOf(shape.slice(0, -1)),
      ]) !== undefined;
}

const VIEWS: ReadonlySet<OpName> = new Set(["reshape", "permute", "slice", "expand"]);

/**
 * The node whose memory a node's value lies in.
 *
 * @param n A node.
 * @returns The node itself, or what its views look at.
 */
export function baseOf(n: Node): Node {
  while (VIEWS.has(n.op)) n = n.inputs[0]!;
  return n;
}

/** The schema of the kernel that computes a node. */
function specOf(n: Node): KernelSpec {
  return KERNELS[n.op === "cast" || n.op === "concat" ? "copy" : n.op as KernelName];
}

const operandSpecs = new Map<KernelSpec, { layout: Layout }[]>();

function layoutsOf(spec: KernelSpec): { layout: Layout }[] {
  let specs = operandSpecs.get(spec);
  if (!specs) operandSpecs.set(spec, specs = Object.values(spec.operands));
  return specs;
}

/**
 * Lowers a graph.
 *
 * @param targets The nodes whose values are wanted, each in a buffer of its own.
 * @param materialized Nodes whose values come in buffers, besides the leaves.
 * @param updates Targets whose buffer may be that of a leaf: they are written when nothing reads the leaf any more.
 * @returns The kernel calls and their buffers.
 */
export function lower(
  targets: readonly Node[],
  materialized: ReadonlySet<Node>,
  updates: ReadonlyMap<Node, Node> = new Map(),
): Lowered {
  const isGiven = (n: Node) => n.op === "leaf" || materialized.has(n);
  const order = topological(targets, { isGiven });
  const users = usersOf(order, isGiven);
  const instructions: Instruction[] = [];
  const inputs: Storage[] = [];
  const outputs: Storage[] = [];
  const values = new Map<Node, View>();
  const copies = new Map<Node, View>();
  const places = new Map<Node, View | null>();
  const wanted = new Set(targets);
  const lastReads = lastReadsOf(order, new Set(updates.values()));
  const held = new Map<number, (() => void)[]>();

  const allocate = (n: { dtype: Dtype; shape: readonly number[] }): View => ({
    storage: { dtype: n.dtype, size: sizeOf(n.shape), written: true },
    offset: 0,
    shape: n.shape,
    strides: dense(n.shape),
  });

  /** The buffer of a target. */
  const output = (n: Node): View => {
    const storage: Storage = { dtype: n.dtype, size: sizeOf(n.shape), written: true, external: n };
    outputs.push(storage);
    return { storage, offset: 0, shape: n.shape, strides: dense(n.shape) };
  };

  const emit = (kernel: KernelName, operands: readonly (View | null)[], params: Instruction["params"]) => {
    instructions.push({ kernel, operands, params });
  };

  /** Where a node's value is wanted: in a part of something larger, or in another order of axes. */
  function place(n: Node): View | null {
    const known = places.get(n);
    if (known !== undefined) return known;
    let found: View | null = null;
    if (wanted.has(n) && !updates.has(n)) {
      found = output(n);
    } else {
      for (const user of users.get(n) ?? []) if ((found = placeIn(n, user)) !== null) break;
    }
    places.set(n, found);
    return found;
  }

  function placeIn(n: Node, user: Node): View | null {
    if (user.op === "concat") {
      const whole = valueOfConcat(user);
      const axis = user.params.axis as number;
      let start = 0;
      for (const part of user.inputs) {
        // A node that is there twice is written once and copied once.
        if (part === n) break;
        start += part!.shape[axis]!;
      }
      return { ...whole, offset: whole.offset + start * whole.strides[axis]!, shape: n.shape };
    }
    if (user.op === "reshape") {
      const whole = place(user);
      return whole && (reshapeView(whole, n.shape) ?? null);
    }
    if (user.op === "permute") {
      const whole = place(user) ?? (flattened(user) ? allocate(user) : null);
      if (!whole) return null;
      places.set(user, whole);
      const strides = new Array<number>(n.shape.length);
      (user.params.axes as readonly number[]).forEach((axis, i) => strides[axis] = whole.strides[i]!);
      return { ...whole, shape: n.shape, strides };
    }
    return null;
  }

  /** Whether a permuted value is reshaped in a way that strides cannot say, so that it is best written in that order. */
  function flattened(permuted: Node): boolean {
    const from = permuted.inputs[0]!;
    const natural = dense(from.shape);
    const view = {
      ...allocate(permuted),
      strides: (permuted.params.axes as readonly number[]).map((axis) => natural[axis]!),
    };
    return (users.get(permuted) ?? []).some((user) => user.op === "reshape" && !reshapeView(view, user.shape));
  }

  function valueOfConcat(n: Node): View {
    let whole = values.get(n);
    if (!whole) values.set(n, whole = place(n) ?? allocate(n));
    return whole;
  }

  /** Where a kernel writes a node's value: where it is wanted if the kernel can, else memory of its own. */
  function destination(n: Node, layout: Layout): View {
    const found = place(n);
    return found && fits(found, layout) ? found : allocate(n);
  }

  function valueOf(n: Node): View {
    return values.get(n)!;
  }

  function asOperand(n: Node, layout: Layout): View {
    const view = valueOf(n);
    if (fits(view, layout)) return view;
    let copy = copies.get(n);
    if (!copy) {
      copies.set(n, copy = allocate(n));
      emit("copy", [view, copy], {});
    }
    return copy;
  }

  function broadcast(view: View, shape: readonly number[]): View {
    const lead = shape.length - view.shape.length;
    const strides = shape.map((size, axis) =>
      axis < lead || (view.shape[axis - lead] === 1 && size !== 1) ? 0 : view.strides[axis - lead]!
    );
    return { ...view, shape, strides };
  }

  function viewOf(n: Node): View {
    const x = valueOf(n.inputs[0]!);
    if (n.op === "permute") {
      const axes = n.params.axes as readonly number[];
      return { ...x, shape: n.shape, strides: axes.map((axis) => x.strides[axis]!) };
    }
    if (n.op === "slice") {
      const axis = n.params.axis as number;
      return { ...x, offset: x.offset + (n.params.start as number) * x.strides[axis]!, shape: n.shape };
    }
    if (n.op === "expand") return broadcast(x, n.shape);
    return reshapeView(x, n.shape) ?? reshapeView(asOperand(n.inputs[0]!, "dense"), n.shape)!;
  }

  function lowerNode(n: Node): View {
    if (isGiven(n)) {
      const storage: Storage = { dtype: n.dtype, size: sizeOf(n.shape), external: n, written: false };
      inputs.push(storage);
      return { storage, offset: 0, shape: n.shape, strides: dense(n.shape) };
    }
    if (VIEWS.has(n.op)) return viewOf(n);
    if (n.op === "concat") return lowerConcat(n);
    return lowerKernel(n);
  }

  function lowerConcat(n: Node): View {
    const whole = valueOfConcat(n);
    const axis = n.params.axis as number;
    let start = 0;
    for (const x of n.inputs) {
      const part = { ...whole, offset: whole.offset + start * whole.strides[axis]!, shape: x!.shape };
      if (!sameView(valueOf(x!), part)) emit("copy", [valueOf(x!), part], {});
      start += x!.shape[axis]!;
    }
    return whole;
  }

  function lowerKernel(n: Node): View {
    const spec = specOf(n);
    const layouts = layoutsOf(spec);
    const out = destination(n, layouts.at(-1)!.layout);
    const operands = n.inputs.map((x, i) => x && operandOf(n, x, i, layouts[i]!.layout));
    emit(n.op === "cast" ? "copy" : n.op as KernelName, [...operands, out], n.params);
    return out;
  }

  function operandOf(n: Node, x: Node, index: number, layout: Layout): View {
    const shape = broadcastShape(n, index);
    if (!shape) return asOperand(x, layout);
    const view = broadcast(valueOf(x), shape);
    return fits(view, layout) ? view : broadcast(asOperand(x, layout), shape);
  }

  for (const [index, n] of order.entries()) {
    const view = lowerNode(n);
    values.set(n, view);
    const leaf = updates.get(n);
    if (leaf) {
      const target = output(n);
      const at = Math.max(index, lastReads.get(leaf) ?? index);
      held.set(at, [...held.get(at) ?? [], () => emit("copy", [view, target], {})]);
    } else {
      const target = wanted.has(n) ? place(n)! : undefined;
      if (target && !sameView(view, target)) emit("copy", [view, target], {});
    }
    for (const write of held.get(index) ?? []) write();
  }
  return { instructions, externals: [...inputs, ...outputs] };
}

/** Where in an order some leaves are last read. */
function lastReadsOf(order: readonly Node[], leaves: ReadonlySet<Node>): Map<Node, number> {
  const last = new Map<Node, number>();
  if (leaves.size === 0) return last;
  for (const [index, n] of order.entries()) {
    for (const x of n.inputs) {
      const base = x && baseOf(x);
      if (base && leaves.has(base)) last.set(base, index);
    }
  }
  return last;
}

function usersOf(order: readonly Node[], isGiven: (n: Node) => boolean): Map<Node, Node[]> {
  const users = new Map<Node, Node[]>();
  for (const n of order) {
    if (isGiven(n)) continue;
    for (const x of n.inputs) {
      if (!x) continue;
      const list = users.get(x);
      if (list) list.push(n);
      else users.set(x, [n]);
    }
  }
  return users;
}

function sameView(a: View, b: View): boolean {
  return a.storage === b.storage && a.offset === b.offset &&
    a.shape.every((size, axis) => size <= 1 || a.strides[axis] === b.strides[axis]);
}

/** The shape that a kernel wants an operand to be broadcast to; `undefined` where it takes it as it is. */
function broadcastShape(n: Node, index: number): readonly number[] | undefined {
  switch (n.op) {
    case "binary":
      return n.shape;
    case "linear":
    case "quantized_linear":
      return index >= 3 ? n.shape : undefined;
    case "conv":
    case "quantized_conv":
      return index === 3 ? n.shape : undefined;
    case "layer_norm":
      // Quantized rows are longer than what they hold.
      return index >= 3 ? n.inputs[0]!.shape : undefined;
    case "matmul":
      return [...n.shape.slice(0, -2), ...n.inputs[index]!.shape.slice(-2)];
    case "attention": {
      const [b, h, s] = n.shape as [number, number, number];
      return index === 3 ? [b, h, s, n.inputs[1]!.shape[2]!] : undefined;
    }
    default:
      return undefined;
  }
}
