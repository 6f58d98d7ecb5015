#!/usr/bin/env -S deno run --no-prompt --allow-read --allow-write --allow-ffi=kernels/target/release --allow-env=DENOISE_AUTOTUNE,DENOISE_AUTOTUNE_PATH,DENOISE_CACHE,DENOISE_CUDA_LIBRARY,DENOISE_DEVICE,DENOISE_DUMP,DENOISE_LEVEL,DENOISE_LIBRARY,HF_ENDPOINT,HF_HUB_OFFLINE,HF_TOKEN,HOME,LOCALAPPDATA,XDG_CACHE_HOME --allow-net=huggingface.co,*.huggingface.co,*.hf.co
/** Makes videos from prompts: `deno task video --model THUDM/CogVideoX-2b --prompt "..."`, `--help` for the rest. */

import { CogVideoXPipeline, videoTask } from "../mod.ts";

// Flags, progress, Ctrl-C. Without --model: which checkpoints there are.
const task = await videoTask(Deno.args);

// Load: a folder, a hub id or a URL.
const pipe = await CogVideoXPipeline.load(task.model, task.load);
await task.prepare(pipe);

// Run.
const result = await pipe(task.prompts, task.options);

// Decode the videos into their files, a few frames at a time, and say how long it took.
await task.finish(pipe, result);
