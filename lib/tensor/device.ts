/**
 * The device that programs run on, and the buffers that hold the values of leaves and constants on it.
 *
 * @module
 */

import { findCudaLibrary } from "../../ffi/cuda.ts";
import { environment } from "../../ffi/environment.ts";
import { library, loadLibrary } from "../../ffi/library.ts";
import { type DeviceDescription, type NativeBuffer, NativeDevice, NativeProgram } from "../../ffi/native.ts";
import { NativeError } from "../errors.ts";
import { byteSize } from "../graph/dtypes.ts";
import type { Instruction, Storage } from "../graph/lower.ts";
import type { Node } from "../graph/node.ts";
import { planArena } from "../graph/plan.ts";
import { assemble } from "../graph/program.ts";
import { makeBuffer } from "./buffers.ts";
import { sourceOf } from "./source.ts";

/**
 * What computes: the CPU, a CUDA device by its number, the CUDA kernels thread by thread on the CPU, or `auto`, the
 * first CUDA device where there is one and else the CPU.
 */
export type DeviceName = "auto" | "cpu" | "cuda" | `cuda:${number}` | "cuda-emulated";

/** How a device is opened. */
export interface DeviceOptions {
  /** What computes; the CPU by default. */
  device?: DeviceName | undefined;
  /** The CPU's instruction level (`reference`, `portable`, `avx2`, `avx512`, `avx512bf16`); the best by default. */
  level?: string | undefined;
  /** How many threads of the CPU share the work; as many as the machine has by default. */
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

const shared = new Map<string, Promise<Device>>();

/**
 * Whether a text names a device besides the CPU, `auto` aside.
 *
 * @internal
 * @param name The text.
 * @returns Whether it does.
 */
export function isCudaName(name: string): name is Exclude<DeviceName, "auto" | "cpu"> {
  return /^cuda(:\d{1,3}|-emulated)?$/.test(name);
}

/**
 * Checks a device's name.
 *
 * @internal
 * @param name The name.
 * @throws {RangeError} If it is none
 */
export function checkDeviceName(name: unknown): void {
  if (name === "auto" || name === "cpu" || typeof name === "string" && isCudaName(name)) return;
  throw new RangeError(
    `Cannot run on ${JSON.stringify(name)}: pass "auto", "cpu", "cuda", "cuda:<number>", "cuda-emulated", or a Device`,
  );
}

/** A CPU, at one instruction level, with its threads, or a CUDA device. */
export class Device implements Disposable {
  /** The CPU's instruction level; `cuda` or `cuda-emulated` where no CPU computes. */
  readonly level: string;
  /** How many threads share the work. */
  readonly threads: number;
  /** @internal The native device. */
  readonly native: NativeDevice;
  /** @internal The native device where it has memory of its own. */
  readonly memory: NativeDevice | undefined;
  /** @internal The SHA-256 of its kernels' sources. */
  readonly sources: string;
  /** @internal Is told of each program that ran, where somebody looks. */
  observer: ((run: ProgramRun) => void) | undefined;
  readonly #leaves = new WeakMap<Node, NativeBuffer>();
  readonly #constants = new WeakMap<Node, Map<string, NativeBuffer>>();
  readonly #ways = new Map<string, readonly string[]>();
  #description: DeviceDescription | undefined;

  private constructor(
    native: NativeDevice,
    parts: { level: string; threads: number; sources: string; memory?: NativeDevice },
  ) {
    this.native = native;
    this.level = parts.level;
    this.threads = parts.threads;
    this.sources = parts.sources;
    this.memory = parts.memory;
  }

