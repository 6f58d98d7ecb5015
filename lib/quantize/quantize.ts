/**
 * Quantizes the weights of a model's layers, and takes it back.
 *
 * @module
 */

import { byteSize, type FloatDtype } from "../graph/dtypes.ts";
import type { Node } from "../graph/node.ts";
import { refusal } from "../graph/quantized.ts";
import { sizeOf } from "../graph/ops.ts";
import { Conv2d, Conv3d, Embedding, Linear } from "../nn/layers.ts";
import { Model, type Module, type Parameter } from "../nn/module.ts";
import { Device } from "../tensor/device.ts";
import { computeOnce } from "../tensor/function.ts";
import { QuantizedTensor } from "../tensor/quantized.ts";
import { fromSource } from "../tensor/source.ts";
import { record } from "../tensor/tensor.ts";
import { schemeOf } from "./schemes.ts";
import type { LayerKind, Scheme, SchemeOptions } from "./scheme.ts";

/** A layer that can be quantized. */
export interface QuantizableLayer {
  /** Its name in the model, such as `transformer_blocks.0.ff.net.2`. */
  readonly name: string;
  /** What it is. */
  readonly kind: LayerKind;
  /** Its weight's shape: (outputs, inputs), (filters, channels, height, width) or (rows, size). */
  readonly shape: readonly number[];
  /** Its weight. */
  readonly weight: Parameter;
}

/** Which layers: those whose name matches, those of some least size, or those for which a function is true. */
export type LayerFilter =
  | RegExp
  | { readonly name?: RegExp; readonly minInputs?: number; readonly minOutputs?: number }
  | ((layer: QuantizableLayer) => boolean);

/** How a model is quantized. */
export interface QuantizeOptions extends SchemeOptions {
  /** Which layers; all of the kinds by default. */
  filter?: LayerFilter | undefined;
  /** Which kinds of layers; linear layers and convolutions by default. */
  kinds?: readonly LayerKind[] | undefined;
  /** The float type that scales are computed in; what the model computes in by default. */
  dtype?: FloatDtype | undefined;
}

/** A scheme for some of the layers; the first rule that takes a layer decides. */
export interface QuantizeRule extends SchemeOptions {
  /** Which layers; all that no rule before took by default. */
  readonly filter?: LayerFilter | undefined;
  /** The scheme, or its name; `none` leaves them as they are. */
  readonly scheme: Scheme | string;
}

/** A layer that was quantized. */
export interface QuantizedLayer {
  /** Its name. */
  readonly name: string;
  /** The scheme's name. */
  readonly scheme: string;
  /** Its weight's bytes before and after. */
  readonly bytesBefore: number;
  /** Codes, scales and zero points. */
  readonly bytes: number;
}

/** A layer that was left as it was. */
export interface SkippedLayer {
  /** Its name. */
  readonly name: string;
  /** Its weight's shape. */
  readonly shape: string;
  /** Why. */
  readonly reason: string;
}

/** What quantizing did. */
export interface QuantizeReport {
  /** The layers that were quantized. */
  readonly quantized: readonly QuantizedLayer[];
  /** The layers that were left as they were, and why. */
  readonly skipped: readonly SkippedLayer[];
}

/**
 * The layers of a model that can be quantized.
 *
 * @param module The model, or a part of one
 * @returns The layers, in the model's order
 */
export function quantizableLayers(module: Module): QuantizableLayer[] {
  const layers: QuantizableLayer[] = [];
  for (const [name, layer] of module.namedModules()) {
    const kind = layer instanceof Linear
      ? "linear"
      : layer instanceof Conv2d
      ? "conv2d"
      : layer instanceof Conv3d
      ? "conv3d"
      : layer instanceof Embedding
      ? "embedding"
      : undefined;
    if (!kind) continue;
    const { weight } = layer as Linear | Conv2d | Conv3d | Embedding;
    layers.push({ name, kind, shape: weight.shape, weight });
  }
  return layers;
}

