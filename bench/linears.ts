/**
 * Linear layers at Flux.1-dev's shapes by scheme, for the benchmarks of speed.
 *
 * @module
 */

import { byteSize } from "../lib/graph/dtypes.ts";
import { quantizedBytes } from "../lib/graph/quantized.ts";
import { schemeOf, SCHEMES } from "../lib/quantize/schemes.ts";
import { Linear } from "../lib/nn/layers.ts";
import { type CompiledFunction, compileFunction } from "../lib/tensor/function.ts";
import type { WeightQuantization } from "../lib/tensor/quantized.ts";
import { concat, type Tensor } from "../lib/tensor/tensor.ts";
import { copiesOfQuantized, copiesOfWeight, randomArgument } from "./tensors.ts";

/** Inputs and outputs: attention's projections, the MLP up and down, the single block's output. */
export const LINEAR_SHAPES: readonly (readonly [k: number, n: number])[] = [
  [3072, 3072],
  [3072, 12288],
  [12288, 3072],
  [15360, 3072],
];

/** Weights as they are. */
export const FLOAT = "float";
/** `int8dq` of weights that were pruned to two of each four. */
export const SPARSE = "sparse int8dq";
/** Everything that a linear layer's weight can be. */
export const LINEAR_SCHEMES: readonly string[] = [FLOAT, ...SCHEMES.map(({ name }) => name), SPARSE];

/** Some layers of one shape. */
export interface LinearsOptions {
  /** Inputs and outputs. */
  readonly shape: readonly [k: number, n: number];
  /** Rows of the input. */
  readonly rows: number;
  /** What activations are computed in: f32 by default. */
  readonly dtype?: "f32" | "bf16";
  /** How many layers, each with a weight and an input of its own; 1 by default. */
  readonly count?: number;
}

/** Layers that are ready to run. */
export interface Linears {
  /** The function that applies them, and what to; its first call packs the weights. */
  readonly fn: CompiledFunction<{ x: Tensor }, { y: Tensor }>;
  readonly inputs: { x: Tensor };
  /** Applies each to its own input, one after another; the first call packs the weights. */
  run(): Promise<unknown>;
  /** Multiplications and additions of one of them. */
  readonly flop: number;
  /** Bytes of one of their weights. */
  readonly bytes: number;
}

/** How a scheme stores a weight of k columns; floats are not stored by a scheme. */
function quantizationOf(scheme: string, k: number): WeightQuantization | undefined {
  if (scheme === FLOAT) return undefined;
  const sparse = scheme === SPARSE;
  return schemeOf(sparse ? "int8dq" : scheme).quantization({ kind: "linear", columns: k, sparse }, {});
}

/**
 * Bytes of a weight as the kernel takes it.
 *
 * @param scheme One of {@linkcode LINEAR_SCHEMES}, or any scheme's name
 * @param options Its shape, and the type of floats
 * @returns The bytes
 */
export function weightBytes(scheme: string, options: Pick<LinearsOptions, "shape" | "dtype">): number {
  const { shape: [k, n], dtype = "f32" } = options;
  const quantization = quantizationOf(scheme, k);
  return quantization ? quantizedBytes(quantization, n, k, !quantization.symmetric) : n * k * byteSize(dtype);
}

/**
 * Makes linear layers of random weights.
 *
 * @param scheme One of {@linkcode LINEAR_SCHEMES}, or any scheme's name
 * @param options Their shape, and how many
 * @returns The layers
 */
export function makeLinears(scheme: string, options: LinearsOptions): Linears {
  const { shape: [k, n], rows, dtype = "f32", count = 1 } = options;
  const quantization = quantizationOf(scheme, k);
  const quantized = quantization && copiesOfQuantized([n, k], { scheme, quantization, dtype });
  const float = quantization ? undefined : copiesOfWeight([n, k], dtype);
  const layers = Array.from({ length: count }, () => {
    const layer = new Linear(k, n, { bias: false });
    if (quantized) layer.weight.quantized = quantized();
    else layer.weight.tensor = float!();
    return layer;
  });
  // Layers of one input would become one layer.
  const linears = compileFunction(({ x }: { x: Tensor }) => ({
    y: concat(layers.map((layer, i) => layer.forward(x.slice(0, i, i + 1))), 0),
  }), { name: "linears" });
  const inputs = { x: randomArgument([count, rows, k], dtype) };
  return {
    fn: linears,
    inputs,
    run: () => linears.run(inputs),
    flop: 2 * rows * k * n,
    bytes: weightBytes(scheme, options),
  };
}
