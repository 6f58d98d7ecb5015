import assert from "node:assert/strict";
import { autoquant, type AutoquantProgress, layerErrors } from "../../lib/compile/autoquant.ts";
import { capture } from "../../lib/compile/capture.ts";
import {
  type Candidate,
  type Choice,
  ChoiceTimer,
  choose,
  type ClassOption,
  type ClassUse,
  FLOAT,
  inputSets,
  type MeasuredSet,
  measureSets,
} from "../../lib/compile/choice.ts";
import { Linear } from "../../lib/nn/layers.ts";
import type { Module } from "../../lib/nn/module.ts";
import { FluxPipeline } from "../../lib/pipelines/flux.ts";
import { QuantizationPlan } from "../../lib/quantize/plan.ts";
import { quantizableLayers, quantize, sparsify } from "../../lib/quantize/quantize.ts";
import { schemeOf } from "../../lib/quantize/schemes.ts";
import { toArray } from "../../lib/tensor/realize.ts";
import type { Tensor } from "../../lib/tensor/tensor.ts";
import { library } from "../../ffi/library.ts";
import { withFolder } from "../folder.ts";

const MODEL = "models/shapes-flux";
const PROMPTS = ["a large red star on a navy background"];
/** Small pictures: 16 tokens of latents. */
const SMALL = { height: 64, width: 64 };

const load = () => FluxPipeline.load(MODEL);
const transformerOf = (pipe: FluxPipeline) => new Map([["transformer", pipe.transformer as Module]] as const);
const linear = (module: Module, name: string) => new Map(module.namedModules()).get(name) as Linear;
const values = (t: Tensor) => toArray<"f32">(t);

function sqnr(signal: ArrayLike<number>, noisy: ArrayLike<number>): number {
  let [power, noise] = [0, 0];
  for (let i = 0; i < signal.length; i++) {
    power += signal[i]! ** 2;
    noise += (signal[i]! - noisy[i]!) ** 2;
  }
  return 10 * Math.log10(power / noise);
}

function assertNear(got: Float32Array, wanted: Float32Array, what: string): void {
  assert.equal(got.length, wanted.length, what);
  assert.ok(sqnr(wanted, got) > 100, `${what} differs: ${sqnr(wanted, got)} dB`);
}

Deno.test("what is captured is what the layers read", async () => {
  const pipe = await load();
  const options = { prompts: PROMPTS, seed: 3, numInferenceSteps: 1, ...SMALL };
  const seen = await capture(pipe, transformerOf(pipe), options);
  const input = (name: string) => seen.inputOf("transformer", name)!;

  // One step of few tokens is captured whole.
  const start = pipe.prepareLatents({ seed: 3, ...SMALL });
  assert.deepEqual(await values(input("x_embedder")), await values(start));
  const { promptEmbeds, pooledPromptEmbeds } = await pipe.encodePrompt(PROMPTS[0]!);
  assert.deepEqual(await values(input("context_embedder")), await values(promptEmbeds));
  assert.deepEqual(await values(input("time_text_embed.text_embedder.linear_1")), await values(pooledPromptEmbeds));

  // What one layer reads follows from what others read.
  const output = (name: string) => linear(pipe.transformer, name).forward(input(name));
  const near = async (name: string, wanted: Tensor) =>
    assertNear(await values(input(name)), await values(wanted), name);
  for (const block of ["transformer_blocks.0.ff", "transformer_blocks.1.ff_context"]) {
    await near(`${block}.net.2`, output(`${block}.net.0.proj`).gelu("tanh"));
  }
  await near("time_text_embed.text_embedder.linear_2", output("time_text_embed.text_embedder.linear_1").silu());
  const single = "single_transformer_blocks.2";
  const wide = input(`${single}.proj_out`);
  const dim = input(`${single}.proj_mlp`).size(-1);
  assertNear(
    await values(wide.slice(1, dim)),
    await values(output(`${single}.proj_mlp`).gelu("tanh")),
    `the second part of ${single}.proj_out's input`,
  );
  assert.deepEqual(await values(input(`${single}.attn.to_q`)), await values(input(`${single}.proj_mlp`)));
  assert.equal(seen.inputOf("transformer", "nothing"), undefined);
});

