/**
 * The functions over tensors that a CogVideoX pipeline calls, and the little that it knows of its models besides.
 *
 * @module
 */

import { ConfigError } from "../errors.ts";
import type { FloatDtype } from "../graph/dtypes.ts";
import type { AutoencoderKLCogVideoX, DecodePlan, DecodeShape } from "../models/autoencoder_kl_cogvideox.ts";
import type { CogVideoXTransformer3DModel } from "../models/cogvideox_transformer_3d_model.ts";
import type { VideoFrames } from "../models/frame_tiles.ts";
import type { T5EncoderModel } from "../models/t5_encoder_model.ts";
import type { Model } from "../nn/module.ts";
import { describeModels } from "../quantize/describe.ts";
import type { Device } from "../tensor/device.ts";
import { type CompiledFunction, compileFunction, type FunctionMaker, type KernelChoices } from "../tensor/function.ts";
import { concat, embedding, type Tensor } from "../tensor/tensor.ts";
import { CogVideoXDDIMScheduler } from "../schedulers/ddim_cogvideox.ts";
import { CogVideoXDPMScheduler } from "../schedulers/dpm_cogvideox.ts";
import { type Use, useOf } from "./memory.ts";
import { repeatRows } from "./run.ts";
import type { T5 } from "./text.ts";

/** The arguments of a step's program that are the same at every step: what follows from them is computed once a run. */
export type FixedInputs = {
  /** (prompts, text tokens, size). */
  promptEmbeds: Tensor;
  /** Of the whole run, (steps). */
  timesteps: Tensor;
};

/** The arguments that are not. */
export type VaryingInputs = {
  /** (videos, frames, channels, rows, columns). */
  latents: Tensor;
  /** The number of this step, (1). */
  row: Tensor;
  /** The numbers of the scheduler's step. */
  coefficients: Tensor;
  /** What the last step took for the clean latents, f32; of a scheduler that looks back. */
  previous?: Tensor;
  /** As the latents; of a scheduler that looks back. */
  noise?: Tensor;
};

/** The arguments of a step. */
export type StepInputs = FixedInputs & VaryingInputs;

/** The arguments of a step with classifier-free guidance. */
export type GuidedStepInputs = StepInputs & {
  negativePromptEmbeds: Tensor;
  /** (1). */
  guidanceScale: Tensor;
};

/** What a step gives: the latents, and what it takes for the clean ones. */
export type StepResult = { latents: Tensor; clean: Tensor };

/** A step. */
export type Step = CompiledFunction<StepInputs, StepResult>;
/** The same with guidance. */
export type GuidedStep = CompiledFunction<GuidedStepInputs, StepResult>;

/** What is known of the models. */
export interface CogVideoXFacts {
  /** Channels of the latents. */
  readonly channels: number;
  /** The size of T5's embeddings. */
  readonly textEmbedDim: number;
  /** The text tokens that the transformer was trained on. */
  readonly maxTextSeqLength: number;
  /** Whether it takes no other number of them. */
  readonly fixedText: boolean;
  /** Rows and columns of latents in a token. */
  readonly patchSize: number;
  /** Frames of latents in a token. */
  readonly patchSizeT: number;
  /** Pixels a latent, along a side. */
  readonly scaleFactor: number;
  /** Frames a latent frame. */
  readonly temporalFactor: number;
  /** Rows of latents by default. */
  readonly sampleHeight: number;
  /** Columns of latents by default. */
  readonly sampleWidth: number;
  /** Frames of a video by default. */
  readonly sampleFrames: number;
  /** Frames a second by default. */
  readonly fps: number;
  /** Whether there is a text encoder. */
  readonly reads: boolean;
}

/** The folders of models in a checkpoint, in the order in which they run. */
export const COGVIDEOX_PARTS = ["text_encoder", "transformer", "vae"] as const;

/** The folder of a model. */
export type CogVideoXPart = typeof COGVIDEOX_PARTS[number];

/** What the shapes of a call follow from. */
export interface CogVideoXShape {
  /** How many prompts there are. */
  readonly prompts: number;
  /** Videos of each. */
  readonly numVideosPerPrompt: number;
  /** Rows of pixels. */
  readonly height: number;
  /** Pixels in a row. */
  readonly width: number;
  /** Frames. */
  readonly numFrames: number;
  /** The steps. */
  readonly numInferenceSteps: number;
  /** T5's tokens. */
  readonly maxSequenceLength: number;
  /** Whether there is classifier-free guidance. */
  readonly guided: boolean;
}

/** How latents are decoded. */
export interface DecodeCall {
  /** The most bytes that it may take, weights included. */
  readonly memoryBudget: number | undefined;
  readonly signal: AbortSignal | undefined;
}

