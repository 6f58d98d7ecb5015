/**
 * The scheduler of Flux and its kin: Euler steps along a flow-matching path (Lipman et al., 2023; Esser et al., 2024),
 * equal to diffusers' `FlowMatchEulerDiscreteScheduler` to the last bit of float32.
 *
 * @module
 */

import type { Generator } from "../tensor/random.ts";
import { readSchedulerConfig, refusedField } from "./config.ts";
import { linspace } from "./linspace.ts";

/** The fields of `scheduler_config.json`, in camelCase. */
export interface FlowMatchEulerDiscreteConfig {
  /** The steps of the training schedule: a timestep is a sigma times this. */
  numTrainTimesteps: number;
  /** The static shift, used where `useDynamicShifting` is false. */
  shift: number;
  /** Whether the shift depends on the resolution, by `mu`. */
  useDynamicShifting: boolean;
  /** The `mu` of a picture of `baseImageSeqLen` tokens. */
  baseShift: number;
  /** The `mu` of a picture of `maxImageSeqLen` tokens. */
  maxShift: number;
  /** Where {@linkcode calculateShift}'s line starts, in tokens. */
  baseImageSeqLen: number;
  /** Where {@linkcode calculateShift}'s line ends, in tokens. */
  maxImageSeqLen: number;
  /** Whether sigmas run from noise 0 to 1, as Mochi has them. */
  invertSigmas: boolean;
  /** The last sigma before the end, to which the schedule is stretched; null for none. */
  shiftTerminal: number | null;
  /** Whether sigmas follow Karras et al., 2022. */
  useKarrasSigmas: boolean;
  /** Whether sigmas are spaced evenly in their logarithm. */
  useExponentialSigmas: boolean;
  /** Whether sigmas are spaced by the beta distribution (Lee et al., 2024). */
  useBetaSigmas: boolean;
  /** The formula of the dynamic shift. */
  timeShiftType: "exponential" | "linear";
  /** Whether each step draws new noise. */
  stochasticSampling: boolean;
}

/** Options of {@linkcode FlowMatchEulerDiscreteScheduler.setTimesteps}, of which one of the first three is needed. */
export interface SetTimestepsOptions {
  /** How many steps to take. */
  numInferenceSteps?: number | undefined;
  /** The sigmas before shifting, in place of evenly spaced ones. */
  sigmas?: ArrayLike<number> | undefined;
  /** The timesteps, in place of those that follow from the sigmas. */
  timesteps?: ArrayLike<number> | undefined;
  /** How far to shift, where the configuration says `use_dynamic_shifting`: see {@linkcode calculateShift}. */
  mu?: number | undefined;
}

/** Options of {@linkcode FlowMatchEulerDiscreteScheduler.step}. */
export interface FlowMatchEulerStepOptions {
  /** Which step, counted from 0. */
  index: number;
  /** Where the noise comes from, needed where the configuration says `stochastic_sampling`. */
  generator?: Generator | undefined;
}

const f32 = Math.fround;

const DEFAULTS: FlowMatchEulerDiscreteConfig = {
  numTrainTimesteps: 1000,
  shift: 1,
  useDynamicShifting: false,
  baseShift: 0.5,
  maxShift: 1.15,
  baseImageSeqLen: 256,
  maxImageSeqLen: 4096,
  invertSigmas: false,
  shiftTerminal: null,
  useKarrasSigmas: false,
  useExponentialSigmas: false,
  useBetaSigmas: false,
  timeShiftType: "exponential",
  stochasticSampling: false,
};

/**
 * The `mu` of a picture: a line through the base and the maximum, in tokens.
 *
 * @param imageSeqLen The picture's tokens
 * @param config The line, such as a scheduler's `config`; Flux's own unless told
 * @returns The `mu` for {@linkcode FlowMatchEulerDiscreteScheduler.setTimesteps}
 */
export function calculateShift(
  imageSeqLen: number,
  config: Partial<
    Pick<FlowMatchEulerDiscreteConfig, "baseImageSeqLen" | "maxImageSeqLen" | "baseShift" | "maxShift">
  > = {},
): number {
  const { baseImageSeqLen, maxImageSeqLen, baseShift, maxShift } = { ...DEFAULTS, ...config };
  const slope = (maxShift - baseShift) / (maxImageSeqLen - baseImageSeqLen);
  return imageSeqLen * slope + (baseShift - slope * baseImageSeqLen);
}

