import assert from "node:assert/strict";
import { Image } from "../../lib/media/image.ts";
import { FluxPipeline } from "../../lib/pipelines/flux.ts";
import { parseInferenceFlags } from "../../lib/pipelines/recipe.ts";
import { quantize } from "../../lib/quantize/quantize.ts";
import { withFolder } from "../folder.ts";
import { permissionsOf, runRecipe } from "./recipe.ts";

const RECIPE = "recipes/inference.ts";
const PERMISSIONS = await permissionsOf(RECIPE);
const SMALL = ["--height", "32", "--width", "32", "--num-inference-steps", "2", "--max-sequence-length", "16"];

const run = (...args: string[]) => runRecipe(RECIPE, ...args);

Deno.test("the recipe writes a picture under its own permissions, and says so in JSON", async () => {
  await withFolder(async (folder) => {
    const out = `${folder}/new/star.png`;
    const { code, stdout, stderr } = await run(...SMALL, "--json", "--out", out, "--prompt", "a red star");
    assert.equal(code, 0, stderr);
    assert.equal(stderr, "");
    const report = JSON.parse(stdout);
    assert.deepEqual(report.paths, [out]);
    assert.deepEqual(Object.keys(report.seconds), ["load", "text_encoding", "denoising", "decoding"]);
    for (const seconds of [...Object.values(report.seconds), report.seconds_per_step]) assert.ok(Number(seconds) > 0);
    assert.equal(report.seconds_per_step, report.seconds.denoising / 2);
    assert.ok(report.peak_memory_bytes > 1e7);
    const { width, height, metadata } = await Image.open(out);
    assert.deepEqual([width, height, metadata.prompt, metadata.seed], [32, 32, "a red star", "5"]);
  });
});

Deno.test("the recipe quantizes, and says so in its report and in the picture's file", async () => {
  await withFolder(async (folder) => {
    const out = `${folder}/star.png`;
    const flags = "--quantization int4wo --group-size 64 --quantize-vae int8wo --fuse-qkv --json".split(" ");
    const { code, stdout, stderr } = await run(...SMALL, ...flags, "--out", out);
    assert.equal(code, 0, stderr);
    const plain = JSON.parse((await run(...SMALL, "--json", "--out", `${folder}/float.png`)).stdout);
    const report = JSON.parse(stdout);
    assert.match(report.quantization, /^transformer: \d+ int4wo \(group_size 64\).*; vae: \d+ int8wo/);
    assert.ok(report.model_memory_bytes < plain.model_memory_bytes, stdout);
    assert.deepEqual([plain.quantization, plain.skipped], ["", []]);

    const { metadata } = await Image.open(out);
    assert.equal(metadata.quantization, report.quantization);
    const pipe = await FluxPipeline.load("models/shapes-flux");
    await assert.rejects(pipe.rerun(out), {
      name: "DenoiseError",
      message: /again: it was made with transformer: \d+ int4wo .*, and the pipeline is in floats; .*quantize it/,
    });
    pipe.transformer.fuseQkvProjections();
    quantize(pipe.transformer, "int4wo", { groupSize: 64 });
    quantize(pipe.vae, "int8wo");
    assert.deepEqual((await pipe.rerun(out)).data, (await Image.open(out)).data);
    await assert.rejects(pipe.rerun(`${folder}/float.png`), /it was made in floats, and the pipeline is with/);
  });
});

Deno.test("the recipe's table says what was quantized, and what could not be", async () => {
  await withFolder(async (folder) => {
    const flags = ["--sparsify", "--quantization", "int8dq", "--out", `${folder}/star.png`];
    const { code, stdout, stderr } = await run(...SMALL, ...flags);
    assert.equal(code, 0, stderr);
    assert.match(stdout, /^quantization +transformer: \d+ int8dq \(2:4 sparse\)/m);
    assert.match(stdout, /^model memory +[\d.]+ MB$/m);
    const dry = await run("--dry-run", "--quantization", "int4wo", "--group-size", "256", "--json");
    const { bytes } = JSON.parse(dry.stdout);
    assert.ok(bytes < JSON.parse((await run("--dry-run", "--json")).stdout).bytes);
  });
});

