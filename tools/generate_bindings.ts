/**
 * Writes `ffi/bindings.ts` from what deno_bindgen generates of the native library's functions; `--check` only compares.
 * Cargo runs first, by itself: the generator's own command hangs when cargo fails.
 *
 * @module
 */

const root = new URL("../", import.meta.url);

async function run(command: string, ...args: string[]): Promise<void> {
  const { success } = await new Deno.Command(command, { args, cwd: new URL("kernels", root) }).output();
  if (!success) throw new Error(`${command} ${args.join(" ")} failed`);
}

const generated = await Deno.makeTempFile({ suffix: ".ts" });
await run("cargo", "build", "--release", "--quiet", "--locked", "--example", "bindings");
await run("target/release/examples/bindings", generated);
const source = await Deno.readTextFile(generated);
await Deno.remove(generated);

const table = source.match(/dlopen\(path, (\{[\s\S]*?\n {2}\})\);/)?.[1];
if (table === undefined) throw new Error("deno_bindgen's output has no table of symbols");
// The order in which functions register themselves is the linker's: sort, so that the file is stable.
const symbols = Object.entries(new Function(`return ${table}`)() as Record<string, unknown>)
  .sort(([a], [b]) => a < b ? -1 : 1);

const text = `// Written by tools/generate_bindings.ts with deno_bindgen from kernels/src/ffi.rs; change that, not this.

/** The functions of the native library, as \`Deno.dlopen\` takes them. */
export const SYMBOLS = ${JSON.stringify(Object.fromEntries(symbols))} as const;
`;
const format = new Deno.Command(Deno.execPath(), { args: ["fmt", "-"], cwd: root, stdin: "piped", stdout: "piped" })
  .spawn();
const writer = format.stdin.getWriter();
await writer.write(new TextEncoder().encode(text));
await writer.close();
const formatted = new TextDecoder().decode((await format.output()).stdout);

const file = new URL("ffi/bindings.ts", root);
if (Deno.args.includes("--check")) {
  if (await Deno.readTextFile(file) !== formatted) {
    console.error("ffi/bindings.ts is not what kernels/src/ffi.rs says: run `deno task generate`");
    Deno.exit(1);
  }
} else {
  await Deno.writeTextFile(file, formatted);
}
