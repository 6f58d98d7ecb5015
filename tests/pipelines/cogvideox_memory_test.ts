import assert from "node:assert/strict";
import { measurePhases } from "../../bench/video_memory.ts";
import { withFolder } from "../folder.ts";

/** By what part of the plan a measured peak may differ from it. */
const TOLERANCE = 0.1;

for (const memoryBudget of [undefined, 700e6]) {
  const name = memoryBudget === undefined ? "whole" : "within a budget";
  Deno.test({
    name: `every phase takes the memory that the plan says, within a tenth: decoded ${name}`,
    // Only Linux says how much memory a process has had since it was asked last.
    ignore: Deno.build.os !== "linux",
    fn: async () => {
      await withFolder(async (folder) => {
        const phases = await measurePhases(folder, { memoryBudget });
        assert.deepEqual(phases.map(({ phase }) => phase), ["textEncoding", "denoising", "decoding"]);
        for (const { phase, planned, measured } of phases) {
          assert.ok(planned > 150e6, `${phase}: ${planned} bytes are enough to tell`);
          const difference = measured / planned - 1;
          assert.ok(Math.abs(difference) < TOLERANCE, `${phase}: planned ${planned}, took ${measured} bytes`);
        }
      });
    },
  });
}
