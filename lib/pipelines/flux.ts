/**
 * Flux: pictures from prompts, as diffusers' `FluxPipeline` makes them.
 *
 * @module
 */

import { CALIBRATION, type CalibrationOptions } from "../compile/capture.ts";
import { type Compilable, COMPILE_TARGET, type CompileTarget } from "../compile/compile.ts";
import { type Profile, profile, type ProfileOptions } from "../compile/profile.ts";
import { ConfigError, DenoiseError } from "../errors.ts";
import type { FloatDtype } from "../graph/dtypes.ts";
import { type GenerationSettings, Image, settingsFromMetadata, settingsToMetadata } from "../media/image.ts";
import { AutoencoderKL } from "../models/autoencoder_kl.ts";
import { CLIPTextModel } from "../models/clip_text_model.ts";
import { FluxTransformer2DModel } from "../models/flux_transformer_2d_model.ts";
import { T5EncoderModel } from "../models/t5_encoder_model.ts";
import type { SaveOptions } from "../nn/save.ts";
import { calculateShift, FlowMatchEulerDiscreteScheduler } from "../schedulers/flow_match_euler_discrete.ts";
import { linspace } from "../schedulers/linspace.ts";
import type { Device } from "../tensor/device.ts";
import { realize, toArray } from "../tensor/realize.ts";
import { type ArrayOf, tensor } from "../tensor/source.ts";
import type { Tensor } from "../tensor/tensor.ts";
import { absentFrom, isCompiledFile } from "./compiled.ts";
import { describeFlux, readFlux } from "./flux_compiled.ts";
import {
  type Decoder,
  decoderName,
  type FixedInputs,
  type FluxFunctions,
  type FluxPart,
  type FluxShape,
  type GuidedStepInputs,
  RecordedFlux,
  type Shrink,
  type StepInputs,
  type VaryingInputs,
} from "./flux_functions.ts";
import { resolveModel } from "./hub.ts";
import { checkLoadOptions, hubOptions, openPipeline, type PipelineKind, type PipelineLoadOptions } from "./load.ts";
import { type MemoryPlan, memoryPlan, needsOf, placeholder, type Use, useOf } from "./memory.ts";
import { Noise, seedsOf } from "./noise.ts";
import {
  callable,
  checkCount,
  checkScale,
  checkSide,
  exclusive,
  matching,
  promptList,
  randomSeed,
  readConfig,
  type Seed,
  textOf,
  together,
  tokenize,
} from "./pipeline.ts";
import { type PhaseSeconds, prepared, roundTo, Stopwatch, takeSteps } from "./run.ts";
import { savePipeline } from "./save.ts";
import { encodeWithT5 } from "./text.ts";
import { Tokenizer } from "./tokenizer.ts";

/** How a pipeline is loaded. */
export interface FluxLoadOptions extends PipelineLoadOptions {
  /**
   * Another transformer than the model's: a safetensors file, or the URL of one, with diffusers' names or Black Forest
   * Labs'.
   */
  transformer?: string | undefined;
}

/** How pictures are made; the names are diffusers' own. */
export interface FluxOptions {
  /** The prompts of the second text encoder (T5), where they are others. */
  prompt2?: string | readonly string[] | undefined;
  /** What the pictures should not show; needs a `trueCfgScale` above 1. */
  negativePrompt?: string | readonly string[] | undefined;
  /** The same for the second text encoder. */
  negativePrompt2?: string | readonly string[] | undefined;
  /** The weight of classifier-free guidance: 1, the default, is none. */
  trueCfgScale?: number | undefined;
  /** The seed of the noise of all pictures, or one for each; drawn by chance where there is none. */
  seed?: Seed | readonly Seed[] | undefined;
  /** Steps from noise to picture, 28 by default. */
  numInferenceSteps?: number | undefined;
  /** The noise levels in place of evenly spaced ones, one for each step. */
  sigmas?: readonly number[] | undefined;
  /** The guidance that the model is told, 3.5 by default; a model without guidance (schnell) is told none. */
  guidanceScale?: number | undefined;
  /** Rows of pixels; the VAE's `sample_size` by default. */
  height?: number | undefined;
  /** Pixels in a row; the VAE's `sample_size` by default. */
  width?: number | undefined;
  /** The most tokens of a prompt in the second text encoder, up to 512; what its tokenizer is made for by default. */
  maxSequenceLength?: number | undefined;
  /** Pictures of each prompt, 1 by default. */
  numImagesPerPrompt?: number | undefined;
  /** Packed latents to start from in place of noise, (pictures, tokens, channels). */
  latents?: Tensor | undefined;
  /** What T5 makes of the prompts, (prompts, tokens, size), in place of prompts. */
  promptEmbeds?: Tensor | undefined;
  /** What CLIP makes of the prompts, (prompts, size), in place of prompts. */
  pooledPromptEmbeds?: Tensor | undefined;
  /** The same for negative prompts. */
  negativePromptEmbeds?: Tensor | undefined;
  /** The same for negative prompts. */
  negativePooledPromptEmbeds?: Tensor | undefined;
  /** Pictures, the default, or nothing but the last latents. */
  outputType?: "image" | "latent" | undefined;
  /** Stops the run before its next kernel. */
  signal?: AbortSignal | undefined;
  /** Called after each step; what it returns is awaited. */
  onStep?: ((step: FluxStep) => unknown) | undefined;
}

