/**
 * 3 by 3 convolutions at the shapes of Flux's VAE, beside oneDNN through PyTorch: `deno run -A bench/conv2d.ts`.
 *
 * The peer is the fastest of PyTorch's layouts: its default, channels last, channels last with the weight laid out once.
 *
 * @module
 */

import { compileFunction } from "../lib/tensor/function.ts";
import { measurePeak, printMachine } from "./machine.ts";
import { alternate, gflops, milliseconds, ours, percent, ratio, Table } from "./measure.ts";
import { startPeer } from "./peers.ts";
import { randomArgument, randomWeight } from "./tensors.ts";

/** Channels in and out, height and width. */
const SHAPES = [[512, 64], [256, 128], [128, 256]] as const;

const peak = await measurePeak();
await printMachine(peak);
await using peer = await startPeer();
const table = new Table(["channels, size", "ours", "GFLOP/s", "of peak", "oneDNN", "layout", "oneDNN / ours (of min)"]);
for (const dtype of ["f32", "bf16"] as const) {
  for (const [channels, size] of SHAPES) {
    const weight = randomWeight([channels, channels, 3, 3], dtype);
    const convolve = compileFunction(({ x }) => ({ y: x!.conv2d(weight, { padding: 1 }) }), { name: "conv2d" });
    const x = randomArgument([1, size, size, channels], dtype);
    const task = { kind: "conv2d", dtype, c: channels, o: channels, height: size, width: size };
    const theirs = await peer.prepare(task);
    await convolve.run({ x });
    const timing = await alternate({ own: ours(() => convolve.run({ x })), peer: theirs.run });
    const flop = 2 * 9 * channels ** 2 * size ** 2;
    table.row(
      `${dtype}, ${channels}, ${size} x ${size}`,
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
