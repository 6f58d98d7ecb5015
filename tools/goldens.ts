/**
 * Checks every case below a folder of the fixtures' layout, on every instruction level that the CPU has, or on the
 * device that `--device` names: `deno task goldens DIR [--device cuda] [--dump OUT]`. With `--dump`, what was computed is
 * written as `OUT/<folder>/cases.safetensors` (tokenizers: `cases.json`) under the goldens' own keys.
 *
 * @module
 */

import { basename, join, relative } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { Image } from "../lib/media/image.ts";
import { maxAbsDifference, psnr } from "../lib/media/metrics.ts";
import { FluxPipeline } from "../lib/pipelines/flux.ts";
import type { FluxOptions } from "../lib/pipelines/flux.ts";
import { computeModelCases, type Manifest, manifestDifferences } from "../tests/golden_models.ts";
import { computeFloatOutput, computeQuantizationCases, type QuantizedCase } from "../tests/golden_quantization.ts";
import { computeVideoCases } from "../tests/golden_videos.ts";
import { Tokenizer } from "../lib/pipelines/tokenizer.ts";
import { CogVideoXDDIMScheduler } from "../lib/schedulers/ddim_cogvideox.ts";
import { CogVideoXDPMScheduler } from "../lib/schedulers/dpm_cogvideox.ts";
import { calculateShift, FlowMatchEulerDiscreteScheduler } from "../lib/schedulers/flow_match_euler_discrete.ts";
import { NativeError } from "../lib/errors.ts";
import { linspace } from "../lib/schedulers/linspace.ts";
import { bf16BitsToF32, f16BitsToF32 } from "../lib/tensor/convert.ts";
import { Device, type DeviceName } from "../lib/tensor/device.ts";
import { Generator, type RandnDtype } from "../lib/tensor/random.ts";
import { toArray } from "../lib/tensor/realize.ts";
import {
  openSafetensors,
  readTensor,
  type SafetensorsDtype,
  type SafetensorsFile,
  writeSafetensors,
} from "../lib/tensor/safetensors.ts";

/** The levels that there are kernels for; a CPU has some of them. */
const LEVELS = ["portable", "avx2", "avx512", "avx512bf16"] as const;
/** The device that runs the CUDA kernels thread by thread, after the levels; too slow for whole pictures. */
const EMULATED = "cuda-emulated";

/** How an error is measured, and the most that it may be (the least, for a PSNR). */
const MEASURES = {
  "relative L2": 1e-5,
  "largest difference": 1e-6,
  "normalized squared error": 1e-6,
  "units in the last place": 1,
  "differences": 0,
  "largest difference of 255": 2,
  "median PSNR (dB)": 45,
} as const;

/** One comparison with a golden. */
interface Check {
  readonly name: string;
  readonly level?: string;
  readonly measure: keyof typeof MEASURES;
  readonly error: number;
  /** What may be in place of the measure's own bound. */
  readonly bound?: number | undefined;
  readonly note?: string;
}

/** A tensor to dump. */
interface Computed {
  readonly key: string;
  readonly dtype: SafetensorsDtype;
  readonly shape: readonly number[];
  readonly data: ArrayBufferView<ArrayBuffer>;
}

/** A folder with goldens. */
interface Folder {
  readonly path: string;
  /** Relative to the folder that is checked. */
  readonly name: string;
}

/** What is not checked, and why. */
interface Skip {
  readonly name: string;
  readonly level?: string;
  readonly skipped: string;
}

/** What a checker is given. */
interface Run {
  /** Where it computes; a checker to which levels do not matter is given the best one. */
  readonly device: Device;
  /** What it computed, for `--dump`: tensors, or a tokenizer's cases. */
  readonly tensors: Computed[];
  readonly texts: TokenizerCase[];
}

type Outcomes = AsyncGenerator<Check | Skip>;

const project = fileURLToPath(new URL("..", import.meta.url));

const isFolder = (path: string): Promise<boolean> => Deno.stat(path).then((info) => info.isDirectory, () => false);

/** The values of a golden, as numbers. */
function valuesOf(file: SafetensorsFile, key: string): ArrayLike<number> {
  return numbersOf(readTensor(file, key), file.tensors.get(key)!.dtype);
}

