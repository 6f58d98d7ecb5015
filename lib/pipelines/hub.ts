/**
 * Where models come from: a folder, a hub id, or a URL. What is downloaded is kept in a cache and used from there, with
 * no connection, until it is asked for anew.
 *
 * In the cache, `<host>/<name>/refs/<revision>` holds the commit that a revision was when it was downloaded, and
 * `<host>/<name>/<commit>/` the files of that commit; `.absent/` in it notes optional files that the commit lacks.
 *
 * @module
 */

import { CheckpointError, ConfigError, HubError } from "../errors.ts";
import { messageOf } from "../tensor/output.ts";
import { Connection, sleep, StatusError, writing } from "./download.ts";
import { findCacheFolder } from "../tensor/cache.ts";

/** How far a download is. */
export interface DownloadProgress {
  /** Bytes that are here, of the weights that this call downloads. */
  readonly bytes: number;
  /** Bytes of all of them; `undefined` where the server does not say. */
  readonly total: number | undefined;
  /** The file that the last bytes are of, relative to the model. */
  readonly file: string;
}

/** Options of {@linkcode resolveModel}. */
export interface ResolveOptions {
  /** The branch, tag or commit; what follows the id's `@` by default, or `main`. */
  revision?: string;
  /** The folders of `model_index.json` that are needed: `["transformer", "vae"]`. All by default. */
  components?: readonly string[];
  /** The components of these whose weights are needed; all by default. Configurations come in any case. */
  weights?: readonly string[];
  /** The hub's address; `HF_ENDPOINT` by default, or `https://huggingface.co`. */
  endpoint?: string;
  /** The hub's access token, which is sent to the hub alone; `HF_TOKEN` by default. */
  token?: string;
  /** The folder of downloads; `DENOISE_CACHE` by default, or `denoise` in the platform's folder of caches. */
  cache?: string;
  /** Whether to stay off the network; true by default where `HF_HUB_OFFLINE` is 1. */
  offline?: boolean;
  /** Whether to ask the server what the revision is now, though an earlier download is here. False by default. */
  refresh?: boolean;
  /** Called as bytes of weights arrive, some dozens of times a second, and once at the end. */
  onProgress?: (progress: DownloadProgress) => void;
  /** Stops the download; what has arrived is kept for the next time. */
  signal?: AbortSignal;
  /** How often to try again after a lost connection, or while a server is busy or failing. 5 by default. */
  retries?: number;
  /** Milliseconds before the first new try; each further one waits twice as long. 500 by default. */
  retryDelay?: number;
  /** Milliseconds without a byte after which a connection counts as lost. 30000 by default. */
  stallTimeout?: number;
}

/** Where a model's files are asked for, and where they go. */
interface Remote {
  /** What the user called it. */
  readonly model: string;
  /** The folder of the cache with all its revisions, relative to the cache. */
  readonly folder: string;
  readonly revision: string;
  /** The one file that a URL names, in place of a whole model. */
  readonly file: string | undefined;
  readonly origin: string;
  /** The address of a file at a revision or commit. */
  address(path: string, commit: string): string;
}

/** Makes sure of a file; false where it is optional and the model does not have it. */
type Get = (path: string, options?: { optional: boolean }) => Promise<boolean>;

const COMMIT = /^[0-9a-f]{40}$/;
/** The hub's names: letters, digits, `-`, `_` and `.`, the last two not at an end and not in a row. */
const NAME = /^(?!.*(?:\.\.|--))[A-Za-z0-9_](?:[\w.-]*\w)?$/;
const PARALLEL_DOWNLOADS = 4;
const PROGRESS_INTERVAL = 30; // milliseconds

/**
 * Finds a model's files, downloading what is not here yet.
 *
 * @param model A folder or file, a hub id such as `org/name` or `org/name@revision`, or a URL: a model's page on a hub, a
 *   folder on any server, or one `.safetensors` file
 * @param options What is needed of it, where to keep it, whom to tell
 * @returns The path of a folder in diffusers' layout, or of one file
 * @throws {CheckpointError} If there is no such folder, and it is not an id or a URL
 * @throws {HubError} If something cannot be downloaded, or is not what the server promised
 * @throws {ConfigError} If the model's own list of files is broken
 * @throws {OutputError} If the cache cannot be written
 *
 * @example A folder is used as it is
 * ```ts
 * import { strictEqual } from "node:assert/strict";
 * import { resolveModel } from "./hub.ts";
 *
 * const folder = new URL("../../models/shapes-flux", import.meta.url).pathname;
 * strictEqual(await resolveModel(folder), folder);
 * ```
 */