/** What the text encoders make of prompts. */
export interface FluxEmbeddings {
  /** T5's, (prompts, tokens, size). */
  readonly promptEmbeds: Tensor;
  /** CLIP's, (prompts, size). */
  readonly pooledPromptEmbeds: Tensor;
}

/** What a step made. */
export interface FluxStep {
  /** Which step, from 0. */
  readonly index: number;
  /** How many steps there are. */
  readonly count: number;
  /** What the model was told: 1000 at the start of the noise, near 0 at the end. */
  readonly timestep: number;
  /** The latents after the step, packed: (pictures, tokens, channels). */
  readonly latents: Tensor;
  /** A quick look, at half the size, at where the run is heading; several pictures are a grid. */
  preview(): Promise<Image>;
  /** The pictures that the latents are now. */
  decode(): Promise<Image[]>;
}

/** What a run made. */
export interface FluxResult {
  /** The pictures: all of the first prompt, then all of the second; none where `outputType` is `latent`. */
  readonly images: Image[];
  /** The last latents, packed: (pictures, tokens, channels). */
  readonly latents: Tensor;
  /** The seed of each picture; none where latents were given. */
  readonly seeds: readonly Seed[];
  /** How many steps were taken. */
  readonly numInferenceSteps: number;
  /** How long it took. */
  readonly seconds: PhaseSeconds;
}

/** A call to compile a pipeline for: the options of it that shapes follow from. */
export interface FluxRun extends
  Pick<
    FluxOptions,
    "height" | "width" | "numInferenceSteps" | "maxSequenceLength" | "numImagesPerPrompt" | "trueCfgScale"
  > {
  /** How many prompts the call has, 1 by default. */
  prompts?: number | undefined;
}

/** A loaded Flux: call it with a prompt. */
export interface FluxPipeline extends Compilable<FluxRun> {
  /**
   * Makes pictures.
   *
   * @param prompt A prompt, or several; none where embeddings are given
   * @param options How
   * @returns The pictures
   * @throws {TypeError} If options exclude each other or are of a wrong type or shape
   * @throws {RangeError} If a value is out of range: a size that the model cannot take, a guidance that is no number
   */
  (prompt: string | readonly string[] | undefined, options?: FluxOptions): Promise<FluxResult>;
  /** The same, step by step. */
  steps(
    prompt: string | readonly string[] | undefined,
    options?: FluxOptions,
  ): AsyncGenerator<FluxStep, FluxResult, void>;
  /** What the text encoders make of prompts, to be given as `promptEmbeds` and `pooledPromptEmbeds`. */
  encodePrompt(
    prompt: string | readonly string[],
    options?: Pick<FluxOptions, "prompt2" | "maxSequenceLength" | "signal">,
  ): Promise<FluxEmbeddings>;
  /** What a call with the same arguments will take of the memory. Nothing is computed, and no weights are needed. */
  plan(prompt: string | readonly string[] | undefined, options?: FluxOptions): MemoryPlan;
  /**
   * Looks at where the time of a call goes. The first call of some shapes also gets weights and programs ready: profile
   * a later one.
   *
   * @param prompt As for a call
   * @param options As for a call, and what the machine can do
   * @returns Each kernel's time, as a table by operation and as a trace
   */
  profile(
    prompt: string | readonly string[] | undefined,
    options?: FluxOptions & ProfileOptions,
  ): Promise<Profile>;
  /** @internal Runs the models on prompts, on functions of another maker. */
  [CALIBRATION](prompts: readonly string[], options: CalibrationOptions): Promise<void>;
  /** The noise that a run starts from: packed, one row for each picture. */
  prepareLatents(options: { seed: Seed | readonly Seed[]; height?: number; width?: number; count?: number }): Tensor;
  /**
   * Makes a picture again from the settings in its file.
   *
   * @param picture The picture, or its file
   * @param options How to stop, what to call after each step
   * @returns The picture
   * @throws {DenoiseError} If the file has no settings, or was made with weights that were quantized in another way
   */
  rerun(picture: Image | string | URL, options?: Pick<FluxOptions, "signal" | "onStep">): Promise<Image>;
  /**
   * Saves the pipeline in diffusers' layout: weights as they are, quantized ones in their stored form. A reader of the
   * folder finds what was there before or all of the new, whenever the process ends; it may be the folder that the
   * pipeline was loaded from.
   *
   * @param folder The folder, which is made if there is none
   * @param options The size of files
   * @throws {OutputError} If the folder cannot be written
   */
  save(folder: string, options?: SaveOptions): Promise<void>;
  /** How each part is quantized, such as `transformer: 110 int8dq, 3 float; vae: 34 int8wo`; empty where none is. */
  readonly quantization: string;
  /** What the model was called when it was loaded. */
  readonly model: string;
  /** Where it runs. */
  readonly device: Device;
  /** What activations are computed in. */
  readonly dtype: FloatDtype;
  /** The transformer. A pipeline that was compiled ahead of time has none, nor a VAE: asking for them is an error. */
  readonly transformer: FluxTransformer2DModel;
  /** The autoencoder. */
  readonly vae: AutoencoderKL;
  /** CLIP, where it was loaded. */
  readonly textEncoder: CLIPTextModel | undefined;
  /** T5, where it was loaded. */
  readonly textEncoder2: T5EncoderModel | undefined;
  /** CLIP's tokenizer, where it was loaded. */
  readonly tokenizer: Tokenizer | undefined;
  /** T5's tokenizer, where it was loaded. */
  readonly tokenizer2: Tokenizer | undefined;
  /** The scheduler; each run lays out steps of its own. */
  readonly scheduler: FlowMatchEulerDiscreteScheduler;
}

