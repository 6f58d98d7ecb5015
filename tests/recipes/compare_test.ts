import assert from "node:assert/strict";
import { Image } from "../../lib/media/image.ts";
import { runRecipe } from "./recipe.ts";

const OUT = "out/compare.png";

Deno.test("compare.ts has a row and a picture for each scheme", async () => {
  await Deno.remove(OUT).catch(() => {}); // of an earlier run
  const { code, stdout, stderr } = await runRecipe("recipes/compare.ts", "int8wo", "fp4_e2m1");
  assert.equal(code, 0, stderr);
  const rows = stdout.trim().split("\n").slice(1).map((line) => line.split(/ {2,}/));
  assert.deepEqual(rows.map(([scheme]) => scheme), ["float", "int8wo", "fp4_e2m1"]);
  const [float, int8, fp4] = rows.map(([, weights, , psnr]) => ({ weights: parseFloat(weights!), psnr: psnr! }));
  assert.ok(float!.weights > int8!.weights && int8!.weights > fp4!.weights, stdout);
  assert.equal(float!.psnr, "Infinity dB");
  assert.ok(parseFloat(int8!.psnr) > parseFloat(fp4!.psnr), stdout);
  const { width, height } = await Image.open(OUT);
  assert.deepEqual([width, height], [3 * 130 - 2, 128]);
});
