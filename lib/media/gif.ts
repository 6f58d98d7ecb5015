/**
 * Animated GIFs, for places that show no video. The native library makes the palettes and packs the pixels; the texts,
 * which it leaves alone, are handled here.
 *
 * @module
 */

import { loadLibrary } from "../../ffi/library.ts";
import { NativeVideo } from "../../ffi/native.ts";
import type { Destination } from "./destination.ts";
import { type FrameReader, type FrameWriter, pixelsOf, readingFile, type VideoFormatOptions } from "./frames.ts";

/** Browsers slow down what is shown for less than two hundredths of a second. */
const MAX_FPS = 50;
const MAX_SIDE = 65535;

/** What a GIF's blocks start with. */
const IMAGE = 0x2c;
const EXTENSION = 0x21;
const TRAILER = 0x3b;
/** The extensions that matter here. */
const COMMENT = 0xfe;
const CONTROL = 0xf9;

/** Decoders of GIF know one way to stand for RGB. */
const COLOUR = { matrix: 1, fullRange: false };

/**
 * Writes a GIF that repeats for ever, its texts as JSON in a comment.
 *
 * @param destination Where its bytes go
 * @param options The size, the rate, the texts
 * @returns What takes its frames
 * @throws {RangeError} If a GIF does not take the size or the rate
 */
export async function createGif(destination: Destination, options: VideoFormatOptions): Promise<FrameWriter> {
  const { width, height, fps, metadata } = options;
  if (Math.max(width, height) > MAX_SIDE || fps > MAX_FPS) {
    throw new RangeError(
      `Cannot write a video of ${width} by ${height} at ${fps} frames a second as GIF: pass sides of at most ` +
        `${MAX_SIDE} pixels and at most ${MAX_FPS} frames a second, or a path that ends in .mp4`,
    );
  }
  await loadLibrary();
  const encoder = NativeVideo.encoder("gif", options);
  let position = 0;
  const write = async (bytes: Uint8Array) => {
    await destination.write(bytes, position);
    position += bytes.length;
  };
  return {
    async write(frame) {
      await write(await encoder.push(frame));
    },
    async end() {
      if (Object.keys(metadata).length > 0) await write(comment(JSON.stringify(metadata)));
      await write(await encoder.drain());
      encoder[Symbol.dispose]();
    },
    cancel() {
      encoder[Symbol.dispose]();
      return Promise.resolve();
    },
  };
}

/** A comment: its text in blocks of at most 255 bytes. The format knows ASCII only, so other letters are escaped. */
function comment(json: string): Uint8Array {
  const text = json.replace(/[^\x20-\x7e]/g, (unit) => `\\u${unit.charCodeAt(0).toString(16).padStart(4, "0")}`);
  const blocks = text.match(/.{1,255}/g)!.map((block) => [block.length, ...new TextEncoder().encode(block)]);
  return Uint8Array.from([EXTENSION, COMMENT, ...blocks.flat(), 0]);
}

/**
 * Reads a GIF.
 *
 * @param bytes The file's bytes
 * @param options The file's name, for messages
 * @returns Its frames and texts
 * @throws {DenoiseError} If it is broken
 */
export async function openGif(bytes: Uint8Array<ArrayBuffer>, options: { file: string }): Promise<FrameReader> {
  const reading = <T>(read: () => T | Promise<T>) => readingFile({ file: options.file, format: "a GIF" }, read);
  await loadLibrary();
  return await reading(() => {
    const { width, height, delays, comments } = readBlocks(bytes);
    return {
      width,
      height,
      fps: rateOf(delays),
      frameCount: delays.length,
      metadata: Object.assign({}, ...comments.map(readComment)),
      async *frames() {
        using decoder = NativeVideo.decoder("gif", COLOUR);
        await reading(() => decoder.push(bytes));
        for (;;) {
          const output = await reading(() => decoder.drain());
          if (output.length === 0) return;
          yield await reading(() => pixelsOf(output, { width, height }));
        }
      },
    };
  });
}

/** What a GIF's blocks say but for the pixels (GIF89a, appendix A). */
function readBlocks(bytes: Uint8Array): { width: number; height: number; delays: number[]; comments: string[] } {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  /** The bytes of a palette that a flags byte tells of. */
  const palette = (flags: number) => flags & 0x80 ? 3 * 2 << (flags & 7) : 0;
  const [width, height] = [view.getUint16(6, true), view.getUint16(8, true)];
  let at = 13 + palette(view.getUint8(10));
  let delay = 0;
  const delays: number[] = [];
  const comments: string[] = [];
  const readParts = (): Uint8Array => {
    const parts: Uint8Array[] = [];
    for (;;) {
      const length = view.getUint8(at);
      const end = at + 1 + length;
      if (end > bytes.length) throw new Error(`it ends after ${bytes.length} bytes, within a block`);
      parts.push(bytes.subarray(at + 1, end));
      at = end;
      if (length === 0) break;
    }
    return new Uint8Array(parts.flatMap((part) => [...part]));
  };
  for (;;) {
    const kind = view.getUint8(at);
    if (kind === TRAILER) return { width, height, delays, comments };
    if (kind === IMAGE) {
      at += 11 + palette(view.getUint8(at + 9)); // place, size, flags; how wide the first codes are
      readParts();
      delays.push(delay);
      delay = 0;
    } else if (kind === EXTENSION) {
      const label = view.getUint8(at + 1);
      at += 2;
      const data = readParts();
      if (label === COMMENT) comments.push(new TextDecoder().decode(data));
      if (label === CONTROL && data.length >= 3) delay = data[1]! | data[2]! << 8;
    } else {
      throw new Error(`byte ${at} starts no block that there is`);
    }
  }
}

/** Texts by keyword as they are written here, or another writer's comment under the keyword that PNG has for it. */
function readComment(text: string): Record<string, string> {
  try {
    const entries = Object.entries(JSON.parse(text));
    if (entries.every((entry): entry is [string, string] => typeof entry[1] === "string")) {
      return Object.fromEntries(entries);
    }
  } catch { /* another writer's */ }
  return { Comment: text };
}

/**
 * Frames a second. A GIF counts hundredths of a second: where they are the rounded ends of frames at a whole rate, as
 * they are written here, it is that rate.
 */
function rateOf(delays: readonly number[]): number {
  const sum = delays.reduce((total, delay) => total + delay, 0);
  if (sum === 0) return 10; // what browsers do where no time is given
  const rate = 100 * delays.length / sum;
  const whole = Math.round(rate);
  let end = 0;
  const isWhole = whole > 0 && delays.every((delay, i) => {
    end += delay;
    return Math.abs(end - 100 * (i + 1) / whole) <= 0.5;
  });
  return isWhole ? whole : rate;
}
