import assert from "node:assert/strict";
import { withFolder } from "../folder.ts";
import { packFolder } from "../../tools/gpu_pack.ts";

/** A project that has nothing but what unpacks, and archives of a Deno that says how it was called. */
async function withPacked(test: (project: string, pack: string) => Promise<void>): Promise<void> {
  await withFolder(async (folder) => {
    const [project, staging] = [`${folder}/project`, `${folder}/staging`];
    await Deno.mkdir(`${project}/tools/gpu`, { recursive: true });
    for (const name of ["unpack.sh", "unpack.py"]) {
      await Deno.copyFile(`tools/gpu/${name}`, `${project}/tools/gpu/${name}`);
    }
    await Deno.mkdir(`${staging}/out/machine`, { recursive: true });
    await Deno.writeTextFile(`${staging}/out/machine/deno`, '#!/bin/sh\necho "$PWD|$DENO_DIR|$@"\n', { mode: 0o755 });
    // What no compressor makes smaller.
    await Deno.writeFile(`${staging}/noise`, crypto.getRandomValues(new Uint8Array(20_000)));
    const { pieces, bytes } = await packFolder(staging, `${project}/out/pack`, { name: "all", piece: 8192 });
    assert.ok(bytes > 20_000 && pieces === Math.ceil(bytes / 8192) && pieces >= 3, `${pieces} pieces`);
    await test(project, `${project}/out/pack`);
    assert.deepEqual(await Deno.readFile(`${project}/noise`), await Deno.readFile(`${staging}/noise`));
  });
}

/** Unpacks and runs with nothing of this machine but Python. */
async function unpack(project: string, ...args: string[]): Promise<{ code: number; said: string; complained: string }> {
  const { code, stdout, stderr } = await new Deno.Command("sh", {
    args: [`${project}/tools/gpu/unpack.sh`, ...args],
    clearEnv: true,
    env: { HOME: "/nowhere", PATH: "/usr/local/bin:/usr/bin:/bin" },
  }).output();
  const text = new TextDecoder();
  return { code, said: text.decode(stdout).trim(), complained: text.decode(stderr).trim() };
}

Deno.test("what was packed is put together where there is Python alone, once, and runs", async () => {
  await withPacked(async (project) => {
    const call = `${project}|${project}/out/machine/deno_dir|run --allow-all --cached-only tools/gpu.ts --part x`;
    assert.deepEqual(await unpack(project, "--part", "x"), { code: 0, said: call, complained: "unpacked all" });
    assert.deepEqual(await unpack(project, "--part", "x"), { code: 0, said: call, complained: "" });
  });
});

Deno.test("a piece that is missing or another one is named", async () => {
  await withPacked(async (project, pack) => {
    const second = await Deno.readFile(`${pack}/all-01/piece`);
    await Deno.remove(`${pack}/all-01/piece`);
    const missing = await unpack(project);
    assert.equal(missing.code, 1);
    assert.match(missing.complained, /all-01\/piece is not here/);
    const changed = second.slice();
    changed[7]! ^= 1;
    await Deno.writeFile(`${pack}/all-01/piece`, changed);
    const wrong = await unpack(project);
    assert.equal(wrong.code, 1);
    assert.match(wrong.complained, /pieces of all are not those that were packed/);
    await Deno.writeFile(`${pack}/all-01/piece`, second);
    assert.equal((await unpack(project)).code, 0);
  });
});
