/**
 * The pictures that quality is judged by: 64 captions with a seed each, what the demo's model makes of them, and what is
 * wrong with it.
 *
 * @module
 */

import { Image } from "../lib/media/image.ts";
import { psnr, ssim } from "../lib/media/metrics.ts";
import type { FluxPipeline } from "../lib/pipelines/flux.ts";
import { checkPicture } from "../tests/picture_check.ts";
import { median } from "./measure.ts";

/** A caption, and the seed of its noise. */
export interface Caption {
  /** What the picture should show. */
  readonly prompt: string;
  /** The seed. */
  readonly seed: number;
}

/** How pictures are made. */
export interface DrawOptions {
  /** Pictures of a call; 1 by default. */
  readonly batchSize?: number;
  /** Steps of a picture; 20 by default. */
  readonly numInferenceSteps?: number;
  /** Rows of pixels; the model's own by default. */
  readonly height?: number;
  /** Pixels in a row; the model's own by default. */
  readonly width?: number;
  /** The most tokens of a prompt; 32 by default. */
  readonly maxSequenceLength?: number;
}

/** What pictures are worth. */
export interface Quality {
  /** Against the float pictures of the same seeds, in decibels: the median of the first {@linkcode COMPARED}. */
  readonly psnr: number;
  /** The same, as structural similarity. */
  readonly ssim: number;
  /** The share of captions whose picture shows what they say. */
  readonly accuracy: number;
}

/** How many of the pictures are held against the float ones. */
export const COMPARED = 24;

/** Captions that schemes are tried with where they are chosen by measurement: none of those that are judged. */
export const CALIBRATION: readonly string[] = [
  "a large blue ring on a black background",
  "a green star left of a red square on a white background",
];

/** The captions, which were not trained on. */
export const CAPTIONS: readonly Caption[] = JSON.parse(
  await Deno.readTextFile(new URL("../tests/fixtures/shapes-flux/accuracy.json", import.meta.url)),
);

/**
 * Makes a call's pictures.
 *
 * @param pipe The pipeline
 * @param captions What to draw
 * @param options How
 * @returns A picture each
 */
export async function drawBatch(
  pipe: FluxPipeline,
  captions: readonly Caption[],
  options: Omit<DrawOptions, "batchSize"> = {},
): Promise<Image[]> {
  const { numInferenceSteps = 20, maxSequenceLength = 32, ...size } = options;
  const { images } = await pipe(captions.map(({ prompt }) => prompt), {
    ...size,
    seed: captions.map(({ seed }) => seed),
    numInferenceSteps,
    maxSequenceLength,
  });
  return images;
}

/**
 * Makes a picture of each caption.
 *
 * @param pipe The pipeline
 * @param captions What to draw
 * @param options How
 * @returns A picture each
 */
export async function draw(
  pipe: FluxPipeline,
  captions: readonly Caption[],
  { batchSize = 1, ...options }: DrawOptions = {},
): Promise<Image[]> {
  const images: Image[] = [];
  for (let at = 0; at < captions.length; at += batchSize) {
    images.push(...await drawBatch(pipe, captions.slice(at, at + batchSize), options));
  }
  return images;
}

/**
 * Judges pictures.
 *
 * @param images The pictures
 * @param floats The pictures of the same captions by the model in floats
 * @param captions What they should show
 * @returns How near they are to the float ones, and how many are right
 */
export function judge(images: readonly Image[], floats: readonly Image[], captions: readonly Caption[]): Quality {
  const compared = images.slice(0, COMPARED);
  const right = images.filter((image, i) => checkPicture(captions[i]!.prompt, image).length === 0);
  return {
    psnr: median(compared.map((image, i) => psnr(image, floats[i]!))),
    ssim: median(compared.map((image, i) => ssim(image, floats[i]!))),
    accuracy: right.length / images.length,
  };
}

/**
 * Saves pictures in a folder, by number.
 *
 * @param images The pictures
 * @param folder The folder; made if it is not there
 */
export async function savePictures(images: readonly Image[], folder: string): Promise<void> {
  await Deno.mkdir(folder, { recursive: true });
  for (const [i, image] of images.entries()) await image.save(pictureFile(folder, i));
}

/**
 * Opens the first of the pictures of a folder.
 *
 * @param folder The folder
 * @param count How many
 * @returns The pictures
 */
export async function openPictures(folder: string, count: number): Promise<Image[]> {
  return await Promise.all(Array.from({ length: count }, (_, i) => Image.open(pictureFile(folder, i))));
}

const pictureFile = (folder: string, index: number) => `${folder}/${String(index).padStart(2, "0")}.png`;
