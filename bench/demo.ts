/**
 * The demo picture beside diffusers': from process start to a PNG, warm, and memory: `deno run -A bench/demo.ts`.
 *
 * The peer is measured as it is (eager) and with `torch.compile(mode="max-autotune")` of the transformer and of the
 * VAE's decode, which takes some minutes to compile; `--no-compile` leaves that out. Where ours chooses schemes and
 * kernels by measurement, the peer's transformer is in torchao's int8dq. `--warm` leaves the processes out.
 *
 * @module
 */

import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { AUTOQUANT, FluxPipeline, type Optimizations, optimize } from "../mod.ts";
import { printMachine } from "./machine.ts";
import { alternate, median, milliseconds, ours, ratio, type Side, Table } from "./measure.ts";
import { installPeers, type Peer, PYTHON, startPeer } from "./peers.ts";
import { CALIBRATION } from "./shapes.ts";

const here = (path: string) => fileURLToPath(new URL(path, import.meta.url));
const MODEL = here("../models/shapes-flux");
const PROMPT = "a large red star on a navy background";
const SEED = 5;

const { values: flags } = parseArgs({
  options: {
    "no-compile": { type: "boolean", default: false },
    "warm": { type: "boolean", default: false },
  },
});

/** What a process took. */
interface Run {
  /** From the start to the PNG on disk (the peer's; it says so), and to the end of the process. */
  readonly saved: number;
  readonly ended: number;
}

/** Runs a program that makes the demo's picture. */
async function runProcess(
  [command, ...args]: readonly [string, ...string[]],
  env: Record<string, string> = {},
): Promise<Run> {
  const start = performance.now();
  const process = new Deno.Command(command, { args, env, stdout: "piped", stderr: "null" }).spawn();
  let saved: number | undefined;
  for await (const text of process.stdout.pipeThrough(new TextDecoderStream())) {
    if (text.includes("saved ")) saved ??= (performance.now() - start) / 1000;
  }
  const { success } = await process.status;
  const ended = (performance.now() - start) / 1000;
  if (!success) throw new Error(`${command} ${args.join(" ")} failed`);
  return { saved: saved ?? ended, ended };
}

/** The most memory that a program has at once, in bytes, as Linux counts it; `undefined` elsewhere. */
async function peakMemory([command, ...args]: readonly [string, ...string[]]): Promise<number | undefined> {
  if (Deno.build.os !== "linux") return undefined;
  const process = new Deno.Command(command, { args, stdout: "null", stderr: "null" }).spawn();
  let ended = false;
  const status = process.status.finally(() => ended = true);
  let peak = 0;
  while (!ended) {
    const text = await Deno.readTextFile(`/proc/${process.pid}/status`).catch(() => "");
    peak = Math.max(peak, 1024 * Number(/^VmHWM:\s*(\d+)/m.exec(text)?.[1] ?? 0));
    await new Promise((resolve) => setTimeout(resolve, 2));
  }
  await status;
  return peak;
}

/** A folder for Deno with the npm packages that it has already and nothing else: no module of ours is compiled. */
async function emptyDenoDir(folder: string): Promise<void> {
  const { stdout } = await new Deno.Command(Deno.execPath(), { args: ["info", "--json"] }).output();
  const { npmCache } = JSON.parse(new TextDecoder().decode(stdout)) as { npmCache: string };
  await Deno.remove(folder, { recursive: true }).catch(() => {});
  await Deno.mkdir(folder, { recursive: true });
  await Deno.symlink(npmCache, `${folder}/npm`).catch(() => {});
}

