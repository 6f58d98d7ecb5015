/**
 * What a model will take of the memory, from its configurations alone.
 *
 * @module
 */

import { byteSize, type FloatDtype } from "../graph/dtypes.ts";
import { packedBytes } from "../graph/ops.ts";
import { ModelConfig } from "./config.ts";
import { modelClass } from "./registry.ts";

/** The needs of one part of a pipeline. */
export interface PartMemory {
  /** The folder's name. */
  readonly part: string;
  /** The model's class. */
  readonly className: string;
  /** How many numbers it was trained on. */
  readonly parameters: number;
  /** The bytes of its weights once they are ready to compute with. */
  readonly bytes: number;
}

/**
 * The memory that the weights of a pipeline's models take. Nothing but configurations is read.
 *
 * @param folder The pipeline's folder.
 * @param parts The parts' folders.
 * @param dtype The type to compute in.
 * @returns A line for each part.
 */
export async function memoryNeeds(
  folder: string,
  { parts, dtype }: { parts: readonly string[]; dtype: FloatDtype },
): Promise<PartMemory[]> {
  return await Promise.all(parts.map(async (part) => {
    const config = await ModelConfig.read(`${folder}/${part}`);
    const model = new (modelClass(config))(config);
    let bytes = 0;
    for (const [, { shape }] of model.namedParameters()) bytes += weightBytes(shape, byteSize(dtype));
    return { part, className: config.className, parameters: model.parameterCount(), bytes };
  }));
}

/** Matrices and filters are packed; vectors are kept in f32. */
function weightBytes(shape: readonly number[], elementBytes: number): number {
  const [rows = 1, columns = 1, height = 1, width = 1] = shape;
  return shape.length < 2 ? 4 * rows : packedBytes(rows, columns, elementBytes) * height * width;
}
