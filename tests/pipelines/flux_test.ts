import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { CheckpointError, ConfigError, DenoiseError, OutputError } from "../../lib/errors.ts";
import { Image, settingsFromMetadata } from "../../lib/media/image.ts";
import { maxAbsDifference, psnr } from "../../lib/media/metrics.ts";
import { fluxBflRows } from "../../lib/models/flux_bfl.ts";
import { type FluxOptions, FluxPipeline } from "../../lib/pipelines/flux.ts";
import { toArray } from "../../lib/tensor/realize.ts";
import {
  openSafetensors,
  readTensor,
  type SafetensorsFile,
  type TensorToWrite,
  writeSafetensors,
} from "../../lib/tensor/safetensors.ts";
import { tensor } from "../../lib/tensor/source.ts";
import { withFolder } from "../folder.ts";

const MODEL = "models/shapes-flux";
const pipe = await FluxPipeline.load(MODEL);
const goldens = openSafetensors("tests/fixtures/shapes-flux/cases.safetensors");
const f32 = (name: string) => new Float32Array(readTensor(goldens, name).buffer);

/** A small picture in few steps, where what it shows does not matter. */
const QUICK = { height: 32, width: 48, numInferenceSteps: 2, maxSequenceLength: 8, seed: 3 } as const;
const PROMPT = "a blue ring on a white background";

function assertClose(actual: ArrayLike<number>, expected: ArrayLike<number>, what: string): void {
  assert.equal(actual.length, expected.length, what);
  let [error, norm] = [0, 0];
  for (let i = 0; i < expected.length; i++) {
    error += (actual[i]! - expected[i]!) ** 2;
    norm += expected[i]! ** 2;
  }
  assert.ok(Math.sqrt(error / norm) < 1e-5, `${what}: ${Math.sqrt(error / norm)}`);
}

/** A call of diffusers' pipeline. */
interface PipelineCase {
  case: string;
  prompt: string[];
  prompt_2?: string[];
  negative_prompt?: string[];
  true_cfg_scale?: number;
  seed: number;
  num_inference_steps: number;
  guidance_scale: number;
  height: number;
  width: number;
  max_sequence_length: number;
  num_images_per_prompt?: number;
}

async function copyInto(folder: string, path: string): Promise<void> {
  await Deno.mkdir(`${folder}/${path.slice(0, path.lastIndexOf("/") + 1)}`, { recursive: true });
  await Deno.copyFile(`${MODEL}/${path}`, `${folder}/${path}`);
}

/** A transformer's tensors under Black Forest Labs' names, where several parameters are rows of one. */
function withBflNames(file: SafetensorsFile): TensorToWrite[] {
  const { numAttentionHeads, attentionHeadDim } = pipe.transformer.config;
  const parts = new Map<string, { start: number; rest: readonly number[]; bytes: Uint8Array }[]>();
  for (const [name, { shape }] of file.tensors) {
    const bytes = readTensor(file, name);
    const [all = 1, ...rest] = shape;
    let from = 0;
    for (
      const { name: target, start = 0, count = all } of fluxBflRows(name, shape, numAttentionHeads * attentionHeadDim)
    ) {
      const rows = bytes.subarray(from, from += count * bytes.length / all);
      parts.set(target, [...parts.get(target) ?? [], { start, rest, bytes: rows }]);
    }
  }
  return [...parts].map(([name, rows]) => {
    const data = Buffer.concat(rows.sort((a, b) => a.start - b.start).map(({ bytes }) => bytes));
    const { rest } = rows[0]!;
    return { name, dtype: "BF16", shape: [data.length / 2 / rest.reduce((a, b) => a * b, 1), ...rest], data };
  });
}

