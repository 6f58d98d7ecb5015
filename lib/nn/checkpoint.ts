/**
 * From a checkpoint to a module: each parameter becomes a range of a file, and nothing is read until it is needed.
 *
 * @module
 */

import { CheckpointError } from "../errors.ts";
import { type Dtype, DTYPES } from "../graph/dtypes.ts";
import { sameShape, sizeOf } from "../graph/ops.ts";
import { QuantizedTensor } from "../tensor/quantized.ts";
import { type Checkpoint, readTensor, type SafetensorsTensor } from "../tensor/safetensors.ts";
import { fromSource } from "../tensor/source.ts";
import { concat, type Tensor } from "../tensor/tensor.ts";
import { Conv2d, Conv3d, Embedding, Linear } from "./layers.ts";
import type { Module, Parameter } from "./module.ts";
import { partName, readQuantized } from "./quantized_checkpoint.ts";

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
  const kinds = layerKinds(module);
  for (const [name, parameter] of module.namedParameters()) {
    const places = find(name, parameter.shape);
    const quantized = quantizedParts(checkpoint, places, used);
    for (const rows of places) used.add(rows.name);
    const value = quantized
      ? join(checkpoint, name, quantized)
      : concat(places.map((rows) => partOf(checkpoint, rows, name)), 0);
    if (!sameShape(value.shape, parameter.shape)) {
      throw new CheckpointError(
        `${checkpoint.path} has ${name} of [${value.shape.join(", ")}], the configuration asks for [${
          parameter.shape.join(", ")
        }]: check that both are of one model`,
        { file: checkpoint.path, key: name },
      );
    }
    if (value instanceof QuantizedTensor) {
      checkKind(checkpoint, { name, value, kind: kinds.get(parameter) });
      parameter.quantized = value;
    } else {
      parameter.tensor = value;
    }
  }
  for (const name of checkpoint.tensors.keys()) {
    if (used.has(name) || ignore?.test(name)) continue;
    throw new CheckpointError(
      `${checkpoint.path} holds ${name}, which the model does not have: check that its config.json is of the same model`,
      { file: checkpoint.path, key: name },
    );
  }
}

/** The kinds of layers whose weights can be quantized. */
type LayerKind = "linear" | "convolution" | "embedding";

/** The kinds of layers by their weights. */
function layerKinds(module: Module): Map<Parameter, LayerKind> {
  const kinds = new Map<Parameter, LayerKind>();
  for (const [, layer] of module.namedModules()) {
    if (layer instanceof Linear) kinds.set(layer.weight, "linear");
    if (layer instanceof Conv2d || layer instanceof Conv3d) kinds.set(layer.weight, "convolution");
    if (layer instanceof Embedding) kinds.set(layer.weight, "embedding");
  }
  return kinds;
}

/** The quantized weights that a parameter is made of; nothing where it is in floats. */
function quantizedParts(
  checkpoint: Checkpoint,
  places: readonly Rows[],
  used: Set<string>,
): QuantizedTensor[] | undefined {
  const found = places.map(({ name, start = 0, count }) => {
    const whole = readQuantized(checkpoint, name, (part, type) => {
      const { file, offset, byteLength } = checkpoint.tensors.get(part)!;
      return fromFile(checkpoint, file, { ...type, name: part, offset, byteLength });
    });
    if (!whole) return undefined;
    for (const part of ["qdata", "scale", "zero_point"]) used.add(partName(name, part));
    const end = start + (count ?? whole.shape[0]! - start);
    if (end > whole.shape[0]!) throw tooFewRows(checkpoint, name, whole.shape);
    return start === 0 && end === whole.shape[0] ? whole : whole.rows(start, end);
  });
  const quantized = found.filter((part) => part !== undefined);
  if (quantized.length === 0) return undefined;
  if (quantized.length === found.length) return quantized;
  const [{ name: key }] = places as [Rows];
  throw new CheckpointError(
    `${checkpoint.path} has ${places.map(({ name }) => name).join(", ")}, which the model joins, some quantized and ` +
      "some not: quantize all of them or none",
    { file: checkpoint.path, key },
  );
}

function join(checkpoint: Checkpoint, key: string, parts: readonly QuantizedTensor[]): QuantizedTensor {
  if (parts.length === 1) return parts[0]!;
  try {
    return QuantizedTensor.concat(parts);
  } catch (cause) {
    throw new CheckpointError(
      `${checkpoint.path} has the parts of ${key} quantized in different ways: quantize all in one`,
      { file: checkpoint.path, key, cause },
    );
  }
}

/** Checks that a layer takes a weight as it is quantized. */
function checkKind(
  { path }: Checkpoint,
  { name, value, kind }: { name: string; value: QuantizedTensor; kind: LayerKind | undefined },
): void {
  const { format, activation } = value.quantization;
  const takes = kind === "linear" || (kind === "embedding" && format === "int8") ||
    (kind === "convolution" && (format === "int8" || format === "e4m3" || format === "e5m2") &&
      (activation.rows === "none" || (activation.rows === "int8" && activation.perTensor === 1)));
  if (takes) return;
  throw new CheckpointError(
    `${path} has ${name} in ${value.scheme}, of format ${format} with input rows ${activation.rows}, which a ` +
      `${kind ?? "parameter of this kind"} does not take: keep it in floats`,
    { file: path, key: name },
  );
}

function tooFewRows({ path }: Checkpoint, key: string, shape: readonly number[]): CheckpointError {
  return new CheckpointError(`${path} has ${key} of [${shape.join(", ")}], too few rows for the model`, {
    file: path,
    key,
  });
}

/** A part of a checkpoint's file as a leaf of the graph. */
function fromFile(
  checkpoint: Checkpoint,
  path: string,
  part: { shape: readonly number[]; dtype: Dtype; name: string; offset: number; byteLength: number },
): Tensor {
  const { offset, byteLength, ...type } = part;
  const { stamp } = checkpoint.files.find((file) => file.path === path)!;
  return fromSource({ kind: "file", path, offset, byteLength, stamp }, type);
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
  if (start + count > all) throw tooFewRows(checkpoint, rows.name, found.shape);
  if (found.dtype === "F64") return wide(checkpoint, found, { start, count });
  const rowBytes = all === 0 ? 0 : found.byteLength / all;
  return fromFile(checkpoint, found.file, {
    shape: found.shape.length === 0 ? [] : [count, ...found.shape.slice(1)],
    dtype: dtypeOf(found, checkpoint.path),
    name,
    offset: found.offset + start * rowBytes,
    byteLength: count * rowBytes,
  });
}

/** Rows of a tensor in float64, which no kernel reads: tables of positions, small enough to be read at once. */
function wide(
  checkpoint: Checkpoint,
  { name, shape }: SafetensorsTensor,
  { start, count }: { start: number; count: number },
): Tensor {
  const values = new Float64Array(readTensor(checkpoint, name).buffer);
  const size = sizeOf(shape.slice(1));
  const bytes = new Uint8Array(Float32Array.from(values.subarray(start * size, (start + count) * size)).buffer);
  return fromSource({ kind: "host", bytes }, { shape: [count, ...shape.slice(1)], dtype: "f32", name });
}

function dtypeOf(tensor: SafetensorsTensor, file: string): Dtype {
  const dtype = tensor.dtype.toLowerCase();
  if (dtype in DTYPES && DTYPES[dtype as Dtype].float) return dtype as Dtype;
  throw new CheckpointError(
    `${file} has ${tensor.name} in ${tensor.dtype}: weights are F32, BF16 or F16`,
    { file, key: tensor.name },
  );
}
