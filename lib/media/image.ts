/**
 * Pictures: made from what a decoder gives, saved with the settings that made them, opened again, shown in notebooks.
 *
 * @module
 */

import { DenoiseError, OutputError } from "../errors.ts";
import { readInput } from "./input.ts";
import { channelsOf, decodePng, encodePng, type Pixels } from "./png.ts";
import { messageOf } from "../tensor/output.ts";

/** What {@linkcode Image} is made from. */
export interface ImageInit extends Pixels {
  /** Texts by keyword, kept in the file: what made the picture. */
  readonly metadata?: Readonly<Record<string, string>>;
}

/** Options of {@linkcode Image.fromValues}. */
export interface FromValuesOptions {
  /** Pixels in a row. */
  width: number;
  /** Rows. */
  height: number;
  /** The order of the axes: (height, width, 3), the default, or (3, height, width). */
  layout?: "hwc" | "chw";
  /** The values of black and white: [-1, 1], as a decoder gives them, or [0, 1]. */
  range?: readonly [-1 | 0, 1];
  /** Texts by keyword, kept in the file. */
  metadata?: Readonly<Record<string, string>>;
}

/** Options of {@linkcode Image.grid}. */
export interface GridOptions {
  /** Pictures in a row; as many as make the grid about square by default. */
  columns?: number;
  /** Pixels between pictures. None by default. */
  gap?: number;
}

/**
 * A picture of 8 bits a channel, RGB or RGBA. In a notebook, a cell that ends with one shows it.
 *
 * @example Saving a picture and opening it again
 * ```ts
 * import { deepStrictEqual } from "node:assert/strict";
 * import { Image } from "./image.ts";
 *
 * const folder = await Deno.makeTempDir();
 * const image = new Image({ width: 1, height: 1, data: Uint8Array.of(220, 40, 40), metadata: { prompt: "red" } });
 * await image.save(`${folder}/red.png`);
 * deepStrictEqual(await Image.open(`${folder}/red.png`), image);
 * await Deno.remove(folder, { recursive: true });
 * ```
 */
export class Image implements Pixels {
  /** Pixels in a row. */
  readonly width: number;
  /** Rows. */
  readonly height: number;
  /** Red, green, blue and, where there are four channels, opacity, row by row from the top left. */
  readonly data: Uint8Array;
  /** Texts by keyword, kept in the file: what made the picture. */
  readonly metadata: Readonly<Record<string, string>>;

  /** Makes a picture of `height * width * 3` bytes (RGB) or `height * width * 4` (RGBA), which are not copied. */
  constructor(init: ImageInit) {
    channelsOf(init);
    this.width = init.width;
    this.height = init.height;
    this.data = init.data;
    this.metadata = init.metadata ?? {};
  }

  /**
   * Makes a picture from a decoder's values, rounded as diffusers and NumPy do: in float32, ties to even.
   *
   * @param values Three channels of `width` by `height` values; what is out of range is clamped
   * @param options The size, the order of the axes, the range
   * @returns The picture, RGB
   */
  static fromValues(values: Float32Array, options: FromValuesOptions): Image {
    const { width, height, layout = "hwc", range = [-1, 1], metadata = {} } = options;
    const pixels = width * height;
    if (values.length !== pixels * 3) {
      throw new TypeError(`A picture of ${width} by ${height} takes ${pixels * 3} values, got ${values.length}`);
    }
    const data = new Uint8Array(values.length);
    const signed = range[0] === -1;
    for (let i = 0; i < values.length; i++) {
      const value = layout === "hwc" ? values[i]! : values[(i % 3) * pixels + Math.floor(i / 3)]!;
      const unit = signed ? Math.fround(value * 0.5 + 0.5) : value;
      data[i] = roundToEven(Math.fround((unit > 0 ? Math.min(unit, 1) : 0) * 255)); // a NaN is black
    }
    return new Image({ width, height, data, metadata });
  }

  /**
   * Opens a PNG of any kind.
   *
   * @param path The file
   * @returns The picture, with the texts in the file
   * @throws {DenoiseError} If it cannot be read or is not a PNG
   */
  static async open(path: string | URL): Promise<Image> {
    return new Image(await decodePng(await readInput(path), { file: String(path) }));
  }

