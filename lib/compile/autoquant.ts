/**
 * Choosing a scheme for each layer: the fastest on this machine that keeps a bound on the error.
 *
 * @module
 */

import { library } from "../../ffi/library.ts";
import { DTYPES, type FloatDtype } from "../graph/dtypes.ts";
import type { Linear } from "../nn/layers.ts";
import type { Model, Module } from "../nn/module.ts";
import {
  componentsOf,
  type PlanComponent,
  type PlannedLayer,
  type PlannedProblem,
  QuantizationPlan,
} from "../quantize/plan.ts";
import { prepareLayer, type QuantizableLayer, quantizableLayers } from "../quantize/quantize.ts";
import type { SchemeOptions } from "../quantize/scheme.ts";
import { schemeOf } from "../quantize/schemes.ts";
import { computeOnce } from "../tensor/function.ts";
import type { Tensor } from "../tensor/tensor.ts";
import { type Calibratable, type Capture, capture } from "./capture.ts";
import {
  type Candidate,
  type Choice,
  type Choices,
  ChoiceTimer,
  choose,
  type Feasible,
  FLOAT,
  inputSets,
  type LayerClass,
  measureSets,
  rowsOf,
  timePrograms,
} from "./choice.ts";

/** A scheme to try, with its settings. */
export interface AutoquantScheme extends SchemeOptions {
  /** Its name. */
  readonly scheme: string;
}

/** What is being done, and how much of it there is. */
export interface AutoquantProgress {
  /** Looking at what layers read; computing errors; timing multiplies; comparing whole programs. */
  readonly phase: "capture" | "error" | "timing" | "comparison";
  /** How much is done. */
  readonly done: number;
  /** Of how much. */
  readonly total: number;
}

/** How schemes are chosen. */
export interface AutoquantOptions {
  /** What pictures are made of to see what layers read. */
  readonly prompts: readonly string[];
  /** How much more power the output of each layer must have than its error, in dB. */
  readonly minSqnrDb: number;
  /** What is tried besides floats: {@linkcode AUTOQUANT_SCHEMES} by default. */
  readonly schemes?: readonly (string | AutoquantScheme)[] | undefined;
  /** Steps of each picture, which also say how often a layer runs: 20 by default. */
  readonly steps?: number | undefined;
  /** The seed of each picture, 0 by default. */
  readonly seed?: number | undefined;
  /** Rows of pixels; what the pipeline makes by default. */
  readonly height?: number | undefined;
  /** Pixels in a row; what the pipeline makes by default. */
  readonly width?: number | undefined;
  /** Frames of each video, where the pipeline makes videos; what it makes by default. */
  readonly numFrames?: number | undefined;
  /** Whether the layers of text encoders are chosen as well, false by default: they run once a picture. */
  readonly textEncoders?: boolean | undefined;
  /** Whether the plan is applied at once, true by default. */
  readonly apply?: boolean | undefined;
  /** Stops it. */
  readonly signal?: AbortSignal | undefined;
  /** Told how far it is. */
  readonly onProgress?: ((progress: AutoquantProgress) => void) | undefined;
}

/**
 * What is tried by default: what can be the fastest on some CPU at some shape. Integer activations are for many rows,
 * integer weights alone for few; fp8 activations are for inputs whose outliers int8 does not bear. fp8 weights alone and
 * small floats take as many bytes as integers and more work, and one scale for a whole tensor costs a second pass: who
 * wants them names them.
 */
export const AUTOQUANT_SCHEMES: readonly string[] = ["int8dq", "int8wo", "int4dq", "int4wo", "fp8dqrow"];

