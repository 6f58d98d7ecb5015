/**
 * Where the time of the demo's picture goes, by operation: `deno run -A bench/profile.ts`. `--shapes` has a line for
 * each combination of shapes; `--dtype` and `--trace FILE` say what they do.
 *
 * @module
 */

import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { type FloatDtype, FluxPipeline } from "../mod.ts";
import { profile } from "../lib/compile/profile.ts";
import { measurePeak, printMachine } from "./machine.ts";
import { median, percent, Table } from "./measure.ts";

const { values: flags } = parseArgs({
  options: {
    shapes: { type: "boolean", default: false },
    dtype: { type: "string", default: "f32" },
    trace: { type: "string" },
  },
});

const MODEL = fileURLToPath(new URL("../models/shapes-flux", import.meta.url));
const ROUNDS = 15;

const peak = await measurePeak();
await printMachine(peak);
const limits = {
  f32: 1e9 * peak.f32,
  bf16: 1e9 * (peak.bf16 || peak.f32),
  int8: 1e9 * peak.int8,
  bytes: 1e9 * peak.bytes,
};
const pipe = await FluxPipeline.load(MODEL, { dtype: flags.dtype as FloatDtype });
const draw = () =>
  pipe("a large red star on a navy background", {
    height: 128,
    width: 128,
    numInferenceSteps: 20,
    guidanceScale: 3.5,
    maxSequenceLength: 32,
    seed: 5,
  });
await draw();
const seconds: number[] = [];
const found = [];
for (let round = 0; round < ROUNDS; round++) {
  const start = performance.now();
  await draw();
  seconds.push((performance.now() - start) / 1000);
}
for (let round = 0; round < ROUNDS; round++) found.push((await profile(pipe.device, draw, { limits })).profile);
if (flags.trace) await found[0]!.save(flags.trace);
const all = found.map((p) => p.rows({ shapes: flags.shapes }));
const totals = all.map((rows) => rows.reduce((sum, row) => sum + row.seconds, 0));
console.log(
  `a picture: median ${(1000 * median(seconds)).toFixed(1)} ms, shortest ${
    (1000 * Math.min(...seconds)).toFixed(1)
  } ms; ` +
    `kernels: median ${(1000 * median(totals)).toFixed(1)} ms, shortest ${(1000 * Math.min(...totals)).toFixed(1)} ms`,
);
const table = new Table([
  "program",
  "op",
  ...(flags.shapes ? ["shapes"] : []),
  "calls",
  "ms",
  "share",
  "us a call",
  "MB",
  "GFLOP",
  "of limit",
]);
const key = (row: typeof all[0][0]) => `${row.program} ${row.op} ${row.shapes}`;
const byKey = new Map<string, typeof all[0]>();
for (const rows of all) for (const row of rows) byKey.set(key(row), [...byKey.get(key(row)) ?? [], row]);
const total = median(totals);
const lines = [...byKey.values()].map((rows) => ({
  row: rows[0]!,
  s: median(rows.map((r) => r.seconds)),
  l: median(rows.map((r) => r.ofLimit!)),
}))
  .toSorted((a, b) => b.s - a.s);
for (const { row, s, l } of lines) {
  table.row(
    row.program,
    row.op,
    ...(flags.shapes ? [row.shapes!] : []),
    String(row.calls),
    (1000 * s).toFixed(2),
    percent(s / total),
    (1e6 * s / row.calls).toFixed(1),
    (row.bytes / 1e6).toFixed(1),
    (row.operations / 1e9).toFixed(3),
    percent(l),
  );
}
