import assert from "node:assert/strict";
import { readResults } from "../../tools/gpu/part.ts";
import { openEmulated } from "../emulated.ts";
import { withFolder } from "../folder.ts";

async function gpu(...args: string[]): Promise<{ code: number; said: string; told: string }> {
  const { code, stdout, stderr } = await new Deno.Command(Deno.execPath(), {
    args: ["run", "--quiet", "--allow-all", "tools/gpu.ts", ...args],
    env: { NO_COLOR: "1" },
  }).output();
  const text = new TextDecoder();
  return { code, said: text.decode(stdout), told: text.decode(stderr) };
}

Deno.test("the parts for a GPU run on the emulated device, go on where they were stopped, and print tables", async () => {
  using device = await openEmulated();
  if (!device) return;
  await withFolder(async (out) => {
    const parts = ["machine", "goldens", "kernels", "flux", "profile", "start"];
    const flags = ["--device", "cuda-emulated", "--small", "--out", out, ...parts.flatMap((name) => ["--part", name])];
    const { code, said, told } = await gpu(...flags);
    assert.equal(code, 0, told);
    const results = await readResults(out);
    const row = (key: string) => results.get(key)!.rows![0]!;
    assert.equal(row("machine device").level, "cuda-emulated");
    assert.ok(Number(row("goldens clip-eos2-mini").passed) > 0);
    for (const cell of ["attention", "float 8", "fp8dqrow 8"]) {
      assert.ok(Number(row(`kernels ${cell}`).tflops) > 0, cell);
    }
    const [float, fp8] = ["none", "fp8dqrow"].map((scheme) => row(`flux ${scheme} b1`));
    for (const found of [float!, fp8!]) assert.ok(found.finite === true && Number(found.time) > 0);
    assert.ok(Number(fp8!.model_memory) < 0.8 * Number(float!.model_memory));
    assert.deepEqual(Object.keys(float!).slice(0, 10), [
      ...["ckpt_id", "batch_size", "fuse", "compile", "compile_vae", "quantization", "sparsify"],
      ...["model_memory", "inference_memory", "time"],
    ]);
    for (const cell of ["save", "load", "load again"]) assert.ok(Number(row(`start ${cell}`).seconds) > 0);
    await Deno.stat(`${out}/trace-none-b1.json`);
    for (const name of parts) assert.match(said, new RegExp(`^${name}: `, "m"));
    // All is done: another call prints the same and runs nothing.
    const lines = await Deno.readTextFile(`${out}/results.jsonl`);
    const again = await gpu(...flags);
    assert.deepEqual([again.code, again.said, again.told], [0, said, ""]);
    assert.equal(await Deno.readTextFile(`${out}/results.jsonl`), lines);
    // A cell whose line was lost runs again, alone.
    const kept = lines.split("\n").filter((line) => !line.includes('"float 8"'));
    await Deno.writeTextFile(`${out}/results.jsonl`, kept.join("\n"));
    assert.match((await gpu(...flags)).told, /^done: kernels float 8, [\d.]+ s\n$/);
    assert.match((await gpu(...flags, "--list")).said, /^goldens +1 of 1 /m);
  });
});

Deno.test("a cell that fails is a line, does not stop the others, and is tried again when asked", async () => {
  await withFolder(async (out) => {
    const flags = ["--device", "cuda:999", "--out", out, "--part", "machine"];
    const { code, said, told } = await gpu(...flags);
    assert.equal(code, 1);
    assert.match(told, /^failed: machine device/);
    assert.match(said, /^device failed: .+/m);
    assert.equal((await gpu(...flags)).told, "");
    assert.match((await gpu(...flags, "--retry")).told, /^failed: machine device/);
  });
});

Deno.test("what is asked of the GPU's task wrongly is refused in a sentence", async () => {
  for (
    const [args, message] of [
      [["--part", "nothing"], /Cannot run --part nothing: pass machine, /],
      [["--device", "tpu"], /Cannot run on "tpu"/],
      [["--minutes", "no"], /Cannot use --minutes "no"/],
      [["--dry-run", "--limits", "bf16"], /Cannot use the limit "bf16"/],
      [["--dry-run", "--scheme", "int9"], /int9/],
    ] as const
  ) {
    const { code, told } = await gpu(...args);
    assert.equal(code, 2);
    assert.match(told, message);
  }
});
