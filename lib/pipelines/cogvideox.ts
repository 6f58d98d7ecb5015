/**
 * CogVideoX: videos from prompts, as diffusers' `CogVideoXPipeline` makes them.
 *
 * @module
 */

import { CALIBRATION, type CalibrationOptions } from "../compile/capture.ts";
import { type Compilable, COMPILE_TARGET, type CompileTarget } from "../compile/compile.ts";
import { type Profile, profile, type ProfileOptions } from "../compile/profile.ts";
import type { FloatDtype } from "../graph/dtypes.ts";
import { Image, settingsToMetadata } from "../media/image.ts";
import { AutoencoderKLCogVideoX } from "../models/autoencoder_kl_cogvideox.ts";
import { CogVideoXTransformer3DModel } from "../models/cogvideox_transformer_3d_model.ts";
import type { VideoFrames } from "../models/frame_tiles.ts";
import { T5EncoderModel } from "../models/t5_encoder_model.ts";
import type { SaveOptions } from "../nn/save.ts";
import { CogVideoXDDIMScheduler } from "../schedulers/ddim_cogvideox.ts";
import { CogVideoXDPMScheduler } from "../schedulers/dpm_cogvideox.ts";
import type { Device } from "../tensor/device.ts";
import { realize } from "../tensor/realize.ts";
import { tensor } from "../tensor/source.ts";
import type { Tensor } from "../tensor/tensor.ts";
import { absentFrom, isCompiledFile } from "./compiled.ts";
import { describeCogVideoX, readCogVideoX } from "./cogvideox_compiled.ts";
import {
  type AnyCogVideoXScheduler,
  type CogVideoXFunctions,
  type CogVideoXPart,
  type CogVideoXSchedulerClass,
  type CogVideoXShape,
  type FixedInputs,
  RecordedCogVideoX,
  schedulerClass,
  schedulerOf,
  type StepResult,
  type VaryingInputs,
} from "./cogvideox_functions.ts";
import { GeneratedVideo } from "./generated_video.ts";
import { checkLoadOptions, openPipeline, type PipelineKind, type PipelineLoadOptions } from "./load.ts";
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
} from "./pipeline.ts";
import { type PhaseSeconds, prepared, Stopwatch, takeSteps } from "./run.ts";
import { savePipeline } from "./save.ts";
import { encodeWithT5 } from "./text.ts";
import { Tokenizer } from "./tokenizer.ts";

/** How a pipeline is loaded. */
export interface CogVideoXLoadOptions extends PipelineLoadOptions {
  /** Another scheduler than the model's class, with the model's configuration: 5b is often sampled with DPM. */
  scheduler?: CogVideoXSchedulerClass | undefined;
}

/** How videos are made; the names are diffusers' own. */
export interface CogVideoXOptions {
  /** What the videos should not show; nothing in particular by default. Without guidance it is not read. */
  negativePrompt?: string | readonly string[] | undefined;
  /** Rows of pixels; what the model was trained on by default. */
  height?: number | undefined;
  /** Pixels in a row; what the model was trained on by default. */
  width?: number | undefined;
  /** Frames, 4k + 1; what the model was trained on by default. */
  numFrames?: number | undefined;
  /** Frames a second of the file, 8 by default, and 16 of the 1.5 family. */
  fps?: number | undefined;
  /** Steps from noise to video, 50 by default. */
  numInferenceSteps?: number | undefined;
  /** The weight of classifier-free guidance, 6 by default; up to 1 is none. */
  guidanceScale?: number | undefined;
  /** Whether guidance grows from step to step, as diffusers' `use_dynamic_cfg`. False by default. */
  useDynamicCfg?: boolean | undefined;
  /** Videos of each prompt, 1 by default. */
  numVideosPerPrompt?: number | undefined;
  /** DDIM's eta. As in diffusers, neither of CogVideoX's schedulers makes anything of it. */
  eta?: number | undefined;
  /** The seed of the noise of all videos, or one for each; drawn by chance where there is none. */
  seed?: Seed | readonly Seed[] | undefined;
  /** Latents to start from in place of noise, (videos, frames, channels, rows, columns). */
  latents?: Tensor | undefined;
  /** What T5 makes of the prompts, (prompts, tokens, size), in place of prompts. */
  promptEmbeds?: Tensor | undefined;
  /** The same for negative prompts. */
  negativePromptEmbeds?: Tensor | undefined;
  /** The tokens of a prompt; what the model was trained on by default, 226. */
  maxSequenceLength?: number | undefined;
  /** Videos, the default, or nothing but the last latents. */
  outputType?: "video" | "latent" | undefined;
  /**
   * The most bytes that decoding may take, weights included: larger videos are decoded in tiles, as large as they can
   * be. By default they are whole, or in the tiles of `vae.enableTiling`.
   */
  memoryBudget?: number | undefined;
  /** Stops the run before its next kernel, decoding as well. */
  signal?: AbortSignal | undefined;
  /** Called after each step; what it returns is awaited. */
  onStep?: ((step: CogVideoXStep) => unknown) | undefined;
}

