/**
 * What `recipes/video.ts` leaves to others, so that it stays a dozen lines: flags, progress, Ctrl-C, where videos go,
 * the table at the end.
 *
 * @module
 */

import type { FloatDtype } from "../graph/dtypes.ts";
import { formatBytes, formatTable } from "../media/progress.ts";
import type {
  CogVideoXLoadOptions,
  CogVideoXOptions,
  CogVideoXPipeline,
  CogVideoXResult,
  CogVideoXRun,
  CogVideoXStep,
} from "./cogvideox.ts";
import type { CogVideoXSchedulerClass } from "./cogvideox_functions.ts";
import { needsOfPublished, PUBLISHED_COGVIDEOX } from "./cogvideox_published.ts";
import {
  DEVICE_FLAGS,
  Flags,
  helpText,
  OPTIMIZATION_FLAGS,
  parseDevice,
  parseDtype,
  parseOptimization,
  parseSeed,
  REPORT_FLAGS,
} from "./flags.ts";
import type { Optimizations } from "./optimize.ts";
import type { DeviceName } from "../tensor/device.ts";
import { makeFolder, RecipeRun, resultPaths, tellErrors } from "./recipe_run.ts";

/** The flags of `recipes/video.ts`, read and checked. */
export interface VideoFlags {
  /** A folder, a hub id or a URL; `undefined` where none was named. */
  readonly model: string | undefined;
  /** One prompt or several. */
  readonly prompts: readonly string[];
  /** What computes. */
  readonly device: DeviceName;
  /** What activations are computed in. */
  readonly dtype: FloatDtype;
  /** Another scheduler than the checkpoint's. */
  readonly scheduler: CogVideoXSchedulerClass | undefined;
  /** What is done to the model before it runs. */
  readonly optimization: Optimizations;
  /** How to make the videos. */
  readonly options: CogVideoXOptions;
  /** Whether the VAE decodes in tiles. */
  readonly vaeTiling: boolean;
  /** A file for one video, a folder for several. */
  readonly out: string;
  /** A file for a look at the middle frame after each step. */
  readonly preview: string | undefined;
  /** Whether to print one JSON object instead of a table. */
  readonly json: boolean;
  /** Whether to print the memory that a run will need, and nothing else. */
  readonly dryRun: boolean;
  /** Whether to print what the flags are, and nothing else. */
  readonly help: boolean;
}

const FLAGS = {
  "model": {
    takes: "FOLDER|ID|URL",
    help: "the checkpoint: a folder, a hub id, or a URL; without one, which there are",
  },
  "prompt": {
    takes: "TEXT",
    fallback: "a panda in a small red jacket plays the guitar in a bamboo forest",
    multiple: true,
    help: "what to show; repeat it for several videos",
  },
  "negative-prompt": { takes: "TEXT", multiple: true, help: "what not to show" },
  "seed": { takes: "INTEGER", fallback: "5", help: "the seed of the noise, as torch.manual_seed takes it" },
  "num-inference-steps": { takes: "COUNT", fallback: "50", help: "steps from noise to video" },
  "guidance-scale": { takes: "NUMBER", fallback: "6", help: "the weight of classifier-free guidance; up to 1 is none" },
  "use-dynamic-cfg": { help: "let guidance grow from step to step" },
  "scheduler": { takes: "ddim|dpm", help: "another scheduler than the checkpoint's" },
  "height": { takes: "PIXELS", help: "rows of pixels [what the model was trained on]" },
  "width": { takes: "PIXELS", help: "pixels in a row [what the model was trained on]" },
  "num-frames": { takes: "COUNT", help: "frames, 4k + 1 [what the model was trained on]" },
  "fps": { takes: "NUMBER", help: "frames a second [8, and 16 of the 1.5 family]" },
  "max-sequence-length": { takes: "TOKENS", help: "the tokens of a prompt [what the model was trained on]" },
  "num-videos-per-prompt": { takes: "COUNT", fallback: "1", help: "videos of each prompt" },
  "dtype": { takes: "f32|bf16|f16", fallback: "bf16", help: "the type to compute in" },
  ...DEVICE_FLAGS,
  ...OPTIMIZATION_FLAGS,
  "vae-tiling": { help: "decode in tiles, as diffusers does" },
  "memory-budget": { takes: "GB", help: "the most that decoding may take: it chooses tiles by itself" },
  "out": {
    takes: "PATH",
    help: "a .mp4, .gif or .png (a strip) for one video, a folder for several [out/video.mp4, out/videos]",
  },
  "preview": { takes: "PATH", help: "a .png for a look at the middle frame after each step" },
  ...REPORT_FLAGS,
} as const;

