import assert from "node:assert/strict";
import { psnr } from "../../lib/media/metrics.ts";
import { FluxPipeline } from "../../lib/pipelines/flux.ts";
import { quantize } from "../../lib/quantize/quantize.ts";
import { Device } from "../../lib/tensor/device.ts";
import { openEmulated } from "../emulated.ts";

const MODEL = "models/shapes-flux";
const RUN = { height: 32, width: 32, numInferenceSteps: 2, maxSequenceLength: 16 };
const PROMPTS = ["a red star", "a blue ring"];

/** A pipeline in floats and one that is quantized. */
async function loadBoth(device: Device): Promise<FluxPipeline[]> {
  const pipes = [await FluxPipeline.load(MODEL, { device }), await FluxPipeline.load(MODEL, { device })];
  quantize(pipes[1]!.transformer, "int8wo");
  return pipes;
}

/** The pictures of both, made at the same time, of one prompt after another. */
async function picturesOf(pipes: readonly FluxPipeline[]) {
  const pictures = [];
  for (const [seed, prompt] of PROMPTS.entries()) {
    const results = await Promise.all(pipes.map((pipe) => pipe(prompt, { ...RUN, seed })));
    pictures.push(...results.map(({ images }) => images[0]!));
  }
  return pictures;
}

Deno.test("two pipelines share a device, or have one each, and make the CPU's pictures", async () => {
  using shared = await openEmulated();
  using other = await openEmulated();
  if (!shared || !other) return;
  using cpu = await Device.open();
  const expected = await picturesOf(await loadBoth(cpu));
  const [first] = await loadBoth(shared);
  const [, second] = await loadBoth(other);
  for (const pipes of [await loadBoth(shared), [first!, second!]]) {
    for (const [i, picture] of (await picturesOf(pipes)).entries()) {
      assert.ok(psnr(picture, expected[i]!) > 40, `${i}: ${psnr(picture, expected[i]!)} dB`);
    }
  }
});
