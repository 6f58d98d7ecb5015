/**
 * What CogVideoX's two schedulers share: the noise levels of their training schedule, the timesteps of a run, and how a
 * clean sample follows from a prediction. Equal to diffusers' to the rounding of each operation.
 *
 * @module
 */

import { roundHalfToEven } from "../tensor/round.ts";
import type { Tensor } from "../tensor/tensor.ts";
import { readSchedulerConfig, refusedField } from "./config.ts";
import { linspace } from "./linspace.ts";

/** The fields of `scheduler_config.json`, in camelCase. */
export interface CogVideoXSchedulerConfig {
  /** The steps of the training schedule. */
  numTrainTimesteps: number;
  /** The first beta. */
  betaStart: number;
  /** The last beta. */
  betaEnd: number;
  /** How betas lie between the two; the last follows from a cosine and has neither. */
  betaSchedule: "linear" | "scaled_linear" | "squaredcos_cap_v2";
  /** The betas themselves, in place of a schedule. */
  trainedBetas: readonly number[] | null;
  /** Whether the last step ends without any noise, or with that of timestep 0. */
  setAlphaToOne: boolean;
  /** What is added to timesteps of spacing `leading`. */
  stepsOffset: number;
  /** What the model predicts: the noise, the clean sample, or the velocity (Salimans and Ho, 2022). */
  predictionType: "epsilon" | "sample" | "v_prediction";
  /** How the timesteps of a run lie in the training schedule (Lin et al., 2024, table 2). */
  timestepSpacing: "linspace" | "leading" | "trailing";
  /** Whether the last timestep is nothing but noise (Lin et al., 2024, algorithm 1). */
  rescaleBetasZeroSnr: boolean;
  /** By how much noise levels are raised (Esser et al., 2024): 3 in 2b, 1 in 5b. */
  snrShiftScale: number;
}

const DEFAULTS: CogVideoXSchedulerConfig = {
  numTrainTimesteps: 1000,
  betaStart: 0.00085,
  betaEnd: 0.012,
  betaSchedule: "scaled_linear",
  trainedBetas: null,
  setAlphaToOne: true,
  stepsOffset: 0,
  predictionType: "epsilon",
  timestepSpacing: "leading",
  rescaleBetasZeroSnr: false,
  snrShiftScale: 3,
};

/** A sample before a step and what the model predicts of it. */
export interface CogVideoXStepInputs {
  /** The model's prediction, f32. */
  modelOutput: Tensor;
  /** The latents before the step. */
  sample: Tensor;
}

/** What a step makes. */
export interface CogVideoXStepOutputs<T> {
  /** The latents after the step. */
  prevSample: T;
  /** The clean latents that the prediction stands for. */
  predOriginalSample: T;
}

const f32 = Math.fround;

/** What PyTorch rounds each operation to. */
type Round = (x: number) => number;

/** The base of CogVideoX's schedulers. */
export abstract class CogVideoXScheduler {
  /** The configuration, whole. */
  readonly config: Readonly<CogVideoXSchedulerConfig>;
  /** The part of the signal at each timestep of the training schedule, in power. */
  readonly alphasCumprod: Float64Array<ArrayBuffer>;
  /** What the model is told before each step, from noise to none. Before `setTimesteps`, the training schedule. */
  timesteps: Int32Array<ArrayBuffer>;
  /** What PyTorch rounds each operation to: diffusers has schedules in float64 and in float32. */
  protected readonly round: (x: number) => number;
  #steps: number;

  /**
   * Makes a scheduler.
   *
   * @param config Fields that differ from diffusers' defaults
   * @throws {ConfigError} If a field has a wrong value
   */
  constructor(config: Partial<CogVideoXSchedulerConfig> = {}) {
    this.config = { ...DEFAULTS, ...config };
    checkConfig(this.config);
    const { numTrainTimesteps, betaSchedule, trainedBetas } = this.config;
    this.round = betaSchedule === "scaled_linear" && trainedBetas === null ? (x) => x : f32;
    this.alphasCumprod = cumulatedAlphas(this.config, this.round);
    this.timesteps = Int32Array.from({ length: numTrainTimesteps }, (_, i) => numTrainTimesteps - 1 - i);
    this.#steps = numTrainTimesteps;
  }