/**
 * Euler steps from noise (sigma 1) to data (sigma 0).
 *
 * @example Flux's schedule of 20 steps
 * ```ts
 * const scheduler = FlowMatchEulerDiscreteScheduler.fromConfig({ use_dynamic_shifting: true });
 * const sigmas = linspace(1, 1 / 20, { num: 20 });
 * scheduler.setTimesteps({ sigmas, mu: calculateShift(64, scheduler.config) });
 * for (const [i, timestep] of scheduler.timesteps.entries()) {
 *   latents = scheduler.step(model(latents, timestep), latents, { index: i });
 * }
 * ```
 */
export class FlowMatchEulerDiscreteScheduler {
  /** The configuration, whole. */
  readonly config: Readonly<FlowMatchEulerDiscreteConfig>;
  /** The noise level before each step, and after the last. Before `setTimesteps`, the training schedule. */
  sigmas: Float32Array<ArrayBuffer>;
  /** What the model is told before each step: from 1000 down, where `numTrainTimesteps` is 1000. */
  timesteps: Float32Array<ArrayBuffer>;
  #sigmaMin: number;
  #sigmaMax: number;

  /**
   * Makes a scheduler.
   *
   * @param config Fields that differ from diffusers' defaults
   * @throws {ConfigError} If the fields contradict each other
   */
  constructor(config: Partial<FlowMatchEulerDiscreteConfig> = {}) {
    this.config = { ...DEFAULTS, ...config };
    checkConfig(this.config);
    const { numTrainTimesteps, shift, useDynamicShifting } = this.config;
    const sigmas = new Float32Array(numTrainTimesteps);
    for (let i = 0; i < numTrainTimesteps; i++) {
      const sigma = f32((numTrainTimesteps - i) / numTrainTimesteps);
      sigmas[i] = useDynamicShifting ? sigma : shiftStatic(sigma, shift, f32);
    }
    this.sigmas = sigmas;
    this.timesteps = sigmas.map((sigma) => sigma * numTrainTimesteps);
    this.#sigmaMax = sigmas[0]!;
    this.#sigmaMin = sigmas[numTrainTimesteps - 1]!;
  }

  /**
   * Makes a scheduler from `scheduler_config.json`. Fields that are missing have diffusers' defaults; unknown ones are
   * left alone, as diffusers does.
   *
   * @param json The parsed file
   * @param options `file`: its path, for messages
   * @returns The scheduler
   * @throws {ConfigError} If it belongs to another class, or a field has a wrong type or value
   */
  static fromConfig(json: unknown, options: { file?: string | undefined } = {}): FlowMatchEulerDiscreteScheduler {
    const { file } = options;
    const config = readSchedulerConfig(json, {
      className: "FlowMatchEulerDiscreteScheduler",
      defaults: DEFAULTS,
      file,
    });
    checkConfig(config, file);
    return new FlowMatchEulerDiscreteScheduler(config);
  }

