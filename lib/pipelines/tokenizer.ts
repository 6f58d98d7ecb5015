/**
 * The tokenizers of the text encoders: CLIP's byte-pair one and T5's unigram one, from the files that a checkpoint has.
 *
 * @module
 */

// Named in full here and below: a module that is imported by URL does not see its own import map.
import type { Tokenizer as Backend } from "npm:@huggingface/tokenizers@0.2.0";
import { ConfigError } from "../errors.ts";
import { Charsmap } from "./charsmap.ts";
import { messageOf } from "../tensor/output.ts";

/** What a text became. */
export interface Encoding {
  /** Token ids, `maxLength` of them where padding was asked for. */
  readonly ids: Int32Array<ArrayBuffer>;
  /** How many of the ids come from the text and the special tokens around it; the rest is padding. */
  readonly length: number;
  /** The end of the text that did not fit, as tokens spell it; empty where everything fit. */
  readonly dropped: string;
}

/** Options of {@linkcode Tokenizer.encode}. */
export interface EncodeOptions {
  /** The most tokens, special ones included; the tokenizer's own `maxLength` by default. */
  maxLength?: number;
  /** Whether to fill up to `maxLength` with the padding token. True by default. */
  padding?: boolean;
}

/** Options of {@linkcode Tokenizer.decode}. */
export interface DecodeOptions {
  /** Whether to leave out the start, end and padding tokens. False by default, as in transformers. */
  skipSpecialTokens?: boolean;
}

/** Where a tokenizer's files are. */
interface Source {
  /** Their folder, for messages. */
  readonly folder: string;
  /** The text of one; `undefined` where there is none. */
  readonly read: (name: string) => Promise<string | undefined>;
}

/** What a tokenizer may be made from. */
const FILES = ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt"];

type Json = { readonly [key: string]: unknown };

/** How many special tokens `tokenizer.json` puts before and after a text. */
interface Template {
  readonly before: readonly number[];
  readonly after: readonly number[];
}

/**
 * Turns prompts into the ids that a text encoder takes, and ids back into text, exactly as transformers does.
 *
 * @example Encoding a prompt
 * ```ts
 * import { strictEqual } from "node:assert/strict";
 * import { Tokenizer } from "./tokenizer.ts";
 *
 * const tokenizer = await Tokenizer.load(new URL("../../models/shapes-flux/tokenizer", import.meta.url).pathname);
 * const { ids, length, dropped } = tokenizer.encode("a red star");
 * strictEqual(ids.length, 77);
 * strictEqual(length, 5); // the start, three words, the end
 * strictEqual(dropped, "");
 * strictEqual(tokenizer.decode(ids, { skipSpecialTokens: true }), "a red star");
 * ```
 */
export class Tokenizer {
  /** The folder that the tokenizer came from. */
  readonly folder: string;
  /** The most tokens that the text encoder takes, special ones included; infinite where the checkpoint sets no limit. */
  readonly maxLength: number;
  /** The id that fills a short text up. */
  readonly padId: number;
  /** The id that ends a text. */
  readonly eosId: number;
  /** The id that starts a text; `undefined` for T5, which has none. */
  readonly bosId: number | undefined;

  readonly #backend: Backend;
  readonly #template: Template;

  private constructor(
    backend: Backend,
    options: { folder: string; maxLength: number; padId: number; eosId: number; bosId: number | undefined },
  ) {
    this.folder = options.folder;
    this.maxLength = options.maxLength;
    this.padId = options.padId;
    this.eosId = options.eosId;
    this.bosId = options.bosId;
    this.#backend = backend;
    this.#template = templateOf(backend, options.folder);
  }

