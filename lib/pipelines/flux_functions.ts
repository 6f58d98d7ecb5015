/**
 * The functions over tensors that a Flux pipeline calls, and the little that it knows of its models besides.
 *
 * @module
 */

import type { FloatDtype } from "../graph/dtypes.ts";
import type { AutoencoderKL } from "../models/autoencoder_kl.ts";
import type { CLIPTextModel } from "../models/clip_text_model.ts";
import type { FluxTransformer2DModel } from "../models/flux_transformer_2d_model.ts";
import type { T5EncoderModel } from "../models/t5_encoder_model.ts";
import type { Model } from "../nn/module.ts";
import { describeModels } from "../quantize/describe.ts";
import type { Device } from "../tensor/device.ts";
import { type CompiledFunction, compileFunction, type FunctionMaker, type KernelChoices } from "../tensor/function.ts";
import { concat, embedding, type Tensor } from "../tensor/tensor.ts";
import { repeatRows } from "./run.ts";
import type { T5 } from "./text.ts";

/** The arguments of a step's program that are the same at every step: what follows from them is computed once a run. */
export type FixedInputs = {
  /** (prompts, text tokens, size), (prompts, size). */
  promptEmbeds: Tensor;
  pooledPromptEmbeds: Tensor;
  /** Of the whole run, in [0, 1], (steps). */
  timesteps: Tensor;
  /** (1). */
  guidance: Tensor;
  /** Positions of text and picture tokens, (tokens, 3). */
  textIds: Tensor;
  imageIds: Tensor;
};

/** The arguments that are not. */
export type VaryingInputs = {
  /** Packed, (pictures, tokens, channels). */
  latents: Tensor;
  /** The number of this step, once for each row of the transformer's batch. */
  rows: Tensor;
  /** The change of sigma, (1). */
  stepSize: Tensor;
};

/** The arguments of a step. */
export type StepInputs = FixedInputs & VaryingInputs;

/** The arguments of a step with classifier-free guidance. */
export type GuidedStepInputs = StepInputs & {
  negativePromptEmbeds: Tensor;
  negativePooledPromptEmbeds: Tensor;
  /** (1). */
  trueCfgScale: Tensor;
};

/** CLIP: from ids and the places of the texts' ends. */
export type Clip = CompiledFunction<{ inputIds: Tensor; endPositions: Tensor }, { pooled: Tensor }>;
/** The transformer's prediction of the flow, and a step along it. */
export type Step = CompiledFunction<StepInputs, { latents: Tensor }>;
/** The same with guidance. */
export type GuidedStep = CompiledFunction<GuidedStepInputs, { latents: Tensor }>;
/** From packed latents to pixels, (pictures, height, width, 3) in [0, 1]. */
export type Decoder = CompiledFunction<{ latents: Tensor }, { pixels: Tensor }>;

/** How many times smaller than asked for a picture is. */
export type Shrink = 1 | 2;

/** Which decoder: rows and columns of latents, and how much smaller the picture is. */
export interface DecoderShape {
  /** Rows of latents. */
  readonly rows: number;
  /** Columns of latents. */
  readonly columns: number;
  /** Latents as they are, or the means of 2 by 2. */
  readonly shrink: Shrink;
}

/** What is known of the models. */
export interface FluxFacts {
  /** Channels of packed latents. */
  readonly inChannels: number;
  /** The size of T5's embeddings. */
  readonly jointAttentionDim: number;
  /** The size of CLIP's embedding. */
  readonly pooledProjectionDim: number;
  /** Pixels a latent, along a side. */
  readonly scaleFactor: number;
  /** Pixels along a side by default. */
  readonly sampleSize: number;
  /** Whether the VAE decodes one picture at a time. */
  readonly slicing: boolean;
  /** The most tokens that CLIP takes and the one at which a text ends, where there are text encoders. */
  readonly clip: { readonly maxPositionEmbeddings: number; readonly eosTokenId: number } | undefined;
}

/** The folders of models in a checkpoint, in the order in which they run. */
export const FLUX_PARTS = ["text_encoder", "text_encoder_2", "transformer", "vae"] as const;

/** The folder of a model. */
export type FluxPart = typeof FLUX_PARTS[number];

