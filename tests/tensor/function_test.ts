import assert from "node:assert/strict";
import { NativeBuffer, NativeProgram, runProgram } from "../../ffi/native.ts";
import { NativeError } from "../../lib/errors.ts";
import { compileGraph } from "../../lib/graph/compile.ts";
import { byteSize } from "../../lib/graph/dtypes.ts";
import { lower } from "../../lib/graph/lower.ts";
import { type Node, topological } from "../../lib/graph/node.ts";
import { planArena } from "../../lib/graph/plan.ts";
import { assemble } from "../../lib/graph/program.ts";
import { rewrite } from "../../lib/graph/rewrite.ts";
import { LEGALIZE } from "../../lib/graph/rules.ts";
import { Parameter } from "../../lib/nn/module.ts";
import { Device } from "../../lib/tensor/device.ts";
import { compileFunction } from "../../lib/tensor/function.ts";
import { Generator } from "../../lib/tensor/random.ts";
import { toArray } from "../../lib/tensor/realize.ts";
import { arrayOf, tensor } from "../../lib/tensor/source.ts";
import { concat, type Tensor } from "../../lib/tensor/tensor.ts";
import { fluxGraph } from "../graph/graphs.ts";

const values = async (t: Tensor) => [...await toArray<"f32">(t)];

Deno.test("eager tensors have values: arithmetic, broadcasting, views", async () => {
  const a = tensor([1, 2, 3, 4, 5, 6], { shape: [2, 3] });
  const b = tensor([10, 20, 30]);
  assert.deepEqual(await values(a.add(b)), [11, 22, 33, 14, 25, 36]);
  assert.deepEqual(await values(a.transpose(0, 1)), [1, 4, 2, 5, 3, 6]);
  assert.deepEqual(await values(a.slice(1, 1).mul(2).sub(1)), [3, 5, 9, 11]);
  assert.deepEqual(await values(a.sum()), [6, 15]);
  assert.deepEqual(await values(a.mean(0)), [2.5, 3.5, 4.5]);
  assert.deepEqual(await values(concat([a, a.neg()], 0).max()), [3, 6, -1, -4]);
  assert.deepEqual(await values(a.matmul(a.transpose(0, 1))), [14, 32, 32, 77]);
  assert.deepEqual(await values(a), [1, 2, 3, 4, 5, 6]);
  assert.deepEqual(await values(a.reshape(3, 2).expand(2, 3, 2).slice(0, 1).squeeze(0)), [1, 2, 3, 4, 5, 6]);
});

Deno.test("tensors without elements have no values", async () => {
  const none = tensor([], { shape: [0, 3] });
  assert.deepEqual(await values(none.add(1)), []);
  assert.deepEqual(await values(concat([none, tensor([1, 2, 3], { shape: [1, 3] })], 0)), [1, 2, 3]);
});

Deno.test("16-bit floats are rounded to nearest even", async () => {
  const bits = await toArray<"bf16">(tensor([1, 1.00390625, 3.0e38]).cast("bf16"));
  assert.deepEqual([...bits], [0x3f80, 0x3f80, 0x7f62]);
  const half = await toArray<"f16">(tensor([1, 65504, -2]).cast("f16"));
  assert.deepEqual([...half], [0x3c00, 0x7bff, 0xc000]);
});

Deno.test("a function's body runs once for each combination of shapes", async () => {
  let recorded = 0;
  const double = compileFunction(({ x }: { x: Tensor }) => {
    recorded++;
    return { y: x.add(x) };
  });
  for (const data of [[1, 2], [3, 4], [5, 6, 7], [8, 9]]) {
    const { y } = await double.run({ x: tensor(data) });
    assert.deepEqual(await values(y), data.map((v) => 2 * v));
  }
  assert.equal(recorded, 2);
  assert.equal(double.inspect({ x: tensor([1, 2]) }).kernels, 1);
});

Deno.test("results are arguments of other calls, and are not overwritten by later ones", async () => {
  const step = compileFunction(({ x }: { x: Tensor }) => ({ y: x.mul(2) }));
  const results = [tensor([1])];
  for (let i = 0; i < 4; i++) results.push((await step.run({ x: results.at(-1)! })).y);
  assert.deepEqual((await Promise.all(results.map(values))).flat(), [1, 2, 4, 8, 16]);
});

Deno.test("a state in one place is written when nothing reads it any more", async () => {
  const device = await Device.default();
  // The new state comes first, and what reads the old one last.
  const step = compileFunction(({ x, state }: { x: Tensor; state: Tensor }) => {
    const shifted = concat([state.slice(0, 1), x], 0);
    return { state: shifted, sum: x.add(1).sum(0).add(state.sum(0)) };
  }, { inPlace: true });
  let state = tensor([1, 2, 3]);
  const buffer = device.bufferOf(state.node);
  const sums: number[] = [];
  for (const x of [10, 20, 30]) {
    const results = await step.run({ x: tensor([x]), state });
    state = results.state;
    assert.equal(device.bufferOf(state.node), buffer);
    sums.push((await toArray<"f32">(results.sum))[0]!);
  }
  assert.deepEqual(sums, [11 + 6, 21 + 15, 31 + 33]);
  assert.deepEqual([...await toArray<"f32">(state)], [10, 20, 30]);
});

