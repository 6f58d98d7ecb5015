/**
 * Videos: written frame by frame as they are made, held in memory where they are short, read back, shown in notebooks.
 *
 * @module
 */

import { fileURLToPath } from "node:url";
import { DenoiseError } from "../errors.ts";
import { type Destination, MemoryFile, StagedFile } from "./destination.ts";
import type { FrameReader, FrameWriter, VideoFormatOptions } from "./frames.ts";
import { createGif, openGif } from "./gif.ts";
import { type GridOptions, Image } from "./image.ts";
import { readInput } from "./input.ts";
import { createMp4, openMp4 } from "./mp4.ts";
import { channelsOf, type Pixels } from "./png.ts";

/** How a video is encoded. */
export interface VideoEncoding {
  /**
   * The quantizer of H.264, from 0 (the best, and large) to 51: the quality is the same throughout, the size what that
   * takes. 18 by default, at which the loss is hard to see. A GIF has none.
   */
  qp?: number;
}

/** Options of {@linkcode VideoWriter.create}. */
export interface VideoWriterOptions extends VideoEncoding {
  /** Pixels in a row. */
  width: number;
  /** Rows. */
  height: number;
  /** Frames a second, 1 to 240. Write `30000 / 1001` for 29.97. */
  fps: number;
  /** Texts by keyword, kept in the file: what made the video. */
  metadata?: Readonly<Record<string, string>>;
  /**
   * How many frames will be written at most, where that is known: an MP4's index then stands at its start, so that it
   * plays while it is being downloaded.
   */
  numFrames?: number;
}

/** Options of {@linkcode Video}'s constructor. */
export interface VideoInit {
  /** Frames a second. */
  fps: number;
  /** Texts by keyword, kept in the file: what made the video. */
  metadata?: Readonly<Record<string, string>>;
}

/** Options of {@linkcode Video.strip}. */
export interface StripOptions extends GridOptions {
  /** How many frames to show, evenly spaced, the first and the last among them. 8 by default. */
  count?: number;
}

const DEFAULT_QP = 18;

/** The formats by the end of a path. */
const FORMATS: Readonly<
  Record<string, (destination: Destination, options: VideoFormatOptions) => Promise<FrameWriter>>
> = { ".mp4": createMp4, ".gif": createGif };

/**
 * Writes a video frame by frame, so that a long one never lies in memory: an MP4 (H.264) or an animated GIF, by the end
 * of its path. The file is written beside its place and is there when it is whole; of one that fails or is given up
 * nothing is left.
 *
 * @example A video of two frames
 * ```ts
 * import { strictEqual } from "node:assert/strict";
 * import { VideoReader, VideoWriter } from "./video.ts";
 *
 * const folder = await Deno.makeTempDir();
 * {
 *   await using writer = await VideoWriter.create(`${folder}/grey.mp4`, { width: 32, height: 16, fps: 8 });
 *   for (const value of [64, 192]) await writer.write(new Uint8Array(32 * 16 * 3).fill(value));
 *   await writer.close();
 * }
 * strictEqual((await VideoReader.open(`${folder}/grey.mp4`)).frameCount, 2);
 * await Deno.remove(folder, { recursive: true });
 * ```
 */
export class VideoWriter implements AsyncDisposable {
  /** The file. */
  readonly path: string;
  /** Pixels in a row. */
  readonly width: number;
  /** Rows. */
  readonly height: number;
  readonly #file: StagedFile;
  readonly #frames: FrameWriter;
  readonly #numFrames: number;
  #count = 0;
  #state: "open" | "closed" | "given up" = "open";
  /** What is being done: calls follow one another. */
  #last: Promise<void> = Promise.resolve();

  private constructor(path: string, options: VideoFormatOptions, { file, frames }: {
    file: StagedFile;
    frames: FrameWriter;
  }) {
    this.path = path;
    this.width = options.width;
    this.height = options.height;
    this.#numFrames = options.numFrames ?? Infinity;
    this.#file = file;
    this.#frames = frames;
  }

  /**
   * Begins a video.
   *
   * @param path A file that ends in `.mp4` or `.gif`, in a folder that is there
   * @param options The size, the rate, the texts, the quality
   * @returns What takes its frames
   * @throws {RangeError} If the path ends otherwise, or the format does not take the size or the rate
   * @throws {OutputError} If the folder is missing, cannot be written, or is full
   */
  static async create(path: string | URL, options: VideoWriterOptions): Promise<VideoWriter> {
    const target = path instanceof URL ? fileURLToPath(path) : path;
    const format = FORMATS[endingOf(target)];
    if (!format) throw new RangeError(`Cannot write a video as ${target}: pass a path that ends in .mp4 or .gif`);
    const checked = checkOptions(options);
    const file = await StagedFile.create(target);
    try {
      return new VideoWriter(target, checked, { file, frames: await format(file, checked) });
    } catch (error) {
      await file.discard();
      throw error;
    }
  }

