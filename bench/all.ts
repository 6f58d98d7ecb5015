/**
 * All comparisons with PyTorch and diffusers, one after another: `deno task bench`, or some by name:
 * `deno task bench matmul demo`. Each runs in a process of its own, so that none inherits another's memory.
 *
 * @module
 */

const ALL = ["matmul", "quantized", "attention", "conv2d", "conv3d", "block", "demo", "quality"];

const names = Deno.args.length > 0 ? Deno.args : ALL;
for (const name of names) {
  if (!ALL.includes(name)) {
    console.error(`There is no benchmark ${name}; there are ${ALL.join(", ")}.`);
    Deno.exit(2);
  }
}
for (const name of names) {
  console.log(`\n## ${name}`);
  const path = new URL(`${name}.ts`, import.meta.url).href;
  const { code } = await new Deno.Command(Deno.execPath(), { args: ["run", "--allow-all", path] }).spawn().status;
  if (code !== 0) Deno.exit(code);
}
