/**
 * What all pipelines share: a folder's parts, a loaded pipeline that can be called, prompts, seeds and sizes.
 *
 * @module
 */

import { CheckpointError, ConfigError } from "../errors.ts";
import { finishUpdate } from "../tensor/folder_update.ts";
import type { Tokenizer } from "./tokenizer.ts";
import { messageOf } from "../tensor/output.ts";

/** What a seed may be: an integer from -2^63 to 2^64 - 1. */
export type Seed = number | bigint;

/** `model_index.json`: the class of the pipeline and of each of its parts. */
export interface ModelIndex {
  /** The model's folder. */
  readonly folder: string;
  /** The pipeline's class in diffusers. */
  readonly className: string;
  /** The class of each part by its folder's name; a part that the checkpoint leaves out is not here. */
  readonly parts: ReadonlyMap<string, string>;
  /** All of the file's fields. */
  readonly fields: Readonly<Record<string, unknown>>;
}

/**
 * Gives a function the members of an object, getters included.
 *
 * @param call What a call does
 * @param members What else there is
 * @returns The function itself
 */
export function callable<F extends (...args: never[]) => unknown, M extends object>(call: F, members: M): F & M {
  return Object.defineProperties(call, Object.getOwnPropertyDescriptors(members)) as F & M;
}

/**
 * Reads a JSON file of a checkpoint.
 *
 * @param path The file
 * @returns The object in it
 * @throws {ConfigError} If it cannot be read or is not a JSON object
 */
export async function readConfig(path: string): Promise<Readonly<Record<string, unknown>>> {
  let text: string;
  try {
    text = await Deno.readTextFile(path);
  } catch (cause) {
    const remedy = cause instanceof Deno.errors.NotCapable
      ? "run with --allow-read for it"
      : "check that the folder is a whole checkpoint in diffusers' layout";
    throw new ConfigError(`Cannot read ${path}: ${messageOf(cause)}; ${remedy}`, { file: path, cause });
  }
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (cause) {
    throw new ConfigError(`Cannot read ${path} as it is not JSON (${messageOf(cause)}): download the file again`, {
      file: path,
      cause,
    });
  }
  if (typeof value !== "object" || value === null || Array.isArray(value)) {
    throw new ConfigError(`Cannot read ${path} as it is not a JSON object: download the file again`, { file: path });
  }
  return value as Readonly<Record<string, unknown>>;
}

/**
 * Reads a folder's `model_index.json`.
 *
 * @param folder A checkpoint in diffusers' layout
 * @param className The pipeline that it must be of
 * @returns The parts
 * @throws {CheckpointError} If the folder is no such checkpoint
 * @throws {ConfigError} If the file is broken or of another pipeline
 */
export async function readModelIndex(folder: string, className: string): Promise<ModelIndex> {
  await finishUpdate(folder);
  const file = `${folder}/model_index.json`;
  const isThere = await Deno.stat(file).then((info) => info.isFile, () => false);
  if (!isThere) {
    throw new CheckpointError(
      `Cannot load ${folder} as it has no model_index.json: pass a folder in diffusers' layout`,
      { file: folder },
    );
  }
  const json = await readConfig(file);
  const found = json["_class_name"];
  if (found !== className) {
    throw new ConfigError(
      `Cannot load ${folder} with ${className} as its _class_name is ${JSON.stringify(found)}: ` +
        "load a checkpoint of that pipeline",
      { file, key: "_class_name" },
    );
  }
  const parts = new Map<string, string>();
  for (const [name, value] of Object.entries(json)) {
    if (!Array.isArray(value) || typeof value[1] !== "string") continue;
    parts.set(name, value[1]);
  }
  return { folder, className, parts, fields: json };
}

/**
 * A prompt or several as a list.
 *
 * @param prompt What the caller gave
 * @param name The option's name, for messages
 * @returns At least one text
 * @throws {TypeError} If one is not a string, or there is none
 */
export function promptList(prompt: string | readonly string[], name: string): readonly string[] {
  const list = typeof prompt === "string" ? [prompt] : prompt;
  if (!Array.isArray(list) || list.length === 0 || !list.every((text) => typeof text === "string")) {
    throw new TypeError(`Cannot use a ${name} that is ${describe(prompt)}: pass a string, or a list of strings`);
  }
  return list;
}

/**
 * Ids of prompts, one row each; warns of what did not fit.
 *
 * @param tokenizer The text encoder's tokenizer
 * @param prompts The prompts
 * @param options The length, and the name of the limit for the warning
 * @returns `prompts.length * maxLength` ids
 */
