/**
 * Modules: objects whose fields are parameters, modules and lists of modules, named as a checkpoint names them.
 *
 * @module
 */

import type { Dtype } from "../graph/dtypes.ts";
import { leaf, RATE } from "../graph/node.ts";
import { sameShape } from "../graph/ops.ts";
import { weightsChanged } from "../tensor/function.ts";
import type { QuantizedTensor } from "../tensor/quantized.ts";
import { Tensor } from "../tensor/tensor.ts";

/** A trained tensor of a module: known by its shape, then filled from a checkpoint. */
export class Parameter {
  /** The shape that a checkpoint must have. */
  readonly shape: readonly number[];
  #tensor: Tensor | undefined;
  #quantized: QuantizedTensor | undefined;

  /** Declares a parameter of a shape. */
  constructor(...shape: number[]) {
    this.shape = shape;
  }

  /** The values: a leaf of the graph, until it is loaded with no source and of the type of most checkpoints. */
  get tensor(): Tensor {
    return this.#tensor ??= new Tensor(leaf(this.shape, { dtype: "bf16", rate: RATE.constant }));
  }

  /** Gives the values, in floats. */
  set tensor(value: Tensor) {
    this.#check(value.shape);
    if (this.#tensor) weightsChanged();
    this.#tensor = value;
    this.#quantized = undefined;
  }

  /** The values as they are stored, where they are quantized. */
  get quantized(): QuantizedTensor | undefined {
    return this.#quantized;
  }

  /** Gives the values, quantized. */
  set quantized(value: QuantizedTensor) {
    this.#check(value.shape);
    if (this.#tensor) weightsChanged();
    this.#tensor = value.tensor;
    this.#quantized = value;
  }

  #check(shape: readonly number[]): void {
    if (!sameShape(shape, this.shape)) {
      throw new TypeError(`A parameter of [${this.shape.join(", ")}] cannot be [${shape.join(", ")}]`);
    }
  }

  /** Whether values were given. */
  get loaded(): boolean {
    return this.#tensor !== undefined;
  }
}

/** The base of all layers and models. */
export abstract class Module {
  /** Every parameter below this module, by its name in a checkpoint. */
  *namedParameters(prefix = ""): Generator<[string, Parameter]> {
    for (const [name, value] of Object.entries(this)) yield* parametersOf(value, prefix + name);
  }

  /** Every module below this one and itself, by name; its own is "". */
  *namedModules(prefix = ""): Generator<[string, Module]> {
    yield [prefix, this];
    for (const [name, value] of Object.entries(this)) {
      yield* modulesOf(value, prefix === "" ? name : `${prefix}.${name}`);
    }
  }

  /** How many numbers the parameters hold. */
  parameterCount(): number {
    let count = 0;
    for (const [, parameter] of this.namedParameters()) count += parameter.shape.reduce((a, b) => a * b, 1);
    return count;
  }
}

function* parametersOf(value: unknown, name: string): Generator<[string, Parameter]> {
  if (value instanceof Parameter) yield [name, value];
  else if (value instanceof Module) yield* value.namedParameters(`${name}.`);
  else if (Array.isArray(value)) { for (const [i, item] of value.entries()) yield* parametersOf(item, `${name}.${i}`); }
}

function* modulesOf(value: unknown, name: string): Generator<[string, Module]> {
  if (value instanceof Module) yield* value.namedModules(name);
  else if (Array.isArray(value)) { for (const [i, item] of value.entries()) yield* modulesOf(item, `${name}.${i}`); }
}

/** A model: a module made from a configuration, that computes in one float type. */
export abstract class Model extends Module {
  /** The fields of the configuration, as its file has them. */
  readonly configFields: Readonly<Record<string, unknown>>;
  /** What the file of its weights is called, without endings. */
  readonly weightsName: string;
  /** The type that activations have; parameters keep their checkpoint's. */
  #dtype: Dtype = "f32";

  /** A model of a configuration, and the name of its weights' file. */
  constructor(configFields: Readonly<Record<string, unknown>>, weightsName: string) {
    super();
    this.configFields = configFields;
    this.weightsName = weightsName;
  }

  /** The type that activations have. */
  get dtype(): Dtype {
    return this.#dtype;
  }

  /** Sets the type that activations have. */
  set dtype(dtype: Dtype) {
    this.#dtype = dtype;
  }
}
