/**
 * The scheduler of CogVideoX-2b: DDIM's steps (Song et al., 2021) with CogVideoX's noise levels, equal to diffusers'
 * `CogVideoXDDIMScheduler`.
 *
 * @module
 */

import type { Tensor } from "../tensor/tensor.ts";
import {
  CogVideoXScheduler,
  type CogVideoXStepInputs,
  type CogVideoXStepOutputs,
  readCogVideoXConfig,
  times,
} from "./cogvideox.ts";

const f32 = Math.fround;

/**
 * DDIM's steps from noise to data.
 *
 * @example Fifty steps
 * ```ts
 * const scheduler = CogVideoXDDIMScheduler.fromConfig({ timestep_spacing: "trailing", prediction_type: "v_prediction" });
 * scheduler.setTimesteps({ numInferenceSteps: 50 });
 * for (const [index, timestep] of scheduler.timesteps.entries()) {
 *   latents = scheduler.step(model(latents, timestep), latents, { index }).prevSample;
 * }
 * ```
 */
export class CogVideoXDDIMScheduler extends CogVideoXScheduler {
  /**
   * Makes a scheduler from `scheduler_config.json`. Fields that are missing have diffusers' defaults; unknown ones are
   * left alone, as diffusers does.
   *
   * @param json The parsed file
   * @param options `file`: its path, for messages
   * @returns The scheduler
   * @throws {ConfigError} If it belongs to another class, or a field has a wrong type or value
   */
  static fromConfig(json: unknown, options: { file?: string | undefined } = {}): CogVideoXDDIMScheduler {
    return new CogVideoXDDIMScheduler(
      readCogVideoXConfig(json, { ...options, className: "CogVideoXDDIMScheduler" }),
    );
  }

  /**
   * What a step multiplies by: what the sample and the prediction give to the clean sample, and what the sample and the
   * clean sample give to the result.
   *
   * @param index Which step, counted from 0
   * @returns Four numbers
   * @throws {RangeError} If there is no such step
   */
  coefficients(index: number): Float32Array<ArrayBuffer> {
    const { round } = this;
    const { alpha, alphaPrev } = this.alphasOf(index);
    const [signal, noise] = this.roots(alpha);
    const a = round(Math.sqrt(round(round(1 - alphaPrev) / round(1 - alpha))));
    const b = round(round(Math.sqrt(alphaPrev)) - round(signal * a));
    return Float32Array.of(signal, noise, a, b);
  }

  /**
   * Takes a step in float32.
   *
   * @param modelOutput The model's prediction, of the sample's length
   * @param sample The latents before the step
   * @param options Which step
   * @returns The latents after the step, and the clean ones that it is heading for
   * @throws {TypeError} If the lengths differ
   * @throws {RangeError} If there is no such step
   */
  step(
    modelOutput: Float32Array,
    sample: Float32Array,
    options: { index: number },
  ): CogVideoXStepOutputs<Float32Array<ArrayBuffer>> {
    const [signal, noise, a, b] = this.coefficients(options.index) as unknown as [number, number, number, number];
    const predOriginalSample = this.predictOriginal(modelOutput, sample, [signal, noise]);
    const prevSample = Float32Array.from(sample, (x, i) => f32(a * x) + f32(b * predOriginalSample[i]!));
    return { prevSample, predOriginalSample };
  }

  /**
   * Records a step, to be a part of a larger program.
   *
   * @param inputs The prediction, the latents, and what `coefficients` gives of the step, f32 (4)
   * @returns The latents after the step, of their own type, and the clean ones, f32
   */
  record(inputs: CogVideoXStepInputs & { coefficients: Tensor }): CogVideoXStepOutputs<Tensor> {
    const { sample, coefficients } = inputs;
    const [signal, noise, a, b] = coefficients.chunk(4) as [Tensor, Tensor, Tensor, Tensor];
    const predOriginalSample = this.recordOriginal(inputs, signal, noise);
    const prevSample = times(a, sample).add(b.mul(predOriginalSample)).cast(sample.dtype);
    return { prevSample, predOriginalSample };
  }
}
