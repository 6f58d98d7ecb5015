import assert from "node:assert/strict";
import { compileGraph, type Stage } from "../../lib/graph/compile.ts";
import { DTYPES } from "../../lib/graph/dtypes.ts";
import { RATE } from "../../lib/graph/node.ts";
import type { KernelName } from "../../lib/graph/schema.ts";
import { QuantizedTensor } from "../../lib/tensor/quantized.ts";
import { concat, embedding, type Tensor } from "../../lib/tensor/tensor.ts";
import { argument, fluxGraph, quantizedWeight, type SchemeChoice, weight } from "./graphs.ts";

const SIZES = { dim: 256, heads: 4, double: 2, single: 3, text: 32, image: 64 };

const NAMES = [
  "int8wo",
  "int8dq",
  "int4wo",
  "int4dq",
  "fp8wo",
  "fp8dq",
  "fp8dqrow",
  "fp6_e3m2",
  "fp5_e2m2",
  "fp4_e2m1",
];
const DYNAMIC = ["int8dq", "int4dq", "fp8dqrow"];

const fluxStages = (scheme: string | SchemeChoice) =>
  compileGraph(fluxGraph(SIZES, typeof scheme === "function" ? scheme : () => scheme)).stages;
const stepOf = (...outputs: Tensor[]) => compileGraph(outputs.map((t) => t.node)).stages.at(-1)!;

/** How often a stage calls a kernel. */
function count({ calls }: Stage, kernel: KernelName): number {
  return calls.filter((call) => call.kernel === kernel).length;
}

const kernelsOf = ({ calls }: Stage) => calls.map((call) => call.kernel);
const callsTo = ({ calls }: Stage, kernel: KernelName) => calls.filter((call) => call.kernel === kernel);

Deno.test("quantized layers are joined and fused as float ones are: each program has as many multiplies", () => {
  const float = compileGraph(fluxGraph(SIZES)).stages.map((stage) => count(stage, "linear"));
  for (const scheme of NAMES.filter((name) => name !== "fp8dq")) {
    const stages = fluxStages(scheme);
    assert.deepEqual(stages.map((stage) => count(stage, "quantized_linear")), float, scheme);
    assert.deepEqual(stages.map((stage) => count(stage, "linear")), [0, 0, 0], scheme);
  }
});

Deno.test("no program computes the floats of a quantized weight, and none keeps those that it was made from", () => {
  for (const scheme of NAMES) {
    const [constant, ...rest] = fluxStages(scheme);
    for (const stage of [constant!, ...rest]) assert.equal(count(stage, "dequantize"), 0, scheme);
    for (const { operands } of constant!.calls) {
      const { storage, shape } = operands.at(-1)!;
      // Scales are columns, or have one for 32 columns of a weight.
      const wide = shape.length > 1 && shape.at(-1)! >= 64;
      assert.ok(!(DTYPES[storage.dtype].float && wide), `${scheme} writes floats of [${shape}]`);
    }
    for (const stage of rest) {
      for (const { external, dtype, size } of stage.buffers) {
        const weight = external!.rate === RATE.constant && DTYPES[dtype].float && size >= SIZES.dim * SIZES.dim;
        assert.ok(!weight, `${scheme} keeps floats of [${external!.shape}]`);
      }
    }
  }
});

Deno.test("the packed weights of a program take what its format takes", () => {
  const bytes = (scheme: string) =>
    fluxStages(scheme)[0]!.buffers.filter(({ written, dtype }) => written && dtype === "u8")
      .reduce((sum, { size }) => sum + size, 0);
  const [eight, six, four] = [bytes("int8wo"), bytes("fp6_e3m2"), bytes("fp4_e2m1")];
  assert.ok(Math.abs(six / eight - 0.75) < 0.02, `${six / eight}`);
  assert.ok(Math.abs(four / eight - 0.5) < 0.02, `${four / eight}`);
});

Deno.test("rows are quantized by the norm before them, and once for all layers that share them", () => {
  for (const scheme of DYNAMIC) {
    const step = fluxStages(scheme).at(-1)!;
    const { double, single } = SIZES;
    // What attention and the activations give: two of each in a double block, their concat in a single one; latents.
    assert.equal(count(step, "quantize_rows"), 4 * double + single + 1, scheme);
    const norms = callsTo(step, "layer_norm");
    assert.equal(norms.length, 4 * double + single + 1, scheme);
    const rows = callsTo(step, "quantized_linear")[0]!.params.rows;
    assert.ok(norms.every(({ params }) => params.rows === rows), `${scheme}: ${norms.map((n) => n.params.rows)}`);
    assert.equal(count(step, "copy"), 0, `${scheme} copies`);
  }
});

