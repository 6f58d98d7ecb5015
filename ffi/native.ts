/**
 * The native library's objects, as objects of the language: their handles free themselves.
 *
 * @module
 */

import { NativeError } from "../lib/errors.ts";
import { library, type Symbols } from "./library.ts";

const CODES = [
  "none",
  "bad_program",
  "bad_handle",
  "bad_argument",
  "bad_value",
  "out_of_memory",
  "io",
  "cancelled",
  "internal",
  "mismatch",
  "unavailable",
] as const;

const ERROR_BYTES = 1024;
const TEXT_BYTES = 1 << 14;
/** What stands for the host's memory in place of a device. */
const HOST = 0;
const decoder = new TextDecoder();
const encoder = new TextEncoder();

/** Throws the error that a call left in its buffer, if it left one. */
function unwrap<T>(result: T, error: Uint8Array): T {
  const code = error[0]!;
  if (code === 0) return result;
  const length = error[1]! | error[2]! << 8;
  throw new NativeError(CODES[code] ?? "internal", decoder.decode(error.subarray(3, 3 + length)));
}

/** A slice's length, as the C surface takes it. */
const length = (bytes: Uint8Array): bigint => BigInt(bytes.byteLength);

function call<T>(body: (symbols: Symbols, error: Uint8Array<ArrayBuffer>, errorLength: bigint) => T): T {
  const error = new Uint8Array(ERROR_BYTES);
  return unwrap(body(library().symbols, error, BigInt(ERROR_BYTES)), error);
}

/** A text that a call writes. */
function readText(
  body: (symbols: Symbols, out: Uint8Array<ArrayBuffer>, error: Uint8Array<ArrayBuffer>, errorLength: bigint) => number,
): string {
  const out = new Uint8Array(TEXT_BYTES);
  return decoder.decode(out.subarray(0, call((s, e, n) => body(s, out, e, n))));
}

function free(handle: number): void {
  call((s, e, n) => s.denoise_free(handle, e, n));
}

const registry = new FinalizationRegistry(free);

/** An object of the native library. */
abstract class Handle implements Disposable {
  #handle: number;

  constructor(handle: number) {
    this.#handle = handle;
    registry.register(this, handle, this);
  }

  /** The number that the library knows it by. */
  get handle(): number {
    return this.#handle;
  }

