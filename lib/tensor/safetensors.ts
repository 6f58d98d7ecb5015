/**
 * The safetensors format: a header that names every tensor, then the tensors' bytes. Reading takes the header alone, so
 * that opening a checkpoint costs milliseconds whatever its size; a file is checked whole before any of it is believed.
 *
 * The format is the one of https://github.com/huggingface/safetensors: eight bytes of header length, little-endian, a
 * JSON object, and a buffer that the tensors cover without a gap.
 *
 * @module
 */

import { dirname, join } from "node:path";
import { CheckpointError } from "../errors.ts";
import { partialPath, writeFully, writing } from "./output.ts";

/** A dtype in safetensors' own spelling. */
export type SafetensorsDtype =
  | "F64"
  | "F32"
  | "F16"
  | "BF16"
  | "F8_E4M3"
  | "F8_E5M2"
  | "I64"
  | "I32"
  | "I16"
  | "I8"
  | "U64"
  | "U32"
  | "U16"
  | "U8"
  | "BOOL";

/** The size of one element of each dtype, in bytes. */
export const byteSize: Readonly<Record<SafetensorsDtype, number>> = {
  F64: 8,
  F32: 4,
  F16: 2,
  BF16: 2,
  F8_E4M3: 1,
  F8_E5M2: 1,
  I64: 8,
  I32: 4,
  I16: 2,
  I8: 1,
  U64: 8,
  U32: 4,
  U16: 2,
  U8: 1,
  BOOL: 1,
};

/** Where a tensor lies. */
export interface SafetensorsTensor {
  /** The path of the file that holds it. */
  readonly file: string;
  /** Its name in the file. */
  readonly name: string;
  /** Its dtype. */
  readonly dtype: SafetensorsDtype;
  /** Its sizes, outermost first; none for a scalar. */
  readonly shape: readonly number[];
  /** Its first byte, counted from the start of the file. The format aligns nothing. */
  readonly offset: number;
  /** Its length in bytes. */
  readonly byteLength: number;
}

/** What a header says. */
export interface SafetensorsHeader {
  /** Where the tensors' bytes begin, counted from the start of the file. */
  readonly dataOffset: number;
  /** The file's own notes: the strings under `__metadata__`. */
  readonly metadata: Readonly<Record<string, string>>;
  /** Every tensor by name, in the header's order. */
  readonly tensors: ReadonlyMap<string, SafetensorsTensor>;
}

/** An open file: its header, checked. No handle stays open. */
export interface SafetensorsFile extends SafetensorsHeader {
  /** The path that it was opened by. */
  readonly path: string;
  /** The file's size in bytes. */
  readonly size: number;
  /** What tells the file from another that takes its place. */
  readonly stamp: string;
}

/** The tensors of one model, from one file or from several. */
export interface Checkpoint {
  /** The file or the index that it was opened by. */
  readonly path: string;
  /** Every file that holds a tensor of it. */
  readonly files: readonly SafetensorsFile[];
  /** The metadata of the only file, or of the first shard. */
  readonly metadata: Readonly<Record<string, string>>;
  /** Every tensor by name. */
  readonly tensors: ReadonlyMap<string, SafetensorsTensor>;
}

/** A tensor to write. */
export interface TensorToWrite {
  /** Its name, unique in the file. */
  name: string;
  /** Its dtype. */
  dtype: SafetensorsDtype;
  /** Its sizes, outermost first. */
  shape: readonly number[];
  /**
   * Its bytes, or a function that makes them when their turn comes, whole or in pieces, so that no two tensors need be in
   * memory, nor one of them whole.
   */
  data: Uint8Array | (() => Uint8Array | Promise<Uint8Array> | AsyncIterable<Uint8Array>);
}

/** Options of {@linkcode writeSafetensors}. */
export interface WriteSafetensorsOptions {
  /** Strings to keep under `__metadata__`. */
  metadata?: Readonly<Record<string, string>> | undefined;
  /** The multiple of bytes at which the tensors begin, 8 by default: where all have whole multiples of it, each does. */
  align?: number | undefined;
}

