/**
 * The two layers between attentions, as diffusers' `FeedForward` has them.
 *
 * @module
 */

import type { Tensor } from "../tensor/tensor.ts";
import { Linear } from "./layers.ts";
import { Module } from "./module.ts";

/** What stands between the two layers: a function of all features, or of the second half of them as the first's gate. */
interface FeedForwardActivation {
  readonly gated: boolean;
  readonly apply: (x: Tensor) => Tensor;
}

/** The activations by diffusers' names of `activation_fn`. */
export const FEED_FORWARD_ACTIVATIONS: Readonly<Record<string, FeedForwardActivation>> = {
  "gelu": { gated: false, apply: (x) => x.gelu() },
  "gelu-approximate": { gated: false, apply: (x) => x.gelu("tanh") },
  "geglu": { gated: true, apply: (x) => x.gelu() },
  "geglu-approximate": { gated: false, apply: (x) => x.quickGelu() },
  "swiglu": { gated: true, apply: (x) => x.silu() },
  "linear-silu": { gated: false, apply: (x) => x.silu() },
};

class Projection extends Module {
  proj: Linear;
  readonly #activation: FeedForwardActivation;

  constructor(inputs: number, outputs: number, activation: FeedForwardActivation) {
    super();
    this.#activation = activation;
    this.proj = new Linear(inputs, activation.gated ? 2 * outputs : outputs);
  }

  forward(x: Tensor): Tensor {
    const { gated, apply } = this.#activation;
    const projected = this.proj.forward(x);
    if (!gated) return apply(projected);
    const [values, gate] = projected.chunk(2) as [Tensor, Tensor];
    return values.mul(apply(gate));
  }
}

/** Two linear layers, four times as wide between them. */
export class FeedForward extends Module {
  /** The second place is the dropout's, which has no parameters. */
  net: [Projection, undefined, Linear];

  /** Layers over `dim` features. */
  constructor(dim: number, options: { activation: string }) {
    super();
    const activation = FEED_FORWARD_ACTIVATIONS[options.activation]!;
    this.net = [new Projection(dim, 4 * dim, activation), undefined, new Linear(4 * dim, dim)];
  }

  /** (..., dim) to the same. */
  forward(x: Tensor): Tensor {
    return this.net[2].forward(this.net[0].forward(x));
  }
}
