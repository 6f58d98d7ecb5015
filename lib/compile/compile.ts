/**
 * Compiling on purpose: kernels chosen by measurement, once, and remembered; the whole kept in a file.
 *
 * @module
 */

import { environment } from "../../ffi/environment.ts";
import { library } from "../../ffi/library.ts";
import { findCacheFolder } from "../tensor/cache.ts";
import { Device } from "../tensor/device.ts";
import { type CallOptions, CompiledFunction, type KernelChoices, type Specialization } from "../tensor/function.ts";
import type { Tensor } from "../tensor/tensor.ts";
import { type Description, writeCompiled } from "./ahead_of_time.ts";
import { type TriedKernel, Tuner } from "./tuner.ts";
import { TuningFile } from "./tuning.ts";

/** What is done about kernels that were not measured on this machine. */
export type Autotune = "off" | "cached" | "on";

/** How something is compiled, for calls of type `R`. */
export interface CompileOptions<R> {
  /** `default` uses the tunings that are known, `max-autotune` measures the others, once. `default` by default. */
  mode?: "default" | "max-autotune" | undefined;
  /** Whether a pipeline's decoder is tuned as well; false by default. */
  vae?: boolean | undefined;
  /**
   * The calls to get ready for, as far as shapes follow from their options; one of defaults by default. Others work as
   * well: they are compiled when they come.
   */
  runs?: readonly R[] | undefined;
  /**
   * `off`: kernels as they are, without a tuning file; `cached`: what the file knows; `on`: what it does not know is
   * measured. By default `DENOISE_AUTOTUNE`, or else what the mode asks for.
   */
  autotune?: Autotune | undefined;
  /** The tuning file; by default `DENOISE_AUTOTUNE_PATH`, or else `tuning.json` in the folder of caches. */
  path?: string | undefined;
  /** Stops between two measurements. */
  signal?: AbortSignal | undefined;
}

/** A function that calls will run, with arguments of some shapes. */
export interface CompiledUse {
  /** The function's name in a file. */
  readonly name: string;
  /** Whether its kernels are chosen. */
  readonly tuned: boolean;
  /** Compiles it. */
  readonly prepare: (options: CallOptions) => Promise<Specialization>;
}

/** What is made of functions over tensors. */
export interface CompileTarget<R> {
  /** Where it runs. */
  readonly device: Device;
  /** Has kernels chosen. */
  choose(choices: KernelChoices, options: { vae: boolean }): void;
  /** The functions of a call. */
  uses(run: R, options: { vae: boolean }): readonly CompiledUse[];
  /** What a file of it says besides, for the calls that it is made for. */
  describe(runs: readonly R[]): Promise<Description>;
}

/** The key of {@linkcode Compilable}. */
export const COMPILE_TARGET: unique symbol = Symbol("denoise.compile");

/** What can be compiled: a pipeline. */
export interface Compilable<R> {
  /** @internal Its functions. */
  readonly [COMPILE_TARGET]: CompileTarget<R>;
}

/** What was compiled. */
export class Compiled {
  /** Milliseconds that it took. */
  readonly milliseconds: number;
  readonly #tuner: Tuner;
  readonly #save: (path: string, signal: AbortSignal | undefined) => Promise<void>;

  /** @internal */
  constructor(
    tuner: Tuner,
    options: { milliseconds: number; save: (path: string, signal: AbortSignal | undefined) => Promise<void> },
  ) {
    this.#tuner = tuner;
    this.milliseconds = options.milliseconds;
    this.#save = options.save;
  }

  /** The kernels that could be chosen, each with what its variants took and which was taken: now or earlier. */
  get tried(): readonly TriedKernel[] {
    return this.#tuner.tried;
  }

  /** How many problems were measured in this process; none where all was known. */
  get measured(): number {
    return this.#tuner.measured;
  }

  /**
   * Writes all that the calls take into one safetensors file: programs, weights as kernels take them, tokenizers,
   * settings. It is written beside its place and then renamed, piece by piece.
   *
   * @param path The file
   * @param options A signal
   * @throws {OutputError} If it cannot be written
   */
  async save(path: string, options: { signal?: AbortSignal | undefined } = {}): Promise<void> {
    await this.#save(path, options.signal);
  }
}

