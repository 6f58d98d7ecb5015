/**
 * Kernels of Flux's shapes beside what PyTorch reaches on the same device in the same run.
 *
 * @module
 */

import { fileURLToPath } from "node:url";
import { FLOAT, LINEAR_SHAPES, makeLinears, weightBytes } from "../../bench/linears.ts";
import { median } from "../../bench/measure.ts";
import { randomArgument, release } from "../../bench/tensors.ts";
import { compile } from "../../lib/compile/compile.ts";
import { type Cost, costOf } from "../../lib/graph/cost.ts";
import type { KernelName } from "../../lib/graph/schema.ts";
import { Device, type ProgramRun } from "../../lib/tensor/device.ts";
import { type CompiledFunction, compileFunction } from "../../lib/tensor/function.ts";
import { attention, type Tensor } from "../../lib/tensor/tensor.ts";
import { output, type Part, type Row, type Setting } from "./part.ts";

/** Rows of the multiplies: all tokens of 1024 by 1024 with their text, a text, a few, one. */
const ROWS = [4608, 512, 64, 1];
const SCHEMES = [FLOAT, "fp8dqrow", "int8dq", "int4wo"];
/** So much of weights is read between two uses of one that no cache of a card still has it. */
const COLD_BYTES = 256e6;
/** Calls that are timed. */
const CALLS = 20;

/** A problem: `fp8dqrow 4608x3072x12288` is rows, inputs, outputs; `attention 1x24x4608x128` tokens of heads. */
interface Problem {
  readonly name: string;
  readonly kind: string;
  readonly sizes: readonly number[];
}

const problem = (kind: string, ...sizes: number[]): Problem => ({ name: `${kind} ${sizes.join("x")}`, kind, sizes });

/** The problems of cells, which are of one kind and as many rows. */
function cellsOf({ small }: Setting): Map<string, Problem[]> {
  const linear = (kind: string, m: number, shapes: typeof LINEAR_SHAPES) =>
    [`${kind} ${m}`, shapes.map(([k, n]) => problem(kind, m, k, n))] as const;
  if (small) {
    const linears = ["float", "fp8dqrow"].map((kind) => linear(kind, 8, [[64, 128], [128, 64]]));
    return new Map([["attention", [problem("attention", 1, 2, 32, 64)]], ...linears]);
  }
  const linears = ROWS.flatMap((m) => SCHEMES.map((scheme) => linear(scheme, m, LINEAR_SHAPES)));
  return new Map([["attention", [problem("attention", 1, 24, 4608, 128)]], ...linears]);
}

/** Seconds of each kernel of a call, the median over calls, after the kernels were chosen by measurement. */
async function timeKernels<I extends Record<string, Tensor>>(
  fn: CompiledFunction<I, Record<string, Tensor>>,
  inputs: I,
  { out, small }: Setting,
): Promise<{ op: KernelName; cost: Cost; seconds: number }[]> {
  await compile(fn, { runs: [inputs], mode: "max-autotune", path: `${out}/tuning.json` });
  const device = await Device.default();
  // The first call packs weights.
  release(await fn.run(inputs));
  const runs: ProgramRun[] = [];
  device.observer = (run) => runs.push(run);
  for (let call = 0; call < (small ? 2 : CALLS); call++) release(await fn.run(inputs));
  device.observer = undefined;
  return runs[0]!.calls.map((call, i) => ({
    op: call.kernel,
    cost: costOf(call),
    seconds: median(runs.map(({ seconds }) => seconds[i]!)),
  }));
}

/** What the calls of the kernels that a problem is about took, and what else there was. */
function rowOf({ name }: Problem, calls: Awaited<ReturnType<typeof timeKernels>>, wanted: readonly KernelName[]): Row {
  const own = calls.filter(({ op }) => wanted.includes(op));
  const rows = calls.filter(({ op }) => op === "quantize_rows");
  const seconds = median(own.map((call) => call.seconds));
  const { bytes, operations } = own[0]!.cost;
  return {
    problem: name,
    us: 1e6 * seconds,
    tflops: operations / seconds / 1e12,
    gb_s: bytes / seconds / 1e9,
    quantize_us: rows.length > 0 ? 1e6 * median(rows.map((call) => call.seconds)) : 0,
  };
}

async function timeLinear(problem: Problem, setting: Setting): Promise<Row> {
  const { kind, sizes } = problem;
  const [m, k, n] = sizes as [number, number, number];
  const bytes = weightBytes(kind, { shape: [k, n], dtype: "bf16" });
  const count = setting.small ? 2 : Math.max(2, Math.ceil(COLD_BYTES / bytes));
  const { fn, inputs } = makeLinears(kind, { shape: [k, n], rows: m, dtype: "bf16", count });
  return rowOf(problem, await timeKernels(fn, inputs, setting), ["linear", "quantized_linear"]);
}

async function timeAttention(problem: Problem, setting: Setting): Promise<Row> {
  const [batch, heads, tokens, width] = problem.sizes as [number, number, number, number];
  // Heads lie side by side in a token, as projections write them.
  const [q, k, v] = [1, 2, 3].map(() => randomArgument([batch, tokens, heads, width], "bf16")) as [
    Tensor,
    Tensor,
    Tensor,
  ];
  const fn = compileFunction((given: { q: Tensor; k: Tensor; v: Tensor }) => {
    const [queries, keys, values] = [given.q, given.k, given.v].map((x) => x.permute(0, 2, 1, 3));
    return { y: attention(queries!, keys!, values!).permute(0, 2, 1, 3) };
  }, { name: "attention" });
  return rowOf(problem, await timeKernels(fn, { q, k, v }, setting), ["attention"]);
}

/** Kernels of denoise. */
export const kernels: Part = {
  name: "kernels",
  about: "multiplies at Flux's shapes and attention: TFLOP/s and GB/s, cold weights",
  beside: { part: "ceilings", columns: ["problem"], time: "us" },
  cells: (setting) => Promise.resolve([...cellsOf(setting).keys()]),
  run: async (cell, setting) => {
    const rows: Row[] = [];
    for (const problem of cellsOf(setting).get(cell)!) {
      rows.push(await (problem.kind === "attention" ? timeAttention : timeLinear)(problem, setting));
    }
    return rows;
  },
};

const SCRIPT = fileURLToPath(new URL("ceilings.py", import.meta.url));

/** What PyTorch reaches, and what memory does. */
export const ceilings: Part = {
  name: "ceilings",
  about: "the same by PyTorch: matmul, _scaled_mm by row, _int_mm, scaled_dot_product_attention; a copy of memory",
  cells: (setting) => {
    // PyTorch has no multiply by codes of four bits to hold ours against.
    const cells = [...cellsOf(setting).keys()].filter((cell) => !cell.startsWith("int4wo"));
    return Promise.resolve(["copy", ...cells]);
  },
  run: async (cell, setting) => {
    const { device, small, python } = setting;
    const place = device === "cuda-emulated" ? "cpu" : device;
    const problems = cellsOf(setting).get(cell)?.map(({ name }) => name) ?? [cell];
    const args = ["--device", place, "--calls", String(small ? 3 : CALLS), ...problems];
    return JSON.parse(await output([python, SCRIPT, ...args], { seconds: 300 })) as Row[];
  },
};