/**
 * Chooses the fastest scheme for each linear layer of a pipeline that keeps a bound on the error of the layer's output.
 *
 * Pictures of the prompts show what the layers read. Each candidate's error is that of the layer's output on those inputs,
 * and its time is that of the multiply as the pipeline runs it: with as many rows, joined with the layers that share its
 * input, with its activation, gate and residual, and with its part of quantizing the input. The choice is then timed as
 * whole programs against each scheme alone, where that keeps the bound, and the fastest of them is the plan.
 *
 * @example A plan for another day
 * ```ts ignore
 * const plan = await autoquant(pipe, { prompts: ["a red star on a white background"], minSqnrDb: 30 });
 * console.table(plan.table());
 * await plan.save("out/plan.json");
 * ```
 *
 * @param pipe The pipeline, in floats
 * @param options Prompts, the bound, what is tried
 * @returns The plan; the pipeline is quantized by it
 * @throws {TypeError} If there is no prompt
 * @throws {RangeError} If the bound is no number, a scheme is unknown, or a layer is quantized already
 */
export async function autoquant(pipe: Calibratable, options: AutoquantOptions): Promise<QuantizationPlan> {
  const { prompts, minSqnrDb, apply = true, signal, onProgress = () => {} } = options;
  if (!Number.isFinite(minSqnrDb)) {
    throw new RangeError(`Cannot use a minSqnrDb of ${minSqnrDb}: pass a finite number of dB`);
  }
  const { models, candidates, seen } = await calibrate(pipe, options);

  const layers: PlannedLayer[] = [];
  for (const [component, module] of models) {
    const sqnr = await errorsOf(component, module, { seen, candidates, pipe, signal, onProgress });
    const feasible: Feasible = (layer, candidate) => (sqnr.get(layer)?.get(candidate) ?? -Infinity) >= minSqnrDb;
    layers.push(
      ...await planModel(component, module, { seen, candidates, feasible, sqnr, pipe, prompts, signal, onProgress }),
    );
  }
  const plan = new QuantizationPlan(layers, {
    library: library().description.version,
    cpu: pipe.device.description.name,
    level: pipe.device.level,
    threads: pipe.device.threads,
    model: pipe.model,
    dtype: pipe.dtype,
    minSqnrDb,
  });
  if (apply) plan.apply(pipe, { errorOnUnseen: false });
  return plan;
}

/** How far a layer's output in a scheme is from its output in floats. */
export interface LayerError {
  /** The model. */
  readonly component: PlanComponent;
  /** The layer's name in it. */
  readonly name: string;
  /** The scheme. */
  readonly scheme: string;
  /** The power of the output over that of the error, in dB. */
  readonly sqnrDb: number;
}

/**
 * Measures what schemes do to the outputs of a pipeline's linear layers, on what they read while pictures are made.
 *
 * @param pipe The pipeline, in floats, which it stays
 * @param options Prompts, schemes, steps
 * @returns An error for each layer and each scheme that it can have
 * @throws {TypeError} If there is no prompt
 * @throws {RangeError} If a scheme is unknown, or a layer is quantized already
 */
export async function layerErrors(
  pipe: Calibratable,
  options: Omit<AutoquantOptions, "minSqnrDb" | "apply">,
): Promise<LayerError[]> {
  const { models, candidates, seen } = await calibrate(pipe, options);
  const { signal, onProgress = () => {} } = options;
  const found: LayerError[] = [];
  for (const [component, module] of models) {
    for (const [name, errors] of await errorsOf(component, module, { seen, candidates, pipe, signal, onProgress })) {
      for (const [{ scheme }, sqnrDb] of errors) found.push({ component, name, scheme: scheme.name, sqnrDb });
    }
  }
  return found;
}

/** Checks what was asked for, and looks at what layers read. */
async function calibrate(pipe: Calibratable, options: Omit<AutoquantOptions, "minSqnrDb" | "apply">) {
  const { prompts, steps = 20, seed = 0, height, width, numFrames, signal, onProgress = () => {} } = options;
  if (prompts.length === 0) throw new TypeError("Cannot calibrate with no prompts: pass at least one");
  const candidates = candidatesOf(options.schemes ?? AUTOQUANT_SCHEMES);
  const models = modelsOf(pipe, options.textEncoders ?? false);
  for (const [component, module] of models) refuseQuantized(component, module);
  onProgress({ phase: "capture", done: 0, total: 1 });
  const run = { prompts, seed, numInferenceSteps: steps, height, width, numFrames, signal };
  const seen = await capture(pipe, models, run);
  onProgress({ phase: "capture", done: 1, total: 1 });
  return { models, candidates, seen };
}

