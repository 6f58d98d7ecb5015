/**
 * One file from a server to the disk: resumed where it was cut off, tried again where the connection is lost, checked by
 * size and hash, and renamed into place when it is whole.
 *
 * @module
 */

import { DenoiseError, HubError, OutputError } from "../errors.ts";
import { messageOf } from "../tensor/output.ts";

/** Whom to ask, how long to wait. */
export interface ConnectionOptions {
  /** The only origin that the token is sent to. */
  readonly origin: string;
  /** An access token. */
  readonly token?: string | undefined;
  /** Stops everything. */
  readonly signal?: AbortSignal | undefined;
  /** How often to try again. */
  readonly retries: number;
  /** Milliseconds before the first new try; each further one waits twice as long. */
  readonly retryDelay: number;
  /** Milliseconds without a byte after which a connection counts as lost. */
  readonly stallTimeout: number;
}

/** What a server says about a file. */
export interface FileInfo {
  /** The HTTP status. */
  readonly status: number;
  /** The size in bytes. */
  readonly size: number | undefined;
  /** The SHA-256 of the file in hex. */
  readonly sha256: string | undefined;
  /** The hub's commit that the file is of. */
  readonly commit: string | undefined;
}

/** An answer of a server that means no. */
export class StatusError extends HubError {
  /** The HTTP status. */
  readonly status: number;
  /** The hub's own word for what is wrong, such as `EntryNotFound`. */
  readonly hubCode: string | undefined;

  /** Makes an error from the answer. */
  constructor(message: string, options: { file: string; status: number; hubCode?: string | undefined }) {
    super(message, { file: options.file });
    this.status = options.status;
    this.hubCode = options.hubCode;
  }
}

/** What is worth another try. */
class Transient extends Error {
  /** Milliseconds that the server asks to wait. */
  readonly wait: number;
  /** What to raise when the tries are used up; made from the message by default. */
  readonly final: HubError | undefined;

  constructor(message: string, options: { cause?: unknown; wait?: number; final?: HubError } = {}) {
    super(message, { cause: options.cause });
    this.wait = options.wait ?? 0;
    this.final = options.final;
  }
}

/** What identifies the bytes of a `.part` file. */
interface PartInfo {
  readonly etag: string | undefined;
  readonly sha256: string | undefined;
}

interface Opened {
  readonly response: Response;
  readonly info: FileInfo;
}

interface Attempt {
  readonly signal: AbortSignal;
  /** Tells that bytes arrived; `position` is how many of the file are here. */
  alive(position: number): void;
}

const MAX_REDIRECTS = 8;
/** A server's wish to wait is followed up to here, in milliseconds. */
const MAX_WAIT = 60_000;

/** Asks a server for files, following redirects itself so that the token stays with its origin. */
export class Connection {
  readonly #options: ConnectionOptions;
  #reached = false;

  /** Makes a connection; nothing is sent yet. */
  constructor(options: ConnectionOptions) {
    this.#options = options;
  }

