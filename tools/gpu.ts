/**
 * What a machine with a GPU is for, in one command: `deno task gpu`. It goes through parts of cells, most telling first,
 * and goes on where it was stopped; `--list` says what there is, `--part` picks. `--dry-run` tells what a denoising step
 * will take of a GPU, on any machine.
 *
 * @module
 */

import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import type { Limits } from "../lib/graph/cost.ts";
import { formatTable } from "../lib/media/progress.ts";
import { schemeOf } from "../lib/quantize/schemes.ts";
import { checkDeviceName, type DeviceName } from "../lib/tensor/device.ts";
import { conformance, goldens, machine, pictures, sanitizer } from "./gpu/checks.ts";
import { describeForecasts, DRY_SCHEMES, H200 } from "./gpu/dry_run.ts";
import { flux, fluxAll, peer, peerAll, profile, start } from "./gpu/flux.ts";
import { ceilings, kernels } from "./gpu/kernels.ts";
import { addResult, keyOf, output, type Part, readResults, type Result, type Row, type Setting } from "./gpu/part.ts";

const here = (path: string) => fileURLToPath(new URL(path, import.meta.url));

/** The parts in the order in which they run. */
const PARTS: readonly Part[] = [
  machine,
  conformance,
  goldens,
  pictures,
  flux,
  peer,
  kernels,
  ceilings,
  profile,
  start,
  fluxAll,
  peerAll,
  sanitizer,
];

/** Reads what a machine can do: TFLOP/s by type, and GB/s of memory as `bytes`; what is not named is an H200's. */
function limitsOf(text: string): Limits {
  const entries = text.split(",").map((entry) => {
    const [, name, value] = /^(bf16|fp8|int8|f32|bytes)=(\d+(?:\.\d+)?)$/.exec(entry) ?? [];
    if (name === undefined) {
      throw new RangeError(
        `Cannot use the limit ${JSON.stringify(entry)}: pass such as bf16=788,fp8=1576,int8=1576,f32=67 in TFLOP/s ` +
          "and bytes=4300 in GB/s",
      );
    }
    return [name, Number(value) * (name === "bytes" ? 1e9 : 1e12)];
  });
  return { ...H200, ...Object.fromEntries(entries) };
}

/** A number of things that a flag has. */
function countOf(flag: string, text: string): number {
  if (/^[1-9]\d*$/.test(text)) return Number(text);
  throw new RangeError(`Cannot use --${flag} ${JSON.stringify(text)}: pass an integer of at least 1`);
}

const { values: flags } = parseArgs({
  options: {
    "dry-run": { type: "boolean", default: false },
    all: { type: "boolean", default: false },
    scheme: { type: "string", default: DRY_SCHEMES.join() },
    "batch-size": { type: "string", default: "1" },
    limits: { type: "string" },
    device: { type: "string", default: "cuda" },
    small: { type: "boolean", default: false },
    out: { type: "string" },
    python: { type: "string", default: "python3" },
    part: { type: "string", multiple: true },
    cell: { type: "string" },
    minutes: { type: "string", default: "600" },
    retry: { type: "boolean", default: false },
    list: { type: "boolean", default: false },
    help: { type: "boolean", default: false },
  },
});

const HELP = `--dry-run         what a step of Flux.1-dev takes of a GPU: launches, bytes, arithmetic, least time
  --scheme LIST   its schemes [${DRY_SCHEMES.join()}]
  --batch-size N  pictures of a call [1]
  --limits LIST   what the machine can do [an H200's], such as bf16=788,bytes=4300 in TFLOP/s and GB/s
  --all           a line for each launch
--list            the parts, and how much of each is done
--part NAME       this part alone; may be given several times
--minutes N       stops before a cell that would begin later, and goes on with the next call [600]
--retry           runs cells again that failed
--device NAME     cuda, cuda:1, cuda-emulated [cuda]
--small           everything as small as it can be
--python PATH     a Python with PyTorch and diffusers, the peer [python3]
--out FOLDER      results, and what cells leave for each other [out/gpu/<device>]`;

function settingOf(): Setting {
  checkDeviceName(flags.device);
  const device = flags.device as DeviceName;
  const folder = `out/gpu/${device.replace(":", "-")}${flags.small ? "-small" : ""}`;
  return { device, small: flags.small, out: flags.out ?? here(`../${folder}`), python: flags.python };
}

function partsOf(names: readonly string[] | undefined): readonly Part[] {
  const unknown = names?.find((name) => !PARTS.some((part) => part.name === name));
  if (unknown !== undefined) {
    throw new RangeError(`Cannot run --part ${unknown}: pass ${PARTS.map(({ name }) => name).join(", ")}`);
  }
  return names ? PARTS.filter(({ name }) => names.includes(name)) : PARTS;
}

/** The longest that a cell may take, so that the whole can run in short stretches. */
const CELL_SECONDS = 590;

