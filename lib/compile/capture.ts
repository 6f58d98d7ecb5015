/**
 * What a pipeline's linear layers read while it makes pictures, and how its functions record them.
 *
 * @module
 */

import type { NativeBuffer } from "../../ffi/native.ts";
import type { Dtype, FloatDtype } from "../graph/dtypes.ts";
import type { Node } from "../graph/node.ts";
import { Linear, type LinearCall, withLinears } from "../nn/layers.ts";
import type { Module } from "../nn/module.ts";
import type { PlanComponent, PlannedPipeline } from "../quantize/plan.ts";
import type { Device } from "../tensor/device.ts";
import { compileFunction, type FunctionMaker, shapesKey } from "../tensor/function.ts";
import { sourceOf, tensor } from "../tensor/source.ts";
import { concat, type Tensor } from "../tensor/tensor.ts";

/** The key of {@linkcode Calibratable}. */
export const CALIBRATION: unique symbol = Symbol("denoise.calibration");

/** How a pipeline is run to see what its layers read. */
export interface CalibrationOptions {
  /** What makes the functions that it runs on. */
  readonly make: FunctionMaker;
  /** The seed of each picture. */
  readonly seed: number;
  /** Steps of each picture. */
  readonly numInferenceSteps: number;
  /** Rows of pixels. */
  readonly height?: number | undefined;
  /** Pixels in a row. */
  readonly width?: number | undefined;
  /** Frames, of a video. */
  readonly numFrames?: number | undefined;
  /** Stops before the next kernel. */
  readonly signal?: AbortSignal | undefined;
}

/** A pipeline that can be run on functions of another maker. */
export interface Calibratable extends PlannedPipeline {
  /** What the model was called when it was loaded. */
  readonly model: string;
  /** Where it runs. */
  readonly device: Device;
  /** What activations are computed in. */
  readonly dtype: FloatDtype;
  /** @internal Runs the models on prompts, without making pictures of the results. */
  [CALIBRATION](prompts: readonly string[], options: CalibrationOptions): Promise<void>;
}

/** A function of a model, for arguments of some shapes. */
export interface ObservedFunction {
  /** The model. */
  readonly component: PlanComponent;
  /** How often it was called. */
  calls: number;
  /** Records its outputs again, with something in place of the linear layers' own `forward`. */
  readonly record: (forward: (call: LinearCall) => Tensor) => Node[];
}

/** What was seen. */
export interface Capture {
  /** The functions that were called. */
  readonly functions: readonly ObservedFunction[];
  /** Rows that a layer read, (rows, inputs) of the type that it read; `undefined` where it was not called. */
  inputOf(component: PlanComponent, layer: string): Tensor | undefined;
}

/** What is captured of a layer's inputs together, in rows: enough for a ratio of powers that tells tenths of dB. */
const ROWS = 128;
/** From how many places of a tensor they are taken, since tokens of text and of pictures stand apart. */
const PLACES = 4;

/**
 * Runs a pipeline on prompts, and keeps some rows of what each linear layer reads.
 *
 * @param pipe The pipeline
 * @param models The models to look into
 * @param options Prompts, and how they are run
 * @returns Rows from all prompts and steps, and the functions that were called
 */