  /**
   * Loads a tokenizer from `tokenizer.json`, or from `vocab.json` and `merges.txt` where that is all there is.
   *
   * @param folder A checkpoint's `tokenizer` or `tokenizer_2` folder
   * @param options `read`: how the files of a folder that is no folder are read
   * @returns The tokenizer
   * @throws {ConfigError} If a file is missing or broken, or the tokenizer is of a kind that is not known
   */
  static async load(
    folder: string,
    options: { read?: (name: string) => Promise<string | undefined> } = {},
  ): Promise<Tokenizer> {
    const source: Source = { folder, read: options.read ?? ((name) => readText(folder, name)) };
    // Imported with the first tokenizer, so that scripts which give embeddings do not wait for it.
    const [{ Tokenizer: Implementation }, config, specials, whole] = await Promise.all([
      import("npm:@huggingface/tokenizers@0.2.0"),
      readJson(source, "tokenizer_config.json"),
      readJson(source, "special_tokens_map.json"),
      readJson(source, "tokenizer.json"),
    ]);
    const settings: Json = { ...specials, ...config };
    const file = `${folder}/${whole ? "tokenizer.json" : "vocab.json"}`;
    const definition = whole ?? await clipFromVocab(source, settings);
    checkDefinition(definition, file);

    let backend: Backend;
    try {
      // The library's own cleaning of spaces defaults to on where transformers' configuration says nothing.
      backend = new Implementation(definition, { clean_up_tokenization_spaces: false, ...settings });
      if (backend.normalizer) useCharsmaps(backend.normalizer);
    } catch (cause) {
      throw broken(file, `it does not describe a tokenizer (${messageOf(cause)})`, { cause });
    }

    const isClip = (definition.model as Json).type === "BPE";
    const idOf = (field: string, token: string | undefined): number => {
      const id = token === undefined ? undefined : backend.token_to_id(token);
      if (id !== undefined) return id;
      throw new ConfigError(
        `Cannot use the tokenizer in ${folder} as its ${field} ${JSON.stringify(token)} is not in its vocabulary: ` +
          `name one that is in ${folder}/tokenizer_config.json`,
        { file: `${folder}/tokenizer_config.json`, key: field },
      );
    };
    const eos = tokenIn(settings, "eos_token", folder) ?? (isClip ? "<|endoftext|>" : "</s>");
    const bos = tokenIn(settings, "bos_token", folder) ?? (isClip ? "<|startoftext|>" : undefined);
    const pad = tokenIn(settings, "pad_token", folder) ?? (isClip ? eos : "<pad>");
    return new Tokenizer(backend, {
      folder,
      maxLength: maxLengthIn(settings, folder),
      padId: idOf("pad_token", pad),
      eosId: idOf("eos_token", eos),
      bosId: bos === undefined ? undefined : idOf("bos_token", bos),
    });
  }

  /** @internal The files that it is loaded from, as they are in its folder now. */
  async files(): Promise<[string, Uint8Array<ArrayBuffer>][]> {
    const texts = await Promise.all(FILES.map(async (name) => [name, await readText(this.folder, name)] as const));
    return texts.filter(([, text]) => text !== undefined).map(([name, text]) => [name, new TextEncoder().encode(text)]);
  }

  /** How many different ids there are. */
  get vocabSize(): number {
    return this.#backend.get_vocab(true).size;
  }

  /**
   * Turns a text into ids: cut to the length with the special tokens kept, then filled up with the padding token.
   *
   * @param text The text
   * @param options The length, and whether to fill up to it
   * @returns The ids, how many of them are not padding, and what was cut
   * @throws {RangeError} If the length has no room for the special tokens
   */
  encode(text: string, options: EncodeOptions = {}): Encoding {
    if (typeof text !== "string") throw new TypeError(`Cannot encode a ${typeof text}: pass a string`);
    const { maxLength = this.maxLength, padding = true } = options;
    const { before, after } = this.#template;
    const room = maxLength - before.length - after.length;
    if (!(room >= 0) || (maxLength !== Infinity && !Number.isInteger(maxLength))) {
      throw new RangeError(
        `Cannot encode to a length of ${maxLength}: pass an integer of at least ${before.length + after.length}, ` +
          "which the special tokens take",
      );
    }
    const body = this.#backend.encode(text, { add_special_tokens: false }).ids;
    const kept = body.length > room ? body.slice(0, room) : body;
    const dropped = body.length > room ? this.decode(body.slice(room)) : "";
    const length = before.length + kept.length + after.length;
    const ids = new Int32Array(padding && maxLength !== Infinity ? maxLength : length).fill(this.padId);
    ids.set(before);
    ids.set(kept, before.length);
    ids.set(after, before.length + kept.length);
    return { ids, length, dropped };
  }

  /**
   * Turns ids back into text.
   *
   * @param ids Token ids
   * @param options Whether to leave out special tokens
   * @returns The text
   * @throws {RangeError} If an id is not in the vocabulary
   */
  decode(ids: Iterable<number>, options: DecodeOptions = {}): string {
    const list = [...ids];
    for (const id of list) {
      if (this.#backend.id_to_token(id) === undefined) {
        throw new RangeError(`Cannot decode the id ${id}: the tokenizer in ${this.folder} has no such token`);
      }
    }
    if (list.length === 0) return "";
    return this.#backend.decode(list, { skip_special_tokens: options.skipSpecialTokens ?? false }).trim();
  }
}

