/**
 * What a model's linear layers cost in each scheme, measured as the model calls them, and the cheapest choice.
 *
 * @module
 */

import { compileGraph, type Stage } from "../graph/compile.ts";
import { byteSize, type Dtype } from "../graph/dtypes.ts";
import type { Instruction, Storage, View } from "../graph/lower.ts";
import { leaf, type Node, RATE, topological } from "../graph/node.ts";
import { sizeOf } from "../graph/ops.ts";
import { storedRowBytes } from "../graph/quantized.ts";
import type { ActivationKind, RowsKind } from "../graph/schema.ts";
import type { Linear } from "../nn/layers.ts";
import { isPruned } from "../quantize/quantize.ts";
import type { Scheme, SchemeOptions } from "../quantize/scheme.ts";
import type { Device } from "../tensor/device.ts";
import { QuantizedTensor, type WeightQuantization } from "../tensor/quantized.ts";
import { record, Tensor } from "../tensor/tensor.ts";
import type { ObservedFunction } from "./capture.ts";
import { callsOf, timeCalls } from "./measure.ts";

/** A scheme with its settings. */
export interface Candidate {
  /** The scheme. */
  readonly scheme: Scheme;
  /** Its settings. */
  readonly settings: SchemeOptions;
}

/** A layer that stays as it is. */
export const FLOAT = "float";

/** What a layer becomes. */
export type Choice = Candidate | typeof FLOAT;

/** The layers of a model that are quantized, by name. */
export type Choices = ReadonlyMap<string, Candidate>;

/** Whether a layer keeps the bound in a scheme. */
export type Feasible = (layer: string, candidate: Candidate) => boolean;

/** One layer of a class. */
export interface ClassLayer {
  /** Its name. */
  readonly name: string;
  /** Its outputs. */
  readonly n: number;
  /** Whether it has a bias. */
  readonly bias: boolean;
  /** Whether its weight was pruned to two of each four. */
  readonly sparse: boolean;
}

/** How a program calls the layers of a class. */
export interface ClassUse {
  /** The input's shape without its last axis. */
  readonly lead: readonly number[];
  /** Inputs. */
  readonly k: number;
  /** The element type. */
  readonly dtype: Dtype;
  /** The activation of the result. */
  readonly activation: ActivationKind;
  /** The gate's shape, where there is one. */
  readonly gate: readonly number[] | undefined;
  /** Whether a residual is added. */
  readonly residual: boolean;
  /** How often a picture takes it. */
  readonly runs: number;
  /** Where rows of all steps are computed together, which one scale for a tensor forbids: how it is otherwise. */
  readonly stepwise: { readonly lead: readonly number[]; readonly runs: number } | undefined;
}

/** Layers that can be one multiply: they share an input, and nothing follows any of them alone. */
export interface LayerClass {
  /** The layers, in the order in which they are joined. */
  readonly layers: readonly ClassLayer[];
  /** How programs call them. */
  readonly uses: readonly ClassUse[];
}

/** The norm that gives an input, and could quantize its rows. */
interface Norm {
  readonly kernel: "layer_norm" | "rms_norm";
  /** Shapes of the operands after x, broadcast axes being 1. */
  readonly shapes: readonly (readonly number[] | undefined)[];
}

/** Classes that read one input: they share its quantization. */
export interface InputSet {
  /** The classes. */
  readonly classes: readonly LayerClass[];
  /** What gives the input, where it is read by nothing else. */
  readonly norm: Norm | undefined;
}

/** How activations are quantized: nothing else matters to what that costs. */
const rowsKey = ({ activation: { rows, perTensor } }: WeightQuantization) => `${rows} ${perTensor}`;

const quantizationOf = ({ scheme, settings }: Candidate, columns: number, sparse = false): WeightQuantization =>
  scheme.quantization({ kind: "linear", columns, sparse }, settings);

const constant = (shape: readonly number[], dtype: Dtype) => new Tensor(leaf(shape, { dtype, rate: RATE.constant }));
const varying = (shape: readonly number[], dtype: Dtype) => new Tensor(leaf(shape, { dtype, rate: RATE.step }));