/** Loads {@linkcode FluxPipeline}s. */
export interface FluxPipelineLoader {
  /**
   * Loads a checkpoint. Weights are mapped, and read when they are first used.
   *
   * @param model A folder in diffusers' layout, a hub id, a URL, or a file that was compiled ahead of time
   * @param options Where it runs, in what type, which parts
   * @returns The pipeline
   * @throws {CheckpointError} If weights are missing, broken or of wrong shapes
   * @throws {ConfigError} If a configuration is broken or of another class
   * @throws {HubError} If something cannot be downloaded
   */
  load(model: string, options?: FluxLoadOptions): Promise<FluxPipeline>;
}

/**
 * Flux, from Black Forest Labs.
 *
 * @example Two steps of a small picture
 * ```ts
 * import { strictEqual } from "node:assert/strict";
 * import { FluxPipeline } from "./flux.ts";
 *
 * const folder = new URL("../../models/shapes-flux", import.meta.url).pathname;
 * const pipe = await FluxPipeline.load(folder);
 * const { images } = await pipe("a red star on a white background", { seed: 7, numInferenceSteps: 2 });
 * strictEqual(images[0]!.width, 128);
 * ```
 */
export const FluxPipeline: FluxPipelineLoader = { load };

const KIND: PipelineKind = {
  className: "FluxPipeline",
  classes: {
    transformer: ["FluxTransformer2DModel"],
    vae: ["AutoencoderKL"],
    text_encoder: ["CLIPTextModel"],
    text_encoder_2: ["T5EncoderModel"],
    scheduler: ["FlowMatchEulerDiscreteScheduler"],
  },
  textEncoders: ["text_encoder", "text_encoder_2"],
};

async function load(model: string, options: FluxLoadOptions = {}): Promise<FluxPipeline> {
  const { transformer: other, ...rest } = options;
  checkLoadOptions(rest);
  if (await isCompiledFile(model)) return await loadCompiled(model, rest);
  const { weights = true } = rest;
  const { index, device, dtype, has } = await openPipeline(model, KIND, {
    ...rest,
    weightsOf: other === undefined ? undefined : ["text_encoder", "text_encoder_2", "vae"],
  });
  const { folder } = index;
  const { revision: _, ...hub } = rest; // the model's own
  const checkpoint = other !== undefined && weights ? await resolveModel(other, hubOptions(hub)) : undefined;
  const schedulerFile = `${folder}/scheduler/scheduler_config.json`;
  const [transformer, vae, textEncoder, textEncoder2, tokenizer, tokenizer2, schedulerConfig] = await Promise.all([
    FluxTransformer2DModel.load(`${folder}/transformer`, { weights, checkpoint }),
    AutoencoderKL.load(`${folder}/vae`, { weights }),
    has("text_encoder") ? CLIPTextModel.load(`${folder}/text_encoder`, { weights }) : undefined,
    has("text_encoder_2") ? T5EncoderModel.load(`${folder}/text_encoder_2`, { weights }) : undefined,
    has("text_encoder") ? Tokenizer.load(`${folder}/tokenizer`) : undefined,
    has("text_encoder_2") ? Tokenizer.load(`${folder}/tokenizer_2`) : undefined,
    readConfig(schedulerFile),
  ]);
  const scheduler = FlowMatchEulerDiscreteScheduler.fromConfig(schedulerConfig, { file: schedulerFile });
  if (scheduler.config.stochasticSampling) {
    throw new ConfigError(
      `Cannot use ${schedulerFile} as its stochastic_sampling is true, which Flux does not sample with: set it to false`,
      { file: schedulerFile, key: "stochastic_sampling" },
    );
  }
  for (const part of [transformer, vae, textEncoder, textEncoder2]) if (part) part.dtype = dtype;
  const parts: Parts = {
    model,
    device,
    dtype,
    transformer,
    vae,
    textEncoder,
    textEncoder2,
    tokenizer,
    tokenizer2,
    scheduler,
  };
  const functions = new RecordedFlux(parts);
  const run = new Runner(parts, functions);
  return pipelineOf(run, {
    ...parts,
    [COMPILE_TARGET]: run.compileTarget(functions),
    [CALIBRATION]: async (prompts: readonly string[], options: CalibrationOptions) => {
      const { make, ...rest } = options;
      const observed = new Runner(parts, new RecordedFlux(parts, make));
      for (const prompt of prompts) await observed.generate(prompt, { ...rest, outputType: "latent" });
    },
    save: (folder: string, options: SaveOptions = {}) =>
      savePipeline(folder, {
        index,
        models: { transformer, vae, text_encoder: textEncoder, text_encoder_2: textEncoder2 },
        others: ["scheduler", ...(tokenizer ? ["tokenizer"] : []), ...(tokenizer2 ? ["tokenizer_2"] : [])],
        device,
      }, options),
  });
}