  /**
   * Opens a device.
   *
   * @throws {RangeError} If there is no such name, or a level or threads are given for what is no CPU
   * @throws {NativeError} If a level is unknown or this CPU lacks it; with the code `unavailable`, if the driver, the
   * device, the CUDA library, or its kernels for the device are missing
   */
  static async open(options: DeviceOptions = {}): Promise<Device> {
    const { device = "cpu", level, threads } = options;
    checkDeviceName(device);
    const { description, sources } = await loadLibrary();
    if (device === "auto" && level === undefined && threads === undefined) {
      try {
        return await Device.open({ device: "cuda" });
      } catch (error) {
        // Without permission to look for it there is none either.
        const missing = error instanceof NativeError && error.code === "unavailable";
        if (!missing && !(error instanceof Deno.errors.NotCapable)) throw error;
      }
    }
    if (!isCudaName(device)) {
      const native = new NativeDevice({ level, threads });
      return new Device(native, {
        level: level ?? description.level,
        threads: threads || description.threads,
        sources,
      });
    }
    if (level !== undefined || threads !== undefined) {
      throw new RangeError(`Cannot open ${device} with a level or threads: those are the CPU's`);
    }
    const kind = device === "cuda-emulated" ? device : "cuda";
    const ordinal = device.startsWith("cuda:") ? Number(device.slice("cuda:".length)) : 0;
    const found = await findCudaLibrary(kind);
    const native = new NativeDevice({ library: found.path, ordinal });
    return new Device(native, { level: kind, threads: 1, sources: found.sources, memory: native });
  }

  /**
   * The device of all who name none, opened once: the one in `DENOISE_DEVICE`, else the CPU at the level in
   * `DENOISE_LEVEL`, else as `auto`.
   */
  static async default(): Promise<Device> {
    return await Device.shared("auto");
  }

  /** @internal The device that all who give this name share, opened once; `auto` is the default one. */
  static async shared(name: DeviceName): Promise<Device> {
    const level = environment("DENOISE_LEVEL") || undefined;
    const wanted = name === "auto" ? environment("DENOISE_DEVICE") || name : name;
    const known = shared.get(wanted);
    if (known) return await known;
    const opening = Device.open({ device: wanted as DeviceName, ...(!isCudaName(wanted) && { level }) });
    shared.set(wanted, opening);
    return await opening;
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

  /** @internal What tells it from other devices. */
  get description(): DeviceDescription {
    return this.#description ??= this.native.describe();
  }

  /**
   * @internal
   * The names of the ways in which it can run a kernel call, by the parameter `variant`; none where there is but one.
   */
  waysOf(call: Instruction): readonly string[] {
    if (call.params.variant === undefined) return [];
    const key = signatureOf(call);
    let ways = this.#ways.get(key);
    if (!ways) {
      using program = new NativeProgram(programOf(call));
      this.#ways.set(key, ways = this.native.ways(program)[0]!);
    }
    return ways;
  }

  /**
   * @internal
   * The buffer of a leaf. It is kept for as long as the leaf is; `passing` ones, which are read once to compute what is
   * kept instead, are the caller's.
   */
  bufferOf(leaf: Node, options: { passing?: boolean } = {}): NativeBuffer {
    const kept = this.#leaves.get(leaf);
    if (kept) return kept;
    const buffer = makeBuffer(leaf, this.memory);
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
    if (this.#leaves.has(leaf)) return true;
    const source = sourceOf(leaf);
    return source?.kind === "buffer" && (source.buffer as NativeBuffer).device === this.memory;
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

/** What a call's ways can follow from, as text: all but where its memory lies, beyond what kernels read at once. */
function signatureOf({ kernel, operands, params }: Instruction): string {
  const views = operands.map((view) => {
    if (!view) return "-";
    const { storage: { dtype }, offset, shape, strides } = view;
    return `${dtype}+${offset * byteSize(dtype) % 256}[${shape}]${strides}`;
  });
  return [kernel, ...views, ...Object.values(params)].join(" ");
}

/** A program of a call alone, over working memory. */
function programOf(call: Instruction): Uint8Array<ArrayBuffer> {
  const places = new Map<Storage, Storage>();
  const operands = call.operands.map((view) => {
    if (!view) return null;
    const { dtype, size } = view.storage;
    const storage = places.get(view.storage) ?? { dtype, size, written: true };
    places.set(view.storage, storage);
    return { ...view, storage };
  });
  const instructions = [{ ...call, operands }];
  return assemble({ instructions, externals: [] }, planArena(instructions));
}