Deno.test("a picture equals diffusers': embeddings, noise, the first step, the pixels", async () => {
  const prompt = "a large yellow ring at the left on a black background";
  const options = { height: 128, width: 128, maxSequenceLength: 32, numInferenceSteps: 4, seed: 40 };
  const { promptEmbeds, pooledPromptEmbeds } = await pipe.encodePrompt(prompt, options);
  assertClose(await toArray<"f32">(promptEmbeds), f32("case1.out.prompt_embeds"), "T5");
  assertClose(await toArray<"f32">(pooledPromptEmbeds), f32("case1.out.pooled_prompt_embeds"), "CLIP");
  const start = pipe.prepareLatents(options);
  assertClose(await toArray<"f32">(start), f32("case1.out.initial_latents"), "noise");

  const timesteps: number[] = [];
  for await (const step of pipe.steps(prompt, { ...options, outputType: "latent" })) {
    assert.equal(step.index, timesteps.length);
    assert.equal(step.count, 4);
    timesteps.push(step.timestep);
    if (step.index === 0) assertClose(await toArray<"f32">(step.latents), f32("case1.out.latents_step1"), "a step");
    if (step.index < 3) continue;
    assertClose(await toArray<"f32">(step.latents), f32("case1.out.latents_final"), "all steps");
    const [image] = await step.decode();
    const expected = await Image.open("tests/fixtures/shapes-flux/case1_0_f32.png");
    assert.ok(maxAbsDifference(image!, expected) <= 2);
  }
  assert.deepEqual(timesteps, timesteps.toSorted((a, b) => b - a));
  assert.equal(timesteps[0], 1000);

  const given = await pipe(undefined, { ...options, promptEmbeds, pooledPromptEmbeds, latents: start });
  assertClose(await toArray<"f32">(given.latents), f32("case1.out.latents_final"), "from embeddings and latents");
  assert.deepEqual(given.seeds, []);
});

Deno.test("several prompts, another size, two pictures of a prompt, a negative prompt, a second prompt", async () => {
  const cases = JSON.parse(await Deno.readTextFile("tests/fixtures/shapes-flux/cases.json")) as PipelineCase[];
  for (const golden of cases.slice(3)) {
    const { images } = await pipe(golden.prompt, {
      prompt2: golden.prompt_2,
      negativePrompt: golden.negative_prompt,
      trueCfgScale: golden.true_cfg_scale,
      seed: golden.seed,
      numInferenceSteps: golden.num_inference_steps,
      guidanceScale: golden.guidance_scale,
      height: golden.height,
      width: golden.width,
      maxSequenceLength: golden.max_sequence_length,
      numImagesPerPrompt: golden.num_images_per_prompt,
    });
    for (const [i, image] of images.entries()) {
      const expected = await Image.open(`tests/fixtures/shapes-flux/${golden.case}_${i}_f32.png`);
      assert.ok(maxAbsDifference(image, expected) <= 2, `${golden.case}_${i}`);
    }
    assert.equal(images.length, golden.prompt.length * (golden.num_images_per_prompt ?? 1));
  }
});

Deno.test("16-bit floats draw noise of their own, and nearly the same picture as diffusers", async () => {
  for (const dtype of ["bf16", "f16"] as const) {
    const half = await FluxPipeline.load(MODEL, { dtype });
    const { images, latents } = await half("a large yellow ring at the left on a black background", {
      height: 128,
      width: 128,
      maxSequenceLength: 32,
      numInferenceSteps: 4,
      seed: 40,
    });
    assert.equal(latents.dtype, dtype);
    if (dtype === "f16") continue; // there is no golden of f16: its noise is another one
    const expected = await Image.open("tests/fixtures/shapes-flux/case1_0_bf16.png");
    assert.ok(psnr(images[0]!, expected) > 38, `${psnr(images[0]!, expected)} dB`);
  }
});

Deno.test("a seed for each picture gives the pictures of single runs", async () => {
  const both = await pipe([PROMPT, PROMPT], { ...QUICK, seed: [8, 9n] });
  assert.deepEqual(both.seeds, [8, 9n]);
  for (const [i, seed] of [8, 9].entries()) {
    const { images } = await pipe(PROMPT, { ...QUICK, seed });
    assert.ok(maxAbsDifference(both.images[i]!, images[0]!) <= 1);
  }
  assert.ok(maxAbsDifference(both.images[0]!, both.images[1]!) > 1);
});

Deno.test("no seed is a seed by chance, which is told", async () => {
  const first = await pipe(PROMPT, { ...QUICK, seed: undefined });
  const again = await pipe(PROMPT, { ...QUICK, seed: first.seeds[0]! });
  assert.deepEqual(again.images[0]!.data, first.images[0]!.data);
});