  /**
   * Lays pictures of one size out in rows, from the top left.
   *
   * @param images One picture or more
   * @param options Pictures in a row, pixels between them
   * @returns One picture; places left over are black, or transparent where a picture has opacity
   */
  static grid(images: readonly Image[], options: GridOptions = {}): Image {
    const first = images[0];
    if (first === undefined) throw new RangeError("Cannot make a grid of no pictures: pass one or more");
    const { columns = Math.ceil(Math.sqrt(images.length)), gap = 0 } = options;
    if (!Number.isInteger(columns) || columns < 1) {
      throw new RangeError(`Cannot make a grid of ${columns} columns: pass a positive integer`);
    }
    if (!Number.isInteger(gap) || gap < 0) {
      throw new RangeError(`Cannot leave a gap of ${gap} pixels: pass a non-negative integer`);
    }
    const other = images.find(({ width, height }) => width !== first.width || height !== first.height);
    if (other) {
      throw new TypeError(
        `Cannot make a grid of ${first.width} by ${first.height} and ${other.width} by ${other.height}: ` +
          "pass pictures of one size",
      );
    }
    const rows = Math.ceil(images.length / columns);
    const across = Math.min(columns, images.length);
    const width = across * (first.width + gap) - gap;
    const height = rows * (first.height + gap) - gap;
    const channels = images.some((image) => channelsOf(image) === 4) ? 4 : 3;
    const data = new Uint8Array(width * height * channels);
    for (const [i, image] of images.entries()) {
      const source = channels === 4 ? toRgba(image) : image.data;
      const left = (i % columns) * (image.width + gap);
      const top = Math.floor(i / columns) * (image.height + gap);
      const stride = image.width * channels;
      for (let y = 0; y < image.height; y++) {
        data.set(source.subarray(y * stride, (y + 1) * stride), ((top + y) * width + left) * channels);
      }
    }
    return new Image({ width, height, data });
  }

  /**
   * The picture as a PNG file's bytes, its metadata in it.
   *
   * @returns The bytes
   */
  toPng(): Promise<Uint8Array<ArrayBuffer>> {
    return encodePng(this, { metadata: this.metadata });
  }

  /**
   * Writes the picture as PNG, its metadata in it: beside the path first, then renamed, so that a file is whole or not
   * there.
   *
   * @param path A file that ends in `.png`, in a folder that is there
   * @throws {OutputError} If the folder is missing, cannot be written, or is full
   */
  async save(path: string | URL): Promise<void> {
    const target = path instanceof URL ? decodeURIComponent(path.pathname) : path;
    if (!/\.png$/i.test(target)) {
      throw new RangeError(`Cannot save a picture as ${target}: pass a path that ends in .png`);
    }
    const bytes = await this.toPng();
    const suffix = `.${crypto.randomUUID().slice(0, 8)}.part`;
    const beside = path instanceof URL ? new URL(path.href + suffix) : path + suffix;
    try {
      await Deno.writeFile(beside, bytes, { createNew: true });
      await Deno.rename(beside, path);
    } catch (cause) {
      await Deno.remove(beside).catch(() => {}); // it may not have come to be
      const remedy = cause instanceof Deno.errors.NotFound
        ? "make its folder first"
        : cause instanceof Deno.errors.NotCapable
        ? "run with --allow-read and --allow-write for its folder"
        : "check the folder's permissions and the space left";
      throw new OutputError(`Cannot write ${target}: ${messageOf(cause)}; ${remedy}`, { file: target, cause });
    }
  }

  /** What a notebook shows: a MIME bundle of the picture as PNG. */
  async [Symbol.for("Jupyter.display")](): Promise<Record<string, string>> {
    return { "image/png": (await this.toPng()).toBase64() };
  }
}

/** The settings that make a picture or a video again. */
export interface GenerationSettings {
  /** The checkpoint: a folder's name, a hub id or a URL. */
  model?: string;
  /** What the picture should show. */
  prompt: string;
  /** The prompt of the second text encoder, where it is another. */
  prompt2?: string;
  /** What the picture should not show. */
  negativePrompt?: string;
  /** The seed of the noise. */
  seed: number | bigint;
  /** Steps from noise to picture. */
  numInferenceSteps: number;
  /** The guidance that is given to the model. */
  guidanceScale: number;
  /** The weight of classifier-free guidance. */
  trueCfgScale?: number;
  /** Pixels in a row. */
  width: number;
  /** Rows. */
  height: number;
  /** Frames, where a video was made. */
  numFrames?: number;
  /** Frames a second, where a video was made. */
  fps?: number;
  /** The scheduler's class, where a pipeline takes several. */
  scheduler?: string;
  /** Whether guidance grew from step to step. */
  useDynamicCfg?: boolean;
  /** The most tokens of the second text encoder. */
  maxSequenceLength?: number;
  /** The dtype that the model ran in. */
  dtype?: string;
  /** The parts of the pipeline that were quantized, and how; nothing where none was. */
  quantization?: string;
  /** How many pictures were made of one call: the noise is drawn for all of them at once. */
  batchSize?: number;
  /** Which of them this is, from 0. */
  index?: number;
}

