/**
 * What a run takes of the memory, known before it runs: by model and by phase, from lowering alone.
 *
 * @module
 */

import type { Dtype } from "../graph/dtypes.ts";
import { leaf, RATE } from "../graph/node.ts";
import type { CallOptions, CompiledFunction, CompiledInfo, Specialization } from "../tensor/function.ts";
import { Tensor } from "../tensor/tensor.ts";

/** The phases of a run, in their order. */
export const PHASES: readonly Phase[] = ["textEncoding", "denoising", "decoding"];

/** A phase of a run. */
export type Phase = "textEncoding" | "denoising" | "decoding";

/** One call of a function: arguments of the shapes that it gets. */
export interface Use {
  /** The folder of the model in a checkpoint. */
  readonly part: string;
  /** The function's name. */
  readonly name: string;
  readonly inspect: () => CompiledInfo;
  readonly prepare: (options: CallOptions) => Promise<Specialization>;
}

/**
 * A call of a function.
 *
 * @param part The model's folder
 * @param fn The function
 * @param inputs Arguments of its shapes
 * @param name Its name in a file
 * @returns The call
 */
export function useOf<I, O>(part: string, fn: CompiledFunction<I, O>, inputs: I, name: string = fn.name): Use {
  return { part, name, inspect: () => fn.inspect(inputs), prepare: (options) => fn.prepare(inputs, options) };
}

/**
 * An argument that has a shape and no values.
 *
 * @param shape The shape
 * @param dtype The element type
 * @returns What a function can be lowered with
 */
export function placeholder(shape: readonly number[], dtype: Dtype): Tensor {
  return new Tensor(leaf(shape, { dtype, rate: RATE.run }));
}

/** What one of a pipeline's models takes of the memory. */
export interface ModelMemory {
  /** The part: its folder's name. */
  readonly part: string;
  /** How many numbers it was trained on. */
  readonly parameters: number;
  /** The bytes of its weights as the kernels take them; they stay. */
  readonly weightBytes: number;
  /** The bytes that it works in while it runs. */
  readonly workBytes: number;
}

/** What a phase of a run takes of the memory at most. */
export interface PhaseMemory {
  /** The phase. */
  readonly phase: Phase;
  /**
   * The bytes of all weights so far, of the largest work so far, which is kept for the next, and of the values that are
   * there beside it: arguments, results, what is kept between calls.
   */
  readonly bytes: number;
}

/** What a run takes of the memory, besides Deno itself. */
export interface MemoryPlan {
  /** The models, in the order in which they run. */
  readonly models: readonly ModelMemory[];
  /** The phases, in their order. */
  readonly phases: readonly PhaseMemory[];
  /** The most bytes of any phase. */
  readonly bytes: number;
}

/** What one of a phase's models needs. */
export interface PhaseNeed extends ModelMemory {
  /** The phase. */
  readonly phase: Phase;
  /** The bytes of the values that are there beside its work. */
  readonly valueBytes: number;
}

/** Which phase a model runs in. */
function phaseOf(part: string): Phase {
  return part === "vae" ? "decoding" : part === "transformer" ? "denoising" : "textEncoding";
}

/**
 * What models need for calls of their functions.
 *
 * @param uses The calls, in their order
 * @param parameters How many numbers a model was trained on
 * @returns One for each model
 */
export function needsOf(uses: readonly Use[], parameters: (part: string) => number): PhaseNeed[] {
  return [...Map.groupBy(uses, ({ part }) => part)].map(([part, calls]) => {
    const infos = calls.map(({ inspect }) => inspect());
    const most = (field: "weightBytes" | "arenaBytes" | "valueBytes") => Math.max(...infos.map((info) => info[field]));
    return {
      phase: phaseOf(part),
      part,
      parameters: parameters(part),
      // Several functions of a model read the same weights.
      weightBytes: most("weightBytes"),
      workBytes: most("arenaBytes"),
      valueBytes: most("valueBytes"),
    };
  });
}

/**
 * What a run needs.
 *
 * @param needs What its models need, in the order in which they run
 * @returns By model, by phase, and in all
 */
export function memoryPlan(needs: readonly PhaseNeed[]): MemoryPlan {
  const phases: PhaseMemory[] = [];
  let [weights, work] = [0, 0];
  for (const phase of PHASES) {
    const own = needs.filter((need) => need.phase === phase);
    if (own.length === 0) continue;
    weights += own.reduce((sum, { weightBytes }) => sum + weightBytes, 0);
    work = Math.max(work, ...own.map(({ workBytes }) => workBytes));
    phases.push({ phase, bytes: weights + work + Math.max(...own.map(({ valueBytes }) => valueBytes)) });
  }
  return {
    models: needs.map(({ phase: _, valueBytes: __, ...model }) => model),
    phases,
    bytes: Math.max(...phases.map(({ bytes }) => bytes)),
  };
}
