/**
 * Functions over tensors, compiled when they are first called with arguments of some shapes and kept from then on.
 *
 * @module
 */

import { environment } from "../../ffi/environment.ts";
import { NativeBuffer, NativeProgram, runProgram } from "../../ffi/native.ts";
import { compileConstants, compileGraph, constantKey, type Dump, type Stage } from "../graph/compile.ts";
import { byteSize, type Dtype } from "../graph/dtypes.ts";
import type { Instruction } from "../graph/lower.ts";
import { leaf, type Node, RATE, topological } from "../graph/node.ts";
import { sameShape, sizeOf } from "../graph/ops.ts";
import type { VariantOf } from "../graph/program.ts";
import { Device } from "./device.ts";
import { fromSource } from "./source.ts";
import { Tensor } from "./tensor.ts";

/** How a function is compiled. */
export interface FunctionOptions<I> {
  /** Where it runs; the default device by default. */
  device?: Device | undefined;
  /** Its name in dumps: `DENOISE_DUMP=<name>` prints every stage of its compilation, `DENOISE_DUMP=all` everyone's. */
  name?: string;
  /**
   * The arguments that change from call to call. What follows from the others alone is computed again only when a call
   * brings other tensors for them.
   */
  varying?: readonly (keyof I & string)[];
  /**
   * Whether a result with the name of an argument is written over it, so that a state that goes from call to call has
   * one place: the argument's tensor must not be used again. False by default.
   */
  inPlace?: boolean;
}

/** How a function is called. */
export interface CallOptions {
  /** Stops the call before its next kernel. */
  signal?: AbortSignal | undefined;
}

/** What one combination of shapes was compiled to. */
export interface CompiledInfo {
  /** How many kernels a call runs, besides what is computed only once. */
  readonly kernels: number;
  /** The most working memory of a call, in bytes; the first one gets the weights ready, too. */
  readonly arenaBytes: number;
  /** What it keeps between calls, in bytes: weights as the kernels take them. */
  readonly weightBytes: number;
  /** Its arguments, what it keeps of those that seldom change, and its results, in bytes. */
  readonly valueBytes: number;
  /** Milliseconds from the function's body to the program. */
  readonly milliseconds: number;
}

/** Chooses the variants of kernels; may have to time some first. */
export interface KernelChoices {
  /**
   * Gets ready to choose for some calls.
   *
   * @param calls The kernel calls of a program.
   * @param options The bytes of weights that the program reads, a signal.
   */
  prepare(
    calls: readonly Instruction[],
    options: { workingSet: number; signal?: AbortSignal | undefined },
  ): Promise<void>;
  /** Says which variant a call takes. */
  readonly variantOf: VariantOf;
}

/** A tensor that goes into a function or comes out of it. */
export interface Port {
  /** Its name. */
  readonly name: string;
  /** The node that stands for it in the stages. */
  readonly node: Node;
  /** Its shape. */
  readonly shape: readonly number[];
  /** Its element type. */
  readonly dtype: Dtype;
  /** The argument that a result is written over, where it is. */
  readonly replaces?: Node | undefined;
}

/** A program that is loaded, once it is needed. */
interface Loaded extends Stage {
  program?: NativeProgram | undefined;
}

/** What a function was compiled to for one combination of shapes. */
export interface Specialization {
  /** The arguments; those of rate `run` seldom change. */
  readonly arguments: readonly Port[];
  /** The results. */
  readonly results: readonly Port[];
  /** What never changes, what changes with a run where something does, and what each call computes. */
  readonly stages: readonly Stage[];
  /** Sizes and counts. */
  readonly info: CompiledInfo;
}

/** Values by node. */
type Values = ReadonlyMap<Node, NativeBuffer>;

/** A specialization with what its calls have computed. */
interface Live extends Specialization {
  readonly stages: readonly Loaded[];
  /** What its programs were written by. */
  choices: KernelChoices | undefined;
  /** Values that follow from arguments that seldom change, and those arguments. */
  kept: { from: readonly Node[]; values: Values } | undefined;
  constants: Values | undefined;
}

const live = (specialization: Specialization): Live => ({
  ...specialization,
  choices: undefined,
  kept: undefined,
  constants: undefined,
});

let revision = 0;

/** Says that weights were replaced: functions record their bodies again when they are next called. */
export function weightsChanged(): void {
  revision++;
}

/**
 * What tells combinations of shapes apart.
 *
 * @param types Shapes and element types by name.
 * @returns A text, equal for equal ones.
 */
