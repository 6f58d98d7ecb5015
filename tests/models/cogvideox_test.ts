import assert from "node:assert/strict";
import { CheckpointError, ConfigError } from "../../lib/errors.ts";
import { CogVideoXTransformer3DModel } from "../../lib/models/cogvideox_transformer_3d_model.ts";
import { ModelConfig } from "../../lib/models/config.ts";
import { T5EncoderModel } from "../../lib/models/t5_encoder_model.ts";
import { dequantize, quantize } from "../../lib/quantize/quantize.ts";
import { SCHEMES } from "../../lib/quantize/schemes.ts";
import { compileFunction } from "../../lib/tensor/function.ts";
import { toArray } from "../../lib/tensor/realize.ts";
import { openSafetensors, readTensor, writeSafetensors } from "../../lib/tensor/safetensors.ts";
import { tensor } from "../../lib/tensor/source.ts";
import { embedding, type Tensor } from "../../lib/tensor/tensor.ts";
import { withFolder } from "../folder.ts";

const FIXTURES = "tests/fixtures";
const FOLDERS = ["cogvideox-2b-mini", "cogvideox-5b-mini", "cogvideox-1.5-mini", "cogvideox-learned-mini"];

/** The tensors of a golden case: its inputs, or its output. */
function goldens(folder: string, name = "case0") {
  const file = openSafetensors(`${FIXTURES}/${folder}/cases.safetensors`);
  const read = (key: string): Tensor | undefined => {
    const found = file.tensors.get(`${name}.${key}`);
    if (!found) return undefined;
    const bytes = readTensor(file, `${name}.${key}`);
    const values = found.dtype === "I64"
      ? Float32Array.from(new BigInt64Array(bytes.buffer), Number)
      : new Float32Array(bytes.buffer);
    return tensor(values, { shape: found.shape });
  };
  return { read, names: new Set([...file.tensors.keys()].map((key) => key.split(".")[0]!)) };
}

/** The model's answer to a golden case. */
async function sample(model: CogVideoXTransformer3DModel, folder: string, name = "case0"): Promise<Float32Array> {
  const { read } = goldens(folder, name);
  const hiddenStates = read("in.hidden_states")!;
  return await toArray<"f32">(
    model.forward({
      hiddenStates,
      encoderHiddenStates: read("in.encoder_hidden_states")!,
      temb: model.condition({ timestep: read("in.timestep")!, ofs: read("in.ofs") }),
      imageRotaryEmb: model.rotaryEmbedding(sizeOf(hiddenStates)),
    }),
  );
}

function sizeOf({ shape }: Tensor): { frames: number; height: number; width: number } {
  return { frames: shape[1]!, height: shape[3]!, width: shape[4]! };
}

const expected = (folder: string, name = "case0") => toArray<"f32">(goldens(folder, name).read("out.sample")!);

/** 10 log10 of the power of a signal over that of what differs from it. */
function sqnr(signal: ArrayLike<number>, noisy: ArrayLike<number>): number {
  let [power, noise] = [0, 0];
  for (let i = 0; i < signal.length; i++) {
    power += signal[i]! ** 2;
    noise += (signal[i]! - noisy[i]!) ** 2;
  }
  return 10 * Math.log10(power / noise);
}

const names = (model: CogVideoXTransformer3DModel) => [...model.namedParameters()].map(([name]) => name).sort();

for (const folder of FOLDERS) {
  Deno.test(`one projection of q, k and v gives what three give, and can be taken apart again: ${folder}`, async () => {
    const model = await CogVideoXTransformer3DModel.load(`${FIXTURES}/${folder}`);
    const [before, wanted] = [names(model), await sample(model, folder)];
    model.fuseQkvProjections();
    assert.ok(names(model).includes("transformer_blocks.0.attn1.to_qkv.weight"));
    assert.ok(!names(model).some((name) => /\.to_[qkv]\./.test(name)));
    assert.deepEqual(await sample(model, folder), wanted);
    model.fuseQkvProjections();
    model.unfuseQkvProjections();
    assert.deepEqual(names(model), before);
    assert.deepEqual(await sample(model, folder), wanted);
  });
}

for (const folder of ["cogvideox-5b-mini", "cogvideox-5b-sizes-mini", "cogvideox-1.5-mini", "cogvideox-learned-mini"]) {
  Deno.test(`rotary positions are those of diffusers' pipeline: ${folder}`, async () => {
    const model = await CogVideoXTransformer3DModel.load(`${FIXTURES}/${folder}`, { weights: false });
    for (const name of goldens(folder).names) {
      const { read } = goldens(folder, name);
      const rope = model.rotaryEmbedding(sizeOf(read("in.hidden_states")!))!;
      for (
        const [actual, wanted] of [[rope.cos, read("in.rotary_cos")!], [rope.sin, read("in.rotary_sin")!]] as const
      ) {
        assert.deepEqual(actual.shape, wanted.shape);
        const [a, b] = [await toArray<"f32">(actual), await toArray<"f32">(wanted)];
        // One last place of the largest angle.
        const largest = a.reduce((most, x, i) => Math.max(most, Math.abs(x - b[i]!)), 0);
        assert.ok(largest < 1e-6, `${name}: ${largest}`);
      }
    }
  });
}