  /** How many frames have been written. */
  get frameCount(): number {
    return this.#count;
  }

  /**
   * Writes a frame.
   *
   * @param frame `height * width * 3` bytes of RGB, or a picture of the video's size
   * @throws {TypeError} If it is of another size, or the video has been ended
   * @throws {RangeError} If there are `numFrames` already
   * @throws {OutputError} If the file cannot be written; nothing is left of it then
   */
  async write(frame: Uint8Array | Pixels): Promise<void> {
    const data = rgbOf(frame, this);
    if (this.#count === this.#numFrames) {
      throw new RangeError(
        `Cannot write another frame to ${this.path} as its numFrames is ${this.#numFrames}: pass the number that comes`,
      );
    }
    this.#count++;
    await this.#next(() => this.#frames.write(data));
  }

  /**
   * Ends the video and puts it in its place.
   *
   * @throws {RangeError} If it has no frame
   * @throws {OutputError} If the file cannot be written; nothing is left of it then
   */
  async close(): Promise<void> {
    if (this.#count === 0) throw new RangeError(`Cannot end ${this.path}: write a frame or more first`);
    await this.#next(async () => {
      await this.#frames.end();
      await this.#file.commit();
      this.#state = "closed";
    });
  }

  /** Gives the video up; nothing is left of it. Does nothing after it was closed. */
  abort(): Promise<void> {
    return this.#last = this.#last.catch(() => {}).then(() => this.#giveUp());
  }

  /** Gives the video up unless it was closed. */
  [Symbol.asyncDispose](): Promise<void> {
    return this.abort();
  }

  /** Does the next thing after what is being done; whatever fails ends the video. */
  #next(body: () => Promise<void>): Promise<void> {
    const done = this.#last.catch(() => {}).then(async () => {
      if (this.#state !== "open") throw new TypeError(`Cannot write to ${this.path} as it is ${this.#state}`);
      try {
        await body();
      } catch (error) {
        await this.#giveUp();
        throw error;
      }
    });
    this.#last = done;
    return done;
  }

  async #giveUp(): Promise<void> {
    if (this.#state !== "open") return;
    this.#state = "given up";
    try {
      await this.#frames.cancel();
    } catch { /* what led here is the thing to tell */ }
    await this.#file.discard();
  }
}

/**
 * A video in memory: for what is short. In a notebook, a cell that ends with one plays it.
 *
 * @example Saving pictures as a video
 * ```ts
 * import { strictEqual } from "node:assert/strict";
 * import { Image } from "./image.ts";
 * import { readVideo, Video } from "./video.ts";
 *
 * const frames = [60, 120, 180].map((value) => new Image({ width: 32, height: 16, data: new Uint8Array(1536).fill(value) }));
 * const video = new Video(frames, { fps: 8, metadata: { prompt: "grey" } });
 * const folder = await Deno.makeTempDir();
 * await video.save(`${folder}/grey.mp4`);
 * strictEqual((await readVideo(`${folder}/grey.mp4`)).metadata.prompt, "grey");
 * await Deno.remove(folder, { recursive: true });
 * ```
 */
export class Video {
  /** The frames, RGB, all of one size. */
  readonly frames: readonly Image[];
  /** Pixels in a row. */
  readonly width: number;
  /** Rows. */
  readonly height: number;
  /** Frames a second. */
  readonly fps: number;
  /** Texts by keyword, kept in the file: what made the video. */
  readonly metadata: Readonly<Record<string, string>>;

  /** Makes a video of one picture or more, RGB and of one size, which are not copied. */
  constructor(frames: readonly Image[], options: VideoInit) {
    const [first] = frames;
    if (!first) throw new RangeError("Cannot make a video of no frames: pass one or more");
    const { fps, metadata } = checkOptions({ ...options, width: first.width, height: first.height });
    for (const frame of frames) rgbOf(frame, first);
    this.frames = frames;
    this.width = first.width;
    this.height = first.height;
    this.fps = fps;
    this.metadata = metadata;
  }

