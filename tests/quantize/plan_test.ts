import assert from "node:assert/strict";
import { ConfigError, OutputError } from "../../lib/errors.ts";
import { Conv2d, Linear } from "../../lib/nn/layers.ts";
import { Module } from "../../lib/nn/module.ts";
import { type PlanHeader, type PlannedLayer, QuantizationPlan } from "../../lib/quantize/plan.ts";
import { quantizableLayers } from "../../lib/quantize/quantize.ts";
import { withFolder } from "../folder.ts";

class Network extends Module {
  first = new Linear(64, 128);
  blocks = [new Linear(128, 64), new Linear(64, 60)];
  last = new Linear(60, 8);
}

class Decoder extends Module {
  attention = new Linear(32, 32);
  conv = new Conv2d(4, 8, { size: 3 });
}

const pipeline = () => ({ transformer: new Network(), vae: new Decoder() });

/** The schemes of a pipeline's layers. */
function schemesOf(pipe: ReturnType<typeof pipeline>): Record<string, string> {
  const found: Record<string, string> = {};
  for (const [component, module] of Object.entries(pipe)) {
    for (const { name, weight } of quantizableLayers(module)) {
      found[`${component}.${name}`] = weight.quantized?.scheme ?? "none";
    }
  }
  return found;
}

const HEADER: PlanHeader = {
  library: "0.1.0",
  cpu: "A CPU",
  level: "avx2",
  threads: 4,
  model: "models/one",
  dtype: "bf16",
  minSqnrDb: 25,
};

const LAYERS: readonly PlannedLayer[] = [
  {
    component: "transformer",
    name: "first",
    scheme: "int8dq",
    sqnrDb: 38.25,
    problems: [
      {
        m: 96,
        n: 128,
        k: 64,
        activation: "gelu_tanh",
        gate: false,
        residual: true,
        runs: 20,
        floatMicroseconds: 120.5,
        microseconds: 40.25,
      },
    ],
  },
  {
    component: "transformer",
    name: "blocks.0",
    scheme: "int4wo",
    settings: { groupSize: 64, symmetric: false },
    problems: [
      { m: 1, n: 200, k: 128, activation: "none", gate: true, residual: false, runs: 1, joined: ["blocks.0", "other"] },
    ],
  },
  { component: "transformer", name: "blocks.1", scheme: "fp8wo", settings: { fp8: "e5m2" } },
  { component: "transformer", name: "last", scheme: "none" },
];

const PLAN = new QuantizationPlan(LAYERS, HEADER);

Deno.test("a plan is the same after it was saved and loaded, and its file is readable", async () => {
  await withFolder(async (folder) => {
    const path = `${folder}/plan.json`;
    await PLAN.save(path);
    const loaded = await QuantizationPlan.load(path);
    assert.deepEqual(loaded.layers, PLAN.layers);
    assert.deepEqual(loaded.header, HEADER);
    await loaded.save(path);
    const text = await Deno.readTextFile(path);
    assert.equal(text, PLAN.text());
    for (
      const line of ['"denoise_plan": 1', '"scheme": "int4wo"', '"group_size": 64', '"sqnr_db": 38.25', '"us": 40.25']
    ) {
      assert.ok(text.includes(line), `${line} is not in\n${text}`);
    }
    assert.deepEqual((await Array.fromAsync(Deno.readDir(folder))).map(({ name }) => name), ["plan.json"]);
  });
});

Deno.test("a plan that cannot be written is one error, and leaves nothing behind", async () => {
  await withFolder(async (folder) => {
    await assert.rejects(PLAN.save(`${folder}/none/plan.json`), (error: OutputError) => {
      return error instanceof OutputError && /plan\.json/.test(error.message) &&
        /make its folder first/.test(error.message);
    });
    await Deno.mkdir(`${folder}/taken`);
    await assert.rejects(PLAN.save(`${folder}/taken`), OutputError);
    assert.deepEqual((await Array.fromAsync(Deno.readDir(folder))).map(({ name }) => name), ["taken"]);
  });
});

Deno.test("a plan gives each layer its scheme and settings, and says what it left", () => {
  const pipe = pipeline();
  const { quantized, skipped } = PLAN.apply(pipe);
  assert.deepEqual(schemesOf(pipe), {
    "transformer.first": "int8dq",
    "transformer.blocks.0": "int4wo",
    "transformer.blocks.1": "fp8wo",
    "transformer.last": "none",
    "vae.attention": "none",
    "vae.conv": "none",
  });
  assert.deepEqual(quantized.map(({ name }) => name), [
    "transformer.first",
    "transformer.blocks.0",
    "transformer.blocks.1",
  ]);
  assert.deepEqual(skipped, [
    { name: "transformer.last", shape: "8 x 60", reason: "the plan leaves it in floats" },
  ]);
  const { quantization, zeroPoint } = pipe.transformer.blocks[0]!.weight.quantized!;
  assert.deepEqual([quantization.group, zeroPoint !== undefined], [64, true]);
  assert.equal(pipe.transformer.blocks[1]!.weight.quantized!.quantization.format, "e5m2");
});

