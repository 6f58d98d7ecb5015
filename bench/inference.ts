/**
 * Any part of the matrix of checkpoints, batch sizes, fusing, compiling, quantization and pruning, with what each costs
 * in quality: `deno run -A bench/inference.ts --quantization none,int8dq --batch-size 1,4`, `--help` for the rest.
 *
 * Writes `runs.csv` and `runs.json` after every run, and goes on where it was stopped; then a report with a chart and
 * the pictures.
 *
 * @module
 */

import { Image } from "../lib/media/image.ts";
import { AUTOQUANT } from "../lib/pipelines/optimize.ts";
import { SCHEMES } from "../lib/quantize/schemes.ts";
import { replaceFile } from "../lib/tensor/output.ts";
import type { Outcome, Task } from "./inference_run.ts";
import {
  checkpointName,
  type Configuration,
  nameOf,
  NONE,
  PICTURES,
  type Row,
  type Runs,
  type Settings,
} from "./matrix.ts";
import { execute, MatrixFlags, matrixHelp, runBench, runMatrix } from "./matrix_run.ts";
import { chartOf, reportOf, schemeOfRow, type Sheet, toSvg } from "./report.ts";
import { CAPTIONS, openPictures } from "./shapes.ts";

const FLAGS = {
  "ckpt-id": { fallback: "models/shapes-flux", help: "checkpoints: folders, hub ids, URLs" },
  "batch-size": { fallback: "1", help: "pictures of a call, such as 1,4,8,16" },
  "fuse": { fallback: "false", help: "whether q, k and v are one projection: false, true, or both as false,true" },
  "compile": { fallback: "false", help: "whether kernels are chosen by measurement" },
  "compile-vae": { fallback: "false", help: "whether those of the VAE are; with --compile alone" },
  "quantization": {
    fallback: [NONE, ...SCHEMES.map(({ name }) => name)].join(","),
    help: `schemes, ${AUTOQUANT}, ${NONE}`,
  },
  "sparsify": { fallback: "false", help: "whether the transformer is pruned before; with int8dq alone" },
  "prompts": { fallback: String(CAPTIONS.length), help: "how many captions quality is judged by" },
  "warmup": { fallback: "5", help: "calls before those that are timed" },
  "runs": { fallback: "5", help: "calls that are timed" },
  "num-inference-steps": { fallback: "20", help: "steps of a picture" },
  "height": { fallback: "128", help: "rows of pixels" },
  "width": { fallback: "128", help: "pixels in a row" },
  "max-sequence-length": { fallback: "32", help: "the most tokens of a prompt" },
  "sheet": { fallback: "8", help: "pictures of a row of the contact sheet" },
  "out": { fallback: "out/inference", help: "the folder of the results" },
} as const;

/** What the command line asks for. */
interface Wanted {
  readonly configurations: readonly Configuration[];
  readonly settings: Settings;
  readonly sheet: number;
  readonly out: string;
}

function parseFlags(args: readonly string[]): Wanted | undefined {
  const flags = new MatrixFlags(FLAGS, args);
  if (flags.help) return undefined;
  const configurations = PICTURES.combine({
    ckpt_id: flags.list("ckpt-id"),
    batch_size: flags.counts("batch-size"),
    fuse: flags.switches("fuse"),
    compile: flags.switches("compile"),
    compile_vae: flags.switches("compile-vae"),
    quantization: flags.schemes("quantization"),
    sparsify: flags.switches("sparsify"),
  });
  if (configurations.length === 0) {
    throw new RangeError("There is nothing to run: --compile-vae goes with --compile true, --sparsify with int8dq");
  }
  const prompts = Math.min(flags.count("prompts"), CAPTIONS.length);
  return {
    configurations,
    settings: {
      prompts,
      warmup: flags.count("warmup", 0),
      runs: flags.count("runs"),
      num_inference_steps: flags.count("num-inference-steps"),
      height: flags.count("height"),
      width: flags.count("width"),
      max_sequence_length: flags.count("max-sequence-length"),
    },
    sheet: Math.min(flags.count("sheet"), prompts),
    out: flags.text("out"),
  };
}

/** Runs a task in a process of its own. */
const executeTask = (task: Task) => execute<Outcome>("inference_run.ts", task);

/** The float pictures of a checkpoint, made where they are not there yet. */
async function floatPictures(configuration: Configuration, { settings, out }: Wanted): Promise<string> {
  const floats = `${out}/pictures/${checkpointName(configuration.ckpt_id)}-float`;
  const all = await openPictures(floats, settings.prompts).catch(() => undefined);
  if (!all) await executeTask({ configuration, settings, pictures: floats, floats: undefined });
  return floats;
}

/** A row of pictures for each scheme, of one checkpoint. */
async function sheetOf(ckptId: string, rows: readonly Row[], { sheet, out }: Wanted): Promise<Sheet> {
  const first = [...Map.groupBy(rows, schemeOfRow).values()].map(([row]) => row!);
  const images: Image[] = [];
  for (const row of first) images.push(...await openPictures(`${out}/pictures/${nameOf(row)}`, sheet));
  const file = `${checkpointName(ckptId)}.png`;
  await Image.grid(images, { columns: sheet, gap: 2 }).save(`${out}/${file}`);
  return { ckptId, file, schemes: first.map(schemeOfRow) };
}

async function writeReport(runs: Runs, wanted: Wanted): Promise<void> {
  const { out } = wanted;
  const chart = "time_against_quality.svg";
  await replaceFile(`${out}/${chart}`, await toSvg(chartOf(runs.rows)));
  const sheets = [];
  for (const [ckptId, rows] of Map.groupBy(runs.rows, (row) => row.ckpt_id)) {
    sheets.push(await sheetOf(ckptId, rows, wanted));
  }
  await replaceFile(`${out}/report.md`, reportOf(runs, { chart, sheets }));
}

async function main(): Promise<void> {
  const wanted = parseFlags(Deno.args);
  if (!wanted) return console.log(matrixHelp(FLAGS));
  const { configurations, settings, out } = wanted;
  const { runs, failed } = await runMatrix({
    matrix: PICTURES,
    configurations,
    settings,
    out,
    nameOf,
    run: async (configuration) => {
      const floats = await floatPictures(configuration, wanted);
      return await executeTask({
        configuration,
        settings,
        pictures: `${out}/pictures/${nameOf(configuration)}`,
        floats,
      });
    },
  });
  if (runs.rows.length > 0) {
    await writeReport(runs, wanted);
    console.log(`${out}/report.md`);
  }
  if (failed > 0) Deno.exit(1);
}

await runBench(main);
