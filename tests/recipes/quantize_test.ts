import assert from "node:assert/strict";
import { Image } from "../../lib/media/image.ts";
import { psnr } from "../../lib/media/metrics.ts";
import { floatPicture, runRecipe } from "./recipe.ts";

const OUT = "out/quantize.png";

Deno.test("quantize.ts says what it left alone and what it saved, and draws", async () => {
  await Deno.remove(OUT).catch(() => {}); // of an earlier run
  const { code, stdout, stderr } = await runRecipe("recipes/quantize.ts", "int8wo");
  assert.equal(code, 0, stderr);
  assert.match(stdout, /^proj_out +\d+ x \d+ +the filter leaves it out$/m);
  assert.match(stdout, /^\d+ int8wo, 1 float$/m);
  assert.match(stdout, /^[\d.]+ MB to [\d.]+ MB$/m);
  assert.ok(psnr(await Image.open(OUT), await floatPicture()) > 35);
});

Deno.test("quantize.ts names a scheme that is none", async () => {
  const { code, stderr } = await runRecipe("recipes/quantize.ts", "int9");
  assert.equal(code, 1);
  assert.match(stderr, /Cannot use the scheme "int9": pass int8wo/);
});
