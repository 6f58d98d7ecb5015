/**
 * Values of lazy tensors, without a compiled function: eager.
 *
 * @module
 */

import type { Dtype } from "../graph/dtypes.ts";
import { Device } from "./device.ts";
import { compileFunction } from "./function.ts";
import { type ArrayOf, arrayOf } from "./source.ts";
import type { Tensor } from "./tensor.ts";

/**
 * Computes lazy tensors now, together.
 *
 * @param tensors What to compute.
 * @param options The device; the default one by default.
 * @returns Tensors with the values, in the order given.
 */
export async function realize(tensors: readonly Tensor[], options: { device?: Device } = {}): Promise<Tensor[]> {
  const compute = compileFunction(() => Object.fromEntries(tensors.entries()), { ...options, name: "realize" });
  const values = await compute.run({});
  return tensors.map((_, i) => values[i]!);
}

/**
 * A tensor's values.
 *
 * @param t The tensor; computed now if it is not yet.
 * @param options The device; the default one by default.
 * @returns The values in order; 16-bit floats as their bits.
 */
export async function toArray<D extends Dtype>(t: Tensor, options: { device?: Device } = {}): Promise<ArrayOf[D]> {
  const [value] = t.node.op === "leaf" ? [t] : await realize([t], options);
  const device = options.device ?? await Device.default();
  return arrayOf(device.bufferOf(value!.node).read(), t.dtype as D);
}