/** A pipeline that runs as a runner does, with all else that it has. */
function pipelineOf(
  run: Runner,
  members: Parts & Pick<FluxPipeline, "save" | typeof COMPILE_TARGET | typeof CALIBRATION>,
): FluxPipeline {
  const call = (prompt: string | readonly string[] | undefined, options: FluxOptions = {}) => {
    return run.generate(prompt, options);
  };
  return callable(callable(call, members), {
    steps: (prompt: string | readonly string[] | undefined, options: FluxOptions = {}) => run.steps(prompt, options),
    encodePrompt: (
      prompt: string | readonly string[],
      options: Pick<FluxOptions, "prompt2" | "maxSequenceLength" | "signal"> = {},
    ) => run.encodePrompt(prompt, options),
    plan: (prompt: string | readonly string[] | undefined, options: FluxOptions = {}) => run.plan(prompt, options),
    profile: async (
      prompt: string | readonly string[] | undefined,
      { limits, ...options }: FluxOptions & ProfileOptions = {},
    ) => (await profile(members.device, () => run.generate(prompt, options), { limits })).profile,
    prepareLatents: (options: { seed: Seed | readonly Seed[]; height?: number; width?: number; count?: number }) =>
      run.prepareLatents(options),
    rerun: (picture: Image | string | URL, options: Pick<FluxOptions, "signal" | "onStep"> = {}) =>
      run.again(picture, options),
    get quantization() {
      return run.quantization;
    },
  });
}

/** Makes a pipeline that was compiled ahead of time: it has functions, and no models. */
async function loadCompiled(path: string, options: PipelineLoadOptions): Promise<FluxPipeline> {
  const { parts, functions } = await readFlux(path, options);
  const absent = absentFrom(path);
  return pipelineOf(new Runner(parts, functions), {
    ...parts,
    textEncoder: undefined,
    textEncoder2: undefined,
    get transformer(): never {
      return absent("the transformer");
    },
    get vae(): never {
      return absent("the VAE");
    },
    get [COMPILE_TARGET](): never {
      return absent("the graphs");
    },
    [CALIBRATION]: () => Promise.try(() => absent("the layers")),
    save: () => Promise.try(() => absent("the weights")),
  });
}

/** What a loaded pipeline is made of. */
type Parts = Omit<
  FluxPipeline,
  | "steps"
  | "encodePrompt"
  | "plan"
  | "profile"
  | "prepareLatents"
  | "rerun"
  | "save"
  | "quantization"
  | typeof CALIBRATION
  | typeof COMPILE_TARGET
>;

/** What a run takes of them. */
type RunnerParts = Pick<Parts, "model" | "device" | "dtype" | "tokenizer" | "tokenizer2" | "scheduler">;

/** Options after the checks. */
interface Job {
  readonly prompts: readonly string[] | undefined;
  readonly height: number;
  readonly width: number;
  readonly maxSequenceLength: number;
  /** Pictures of a prompt. */
  readonly copies: number;
  readonly guided: boolean;
  readonly sigmas: ArrayLike<number>;
  readonly options: FluxOptions;
}

/** Runs a pipeline on its functions, wherever they come from. */
class Runner {
  readonly #parts: RunnerParts;
  readonly #functions: FluxFunctions;

  constructor(parts: RunnerParts, functions: FluxFunctions) {
    this.#parts = parts;
    this.#functions = functions;
  }

  async generate(prompt: string | readonly string[] | undefined, options: FluxOptions): Promise<FluxResult> {
    return await takeSteps(this.steps(prompt, options), options.onStep);
  }