/** A layer of a choice, whose weights have no values. */
function applied(x: Tensor, { n, bias, sparse }: ClassLayer, choice: Choice): Tensor {
  const k = x.size(-1);
  const b = bias ? constant([n], "f32") : undefined;
  if (choice === FLOAT) return x.linear(constant([n, k], x.dtype), b);
  const quantization = quantizationOf(choice, k, sparse);
  const { format, group, symmetric, perTensor, activation } = quantization;
  const scales = perTensor ? [1, 1] : [n, k / group];
  const weight = new QuantizedTensor({
    codes: constant([n, storedRowBytes(quantization, k)], format === "int8" ? "i8" : "u8"),
    scale: constant(scales, "f32"),
    zeroPoint: symmetric ? undefined : constant(scales, "i8"),
  }, { scheme: choice.scheme.name, quantization, shape: [n, k], dtype: "f32" });
  return x.linear(weight.tensor, b, activation);
}

/**
 * Finds which layers of a model's functions share inputs, and how they are called.
 *
 * @param functions The model's functions
 * @param pictures How many pictures they were called for
 * @returns The sets, in the order of the first program
 */
export function inputSets(functions: readonly ObservedFunction[], pictures: number): InputSet[] {
  const sets = new Map<string, { classes: Map<string, { layers: ClassLayer[]; uses: ClassUse[] }>; norm?: Norm }>();
  for (const fn of functions) {
    const layers = new Map<Node, ClassLayer & { x: Tensor }>();
    const outputs = fn.record(({ name, layer, x }) => {
      const weight = constant(layer.weight.shape, layer.weight.tensor.dtype);
      layers.set(weight.node, { ...classLayer(name, layer), x });
      return x.linear(weight, layer.bias?.tensor);
    });
    const { stages } = compileGraph(outputs);
    for (const stage of stages.slice(1)) {
      const perPicture = stage === stages.at(-1) ? fn.calls / pictures : 1;
      const found = new Map<string, { input: View; calls: Instruction[] }>();
      const inputs = new Map<Storage, number>();
      for (const call of stage.calls) {
        if (call.kernel !== "linear") continue;
        const input = call.operands[0]!;
        if (!inputs.has(input.storage)) inputs.set(input.storage, inputs.size);
        const key = [inputs.get(input.storage), input.offset, input.shape, input.strides].join(" ");
        if (!found.has(key)) found.set(key, { input, calls: [] });
        found.get(key)!.calls.push(call);
      }
      for (const { input, calls } of found.values()) {
        const read = calls.map((call) => {
          const weight = call.operands[1]!.storage.external!;
          return { call, layers: topological([weight]).map((n) => layers.get(n)).filter((l) => l !== undefined) };
        });
        // Without anything of their own behind them, layers of one input can be one multiply.
        const open = read.filter(({ call }) => isOpen(call));
        const groups = [
          ...Map.groupBy(open.flatMap(({ call, layers }) => layers.map((layer) => ({ call, layer }))), joinKey).values()
            .map(
              (group) => ({ call: group[0]!.call, layers: group.map(({ layer }) => layer) }),
            ),
          ...read.filter(({ call }) => !isOpen(call)),
        ];
        const id = groups.map((g) => g.layers.map(({ name }) => name).join("+")).sort().join(" ");
        if (!sets.has(id)) sets.set(id, { classes: new Map(), ...normOf(stage, input) });
        for (const { call, layers } of groups) {
          const { classes } = sets.get(id)!;
          const key = layers.map(({ name }) => name).join("+");
          if (!classes.has(key)) classes.set(key, { layers: layers.map(({ x: _, ...layer }) => layer), uses: [] });
          const { x } = layers[0]!;
          const all = x.node.rate === RATE.step && stage.rate !== RATE.step;
          classes.get(key)!.uses.push({
            lead: input.shape.slice(0, -1),
            k: input.shape.at(-1)!,
            dtype: input.storage.dtype,
            activation: call.params.act as ActivationKind,
            gate: call.operands[3] ? unbroadcast(call.operands[3]) : undefined,
            residual: call.operands[4] !== null,
            runs: perPicture,
            stepwise: all ? { lead: x.shape.slice(0, -1), runs: fn.calls / pictures } : undefined,
          });
        }
      }
    }
  }
  return [...sets.values()].map(({ classes, norm }) => ({ classes: [...classes.values()], norm }));
}

const classLayer = (name: string, { weight, bias }: Linear): ClassLayer => ({
  name,
  n: weight.shape[0]!,
  bias: bias !== undefined,
  sparse: isPruned(weight),
});

