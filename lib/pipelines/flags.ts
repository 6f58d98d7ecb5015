/**
 * The command line of recipes: tables of flags, what all recipes that make something have in common, and how it is read.
 *
 * @module
 */

import { parseArgs } from "node:util";
import type { FloatDtype } from "../graph/dtypes.ts";
import { formatTable } from "../media/progress.ts";
import { schemeOf } from "../quantize/schemes.ts";
import { checkDeviceName, type DeviceName } from "../tensor/device.ts";
import { AUTOQUANT, type Optimizations } from "./optimize.ts";
import type { Seed } from "./pipeline.ts";

/** One flag: what it takes (nothing: it is on or off), what it is by default, what it means. */
export interface Flag {
  readonly takes?: string;
  readonly fallback?: string;
  readonly multiple?: true;
  readonly help: string;
}

/** What `--quantize-vae` means without a name: the results are the nearest to those in floats. */
const VAE_SCHEME = "int8wo";

/** The flags of what is done to a pipeline before it runs. */
export const OPTIMIZATION_FLAGS = {
  "quantization": { takes: "NAME", help: "the transformer's scheme: int8dq, int4wo, fp8dqrow..., or autoquant" },
  "group-size": { takes: "COUNT", help: "inputs that share a scale, of int4: 32, 64, 128 or 256" },
  "sparsify": { help: "prune the transformer to two of each four weights; int8dq stores them without the zeros" },
  "plan": { takes: "FILE", help: "the plan of each layer's scheme, as autoquant saved it" },
  "fuse-qkv": { help: "make one projection of q, k and v" },
  "quantize-vae": {
    takes: "[NAME]",
    help: `the VAE's scheme: int8wo, int8dq or fp8wo [${VAE_SCHEME} where none is named]`,
  },
  "compile": { help: "choose kernels by measurement, or by what was measured before" },
  "compile-vae": { help: "the same for the VAE; needs --compile" },
} as const satisfies Record<string, Flag>;

/** What computes, of every recipe that runs a pipeline. */
export const DEVICE_FLAGS = {
  "device": { takes: "NAME", fallback: "auto", help: "what computes: cpu, cuda, cuda:1, or the best that there is" },
} as const satisfies Record<string, Flag>;

/** The flags of every recipe that reports. */
export const REPORT_FLAGS = {
  "json": { help: "print one JSON object: paths, seconds, peak memory" },
  "dry-run": { help: "print the memory that it will take, and nothing else; weights are not downloaded" },
  "help": { help: "print this" },
} as const satisfies Record<string, Flag>;

/** A command line, read by a table of flags. */
export class Flags<N extends string> {
  readonly #table: Readonly<Record<N, Flag>>;
  readonly #values: Readonly<Record<string, unknown>>;

  /**
   * Reads a command line.
   *
   * @param table The flags that there are
   * @param args The arguments
   * @throws {RangeError} If one is unknown, or lacks its value
   */
  constructor(table: Readonly<Record<N, Flag>>, args: readonly string[]) {
    this.#table = table;
    const options: Record<string, { type: "string" | "boolean"; multiple?: true }> = {};
    for (const [name, flag] of Object.entries<Flag>(table)) {
      options[name] = { type: flag.takes ? "string" : "boolean", ...(flag.multiple && { multiple: true as const }) };
    }
    try {
      this.#values = parseArgs({ args: withVaeScheme(args), options, allowPositionals: false }).values;
    } catch (cause) {
      const [sentence] = String((cause as Error).message).split(/\. |\n/);
      throw new RangeError(`${sentence}: --help lists the flags`, { cause });
    }
  }

  /** Whether a flag is on. */
  on(name: N): boolean {
    return this.#values[name] === true;
  }

  /** What a flag was given, if it was. */
  given(name: N): string | undefined {
    return this.#values[name] as string | undefined;
  }

  /** All that a flag was given. */
  texts(name: N): string[] | undefined {
    return this.#values[name] as string[] | undefined;
  }

