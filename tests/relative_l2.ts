/**
 * How far values are from wanted ones.
 *
 * @module
 */

import assert from "node:assert/strict";

/** The root of the squared differences' sum over that of the wanted values' squares. */
export function relativeL2(actual: ArrayLike<number>, expected: ArrayLike<number>): number {
  assert.equal(actual.length, expected.length);
  let [error, norm] = [0, 0];
  for (let i = 0; i < expected.length; i++) {
    error += (actual[i]! - expected[i]!) ** 2;
    norm += expected[i]! ** 2;
  }
  return Math.sqrt(error / norm);
}
