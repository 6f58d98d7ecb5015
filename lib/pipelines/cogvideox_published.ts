/**
 * The published checkpoints of CogVideoX: what they are made of, and what they need.
 *
 * @module
 */

import { AutoencoderKLCogVideoX } from "../models/autoencoder_kl_cogvideox.ts";
import { CogVideoXTransformer3DModel } from "../models/cogvideox_transformer_3d_model.ts";
import { ModelConfig } from "../models/config.ts";
import { T5EncoderModel } from "../models/t5_encoder_model.ts";
import { CogVideoXDDIMScheduler } from "../schedulers/ddim_cogvideox.ts";
import { Device } from "../tensor/device.ts";
import { RecordedCogVideoX } from "./cogvideox_functions.ts";
import { planCogVideoX } from "./cogvideox.ts";
import type { FloatDtype } from "../graph/dtypes.ts";
import type { MemoryPlan } from "./memory.ts";

/** A published checkpoint. */
export interface PublishedCogVideoX {
  /** Its id on the hub. */
  readonly id: string;
  /** Fields of the transformer's configuration that are not diffusers' defaults. */
  readonly transformer: Readonly<Record<string, unknown>>;
  /** The bytes of a number in its files. */
  readonly bytesPerNumber: number;
  /** What it was trained to make. */
  readonly video: { readonly height: number; readonly width: number; readonly numFrames: number };
}

const FIVE_BILLION = { num_attention_heads: 48, num_layers: 42, use_rotary_positional_embeddings: true };

/** The published checkpoints that make videos from prompts. */
export const PUBLISHED_COGVIDEOX: readonly PublishedCogVideoX[] = [
  {
    id: "THUDM/CogVideoX-2b",
    transformer: {},
    bytesPerNumber: 2,
    video: { height: 480, width: 720, numFrames: 49 },
  },
  {
    id: "THUDM/CogVideoX-5b",
    transformer: FIVE_BILLION,
    bytesPerNumber: 2,
    video: { height: 480, width: 720, numFrames: 49 },
  },
  {
    id: "THUDM/CogVideoX1.5-5B",
    transformer: {
      ...FIVE_BILLION,
      patch_size_t: 2,
      patch_bias: false,
      sample_height: 300,
      sample_width: 300,
      sample_frames: 81,
    },
    bytesPerNumber: 2,
    video: { height: 768, width: 1360, numFrames: 81 },
  },
];

/** T5 v1.1 XXL, whose encoder reads the prompts of all of them. */
const T5_XXL = {
  architectures: ["T5EncoderModel"],
  d_ff: 10240,
  d_kv: 64,
  d_model: 4096,
  feed_forward_proj: "gated-gelu",
  num_heads: 64,
  num_layers: 24,
  vocab_size: 32128,
};

/** What a published checkpoint needs. */
export interface PublishedNeeds {
  /** The checkpoint. */
  readonly id: string;
  /** How many numbers its models were trained on. */
  readonly parameters: number;
  /** Bytes of its files. */
  readonly diskBytes: number;
  /** Bytes of memory, by model and by phase. */
  readonly memory: MemoryPlan;
}

/**
 * What a published checkpoint needs on disk, and in memory for a video as it was trained to make: from its
 * configuration alone, nothing is downloaded.
 *
 * @param published The checkpoint
 * @param options The type to compute in; the most bytes that decoding may take
 * @returns Bytes
 */
export async function needsOfPublished(
  published: PublishedCogVideoX,
  options: { dtype?: FloatDtype; memoryBudget?: number | undefined } = {},
): Promise<PublishedNeeds> {
  const { id, bytesPerNumber, video } = published;
  const { dtype = "bf16", memoryBudget } = options;
  const config = (fields: Readonly<Record<string, unknown>>) => new ModelConfig(fields, id);
  const transformer = new CogVideoXTransformer3DModel(config(published.transformer));
  const vae = new AutoencoderKLCogVideoX(config({}));
  const textEncoder = new T5EncoderModel(config(T5_XXL));
  for (const model of [transformer, vae, textEncoder]) model.dtype = dtype;
  const device = await Device.default();
  const scheduler = new CogVideoXDDIMScheduler();
  const functions = new RecordedCogVideoX({ device, dtype, transformer, vae, textEncoder, scheduler });
  const parameters = [transformer, vae, textEncoder].reduce((sum, model) => sum + model.parameterCount(), 0);
  return {
    id,
    parameters,
    diskBytes: bytesPerNumber * parameters,
    memory: planCogVideoX({ model: id, device, dtype, scheduler }, functions, { ...video, memoryBudget }),
  };
}
