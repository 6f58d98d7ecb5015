/**
 * Where the bytes of a file go that is written bit by bit: to the file itself, which appears when it is whole, or to
 * memory.
 *
 * @module
 */

import { partialPath, writeFully, writing } from "../tensor/output.ts";

/** Takes bytes at places. */
export interface Destination {
  /** Writes bytes at a place, which is at or before the end of what has been written. */
  write(bytes: Uint8Array, position: number): Promise<void>;
}

/** A file that is written beside its place, and is there when it is whole. */
export class StagedFile implements Destination {
  readonly #path: string;
  readonly #partial: string;
  readonly #handle: Deno.FsFile;

  private constructor(path: string, partial: string, handle: Deno.FsFile) {
    this.#path = path;
    this.#partial = partial;
    this.#handle = handle;
  }

  /**
   * Opens the file beside its place.
   *
   * @param path The place
   * @returns The file, of no bytes
   * @throws {OutputError} If it cannot be made
   */
  static async create(path: string): Promise<StagedFile> {
    const partial = partialPath(path);
    const handle = await writing(path, () => Deno.open(partial, { write: true, createNew: true }));
    return new StagedFile(path, partial, handle);
  }

  async write(bytes: Uint8Array, position: number): Promise<void> {
    await writing(this.#path, () => this.#handle.seek(position, Deno.SeekMode.Start));
    await writeFully(this.#path, this.#handle, bytes);
  }

  /** Puts the whole file in its place. */
  async commit(): Promise<void> {
    this.#handle.close();
    await writing(this.#path, () => Deno.rename(this.#partial, this.#path));
  }

  /** Removes what was written. */
  async discard(): Promise<void> {
    try {
      this.#handle.close();
    } catch { /* a commit that failed has closed it */ }
    await Deno.remove(this.#partial).catch(() => {}); // what led here is the thing to tell
  }
}

/** A file's bytes in memory. */
export class MemoryFile implements Destination {
  #bytes = new Uint8Array(1 << 16);
  #length = 0;

  write(bytes: Uint8Array, position: number): Promise<void> {
    const end = position + bytes.length;
    if (end > this.#bytes.length) {
      const grown = new Uint8Array(Math.max(end, 2 * this.#bytes.length));
      grown.set(this.#bytes);
      this.#bytes = grown;
    }
    this.#bytes.set(bytes, position);
    this.#length = Math.max(this.#length, end);
    return Promise.resolve();
  }

  /** What has been written. */
  get bytes(): Uint8Array<ArrayBuffer> {
    return this.#bytes.slice(0, this.#length);
  }
}
