import assert from "node:assert/strict";
import { OutputError } from "../../lib/errors.ts";
import { AutoencoderKL } from "../../lib/models/autoencoder_kl.ts";
import { CLIPTextModel } from "../../lib/models/clip_text_model.ts";
import { FluxTransformer2DModel } from "../../lib/models/flux_transformer_2d_model.ts";
import { T5EncoderModel } from "../../lib/models/t5_encoder_model.ts";
import type { Model } from "../../lib/nn/module.ts";
import { saveModel, type SaveOptions } from "../../lib/nn/save.ts";
import { quantize, type QuantizeOptions, type QuantizeRule, sparsify } from "../../lib/quantize/quantize.ts";
import { SCHEMES } from "../../lib/quantize/schemes.ts";
import { Device } from "../../lib/tensor/device.ts";
import { computeOnce } from "../../lib/tensor/function.ts";
import { openCheckpoint, openSafetensors, readTensor } from "../../lib/tensor/safetensors.ts";
import { unpackFixtures } from "../fixtures.ts";
import { withFolder } from "../folder.ts";

const FLUX = "tests/fixtures/flux-dev-mini";
const VAE = "tests/fixtures/vae-mini";
const CLIP = "tests/fixtures/clip-mini";
const T5 = "tests/fixtures/t5-mini";

type Loader = (folder: string) => Promise<Model>;

const flux: Loader = (folder) => FluxTransformer2DModel.load(folder);
const vae: Loader = (folder) => AutoencoderKL.load(folder);
const clip: Loader = (folder) => CLIPTextModel.load(folder);
const t5: Loader = (folder) => T5EncoderModel.load(folder);

/** The files of a folder with their bytes. */
async function filesOf(folder: string): Promise<Map<string, Uint8Array>> {
  const files = new Map<string, Uint8Array>();
  for await (const { name } of Deno.readDir(folder)) files.set(name, await Deno.readFile(`${folder}/${name}`));
  return new Map([...files].sort());
}

/** The bytes of every parameter in floats. */
async function valuesOf(model: Model): Promise<Map<string, Uint8Array>> {
  const device = await Device.default();
  const parameters = [...model.namedParameters()];
  const buffers = await computeOnce(parameters.map(([, { tensor }]) => tensor), device);
  return new Map(parameters.map(([name], i) => [name, buffers[i]!.read()]));
}

function assertSameBytes(actual: ReadonlyMap<string, Uint8Array>, expected: ReadonlyMap<string, Uint8Array>): void {
  assert.deepEqual([...actual.keys()], [...expected.keys()]);
  for (const [name, bytes] of expected) {
    assert.equal(Deno.inspect(actual.get(name)!.length), Deno.inspect(bytes.length), name);
    assert.ok(actual.get(name)!.every((byte, i) => byte === bytes[i]), name);
  }
}

/** Saves, loads, and saves again: the same values, the same bytes, the same schemes. */
async function roundTrip(model: Model, load: Loader, options: SaveOptions = {}): Promise<void> {
  await withFolder(async (folder) => {
    await saveModel(model, `${folder}/a`, options);
    const loaded = await load(`${folder}/a`);
    const schemes = (m: Model) => [...m.namedParameters()].map(([name, p]) => [name, p.quantized?.quantization]);
    assert.deepEqual(schemes(loaded), schemes(model));
    assertSameBytes(await valuesOf(loaded), await valuesOf(model));
    await saveModel(loaded, `${folder}/b`, options);
    assertSameBytes(await filesOf(`${folder}/b`), await filesOf(`${folder}/a`));
  });
}

const asJson = (text: string) => JSON.parse(text) as Record<string, unknown>;

