/**
 * PNG, with texts in it. Pictures are written here, over the platform's own deflate: that takes a few milliseconds with
 * nothing to import. They are read with fast-png, which knows every colour type, depth and interlacing.
 *
 * @module
 */

import { DenoiseError } from "../errors.ts";

/** Pixels of 8 bits a channel, row by row from the top left. */
export interface Pixels {
  /** Pixels in a row. */
  readonly width: number;
  /** Rows. */
  readonly height: number;
  /** Red, green, blue and, where there are four channels, opacity: `height * width * channels` bytes. */
  readonly data: Uint8Array;
}

/** A decoded PNG. */
export interface DecodedPng extends Pixels {
  /** Its pixels. */
  readonly data: Uint8Array<ArrayBuffer>;
  /** Its texts by keyword. */
  readonly metadata: Record<string, string>;
}

const SIGNATURE = Uint8Array.of(0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a);
/** A compressed text may blow up a thousandfold: one of more than this is refused. */
const MAX_TEXT_BYTES = 1 << 24;

/**
 * The number of channels of pixels: 3 or 4.
 *
 * @param pixels The pixels
 * @returns The number
 * @throws {RangeError} If a side is not a positive integer
 * @throws {TypeError} If the data is of another size
 */
export function channelsOf({ width, height, data }: Pixels): 3 | 4 {
  // 2^31 - 1 is the format's own limit.
  for (const side of [width, height]) {
    if (!Number.isInteger(side) || side < 1 || side > 0x7fffffff) {
      throw new RangeError(`Cannot make a picture of ${width} by ${height}: pass positive integers`);
    }
  }
  const channels = data.length / (width * height);
  if (channels === 3 || channels === 4) return channels;
  throw new TypeError(
    `A picture of ${width} by ${height} takes ${width * height * 3} bytes (RGB) or ${width * height * 4} (RGBA), ` +
      `got ${data.length}`,
  );
}

/**
 * Writes pixels as PNG.
 *
 * @param pixels RGB or RGBA
 * @param options Texts by keyword (1 to 79 Latin-1 characters), in any script
 * @returns The file's bytes
 * @throws {RangeError} If a keyword is not one that the format takes
 */
export async function encodePng(
  pixels: Pixels,
  options: { metadata?: Readonly<Record<string, string>> } = {},
): Promise<Uint8Array<ArrayBuffer>> {
  const { width, height } = pixels;
  const channels = channelsOf(pixels);
  const head = new Uint8Array(13);
  const view = new DataView(head.buffer);
  view.setUint32(0, width);
  view.setUint32(4, height);
  head.set([8, channels === 3 ? 2 : 6], 8); // bits a channel; truecolour, or truecolour with alpha

  const chunks = [SIGNATURE, chunk("IHDR", head)];
  // Before the pixels, so that a reader of the texts need not go through them.
  for (const [keyword, text] of Object.entries(options.metadata ?? {})) chunks.push(textChunk(keyword, text));
  chunks.push(chunk("IDAT", await deflate(filterRows(pixels, channels))), chunk("IEND", new Uint8Array(0)));
  return concatBytes(chunks);
}

/**
 * Reads a PNG of any kind as 8-bit RGB, or RGBA where it has opacity.
 *
 * @param bytes The file's bytes
 * @param options The file's name, for messages
 * @returns The pixels and the texts
 * @throws {DenoiseError} If it is not a PNG, or a broken one
 */
export async function decodePng(bytes: Uint8Array, options: { file?: string } = {}): Promise<DecodedPng> {
  const { file } = options;
  const metadata = await readPngMetadata(bytes, options);
  checkSize(bytes, file);
  // Named in full: a module that is imported by URL does not see its own import map.
  const { decode } = await import("npm:fast-png@8.0.0");
  let png;
  try {
    png = decode(bytes, { checkCrc: true });
    // A file that ends within its pixels is decoded as far as it goes.
    const bits = png.width * png.channels * png.depth;
    const size = png.depth === 16 ? png.width * png.height * png.channels : Math.ceil(bits / 8) * png.height;
    if (png.data.length !== size) throw new Error(`${png.data.length} values of ${size}`);
  } catch (cause) {
    throw malformed(`its pixels cannot be decoded (${cause instanceof Error ? cause.message : cause})`, {
      file,
      cause,
    });
  }
  return { width: png.width, height: png.height, data: toRgb(png), metadata };
}

