#!/usr/bin/env -S deno run --no-prompt --allow-read=models,kernels/target/release,out --allow-write=out --allow-ffi=kernels/target/release
/** One picture by several schemes: size, time, how near to floats: `recipes/compare.ts [SCHEME...]`. */

import { FluxPipeline, formatBytes, formatTable, Image, psnr, quantize } from "../mod.ts";

const prompt = "a blue ring above a pink cross on a white background";
const options = { seed: 7, numInferenceSteps: 20 };
const schemes = Deno.args.length > 0 ? Deno.args : ["int8wo", "int8dq", "int4wo", "int4dq", "fp8dqrow", "fp4_e2m1"];
const images: Image[] = [];
const rows = [];

for (const scheme of ["float", ...schemes]) {
  // Load, and quantize.
  const pipe = await FluxPipeline.load("models/shapes-flux");
  if (scheme !== "float") quantize(pipe.transformer, scheme);

  // Run. The first call packs the weights.
  await pipe(prompt, options);
  const { images: [image], seconds: { denoising } } = await pipe(prompt, options);
  images.push(image!);

  // Hold it against the first one, which is in floats.
  const { weightBytes } = pipe.plan(prompt, options).models.find(({ part }) => part === "transformer")!;
  const quality = `${psnr(image!, images[0]!).toFixed(1)} dB`;
  rows.push({
    scheme,
    weights: formatBytes(weightBytes),
    "a step": `${(50 * denoising).toFixed(2)} ms`,
    psnr: quality,
  });
}

console.log(formatTable(rows));
await Deno.mkdir("out", { recursive: true });
await Image.grid(images, { columns: images.length, gap: 2 }).save("out/compare.png");
