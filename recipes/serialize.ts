#!/usr/bin/env -S deno run --no-prompt --allow-read=models,kernels/target/release,out --allow-write=out --allow-ffi=kernels/target/release
/** Quantizes the demo, saves it, loads it again, and draws the same picture: `recipes/serialize.ts [SCHEME]`. */

import { describeQuantization, FluxPipeline, maxAbsDifference, quantize } from "../mod.ts";

const scheme = Deno.args[0] ?? "int8dq";
const folder = `out/shapes-flux-${scheme}`;
const prompt = "a large red star on a navy background";
const options = { seed: 5, numInferenceSteps: 20 };

// Load, and quantize.
const pipe = await FluxPipeline.load("models/shapes-flux");
quantize(pipe.transformer, scheme);
const before = await pipe(prompt, options);

// Save: safetensors in diffusers' layout. What was in the folder before is replaced as a whole.
await pipe.save(folder);

// Load. Weights are read as they are stored.
const again = await FluxPipeline.load(folder);
console.log(`${folder}: ${describeQuantization(again.transformer)}`);

// Draw the same picture.
const after = await again(prompt, options);
console.log(`largest difference: ${maxAbsDifference(before.images[0]!, after.images[0]!)}`);
await after.images[0]!.save("out/serialize.png");
