/**
 * Plans: which scheme each layer of a pipeline has, in a file that people can read and edit, and that is applied
 * without timing anything.
 *
 * @module
 */

import { ConfigError } from "../errors.ts";
import type { FloatDtype } from "../graph/dtypes.ts";
import { ACTIVATION, type ActivationKind } from "../graph/schema.ts";
import type { Module, Parameter } from "../nn/module.ts";
import { Model } from "../nn/module.ts";
import { replaceFile, writing } from "../tensor/output.ts";
import type { QuantizedTensor } from "../tensor/quantized.ts";
import {
  prepareLayer,
  quantizableLayers,
  type QuantizedLayer,
  type QuantizeReport,
  type SkippedLayer,
} from "./quantize.ts";
import type { SchemeOptions } from "./scheme.ts";
import { schemeOf } from "./schemes.ts";

/** The models of a pipeline, by the names of their folders. */
export type PlanComponent = "transformer" | "text_encoder" | "text_encoder_2" | "vae";

/** A pipeline whose models can be quantized. */
export interface PlannedPipeline {
  /** The network that is run at each step. */
  readonly transformer?: Module | undefined;
  /** The first text encoder. */
  readonly textEncoder?: Module | undefined;
  /** The second text encoder. */
  readonly textEncoder2?: Module | undefined;
  /** The autoencoder. */
  readonly vae?: Module | undefined;
}

/** What a plan was measured with. */
export interface PlanHeader {
  /** The CPU's model. */
  readonly cpu: string;
  /** The instruction level. */
  readonly level: string;
  /** How many threads shared the work. */
  readonly threads: number;
  /** The library's version. */
  readonly library: string;
  /** What the model was called when it was loaded. */
  readonly model: string;
  /** What activations were computed in. */
  readonly dtype: FloatDtype;
  /** The bound that each layer keeps, in dB. */
  readonly minSqnrDb: number;
}

/** A multiply that a layer takes part in. */
export interface PlannedProblem {
  /** Rows of the input. */
  readonly m: number;
  /** Outputs, of all layers that are joined. */
  readonly n: number;
  /** Inputs. */
  readonly k: number;
  /** The activation that is applied to the result. */
  readonly activation: ActivationKind;
  /** Whether the result is multiplied by a gate. */
  readonly gate: boolean;
  /** Whether a residual is added. */
  readonly residual: boolean;
  /** How often it is computed while a picture is made. */
  readonly runs: number;
  /** The layers that are one multiply with this one, in order, where it is not alone. */
  readonly joined?: readonly string[] | undefined;
  /** What it took in floats, in microseconds, where it was measured. */
  readonly floatMicroseconds?: number | undefined;
  /** What it took in the scheme, without quantizing the input. */
  readonly microseconds?: number | undefined;
}

/** A layer and its scheme. */
export interface PlannedLayer {
  /** The model. */
  readonly component: PlanComponent;
  /** The layer's name in it, such as `transformer_blocks.0.ff.net.2`. */
  readonly name: string;
  /** The scheme's name, or `none` for floats. */
  readonly scheme: string;
  /** The scheme's settings. */
  readonly settings?: SchemeOptions | undefined;
  /** How far its output is from the float layer's on real inputs, in dB, where it was measured. */
  readonly sqnrDb?: number | undefined;
  /** The multiplies that it takes part in. */
  readonly problems?: readonly PlannedProblem[] | undefined;
}

/** How a plan is applied. */
export interface ApplyOptions {
  /**
   * Whether a linear layer that the plan does not know, of a model that it knows, is an error, the default; otherwise it
   * stays in floats.
   */
  errorOnUnseen?: boolean | undefined;
}

/** One row of a plan as a table. */
export type PlanRow = {
  /** The model and the layer. */
  readonly layer: string;
  /** The scheme. */
  readonly scheme: string;
  /** In dB. */
  readonly sqnr: string;
  /** M x N x K and what follows the multiply. */
  readonly problem: string;
  /** In microseconds. */
  readonly float: string;
  /** In microseconds. */
  readonly chosen: string;
};

const FORMAT = 1;

/** Which scheme each layer has. */
export class QuantizationPlan {
  /** What it was measured with; `undefined` of a plan that was written by hand. */
  readonly header: PlanHeader | undefined;
  /** The layers, by model, in the model's order. */
  readonly layers: readonly PlannedLayer[];

  /** A plan of layers. */
  constructor(layers: readonly PlannedLayer[], header?: PlanHeader) {
    this.layers = layers;
    this.header = header;
  }