Deno.test("one condition for all rows, selected from those of all steps, gives what each row's own gives", async () => {
  const folder = "cogvideox-2b-mini";
  const model = await CogVideoXTransformer3DModel.load(`${FIXTURES}/${folder}`);
  const { read } = goldens(folder);
  const step = compileFunction(
    (inputs: Record<"hiddenStates" | "encoderHiddenStates" | "timesteps" | "row", Tensor>) => ({
      sample: model.forward({
        ...inputs,
        temb: embedding(inputs.row, model.condition({ timestep: inputs.timesteps })),
      }),
    }),
    { varying: ["hiddenStates", "row"] },
  );
  const fixed = {
    hiddenStates: read("in.hidden_states")!,
    encoderHiddenStates: read("in.encoder_hidden_states")!,
    timesteps: tensor([999, 500, 3]),
  };
  for (const [row, timestep] of [999, 500, 3].entries()) {
    const found = await step.run({ ...fixed, row: tensor([row], { dtype: "i32" }) });
    const wanted = await toArray<"f32">(
      model.forward({ ...fixed, temb: model.condition({ timestep: tensor([timestep, timestep]) }) }),
    );
    assert.ok(sqnr(wanted, await toArray<"f32">(found.sample)) > 110, `timestep ${timestep}`);
  }
});

Deno.test("a model in two files is the model in one; a projection of all three is found in a checkpoint", async () => {
  const source = `${FIXTURES}/cogvideox-5b-mini`;
  const wanted = await sample(await CogVideoXTransformer3DModel.load(source), "cogvideox-5b-mini");
  await withFolder(async (folder) => {
    const file = openSafetensors(`${source}/diffusion_pytorch_model.safetensors`);
    const entries = [...file.tensors].map(([name, { dtype, shape }]) => ({
      name,
      dtype,
      shape,
      data: readTensor(file, name),
    }));
    const half = entries.length >> 1;
    const shards = [entries.slice(0, half), entries.slice(half)];
    const shardName = (i: number) => `diffusion_pytorch_model-0000${i + 1}-of-00002.safetensors`;
    for (const [i, shard] of shards.entries()) await writeSafetensors(`${folder}/${shardName(i)}`, shard);
    await Deno.writeTextFile(
      `${folder}/diffusion_pytorch_model.safetensors.index.json`,
      JSON.stringify({
        metadata: {},
        weight_map: Object.fromEntries(shards.flatMap((shard, i) => shard.map(({ name }) => [name, shardName(i)]))),
      }),
    );
    await Deno.copyFile(`${source}/config.json`, `${folder}/config.json`);
    assert.deepEqual(await sample(await CogVideoXTransformer3DModel.load(folder), "cogvideox-5b-mini"), wanted);

    for (const [i] of shards.entries()) await Deno.remove(`${folder}/${shardName(i)}`);
    await Deno.remove(`${folder}/diffusion_pytorch_model.safetensors.index.json`);
    const joined = (kind: string) => (["q", "k", "v"] as const).map((p) => ({ part: p, kind }));
    const fused = entries.filter(({ name }) => !/\.to_[kv]\./.test(name)).map((entry) => {
      if (!/\.to_q\./.test(entry.name)) return entry;
      const parts = joined("").map(({ part }) =>
        entries.find(({ name }) => name === entry.name.replace(".to_q.", `.to_${part}.`))!
      );
      const data = new Uint8Array(parts.reduce((sum, part) => sum + part.data.length, 0));
      parts.reduce((at, part) => (data.set(part.data, at), at + part.data.length), 0);
      const shape = [entry.shape[0]! * 3, ...entry.shape.slice(1)];
      return { ...entry, name: entry.name.replace(".to_q.", ".to_qkv."), shape, data };
    });
    await writeSafetensors(`${folder}/diffusion_pytorch_model.safetensors`, fused);
    assert.deepEqual(await sample(await CogVideoXTransformer3DModel.load(folder), "cogvideox-5b-mini"), wanted);

    await writeSafetensors(`${folder}/diffusion_pytorch_model.safetensors`, entries.slice(1));
    await assert.rejects(CogVideoXTransformer3DModel.load(folder), CheckpointError);
  });
});

