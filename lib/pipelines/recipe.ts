/**
 * What recipes share, so that they stay a dozen lines: flags, progress, Ctrl-C, where results go, the table at the end.
 *
 * @module
 */

import { parseArgs } from "node:util";
import { OutputError } from "../errors.ts";
import type { FloatDtype } from "../graph/dtypes.ts";
import { formatBytes, formatSeconds, formatTable, ProgressBar } from "../media/progress.ts";
import { show } from "../media/terminal.ts";
import { schemeOf } from "../quantize/schemes.ts";
import { AUTOQUANT, type Optimizations, optimize, type OptimizeReport } from "./optimize.ts";
import type { FluxLoadOptions, FluxOptions, FluxPipeline, FluxResult, FluxStep } from "./flux.ts";
import type { Seed } from "./pipeline.ts";
import type { MemoryPlan } from "./run.ts";

/** The flags of `recipes/inference.ts`, read and checked. */
export interface InferenceFlags {
  /** A folder, a hub id or a URL. */
  readonly model: string;
  /** A safetensors file in place of the model's transformer. */
  readonly transformer: string | undefined;
  /** One prompt or several. */
  readonly prompts: readonly string[];
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

/** One flag: what it takes (nothing: it is on or off), what it is by default, what it means. */
interface Flag {
  readonly takes?: string;
  readonly fallback?: string;
  readonly multiple?: true;
  readonly help: string;
}

/** The checkpoint that comes with the project. */
const MODEL = "models/shapes-flux";

/** What `--quantize-vae` means without a name: the pictures are the nearest to those in floats. */
const VAE_SCHEME = "int8wo";

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
  "quantization": { takes: "NAME", help: "the transformer's scheme: int8dq, int4wo, fp8dqrow..., or autoquant" },
  "group-size": { takes: "COUNT", help: "inputs that share a scale, of int4: 32, 64, 128 or 256" },
  "sparsify": { help: "prune the transformer to two of each four weights; int8dq stores them without the zeros" },
  "plan": { takes: "FILE", help: "the plan of each layer's scheme, as autoquant saved it" },
  "fuse-qkv": { help: "make one projection of q, k and v" },
  "quantize-vae": {
    takes: "[NAME]",
    help: `the VAE's scheme: int8wo, int8dq or fp8wo [${VAE_SCHEME} where none is named]`,
  },
  "compile": { help: "choose kernels by measurement, or by what was measured before" },
  "compile-vae": { help: "the same for the VAE; needs --compile" },
  "vae-tiling": { help: "decode large pictures in tiles" },
  "vae-slicing": { help: "decode one picture at a time" },
  "out": { takes: "PATH", help: "a .png for one picture, a folder for several [out/picture.png, out/pictures]" },
  "show": { help: "draw the pictures in the terminal" },
  "json": { help: "print one JSON object: paths, seconds, peak memory" },
  "dry-run": { help: "print the memory that it will take, and nothing else; weights are not downloaded" },
  "help": { help: "print this" },
} as const satisfies Record<string, Flag>;

type FlagName = keyof typeof FLAGS;

/**
 * Reads the flags of `recipes/inference.ts`.
 *
 * @param args The command line's arguments
 * @returns The flags
 * @throws {RangeError} If one is unknown, lacks its value, or has one that cannot be
 */
