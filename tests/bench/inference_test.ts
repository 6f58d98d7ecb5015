import assert from "node:assert/strict";
import { PICTURES, type Settings } from "../../bench/matrix.ts";
import { Image } from "../../lib/media/image.ts";
import { withFolder } from "../folder.ts";

const SMALL = "--height 32 --width 32 --num-inference-steps 1 --max-sequence-length 16 --prompts 3 --warmup 0 --runs 1"
  .split(" ");

async function bench(...args: string[]): Promise<{ code: number; stdout: string; stderr: string }> {
  const { code, stdout, stderr } = await new Deno.Command(Deno.execPath(), {
    args: ["run", "--allow-all", "bench/inference.ts", ...args],
    env: { NO_COLOR: "1" },
  }).output();
  const text = new TextDecoder();
  return { code, stdout: text.decode(stdout), stderr: text.decode(stderr) };
}

Deno.test("the matrix runs, goes on where it was stopped, and is reported", async () => {
  await withFolder(async (folder) => {
    const out = `${folder}/new`;
    const common = [...SMALL, "--sheet", "2", "--out", out];
    const first = await bench(...common, "--quantization", "none");
    assert.equal(first.code, 0, first.stderr);
    assert.equal(first.stdout.trim(), `${out}/report.md`);
    const { rows: [row], machine } = (await PICTURES.read<Settings>(`${out}/runs.json`))!;
    assert.ok(machine.length > 0);
    assert.deepEqual([row!.batch_size, row!.quantization, row!.psnr, row!.ssim], [1, "none", Infinity, 1]);
    assert.ok(row!.time > 0 && row!.model_memory > 1e7 && row!.inference_memory > row!.model_memory);

    // What is there is kept as it is, also when it is asked for again with more.
    const marked = (await Deno.readTextFile(`${out}/runs.json`)).replace(/"time": [\d.e-]+/, '"time": 1234.5');
    await Deno.writeTextFile(`${out}/runs.json`, marked);
    const second = await bench(...common, "--quantization", "none,int8wo", "--batch-size", "1,2");
    assert.equal(second.code, 0, second.stderr);
    const { rows } = (await PICTURES.read<Settings>(`${out}/runs.json`))!;
    assert.deepEqual(rows.map((r) => [r.batch_size, r.quantization]), [[1, "none"], [1, "int8wo"], [2, "none"], [
      2,
      "int8wo",
    ]]);
    assert.equal(rows[0]!.time, 1234.5);
    assert.ok(rows[1]!.psnr > 20 && rows[1]!.psnr < Infinity, `${rows[1]!.psnr}`);
    assert.ok(rows[1]!.model_memory < rows[0]!.model_memory);
    assert.ok(rows[2]!.psnr > 60, "a batch draws the same pictures");
    assert.equal(await Deno.readTextFile(`${out}/runs.csv`), PICTURES.toCsv(rows));

    const report = await Deno.readTextFile(`${out}/report.md`);
    for (const [, file] of report.matchAll(/\]\(([^)]+)\)/g)) assert.ok((await Deno.stat(`${out}/${file}`)).isFile);
    const sheet = await Image.open(`${out}/models_shapes_flux.png`);
    assert.deepEqual([sheet.width, sheet.height], [2 * 34 - 2, 2 * 34 - 2]); // a row of two for each of two schemes

    const other = await bench(...common, "--runs", "2");
    assert.equal(other.code, 2);
    assert.match(other.stderr, /runs of other settings.*another --out/s);
  });
});

Deno.test("a run that fails is named, and the others are made", async () => {
  await withFolder(async (folder) => {
    const args = ["--quantization", "none", "--ckpt-id", "no/such/model/here,models/shapes-flux", "--out", folder];
    const { code, stderr } = await bench(...SMALL, ...args);
    assert.equal(code, 1);
    assert.match(stderr, /no_such_model_here-b1-none failed: /);
    const { rows } = (await PICTURES.read<Settings>(`${folder}/runs.json`))!;
    assert.deepEqual(rows.map((row) => row.ckpt_id), ["models/shapes-flux"]);
  });
});

for (
  const [args, message] of [
    ["--batch-size 1,0", /--batch-size "0": pass an integer of at least 1/],
    ["--fuse yes", /--fuse "yes": pass true, false, or both/],
    ["--quantization int9", /"int9"/],
    ["--quantization int4wo --sparsify true", /nothing to run.*--sparsify with int8dq/],
    ["--stepps 3", /--stepps/],
  ] as const
) {
  Deno.test(`a wrong flag of the matrix is refused: ${args}`, async () => {
    const { code, stdout, stderr } = await bench(...args.split(" "));
    assert.equal(code, 2);
    assert.equal(stdout, "");
    assert.match(stderr, message);
    assert.equal(stderr.trim().split("\n").length, 1, stderr);
  });
}

Deno.test("the matrix's help names every flag", async () => {
  const { code, stdout } = await bench("--help");
  assert.equal(code, 0);
  for (const flag of ["ckpt-id", "batch-size", "compile-vae", "sparsify", "quantization", "warmup", "out"]) {
    assert.match(stdout, new RegExp(`^ +--${flag}\\b`, "m"));
  }
});
