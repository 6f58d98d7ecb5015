/**
 * Tensors of random values for benchmarks: what the values are does not matter, that they are ordinary numbers does.
 *
 * @module
 */

import type { Dtype } from "../lib/graph/dtypes.ts";
import type { Module } from "../lib/nn/module.ts";
import { fromSource, tensor } from "../lib/tensor/source.ts";
import type { Tensor } from "../lib/tensor/tensor.ts";

let state = 1;

/** Values between -scale and scale, as bytes of an element type (f32 or bf16). */
function randomBytes(count: number, options: { dtype: Dtype; scale: number }): Uint8Array<ArrayBuffer> {
  const values = new Float32Array(count);
  for (let i = 0; i < count; i++) {
    state = (Math.imul(state, 1664525) + 1013904223) | 0;
    values[i] = state / 2 ** 31 * options.scale;
  }
  if (options.dtype === "f32") return new Uint8Array(values.buffer);
  if (options.dtype !== "bf16") throw new TypeError(`Benchmarks draw f32 and bf16, got ${options.dtype}`);
  const halves = new Uint16Array(count);
  const words = new Uint32Array(values.buffer);
  for (let i = 0; i < count; i++) halves[i] = words[i]! >>> 16;
  return new Uint8Array(halves.buffer);
}

const sizeOf = (shape: readonly number[]) => shape.reduce((a, b) => a * b, 1);

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

/** Gives every parameter of a module random values. */
export function fillModule(module: Module, dtype: Dtype = "f32"): void {
  for (const [, parameter] of module.namedParameters()) parameter.tensor = randomWeight(parameter.shape, dtype);
}
