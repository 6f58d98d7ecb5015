/**
 * Flux.1-dev with random weights, denoise's and diffusers', in the columns of `bench/inference.ts`.
 *
 * @module
 */

import { fileURLToPath } from "node:url";
import { median } from "../../bench/measure.ts";
import { compile } from "../../lib/compile/compile.ts";
import { FluxPipeline } from "../../lib/pipelines/flux.ts";
import { quantize } from "../../lib/quantize/quantize.ts";
import { SCHEMES } from "../../lib/quantize/schemes.ts";
import { toArray } from "../../lib/tensor/realize.ts";
import { FLUX_DEV, FLUX_SMALL, type FluxSize, loadRandomFlux, writeFlux } from "./flux_dev.ts";
import { output, type Part, type Row, type Setting } from "./part.ts";

const sizeOf = ({ small }: Setting): FluxSize => small ? FLUX_SMALL : FLUX_DEV;
const PROMPT = "a large red star on a navy background";
/** Calls before those that are timed, and those. */
const WARMUP = 1;
const CALLS = 3;

const named = (schemes: readonly string[], batch: number) => schemes.map((scheme) => `${scheme} b${batch}`);

/** What is not the most telling: the other schemes, then batches. */
function othersOf(first: readonly string[], { small }: Setting): string[] {
  if (small) return [];
  const others = [...new Set(["int8dq", "int4wo", ...SCHEMES.map(({ name }) => name)])];
  const batched = ["none", "fp8dqrow", "int8dq", "int4wo"];
  const cells = [...named(["none", ...others], 1), ...[16, 4, 8].flatMap((batch) => named(batched, batch))];
  return cells.filter((cell) => !first.includes(cell));
}

/** A cell's scheme and batch. */
function cellOf(cell: string): { scheme: string; batch: number } {
  const [scheme, batch] = cell.split(" b") as [string, string];
  return { scheme, batch: Number(batch) };
}

/** The columns that say what was run. */
function configurationOf(cell: string, setting: Setting): Row {
  const { scheme, batch } = cellOf(cell);
  return {
    ckpt_id: sizeOf(setting).name,
    batch_size: batch,
    fuse: false,
    compile: true,
    compile_vae: true,
    quantization: scheme,
    sparsify: false,
  };
}

/** The folder of a Flux without weights, which both sides read. */
async function folderOf(setting: Setting): Promise<string> {
  const folder = `${setting.out}/${sizeOf(setting).name}`;
  await writeFlux(folder, sizeOf(setting));
  return folder;
}

/** Bytes of the device's memory that are taken now; what a process works in stays taken. */
async function deviceMemory({ device }: Setting, pipe: FluxPipeline): Promise<number> {
  if (device === "cuda-emulated") return pipe.device.peakMemory();
  const ordinal = device.split(":")[1] ?? "0";
  const query = ["nvidia-smi", `--id=${ordinal}`, "--query-gpu=memory.used", "--format=csv,noheader,nounits"];
  return Number(await output(query, { seconds: 30 })) * 2 ** 20;
}

/** A pipeline that is quantized and compiled for a cell, and the call that is timed. */
async function prepare(cell: string, setting: Setting) {
  const { scheme, batch } = cellOf(cell);
  const { run } = sizeOf(setting);
  const pipe = await loadRandomFlux(await folderOf(setting), { device: setting.device, dtype: "bf16" });
  if (scheme !== "none") quantize(pipe.transformer, scheme);
  const prompts = Array.from({ length: batch }, () => PROMPT);
  const { measured, milliseconds } = await compile(pipe, {
    mode: "max-autotune",
    vae: true,
    runs: [{ ...run, prompts: batch }],
    path: `${setting.out}/tuning.json`,
  });
  return { pipe, prompts, options: { ...run, seed: 7 }, measured, tuneSeconds: milliseconds / 1000 };
}

async function measureFlux(cell: string, setting: Setting): Promise<Row> {
  const { pipe, prompts, options, measured, tuneSeconds } = await prepare(cell, setting);
  const seconds: number[] = [];
  let last = await pipe(prompts, options);
  const first = last.seconds;
  for (let call = 1; call < WARMUP + CALLS; call++) {
    const start = performance.now();
    last = await pipe(prompts, options);
    if (call >= WARMUP) seconds.push((performance.now() - start) / 1000);
  }
  const latents = await toArray<"f32">(last.latents.cast("f32"), { device: pipe.device });
  const { models } = pipe.plan(prompts, options);
  return {
    ...configurationOf(cell, setting),
    model_memory: models.reduce((sum, { weightBytes }) => sum + weightBytes, 0),
    inference_memory: await deviceMemory(setting, pipe),
    time: median(seconds),
    text: last.seconds.textEncoding,
    steps: last.seconds.denoising,
    vae: last.seconds.decoding,
    first_call: first.textEncoding + first.denoising + first.decoding,
    measured,
    tune: tuneSeconds,
    finite: latents.every(Number.isFinite),
  };
}