/** Layers of one input that differ in this are never joined. */
const joinKey = ({ layer, call }: { layer: ClassLayer; call: Instruction }) =>
  `${layer.bias} ${layer.sparse} ${call.operands[1]!.storage.dtype}`;

const isOpen = ({ params, operands }: Instruction) =>
  params.act === "none" && operands[3] === null && operands[4] === null;

/** The shape that a view was broadcast from. */
const unbroadcast = ({ shape, strides }: View) => shape.map((size, axis) => strides[axis] === 0 ? 1 : size);

/** The norm that writes an input, where linear layers alone read it. */
function normOf({ calls }: Stage, { storage }: View): { norm?: Norm } {
  const writer = calls.find(({ operands }) => operands.at(-1)!.storage === storage);
  if (writer?.kernel !== "layer_norm" && writer?.kernel !== "rms_norm") return {};
  const readers = calls.filter(({ operands }) => operands.slice(0, -1).some((view) => view?.storage === storage));
  if (!readers.every(({ kernel, operands }) => kernel === "linear" && operands[0]!.storage === storage)) return {};
  const shapes = writer.operands.slice(1, -1).map((view) => view ? unbroadcast(view) : undefined);
  return { norm: { kernel: writer.kernel, shapes } };
}

/** Layers that are one multiply, and what it takes. */
export interface MeasuredPart {
  /** The layers' names, in order. */
  readonly layers: readonly string[];
  /** Outputs of all. */
  readonly n: number;
  /** Its time. */
  readonly seconds: number;
}

/** Times multiplies and the quantization of inputs, each once. */
export class ChoiceTimer {
  /** How many calls were timed. */
  measured = 0;
  readonly #device: Device;
  readonly #signal: AbortSignal | undefined;
  readonly #floatBytes: number;
  readonly #known = new Map<string, number>();

  /**
   * A timer of one model.
   *
   * @param options The device, the bytes of the model's weights in floats, a signal
   */
  constructor(options: { device: Device; floatBytes: number; signal: AbortSignal | undefined }) {
    this.#device = options.device;
    this.#floatBytes = options.floatBytes;
    this.#signal = options.signal;
  }