export function parseInferenceFlags(args: readonly string[]): InferenceFlags {
  const options: Record<string, { type: "string" | "boolean"; multiple?: true }> = {};
  for (const [name, flag] of Object.entries<Flag>(FLAGS)) {
    options[name] = { type: flag.takes ? "string" : "boolean", ...(flag.multiple && { multiple: true as const }) };
  }
  let values: Record<string, unknown>;
  try {
    values = parseArgs({ args: withVaeScheme(args), options, allowPositionals: false }).values;
  } catch (cause) {
    const [sentence] = String((cause as Error).message).split(/\. |\n/);
    throw new RangeError(`${sentence}: --help lists the flags`, { cause });
  }
  const text = (name: FlagName): string => (values[name] ?? (FLAGS[name] as Flag).fallback) as string;
  const texts = (name: FlagName): string[] | undefined => values[name] as string[] | undefined;
  const number = (name: FlagName): number => {
    const value = text(name).trim() === "" ? NaN : Number(text(name));
    if (Number.isFinite(value)) return value;
    throw new RangeError(`Cannot use --${name} ${JSON.stringify(text(name))}: pass a number`);
  };
  const count = (name: FlagName): number => {
    const value = number(name);
    if (Number.isSafeInteger(value) && value >= 1) return value;
    throw new RangeError(`Cannot use --${name} ${text(name)}: pass an integer of at least 1`);
  };
  const dtype = text("dtype");
  if (dtype !== "f32" && dtype !== "bf16" && dtype !== "f16") {
    throw new RangeError(`Cannot use --dtype ${JSON.stringify(dtype)}: pass f32, bf16 or f16`);
  }
  const prompts = texts("prompt") ?? [FLAGS.prompt.fallback];
  const copies = count("num-images-per-prompt");
  const pictures = prompts.length * copies;
  const out = (values.out as string | undefined) ?? (pictures === 1 ? "out/picture.png" : "out/pictures");
  if (pictures > 1 && /\.png$/i.test(out)) {
    throw new RangeError(`Cannot write ${pictures} pictures to --out ${out}: pass a folder`);
  }
  if (pictures === 1 && !/\.png$/i.test(out)) {
    throw new RangeError(`Cannot write a picture to --out ${JSON.stringify(out)}: pass a path that ends in .png`);
  }
  const negative = texts("negative-prompt");
  const trueCfgScale = number("true-cfg-scale");
  if (negative && !(trueCfgScale > 1)) {
    throw new RangeError(
      `Cannot use --negative-prompt with --true-cfg-scale ${trueCfgScale}: pass one above 1, such as 4`,
    );
  }
  return {
    model: text("model"),
    transformer: values.transformer as string | undefined,
    prompts,
    dtype,
    optimization: parseOptimization(values),
    options: {
      prompt2: texts("prompt-2"),
      negativePrompt: negative,
      trueCfgScale,
      seed: parseSeed(text("seed")),
      numInferenceSteps: count("num-inference-steps"),
      guidanceScale: number("guidance-scale"),
      height: count("height"),
      width: count("width"),
      maxSequenceLength: count("max-sequence-length"),
      numImagesPerPrompt: copies,
    },
    vaeTiling: values["vae-tiling"] === true,
    vaeSlicing: values["vae-slicing"] === true,
    out,
    json: values.json === true,
    dryRun: values["dry-run"] === true,
    show: values.show === true,
    help: values.help === true,
  };
}

/** The arguments with a name after a `--quantize-vae` that has none. */
function withVaeScheme(args: readonly string[]): string[] {
  return args.map((arg, i) => {
    const next = args[i + 1];
    return arg === "--quantize-vae" && (next === undefined || next.startsWith("-")) ? `${arg}=${VAE_SCHEME}` : arg;
  });
}

function parseOptimization(values: Readonly<Record<string, unknown>>): Optimizations {
  const text = (name: FlagName): string | undefined => values[name] as string | undefined;
  const [quantization, plan, quantizeVae] = [text("quantization"), text("plan"), text("quantize-vae")];
  checkScheme("quantization", quantization, { or: AUTOQUANT });
  checkScheme("quantize-vae", quantizeVae);
  if (quantizeVae !== undefined && !schemeOf(quantizeVae).kinds.includes("conv2d")) {
    throw new RangeError(`Cannot use --quantize-vae ${quantizeVae}: pass int8wo, int8dq or fp8wo`);
  }
  if (quantization !== undefined && plan !== undefined) {
    throw new RangeError(`Cannot use --plan ${plan} with --quantization ${quantization}: pass one of the two`);
  }
  const size = text("group-size");
  if (size !== undefined && !/^(?:32|64|128|256)$/.test(size)) {
    throw new RangeError(`Cannot use --group-size ${JSON.stringify(size)}: pass 32, 64, 128 or 256`);
  }
  if (size !== undefined && !quantization?.startsWith("int4")) {
    throw new RangeError(`Cannot use --group-size ${size}: pass --quantization int4wo or int4dq as well`);
  }
  if (values["compile-vae"] === true && values.compile !== true) {
    throw new RangeError("Cannot use --compile-vae alone: pass --compile as well");
  }
  if (values["dry-run"] === true && (values.compile === true || quantization === AUTOQUANT)) {
    const flag = values.compile === true ? "--compile" : `--quantization ${AUTOQUANT}`;
    throw new RangeError(`Cannot use ${flag} with --dry-run, which has no weights to measure with: leave out one`);
  }
  return {
    fuseQkv: values["fuse-qkv"] === true,
    sparsify: values.sparsify === true,
    quantization,
    groupSize: size === undefined ? undefined : Number(size),
    plan,
    quantizeVae,
    compile: values.compile === true,
    compileVae: values["compile-vae"] === true,
  };
}