export function shapesKey(types: Readonly<Record<string, { shape: readonly number[]; dtype: Dtype }>>): string {
  return Object.keys(types).sort().map((name) => `${name}: ${types[name]!.dtype} [${types[name]!.shape.join(", ")}]`)
    .join(", ");
}

/** A function over tensors: made by {@linkcode compileFunction}, or read from a file. */
export class CompiledFunction<I, O> {
  /** Its name. */
  readonly name: string;
  /** Where it runs; the default device where it was told none. */
  readonly device: Device | undefined;
  readonly #specialize: (inputs: I) => Specialization;
  readonly #specializations = new Map<string, Live>();
  #revision = revision;
  #choices: KernelChoices | undefined;

  /** @internal A function that is specialized by another. */
  constructor(specialize: (inputs: I) => Specialization, options: { name: string; device?: Device | undefined }) {
    this.#specialize = specialize;
    this.device = options.device;
    this.name = options.name;
  }

  /** Computes the outputs; they are tensors on the device, usable as arguments of other calls. */
  async run(inputs: I, options: CallOptions = {}): Promise<O> {
    const device = this.device ?? await Device.default();
    const specialization = this.#specialized(inputs);
    await this.#settle(specialization, options);
    const call = { ...options, name: this.name, device, choices: specialization.choices };
    return await runSpecialization(specialization, inputs as Record<string, Tensor>, call) as O;
  }

  /** What the arguments' shapes and element types compile to; computes nothing. */
  inspect(inputs: I): CompiledInfo {
    return this.#specialized(inputs).info;
  }

  /** @internal Compiles for arguments of some shapes, and times kernels where choosing them takes that. */
  async prepare(inputs: I, options: CallOptions = {}): Promise<Specialization> {
    const specialization = this.#specialized(inputs);
    await this.#settle(specialization, options);
    return specialization;
  }

  /** @internal Has kernels chosen from now on. */
  choose(choices: KernelChoices): void {
    this.#choices = choices;
  }

  #specialized(inputs: I): Live {
    if (this.#revision !== revision) {
      this.#specializations.clear();
      this.#revision = revision;
    }
    const key = shapesKey(inputs as Record<string, Tensor>);
    let found = this.#specializations.get(key);
    if (!found) this.#specializations.set(key, found = live(this.#specialize(inputs)));
    return found;
  }

  /** Chooses kernels for programs that were not written yet, or by other choices. */
  async #settle(specialization: Live, { signal }: CallOptions): Promise<void> {
    const choices = this.#choices;
    if (!choices || specialization.choices === choices) return;
    const workingSet = specialization.info.weightBytes;
    for (const { calls } of specialization.stages) await choices.prepare(calls, { workingSet, signal });
    for (const stage of specialization.stages) {
      stage.program?.[Symbol.dispose]();
      stage.program = undefined;
    }
    specialization.choices = choices;
  }
}

/**
 * Compiles a function over tensors. Its body runs once for each combination of its arguments' shapes and element types.
 *
 * @param fn The function; it records and computes nothing.
 * @param options Device, name, and which arguments change from call to call (all, by default).
 * @returns The compiled function.
 */
export function compileFunction<I extends Record<string, Tensor>, O extends Record<string, Tensor>>(
  fn: (inputs: I) => O,
  options: FunctionOptions<I> = {},
): CompiledFunction<I, O> {
  const { name = "", device } = options;
  return new CompiledFunction((inputs: I) => recordFunction(fn, inputs, options), { name, device });
}

/** What makes functions as {@linkcode compileFunction} does. */
export type FunctionMaker = typeof compileFunction;

function recordFunction<I extends Record<string, Tensor>, O extends Record<string, Tensor>>(
  fn: (inputs: I) => O,
  inputs: I,
  options: FunctionOptions<I>,
): Specialization {
  const start = performance.now();
  const { varying, name = "", inPlace = false } = options;
  const placeholders: Record<string, Tensor> = {};
  const given: Port[] = [];
  for (const [argument, { shape, dtype }] of Object.entries(inputs)) {
    const rate = varying?.includes(argument) ? RATE.step : RATE.run;
    const node = leaf(shape, { dtype, rate, name: argument });
    placeholders[argument] = new Tensor(node);
    given.push({ name: argument, node, shape, dtype });
  }
  const recorded = Object.entries(fn(placeholders as I));
  const replaced = recorded.map(([result, t]) => {
    const node = inPlace ? placeholders[result]?.node : undefined;
    return node && node.dtype === t.dtype && sameShape(node.shape, t.shape) ? node : undefined;
  });
  const compiled = compileGraph(recorded.map(([, t]) => t.node), dumpFor(name), replaced);
  const { stages } = compiled;
  const results = recorded.map(([result, { shape, dtype }], i): Port => ({
    name: result,
    node: compiled.outputs[i]!,
    shape,
    dtype,
    replaces: replaced[i],
  }));
  const found = { arguments: given, results, stages };
  return {
    ...found,
    info: infoOf(stages, { valueBytes: valueBytes(found), milliseconds: performance.now() - start }),
  };
}

