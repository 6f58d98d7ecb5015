/**
 * Black Forest Labs' own names of Flux's parameters, as their single files have them: q, k and v (and the feed-forward
 * layer of a single block) in one tensor, scale and shift of the last modulation the other way round.
 *
 * @module
 */

import type { Rows } from "../nn/checkpoint.ts";
import type { Checkpoint } from "../tensor/safetensors.ts";

/** Parameters that have another name and nothing else. */
const NAMES: readonly (readonly [RegExp, string])[] = [
  [/^x_embedder\./, "img_in."],
  [/^context_embedder\./, "txt_in."],
  [/^time_text_embed\.timestep_embedder\.linear_1\./, "time_in.in_layer."],
  [/^time_text_embed\.timestep_embedder\.linear_2\./, "time_in.out_layer."],
  [/^time_text_embed\.guidance_embedder\.linear_1\./, "guidance_in.in_layer."],
  [/^time_text_embed\.guidance_embedder\.linear_2\./, "guidance_in.out_layer."],
  [/^time_text_embed\.text_embedder\.linear_1\./, "vector_in.in_layer."],
  [/^time_text_embed\.text_embedder\.linear_2\./, "vector_in.out_layer."],
  [/^proj_out\./, "final_layer.linear."],
  [/^transformer_blocks\.(\d+)\.norm1\.linear\./, "double_blocks.$1.img_mod.lin."],
  [/^transformer_blocks\.(\d+)\.norm1_context\.linear\./, "double_blocks.$1.txt_mod.lin."],
  [/^transformer_blocks\.(\d+)\.attn\.norm_q\.weight/, "double_blocks.$1.img_attn.norm.query_norm.scale"],
  [/^transformer_blocks\.(\d+)\.attn\.norm_k\.weight/, "double_blocks.$1.img_attn.norm.key_norm.scale"],
  [/^transformer_blocks\.(\d+)\.attn\.norm_added_q\.weight/, "double_blocks.$1.txt_attn.norm.query_norm.scale"],
  [/^transformer_blocks\.(\d+)\.attn\.norm_added_k\.weight/, "double_blocks.$1.txt_attn.norm.key_norm.scale"],
  [/^transformer_blocks\.(\d+)\.attn\.to_out\.0\./, "double_blocks.$1.img_attn.proj."],
  [/^transformer_blocks\.(\d+)\.attn\.to_add_out\./, "double_blocks.$1.txt_attn.proj."],
  [/^transformer_blocks\.(\d+)\.ff\.net\.0\.proj\./, "double_blocks.$1.img_mlp.0."],
  [/^transformer_blocks\.(\d+)\.ff\.net\.2\./, "double_blocks.$1.img_mlp.2."],
  [/^transformer_blocks\.(\d+)\.ff_context\.net\.0\.proj\./, "double_blocks.$1.txt_mlp.0."],
  [/^transformer_blocks\.(\d+)\.ff_context\.net\.2\./, "double_blocks.$1.txt_mlp.2."],
  [/^single_transformer_blocks\.(\d+)\.norm\.linear\./, "single_blocks.$1.modulation.lin."],
  [/^single_transformer_blocks\.(\d+)\.proj_out\./, "single_blocks.$1.linear2."],
  [/^single_transformer_blocks\.(\d+)\.attn\.norm_q\.weight/, "single_blocks.$1.norm.query_norm.scale"],
  [/^single_transformer_blocks\.(\d+)\.attn\.norm_k\.weight/, "single_blocks.$1.norm.key_norm.scale"],
];

/** Parameters that are rows of a larger tensor: the tensor, and which of its parts of the hidden size comes first. */
const PARTS: readonly (readonly [RegExp, string, number])[] = [
  [/^transformer_blocks\.(\d+)\.attn\.to_q\./, "double_blocks.$1.img_attn.qkv.", 0],
  [/^transformer_blocks\.(\d+)\.attn\.to_k\./, "double_blocks.$1.img_attn.qkv.", 1],
  [/^transformer_blocks\.(\d+)\.attn\.to_v\./, "double_blocks.$1.img_attn.qkv.", 2],
  [/^transformer_blocks\.(\d+)\.attn\.add_q_proj\./, "double_blocks.$1.txt_attn.qkv.", 0],
  [/^transformer_blocks\.(\d+)\.attn\.add_k_proj\./, "double_blocks.$1.txt_attn.qkv.", 1],
  [/^transformer_blocks\.(\d+)\.attn\.add_v_proj\./, "double_blocks.$1.txt_attn.qkv.", 2],
  [/^single_transformer_blocks\.(\d+)\.attn\.to_q\./, "single_blocks.$1.linear1.", 0],
  [/^single_transformer_blocks\.(\d+)\.attn\.to_k\./, "single_blocks.$1.linear1.", 1],
  [/^single_transformer_blocks\.(\d+)\.attn\.to_v\./, "single_blocks.$1.linear1.", 2],
  [/^single_transformer_blocks\.(\d+)\.proj_mlp\./, "single_blocks.$1.linear1.", 3],
];

/**
 * Whether a checkpoint has Black Forest Labs' names.
 *
 * @param checkpoint The checkpoint.
 * @returns True if it has their first layer.
 */
export function isFluxBfl(checkpoint: Checkpoint): boolean {
  return checkpoint.tensors.has("img_in.weight");
}

/**
 * Where a parameter's values are in Black Forest Labs' file.
 *
 * @param name The parameter's name in diffusers.
 * @param shape Its shape.
 * @param dim The model's hidden size.
 * @returns The rows that make it, in order.
 */
export function fluxBflRows(name: string, shape: readonly number[], dim: number): readonly Rows[] {
  for (const [pattern, target] of NAMES) {
    if (pattern.test(name)) return [{ name: name.replace(pattern, target) }];
  }
  for (const [pattern, target, part] of PARTS) {
    if (pattern.test(name)) return [{ name: name.replace(pattern, target), start: part * dim, count: shape[0]! }];
  }
  const last = name.replace("norm_out.linear.", "final_layer.adaLN_modulation.1.");
  return last === name ? [{ name }] : [{ name: last, start: dim, count: dim }, { name: last, start: 0, count: dim }];
}