export async function resolveModel(model: string, options: ResolveOptions = {}): Promise<string> {
  if (typeof model !== "string" || model === "") {
    throw new TypeError("Cannot find a model with no name: pass a folder, a hub id, or a URL");
  }
  options.signal?.throwIfAborted();
  if (!isUrl(model) && await isHere(model)) return model;
  const remote = isUrl(model) ? parseUrl(model, options) : parseId(model, options);
  const snapshot = new Snapshot(remote, options);

  if (!options.refresh) {
    const cached = await snapshot.cached();
    if (cached !== undefined) return cached;
  }
  if (options.offline ?? env("HF_HUB_OFFLINE") === "1") {
    throw new HubError(
      `Cannot use ${model} offline: not all of it is in ${snapshot.folder}; run once with a connection`,
      { file: model },
    );
  }
  return await snapshot.locked(async () => {
    // Another process may have downloaded it while this one waited.
    const cached = options.refresh ? undefined : await snapshot.cached();
    return cached ?? await snapshot.download();
  });
}

/**
 * The folder that downloads are kept in.
 *
 * @returns `DENOISE_CACHE`, or `denoise` in the platform's folder of caches
 * @throws {HubError} If the environment does not say where that is, or may not be read
 */
export function cacheFolder(): string {
  const found = findCacheFolder();
  if (found !== undefined) return found;
  throw new HubError(
    "Cannot tell where downloads are kept: set DENOISE_CACHE to a folder and run with --allow-env=DENOISE_CACHE, " +
      "or pass one as `cache`",
  );
}

/** One revision of a model in the cache. */
class Snapshot {
  /** All revisions of the model. */
  readonly folder: string;
  readonly #remote: Remote;
  readonly #options: ResolveOptions;
  /** The commit of the revision, or the revision itself from a server that has no commits. */
  #commit: string | undefined;

  constructor(remote: Remote, options: ResolveOptions) {
    this.#remote = remote;
    this.#options = options;
    this.folder = `${options.cache ?? cacheFolder()}/${remote.folder}`;
  }

