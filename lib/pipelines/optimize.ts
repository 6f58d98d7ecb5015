/**
 * What makes a pipeline smaller and faster, in the one order that works: fuse, prune, quantize, compile.
 *
 * @module
 */

import { describeQuantization } from "../quantize/describe.ts";
import { quantize, type SkippedLayer, sparsify } from "../quantize/quantize.ts";
import type { FluxPipeline } from "./flux.ts";

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

/** What was done. */
export interface OptimizeReport {
  /** How each part that was quantized is: `{ transformer: "110 int8dq, 3 float" }`. */
  readonly quantization: Readonly<Record<string, string>>;
  /** The layers that a scheme could not take. */
  readonly skipped: readonly SkippedLayer[];
}

/**
 * Fuses, prunes, quantizes and compiles a pipeline.
 *
 * @param pipe The pipeline
 * @param what What of it
 * @param options The prompts that schemes are tried with, where they are chosen by measurement
 * @returns What was done
 */
export async function optimize(
  pipe: FluxPipeline,
  what: Optimizations,
  options: { prompts: readonly string[] },
): Promise<OptimizeReport> {
  const { transformer, vae } = pipe;
  const skipped: SkippedLayer[] = [];
  if (what.fuseQkv) transformer.fuseQkvProjections();
  if (what.sparsify) sparsify(transformer);
  if (what.quantization !== undefined) {
    const { groupSize } = what;
    skipped.push(...quantize(transformer, what.quantization, { groupSize }).skipped);
  }
  if (what.quantizeVae !== undefined) skipped.push(...quantize(vae, what.quantizeVae).skipped);
  const parts = { transformer: describeQuantization(transformer), vae: describeQuantization(vae) };
  return { quantization: Object.fromEntries(Object.entries(parts).filter(([, how]) => how !== "")), skipped };
}
