/**
 * Seconds and memory of the three ways to a quantized model: `deno run -A bench/memory.ts [SCHEME] [DOUBLE] [SINGLE]`.
 * The model has Flux's width and random weights, and is written to `.cache`, which git ignores.
 *
 * Memory is what Linux says of a process of its own, every two milliseconds: `RssAnon`, what it has besides files, and
 * `RssFile`, the pages of mapped files that it has read, which the system can take back at any time.
 *
 * @module
 */

import { fileURLToPath } from "node:url";
import { FluxTransformer2DModel } from "../lib/models/flux_transformer_2d_model.ts";
import { ModelConfig } from "../lib/models/config.ts";
import { saveModel } from "../lib/nn/save.ts";
import { quantize } from "../lib/quantize/quantize.ts";
import { openCheckpoint, readTensor } from "../lib/tensor/safetensors.ts";
import { realize } from "../lib/tensor/realize.ts";
import { fromSource, tensor } from "../lib/tensor/source.ts";
import { printMachine } from "./machine.ts";
import { Table } from "./measure.ts";
import { writeRandomModel } from "./random_model.ts";

const ROUTES = {
  "after loading": "everything is read into memory, then quantized",
  "as it is read": "each parameter is quantized when it is read (the default)",
  "loaded quantized": "what was saved quantized is loaded",
} as const;

/** A way to a quantized model. */
export type Route = keyof typeof ROUTES;

/** What a route took. */
export interface Cost {
  /** To the first result, from the start of the process. */
  readonly seconds: number;
  /** The most memory besides files, in bytes. */
  readonly anonymous: number;
  /** The most memory that holds pages of files, in bytes. */
  readonly mapped: number;
}

/** Takes a route to the point at which the first result is there; in a process of its own. */
async function take(route: Route, folder: string, scheme: string): Promise<void> {
  const model = await FluxTransformer2DModel.load(folder);
  if (route === "after loading") {
    const checkpoint = openCheckpoint(folder);
    for (const [name, parameter] of model.namedParameters()) {
      const { shape, dtype } = parameter.tensor;
      parameter.tensor = fromSource({ kind: "host", bytes: readTensor(checkpoint, name) }, { shape, dtype, name });
    }
  }
  if (route !== "loaded quantized") quantize(model, scheme);
  const zeros = (...shape: number[]) => tensor(new Float32Array(shape.reduce((a, b) => a * b)), { shape });
  const { inChannels, jointAttentionDim, pooledProjectionDim } = model.config;
  const one = tensor([1]);
  const result = model.forward({
    hiddenStates: zeros(1, 16, inChannels),
    encoderHiddenStates: zeros(1, 16, jointAttentionDim),
    temb: model.conditionOfEach({ timestep: one, guidance: one, pooledProjections: zeros(1, pooledProjectionDim) }),
    imgIds: zeros(16, 3),
    txtIds: zeros(16, 3),
  });
  await realize([result]);
}

/**
 * Takes a route in a process of its own, and watches it.
 *
 * @param route The route.
 * @param options The model's folder, quantized already where the route loads such a one, and the scheme.
 * @returns What it took.
 */
export async function measureRoute(route: Route, options: { folder: string; scheme: string }): Promise<Cost> {
  const { folder, scheme } = options;
  const args = ["run", "--quiet", "--allow-all", fileURLToPath(import.meta.url), "--route", route, folder, scheme];
  const start = performance.now();
  const process = new Deno.Command(Deno.execPath(), { args, stdout: "null", stderr: "inherit" }).spawn();
  let running = true;
  const most = { RssAnon: 0, RssFile: 0 };
  const status = process.status.finally(() => running = false);
  while (running) {
    const text = await Deno.readTextFile(`/proc/${process.pid}/status`).catch(() => "");
    for (const [, name, kilobytes] of text.matchAll(/^(RssAnon|RssFile):\s*(\d+) kB$/gm)) {
      most[name as keyof typeof most] = Math.max(most[name as keyof typeof most], 1024 * Number(kilobytes));
    }
    await new Promise((resolve) => setTimeout(resolve, 2));
  }
  if (!(await status).success) throw new Error(`The route ${route} failed`);
  return { seconds: (performance.now() - start) / 1000, anonymous: most.RssAnon, mapped: most.RssFile };
}

const isThere = (folder: string) => Deno.stat(`${folder}/config.json`).then(() => true, () => false);

async function compareRoutes(scheme: string, double: number, single: number): Promise<void> {
  const floats = fileURLToPath(new URL(`../.cache/memory/flux-${double}-${single}`, import.meta.url));
  const quantized = `${floats}-${scheme}`;
  if (!await isThere(floats)) {
    const depth = { num_layers: double, num_single_layers: single };
    const config = { _class_name: "FluxTransformer2DModel", guidance_embeds: true, ...depth };
    await writeRandomModel(floats, new FluxTransformer2DModel(new ModelConfig(config, "config.json")));
  }
  const model = await FluxTransformer2DModel.load(floats);
  const report = quantize(model, scheme);
  if (!await isThere(quantized)) await saveModel(model, quantized);
  const before = openCheckpoint(floats).files[0]!.size;
  const after = openCheckpoint(quantized).files.reduce((sum, { size }) => sum + size, 0);
  const largest = Math.max(...report.quantized.map(({ bytesBefore }) => bytesBefore));
  const gib = (bytes: number) => (bytes / 2 ** 30).toFixed(2);
  await printMachine();
  console.log(
    `${(model.parameterCount() / 1e9).toFixed(2)} B parameters: ${gib(before)} GiB in bf16, ${gib(after)} GiB in ` +
      `${scheme}, the largest ${gib(largest)} GiB`,
  );
  const table = new Table(["route", "seconds", "peak GiB", "beyond the quantized size", "of files that are mapped"]);
  for (const route of Object.keys(ROUTES) as Route[]) {
    const folder = route === "loaded quantized" ? quantized : floats;
    const { seconds, anonymous, mapped } = await measureRoute(route, { folder, scheme });
    table.row(
      `${route}: ${ROUTES[route]}`,
      seconds.toFixed(1),
      gib(anonymous),
      gib(anonymous - after),
      gib(mapped),
    );
  }
}

if (import.meta.main) {
  if (Deno.args[0] === "--route") {
    const [, route, folder, scheme] = Deno.args as [string, Route, string, string];
    await take(route, folder, scheme);
    Deno.exit();
  }
  const [scheme = "int8wo", double = "2", single = "4"] = Deno.args;
  await compareRoutes(scheme, Number(double), Number(single));
}
