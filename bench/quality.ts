/**
 * What each scheme costs in quality on the demo's model, beside torchao's figures where it runs the scheme on a CPU:
 * `deno run -A bench/quality.ts [SCHEME...]`.
 *
 * @module
 */

import { fileURLToPath } from "node:url";
import { formatBytes } from "../lib/media/progress.ts";
import { FluxPipeline } from "../lib/pipelines/flux.ts";
import { quantize, sparsify } from "../lib/quantize/quantize.ts";
import { SCHEMES } from "../lib/quantize/schemes.ts";
import { printMachine } from "./machine.ts";
import { percent, Table } from "./measure.ts";
import { CAPTIONS, COMPARED, draw, judge } from "./shapes.ts";

const MODEL = fileURLToPath(new URL("../models/shapes-flux", import.meta.url));
/** Pruning, then int8dq. */
const SPARSE = "sparse int8dq";

/** torchao 0.18's PSNR in decibels on the same captions and seeds, against diffusers' pictures in f32: medians. */
const TORCHAO: Readonly<Record<string, number>> = { int8wo: 57.7, int8dq: 55.9, fp8wo: 47.6, int4wo: 35.8 };

const schemes = Deno.args.length > 0 ? Deno.args : [...SCHEMES.map(({ name }) => name), SPARSE];

await printMachine();
const plain = await FluxPipeline.load(MODEL);
const floats = await draw(plain, CAPTIONS);
console.log(`${plain.device.level}, ${CAPTIONS.length} captions, PSNR and SSIM of the first ${COMPARED}`);
const table = new Table(["scheme", "weights", "PSNR", "torchao's", "SSIM", "accuracy"]);
const row = (name: string, pipe: FluxPipeline, images: typeof floats) => {
  const { psnr, ssim, accuracy } = judge(images, floats, CAPTIONS);
  const { weightBytes } = pipe.plan(CAPTIONS[0]!.prompt).models.find(({ part }) => part === "transformer")!;
  const theirs = TORCHAO[name];
  table.row(
    name,
    formatBytes(weightBytes),
    psnr === Infinity ? "" : `${psnr.toFixed(1)} dB`,
    theirs === undefined ? "" : `${theirs.toFixed(1)} dB`,
    ssim.toFixed(4),
    `${percent(accuracy)} (${Math.round(accuracy * CAPTIONS.length)})`,
  );
};
row("float", plain, floats);
for (const scheme of schemes) {
  const pipe = await FluxPipeline.load(MODEL);
  if (scheme === SPARSE) sparsify(pipe.transformer);
  quantize(pipe.transformer, scheme === SPARSE ? "int8dq" : scheme);
  row(scheme, pipe, await draw(pipe, CAPTIONS));
}
