import assert from "node:assert/strict";
import { storedRowBytes } from "../../lib/graph/quantized.ts";
import { FluxTransformer2DModel } from "../../lib/models/flux_transformer_2d_model.ts";
import { Conv2d, Conv3d, Embedding, Linear } from "../../lib/nn/layers.ts";
import { Module } from "../../lib/nn/module.ts";
import { dequantize, quantizableLayers, quantize, sparsify } from "../../lib/quantize/quantize.ts";
import { schemeOf, SCHEMES } from "../../lib/quantize/schemes.ts";
import { Generator } from "../../lib/tensor/random.ts";
import { toArray } from "../../lib/tensor/realize.ts";
import { tensor } from "../../lib/tensor/source.ts";
import type { Tensor } from "../../lib/tensor/tensor.ts";

const random = (seed: number, ...shape: number[]) =>
  tensor(new Generator(seed).randn(shape, { dtype: "f32" }), { shape });

/** A linear layer with values. */
function filled(inputs: number, outputs: number, seed: number): Linear {
  const layer = new Linear(inputs, outputs);
  layer.weight.tensor = random(seed, outputs, inputs);
  layer.bias!.tensor = random(seed + 1, outputs);
  return layer;
}

/** A model with a layer of each kind. */
class Mixed extends Module {
  first = filled(128, 96, 1);
  odd = filled(60, 40, 3);
  blocks = [filled(64, 64, 5), filled(64, 256, 7)];
  conv = new Conv2d(4, 8, { size: 3 });
  table = new Embedding(10, 32);

  constructor() {
    super();
    this.conv.weight.tensor = random(9, 8, 4, 3, 3);
    this.conv.bias.tensor = random(10, 8);
    this.table.weight.tensor = random(11, 10, 32);
  }
}

const names = (report: { quantized: readonly { name: string }[] }) => report.quantized.map(({ name }) => name);

/** 10 log10 of the power of a signal over that of what differs from it. */
function sqnr(signal: ArrayLike<number>, noisy: ArrayLike<number>): number {
  let [power, noise] = [0, 0];
  for (let i = 0; i < signal.length; i++) {
    power += signal[i]! ** 2;
    noise += (signal[i]! - noisy[i]!) ** 2;
  }
  return 10 * Math.log10(power / noise);
}

const values = (t: Tensor) => toArray<"f32">(t);

Deno.test("layers are found with their names, kinds and shapes, in the model's order", () => {
  const found = quantizableLayers(new Mixed()).map(({ name, kind, shape }) => `${name} ${kind} ${shape.join("x")}`);
  assert.deepEqual(found, [
    "first linear 96x128",
    "odd linear 40x60",
    "blocks.0 linear 64x64",
    "blocks.1 linear 256x64",
    "conv conv2d 8x4x3x3",
    "table embedding 10x32",
  ]);
});

Deno.test("convolutions over frames are quantized as those of pictures, with the frames before them", async () => {
  class Causal extends Module {
    conv = new Conv3d(24, 16, { size: 3, padding: 1 });
  }
  const [video, before] = [random(21, 1, 3, 6, 5, 24), random(22, 1, 2, 6, 5, 24)];
  for (const scheme of ["int8wo", "int8dq", "fp8wo"]) {
    const model = new Causal();
    model.conv.weight.tensor = random(23, 16, 24, 3, 3, 3);
    model.conv.bias.tensor = random(24, 16);
    const run = async () => [await values(model.conv.forward(video, before)), await values(model.conv.forward(video))];
    const floats = await run();
    assert.deepEqual(names(quantize(model, scheme)), ["conv"]);
    const quantized = await run();
    floats.forEach((signal, i) =>
      assert.ok(sqnr(signal, quantized[i]!) > 25, `${scheme}: ${sqnr(signal, quantized[i]!)}`)
    );
    assert.notDeepEqual(floats, quantized);
  }
});

