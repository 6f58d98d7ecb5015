import { ok, strictEqual } from "node:assert/strict";
import { CheckpointError } from "../../lib/errors.ts";
import { Generator } from "../../lib/tensor/random.ts";
import { parseHeader } from "../../lib/tensor/safetensors.ts";

const FILE = "fuzz.safetensors";
const encoder = new TextEncoder();
const decoder = new TextDecoder();

interface Outcome {
  accepted: number;
  refused: number;
}

/** A header is either refused with a CheckpointError, or everything that it promises lies within the file. */
function feed(bytes: Uint8Array, fileSize: number, outcome: Outcome, seed: string): void {
  let header;
  try {
    header = parseHeader(bytes, { file: FILE, fileSize });
  } catch (error) {
    ok(error instanceof CheckpointError, `${seed}: ${error instanceof Error ? error.stack : error}`);
    strictEqual(error.file, FILE, seed);
    ok(error.message.includes(FILE) && error.message.length < 2000, `${seed}: ${error.message}`);
    outcome.refused++;
    return;
  }
  let sum = header.dataOffset;
  for (const [name, tensor] of header.tensors) {
    strictEqual(tensor.name, name);
    ok(tensor.offset >= header.dataOffset && tensor.offset + tensor.byteLength <= fileSize, seed);
    ok(tensor.shape.every((n) => Number.isSafeInteger(n) && n >= 0), seed);
    sum += tensor.byteLength;
  }
  strictEqual(sum, fileSize, seed);
  ok(Object.values(header.metadata).every((value) => typeof value === "string"), seed);
  outcome.accepted++;
}

function withLength(json: Uint8Array): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(8 + json.length);
  new DataView(bytes.buffer).setBigUint64(0, BigInt(json.length), true);
  bytes.set(json, 8);
  return bytes;
}

class Dice {
  #generator: Generator;
  constructor(seed: number) {
    this.#generator = new Generator(seed);
  }
  below(n: number): number {
    return this.#generator.random32() % n;
  }
  pick<T>(from: readonly T[]): T {
    return from[this.below(from.length)]!;
  }
}

const DTYPES = [["F64", 8], ["F32", 4], ["BF16", 2], ["F8_E4M3", 1], ["BOOL", 1]] as const;

/** A right header with a few tensors, and the size of its data. */
function validHeader(dice: Dice): { json: string; dataBytes: number } {
  const entries: [string, unknown][] = [];
  let end = 0;
  for (let i = dice.below(5); i >= 0; i--) {
    const [dtype, size] = dice.pick(DTYPES);
    const shape = Array.from({ length: dice.below(4) }, () => dice.below(5));
    const begin = end;
    end += shape.reduce((a, b) => a * b, size);
    entries.push([`${dice.pick(["a", "block.0", "é", '"', "\\"])}.${i}`, { dtype, shape, data_offsets: [begin, end] }]);
  }
  if (dice.below(2)) entries.splice(dice.below(entries.length), 0, ["__metadata__", { format: "pt", x: "\n" }]);
  return { json: JSON.stringify(Object.fromEntries(entries)), dataBytes: end };
}

Deno.test("parseHeader survives random bytes", () => {
  const outcome: Outcome = { accepted: 0, refused: 0 };
  const dice = new Dice(1);
  for (let i = 0; i < 4000; i++) {
    const bytes = Uint8Array.from({ length: dice.below(64) }, () => dice.below(256));
    // Half of them have a length that fits, so that the bytes reach the scanner.
    feed(i % 2 ? withLength(bytes) : bytes, dice.below(200), outcome, `${i}`);
    const opened = encoder.encode(`{${decoder.decode(bytes)}`);
    feed(withLength(opened), 8 + opened.length, outcome, `opened ${i}`);
  }
  ok(outcome.refused > 7900, JSON.stringify(outcome));
});

Deno.test("parseHeader survives flipped, cut, grown and shuffled bytes", () => {
  const outcome: Outcome = { accepted: 0, refused: 0 };
  const dice = new Dice(2);
  for (let i = 0; i < 10_000; i++) {
    const { json, dataBytes } = validHeader(dice);
    const bytes = withLength(encoder.encode(json));
    const fileSize = bytes.length + dataBytes;
    if (i % 10 === 0) {
      const before = outcome.accepted;
      feed(bytes, fileSize, outcome, `whole ${i}`);
      strictEqual(outcome.accepted, before + 1, json);
    }
    const mutant = [...bytes];
    for (let n = dice.below(3); n >= 0; n--) {
      const at = dice.below(mutant.length);
      switch (dice.below(5)) {
        case 0:
          mutant[at]! ^= 1 << dice.below(8);
          break;
        case 1:
          mutant[at] = dice.pick([0x22, 0x5c, 0x7b, 0x7d, 0x5b, 0x5d, 0x2c, 0x3a, 0x20, 0x30, 0x39, 0x2d, 0xff, 0]);
          break;
        case 2:
          mutant.splice(at, 1 + dice.below(8));
          break;
        case 3:
          mutant.splice(at, 0, ...mutant.slice(dice.below(mutant.length)).slice(0, 16));
          break;
        default:
          mutant.length = Math.max(1, at);
      }
    }
    const mutated = Uint8Array.from(mutant);
    feed(mutated, fileSize, outcome, `mutant ${i}`);
    const fitted = withLength(mutated.subarray(8));
    feed(fitted, fitted.length + dataBytes, outcome, `fitted ${i}`);
  }
  ok(outcome.refused > 10_000, JSON.stringify(outcome));
});

Deno.test("parseHeader survives right JSON with wrong values", () => {
  const outcome: Outcome = { accepted: 0, refused: 0 };
  const dice = new Dice(3);
  const junk = [null, true, -1, 0, 1, 1.5, 1e30, 2 ** 53, 2 ** 53 - 1, "", "F32", "x".repeat(3000), [], [0], [[]], {}, {
    a: 1,
  }];
  const offsets = [0, 1, 2, 4, 8, 2 ** 31, 2 ** 32, 2 ** 53 - 1];
  for (let i = 0; i < 10_000; i++) {
    const { json, dataBytes } = validHeader(dice);
    const header = JSON.parse(json);
    for (let n = dice.below(2); n >= 0; n--) {
      const name = dice.pick(Object.keys(header));
      const entry = header[name];
      const field = dice.pick(["dtype", "shape", "data_offsets", "format"]);
      switch (dice.below(5)) {
        case 0:
          header[name] = structuredClone(dice.pick(junk));
          break;
        case 1:
          if (entry instanceof Object) entry[field] = structuredClone(dice.pick(junk));
          break;
        case 2:
          if (entry instanceof Object) delete entry[field];
          break;
        case 3:
          if (entry instanceof Object) entry.data_offsets = [dice.pick(offsets), dice.pick(offsets)];
          break;
        default:
          if (entry instanceof Object) entry.shape = Array.from({ length: dice.below(70) }, () => dice.pick(offsets));
      }
    }
    const bytes = withLength(encoder.encode(JSON.stringify(header)));
    feed(bytes, bytes.length + dataBytes + (dice.below(8) ? 0 : dice.below(9)), outcome, `${i}`);
  }
  ok(outcome.refused > 5000 && outcome.accepted > 10, JSON.stringify(outcome));
});
