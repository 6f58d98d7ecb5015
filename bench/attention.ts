/**
 * Attention at Flux.1-dev's heads, beside PyTorch: `deno run -A bench/attention.ts`.
 *
 * @module
 */

import { compileFunction } from "../lib/tensor/function.ts";
import { attention } from "../lib/tensor/tensor.ts";
import { measurePeak, printMachine } from "./machine.ts";
import { alternate, gflops, milliseconds, ours, percent, ratio, Table } from "./measure.ts";
import { startPeer } from "./peers.ts";
import { randomArgument } from "./tensors.ts";

/** Heads, their size, tokens. */
const SHAPES = [[24, 128, 1024], [24, 128, 1536], [24, 128, 4608]] as const;

const peak = await measurePeak();
await printMachine(peak);
await using peer = await startPeer();
const table = new Table([
  "heads x size, tokens",
  "ours",
  "GFLOP/s",
  "of f32 peak",
  "PyTorch",
  "PyTorch / ours (of min)",
]);
// As a model has them: projected by token, seen by head, and the result by token again.
const attend = compileFunction(({ q, k, v }) => {
  const [queries, keys, values] = [q!, k!, v!].map((t) => t.permute(0, 2, 1, 3));
  return { y: attention(queries!, keys!, values!).permute(0, 2, 1, 3) };
}, { name: "attention" });
for (const dtype of ["f32", "bf16"] as const) {
  for (const [heads, size, tokens] of SHAPES) {
    const [q, k, v] = [1, 2, 3].map(() => randomArgument([1, tokens, heads, size], dtype));
    const inputs = { q: q!, k: k!, v: v! };
    const theirs = await peer.prepare({ kind: "sdpa", dtype, b: 1, h: heads, s: tokens, d: size });
    await attend.run(inputs);
    const timing = await alternate({ own: ours(() => attend.run(inputs)), peer: theirs.run });
    const flop = 4 * heads * tokens ** 2 * size;
    table.row(
      `${dtype}, ${heads} x ${size}, ${tokens}`,
      milliseconds(timing.own.median),
      gflops(flop, timing.own.median),
      percent(flop / timing.own.median / 1e9 / peak.f32),
      milliseconds(timing.peer.median),
      ratio(timing.peer, timing.own),
    );
    await theirs.drop();
  }
}
