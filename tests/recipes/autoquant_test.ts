import assert from "node:assert/strict";
import { Image } from "../../lib/media/image.ts";
import { QuantizationPlan } from "../../lib/quantize/plan.ts";
import { withFolder } from "../folder.ts";
import { checkPicture } from "../picture_check.ts";
import { runRecipe } from "./recipe.ts";

Deno.test("autoquant.ts keeps a plan, which the inference recipe applies", async () => {
  await Deno.remove("out/plan.json").catch(() => {}); // of an earlier run
  const { code, stdout, stderr } = await runRecipe("recipes/autoquant.ts", "36");
  assert.equal(code, 0, stderr);
  const plan = await QuantizationPlan.load("out/plan.json");
  assert.equal(plan.header?.minSqnrDb, 36);
  for (const { layer } of plan.table()) assert.ok(stdout.includes(layer), layer);
  const prompt = "a large red star on a navy background";
  assert.deepEqual(checkPicture(prompt, await Image.open("out/autoquant.png")), []);

  await withFolder(async (folder) => {
    const flags = ["--plan", "out/plan.json", "--json", "--out", `${folder}/star.png`];
    const inference = await runRecipe("recipes/inference.ts", ...flags);
    assert.equal(inference.code, 0, inference.stderr);
    // What the recipe printed is what the plan says, and what the other recipe has of it.
    const { quantization } = JSON.parse(inference.stdout);
    assert.ok(stdout.split("\n").includes(quantization), `${quantization}\n${stdout}`);
    const [a, b] = await Promise.all([Image.open("out/autoquant.png"), Image.open(`${folder}/star.png`)]);
    assert.deepEqual(a.data, b.data);
  });
});