/** From the start of a process to a PNG on disk, and the most memory meanwhile. */
async function compareProcesses(folder: string): Promise<void> {
  const permissions = ["--no-prompt", "--allow-read", "--allow-write", "--allow-ffi", "--allow-env", "--allow-net"];
  const recipe = here("../recipes/inference.ts");
  const own = [Deno.execPath(), "run", ...permissions, recipe, "--out", `${folder}/ours.png`] as const;
  const theirs = [PYTHON, here("peers/demo.py"), MODEL, `${folder}/theirs.png`] as const;
  const first: number[] = [];
  const again: number[] = [];
  const peer: Run[] = [];
  for (let round = 0; round < 7; round++) {
    await emptyDenoDir(`${folder}/deno`);
    first.push((await runProcess([...own], { DENO_DIR: `${folder}/deno` })).ended);
    again.push((await runProcess([...own])).ended);
    peer.push(await runProcess([...theirs], { HF_HUB_OFFLINE: "1" }));
  }
  const timing = (seconds: readonly number[]) => ({ median: median(seconds), min: Math.min(...seconds) });
  const python = timing(peer.map((run) => run.saved));
  const table = new Table(["process start to PNG", "median", "shortest", "diffusers / ours (of shortest)"]);
  const row = (name: string, seconds: readonly number[]) => {
    const t = timing(seconds);
    table.row(name, `${t.median.toFixed(3)} s`, `${t.min.toFixed(3)} s`, ratio(python, t));
  };
  row("ours, to the end of the process, nothing of it compiled before", first);
  row("ours, to the end of the process, once more", again);
  row("diffusers script, to the PNG", peer.map((run) => run.saved));
  row("diffusers script, to the end of the process", peer.map((run) => run.ended));

  const [mine, other] = [await peakMemory([...own]), await peakMemory([...theirs])];
  if (!mine || !other) return;
  const memory = new Table(["peak memory of the process", "MB", "of the peer's"]);
  memory.row("ours", (mine / 1e6).toFixed(0), (mine / other).toFixed(2));
  memory.row("diffusers script", (other / 1e6).toFixed(0), "1.00");
}

/** How both sides make a picture: as they are, and as fast as each can. */
interface Warm {
  readonly name: string;
  readonly dtype: "f32" | "bf16";
  /** What is done to our pipeline. */
  readonly own: Optimizations;
  /** torchao's scheme, and the modes of torch.compile. */
  readonly peer: { readonly quantization: string; readonly modes: readonly string[] };
}

const PLAIN: Optimizations = {
  fuseQkv: false,
  sparsify: false,
  quantization: undefined,
  groupSize: undefined,
  plan: undefined,
  quantizeVae: undefined,
  compile: false,
  compileVae: false,
};
const MODES = flags["no-compile"] ? ["eager"] : ["eager", "max-autotune"];
const WARM: readonly Warm[] = [
  ...(["f32", "bf16"] as const).map((dtype) => ({
    name: dtype,
    dtype,
    own: PLAIN,
    peer: { quantization: "none", modes: MODES },
  })),
  {
    name: "f32, autoquant and compile; torchao int8dq",
    dtype: "f32",
    own: { ...PLAIN, quantization: AUTOQUANT, compile: true, compileVae: true },
    peer: { quantization: "int8dq", modes: MODES },
  },
];
const OPTIONS = { height: 128, width: 128, numInferenceSteps: 20, maxSequenceLength: 32 };

/** The picture again and again in one process. */
async function compareWarm(peer: Peer): Promise<void> {
  const table = new Table([
    "warm, from prompt to picture",
    "ours",
    "f32 / ours (of shortest)",
    "getting ready",
    ...MODES.flatMap((mode) => [`diffusers ${mode}`, "/ ours (of shortest)", "first call"]),
  ]);
  const plain = await FluxPipeline.load(MODEL);
  const draw = (pipe: FluxPipeline) => pipe(PROMPT, { ...OPTIONS, seed: SEED, guidanceScale: 3.5 });
  await draw(plain);
  for (const { name, dtype, own, peer: { quantization, modes } } of WARM) {
    const start = performance.now();
    const pipe = await FluxPipeline.load(MODEL, { dtype });
    await optimize(pipe, own, { prompts: CALIBRATION, run: { ...OPTIONS, prompts: 1 } });
    await draw(pipe);
    const ready = (performance.now() - start) / 1000;
    const sides: Record<string, Side> = { plain: ours(() => draw(plain)), own: ours(() => draw(pipe)) };
    const warm: Record<string, number> = {};
    for (const mode of modes) {
      const task = await peer.prepare({
        kind: "pipeline",
        model: MODEL,
        dtype,
        quantization,
        mode,
        prompt: PROMPT,
        height: 128,
        width: 128,
        num_inference_steps: 20,
        guidance_scale: 3.5,
        max_sequence_length: 32,
        seed: SEED,
      });
      sides[mode] = task.run;
      warm[mode] = task.warmSeconds;
    }
    const timing = await alternate(sides, { rounds: 9, seconds: 0.5 });
    table.row(
      name,
      milliseconds(timing.own!.median),
      ratio(timing.plain!, timing.own!),
      `${ready.toFixed(1)} s`,
      ...modes.flatMap((mode) => [
        milliseconds(timing[mode]!.median),
        ratio(timing[mode]!, timing.own!),
        `${warm[mode]!.toFixed(1)} s`,
      ]),
    );
  }
}

await printMachine();
await installPeers();
if (!flags.warm) {
  const folder = await Deno.makeTempDir();
  try {
    await compareProcesses(folder);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
}
await using peer = await startPeer();
await compareWarm(peer);
