import { deepStrictEqual, ok, rejects, strictEqual, throws } from "node:assert/strict";
import { CheckpointError, OutputError } from "../../lib/errors.ts";
import {
  byteSize,
  openCheckpoint,
  openSafetensors,
  parseHeader,
  readTensor,
  type SafetensorsDtype,
  type TensorToWrite,
  writeSafetensors,
} from "../../lib/tensor/safetensors.ts";
import { withFolder } from "../folder.ts";

const encoder = new TextEncoder();

/** A file of this header, as text or as an object, and this many bytes of data. */
function makeFile(header: unknown, dataBytes: number = 0): Uint8Array<ArrayBuffer> {
  const json = header instanceof Uint8Array
    ? header
    : encoder.encode(typeof header === "string" ? header : JSON.stringify(header));
  const file = new Uint8Array(8 + json.length + dataBytes);
  new DataView(file.buffer).setBigUint64(0, BigInt(json.length), true);
  file.set(json, 8);
  return file;
}

function parse(file: Uint8Array, fileSize: number = file.length) {
  return parseHeader(file, { file: "x.safetensors", fileSize });
}

/** Checks that a file is refused with an error that names the file, the key, and what is wrong. */
function assertRefused(file: Uint8Array, message: RegExp, key?: string, fileSize?: number): void {
  throws(() => parse(file, fileSize), (error) => {
    ok(error instanceof CheckpointError, `${error}`);
    strictEqual(error.file, "x.safetensors");
    if (key !== undefined) strictEqual(error.key, key);
    ok(error.message.startsWith("Cannot read x.safetensors as "), error.message);
    ok(message.test(error.message), error.message);
    ok(/: (download|convert)[^:]*$/.test(error.message), `no remedy: ${error.message}`);
    ok(error.message.length < 600, error.message);
    return true;
  });
}

const U8 = (begin: number, end: number) => ({ dtype: "U8", shape: [end - begin], data_offsets: [begin, end] });

Deno.test("parseHeader reads names, dtypes, shapes, places and metadata", () => {
  const file = makeFile(
    ' {"a":{"dtype":"BF16","shape":[2,3],"data_offsets":[4,16]},\n"__metadata__":{"format":"pt","né\\u0077":"\\"\\\\"},"b":{"data_offsets":[0,4],"shape":[],"dtype":"F32"},"none":{"dtype":"I64","shape":[0,5],"data_offsets":[4,4],"later":[{"x":[1,-2.5e3,null,true]}]}} \t'
      .trimStart(),
    16,
  );
  const { dataOffset, metadata, tensors } = parse(file);
  strictEqual(dataOffset, file.length - 16);
  deepStrictEqual(metadata, { format: "pt", "néw": '"\\' });
  deepStrictEqual([...tensors.keys()], ["a", "b", "none"]);
  deepStrictEqual(tensors.get("a"), {
    file: "x.safetensors",
    name: "a",
    dtype: "BF16",
    shape: [2, 3],
    offset: dataOffset + 4,
    byteLength: 12,
  });
  deepStrictEqual(tensors.get("b")!.shape, []);
  strictEqual(tensors.get("none")!.byteLength, 0);
});

Deno.test("parseHeader takes a file of nothing, and metadata named like an object's own fields", () => {
  strictEqual(parse(makeFile("{}")).tensors.size, 0);
  const { metadata } = parse(makeFile('{"__metadata__":{"__proto__":"p","constructor":"c"}}'));
  deepStrictEqual(Object.entries(metadata), [["__proto__", "p"], ["constructor", "c"]]);
  strictEqual(parse(makeFile({ constructor: U8(0, 1) }, 1)).tensors.get("constructor")!.byteLength, 1);
});

Deno.test("parseHeader knows every dtype's size", () => {
  const all = "F64 F32 F16 BF16 F8_E4M3 F8_E5M2 I64 I32 I16 I8 U8 U16 U32 U64 BOOL".split(" ") as SafetensorsDtype[];
  deepStrictEqual(Object.keys(byteSize).sort(), all.sort());
  for (const dtype of all) {
    const size = 3 * byteSize[dtype];
    strictEqual(parse(makeFile({ t: { dtype, shape: [3], data_offsets: [0, size] } }, size)).tensors.size, 1);
  }
});

