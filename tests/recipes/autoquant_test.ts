import assert from "node:assert/strict";
import { Image } from "../../lib/media/image.ts";
import { psnr } from "../../lib/media/metrics.ts";
import { QuantizationPlan } from "../../lib/quantize/plan.ts";
import { withFolder } from "../folder.ts";
import { floatPicture, runRecipe } from "./recipe.ts";

Deno.test("autoquant.ts keeps a plan, which the inference recipe applies", async () => {
  await Deno.remove("out/plan.json").catch(() => {}); // of an earlier run
  const { code, stdout, stderr } = await runRecipe("recipes/autoquant.ts", "30");
  assert.equal(code, 0, stderr);
  const plan = await QuantizationPlan.load("out/plan.json");
  assert.equal(plan.header?.minSqnrDb, 30);
  for (const { layer } of plan.table()) assert.ok(stdout.includes(layer), layer);
  assert.ok(psnr(await Image.open("out/autoquant.png"), await floatPicture()) > 25);

  await withFolder(async (folder) => {
    const flags = ["--plan", "out/plan.json", "--json", "--max-sequence-length", "64", "--out", `${folder}/star.png`];
    const inference = await runRecipe("recipes/inference.ts", ...flags);
    assert.equal(inference.code, 0, inference.stderr);
    // What the recipe printed is what the plan says, and what the other recipe has of it.
    const { quantization } = JSON.parse(inference.stdout);
    assert.ok(stdout.split("\n").includes(quantization), `${quantization}\n${stdout}`);
    const [a, b] = await Promise.all([Image.open("out/autoquant.png"), Image.open(`${folder}/star.png`)]);
    assert.deepEqual(a.data, b.data);
  });
});
