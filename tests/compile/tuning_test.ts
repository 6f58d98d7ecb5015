import assert from "node:assert/strict";
import { TuningFile } from "../../lib/compile/tuning.ts";
import { withFolder } from "../folder.ts";

const FAST = { chosen: "wide", microseconds: { narrow: 12.5, wide: 10 } };

/** Runs something and gives what it warned of. */
async function warningsOf(run: () => Promise<void>): Promise<string[]> {
  const warnings: string[] = [];
  const warn = console.warn;
  console.warn = (text: string) => warnings.push(text);
  try {
    await run();
  } finally {
    console.warn = warn;
  }
  return warnings;
}

Deno.test("what one process wrote another one reads, for its own machine alone", async () => {
  await withFolder(async (folder) => {
    const path = `${folder}/deep/tuning.json`;
    const file = await TuningFile.open(path, "a cpu");
    assert.equal(file.get("a problem"), undefined);
    file.set("a problem", FAST);
    assert.deepEqual(file.get("a problem"), FAST);
    await file.save();
    assert.deepEqual((await TuningFile.open(path, "a cpu")).get("a problem"), FAST);
    const other = await TuningFile.open(path, "another cpu");
    assert.equal(other.get("a problem"), undefined);
    other.set("a problem", { chosen: "narrow", microseconds: { narrow: 1 } });
    await other.save();
    assert.deepEqual((await TuningFile.open(path, "a cpu")).get("a problem"), FAST);
    const left = await Array.fromAsync(Deno.readDir(`${folder}/deep`));
    assert.deepEqual(left.map(({ name }) => name).sort(), ["tuning.json", "tuning.json.lock"]);
  });
});

Deno.test("with no path nothing is remembered, and nothing is written where there is nothing new", async () => {
  const none = await TuningFile.open(undefined, "a cpu");
  none.set("a problem", FAST);
  await none.save();
  await withFolder(async (folder) => {
    await (await TuningFile.open(`${folder}/tuning.json`, "a cpu")).save();
    assert.deepEqual(await Array.fromAsync(Deno.readDir(folder)), []);
  });
});

Deno.test("writers that were open at the same time keep what the other wrote", async () => {
  await withFolder(async (folder) => {
    const path = `${folder}/tuning.json`;
    const [a, b] = [await TuningFile.open(path, "a cpu"), await TuningFile.open(path, "a cpu")];
    a.set("of a", FAST);
    b.set("of b", FAST);
    await Promise.all([a.save(), b.save()]);
    const after = await TuningFile.open(path, "a cpu");
    assert.deepEqual([after.get("of a"), after.get("of b")], [FAST, FAST]);
  });
});

Deno.test("processes that write at once lose nothing, and readers never see half a file", async () => {
  await withFolder(async (folder) => {
    const path = `${folder}/tuning.json`;
    const script = `
      import { TuningFile } from "${new URL("../../lib/compile/tuning.ts", import.meta.url)}";
      const [path, name] = Deno.args;
      for (let i = 0; i < 20; i++) {
        const file = await TuningFile.open(path, "a cpu");
        file.set(name + i, { chosen: "narrow", microseconds: { narrow: 1 + i } });
        await file.save();
      }`;
    await Deno.writeTextFile(`${folder}/writer.ts`, script);
    const writers = Array.from({ length: 4 }, (_, i) =>
      new Deno.Command(Deno.execPath(), {
        args: ["run", "--allow-all", "--no-check", `${folder}/writer.ts`, path, `writer ${i}: `],
      }).output());
    const done = await Promise.all(writers);
    for (const { code, stderr } of done) assert.equal(`${code} ${new TextDecoder().decode(stderr)}`, "0 ");
    const file = await TuningFile.open(path, "a cpu");
    for (let writer = 0; writer < 4; writer++) {
      for (let i = 0; i < 20; i++) {
        assert.deepEqual(
          file.get(`writer ${writer}: ${i}`)?.microseconds,
          { narrow: 1 + i },
          `writer ${writer}, entry ${i}`,
        );
      }
    }
  });
});

const BROKEN: Readonly<Record<string, [string, RegExp]>> = {
  "cut short": ['{"denoise_tuning": 1, "machi', /not JSON/],
  "empty": ["", /not JSON/],
  "a list": ["[]", /something else/],
  "of another program": ['{"name": "package"}', /something else/],
  "of a later format": ['{"denoise_tuning": 3, "machines": {}}', /format is 3/],
  "without machines": ['{"denoise_tuning": 2}', /machines are no object/],
  "with a machine that is none": ['{"denoise_tuning": 2, "machines": {"a cpu": 3}}', /a cpu is no object/],
  "with a choice that is none": [
    '{"denoise_tuning": 2, "machines": {"a cpu": {"p": {"chosen": "wide", "microseconds": {"narrow": 1}}}}}',
    /p is no tuning/,
  ],
  "with times that are none": [
    '{"denoise_tuning": 2, "machines": {"a cpu": {"p": {"chosen": "wide", "microseconds": {"wide": -1}}}}}',
    /p is no tuning/,
  ],
};

for (const [what, [text, reason]] of Object.entries(BROKEN)) {
  Deno.test(`a file that is ${what} is ignored with a warning, and left as it is`, async () => {
    await withFolder(async (folder) => {
      const path = `${folder}/tuning.json`;
      await Deno.writeTextFile(path, text);
      const warnings = await warningsOf(async () => {
        const file = await TuningFile.open(path, "a cpu");
        assert.equal(file.get("p"), undefined);
        file.set("p", FAST);
        await file.save();
      });
      assert.equal(warnings.length, 1);
      assert.ok(warnings[0]!.includes(path) && /DENOISE_AUTOTUNE_PATH/.test(warnings[0]!), warnings[0]);
      assert.match(warnings[0]!, reason);
      assert.equal(await Deno.readTextFile(path), text);
    });
  });
}

Deno.test("a file that cannot be written is a warning", async () => {
  await withFolder(async (folder) => {
    await Deno.mkdir(`${folder}/tuning.json.lock`);
    const warnings = await warningsOf(async () => {
      const file = await TuningFile.open(`${folder}/tuning.json`, "a cpu");
      file.set("p", FAST);
      await file.save();
    });
    assert.match(warnings.join(), /^Cannot remember .*tuning\.json: .*DENOISE_AUTOTUNE_PATH$/);
  });
});

Deno.test("the machines that were written longest ago are forgotten first", async () => {
  await withFolder(async (folder) => {
    const path = `${folder}/tuning.json`;
    for (let i = 0; i < 40; i++) {
      const file = await TuningFile.open(path, `cpu ${i}`);
      file.set("p", FAST);
      await file.save();
    }
    assert.equal((await TuningFile.open(path, "cpu 0")).get("p"), undefined);
    assert.deepEqual((await TuningFile.open(path, "cpu 39")).get("p"), FAST);
    assert.equal(Object.keys(JSON.parse(await Deno.readTextFile(path)).machines).length, 32);
  });
});