export async function capture(
  pipe: Calibratable,
  models: ReadonlyMap<PlanComponent, Module>,
  options: Omit<CalibrationOptions, "make"> & { prompts: readonly string[] },
): Promise<Capture> {
  const { prompts, ...rest } = options;
  const functions: ObservedFunction[] = [];
  const parts = new Map<string, Float32Array[]>();
  const types = new Map<string, { width: number; dtype: Dtype }>();

  const make: FunctionMaker = (fn, functionOptions = {}) => {
    const component = componentOf(functionOptions.name);
    const module = models.get(component);
    if (!module) return compileFunction(fn, functionOptions);
    const calls = prompts.length * (component === "transformer" ? rest.numInferenceSteps : 1);
    const rows = Math.max(1, Math.ceil(ROWS / calls));
    const seen = new Map<
      string,
      { fn: ObservedFunction; results: Map<string, { layers: readonly string[]; dtype: Dtype }> }
    >();

    const compiled = compileFunction((inputs) => {
      const found = new Map<Node, { x: Tensor; layers: string[] }>();
      const outputs = withLinears(module, ({ name, layer, x }) => {
        const shared = found.get(x.node);
        if (shared) shared.layers.push(name);
        else found.set(x.node, { x, layers: [name] });
        return Linear.prototype.forward.call(layer, x);
      }, () => fn(inputs));
      const record: ObservedFunction["record"] = (forward) =>
        withLinears(module, forward, () => Object.values(fn(inputs)).map((t) => t.node));
      const observed: ObservedFunction = { component, calls: 0, record };
      functions.push(observed);
      const extra = [...found.values()].map(({ x, layers }, i) => ({ name: `input ${i}`, layers, x }));
      seen.set(shapesKey(inputs), {
        fn: observed,
        results: new Map(extra.map(({ name, layers, x }) => [name, { layers, dtype: x.dtype }])),
      });
      return { ...outputs, ...Object.fromEntries(extra.map(({ name, x }) => [name, someRows(x, rows)])) };
    }, functionOptions);

    const run = compiled.run.bind(compiled);
    compiled.run = async (inputs, call) => {
      const results: Record<string, Tensor> = await run(inputs, call);
      const { fn: observed, results: names } = seen.get(shapesKey(inputs))!;
      observed.calls++;
      const taken = takeValues([...names.keys()].map((name) => results[name]!));
      for (const [i, [result, { layers, dtype }]] of [...names].entries()) {
        const values = taken[i]!;
        for (const layer of layers) {
          const key = `${component}/${layer}`;
          parts.set(key, [...parts.get(key) ?? [], values]);
          types.set(key, { width: results[result]!.size(-1), dtype });
        }
      }
      return results as Awaited<ReturnType<typeof run>>;
    };
    return compiled;
  };
  await pipe[CALIBRATION](prompts, { ...rest, make });
  return {
    functions: functions.filter(({ calls }) => calls > 0),
    inputOf(component, layer) {
      const key = `${component}/${layer}`;
      const found = parts.get(key);
      if (!found) return undefined;
      const values = new Float32Array(found.reduce((sum, part) => sum + part.length, 0));
      let at = 0;
      for (const part of found) {
        values.set(part, at);
        at += part.length;
      }
      const { width, dtype } = types.get(key)!;
      return tensor(values, { shape: [values.length / width, width] }).cast(dtype);
    },
  };
}

/** The model that a function of this name is of: with guidance it is the same one. */
const componentOf = (name = "") => name.replace(/^guided_/, "") as PlanComponent;

/** Rows from some places of a tensor, all where there are no more, in f32. */
function someRows(x: Tensor, count: number): Tensor {
  const matrix = x.reshape(-1, x.size(-1));
  const total = matrix.size(0);
  if (total <= count) return matrix.cast("f32");
  const places = Math.min(PLACES, count);
  const size = Math.ceil(count / places);
  const parts = Array.from({ length: places }, (_, i) => {
    const start = Math.round(i * (total - size) / Math.max(1, places - 1));
    return matrix.slice(0, start, start + size);
  });
  return concat(parts, 0).cast("f32");
}

/** Results' values; their memory on the device is free afterwards. Equal results are one buffer. */
function takeValues(results: readonly Tensor[]): Float32Array[] {
  const values = new Map<NativeBuffer, Float32Array>();
  const buffers = results.map((t) => {
    const source = sourceOf(t.node);
    if (source?.kind !== "buffer") throw new TypeError("A function's result has no buffer");
    return source.buffer as NativeBuffer;
  });
  for (const buffer of buffers) {
    if (!values.has(buffer)) values.set(buffer, new Float32Array(buffer.read().buffer));
  }
  for (const buffer of values.keys()) buffer[Symbol.dispose]();
  return buffers.map((buffer) => values.get(buffer)!);
}