const SCHEDULERS = { ddim: "CogVideoXDDIMScheduler", dpm: "CogVideoXDPMScheduler" } as const;

/**
 * Reads the flags of `recipes/video.ts`.
 *
 * @param args The command line's arguments
 * @returns The flags
 * @throws {RangeError} If one is unknown, lacks its value, or has one that cannot be
 */
export function parseVideoFlags(args: readonly string[]): VideoFlags {
  const flags = new Flags<keyof typeof FLAGS>(FLAGS, args);
  const dtype = parseDtype(flags.text("dtype"));
  const prompts = flags.texts("prompt") ?? [FLAGS.prompt.fallback];
  const copies = flags.count("num-videos-per-prompt");
  const videos = prompts.length * copies;
  const out = flags.given("out") ?? (videos === 1 ? "out/video.mp4" : "out/videos");
  if (videos > 1 && isFile(out)) throw new RangeError(`Cannot write ${videos} videos to --out ${out}: pass a folder`);
  if (videos === 1 && !isFile(out)) {
    throw new RangeError(
      `Cannot write a video to --out ${JSON.stringify(out)}: pass a path that ends in .mp4, .gif or .png`,
    );
  }
  const preview = flags.given("preview");
  if (preview !== undefined && !/\.png$/i.test(preview)) {
    throw new RangeError(`Cannot use --preview ${JSON.stringify(preview)}: pass a path that ends in .png`);
  }
  const scheduler = flags.given("scheduler");
  if (scheduler !== undefined && !Object.hasOwn(SCHEDULERS, scheduler)) {
    throw new RangeError(`Cannot use --scheduler ${JSON.stringify(scheduler)}: pass ddim or dpm`);
  }
  const optional = (name: keyof typeof FLAGS) => flags.given(name) === undefined ? undefined : flags.count(name);
  const budget = flags.given("memory-budget") === undefined ? undefined : flags.number("memory-budget");
  if (budget !== undefined && !(budget > 0)) {
    throw new RangeError(`Cannot use --memory-budget ${budget}: pass a number of GB, such as 6`);
  }
  return {
    model: flags.given("model"),
    prompts,
    device: parseDevice(flags.text("device")),
    dtype,
    scheduler: SCHEDULERS[scheduler as keyof typeof SCHEDULERS],
    optimization: parseOptimization(flags),
    options: {
      negativePrompt: flags.texts("negative-prompt"),
      seed: parseSeed(flags.text("seed")),
      numInferenceSteps: flags.count("num-inference-steps"),
      guidanceScale: flags.number("guidance-scale"),
      useDynamicCfg: flags.on("use-dynamic-cfg"),
      height: optional("height"),
      width: optional("width"),
      numFrames: optional("num-frames"),
      fps: flags.given("fps") === undefined ? undefined : flags.number("fps"),
      maxSequenceLength: optional("max-sequence-length"),
      numVideosPerPrompt: copies,
      memoryBudget: budget && budget * 1e9,
    },
    vaeTiling: flags.on("vae-tiling"),
    out,
    preview,
    json: flags.on("json"),
    dryRun: flags.on("dry-run"),
    help: flags.on("help"),
  };
}

const isFile = (path: string) => /\.(?:mp4|gif|png)$/i.test(path);

const folderOf = (path: string) => path.replace(/[^/\\]*$/, "");

/** A run of `recipes/video.ts`: its flags, and what happens around the pipeline. */
export interface VideoTask extends Omit<VideoFlags, "model"> {
  /** The checkpoint. */
  readonly model: string;
  /** How to load the model: shows a download's progress. */
  readonly load: CogVideoXLoadOptions;
  /**
   * Does to the model what was asked for: quantizes it, compiles it; ends a dry run. The time from the start to here
   * counts as loading.
   */
  prepare(pipe: CogVideoXPipeline): Promise<void>;
  /** Decodes the videos into their files and says what was made: a table, or JSON. */
  finish(pipe: CogVideoXPipeline, result: CogVideoXResult): Promise<void>;
}

