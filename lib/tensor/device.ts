/**
 * The device that programs run on, and the buffers that hold the values of leaves and constants on it.
 *
 * @module
 */

import { environment } from "../../ffi/environment.ts";
import { library, loadLibrary } from "../../ffi/library.ts";
import { type NativeBuffer, NativeDevice } from "../../ffi/native.ts";
import type { Instruction } from "../graph/lower.ts";
import type { Node } from "../graph/node.ts";
import { makeBuffer } from "./buffers.ts";
import { sourceOf } from "./source.ts";

/** How a device is opened. */
export interface DeviceOptions {
  /** The instruction level (`reference`, `portable`, `avx2`, `avx512`, `avx512bf16`); the best by default. */
  level?: string | undefined;
  /** How many threads share the work; as many as the machine has by default. */
  threads?: number | undefined;
}

/** @internal A run of a program. */
export interface ProgramRun {
  /** The function that it belongs to. */
  readonly name: string;
  /** When it began and when it was done, by `performance.now()`. */
  readonly start: number;
  readonly end: number;
  /** Its kernel calls; none where they are not known. */
  readonly calls: readonly Instruction[];
  /** Each kernel's seconds. */
  readonly seconds: Float64Array;
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
  /** @internal Is told of each program that ran, where somebody looks. */
  observer: ((run: ProgramRun) => void) | undefined;
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

  /** @internal Frees the buffer of a leaf that is not used again. */
  release(leaf: Node): void {
    const source = sourceOf(leaf);
    const buffer = this.#leaves.get(leaf) ?? (source?.kind === "buffer" ? source.buffer as NativeBuffer : undefined);
    buffer?.[Symbol.dispose]();
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