/** Bytes of a dtype as numbers; of the dtypes of one byte as they are. */
function numbersOf(bytes: Uint8Array<ArrayBuffer>, dtype: SafetensorsDtype): ArrayLike<number> {
  switch (dtype) {
    case "F64":
      return new Float64Array(bytes.buffer);
    case "F32":
      return new Float32Array(bytes.buffer);
    case "F16":
      return f16BitsToF32(new Uint16Array(bytes.buffer));
    case "BF16":
      return bf16BitsToF32(new Uint16Array(bytes.buffer));
    case "I64":
      return Float64Array.from(new BigInt64Array(bytes.buffer), Number);
    case "I32":
      return new Int32Array(bytes.buffer);
    default:
      return bytes;
  }
}

/** How far values are from a golden; infinite where their number differs, and where one is not finite. */
function relativeL2(actual: ArrayLike<number>, expected: ArrayLike<number>): number {
  if (actual.length !== expected.length) return Infinity;
  let [difference, norm] = [0, 0];
  for (let i = 0; i < expected.length; i++) {
    difference += (actual[i]! - expected[i]!) ** 2;
    norm += expected[i]! ** 2;
  }
  const error = Math.sqrt(difference / (norm || 1));
  return Number.isFinite(error) ? error : Infinity;
}

function largestDifference(actual: ArrayLike<number>, expected: ArrayLike<number>): number {
  const error = actual.length === expected.length ? maxAbsDifference(actual, expected) : Infinity;
  return Number.isFinite(error) ? error : Infinity;
}

function countDifferences(actual: ArrayLike<number>, expected: ArrayLike<number>): number {
  let count = Math.abs(actual.length - expected.length);
  for (let i = 0; i < Math.min(actual.length, expected.length); i++) if (actual[i] !== expected[i]) count++;
  return count;
}

/** PyTorch's random numbers: `seed<S>.randn<N>.<dtype>`, and `seed<S>.two_draws.<dtype>`, a draw of [3, 7] and the rest. */
async function* checkRandom({ path }: Folder, { tensors }: Run): Outcomes {
  const file = openSafetensors(join(path, "cases.safetensors"));
  for (const [key, { shape }] of file.tensors) {
    const [, seed, kind, dtype] = /^seed(-?\d+)\.(randn\d+|two_draws)\.(f64|f32|f16|bf16)$/.exec(key) ?? [];
    if (!seed || !kind || !dtype) {
      yield { name: key, skipped: "a draw of a kind that is not known" };
      continue;
    }
    const generator = new Generator(BigInt(seed));
    const draw = (sizes: readonly number[]) => generator.randn(sizes, { dtype: dtype as RandnDtype });
    const data = kind === "two_draws"
      ? Float32Array.of(...draw([3, 7]), ...draw([shape[0]! - 21]))
      : draw([Number(kind.slice("randn".length))]);
    tensors.push({ key, shape, data, dtype: dtype.toUpperCase() as Computed["dtype"] });
    const bits = data as Uint16Array;
    const values = dtype === "bf16" ? bf16BitsToF32(bits) : dtype === "f16" ? f16BitsToF32(bits) : data;
    yield { name: key, measure: "largest difference", error: largestDifference(values, valuesOf(file, key)) };
  }
}

/** What the goldens have of a scheduler besides its configuration. */
interface SchedulerInputs {
  /** An input by its name. */
  readonly values: (name: string) => Float32Array<ArrayBuffer>;
  /** The latents before the first step. */
  readonly latents: Float32Array<ArrayBuffer>;
  /** The model's output at each of the first steps. */
  readonly outputs: readonly Float32Array<ArrayBuffer>[];
}

/** What a scheduler computes from them, under the goldens' names. */
type SchedulerOutputs = Readonly<Record<string, Float32Array<ArrayBuffer> | BigInt64Array<ArrayBuffer>>>;