Deno.test("rows come from all prompts and steps, and are no more than are wanted", async () => {
  const pipe = await load();
  const options = { prompts: [...PROMPTS, "a blue ring"], seed: 3, numInferenceSteps: 3, ...SMALL };
  const seen = await capture(pipe, transformerOf(pipe), options);
  assert.deepEqual(seen.functions.map(({ component, calls }) => [component, calls]), [["transformer", 6]]);
  const rows = (name: string) => seen.inputOf("transformer", name)!.size(0);
  assert.equal(rows("x_embedder"), 6 * 16, "all tokens of small pictures");
  assert.equal(rows("single_transformer_blocks.0.proj_mlp"), 6 * Math.ceil(128 / 6 / 4) * 4);
  assert.equal(rows("norm_out.linear"), 6, "one condition a step");
  const first = await values(seen.inputOf("transformer", "x_embedder")!.slice(0, 0, 16));
  assert.deepEqual(first, await values(pipe.prepareLatents({ seed: 3, ...SMALL })));
});

Deno.test("a pipeline of 16 bits is planned on what it reads", async () => {
  const pipe = await FluxPipeline.load(MODEL, { dtype: "bf16" });
  const options = { prompts: PROMPTS, seed: 3, steps: 1, ...SMALL, schemes: ["int8dq"] };
  const seen = await capture(pipe, transformerOf(pipe), { ...options, numInferenceSteps: 1 });
  assert.equal(seen.inputOf("transformer", "proj_out")!.dtype, "bf16");
  const errors = await layerErrors(pipe, options);
  assert.equal(errors.length, quantizableLayers(pipe.transformer).length);
  assert.ok(errors.every(({ sqnrDb }) => sqnrDb > 20 && sqnrDb < 70), JSON.stringify(errors));
  const plan = await autoquant(pipe, { ...options, minSqnrDb: 25 });
  assert.equal(plan.header!.dtype, "bf16");
  assert.ok(plan.layers.every(({ problems }) => problems!.length > 0));
});

Deno.test("looking at a pipeline changes nothing of it", async () => {
  const pipe = await load();
  const run = { seed: 3, numInferenceSteps: 2, ...SMALL, outputType: "latent" } as const;
  const before = await values((await pipe(PROMPTS[0], run)).latents);
  await capture(pipe, transformerOf(pipe), { prompts: PROMPTS, seed: 1, numInferenceSteps: 2, ...SMALL });
  for (const [name, module] of pipe.transformer.namedModules()) {
    if (module instanceof Linear) assert.ok(!Object.hasOwn(module, "forward"), name);
  }
  assert.deepEqual(await values((await pipe(PROMPTS[0], run)).latents), before);
});

Deno.test("layers are grouped as programs call them", async () => {
  const pipe = await load();
  const steps = 3;
  const seen = await capture(pipe, transformerOf(pipe), {
    prompts: PROMPTS,
    seed: 1,
    numInferenceSteps: steps,
    ...SMALL,
  });
  const sets = inputSets(seen.functions, 1);
  const names = sets.flatMap(({ classes }) => classes.flatMap(({ layers }) => layers.map(({ name }) => name)));
  const wanted = quantizableLayers(pipe.transformer).map(({ name }) => name);
  assert.deepEqual(names.toSorted(), wanted.toSorted(), "each layer is in one class");
  const setOf = (name: string) =>
    sets.find(({ classes }) => classes.some(({ layers }) => layers.some((layer) => layer.name === name)))!;
  const classOf = (name: string) =>
    setOf(name).classes.find(({ layers }) => layers.some((layer) => layer.name === name))!;
  const layersOf = (name: string) => classOf(name).layers.map((layer) => layer.name);

  const single = "single_transformer_blocks.0";
  assert.deepEqual(layersOf(`${single}.attn.to_q`), ["to_q", "to_k", "to_v"].map((n) => `${single}.attn.${n}`));
  assert.deepEqual(layersOf(`${single}.proj_mlp`), [`${single}.proj_mlp`], "its activation is its own");
  assert.equal(setOf(`${single}.attn.to_q`), setOf(`${single}.proj_mlp`));
  assert.equal(setOf(`${single}.proj_mlp`).norm?.kernel, "layer_norm");
  assert.equal(setOf(`${single}.proj_out`).norm, undefined);

  const use = (name: string) => classOf(name).uses[0]!;
  const { dtype: _, gate, ...rest } = use(`${single}.proj_out`);
  assert.deepEqual(rest, {
    lead: [1, 80],
    k: 1280,
    activation: "none",
    residual: true,
    runs: steps,
    stepwise: undefined,
  });
  assert.deepEqual(gate, [1, 1, 256]);
  assert.equal(use(`${single}.proj_mlp`).activation, "gelu_tanh");
  assert.equal(use("context_embedder").runs, 1, "the text is the same at each step");

  const modulations = layersOf("norm_out.linear");
  assert.ok(modulations.length > 4 && modulations.includes(`${single}.norm.linear`));
  const { lead, runs, stepwise } = use("norm_out.linear");
  assert.deepEqual({ lead, runs, stepwise }, { lead: [steps], runs: 1, stepwise: { lead: [1], runs: steps } });
});

