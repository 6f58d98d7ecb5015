/**
 * Flux.1-dev at its real configuration with weights that the device makes itself, and a small Flux of the same form.
 *
 * @module
 */

import { fileURLToPath } from "node:url";
import { FluxPipeline } from "../../lib/pipelines/flux.ts";
import type { FloatDtype } from "../../lib/graph/dtypes.ts";
import { sizeOf } from "../../lib/graph/ops.ts";
import type { Module } from "../../lib/nn/module.ts";
import type { Device, DeviceName } from "../../lib/tensor/device.ts";
import { Generator } from "../../lib/tensor/random.ts";
import { fromSource } from "../../lib/tensor/source.ts";
import type { Tensor } from "../../lib/tensor/tensor.ts";

const here = (path: string) => fileURLToPath(new URL(path, import.meta.url));

/** The fields of a model's configuration. */
type Fields = Readonly<Record<string, unknown>>;

/** A Flux, and the call of it that is measured. */
export interface FluxSize {
  /** What it is called: its folder, its column in tables. */
  readonly name: string;
  /** The fields of its models' configurations, by folder. */
  readonly configs: () => Promise<Readonly<Record<string, Fields>>>;
  /** The call. */
  readonly run: {
    readonly height: number;
    readonly width: number;
    readonly maxSequenceLength: number;
    readonly numInferenceSteps: number;
  };
}

/** What each model's configuration says of its class. */
const CLASSES: Readonly<Record<string, Fields>> = {
  transformer: { _class_name: "FluxTransformer2DModel" },
  vae: { _class_name: "AutoencoderKL" },
  text_encoder: { architectures: ["CLIPTextModel"], model_type: "clip_text_model" },
  text_encoder_2: { architectures: ["T5EncoderModel"], model_type: "t5" },
};

/** The manifests of the published models, by folder. */
const MANIFESTS: Readonly<Record<string, string>> = {
  transformer: "flux.1-dev.transformer",
  vae: "flux.1.vae",
  text_encoder: "flux.1.text_encoder",
  text_encoder_2: "flux.1.text_encoder_2",
};

/** Flux.1-dev, with the call that it is published with. */
export const FLUX_DEV: FluxSize = {
  name: "flux-dev",
  configs: async () => {
    const configs: Record<string, Fields> = {};
    for (const [part, manifest] of Object.entries(MANIFESTS)) {
      const text = await Deno.readTextFile(here(`../../tests/fixtures/manifests/${manifest}.json`));
      configs[part] = (JSON.parse(text) as { config: Fields }).config;
    }
    return configs;
  },
  run: { height: 1024, width: 1024, maxSequenceLength: 512, numInferenceSteps: 28 },
};

/** A Flux of one block of each kind, for a device that is emulated. */
export const FLUX_SMALL: FluxSize = {
  name: "flux-small",
  configs: () =>
    Promise.resolve({
      transformer: {
        attention_head_dim: 64,
        axes_dims_rope: [16, 24, 24],
        guidance_embeds: true,
        in_channels: 16,
        joint_attention_dim: 64,
        num_attention_heads: 2,
        num_layers: 1,
        num_single_layers: 1,
        pooled_projection_dim: 64,
      },
      vae: {
        block_out_channels: [16, 16],
        down_block_types: ["DownEncoderBlock2D", "DownEncoderBlock2D"],
        latent_channels: 4,
        layers_per_block: 1,
        norm_num_groups: 8,
        sample_size: 32,
        scaling_factor: 0.3611,
        shift_factor: 0.1159,
        up_block_types: ["UpDecoderBlock2D", "UpDecoderBlock2D"],
        use_post_quant_conv: false,
        use_quant_conv: false,
      },
      text_encoder: {
        eos_token_id: 1,
        hidden_size: 64,
        intermediate_size: 128,
        max_position_embeddings: 77,
        num_attention_heads: 1,
        num_hidden_layers: 1,
        vocab_size: 704,
      },
      text_encoder_2: {
        d_ff: 128,
        d_kv: 32,
        d_model: 64,
        feed_forward_proj: "gated-gelu",
        num_heads: 2,
        num_layers: 1,
        vocab_size: 128,
      },
    }),
  run: { height: 32, width: 32, maxSequenceLength: 16, numInferenceSteps: 2 },
};

/** Where what is not a model's weights comes from: tokenizers, whose ids any table of at least their size has. */
const DEMO = here("../../models/shapes-flux");

/**
 * Writes a Flux's folder in diffusers' layout, without weights.
 *
 * @param folder The folder, which is made
 * @param size Which Flux
 */
export async function writeFlux(folder: string, size: FluxSize): Promise<void> {
  for (const [part, fields] of Object.entries(await size.configs())) {
    await Deno.mkdir(`${folder}/${part}`, { recursive: true });
    await Deno.writeTextFile(`${folder}/${part}/config.json`, JSON.stringify({ ...fields, ...CLASSES[part] }));
  }
  for (const part of ["scheduler", "tokenizer", "tokenizer_2"]) {
    await Deno.mkdir(`${folder}/${part}`, { recursive: true });
    for await (const { name } of Deno.readDir(`${DEMO}/${part}`)) {
      await Deno.copyFile(`${DEMO}/${part}/${name}`, `${folder}/${part}/${name}`);
    }
  }
  await Deno.copyFile(`${DEMO}/model_index.json`, `${folder}/model_index.json`);
}

/**
 * Loads a Flux that {@linkcode writeFlux} wrote; its weights are made where it runs, when they are first needed.
 *
 * @param folder The folder
 * @param options Where, and what activations are computed in
 * @returns The pipeline
 */
export async function loadRandomFlux(
  folder: string,
  options: { device: Device | DeviceName; dtype: FloatDtype },
): Promise<FluxPipeline> {
  const pipe = await FluxPipeline.load(folder, { ...options, weights: false });
  const generator = new Generator(7);
  for (const model of [pipe.textEncoder, pipe.textEncoder2, pipe.transformer, pipe.vae]) {
    if (model) fillOnDevice(model, generator);
  }
  return pipe;
}

/** Gives every parameter random values: norms about one, biases about zero, weights that keep what they multiply. */
function fillOnDevice(model: Module, generator: Generator): void {
  for (const [name, parameter] of model.namedParameters()) {
    const { shape } = parameter;
    const isNorm = shape.length === 1 && name.endsWith("weight");
    const scale = shape.length === 1 ? 0.02 : sizeOf(shape.slice(1)) ** -0.5;
    const values = randomOnDevice(shape, generator).mul(scale);
    parameter.tensor = (isNorm ? values.add(1) : values).cast("bf16");
  }
}

/**
 * Numbers of size one that look random and are not alike: the sines of products of two short lists, so that no more
 * than those lists goes to the device.
 */
function randomOnDevice(shape: readonly number[], generator: Generator): Tensor {
  const rows = shape.length === 1 ? 1 : shape[0]!;
  const columns = sizeOf(shape) / rows;
  const list = (count: number, [y, x]: readonly [number, number]) => {
    // Angles of up to a few thousand turns, whose sines single precision still tells apart.
    const values = Float32Array.from(generator.randn([count]), (value) => 40 * value);
    return fromSource({ kind: "host", bytes: new Uint8Array(values.buffer) }, { shape: [y, x], dtype: "f32" });
  };
  const products = list(rows, [rows, 1]).mul(list(columns, [1, columns]));
  return products.sin().mul(Math.SQRT2).reshape(...shape);
}
