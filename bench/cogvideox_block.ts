/**
 * One block of CogVideoX-2b and of 5b at their real width over 226 text and 3870 video tokens, beside diffusers as it is
 * and with torch.compile: `deno run -A bench/cogvideox_block.ts [--model 2b|5b] [--dtype f32|bf16] [--rounds 5]`.
 *
 * @module
 */

import { parseArgs } from "node:util";
import { CogVideoXTransformer3DModel } from "../lib/models/cogvideox_transformer_3d_model.ts";
import { ModelConfig } from "../lib/models/config.ts";
import { Device } from "../lib/tensor/device.ts";
import { compileFunction } from "../lib/tensor/function.ts";
import type { Tensor } from "../lib/tensor/tensor.ts";
import { measurePeak, printMachine } from "./machine.ts";
import { alternate, gflops, milliseconds, ours, percent, ratio, Table } from "./measure.ts";
import { startPeer } from "./peers.ts";
import { fillModule, randomArgument } from "./tensors.ts";

const SIZE = 64;
const TEXT = 226;
const VIDEO = 3870;
const TOKENS = TEXT + VIDEO;
const TIME = 512;
const HEADS = { "2b": 30, "5b": 48 } as const;
const DTYPES = ["f32", "bf16"] as const;
const MODES = ["eager", "default"] as const;

/** What a block computes from, by name. */
type Inputs = Record<"text" | "video" | "temb" | "cos" | "sin", Tensor>;

const { values: options } = parseArgs({
  options: {
    model: { type: "string", multiple: true, default: Object.keys(HEADS) },
    dtype: { type: "string", multiple: true, default: [...DTYPES] },
    rounds: { type: "string", default: "5" },
  },
});

/** The block of a model of one layer. */
function blockOf(heads: number, rotary: boolean) {
  const config = { num_layers: 1, num_attention_heads: heads, use_rotary_positional_embeddings: rotary };
  return new CogVideoXTransformer3DModel(new ModelConfig(config, "config.json")).transformer_blocks[0]!;
}

const peak = await measurePeak();
await printMachine(peak);
console.log(`level ${(await Device.default()).level}`);
await using peer = await startPeer();
const table = new Table([
  "block",
  "ours",
  "GFLOP/s",
  "of f32 peak",
  "diffusers",
  "/ ours (of min)",
  "torch.compile",
  "/ ours (of min)",
]);
for (const [model, heads] of Object.entries(HEADS)) {
  if (!options.model.includes(model)) continue;
  const dim = heads * SIZE;
  const rotary = model === "5b";
  // Each token meets 12 matrices of dim x dim.
  const flop = 2 * TOKENS * 12 * dim ** 2 + 4 * TOKENS ** 2 * dim;
  for (const dtype of DTYPES) {
    if (!options.dtype.includes(dtype)) continue;
    const block = blockOf(heads, rotary);
    fillModule(block, dtype);
    const compute = compileFunction<Inputs, Record<string, Tensor>>(
      ({ text, video, temb, cos, sin }) => block.forward({ text, video }, temb, rotary ? { cos, sin } : undefined),
      { name: "block" },
    );
    const inputs: Inputs = {
      text: randomArgument([1, TEXT, dim], dtype),
      video: randomArgument([1, VIDEO, dim], dtype),
      temb: randomArgument([1, TIME], dtype),
      cos: randomArgument([VIDEO, SIZE]),
      sin: randomArgument([VIDEO, SIZE]),
    };
    await compute.run(inputs);
    const tasks = [];
    const task = {
      kind: "cogvideox_block",
      dtype,
      heads,
      size: SIZE,
      text: TEXT,
      video: VIDEO,
      rotary: Number(rotary),
    };
    for (const mode of MODES) tasks.push(await peer.prepare({ ...task, mode }));
    const timing = await alternate({
      own: ours(() => compute.run(inputs)),
      eager: tasks[0]!.run,
      compiled: tasks[1]!.run,
    }, { rounds: Number(options.rounds) });
    table.row(
      `${model}, ${dtype}`,
      milliseconds(timing.own.median),
      gflops(flop, timing.own.median),
      percent(flop / timing.own.median / 1e9 / peak.f32),
      milliseconds(timing.eager.median),
      ratio(timing.eager, timing.own),
      milliseconds(timing.compiled.median),
      ratio(timing.compiled, timing.own),
    );
    for (const prepared of tasks) await prepared.drop();
  }
}
