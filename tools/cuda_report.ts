/**
 * What the CUDA compiler made of kernels: registers, spills, shared memory, and the tensor cores' instructions.
 *
 * @module
 */

import { fileURLToPath } from "node:url";

/** A kernel of a library. */
export interface KernelReport {
  /** The source it is from. */
  source: string;
  /** Its mangled name. */
  name: string;
  /** The architecture. */
  architecture: string;
  /** Registers of a thread. */
  registers: number;
  /** Bytes that a thread stores to and loads from local memory, as registers ran out. */
  spills: number;
  /** Bytes of a thread's own arrays that do not fit registers. */
  stack: number;
  /** Bytes of shared memory of a block, besides what a launch asks for. */
  shared: number;
}

/**
 * Reads a report.
 *
 * @param source The source that was compiled.
 * @param text What the compiler said, told `-Xptxas -v`.
 * @returns Its kernels.
 */
export function parseReport(source: string, text: string): KernelReport[] {
  const entry =
    /Compiling entry function '(\w+)' for '(\w+)'[\s\S]*?(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads[\s\S]*?Used (\d+) registers([^\n]*)/g;
  return [...text.matchAll(entry)].map(([, name, architecture, stack, stores, loads, registers, rest]) => ({
    source,
    name: name!,
    architecture: architecture!,
    registers: Number(registers),
    spills: Number(stores) + Number(loads),
    stack: Number(stack),
    shared: Number(rest!.match(/(\d+) bytes smem/)?.[1] ?? 0),
  }));
}

/**
 * Reads the reports of a build.
 *
 * @param folder The folder of its objects.
 * @returns All kernels; none where nothing was built there.
 */
export async function readReports(folder: URL): Promise<KernelReport[]> {
  const reports: KernelReport[] = [];
  try {
    for await (const { name } of Deno.readDir(folder)) {
      if (!name.endsWith(".o.log")) continue;
      reports.push(...parseReport(name.slice(0, -".o.log".length), await Deno.readTextFile(new URL(name, folder))));
    }
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
  }
  return reports;
}

/** Bytes of shared memory that a block may have, by architecture: CUDA's guide, technical specifications. */
export const SHARED_LIMIT: Readonly<Record<string, number>> = {
  sm_80: 163 << 10,
  sm_89: 99 << 10,
  sm_90a: 227 << 10,
  sm_100a: 227 << 10,
};

/** What says how much shared memory launches of a kernel ask for: `DENOISE_SHARED` in `device.cuh`. */
const DECLARED = "denoise_cuda_shared_";

/**
 * The shared memory that launches ask for at most, as the sources of a library declare it.
 *
 * @param library The library; no device is needed to read it
 * @returns Bytes by kernel
 */
export async function declaredShared(library: URL): Promise<Map<string, number>> {
  const path = fileURLToPath(library);
  const { stdout } = await new Deno.Command("nm", { args: ["-D", "--defined-only", path] }).output();
  const symbols = new TextDecoder().decode(stdout).matchAll(new RegExp(`\\b${DECLARED}(\\w+)$`, "gm"));
  const names = [...symbols].map(([, name]) => name!);
  if (names.length === 0) return new Map();
  const wanted = Object.fromEntries(names.map((name) => [`${DECLARED}${name}`, { type: "u32" as const }]));
  const opened = Deno.dlopen(path, wanted);
  const values = opened.symbols as Readonly<Record<string, number>>;
  const declared = new Map(names.map((name) => [name, values[`${DECLARED}${name}`]!]));
  opened.close();
  return declared;
}

/** The tensor cores' instructions: of bf16, of integers; of warp groups for floats, fp8, integers. */
export type TensorInstruction = "HMMA" | "IMMA" | "HGMMA" | "QGMMA" | "IGMMA";

/** What a kernel is made of. */
export interface KernelInstructions {
  /** Its mangled name. */
  readonly name: string;
  /** The architecture. */
  readonly architecture: string;
  /** How many of each of the tensor cores' instructions stand in it. */
  readonly counts: Partial<Record<TensorInstruction, number>>;
}

/**
 * Reads what `cuobjdump -sass` prints.
 *
 * @param text What it printed
 * @returns The kernels
 */
export function parseInstructions(text: string): KernelInstructions[] {
  const kernels: KernelInstructions[] = [];
  let architecture = "";
  for (const line of text.split("\n")) {
    architecture = /^\s*code for (sm_\w+)/.exec(line)?.[1] ?? architecture;
    const name = /^\s*Function : (\S+)/.exec(line)?.[1];
    if (name !== undefined) kernels.push({ name, architecture, counts: {} });
    // A predicate may stand before the instruction.
    const instruction = /^\s*\/\*[0-9a-f]+\*\/\s+(?:@!?U?P\w+\s+)?(HMMA|IMMA|HGMMA|QGMMA|IGMMA)\b/.exec(line)?.[1];
    if (instruction === undefined) continue;
    const { counts } = kernels.at(-1)!;
    counts[instruction as TensorInstruction] = (counts[instruction as TensorInstruction] ?? 0) + 1;
  }
  return kernels;
}

/**
 * The program that disassembles kernels.
 *
 * @returns The folder of the toolkit that has it; `undefined` where none has
 */
export async function findDisassembler(): Promise<string | undefined> {
  const packages = fileURLToPath(new URL("../kernels/cuda/build/toolkit/nvidia/cu13", import.meta.url));
  for (const home of [Deno.env.get("CUDA_HOME"), "/usr/local/cuda", packages]) {
    if (home && await Deno.stat(`${home}/bin/cuobjdump`).catch(() => undefined)) return home;
  }
  return undefined;
}

/**
 * Disassembles an object.
 *
 * @param object The object or library
 * @param toolkit The folder of a toolkit that has a disassembler
 * @returns Its kernels
 */
export async function readInstructions(object: string, toolkit: string): Promise<KernelInstructions[]> {
  const { success, stdout, stderr } = await new Deno.Command(`${toolkit}/bin/cuobjdump`, {
    args: ["-sass", object],
    // It runs another program of the same folder.
    env: { PATH: `${toolkit}/bin:${Deno.env.get("PATH")}` },
  }).output();
  const text = new TextDecoder();
  if (!success) throw new Error(`Cannot disassemble ${object}: ${text.decode(stderr)}`);
  return parseInstructions(text.decode(stdout));
}

/** The kernels of an object whose name has a part, and the instruction that each of them must have. */
export interface WantedInstruction {
  /** The source, as its object is named. */
  readonly source: string;
  /** A part of the kernels' names. */
  readonly kernel: string;
  /** The instruction. */
  readonly instruction: TensorInstruction;
}

/**
 * What kernels lack of what is wanted of them.
 *
 * @param source The source that they are from
 * @param kernels The kernels of its object
 * @param wanted What is wanted of all objects
 * @returns A sentence for each kernel that lacks an instruction, and for each that is not there
 */
export function missingInstructions(
  source: string,
  kernels: readonly KernelInstructions[],
  wanted: readonly WantedInstruction[],
): string[] {
  return wanted.filter((entry) => entry.source === source).flatMap(({ kernel, instruction }) => {
    const found = kernels.filter(({ name }) => name.includes(kernel));
    if (found.length === 0) return [`${source} has no ${kernel}`];
    return found.filter(({ counts }) => !counts[instruction])
      .map(({ name, architecture }) => `${name} of ${source} has no ${instruction} for ${architecture}`);
  });
}
