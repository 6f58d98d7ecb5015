/**
 * Graphs and programs as text, one line a node or kernel call.
 *
 * @module
 */

import { type Node, topological } from "./node.ts";
import type { Lowered, Storage, View } from "./lower.ts";
import type { Arena } from "./plan.ts";

const RATES = ["constant", "run", "step"];

/**
 * A graph as text.
 *
 * @param outputs The outputs.
 * @returns A line for each node: its number, type, rate, operation, operands and parameters.
 */
export function dumpGraph(outputs: readonly Node[]): string {
  const order = topological(outputs);
  const numbers = new Map(order.map((n, i) => [n, i]));
  const wanted = new Set(outputs);
  return order.map((n, i) => {
    const inputs = n.inputs.map((x) => x ? `%${numbers.get(x)}` : "-").join(", ");
    const params = Object.entries(n.params).filter(([, v]) => v !== "").map(([k, v]) => `${k}=${paramText(v)}`);
    const mark = wanted.has(n) ? " -> output" : "";
    return `%${i}: ${n.dtype}[${n.shape.join(", ")}] ${RATES[n.rate]} = ${n.op}(${inputs}) ${params.join(" ")}${mark}`;
  }).join("\n");
}

/**
 * Kernel calls as text.
 *
 * @param lowered The calls and their buffers.
 * @param arena Where working memory lies.
 * @returns The buffers, then a line for each call.
 */
export function dumpProgram(lowered: Lowered, arena: Arena): string {
  const slots = new Map<Storage, string>();
  const lines = [`arena: ${arena.bytes} bytes`];
  lowered.externals.forEach((storage, i) => {
    slots.set(storage, `#${i}`);
    const name = storage.external!.params.name || storage.external!.op;
    lines.push(`#${i}: ${storage.dtype} x ${storage.size} ${storage.written ? "out" : "in"} ${name}`);
  });
  const view = (v: View | null) => {
    if (!v) return "-";
    const place = slots.get(v.storage) ?? `@${arena.offsets.get(v.storage)}`;
    return `${place}+${v.offset}[${v.shape.join(",")}]/(${v.strides.join(",")})`;
  };
  lowered.instructions.forEach((instruction, i) => {
    const [out, ...rest] = [instruction.operands.at(-1)!, ...instruction.operands.slice(0, -1)];
    const params = Object.entries(instruction.params).map(([k, v]) => `${k}=${paramText(v)}`).join(" ");
    lines.push(`${i}: ${view(out)} = ${instruction.kernel}(${rest.map(view).join(", ")}) ${params}`);
  });
  return lines.join("\n");
}

const paramText = (value: number | string | readonly number[]) => Array.isArray(value) ? `[${value.join(",")}]` : value;
