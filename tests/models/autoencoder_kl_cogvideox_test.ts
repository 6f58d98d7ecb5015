import assert from "node:assert/strict";
import { BudgetError, ConfigError } from "../../lib/errors.ts";
import { AutoencoderKLCogVideoX } from "../../lib/models/autoencoder_kl_cogvideox.ts";
import { ModelConfig } from "../../lib/models/config.ts";
import type { VideoFrames } from "../../lib/models/frame_tiles.ts";
import { quantize } from "../../lib/quantize/quantize.ts";
import { Device } from "../../lib/tensor/device.ts";
import { Generator } from "../../lib/tensor/random.ts";
import { toArray } from "../../lib/tensor/realize.ts";
import { tensor } from "../../lib/tensor/source.ts";
import type { Tensor } from "../../lib/tensor/tensor.ts";
import { relativeL2 } from "../relative_l2.ts";

const FOLDER = "tests/fixtures/cogvideox-vae-mini";

const load = () => AutoencoderKLCogVideoX.load(FOLDER);

function noise(shape: readonly number[], seed = 3): Tensor {
  return tensor(new Generator(seed).randn(shape), { shape });
}

const collect = async (frames: AsyncIterable<VideoFrames>) => await Array.fromAsync(frames);

/** The values of one video of all frames, in order. */
const valuesOf = (frames: readonly VideoFrames[]) => Float32Array.from(frames.flatMap(({ data }) => [...data]));

Deno.test("frames come batch by batch, the remaining ones with the first, and are those of the whole", async () => {
  const vae = await load();
  const z = noise([1, 8, 5, 4, 6]);
  const parts = await collect(vae.decodeFrames(z));
  assert.deepEqual(parts.map(({ shape }) => shape), [[1, 9, 32, 48, 3], [1, 8, 32, 48, 3]]);
  const whole = await vae.decode(z);
  assert.deepEqual(whole.shape, [1, 3, 17, 32, 48]);
  const channelsLast = await toArray<"f32">(whole.permute(0, 2, 3, 4, 1));
  assert.deepEqual(channelsLast, valuesOf(parts));
});

Deno.test("frames are computed only when they are asked for, and a later decoding does not see those that were not", async () => {
  const vae = await load();
  const z = noise([1, 8, 7, 4, 6]);
  const wanted = await collect(vae.decodeFrames(z));
  for await (const { data } of vae.decodeFrames(z)) {
    assert.deepEqual(data, wanted[0]!.data);
    break;
  }
  // Two at once, in turns: each has caches of its own.
  const [a, b] = [vae.decodeFrames(z), vae.decodeFrames(noise([1, 8, 7, 4, 6], 4))];
  for (const { data } of wanted) {
    assert.deepEqual((await a.next()).value!.data, data);
    assert.notDeepEqual((await b.next()).value!.data, data);
  }
});

Deno.test("what a batch of frames takes does not grow with their number", async () => {
  const vae = await load();
  const video = { height: 64, width: 96 };
  const [short, long] = [25, 401].map((numFrames) => vae.planDecode({ ...video, numFrames }));
  for (const part of ["weights", "caches", "arena"] as const) assert.equal(short![part], long![part], part);
  // Latents are there from the start.
  assert.equal(long!.frames - short!.frames, 8 * 94 * 8 * 8 * 12);
  // A single batch of frames leaves nothing for others.
  assert.equal(vae.planDecode({ ...video, numFrames: 9 }).caches, 0);
});

Deno.test("videos of a batch are what each is alone, sliced or not", async () => {
  const vae = await load();
  const [first, second] = [noise([1, 8, 4, 3, 4], 5), noise([1, 8, 4, 3, 4], 6)];
  const values = async (t: Tensor) => await toArray<"f32">(t);
  const alone = [...await values(await vae.decode(first)), ...await values(await vae.decode(second))];
  const both = tensor(Float32Array.of(...await values(first), ...await values(second)), { shape: [2, 8, 4, 3, 4] });
  assert.ok(relativeL2(await values(await vae.decode(both)), Float32Array.from(alone)) < 1e-6);
  vae.enableSlicing();
  const sliced = await collect(vae.decodeFrames(both));
  assert.deepEqual(sliced.map(({ shape }) => shape[0]), [2, 2]);
  assert.deepEqual(await values(await vae.decode(both)), Float32Array.from(alone));
  const { mean } = await vae.encode(noise([2, 3, 9, 16, 24]));
  assert.deepEqual(mean.shape, [2, 8, 3, 2, 3]);
});

Deno.test("a budget chooses tiles, and hands frames over as they come where that fits", async () => {
  const vae = await load();
  const z = noise([1, 8, 5, 20, 24]);
  const video = { height: 160, width: 192, numFrames: 17 };
  const whole = vae.planDecode(video);
  assert.deepEqual(whole.tiles, { rows: 1, columns: 1 });
  assert.deepEqual(vae.planDecode({ ...video, memoryBudget: whole.total }), whole);
  const share = (part: number) => Math.floor(whole.total * part);
  const [untiled] = [valuesOf(await collect(vae.decodeFrames(z)))];
  const seen = new Set<string>();
  for (const part of [0.9, 0.8, 0.7, 0.6, 0.5, 0.45]) {
    const plan = vae.planDecode({ ...video, memoryBudget: share(part) });
    assert.ok(plan.total <= share(part), `${part}`);
    assert.ok(plan.tiles.rows * plan.tiles.columns > 1);
    seen.add(plan.order);
    const tiled = valuesOf(await collect(vae.decodeFrames(z, { memoryBudget: share(part) })));
    // A tile's norms see the tile alone: near, and not equal.
    assert.ok(relativeL2(tiled, untiled) < 0.2, `${part}: ${relativeL2(tiled, untiled)}`);
  }
  assert.deepEqual([...seen].sort(), ["frames", "tiles"]);
});

