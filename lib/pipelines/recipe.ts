/**
 * What `recipes/inference.ts` leaves to others, so that it stays a dozen lines: flags, progress, Ctrl-C, where pictures
 * go, the table at the end.
 *
 * @module
 */

import type { FloatDtype } from "../graph/dtypes.ts";
import { show } from "../media/terminal.ts";
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
import type { FluxLoadOptions, FluxOptions, FluxPipeline, FluxResult, FluxStep } from "./flux.ts";
import type { Optimizations } from "./optimize.ts";
import type { DeviceName } from "../tensor/device.ts";
import { makeFolder, RecipeRun, resultPaths, tellErrors } from "./recipe_run.ts";

/** The flags of `recipes/inference.ts`, read and checked. */
export interface InferenceFlags {
  /** A folder, a hub id or a URL. */
  readonly model: string;
  /** A safetensors file in place of the model's transformer. */
  readonly transformer: string | undefined;
  /** One prompt or several. */
  readonly prompts: readonly string[];
  /** What computes. */
  readonly device: DeviceName;
  /** What activations are computed in. */
  readonly dtype: FloatDtype;
  /** What is done to the model before it runs. */
  readonly optimization: Optimizations;
  /** How to make the pictures. */
  readonly options: FluxOptions;
  /** Whether the VAE decodes in tiles. */
  readonly vaeTiling: boolean;
  /** Whether the VAE decodes one picture at a time. */
  readonly vaeSlicing: boolean;
  /** A `.png` for one picture, a folder for several. */
  readonly out: string;
  /** Whether to print one JSON object instead of a table. */
  readonly json: boolean;
  /** Whether to draw the pictures in the terminal. */
  readonly show: boolean;
  /** Whether to print the memory that a run will need, and nothing else. */
  readonly dryRun: boolean;
  /** Whether to print what the flags are, and nothing else. */
  readonly help: boolean;
}

/** The checkpoint that comes with the project. */
const MODEL = "models/shapes-flux";

const FLAGS = {
  "model": { takes: "FOLDER|ID|URL", fallback: MODEL, help: "the checkpoint: a folder, a hub id, or a URL" },
  "transformer": {
    takes: "FILE|URL",
    help: "another transformer: a safetensors file, also of Black Forest Labs' names",
  },
  "prompt": {
    takes: "TEXT",
    fallback: "a large red star on a navy background",
    multiple: true,
    help: "what to draw; repeat it for several pictures",
  },
  "prompt-2": { takes: "TEXT", multiple: true, help: "the prompt of the second text encoder, where it is another" },
  "negative-prompt": { takes: "TEXT", multiple: true, help: "what not to draw; needs a --true-cfg-scale above 1" },
  "true-cfg-scale": { takes: "NUMBER", fallback: "1", help: "the weight of classifier-free guidance" },
  "seed": { takes: "INTEGER", fallback: "5", help: "the seed of the noise, as torch.manual_seed takes it" },
  "num-inference-steps": { takes: "COUNT", fallback: "20", help: "steps from noise to picture" },
  "guidance-scale": { takes: "NUMBER", fallback: "3.5", help: "the guidance that the model is told" },
  "height": { takes: "PIXELS", fallback: "128", help: "rows of pixels" },
  "width": { takes: "PIXELS", fallback: "128", help: "pixels in a row" },
  "max-sequence-length": { takes: "TOKENS", fallback: "32", help: "the most tokens of a prompt" },
  "num-images-per-prompt": { takes: "COUNT", fallback: "1", help: "pictures of each prompt" },
  "dtype": { takes: "f32|bf16|f16", fallback: "f32", help: "the type to compute in" },
  ...DEVICE_FLAGS,
  ...OPTIMIZATION_FLAGS,
  "vae-tiling": { help: "decode large pictures in tiles" },
  "vae-slicing": { help: "decode one picture at a time" },
  "out": { takes: "PATH", help: "a .png for one picture, a folder for several [out/picture.png, out/pictures]" },
  "show": { help: "draw the pictures in the terminal" },
  ...REPORT_FLAGS,
} as const;

/**
 * Reads the flags of `recipes/inference.ts`.
 *
 * @param args The command line's arguments
 * @returns The flags
 * @throws {RangeError} If one is unknown, lacks its value, or has one that cannot be
 */
