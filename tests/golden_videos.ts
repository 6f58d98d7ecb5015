/**
 * Whole runs of CogVideoX from embeddings to frames, as the goldens have them.
 *
 * @module
 */

import type { VideoFrames } from "../lib/models/frame_tiles.ts";
import { type CogVideoXOptions, CogVideoXPipeline, type CogVideoXStep } from "../lib/pipelines/cogvideox.ts";
import type { CogVideoXSchedulerClass } from "../lib/pipelines/cogvideox_functions.ts";
import type { Device } from "../lib/tensor/device.ts";
import { toArray } from "../lib/tensor/realize.ts";
import { openSafetensors, readTensor, type SafetensorsFile } from "../lib/tensor/safetensors.ts";
import { tensor } from "../lib/tensor/source.ts";
import type { Tensor } from "../lib/tensor/tensor.ts";
import type { Computed } from "./golden_models.ts";

/** A call of diffusers' pipeline, in its words. */
type VideoCase = Readonly<Record<string, unknown>> & {
  readonly case: string;
  readonly scheduler?: CogVideoXSchedulerClass;
};

/** `num_frames` to `numFrames`. */
const camelCase = (name: string): string => name.replace(/_([a-z0-9])/g, (_, letter) => letter.toUpperCase());

/**
 * Computes every case of a folder with a pipeline and its reference runs.
 *
 * @param folder The folder: a checkpoint, `cases.json`, `cases.safetensors`.
 * @param options The device.
 * @returns Each output that the goldens have, by its key; frames also as the pictures that a video has, in [0, 1].
 */
export async function* computeVideoCases(
  folder: string,
  options: { device?: Device } = {},
): AsyncGenerator<Computed & { readonly pictures?: Float32Array<ArrayBuffer> }> {
  const { device } = options;
  const file = openSafetensors(`${folder}/cases.safetensors`);
  const cases = JSON.parse(await Deno.readTextFile(`${folder}/cases.json`)) as VideoCase[];
  for (const { case: name, scheduler, ...settings } of cases) {
    const pipe = await CogVideoXPipeline.load(folder, { device, scheduler });
    const call: CogVideoXOptions = {
      ...Object.fromEntries(Object.entries(settings).map(([key, value]) => [camelCase(key), value])),
      ...inputsOf(file, name),
    };
    const run = pipe.steps(undefined, call);
    let first: CogVideoXStep | undefined;
    let next = await run.next();
    for (; !next.done; next = await run.next()) first ??= next.value;
    const { latents, videos } = next.value;
    const { height, width, numFrames } = call as { height: number; width: number; numFrames: number };
    const start = pipe.prepareLatents({ seed: call.seed!, height, width, numFrames, count: latents.size(0) });
    const found = { initial_latents: start, latents_step1: first!.latents, latents_final: latents };
    for (const [part, value] of Object.entries(found)) {
      const key = `${name}.out.${part}`;
      if (!file.tensors.has(key)) continue;
      yield { key, shape: value.shape, data: await toArray<"f32">(value, device ? { device } : {}) };
    }
    const key = `${name}.out.frames`;
    if (!file.tensors.has(key)) continue;
    // What only filled the transformer's tokens stands first.
    const filling = latents.size(1) - ((numFrames - 1) / pipe.vae.config.temporalCompressionRatio + 1);
    const scaled = latents.slice(1, filling).permute(0, 2, 1, 3, 4).mul(1 / pipe.vae.config.scalingFactor);
    const { shape, data } = await wholeOf(pipe.vae.decodeFrames(scaled, { device }));
    const pictures: number[] = [];
    for (const video of videos) {
      for await (const frame of video) for (const value of frame.data) pictures.push(value / 255);
    }
    yield {
      key,
      shape,
      data: data.map((x) => Math.min(1, Math.max(0, x / 2 + 0.5))),
      pictures: Float32Array.from(pictures),
    };
  }
}

/** A case's tensors, under their names in a call. */
function inputsOf(file: SafetensorsFile, name: string): Readonly<Record<string, Tensor>> {
  const prefix = `${name}.in.`;
  const keys = [...file.tensors.keys()].filter((key) => key.startsWith(prefix));
  return Object.fromEntries(keys.map((key) => {
    const values = new Float32Array(readTensor(file, key).buffer);
    return [camelCase(key.slice(prefix.length)), tensor(values, { shape: file.tensors.get(key)!.shape })];
  }));
}

/** All frames, (batch, frames, height, width, channels). */
async function wholeOf(batches: AsyncGenerator<VideoFrames, void>): Promise<Computed & { key: "" }> {
  const parts = await Array.fromAsync(batches);
  const [batch, , height, width, channels] = parts[0]!.shape;
  const frames = parts.reduce((sum, { shape }) => sum + shape[1], 0);
  const size = height * width * channels;
  const data = new Float32Array(batch * frames * size);
  let start = 0;
  for (const { shape, data: values } of parts) {
    for (let b = 0; b < batch; b++) {
      data.set(values.subarray(b * shape[1] * size, (b + 1) * shape[1] * size), (b * frames + start) * size);
    }
    start += shape[1];
  }
  return { key: "", shape: [batch, frames, height, width, channels], data };
}
