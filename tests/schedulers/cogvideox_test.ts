import assert from "node:assert/strict";
import { ConfigError } from "../../lib/errors.ts";
import { CogVideoXDDIMScheduler } from "../../lib/schedulers/ddim_cogvideox.ts";
import { CogVideoXDPMScheduler } from "../../lib/schedulers/dpm_cogvideox.ts";
import { f32ToBf16Bits } from "../../lib/tensor/convert.ts";
import { compileFunction } from "../../lib/tensor/function.ts";
import { Generator } from "../../lib/tensor/random.ts";
import { toArray } from "../../lib/tensor/realize.ts";
import { tensor } from "../../lib/tensor/source.ts";
import type { Tensor } from "../../lib/tensor/tensor.ts";
// What diffusers 0.39 computes, by bench/peers/cogvideox_cases.py.
import diffusers from "./cogvideox_cases.json" with { type: "json" };

const { cases, trailing } = diffusers;
const CLASSES = { CogVideoXDDIMScheduler, CogVideoXDPMScheduler };

/** Whether numbers are equal within some last places of float32. */
function close(actual: ArrayLike<number>, expected: readonly number[], what: string): void {
  assert.equal(actual.length, expected.length, what);
  for (let i = 0; i < expected.length; i++) {
    const bound = 4e-6 * Math.max(1, Math.abs(expected[i]!));
    assert.ok(Math.abs(actual[i]! - expected[i]!) <= bound, `${what}: ${actual[i]}, not ${expected[i]}`);
  }
}

for (const { scheduler: name, config, steps, timesteps, alphas, first, rows } of cases) {
  const { prediction_type = "epsilon", beta_schedule = "scaled_linear" } = config;
  const schedule = "trained_betas" in config ? "trained betas" : beta_schedule;
  Deno.test(`${name} equals diffusers over ${steps} steps with ${schedule}, ${prediction_type}`, () => {
    const scheduler = CLASSES[name as keyof typeof CLASSES].fromConfig({ ...config, _class_name: name });
    scheduler.setTimesteps({ numInferenceSteps: steps });
    assert.deepEqual([...scheduler.timesteps], timesteps);
    const stride = Math.max(1, Math.floor(scheduler.alphasCumprod.length / 8));
    close(scheduler.alphasCumprod.filter((_, i) => i % stride === 0), alphas, "alphasCumprod");
    let sample: Float32Array = Float32Array.from(first);
    let old: Float32Array | undefined;
    for (const [index, { output, draws, sample: expected }] of rows.entries()) {
      const predicted = Float32Array.from(output);
      const left = draws.map((draw) => Float32Array.from(draw));
      const step = scheduler instanceof CogVideoXDPMScheduler
        ? scheduler.step(predicted, sample, {
          index,
          noise: scheduler.noise(index, () => left.shift()!),
          oldPredOriginalSample: old,
        })
        : scheduler.step(predicted, sample, { index });
      if (scheduler instanceof CogVideoXDPMScheduler) assert.equal(left.length, 0, `draws of step ${index}`);
      close(step.prevSample, expected, `step ${index}`);
      // The next step starts where diffusers' does: what is compared is each step.
      [sample, old] = [Float32Array.from(expected), step.predOriginalSample];
    }
  });
}

Deno.test("trailing timesteps are NumPy's for any number of steps", () => {
  const scheduler = new CogVideoXDDIMScheduler({ timestepSpacing: "trailing" });
  for (const [i, [count, sum]] of trailing.entries()) {
    scheduler.setTimesteps({ numInferenceSteps: i + 1 });
    assert.deepEqual([scheduler.timesteps.length, scheduler.timesteps.reduce((a, b) => a + b, 0)], [count, sum]);
  }
});

const random = (seed: number) => new Generator(seed).randn([24]);

