#!/usr/bin/env -S deno run --no-prompt --allow-read --allow-write --allow-ffi=kernels/target/release --allow-env=DENOISE_AUTOTUNE,DENOISE_AUTOTUNE_PATH,DENOISE_CACHE,DENOISE_CUDA_LIBRARY,DENOISE_DEVICE,DENOISE_DUMP,DENOISE_LEVEL,DENOISE_LIBRARY,HOME,LOCALAPPDATA,XDG_CACHE_HOME
/** Compiles the demo into one file, and makes a picture from it: `recipes/ahead_of_time.ts [SCHEME]`. */

import { compile, FluxPipeline, formatBytes, formatSeconds, formatTable, quantize } from "../mod.ts";

const prompt = "a large red star on a navy background";
const run = { height: 128, width: 128, numInferenceSteps: 20, maxSequenceLength: 32 };
const file = "out/shapes-flux.compiled.safetensors";
await Deno.mkdir("out", { recursive: true });

/** Loads a pipeline and makes the picture: how long each took. */
async function timed(load: () => Promise<FluxPipeline>) {
  const start = performance.now();
  const pipe = await load();
  const ready = performance.now();
  const { images: [image] } = await pipe(prompt, { ...run, seed: 5 });
  const [loading, picture] = [ready - start, performance.now() - ready].map((time) => formatSeconds(time / 1000));
  return { pipe, image: image!, loading: loading!, picture: picture! };
}

// The plain route: read the checkpoint, record, lower, pack the weights, run.
const plain = await timed(async () => {
  const pipe = await FluxPipeline.load("models/shapes-flux");
  if (Deno.args[0]) quantize(pipe.transformer, Deno.args[0]);
  return pipe;
});

// Keep programs and packed weights.
const compiled = await compile(plain.pipe, { runs: [run] });
await compiled.save(file);

// The file: map it and run.
const read = await timed(() => FluxPipeline.load(file));
await read.image.save("out/ahead_of_time.png");

console.log(formatTable([
  { route: "checkpoint", load: plain.loading, "first picture": plain.picture },
  { route: "file", load: read.loading, "first picture": read.picture },
]));
console.log(`${file}: ${formatBytes((await Deno.stat(file)).size)}`);