/** Inputs of an output. */
function columnsOf({ shape }: QuantizableLayer): number {
  return sizeOf(shape.slice(1));
}

/**
 * Whether a filter takes a layer.
 *
 * @param filter The filter; none takes all
 * @param layer The layer
 * @returns Whether it does
 */
export function takes(filter: LayerFilter | undefined, layer: QuantizableLayer): boolean {
  if (filter === undefined) return true;
  if (typeof filter === "function") return filter(layer);
  if (filter instanceof RegExp) return matches(filter, layer.name);
  const { name, minInputs = 0, minOutputs = 0 } = filter;
  return (!name || matches(name, layer.name)) && columnsOf(layer) >= minInputs && layer.shape[0]! >= minOutputs;
}

/** A global or sticky expression remembers where it stopped. */
function matches(expression: RegExp, text: string): boolean {
  expression.lastIndex = 0;
  return expression.test(text);
}

/**
 * Quantizes layers of a model. Nothing is computed now: a weight is read and quantized when it is first needed, one
 * after another, so that no more than one is there in floats.
 *
 * @example
 * ```ts
 * import { FluxTransformer2DModel, quantize } from "../../mod.ts";
 *
 * const folder = new URL("../../models/shapes-flux/transformer", import.meta.url).pathname;
 * const transformer = await FluxTransformer2DModel.load(folder);
 * const { skipped } = quantize(transformer, "int8dq", { filter: /^(?!proj_out)/ });
 * console.table(skipped);
 * ```
 *
 * @param module The model, or a part of one
 * @param scheme A scheme, its name, or rules that give each layer its own
 * @param options Which layers, and the scheme's settings
 * @returns What was quantized, what was not, and why
 * @throws {RangeError} If there is no such scheme, or a setting is out of range
 */
export function quantize(
  module: Module,
  scheme: Scheme | string | readonly QuantizeRule[],
  options: QuantizeOptions = {},
): QuantizeReport {
  const { filter, kinds = ["linear", "conv2d", "conv3d"], dtype, ...settings } = options;
  const rules = (typeof scheme === "object" && "length" in scheme ? scheme : [{ scheme }]).map((rule) => ({
    ...rule,
    scheme: typeof rule.scheme !== "string" ? rule.scheme : rule.scheme === "none" ? undefined : schemeOf(rule.scheme),
  }));
  const from = dtype ?? (module instanceof Model ? module.dtype as FloatDtype : undefined);
  const values = new Map<Parameter, QuantizedTensor>();
  const quantized: QuantizedLayer[] = [];
  const skipped: SkippedLayer[] = [];
  for (const layer of quantizableLayers(module)) {
    const skip = (reason: string) => skipped.push({ name: layer.name, shape: layer.shape.join(" x "), reason });
    const rule = kinds.includes(layer.kind) && takes(filter, layer)
      ? rules.find((rule) => takes(rule.filter, layer))
      : undefined;
    if (!rule) {
      skip(kinds.includes(layer.kind) ? "the filter leaves it out" : `it is of kind ${layer.kind}`);
    } else if (!rule.scheme) {
      skip("its rule is none");
    } else {
      const result = prepareLayer(layer, rule.scheme, { ...settings, ...rule, dtype: from });
      if (typeof result === "string") skip(result);
      else {
        quantized.push(result.report);
        values.set(layer.weight, result.value);
      }
    }
  }
  // Only now: a rule that cannot be followed leaves the model as it was.
  for (const [weight, value] of values) weight.quantized = value;
  return { quantized, skipped };
}

/**
 * Quantizes a layer's weight, and gives it to nobody yet.
 *
 * @param layer The layer
 * @param scheme How
 * @param options The scheme's settings, and the type that scales are computed in: the weight's own by default
 * @returns The weight and its report; the reason where it cannot be quantized
 * @throws {RangeError} If a setting is out of range
 */