Deno.test("pruned layers are timed and kept as such", async () => {
  const pipe = await load();
  sparsify(pipe.transformer, { filter: /to_[qk]$|proj_mlp/ });
  const options = { prompts: PROMPTS, seed: 1, numInferenceSteps: 1, ...SMALL };
  const seen = await capture(pipe, transformerOf(pipe), options);
  const classes = inputSets(seen.functions, 1).flatMap((set) => set.classes);
  const single = "single_transformer_blocks.0.attn";
  const found = classes.filter(({ layers }) => layers.some(({ name }) => name.startsWith(single)));
  assert.deepEqual(found.map(({ layers }) => layers.map(({ name, sparse }) => [name, sparse])), [
    [[`${single}.to_q`, true], [`${single}.to_k`, true]],
    [[`${single}.to_v`, false]],
  ]);
  const device = pipe.device;
  const timer = new ChoiceTimer({ device, floatBytes: 0, signal: undefined });
  const [parts] = await timer.multiplies(found[0]!.uses[0]!, [{ layers: found[0]!.layers, choice: DQ }]);
  assert.deepEqual(parts!.map(({ layers, n }) => [layers, n]), [[[`${single}.to_q`, `${single}.to_k`], 512]]);
  assert.equal(timer.measured, 1);
  await timer.multiplies(found[0]!.uses[0]!, [{ layers: found[0]!.layers, choice: DQ }]);
  assert.equal(timer.measured, 1, "what is known is not timed again");
});

const candidate = (name: string): Candidate => ({ scheme: schemeOf(name), settings: {} });
const [DQ, WO, TENSOR] = ["int8dq", "int8wo", "fp8dq"].map(candidate) as [
  Candidate,
  Candidate,
  Candidate,
];

const USE: ClassUse = {
  lead: [8],
  k: 64,
  dtype: "f32",
  activation: "none",
  gate: undefined,
  residual: false,
  runs: 10,
  stepwise: undefined,
};

/** A timer that knows how long things take: seconds by scheme and outputs. */
function fakeTimer(
  seconds: (choice: Choice, n: number, use: ClassUse) => number,
  rows: { apart: number; fused: number | undefined },
) {
  const asked: string[] = [];
  return {
    asked,
    multiplies: (use: ClassUse, tried: readonly { layers: readonly { name: string; n: number }[]; choice: Choice }[]) =>
      Promise.resolve(tried.map(({ layers, choice }) => {
        const n = layers.reduce((sum, layer) => sum + layer.n, 0);
        asked.push(`${choice === FLOAT ? FLOAT : choice.scheme.name} ${layers.map(({ name }) => name).join("+")}`);
        return [{ layers: layers.map(({ name }) => name), n, seconds: seconds(choice, n, use) }];
      })),
    rows: () => Promise.resolve(rows),
  };
}

const layer = (name: string, n = 64) => ({ name, n, bias: true, sparse: false });
const nameOf = (choices: ReadonlyMap<string, Candidate>, name: string) => choices.get(name)?.scheme.name ?? FLOAT;