/** How the goldens' schedulers were made. */
const SCHEDULERS: Readonly<Record<string, (inputs: SchedulerInputs) => SchedulerOutputs>> = {
  flow_match_euler_dev: (inputs) => runFlowMatch({ use_dynamic_shifting: true, shift: 3 }, inputs),
  flow_match_euler_schnell: (inputs) => runFlowMatch({ use_dynamic_shifting: false, shift: 1 }, inputs),
  cogvideox_ddim: (inputs) => {
    const scheduler = CogVideoXDDIMScheduler.fromConfig(COGVIDEOX);
    return runCogVideoX(scheduler, inputs, (output, latents, { index }) => scheduler.step(output, latents, { index }));
  },
  cogvideox_dpm: (inputs) => {
    const scheduler = CogVideoXDPMScheduler.fromConfig(COGVIDEOX);
    return runCogVideoX(scheduler, inputs, (output, latents, { index, old }) => {
      // Each step's generator has a seed of its own; its first draw is in the goldens.
      const drawn = inputs.values(`noise${index}`);
      const generator = new Generator(1000 + index);
      generator.randn([drawn.length]);
      const draws = [drawn, generator.randn([drawn.length])];
      const noise = scheduler.noise(index, () => draws.shift()!);
      return scheduler.step(output, latents, { index, noise, oldPredOriginalSample: old });
    });
  },
};

/** The configuration of CogVideoX-2b's schedulers. */
const COGVIDEOX = {
  prediction_type: "v_prediction",
  rescale_betas_zero_snr: true,
  snr_shift_scale: 3,
  timestep_spacing: "trailing",
};

/** The latents after each step. */
function takeSteps(
  { latents, outputs }: SchedulerInputs,
  step: (output: Float32Array, latents: Float32Array, index: number) => Float32Array,
): Float32Array<ArrayBuffer> {
  const all = new Float32Array(outputs.length * latents.length);
  let current: Float32Array = latents;
  for (const [index, output] of outputs.entries()) {
    current = step(output, current, index);
    all.set(current, index * latents.length);
  }
  return all;
}

function runFlowMatch(config: Readonly<Record<string, unknown>>, inputs: SchedulerInputs): SchedulerOutputs {
  const scheduler = FlowMatchEulerDiscreteScheduler.fromConfig(config);
  const steps = inputs.values("steps")[0]!;
  scheduler.setTimesteps({
    sigmas: linspace(1, 1 / steps, { num: steps }),
    mu: calculateShift(inputs.values("image_seq_len")[0]!, scheduler.config),
  });
  const latents = takeSteps(inputs, (output, latents, index) => scheduler.step(output, latents, { index }));
  return { sigmas: scheduler.sigmas, timesteps: scheduler.timesteps, latents };
}

function runCogVideoX(
  scheduler: CogVideoXDDIMScheduler | CogVideoXDPMScheduler,
  inputs: SchedulerInputs,
  step: (
    output: Float32Array,
    latents: Float32Array,
    options: { index: number; old: Float32Array | undefined },
  ) => { prevSample: Float32Array; predOriginalSample: Float32Array },
): SchedulerOutputs {
  scheduler.setTimesteps({ numInferenceSteps: inputs.values("steps")[0]! });
  let old: Float32Array | undefined;
  const latents = takeSteps(inputs, (output, latents, index) => {
    const { prevSample, predOriginalSample } = step(output, latents, { index, old });
    old = predOriginalSample;
    return prevSample;
  });
  return {
    alphas_cumprod: Float32Array.from(scheduler.alphasCumprod),
    timesteps: BigInt64Array.from(scheduler.timesteps, BigInt),
    latents,
  };
}

async function* checkSchedulers({ path }: Folder, { tensors }: Run): Outcomes {
  const file = openSafetensors(join(path, "cases.safetensors"));
  const names = new Set([...file.tensors.keys()].map((key) => key.split(".")[0]!));
  for (const name of [...names].sort()) {
    const kind = Object.keys(SCHEDULERS).find((kind) => name.startsWith(kind));
    if (kind === undefined) {
      yield { name, skipped: "a scheduler that denoise does not have yet" };
      continue;
    }
    const values = (input: string) => Float32Array.from(valuesOf(file, `${name}.in.${input}`));
    const latents = values("latents");
    const all = values("model_outputs");
    const outputs = Array.from(
      { length: all.length / latents.length },
      (_, i) => all.subarray(i * latents.length, (i + 1) * latents.length),
    );
    for (const [what, data] of Object.entries(SCHEDULERS[kind]!({ values, latents, outputs }))) {
      const key = `${name}.out.${what}`;
      const expected = valuesOf(file, key);
      const { dtype, shape } = file.tensors.get(key)!;
      tensors.push({ key, dtype, shape, data });
      const computed = typeof data[0] === "bigint" ? Float64Array.from(data as BigInt64Array, Number) : data;
      // Noise is PyTorch's within what its own vector math differs by from CPU to CPU.
      yield kind === "cogvideox_dpm" && what === "latents"
        ? { name: key, measure: "largest difference", error: largestDifference(computed as Float32Array, expected) }
        : { name: key, measure: "differences", error: countDifferences(computed as Float32Array, expected) };
    }
  }
}

