/**
 * Programs as bytes, in the form that the native library checks and runs: little-endian words of 32 bits.
 *
 * Header: magic, format, schema hash (2), arena bytes (2), buffers (count; for each: written, bytes (2)), instructions
 * (count). An instruction: the kernel's code; each operand (0 where absent, 1 for the arena, 2 + i for buffer i; then
 * dtype, rank, first byte (2), sizes, strides in elements); each parameter.
 *
 * @module
 */

import { byteSize, type Dtype, DTYPES } from "./dtypes.ts";
import type { Instruction, Lowered, Storage, View } from "./lower.ts";
import type { Arena } from "./plan.ts";
import { ACTIVATION, BINARY, FORMAT, KERNELS, type ParamType, REDUCE, ROWS, schemaHash, UNARY } from "./schema.ts";

/** `DNSE`. */
const MAGIC = 0x45534e44;
const PROGRAM_FORMAT = 1;

const CODES: Partial<Record<ParamType, Readonly<Record<string, number>>>> = {
  unary: UNARY,
  activation: ACTIVATION,
  binary: BINARY,
  reduce: REDUCE,
  format: FORMAT,
  rows: ROWS,
};

const PARAMS = new Map(
  Object.entries(KERNELS).map(([name, spec]) => [name, Object.entries(spec.params) as [string, ParamType][]]),
);

const hash = schemaHash();
const float = new Float32Array(1);
const floatBits = new Uint32Array(float.buffer);

/** Says which of a kernel's variants a call takes; `undefined` where it may stay as it was recorded. */
export type VariantOf = (call: Instruction) => number | undefined;

/** A list of words that grows. */
class Words {
  #words = new Uint32Array(1 << 12);
  #length = 0;

  push(word: number): void {
    if (this.#length === this.#words.length) {
      const larger = new Uint32Array(2 * this.#length);
      larger.set(this.#words);
      this.#words = larger;
    }
    this.#words[this.#length++] = word;
  }

  /** A count of bytes, as two words. */
  bytes(count: number): void {
    this.push(count >>> 0);
    this.push(Math.floor(count / 2 ** 32));
  }

  finish(): Uint8Array<ArrayBuffer> {
    return new Uint8Array(this.#words.buffer, 0, 4 * this.#length);
  }
}

/**
 * Writes a program.
 *
 * @param lowered The kernel calls and their buffers.
 * @param arena Where working memory lies.
 * @param variantOf Chooses the variants of kernels that have some.
 * @returns The program's bytes.
 */
export function assemble(
  lowered: Lowered,
  arena: Arena,
  variantOf: VariantOf = () => undefined,
): Uint8Array<ArrayBuffer> {
  const words = new Words();
  for (const word of [MAGIC, PROGRAM_FORMAT, ...hash]) words.push(word);
  words.bytes(arena.bytes);
  words.push(lowered.externals.length);
  const slots = new Map<Storage, number>();
  lowered.externals.forEach((storage, i) => {
    slots.set(storage, i + 2);
    words.push(storage.written ? 1 : 0);
    words.bytes(storage.size * byteSize(storage.dtype));
  });
  words.push(lowered.instructions.length);
  for (const instruction of lowered.instructions) {
    writeInstruction(words, withVariant(instruction, variantOf), { slots, arena });
  }
  return words.finish();
}

function withVariant(call: Instruction, variantOf: VariantOf): Instruction {
  if (call.params.variant === undefined) return call;
  const variant = variantOf(call);
  return variant === undefined ? call : { ...call, params: { ...call.params, variant } };
}

interface Memory {
  readonly slots: ReadonlyMap<Storage, number>;
  readonly arena: Arena;
}

function writeInstruction(words: Words, instruction: Instruction, memory: Memory): void {
  words.push(KERNELS[instruction.kernel].code);
  for (const operand of instruction.operands) writeOperand(words, operand, memory);
  for (const [name, type] of PARAMS.get(instruction.kernel)!) {
    words.push(paramWord(instruction.params[name]!, type));
  }
}

function writeOperand(words: Words, operand: View | null, memory: Memory): void {
  if (operand === null) return words.push(0);
  const { storage, offset, shape, strides } = operand;
  words.push(memory.slots.get(storage) ?? 1);
  words.push(DTYPES[storage.dtype].code);
  words.push(shape.length);
  words.bytes((memory.arena.offsets.get(storage) ?? 0) + offset * byteSize(storage.dtype));
  for (const size of shape) words.push(size);
  for (const stride of strides) words.push(stride);
}

function paramWord(value: number | string | readonly number[], type: ParamType): number {
  if (type === "f32") {
    float[0] = value as number;
    return floatBits[0]!;
  }
  if (type === "i32") return typeof value === "string" ? DTYPES[value as Dtype].code : value as number;
  return CODES[type]![value as string]!;
}
