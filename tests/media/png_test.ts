import { deepStrictEqual, ok, rejects, strictEqual, throws } from "node:assert/strict";
import { decode, encode } from "npm:fast-png@8.0.0";
import { DenoiseError } from "../../lib/errors.ts";
import { channelsOf, crc32, decodePng, encodePng, readPngMetadata } from "../../lib/media/png.ts";

const FIXTURES = new URL("../fixtures/shapes-flux/", import.meta.url);

function pixels(width: number, height: number, channels: number): Uint8Array<ArrayBuffer> {
  let state = 12345;
  return Uint8Array.from({ length: width * height * channels }, () => {
    state = (Math.imul(state, 1103515245) + 12345) >>> 0;
    return state >>> 24;
  });
}

function chunk(type: string, data: Uint8Array): Uint8Array {
  const bytes = new Uint8Array(data.length + 12);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, data.length);
  bytes.set(new TextEncoder().encode(type), 4);
  bytes.set(data, 8);
  view.setUint32(8 + data.length, crc32(bytes.subarray(4, 8 + data.length)));
  return bytes;
}

/** A PNG with more chunks after its header, which ends at byte 33. */
function withChunks(png: Uint8Array, ...chunks: Uint8Array[]): Uint8Array<ArrayBuffer> {
  return Uint8Array.from([...png.subarray(0, 33), ...chunks.flatMap((bytes) => [...bytes]), ...png.subarray(33)]);
}

const latin1 = (text: string) => Uint8Array.from(text, (c) => c.charCodeAt(0));

