/**
 * The scheduler of CogVideoX-5b: steps of the SDE variant of DPM-Solver++ (Lu et al., 2022), of the second order where
 * there is an earlier prediction, equal to diffusers' `CogVideoXDPMScheduler`.
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

/** What a step takes besides the prediction and the sample. */
export interface CogVideoXDPMStepOptions {
  /** Which step, counted from 0. */
  index: number;
  /** The clean latents of the step before; none at the first one. */
  oldPredOriginalSample?: Float32Array | undefined;
  /** What `noise` draws. */
  noise: Float32Array;
}

/** The tensors of a recorded step. */
export interface CogVideoXDPMStepInputs extends CogVideoXStepInputs {
  /** What `coefficients` gives of the step, f32 (7). */
  coefficients: Tensor;
  /** The clean latents of the step before, f32; zeros at the first one. */
  oldPredOriginalSample: Tensor;
  /** What `noise` draws, of the sample's type. */
  noise: Tensor;
}

type Seven = [number, number, number, number, number, number, number];

const f32 = Math.fround;

/**
 * DPM-Solver++'s steps from noise to data, each with noise of its own.
 *
 * @example Fifty steps
 * ```ts
 * const scheduler = CogVideoXDPMScheduler.fromConfig({ timestep_spacing: "trailing", prediction_type: "v_prediction" });
 * scheduler.setTimesteps({ numInferenceSteps: 50 });
 * let old: Float32Array | undefined;
 * for (const [index, timestep] of scheduler.timesteps.entries()) {
 *   const noise = scheduler.noise(index, () => generator.randn([latents.length]));
 *   const step = scheduler.step(model(latents, timestep), latents, { index, noise, oldPredOriginalSample: old });
 *   [latents, old] = [step.prevSample, step.predOriginalSample];
 * }
 * ```
 */
export class CogVideoXDPMScheduler extends CogVideoXScheduler {
  /**
   * Makes a scheduler from `scheduler_config.json`. Fields that are missing have diffusers' defaults; unknown ones are
   * left alone, as diffusers does.
   *
   * @param json The parsed file
   * @param options `file`: its path, for messages
   * @returns The scheduler
   * @throws {ConfigError} If it belongs to another class, or a field has a wrong type or value
   */
  static fromConfig(json: unknown, options: { file?: string | undefined } = {}): CogVideoXDPMScheduler {
    return new CogVideoXDPMScheduler(readCogVideoXConfig(json, { ...options, className: "CogVideoXDPMScheduler" }));
  }

  /** Whether a step looks back at the one before: all but the first, and but that which ends the schedule. */
  #looksBack(index: number): boolean {
    return index > 0 && !this.alphasOf(index).last;
  }

  /**
   * Draws the noise of a step in diffusers' order, which draws twice where a step looks back and uses the second.
   *
   * @param index Which step, counted from 0
   * @param draw Draws noise of the sample's shape
   * @returns The noise
   * @throws {RangeError} If there is no such step
   */
  noise<T>(index: number, draw: () => T): T {
    const first = draw();
    return this.#looksBack(index) ? draw() : first;
  }

  /**
   * What a step multiplies by: what the sample and the prediction give to the clean sample; what the sample and the
   * clean sample give to the result; what this prediction and the one before give to the clean sample of the second
   * order (1 and 0 at a step of the first); and the noise's part.
   *
   * @param index Which step, counted from 0
   * @returns Seven numbers
   * @throws {RangeError} If there is no such step
   */
  coefficients(index: number): Float32Array<ArrayBuffer> {
    const { round } = this;
    const { alpha, alphaPrev } = this.alphasOf(index);
    const sqrt = (x: number) => round(Math.sqrt(x));
    const logSnr = (x: number) => round(Math.log(sqrt(round(x / round(1 - x)))));
    const lambda = logSnr(alpha);
    const h = round(logSnr(alphaPrev) - lambda);
    const ofSample = round(sqrt(round(round(1 - alphaPrev) / round(1 - alpha))) * round(Math.exp(-h)));
    const ofOriginal = round(round(Math.expm1(round(-2 * h))) * sqrt(alphaPrev));
    const ofNoise = round(sqrt(round(1 - alphaPrev)) * sqrt(round(1 - round(Math.exp(round(-2 * h))))));
    let [ofNew, ofOld] = [1, 0];
    if (this.#looksBack(index)) {
      const earlier = logSnr(this.alphasCumprod.at(this.timesteps[index - 1]!)!);
      const r = round(round(lambda - earlier) / h);
      ofOld = round(1 / round(2 * r));
      ofNew = round(1 + ofOld);
    }
    return Float32Array.of(...this.roots(alpha), ofSample, ofOriginal, ofNew, ofOld, ofNoise);
  }

  /**
   * Takes a step in float32.
   *
   * @param modelOutput The model's prediction, of the sample's length
   * @param sample The latents before the step
   * @param options Which step, the clean latents of the one before, and noise
   * @returns The latents after the step, and the clean ones that its prediction stands for
   * @throws {TypeError} If the lengths differ, or the step before is missing
   * @throws {RangeError} If there is no such step
   */
  step(
    modelOutput: Float32Array,
    sample: Float32Array,
    options: CogVideoXDPMStepOptions,
  ): CogVideoXStepOutputs<Float32Array<ArrayBuffer>> {
    const { index, noise, oldPredOriginalSample: old } = options;
    const looksBack = this.#looksBack(index);
    if (looksBack && !old) {
      throw new TypeError(`Cannot take step ${index} without the prediction of the one before: pass it`);
    }
    for (const values of looksBack ? [noise, old!] : [noise]) {
      if (values.length === sample.length) continue;
      throw new TypeError(`Cannot take a step of ${sample.length} values with ${values.length}: pass the same shape`);
    }
    const [signal, ofPrediction, ofSample, ofOriginal, ofNew, ofOld, ofNoise] = this.coefficients(
      index,
    ) as unknown as Seven;
    const predOriginalSample = this.predictOriginal(modelOutput, sample, [signal, ofPrediction]);
    const clean = looksBack
      ? predOriginalSample.map((x, i) => f32(ofNew * x) - f32(ofOld * old![i]!))
      : predOriginalSample;
    const prevSample = Float32Array.from(
      sample,
      (x, i) => f32(f32(ofSample * x) - f32(ofOriginal * clean[i]!)) + f32(ofNoise * noise[i]!),
    );
    return { prevSample, predOriginalSample };
  }

  /**
   * Records a step, to be a part of a larger program: one for the steps of both orders.
   *
   * @param inputs The prediction, the latents, the step's numbers, the clean latents of the step before, and noise
   * @returns The latents after the step, of their own type, and the clean ones, f32
   */
  record(inputs: CogVideoXDPMStepInputs): CogVideoXStepOutputs<Tensor> {
    const { sample, noise, oldPredOriginalSample: old } = inputs;
    const [signal, ofPrediction, ofSample, ofOriginal, ofNew, ofOld, ofNoise] = inputs.coefficients.chunk(7) as [
      Tensor,
      Tensor,
      Tensor,
      Tensor,
      Tensor,
      Tensor,
      Tensor,
    ];
    const predOriginalSample = this.recordOriginal(inputs, signal, ofPrediction);
    const clean = ofNew.mul(predOriginalSample).sub(ofOld.mul(old));
    const prevSample = times(ofSample, sample).sub(ofOriginal.mul(clean)).add(times(ofNoise, noise)).cast(sample.dtype);
    return { prevSample, predOriginalSample };
  }
}