Deno.test("the fastest that keeps the bound is chosen, by how often it runs and with what its input costs", async () => {
  const set = { classes: [{ layers: [layer("a")], uses: [USE] }], norm: undefined };
  const time = (choice: Choice) => choice === DQ ? 1 : choice === WO ? 3 : 5;
  const chosen = async (rows: number, bound: (c: Candidate) => boolean = () => true) => {
    const timer = fakeTimer(time, { apart: rows, fused: undefined });
    const options = { candidates: [DQ, WO], feasible: (_: string, c: Candidate) => bound(c), timer, onProgress() {} };
    const { schemes, seconds } = choose(await measureSets([set], options));
    return [nameOf(schemes, "a"), seconds];
  };
  assert.deepEqual(await chosen(0.5), ["int8dq", 15]);
  assert.deepEqual(await chosen(2.5), ["int8wo", 30], "quantizing the input costs more than it saves");
  assert.deepEqual(await chosen(0.5, (c) => c !== DQ), ["int8wo", 30]);
  assert.deepEqual(await chosen(0.5, () => false), ["float", 50]);
});

Deno.test("layers that share an input share its quantization, which a norm does for all of them or for none", async () => {
  const classes = [{ layers: [layer("a")], uses: [USE] }, { layers: [layer("b")], uses: [USE] }];
  const norm = { kernel: "layer_norm", shapes: [undefined, undefined, undefined, undefined] } as const;
  const run = async (b: (choice: Choice) => number, rows: { apart: number; fused: number | undefined }) => {
    const timer = fakeTimer((choice, n) => n === 64 ? (choice === DQ ? 4 : 5) : b(choice), rows);
    const sized = [classes[0]!, { ...classes[1]!, layers: [layer("b", 32)] }];
    const options = { candidates: [DQ], feasible: () => true, timer, onProgress() {} };
    const { schemes, seconds } = choose(await measureSets([{ classes: sized, norm }], options));
    return [nameOf(schemes, "a"), nameOf(schemes, "b"), seconds];
  };
  // One saves 1, the other 1: together they pay for rows that cost 1.5 once.
  assert.deepEqual(await run((c) => c === DQ ? 4 : 5, { apart: 1.5, fused: undefined }), ["int8dq", "int8dq", 95]);
  // b is faster in floats, by so little that the norm's cheaper quantization is worth it.
  assert.deepEqual(await run((c) => c === DQ ? 5.2 : 5, { apart: 0.9, fused: 0.1 }), ["int8dq", "int8dq", 93]);
  assert.deepEqual(await run((c) => c === DQ ? 7 : 5, { apart: 0.9, fused: 0.1 }), ["int8dq", "float", 99]);
  assert.deepEqual(await run((c) => c === DQ ? 7 : 5, { apart: 1.1, fused: 0.1 }), ["float", "float", 100]);
});

Deno.test("layers that are joined stay together, unless the bound parts them and that is worth it", async () => {
  const set = { classes: [{ layers: [layer("q"), layer("k"), layer("v")], uses: [USE] }], norm: undefined };
  const run = async (start: number) => {
    // A multiply has a start, and then costs by its outputs.
    const timer = fakeTimer((c, n) => start + n * (c === FLOAT ? 3 : c === WO ? 2 : 1), { apart: 0, fused: undefined });
    const feasible = (name: string, c: Candidate) => c === WO || name !== "v";
    const options = { candidates: [DQ, WO], feasible, timer, onProgress() {} };
    const { schemes } = choose(await measureSets([set], options));
    return { schemes: ["q", "k", "v"].map((name) => nameOf(schemes, name)), asked: timer.asked };
  };
  assert.deepEqual((await run(10)).schemes, ["int8dq", "int8dq", "int8wo"]);
  assert.deepEqual((await run(1000)).schemes, ["int8wo", "int8wo", "int8wo"]);
  const { asked } = await run(10);
  assert.ok(asked.includes("int8wo q+k+v") && asked.includes("int8dq q+k") && !asked.includes("int8dq q+k+v"));
});

Deno.test("one scale for a tensor is priced at each step, also where rows of all steps are computed together", async () => {
  const use = { ...USE, lead: [20], runs: 1, stepwise: { lead: [1], runs: 20 } };
  const set = { classes: [{ layers: [layer("a")], uses: [use] }], norm: undefined };
  const timer = fakeTimer((c) => c === FLOAT ? 10 : 1, { apart: 0, fused: undefined });
  const measured = await measureSets([set], { candidates: [TENSOR, DQ], feasible: () => true, timer, onProgress() {} });
  assert.deepEqual(measured[0]!.options[0]!.map(({ seconds }) => seconds), [10, 20, 1]);
});