export function parseInferenceFlags(args: readonly string[]): InferenceFlags {
  const flags = new Flags(FLAGS, args);
  const dtype = parseDtype(flags.text("dtype"));
  const prompts = flags.texts("prompt") ?? [FLAGS.prompt.fallback];
  const copies = flags.count("num-images-per-prompt");
  const pictures = prompts.length * copies;
  const out = flags.given("out") ?? (pictures === 1 ? "out/picture.png" : "out/pictures");
  if (pictures > 1 && /\.png$/i.test(out)) {
    throw new RangeError(`Cannot write ${pictures} pictures to --out ${out}: pass a folder`);
  }
  if (pictures === 1 && !/\.png$/i.test(out)) {
    throw new RangeError(`Cannot write a picture to --out ${JSON.stringify(out)}: pass a path that ends in .png`);
  }
  const negative = flags.texts("negative-prompt");
  const trueCfgScale = flags.number("true-cfg-scale");
  if (negative && !(trueCfgScale > 1)) {
    throw new RangeError(
      `Cannot use --negative-prompt with --true-cfg-scale ${trueCfgScale}: pass one above 1, such as 4`,
    );
  }
  return {
    model: flags.text("model"),
    transformer: flags.given("transformer"),
    prompts,
    device: parseDevice(flags.text("device")),
    dtype,
    optimization: parseOptimization(flags),
    options: {
      prompt2: flags.texts("prompt-2"),
      negativePrompt: negative,
      trueCfgScale,
      seed: parseSeed(flags.text("seed")),
      numInferenceSteps: flags.count("num-inference-steps"),
      guidanceScale: flags.number("guidance-scale"),
      height: flags.count("height"),
      width: flags.count("width"),
      maxSequenceLength: flags.count("max-sequence-length"),
      numImagesPerPrompt: copies,
    },
    vaeTiling: flags.on("vae-tiling"),
    vaeSlicing: flags.on("vae-slicing"),
    out,
    json: flags.on("json"),
    dryRun: flags.on("dry-run"),
    show: flags.on("show"),
    help: flags.on("help"),
  };
}

/** A run of `recipes/inference.ts`: its flags, and what happens around the pipeline. */
export interface InferenceTask extends InferenceFlags {
  /** How to load the model: shows a download's progress. */
  readonly load: FluxLoadOptions;
  /**
   * Does to the model what was asked for: quantizes it, compiles it; ends a dry run. The time from the start to here
   * counts as loading.
   */
  prepare(pipe: FluxPipeline): Promise<void>;
  /** Writes the pictures and says what was made: a table, or JSON. */
  finish(pipe: FluxPipeline, result: FluxResult): Promise<void>;
}

/**
 * Starts a run of `recipes/inference.ts`. Prints the help and ends the process where that is asked for; from then on an
 * error is a sentence and an exit code of 1, and Ctrl-C stops within a step.
 *
 * @param args The command line's arguments
 * @returns The task
 */
export async function inferenceTask(args: readonly string[]): Promise<InferenceTask> {
  const start = performance.now();
  tellErrors();
  const flags = parseInferenceFlags(args);
  if (flags.help) {
    console.log(helpText("Makes pictures from prompts.", FLAGS));
    Deno.exit(0);
  }
  const task = new RecipeRun(flags, start);
  const folder = flags.dryRun ? "" : flags.out.endsWith(".png") ? flags.out.replace(/[^/\\]*$/, "") : flags.out;
  if (folder !== "") await makeFolder(folder);
  const { signal, bars } = task;
  return {
    ...flags,
    load: { ...task.load, transformer: flags.transformer },
    options: {
      ...flags.options,
      signal,
      onStep: ({ index, count }: FluxStep) => bars.update("Denoising", index + 1, count),
    },
    async prepare(pipe) {
      bars.loaded();
      if (flags.vaeTiling) pipe.vae.enableTiling();
      if (flags.vaeSlicing) pipe.vae.enableSlicing();
      const { height, width, numInferenceSteps, maxSequenceLength, numImagesPerPrompt, trueCfgScale } = flags.options;
      await task.prepare(pipe, {
        run: {
          height,
          width,
          numInferenceSteps,
          maxSequenceLength,
          numImagesPerPrompt,
          trueCfgScale,
          prompts: flags.prompts.length,
        },
        plan: () => pipe.plan(flags.prompts, flags.options),
      });
    },
    async finish(pipe, { images, seconds, numInferenceSteps: steps }) {
      const paths = resultPaths(flags.out, images.length, ".png");
      for (const [i, image] of images.entries()) await image.save(paths[i]!);
      const plan = pipe.plan(flags.prompts, flags.options);
      if (flags.show) { for (const image of images) await show(image); }
      task.report("picture", pipe, { paths, seconds, steps, plan });
    },
  };
}
