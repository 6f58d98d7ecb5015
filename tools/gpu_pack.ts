/**
 * Gathers what a bare machine with a GPU needs to run `deno task gpu`: Deno, its module cache, the libraries, the
 * executables of the conformance tests, wheels of the peer. `deno task gpu:pack`, then `tools/gpu/unpack.sh` there.
 *
 * @module
 */

import { createHash } from "node:crypto";
import { dirname } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { formatBytes } from "../lib/media/progress.ts";
import { buildConformance, conformanceTests } from "./conformance.ts";
import { output } from "./gpu/part.ts";

const root = fileURLToPath(new URL("..", import.meta.url));

/** The most bytes of a folder: what can be carried at once. */
const PIECE = 20 * 2 ** 20 - 4096;

/** What was built here, by its place in the project. */
const BUILT = [
  "kernels/target/release/libdenoise.so",
  "kernels/cuda/build/libdenoise_cuda.so",
  "kernels/cuda/build/emulated/libdenoise_cuda_emulated.so",
];

/** The programs whose modules are cached. */
const PROGRAMS = ["tools/gpu.ts", "tools/goldens.ts"];

/** A minute, in seconds. */
const MINUTE = 60;

/** Puts files into a folder that is packed. */
type Fill = (staging: string) => Promise<void>;

async function copyInto(staging: string, name: string, from = `${root}${name}`): Promise<void> {
  await Deno.mkdir(dirname(`${staging}/${name}`), { recursive: true });
  await Deno.copyFile(from, `${staging}/${name}`);
}

/** Deno, and the modules from registries. */
const fillDeno: Fill = async (staging) => {
  await copyInto(staging, "out/machine/deno", Deno.execPath());
  await output([Deno.execPath(), "cache", ...PROGRAMS.map((program) => `${root}${program}`)], {
    env: { DENO_DIR: `${staging}/out/machine/deno_dir` },
    seconds: 10 * MINUTE,
  });
};

/** The libraries and the executables of tests. */
const fillBuilt: Fill = async (staging) => {
  await buildConformance();
  for (const library of BUILT) {
    await copyInto(staging, library);
    await copyInto(staging, `${library}.json`);
  }
  for (const test of await conformanceTests()) await copyInto(staging, `kernels/target/conformance/${test}`);
};

/** The peer, without PyTorch. */
const fillWheels: Fill = async (staging) => {
  const platforms = ["manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64"];
  await output([
    ...["python3", "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--python-version=3.12"],
    ...platforms.map((platform) => `--platform=${platform}`),
    ...["--dest", `${staging}/out/machine/wheels`, "--requirement", `${root}tools/gpu/wheels.txt`],
  ], { seconds: 10 * MINUTE });
};

/** The archives: what seldom changes is apart, so that it need not be carried again. */
const ARCHIVES: Readonly<Record<string, Fill>> = { deno: fillDeno, built: fillBuilt, wheels: fillWheels };

/**
 * Packs a folder into pieces, each in a folder of its own.
 *
 * @param staging The folder
 * @param out Where the pieces' folders go: `<name>-00` and on, in place of earlier ones
 * @param options What they are called, and the most bytes of a piece
 * @returns How many there are, and the bytes of all
 */
export async function packFolder(
  staging: string,
  out: string,
  { name, piece }: { name: string; piece: number },
): Promise<{ pieces: number; bytes: number }> {
  await Deno.mkdir(out, { recursive: true });
  for await (const entry of Deno.readDir(out)) {
    if (entry.name.startsWith(`${name}-`)) await Deno.remove(`${out}/${entry.name}`, { recursive: true });
  }
  // The same files give the same bytes, whenever they are packed.
  const flags = ["--sort=name", "--mtime=@0", "--owner=0", "--group=0", "--numeric-owner"];
  const archive = `${out}/${name}.tar.xz`;
  await output(["tar", ...flags, "-C", staging, "-cJf", archive, "."], {
    env: { XZ_OPT: "-6 -T0" },
    seconds: 30 * MINUTE,
  });
  const hash = createHash("sha256");
  let [pieces, bytes] = [0, 0];
  {
    using file = await Deno.open(archive);
    const buffer = new Uint8Array(piece);
    for (let filled = await fill(file, buffer); filled > 0; filled = await fill(file, buffer)) {
      const folder = `${out}/${name}-${String(pieces++).padStart(2, "0")}`;
      await Deno.mkdir(folder);
      await Deno.writeFile(`${folder}/piece`, buffer.subarray(0, filled));
      hash.update(buffer.subarray(0, filled));
      bytes += filled;
    }
  }
  await Deno.remove(archive);
  const facts = { pieces, sha256: hash.digest("hex") };
  await Deno.writeTextFile(`${out}/${name}-00/archive.json`, JSON.stringify(facts));
  return { pieces, bytes };
}

/** Reads until a buffer is full or a file ends; gives how many bytes were read. */
async function fill(file: Deno.FsFile, buffer: Uint8Array): Promise<number> {
  let filled = 0;
  while (filled < buffer.length) {
    const count = await file.read(buffer.subarray(filled));
    if (count === null) break;
    filled += count;
  }
  return filled;
}

if (import.meta.main) {
  const { positionals } = parseArgs({ allowPositionals: true });
  const unknown = positionals.find((name) => !(name in ARCHIVES));
  if (unknown !== undefined) {
    console.error(`Cannot pack ${unknown}: pass ${Object.keys(ARCHIVES).join(", ")}, or nothing for all`);
    Deno.exit(2);
  }
  const out = `${root}out/pack`;
  for (const [name, fillStaging] of Object.entries(ARCHIVES)) {
    if (positionals.length > 0 && !positionals.includes(name)) continue;
    const staging = await Deno.makeTempDir();
    try {
      await fillStaging(staging);
      const { pieces, bytes } = await packFolder(staging, out, { name, piece: PIECE });
      console.log(`${name}: ${formatBytes(bytes)} in ${pieces} folders, out/pack/${name}-00 and on`);
    } finally {
      await Deno.remove(staging, { recursive: true });
    }
  }
}