/** A normalizer of the library: one step, or a sequence of them. */
interface Normalizer {
  readonly config: { readonly type?: string; readonly precompiled_charsmap?: string | null };
  normalize(text: string): string;
}

/** Puts SentencePiece's compiled map in the place of the library's likeness of it. */
function useCharsmaps(normalizer: Normalizer): void {
  const { type, precompiled_charsmap: charsmap } = normalizer.config;
  if (type === "Precompiled" && typeof charsmap === "string") {
    const map = new Charsmap(charsmap);
    normalizer.normalize = (text) => map.normalize(text);
  }
  if ("normalizers" in normalizer && Array.isArray(normalizer.normalizers)) {
    for (const step of normalizer.normalizers) if (step) useCharsmaps(step);
  }
}

/** Finds what surrounds a text by encoding a letter with and without it. */
function templateOf(backend: Backend, folder: string): Template {
  const body = backend.encode("a", { add_special_tokens: false }).ids;
  const whole = backend.encode("a").ids;
  for (let at = 0; at + body.length <= whole.length; at++) {
    if (body.every((id, i) => whole[at + i] === id)) {
      return { before: whole.slice(0, at), after: whole.slice(at + body.length) };
    }
  }
  throw broken(`${folder}/tokenizer.json`, "its post-processor changes a text's own tokens");
}

/** Makes what `tokenizer.json` would say, as transformers' conversion of CLIP's slow tokenizer does. */
async function clipFromVocab(source: Source, settings: Json): Promise<Json> {
  const { folder, read } = source;
  const vocab = await readJson(source, "vocab.json");
  const merges = await read("merges.txt");
  if (vocab === undefined || merges === undefined) {
    const remedy = await read("spiece.model") === undefined
      ? "check the folder, or download the checkpoint again"
      : "its spiece.model is not read: make a tokenizer.json with transformers' T5TokenizerFast and save_pretrained";
    throw new ConfigError(
      `Cannot load a tokenizer from ${folder}: it has neither tokenizer.json nor both vocab.json and merges.txt; ${remedy}`,
      { file: folder },
    );
  }
  for (const [token, id] of Object.entries(vocab)) {
    if (!Number.isInteger(id) || id as number < 0) {
      throw broken(`${folder}/vocab.json`, `${JSON.stringify(token)} has the id ${JSON.stringify(id)}`, { key: token });
    }
  }
  const name = typeof settings.tokenizer_class === "string" ? settings.tokenizer_class : "CLIPTokenizer";
  if (!name.startsWith("CLIPTokenizer")) {
    throw new ConfigError(
      `Cannot load a ${name} from vocab.json and merges.txt in ${folder}: only CLIP's is known in that form; ` +
        "add its tokenizer.json, which transformers' save_pretrained writes",
      { file: `${folder}/tokenizer_config.json`, key: "tokenizer_class" },
    );
  }
  const bos = tokenIn(settings, "bos_token", folder) ?? "<|startoftext|>";
  const eos = tokenIn(settings, "eos_token", folder) ?? "<|endoftext|>";
  const unk = tokenIn(settings, "unk_token", folder) ?? "<|endoftext|>";
  const idOf = (token: string): number => {
    const id = Object.hasOwn(vocab, token) ? vocab[token] : undefined;
    if (typeof id === "number") return id;
    throw broken(`${folder}/vocab.json`, `it lacks the special token ${JSON.stringify(token)}`, { key: token });
  };
  return {
    version: "1.0",
    added_tokens: [...new Set([bos, eos])].map((content) => (
      { id: idOf(content), content, single_word: false, lstrip: false, rstrip: false, normalized: true, special: true }
    )),
    normalizer: {
      type: "Sequence",
      normalizers: [
        { type: "NFC" },
        { type: "Replace", pattern: { Regex: "\\s+" }, content: " " },
        { type: "Lowercase" },
      ],
    },
    pre_tokenizer: {
      type: "Sequence",
      pretokenizers: [
        {
          type: "Split",
          pattern: { Regex: "'s|'t|'re|'ve|'m|'ll|'d|[\\p{L}]+|[\\p{N}]|[^\\s\\p{L}\\p{N}]+" },
          behavior: "Removed",
          invert: true,
        },
        { type: "ByteLevel", add_prefix_space: false, trim_offsets: true, use_regex: true },
      ],
    },
    post_processor: {
      type: "RobertaProcessing",
      cls: [bos, idOf(bos)],
      sep: [eos, idOf(eos)],
      trim_offsets: false,
      add_prefix_space: false,
    },
    decoder: { type: "ByteLevel", add_prefix_space: true, trim_offsets: true, use_regex: true },
    model: {
      type: "BPE",
      dropout: null,
      unk_token: unk,
      continuing_subword_prefix: "",
      end_of_word_suffix: "</w>",
      fuse_unk: false,
      vocab,
      merges: parseMerges(merges, { file: `${folder}/merges.txt`, vocab }),
    },
  };
}

