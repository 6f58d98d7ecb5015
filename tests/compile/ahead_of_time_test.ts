import assert from "node:assert/strict";
import { cudaSources } from "../../ffi/cuda.ts";
import { library } from "../../ffi/library.ts";
import { functionOf, readCompiled } from "../../lib/compile/ahead_of_time.ts";
import { compile } from "../../lib/compile/compile.ts";
import { CheckpointError, DenoiseError, OutputError } from "../../lib/errors.ts";
import { Image } from "../../lib/media/image.ts";
import { FluxPipeline } from "../../lib/pipelines/flux.ts";
import { quantize } from "../../lib/quantize/quantize.ts";
import { Device } from "../../lib/tensor/device.ts";
import { compileFunction } from "../../lib/tensor/function.ts";
import { toArray } from "../../lib/tensor/realize.ts";
import { openSafetensors } from "../../lib/tensor/safetensors.ts";
import { fromSource, tensor } from "../../lib/tensor/source.ts";
import type { Tensor } from "../../lib/tensor/tensor.ts";
import { openEmulated } from "../emulated.ts";
import { withFolder } from "../folder.ts";
import { type Parts, putTogether, takeApart } from "./compiled_file.ts";

const MODEL = "models/shapes-flux";
const PROMPT = "a small blue ring at the left on a white background";
const RUN = { height: 32, width: 48, numInferenceSteps: 2, maxSequenceLength: 8 };
const QUICK = { ...RUN, seed: 3 };
const OFF = { autotune: "off" } as const;

/** A constant, as weights are. */
function constant(shape: number[], value: (i: number) => number): Tensor {
  const data = Float32Array.from({ length: shape.reduce((a, b) => a * b, 1) }, (_, i) => value(i));
  return fromSource({ kind: "host", bytes: new Uint8Array(data.buffer) }, { shape, dtype: "f32" });
}

type Inputs = { x: Tensor; condition: Tensor };
const weights = [constant([32, 16], Math.sin), constant([32, 16], Math.cos), constant([32], (i) => i / 32)] as const;
/** A function with a constant, a run and a step stage. */
const mix = (device?: Device) =>
  compileFunction(({ x, condition }: Inputs) => {
    const scale = condition.linear(weights[0], weights[2]).silu();
    return { y: x.linear(weights[1], weights[2]).mul(scale), scale };
  }, { name: "mix", varying: ["x"], device });
const inputs = (rows: number): Inputs => ({
  x: tensor(Float32Array.from({ length: 16 * rows }, (_, i) => Math.sin(3 * i)), { shape: [rows, 16] }),
  condition: tensor(Float32Array.from({ length: 16 }, (_, i) => i / 16), { shape: [1, 16] }),
});
const valuesOf = async (t: Tensor) => [...await toArray<"f32">(t)];
const open = async (path: string) => {
  const file = await readCompiled(path);
  return functionOf<Inputs, { y: Tensor; scale: Tensor }>(file, "mix", await Device.default());
};

async function saveMix(path: string, rows: readonly number[] = [3]): Promise<void> {
  await (await compile(mix(), { runs: rows.map(inputs), ...OFF })).save(path);
}

Deno.test("a function that was saved computes the same, for each shape that it was saved for", async () => {
  await withFolder(async (folder) => {
    const path = `${folder}/mix.safetensors`;
    await saveMix(path, [3, 7, 3]);
    const [recorded, read] = [mix(), await open(path)];
    for (const rows of [3, 7, 7]) {
      const [expected, found] = [await recorded.run(inputs(rows)), await read.run(inputs(rows))];
      for (const name of ["y", "scale"] as const) {
        assert.deepEqual(found[name].shape, expected[name].shape);
        assert.deepEqual(await valuesOf(found[name]), await valuesOf(expected[name]));
      }
    }
    await assert.rejects(read.run(inputs(4)), (error) => {
      assert.ok(error instanceof RangeError);
      assert.match(error.message, /Cannot run mix on condition: f32 \[1, 16\], x: f32 \[4, 16\]/);
      assert.match(error.message, /mix\.safetensors has it for .*x: f32 \[3, 16\]; or .*x: f32 \[7, 16\]/);
      return true;
    });
  });
});

Deno.test("what follows from arguments that seldom change is computed again only when they do", async () => {
  await withFolder(async (folder) => {
    await saveMix(`${folder}/mix.safetensors`);
    const [recorded, read] = [mix(), await open(`${folder}/mix.safetensors`)];
    const given = inputs(3);
    const other = { ...given, condition: tensor(new Float32Array(16).fill(0.5), { shape: [1, 16] }) };
    for (const call of [given, { ...inputs(3), condition: given.condition }, other, given]) {
      assert.deepEqual(await valuesOf((await read.run(call)).y), await valuesOf((await recorded.run(call)).y));
    }
  });
});