  /**
   * Reads a plan.
   *
   * @example
   * ```ts ignore
   * const plan = await QuantizationPlan.load("out/plan.json");
   * plan.apply(pipe, { errorOnUnseen: false });
   * ```
   *
   * @param path The file
   * @returns The plan
   * @throws {ConfigError} If it cannot be read, is no plan, or names what denoise does not have
   */
  static async load(path: string): Promise<QuantizationPlan> {
    let text: string;
    try {
      text = await Deno.readTextFile(path);
    } catch (cause) {
      const reason = cause instanceof Error ? cause.message : String(cause);
      const remedy = cause instanceof Deno.errors.NotCapable ? "run with --allow-read for it" : "check the path";
      throw new ConfigError(`Cannot read the plan ${path}: ${reason}; ${remedy}`, { file: path, cause });
    }
    return QuantizationPlan.parse(text, { file: path });
  }

  /**
   * Reads a plan from its text.
   *
   * @param text JSON
   * @param options The file that it is from, for messages
   * @returns The plan
   * @throws {ConfigError} If it is no plan, or names what denoise does not have
   */
  static parse(text: string, { file = "the plan" }: { file?: string } = {}): QuantizationPlan {
    let json: unknown;
    try {
      json = JSON.parse(text);
    } catch (cause) {
      const reason = cause instanceof Error ? cause.message : String(cause);
      throw new ConfigError(`Cannot read ${file} as it is not JSON (${reason}): correct it, or make the plan again`, {
        file,
        cause,
      });
    }
    return new Reader(file).plan(json);
  }

  /**
   * Writes the plan: a file is whole, old or new, whenever the process ends.
   *
   * @param path The file
   * @throws {OutputError} If it cannot be written
   */
  async save(path: string): Promise<void> {
    await writing(path, () => replaceFile(path, this.text()));
  }

  /**
   * The plan as its file holds it.
   *
   * @returns JSON, a line for each value
   */
  text(): string {
    const layers: Record<string, Record<string, unknown>> = {};
    for (const { component, name, ...layer } of this.layers) (layers[component] ??= {})[name] = layerJson(layer);
    const { header } = this;
    const json = { denoise_plan: FORMAT, ...(header && { measured_with: headerJson(header) }), layers };
    return `${JSON.stringify(json, null, 1)}\n`;
  }

  /**
   * This plan and another: a layer that both know is as the other has it.
   *
   * A layer that has the same scheme in both keeps the problems of both. Times are of one machine: those of this plan are
   * left out where the other was measured on another one, or at another level, or with other threads.
   *
   * @param other The plan that is heard where both say something
   * @returns A new plan
   */
  merge(other: QuantizationPlan): QuantizationPlan {
    const keyOf = ({ component, name }: PlannedLayer) => `${component}/${name}`;
    const comparable = !this.header || !other.header || machineOf(this.header) === machineOf(other.header);
    const layers = new Map(this.layers.map((layer) => [keyOf(layer), comparable ? layer : withoutTimes(layer)]));
    for (const layer of other.layers) {
      const before = layers.get(keyOf(layer));
      layers.set(keyOf(layer), before && sameScheme(before, layer) ? withProblems(layer, before.problems) : layer);
    }
    return new QuantizationPlan([...layers.values()], other.header ?? this.header);
  }

  /**
   * Quantizes a pipeline's layers as the plan says. Nothing is timed, and nothing is changed if something cannot be done.
   * What the plan knows and the pipeline does not have is left out: plans of several models can be one.
   *
   * @param pipe The pipeline, in floats
   * @param options What becomes of layers that the plan does not know
   * @returns What was quantized, what was not, and why; names are those of the model and the layer
   * @throws {RangeError} If the plan does not know a layer, or a layer cannot have the scheme that it says
   */
  apply(pipe: PlannedPipeline, { errorOnUnseen = true }: ApplyOptions = {}): QuantizeReport {
    const quantized: QuantizedLayer[] = [];
    const skipped: SkippedLayer[] = [];
    const values = new Map<Parameter, QuantizedTensor>();
    for (const [component, module] of componentsOf(pipe)) {
      const known = new Map(this.layers.filter((l) => l.component === component).map((l) => [l.name, l]));
      if (known.size === 0) continue;
      const dtype = module instanceof Model ? module.dtype as FloatDtype : undefined;
      for (const layer of quantizableLayers(module)) {
        const name = `${component}.${layer.name}`;
        const planned = known.get(layer.name);
        const skip = (reason: string) => skipped.push({ name, shape: layer.shape.join(" x "), reason });
        if (!planned) {
          if (layer.kind === "linear" && errorOnUnseen) {
            throw new RangeError(
              `Cannot apply the plan as it does not know ${name} (${
                layer.shape.join(" x ")
              }): add it, with the scheme ` +
                "none to leave it in floats, or pass errorOnUnseen: false",
            );
          }
          skip("the plan does not know it");
        } else if (planned.scheme === NONE) {
          skip("the plan leaves it in floats");
        } else {
          const result = prepareLayer(layer, schemeOf(planned.scheme), { ...planned.settings, dtype });
          if (typeof result === "string") {
            throw new RangeError(`Cannot apply the plan as ${name} cannot be ${planned.scheme}: ${result}`);
          }
          quantized.push({ ...result.report, name });
          values.set(layer.weight, result.value);
        }
      }
    }
    for (const [weight, value] of values) weight.quantized = value;
    return { quantized, skipped };
  }

