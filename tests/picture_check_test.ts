import { deepStrictEqual, strictEqual, throws } from "node:assert/strict";
import { Image } from "../lib/media/image.ts";
import { checkPicture, resizeBicubic } from "./picture_check.ts";

const FOLDER = new URL("picture_check/", import.meta.url);
const WHITE = [245, 245, 245];
const NAVY = [20, 28, 80];
const RED = [220, 40, 40];
const BLUE = [45, 80, 220];

/** A scene of 128 by 128: each thing is a colour and where it is, as offsets from its centre in parts of the picture. */
function scene(ground: number[], ...things: [number[], (u: number, v: number) => boolean, number, number][]): Image {
  const size = 128;
  const data = new Uint8Array(size * size * 3);
  for (let y = 0; y < size; y++) {
    for (let x = 0; x < size; x++) {
      let colour = ground;
      for (const [own, covers, cx, cy] of things) {
        if (covers((x + 0.5) / size - cx, (y + 0.5) / size - cy)) colour = own;
      }
      data.set(colour, (y * size + x) * 3);
    }
  }
  return new Image({ width: size, height: size, data });
}

const circle = (r: number) => (u: number, v: number) => Math.hypot(u, v) <= r;
const square = (r: number) => (u: number, v: number) => Math.max(Math.abs(u), Math.abs(v)) <= r * 0.88;
const ring = (r: number) => (u: number, v: number) => Math.hypot(u, v) <= r && Math.hypot(u, v) > r * 0.55;
const cross = (r: number) => (u: number, v: number) =>
  Math.max(Math.abs(u), Math.abs(v)) <= r && Math.min(Math.abs(u), Math.abs(v)) <= r * 0.36;
const triangle = (r: number) => (u: number, v: number) =>
  v >= -r && v <= 0.8 * r && Math.abs(u) <= 0.95 * r * (v + r) / (1.8 * r);
/** Ten corners, every other one further out. */
const star = (r: number) => (u: number, v: number) => {
  const turn = Math.PI / 5;
  const angle = Math.atan2(v, u) + Math.PI / 2;
  // Between the tip at 0 and the notch at `turn`, the edge is a straight line.
  const within = Math.abs(((angle % (2 * turn)) + 3 * turn) % (2 * turn) - turn);
  const [tx, nx, ny] = [r * 1.1, r * 0.48 * Math.cos(turn), r * 0.48 * Math.sin(turn)];
  const [px, py] = [Math.hypot(u, v) * Math.cos(within), Math.hypot(u, v) * Math.sin(within)];
  return (nx - tx) * py - ny * (px - tx) >= 0;
};

Deno.test("the verdicts on pictures of a young model are those of the Python check", async () => {
  const verdicts: { picture: string; caption: string; wrong: string[] }[] = JSON.parse(
    await Deno.readTextFile(new URL("verdicts.json", FOLDER)),
  );
  strictEqual(verdicts.length, 10);
  for (const { picture, caption, wrong } of verdicts) {
    deepStrictEqual(checkPicture(caption, await Image.open(new URL(picture, FOLDER))), wrong, picture);
  }
});

Deno.test("every shape is known, in both sizes and at every place", () => {
  const shapes = { circle, square, ring, cross, triangle, star };
  const places = { "": [0, 0], " at the left": [-1, 0], " at the right": [1, 0], " at the top": [0, -1] };
  for (const [name, shape] of Object.entries(shapes)) {
    for (const [size, r] of [["small", 0.16], ["large", 0.3]] as const) {
      for (const [place, [dx, dy]] of Object.entries(places)) {
        const image = scene(WHITE, [RED, shape(r), 0.5 + 0.2 * dx!, 0.5 + 0.2 * dy!]);
        const caption = `a ${size} red ${name}${place} on a white background`;
        deepStrictEqual(checkPicture(caption, image), [], caption);
      }
    }
  }
});

