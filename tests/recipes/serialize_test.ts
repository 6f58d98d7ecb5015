import assert from "node:assert/strict";
import { openCheckpoint } from "../../lib/tensor/safetensors.ts";
import { runRecipe } from "./recipe.ts";

for (const scheme of ["int8dq", "int4wo"]) {
  Deno.test(`serialize.ts draws the same picture from what it saved in ${scheme}`, async () => {
    const folder = `out/shapes-flux-${scheme}`;
    await Deno.remove(folder, { recursive: true }).catch(() => {}); // of an earlier run
    const { code, stdout, stderr } = await runRecipe("recipes/serialize.ts", scheme);
    assert.equal(code, 0, stderr);
    assert.match(stdout, new RegExp(`^${folder}: \\d+ ${scheme}`, "m"));
    assert.match(stdout, /^largest difference: 0$/m);
    const { tensors } = openCheckpoint(`${folder}/transformer`);
    assert.ok(tensors.keys().some((name) => name.includes("qdata")));
    await Deno.remove(folder, { recursive: true });
  });
}