  /**
   * Lays out the steps of a run: fills {@linkcode timesteps}. Where `trailing` ones do not come out even in floats (61
   * steps of 1000), there is one more, at -1, which diffusers counts from the end.
   *
   * @param options How many steps
   * @throws {RangeError} If there are more than in training, or a timestep lies outside of those
   */
  setTimesteps({ numInferenceSteps }: { numInferenceSteps: number }): void {
    const { numTrainTimesteps } = this.config;
    if (!Number.isSafeInteger(numInferenceSteps) || numInferenceSteps < 1 || numInferenceSteps > numTrainTimesteps) {
      throw new RangeError(
        `Cannot set timesteps of ${numInferenceSteps} inference steps: pass an integer from 1 to ${numTrainTimesteps}, ` +
          "the steps of the training schedule",
      );
    }
    const timesteps = spacedTimesteps(this.config, numInferenceSteps);
    const outside = timesteps.find((timestep) => this.alphasCumprod.at(timestep) === undefined);
    if (outside !== undefined) {
      throw new RangeError(
        `Cannot take a step at ${outside}, outside of the ${numTrainTimesteps} timesteps of the training schedule: ` +
          `change the steps_offset of ${this.config.stepsOffset}`,
      );
    }
    this.timesteps = timesteps;
    this.#steps = numInferenceSteps;
  }

  /**
   * The part of the signal before and after a step, and whether the step is the last of the training schedule.
   *
   * @param index Which step, counted from 0
   * @returns The two, and whether nothing comes after
   * @throws {RangeError} If there is no such step
   */
  protected alphasOf(index: number): { alpha: number; alphaPrev: number; last: boolean } {
    const timestep = this.timesteps[index];
    if (timestep === undefined) {
      throw new RangeError(`Cannot take step ${index} of ${this.timesteps.length}: pass an index from 0`);
    }
    const previous = timestep - Math.floor(this.config.numTrainTimesteps / this.#steps);
    const final = this.config.setAlphaToOne ? 1 : this.alphasCumprod[0]!;
    return {
      alpha: this.alphasCumprod.at(timestep)!,
      alphaPrev: previous < 0 ? final : this.alphasCumprod[previous]!,
      last: previous < 0,
    };
  }

  /** What a sample and a prediction are multiplied by for the clean sample: the roots of signal and noise. */
  protected roots(alpha: number): [number, number] {
    return [Math.sqrt(alpha), Math.sqrt(this.round(1 - alpha))].map(this.round) as [number, number];
  }

  /** The clean sample that a prediction stands for; the two numbers are those of {@linkcode roots}. */
  protected predictOriginal(modelOutput: Float32Array, sample: Float32Array, roots: ArrayLike<number>): Float32Array<
    ArrayBuffer
  > {
    if (modelOutput.length !== sample.length) {
      throw new TypeError(
        `Cannot take a step of ${sample.length} values with ${modelOutput.length} of model output: pass the same shape`,
      );
    }
    const [signal, noise] = [f32(roots[0]!), f32(roots[1]!)];
    switch (this.config.predictionType) {
      case "sample":
        return Float32Array.from(modelOutput);
      case "epsilon":
        return Float32Array.from(sample, (x, i) => f32(x - f32(noise * modelOutput[i]!)) / signal);
      case "v_prediction":
        return Float32Array.from(sample, (x, i) => f32(signal * x) - f32(noise * modelOutput[i]!));
    }
  }

  /** The same in a graph. */
  protected recordOriginal({ modelOutput, sample }: CogVideoXStepInputs, signal: Tensor, noise: Tensor): Tensor {
    switch (this.config.predictionType) {
      case "sample":
        return modelOutput;
      case "epsilon":
        return sample.cast("f32").sub(noise.mul(modelOutput)).div(signal);
      case "v_prediction":
        return times(signal, sample).sub(noise.mul(modelOutput));
    }
  }
}

/** A number of f32 times values of a type, rounded to that type as PyTorch does, in f32. */
export function times(number: Tensor, values: Tensor): Tensor {
  return number.mul(values.cast("f32")).cast(values.dtype).cast("f32");
}

/**
 * Reads the configuration of one of the schedulers.
 *
 * @param json The parsed `scheduler_config.json`
 * @param options The class, and the file for messages
 * @returns The fields
 * @throws {ConfigError} If it belongs to another class, or a field has a wrong type or value
 */
export function readCogVideoXConfig(
  json: unknown,
  options: { className: string; file?: string | undefined },
): CogVideoXSchedulerConfig {
  const config = readSchedulerConfig(json, { ...options, defaults: DEFAULTS, lists: ["trainedBetas"] });
  checkConfig(config, options.file);
  return config;
}

const CHOICES = {
  betaSchedule: ["linear", "scaled_linear", "squaredcos_cap_v2"],
  predictionType: ["epsilon", "sample", "v_prediction"],
  timestepSpacing: ["linspace", "leading", "trailing"],
} as const;

function checkConfig(config: CogVideoXSchedulerConfig, file?: string): void {
  const fail = (key: string, value: unknown, remedy: string) => refusedField({ file, key, value, remedy });
  const { numTrainTimesteps, trainedBetas, snrShiftScale, stepsOffset } = config;
  if (!Number.isInteger(numTrainTimesteps) || numTrainTimesteps < 1 || numTrainTimesteps > 2 ** 24) {
    throw fail("num_train_timesteps", numTrainTimesteps, "make it an integer from 1 to 2^24");
  }
  for (const [name, choices] of Object.entries(CHOICES)) {
    const value = config[name as keyof typeof CHOICES];
    const key = name.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);
    if (!(choices as readonly string[]).includes(value)) throw fail(key, value, `make it one of ${choices.join(", ")}`);
  }
  for (const [key, beta] of [["beta_start", config.betaStart], ["beta_end", config.betaEnd]] as const) {
    if (!(beta >= 0 && beta < 1)) throw fail(key, beta, "make it from 0 to less than 1");
  }
  if (trainedBetas !== null && trainedBetas.length < numTrainTimesteps) {
    throw fail("trained_betas", trainedBetas, `list ${numTrainTimesteps} of them, as num_train_timesteps says`);
  }
  if (!Number.isInteger(stepsOffset)) throw fail("steps_offset", stepsOffset, "make it an integer");
  if (!(snrShiftScale > 0)) throw fail("snr_shift_scale", snrShiftScale, "make it more than 0");
}

