import assert from "node:assert/strict";
import { type Autotune, compile } from "../../lib/compile/compile.ts";
import { maxAbsDifference } from "../../lib/media/metrics.ts";
import { FluxPipeline } from "../../lib/pipelines/flux.ts";
import { quantize } from "../../lib/quantize/quantize.ts";
import { compileFunction } from "../../lib/tensor/function.ts";
import { toArray } from "../../lib/tensor/realize.ts";
import { tensor } from "../../lib/tensor/source.ts";
import type { Tensor } from "../../lib/tensor/tensor.ts";
import { withFolder } from "../folder.ts";

const MODEL = "models/shapes-flux";
const PROMPT = "a small blue ring at the left on a white background";
const RUN = { height: 32, width: 48, numInferenceSteps: 2, maxSequenceLength: 8 };
const QUICK = { ...RUN, seed: 3 };

const weight = tensor(Float32Array.from({ length: 48 * 32 }, (_, i) => Math.sin(i)), { shape: [48, 32] });
const layer = () => compileFunction(({ x }: { x: Tensor }) => ({ y: x.linear(weight).relu() }), { name: "layer" });
const x = tensor(Float32Array.from({ length: 5 * 32 }, (_, i) => Math.cos(i)), { shape: [5, 32] });

/** Runs something with environment variables. */
async function withEnvironment(values: Record<string, string>, run: () => Promise<void>): Promise<void> {
  for (const [name, value] of Object.entries(values)) Deno.env.set(name, value);
  try {
    await run();
  } finally {
    for (const name of Object.keys(values)) Deno.env.delete(name);
  }
}

Deno.test("a function's kernels are measured once, and its values stay the same", async () => {
  await withFolder(async (folder) => {
    const options = { runs: [{ x }], autotune: "on", path: `${folder}/tuning.json` } as const;
    const plain = await toArray<"f32">((await layer().run({ x })).y);
    const fn = layer();
    const compiled = await compile(fn, options);
    assert.equal(compiled.measured, 1);
    assert.deepEqual(compiled.tried.map(({ kernel }) => kernel), Array(4).fill("linear"));
    const tuned = await toArray<"f32">((await fn.run({ x })).y);
    tuned.forEach((value, i) => assert.ok(Math.abs(value - plain[i]!) < 1e-4));
    const again = await compile(layer(), options);
    assert.equal(again.measured, 0);
    assert.deepEqual(again.tried, compiled.tried);
  });
});

Deno.test("what is done about unknown kernels: the option, the environment, the mode", async () => {
  await withFolder(async (folder) => {
    let files = 0;
    const measured = async (options: { mode?: "default" | "max-autotune"; autotune?: Autotune }) => {
      const path = `${folder}/${files++}.json`;
      return (await compile(layer(), { runs: [{ x }], path, ...options })).measured;
    };
    assert.equal(await measured({}), 0);
    assert.equal(await measured({ mode: "max-autotune" }), 1);
    assert.equal(await measured({ mode: "max-autotune", autotune: "cached" }), 0);
    await withEnvironment({ DENOISE_AUTOTUNE: "on" }, async () => assert.equal(await measured({}), 1));
    await withEnvironment({ DENOISE_AUTOTUNE: "off" }, async () => {
      assert.equal(await measured({ mode: "max-autotune" }), 0);
      assert.equal(await measured({ autotune: "on" }), 1);
    });
    await withEnvironment({ DENOISE_AUTOTUNE: "maybe" }, async () => {
      await assert.rejects(measured({}), {
        name: "RangeError",
        message: /DENOISE_AUTOTUNE "maybe": it is off, cached/,
      });
    });
    await assert.rejects(measured({ autotune: "yes" as "on" }), { name: "RangeError", message: /autotune "yes"/ });
    await assert.rejects(measured({ mode: "reduce-overhead" as "default" }), { message: /mode "reduce-overhead"/ });
  });
});

Deno.test("the tuning file is the one of the environment, or in the folder of caches", async () => {
  await withFolder(async (folder) => {
    const options = { runs: [{ x }], mode: "max-autotune" } as const;
    const measure = async () => {
      await compile(layer(), options);
    };
    await withEnvironment({ DENOISE_AUTOTUNE_PATH: `${folder}/own.json` }, measure);
    await withEnvironment({ DENOISE_CACHE: folder }, measure);
    const names = (await Array.fromAsync(Deno.readDir(folder))).map(({ name }) => name);
    assert.deepEqual(names.sort(), ["own.json", "own.json.lock", "tuning.json", "tuning.json.lock"]);
    await withEnvironment({ DENOISE_CACHE: `${folder}/none` }, async () => {
      await compile(layer(), { ...options, autotune: "off" });
      await assert.rejects(Deno.stat(`${folder}/none`), Deno.errors.NotFound);
    });
  });
});

