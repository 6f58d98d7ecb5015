/**
 * Where the values of leaves come from: the host's memory, a file that can be mapped, or a buffer of a device.
 *
 * @module
 */

import { byteSize, type Dtype } from "../graph/dtypes.ts";
import { leaf, type Node, RATE, type Rate } from "../graph/node.ts";
import { sizeOf } from "../graph/ops.ts";
import { Tensor } from "./tensor.ts";

/** A part of a file, and what tells the file from a later one of its path. */
export interface FileSource {
  /** What kind of source it is. */
  readonly kind: "file";
  /** The file. */
  readonly path: string;
  /** The first byte. */
  readonly offset: number;
  /** How many bytes. */
  readonly byteLength: number;
  /** The file's stamp when it was opened. */
  readonly stamp: string;
}

/** The values of a leaf. */
export type Source =
  | { readonly kind: "host"; readonly bytes: Uint8Array }
  | FileSource
  | { readonly kind: "buffer"; readonly buffer: object };

/** Arrays that hold elements of each type; the 16-bit floats as their bits. */
export interface ArrayOf {
  /** Float32Array. */
  f32: Float32Array<ArrayBuffer>;
  /** The bits. */
  bf16: Uint16Array<ArrayBuffer>;
  /** The bits. */
  f16: Uint16Array<ArrayBuffer>;
  /** Int32Array. */
  i32: Int32Array<ArrayBuffer>;
  /** Uint8Array. */
  u8: Uint8Array<ArrayBuffer>;
  /** Int8Array. */
  i8: Int8Array<ArrayBuffer>;
}

const ARRAYS = {
  f32: Float32Array,
  bf16: Uint16Array,
  f16: Uint16Array,
  i32: Int32Array,
  u8: Uint8Array,
  i8: Int8Array,
} as const;

const sources = new WeakMap<Node, Source>();

/**
 * Makes a tensor whose values come from a source.
 *
 * @param source The source.
 * @param options Shape, element type, how often the value changes (never, by default) and a name for dumps.
 * @returns The tensor.
 */
export function fromSource(
  source: Source,
  options: { shape: readonly number[]; dtype: Dtype; rate?: Rate; name?: string },
): Tensor {
  const { shape, dtype, rate = RATE.constant, name = "" } = options;
  const node = leaf(shape, { dtype, rate, name });
  sources.set(node, source);
  return new Tensor(node);
}

/**
 * The source of a leaf.
 *
 * @param node The leaf.
 * @returns Its source; `undefined` where none was given: a parameter that is not loaded, or an argument.
 */
export function sourceOf(node: Node): Source | undefined {
  return sources.get(node);
}

/**
 * Gives a leaf another source of the same values.
 *
 * @param node The leaf.
 * @param source The source.
 */
export function moveSource(node: Node, source: Source): void {
  sources.set(node, source);
}

/**
 * Makes a tensor from values.
 *
 * @param data The values, or a typed array of the element type (16-bit floats as their bits).
 * @param options The shape (one axis by default) and the element type (f32 by default).
 * @returns The tensor.
 */
export function tensor(
  data: readonly number[] | ArrayOf[Dtype],
  options: { shape?: readonly number[]; dtype?: Dtype } = {},
): Tensor {
  const { shape = [data.length], dtype = "f32" } = options;
  if (sizeOf(shape) !== data.length) {
    throw new TypeError(`A tensor of [${shape.join(", ")}] takes ${sizeOf(shape)} values, got ${data.length}`);
  }
  const make = ARRAYS[dtype];
  if (!Array.isArray(data) && !(data instanceof make)) {
    throw new TypeError(`A tensor of ${dtype} is made from a ${make.name}, got a ${data.constructor.name}`);
  }
  if (Array.isArray(data) && (dtype === "bf16" || dtype === "f16")) {
    throw new TypeError(`A tensor of ${dtype} is made from its bits: make one of f32 and cast it`);
  }
  const array = Array.isArray(data) ? make.from(data) : data as ArrayOf[Dtype];
  const bytes = new Uint8Array(array.buffer, array.byteOffset, array.byteLength).slice();
  return fromSource({ kind: "host", bytes }, { shape, dtype, rate: RATE.run });
}

/**
 * Bytes as an array of their element type.
 *
 * @param bytes The bytes, aligned and of a whole number of elements.
 * @param dtype The element type.
 * @returns A view of them.
 */
export function arrayOf<D extends Dtype>(bytes: Uint8Array<ArrayBuffer>, dtype: D): ArrayOf[D] {
  return new ARRAYS[dtype](bytes.buffer, bytes.byteOffset, bytes.byteLength / byteSize(dtype)) as ArrayOf[D];
}
