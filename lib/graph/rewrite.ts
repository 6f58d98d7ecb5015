/**
 * The engine of rewrites: rebuilds a graph from its leaves up, shares equal nodes, and applies a table of rules to each.
 *
 * @module
 */

import { type Node, type OpName, type Params, topological } from "./node.ts";
import { node } from "./ops.ts";

/** What a rule may ask and do. */
export interface Rewriter {
  /** A node of the new graph: one that is there already where an equal one is; rewritten by the rules. */
  make(op: OpName, inputs: readonly (Node | null)[], params: Params): Node;
  /** Whether only one node, the one being rewritten, uses this operand of it. */
  once(operand: Node): boolean;
}

/** A rule: one pattern and its replacement. */
export interface Rule {
  /** What it does, for the dump. */
  readonly name: string;
  /** The operations at whose nodes it looks. */
  readonly ops: readonly OpName[];
  /** The replacement of a node; `undefined` where the pattern does not match. */
  readonly apply: (n: Node, g: Rewriter) => Node | undefined;
}

/** What a pass gives. */
export interface Rewritten {
  /** The outputs, in the order given. */
  readonly outputs: Node[];
  /** How often each rule was applied. */
  readonly applied: ReadonlyMap<string, number>;
}

/**
 * A node's identity: equal texts mean equal values.
 *
 * @param op The operation.
 * @param inputs Its operands.
 * @param params Its parameters.
 * @returns The text.
 */
function key(op: OpName, inputs: readonly (Node | null)[], params: Params): string {
  let text: string = op;
  for (const input of inputs) text += input === null ? ",-" : `,${input.id}`;
  for (const name in params) text += `;${params[name]}`;
  return text;
}

/**
 * Rewrites a graph. Nodes that no output needs are gone afterwards.
 *
 * @param outputs The outputs.
 * @param rules The table of rules; the first that matches is applied, again and again until none does.
 * @param replacements Nodes that others stand in for; those may use what they replace no more.
 * @returns The new outputs and what was applied.
 */
export function rewrite(
  outputs: readonly Node[],
  rules: readonly Rule[],
  replacements: ReadonlyMap<Node, Node> = new Map(),
): Rewritten {
  const byOp = new Map<OpName, Rule[]>();
  for (const rule of rules) for (const op of rule.ops) byOp.set(op, [...(byOp.get(op) ?? []), rule]);
  const applied = new Map<string, number>();
  const known = new Map<string, Node>();
  const renewed = new Map<Node, Node>();
  const uses = new Map<Node, number>();

  const current = (n: Node) => replacements.get(n) ?? n;
  const order = topological(outputs, { replacements });
  const oldUses = countUses(order, outputs, current);
  const settled = new Set<Node>();

  function make(op: OpName, inputs: readonly (Node | null)[], params: Params, same?: Node): Node {
    const text = key(op, inputs, params);
    const found = known.get(text);
    if (found) return found;
    const made = apply(same ?? node(op, inputs, params));
    known.set(text, made);
    return made;
  }
  const g: Rewriter = { make, once: (operand) => uses.get(operand) === 1 };

  /** A node over the new operands: itself where they are the old ones. */
  function renew(old: Node): Node {
    if (old.op === "leaf") return old;
    const inputs = old.inputs.map((x) => x && renewed.get(current(x))!);
    const unchanged = inputs.every((x, i) => x === old.inputs[i]);
    return make(old.op, inputs, old.params, unchanged ? old : undefined);
  }

  function apply(n: Node): Node {
    if (settled.has(n)) return n;
    for (const rule of byOp.get(n.op) ?? []) {
      const replacement = rule.apply(n, g);
      if (replacement && replacement !== n) {
        applied.set(rule.name, (applied.get(rule.name) ?? 0) + 1);
        return replacement;
      }
    }
    settled.add(n);
    return n;
  }

  for (const old of order) {
    const next = renew(old);
    renewed.set(old, next);
    // A node that stands for several old ones is used by the users of all.
    uses.set(next, (uses.get(next) ?? 0) + oldUses.get(old)!);
  }
  return { outputs: outputs.map((o) => renewed.get(current(o))!), applied };
}

/**
 * How many nodes (and outputs) use each node.
 *
 * @param order The nodes.
 * @param outputs The outputs.
 * @param current What stands in for a node.
 * @returns The counts; each use of an operand counts.
 */
export function countUses(
  order: readonly Node[],
  outputs: readonly Node[],
  current: (n: Node) => Node = (n) => n,
): Map<Node, number> {
  const uses = new Map<Node, number>();
  const use = (n: Node) => uses.set(current(n), (uses.get(current(n)) ?? 0) + 1);
  for (const n of order) for (const input of n.inputs) if (input) use(input);
  outputs.forEach(use);
  return uses;
}
