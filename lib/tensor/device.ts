/**
 * The device that programs run on, and the buffers that hold the values of leaves and constants on it.
 *
 * @module
 */

import { environment } from "../../ffi/environment.ts";
import { library, loadLibrary } from "../../ffi/library.ts";
import { NativeBuffer, NativeDevice } from "../../ffi/native.ts";
import { CheckpointError, NativeError } from "../errors.ts";
import { byteSize } from "../graph/dtypes.ts";
import type { Node } from "../graph/node.ts";
import { fileStamp } from "./safetensors.ts";
import { type FileSource, moveSource, sourceOf } from "./source.ts";

/** How a device is opened. */
export interface DeviceOptions {
  /** The instruction level (`reference`, `portable`, `avx2`, `avx512`, `avx512bf16`); the best by default. */
  level?: string | undefined;
  /** How many threads share the work; as many as the machine has by default. */
  threads?: number | undefined;
}

let defaultDevice: Promise<Device> | undefined;

/** A CPU, at one instruction level, with its threads. */
export class Device implements Disposable {
  /** The instruction level. */
  readonly level: string;
  /** How many threads share the work. */
  readonly threads: number;
  /** @internal The native device. */
  readonly native: NativeDevice;
  readonly #leaves = new WeakMap<Node, NativeBuffer>();
  readonly #constants = new WeakMap<Node, Map<string, NativeBuffer>>();

  private constructor(options: DeviceOptions) {
    this.level = options.level ?? library().description.level;
    this.threads = options.threads || library().description.threads;
    this.native = new NativeDevice(options);
  }

  /** Opens a device; an unknown level, or one that this CPU lacks, is an error. */
  static async open(options: DeviceOptions = {}): Promise<Device> {
    await loadLibrary();
    return new Device(options);
  }

  /** The device of all who name none: the level in `DENOISE_LEVEL` or else the best, all threads. Opened once. */
  static async default(): Promise<Device> {
    return await (defaultDevice ??= Device.open({ level: environment("DENOISE_LEVEL") }));
  }

  /** The levels that this CPU has, the lowest first. */
  static async levels(): Promise<readonly string[]> {
    return (await loadLibrary()).description.levels;
  }

  /**
   * The most memory that the process has had, in bytes: buffers, mapped files that were read, and Deno itself. 0 where
   * the system does not say.
   */
  peakMemory(): number {
    return library().symbols.denoise_peak_memory();
  }

  /**
   * @internal
   * The buffer of a leaf. It is kept for as long as the leaf is; `passing` ones, which are read once to compute what is
   * kept instead, are the caller's.
   */
  bufferOf(leaf: Node, options: { passing?: boolean } = {}): NativeBuffer {
    const kept = this.#leaves.get(leaf);
    if (kept) return kept;
    const buffer = makeBuffer(leaf);
    if (!options.passing) this.#leaves.set(leaf, buffer);
    return buffer;
  }

  /** @internal Whether a leaf's buffer is kept. */
  keeps(leaf: Node): boolean {
    return this.#leaves.has(leaf) || sourceOf(leaf)?.kind === "buffer";
  }

  /** @internal A constant that was computed on this device; known by its text for as long as one of its leaves lives. */
  constant(owner: Node, key: string): NativeBuffer | undefined {
    return this.#constants.get(owner)?.get(key);
  }

  /** @internal Keeps a constant. */
  keepConstant(owner: Node, key: string, buffer: NativeBuffer): void {
    const known = this.#constants.get(owner) ?? new Map<string, NativeBuffer>();
    this.#constants.set(owner, known.set(key, buffer));
  }

  /** Frees the device; buffers outlive it. */
  [Symbol.dispose](): void {
    this.native[Symbol.dispose]();
  }
}

function makeBuffer(leaf: Node): NativeBuffer {
  const source = sourceOf(leaf);
  if (!source) {
    const name = leaf.params.name || `[${leaf.shape.join(", ")}]`;
    throw new NativeError("missing", `The tensor ${name} has no values: load a checkpoint first`);
  }
  if (source.kind === "buffer") return source.buffer as NativeBuffer;
  if (source.kind === "host") return NativeBuffer.from(source.bytes as Uint8Array<ArrayBuffer>);
  checkUnchanged(source);
  const { path, offset, byteLength } = source;
  if (offset % byteSize(leaf.dtype) === 0) return NativeBuffer.map(path, offset, byteLength);
  // A file may put a tensor at an odd place, where kernels cannot read it.
  using mapped = NativeBuffer.map(path, offset, byteLength);
  return NativeBuffer.from(mapped.read());
}

/**
 * Checks that a file is still the one that was opened.
 *
 * @param source A part of it.
 * @throws {CheckpointError} If it is not
 */
export function checkUnchanged({ path, stamp }: FileSource): void {
  let found: string;
  try {
    found = fileStamp(Deno.statSync(path));
  } catch (cause) {
    throw new CheckpointError(`Cannot read ${path} any more: load the model again`, { file: path, cause });
  }
  if (found === stamp) return;
  throw new CheckpointError(`Cannot read ${path} as it was written again since it was opened: load the model again`, {
    file: path,
  });
}

/**
 * Keeps the values of leaves whose file is about to be replaced: it is mapped now, and lives on for as long as they do.
 *
 * @param leaves The leaves.
 * @param stamps The stamps of such files.
 */
export function keepMapped(leaves: Iterable<Node>, stamps: ReadonlySet<string>): void {
  for (const leaf of leaves) {
    const source = sourceOf(leaf);
    if (source?.kind !== "file" || !stamps.has(source.stamp)) continue;
    moveSource(leaf, { kind: "buffer", buffer: makeBuffer(leaf) });
  }
}