/** What a pipeline runs on. */
export interface CogVideoXFunctions {
  /** What is known of the models. */
  readonly facts: CogVideoXFacts;
  /** How each part is quantized: `transformer: 310 int8dq, 6 float; vae: 34 int8wo`. */
  readonly quantization: string;
  /** T5, where there is one. */
  readonly t5: T5 | undefined;
  /** A step. */
  readonly step: Step;
  /** A step with guidance. */
  readonly guidedStep: GuidedStep;
  /** Frames of one video from its last latents, (frames, channels, rows, columns), a few at a time. */
  decodeFrames(latents: Tensor, call: DecodeCall): AsyncGenerator<VideoFrames, void>;
  /** What decoding a video takes. */
  planDecode(shape: Omit<DecodeShape, "batch">): DecodePlan;
  /** How many numbers a model was trained on. */
  parameters(part: CogVideoXPart): number;
  /** Refuses calls that there are no functions for. */
  admit(shape: CogVideoXShape): void;
}

/** A scheduler of CogVideoX's. */
export type AnyCogVideoXScheduler = CogVideoXDDIMScheduler | CogVideoXDPMScheduler;

/** The models that functions are recorded from. */
export interface CogVideoXModels {
  readonly device: Device;
  readonly dtype: FloatDtype;
  readonly transformer: CogVideoXTransformer3DModel;
  readonly vae: AutoencoderKLCogVideoX;
  readonly textEncoder: T5EncoderModel | undefined;
  readonly scheduler: AnyCogVideoXScheduler;
}

/** Functions that are recorded from models. */
export class RecordedCogVideoX implements CogVideoXFunctions {
  readonly t5: T5 | undefined;
  readonly step: Step;
  readonly guidedStep: GuidedStep;
  readonly #models: CogVideoXModels;

  /** Functions of models; another maker of functions can look at what they record and compute. */
  constructor(models: CogVideoXModels, make: FunctionMaker = compileFunction) {
    this.#models = models;
    const { device, textEncoder } = models;
    const varying = ["latents", "row", "coefficients", "previous", "noise"] as const;
    this.t5 = textEncoder && make((inputs) => ({ embeds: textEncoder.forward(inputs).lastHiddenState }), {
      device,
      name: "text_encoder",
    });
    this.step = make((inputs: StepInputs) => this.#recordStep(inputs), { device, name: "transformer", varying });
    this.guidedStep = make((inputs: GuidedStepInputs) => this.#recordGuidedStep(inputs), {
      device,
      name: "transformer",
      varying: [...varying, "guidanceScale"],
    });
  }

  get facts(): CogVideoXFacts {
    const { transformer, vae, textEncoder } = this.#models;
    const { config } = transformer;
    return {
      channels: config.inChannels,
      textEmbedDim: config.textEmbedDim,
      maxTextSeqLength: config.maxTextSeqLength,
      fixedText: config.useLearnedPositionalEmbeddings,
      patchSize: config.patchSize,
      patchSizeT: config.patchSizeT ?? 1,
      scaleFactor: vae.scaleFactor,
      temporalFactor: vae.config.temporalCompressionRatio,
      sampleHeight: config.sampleHeight,
      sampleWidth: config.sampleWidth,
      sampleFrames: config.sampleFrames,
      fps: config.patchSizeT === undefined ? 8 : 16,
      reads: textEncoder !== undefined,
    };
  }

