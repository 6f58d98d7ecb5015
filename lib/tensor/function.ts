/**
 * Functions over tensors, compiled when they are first called with arguments of some shapes and kept from then on.
 *
 * @module
 */

import { environment } from "../../ffi/environment.ts";
import { NativeBuffer, NativeProgram, runProgram } from "../../ffi/native.ts";
import { type Compiled, compileGraph, constantKey, type Dump, type Stage } from "../graph/compile.ts";
import { byteSize } from "../graph/dtypes.ts";
import { leaf, type Node, RATE, topological } from "../graph/node.ts";
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
  /** Milliseconds from the function's body to the program. */
  readonly milliseconds: number;
}

/** A function over tensors. */
export interface CompiledFunction<I, O> {
  /** Computes the outputs; they are tensors on the device, usable as arguments of other calls. */
  run(inputs: I, options?: CallOptions): Promise<O>;
  /** What the arguments' shapes and element types compile to; computes nothing. */
  inspect(inputs: I): CompiledInfo;
}

/** A program that is loaded, once it is needed. */
interface Loaded extends Stage {
  program?: NativeProgram;
}

/** One combination of shapes. */
interface Variant<O> {
  readonly names: readonly (keyof O & string)[];
  readonly arguments: ReadonlyMap<Node, string>;
  readonly outputs: readonly Node[];
  readonly recorded: readonly Node[];
  readonly stages: readonly Loaded[];
  readonly info: CompiledInfo;
  /** Values that follow from arguments that seldom change, and those arguments. */
  kept: { from: readonly Node[]; values: ReadonlyMap<Node, NativeBuffer> } | undefined;
  constants: ReadonlyMap<Node, NativeBuffer> | undefined;
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
  const variants = new Map<string, Variant<O>>();
  const variantOf = (inputs: I): Variant<O> => {
    const key = Object.keys(inputs).sort().map((name) => `${name}:${inputs[name]!.dtype}[${inputs[name]!.shape}]`)
      .join();
    let variant = variants.get(key);
    if (!variant) variants.set(key, variant = compileVariant(fn, inputs, options));
    return variant;
  };
  return {
    run: async (inputs, call = {}) => {
      const device = options.device ?? await Device.default();
      return await runVariant(variantOf(inputs), inputs, { ...call, device });
    },
    inspect: (inputs) => variantOf(inputs).info,
  };
}

function compileVariant<I extends Record<string, Tensor>, O extends Record<string, Tensor>>(
  fn: (inputs: I) => O,
  inputs: I,
  options: FunctionOptions<I>,
): Variant<O> {
  const start = performance.now();
  const { varying, name = "" } = options;
  const placeholders: Record<string, Tensor> = {};
  const names = new Map<Node, string>();
  for (const [argument, { shape, dtype }] of Object.entries(inputs)) {
    const rate = varying?.includes(argument) ? RATE.step : RATE.run;
    const placeholder = new Tensor(leaf(shape, { dtype, rate, name: argument }));
    placeholders[argument] = placeholder;
    names.set(placeholder.node, argument);
  }
  const recorded = fn(placeholders as I);
  const outputs = Object.values(recorded).map((t) => t.node);
  const compiled = compileGraph(outputs, dumpFor(name));
  return variantFrom(compiled, {
    names: Object.keys(recorded),
    arguments: names,
    recorded: outputs,
    milliseconds: performance.now() - start,
  });
}

function variantFrom<O>(
  compiled: Compiled,
  from: {
    names: readonly string[];
    arguments: ReadonlyMap<Node, string>;
    recorded: readonly Node[];
    milliseconds: number;
  },
): Variant<O> {
  const last = compiled.stages.at(-1)!;
  const weights = compiled.stages.slice(1).flatMap(({ buffers }) =>
    buffers.filter(({ external }) => external!.rate === RATE.constant)
  );
  const weightBytes = new Map(weights.map(({ external, size, dtype }) => [external!, size * byteSize(dtype)]));
  return {
    ...from,
    names: from.names as (keyof O & string)[],
    outputs: compiled.outputs,
    stages: compiled.stages,
    info: {
      kernels: last.kernels,
      arenaBytes: Math.max(...compiled.stages.map(({ arenaBytes }) => arenaBytes)),
      weightBytes: weightBytes.values().reduce((a, b) => a + b, 0),
      milliseconds: from.milliseconds,
    },
    kept: undefined,
    constants: undefined,
  };
}

