import assert from "node:assert/strict";
import { callsOf } from "../../lib/compile/measure.ts";
import { problemOf, Tuner } from "../../lib/compile/tuner.ts";
import { TuningFile } from "../../lib/compile/tuning.ts";
import { leaf, RATE } from "../../lib/graph/node.ts";
import { Device } from "../../lib/tensor/device.ts";
import { attention, Tensor } from "../../lib/tensor/tensor.ts";
import { openEmulated } from "../emulated.ts";
import { withFolder } from "../folder.ts";

const device = await Device.open();
const options = { workingSet: 1 << 20 };
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

Deno.test("what a kernel's parameters do not tell of its sizes is told by its operands", () => {
  const attend = (queries: number, keys: number, width: number) => {
    const [q, k, v] = [queries, keys, keys].map((tokens) => given(1, 2, tokens, width));
    return problemOf(callsOf([attention(q!, k!, v!).node])[0]!);
  };
  assert.match(attend(5, 7, 16), /^attention f32 m=16 keys=8 d=16 /);
  assert.equal(new Set([attend(5, 7, 16), attend(5, 9, 16), attend(5, 7, 8), attend(9, 7, 16)]).size, 4);
  const convolve = (channels: number, filters: number) =>
    problemOf(callsOf([given(1, 4, 4, channels).conv2d(weight(filters, channels, 3, 3), { padding: 1 }).node])[0]!);
  assert.match(convolve(6, 5), /^conv f32 m=16 n=5 c=6 /);
  assert.equal(new Set([convolve(6, 5), convolve(5, 6), convolve(6, 6)]).size, 3);
});

Deno.test("an unknown problem is measured once, and then known to this process and the next", async () => {
  await withFolder(async (folder) => {
    const open = async () => await TuningFile.open(`${folder}/tuning.json`, "here");
    const tuner = new Tuner(await open(), { device, measures: true });
    await tuner.prepare([...calls(33), ...calls(40)], options);
    assert.equal(tuner.measured, 1);
    const { tried } = tuner;
    const ways = device.waysOf(calls(33)[0]!);
    assert.deepEqual(tried.map(({ kernel, variant }) => [kernel, variant]), ways.map((way) => ["linear", way]));
    assert.equal(tried.filter(({ chosen }) => chosen).length, 1);
    assert.ok(tried.every(({ microseconds }) => microseconds > 0));
    const chosen = ways.indexOf(tried.find((row) => row.chosen)!.variant);
    assert.equal(tuner.variantOf(calls(35)[0]!), chosen);

    const next = new Tuner(await open(), { device, measures: true });
    await next.prepare(calls(50), options);
    assert.equal(next.measured, 0);
    assert.equal(next.variantOf(calls(50)[0]!), chosen);
    assert.deepEqual(next.tried, tried);
    await next.prepare(calls(3), options);
    assert.equal(next.measured, 1);
  });
});

Deno.test("what is not measured has no choice, nor has a kernel without variants", async () => {
  const tuner = new Tuner(await TuningFile.open(undefined, "here"), { device, measures: false });
  await tuner.prepare(calls(33), options);
  assert.equal(tuner.measured, 0);
  assert.deepEqual(tuner.tried, []);
  assert.deepEqual(calls(33).map(tuner.variantOf), [undefined, undefined]);
});

Deno.test("a way that was not measured yet is measured, and one that a call lacks is not chosen", async () => {
  const file = await TuningFile.open(undefined, "here");
  const [linear] = calls(8);
  file.set(problemOf(linear!), { chosen: "of another call", microseconds: { "by shape": 2, "of another call": 1e-3 } });
  const tuner = new Tuner(file, { device, measures: true });
  assert.equal(tuner.variantOf(linear!), undefined);
  await tuner.prepare([linear!], options);
  assert.equal(tuner.measured, 1);
  const known = file.get(problemOf(linear!))!;
  assert.deepEqual(Object.keys(known.microseconds).sort(), [...device.waysOf(linear!), "of another call"].sort());
  assert.ok(device.waysOf(linear!).includes(known.chosen));
  await tuner.prepare([linear!], options);
  assert.equal(tuner.measured, 1);
});

Deno.test("a variant must be faster than the default by more than noise", async () => {
  const file = await TuningFile.open(undefined, "here");
  const tuner = new Tuner(file, { device, measures: true });
  await tuner.prepare(calls(16), options);
  const { tried } = tuner;
  const [first, ...others] = tried;
  const chosen = tried.find((row) => row.chosen)!;
  if (chosen !== first) assert.ok(chosen.microseconds < first!.microseconds);
  else assert.ok(others.every(({ microseconds }) => microseconds > 0.9 * first!.microseconds));
});

Deno.test("the CUDA library says which ways a call has, and they are timed on its device", async () => {
  using emulated = await openEmulated();
  if (!emulated) return;
  const [linear, softmax] = calls(33);
  const few = calls(3)[0]!;
  assert.deepEqual(emulated.waysOf(linear!), ["tiles of 64 rows", "tiles of 16 rows"]);
  // Its guess stands first.
  assert.deepEqual(emulated.waysOf(few), ["tiles of 16 rows", "tiles of 64 rows"]);
  assert.deepEqual(emulated.waysOf(softmax!), []);
  const tuner = new Tuner(await TuningFile.open(undefined, "here"), { device: emulated, measures: true });
  await tuner.prepare([...calls(3), ...calls(33)], options);
  assert.equal(tuner.measured, 2);
  const { tried } = tuner;
  assert.ok(tried.every(({ microseconds }) => microseconds > 0 && microseconds < 10e6));
  for (const call of [few, linear!]) {
    const chosen = tried.find((row) => row.problem === problemOf(call) && row.chosen)!;
    assert.equal(tuner.variantOf(call), emulated.waysOf(call).indexOf(chosen.variant));
  }
});
