import { deepStrictEqual, ok, strictEqual, throws } from "node:assert/strict";
import { ConfigError } from "../../lib/errors.ts";
import { calculateShift, FlowMatchEulerDiscreteScheduler } from "../../lib/schedulers/flow_match_euler_discrete.ts";
import { linspace } from "../../lib/schedulers/linspace.ts";
import { Generator } from "../../lib/tensor/random.ts";
import { openSafetensors, readTensor } from "../../lib/tensor/safetensors.ts";
// What diffusers 0.39's own set_timesteps gives, evaluated with NumPy 2 and SciPy.
import cases from "./flow_match_euler_discrete_cases.json" with { type: "json" };

const goldens = openSafetensors("tests/fixtures/schedulers/cases.safetensors");
const f32 = (name: string) => new Float32Array(readTensor(goldens, name).buffer);
const int = (name: string) => Number(new BigInt64Array(readTensor(goldens, name).buffer)[0]);

const FLUX_DEV = { use_dynamic_shifting: true, shift: 3 };
const FLUX_SCHNELL = { use_dynamic_shifting: false, shift: 1 };

for (
  const [name, config] of [
    ["flow_match_euler_dev_4096_28", FLUX_DEV],
    ["flow_match_euler_dev_64_20", FLUX_DEV],
    ["flow_match_euler_schnell_4", FLUX_SCHNELL],
  ] as const
) {
  Deno.test(`FlowMatchEulerDiscreteScheduler equals diffusers bit by bit: ${name}`, () => {
    const scheduler = FlowMatchEulerDiscreteScheduler.fromConfig(config);
    const steps = int(`${name}.in.steps`);
    scheduler.setTimesteps({
      numInferenceSteps: steps,
      sigmas: linspace(1, 1 / steps, { num: steps }),
      mu: calculateShift(int(`${name}.in.image_seq_len`), scheduler.config),
    });
    deepStrictEqual(scheduler.sigmas, f32(`${name}.out.sigmas`));
    deepStrictEqual(scheduler.timesteps, f32(`${name}.out.timesteps`));

    let latents: Float32Array = f32(`${name}.in.latents`);
    const size = latents.length;
    const outputs = f32(`${name}.in.model_outputs`);
    const expected = f32(`${name}.out.latents`);
    for (let index = 0; index < outputs.length / size; index++) {
      latents = scheduler.step(outputs.subarray(index * size, (index + 1) * size), latents, { index });
      deepStrictEqual([...latents], [...expected.subarray(index * size, (index + 1) * size)]);
    }
  });
}

for (const { name, config, options, sigmas, timesteps } of cases) {
  Deno.test(`FlowMatchEulerDiscreteScheduler lays out as diffusers does: ${name}`, () => {
    const scheduler = FlowMatchEulerDiscreteScheduler.fromConfig(config);
    scheduler.setTimesteps({
      numInferenceSteps: options.num_inference_steps,
      sigmas: options.sigmas,
      timesteps: options.timesteps,
      mu: options.mu,
    });
    deepStrictEqual(scheduler.sigmas, Float32Array.from(sigmas));
    deepStrictEqual(scheduler.timesteps, Float32Array.from(timesteps));
  });
}

Deno.test("FlowMatchEulerDiscreteScheduler starts as the training schedule", () => {
  const { sigmas, timesteps } = new FlowMatchEulerDiscreteScheduler({ shift: 3 });
  strictEqual(sigmas.length, 1000);
  strictEqual(sigmas[0], 1);
  strictEqual(timesteps[0], 1000);
  ok(sigmas.every((sigma, i) => i === 0 || sigma < sigmas[i - 1]!));
});

Deno.test("FlowMatchEulerDiscreteScheduler falls from noise to data over any number of steps", () => {
  const scheduler = new FlowMatchEulerDiscreteScheduler({ useDynamicShifting: true });
  for (const steps of [1, 2, 3, 17, 50, 999]) {
    scheduler.setTimesteps({ numInferenceSteps: steps, mu: 0.8 });
    strictEqual(scheduler.timesteps.length, steps);
    strictEqual(scheduler.sigmas[0], 1);
    strictEqual(scheduler.sigmas[steps], 0);
    let sum = 0;
    for (let i = 0; i < steps; i++) {
      ok(scheduler.stepSize(i) < 0);
      sum += scheduler.stepSize(i);
    }
    ok(Math.abs(sum + 1) < 1e-5, `${sum}`);
  }
});