Deno.test("the choice is the cheapest of all combinations", () => {
  let state = 7;
  const random = () => (state = Math.imul(state, 1664525) + 1013904223 | 0, (state >>> 8) / 2 ** 24);
  const KINDS = ["int8 0", "int8_asym 0", "e4m3 1"];
  for (let round = 0; round < 300; round++) {
    const rows = new Map(KINDS.map((kind) => [kind, {
      apart: random() * 4,
      fused: kind.endsWith("1") || random() < 0.3 ? undefined : random(),
    }]));
    const options: ClassOption[][] = Array.from({ length: 1 + Math.floor(random() * 3) }, (_, c) => {
      const float = {
        choices: new Map([[`${c}`, FLOAT as Choice]]),
        seconds: 3 + 6 * random(),
        kinds: new Set<string>(),
      };
      const others = Array.from({ length: 4 }, () => {
        const kinds = new Set(KINDS.filter(() => random() < 0.4));
        const quantized = kinds.size > 0 && random() < 0.7;
        return { choices: new Map([[`${c}`, DQ as Choice]]), seconds: 8 * random(), kinds, quantized };
      });
      return [{ ...float, quantized: false }, ...others];
    });
    const cost = (chosen: readonly ClassOption[]) => {
      const seconds = chosen.reduce((sum, option) => sum + option.seconds, 0);
      const kinds = [...new Set(chosen.flatMap((option) => [...option.kinds]))];
      const apart = kinds.reduce((sum, kind) => sum + rows.get(kind)!.apart, 0);
      const fused = kinds.length === 1 && chosen.every(({ quantized }) => quantized) && rows.get(kinds[0]!)!.fused;
      return seconds + (typeof fused === "number" ? Math.min(fused, apart) : apart);
    };
    let all: ClassOption[][] = [[]];
    for (const own of options) all = all.flatMap((chosen) => own.map((option) => [...chosen, option]));
    const least = Math.min(...all.map(cost));
    const { seconds } = choose([{ classes: [], norm: undefined, options, rows } as MeasuredSet]);
    assert.ok(Math.abs(seconds - least) < 1e-9, `${seconds} is not ${least}`);
  }
});

const QUICK = { prompts: PROMPTS, steps: 2, seed: 3, ...SMALL, schemes: ["int8dq", "int4dq"] } as const;

Deno.test("each layer of a plan keeps the bound, on inputs that were captured apart from it", async () => {
  const [pipe, float] = [await load(), await load()];
  const minSqnrDb = 30;
  const phases: string[] = [];
  const onProgress = ({ phase, done, total }: AutoquantProgress) => {
    assert.ok(done <= total);
    if (phases.at(-1) !== phase) phases.push(phase);
  };
  const plan = await autoquant(pipe, { ...QUICK, minSqnrDb, onProgress });
  assert.deepEqual(phases, ["capture", "error", "timing", "comparison"]);
  const layers = quantizableLayers(pipe.transformer);
  assert.deepEqual(plan.layers.map(({ name }) => name), layers.map(({ name }) => name));
  const { level, threads, description: { name: cpu } } = pipe.device;
  const { library: _, ...header } = plan.header!;
  assert.deepEqual(header, { cpu, level, threads, model: MODEL, dtype: "f32", minSqnrDb });

  const seen = await capture(float, transformerOf(float), {
    prompts: PROMPTS,
    seed: 3,
    numInferenceSteps: 2,
    ...SMALL,
  });
  let quantized = 0;
  for (const { name, weight } of layers) {
    const planned = plan.layers.find((layer) => layer.name === name)!;
    assert.equal(weight.quantized?.scheme ?? "none", planned.scheme, name);
    assert.ok(planned.problems!.every(({ m, n, k, microseconds }) => m > 0 && n > 0 && k > 0 && microseconds! > 0));
    if (!weight.quantized) continue;
    quantized++;
    const x = seen.inputOf("transformer", name)!;
    const wanted = await values(linear(float.transformer, name).forward(x));
    const found = sqnr(wanted, await values(linear(pipe.transformer, name).forward(x)));
    assert.ok(found >= minSqnrDb - 0.01, `${name} in ${planned.scheme} has ${found} dB`);
    assert.ok(Math.abs(found - planned.sqnrDb!) < 0.1, `${name}: ${found} is not the plan's ${planned.sqnrDb}`);
  }
  assert.ok(quantized > 0, "nothing was quantized");
  const { images } = await pipe(PROMPTS[0], { seed: 3, numInferenceSteps: 2, ...SMALL });
  assert.equal(images.length, 1);
});