Deno.test("a filter takes layers by name, by size, or by a function", () => {
  const taken = (filter: Parameters<typeof quantize>[2]) => names(quantize(new Mixed(), "int8wo", filter));
  assert.deepEqual(taken({}), ["first", "odd", "blocks.0", "blocks.1", "conv"]);
  assert.deepEqual(taken({ filter: /^blocks/ }), ["blocks.0", "blocks.1"]);
  assert.deepEqual(taken({ filter: /o/g }), ["odd", "blocks.0", "blocks.1", "conv"], "a global one forgets its place");
  assert.deepEqual(taken({ filter: /^(?!first|conv)/ }), ["odd", "blocks.0", "blocks.1"]);
  assert.deepEqual(taken({ filter: { minInputs: 64 } }), ["first", "blocks.0", "blocks.1"]);
  assert.deepEqual(taken({ filter: { minInputs: 36, minOutputs: 8, name: /v$/ } }), ["conv"], "4 x 3 x 3 inputs");
  assert.deepEqual(taken({ filter: { minOutputs: 100 } }), ["blocks.1"]);
  assert.deepEqual(taken({ filter: ({ kind, shape }) => kind === "linear" && shape[0] === 64 }), ["blocks.0"]);
  assert.deepEqual(taken({ kinds: ["embedding"] }), ["table"]);
});

Deno.test("rules give layers their own schemes and settings; the first that takes a layer decides", () => {
  const model = new Mixed();
  const report = quantize(model, [
    { filter: /^odd/, scheme: "none" },
    { filter: { minInputs: 128 }, scheme: "int4wo", groupSize: 64, symmetric: false },
    { filter: /^blocks/, scheme: schemeOf("fp6_e3m2") },
    { scheme: "int8dq" },
  ], { filter: /^(?!table)/, groupSize: 32 });
  assert.deepEqual(report.quantized.map(({ name, scheme }) => `${name} ${scheme}`), [
    "first int4wo",
    "blocks.0 fp6_e3m2",
    "blocks.1 fp6_e3m2",
    "conv int8dq",
  ]);
  assert.equal(model.first.weight.quantized!.quantization.group, 64, "a rule's setting goes before the call's");
  assert.ok(model.first.weight.quantized!.zeroPoint);
  assert.equal(model.odd.weight.quantized, undefined);
});

Deno.test("what is left alone is reported with its shape and the reason", () => {
  const model = new Mixed();
  const { skipped } = quantize(model, [{ filter: /^first/, scheme: "none" }, { scheme: "int4wo" }], {
    filter: /^(?!blocks.1)/,
  });
  assert.deepEqual(skipped, [
    { name: "first", shape: "96 x 128", reason: "its rule is none" },
    { name: "odd", shape: "40 x 60", reason: "its 60 inputs are not a multiple of group size 32" },
    { name: "blocks.1", shape: "256 x 64", reason: "the filter leaves it out" },
    { name: "conv", shape: "8 x 4 x 3 x 3", reason: "int4wo is not for layers of kind conv2d" },
    { name: "table", shape: "10 x 32", reason: "it is of kind embedding" },
  ]);
  const again = quantize(model, "int8wo", { filter: /^blocks/ });
  assert.equal(
    again.skipped.find(({ name }) => name === "blocks.0")!.reason,
    "it is in int4wo already: dequantize it first",
  );
  assert.deepEqual(names(again), ["blocks.1"]);
});

Deno.test("the report counts the bytes of each weight before and after", () => {
  const { quantized } = quantize(new Mixed(), [{ filter: /^first/, scheme: "int4wo" }, { scheme: "int8wo" }]);
  assert.deepEqual(quantized[0], { name: "first", scheme: "int4wo", bytesBefore: 49152, bytes: 96 * (64 + 4 * 4) });
  assert.deepEqual(quantized[1], { name: "odd", scheme: "int8wo", bytesBefore: 9600, bytes: 40 * (60 + 4) });
});

Deno.test("schemes are found by name, small floats by their bits, and unknown ones are refused with the names", () => {
  assert.deepEqual(SCHEMES.map(({ name }) => name), [
    ...["int8wo", "int8dq", "int4wo", "int4dq", "fp8wo", "fp8dq", "fp8dqrow"],
    ...["fp6_e3m2", "fp5_e2m2", "fp4_e2m1"],
  ]);
  for (const scheme of SCHEMES) assert.equal(schemeOf(scheme.name), scheme);
  for (const [name, real] of [["fp7_e3m3", "fp7_e3m3"], ["fpx_e4m3", "fp8_e4m3"], ["fp3_e1m1", "fp3_e1m1"]] as const) {
    assert.equal(schemeOf(name).name, real);
  }
  const refused: [string, RegExp][] = [
    ["int7wo", /"int7wo": pass int8wo, int8dq, .*fp7_e3m3/],
    ["", /Cannot use the scheme ""/],
    ["INT8WO", /"INT8WO"/],
    ["fp6_e3m3", /it takes 7 bits, so write fp7_e3m3/],
    ["fp9_e4m4", /4 exponent and 4 mantissa bits: pass 2 to 7 in all/],
    ["fp2_e1m0", /1 exponent and 0 mantissa/],
    ["fp5_e0m4", /0 exponent/],
  ];
  for (const [name, message] of refused) assert.throws(() => schemeOf(name), { name: "RangeError", message });
});