  /** How long it plays, in seconds. */
  get duration(): number {
    return this.frames.length / this.fps;
  }

  /**
   * Writes the video: as MP4 or animated GIF, or as a PNG of frames beside each other, by the end of the path. The file
   * is written beside its place and renamed, so that it is whole or not there.
   *
   * @param path A file that ends in `.mp4`, `.gif` or `.png`, in a folder that is there
   * @param options The quality
   * @throws {RangeError} If the path ends otherwise, or the format does not take the size or the rate
   * @throws {OutputError} If the folder is missing, cannot be written, or is full
   */
  async save(path: string | URL, options: VideoEncoding = {}): Promise<void> {
    if (endingOf(String(path)) === ".png") return await this.strip().save(path);
    const { width, height, fps, metadata } = this;
    const numFrames = this.frames.length;
    await using writer = await VideoWriter.create(path, { width, height, fps, metadata, numFrames, ...options });
    for (const frame of this.frames) await writer.write(frame);
    await writer.close();
  }

  /**
   * The video as an MP4 file's bytes.
   *
   * @param options The quality
   * @returns The bytes
   */
  toMp4(options: VideoEncoding = {}): Promise<Uint8Array<ArrayBuffer>> {
    return this.#encode(createMp4, options);
  }

  /**
   * The video as an animated GIF's bytes.
   *
   * @returns The bytes
   */
  toGif(): Promise<Uint8Array<ArrayBuffer>> {
    return this.#encode(createGif, {});
  }

  /**
   * Frames beside each other in one picture.
   *
   * @param options How many frames, how many in a row, pixels between them
   * @returns The picture, with the video's metadata
   */
  strip(options: StripOptions = {}): Image {
    const { count = 8, columns, gap } = options;
    if (!Number.isInteger(count) || count < 1) {
      throw new RangeError(`Cannot show ${count} frames: pass a positive integer`);
    }
    const shown = Math.min(count, this.frames.length);
    const step = (this.frames.length - 1) / Math.max(1, shown - 1);
    const frames = Array.from({ length: shown }, (_, i) => this.frames[Math.round(i * step)]!);
    const grid = Image.grid(frames, { columns: columns ?? shown, ...(gap === undefined ? {} : { gap }) });
    return new Image({ width: grid.width, height: grid.height, data: grid.data, metadata: this.metadata });
  }

  /** What a notebook shows: a MIME bundle of a player with the video as MP4, or of a GIF where MP4 takes no such size. */
  async [Symbol.for("Jupyter.display")](): Promise<Record<string, string>> {
    if (this.width % 2 || this.height % 2) return { "image/gif": (await this.toGif()).toBase64() };
    const source = `data:video/mp4;base64,${(await this.toMp4()).toBase64()}`;
    return {
      "text/html":
        `<video controls loop autoplay muted width="${this.width}" height="${this.height}" src="${source}"></video>`,
    };
  }

  async #encode(format: typeof createMp4, options: VideoEncoding): Promise<Uint8Array<ArrayBuffer>> {
    const file = new MemoryFile();
    const { width, height, fps, metadata } = this;
    const numFrames = this.frames.length;
    const writer = await format(file, checkOptions({ width, height, fps, metadata, numFrames, ...options }));
    try {
      for (const frame of this.frames) await writer.write(rgbOf(frame, this));
    } catch (error) {
      await writer.cancel();
      throw error;
    }
    await writer.end();
    return file.bytes;
  }
}

/**
 * A video file, whose frames are decoded as they are asked for: an MP4 of H.264, or a GIF.
 *
 * @example The frames of a video, one at a time
 * ```ts
 * import { strictEqual } from "node:assert/strict";
 * import { Image } from "./image.ts";
 * import { Video, VideoReader } from "./video.ts";
 *
 * const folder = await Deno.makeTempDir();
 * const frames = [60, 120].map((value) => new Image({ width: 32, height: 16, data: new Uint8Array(1536).fill(value) }));
 * await new Video(frames, { fps: 8 }).save(`${folder}/grey.gif`);
 * const reader = await VideoReader.open(`${folder}/grey.gif`);
 * strictEqual(reader.fps, 8);
 * for await (const frame of reader) strictEqual(frame.width, 32);
 * await Deno.remove(folder, { recursive: true });
 * ```
 */