Deno.test("parseHeader refuses a file that is cut or whose header lies about its length", () => {
  assertRefused(new Uint8Array(0), /it has 0 bytes/);
  assertRefused(new Uint8Array(7), /it has 7 bytes/);
  const file = makeFile({ t: U8(0, 4) }, 4);
  for (let length = 8; length < file.length - 4; length++) assertRefused(file.slice(0, length), /its header takes/);
  for (let length = file.length - 4; length < file.length; length++) {
    assertRefused(file.slice(0, length), /tensor "t" ends at 4 and the file has/, "t");
  }
  assertRefused(file.slice(0, 20), /could be read/, undefined, file.length);

  const lying = (length: bigint, fileSize?: number) => {
    const bytes = file.slice();
    new DataView(bytes.buffer).setBigUint64(0, length, true);
    return [bytes, fileSize ?? bytes.length] as const;
  };
  for (const length of [2n ** 64n - 1n, 2n ** 63n, 2n ** 53n, 2n ** 32n, 100_000_001n]) {
    const [bytes, size] = lying(length, 2 ** 53);
    assertRefused(bytes, new RegExp(`${length} bytes, over the limit of 100000000`), undefined, size);
  }
  assertRefused(lying(1000n)[0], /its header takes 1000 bytes and the file has/);
  assertRefused(lying(0n)[0], /starts with "" in place of "\{"/);
  assertRefused(lying(10n)[0], /a string with no end|should start with/);
});

Deno.test("parseHeader refuses a header that is not a JSON object in UTF-8", () => {
  assertRefused(makeFile(Uint8Array.of(0x7b, 0xff, 0x7d)), /is not UTF-8/);
  assertRefused(makeFile(Uint8Array.of(0x7b, 0x22, 0xed, 0xa0, 0x80, 0x22, 0x7d)), /is not UTF-8/);
  for (const text of ["[]", "null", " {}", "\ufeff{}", '"{}"', "7"]) assertRefused(makeFile(text), /starts with/);
  const broken = [
    "{",
    "{}x",
    "{}{}",
    "{,}",
    '{"a"}',
    '{"a":}',
    "{a:1}",
    "{'a':1}",
    '{"__metadata__":{},}',
    '{"__metadata__":{"a":"b",}}',
    '{"__metadata__":{"a":"\t"}}',
    '{"__metadata__":{"a":"\\x"}}',
    '{"__metadata__":{"a":"\\u12"}}',
    '{"__metadata__":{"a":"b"]}',
    '{"__metadata__":{"a":"b\\',
    '{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"more":01}}',
    '{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"more":[1,]}}',
    '{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"more":truth}}',
    '{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"more":NaN}}',
  ];
  for (const text of broken) assertRefused(makeFile(text), /its header is broken at character \d+: /);
});

Deno.test("parseHeader refuses a key that comes twice, at every level", () => {
  assertRefused(makeFile('{"t":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"t":{}}'), /key "t" twice/, "t");
  assertRefused(makeFile('{"t":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"\\u0074":{}}'), /key "t" twice/, "t");
  assertRefused(makeFile('{"t":{"dtype":"U8","shape":[0],"dtype":"I8"}}'), /key "dtype" twice in "t"/, "dtype");
  assertRefused(makeFile('{"__metadata__":{},"__metadata__":{}}'), /"__metadata__" twice/, "__metadata__");
  assertRefused(makeFile('{"__metadata__":{"a":"1","a":"1"}}'), /"a" twice in "__metadata__"/, "a");
  assertRefused(
    makeFile('{"t":{"dtype":"U8","shape":[0],"data_offsets":[0,0],"x":{"y":1,"y":1}}}'),
    /"y" twice/,
    "y",
  );
});

Deno.test("parseHeader refuses metadata that is not strings", () => {
  const key = "__metadata__";
  for (const value of ["1", "null", "{}", "[]", "true"]) {
    assertRefused(makeFile(`{"__metadata__":{"a":${value}}}`), /"a" of __metadata__ should start with/, key);
  }
  for (const value of ["1", "null", "[]", '"a"']) {
    assertRefused(makeFile(`{"__metadata__":${value}}`), /__metadata__ should start with/, key);
  }
});