/** What `--dump` writes for tokenizers. */
interface TokenizerCase {
  readonly text: string;
  readonly clip: readonly number[];
  readonly t5: readonly number[];
}

async function* checkTokenizers({ path }: Folder, { texts }: Run): Outcomes {
  const cases = JSON.parse(await Deno.readTextFile(join(path, "cases.json"))) as TokenizerCase[];
  const model = await modelFor(path);
  const [clip, t5] = await Promise.all([Tokenizer.load(`${model}/tokenizer`), Tokenizer.load(`${model}/tokenizer_2`)]);
  for (const [i, { text, ...ids }] of cases.entries()) {
    const encode = (tokenizer: Tokenizer, length: number) => [...tokenizer.encode(text, { maxLength: length }).ids];
    const computed = { text, clip: encode(clip, ids.clip.length), t5: encode(t5, ids.t5.length) };
    texts.push(computed);
    yield {
      name: `${i} ${JSON.stringify(text.slice(0, 40))}`,
      measure: "differences",
      error: countDifferences(computed.clip, ids.clip) + countDifferences(computed.t5, ids.t5),
    };
  }
}

/** The small Flux that goldens were made with: one beside them, or the project's own. */
async function modelFor(path: string): Promise<string> {
  const beside = join(path, "..", "..", "models", "shapes-flux");
  return await isFolder(beside) ? beside : join(project, "models", "shapes-flux");
}

/** A call of diffusers' pipeline, and what it was named. */
type PipelineCase = Readonly<Record<string, unknown>> & { readonly case: string; readonly prompt: readonly string[] };

/** `num_inference_steps` to `numInferenceSteps`, `prompt_2` to `prompt2`. */
const camelCase = (name: string): string => name.replace(/_([a-z0-9])/g, (_, letter) => letter.toUpperCase());

/** Bounds on what leads to a picture, so that a wrong one is seen where it starts. */
const BOUNDS: Readonly<Record<string, number>> = { initial_latents: 1e-6, latents_final: 1e-3 };

async function* checkPictures({ path }: Folder, { device, tensors }: Run): Outcomes {
  const file = openSafetensors(join(path, "cases.safetensors"));
  const cases = JSON.parse(await Deno.readTextFile(join(path, "cases.json"))) as PipelineCase[];
  const model = await modelFor(path);
  for (const dtype of ["f32", "bf16"] as const) {
    const pipe = await FluxPipeline.load(model, { device, dtype });
    const ratios: number[] = [];
    for (const { case: name, prompt, ...rest } of cases) {
      const options = Object.fromEntries(Object.entries(rest).map(([k, v]) => [camelCase(k), v])) as FluxOptions;
      const run = pipe.steps(prompt, options);
      let first: Float32Array<ArrayBuffer> | undefined;
      let next = await run.next();
      for (; !next.done; next = await run.next()) {
        if (dtype === "f32") first ??= await toArray<"f32">(next.value.latents, { device });
      }
      const { images, latents } = next.value;
      const pixels = concatBytes(images.map(({ data }) => data));
      const key = `${name}.out.image_${dtype}`;
      const { width, height } = images[0]!;
      tensors.push({ key, dtype: "U8", shape: [images.length, height, width, 3], data: pixels });
      const pictures = images.map((_, i) => join(path, `${name}_${i}_${dtype}.png`));
      const expected = file.tensors.has(key) ? valuesOf(file, key) : await pixelsOf(pictures);
      if (dtype === "bf16") {
        const size = pixels.length / images.length;
        for (let at = 0; at < pixels.length; at += size) {
          ratios.push(psnr(pixels.subarray(at, at + size), Array.prototype.slice.call(expected, at, at + size)));
        }
        continue;
      }
      const { promptEmbeds, pooledPromptEmbeds } = await pipe.encodePrompt(prompt, {
        prompt2: options.prompt2,
        maxSequenceLength: options.maxSequenceLength,
      });
      const start = pipe.prepareLatents({
        seed: options.seed!,
        height: options.height!,
        width: options.width!,
        count: images.length,
      });
      const parts = {
        prompt_embeds: await toArray<"f32">(promptEmbeds, { device }),
        pooled_prompt_embeds: await toArray<"f32">(pooledPromptEmbeds, { device }),
        initial_latents: await toArray<"f32">(start, { device }),
        latents_step1: first!,
        latents_final: await toArray<"f32">(latents, { device }),
      };
      for (const [part, data] of Object.entries(parts)) {
        const key = `${name}.out.${part}`;
        if (!file.tensors.has(key)) continue;
        tensors.push({ key, dtype: "F32", shape: file.tensors.get(key)!.shape, data });
        yield {
          name: key,
          measure: "relative L2" as const,
          error: relativeL2(data, valuesOf(file, key)),
          bound: BOUNDS[part],
        };
      }
      yield { name: key, measure: "largest difference of 255" as const, error: largestDifference(pixels, expected) };
    }
    if (dtype === "f32") continue;
    ratios.sort((a, b) => a - b);
    const middle = (ratios[(ratios.length - 1) >> 1]! + ratios[ratios.length >> 1]!) / 2;
    yield {
      name: `image_bf16 of ${ratios.length} pictures`,
      measure: "median PSNR (dB)" as const,
      error: middle,
      note: `lowest ${ratios[0]!.toFixed(1)}`,
    };
  }
}