/** What a step made. */
export interface CogVideoXStep {
  /** Which step, from 0. */
  readonly index: number;
  /** How many steps there are. */
  readonly count: number;
  /** What the model was told: near 1000 at the start of the noise, near 0 at the end. */
  readonly timestep: number;
  /** The weight that guidance had; 1 where there is none. */
  readonly guidanceScale: number;
  /** The latents after the step, (videos, frames, channels, rows, columns). */
  readonly latents: Tensor;
  /** A quick look, at half the size, at where the middle frame is heading; several videos are a grid. */
  preview(): Promise<Image>;
  /** The videos that the latents are now. */
  decode(): GeneratedVideo[];
}

/** What a run made. */
export interface CogVideoXResult {
  /**
   * The videos: all of the first prompt, then all of the second; none where `outputType` is `latent`. Their frames are
   * decoded when they are asked for.
   */
  readonly videos: GeneratedVideo[];
  /** The last latents, (videos, frames, channels, rows, columns). */
  readonly latents: Tensor;
  /** The seed of each video. */
  readonly seeds: readonly Seed[];
  /** How many steps were taken. */
  readonly numInferenceSteps: number;
  /** How long it took; decoding grows as frames are decoded. */
  readonly seconds: PhaseSeconds;
}

/** A call to plan for or to compile for: the options of it that shapes follow from. */
export interface CogVideoXRun extends
  Pick<
    CogVideoXOptions,
    | "height"
    | "width"
    | "numFrames"
    | "numInferenceSteps"
    | "guidanceScale"
    | "maxSequenceLength"
    | "numVideosPerPrompt"
    | "memoryBudget"
  > {
  /** How many prompts the call has, 1 by default. */
  prompts?: number | undefined;
}

/** A loaded CogVideoX: call it with a prompt. */
export interface CogVideoXPipeline extends Compilable<CogVideoXRun> {
  /**
   * Makes videos. Their frames are decoded a few at a time when a video is saved, iterated or loaded.
   *
   * @param prompt A prompt, or several; none where embeddings are given
   * @param options How
   * @returns The videos
   * @throws {TypeError} If options exclude each other or are of a wrong type or shape
   * @throws {RangeError} If a value is out of range: a size or a number of frames that the model cannot take
   */
  (prompt: string | readonly string[] | undefined, options?: CogVideoXOptions): Promise<CogVideoXResult>;
  /** The same, step by step. */
  steps(
    prompt: string | readonly string[] | undefined,
    options?: CogVideoXOptions,
  ): AsyncGenerator<CogVideoXStep, CogVideoXResult, void>;
  /** What the text encoder makes of prompts, to be given as `promptEmbeds` or `negativePromptEmbeds`. */
  encodePrompt(
    prompt: string | readonly string[],
    options?: Pick<CogVideoXOptions, "maxSequenceLength" | "signal">,
  ): Promise<Tensor>;
  /**
   * What a call will take of the memory, by model and by phase. Nothing is computed, and no weights are needed.
   *
   * @param run The size and length of the videos, how many prompts there are
   * @returns Bytes
   */
  plan(run?: CogVideoXRun): MemoryPlan;
  /**
   * Looks at where the time of a call goes, decoding included. The first call of some shapes also gets weights and
   * programs ready: profile a later one.
   *
   * @param prompt As for a call
   * @param options As for a call, and what the machine can do
   * @returns Each kernel's time, as a table by operation and as a trace
   */
  profile(
    prompt: string | readonly string[] | undefined,
    options?: CogVideoXOptions & ProfileOptions,
  ): Promise<Profile>;
  /** @internal Runs the models on prompts, on functions of another maker. */
  [CALIBRATION](prompts: readonly string[], options: CalibrationOptions): Promise<void>;
  /** The noise that a run starts from, (videos, frames, channels, rows, columns). */
  prepareLatents(
    options: { seed: Seed | readonly Seed[]; height?: number; width?: number; numFrames?: number; count?: number },
  ): Tensor;
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
  /** How each part is quantized, such as `transformer: 310 int8dq, 6 float`; empty where none is. */
  readonly quantization: string;
  /** What the model was called when it was loaded. */
  readonly model: string;
  /** Where it runs. */
  readonly device: Device;
  /** What activations are computed in. */
  readonly dtype: FloatDtype;
  /** The transformer. A pipeline that was compiled ahead of time has none, nor a VAE: asking for them is an error. */
  readonly transformer: CogVideoXTransformer3DModel;
  /** The autoencoder. */
  readonly vae: AutoencoderKLCogVideoX;
  /** T5, where it was loaded. */
  readonly textEncoder: T5EncoderModel | undefined;
  /** T5's tokenizer, where it was loaded. */
  readonly tokenizer: Tokenizer | undefined;
  /** The scheduler; each run lays out steps of its own. */
  readonly scheduler: CogVideoXDDIMScheduler | CogVideoXDPMScheduler;
}

