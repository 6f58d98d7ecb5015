/**
 * CogVideoX of the published sizes and of a small one, of random weights: for times and memory, and for how far
 * quantization moves a video.
 *
 * @module
 */

import { writeRandomCogVideoX } from "./random_model.ts";
import { PUBLISHED_COGVIDEOX } from "../lib/pipelines/cogvideox_published.ts";

const publishedAs = (id: string) => PUBLISHED_COGVIDEOX.find((published) => published.id === id)!.transformer;

/** The transformers' and VAEs' configurations by name, as far as they differ from diffusers' defaults. */
export const MODEL_TYPES = {
  "mini": {
    transformer: {
      num_attention_heads: 4,
      attention_head_dim: 64,
      time_embed_dim: 64,
      text_embed_dim: 128,
      num_layers: 4,
      max_text_seq_length: 32,
      use_rotary_positional_embeddings: true,
    },
    vae: { block_out_channels: [32, 32, 64, 64], layers_per_block: 1, norm_num_groups: 8 },
  },
  "2b": { transformer: publishedAs("THUDM/CogVideoX-2b"), vae: {} },
  "5b": { transformer: publishedAs("THUDM/CogVideoX-5b"), vae: {} },
  "1.5-5b": { transformer: publishedAs("THUDM/CogVideoX1.5-5B"), vae: {} },
} as const;

/** Whether a name is one of {@linkcode MODEL_TYPES}. */
export function isModelType(name: string): name is keyof typeof MODEL_TYPES {
  return Object.hasOwn(MODEL_TYPES, name);
}

/**
 * A model of a type in a folder, written where it is not there yet.
 *
 * @param type The type
 * @param options Where models are kept; how many blocks, all where it is 0
 * @returns The folder
 */
export async function randomModelOf(
  type: keyof typeof MODEL_TYPES,
  options: { cache: string; layers: number },
): Promise<string> {
  const { cache, layers } = options;
  const folder = `${cache}/${type}${layers === 0 ? "" : `-${layers}`}`;
  if (await Deno.stat(`${folder}/model_index.json`).then(() => true, () => false)) return folder;
  const { transformer, vae } = MODEL_TYPES[type];
  await writeRandomCogVideoX(folder, {
    transformer: { ...transformer, ...(layers > 0 && { num_layers: layers }) },
    vae,
  });
  return folder;
}