/**
 * The bytes of what is there beside a function's work: arguments, and what its programs write beside those.
 *
 * @param specialization The function's ports and programs; the first one's results are weights.
 * @returns The bytes.
 */
export function valueBytes({ arguments: given, results, stages }: Omit<Specialization, "info">): number {
  const replacing = new Set(results.filter(({ replaces }) => replaces).map(({ node }) => node));
  const written = stages.slice(1).flatMap(({ buffers }) =>
    buffers.filter(({ written, external }) => written && !replacing.has(external!))
  );
  return given.reduce((sum, { shape, dtype }) => sum + sizeOf(shape) * byteSize(dtype), 0) +
    written.reduce((sum, { size, dtype }) => sum + size * byteSize(dtype), 0);
}

function infoOf(
  stages: readonly Stage[],
  options: Pick<CompiledInfo, "valueBytes" | "milliseconds">,
): CompiledInfo {
  const weights = stages.slice(1).flatMap(({ buffers }) =>
    buffers.filter(({ external }) => external!.rate === RATE.constant)
  );
  const weightBytes = new Map(weights.map(({ external, size, dtype }) => [external!, size * byteSize(dtype)]));
  return {
    kernels: stages.at(-1)!.kernels,
    arenaBytes: Math.max(...stages.map(({ arenaBytes }) => arenaBytes)),
    weightBytes: weightBytes.values().reduce((a, b) => a + b, 0),
    ...options,
  };
}

function dumpFor(name: string): Dump | undefined {
  const wanted = environment("DENOISE_DUMP");
  if (!wanted || (wanted !== "all" && wanted !== name)) return undefined;
  return (title, text) => console.error(`== ${name || "graph"}: ${title}\n${text()}\n`);
}

/** What a call binds: arguments by their leaf, values of earlier stages by their node. */
interface Call {
  /** The function's name. */
  readonly name: string;
  readonly device: Device;
  readonly signal?: AbortSignal | undefined;
  readonly choices?: KernelChoices | undefined;
}

async function runSpecialization(
  specialization: Live,
  inputs: Readonly<Record<string, Tensor>>,
  call: Call,
): Promise<Record<string, Tensor>> {
  call.signal?.throwIfAborted();
  const { stages } = specialization;
  const ports = specialization.arguments;
  const given = new Map(ports.map(({ name, node }) => [node, call.device.bufferOf(inputs[name]!.node)]));
  const constants = specialization.constants ??= await computeConstants(stages[0]!, call);
  if (stages.length === 3) {
    const from = ports.filter(({ node }) => node.rate === RATE.run).map(({ name }) => inputs[name]!.node);
    if (!specialization.kept || specialization.kept.from.some((n, i) => n !== from[i])) {
      specialization.kept = { from, values: await runStage(stages[1]!, [given, constants], call) };
    }
  }
  const kept = specialization.kept?.values ?? NOTHING;
  const known: readonly Values[] = [given, constants, kept];
  const places = new Map(
    specialization.results.flatMap(({ node, replaces }) => replaces ? [[node, given.get(replaces)!] as const] : []),
  );
  const results = await runStage(stages.at(-1)!, known, call, places);
  return Object.fromEntries(specialization.results.map(({ name, node, shape, dtype }) => {
    const buffer = results.get(node)!;
    return [name, fromSource({ kind: "buffer", buffer }, { shape, dtype, rate: RATE.run })];
  }));
}

const NOTHING: Values = new Map();

/** A node's value, among values of several origins. */
function find(values: readonly Values[], node: Node): NativeBuffer | undefined {
  for (const known of values) {
    const buffer = known.get(node);
    if (buffer) return buffer;
  }
  return undefined;
}

/**
 * Runs a stage's program on values of several origins; gives the buffers that it wrote, by node: new ones where they
 * have no places yet.
 */