/** Options of {@linkcode parseHeader}. */
export interface ParseHeaderOptions {
  /** The path, for messages and for the tensors' `file`. */
  file: string;
  /** The size of the whole file in bytes. */
  fileSize: number;
}

const METADATA = "__metadata__";
const PREFIX_BYTES = 8;
/** The reference implementation's own limit. */
const MAX_HEADER_BYTES = 100_000_000;
/** PyTorch's limit, which keeps a hostile header from becoming a far larger array. */
const MAX_RANK = 64;
/** Deep enough for any header or index, and no deeper. */
const MAX_DEPTH = 32;
/** Most headers of single files fit in the first read. */
const FIRST_READ_BYTES = 64 * 1024;

/**
 * Reads and checks a header.
 *
 * @param bytes The start of the file: the eight bytes of length and the header, or more
 * @param options The file's path and size
 * @returns The tensors and the metadata
 * @throws {CheckpointError} If the header breaks a rule of the format, naming the file, the tensor and the value
 */
export function parseHeader(bytes: Uint8Array, options: ParseHeaderOptions): SafetensorsHeader {
  const { file, fileSize } = options;
  const headerBytes = readHeaderLength(bytes, options);
  const dataOffset = PREFIX_BYTES + headerBytes;
  if (bytes.length < dataOffset) {
    throw malformed(file, `its header takes ${headerBytes} bytes and ${bytes.length - PREFIX_BYTES} could be read`);
  }
  let text: string;
  try {
    text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes.subarray(PREFIX_BYTES, dataOffset));
  } catch (cause) {
    throw malformed(file, "its header is not UTF-8", { cause });
  }
  if (!text.startsWith("{")) {
    throw malformed(file, `its header starts with ${show(text.slice(0, 20))} in place of "{"`);
  }

  const json = new JsonReader(text, file, "header");
  const tensors = new Map<string, SafetensorsTensor>();
  let metadata: Record<string, string> | undefined;
  json.object((name) => {
    if (name === METADATA) {
      if (metadata) throw json.duplicate(METADATA);
      metadata = Object.fromEntries(json.strings(METADATA));
    } else {
      if (tensors.has(name)) throw json.duplicate(name);
      tensors.set(name, readEntry(json, { name, file, dataOffset, dataBytes: fileSize - dataOffset }));
    }
  });
  json.end();
  checkCoverage(tensors, options, dataOffset);
  return { dataOffset, metadata: metadata ?? {}, tensors };
}

/**
 * Opens a file by reading its header, and nothing else of it.
 *
 * @param path The file
 * @returns Its tensors and metadata
 * @throws {CheckpointError} If the file is missing, unreadable, truncated or malformed
 */
export function openSafetensors(path: string): SafetensorsFile {
  return reading(path, () => {
    // A pipe or a device would block when opened.
    const info = Deno.statSync(path);
    if (!info.isFile) {
      throw new CheckpointError(`Cannot open ${path} as it is not a file: pass the path of a .safetensors file`, {
        file: path,
      });
    }
    using handle = Deno.openSync(path);
    const fileSize = info.size;
    const options = { file: path, fileSize };
    let bytes = readFully(handle, new Uint8Array(Math.min(fileSize, FIRST_READ_BYTES)), 0);
    const needed = PREFIX_BYTES + readHeaderLength(bytes, options);
    if (needed > bytes.length) {
      const whole = new Uint8Array(needed);
      whole.set(bytes);
      bytes = readFully(handle, whole, bytes.length);
    }
    return { path, size: fileSize, stamp: fileStamp(info), ...parseHeader(bytes, options) };
  });
}

/**
 * What tells a file from one that was written later to the same path.
 *
 * @param info What the system says of the file
 * @returns Its device, number, size and time, as text
 */
export function fileStamp({ dev, ino, size, mtime }: Deno.FileInfo): string {
  return [dev, ino, size, mtime?.getTime()].join(":");
}

/**
 * Copies a tensor's bytes out of its file.
 *
 * @param source The open file or checkpoint
 * @param name The tensor's name
 * @returns Its bytes, aligned for any element
 * @throws {CheckpointError} If there is no such tensor, or the file has changed since it was opened
 */
