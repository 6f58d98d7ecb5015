/**
 * What the benches that run a matrix share: flags with lists of values, a process for each run, going on where it was
 * stopped.
 *
 * @module
 */

import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { formatTable, ProgressBar } from "../lib/media/progress.ts";
import { AUTOQUANT } from "../lib/pipelines/optimize.ts";
import { schemeOf } from "../lib/quantize/schemes.ts";
import { describeMachine } from "./machine.ts";
import { type Matrix, NONE, type Runs } from "./matrix.ts";

/** A flag's default, and what it means. */
export interface MatrixFlag {
  readonly fallback: string;
  readonly help: string;
}

/** The values of flags, which are lists. */
export class MatrixFlags<N extends string> {
  readonly #values: Readonly<Record<string, unknown>>;

  /**
   * Reads a command line.
   *
   * @param table The flags
   * @param args The arguments
   */
  constructor(table: Readonly<Record<N, MatrixFlag>>, args: readonly string[]) {
    const options = Object.fromEntries(
      Object.entries<MatrixFlag>(table).map(([name, { fallback }]) => [
        name,
        { type: "string" as const, default: fallback },
      ]),
    );
    this.#values = parseArgs({ args: [...args], options: { ...options, help: { type: "boolean" } } }).values;
  }

  /** Whether the help is wanted. */
  get help(): boolean {
    return this.#values.help === true;
  }

  /** A flag's values. */
  list(name: N): string[] {
    return String(this.#values[name]).split(",");
  }

  /** A flag as it was given. */
  text(name: N): string {
    return String(this.#values[name]);
  }

  /** A flag's values, each on or off. */
  switches(name: N): boolean[] {
    return this.list(name).map((value) =>
      /^(?:true|false)$/.test(value) ? value === "true" : this.#refuse(name, value, "pass true, false, or both")
    );
  }

  /** A flag's values, each a number of things. */
  counts(name: N, min = 1): number[] {
    return this.list(name).map((value) =>
      /^\d+$/.test(value) && Number(value) >= min
        ? Number(value)
        : this.#refuse(name, value, `pass an integer of at least ${min}`)
    );
  }

  /** A flag's number of things. */
  count(name: N, min = 1): number {
    return this.counts(name, min)[0]!;
  }

  /** A flag's schemes; `autoquant` and `none` are some. */
  schemes(name: N): string[] {
    const schemes = this.list(name);
    for (const scheme of schemes) if (scheme !== NONE && scheme !== AUTOQUANT) schemeOf(scheme);
    return schemes;
  }

  #refuse(name: N, value: string, remedy: string): never {
    throw new RangeError(`Cannot use --${name} ${JSON.stringify(value)}: ${remedy}`);
  }
}

/**
 * What a table of flags says of itself.
 *
 * @param table The flags
 * @returns What `--help` prints
 */
export function matrixHelp(table: Readonly<Record<string, MatrixFlag>>): string {
  const rows = Object.entries(table).map(([name, { fallback, help }]) => ({
    flag: `  --${name}`,
    help: `${help} [${fallback}]`,
  }));
  return `Runs a part of the matrix; values of a flag are separated by commas.\n\n${
    formatTable(rows, { header: false })
  }`;
}

/**
 * Runs a task in a process of its own.
 *
 * @param script The script, beside this one
 * @param task What it reads from its only argument
 * @returns What it prints, which is JSON
 */
export async function execute<T>(script: string, task: unknown): Promise<T> {
  const path = fileURLToPath(new URL(script, import.meta.url));
  const { success, stdout, stderr } = await new Deno.Command(Deno.execPath(), {
    args: ["run", "--allow-all", path, JSON.stringify(task)],
  }).output();
  const text = new TextDecoder();
  if (!success) throw new Error(text.decode(stderr).trim());
  return JSON.parse(text.decode(stdout)) as T;
}

/** What came of a run: the columns that its configuration lacks. JSON has no infinite PSNR. */
export type Outcome<C, R> = Omit<R, keyof C | "psnr"> & { readonly psnr: number | null };

/** A matrix, and how it is run. */
export interface MatrixTask<C extends object, R extends C & { readonly psnr: number }, S> {
  readonly matrix: Matrix<C, R>;
  readonly configurations: readonly C[];
  readonly settings: S;
  /** The folder of the results. */
  readonly out: string;
  readonly nameOf: (configuration: C) => string;
  /** Runs one. */
  readonly run: (configuration: C) => Promise<Outcome<C, R>>;
}

/**
 * Runs what was not run yet, and writes the files after each.
 *
 * @param task The matrix
 * @returns All runs, and how many failed now
 * @throws {RangeError} If earlier runs had other settings, or ran on another machine
 */
export async function runMatrix<C extends object, R extends C & { readonly psnr: number }, S>(
  task: MatrixTask<C, R, S>,
): Promise<{ runs: Runs<S, R>; failed: number }> {
  const { matrix, configurations, settings, out, nameOf, run } = task;
  await Deno.mkdir(out, { recursive: true });
  let runs = await earlier(task, await describeMachine());
  const left = matrix.missing(configurations, runs.rows);
  let failed = 0;
  using bar = new ProgressBar({ label: "Running", total: configurations.length });
  bar.update(configurations.length - left.length);
  for (const [i, configuration] of left.entries()) {
    try {
      const outcome = await run(configuration);
      const row = { ...configuration, ...outcome, psnr: outcome.psnr ?? Infinity } as unknown as R;
      runs = { ...runs, settings, rows: [...runs.rows, row] };
      await matrix.write(out, runs);
    } catch (error) {
      failed++;
      console.error(`\n${nameOf(configuration)} failed: ${(error as Error).message}`);
    }
    bar.update(configurations.length - left.length + i + 1);
  }
  bar.finish();
  return { runs, failed };
}

/** The runs of an earlier call that can be gone on with. */
async function earlier<C extends object, R extends C & { readonly psnr: number }, S>(
  { matrix, settings, out }: MatrixTask<C, R, S>,
  machine: string,
): Promise<Runs<S, R>> {
  const found = await matrix.read<S>(`${out}/runs.json`);
  if (!found) return { machine, settings, rows: [] };
  if (JSON.stringify(found.settings) === JSON.stringify(settings) && found.machine === machine) return found;
  throw new RangeError(
    `${out}/runs.json has runs of other settings or another machine (${JSON.stringify(found.settings)}, ` +
      `${found.machine}): pass the same settings, or another --out`,
  );
}

/**
 * Runs a bench; what was asked for wrongly is a sentence and an exit code of 2.
 *
 * @param main The bench
 */
export async function runBench(main: () => Promise<void>): Promise<void> {
  try {
    await main();
  } catch (error) {
    if (!(error instanceof RangeError || error instanceof SyntaxError || error instanceof TypeError)) throw error;
    console.error(error.message);
    Deno.exit(2);
  }
}
