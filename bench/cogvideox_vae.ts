/**
 * CogVideoX's autoencoder with the real configuration and random weights, in f32: `deno run -A bench/cogvideox_vae.ts`
 * decodes 3 latent frames beside diffusers as it is and with torch.compile, `--video` 49 frames within a budget of
 * memory, `--tiles` compares tiles with the whole. Each decoding is in a process of its own, whose memory Linux watches.
 *
 * Options: `--frames`, `--rows`, `--columns` of the latents, `--budget` in bytes.
 *
 * @module
 */

import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { AutoencoderKLCogVideoX, type DecodePlan } from "../lib/models/autoencoder_kl_cogvideox.ts";
import { Device } from "../lib/tensor/device.ts";
import { Generator } from "../lib/tensor/random.ts";
import { tensor } from "../lib/tensor/source.ts";
import type { Tensor } from "../lib/tensor/tensor.ts";
import { printMachine, THREADS } from "./machine.ts";
import { Table } from "./measure.ts";
import { installPeers, PYTHON } from "./peers.ts";

const here = (path: string) => fileURLToPath(new URL(path, import.meta.url));
const FOLDER = here("../.cache/cogvideox-vae");
const PEER = here("peers/cogvideox_vae.py");

/** What a 49-frame video of 480 by 720 may take. */
const VIDEO_BUDGET = 5.5e9;

/** Latents to decode. */
interface Task {
  readonly frames: number;
  readonly rows: number;
  readonly columns: number;
  /** The most bytes, where there is a budget. */
  readonly budget?: number | undefined;
}

/** What a decoding took. */
interface Cost {
  /** Seconds. */
  readonly seconds: number;
  /** The most memory of the process, in bytes. */
  readonly peak: number;
  /** What was planned, of ours. */
  readonly plan?: DecodePlan;
}

const gb = (bytes: number) => (bytes / 1e9).toFixed(2);

async function output(command: string, args: readonly string[]): Promise<string> {
  const { success, stdout } = await new Deno.Command(command, { args: [...args], stderr: "inherit" }).output();
  if (!success) throw new Error(`${command} ${args.join(" ")} failed`);
  return new TextDecoder().decode(stdout).trim();
}

async function peer(mode: "eager" | "default", { frames, rows, columns }: Task): Promise<Cost> {
  const args = [PEER, "decode", FOLDER, mode, THREADS, frames, rows, columns].map(String);
  return JSON.parse((await output(PYTHON, args)).split("\n").at(-1)!);
}

async function ours(task: Task): Promise<Cost> {
  return JSON.parse(
    await output(Deno.execPath(), ["run", "-A", "--quiet", here("cogvideox_vae.ts"), "--one", JSON.stringify(task)]),
  );
}

function latents({ frames, rows, columns }: Task): Tensor {
  const shape = [1, 16, frames, rows, columns];
  return tensor(new Generator(0).randn(shape), { shape });
}

/** Decodes in this process. */
async function decodeHere(task: Task): Promise<void> {
  const vae = await AutoencoderKLCogVideoX.load(FOLDER);
  const device = await Device.default();
  const memoryBudget = task.budget;
  const video = { height: 8 * task.rows, width: 8 * task.columns, numFrames: 4 * task.frames - 3 };
  const plan = vae.planDecode({ ...video, memoryBudget });
  // As the peer's: the library is loaded, weights are in memory.
  await vae.decode(latents({ frames: 1, rows: 8, columns: 8 }), { device });
  const start = performance.now();
  const seconds = () => (performance.now() - start) / 1000;
  let done = 0;
  for await (const { shape } of vae.decodeFrames(latents(task), { device, memoryBudget })) {
    done += shape[1];
    console.error(`${done} of ${video.numFrames} frames after ${seconds().toFixed(1)} s`);
  }
  console.log(JSON.stringify({ seconds: seconds(), peak: device.peakMemory(), plan } satisfies Cost));
}

/** How far tiles are from the whole, far from their seams and near them, of ours and of diffusers' own tiles. */
async function compareTiles(task: Task): Promise<void> {
  const vae = await AutoencoderKLCogVideoX.load(FOLDER);
  const video = { height: 8 * task.rows, width: 8 * task.columns, numFrames: 4 * task.frames - 3 };
  const z = latents(task);
  const collect = async (memoryBudget?: number) => {
    const all: Float32Array[] = [];
    for await (const { data } of vae.decodeFrames(z, { memoryBudget })) all.push(data);
    return all;
  };
  const whole = await collect();
  const { total, weights } = vae.planDecode(video);
  const table = new Table(["tiles", "rms", "largest", "of values whose rms is"]);
  const rms = (values: Float32Array) => Math.sqrt(values.reduce((sum, x) => sum + x * x, 0) / values.length);
  const report = (name: string, tiled: readonly Float32Array[]) => {
    const differences = tiled.map((part, k) => part.map((x, i) => x - whole[k]![i]!));
    const largest = differences.reduce((most, part) => part.reduce((a, x) => Math.max(a, Math.abs(x)), most), 0);
    const mean = (parts: readonly Float32Array[]) =>
      Math.sqrt(parts.reduce((s, p) => s + rms(p) ** 2, 0) / parts.length);
    table.row(name, mean(differences).toExponential(2), largest.toExponential(2), mean(whole).toExponential(2));
  };
  for (const share of [0.6, 0.4]) {
    const budget = weights + (total - weights) * share;
    const { tiles, order } = vae.planDecode({ ...video, memoryBudget: budget });
    report(`${tiles.rows} x ${tiles.columns} by ${order}`, await collect(budget));
  }
  vae.enableTiling({ tileSampleMinHeight: video.height / 2, tileSampleMinWidth: video.width / 2 });
  report("diffusers' of half the size", await collect());
}

if (import.meta.main) {
  const { values } = parseArgs({
    args: Deno.args,
    options: {
      one: { type: "string" },
      video: { type: "boolean" },
      tiles: { type: "boolean" },
      frames: { type: "string" },
      rows: { type: "string" },
      columns: { type: "string" },
      budget: { type: "string" },
    },
  });
  const number = (value: string | undefined, fallback: number) => value === undefined ? fallback : Number(value);
  const task: Task = {
    frames: number(values.frames, values.video ? 13 : 3),
    rows: number(values.rows, 60),
    columns: number(values.columns, 90),
    budget: values.budget === undefined ? values.video ? VIDEO_BUDGET : undefined : Number(values.budget),
  };
  if (values.one !== undefined) await decodeHere(JSON.parse(values.one));
  else {
    await installPeers();
    if (!await Deno.stat(`${FOLDER}/config.json`).catch(() => undefined)) await output(PYTHON, [PEER, "make", FOLDER]);
    await printMachine();
    const what = `${task.frames} latent frames of ${task.rows} by ${task.columns}`;
    if (values.tiles) await compareTiles(task);
    else {
      const table = new Table([what, "s", "GB at most", "planned", "tiles"]);
      const row = (name: string, { seconds, peak, plan }: Cost) =>
        table.row(
          name,
          seconds.toFixed(1),
          gb(peak),
          plan ? gb(plan.total) : "",
          plan ? `${plan.tiles.rows} x ${plan.tiles.columns} by ${plan.order}` : "",
        );
      row("ours", await ours(task));
      if (!values.video) {
        row("diffusers", await peer("eager", task));
        row("torch.compile", await peer("default", task));
      }
    }
  }
}
