/**
 * What a CogVideoX plans to take of the memory, and what it takes, phase by phase: `deno run -A bench/video_memory.ts`.
 * The model is small and of random weights, the video is large: what it works in dominates.
 *
 * Memory is what Linux says of a process of its own: the most resident pages of a phase, less those before the pipeline
 * was loaded.
 *
 * @module
 */

import { fileURLToPath } from "node:url";
import { ModelConfig } from "../lib/models/config.ts";
import { T5EncoderModel } from "../lib/models/t5_encoder_model.ts";
import { formatBytes, formatTable } from "../lib/media/progress.ts";
import { CogVideoXPipeline, type CogVideoXRun } from "../lib/pipelines/cogvideox.ts";
import type { Phase } from "../lib/pipelines/memory.ts";
import { writeRandomCogVideoX, writeRandomModel } from "./random_model.ts";

const TEXT_SIZE = 512;
const TRANSFORMER = {
  num_attention_heads: 8,
  attention_head_dim: 64,
  in_channels: 4,
  out_channels: 4,
  time_embed_dim: 64,
  text_embed_dim: TEXT_SIZE,
  num_layers: 2,
  use_rotary_positional_embeddings: true,
};
const VAE = {
  block_out_channels: [16, 32, 32, 32],
  latent_channels: 4,
  layers_per_block: 1,
  norm_num_groups: 8,
};
const T5 = {
  architectures: ["T5EncoderModel"],
  d_model: TEXT_SIZE,
  d_ff: 2048,
  d_kv: 64,
  num_heads: 8,
  num_layers: 2,
  feed_forward_proj: "gated-gelu",
  vocab_size: 128,
};

/** The sizes: prompts that are read at once, and the video of one. */
const PROMPTS = 48;
const RUN = { height: 512, width: 512, numFrames: 17, numInferenceSteps: 2 } as const;

/** Bytes of a phase. */
export interface MeasuredPhase {
  /** The phase. */
  readonly phase: Phase;
  /** What the plan says. */
  readonly planned: number;
  /** What it took. */
  readonly measured: number;
}

/** A field of what Linux says of this process, in bytes. */
async function status(field: "VmRSS" | "VmHWM"): Promise<number> {
  const text = await Deno.readTextFile("/proc/self/status");
  return 1024 * Number(new RegExp(`${field}:\\s+(\\d+) kB`).exec(text)![1]);
}

/** Starts the peak anew from what there is now. */
const resetPeak = () => Deno.writeTextFile("/proc/self/clear_refs", "5");

/** Runs phases, watched; in a process of its own, as what one works in is kept for the next. */
async function watch(
  folder: string,
  { what, memoryBudget }: { what: string; memoryBudget: number | undefined },
): Promise<MeasuredPhase[]> {
  // Another pipeline's run makes this process as large as one is that does nothing in particular.
  const warm = await CogVideoXPipeline.load(`${folder}/warm`);
  const first = await warm("", { numInferenceSteps: 2, height: 32, width: 48, numFrames: 9 });
  await first.videos[0]!.load();
  const pipe = await CogVideoXPipeline.load(`${folder}/measured`);
  const call: CogVideoXRun = what === "text" ? { prompts: PROMPTS } : { ...RUN, memoryBudget };
  // Planning takes no memory of the library's, but some of Deno's.
  const { phases } = pipe.plan(call);
  const before = await status("VmRSS");
  const found: MeasuredPhase[] = [];
  const phase = async <T>(name: Phase, run: () => Promise<T>): Promise<T> => {
    const planned = phases.find((p) => p.phase === name)!.bytes;
    await resetPeak();
    const value = await run();
    found.push({ phase: name, planned, measured: await status("VmHWM") - before });
    return value;
  };
  if (what === "text") {
    const prompts = Array.from({ length: PROMPTS }, (_, i) => `a blue ring ${i}`);
    await phase("textEncoding", () => pipe.encodePrompt(prompts));
    return found;
  }
  const { videos: [video] } = await phase("denoising", () => pipe("a blue ring", { ...RUN, memoryBudget, seed: 1 }));
  await phase("decoding", async () => {
    for await (const _ of video!) { /* each frame is let go */ }
  });
  return found;
}

/**
 * Measures every phase in a process of its own.
 *
 * @param folder Where models are written
 * @param options The most bytes that decoding may take
 * @returns What was planned, and what it took
 */
export async function measurePhases(
  folder: string,
  options: { memoryBudget?: number | undefined } = {},
): Promise<MeasuredPhase[]> {
  await writeRandomModel(`${folder}/t5`, new T5EncoderModel(new ModelConfig(T5, "config.json")));
  const text = { encoder: `${folder}/t5`, tokenizer: "models/shapes-flux/tokenizer_2" };
  for (const [name, transformer] of [["warm", { ...TRANSFORMER, num_layers: 1 }], ["measured", TRANSFORMER]] as const) {
    await writeRandomCogVideoX(`${folder}/${name}`, { transformer, vae: VAE, text });
  }
  const decode = (bytes: Uint8Array) => new TextDecoder().decode(bytes);
  const found: MeasuredPhase[] = [];
  for (const what of ["text", "video"]) {
    const script = fileURLToPath(import.meta.url);
    const { success, stdout, stderr } = await new Deno.Command(Deno.execPath(), {
      args: ["run", "--quiet", "--allow-all", script, "--watch", folder, what, String(options.memoryBudget ?? "")],
    }).output();
    if (!success) throw new Error(decode(stderr));
    found.push(...JSON.parse(decode(stdout)) as MeasuredPhase[]);
  }
  return found;
}

if (import.meta.main) {
  const [flag, folder, what, budget] = Deno.args;
  if (flag === "--watch") {
    const memoryBudget = budget ? Number(budget) : undefined;
    console.log(JSON.stringify(await watch(folder!, { what: what!, memoryBudget })));
  } else {
    const folder = await Deno.makeTempDir();
    try {
      const found = await measurePhases(folder, { memoryBudget: flag === undefined ? undefined : Number(flag) });
      console.log(formatTable(found.map(({ phase, planned, measured }) => ({
        phase,
        planned: formatBytes(planned),
        measured: formatBytes(measured),
        difference: `${(100 * (measured / planned - 1)).toFixed(1)} %`,
      }))));
    } finally {
      await Deno.remove(folder, { recursive: true });
    }
  }
}