Deno.test("the recipe writes several pictures into a folder, and says so in a table", async () => {
  await withFolder(async (folder) => {
    const prompts = ["--prompt", "a red star", "--prompt", "a blue ring"];
    const { code, stdout, stderr } = await run(...SMALL, ...prompts, "--num-images-per-prompt", "2", "--out", folder);
    assert.equal(code, 0, stderr);
    const names = (await Array.fromAsync(Deno.readDir(folder))).map((entry) => entry.name).sort();
    assert.deepEqual(names, ["00.png", "01.png", "02.png", "03.png"]);
    assert.equal((await Image.open(`${folder}/02.png`)).metadata.prompt, "a blue ring");
    for (
      const word of ["load", "text encoding", "denoising", "a step", "decoding", "peak memory", "00.png", "03.png"]
    ) {
      assert.ok(stdout.includes(word), word);
    }
  });
});

Deno.test("the recipe's help names every flag", async () => {
  const { code, stdout } = await run("--help");
  assert.equal(code, 0);
  for (
    const flag
      of "model prompt prompt-2 negative-prompt true-cfg-scale seed num-inference-steps guidance-scale height width max-sequence-length num-images-per-prompt dtype quantization group-size sparsify plan fuse-qkv quantize-vae compile compile-vae vae-tiling vae-slicing out show json help"
        .split(" ")
  ) {
    assert.match(stdout, new RegExp(`^ +--${flag}\\b`, "m"));
  }
});

Deno.test("what goes wrong is one sentence and an exit code", async () => {
  await withFolder(async (folder) => {
    await Deno.writeTextFile(`${folder}/file`, "");
    const wrong: [RegExp, string[]][] = [
      [/--stepps/, ["--stepps", "3"]],
      [/multiples of 16/, ["--height", "100", "--out", `${folder}/a.png`]],
      [/Cannot make the folder/, ["--out", `${folder}/file/a.png`]],
      [/no\/such\/folder/, ["--model", "./no/such/folder", "--out", `${folder}/a.png`]],
    ];
    for (const [message, args] of wrong) {
      const { code, stdout, stderr } = await run(...args);
      assert.equal(code, 1, args.join(" "));
      assert.match(stderr, message);
      assert.equal(stderr.trim().split("\n").length, 1, stderr);
      assert.equal(stdout, "");
    }
    assert.deepEqual((await Array.fromAsync(Deno.readDir(folder))).map((e) => e.name), ["file"]);
  });
});

Deno.test("Ctrl-C stops the recipe and leaves no file", { ignore: Deno.build.os === "windows" }, async () => {
  await withFolder(async (folder) => {
    const child = new Deno.Command(Deno.execPath(), {
      args: [
        "run",
        ...PERMISSIONS,
        RECIPE,
        "--out",
        `${folder}/a.png`,
        "--num-inference-steps",
        "999",
        "--height",
        "512",
        "--width",
        "512",
      ],
      stdout: "null",
      stderr: "piped",
    }).spawn();
    await new Promise((resolve) => setTimeout(resolve, 1500));
    child.kill("SIGINT");
    const { code, stderr } = await child.output();
    assert.equal(code, 130, new TextDecoder().decode(stderr));
    assert.match(new TextDecoder().decode(stderr), /Stopped/);
    assert.deepEqual(await Array.fromAsync(Deno.readDir(folder)), []);
  });
});

Deno.test("flags are read: defaults, repeated ones, wide seeds", () => {
  const flags = parseInferenceFlags([]);
  assert.deepEqual(flags.prompts, ["a large red star on a navy background"]);
  assert.deepEqual([flags.model, flags.dtype, flags.out], ["models/shapes-flux", "f32", "out/picture.png"]);
  const { seed, height, width, numInferenceSteps, guidanceScale, maxSequenceLength } = flags.options;
  assert.deepEqual([seed, height, width, numInferenceSteps, guidanceScale, maxSequenceLength], [
    5,
    128,
    128,
    20,
    3.5,
    32,
  ]);
  assert.equal(parseInferenceFlags(["--seed", "18446744073709551615"]).options.seed, 2n ** 64n - 1n);
  assert.equal(parseInferenceFlags(["--seed=-7"]).options.seed, -7);
  const several = parseInferenceFlags(["--prompt", "a", "--prompt", "", "--prompt-2", "c", "--vae-tiling"]);
  assert.deepEqual([several.prompts, several.options.prompt2, several.out], [["a", ""], ["c"], "out/pictures"]);
  assert.deepEqual([several.vaeTiling, several.vaeSlicing], [true, false]);
});

