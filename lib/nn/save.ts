/**
 * From a model to files: `config.json` and weights in safetensors, as diffusers and transformers lay them out.
 *
 * @module
 */

import { join } from "node:path";
import { NativeError } from "../errors.ts";
import { topological } from "../graph/node.ts";
import { sizeOf } from "../graph/ops.ts";
import { Device, keepMapped } from "../tensor/device.ts";
import { FolderUpdate } from "../tensor/folder_update.ts";
import { bytesOfEach } from "../tensor/pieces.ts";
import { byteSize, type SafetensorsDtype, type TensorToWrite } from "../tensor/safetensors.ts";
import type { Model, Parameter } from "./module.ts";
import { quantizationConfig, storedWeight } from "./quantized_checkpoint.ts";

/** How a model is saved. */
export interface SaveOptions {
  /** The most bytes of a file of weights, as a number or as text such as `5GB`; 10GB by default. */
  maxShardSize?: number | string | undefined;
}

/** A parameter's tensors, which stay together in one file. */
interface StoredParameter {
  readonly name: string;
  readonly bytes: number;
  readonly entry: string;
  readonly tensors: readonly TensorToWrite[];
}

/**
 * Saves a model: its configuration and its weights as they are, quantized ones in their stored form. A reader of the
 * folder finds what was there before or all of the new, whenever the process ends; a model can be saved over the folder
 * that it was loaded from.
 *
 * @example A quantized transformer
 * ```ts
 * import { FluxTransformer2DModel, quantize, saveModel } from "../../mod.ts";
 *
 * const folder = new URL("../../models/shapes-flux/transformer", import.meta.url).pathname;
 * const transformer = await FluxTransformer2DModel.load(folder);
 * quantize(transformer, "int8wo");
 * const out = await Deno.makeTempDir();
 * await saveModel(transformer, out);
 * await FluxTransformer2DModel.load(out);
 * await Deno.remove(out, { recursive: true });
 * ```
 *
 * @param model The model
 * @param folder The folder, which is made if there is none
 * @param options The size of files; where weights that are not computed yet are computed, on the default device by default
 * @throws {OutputError} If the folder cannot be written
 */
export async function saveModel(
  model: Model,
  folder: string,
  options: SaveOptions & { device?: Device | undefined } = {},
): Promise<void> {
  const { device = await Device.default(), maxShardSize } = options;
  checkWeights(model);
  await using update = await FolderUpdate.begin(folder);
  await stageModel(update, model, { place: ".", device, maxShardSize });
  await commitModels(update, [model]);
}

/**
 * Checks that a model has values to save.
 *
 * @param model The model.
 * @throws {NativeError} If it has none
 */
export function checkWeights(model: Model): void {
  for (const [name, parameter] of model.namedParameters()) {
    if (parameter.loaded) continue;
    throw new NativeError("missing", `Cannot save ${name} as it has no values: load a checkpoint first`, { key: name });
  }
}

/**
 * Writes a model's files beside their places.
 *
 * @param update What the files will be part of.
 * @param model The model.
 * @param options The model's folder in the update's, where to compute, and the size of files.
 */
export async function stageModel(
  update: FolderUpdate,
  model: Model,
  options: SaveOptions & { place: string; device: Device },
): Promise<void> {
  const { place, device, maxShardSize = "10GB" } = options;
  const limit = bytesOf(maxShardSize);
  const parameters = [...model.namedParameters()];
  const stored = parameters.map(([name, parameter]) => storedParameter(name, parameter, device));
  const quantized = parameters.flatMap(([, { quantized }]) => quantized ? [quantized] : []);
  const metadata = {
    format: "pt",
    ...(quantized.length > 0 && {
      ...Object.fromEntries(stored.map(({ name, entry }) => [name, entry])),
      tensor_names: JSON.stringify(stored.map(({ name }) => name)),
    }),
  };
  const old = await weightFiles(join(update.folder, place), model.weightsName);
  const shards = shardsOf(stored, limit);
  const names = shardNames(model.weightsName, shards.length, old);
  const at = (name: string) => join(place, name);
  for (const [i, shard] of shards.entries()) {
    await update.writeTensors(at(names[i]!), shard.flatMap(({ tensors }) => tensors), { metadata });
  }
  const index = `${model.weightsName}.safetensors.index.json`;
  if (shards.length > 1) await update.writeText(at(index), indexOf(shards, names));
  const { quantization_config: _, ...fields } = model.configFields;
  const config = quantizationConfig(quantized);
  await update.writeText(at("config.json"), toJson({ ...fields, ...(config && { quantization_config: config }) }));
  const kept = shards.length > 1 ? [...names, index] : names;
  for (const name of old) if (!kept.includes(name)) update.remove(at(name));
}

/**
 * Lets an update happen that replaces models' files. Their values stay what they are where they come from such files.
 *
 * @param update The update.
 * @param models The models.
 */
