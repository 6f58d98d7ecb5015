import assert from "node:assert/strict";
import { describeForecasts, forecastStep, groupLaunches, H200 } from "../../tools/gpu/dry_run.ts";
import { FLUX_SMALL } from "../../tools/gpu/flux_dev.ts";

/** Operations of a Flux's step by hand: 12 matrices of D by D for each token of a block, and attention. */
function operationsOf({ dim, blocks, image, text, channels }: Record<string, number>): number {
  const tokens = image! + text!;
  const block = 2 * tokens * 12 * dim! ** 2 + 4 * tokens ** 2 * dim!;
  return blocks! * block + 2 * image! * 2 * channels! * dim!;
}

const sum = (values: readonly number[]) => values.reduce((a, b) => a + b, 0);
const near = (found: number, wanted: number, share: number) =>
  assert.ok(Math.abs(found / wanted - 1) <= share, `${found} is not within ${share} of ${wanted}`);

const DEV = operationsOf({ dim: 3072, blocks: 57, image: 4096, text: 512, channels: 64 });

Deno.test("a step of Flux.1-dev takes 74.4 TFLOP, and its linear layers' weights once", async () => {
  near(DEV, 74.4e12, 0.001);
  const { launches, weightBytes } = await forecastStep({ scheme: "none" });
  near(sum(launches.map(({ operations }) => operations)), DEV, 0.01);
  near(weightBytes, 2 * 11.9e9, 0.01);
  const count = (op: string) => launches.filter((launch) => launch.op === op).length;
  assert.equal(count("attention"), 57);
  // Two streams of 19 blocks have qkv, a projection and two of the feed-forward; 38 blocks qkv, mlp and a projection.
  assert.equal(count("linear"), 19 * 2 * 4 + 38 * 3 + 2);
  assert.equal(count("rms_norm_rope"), 2 * (2 * 19 + 38));
  const linears = launches.filter(({ op }) => op === "linear");
  assert.ok(linears.every(({ arithmetic }) => arithmetic === "bf16"));
  // Each layer's weight of 12 D x D a block and stream is read once a step.
  const weights = 2 * 3072 ** 2 * 12 * (2 * 19 + 38);
  assert.ok(sum(linears.map(({ bytes }) => bytes)) > weights);
  for (const { bytes, operations, arithmetic, seconds } of launches) {
    assert.equal(seconds, Math.max(bytes / H200.bytes, operations / H200[arithmetic]));
  }
});

for (
  const [scheme, arithmetic, share] of [["fp8dqrow", "fp8", 0.5], ["int8dq", "int8", 0.5], [
    "int4wo",
    "bf16",
    0.3,
  ]] as const
) {
  Deno.test(`a step in ${scheme} multiplies ${arithmetic} and reads less`, async () => {
    const { launches, weightBytes } = await forecastStep({ scheme });
    near(sum(launches.map(({ operations }) => operations)), DEV, 0.01);
    const linears = launches.filter(({ op }) => op === "quantized_linear");
    assert.equal(linears.length, 19 * 2 * 4 + 38 * 3 + 2);
    assert.ok(linears.every((launch) => launch.arithmetic === arithmetic));
    assert.ok(launches.every(({ op }) => op !== "linear"));
    assert.ok(weightBytes < (share + 0.03) * 2 * 11.9e9, `${weightBytes} bytes of weights`);
  });
}

Deno.test("a batch of four takes four times the arithmetic and reads weights once", async () => {
  const [one, four] = await Promise.all(
    [1, 4].map((batchSize) => forecastStep({ scheme: "none", batchSize, size: FLUX_SMALL })),
  );
  const operations = (of: typeof one) => sum(of!.launches.map((launch) => launch.operations));
  near(operations(four), 4 * operations(one), 0.01);
  assert.equal(four!.weightBytes, one!.weightBytes);
});

Deno.test("rows of alike launches sum to all of them, and a text tells both", async () => {
  const { launches } = await forecastStep({ scheme: "fp8dqrow", size: FLUX_SMALL });
  const rows = groupLaunches(launches);
  assert.ok(rows.length < launches.length);
  for (const field of ["count", "bytes", "operations", "seconds"] as const) {
    near(sum(rows.map((row) => row[field])), sum(launches.map((launch) => launch[field])), 1e-12);
  }
  const lines = async (all: boolean) => {
    const text = await Array.fromAsync(describeForecasts({ schemes: ["fp8dqrow"], size: FLUX_SMALL, all }));
    return text.join("\n").split("\n");
  };
  assert.equal((await lines(true)).length - (await lines(false)).length, launches.length - rows.length);
  assert.match((await lines(false)).at(-1)!, new RegExp(`^fp8dqrow: ${launches.length} launches a step, `));
});