function candidatesOf(schemes: readonly (string | AutoquantScheme)[]): Candidate[] {
  return schemes.map((entry) => {
    const { scheme: name, ...settings } = typeof entry === "string" ? { scheme: entry } : entry;
    const scheme = schemeOf(name);
    // Says what is wrong with a setting before anything is computed.
    scheme.quantization({ kind: "linear", columns: 256, sparse: false }, settings);
    return { scheme, settings };
  });
}

function modelsOf(pipe: Calibratable, textEncoders: boolean): Map<PlanComponent, Module> {
  return new Map(
    [...componentsOf(pipe)].filter(([name]) =>
      name === "transformer" || (textEncoders && (name === "text_encoder" || name === "text_encoder_2"))
    ),
  );
}

const linearsOf = (module: Module): QuantizableLayer[] =>
  quantizableLayers(module).filter(({ kind }) => kind === "linear");

function refuseQuantized(component: PlanComponent, module: Module): void {
  const found = linearsOf(module).find(({ weight }) => weight.quantized);
  if (!found) return;
  throw new RangeError(
    `Cannot choose schemes as ${component}.${found.name} is in ${found.weight.quantized!.scheme} already: load the ` +
      "pipeline in floats, or dequantize it",
  );
}

/** What planning a model needs. */
interface Context {
  readonly seen: Capture;
  readonly candidates: readonly Candidate[];
  readonly pipe: Calibratable;
  readonly signal: AbortSignal | undefined;
  readonly onProgress: (progress: AutoquantProgress) => void;
}

/** What an error that cannot be told from none counts as, in dB. */
const EXACT = 200;

/** The power of each layer's output over that of each candidate's error, in dB; nothing where it cannot be quantized so. */
async function errorsOf(
  component: PlanComponent,
  module: Module,
  { seen, candidates, pipe, signal, onProgress }: Context,
): Promise<Map<string, Map<Candidate, number>>> {
  const found = new Map<string, Map<Candidate, number>>();
  const layers = linearsOf(module);
  const modules = new Map([...module.namedModules()]);
  const dtype = (module as Model).dtype as FloatDtype;
  for (const [done, layer] of layers.entries()) {
    signal?.throwIfAborted();
    onProgress({ phase: "error", done, total: layers.length });
    const x = seen.inputOf(component, layer.name);
    if (!x) continue;
    const { weight, bias } = modules.get(layer.name) as Linear;
    const wanted = x.linear(weight.tensor, bias?.tensor).cast("f32");
    const power = (t: Tensor) => t.mul(t).sum().sum();
    const outputs = [power(wanted)];
    const tried: Candidate[] = [];
    for (const candidate of candidates) {
      const prepared = prepareLayer(layer, candidate.scheme, { ...candidate.settings, dtype });
      if (typeof prepared === "string") continue;
      const { tensor, activation } = prepared.value;
      outputs.push(power(wanted.sub(x.linear(tensor, bias?.tensor, activation).cast("f32"))));
      tried.push(candidate);
    }
    const [signalPower, ...noises] = await scalars(outputs, pipe);
    const sqnr = (noise: number) => {
      const db = 10 * Math.log10(signalPower! / noise);
      return noise === 0 ? EXACT : Math.min(EXACT, db);
    };
    found.set(layer.name, new Map(tried.map((candidate, i) => [candidate, sqnr(noises[i]!)])));
  }
  return found;
}

async function scalars(tensors: readonly Tensor[], { device }: Calibratable): Promise<number[]> {
  const buffers = await computeOnce(tensors, device);
  const values = buffers.map((buffer) => new Float32Array(buffer.read().buffer)[0]!);
  for (const buffer of new Set(buffers)) buffer[Symbol.dispose]();
  return values;
}

