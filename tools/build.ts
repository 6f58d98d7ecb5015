/**
 * Builds the native library where it is missing or older than its sources: `deno task build`.
 *
 * @module
 */

import { createHash } from "node:crypto";
import { buildRecord, builtLibrary, libraryHash } from "../ffi/library.ts";

const kernels = new URL("../kernels/", import.meta.url);

async function sources(): Promise<string> {
  const hash = createHash("sha256");
  const files = ["Cargo.toml", "Cargo.lock"];
  const folders = ["src"];
  for (let folder = folders.pop(); folder !== undefined; folder = folders.pop()) {
    for await (const entry of Deno.readDir(new URL(folder, kernels))) {
      (entry.isDirectory ? folders : files).push(`${folder}/${entry.name}`);
    }
  }
  for (const file of files.sort()) hash.update(file).update(await Deno.readFile(new URL(file, kernels)));
  return hash.digest("hex");
}

async function build(): Promise<void> {
  const args = ["build", "--release", "--locked", "--lib"];
  let status;
  try {
    status = await new Deno.Command("cargo", { args, cwd: kernels, stdout: "inherit", stderr: "inherit" }).spawn()
      .status;
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
    console.error(
      "Building the native library takes Rust 1.89 or newer, which is not installed: get it from https://rustup.rs.",
    );
    Deno.exit(1);
  }
  if (!status.success) Deno.exit(status.code);
}

const library = builtLibrary();
const wanted = await sources();
const recorded = await buildRecord(library);
const fresh = recorded?.sources === wanted && recorded.library === await libraryHash(library);
if (!fresh) {
  console.error("Building the native library; this happens once.");
  await build();
  const stamp = `${library}.json`;
  await Deno.writeTextFile(
    `${stamp}.partial`,
    JSON.stringify({ sources: wanted, library: await libraryHash(library) }),
  );
  await Deno.rename(`${stamp}.partial`, stamp);
}
