/**
 * Pictures in overlapping tiles: where each axis is cut, and how what becomes of the tiles is put together again.
 *
 * @module
 */

import { sizeOf } from "../graph/ops.ts";
import { tensor } from "../tensor/source.ts";
import type { Tensor } from "../tensor/tensor.ts";

/** A part of an axis. */
export interface Cut {
  /** The first cell of the input. */
  readonly start: number;
  /** How many cells of the input. */
  readonly size: number;
  /** How many cells of the output, at most, fade in from the part before. */
  readonly blend: number;
  /** How many cells of the output, at most, are kept. */
  readonly keep: number;
}

/** An axis and its tiles. */
export interface AxisTiling {
  /** Cells of a tile of the input. */
  readonly tile: number;
  /** Cells of what becomes of it. */
  readonly output: number;
  /** The share of a tile that overlaps the next. */
  readonly overlap: number;
}

/**
 * Cuts an axis as diffusers does: a tile starts at each step, the last ones may be small.
 *
 * @param size The cells of the axis.
 * @param tiling The tiles.
 * @returns The parts.
 */
export function cutAtSteps(size: number, { tile, output, overlap }: AxisTiling): Cut[] {
  const step = Math.floor(tile * (1 - overlap));
  const blend = Math.floor(output * overlap);
  const cuts: Cut[] = [];
  for (let start = 0; start < size; start += step) {
    cuts.push({ start, size: Math.min(tile, size - start), blend: start > 0 ? blend : 0, keep: output - blend });
  }
  return cuts;
}

/**
 * Cuts an axis into parts of one size that overlap by at least some cells, evenly: none is a small rest.
 *
 * @param size The cells of the axis.
 * @param options How many parts, their least overlap, and how many cells of the output a cell becomes.
 * @returns The parts.
 */
export function cutEvenly(size: number, options: { parts: number; overlap: number; scale: number }): Cut[] {
  const { parts, overlap, scale } = options;
  const part = Math.min(size, Math.ceil((size + (parts - 1) * overlap) / parts));
  const starts = Array.from({ length: parts }, (_, k) => parts === 1 ? 0 : Math.round(k * (size - part) / (parts - 1)));
  return starts.map((start, k) => ({
    start,
    size: part,
    blend: k === 0 ? 0 : (starts[k - 1]! + part - start) * scale,
    keep: k === parts - 1 ? part * scale : (starts[k + 1]! - start) * scale,
  }));
}

/** The five sizes of videos. */
export type VideoShape = readonly [number, number, number, number, number];

/** Frames on the host: f32, channels last. */
export interface VideoFrames {
  /** Batch, frames, height, width, channels. */
  readonly shape: VideoShape;
  /** The values. */
  readonly data: Float32Array<ArrayBuffer>;
}

/** Which tile of a picture. */
export interface TilePlace {
  /** Its row of tiles. */
  readonly row: number;
  /** Its column of tiles. */
  readonly column: number;
}

/** A strip of a tile that its neighbour fades in from. */
interface Strip {
  readonly data: Float32Array;
  readonly rows: number;
  readonly columns: number;
}

/**
 * Frames that tiles are put into, row by row of tiles, from left to right: each is mixed with the ends of what its upper
 * and left neighbours became.
 */
export class Canvas {
  /** What is there so far. */
  readonly frames: VideoFrames;
  readonly #cuts: { readonly rows: readonly Cut[]; readonly columns: readonly Cut[] };
  readonly #above: Strip[] = [];
  #left: Strip | undefined;
  #top = 0;
  #start = 0;

  /** Empty frames of what the parts of both axes become: `sizeOf` says how many cells a number of cells becomes. */
  constructor(
    cuts: { rows: readonly Cut[]; columns: readonly Cut[] },
    options: { batch: number; frames: number; channels: number; sizeOf: (cells: number) => number },
  ) {
    const { batch, frames, channels, sizeOf } = options;
    this.#cuts = cuts;
    const shape = [batch, frames, extentOf(cuts.rows, sizeOf), extentOf(cuts.columns, sizeOf), channels] as const;
    this.frames = { shape, data: new Float32Array(shape.reduce((a, b) => a * b)) };
  }