Deno.test("every tensor of a file starts at a multiple of 64 bytes, and weights are there once", async () => {
  await withFolder(async (folder) => {
    const path = `${folder}/mix.safetensors`;
    await saveMix(path, [3, 7]);
    const { tensors } = openSafetensors(path);
    for (const { offset, byteLength } of tensors.values()) assert.deepEqual([offset % 64, byteLength % 64], [0, 0]);
    const names = [...tensors.keys()];
    assert.equal(names.filter((name) => name.startsWith("constant.")).length, 3);
    assert.equal(names.filter((name) => name.startsWith("program.")).length, 4);
  });
});

Deno.test("a file that cannot be written is an OutputError; nothing is left behind", async () => {
  await withFolder(async (folder) => {
    await assert.rejects(saveMix(`${folder}/missing/mix.safetensors`), OutputError);
    const compiled = await compile(mix(), { runs: [inputs(3)], ...OFF });
    const reason = new Error("enough");
    const saving = compiled.save(`${folder}/mix.safetensors`, { signal: AbortSignal.abort(reason) });
    await assert.rejects(saving, reason);
    assert.deepEqual(await Array.fromAsync(Deno.readDir(folder)), []);
  });
});

/** A pipeline in a file, on every call the same one. */
const pipe = await FluxPipeline.load(MODEL);
const folder = await Deno.makeTempDir();
const FILE = `${folder}/flux.safetensors`;
const compiled = await compile(pipe, { runs: [RUN, { ...RUN, trueCfgScale: 2, prompts: 2 }], ...OFF });
await compiled.save(FILE);
addEventListener("unload", () => Deno.removeSync(folder, { recursive: true }));

Deno.test("a pipeline that was saved makes the same pictures", async () => {
  const read = await FluxPipeline.load(FILE);
  assert.deepEqual([read.model, read.dtype, read.device.level], [pipe.model, pipe.dtype, pipe.device.level]);
  const { images: [expected], latents } = await pipe(PROMPT, QUICK);
  const found = await read(PROMPT, QUICK);
  assert.deepEqual(found.images[0]!.data, expected!.data);
  assert.deepEqual(found.images[0]!.metadata, expected!.metadata);
  assert.deepEqual(await valuesOf(found.latents), await valuesOf(latents));
  const guided = { ...QUICK, trueCfgScale: 2, negativePrompt: "a star" };
  const prompts = [PROMPT, "a red star on a gray background"];
  const [a, b] = [await read(prompts, guided), await pipe(prompts, guided)];
  assert.deepEqual(a.images.map(({ data }) => data), b.images.map(({ data }) => data));
});

Deno.test("it has steps, previews, embeddings, noise and a plan, and makes pictures again", async () => {
  const read = await FluxPipeline.load(FILE);
  const [a, b] = [read.steps(PROMPT, QUICK), pipe.steps(PROMPT, QUICK)];
  for await (const step of a) {
    const other = (await b.next()).value as typeof step;
    assert.deepEqual((await step.preview()).data, (await other.preview()).data);
    assert.deepEqual((await step.decode())[0]!.data, (await other.decode())[0]!.data);
  }
  const { promptEmbeds, pooledPromptEmbeds } = await read.encodePrompt(PROMPT, QUICK);
  const { images: [image] } = await read(undefined, { ...QUICK, promptEmbeds, pooledPromptEmbeds });
  const { images: [expected] } = await pipe(PROMPT, QUICK);
  assert.deepEqual(image!.data, expected!.data);
  const size = { seed: 3, height: 32, width: 48 };
  assert.deepEqual(await valuesOf(read.prepareLatents(size)), await valuesOf(pipe.prepareLatents(size)));
  // The work of packing weights is done.
  const [planned, recorded] = [read.plan(PROMPT, QUICK), pipe.plan(PROMPT, QUICK)];
  const kept = ({ models }: typeof planned) => models.map(({ workBytes: _, ...model }) => model);
  assert.deepEqual(kept(planned), kept(recorded));
  assert.ok(planned.bytes < recorded.bytes);
  const again = await read.rerun(new Image(expected!));
  assert.deepEqual(again.data, expected!.data);
});