  async *steps(
    prompt: string | readonly string[] | undefined,
    options: FluxOptions,
  ): AsyncGenerator<FluxStep, FluxResult, void> {
    const job = this.#check(prompt, options);
    const { signal } = options;
    signal?.throwIfAborted();
    this.#functions.admit(this.#shapeOf(job));
    const watch = new Stopwatch();
    const positive = await watch.time("textEncoding", () => this.#embed(job));
    const negative = job.guided
      ? await watch.time("textEncoding", () => this.#embedNegative(job, positive.promptEmbeds))
      : undefined;
    const pictures = positive.promptEmbeds.size(0) * job.copies;
    const { seeds, latents: start } = await this.#start(job, pictures);

    const run = this.#schedule(job, start.size(1));
    const count = run.timesteps.length;
    const fixed = this.#fixed(job, positive, run);
    let latents = start;
    for (let index = 0; index < count; index++) {
      const before = latents;
      latents = await watch.time("denoising", async () => {
        const inputs: StepInputs = { ...fixed, ...this.#varying(job, { latents: before, run, index }) };
        const result = negative
          ? await this.#functions.guidedStep.run({ ...inputs, ...negative }, { signal })
          : await this.#functions.step.run(inputs, { signal });
        return result.latents;
      });
      const after = latents;
      yield {
        index,
        count,
        timestep: run.timesteps[index]!,
        latents: after,
        preview: () =>
          this.#preview({ before, after, ratio: run.sigmas[index + 1]! / run.stepSize(index) }, { job, signal }),
        decode: () => this.#decode(after, { job, signal }),
      };
    }
    const images = options.outputType === "latent" ? [] : await watch.time("decoding", async () => {
      const plain = await this.#decode(latents, { job, signal });
      return plain.map(({ width, height, data }, i) =>
        new Image({ width, height, data, metadata: this.#metadata(job, { seeds, index: i, pictures }) })
      );
    });
    return { images, latents, seeds, numInferenceSteps: count, seconds: watch.seconds };
  }

  /** The steps of a job on that many tokens of latents. */
  #schedule(job: Job, tokens: number): FlowMatchEulerDiscreteScheduler {
    const { scheduler } = this.#parts;
    const run = new FlowMatchEulerDiscreteScheduler(scheduler.config);
    run.setTimesteps({ sigmas: job.sigmas, mu: calculateShift(tokens, scheduler.config) });
    return run;
  }

  /** The arguments that are the same at every step. */
  #fixed(job: Job, embeddings: FluxEmbeddings, run: FlowMatchEulerDiscreteScheduler): FixedInputs {
    const { dtype } = this.#parts;
    const tokens = embeddings.promptEmbeds.size(1);
    return {
      ...embeddings,
      timesteps: tensor(Float32Array.from(run.timesteps, (t) => roundTo(dtype, roundTo(dtype, t) / 1000))),
      guidance: tensor([job.options.guidanceScale ?? DEFAULT_GUIDANCE]),
      textIds: tensor(new Float32Array(3 * tokens), { shape: [tokens, 3] }),
      imageIds: this.#imageIds(job),
    };
  }

  /** The arguments of one step. */
  #varying(
    job: Job,
    { latents, run, index }: { latents: Tensor; run: FlowMatchEulerDiscreteScheduler; index: number },
  ): VaryingInputs {
    const batch = latents.size(0) * (job.guided ? 2 : 1);
    return {
      latents,
      rows: tensor(Int32Array.from({ length: batch }, (_, b) => index * batch + b), { dtype: "i32" }),
      stepSize: tensor([run.stepSize(index)]),
    };
  }

  /** Checks everything that can be checked before anything is computed. */
  #check(prompt: string | readonly string[] | undefined, options: FluxOptions): Job {
    const { tokenizer2, scheduler } = this.#parts;
    const { sampleSize, scaleFactor } = this.#functions.facts;
    const { promptEmbeds, pooledPromptEmbeds, sigmas, negativePrompt, negativePromptEmbeds } = options;
    const { guidanceScale = DEFAULT_GUIDANCE, trueCfgScale = 1, outputType = "image" } = options;
    const { height = sampleSize, width = sampleSize } = options;
    const multiple = 2 * scaleFactor;
    checkSide("height", height, { multiple, what: "picture" });
    checkSide("width", width, { multiple, what: "picture" });
    checkScale("guidanceScale", guidanceScale);
    checkScale("trueCfgScale", trueCfgScale);
    const copies = options.numImagesPerPrompt ?? 1;
    checkCount("numImagesPerPrompt", copies, { min: 1 });
    const maxSequenceLength = options.maxSequenceLength ?? Math.min(MAX_TOKENS, tokenizer2?.maxLength ?? MAX_TOKENS);
    checkCount("maxSequenceLength", maxSequenceLength, { min: 1, max: MAX_TOKENS });
    const steps = options.numInferenceSteps ?? sigmas?.length ?? DEFAULT_STEPS;
    checkCount("numInferenceSteps", steps, { min: 1, max: scheduler.config.numTrainTimesteps });
    if (sigmas && sigmas.length !== steps) {
      throw new RangeError(`Cannot take ${steps} steps with ${sigmas.length} sigmas: pass one for each step`);
    }
    if (outputType !== "image" && outputType !== "latent") {
      throw new RangeError(`Cannot give an output of type ${JSON.stringify(outputType)}: pass "image" or "latent"`);
    }
    const { prompt2, negativePrompt2, negativePooledPromptEmbeds } = options;
    exclusive({ prompt, promptEmbeds });
    exclusive({ prompt2, promptEmbeds });
    exclusive({ negativePrompt, negativePromptEmbeds });
    exclusive({ negativePrompt2, negativePromptEmbeds });
    together({ promptEmbeds, pooledPromptEmbeds });
    together({ negativePromptEmbeds, negativePooledPromptEmbeds });
    if (prompt === undefined && promptEmbeds === undefined) {
      throw new TypeError("Cannot make a picture of nothing: pass a prompt, or promptEmbeds and pooledPromptEmbeds");
    }
    return {
      prompts: prompt === undefined ? undefined : promptList(prompt, "prompt"),
      height,
      width,
      maxSequenceLength,
      copies,
      guided: trueCfgScale > 1 && (negativePrompt !== undefined || negativePromptEmbeds !== undefined),
      sigmas: sigmas ?? linspace(1, 1 / steps, { num: steps }),
      options,
    };
  }

  async #embed({ prompts, options, maxSequenceLength }: Job): Promise<FluxEmbeddings> {
    const { promptEmbeds, pooledPromptEmbeds, prompt2, signal } = options;
    if (!prompts) return await this.#given(promptEmbeds!, pooledPromptEmbeds!);
    const second = prompt2 === undefined ? prompts : promptList(prompt2, "prompt2");
    return await this.#encode(prompts, matching(second, prompts.length, "prompt2"), { maxSequenceLength, signal });
  }