async function runStage(
  stage: Loaded,
  values: readonly Values[],
  call: Call,
  places: Values = NOTHING,
): Promise<Values> {
  const written = new Map<Node, NativeBuffer>();
  if (stage.kernels === 0) return written;
  const buffers = stage.buffers.map((storage) => {
    const n = storage.external!;
    if (!storage.written) return find(values, n) ?? call.device.bufferOf(n);
    const buffer = places.get(n) ?? NativeBuffer.create(storage.size * byteSize(storage.dtype), call.device.memory);
    written.set(n, buffer);
    return buffer;
  });
  stage.program ??= new NativeProgram(stage.assemble(call.choices?.variantOf)!);
  const { device, signal } = call;
  const target = { device: device.native, program: stage.program };
  const { observer } = device;
  if (!observer) {
    await runProgram(target, buffers, { signal });
    return written;
  }
  const seconds = new Float64Array(stage.kernels);
  const start = performance.now();
  await runProgram(target, buffers, { signal, times: seconds });
  observer({ name: call.name, start, end: performance.now(), calls: stage.calls, seconds });
  return written;
}

/**
 * Computes what never changes, once for all functions of a device, a part at a time; what a part was computed from is
 * let go before the next, so that a model that is quantized as it is read is never there in floats.
 */
async function computeConstants({ buffers }: Loaded, call: Call): Promise<Values> {
  const { device, signal } = call;
  const values = new Map<Node, NativeBuffer>();
  const missing: Node[] = [];
  for (const n of buffers.filter(({ written }) => written).map(({ external }) => external!)) {
    const known = device.constant(ownerOf(n), constantKey(n));
    if (known) values.set(n, known);
    else missing.push(n);
  }
  for (const part of compileConstants(missing)) {
    signal?.throwIfAborted();
    for (const [n, buffer] of await runOnce(part, new Map(), call)) {
      device.keepConstant(ownerOf(n), constantKey(n), buffer);
      values.set(n, buffer);
    }
  }
  return values;
}

/** Runs a stage's program that will not run again: neither it nor the leaves that it alone reads are kept. */
async function runOnce(
  stage: Loaded,
  values: Values,
  call: Call,
): Promise<Values> {
  const { device } = call;
  const passing: Disposable[] = [];
  const bound = new Map(values);
  try {
    for (const { external, written } of stage.buffers) {
      const n = external!;
      if (written || bound.has(n)) continue;
      const buffer = device.bufferOf(n, { passing: true });
      if (!device.keeps(n)) passing.push(buffer);
      bound.set(n, buffer);
    }
    return await runStage(stage, [bound], call);
  } finally {
    for (const used of passing) used[Symbol.dispose]();
    stage.program?.[Symbol.dispose]();
    stage.program = undefined;
  }
}

/**
 * Computes tensors once, keeping nothing of what they follow from.
 *
 * @param tensors What to compute; no arguments reach it.
 * @param device Where.
 * @returns A buffer for each, which is the caller's to dispose of.
 */
export async function computeOnce(tensors: readonly Tensor[], device: Device): Promise<NativeBuffer[]> {
  const { outputs, stages } = compileGraph(tensors.map((t) => t.node));
  const values = new Map<Node, NativeBuffer>();
  for (const stage of stages) {
    for (const [n, buffer] of await runOnce(stage, values, { name: "", device })) values.set(n, buffer);
  }
  const results = outputs.map((n) => values.get(n)!);
  for (const buffer of values.values()) if (!results.includes(buffer)) buffer[Symbol.dispose]();
  return results;
}

/**
 * The value of a constant: the one that is kept, or else one that is computed now and kept by nobody.
 *
 * @param n A node that no argument reaches.
 * @param device Where.
 * @returns Its buffer, and whether it is kept; else it is the caller's to dispose of.
 */
export async function constantValue(n: Node, device: Device): Promise<{ buffer: NativeBuffer; kept: boolean }> {
  if (n.op === "leaf") return { buffer: device.bufferOf(n, { passing: true }), kept: device.keeps(n) };
  const kept = device.constant(ownerOf(n), constantKey(n));
  if (kept) return { buffer: kept, kept: true };
  const [buffer] = await computeOnce([new Tensor(n)], device);
  return { buffer: buffer!, kept: false };
}

/** One of the leaves that a constant follows from. */
const ownerOf = (n: Node): Node => topological([n]).find((x) => x.op === "leaf")!;
