import assert from "node:assert/strict";
import { writeRandomCogVideoX } from "../../bench/random_model.ts";
import { Image } from "../../lib/media/image.ts";
import { VideoReader } from "../../lib/media/video.ts";
import { PUBLISHED_COGVIDEOX } from "../../lib/pipelines/cogvideox_published.ts";
import { parseVideoFlags } from "../../lib/pipelines/recipe_video.ts";
import { withFolder } from "../folder.ts";
import { permissionsOf, runRecipe } from "./recipe.ts";

const RECIPE = "recipes/video.ts";
const run = (...args: string[]) => runRecipe(RECIPE, ...args);

const TRANSFORMER = {
  num_attention_heads: 2,
  attention_head_dim: 64,
  in_channels: 4,
  out_channels: 4,
  time_embed_dim: 32,
  text_embed_dim: 128,
  num_layers: 1,
  sample_width: 6,
  sample_height: 4,
  sample_frames: 9,
  max_text_seq_length: 12,
  use_rotary_positional_embeddings: true,
};
const VAE = { block_out_channels: [8, 8, 16, 16], latent_channels: 4, layers_per_block: 1, norm_num_groups: 4 };
const TEXT = { encoder: "models/shapes-flux/text_encoder_2", tokenizer: "models/shapes-flux/tokenizer_2" };
const SMALL = ["--num-inference-steps", "2", "--dtype", "f32"];

async function withModel(test: (model: string, out: string) => Promise<void>): Promise<void> {
  await withFolder(async (folder) => {
    await writeRandomCogVideoX(`${folder}/model`, { transformer: TRANSFORMER, vae: VAE, text: TEXT });
    await test(`${folder}/model`, folder);
  });
}

Deno.test("the recipe writes a video under its own permissions, and says so in JSON", async () => {
  await withModel(async (model, folder) => {
    const out = `${folder}/new/star.mp4`;
    const flags = ["--model", model, ...SMALL, "--json", "--out", out, "--prompt", "a red star", "--fps", "4"];
    const { code, stdout, stderr } = await run(...flags, "--preview", `${folder}/look.png`, "--scheduler", "dpm");
    assert.equal(code, 0, stderr);
    assert.equal(stderr, "");
    const report = JSON.parse(stdout);
    assert.deepEqual(report.paths, [out]);
    assert.deepEqual(Object.keys(report.seconds), ["load", "text_encoding", "denoising", "decoding"]);
    for (const seconds of [...Object.values(report.seconds), report.seconds_per_step]) assert.ok(Number(seconds) > 0);
    const { width, height, frameCount, fps, metadata } = await VideoReader.open(out);
    assert.deepEqual([width, height, frameCount, fps], [48, 32, 9, 4]);
    assert.deepEqual([metadata.prompt, metadata.scheduler], ["a red star", "CogVideoXDPMScheduler"]);
    assert.equal((await Image.open(`${folder}/look.png`)).width, 24);
  });
});

Deno.test("the recipe quantizes, writes several videos into a folder, and says so in a table", async () => {
  await withModel(async (model, folder) => {
    const flags = "--quantization int8wo --quantize-vae --fuse-qkv --prompt a --prompt b".split(" ");
    const { code, stdout, stderr } = await run("--model", model, ...SMALL, ...flags, "--out", `${folder}/videos`);
    assert.equal(code, 0, stderr);
    assert.match(stdout, /^quantization +transformer: \d+ int8wo/m);
    assert.match(stdout, /^quantization +vae: \d+ int8wo/m);
    assert.match(stdout, /^video +.*01\.mp4$/m);
    const names = (await Array.fromAsync(Deno.readDir(`${folder}/videos`))).map(({ name }) => name).sort();
    assert.deepEqual(names, ["00.mp4", "01.mp4"]);
  });
});