export function readTensor(source: SafetensorsFile | Checkpoint, name: string): Uint8Array<ArrayBuffer> {
  const tensor = source.tensors.get(name);
  if (!tensor) {
    throw new CheckpointError(
      `Cannot read tensor ${show(name)} of ${source.path} as the file has no tensor of that name, ` +
        `only ${source.tensors.size} others: check that the checkpoint belongs to the model`,
      { file: source.path, key: name },
    );
  }
  const { file, offset, byteLength } = tensor;
  return reading(file, () => {
    using handle = Deno.openSync(file);
    handle.seekSync(offset, Deno.SeekMode.Start);
    const bytes = readFully(handle, new Uint8Array(byteLength), 0);
    if (bytes.length < byteLength) {
      throw malformed(file, `tensor ${show(name)} takes ${byteLength} bytes and ${bytes.length} are left`, {
        key: name,
      });
    }
    return bytes;
  });
}

/**
 * Opens a model's checkpoint: a file, an index of shards, or a folder that holds either under diffusers' or
 * transformers' names, `<baseName>.safetensors` and `<baseName>.safetensors.index.json`. A folder that holds both is read
 * by its single file.
 *
 * @param path The folder, the `.safetensors` file, or the `.safetensors.index.json` file
 * @param baseName The name without endings that is looked for in a folder
 * @returns Every tensor with the file that holds it
 * @throws {CheckpointError} If nothing is there, a file is malformed, or the shards are not what the index says
 */
export function openCheckpoint(path: string, baseName: string = "diffusion_pytorch_model"): Checkpoint {
  const isFolder = reading(path, () => Deno.statSync(path).isDirectory);
  if (!isFolder) return path.endsWith(".json") ? openSharded(path) : openSingle(path);
  const single = join(path, `${baseName}.safetensors`);
  if (exists(single)) return openSingle(single);
  const index = `${single}.index.json`;
  if (exists(index)) return openSharded(index);
  throw new CheckpointError(
    `Cannot open ${path} as it holds neither ${baseName}.safetensors nor ${baseName}.safetensors.index.json: ` +
      "check that the download is complete and in the safetensors format",
    { file: path },
  );
}

/**
 * Writes a file: first beside its place, then, when every byte is on the disk, into it. What fails leaves nothing behind
 * and an earlier file of that name as it was.
 *
 * The tensors are stored by element size, largest first, then by name, and the header is padded to eight bytes, so that
 * each starts at a multiple of its element size. Their data is asked for in the order given.
 *
 * @param path The file to write
 * @param tensors The tensors, in any order
 * @param options The metadata
 * @throws {TypeError} If a name comes twice, metadata is not a string, or data does not have its shape's length
 * @throws {RangeError} If a name or a shape cannot be stored
 * @throws {OutputError} If the file cannot be written
 */
export async function writeSafetensors(
  path: string,
  tensors: Iterable<TensorToWrite>,
  options: WriteSafetensorsOptions = {},
): Promise<void> {
  const partial = await stageSafetensors(path, tensors, options);
  try {
    await writing(path, () => Deno.rename(partial, path));
  } catch (error) {
    await Deno.remove(partial).catch(() => {}); // the failure that led here is the one to report
    throw error;
  }
}

/**
 * Writes a file beside its place, for the caller to rename: what {@linkcode writeSafetensors} does first.
 *
 * @param path The file's place
 * @param tensors The tensors, in any order
 * @param options The metadata
 * @returns The path of what was written
 */
export async function stageSafetensors(
  path: string,
  tensors: Iterable<TensorToWrite>,
  options: WriteSafetensorsOptions = {},
): Promise<string> {
  const given = [...tensors];
  const sorted = given.toSorted((a, b) =>
    byteSize[b.dtype] - byteSize[a.dtype] || (a.name < b.name ? -1 : a.name > b.name ? 1 : 0)
  );
  const { header, places } = makeHeader(sorted, options);
  const partial = partialPath(path);
  let created = false;
  try {
    using handle = await writing(path, () => Deno.open(partial, { write: true, createNew: true }));
    created = true;
    await writeFully(path, handle, header);
    for (const tensor of given) {
      const { offset, length } = places.get(tensor.name)!;
      await writing(path, () => handle.seek(offset, Deno.SeekMode.Start));
      await writeData(path, handle, { tensor, length });
    }
    await writing(path, () => handle.sync());
    return partial;
  } catch (error) {
    // The failure that led here is the one to report.
    if (created) await Deno.remove(partial).catch(() => {});
    throw error;
  }
}

