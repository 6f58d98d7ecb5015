/**
 * What running is for every pipeline: steps that are told one by one, seconds by phase, values on
 * their device.
 *
 * @module
 */

import type { Dtype, FloatDtype } from "../graph/dtypes.ts";
import { bf16BitsToF32, f16BitsToF32, f32ToBf16Bits, f32ToF16Bits } from "../tensor/convert.ts";
import type { Device } from "../tensor/device.ts";
import { realize } from "../tensor/realize.ts";
import type { Tensor } from "../tensor/tensor.ts";
import type { Phase } from "./memory.ts";

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
