import assert from "node:assert/strict";
import { openSafetensors, readTensor, writeSafetensors } from "../lib/tensor/safetensors.ts";
import { gatherFixtures } from "./fixtures.ts";
import { withFolder } from "./folder.ts";

async function goldens(...args: string[]): Promise<{ code: number; lines: string[]; stderr: string }> {
  const { code, stdout, stderr } = await new Deno.Command(Deno.execPath(), {
    args: ["run", "--quiet", "--allow-all", "tools/goldens.ts", ...args],
    env: { NO_COLOR: "1" },
  }).output();
  const text = new TextDecoder();
  return { code, lines: text.decode(stdout).trim().split("\n"), stderr: text.decode(stderr) };
}

Deno.test("every golden of the fixtures is reproduced on every level, and dumped under its own keys", async () => {
  await withFolder(async (folder) => {
    const [fixtures, out] = [`${folder}/fixtures`, `${folder}/out`];
    await gatherFixtures(fixtures);
    const { code, lines, stderr } = await goldens(fixtures, "--dump", out);
    const failed = lines.filter((line) => line.startsWith("FAILED"));
    assert.deepEqual([code, failed, stderr], [0, [], ""]);
    const [, passed, skipped] = /^(\d+) passed, 0 failed, (\d+) skipped$/.exec(lines.at(-1)!) ?? [];
    assert.equal(Number(passed), lines.filter((line) => line.startsWith("passed")).length);
    assert.equal(Number(skipped), lines.filter((line) => line.startsWith("skipped")).length);
    assert.ok(Number(passed) > 200, lines.at(-1));
    for (const line of lines.filter((line) => line.startsWith("skipped"))) {
      assert.match(line, /does not have yet|this CPU lacks|was not built/);
    }
    for (
      const folder of [
        "clip-mini",
        "clip-eos2-mini",
        "t5-mini",
        "flux-dev-mini",
        "flux-schnell-mini",
        "vae-mini",
        "cogvideox-2b-mini",
        "cogvideox-5b-mini",
        "cogvideox-1.5-mini",
        "cogvideox-learned-mini",
        "quantization",
        "random",
        "shapes-flux",
        "cogvideox-pipeline-mini",
      ]
    ) {
      const expected = openSafetensors(`${fixtures}/${folder}/cases.safetensors`);
      const dumped = openSafetensors(`${out}/${folder}/cases.safetensors`);
      for (const [key, { shape }] of expected.tensors) {
        if (key.includes(".in.") || (folder === "quantization" && /^(weight|x|bias)$/.test(key))) continue;
        assert.deepEqual(dumped.tensors.get(key)?.shape, shape, `${folder}: ${key}`);
      }
    }
    assert.deepEqual(
      openSafetensors(`${out}/shapes-flux/cases.safetensors`).tensors.get("case4.out.image_f32")?.shape,
      [
        ...[2, 128, 128, 3],
      ],
    );
    const texts = JSON.parse(await Deno.readTextFile(`${out}/tokenizers/cases.json`));
    assert.deepEqual(texts, JSON.parse(await Deno.readTextFile("tests/fixtures/tokenizers/cases.json")));
  });
});

