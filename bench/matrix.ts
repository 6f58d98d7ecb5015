/**
 * Matrices of runs: configurations, what came of each, and the files that hold that. The one of `bench/inference.ts` is
 * here.
 *
 * @module
 */

import { stringify } from "npm:csv-stringify@6.9.0/sync";
import { replaceFile } from "../lib/tensor/output.ts";

/** What is run. The names are the columns of the files. */
export interface Configuration {
  /** A folder, a hub id or a URL. */
  readonly ckpt_id: string;
  /** Pictures of a call. */
  readonly batch_size: number;
  /** Whether q, k and v are one projection. */
  readonly fuse: boolean;
  /** Whether kernels are chosen by measurement. */
  readonly compile: boolean;
  /** Whether those of the VAE are, too. */
  readonly compile_vae: boolean;
  /** The transformer's scheme, `autoquant`, or `none`. */
  readonly quantization: string;
  /** Whether the transformer was pruned before. */
  readonly sparsify: boolean;
}

/** What came of it. */
export interface Row extends Configuration {
  /** Bytes of all weights as the kernels take them. */
  readonly model_memory: number;
  /** The most bytes that the process had. */
  readonly inference_memory: number;
  /** Seconds of a call: the median. */
  readonly time: number;
  /** Against the float pictures of the same seeds, in decibels: the median. Infinite where they are equal. */
  readonly psnr: number;
  /** The same, as structural similarity. */
  readonly ssim: number;
  /** The share of prompts whose picture shows what they say. */
  readonly accuracy: number;
}

/** How each configuration is run; rows of other settings are not comparable. */
export interface Settings {
  /** How many of the prompts are drawn to judge quality. */
  readonly prompts: number;
  /** Calls before those that are timed. */
  readonly warmup: number;
  /** Calls that are timed. */
  readonly runs: number;
  /** Steps of a picture. */
  readonly num_inference_steps: number;
  /** Rows of pixels. */
  readonly height: number;
  /** Pixels in a row. */
  readonly width: number;
  /** The most tokens of a prompt. */
  readonly max_sequence_length: number;
}

/** The runs so far. */
export interface Runs<S = Settings, R = Row> {
  /** What they ran on. */
  readonly machine: string;
  /** How. */
  readonly settings: S;
  /** What came of them. */
  readonly rows: readonly R[];
}

/** The values of each column to combine. */
export type Axes<C = Configuration> = { readonly [K in keyof C]: readonly C[K][] };

/** A matrix of configurations of type `C`, whose runs have rows of type `R`. */
export class Matrix<C extends object, R extends C & { readonly psnr: number }> {
  /** The columns of the files. */
  readonly columns: readonly (keyof R & string)[];
  readonly #axes: readonly (keyof C & string)[];
  readonly #means: (configuration: C) => boolean;

  /**
   * A matrix.
   *
   * @param options The columns of a configuration, in the order in which they are combined: the last one changes
   *   fastest; the columns of what came of it; whether a combination means something
   */
  constructor(options: {
    axes: readonly (keyof C & string)[];
    results: readonly (keyof R & string)[];
    means: (configuration: C) => boolean;
  }) {
    this.#axes = options.axes;
    this.columns = [...options.axes as readonly (keyof R & string)[], ...options.results];
    this.#means = options.means;
  }

  /**
   * Every combination that means something.
   *
   * @param axes The values of each column; what stands twice counts once
   * @returns The configurations
   */
  combine(axes: Axes<C>): C[] {
    let partial: Record<string, unknown>[] = [{}];
    for (const name of this.#axes) {
      partial = partial.flatMap((start) =>
        [...new Set<unknown>(axes[name])].map((value) => ({ ...start, [name]: value }))
      );
    }
    return (partial as C[]).filter(this.#means);
  }

  /**
   * The configurations that were not run yet.
   *
   * @param configurations All that are wanted
   * @param rows What there is
   * @returns The rest, in their order
   */
  missing(configurations: readonly C[], rows: readonly C[]): C[] {
    const keyOf = (configuration: C) => JSON.stringify(this.#axes.map((name) => configuration[name]));
    const done = new Set(rows.map(keyOf));
    return configurations.filter((configuration) => !done.has(keyOf(configuration)));
  }

  /**
   * The rows as CSV; an infinite number is `inf`.
   *
   * @param rows The rows
   * @returns The text
   */
  toCsv(rows: readonly R[]): string {
    return stringify([...rows], {
      header: true,
      columns: [...this.columns],
      cast: { boolean: String, number: (value) => value === Infinity ? "inf" : String(value) },
    });
  }

  /**
   * Reads the runs of an earlier call.
   *
   * @param path The JSON file
   * @returns The runs; `undefined` where there is no file
   */
  async read<S>(path: string): Promise<Runs<S, R> | undefined> {
    let text: string;
    try {
      text = await Deno.readTextFile(path);
    } catch (error) {
      if (error instanceof Deno.errors.NotFound) return undefined;
      throw error;
    }
    let runs: Runs<S, R>;
    try {
      runs = JSON.parse(text) as Runs<S, R>;
    } catch (cause) {
      throw new SyntaxError(`Cannot read ${path} as it is not JSON: remove it, or pass another --out`, { cause });
    }
    // JSON has no infinite numbers; no run is without a value.
    return { ...runs, rows: runs.rows.map((row) => ({ ...row, psnr: row.psnr ?? Infinity })) };
  }

  /**
   * Writes the runs as JSON and as CSV, each whole or not at all.
   *
   * @param folder Where `runs.json` and `runs.csv` go
   * @param runs The runs
   */
  async write<S>(folder: string, runs: Runs<S, R>): Promise<void> {
    await replaceFile(`${folder}/runs.json`, `${JSON.stringify(runs, null, 2)}\n`);
    await replaceFile(`${folder}/runs.csv`, this.toCsv(runs.rows));
  }
}

/**
 * The matrix of pictures: the VAE is compiled with the rest or not at all, and pruning goes with int8dq, the one scheme
 * that stores pruned weights without their zeros.
 */
export const PICTURES: Matrix<Configuration, Row> = new Matrix({
  axes: ["ckpt_id", "batch_size", "fuse", "compile", "compile_vae", "quantization", "sparsify"],
  results: ["model_memory", "inference_memory", "time", "psnr", "ssim", "accuracy"],
  means: ({ compile, compile_vae, quantization, sparsify }) =>
    (compile || !compile_vae) && (!sparsify || quantization === "int8dq"),
});

/** What a configuration without quantization has in its column. */
export const NONE = "none";

/**
 * A configuration's name, which can be a file's.
 *
 * @param configuration The configuration
 * @returns Such as `shapes-flux-b1-fuse-compile-int8dq-sparsify`
 */
export function nameOf(configuration: Configuration): string {
  const { ckpt_id, batch_size, quantization } = configuration;
  const switches = (["fuse", "compile", "compile_vae"] as const).filter((name) => configuration[name]);
  const sparse = configuration.sparsify ? ["sparsify"] : [];
  return [checkpointName(ckpt_id), `b${batch_size}`, ...switches, quantization, ...sparse].join("-");
}

/**
 * A checkpoint's name, which can be a file's.
 *
 * @param id A folder, a hub id or a URL
 * @returns What is left of it without the signs that a file's name cannot have
 */
export function checkpointName(id: string): string {
  return id.replace(/^[\w+]+:\/+|^(?:\.*\/)+/g, "").replace(/\/+$/, "").replaceAll(/[^\w.]+/g, "_");
}