async function writeData(
  path: string,
  handle: Deno.FsFile,
  { tensor, length }: { tensor: TensorToWrite; length: number },
): Promise<void> {
  const data = typeof tensor.data === "function" ? await tensor.data() : tensor.data;
  if (data instanceof Uint8Array) {
    checkData(tensor, data.length, length);
    return await writeFully(path, handle, data);
  }
  let written = 0;
  for await (const piece of data) {
    written += piece.length;
    if (written > length) break; // into the next tensor's place
    await writeFully(path, handle, piece);
  }
  checkData(tensor, written, length);
}

function readHeaderLength(bytes: Uint8Array, options: ParseHeaderOptions): number {
  const { file, fileSize } = options;
  if (fileSize < PREFIX_BYTES || bytes.length < PREFIX_BYTES) {
    throw malformed(file, `it has ${Math.min(fileSize, bytes.length)} bytes and the header's length alone takes 8`);
  }
  const view = new DataView(bytes.buffer, bytes.byteOffset, PREFIX_BYTES);
  const length = view.getUint32(0, true) + view.getUint32(4, true) * 2 ** 32;
  if (length > MAX_HEADER_BYTES) {
    throw malformed(
      file,
      `its first 8 bytes give its header ${view.getBigUint64(0, true)} bytes, over the limit of ${MAX_HEADER_BYTES}`,
    );
  }
  if (PREFIX_BYTES + length > fileSize) {
    throw malformed(file, `its header takes ${length} bytes and the file has ${fileSize - PREFIX_BYTES} after byte 8`);
  }
  return length;
}

interface EntryContext {
  name: string;
  file: string;
  dataOffset: number;
  dataBytes: number;
}

/** Reads `{"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}`; other fields are skipped, as in the reference. */
function readEntry(json: JsonReader, context: EntryContext): SafetensorsTensor {
  const { name, file, dataOffset, dataBytes } = context;
  const key = name;
  const fail = (what: string): CheckpointError => malformed(file, `tensor ${show(name)} ${what}`, { key });
  let dtype: string | undefined;
  let shape: number[] | undefined;
  let offsets: number[] | undefined;
  const seen = new Set<string>();
  json.expect("{", `tensor ${show(name)}`);
  json.object((field) => {
    if (seen.has(field)) throw json.duplicate(field, name);
    seen.add(field);
    if (field === "dtype") dtype = json.string(`dtype of tensor ${show(name)}`);
    else if (field === "shape") shape = json.sizes(`shape of tensor ${show(name)}`, MAX_RANK);
    else if (field === "data_offsets") offsets = json.sizes(`data_offsets of tensor ${show(name)}`, 2);
    else json.skip();
  });

  if (dtype === undefined) throw fail("has no dtype");
  if (shape === undefined) throw fail("has no shape");
  if (offsets === undefined) throw fail("has no data_offsets");
  if (!Object.hasOwn(byteSize, dtype)) {
    throw new CheckpointError(
      `Cannot read ${file} as tensor ${show(name)} has the unknown dtype ${show(dtype)}: ` +
        `convert it to one of ${Object.keys(byteSize).join(", ")}`,
      { file, key },
    );
  }
  const known = dtype as SafetensorsDtype;
  const byteLength = sizeOf(known, shape);
  if (byteLength === undefined) throw fail(`has the shape ${showShape(shape)}, whose size overflows`);
  const [begin, end] = offsets;
  if (begin === undefined || end === undefined) throw fail(`has ${offsets.length} data_offsets in place of 2`);
  if (begin > end) throw fail(`begins at ${begin}, after its end at ${end}`);
  if (end > dataBytes) {
    throw fail(`ends at ${end} and the file has ${dataBytes} bytes of data, so it is truncated or its header lies`);
  }
  if (end - begin !== byteLength) {
    throw fail(`takes ${byteLength} bytes by its shape ${showShape(shape)} and dtype ${dtype}, not ${end - begin}`);
  }
  return { file, name, dtype: known, shape, offset: dataOffset + begin, byteLength };
}

