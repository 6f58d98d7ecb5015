import assert from "node:assert/strict";
import { measureRoute } from "../../bench/memory.ts";
import { writeRandomModel } from "../../bench/random_model.ts";
import { ModelConfig } from "../../lib/models/config.ts";
import { FluxTransformer2DModel } from "../../lib/models/flux_transformer_2d_model.ts";
import { saveModel } from "../../lib/nn/save.ts";
import { quantize } from "../../lib/quantize/quantize.ts";
import { withFolder } from "../folder.ts";

/** Two blocks of two thirds of Flux's width: half a gigabyte in bf16. */
const CONFIG = {
  _class_name: "FluxTransformer2DModel",
  num_attention_heads: 16,
  num_layers: 1,
  num_single_layers: 2,
  guidance_embeds: true,
};

const MB = 1e6;

Deno.test({
  name: "a model that is quantized as it is read takes its quantized size, the largest parameter, and 200 MB at most",
  // Only Linux says how much of a process's memory is its own.
  ignore: Deno.build.os !== "linux",
  fn: async () => {
    await withFolder(async (folder) => {
      await writeRandomModel(`${folder}/floats`, new FluxTransformer2DModel(new ModelConfig(CONFIG, "config.json")));
      const model = await FluxTransformer2DModel.load(`${folder}/floats`);
      const { quantized } = quantize(model, "int8wo");
      const floats = quantized.reduce((sum, { bytesBefore }) => sum + bytesBefore, 0);
      const size = quantized.reduce((sum, { bytes }) => sum + bytes, 0);
      const largest = Math.max(...quantized.map(({ bytesBefore }) => bytesBefore));
      const bound = size + largest + 200 * MB;
      assert.ok(floats + size > bound + 100 * MB, "the model is large enough to tell");

      const costs = await measureRoute("as it is read", { folder: `${folder}/floats`, scheme: "int8wo" });
      assert.ok(costs.anonymous < bound, `${costs.anonymous / MB} MB, more than ${bound / MB} MB`);
      assert.ok(costs.mapped < floats / 2, `${costs.mapped / MB} MB of files stay mapped`);

      await saveModel(model, `${folder}/quantized`);
      const loaded = await measureRoute("loaded quantized", { folder: `${folder}/quantized`, scheme: "int8wo" });
      assert.ok(loaded.anonymous < bound, `${loaded.anonymous / MB} MB, more than ${bound / MB} MB`);
    });
  },
});
