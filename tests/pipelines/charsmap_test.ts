import { deepStrictEqual, ok, rejects, strictEqual, throws } from "node:assert/strict";
import { ConfigError } from "../../lib/errors.ts";
import { Charsmap } from "../../lib/pipelines/charsmap.ts";
import { Tokenizer } from "../../lib/pipelines/tokenizer.ts";

/** A unigram tokenizer with T5's own normalization (nmt_nfkc), trained on a page of text, and transformers' ids. */
const FOLDER = new URL("t5_nmt_nfkc", import.meta.url).pathname;
const definition = JSON.parse(await Deno.readTextFile(`${FOLDER}/tokenizer.json`));
const CHARSMAP: string = definition.normalizer.normalizers[0].precompiled_charsmap;

Deno.test("a tokenizer with a compiled map gives transformers' ids on texts of every script", async () => {
  const tokenizer = await Tokenizer.load(FOLDER);
  const cases: { text: string; ids: number[] }[] = JSON.parse(await Deno.readTextFile(`${FOLDER}/cases.json`));
  strictEqual(cases.length, 200);
  for (const { text, ids } of cases) {
    deepStrictEqual([...tokenizer.encode(text, { padding: false }).ids], ids, JSON.stringify(text));
  }
});

Deno.test("the map replaces what it knows and keeps the rest", () => {
  const map = new Charsmap(CHARSMAP);
  const cases: [string, string][] = [
    ["", ""],
    ["plain text", "plain text"],
    ["ﬁne ½ Ⅷ ｆｕｌｌ ㍿", "fine 1⁄2 VIII full 株式会社"],
    ["e\u0301", "é"], // composed
    ["tab\tline\r\nend\u3000", "tab line end "], // a carriage return and a line feed are one
    ["zero\u200bwidth", "zero width"],
    ["\x01\x7f", ""],
    ["～", "～"], // which NFKC would make a tilde
    ["👩\u200d👧", "👩\u200d👧"], // a joined emoji stays joined
  ];
  for (const [text, normal] of cases) strictEqual(map.normalize(text), normal, JSON.stringify(text));
});

Deno.test("broken maps are refused, or read within their bounds", async () => {
  for (const broken of ["", "AAAA", "////fw==", "AwAAAAAA"]) throws(() => new Charsmap(broken), SyntaxError, broken);
  throws(() => new Charsmap("*"), SyntaxError);

  // A map of one unit, and real ones with bytes changed: texts come out, whatever they say.
  strictEqual(new Charsmap("BAAAAAAAAAA=").normalize("a é 北"), "a é 北");
  const bytes = Uint8Array.fromBase64(CHARSMAP);
  for (let seed = 1; seed < 50; seed++) {
    const changed = bytes.slice();
    for (let i = 0; i < 500; i++) changed[4 + Math.imul(seed * 500 + i, 2654435761) % (bytes.length - 4) >>> 0] = i;
    strictEqual(typeof new Charsmap(changed.toBase64()).normalize("ﬁne ½ Ⅷ e\u0301 👩\u200d👧"), "string");
  }

  const folder = await Deno.makeTempDir();
  const wrong = structuredClone(definition);
  wrong.normalizer.normalizers[0].precompiled_charsmap = "AAAA";
  await Deno.writeTextFile(`${folder}/tokenizer.json`, JSON.stringify(wrong));
  await rejects(Tokenizer.load(folder), (error) => {
    ok(error instanceof ConfigError && error.file!.endsWith("tokenizer.json"), `${error}`);
    return /the charsmap of 3 bytes/.test(error.message);
  });
  await Deno.remove(folder, { recursive: true });
});
