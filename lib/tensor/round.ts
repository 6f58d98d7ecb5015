/**
 * Rounding as Python and NumPy round.
 *
 * @module
 */

/**
 * The nearest whole number; of two that are equally near, the even one.
 *
 * @param x Any number
 * @returns The whole number
 */
export function roundHalfToEven(x: number): number {
  const below = Math.floor(x);
  const rest = x - below;
  return rest < 0.5 || (rest === 0.5 && below % 2 === 0) ? below : below + 1;
}