function concatBytes(parts: readonly Uint8Array[]): Uint8Array<ArrayBuffer> {
  const all = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    all.set(part, at);
    at += part.length;
  }
  return all;
}

/** The pixels of pictures in files, one after another. */
async function pixelsOf(files: readonly string[]): Promise<Uint8Array<ArrayBuffer>> {
  return concatBytes((await Promise.all(files.map((file) => Image.open(file)))).map(({ data }) => data));
}

/** Models against what diffusers and transformers compute. */
async function* checkModel({ path }: Folder, { device, tensors }: Run): Outcomes {
  const file = openSafetensors(join(path, "cases.safetensors"));
  for await (const { key, shape, data } of computeModelCases(path, { device })) {
    tensors.push({ key, dtype: "F32", shape, data });
    yield { name: key, measure: "relative L2", error: relativeL2(data, valuesOf(file, key)) };
  }
}

/** What a whole run may be from diffusers' own: errors grow from step to step. */
const RUN_BOUND = 2e-5;

/** Whole runs of CogVideoX: every latent and frame, and the frames of 8 bits a channel. */
async function* checkVideos({ path }: Folder, { device, tensors }: Run): Outcomes {
  const file = openSafetensors(join(path, "cases.safetensors"));
  for await (const { key, shape, data, pictures } of computeVideoCases(path, { device })) {
    tensors.push({ key, dtype: "F32", shape, data });
    const expected = valuesOf(file, key);
    yield { name: key, measure: "relative L2", error: relativeL2(data, expected), bound: RUN_BOUND };
    if (!pictures) continue;
    const error = 255 * largestDifference(pictures, expected);
    yield { name: `${key} as pictures`, measure: "largest difference of 255", error, bound: 0.51 };
  }
}

/** A part of a number that f32 hardly tells. */
const NUDGE = 1e-7;

/**
 * Models as diffusers and torchao saved them quantized. The bound is a normalized squared error of 1e-6, as torchao
 * rounds what it computes on the way. Where activations are quantized, a value between two codes falls on either side,
 * and moves others: there no two ways to compute agree better than one with itself on inputs that differ by rounding.
 */
async function* checkQuantizedModel(folder: Folder, run: Run): Outcomes {
  const nudged = new Map<string, Float32Array>();
  for await (const { key, data } of computeModelCases(folder.path, { device: run.device, nudge: NUDGE })) {
    nudged.set(key, data);
  }
  let at = run.tensors.length;
  for await (const outcome of checkModel(folder, run)) {
    const unsteady = relativeL2(run.tensors[at++]!.data as Float32Array<ArrayBuffer>, nudged.get(outcome.name)!);
    yield { ...outcome, bound: Math.max(1e-3, 2 * unsteady) };
  }
}

/** A single file of Black Forest Labs' names, with the configuration and the cases of the folder without `-bfl`. */
async function* checkSingleFile({ path }: Folder, { device, tensors }: Run): Outcomes {
  const folder = path.replace(/-bfl$/, "-mini");
  const file = openSafetensors(join(folder, "cases.safetensors"));
  const checkpoint = join(path, `${basename(path)}.safetensors`);
  for await (const { key, shape, data } of computeModelCases(folder, { device, checkpoint })) {
    tensors.push({ key, dtype: "F32", shape, data });
    yield { name: key, measure: "relative L2", error: relativeL2(data, valuesOf(file, key)) };
  }
}

