#!/usr/bin/env -S deno run --no-prompt --allow-read --allow-write --allow-ffi=kernels/target/release --allow-env=DENOISE_AUTOTUNE,DENOISE_AUTOTUNE_PATH,DENOISE_CACHE,DENOISE_CUDA_LIBRARY,DENOISE_DEVICE,DENOISE_DUMP,DENOISE_LEVEL,DENOISE_LIBRARY,HF_ENDPOINT,HF_HUB_OFFLINE,HF_TOKEN,HOME,LOCALAPPDATA,XDG_CACHE_HOME --allow-net=huggingface.co,*.huggingface.co,*.hf.co
/** Makes pictures from prompts: `deno task demo --prompt "a blue ring on a white background"`, `--help` for the rest. */

import { FluxPipeline, inferenceTask } from "../mod.ts";

// Flags, progress, Ctrl-C.
const task = await inferenceTask(Deno.args);

// Load: a folder, a hub id or a URL.
const pipe = await FluxPipeline.load(task.model, task.load);
await task.prepare(pipe);

// Run.
const result = await pipe(task.prompts, task.options);

// Keep the pictures, say how long it took.
await task.finish(pipe, result);