export class VideoReader implements AsyncIterable<Image> {
  /** Pixels in a row. */
  readonly width: number;
  /** Rows. */
  readonly height: number;
  /** Frames a second; the mean where a file has no one rate. */
  readonly fps: number;
  /** How many frames the file says that it has. */
  readonly frameCount: number;
  /** Texts by keyword: what made the video. */
  readonly metadata: Readonly<Record<string, string>>;
  readonly #reader: FrameReader;

  private constructor(reader: FrameReader) {
    this.width = reader.width;
    this.height = reader.height;
    this.fps = reader.fps;
    this.frameCount = reader.frameCount;
    this.metadata = reader.metadata;
    this.#reader = reader;
  }

  /**
   * Opens a video.
   *
   * @param path The file
   * @returns What gives its frames
   * @throws {DenoiseError} If it cannot be read, is broken, or is neither an MP4 of H.264 nor a GIF
   */
  static async open(path: string | URL): Promise<VideoReader> {
    const file = path instanceof URL ? fileURLToPath(path) : path;
    const bytes = await readInput(file);
    const head = new TextDecoder("latin1").decode(bytes.subarray(0, 12));
    if (/^GIF8[79]a/.test(head)) return new VideoReader(await openGif(bytes, { file }));
    if (/^.{4}(ftyp|moov|mdat|wide|free|skip)/s.test(head)) return new VideoReader(await openMp4(bytes, { file }));
    throw new DenoiseError(`Cannot read ${file}: it is no video that is known here; pass an MP4 of H.264 or a GIF`, {
      file,
    });
  }

  /** The frames from the first; each loop decodes anew. */
  async *[Symbol.asyncIterator](): AsyncGenerator<Image> {
    const { width, height } = this;
    for await (const data of this.#reader.frames()) yield new Image({ width, height, data });
  }
}

/**
 * Reads a short video whole. {@linkcode VideoReader} reads a long one frame by frame.
 *
 * @param path The file: an MP4 of H.264, or a GIF
 * @returns The video, with the texts in the file
 * @throws {DenoiseError} If it cannot be read, is broken, or is neither
 */
export async function readVideo(path: string | URL): Promise<Video> {
  const reader = await VideoReader.open(path);
  const frames = await Array.fromAsync(reader);
  if (frames.length === 0) throw new DenoiseError(`Cannot read ${path}: it has no frames`, { file: String(path) });
  return new Video(frames, reader);
}

function endingOf(path: string): string {
  return path.match(/\.\w+$/)?.[0].toLowerCase() ?? "";
}

/** What formats take, checked. */
function checkOptions(options: VideoWriterOptions): VideoFormatOptions {
  const { width, height, fps, qp = DEFAULT_QP, numFrames, metadata = {} } = options;
  for (const side of [width, height]) {
    if (!Number.isInteger(side) || side < 1) {
      throw new RangeError(`Cannot make a video of ${width} by ${height}: pass positive integers`);
    }
  }
  if (!(fps >= 1 && fps <= 240)) throw new RangeError(`Cannot make a video of ${fps} frames a second: pass 1 to 240`);
  if (!Number.isInteger(qp) || qp < 0 || qp > 51) {
    throw new RangeError(`Cannot encode with the quantizer ${qp}: pass an integer from 0 to 51`);
  }
  if (numFrames !== undefined && (!Number.isInteger(numFrames) || numFrames < 1)) {
    throw new RangeError(`Cannot write ${numFrames} frames: pass a positive integer`);
  }
  for (const [keyword, text] of Object.entries(metadata)) {
    if (typeof text !== "string") {
      throw new TypeError(`Cannot write metadata ${JSON.stringify(keyword)} as it is a ${typeof text}: pass a string`);
    }
  }
  return { width, height, fps, qp, numFrames, metadata };
}

/** A frame's bytes, if it is RGB of the video's size. */
function rgbOf(
  frame: Uint8Array | Pixels,
  { width, height }: { width: number; height: number },
): Uint8Array<ArrayBuffer> {
  const isPicture = "data" in frame;
  const data = isPicture ? frame.data : frame;
  if (data.length !== width * height * 3 || (isPicture && frame.width !== width)) {
    const found = isPicture
      ? `${frame.width} by ${frame.height} with ${channelsOf(frame)} channels`
      : `${data.length} bytes`;
    throw new TypeError(
      `A frame of ${width} by ${height} takes ${
        width * height * 3
      } bytes of RGB, got ${found}: pass frames of one size`,
    );
  }
  // Memory that threads share cannot be handed to the native library.
  return data.buffer instanceof ArrayBuffer ? data as Uint8Array<ArrayBuffer> : data.slice();
}
