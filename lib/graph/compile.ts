/**
 * The whole way from a recorded graph to programs: the passes in order, then one program for each rate at which values
 * change.
 *
 * @module
 */

import { checkGraph } from "./check.ts";
import { byteSize } from "./dtypes.ts";
import { dumpGraph, dumpProgram } from "./dump.ts";
import { baseOf, type Instruction, lower, type Storage } from "./lower.ts";
import { type Node, RATE, type Rate, topological } from "./node.ts";
import { node, sizeOf } from "./ops.ts";
import { planArena } from "./plan.ts";
import { assemble, type VariantOf } from "./program.ts";
import { rewrite, type Rule } from "./rewrite.ts";
import { FUSE, GATHER_VIEWS, GATHER_WEIGHTS, HOIST, joinLinears, LEGALIZE, QUANTIZE, SIMPLIFY } from "./rules.ts";

/** A program and what it reads and writes. */
export interface Stage {
  /** How often it runs. */
  readonly rate: Rate;
  /** Its kernel calls, in order. */
  readonly calls: readonly Instruction[];
  /** Writes the program, with the variants of kernels that are wanted; `undefined` where there is nothing to compute. */
  readonly assemble: (variantOf?: VariantOf) => Uint8Array<ArrayBuffer> | undefined;
  /** How many kernels it calls. */
  readonly kernels: number;
  /** The working memory that it takes, in bytes. */
  readonly arenaBytes: number;
  /** The buffers to bind, in order: leaves, results of earlier stages, and its own. */
  readonly buffers: readonly Storage[];
}

/** The programs of a graph. */
export interface Compiled {
  /** The outputs' nodes after the passes, in the order given. */
  readonly outputs: readonly Node[];
  /** The programs: what never changes, what changes with a run, and the last, which writes the outputs. */
  readonly stages: readonly Stage[];
}

/** Receives the text of each stage of compilation. */
export type Dump = (title: string, text: () => string) => void;

/**
 * Compiles a graph.
 *
 * @param recorded The outputs as recorded.
 * @param dump Receives each stage as text, where wanted.
 * @param updates For each output the leaf whose buffer it may take over, where there is one.
 * @returns The programs.
 */
export function compileGraph(
  recorded: readonly Node[],
  dump: Dump = () => {},
  updates: readonly (Node | undefined)[] = [],
): Compiled {
  const outputs = optimize(recorded, dump);
  const last = Math.max(RATE.run, ...outputs.map((n) => n.rate)) as Rate;
  const materialized = new Set<Node>();
  const stages: Stage[] = [];
  for (let rate: Rate = RATE.constant; rate < last; rate++) {
    const targets = frontier(outputs, rate as Rate);
    const found = stage(targets, { rate: rate as Rate, materialized, dump });
    for (const n of targets) materialized.add(n);
    stages.push(found);
  }
  const updated = new Map<Node, Node>();
  updates.forEach((leaf, i) => leaf && updated.set(outputs[i]!, leaf));
  stages.push(stage(outputs, { rate: last, materialized, dump, updates: updated }));
  return { outputs, stages };
}

/** How much of constants one program reads and computes, in bytes; a larger one has a program of its own. */
const PART_BYTES = 64 * 2 ** 20;

/**
 * Programs of constants, a few at a time: what each works in, and what it reads, can be let go before the next.
 *
 * @param targets Nodes of compiled graphs that no argument reaches.
 * @returns The programs, each made when it is asked for.
 */
export function* compileConstants(targets: readonly Node[]): Generator<Stage> {
  const bytes = (n: Node) => sizeOf(n.shape) * byteSize(n.dtype);
  const leaves = (n: Node) => topological([n]).filter((x) => x.op === "leaf");
  const part = (nodes: readonly Node[]) =>
    stage(nodes, { rate: RATE.constant, materialized: new Set(), dump: () => {} });
  let nodes: Node[] = [];
  let size = 0;
  for (const n of targets) {
    const own = leaves(n).reduce((sum, leaf) => sum + bytes(leaf), bytes(n));
    if (nodes.length > 0 && size + own > PART_BYTES) {
      yield part(nodes);
      [nodes, size] = [[], 0];
    }
    nodes.push(n);
    size += own;
  }
  if (nodes.length > 0) yield part(nodes);
}

function optimize(recorded: readonly Node[], dump: Dump): readonly Node[] {
  dump("recorded", () => dumpGraph(recorded));
  let outputs = recorded;
  const pass = (name: string, rules: readonly Rule[], replacements?: ReadonlyMap<Node, Node>) => {
    const before = outputs;
    const rewritten = rewrite(before, rules, replacements);
    outputs = rewritten.outputs;
    checkGraph(outputs, { pass: name, before });
    dump(name, () => {
      const applied = [...rewritten.applied].map(([rule, count]) => `# ${rule}: ${count}`);
      return [...applied, dumpGraph(outputs)].join("\n");
    });
  };
  pass("simplified", [...SIMPLIFY, ...HOIST]);
  pass("fused", FUSE);
  const linears = topological(outputs).filter((n) => n.op === "linear");
  const joined = joinLinears(linears, { make: node });
  pass("joined", [...SIMPLIFY, ...HOIST, ...GATHER_VIEWS, ...GATHER_WEIGHTS, ...QUANTIZE], joined);
  pass("legal", [...SIMPLIFY, ...LEGALIZE]);
  return outputs;
}

/** What values of one rate are needed by faster ones. */
function frontier(outputs: readonly Node[], rate: Rate): Node[] {
  const found = new Set<Node>();
  const need = (x: Node) => {
    const base = baseOf(x);
    if (base.rate === rate && base.op !== "leaf") found.add(base);
  };
  for (const n of topological(outputs)) {
    if (n.rate > rate) { for (const x of n.inputs) if (x && x.rate === rate) need(x); }
  }
  for (const n of outputs) if (n.rate === rate) need(n);
  return [...found];
}

function stage(
  targets: readonly Node[],
  options: { rate: Rate; materialized: ReadonlySet<Node>; dump: Dump; updates?: ReadonlyMap<Node, Node> },
): Stage {
  const { rate, materialized, dump, updates } = options;
  const lowered = lower(targets, materialized, updates);
  const arena = planArena(lowered.instructions);
  dump(`program of rate ${rate}`, () => dumpProgram(lowered, arena));
  const kernels = lowered.instructions.length;
  return {
    rate,
    calls: lowered.instructions,
    assemble: (variantOf) => kernels > 0 ? assemble(lowered, arena, variantOf) : undefined,
    kernels,
    arenaBytes: arena.bytes,
    buffers: lowered.externals,
  };
}

const constantKeys = new WeakMap<Node, string>();

/**
 * What a constant is computed from, as text: equal texts mean equal values, whatever graph they stand in.
 *
 * @param n A node that no argument reaches.
 * @returns The text.
 */
export function constantKey(n: Node): string {
  if (n.op === "leaf") return `${n.id}`;
  let key = constantKeys.get(n);
  if (key === undefined) {
    const params = Object.entries(n.params).map(([name, value]) => `;${name}=${value}`).join("");
    key = `${n.op}(${n.inputs.map((x) => x ? constantKey(x) : "-").join()}${params})`;
    constantKeys.set(n, key);
  }
  return key;
}
