import assert from "node:assert/strict";
import { writeRandomCogVideoX } from "../../bench/random_model.ts";
import { autoquant } from "../../lib/compile/autoquant.ts";
import { compile } from "../../lib/compile/compile.ts";
import { BudgetError, ConfigError, OutputError } from "../../lib/errors.ts";
import { maxAbsDifference, psnr } from "../../lib/media/metrics.ts";
import { readVideo, VideoReader } from "../../lib/media/video.ts";
import { type CogVideoXOptions, CogVideoXPipeline } from "../../lib/pipelines/cogvideox.ts";
import { quantize } from "../../lib/quantize/quantize.ts";
import { toArray } from "../../lib/tensor/realize.ts";
import { tensor } from "../../lib/tensor/source.ts";
import type { Tensor } from "../../lib/tensor/tensor.ts";
import { withFolder } from "../folder.ts";
import { relativeL2 } from "../relative_l2.ts";

const folder = await Deno.makeTempDir();
globalThis.addEventListener("unload", () => Deno.removeSync(folder, { recursive: true }));

const VAE = {
  block_out_channels: [16, 16, 32, 32],
  latent_channels: 4,
  layers_per_block: 1,
  norm_num_groups: 4,
  sample_height: 32,
  sample_width: 48,
};
const TRANSFORMER = {
  num_attention_heads: 2,
  attention_head_dim: 64,
  in_channels: 4,
  out_channels: 4,
  time_embed_dim: 32,
  text_embed_dim: 128,
  num_layers: 2,
  sample_width: 6,
  sample_height: 4,
  sample_frames: 9,
  max_text_seq_length: 12,
  use_rotary_positional_embeddings: true,
};
const TEXT = { encoder: "models/shapes-flux/text_encoder_2", tokenizer: "models/shapes-flux/tokenizer_2" };
await writeRandomCogVideoX(folder, { transformer: TRANSFORMER, vae: VAE, text: TEXT });
const pipe = await CogVideoXPipeline.load(folder);

const PROMPT = "a blue ring on a white background";
const QUICK = { numInferenceSteps: 2, seed: 3 } as const;

const namesIn = async (path: string) => (await Array.fromAsync(Deno.readDir(path))).map(({ name }) => name).sort();
const values = (t: Tensor) => toArray<"f32">(t);

Deno.test("a prompt becomes a video, whose frames come a few at a time, and whose file says how it was made", async () => {
  await withFolder(async (out) => {
    const { videos, seeds, seconds, numInferenceSteps } = await pipe(PROMPT, { ...QUICK, fps: 5 });
    const [video] = videos;
    assert.deepEqual([videos.length, seeds, numInferenceSteps], [1, [3], 2]);
    assert.deepEqual([video!.width, video!.height, video!.frameCount, video!.fps], [48, 32, 9, 5]);
    assert.equal(video!.duration, 9 / 5);
    assert.equal(seconds.decoding, 0, "nothing is decoded yet");
    const told: number[] = [];
    await video!.save(`${out}/ring.mp4`, { onFrame: (count) => told.push(count), qp: 0 });
    assert.deepEqual(told, [1, 2, 3, 4, 5, 6, 7, 8, 9]);
    assert.ok(seconds.decoding > 0 && seconds.denoising > 0 && seconds.textEncoding > 0);
    const read = await VideoReader.open(`${out}/ring.mp4`);
    assert.deepEqual([read.width, read.height, read.frameCount, read.fps], [48, 32, 9, 5]);
    const { metadata } = read;
    assert.equal(metadata.prompt, PROMPT);
    assert.equal(metadata.seed, "3");
    assert.equal(metadata.num_frames, "9");
    assert.equal(metadata.scheduler, "CogVideoXDDIMScheduler");
    assert.equal(metadata.guidance_scale, "6");
    const frames = await Array.fromAsync(video!);
    const written = await readVideo(`${out}/ring.mp4`);
    assert.ok(psnr(written.frames[4]!, frames[4]!) > 35);
    assert.deepEqual((await video!.load()).frames.map(({ data }) => data), frames.map(({ data }) => data));
    await video!.save(`${out}/ring.png`);
    await video!.save(`${out}/ring.gif`);
    assert.deepEqual(await namesIn(out), ["ring.gif", "ring.mp4", "ring.png"]);
    const shown = await (video as unknown as Record<symbol, () => Promise<object>>)[Symbol.for("Jupyter.display")]!();
    assert.deepEqual(Object.keys(shown), ["text/html"]);
  });
});