Deno.test("a preview is half as large, and soon looks like the picture", async () => {
  const options = { ...QUICK, height: 64, width: 64, numInferenceSteps: 6 };
  const { images: [whole] } = await pipe(PROMPT, options);
  const mean = ({ data }: Image) =>
    [0, 1, 2].map((c) => data.reduce((sum, v, i) => sum + (i % 3 === c ? v : 0), 0) / data.length * 3);
  for await (const step of pipe.steps(PROMPT, options)) {
    if (step.index < 3) continue;
    const preview = await step.preview();
    assert.deepEqual([preview.width, preview.height], [32, 32]);
    mean(preview).forEach((value, c) => assert.ok(Math.abs(value - mean(whole!)[c]!) < 25, `step ${step.index}`));
  }
});

Deno.test("a saved picture makes itself again: alone, and out of a batch", async () => {
  await withFolder(async (folder) => {
    const { images } = await pipe([PROMPT, "a red star on a gray background"], {
      ...QUICK,
      numImagesPerPrompt: 2,
      negativePrompt: "a circle",
      trueCfgScale: 1.5,
      guidanceScale: 2.5,
      seed: 2n ** 63n + 5n,
    });
    const file = `${folder}/picture.png`;
    await images[2]!.save(file);
    const settings = settingsFromMetadata((await Image.open(file)).metadata);
    assert.deepEqual(settings, {
      model: MODEL,
      prompt: "a red star on a gray background",
      negativePrompt: "a circle",
      trueCfgScale: 1.5,
      dtype: "f32",
      seed: 2n ** 63n + 5n,
      numInferenceSteps: 2,
      guidanceScale: 2.5,
      width: 48,
      height: 32,
      maxSequenceLength: 8,
      batchSize: 4,
      index: 2,
    });
    const again = await pipe.rerun(file);
    assert.ok(maxAbsDifference(again, images[2]!) <= 1);
    assert.deepEqual(again.metadata, images[2]!.metadata);
    await assert.rejects(
      pipe.rerun(new Image({ width: 1, height: 1, data: new Uint8Array(3) })),
      (e) => e instanceof DenoiseError && e.key === "prompt",
    );
  });
});

Deno.test("an empty prompt works; one that is too long is cut, and what was dropped is shown", async () => {
  const { images } = await pipe("", QUICK);
  assert.equal(images.length, 1);
  const warnings: string[] = [];
  const warn = console.warn;
  console.warn = (text: string) => warnings.push(text);
  try {
    await pipe(`${PROMPT} a red star`.repeat(9), QUICK);
  } finally {
    console.warn = warn;
  }
  assert.equal(warnings.length, 2);
  assert.match(warnings[0]!, /cut, as what CLIP takes is 77 tokens: .*star/);
  assert.match(warnings[1]!, /cut, as maxSequenceLength is 8 tokens: .*star/);
});

const embeds = tensor(new Float32Array(2 * 8 * 128), { shape: [2, 8, 128] });
const pooled = tensor(new Float32Array(2 * 128), { shape: [2, 128] });

