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
  /** The way, by the name that the device has for it. */
  readonly variant: string;
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
  readonly #device: Device;
  readonly #measures: boolean;
  readonly #seen = new Map<string, KernelName>();

  /**
   * Chooses by a file.
   *
   * @param file What is known.
   * @param options Where kernels run, and whether to time what is not known.
   */
  constructor(file: TuningFile, options: { device: Device; measures: boolean }) {
    this.#file = file;
    this.#device = options.device;
    this.#measures = options.measures;
  }

  /** Times the problems of a program that are not known. */
  async prepare(
    calls: readonly Instruction[],
    options: { workingSet: number; signal?: AbortSignal | undefined },
  ): Promise<void> {
    const before = this.measured;
    for (const call of calls) {
      const ways = this.#device.waysOf(call);
      if (ways.length < 2) continue;
      const problem = problemOf(call);
      this.#seen.set(problem, call.kernel);
      const known = this.#file.get(problem)?.microseconds ?? {};
      if (ways.every((way) => Object.hasOwn(known, way)) || !this.#measures) continue;
      const candidates = ways.map((_, variant) => [{ ...call, params: { ...call.params, variant } }]);
      const seconds = await timeCalls(candidates, { ...options, device: this.#device });
      this.measured++;
      const fastest = seconds.indexOf(Math.min(...seconds));
      const microseconds = seconds.map((time) => Math.max(0.001, Math.round(time * 1e9) / 1e3));
      this.#file.set(problem, {
        chosen: ways[seconds[fastest]! < MARGIN * seconds[0]! ? fastest : 0]!,
        // Another call of this problem, which lies otherwise in memory, may have had ways that this one lacks.
        microseconds: { ...known, ...Object.fromEntries(ways.map((way, i) => [way, microseconds[i]!])) },
      });
    }
    if (this.measured > before) await this.#file.save();
  }

  /** Says which variant a call takes: the fastest that is known of its problem. */
  readonly variantOf = (call: Instruction): number | undefined => {
    const ways = this.#device.waysOf(call);
    const known = ways.length > 1 ? this.#file.get(problemOf(call)) : undefined;
    const chosen = known ? ways.indexOf(known.chosen) : -1;
    return chosen >= 0 ? chosen : undefined;
  };

  /** What is known of the problems that came up. */
  get tried(): TriedKernel[] {
    return [...this.#seen].flatMap(([problem, kernel]) => {
      const known = this.#file.get(problem);
      return Object.entries(known?.microseconds ?? {}).map(([variant, microseconds]) => ({
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
export function problemOf(call: Instruction): string {
  const { kernel, operands, params } = call;
  const spec = KERNELS[kernel];
  const out = operands.at(-1)!;
  const rows = sizeOf(out.shape.slice(0, -1));
  const words: string[] = [kernel, out.storage.dtype, `m=${powerOfTwo(rows)}`];
  if (params.n === undefined) words.push(...sizesOf(call));
  for (const name of Object.keys(spec.params)) if (name !== "variant") words.push(`${name}=${params[name]}`);
  Object.entries(spec.operands).forEach(([name, { optional }], i) => {
    if (optional && operands[i]) words.push(name);
  });
  return words.join(" ");
}

const powerOfTwo = (size: number) => 2 ** Math.ceil(Math.log2(Math.max(1, size)));

/** Sizes of a kernel whose parameters do not tell them. */
function sizesOf({ kernel, operands }: Instruction): string[] {
  const [x, y] = operands;
  const width = x!.shape.at(-1)!;
  if (kernel !== "attention") return [`n=${operands.at(-1)!.shape.at(-1)}`, `c=${width}`];
  return [`keys=${powerOfTwo(y!.shape.at(-2)!)}`, `d=${width}`];
}