/** The tensors must cover the data without overlap, gap or rest, so that no byte hides in a file. */
function checkCoverage(
  tensors: ReadonlyMap<string, SafetensorsTensor>,
  { file, fileSize }: ParseHeaderOptions,
  dataOffset: number,
): void {
  let sorted = true;
  let last: SafetensorsTensor | undefined;
  for (const tensor of tensors.values()) {
    if (last && tensor.offset < last.offset + last.byteLength) sorted = false;
    last = tensor;
  }
  const ordered = sorted
    ? tensors.values()
    : [...tensors.values()].sort((a, b) => a.offset - b.offset || a.byteLength - b.byteLength);
  let end = dataOffset;
  let previous = "";
  for (const { name, offset, byteLength } of ordered) {
    if (offset < end) {
      throw malformed(file, `tensor ${show(name)} overlaps tensor ${show(previous)} by ${end - offset} bytes`, {
        key: name,
      });
    }
    if (offset > end) {
      throw malformed(file, `${offset - end} bytes before tensor ${show(name)} belong to no tensor`, { key: name });
    }
    end = offset + byteLength;
    previous = name;
  }
  if (end !== fileSize) {
    throw malformed(file, `${fileSize - end} bytes at its end belong to no tensor`);
  }
}

/** The size in bytes, or nothing where it is not an exact integer. */
function sizeOf(dtype: SafetensorsDtype, shape: readonly number[]): number | undefined {
  let size = 1;
  for (const n of shape) {
    size *= n;
    if (size > Number.MAX_SAFE_INTEGER) return undefined;
  }
  size *= byteSize[dtype];
  return size > Number.MAX_SAFE_INTEGER ? undefined : size;
}

function openSingle(path: string): Checkpoint {
  const file = openSafetensors(path);
  return { path, files: [file], metadata: file.metadata, tensors: file.tensors };
}

/** The index is the authority: what a shard holds beyond it is left alone, unless two shards could claim the name. */
function openSharded(path: string): Checkpoint {
  const weightMap = readWeightMap(path);
  const files = new Map<string, SafetensorsFile>();
  const tensors = new Map<string, SafetensorsTensor>();
  for (const [name, shard] of weightMap) {
    let file = files.get(shard);
    if (!file) {
      if (!/^[^/\\]+\.safetensors$/.test(shard)) {
        throw new CheckpointError(
          `Cannot open ${path} as it maps tensor ${show(name)} to ${show(shard)}: ` +
            "a shard must be the name of a .safetensors file in the index's own folder",
          { file: path, key: name },
        );
      }
      file = openSafetensors(join(dirname(path), shard));
      files.set(shard, file);
    }
    const tensor = file.tensors.get(name);
    if (!tensor) {
      throw new CheckpointError(
        `Cannot open ${path} as it maps tensor ${show(name)} to ${shard}, which has no tensor of that name: ` +
          "download the checkpoint again",
        { file: file.path, key: name },
      );
    }
    tensors.set(name, tensor);
  }
  for (const [shard, file] of files) {
    for (const name of file.tensors.keys()) {
      const owner = weightMap.get(name);
      if (owner !== undefined && owner !== shard) {
        throw new CheckpointError(
          `Cannot open ${path} as both ${owner} and ${shard} hold tensor ${show(name)}: download the checkpoint again`,
          { file: file.path, key: name },
        );
      }
    }
  }
  const all = [...files.values()];
  return { path, files: all, metadata: all[0]!.metadata, tensors };
}