  /** What a flag is: what it was given, or its default. */
  text(name: N): string {
    return (this.#values[name] ?? this.#table[name].fallback) as string;
  }

  /** A flag's number. */
  number(name: N): number {
    const value = this.text(name).trim() === "" ? NaN : Number(this.text(name));
    if (Number.isFinite(value)) return value;
    throw new RangeError(`Cannot use --${name} ${JSON.stringify(this.text(name))}: pass a number`);
  }

  /** A flag's number of things. */
  count(name: N): number {
    const value = this.number(name);
    if (Number.isSafeInteger(value) && value >= 1) return value;
    throw new RangeError(`Cannot use --${name} ${this.text(name)}: pass an integer of at least 1`);
  }
}

/** The arguments with a name after a `--quantize-vae` that has none. */
function withVaeScheme(args: readonly string[]): string[] {
  return args.map((arg, i) => {
    const next = args[i + 1];
    return arg === "--quantize-vae" && (next === undefined || next.startsWith("-")) ? `${arg}=${VAE_SCHEME}` : arg;
  });
}

/**
 * What a table of flags says of itself.
 *
 * @param title What the recipe does
 * @param table Its flags
 * @returns What `--help` prints
 */
export function helpText(title: string, table: Readonly<Record<string, Flag>>): string {
  const rows = Object.entries(table).map(([name, { takes, fallback, help }]) => ({
    flag: `  --${name}${takes ? ` ${takes}` : ""}`,
    help: fallback === undefined ? help : `${help} [${fallback}]`,
  }));
  return `${title}\n\n${formatTable(rows, { header: false })}`;
}

/**
 * Reads `--dtype`.
 *
 * @param dtype What it was given
 * @returns A type to compute in
 * @throws {RangeError} If it is none
 */
export function parseDtype(dtype: string): FloatDtype {
  if (dtype === "f32" || dtype === "bf16" || dtype === "f16") return dtype;
  throw new RangeError(`Cannot use --dtype ${JSON.stringify(dtype)}: pass f32, bf16 or f16`);
}

/**
 * Reads `--device`.
 *
 * @param name What it was given
 * @returns A device's name
 * @throws {RangeError} If it is none
 */
export function parseDevice(name: string): DeviceName {
  checkDeviceName(name);
  return name as DeviceName;
}

/**
 * Reads `--seed`.
 *
 * @param text What it was given
 * @returns A seed
 * @throws {RangeError} If it is none
 */
export function parseSeed(text: string): Seed {
  if (!/^-?\d+$/.test(text)) {
    throw new RangeError(`Cannot use --seed ${JSON.stringify(text)}: pass an integer from -2^63 to 2^64 - 1`);
  }
  const seed = BigInt(text);
  if (seed < -(1n << 63n) || seed >= 1n << 64n) {
    throw new RangeError(`Cannot use --seed ${text}: pass an integer from -2^63 to 2^64 - 1`);
  }
  return Number.isSafeInteger(Number(seed)) ? Number(seed) : seed;
}

/**
 * Reads what is done to a pipeline before it runs.
 *
 * @param flags The command line
 * @returns What is done
 * @throws {RangeError} If a scheme is unknown, or flags do not go together
 */
export function parseOptimization(flags: Flags<keyof typeof OPTIMIZATION_FLAGS | "dry-run">): Optimizations {
  const quantization = flags.given("quantization");
  const plan = flags.given("plan");
  const quantizeVae = flags.given("quantize-vae");
  checkScheme("quantization", quantization, { or: AUTOQUANT });
  checkScheme("quantize-vae", quantizeVae);
  if (quantizeVae !== undefined && !schemeOf(quantizeVae).kinds.includes("conv2d")) {
    throw new RangeError(`Cannot use --quantize-vae ${quantizeVae}: pass int8wo, int8dq or fp8wo`);
  }
  if (quantization !== undefined && plan !== undefined) {
    throw new RangeError(`Cannot use --plan ${plan} with --quantization ${quantization}: pass one of the two`);
  }
  const size = flags.given("group-size");
  if (size !== undefined && !/^(?:32|64|128|256)$/.test(size)) {
    throw new RangeError(`Cannot use --group-size ${JSON.stringify(size)}: pass 32, 64, 128 or 256`);
  }
  if (size !== undefined && !quantization?.startsWith("int4")) {
    throw new RangeError(`Cannot use --group-size ${size}: pass --quantization int4wo or int4dq as well`);
  }
  if (flags.on("compile-vae") && !flags.on("compile")) {
    throw new RangeError("Cannot use --compile-vae alone: pass --compile as well");
  }
  if (flags.on("dry-run") && (flags.on("compile") || quantization === AUTOQUANT)) {
    const flag = flags.on("compile") ? "--compile" : `--quantization ${AUTOQUANT}`;
    throw new RangeError(`Cannot use ${flag} with --dry-run, which has no weights to measure with: leave out one`);
  }
  return {
    fuseQkv: flags.on("fuse-qkv"),
    sparsify: flags.on("sparsify"),
    quantization,
    groupSize: size === undefined ? undefined : Number(size),
    plan,
    quantizeVae,
    compile: flags.on("compile"),
    compileVae: flags.on("compile-vae"),
  };
}

function checkScheme(
  flag: keyof typeof OPTIMIZATION_FLAGS,
  name: string | undefined,
  options: { or?: string } = {},
): void {
  if (name === undefined || name === options.or) return;
  try {
    schemeOf(name);
  } catch (cause) {
    const or = options.or === undefined ? "" : `, or ${options.or}`;
    throw new RangeError(`${(cause as Error).message}${or}, as --${flag}`, { cause });
  }
}
