/**
 * Changes of several files of a folder that take place together: a reader finds all of them or none.
 *
 * New files are written beside their places. A journal, one small file, is then renamed into the folder: that is the
 * moment at which the update has happened. What it lists is renamed and removed next, and the journal last; where a
 * process ends before that, whoever opens the folder next carries on.
 *
 * @module
 */

import { basename, dirname, join } from "node:path";
import { CheckpointError } from "../errors.ts";
import { messageOf, PARTIAL, partialPath, writeFully, writing } from "./output.ts";
import { fileStamp, stageSafetensors, type TensorToWrite, type WriteSafetensorsOptions } from "./safetensors.ts";

/** The journal's name. */
const JOURNAL = ".denoise-update.json";

/** A file that gets new content (`from` is where that is), or goes. Paths are relative to the folder. */
interface Change {
  readonly to: string;
  readonly from?: string;
}

/** An update in the making. Dispose of it: what was not committed is removed. */
export class FolderUpdate implements AsyncDisposable {
  /** The folder. */
  readonly folder: string;
  readonly #changes: Change[] = [];
  readonly #removals: Change[] = [];
  readonly #locks: Disposable[] = [];
  readonly #prepared = new Set<string>();
  #committed = false;

  private constructor(folder: string) {
    this.folder = folder;
  }

  /**
   * Begins an update: makes the folder if there is none, waits for updates of other processes, and carries on with one
   * that was cut off.
   *
   * @param folder The folder.
   * @returns The update.
   * @throws {OutputError} If the folder cannot be made
   */
  static async begin(folder: string): Promise<FolderUpdate> {
    await finishUpdate(folder);
    const update = new FolderUpdate(folder);
    await update.#prepare(".");
    return update;
  }

  /** Makes, locks and tidies the folder of a file before its first use. */
  async #prepare(name: string): Promise<void> {
    if (this.#prepared.has(name)) return;
    this.#prepared.add(name);
    const folder = join(this.folder, name);
    await writing(folder, () => Deno.mkdir(folder, { recursive: true }));
    this.#locks.push(await lock(folder));
    // What an earlier process left behind when it was killed; a living one would hold the lock.
    for await (const entry of Deno.readDir(folder)) {
      if (PARTIAL.test(entry.name)) await Deno.remove(join(folder, entry.name)).catch(() => {});
    }
  }

  /** Writes a text file beside its place. */
  async writeText(name: string, text: string): Promise<void> {
    await this.#write(name, new TextEncoder().encode(text));
  }

  /** Copies a file beside its place; one that is there already stays. */
  async copy(name: string, from: string): Promise<void> {
    const path = join(this.folder, name);
    const same = await Promise.all([Deno.realPath(from), Deno.realPath(path)]).then(([a, b]) => a === b, () => false);
    if (!same) await this.#write(name, await Deno.readFile(from));
  }

