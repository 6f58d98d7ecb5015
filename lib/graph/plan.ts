/**
 * The arena: where each piece of working memory lies, so that what is never needed at the same time shares its place.
 *
 * @module
 */

import { byteSize } from "./dtypes.ts";
import type { Instruction, Storage } from "./lower.ts";

/** The multiple of bytes at which each piece starts. */
const ALIGN = 64;

/** Where working memory lies. */
export interface Arena {
  /** The bytes of the whole. */
  readonly bytes: number;
  /** The first byte of each piece. */
  readonly offsets: ReadonlyMap<Storage, number>;
}

interface Piece {
  readonly storage: Storage;
  readonly bytes: number;
  readonly first: number;
  last: number;
  offset: number;
}

/**
 * Plans the arena of a list of kernel calls: the largest pieces first, each at the lowest place that is free for as
 * long as it lives.
 *
 * @param instructions The calls.
 * @returns The arena.
 */
export function planArena(instructions: readonly Instruction[]): Arena {
  const pieces = new Map<Storage, Piece>();
  instructions.forEach((instruction, index) => {
    for (const operand of instruction.operands) {
      if (!operand || operand.storage.external) continue;
      const { storage } = operand;
      const piece = pieces.get(storage);
      if (piece) piece.last = index;
      else {
        const bytes = Math.ceil(storage.size * byteSize(storage.dtype) / ALIGN) * ALIGN;
        pieces.set(storage, { storage, bytes, first: index, last: index, offset: 0 });
      }
    }
  });
  const placed: Piece[] = [];
  let total = 0;
  for (const piece of [...pieces.values()].sort((a, b) => b.bytes - a.bytes || a.first - b.first)) {
    piece.offset = lowestGap(placed, piece);
    total = Math.max(total, piece.offset + piece.bytes);
    // Kept in the order of offsets, so that one walk finds the lowest gap.
    let at = placed.length;
    while (at > 0 && placed[at - 1]!.offset > piece.offset) at--;
    placed.splice(at, 0, piece);
  }
  return { bytes: total, offsets: new Map(placed.map((p) => [p.storage, p.offset])) };
}

function lowestGap(placed: readonly Piece[], piece: Piece): number {
  let offset = 0;
  for (const other of placed) {
    if (other.last < piece.first || other.first > piece.last) continue;
    if (other.offset >= offset + piece.bytes) break;
    offset = Math.max(offset, other.offset + other.bytes);
  }
  return offset;
}
