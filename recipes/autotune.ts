#!/usr/bin/env -S deno run --no-prompt --allow-read --allow-write --allow-ffi=kernels/target/release --allow-env=DENOISE_AUTOTUNE,DENOISE_AUTOTUNE_PATH,DENOISE_CACHE,DENOISE_CUDA_LIBRARY,DENOISE_DEVICE,DENOISE_DUMP,DENOISE_LEVEL,DENOISE_LIBRARY,HOME,LOCALAPPDATA,XDG_CACHE_HOME
/** Chooses kernels by measurement and prints what was tried: `recipes/autotune.ts [SCHEME]`. */

import { compile, FluxPipeline, formatSeconds, formatTable, quantize } from "../mod.ts";

// Load, and quantize where that is wanted.
const pipe = await FluxPipeline.load("models/shapes-flux");
const [scheme] = Deno.args;
if (scheme) quantize(pipe.transformer, scheme);

// Compile. What no run has measured on this machine is measured now, and remembered.
const run = { height: 128, width: 128, numInferenceSteps: 20, maxSequenceLength: 32 };
const compiled = await compile(pipe, { mode: "max-autotune", vae: true, runs: [run] });

// One row a problem: the way that was chosen, and those that were not, with their microseconds.
const rows = Map.groupBy(compiled.tried, ({ problem }) => problem).entries().map(([problem, tried]) => {
  const times = (chosen: boolean) =>
    tried.filter((row) => row.chosen === chosen).map((row) => `${row.variant} ${row.microseconds.toFixed(1)}`);
  return { problem, chosen: times(true).join(), others: times(false).join(", ") };
});
console.log(formatTable([...rows]));
console.log(`${compiled.measured} problems measured in ${formatSeconds(compiled.milliseconds / 1000)}`);
