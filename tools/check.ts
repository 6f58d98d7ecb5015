/**
 * The checks besides the tests, each counted: `deno task check`.
 *
 * @module
 */

const COVERAGE = "coverage";
const crate = ["--manifest-path", "kernels/Cargo.toml"];

/** The checks by name: the command of each. The first gives those after it a library to open. */
const CHECKS: Readonly<Record<string, readonly string[]>> = {
  "the native library is built": ["deno", "task", "--quiet", "build"],
  "the CUDA library is built": ["deno", "task", "--quiet", "build:cuda"],
  "the emulated CUDA library is built": ["deno", "task", "--quiet", "build:cuda-emulated"],
  "the tracked files are small": ["deno", "run", "--allow-all", "tools/tracked_size.ts"],
  "TypeScript is formatted": ["deno", "fmt", "--check"],
  "TypeScript is linted": ["deno", "lint"],
  "TypeScript is typed": ["deno", "check", "."],
  "the public API is documented": ["deno", "doc", "--lint", "mod.ts"],
  "the documentation's examples run": ["deno", "test", "--allow-all", "--doc", "mod.ts", "README.md"],
  "the schema of kernels is in step": ["deno", "run", "--allow-all", "tools/generate_schema.ts", "--check"],
  "the bindings are in step": ["deno", "run", "--allow-all", "tools/generate_bindings.ts", "--check"],
  "TypeScript's tests cover it": ["deno", "test", "--allow-all", "--quiet", `--coverage=${COVERAGE}`, "tests"],
  "the CUDA kernels pass under sanitizers": ["deno", "task", "--quiet", "sanitize"],
  "Rust's tests pass": ["cargo", "test", "--release", "--locked", ...crate],
  "Rust is formatted": ["cargo", "fmt", "--check", ...crate],
  "Rust is linted": ["cargo", "clippy", "--release", "--locked", "--all-targets", ...crate, "--", "-D", "warnings"],
};

let failed = 0;
for (const [name, [command, ...args]] of Object.entries(CHECKS)) {
  const { success, stdout, stderr } = await new Deno.Command(command!, { args, stdout: "piped", stderr: "piped" })
    .output();
  console.log(`${success ? "ok" : "FAILED"}: ${name}`);
  if (success) continue;
  failed++;
  await Deno.stdout.write(stdout);
  await Deno.stdout.write(stderr);
}
const { stdout: coverage } = await new Deno.Command("deno", { args: ["coverage", COVERAGE], stdout: "piped" }).output();
const total = new TextDecoder().decode(coverage).split("\n").find((line) => line.includes("All files"));
if (total) {
  console.log(
    `coverage (branches, functions, lines): ${total.replaceAll(/[^\d.|]/g, "").split("|").filter(Boolean).join(", ")}`,
  );
}
console.log(`${Object.keys(CHECKS).length - failed} checks passed, ${failed} failed`);
if (failed > 0) Deno.exit(1);
