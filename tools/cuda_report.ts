/**
 * What the CUDA compiler reports of kernels: registers, spills, shared memory.
 *
 * @module
 */

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