/** The sum of squared differences over the sum of squares; infinite as in `relativeL2`. */
const normalizedError = (actual: ArrayLike<number>, expected: ArrayLike<number>): number =>
  relativeL2(actual, expected) ** 2;

/** How many floats of a dtype lie between two lists at most. */
function unitsApart(actual: ArrayBufferView<ArrayBuffer>, expected: Uint8Array<ArrayBuffer>, dtype: SafetensorsDtype) {
  const bits = (view: ArrayBufferView<ArrayBuffer>) =>
    dtype === "F32"
      ? new Int32Array(view.buffer, view.byteOffset, view.byteLength / 4)
      : new Int16Array(view.buffer, view.byteOffset, view.byteLength / 2);
  return largestDifference(bits(actual), bits(expected));
}

/**
 * Codes that differ, and are no tie in rounding: those are next to each other, and the weight lies in the middle of what
 * they stand for.
 */
function countWrongCodes(
  actual: Uint8Array<ArrayBuffer>,
  file: SafetensorsFile,
  { name, weight, dequantized, quantization }: QuantizedCase,
): { wrong: number; ties: number } {
  const expected = readTensor(file, `${name}.qdata`);
  if (actual.length !== expected.length) return { wrong: Infinity, ties: 0 };
  const values = file.tensors.has(`${name}.dequant`) ? valuesOf(file, `${name}.dequant`) : undefined;
  const signed = quantization.format === "int8" || quantization.format === "int4";
  const order = (code: number) => signed ? code << 24 >> 24 : code < 128 ? code : 128 - code;
  let [wrong, ties] = [0, 0];
  for (let i = 0; i < actual.length; i++) {
    if (actual[i] === expected[i]) continue;
    const middle = values ? (dequantized[i]! + values[i]!) / 2 : NaN;
    const beside = Math.abs(order(actual[i]!) - order(expected[i]!)) === 1;
    // What dequantizing to bf16 rounds away.
    if (beside && Math.abs(weight[i]! - middle) <= 2 ** -8 * Math.abs(middle)) ties++;
    else wrong++;
  }
  return { wrong, ties };
}

/**
 * How far an output may be from torchao's. In f32 it is computed alike. In 16 bits torchao rounds products before the
 * scale and the bias, and activations before they are quantized, which alone moves its own outputs by 1e-5 and more.
 */
function outputBound({ dtype, quantization }: QuantizedCase): number {
  if (dtype === "f32") return 1e-6;
  return quantization.activation.rows === "none" ? 3e-5 : 2e-4;
}

/** Weights quantized as torchao quantizes them, and outputs of layers of them. */
async function* checkQuantization({ path }: Folder, { device, tensors }: Run): Outcomes {
  const file = openSafetensors(join(path, "cases.safetensors"));
  const float = await computeFloatOutput(path, { device });
  if (float) {
    tensors.push({ key: "y_f32", dtype: "F32", shape: file.tensors.get("y_f32")!.shape, data: float });
    yield { name: "y_f32", measure: "relative L2", error: relativeL2(float, valuesOf(file, "y_f32")) };
  }
  for await (const found of computeQuantizationCases(path, { device })) {
    if (typeof found === "string") {
      yield { name: found, skipped: "a scheme that denoise does not have yet" };
      continue;
    }
    const { name, dtype, quantization } = found;
    for (const { key, part, dtype: stored, shape, data } of found.parts) {
      tensors.push({ key, dtype: stored, shape, data });
      const bytes = new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
      const values = numbersOf(bytes, stored);
      const expected = valuesOf(file, key);
      if (part === "qdata") {
        const { wrong, ties } = countWrongCodes(bytes, file, found);
        yield { name: key, measure: "differences", error: wrong, ...(ties > 0 ? { note: `${ties} ties` } : {}) };
      } else if (part === "bits" || part === "zero_point") {
        yield { name: key, measure: "differences", error: countDifferences(values, expected) };
      } else if (part === "scale") {
        const error = unitsApart(data, readTensor(file, key), stored);
        const bound = quantization.format === "fpx" ? 0 : undefined;
        yield { name: key, measure: "units in the last place", error, bound };
      } else {
        const bound = part === "y" ? outputBound(found) : dtype === "f32" ? undefined : 1e-5;
        yield { name: key, measure: "normalized squared error", error: normalizedError(values, expected), bound };
      }
      if (part === "y" && found.reference && quantization.activation.rows === "none") {
        yield {
          name: `${name}.y of what is stored`,
          measure: "normalized squared error",
          error: normalizedError(values, found.reference),
          bound: dtype === "f32" ? undefined : 1e-5,
        };
      }
    }
  }
}