  /**
   * The plan as a table.
   *
   * @returns A row for each multiply; layers that are joined share one
   */
  table(): PlanRow[] {
    const rows = new Map<string, PlanRow>();
    for (const { component, name, scheme, sqnrDb, problems = [] } of this.layers) {
      const sqnr = sqnrDb === undefined ? "" : sqnrDb.toFixed(1);
      const full = `${component}.${name}`;
      if (problems.length === 0) rows.set(full, { layer: full, scheme, sqnr, problem: "", float: "", chosen: "" });
      for (const problem of problems) {
        const layer = problem.joined ? `${component}.${someOf(problem.joined)}` : full;
        const key = `${component}.${problem.joined?.join() ?? name} ${problemKey(problem)}`;
        const known = rows.get(key);
        // The least of what is joined is what the bound is about.
        if (known && Number(known.sqnr) <= Number(sqnr)) continue;
        rows.set(key, {
          layer,
          scheme,
          sqnr,
          problem: problemKey(problem),
          float: problem.floatMicroseconds?.toFixed(1) ?? "",
          chosen: problem.microseconds?.toFixed(1) ?? "",
        });
      }
    }
    return [...rows.values()];
  }
}

/** The first of several names, and how many there are besides. */
function someOf(names: readonly string[]): string {
  return names.length <= 3 ? names.join(" + ") : `${names.slice(0, 2).join(" + ")} + ${names.length - 2} more`;
}

/** The scheme of a layer that stays in floats. */
const NONE = "none";

/**
 * A pipeline's models by the names of their folders.
 *
 * @param pipe The pipeline
 * @returns Those that it has
 */
export function componentsOf(pipe: PlannedPipeline): Map<PlanComponent, Module> {
  const all: [PlanComponent, Module | undefined][] = [
    ["transformer", pipe.transformer],
    ["text_encoder", pipe.textEncoder],
    ["text_encoder_2", pipe.textEncoder2],
    ["vae", pipe.vae],
  ];
  return new Map(all.filter((entry): entry is [PlanComponent, Module] => entry[1] !== undefined));
}

const COMPONENTS: readonly string[] = ["transformer", "text_encoder", "text_encoder_2", "vae"];

const machineOf = ({ cpu, level, threads }: PlanHeader) => `${cpu} ${level} ${threads}`;

/** A problem in a few words: equal ones are one. */
function problemKey({ m, n, k, activation, gate, residual }: PlannedProblem): string {
  const epilogue = [...(activation === "none" ? [] : [activation]), ...(gate ? ["gate"] : [])];
  return [`${m} x ${n} x ${k}`, ...epilogue, ...(residual ? ["residual"] : [])].join(", ");
}

function sameScheme(a: PlannedLayer, b: PlannedLayer): boolean {
  const settings = ({ settings = {} }: PlannedLayer) => JSON.stringify(settingsJson(settings));
  return a.scheme === b.scheme && settings(a) === settings(b);
}

function withProblems(layer: PlannedLayer, before: readonly PlannedProblem[] = []): PlannedLayer {
  const own = layer.problems ?? [];
  const seen = new Set(own.map(problemKey));
  const problems = [...before.filter((problem) => !seen.has(problemKey(problem))), ...own];
  return problems.length > 0 ? { ...layer, problems } : layer;
}

function withoutTimes(layer: PlannedLayer): PlannedLayer {
  if (!layer.problems) return layer;
  const problems = layer.problems.map(({ floatMicroseconds: _, microseconds: __, ...problem }) => problem);
  return { ...layer, problems };
}

