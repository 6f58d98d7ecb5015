import { dirname, join, relative } from "node:path";
import { fileURLToPath } from "node:url";
import { brotliDecompressSync } from "node:zlib";
import { libraryHash } from "../ffi/library.ts";

const FIXTURES = fileURLToPath(new URL("fixtures/", import.meta.url));
/** The fixtures that are stored smaller than they are. */
const PACKED = fileURLToPath(new URL("packed/", import.meta.url));

/** A file made of the bytes of others: `<file>.parts.json.br`. */
interface Parts {
  /** What the file's hash must be. */
  readonly sha256: string;
  /** A safetensors header, or bytes of another fixture. */
  readonly parts: readonly ({ readonly header: string } | {
    readonly file: string;
    readonly offset: number;
    readonly length: number;
  })[];
}

async function* filesBelow(folder: string): AsyncGenerator<string> {
  for await (const { name, isDirectory } of Deno.readDir(folder)) {
    if (isDirectory) yield* filesBelow(join(folder, name));
    else yield join(folder, name);
  }
}

const expand = async (file: string) => new Uint8Array(brotliDecompressSync(await Deno.readFile(file)));

/** A fixture's bytes, whichever way it is stored. */
async function readFixture(name: string): Promise<Uint8Array<ArrayBuffer>> {
  const plain = await Deno.readFile(join(FIXTURES, name)).catch(() => undefined);
  return plain ?? await expand(join(PACKED, `${name}.br`));
}

function withLength(header: string): Uint8Array<ArrayBuffer> {
  const text = new TextEncoder().encode(header);
  const bytes = new Uint8Array(8 + text.length);
  new DataView(bytes.buffer).setBigUint64(0, BigInt(text.length), true);
  bytes.set(text, 8);
  return bytes;
}

async function assemble(to: string, { sha256, parts }: Parts): Promise<void> {
  const read = new Map<string, Uint8Array<ArrayBuffer>>();
  using file = await Deno.open(to, { write: true, createNew: true });
  const writer = file.writable.getWriter();
  for (const part of parts) {
    if ("header" in part) {
      await writer.write(withLength(part.header));
      continue;
    }
    const bytes = read.get(part.file) ?? await readFixture(part.file);
    read.set(part.file, bytes);
    await writer.write(bytes.subarray(part.offset, part.offset + part.length));
  }
  await writer.close();
  const found = await libraryHash(to);
  if (found !== sha256) throw new Error(`${to} was put together wrongly: its SHA-256 is ${found}, not ${sha256}`);
}

/**
 * Puts the fixtures that are stored packed into a folder, as they were before.
 *
 * @param into The folder
 * @param only A folder of the fixtures; all by default
 */
export async function unpackFixtures(into: string, only = ""): Promise<void> {
  for await (const file of filesBelow(join(PACKED, only))) {
    const to = join(into, relative(PACKED, file));
    await Deno.mkdir(dirname(to), { recursive: true });
    if (file.endsWith(".parts.json.br")) {
      const parts = JSON.parse(new TextDecoder().decode(await expand(file))) as Parts;
      await assemble(to.slice(0, -".parts.json.br".length), parts);
    } else if (file.endsWith(".br")) {
      await Deno.writeFile(to.slice(0, -".br".length), await expand(file));
    } else {
      await Deno.copyFile(file, to);
    }
  }
}

/**
 * All fixtures in one folder: links to those that are stored as they are, and the others unpacked.
 *
 * @param into The folder
 */
export async function gatherFixtures(into: string): Promise<void> {
  for await (const file of filesBelow(FIXTURES)) {
    const to = join(into, relative(FIXTURES, file));
    await Deno.mkdir(dirname(to), { recursive: true });
    await Deno.symlink(file, to);
  }
  await unpackFixtures(into);
}