Deno.test("given embeddings and latents make the same video as prompts and seeds do", async () => {
  const expected = await values((await pipe([PROMPT, "a red star"], { ...QUICK, outputType: "latent" })).latents);
  const promptEmbeds = await pipe.encodePrompt([PROMPT, "a red star"]);
  const negativePromptEmbeds = await pipe.encodePrompt(["", ""]);
  const latents = pipe.prepareLatents({ seed: 3, count: 2 });
  const given = await pipe(undefined, {
    numInferenceSteps: 2,
    promptEmbeds,
    negativePromptEmbeds,
    latents,
    outputType: "latent",
  });
  assert.deepEqual([given.videos, given.seeds], [[], []]);
  assert.deepEqual(await values(given.latents), expected);
});

Deno.test("several videos a prompt, a seed each: those of single runs, with both schedulers", async () => {
  for (const scheduler of ["CogVideoXDDIMScheduler", "CogVideoXDPMScheduler"] as const) {
    const own = await CogVideoXPipeline.load(folder, { scheduler });
    const both = await own([PROMPT, "a red star"], { ...QUICK, numVideosPerPrompt: 2, seed: [1, 2, 3, 4n] });
    assert.deepEqual(both.seeds, [1, 2, 3, 4n]);
    assert.equal(both.videos.length, 4);
    const { latents } = await own("a red star", { ...QUICK, seed: 3 });
    const [, ...shape] = latents.shape;
    const size = shape.reduce((a, b) => a * b);
    const found = (await values(both.latents)).subarray(2 * size, 3 * size);
    assert.ok(relativeL2(found, await values(latents)) < 1e-5);
    assert.equal(both.videos[2]!.metadata.prompt, "a red star");
  }
});

Deno.test("a negative prompt, and guidance that grows, change the video; without guidance neither does", async () => {
  const latents = async (options: CogVideoXOptions) =>
    await values((await pipe(PROMPT, { ...QUICK, ...options })).latents);
  const plain = await latents({});
  assert.ok(relativeL2(await latents({ negativePrompt: "a red star" }), plain) > 1e-4);
  assert.ok(relativeL2(await latents({ useDynamicCfg: true }), plain) > 1e-4);
  const without = await latents({ guidanceScale: 1 });
  assert.deepEqual(await latents({ guidanceScale: 1, negativePrompt: "a red star", useDynamicCfg: true }), without);
});

Deno.test("steps tell of timesteps and guidance, give a look at the middle frame, and can be decoded", async () => {
  const run = pipe.steps(PROMPT, { ...QUICK, numInferenceSteps: 4, useDynamicCfg: true });
  const timesteps: number[] = [];
  for await (const step of run) {
    timesteps.push(step.timestep);
    assert.ok(step.guidanceScale >= 1 && step.guidanceScale <= 7);
    assert.equal(step.count, 4);
    if (step.index < 3) continue;
    const preview = await step.preview();
    assert.deepEqual([preview.width, preview.height], [24, 16]);
    assert.deepEqual(step.latents.shape, [1, 3, 4, 4, 6]);
    const [video] = step.decode();
    const frames = await Array.fromAsync(video!.frames());
    const mean = (data: Uint8Array) => data.reduce((a, b) => a + b) / data.length;
    assert.ok(Math.abs(mean(preview.data) - mean(frames[4]!.data)) < 40);
  }
  assert.deepEqual(timesteps, [999, 749, 499, 249]);
});

Deno.test("sixteen bits make nearly the same video", async () => {
  const half = await CogVideoXPipeline.load(folder, { dtype: "bf16" });
  const start = pipe.prepareLatents({ seed: 3 });
  const own = await pipe(PROMPT, { ...QUICK, latents: start, outputType: "latent" });
  const { latents } = await half(PROMPT, { ...QUICK, latents: start, outputType: "latent" });
  assert.equal(latents.dtype, "bf16");
  assert.ok(relativeL2(await values(latents.cast("f32")), await values(own.latents)) < 0.05);
});

