/**
 * Runs the conformance of the emulated CUDA kernels under the address and undefined-behaviour sanitizers:
 * `deno task sanitize`.
 *
 * @module
 */

import { fileURLToPath } from "node:url";
import { conformanceTests } from "./conformance.ts";

const kernels = new URL("../kernels/", import.meta.url);
const library = fileURLToPath(new URL("cuda/build/sanitized/libdenoise_cuda_emulated.so", kernels));

/** Runs a command whose failure is this program's. */
async function run(command: string, args: readonly string[], env: Record<string, string> = {}): Promise<void> {
  const { success, code } = await new Deno.Command(command, {
    args: [...args],
    cwd: kernels,
    env,
    stdout: "inherit",
    stderr: "inherit",
  }).spawn().status;
  if (!success) Deno.exit(code);
}

/** Where a compiler keeps a library of its own. */
async function runtimeLibrary(name: string): Promise<string> {
  const { stdout } = await new Deno.Command(Deno.env.get("CXX") || "g++", { args: [`-print-file-name=${name}`] })
    .output();
  return new TextDecoder().decode(stdout).trim();
}

await run("deno", ["run", "--allow-all", "../tools/build_cuda.ts", "--emulated", "--sanitize"]);
const preload = (await Promise.all(["libasan.so", "libubsan.so"].map(runtimeLibrary))).join(":");
// The tests alone, not what builds them; the sanitizers' libraries must be there before the one that needs them.
const runner = ["env", `LD_PRELOAD=${preload}`, "ASAN_OPTIONS=detect_leaks=0", "UBSAN_OPTIONS=halt_on_error=1"];
const tests = (await conformanceTests()).flatMap((name) => ["--test", name]);
await run(
  "cargo",
  ["test", "--release", "--locked", "--config", `target."cfg(unix)".runner = ${JSON.stringify(runner)}`, ...tests],
  { DENOISE_CUDA_LIBRARY: library, DENOISE_TEST_LEVELS: "cuda-emulated", DENOISE_TEST_EVERY: "5" },
);