/**
 * Starts a run of `recipes/video.ts`. Prints the help, or which checkpoints there are, and ends the process where that is
 * asked for; from then on an error is a sentence and an exit code of 1, and Ctrl-C stops within a step.
 *
 * @param args The command line's arguments
 * @returns The task
 */
export async function videoTask(args: readonly string[]): Promise<VideoTask> {
  const start = performance.now();
  tellErrors();
  const flags = parseVideoFlags(args);
  if (flags.help) {
    console.log(helpText("Makes videos from prompts.", FLAGS));
    Deno.exit(0);
  }
  const { model } = flags;
  if (model === undefined) {
    await printPublished(flags);
    Deno.exit(flags.json ? 0 : 1);
  }
  const task = new RecipeRun(flags, start);
  if (!flags.dryRun) {
    for (const folder of [isFile(flags.out) ? folderOf(flags.out) : flags.out, folderOf(flags.preview ?? "")]) {
      if (folder !== "") await makeFolder(folder);
    }
  }
  const { numInferenceSteps, guidanceScale, height, width, numFrames, maxSequenceLength, numVideosPerPrompt } =
    flags.options;
  const run: CogVideoXRun = {
    numInferenceSteps,
    guidanceScale,
    height,
    width,
    numFrames,
    maxSequenceLength,
    numVideosPerPrompt,
    memoryBudget: flags.options.memoryBudget,
    prompts: flags.prompts.length,
  };
  const { signal, bars } = task;
  return {
    ...flags,
    model,
    load: { ...task.load, scheduler: flags.scheduler },
    options: {
      ...flags.options,
      signal,
      onStep: async ({ index, count, preview }: CogVideoXStep) => {
        bars.update("Denoising", index + 1, count);
        if (flags.preview !== undefined) await (await preview()).save(flags.preview);
      },
    },
    async prepare(pipe) {
      bars.loaded();
      if (flags.vaeTiling) pipe.vae.enableTiling();
      await task.prepare(pipe, { run, plan: () => pipe.plan(run) });
    },
    async finish(pipe, { videos, seconds, numInferenceSteps: steps }) {
      const paths = resultPaths(flags.out, videos.length, ".mp4");
      const total = videos.reduce((sum, { frameCount }) => sum + frameCount, 0);
      let done = 0;
      for (const [i, video] of videos.entries()) {
        await video.save(paths[i]!, { signal, onFrame: () => bars.update("Decoding", ++done, total) });
      }
      task.report("video", pipe, { paths, seconds, steps, plan: pipe.plan(run) });
    },
  };
}

/** Says which checkpoints there are, and what each needs for a video as it was trained to make. */
async function printPublished({ dtype, options: { memoryBudget }, json }: VideoFlags): Promise<void> {
  const all = await Promise.all(
    PUBLISHED_COGVIDEOX.map(async (published) => ({
      ...published,
      ...await needsOfPublished(published, { dtype, memoryBudget }),
    })),
  );
  if (json) {
    return console.log(JSON.stringify(all.map(({ id, parameters, diskBytes, memory, video }) => (
      { id, parameters, disk_bytes: diskBytes, memory_bytes: memory.bytes, phases: memory.phases, ...video }
    ))));
  }
  const rows = all.map(({ id, parameters, diskBytes, memory, video: { height, width, numFrames } }) => ({
    "--model": id,
    parameters: `${(parameters / 1e9).toFixed(1)} G`,
    video: `${numFrames} frames of ${width} by ${height}`,
    disk: formatBytes(diskBytes),
    memory: formatBytes(memory.bytes),
    ...Object.fromEntries(memory.phases.map(({ phase, bytes }) => [phase, formatBytes(bytes)])),
  }));
  console.error(
    "Pass a checkpoint as --model: a folder, a URL, or one of these, which are downloaded once. Memory is in",
  );
  console.error(
    `${dtype}, with the VAE whole; --memory-budget and --quantization make it less, --dry-run says by how much.`,
  );
  console.error(`\n${formatTable(rows)}`);
}
