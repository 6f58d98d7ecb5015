/**
 * What running is for every pipeline: steps that are told one by one, seconds by phase, functions with the memory that
 * they take.
 *
 * @module
 */

import type { Dtype, FloatDtype } from "../graph/dtypes.ts";
import { leaf, RATE } from "../graph/node.ts";
import { bf16BitsToF32, f16BitsToF32, f32ToBf16Bits, f32ToF16Bits } from "../tensor/convert.ts";
import type { Device } from "../tensor/device.ts";
import type { CallOptions, CompiledFunction, CompiledInfo, Specialization } from "../tensor/function.ts";
import { realize } from "../tensor/realize.ts";
import { Tensor } from "../tensor/tensor.ts";

/** The phases of a run, in their order. */
export const PHASES = ["textEncoding", "denoising", "decoding"] as const;

/** A phase of a run. */
export type Phase = typeof PHASES[number];

/** Seconds by phase. */
export interface PhaseSeconds {
  /** From prompts to embeddings. */
  textEncoding: number;
  /** All steps. */
  denoising: number;
  /** From latents to pixels. */
  decoding: number;
}

/** Adds up what phases take. */
export class Stopwatch {
  /** What they took so far. */
  readonly seconds: PhaseSeconds = { textEncoding: 0, denoising: 0, decoding: 0 };

  /**
   * Runs a part of a phase.
   *
   * @param phase The phase
   * @param run What is run
   * @returns What it gives
   */
  async time<T>(phase: Phase, run: () => Promise<T>): Promise<T> {
    const start = performance.now();
    const value = await run();
    this.seconds[phase] += (performance.now() - start) / 1000;
    return value;
  }
}

/**
 * Takes all steps of a run.
 *
 * @param steps The steps
 * @param onStep Called after each; what it returns is awaited
 * @returns What the run made
 */
export async function takeSteps<S, R>(
  steps: AsyncGenerator<S, R, void>,
  onStep: ((step: S) => unknown) | undefined,
): Promise<R> {
  for (;;) {
    const { done, value } = await steps.next();
    if (done) return value;
    await onStep?.(value);
  }
}

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

/** An argument that has a shape and no values. */
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

/** What a run takes of the memory, besides Deno itself. */
export interface MemoryPlan {
  /** The models, in the order in which they run. */
  readonly models: readonly ModelMemory[];
  /** The bytes of all weights and of the largest work: models run one after another. */
  readonly bytes: number;
}

/**
 * What functions need.
 *
 * @param uses The calls of a run
 * @param parameters How many numbers a part was trained on
 * @returns By model, and in all
 */
export function memoryPlan(uses: readonly Use[], parameters: (part: string) => number): MemoryPlan {
  const models = uses.map(({ part, inspect }) => {
    const { weightBytes, arenaBytes } = inspect();
    return { part, parameters: parameters(part), weightBytes, workBytes: arenaBytes };
  });
  const weights = models.reduce((sum, { weightBytes }) => sum + weightBytes, 0);
  return { models, bytes: weights + Math.max(...models.map(({ workBytes }) => workBytes)) };
}

/**
 * A tensor of values in a type, on a device.
 *
 * @param t The tensor
 * @param options Type and device
 * @returns Itself where it is so already
 */
export async function prepared(t: Tensor, options: { dtype: Dtype; device: Device }): Promise<Tensor> {
  const { dtype, device } = options;
  if (t.node.op === "leaf" && t.dtype === dtype) return t;
  const [value] = await realize([t.cast(dtype)], { device });
  return value!;
}

/**
 * A number rounded to a type.
 *
 * @param dtype The type
 * @param value The number
 * @returns What the type has of it
 */
export function roundTo(dtype: FloatDtype, value: number): number {
  if (dtype === "bf16") return bf16BitsToF32(f32ToBf16Bits(Float32Array.of(value)))[0]!;
  if (dtype === "f16") return f16BitsToF32(f32ToF16Bits(Float32Array.of(value)))[0]!;
  return Math.fround(value);
}

/**
 * Each row several times, one after another.
 *
 * @param x Rows
 * @param copies How often each
 * @returns `copies` times as many rows
 */
export function repeatRows(x: Tensor, copies: number): Tensor {
  if (copies === 1) return x;
  const [rows = 0, ...rest] = x.shape;
  return x.unsqueeze(1).expand(rows, copies, ...rest).reshape(rows * copies, ...rest);
}
