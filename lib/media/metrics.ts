/**
 * How far two pictures are apart.
 *
 * @module
 */

import type { Pixels } from "./png.ts";

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
