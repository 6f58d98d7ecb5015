import assert from "node:assert/strict";
import { FluxPipeline } from "../../lib/pipelines/flux.ts";
import { quantize } from "../../lib/quantize/quantize.ts";
import { Generator } from "../../lib/tensor/random.ts";
import { withFolder } from "../folder.ts";

const MODEL = "models/shapes-flux";
const PROMPT = "a large red star on a navy background";
const SHARDS = { maxShardSize: "3MB" };

type Pipe = Awaited<ReturnType<typeof FluxPipeline.load>>;

/** The files below a folder with hashes of their bytes. */
async function filesOf(folder: string, prefix = ""): Promise<Map<string, string>> {
  const files = new Map<string, string>();
  for await (const { name, isDirectory } of Deno.readDir(folder)) {
    const path = `${folder}/${name}`;
    if (isDirectory) { for (const entry of await filesOf(path, `${prefix}${name}/`)) files.set(...entry); }
    else {files.set(
        prefix + name,
        new Uint8Array(await crypto.subtle.digest("SHA-256", await Deno.readFile(path))).toHex(),
      );}
  }
  return new Map([...files].sort());
}

const isSame = (a: ReadonlyMap<string, string>, b: ReadonlyMap<string, string>) => String([...a]) === String([...b]);

function quantizeAll(pipe: Pipe): void {
  quantize(pipe.transformer, [{ filter: /single/, scheme: "int4wo" }, { scheme: "int8wo" }]);
  quantize(pipe.vae, "int8wo");
  quantize(pipe.textEncoder!, "fp8wo");
  quantize(pipe.textEncoder2!, "int8wo", { kinds: ["linear", "embedding"] });
}

async function picture(pipe: Pipe): Promise<Uint8Array> {
  const { images } = await pipe(PROMPT, { seed: 3, numInferenceSteps: 2 });
  return images[0]!.data;
}

Deno.test("a pipeline in floats is saved as it was loaded", async () => {
  await withFolder(async (folder) => {
    const pipe = await FluxPipeline.load(MODEL);
    await pipe.save(folder);
    const [before, after] = [await filesOf(MODEL), await filesOf(folder)];
    assert.deepEqual([...after.keys()], [...before.keys()]);
    for (const name of [...after.keys()].filter((name) => !name.endsWith(".safetensors"))) {
      const text = (folder: string) => Deno.readTextFile(`${folder}/${name}`);
      if (!name.endsWith(".json")) assert.equal(await text(folder), await text(MODEL), name);
      else assert.deepEqual(JSON.parse(await text(folder)), JSON.parse(await text(MODEL)), name);
    }
    assert.deepEqual(await picture(await FluxPipeline.load(folder)), await picture(pipe));
  });
});

Deno.test("a quantized pipeline, saved and loaded, makes the same picture, and saves the same bytes", async () => {
  await withFolder(async (folder) => {
    const pipe = await FluxPipeline.load(MODEL);
    quantizeAll(pipe);
    const expected = await picture(pipe);
    await pipe.save(`${folder}/a`, SHARDS);
    const loaded = await FluxPipeline.load(`${folder}/a`);
    assert.deepEqual(await picture(loaded), expected);
    await loaded.save(`${folder}/b`, SHARDS);
    assert.ok(isSame(await filesOf(`${folder}/a`), await filesOf(`${folder}/b`)));
    // Over itself, while it is being read; then it goes on.
    await loaded.save(`${folder}/a`);
    assert.deepEqual(await picture(loaded), expected);
    assert.deepEqual(await picture(await FluxPipeline.load(`${folder}/a`)), expected);
    const names = [...(await filesOf(`${folder}/a`)).keys()].filter((name) => name.includes("safetensors"));
    assert.equal(names.length, 4, String(names));
  });
});

Deno.test("parts that were not loaded are left out elsewhere, and stay at home", async () => {
  await withFolder(async (folder) => {
    const whole = await FluxPipeline.load(MODEL);
    await whole.save(`${folder}/home`);
    const pipe = await FluxPipeline.load(`${folder}/home`, { textEncoders: false });
    quantize(pipe.transformer, "int8wo");
    await pipe.save(`${folder}/away`);
    const away = await FluxPipeline.load(`${folder}/away`);
    assert.equal(away.textEncoder, undefined);
    assert.equal(away.tokenizer2, undefined);
    await pipe.save(`${folder}/home`);
    const home = await FluxPipeline.load(`${folder}/home`);
    assert.ok(home.textEncoder && home.tokenizer2);
    assert.ok(home.transformer.proj_out.weight.quantized);
  });
});

/** Saves a pipeline over a folder, in floats and quantized in turns, until it is killed. */
const SAVER = `
const { FluxPipeline, quantize } = await import(${JSON.stringify(import.meta.resolve("../../mod.ts"))});
const [folder, ...sources] = Deno.args;
const pipes = await Promise.all(sources.map((source) => FluxPipeline.load(source)));
console.log("ready");
for (let i = 0;; i++) await pipes[i % 2].save(folder, ${JSON.stringify(SHARDS)});
`;

Deno.test("a process that is killed while it saves leaves the old folder or the new one", async () => {
  await withFolder(async (folder) => {
    const pipe = await FluxPipeline.load(MODEL);
    await pipe.save(`${folder}/floats`, SHARDS);
    quantizeAll(pipe);
    await pipe.save(`${folder}/quantized`, SHARDS);
    const whole = [await filesOf(`${folder}/floats`), await filesOf(`${folder}/quantized`)];
    await pipe.save(`${folder}/saved`, SHARDS);
    await Deno.writeTextFile(`${folder}/saver.ts`, SAVER);
    const dice = new Generator(4);
    const seen = new Set<number>();
    for (let i = 0; i < 16; i++) {
      const process = new Deno.Command(Deno.execPath(), {
        args: ["run", "-A", "--no-check", "saver.ts", "saved", "floats", "quantized"],
        cwd: folder,
        stdout: "piped",
        stderr: "null",
      }).spawn();
      const reader = process.stdout.getReader();
      await reader.read();
      await new Promise((resolve) => setTimeout(resolve, dice.random32() % 600));
      process.kill("SIGKILL");
      await process.status;
      await reader.cancel();
      // Shards may have other names than in a new folder: what counts is what they hold.
      const loaded = await FluxPipeline.load(`${folder}/saved`);
      await Deno.remove(`${folder}/again`, { recursive: true }).catch(() => {});
      await loaded.save(`${folder}/again`, SHARDS);
      const found = await filesOf(`${folder}/again`);
      const which = whole.findIndex((files) => isSame(files, found));
      assert.ok(which >= 0, `kill ${i}: ${[...(await filesOf(`${folder}/saved`)).keys()].join(" ")}`);
      seen.add(which);
    }
    assert.equal(seen.size, 2, "both states are met");
    await pipe.save(`${folder}/saved`, SHARDS);
    const names = [...(await filesOf(`${folder}/saved`)).keys()];
    assert.deepEqual(names.filter((name) => /partial|denoise/.test(name)), []);
  });
});
