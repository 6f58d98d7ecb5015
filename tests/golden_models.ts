import { AutoencoderKL } from "../lib/models/autoencoder_kl.ts";
import { AutoencoderKLCogVideoX } from "../lib/models/autoencoder_kl_cogvideox.ts";
import { CLIPTextModel } from "../lib/models/clip_text_model.ts";
import { CogVideoXTransformer3DModel } from "../lib/models/cogvideox_transformer_3d_model.ts";
import { ModelConfig } from "../lib/models/config.ts";
import { FluxTransformer2DModel } from "../lib/models/flux_transformer_2d_model.ts";
import { T5EncoderModel } from "../lib/models/t5_encoder_model.ts";
import type { Model } from "../lib/nn/module.ts";
import { sizeOf } from "../lib/graph/ops.ts";
import type { Device } from "../lib/tensor/device.ts";
import { realize, toArray } from "../lib/tensor/realize.ts";
import { openSafetensors, readTensor, type SafetensorsFile } from "../lib/tensor/safetensors.ts";
import { tensor } from "../lib/tensor/source.ts";
import type { Tensor } from "../lib/tensor/tensor.ts";

/** One output of one case, as computed. */
export interface Computed {
  /** The golden's key. */
  key: string;
  /** The shape. */
  shape: readonly number[];
  /** The values. */
  data: Float32Array<ArrayBuffer>;
}

/** A case's inputs: floats as f32 tensors, integers as they are. */
interface Case {
  readonly name: string;
  readonly tensor: (argument: string) => Tensor;
  readonly has: (argument: string) => boolean;
  readonly integers: (argument: string) => { ids: Int32Array<ArrayBuffer>; shape: readonly number[] };
}

/** A case's outputs by name. */
type Outputs = Readonly<Record<string, Tensor>>;

/** What runs one class's cases, on a device. */
type Runner = (c: Case, device: Device | undefined) => Outputs | Promise<Outputs>;

const RUNNERS: Readonly<Record<string, (folder: string, checkpoint?: string) => Promise<Runner>>> = {
  FluxTransformer2DModel: async (folder, checkpoint) => {
    const model = await FluxTransformer2DModel.load(folder, { checkpoint });
    return (c) => {
      const temb = model.conditionOfEach({
        timestep: c.tensor("timestep"),
        guidance: c.has("guidance") ? c.tensor("guidance") : undefined,
        pooledProjections: c.tensor("pooled_projections"),
      });
      const sample = model.forward({
        hiddenStates: c.tensor("hidden_states"),
        encoderHiddenStates: c.tensor("encoder_hidden_states"),
        temb,
        imgIds: c.tensor("img_ids"),
        txtIds: c.tensor("txt_ids"),
      });
      return { sample };
    };
  },
  CogVideoXTransformer3DModel: async (folder) => {
    const model = await CogVideoXTransformer3DModel.load(folder);
    return (c) => {
      const optional = (argument: string) => c.has(argument) ? c.tensor(argument) : undefined;
      const [cos, sin] = [optional("rotary_cos"), optional("rotary_sin")];
      const sample = model.forward({
        hiddenStates: c.tensor("hidden_states"),
        encoderHiddenStates: c.tensor("encoder_hidden_states"),
        temb: model.condition({ timestep: c.tensor("timestep"), ofs: optional("ofs") }),
        imageRotaryEmb: cos && sin && { cos, sin },
      });
      return { sample };
    };
  },
  AutoencoderKL: async (folder) => {
    const model = await AutoencoderKL.load(folder);
    return (c) => {
      // A case named "decode_tiled_64" is taken in tiles of 64 pixels.
      const tile = /tiled_(\d+)/.exec(c.name)?.[1];
      if (tile) model.enableTiling({ tileSampleSize: Number(tile) });
      else model.disableTiling();
      if (c.name.startsWith("decode")) return { sample: model.decode(c.tensor("latents")) };
      const { mean, logvar } = model.encode(c.tensor("sample"));
      return { mean, logvar };
    };
  },
  AutoencoderKLCogVideoX: async (folder) => {
    const model = await AutoencoderKLCogVideoX.load(folder);
    return async (c, device) => {
      // A case named "decode_tiled_32" is taken in tiles of 32 pixels, of which a quarter overlaps.
      const tile = /tiled_(\d+)/.exec(c.name)?.[1];
      if (tile) {
        model.enableTiling({
          tileSampleMinHeight: Number(tile),
          tileSampleMinWidth: Number(tile),
          tileOverlapFactorHeight: 0.25,
          tileOverlapFactorWidth: 0.25,
        });
      } else {
        model.disableTiling();
      }
      if (c.name.startsWith("decode")) return { sample: await model.decode(c.tensor("latents"), { device }) };
      const { mean, logvar } = await model.encode(c.tensor("sample"), { device });
      return { mean, logvar };
    };
  },
  CLIPTextModel: async (folder) => {
    const model = await CLIPTextModel.load(folder);
    return (c) => {
      const { ids, shape } = c.integers("input_ids");
      const inputIds = tensor(ids, { shape, dtype: "i32" });
      const endPositions = tensor(
        CLIPTextModel.endPositions(ids, { batch: shape[0]!, eosTokenId: model.config.eosTokenId }),
        { dtype: "i32" },
      );
      const { lastHiddenState, poolerOutput } = model.forward({ inputIds, endPositions });
      return { last_hidden_state: lastHiddenState, pooler_output: poolerOutput };
    };
  },
  T5EncoderModel: async (folder) => {
    const model = await T5EncoderModel.load(folder);
    return (c) => {
      const { ids, shape } = c.integers("input_ids");
      const { lastHiddenState } = model.forward({ inputIds: tensor(ids, { shape, dtype: "i32" }) });
      return { last_hidden_state: lastHiddenState };
    };
  },
};

