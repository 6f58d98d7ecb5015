import assert from "node:assert/strict";
import { Image } from "../../lib/media/image.ts";
import { QuantizationPlan } from "../../lib/quantize/plan.ts";
import { checkPicture } from "../picture_check.ts";
import { runRecipe } from "./recipe.ts";

Deno.test("autoquant.ts prints and keeps the plan, and draws", async () => {
  const files = ["out/autoquant.json", "out/autoquant.png"] as const;
  for (const file of files) await Deno.remove(file).catch(() => {}); // of an earlier run
  const { code, stdout, stderr } = await runRecipe("recipes/autoquant.ts", "28");
  assert.equal(code, 0, stderr);
  assert.match(
    stdout,
    /^transformer\.single_transformer_blocks\.0\.proj_out +\w+ +[\d.]* +128 x 256 x 1280, gate, residual/m,
  );
  const plan = await QuantizationPlan.load(files[0]);
  assert.equal(plan.header!.minSqnrDb, 28);
  assert.ok(plan.layers.some(({ scheme }) => scheme !== "none"));
  assert.ok(plan.layers.every(({ sqnrDb = 28 }) => sqnrDb >= 28));
  assert.deepEqual(checkPicture("a large red star on a navy background", await Image.open(files[1])), []);
});

Deno.test("autoquant.ts refuses a bound that is no number", async () => {
  const { code, stderr } = await runRecipe("recipes/autoquant.ts", "much");
  assert.equal(code, 1);
  assert.match(stderr, /minSqnrDb of NaN: pass a finite number of dB/);
});
