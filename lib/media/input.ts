/**
 * Reading files so that what the file system refuses comes as one typed error with a remedy.
 *
 * @module
 */

import { DenoiseError } from "../errors.ts";
import { messageOf } from "../tensor/output.ts";

/**
 * A file's bytes.
 *
 * @param path The file
 * @returns The bytes
 * @throws {DenoiseError} If it cannot be read
 */
export async function readInput(path: string | URL): Promise<Uint8Array<ArrayBuffer>> {
  try {
    return await Deno.readFile(path);
  } catch (cause) {
    const file = String(path);
    const remedy = cause instanceof Deno.errors.NotFound
      ? "check the path"
      : cause instanceof Deno.errors.NotCapable
      ? "run with --allow-read for it"
      : "check that it is a file that can be read";
    throw new DenoiseError(`Cannot open ${file}: ${messageOf(cause)}; ${remedy}`, { file, cause });
  }
}
