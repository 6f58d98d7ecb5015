import assert from "node:assert/strict";
import { CheckpointError, ConfigError } from "../../lib/errors.ts";
import { AutoencoderKL } from "../../lib/models/autoencoder_kl.ts";
import { CLIPTextModel } from "../../lib/models/clip_text_model.ts";
import { openSafetensors, readTensor, type TensorToWrite, writeSafetensors } from "../../lib/tensor/safetensors.ts";
import { withFolder } from "../folder.ts";

const CLIP = "tests/fixtures/clip-mini";
const VAE = "tests/fixtures/vae-mini";
const WEIGHT = "text_model.encoder.layers.0.mlp.fc1.weight";

/** CLIP's tensors, as its file has them. */
function clipTensors(): TensorToWrite[] {
  const file = openSafetensors(`${CLIP}/model.safetensors`);
  return [...file.tensors].map(([name, { dtype, shape }]) => ({ name, dtype, shape, data: readTensor(file, name) }));
}

/** Loads CLIP from a changed checkpoint, and expects an error that names the file, a key and what is in the message. */
async function refuses(
  change: (tensors: TensorToWrite[]) => TensorToWrite[],
  expected: { key: string; message: RegExp },
): Promise<void> {
  await withFolder(async (folder) => {
    await Deno.copyFile(`${CLIP}/config.json`, `${folder}/config.json`);
    await writeSafetensors(`${folder}/model.safetensors`, change(clipTensors()));
    await assert.rejects(CLIPTextModel.load(folder), (e) => {
      assert.ok(e instanceof CheckpointError, `${e}`);
      assert.equal(e.key, expected.key);
      assert.ok(e.file!.startsWith(folder), e.file);
      assert.match(e.message, expected.message);
      return true;
    });
  });
}

/** Loads a model with other fields in its configuration. */
async function withConfig(
  source: string,
  fields: Record<string, unknown>,
  load: (folder: string) => Promise<unknown>,
): Promise<void> {
  await withFolder(async (folder) => {
    const config = JSON.parse(await Deno.readTextFile(`${source}/config.json`));
    await Deno.writeTextFile(`${folder}/config.json`, JSON.stringify({ ...config, ...fields }));
    const [key] = Object.keys(fields);
    await assert.rejects(load(folder), (e) => {
      assert.ok(e instanceof ConfigError, `${e}`);
      assert.equal(e.key, key);
      assert.ok(e.message.includes(`${folder}/config.json`), e.message);
      return true;
    }, key);
  });
}

Deno.test("a checkpoint as it is loads", async () => {
  await withFolder(async (folder) => {
    await Deno.copyFile(`${CLIP}/config.json`, `${folder}/config.json`);
    await writeSafetensors(`${folder}/model.safetensors`, clipTensors());
    const model = await CLIPTextModel.load(folder);
    assert.ok([...model.namedParameters()].every(([, parameter]) => parameter.loaded));
  });
});

Deno.test("a missing tensor is named", async () => {
  await refuses((tensors) => tensors.filter(({ name }) => name !== WEIGHT), {
    key: WEIGHT,
    message: /lacks text_model.*fc1\.weight: check that the checkpoint is complete/,
  });
});

Deno.test("a tensor of another shape is named, with both shapes", async () => {
  await refuses(
    (tensors) => tensors.map((t) => t.name === WEIGHT ? { ...t, shape: t.shape.toReversed() } : t),
    { key: WEIGHT, message: /of \[48, 128\], the configuration asks for \[128, 48\]/ },
  );
});

Deno.test("a tensor of another dtype is named", async () => {
  await refuses(
    (tensors) => tensors.map((t) => t.name === WEIGHT ? { ...t, dtype: "I32" as const } : t),
    { key: WEIGHT, message: /in I32: weights are F32, BF16 or F16/ },
  );
});

Deno.test("a tensor that the model does not have is named", async () => {
  const extra = { name: "text_model.extra", dtype: "F32" as const, shape: [1], data: new Uint8Array(4) };
  await refuses((tensors) => [...tensors, extra], { key: extra.name, message: /which the model does not have/ });
});

Deno.test("a configuration of another class, or with values that cannot be, is refused", async () => {
  const vae = (folder: string) => AutoencoderKL.load(folder);
  await withConfig(VAE, { _class_name: "AutoencoderTiny" }, vae);
  await withConfig(VAE, { latent_channels: 0 }, vae);
  await withConfig(VAE, { block_out_channels: "wide" }, vae);
  await withConfig(VAE, { up_block_types: ["AttnUpDecoderBlock2D"] }, vae);
  await withConfig(CLIP, { hidden_act: "swish9" }, (folder) => CLIPTextModel.load(folder));
  await withFolder(async (folder) => {
    await assert.rejects(AutoencoderKL.load(folder), ConfigError);
    await Deno.writeTextFile(`${folder}/config.json`, "[]");
    await assert.rejects(AutoencoderKL.load(folder), /holds no object/);
  });
});
