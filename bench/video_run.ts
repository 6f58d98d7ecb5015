/**
 * One run of `bench/video.ts`, in a process of its own so that the memory is its own: reads a task as JSON from its only
 * argument, and prints a line of JSON. A model without a text encoder is given embeddings of random numbers.
 *
 * @module
 */

import { psnr } from "../lib/media/metrics.ts";
import { type CogVideoXOptions, CogVideoXPipeline } from "../lib/pipelines/cogvideox.ts";
import { AUTOQUANT, optimize } from "../lib/pipelines/optimize.ts";
import { writeFully } from "../lib/tensor/output.ts";
import { Generator } from "../lib/tensor/random.ts";
import { tensor } from "../lib/tensor/source.ts";
import { NONE } from "./matrix.ts";
import type { Outcome } from "./matrix_run.ts";
import { median } from "./measure.ts";
import type { VideoConfiguration, VideoRow, VideoRunTask } from "./video.ts";
import { isModelType, randomModelOf } from "./video_models.ts";

const SEED = 5;

async function run(task: VideoRunTask): Promise<Outcome<VideoConfiguration, VideoRow>> {
  const { configuration, settings, cache, frames, floats } = task;
  const { model_type, quantization, quantize_vae } = configuration;
  const model = isModelType(model_type)
    ? await randomModelOf(model_type, { cache, layers: settings.num_layers })
    : model_type;
  const pipe = await CogVideoXPipeline.load(model, { dtype: settings.dtype });
  const size = {
    height: settings.height,
    width: settings.width,
    numFrames: settings.num_frames,
    numInferenceSteps: settings.num_inference_steps,
  };
  if (quantization === AUTOQUANT && !pipe.textEncoder) {
    throw new TypeError(`Cannot choose schemes for ${model_type} as it reads no prompts: pass a whole checkpoint`);
  }
  await optimize(pipe, {
    fuseQkv: configuration.fuse_qkv,
    sparsify: false,
    quantization: quantization === NONE ? undefined : quantization,
    groupSize: undefined,
    plan: undefined,
    quantizeVae: quantize_vae === NONE ? undefined : quantize_vae,
    compile: configuration.compile,
    compileVae: configuration.compile,
  }, { prompts: [settings.prompt], run: size });

  const options: CogVideoXOptions = { ...size, seed: SEED, ...(pipe.textEncoder ? {} : embeddingsOf(pipe)) };
  const call = async () => await pipe(pipe.textEncoder && settings.prompt, options);
  for (let i = 0; i < settings.warmup; i++) {
    for await (const _ of (await call()).videos[0]!) { /* decoded and let go */ }
  }
  const seconds: number[] = [];
  for (let i = 0; i < settings.runs; i++) {
    const start = performance.now();
    for await (const _ of (await call()).videos[0]!) { /* decoded and let go */ }
    seconds.push((performance.now() - start) / 1000);
  }
  const inference_memory = pipe.device.peakMemory();
  const { models } = pipe.plan(size);

  {
    using file = await Deno.open(frames, { create: true, write: true, truncate: true });
    for await (const frame of (await call()).videos[0]!) await writeFully(frames, file, frame.data);
  }
  const bytes = await Deno.readFile(frames);
  return {
    model_memory: models.reduce((sum, { weightBytes }) => sum + weightBytes, 0),
    inference_memory,
    time: median(seconds),
    psnr: floats === undefined ? Infinity : psnr(bytes, await Deno.readFile(floats)),
  };
}

/** Embeddings of a prompt and of none, drawn by chance. */
function embeddingsOf({ transformer, dtype }: CogVideoXPipeline): CogVideoXOptions {
  const { maxTextSeqLength, textEmbedDim } = transformer.config;
  const shape = [1, maxTextSeqLength, textEmbedDim];
  const [promptEmbeds, negativePromptEmbeds] = [1, 2].map((seed) =>
    tensor(new Generator(seed).randn(shape, { dtype }), { shape, dtype })
  );
  return { promptEmbeds, negativePromptEmbeds };
}

console.log(JSON.stringify(await run(JSON.parse(Deno.args[0]!) as VideoRunTask)));
