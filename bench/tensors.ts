/**
 * Tensors of random values for benchmarks: what the values are does not matter, that they are ordinary numbers does.
 *
 * @module
 */

import type { Dtype, FloatDtype } from "../lib/graph/dtypes.ts";
import { sizeOf } from "../lib/graph/ops.ts";
import { storedRowBytes } from "../lib/graph/quantized.ts";
import type { FormatKind } from "../lib/graph/schema.ts";
import type { Module } from "../lib/nn/module.ts";
import { QuantizedTensor, type WeightQuantization } from "../lib/tensor/quantized.ts";
import { fromSource, tensor } from "../lib/tensor/source.ts";
import type { Tensor } from "../lib/tensor/tensor.ts";

let state = 1;

/** The next of 2^32 integers, their high bits the most random. */
function draw(): number {
  return state = (Math.imul(state, 1664525) + 1013904223) | 0;
}

/** Values between -scale and scale, as bytes of an element type (f32 or bf16). */
function randomBytes(count: number, options: { dtype: Dtype; scale: number }): Uint8Array<ArrayBuffer> {
  const values = new Float32Array(count);
  for (let i = 0; i < count; i++) values[i] = draw() / 2 ** 31 * options.scale;
  if (options.dtype === "f32") return new Uint8Array(values.buffer);
  if (options.dtype !== "bf16") throw new TypeError(`Benchmarks draw f32 and bf16, got ${options.dtype}`);
  const halves = new Uint16Array(count);
  const words = new Uint32Array(values.buffer);
  for (let i = 0; i < count; i++) halves[i] = words[i]! >>> 16;
  return new Uint8Array(halves.buffer);
}

/** An argument of a compiled function. */
export function randomArgument(shape: readonly number[], dtype: Dtype = "f32"): Tensor {
  const bytes = randomBytes(sizeOf(shape), { dtype, scale: 1 });
  return tensor(dtype === "bf16" ? new Uint16Array(bytes.buffer) : new Float32Array(bytes.buffer), { shape, dtype });
}

/** A weight, scaled by its inputs so that results stay as large as what came in. */
export function randomWeight(shape: readonly number[], dtype: Dtype = "f32"): Tensor {
  const inputs = sizeOf(shape.slice(1));
  const bytes = randomBytes(sizeOf(shape), { dtype, scale: inputs ** -0.5 });
  return fromSource({ kind: "host", bytes }, { shape, dtype });
}

/**
 * The same values as leaves of their own: once they are packed, each is at a place of its own.
 *
 * @param shape The weights' shape
 * @param dtype Their element type
 * @returns Makes one more
 */
export function copiesOfWeight(shape: readonly number[], dtype: Dtype = "f32"): () => Tensor {
  const bytes = randomBytes(sizeOf(shape), { dtype, scale: sizeOf(shape.slice(1)) ** -0.5 });
  return () => fromSource({ kind: "host", bytes }, { shape, dtype });
}

/** What {@linkcode copiesOfQuantized} takes. */
export interface QuantizedOptions {
  /** The scheme's name. */
  readonly scheme: string;
  /** How it stores a weight of that many columns. */
  readonly quantization: WeightQuantization;
  /** The floats that it stands for. */
  readonly dtype: FloatDtype;
}

/**
 * Quantized weights of random codes, as {@linkcode copiesOfWeight}. No float is made.
 *
 * @param shape Outputs and inputs
 * @param options How they are quantized
 * @returns Makes one more
 */
export function copiesOfQuantized(
  [n, k]: readonly [number, number],
  { scheme, quantization, dtype }: QuantizedOptions,
): () => QuantizedTensor {
  const { format, group, perTensor, symmetric } = quantization;
  const columns = storedRowBytes(quantization, k);
  const codes = randomCodes(format, { rows: n, columns, kept: k / 2 });
  const scales = perTensor ? [1, 1] : [n, k / group];
  const scale = new Uint8Array(new Float32Array(sizeOf(scales)).fill(SCALE[format] * k ** -0.5).buffer);
  const zeros = new Uint8Array(sizeOf(scales));
  return () =>
    new QuantizedTensor({
      codes: fromSource({ kind: "host", bytes: codes }, {
        shape: [n, columns],
        dtype: format === "int8" ? "i8" : "u8",
      }),
      scale: fromSource({ kind: "host", bytes: scale }, { shape: scales, dtype: "f32" }),
      zeroPoint: symmetric ? undefined : fromSource({ kind: "host", bytes: zeros }, { shape: scales, dtype: "i8" }),
    }, { scheme, quantization, shape: [n, k], dtype });
}

/** One over the size of a random code, about. */
const SCALE: Readonly<Record<FormatKind, number>> = {
  int8: 1 / 74,
  sparse_int8: 1 / 52,
  int4: 1 / 4.6,
  e4m3: 1,
  e5m2: 1,
  fpx: 1,
};

/** The two places of four that a group of `sparse_int8` keeps: the lower one in the lower bits. */
const PLACES = [0b0100, 0b1000, 0b1100, 0b1001, 0b1101, 0b1110];

/** Codes that every format takes: none is a NaN, and pruned groups keep two places in order. */
function randomCodes(
  format: FormatKind,
  { rows, columns, kept }: { rows: number; columns: number; kept: number },
): Uint8Array<ArrayBuffer> {
  const codes = new Uint8Array(rows * columns);
  for (let i = 0; i < codes.length; i++) codes[i] = draw() >>> 24;
  if (format === "e4m3" || format === "e5m2") {
    // Without the exponent's highest bit all are below 2.
    for (let i = 0; i < codes.length; i++) codes[i]! &= 0xbf;
  } else if (format === "sparse_int8") {
    for (let row = 0; row < codes.length; row += columns) {
      for (let i = row + kept; i < row + columns; i++) {
        codes[i] = PLACES[codes[i]! % 6]! | PLACES[(codes[i]! >> 3) % 6]! << 4;
      }
    }
  }
  return codes;
}

/** Gives every parameter of a module random values. */
export function fillModule(module: Module, dtype: Dtype = "f32"): void {
  for (const [, parameter] of module.namedParameters()) parameter.tensor = randomWeight(parameter.shape, dtype);
}
