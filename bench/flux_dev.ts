/**
 * Flux.1-dev's transformer at its real size, 12 billion parameters, with random quantized weights: writes the checkpoint
 * (7 GB in int4wo), loads it, runs a block of each kind and then a whole denoising step at 512 by 512, writes it
 * compiled and says how soon either can step, each in a process of its own:
 * `deno run -A bench/flux_dev.ts [--scheme int4wo] [--dtype bf16] [--only PART]`.
 *
 * @module
 */

import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { compile } from "../lib/compile/compile.ts";
import { formatBytes, formatSeconds } from "../lib/media/progress.ts";
import { ModelConfig } from "../lib/models/config.ts";
import { FluxTransformer2DModel } from "../lib/models/flux_transformer_2d_model.ts";
import { saveModel } from "../lib/nn/save.ts";
import { FluxPipeline } from "../lib/pipelines/flux.ts";
import { quantizableLayers } from "../lib/quantize/quantize.ts";
import { schemeOf } from "../lib/quantize/schemes.ts";
import { Device } from "../lib/tensor/device.ts";
import { compileFunction } from "../lib/tensor/function.ts";
import type { QuantizedTensor } from "../lib/tensor/quantized.ts";
import { toArray } from "../lib/tensor/realize.ts";
import { rotaryEmbedding, type Tensor } from "../lib/tensor/tensor.ts";
import { measurePeak, printMachine } from "./machine.ts";
import { median, percent } from "./measure.ts";
import { copiesOfQuantized, randomArgument, randomWeight } from "./tensors.ts";

const here = (path: string) => fileURLToPath(new URL(path, import.meta.url));
const DEMO = here("../models/shapes-flux");

/** transformer/config.json of black-forest-labs/FLUX.1-dev. */
const CONFIG = {
  _class_name: "FluxTransformer2DModel",
  attention_head_dim: 128,
  axes_dims_rope: [16, 56, 56],
  guidance_embeds: true,
  in_channels: 64,
  joint_attention_dim: 4096,
  num_attention_heads: 24,
  num_layers: 19,
  num_single_layers: 38,
  patch_size: 1,
  pooled_projection_dim: 768,
};
const DIM = CONFIG.num_attention_heads * CONFIG.attention_head_dim;
const SIZE = 512; // pixels a side
const TEXT = 512;
const IMAGE = (SIZE / 16) ** 2;
const TOKENS = TEXT + IMAGE;
/** Multiplications and additions of a block of either kind: 12 matrices of DIM x DIM for each token, and attention. */
const BLOCK_FLOP = 2 * TOKENS * 12 * DIM ** 2 + 4 * TOKENS ** 2 * DIM;
const BLOCKS = CONFIG.num_layers + CONFIG.num_single_layers;
/** Calls of a block that are timed. */
const CALLS = 5;

const { values: flags } = parseArgs({
  options: {
    scheme: { type: "string", default: "int4wo" },
    dtype: { type: "string", default: "bf16" },
    folder: { type: "string" },
    only: { type: "string" },
  },
});
const scheme = schemeOf(flags.scheme);
const dtype = flags.dtype as "f32" | "bf16";
/** A run whose steps are short, to see what comes before them. */
const SMALL = { size: 64, text: 32 };
const folder = flags.folder ?? here(`../.cache/flux-dev-${scheme.name}`);
const compiledFile = `${folder}/compiled.safetensors`;

/** Writes the checkpoint if it is not there: the demo's VAE and scheduler, and the transformer in our saved layout. */
async function write(): Promise<void> {
  if (await Deno.stat(`${folder}/model_index.json`).catch(() => undefined)) return;
  const start = performance.now();
  const model = new FluxTransformer2DModel(new ModelConfig(CONFIG, "Flux.1-dev's configuration"));
  const weights = new Map<string, () => QuantizedTensor>();
  const layers = new Map(quantizableLayers(model).map((layer) => [layer.weight, layer]));
  for (const [, parameter] of model.namedParameters()) {
    const layer = layers.get(parameter);
    if (!layer) {
      parameter.tensor = randomWeight(parameter.shape, "bf16");
      continue;
    }
    const [n, k] = layer.shape as [number, number];
    // Layers of one shape have the same codes: drawing them takes longer than writing them.
    const make = weights.get(`${n} ${k}`) ??
      copiesOfQuantized([n, k], {
        scheme: scheme.name,
        quantization: scheme.quantization({ kind: "linear", columns: k, sparse: false }, {}),
        dtype: "bf16",
      });
    weights.set(`${n} ${k}`, make);
    parameter.quantized = make();
  }
  await saveModel(model, `${folder}/transformer`, { maxShardSize: "4GB" });
  for (const part of ["vae", "scheduler"]) {
    await Deno.mkdir(`${folder}/${part}`, { recursive: true });
    for await (const { name } of Deno.readDir(`${DEMO}/${part}`)) {
      await Deno.copyFile(`${DEMO}/${part}/${name}`, `${folder}/${part}/${name}`);
    }
  }
  // Last, as it says that all is there.
  await Deno.copyFile(`${DEMO}/model_index.json`, `${folder}/model_index.json`);
  const bytes = await bytesOf(`${folder}/transformer`);
  console.log(
    `written: ${(model.parameterCount() / 1e9).toFixed(2)} billion parameters, ${formatBytes(bytes)}, ` +
      `${formatSeconds((performance.now() - start) / 1000)}`,
  );
}

async function bytesOf(path: string): Promise<number> {
  let sum = 0;
  for await (const { name } of Deno.readDir(path)) sum += (await Deno.stat(`${path}/${name}`)).size;
  return sum;
}

