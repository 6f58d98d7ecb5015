import { deepStrictEqual, ok, strictEqual } from "node:assert/strict";
import { bf16BitsToF32, f16BitsToF32, f32ToBf16Bits, f32ToF16Bits } from "../../lib/tensor/convert.ts";
import { Generator } from "../../lib/tensor/random.ts";

const everyHalf = Uint16Array.from({ length: 65536 }, (_, i) => i);

/** The value of a half-width float, by the formula of IEEE 754. */
function valueOf(bits: number, exponentBits: number): number {
  const mantissaBits = 15 - exponentBits;
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits & 0x7fff) >> mantissaBits;
  const mantissa = bits & (2 ** mantissaBits - 1);
  const bias = 2 ** (exponentBits - 1) - 1;
  if (exponent === 2 ** exponentBits - 1) return mantissa ? NaN : sign * Infinity;
  return exponent === 0
    ? sign * mantissa * 2 ** (1 - bias - mantissaBits)
    : sign * (2 ** mantissaBits + mantissa) * 2 ** (exponent - bias - mantissaBits);
}

for (
  const [name, widen, narrow, exponentBits] of [
    ["bf16", bf16BitsToF32, f32ToBf16Bits, 8],
    ["f16", f16BitsToF32, f32ToF16Bits, 5],
  ] as const
) {
  const wide = widen(everyHalf);

  Deno.test(`${name} widens by the formula and narrows back to the same bits, all 65536`, () => {
    const back = narrow(wide);
    for (let bits = 0; bits < 65536; bits++) {
      const expected = valueOf(bits, exponentBits);
      ok(Object.is(wide[bits], expected), `${bits}: ${wide[bits]}, not ${expected}`);
      if (Number.isNaN(expected)) ok(Number.isNaN(valueOf(back[bits]!, exponentBits)));
      else strictEqual(back[bits], bits);
    }
  });

  Deno.test(`${name} rounds to nearest, ties to even, between every two neighbours`, () => {
    const infinity = (2 ** exponentBits - 1) << (15 - exponentBits);
    for (const sign of [0, 0x8000]) {
      for (let bits = 0; bits + 1 < infinity; bits++) {
        const low = valueOf(bits, exponentBits);
        const high = valueOf(bits + 1, exponentBits);
        const middle = Math.fround((low + high) / 2); // exact: float32 has the bits for it
        const near = new Uint32Array(Float32Array.of(middle).buffer)[0]!;
        const around = new Float32Array(Uint32Array.of(near - 1, near, near + 1).buffer);
        if (sign) { for (let i = 0; i < 3; i++) around[i] = -around[i]!; }
        const even = bits & 1 ? bits + 1 : bits;
        const [below, tie, above] = narrow(around);
        if (below !== (sign | bits) || tie !== (sign | even) || above !== (sign | (bits + 1))) {
          deepStrictEqual([below, tie, above], [sign | bits, sign | even, sign | (bits + 1)]);
        }
      }
    }
  });

  Deno.test(`${name} keeps NaN, its sign, infinities and signed zeros`, () => {
    // Payloads in the kept half, in the dropped half alone, and everywhere.
    const nans = new Float32Array(Uint32Array.of(0x7fc00000, 0x7f800001, 0xff800001, 0xffffffff, 0x7fa00000).buffer);
    for (const [i, bits] of narrow(nans).entries()) {
      ok(Number.isNaN(valueOf(bits, exponentBits)), `${i}`);
      strictEqual(bits >>> 15, i === 2 || i === 3 ? 1 : 0);
    }
    const specials = widen(narrow(Float32Array.of(Infinity, -Infinity, 0, -0, 3.4e38, -3.4e38, 1e-45)));
    const largest = name === "bf16" ? wide[narrow(Float32Array.of(3.4e38))[0]!]! : Infinity;
    deepStrictEqual([...specials], [Infinity, -Infinity, 0, -0, largest, -largest, 0]);
  });

  Deno.test(`${name} reads a view that starts inside its buffer`, () => {
    const normals = new Generator(4).randn([64]);
    deepStrictEqual(narrow(normals.subarray(7, 20)), narrow(normals).slice(7, 20));
  });
}