Deno.test("what the file was not made for is refused, and it says what it was made for", async () => {
  const read = await FluxPipeline.load(FILE);
  for (
    const [options, wanted] of [
      [{ ...QUICK, width: 64 }, /1 pictures of 64 by 32 pixels/],
      [{ ...QUICK, numInferenceSteps: 3 }, /in 3 steps/],
      [{ ...QUICK, maxSequenceLength: 9 }, /of up to 9 tokens/],
      [{ ...QUICK, numImagesPerPrompt: 2 }, /2 pictures/],
      [{ ...QUICK, trueCfgScale: 3, negativePrompt: "" }, /1 prompts .* with guidance/],
    ] as const
  ) {
    await assert.rejects(read(PROMPT, options), (error) => {
      assert.ok(error instanceof RangeError, `${error}`);
      assert.match(error.message, wanted);
      assert.match(
        error.message,
        /compiled for 1 pictures of 48 by 32 pixels of 1 prompts of up to 8 tokens in 2 steps;/,
      );
      return true;
    });
  }
  assert.throws(() => read.transformer, { name: "TypeError", message: /transformer of .*ahead of time/ });
  assert.throws(() => read.vae, { name: "TypeError" });
  await assert.rejects(read.save(folder), { name: "TypeError", message: /load the checkpoint/ });
  await assert.rejects(compile(read, OFF), { name: "TypeError", message: /the graphs of/ });
});

Deno.test("a file runs in its own type, on its own level", async () => {
  await assert.rejects(FluxPipeline.load(FILE, { dtype: "bf16" }), { name: "RangeError", message: /compiled for f32/ });
  using device = await Device.open({ level: "portable", threads: 1 });
  const other = FluxPipeline.load(FILE, { device });
  if (pipe.device.level === "portable") await other;
  else await assert.rejects(other, { name: "RangeError", message: /a device of portable: it was compiled for/ });
});

Deno.test("quantized weights, 16-bit floats and every level of the CPU are kept", async () => {
  for (const level of await Device.levels()) {
    if (level === "reference") continue;
    await withFolder(async (folder) => {
      using device = await Device.open({ level, threads: 1 });
      const own = await FluxPipeline.load(MODEL, { device, dtype: "bf16" });
      quantize(own.transformer, "int8dq");
      const path = `${folder}/flux.safetensors`;
      await (await compile(own, { runs: [RUN], ...OFF })).save(path);
      const read = await FluxPipeline.load(path, { device });
      const [a, b] = [await read(PROMPT, QUICK), await own(PROMPT, QUICK)];
      assert.deepEqual(a.images[0]!.data, b.images[0]!.data, level);
      assert.match(JSON.stringify(a.images[0]!.metadata), /int8dq/);
    });
  }
});

Deno.test("a file for the CUDA library runs on it, and names what that was built from", async () => {
  using emulated = await openEmulated();
  if (!emulated) return;
  await withFolder(async (folder) => {
    const path = `${folder}/mix.safetensors`;
    await (await compile(mix(emulated), { runs: [inputs(3)], ...OFF })).save(path);
    const file = await readCompiled(path);
    assert.equal(file.level, "cuda-emulated");
    const read = functionOf<Inputs, { y: Tensor; scale: Tensor }>(file, "mix", emulated);
    const [expected, found] = [await mix().run(inputs(3)), await read.run(inputs(3))];
    const [a, b] = [await valuesOf(expected.y), await toArray<"f32">(found.y, { device: emulated })];
    a.forEach((value, i) => assert.ok(Math.abs(value - b[i]!) < 1e-4, `${i}: ${b[i]} in place of ${value}`));
    const { kernels } = JSON.parse(openSafetensors(path).metadata["denoise.compiled"]!);
    assert.equal(kernels, (await cudaSources("cuda-emulated"))!.slice(0, 16));
    assert.notEqual(kernels, library().sources.slice(0, 16));
  });
});

Deno.test("a file that is written again is another one to who loads it then, and the old one to who has it", async () => {
  await withFolder(async (folder) => {
    const path = `${folder}/flux.safetensors`;
    const own = await FluxPipeline.load(MODEL);
    await (await compile(own, { runs: [RUN], ...OFF })).save(path);
    const before = await FluxPipeline.load(path);
    const { images: [float] } = await before(PROMPT, QUICK);
    quantize(own.transformer, "int8wo");
    await (await compile(own, { runs: [RUN], ...OFF })).save(path);
    const after = await FluxPipeline.load(path);
    const { images: [quantized] } = await after(PROMPT, QUICK);
    assert.deepEqual(quantized!.data, (await own(PROMPT, QUICK)).images[0]!.data);
    assert.notDeepEqual(quantized!.data, float!.data);
    assert.deepEqual((await before(PROMPT, QUICK)).images[0]!.data, float!.data);
  });
});