/**
 * Reads the texts of a PNG without decoding its pixels.
 *
 * @param bytes The file's bytes
 * @param options The file's name, for messages
 * @returns The texts by keyword
 * @throws {DenoiseError} If it is not a PNG, or a broken one
 */
export async function readPngMetadata(
  bytes: Uint8Array,
  options: { file?: string } = {},
): Promise<Record<string, string>> {
  const { file } = options;
  if (SIGNATURE.some((byte, i) => bytes[i] !== byte)) throw malformed("it does not start as one", { file });
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  // A keyword such as __proto__ is a key like any other.
  const entries: [string, string][] = [];
  for (let at = SIGNATURE.length, type = ""; type !== "IEND";) {
    if (at + 12 > bytes.length) {
      throw malformed(`it ends after ${bytes.length} bytes, without its last chunk`, { file });
    }
    const length = view.getUint32(at);
    type = latin1(bytes.subarray(at + 4, at + 8));
    const end = at + 8 + length;
    if (end + 4 > bytes.length) {
      throw malformed(`its chunk ${JSON.stringify(type)} ends at byte ${end + 4} of ${bytes.length}`, { file });
    }
    if (type === "tEXt" || type === "zTXt" || type === "iTXt") {
      if (crc32(bytes.subarray(at + 4, end)) !== view.getUint32(end)) {
        throw malformed(`its chunk ${type} at byte ${at} has a wrong checksum`, { file });
      }
      entries.push(await readText(type, bytes.subarray(at + 8, end), file));
    }
    at = end + 4;
  }
  return Object.fromEntries(entries);
}

/**
 * The checksum of PNG (ISO 3309, polynomial 0xedb88320).
 *
 * @param bytes Any bytes
 * @returns 32 bits
 */
export function crc32(bytes: Uint8Array): number {
  let crc = 0xffffffff;
  for (let i = 0; i < bytes.length; i++) crc = CRC_TABLE[(crc ^ bytes[i]!) & 0xff]! ^ (crc >>> 8);
  return (crc ^ 0xffffffff) >>> 0;
}

const CRC_TABLE = Uint32Array.from({ length: 256 }, (_, n) => {
  for (let k = 0; k < 8; k++) n = n & 1 ? 0xedb88320 ^ (n >>> 1) : n >>> 1;
  return n;
});

function chunk(type: string, data: Uint8Array): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(data.length + 12);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, data.length);
  for (let i = 0; i < 4; i++) bytes[4 + i] = type.charCodeAt(i);
  bytes.set(data, 8);
  view.setUint32(8 + data.length, crc32(bytes.subarray(4, 8 + data.length)));
  return bytes;
}

/** Refuses a size that the file's bytes cannot be the pixels of, before memory is taken for it. */
function checkSize(bytes: Uint8Array, file: string | undefined): void {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  if (latin1(bytes.subarray(12, 16)) !== "IHDR" || view.getUint32(8) !== 13) {
    throw malformed("it does not start with its header", { file });
  }
  const width = view.getUint32(16);
  const height = view.getUint32(20);
  const bits = bytes[24]! * ([1, 0, 3, 1, 2, 0, 4][bytes[25]!] ?? 0);
  // Deflate makes nothing smaller than 1032 times.
  if (width * height * bits / 8 > bytes.length * 1032) {
    throw malformed(`its ${width} by ${height} pixels cannot be in ${bytes.length} bytes`, { file });
  }
}