const WRONG: Readonly<Record<string, [typeof TypeError | typeof RangeError, RegExp, FluxOptions, (string | null)?]>> = {
  "a guidance that is no number": [RangeError, /guidanceScale of NaN/, { guidanceScale: NaN }],
  "an endless guidance": [RangeError, /trueCfgScale of Infinity/, { trueCfgScale: Infinity }],
  "a seed out of range": [RangeError, /18446744073709551616/, { seed: 2n ** 64n }],
  "a seed that is no integer": [RangeError, /0\.5/, { seed: 0.5 }],
  "seeds for other pictures": [RangeError, /1 pictures from 2 seeds/, { seed: [1, 2] }],
  "a height between sizes": [RangeError, /height of 100: the model takes multiples of 16, such as 96/, { height: 100 }],
  "no width": [RangeError, /width of 0/, { width: 0 }],
  "a width that is no number": [RangeError, /width of NaN/, { width: NaN }],
  "no steps": [RangeError, /numInferenceSteps of 0/, { numInferenceSteps: 0 }],
  "sigmas for other steps": [RangeError, /2 steps with 1 sigmas/, { sigmas: [1] }],
  "too many tokens": [RangeError, /maxSequenceLength of 513/, { maxSequenceLength: 513 }],
  "no pictures": [RangeError, /numImagesPerPrompt of 0/, { numImagesPerPrompt: 0 }],
  "an unknown output": [RangeError, /"pil"/, { outputType: "pil" as "image" }],
  "neither prompt nor embeddings": [TypeError, /pass a prompt, or promptEmbeds/, {}, null],
  "both prompt and embeddings": [TypeError, /both prompt and promptEmbeds/, {
    promptEmbeds: embeds,
    pooledPromptEmbeds: pooled,
  }],
  "embeddings of one kind": [TypeError, /promptEmbeds alone: pass pooledPromptEmbeds/, { promptEmbeds: embeds }, null],
  "embeddings of another model": [TypeError, /pooledPromptEmbeds of \[2, 8, 128\]: the model takes \[2, 128\]/, {
    promptEmbeds: embeds,
    pooledPromptEmbeds: embeds,
  }, null],
  "latents of another size": [TypeError, /latents of \[2, 128\].*take \[1, 6, 64\]/, { latents: pooled }],
  "negative prompts for other prompts": [TypeError, /2 of negativePrompt for 1 prompts/, {
    negativePrompt: ["a", "b"],
    trueCfgScale: 2,
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

Deno.test("prompts that are no texts are refused", async () => {
  for (const prompt of [[], 3, [3], null]) {
    await assert.rejects(pipe(prompt as unknown as string, QUICK), TypeError);
  }
});

Deno.test("a run that is aborted stops within a step", async () => {
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

  const within = new AbortController();
  let taken = 0;
  setTimeout(() => within.abort(reason), 30);
  await assert.rejects(
    pipe(PROMPT, {
      ...QUICK,
      height: 512,
      width: 512,
      numInferenceSteps: 999,
      signal: within.signal,
      onStep: () => taken++,
    }),
    (error) => error === reason,
  );
  assert.ok(taken < 100, `${taken} steps`);
  assert.equal((await pipe(PROMPT, QUICK)).images.length, 1, "the pipeline works on");
});

Deno.test("the event loop stays free while a picture is made", async () => {
  let ticks = 0;
  const timer = setInterval(() => ticks++, 1);
  await pipe(PROMPT, { ...QUICK, height: 128, width: 128, numInferenceSteps: 4 });
  clearInterval(timer);
  assert.ok(ticks >= 5, `${ticks} ticks`);
});

Deno.test("a part that is not needed is not loaded", async () => {
  await withFolder(async (folder) => {
    await Deno.copyFile(`${MODEL}/model_index.json`, `${folder}/model_index.json`);
    for (const part of ["transformer", "vae", "scheduler"]) {
      await Deno.symlink(await Deno.realPath(`${MODEL}/${part}`), `${folder}/${part}`);
    }
    await assert.rejects(FluxPipeline.load(folder), DenoiseError);
    const half = await FluxPipeline.load(folder, { textEncoders: false });
    assert.equal(half.textEncoder, undefined);
    await assert.rejects(half(PROMPT, QUICK), { name: "TypeError", message: /without its text encoders/ });
    const { promptEmbeds, pooledPromptEmbeds } = await pipe.encodePrompt(PROMPT, QUICK);
    const { images } = await half(undefined, { ...QUICK, promptEmbeds, pooledPromptEmbeds });
    assert.deepEqual(images[0]!.data, (await pipe(PROMPT, QUICK)).images[0]!.data);
  });
});

Deno.test("a plan needs no weights, and grows with the picture and the batch", async () => {
  await withFolder(async (folder) => {
    for (const file of ["model_index.json", "scheduler/scheduler_config.json"]) await copyInto(folder, file);
    for (const part of ["transformer", "vae", "text_encoder", "text_encoder_2"]) {
      await copyInto(folder, `${part}/config.json`);
    }
    for (const part of ["tokenizer", "tokenizer_2"]) {
      await Deno.symlink(await Deno.realPath(`${MODEL}/${part}`), `${folder}/${part}`);
    }
    const empty = await FluxPipeline.load(folder, { weights: false });
    const plan = empty.plan(PROMPT, { height: 128, width: 128 });
    assert.deepEqual(plan, pipe.plan(PROMPT, { height: 128, width: 128 }));
    assert.deepEqual(plan.models.map(({ part }) => part), ["text_encoder", "text_encoder_2", "transformer", "vae"]);
    for (const { part, parameters, weightBytes } of plan.models) {
      // Half a picture's VAE is its encoder, and tables of embeddings stay as they are in the checkpoint.
      const least = part === "vae" ? 0.25 : 0.6;
      assert.ok(weightBytes > least * 4 * parameters && weightBytes < 1.3 * 4 * parameters, `${part}: ${weightBytes}`);
    }
    const work = (options: FluxOptions) => Math.max(...empty.plan(PROMPT, options).models.map((m) => m.workBytes));
    assert.ok(work({ height: 256, width: 256 }) > 3 * work({ height: 128, width: 128 }));
    assert.ok(work({ numImagesPerPrompt: 4 }) > 3 * work({}));
    const large = { height: 256, width: 256 };
    const guided = empty.plan(PROMPT, { ...large, trueCfgScale: 4, negativePrompt: "" });
    assert.ok(guided.models[2]!.workBytes > 1.5 * empty.plan(PROMPT, large).models[2]!.workBytes);
    const half = await FluxPipeline.load(folder, { weights: false, dtype: "bf16" });
    assert.ok(half.plan(PROMPT).bytes < 0.6 * plan.bytes);
    await assert.rejects(empty(PROMPT, QUICK), { name: "NativeError", message: /has no values/ });
  });
});

Deno.test("another transformer takes the place of the model's, by diffusers' names or Black Forest Labs'", async () => {
  const own = `${MODEL}/transformer/diffusion_pytorch_model.safetensors`;
  const same = await FluxPipeline.load(MODEL, { transformer: own });
  assert.deepEqual((await same(PROMPT, QUICK)).images[0]!.data, (await pipe(PROMPT, QUICK)).images[0]!.data);
  await assert.rejects(FluxPipeline.load(MODEL, { transformer: "nowhere.safetensors" }), CheckpointError);
  await withFolder(async (folder) => {
    const transformer = `${folder}/bfl.safetensors`;
    await writeSafetensors(transformer, withBflNames(openSafetensors(own)));
    const renamed = await FluxPipeline.load(MODEL, { transformer });
    assert.deepEqual((await renamed(PROMPT, QUICK)).images[0]!.data, (await pipe(PROMPT, QUICK)).images[0]!.data);
  });
});

Deno.test("what cannot be loaded is named", async () => {
  await withFolder(async (folder) => {
    await assert.rejects(FluxPipeline.load(folder), CheckpointError);
    const index = JSON.parse(await Deno.readTextFile(`${MODEL}/model_index.json`));
    const write = (json: unknown) => Deno.writeTextFile(`${folder}/model_index.json`, JSON.stringify(json));
    await write({ ...index, _class_name: "CogVideoXPipeline" });
    await assert.rejects(FluxPipeline.load(folder), (e) => e instanceof ConfigError && e.key === "_class_name");
    await write({ ...index, transformer: ["diffusers", "SD3Transformer2DModel"] });
    await assert.rejects(
      FluxPipeline.load(folder),
      (e) => e instanceof ConfigError && e.key === "transformer" && /SD3Transformer2DModel/.test(e.message),
    );
    await Deno.writeTextFile(`${folder}/model_index.json`, "{");
    await assert.rejects(FluxPipeline.load(folder), ConfigError);
  });
  await assert.rejects(FluxPipeline.load(MODEL, { dtype: "int8" as "f32" }), { name: "RangeError", message: /"int8"/ });
});

Deno.test("a picture that cannot be written leaves nothing behind", async () => {
  await withFolder(async (folder) => {
    const { images } = await pipe(PROMPT, QUICK);
    await Deno.writeTextFile(`${folder}/file`, "");
    await assert.rejects(images[0]!.save(`${folder}/file/picture.png`), OutputError);
    await assert.rejects(images[0]!.save(`${folder}/missing/picture.png`), OutputError);
    assert.deepEqual((await Array.fromAsync(Deno.readDir(folder))).map((e) => e.name), ["file"]);
  });
});