Deno.test("a wrong setting is refused before any layer is quantized", () => {
  const wrong: [string, Parameters<typeof quantize>[2], RegExp][] = [
    ["int4wo", { groupSize: 48 }, /groupSize of 48: pass 32, 64, 128 or 256/],
    ["int4dq", { groupSize: 0 }, /groupSize of 0/],
    ["int4dq", { activation: "none" as "symmetric" }, /activation of "none": pass asymmetric or symmetric/],
    ["fp8wo", { fp8: "e3m4" as "e4m3" }, /fp8 of "e3m4": pass e4m3 or e5m2/],
    ["fp8dq", { fp8: "e3m4" as "e4m3" }, /fp8 of "e3m4"/],
    ["fp8dqrow", { fp8: "" as "e4m3" }, /fp8 of ""/],
  ];
  for (const [scheme, options, message] of wrong) {
    const model = new Mixed();
    const rules = [{ filter: /first/, scheme: "int8wo" }, { scheme }];
    assert.throws(() => quantize(model, rules, options), { name: "RangeError", message });
    assert.equal(model.first.weight.quantized, undefined, scheme);
  }
});

const CASES: [string, Parameters<typeof quantize>[2], { weight: number; output: number }][] = [
  ["int8wo", {}, { weight: 38, output: 120 }],
  ["int8dq", {}, { weight: 38, output: 36 }],
  ["int4wo", {}, { weight: 17, output: 120 }],
  ["int4wo", { groupSize: 128 }, { weight: 15, output: 120 }],
  ["int4wo", { symmetric: false }, { weight: 19, output: 120 }],
  ["int4dq", {}, { weight: 17, output: 36 }],
  ["int4dq", { activation: "symmetric" }, { weight: 17, output: 36 }],
  ["fp8wo", {}, { weight: 28, output: 120 }],
  ["fp8wo", { fp8: "e5m2" }, { weight: 22, output: 120 }],
  ["fp8dq", {}, { weight: 28, output: 28 }],
  ["fp8dqrow", {}, { weight: 28, output: 28 }],
  ["fp8dqrow", { fp8: "e5m2" }, { weight: 22, output: 22 }],
  ["fp6_e3m2", {}, { weight: 22, output: 120 }],
  ["fp5_e2m2", {}, { weight: 18, output: 120 }],
  ["fp4_e2m1", {}, { weight: 13, output: 120 }],
  ["fp3_e1m1", {}, { weight: 7, output: 120 }],
  ["fp8_e4m3", {}, { weight: 28, output: 120 }],
];

Deno.test("a layer computes with what its codes stand for, which is near what it was: better with more bits", async () => {
  const x = random(20, 5, 128);
  for (const [scheme, options, floor] of CASES) {
    const what = `${scheme} ${JSON.stringify(options)}`;
    const layer = filled(128, 96, 1);
    const before = await values(layer.weight.tensor);
    const [report] = quantize(layer, scheme, options).quantized;
    const { codes, shape } = layer.weight.quantized!;
    assert.deepEqual(codes.shape, [96, storedRowBytes(layer.weight.quantized!.quantization, 128)], what);
    assert.deepEqual([report!.scheme, shape], [scheme, [96, 128]]);
    const got = await values(layer.forward(x));
    assert.deepEqual(await dequantize(layer), [""]);
    assert.equal(layer.weight.quantized, undefined);
    const weight = sqnr(before, await values(layer.weight.tensor));
    assert.ok(weight > floor.weight && weight < floor.weight + 12, `${what}: weights of ${weight} dB`);
    const output = sqnr(await values(layer.forward(x)), got);
    assert.ok(output > floor.output, `${what}: outputs of ${output} dB`);
  }
});

Deno.test("dequantize gives floats back to the layers that a filter takes, and they can be quantized again", async () => {
  const model = new Mixed();
  quantize(model, "int8wo");
  const codes = await toArray<"i8">(model.blocks[0]!.weight.quantized!.codes);
  assert.deepEqual(await dequantize(model, { filter: /^blocks.0/ }), ["blocks.0"]);
  assert.ok(model.first.weight.quantized);
  quantize(model, "int8wo", { filter: /^blocks.0/ });
  // The largest magnitude was rounded, so that the scale is another, by at most half of a code in 127.
  const again = await toArray<"i8">(model.blocks[0]!.weight.quantized!.codes);
  assert.ok(again.every((code, i) => Math.abs(code - codes[i]!) <= 1));
  const convolution = await values(model.conv.weight.quantized!.tensor);
  assert.deepEqual(await dequantize(model), ["first", "odd", "blocks.0", "blocks.1", "conv"]);
  assert.deepEqual(model.conv.weight.tensor.shape, [8, 4, 3, 3]);
  assert.deepEqual(await values(model.conv.weight.tensor), convolution);
  assert.deepEqual(await dequantize(model), []);
});