Deno.test("a layer that a plan does not know is an error with its name, or stays as it is", () => {
  const plan = new QuantizationPlan(LAYERS.slice(0, 2));
  const pipe = pipeline();
  assert.throws(() => plan.apply(pipe), {
    name: "RangeError",
    message: /does not know transformer\.blocks\.1 \(60 x 64\): add it, .* or pass errorOnUnseen: false/,
  });
  assert.ok(Object.values(schemesOf(pipe)).every((scheme) => scheme === "none"), "nothing was changed");
  const { skipped } = plan.apply(pipe, { errorOnUnseen: false });
  assert.deepEqual(skipped.map(({ name, reason }) => `${name}: ${reason}`), [
    "transformer.blocks.1: the plan does not know it",
    "transformer.last: the plan does not know it",
  ]);
  assert.equal(schemesOf(pipe)["transformer.first"], "int8dq");
});

Deno.test("what a plan says nothing about of other kinds is no error; what it knows and the model lacks is left out", () => {
  const plan = new QuantizationPlan([
    { component: "vae", name: "attention", scheme: "int8wo" },
    { component: "vae", name: "another", scheme: "int8wo" },
    { component: "text_encoder", name: "layer", scheme: "int8wo" },
  ]);
  const pipe = pipeline();
  const { quantized, skipped } = plan.apply(pipe);
  assert.deepEqual(quantized.map(({ name }) => name), ["vae.attention"]);
  assert.deepEqual(skipped.map(({ name }) => name), ["vae.conv"]);
});

Deno.test("nothing is changed where a layer cannot have its scheme, or has one already", () => {
  const cannot = new QuantizationPlan([LAYERS[0]!, { component: "transformer", name: "last", scheme: "int4wo" }]);
  const pipe = pipeline();
  assert.throws(() => cannot.apply(pipe, { errorOnUnseen: false }), {
    message: /transformer\.last cannot be int4wo: its 60 inputs are not a multiple of group size 32/,
  });
  assert.ok(Object.values(schemesOf(pipe)).every((scheme) => scheme === "none"));
  PLAN.apply(pipe);
  assert.throws(() => PLAN.apply(pipe), {
    name: "RangeError",
    message: /transformer\.first cannot be int8dq: it is in int8dq already/,
  });
});

Deno.test("a file that was written or changed by hand works", () => {
  const plan = QuantizationPlan.parse(
    '{"denoise_plan": 1, "layers": {"transformer": {"first": {"scheme": "int8wo"}, "last": {"scheme": "none"}}}}',
  );
  assert.equal(plan.header, undefined);
  const edited = PLAN.text().replace('"scheme": "int8dq"', '"scheme": "fp6_e3m2"');
  const pipe = pipeline();
  QuantizationPlan.parse(edited).apply(pipe);
  assert.equal(schemesOf(pipe)["transformer.first"], "fp6_e3m2");
});

Deno.test("of two plans the later is heard; a layer with one scheme keeps the problems of both", () => {
  const problem = LAYERS[0]!.problems![0]!;
  const later = new QuantizationPlan([
    { ...LAYERS[0]!, sqnrDb: 40, problems: [{ ...problem, microseconds: 1 }, { ...problem, m: 4096 }] },
    { component: "transformer", name: "blocks.0", scheme: "int8wo" },
    { component: "vae", name: "attention", scheme: "int8wo" },
  ], { ...HEADER, model: "models/two" });
  const merged = PLAN.merge(later);
  assert.deepEqual(merged.layers.map(({ name, scheme }) => `${name} ${scheme}`), [
    ...["first int8dq", "blocks.0 int8wo", "blocks.1 fp8wo", "last none", "attention int8wo"],
  ]);
  assert.equal(merged.header!.model, "models/two");
  assert.equal(merged.layers[0]!.sqnrDb, 40);
  assert.deepEqual(merged.layers[0]!.problems!.map(({ m, microseconds }) => [m, microseconds]), [[96, 1], [
    4096,
    40.25,
  ]]);
  assert.equal(merged.layers[1]!.settings, undefined, "the settings of another scheme are not kept");
  const backwards = later.merge(PLAN);
  assert.equal(backwards.layers[0]!.problems!.length, 2, "problems that only the earlier knows are kept");
  assert.equal(backwards.layers[0]!.problems!.find(({ m }) => m === 96)!.microseconds, 40.25);
  assert.equal(PLAN.layers[0]!.problems!.length, 1, "neither is changed");
  assert.deepEqual(QuantizationPlan.parse(merged.text()).layers, merged.layers);
});

