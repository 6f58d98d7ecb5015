/**
 * Matrix multiply at the shapes of Flux.1-dev, beside PyTorch: `deno run -A bench/matmul.ts [--dtype bf16]`.
 *
 * The peer is `F.linear`. Beside it stands oneDNN with a weight that was laid out for it once, which is what a frozen
 * `torch.compile` calls.
 *
 * @module
 */

import { parseArgs } from "node:util";
import type { Dtype } from "../lib/graph/dtypes.ts";
import { compileFunction } from "../lib/tensor/function.ts";
import { measurePeak, printMachine } from "./machine.ts";
import { alternate, gflops, milliseconds, ours, percent, ratio, Table } from "./measure.ts";
import { startPeer } from "./peers.ts";
import { randomArgument, randomWeight } from "./tensors.ts";

const { values } = parseArgs({ options: { dtype: { type: "string", default: "f32" } } });
const dtype = values.dtype as Dtype & ("f32" | "bf16");

/** Inputs and outputs: attention's projections, the MLP up and down, the single block's output. */
const WEIGHTS = [[3072, 3072], [3072, 12288], [12288, 3072], [15360, 3072]] as const; // (K, N)
const ROWS = [1, 64, 512] as const; // M

const peak = await measurePeak();
await printMachine(peak);
await using peer = await startPeer();
const table = new Table([
  `M x K x N, ${dtype}`,
  "ours",
  "GFLOP/s",
  "of peak",
  "PyTorch",
  "PyTorch / ours (of min)",
  "oneDNN prepacked",
  "oneDNN / ours (of min)",
]);
for (const [k, n] of WEIGHTS) {
  const weight = randomWeight([n, k], dtype);
  const multiply = compileFunction(({ x }) => ({ y: x!.linear(weight) }), { name: "matmul" });
  for (const m of ROWS) {
    const x = randomArgument([m, k], dtype);
    const task = { kind: "linear", dtype, m, k, n };
    const eager = await peer.prepare({ ...task, variant: "eager" });
    const packed = await peer.prepare({ ...task, variant: "oneDNN, prepacked" });
    await multiply.run({ x });
    const timing = await alternate({ own: ours(() => multiply.run({ x })), eager: eager.run, packed: packed.run });
    const flop = 2 * m * k * n;
    // A few rows are bound by reading the weight, not by multiply-adds.
    const bytes = (dtype === "f32" ? 4 : 2) * k * n;
    const share = m >= 16
      ? percent(flop / timing.own.median / 1e9 / (dtype === "bf16" && peak.bf16 > 0 ? peak.bf16 : peak.f32))
      : `${(bytes / timing.own.median / 1e9).toFixed(0)} GB/s`;
    table.row(
      `${m} x ${k} x ${n}`,
      milliseconds(timing.own.median),
      gflops(flop, timing.own.median),
      share,
      milliseconds(timing.eager.median),
      ratio(timing.eager, timing.own),
      milliseconds(timing.packed.median),
      ratio(timing.packed, timing.own),
    );
    await eager.drop();
    await packed.drop();
  }
}
