/**
 * Models of random weights in files, for what needs a size and no sense.
 *
 * @module
 */

import { AutoencoderKLCogVideoX } from "../lib/models/autoencoder_kl_cogvideox.ts";
import { CogVideoXTransformer3DModel } from "../lib/models/cogvideox_transformer_3d_model.ts";
import { ModelConfig } from "../lib/models/config.ts";
import type { Model } from "../lib/nn/module.ts";
import { type TensorToWrite, writeSafetensors } from "../lib/tensor/safetensors.ts";

/**
 * Writes a model's configuration, and random bf16 weights; norms multiply by one.
 *
 * @param folder The folder, which is made
 * @param model The model, which needs no values
 */
export async function writeRandomModel(folder: string, model: Model): Promise<void> {
  await Deno.mkdir(folder, { recursive: true });
  const noise = randomBf16(1 << 22);
  const ones = new Uint8Array(Uint16Array.from({ length: 1 << 16 }, () => 0x3f80).buffer);
  const tensors: TensorToWrite[] = [...model.namedParameters()].map(([name, { shape }], i) => {
    const bytes = 2 * shape.reduce((a, b) => a * b, 1);
    const source = shape.length === 1 && name.endsWith("weight") ? ones : noise;
    const data = async function* () {
      for (let at = 0; at < bytes;) {
        // Each tensor starts elsewhere in the noise, so that no two are alike.
        const start = (2 * 4099 * i + at) % source.length;
        const piece = source.subarray(start, Math.min(source.length, start + bytes - at));
        yield piece;
        at += piece.length;
      }
    };
    return { name, dtype: "BF16", shape, data };
  });
  await writeSafetensors(`${folder}/${model.weightsName}.safetensors`, tensors, { metadata: { format: "pt" } });
  await Deno.writeTextFile(`${folder}/config.json`, JSON.stringify(model.configFields));
}

/** Bytes of bf16 numbers around 0, of at most 1/16. */
function randomBf16(count: number): Uint8Array<ArrayBuffer> {
  const bits = new Uint16Array(count);
  let state = 1;
  for (let i = 0; i < count; i++) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    // A sign, an exponent of 2^-12 to 2^-5, and a mantissa.
    bits[i] = (state >>> 31) << 15 | (115 + (state >>> 28 & 7)) << 7 | state >>> 8 & 127;
  }
  return new Uint8Array(bits.buffer);
}

/** What a random CogVideoX is made of. */
export interface RandomCogVideoX {
  /** Fields of the transformer's configuration that are not diffusers' defaults. */
  readonly transformer: Readonly<Record<string, unknown>>;
  /** The same of the VAE. */
  readonly vae: Readonly<Record<string, unknown>>;
  /** The same of the scheduler; its class is CogVideoXDDIMScheduler. */
  readonly scheduler?: Readonly<Record<string, unknown>> | undefined;
  /** Folders of a T5 and of its tokenizer, which are linked; without them prompts are not read. */
  readonly text?: { readonly encoder: string; readonly tokenizer: string } | undefined;
}

/** The noise levels that CogVideoX was trained with. */
const SCHEDULE = {
  _class_name: "CogVideoXDDIMScheduler",
  prediction_type: "v_prediction",
  rescale_betas_zero_snr: true,
  snr_shift_scale: 3,
  timestep_spacing: "trailing",
};

/**
 * Writes a CogVideoX of random weights in diffusers' layout.
 *
 * @param folder The folder, which is made
 * @param parts Its configurations
 */
export async function writeRandomCogVideoX(folder: string, parts: RandomCogVideoX): Promise<void> {
  const { text } = parts;
  const config = (className: string, fields: Readonly<Record<string, unknown>>) =>
    new ModelConfig({ _class_name: className, ...fields }, "config.json");
  await writeRandomModel(
    `${folder}/transformer`,
    new CogVideoXTransformer3DModel(config("CogVideoXTransformer3DModel", parts.transformer)),
  );
  await writeRandomModel(`${folder}/vae`, new AutoencoderKLCogVideoX(config("AutoencoderKLCogVideoX", parts.vae)));
  await Deno.mkdir(`${folder}/scheduler`, { recursive: true });
  await Deno.writeTextFile(
    `${folder}/scheduler/scheduler_config.json`,
    JSON.stringify({ ...SCHEDULE, ...parts.scheduler }),
  );
  if (text) {
    await Deno.symlink(await Deno.realPath(text.encoder), `${folder}/text_encoder`);
    await Deno.symlink(await Deno.realPath(text.tokenizer), `${folder}/tokenizer`);
  }
  const index = {
    _class_name: "CogVideoXPipeline",
    scheduler: ["diffusers", "CogVideoXDDIMScheduler"],
    text_encoder: text ? ["transformers", "T5EncoderModel"] : [null, null],
    tokenizer: text ? ["transformers", "T5TokenizerFast"] : [null, null],
    transformer: ["diffusers", "CogVideoXTransformer3DModel"],
    vae: ["diffusers", "AutoencoderKLCogVideoX"],
  };
  await Deno.writeTextFile(`${folder}/model_index.json`, JSON.stringify(index));
}
