/**
 * One block of Flux.1-dev at its real width over 512 text and 1024 image tokens, in floats and in int8dq, beside diffusers
 * (and torchao) as it is and with torch.compile: `deno run -A bench/block.ts`.
 *
 * @module
 */

import { LayerNorm, Linear, RMSNorm } from "../lib/nn/layers.ts";
import { Module } from "../lib/nn/module.ts";
import { quantize } from "../lib/quantize/quantize.ts";
import { Device } from "../lib/tensor/device.ts";
import { compileFunction } from "../lib/tensor/function.ts";
import { attention, concat, type Tensor } from "../lib/tensor/tensor.ts";
import { measurePeak, printMachine } from "./machine.ts";
import { alternate, gflops, milliseconds, ours, percent, ratio, Table } from "./measure.ts";
import { startPeer } from "./peers.ts";
import { fillModule, randomArgument } from "./tensors.ts";

const HEADS = 24;
const SIZE = 128;
const DIM = HEADS * SIZE;
const TEXT = 512;
const IMAGE = 1024;
const TOKENS = TEXT + IMAGE;

/** What a block computes from, by name. */
type Inputs = Record<"text" | "image" | "temb" | "cos" | "sin", Tensor>;

const split = (x: Tensor) => x.reshape(1, x.size(1), HEADS, SIZE); // (1, tokens, heads, size)

/** Attention over all tokens of q, k, v by token; the result by token. */
function attend(q: Tensor, k: Tensor, v: Tensor, { cos, sin }: Pick<Inputs, "cos" | "sin">): Tensor {
  const [queries, keys, values] = [q.rope(cos, sin), k.rope(cos, sin), v].map((t) => t.permute(0, 2, 1, 3));
  return attention(queries!, keys!, values!).permute(0, 2, 1, 3).reshape(1, q.size(1), DIM);
}

/** A norm whose scale and shift, and the gate of what follows, come from the time embedding. */
class Modulation extends Module {
  readonly linear: Linear;
  readonly norm = new LayerNorm(DIM, { eps: 1e-6, affine: false });
  constructor(readonly count: 3 | 6) {
    super();
    this.linear = new Linear(DIM, count * DIM);
  }
  /** Rows of (1, 1, DIM): shift, scale, gate, and the same for the MLP. */
  parts(temb: Tensor): Tensor[] {
    return this.linear.forward(temb.silu()).unsqueeze(1).chunk(this.count);
  }
  apply(x: Tensor, shift: Tensor, scale: Tensor): Tensor {
    return this.norm.forward(x).mul(scale.add(1)).add(shift);
  }
}

/** The queries, keys and values of one stream. */
class Projections extends Module {
  readonly q = new Linear(DIM, DIM);
  readonly k = new Linear(DIM, DIM);
  readonly v = new Linear(DIM, DIM);
  readonly normQ = new RMSNorm(SIZE, { eps: 1e-6 });
  readonly normK = new RMSNorm(SIZE, { eps: 1e-6 });
  forward(x: Tensor): readonly [Tensor, Tensor, Tensor] {
    const [q, k, v] = [this.q, this.k, this.v].map((layer) => split(layer.forward(x)));
    return [this.normQ.forward(q!), this.normK.forward(k!), v!];
  }
}

/** One stream of a double block. */
class Stream extends Module {
  readonly modulation = new Modulation(6);
  readonly projections = new Projections();
  readonly out = new Linear(DIM, DIM);
  readonly up = new Linear(DIM, 4 * DIM);
  readonly down = new Linear(4 * DIM, DIM);
}

