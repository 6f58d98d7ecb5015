/**
 * What a quantization scheme is: a name, the layers that it takes, and how it stores a weight.
 *
 * @module
 */

import { FLOAT_ACTIVATION } from "../graph/ops.ts";
import type { FormatKind } from "../graph/schema.ts";
import type { WeightQuantization } from "../tensor/quantized.ts";

/** The kinds of layers that can be quantized. */
export type LayerKind = "linear" | "conv2d" | "conv3d" | "embedding";

/** The settings that schemes take; each heeds those that concern it. */
export interface SchemeOptions {
  /** Inputs that share a scale, of int4: 32, 64, 128 or 256. */
  groupSize?: number | undefined;
  /** Whether int4 weights are centred on 0, without zero points. */
  symmetric?: boolean | undefined;
  /** The kind of fp8: `e4m3` by default. */
  fp8?: "e4m3" | "e5m2" | undefined;
  /** Whether the activations of `int4dq` have zero points, as torchao's have by default. */
  activation?: "asymmetric" | "symmetric" | undefined;
}

/** A layer, as a scheme sees it. */
export interface SchemeInput {
  /** What it is. */
  readonly kind: LayerKind;
  /** Inputs of an output: of a convolution, channels times the kernel's area. */
  readonly columns: number;
  /** Whether the weight was pruned to two of each four. */
  readonly sparse: boolean;
}

/** A quantization scheme. */
export interface Scheme {
  /** Its name. */
  readonly name: string;
  /** What it does, in a few words. */
  readonly summary: string;
  /** The layers that it takes. */
  readonly kinds: readonly LayerKind[];
  /** How it stores the weight of a layer, and what it makes of the input. */
  readonly quantization: (input: SchemeInput, options: SchemeOptions) => WeightQuantization;
}

/**
 * How a weight is quantized, from what differs from the plainest way: symmetric, a scale for each row, float inputs.
 *
 * @param format The form of codes.
 * @param input The layer.
 * @param change What differs.
 * @returns How the weight is quantized.
 */
export function byRow(
  format: FormatKind,
  input: SchemeInput,
  change: Partial<WeightQuantization> = {},
): WeightQuantization {
  return {
    format,
    ebits: 0,
    mbits: 0,
    group: input.columns,
    symmetric: true,
    perTensor: false,
    activation: FLOAT_ACTIVATION,
    ...change,
  };
}

const GROUPS = [32, 64, 128, 256];

/**
 * A group size after a check.
 *
 * @param size What the caller gave.
 * @param fallback What is taken where they gave none.
 * @returns The size.
 */
export function groupSize(size: number | undefined, fallback: number): number {
  if (size === undefined) return fallback;
  if (GROUPS.includes(size)) return size;
  throw new RangeError(`Cannot use a groupSize of ${size}: pass 32, 64, 128 or 256`);
}

/**
 * The kind of fp8 after a check.
 *
 * @param kind What the caller gave.
 * @returns The kind, `e4m3` where they gave none.
 */
export function fp8Kind(kind: SchemeOptions["fp8"]): "e4m3" | "e5m2" {
  if (kind === undefined || kind === "e4m3" || kind === "e5m2") return kind ?? "e4m3";
  throw new RangeError(`Cannot use an fp8 of ${JSON.stringify(kind)}: pass e4m3 or e5m2`);
}
