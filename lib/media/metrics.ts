/**
 * How far two pictures are apart.
 *
 * @module
 */

import { channelsOf, type Pixels } from "./png.ts";

/**
 * The peak signal-to-noise ratio of two pictures of one size, in decibels.
 *
 * @param a A picture, or values of any scale
 * @param b What to hold it against
 * @param options The largest value that there can be, 255 by default
 * @returns 10 log10(peak^2 / mean squared difference); infinite where they are equal
 * @throws {TypeError} If the sizes differ
 */
export function psnr(
  a: Pixels | ArrayLike<number>,
  b: Pixels | ArrayLike<number>,
  options: { peak?: number } = {},
): number {
  const { peak = 255 } = options;
  const [x, y] = valuesOf(a, b);
  let sum = 0;
  for (let i = 0; i < x.length; i++) sum += (x[i]! - y[i]!) ** 2;
  return 10 * Math.log10(peak ** 2 * x.length / sum);
}

/**
 * The largest difference of two pictures of one size at any channel of any pixel.
 *
 * @param a A picture, or values of any scale
 * @param b What to hold it against
 * @returns The difference in units of the values, NaN where a value is NaN
 * @throws {TypeError} If the sizes differ
 */
export function maxAbsDifference(a: Pixels | ArrayLike<number>, b: Pixels | ArrayLike<number>): number {
  const [x, y] = valuesOf(a, b);
  let max = 0;
  for (let i = 0; i < x.length; i++) max = Math.max(max, Math.abs(x[i]! - y[i]!));
  return max;
}

/** The window of {@linkcode ssim}: 11 by 11 weights of a Gaussian whose standard deviation is 1.5 pixels. */
const WINDOW = 11;
const SIGMA = 1.5;

/**
 * The structural similarity of two pictures of one size: the mean over all places of an 11 by 11 Gaussian window that
 * lie within the picture, and over the channels. Wang, Bovik, Sheikh, Simoncelli, "Image quality assessment: from error
 * visibility to structural similarity" (2004), with its window and constants.
 *
 * @param a A picture
 * @param b What to hold it against
 * @returns At most 1, which equal pictures have
 * @throws {TypeError} If the sizes differ, or the pictures are smaller than the window
 */
export function ssim(a: Pixels, b: Pixels): number {
  const [x, y] = valuesOf(a, b);
  const { width, height } = a;
  if (width < WINDOW || height < WINDOW) {
    throw new TypeError(
      `Cannot compare pictures of ${width} by ${height}: pass some of ${WINDOW} by ${WINDOW} or more`,
    );
  }
  const channels = channelsOf(a);
  const pixels = width * height;
  let sum = 0;
  for (let c = 0; c < channels; c++) {
    const mean = (of: (at: number) => number) =>
      blur(Float64Array.from({ length: pixels }, (_, i) => of(i * channels + c)), width);
    const means = { x: mean((i) => x[i]!), y: mean((i) => y[i]!) };
    const xx = mean((i) => x[i]! ** 2);
    const yy = mean((i) => y[i]! ** 2);
    const xy = mean((i) => x[i]! * y[i]!);
    let total = 0;
    for (let i = 0; i < xy.length; i++) {
      const [mx, my] = [means.x[i]!, means.y[i]!];
      const structure = (2 * (xy[i]! - mx * my) + C2) / (xx[i]! - mx ** 2 + yy[i]! - my ** 2 + C2);
      total += structure * (2 * mx * my + C1) / (mx ** 2 + my ** 2 + C1);
    }
    sum += total / xy.length;
  }
  return sum / channels;
}

/** The paper's K1 = 0.01 and K2 = 0.03, times 255, squared. */
const C1 = (0.01 * 255) ** 2;
const C2 = (0.03 * 255) ** 2;

const WEIGHTS = (() => {
  const weights = Array.from({ length: WINDOW }, (_, i) => Math.exp(-(((i - (WINDOW - 1) / 2) / SIGMA) ** 2) / 2));
  const sum = weights.reduce((a, b) => a + b);
  return weights.map((weight) => weight / sum);
})();

/** Means under the window, at each of its places: rows first, then columns. */
function blur(values: Float64Array, width: number): Float64Array {
  const height = values.length / width;
  const across = width - WINDOW + 1;
  const down = height - WINDOW + 1;
  const rows = new Float64Array(across * height);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < across; x++) {
      let sum = 0;
      for (let i = 0; i < WINDOW; i++) sum += WEIGHTS[i]! * values[y * width + x + i]!;
      rows[y * across + x] = sum;
    }
  }
  const out = new Float64Array(across * down);
  for (let y = 0; y < down; y++) {
    for (let x = 0; x < across; x++) {
      let sum = 0;
      for (let i = 0; i < WINDOW; i++) sum += WEIGHTS[i]! * rows[(y + i) * across + x]!;
      out[y * across + x] = sum;
    }
  }
  return out;
}

function valuesOf(
  a: Pixels | ArrayLike<number>,
  b: Pixels | ArrayLike<number>,
): [ArrayLike<number>, ArrayLike<number>] {
  const x = "data" in a ? a.data : a;
  const y = "data" in b ? b.data : b;
  const same = x.length === y.length && !("data" in a && "data" in b && a.width !== b.width);
  if (!same || x.length === 0) {
    throw new TypeError(`Cannot compare ${sizeOf(a)} with ${sizeOf(b)}: pass pictures of one size`);
  }
  return [x, y];
}

function sizeOf(a: Pixels | ArrayLike<number>): string {
  return "data" in a ? `${a.width} by ${a.height} (${a.data.length} bytes)` : `${a.length} values`;
}
