/**
 * What loading is for every pipeline: the folder found or downloaded, its parts checked, the device opened.
 *
 * @module
 */

import { ConfigError } from "../errors.ts";
import type { FloatDtype } from "../graph/dtypes.ts";
import { checkDeviceName, Device, type DeviceName } from "../tensor/device.ts";
import { resolveModel, type ResolveOptions } from "./hub.ts";
import { type ModelIndex, readModelIndex } from "./pipeline.ts";

/** How a pipeline is loaded. */
export interface PipelineLoadOptions extends Omit<ResolveOptions, "components" | "weights"> {
  /** Where it runs: the best device there is by default. */
  device?: Device | DeviceName | undefined;
  /**
   * What activations are computed in, `f32` by default; weights keep their checkpoint's type, and quantized ones the
   * codes and scales that were stored.
   */
  dtype?: FloatDtype | undefined;
  /** Whether to load the text encoders, true by default; they are not needed where embeddings are given. */
  textEncoders?: boolean | undefined;
  /** Whether to load weights, true by default. Without them a pipeline can say what it will need, and not run. */
  weights?: boolean | undefined;
}

/** What a pipeline is made of. */
export interface PipelineKind {
  /** Its class in diffusers. */
  readonly className: string;
  /** The classes that each part may be of. */
  readonly classes: Readonly<Record<string, readonly string[]>>;
  /** The parts that read prompts. */
  readonly textEncoders: readonly string[];
}

/** A checkpoint that was found. */
export interface OpenedPipeline {
  /** Its parts. */
  readonly index: ModelIndex;
  /** Where it runs. */
  readonly device: Device;
  /** What activations are computed in. */
  readonly dtype: FloatDtype;
  /** Whether a part is there and wanted. */
  has(part: string): boolean;
}

/**
 * Checks how a pipeline is to be loaded.
 *
 * @param options Device and type
 * @throws {RangeError} If one is unknown
 */
export function checkLoadOptions({ device = "auto", dtype = "f32" }: PipelineLoadOptions): void {
  if (!["f32", "bf16", "f16"].includes(dtype)) {
    throw new RangeError(`Cannot compute in ${JSON.stringify(dtype)}: pass f32, bf16 or f16`);
  }
  if (!(device instanceof Device)) checkDeviceName(device);
}

/**
 * What the hub is told.
 *
 * @param options How a pipeline is loaded
 * @returns What of that is about downloads
 */
export function hubOptions(options: PipelineLoadOptions): ResolveOptions {
  const { device: _, dtype: __, textEncoders: ___, weights: ____, ...where } = options;
  return where;
}

/**
 * Finds a checkpoint, and downloads what is not here.
 *
 * @param model A folder in diffusers' layout, a hub id, or a URL
 * @param kind What it must be
 * @param options Where it runs, in what type, which parts; the parts whose weights are needed, all by default
 * @returns Its folder and parts
 * @throws {ConfigError} If a part is of another class
 */
export async function openPipeline(
  model: string,
  kind: PipelineKind,
  options: PipelineLoadOptions & { weightsOf?: readonly string[] | undefined },
): Promise<OpenedPipeline> {
  const { weightsOf, ...rest } = options;
  const { device = "auto", dtype = "f32", textEncoders = true, weights = true } = rest;
  const needed = Object.keys(kind.classes).filter((part) => !kind.textEncoders.includes(part));
  const withWeights = weights ? weightsOf : [];
  const folder = await resolveModel(model, {
    ...hubOptions(rest),
    ...(!textEncoders && { components: needed }),
    ...(withWeights && { weights: withWeights }),
  });
  const index = await readModelIndex(folder, kind.className);
  for (const [part, classNames] of Object.entries(kind.classes)) {
    const found = index.parts.get(part);
    if (found === undefined || classNames.includes(found)) continue;
    throw new ConfigError(
      `Cannot load ${folder} as its ${part} is a ${found}, and denoise has ${classNames.join(" and ")}: ` +
        "use a checkpoint with that",
      { file: `${folder}/model_index.json`, key: part },
    );
  }
  return {
    index,
    device: device instanceof Device ? device : await Device.shared(device),
    dtype,
    has: (part) => textEncoders && index.parts.has(part),
  };
}
