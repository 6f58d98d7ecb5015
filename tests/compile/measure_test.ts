import assert from "node:assert/strict";
import { callsOf, timeCalls } from "../../lib/compile/measure.ts";
import type { Dtype } from "../../lib/graph/dtypes.ts";
import { leaf, RATE, type Rate } from "../../lib/graph/node.ts";
import { Device } from "../../lib/tensor/device.ts";
import { QuantizedTensor } from "../../lib/tensor/quantized.ts";
import { embedding, Tensor } from "../../lib/tensor/tensor.ts";

const device = await Device.open();
const given = (shape: number[], rate: Rate, dtype: Dtype = "f32") => new Tensor(leaf(shape, { dtype, rate }));
const linear = (m: number, n: number, k: number) =>
  callsOf([given([m, k], RATE.step).linear(given([n, k], RATE.constant), given([n], RATE.constant)).node]);

Deno.test("what is computed once is not timed: a linear layer is one call", () => {
  assert.deepEqual(linear(3, 64, 32).map((call) => call.kernel), ["linear"]);
});

Deno.test("each candidate has a time, however little there was for all", async () => {
  const seconds = await timeCalls([linear(4, 64, 64), linear(7, 96, 32)], { device, milliseconds: 0 });
  assert.equal(seconds.length, 2);
  assert.ok(seconds.every((time) => time > 0 && time < Infinity));
});

Deno.test("several calls are one candidate, and weights rotate through a working set", async () => {
  const x = given([5, 128], RATE.step, "bf16");
  const weight = given([96, 128], RATE.constant, "bf16");
  const calls = callsOf([x.layerNorm({ eps: 1e-6 }).linear(weight).softmax().node]);
  assert.equal(calls.length, 3);
  const [seconds] = await timeCalls([calls], { device, workingSet: 1 << 20, milliseconds: 5 });
  assert.ok(seconds! > 0);
});

Deno.test("ids and quantized weights are numbers that kernels take, on every level", async () => {
  const table = given([10, 64], RATE.constant);
  const x = embedding(given([7], RATE.step, "i32"), table);
  const quantization = {
    format: "int8",
    ebits: 0,
    mbits: 0,
    group: 64,
    symmetric: true,
    perTensor: false,
    activation: { rows: "none", perTensor: 0 },
  } as const;
  const weight = new QuantizedTensor(
    { codes: given([32, 64], RATE.constant, "i8"), scale: given([32, 1], RATE.constant) },
    { scheme: "int8wo", quantization, shape: [32, 64], dtype: "f32" },
  );
  const calls = callsOf([x.linear(weight.tensor).node]);
  assert.deepEqual(calls.map((call) => call.kernel), ["embedding", "quantized_linear"]);
  for (const level of await Device.levels()) {
    using own = await Device.open({ level, threads: 1 });
    const [seconds] = await timeCalls([calls], { device: own, milliseconds: 1 });
    assert.ok(seconds! > 0);
  }
});

Deno.test("a signal stops it", async () => {
  const reason = new Error("enough");
  await assert.rejects(timeCalls([linear(1, 64, 64)], { device, signal: AbortSignal.abort(reason) }), reason);
});