Deno.test("a pipeline without text encoders is saved without them", async () => {
  await withFolder(async (folder) => {
    const half = await FluxPipeline.load(MODEL, { textEncoders: false });
    const path = `${folder}/half.safetensors`;
    await (await compile(half, { runs: [RUN], ...OFF })).save(path);
    const read = await FluxPipeline.load(path);
    await assert.rejects(read(PROMPT, QUICK), { name: "TypeError", message: /without its text encoders/ });
    const { promptEmbeds, pooledPromptEmbeds } = await pipe.encodePrompt(PROMPT, QUICK);
    const { images } = await read(undefined, { ...QUICK, promptEmbeds, pooledPromptEmbeds });
    assert.deepEqual(images[0]!.data, (await pipe(PROMPT, QUICK)).images[0]!.data);
  });
});

/** Loads a changed copy of a file of the function. */
async function loadChanged(change: (parts: Parts) => void): Promise<void> {
  await withFolder(async (folder) => {
    const path = `${folder}/mix.safetensors`;
    await saveMix(path);
    const parts = await takeApart(path);
    change(parts);
    await putTogether(path, parts);
    await (await open(path)).run(inputs(3));
  });
}

const OTHERS: Readonly<Record<string, [RegExp, (parts: Parts) => void]>> = {
  "another format": [/its format is 2/, ({ manifest }) => manifest.format = 2],
  "another version": [/its version is "9\.9\.9"/, ({ manifest }) => manifest.version = "9.9.9"],
  "another schema": [/its schema is "1 2"/, ({ manifest }) => manifest.schema = "1 2"],
  "other kernels": [/its kernels is "abc"/, ({ manifest }) => manifest.kernels = "abc"],
  "a level that the CPU lacks": [
    /compiled for neon, which this CPU lacks/,
    ({ manifest }) => manifest.level = "neon",
  ],
  "a weight too short": [
    /constant\.0 has \d+ bytes at \d+ in place of/,
    ({ manifest }) => (manifest.constants as { size: number }[])[0]!.size += 64,
  ],
  "a weight too few": [
    /it lacks constant\.3/,
    ({ manifest }) => (manifest.constants as unknown[]).push({ dtype: "f32", size: 64 }),
  ],
  "a program of another kind": [
    /a program of it is refused/,
    ({ data, tensors }) => data[tensors["program.0"]!.data_offsets[0]]! ^= 1,
  ],
  "no program for a result": [
    /its manifest is broken/,
    ({ manifest }) => (manifest.functions as { stages: unknown[] }[])[0]!.stages.pop(),
  ],
};

for (const [what, [message, change]] of Object.entries(OTHERS)) {
  Deno.test(`a file with ${what} is refused`, async () => {
    await assert.rejects(loadChanged(change), (error) => {
      assert.ok(error instanceof CheckpointError, `${error}`);
      assert.match(error.message, message);
      assert.match(error.message, /compile and save it/);
      return true;
    });
  });
}

Deno.test("a file that is no compiled one is refused, as is one of another class", async () => {
  const other = FluxPipeline.load(`${MODEL}/transformer/diffusion_pytorch_model.safetensors`);
  await assert.rejects(other, { name: "CheckpointError", message: /no file of compiled functions/ });
  await withFolder(async (folder) => {
    await saveMix(`${folder}/mix.safetensors`);
    const message = /as a FluxPipeline: it was compiled from a function/;
    await assert.rejects(FluxPipeline.load(`${folder}/mix.safetensors`), { name: "CheckpointError", message });
  });
});

/** Random numbers that are the same on each run. */
function randomly(seed: number): (below: number) => number {
  return (below) => {
    seed = Math.imul(seed ^ seed >>> 15, 0x2c1b3c6d) + 0x9e3779b9 | 0;
    return (seed >>> 0) % below;
  };
}

/** An error that says what is wrong: of denoise, or of a call's arguments, and not a slip of its own. */
function isClean(error: unknown): boolean {
  if (error instanceof DenoiseError) return true;
  return (error instanceof RangeError || error instanceof TypeError) && /^(Cannot|A |The |An )/.test(error.message) &&
    !/of undefined|of null/.test(error.message);
}

