/**
 * Whether a device computes what the CPU and the goldens say: kernels one by one, models, pictures.
 *
 * @module
 */

import { fileURLToPath } from "node:url";
import { builtCudaLibrary } from "../../ffi/cuda.ts";
import { psnr } from "../../lib/media/metrics.ts";
import { FluxPipeline } from "../../lib/pipelines/flux.ts";
import { quantize } from "../../lib/quantize/quantize.ts";
import { SCHEMES } from "../../lib/quantize/schemes.ts";
import { Device, type DeviceName } from "../../lib/tensor/device.ts";
import { gatherFixtures } from "../../tests/fixtures.ts";
import { buildConformance, CONFORMANCE, conformanceTests, runConformance } from "../conformance.ts";
import { output, type Part, type Row, type Setting } from "./part.ts";

const here = (path: string) => fileURLToPath(new URL(path, import.meta.url));
const exists = (path: string | URL) => Deno.stat(path).then(() => true, () => false);

/** A test's outcome on the setting's device. */
async function conform(test: string, setting: Setting, options: { every: number; runner?: string[] }): Promise<Row> {
  if (!await exists(new URL(test, CONFORMANCE))) await buildConformance();
  const level = setting.device === "cuda-emulated" ? setting.device : "cuda";
  return { test, ...await runConformance(test, { level, library: builtCudaLibrary(level)!, ...options }) };
}

/** Kernels against their reference, by test. */
export const conformance: Part = {
  name: "conformance",
  about: "every kernel against its plain reference, guard bytes around its operands",
  cells: async ({ small }) => small ? ["rows"] : await conformanceTests(),
  run: (test, setting) => conform(test, setting, { every: setting.small ? 20 : 1 }),
};

/** Where a toolkit has what watches a device's memory. */
const SANITIZER = "/usr/local/cuda/bin/compute-sanitizer";

/** The same under compute-sanitizer, a part of the cases. */
export const sanitizer: Part = {
  name: "sanitizer",
  about: "kernels under compute-sanitizer's memcheck and racecheck, every tenth case",
  cells: async ({ device }) => {
    if (device === "cuda-emulated" || !await exists(SANITIZER)) return [];
    const tests = await conformanceTests();
    return ["memcheck", "racecheck"].flatMap((tool) => tests.map((test) => `${tool}:${test}`));
  },
  run: (cell, setting) => {
    const [tool, test] = cell.split(":") as [string, string];
    return conform(test, setting, { every: 10, runner: [SANITIZER, "--tool", tool, "--error-exitcode", "9"] });
  },
};

/** Where all fixtures are, which the first who asks puts there. */
async function fixturesOf({ out }: Setting): Promise<string> {
  const fixtures = `${out}/fixtures`;
  if (await exists(fixtures)) return fixtures;
  const partial = `${fixtures}.partial`;
  await Deno.remove(partial, { recursive: true }).catch(() => {});
  await gatherFixtures(partial);
  await Deno.rename(partial, fixtures);
  return fixtures;
}

/** What is computed on no device. */
const HOST = ["manifests", "random", "schedulers", "tokenizers"];

/** Models against diffusers, transformers and torchao, by folder of the fixtures. */
export const goldens: Part = {
  name: "goldens",
  about: "models against what diffusers, transformers and torchao compute",
  cells: async (setting) => {
    if (setting.small) return ["clip-eos2-mini"];
    const folders = (await Array.fromAsync(Deno.readDir(await fixturesOf(setting)))).map(({ name }) => name);
    return folders.filter((name) => !HOST.includes(name)).sort();
  },
  run: async (folder, setting) => {
    const fixtures = await fixturesOf(setting);
    const args = ["run", "--allow-all", here("../goldens.ts"), `${fixtures}/${folder}`, "--device", setting.device];
    const { stdout, stderr } = await new Deno.Command(Deno.execPath(), { args, env: { NO_COLOR: "1" } }).output();
    const lines = new TextDecoder().decode(stdout).trim().split("\n");
    const [, passed, failed, skipped] = /^(\d+) passed, (\d+) failed, (\d+) skipped$/.exec(lines.at(-1)!) ?? [];
    if (passed === undefined) throw new Error(new TextDecoder().decode(stderr));
    const first = lines.find((line) => line.startsWith("FAILED")) ?? "";
    return { folder, passed: Number(passed), failed: Number(failed), skipped: Number(skipped), said: first };
  },
};

const CAPTIONS = [
  "a large red star on a navy background",
  "a blue ring above a pink cross on a white background",
  "a green square left of a yellow circle on a black background",
  "a small orange triangle on a purple background",
];

/** Pictures of the small trained Flux, on the device and on the CPU, by scheme. */
export const pictures: Part = {
  name: "pictures",
  about: "pictures of the small trained Flux in every scheme against the CPU's, in decibels",
  cells: ({ small }) => Promise.resolve(["none", ...small ? ["fp8dqrow"] : SCHEMES.map(({ name }) => name)]),
  run: async (scheme, { device, small }) => {
    const options = small
      ? { numInferenceSteps: 1, height: 32, width: 32, maxSequenceLength: 8 }
      : { numInferenceSteps: 20, height: 128, width: 128, maxSequenceLength: 32 };
    const draw = async (name: DeviceName) => {
      using opened = await Device.open({ device: name });
      const pipe = await FluxPipeline.load(here("../../models/shapes-flux"), { device: opened, dtype: "bf16" });
      if (scheme !== "none") quantize(pipe.transformer, scheme);
      const { images } = await pipe(small ? CAPTIONS.slice(0, 1) : CAPTIONS, { ...options, seed: 2024 });
      return images;
    };
    const [own, wanted] = [await draw(device), await draw("cpu")];
    const ratios = own.map(({ data }, i) => Math.min(psnr(data, wanted[i]!.data), 99)).sort((a, b) => a - b);
    return { scheme, pictures: ratios.length, lowest_psnr: ratios[0]!, median_psnr: ratios[ratios.length >> 1]! };
  },
};

/** What a device is, for the head of the results. */
export const machine: Part = {
  name: "machine",
  about: "the device, its driver, the Python beside it",
  cells: () => Promise.resolve(["device"]),
  run: async (_, { device, python }) => {
    using opened = await Device.open({ device });
    const query = "--query-gpu=name,driver_version,memory.total,clocks.max.sm,power.limit";
    const card = await output(["nvidia-smi", query, "--format=csv,noheader"], { seconds: 30 })
      .then((text) => text.trim(), () => "no nvidia-smi");
    const script = "import torch; print('PyTorch', torch.__version__, 'CUDA', torch.version.cuda)";
    const torch = await output([python, "-c", script], { seconds: 120 }).then(
      (text) => text.trim(),
      () => "no PyTorch",
    );
    return { level: opened.level, card, torch };
  },
};
