import assert from "node:assert/strict";
import { FLOAT, LINEAR_SCHEMES, makeLinears, SPARSE, weightBytes } from "../../bench/linears.ts";
import { copiesOfQuantized } from "../../bench/tensors.ts";
import { schemeOf } from "../../lib/quantize/schemes.ts";
import { toArray } from "../../lib/tensor/realize.ts";

const SHAPE = [128, 96] as const; // (K, N)

for (const scheme of LINEAR_SCHEMES) {
  Deno.test(`layers to time have ordinary values: ${scheme}`, async () => {
    const { run, flop, bytes } = makeLinears(scheme, { shape: SHAPE, rows: 3, count: 2 });
    assert.equal(flop, 2 * 3 * 128 * 96);
    assert.equal(bytes, weightBytes(scheme, { shape: SHAPE }));
    assert.ok(scheme === FLOAT ? bytes === 4 * 128 * 96 : bytes < 3 * 128 * 96, `${bytes}`);
    const { y } = await run() as { y: Parameters<typeof toArray>[0] };
    assert.deepEqual(y.shape, [2, 3, 96]);
    const values = await toArray<"f32">(y);
    assert.ok(values.every(Number.isFinite));
    const power = values.reduce((sum, value) => sum + value ** 2, 0) / values.length;
    assert.ok(power > 0.01 && power < 10, `${power}`);
  });
}

Deno.test("random pruned codes keep two places of each four, the lower one first", async () => {
  const quantization = schemeOf("int8dq").quantization({ kind: "linear", columns: 32, sparse: true }, {});
  const { codes } = copiesOfQuantized([5, 32], { scheme: SPARSE, quantization, dtype: "f32" })();
  const bytes = await toArray<"u8">(codes);
  for (let row = 0; row < 5; row++) {
    for (const byte of bytes.subarray(row * 20 + 16, row * 20 + 20)) {
      for (const places of [byte & 15, byte >> 4]) assert.ok((places & 3) < places >> 2, `${places}`);
    }
  }
});
