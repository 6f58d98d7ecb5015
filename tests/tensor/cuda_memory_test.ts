import assert from "node:assert/strict";
import { type TensorToWrite, writeSafetensors } from "../../lib/tensor/safetensors.ts";
import { openEmulated } from "../emulated.ts";
import { withFolder } from "../folder.ts";

const LAYERS = 20;
const [N, K] = [1024, 1024];
const MB = 1 << 20;

/** Quantizes the layers of a file on the emulated device as they are read, and runs them. */
const SCRIPT = `
import { Linear } from "${new URL("../../lib/nn/layers.ts", import.meta.url)}";
import { Module } from "${new URL("../../lib/nn/module.ts", import.meta.url)}";
import { quantize } from "${new URL("../../lib/quantize/quantize.ts", import.meta.url)}";
import { Device } from "${new URL("../../lib/tensor/device.ts", import.meta.url)}";
import { compileFunction } from "${new URL("../../lib/tensor/function.ts", import.meta.url)}";
import { toArray } from "${new URL("../../lib/tensor/realize.ts", import.meta.url)}";
import { fileStamp, openSafetensors } from "${new URL("../../lib/tensor/safetensors.ts", import.meta.url)}";
import { fromSource, tensor } from "${new URL("../../lib/tensor/source.ts", import.meta.url)}";

const [path] = Deno.args;
class Layers extends Module {
  layers;
  constructor(tensors, stamp) {
    super();
    this.layers = [...tensors].map(([name, { shape, offset, byteLength }]) => {
      const layer = new Linear(shape[1], shape[0], { bias: false });
      layer.weight.tensor = fromSource({ kind: "file", path, offset, byteLength, stamp }, { shape, dtype: "f32", name });
      return layer;
    });
  }
}
const model = new Layers(openSafetensors(path).tensors, fileStamp(Deno.statSync(path)));
quantize(model, "int8wo");
const device = await Device.open({ device: "cuda-emulated" });
const run = compileFunction(({ x }) => {
  // Layers that read one input would become one.
  const sums = model.layers.map((layer, i) => layer.forward(x.mul(i + 1)).mean());
  return { y: sums.reduce((a, b) => a.add(b)) };
}, { device });
const small = compileFunction(({ x }) => ({ y: x.add(1) }), { device });
const x = tensor(new Float32Array(${K}).fill(1), { shape: [1, ${K}] });
try {
  const { y } = await run.run({ x });
  console.log("ran", Number.isFinite((await toArray(y, { device }))[0]));
} catch (error) {
  console.log(error.name, error.code, error.message);
}
const { y } = await small.run({ x: tensor([1, 2]) });
console.log(...await toArray(y, { device }));
`;

async function runWith(folder: string, megabytes: number): Promise<string[]> {
  const { stdout, stderr, code } = await new Deno.Command(Deno.execPath(), {
    args: ["run", "--allow-all", "--no-check", `${folder}/script.ts`, `${folder}/layers.safetensors`],
    env: { DENOISE_EMULATED_MEMORY: `${megabytes * MB}` },
  }).output();
  assert.equal(code, 0, new TextDecoder().decode(stderr));
  return new TextDecoder().decode(stdout).trim().split("\n");
}

Deno.test("weights are quantized on a device a few at a time, and memory that it lacks leaves the process usable", async () => {
  using device = await openEmulated();
  if (!device) return;
  await withFolder(async (folder) => {
    const weights = Float32Array.from({ length: N * K }, (_, i) => (i % 509) / 509 - 0.5);
    const layer = (i: number): TensorToWrite => ({
      name: `${i}`,
      dtype: "F32",
      shape: [N, K],
      data: () => new Uint8Array(weights.buffer),
    });
    await writeSafetensors(`${folder}/layers.safetensors`, Array.from({ length: LAYERS }, (_, i) => layer(i)));
    await Deno.writeTextFile(`${folder}/script.ts`, SCRIPT);
    // Quantized they are a quarter of that; 64 MB at most are there in floats, besides what those become.
    const floats = 4 * LAYERS * N * K / MB;
    const [ran, after] = await runWith(folder, 1.25 * floats);
    assert.equal(ran, "ran true");
    assert.equal(after, "2 3");
    const [failed, still] = await runWith(folder, 0.5 * floats);
    assert.match(
      failed!,
      /^NativeError out_of_memory .*Cannot allocate \d+ bytes on .*, where \d+ of \d+ are free: run /,
    );
    assert.equal(still, "2 3");
  });
});
