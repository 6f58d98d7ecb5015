import assert from "node:assert/strict";
import { compileGraph } from "../../lib/graph/compile.ts";
import { lower } from "../../lib/graph/lower.ts";
import { type Node, RATE, topological } from "../../lib/graph/node.ts";
import { rewrite, type Rule } from "../../lib/graph/rewrite.ts";
import { FUSE, GATHER_VIEWS, HOIST, joinLinears, LEGALIZE, SIMPLIFY } from "../../lib/graph/rules.ts";
import { node } from "../../lib/graph/ops.ts";
import { attention, concat, embedding, type Tensor } from "../../lib/tensor/tensor.ts";
import { argument, fluxGraph, weight } from "./graphs.ts";

/** The operations of a graph, without its leaves. */
function operations(outputs: readonly Node[]): string[] {
  return topological(outputs).map((n) => n.op).filter((op) => op !== "leaf");
}

function after(rules: readonly Rule[], output: Tensor): Node {
  return rewrite([output.node], rules).outputs[0]!;
}

const SIZES = { dim: 256, heads: 4, double: 2, single: 4, text: 32, image: 64 };

Deno.test("views that change nothing are gone, views of views are one", () => {
  const x = argument([2, 6, 8]);
  assert.equal(after(SIMPLIFY, x.reshape(12, 8).reshape(2, 6, 8)), x.node);
  assert.equal(after(SIMPLIFY, x.permute(2, 0, 1).permute(1, 2, 0)), x.node);
  assert.equal(after(SIMPLIFY, x.slice(1, 0, 6)), x.node);
  assert.deepEqual(after(SIMPLIFY, x.slice(1, 1, 6).slice(1, 2, 4)).params, { axis: 1, start: 3, end: 5 });
  assert.deepEqual(after(SIMPLIFY, x.permute(1, 2, 0).permute(1, 2, 0)).params.axes, [2, 0, 1]);
  assert.equal(after(SIMPLIFY, x.cast("f32")), x.node);
  const half = argument([3], { dtype: "bf16" });
  assert.equal(after(SIMPLIFY, half.cast("f32").cast("bf16")), half.node);
  const narrowed = after(SIMPLIFY, x.cast("bf16").cast("f32"));
  assert.deepEqual(operations([narrowed]), ["cast", "cast"], "a cast that loses digits stays");
});

Deno.test("arithmetic with numbers is one affine in f32, and keeps its roundings in 16 bits", () => {
  const { op, params } = after(SIMPLIFY, argument([4]).mul(3).add(1).mul(2));
  assert.deepEqual([op, params], ["unary", { kind: "affine", alpha: 6, beta: 2 }]);
  assert.equal(operations([after(SIMPLIFY, argument([4], { dtype: "bf16" }).mul(3).add(1))]).length, 2);
  const a = argument([2, 3]);
  assert.equal(after(SIMPLIFY, a.matmul(argument([3, 2])).mul(0.5)).params.alpha, 0.5);
});

Deno.test("equal nodes are one", () => {
  const x = argument([2, 4]);
  const { outputs } = rewrite([x.silu().node, x.silu().node, x.relu().node], []);
  assert.equal(outputs[0], outputs[1]);
  assert.notEqual(outputs[0], outputs[2]);
});

Deno.test("bias, activation, gate and residual become a part of the linear layer", () => {
  const x = argument([1, 5, 8]);
  const y = x.linear(weight(16, 8), weight(16)).gelu("tanh");
  const gate = argument([1, 1, 16]);
  const residual = argument([1, 5, 16]);
  const fused = after(FUSE, residual.add(gate.mul(y)));
  assert.deepEqual(operations([fused]), ["linear"]);
  assert.equal(fused.params.act, "gelu_tanh");
  assert.deepEqual(fused.inputs.slice(3), [gate.node, residual.node]);
});

Deno.test("what two read is not fused into one of them", () => {
  const y = argument([1, 5, 8]).linear(weight(16, 8));
  const { outputs } = rewrite([y.silu().node, y.node], FUSE);
  assert.deepEqual(operations(outputs), ["linear", "unary"]);
});

Deno.test("an activation after a residual is not the activation before it", () => {
  const y = argument([1, 5, 8]).linear(weight(16, 8)).add(argument([1, 5, 16])).silu();
  assert.deepEqual(operations([after(FUSE, y)]), ["linear", "unary"]);
});