export function prepareLayer(
  layer: QuantizableLayer,
  scheme: Scheme,
  options: SchemeOptions & { dtype?: FloatDtype | undefined },
): { report: QuantizedLayer; value: QuantizedTensor } | string {
  const { name, kind, weight } = layer;
  if (weight.quantized) return `it is in ${weight.quantized.scheme} already: dequantize it first`;
  if (!scheme.kinds.includes(kind)) return `${scheme.name} is not for layers of kind ${kind}`;
  const columns = columnsOf(layer);
  const quantization = scheme.quantization({ kind, columns, sparse: isPruned(weight) }, options);
  const reason = refusal(quantization, columns);
  if (reason) return reason;
  const dtype = options.dtype ?? weight.tensor.dtype as FloatDtype;
  const value = QuantizedTensor.quantize(weight.tensor, { scheme: scheme.name, quantization, dtype });
  const bytesBefore = sizeOf(weight.shape) * byteSize(weight.tensor.dtype);
  return { report: { name, scheme: scheme.name, bytesBefore, bytes: value.byteLength }, value };
}

const PRUNED = "prune_semi_structured";

/**
 * Whether a weight is in floats that {@linkcode sparsify} pruned.
 *
 * @param weight The weight
 * @returns Whether it is
 */
export function isPruned(weight: Parameter): boolean {
  return holdsPruned(weight.tensor.node);
}

/** Whether a node was pruned, or is made of rows of such nodes, as projections that were joined are. */
function holdsPruned({ op, inputs, params }: Node): boolean {
  if (op === PRUNED) return true;
  return (op === "concat" || op === "slice") && params.axis === 0 && inputs.every((x) => holdsPruned(x!));
}

/**
 * Prunes the weights of linear layers to the two of each four with the largest magnitudes. `int8dq` stores such weights
 * without their zeros.
 *
 * @param module The model, or a part of one
 * @param options Which layers
 * @returns The names of the layers that were pruned, and those that were not, and why
 */
export function sparsify(
  module: Module,
  options: { filter?: LayerFilter | undefined } = {},
): { sparsified: readonly string[]; skipped: readonly SkippedLayer[] } {
  const sparsified: string[] = [];
  const skipped: SkippedLayer[] = [];
  for (const layer of quantizableLayers(module)) {
    const { name, kind, weight, shape } = layer;
    const reason = kind !== "linear"
      ? `it is of kind ${kind}`
      : !takes(options.filter, layer)
      ? "the filter leaves it out"
      : weight.quantized
      ? `it is in ${weight.quantized.scheme} already: prune before quantizing`
      : isPruned(weight)
      ? "it is pruned already"
      : shape[1]! % 8 !== 0
      ? `its ${shape[1]} inputs are not a multiple of 8`
      : undefined;
    if (reason !== undefined) {
      skipped.push({ name, shape: shape.join(" x "), reason });
    } else {
      weight.tensor = record(PRUNED, [weight.tensor], {});
      sparsified.push(name);
    }
  }
  return { sparsified, skipped };
}

/**
 * Gives quantized layers their floats back: those that the codes stand for, not those that they were made from.
 *
 * @param module The model, or a part of one
 * @param options Which layers, and where to compute
 * @returns The names of the layers
 */
export async function dequantize(
  module: Module,
  options: { filter?: LayerFilter | undefined; device?: Device | undefined } = {},
): Promise<string[]> {
  const { filter, device } = options;
  const names: string[] = [];
  for (const layer of quantizableLayers(module)) {
    const { quantized } = layer.weight;
    if (!quantized || !takes(filter, layer)) continue;
    const { shape, dtype } = quantized;
    const [buffer] = await computeOnce([quantized.tensor], device ?? await Device.default());
    layer.weight.tensor = fromSource({ kind: "buffer", buffer: buffer! }, { shape, dtype });
    names.push(layer.name);
  }
  return names;
}
