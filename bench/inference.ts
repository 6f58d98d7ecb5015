/**
 * Any part of the matrix of checkpoints, batch sizes, fusing, compiling, quantization and pruning, with what each costs
 * in quality: `deno run -A bench/inference.ts --quantization none,int8dq --batch-size 1,4`, `--help` for the rest.
 *
 * Writes `runs.csv` and `runs.json` after every run, and goes on where it was stopped; then a report with a chart and
 * the pictures.
 *
 * @module
 */

import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { Image } from "../lib/media/image.ts";
import { formatTable, ProgressBar } from "../lib/media/progress.ts";
import { AUTOQUANT } from "../lib/pipelines/optimize.ts";
import { schemeOf, SCHEMES } from "../lib/quantize/schemes.ts";
import type { Outcome, Task } from "./inference_run.ts";
import { replaceFile } from "../lib/tensor/output.ts";
import { describeMachine } from "./machine.ts";
import {
  type Axes,
  checkpointName,
  combine,
  type Configuration,
  missing,
  nameOf,
  NONE,
  readRuns,
  type Row,
  type Runs,
  type Settings,
  writeRuns,
} from "./matrix.ts";
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

type FlagName = keyof typeof FLAGS;

/** What the command line asks for. */
interface Wanted {
  readonly configurations: readonly Configuration[];
  readonly settings: Settings;
  readonly sheet: number;
  readonly out: string;
}

function parseFlags(args: readonly string[]): Wanted | undefined {
  const options = Object.fromEntries(
    Object.entries(FLAGS).map(([name, { fallback }]) => [name, { type: "string" as const, default: fallback }]),
  );
  const { values } = parseArgs({ args: [...args], options: { ...options, help: { type: "boolean" } } });
  if (values.help) return undefined;
  const list = (name: FlagName) => String(values[name as keyof typeof values]).split(",");
  const refuse = (name: FlagName, value: string, remedy: string): never => {
    throw new RangeError(`Cannot use --${name} ${JSON.stringify(value)}: ${remedy}`);
  };
  const switches = (name: FlagName) =>
    list(name).map((value) =>
      /^(?:true|false)$/.test(value) ? value === "true" : refuse(name, value, "pass true, false, or both")
    );
  const counts = (name: FlagName, min = 1) =>
    list(name).map((value) =>
      /^\d+$/.test(value) && Number(value) >= min
        ? Number(value)
        : refuse(name, value, `pass an integer of at least ${min}`)
    );
  const count = (name: FlagName, min = 1) => counts(name, min)[0]!;
  const schemes = list("quantization");
  for (const name of schemes) if (name !== NONE && name !== AUTOQUANT) schemeOf(name);
  const axes: Axes = {
    ckpt_id: list("ckpt-id"),
    batch_size: counts("batch-size"),
    fuse: switches("fuse"),
    compile: switches("compile"),
    compile_vae: switches("compile-vae"),
    quantization: schemes,
    sparsify: switches("sparsify"),
  };
  const configurations = combine(axes);
  if (configurations.length === 0) {
    throw new RangeError("There is nothing to run: --compile-vae goes with --compile true, --sparsify with int8dq");
  }
  const prompts = Math.min(count("prompts"), CAPTIONS.length);
  return {
    configurations,
    settings: {
      prompts,
      warmup: count("warmup", 0),
      runs: count("runs"),
      num_inference_steps: count("num-inference-steps"),
      height: count("height"),
      width: count("width"),
      max_sequence_length: count("max-sequence-length"),
    },
    sheet: Math.min(count("sheet"), prompts),
    out: list("out").join(),
  };
}

function helpText(): string {
  const rows = Object.entries(FLAGS).map(([name, { fallback, help }]) => ({
    flag: `  --${name}`,
    help: `${help} [${fallback}]`,
  }));
  return `Runs a part of the matrix; values of a flag are separated by commas.\n\n${
    formatTable(rows, { header: false })
  }`;
}

/** Runs a task in a process of its own. */
async function execute(task: Task): Promise<Outcome> {
  const script = fileURLToPath(new URL("inference_run.ts", import.meta.url));
  const { success, stdout, stderr } = await new Deno.Command(Deno.execPath(), {
    args: ["run", "--allow-all", script, JSON.stringify(task)],
  }).output();
  const text = new TextDecoder();
  if (!success) throw new Error(text.decode(stderr).trim());
  return JSON.parse(text.decode(stdout)) as Outcome;
}

/** The runs of an earlier call that can be gone on with. */
async function earlier({ settings, out }: Wanted, machine: string): Promise<Runs> {
  const found = await readRuns(`${out}/runs.json`);
  if (!found) return { machine, settings, rows: [] };
  if (JSON.stringify(found.settings) === JSON.stringify(settings) && found.machine === machine) return found;
  throw new RangeError(
    `${out}/runs.json has runs of other settings or another machine (${JSON.stringify(found.settings)}, ` +
      `${found.machine}): pass the same settings, or another --out`,
  );
}

/** The float pictures of a checkpoint, made where they are not there yet. */
async function floatPictures(configuration: Configuration, { settings, out }: Wanted): Promise<string> {
  const floats = `${out}/pictures/${checkpointName(configuration.ckpt_id)}-float`;
  const all = await openPictures(floats, settings.prompts).catch(() => undefined);
  if (!all) await execute({ configuration, settings, pictures: floats, floats: undefined });
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
  if (!wanted) return console.log(helpText());
  const { configurations, settings, out } = wanted;
  await Deno.mkdir(out, { recursive: true });
  let runs = await earlier(wanted, await describeMachine());
  const left = missing(configurations, runs.rows);
  let failed = 0;
  using bar = new ProgressBar({ label: "Running", total: configurations.length });
  bar.update(configurations.length - left.length);
  for (const [i, configuration] of left.entries()) {
    try {
      const floats = await floatPictures(configuration, wanted);
      const pictures = `${out}/pictures/${nameOf(configuration)}`;
      const outcome = await execute({ configuration, settings, pictures, floats });
      const row: Row = { ...configuration, ...outcome, psnr: outcome.psnr ?? Infinity };
      runs = { ...runs, rows: [...runs.rows, row] };
      await writeRuns(out, runs);
    } catch (error) {
      failed++;
      console.error(`\n${nameOf(configuration)} failed: ${(error as Error).message}`);
    }
    bar.update(configurations.length - left.length + i + 1);
  }
  bar.finish();
  if (runs.rows.length > 0) {
    await writeReport(runs, wanted);
    console.log(`${out}/report.md`);
  }
  if (failed > 0) Deno.exit(1);
}

try {
  await main();
} catch (error) {
  if (!(error instanceof RangeError || error instanceof SyntaxError || error instanceof TypeError)) throw error;
  console.error(error.message);
  Deno.exit(2);
}