/** Loads {@linkcode CogVideoXPipeline}s. */
export interface CogVideoXPipelineLoader {
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
  load(model: string, options?: CogVideoXLoadOptions): Promise<CogVideoXPipeline>;
}

/**
 * CogVideoX, from Tsinghua University and Zhipu AI: 2b, 5b and the 1.5 family.
 *
 * @example A video from a prompt
 * ```ts ignore
 * import { CogVideoXPipeline } from "../../mod.ts";
 *
 * const pipe = await CogVideoXPipeline.load("THUDM/CogVideoX-2b", { dtype: "bf16" });
 * console.log(pipe.plan({ numFrames: 49 }));
 * const { videos } = await pipe("a panda plays the guitar in a bamboo forest", { seed: 7 });
 * await videos[0]!.save("panda.mp4"); // decoded and written a few frames at a time
 * ```
 */
export const CogVideoXPipeline: CogVideoXPipelineLoader = { load };

const KIND: PipelineKind = {
  className: "CogVideoXPipeline",
  classes: {
    transformer: ["CogVideoXTransformer3DModel"],
    vae: ["AutoencoderKLCogVideoX"],
    text_encoder: ["T5EncoderModel"],
    scheduler: ["CogVideoXDDIMScheduler", "CogVideoXDPMScheduler"],
  },
  textEncoders: ["text_encoder"],
};

async function load(model: string, options: CogVideoXLoadOptions = {}): Promise<CogVideoXPipeline> {
  const { scheduler: wanted, ...rest } = options;
  checkLoadOptions(rest);
  if (await isCompiledFile(model)) return await loadCompiled(model, options);
  const { weights = true } = rest;
  const { index, device, dtype, has } = await openPipeline(model, KIND, rest);
  const { folder } = index;
  const schedulerFile = `${folder}/scheduler/scheduler_config.json`;
  const [transformer, vae, textEncoder, tokenizer, schedulerConfig] = await Promise.all([
    CogVideoXTransformer3DModel.load(`${folder}/transformer`, { weights }),
    AutoencoderKLCogVideoX.load(`${folder}/vae`, { weights }),
    has("text_encoder") ? T5EncoderModel.load(`${folder}/text_encoder`, { weights }) : undefined,
    has("text_encoder") ? Tokenizer.load(`${folder}/tokenizer`) : undefined,
    readConfig(schedulerFile),
  ]);
  const scheduler = schedulerOf(wanted ?? index.parts.get("scheduler"), schedulerConfig, { file: schedulerFile });
  for (const part of [transformer, vae, textEncoder]) if (part) part.dtype = dtype;
  const parts: Parts = { model, device, dtype, transformer, vae, textEncoder, tokenizer, scheduler };
  const functions = new RecordedCogVideoX(parts);
  const run = new Runner(parts, functions);
  return pipelineOf(run, {
    ...parts,
    [COMPILE_TARGET]: run.compileTarget(functions),
    [CALIBRATION]: async (prompts: readonly string[], options: CalibrationOptions) => {
      const { make, ...rest } = options;
      const observed = new Runner(parts, new RecordedCogVideoX(parts, make));
      for (const prompt of prompts) await observed.generate(prompt, { ...rest, outputType: "latent" });
    },
    save: (folder: string, options: SaveOptions = {}) =>
      savePipeline(folder, {
        index,
        models: { transformer, vae, text_encoder: textEncoder },
        others: ["scheduler", ...(tokenizer ? ["tokenizer"] : [])],
        classes: { scheduler: schedulerClass(scheduler) },
        device,
      }, options),
  });
}