Deno.test("a quantized and fused pipeline is near the float one, is saved, and loaded as it was", async () => {
  await withFolder(async (out) => {
    const { videos: [float] } = await pipe(PROMPT, QUICK);
    const own = await CogVideoXPipeline.load(folder, { scheduler: "CogVideoXDPMScheduler" });
    own.transformer.fuseQkvProjections();
    quantize(own.transformer, "int8wo");
    quantize(own.textEncoder!, "int8wo");
    quantize(own.vae, "int8wo");
    assert.match(own.quantization, /text_encoder: \d+ int8wo.*; transformer: \d+ int8wo.*; vae: \d+ int8wo/);
    await own.save(`${out}/quantized`);
    const again = await CogVideoXPipeline.load(`${out}/quantized`);
    assert.equal(again.quantization, own.quantization);
    const made = await own(PROMPT, QUICK);
    assert.deepEqual(await values((await again(PROMPT, QUICK)).latents), await values(made.latents));
    assert.equal(made.videos[0]!.metadata.scheduler, "CogVideoXDPMScheduler");
    const ddim = await CogVideoXPipeline.load(`${out}/quantized`, { scheduler: "CogVideoXDDIMScheduler" });
    const near = await (await ddim(PROMPT, QUICK)).videos[0]!.load();
    assert.ok(psnr(near.frames[4]!, (await float!.load()).frames[4]!) > 25);
  });
});

Deno.test("a pipeline is compiled, saved as one file, and runs from it", async () => {
  await withFolder(async (out) => {
    const own = await CogVideoXPipeline.load(folder, { scheduler: "CogVideoXDPMScheduler" });
    const run = { numInferenceSteps: 2, numFrames: 17 };
    const compiled = await compile(own, { runs: [run], vae: true, autotune: "off" });
    const path = `${out}/compiled.safetensors`;
    await compiled.save(path);
    const read = await CogVideoXPipeline.load(path);
    const options = { ...QUICK, numFrames: 17 };
    const [a, b] = [await own(PROMPT, options), await read(PROMPT, options)];
    assert.deepEqual(await values(a.latents), await values(b.latents));
    const frames = await Array.fromAsync(a.videos[0]!);
    for (const [i, frame] of (await Array.fromAsync(b.videos[0]!)).entries()) {
      assert.ok(maxAbsDifference(frame, frames[i]!) <= 1);
    }
    assert.equal(read.plan(run).bytes, own.plan(run).bytes);
    await assert.rejects(read(PROMPT, QUICK), { name: "RangeError", message: /9 frames.*compiled for.*17 frames/ });
    assert.throws(() => read.transformer, { name: "TypeError", message: /ahead of time/ });
  });
});

Deno.test("schemes are chosen by what layers read while videos are made, guidance included", async () => {
  const own = await CogVideoXPipeline.load(folder);
  const plan = await autoquant(own, { prompts: [PROMPT], minSqnrDb: 25, schemes: ["int8wo"], steps: 1, numFrames: 5 });
  const block = plan.layers.filter(({ name }) => name.startsWith("transformer_blocks."));
  assert.equal(block.length, 2 * 8, "two modulations, q, k, v, the output and two of the feed-forward in each block");
  for (const { component } of block) assert.equal(component, "transformer");
  // Both halves of guidance: 2 frames of 2 by 3 tokens of each.
  const feed = block.find(({ name }) => name.endsWith("ff.net.2"))!;
  assert.ok(feed.problems!.some(({ m }) => m === 2 * 2 * 6), JSON.stringify(feed.problems));
  assert.equal((await own(PROMPT, { ...QUICK, numFrames: 5, outputType: "latent" })).latents.size(1), 2);
});

const embeds = tensor(new Float32Array(2 * 12 * 128), { shape: [2, 12, 128] });

const WRONG: Readonly<
  Record<string, [typeof TypeError | typeof RangeError, RegExp, CogVideoXOptions, (string | null)?]>
