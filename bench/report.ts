/**
 * The report of the runs of `bench/inference.ts`: tables in Markdown, a chart of time against quality, the pictures.
 *
 * @module
 */

import { parse, View } from "npm:vega@6.4.0";
import { compile, type TopLevelSpec } from "npm:vega-lite@6.5.0";
import { formatBytes } from "../lib/media/progress.ts";
import { NONE, type Row, type Runs } from "./matrix.ts";
import { milliseconds, percent } from "./measure.ts";

/** A picture for each of some captions, a row of them for each scheme. */
export interface Sheet {
  /** The checkpoint. */
  readonly ckptId: string;
  /** The file, from the report's folder. */
  readonly file: string;
  /** What made each row, from the top. */
  readonly schemes: readonly string[];
}

/** How many of the fastest runs are listed. */
const FASTEST = 5;

/**
 * A run's scheme, as the tables name it.
 *
 * @param row The run
 * @returns Such as `int8dq`, `int8dq, sparse`, `float`
 */
export function schemeOfRow({ quantization, sparsify }: Pick<Row, "quantization" | "sparsify">): string {
  return `${quantization === NONE ? "float" : quantization}${sparsify ? ", sparse" : ""}`;
}

/** What else a run had, as the tables name it. */
function switchesOf(row: Row): string {
  const names = (["fuse", "compile", "compile_vae"] as const).filter((name) => row[name]);
  return names.length === 0 ? "as it is" : names.join(", ");
}

const perPicture = (row: Row) => row.time / row.batch_size;

/**
 * The report.
 *
 * @param runs The runs
 * @param files The chart and the sheets of pictures, from the report's folder
 * @returns Markdown
 */
export function reportOf(runs: Runs, files: { chart: string; sheets: readonly Sheet[] }): string {
  const { machine, settings, rows } = runs;
  const checkpoints = [...Map.groupBy(rows, ({ ckpt_id }) => ckpt_id)];
  const lines = [
    "# Inference",
    "",
    machine,
    "",
    `Pictures of ${settings.width} by ${settings.height} in ${settings.num_inference_steps} steps; the median of ` +
    `${settings.runs} calls after ${settings.warmup} to warm up. PSNR and SSIM are medians against the float pictures ` +
    `of the same seeds, accuracy is the share of ${settings.prompts} prompts whose picture shows what they say. ` +
    "Memory: the weights as the kernels take them, and the most that the process had.",
  ];
  for (const [ckptId, own] of checkpoints) {
    const sheet = files.sheets.find((s) => s.ckptId === ckptId);
    lines.push(
      "",
      `## ${ckptId}`,
      "",
      `### The ${Math.min(FASTEST, own.length)} fastest`,
      "",
      ...runTable(own.toSorted((a, b) => perPicture(a) - perPicture(b)).slice(0, FASTEST), own),
      "",
      "### Memory",
      "",
      ...memoryTable(own),
      "",
      "### All",
      "",
      ...runTable(own, own),
      ...(sheet
        ? [
          "",
          "### Pictures",
          "",
          `![The same seeds by each scheme](${sheet.file})`,
          "",
          "From the top:",
          "",
          ...sheet.schemes.map((scheme, i) => `${i + 1}. ${scheme}`),
        ]
        : []),
    );
  }
  lines.push("", "## Time against quality", "", `![Seconds of a picture against PSNR](${files.chart})`, "");
  return lines.join("\n");
}

/** Rows as a table, each beside the plain float run of its batch size, where there is one. */
function runTable(rows: readonly Row[], all: readonly Row[]): string[] {
  return table(
    ["scheme", "with", "batch", "a picture", "of float's", "PSNR", "SSIM", "accuracy"],
    rows.map((row) => {
      const plain = all.find((other) =>
        other.batch_size === row.batch_size && other.quantization === NONE && switchesOf(other) === "as it is"
      );
      return [
        schemeOfRow(row),
        switchesOf(row),
        String(row.batch_size),
        milliseconds(perPicture(row)),
        plain ? percent(row.time / plain.time) : "",
        row.psnr === Infinity ? "equal" : `${row.psnr.toFixed(1)} dB`,
        row.ssim.toFixed(4),
        percent(row.accuracy),
      ];
    }),
  );
}

function memoryTable(rows: readonly Row[]): string[] {
  const smallest = rows.toSorted((a, b) => a.model_memory - b.model_memory || a.inference_memory - b.inference_memory);
  return table(
    ["scheme", "with", "batch", "weights", "most of the process"],
    smallest.map((row) => [
      schemeOfRow(row),
      switchesOf(row),
      String(row.batch_size),
      formatBytes(row.model_memory),
      formatBytes(row.inference_memory),
    ]),
  );
}

function table(head: readonly string[], rows: readonly (readonly string[])[]): string[] {
  const line = (cells: readonly string[]) => `| ${cells.join(" | ")} |`;
  return [line(head), `|${head.map((_, i) => i < 2 ? "---|" : "--:|").join("")}`, ...rows.map(line)];
}

/**
 * The chart of time against quality: a point a run, and a line where the float run is, whose pictures are what the
 * others are held against.
 *
 * @param rows The runs
 * @returns Vega-Lite's description
 */
export function chartOf(rows: readonly Row[]): TopLevelSpec {
  const values = rows.map((row) => ({
    scheme: schemeOfRow(row),
    with: switchesOf(row),
    seconds: perPicture(row),
    psnr: row.psnr,
  }));
  const x = { field: "seconds", type: "quantitative", title: "seconds a picture", scale: { zero: true } } as const;
  const color = { field: "scheme", type: "nominal", scale: { scheme: "tableau20" } } as const;
  const shape = { field: "with", type: "nominal" } as const;
  return {
    $schema: "https://vega.github.io/schema/vega-lite/v6.json",
    background: "white",
    width: 640,
    height: 400,
    layer: [
      {
        data: { values: values.filter(({ psnr }) => psnr !== Infinity) },
        mark: { type: "point", filled: true, size: 90 },
        encoding: {
          x,
          y: { field: "psnr", type: "quantitative", title: "PSNR against float, dB", scale: { zero: false } },
          color,
          shape,
        },
      },
      {
        data: { values: values.filter(({ psnr }) => psnr === Infinity) },
        mark: { type: "rule", strokeDash: [4, 4] },
        encoding: { x, color },
      },
    ],
  };
}

/**
 * Draws a chart.
 *
 * @param spec Vega-Lite's description
 * @returns An SVG file's text
 */
export async function toSvg(spec: TopLevelSpec): Promise<string> {
  return await new View(parse(compile(spec).spec), { renderer: "none" }).toSVG();
}