/** What the numbers to reach are of. */
const FIRST = named(["none", "fp8dqrow"], 1);
const COLUMNS = ["ckpt_id", "batch_size", "quantization"];

/** denoise. */
export const flux: Part = {
  name: "flux",
  about: "Flux.1-dev at its real configuration, random weights made on the device: bf16 and fp8dqrow",
  beside: { part: "peer", columns: COLUMNS, time: "time" },
  cells: () => Promise.resolve(FIRST),
  run: measureFlux,
};

/** denoise in other schemes and batches. */
export const fluxAll: Part = {
  name: "flux_all",
  about: "the same in the other schemes, and in batches of 4, 8, 16",
  beside: { part: "peer_all", columns: COLUMNS, time: "time" },
  cells: (setting) => Promise.resolve(othersOf(FIRST, setting)),
  run: measureFlux,
};

/** Where the time of a picture goes, in bf16 and fp8. */
export const profile: Part = {
  name: "profile",
  about: "Flux.1-dev by kernel: a table below, and traces for Chrome in the folder of results",
  cells: () => Promise.resolve(FIRST),
  run: async (cell, setting) => {
    const { pipe, prompts, options } = await prepare(cell, setting);
    await pipe(prompts, options);
    const found = await pipe.profile(prompts, options);
    const name = cell.replaceAll(" ", "-");
    await found.save(`${setting.out}/trace-${name}.json`);
    await Deno.writeTextFile(`${setting.out}/profile-${name}.json`, JSON.stringify(found.rows({ shapes: true })));
    const rows = found.rows();
    const top = rows.slice(0, 4).map(({ op, share }) => `${op} ${(100 * share).toFixed(0)} %`);
    return { cell, kernels_s: rows.reduce((sum, row) => sum + row.seconds, 0), most: top.join(", ") };
  },
};

/** From a process's start to its first picture, the model on disk in fp8. */
export const start: Part = {
  name: "start",
  about: "seconds from a saved fp8 model to its first picture, tuning known",
  cells: () => Promise.resolve(["save", "load", "load again"]),
  run: async (cell, setting) => {
    const saved = `${setting.out}/${sizeOf(setting).name}-fp8dqrow`;
    const { run } = sizeOf(setting);
    const begin = performance.now();
    const since = () => (performance.now() - begin) / 1000;
    if (cell === "save") {
      const pipe = await loadRandomFlux(await folderOf(setting), { device: setting.device, dtype: "bf16" });
      quantize(pipe.transformer, "fp8dqrow");
      await pipe.save(saved);
      return { cell, seconds: since() };
    }
    const pipe = await FluxPipeline.load(saved, { device: setting.device, dtype: "bf16" });
    await compile(pipe, { vae: true, runs: [run], path: `${setting.out}/tuning.json` });
    await pipe(PROMPT, { ...run, seed: 7 });
    return { cell, seconds: since() };
  },
};

const SCRIPT = fileURLToPath(new URL("peer.py", import.meta.url));
/** A little less than a machine's longest command. */
const PEER_SECONDS = 560;

async function measurePeer(cell: string, setting: Setting): Promise<Row> {
  const { scheme, batch } = cellOf(cell);
  const { run } = sizeOf(setting);
  const task = {
    folder: await folderOf(setting),
    device: setting.device === "cuda-emulated" ? "cpu" : setting.device,
    scheme,
    batch,
    prompt: PROMPT,
    height: run.height,
    width: run.width,
    max_sequence_length: run.maxSequenceLength,
    num_inference_steps: run.numInferenceSteps,
    compile: !setting.small,
    warmup: WARMUP,
    calls: CALLS,
  };
  const text = await output([setting.python, SCRIPT, JSON.stringify(task)], { seconds: PEER_SECONDS });
  const found = JSON.parse(text.trim().split("\n").at(-1)!) as Row;
  return { ...configurationOf(cell, setting), compile: !setting.small, compile_vae: !setting.small, ...found };
}

/** The cell of the peer that tells most. */
const PEER_FIRST = named(["fp8dqrow", "none"], 1);

/** diffusers with torchao and torch.compile. */
export const peer: Part = {
  name: "peer",
  about: "diffusers, torchao and torch.compile max-autotune, the same configuration and random weights",
  cells: () => Promise.resolve(PEER_FIRST),
  run: measurePeer,
};

/** The peer in other schemes and batches. */
export const peerAll: Part = {
  name: "peer_all",
  about: "the peer in the other schemes, and in batches of 4, 8, 16",
  cells: (setting) => Promise.resolve(othersOf(PEER_FIRST, setting).filter(hasPeer)),
  run: measurePeer,
};

/** The schemes that torchao's public configurations have. */
const PEER_SCHEMES = ["none", "fp8dqrow", "fp8dq", "fp8wo", "int8dq", "int8wo", "int4wo"];
const hasPeer = (cell: string) => PEER_SCHEMES.includes(cellOf(cell).scheme);