function checkScheme(flag: FlagName, name: string | undefined, options: { or?: string } = {}): void {
  if (name === undefined || name === options.or) return;
  try {
    schemeOf(name);
  } catch (cause) {
    const or = options.or === undefined ? "" : `, or ${options.or}`;
    throw new RangeError(`${(cause as Error).message}${or}, as --${flag}`, { cause });
  }
}

function parseSeed(text: string): Seed {
  if (!/^-?\d+$/.test(text)) {
    throw new RangeError(`Cannot use --seed ${JSON.stringify(text)}: pass an integer from -2^63 to 2^64 - 1`);
  }
  const seed = BigInt(text);
  if (seed < -(1n << 63n) || seed >= 1n << 64n) {
    throw new RangeError(`Cannot use --seed ${text}: pass an integer from -2^63 to 2^64 - 1`);
  }
  return Number.isSafeInteger(Number(seed)) ? Number(seed) : seed;
}

/** What `--help` prints. */
function helpText(): string {
  const rows = Object.entries<Flag>(FLAGS).map(([name, { takes, fallback, help }]) => ({
    flag: `  --${name}${takes ? ` ${takes}` : ""}`,
    help: fallback === undefined ? help : `${help} [${fallback}]`,
  }));
  return `Makes pictures from prompts.\n\n${formatTable(rows, { header: false })}`;
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
  globalThis.addEventListener("unhandledrejection", (event) => {
    event.preventDefault();
    console.error(`${event.reason instanceof Error ? event.reason.message : event.reason}`);
    Deno.exit(event.reason === INTERRUPTED ? 130 : 1);
  });
  const flags = parseInferenceFlags(args);
  if (flags.help) {
    console.log(helpText());
    Deno.exit(0);
  }
  const interrupt = new AbortController();
  Deno.addSignalListener("SIGINT", () => interrupt.abort(INTERRUPTED));
  const { signal } = interrupt;
  const folder = flags.dryRun ? "" : flags.out.endsWith(".png") ? flags.out.replace(/[^/\\]*$/, "") : flags.out;
  if (folder !== "") await makeFolder(folder);

  let download: ProgressBar | undefined;
  let denoising: ProgressBar | undefined;
  let loaded = 0;
  let optimized: OptimizeReport | undefined;
  return {
    ...flags,
    load: {
      dtype: flags.dtype,
      transformer: flags.transformer,
      weights: !flags.dryRun,
      signal,
      onProgress: ({ bytes, total }) => {
        download ??= new ProgressBar({ label: "Downloading", total, unit: "bytes" });
        download.update(bytes, { total });
      },
    },
    options: {
      ...flags.options,
      signal,
      onStep: ({ index, count }: FluxStep) => {
        denoising ??= new ProgressBar({ label: "Denoising", total: count });
        denoising.update(index + 1);
        if (index + 1 === count) denoising.finish();
      },
    },
    async prepare(pipe) {
      download?.finish();
      if (flags.vaeTiling) pipe.vae.enableTiling();
      if (flags.vaeSlicing) pipe.vae.enableSlicing();
      const { height, width, numInferenceSteps, maxSequenceLength, numImagesPerPrompt, trueCfgScale } = flags.options;
      optimized = await optimize(pipe, flags.optimization, {
        prompts: flags.prompts,
        run: {
          height,
          width,
          numInferenceSteps,
          maxSequenceLength,
          numImagesPerPrompt,
          trueCfgScale,
          prompts: flags.prompts.length,
        },
        signal,
      });
      loaded = performance.now();
      if (flags.dryRun) {
        printPlan(pipe.plan(flags.prompts, flags.options), flags);
        Deno.exit(0);
      }
    },
    async finish(pipe, { images, seconds, numInferenceSteps }) {
      const paths = images.length === 1
        ? [flags.out]
        : images.map((_, i) => `${flags.out.replace(/[/\\]$/, "")}/${String(i).padStart(2, "0")}.png`);
      for (const [i, image] of images.entries()) await image.save(paths[i]!);
      const { compiled } = optimized!;
      const report = {
        paths,
        seconds: {
          load: (loaded - start) / 1000,
          text_encoding: seconds.textEncoding,
          denoising: seconds.denoising,
          decoding: seconds.decoding,
        },
        seconds_per_step: seconds.denoising / numInferenceSteps,
        quantization: pipe.quantization,
        skipped: optimized!.skipped,
        ...(compiled && { compiled }),
        model_memory_bytes: modelBytes(pipe.plan(flags.prompts, flags.options)),
        peak_memory_bytes: pipe.device.peakMemory(),
      };
      if (flags.show) { for (const image of images) await show(image); }
      if (flags.json) return console.log(JSON.stringify(report));
      console.log(formatTable([
        { what: "load", value: formatSeconds(report.seconds.load) },
        { what: "text encoding", value: formatSeconds(report.seconds.text_encoding) },
        {
          what: "denoising",
          value: `${formatSeconds(report.seconds.denoising)}, ${formatMilliseconds(report.seconds_per_step)} a step`,
        },
        { what: "decoding", value: formatSeconds(report.seconds.decoding) },
        ...(compiled
          ? [{ what: "compiling", value: `${formatSeconds(compiled.seconds)}, ${compiled.measured} kernels measured` }]
          : []),
        ...report.quantization.split("; ").filter(Boolean).map((value) => ({ what: "quantization", value })),
        ...reasons(report.skipped).map((value) => ({ what: "left in floats", value })),
        { what: "model memory", value: formatBytes(report.model_memory_bytes) },
        { what: "peak memory", value: formatBytes(report.peak_memory_bytes) },
        ...paths.map((path) => ({ what: "picture", value: path })),
      ], { header: false }));
    },
  };
}