> = {
  "an odd height": [RangeError, /video with a height of 33: the model takes multiples of 16, such as 32/, {
    height: 33,
  }],
  "a width of half a token": [RangeError, /width of 40: .*such as 48/, { width: 40 }],
  "no width": [RangeError, /width of 0/, { width: 0 }],
  "frames that do not fit": [RangeError, /video of 10 frames: the model takes 4k \+ 1 of them, such as 9/, {
    numFrames: 10,
  }],
  "no frames": [RangeError, /video of 0 frames: .*such as 1/, { numFrames: 0 }],
  "half a frame": [RangeError, /video of 8\.5 frames/, { numFrames: 8.5 }],
  "no steps": [RangeError, /numInferenceSteps of 0/, { numInferenceSteps: 0 }],
  "a guidance that is no number": [RangeError, /guidanceScale of NaN/, { guidanceScale: NaN }],
  "a seed that is no integer": [RangeError, /0\.5/, { seed: 0.5 }],
  "seeds for other videos": [RangeError, /1 videos from 2 seeds/, { seed: [1, 2] }],
  "no frames a second": [RangeError, /0 frames a second/, { fps: 0 }],
  "too many tokens": [RangeError, /maxSequenceLength of 513/, { maxSequenceLength: 513 }],
  "no videos": [RangeError, /numVideosPerPrompt of 0/, { numVideosPerPrompt: 0 }],
  "an eta beyond 1": [RangeError, /eta of 2/, { eta: 2 }],
  "no budget": [RangeError, /memoryBudget of 0/, { memoryBudget: 0 }],
  "an unknown output": [RangeError, /"np"/, { outputType: "np" as "video" }],
  "neither prompt nor embeddings": [TypeError, /pass a prompt, or promptEmbeds/, {}, null],
  "both prompt and embeddings": [TypeError, /both prompt and promptEmbeds/, { promptEmbeds: embeds }],
  "embeddings of other prompts": [TypeError, /guide promptEmbeds of \[1, 12, 128\].*\[2, 12, 128\]/, {
    negativePromptEmbeds: embeds,
  }],
  "latents of another size": [TypeError, /latents of \[2, 12, 128\].*take \[1, 3, 4, 4, 6\]/, { latents: embeds }],
  "negative prompts for other prompts": [TypeError, /2 of negativePrompt for 1 prompts/, {
    negativePrompt: ["a", "b"],
  }],
};

for (const [name, [type, message, options, prompt]] of Object.entries(WRONG)) {
  Deno.test(`a typed error names the value: ${name}`, async () => {
    await assert.rejects(pipe(prompt === null ? undefined : PROMPT, { ...QUICK, ...options }), (error) => {
      assert.ok(error instanceof type, `${error}`);
      assert.match(error.message, message);
      return true;
    });
  });
}

Deno.test("a missing T5 is named: in the checkpoint, and where prompts are to be read", async () => {
  const without = await CogVideoXPipeline.load(folder, { textEncoders: false });
  await assert.rejects(without(PROMPT, QUICK), { name: "TypeError", message: /without its text encoder: load it, or/ });
  await assert.rejects(without(undefined, { ...QUICK, promptEmbeds: embeds }), {
    name: "TypeError",
    message: /negativePromptEmbeds, or a guidanceScale of 1/,
  });
  assert.equal((await without(undefined, { ...QUICK, promptEmbeds: embeds, guidanceScale: 1 })).videos.length, 2);
  assert.ok(without.plan().bytes < pipe.plan().bytes);
  await withFolder(async (broken) => {
    await Deno.copyFile(`${folder}/model_index.json`, `${broken}/model_index.json`);
    for (const part of ["transformer", "vae", "scheduler"]) {
      await Deno.symlink(`${folder}/${part}`, `${broken}/${part}`);
    }
    await assert.rejects(CogVideoXPipeline.load(broken), ConfigError);
    const index = JSON.parse(await Deno.readTextFile(`${folder}/model_index.json`));
    index.scheduler = ["diffusers", "PNDMScheduler"];
    await Deno.writeTextFile(`${broken}/model_index.json`, JSON.stringify(index));
    await assert.rejects(
      CogVideoXPipeline.load(broken),
      (e) => e instanceof ConfigError && e.key === "scheduler" && /CogVideoXDDIMScheduler and/.test(e.message),
    );
  });
});

Deno.test("a budget that one tile does not fit in is a typed error, and leaves no file", async () => {
  await withFolder(async (out) => {
    const { videos } = await pipe(PROMPT, { ...QUICK, memoryBudget: 1000 });
    await assert.rejects(videos[0]!.save(`${out}/ring.mp4`), BudgetError);
    assert.throws(() => pipe.plan({ memoryBudget: 1000 }), BudgetError);
    assert.deepEqual(await namesIn(out), []);
  });
});