  /**
   * Lays out the steps of a run: fills {@linkcode sigmas} and {@linkcode timesteps}.
   *
   * @param options How many steps, or which
   * @throws {TypeError} If there are neither steps, sigmas nor timesteps, or `mu` is missing
   * @throws {RangeError} If their numbers differ, or a value is not finite
   */
  setTimesteps(options: SetTimestepsOptions): void {
    const { config } = this;
    const { mu } = options;
    const count = countSteps(options);
    if (config.useDynamicShifting && mu === undefined) {
      throw new TypeError(
        "Cannot set timesteps without mu as the scheduler shifts by resolution: pass calculateShift()",
      );
    }
    if (mu !== undefined && !Number.isFinite(mu)) {
      throw new RangeError(`Cannot shift by a mu of ${mu}: pass a finite one`);
    }

    const given = options.timesteps && Float32Array.from(options.timesteps);
    // What the caller gives is rounded to float32 first and stays there; diffusers' own spacing is double until the end.
    const round = options.sigmas || given ? f32 : (x: number) => x;
    const spaced = options.sigmas ? Float32Array.from(options.sigmas) : Float64Array.from(
      given ??
        linspace(this.#sigmaMax * config.numTrainTimesteps, this.#sigmaMin * config.numTrainTimesteps, { num: count }),
      (timestep) => round(timestep / config.numTrainTimesteps),
    );
    let sigmas = Float64Array.from(
      spaced,
      (sigma) =>
        config.useDynamicShifting
          ? shiftDynamic(sigma, mu!, config.timeShiftType, round)
          : shiftStatic(sigma, config.shift, round),
    );
    if (config.shiftTerminal) stretch(sigmas, config.shiftTerminal, round);

    const sigmaMax = sigmas[0]!;
    const sigmaMin = sigmas[count - 1]!;
    if (config.useKarrasSigmas) sigmas = karras(sigmaMin, sigmaMax, count);
    else if (config.useExponentialSigmas) sigmas = exponential(sigmaMin, sigmaMax, count);
    else if (config.useBetaSigmas) sigmas = beta(sigmaMin, sigmaMax, count);

    if (!sigmas.every(Number.isFinite)) {
      throw new RangeError(
        `Cannot set timesteps as sigmas from ${sigmaMax} to ${sigmaMin} have no such schedule: pass sigmas in (0, 1]`,
      );
    }
    // One more sigma than steps: where the last step lands.
    this.sigmas = new Float32Array(count + 1);
    this.sigmas.set(sigmas);
    if (config.invertSigmas) {
      for (let i = 0; i < count; i++) this.sigmas[i] = 1 - this.sigmas[i]!;
      this.sigmas[count] = 1;
    }
    this.timesteps = given && !config.invertSigmas
      ? given
      : this.sigmas.slice(0, count).map((sigma) => sigma * config.numTrainTimesteps);
  }

  /**
   * The change of sigma over a step, which is what the model's output is multiplied by.
   *
   * @param index Which step, counted from 0
   * @returns The next sigma less this one, rounded to float32
   * @throws {RangeError} If there is no such step
   */
  stepSize(index: number): number {
    if (!Number.isInteger(index) || index < 0 || index + 1 >= this.sigmas.length) {
      throw new RangeError(`Cannot take step ${index} of ${this.timesteps.length}: pass an index from 0`);
    }
    return f32(this.sigmas[index + 1]! - this.sigmas[index]!);
  }

  /**
   * Takes a step in float32.
   *
   * @param modelOutput The model's prediction of the flow, of the sample's length
   * @param sample The latents before the step
   * @param options Which step
   * @returns The latents after the step
   * @throws {TypeError} If the lengths differ, or the step needs a generator and has none
   * @throws {RangeError} If there is no such step
   */
  step(
    modelOutput: Float32Array,
    sample: Float32Array,
    options: FlowMatchEulerStepOptions,
  ): Float32Array<ArrayBuffer> {
    if (modelOutput.length !== sample.length) {
      throw new TypeError(
        `Cannot take a step of ${sample.length} values with ${modelOutput.length} of model output: pass the same shape`,
      );
    }
    const { index, generator } = options;
    const dt = this.stepSize(index);
    const out = new Float32Array(sample.length);
    if (!this.config.stochasticSampling) {
      for (let i = 0; i < out.length; i++) out[i] = sample[i]! + f32(dt * modelOutput[i]!);
      return out;
    }
    if (!generator) {
      throw new TypeError("Cannot take a step without a generator as the scheduler samples stochastically: pass one");
    }
    const sigma = this.sigmas[index]!;
    const next = this.sigmas[index + 1]!;
    const kept = f32(1 - next);
    const noise = generator.randn([out.length]);
    for (let i = 0; i < out.length; i++) {
      const clean = f32(sample[i]! - f32(sigma * modelOutput[i]!));
      out[i] = f32(kept * clean) + f32(next * noise[i]!);
    }
    return out;
  }
}

type Round = (x: number) => number;

function checkConfig(config: FlowMatchEulerDiscreteConfig, file?: string): void {
  const { numTrainTimesteps, timeShiftType, shift, shiftTerminal } = config;
  const fail = (key: string, value: unknown, remedy: string) => refusedField({ file, key, value, remedy });
  if (!Number.isInteger(numTrainTimesteps) || numTrainTimesteps < 1 || numTrainTimesteps > 2 ** 24) {
    throw fail("num_train_timesteps", numTrainTimesteps, "make it an integer from 1 to 2^24");
  }
  if (!(shift > 0)) throw fail("shift", shift, "make it more than 0");
  if (shiftTerminal !== null && !(shiftTerminal >= 0 && shiftTerminal < 1)) {
    throw fail("shift_terminal", shiftTerminal, "make it from 0 to less than 1, or null");
  }
  if (timeShiftType !== "exponential" && timeShiftType !== "linear") {
    throw fail("time_shift_type", timeShiftType, 'make it "exponential" or "linear"');
  }
  const spacings = [
    config.useKarrasSigmas && "use_karras_sigmas",
    config.useExponentialSigmas && "use_exponential_sigmas",
    config.useBetaSigmas && "use_beta_sigmas",
  ].filter((name) => name !== false);
  if (spacings.length > 1) throw fail(spacings[1]!, true, `set it or ${spacings[0]}, not both`);
}

function countSteps({ numInferenceSteps, sigmas, timesteps }: SetTimestepsOptions): number {
  const count = numInferenceSteps ?? sigmas?.length ?? timesteps?.length;
  if (count === undefined) {
    throw new TypeError("Cannot set timesteps of nothing: pass numInferenceSteps, sigmas or timesteps");
  }
  if (!Number.isSafeInteger(count) || count < 1) {
    throw new RangeError(`Cannot set timesteps of ${count} inference steps: pass an integer of at least 1`);
  }
  for (const [name, values] of Object.entries({ sigmas, timesteps })) {
    if (!values) continue;
    if (values.length !== count) {
      throw new RangeError(`Cannot set ${values.length} ${name} for ${count} inference steps: pass one for each step`);
    }
    for (let i = 0; i < count; i++) {
      if (!Number.isFinite(values[i])) {
        throw new RangeError(`Cannot set ${name} with ${values[i]} at index ${i}: pass finite numbers`);
      }
    }
  }
  return count;
}

function shiftStatic(sigma: number, shift: number, round: Round): number {
  return round(round(round(shift) * sigma) / round(1 + round(round(shift - 1) * sigma)));
}

function shiftDynamic(sigma: number, mu: number, type: "exponential" | "linear", round: Round): number {
  const scale = round(type === "exponential" ? Math.exp(mu) : mu);
  return round(scale / round(scale + round(round(1 / sigma) - 1)));
}

/** Stretches a schedule in place, so that its last sigma becomes `terminal`. */
function stretch(sigmas: Float64Array, terminal: number, round: Round): void {
  const scale = round(round(1 - sigmas[sigmas.length - 1]!) / round(1 - terminal));
  for (let i = 0; i < sigmas.length; i++) sigmas[i] = round(1 - round(round(1 - sigmas[i]!) / scale));
}

/** Elucidating the Design Space of Diffusion-Based Generative Models, equation 5. */
function karras(sigmaMin: number, sigmaMax: number, count: number): Float64Array<ArrayBuffer> {
  const rho = 7;
  const min = sigmaMin ** (1 / rho);
  const max = sigmaMax ** (1 / rho);
  return linspace(0, 1, { num: count }).map((ramp) => (max + ramp * (min - max)) ** rho);
}

function exponential(sigmaMin: number, sigmaMax: number, count: number): Float64Array<ArrayBuffer> {
  return linspace(Math.log(sigmaMax), Math.log(sigmaMin), { num: count }).map(Math.exp);
}

/** Beta Sampling is All You Need, with its alpha and beta of 0.6. */
function beta(sigmaMin: number, sigmaMax: number, count: number): Float64Array<ArrayBuffer> {
  return linspace(0, 1, { num: count }).map((x) => sigmaMin + betaQuantile(1 - x) * (sigmaMax - sigmaMin));
}

const BETA = 0.6;
/** B(0.6, 0.6), the integral of (x (1 - x))^-0.4 from 0 to 1. */
const BETA_FUNCTION = 2.4153442080024723;

/**
 * The quantile of the beta distribution with both parameters 0.6. By symmetry only the lower half needs solving, where
 * the distribution is x^0.6 (1 - x)^0.6 / (0.6 B) times a series of positive terms (Abramowitz and Stegun, 26.5.4).
 */
function betaQuantile(probability: number): number {
  if (probability > 0.5) return 1 - betaQuantile(1 - probability);
  if (probability === 0) return 0;
  const target = probability * BETA_FUNCTION;
  const integral = (x: number): number => {
    let term = 1;
    let sum = 0;
    for (let n = 0; sum + term !== sum; n++) {
      sum += term;
      term *= x * (2 * BETA + n) / (BETA + 1 + n);
    }
    return (x * (1 - x)) ** BETA / BETA * sum;
  };
  let low = 0;
  let high = 0.5;
  let x = Math.min((target * BETA) ** (1 / BETA), 0.5);
  for (let i = 0; i < 64; i++) {
    const excess = integral(x) - target;
    if (excess > 0) high = x;
    else low = x;
    const newton = x - excess * (x * (1 - x)) ** (1 - BETA);
    const next = newton > low && newton < high ? newton : (low + high) / 2;
    if (Math.abs(next - x) <= 1e-16 * x) break;
    x = next;
  }
  return x;
}