Deno.test("a dry run prints the memory of each phase, and a budget lowers that of decoding", async () => {
  await withModel(async (model) => {
    const flags = ["--model", model, "--dry-run", "--height", "256", "--width", "256"];
    const plain = JSON.parse((await run(...flags, "--json")).stdout);
    assert.deepEqual(plain.phases.map((p: { phase: string }) => p.phase), ["textEncoding", "denoising", "decoding"]);
    const tight = JSON.parse((await run(...flags, "--json", "--memory-budget", "0.05")).stdout);
    assert.ok(tight.bytes < plain.bytes);
    assert.match((await run(...flags)).stdout, /^decoding +[\d.]+ MB$/m);
  });
});

Deno.test("without a model the recipe says which there are, and what each needs", async () => {
  const { code, stdout, stderr } = await run();
  assert.deepEqual([code, stdout], [1, ""]);
  for (const { id } of PUBLISHED_COGVIDEOX) assert.match(stderr, new RegExp(`^${id} .*[\\d.]+ GB .*[\\d.]+ GB`, "m"));
  const known = JSON.parse((await run("--json")).stdout);
  for (const { parameters, disk_bytes, memory_bytes } of known) {
    assert.equal(disk_bytes, 2 * parameters);
    assert.ok(memory_bytes > disk_bytes);
  }
});

Deno.test("what published checkpoints have is what the manifests say", async () => {
  for (const [name, id] of [["2b", "THUDM/CogVideoX-2b"], ["5b", "THUDM/CogVideoX-5b"]] as const) {
    const { config } = JSON.parse(
      await Deno.readTextFile(`tests/fixtures/manifests/cogvideox-${name}.transformer.json`),
    );
    const { transformer } = PUBLISHED_COGVIDEOX.find((published) => published.id === id)!;
    for (const [key, value] of Object.entries(transformer)) assert.equal(config[key], value, `${id}: ${key}`);
    // Those that are not named are diffusers' defaults, which are 2b's.
    const { config: defaults } = JSON.parse(
      await Deno.readTextFile("tests/fixtures/manifests/cogvideox-2b.transformer.json"),
    );
    for (const [key, value] of Object.entries(config)) {
      assert.equal((transformer as Record<string, unknown>)[key] ?? defaults[key], value, `${id}: ${key}`);
    }
  }
});

for (
  const [args, message] of [
    [["--out", "video.avi"], /--out "video\.avi": pass a path that ends in \.mp4, \.gif or \.png/],
    [["--prompt", "a", "--prompt", "b", "--out", "a.mp4"], /2 videos to --out a\.mp4: pass a folder/],
    [["--scheduler", "euler"], /--scheduler "euler": pass ddim or dpm/],
    [["--memory-budget", "0"], /--memory-budget 0: pass a number of GB/],
    [["--num-frames", "x"], /--num-frames "x": pass a number/],
    [["--preview", "look.jpg"], /--preview "look\.jpg": pass a path that ends in \.png/],
    [["--quantize-vae", "int4wo"], /--quantize-vae int4wo: pass int8wo, int8dq or fp8wo/],
    [["--stepps", "3"], /--stepps/],
  ] as const
) {
  Deno.test(`a wrong flag of the video recipe is a sentence: ${args.join(" ")}`, () => {
    assert.throws(() => parseVideoFlags(args), { name: "RangeError", message });
  });
}

Deno.test("an error is a sentence and an exit code of 1, and the task has the recipe's permissions", async () => {
  await withModel(async (model, folder) => {
    const { code, stdout, stderr } = await run("--model", model, "--num-frames", "10", "--out", `${folder}/a.mp4`);
    assert.deepEqual([code, stdout], [1, ""]);
    assert.match(stderr, /^Cannot make a video of 10 frames: the model takes 4k \+ 1 of them, such as 9\n$/);
  });
  const { tasks } = JSON.parse(await Deno.readTextFile("deno.json"));
  for (const flag of await permissionsOf(RECIPE)) assert.ok(tasks.video.command.includes(flag), flag);
});