Deno.test("a golden that is not reproduced fails, one that cannot be read too, unknown kinds are skipped", async () => {
  await withFolder(async (folder) => {
    for (const name of ["random", "schedulers", "attention", "tokenizers"]) {
      await Deno.mkdir(`${folder}/deep/${name}`, { recursive: true });
    }
    const source = openSafetensors("tests/fixtures/random/cases.safetensors");
    const key = "seed1.randn40.f32";
    const data = readTensor(source, key);
    new Float32Array(data.buffer)[7]! += 1e-4;
    await writeSafetensors(`${folder}/deep/random/cases.safetensors`, [
      { name: key, dtype: "F32", shape: [40], data },
      { name: "seed1.randn5.f32", dtype: "F32", shape: [5], data: readTensor(source, "seed1.randn5.f32") },
    ]);
    await Deno.writeTextFile(`${folder}/deep/schedulers/cases.safetensors`, "broken");
    await Deno.copyFile("tests/fixtures/random/cases.safetensors", `${folder}/deep/attention/cases.safetensors`);
    await Deno.writeTextFile(
      `${folder}/deep/tokenizers/cases.json`,
      JSON.stringify([{ text: "a", clip: [0, 293, 1], t5: [4, 1] }]),
    );
    const { code, lines } = await goldens(folder);
    assert.equal(code, 1);
    assert.match(lines[0]!, /^skipped +deep\/attention: .* does not have yet$/);
    assert.match(lines[1]!, /^FAILED +deep\/random: seed1.randn40.f32: largest difference 0.0001/);
    assert.match(lines[2]!, /^passed +deep\/random: seed1.randn5.f32/);
    assert.match(lines[3]!, /^FAILED +deep\/schedulers: .*cases.safetensors/);
    assert.match(lines[4]!, /^FAILED +deep\/tokenizers: 0 "a": differences 1$/);
    assert.equal(lines[5], "1 passed, 3 failed, 1 skipped");
  });
});

Deno.test("a code that torchao would not store fails, unless the weight is in the middle of two; so does a scale", async () => {
  await withFolder(async (folder) => {
    await Deno.mkdir(`${folder}/quantization`);
    // By a scale of 2 the weight 1 is half a step from 0 and from 2; 5 is so from 4 and 6, -255 the largest.
    const weight = Float32Array.of(-255, 1, 5, 8);
    const bytes = (view: ArrayBufferView<ArrayBuffer>) => new Uint8Array(view.buffer);
    const write = (codes: number[], { scale = 2, zero = 0 } = {}) => {
      const name = "int8wo.f32";
      return writeSafetensors(`${folder}/quantization/cases.safetensors`, [
        { name: "weight", dtype: "F32", shape: [1, 4], data: bytes(weight) },
        { name: `${name}.qdata`, dtype: "I8", shape: [1, 4], data: bytes(Int8Array.from(codes)) },
        { name: `${name}.scale`, dtype: "F32", shape: [1, 1], data: bytes(Float32Array.of(scale)) },
        { name: `${name}.zero_point`, dtype: "I8", shape: [1, 1], data: bytes(Int8Array.of(zero)) },
        {
          name: `${name}.dequant`,
          dtype: "F32",
          shape: [1, 4],
          data: bytes(Float32Array.from(codes, (c) => c * scale)),
        },
        { name: "int9wo.f32.qdata", dtype: "I8", shape: [1, 4], data: bytes(Int8Array.from(codes)) },
      ]);
    };
    const failures = async () => {
      const { lines } = await goldens(folder);
      assert.ok(lines.some((line) => /^skipped .*int9wo\.f32/.test(line)));
      return new Set(
        lines.filter((l) => l.startsWith("FAILED")).map((l) => /: (\S+) \[/.exec(l)![1]!.split(".").at(-1)),
      );
    };
    await write([-128, 0, 2, 4]);
    assert.deepEqual(await failures(), new Set());
    await write([-128, 0, 3, 4]);
    assert.deepEqual(await failures(), new Set(["dequant"]));
    await write([-128, 0, 2, 5]);
    assert.deepEqual(await failures(), new Set(["qdata", "dequant"]));
    await write([-128, 0, 1, 4]);
    assert.deepEqual(await failures(), new Set(["qdata", "dequant"]));
    await write([-128, 0, 2, 4], { scale: 2.000001, zero: 1 });
    assert.deepEqual(await failures(), new Set(["scale", "zero_point"]));
  });
});

Deno.test("what is no folder is refused in a sentence", async () => {
  for (const args of [[], ["tests/nowhere"], ["tests", "lib"]]) {
    const { code, stderr } = await goldens(...args);
    assert.equal(code, 1);
    assert.match(stderr, /pass one folder of goldens/);
  }
});