Deno.test("without quantized activations, nothing but the multiplies differs from the program in floats", () => {
  const float = kernelsOf(compileGraph(fluxGraph(SIZES)).stages.at(-1)!);
  for (const scheme of ["int8wo", "int4wo", "fp8wo", "fp6_e3m2"]) {
    const step = fluxStages(scheme).at(-1)!;
    assert.deepEqual(kernelsOf(step).map((k) => k === "quantized_linear" ? "linear" : k), float, scheme);
  }
});

Deno.test("bias, activation, gate and residual are a part of the quantized multiply", () => {
  for (const scheme of NAMES) {
    const step = fluxStages(scheme).at(-1)!;
    const multiplies = callsTo(step, "quantized_linear");
    const { double, single } = SIZES;
    assert.ok(multiplies.every(({ operands }) => operands[2] !== null), `${scheme}: a bias stands alone`);
    const activated = multiplies.filter(({ params }) => params.act === "gelu_tanh");
    assert.equal(activated.length, 2 * double + single, scheme);
    const gated = multiplies.filter(({ operands }) => operands[3] !== null && operands[4] !== null);
    // The last one is the scheduler's step: the change of sigma is its gate, the latents are its residual.
    assert.equal(gated.length, 4 * double + single + 1, scheme);
    assert.ok(!step.calls.some(({ kernel, params }) => kernel === "unary" && params.kind === "gelu_tanh"), scheme);
  }
});

Deno.test("modulations are computed for all steps before the first, but not by one scale for all steps", () => {
  const modulations = (stage: Stage) =>
    callsTo(stage, "quantized_linear").filter(({ params }) => (params.n as number) > 2000);
  for (const scheme of DYNAMIC) {
    const [, run, step] = fluxStages(scheme);
    assert.ok(modulations(run!).length > 0 && modulations(step!).length === 0, scheme);
  }
  const [, run, step] = fluxStages("fp8dq");
  assert.ok(modulations(run!).length === 0 && modulations(step!).length > 0);
});

Deno.test("one scale for a tensor takes its largest magnitude first, once for the layers that share it", () => {
  const x = argument([1, 6, 64]);
  const layer = (t: Tensor, n: number) => {
    const { tensor, activation } = quantizedWeight("fp8dq", n, 64);
    return t.linear(tensor, weight(n), activation);
  };
  const normed = x.layerNorm({ eps: 1e-6 });
  const step = stepOf(layer(normed, 64), layer(normed, 32).gelu("tanh"));
  assert.deepEqual(kernelsOf(step).sort(), [
    "abs_max",
    "layer_norm",
    "quantize_rows",
    "quantized_linear",
    "quantized_linear",
  ]);
  assert.equal(callsTo(step, "layer_norm")[0]!.params.rows, "none", "the norm does not know the scale of all rows");
  assert.equal(callsTo(step, "quantize_rows")[0]!.operands[1]!.storage.size, 1);
});

Deno.test("layers of one input in different schemes are joined by scheme, and share rows of one kind", () => {
  const x = argument([1, 6, 64]).layerNorm({ eps: 1e-6 });
  const layer = (scheme: string, n = 64) => {
    const { tensor, activation } = quantizedWeight(scheme, n, 64);
    return x.linear(tensor, weight(n), activation);
  };
  const step = stepOf(layer("int8dq"), layer("int8wo"), layer("int8dq"), layer("int8wo"), layer("int4dq"));
  assert.equal(count(step, "quantized_linear"), 3);
  assert.deepEqual(callsTo(step, "quantized_linear").map(({ params }) => params.n).sort(), [128, 128, 64].sort());
  assert.deepEqual(callsTo(step, "quantize_rows").map(({ params }) => params.rows).sort(), ["int8", "int8_asym"]);
  assert.equal(callsTo(step, "layer_norm")[0]!.params.rows, "none", "what is also read in floats stays so");
  const shared = stepOf(layer("int8dq"), layer("int8dq", 128).gelu("tanh"));
  assert.deepEqual(kernelsOf(shared), ["layer_norm", "quantized_linear", "quantized_linear"]);
  const float = stepOf(layer("int8dq"), x.linear(weight(64, 64)));
  assert.deepEqual(kernelsOf(float).sort(), ["layer_norm", "linear", "quantize_rows", "quantized_linear"]);
});

Deno.test("zero points go with their codes when layers are joined", () => {
  const x = argument([1, 6, 64]);
  const quantization = {
    format: "int4",
    ebits: 0,
    mbits: 0,
    group: 32,
    symmetric: false,
    perTensor: false,
    activation: { rows: "none", perTensor: 0 },
  } as const;
  const layer = (symmetric: boolean) => {
    const options = { scheme: "int4wo", quantization: { ...quantization, symmetric }, dtype: "f32" } as const;
    return x.linear(QuantizedTensor.quantize(weight(64, 64), options).tensor);
  };
  const step = stepOf(layer(false), layer(true), layer(false), layer(true));
  const params = callsTo(step, "quantized_linear").map((call) => [call.params.n, call.params.zero]);
  assert.deepEqual(params.sort(), [[128, 0], [128, 1]]);
});

