/**
 * From a checkpoint to a module: each parameter becomes a range of a file, and nothing is read until it is needed.
 *
 * @module
 */

import { CheckpointError } from "../errors.ts";
import { type Dtype, DTYPES } from "../graph/dtypes.ts";
import { sameShape } from "../graph/ops.ts";
import type { Checkpoint, SafetensorsTensor } from "../tensor/safetensors.ts";
import { fromSource } from "../tensor/source.ts";
import { concat, type Tensor } from "../tensor/tensor.ts";
import type { Module } from "./module.ts";

/** Rows of a checkpoint's tensor, along its first axis: all of them, or some. */
export interface Rows {
  /** The tensor's name in the checkpoint. */
  readonly name: string;
  /** The first row. */
  readonly start?: number;
  /** How many rows; all by default. */
  readonly count?: number;
}

/** How a model is loaded. */
export interface LoadOptions {
  /** Whether it has weights, true by default. Without them it has its shapes, from which its memory can be planned. */
  readonly weights?: boolean | undefined;
}

/** How a module is filled. */
export interface ParameterOptions {
  /** Where a parameter's values are, one part after another, for checkpoints of other names. */
  readonly find?: (name: string, shape: readonly number[]) => readonly Rows[];
  /** Tensors of the checkpoint that no parameter takes and that are known to be needless. */
  readonly ignore?: RegExp;
}

/**
 * Fills a module's parameters from a checkpoint: every parameter must be there with its shape, and nothing else.
 *
 * @param module The module.
 * @param checkpoint The checkpoint.
 * @param options Names that differ.
 */
export function loadParameters(module: Module, checkpoint: Checkpoint, options: ParameterOptions = {}): void {
  const { find = (name) => [{ name }], ignore } = options;
  const used = new Set<string>();
  for (const [name, parameter] of module.namedParameters()) {
    const parts = find(name, parameter.shape).map((rows) => {
      used.add(rows.name);
      return partOf(checkpoint, rows, name);
    });
    const value = concat(parts, 0);
    if (!sameShape(value.shape, parameter.shape)) {
      throw new CheckpointError(
        `${checkpoint.path} has ${name} of [${value.shape.join(", ")}], the configuration asks for [${
          parameter.shape.join(", ")
        }]: check that both are of one model`,
        { file: checkpoint.path, key: name },
      );
    }
    parameter.tensor = value;
  }
  for (const name of checkpoint.tensors.keys()) {
    if (used.has(name) || ignore?.test(name)) continue;
    throw new CheckpointError(
      `${checkpoint.path} holds ${name}, which the model does not have: check that its config.json is of the same model`,
      { file: checkpoint.path, key: name },
    );
  }
}

/** Some rows of a checkpoint's tensor, as a leaf of the graph. */
function partOf(checkpoint: Checkpoint, rows: Rows, name: string): Tensor {
  const found = checkpoint.tensors.get(rows.name);
  if (!found) {
    throw new CheckpointError(
      `${checkpoint.path} lacks ${rows.name}: check that the checkpoint is complete and of the model that config.json names`,
      { file: checkpoint.path, key: rows.name },
    );
  }
  const { start = 0, count = (found.shape[0] ?? 1) - start } = rows;
  const all = found.shape[0] ?? 1;
  if (start + count > all) {
    throw new CheckpointError(
      `${checkpoint.path} has ${rows.name} of [${found.shape.join(", ")}], too few rows for ${name}`,
      { file: checkpoint.path, key: rows.name },
    );
  }
  const rowBytes = all === 0 ? 0 : found.byteLength / all;
  return fromSource(
    { kind: "file", path: found.file, offset: found.offset + start * rowBytes, byteLength: count * rowBytes },
    {
      shape: found.shape.length === 0 ? [] : [count, ...found.shape.slice(1)],
      dtype: dtypeOf(found, checkpoint.path),
      name,
    },
  );
}

function dtypeOf(tensor: SafetensorsTensor, file: string): Dtype {
  const dtype = tensor.dtype.toLowerCase();
  if (dtype in DTYPES && DTYPES[dtype as Dtype].float) return dtype as Dtype;
  throw new CheckpointError(
    `${file} has ${tensor.name} in ${tensor.dtype}: weights are F32, BF16 or F16`,
    { file, key: tensor.name },
  );
}