/** Latin-1 texts as tEXt, which every reader knows; the others as iTXt, which is UTF-8. */
function textChunk(keyword: string, text: string): Uint8Array<ArrayBuffer> {
  // PNG, third edition, 11.3.3.1: printable Latin-1, with no space at an end and no two in a row.
  if (!/^[\x21-\x7e\xa1-\xff]+( [\x21-\x7e\xa1-\xff]+)*$/.test(keyword) || keyword.length > 79) {
    throw new RangeError(
      `Cannot write metadata ${JSON.stringify(keyword)}: a keyword has 1 to 79 printable Latin-1 characters`,
    );
  }
  if (typeof text !== "string") {
    throw new TypeError(`Cannot write metadata ${JSON.stringify(keyword)} as it is a ${typeof text}: pass a string`);
  }
  // Latin-1 of the standard has no control character but the line feed.
  if (/^[\n\x20-\x7e\xa0-\xff]*$/.test(text)) {
    return chunk("tEXt", Uint8Array.from(`${keyword}\0${text}`, (c) => c.charCodeAt(0)));
  }
  if (text.includes("\0") || !text.isWellFormed()) {
    throw new RangeError(
      `Cannot write metadata ${JSON.stringify(keyword)}: its text has a null or half a surrogate pair; remove it`,
    );
  }
  // No compression, its method, no language, no translated keyword.
  const prefix = Uint8Array.from(`${keyword}\0\0\0\0\0`, (c) => c.charCodeAt(0));
  return chunk("iTXt", concatBytes([prefix, new TextEncoder().encode(text)]));
}

async function readText(type: string, data: Uint8Array, file: string | undefined): Promise<[string, string]> {
  const fields = new Fields(data, type, file);
  const keyword = latin1(fields.untilNull());
  if (type === "tEXt") return [keyword, latin1(fields.rest())];
  const compressed = type === "zTXt" || fields.byte() === 1;
  if (fields.byte() !== 0 && compressed) throw malformed(`its chunk ${type} is compressed in an unknown way`, { file });
  if (type === "zTXt") return [keyword, latin1(await inflateText(fields.rest(), file))];
  fields.untilNull(); // language
  fields.untilNull(); // translated keyword
  const text = compressed ? await inflateText(fields.rest(), file) : fields.rest();
  try {
    return [keyword, new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(text)];
  } catch (cause) {
    throw malformed(`its text ${JSON.stringify(keyword)} is not UTF-8`, { file, cause });
  }
}

/** The fields of a text chunk, one after another. */
class Fields {
  #at = 0;
  readonly #data: Uint8Array;
  readonly #type: string;
  readonly #file: string | undefined;

  constructor(data: Uint8Array, type: string, file: string | undefined) {
    this.#data = data;
    this.#type = type;
    this.#file = file;
  }