Deno.test("bytes that changed on the way are found: in the header, the programs and the files", async () => {
  await withFolder(async (folder) => {
    const path = `${folder}/mix.safetensors`;
    await saveMix(path);
    const good = await Deno.readFile(path);
    const { tensors, dataOffset } = openSafetensors(path);
    const readWhole = Math.max(
      ...[...tensors].filter(([name]) => name.startsWith("program.")).map(([, t]) => t.offset + t.byteLength),
    );
    assert.ok(readWhole > dataOffset);
    const below = randomly(1);
    const text = new TextDecoder().decode(good.subarray(0, dataOffset));
    for (let i = 0; i < 300; i++) {
      const bytes = good.slice();
      const at = below(text.trimEnd().length);
      bytes[at]! ^= 1 + below(255);
      await Deno.writeFile(path, bytes);
      await assert.rejects(open(path).then((fn) => fn.run(inputs(3))), isClean, `byte ${at} is ${bytes[at]}`);
    }
    for (let i = 0; i < 50; i++) {
      const bytes = good.slice();
      const { offset } = tensors.get(`program.${below(2)}`)!;
      bytes[offset + below(200)]! ^= 1 + below(255);
      await Deno.writeFile(path, bytes);
      await assert.rejects(open(path), CheckpointError);
    }
    for (let i = 0; i < 100; i++) {
      await Deno.writeFile(path, good.subarray(0, below(good.length)));
      await assert.rejects(open(path), CheckpointError);
    }
  });
});

/** Puts something else in a random place of a value. */
function mutate(value: unknown, below: (n: number) => number): unknown {
  const others = [0, 1, -1, 3, 1e15, 2 ** 53, 0.5, null, "", "f32", "bf16", [], {}, true, [1e9, 1e9], [-1], {
    value: 0,
  }];
  const keys = typeof value === "object" && value !== null ? Object.keys(value) : [];
  if (keys.length === 0 || below(8) === 0) return others[below(others.length)];
  const copy = structuredClone(value) as Record<string, unknown>;
  const key = keys[below(keys.length)]!;
  if (below(12) === 0) delete copy[key];
  else copy[key] = mutate(copy[key], below);
  return copy;
}

Deno.test("manifests of every wrong kind are refused cleanly, or do what they say without harm", async () => {
  await withFolder(async (folder) => {
    const path = `${folder}/mix.safetensors`;
    await saveMix(path);
    const parts = await takeApart(path);
    const below = randomly(2);
    let refused = 0;
    for (let i = 0; i < 500; i++) {
      let manifest = parts.manifest;
      for (let n = 0; n <= below(2); n++) manifest = mutate(manifest, below) as typeof manifest;
      if (typeof manifest !== "object" || manifest === null) manifest = {};
      await putTogether(path, { ...parts, manifest });
      try {
        const { y } = await (await open(path)).run(inputs(3));
        await valuesOf(y);
      } catch (error) {
        refused++;
        assert.ok(isClean(error), `${(error as Error).stack}\n${JSON.stringify(manifest)}`);
      }
    }
    assert.ok(refused > 350, `${refused} of 500 were refused`);
  });
});

Deno.test("programs of every wrong kind are refused cleanly, or run without harm", async () => {
  await withFolder(async (folder) => {
    const path = `${folder}/mix.safetensors`;
    await saveMix(path);
    const parts = await takeApart(path);
    const below = randomly(3);
    for (let i = 0; i < 300; i++) {
      const data = parts.data.slice();
      const at = parts.tensors[`program.${below(2)}`]!.data_offsets[0];
      const words = new DataView(data.buffer, at);
      const values = [0, 1, 2, 3, 16, 64, 0x7fffffff, 0xffffffff, below(100), below(2 ** 31)];
      for (let n = 0; n <= below(3); n++) words.setUint32(16 + 4 * below(60), values[below(values.length)]!, true);
      await putTogether(path, { ...parts, data });
      try {
        await (await open(path)).run(inputs(3));
      } catch (error) {
        assert.ok(isClean(error), `${(error as Error).stack}`);
      }
    }
  });
});

Deno.test("notes of every wrong kind are refused cleanly", async () => {
  await withFolder(async (folder) => {
    const path = `${folder}/flux.safetensors`;
    const parts = await takeApart(FILE);
    const below = randomly(4);
    let refused = 0;
    for (let i = 0; i < 40; i++) {
      const notes = mutate(parts.manifest.notes, below);
      await putTogether(path, { ...parts, manifest: { ...parts.manifest, notes } });
      try {
        await (await FluxPipeline.load(path))(PROMPT, QUICK);
      } catch (error) {
        refused++;
        assert.ok(isClean(error), `${(error as Error).stack}\n${JSON.stringify(notes)}`);
      }
    }
    assert.ok(refused > 20, `${refused} of 40 were refused`);
  });
});