/** What the shapes of a call follow from. */
export interface FluxShape {
  /** How many prompts there are. */
  readonly prompts: number;
  /** Pictures of each. */
  readonly numImagesPerPrompt: number;
  /** Rows of pixels. */
  readonly height: number;
  /** Pixels in a row. */
  readonly width: number;
  /** The steps. */
  readonly numInferenceSteps: number;
  /** T5's tokens. */
  readonly maxSequenceLength: number;
  /** Whether there is classifier-free guidance. */
  readonly guided: boolean;
}

/** What a pipeline runs on. */
export interface FluxFunctions {
  /** What is known of the models. */
  readonly facts: FluxFacts;
  /** How each part is quantized: `transformer: 110 int8dq, 3 float; vae: 34 int8wo`. */
  readonly quantization: string;
  /** CLIP, where there is one. */
  readonly clip: Clip | undefined;
  /** T5, where there is one. */
  readonly t5: T5 | undefined;
  /** A step. */
  readonly step: Step;
  /** A step with guidance. */
  readonly guidedStep: GuidedStep;
  /** The decoder of latents of a shape. */
  decoder(shape: DecoderShape): Decoder;
  /** How many numbers a model was trained on. */
  parameters(part: FluxPart): number;
  /** Refuses calls that there are no functions for. */
  admit(shape: FluxShape): void;
}

/** The models that functions are recorded from. */
export interface FluxModels {
  readonly device: Device;
  readonly dtype: FloatDtype;
  readonly transformer: FluxTransformer2DModel;
  readonly vae: AutoencoderKL;
  readonly textEncoder: CLIPTextModel | undefined;
  readonly textEncoder2: T5EncoderModel | undefined;
}

/** Functions that are recorded from models. */
export class RecordedFlux implements FluxFunctions {
  readonly clip: Clip | undefined;
  readonly t5: T5 | undefined;
  readonly step: Step;
  readonly guidedStep: GuidedStep;
  readonly #models: FluxModels;
  readonly #decoders = new Map<string, Decoder>();
  #vaeChoices: KernelChoices | undefined;

  /** Functions of models; another maker of functions can look at what they record and compute. */
  constructor(models: FluxModels, make: FunctionMaker = compileFunction) {
    this.#models = models;
    const { device, textEncoder, textEncoder2 } = models;
    const varying = ["latents", "rows", "stepSize"] as const;
    this.clip = textEncoder && make((inputs) => ({ pooled: textEncoder.forward(inputs).poolerOutput }), {
      device,
      name: "text_encoder",
    });
    this.t5 = textEncoder2 && make((inputs) => ({ embeds: textEncoder2.forward(inputs).lastHiddenState }), {
      device,
      name: "text_encoder_2",
    });
    this.step = make((inputs) => this.#recordStep(inputs), { device, name: "transformer", varying });
    this.guidedStep = make((inputs) => this.#recordGuidedStep(inputs), {
      device,
      name: "guided_transformer",
      varying,
    });
  }

  get facts(): FluxFacts {
    const { transformer, vae, textEncoder } = this.#models;
    const { inChannels, jointAttentionDim, pooledProjectionDim } = transformer.config;
    return {
      inChannels,
      jointAttentionDim,
      pooledProjectionDim,
      scaleFactor: vae.scaleFactor,
      sampleSize: vae.config.sampleSize,
      slicing: vae.useSlicing,
      clip: textEncoder && {
        maxPositionEmbeddings: textEncoder.config.maxPositionEmbeddings,
        eosTokenId: textEncoder.config.eosTokenId,
      },
    };
  }

