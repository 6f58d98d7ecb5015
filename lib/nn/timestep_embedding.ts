/**
 * From the sinusoids of a number, or a pooled prompt, to a condition: diffusers' `TimestepEmbedding`.
 *
 * @module
 */

import type { Tensor } from "../tensor/tensor.ts";
import { ACTIVATIONS, Linear } from "./layers.ts";
import { Module } from "./module.ts";

/** Two linear layers with an activation between them. */
export class TimestepEmbedding extends Module {
  /** The first. */
  linear_1: Linear;
  /** The second. */
  linear_2: Linear;
  readonly #activation: (x: Tensor) => Tensor;

  /** Layers from `inputs` to `dim` features. */
  constructor(inputs: number, dim: number, options: { activation?: string } = {}) {
    super();
    this.#activation = ACTIVATIONS[options.activation ?? "silu"]!;
    this.linear_1 = new Linear(inputs, dim);
    this.linear_2 = new Linear(dim, dim);
  }

  /** (..., inputs) to (..., dim). */
  forward(x: Tensor): Tensor {
    return this.linear_2.forward(this.#activation(this.linear_1.forward(x)));
  }
}