function readWeightMap(path: string): Map<string, string> {
  const bytes = reading(path, () => {
    const { size } = Deno.statSync(path);
    if (size > MAX_HEADER_BYTES) {
      throw malformed(path, `it has ${size} bytes, over the limit of ${MAX_HEADER_BYTES} for an index`);
    }
    return Deno.readFileSync(path);
  });
  let text: string;
  try {
    text = new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  } catch (cause) {
    throw malformed(path, "it is not UTF-8", { cause });
  }
  const json = new JsonReader(text, path, "index");
  let weightMap: Map<string, string> | undefined;
  json.object((field) => {
    if (field !== "weight_map") return json.skip();
    if (weightMap) throw json.duplicate(field);
    weightMap = json.strings(field);
  });
  json.end();
  if (!weightMap || weightMap.size === 0) {
    throw malformed(path, "its weight_map names no tensor", { key: "weight_map" });
  }
  return weightMap;
}

function makeHeader(
  sorted: readonly TensorToWrite[],
  { metadata, align = PREFIX_BYTES }: WriteSafetensorsOptions,
): { header: Uint8Array<ArrayBuffer>; places: Map<string, { offset: number; length: number }> } {
  const entries: string[] = [];
  if (metadata && Object.keys(metadata).length > 0) {
    for (const [key, value] of Object.entries(metadata)) {
      if (typeof value !== "string") {
        throw new TypeError(`Cannot write metadata ${show(key)} as it is a ${typeof value}: pass a string`);
      }
      if (!key.isWellFormed() || !value.isWellFormed()) {
        throw new RangeError(`Cannot write metadata ${show(key)} as it has half a surrogate pair, which is not UTF-8`);
      }
    }
    entries.push(`"${METADATA}":${JSON.stringify(metadata)}`);
  }
  const begins = new Map<string, { begin: number; length: number }>();
  let begin = 0;
  for (const { name, dtype, shape, data } of sorted) {
    if (!Object.hasOwn(byteSize, dtype)) {
      throw new RangeError(
        `Cannot write tensor ${show(name)} as dtype ${show(dtype)} is unknown: ` +
          `pass one of ${Object.keys(byteSize).join(", ")}`,
      );
    }
    if (begins.has(name)) throw new TypeError(`Cannot write tensor ${show(name)} twice: give each a name of its own`);
    if (name === METADATA || !name.isWellFormed()) {
      throw new RangeError(`Cannot name a tensor ${show(name)}: the format keeps ${METADATA} to itself and is UTF-8`);
    }
    const length = shape.every((n) => Number.isSafeInteger(n) && n >= 0) ? sizeOf(dtype, shape) : undefined;
    if (length === undefined || shape.length > MAX_RANK || begin + length > Number.MAX_SAFE_INTEGER) {
      throw new RangeError(
        `Cannot write tensor ${show(name)} as its shape ${showShape(shape)} is not of at most ${MAX_RANK} ` +
          "non-negative integers with a size that a file can have",
      );
    }
    if (typeof data !== "function") checkData({ name, dtype, shape }, data.length, length);
    entries.push(
      `${JSON.stringify(name)}:${JSON.stringify({ dtype, shape, data_offsets: [begin, begin + length] })}`,
    );
    begins.set(name, { begin, length });
    begin += length;
  }
  const json = new TextEncoder().encode(`{${entries.join(",")}}`);
  const padded = Math.ceil((PREFIX_BYTES + json.length) / align) * align - PREFIX_BYTES;
  if (padded > MAX_HEADER_BYTES) {
    throw new RangeError(
      `Cannot write a header of ${padded} bytes, over the format's limit of ${MAX_HEADER_BYTES}: ` +
        "write fewer tensors or less metadata",
    );
  }
  const header = new Uint8Array(PREFIX_BYTES + padded).fill(0x20);
  new DataView(header.buffer).setBigUint64(0, BigInt(padded), true);
  header.set(json, PREFIX_BYTES);
  const place = ({ begin, length }: { begin: number; length: number }) => ({ offset: header.length + begin, length });
  return { header, places: new Map(begins.entries().map(([name, at]) => [name, place(at)])) };
}

function checkData({ name, dtype, shape }: Omit<TensorToWrite, "data">, given: number, length: number): void {
  if (given !== length) {
    throw new TypeError(
      `Cannot write tensor ${show(name)} of shape ${showShape(shape)} and dtype ${dtype} ` +
        `as its data has ${given} bytes in place of ${length}`,
    );
  }
}

