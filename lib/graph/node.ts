/**
 * The nodes of the lazy graph: immutable, typed, checked when they are made.
 *
 * @module
 */

import type { Dtype } from "./dtypes.ts";
import type { KernelName } from "./schema.ts";

/** Operations that are no kernel: leaves, views, and what lowers to copies. */
export type ViewName = "leaf" | "reshape" | "permute" | "slice" | "expand" | "concat" | "cast";

/** The name of an operation. */
export type OpName = ViewName | Exclude<KernelName, "copy">;

/** The parameters of an operation: plain values, compared by their text. */
export type Params = Readonly<Record<string, number | string | readonly number[]>>;

/**
 * How often a value changes: never while a model lives (its weights and what follows from them alone), once a run
 * (prompts), or at each step. What is constant is computed once and kept.
 */
export type Rate = 0 | 1 | 2;

/** The rates by name. */
export const RATE = { constant: 0, run: 1, step: 2 } as const;

/** A node: an operation on other nodes, or a leaf whose values come from elsewhere. */
export interface Node {
  /** A number that no other node of the process has; inputs have lower ones. */
  readonly id: number;
  /** What it does. */
  readonly op: OpName;
  /** Operands in the op's order; `null` where an optional one is absent. */
  readonly inputs: readonly (Node | null)[];
  /** The op's parameters. */
  readonly params: Params;
  /** The shape of its value. */
  readonly shape: readonly number[];
  /** The element type of its value. */
  readonly dtype: Dtype;
  /** How often its value changes. */
  readonly rate: Rate;
}

let lastId = 0;

/**
 * A number that no other node has.
 *
 * @returns The number, larger than all before it.
 */
export function nextNodeId(): number {
  return ++lastId;
}

/**
 * Makes a leaf.
 *
 * @param shape The shape.
 * @param options The element type, how often it changes, and a name for dumps.
 * @returns The node.
 */
export function leaf(
  shape: readonly number[],
  options: { dtype: Dtype; rate: Rate; name?: string },
): Node {
  const { dtype, rate, name = "" } = options;
  for (const size of shape) {
    if (!Number.isSafeInteger(size) || size < 0) throw new TypeError(`A shape holds sizes, got [${shape}]`);
  }
  return { id: nextNodeId(), op: "leaf", inputs: [], params: { name }, shape: [...shape], dtype, rate };
}

/** What a walk of a graph heeds. */
export interface WalkOptions {
  /** Nodes that others stand in for. */
  readonly replacements?: ReadonlyMap<Node, Node>;
  /** Nodes that are there already: what lies behind them is not needed. */
  readonly isGiven?: (n: Node) => boolean;
}

/**
 * The nodes that some outputs need, each after its inputs.
 *
 * @param outputs The outputs.
 * @param options What stands in for others, what is there already.
 * @returns The nodes in an order in which they can be computed.
 */
export function topological(outputs: readonly Node[], options: WalkOptions = {}): Node[] {
  const { replacements, isGiven } = options;
  const order: Node[] = [];
  const seen = new Set<Node>();
  const stack: [Node, number][] = [];
  const visit = (n: Node) => {
    const effective = replacements?.get(n) ?? n;
    if (seen.has(effective)) return;
    seen.add(effective);
    if (isGiven?.(effective)) order.push(effective);
    else stack.push([effective, 0]);
  };
  for (const output of outputs) {
    visit(output);
    while (stack.length > 0) {
      const top = stack[stack.length - 1]!;
      const input = top[0].inputs[top[1]++];
      if (input === undefined) {
        order.push(top[0]);
        stack.pop();
      } else if (input !== null) {
        visit(input);
      }
    }
  }
  return order;
}