Deno.test("parseHeader refuses an entry whose fields are missing or wrong", () => {
  const entry = { dtype: "F32", shape: [2], data_offsets: [0, 8] };
  for (const field of Object.keys(entry)) {
    assertRefused(makeFile({ t: { ...entry, [field]: undefined } }, 8), new RegExp(`"t" has no ${field}`), "t");
  }
  for (const dtype of ["F31", "f32", "", "constructor", "__proto__", "toString", "x".repeat(9999)]) {
    assertRefused(
      makeFile({ t: { ...entry, dtype } }, 8),
      /"t" has the unknown dtype ".*convert it to one of F64/,
      "t",
    );
  }
  for (const dtype of [1, null, ["F32"]]) {
    assertRefused(makeFile({ t: { ...entry, dtype } }, 8), /dtype of tensor "t"/, "t");
  }
  for (const value of [[-1], [1.5], ["2"], [null], [[2]], [2 ** 53], [1e300]]) {
    assertRefused(makeFile({ t: { ...entry, shape: value } }, 8), /shape of tensor "t" has the element/, "t");
  }
  for (const text of ["[2e0]", "[02]", "[+2]", "[-0]", "[99999999999999999999999]", `[${"9".repeat(5000)}]`]) {
    assertRefused(makeFile(`{"t":{"shape":${text}}}`), /shape of tensor "t" has the element/, "t");
  }
  for (const value of [{}, 2, "2", null]) {
    assertRefused(makeFile({ t: { ...entry, shape: value } }, 8), /shape of tensor "t" should start with/, "t");
  }
  assertRefused(makeFile({ t: { ...entry, shape: new Array(65).fill(1) } }, 8), /has more than 64 elements/, "t");
  for (const value of [null, [], 3, "x"]) assertRefused(makeFile({ t: value }), /tensor "t" should start with/, "t");
});

Deno.test("parseHeader refuses a shape whose size overflows", () => {
  const big = Number.MAX_SAFE_INTEGER;
  for (const shape of [[big, 2], [2 ** 27, 2 ** 27], [big], [2 ** 52], [big, big, 0], new Array(64).fill(big)]) {
    assertRefused(makeFile({ t: { dtype: "F64", shape, data_offsets: [0, 0] } }), /whose size overflows/, "t");
  }
});

Deno.test("parseHeader refuses data_offsets that are not the tensor's", () => {
  const at = (...data_offsets: number[]) => makeFile({ t: { dtype: "F32", shape: [2], data_offsets } }, 8);
  assertRefused(at(8, 0), /begins at 8, after its end at 0/, "t");
  assertRefused(at(0, 9), /ends at 9 and the file has 8 bytes/, "t");
  assertRefused(at(2 ** 53 - 9, 2 ** 53 - 1), /the file has 8 bytes/, "t");
  assertRefused(at(0, 4), /takes 8 bytes by its shape \[2\] and dtype F32, not 4/, "t");
  assertRefused(at(), /has 0 data_offsets/, "t");
  assertRefused(at(0), /has 1 data_offsets/, "t");
  assertRefused(at(0, 8, 8), /more than 2 elements/, "t");
  assertRefused(at(-8, 0), /has the element/, "t");
});

Deno.test("parseHeader refuses overlaps, holes and rests", () => {
  assertRefused(makeFile({ a: U8(0, 4), b: U8(3, 6) }, 6), /tensor "b" overlaps tensor "a" by 1 bytes/, "b");
  assertRefused(makeFile({ b: U8(3, 6), a: U8(0, 4) }, 6), /tensor "b" overlaps tensor "a"/, "b");
  assertRefused(makeFile({ a: U8(0, 4), b: U8(0, 4) }, 4), /overlaps/, "b");
  assertRefused(makeFile({ a: U8(0, 6), b: U8(2, 3) }, 6), /overlaps/, "b");
  assertRefused(makeFile({ a: U8(0, 6), b: U8(2, 2) }, 6), /overlaps/, "b");
  assertRefused(makeFile({ a: U8(0, 2), b: U8(3, 6) }, 6), /1 bytes before tensor "b" belong to no tensor/, "b");
  assertRefused(makeFile({ a: U8(2, 6) }, 6), /2 bytes before tensor "a"/, "a");
  assertRefused(makeFile({ a: U8(0, 6) }, 9), /3 bytes at its end/);
  assertRefused(makeFile("{}", 1), /1 bytes at its end/);
});

