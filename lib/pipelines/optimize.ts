/**
 * What makes a pipeline smaller and faster, in the one order that works: fuse, prune, quantize, compile.
 *
 * @module
 */

import { autoquant } from "../compile/autoquant.ts";
import type { Calibratable } from "../compile/capture.ts";
import { type Compilable, compile } from "../compile/compile.ts";
import type { Module } from "../nn/module.ts";
import { QuantizationPlan } from "../quantize/plan.ts";
import { quantize, type SkippedLayer, sparsify } from "../quantize/quantize.ts";

/** What is done to a pipeline, in this order. */
export interface Optimizations {
  /** Whether q, k and v become one projection. */
  readonly fuseQkv: boolean;
  /** Whether the transformer is pruned to two of each four weights. */
  readonly sparsify: boolean;
  /** The transformer's scheme, or {@linkcode AUTOQUANT}. */
  readonly quantization: string | undefined;
  /** Inputs that share a scale, where the scheme has groups. */
  readonly groupSize: number | undefined;
  /** The file of a plan that says each layer's scheme. */
  readonly plan: string | undefined;
  /** The VAE's scheme. */
  readonly quantizeVae: string | undefined;
  /** Whether the kernels are chosen by measurement. */
  readonly compile: boolean;
  /** Whether those of the VAE are, too. */
  readonly compileVae: boolean;
}

/** The name that stands for the fastest of several schemes, layer by layer. */
export const AUTOQUANT = "autoquant";

/** What the schemes that {@linkcode AUTOQUANT} chooses from keep: pictures whose differences are hard to see. */
const MIN_SQNR_DB = 30;

/** What was done, besides what the pipeline's own `quantization` says. */
export interface OptimizeReport {
  /** The layers that a scheme could not take. */
  readonly skipped: readonly SkippedLayer[];
  /** Where kernels were chosen: how many problems were measured for that, and the seconds it all took. */
  readonly compiled: { readonly measured: number; readonly seconds: number } | undefined;
}

/** The sizes and steps of a call. */
export interface OptimizedRun {
  /** Rows of pixels. */
  readonly height?: number | undefined;
  /** Pixels in a row. */
  readonly width?: number | undefined;
  /** Frames, where it makes a video. */
  readonly numFrames?: number | undefined;
  /** The steps. */
  readonly numInferenceSteps?: number | undefined;
}

/** A pipeline that can be optimized, whose calls are of type `R`. */
export interface OptimizablePipeline<R> extends Calibratable, Compilable<R> {
  /** The network that is run at each step. */
  readonly transformer: Module & { fuseQkvProjections(): void };
  /** The autoencoder. */
  readonly vae: Module;
}

/** The calls that a pipeline is made ready for. */
export interface OptimizeOptions<R> {
  /** The prompts that schemes are tried with, where they are chosen by measurement. */
  readonly prompts: readonly string[];
  /** Sizes, steps, results. */
  readonly run: R;
  /** Stops it. */
  readonly signal?: AbortSignal | undefined;
}

/**
 * Fuses, prunes, quantizes and compiles a pipeline.
 *
 * @param pipe The pipeline
 * @param what What of it
 * @param options The calls to make it ready for
 * @returns What was done
 */
export async function optimize<R extends OptimizedRun>(
  pipe: OptimizablePipeline<R>,
  what: Optimizations,
  options: OptimizeOptions<R>,
): Promise<OptimizeReport> {
  const { run, signal } = options;
  const skipped: SkippedLayer[] = [];
  if (what.fuseQkv) pipe.transformer.fuseQkvProjections();
  if (what.sparsify) sparsify(pipe.transformer);
  if (what.plan !== undefined) {
    (await QuantizationPlan.load(what.plan)).apply(pipe);
  } else if (what.quantization === AUTOQUANT) {
    const { height, width, numFrames, numInferenceSteps: steps } = run;
    const { prompts } = options;
    await autoquant(pipe, { prompts, minSqnrDb: MIN_SQNR_DB, height, width, numFrames, steps, signal });
  } else if (what.quantization !== undefined) {
    skipped.push(...quantize(pipe.transformer, what.quantization, { groupSize: what.groupSize }).skipped);
  }
  if (what.quantizeVae !== undefined) skipped.push(...quantize(pipe.vae, what.quantizeVae).skipped);
  if (!what.compile) return { skipped, compiled: undefined };
  const { measured, milliseconds } = await compile(pipe, {
    mode: "max-autotune",
    vae: what.compileVae,
    runs: [run],
    signal,
  });
  return { skipped, compiled: { measured, seconds: milliseconds / 1000 } };
}
