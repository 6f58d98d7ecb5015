/**
 * What a machine with a GPU is for, in one command: `deno task gpu`. `--dry-run` tells what a denoising step will take
 * there, on any machine.
 *
 * @module
 */

import { parseArgs } from "node:util";
import type { Limits } from "../lib/graph/cost.ts";
import { schemeOf } from "../lib/quantize/schemes.ts";
import { describeForecasts, DRY_SCHEMES, H200 } from "./gpu/dry_run.ts";

/** Reads what a machine can do: TFLOP/s by type, and GB/s of memory as `bytes`; what is not named is an H200's. */
function limitsOf(text: string): Limits {
  const entries = text.split(",").map((entry) => {
    const [, name, value] = /^(bf16|fp8|int8|f32|bytes)=(\d+(?:\.\d+)?)$/.exec(entry) ?? [];
    if (name === undefined) {
      throw new RangeError(
        `Cannot use the limit ${JSON.stringify(entry)}: pass such as bf16=788,fp8=1576,int8=1576,f32=67 in TFLOP/s ` +
          "and bytes=4300 in GB/s",
      );
    }
    return [name, Number(value) * (name === "bytes" ? 1e9 : 1e12)];
  });
  return { ...H200, ...Object.fromEntries(entries) };
}

const { values: flags } = parseArgs({
  options: {
    "dry-run": { type: "boolean", default: false },
    all: { type: "boolean", default: false },
    scheme: { type: "string", default: DRY_SCHEMES.join() },
    "batch-size": { type: "string", default: "1" },
    limits: { type: "string" },
  },
});
if (flags["dry-run"]) {
  const schemes = flags.scheme.split(",");
  for (const scheme of schemes) if (scheme !== "none") schemeOf(scheme);
  const lines = describeForecasts({
    schemes,
    all: flags.all,
    batchSize: Number(flags["batch-size"]),
    limits: flags.limits === undefined ? H200 : limitsOf(flags.limits),
  });
  for await (const text of lines) console.log(text);
}
