/**
 * Writing files so that what the file system refuses comes as one typed error with a remedy.
 *
 * @module
 */

import { basename, dirname, join } from "node:path";
import { OutputError } from "../errors.ts";

/** What files are called until they are whole. */
export const PARTIAL = /^\..+\.[0-9a-f]{8}\.partial$/;

/**
 * A hidden name beside a file, that no other writer has.
 *
 * @param path The file.
 * @returns The path of what will be renamed to it.
 */
export function partialPath(path: string): string {
  return join(dirname(path), `.${basename(path)}.${crypto.randomUUID().slice(0, 8)}.partial`);
}

/**
 * Gives what the file system refuses the file's name and a remedy.
 *
 * @param path The file, as its reader knows it.
 * @param write What is done to it.
 * @returns What that gives.
 * @throws {OutputError} If it fails
 */
export async function writing<T>(path: string, write: () => Promise<T>): Promise<T> {
  try {
    return await write();
  } catch (cause) {
    const remedy = cause instanceof Deno.errors.NotFound
      ? "make its folder first"
      : cause instanceof Deno.errors.NotCapable
      ? "run with --allow-write for its folder"
      : "check the folder's permissions and the space left";
    throw new OutputError(`Cannot write ${path}: ${messageOf(cause)}; ${remedy}`, { file: path, cause });
  }
}

/**
 * What something that was thrown says.
 *
 * @param cause What was thrown.
 * @returns Its message.
 */
export function messageOf(cause: unknown): string {
  return cause instanceof Error ? cause.message : String(cause);
}

/**
 * Writes a file beside its place and renames it, so that it is there whole or as it was.
 *
 * @param path The file.
 * @param text What it holds.
 */
export async function replaceFile(path: string, text: string): Promise<void> {
  const partial = partialPath(path);
  try {
    await Deno.writeTextFile(partial, text, { createNew: true });
    await Deno.rename(partial, path);
  } catch (error) {
    await Deno.remove(partial).catch(() => {}); // the failure that led here is the one to tell
    throw error;
  }
}

/**
 * Writes all of some bytes where a file stands.
 *
 * @param path The file, for messages.
 * @param handle The open file.
 * @param bytes The bytes.
 */
export async function writeFully(path: string, handle: Deno.FsFile, bytes: Uint8Array): Promise<void> {
  for (let at = 0; at < bytes.length;) {
    at += await writing(path, () => handle.write(bytes.subarray(at)));
  }
}
