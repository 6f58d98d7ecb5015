#!/usr/bin/env -S deno run --no-prompt --allow-read=models,kernels/target/release,out --allow-write=out --allow-ffi=kernels/target/release
/** Chooses the fastest scheme of each layer that keeps an error bound, and draws: `recipes/autoquant.ts [DB]`. */

import { autoquant, FluxPipeline, formatTable } from "../mod.ts";

const prompt = "a large red star on a navy background";
const pipe = await FluxPipeline.load("models/shapes-flux");

// Choose. Each layer's output keeps so many dB over its error, on what the layer reads while pictures are made.
const minSqnrDb = Number(Deno.args[0] ?? 30);
const plan = await autoquant(pipe, {
  prompts: [prompt, "a blue ring above a pink cross on a white background"],
  minSqnrDb,
});
console.log(formatTable(plan.table()));

// Keep. `QuantizationPlan.load(path)` and `plan.apply(pipe)` do the same on another day, and time nothing.
await Deno.mkdir("out", { recursive: true });
await plan.save("out/autoquant.json");

// Run.
const { images } = await pipe(prompt, { seed: 5, numInferenceSteps: 20 });
await images[0]!.save("out/autoquant.png");
