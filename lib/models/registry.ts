/**
 * The models by the class names of diffusers and transformers.
 *
 * @module
 */

import { ConfigError } from "../errors.ts";
import type { Model } from "../nn/module.ts";
import { AutoencoderKL } from "./autoencoder_kl.ts";
import { CLIPTextModel } from "./clip_text_model.ts";
import type { ModelConfig } from "./config.ts";
import { FluxTransformer2DModel } from "./flux_transformer_2d_model.ts";
import { T5EncoderModel } from "./t5_encoder_model.ts";

/** A model's class: made from a configuration, loaded from a folder. */
export interface ModelClass {
  /** A model without values. */
  new (config: ModelConfig): Model;
  /** A model with its values. */
  load(folder: string): Promise<Model>;
}

/** The classes by name. */
export const MODELS: Readonly<Record<string, ModelClass>> = {
  AutoencoderKL,
  CLIPTextModel,
  FluxTransformer2DModel,
  T5EncoderModel,
};

/**
 * The class that a configuration names.
 *
 * @param config The configuration.
 * @returns The class; a name that denoise does not have is an error.
 */
export function modelClass(config: ModelConfig): ModelClass {
  const found = Object.hasOwn(MODELS, config.className) ? MODELS[config.className] : undefined;
  if (found) return found;
  throw new ConfigError(
    `${config.file} names the class ${config.className}, which denoise does not have: it has ${
      Object.keys(MODELS).join(", ")
    }`,
    { file: config.file, key: "_class_name" },
  );
}