Deno.test("configurations that contradict themselves are refused by the field", () => {
  const refused: [string, Record<string, unknown>][] = [
    ["use_learned_positional_embeddings", { use_learned_positional_embeddings: true }],
    ["attention_head_dim", { use_rotary_positional_embeddings: true, attention_head_dim: 24 }],
    ["num_attention_heads", { num_attention_heads: 3, attention_head_dim: 8 }],
    ["patch_size_t", { patch_size_t: 2 }],
    ["ofs_embed_dim", { ofs_embed_dim: 256 }],
    ["spatial_interpolation_scale", { spatial_interpolation_scale: 0 }],
    ["activation_fn", { activation_fn: "tanh" }],
    ["timestep_activation_fn", { timestep_activation_fn: "swiglu" }],
    ["num_layers", { num_layers: -1 }],
    ["patch_bias", { patch_bias: 1 }],
  ];
  for (const [key, fields] of refused) {
    assert.throws(() => new CogVideoXTransformer3DModel(new ModelConfig(fields, "config.json")), (error) => {
      assert.ok(error instanceof ConfigError, `${error}`);
      assert.deepEqual([error.key, error.file], [key, "config.json"]);
      return error.message.includes(key) || error.message.includes("features");
    }, key);
  }
});

Deno.test("latents, texts and offsets that do not fit are refused in words", async () => {
  const load = (folder: string) => CogVideoXTransformer3DModel.load(`${FIXTURES}/${folder}`);
  const inputs = (model: CogVideoXTransformer3DModel, latents: number[], tokens = 5) => ({
    hiddenStates: tensor(new Float32Array(latents.reduce((a, b) => a * b)), { shape: latents }),
    encoderHiddenStates: tensor(new Float32Array(tokens * 8), { shape: [1, tokens, 8] }),
    temb: tensor(new Float32Array(model.config.timeEmbedDim), { shape: [1, model.config.timeEmbedDim] }),
  });
  const learned = await load("cogvideox-learned-mini");
  assert.throws(() => learned.forward(inputs(learned, [1, 3, 4, 8, 10])), /learned the positions of 8 x 12/);
  assert.throws(() => learned.forward(inputs(learned, [1, 3, 4, 8, 12], 6)), /learned the positions of 5/);
  const later = await load("cogvideox-1.5-mini");
  assert.throws(() => later.forward(inputs(later, [1, 3, 4, 8, 12])), /whole patches/);
  assert.throws(() => later.condition({ timestep: tensor([1]) }), /ofs/);
  assert.throws(() => later.rotaryEmbedding({ frames: 2, height: 10, width: 12 }), RangeError);
  const fixed = await load("cogvideox-2b-mini");
  assert.equal(fixed.rotaryEmbedding({ frames: 2, height: 10, width: 12 }), undefined);
});

/** What the outputs of the small models keep of their power at least, in dB: random weights bear less than trained ones. */
const QUALITY: Readonly<Record<string, number>> = {
  int8wo: 35,
  int8dq: 30,
  int4wo: 12,
  int4dq: 12,
  fp8wo: 24,
  fp8dq: 20,
  fp8dqrow: 20,
  fp6_e3m2: 16,
  fp5_e2m2: 16,
  fp4_e2m1: 10,
};

for (const folder of ["cogvideox-2b-mini", "cogvideox-5b-mini", "cogvideox-1.5-mini"]) {
  Deno.test(`every scheme leaves the model near itself, fused before or after: ${folder}`, async () => {
    const load = () => CogVideoXTransformer3DModel.load(`${FIXTURES}/${folder}`);
    const wanted = await expected(folder);
    for (const { name: scheme } of SCHEMES) {
      const [model, fused] = [await load(), await load()];
      const { quantized } = quantize(model, scheme, { groupSize: 32 });
      assert.ok(quantized.length >= 2, `${scheme}: ${quantized.length} layers`);
      const apart = await sample(model, folder);
      model.fuseQkvProjections();
      const joined = await sample(model, folder);
      fused.fuseQkvProjections();
      quantize(fused, scheme, { groupSize: 32 });
      for (const found of [apart, joined, await sample(fused, folder)]) {
        const db = sqnr(wanted, found);
        assert.ok(db > QUALITY[scheme]! && db < 80, `${scheme}: ${db} dB`);
      }
    }
  });
}

Deno.test("T5 with CogVideoX's 226 tokens computes with every scheme what its codes stand for", async () => {
  for (const { name: scheme } of SCHEMES) {
    const model = await T5EncoderModel.load(`${FIXTURES}/t5-mini`);
    const ids = Int32Array.from({ length: 2 * 226 }, (_, i) => (i * 7919 + 3) % model.config.vocabSize);
    const encode = () =>
      toArray<"f32">(model.forward({ inputIds: tensor(ids, { shape: [2, 226], dtype: "i32" }) }).lastHiddenState);
    const { quantized } = quantize(model, scheme, { groupSize: 32 });
    assert.ok(quantized.length > 0, scheme);
    const found = await encode();
    const names = await dequantize(model);
    assert.deepEqual(names, quantized.map(({ name }) => name));
    const db = sqnr(await encode(), found);
    // Inputs in eight bits move the scores of this random T5, which nothing scales, by much.
    assert.ok(db > (/dq/.test(scheme) ? 5 : 90), `${scheme}: ${db} dB`);
  }
});