Deno.test("parseHeader takes linear time and bounded memory, whatever the header", () => {
  const megabytes = 8;
  const fill = (text: string) => text.repeat(Math.ceil(megabytes * 1e6 / text.length));
  const entries = Array.from({ length: 50_000 }, (_, i) => `"${i}":{"dtype":"U8","shape":[1],"data_offsets":[`);
  const hostile: Record<string, string> = {
    brackets: fill("["),
    nested: `{"t":{"x":${fill("[")}`,
    objects: `{"t":{"x":${fill('{"":')}`,
    key: `{"${fill("k")}`,
    escapes: `{"${fill("\\u0041")}":{}}`,
    spaces: `{${fill(" ")}`,
    digits: `{"t":{"shape":[${fill("9")}]}}`,
    ones: `{"t":{"shape":[${fill("1,")}1]}}`,
    empty: `{${fill('"t":{},')}`,
    skipped: `{"t":{"x":[${fill("0,")}0]}}`,
    overlapping: `{${entries.map((entry) => `${entry}0,1]}`).join(",")}}`,
    reversed: `{${entries.map((entry, i) => `${entry}${49_999 - i},${50_000 - i}]}`).join(",")}}`,
  };
  for (const [name, header] of Object.entries(hostile)) {
    const file = makeFile(header, 1);
    const start = performance.now();
    throws(() => parse(file), CheckpointError, name);
    ok(performance.now() - start < 2000, `${name} took ${performance.now() - start} ms`);
  }
  const metadata = makeFile(`{"__metadata__":{"program":"${fill("p\\n")}"}}`);
  ok(parse(metadata).metadata.program!.length > megabytes * 5e5);
});

Deno.test("openSafetensors reads a header longer than its first read, and readTensor what lies behind it", async () => {
  await withFolder(async (folder) => {
    const path = `${folder}/long.safetensors`;
    const metadata = { note: "n".repeat(300_000) };
    const data = Uint8Array.of(1, 2, 3, 4);
    await writeSafetensors(path, [{ name: "t", dtype: "F32", shape: [1], data }], { metadata });
    const file = openSafetensors(path);
    strictEqual(file.path, path);
    strictEqual(file.size, Deno.statSync(path).size);
    deepStrictEqual(file.metadata, metadata);
    deepStrictEqual(readTensor(file, "t"), data);
  });
});

Deno.test("openSafetensors opens every fixture, and tensors cover it", () => {
  let files = 0;
  const walk = (folder: string): void => {
    for (const entry of Deno.readDirSync(folder)) {
      const path = `${folder}/${entry.name}`;
      if (entry.isDirectory) walk(path);
      if (!path.endsWith(".safetensors")) continue;
      const { dataOffset, size, tensors } = openSafetensors(path);
      strictEqual([...tensors.values()].reduce((sum, tensor) => sum + tensor.byteLength, dataOffset), size);
      files++;
    }
  };
  walk("tests/fixtures");
  walk("models");
  ok(files > 10);
});

Deno.test("openSafetensors and readTensor name what is not there", async () => {
  throws(() => openSafetensors("tests/no.safetensors"), {
    name: "CheckpointError",
    file: "tests/no.safetensors",
    message: /tests\/no\.safetensors.*check the path/,
  });
  throws(() => openSafetensors("tests"), { name: "CheckpointError", message: /it is not a file/ });
  await withFolder((folder) => {
    const path = `${folder}/x.safetensors`;
    Deno.writeFileSync(path, makeFile({ t: U8(0, 4) }, 4));
    const file = openSafetensors(path);
    throws(() => readTensor(file, "u"), { name: "CheckpointError", file: path, key: "u", message: /"u"/ });
    Deno.truncateSync(path, file.size - 1);
    throws(() => readTensor(file, "t"), { name: "CheckpointError", key: "t", message: /takes 4 bytes and 3 are left/ });
    Deno.removeSync(path);
    throws(() => readTensor(file, "t"), { name: "CheckpointError", file: path });
  });
});

function makeShards(folder: string, weightMap: unknown, shards: Record<string, string[]>): string {
  for (const [shard, names] of Object.entries(shards)) {
    const header = Object.fromEntries(names.map((name, i) => [name, U8(i, i + 1)]));
    const file = makeFile(header, names.length);
    for (let i = 0; i < names.length; i++) file[file.length - names.length + i] = names[i]!.charCodeAt(0);
    Deno.writeFileSync(`${folder}/${shard}`, file);
  }
  const index = `${folder}/model.safetensors.index.json`;
  Deno.writeTextFileSync(
    index,
    typeof weightMap === "string" ? weightMap : JSON.stringify({ metadata: { total_size: 3 }, weight_map: weightMap }),
  );
  return index;
}