  async #write(name: string, bytes: Uint8Array): Promise<void> {
    await this.#prepare(dirname(name));
    const path = join(this.folder, name);
    const partial = partialPath(path);
    using handle = await writing(path, () => Deno.open(partial, { write: true, createNew: true }));
    this.#stage(name, partial);
    await writeFully(path, handle, bytes);
    await writing(path, () => handle.sync());
  }

  /** Writes tensors beside their place. */
  async writeTensors(
    name: string,
    tensors: Iterable<TensorToWrite>,
    options: WriteSafetensorsOptions = {},
  ): Promise<void> {
    await this.#prepare(dirname(name));
    this.#stage(name, await stageSafetensors(join(this.folder, name), tensors, options));
  }

  #stage(name: string, partial: string): void {
    this.#changes.push({ to: name, from: join(dirname(name), basename(partial)) });
  }

  /** Has a file removed, after all others have their new content. */
  remove(name: string): void {
    this.#removals.push({ to: name });
  }

  /** The stamps of files that the update replaces or removes. */
  async replaced(): Promise<Set<string>> {
    const changes = [...this.#changes, ...this.#removals];
    const found = await Promise.all(
      changes.map(({ to }) => Deno.stat(join(this.folder, to)).then(fileStamp, () => undefined)),
    );
    return new Set(found.filter((stamp) => stamp !== undefined));
  }

  /** Lets the update happen. */
  async commit(): Promise<void> {
    const changes = [...this.#changes, ...this.#removals];
    const journal = join(this.folder, JOURNAL);
    if (changes.length > 1) {
      await this.writeText(JOURNAL, JSON.stringify({ version: 1, changes }));
      const { from } = this.#changes.at(-1)!;
      await writing(journal, () => Deno.rename(join(this.folder, from!), journal));
      // From here on nothing may be taken back: another process may be the one that carries on.
      this.#committed = true;
      await syncFolder(this.folder);
    }
    await apply(this.folder, changes);
    this.#committed = true;
  }

  /** Removes what was written and not committed, and lets others begin. */
  async [Symbol.asyncDispose](): Promise<void> {
    if (!this.#committed) {
      for (const { from } of this.#changes) await Deno.remove(join(this.folder, from!)).catch(() => {});
    }
    for (const held of this.#locks) held[Symbol.dispose]();
  }
}

/**
 * Carries on with an update of a folder, or of the one that it is in, that a process did not finish.
 *
 * @param folder The folder.
 * @throws {CheckpointError} If there is one and it cannot be carried on with
 */
export async function finishUpdate(folder: string): Promise<void> {
  for (const place of [join(folder, ".."), folder]) {
    if (!await isThere(join(place, JOURNAL))) continue;
    using _held = await lock(place);
    const changes = await readJournal(join(place, JOURNAL));
    if (changes === undefined) continue; // whoever held the lock has done it
    try {
      await apply(place, changes);
    } catch (cause) {
      throw new CheckpointError(
        `Cannot load ${folder} as ${join(place, JOURNAL)} tells of a save that was cut off, and it cannot be carried ` +
          `on with (${messageOf(cause)}): load it once with permission to write to ${place}`,
        { file: join(place, JOURNAL), cause },
      );
    }
  }
}

/** Renames and removes what a journal lists, some of which may have been done already, and then the journal. */
async function apply(folder: string, changes: readonly Change[]): Promise<void> {
  const ignoreMissing = (error: unknown) => {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
  };
  for (const { to, from } of changes) {
    const path = join(folder, to);
    await writing(path, () =>
      (from === undefined ? Deno.remove(path) : Deno.rename(join(folder, from), path)).catch(
        ignoreMissing,
      ));
  }
  await syncFolder(folder);
  const journal = join(folder, JOURNAL);
  await writing(journal, () => Deno.remove(journal).catch(ignoreMissing));
}

/** The changes in a journal; nothing where there is none. */
async function readJournal(path: string): Promise<readonly Change[] | undefined> {
  let text: string;
  try {
    text = await Deno.readTextFile(path);
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return undefined;
    throw error;
  }
  try {
    const { version, changes } = JSON.parse(text);
    if (version === 1 && Array.isArray(changes) && changes.every(isChange)) return changes;
  } catch {
    // The error below says all there is to say.
  }
  throw new CheckpointError(`Cannot use ${path} as it is no journal of a save: remove it, and load the folder again`, {
    file: path,
  });
}

/** A folder may come from elsewhere: its journal moves nothing but new content to its own place. */
function isChange(value: unknown): value is Change {
  if (typeof value !== "object" || value === null) return false;
  const { to, from } = value as Record<string, unknown>;
  return isInside(to) &&
    (from === undefined || (isInside(from) && dirname(from) === dirname(to) && PARTIAL.test(basename(from))));
}

const isInside = (path: unknown): path is string =>
  typeof path === "string" && path.split("/").every((part) => part !== "" && part !== "." && part !== "..") &&
  !/[\\:\0]/.test(path);

const isThere = (path: string): Promise<boolean> => Deno.lstat(path).then(() => true, () => false);

/** Waits for all others who hold a folder. Where the system cannot lock folders there is nothing to wait for. */
async function lock(folder: string): Promise<Disposable> {
  let handle: Deno.FsFile | undefined;
  try {
    handle = await Deno.open(folder);
    await handle.lock(true);
  } catch {
    handle?.close();
    return { [Symbol.dispose]: () => {} };
  }
  return handle;
}

/** What was renamed is to stay so when the machine stops, where the system can promise that. */
async function syncFolder(folder: string): Promise<void> {
  try {
    using handle = await Deno.open(folder);
    await handle.sync();
  } catch {
    // A promise that this system does not give.
  }
}