function parseMerges(text: string, { file, vocab }: { file: string; vocab: Json }): string[] {
  const merges: string[] = [];
  for (const [i, raw] of text.split("\n").entries()) {
    const line = raw.trim();
    if (line === "" || (i === 0 && line.startsWith("#version"))) continue;
    const pair = line.split(" ");
    if (pair.length !== 2 || !Object.hasOwn(vocab, pair.join(""))) {
      throw broken(file, `line ${i + 1} is ${JSON.stringify(line.slice(0, 80))}, which is not a pair of known tokens`);
    }
    merges.push(line);
  }
  return merges;
}

/** Checks what the library would take for granted, down to the ids that it hands out. */
function checkDefinition(definition: Json, file: string): void {
  const { model } = definition;
  if (!isObject(model)) throw broken(file, "it has no model", { key: "model" });
  if (model.type === "BPE") {
    if (!isObject(model.vocab)) throw broken(file, "its vocabulary is not an object", { key: "model.vocab" });
    if (!Array.isArray(model.merges)) throw broken(file, "its merges are not a list", { key: "model.merges" });
  } else if (model.type === "Unigram") {
    const { vocab } = model;
    const isEntry = (entry: unknown) =>
      Array.isArray(entry) && typeof entry[0] === "string" && Number.isFinite(entry[1]);
    if (!Array.isArray(vocab) || vocab.length === 0 || !vocab.every(isEntry)) {
      throw broken(file, "its vocabulary is not a list of tokens and scores", { key: "model.vocab" });
    }
  } else {
    throw new ConfigError(
      `Cannot use ${file}: its model is ${JSON.stringify(model.type)}, and denoise has BPE (CLIP) and Unigram (T5)`,
      { file, key: "model.type" },
    );
  }
}

/** A special token, which is a string or an object with its content. */
function tokenIn(settings: Json, field: string, folder: string): string | undefined {
  const value = settings[field];
  if (value === undefined || value === null) return undefined;
  const content = isObject(value) ? value.content : value;
  if (typeof content === "string") return content;
  throw broken(`${folder}/tokenizer_config.json`, `its ${field} is ${JSON.stringify(value)}, not a token`, {
    key: field,
  });
}

function maxLengthIn(settings: Json, folder: string): number {
  const value = settings.model_max_length;
  if (value === undefined || value === null) return Infinity;
  if (typeof value !== "number" || !(value >= 1)) {
    throw broken(`${folder}/tokenizer_config.json`, `its model_max_length is ${JSON.stringify(value)}`, {
      key: "model_max_length",
    });
  }
  // transformers writes 1e30 for "no limit".
  return value > 1e9 ? Infinity : Math.floor(value);
}

async function readJson({ folder, read }: Source, name: string): Promise<Json | undefined> {
  const text = await read(name);
  if (text === undefined) return undefined;
  const file = `${folder}/${name}`;
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (cause) {
    throw broken(file, `it is not JSON (${messageOf(cause)})`, { cause });
  }
  if (!isObject(value)) throw broken(file, "it is not a JSON object");
  return value;
}

async function readText(folder: string, name: string): Promise<string | undefined> {
  const file = `${folder}/${name}`;
  try {
    return await Deno.readTextFile(file);
  } catch (cause) {
    if (cause instanceof Deno.errors.NotFound || cause instanceof Deno.errors.NotADirectory) return undefined;
    const remedy = cause instanceof Deno.errors.NotCapable
      ? "run with --allow-read for it"
      : "check that it can be read";
    throw new ConfigError(`Cannot read ${file}: ${messageOf(cause)}; ${remedy}`, { file, cause });
  }
}

function broken(file: string, what: string, details: { key?: string; cause?: unknown } = {}): ConfigError {
  return new ConfigError(`Cannot load the tokenizer from ${file} as ${what}: download the file again`, {
    file,
    ...details,
  });
}

function isObject(value: unknown): value is Json {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}