Deno.test("a result that a gate or residual would enlarge is not fused", () => {
  const y = argument([1, 1, 8]).linear(weight(16, 8));
  assert.deepEqual(operations([after(FUSE, y.mul(argument([1, 5, 16])))]), ["linear", "binary"]);
  assert.deepEqual(operations([after(FUSE, argument([1, 5, 16]).add(y))]), ["linear", "binary"]);
});

Deno.test("norms take their modulation, rope its norm, group norm and convolution what follows them", () => {
  const x = argument([1, 6, 8]);
  const [scale, shift] = [argument([1, 1, 8]), argument([1, 1, 8])];
  const modulated = after(FUSE, x.layerNorm({ eps: 1e-6 }).mul(scale.add(1)).add(shift));
  assert.deepEqual(operations([modulated]), ["layer_norm"]);
  assert.deepEqual(modulated.inputs.slice(3), [scale.node, shift.node]);

  const heads = argument([1, 6, 2, 4]);
  const table = argument([6, 4]);
  const rotated = heads.rmsNorm({ weight: weight(4), eps: 1e-6 }).rope(table, table);
  assert.deepEqual(operations([after(FUSE, rotated)]), ["rms_norm_rope"]);

  const image = argument([1, 4, 4, 8]);
  const convolved = image.groupNorm({ groups: 2, eps: 1e-6 }).silu().upsampleNearest(2)
    .conv2d(weight(8, 8, 3, 3), { bias: weight(8), padding: 1 }).add(argument([1, 8, 8, 8]));
  const fused = after(FUSE, convolved);
  assert.deepEqual(operations([fused]), ["group_norm", "conv"]);
  assert.equal(fused.params.upsample, 2);
});

Deno.test("what stands around norms and convolutions of videos is a part of them", () => {
  const [video, before] = [argument([1, 4, 8, 8, 16]), argument([1, 2, 8, 8, 16])];
  const grid = argument([1, 2, 4, 4, 32]);
  const [scale, shift] = grid.chunk(2);
  const y = video.groupNorm({ groups: 4, weight: weight(16), bias: weight(16), eps: 1e-6, scale, shift }).silu()
    .conv3d(weight(16, 16, 3, 3, 3), { bias: weight(16), cache: before, padding: 1 }).add(video);
  const fused = after(FUSE, y);
  assert.deepEqual(operations([fused]), ["slice", "slice", "group_norm", "conv"]);
  assert.deepEqual(fused.inputs.slice(3), [video.node, before.node]);
  assert.deepEqual(fused.shape, video.shape);
  const step = compileGraph([y.node]).stages.at(-1)!;
  assert.deepEqual(step.calls.map(({ kernel }) => kernel), ["group_norm", "conv"], "nothing is copied");
});

Deno.test("norms and convolutions of videos refuse what does not fit", () => {
  const video = argument([1, 5, 8, 8, 16]);
  const taps = weight(16, 16, 3, 3, 3);
  const cache = (...shape: number[]) => () => video.conv3d(taps, { cache: argument(shape), padding: 1 });
  assert.throws(cache(1, 1, 8, 8, 16), /takes a cache of \[1, 2, 8, 8, 16\]/);
  assert.throws(cache(1, 2, 8, 8, 8), /takes a cache/);
  assert.throws(() => video.conv3d(weight(16, 16, 1, 3, 3), { cache: argument([1, 0, 8, 8, 16]) }), /takes a cache/);
  assert.throws(() => argument([1, 8, 8, 16]).conv3d(taps), /takes/);
  const modulated = (firstApart: boolean, ...shape: number[]) => {
    const grid = argument(shape);
    return () => video.groupNorm({ groups: 4, eps: 1e-6, scale: grid, shift: grid, firstApart });
  };
  modulated(true, 1, 3, 4, 4, 16)();
  modulated(false, 1, 5, 8, 2, 16)();
  assert.throws(modulated(false, 1, 3, 4, 4, 16), /divide/);
  assert.throws(modulated(true, 1, 1, 4, 4, 16), /the first frame apart/);
  assert.throws(modulated(false, 1, 5, 3, 4, 16), /divide/);
  assert.throws(() => video.groupNorm({ groups: 4, eps: 1e-6, scale: video }), /together/);
});

Deno.test("layers of selected rows are computed for all rows before the steps", () => {
  const rows = argument([20, 8]);
  const index = argument([1], { rate: RATE.step, dtype: "i32" });
  const hoisted = after(HOIST, embedding(index, rows).silu().linear(weight(16, 8)));
  assert.deepEqual(operations([hoisted]), ["unary", "linear", "embedding"]);
  assert.equal(hoisted.inputs[1]!.rate, RATE.run);
  const words = embedding(argument([3], { dtype: "i32" }), weight(100, 8)).linear(weight(16, 8));
  assert.deepEqual(operations([after(HOIST, words)]), ["embedding", "linear"], "a vocabulary is not multiplied out");
});