/** Fills the buffer from where the file stands, and returns the part that could be filled. */
function readFully(handle: Deno.FsFile, buffer: Uint8Array<ArrayBuffer>, from: number): Uint8Array<ArrayBuffer> {
  let at = from;
  while (at < buffer.length) {
    const read = handle.readSync(buffer.subarray(at));
    if (read === null) break;
    at += read;
  }
  return buffer.subarray(0, at);
}

function exists(path: string): boolean {
  return reading(path, () => {
    try {
      return Deno.statSync(path).isFile;
    } catch (error) {
      if (error instanceof Deno.errors.NotFound) return false;
      throw error;
    }
  });
}

/** Gives what the file system refuses the file's name and a remedy. */
function reading<T>(path: string, read: () => T): T {
  try {
    return read();
  } catch (cause) {
    if (cause instanceof CheckpointError) throw cause;
    const reason = cause instanceof Error ? cause.message : String(cause);
    const remedy = cause instanceof Deno.errors.NotFound
      ? "check the path, or download the checkpoint"
      : cause instanceof Deno.errors.NotCapable
      ? "run with --allow-read for it"
      : "check that it can be read and fits into memory";
    throw new CheckpointError(`Cannot read ${path}: ${reason}; ${remedy}`, { file: path, cause });
  }
}

function malformed(file: string, what: string, details: { key?: string; cause?: unknown } = {}): CheckpointError {
  return new CheckpointError(`Cannot read ${file} as ${what}: download the file again or ask its author to repair it`, {
    file,
    ...details,
  });
}

function showShape(shape: readonly number[]): string {
  return `[${shape.slice(0, 8).join(", ")}${shape.length > 8 ? `, … (${shape.length} sizes)` : ""}]`;
}

/** A value from a file, quoted, and cut so that a hostile one cannot fill the screen. */
function show(value: string): string {
  return JSON.stringify(value.length > 80 ? `${value.slice(0, 79)}…` : value);
}

/**
 * A strict reader of JSON in one pass. `JSON.parse` keeps the last of two equal keys without a word, and builds a whole
 * document before any of it can be refused, which a hostile header of 100 MB turns into gigabytes.
 */
class JsonReader {
  #text: string;
  #file: string;
  #what: string;
  #at = 0;
  /** The member of the outermost object that is being read, for messages. */
  #key: string | undefined;
  #depth = 0;

  constructor(text: string, file: string, what: string) {
    this.#text = text;
    this.#file = file;
    this.#what = what;
  }