Deno.test("a full disk and a missing folder are typed errors, and leave no file", async () => {
  await withFolder(async (out) => {
    const { videos: [video] } = await pipe(PROMPT, QUICK);
    await assert.rejects(video!.save(`${out}/missing/ring.mp4`), OutputError);
    await assert.rejects(video!.save(`${out}/ring.avi`), RangeError);
    const write = Deno.FsFile.prototype.write;
    Deno.FsFile.prototype.write = () => Promise.reject(new Error("No space left on device (os error 28)"));
    try {
      await assert.rejects(
        video!.save(`${out}/ring.mp4`),
        (e) => e instanceof OutputError && /ring\.mp4: No space left.*the space left/.test(e.message),
      );
    } finally {
      Deno.FsFile.prototype.write = write;
    }
    assert.deepEqual(await namesIn(out), []);
    await video!.save(`${out}/ring.mp4`);
    assert.deepEqual(await namesIn(out), ["ring.mp4"]);
  });
});

Deno.test("a run that is aborted stops within a step, decoding within some frames, and leaves no file", async () => {
  await withFolder(async (out) => {
    const reason = new Error("enough");
    const abort = new AbortController();
    let steps = 0;
    const run = pipe(PROMPT, {
      ...QUICK,
      numInferenceSteps: 50,
      signal: abort.signal,
      onStep: () => {
        if (++steps === 2) abort.abort(reason);
      },
    });
    await assert.rejects(run, (error) => error === reason);
    assert.equal(steps, 2);

    const { videos: [video] } = await pipe(PROMPT, { ...QUICK, numFrames: 17 });
    const saving = new AbortController();
    let frames = 0;
    const saved = video!.save(`${out}/ring.mp4`, {
      signal: saving.signal,
      onFrame: () => {
        if (++frames === 3) saving.abort(reason);
      },
    });
    await assert.rejects(saved, (error) => error === reason);
    assert.ok(frames <= 9, `${frames} frames`);
    assert.deepEqual(await namesIn(out), []);
    for await (const _ of video!) break; // what is not asked for is not decoded
    await video!.save(`${out}/ring.mp4`);
  });
});

Deno.test("a profile tells of every model of a call, decoding included", async () => {
  const rows = (await pipe.profile(PROMPT, QUICK)).rows();
  const programs = new Set(rows.map(({ program }) => program));
  assert.ok(programs.size >= 3, [...programs].join());
  for (const op of ["attention", "linear", "conv"]) assert.ok(rows.some((row) => row.op === op && row.seconds > 0), op);
});

Deno.test("a plan needs no weights, has every phase, and grows with the video and the batch", async () => {
  const empty = await CogVideoXPipeline.load(folder, { weights: false });
  const plan = empty.plan();
  assert.deepEqual(plan, pipe.plan());
  assert.deepEqual(plan.models.map(({ part }) => part), ["text_encoder", "transformer", "vae"]);
  assert.deepEqual(plan.phases.map(({ phase }) => phase), ["textEncoding", "denoising", "decoding"]);
  assert.equal(plan.bytes, Math.max(...plan.phases.map(({ bytes }) => bytes)));
  const work = (run: Parameters<typeof empty.plan>[0]) => empty.plan(run).models.map(({ workBytes }) => workBytes);
  assert.ok(work({ height: 64, width: 96 })[2]! > 3 * work({})[2]!);
  assert.ok(work({ numFrames: 33 })[1]! > 2 * work({})[1]!);
  const large = { height: 96, width: 96, numFrames: 33 };
  assert.ok(work({ ...large, guidanceScale: 1 })[1]! < 0.7 * work(large)[1]!);
  assert.ok(work({ ...large, prompts: 3 })[1]! > 2.5 * work(large)[1]!);
  const tight = empty.plan({ height: 256, width: 256, memoryBudget: 24e6 });
  const decoding = (p: typeof plan) => p.models[2]!.workBytes;
  assert.ok(decoding(tight) < decoding(empty.plan({ height: 256, width: 256 })) / 2);
  await assert.rejects(empty(PROMPT, QUICK), { name: "NativeError", message: /has no values/ });
});