/** Prints what something took, and how near that is to what the machine can do at most. */
async function report(what: string, seconds: number, flop: number, first: number): Promise<void> {
  const peak = await measurePeak();
  const most = dtype === "bf16" && peak.bf16 > 0 ? peak.bf16 : peak.f32;
  const rate = flop / seconds / 1e9;
  const { level } = await Device.default();
  console.log(
    `${what}: ${formatSeconds(seconds)}, ${rate.toFixed(0)} GOP/s (${percent(rate / most)} of the ${dtype} peak), ` +
      `the first with packing the weights ${formatSeconds(first)}, peak memory ` +
      `${formatBytes((await Device.default()).peakMemory())}, ${level}`,
  );
}

const load = () => FluxPipeline.load(folder, { textEncoders: false, dtype });

/** One block over all tokens. */
async function block(kind: "double" | "single"): Promise<void> {
  const { transformer } = await load();
  const rope = (ids: Tensor) => rotaryEmbedding(ids, { axes: CONFIG.axes_dims_rope, theta: 10000 });
  const compute = compileFunction(
    ({ x, text, temb, ids }: Record<"x" | "text" | "temb" | "ids", Tensor>): Record<string, Tensor> => {
      if (kind === "double") return { ...transformer.transformer_blocks[0]!.forward(x, text, temb, rope(ids)) };
      return { x: transformer.single_transformer_blocks[0]!.forward(x, temb, rope(ids), 0) };
    },
    { name: kind },
  );
  const inputs = {
    x: randomArgument([1, kind === "double" ? IMAGE : TOKENS, DIM], dtype),
    text: randomArgument([1, TEXT, DIM], dtype),
    temb: randomArgument([1, DIM], dtype),
    ids: randomArgument([TOKENS, 3]),
  };
  const calls: number[] = [];
  for (let call = 0; call <= CALLS; call++) {
    const start = performance.now();
    await compute.run(inputs);
    calls.push((performance.now() - start) / 1000);
  }
  await report(`${kind} block`, median(calls.slice(1)), BLOCK_FLOP, calls[0]!);
}

/** What a run makes, which is what it is compiled for. */
const runOf = ({ size, text }: { size: number; text: number }) => ({
  height: size,
  width: size,
  maxSequenceLength: text,
  numInferenceSteps: 2,
});

/** Seconds of two denoising steps, as the pipeline takes them: the first gets the weights ready. */
async function steps(pipe: FluxPipeline, { size, text }: { size: number; text: number }): Promise<[number, number]> {
  const seconds: number[] = [];
  let last = performance.now();
  const { latents } = await pipe(undefined, {
    ...runOf({ size, text }),
    promptEmbeds: randomArgument([1, text, CONFIG.joint_attention_dim], dtype),
    pooledPromptEmbeds: randomArgument([1, CONFIG.pooled_projection_dim], dtype),
    seed: 5,
    outputType: "latent",
    onStep: () => {
      const now = performance.now();
      seconds.push((now - last) / 1000);
      last = now;
      console.log(
        `step ${seconds.length}: ${formatSeconds(seconds.at(-1)!)}, peak ${formatBytes(pipe.device.peakMemory())}`,
      );
    },
  });
  const values = await toArray<"f32">(latents.cast("f32"));
  if (!values.every(Number.isFinite)) throw new Error("The latents are not finite");
  return [seconds[0]!, seconds[1]!];
}

/** A whole denoising step at full size. */
async function step(): Promise<void> {
  const start = performance.now();
  const pipe = await load();
  console.log(`loaded: ${formatSeconds((performance.now() - start) / 1000)}`);
  const [first, second] = await steps(pipe, { size: SIZE, text: TEXT });
  await report("denoising step", second, BLOCKS * BLOCK_FLOP, first);
}

/** Seconds until a step can run: loading, and what the first step takes beyond the second. */
async function ready(name: string, path: string): Promise<void> {
  const start = performance.now();
  const pipe = await FluxPipeline.load(path, path === folder ? { textEncoders: false, dtype } : {});
  const loading = (performance.now() - start) / 1000;
  const [first, second] = await steps(pipe, SMALL);
  console.log(
    `${name}: loaded in ${formatSeconds(loading)}, ready to step after ${(loading + first - second).toFixed(2)} s`,
  );
}

/** Writes the file that holds the programs and packed weights, for a small run. */
async function ahead(): Promise<void> {
  const compiled = await compile(await load(), { runs: [runOf(SMALL)], autotune: "off" });
  const start = performance.now();
  await compiled.save(compiledFile);
  const { size } = await Deno.stat(compiledFile);
  console.log(`compiled file: ${formatBytes(size)}, ${formatSeconds((performance.now() - start) / 1000)}`);
}

const PARTS: Readonly<Record<string, () => Promise<void>>> = {
  write,
  double: () => block("double"),
  single: () => block("single"),
  step,
  ahead,
  "ready-checkpoint": () => ready("checkpoint", folder),
  "ready-compiled": () => ready("compiled file", compiledFile),
};

if (flags.only !== undefined) {
  const part = PARTS[flags.only];
  if (!part) throw new RangeError(`Cannot run --only ${flags.only}: pass ${Object.keys(PARTS).join(", ")}`);
  await part();
} else {
  await printMachine(await measurePeak());
  console.log(`${scheme.name}, ${SIZE} by ${SIZE}, ${TEXT} text and ${IMAGE} image tokens`);
  for (const only of Object.keys(PARTS)) {
    const args = ["--scheme", scheme.name, "--dtype", dtype, "--folder", folder, "--only", only];
    const { code } = await new Deno.Command(Deno.execPath(), {
      args: ["run", "--allow-all", fileURLToPath(import.meta.url), ...args],
    }).spawn().status;
    if (code !== 0) Deno.exit(code);
  }
}