async function planModel(
  component: PlanComponent,
  module: Module,
  context: Context & {
    feasible: Feasible;
    sqnr: ReadonlyMap<string, ReadonlyMap<Candidate, number>>;
    prompts: readonly string[];
  },
): Promise<PlannedLayer[]> {
  const { seen, candidates, feasible, sqnr, pipe, prompts, signal, onProgress } = context;
  const functions = seen.functions.filter((fn) => fn.component === component);
  const layers = linearsOf(module);
  const { device } = pipe;
  const pictures = prompts.length;
  const floatBytes = layers.reduce((sum, { shape }) => sum + shape[0]! * shape[1]!, 0) *
    DTYPES[(module as Model).dtype].size;
  const timer = new ChoiceTimer({ device, floatBytes, signal });
  const sets = await measureSets(inputSets(functions, pictures), {
    candidates,
    feasible,
    timer,
    onProgress: (done, total) => onProgress({ phase: "timing", done, total }),
  });
  const names = layers.map(({ name }) => name);
  const alone = candidates.map((candidate) =>
    new Map(names.filter((name) => feasible(name, candidate)).map((name) => [name, candidate]))
  );
  const choices = distinctChoices([choose(sets).schemes, ...alone]);
  const seconds = await timePrograms(functions, {
    choices,
    device,
    pictures,
    signal,
    onProgress: (done, total) => onProgress({ phase: "comparison", done, total }),
  });
  const best = choices[seconds ? seconds.indexOf(Math.min(...seconds)) : 0]!;
  const problems = await problemsOf(sets.flatMap(({ classes }) => classes), { best, timer });
  return names.map((name) => {
    const candidate = best.get(name);
    const { settings = {} } = candidate ?? {};
    return {
      component,
      name,
      scheme: candidate?.scheme.name ?? "none",
      ...(Object.keys(settings).length > 0 && { settings }),
      ...(candidate && { sqnrDb: sqnr.get(name)!.get(candidate)! }),
      ...(problems.has(name) && { problems: problems.get(name)! }),
    };
  });
}

/** Choices that differ; the first is the one by layers. */
function distinctChoices(choices: readonly Choices[]): Choices[] {
  const found = new Map<string, Choices>();
  for (const choice of choices) {
    const key = [...choice].map(([name, { scheme, settings }]) => `${name} ${scheme.name} ${JSON.stringify(settings)}`)
      .sort().join();
    if (!found.has(key)) found.set(key, choice);
  }
  return [...found.values()];
}

/** The multiplies that each layer takes part in, and what they take. */
async function problemsOf(
  classes: readonly LayerClass[],
  { best, timer }: { best: Choices; timer: ChoiceTimer },
): Promise<Map<string, PlannedProblem[]>> {
  const problems = new Map<string, PlannedProblem[]>();
  for (const { layers, uses } of classes) {
    const groups = Map.groupBy(layers, ({ name }): Choice => best.get(name) ?? FLOAT);
    for (const use of uses) {
      for (const [choice, own] of groups) {
        const [parts] = await timer.multiplies(use, [{ layers: own, choice }]);
        for (const { layers: joined, n, seconds } of parts!) {
          const [floats] = await timer.multiplies(use, [
            { layers: own.filter(({ name }) => joined.includes(name)), choice: FLOAT },
          ]);
          const problem: PlannedProblem = {
            m: rowsOf(use),
            n,
            k: use.k,
            activation: use.activation,
            gate: use.gate !== undefined,
            residual: use.residual,
            runs: Math.max(1, Math.round(use.runs)),
            ...(joined.length > 1 && { joined }),
            floatMicroseconds: 1e6 * floats!.reduce((sum, part) => sum + part.seconds, 0),
            microseconds: 1e6 * seconds,
          };
          for (const name of joined) problems.set(name, [...problems.get(name) ?? [], problem]);
        }
      }
    }
  }
  return problems;
}