Deno.test("times of another machine are not kept beside those of this one", () => {
  for (const change of [{ cpu: "Another" }, { level: "avx512" }, { threads: 2 }]) {
    const other = new QuantizationPlan([{ component: "vae", name: "attention", scheme: "none" }], {
      ...HEADER,
      ...change,
    });
    const [first] = PLAN.merge(other).layers;
    assert.deepEqual([first!.scheme, first!.sqnrDb], ["int8dq", 38.25]);
    assert.equal(first!.problems![0]!.microseconds, undefined);
    assert.equal(first!.problems![0]!.runs, 20);
  }
  assert.equal(PLAN.merge(new QuantizationPlan([], HEADER)).layers[0]!.problems![0]!.microseconds, 40.25);
});

Deno.test("a table has a row for each multiply; layers that are joined share one", () => {
  const joined = { m: 5, n: 96, k: 32, activation: "none", gate: false, residual: false, runs: 4 } as const;
  const layer = (name: string, sqnrDb: number): PlannedLayer => ({
    component: "transformer",
    name,
    scheme: "int8wo",
    sqnrDb,
    problems: [{ ...joined, joined: ["q", "k"], floatMicroseconds: 9, microseconds: 3 }],
  });
  const rows = new QuantizationPlan([layer("q", 41), layer("k", 37.04), LAYERS[0]!, LAYERS[3]!]).table();
  assert.deepEqual(rows[0], {
    layer: "transformer.q + k",
    scheme: "int8wo",
    sqnr: "37.0",
    problem: "5 x 96 x 32",
    float: "9.0",
    chosen: "3.0",
  });
  assert.deepEqual(rows.slice(1).map(({ layer, problem }) => [layer, problem]), [
    ["transformer.first", "96 x 128 x 64, gelu_tanh, residual"],
    ["transformer.last", ""],
  ]);
});

/** A plan's JSON with one change. */
function broken(change: (json: Record<string, Json>) => void): string {
  const json = JSON.parse(PLAN.text());
  change(json);
  return JSON.stringify(json);
}

// deno-lint-ignore no-explicit-any
type Json = any;
const FIRST = "layers.transformer.first";
const first = (json: Json) => json.layers.transformer.first;
const problem = (json: Json) => first(json).problems[0];