/**
 * Compiles a pipeline, or a function over tensors, for calls to come: its graphs are lowered, and its kernels chosen by
 * what was measured on this machine.
 *
 * @example Measured once, remembered
 * ```ts
 * import { compile } from "./compile.ts";
 * import { FluxPipeline } from "../pipelines/flux.ts";
 *
 * const pipe = await FluxPipeline.load("models/shapes-flux");
 * const run = { height: 64, width: 64, numInferenceSteps: 2 };
 * const compiled = await compile(pipe, { runs: [run], autotune: "off" });
 * console.table(compiled.tried);
 * await pipe("a red star on a white background", run);
 * ```
 *
 * @param target The pipeline or function
 * @param options Whether to measure, for which calls, where to remember
 * @returns What was tried, and how to save it all
 * @throws {RangeError} If an option, or the environment variable that stands for it, has an unknown value
 */
export async function compile<R>(
  target: Compilable<R> | CompiledFunction<R, Record<string, Tensor>>,
  options: CompileOptions<R> = {},
): Promise<Compiled> {
  const start = performance.now();
  const { mode = "default", vae = false, signal } = options;
  if (mode !== "default" && mode !== "max-autotune") {
    throw new RangeError(`Cannot compile in the mode ${JSON.stringify(mode)}: pass "default" or "max-autotune"`);
  }
  const autotune = autotuneOf(options, mode);
  const found = target instanceof CompiledFunction ? await functionTarget(target) : target[COMPILE_TARGET];
  const { device } = found;
  const path = autotune === "off" ? undefined : options.path ?? defaultPath();
  const file = await TuningFile.open(path, machineOf(device));
  const tuner = new Tuner(file, { device, measures: autotune === "on" });
  found.choose(tuner, { vae });
  const runs = options.runs ?? (target instanceof CompiledFunction ? [] : [{} as R]);
  for (const run of runs) for (const use of found.uses(run, { vae })) await use.prepare({ signal });
  return new Compiled(tuner, {
    milliseconds: performance.now() - start,
    save: async (path, signal) => {
      const uses = runs.flatMap((run) => found.uses(run, { vae }));
      await writeCompiled(path, {
        device,
        description: await found.describe(runs),
        functions: uses.map(({ name, prepare, tuned }) => ({
          name,
          specialize: () => prepare({ signal }),
          variantOf: tuned ? tuner.variantOf : undefined,
        })),
        signal,
      });
    },
  });
}

function autotuneOf({ autotune }: { autotune?: Autotune | undefined }, mode: string): Autotune {
  const named = environment("DENOISE_AUTOTUNE") || undefined;
  const value = autotune ?? named ?? (mode === "max-autotune" ? "on" : "cached");
  if (value === "off" || value === "cached" || value === "on") return value;
  const where = autotune === undefined ? "DENOISE_AUTOTUNE" : "autotune";
  throw new RangeError(`Cannot use ${where} ${JSON.stringify(value)}: it is off, cached or on`);
}

function defaultPath(): string | undefined {
  const named = environment("DENOISE_AUTOTUNE_PATH");
  if (named) return named;
  const folder = findCacheFolder();
  return folder && `${folder}/tuning.json`;
}

/** What a measurement holds for: the device, its threads, its kernels, and the libraries that they call. */
function machineOf({ description, threads, sources }: Device): string {
  const { name, architecture, libraries } = description;
  const { version } = library().description;
  return [
    name,
    architecture,
    `${threads} threads`,
    ...libraries,
    `denoise ${version}`,
    `kernels ${sources.slice(0, 16)}`,
  ].join(", ");
}

async function functionTarget<I>(fn: CompiledFunction<I, Record<string, Tensor>>): Promise<CompileTarget<I>> {
  const device = fn.device ?? await Device.default();
  return {
    device,
    choose: (choices) => fn.choose(choices),
    uses: (inputs) => [{ name: fn.name, tuned: true, prepare: (options) => fn.prepare(inputs, options) }],
    describe: () => Promise.resolve({ target: "function", notes: {}, assets: [] }),
  };
}
