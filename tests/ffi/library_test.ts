import assert from "node:assert/strict";
import { builtLibrary, libraryHash, openLibrary } from "../../ffi/library.ts";
import { schemaHash } from "../../lib/graph/schema.ts";
import { NativeError } from "../../lib/errors.ts";

/** A folder with a copy of the library, changed, and a record that says so or not. */
async function withCopy(
  change: (bytes: Uint8Array<ArrayBuffer>) => Uint8Array<ArrayBuffer>,
  options: { recorded: boolean },
  body: (path: string) => void | Promise<void>,
): Promise<void> {
  const folder = await Deno.makeTempDir();
  try {
    const original = builtLibrary();
    const path = `${folder}/library.so`;
    await Deno.writeFile(path, change(await Deno.readFile(original)));
    const library = await libraryHash(options.recorded ? path : original);
    await Deno.writeTextFile(`${path}.json`, JSON.stringify({ sources: "", library }));
    await body(path);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
}

const fails = (path: string, code: string, message: RegExp) =>
  assert.rejects(openLibrary(path), (e) => {
    assert.ok(e instanceof NativeError);
    assert.equal(e.code, code);
    assert.match(e.message, message);
    assert.match(e.message, /deno task build/);
    return true;
  });

Deno.test("a truncated library is found by its hash before it is opened", async () => {
  await withCopy((bytes) => bytes.slice(0, bytes.length >> 1), { recorded: false }, async (path) => {
    await fails(path, "corrupt", /is not the one that was built/);
  });
});

Deno.test("a library without a record is refused", async () => {
  await withCopy((bytes) => bytes, { recorded: true }, async (path) => {
    Deno.removeSync(`${path}.json`);
    await fails(path, "corrupt", /recorded none/);
  });
});

Deno.test("a library of another schema is refused", async () => {
  const wanted = new DataView(new ArrayBuffer(4));
  wanted.setUint32(0, schemaHash()[0], true);
  const word = new Uint8Array(wanted.buffer);
  await withCopy(
    (bytes) => {
      let found = 0;
      for (let at = bytes.indexOf(word[0]!); at >= 0; at = bytes.indexOf(word[0]!, at + 1)) {
        if (word.every((byte, i) => bytes[at + i] === byte)) {
          bytes[at]! ^= 1;
          found++;
        }
      }
      assert.ok(found > 0, "the library holds its schema's hash");
      return bytes;
    },
    { recorded: true },
    (path) => fails(path, "mismatch", /has the schema/),
  );
});

Deno.test("a file that is no library, and none at all, are refused", async () => {
  await withCopy(() => new TextEncoder().encode("no library"), { recorded: true }, async (path) => {
    await fails(path, "unusable", /Cannot open/);
    Deno.removeSync(path);
    await fails(path, "missing", /There is no native library/);
  });
});
