/**
 * NumPy's `linspace`, in its order of operations: schedules that must match to the last bit start from it.
 *
 * @module
 */

/**
 * Evenly spaced numbers from `start` to `stop`, both included.
 *
 * @param start The first number
 * @param stop The last number, where there are at least two
 * @param options `num`: how many
 * @returns The numbers, in double precision
 */
export function linspace(start: number, stop: number, options: { num: number }): Float64Array<ArrayBuffer> {
  const { num } = options;
  const out = new Float64Array(num);
  const delta = stop - start;
  const step = delta / (num - 1);
  for (let i = 0; i < num; i++) out[i] = start + (num === 1 ? 0 : step === 0 ? (i / (num - 1)) * delta : i * step);
  if (num > 1) out[num - 1] = stop;
  return out;
}
