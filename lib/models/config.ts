/**
 * The `config.json` of a model, read field by field with the checks that a file from elsewhere needs.
 *
 * @module
 */

import { ConfigError } from "../errors.ts";
import { checkQuantizationConfig } from "../nn/quantized_checkpoint.ts";
import { finishUpdate } from "../tensor/folder_update.ts";

/** A configuration and the file that it came from. */
export class ModelConfig {
  /** The file, for messages. */
  readonly file: string;
  /** The fields, as the file has them. */
  readonly fields: Readonly<Record<string, unknown>>;

  /** Wraps fields that were parsed already. */
  constructor(fields: Readonly<Record<string, unknown>>, file: string) {
    this.fields = fields;
    this.file = file;
  }

  /**
   * Reads the `config.json` of a folder.
   *
   * @param folder The folder.
   * @param className The class of diffusers that it must be of, if it names one.
   * @returns The configuration.
   * @throws {ConfigError} If there is none, or it is broken or of another class.
   */
  static async read(folder: string, className?: string): Promise<ModelConfig> {
    const file = `${folder}/config.json`;
    let fields: unknown;
    await finishUpdate(folder);
    try {
      fields = JSON.parse(await Deno.readTextFile(file));
    } catch (cause) {
      if (cause instanceof Deno.errors.NotCapable) throw cause;
      const what = cause instanceof SyntaxError ? "it is not JSON" : "it cannot be read";
      throw new ConfigError(`Cannot load a model from ${folder} as ${what}: ${file}`, { file, cause });
    }
    if (typeof fields !== "object" || fields === null || Array.isArray(fields)) {
      throw new ConfigError(`Cannot load a model from ${folder}: ${file} holds no object`, { file });
    }
    const { _class_name: found = className } = fields as Record<string, unknown>;
    if (className !== undefined && found !== className) {
      throw new ConfigError(
        `Cannot load ${folder} as a ${className}: ${file} is of a ${found}; use a checkpoint with the class that ` +
          "denoise has",
        { file, key: "_class_name" },
      );
    }
    checkQuantizationConfig(fields as Record<string, unknown>, file);
    return new ModelConfig(fields as Record<string, unknown>, file);
  }

  /** The model's class: diffusers' `_class_name`, or the first of transformers' `architectures`. */
  get className(): string {
    const { _class_name, architectures } = this.fields;
    const name = _class_name ?? (Array.isArray(architectures) ? architectures[0] : undefined);
    if (typeof name === "string") return name;
    throw new ConfigError(`${this.file} names no class: it has neither _class_name nor architectures`, {
      file: this.file,
    });
  }

  #fail(key: string, wanted: string): never {
    throw new ConfigError(`${this.file} has ${key} ${JSON.stringify(this.fields[key])}: it takes ${wanted}`, {
      file: this.file,
      key,
    });
  }

  #read<T>(key: string, fallback: T | undefined, accept: (value: unknown) => value is T, wanted: string): T {
    const value = this.fields[key];
    if (value === undefined && fallback !== undefined) return fallback;
    return accept(value) ? value : this.#fail(key, wanted);
  }

  /** A whole number of at least 1. */
  count(key: string, fallback?: number): number {
    return this.#read(key, fallback, isCount, "a whole number from 1");
  }

  /** A whole number of at least 0. */
  index(key: string, fallback?: number): number {
    const isIndex = (v: unknown): v is number => v === 0 || isCount(v);
    return this.#read(key, fallback, isIndex, "a whole number from 0");
  }

  /** A count, or nothing where the field is null or absent. */
  optionalCount(key: string): number | undefined {
    const value = this.fields[key];
    return value === undefined || value === null ? undefined : this.count(key);
  }

  /** A number. */
  number(key: string, fallback?: number): number {
    return this.#read(key, fallback, isNumber, "a number");
  }

  /** A number, or nothing where the field is null or absent. */
  optionalNumber(key: string): number | undefined {
    const value = this.fields[key];
    return value === undefined || value === null ? undefined : this.number(key);
  }

  /** True or false. */
  flag(key: string, fallback?: boolean): boolean {
    return this.#read(key, fallback, (v): v is boolean => typeof v === "boolean", "true or false");
  }

  /** One of some words. */
  choice<T extends string>(key: string, choices: readonly T[], fallback?: T): T {
    const isChoice = (v: unknown): v is T => choices.includes(v as T);
    return this.#read(key, fallback, isChoice, `one of ${choices.join(", ")}`);
  }

  /** A list of counts. */
  counts(key: string, fallback?: readonly number[]): readonly number[] {
    const areCounts = (v: unknown): v is readonly number[] => Array.isArray(v) && v.length > 0 && v.every(isCount);
    return this.#read(key, fallback, areCounts, "a list of whole numbers from 1");
  }

  /** A list that may hold one word alone, as all that denoise has. */
  every(key: string, word: string): number {
    const value = this.fields[key];
    const wanted = `a list of "${word}"`;
    if (!Array.isArray(value) || value.length === 0 || value.some((v) => v !== word)) this.#fail(key, wanted);
    return value.length;
  }
}

const isNumber = (v: unknown): v is number => typeof v === "number" && Number.isFinite(v);
const isCount = (v: unknown): v is number => Number.isSafeInteger(v) && (v as number) > 0;