Deno.test("FlowMatchEulerDiscreteScheduler samples stochastically with the generator's noise", () => {
  const scheduler = FlowMatchEulerDiscreteScheduler.fromConfig({ stochastic_sampling: true });
  scheduler.setTimesteps({ numInferenceSteps: 2 });
  const output = Float32Array.from({ length: 20 }, (_, i) => i / 8);
  const sample = Float32Array.from({ length: 20 }, (_, i) => 1 - i / 4);
  const noise = new Generator(3).randn([20]);
  const [sigma, next] = scheduler.sigmas as unknown as [number, number];
  const stepped = scheduler.step(output, sample, { index: 0, generator: new Generator(3) });
  for (let i = 0; i < 20; i++) {
    const expected = (1 - next) * (sample[i]! - sigma * output[i]!) + next * noise[i]!;
    ok(Math.abs(stepped[i]! - expected) < 1e-6);
  }
  throws(() => scheduler.step(output, sample, { index: 0 }), TypeError);
});

Deno.test("calculateShift draws the line of Flux", () => {
  strictEqual(calculateShift(256), 0.5);
  ok(Math.abs(calculateShift(4096) - 1.15) < 1e-15);
  ok(Math.abs(calculateShift(100, { baseImageSeqLen: 0, maxImageSeqLen: 200, baseShift: 1, maxShift: 3 }) - 2) < 1e-15);
});

Deno.test("linspace ends exactly where it should", () => {
  deepStrictEqual([...linspace(1, 0.1, { num: 1 })], [1]);
  deepStrictEqual([...linspace(0, 1, { num: 5 })], [0, 0.25, 0.5, 0.75, 1]);
  deepStrictEqual([...linspace(2, 2, { num: 3 })], [2, 2, 2]);
  for (let num = 2; num < 60; num++) strictEqual(linspace(1, 1 / num, { num })[num - 1], 1 / num);
});

Deno.test("setTimesteps refuses what diffusers refuses", () => {
  const still = new FlowMatchEulerDiscreteScheduler();
  for (const numInferenceSteps of [0, -1, NaN, 2.5, Infinity]) {
    throws(() => still.setTimesteps({ numInferenceSteps }), RangeError);
  }
  throws(() => still.setTimesteps({}), TypeError);
  throws(() => still.setTimesteps({ sigmas: [] }), RangeError);
  throws(() => still.setTimesteps({ sigmas: [1, NaN] }), { name: "RangeError", message: /sigmas with NaN at index 1/ });
  throws(() => still.setTimesteps({ numInferenceSteps: 3, sigmas: [1, 0.5] }), RangeError);
  throws(() => still.setTimesteps({ sigmas: [1, 0.5], timesteps: [1000] }), RangeError);
  const dynamic = new FlowMatchEulerDiscreteScheduler({ useDynamicShifting: true });
  throws(() => dynamic.setTimesteps({ numInferenceSteps: 4 }), { name: "TypeError", message: /mu/ });
  throws(() => dynamic.setTimesteps({ numInferenceSteps: 4, mu: NaN }), RangeError);
  const logarithmic = new FlowMatchEulerDiscreteScheduler({ useExponentialSigmas: true });
  throws(() => logarithmic.setTimesteps({ sigmas: [1, 0] }), RangeError);

  still.setTimesteps({ numInferenceSteps: 4 });
  for (const index of [-1, 4, 0.5, NaN]) throws(() => still.stepSize(index), RangeError);
  throws(() => still.step(new Float32Array(3), new Float32Array(4), { index: 0 }), TypeError);
});

Deno.test("fromConfig names the field that is wrong", () => {
  const wrong: [string, unknown][] = [
    ["_class_name", "DDIMScheduler"],
    ["shift", "3"],
    ["shift", 0],
    ["use_dynamic_shifting", 1],
    ["num_train_timesteps", 0],
    ["num_train_timesteps", 1e9],
    ["shift_terminal", 1],
    ["time_shift_type", "cubic"],
  ];
  for (const [key, value] of wrong) {
    throws(
      () => FlowMatchEulerDiscreteScheduler.fromConfig({ [key]: value }, { file: "scheduler_config.json" }),
      (error) =>
        error instanceof ConfigError && error.key === key && error.file === "scheduler_config.json" &&
        error.message.includes(key) && error.message.includes(JSON.stringify(value)),
      key,
    );
  }
  throws(
    () => FlowMatchEulerDiscreteScheduler.fromConfig({ use_karras_sigmas: true, use_beta_sigmas: true }),
    (error) => error instanceof ConfigError && error.key === "use_beta_sigmas",
  );
  for (const json of [null, [], "x", 3]) throws(() => FlowMatchEulerDiscreteScheduler.fromConfig(json), ConfigError);
});

Deno.test("fromConfig reads the default checkpoint's own file", () => {
  const file = "models/shapes-flux/scheduler/scheduler_config.json";
  const { config } = FlowMatchEulerDiscreteScheduler.fromConfig(JSON.parse(Deno.readTextFileSync(file)), { file });
  strictEqual(config.useDynamicShifting, true);
  strictEqual(config.shiftTerminal, null);
});
