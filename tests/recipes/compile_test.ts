import assert from "node:assert/strict";
import { withFolder } from "../folder.ts";
import { runRecipe } from "./recipe.ts";

Deno.test("autotune prints what was tried, and measures nothing the second time", async () => {
  await withFolder(async (folder) => {
    Deno.env.set("DENOISE_AUTOTUNE_PATH", `${folder}/tuning.json`);
    try {
      const first = await runRecipe("recipes/autotune.ts", "--quantization", "int8dq");
      assert.equal(first.code, 0, first.stderr);
      assert.match(first.stdout, /^problem +chosen +others/);
      assert.match(first.stdout, /^linear f32 m=128 .* by shape \d+\.\d/m);
      assert.match(first.stdout, /^quantized_linear f32 .* by shape \d+\.\d/m);
      const second = await runRecipe("recipes/autotune.ts", "--quantization", "int8dq");
      assert.match(second.stdout, /^0 problems measured/m);
    } finally {
      Deno.env.delete("DENOISE_AUTOTUNE_PATH");
    }
  });
});

Deno.test("ahead_of_time makes its picture from the file that it wrote", async () => {
  const { code, stdout, stderr } = await runRecipe("recipes/ahead_of_time.ts", "int8wo");
  assert.equal(code, 0, stderr);
  assert.match(stdout, /^checkpoint +\S/m);
  assert.match(stdout, /^file +\S/m);
  assert.match(stdout, /compiled\.safetensors: \d/);
});