function caseOf(file: SafetensorsFile, name: string, nudge: number): Case {
  const entry = (argument: string) => `${name}.in.${argument}`;
  const integers = (argument: string) => {
    const { dtype, shape } = file.tensors.get(entry(argument))!;
    const bytes = readTensor(file, entry(argument));
    const ids = dtype === "I64"
      ? Int32Array.from(new BigInt64Array(bytes.buffer), Number)
      : new Int32Array(bytes.buffer, 0, bytes.length / 4);
    return { ids, shape };
  };
  return {
    name,
    has: (argument) => file.tensors.has(entry(argument)),
    integers,
    tensor: (argument) => {
      const { dtype, shape } = file.tensors.get(entry(argument))!;
      if (dtype !== "F32") {
        const { ids } = integers(argument);
        return tensor(Float32Array.from(ids), { shape });
      }
      const values = new Float32Array(readTensor(file, entry(argument)).buffer);
      return tensor(nudge === 0 ? values : values.map((x, i) => x * (1 + (i % 2 === 0 ? nudge : -nudge))), { shape });
    },
  };
}

/**
 * Computes every case of a folder with a model and its reference inputs and outputs.
 *
 * @param folder The folder: `config.json`, weights, `cases.safetensors`.
 * @param options The device; another checkpoint than the folder's; by what part of itself each float input is changed.
 * @returns Each output that the goldens have, by its key.
 */
export async function* computeModelCases(
  folder: string,
  options: { device?: Device; checkpoint?: string; nudge?: number } = {},
): AsyncGenerator<Computed> {
  const { device, checkpoint, nudge = 0 } = options;
  const { className } = await ModelConfig.read(folder);
  const run = await RUNNERS[className]!(folder, checkpoint);
  const file = openSafetensors(`${folder}/cases.safetensors`);
  for (const name of new Set([...file.tensors.keys()].map((key) => key.split(".")[0]!))) {
    const outputs = Object.entries(await run(caseOf(file, name, nudge), device)).filter(([output]) =>
      file.tensors.has(`${name}.out.${output}`)
    );
    const realized = await realize(outputs.map(([, value]) => value), device ? { device } : {});
    for (const [i, [output]] of outputs.entries()) {
      const value = realized[i]!;
      const data = await toArray<"f32">(value, device ? { device } : {});
      yield { key: `${name}.out.${output}`, shape: value.shape, data };
    }
  }
}

/** A manifest: the configuration of a published model, and the shape of every parameter by name. */
export interface Manifest {
  /** The configuration's fields. */
  config: Record<string, unknown>;
  /** The shapes. */
  parameters: Record<string, readonly number[]>;
}

/** The classes of manifests, by the ends of their files' names. */
const MANIFESTS: readonly (readonly [RegExp, string])[] = [
  [/^flux.*\.transformer\.json$/, "FluxTransformer2DModel"],
  [/^flux.*\.vae\.json$/, "AutoencoderKL"],
  [/^cogvideox.*\.transformer\.json$/, "CogVideoXTransformer3DModel"],
  [/^cogvideox.*\.vae\.json$/, "AutoencoderKLCogVideoX"],
  [/\.text_encoder\.json$/, "CLIPTextModel"],
  [/\.text_encoder_2\.json$/, "T5EncoderModel"],
];

/** The classes by name. */
const MODELS: Readonly<Record<string, new (config: ModelConfig) => Model>> = {
  AutoencoderKL,
  AutoencoderKLCogVideoX,
  CLIPTextModel,
  CogVideoXTransformer3DModel,
  FluxTransformer2DModel,
  T5EncoderModel,
};

/** Names that stand for one tensor in transformers' T5. */
const sameName = (name: string) => name.replace(/^encoder\.embed_tokens\./, "shared.");

/**
 * What a model expects that a manifest lacks, or the other way round.
 *
 * @param fileName The manifest's file name.
 * @param manifest The manifest.
 * @returns A sentence for each difference; `undefined` for models that denoise does not have.
 */
export function manifestDifferences(fileName: string, manifest: Manifest): string[] | undefined {
  const className = MANIFESTS.find(([pattern]) => pattern.test(fileName))?.[1];
  if (className === undefined) return undefined;
  const model = new MODELS[className]!(new ModelConfig(manifest.config, fileName));
  const wanted = new Map(Object.entries(manifest.parameters).map(([name, shape]) => [sameName(name), shape]));
  const differences: string[] = [];
  for (const [name, { shape }] of model.namedParameters()) {
    const other = wanted.get(name);
    if (!other) differences.push(`${name} is not in the manifest`);
    else if (String(other) !== String(shape) || sizeOf(other) !== sizeOf(shape)) {
      differences.push(`${name} is [${other}], not [${shape}]`);
    }
    wanted.delete(name);
  }
  return [...differences, ...[...wanted.keys()].map((name) => `${name} is not expected`)];
}
