import assert from "node:assert/strict";
import { autoquant } from "../../lib/compile/autoquant.ts";
import { type Calibratable, CALIBRATION, capture } from "../../lib/compile/capture.ts";
import { compile } from "../../lib/compile/compile.ts";
import { CogVideoXTransformer3DModel } from "../../lib/models/cogvideox_transformer_3d_model.ts";
import type { Module } from "../../lib/nn/module.ts";
import { quantize } from "../../lib/quantize/quantize.ts";
import { Device } from "../../lib/tensor/device.ts";
import { compileFunction } from "../../lib/tensor/function.ts";
import { Generator } from "../../lib/tensor/random.ts";
import { toArray } from "../../lib/tensor/realize.ts";
import { tensor } from "../../lib/tensor/source.ts";
import { concat, embedding, type Tensor } from "../../lib/tensor/tensor.ts";
import { withFolder } from "../folder.ts";

const FOLDER = "tests/fixtures/cogvideox-5b-mini";
const TEXT = 10;
const LATENTS = [1, 3, 8, 8, 12];

const random = (seed: number, shape: readonly number[]) => tensor(new Generator(seed).randn(shape), { shape });

/** The arguments of a step with guidance: latents, both texts, all timesteps, and which of them it is. */
type StepInputs = Record<"latents" | "text" | "negativeText" | "timesteps" | "row", Tensor>;

const inputsOf = (row: number): StepInputs => ({
  latents: random(1 + row, LATENTS),
  text: random(10, [1, TEXT, 20]),
  negativeText: random(11, [1, TEXT, 20]),
  timesteps: tensor([999, 400]),
  row: tensor([row], { dtype: "i32" }),
});

/** The guided prediction: both texts in one batch. */
const predict =
  (model: CogVideoXTransformer3DModel) => ({ latents, text, negativeText, timesteps, row }: StepInputs) => {
    const both = model.forward({
      hiddenStates: concat([latents, latents], 0),
      encoderHiddenStates: concat([negativeText, text], 0),
      temb: embedding(row, model.condition({ timestep: timesteps })),
      imageRotaryEmb: model.rotaryEmbedding({ frames: 3, height: 8, width: 12 }),
    });
    const [without, wanted] = both.chunk(2, 0) as [Tensor, Tensor];
    return { prediction: without.add(wanted.sub(without).mul(6)) };
  };

const VARYING = ["latents", "row"] as const;

/** What a pipeline of the model is to those who look at its layers. */
async function pipelineOf(transformer: CogVideoXTransformer3DModel): Promise<Calibratable> {
  return {
    model: FOLDER,
    device: await Device.default(),
    dtype: "f32",
    transformer,
    [CALIBRATION]: async (_prompts, { make, numInferenceSteps }) => {
      const step = make(predict(transformer), { name: "guided_transformer", varying: VARYING });
      const { text, negativeText, timesteps } = inputsOf(0);
      for (let row = 0; row < numInferenceSteps; row++) {
        await step.run({ ...inputsOf(row), text, negativeText, timesteps });
      }
    },
  };
}

const OPTIONS = { prompts: ["a red ball rolls"], numInferenceSteps: 2, seed: 0 };

Deno.test("what layers read of text and of video is captured, of both halves of guidance", async () => {
  const transformer = await CogVideoXTransformer3DModel.load(FOLDER);
  const seen = await capture(
    await pipelineOf(transformer),
    new Map([["transformer", transformer as Module]] as const),
    OPTIONS,
  );
  const rows = (layer: string) => seen.inputOf("transformer", layer)!.shape;
  assert.deepEqual(rows("patch_embed.text_proj"), [2 * 2 * TEXT, 20]);
  // 64 rows a step of a stream that has them, and all of one that has fewer.
  assert.deepEqual(rows("transformer_blocks.0.ff.net.2"), [2 * (2 * TEXT + 64), 256]);
  assert.deepEqual(rows("transformer_blocks.1.attn1.to_v"), [2 * 64, 64]);
  assert.equal(seen.functions.length, 1);
  assert.equal(seen.functions[0]!.calls, 2);
});

Deno.test("autoquant chooses for each of the transformer's layers, and its plan is what it says", async () => {
  const transformer = await CogVideoXTransformer3DModel.load(FOLDER);
  const pipe = await pipelineOf(transformer);
  const run = () => compileFunction(predict(transformer), { varying: VARYING }).run(inputsOf(0));
  const wanted = await toArray<"f32">((await run()).prediction);
  const minSqnrDb = 30;
  const plan = await autoquant(pipe, { ...OPTIONS, steps: 2, minSqnrDb, schemes: ["int8dq", "int8wo"] });
  const names = [...transformer.namedModules()].map(([name]) => name);
  assert.equal(plan.layers.length, 21);
  for (const { name, scheme, sqnrDb, problems } of plan.layers) {
    assert.ok(names.includes(name), name);
    if (scheme === "none") continue;
    assert.ok(sqnrDb! >= minSqnrDb, `${name}: ${sqnrDb} dB`);
    assert.ok(problems!.length > 0, name);
  }
  const ff = plan.layers.find(({ name }) => name === "transformer_blocks.0.ff.net.2")!;
  if (ff.scheme !== "none") {
    assert.deepEqual(new Set(ff.problems!.map(({ m, residual, gate }) => `${m} ${residual} ${gate}`)).size, 2);
  }
  const planned = await CogVideoXTransformer3DModel.load(FOLDER);
  plan.apply({ transformer: planned });
  const found = await toArray<"f32">((await run()).prediction);
  const again = await toArray<"f32">(
    (await compileFunction(predict(planned), { varying: VARYING }).run(inputsOf(0))).prediction,
  );
  assert.deepEqual(again, found);
  const error = found.reduce((sum, x, i) => sum + (x - wanted[i]!) ** 2, 0);
  assert.ok(error < 0.05 * wanted.reduce((sum, x) => sum + x * x, 0), `${error}`);
});

for (const scheme of [undefined, "int8dq", "int8wo"]) {
  Deno.test(`a step compiled by measurement computes what it computed: ${scheme ?? "floats"}`, async () => {
    await withFolder(async (folder) => {
      const transformer = await CogVideoXTransformer3DModel.load(FOLDER);
      if (scheme) quantize(transformer, scheme);
      const step = compileFunction(predict(transformer), { name: "transformer", varying: VARYING });
      const wanted = await toArray<"f32">((await step.run(inputsOf(0))).prediction);
      const options = { mode: "max-autotune", path: `${folder}/tuning.json`, runs: [inputsOf(0)] } as const;
      const compiled = await compile(step, options);
      assert.ok(compiled.tried.length > 0);
      const found = await toArray<"f32">((await step.run(inputsOf(0))).prediction);
      const error = found.reduce((sum, x, i) => sum + (x - wanted[i]!) ** 2, 0);
      assert.ok(error < 1e-9 * wanted.reduce((sum, x) => sum + x * x, 0), `${error}`);
      assert.equal((await compile(step, options)).measured, 0);
    });
  });
}
