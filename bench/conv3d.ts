/**
 * 3 by 3 by 3 convolutions, causal in time, at the shapes of CogVideoX's decoder, beside oneDNN through PyTorch:
 * `deno run -A bench/conv3d.ts`, or the rows that hold some words: `deno run -A bench/conv3d.ts f32 512`.
 *
 * The peer is the fastest of PyTorch's layouts: its default, channels last, channels last with the weight laid out once.
 * It is given the frames before the first in one tensor with the others; we read them from a cache of their own.
 *
 * @module
 */

import { compileFunction } from "../lib/tensor/function.ts";
import { measurePeak, printMachine } from "./machine.ts";
import { alternate, gflops, milliseconds, ours, percent, ratio, Table } from "./measure.ts";
import { startPeer } from "./peers.ts";
import { randomArgument, randomWeight } from "./tensors.ts";

/** Channels, filters, frames, height and width. */
const SHAPES = [
  [16, 512, 2, 60, 90],
  [512, 512, 2, 60, 90],
  [512, 256, 4, 120, 180],
  [256, 256, 4, 120, 180],
  [256, 256, 4, 240, 360],
  [128, 128, 2, 480, 720],
  [128, 3, 2, 480, 720],
] as const;

const peak = await measurePeak();
await printMachine(peak);
await using peer = await startPeer();
const table = new Table(["channels, size", "ours", "GFLOP/s", "of peak", "oneDNN", "layout", "oneDNN / ours (of min)"]);
for (const dtype of ["f32", "bf16"] as const) {
  for (const [channels, filters, frames, height, width] of SHAPES) {
    const name = `${dtype}, ${channels} to ${filters}, ${frames} x ${height} x ${width}`;
    if (!Deno.args.every((word) => name.split(/[ ,]+/).includes(word))) continue;
    const weight = randomWeight([filters, channels, 3, 3, 3], dtype);
    const convolve = compileFunction(({ x, cache }) => ({ y: x!.conv3d(weight, { padding: 1, cache }) }), {
      name: "conv3d",
    });
    const inputs = {
      x: randomArgument([1, frames, height, width, channels], dtype),
      cache: randomArgument([1, 2, height, width, channels], dtype),
    };
    const task = { kind: "conv3d", dtype, c: channels, o: filters, frames, height, width };
    const theirs = await peer.prepare(task);
    await convolve.run(inputs);
    const timing = await alternate({ own: ours(() => convolve.run(inputs)), peer: theirs.run }, { rounds: 3 });
    const flop = 2 * 27 * channels * filters * frames * height * width;
    table.row(
      name,
      milliseconds(timing.own.median),
      gflops(flop, timing.own.median),
      percent(flop / timing.own.median / 1e9 / (dtype === "bf16" && peak.bf16 > 0 ? peak.bf16 : peak.f32)),
      milliseconds(timing.peer.median),
      theirs.variant,
      ratio(timing.peer, timing.own),
    );
    await theirs.drop();
  }
}