Deno.test("what follows from arguments that do not vary is computed again only when they are others", async () => {
  const weight = tensor([1, 2, 3, 4], { shape: [2, 2] });
  const f = compileFunction(
    ({ prompt, x }: { prompt: Tensor; x: Tensor }) => ({ y: x.add(prompt.matmul(weight).silu().exp()) }),
    { varying: ["x"] },
  );
  const all = compileFunction(({ prompt, x }: { prompt: Tensor; x: Tensor }) => ({
    y: x.add(prompt.matmul(weight).silu().exp()),
  }));
  const prompts = [[1, 0], [0, 1]].map((p) => tensor(p, { shape: [1, 2] }));
  for (const prompt of [...prompts, ...prompts, prompts[1]!]) {
    for (const x of [tensor([1, 2], { shape: [1, 2] }), tensor([5, 6], { shape: [1, 2] })]) {
      assert.deepEqual(await values((await f.run({ prompt, x })).y), await values((await all.run({ prompt, x })).y));
    }
  }
  const x = tensor([1, 2], { shape: [1, 2] });
  assert.equal(f.inspect({ prompt: prompts[0]!, x }).kernels, 1);
});

Deno.test("a parameter that was not loaded is named", async () => {
  const parameter = new Parameter(2, 2);
  await assert.rejects(toArray(tensor([1, 2], { shape: [1, 2] }).linear(parameter.tensor)), (e) => {
    assert.ok(e instanceof NativeError);
    assert.match(e.message, /\[2, 2\] has no values: load a checkpoint/);
    return true;
  });
});

Deno.test("a call that was aborted throws the signal's reason", async () => {
  const f = compileFunction(({ x }: { x: Tensor }) => ({ y: x.silu() }));
  const signal = AbortSignal.abort(new Error("enough"));
  await assert.rejects(f.run({ x: tensor([1]) }, { signal }), /enough/);
});

/** Values for every leaf of a graph; small ones, so that a deep graph stays finite. */
function leafValues(nodes: readonly Node[]): Map<Node, NativeBuffer> {
  const generator = new Generator(3);
  const buffers = new Map<Node, NativeBuffer>();
  for (const n of topological(nodes).filter((n) => n.op === "leaf")) {
    let bytes: Uint8Array<ArrayBuffer>;
    if (n.dtype === "i32") bytes = new Uint8Array(new Int32Array(n.shape.reduce((a, b) => a * b, 1)).fill(3).buffer);
    else {
      const data = generator.randn(n.shape, { dtype: "f32" }) as Float32Array<ArrayBuffer>;
      if (n.dtype === "f32") bytes = new Uint8Array(data.buffer);
      else {bytes = new Uint8Array(
          Uint16Array.from(new Uint32Array(data.map((v) => 0.2 * v).buffer), (v) => v >>> 16).buffer,
        );}
    }
    buffers.set(n, NativeBuffer.from(bytes));
  }
  return buffers;
}

/** Lowers and runs a graph as it is. */
async function runGraph(outputs: readonly Node[], leaves: ReadonlyMap<Node, NativeBuffer>, device: Device) {
  const lowered = lower(outputs, new Set());
  using program = new NativeProgram(assemble(lowered, planArena(lowered.instructions)));
  const written = new Map<Node, NativeBuffer>();
  const buffers = lowered.externals.map((storage) => {
    if (!storage.written) return leaves.get(storage.external!)!;
    const buffer = NativeBuffer.create(storage.size * byteSize(storage.dtype));
    written.set(storage.external!, buffer);
    return buffer;
  });
  await runProgram({ device: device.native, program }, buffers);
  return outputs.map((n) => arrayOf(written.get(n)!.read(), "f32"));
}

Deno.test("a graph computes the same before and after all rewrites, on every level", async () => {
  const recorded = fluxGraph({ dim: 64, heads: 2, double: 2, single: 2, text: 5, image: 9 });
  const leaves = leafValues(recorded);
  using reference = await Device.open({ level: "reference", threads: 1 });
  const [plain] = await runGraph(rewrite(recorded, LEGALIZE).outputs, leaves, reference);
  assert.ok(plain!.every(Number.isFinite));
  for (const level of await Device.levels()) {
    using device = await Device.open({ level });
    const { outputs, stages } = compileGraph(recorded);
    const known = new Map<Node, NativeBuffer>(leaves);
    for (const stage of stages) {
      using program = new NativeProgram(stage.assemble()!);
      const buffers = stage.buffers.map((storage) => {
        const found = known.get(storage.external!);
        if (found && !storage.written) return found;
        const made = NativeBuffer.create(storage.size * byteSize(storage.dtype));
        known.set(storage.external!, made);
        return made;
      });
      await runProgram({ device: device.native, program }, buffers);
    }
    const fast = arrayOf(known.get(outputs[0]!)!.read(), "f32");
    let [error, norm] = [0, 0];
    plain!.forEach((v, i) => {
      error += (v - fast[i]!) ** 2;
      norm += v ** 2;
    });
    assert.ok(Math.sqrt(error / norm) < 1e-5, `${level}: relative error ${Math.sqrt(error / norm)}`);
  }
});