/** The bytes of all weights as the kernels take them. */
function modelBytes({ models }: MemoryPlan): number {
  return models.reduce((sum, { weightBytes }) => sum + weightBytes, 0);
}

/** Why layers were left as they were, with the first of each. */
function reasons(skipped: OptimizeReport["skipped"]): string[] {
  const groups = Map.groupBy(skipped, ({ reason }) => reason);
  return [...groups].map(([reason, layers]) => {
    const others = layers.length > 1 ? ` and ${layers.length - 1} more` : "";
    return `${layers[0]!.name}${others}: ${reason}`;
  });
}

const INTERRUPTED = new Error("Stopped.");

function formatMilliseconds(seconds: number): string {
  return seconds < 1 ? `${(seconds * 1000).toFixed(1)} ms` : formatSeconds(seconds);
}

function printPlan({ models, bytes }: MemoryPlan, { json }: { json: boolean }): void {
  if (json) return console.log(JSON.stringify({ models, bytes }));
  const total = { part: "at most", parameters: "", weights: "", work: formatBytes(bytes) };
  console.log(formatTable([
    ...models.map(({ part, parameters, weightBytes, workBytes }) => ({
      part,
      parameters: `${(parameters / 1e6).toFixed(1)} M`,
      weights: formatBytes(weightBytes),
      work: formatBytes(workBytes),
    })),
    total,
  ]));
}

/** Makes the folder of the results before hours are spent on them. */
async function makeFolder(folder: string): Promise<void> {
  try {
    await Deno.mkdir(folder, { recursive: true });
  } catch (cause) {
    const remedy = cause instanceof Deno.errors.NotCapable
      ? "run with --allow-write for it"
      : "pass another --out, or check its permissions";
    throw new OutputError(`Cannot make the folder ${folder}: ${(cause as Error).message}; ${remedy}`, {
      file: folder,
      cause,
    });
  }
}