export async function commitModels(update: FolderUpdate, models: readonly Model[]): Promise<void> {
  const nodes = models.flatMap((model) =>
    [...model.namedParameters()].map(([, parameter]) => parameter.quantized?.codes.node ?? parameter.tensor.node)
  );
  const scales = models.flatMap((model) =>
    [...model.namedParameters()].flatMap(([, { quantized }]) =>
      quantized ? [quantized.scale.node, ...(quantized.zeroPoint ? [quantized.zeroPoint.node] : [])] : []
    )
  );
  keepMapped(topological([...nodes, ...scales]).filter((n) => n.op === "leaf"), await update.replaced());
  await update.commit();
}

/**
 * JSON as diffusers writes it: keys in order, two spaces.
 *
 * @param value The value.
 * @returns The text.
 */
export function toJson(value: unknown): string {
  const sorted = (_: string, v: unknown) =>
    typeof v === "object" && v !== null && !Array.isArray(v)
      ? Object.fromEntries(Object.entries(v).sort(([a], [b]) => a < b ? -1 : 1))
      : v;
  return `${JSON.stringify(value, sorted, 2)}\n`;
}

const UNITS: Readonly<Record<string, number>> = {
  "": 1,
  K: 1e3,
  M: 1e6,
  G: 1e9,
  KI: 2 ** 10,
  MI: 2 ** 20,
  GI: 2 ** 30,
};

function bytesOf(size: number | string): number {
  const [, count, unit = ""] = /^([\d.]+) *(?:([KMG]i?)?B)?$/i.exec(String(size)) ?? [];
  const bytes = Number(count) * UNITS[unit.toUpperCase()]!;
  if (bytes >= 1) return bytes;
  throw new RangeError(`Cannot use a maxShardSize of ${JSON.stringify(size)}: pass bytes, or a text such as 5GB`);
}

/** Files of weights that a folder holds under a name. */
async function weightFiles(folder: string, weightsName: string): Promise<string[]> {
  const escaped = weightsName.replaceAll(/\W/g, "\\$&");
  const pattern = new RegExp(
    `^${escaped}((-\\d+)?-\\d{5}-of-\\d{5})?\\.safetensors$|^${escaped}\\.safetensors\\.index\\.json$`,
  );
  const found: string[] = [];
  try {
    for await (const { name } of Deno.readDir(folder)) if (pattern.test(name)) found.push(name);
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
  }
  return found.sort();
}

/** Parameters in the model's order, in as few files as they fit in without being cut. */
function shardsOf(parameters: readonly StoredParameter[], limit: number): StoredParameter[][] {
  const shards: StoredParameter[][] = [[]];
  let size = 0;
  for (const parameter of parameters) {
    if (size > 0 && size + parameter.bytes > limit) {
      shards.push([]);
      size = 0;
    }
    shards.at(-1)!.push(parameter);
    size += parameter.bytes;
  }
  return shards;
}

/** Names of files; those of several are new ones, so that an index names old files or new ones and never a mixture. */
function shardNames(weightsName: string, count: number, old: readonly string[]): string[] {
  if (count === 1) return [`${weightsName}.safetensors`];
  const digits = (n: number) => String(n).padStart(5, "0");
  for (let version = 1;; version++) {
    const stem = version === 1 ? weightsName : `${weightsName}-${version}`;
    const names = Array.from({ length: count }, (_, i) => `${stem}-${digits(i + 1)}-of-${digits(count)}.safetensors`);
    if (!names.some((name) => old.includes(name))) return names;
  }
}

function indexOf(shards: readonly StoredParameter[][], names: readonly string[]): string {
  const map = shards.flatMap((shard, i) =>
    shard.flatMap(({ tensors }) => tensors.map(({ name }) => [name, names[i]!]))
  );
  const total = shards.flat().reduce((sum, { bytes }) => sum + bytes, 0);
  return toJson({ metadata: { total_size: total }, weight_map: Object.fromEntries(map) });
}

function storedParameter(name: string, parameter: Parameter, device: Device): StoredParameter {
  const { quantized } = parameter;
  if (!quantized) {
    const { tensor } = parameter;
    const dtype = tensor.dtype.toUpperCase() as SafetensorsDtype;
    const tensors = [{ name, dtype, shape: parameter.shape, data: bytesOfEach([tensor], device)[0]! }];
    return { name, bytes: bytesIn(tensors), entry: JSON.stringify({ _type: "Tensor" }), tensors };
  }
  const { entry, parts } = storedWeight(name, quantized);
  const values = parts.flatMap(({ tensor }) => tensor ? [tensor] : []);
  const pieces = bytesOfEach(values, device);
  const tensors = parts.map(({ name, dtype, shape, tensor }) => {
    const data = tensor ? pieces[values.indexOf(tensor)]! : new Uint8Array(byteSize[dtype] * sizeOf(shape));
    return { name, dtype, shape, data };
  });
  return { name, bytes: bytesIn(tensors), entry, tensors };
}

const bytesIn = (tensors: readonly TensorToWrite[]): number =>
  tensors.reduce((sum, { dtype, shape }) => sum + byteSize[dtype] * sizeOf(shape), 0);