/** The betas of the training schedule, each rounded. */
function betasOf(config: CogVideoXSchedulerConfig, round: Round): Float64Array<ArrayBuffer> {
  const { numTrainTimesteps: count, betaStart, betaEnd, betaSchedule, trainedBetas } = config;
  if (trainedBetas !== null) return Float64Array.from(trainedBetas, round);
  switch (betaSchedule) {
    case "linear":
      return fromBothEnds(betaStart, betaEnd, { count, round });
    case "scaled_linear":
      return fromBothEnds(Math.sqrt(betaStart), Math.sqrt(betaEnd), { count, round }).map((root) => root * root);
    case "squaredcos_cap_v2": {
      const bar = (t: number) => Math.cos((t + 0.008) / 1.008 * Math.PI / 2) ** 2;
      return Float64Array.from(
        { length: count },
        (_, i) => round(Math.min(1 - bar((i + 1) / count) / bar(i / count), 0.999)),
      );
    }
  }
}

/** PyTorch's `linspace`: from both ends to the middle. */
function fromBothEnds(
  start: number,
  stop: number,
  { count, round }: { count: number; round: Round },
): Float64Array<ArrayBuffer> {
  const [first, last] = [round(start), round(stop)];
  const step = round(round(last - first) / (count - 1));
  return Float64Array.from({ length: count }, (_, i) => {
    if (count === 1) return first;
    return i < count >> 1 ? round(first + round(step * i)) : round(last - round(step * (count - i - 1)));
  });
}

/** The part of the signal at each timestep, in power: raised by the shift, and down to nothing where it is rescaled. */
function cumulatedAlphas(config: CogVideoXSchedulerConfig, round: Round): Float64Array<ArrayBuffer> {
  const { snrShiftScale: scale, rescaleBetasZeroSnr } = config;
  let product = 1;
  const shifted = betasOf(config, round).map((beta) => {
    // PyTorch multiplies in float64 and rounds what it gives out.
    product *= round(1 - beta);
    const alpha = round(product);
    return round(alpha / round(round(scale) + round(round(1 - scale) * alpha)));
  });
  if (!rescaleBetasZeroSnr) return shifted;
  const roots = shifted.map((alpha) => round(Math.sqrt(alpha)));
  const [first, last] = [roots[0]!, roots.at(-1)!];
  const stretch = round(first / round(first - last));
  return roots.map((root) => {
    const moved = round(round(root - last) * stretch);
    return round(moved * moved);
  });
}

/** The timesteps of a run, in NumPy's order of operations. */
function spacedTimesteps(config: CogVideoXSchedulerConfig, steps: number): Int32Array<ArrayBuffer> {
  const { numTrainTimesteps: train, timestepSpacing, stepsOffset } = config;
  switch (timestepSpacing) {
    case "linspace":
      return Int32Array.from(linspace(0, train - 1, { num: steps }), roundHalfToEven).reverse();
    case "leading": {
      const ratio = Math.floor(train / steps);
      return Int32Array.from({ length: steps }, (_, i) => (steps - 1 - i) * ratio + stepsOffset);
    }
    case "trailing": {
      const ratio = train / steps;
      // The distance of the first two is what `arange` goes by.
      const distance = (train - ratio) - train;
      return Int32Array.from({ length: Math.ceil(train / ratio) }, (_, i) => roundHalfToEven(train + i * distance) - 1);
    }
  }
}
