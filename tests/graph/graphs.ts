import { leaf, type Node, RATE, type Rate } from "../../lib/graph/node.ts";
import type { Dtype } from "../../lib/graph/dtypes.ts";
import { schemeOf } from "../../lib/quantize/schemes.ts";
import { QuantizedTensor } from "../../lib/tensor/quantized.ts";
import { attention, concat, embedding, rotaryEmbedding, Tensor, timestepEmbedding } from "../../lib/tensor/tensor.ts";

/** A weight. */
export function weight(...shape: number[]): Tensor {
  return new Tensor(leaf(shape, { dtype: "bf16", rate: RATE.constant }));
}

/** An argument. */
export function argument(
  shape: readonly number[],
  options: { rate?: Rate; dtype?: Dtype; name?: string } = {},
): Tensor {
  const { rate = RATE.run, dtype = "f32", name = "" } = options;
  return new Tensor(leaf(shape, { dtype, rate, name }));
}

/** A weight that is quantized by a scheme. */
export function quantizedWeight(scheme: string, ...shape: number[]): QuantizedTensor {
  const kind = shape.length === 4 ? "conv2d" : "linear";
  const columns = shape.slice(1).reduce((a, b) => a * b, 1);
  const quantization = schemeOf(scheme).quantization({ kind, columns, sparse: false }, {});
  return QuantizedTensor.quantize(weight(...shape), { scheme, quantization, dtype: "f32" });
}

/** The sizes of a Flux transformer. */
export interface FluxSizes {
  /** The hidden size. */
  dim: number;
  /** The attention heads. */
  heads: number;
  /** The double-stream blocks. */
  double: number;
  /** The single-stream blocks. */
  single: number;
  /** The text tokens. */
  text: number;
  /** The image tokens. */
  image: number;
}

/** The scheme of a linear layer by the sizes of its output and input; none leaves it in floats. */
export type SchemeChoice = (outputs: number, inputs: number) => string | undefined;

/** The graph of a step of a Flux transformer, without its weights' values. */
export function fluxGraph(
  { dim, heads, double, single, text, image }: FluxSizes,
  schemeFor: SchemeChoice = () => undefined,
): Node[] {
  const size = dim / heads;
  const linear = (x: Tensor, outputs: number) => {
    const scheme = schemeFor(outputs, x.size(-1));
    if (scheme === undefined) return x.linear(weight(outputs, x.size(-1)), weight(outputs));
    const { tensor, activation } = quantizedWeight(scheme, outputs, x.size(-1));
    return x.linear(tensor, weight(outputs), activation);
  };
  const latents = argument([1, image, 64], { rate: RATE.step, name: "latents" });
  const prompt = argument([1, text, 128], { name: "prompt" });
  const timesteps = argument([20], { name: "timesteps" });
  const row = argument([1], { rate: RATE.step, dtype: "i32", name: "row" });
  const half = (size - 16) / 2;
  const rope = rotaryEmbedding(argument([text + image, 3]), { axes: [16, half, half], theta: 10000 });
  const sinusoids = timestepEmbedding(timesteps, { size: 256, flipSinToCos: true, downscaleFreqShift: 0 });
  const condition = embedding(row, linear(linear(sinusoids, dim).silu(), dim)).silu();
  const modulation = (count: number) => linear(condition, count * dim).chunk(count).map((t) => t.unsqueeze(1));
  const norm = (x: Tensor, shift: Tensor, scale: Tensor) => x.layerNorm({ eps: 1e-6 }).mul(scale.add(1)).add(shift);
  const split = (x: Tensor) => x.reshape(1, x.size(1), heads, size);
  const head = (x: Tensor) => split(linear(x, dim)).rmsNorm({ weight: weight(size), eps: 1e-6 });
  const attend = (q: Tensor, k: Tensor, v: Tensor) =>
    attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)).transpose(1, 2).reshape(1, q.size(1), dim);
  const feedForward = (x: Tensor) => linear(linear(x, 4 * dim).gelu("tanh"), dim);

  let x = linear(latents, dim);
  let t = linear(prompt, dim);
  for (let i = 0; i < double; i++) {
    const [a, b, c, d, e, f] = modulation(6) as [Tensor, Tensor, Tensor, Tensor, Tensor, Tensor];
    const [ta, tb, tc, td, te, tf] = modulation(6) as [Tensor, Tensor, Tensor, Tensor, Tensor, Tensor];
    const [h, th] = [norm(x, a, b), norm(t, ta, tb)];
    const q = concat([head(th), head(h)], 1).rope(rope.cos, rope.sin);
    const k = concat([head(th), head(h)], 1).rope(rope.cos, rope.sin);
    const o = attend(q, k, concat([split(linear(th, dim)), split(linear(h, dim))], 1));
    x = x.add(c.mul(linear(o.slice(1, text), dim)));
    t = t.add(tc.mul(linear(o.slice(1, 0, text), dim)));
    x = x.add(f.mul(feedForward(norm(x, d, e))));
    t = t.add(tf.mul(feedForward(norm(t, td, te))));
  }
  let h = concat([t, x], 1);
  for (let i = 0; i < single; i++) {
    const [shift, scale, gate] = modulation(3) as [Tensor, Tensor, Tensor];
    const n = norm(h, shift, scale);
    const mlp = linear(n, 4 * dim).gelu("tanh");
    const o = attend(head(n).rope(rope.cos, rope.sin), head(n).rope(rope.cos, rope.sin), split(linear(n, dim)));
    h = h.add(gate.mul(linear(concat([o, mlp], -1), dim)));
  }
  const [scale, shift] = modulation(2) as [Tensor, Tensor];
  const velocity = linear(norm(h.slice(1, text), shift, scale), 64);
  return [latents.add(velocity.mul(argument([1], { rate: RATE.step, name: "dt" }))).node];
}
