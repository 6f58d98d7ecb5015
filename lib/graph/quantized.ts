/**
 * The sizes of quantized weights and activations, as the schema's formats say; the native library has the same rules in
 * `kernels/src/quant.rs`.
 *
 * @module
 */

import type { FormatKind } from "./schema.ts";

/** A stored format and what belongs to it. */
export interface WeightFormat {
  /** The form of a code. */
  readonly format: FormatKind;
  /** Exponent bits; of `fpx` alone, 0 otherwise. */
  readonly ebits: number;
  /** Mantissa bits; of `fpx` alone, 0 otherwise. */
  readonly mbits: number;
  /** Columns that share a scale. */
  readonly group: number;
}

const roundUp = (size: number, multiple: number) => Math.ceil(size / multiple) * multiple;

/**
 * Bits of storage for each element of a weight.
 *
 * @param format The format.
 * @returns The bits.
 */
export function weightBits({ format, ebits, mbits }: Omit<WeightFormat, "group">): number {
  if (format === "int4") return 4;
  if (format === "fpx") return 1 + ebits + mbits;
  // Half a byte of value and a quarter of places for each two of four.
  return format === "sparse_int8" ? 5 : 8;
}

/**
 * Why a format cannot take rows of some length.
 *
 * @param format The format.
 * @param columns The length.
 * @returns The reason, as the end of a sentence; `undefined` where it can.
 */
export function refusal(format: WeightFormat, columns: number): string | undefined {
  const { ebits, mbits, group } = format;
  if (format.format === "fpx") {
    const bits = weightBits(format);
    if (!(ebits >= 1 && ebits <= 7 && mbits >= 0 && mbits <= 6 && bits >= 3 && bits <= 8)) {
      return `a small float has 3 to 8 bits with its sign, 1 to 7 of exponent, not ${ebits} and ${mbits}`;
    }
  }
  if (format.format === "int4" && columns % 2 !== 0) return `its ${columns} inputs are not even`;
  if (format.format === "sparse_int8" && columns % 8 !== 0) return `its ${columns} inputs are not a multiple of 8`;
  if (!(group > 0) || columns % group !== 0) return `its ${columns} inputs are not a multiple of group size ${group}`;
  return undefined;
}

/**
 * Bytes of a stored row.
 *
 * @param format The format.
 * @param columns The row's length.
 * @returns The bytes.
 */
export function storedRowBytes(format: Omit<WeightFormat, "group">, columns: number): number {
  return Math.ceil(columns * weightBits(format) / 8);
}

/**
 * Bytes of a packed weight: codes with rows and columns rounded up to 64, a scale and a zero point's byte for each group
 * of each row, and a word for each row.
 *
 * @param format The format.
 * @param rows Outputs.
 * @param columns Inputs.
 * @param zero Whether there are zero points.
 * @returns The bytes, the same on every level.
 */
export function quantizedBytes(format: WeightFormat, rows: number, columns: number, zero: boolean): number {
  const codes = roundUp(rows, 64) * roundUp(columns, 64) * weightBits(format) / 8;
  return codes + roundUp(rows, 64) * (Math.max(1, columns / format.group) * (zero ? 5 : 4) + 4);
}

/**
 * Bytes of a packed quantized convolution's weight: one byte a code, then eight for each filter.
 *
 * @param shape Filters, channels, and the kernel's sizes.
 * @returns The bytes, the same on every level.
 */
export function quantizedConvBytes([filters, channels, ...kernel]: readonly [number, number, ...number[]]): number {
  return roundUp(filters, 64) * roundUp(channels, 64) * kernel.reduce((a, b) => a * b, 1) + 8 * roundUp(filters, 64);
}

/**
 * Bytes of a quantized row of activations: its codes rounded up to 64, then scale, zero point and room.
 *
 * @param columns The row's length.
 * @returns The bytes.
 */
export function rowsBytes(columns: number): number {
  return roundUp(columns, 64) + 64;
}
