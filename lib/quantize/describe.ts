/**
 * How a model is quantized, in a few words: for reports, and for the settings in a picture's file.
 *
 * @module
 */

import type { Module } from "../nn/module.ts";
import type { QuantizedTensor } from "../tensor/quantized.ts";
import { isPruned, quantizableLayers } from "./quantize.ts";

/**
 * Says how many layers of a model are in which scheme, with the settings that are not the scheme's only ones.
 *
 * @example
 * ```ts
 * import { strictEqual } from "node:assert/strict";
 * import { describeQuantization, Linear, quantize } from "../../mod.ts";
 *
 * const layer = new Linear(64, 8);
 * quantize(layer, "int4wo");
 * strictEqual(describeQuantization(layer), "1 int4wo (group_size 32)");
 * ```
 *
 * @param module The model, or a part of one
 * @returns Such as `110 int8dq, 3 float`, the most frequent first; nothing where all layers are in floats
 */
export function describeQuantization(module: Module): string {
  const counts = new Map<string, number>();
  for (const { kind, weight } of quantizableLayers(module)) {
    const { quantized } = weight;
    if (kind === "embedding" && !quantized) continue; // few schemes take them, and only where they are asked to
    const label = quantized ? labelOf(quantized) : isPruned(weight) ? "pruned float" : FLOAT;
    counts.set(label, (counts.get(label) ?? 0) + 1);
  }
  const labels = [...counts].sort(([a, x], [b, y]) => y - x || (a < b ? -1 : 1));
  if (labels.every(([label]) => label === FLOAT)) return "";
  return labels.map(([label, count]) => `${count} ${label}`).join(", ");
}

/**
 * Says how each model of a pipeline is quantized.
 *
 * @param models The models by the names of their folders; what was not loaded is `undefined`
 * @returns Such as `transformer: 110 int8dq, 3 float; vae: 34 int8wo`; nothing where all are in floats
 */
export function describeModels(models: Readonly<Record<string, Module | undefined>>): string {
  return Object.entries(models).map(([part, model]) => ({ part, how: model ? describeQuantization(model) : "" }))
    .filter(({ how }) => how !== "").map(({ part, how }) => `${part}: ${how}`).join("; ");
}

const FLOAT = "float";

/** A scheme's name, and what can be set of it. */
function labelOf({ scheme, quantization }: QuantizedTensor): string {
  const { format, group, symmetric, activation } = quantization;
  const settings = [
    ...(format === "int4" ? [`group_size ${group}`] : []),
    ...(symmetric ? [] : ["zero points"]),
    ...(format === "sparse_int8" ? ["2:4 sparse"] : []),
    ...(format === "e5m2" ? ["e5m2"] : []),
    ...(scheme === "int4dq" && activation.rows === "int8" ? ["symmetric activations"] : []),
  ];
  return settings.length === 0 ? scheme : `${scheme} (${settings.join(", ")})`;
}
