/**
 * Any part of the matrix of CogVideoX: model, fusing, compiling, quantization of the transformer and the VAE, with what
 * each costs in quality: `deno run -A bench/video.ts --quantization none,int8wo`, `--help` for the rest.
 *
 * Writes `runs.csv` and `runs.json` after every run, and goes on where it was stopped.
 *
 * @module
 */

import { formatBytes, formatTable } from "../lib/media/progress.ts";
import { AUTOQUANT } from "../lib/pipelines/optimize.ts";
import { schemeOf } from "../lib/quantize/schemes.ts";
import { Matrix, NONE } from "./matrix.ts";
import { execute, MatrixFlags, matrixHelp, type Outcome, runBench, runMatrix } from "./matrix_run.ts";
import { isModelType, MODEL_TYPES } from "./video_models.ts";

/** What is run. The names are the columns of the files. */
export interface VideoConfiguration {
  /** One of {@linkcode MODEL_TYPES}, of random weights, or a folder, a hub id or a URL. */
  readonly model_type: string;
  /** Whether kernels are chosen by measurement. */
  readonly compile: boolean;
  /** Whether q, k and v are one projection. */
  readonly fuse_qkv: boolean;
  /** The VAE's scheme, or `none`. */
  readonly quantize_vae: string;
  /** The transformer's scheme, `autoquant`, or `none`. */
  readonly quantization: string;
}

/** What came of it. */
export interface VideoRow extends VideoConfiguration {
  /** Bytes of all weights as the kernels take them. */
  readonly model_memory: number;
  /** The most bytes that the process had. */
  readonly inference_memory: number;
  /** Seconds of a call with its decoding: the median. */
  readonly time: number;
  /** Against the float video of the same seed, in decibels. Infinite where they are equal. */
  readonly psnr: number;
}

/** How each configuration is run; rows of other settings are not comparable. */
export interface VideoSettings {
  readonly prompt: string;
  readonly dtype: "f32" | "bf16" | "f16";
  /** Calls before those that are timed. */
  readonly warmup: number;
  /** Calls that are timed. */
  readonly runs: number;
  readonly num_inference_steps: number;
  readonly height: number;
  readonly width: number;
  readonly num_frames: number;
  /** Blocks of the transformer, of the model types that are of random weights; all of them where it is 0. */
  readonly num_layers: number;
}

/** The matrix of videos. */
export const VIDEOS: Matrix<VideoConfiguration, VideoRow> = new Matrix({
  axes: ["model_type", "compile", "fuse_qkv", "quantize_vae", "quantization"],
  results: ["model_memory", "inference_memory", "time", "psnr"],
  means: () => true,
});

const FLAGS = {
  "model-type": {
    fallback: "mini",
    help: `${Object.keys(MODEL_TYPES).join(", ")} (of random weights), or checkpoints: folders, hub ids, URLs`,
  },
  "compile": { fallback: "false", help: "whether kernels are chosen by measurement: false, true, or false,true" },
  "fuse-qkv": { fallback: "false", help: "whether q, k and v are one projection" },
  "quantize-vae": { fallback: NONE, help: `schemes of the VAE: int8wo, int8dq, fp8wo, ${NONE}` },
  "quantization": { fallback: `${NONE},int8wo,int8dq`, help: `schemes of the transformer, ${AUTOQUANT}, ${NONE}` },
  "prompt": { fallback: "a red star on a white background", help: "what to show" },
  "dtype": { fallback: "f32", help: "the type to compute in" },
  "warmup": { fallback: "2", help: "calls before those that are timed" },
  "runs": { fallback: "3", help: "calls that are timed" },
  "num-inference-steps": { fallback: "4", help: "steps of a video" },
  "height": { fallback: "64", help: "rows of pixels" },
  "width": { fallback: "96", help: "pixels in a row" },
  "num-frames": { fallback: "9", help: "frames, 4k + 1" },
  "num-layers": { fallback: "0", help: "blocks of a transformer of random weights; 0 is all" },
  "out": { fallback: "out/video", help: "the folder of the results" },
} as const;

