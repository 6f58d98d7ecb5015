import assert from "node:assert/strict";
import { dirname } from "node:path";
import { CheckpointError } from "../../lib/errors.ts";
import { finishUpdate, FolderUpdate } from "../../lib/tensor/folder_update.ts";
import { withFolder } from "../folder.ts";

const JOURNAL = ".denoise-update.json";

/** A folder's files, those of the folders in it too, with their text. */
async function treeOf(folder: string, prefix = ""): Promise<Record<string, string>> {
  const tree: Record<string, string> = {};
  for await (const { name, isDirectory } of Deno.readDir(folder)) {
    if (isDirectory) Object.assign(tree, await treeOf(`${folder}/${name}`, `${prefix}${name}/`));
    else tree[prefix + name] = await Deno.readTextFile(`${folder}/${name}`);
  }
  return tree;
}

async function plant(folder: string, tree: Readonly<Record<string, string>>): Promise<void> {
  for (const [name, text] of Object.entries(tree)) {
    await Deno.mkdir(dirname(`${folder}/${name}`), { recursive: true });
    await Deno.writeTextFile(`${folder}/${name}`, text);
  }
}

const OLD = { "a.txt": "old a", "part/b.txt": "old b", "part/gone.txt": "old" };
const NEW = { "a.txt": "new a", "part/b.txt": "new b", "other/c.txt": "new c" };

async function stage(update: FolderUpdate): Promise<void> {
  for (const [name, text] of Object.entries(NEW)) await update.writeText(name, text);
  update.remove("part/gone.txt");
}

Deno.test("an update takes place when it is committed, and leaves nothing beside it", async () => {
  await withFolder(async (folder) => {
    await plant(folder, OLD);
    {
      await using update = await FolderUpdate.begin(folder);
      await stage(update);
      const { "a.txt": a, "part/b.txt": b, "part/gone.txt": gone } = await treeOf(folder);
      assert.deepEqual([a, b, gone], ["old a", "old b", "old"]);
      assert.equal((await update.replaced()).size, 3);
      await update.commit();
    }
    assert.deepEqual(await treeOf(folder), NEW);
  });
});

Deno.test("an update that is not committed leaves nothing", async () => {
  await withFolder(async (folder) => {
    await plant(folder, OLD);
    {
      await using update = await FolderUpdate.begin(folder);
      await stage(update);
    }
    assert.deepEqual(await treeOf(folder), OLD);
  });
});

Deno.test("a file is copied from elsewhere, and stays where it is itself", async () => {
  await withFolder(async (folder) => {
    await plant(folder, { "from/x.json": "x", "to/y.json": "y" });
    await using update = await FolderUpdate.begin(`${folder}/to`);
    await update.copy("x.json", `${folder}/from/x.json`);
    await update.copy("y.json", `${folder}/to/y.json`);
    await update.commit();
    assert.deepEqual(await treeOf(`${folder}/to`), { "x.json": "x", "y.json": "y" });
  });
});

Deno.test("whoever comes next carries on with an update that was cut off, at each of its steps", async () => {
  const staged = (name: string) => name.replace(/[^/]+$/, ".$&.0123abcd.partial");
  const changes: { to: string; from?: string }[] = [
    ...Object.keys(NEW).map((to) => ({ to, from: staged(to) })),
    { to: "part/gone.txt" },
  ];
  for (let done = 0; done <= changes.length; done++) {
    await withFolder(async (folder) => {
      await plant(folder, OLD);
      for (const [name, text] of Object.entries(NEW)) await plant(folder, { [staged(name)]: text });
      await plant(folder, { [JOURNAL]: JSON.stringify({ version: 1, changes }) });
      for (const { to, from } of changes.slice(0, done)) {
        if (from) await Deno.rename(`${folder}/${from}`, `${folder}/${to}`);
        else await Deno.remove(`${folder}/${to}`);
      }
      // A folder inside is as good a place to begin.
      await finishUpdate(done % 2 ? folder : `${folder}/part`);
      assert.deepEqual(await treeOf(folder), NEW, `${done} steps were done`);
    });
  }
});

Deno.test("what a killed process left before its update took place is removed by the next one", async () => {
  await withFolder(async (folder) => {
    await plant(folder, { ...OLD, ".a.txt.01234567.partial": "half", ".hidden.partial": "mine" });
    await finishUpdate(folder);
    await using update = await FolderUpdate.begin(folder);
    assert.deepEqual(await treeOf(folder), { ...OLD, ".hidden.partial": "mine" });
    await update.writeText("a.txt", "new");
    await update.commit();
    assert.deepEqual(await treeOf(folder), { ...OLD, "a.txt": "new", ".hidden.partial": "mine" });
  });
});

Deno.test("two updates of a folder take turns", async () => {
  await withFolder(async (folder) => {
    const write = async (text: string) => {
      await using update = await FolderUpdate.begin(folder);
      for (const name of ["a", "b", "c"]) {
        await update.writeText(name, text);
        await new Promise((resolve) => setTimeout(resolve, 2));
      }
      await update.commit();
      assert.equal(new Set(Object.values(await treeOf(folder))).size, 1);
    };
    await Promise.all(["1", "2", "3", "4"].map(write));
  });
});

Deno.test("a journal that reaches out of its folder, or is none, is refused", async () => {
  const hostile: unknown[] = [
    {},
    [],
    { version: 2, changes: [] },
    { version: 1, changes: {} },
    ...[
      { to: "../outside" },
      { to: "/etc/outside" },
      { to: "a/../../outside" },
      { to: "" },
      { to: "a\\b" },
      { to: 3 },
      null,
      { to: "a.txt", from: "../.x.01234567.partial" },
      { to: "a.txt", from: "part/.x.01234567.partial" },
      { to: "a.txt", from: "part/b.txt" },
      { to: "a.txt", from: "b.txt" },
      { to: "a.txt", from: null },
    ].map((change) => ({ version: 1, changes: [change] })),
  ];
  for (const journal of hostile) {
    await withFolder(async (folder) => {
      await plant(`${folder}/inner`, { ...OLD, [JOURNAL]: JSON.stringify(journal) });
      await plant(folder, { "outside": "here" });
      const before = await treeOf(folder);
      await assert.rejects(
        finishUpdate(`${folder}/inner`),
        (e) => e instanceof CheckpointError && e.file === `${folder}/inner/${JOURNAL}` && /remove it/.test(e.message),
        JSON.stringify(journal),
      );
      assert.deepEqual(await treeOf(folder), before);
    });
  }
});