Deno.test("every relation is known, and its contrary is wrong", () => {
  const relations = { "left of": [-1, 0], "right of": [1, 0], above: [0, -1], below: [0, 1] };
  for (const [relation, [dx, dy]] of Object.entries(relations)) {
    const at = (side: number) => [0.5 + side * 0.24 * dx!, 0.5 + side * 0.24 * dy!] as const;
    const image = scene(NAVY, [RED, circle(0.18), ...at(1)], [BLUE, cross(0.18), ...at(-1)]);
    deepStrictEqual(checkPicture(`a red circle ${relation} a blue cross on a navy background`, image), []);
    deepStrictEqual(
      checkPicture(`a blue circle ${relation} a red square on a white background`, image),
      ["ground", "shape1 cross", "shape2 circle", "relation"],
    );
  }
});

Deno.test("what is wrong with one thing is named", () => {
  const image = scene(WHITE, [RED, circle(0.3), 0.3, 0.5]);
  deepStrictEqual(checkPicture("a large red circle at the left on a white background", image), []);
  deepStrictEqual(checkPicture("a large red circle on a white background", image), ["centre"]);
  deepStrictEqual(checkPicture("a small red square at the right on a black background", image), [
    "ground",
    "shape circle",
    "size",
    "place",
  ]);
  deepStrictEqual(checkPicture("a large blue circle at the left on a white background", image), ["missing"]);
  deepStrictEqual(checkPicture("a red circle above a blue ring on a white background", image), ["missing"]);
  strictEqual(checkPicture("a large red circle at the left on a white background", scene(WHITE)).join(), "missing");
});

Deno.test("a picture with opacity is judged by its colours", () => {
  const { width, height, data } = scene(WHITE, [RED, circle(0.3), 0.5, 0.5]);
  const rgba = Uint8Array.from({ length: width * height * 4 }, (_, i) => i % 4 === 3 ? 0 : data[(i >> 2) * 3 + i % 4]!);
  deepStrictEqual(checkPicture("a large red circle on a white background", { width, height, data: rgba }), []);
});

Deno.test("other captions are refused", () => {
  const image = scene(WHITE);
  for (const caption of ["", "a cat", "a large red circle", "a large crimson circle on a white background"]) {
    throws(() => checkPicture(caption, image), RangeError, caption);
  }
});

Deno.test("resizeBicubic rounds as Pillow does", () => {
  const image = { width: 7, height: 5, data: Uint8Array.from({ length: 35 }, (_, i) => i * 37 % 256) };
  const cases: [[number, number], number[]][] = [
    [[3, 2], [30, 114, 198, 36, 120, 204]],
    [[11, 8], [
      0,
      13,
      40,
      64,
      87,
      111,
      135,
      158,
      182,
      209,
      225,
      0,
      14,
      41,
      65,
      88,
      112,
      136,
      159,
      183,
      210,
      226,
      0,
      16,
      43,
      67,
      90,
      114,
      138,
      161,
      185,
      212,
      228,
      2,
      18,
      45,
      69,
      92,
      116,
      140,
      163,
      187,
      214,
      230,
      4,
      20,
      47,
      71,
      94,
      118,
      142,
      165,
      189,
      216,
      232,
      6,
      22,
      49,
      73,
      96,
      120,
      144,
      167,
      191,
      218,
      234,
      8,
      24,
      51,
      75,
      98,
      122,
      146,
      169,
      193,
      220,
      236,
      9,
      25,
      52,
      76,
      99,
      123,
      147,
      170,
      194,
      221,
      237,
    ]],
    [[7, 3], [1, 38, 75, 112, 149, 186, 223, 6, 43, 80, 117, 154, 191, 228, 11, 48, 85, 122, 159, 196, 233]],
    [[4, 5], [15, 77, 145, 207, 18, 80, 148, 210, 21, 83, 151, 213, 24, 86, 154, 216, 27, 89, 157, 219]],
  ];
  for (const [[width, height], values] of cases) {
    deepStrictEqual([...resizeBicubic(image, { width, height })], values, `${width} by ${height}`);
  }
});