const ONE = "model-00001-of-00002.safetensors";
const TWO = "model-00002-of-00002.safetensors";

Deno.test("openCheckpoint opens a folder, a file and an index", async () => {
  const mini = openCheckpoint("tests/fixtures/flux-dev-mini");
  strictEqual(mini.path, "tests/fixtures/flux-dev-mini/diffusion_pytorch_model.safetensors");
  deepStrictEqual(openCheckpoint(mini.path).tensors, mini.tensors);
  ok(openCheckpoint("tests/fixtures/t5-mini", "model").tensors.size > 0);
  throws(() => openCheckpoint("tests/fixtures/t5-mini"), {
    name: "CheckpointError",
    message: /neither diffusion_pytorch_model\.safetensors nor/,
  });
  throws(() => openCheckpoint("tests/nowhere"), { name: "CheckpointError", file: "tests/nowhere" });

  await withFolder((folder) => {
    const index = makeShards(folder, { a: ONE, b: TWO, c: ONE }, { [ONE]: ["a", "c", "unlisted"], [TWO]: ["b"] });
    for (const path of [folder, index]) {
      const checkpoint = openCheckpoint(path, "model");
      deepStrictEqual([...checkpoint.tensors.keys()], ["a", "b", "c"]);
      deepStrictEqual(checkpoint.files.map((file) => file.path), [`${folder}/${ONE}`, `${folder}/${TWO}`]);
      strictEqual(checkpoint.tensors.get("b")!.file, `${folder}/${TWO}`);
      for (const name of "abc") deepStrictEqual(readTensor(checkpoint, name), encoder.encode(name));
    }
  });
});

Deno.test("openCheckpoint refuses an index that its shards do not keep", async () => {
  const refused: [unknown, Record<string, string[]>, RegExp, string | undefined][] = [
    [{ a: ONE, b: TWO }, { [ONE]: ["a"], [TWO]: ["c"] }, /maps tensor "b" to .*00002.*no tensor of that name/, "b"],
    [{ a: ONE, b: TWO }, { [ONE]: ["a", "b"], [TWO]: ["b"] }, /both .*00002.* and .*00001.* hold tensor "b"/, "b"],
    [{ a: ONE, b: TWO }, { [ONE]: ["a"] }, /00002.*check the path/, undefined],
    [{ a: "../a.safetensors" }, {}, /maps tensor "a" to "\.\.\/a\.safetensors"/, "a"],
    [{ a: "/etc/passwd" }, {}, /"\/etc\/passwd"/, "a"],
    [{ a: "a.bin" }, {}, /"a\.bin"/, "a"],
    [{ a: 3 }, {}, /"a" of weight_map should start with/, "weight_map"],
    [{}, {}, /names no tensor/, "weight_map"],
    ["{}", {}, /names no tensor/, "weight_map"],
    ["[]", {}, /should start with/, undefined],
    ['{"weight_map":{"a":"x","a":"x"}}', {}, /key "a" twice/, "a"],
    ['{"weight_map":{"a":"x"},"weight_map":{}}', {}, /key "weight_map" twice/, "weight_map"],
    ['{"weight_map":{"a":', {}, /index is broken at character 19/, "weight_map"],
  ];
  for (const [weightMap, shards, message, key] of refused) {
    await withFolder((folder) => {
      const index = makeShards(folder, weightMap, shards);
      throws(() => openCheckpoint(index), (error) => {
        ok(error instanceof CheckpointError, `${error}`);
        ok(message.test(error.message), error.message);
        strictEqual(error.key, key);
        ok(error.file!.startsWith(folder));
        return true;
      });
    });
  }
});