async function deflate(text: Uint8Array<ArrayBuffer>): Promise<Uint8Array> {
  const stream = new Blob([text]).stream().pipeThrough(new CompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

Deno.test("crc32 gives the check value of its standard", () => {
  strictEqual(crc32(latin1("123456789")), 0xcbf43926);
  strictEqual(crc32(latin1("IEND")), 0xae426082);
  strictEqual(crc32(new Uint8Array(0)), 0);
});

Deno.test("another reader gets back what encodePng wrote, at odd sizes, with and without opacity", async () => {
  for (const [width, height] of [[1, 1], [1, 7], [13, 1], [17, 31], [128, 96]] as const) {
    for (const channels of [3, 4]) {
      const data = pixels(width, height, channels);
      // Smooth rows and columns besides noise, so that both filters are taken.
      if (height > 20) { for (let i = 0; i < data.length / 3; i++) data[i] = (i * 3 / width) & 0xff; }
      const png = await encodePng({ width, height, data });
      const other = decode(png, { checkCrc: true });
      deepStrictEqual([other.width, other.height, other.channels, other.depth], [width, height, channels, 8]);
      deepStrictEqual(new Uint8Array(other.data), data);
      const own = await decodePng(png);
      deepStrictEqual(own, { width, height, data, metadata: {} });
    }
  }
});

Deno.test("encodePng takes both filters, and makes a picture about as small as another writer does", async () => {
  const file = await Deno.readFile(new URL("case0_0_f32.png", FIXTURES));
  const picture = await decodePng(file);
  deepStrictEqual([picture.width, picture.height, picture.data.length], [128, 128, 128 * 128 * 3]);
  const png = await encodePng(picture);
  ok(png.length < file.length * 1.25, `${png.length} bytes`);
  const idat = decode(png);
  deepStrictEqual(new Uint8Array(idat.data), picture.data);
});

Deno.test("metadata comes back in any script, Latin-1 as tEXt and the rest as iTXt", async () => {
  const metadata = {
    prompt: "a large red star — 北京 🙂 \u0301e",
    "negative prompt": "café\nnaïve ÿ",
    seed: "18446744073709551615",
    empty: "",
    control: "tab\tand\x85",
    clé: "1",
  };
  const data = pixels(3, 2, 3);
  const png = await encodePng({ width: 3, height: 2, data }, { metadata });
  deepStrictEqual(await readPngMetadata(png), metadata);
  deepStrictEqual((await decodePng(png)).metadata, metadata);
  const other = decode(png, { checkCrc: true });
  deepStrictEqual(new Uint8Array(other.data), data);
  strictEqual(other.text["negative prompt"], metadata["negative prompt"]);
  strictEqual(other.text.seed, metadata.seed);
  deepStrictEqual(Object.keys(other.text).sort(), ["clé", "empty", "negative prompt", "seed"]);
});

Deno.test("a keyword that is a property of objects is a keyword like another", async () => {
  const metadata = Object.fromEntries([["__proto__", "x"], ["constructor", "y"]]);
  const png = await encodePng({ width: 1, height: 1, data: new Uint8Array(3) }, { metadata });
  const read = await readPngMetadata(png);
  deepStrictEqual(Object.entries(read), [["__proto__", "x"], ["constructor", "y"]]);
});

Deno.test("encodePng refuses keywords and texts that the format does not take", async () => {
  const picture = { width: 1, height: 1, data: new Uint8Array(3) };
  for (const keyword of ["", " a", "a ", "a  b", "a".repeat(80), "北", "a\n", "\xa0"]) {
    await rejects(encodePng(picture, { metadata: { [keyword]: "" } }), { name: "RangeError", message: /keyword/ });
  }
  for (const text of ["a\0b", "\ud800"]) {
    await rejects(encodePng(picture, { metadata: { prompt: text } }), { name: "RangeError", message: /"prompt"/ });
  }
  await rejects(encodePng(picture, { metadata: { seed: 5 as unknown as string } }), TypeError);
});

Deno.test("sizes that fit nothing are refused", () => {
  for (const [width, height] of [[0, 1], [1, -1], [1.5, 2], [NaN, 1], [2 ** 31, 1]] as const) {
    throws(() => channelsOf({ width, height, data: new Uint8Array(3) }), RangeError);
  }
  throws(() => channelsOf({ width: 2, height: 2, data: new Uint8Array(8) }), { name: "TypeError", message: /12.*16/ });
});

Deno.test("compressed texts of other writers are read", async () => {
  const png = await encodePng({ width: 1, height: 1, data: new Uint8Array(3) });
  const utf8 = new TextEncoder().encode("北京");
  const file = withChunks(
    png,
    chunk("zTXt", Uint8Array.from([...latin1("a\0\0"), ...await deflate(latin1("café"))])),
    chunk("iTXt", Uint8Array.from([...latin1("b\0\x01\0zh\0\xe5\0"), ...await deflate(utf8)])),
    chunk("iTXt", Uint8Array.from([...latin1("c\0\0\0\0\0"), ...utf8])),
  );
  deepStrictEqual(await readPngMetadata(file), { a: "café", b: "北京", c: "北京" });
});

Deno.test("grey, 16-bit, palette, and low-depth pictures become RGB", async () => {
  const grey = encode({ width: 2, height: 1, channels: 1, data: Uint8Array.of(0, 200) });
  deepStrictEqual([...(await decodePng(grey)).data], [0, 0, 0, 200, 200, 200]);

  const greyAlpha = encode({ width: 1, height: 1, channels: 2, data: Uint8Array.of(10, 20) });
  deepStrictEqual([...(await decodePng(greyAlpha)).data], [10, 10, 10, 20]);

  const deep = encode({ width: 1, height: 1, channels: 3, depth: 16, data: Uint16Array.of(65535, 0, 32896) });
  deepStrictEqual([...(await decodePng(deep)).data], [255, 0, 128]);

  const palette = encode({
    width: 3,
    height: 1,
    channels: 1,
    data: Uint8Array.of(1, 0, 1),
    palette: [[1, 2, 3], [4, 5, 6]],
  });
  deepStrictEqual([...(await decodePng(palette)).data], [4, 5, 6, 1, 2, 3, 4, 5, 6]);

  // Nine 1-bit pixels a row, which leave seven bits of the second byte over.
  const bits = encode({
    width: 9,
    height: 2,
    channels: 1,
    depth: 1,
    data: Uint8Array.of(0b10100000, 0b10000000, 0, 0),
  });
  const { data } = await decodePng(bits);
  deepStrictEqual([...data].filter((_, i) => i % 3 === 0), [
    255,
    0,
    255,
    0,
    0,
    0,
    0,
    0,
    255,
    0,
    0,
    0,
    0,
    0,
    0,
    0,
    0,
    0,
  ]);
});

Deno.test("a transparent colour becomes opacity", async () => {
  const png = encode({ width: 2, height: 2, channels: 3, data: Uint8Array.of(1, 2, 3, 4, 5, 6, 4, 5, 7, 4, 5, 6) });
  const file = withChunks(png, chunk("tRNS", Uint8Array.of(0, 4, 0, 5, 0, 6)));
  deepStrictEqual([...(await decodePng(file)).data], [1, 2, 3, 255, 4, 5, 6, 0, 4, 5, 7, 255, 4, 5, 6, 0]);
});

Deno.test("every truncation of a file is refused by name", async () => {
  const png = await encodePng({ width: 3, height: 2, data: pixels(3, 2, 3) }, { metadata: { prompt: "é 北京" } });
  for (let length = 0; length < png.length; length++) {
    await rejects(decodePng(png.subarray(0, length), { file: "x.png" }), (error) => {
      ok(error instanceof DenoiseError, `${length}: ${error}`);
      strictEqual(error.file, "x.png");
      ok(error.message.startsWith("Cannot read x.png as a PNG as "), error.message);
      return true;
    });
  }
});

Deno.test("files with a byte changed are read or refused, never anything else", async () => {
  const png = await encodePng({ width: 5, height: 4, data: pixels(5, 4, 4) }, { metadata: { prompt: "é 北京" } });
  let refused = 0;
  for (let at = 0; at < png.length; at++) {
    for (const flip of [0x01, 0x80, 0xff]) {
      const file = png.slice();
      file[at]! ^= flip;
      try {
        await decodePng(file);
      } catch (error) {
        ok(error instanceof DenoiseError, `byte ${at}: ${error}`);
        refused++;
      }
    }
  }
  ok(refused > png.length * 2, `${refused} of ${png.length * 3}`);
});

Deno.test("a header that lies about the size takes no memory", async () => {
  const png = await encodePng({ width: 1, height: 1, data: new Uint8Array(3) });
  const head = new Uint8Array(13);
  new DataView(head.buffer).setUint32(0, 60_000);
  new DataView(head.buffer).setUint32(4, 60_000);
  head.set([8, 2], 8);
  const file = png.slice();
  file.set(chunk("IHDR", head), 8);
  await rejects(decodePng(file), { name: "DenoiseError", message: /60000 by 60000 pixels cannot be in/ });
});

Deno.test("broken texts are refused", async () => {
  const png = await encodePng({ width: 1, height: 1, data: new Uint8Array(3) });
  const bomb = await deflate(new Uint8Array((1 << 24) + 1));
  const broken: [Uint8Array, RegExp][] = [
    [chunk("tEXt", latin1("no null")), /lacks a field/],
    [chunk("iTXt", latin1("a\0")), /lacks a field/],
    [chunk("iTXt", Uint8Array.from([...latin1("a\0\0\0\0\0"), 0xff])), /not UTF-8/],
    [chunk("zTXt", latin1("a\0\x05xx")), /unknown way/],
    [chunk("zTXt", latin1("a\0\0xx")), /cannot be decompressed/],
    [chunk("zTXt", Uint8Array.from([...latin1("a\0\0"), ...bomb])), /longer than 16777216/],
  ];
  for (const [bytes, message] of broken) {
    await rejects(readPngMetadata(withChunks(png, bytes)), { name: "DenoiseError", message });
  }
  const wrong = chunk("tEXt", latin1("a\0b"));
  wrong[wrong.length - 1]! ^= 1;
  await rejects(readPngMetadata(withChunks(png, wrong)), { message: /wrong checksum/ });
  await rejects(readPngMetadata(latin1("GIF89a")), { message: /does not start as one/ });
});
