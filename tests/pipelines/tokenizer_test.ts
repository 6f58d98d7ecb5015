import { deepStrictEqual, ok, rejects, strictEqual, throws } from "node:assert/strict";
import { ConfigError } from "../../lib/errors.ts";
import { Tokenizer } from "../../lib/pipelines/tokenizer.ts";

const MODEL = new URL("../../models/shapes-flux/", import.meta.url).pathname;
const CASES: { text: string; clip: number[]; t5: number[] }[] = JSON.parse(
  await Deno.readTextFile(new URL("../fixtures/tokenizers/cases.json", import.meta.url)),
);

const clip = await Tokenizer.load(`${MODEL}tokenizer`);
const t5 = await Tokenizer.load(`${MODEL}tokenizer_2`);

/** A copy of a tokenizer's folder, some of its files replaced, or left out where the replacement is `undefined`. */
async function withFiles(
  folder: string,
  files: Record<string, string | undefined>,
  test: (folder: string) => Promise<void>,
): Promise<void> {
  const copy = await Deno.makeTempDir();
  try {
    for await (const { name } of Deno.readDir(folder)) {
      if (!(name in files)) await Deno.copyFile(`${folder}/${name}`, `${copy}/${name}`);
    }
    for (const [name, text] of Object.entries(files)) {
      if (text !== undefined) await Deno.writeTextFile(`${copy}/${name}`, text);
    }
    await test(copy);
  } finally {
    await Deno.remove(copy, { recursive: true });
  }
}

Deno.test("CLIP's tokenizer gives transformers' ids on every text", () => {
  strictEqual(CASES.length, 60);
  for (const { text, clip: ids } of CASES) {
    deepStrictEqual([...clip.encode(text, { maxLength: ids.length }).ids], ids, JSON.stringify(text));
  }
});

Deno.test("T5's tokenizer gives transformers' ids on every text", () => {
  for (const { text, t5: ids } of CASES) {
    deepStrictEqual([...t5.encode(text, { maxLength: ids.length }).ids], ids, JSON.stringify(text));
  }
});

Deno.test("a tokenizer knows its length and its special tokens", () => {
  strictEqual(clip.maxLength, 77);
  deepStrictEqual([clip.bosId, clip.eosId, clip.padId], [0, 1, 1]);
  strictEqual(t5.maxLength, 64);
  deepStrictEqual([t5.bosId, t5.eosId, t5.padId], [undefined, 1, 0]);
  ok(clip.vocabSize > 500 && t5.vocabSize > 60);
});

Deno.test("encode pads by default, and not where asked", () => {
  const { ids, length, dropped } = t5.encode("a large red circle");
  strictEqual(ids.length, 64);
  strictEqual(length, 5);
  deepStrictEqual([...ids.subarray(4, 6)], [1, 0]);
  strictEqual(dropped, "");
  deepStrictEqual([...t5.encode("a large red circle", { padding: false }).ids], [...ids.subarray(0, 5)]);
});

Deno.test("encode keeps the special tokens of a text that is too long, and says what it dropped", () => {
  const text = "a large red circle on a white background";
  const cut = clip.encode(text, { maxLength: 6 });
  deepStrictEqual([...cut.ids], [0, 293, 323, 381, 356, 1]);
  strictEqual(cut.length, 6);
  strictEqual(cut.dropped, "on a white background");

  const t5Cut = t5.encode(text, { maxLength: 5 });
  deepStrictEqual([...t5Cut.ids], [3, 8, 28, 19, 1]);
  strictEqual(t5Cut.dropped, "on a white background");

  strictEqual(clip.encode(text, { maxLength: 10 }).dropped, "");
  strictEqual(clip.encode(text, { maxLength: 9 }).dropped, "background");
  strictEqual(clip.encode(text, { maxLength: 2 }).dropped, text);
});

Deno.test("decode gives the text back", () => {
  const text = "a large red circle on a white background";
  strictEqual(clip.decode(clip.encode(text).ids, { skipSpecialTokens: true }), text);
  strictEqual(t5.decode(t5.encode(text).ids, { skipSpecialTokens: true }), text);
  strictEqual(clip.decode(clip.encode("A Star!", { padding: false }).ids), "<|startoftext|>a star ! <|endoftext|>");
  strictEqual(clip.decode([]), "");
  throws(() => clip.decode([100_000]), { name: "RangeError", message: /100000/ });
});

Deno.test("encode refuses lengths with no room, and what is not a text", () => {
  for (const maxLength of [1, 0, -1, 2.5, NaN]) {
    throws(() => clip.encode("a", { maxLength }), { name: "RangeError", message: new RegExp(`${maxLength}`) });
  }
  throws(() => clip.encode(5 as unknown as string), TypeError);
});

