import { byRow, type Scheme } from "./scheme.ts";

/**
 * Weights in small floats of 3 to 8 bits with a sign, without infinities and NaN, by output; inputs as they are.
 * torchao's `fpx_weight_only`.
 *
 * @param ebits Bits of exponent, 1 to 7.
 * @param mbits Bits of mantissa, 0 to 6.
 * @returns The scheme, such as `fp6_e3m2`.
 */
export function fpx(ebits: number, mbits: number): Scheme {
  const bits = 1 + ebits + mbits;
  const whole = Number.isInteger(ebits) && Number.isInteger(mbits) && ebits >= 1 && mbits >= 0;
  if (!whole || bits < 3 || bits > 8 || ebits > 7 || mbits > 6) {
    throw new RangeError(`Cannot use small floats of ${ebits} exponent and ${mbits} mantissa bits: pass 2 to 7 in all`);
  }
  return {
    name: `fp${bits}_e${ebits}m${mbits}`,
    summary: `weights in floats of ${bits} bits`,
    kinds: ["linear"],
    quantization: (input) => byRow("fpx", input, { ebits, mbits }),
  };
}