Deno.test("writeSafetensors gives back what it took, aligned, largest elements first", async () => {
  await withFolder(async (folder) => {
    const dtypes = Object.keys(byteSize) as SafetensorsDtype[];
    const tensors: TensorToWrite[] = dtypes.flatMap((dtype, i) =>
      [[3], [], [2, 0], [1, 5, 3]].map((shape, j) => {
        const length = shape.reduce((a, b) => a * b, byteSize[dtype]);
        const data = Uint8Array.from({ length }, (_, k) => i * 31 + j * 7 + k);
        return { name: `näme "${j}"\n.${dtype}`, dtype, shape, data: j === 3 ? () => Promise.resolve(data) : data };
      })
    );
    const metadata = { format: "pt", "": "empty", __proto__x: "\u2028" };
    const path = `${folder}/all.safetensors`;
    await writeSafetensors(path, tensors.toReversed(), { metadata });
    const file = openSafetensors(path);
    deepStrictEqual(file.metadata, metadata);
    strictEqual(file.tensors.size, tensors.length);
    strictEqual(file.dataOffset % 8, 0);
    for (const { name, dtype, shape, data } of tensors) {
      const tensor = file.tensors.get(name)!;
      strictEqual(tensor.dtype, dtype);
      deepStrictEqual(tensor.shape, shape);
      strictEqual(tensor.offset % byteSize[dtype], 0);
      deepStrictEqual(readTensor(file, name), typeof data === "function" ? await data() : data);
    }
    const sizes = [...file.tensors.values()].map((tensor) => byteSize[tensor.dtype]);
    deepStrictEqual(sizes, sizes.toSorted((a, b) => b - a));

    // The bytes depend on the tensors alone, not on their order.
    const again = `${folder}/again.safetensors`;
    await writeSafetensors(again, tensors, { metadata });
    deepStrictEqual(Deno.readFileSync(again), Deno.readFileSync(path));
    await writeSafetensors(again, []);
    strictEqual(openSafetensors(again).tensors.size, 0);
    deepStrictEqual([...Deno.readDirSync(folder)].map((entry) => entry.name).sort(), [
      "again.safetensors",
      "all.safetensors",
    ]);
  });
});

Deno.test("writeSafetensors leaves no part of a file that failed, and the earlier file whole", async () => {
  await withFolder(async (folder) => {
    const path = `${folder}/x.safetensors`;
    const good: TensorToWrite = { name: "a", dtype: "U8", shape: [2], data: Uint8Array.of(1, 2) };
    await writeSafetensors(path, [good]);
    const before = Deno.readFileSync(path);
    const boom = () => Promise.reject(new EvalError("boom"));
    await rejects(writeSafetensors(path, [good, { ...good, name: "b", data: boom }]), EvalError);
    await rejects(writeSafetensors(path, [{ ...good, data: () => new Uint8Array(3) }]), TypeError);
    deepStrictEqual(Deno.readFileSync(path), before);

    Deno.mkdirSync(`${folder}/taken.safetensors`);
    for (const wrong of [`${folder}/taken.safetensors`, `${folder}/no/x.safetensors`, `${path}/x.safetensors`]) {
      await rejects(writeSafetensors(wrong, [good]), (error) => {
        ok(error instanceof OutputError, `${error}`);
        strictEqual(error.file, wrong);
        ok(error.message.includes(wrong));
        return true;
      });
    }
    deepStrictEqual([...Deno.readDirSync(folder)].map((entry) => entry.name).sort(), [
      "taken.safetensors",
      "x.safetensors",
    ]);
  });
});

Deno.test("writeSafetensors refuses what the format cannot hold, before it touches the disk", async () => {
  const good: TensorToWrite = { name: "a", dtype: "F32", shape: [2], data: new Uint8Array(8) };
  const path = "tests/never.safetensors";
  const refused: [TensorToWrite[], typeof TypeError | typeof RangeError, Record<string, string>?][] = [
    [[good, { ...good }], TypeError],
    [[{ ...good, data: new Uint8Array(7) }], TypeError],
    [[{ ...good, name: "__metadata__" }], RangeError],
    [[{ ...good, name: "\ud800" }], RangeError],
    [[{ ...good, dtype: "F31" as "F32" }], RangeError],
    [[{ ...good, shape: [-2] }], RangeError],
    [[{ ...good, shape: [2 ** 52, 2 ** 52] }], RangeError],
    [[{ ...good, shape: [0.5] }], RangeError],
    [[good], TypeError, { a: 1 as unknown as string }],
    [[good], RangeError, { a: "\udc00" }],
  ];
  for (const [tensors, kind, metadata] of refused) await rejects(writeSafetensors(path, tensors, { metadata }), kind);
});
