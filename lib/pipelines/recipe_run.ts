/**
 * What happens around a recipe's pipeline: errors as sentences, Ctrl-C, folders, progress, the report at the end.
 *
 * @module
 */

import { OutputError } from "../errors.ts";
import type { FloatDtype } from "../graph/dtypes.ts";
import { formatBytes, formatSeconds, formatTable, ProgressBar } from "../media/progress.ts";
import type { Device, DeviceName } from "../tensor/device.ts";
import { type MemoryPlan, PHASES } from "./memory.ts";
import {
  type OptimizablePipeline,
  type Optimizations,
  optimize,
  type OptimizedRun,
  type OptimizeReport,
} from "./optimize.ts";
import type { PipelineLoadOptions } from "./load.ts";
import type { PhaseSeconds } from "./run.ts";

const INTERRUPTED = new Error("Stopped.");

/** Makes of an error that nobody catches a sentence and an exit code of 1. */
export function tellErrors(): void {
  globalThis.addEventListener("unhandledrejection", (event) => {
    event.preventDefault();
    console.error(`${event.reason instanceof Error ? event.reason.message : event.reason}`);
    Deno.exit(event.reason === INTERRUPTED ? 130 : 1);
  });
}

/**
 * A signal that Ctrl-C gives.
 *
 * @returns The signal
 */
function interruptSignal(): AbortSignal {
  const interrupt = new AbortController();
  Deno.addSignalListener("SIGINT", () => interrupt.abort(INTERRUPTED));
  return interrupt.signal;
}

/** Makes the folder of the results before hours are spent on them. */
export async function makeFolder(folder: string): Promise<void> {
  try {
    await Deno.mkdir(folder, { recursive: true });
  } catch (cause) {
    const remedy = cause instanceof Deno.errors.NotCapable
      ? "run with --allow-write for it"
      : "pass another --out, or check its permissions";
    throw new OutputError(`Cannot make the folder ${folder}: ${(cause as Error).message}; ${remedy}`, {
      file: folder,
      cause,
    });
  }
}

/**
 * The files of a run's results.
 *
 * @param out What `--out` says: the file of a single result, the folder of several
 * @param count How many there are
 * @param extension The ending of files in a folder, such as `.png`
 * @returns Their paths
 */
export function resultPaths(out: string, count: number, extension: string): string[] {
  if (count === 1) return [out];
  const folder = out.replace(/[/\\]$/, "");
  return Array.from({ length: count }, (_, i) => `${folder}/${String(i).padStart(2, "0")}${extension}`);
}

/** A bar of what is downloaded, if anything is, and a bar of what is done. */
class Bars {
  #download: ProgressBar | undefined;
  readonly #bars = new Map<string, ProgressBar>();

  /** Shows a download. */
  readonly onProgress: NonNullable<PipelineLoadOptions["onProgress"]> = ({ bytes, total }) => {
    this.#download ??= new ProgressBar({ label: "Downloading", total, unit: "bytes" });
    this.#download.update(bytes, { total });
  };

  /** Ends the bar of the download. */
  loaded(): void {
    this.#download?.finish();
  }

  /** Shows how much of something is done. */
  update(label: string, done: number, total: number): void {
    let bar = this.#bars.get(label);
    if (!bar) this.#bars.set(label, bar = new ProgressBar({ label, total }));
    bar.update(done);
    if (done === total) bar.finish();
  }
}

/** What every recipe's flags say of a run. */
interface RunFlags {
  readonly device: DeviceName;
  readonly dtype: FloatDtype;
  readonly prompts: readonly string[];
  readonly optimization: Optimizations;
  readonly json: boolean;
  readonly dryRun: boolean;
}

/** What happens around a recipe's pipeline, from loading to the report. */
export class RecipeRun {
  /** Given by Ctrl-C. */
  readonly signal: AbortSignal = interruptSignal();
  /** Progress. */
  readonly bars = new Bars();
  readonly #flags: RunFlags;
  readonly #start: number;
  #loaded = 0;
  #optimized: OptimizeReport | undefined;

  /**
   * Begins.
   *
   * @param flags The recipe's flags
   * @param start When the recipe started, by `performance.now()`
   */
  constructor(flags: RunFlags, start: number) {
    this.#flags = flags;
    this.#start = start;
  }

  /** How to load the model: shows a download's progress. */
  get load(): Pick<PipelineLoadOptions, "device" | "dtype" | "weights" | "signal" | "onProgress"> {
    const { device, dtype, dryRun } = this.#flags;
    return { device, dtype, weights: !dryRun, signal: this.signal, onProgress: this.bars.onProgress };
  }

  /**
   * Does to a model what was asked for, and ends a dry run. The time from the start to here counts as loading.
   *
   * @param pipe The pipeline
   * @param options The call that it is made ready for, and what that will take of the memory
   */
  async prepare<R extends OptimizedRun>(
    pipe: OptimizablePipeline<R>,
    { run, plan }: { run: R; plan: () => MemoryPlan },
  ): Promise<void> {
    const { optimization, prompts, dryRun, json } = this.#flags;
    this.#optimized = await optimize(pipe, optimization, { prompts, run, signal: this.signal });
    this.#loaded = performance.now();
    if (!dryRun) return;
    printPlan(plan(), { json });
    Deno.exit(0);
  }

