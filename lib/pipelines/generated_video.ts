/**
 * A video whose frames are decoded when they are wanted, a few at a time, so that it never lies in memory whole.
 *
 * @module
 */

import type { Image } from "../media/image.ts";
import { type StripOptions, Video, type VideoEncoding, VideoWriter } from "../media/video.ts";

/** What {@linkcode GeneratedVideo} is made of. */
export interface GeneratedVideoInit {
  /** Pixels in a row. */
  readonly width: number;
  /** Rows. */
  readonly height: number;
  /** Frames a second. */
  readonly fps: number;
  /** How many frames there are. */
  readonly frameCount: number;
  /** Texts by keyword, kept in the file. */
  readonly metadata: Readonly<Record<string, string>>;
  /** Decodes the frames from the first, as they are asked for. */
  readonly decode: (signal: AbortSignal | undefined) => AsyncGenerator<Image, void>;
}

/** Frames of a strip by default. */
const DEFAULT_SHOWN = 8;

/** How a video's frames are decoded. */
export interface DecodeFramesOptions {
  /** Stops before the next kernel; what was being written is given up. */
  signal?: AbortSignal | undefined;
  /** Called with how many frames are there, after each. */
  onFrame?: ((count: number) => void) | undefined;
}

/** How a video is saved. */
export interface SaveVideoOptions extends VideoEncoding, DecodeFramesOptions {}

/**
 * A video that was made and not decoded yet: saving it, or going through its frames, decodes them a few at a time, each
 * time anew. `load` decodes all and keeps them, where a video is short. In a notebook, a cell that ends with one plays it.
 */
export class GeneratedVideo implements AsyncIterable<Image> {
  /** Pixels in a row. */
  readonly width: number;
  /** Rows. */
  readonly height: number;
  /** Frames a second. */
  readonly fps: number;
  /** How many frames there are. */
  readonly frameCount: number;
  /** Texts by keyword, kept in the file: what made the video. */
  readonly metadata: Readonly<Record<string, string>>;
  readonly #decode: GeneratedVideoInit["decode"];

  /** @internal A pipeline makes them. */
  constructor(init: GeneratedVideoInit) {
    this.width = init.width;
    this.height = init.height;
    this.fps = init.fps;
    this.frameCount = init.frameCount;
    this.metadata = init.metadata;
    this.#decode = init.decode;
  }

  /** How long it plays, in seconds. */
  get duration(): number {
    return this.frameCount / this.fps;
  }

  /**
   * Decodes the frames, from the first. What is not asked for is not decoded.
   *
   * @param options A signal; what is told of each frame
   */
  async *frames(options: DecodeFramesOptions = {}): AsyncGenerator<Image, void> {
    const { signal, onFrame } = options;
    let count = 0;
    for await (const frame of this.#decode(signal)) {
      signal?.throwIfAborted();
      onFrame?.(++count);
      yield frame;
    }
  }

  /** The frames, decoded as they are asked for. */
  [Symbol.asyncIterator](): AsyncGenerator<Image, void> {
    return this.frames();
  }

  /**
   * Decodes the video into a file: MP4 or animated GIF, or a PNG of frames beside each other, by the end of the path. The
   * file is written beside its place and is there when it is whole; of one that fails or is given up nothing is left.
   *
   * @param path A file that ends in `.mp4`, `.gif` or `.png`, in a folder that is there
   * @param options The quality; a signal; what is told of each frame
   * @throws {RangeError} If the path ends otherwise, or the format does not take the size
   * @throws {OutputError} If the folder is missing, cannot be written, or is full
   */
  async save(path: string | URL, options: SaveVideoOptions = {}): Promise<void> {
    const { signal, onFrame, ...encoding } = options;
    if (/\.png$/i.test(String(path))) return await (await this.strip({ signal, onFrame })).save(path);
    const { width, height, fps, metadata, frameCount: numFrames } = this;
    await using writer = await VideoWriter.create(path, { width, height, fps, metadata, numFrames, ...encoding });
    for await (const frame of this.frames({ signal, onFrame })) await writer.write(frame);
    await writer.close();
  }

  /**
   * Decodes all frames and keeps them.
   *
   * @param options A signal; what is told of each frame
   * @returns The video in memory
   */
  async load(options: DecodeFramesOptions = {}): Promise<Video> {
    const { fps, metadata } = this;
    return new Video(await Array.fromAsync(this.frames(options)), { fps, metadata });
  }

  /**
   * Frames beside each other in one picture; the others are decoded and let go.
   *
   * @param options How many frames, how many in a row, pixels between them; a signal; what is told of each frame
   * @returns The picture, with the video's metadata
   */
  async strip(options: StripOptions & DecodeFramesOptions = {}): Promise<Image> {
    const { signal, onFrame, count = DEFAULT_SHOWN, ...grid } = options;
    if (!Number.isInteger(count) || count < 1) {
      throw new RangeError(`Cannot show ${count} frames: pass a positive integer`);
    }
    const { fps, metadata, frameCount } = this;
    const shown = Math.min(count, frameCount);
    const step = (frameCount - 1) / Math.max(1, shown - 1);
    const wanted = new Set(Array.from({ length: shown }, (_, i) => Math.round(i * step)));
    const kept: Image[] = [];
    let index = 0;
    for await (const frame of this.frames({ signal, onFrame })) if (wanted.has(index++)) kept.push(frame);
    return new Video(kept, { fps, metadata }).strip({ ...grid, count: kept.length });
  }

  /** What a notebook shows of it. */
  async [Symbol.for("Jupyter.display")](): Promise<Record<string, unknown>> {
    const video = await this.load() as unknown as Record<symbol, () => Promise<Record<string, unknown>>>;
    return await video[Symbol.for("Jupyter.display")]!();
  }
}