Deno.test("a pipeline's kernels are measured once for all processes, and its pictures stay the same", async () => {
  await withFolder(async (folder) => {
    const path = `${folder}/tuning.json`;
    const plain = await FluxPipeline.load(MODEL);
    const { images: [expected] } = await plain(PROMPT, QUICK);
    const pipe = await FluxPipeline.load(MODEL);
    const compiled = await compile(pipe, { mode: "max-autotune", runs: [RUN], path });
    assert.ok(compiled.measured > 5);
    assert.ok(maxAbsDifference((await pipe(PROMPT, QUICK)).images[0]!, expected!) <= 1);

    const script = `
      import { compile, FluxPipeline } from "${new URL("../../mod.ts", import.meta.url)}";
      const pipe = await FluxPipeline.load(${JSON.stringify(MODEL)});
      const compiled = await compile(pipe, { mode: "max-autotune", runs: [${JSON.stringify(RUN)}] });
      await pipe(${JSON.stringify(PROMPT)}, ${JSON.stringify(QUICK)});
      console.log(compiled.measured, compiled.tried.length);`;
    await Deno.writeTextFile(`${folder}/second.ts`, script);
    const { stdout, stderr } = await new Deno.Command(Deno.execPath(), {
      args: ["run", "--allow-all", "--no-check", `${folder}/second.ts`],
      env: { DENOISE_AUTOTUNE_PATH: path },
    }).output();
    assert.equal(new TextDecoder().decode(stdout), `0 ${compiled.tried.length}\n`, new TextDecoder().decode(stderr));
  });
});

Deno.test("shapes that come later are measured when they come, where that is wanted", async () => {
  await withFolder(async (folder) => {
    const pipe = await FluxPipeline.load(MODEL);
    const compiled = await compile(pipe, { mode: "max-autotune", runs: [], path: `${folder}/tuning.json` });
    assert.equal(compiled.measured, 0);
    await pipe(PROMPT, QUICK);
    const { measured } = compiled;
    assert.ok(measured > 0);
    await pipe(PROMPT, QUICK);
    assert.equal(compiled.measured, measured);
    await pipe(PROMPT, { ...QUICK, height: 64, width: 64 });
    assert.ok(compiled.measured > measured);
  });
});

Deno.test("the decoder is tuned where that is asked for", async () => {
  await withFolder(async (folder) => {
    const tried = async (vae: boolean) => {
      const pipe = await FluxPipeline.load(MODEL);
      const options = { mode: "max-autotune", runs: [RUN], path: `${folder}/tuning.json`, vae } as const;
      return (await compile(pipe, options)).tried.length;
    };
    const without = await tried(false);
    assert.ok(await tried(true) > without);
  });
});

Deno.test("weights that are quantized after compiling are what runs, with kernels of their own", async () => {
  await withFolder(async (folder) => {
    const pipe = await FluxPipeline.load(MODEL);
    const compiled = await compile(pipe, { mode: "max-autotune", runs: [RUN], path: `${folder}/tuning.json` });
    const { images: [float] } = await pipe(PROMPT, QUICK);
    quantize(pipe.transformer, "int8dq");
    const { images: [quantized] } = await pipe(PROMPT, QUICK);
    assert.ok(compiled.tried.some(({ kernel }) => kernel === "quantized_linear"));
    assert.notDeepEqual(quantized!.data, float!.data);
    const other = await FluxPipeline.load(MODEL);
    quantize(other.transformer, "int8dq");
    assert.ok(maxAbsDifference((await other(PROMPT, QUICK)).images[0]!, quantized!) <= 2);
  });
});

Deno.test("a signal stops the measuring", async () => {
  await withFolder(async (folder) => {
    const reason = new Error("enough");
    const signal = AbortSignal.abort(reason);
    const options = { mode: "max-autotune", runs: [{ x }], path: `${folder}/tuning.json`, signal } as const;
    await assert.rejects(compile(layer(), options), reason);
  });
});
