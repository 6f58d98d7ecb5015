/**
 * What a GPU will have to do, known without one: every launch of a denoising step with its bytes, its arithmetic and the
 * time that the machine's limits allow.
 *
 * @module
 */

import { COMPILE_TARGET } from "../../lib/compile/compile.ts";
import { allowedSeconds, type Arithmetic, type Cost, costOf, type Limits, shapesOf } from "../../lib/graph/cost.ts";
import { formatTable } from "../../lib/media/progress.ts";
import { quantize } from "../../lib/quantize/quantize.ts";
import { FLUX_DEV, type FluxSize, loadRandomFlux, writeFlux } from "./flux_dev.ts";

/**
 * An H200: bf16 and memory as measured on such a card; fp8 and int8 multiply twice as fast as bf16 and f32 at 67 TFLOP/s
 * by its maker's data sheet (1,979 TFLOP/s dense of fp8 to 989 of bf16).
 */
export const H200: Required<Limits> = { f32: 67e12, bf16: 788e12, fp8: 2 * 788e12, int8: 2 * 788e12, bytes: 4.3e12 };

/** The schemes that are most told of; `none` is bf16. */
export const DRY_SCHEMES: readonly string[] = ["none", "fp8dqrow", "int8dq", "int4wo"];

/** Launches that are alike. */
export interface LaunchRow extends Cost {
  /** The kernel. */
  readonly op: string;
  /** What it reads and writes. */
  readonly shapes: string;
  /** How many there are; all else is of all of them together. */
  readonly count: number;
  /** The seconds that the limits allow. */
  readonly seconds: number;
}

/** A denoising step. */
export interface StepForecast {
  /** The launches in order. */
  readonly launches: readonly LaunchRow[];
  /** The bytes of the transformer's weights as kernels take them. */
  readonly weightBytes: number;
  /** The bytes of its working memory. */
  readonly arenaBytes: number;
}

/** What is forecast. */
export interface ForecastOptions {
  /** The scheme of the transformer; `none` is bf16. */
  readonly scheme: string;
  /** Pictures of a call. */
  readonly batchSize?: number;
  /** Which Flux; Flux.1-dev by default. */
  readonly size?: FluxSize;
  /** What the machine can do; an H200 by default. */
  readonly limits?: Limits;
}

/**
 * Lowers a denoising step of a Flux; nothing is computed and there are no weights.
 *
 * @param options Which
 * @returns The launches of the program that every step runs
 */
export async function forecastStep(options: ForecastOptions): Promise<StepForecast> {
  const { scheme, batchSize = 1, size = FLUX_DEV, limits = H200 } = options;
  const folder = await Deno.makeTempDir();
  try {
    await writeFlux(folder, size);
    const pipe = await loadRandomFlux(folder, { device: "cpu", dtype: "bf16" });
    if (scheme !== "none") quantize(pipe.transformer, scheme);
    const target = pipe[COMPILE_TARGET];
    const step = target.uses({ ...size.run, prompts: batchSize }, { vae: false })
      .find(({ name }) => name === "transformer")!;
    const { stages, info } = await step.prepare({});
    const launches = stages.at(-1)!.calls.map((call) => {
      const cost = costOf(call);
      return { op: call.kernel, shapes: shapesOf(call), count: 1, ...cost, seconds: allowedSeconds(cost, limits) };
    });
    return { launches, weightBytes: info.weightBytes, arenaBytes: info.arenaBytes };
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
}

/**
 * Launches of one kernel and one combination of shapes as one row.
 *
 * @param launches The launches
 * @returns Rows, those that take longest first
 */
export function groupLaunches(launches: readonly LaunchRow[]): LaunchRow[] {
  const groups = Map.groupBy(launches, ({ op, arithmetic, shapes }) => [op, arithmetic, shapes].join("\n"));
  return [...groups.values()].map((alike) => alike.reduce(add)).toSorted((a, b) => b.seconds - a.seconds);
}

const add = (a: LaunchRow, b: LaunchRow): LaunchRow => ({
  ...a,
  count: a.count + b.count,
  bytes: a.bytes + b.bytes,
  operations: a.operations + b.operations,
  seconds: a.seconds + b.seconds,
});

/**
 * Forecasts as a text: for each scheme a table of launches and a line of sums.
 *
 * @param options Which schemes, whether each launch has a line of its own, and what a forecast takes
 * @returns The text, scheme by scheme
 */
export async function* describeForecasts(
  options: Omit<ForecastOptions, "scheme"> & { schemes: readonly string[]; all: boolean },
): AsyncGenerator<string> {
  const { schemes, all, ...rest } = options;
  const { limits = H200, size = FLUX_DEV, batchSize = 1 } = rest;
  const rate = (name: Arithmetic) => `${name} ${((limits[name] ?? limits.f32) / 1e12).toFixed(0)}`;
  const { height, width, numInferenceSteps: steps } = size.run;
  yield `${size.name}, ${height} by ${width}, batch ${batchSize}; limits: ` +
    `${(["bf16", "fp8", "int8", "f32"] as const).map(rate).join(", ")} TFLOP/s, ${limits.bytes / 1e12} TB/s`;
  for (const scheme of schemes) {
    const { launches, weightBytes, arenaBytes } = await forecastStep({ ...rest, scheme });
    const total = launches.reduce(add);
    yield "";
    yield formatTable((all ? launches : groupLaunches(launches)).map(lineOf));
    yield `${scheme === "none" ? "bf16" : scheme}: ${total.count} launches a step, ` +
      `${(total.operations / 1e12).toFixed(2)} TFLOP, ${(total.bytes / 1e9).toFixed(2)} GB, at least ` +
      `${(1000 * total.seconds).toFixed(2)} ms; ${steps} steps ${(steps * total.seconds).toFixed(3)} s; weights ` +
      `${(weightBytes / 1e9).toFixed(2)} GB, working memory ${(arenaBytes / 1e9).toFixed(2)} GB`;
  }
}

const lineOf = ({ op, arithmetic, count, bytes, operations, seconds, shapes }: LaunchRow) => ({
  op,
  of: arithmetic,
  count,
  MB: Number((bytes / 1e6).toFixed(2)),
  GFLOP: Number((operations / 1e9).toFixed(3)),
  us: Number((1e6 * seconds).toFixed(1)),
  shapes,
});