Deno.test("a plan is applied on another day without one native call", async () => {
  await withFolder(async (folder) => {
    const path = `${folder}/plan.json`;
    const pipe = await load();
    const plan = await autoquant(pipe, { ...QUICK, minSqnrDb: 25, apply: false });
    assert.ok(quantizableLayers(pipe.transformer).every(({ weight }) => !weight.quantized), "apply: false");
    await plan.save(path);
    const text = await Deno.readTextFile(path);
    await Deno.writeTextFile(path, text.replace(/("proj_out": \{\s*"scheme": )"[^"]*"/, '$1"int8wo"'));

    const opened = library() as { symbols: object };
    const { symbols } = opened;
    let calls = 0;
    opened.symbols = new Proxy(symbols, { get: (target, name) => (calls++, Reflect.get(target, name)) });
    try {
      (await QuantizationPlan.load(path)).apply(pipe);
      assert.equal(calls, 0, "a plan was applied with native calls");
      await values(
        linear(pipe.transformer, "proj_out").forward(
          pipe.prepareLatents({ seed: 1, ...SMALL }).slice(2, 0, 1).expand(1, 16, 256),
        ),
      );
      assert.ok(calls > 0, "native calls are not counted");
    } finally {
      opened.symbols = symbols;
    }
    const wanted = new Map(plan.layers.map(({ name, scheme }) => [name, scheme]));
    wanted.set("proj_out", "int8wo");
    for (const { name, weight } of quantizableLayers(pipe.transformer)) {
      assert.equal(weight.quantized?.scheme ?? "none", wanted.get(name), name);
    }
  });
});

Deno.test("a bound that nothing keeps leaves all in floats; text encoders are planned where they are wanted", async () => {
  const pipe = await load();
  const plan = await autoquant(pipe, { ...QUICK, minSqnrDb: 150, textEncoders: true, schemes: ["int8dq"] });
  assert.ok(plan.layers.every(({ scheme }) => scheme === "none"));
  const counts = Map.groupBy(plan.layers, ({ component }) => component);
  assert.deepEqual([...counts.keys()], ["transformer", "text_encoder", "text_encoder_2"]);
  assert.ok(counts.get("text_encoder_2")!.some(({ problems }) => problems!.some(({ runs }) => runs === 1)));
});

Deno.test("what cannot be planned is refused before anything is computed", async () => {
  const pipe = await load();
  const base = { prompts: PROMPTS, minSqnrDb: 30 };
  await assert.rejects(autoquant(pipe, { ...base, prompts: [] }), { name: "TypeError", message: /no prompts/ });
  for (const minSqnrDb of [NaN, Infinity]) {
    await assert.rejects(autoquant(pipe, { ...base, minSqnrDb }), { name: "RangeError", message: /minSqnrDb of/ });
  }
  await assert.rejects(autoquant(pipe, { ...base, schemes: ["int9"] }), { name: "RangeError", message: /"int9"/ });
  await assert.rejects(autoquant(pipe, { ...base, schemes: [{ scheme: "int4wo", groupSize: 31 }] }), /groupSize of 31/);
  const reason = new Error("enough");
  await assert.rejects(autoquant(pipe, { ...base, signal: AbortSignal.abort(reason) }), reason);
  quantize(pipe.transformer, "int8wo", { filter: /proj_out/ });
  await assert.rejects(autoquant(pipe, base), {
    name: "RangeError",
    message: /transformer\.single_transformer_blocks\.0\.proj_out is in int8wo already: load the pipeline in floats/,
  });
});