  /** Calls back with each key of the object that comes next; the callback reads the value. */
  object(member: (key: string) => void): void {
    this.expect("{", "an object");
    this.#at++;
    if (this.#peek() === "}") {
      this.#at++;
      return;
    }
    while (true) {
      const key = this.string("a key");
      this.expect(":", `the value of ${show(key)}`);
      this.#at++;
      if (this.#depth === 0) this.#key = key;
      this.#depth++;
      member(key);
      this.#depth--;
      if (this.#more("}", "object")) return;
      if (this.#depth === 0) this.#key = undefined;
    }
  }

  /** An object of strings. */
  strings(what: string): Map<string, string> {
    const values = new Map<string, string>();
    this.expect("{", what);
    this.object((key) => {
      if (values.has(key)) throw this.duplicate(key, what);
      values.set(key, this.string(`${show(key)} of ${what}`));
    });
    return values;
  }

  /** An array of at most `limit` non-negative integers. */
  sizes(what: string, limit: number): number[] {
    this.expect("[", what);
    this.#at++;
    const values: number[] = [];
    if (this.#peek() === "]") {
      this.#at++;
      return values;
    }
    while (true) {
      if (values.length === limit) throw this.#fail(`${what} has more than ${limit} elements`);
      values.push(this.#size(what));
      if (this.#more("]", what)) return values;
    }
  }

  /** A string. */
  string(what: string): string {
    this.expect('"', what);
    const text = this.#text;
    const start = this.#at;
    let at = start + 1;
    let plain = true;
    while (true) {
      const code = text.charCodeAt(at); // NaN past the end
      if (code === 0x22) break;
      if (code === 0x5c) {
        plain = false;
        at++;
      } else if (!(code >= 0x20)) {
        throw this.#fail(`${what} is a string with ${at < text.length ? "a control character" : "no end"}`);
      }
      at++;
    }
    this.#at = at + 1;
    if (plain) return text.slice(start + 1, at);
    try {
      return JSON.parse(text.slice(start, at + 1));
    } catch (cause) {
      this.#at = start;
      throw this.#fail(`${what} has a wrong escape`, cause);
    }
  }

  /** Checks that the next value or mark starts with this character, and leaves it there. */
  expect(mark: string, what: string): void {
    if (this.#peek() === mark) return;
    const found = this.#at < this.#text.length ? show(this.#text.slice(this.#at, this.#at + 20)) : "its end";
    throw this.#fail(`${what} should start with ${show(mark)} and there is ${found}`);
  }

  /** Passes over a value of any kind, checking that it is JSON. */
  skip(depth: number = 1): void {
    if (depth > MAX_DEPTH) throw this.#fail(`a value is nested deeper than ${MAX_DEPTH}`);
    const mark = this.#peek();
    if (mark === "{") {
      const seen = new Set<string>();
      this.object((key) => {
        if (seen.has(key)) throw this.duplicate(key);
        seen.add(key);
        this.skip(depth + 1);
      });
    } else if (mark === "[") {
      this.#at++;
      if (this.#peek() === "]") {
        this.#at++;
        return;
      }
      do this.skip(depth + 1); while (!this.#more("]", "array"));
    } else if (mark === '"') {
      this.string("a value");
    } else {
      const scalar = /true|false|null|-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?/y;
      scalar.lastIndex = this.#at;
      if (!scalar.test(this.#text)) throw this.#fail("a value is not JSON");
      this.#at = scalar.lastIndex;
    }
  }

  /** Checks that nothing but white space is left. */
  end(): void {
    this.#peek();
    this.#key = undefined;
    if (this.#at < this.#text.length) throw this.#fail("something follows its closing brace");
  }

  /** The error for a key that comes twice. */
  duplicate(key: string, within?: string): CheckpointError {
    const where = within === undefined ? "" : ` in ${show(within)}`;
    return malformed(this.#file, `its ${this.#what} has the key ${show(key)} twice${where}`, { key });
  }

  /** Passes over a comma, or over the closing mark, in which case it returns true. */
  #more(close: string, what: string): boolean {
    const mark = this.#peek();
    if (mark !== close && mark !== ",") {
      throw this.#fail(`${what} should go on with "," or end with ${show(close)}`);
    }
    this.#at++;
    return mark === close;
  }

  #size(what: string): number {
    this.#peek();
    const text = this.#text;
    const start = this.#at;
    let value = 0;
    let at = start;
    for (let digit; (digit = text.charCodeAt(at) - 0x30) >= 0 && digit <= 9; at++) value = value * 10 + digit;
    const after = text[at];
    const ends = after === "," || after === "]" || after === " " || after === "\n" || after === "\r" || after === "\t";
    if (at === start || !ends || value > Number.MAX_SAFE_INTEGER || (text[start] === "0" && at > start + 1)) {
      throw this.#fail(
        `${what} has the element ${
          show(text.slice(start, start + 24).split(/[,\]]/, 1)[0]!)
        }, not an integer from 0 to 2^53 - 1`,
      );
    }
    this.#at = at;
    return value;
  }

  #peek(): string | undefined {
    const text = this.#text;
    while (true) {
      const code = text.charCodeAt(this.#at);
      if (code !== 0x20 && code !== 0x0a && code !== 0x0d && code !== 0x09) return text[this.#at];
      this.#at++;
    }
  }

  #fail(what: string, cause?: unknown): CheckpointError {
    return malformed(this.#file, `its ${this.#what} is broken at character ${this.#at}: ${what}`, {
      cause,
      ...(this.#key === undefined ? {} : { key: this.#key }),
    });
  }
}
