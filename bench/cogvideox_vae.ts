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

/** The root of the mean square of the values of those pixels that are chosen, and the largest of all. */
function sizes(values: Float32Array, chosen: (index: number) => boolean): { rms: number; largest: number } {
  let [sum, count, largest] = [0, 0, 0];
  for (const [i, value] of values.entries()) {
    largest = Math.max(largest, Math.abs(value));
    if (!chosen(i)) continue;
    sum += value * value;
    count++;
  }
  return { rms: Math.sqrt(sum / count), largest };
}

/** How far tiles are from the whole, everywhere and far from their seams, of ours and of diffusers' own tiles. */
async function compareTiles(task: Task): Promise<void> {
  const vae = await AutoencoderKLCogVideoX.load(FOLDER);
  const video = { height: 8 * task.rows, width: 8 * task.columns, numFrames: 4 * task.frames - 3 };
  const z = latents(task);
  const collect = async (memoryBudget?: number) => {
    const parts: Float32Array[] = [];
    for await (const { data } of vae.decodeFrames(z, { memoryBudget })) parts.push(data);
    const all = new Float32Array(parts.reduce((length, part) => length + part.length, 0));
    parts.reduce((at, part) => (all.set(part, at), at + part.length), 0);
    return all;
  };
  const whole = await collect();
  const { total, weights } = vae.planDecode(video);
  const table = new Table(["tiles", "rms", "far from seams", "largest", "of values whose rms is"]);
  const report = (name: string, tiled: Float32Array, { rows, columns }: { rows: number; columns: number }) => {
    // The outer half of the first tile is as far from a seam as pixels can be.
    const far = (index: number) => {
      const pixel = Math.floor(index / 3);
      const [y, x] = [Math.floor(pixel / video.width) % video.height, pixel % video.width];
      return (rows === 1 || y < video.height / rows / 2) && (columns === 1 || x < video.width / columns / 2);
    };
    const difference = tiled.map((x, i) => x - whole[i]!);
    const { rms, largest } = sizes(difference, () => true);
    const numbers = [rms, sizes(difference, far).rms, largest, sizes(whole, () => true).rms];
    table.row(name, ...numbers.map((x) => x.toExponential(2)));
  };
  for (const share of [0.6, 0.4]) {
    const budget = weights + (total - weights) * share;
    const { tiles, order } = vae.planDecode({ ...video, memoryBudget: budget });
    report(`${tiles.rows} x ${tiles.columns} by ${order}`, await collect(budget), tiles);
  }
  // Of a sixth and a fifth that overlap, so that both must be whole latents, or diffusers' tiles do not fit together.
  const half = (cells: number, shares: number) => 8 * shares * Math.ceil(cells / 2 / shares);
  vae.enableTiling({ tileSampleMinHeight: half(task.rows, 6), tileSampleMinWidth: half(task.columns, 5) });
  report("diffusers' of half the size", await collect(), { rows: 2, columns: 2 });
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
