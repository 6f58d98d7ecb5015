/**
 * The bytes of tensors, a piece at a time, so that none is in JavaScript's memory whole.
 *
 * @module
 */

import type { NativeBuffer } from "../../ffi/native.ts";
import { byteSize } from "../graph/dtypes.ts";
import { sizeOf } from "../graph/ops.ts";
import { checkUnchanged, type Device } from "./device.ts";
import { computeOnce } from "./function.ts";
import { type FileSource, sourceOf } from "./source.ts";
import type { Tensor } from "./tensor.ts";

/** How much of a tensor is in JavaScript's memory at a time. */
const PIECE_BYTES = 8 * 2 ** 20;

/**
 * The bytes of some tensors, in pieces; those that must be computed are, together, when the first is asked for, and let go
 * after the last.
 *
 * @param tensors The tensors.
 * @param device Where they are computed.
 * @returns What gives each one's pieces, once.
 */
export function bytesOfEach(tensors: readonly Tensor[], device: Device): (() => AsyncIterable<Uint8Array>)[] {
  const computed = tensors.filter((t) => t.node.op !== "leaf");
  let buffers: Promise<NativeBuffer[]> | undefined;
  let left = computed.length;
  return tensors.map((t) =>
    async function* () {
      const length = sizeOf(t.shape) * byteSize(t.dtype);
      const source = sourceOf(t.node);
      if (source?.kind === "file") return yield* fileBytes(source);
      if (source?.kind === "host") return yield source.bytes;
      if (t.node.op === "leaf") return yield* bufferBytes(device.bufferOf(t.node), length);
      buffers ??= computeOnce(computed, device);
      const buffer = (await buffers)[computed.indexOf(t)]!;
      yield* bufferBytes(buffer, length);
      if (--left === 0) { for (const used of await buffers) used[Symbol.dispose](); }
    }
  );
}

function* bufferBytes(buffer: NativeBuffer, length: number): Generator<Uint8Array> {
  for (let at = 0; at < length; at += PIECE_BYTES) yield buffer.read(Math.min(PIECE_BYTES, length - at), at);
}

async function* fileBytes(source: FileSource): AsyncGenerator<Uint8Array> {
  checkUnchanged(source);
  using file = await Deno.open(source.path);
  await file.seek(source.offset, Deno.SeekMode.Start);
  const piece = new Uint8Array(Math.min(PIECE_BYTES, source.byteLength));
  for (let left = source.byteLength; left > 0;) {
    const read = await file.read(piece.subarray(0, Math.min(piece.length, left)));
    if (read === null) return; // the writer says that bytes are missing
    yield piece.subarray(0, read);
    left -= read;
  }
}
