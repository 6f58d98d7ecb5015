import assert from "node:assert/strict";
import { VIDEOS, type VideoSettings } from "../../bench/video.ts";
import { withFolder } from "../folder.ts";

const SMALL = "--height 32 --width 32 --num-frames 5 --num-inference-steps 1 --warmup 0 --runs 1 --num-layers 1"
  .split(" ");

async function bench(...args: string[]): Promise<{ code: number; stdout: string; stderr: string }> {
  const { code, stdout, stderr } = await new Deno.Command(Deno.execPath(), {
    args: ["run", "--allow-all", "bench/video.ts", ...args],
    env: { NO_COLOR: "1" },
  }).output();
  const text = new TextDecoder();
  return { code, stdout: text.decode(stdout), stderr: text.decode(stderr) };
}

Deno.test("the matrix of videos runs, and goes on where it was stopped", async () => {
  await withFolder(async (out) => {
    const first = await bench(...SMALL, "--out", out, "--quantization", "int8wo", "--quantize-vae", "int8wo");
    assert.equal(first.code, 0, first.stderr);
    const second = await bench(...SMALL, "--out", out, "--quantization", "none,int8wo", "--fuse-qkv", "true");
    assert.equal(second.code, 0, second.stderr);
    assert.match(second.stdout, /^model_type +compile +fuse_qkv +quantize_vae +quantization +model_memory/);
    const { rows } = (await VIDEOS.read<VideoSettings>(`${out}/runs.json`))!;
    assert.deepEqual(
      rows.map(({ model_type, fuse_qkv, quantize_vae, quantization }) => [
        model_type,
        fuse_qkv,
        quantize_vae,
        quantization,
      ]),
      [["mini", false, "int8wo", "int8wo"], ["mini", true, "none", "none"], ["mini", true, "none", "int8wo"]],
    );
    assert.ok(rows[0]!.psnr > 20 && rows[0]!.psnr < Infinity, `${rows[0]!.psnr} dB`);
    assert.ok(rows[1]!.psnr > 60, "one projection makes the same video");
    assert.ok(rows[2]!.model_memory < rows[1]!.model_memory);
    for (const { time, inference_memory, model_memory } of rows) {
      assert.ok(time > 0 && inference_memory > model_memory && model_memory > 1e5);
    }
    assert.equal(await Deno.readTextFile(`${out}/runs.csv`), VIDEOS.toCsv(rows));
  });
});

for (
  const [args, message] of [
    ["--quantize-vae int4wo", /--quantize-vae int4wo: pass int8wo, int8dq or fp8wo/],
    ["--dtype f64", /--dtype "f64": pass f32, bf16 or f16/],
    ["--num-frames 0", /--num-frames "0": pass an integer of at least 1/],
  ] as const
) {
  Deno.test(`a wrong flag of the matrix of videos is refused: ${args}`, async () => {
    const { code, stdout, stderr } = await bench(...args.split(" "));
    assert.deepEqual([code, stdout, stderr.trim().split("\n").length], [2, "", 1]);
    assert.match(stderr, message);
  });
}
