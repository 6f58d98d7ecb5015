/**
 * Judges a picture of `models/shapes-flux` against its caption, from its pixels: ground, colours, shapes, sizes, places.
 * The rules and the verdicts are those of the Python check that the model was trained against, to Pillow's rounding.
 * On drawn scenes it is wrong once in 300.
 *
 * @module
 */

import type { Pixels } from "../lib/media/png.ts";

type Rgb = readonly [number, number, number];

const COLOURS: Record<string, Rgb> = {
  red: [220, 40, 40],
  green: [40, 170, 70],
  blue: [45, 80, 220],
  yellow: [240, 210, 50],
  purple: [140, 60, 180],
  orange: [245, 140, 40],
  cyan: [50, 200, 220],
  pink: [245, 140, 190],
};
const GROUNDS: Record<string, Rgb> = {
  white: [245, 245, 245],
  black: [18, 18, 18],
  gray: [128, 128, 128],
  navy: [20, 28, 80],
};
const PLACES: Record<string, readonly [number, number]> = {
  left: [-1, 0],
  right: [1, 0],
  top: [0, -1],
  bottom: [0, 1],
};
const RELATIONS: Record<string, readonly [number, number]> = {
  "left of": [-1, 0],
  "right of": [1, 0],
  above: [0, -1],
  below: [0, 1],
};

const LABELS = [...Object.keys(COLOURS), ...Object.keys(GROUNDS).map((name) => `ground ${name}`)];
const PALETTE = [...Object.values(COLOURS), ...Object.values(GROUNDS)];
/** A pixel is of a colour that is nearer than this. */
const NEAR = 45 ** 2;
/** Fewer pixels than this are no shape. */
const MIN_PIXELS = 60;
const TEMPLATE_SIZE = 48;

/** The shapes as Pillow draws and shrinks them, cut to their bounds. */
const TEMPLATES: ReadonlyMap<string, Uint8Array> = new Map(
  (await Deno.readTextFile(new URL("picture_check/templates.txt", import.meta.url))).trim().split("\n\n").map(
    (part) => {
      const [name, ...rows] = part.split("\n");
      return [name!, Uint8Array.from(rows.join(""), (mark) => mark === "#" ? 1 : 0)];
    },
  ),
);

interface Found {
  /** The centre, in parts of the width and the height. */
  readonly cx: number;
  readonly cy: number;
  /** Half the larger side, in parts of the width. */
  readonly r: number;
  readonly shape: string;
}

/**
 * Judges a picture.
 *
 * @param caption `a large red circle at the top on a white background`, `a blue star left of a pink ring on a …`
 * @param image The picture; opacity is left out of account
 * @returns What is wrong with it: `ground`, `missing`, `shape star`, `relation`, `size`, `place`, `centre`; nothing where
 *   it shows what the caption says
 * @throws {RangeError} If the caption is not of the kind that the model was trained on
 */
export function checkPicture(caption: string, image: Pixels): string[] {
  const labels = labelPixels(image);
  const problems: string[] = [];
  const ground = /on a (\w+) background/.exec(caption)?.[1];
  const pair = /^a (\w+) (\w+) (left of|right of|above|below) a (\w+) (\w+) on/.exec(caption);
  const single = /^a (\w+) (\w+) (\w+)(?: at the (\w+))? on/.exec(caption);
  if (ground === undefined || !(pair ?? single)) {
    throw new RangeError(`Cannot judge by the caption ${JSON.stringify(caption)}`);
  }

  if (shareOfEdge(labels, image, LABELS.indexOf(`ground ${ground}`)) < 0.9) problems.push("ground");
  if (pair) {
    const [, colour1, shape1, relation, colour2, shape2] = pair;
    const one = find(labels, image, colour1!);
    const two = find(labels, image, colour2!);
    if (!one || !two) return [...problems, "missing"];
    if (one.shape !== shape1) problems.push(`shape1 ${one.shape}`);
    if (two.shape !== shape2) problems.push(`shape2 ${two.shape}`);
    const [dx, dy] = RELATIONS[relation!]!;
    if ((one.cx - two.cx) * dx + (one.cy - two.cy) * dy < 0.2) problems.push("relation");
    return problems;
  }
  const [, size, colour, shape, place] = single!;
  const found = find(labels, image, colour!);
  if (!found) return [...problems, "missing"];
  if (found.shape !== shape) problems.push(`shape ${found.shape}`);
  if ((size === "large") !== (found.r > 0.22)) problems.push("size");
  if (place !== undefined) {
    const [dx, dy] = PLACES[place] ?? [NaN, NaN];
    if (!((found.cx - 0.5) * dx + (found.cy - 0.5) * dy >= 0.1)) problems.push("place");
  } else if (Math.abs(found.cx - 0.5) > 0.1 || Math.abs(found.cy - 0.5) > 0.1) {
    problems.push("centre");
  }
  return problems;
}

/** The index of each pixel's colour in the palette; -1 where none is near. */
function labelPixels({ width, height, data }: Pixels): Int8Array {
  const channels = data.length / (width * height);
  const labels = new Int8Array(width * height);
  for (let i = 0; i < labels.length; i++) {
    let best = NEAR;
    let label = -1;
    for (const [c, [red, green, blue]] of PALETTE.entries()) {
      const at = i * channels;
      const distance = (data[at]! - red) ** 2 + (data[at + 1]! - green) ** 2 + (data[at + 2]! - blue) ** 2;
      if (distance < best) {
        best = distance;
        label = c;
      }
    }
    labels[i] = label;
  }
  return labels;
}

