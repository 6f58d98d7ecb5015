/**
 * A Flux pipeline's functions in a file that was compiled ahead of time: what is noted beside them, and how it is read.
 *
 * @module
 */

import { type CompiledFile, type Description, functionOf } from "../compile/ahead_of_time.ts";
import type { FloatDtype } from "../graph/dtypes.ts";
import { FlowMatchEulerDiscreteScheduler } from "../schedulers/flow_match_euler_discrete.ts";
import type { Device } from "../tensor/device.ts";
import type { CompiledFunction } from "../tensor/function.ts";
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
import {
  type Clip,
  type Decoder,
  decoderName,
  type DecoderShape,
  FLUX_PARTS,
  type FluxFacts,
  type FluxFunctions,
  type FluxPart,
  type FluxShape,
  type GuidedStep,
  type Step,
} from "./flux_functions.ts";
import type { PipelineLoadOptions } from "./load.ts";
import type { T5 } from "./text.ts";
import type { Tokenizer } from "./tokenizer.ts";

/** What the pipeline is, besides its functions. */
interface Noted {
  readonly model: string;
  readonly dtype: FloatDtype;
  readonly scheduler: FlowMatchEulerDiscreteScheduler;
  readonly tokenizer: Tokenizer | undefined;
  readonly tokenizer2: Tokenizer | undefined;
}

/** The class that reads such a file. */
export const FLUX_TARGET = "FluxPipeline";

/**
 * Says what a file needs besides functions.
 *
 * @param noted What the pipeline is
 * @param functions Its functions
 * @param shapes The calls that the file is for
 * @returns Notes and files
 */
export async function describeFlux(
  noted: Noted,
  functions: FluxFunctions,
  shapes: readonly FluxShape[],
): Promise<Description> {
  const { model, dtype, scheduler, tokenizer, tokenizer2 } = noted;
  const notes = {
    model,
    dtype,
    scheduler: configJson(scheduler.config),
    facts: functions.facts,
    quantization: functions.quantization,
    parameters: Object.fromEntries(FLUX_PARTS.map((part) => [part, functions.parameters(part)])),
    shapes,
  };
  return { target: FLUX_TARGET, notes, assets: await tokenizerAssets({ tokenizer, tokenizer_2: tokenizer2 }) };
}

/**
 * Reads a file.
 *
 * @param path The file
 * @param options Device and type
 * @returns The pipeline's parts that are no models, and its functions
 * @throws {CheckpointError} If it is for another class, or a note is broken
 */
export async function readFlux(
  path: string,
  options: PipelineLoadOptions,
): Promise<{ parts: Noted & { device: Device }; functions: FluxFunctions }> {
  const { file, device, model, dtype } = await openCompiled(path, FLUX_TARGET, options);
  const [tokenizer, tokenizer2] = await Promise.all([tokenizerIn(file, "tokenizer"), tokenizerIn(file, "tokenizer_2")]);
  const scheduler = FlowMatchEulerDiscreteScheduler.fromConfig(file.notes.scheduler, { file: path });
  return {
    parts: { model, dtype, device, scheduler, tokenizer, tokenizer2 },
    functions: new ReadFlux(file, device),
  };
}

/** Functions that were read from a file. */
class ReadFlux implements FluxFunctions {
  readonly facts: FluxFacts;
  readonly quantization: string;
  readonly clip: Clip | undefined;
  readonly t5: T5 | undefined;
  readonly step: Step;
  readonly guidedStep: GuidedStep;
  readonly #file: CompiledFile;
  readonly #device: Device;
  readonly #shapes: readonly FluxShape[];
  readonly #parameters: Readonly<Record<string, unknown>>;
  readonly #decoders = new Map<string, Decoder>();

  /**
   * Takes a file's functions.
   *
   * @param file The file
   * @param device Where they run, at the level of the file
   */
  constructor(file: CompiledFile, device: Device) {
    this.#file = file;
    this.#device = device;
    const { facts, quantization, shapes, parameters } = file.notes;
    if (!isFacts(facts)) throw brokenNote(file, "facts");
    if (typeof quantization !== "string") throw brokenNote(file, "quantization");
    if (!isObject(parameters) || !FLUX_PARTS.every((part) => isCount(parameters[part]))) {
      throw brokenNote(file, "parameters");
    }
    if (!Array.isArray(shapes) || !shapes.every(isShape)) throw brokenNote(file, "shapes");
    this.facts = facts;
    this.quantization = quantization;
    this.#shapes = shapes;
    this.#parameters = parameters;
    const read = <I, O>(name: string): CompiledFunction<I, O> => functionOf(file, name, device);
    this.clip = facts.clip && read("text_encoder");
    this.t5 = facts.clip && read("text_encoder_2");
    this.step = read("transformer");
    this.guidedStep = read("guided_transformer");
  }

  parameters(part: FluxPart): number {
    return this.#parameters[part] as number;
  }

  decoder(shape: DecoderShape): Decoder {
    const name = decoderName(shape);
    let decoder = this.#decoders.get(name);
    if (!decoder) this.#decoders.set(name, decoder = functionOf(this.#file, name, this.#device));
    return decoder;
  }

  admit(shape: FluxShape): void {
    const wanted = shapeText(shape);
    const known = this.#shapes.map(shapeText);
    if (known.includes(wanted)) return;
    throw new RangeError(
      `Cannot make ${wanted} with ${this.#file.path}, which was compiled for ${known.join("; ")}: pass those, or ` +
        "compile the model for what is wanted",
    );
  }
}

/** What a call makes, in words. */
function shapeText(shape: FluxShape): string {
  const { width, height, prompts, numImagesPerPrompt, numInferenceSteps, maxSequenceLength, guided } = shape;
  return `${prompts * numImagesPerPrompt} pictures of ${width} by ${height} pixels of ${prompts} prompts of up to ` +
    `${maxSequenceLength} tokens in ${numInferenceSteps} steps${guided ? " with guidance" : ""}`;
}

function isFacts(value: unknown): value is FluxFacts {
  if (!isObject(value)) return false;
  const { inChannels, jointAttentionDim, pooledProjectionDim, scaleFactor, sampleSize, slicing, clip } = value;
  const counts = [inChannels, jointAttentionDim, pooledProjectionDim, scaleFactor, sampleSize];
  return counts.every(isPositive) && typeof slicing === "boolean" && (clip === undefined ||
    (isObject(clip) && isPositive(clip.maxPositionEmbeddings) && isCount(clip.eosTokenId)));
}

function isShape(value: unknown): value is FluxShape {
  if (!isObject(value)) return false;
  const { width, height, prompts, numImagesPerPrompt, numInferenceSteps, maxSequenceLength, guided } = value;
  const counts = [width, height, prompts, numImagesPerPrompt, numInferenceSteps, maxSequenceLength];
  return counts.every(isPositive) && typeof guided === "boolean";
}
