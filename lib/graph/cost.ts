/**
 * What kernel calls cost at least: bytes that they move, arithmetic that they do.
 *
 * @module
 */

import { byteSize, type Dtype } from "./dtypes.ts";
import type { Instruction, View } from "./lower.ts";
import { sizeOf } from "./ops.ts";

/** What the multiplications of a call are of: floats of a type, or codes of one. */
export type Arithmetic = "f32" | "bf16" | "fp8" | "int8";

/** What a machine can do at most in a second. */
export interface Limits extends Readonly<Record<Exclude<Arithmetic, "fp8">, number>> {
  /** Operations on fp8 codes; those of f32, where the machine has none for them. */
  readonly fp8?: number;
  /** Bytes read from memory. */
  readonly bytes: number;
}

/** The least that a call costs. */
export interface Cost {
  /** Bytes that it reads and writes, each once. */
  readonly bytes: number;
  /** Operations; a multiply-add counts as two. */
  readonly operations: number;
  /** What they are of. */
  readonly arithmetic: Arithmetic;
}

/**
 * The least that a kernel call costs.
 *
 * @param call The call
 * @returns Bytes and operations
 */
export function costOf(call: Instruction): Cost {
  const { kernel, operands } = call;
  const out = operands.at(-1)!;
  let bytes = operands.reduce((sum, operand) => sum + (operand ? bytesOf(operand) : 0), 0);
  // A table is read by the rows that are asked for.
  if (kernel === "embedding" || kernel === "quantized_embedding") bytes = bytesOf(operands[0]!) + 2 * bytesOf(out);
  return { bytes, operations: operationsOf(call), arithmetic: arithmeticOf(call) };
}

/**
 * The time that limits allow for a call.
 *
 * @param cost What it costs
 * @param limits What the machine can do
 * @returns Seconds
 */
export function allowedSeconds({ bytes, operations, arithmetic }: Cost, limits: Limits): number {
  return Math.max(bytes / limits.bytes, operations / (limits[arithmetic] ?? limits.f32));
}

/**
 * The shapes of a call's operands.
 *
 * @param call The call
 * @returns Such as `1x32x64 f32, 4096 f32 -> 1x32x64 f32`
 */
export function shapesOf({ operands }: Instruction): string {
  const texts = operands.map((view) => view ? `${view.shape.join("x")} ${view.storage.dtype}` : "-");
  return `${texts.slice(0, -1).join(", ")} -> ${texts.at(-1)}`;
}

/** The bytes of a view's elements; what repeats lies there once. */
function bytesOf({ storage, shape, strides }: View): number {
  return byteSize(storage.dtype) * sizeOf(shape.filter((_, axis) => strides[axis] !== 0));
}

function operationsOf({ kernel, operands, params }: Instruction): number {
  const shapeOf = (index: number) => operands.at(index)!.shape;
  const size = sizeOf(shapeOf(-1));
  switch (kernel) {
    case "linear":
    case "quantized_linear":
      return 2 * size * (params.k as number);
    case "matmul":
      return 2 * size * shapeOf(0).at(-1)!;
    case "conv":
    case "quantized_conv": {
      const { kt, kh, kw } = params as { kt: number; kh: number; kw: number };
      return 2 * size * shapeOf(0).at(-1)! * kt * kh * kw;
    }
    case "attention": {
      const [queries, keys] = [shapeOf(0)[2]!, shapeOf(1)[2]!];
      // Of a causal square, half is seen.
      const seen = params.causal ? keys - (Math.min(queries, keys) - 1) / 2 : keys;
      return 4 * size * seen;
    }
    default:
      return (OPERATIONS[kernel] ?? 1) * sizeOf(shapeOf(0));
  }
}

/** Operations an element, where they are not one; an exponential counts as ten. */
const OPERATIONS: Partial<Record<Instruction["kernel"], number>> = {
  softmax: 14,
  layer_norm: 8,
  rms_norm: 4,
  rope: 3,
  rms_norm_rope: 7,
  group_norm: 8,
  copy: 0,
  upsample_nearest: 0,
  embedding: 0,
  quantize_rows: 4,
};

const FLOATS: Partial<Record<Dtype, Arithmetic>> = { bf16: "bf16" };

function arithmeticOf({ kernel, operands, params }: Instruction): Arithmetic {
  const multiplies = ["linear", "quantized_linear", "conv", "quantized_conv", "attention"].includes(kernel);
  if (!multiplies) return "f32";
  if (params.rows === "int8" || params.rows === "int8_asym") return "int8";
  if (params.rows === "e4m3" || params.rows === "e5m2") return "fp8";
  return FLOATS[operands[0]!.storage.dtype] ?? "f32";
}
