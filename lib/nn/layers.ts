/**
 * The layers that models are made of, with the names and parameters of PyTorch's.
 *
 * @module
 */

import type { Dtype } from "../graph/dtypes.ts";
import { QuantizedTensor } from "../tensor/quantized.ts";
import { tensor } from "../tensor/source.ts";
import {
  concat,
  type Conv2dOptions,
  type Conv3dOptions,
  embedding,
  type GroupNormOptions,
  type Tensor,
} from "../tensor/tensor.ts";
import { Module, Parameter } from "./module.ts";

/** x W^T + b. */
export class Linear extends Module {
  /** (outputs, inputs). */
  weight: Parameter;
  /** (outputs), or none. */
  bias?: Parameter;

  /** A layer of `inputs` to `outputs` features. */
  constructor(inputs: number, outputs: number, options: { bias?: boolean } = {}) {
    super();
    this.weight = new Parameter(outputs, inputs);
    if (options.bias ?? true) this.bias = new Parameter(outputs);
  }

  /**
   * Layers of one input as one, their outputs one after another.
   *
   * @param layers At least one layer; all with a bias or none, all quantized in one way or none
   * @returns The layer; without values where one of them has none
   */
  static join(layers: readonly Linear[]): Linear {
    const [first] = layers as [Linear];
    const outputs = layers.reduce((sum, layer) => sum + layer.weight.shape[0]!, 0);
    const joined = new Linear(first.weight.shape[1]!, outputs, { bias: first.bias !== undefined });
    if (!layers.every((layer) => layer.weight.loaded)) return joined;
    const quantized = layers.map((layer) => layer.weight.quantized).filter((q) => q !== undefined);
    if (quantized.length !== 0 && quantized.length !== layers.length) {
      throw new TypeError("Cannot join layers of which some are quantized: quantize all of them, or none");
    }
    if (quantized.length > 0) joined.weight.quantized = QuantizedTensor.concat(quantized);
    else joined.weight.tensor = concat(layers.map((layer) => layer.weight.tensor), 0);
    if (joined.bias) joined.bias.tensor = concat(layers.map((layer) => layer.bias!.tensor), 0);
    return joined;
  }

  /**
   * The layer as several with a part of its outputs each.
   *
   * @param outputs How many outputs each has
   * @returns The layers
   */
  split(outputs: readonly number[]): Linear[] {
    const { weight, bias } = this;
    let start = 0;
    return outputs.map((count) => {
      const end = start + count;
      const part = new Linear(weight.shape[1]!, count, { bias: bias !== undefined });
      if (weight.quantized) part.weight.quantized = weight.quantized.rows(start, end);
      else if (weight.loaded) part.weight.tensor = weight.tensor.slice(0, start, end);
      if (bias?.loaded) part.bias!.tensor = bias.tensor.slice(0, start, end);
      start = end;
      return part;
    });
  }

  /** (..., inputs) to (..., outputs). */
  forward(x: Tensor): Tensor {
    return x.linear(this.weight.tensor, this.bias?.tensor, this.weight.quantized?.activation);
  }
}

/** A linear layer that is being recorded. */
export interface LinearCall {
  /** Its name in the model. */
  readonly name: string;
  /** The layer. */
  readonly layer: Linear;
  /** Its input. */
  readonly x: Tensor;
}

/**
 * Records something of a model with another function in place of its linear layers' own `forward`, which
 * `Linear.prototype.forward.call(layer, x)` still is.
 *
 * @param module The model
 * @param forward What gives a layer's output
 * @param record Records; the layers are themselves again when it returns
 * @returns What it recorded
 */
export function withLinears<T>(module: Module, forward: (call: LinearCall) => Tensor, record: () => T): T {
  const layers = [...module.namedModules()].filter((entry): entry is [string, Linear] => entry[1] instanceof Linear);
  try {
    for (const [name, layer] of layers) layer.forward = (x) => forward({ name, layer, x });
    return record();
  } finally {
    for (const [, layer] of layers) Reflect.deleteProperty(layer, "forward");
  }
}

/** A convolution of (batch, height, width, channels). */
export class Conv2d extends Module {
  /** (filters, channels, size, size). */
  weight: Parameter;
  /** (filters). */
  bias: Parameter;
  readonly #options: Omit<Conv2dOptions, "bias" | "rows">;

  /** A layer of `channels` to `filters`, by a square kernel of `size`. */
  constructor(channels: number, filters: number, options: { size: number } & Omit<Conv2dOptions, "bias" | "rows">) {
    super();
    const { size, ...rest } = options;
    this.#options = rest;
    this.weight = new Parameter(filters, channels, size, size);
    this.bias = new Parameter(filters);
  }