const TEXTS = ["model", "prompt", "prompt2", "negativePrompt", "scheduler", "dtype", "quantization"] as const;
const SWITCHES = ["useDynamicCfg"] as const;
const NUMBERS = [
  "numInferenceSteps",
  "guidanceScale",
  "trueCfgScale",
  "width",
  "height",
  "numFrames",
  "fps",
  "maxSequenceLength",
  "batchSize",
  "index",
] as const;

/**
 * Settings as a picture's or video's metadata: diffusers' words as keywords.
 *
 * @param settings The settings, as far as they are known
 * @param options The version of denoise, for the keyword `Software`
 * @returns Texts by keyword
 */
export function settingsToMetadata(
  settings: Partial<GenerationSettings>,
  options: { version?: string } = {},
): Record<string, string> {
  const metadata: Record<string, string> = {};
  for (const key of [...TEXTS, "seed", ...NUMBERS, ...SWITCHES] as const) {
    const value = settings[key];
    if (value !== undefined) metadata[keywordOf(key)] = String(value);
  }
  metadata.Software = options.version === undefined ? "denoise" : `denoise ${options.version}`;
  return metadata;
}

/**
 * Reads from a picture's metadata the settings that make it again.
 *
 * @param metadata Texts by keyword, as {@linkcode Image.open} gives them
 * @param options The file's name, for messages
 * @returns The settings
 * @throws {DenoiseError} If one is missing, or a number is none
 */
export function settingsFromMetadata(
  metadata: Readonly<Record<string, string>>,
  options: { file?: string } = {},
): GenerationSettings {
  const { file } = options;
  const fail = (keyword: string, what: string) =>
    new DenoiseError(
      `Cannot read settings from ${file ?? "the picture"}: its ${keyword} ${what}; pass a picture that denoise saved`,
      { file, key: keyword },
    );
  const settings: Partial<Record<keyof GenerationSettings, string | number | bigint | boolean>> = {};
  for (const key of SWITCHES) {
    if (Object.hasOwn(metadata, keywordOf(key))) settings[key] = metadata[keywordOf(key)] === "true";
  }
  for (const key of [...TEXTS, "seed", ...NUMBERS] as const) {
    const keyword = keywordOf(key);
    const text = Object.hasOwn(metadata, keyword) ? metadata[keyword] : undefined;
    if (text === undefined) {
      if (["prompt", "seed", "numInferenceSteps", "guidanceScale", "width", "height"].includes(key)) {
        throw fail(keyword, "is missing");
      }
    } else if ((TEXTS as readonly string[]).includes(key)) {
      settings[key] = text;
    } else {
      const isInteger = /^-?\d+$/.test(text);
      const number = Number(text);
      const needsInteger = !(["guidanceScale", "trueCfgScale", "fps"] as string[]).includes(key);
      if (text.trim() === "" || !Number.isFinite(number) || (needsInteger && !isInteger)) {
        throw fail(keyword, `is ${JSON.stringify(text.slice(0, 80))}, which is not a number`);
      }
      settings[key] = key === "seed" && !Number.isSafeInteger(number) ? BigInt(text) : number;
    }
  }
  return settings as unknown as GenerationSettings;
}

/** `numInferenceSteps` to `num_inference_steps`. */
function keywordOf(key: string): string {
  return key.replace(/[A-Z]|\d+$/g, (part) => `_${part.toLowerCase()}`);
}

function roundToEven(value: number): number {
  const floor = Math.floor(value);
  const rest = value - floor;
  return rest > 0.5 || (rest === 0.5 && floor % 2 === 1) ? floor + 1 : floor;
}

function toRgba(image: Image): Uint8Array {
  if (channelsOf(image) === 4) return image.data;
  const out = new Uint8Array(image.width * image.height * 4).fill(255);
  for (let i = 0, o = 0; i < image.data.length; i += 3, o += 4) out.set(image.data.subarray(i, i + 3), o);
  return out;
}