Deno.test("special tokens come from special_tokens_map.json where the configuration has none", async () => {
  await withFiles(`${MODEL}tokenizer`, {
    "tokenizer_config.json": undefined,
    "special_tokens_map.json": JSON.stringify({ pad_token: { content: "!</w>" } }),
  }, async (folder) => {
    const tokenizer = await Tokenizer.load(folder);
    strictEqual(tokenizer.padId, 268);
    strictEqual(tokenizer.maxLength, Infinity);
    const { ids } = tokenizer.encode("a");
    deepStrictEqual([...ids], [0, 293, 1]);
    deepStrictEqual([...tokenizer.encode("a", { maxLength: 4 }).ids], [0, 293, 1, 268]);
  });
});

Deno.test("a limit of 1e30 is none", async () => {
  const config = JSON.parse(await Deno.readTextFile(`${MODEL}tokenizer_2/tokenizer_config.json`));
  config.model_max_length = 1e30;
  await withFiles(`${MODEL}tokenizer_2`, { "tokenizer_config.json": JSON.stringify(config) }, async (folder) => {
    strictEqual((await Tokenizer.load(folder)).maxLength, Infinity);
  });
});

/** Checks that a folder is refused with an error that names the file. */
function refused(file: string, message: RegExp, key?: string) {
  return (error: unknown): boolean => {
    ok(error instanceof ConfigError, `${error}`);
    ok(error.file?.endsWith(file), `${error.file}`);
    ok(message.test(error.message), error.message);
    if (key !== undefined) strictEqual(error.key, key);
    return true;
  };
}

Deno.test("missing files are named", async () => {
  await rejects(Tokenizer.load("no/such/folder"), refused("no/such/folder", /neither tokenizer.json nor both/));
  await withFiles(`${MODEL}tokenizer`, { "merges.txt": undefined }, async (folder) => {
    await rejects(Tokenizer.load(folder), refused(folder, /vocab.json and merges.txt/));
  });
  await withFiles(`${MODEL}tokenizer_2`, { "tokenizer.json": undefined, "spiece.model": "" }, async (folder) => {
    await rejects(Tokenizer.load(folder), refused(folder, /spiece.model is not read/));
  });
});

const BROKEN: [string, string, Record<string, string>, RegExp, string?][] = [
  ["tokenizer", "vocab.json", { "vocab.json": "{" }, /not JSON/],
  ["tokenizer", "vocab.json", { "vocab.json": "[]" }, /not a JSON object/],
  ["tokenizer", "vocab.json", { "vocab.json": '{"a":"b"}' }, /"a" has the id "b"/, "a"],
  ["tokenizer", "vocab.json", { "vocab.json": '{"a":0}', "merges.txt": "" }, /lacks the special token/],
  ["tokenizer", "merges.txt", { "merges.txt": "#version: 0.2\ng r\nnot a pair\n" }, /line 3 is "not a pair"/],
  ["tokenizer", "merges.txt", { "merges.txt": "#version: 0.2\nzz qq\n" }, /line 2/],
  ["tokenizer", "tokenizer_config.json", { "tokenizer_config.json": "null" }, /not a JSON object/],
  ["tokenizer", "tokenizer_config.json", { "tokenizer_config.json": '{"eos_token":5}' }, /eos_token is 5/, "eos_token"],
  [
    "tokenizer",
    "tokenizer_config.json",
    { "tokenizer_config.json": '{"tokenizer_class":"GPT2Tokenizer"}' },
    /GPT2Tokenizer/,
    "tokenizer_class",
  ],
  [
    "tokenizer",
    "tokenizer_config.json",
    { "tokenizer_config.json": '{"model_max_length":0}' },
    /model_max_length is 0/,
    "model_max_length",
  ],
  [
    "tokenizer",
    "tokenizer_config.json",
    { "tokenizer_config.json": '{"pad_token":"none such"}' },
    /"none such" is not in its vocabulary/,
    "pad_token",
  ],
  ["tokenizer_2", "tokenizer.json", { "tokenizer.json": '{"model":' }, /not JSON/],
  ["tokenizer_2", "tokenizer.json", { "tokenizer.json": "{}" }, /has no model/, "model"],
  ["tokenizer_2", "tokenizer.json", { "tokenizer.json": '{"model":{"type":"WordPiece"}}' }, /WordPiece/, "model.type"],
  [
    "tokenizer_2",
    "tokenizer.json",
    { "tokenizer.json": '{"model":{"type":"Unigram","vocab":[["a"]]}}' },
    /tokens and scores/,
    "model.vocab",
  ],
  [
    "tokenizer_2",
    "tokenizer.json",
    {
      "tokenizer.json":
        '{"model":{"type":"Unigram","unk_id":0,"vocab":[["a",0]]},"added_tokens":[],"pre_tokenizer":{"type":"None such"}}',
    },
    /does not describe a tokenizer/,
  ],
];

for (const [part, file, files, message, key] of BROKEN) {
  Deno.test(`a broken ${part}/${file} is refused: ${message.source}`, async () => {
    await withFiles(`${MODEL}${part}`, files, async (folder) => {
      await rejects(Tokenizer.load(folder), refused(file, message, key));
    });
  });
}
