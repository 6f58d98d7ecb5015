#!/usr/bin/env -S deno run --no-prompt --allow-read --allow-write --allow-ffi=kernels/target/release --allow-env=DENOISE_AUTOTUNE,DENOISE_AUTOTUNE_PATH,DENOISE_CACHE,DENOISE_CUDA_LIBRARY,DENOISE_DEVICE,DENOISE_DUMP,DENOISE_LEVEL,DENOISE_LIBRARY,HF_ENDPOINT,HF_HUB_OFFLINE,HF_TOKEN,HOME,LOCALAPPDATA,XDG_CACHE_HOME --allow-net=huggingface.co,*.huggingface.co,*.hf.co
/** Chooses kernels for a model by measurement and prints what was tried; the flags are those of `recipes/inference.ts`. */

import { compile, FluxPipeline, formatSeconds, formatTable, inferenceTask } from "../mod.ts";

// Load: a folder, a hub id or a URL; quantize where that is wanted.
const task = await inferenceTask(Deno.args);
const pipe = await FluxPipeline.load(task.model, task.load);
await task.prepare(pipe);

// Compile. What no run has measured on this machine is measured now, and remembered.
const runs = [{ ...task.options, prompts: task.prompts.length }];
const compiled = await compile(pipe, { mode: "max-autotune", vae: true, runs, signal: task.load.signal });

// One row a problem: the way that was chosen, and those that were not, with their microseconds.
const rows = Map.groupBy(compiled.tried, ({ problem }) => problem).entries().map(([problem, tried]) => {
  const times = (chosen: boolean) =>
    tried.filter((row) => row.chosen === chosen).map((row) => `${row.variant} ${row.microseconds.toFixed(1)}`);
  return { problem, chosen: times(true).join(), others: times(false).join(", ") };
});
console.log(formatTable([...rows]));
console.log(`${compiled.measured} problems measured in ${formatSeconds(compiled.milliseconds / 1000)}`);