for (const predictionType of ["epsilon", "sample", "v_prediction"] as const) {
  for (const dtype of ["f32", "bf16"] as const) {
    Deno.test(`a recorded step is the step itself: ${predictionType} of latents in ${dtype}`, async () => {
      const config = { predictionType, timestepSpacing: "trailing" } as const;
      const ddim = new CogVideoXDDIMScheduler(config);
      const dpm = new CogVideoXDPMScheduler(config);
      const bits = (x: Float32Array<ArrayBuffer>) => dtype === "f32" ? x : f32ToBf16Bits(x);
      const values = async (x: Tensor) => await toArray<"f32">(x.cast("f32"));
      const latents = (seed: number) => tensor(bits(random(seed)), { dtype });
      const compiledDdim = compileFunction((inputs: Record<"modelOutput" | "sample" | "coefficients", Tensor>) => ({
        ...ddim.record(inputs),
      }));
      const compiledDpm = compileFunction((
        inputs: Record<"modelOutput" | "sample" | "coefficients" | "oldPredOriginalSample" | "noise", Tensor>,
      ) => ({ ...dpm.record(inputs) }));
      for (const scheduler of [ddim, dpm]) scheduler.setTimesteps({ numInferenceSteps: 5 });
      for (let index = 0; index < 5; index++) {
        const [modelOutput, sample, noise, oldPredOriginalSample] = [random(1), latents(2), latents(3), random(4)];
        const given = { modelOutput: tensor(modelOutput), sample };
        const plain = ddim.step(modelOutput, await values(sample), { index });
        const recorded = await compiledDdim.run({ ...given, coefficients: tensor(ddim.coefficients(index)) });
        const second = dpm.step(modelOutput, await values(sample), {
          index,
          noise: await values(noise),
          oldPredOriginalSample,
        });
        const recordedSecond = await compiledDpm.run({
          ...given,
          noise,
          coefficients: tensor(dpm.coefficients(index)),
          // Before the first step there is no prediction.
          oldPredOriginalSample: tensor(index === 0 ? new Float32Array(24) : oldPredOriginalSample),
        });
        for (const [actual, expected] of [[recorded, plain], [recordedSecond, second]] as const) {
          const [clean, after] = [await values(actual.predOriginalSample), await values(actual.prevSample)];
          assert.equal(actual.prevSample.dtype, dtype);
          if (dtype === "f32") {
            assert.deepEqual([clean, after], [expected.predOriginalSample, expected.prevSample], `step ${index}`);
          } else {
            for (const [i, x] of expected.prevSample.entries()) {
              assert.ok(Math.abs(after[i]! - x) < 0.03 * Math.max(1, Math.abs(x)), `step ${index}: ${after[i]}, ${x}`);
            }
          }
        }
      }
    });
  }
}

Deno.test("what cannot be used is refused by its name", () => {
  const wrong: [string, unknown][] = [
    ["_class_name", "DDIMScheduler"],
    ["num_train_timesteps", 0],
    ["beta_start", "0.1"],
    ["beta_end", 1],
    ["beta_schedule", "cosine"],
    ["trained_betas", [0.1, "0.2"]],
    ["trained_betas", [0.1, 0.2]],
    ["prediction_type", "flow"],
    ["timestep_spacing", "even"],
    ["steps_offset", 0.5],
    ["snr_shift_scale", 0],
    ["set_alpha_to_one", 1],
  ];
  for (const scheduler of Object.values(CLASSES)) {
    for (const [key, value] of wrong) {
      assert.throws(() => scheduler.fromConfig({ [key]: value }, { file: "scheduler_config.json" }), (error) => {
        assert.ok(error instanceof ConfigError, key);
        assert.deepEqual([error.key, error.file], [key, "scheduler_config.json"]);
        return error.message.includes(key) && error.message.includes(JSON.stringify(value));
      });
    }
    const made = scheduler.fromConfig({ steps_offset: 1, clip_sample: true, unknown: 1 });
    for (const numInferenceSteps of [0, 1001, 2.5, NaN]) {
      assert.throws(() => made.setTimesteps({ numInferenceSteps }), RangeError);
    }
    // 999 + 1 is no timestep.
    assert.throws(() => made.setTimesteps({ numInferenceSteps: 1000 }), /steps_offset/);
    made.setTimesteps({ numInferenceSteps: 4 });
    for (const index of [-1, 4, 0.5]) assert.throws(() => made.coefficients(index), RangeError);
  }
  const ddim = new CogVideoXDDIMScheduler();
  assert.throws(() => ddim.step(new Float32Array(3), new Float32Array(4), { index: 0 }), TypeError);
  const dpm = new CogVideoXDPMScheduler();
  const four = new Float32Array(4);
  assert.throws(() => dpm.step(four, four, { index: 0, noise: new Float32Array(3) }), TypeError);
  assert.throws(() => dpm.step(four, four, { index: 1, noise: four }), /the one before/);
});