Deno.test("a weight that was read as one is the same as its parts side by side", () => {
  const x = argument([1, 6, 64]);
  const [q, k] = [quantizedWeight("int8dq", 64, 64), quantizedWeight("int8dq", 32, 64)];
  const whole = QuantizedTensor.concat([q, k]);
  const fused = stepOf(x.linear(whole.tensor, undefined, whole.activation));
  assert.deepEqual(kernelsOf(fused), ["quantize_rows", "quantized_linear"]);
  const part = whole.rows(64, 96);
  assert.deepEqual([part.shape, part.codes.shape, part.scale.shape], [[32, 64], [32, 64], [32, 1]]);
  const apart = stepOf(x.linear(part.tensor, undefined, part.activation));
  assert.deepEqual(kernelsOf(apart), ["quantize_rows", "quantized_linear"]);
  assert.throws(() => QuantizedTensor.concat([q, quantizedWeight("int8wo", 32, 64)]), /int8wo below one in int8dq/);
});

Deno.test("a layer reads a quantized weight in the type that it computes in", () => {
  for (const dtype of ["f32", "bf16", "f16"] as const) {
    const { tensor, activation } = quantizedWeight("int8dq", 64, 64);
    const stages = compileGraph([argument([1, 6, 64], { dtype }).linear(tensor, weight(64), activation).node]).stages;
    assert.deepEqual(kernelsOf(stages.at(-1)!), ["quantize_rows", "quantized_linear"]);
    assert.equal(callsTo(stages[0]!, "pack_quantized")[0]!.params.dtype, dtype);
  }
});

Deno.test("convolutions keep their weights packed, with what stands around them fused", () => {
  const image = argument([1, 8, 8, 32]);
  for (const scheme of ["int8wo", "int8dq", "fp8wo"]) {
    const [wide, point] = [quantizedWeight(scheme, 64, 32, 3, 3), quantizedWeight(scheme, 64, 32, 1, 1)];
    const enlarged = image.upsampleNearest(2);
    const { rows } = wide.activation;
    const y = enlarged.conv2d(wide.tensor, { bias: weight(64), padding: 1, rows }).add(argument([1, 16, 16, 64]));
    const z = image.conv2d(point.tensor, { bias: weight(64), rows });
    const stages = compileGraph([y.node, z.node]).stages;
    const step = stages.at(-1)!;
    const convolutions = callsTo(step, "quantized_conv");
    assert.equal(convolutions.length, 2, scheme);
    assert.equal(convolutions[0]!.params.upsample, 2);
    assert.ok(convolutions[0]!.operands[3] !== null, "the residual is a part of it");
    // Enlarging an image does not change its largest magnitude, so that one is enough for both.
    assert.equal(count(step, "abs_max"), scheme === "int8dq" ? 1 : 0, scheme);
    assert.equal(convolutions.every(({ operands }) => (operands[5] !== null) === (scheme === "int8dq")), true, scheme);
    assert.ok(stages.every((stage) => count(stage, "dequantize") + count(stage, "conv") === 0), scheme);
  }
});

Deno.test("a convolution over frames is quantized by one scale of its input and of the frames before", () => {
  const [video, before] = [argument([1, 4, 8, 8, 32]), argument([1, 2, 8, 8, 32])];
  for (const scheme of ["int8wo", "int8dq", "fp8wo"]) {
    const wide = quantizedWeight(scheme, 64, 32, 3, 3, 3);
    const options = { bias: weight(64), padding: 1, rows: wide.activation.rows };
    const y = video.conv3d(wide.tensor, { ...options, cache: before }).silu();
    const step = stepOf(y.add(video.conv3d(wide.tensor, options)));
    const dynamic = scheme === "int8dq";
    assert.deepEqual(kernelsOf(step), [
      ...(dynamic ? ["abs_max"] : []),
      "quantized_conv",
      ...(dynamic ? ["abs_max", "binary"] : []),
      "quantized_conv",
    ], scheme);
    const [first, second] = callsTo(step, "quantized_conv");
    assert.deepEqual([first, second].map((call) => call!.operands[4]?.shape), [undefined, before.shape]);
    assert.deepEqual(second!.operands[3]?.shape, first!.operands.at(-1)!.shape, "the first is the second's residual");
  }
});

Deno.test("an embedding reads the rows of its codes", () => {
  const { tensor } = quantizedWeight("int8wo", 100, 64);
  const step = stepOf(embedding(argument([7], { dtype: "i32" }), tensor, "bf16"));
  assert.deepEqual(kernelsOf(step), ["quantized_embedding"]);
});

Deno.test("what nothing but floats can be done with is computed in floats", () => {
  const { tensor } = quantizedWeight("int8wo", 64, 64);
  assert.deepEqual(kernelsOf(stepOf(concat([argument([64, 64]), tensor.mul(2)], 0))), ["copy", "copy"]);
});