Deno.test("chosen tiles are nearer to the whole than diffusers' tiles of their size", async () => {
  const vae = await load();
  const z = noise([1, 8, 3, 20, 24], 9);
  const whole = valuesOf(await collect(vae.decodeFrames(z)));
  const { total, weights } = vae.planDecode({ height: 160, width: 192, numFrames: 9 });
  const memoryBudget = weights + Math.floor((total - weights) * 0.45);
  assert.deepEqual(vae.planDecode({ height: 160, width: 192, numFrames: 9, memoryBudget }).tiles, {
    rows: 2,
    columns: 2,
  });
  const ours = relativeL2(valuesOf(await collect(vae.decodeFrames(z, { memoryBudget }))), whole);
  // Twelve latents a side, of which three overlap: of such sizes that diffusers' tiles fit together.
  vae.enableTiling({
    tileSampleMinHeight: 96,
    tileSampleMinWidth: 96,
    tileOverlapFactorHeight: 0.25,
    tileOverlapFactorWidth: 0.25,
  });
  const diffusers = relativeL2(valuesOf(await collect(vae.decodeFrames(z))), whole);
  assert.ok(ours < diffusers, `${ours} against ${diffusers}`);
});

Deno.test("a budget that is too small for the smallest tile says the least that would do", async () => {
  const vae = await load();
  const video = { height: 160, width: 192, numFrames: 17 };
  let least = 0;
  assert.throws(() => vae.planDecode({ ...video, memoryBudget: 1000 }), (error) => {
    assert.ok(error instanceof BudgetError);
    assert.match(error.message, /within 1000 bytes as the smallest tile takes \d+: pass a memoryBudget of at least/);
    least = error.least;
    return true;
  });
  assert.equal(vae.planDecode({ ...video, memoryBudget: least }).total, least);
  assert.throws(() => vae.planDecode({ ...video, memoryBudget: least - 1 }), BudgetError);
  await assert.rejects(collect(vae.decodeFrames(noise([1, 8, 5, 20, 24]), { memoryBudget: least - 1 })), BudgetError);
  assert.throws(() => vae.planDecode({ ...video, memoryBudget: 0 }), RangeError);
});

Deno.test("an aborted decoding stops, and the next one starts anew", async () => {
  const vae = await load();
  const z = noise([1, 8, 5, 4, 6]);
  const controller = new AbortController();
  const frames = vae.decodeFrames(z, { signal: controller.signal });
  const first = (await frames.next()).value!;
  controller.abort();
  await assert.rejects(frames.next(), { name: "AbortError" });
  assert.deepEqual((await collect(vae.decodeFrames(z)))[0], first);
});

Deno.test("weights of convolutions over frames are quantized as they are read", async () => {
  for (const [scheme, bound] of [["int8wo", 0.05], ["fp8wo", 0.2], ["int8dq", 0.2]] as const) {
    const vae = await load();
    const z = noise([1, 8, 3, 4, 6]);
    const float = await toArray<"f32">(await vae.decode(z));
    const { quantized } = quantize(vae, scheme);
    assert.ok(quantized.some(({ name }) => name === "decoder.up_blocks.0.resnets.0.conv1.conv"), scheme);
    const error = relativeL2(await toArray<"f32">(await vae.decode(z)), float);
    assert.ok(error > 1e-4 && error < bound, `${scheme}: ${error}`);
  }
});

Deno.test("16-bit floats are near f32", async () => {
  const vae = await load();
  const z = noise([1, 8, 4, 4, 6]);
  const wanted = await toArray<"f32">(await vae.decode(z));
  vae.dtype = "bf16";
  assert.ok(relativeL2(await toArray<"f32">(await vae.decode(z)), wanted) < 0.05);
});

Deno.test("tiles, shapes and configurations that cannot be are refused", async () => {
  const vae = await load();
  assert.throws(() => vae.enableTiling({ tileSampleMinHeight: 7 }), /A tile has at least 8 pixels a side/);
  assert.throws(
    () => vae.enableTiling({ tileOverlapFactorWidth: 0.9 }),
    /cannot overlap by tileOverlapFactorWidth 0.9/,
  );
  assert.throws(() => vae.planDecode({ height: 30, width: 48, numFrames: 9 }), /multiples of 8/);
  await assert.rejects(vae.decode(noise([1, 4, 3, 4, 6])), /Latents are \(batch, 8, frames, rows, columns\)/);
  await assert.rejects(vae.encode(noise([1, 3, 9, 16])), /Videos are \(batch, 3, frames, rows, columns\)/);
  const fields = JSON.parse(await Deno.readTextFile(`${FOLDER}/config.json`));
  const make = (change: Record<string, unknown>) =>
    new AutoencoderKLCogVideoX(new ModelConfig({ ...fields, ...change }, "config.json"));
  assert.throws(() => make({ up_block_types: ["CogVideoXUpBlock3D"] }), ConfigError);
  assert.throws(() => make({ down_block_types: ["DownBlock"] }), ConfigError);
  assert.equal(make({ invert_scale_latents: true }).config.invertScaleLatents, true);
});

Deno.test("every level decodes alike", async () => {
  const z = noise([1, 8, 5, 3, 5]);
  let wanted: Float32Array | undefined;
  for (const level of await Device.levels()) {
    using device = await Device.open({ level });
    const values = await toArray<"f32">(await (await load()).decode(z, { device }), { device });
    if (wanted) assert.ok(relativeL2(values, wanted) < 1e-5, level);
    else wanted = values;
  }
});
