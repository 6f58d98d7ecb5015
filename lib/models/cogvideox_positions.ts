/**
 * Where CogVideoX's video tokens are: as sinusoids that are added to them, and as rotations of queries and keys. Both
 * are computed as diffusers computes them, rounded to float32 where it does.
 *
 * @module
 */

import { roundHalfToEven } from "../tensor/round.ts";
import { tensor } from "../tensor/source.ts";
import type { Tensor } from "../tensor/tensor.ts";

const f32 = Math.fround;

/** Rows and columns. */
interface Area {
  readonly height: number;
  readonly width: number;
}

/** Frames, rows and columns of tokens. */
interface Grid extends Area {
  readonly frames: number;
}

/** The first row and column of a region, and those behind its last. */
interface Region {
  readonly top: number;
  readonly left: number;
  readonly bottom: number;
  readonly right: number;
}

/** The position of each frame, row and column. */
interface Positions {
  readonly frames: Float32Array<ArrayBuffer>;
  readonly rows: Float32Array<ArrayBuffer>;
  readonly columns: Float32Array<ArrayBuffer>;
}

/**
 * Sines and cosines of the numbers from 0, in float64 as diffusers has them.
 *
 * @param count How many numbers.
 * @param options How many sines and cosines of each; what the numbers are divided by.
 * @returns f32 (count, size), sines first.
 */
export function sinusoidTable(count: number, { size, scale }: { size: number; scale: number }): Tensor {
  const half = size / 2;
  const values = new Float32Array(count * size);
  for (let i = 0; i < count; i++) {
    const position = f32(i / f32(scale));
    for (let j = 0; j < half; j++) {
      const angle = position * (1 / 10000 ** (j / half));
      values[i * size + j] = Math.sin(angle);
      values[i * size + half + j] = Math.cos(angle);
    }
  }
  return tensor(values, { shape: [count, size] });
}

/**
 * Where a grid lies in the one that the model was trained on, once it is resized to fill it in one direction: diffusers'
 * `get_resize_crop_region_for_grid`.
 *
 * @param grid The grid.
 * @param trained What it was trained on.
 * @returns The region.
 */
export function cropRegion({ height, width }: Area, trained: Area): Region {
  const tall = height / width > trained.height / trained.width;
  const rows = tall ? trained.height : roundHalfToEven(trained.width / width * height);
  const columns = tall ? roundHalfToEven(trained.height / height * width) : trained.width;
  const top = roundHalfToEven((trained.height - rows) / 2);
  const left = roundHalfToEven((trained.width - columns) / 2);
  return { top, left, bottom: top + rows, right: left + columns };
}

/**
 * The positions of a grid that fills a region.
 *
 * @param grid The grid.
 * @param region The region.
 * @returns A position for each frame, row and column.
 */
export function gridPositions({ frames, height, width }: Grid, { top, left, bottom, right }: Region): Positions {
  return {
    frames: linspace(0, frames * (frames - 1) / frames, frames),
    rows: linspace(top, bottom * (height - 1) / height, height),
    columns: linspace(left, right * (width - 1) / width, width),
  };
}

/**
 * The positions of a grid that is a part of a larger one, from its first row and column.
 *
 * @param grid The grid.
 * @param trained The larger one.
 * @returns A position for each frame, row and column.
 * @throws {RangeError} If the other is not larger
 */
export function slicePositions({ frames, height, width }: Grid, trained: Area): Positions {
  if (height > trained.height || width > trained.width) {
    throw new RangeError(
      `Cannot place ${height} x ${width} tokens as the model was trained on ${trained.height} x ${trained.width}: ` +
        "pass smaller latents",
    );
  }
  const count = (n: number) => Float32Array.from({ length: n }, (_, i) => i);
  return { frames: count(frames), rows: count(height), columns: count(width) };
}

/** PyTorch's `linspace` in float32: from both ends to the middle. */
function linspace(start: number, stop: number, count: number): Float32Array<ArrayBuffer> {
  const [first, last] = [f32(start), f32(stop)];
  const step = f32(f32(last - first) / (count - 1));
  return Float32Array.from(
    { length: count },
    (_, i) => count === 1 ? first : i < count >> 1 ? first + f32(step * i) : last - f32(step * (count - i - 1)),
  );
}

/**
 * Cosines and sines of positions in three directions: a quarter of a head for the frame, the rest for row and column,
 * each angle twice side by side.
 *
 * @param positions The positions.
 * @param size The size of a head, a multiple of 16.
 * @returns f32 (frames * rows * columns, size).
 */
export function rotaryTable({ frames, rows, columns }: Positions, size: number): { cos: Tensor; sin: Tensor } {
  const parts = [
    { angles: anglesOf(frames, size / 4), repeat: rows.length * columns.length },
    { angles: anglesOf(rows, size / 8 * 3), repeat: columns.length },
    { angles: anglesOf(columns, size / 8 * 3), repeat: 1 },
  ];
  const tokens = frames.length * rows.length * columns.length;
  const table = (f: (angle: number) => number) => {
    const values = new Float32Array(tokens * size);
    let start = 0;
    for (const { angles, repeat } of parts) {
      const computed = angles.map((row) => row.map(f));
      for (let token = 0; token < tokens; token++) {
        const row = computed[Math.floor(token / repeat) % computed.length]!;
        for (const [i, value] of row.entries()) {
          values.fill(value, token * size + start + 2 * i, token * size + start + 2 * i + 2);
        }
      }
      start += 2 * angles[0]!.length;
    }
    return tensor(values, { shape: [tokens, size] });
  };
  return { cos: table(Math.cos), sin: table(Math.sin) };
}

/** The angles of each position, half as many as features. */
function anglesOf(positions: Float32Array, size: number): Float32Array<ArrayBuffer>[] {
  const frequencies = Float32Array.from({ length: size / 2 }, (_, i) => 1 / f32(10000 ** f32(2 * i / size)));
  return Array.from(positions, (position) => frequencies.map((frequency) => position * frequency));
}