  /**
   * Asks about a file without its bytes.
   *
   * @param url The address
   * @returns What the server says; a status of 404 or of an unknown method is no error here
   */
  head(url: string): Promise<FileInfo> {
    return this.#retrying(url, async ({ signal }) => {
      const { response, info } = await this.#open(url, { method: "HEAD", headers: {}, signal, stopAtLinked: true });
      await response.body?.cancel();
      if (response.status >= 400 && ![400, 404, 405, 501].includes(response.status)) throw this.#refusal(url, response);
      const hubCode = response.headers.get("x-error-code");
      if (hubCode === "RepoNotFound" || hubCode === "RevisionNotFound") throw this.#refusal(url, response);
      return info;
    });
  }

  /**
   * Downloads a file.
   *
   * @param url The address
   * @param target Where the file goes, in a folder that is there; `target.part` holds what is under way
   * @param options Called with the number of bytes that are here
   * @throws {StatusError} If the server refuses
   * @throws {HubError} If it cannot be reached, or sends something else than it promised
   * @throws {OutputError} If the file cannot be written
   */
  async download(url: string, target: string, options: { onBytes?: (bytes: number) => void } = {}): Promise<void> {
    const part = `${target}.part`;
    const note = `${part}.json`;
    await this.#retrying(url, async (attempt) => {
      let known = await readNote(note);
      let have = known ? await sizeOf(part) : 0;
      const resumed = have > 0;
      const headers: Record<string, string> = {};
      if (resumed) {
        headers.range = `bytes=${have}-`;
        if (known?.etag) headers["if-range"] = known.etag;
      }
      const { response, info } = await this.#open(url, { method: "GET", headers, signal: attempt.signal });
      const restart = async (why: string): Promise<Transient> => {
        await response.body?.cancel();
        await removeAll(part, note);
        return new Transient(why);
      };
      const etag = strongEtag(response);
      let size = info.size;
      if (response.status === 206 && resumed) {
        const range = /^bytes (\d+)-\d+\/(\d+|\*)$/.exec(response.headers.get("content-range") ?? "");
        const isSame = (known?.sha256 && known.sha256 === info.sha256) || (known?.etag && known.etag === etag);
        if (Number(range?.[1]) !== have || !isSame) throw await restart("the file on the server has changed");
        size ??= range?.[2] === "*" ? undefined : Number(range?.[2]);
      } else if (response.status === 416 && resumed) {
        // The whole file may be here, cut off before it was renamed.
        const whole = /^bytes \*\/(\d+)$/.exec(response.headers.get("content-range") ?? "")?.[1];
        size ??= whole === undefined ? undefined : Number(whole);
        if (size !== have || known?.sha256 !== info.sha256) {
          throw await restart("the part that is here does not fit the file on the server");
        }
        await response.body?.cancel();
      } else if (response.status === 200) {
        have = 0;
        known = { etag, sha256: info.sha256 };
        await removeAll(part); // before the note, which would describe the old bytes
        await writing(note, () => Deno.writeTextFile(note, JSON.stringify(known)));
      } else {
        await response.body?.cancel();
        throw this.#refusal(url, response);
      }
      options.onBytes?.(have);

      const hash = info.sha256 === undefined ? undefined : (await import("node:crypto")).createHash("sha256");
      let position = have;
      const file = await writing(part, () => Deno.open(part, { create: true, read: true, write: true }));
      try {
        await writing(part, async () => {
          await file.truncate(have);
          if (hash && have > 0) {
            await eachBlock(file, (block) => {
              hash.update(block);
              attempt.alive(0); // the server waits for us, not we for it
            });
          }
          await file.seek(have, Deno.SeekMode.Start);
        });
        if (response.status !== 416) {
          for await (const bytes of blocksOf(response)) {
            position += bytes.length;
            if (size !== undefined && position > size) break;
            hash?.update(bytes);
            await writing(part, async () => {
              for (let at = 0; at < bytes.length;) at += await file.write(bytes.subarray(at));
            });
            attempt.alive(position);
            options.onBytes?.(position);
          }
        }
        await writing(part, () => file.syncData());
      } finally {
        file.close();
      }

      if (size !== undefined && position < size) {
        throw new Transient(`the connection closed after ${position} of ${size} bytes`);
      }
      const digest = hash?.digest("hex");
      const wrong = size !== undefined && position > size
        ? `it has more than the ${size} bytes that the server promised`
        : digest !== info.sha256
        ? `its SHA-256 is ${digest} and not ${info.sha256}`
        : undefined;
      if (wrong) {
        await removeAll(part, note);
        // Bytes of an earlier time may be the wrong ones.
        if (resumed && have > 0) throw new Transient(wrong);
        throw new HubError(
          `Cannot use ${url} as ${wrong}: try again, and if it stays so, the server or a proxy on the way is at fault`,
          { file: url },
        );
      }
      await writing(target, () => Deno.rename(part, target));
      await removeAll(note);
    });
  }

  async #open(
    url: string,
    request: { method: string; headers: Record<string, string>; signal: AbortSignal; stopAtLinked?: boolean },
  ): Promise<Opened> {
    const { origin, token } = this.#options;
    let size: number | undefined;
    let sha256: string | undefined;
    let commit: string | undefined;
    let address = new URL(url);
    for (let hop = 0; hop <= MAX_REDIRECTS; hop++) {
      const headers = new Headers(request.headers);
      headers.set("accept-encoding", "identity"); // sizes and ranges are of the file's own bytes
      headers.set("user-agent", "denoise");
      if (token !== undefined && address.origin === origin && isSafe(address)) {
        headers.set("authorization", `Bearer ${token}`);
      }
      let response: Response;
      try {
        response = await fetch(address, {
          method: request.method,
          headers,
          redirect: "manual",
          signal: request.signal,
        });
      } catch (cause) {
        if (cause instanceof Deno.errors.NotCapable) {
          throw new HubError(
            `Cannot reach ${address.origin} without permission: run with --allow-net=${address.host}`,
            { file: url, cause },
          );
        }
        throw new Transient(`cannot reach ${address.host} (${messageOf(cause)})`, { cause });
      }
      this.#reached = true;
      // The hub describes the file where it redirects to a store, whose own headers are about the store's object.
      const linkedSize = response.headers.get("x-linked-size");
      const linkedEtag = response.headers.get("x-linked-etag");
      if (linkedSize !== null && /^\d+$/.test(linkedSize)) size ??= Number(linkedSize);
      sha256 ??= sha256In(linkedEtag ?? (hop === 0 ? response.headers.get("etag") : null));
      const repoCommit = response.headers.get("x-repo-commit");
      if (repoCommit !== null && /^[0-9a-f]{40}$/.test(repoCommit)) commit ??= repoCommit;

      const location = response.headers.get("location");
      const redirects = [301, 302, 303, 307, 308].includes(response.status) && location !== null;
      if (redirects && !(request.stopAtLinked && linkedSize !== null)) {
        await response.body?.cancel();
        const next = URL.parse(location, address);
        if (!next || !/^https?:$/.test(next.protocol) || (address.protocol === "https:" && next.protocol === "http:")) {
          throw new HubError(`Cannot follow ${url} to ${JSON.stringify(location)}, which is no https address`, {
            file: url,
          });
        }
        address = next;
        continue;
      }
      if (response.status === 200) {
        const length = response.headers.get("content-length");
        if (length !== null && !response.headers.has("content-encoding")) size ??= Number(length);
      }
      return { response, info: { status: response.status, size, sha256, commit } };
    }
    throw new HubError(`Cannot download ${url}: the server redirects more than ${MAX_REDIRECTS} times`, { file: url });
  }

  async #retrying<T>(url: string, attempt: (attempt: Attempt) => Promise<T>): Promise<T> {
    const { signal, retries, retryDelay, stallTimeout } = this.#options;
    let failures = 0;
    let furthest = 0;
    while (true) {
      const stalled = new AbortController();
      const stall = () => stalled.abort(new Error(`nothing came for ${stallTimeout / 1000} seconds`)); // the reason of the fetch's error
      let timer = setTimeout(stall, stallTimeout);
      try {
        return await attempt({
          signal: signal ? AbortSignal.any([signal, stalled.signal]) : stalled.signal,
          alive: (position) => {
            clearTimeout(timer);
            timer = setTimeout(stall, stallTimeout);
            if (position > furthest) {
              furthest = position;
              failures = 0;
            }
          },
        });
      } catch (cause) {
        signal?.throwIfAborted();
        if (!(cause instanceof Transient)) throw cause;
        // A machine that is off the network should hear so soon.
        if (failures >= (this.#reached ? retries : Math.min(retries, 1))) {
          throw cause.final ?? new HubError(
            `Cannot download ${url}: ${cause.message}; check the connection and run again, which goes on from here`,
            { file: url, cause },
          );
        }
        const backoff = retryDelay * 2 ** failures * (0.75 + Math.random() / 2);
        failures++;
        clearTimeout(timer);
        await sleep(Math.min(Math.max(backoff, cause.wait), MAX_WAIT), signal);
      } finally {
        clearTimeout(timer);
      }
    }
  }

  /** What to raise for an answer that is not the file. */
  #refusal(url: string, response: Response): StatusError | Transient {
    const { status } = response;
    const hubCode = response.headers.get("x-error-code") ?? undefined;
    const said = response.headers.get("x-error-message");
    const hasToken = this.#options.token !== undefined;
    const remedy = status === 401
      ? hasToken
        ? "the token is not valid: make a new one at the hub's settings and set HF_TOKEN"
        : "check the name; if the model is gated or private, accept its license on its page and set HF_TOKEN"
      : status === 403
      ? `accept the model's license on its page, and check that ${
        hasToken ? "the token" : "HF_TOKEN is set and"
      } may read it`
      : status === 404
      ? "check the name and the revision"
      : status === 429
      ? hasToken
        ? "wait some minutes and run again"
        : "wait some minutes and run again, or set HF_TOKEN for a higher limit"
      : status >= 500
      ? "the server is at fault: run again later, which goes on from here"
      : "check the address";
    const error = new StatusError(
      `Cannot download ${url} as the server answers ${status}${said ? ` (${said.slice(0, 200)})` : ""}: ${remedy}`,
      { file: url, status, hubCode },
    );
    if (status !== 408 && status !== 429 && status < 500) return error;
    const after = response.headers.get("retry-after");
    const seconds = after === null ? 0 : /^\d+$/.test(after) ? Number(after) : (Date.parse(after) - Date.now()) / 1000;
    return new Transient(error.message, { final: error, wait: seconds > 0 ? seconds * 1000 : 0 });
  }
}

