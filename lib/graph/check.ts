/**
 * The checker that stands between passes: a rewrite that breaks a graph is found where it happened.
 *
 * @module
 */

import { type Node, topological } from "./node.ts";
import { inferOp, sameShape } from "./ops.ts";

/** A graph that a pass left in disorder: a defect of denoise. */
export class GraphError extends Error {
  /** The class's name. */
  override name = "GraphError";
}

/** Nodes never change: one that was right once stays right, and all behind it. */
const checked = new WeakSet<Node>();

/**
 * Checks a graph: each node has the type and rate that its operation gives, each output the type that it had before.
 *
 * @param outputs The outputs.
 * @param options The pass that made it; the outputs before it, whose types must be the same.
 */
export function checkGraph(outputs: readonly Node[], options: { pass: string; before: readonly Node[] }): void {
  const { pass, before } = options;
  const fail = (n: Node, what: string) => {
    throw new GraphError(`After ${pass}, node ${n.id} (${n.op} [${n.shape.join(", ")}]) ${what}`);
  };
  for (const n of topological(outputs, { isGiven: (n) => checked.has(n) })) {
    if (checked.has(n)) continue;
    checked.add(n);
    if (n.op === "leaf") continue;
    const rate = Math.max(0, ...n.inputs.map((x) => x?.rate ?? 0));
    if (n.rate !== rate) fail(n, `has rate ${n.rate}, its operands ${rate}`);
    const { shape, dtype } = inferOp(n.op, n.inputs, n.params);
    if (dtype !== n.dtype || !sameShape(shape, n.shape)) fail(n, `should be ${dtype} [${shape.join(", ")}]`);
  }
  outputs.forEach((n, i) => {
    const old = before[i]!;
    if (n.dtype !== old.dtype || !sameShape(n.shape, old.shape)) fail(n, `replaced an output of another type`);
  });
}
