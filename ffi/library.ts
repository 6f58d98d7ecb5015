/**
 * Finding, checking and opening the native library.
 *
 * @module
 */

import { fileURLToPath } from "node:url";
import { NativeError } from "../lib/errors.ts";
import { schemaHash } from "../lib/graph/schema.ts";
import { SYMBOLS } from "./bindings.ts";
import { environment } from "./environment.ts";

/** The native library's functions. */
export type Symbols = Deno.DynamicLibrary<typeof SYMBOLS>["symbols"];

/** What the build wrote beside the library. */
export interface BuildRecord {
  /** The SHA-256 of its sources. */
  sources: string;
  /** The SHA-256 of the library. */
  library: string;
}

const NAMES: Partial<Record<typeof Deno.build.os, string>> = { darwin: "libdenoise.dylib", windows: "denoise.dll" };

/**
 * Where `deno task build` puts the library.
 *
 * @returns Its path.
 */
export function builtLibrary(): string {
  const url = new URL(`../kernels/target/release/${NAMES[Deno.build.os] ?? "libdenoise.so"}`, import.meta.url);
  if (url.protocol !== "file:") {
    throw new NativeError(
      "missing",
      "denoise was imported from an address and has no native library there: clone the project, run `deno task build` " +
        "and name the library in DENOISE_LIBRARY",
    );
  }
  return fileURLToPath(url);
}

/**
 * The SHA-256 of a file.
 *
 * @param path The file.
 * @returns The hash in hexadecimal; `undefined` where there is no such file.
 */
export async function libraryHash(path: string): Promise<string | undefined> {
  const bytes = await unlessMissing(Deno.readFile(path));
  // Not of node:crypto, which takes longer to load than the hash to compute.
  return bytes && new Uint8Array(await crypto.subtle.digest("SHA-256", bytes)).toHex();
}

/**
 * What the build recorded of a library.
 *
 * @param path The library.
 * @returns The record; `undefined` where there is none.
 */
export async function buildRecord(path: string): Promise<BuildRecord | undefined> {
  const text = await unlessMissing(Deno.readTextFile(`${path}.json`));
  try {
    return text === undefined ? undefined : JSON.parse(text) as BuildRecord;
  } catch {
    return undefined;
  }
}

async function unlessMissing<T>(reading: Promise<T>): Promise<T | undefined> {
  try {
    return await reading;
  } catch (error) {
    if (error instanceof Deno.errors.NotCapable) throw error;
    return undefined;
  }
}

/** What a library says of itself. */
export interface Description {
  /** Its version. */
  version: string;
  /** The highest instruction level of this CPU. */
  level: string;
  /** All levels that this CPU has. */
  levels: string[];
  /** How many threads a device has that is told no number. */
  threads: number;
}

/** An open library: its functions and what it says of itself. */
export interface Library {
  /** Its functions. */
  readonly symbols: Symbols;
  /** What it says of itself. */
  readonly description: Description;
  /** The SHA-256 of the sources that it was built from. */
  readonly sources: string;
}

let opening: Promise<Library> | undefined;
let opened: Library | undefined;

/**
 * Opens the library once: the one named in `DENOISE_LIBRARY`, else the one that was built here.
 *
 * @returns The library.
 */
export async function loadLibrary(): Promise<Library> {
  opening ??= openLibrary(environment("DENOISE_LIBRARY") ?? builtLibrary());
  return opened = await opening;
}

/**
 * The library, which a device has opened before there is anything to call it for.
 *
 * @returns The library.
 */
export function library(): Library {
  if (!opened) throw new TypeError("Cannot call the native library before a device is open: await Device.open()");
  return opened;
}

/**
 * Opens a library after its hash and before anything else of it is used, as a truncated one would crash the process.
 *
 * @param path The library.
 * @returns Its functions and what it says of itself.
 */
export async function openLibrary(path: string): Promise<Library> {
  const [hash, record] = await Promise.all([libraryHash(path), buildRecord(path)]);
  if (hash === undefined) {
    throw new NativeError("missing", `There is no native library at ${path}: run \`deno task build\``, { file: path });
  }
  if (record?.library !== hash) {
    throw new NativeError(
      "corrupt",
      `The native library ${path} is not the one that was built (its SHA-256 is ${hash}, the build recorded ` +
        `${record?.library ?? "none"}): run \`deno task build\``,
      { file: path },
    );
  }
  let symbols: Symbols;
  try {
    symbols = Deno.dlopen(path, SYMBOLS).symbols;
  } catch (cause) {
    if (cause instanceof Deno.errors.NotCapable) throw cause;
    throw new NativeError("unusable", `Cannot open the native library ${path}: run \`deno task build\``, {
      file: path,
      cause,
    });
  }
  return { symbols, description: describe(symbols, path), sources: record.sources };
}

function describe(symbols: Symbols, path: string): Description {
  const out = new Uint8Array(1024);
  const length = symbols.denoise_describe(out, BigInt(out.length));
  const [version = "", schema = "", level = "", levels = "", threads = ""] = new TextDecoder()
    .decode(out.subarray(0, length)).split("\n");
  const wanted = schemaHash().join(" ");
  if (schema !== wanted) {
    throw new NativeError(
      "mismatch",
      `The native library ${path} has the schema ${schema}, this denoise ${wanted}: run \`deno task build\``,
      { file: path },
    );
  }
  return { version, level, levels: levels.split(" "), threads: Number(threads) };
}