class DoubleBlock extends Module {
  readonly text = new Stream();
  readonly image = new Stream();
  forward(inputs: Inputs): Record<string, Tensor> {
    const streams = [this.text, this.image];
    const xs = [inputs.text, inputs.image];
    const parts = streams.map((stream) => stream.modulation.parts(inputs.temb));
    const projected = streams.map((stream, i) => {
      const [shift, scale] = parts[i]!;
      return stream.projections.forward(stream.modulation.apply(xs[i]!, shift!, scale!));
    });
    const [q, k, v] = [0, 1, 2].map((which) => concat(projected.map((p) => p[which]!), 1));
    const attended = attend(q!, k!, v!, inputs).split([TEXT, IMAGE], 1);
    const results = streams.map((stream, i) => {
      const [, , gate, shiftMlp, scaleMlp, gateMlp] = parts[i]!;
      const x = xs[i]!.add(gate!.mul(stream.out.forward(attended[i]!)));
      const h = stream.up.forward(stream.modulation.apply(x, shiftMlp!, scaleMlp!)).gelu("tanh");
      return x.add(gateMlp!.mul(stream.down.forward(h)));
    });
    return { text: results[0]!, image: results[1]! };
  }
}

class SingleBlock extends Module {
  readonly modulation = new Modulation(3);
  readonly projections = new Projections();
  readonly up = new Linear(DIM, 4 * DIM);
  readonly out = new Linear(5 * DIM, DIM);
  forward(inputs: Inputs): Record<string, Tensor> {
    const x = concat([inputs.text, inputs.image], 1);
    const [shift, scale, gate] = this.modulation.parts(inputs.temb);
    const h = this.modulation.apply(x, shift!, scale!);
    const attended = attend(...this.projections.forward(h), inputs);
    const both = concat([attended, this.up.forward(h).gelu("tanh")], -1);
    const [text, image] = x.add(gate!.mul(this.out.forward(both))).split([TEXT, IMAGE], 1);
    return { text: text!, image: image! };
  }
}

// Both blocks multiply each token by 12 matrices of DIM x DIM, and one row by those of the modulation.
const FLOP = 2 * TOKENS * 12 * DIM ** 2 + 4 * HEADS * TOKENS ** 2 * SIZE;
const MODES = ["eager", "default"] as const;
/** In floats, and as torchao has it too: its linear layers in int8dq. */
const SCHEMES = ["none", "int8dq"] as const;

const peak = await measurePeak();
await printMachine(peak);
console.log(`level ${(await Device.default()).level}`);
await using peer = await startPeer();
const table = new Table([
  "block, f32",
  "ours",
  "GOP/s",
  "of f32 peak",
  "diffusers",
  "/ ours (of min)",
  "torch.compile",
  "/ ours (of min)",
]);
const inputs: Inputs = {
  text: randomArgument([1, TEXT, DIM]),
  image: randomArgument([1, IMAGE, DIM]),
  temb: randomArgument([1, DIM]),
  cos: randomArgument([TOKENS, SIZE]),
  sin: randomArgument([TOKENS, SIZE]),
};
for (const [which, Block] of [["double", DoubleBlock], ["single", SingleBlock]] as const) {
  for (const quantization of SCHEMES) {
    const block = new Block();
    fillModule(block);
    if (quantization !== "none") quantize(block, quantization);
    const compute = compileFunction<Inputs, Record<string, Tensor>>((given) => block.forward(given), { name: which });
    await compute.run(inputs);
    const tasks = [];
    const task = {
      kind: "block",
      which,
      quantization,
      dtype: "f32",
      heads: HEADS,
      size: SIZE,
      text: TEXT,
      image: IMAGE,
    };
    for (const mode of MODES) tasks.push(await peer.prepare({ ...task, mode }));
    const timing = await alternate({
      own: ours(() => compute.run(inputs)),
      eager: tasks[0]!.run,
      compiled: tasks[1]!.run,
    });
    table.row(
      quantization === "none" ? which : `${which}, ${quantization}`,
      milliseconds(timing.own.median),
      gflops(FLOP, timing.own.median),
      percent(FLOP / timing.own.median / 1e9 / peak.f32),
      milliseconds(timing.eager.median),
      ratio(timing.eager, timing.own),
      milliseconds(timing.compiled.median),
      ratio(timing.compiled, timing.own),
    );
    for (const prepared of tasks) await prepared.drop();
  }
}