  /**
   * Says what was made: a table, or JSON.
   *
   * @param what What it is
   * @param pipe The pipeline
   * @param made The files, the seconds, the steps, what it took of the memory
   */
  report(
    what: "picture" | "video",
    pipe: { readonly quantization: string; readonly device: Device },
    made: { paths: readonly string[]; seconds: PhaseSeconds; steps: number; plan: MemoryPlan },
  ): void {
    const report = reportOf({
      ...made,
      loadSeconds: (this.#loaded - this.#start) / 1000,
      quantization: pipe.quantization,
      optimized: this.#optimized!,
      peakMemory: pipe.device.peakMemory(),
    });
    if (this.#flags.json) console.log(JSON.stringify(report));
    else printReport(report, what);
  }
}

/** The bytes of all weights as the kernels take them. */
function modelBytes({ models }: MemoryPlan): number {
  return models.reduce((sum, { weightBytes }) => sum + weightBytes, 0);
}

/** What a recipe says of a run, as JSON has it. */
interface RunReport {
  readonly paths: readonly string[];
  readonly seconds: {
    readonly load: number;
    readonly text_encoding: number;
    readonly denoising: number;
    readonly decoding: number;
  };
  readonly seconds_per_step: number;
  readonly quantization: string;
  readonly skipped: OptimizeReport["skipped"];
  readonly compiled?: NonNullable<OptimizeReport["compiled"]>;
  readonly model_memory_bytes: number;
  readonly peak_memory_bytes: number;
}

/**
 * What a run made, and how.
 *
 * @param run The files, the seconds, the steps, the pipeline, what was done to it
 * @returns The report
 */
function reportOf(
  run: {
    paths: readonly string[];
    loadSeconds: number;
    seconds: PhaseSeconds;
    steps: number;
    quantization: string;
    optimized: OptimizeReport;
    plan: MemoryPlan;
    peakMemory: number;
  },
): RunReport {
  const { seconds, optimized: { skipped, compiled } } = run;
  return {
    paths: run.paths,
    seconds: {
      load: run.loadSeconds,
      text_encoding: seconds.textEncoding,
      denoising: seconds.denoising,
      decoding: seconds.decoding,
    },
    seconds_per_step: seconds.denoising / run.steps,
    quantization: run.quantization,
    skipped,
    ...(compiled && { compiled }),
    model_memory_bytes: modelBytes(run.plan),
    peak_memory_bytes: run.peakMemory,
  };
}

/** Prints a report as a table. */
function printReport(report: RunReport, what: "picture" | "video"): void {
  const { seconds, compiled } = report;
  console.log(formatTable([
    { what: "load", value: formatSeconds(seconds.load) },
    { what: "text encoding", value: formatSeconds(seconds.text_encoding) },
    {
      what: "denoising",
      value: `${formatSeconds(seconds.denoising)}, ${formatMilliseconds(report.seconds_per_step)} a step`,
    },
    { what: "decoding", value: formatSeconds(seconds.decoding) },
    ...(compiled
      ? [{ what: "compiling", value: `${formatSeconds(compiled.seconds)}, ${compiled.measured} kernels measured` }]
      : []),
    ...report.quantization.split("; ").filter(Boolean).map((value) => ({ what: "quantization", value })),
    ...reasons(report.skipped).map((value) => ({ what: "left in floats", value })),
    { what: "model memory", value: formatBytes(report.model_memory_bytes) },
    { what: "peak memory", value: formatBytes(report.peak_memory_bytes) },
    ...report.paths.map((path) => ({ what, value: path })),
  ], { header: false }));
}

/** Why layers were left as they were, with the first of each. */
function reasons(skipped: OptimizeReport["skipped"]): string[] {
  const groups = Map.groupBy(skipped, ({ reason }) => reason);
  return [...groups].map(([reason, layers]) => {
    const others = layers.length > 1 ? ` and ${layers.length - 1} more` : "";
    return `${layers[0]!.name}${others}: ${reason}`;
  });
}

function formatMilliseconds(seconds: number): string {
  return seconds < 1 ? `${(seconds * 1000).toFixed(1)} ms` : formatSeconds(seconds);
}

const PHASE_NAMES = { textEncoding: "text encoding", denoising: "denoising", decoding: "decoding" } as const;

/** Prints what a run will take of the memory. */
function printPlan({ models, phases, bytes }: MemoryPlan, { json }: { json: boolean }): void {
  if (json) return console.log(JSON.stringify({ models, phases, bytes }));
  console.log(formatTable([
    ...models.map(({ part, parameters, weightBytes, workBytes }) => ({
      part,
      parameters: `${(parameters / 1e6).toFixed(1)} M`,
      weights: formatBytes(weightBytes),
      work: formatBytes(workBytes),
    })),
    ...PHASES.flatMap((phase) => phases.filter((found) => found.phase === phase)).map(({ phase, bytes }) => ({
      part: PHASE_NAMES[phase],
      parameters: "",
      weights: "",
      work: formatBytes(bytes),
    })),
    { part: "at most", parameters: "", weights: "", work: formatBytes(bytes) },
  ]));
}