/**
 * Runs an operation on a file, and gives what the file system refuses the file's name and a remedy.
 *
 * @param path The file
 * @param write The operation
 * @returns Its result
 * @throws {OutputError} If it fails
 */
export async function writing<T>(path: string, write: () => Promise<T>): Promise<T> {
  try {
    return await write();
  } catch (cause) {
    if (cause instanceof DenoiseError) throw cause;
    const remedy = cause instanceof Deno.errors.NotCapable
      ? "run with --allow-read and --allow-write for the cache, or set DENOISE_CACHE to a folder that is allowed"
      : "check the folder's permissions and the space left, or set DENOISE_CACHE to another folder";
    throw new OutputError(`Cannot write ${path}: ${messageOf(cause)}; ${remedy}`, { file: path, cause });
  }
}

/**
 * Waits.
 *
 * @param milliseconds How long
 * @param signal Stops the wait
 * @throws The signal's reason
 */
export function sleep(milliseconds: number, signal: AbortSignal | undefined): Promise<void> {
  return new Promise((resolve, reject) => {
    const stop = () => {
      clearTimeout(timer);
      reject(signal?.reason);
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener("abort", stop);
      resolve();
    }, milliseconds);
    if (signal?.aborted) stop();
    else signal?.addEventListener("abort", stop, { once: true });
  });
}

