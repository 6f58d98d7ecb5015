import assert from "node:assert/strict";
import { fits, reshapeView, type View } from "../../lib/graph/lower.ts";
import { planArena } from "../../lib/graph/plan.ts";
import { byteSize } from "../../lib/graph/dtypes.ts";
import { compileGraph } from "../../lib/graph/compile.ts";
import { lower } from "../../lib/graph/lower.ts";
import { rewrite } from "../../lib/graph/rewrite.ts";
import { LEGALIZE } from "../../lib/graph/rules.ts";
import { fluxGraph } from "./graphs.ts";

/** A small deterministic generator of integers below n. */
function generator(seed: number): (n: number) => number {
  let state = seed;
  return (n) => {
    state = Math.imul(state ^ (state >>> 15), 0x2c1b3c6d) + 0x9e3779b9 | 0;
    return (state >>> 8) % n;
  };
}

/** The elements of a view in order. */
function elements(view: View): number[] {
  let offsets = [view.offset];
  view.shape.forEach((size, axis) => {
    offsets = offsets.flatMap((at) => Array.from({ length: size }, (_, i) => at + i * view.strides[axis]!));
  });
  return offsets;
}

function randomView(below: (n: number) => number): View {
  const rank = 1 + below(4);
  const shape = Array.from({ length: rank }, () => [1, 2, 3, 4, 6][below(5)]!);
  const strides = shape.map(() => 0);
  let step = 1;
  const axes = shape.map((_, i) => i);
  for (let i = axes.length - 1; i > 0; i--) {
    const j = below(3) === 0 ? below(i + 1) : i;
    [axes[i], axes[j]] = [axes[j]!, axes[i]!];
  }
  for (const axis of axes.reverse()) {
    strides[axis] = below(8) === 0 ? 0 : step;
    step *= shape[axis]! + (below(6) === 0 ? 1 : 0);
  }
  return { storage: { dtype: "f32", size: 1 << 12, written: true }, offset: below(5), shape, strides };
}

function randomShape(size: number, below: (n: number) => number): number[] {
  const shape: number[] = [];
  let rest = size;
  while (rest > 1) {
    const divisors = Array.from({ length: rest }, (_, i) => i + 1).filter((d) => rest % d === 0);
    const d = divisors[below(divisors.length)]!;
    shape.push(d);
    rest /= d;
  }
  if (below(3) === 0) shape.splice(below(shape.length + 1), 0, 1);
  return shape;
}

Deno.test("a reshaped view holds the same elements in the same order, and is found whenever there is one", () => {
  const below = generator(7);
  let viewable = 0;
  for (let round = 0; round < 5000; round++) {
    const view = randomView(below);
    const before = elements(view);
    const shape = randomShape(before.length, below);
    const reshaped = reshapeView(view, shape);
    if (reshaped) {
      viewable++;
      assert.deepEqual(elements(reshaped), before);
    } else {
      assert.ok(!strided(before, shape), `[${view.shape}] by [${view.strides}] to [${shape}] is a view`);
    }
  }
  assert.ok(viewable > 1000);
});

/** Whether offsets of a shape follow from strides. */
function strided(offsets: readonly number[], shape: readonly number[]): boolean {
  const steps = shape.map((_, axis) => shape.slice(axis + 1).reduce((a, b) => a * b, 1));
  const strides = shape.map((size, axis) => size > 1 ? offsets[steps[axis]!]! - offsets[0]! : 0);
  return offsets.every((offset, i) =>
    offset ===
      offsets[0]! + shape.reduce((sum, size, axis) => sum + (Math.floor(i / steps[axis]!) % size) * strides[axis]!, 0)
  );
}

Deno.test("a layout is met exactly when the elements lie so", () => {
  const below = generator(11);
  for (let round = 0; round < 3000; round++) {
    const view = randomView(below);
    const at = elements(view);
    const dense = at.every((offset, i) => offset === at[0]! + i);
    assert.equal(fits(view, "dense"), dense, `[${view.shape}] by [${view.strides}]`);
    const width = view.shape.at(-1)!;
    const inner = at.every((offset, i) => i % width === 0 || offset === at[i - 1]! + 1);
    assert.equal(fits(view, "inner"), inner);
    const rows = at.filter((_, i) => i % width === 0);
    const even = rows.every((offset, i) => i === 0 || offset - rows[i - 1]! === rows[1]! - rows[0]!);
    assert.equal(fits(view, "rows"), inner && even);
  }
});

Deno.test("what lives at the same time never shares memory of the arena", () => {
  const { outputs } = rewrite(fluxGraph({ dim: 64, heads: 2, double: 2, single: 2, text: 5, image: 9 }), LEGALIZE);
  const { instructions } = lower(outputs, new Set());
  const { offsets, bytes } = planArena(instructions);
  const lives = new Map<object, { first: number; last: number; from: number; to: number }>();
  instructions.forEach((instruction, i) => {
    for (const operand of instruction.operands) {
      if (!operand || operand.storage.external) continue;
      const from = offsets.get(operand.storage)!;
      const life = lives.get(operand.storage) ??
        { first: i, last: i, from, to: from + operand.storage.size * byteSize(operand.storage.dtype) };
      life.last = i;
      lives.set(operand.storage, life);
      assert.ok(life.to <= bytes && from % 64 === 0);
    }
  });
  const all = [...lives.values()];
  let least = 0;
  for (const a of all) {
    let together = 0;
    for (const b of all) {
      if (b.first <= a.first && a.first <= b.last) together += b.to - b.from;
      if (a === b || a.last < b.first || b.last < a.first) continue;
      assert.ok(a.to <= b.from || b.to <= a.from, "two living pieces overlap");
    }
    least = Math.max(least, together);
  }
  assert.ok(bytes <= 1.25 * least, `the arena takes ${bytes} bytes, ${least} are needed at once`);
});

Deno.test("a program starts with its magic, format and hash, and names each buffer", () => {
  const { stages } = compileGraph(fluxGraph({ dim: 64, heads: 2, double: 1, single: 1, text: 5, image: 9 }));
  for (const stage of stages) {
    const bytes = stage.assemble()!;
    const words = new Uint32Array(bytes.buffer, 0, bytes.length / 4);
    assert.deepEqual([...words.subarray(0, 2)], [0x45534e44, 1]);
    assert.equal(words[6], stage.buffers.length);
  }
});
