/**
 * A Flux pipeline's functions in a file that was compiled ahead of time: what is noted beside them, and how it is read.
 *
 * @module
 */

import { type CompiledFile, type Description, functionOf } from "../compile/ahead_of_time.ts";
import { CheckpointError } from "../errors.ts";
import type { FloatDtype } from "../graph/dtypes.ts";
import { FlowMatchEulerDiscreteScheduler } from "../schedulers/flow_match_euler_discrete.ts";
import type { Device } from "../tensor/device.ts";
import type { CompiledFunction } from "../tensor/function.ts";
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
  type T5,
} from "./flux_functions.ts";
import { Tokenizer } from "./tokenizer.ts";

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
  const config = Object.entries(scheduler.config).map(([name, value]) => [snake(name), value]);
  const assets = [];
  for (const [folder, part] of [["tokenizer", tokenizer], ["tokenizer_2", tokenizer2]] as const) {
    for (const [name, bytes] of part ? await part.files() : []) assets.push({ name: `${folder}/${name}`, bytes });
  }
  const notes = {
    model,
    dtype,
    scheduler: Object.fromEntries(config),
    facts: functions.facts,
    quantization: functions.quantization,
    parameters: Object.fromEntries(FLUX_PARTS.map((part) => [part, functions.parameters(part)])),
    shapes,
  };
  return { target: FLUX_TARGET, notes, assets };
}

const snake = (name: string) => name.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);

/**
 * Reads what a file notes.
 *
 * @param file The file
 * @returns The pipeline's parts that are no models
 * @throws {CheckpointError} If it is for another class, or a note is broken
 */
export async function readNotes(file: CompiledFile): Promise<Noted> {
  if (file.target !== FLUX_TARGET) {
    throw new CheckpointError(
      `Cannot load ${file.path} as a FluxPipeline: it was compiled from a ${file.target}; compile a FluxPipeline`,
      { file: file.path, key: "target" },
    );
  }
  const { model, dtype, scheduler } = file.notes;
  if (typeof model !== "string") throw broken(file, "model");
  if (dtype !== "f32" && dtype !== "bf16" && dtype !== "f16") throw broken(file, "dtype");
  const [tokenizer, tokenizer2] = await Promise.all(["tokenizer", "tokenizer_2"].map((folder) => {
    const isThere = file.assets.keys().some((name) => name.startsWith(`${folder}/`));
    return isThere ? tokenizerOf(file, folder) : undefined;
  }));
  return {
    model,
    dtype,
    scheduler: FlowMatchEulerDiscreteScheduler.fromConfig(scheduler, { file: file.path }),
    tokenizer,
    tokenizer2,
  };
}

function tokenizerOf({ path, assets }: CompiledFile, folder: string): Promise<Tokenizer> {
  const read = (name: string) => {
    const bytes = assets.get(`${folder}/${name}`);
    return Promise.resolve(bytes && new TextDecoder().decode(bytes));
  };
  return Tokenizer.load(`${path}/${folder}`, { read });
}

function broken({ path }: CompiledFile, key: string): CheckpointError {
  return new CheckpointError(`Cannot load ${path} as its note ${key} is broken: compile and save it again`, {
    file: path,
    key,
  });
}

/** Functions that were read from a file. */
export class ReadFlux implements FluxFunctions {
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
    if (!isFacts(facts)) throw broken(file, "facts");
    if (typeof quantization !== "string") throw broken(file, "quantization");
    if (!isObject(parameters) || !FLUX_PARTS.every((part) => isCount(parameters[part]))) {
      throw broken(file, "parameters");
    }
    if (!Array.isArray(shapes) || !shapes.every(isShape)) throw broken(file, "shapes");
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

const isObject = (value: unknown): value is Record<string, unknown> => typeof value === "object" && value !== null;
const isCount = (value: unknown): value is number => Number.isSafeInteger(value) && (value as number) >= 0;
const isPositive = (value: unknown): value is number => isCount(value) && value > 0;

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