/** A token may go over TLS, or stay on the machine. */
function isSafe(address: URL): boolean {
  return address.protocol === "https:" || ["localhost", "127.0.0.1", "[::1]"].includes(address.hostname);
}

/** The hash in an ETag, where the server makes ETags of hashes. */
function sha256In(etag: string | null): string | undefined {
  return /^(?:W\/)?"?([0-9a-f]{64})"?$/.exec(etag ?? "")?.[1];
}

/** An ETag that stands for the very bytes. */
function strongEtag(response: Response): string | undefined {
  const etag = response.headers.get("etag");
  return etag === null || etag.startsWith("W/") ? undefined : etag;
}

async function* blocksOf(response: Response): AsyncGenerator<Uint8Array> {
  if (response.body === null) return;
  const reader = response.body.getReader();
  try {
    while (true) {
      let result: ReadableStreamReadResult<Uint8Array>;
      try {
        result = await reader.read();
      } catch (cause) {
        throw new Transient(`the connection was lost (${messageOf(cause)})`, { cause });
      }
      if (result.done) return;
      yield result.value;
    }
  } finally {
    await reader.cancel().catch(() => {}); // the connection may be gone already
  }
}

async function eachBlock(file: Deno.FsFile, take: (block: Uint8Array) => void): Promise<void> {
  await file.seek(0, Deno.SeekMode.Start);
  const buffer = new Uint8Array(1 << 20);
  for (let read = await file.read(buffer); read !== null; read = await file.read(buffer)) {
    take(buffer.subarray(0, read));
  }
}

/** The note beside a part; `undefined` where it says nothing that the bytes could be known by. */
async function readNote(path: string): Promise<PartInfo | undefined> {
  try {
    const { etag, sha256 } = JSON.parse(await Deno.readTextFile(path));
    const note = {
      etag: typeof etag === "string" ? etag : undefined,
      sha256: typeof sha256 === "string" ? sha256 : undefined,
    };
    return note.etag === undefined && note.sha256 === undefined ? undefined : note;
  } catch (cause) {
    if (cause instanceof Deno.errors.NotFound || cause instanceof SyntaxError || cause instanceof TypeError) {
      return undefined;
    }
    return await writing(path, () => Promise.reject(cause));
  }
}

async function sizeOf(path: string): Promise<number> {
  try {
    return (await Deno.stat(path)).size;
  } catch (cause) {
    if (cause instanceof Deno.errors.NotFound) return 0;
    return await writing(path, () => Promise.reject(cause));
  }
}

async function removeAll(...paths: string[]): Promise<void> {
  for (const path of paths) {
    await writing(path, async () => {
      try {
        await Deno.remove(path);
      } catch (cause) {
        if (!(cause instanceof Deno.errors.NotFound)) throw cause;
      }
    });
  }
}