for (const scheme of ["int8wo", "int8dq", "fp8wo"]) {
  Deno.test(`what is stored of ${scheme} is what diffusers and torchao store`, async () => {
    await withFolder(async (work) => {
      const [folder, torchao] = [`${work}/ours`, `${work}/torchao/${scheme}`];
      await unpackFixtures(work, `torchao/${scheme}`);
      const model = await flux(FLUX);
      quantize(model, scheme);
      await saveModel(model, folder);
      const config = async (folder: string) => asJson(await Deno.readTextFile(`${folder}/config.json`));
      assert.deepEqual(await config(folder), await config(torchao));
      const ours = openSafetensors(`${folder}/diffusion_pytorch_model.safetensors`);
      const theirs = openSafetensors(`${torchao}/diffusion_pytorch_model.safetensors`);
      const types = (file: typeof ours) =>
        Object.fromEntries([...file.tensors].map(([name, { dtype, shape }]) => [name, { dtype, shape }]));
      assert.deepEqual(types(ours), types(theirs));
      const metadata = (file: typeof ours) =>
        Object.fromEntries(
          Object.entries(file.metadata).map(([key, text]) => {
            if (key === "format") return [key, text];
            const value = asJson(text);
            // The order of names is that of a Python set or list.
            if (Array.isArray(value)) return [key, value.toSorted()];
            const { _tensor_data_names: names, ...rest } = value;
            return [key, { ...rest, names: (names as string[] | undefined)?.toSorted() }];
          }),
        );
      assert.deepEqual(metadata(ours), metadata(theirs));
      for (const name of theirs.tensors.keys()) {
        const [a, b] = [readTensor(ours, name), readTensor(theirs, name)];
        const different = a.reduce((count, byte, i) => count + (byte === b[i] ? 0 : 1), 0);
        assert.equal(different, 0, name);
      }
    });
  });
}

/** What torchao 0.18 says of `fp8dq` and `fp8dqrow`, which it does not run on a CPU, in its own files. */
const FLOAT8_DQ = [
  ["fp8dq", { _type: "PerTensor", _data: {} }, (rows: number, columns: number) => [rows, columns]],
  ["fp8dqrow", { _type: "PerRow", _data: { dim: -1 } }, (_: number, columns: number) => [1, columns]],
] as const;

for (const [scheme, granularity, blockSize] of FLOAT8_DQ) {
  Deno.test(`what is said of ${scheme} is what torchao says`, async () => {
    await withFolder(async (folder) => {
      const model = await flux(FLUX);
      quantize(model, scheme);
      await saveModel(model, folder);
      const { metadata, tensors } = openSafetensors(`${folder}/diffusion_pytorch_model.safetensors`);
      const { shape, dtype } = tensors.get("proj_out._weight_qdata")!;
      assert.deepEqual([shape, dtype], [[64, 80], "F8_E4M3"]);
      assert.deepEqual(tensors.get("proj_out._weight_scale")!.shape, scheme === "fp8dq" ? [1, 1] : [64, 1]);
      const preference = { _type: "KernelPreference", _data: "AUTO" };
      const float8 = { _type: "torch.dtype", _data: "float8_e4m3fn" };
      const multiply = { emulate: false, use_fast_accum: true, pad_inner_dim: false };
      assert.deepEqual(asJson(metadata["proj_out.weight"]!), {
        _type: "Float8Tensor",
        _data: {
          block_size: blockSize(64, 80),
          mm_config: { _type: "Float8MMConfig", _data: multiply },
          act_quant_kwargs: {
            _type: "QuantizeTensorToFloat8Kwargs",
            _data: {
              float8_dtype: float8,
              granularity,
              mm_config: null,
              hp_value_lb: null,
              hp_value_ub: null,
              kernel_preference: preference,
            },
          },
          kernel_preference: preference,
          dtype: { _type: "torch.dtype", _data: "float32" },
        },
        _tensor_data_names: ["qdata", "scale"],
      });
      const config = asJson(await Deno.readTextFile(`${folder}/config.json`)).quantization_config;
      assert.deepEqual(config, {
        modules_to_not_convert: null,
        quant_method: "torchao",
        quant_type: {
          default: {
            _type: "Float8DynamicActivationFloat8WeightConfig",
            _version: 2,
            _data: {
              activation_dtype: float8,
              activation_value_lb: null,
              activation_value_ub: null,
              alg_id: 0,
              granularity: [{ ...granularity, _version: 1 }, { ...granularity, _version: 1 }],
              kernel_preference: preference,
              mm_config: { _type: "Float8MMConfig", _version: 1, _data: multiply },
              packing_format: { _type: "Float8PackingFormat", _data: "PLAIN" },
              set_inductor_config: true,
              weight_dtype: float8,
            },
          },
        },
      });
    });
  });
}

for (const { name } of SCHEMES) {
  Deno.test(`${name} saved, loaded and saved again is the same`, async () => {
    const model = await flux(FLUX);
    const { quantized } = quantize(model, name);
    assert.ok(quantized.length > 0);
    await roundTrip(model, flux);
  });
}