  /** The path of the model where all that is needed of it is here. */
  async cached(): Promise<string | undefined> {
    this.#commit = await this.#knownCommit();
    if (this.#commit === undefined) return undefined;
    const missing = new Error();
    const get: Get = async (path, { optional } = { optional: false }) => {
      if (await isFile(this.#path(path))) return true;
      if (optional && await isFile(this.#absent(path))) return false;
      throw missing;
    };
    try {
      if (this.#remote.file !== undefined) await get(this.#remote.file);
      else for (const path of await this.#plan(get)) await get(path);
    } catch (error) {
      if (error === missing) return undefined;
      throw error;
    }
    return this.#result();
  }

  /** Downloads what is missing. */
  async download(): Promise<string> {
    const { signal, retries = 5, retryDelay = 500, stallTimeout = 30_000, onProgress, refresh = false } = this.#options;
    const remote = this.#remote;
    const failed = new AbortController();
    const connection = new Connection({
      origin: remote.origin,
      token: tokenFor(remote, this.#options),
      signal: signal ? AbortSignal.any([signal, failed.signal]) : failed.signal,
      retries,
      retryDelay,
      stallTimeout,
    });
    try {
      if (refresh) this.#commit = undefined;
      if (this.#commit === undefined) {
        // What is asked for after this is of one commit, though the branch may move on meanwhile.
        const first = remote.address(remote.file ?? "model_index.json", remote.revision);
        const { commit } = await connection.head(first).catch((error) => {
          throw this.#explainName(error);
        });
        this.#commit = commit ?? encodeURIComponent(remote.revision);
      }
      const commit = this.#commit;
      // A server with no commits may have other files under the same names by now.
      const again = refresh && !COMMIT.test(commit);

      const get: Get = async (path, { optional } = { optional: false }) => {
        const target = this.#path(path);
        if (!again && await isFile(target)) return true;
        // Without commits, what was not there last time may be there now.
        if (optional && COMMIT.test(commit) && await isFile(this.#absent(path))) return false;
        await makeFolderOf(target);
        try {
          await connection.download(remote.address(path, commit), target);
          return true;
        } catch (error) {
          if (!(optional && error instanceof StatusError && error.status === 404)) throw error;
          await makeFolderOf(this.#absent(path));
          await writing(this.#absent(path), () => Deno.writeFile(this.#absent(path), new Uint8Array(0)));
          return false;
        }
      };

      const weights = remote.file === undefined ? await this.#plan(get) : [remote.file];
      const wanted: string[] = [];
      for (const path of weights) {
        if (again || !await isFile(this.#path(path))) wanted.push(path);
      }
      const progress = new Progress(onProgress);
      await inParallel(wanted, async (path) => {
        progress.add(path, (await connection.head(remote.address(path, commit))).size);
      });
      await inParallel(wanted, async (path) => {
        const target = this.#path(path);
        await makeFolderOf(target);
        try {
          await connection.download(remote.address(path, commit), target, {
            onBytes: (bytes) => progress.update(path, bytes),
          });
        } catch (error) {
          failed.abort(error); // the other downloads stop, and keep what they have
          throw this.#explain(error, path);
        }
      });
      progress.end();
      await this.#remember(commit);
      return this.#result();
    } catch (error) {
      signal?.throwIfAborted();
      throw error;
    }
  }

  /** Runs while no other process changes the model's folder. */
  async locked<T>(run: () => Promise<T>): Promise<T> {
    const path = `${this.folder}/.lock`;
    await makeFolderOf(path);
    using lock = await writing(path, () => Deno.open(path, { create: true, write: true }));
    while (!await writing(path, () => lock.tryLock(true))) await sleep(100, this.#options.signal);
    try {
      return await run();
    } finally {
      await lock.unlock();
    }
  }

  /** Goes through the files that the model needs; returns the weights, which `get` was not called for. */
  async #plan(get: Get): Promise<string[]> {
    const { components, weights: withWeights } = this.#options;
    if (await get("model_index.json", { optional: true })) {
      const index = await this.#readJson("model_index.json");
      const unknown = components?.find((name) => !Object.hasOwn(index, name) || name.startsWith("_"));
      if (unknown !== undefined) {
        throw new HubError(
          `Cannot download ${JSON.stringify(unknown)} of ${this.#remote.model}: its components are ` +
            `${Object.keys(index).filter((name) => Array.isArray(index[name])).join(", ")}`,
          { file: this.#remote.model, key: unknown },
        );
      }
      const weights: string[] = [];
      for (const [name, entry] of Object.entries(index)) {
        if (name.startsWith("_") || !Array.isArray(entry)) continue;
        const [library, className] = entry;
        if (typeof library !== "string" || typeof className !== "string") continue; // a part that is left out
        if (components && !components.includes(name)) continue;
        checkPath(name, { file: this.#path("model_index.json"), key: name });
        const files = await this.#planComponent(get, { prefix: `${name}/`, library, className });
        if (withWeights?.includes(name) ?? true) weights.push(...files);
      }
      return weights;
    }
    if (await get("config.json", { optional: true })) {
      const config = await this.#readJson("config.json");
      const library = typeof config._class_name === "string" ? "diffusers" : "transformers";
      return await this.#planComponent(get, { prefix: "", library, className: "" });
    }
    const where = isUrl(this.#remote.model) ? "" : `, and there is no folder ${this.#remote.model} here`;
    throw new HubError(
      `Cannot use ${this.#remote.model}: ${this.#remote.origin} has no model_index.json or config.json of it` +
        `${where}; check the name and the revision ${JSON.stringify(this.#remote.revision)}`,
      { file: this.#remote.model },
    );
  }

  async #planComponent(
    get: Get,
    { prefix, library, className }: { prefix: string; library: string; className: string },
  ): Promise<string[]> {
    if (className.endsWith("Scheduler")) {
      await get(`${prefix}scheduler_config.json`);
      return [];
    }
    if (className.includes("Tokenizer")) {
      for (const name of ["tokenizer_config.json", "special_tokens_map.json"]) {
        await get(prefix + name, { optional: true });
      }
      if (await get(`${prefix}tokenizer.json`, { optional: true })) return [];
      for (const name of ["vocab.json", "merges.txt"]) await get(prefix + name, { optional: true });
      return [];
    }
    // Parts of pipelines that no model here runs.
    if (/(?:FeatureExtractor|Processor|SafetyChecker)$/.test(className)) return [];

    if (prefix !== "") await get(`${prefix}config.json`);
    const base = library === "transformers" ? "model" : "diffusion_pytorch_model";
    const indexPath = `${prefix}${base}.safetensors.index.json`;
    if (!await get(indexPath, { optional: true })) return [`${prefix}${base}.safetensors`];
    const { weight_map: weightMap } = await this.#readJson(indexPath);
    const file = this.#path(indexPath);
    if (typeof weightMap !== "object" || weightMap === null || Object.keys(weightMap).length === 0) {
      throw new ConfigError(`Cannot use ${file} as it has no weight_map: remove it and run again`, {
        file,
        key: "weight_map",
      });
    }
    const shards = new Set<string>();
    for (const [key, shard] of Object.entries(weightMap)) {
      checkPath(shard, { file, key });
      if (!shard.endsWith(".safetensors")) {
        throw new HubError(`Cannot use ${file} as ${key} is in ${shard}: only safetensors are downloaded`, {
          file,
          key,
        });
      }
      shards.add(prefix + shard);
    }
    return [...shards];
  }

  /** What an unknown name means, which a folder may have been meant by. */
  #explainName(error: unknown): unknown {
    const { model } = this.#remote;
    if (!(error instanceof StatusError) || ![401, 404].includes(error.status) || isUrl(model)) return error;
    return new HubError(`${error.message}; there is no folder ${model} here either`, { file: model, cause: error });
  }

  /** What a missing file of weights means. */
  #explain(error: unknown, path: string): unknown {
    if (!(error instanceof StatusError) || error.status !== 404 || this.#remote.file !== undefined) return error;
    return new HubError(
      `Cannot use ${this.#remote.model} as it has no ${path}: only safetensors are downloaded; ` +
        "choose a model or a revision that has them",
      { file: this.#remote.model, key: path, cause: error },
    );
  }

  async #readJson(path: string): Promise<Record<string, unknown>> {
    const file = this.#path(path);
    try {
      const value = JSON.parse(await Deno.readTextFile(file));
      if (typeof value === "object" && value !== null && !Array.isArray(value)) return value;
      throw new SyntaxError("it is not an object");
    } catch (cause) {
      throw new ConfigError(`Cannot use ${file} (${messageOf(cause)}): remove it and run again`, { file, cause });
    }
  }

  async #knownCommit(): Promise<string | undefined> {
    const { revision } = this.#remote;
    if (COMMIT.test(revision)) return revision;
    const commit = await readIfHere(this.#ref());
    const isCommit = commit !== undefined && (COMMIT.test(commit) || commit === encodeURIComponent(revision));
    return isCommit ? commit : undefined;
  }

  async #remember(commit: string): Promise<void> {
    const path = this.#ref();
    await makeFolderOf(path);
    const beside = `${path}.${crypto.randomUUID().slice(0, 8)}.part`;
    await writing(path, async () => {
      await Deno.writeTextFile(beside, commit);
      await Deno.rename(beside, path);
    });
  }

  #ref(): string {
    return `${this.folder}/refs/${encodeURIComponent(this.#remote.revision)}`;
  }

  #path(path: string): string {
    return `${this.folder}/${this.#commit}/${path}`;
  }

  #absent(path: string): string {
    return `${this.folder}/${this.#commit}/.absent/${path}`;
  }

  #result(): string {
    return this.#remote.file === undefined ? `${this.folder}/${this.#commit}` : this.#path(this.#remote.file);
  }
}

/** Adds the bytes of several files up. */
class Progress {
  readonly #onProgress: ((progress: DownloadProgress) => void) | undefined;
  readonly #bytes = new Map<string, number>();
  #total: number | undefined = 0;
  #file = "";
  #last = -Infinity;

  constructor(onProgress: ((progress: DownloadProgress) => void) | undefined) {
    this.#onProgress = onProgress;
  }

  add(file: string, size: number | undefined): void {
    this.#bytes.set(file, 0);
    this.#total = size === undefined || this.#total === undefined ? undefined : this.#total + size;
  }

  update(file: string, bytes: number): void {
    this.#bytes.set(file, bytes);
    this.#file = file;
    const now = performance.now();
    if (now - this.#last < PROGRESS_INTERVAL) return;
    this.#last = now;
    this.#report();
  }

  end(): void {
    if (this.#bytes.size > 0) this.#report();
  }

  #report(): void {
    let bytes = 0;
    for (const part of this.#bytes.values()) bytes += part;
    this.#onProgress?.({ bytes, total: this.#total, file: this.#file });
  }
}

function isUrl(model: string): boolean {
  return /^[a-z][a-z0-9+.-]*:\/\//i.test(model);
}

function parseId(model: string, options: ResolveOptions): Remote {
  const [id, ...rest] = model.split("@");
  const [org, name, ...more] = id!.split("/");
  const isId = org !== undefined && name !== undefined && more.length === 0 && NAME.test(org) && NAME.test(name);
  if (!isId || rest.length > 1) {
    throw new CheckpointError(
      `Cannot find ${model}: there is no such folder or file here, and it is not a hub id (org/name or ` +
        "org/name@revision) or a URL; check the path",
      { file: model },
    );
  }
  return hubRemote(model, {
    endpoint: endpointOf(options),
    org: org!,
    name: name!,
    revision: options.revision ?? rest[0] ?? "main",
    file: undefined,
  });
}

function parseUrl(model: string, options: ResolveOptions): Remote {
  const url = URL.parse(model);
  if (!url || !/^https?:$/.test(url.protocol) || url.username || url.password) {
    throw new HubError(
      `Cannot download ${model}: pass an https address with no user or password; a token goes into HF_TOKEN`,
      { file: model },
    );
  }
  const endpoint = endpointOf(options);
  const isHub = url.href.startsWith(`${endpoint}/`);
  const base = isHub ? endpoint : url.origin;
  const segments = url.href.slice(base.length).replace(/[?#].*$/s, "").split("/").filter((part) => part !== "")
    .map(decodeSegment);
  const [org, name, view, revision, ...path] = segments;
  const isPage = ["tree", "blob", "resolve"].includes(view ?? "") && revision !== undefined;
  const hasNames = org !== undefined && name !== undefined && NAME.test(org) && NAME.test(name);
  if (hasNames && (isPage || (isHub && segments.length === 2))) {
    const file = path.join("/");
    if (file !== "" && !file.endsWith(".safetensors")) {
      throw new HubError(
        `Cannot use ${model}: pass the model's page, ${base}/${org}/${name}, and the parts as \`components\``,
        { file: model },
      );
    }
    if (file !== "") checkPath(file, { file: model });
    return hubRemote(model, {
      endpoint: base,
      org,
      name,
      revision: options.revision ?? revision ?? "main",
      file: file === "" ? undefined : file,
    });
  }
  // Any other server: the address is a folder of files, or one file.
  const last = segments.at(-1) ?? "";
  const file = last.endsWith(".safetensors") ? last : undefined;
  if (file !== undefined) checkPath(file, { file: model });
  const folder = file === undefined ? segments : segments.slice(0, -1);
  const prefix = [url.origin, ...folder.map(encodeURIComponent)].join("/");
  return {
    model,
    folder: folderName(url.host, folder.join("/") + (file === undefined ? "" : url.search)),
    revision: options.revision ?? "main",
    file,
    origin: url.origin,
    address: (path) => file === undefined ? `${prefix}/${encodePath(path)}` : url.href,
  };
}

function hubRemote(
  model: string,
  { endpoint, org, name, revision, file }: {
    endpoint: string;
    org: string;
    name: string;
    revision: string;
    file: string | undefined;
  },
): Remote {
  if (revision === "" || revision.split("/").some((part) => part === "." || part === "..")) {
    throw new HubError(`Cannot use revision ${JSON.stringify(revision)} of ${model}: pass a branch, tag or commit`, {
      file: model,
    });
  }
  const { host, origin } = new URL(endpoint);
  return {
    model,
    folder: folderName(host, `${org}/${name}`),
    revision,
    file,
    origin,
    address: (path, commit) =>
      // A commit that stands for a revision is encoded already.
      `${endpoint}/${org}/${name}/resolve/${encodeURIComponent(decodeSegment(commit))}/${encodePath(path)}`,
  };
}

function endpointOf(options: ResolveOptions): string {
  const endpoint = options.endpoint ?? env("HF_ENDPOINT") ?? "https://huggingface.co";
  const url = URL.parse(endpoint);
  if (!url || !/^https?:$/.test(url.protocol) || url.search || url.hash) {
    throw new HubError(
      `Cannot use ${endpoint} as the hub's address: set HF_ENDPOINT to one such as https://huggingface.co`,
    );
  }
  return url.href.replace(/\/+$/, "");
}

/** The token goes to the hub that it is of. */
function tokenFor(remote: Remote, options: ResolveOptions): string | undefined {
  if (options.token !== undefined) return options.token;
  return remote.origin === new URL(endpointOf(options)).origin ? env("HF_TOKEN") : undefined;
}

function folderName(host: string, path: string): string {
  return `${host.replaceAll(":", "_")}/${
    encodeURIComponent(path).replaceAll("%2F", "--").replaceAll("*", "%2A") || "_"
  }`;
}

/** Refuses names from files and addresses that lead out of the folder. */
function checkPath(path: unknown, at: { file: string; key?: string }): asserts path is string {
  const isPlain = typeof path === "string" &&
    path.split("/").every((part) => /^[A-Za-z0-9_][\w.+ -]*$/.test(part) && !/[. ]$/.test(part));
  if (isPlain) return;
  throw new HubError(
    `Cannot use ${at.file} as it names the file ${JSON.stringify(path)}, which is not a plain relative path: ` +
      "do not trust this model",
    at,
  );
}

function encodePath(path: string): string {
  return path.split("/").map(encodeURIComponent).join("/");
}

function decodeSegment(segment: string): string {
  try {
    return decodeURIComponent(segment);
  } catch {
    return segment; // a percent sign that encodes nothing
  }
}

/** An environment variable that may be read without asking, if it is not empty. */
function env(variable: string): string | undefined {
  const { state } = Deno.permissions.querySync({ name: "env", variable });
  return state === "granted" ? Deno.env.get(variable) || undefined : undefined;
}

async function isHere(path: string): Promise<boolean> {
  try {
    await Deno.stat(path);
    return true;
  } catch (cause) {
    if (isMissing(cause)) return false;
    if (cause instanceof Deno.errors.NotCapable && /^[\w.-]+\/[\w.-]+(@.+)?$/.test(path)) return false;
    throw new CheckpointError(`Cannot look for ${path}: ${messageOf(cause)}; run with --allow-read for it`, {
      file: path,
      cause,
    });
  }
}

async function isFile(path: string): Promise<boolean> {
  try {
    return (await Deno.stat(path)).isFile;
  } catch (cause) {
    if (isMissing(cause)) return false;
    return await writing(path, () => Promise.reject(cause));
  }
}

async function readIfHere(path: string): Promise<string | undefined> {
  try {
    return await Deno.readTextFile(path);
  } catch (cause) {
    if (isMissing(cause)) return undefined;
    return await writing(path, () => Promise.reject(cause));
  }
}

function isMissing(cause: unknown): boolean {
  return cause instanceof Deno.errors.NotFound || cause instanceof Deno.errors.NotADirectory;
}

function makeFolderOf(path: string): Promise<void> {
  const folder = path.slice(0, path.lastIndexOf("/"));
  return writing(folder, () => Deno.mkdir(folder, { recursive: true }));
}

/** Runs a few at a time; fails with the first failure, once all have ended. */
async function inParallel<T>(items: readonly T[], run: (item: T) => Promise<void>): Promise<void> {
  const queue = items.values();
  const errors: unknown[] = [];
  const worker = async () => {
    for (const item of queue) {
      if (errors.length > 0) return;
      await run(item).catch((error) => errors.push(error));
    }
  };
  await Promise.all(Array.from({ length: Math.min(PARALLEL_DOWNLOADS, items.length) }, worker));
  if (errors.length > 0) throw errors[0];
}