  untilNull(): Uint8Array {
    const end = this.#data.indexOf(0, this.#at);
    if (end < 0) throw malformed(`its chunk ${this.#type} lacks a field`, { file: this.#file });
    const field = this.#data.subarray(this.#at, end);
    this.#at = end + 1;
    return field;
  }

  byte(): number {
    const byte = this.#data[this.#at++];
    if (byte === undefined) throw malformed(`its chunk ${this.#type} lacks a field`, { file: this.#file });
    return byte;
  }

  rest(): Uint8Array {
    return this.#data.subarray(this.#at);
  }
}

/**
 * Each row after its filter's number: the difference to the left or to the row above, whichever has the smaller sum of
 * magnitudes (PNG, third edition, 12.7).
 */
function filterRows({ width, height, data }: Pixels, channels: number): Uint8Array<ArrayBuffer> {
  const stride = width * channels;
  const out = new Uint8Array(height * (stride + 1));
  let above = new Uint8Array(stride);
  for (let y = 0; y < height; y++) {
    const row = data.subarray(y * stride, (y + 1) * stride) as Uint8Array<ArrayBuffer>;
    const at = y * (stride + 1) + 1;
    let left = 0;
    let up = 0;
    for (let x = 0; x < stride; x++) {
      const a = (row[x]! - (x < channels ? 0 : row[x - channels]!)) & 0xff;
      const b = (row[x]! - above[x]!) & 0xff;
      out[at + x] = a;
      left += a < 128 ? a : 256 - a;
      up += b < 128 ? b : 256 - b;
    }
    out[at - 1] = 1;
    if (up < left) {
      out[at - 1] = 2;
      for (let x = 0; x < stride; x++) out[at + x] = row[x]! - above[x]!;
    }
    above = row;
  }
  return out;
}

/** 8-bit RGB or RGBA of what fast-png decodes: palettes, gray, 1 to 16 bits, a transparent colour. */
function toRgb(png: {
  width: number;
  height: number;
  data: Uint8Array | Uint8ClampedArray | Uint16Array;
  depth: number;
  channels: number;
  palette?: number[][];
  transparency?: Uint16Array;
}): Uint8Array<ArrayBuffer> {
  const { width, height, data, depth, channels, palette, transparency } = png;
  const values = depth < 8 ? unpackBits(png) : data;
  const pixels = width * height;
  const hasAlpha = palette
    ? palette.some((colour) => colour.length === 4)
    : channels % 2 === 0 || !!transparency?.length;
  const outChannels = hasAlpha ? 4 : 3;
  const out = new Uint8Array(pixels * outChannels);
  const top = 2 ** depth - 1;
  for (let i = 0; i < pixels; i++) {
    const o = i * outChannels;
    if (palette) {
      const colour = palette[values[i]!] ?? [0, 0, 0];
      for (let c = 0; c < outChannels; c++) out[o + c] = colour[c] ?? 255;
      continue;
    }
    const at = i * channels;
    const colours = channels < 3 ? 1 : 3;
    for (let c = 0; c < 3; c++) out[o + c] = Math.round(values[at + (colours === 1 ? 0 : c)]! * 255 / top);
    if (!hasAlpha) continue;
    if (channels % 2 === 0) out[o + 3] = Math.round(values[at + channels - 1]! * 255 / top);
    else out[o + 3] = isTransparent(values, at, { colours, transparency: transparency! }) ? 0 : 255;
  }
  return out;
}

function isTransparent(
  values: ArrayLike<number>,
  at: number,
  { colours, transparency }: { colours: number; transparency: Uint16Array },
): boolean {
  for (let c = 0; c < colours; c++) if (values[at + c] !== transparency[c]) return false;
  return true;
}

/** Values of 1, 2 or 4 bits, of rows that start at whole bytes, one a byte. */
function unpackBits({ width, height, data, depth }: {
  width: number;
  height: number;
  data: ArrayLike<number>;
  depth: number;
}): Uint8Array {
  const stride = Math.ceil(width * depth / 8);
  const out = new Uint8Array(width * height);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const bit = x * depth;
      out[y * width + x] = data[y * stride + (bit >> 3)]! >> (8 - depth - (bit & 7)) & (2 ** depth - 1);
    }
  }
  return out;
}

function deflate(bytes: Uint8Array<ArrayBuffer>): Promise<Uint8Array<ArrayBuffer>> {
  return through(new CompressionStream("deflate"), bytes);
}

async function inflateText(bytes: Uint8Array, file: string | undefined): Promise<Uint8Array> {
  try {
    return await through(new DecompressionStream("deflate"), bytes.slice(), MAX_TEXT_BYTES);
  } catch (cause) {
    throw malformed(`a text cannot be decompressed (${cause instanceof Error ? cause.message : cause})`, {
      file,
      cause,
    });
  }
}

async function through(
  transform: CompressionStream | DecompressionStream,
  bytes: Uint8Array<ArrayBuffer>,
  limit: number = Infinity,
): Promise<Uint8Array<ArrayBuffer>> {
  const stream = new Blob([bytes]).stream().pipeThrough(transform);
  const parts: Uint8Array[] = [];
  let size = 0;
  for await (const part of stream) {
    size += part.length;
    if (size > limit) throw new RangeError(`it is longer than ${limit} bytes`);
    parts.push(part);
  }
  return concatBytes(parts);
}

function concatBytes(parts: readonly Uint8Array[]): Uint8Array<ArrayBuffer> {
  const out = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    out.set(part, at);
    at += part.length;
  }
  return out;
}

/** Code points 0 to 255; a TextDecoder of "latin1" is one of windows-1252. */
function latin1(bytes: Uint8Array): string {
  let text = "";
  for (let at = 0; at < bytes.length; at += 4096) text += String.fromCharCode(...bytes.subarray(at, at + 4096));
  return text;
}

function malformed(what: string, details: { file: string | undefined; cause?: unknown }): DenoiseError {
  return new DenoiseError(
    `Cannot read ${details.file ?? "the bytes"} as a PNG as ${what}: make or download the picture again`,
    details,
  );
}
