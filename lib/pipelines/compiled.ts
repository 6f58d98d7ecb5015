/**
 * What files that were compiled ahead of time are for every pipeline: what is noted beside the functions, and how it is
 * read.
 *
 * @module
 */

import { type Asset, type CompiledFile, readCompiled } from "../compile/ahead_of_time.ts";
import { CheckpointError } from "../errors.ts";
import type { FloatDtype } from "../graph/dtypes.ts";
import { Device, isCudaName } from "../tensor/device.ts";
import type { PipelineLoadOptions } from "./load.ts";
import { Tokenizer } from "./tokenizer.ts";

/** What every pipeline's file notes. */
export interface CompiledNotes {
  /** The file. */
  readonly file: CompiledFile;
  /** Where it runs, at the level of the file. */
  readonly device: Device;
  /** What the model was called when it was loaded. */
  readonly model: string;
  /** What activations are computed in. */
  readonly dtype: FloatDtype;
}

/**
 * Whether a model is named by a file, which only compiled ones are.
 *
 * @param model What a caller wants loaded
 * @returns Whether it is one
 */
export async function isCompiledFile(model: string): Promise<boolean> {
  return model.endsWith(".safetensors") && await Deno.stat(model).then((info) => info.isFile, () => false);
}

/**
 * Opens a file that was compiled from a pipeline.
 *
 * @param path The file
 * @param target The pipeline's class
 * @param options What the caller wants: device and type
 * @returns The file, and what every pipeline notes
 * @throws {CheckpointError} If it is for another class, or a note is broken
 * @throws {RangeError} If it is for another type or level
 */
export async function openCompiled(
  path: string,
  target: string,
  options: PipelineLoadOptions,
): Promise<CompiledNotes> {
  const file = await readCompiled(path);
  if (file.target !== target) {
    throw new CheckpointError(
      `Cannot load ${path} as a ${target}: it was compiled from a ${file.target}; compile a ${target}`,
      { file: path, key: "target" },
    );
  }
  const { model, dtype } = file.notes;
  if (typeof model !== "string") throw brokenNote(file, "model");
  if (dtype !== "f32" && dtype !== "bf16" && dtype !== "f16") throw brokenNote(file, "dtype");
  if (options.dtype !== undefined && options.dtype !== dtype) {
    throw new RangeError(`Cannot compute in ${options.dtype}: ${path} was compiled for ${dtype}`);
  }
  const { device = "auto" } = options;
  if (device instanceof Device && device.level !== file.level) {
    throw new RangeError(`Cannot run ${path} on a device of ${device.level}: it was compiled for ${file.level}`);
  }
  return { file, device: device instanceof Device ? device : await deviceOf(file.level), model, dtype };
}

/** The default device where it has a level, else one of its own. */
async function deviceOf(level: string): Promise<Device> {
  const found = await Device.default();
  if (found.level === level) return found;
  return await (isCudaName(level) ? Device.shared(level) : Device.open({ level }));
}

/**
 * A note that is not what it should be.
 *
 * @param file The file
 * @param key The note
 * @returns The error
 */
export function brokenNote({ path }: CompiledFile, key: string): CheckpointError {
  return new CheckpointError(`Cannot load ${path} as its note ${key} is broken: compile and save it again`, {
    file: path,
    key,
  });
}

/**
 * What a pipeline that was compiled ahead of time has in place of its models: an error.
 *
 * @param path The file
 * @returns Throws, for what is asked for
 */
export function absentFrom(path: string): (what: string) => never {
  return (what) => {
    throw new TypeError(
      `Cannot use ${what} of ${path}, which was compiled ahead of time: load the checkpoint for that`,
    );
  };
}

/**
 * The files of tokenizers.
 *
 * @param tokenizers The tokenizers by the names of their folders
 * @returns Their files
 */
export async function tokenizerAssets(
  tokenizers: Readonly<Record<string, Tokenizer | undefined>>,
): Promise<readonly Asset[]> {
  const assets = [];
  for (const [folder, tokenizer] of Object.entries(tokenizers)) {
    for (const [name, bytes] of tokenizer ? await tokenizer.files() : []) {
      assets.push({ name: `${folder}/${name}`, bytes });
    }
  }
  return assets;
}

/**
 * The tokenizer of a folder.
 *
 * @param file The file
 * @param folder The folder's name
 * @returns The tokenizer, where the file has it
 */
export async function tokenizerIn(file: CompiledFile, folder: string): Promise<Tokenizer | undefined> {
  const { path, assets } = file;
  if (!assets.keys().some((name) => name.startsWith(`${folder}/`))) return undefined;
  const read = (name: string) => {
    const bytes = assets.get(`${folder}/${name}`);
    return Promise.resolve(bytes && new TextDecoder().decode(bytes));
  };
  return await Tokenizer.load(`${path}/${folder}`, { read });
}

/**
 * A configuration under the names that files have.
 *
 * @param config Fields in camel case
 * @returns Fields in snake case
 */
export function configJson(config: object): Record<string, unknown> {
  const snake = (name: string) => name.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);
  return Object.fromEntries(Object.entries(config).map(([name, value]) => [snake(name), value]));
}

/** Whether a value is an object. */
export const isObject = (value: unknown): value is Record<string, unknown> =>
  typeof value === "object" && value !== null;
/** Whether a value is an integer of at least 0. */
export const isCount = (value: unknown): value is number => Number.isSafeInteger(value) && (value as number) >= 0;
/** Whether a value is an integer of at least 1. */
export const isPositive = (value: unknown): value is number => isCount(value) && value > 0;
