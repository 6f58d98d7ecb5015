/**
 * The schemes by name.
 *
 * @module
 */

import { fp8dq } from "./fp8dq.ts";
import { fp8dqrow } from "./fp8dqrow.ts";
import { fp8wo } from "./fp8wo.ts";
import { fpx } from "./fpx.ts";
import { int4dq } from "./int4dq.ts";
import { int4wo } from "./int4wo.ts";
import { int8dq } from "./int8dq.ts";
import { int8wo } from "./int8wo.ts";
import type { Scheme } from "./scheme.ts";

/** The schemes that have a name of their own. */
export const SCHEMES: readonly Scheme[] = [
  int8wo,
  int8dq,
  int4wo,
  int4dq,
  fp8wo,
  fp8dq,
  fp8dqrow,
  fpx(3, 2),
  fpx(2, 2),
  fpx(2, 1),
];

/**
 * The scheme of a name: one of {@linkcode SCHEMES}, or `fp<bits>_e<exponent>m<mantissa>` of any small float.
 *
 * @param name The name
 * @returns The scheme
 * @throws {RangeError} If there is none
 */
export function schemeOf(name: string): Scheme {
  const known = SCHEMES.find((scheme) => scheme.name === name);
  if (known) return known;
  const [, bits, ebits, mbits] = /^fp(\d|x)_e(\d)m(\d)$/.exec(name) ?? [];
  if (ebits !== undefined) {
    const scheme = fpx(Number(ebits), Number(mbits));
    if (bits === "x" || scheme.name === name) return scheme;
    throw new RangeError(`Cannot use the scheme ${name}: it takes ${scheme.name[2]} bits, so write ${scheme.name}`);
  }
  const names = SCHEMES.map((scheme) => scheme.name).join(", ");
  throw new RangeError(
    `Cannot use the scheme ${JSON.stringify(name)}: pass ${names}, or a small float such as fp7_e3m3`,
  );
}