Deno.test("linear layers of one input become one, in parts of bounded size", () => {
  const x = argument([1, 5, 8]);
  const outputs = [16, 24, 8].map((n) => x.linear(weight(n, 8), weight(n)).node);
  const joined = joinLinears(outputs, { make: node });
  const result = rewrite(outputs, SIMPLIFY, joined).outputs;
  assert.deepEqual(operations(result).filter((op) => op === "linear"), ["linear"]);
  assert.deepEqual(result.map((n) => n.params.start), [0, 16, 40]);
  const wide = argument([1, 5, 4096]);
  const large = [0, 1, 2].map(() => wide.linear(weight(2048, 4096)).node);
  const parts = new Set([...joinLinears(large, { make: node }).values()].map((n) => n.inputs[0]));
  assert.equal(parts.size, 1, "three of 32 MiB: two are joined, the third stays");
});

Deno.test("equal slices of two results are a slice of both", () => {
  const [a, b] = [argument([1, 2, 12]).silu(), argument([1, 3, 12]).silu()];
  const part = (t: Tensor) => t.slice(-1, 4, 8).reshape(1, t.size(1), 2, 2);
  const gathered = after(GATHER_VIEWS, concat([part(a), part(b)], 1));
  assert.deepEqual(operations([gathered]), ["unary", "unary", "concat", "slice", "reshape"]);
  assert.deepEqual(gathered.shape, [1, 5, 2, 2]);
});

Deno.test("kernels get packed weights and vectors in f32", () => {
  const y = argument([1, 5, 8], { dtype: "bf16" }).linear(weight(16, 8).cast("f32"), weight(16));
  const legal = after(LEGALIZE, y);
  assert.deepEqual(operations([legal]), ["pack_linear", "cast", "linear"]);
});

Deno.test("attention over heads takes no copies: producers write where the next kernel reads", () => {
  const heads = () => argument([1, 6, 2, 4]).silu().transpose(1, 2);
  const joined = attention(heads(), heads(), heads()).transpose(1, 2).reshape(1, 6, 8);
  const { instructions } = lower([concat([joined, argument([1, 6, 5]).silu()], -1).node], new Set());
  assert.deepEqual(instructions.map((i) => i.kernel), ["unary", "unary", "unary", "attention", "unary"]);
});

Deno.test("a part that stands in a concat twice, a leaf in a concat, an output that is a view", () => {
  const x = argument([2, 3]);
  const y = x.silu();
  const both = lower([concat([y, y, x], 0).node], new Set());
  assert.deepEqual(both.instructions.map((i) => i.kernel), ["unary", "copy", "copy"]);
  const view = lower([x.transpose(0, 1).node, x.node, y.node, y.transpose(0, 1).node], new Set());
  assert.equal(view.externals.filter((e) => e.written).length, 4);
});

Deno.test("a step of Flux is one program without a copy, and its kernels are counted", () => {
  const { stages } = compileGraph(fluxGraph(SIZES));
  const step = stages.at(-1)!;
  assert.equal(stages.length, 3);
  // Two norms and four linear layers a stream (q, k and v are one), four norms with rope and one attention a double
  // block; norm, three linear layers, two norms with rope and attention a single one; the ends and the modulations.
  const ceiling = SIZES.double * 17 + SIZES.single * 7 + 4;
  assert.ok(step.kernels <= ceiling, `${step.kernels} kernels are more than ${ceiling}`);
  const dumped: string[] = [];
  compileGraph(fluxGraph(SIZES), (title, text) => dumped.push(`${title}\n${text()}`));
  assert.ok(!/ = copy\(/.test(dumped.at(-1)!), dumped.at(-1));
  assert.deepEqual(dumped.map((d) => d.split("\n")[0]), [
    "recorded",
    "simplified",
    "fused",
    "joined",
    "legal",
    "program of rate 0",
    "program of rate 1",
    "program of rate 2",
  ]);
});

Deno.test("attention's memory grows linearly with the tokens", () => {
  const bytes = (image: number) => compileGraph(fluxGraph({ ...SIZES, image })).stages.at(-1)!.arenaBytes;
  assert.ok(bytes(8192) < 2.1 * bytes(4096));
});
