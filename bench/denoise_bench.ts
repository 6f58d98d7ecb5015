/**
 * Our own kernels and the demo's picture under `deno bench`, without a peer: `deno bench -A bench/denoise_bench.ts`.
 * The comparisons with PyTorch, where both sides take turns, are the other files of this folder.
 *
 * @module
 */

import { fileURLToPath } from "node:url";
import { compileFunction } from "../lib/tensor/function.ts";
import { attention } from "../lib/tensor/tensor.ts";
import { FluxPipeline } from "../mod.ts";
import { randomArgument, randomWeight } from "./tensors.ts";

for (const dtype of ["f32", "bf16"] as const) {
  const weight = randomWeight([3072, 3072], dtype);
  const multiply = compileFunction(({ x }) => ({ y: x!.linear(weight) }));
  for (const rows of [1, 64, 512]) {
    const x = randomArgument([rows, 3072], dtype);
    Deno.bench(`linear ${rows} x 3072 x 3072`, { group: `linear ${dtype}` }, async () => {
      await multiply.run({ x });
    });
  }

  const attend = compileFunction(({ q, k, v }) => ({ y: attention(q!, k!, v!) }));
  const [q, k, v] = [1, 2, 3].map(() => randomArgument([1, 24, 1024, 128], dtype));
  Deno.bench(`attention 24 x 128, 1024 tokens, ${dtype}`, { group: "attention" }, async () => {
    await attend.run({ q: q!, k: k!, v: v! });
  });

  const filter = randomWeight([256, 256, 3, 3], dtype);
  const convolve = compileFunction(({ x }) => ({ y: x!.conv2d(filter, { padding: 1 }) }));
  const picture = randomArgument([1, 128, 128, 256], dtype);
  Deno.bench(`conv2d 256 channels, 128 x 128, ${dtype}`, { group: "conv2d" }, async () => {
    await convolve.run({ x: picture });
  });

  const pipe = await FluxPipeline.load(fileURLToPath(new URL("../models/shapes-flux", import.meta.url)), { dtype });
  Deno.bench(`picture 128 x 128, 20 steps, ${dtype}`, { group: "picture" }, async () => {
    await pipe("a large red star on a navy background", { seed: 5, numInferenceSteps: 20, height: 128, width: 128 });
  });
}
