/**
 * A CogVideoX pipeline's functions in a file that was compiled ahead of time: what is noted beside them, and how it is
 * read.
 *
 * @module
 */

import { type CompiledFile, type Description, functionOf } from "../compile/ahead_of_time.ts";
import type { FloatDtype } from "../graph/dtypes.ts";
import { AutoencoderKLCogVideoX, type DecodePlan, type DecodeShape } from "../models/autoencoder_kl_cogvideox.ts";
import type { VideoFrames } from "../models/frame_tiles.ts";
import type { Device } from "../tensor/device.ts";
import type { CompiledFunction } from "../tensor/function.ts";
import type { Tensor } from "../tensor/tensor.ts";
import {
  type AnyCogVideoXScheduler,
  COGVIDEOX_PARTS,
  type CogVideoXFacts,
  type CogVideoXFunctions,
  type CogVideoXPart,
  type CogVideoXShape,
  type DecodeCall,
  decodeLatents,
  type GuidedStep,
  type RecordedCogVideoX,
  schedulerClass,
  schedulerOf,
  type Step,
} from "./cogvideox_functions.ts";
import {
  brokenNote,
  configJson,
  isCount,
  isObject,
  isPositive,
  openCompiled,
  tokenizerAssets,
  tokenizerIn,
} from "./compiled.ts";
import type { PipelineLoadOptions } from "./load.ts";
import type { T5 } from "./text.ts";
import type { Tokenizer } from "./tokenizer.ts";

/** What the pipeline is, besides its functions. */
interface Noted {
  readonly model: string;
  readonly dtype: FloatDtype;
  readonly scheduler: AnyCogVideoXScheduler;
  readonly tokenizer: Tokenizer | undefined;
}

/** The class that reads such a file. */
const TARGET = "CogVideoXPipeline";

/**
 * Says what a file needs besides functions.
 *
 * @param noted What the pipeline is
 * @param functions Its functions
 * @param shapes The calls that the file is for
 * @returns Notes and files
 */
export async function describeCogVideoX(
  noted: Noted,
  functions: RecordedCogVideoX,
  shapes: readonly CogVideoXShape[],
): Promise<Description> {
  const { model, dtype, scheduler, tokenizer } = noted;
  const notes = {
    model,
    dtype,
    scheduler_class: schedulerClass(scheduler),
    scheduler: configJson(scheduler.config),
    vae: functions.vaeState,
    facts: functions.facts,
    quantization: functions.quantization,
    parameters: Object.fromEntries(COGVIDEOX_PARTS.map((part) => [part, functions.parameters(part)])),
    shapes,
  };
  return { target: TARGET, notes, assets: await tokenizerAssets({ tokenizer }) };
}

/**
 * Reads a file.
 *
 * @param path The file
 * @param options Device and type
 * @returns The pipeline's parts that are no models, and its functions
 * @throws {CheckpointError} If it is for another class, or a note is broken
 */
export async function readCogVideoX(
  path: string,
  options: PipelineLoadOptions,
): Promise<{ parts: Noted & { device: Device }; functions: CogVideoXFunctions }> {
  const { file, device, model, dtype } = await openCompiled(path, TARGET, options);
  const { scheduler, scheduler_class } = file.notes;
  if (typeof scheduler_class !== "string") throw brokenNote(file, "scheduler_class");
  const tokenizer = await tokenizerIn(file, "tokenizer");
  return {
    parts: { model, dtype, device, scheduler: schedulerOf(scheduler_class, scheduler, { file: path }), tokenizer },
    functions: new ReadCogVideoX(file, { device, dtype }),
  };
}

/** Functions that were read from a file. */
class ReadCogVideoX implements CogVideoXFunctions {
  readonly facts: CogVideoXFacts;
  readonly quantization: string;
  readonly t5: T5 | undefined;
  readonly step: Step;
  readonly guidedStep: GuidedStep;
  readonly #path: string;
  readonly #device: Device;
  readonly #vae: AutoencoderKLCogVideoX;
  readonly #shapes: readonly CogVideoXShape[];
  readonly #parameters: Readonly<Record<string, unknown>>;

  constructor(file: CompiledFile, { device, dtype }: { device: Device; dtype: FloatDtype }) {
    this.#path = file.path;
    this.#device = device;
    const { facts, quantization, shapes, parameters, vae } = file.notes;
    if (!isFacts(facts)) throw brokenNote(file, "facts");
    if (typeof quantization !== "string") throw brokenNote(file, "quantization");
    if (!isObject(parameters) || !COGVIDEOX_PARTS.every((part) => isCount(parameters[part]))) {
      throw brokenNote(file, "parameters");
    }
    if (!Array.isArray(shapes) || !shapes.every(isShape)) throw brokenNote(file, "shapes");
    if (!isObject(vae)) throw brokenNote(file, "vae");
    this.facts = facts;
    this.quantization = quantization;
    this.#shapes = shapes;
    this.#parameters = parameters;
    const read = <I, O>(name: string): CompiledFunction<I, O> => functionOf(file, name, device);
    this.t5 = facts.reads ? read("text_encoder") : undefined;
    this.step = read("transformer");
    this.guidedStep = read("transformer");
    // The VAE cuts and joins; its functions are the file's.
    this.#vae = AutoencoderKLCogVideoX.restore(vae, { file: file.path, functions: read });
    this.#vae.dtype = dtype;
  }

  parameters(part: CogVideoXPart): number {
    return this.#parameters[part] as number;
  }

  decodeFrames(latents: Tensor, call: DecodeCall): AsyncGenerator<VideoFrames, void> {
    return decodeLatents({ vae: this.#vae, device: this.#device }, latents, call);
  }

  planDecode(shape: Omit<DecodeShape, "batch">): DecodePlan {
    return this.#vae.planDecode(shape);
  }

  admit(shape: CogVideoXShape): void {
    const wanted = shapeText(shape);
    const known = this.#shapes.map(shapeText);
    if (known.includes(wanted)) return;
    throw new RangeError(
      `Cannot make ${wanted} with ${this.#path}, which was compiled for ${known.join("; ")}: pass those, or ` +
        "compile the model for what is wanted",
    );
  }
}

/** What a call makes, in words. */
function shapeText(shape: CogVideoXShape): string {
  const { width, height, numFrames, prompts, numVideosPerPrompt, numInferenceSteps, maxSequenceLength } = shape;
  return `${prompts * numVideosPerPrompt} videos of ${numFrames} frames of ${width} by ${height} pixels of ` +
    `${prompts} prompts of ${maxSequenceLength} tokens in ${numInferenceSteps} steps` +
    `${shape.guided ? " with guidance" : ""}`;
}

const FACT_COUNTS = [
  "channels",
  "textEmbedDim",
  "maxTextSeqLength",
  "patchSize",
  "patchSizeT",
  "scaleFactor",
  "temporalFactor",
  "sampleHeight",
  "sampleWidth",
  "sampleFrames",
  "fps",
] as const satisfies readonly (keyof CogVideoXFacts)[];

function isFacts(value: unknown): value is CogVideoXFacts {
  return isObject(value) && FACT_COUNTS.every((name) => isPositive(value[name])) &&
    typeof value.fixedText === "boolean" && typeof value.reads === "boolean";
}

function isShape(value: unknown): value is CogVideoXShape {
  if (!isObject(value)) return false;
  const { width, height, numFrames, prompts, numVideosPerPrompt, numInferenceSteps, maxSequenceLength, guided } = value;
  const counts = [width, height, numFrames, prompts, numVideosPerPrompt, numInferenceSteps, maxSequenceLength];
  return counts.every(isPositive) && typeof guided === "boolean";
}
