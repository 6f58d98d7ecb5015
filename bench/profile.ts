/**
 * Where the time of the demo's picture goes, by operation: `deno run -A bench/profile.ts`. `--shapes` has a line for
 * each combination of shapes; `--dtype bf16` computes in another type; `--trace FILE` writes a trace of one picture.
 *
 * @module
 */

import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { type FloatDtype, FluxPipeline, type Profile, type ProfileRow } from "../mod.ts";
import { measurePeak, printMachine } from "./machine.ts";
import { median, milliseconds, percent, Table } from "./measure.ts";

const { values: flags } = parseArgs({
  options: {
    shapes: { type: "boolean", default: false },
    dtype: { type: "string", default: "f32" },
    trace: { type: "string" },
  },
});

const MODEL = fileURLToPath(new URL("../models/shapes-flux", import.meta.url));
const PROMPT = "a large red star on a navy background";
const OPTIONS = {
  height: 128,
  width: 128,
  numInferenceSteps: 20,
  guidanceScale: 3.5,
  maxSequenceLength: 32,
  seed: 5,
};
const ROUNDS = 15;

const peak = await measurePeak();
await printMachine(peak);
const limits = {
  f32: 1e9 * peak.f32,
  bf16: 1e9 * (peak.bf16 || peak.f32),
  int8: 1e9 * (peak.int8 || peak.f32),
  bytes: 1e9 * peak.bytes,
};
const pipe = await FluxPipeline.load(MODEL, { dtype: flags.dtype as FloatDtype });
await pipe(PROMPT, OPTIONS);

const seconds: number[] = [];
const profiles: Profile[] = [];
for (let round = 0; round < ROUNDS; round++) {
  const start = performance.now();
  await pipe(PROMPT, OPTIONS);
  seconds.push((performance.now() - start) / 1000);
  profiles.push(await pipe.profile(PROMPT, { ...OPTIONS, limits }));
}
if (flags.trace) await profiles.at(-1)!.save(flags.trace);

const rounds = profiles.map((profile) => profile.rows({ shapes: flags.shapes }));
const kernels = rounds.map((rows) => rows.reduce((sum, row) => sum + row.seconds, 0));
const both = (times: readonly number[]) =>
  `${milliseconds(median(times))} (shortest ${milliseconds(Math.min(...times))})`;
console.log(`a picture: ${both(seconds)}, its kernels: ${both(kernels)}`);

const keyOf = ({ program, op, shapes = "" }: ProfileRow) => `${program}\n${op}\n${shapes}`;
const lines = Object.values(Object.groupBy(rounds.flat(), keyOf)).map((rows) => ({
  row: rows![0]!,
  time: median(rows!.map((row) => row.seconds)),
  ofLimit: median(rows!.map((row) => row.ofLimit!)),
}));
const table = new Table([
  "program",
  "op",
  ...(flags.shapes ? ["shapes"] : []),
  "calls",
  "time",
  "share",
  "a call",
  "MB",
  "GFLOP",
  "of limit",
]);
for (const { row, time, ofLimit } of lines.toSorted((a, b) => b.time - a.time)) {
  table.row(
    row.program,
    row.op,
    ...(flags.shapes ? [row.shapes!] : []),
    String(row.calls),
    milliseconds(time),
    percent(time / median(kernels)),
    milliseconds(time / row.calls),
    (row.bytes / 1e6).toFixed(1),
    (row.operations / 1e9).toFixed(3),
    percent(ofLimit),
  );
}