  #model(part: CogVideoXPart): Model | undefined {
    const { transformer, vae, textEncoder } = this.#models;
    return { transformer, vae, text_encoder: textEncoder }[part];
  }

  get quantization(): string {
    return describeModels(Object.fromEntries(COGVIDEOX_PARTS.map((part) => [part, this.#model(part)])));
  }

  parameters(part: CogVideoXPart): number {
    return this.#model(part)?.parameterCount() ?? 0;
  }

  /** What comes is recorded. */
  admit(): void {}

  /** Has kernels chosen: of the text encoder and the transformer, and of the decoder where they are told. */
  choose(choices: KernelChoices, { vae }: { vae: boolean }): void {
    for (const fn of [this.t5, this.step, this.guidedStep]) fn?.choose(choices);
    if (!vae) return;
    this.#models.vae.choose(choices, this.#models);
  }

  /** The prediction, and the scheduler's step. */
  #recordStep(inputs: StepInputs): StepResult {
    return this.#take(inputs, this.#predict(inputs));
  }

  /** Both predictions as one batch, the negative one first, and a step along what lies beyond the positive one. */
  #recordGuidedStep(inputs: GuidedStepInputs): StepResult {
    const { latents, promptEmbeds, negativePromptEmbeds, guidanceScale } = inputs;
    const copies = latents.size(0) / promptEmbeds.size(0);
    const both = this.#predict({
      ...inputs,
      latents: concat([latents, latents], 0),
      promptEmbeds: concat([repeatRows(negativePromptEmbeds, copies), repeatRows(promptEmbeds, copies)], 0),
    });
    const [without, wanted] = both.chunk(2, 0) as [Tensor, Tensor];
    return this.#take(inputs, without.add(guidanceScale.mul(wanted.sub(without))));
  }

  /** In f32. */
  #predict({ latents, promptEmbeds, timesteps, row }: StepInputs): Tensor {
    const { transformer } = this.#models;
    const [batch, frames, , height, width] = latents.shape as [number, number, number, number, number];
    return transformer.forward({
      hiddenStates: latents,
      encoderHiddenStates: repeatRows(promptEmbeds, batch / promptEmbeds.size(0)),
      // The conditions of all steps are one table, which is computed once a run; a step selects its row.
      temb: embedding(row, transformer.condition({ timestep: timesteps })),
      imageRotaryEmb: transformer.rotaryEmbedding({ frames, height, width }),
    }).cast("f32");
  }

  #take({ latents: sample, coefficients, previous, noise }: StepInputs, modelOutput: Tensor): StepResult {
    const { scheduler } = this.#models;
    const step = { modelOutput, sample, coefficients };
    const { prevSample, predOriginalSample } = scheduler instanceof CogVideoXDPMScheduler
      ? scheduler.record({ ...step, oldPredOriginalSample: previous!, noise: noise! })
      : scheduler.record(step);
    return { latents: prevSample, clean: predOriginalSample };
  }

  decodeFrames(latents: Tensor, call: DecodeCall): AsyncGenerator<VideoFrames, void> {
    return decodeLatents(this.#models, latents, call);
  }

  planDecode(shape: Omit<DecodeShape, "batch">): DecodePlan {
    return this.#models.vae.planDecode(shape);
  }

  /** The calls that decoding a video takes. */
  decodeUses(shape: Omit<DecodeShape, "batch">): Use[] {
    const { vae, device } = this.#models;
    return vae.decodeCalls(shape, { device }).map(({ fn, inputs }) => useOf("vae", fn, inputs));
  }

  /** What a file says of the VAE, which cuts and joins without weights. */
  get vaeState(): Readonly<Record<string, unknown>> {
    return this.#models.vae.state;
  }
}

/**
 * Decodes the latents of one video, a few frames at a time.
 *
 * @param models The VAE, and where it runs
 * @param latents Last latents, (frames, channels, rows, columns)
 * @param call A budget of memory, a signal
 * @returns Frames, about [-1, 1]
 */
export function decodeLatents(
  { vae, device }: Pick<CogVideoXModels, "vae" | "device">,
  latents: Tensor,
  { memoryBudget, signal }: DecodeCall,
): AsyncGenerator<VideoFrames, void> {
  const scaled = latents.unsqueeze(0).permute(0, 2, 1, 3, 4).mul(1 / vae.config.scalingFactor);
  return vae.decodeFrames(scaled, { device, memoryBudget, signal });
}

/** The class of a scheduler. */
export type CogVideoXSchedulerClass = "CogVideoXDDIMScheduler" | "CogVideoXDPMScheduler";

/** The schedulers by class. */
const SCHEDULERS = { CogVideoXDDIMScheduler, CogVideoXDPMScheduler } as const satisfies Record<
  CogVideoXSchedulerClass,
  unknown
>;

/**
 * A scheduler of a class.
 *
 * @param className The class
 * @param config The parsed `scheduler_config.json`
 * @param options The file, for messages
 * @returns The scheduler
 * @throws {ConfigError} If there is no such class, or a field has a wrong type or value
 */
export function schedulerOf(
  className: string | undefined,
  config: unknown,
  options: { file: string },
): AnyCogVideoXScheduler {
  const found = Object.entries(SCHEDULERS).find(([name]) => name === className)?.[1];
  // One class reads what another one wrote.
  if (found) return found.fromConfig({ ...(config as object), _class_name: className }, options);
  throw new ConfigError(
    `Cannot use ${options.file} as it is of a ${className ?? "scheduler of no class"}, and denoise has ` +
      `${Object.keys(SCHEDULERS).join(" and ")} for CogVideoX: use one of those`,
    { file: options.file, key: "_class_name" },
  );
}

/**
 * The class of a scheduler.
 *
 * @param scheduler The scheduler
 * @returns Its name
 */
export function schedulerClass(scheduler: AnyCogVideoXScheduler): CogVideoXSchedulerClass {
  return scheduler instanceof CogVideoXDPMScheduler ? "CogVideoXDPMScheduler" : "CogVideoXDDIMScheduler";
}