  /**
   * Times the multiplies of layers of one class.
   *
   * @param use How they are called
   * @param tried Layers and what becomes of all of them
   * @returns For each of what was tried, its multiplies
   */
  async multiplies(
    use: ClassUse,
    tried: readonly { layers: readonly ClassLayer[]; choice: Choice }[],
  ): Promise<MeasuredPart[][]> {
    const calls = tried.map(({ layers, choice }) => multiplyCalls(at(use, layers, choice), layers, choice));
    const { k, dtype } = use;
    // As much of the cache is lost between two uses of a weight as the whole model has of its bytes.
    const share = calls.flat().map((call) => {
      const packed = call.operands[1]!.storage;
      const floats = (call.params.n as number) * k * byteSize(dtype);
      return this.#floatBytes * packed.size * byteSize(packed.dtype) / Math.max(1, floats);
    });
    await this.#time(calls.flat().map((call) => [call]), share);
    return tried.map(({ layers }, i) => {
      let from = 0;
      return calls[i]!.map((call) => {
        const part: ClassLayer[] = [];
        const n = call.params.n as number;
        for (let sum = 0; sum < n; from++) {
          part.push(layers[from]!);
          sum += layers[from]!.n;
        }
        return { layers: part.map(({ name }) => name), n, seconds: this.#known.get(signature([call]))! };
      });
    });
  }

  /**
   * Times quantizing an input on its own, and what it takes more of a norm to do it at once.
   *
   * @param use How the input is read
   * @param options The form of rows, whether one scale is for all, the norm
   * @returns Seconds; `fused` is `undefined` where no norm can do it
   */
  async rows(
    { lead, k, dtype }: ClassUse,
    { rows, perTensor, norm }: { rows: RowsKind; perTensor: 0 | 1; norm: Norm | undefined },
  ): Promise<{ apart: number; fused: number | undefined }> {
    const x = varying([...lead, k], dtype);
    const quantized = (t: Tensor) =>
      record("quantize_rows", [t, perTensor ? record("abs_max", [t], {}) : undefined], { rows });
    const apart = callsOf([quantized(x).node]);
    if (!norm || perTensor) {
      await this.#time([apart], [0]);
      return { apart: this.#known.get(signature(apart))!, fused: undefined };
    }
    const [plain, fused] = [callsOf([normed(x, norm).node]), callsOf([quantized(normed(x, norm)).node])];
    await this.#time([apart, plain, fused], [0, 0, 0]);
    const seconds = (calls: readonly Instruction[]) => this.#known.get(signature(calls))!;
    return { apart: seconds(apart), fused: Math.max(0, seconds(fused) - seconds(plain)) };
  }

  /** Times what is not known, alternating. */
  async #time(candidates: readonly (readonly Instruction[])[], workingSets: readonly number[]): Promise<void> {
    const missing = new Map<string, { calls: readonly Instruction[]; workingSet: number }>();
    for (const [i, calls] of candidates.entries()) {
      const key = signature(calls);
      if (!this.#known.has(key)) missing.set(key, { calls, workingSet: workingSets[i]! });
    }
    if (missing.size === 0) return;
    const all = [...missing.values()];
    const seconds = await timeCalls(all.map(({ calls }) => calls), {
      device: this.#device,
      signal: this.#signal,
      workingSet: all.map(({ workingSet }) => workingSet),
      milliseconds: MILLISECONDS * all.length,
      quantile: QUANTILE,
    });
    [...missing.keys()].forEach((key, i) => this.#known.set(key, seconds[i]!));
    this.measured += missing.size;
  }
}

/** What each of the calls that are timed together may take. */
const MILLISECONDS = 15;
/** Choosing asks which is faster, not how fast it is among neighbours. */
const QUANTILE = 0.2;

/** How a class is called, where a choice changes that. */
function at(use: ClassUse, layers: readonly ClassLayer[], choice: Choice): ClassUse {
  const perTensor = choice !== FLOAT && quantizationOf(choice, use.k).activation.perTensor === 1;
  return perTensor && use.stepwise && layers.length > 0 ? { ...use, ...use.stepwise } : use;
}

const runsOf = (use: ClassUse, layers: readonly ClassLayer[], choice: Choice) => at(use, layers, choice).runs;

/** The multiplies of layers of a class: joined as the rewrites join them, without quantizing the input. */
function multiplyCalls(use: ClassUse, layers: readonly ClassLayer[], choice: Choice): Instruction[] {
  const { lead, k, dtype, activation, gate, residual } = use;
  const x = varying([...lead, k], dtype);
  const outputs = layers.map((layer) => {
    let y = applied(x, layer, choice);
    if (activation !== "none") y = record("unary", [y], { kind: activation, alpha: 0, beta: 0 });
    if (gate) y = varying(gate, dtype).mul(y);
    return residual ? varying(y.shape, dtype).add(y) : y;
  });
  return callsOf(outputs.map((t) => t.node)).filter(({ kernel }) =>
    kernel === "linear" || kernel === "quantized_linear"
  );
}

function normed(x: Tensor, { kernel, shapes: [weight, bias, scale, shift] }: Norm): Tensor {
  const vector = (shape: readonly number[] | undefined) => shape && constant(shape, "f32");
  if (kernel === "rms_norm") return x.rmsNorm({ weight: vector(weight), eps: 1e-6 });
  const y = x.layerNorm({ weight: vector(weight), bias: vector(bias), eps: 1e-6 });
  const scaled = scale ? y.mul(varying(scale, x.dtype).add(1)) : y;
  return shift ? scaled.add(varying(shift, x.dtype)) : scaled;
}

/** Calls that take the same time: equal kernels on views of equal shapes. */
function signature(calls: readonly Instruction[]): string {
  return calls.map(({ kernel, operands, params }) => {
    const views = operands.map((view) => view && `${view.storage.dtype} ${view.shape} by ${view.strides}`);
    return `${kernel} ${JSON.stringify(params)} ${views.join("; ")}`;
  }).join("\n");
}

/** What the layers of a class can become. */
export interface ClassOption {
  /** What each layer becomes. */
  readonly choices: ReadonlyMap<string, Choice>;
  /** Seconds of a picture, without quantizing the input. */
  readonly seconds: number;
  /** The forms that the input is wanted in. */
  readonly kinds: ReadonlySet<string>;
  /** Whether no layer reads the input in floats. */
  readonly quantized: boolean;
}

/** A set with what was measured of it. */
export interface MeasuredSet extends InputSet {
  /** What each class can become. */
  readonly options: readonly (readonly ClassOption[])[];
  /** Seconds of a picture to quantize the input to each form. */
  readonly rows: ReadonlyMap<string, { readonly apart: number; readonly fused: number | undefined }>;
}

/** What is measured. */
export interface MeasureChoicesOptions {
  /** Schemes besides floats. */
  readonly candidates: readonly Candidate[];
  /** Which keep the bound. */
  readonly feasible: Feasible;
  /** What measures. */
  readonly timer: Pick<ChoiceTimer, "multiplies" | "rows">;
  /** Told how far it is. */
  readonly onProgress: (done: number, total: number) => void;
}

/**
 * Measures what the layers of each set cost in each scheme that keeps the bound.
 *
 * @param sets The sets
 * @param options What is tried, and how
 * @returns The sets with their costs
 */
export async function measureSets(
  sets: readonly InputSet[],
  { candidates, feasible, timer, onProgress }: MeasureChoicesOptions,
): Promise<MeasuredSet[]> {
  const measured: MeasuredSet[] = [];
  for (const [done, set] of sets.entries()) {
    onProgress(done, sets.length);
    const options: ClassOption[][] = [];
    const kinds = new Map<string, WeightQuantization>();
    for (const { layers, uses } of set.classes) {
      const assignments = assignmentsOf(layers, candidates, feasible);
      const own: ClassOption[] = [];
      const seconds = assignments.map(() => 0);
      for (const use of uses) {
        const tried = assignments.flat();
        const parts = await timer.multiplies(use, tried);
        let i = 0;
        for (const [a, assignment] of assignments.entries()) {
          for (const { layers, choice } of assignment) {
            const once = parts[i++]!.reduce((sum, part) => sum + part.seconds, 0);
            seconds[a]! += runsOf(use, layers, choice) * once;
          }
        }
      }
      for (const [a, assignment] of assignments.entries()) {
        const wanted = new Set<string>();
        let quantized = true;
        for (const { choice } of assignment) {
          const found = choice === FLOAT ? undefined : quantizationOf(choice, uses[0]!.k);
          if (!found || found.activation.rows === "none") quantized = false;
          else {
            wanted.add(rowsKey(found));
            kinds.set(rowsKey(found), found);
          }
        }
        const choices = new Map(assignment.flatMap(({ layers, choice }) => layers.map(({ name }) => [name, choice])));
        own.push({ choices, seconds: seconds[a]!, kinds: wanted, quantized });
      }
      options.push(own);
    }
    const rows = new Map<string, { apart: number; fused: number | undefined }>();
    for (const [key, { activation }] of kinds) {
      const sum = { apart: 0, fused: set.norm && activation.perTensor === 0 ? 0 : undefined as number | undefined };
      for (const use of set.classes[0]!.uses) {
        const own = activation.perTensor && use.stepwise ? { ...use, ...use.stepwise } : use;
        const { apart, fused } = await timer.rows(own, { ...activation, norm: set.norm });
        sum.apart += own.runs * apart;
        if (sum.fused !== undefined) sum.fused += own.runs * fused!;
      }
      rows.set(key, sum);
    }
    measured.push({ ...set, options, rows });
  }
  return measured;
}

type Assignment = { layers: readonly ClassLayer[]; choice: Choice }[];

/** One scheme for all layers of a class; where it keeps the bound for some alone, another one for the others. */
function assignmentsOf(
  layers: readonly ClassLayer[],
  candidates: readonly Candidate[],
  feasible: Feasible,
): Assignment[] {
  const takes = (choice: Choice, all: readonly ClassLayer[]) =>
    choice === FLOAT || all.every(({ name }) => feasible(name, choice));
  const found: Assignment[] = [[{ layers, choice: FLOAT }]];
  for (const choice of candidates) {
    const own = layers.filter(({ name }) => feasible(name, choice));
    const others = layers.filter((layer) => !own.includes(layer));
    if (own.length === 0) continue;
    if (others.length === 0) {
      found.push([{ layers, choice }]);
      continue;
    }
    for (const other of [FLOAT, ...candidates] as const) {
      if (other !== choice && takes(other, others)) {
        found.push([{ layers: own, choice }, { layers: others, choice: other }]);
      }
    }
  }
  return found;
}

/**
 * The cheapest choice for the layers of each set.
 *
 * @param sets What was measured
 * @returns The layers that are quantized, and the seconds of all multiplies of a picture
 */
export function choose(sets: readonly MeasuredSet[]): { schemes: Choices; seconds: number } {
  const schemes = new Map<string, Candidate>();
  let seconds = 0;
  for (const set of sets) {
    const best = chooseSet(set);
    seconds += best.seconds;
    for (const { choices } of best.options) {
      for (const [name, choice] of choices) if (choice !== FLOAT) schemes.set(name, choice);
    }
  }
  return { schemes, seconds };
}

/** Options share nothing but the forms of their input: for each set of forms that is there, each takes its best. */
function chooseSet({ options, rows }: MeasuredSet): { options: ClassOption[]; seconds: number } {
  let best: { options: ClassOption[]; seconds: number } | undefined;
  const consider = (allowed: (option: ClassOption) => boolean, cost: (kinds: ReadonlySet<string>) => number) => {
    const chosen = options.map((own) => own.filter(allowed).toSorted((a, b) => a.seconds - b.seconds)[0]);
    if (!chosen.every((option) => option !== undefined)) return;
    const kinds = new Set(chosen.flatMap((option) => [...option.kinds]));
    const seconds = chosen.reduce((sum, option) => sum + option.seconds, cost(kinds));
    if (!best || seconds < best.seconds) best = { options: chosen, seconds };
  };
  const kinds = [...rows.keys()];
  for (let mask = 0; mask < 1 << kinds.length; mask++) {
    const there = new Set(kinds.filter((_, i) => mask >> i & 1));
    consider(
      (option) => option.kinds.isSubsetOf(there),
      (used) => [...used].reduce((sum, kind) => sum + rows.get(kind)!.apart, 0),
    );
  }
  for (const [kind, { fused }] of rows) {
    if (fused === undefined) continue;
    consider((option) => option.quantized && option.kinds.size === 1 && option.kinds.has(kind), () => fused);
  }
  return best!;
}

/** Whole programs of which the weights together take more are not timed: they would have to be in memory twice. */
const MOST_PROGRAM_BYTES = 2 * 2 ** 30;
/** Milliseconds for the comparison of whole programs. */
const COMPARISON_MILLISECONDS = 1000;

/**
 * Times the whole programs of a model by what its layers become.
 *
 * @param functions The model's functions
 * @param options What to compare, where
 * @returns Seconds of a picture for each; `undefined` where the programs are too large to be timed at once
 */
export async function timePrograms(
  functions: readonly ObservedFunction[],
  options: {
    choices: readonly Choices[];
    device: Device;
    pictures: number;
    signal: AbortSignal | undefined;
    onProgress: (done: number, total: number) => void;
  },
): Promise<number[] | undefined> {
  const { choices, device, pictures, signal, onProgress } = options;
  const programs = functions.map((fn) => ({
    fn,
    stages: choices.map((chosen) => {
      const outputs = fn.record(({ name, layer, x }) => applied(x, classLayer(name, layer), chosen.get(name) ?? FLOAT));
      return compileGraph(outputs).stages.slice(1);
    }),
  }));
  const bytes = programs.flatMap(({ stages }) => stages.flat()).reduce((sum, stage) => sum + weightBytes(stage), 0);
  if (bytes > MOST_PROGRAM_BYTES) return undefined;
  const seconds = choices.map(() => 0);
  const total = programs.reduce((sum, { stages }) => sum + stages[0]!.length, 0);
  let done = 0;
  for (const { fn, stages } of programs) {
    for (const [i, stage] of stages[0]!.entries()) {
      onProgress(done++, total);
      const runs = stage === stages[0]!.at(-1) ? fn.calls / pictures : 1;
      const times = await timeCalls(stages.map((own) => own[i]!.calls), {
        device,
        signal,
        workingSet: stages.map((own) => weightBytes(own[i]!)),
        milliseconds: COMPARISON_MILLISECONDS,
        quantile: QUANTILE,
      });
      times.forEach((time, choice) => seconds[choice]! += runs * time);
    }
  }
  return seconds;
}

const weightBytes = ({ buffers }: Stage) =>
  buffers.reduce((sum, { external, written, size, dtype }) => {
    return sum + (!written && external!.rate === RATE.constant ? size * byteSize(dtype) : 0);
  }, 0);

/** Rows of an input. */
export const rowsOf = ({ lead }: ClassUse) => sizeOf(lead);
