import assert from "node:assert/strict";
import { findCudaLibrary } from "../../ffi/cuda.ts";
import { NativeError } from "../../lib/errors.ts";
import { Device, type DeviceName, isCudaName } from "../../lib/tensor/device.ts";
import { compileFunction } from "../../lib/tensor/function.ts";
import { toArray } from "../../lib/tensor/realize.ts";
import { tensor } from "../../lib/tensor/source.ts";
import { embedding, type Tensor } from "../../lib/tensor/tensor.ts";
import { openEmulated } from "../emulated.ts";
import { withFolder } from "../folder.ts";

const unavailable = (says: RegExp) => (error: unknown) => {
  assert.ok(error instanceof NativeError, String(error));
  assert.equal(error.code, "unavailable", error.message);
  assert.match(error.message, says);
  return true;
};

/** Runs a body with an environment variable set. */
async function withEnvironment(name: string, value: string, body: () => Promise<void>): Promise<void> {
  const before = Deno.env.get(name);
  Deno.env.set(name, value);
  try {
    await body();
  } finally {
    if (before === undefined) Deno.env.delete(name);
    else Deno.env.set(name, before);
  }
}

Deno.test("devices have names, and others are refused", async () => {
  for (const name of ["cuda", "cuda:0", "cuda:12", "cuda-emulated"]) assert.ok(isCudaName(name), name);
  for (const name of ["", "gpu", "cuda:", "cuda:-1", "cuda:1x", "cuda-emulated:1", "CUDA"]) {
    assert.ok(!isCudaName(name));
    await assert.rejects(Device.open({ device: name as DeviceName }), {
      name: "RangeError",
      message: /pass "auto", "cpu", "cuda"/,
    });
  }
  await assert.rejects(Device.open({ device: "cuda-emulated", level: "avx2" }), { name: "RangeError" });
  await assert.rejects(Device.open({ device: "cuda", threads: 2 }), { name: "RangeError" });
});

Deno.test("a CUDA library that is missing, changed or none is an error, and only auto goes on without it", async () => {
  await withFolder(async (folder) => {
    const path = `${folder}/libdenoise_cuda.so`;
    await withEnvironment("DENOISE_CUDA_LIBRARY", path, async () => {
      await assert.rejects(Device.open({ device: "cuda" }), unavailable(/no CUDA library at .*deno task build:cuda`/));
      using auto = await Device.open({ device: "auto" });
      assert.ok((await Device.levels()).includes(auto.level));
      await Deno.writeTextFile(path, "no library");
      await assert.rejects(Device.open({ device: "cuda" }), { code: "corrupt" });
      const hash = new Uint8Array(await crypto.subtle.digest("SHA-256", await Deno.readFile(path))).toHex();
      await Deno.writeTextFile(`${path}.json`, JSON.stringify({ sources: "", library: hash }));
      await assert.rejects(Device.open({ device: "cuda:1" }), unavailable(/Cannot open the CUDA library/));
    });
  });
});

Deno.test("a device number that there is not is an error", async () => {
  using device = await openEmulated();
  if (!device) return;
  const { path } = await findCudaLibrary("cuda-emulated");
  await withEnvironment("DENOISE_CUDA_LIBRARY", path, async () => {
    await assert.rejects(Device.open({ device: "cuda:7" }), unavailable(/no device cuda:7: this machine has 1/));
    using first = await Device.open({ device: "cuda:0" });
    assert.equal(first.level, "cuda");
  });
});

/** A layer with weights, a state that each call changes, and a constant part. */
function layer(device: Device) {
  const weight = tensor(Array.from({ length: 64 * 48 }, (_, i) => Math.sin(i)), { shape: [64, 48] });
  return compileFunction(
    ({ x, scale }: { x: Tensor; scale: Tensor }) => ({ y: x.linear(weight).silu().mul(scale.exp()).slice(-1, 0, 48) }),
    { device, varying: ["x"] },
  );
}

Deno.test("the emulated device computes what the CPU does, run after run", async () => {
  using device = await openEmulated();
  if (!device) return;
  assert.equal(device.level, "cuda-emulated");
  using cpu = await Device.open();
  const [there, here] = [layer(device), layer(cpu)];
  const scale = tensor(Array.from({ length: 64 }, (_, i) => Math.cos(i) / 2));
  const other = tensor(Array.from({ length: 64 }, (_, i) => i / 64));
  let x = tensor(Array.from({ length: 3 * 48 }, (_, i) => Math.cos(i)), { shape: [3, 48] });
  // The first call queues its kernels, the second captures them, the others replay them with memory that changes.
  for (let call = 0; call < 5; call++) {
    const inputs = { x, scale: call < 3 ? scale : other };
    const [{ y: got }, { y: want }] = [await there.run(inputs), await here.run(inputs)];
    const [a, b] = [await toArray<"f32">(got, { device }), await toArray<"f32">(want, { device: cpu })];
    a.forEach((value, i) => assert.ok(Math.abs(value - b[i]!) < 1e-4 * (1 + Math.abs(b[i]!)), `call ${call}: ${i}`));
    // What the one computed is the other's next argument.
    x = call % 2 === 0 ? got : want;
  }
});

Deno.test("what a device's data is wrong in is an error, and it goes on", async () => {
  using device = await openEmulated();
  if (!device) return;
  const look = compileFunction(
    ({ ids, table }: { ids: Tensor; table: Tensor }) => ({ rows: embedding(ids, table) }),
    { device },
  );
  const table = tensor([1, 2, 3, 4, 5, 6], { shape: [3, 2] });
  const ids = (...values: number[]) => tensor(values, { dtype: "i32" });
  for (let call = 0; call < 3; call++) {
    const { rows } = await look.run({ ids: ids(2, 0), table });
    assert.deepEqual([...await toArray<"f32">(rows, { device })], [5, 6, 1, 2]);
    await assert.rejects(look.run({ ids: ids(0, 3), table }), { code: "bad_value", message: /Id 3 at place 1/ });
  }
  await assert.rejects(look.run({ ids: ids(0, 1), table }, { signal: AbortSignal.abort() }), { name: "AbortError" });
});

Deno.test("memory that a device has not is an error that says how much", async () => {
  using device = await openEmulated();
  if (!device) return;
  const huge = compileFunction(({ x }: { x: Tensor }) => ({ y: x.expand(1 << 20, 1 << 14).add(1) }), { device });
  await assert.rejects(huge.run({ x: tensor([1]) }), { code: "out_of_memory", message: /Cannot allocate \d+ bytes/ });
  const small = compileFunction(({ x }: { x: Tensor }) => ({ y: x.add(1) }), { device });
  const { y } = await small.run({ x: tensor([1]) });
  assert.deepEqual([...await toArray<"f32">(y, { device })], [2]);
});
