#!/usr/bin/env -S deno run --no-prompt --allow-read=models,kernels/target/release,out --allow-write=out --allow-ffi=kernels/target/release
/** Chooses the fastest scheme for each layer, and keeps the choice in a file: `recipes/autoquant.ts [DB]`. */

import { autoquant, FluxPipeline, formatTable, QuantizationPlan } from "../mod.ts";

const prompts = ["a large blue ring on a black background", "a green star left of a red square on a white background"];
const run = { seed: 5, numInferenceSteps: 20 };

// Load.
const pipe = await FluxPipeline.load("models/shapes-flux");

// Choose: what layers read is seen on the prompts; each keeps its error so many dB below its output.
const plan = await autoquant(pipe, { prompts, minSqnrDb: Number(Deno.args[0] ?? 30) });
console.log(formatTable(plan.table().map((row) => ({ ...row }))));
console.log(pipe.quantization);

// Keep the plan, and apply it on another day. Nothing is timed then.
await Deno.mkdir("out", { recursive: true });
await plan.save("out/plan.json");
const another = await FluxPipeline.load("models/shapes-flux");
(await QuantizationPlan.load("out/plan.json")).apply(another);

// Run.
const { images } = await another("a large red star on a navy background", run);
await images[0]!.save("out/autoquant.png");
