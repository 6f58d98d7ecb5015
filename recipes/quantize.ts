#!/usr/bin/env -S deno run --no-prompt --allow-read=models,kernels/target/release,out --allow-write=out --allow-ffi=kernels/target/release
/** Quantizes the demo's transformer: what is saved, what was left alone and why: `recipes/quantize.ts [SCHEME]`. */

import { describeQuantization, FluxPipeline, formatBytes, formatTable, quantize } from "../mod.ts";

// Load. Weights are mapped, and read when they are needed.
const pipe = await FluxPipeline.load("models/shapes-flux");

// Quantize. The layers that a scheme cannot take, or that the filter leaves out, stay as they are.
const { quantized, skipped } = quantize(pipe.transformer, Deno.args[0] ?? "int4wo", { filter: /^(?!proj_out)/ });
console.log(formatTable(skipped.map((layer) => ({ ...layer }))));

// What that saves.
const sum = (name: "bytesBefore" | "bytes") => quantized.reduce((all, layer) => all + layer[name], 0);
console.log(describeQuantization(pipe.transformer));
console.log(`${formatBytes(sum("bytesBefore"))} to ${formatBytes(sum("bytes"))}`);

// Run.
const { images } = await pipe("a large red star on a navy background", { seed: 5, numInferenceSteps: 20 });
await Deno.mkdir("out", { recursive: true });
await images[0]!.save("out/quantize.png");