  #model(part: FluxPart): Model | undefined {
    const { transformer, vae, textEncoder, textEncoder2 } = this.#models;
    return { transformer, vae, text_encoder: textEncoder, text_encoder_2: textEncoder2 }[part];
  }

  get quantization(): string {
    return describeModels(Object.fromEntries(FLUX_PARTS.map((part) => [part, this.#model(part)])));
  }

  parameters(part: FluxPart): number {
    return this.#model(part)?.parameterCount() ?? 0;
  }

  /** What comes is recorded. */
  admit(): void {}

  /** Has kernels chosen: of the text encoders and the transformer, and of the decoders where they are told. */
  choose(choices: KernelChoices, { vae }: { vae: boolean }): void {
    for (const fn of [this.clip, this.t5, this.step, this.guidedStep]) fn?.choose(choices);
    if (!vae) return;
    this.#vaeChoices = choices;
    for (const decoder of this.#decoders.values()) decoder.choose(choices);
  }

  /** The transformer's prediction of the flow, and an Euler step along it. */
  #recordStep(inputs: StepInputs): { latents: Tensor } {
    return euler(inputs, this.#velocity(inputs));
  }

  /** Both predictions as one batch, the negative one first, and a step along what lies beyond the positive one. */
  #recordGuidedStep(inputs: GuidedStepInputs): { latents: Tensor } {
    const { latents, promptEmbeds, pooledPromptEmbeds, negativePromptEmbeds, negativePooledPromptEmbeds } = inputs;
    const copies = latents.size(0) / promptEmbeds.size(0);
    const both = this.#velocity({
      ...inputs,
      latents: concat([latents, latents], 0),
      promptEmbeds: concat([repeatRows(negativePromptEmbeds, copies), repeatRows(promptEmbeds, copies)], 0),
      pooledPromptEmbeds: concat([
        repeatRows(negativePooledPromptEmbeds, copies),
        repeatRows(pooledPromptEmbeds, copies),
      ], 0),
    });
    const [without, wanted] = both.chunk(2, 0) as [Tensor, Tensor];
    const scale = inputs.trueCfgScale.cast(both.dtype);
    return euler(inputs, without.add(scale.mul(wanted.sub(without))));
  }

  #velocity(inputs: StepInputs): Tensor {
    const { transformer } = this.#models;
    const { latents, timesteps, guidance, rows, textIds, imageIds } = inputs;
    const batch = latents.size(0);
    const pooledProjections = repeatRows(inputs.pooledPromptEmbeds, batch / inputs.pooledPromptEmbeds.size(0));
    // The condition of all steps is one table, which is computed once a run; a step selects its rows.
    const conditions = transformer.condition({ timestep: timesteps, guidance, pooledProjections });
    return transformer.forward({
      hiddenStates: latents,
      encoderHiddenStates: repeatRows(inputs.promptEmbeds, batch / inputs.promptEmbeds.size(0)),
      temb: embedding(rows, conditions),
      imgIds: imageIds,
      txtIds: textIds,
    });
  }

  decoder(shape: DecoderShape): Decoder {
    const { vae, device } = this.#models;
    const { rows, columns, shrink } = shape;
    const key = `${decoderName(shape)} ${vae.useTiling}`;
    let decoder = this.#decoders.get(key);
    if (!decoder) {
      const { scalingFactor, shiftFactor } = vae.config;
      const channels = this.facts.inChannels / 4;
      // A packed token holds 2 by 2 latents of each channel.
      const unpack = (packed: Tensor) => {
        const [pictures, y, x] = [packed.size(0), rows / 2, columns / 2];
        if (shrink === 2) return packed.reshape(pictures, y, x, channels, 4).mean().permute(0, 3, 1, 2);
        return packed.reshape(pictures, y, x, channels, 2, 2).permute(0, 3, 1, 4, 2, 5)
          .reshape(pictures, channels, rows, columns);
      };
      decoder = compileFunction(({ latents }: { latents: Tensor }) => {
        const sample = vae.decode(unpack(latents).div(scalingFactor).add(shiftFactor)); // (pictures, 3, height, width)
        return { pixels: sample.mul(0.5).add(0.5).cast("f32").permute(0, 2, 3, 1) };
      }, { device, name: "vae" });
      if (this.#vaeChoices) decoder.choose(this.#vaeChoices);
      this.#decoders.set(key, decoder);
    }
    return decoder;
  }
}

/**
 * The name of a decoder in a file.
 *
 * @param shape Which one
 * @returns Its name
 */
export function decoderName({ rows, columns, shrink }: DecoderShape): string {
  return `vae ${rows} ${columns} ${shrink}`;
}

function euler({ latents, stepSize }: StepInputs, velocity: Tensor): { latents: Tensor } {
  // The scheduler adds in f32; the product is rounded to the model's type before, as PyTorch does.
  const change = velocity.cast("f32").mul(stepSize).cast(velocity.dtype).cast("f32");
  return { latents: latents.cast("f32").add(change).cast(latents.dtype) };
}