const VARIANTS: Readonly<Record<string, [string | readonly QuantizeRule[], QuantizeOptions]>> = {
  "int4wo with zero points": ["int4wo", { symmetric: false }],
  "int4wo in groups of 64": ["int4wo", { groupSize: 64 }],
  "int4dq with symmetric activations": ["int4dq", { activation: "symmetric" }],
  "fp8wo of e5m2": ["fp8wo", { fp8: "e5m2" }],
  "fp8dq of e5m2": ["fp8dq", { fp8: "e5m2" }],
  "fp8dqrow of e5m2": ["fp8dqrow", { fp8: "e5m2" }],
  "floats of three bits": ["fp3_e1m1", {}],
  "floats of seven bits": ["fp7_e4m2", {}],
  "floats of eight bits": ["fp8_e4m3", {}],
  "scales in bf16": ["int8wo", { dtype: "bf16" }],
  "a mixture": [[
    { filter: /single.*proj_mlp/, scheme: "int8dq" },
    { filter: /proj_out/, scheme: "none" },
    { filter: /ff\./, scheme: "int4wo" },
    { filter: /norm/, scheme: "fp8dq" },
    { scheme: "fp6_e3m2" },
  ], {}],
};

for (const [name, [scheme, options]] of Object.entries(VARIANTS)) {
  Deno.test(`${name} saved, loaded and saved again is the same`, async () => {
    const model = await flux(FLUX);
    quantize(model, scheme, options);
    await roundTrip(model, flux);
  });
}

Deno.test("pruned weights, in floats and in int8, saved, loaded and saved again are the same", async () => {
  const model = await flux(FLUX);
  assert.ok(sparsify(model).sparsified.length > 10);
  await roundTrip(model, flux);
  quantize(model, "int8dq");
  assert.ok([...model.namedParameters()].some(([, p]) => p.quantized?.quantization.format === "sparse_int8"));
  await roundTrip(model, flux);
});

for (const name of ["int8wo", "int4wo", "fp8dq"]) {
  Deno.test(`fused projections in ${name} saved, loaded and saved again are the same`, async () => {
    const model = await FluxTransformer2DModel.load(FLUX);
    model.fuseQkvProjections();
    quantize(model, name);
    await roundTrip(model, flux);
    const later = await FluxTransformer2DModel.load(FLUX);
    quantize(later, name);
    later.fuseQkvProjections();
    await roundTrip(later, flux);
  });
}

for (const name of ["int8wo", "int8dq", "fp8wo"]) {
  Deno.test(`convolutions in ${name} saved, loaded and saved again are the same`, async () => {
    const model = await vae(VAE);
    const { quantized } = quantize(model, name);
    assert.ok(quantized.length > 10);
    await roundTrip(model, vae);
  });
}

Deno.test("text encoders with their tables in int8wo saved, loaded and saved again are the same", async () => {
  for (const [folder, load] of [[CLIP, clip], [T5, t5]] as const) {
    const model = await load(folder);
    const { quantized } = quantize(model, "int8wo", { kinds: ["linear", "embedding"] });
    assert.ok(quantized.some(({ name }) => /embed|shared/.test(name)), folder);
    await roundTrip(model, load);
  }
});

Deno.test("a model in floats keeps its configuration and its tensors", async () => {
  for (const [source, load] of [[FLUX, flux], [VAE, vae], [CLIP, clip], [T5, t5]] as const) {
    await withFolder(async (folder) => {
      await saveModel(await load(source), folder);
      const config = async (folder: string) => asJson(await Deno.readTextFile(`${folder}/config.json`));
      assert.deepEqual(await config(folder), await config(source));
      const name = load === flux || load === vae ? "diffusion_pytorch_model" : "model";
      const [before, after] = [openCheckpoint(source, name), openCheckpoint(folder, name)];
      assert.deepEqual(after.metadata, { format: "pt" });
      for (const [key, { dtype, shape }] of after.tensors) {
        assert.deepEqual([dtype, shape], [before.tensors.get(key)!.dtype, before.tensors.get(key)!.shape]);
        assert.deepEqual(readTensor(after, key), readTensor(before, key), key);
      }
    });
  }
});