  async #embedNegative({ options, maxSequenceLength }: Job, like: Tensor): Promise<NegativeInputs> {
    const { negativePromptEmbeds, negativePooledPromptEmbeds, negativePrompt, negativePrompt2, signal } = options;
    let embeddings: FluxEmbeddings;
    if (negativePromptEmbeds) {
      embeddings = await this.#given(negativePromptEmbeds, negativePooledPromptEmbeds!);
    } else {
      const first = matching(promptList(negativePrompt!, "negativePrompt"), like.size(0), "negativePrompt");
      const second = negativePrompt2 === undefined ? first : promptList(negativePrompt2, "negativePrompt2");
      embeddings = await this.#encode(first, matching(second, first.length, "negativePrompt2"), {
        maxSequenceLength,
        signal,
      });
    }
    const shape = embeddings.promptEmbeds.shape;
    if (String(shape) !== String(like.shape)) {
      throw new TypeError(
        `Cannot guide promptEmbeds of [${like.shape.join(", ")}] by negativePromptEmbeds of [${shape.join(", ")}]: ` +
          "pass the same shape",
      );
    }
    return {
      negativePromptEmbeds: embeddings.promptEmbeds,
      negativePooledPromptEmbeds: embeddings.pooledPromptEmbeds,
      trueCfgScale: tensor([options.trueCfgScale ?? 1]),
    };
  }

  /** Embeddings that the caller brings. */
  async #given(promptEmbeds: Tensor, pooledPromptEmbeds: Tensor): Promise<FluxEmbeddings> {
    const { dtype, device } = this.#parts;
    const { jointAttentionDim, pooledProjectionDim } = this.#functions.facts;
    const [prompts] = promptEmbeds.shape;
    if (promptEmbeds.shape.length !== 3 || promptEmbeds.size(-1) !== jointAttentionDim || prompts === 0) {
      throw new TypeError(
        `Cannot use promptEmbeds of [${promptEmbeds.shape.join(", ")}]: ` +
          `the model takes (prompts, tokens, ${jointAttentionDim})`,
      );
    }
    if (String(pooledPromptEmbeds.shape) !== String([prompts, pooledProjectionDim])) {
      throw new TypeError(
        `Cannot use pooledPromptEmbeds of [${pooledPromptEmbeds.shape.join(", ")}]: ` +
          `the model takes [${prompts}, ${pooledProjectionDim}] here`,
      );
    }
    return {
      promptEmbeds: await prepared(promptEmbeds, { dtype, device }),
      pooledPromptEmbeds: await prepared(pooledPromptEmbeds, { dtype, device }),
    };
  }

  async #encode(
    prompts: readonly string[],
    second: readonly string[],
    options: { maxSequenceLength: number; signal: AbortSignal | undefined },
  ): Promise<FluxEmbeddings> {
    const { tokenizer, tokenizer2, model } = this.#parts;
    const { clip, t5, facts } = this.#functions;
    if (!clip || !t5 || !tokenizer || !tokenizer2) {
      throw new TypeError(
        `Cannot read a prompt as ${model} was loaded without its text encoders: load them, or pass promptEmbeds and ` +
          "pooledPromptEmbeds",
      );
    }
    const { maxSequenceLength, signal } = options;
    const clipLength = this.#clipLength();
    const { eosTokenId } = facts.clip!;
    const clipIds = tokenize(tokenizer, prompts, { maxLength: clipLength, limit: "what CLIP takes" });
    const rows = prompts.length;
    const { pooled } = await clip.run({
      inputIds: tensor(clipIds, { shape: [rows, clipLength], dtype: "i32" }),
      endPositions: tensor(CLIPTextModel.endPositions(clipIds, { batch: rows, eosTokenId }), { dtype: "i32" }),
    }, { signal });
    const promptEmbeds = await encodeWithT5({ fn: t5, tokenizer: tokenizer2 }, second, { maxSequenceLength, signal });
    return { promptEmbeds, pooledPromptEmbeds: pooled };
  }

  /** The tokens that CLIP takes. */
  #clipLength(): number {
    return Math.min(this.#parts.tokenizer!.maxLength, this.#functions.facts.clip!.maxPositionEmbeddings);
  }

  /** The latents that a run starts from, packed. */
  async #start(job: Job, pictures: number): Promise<{ seeds: readonly Seed[]; latents: Tensor }> {
    const { dtype, device } = this.#parts;
    const { latents, seed = latents ? [] : randomSeed() } = job.options;
    if (latents) {
      const [channels, rows, columns] = this.#latentShape(job);
      const shape = [pictures, rows * columns / 4, 4 * channels];
      if (String(latents.shape) !== String(shape)) {
        throw new TypeError(
          `Cannot start from latents of [${latents.shape.join(", ")}]: ${pictures} of ${job.width} by ${job.height} ` +
            `pixels take [${shape.join(", ")}]`,
        );
      }
      return { seeds: [], latents: await prepared(latents, { dtype, device }) };
    }
    return { seeds: seedsOf(seed, pictures), latents: this.#noise(job, { seed, pictures }) };
  }

  #noise(job: Job, { seed, pictures }: { seed: Seed | readonly Seed[]; pictures: number }): Tensor {
    const { dtype } = this.#parts;
    const [channels, rows, columns] = this.#latentShape(job);
    const noise = new Noise(seed, { count: pictures, what: "pictures" }).draw([channels, rows, columns], dtype);
    const packed = packLatents(noise, [pictures, channels, rows, columns]);
    return tensor(packed, { shape: [pictures, rows * columns / 4, 4 * channels], dtype });
  }

  /** Channels, rows and columns of the VAE's latents. */
  #latentShape({ height, width }: Job): readonly [number, number, number] {
    const { inChannels, scaleFactor } = this.#functions.facts;
    return [inChannels / 4, height / scaleFactor, width / scaleFactor];
  }

  #imageIds(job: Job): Tensor {
    const [, rows, columns] = this.#latentShape(job);
    const ids = new Float32Array(rows * columns / 4 * 3);
    for (let y = 0, i = 0; y < rows / 2; y++) {
      for (let x = 0; x < columns / 2; x++, i += 3) ids.set([0, y, x], i);
    }
    return tensor(ids, { shape: [ids.length / 3, 3] });
  }

  /** Pictures of packed latents. */
  #decode(latents: Tensor, options: { job: Job; signal: AbortSignal | undefined }): Promise<Image[]> {
    return this.#pictures(latents, { ...options, shrink: 1 });
  }

  /** The picture that the last step's flow leads to, at half the size, which is a quarter of the work. */
  async #preview(
    { before, after, ratio }: { before: Tensor; after: Tensor; ratio: number },
    options: { job: Job; signal: AbortSignal | undefined },
  ): Promise<Image> {
    const { device } = this.#parts;
    // The flow is (after - before) / stepSize, and what is left of the way is the next sigma.
    const wide = after.cast("f32");
    const clean = wide.sub(wide.sub(before.cast("f32")).mul(ratio)).cast(after.dtype);
    const [latents] = await realize([clean], { device });
    return Image.grid(await this.#pictures(latents!, { ...options, shrink: 2 }));
  }

  async #pictures(
    latents: Tensor,
    options: { job: Job; signal: AbortSignal | undefined; shrink: Shrink },
  ): Promise<Image[]> {
    const { device } = this.#parts;
    const { job, signal, shrink } = options;
    const decoder = this.#decoder(job, shrink);
    const [width, height] = [job.width / shrink, job.height / shrink];
    const size = width * height * 3;
    const rows = latents.size(0);
    // Slicing is one picture a run: the decoder's memory does not grow with the batch.
    const parts = this.#functions.facts.slicing && rows > 1
      ? await realize(Array.from({ length: rows }, (_, i) => latents.slice(0, i, i + 1)), { device })
      : [latents];
    const images: Image[] = [];
    for (const part of parts) {
      const { pixels } = await decoder.run({ latents: part }, { signal });
      const values = await toArray<"f32">(pixels, { device });
      for (let at = 0; at < values.length; at += size) {
        images.push(Image.fromValues(values.subarray(at, at + size), { width, height, range: [0, 1] }));
      }
    }
    return images;
  }

  #decoder(job: Job, shrink: Shrink): Decoder {
    const [, rows, columns] = this.#latentShape(job);
    return this.#functions.decoder({ rows, columns, shrink });
  }

  #shapeOf({ prompts, options, height, width, sigmas, copies, maxSequenceLength, guided }: Job): FluxShape {
    return {
      prompts: prompts?.length ?? options.promptEmbeds!.size(0),
      numImagesPerPrompt: copies,
      height,
      width,
      numInferenceSteps: sigmas.length,
      maxSequenceLength: options.promptEmbeds?.size(1) ?? maxSequenceLength,
      guided,
    };
  }

  /** The functions that a job calls, with arguments of the shapes that they get: they have no values. */
  #uses(job: Job): Use[] {
    const { dtype } = this.#parts;
    const { clip, t5, step, guidedStep, facts } = this.#functions;
    const { jointAttentionDim, pooledProjectionDim, inChannels } = facts;
    const like = (...shape: number[]) => placeholder(shape, dtype);
    const ids = (...shape: number[]) => placeholder(shape, "i32");
    const uses: Use[] = [];
    const { prompts, maxSequenceLength: textTokens } = this.#shapeOf(job);
    if (job.prompts && clip && t5) {
      const tokens = this.#clipLength();
      uses.push(useOf("text_encoder", clip, { inputIds: ids(prompts, tokens), endPositions: ids(prompts) }));
      uses.push(useOf("text_encoder_2", t5, { inputIds: ids(prompts, job.maxSequenceLength) }));
    }
    const [, rows, columns] = this.#latentShape(job);
    const pictures = prompts * job.copies;
    const embeddings = {
      promptEmbeds: like(prompts, textTokens, jointAttentionDim),
      pooledPromptEmbeds: like(prompts, pooledProjectionDim),
    };
    const latents = like(pictures, rows * columns / 4, inChannels);
    const run = this.#schedule(job, latents.size(1));
    const inputs = { ...this.#fixed(job, embeddings, run), ...this.#varying(job, { latents, run, index: 0 }) };
    const negative = {
      negativePromptEmbeds: embeddings.promptEmbeds,
      negativePooledPromptEmbeds: embeddings.pooledPromptEmbeds,
      trueCfgScale: tensor([1]),
    };
    uses.push(
      job.guided ? useOf("transformer", guidedStep, { ...inputs, ...negative }) : useOf("transformer", step, inputs),
    );
    uses.push(this.#decoderUse(job, 1));
    return uses;
  }

  #decoderUse(job: Job, shrink: Shrink): Use {
    const { inChannels, slicing } = this.#functions.facts;
    const { prompts, numImagesPerPrompt } = this.#shapeOf(job);
    const [, rows, columns] = this.#latentShape(job);
    const shape = [slicing ? 1 : prompts * numImagesPerPrompt, rows * columns / 4, inChannels];
    const latents = placeholder(shape, this.#parts.dtype);
    return useOf("vae", this.#decoder(job, shrink), { latents }, decoderName({ rows, columns, shrink }));
  }

  /** What compiling the pipeline takes to know of it. */
  compileTarget(functions: RecordedFlux): CompileTarget<FluxRun> {
    const { device } = this.#parts;
    const jobOf = ({ prompts = 1, trueCfgScale = 1, ...options }: FluxRun) => {
      checkCount("prompts", prompts, { min: 1 });
      const guidance = trueCfgScale > 1 ? { trueCfgScale, negativePrompt: "" } : {};
      return this.#check(Array.from({ length: prompts }, () => ""), { ...options, ...guidance });
    };
    return {
      device,
      choose: (choices, options) => functions.choose(choices, options),
      uses: (run, { vae }) => {
        const job = jobOf(run);
        const uses = this.#uses(job).map((use) => ({ ...use, tuned: vae || use.part !== "vae" }));
        return [...uses, { ...this.#decoderUse(job, 2), tuned: vae }];
      },
      describe: (runs) => describeFlux(this.#parts, functions, runs.map((run) => this.#shapeOf(jobOf(run)))),
    };
  }

  /** How each part is quantized. */
  get quantization(): string {
    return this.#functions.quantization;
  }

  /** What each model will need for a job. */
  plan(prompt: string | readonly string[] | undefined, options: FluxOptions): MemoryPlan {
    const uses = this.#uses(this.#check(prompt, options));
    return memoryPlan(needsOf(uses, (part) => this.#functions.parameters(part as FluxPart)));
  }

  /** What a picture's file says: all that is needed to make it again, where words and seeds are enough for that. */
  #metadata(
    job: Job,
    { seeds, index, pictures }: { seeds: readonly Seed[]; index: number; pictures: number },
  ): Record<string, string> {
    const { options, prompts, copies } = job;
    const seed = seeds[index];
    const given = options.sigmas ?? options.negativePrompt2 ?? options.negativePromptEmbeds;
    if (!prompts || seed === undefined || given !== undefined) {
      return {
        Software: "denoise",
        model: this.#parts.model,
        ...(prompts && { prompt: textOf(prompts, index, copies) }),
      };
    }
    const { prompt2, negativePrompt, trueCfgScale, guidanceScale = DEFAULT_GUIDANCE } = options;
    const settings: GenerationSettings = {
      model: this.#parts.model,
      prompt: textOf(prompts, index, copies),
      ...(prompt2 !== undefined && { prompt2: textOf(promptList(prompt2, "prompt2"), index, copies) }),
      ...(job.guided && negativePrompt !== undefined && {
        negativePrompt: textOf(promptList(negativePrompt, "negativePrompt"), index, copies),
        trueCfgScale: trueCfgScale!,
      }),
      seed,
      numInferenceSteps: job.sigmas.length,
      guidanceScale,
      width: job.width,
      height: job.height,
      maxSequenceLength: job.maxSequenceLength,
      dtype: this.#parts.dtype,
      ...(this.quantization !== "" && { quantization: this.quantization }),
      ...(!Array.isArray(options.seed) && pictures > 1 && { batchSize: pictures, index }),
    };
    return settingsToMetadata(settings);
  }

  async encodePrompt(
    prompt: string | readonly string[],
    options: Pick<FluxOptions, "prompt2" | "maxSequenceLength" | "signal">,
  ): Promise<FluxEmbeddings> {
    return await this.#embed(this.#check(prompt, options));
  }

  prepareLatents(
    options: { seed: Seed | readonly Seed[]; height?: number; width?: number; count?: number },
  ): Tensor {
    const { seed, height, width, count = typeof seed === "object" ? seed.length : 1 } = options;
    checkCount("count", count, { min: 1 });
    return this.#noise(this.#check("", { height, width }), { seed, pictures: count });
  }

  /** Makes the picture that a file was made as. */
  async again(picture: Image | string | URL, options: Pick<FluxOptions, "signal" | "onStep">): Promise<Image> {
    const image = picture instanceof Image ? picture : await Image.open(picture);
    const settings = settingsFromMetadata(image.metadata, picture instanceof Image ? {} : { file: String(picture) });
    const { prompt, model: _, dtype: __, quantization = "", batchSize = 1, index = 0, seed, ...rest } = settings;
    if (quantization !== this.quantization) {
      const told = (how: string) => how === "" ? "in floats" : `with ${how}`;
      throw new DenoiseError(
        `Cannot make ${picture instanceof Image ? "the picture" : picture} again: it was made ${told(quantization)}, ` +
          `and the pipeline is ${told(this.quantization)}; load the model, and quantize it as it was`,
        { file: picture instanceof Image ? undefined : String(picture), key: "quantization" },
      );
    }
    const job = this.#check(prompt, rest);
    checkCount("batch_size", batchSize, { min: 1 });
    checkCount("index", index, { min: 0, max: batchSize - 1 });
    // One of several pictures had its part of the noise of all.
    const latents = this.#noise(job, { seed, pictures: batchSize });
    const { device } = this.#parts;
    const [own] = await realize([latents.slice(0, index, index + 1)], { device });
    const { images } = await this.generate(prompt, { ...rest, ...options, latents: own! });
    const { width, height, data } = images[0]!;
    return new Image({ width, height, data, metadata: image.metadata });
  }
}

type NegativeInputs = Omit<GuidedStepInputs, keyof StepInputs>;

const DEFAULT_GUIDANCE = 3.5;
const DEFAULT_STEPS = 28;
/** What T5 and Flux were trained with, and diffusers' own limit. */
const MAX_TOKENS = 512;

/** Latents of (pictures, channels, rows, columns), packed by 2 by 2. */
function packLatents(
  latents: ArrayOf[FloatDtype],
  shape: readonly [number, number, number, number],
): ArrayOf[FloatDtype] {
  const [pictures, channels, rows, columns] = shape;
  const packed = latents instanceof Float32Array ? new Float32Array(latents.length) : new Uint16Array(latents.length);
  let to = 0;
  for (let picture = 0; picture < pictures; picture++) {
    for (let y = 0; y < rows; y += 2) {
      for (let x = 0; x < columns; x += 2) {
        for (let c = 0; c < channels; c++) {
          const corner = ((picture * channels + c) * rows + y) * columns + x;
          packed[to++] = latents[corner]!;
          packed[to++] = latents[corner + 1]!;
          packed[to++] = latents[corner + columns]!;
          packed[to++] = latents[corner + columns + 1]!;
        }
      }
    }
  }
  return packed;
}