/** The share of a colour in the four outermost rows and columns of each side; corners count twice. */
function shareOfEdge(labels: Int8Array, { width, height }: Pixels, label: number): number {
  let same = 0;
  let all = 0;
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const times = Number(y < 4) + Number(y >= height - 4) + Number(x < 4) + Number(x >= width - 4);
      all += times;
      if (labels[y * width + x] === label) same += times;
    }
  }
  return same / all;
}

/** Where a colour is, and the shape that it looks most like. */
function find(labels: Int8Array, { width, height }: Pixels, colour: string): Found | undefined {
  const label = LABELS.indexOf(colour);
  if (label < 0) throw new RangeError(`Cannot look for the colour ${JSON.stringify(colour)}`);
  const has = (x: number, y: number) => labels[((y + height) % height) * width + (x + width) % width] === label;
  const mask = new Uint8Array(width * height);
  const xs: number[] = [];
  const ys: number[] = [];
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      // Fringes of one pixel, which lie between two other colours, are left out.
      if (!has(x, y) || !(has(x, y - 1) || has(x, y + 1)) || !(has(x - 1, y) || has(x + 1, y))) continue;
      mask[y * width + x] = 255;
      xs.push(x);
      ys.push(y);
    }
  }
  if (xs.length < MIN_PIXELS) return undefined;
  xs.sort((a, b) => a - b); // the ys are in order
  const [x0, x1, y0, y1] = [percentile(xs, 0.01), percentile(xs, 0.99), percentile(ys, 0.01), percentile(ys, 0.99)];

  const left = Math.trunc(x0);
  const top = Math.trunc(y0);
  const crop = { width: Math.trunc(x1) + 1 - left, height: Math.trunc(y1) + 1 - top };
  const cut = new Uint8Array(crop.width * crop.height);
  for (let y = 0; y < crop.height; y++) {
    const from = (top + y) * width + left;
    cut.set(mask.subarray(from, from + crop.width), y * crop.width);
  }
  const small = resizeBicubic({ ...crop, data: cut }, { width: TEMPLATE_SIZE, height: TEMPLATE_SIZE });
  let shape = "";
  let best = -1;
  for (const [name, template] of TEMPLATES) {
    let both = 0;
    let either = 0;
    for (let i = 0; i < template.length; i++) {
      const inside = small[i]! > 127;
      if (inside && template[i]) both++;
      if (inside || template[i]) either++;
    }
    const iou = both / Math.max(1, either);
    if (iou > best) [shape, best] = [name, iou];
  }
  return {
    cx: (x0 + x1) / 2 / width,
    cy: (y0 + y1) / 2 / height,
    r: Math.max(x1 - x0, y1 - y0) / 2 / width,
    shape,
  };
}

/** NumPy's linear percentile of sorted values. */
function percentile(sorted: readonly number[], quantile: number): number {
  const index = (sorted.length - 1) * quantile;
  const a = sorted[Math.floor(index)]!;
  const b = sorted[Math.min(Math.floor(index) + 1, sorted.length - 1)]!;
  const t = index - Math.floor(index);
  return t >= 0.5 ? b - (b - a) * (1 - t) : a + (b - a) * t;
}

/** Pillow's bicubic resize of one channel: across first, then down, in fixed point, rounded to bytes in between. */
export function resizeBicubic(image: Pixels, to: { width: number; height: number }): Uint8Array {
  const { width, height, data } = image;
  const across = to.width === width ? data : resizeRows({ width, height, data }, to.width);
  if (to.height === height) return across;
  // Columns as rows, and back.
  const turned = transpose({ width: to.width, height, data: across });
  const down = resizeRows({ width: height, height: to.width, data: turned }, to.height);
  return transpose({ width: to.height, height: to.width, data: down });
}

function resizeRows({ width, height, data }: Pixels, outWidth: number): Uint8Array {
  const one = 2 ** 22;
  const out = new Uint8Array(outWidth * height);
  const scale = width / outWidth;
  const filterScale = Math.max(1, scale);
  const support = 2 * filterScale;
  for (let x = 0; x < outWidth; x++) {
    const centre = (x + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - support + 0.5));
    const end = Math.min(width, Math.trunc(centre + support + 0.5));
    const weights = Array.from(
      { length: end - first },
      (_, i) => bicubic((i + first - centre + 0.5) * (1 / filterScale)),
    );
    const sum = weights.reduce((total, weight) => total + weight, 0);
    const fixed = weights.map((weight) => {
      const scaled = weight / sum * one;
      return Math.trunc(scaled < 0 ? scaled - 0.5 : scaled + 0.5);
    });
    for (let y = 0; y < height; y++) {
      let total = one / 2;
      for (const [i, weight] of fixed.entries()) total += data[y * width + first + i]! * weight;
      out[y * outWidth + x] = Math.min(255, Math.max(0, Math.floor(total / one)));
    }
  }
  return out;
}

/** Keys' cubic with a = -1/2. */
function bicubic(offset: number): number {
  const x = Math.abs(offset);
  const a = -0.5;
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  return x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0;
}

function transpose({ width, height, data }: Pixels): Uint8Array {
  const out = new Uint8Array(data.length);
  for (let y = 0; y < height; y++) for (let x = 0; x < width; x++) out[x * height + y] = data[y * width + x]!;
  return out;
}
