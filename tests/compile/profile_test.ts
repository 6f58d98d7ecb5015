import assert from "node:assert/strict";
import { profile } from "../../lib/compile/profile.ts";
import { compileFunction } from "../../lib/tensor/function.ts";
import { Device } from "../../lib/tensor/device.ts";
import { Generator } from "../../lib/tensor/random.ts";
import { tensor } from "../../lib/tensor/source.ts";
import type { Tensor } from "../../lib/tensor/tensor.ts";

const LIMITS = { f32: 1e11, bf16: 2e11, int8: 4e11, bytes: 1e10 };

async function chain() {
  const device = await Device.open({ level: "portable", threads: 1 });
  const normals = (shape: readonly number[]) => tensor(new Generator(3).randn(shape), { shape });
  const body = ({ x, weight }: { x: Tensor; weight: Tensor }) => {
    const y = x.linear(weight).softmax();
    return { y: y.linear(weight) };
  };
  const chained = compileFunction(body, { device, name: "chain", varying: ["x", "weight"] });
  return { device, run: () => chained.run({ x: normals([5, 48]), weight: normals([48, 48]) }) };
}

Deno.test("a profile counts calls, bytes and operations of each kernel", async () => {
  const { device, run } = await chain();
  const found = await profile(device, run, { limits: LIMITS });
  assert.deepEqual(found.result.y.shape, [5, 48]);
  const rows = found.profile.rows();
  const of = (op: string) => rows.find((row) => row.op === op)!;
  const linear = of("linear");
  assert.equal(linear.program, "chain");
  assert.equal(linear.calls, 2);
  assert.equal(linear.operations, 2 * 2 * 5 * 48 * 48);
  // x, out and the packed weight of each call, and nothing twice.
  assert.ok(linear.bytes >= 2 * 4 * (5 * 48 + 5 * 48 + 48 * 48), `${linear.bytes} bytes`);
  assert.equal(of("softmax").bytes, 2 * 4 * 5 * 48);
  assert.ok(rows.every((row) => row.seconds > 0 && row.ofLimit! > 0));
  assert.ok(Math.abs(rows.reduce((sum, { share }) => sum + share, 0) - 1) < 1e-9);
  assert.deepEqual(rows.map((row) => row.seconds), rows.map((row) => row.seconds).toSorted((a, b) => b - a));
  const shaped = found.profile.rows({ shapes: true }).find((row) => row.op === "softmax")!;
  assert.equal(shaped.shapes, "5x48 f32 -> 5x48 f32");
});

Deno.test("nobody looks on after a profile, also after one of a run that failed", async () => {
  const { device, run } = await chain();
  const found = await profile(device, run);
  const before = found.profile.rows().reduce((sum, { calls }) => sum + calls, 0);
  await run();
  assert.equal(found.profile.rows().reduce((sum, { calls }) => sum + calls, 0), before);
  await assert.rejects(profile(device, () => Promise.reject(new Error("stop"))), /stop/);
  assert.equal(device.observer, undefined);
});

Deno.test("a trace has the kernels within their programs", async () => {
  const { device, run } = await chain();
  const { profile: found } = await profile(device, run);
  const folder = await Deno.makeTempDir();
  try {
    await found.save(`${folder}/trace.json`);
    const { traceEvents } = JSON.parse(await Deno.readTextFile(`${folder}/trace.json`)) as {
      traceEvents: { name: string; ph: string; tid: number; ts: number; dur: number }[];
    };
    const programs = traceEvents.filter(({ tid }) => tid === 1);
    const kernels = traceEvents.filter(({ tid }) => tid === 2);
    assert.ok(programs.length > 0 && programs.every(({ name, ph }) => name === "chain" && ph === "X"));
    assert.equal(kernels.length, found.rows().reduce((sum, { calls }) => sum + calls, 0));
    const within = (k: typeof kernels[0]) => programs.some((p) => k.ts >= p.ts && k.ts + k.dur <= p.ts + p.dur);
    assert.ok(kernels.every(within), JSON.stringify(traceEvents));
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});
