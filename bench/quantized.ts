/**
 * Linear layers at Flux.1-dev's shapes by each scheme, beside our own floats, the machine's peaks, and torchao's int8dq
 * under torch.compile: `deno run -A bench/quantized.ts`, or a part of it:
 * `--rows 1 --shape 3072x3072 --scheme int8wo,int4wo --dtype f32 --no-peer`.
 *
 * With one row the time is that of reading the weight. A call goes through layers whose weights together are more than
 * twice the largest cache, so that each comes from memory. Each part runs in a process of its own, as all weights
 * together would not fit.
 *
 * @module
 */

import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { Device } from "../lib/tensor/device.ts";
import { FLOAT, LINEAR_SCHEMES, LINEAR_SHAPES, makeLinears, weightBytes } from "./linears.ts";
import { cacheBytes, measurePeak, type Peak, printMachine } from "./machine.ts";
import { alternate, milliseconds, ours, percent, ratio, type Side, Table, type Timing } from "./measure.ts";
import { type Peer, startPeer } from "./peers.ts";

const { values: flags } = parseArgs({
  options: {
    rows: { type: "string", default: "512,1" },
    shape: { type: "string", default: LINEAR_SHAPES.map((shape) => shape.join("x")).join() },
    scheme: { type: "string", default: LINEAR_SCHEMES.join() },
    dtype: { type: "string", default: "f32" },
    "no-peer": { type: "boolean", default: false },
  },
});
const dtype = flags.dtype as "f32" | "bf16";
/** More rows than this are bound by multiply-adds. */
const FEW = 16;
/** The peer's way of int8dq that is the fastest of those that torch.compile has. */
const PEER = "torchao int8dq, torch.compile";

/** What a layer cannot be faster than, per second: multiply-adds of the kind that it computes with. */
function peakOf(scheme: string, peak: Peak): number {
  const integer = scheme.endsWith("int8dq") || scheme === "int4dq";
  return integer && peak.int8 > 0 ? peak.int8 : dtype === "bf16" && peak.bf16 > 0 ? peak.bf16 : peak.f32;
}

async function peerSide(peer: Peer, rows: number, [k, n]: readonly [number, number]): Promise<Side> {
  const task = await peer.prepare({ kind: "linear_int8dq", dtype, m: rows, k, n });
  console.error(`${PEER}: ${task.variant}, ${task.warmSeconds.toFixed(0)} s to compile`);
  return task.run;
}

async function measure(rows: number, shape: readonly [number, number], schemes: readonly string[]): Promise<void> {
  const [peak, { level }] = [await measurePeak(), await Device.default()];
  await printMachine(peak);
  console.log(`level ${level}, activations in ${dtype}`);
  const few = rows < FEW;
  const least = few ? 2.2 * await cacheBytes() : 0;
  const sides: Record<string, Side> = {};
  const made = new Map<string, { flop: number; bytes: number; count: number }>();
  for (const scheme of schemes) {
    const count = Math.max(1, Math.ceil(least / weightBytes(scheme, { shape, dtype })));
    const linears = makeLinears(scheme, { shape, rows, dtype, count });
    await linears.run();
    const side = ours(linears.run);
    sides[scheme] = async (seconds) => (await side(seconds)).map((call) => call / count);
    made.set(scheme, { ...linears, count });
  }
  await using peer = few || flags["no-peer"] ? undefined : await startPeer();
  if (peer) sides[PEER] = await peerSide(peer, rows, shape);
  const timing = await alternate(sides);
  const float = timing[FLOAT];
  const table = new Table([
    `${rows} x ${shape.join(" x ")}`,
    "time",
    few ? "GB/s" : "GOP/s",
    few ? "of reads" : "of peak",
    "float / it (of min)",
    ...(peer ? ["peer / it (of min)"] : []),
  ]);
  for (const [scheme, { flop, bytes }] of made) {
    const { median } = timing[scheme]!;
    const rate = (few ? bytes : flop) / median / 1e9;
    const over = (other: Timing | undefined) => other ? ratio(other, timing[scheme]!) : "";
    table.row(
      scheme,
      milliseconds(median),
      rate.toFixed(0),
      percent(rate / (few ? peak.bytes : peakOf(scheme, peak))),
      over(float),
      ...(peer ? [over(timing[PEER])] : []),
    );
  }
  if (peer) table.row(PEER, milliseconds(timing[PEER]!.median), "", "", float ? ratio(float, timing[PEER]!) : "", "");
}

const parts = flags.rows.split(",").flatMap((rows) => flags.shape.split(",").map((shape) => [rows, shape] as const));
if (parts.length === 1) {
  const [[rows, shape]] = parts as [(typeof parts)[number]];
  const [k, n] = shape.split("x").map(Number);
  await measure(Number(rows), [k!, n!], flags.scheme.split(","));
} else {
  for (const [rows, shape] of parts) {
    const args = ["--rows", rows, "--shape", shape, "--scheme", flags.scheme, "--dtype", dtype];
    if (flags["no-peer"]) args.push("--no-peer");
    const { code } = await new Deno.Command(Deno.execPath(), {
      args: ["run", "--allow-all", fileURLToPath(import.meta.url), ...args],
    }).spawn().status;
    if (code !== 0) Deno.exit(code);
  }
}
