/**
 * From the sources of leaves to buffers.
 *
 * @module
 */

import { NativeBuffer, type NativeDevice } from "../../ffi/native.ts";
import { CheckpointError, NativeError } from "../errors.ts";
import { byteSize } from "../graph/dtypes.ts";
import type { Node } from "../graph/node.ts";
import { fileStamp } from "./safetensors.ts";
import { type FileSource, moveSource, sourceOf } from "./source.ts";

/**
 * A new buffer with the values of a leaf, or the one that it is made of.
 *
 * @param leaf The leaf.
 * @param device The device whose memory it is to lie in; the host's by default.
 * @returns The buffer; in the host's memory a part of a file is mapped.
 */
export function makeBuffer(leaf: Node, device?: NativeDevice): NativeBuffer {
  const source = sourceOf(leaf);
  if (!source) {
    const name = leaf.params.name || `[${leaf.shape.join(", ")}]`;
    throw new NativeError("missing", `The tensor ${name} has no values: load a checkpoint first`);
  }
  if (source.kind === "buffer") {
    const buffer = source.buffer as NativeBuffer;
    return buffer.device === device ? buffer : NativeBuffer.from(buffer.read(), device);
  }
  if (source.kind === "host") return NativeBuffer.from(source.bytes as Uint8Array<ArrayBuffer>, device);
  checkUnchanged(source);
  const { path, offset, byteLength } = source;
  if (device || offset % byteSize(leaf.dtype) === 0) return NativeBuffer.map(path, { offset, byteLength }, device);
  // A file may put a tensor at an odd place, where kernels cannot read it.
  using mapped = NativeBuffer.map(path, { offset, byteLength });
  return NativeBuffer.from(mapped.read());
}

/**
 * Checks that a file is still the one that was opened.
 *
 * @param source A part of it.
 * @throws {CheckpointError} If it is not
 */
export function checkUnchanged({ path, stamp }: FileSource): void {
  let found: string;
  try {
    found = fileStamp(Deno.statSync(path));
  } catch (cause) {
    throw new CheckpointError(`Cannot read ${path} any more: load the model again`, { file: path, cause });
  }
  if (found === stamp) return;
  throw new CheckpointError(`Cannot read ${path} as it was written again since it was opened: load the model again`, {
    file: path,
  });
}

/**
 * Keeps the values of leaves whose file is about to be replaced: it is mapped now, and lives on for as long as they do.
 *
 * @param leaves The leaves.
 * @param stamps The stamps of such files.
 */
export function keepMapped(leaves: Iterable<Node>, stamps: ReadonlySet<string>): void {
  for (const leaf of leaves) {
    const source = sourceOf(leaf);
    if (source?.kind !== "file" || !stamps.has(source.stamp)) continue;
    moveSource(leaf, { kind: "buffer", buffer: makeBuffer(leaf) });
  }
}