Deno.test("sparsify keeps two of each four, int8dq stores them without zeros, and both compute the same", async () => {
  const model = new Mixed();
  const { sparsified, skipped } = sparsify(model, { filter: /^(?!blocks.1)/ });
  assert.deepEqual(sparsified, ["first", "blocks.0"]);
  assert.deepEqual(skipped.map(({ name, reason }) => `${name}: ${reason}`), [
    "odd: its 60 inputs are not a multiple of 8",
    "blocks.1: the filter leaves it out",
    "conv: it is of kind conv2d",
    "table: it is of kind embedding",
  ]);
  const original = await values(filled(128, 96, 1).weight.tensor);
  const pruned = await values(model.first.weight.tensor);
  for (let at = 0; at < pruned.length; at += 4) {
    const kept = [0, 1, 2, 3].filter((i) => pruned[at + i] !== 0);
    assert.ok(kept.length <= 2);
    const largest = [0, 1, 2, 3].sort((a, b) => Math.abs(original[at + b]!) - Math.abs(original[at + a]!)).slice(0, 2);
    for (const i of largest) assert.equal(pruned[at + i], original[at + i]);
  }
  quantize(model, "int8dq", { kinds: ["linear"] });
  const { quantization, codes, byteLength } = model.first.weight.quantized!;
  assert.equal(quantization.format, "sparse_int8");
  assert.deepEqual([codes.shape, byteLength], [[96, 80], 96 * (80 + 4)]);
  assert.equal(model.odd.weight.quantized!.quantization.format, "int8");
  const x = random(20, 5, 128);
  const got = await values(model.first.forward(x));
  const dense = filled(128, 96, 1);
  dense.weight.tensor = tensor(pruned, { shape: [96, 128] });
  quantize(dense, "int8dq");
  assert.equal(dense.weight.quantized!.quantization.format, "int8", "what only happens to have zeros stays dense");
  assert.deepEqual(got, await values(dense.forward(x)));
  assert.match(sparsify(model, { filter: /^first/ }).skipped[0]!.reason, /in int8dq already: prune before quantizing/);
});

Deno.test("projections that were pruned and then fused are still stored without zeros", async () => {
  const model = await FluxTransformer2DModel.load("tests/fixtures/flux-dev-mini");
  sparsify(model, { filter: /attn/ });
  assert.match(sparsify(model, { filter: /attn/ }).skipped.find(({ name }) => /attn/.test(name))!.reason, /pruned/);
  model.fuseQkvProjections();
  quantize(model, "int8dq", { filter: /to_qkv/ });
  const fused = quantizableLayers(model).filter(({ name }) => name.endsWith("to_qkv"));
  assert.ok(fused.length > 0);
  assert.ok(fused.every(({ weight }) => weight.quantized!.quantization.format === "sparse_int8"));
  model.unfuseQkvProjections();
  const apart = quantizableLayers(model).filter(({ name }) => name.endsWith("attn.to_k"));
  assert.ok(apart.every(({ weight }) => weight.quantized!.quantization.format === "sparse_int8"));
});

Deno.test("scales are computed in the type that is asked for, else the model's, else the weight's", async () => {
  const layer = () => {
    const l = new Linear(64, 32);
    l.weight.tensor = random(1, 32, 64).cast("bf16");
    return l;
  };
  const scaleOf = async (options: Parameters<typeof quantize>[2]) => {
    const l = layer();
    quantize(l, "int8wo", options);
    return { dtype: l.weight.quantized!.dtype, scale: await values(l.weight.quantized!.scale) };
  };
  const [own, wide] = [await scaleOf({}), await scaleOf({ dtype: "f32" })];
  assert.deepEqual([own.dtype, wide.dtype], ["bf16", "f32"]);
  assert.notDeepEqual(own.scale, wide.scale);
  const bits = new Uint32Array(own.scale.buffer);
  assert.ok(bits.every((word) => (word & 0xffff) === 0), "a scale that was computed in bf16 is one");
});