export function tokenize(
  tokenizer: Tokenizer,
  prompts: readonly string[],
  options: { maxLength: number; limit: string },
): Int32Array<ArrayBuffer> {
  const { maxLength, limit } = options;
  const ids = new Int32Array(prompts.length * maxLength);
  for (const [i, prompt] of prompts.entries()) {
    const encoding = tokenizer.encode(prompt, { maxLength });
    ids.set(encoding.ids, i * maxLength);
    if (encoding.dropped !== "") {
      console.warn(`The end of a prompt was cut, as ${limit} is ${maxLength} tokens: ${encoding.dropped}`);
    }
  }
  return ids;
}

/**
 * Checks a picture's or video's side.
 *
 * @param name `height` or `width`
 * @param value Pixels
 * @param options What it must be a multiple of, and of what it is the side
 * @throws {RangeError} If it is not
 */
export function checkSide(
  name: string,
  value: number,
  options: { multiple: number; what: "picture" | "video" },
): void {
  const { multiple, what } = options;
  if (Number.isSafeInteger(value) && value > 0 && value % multiple === 0) return;
  const near = Math.max(multiple, Math.round((Number.isFinite(value) ? value : 0) / multiple) * multiple);
  throw new RangeError(
    `Cannot make a ${what} with a ${name} of ${value}: the model takes multiples of ${multiple}, such as ${near}`,
  );
}

/**
 * Checks a number that counts something.
 *
 * @param name The option's name
 * @param value The number
 * @param range The least and the most that it may be
 * @throws {RangeError} If it is not an integer in the range
 */
export function checkCount(name: string, value: number, range: { min: number; max?: number }): void {
  const { min, max = Number.MAX_SAFE_INTEGER } = range;
  if (Number.isSafeInteger(value) && value >= min && value <= max) return;
  const allowed = range.max === undefined ? `of at least ${min}` : `from ${min} to ${max}`;
  throw new RangeError(`Cannot use a ${name} of ${value}: pass an integer ${allowed}`);
}

/**
 * Checks a number that weighs something.
 *
 * @param name The option's name
 * @param value The number
 * @throws {RangeError} If it is not finite
 */
export function checkScale(name: string, value: number): void {
  if (!Number.isFinite(value)) throw new RangeError(`Cannot use a ${name} of ${value}: pass a finite number`);
}

/**
 * Refuses two options that mean the same.
 *
 * @param options The two by name
 * @throws {TypeError} If both are given
 */
export function exclusive(options: Readonly<Record<string, unknown>>): void {
  const given = Object.keys(options).filter((name) => options[name] !== undefined);
  if (given.length > 1) throw new TypeError(`Cannot use both ${given.join(" and ")}: pass one of the two`);
}

/**
 * Refuses an option without the one that it goes with.
 *
 * @param options The two by name
 * @throws {TypeError} If only one is given
 */
export function together(options: Readonly<Record<string, unknown>>): void {
  const names = Object.keys(options);
  const missing = names.find((name) => options[name] === undefined);
  const given = names.find((name) => options[name] !== undefined);
  if (missing !== undefined && given !== undefined) {
    throw new TypeError(`Cannot use ${given} alone: pass ${missing} as well`);
  }
}

/**
 * As many texts as there are prompts; one is for all.
 *
 * @param texts The texts
 * @param count How many prompts there are
 * @param name The option's name, for messages
 * @returns `count` texts
 * @throws {TypeError} If there are others
 */
export function matching(texts: readonly string[], count: number, name: string): readonly string[] {
  if (texts.length === count) return texts;
  if (texts.length === 1) return Array.from({ length: count }, () => texts[0]!);
  throw new TypeError(`Cannot use ${texts.length} of ${name} for ${count} prompts: pass one, or one for each`);
}

/**
 * The text of a result, where each prompt has several, or one text is for all.
 *
 * @param texts The texts
 * @param index Which result
 * @param copies Results of a prompt
 * @returns Its text
 */
export function textOf(texts: readonly string[], index: number, copies: number): string {
  return texts.length === 1 ? texts[0]! : texts[Math.floor(index / copies)]!;
}

/**
 * A seed for who gave none.
 *
 * @returns 32 random bits
 */
export function randomSeed(): number {
  return crypto.getRandomValues(new Uint32Array(1))[0]!;
}

/** What a value is, for messages. */
function describe(value: unknown): string {
  if (Array.isArray(value)) return value.length === 0 ? "an empty list" : "a list with something else than strings";
  return value === null ? "null" : `of type ${typeof value}`;
}
