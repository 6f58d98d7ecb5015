/**
 * The element types of tensors and buffers.
 *
 * @module
 */

/** The element types, with their codes in programs and their sizes in bytes. */
export const DTYPES = {
  f32: { code: 0, size: 4, float: true },
  bf16: { code: 1, size: 2, float: true },
  f16: { code: 2, size: 2, float: true },
  i32: { code: 3, size: 4, float: false },
  u8: { code: 4, size: 1, float: false },
  i8: { code: 5, size: 1, float: false },
} as const;

/** The name of an element type. */
export type Dtype = keyof typeof DTYPES;

/** The floating-point types that a model can compute in. */
export type FloatDtype = "f32" | "bf16" | "f16";

/**
 * The size of one element in bytes.
 *
 * @param dtype The element type.
 * @returns The size in bytes.
 */
export function byteSize(dtype: Dtype): number {
  return DTYPES[dtype].size;
}

/**
 * Whether every value of one type is a value of the other, so that a cast there and back changes nothing.
 *
 * @param from The narrower type.
 * @param to The wider type.
 * @returns Whether the cast loses nothing.
 */
export function widens(from: Dtype, to: Dtype): boolean {
  return from === to || (to === "f32" && DTYPES[from].float);
}
