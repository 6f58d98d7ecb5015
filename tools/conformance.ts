/**
 * The executables of the tests that hold kernels to their reference, which run where there is no Rust.
 *
 * @module
 */

import { fileURLToPath } from "node:url";

const kernels = new URL("../kernels/", import.meta.url);

/** Where {@linkcode buildConformance} puts the executables, each by its test's name. */
export const CONFORMANCE: URL = new URL("target/conformance/", kernels);

/**
 * The tests that compare levels.
 *
 * @returns Their names; not that of the faults, which are built and seen on a host
 */
export async function conformanceTests(): Promise<string[]> {
  const tests: string[] = [];
  for await (const { name, isFile } of Deno.readDir(new URL("tests", kernels))) {
    if (!isFile || name === "cuda_faults.rs") continue;
    const text = await Deno.readTextFile(new URL(`tests/${name}`, kernels));
    if (text.includes("mod common;")) tests.push(name.replace(/\.rs$/, ""));
  }
  return tests.sort();
}

/** Builds the executables. */
export async function buildConformance(): Promise<void> {
  const tests = await conformanceTests();
  const { success, stdout } = await new Deno.Command("cargo", {
    args: [
      "test",
      "--release",
      "--locked",
      "--no-run",
      "--message-format=json",
      ...tests.flatMap((t) => ["--test", t]),
    ],
    cwd: kernels,
    stderr: "inherit",
  }).output();
  if (!success) throw new Error("Cannot build the conformance tests: see what cargo says");
  await Deno.mkdir(CONFORMANCE, { recursive: true });
  for (const line of new TextDecoder().decode(stdout).split("\n").filter(Boolean)) {
    const { executable, target } = JSON.parse(line) as { executable?: string | null; target?: { name: string } };
    if (executable && target && tests.includes(target.name)) {
      await Deno.copyFile(executable, new URL(target.name, CONFORMANCE));
    }
  }
}

/** What came of a test's executable. */
export interface ConformanceOutcome {
  /** How many of its tests passed and failed. */
  readonly passed: number;
  readonly failed: number;
  /** What the first that failed said; what the program said last, where it ended without a count. */
  readonly said: string;
}

/**
 * Runs a test's executable on one level.
 *
 * @param test The test's name
 * @param options The level and the CUDA library that it means, how many cases are left out, what runs the executable
 * @returns What came of it
 */
export async function runConformance(
  test: string,
  options: { level: string; library: string; every: number; runner?: readonly string[] },
): Promise<ConformanceOutcome> {
  const { level, library, every, runner = [] } = options;
  const [command, ...args] = [...runner, fileURLToPath(new URL(test, CONFORMANCE))];
  const { code, stdout, stderr } = await new Deno.Command(command!, {
    args,
    env: { DENOISE_CUDA_LIBRARY: library, DENOISE_TEST_LEVELS: level, DENOISE_TEST_EVERY: String(every) },
  }).output();
  const text = [stdout, stderr].map((bytes) => new TextDecoder().decode(bytes)).join("\n");
  const [, passed, failed] = /test result: \w+\. (\d+) passed; (\d+) failed/.exec(text) ?? [];
  if (passed !== undefined) {
    const said = /panicked at [^\n]*\n([^\n]*)/.exec(text)?.[1] ?? "";
    // What watches the executable fails where its tests do not.
    const watched = code !== 0 && failed === "0" ? text.trim().split("\n").slice(-3).join(" ") : said;
    return { passed: Number(passed), failed: Math.max(Number(failed), code === 0 ? 0 : 1), said: watched };
  }
  return { passed: 0, failed: 1, said: `exit code ${code}: ${text.trim().split("\n").slice(-3).join(" ")}` };
}