/** The names that files use for settings. */
const SETTINGS = {
  group_size: "groupSize",
  symmetric: "symmetric",
  fp8: "fp8",
  activation: "activation",
} as const satisfies Record<string, keyof SchemeOptions>;

function settingsJson(settings: SchemeOptions): Record<string, unknown> {
  return Object.fromEntries(
    Object.entries(SETTINGS).map(([key, name]) => [key, settings[name]]).filter(([, value]) => value !== undefined),
  );
}

function headerJson({ cpu, level, threads, library, model, dtype, minSqnrDb }: PlanHeader) {
  return { library, cpu, level, threads, model, dtype, min_sqnr_db: minSqnrDb };
}

const rounded = (value: number | undefined) => value === undefined ? undefined : Math.round(value * 100) / 100;

function layerJson({ scheme, settings, sqnrDb, problems }: Omit<PlannedLayer, "component" | "name">) {
  const found = settings && settingsJson(settings);
  return {
    scheme,
    ...(found && Object.keys(found).length > 0 && { settings: found }),
    ...(sqnrDb !== undefined && { sqnr_db: rounded(sqnrDb) }),
    ...(problems && { problems: problems.map(problemJson) }),
  };
}

function problemJson({ m, n, k, activation, gate, residual, runs, joined, ...times }: PlannedProblem) {
  return {
    m,
    n,
    k,
    activation,
    gate,
    residual,
    runs,
    joined,
    float_us: rounded(times.floatMicroseconds),
    us: rounded(times.microseconds),
  };
}

type Json = Readonly<Record<string, unknown>>;

/** Reads a plan's JSON; every complaint names the file, the key, the value and the remedy. */
class Reader {
  readonly #file: string;

  constructor(file: string) {
    this.#file = file;
  }