  /** Frees it; a run that uses it keeps it until it ends. */
  [Symbol.dispose](): void {
    if (this.#handle === 0) return;
    registry.unregister(this);
    free(this.#handle);
    this.#handle = 0;
  }
}

/** A CPU of an instruction level (the best by default) with a number of threads (all by default). */
export interface CpuOptions {
  /** The level. */
  level?: string | undefined;
  /** The number of threads. */
  threads?: number | undefined;
}

/** A device of a CUDA library. */
export interface CudaOptions {
  /** The library's path. */
  library: string;
  /** The device's number. */
  ordinal: number;
}

/** A CPU with its threads, or a device of a CUDA library. */
export class NativeDevice extends Handle {
  /** Opens one. */
  constructor(options: CpuOptions | CudaOptions = {}) {
    if ("library" in options) {
      const path = encoder.encode(options.library);
      super(call((s, e, n) => s.denoise_cuda_open(path, length(path), options.ordinal, e, n)));
      return;
    }
    const { level = "", threads = 0 } = options;
    if (!Number.isInteger(threads) || threads < 0 || threads > 1024) {
      throw new RangeError(`The number of threads is 1 to 1024, got ${threads}`);
    }
    // A buffer of no bytes has no address: the library drops the padding.
    const name = encoder.encode(level || "\0");
    super(call((s, e, n) => s.denoise_device_open(name, length(name), threads, e, n)));
  }

  /** What tells it from others. */
  describe(): DeviceDescription {
    const text = readText((s, out, e, n) => s.denoise_device_describe(this.handle, out, length(out), e, n));
    const [name = "", architecture = "", cacheBytes = "", ...libraries] = text.split("\n");
    return { name, architecture, cacheBytes: Number(cacheBytes), libraries: libraries.filter(Boolean) };
  }

  /** The names of the ways to run each call of a program, by `variant`; none where there is but one. */
  ways(program: NativeProgram): string[][] {
    const text = readText((s, out, e, n) =>
      s.denoise_program_ways(this.handle, program.handle, out, length(out), e, n)
    );
    return text.split("\n").map((line) => line === "" ? [] : line.split("\t"));
  }
}

/** What tells a device from others. */
export interface DeviceDescription {
  /** Its model. */
  name: string;
  /** A CPU's instruction level, a CUDA device's architecture. */
  architecture: string;
  /** The bytes of its last cache; 0 where they are not known. */
  cacheBytes: number;
  /** The libraries that its kernels call, each with its version. */
  libraries: string[];
}

/** Some bytes of a file. */
export interface FilePart {
  /** The first. */
  offset: number;
  /** How many. */
  byteLength: number;
}

/** Memory that programs read and write: the host's, which CPUs share, unless it is told a device that has its own. */
export class NativeBuffer extends Handle {
  /** Its size in bytes. */
  readonly byteLength: number;
  /** The device in whose own memory it lies. */
  readonly device: NativeDevice | undefined;

  private constructor(
    handle: number,
    { byteLength, device }: { byteLength: number; device: NativeDevice | undefined },
  ) {
    super(handle);
    this.byteLength = byteLength;
    this.device = device;
  }

  /** Zeroed memory. */
  static create(byteLength: number, device?: NativeDevice): NativeBuffer {
    const where = device?.handle ?? HOST;
    const handle = call((s, e, n) => s.denoise_buffer_create(where, byteLength, e, n));
    return new NativeBuffer(handle, { byteLength, device });
  }

  /** A part of a file, which is mapped, or copied to a device. */
  static map(path: string, { offset, byteLength }: FilePart, device?: NativeDevice): NativeBuffer {
    const name = encoder.encode(path);
    const where = device?.handle ?? HOST;
    const handle = call((s, e, n) => s.denoise_buffer_map(where, name, length(name), offset, byteLength, e, n));
    return new NativeBuffer(handle, { byteLength, device });
  }

  /** Memory with a copy of some bytes. */
  static from(bytes: Uint8Array<ArrayBuffer>, device?: NativeDevice): NativeBuffer {
    const buffer = NativeBuffer.create(bytes.byteLength, device);
    if (bytes.byteLength > 0) buffer.write(bytes);
    return buffer;
  }

  /** Copies bytes in. */
  write(bytes: Uint8Array<ArrayBuffer>, offset = 0): void {
    call((s, e, n) => s.denoise_buffer_write(this.handle, offset, bytes, length(bytes), e, n));
  }

  /** Copies bytes out. */
  read(byteLength = this.byteLength, offset = 0): Uint8Array<ArrayBuffer> {
    const bytes = new Uint8Array(byteLength);
    if (byteLength > 0) call((s, e, n) => s.denoise_buffer_read(this.handle, offset, bytes, length(bytes), e, n));
    return bytes;
  }
}

/** A program that the library has checked. */
export class NativeProgram extends Handle {
  /** Hands the library a program's bytes, which it checks. */
  constructor(bytes: Uint8Array<ArrayBuffer>) {
    super(call((s, e, n) => s.denoise_program_load(bytes, length(bytes), e, n)));
  }
}

/** A flag that stops a run. */
class Token extends Handle {
  constructor() {
    super(call((s, e, n) => s.denoise_token_create(e, n)));
  }

  cancel(): void {
    call((s, e, n) => s.denoise_token_cancel(this.handle, e, n));
  }
}

/** A video format that the library writes and reads, by its number there. */
const VIDEO_FORMATS = { h264: 0, gif: 1 } as const;

/** What a video encoder takes. */
export interface VideoEncoderOptions {
  /** Pixels in a row. */
  width: number;
  /** Rows. */
  height: number;
  /** Frames a second. */
  fps: number;
  /** The quantizer of H.264, 0 to 51. */
  qp: number;
}

/** How a video's luma and chroma stand for RGB. */
export interface VideoColour {
  /** H.273's number of the matrix coefficients. */
  matrix: number;
  /** Whether black and white are 0 and 255, not 16 and 235. */
  fullRange: boolean;
}

/** A video encoder or decoder. Its calls run on threads of the library's own; the event loop stays free. */
export class NativeVideo extends Handle {
  private constructor(handle: number) {
    super(handle);
  }

  /** An encoder of frames of RGB. */
  static encoder(format: keyof typeof VIDEO_FORMATS, options: VideoEncoderOptions): NativeVideo {
    const { width, height, fps, qp } = options;
    const number = VIDEO_FORMATS[format];
    return new NativeVideo(call((s, e, n) => s.denoise_video_encoder_create(number, width, height, fps, qp, e, n)));
  }

  /** A decoder to frames of RGB. */
  static decoder(format: keyof typeof VIDEO_FORMATS, { matrix, fullRange }: VideoColour): NativeVideo {
    const number = VIDEO_FORMATS[format];
    return new NativeVideo(call((s, e, n) => s.denoise_video_decoder_create(number, matrix, Number(fullRange), e, n)));
  }

  /** Hands in a frame, or a piece of a stream; gives what came of it. */
  push(bytes: Uint8Array<ArrayBuffer>): Promise<Uint8Array<ArrayBuffer>> {
    return this.#output((s, e, n) => s.denoise_video_push(this.handle, bytes, length(bytes), e, n));
  }

  /** After the last input, the next thing that is left; of no bytes where nothing is. */
  drain(): Promise<Uint8Array<ArrayBuffer>> {
    return this.#output((s, e, n) => s.denoise_video_drain(this.handle, e, n));
  }

  async #output(
    start: (symbols: Symbols, error: Uint8Array<ArrayBuffer>, errorLength: bigint) => Promise<number>,
  ): Promise<Uint8Array<ArrayBuffer>> {
    const error = new Uint8Array(ERROR_BYTES);
    const out = new Uint8Array(unwrap(await start(library().symbols, error, BigInt(ERROR_BYTES)), error));
    if (out.length > 0) call((s, e, n) => s.denoise_video_take(this.handle, out, length(out), e, n));
    return out;
  }
}

/** How a program is run. */
export interface RunOptions {
  /** Stops the run before its next kernel. */
  signal?: AbortSignal | undefined;
  /** Receives each kernel's seconds. */
  times?: Float64Array<ArrayBuffer> | undefined;
}

/**
 * Runs a program on threads of the library's own; the event loop stays free.
 *
 * @param target The device and the program.
 * @param buffers The buffers that the program takes, in its order.
 * @param options A signal that stops it; an array for times.
 */
export async function runProgram(
  target: { device: NativeDevice; program: NativeProgram },
  buffers: readonly NativeBuffer[],
  options: RunOptions = {},
): Promise<void> {
  const { signal, times } = options;
  signal?.throwIfAborted();
  using token = new Token();
  const cancel = () => token.cancel();
  signal?.addEventListener("abort", cancel, { once: true });
  const handles = new Uint8Array(Math.max(4, 4 * buffers.length));
  const view = new DataView(handles.buffer);
  buffers.forEach((buffer, i) => view.setUint32(4 * i, buffer.handle, true));
  const seconds = times ? new Uint8Array(times.buffer, times.byteOffset, times.byteLength) : new Uint8Array(1);
  const error = new Uint8Array(ERROR_BYTES);
  try {
    await library().symbols.denoise_program_run(
      target.device.handle,
      target.program.handle,
      handles,
      BigInt(4 * buffers.length),
      token.handle,
      seconds,
      length(seconds),
      error,
      BigInt(ERROR_BYTES),
    );
    unwrap(undefined, error);
  } catch (e) {
    if (e instanceof NativeError && e.code === "cancelled") signal?.throwIfAborted();
    throw e;
  } finally {
    signal?.removeEventListener("abort", cancel);
  }
}