/** Every name and shape of the real models, no more and no less. */
async function* checkManifests({ path }: Folder): Outcomes {
  const names = (await Array.fromAsync(Deno.readDir(path))).map((entry) => entry.name);
  for (const name of names.filter((name) => name.endsWith(".json")).sort()) {
    const manifest = JSON.parse(await Deno.readTextFile(join(path, name))) as Manifest;
    const differences = manifestDifferences(name, manifest);
    if (differences === undefined) yield { name, skipped: "a model that denoise does not have yet" };
    else yield { name, measure: "differences", error: differences.length, note: differences.slice(0, 3).join("; ") };
  }
}

/** The checkers: of a model's class, or by the folder's name; the latter compute nothing on a device but for pictures. */
const CHECKERS: Readonly<Record<string, { check: (folder: Folder, run: Run) => Outcomes; everyLevel: boolean }>> = {
  FluxTransformer2DModel: { check: checkModel, everyLevel: true },
  "FluxTransformer2DModel quantized by torchao": { check: checkQuantizedModel, everyLevel: true },
  CogVideoXTransformer3DModel: { check: checkModel, everyLevel: true },
  AutoencoderKL: { check: checkModel, everyLevel: true },
  AutoencoderKLCogVideoX: { check: checkModel, everyLevel: true },
  CLIPTextModel: { check: checkModel, everyLevel: true },
  T5EncoderModel: { check: checkModel, everyLevel: true },
  CogVideoXPipeline: { check: checkVideos, everyLevel: true },
  "flux-dev-bfl": { check: checkSingleFile, everyLevel: true },
  "shapes-flux": { check: checkPictures, everyLevel: true },
  quantization: { check: checkQuantization, everyLevel: true },
  manifests: { check: checkManifests, everyLevel: false },
  random: { check: checkRandom, everyLevel: false },
  schedulers: { check: checkSchedulers, everyLevel: false },
  tokenizers: { check: checkTokenizers, everyLevel: false },
};

/** What a folder holds: the class in its configuration, or else its name; `undefined` where it holds no goldens. */
async function kindOf(path: string, names: ReadonlySet<string>): Promise<string | undefined> {
  for (const file of ["config.json", "model_index.json"]) {
    if (!names.has(file)) continue;
    const config = JSON.parse(await Deno.readTextFile(join(path, file)));
    const className = config._class_name ?? config.architectures?.[0] ?? basename(path);
    return config.quantization_config
      ? `${className} quantized by ${config.quantization_config.quant_method}`
      : className;
  }
  const isGolden = names.has("cases.safetensors") || names.has("cases.json") || basename(path) in CHECKERS ||
    [...names].some((name) => name.endsWith(".safetensors"));
  return isGolden ? basename(path) : undefined;
}

/** Every folder of goldens, in order, with what it holds. */
async function* foldersBelow(root: string, path = root): AsyncGenerator<Folder & { kind: string }> {
  const entries = await Array.fromAsync(Deno.readDir(path));
  const kind = await kindOf(path, new Set(entries.filter((e) => !e.isDirectory).map((e) => e.name)));
  if (kind !== undefined) return yield { path, name: relative(root, path) || basename(path), kind };
  for (const { name } of entries.filter((e) => e.isDirectory).sort((a, b) => a.name < b.name ? -1 : 1)) {
    yield* foldersBelow(root, join(path, name));
  }
}

/** Whether a check passed. NaN never does. */
function passes({ measure, error, bound = MEASURES[measure] }: Check): boolean {
  return measure === "median PSNR (dB)" ? error >= bound : error <= bound;
}