  #fail(key: string, value: unknown, remedy: string, cause?: unknown): never {
    const text = value === undefined ? "missing" : JSON.stringify(value);
    const short = text.length > 60 ? `${text.slice(0, 57)}...` : text;
    throw new ConfigError(`Cannot use ${this.#file} as its ${key} is ${short}: ${remedy}`, {
      file: this.#file,
      key,
      cause,
    });
  }

  #object(key: string, value: unknown, allowed?: readonly string[]): Json {
    if (typeof value !== "object" || value === null || Array.isArray(value)) {
      this.#fail(key, value, "write an object in braces");
    }
    const unknown = allowed && Object.keys(value).find((name) => !allowed.includes(name));
    if (unknown !== undefined) {
      this.#fail(`${key}.${unknown}`, (value as Json)[unknown], `remove it, or write one of ${allowed!.join(", ")}`);
    }
    return value as Json;
  }

  #string(key: string, value: unknown): string {
    return typeof value === "string" ? value : this.#fail(key, value, "write a text in quotes");
  }

  #number(key: string, value: unknown): number {
    return typeof value === "number" ? value : this.#fail(key, value, "write a number");
  }

  #count(key: string, value: unknown): number {
    const found = Number.isSafeInteger(value) && value as number > 0;
    return found ? value as number : this.#fail(key, value, "write an integer of at least 1");
  }

  #flag(key: string, value: unknown): boolean {
    return typeof value === "boolean" ? value : this.#fail(key, value, "write true or false");
  }

  #time(key: string, value: unknown): number | undefined {
    if (value === undefined) return undefined;
    const found = this.#number(key, value);
    return found >= 0 ? found : this.#fail(key, value, "write microseconds, or remove it");
  }

  #oneOf<T extends string>(key: string, value: unknown, known: readonly T[]): T {
    const found = known.find((name) => name === value);
    return found ?? this.#fail(key, value, `write one of ${known.join(", ")}`);
  }

  plan(value: unknown): QuantizationPlan {
    if (typeof value !== "object" || value === null || !("denoise_plan" in value)) {
      throw new ConfigError(
        `Cannot use ${this.#file} as it has no denoise_plan, the number of its format: pass a file that a plan was saved to`,
        { file: this.#file, key: "denoise_plan" },
      );
    }
    if (value.denoise_plan !== FORMAT) {
      this.#fail(
        "denoise_plan",
        value.denoise_plan,
        `this denoise reads format ${FORMAT}: make the plan again with it`,
      );
    }
    const { measured_with: header, layers } = this.#object("plan", value, ["denoise_plan", "measured_with", "layers"]);
    const found: PlannedLayer[] = [];
    for (const [component, entries] of Object.entries(this.#object("layers", layers, COMPONENTS))) {
      for (const [name, layer] of Object.entries(this.#object(`layers.${component}`, entries))) {
        found.push(this.#layer(`layers.${component}.${name}`, layer, { component: component as PlanComponent, name }));
      }
    }
    return new QuantizationPlan(found, header === undefined ? undefined : this.#header(header));
  }

  #header(value: unknown): PlanHeader {
    const at = (name: string) => `measured_with.${name}`;
    const json = this.#object("measured_with", value, [
      ...["library", "cpu", "level", "threads", "model", "dtype", "min_sqnr_db"],
    ]);
    const text = (name: string) => this.#string(at(name), json[name]);
    return {
      library: text("library"),
      cpu: text("cpu"),
      level: text("level"),
      threads: this.#count(at("threads"), json.threads),
      model: text("model"),
      dtype: this.#oneOf(at("dtype"), json.dtype, ["f32", "bf16", "f16"]),
      minSqnrDb: this.#number(at("min_sqnr_db"), json.min_sqnr_db),
    };
  }

  #layer(key: string, value: unknown, place: Pick<PlannedLayer, "component" | "name">): PlannedLayer {
    const json = this.#object(key, value, ["scheme", "settings", "sqnr_db", "problems"]);
    const scheme = this.#string(`${key}.scheme`, json.scheme);
    const settings = this.#settings(key, json.settings);
    if (scheme !== NONE) this.#checkScheme(key, scheme, settings);
    const { sqnr_db: sqnr, problems } = json;
    if (problems !== undefined && !Array.isArray(problems)) this.#fail(`${key}.problems`, problems, "write a list");
    return {
      ...place,
      scheme,
      ...(settings && { settings }),
      ...(sqnr !== undefined && { sqnrDb: this.#number(`${key}.sqnr_db`, sqnr) }),
      ...(problems && { problems: problems.map((p, i) => this.#problem(`${key}.problems.${i}`, p)) }),
    };
  }

  #settings(layer: string, value: unknown): SchemeOptions | undefined {
    if (value === undefined) return undefined;
    const key = `${layer}.settings`;
    const json = this.#object(key, value, Object.keys(SETTINGS));
    return {
      ...(json.group_size !== undefined && { groupSize: this.#count(`${key}.group_size`, json.group_size) }),
      ...(json.symmetric !== undefined && { symmetric: this.#flag(`${key}.symmetric`, json.symmetric) }),
      ...(json.fp8 !== undefined && { fp8: this.#oneOf(`${key}.fp8`, json.fp8, ["e4m3", "e5m2"] as const) }),
      ...(json.activation !== undefined && {
        activation: this.#oneOf(`${key}.activation`, json.activation, ["asymmetric", "symmetric"] as const),
      }),
    };
  }

  /** Has the scheme say whether there is such a one, and whether it takes the settings. */
  #checkScheme(key: string, name: string, settings: SchemeOptions = {}): void {
    const say = (at: string, value: unknown, cause: unknown): never => {
      if (!(cause instanceof RangeError)) throw cause;
      return this.#fail(at, value, cause.message, cause);
    };
    let scheme;
    try {
      scheme = schemeOf(name);
    } catch (cause) {
      return say(`${key}.scheme`, name, cause);
    }
    try {
      scheme.quantization({ kind: "linear", columns: 256, sparse: false }, settings);
    } catch (cause) {
      say(`${key}.settings`, settingsJson(settings), cause);
    }
  }

  #problem(key: string, value: unknown): PlannedProblem {
    const names = ["m", "n", "k", "activation", "gate", "residual", "runs", "joined", "float_us", "us"];
    const json = this.#object(key, value, names);
    const count = (name: string) => this.#count(`${key}.${name}`, json[name]);
    const { joined } = json;
    if (joined !== undefined && !(Array.isArray(joined) && joined.every((name) => typeof name === "string"))) {
      this.#fail(`${key}.joined`, joined, "write a list of layers' names, or remove it");
    }
    const [floatMicroseconds, microseconds] = ["float_us", "us"].map((name) =>
      this.#time(`${key}.${name}`, json[name])
    );
    return {
      m: count("m"),
      n: count("n"),
      k: count("k"),
      activation: this.#oneOf(`${key}.activation`, json.activation, Object.keys(ACTIVATION) as ActivationKind[]),
      gate: this.#flag(`${key}.gate`, json.gate),
      residual: this.#flag(`${key}.residual`, json.residual),
      runs: count("runs"),
      ...(joined && { joined }),
      ...(floatMicroseconds !== undefined && { floatMicroseconds }),
      ...(microseconds !== undefined && { microseconds }),
    };
  }
}