  /** Puts in the next tile; its values are changed. */
  place(tile: VideoFrames, { row, column }: TilePlace): void {
    const [, , rows, columns, channels] = tile.shape;
    const [vertical, horizontal] = [this.#cuts.rows[row]!, this.#cuts.columns[column]!];
    if (column === 0) {
      this.#left = undefined;
      this.#start = 0;
    }
    const above = row > 0 ? this.#above[column] : undefined;
    if (above) fadeRows(above, tile, vertical.blend);
    if (this.#left) fadeColumns(this.#left, tile, horizontal.blend);
    // The blend of the next part says how much of this one it needs.
    const below = Math.min(rows, this.#cuts.rows[row + 1]?.blend ?? 0);
    const right = Math.min(columns, this.#cuts.columns[column + 1]?.blend ?? 0);
    this.#above[column] = stripOf(tile, { top: rows - below, left: 0 });
    this.#left = stripOf(tile, { top: 0, left: columns - right });
    const kept = { rows: Math.min(rows, vertical.keep), columns: Math.min(columns, horizontal.keep) };
    const [batch, frames, height, width] = this.frames.shape;
    for (let frame = 0; frame < batch * frames; frame++) {
      for (let y = 0; y < kept.rows; y++) {
        const from = (frame * rows + y) * columns * channels;
        const to = ((frame * height + this.#top + y) * width + this.#start) * channels;
        this.frames.data.set(tile.data.subarray(from, from + kept.columns * channels), to);
      }
    }
    this.#start += kept.columns;
    if (column === this.#cuts.columns.length - 1) this.#top += kept.rows;
  }
}

/**
 * The cells that the parts of an axis become.
 *
 * @param cuts The parts.
 * @param sizeOf How many cells a number of cells becomes.
 * @returns The sum of what is kept.
 */
export function extentOf(cuts: readonly Cut[], sizeOf: (cells: number) => number): number {
  return cuts.reduce((sum, { size, keep }) => sum + Math.min(sizeOf(size), keep), 0);
}

/** What lies below and to the right of a place, of every frame. */
function stripOf({ shape, data }: VideoFrames, { top, left }: { top: number; left: number }): Strip {
  const [batch, frames, height, width, channels] = shape;
  const strip = { rows: height - top, columns: width - left };
  const values = new Float32Array(batch * frames * strip.rows * strip.columns * channels);
  let at = 0;
  for (let frame = 0; frame < batch * frames; frame++) {
    for (let y = top; y < height; y++) {
      const from = ((frame * height + y) * width + left) * channels;
      const row = data.subarray(from, from + strip.columns * channels);
      values.set(row, at);
      at += row.length;
    }
  }
  return { ...strip, data: values };
}

/** The first rows of a tile fade in from the last ones of the tile above. */
function fadeRows(above: Strip, { shape, data }: VideoFrames, blend: number): void {
  const [batch, frames, height, width, channels] = shape;
  const extent = Math.min(above.rows, height, blend);
  const size = width * channels;
  for (let frame = 0; frame < batch * frames; frame++) {
    for (let y = 0; y < extent; y++) {
      const share = y / extent;
      const from = (frame * above.rows + above.rows - extent + y) * size;
      const to = (frame * height + y) * size;
      for (let i = 0; i < size; i++) data[to + i] = above.data[from + i]! * (1 - share) + data[to + i]! * share;
    }
  }
}

/** The first columns of a tile fade in from the last ones of the tile to the left. */
function fadeColumns(left: Strip, { shape, data }: VideoFrames, blend: number): void {
  const [batch, frames, height, width, channels] = shape;
  const extent = Math.min(left.columns, width, blend);
  for (let row = 0; row < batch * frames * height; row++) {
    for (let x = 0; x < extent; x++) {
      const share = x / extent;
      const from = (row * left.columns + left.columns - extent + x) * channels;
      const to = (row * width + x) * channels;
      for (let c = 0; c < channels; c++) data[to + c] = left.data[from + c]! * (1 - share) + data[to + c]! * share;
    }
  }
}

/** Some frames of a whole. */
export interface FrameBatch {
  /** The first one. */
  readonly start: number;
  /** The first one after them. */
  readonly end: number;
}

/**
 * Frames in batches of a size; those that remain go with the first ones.
 *
 * @param frames How many there are.
 * @param size How many go together.
 * @returns The batches.
 */
export function frameBatches(frames: number, size: number): FrameBatch[] {
  const rest = frames % size;
  return Array.from({ length: Math.max(Math.floor(frames / size), 1) }, (_, i) => ({
    start: size * i + (i === 0 ? 0 : rest),
    end: Math.min(size * (i + 1) + rest, frames),
  }));
}

/**
 * A part of videos, channels last.
 *
 * @param video All of them, (batch, channels, frames, rows, columns).
 * @param part Which videos, frames, rows and columns.
 * @returns (batch, frames, rows, columns, channels).
 */
export function crop(
  video: { readonly shape: VideoShape; readonly data: Float32Array },
  part: FrameBatch & { batch: { first: number; count: number }; rows: Cut; columns: Cut },
): Tensor {
  const [, channels, frames, height, width] = video.shape;
  const { start, end, batch, rows, columns } = part;
  const shape = [batch.count, end - start, rows.size, columns.size, channels];
  const data = new Float32Array(sizeOf(shape));
  let at = 0;
  for (let b = batch.first; b < batch.first + batch.count; b++) {
    for (let t = start; t < end; t++) {
      for (let y = rows.start; y < rows.start + rows.size; y++) {
        for (let x = columns.start; x < columns.start + columns.size; x++) {
          const first = ((b * channels * frames + t) * height + y) * width + x;
          for (let c = 0; c < channels; c++) data[at++] = video.data[first + c * frames * height * width]!;
        }
      }
    }
  }
  return tensor(data, { shape });
}

/**
 * Videos one after another in the batch.
 *
 * @param videos At least one, all of one size.
 * @returns All of them.
 */
export function joinVideos(videos: readonly VideoFrames[]): VideoFrames {
  const [first] = videos as [VideoFrames];
  if (videos.length === 1) return first;
  const [, ...rest] = first.shape;
  const data = new Float32Array(videos.reduce((sum, { data }) => sum + data.length, 0));
  let at = 0;
  for (const video of videos) {
    data.set(video.data, at);
    at += video.data.length;
  }
  return { shape: [data.length / sizeOf(rest), ...rest], data };
}

/**
 * Frames one after another, channels first.
 *
 * @param parts The frames, as they come.
 * @returns (batch, channels, frames, rows, columns).
 */
export async function joinFrames(
  parts: AsyncIterable<VideoFrames>,
): Promise<{ shape: VideoShape; data: Float32Array<ArrayBuffer> }> {
  const all: VideoFrames[] = [];
  for await (const part of parts) all.push(part);
  const [batch, , height, width, channels] = all[0]!.shape;
  const frames = all.reduce((sum, { shape }) => sum + shape[1], 0);
  const data = new Float32Array(batch * channels * frames * height * width);
  const size = height * width;
  let start = 0;
  for (const part of all) {
    const count = part.shape[1];
    for (let b = 0; b < batch; b++) {
      for (let t = 0; t < count; t++) {
        const from = (b * count + t) * size * channels;
        for (let c = 0; c < channels; c++) {
          const to = ((b * channels + c) * frames + start + t) * size;
          for (let i = 0; i < size; i++) data[to + i] = part.data[from + i * channels + c]!;
        }
      }
    }
    start += count;
  }
  return { shape: [batch, channels, frames, height, width], data };
}
