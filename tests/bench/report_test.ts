import assert from "node:assert/strict";
import type { Row, Runs } from "../../bench/matrix.ts";
import { chartOf, reportOf, schemeOfRow, toSvg } from "../../bench/report.ts";

const FLOAT: Row = {
  ckpt_id: "models/shapes-flux",
  batch_size: 1,
  fuse: false,
  compile: false,
  compile_vae: false,
  quantization: "none",
  sparsify: false,
  model_memory: 40e6,
  inference_memory: 150e6,
  time: 0.2,
  psnr: Infinity,
  ssim: 1,
  accuracy: 0.5,
};
const INT8: Row = { ...FLOAT, quantization: "int8dq", time: 0.1, psnr: 55.92, ssim: 0.99912, model_memory: 12e6 };
const SPARSE: Row = { ...INT8, sparsify: true, compile: true, time: 0.08, psnr: 30, model_memory: 10e6 };
/** Slower a call, faster a picture. */
const BATCH: Row = { ...INT8, batch_size: 4, time: 0.3 };
const SLOW: readonly Row[] = ["fp8wo", "fp8dq", "int4wo"].map((quantization, i) => ({
  ...INT8,
  quantization,
  time: 0.3 + i / 10,
}));
const RUNS: Runs = {
  machine: "a machine",
  settings: {
    prompts: 64,
    warmup: 5,
    runs: 5,
    num_inference_steps: 20,
    height: 128,
    width: 128,
    max_sequence_length: 32,
  },
  rows: [FLOAT, ...SLOW, INT8, SPARSE, BATCH],
};

/** The first cells of the rows of the table below a heading. */
function tableBelow(report: string, heading: string): string[][] {
  const lines = report.split("\n");
  const start = lines.findIndex((line) => line.startsWith(heading));
  assert.ok(start >= 0, heading);
  const rows = lines.slice(start + 4);
  return rows.slice(0, rows.findIndex((line) => !line.startsWith("|"))).map((line) =>
    line.split("|").slice(1, -1).map((cell) => cell.trim())
  );
}

Deno.test("the report lists the five fastest by picture, beside float", () => {
  const sheet = { ckptId: FLOAT.ckpt_id, file: "sheet.png", schemes: ["float", "int8dq"] };
  const report = reportOf(RUNS, { chart: "chart.svg", sheets: [sheet] });
  const fastest = tableBelow(report, "### The 5 fastest");
  assert.deepEqual(fastest.map((cells) => cells.slice(0, 5)), [
    ["int8dq", "as it is", "4", "75.0 ms", ""],
    ["int8dq, sparse", "compile", "1", "80.0 ms", "40 %"],
    ["int8dq", "as it is", "1", "100 ms", "50 %"],
    ["float", "as it is", "1", "200 ms", "100 %"],
    ["fp8wo", "as it is", "1", "300 ms", "150 %"],
  ]);
  assert.deepEqual(fastest[2]!.slice(5), ["55.9 dB", "0.9991", "50 %"]);
  assert.equal(fastest[3]![5], "equal");
  assert.equal(tableBelow(report, "### All").length, RUNS.rows.length);
  const memory = tableBelow(report, "### Memory");
  assert.deepEqual(memory[0], ["int8dq, sparse", "compile", "1", "10.0 MB", "150 MB"]);
  assert.deepEqual(memory.at(-1)!.slice(0, 1), ["float"]);
  for (const text of ["a machine", "![The same seeds by each scheme](sheet.png)", "2. int8dq", "(chart.svg)"]) {
    assert.ok(report.includes(text), text);
  }
});

Deno.test("the report keeps checkpoints apart", () => {
  const other = { ...FLOAT, ckpt_id: "other", time: 0.01 };
  const report = reportOf({ ...RUNS, rows: [FLOAT, other] }, { chart: "chart.svg", sheets: [] });
  assert.equal(report.match(/^## /gm)!.length, 3);
  assert.deepEqual(tableBelow(report, "### The 1 fastest").map((cells) => cells[3]), ["200 ms"]);
});

Deno.test("the chart has a point for each run and a line for float, and renders without a browser", async () => {
  const svg = await toSvg(chartOf(RUNS.rows));
  assert.match(svg, /^<svg [\s\S]*<\/svg>$/);
  const marks = (role: string) => svg.split(role).length - 1;
  assert.equal(marks('aria-roledescription="point"'), RUNS.rows.length - 1);
  assert.equal(marks('aria-roledescription="rule mark"') + marks('aria-roledescription="rule"'), 1);
  for (const text of ["int8dq, sparse", "float", "seconds a picture", "PSNR against float, dB"]) {
    assert.ok(svg.includes(text), text);
  }
});

Deno.test("a scheme's name says what it is", () => {
  assert.deepEqual([FLOAT, INT8, SPARSE].map(schemeOfRow), ["float", "int8dq", "int8dq, sparse"]);
});