async function dumpFolder(out: string, { name }: Folder, { tensors, texts }: Run): Promise<void> {
  const folder = join(out, name);
  if (tensors.length > 0) {
    await Deno.mkdir(folder, { recursive: true });
    await writeSafetensors(
      join(folder, "cases.safetensors"),
      tensors.map(({ key, dtype, shape, data }) => ({
        name: key,
        dtype,
        shape,
        data: new Uint8Array(data.buffer, data.byteOffset, data.byteLength),
      })),
    );
  }
  if (texts.length > 0) {
    await Deno.mkdir(folder, { recursive: true });
    const file = join(folder, "cases.json");
    await Deno.writeTextFile(`${file}.partial`, JSON.stringify(texts, undefined, 1));
    await Deno.rename(`${file}.partial`, file);
  }
}

/** The emulated device, where its library was built. */
async function emulatedDevice(): Promise<string[]> {
  try {
    using _device = await Device.open({ device: EMULATED });
    return [EMULATED];
  } catch (error) {
    if (error instanceof NativeError && error.code === "unavailable") return [];
    throw error;
  }
}

/** Where checks run: the levels of the CPU and the emulated device, or one that was asked for. */
interface Places {
  /** All that there are, the best of the CPU's before what is no CPU. */
  readonly all: readonly string[];
  /** Those that are here. */
  readonly available: readonly string[];
  /** The one whose results are dumped, and where what needs no device is checked. */
  readonly best: string;
}

async function placesOf(device: string | undefined): Promise<Places> {
  if (device !== undefined) return { all: [device], available: [device], best: device };
  const available = [...await Device.levels(), ...await emulatedDevice()];
  return { all: [...LEVELS, EMULATED], available, best: LEVELS.findLast((level) => available.includes(level))! };
}

const isLevel = (place: string): boolean => LEVELS.some((level) => level === place);

/** Checks all folders; gives the number of checks that passed, failed and were skipped. */
async function checkAll(
  root: string,
  { all, available, best }: Places,
  out: string | undefined,
): Promise<{ passed: number; failed: number; skipped: number }> {
  const count = { passed: 0, failed: 0, skipped: 0 };
  const report = (folder: string, outcome: Check | Skip) => {
    const where = `${folder}: ${outcome.name}${outcome.level ? ` [${outcome.level}]` : ""}`;
    if ("skipped" in outcome) {
      count.skipped++;
      console.log(`skipped  ${where}: ${outcome.skipped}`);
      return;
    }
    const passed = passes(outcome);
    count[passed ? "passed" : "failed"]++;
    const { error, measure, note } = outcome;
    const shown = Number.isInteger(error) ? String(error) : error.toPrecision(3);
    console.log(`${passed ? "passed " : "FAILED "}  ${where}: ${measure} ${shown}${note ? ` (${note})` : ""}`);
  };
  for await (const folder of foldersBelow(root)) {
    const checker = CHECKERS[folder.kind];
    if (!checker) {
      report(folder.name, { name: folder.kind, skipped: "of a kind that denoise does not have yet" });
      continue;
    }
    // Whole pictures take the emulated device hours.
    const places = checker.everyLevel ? all.filter((x) => folder.kind !== "shapes-flux" || x !== EMULATED) : [best];
    for (const place of places) {
      const name = checker.everyLevel ? { level: place } : {};
      if (!available.includes(place)) {
        const skipped = place === EMULATED ? "a library that was not built" : "a level that this CPU lacks";
        report(folder.name, { name: folder.kind, ...name, skipped });
        continue;
      }
      using device = await Device.open(isLevel(place) ? { level: place } : { device: place as DeviceName });
      const run: Run = { device, tensors: [], texts: [] };
      try {
        for await (const outcome of checker.check(folder, run)) report(folder.name, { ...outcome, ...name });
      } catch (error) {
        const note = error instanceof Error ? error.message : String(error);
        report(folder.name, { name: folder.kind, ...name, measure: "differences", error: Infinity, note });
      }
      if (out !== undefined && place === best) await dumpFolder(out, folder, run);
    }
  }
  return count;
}

const { values: flags, positionals } = parseArgs({
  options: { dump: { type: "string" }, device: { type: "string" } },
  allowPositionals: true,
});
const [root] = positionals;
if (root === undefined || positionals.length > 1 || !await isFolder(root)) {
  console.error(`Cannot check ${root ?? "nothing"}: pass one folder of goldens, such as tests/fixtures`);
  Deno.exit(1);
}
const { passed, failed, skipped } = await checkAll(root, await placesOf(flags.device), flags.dump);
console.log(`${passed} passed, ${failed} failed, ${skipped} skipped`);
if (failed > 0) Deno.exit(1);