  /** (batch, height, width, channels) to (batch, height', width', filters). */
  forward(x: Tensor): Tensor {
    const rows = this.weight.quantized?.activation.rows ?? "none";
    return x.conv2d(this.weight.tensor, { ...this.#options, bias: this.bias.tensor, rows });
  }
}

/** A convolution of (batch, frames, height, width, channels), causal in time. */
export class Conv3d extends Module {
  /** (filters, channels, time, height, width). */
  weight: Parameter;
  /** (filters). */
  bias: Parameter;
  readonly #options: Omit<Conv3dOptions, "bias" | "cache" | "rows">;

  /** A layer of `channels` to `filters`, by a kernel of one `size` in time, height and width. */
  constructor(
    channels: number,
    filters: number,
    options: { size: number } & Omit<Conv3dOptions, "bias" | "cache" | "rows">,
  ) {
    super();
    const { size, ...rest } = options;
    this.#options = rest;
    this.weight = new Parameter(filters, channels, size, size, size);
    this.bias = new Parameter(filters);
  }

  /** (batch, frames, height, width, channels) and the frames before, if any, to (batch, frames, height', width', filters). */
  forward(x: Tensor, cache?: Tensor): Tensor {
    const rows = this.weight.quantized?.activation.rows ?? "none";
    return x.conv3d(this.weight.tensor, { ...this.#options, bias: this.bias.tensor, cache, rows });
  }
}

/** Layer norm over the last axis, with or without weight and bias. */
export class LayerNorm extends Module {
  /** (size), or none. */
  weight?: Parameter;
  /** (size), or none. */
  bias?: Parameter;
  readonly #eps: number;

  /** A norm over `size` features. */
  constructor(size: number, options: { eps: number; affine?: boolean }) {
    super();
    this.#eps = options.eps;
    if (options.affine ?? true) {
      this.weight = new Parameter(size);
      this.bias = new Parameter(size);
    }
  }

  /** (..., size) to the same. */
  forward(x: Tensor): Tensor {
    return x.layerNorm({ weight: this.weight?.tensor, bias: this.bias?.tensor, eps: this.#eps });
  }
}

/** RMS norm over the last axis. */
export class RMSNorm extends Module {
  /** (size). */
  weight: Parameter;
  readonly #eps: number;

  /** A norm over `size` features. */
  constructor(size: number, options: { eps: number }) {
    super();
    this.#eps = options.eps;
    this.weight = new Parameter(size);
  }

  /** (..., size) to the same. */
  forward(x: Tensor): Tensor {
    return x.rmsNorm({ weight: this.weight.tensor, eps: this.#eps });
  }
}

/** Group norm of (batch, height, width, channels) or (batch, frames, height, width, channels). */
export class GroupNorm extends Module {
  /** (channels). */
  weight: Parameter;
  /** (channels). */
  bias: Parameter;
  readonly #groups: number;
  readonly #eps: number;

  /** A norm over `channels` in `groups`. */
  constructor(groups: number, channels: number, options: { eps: number }) {
    super();
    this.#groups = groups;
    this.#eps = options.eps;
    this.weight = new Parameter(channels);
    this.bias = new Parameter(channels);
  }

  /** Pictures or frames to the same, with what the norm is multiplied by and what is added, if anything. */
  forward(x: Tensor, modulation: Pick<GroupNormOptions, "scale" | "shift" | "firstApart"> = {}): Tensor {
    return x.groupNorm({
      ...modulation,
      groups: this.#groups,
      weight: this.weight.tensor,
      bias: this.bias.tensor,
      eps: this.#eps,
    });
  }
}

/** A table of vectors. */
export class Embedding extends Module {
  /** (rows, size). */
  weight: Parameter;

  /** A table of `rows` vectors of `size`. */
  constructor(rows: number, size: number) {
    super();
    this.weight = new Parameter(rows, size);
  }

  /** i32 ids (...) to (..., size) of the given type. */
  forward(ids: Tensor, dtype: Dtype): Tensor {
    return embedding(ids, this.weight.tensor, dtype);
  }
}

/** The activations by the names that configurations use. */
export const ACTIVATIONS: Readonly<Record<string, (x: Tensor) => Tensor>> = {
  silu: (x) => x.silu(),
  swish: (x) => x.silu(),
  gelu: (x) => x.gelu(),
  gelu_new: (x) => x.gelu("tanh"),
  gelu_pytorch_tanh: (x) => x.gelu("tanh"),
  quick_gelu: (x) => x.quickGelu(),
  relu: (x) => x.relu(),
  mish,
};

/** x * tanh(ln(1 + e^x)), without the logarithm: with n = e^x (e^x + 2) the tangent is n / (n + 2). */
function mish(x: Tensor): Tensor {
  const wide = x.cast("f32");
  // Beyond 20 the tangent is 1, and its parts would overflow.
  const power = wide.minimum(tensor([20])).exp();
  const n = power.mul(power.add(2));
  return wide.mul(n.div(n.add(2))).cast(x.dtype);
}