/** Makes a pipeline that was compiled ahead of time: it has functions, and no models. */
async function loadCompiled(path: string, options: CogVideoXLoadOptions): Promise<CogVideoXPipeline> {
  const { parts, functions } = await readCogVideoX(path, options);
  const found = schedulerClass(parts.scheduler);
  if (options.scheduler !== undefined && options.scheduler !== found) {
    throw new RangeError(`Cannot sample ${path} with ${options.scheduler}: it was compiled for ${found}`);
  }
  const absent = absentFrom(path);
  return pipelineOf(new Runner(parts, functions), {
    ...parts,
    textEncoder: undefined,
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

/** A pipeline that runs as a runner does, with all else that it has. */
function pipelineOf(
  run: Runner,
  members: Parts & Pick<CogVideoXPipeline, "save" | typeof COMPILE_TARGET | typeof CALIBRATION>,
): CogVideoXPipeline {
  const call = (prompt: string | readonly string[] | undefined, options: CogVideoXOptions = {}) => {
    return run.generate(prompt, options);
  };
  return callable(callable(call, members), {
    steps: (prompt: string | readonly string[] | undefined, options: CogVideoXOptions = {}) =>
      run.steps(prompt, options),
    encodePrompt: (
      prompt: string | readonly string[],
      options: Pick<CogVideoXOptions, "maxSequenceLength" | "signal"> = {},
    ) => run.encodePrompt(prompt, options),
    plan: (options: CogVideoXRun = {}) => run.plan(options),
    profile: async (
      prompt: string | readonly string[] | undefined,
      { limits, ...options }: CogVideoXOptions & ProfileOptions = {},
    ) => (await profile(members.device, () => decodedCall(run, prompt, options), { limits })).profile,
    prepareLatents: (options: Parameters<CogVideoXPipeline["prepareLatents"]>[0]) => run.prepareLatents(options),
    get quantization() {
      return run.quantization;
    },
  });
}

/** A call, and its videos' frames, each dropped as it comes. */
async function decodedCall(
  run: Runner,
  prompt: string | readonly string[] | undefined,
  options: CogVideoXOptions,
): Promise<void> {
  const { videos } = await run.generate(prompt, options);
  for (const video of videos) {
    const frames = video[Symbol.asyncIterator]();
    while (!(await frames.next()).done);
  }
}

/**
 * @internal
 * What a call will take of the memory, on functions.
 *
 * @param parts What the pipeline is besides its models
 * @param functions Its functions
 * @param run The call
 * @returns Bytes
 */
export function planCogVideoX(
  parts: Pick<Parts, "model" | "device" | "dtype" | "scheduler">,
  functions: CogVideoXFunctions,
  run: CogVideoXRun,
): MemoryPlan {
  return new Runner({ ...parts, tokenizer: undefined }, functions).plan(run);
}

/** What a loaded pipeline is made of. */
type Parts = Pick<
  CogVideoXPipeline,
  "model" | "device" | "dtype" | "transformer" | "vae" | "textEncoder" | "tokenizer" | "scheduler"
>;

/** What a run takes of them. */
type RunnerParts = Pick<Parts, "model" | "device" | "dtype" | "tokenizer" | "scheduler">;

/** Options after the checks. */
interface Job {
  readonly prompts: readonly string[] | undefined;
  readonly height: number;
  readonly width: number;
  readonly numFrames: number;
  readonly fps: number;
  readonly maxSequenceLength: number;
  /** Videos of a prompt. */
  readonly copies: number;
  readonly steps: number;
  readonly guided: boolean;
  readonly options: CogVideoXOptions;
}

/** Runs a pipeline on its functions, wherever they come from. */
class Runner {
  readonly #parts: RunnerParts;
  readonly #functions: CogVideoXFunctions;

  constructor(parts: RunnerParts, functions: CogVideoXFunctions) {
    this.#parts = parts;
    this.#functions = functions;
  }

  async generate(
    prompt: string | readonly string[] | undefined,
    options: CogVideoXOptions,
  ): Promise<CogVideoXResult> {
    return await takeSteps(this.steps(prompt, options), options.onStep);
  }

  async *steps(
    prompt: string | readonly string[] | undefined,
    options: CogVideoXOptions,
  ): AsyncGenerator<CogVideoXStep, CogVideoXResult, void> {
    const job = this.#check(prompt, options);
    const { signal } = options;
    signal?.throwIfAborted();
    this.#functions.admit(this.#shapeOf(job));
    const watch = new Stopwatch();

    const positive = await watch.time("textEncoding", () => this.#embed(job));
    const negative = job.guided
      ? await watch.time("textEncoding", () => this.#embedNegative(job, positive))
      : undefined;
    const videos = positive.size(0) * job.copies;
    const { seeds, start, noise } = await this.#start(job, videos);

    const run = this.#schedule(job);
    const count = run.timesteps.length;
    const fixed = this.#fixed(positive, run);
    let result = start;
    for (let index = 0; index < count; index++) {
      const guidanceScale = this.#guidanceAt(job, run.timesteps[index]!);
      const before = result;
      result = await watch.time("denoising", async () => {
        const inputs = { ...fixed, ...this.#varying(before, { run, index, noise }) };
        return negative
          ? await this.#functions.guidedStep.run({
            ...inputs,
            negativePromptEmbeds: negative,
            guidanceScale: tensor([guidanceScale]),
          }, { signal })
          : await this.#functions.step.run(inputs, { signal });
      });
      const { latents, clean } = result;
      yield {
        index,
        count,
        timestep: run.timesteps[index]!,
        guidanceScale,
        latents,
        preview: () => this.#preview(clean, { job, signal }),
        decode: () => this.#videos(latents, { job, seeds, watch: new Stopwatch() }),
      };
    }
    const { latents } = result;
    const made = options.outputType === "latent" ? [] : this.#videos(latents, { job, seeds, watch });
    return { videos: made, latents, seeds, numInferenceSteps: count, seconds: watch.seconds };
  }

  /** The steps of a job. */
  #schedule({ steps }: Job): AnyCogVideoXScheduler {
    const { scheduler } = this.#parts;
    const run = scheduler instanceof CogVideoXDPMScheduler
      ? new CogVideoXDPMScheduler(scheduler.config)
      : new CogVideoXDDIMScheduler(scheduler.config);
    run.setTimesteps({ numInferenceSteps: steps });
    return run;
  }

  /** The weight of guidance at a step. */
  #guidanceAt({ options, guided, steps }: Job, timestep: number): number {
    const { guidanceScale = DEFAULT_GUIDANCE, useDynamicCfg = false } = options;
    if (!guided) return 1;
    if (!useDynamicCfg) return guidanceScale;
    return 1 + guidanceScale * ((1 - Math.cos(Math.PI * fifthPower((steps - timestep) / steps))) / 2);
  }

  /** The arguments that are the same at every step. */
  #fixed(promptEmbeds: Tensor, run: AnyCogVideoXScheduler): FixedInputs {
    return { promptEmbeds, timesteps: tensor(Float32Array.from(run.timesteps)) };
  }

  /** The arguments of one step. */
  #varying(
    { latents, clean }: StepResult,
    { run, index, noise }: { run: AnyCogVideoXScheduler; index: number; noise: Noise },
  ): VaryingInputs {
    const { dtype } = this.#parts;
    const inputs = {
      latents,
      row: tensor([index], { dtype: "i32" }),
      coefficients: tensor(run.coefficients(index)),
    };
    if (!(run instanceof CogVideoXDPMScheduler)) return inputs;
    const [, ...shape] = latents.shape;
    const drawn = run.noise(index, () => noise.draw(shape, dtype));
    return { ...inputs, previous: clean, noise: tensor(drawn, { shape: latents.shape, dtype }) };
  }

  /** Checks everything that can be checked before anything is computed. */
  #check(prompt: string | readonly string[] | undefined, options: CogVideoXOptions): Job {
    const { facts } = this.#functions;
    const { scaleFactor, sampleHeight, sampleWidth, sampleFrames, temporalFactor, maxTextSeqLength } = facts;
    const { promptEmbeds, negativePrompt, negativePromptEmbeds, memoryBudget, outputType = "video" } = options;
    const { height = sampleHeight * scaleFactor, width = sampleWidth * scaleFactor } = options;
    const { numFrames = sampleFrames, fps = facts.fps, guidanceScale = DEFAULT_GUIDANCE, eta = 0 } = options;
    const multiple = scaleFactor * facts.patchSize;
    checkSide("height", height, { multiple, what: "video" });
    checkSide("width", width, { multiple, what: "video" });
    checkFrames(numFrames, temporalFactor);
    if (!(fps >= 1 && fps <= MAX_FPS)) {
      throw new RangeError(`Cannot make a video of ${fps} frames a second: pass an fps from 1 to ${MAX_FPS}`);
    }
    checkScale("guidanceScale", guidanceScale);
    if (!(eta >= 0 && eta <= 1)) throw new RangeError(`Cannot use an eta of ${eta}: pass one from 0 to 1`);
    if (memoryBudget !== undefined && !(memoryBudget > 0)) {
      throw new RangeError(`Cannot use a memoryBudget of ${memoryBudget}: pass a number of bytes`);
    }
    const copies = options.numVideosPerPrompt ?? 1;
    checkCount("numVideosPerPrompt", copies, { min: 1 });
    const maxSequenceLength = options.maxSequenceLength ?? maxTextSeqLength;
    checkCount("maxSequenceLength", maxSequenceLength, {
      min: facts.fixedText ? maxTextSeqLength : 1,
      max: MAX_TOKENS,
    });
    const steps = options.numInferenceSteps ?? DEFAULT_STEPS;
    checkCount("numInferenceSteps", steps, { min: 1, max: this.#parts.scheduler.config.numTrainTimesteps });
    if (outputType !== "video" && outputType !== "latent") {
      throw new RangeError(`Cannot give an output of type ${JSON.stringify(outputType)}: pass "video" or "latent"`);
    }
    exclusive({ prompt, promptEmbeds });
    exclusive({ negativePrompt, negativePromptEmbeds });
    if (prompt === undefined && promptEmbeds === undefined) {
      throw new TypeError("Cannot make a video of nothing: pass a prompt, or promptEmbeds");
    }
    const prompts = prompt === undefined ? undefined : promptList(prompt, "prompt");
    const guided = guidanceScale > 1;
    const reads = prompts !== undefined || (guided && negativePromptEmbeds === undefined);
    if (reads && !facts.reads) {
      const remedy = prompts
        ? "promptEmbeds and negativePromptEmbeds"
        : "negativePromptEmbeds, or a guidanceScale of 1";
      throw new TypeError(
        `Cannot read a prompt as ${this.#parts.model} was loaded without its text encoder: load it, or pass ${remedy}`,
      );
    }
    return { prompts, height, width, numFrames, fps, maxSequenceLength, copies, steps, guided, options };
  }

  async #embed({ prompts, options, maxSequenceLength }: Job): Promise<Tensor> {
    const { promptEmbeds, signal } = options;
    if (!prompts) return await this.#given(promptEmbeds!, "promptEmbeds");
    return await this.#encode(prompts, { maxSequenceLength, signal });
  }

  async #embedNegative({ options, maxSequenceLength }: Job, like: Tensor): Promise<Tensor> {
    const { negativePrompt = "", negativePromptEmbeds, signal } = options;
    const embeds = negativePromptEmbeds
      ? await this.#given(negativePromptEmbeds, "negativePromptEmbeds")
      : await this.#encode(matching(promptList(negativePrompt, "negativePrompt"), like.size(0), "negativePrompt"), {
        maxSequenceLength: options.promptEmbeds?.size(1) ?? maxSequenceLength,
        signal,
      });
    if (String(embeds.shape) === String(like.shape)) return embeds;
    throw new TypeError(
      `Cannot guide promptEmbeds of [${like.shape.join(", ")}] by negativePromptEmbeds of ` +
        `[${embeds.shape.join(", ")}]: pass the same shape`,
    );
  }

  /** Embeddings that the caller brings. */
  async #given(embeds: Tensor, name: string): Promise<Tensor> {
    const { dtype, device } = this.#parts;
    const { textEmbedDim, fixedText, maxTextSeqLength } = this.#functions.facts;
    const fits = embeds.shape.length === 3 && embeds.size(-1) === textEmbedDim && embeds.size(0) > 0 &&
      embeds.size(1) > 0 && (!fixedText || embeds.size(1) === maxTextSeqLength);
    if (!fits) {
      throw new TypeError(
        `Cannot use ${name} of [${embeds.shape.join(", ")}]: the model takes (prompts, ` +
          `${fixedText ? maxTextSeqLength : "tokens"}, ${textEmbedDim})`,
      );
    }
    return await prepared(embeds, { dtype, device });
  }

  async #encode(
    prompts: readonly string[],
    options: { maxSequenceLength: number; signal: AbortSignal | undefined },
  ): Promise<Tensor> {
    const { tokenizer } = this.#parts;
    return await encodeWithT5({ fn: this.#functions.t5!, tokenizer: tokenizer! }, prompts, options);
  }

  /** What a run starts from, and where the noise of its steps comes from. */
  async #start(
    job: Job,
    videos: number,
  ): Promise<{ seeds: readonly Seed[]; start: StepResult; noise: Noise }> {
    const { dtype, device, scheduler } = this.#parts;
    const { latents: given, seed = randomSeed() } = job.options;
    const noise = new Noise(seed, { count: videos, what: "videos" });
    const shape = [videos, ...this.#latentShape(job)];
    if (given && String(given.shape) !== String(shape)) {
      throw new TypeError(
        `Cannot start from latents of [${given.shape.join(", ")}]: ${videos} of ${job.numFrames} frames of ` +
          `${job.width} by ${job.height} pixels take [${shape.join(", ")}]`,
      );
    }
    const latents = given
      ? await prepared(given, { dtype, device })
      : tensor(noise.draw(shape.slice(1), dtype), { shape, dtype });
    const looksBack = scheduler instanceof CogVideoXDPMScheduler;
    const clean = looksBack ? tensor(new Float32Array(shape.reduce((a, b) => a * b)), { shape }) : latents;
    return { seeds: given && !looksBack ? [] : seedsOf(seed, videos), start: { latents, clean }, noise };
  }

  /** Frames, channels, rows and columns of a video's latents; frames fill the transformer's tokens. */
  #latentShape({ height, width, numFrames }: Job): readonly [number, number, number, number] {
    const { channels, scaleFactor, temporalFactor, patchSizeT } = this.#functions.facts;
    const frames = (numFrames - 1) / temporalFactor + 1;
    return [Math.ceil(frames / patchSizeT) * patchSizeT, channels, height / scaleFactor, width / scaleFactor];
  }

  /** The videos of latents, which are decoded when their frames are wanted. */
  #videos(
    latents: Tensor,
    { job, seeds, watch }: { job: Job; seeds: readonly Seed[]; watch: Stopwatch },
  ): GeneratedVideo[] {
    const { width, height, fps } = job;
    const count = latents.size(0);
    const frameCount = this.#frameCount(job);
    return Array.from({ length: count }, (_, index) =>
      new GeneratedVideo({
        width,
        height,
        fps,
        frameCount,
        metadata: this.#metadata(job, { seeds, index, videos: count }),
        decode: (signal) => this.#frames(latents.slice(0, index, index + 1).squeeze(0), { job, signal, watch }),
      }));
  }

  /** As many as the VAE makes of the latents: of an even number of latent frames it makes some more than were asked for. */
  #frameCount({ numFrames }: Job): number {
    const { temporalFactor } = this.#functions.facts;
    const frames = (numFrames - 1) / temporalFactor + 1;
    return frames % 2 === 1 ? numFrames : frames * temporalFactor;
  }

  /** The frames of a video's latents, (frames, channels, rows, columns). */
  async *#frames(
    latents: Tensor,
    { job, signal, watch }: { job: Job; signal: AbortSignal | undefined; watch: Stopwatch },
  ): AsyncGenerator<Image, void> {
    const { temporalFactor } = this.#functions.facts;
    // Frames that only filled the transformer's tokens stand first.
    const filling = latents.size(0) - ((job.numFrames - 1) / temporalFactor + 1);
    const either = [signal, job.options.signal].filter((s) => s !== undefined);
    const batches = this.#functions.decodeFrames(latents.slice(0, filling), {
      memoryBudget: job.options.memoryBudget,
      signal: either.length > 1 ? AbortSignal.any(either) : either[0],
    });
    for (;;) {
      const { done, value } = await watch.time("decoding", () => batches.next());
      if (done) return;
      yield* imagesOf(value);
    }
  }

  /** The middle frame of clean latents, from the means of 2 by 2: a small part of the work. */
  async #preview(
    clean: Tensor,
    { job, signal }: { job: Job; signal: AbortSignal | undefined },
  ): Promise<Image> {
    const { dtype, device } = this.#parts;
    const [videos, frames, channels, rows, columns] = clean.shape as [number, number, number, number, number];
    const middle = Math.floor(frames / 2);
    // Latents of tokens of one row may be of an odd number.
    const shrink = rows % 2 === 0 && columns % 2 === 0 ? 2 : 1;
    const [height, width] = [rows / shrink, columns / shrink];
    const small = clean.slice(1, middle, middle + 1)
      .reshape(videos, channels, height, shrink, width, shrink).permute(0, 1, 2, 4, 3, 5)
      .reshape(videos, channels, height, width, shrink * shrink).mean().cast(dtype);
    const [latents] = await realize([small.reshape(videos, 1, channels, height, width)], { device });
    const images: Image[] = [];
    for (let video = 0; video < videos; video++) {
      const { memoryBudget } = job.options;
      const one = latents!.slice(0, video, video + 1).squeeze(0);
      for await (const frames of this.#functions.decodeFrames(one, { memoryBudget, signal })) {
        images.push(...imagesOf(frames));
      }
    }
    return Image.grid(images);
  }

  #shapeOf(job: Job): CogVideoXShape {
    const { prompts, options, height, width, numFrames, steps, copies, maxSequenceLength, guided } = job;
    return {
      prompts: prompts?.length ?? options.promptEmbeds!.size(0),
      numVideosPerPrompt: copies,
      height,
      width,
      numFrames,
      numInferenceSteps: steps,
      maxSequenceLength: options.promptEmbeds?.size(1) ?? maxSequenceLength,
      guided,
    };
  }

  /** The functions that a job calls before it decodes, with arguments of the shapes that they get: they have no values. */
  #uses(job: Job): Use[] {
    const { dtype, scheduler } = this.#parts;
    const { t5, step, guidedStep, facts } = this.#functions;
    const { prompts, maxSequenceLength: textTokens } = this.#shapeOf(job);
    const uses: Use[] = [];
    if (job.prompts && t5) {
      uses.push(useOf("text_encoder", t5, { inputIds: placeholder([prompts, textTokens], "i32") }));
    }
    const promptEmbeds = placeholder([prompts, textTokens, facts.textEmbedDim], dtype);
    const latents = placeholder([prompts * job.copies, ...this.#latentShape(job)], dtype);
    const run = this.#schedule(job);
    const looksBack = scheduler instanceof CogVideoXDPMScheduler;
    const inputs = {
      ...this.#fixed(promptEmbeds, run),
      latents,
      row: placeholder([1], "i32"),
      coefficients: tensor(run.coefficients(0)),
      ...(looksBack && { previous: placeholder(latents.shape, "f32"), noise: placeholder(latents.shape, dtype) }),
    };
    uses.push(
      job.guided
        ? useOf("transformer", guidedStep, {
          ...inputs,
          negativePromptEmbeds: promptEmbeds,
          guidanceScale: placeholder([1], "f32"),
        })
        : useOf("transformer", step, inputs),
    );
    return uses;
  }

  /** The job of a call that is planned for. */
  #jobOf({ prompts = 1, ...options }: CogVideoXRun): Job {
    checkCount("prompts", prompts, { min: 1 });
    const { facts } = this.#functions;
    if (facts.reads) return this.#check(Array.from({ length: prompts }, () => ""), options);
    // Without a text encoder a call brings embeddings.
    const { maxSequenceLength = facts.maxTextSeqLength } = options;
    const promptEmbeds = placeholder([prompts, maxSequenceLength, facts.textEmbedDim], this.#parts.dtype);
    return this.#check(undefined, { ...options, promptEmbeds, negativePromptEmbeds: promptEmbeds });
  }

  /** What compiling the pipeline takes to know of it. */
  compileTarget(functions: RecordedCogVideoX): CompileTarget<CogVideoXRun> {
    const { device } = this.#parts;
    return {
      device,
      choose: (choices, options) => functions.choose(choices, options),
      uses: (run, { vae }) => {
        const job = this.#jobOf(run);
        const uses = this.#uses(job).map((use) => ({ ...use, tuned: true }));
        return [...uses, ...functions.decodeUses(this.#decodeShape(job)).map((use) => ({ ...use, tuned: vae }))];
      },
      describe: (runs) => describeCogVideoX(this.#parts, functions, runs.map((run) => this.#shapeOf(this.#jobOf(run)))),
    };
  }

  /** How each part is quantized. */
  get quantization(): string {
    return this.#functions.quantization;
  }

  #decodeShape({ height, width, numFrames, options: { memoryBudget } }: Job) {
    return { height, width, numFrames, memoryBudget };
  }

  /** What each model will need for a job. */
  plan(run: CogVideoXRun): MemoryPlan {
    const job = this.#jobOf(run);
    const parameters = (part: string) => this.#functions.parameters(part as CogVideoXPart);
    const needs = needsOf(this.#uses(job), parameters);
    const { weights, arena, caches, frames } = this.#functions.planDecode(this.#decodeShape(job));
    needs.push({
      phase: "decoding",
      part: "vae",
      parameters: parameters("vae"),
      weightBytes: weights,
      workBytes: arena,
      valueBytes: caches + frames,
    });
    return memoryPlan(needs);
  }

  async encodePrompt(
    prompt: string | readonly string[],
    options: Pick<CogVideoXOptions, "maxSequenceLength" | "signal">,
  ): Promise<Tensor> {
    return await this.#embed(this.#check(prompt, options));
  }

  prepareLatents(options: Parameters<CogVideoXPipeline["prepareLatents"]>[0]): Tensor {
    const { seed, count = typeof seed === "object" ? seed.length : 1, ...size } = options;
    checkCount("count", count, { min: 1 });
    const { dtype } = this.#parts;
    const shape = this.#latentShape(this.#jobOf(size));
    const noise = new Noise(seed, { count, what: "videos" });
    return tensor(noise.draw(shape, dtype), { shape: [count, ...shape], dtype });
  }

  /** What a video's file says: how it was made. */
  #metadata(
    job: Job,
    { seeds, index, videos }: { seeds: readonly Seed[]; index: number; videos: number },
  ): Record<string, string> {
    const { options, prompts, copies } = job;
    const { model, dtype, scheduler } = this.#parts;
    const { negativePrompt, guidanceScale = DEFAULT_GUIDANCE, useDynamicCfg = false } = options;
    const seed = seeds[index];
    return settingsToMetadata({
      model,
      ...(prompts && { prompt: textOf(prompts, index, copies) }),
      ...(job.guided && negativePrompt !== undefined && {
        negativePrompt: textOf(promptList(negativePrompt, "negativePrompt"), index, copies),
      }),
      ...(seed !== undefined && { seed }),
      scheduler: schedulerClass(scheduler),
      numInferenceSteps: job.steps,
      guidanceScale,
      ...(useDynamicCfg && { useDynamicCfg }),
      width: job.width,
      height: job.height,
      numFrames: job.numFrames,
      fps: job.fps,
      maxSequenceLength: job.maxSequenceLength,
      dtype,
      ...(this.quantization !== "" && { quantization: this.quantization }),
      ...(!Array.isArray(options.seed) && videos > 1 && { batchSize: videos, index }),
    });
  }
}

const DEFAULT_GUIDANCE = 6;
const DEFAULT_STEPS = 50;
const MAX_FPS = 240;
/** What T5 takes, as far as its tokenizer knows. */
const MAX_TOKENS = 512;

/** Checks a number of frames: the first one, and then as many as become a frame of latents, several times. */
function checkFrames(numFrames: number, factor: number): void {
  if (Number.isSafeInteger(numFrames) && numFrames > 0 && (numFrames - 1) % factor === 0) return;
  const near = Math.max(0, Math.round(((Number.isFinite(numFrames) ? numFrames : 1) - 1) / factor)) * factor + 1;
  throw new RangeError(
    `Cannot make a video of ${numFrames} frames: the model takes ${factor}k + 1 of them, such as ${near}`,
  );
}

/** Decoded frames of one video as pictures. */
function* imagesOf({ shape, data }: VideoFrames): Generator<Image> {
  const [, , height, width, channels] = shape;
  const size = height * width * channels;
  for (let at = 0; at < data.length; at += size) {
    yield Image.fromValues(data.subarray(at, at + size), { width, height });
  }
}

/** A number to the fifth, exactly rounded: the cosine of what guidance makes of it has no room for more. */
function fifthPower(x: number): number {
  let exponent = 0;
  let whole = x;
  for (; !Number.isInteger(whole); exponent++) whole *= 2;
  return Number(BigInt(whole) ** 5n) / 2 ** (5 * exponent);
}
