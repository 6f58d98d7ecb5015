/**
 * One run of `bench/inference.ts`, in a process of its own so that the memory is its own: reads a {@linkcode Task} as
 * JSON from its only argument, and prints a line of JSON.
 *
 * @module
 */

import { FluxPipeline } from "../lib/pipelines/flux.ts";
import { optimize } from "../lib/pipelines/optimize.ts";
import { type Configuration, NONE, type Row, type Settings } from "./matrix.ts";
import { median } from "./measure.ts";
import {
  CALIBRATION,
  CAPTIONS,
  draw,
  drawBatch,
  type DrawOptions,
  judge,
  openPictures,
  savePictures,
} from "./shapes.ts";

/** What a process does. */
export interface Task {
  /** The configuration. */
  readonly configuration: Configuration;
  /** How it is run. */
  readonly settings: Settings;
  /** Where its pictures go. */
  readonly pictures: string;
  /** Where the float pictures are that they are held against; none where these are the float pictures. */
  readonly floats: string | undefined;
}

/** What it prints. */
export type Outcome = Omit<Row, keyof Configuration>;

async function run({ configuration, settings, pictures, floats }: Task): Promise<Outcome | undefined> {
  const { ckpt_id, batch_size, quantization } = configuration;
  const captions = CAPTIONS.slice(0, settings.prompts);
  const options: DrawOptions = {
    numInferenceSteps: settings.num_inference_steps,
    height: settings.height,
    width: settings.width,
    maxSequenceLength: settings.max_sequence_length,
  };
  const pipe = await FluxPipeline.load(ckpt_id);
  if (floats === undefined) {
    await savePictures(await draw(pipe, captions, options), pictures);
    return undefined;
  }
  await optimize(pipe, {
    fuseQkv: configuration.fuse,
    sparsify: configuration.sparsify,
    quantization: quantization === NONE ? undefined : quantization,
    groupSize: undefined,
    plan: undefined,
    quantizeVae: undefined,
    compile: configuration.compile,
    compileVae: configuration.compile_vae,
  }, { prompts: CALIBRATION, run: { ...options, prompts: batch_size } });

  const batch = Array.from({ length: batch_size }, (_, i) => CAPTIONS[i % CAPTIONS.length]!);
  for (let i = 0; i < settings.warmup; i++) await drawBatch(pipe, batch, options);
  const seconds: number[] = [];
  for (let i = 0; i < settings.runs; i++) {
    const start = performance.now();
    await drawBatch(pipe, batch, options);
    seconds.push((performance.now() - start) / 1000);
  }
  const inference_memory = pipe.device.peakMemory();
  const { models } = pipe.plan(batch.map(({ prompt }) => prompt), options);

  const images = await draw(pipe, captions, { ...options, batchSize: batch_size });
  await savePictures(images, pictures);
  return {
    model_memory: models.reduce((sum, { weightBytes }) => sum + weightBytes, 0),
    inference_memory,
    time: median(seconds),
    ...judge(images, await openPictures(floats, captions.length), captions),
  };
}

console.log(JSON.stringify(await run(JSON.parse(Deno.args[0]!) as Task) ?? null));
