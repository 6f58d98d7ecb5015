/**
 * Whether diffusers with torchao loads what denoise saves quantized and computes the same, and denoise what they save:
 * `deno run -A bench/torchao_exchange.ts`. They are installed into `.peers`, which git ignores.
 *
 * @module
 */

import { fileURLToPath } from "node:url";
import { FluxTransformer2DModel } from "../lib/models/flux_transformer_2d_model.ts";
import { saveModel } from "../lib/nn/save.ts";
import { quantize } from "../lib/quantize/quantize.ts";
import { realize, toArray } from "../lib/tensor/realize.ts";
import { openSafetensors, readTensor, type SafetensorsFile } from "../lib/tensor/safetensors.ts";
import { tensor } from "../lib/tensor/source.ts";
import { printMachine } from "./machine.ts";
import { Table } from "./measure.ts";
import { installPeers, PYTHON } from "./peers.ts";

const MODEL = fileURLToPath(new URL("../tests/fixtures/flux-dev-mini", import.meta.url));
const CASES = `${MODEL}/cases.safetensors`;
const SCRIPT = fileURLToPath(new URL("peers/torchao_exchange.py", import.meta.url));
/** torchao's schemes, and whether it runs them on a CPU. */
const SCHEMES = { int8wo: true, int8dq: true, fp8wo: true, fp8dq: false, fp8dqrow: false };

type Outputs = ReadonlyMap<string, Float32Array<ArrayBuffer>>;

/** Runs the peers' script; gives what it prints. */
async function peers(...args: string[]): Promise<string> {
  const { success, stdout } = await new Deno.Command(PYTHON, {
    args: [SCRIPT, ...args],
    env: { HF_HUB_OFFLINE: "1", DIFFUSERS_VERBOSITY: "error" },
    stderr: Deno.env.has("DENOISE_PEER_LOG") ? "inherit" : "null",
  }).output();
  if (!success) throw new Error(`The peer failed at ${args.join(" ")}; DENOISE_PEER_LOG=1 shows why`);
  return new TextDecoder().decode(stdout).trim();
}

/** What the peers compute with a folder's model. */
async function theirOutputs(folder: string, out: string): Promise<Outputs> {
  await peers("run", folder, CASES, out);
  return floatsOf(out);
}

/** The tensors of a file of f32. */
function floatsOf(path: string): Outputs {
  const file = openSafetensors(path);
  return new Map([...file.tensors.keys()].map((key) => [key, new Float32Array(readTensor(file, key).buffer)]));
}

/** What a model's weights stand for. */
async function ourWeights(folder: string): Promise<Outputs> {
  const parameters = [...(await FluxTransformer2DModel.load(folder)).namedParameters()];
  const values = await realize(parameters.map(([, { tensor }]) => tensor));
  return new Map(
    await Promise.all(values.map(async (value, i) => [parameters[i]![0], await toArray<"f32">(value)] as const)),
  );
}

/** What denoise computes with a folder's model. */
async function ourOutputs(folder: string): Promise<Outputs> {
  const model = await FluxTransformer2DModel.load(folder);
  const file = openSafetensors(CASES);
  const outputs = new Map<string, Float32Array<ArrayBuffer>>();
  for (const name of new Set([...file.tensors.keys()].map((key) => key.split(".")[0]!))) {
    const input = (argument: string) => {
      const key = `${name}.in.${argument}`;
      return tensor(new Float32Array(readTensor(file, key).buffer), { shape: file.tensors.get(key)!.shape });
    };
    const sample = model.forward({
      hiddenStates: input("hidden_states"),
      encoderHiddenStates: input("encoder_hidden_states"),
      temb: model.conditionOfEach({
        timestep: input("timestep"),
        guidance: input("guidance"),
        pooledProjections: input("pooled_projections"),
      }),
      imgIds: input("img_ids"),
      txtIds: input("txt_ids"),
    });
    outputs.set(`${name}.out.sample`, await toArray<"f32">(sample));
  }
  return outputs;
}

/** The normalized squared error of all outputs. */
function errorOf(actual: Outputs, expected: Outputs): number {
  let [difference, norm] = [0, 0];
  for (const [key, values] of expected) {
    for (const [i, value] of values.entries()) {
      difference += (actual.get(key)![i]! - value) ** 2;
      norm += value ** 2;
    }
  }
  return difference / norm;
}

/** How many tensors of two checkpoints are not the same, byte by byte. */
function differences(...folders: [string, string]): number {
  const [ours, theirs] = folders.map((folder) => openSafetensors(`${folder}/diffusion_pytorch_model.safetensors`));
  const text = (file: SafetensorsFile, name: string) =>
    file.tensors.has(name) ? `${file.tensors.get(name)!.dtype} ${readTensor(file, name).toHex()}` : undefined;
  const names = new Set([...ours!.tensors.keys(), ...theirs!.tensors.keys()]);
  return [...names].filter((name) => text(ours!, name) !== text(theirs!, name)).length;
}

await installPeers();
await printMachine();
const folder = await Deno.makeTempDir();
try {
  const table = new Table([
    "scheme",
    "what diffusers loads",
    "error of its weights against ours",
    "stored tensors that differ from theirs",
    "error of our outputs against theirs, our file",
    "their file",
  ]);
  for (const [scheme, runs] of Object.entries(SCHEMES)) {
    const [ours, theirs, out] = [`${folder}/${scheme}-ours`, `${folder}/${scheme}-theirs`, `${folder}/out.safetensors`];
    const model = await FluxTransformer2DModel.load(MODEL);
    quantize(model, scheme);
    await saveModel(model, ours);
    const types = await peers("weights", ours, out);
    const row = [scheme, types, errorOf(await ourWeights(ours), floatsOf(out)).toExponential(1)];
    if (!runs) {
      table.row(...row, "they do not run on a CPU", "", "");
      continue;
    }
    await peers("save", MODEL, scheme, theirs);
    table.row(
      ...row,
      String(differences(ours, theirs)),
      errorOf(await ourOutputs(ours), await theirOutputs(ours, out)).toExponential(1),
      errorOf(await ourOutputs(theirs), await theirOutputs(theirs, out)).toExponential(1),
    );
  }
} finally {
  await Deno.remove(folder, { recursive: true });
}