/** What a process does. */
export interface VideoRunTask {
  /** The configuration. */
  readonly configuration: VideoConfiguration;
  /** How it is run. */
  readonly settings: VideoSettings;
  /** Where random models are kept. */
  readonly cache: string;
  /** Where its video goes, frame after frame. */
  readonly frames: string;
  /** The float video of the same seed, where it is another. */
  readonly floats: string | undefined;
}

function parseFlags(args: readonly string[]) {
  const flags = new MatrixFlags(FLAGS, args);
  if (flags.help) return undefined;
  const dtype = flags.text("dtype");
  if (dtype !== "f32" && dtype !== "bf16" && dtype !== "f16") {
    throw new RangeError(`Cannot use --dtype ${JSON.stringify(dtype)}: pass f32, bf16 or f16`);
  }
  const quantizeVae = flags.schemes("quantize-vae");
  for (const name of quantizeVae) {
    if (name === NONE || (name !== AUTOQUANT && schemeOf(name).kinds.includes("conv2d"))) continue;
    throw new RangeError(`Cannot use --quantize-vae ${name}: pass int8wo, int8dq or fp8wo`);
  }
  const settings: VideoSettings = {
    prompt: flags.text("prompt"),
    dtype,
    warmup: flags.count("warmup", 0),
    runs: flags.count("runs"),
    num_inference_steps: flags.count("num-inference-steps"),
    height: flags.count("height"),
    width: flags.count("width"),
    num_frames: flags.count("num-frames"),
    num_layers: flags.count("num-layers", 0),
  };
  const configurations = VIDEOS.combine({
    model_type: flags.list("model-type"),
    compile: flags.switches("compile"),
    fuse_qkv: flags.switches("fuse-qkv"),
    quantize_vae: quantizeVae,
    quantization: flags.schemes("quantization"),
  });
  return { configurations, settings, out: flags.text("out") };
}

/** A configuration's name, which can be a file's. */
function nameOf({ model_type, compile, fuse_qkv, quantize_vae, quantization }: VideoConfiguration): string {
  const model = isModelType(model_type) ? model_type : model_type.replaceAll(/[^\w.]+/g, "_");
  const switches = [...(compile ? ["compile"] : []), ...(fuse_qkv ? ["fuse_qkv"] : [])];
  return [model, ...switches, `vae_${quantize_vae}`, quantization].join("-");
}

async function main(): Promise<void> {
  const wanted = parseFlags(Deno.args);
  if (!wanted) return console.log(matrixHelp(FLAGS));
  const { configurations, settings, out } = wanted;
  const cache = `${out}/models`;
  const framesOf = (configuration: VideoConfiguration) => `${out}/${nameOf(configuration)}.rgb`;
  const run = async (configuration: VideoConfiguration, floats: string | undefined) =>
    await execute<Outcome<VideoConfiguration, VideoRow>>("video_run.ts", {
      configuration,
      settings,
      cache,
      frames: framesOf(configuration),
      floats,
    });
  const { runs, failed } = await runMatrix({
    matrix: VIDEOS,
    configurations,
    settings,
    out,
    nameOf,
    run: async (configuration) => {
      const { model_type } = configuration;
      const float = { model_type, compile: false, fuse_qkv: false, quantize_vae: NONE, quantization: NONE };
      const floats = framesOf(float);
      if (floats === framesOf(configuration)) return await run(configuration, undefined);
      if (!await Deno.stat(floats).then(() => true, () => false)) await run(float, undefined);
      return await run(configuration, floats);
    },
  });
  if (runs.rows.length > 0) {
    console.log(formatTable(runs.rows.map((row) => ({
      ...row,
      compile: String(row.compile),
      fuse_qkv: String(row.fuse_qkv),
      model_memory: formatBytes(row.model_memory),
      inference_memory: formatBytes(row.inference_memory),
      time: `${row.time.toFixed(3)} s`,
      psnr: row.psnr === Infinity ? "equal" : `${row.psnr.toFixed(1)} dB`,
    }))));
  }
  if (failed > 0) Deno.exit(1);
}

if (import.meta.main) await runBench(main);
