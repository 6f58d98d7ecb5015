/**
 * What the video formats have in common.
 *
 * @module
 */

import { DenoiseError, NativeError } from "../errors.ts";
import { messageOf } from "../tensor/output.ts";

/** What a format is told of a video. */
export interface VideoFormatOptions {
  /** Pixels in a row. */
  readonly width: number;
  /** Rows. */
  readonly height: number;
  /** Frames a second. */
  readonly fps: number;
  /** H.264's quantizer. */
  readonly qp: number;
  /** How many frames come, where it is known. */
  readonly numFrames: number | undefined;
  /** Texts by keyword. */
  readonly metadata: Readonly<Record<string, string>>;
}

/** Frames in, a file's bytes out. Calls follow one another. */
export interface FrameWriter {
  /** Takes a frame, RGB. */
  write(frame: Uint8Array<ArrayBuffer>): Promise<void>;
  /** Writes what ends the file. */
  end(): Promise<void>;
  /** Gives up. */
  cancel(): Promise<void>;
}

/** A file in, frames out. */
export interface FrameReader {
  /** Pixels in a row. */
  readonly width: number;
  /** Rows. */
  readonly height: number;
  /** Frames a second. */
  readonly fps: number;
  /** The number of frames. */
  readonly frameCount: number;
  /** Texts by keyword. */
  readonly metadata: Readonly<Record<string, string>>;
  /** The frames from the first, RGB: `frameCount` of them, or an error. */
  frames(): AsyncGenerator<Uint8Array<ArrayBuffer>>;
}

const HEADER_BYTES = 12;

/**
 * The pixels of what the native library's decoders give.
 *
 * @param output What one gave: the frame's width and height, a delay, RGB
 * @param size What the file says of the frame's size
 * @returns The pixels
 */
export function pixelsOf(
  output: Uint8Array<ArrayBuffer>,
  size: { width: number; height: number },
): Uint8Array<ArrayBuffer> {
  const view = new DataView(output.buffer, output.byteOffset);
  const [width, height] = [view.getUint32(0, true), view.getUint32(4, true)];
  if (width !== size.width || height !== size.height) {
    throw new Error(`a frame is of ${width} by ${height}, the file says ${size.width} by ${size.height}`);
  }
  return output.subarray(HEADER_BYTES);
}

/**
 * Reads a file, and gives what goes wrong its name.
 *
 * @param source The file, and the format that it is read as
 * @param read What is done
 * @returns What that gives
 * @throws {DenoiseError} If it fails
 */
export async function readingFile<T>(
  source: { file: string; format: string },
  read: () => T | Promise<T>,
): Promise<T> {
  const { file, format } = source;
  try {
    return await read();
  } catch (cause) {
    if (cause instanceof DenoiseError && !(cause instanceof NativeError)) throw cause;
    throw new DenoiseError(`Cannot read ${file} as ${format}: ${messageOf(cause)}; pass a whole file`, { file, cause });
  }
}