Deno.test("flags that make the model smaller and faster are read", () => {
  const none = {
    fuseQkv: false,
    sparsify: false,
    quantization: undefined,
    groupSize: undefined,
    plan: undefined,
    quantizeVae: undefined,
    compile: false,
    compileVae: false,
  };
  assert.deepEqual(parseInferenceFlags([]).optimization, none);
  const read = (args: string) => parseInferenceFlags(args.split(" ")).optimization;
  assert.deepEqual(read("--quantization int4wo --group-size 128"), {
    ...none,
    quantization: "int4wo",
    groupSize: 128,
  });
  assert.deepEqual(read("--sparsify --quantization=int8dq --fuse-qkv --compile --compile-vae"), {
    ...none,
    fuseQkv: true,
    sparsify: true,
    quantization: "int8dq",
    compile: true,
    compileVae: true,
  });
  assert.equal(read("--quantization fp7_e3m3").quantization, "fp7_e3m3");
  assert.equal(read("--quantization autoquant").quantization, "autoquant");
  assert.equal(read("--plan plan.json").plan, "plan.json");
  for (const args of ["--quantize-vae", "--quantize-vae --json", "--json --quantize-vae"]) {
    assert.equal(read(args).quantizeVae, "int8wo", args);
  }
  assert.equal(read("--quantize-vae fp8wo").quantizeVae, "fp8wo");
  assert.equal(read("--quantize-vae=int8dq --json").quantizeVae, "int8dq");
});

for (
  const [args, message] of [
    [["--quantization", "int9"], /"int9": pass int8wo, .* or autoquant, as --quantization/],
    [["--quantization", "fp7_e3m2"], /fp7_e3m2: .* write fp6_e3m2, or autoquant, as --quantization/],
    [["--quantize-vae", "autoquant"], /"autoquant": pass int8wo, .* as --quantize-vae/],
    [["--quantize-vae", "int4wo"], /--quantize-vae int4wo: pass int8wo, int8dq or fp8wo/],
    [["--group-size", "48", "--quantization", "int4wo"], /--group-size "48": pass 32, 64, 128 or 256/],
    [["--group-size", "64"], /--group-size 64: pass --quantization int4wo or int4dq as well/],
    [["--group-size", "64", "--quantization", "int8dq"], /--group-size 64: pass --quantization int4wo/],
    [["--plan", "a.json", "--quantization", "int8dq"], /--plan a.json with --quantization int8dq: pass one/],
    [["--compile", "--dry-run"], /--compile with --dry-run.*leave out one/],
    [["--quantization", "autoquant", "--dry-run"], /--quantization autoquant with --dry-run/],
    [["--compile-vae"], /--compile-vae alone: pass --compile as well/],
    [["--seed", "1.5"], /--seed "1.5": pass an integer/],
    [["--seed", "18446744073709551616"], /-2\^63 to 2\^64 - 1/],
    [["--guidance-scale", "nan"], /--guidance-scale "nan": pass a number/],
    [["--guidance-scale", ""], /pass a number/],
    [["--num-inference-steps", "0"], /--num-inference-steps 0: pass an integer of at least 1/],
    [["--dtype", "int8"], /--dtype "int8": pass f32, bf16 or f16/],
    [["--prompt", "a", "--prompt", "b", "--out", "a.png"], /2 pictures to --out a.png: pass a folder/],
    [["--out", "a.jpg"], /ends in .png/],
    [["--negative-prompt", "b"], /one above 1/],
    [["star.png"], /star.png/],
    [["--prompt"], /--prompt/],
  ] as const
) {
  Deno.test(`a wrong flag is refused: ${args.join(" ")}`, () => {
    assert.throws(() => parseInferenceFlags(args), (error) => {
      assert.ok(error instanceof RangeError);
      assert.match(error.message, message);
      return true;
    });
  });
}

Deno.test("the task has the recipe's permissions", async () => {
  const { tasks } = JSON.parse(await Deno.readTextFile("deno.json"));
  const command: string = tasks.demo.command;
  assert.ok(command.endsWith(` && deno run ${PERMISSIONS.join(" ")} ${RECIPE}`), command);
});

Deno.test("a dry run says how much memory it takes, and makes nothing", async () => {
  await withFolder(async (folder) => {
    const out = `${folder}/new/star.png`;
    const table = await run("--dry-run", "--out", out);
    assert.equal(table.code, 0, table.stderr);
    for (const word of ["part", "weights", "work", "transformer", "vae", "at most"]) {
      assert.ok(table.stdout.includes(word), word);
    }
    const { models, bytes } = JSON.parse((await run("--dry-run", "--json", "--out", out)).stdout);
    assert.equal(models.length, 4);
    assert.ok(bytes > 3e7 && bytes < 3e8, `${bytes}`);
    await assert.rejects(Deno.stat(`${folder}/new`), Deno.errors.NotFound);
  });
});