/** Runs a cell in a process of its own, and keeps what it found. */
async function runCell(part: Part, cell: string, setting: Setting): Promise<Result> {
  const { device, small, out, python } = setting;
  const begin = performance.now();
  const args = ["run", "--allow-all", fileURLToPath(import.meta.url), "--part", part.name, "--cell", cell];
  const setup = ["--device", device, "--out", out, "--python", python, ...small ? ["--small"] : []];
  const env = { DENOISE_DEVICE: device, NO_COLOR: "1" };
  const found: { rows?: Row[]; error?: string } = await output([Deno.execPath(), ...args, ...setup], {
    env,
    seconds: CELL_SECONDS,
  }).then(
    (text) => ({ rows: JSON.parse(text.trim().split("\n").at(-1)!) as Row[] }),
    (error: Error) => ({ error: error.message }),
  );
  const seconds = (performance.now() - begin) / 1000;
  return { part: part.name, cell, ...found, seconds, at: new Date().toISOString() };
}

/** Numbers as short as they tell something. */
function shorten(value: string | number | boolean): string | number {
  if (typeof value !== "number") return String(value).slice(0, 100);
  return Number.isInteger(value) ? value : Number(value.toPrecision(4));
}

/** Whether a cell failed, or found something that did. */
const hasFailed = ({ error, rows = [] }: Result): boolean =>
  error !== undefined || rows.some(({ failed = 0 }) => Number(failed) > 0);
const isDone = (result: Result | undefined): boolean => result !== undefined && !(flags.retry && hasFailed(result));

/** The other side's time of the same, and how many times this one is as fast. */
function besideOf({ beside }: Part, row: Row, results: ReadonlyMap<string, Result>): Row {
  if (!beside) return {};
  const { part, columns, time } = beside;
  const other = results.values().filter((result) => result.part === part).flatMap(({ rows = [] }) => rows)
    .find((candidate) => columns.every((column) => candidate[column] === row[column]));
  return other ? { [part]: other[time]!, ahead: Number(other[time]) / Number(row[time]) } : { [part]: "-", ahead: "-" };
}

async function printTables(parts: readonly Part[], setting: Setting): Promise<void> {
  const results = await readResults(setting.out);
  for (const part of parts) {
    const own = [...results.values()].filter((result) => result.part === part.name);
    const rows = own.flatMap(({ rows = [] }) => rows).map((row) => ({ ...row, ...besideOf(part, row, results) }));
    const failed = own.filter(({ error }) => error !== undefined);
    if (own.length === 0) continue;
    console.log(`\n${part.name}: ${part.about}`);
    if (rows.length > 0) {
      const lines = rows.map((row) => Object.fromEntries(Object.entries(row).map(([k, v]) => [k, shorten(v)])));
      console.log(formatTable(lines));
    }
    for (const { cell, error } of failed) console.log(`${cell} failed: ${error!.trim().split("\n").at(-1)}`);
  }
}

/** Runs what is not done yet; gives how many cells failed now. */
async function runParts(parts: readonly Part[], setting: Setting): Promise<number> {
  const begin = performance.now();
  const most = 60_000 * countOf("minutes", flags.minutes);
  let failed = 0;
  for (const part of parts) {
    for (const cell of await part.cells(setting)) {
      if (isDone((await readResults(setting.out)).get(keyOf(part.name, cell)))) continue;
      if (performance.now() - begin > most) {
        console.error(`stopped before ${part.name} ${cell}: call again to go on`);
        return failed;
      }
      const result = await runCell(part, cell, setting);
      await addResult(setting.out, result);
      if (hasFailed(result)) failed++;
      console.error(`${hasFailed(result) ? "failed" : "done"}: ${part.name} ${cell}, ${result.seconds.toFixed(1)} s`);
    }
  }
  return failed;
}

/** Prints what a cell found; what failed is a sentence. */
async function printCell(part: Part, cell: string, setting: Setting): Promise<void> {
  try {
    console.log(JSON.stringify([await part.run(cell, setting)].flat()));
  } catch (error) {
    console.error(error instanceof Error ? error.message : String(error));
    Deno.exit(1);
  }
}

async function list(parts: readonly Part[], setting: Setting): Promise<void> {
  const results = await readResults(setting.out);
  const rows = [];
  for (const part of parts) {
    const cells = await part.cells(setting);
    const done = cells.filter((cell) => results.get(keyOf(part.name, cell))?.rows).length;
    rows.push({ part: part.name, done: `${done} of ${cells.length}`, about: part.about });
  }
  console.log(formatTable(rows));
}

async function dryRun(): Promise<void> {
  const schemes = flags.scheme.split(",");
  for (const scheme of schemes) if (scheme !== "none") schemeOf(scheme);
  const texts = describeForecasts({
    schemes,
    all: flags.all,
    batchSize: countOf("batch-size", flags["batch-size"]),
    limits: flags.limits === undefined ? H200 : limitsOf(flags.limits),
  });
  for await (const text of texts) console.log(text);
}

async function main(): Promise<void> {
  if (flags.help) return console.log(HELP);
  if (flags["dry-run"]) return await dryRun();
  const [parts, setting] = [partsOf(flags.part), settingOf()];
  if (flags.cell !== undefined) return await printCell(parts[0]!, flags.cell, setting);
  if (flags.list) return await list(parts, setting);
  const failed = await runParts(parts, setting);
  await printTables(parts, setting);
  if (failed > 0) Deno.exit(1);
}

try {
  await main();
} catch (error) {
  if (!(error instanceof RangeError)) throw error;
  console.error(error.message);
  Deno.exit(2);
}
