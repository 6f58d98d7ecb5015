import assert from "node:assert/strict";
import { callsOf } from "../../lib/compile/measure.ts";
import { problemOf, Tuner } from "../../lib/compile/tuner.ts";
import { TuningFile } from "../../lib/compile/tuning.ts";
import { leaf, RATE } from "../../lib/graph/node.ts";
import { Device } from "../../lib/tensor/device.ts";
import { Tensor } from "../../lib/tensor/tensor.ts";
import { withFolder } from "../folder.ts";

const device = await Device.open();
const options = { device, workingSet: 1 << 20 };
const variants = new Map([["linear", 3]]);
const given = (...shape: number[]) => new Tensor(leaf(shape, { dtype: "f32", rate: RATE.step }));
const weight = (...shape: number[]) => new Tensor(leaf(shape, { dtype: "f32", rate: RATE.constant }));
const calls = (rows: number) =>
  callsOf([given(rows, 32).linear(weight(64, 32), weight(64)).gelu("tanh").softmax().node]);

Deno.test("a problem is a kernel, its sizes and what is fused into it, with rows up to a power of two", () => {
  const [linear] = calls(33);
  assert.equal(problemOf(linear!), "linear f32 m=64 n=64 k=32 act=gelu_tanh bias");
  assert.equal(problemOf(calls(64)[0]!), problemOf(linear!));
  assert.notEqual(problemOf(calls(65)[0]!), problemOf(linear!));
});

Deno.test("an unknown problem is measured once, and then known to this process and the next", async () => {
  await withFolder(async (folder) => {
    const open = async () => await TuningFile.open(`${folder}/tuning.json`, "here");
    const tuner = new Tuner(await open(), { variants, measures: true });
    await tuner.prepare([...calls(33), ...calls(40)], options);
    assert.equal(tuner.measured, 1);
    const { tried } = tuner;
    assert.deepEqual(tried.map(({ kernel, variant }) => [kernel, variant]), [["linear", 0], ["linear", 1], [
      "linear",
      2,
    ]]);
    assert.equal(tried.filter(({ chosen }) => chosen).length, 1);
    assert.ok(tried.every(({ microseconds }) => microseconds > 0));
    const chosen = tried.find((row) => row.chosen)!.variant;
    assert.equal(tuner.variantOf(calls(35)[0]!), chosen);

    const next = new Tuner(await open(), { variants, measures: true });
    await next.prepare(calls(50), options);
    assert.equal(next.measured, 0);
    assert.equal(next.variantOf(calls(50)[0]!), chosen);
    assert.deepEqual(next.tried, tried);
    await next.prepare(calls(3), options);
    assert.equal(next.measured, 1);
  });
});

Deno.test("what is not measured has no choice, nor has a kernel without variants", async () => {
  const tuner = new Tuner(await TuningFile.open(undefined, "here"), { variants, measures: false });
  await tuner.prepare(calls(33), options);
  assert.equal(tuner.measured, 0);
  assert.deepEqual(tuner.tried, []);
  assert.deepEqual(calls(33).map(tuner.variantOf), [undefined, undefined]);
});

Deno.test("times of another number of variants are measured again", async () => {
  const file = await TuningFile.open(undefined, "here");
  const [linear] = calls(8);
  file.set(problemOf(linear!), { chosen: 1, microseconds: [2, 1] });
  const tuner = new Tuner(file, { variants, measures: true });
  assert.equal(tuner.variantOf(linear!), undefined);
  await tuner.prepare([linear!], options);
  assert.equal(tuner.measured, 1);
});

Deno.test("a variant must be faster than the default by more than noise", async () => {
  const file = await TuningFile.open(undefined, "here");
  const tuner = new Tuner(file, { variants: new Map([["linear", 4]]), measures: true });
  await tuner.prepare(calls(16), options);
  const { tried } = tuner;
  const [first, ...others] = tried;
  const chosen = tried.find((row) => row.chosen)!;
  if (chosen !== first) assert.ok(chosen.microseconds < first!.microseconds);
  else assert.ok(others.every(({ microseconds }) => microseconds > 0.9 * first!.microseconds));
});
