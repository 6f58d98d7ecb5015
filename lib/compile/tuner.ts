/**
 * The one place where kernels are chosen: each call is a problem, and a problem's variants are timed once.
 *
 * @module
 */

import type { Instruction } from "../graph/lower.ts";
import { sizeOf } from "../graph/ops.ts";
import { type KernelName, KERNELS } from "../graph/schema.ts";
import type { Device } from "../tensor/device.ts";
import type { KernelChoices } from "../tensor/function.ts";
import { timeCalls } from "./measure.ts";
import type { TuningFile } from "./tuning.ts";

/** A variant of a kernel and how long it took. */
export interface TriedKernel {
  /** The kernel. */
  readonly kernel: KernelName;
  /** What it computes: rows up to `m`, element types, sizes, what is fused into it. */
  readonly problem: string;
  /** The variant. */
  readonly variant: number;
  /** Its median time. */
  readonly microseconds: number;
  /** Whether it was chosen. */
  readonly chosen: boolean;
}

/** How much faster than the default a variant must be, so that noise does not choose. */
const MARGIN = 0.97;

/** Chooses kernels by a tuning file. */
export class Tuner implements KernelChoices {
  /** How many problems were timed. */
  measured = 0;
  readonly #file: TuningFile;
  readonly #variants: ReadonlyMap<string, number>;
  readonly #measures: boolean;
  readonly #seen = new Map<string, KernelName>();

  /**
   * Chooses by a file.
   *
   * @param file What is known.
   * @param options How many variants kernels have by name, and whether to time what is not known.
   */
  constructor(file: TuningFile, options: { variants: ReadonlyMap<string, number>; measures: boolean }) {
    this.#file = file;
    this.#variants = options.variants;
    this.#measures = options.measures;
  }

  /** Times the problems of a program that are not known. */
  async prepare(
    calls: readonly Instruction[],
    options: { device: Device; workingSet: number; signal?: AbortSignal | undefined },
  ): Promise<void> {
    const before = this.measured;
    for (const call of calls) {
      const count = this.#variants.get(call.kernel) ?? 1;
      if (count < 2) continue;
      const problem = problemOf(call);
      this.#seen.set(problem, call.kernel);
      const known = this.#file.get(problem);
      if (known?.microseconds.length === count || !this.#measures) continue;
      const candidates = Array.from(
        { length: count },
        (_, variant) => [{ ...call, params: { ...call.params, variant } }],
      );
      const seconds = await timeCalls(candidates, options);
      this.measured++;
      const fastest = seconds.indexOf(Math.min(...seconds));
      this.#file.set(problem, {
        chosen: seconds[fastest]! < MARGIN * seconds[0]! ? fastest : 0,
        microseconds: seconds.map((time) => Math.max(0.001, Math.round(time * 1e9) / 1e3)),
      });
    }
    if (this.measured > before) await this.#file.save();
  }

  /** Says which variant a call takes: the fastest that is known of its problem. */
  readonly variantOf = (call: Instruction): number | undefined => {
    const count = this.#variants.get(call.kernel) ?? 1;
    const known = count > 1 ? this.#file.get(problemOf(call)) : undefined;
    return known && known.microseconds.length === count ? known.chosen : undefined;
  };

  /** What is known of the problems that came up. */
  get tried(): TriedKernel[] {
    return [...this.#seen].flatMap(([problem, kernel]) => {
      const known = this.#file.get(problem);
      return (known?.microseconds ?? []).map((microseconds, variant) => ({
        kernel,
        problem,
        variant,
        microseconds,
        chosen: variant === known!.chosen,
      }));
    });
  }
}

/**
 * What a call computes, so far as its speed follows from it. Rows count up to the next power of two, so that a new
 * resolution is seldom a new problem.
 *
 * @param call A kernel call.
 * @returns The problem, as text.
 */
export function problemOf({ kernel, operands, params }: Instruction): string {
  const spec = KERNELS[kernel];
  const out = operands.at(-1)!;
  const rows = sizeOf(out.shape.slice(0, -1));
  const words: string[] = [kernel, out.storage.dtype, `m=${2 ** Math.ceil(Math.log2(Math.max(1, rows)))}`];
  for (const name of Object.keys(spec.params)) if (name !== "variant") words.push(`${name}=${params[name]}`);
  Object.entries(spec.operands).forEach(([name, { optional }], i) => {
    if (optional && operands[i]) words.push(name);
  });
  return words.join(" ");
}