Deno.test("weights are sharded over a size, and saved over what is being read", async () => {
  await withFolder(async (folder) => {
    const model = await flux(FLUX);
    const values = await valuesOf(model);
    await saveModel(model, folder, { maxShardSize: "400KB" });
    const first = openCheckpoint(folder);
    assert.ok(first.files.length > 5 && first.path.endsWith(".index.json"));
    assert.ok(first.files.every(({ size }) => size < 500_000));
    // What is loaded from the folder is quantized and saved over itself, twice, with shards of other sizes.
    const loaded = await flux(folder);
    quantize(loaded, "int8wo");
    const quantized = await valuesOf(loaded);
    await saveModel(loaded, folder, { maxShardSize: 200_000 });
    const second = openCheckpoint(folder);
    assert.ok(first.files.every(({ path }) => !second.files.some((file) => file.path === path)));
    assertSameBytes(await valuesOf(loaded), quantized);
    await saveModel(loaded, folder);
    assert.deepEqual([...(await filesOf(folder)).keys()], ["config.json", "diffusion_pytorch_model.safetensors"]);
    assertSameBytes(await valuesOf(await flux(folder)), quantized);
    // The first model's files are still the fixture's.
    assertSameBytes(await valuesOf(model), values);
  });
});

Deno.test("what was opened before its file was replaced is not read from the new one", async () => {
  await withFolder(async (folder) => {
    await saveModel(await flux(FLUX), folder);
    const stale = await flux(folder);
    const other = await flux(FLUX);
    quantize(other, "int8wo");
    await saveModel(other, folder);
    await assert.rejects(valuesOf(stale), /was written again since it was opened: load the model again/);
    await assert.rejects(saveModel(stale, `${folder}/copy`), /load the model again/);
    assert.deepEqual([...Deno.readDirSync(`${folder}/copy`)], []);
  });
});

Deno.test("a folder that cannot be made, or a wrong size, is an error, and nothing is lost", async () => {
  await withFolder(async (folder) => {
    const model = await flux(FLUX);
    await saveModel(model, `${folder}/model`);
    const before = await filesOf(`${folder}/model`);
    quantize(model, "int8wo");
    await Deno.writeTextFile(`${folder}/file`, "");
    await assert.rejects(saveModel(model, `${folder}/file`), (e) => e instanceof OutputError && /file/.test(e.message));
    for (const maxShardSize of ["much", "5 XB", 0, -1, NaN]) {
      await assert.rejects(saveModel(model, `${folder}/model`, { maxShardSize }), RangeError);
    }
    assertSameBytes(await filesOf(`${folder}/model`), before);
    const empty = await FluxTransformer2DModel.load(FLUX, { weights: false });
    await assert.rejects(saveModel(empty, `${folder}/model`), /has no values: load a checkpoint first/);
    assertSameBytes(await filesOf(`${folder}/model`), before);
  });
});

Deno.test({
  name: "a folder that the program may not write to is an error with a remedy",
  permissions: { read: true, write: false, ffi: true, env: true, sys: true },
  fn: async () => {
    const model = await flux(FLUX);
    await assert.rejects(
      saveModel(model, "tests/none"),
      (e) => e instanceof OutputError && /Cannot write .*none.*--allow-write/.test(e.message),
    );
  },
});

Deno.test("a full disk is an error, and nothing is lost", async () => {
  await withFolder(async (folder) => {
    await saveModel(await flux(FLUX), folder);
    const before = await filesOf(folder);
    const script = `
      const { FluxTransformer2DModel, OutputError, quantize, saveModel } = await import("${
      import.meta.resolve("../../mod.ts")
    }");
      const model = await FluxTransformer2DModel.load(${JSON.stringify(FLUX)});
      quantize(model, "int8wo");
      const error = await saveModel(model, ${JSON.stringify(folder)}).catch((e) => e);
      console.log(error instanceof OutputError, error.message);`;
    // No file may grow over 256 KiB, which fails a write as a full disk does.
    const limit = `trap "" XFSZ; ulimit -f 256; exec "$0" eval "$1"`;
    const { stdout } = await new Deno.Command("bash", { args: ["-c", limit, Deno.execPath(), script] }).output();
    assert.match(
      new TextDecoder().decode(stdout),
      /^true Cannot write .*diffusion_pytorch_model\.safetensors: .*space left/,
    );
    assertSameBytes(await filesOf(folder), before);
  });
});
