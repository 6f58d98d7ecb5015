/**
 * The demo's steps by a plan beside each single scheme under the same bound: `deno run -A bench/autoquant.ts [DB]`.
 *
 * A single scheme is on all layers where it keeps the bound, the others stay in floats.
 *
 * @module
 */

import { fileURLToPath } from "node:url";
import {
  autoquant,
  AUTOQUANT_SCHEMES,
  describeQuantization,
  FluxPipeline,
  layerErrors,
  QuantizationPlan,
} from "../mod.ts";
import { printMachine } from "./machine.ts";
import { alternate, milliseconds, ours, ratio, type Side, Table } from "./measure.ts";

const MODEL = fileURLToPath(new URL("../models/shapes-flux", import.meta.url));
const PROMPTS = ["a large red star on a navy background", "a blue ring above a pink cross on a white background"];
const STEPS = 20;

await printMachine();
const options = { prompts: PROMPTS, minSqnrDb: Number(Deno.args[0] ?? 30), steps: STEPS, apply: false };

/** The demo by a plan, without its decoder, which no plan is about. */
async function sideOf(plan: QuantizationPlan): Promise<{ side: Side; layers: string }> {
  const pipe = await FluxPipeline.load(MODEL);
  plan.apply(pipe, { errorOnUnseen: false });
  const embeddings = await pipe.encodePrompt(PROMPTS[0]!);
  const run = { ...embeddings, seed: 5, numInferenceSteps: STEPS, outputType: "latent" } as const;
  return { side: ours(() => pipe(undefined, run)), layers: describeQuantization(pipe.transformer) || "float" };
}

const start = performance.now();
const pipe = await FluxPipeline.load(MODEL);
const plan = await autoquant(pipe, options);
console.log(`planned in ${((performance.now() - start) / 1000).toFixed(1)} s, bound ${options.minSqnrDb} dB`);

const found: Record<string, Awaited<ReturnType<typeof sideOf>>> = {
  plan: await sideOf(plan),
  float: await sideOf(new QuantizationPlan([])),
};
const errors = await layerErrors(pipe, options);
for (const name of AUTOQUANT_SCHEMES) {
  const layers = errors.filter(({ scheme, sqnrDb }) => scheme === name && sqnrDb >= options.minSqnrDb);
  found[name] = await sideOf(new QuantizationPlan(layers));
}
const sides = Object.fromEntries(Object.entries(found).map(([name, { side }]) => [name, side]));
const timings = await alternate(sides, { rounds: 7, seconds: 0.3 });
const table = new Table(["", "layers", "median", "shortest", "times the plan"]);
for (const [name, timing] of Object.entries(timings)) {
  const { median, min } = timing;
  table.row(name, found[name]!.layers, milliseconds(median), milliseconds(min), ratio(timing, timings.plan!));
}