function dumpFor(name: string): Dump | undefined {
  const wanted = environment("DENOISE_DUMP");
  if (!wanted || (wanted !== "all" && wanted !== name)) return undefined;
  return (title, text) => console.error(`== ${name || "graph"}: ${title}\n${text()}\n`);
}

/** What a call binds: arguments by their leaf, values of earlier stages by their node. */
interface Call {
  readonly device: Device;
  readonly signal?: AbortSignal | undefined;
}

async function runVariant<I extends Record<string, Tensor>, O>(
  variant: Variant<O>,
  inputs: I,
  call: Call,
): Promise<O> {
  call.signal?.throwIfAborted();
  const bound = new Map<Node, NativeBuffer>();
  for (const [placeholder, name] of variant.arguments) bound.set(placeholder, call.device.bufferOf(inputs[name]!.node));
  const constants = variant.constants ??= await computeConstants(variant.stages[0]!, call);
  const values = new Map([...bound, ...constants]);
  if (variant.stages.length === 3) {
    const from = [...variant.arguments].filter(([p]) => p.rate === RATE.run).map(([, name]) => inputs[name]!.node);
    if (!variant.kept || variant.kept.from.some((n, i) => n !== from[i])) {
      variant.kept = { from, values: await runStage(variant.stages[1]!, values, call) };
    }
    for (const [n, buffer] of variant.kept.values) values.set(n, buffer);
  }
  const results = await runStage(variant.stages.at(-1)!, values, call);
  const outputs = variant.names.map((name, i) => {
    const { shape, dtype } = variant.recorded[i]!;
    const buffer = results.get(variant.outputs[i]!)!;
    return [name, fromSource({ kind: "buffer", buffer }, { shape, dtype, rate: RATE.run })] as const;
  });
  return Object.fromEntries(outputs) as O;
}

/** Runs a stage's program; gives the buffers that it wrote, by node. */
async function runStage(
  stage: Loaded,
  values: ReadonlyMap<Node, NativeBuffer>,
  call: Call,
): Promise<ReadonlyMap<Node, NativeBuffer>> {
  const written = new Map<Node, NativeBuffer>();
  if (stage.kernels === 0) return written;
  const buffers = stage.buffers.map((storage) => {
    const n = storage.external!;
    if (!storage.written) return values.get(n) ?? call.device.bufferOf(n);
    const buffer = NativeBuffer.create(storage.size * byteSize(storage.dtype));
    written.set(n, buffer);
    return buffer;
  });
  stage.program ??= new NativeProgram(stage.assemble()!);
  await runProgram({ device: call.device.native, program: stage.program }, buffers, { signal: call.signal });
  return written;
}

/**
 * Computes what never changes, once for all functions of a device; what it was computed from is then let go.
 */
async function computeConstants(stage: Loaded, call: Call): Promise<ReadonlyMap<Node, NativeBuffer>> {
  const { device } = call;
  const targets = stage.buffers.filter((storage) => storage.written).map((storage) => storage.external!);
  const found = new Map<Node, NativeBuffer>();
  for (const n of targets) {
    const known = device.constant(ownerOf(n), constantKey(n));
    if (known) found.set(n, known);
  }
  if (found.size === targets.length) return found;
  // Some may be known already, from another shape's program: computing them again with the rest is rare and harmless.
  const passing: NativeBuffer[] = [];
  const leaves = new Map<Node, NativeBuffer>();
  for (const storage of stage.buffers) {
    const n = storage.external!;
    if (storage.written || device.keeps(n)) continue;
    const buffer = device.bufferOf(n, { passing: true });
    passing.push(buffer);
    leaves.set(n, buffer);
  }
  const computed = await runStage(stage, leaves, call);
  for (const buffer of passing) buffer[Symbol.dispose]();
  for (const [n, buffer] of computed) device.keepConstant(ownerOf(n), constantKey(n), buffer);
  return computed;
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
  const passing = new Set<NativeBuffer>();
  for (const stage of stages) {
    for (const { external, written } of stage.buffers) {
      const n = external!;
      if (written || values.has(n)) continue;
      const buffer = device.bufferOf(n, { passing: true });
      values.set(n, buffer);
      if (!device.keeps(n)) passing.add(buffer);
    }
    for (const [n, buffer] of await runStage(stage, values, { device })) {
      values.set(n, buffer);
      passing.add(buffer);
    }
  }
  const results = outputs.map((n) => values.get(n)!);
  for (const buffer of passing) if (!results.includes(buffer)) buffer[Symbol.dispose]();
  return results;
}

/** One of the leaves that a constant follows from. */
const ownerOf = (n: Node): Node => topological([n]).find((x) => x.op === "leaf")!;
