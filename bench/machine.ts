/**
 * The machine that a benchmark runs on: what it is, and what it can do at most.
 *
 * @module
 */

import os from "node:os";
import { fileURLToPath } from "node:url";

/** The instruction sets that change how fast kernels can be, as Linux names them. */
const FLAGS = ["fma", "f16c", "avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16"];

/** The most that a machine was seen to do, on all threads at once. */
export interface Peak {
  /** Multiply-adds of f32, in GFLOP/s (two for each). */
  readonly f32: number;
  /** Multiply-adds of bf16 pairs into f32, in GFLOP/s; 0 where the CPU has no instruction for them. */
  readonly bf16: number;
  /** Multiply-adds of int8 into i32, in GFLOP/s; 0 where the CPU has no instruction for them. */
  readonly int8: number;
  /** Bytes read from memory, in GB/s. */
  readonly bytes: number;
}

/** What the largest cache of a large server is, where the system does not say. */
const LARGE_CACHE = 260e6;

/** Bytes of the machine's largest cache. */
export async function cacheBytes(): Promise<number> {
  const folder = "/sys/devices/system/cpu/cpu0/cache";
  const sizes: number[] = [];
  for (let index = 0;; index++) {
    const text = await Deno.readTextFile(`${folder}/index${index}/size`).catch(() => undefined);
    if (text === undefined) break;
    sizes.push(1024 * parseInt(text));
  }
  return sizes.length > 0 ? Math.max(...sizes) : LARGE_CACHE;
}

/** Threads that both sides of a comparison use. */
export const THREADS: number = navigator.hardwareConcurrency;

/** The machine in a sentence: CPU, instruction sets that matter, cores, memory. */
export async function describeMachine(): Promise<string> {
  const model = os.cpus()[0]?.model.trim() ?? "unknown CPU";
  let flags: string[] = [];
  try {
    const line = /^flags\s*:(.*)$/m.exec(await Deno.readTextFile("/proc/cpuinfo"))?.[1] ?? "";
    flags = line.split(" ").filter((flag) => FLAGS.includes(flag));
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
  }
  const memory = `${(os.totalmem() / 2 ** 30).toFixed(0)} GiB`;
  return [model, ...(flags.length > 0 ? [flags.join(" ")] : []), `${THREADS} threads`, memory].join(", ");
}

/** Measures what the machine can do at most; takes a second, and a few more to build `peak.rs` the first time. */
export async function measurePeak(): Promise<Peak> {
  const source = new URL("peak.rs", import.meta.url);
  const cache = new URL("../.cache/", import.meta.url);
  const binary = fileURLToPath(new URL("peak", cache));
  const modified = async (path: string | URL) => (await Deno.stat(path).catch(() => undefined))?.mtime?.getTime() ?? 0;
  if (await modified(binary) < await modified(source)) {
    await Deno.mkdir(cache, { recursive: true });
    await output("rustc", ["-O", "--edition", "2021", "-o", `${binary}.partial`, fileURLToPath(source)]);
    await Deno.rename(`${binary}.partial`, binary);
  }
  return JSON.parse(await output(binary, [String(THREADS)])) as Peak;
}

async function output(command: string, args: string[]): Promise<string> {
  const { success, stdout } = await new Deno.Command(command, { args, stderr: "inherit" }).output();
  if (!success) throw new Error(`${command} ${args.join(" ")} failed`);
  return new TextDecoder().decode(stdout);
}

/** Prints what a benchmark ran on, above its table. */
export async function printMachine(peak?: Peak): Promise<void> {
  console.log(`\n${await describeMachine()}`);
  if (!peak) return;
  const bf16 = peak.bf16 > 0 ? `, bf16 ${peak.bf16.toFixed(0)} GFLOP/s` : "";
  const int8 = peak.int8 > 0 ? `, int8 ${peak.int8.toFixed(0)} GOP/s` : "";
  console.log(
    `measured peak: f32 ${peak.f32.toFixed(0)} GFLOP/s${bf16}${int8}, memory reads ${peak.bytes.toFixed(0)} GB/s`,
  );
}
