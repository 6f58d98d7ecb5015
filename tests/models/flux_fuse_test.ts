import assert from "node:assert/strict";
import { FluxTransformer2DModel } from "../../lib/models/flux_transformer_2d_model.ts";
import { toArray } from "../../lib/tensor/realize.ts";
import { openSafetensors, readTensor } from "../../lib/tensor/safetensors.ts";
import { tensor } from "../../lib/tensor/source.ts";

const FOLDER = "tests/fixtures/flux-dev-mini";

/** The model's answer to the first golden case. */
async function sample(model: FluxTransformer2DModel): Promise<Float32Array> {
  const file = openSafetensors(`${FOLDER}/cases.safetensors`);
  const input = (name: string) => {
    const key = `case0.in.${name}`;
    const { shape } = file.tensors.get(key)!;
    const bytes = new Uint8Array(readTensor(file, key));
    return tensor(new Float32Array(bytes.buffer), { shape });
  };
  const temb = model.conditionOfEach({
    timestep: input("timestep"),
    guidance: input("guidance"),
    pooledProjections: input("pooled_projections"),
  });
  return await toArray<"f32">(model.forward({
    hiddenStates: input("hidden_states"),
    encoderHiddenStates: input("encoder_hidden_states"),
    temb,
    imgIds: input("img_ids"),
    txtIds: input("txt_ids"),
  }));
}

const names = (model: FluxTransformer2DModel) => [...model.namedParameters()].map(([name]) => name).sort();

Deno.test("one projection of q, k and v gives what three give, and can be taken apart again", async () => {
  const model = await FluxTransformer2DModel.load(FOLDER);
  const [before, wanted] = [names(model), await sample(model)];
  model.fuseQkvProjections();
  assert.ok(names(model).includes("transformer_blocks.0.attn.to_qkv.weight"));
  assert.ok(names(model).includes("transformer_blocks.0.attn.to_added_qkv.bias"));
  assert.ok(!names(model).some((name) => /\.to_q\.|add_k_proj/.test(name)));
  assert.deepEqual(await sample(model), wanted);
  model.fuseQkvProjections();
  model.unfuseQkvProjections();
  assert.deepEqual(names(model), before);
  assert.deepEqual(await sample(model), wanted);
});