const BROKEN: [string, string | undefined, RegExp][] = [
  ["", undefined, /not JSON/],
  ["{", undefined, /not JSON/],
  ["null", "denoise_plan", /has no denoise_plan/],
  ["[]", "denoise_plan", /has no denoise_plan/],
  ["3", "denoise_plan", /has no denoise_plan/],
  ["{}", "denoise_plan", /has no denoise_plan/],
  ['{"denoise_plan": 2, "layers": {}}', "denoise_plan", /denoise_plan is 2: this denoise reads format 1/],
  ['{"denoise_plan": "1", "layers": {}}', "denoise_plan", /is "1"/],
  ['{"denoise_plan": null}', "denoise_plan", /is null/],
  ['{"denoise_plan": 1}', "layers", /layers is missing: write an object/],
  ['{"denoise_plan": 1, "layers": []}', "layers", /layers is \[\]/],
  ['{"denoise_plan": 1, "layers": {}, "layer": 1}', "plan.layer", /remove it, or write one of/],
  [broken((j) => j.layers.unet = {}), "layers.unet", /write one of transformer, text_encoder, text_encoder_2, vae/],
  [broken((j) => j.layers.transformer = null), "layers.transformer", /is null/],
  [broken((j) => j.layers.transformer = "int8wo"), "layers.transformer", /is "int8wo"/],
  [broken((j) => j.layers.transformer.first = "int8wo"), FIRST, /write an object/],
  [broken((j) => j.layers.transformer.first = []), FIRST, /write an object/],
  [broken((j) => delete first(j).scheme), `${FIRST}.scheme`, /scheme is missing: write a text/],
  [broken((j) => first(j).scheme = 8), `${FIRST}.scheme`, /is 8/],
  [broken((j) => first(j).scheme = "int7wo"), `${FIRST}.scheme`, /is "int7wo": .*pass int8wo/],
  [broken((j) => first(j).scheme = "fp6_e3m3"), `${FIRST}.scheme`, /write fp7_e3m3/],
  [broken((j) => first(j).scheem = "int8wo"), `${FIRST}.scheem`, /write one of scheme, settings/],
  [broken((j) => first(j).sqnr_db = "38"), `${FIRST}.sqnr_db`, /write a number/],
  [broken((j) => first(j).sqnr_db = null), `${FIRST}.sqnr_db`, /is null/],
  [broken((j) => first(j).settings = 32), `${FIRST}.settings`, /write an object/],
  [broken((j) => first(j).settings = { groupSize: 32 }), `${FIRST}.settings.groupSize`, /write one of group_size/],
  [broken((j) => first(j).settings = { group_size: 0 }), `${FIRST}.settings.group_size`, /at least 1/],
  [broken((j) => first(j).settings = { group_size: "32" }), `${FIRST}.settings.group_size`, /is "32"/],
  [broken((j) => first(j).settings = { symmetric: 1 }), `${FIRST}.settings.symmetric`, /true or false/],
  [broken((j) => first(j).settings = { fp8: "e3m4" }), `${FIRST}.settings.fp8`, /write one of e4m3, e5m2/],
  [broken((j) => first(j).settings = { activation: "none" }), `${FIRST}.settings.activation`, /asymmetric, symmetric/],
  [
    broken((j) => j.layers.transformer["blocks.0"].settings.group_size = 48),
    "layers.transformer.blocks.0.settings",
    /groupSize of 48: pass 32, 64, 128 or 256/,
  ],
  [broken((j) => first(j).problems = {}), `${FIRST}.problems`, /write a list/],
  [broken((j) => first(j).problems = [3]), `${FIRST}.problems.0`, /write an object/],
  [broken((j) => problem(j).m = 0), `${FIRST}.problems.0.m`, /at least 1/],
  [broken((j) => problem(j).n = 1.5), `${FIRST}.problems.0.n`, /is 1.5/],
  [broken((j) => problem(j).k = -4), `${FIRST}.problems.0.k`, /is -4/],
  [broken((j) => delete problem(j).runs), `${FIRST}.problems.0.runs`, /is missing/],
  [broken((j) => problem(j).activation = "tanh"), `${FIRST}.problems.0.activation`, /write one of none, silu/],
  [broken((j) => problem(j).gate = "no"), `${FIRST}.problems.0.gate`, /true or false/],
  [broken((j) => delete problem(j).residual), `${FIRST}.problems.0.residual`, /is missing/],
  [broken((j) => problem(j).joined = "a"), `${FIRST}.problems.0.joined`, /a list of layers' names/],
  [broken((j) => problem(j).joined = [1]), `${FIRST}.problems.0.joined`, /a list of layers' names/],
  [broken((j) => problem(j).us = -1), `${FIRST}.problems.0.us`, /microseconds/],
  [broken((j) => problem(j).float_us = "fast"), `${FIRST}.problems.0.float_us`, /write a number/],
  [broken((j) => problem(j).speed = 1), `${FIRST}.problems.0.speed`, /write one of m, n, k/],
  [broken((j) => j.measured_with = "here"), "measured_with", /write an object/],
  [broken((j) => j.measured_with = null), "measured_with", /is null/],
  [broken((j) => delete j.measured_with.cpu), "measured_with.cpu", /is missing/],
  [broken((j) => j.measured_with.threads = 0), "measured_with.threads", /at least 1/],
  [broken((j) => j.measured_with.dtype = "i8"), "measured_with.dtype", /write one of f32, bf16, f16/],
  [broken((j) => j.measured_with.min_sqnr_db = "30"), "measured_with.min_sqnr_db", /write a number/],
  [broken((j) => j.measured_with.gpu = "none"), "measured_with.gpu", /write one of library, cpu/],
];

Deno.test("a broken plan is an error that names the file, the key, the value and the remedy", async () => {
  await withFolder(async (folder) => {
    for (const [i, [text, key, message]] of BROKEN.entries()) {
      const file = `${folder}/${i}.json`;
      await Deno.writeTextFile(file, text);
      await assert.rejects(QuantizationPlan.load(file), (error: ConfigError) => {
        assert.ok(error instanceof ConfigError, `${text}: ${error}`);
        assert.deepEqual([error.file, error.key], [file, key], text);
        assert.match(error.message, message);
        assert.ok(error.message.includes(file));
        return true;
      });
    }
    await assert.rejects(QuantizationPlan.load(`${folder}/none.json`), {
      name: "ConfigError",
      message: /check the path/,
    });
    await assert.rejects(QuantizationPlan.load(folder), { name: "ConfigError" });
  });
});

Deno.test("a plan with anything cut off its end, or any byte changed, is read or refused, and never misread as code", () => {
  const text = PLAN.text();
  let state = 1;
  for (let round = 0; round < 500; round++) {
    state = Math.imul(state, 1664525) + 1013904223 | 0;
    const place = (state >>> 8) % text.length;
    const mangled = round % 2 ? text.slice(0, place) : text.slice(0, place) + "x" + text.slice(place + 1);
    try {
      for (const { scheme, component } of QuantizationPlan.parse(mangled).layers) {
        assert.ok(["int8dq", "int4wo", "fp8wo", "none"].includes(scheme) && component === "transformer");
      }
    } catch (error) {
      assert.ok(error instanceof ConfigError, `${mangled}: ${error}`);
    }
  }
});
