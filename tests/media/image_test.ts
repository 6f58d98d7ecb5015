import { createHash } from "node:crypto";
import { deepStrictEqual, ok, rejects, strictEqual, throws } from "node:assert/strict";
import { DenoiseError, OutputError } from "../../lib/errors.ts";
import { Image, settingsFromMetadata, settingsToMetadata } from "../../lib/media/image.ts";
import { decodePng } from "../../lib/media/png.ts";
import { withFolder } from "../folder.ts";

const FIXTURES = new URL("../fixtures/shapes-flux/", import.meta.url);

const red = () =>
  new Image({ width: 2, height: 1, data: Uint8Array.of(255, 0, 0, 255, 0, 0), metadata: { prompt: "北 red" } });

Deno.test("fromValues rounds as diffusers does: in float32, ties to even, out of range clamped", () => {
  const from = (
    values: number[],
  ) => [...Image.fromValues(Float32Array.from(values), { width: values.length / 3, height: 1 }).data];
  deepStrictEqual(from([-1, 0, 1]), [0, 128, 255]); // 127.5 ties to 128
  deepStrictEqual(from([-7, 7, NaN]), [0, 255, 0]);
  deepStrictEqual(from([Infinity, -Infinity, -1e-9]), [255, 0, 128]);

  const unit = (value: number) =>
    Image.fromValues(Float32Array.of(value, 0, 1), { width: 1, height: 1, range: [0, 1] }).data[0];
  strictEqual(unit(0.5), 128);
  strictEqual(unit(Math.fround(2.5 / 255)), 2); // 2.5 in float32 ties to 2
  strictEqual(unit(Math.fround(2.6 / 255)), 3);
});

Deno.test("fromValues reads both orders of the axes", () => {
  const hwc = Float32Array.of(-1, 0, 1, 1, -1, 0);
  const chw = Float32Array.of(-1, 1, 0, -1, 1, 0);
  deepStrictEqual(
    Image.fromValues(chw, { width: 2, height: 1, layout: "chw" }).data,
    Image.fromValues(hwc, { width: 2, height: 1 }).data,
  );
  throws(() => Image.fromValues(hwc, { width: 3, height: 1 }), { name: "TypeError", message: /9 values, got 6/ });
});

Deno.test("a picture is saved with its metadata and opened again", async () => {
  await withFolder(async (folder) => {
    await red().save(`${folder}/red.png`);
    deepStrictEqual(await Image.open(`${folder}/red.png`), red());
    await red().save(new URL(`file://${folder}/a%20b.PNG`));
    deepStrictEqual(await Image.open(`${folder}/a b.PNG`), red());
    await red().save(`${folder}/red.png`); // over the old one
    deepStrictEqual([...Deno.readDirSync(folder)].map(({ name }) => name).sort(), ["a b.PNG", "red.png"]);
  });
});

Deno.test("diffusers' own pictures open to the values that it gave", async () => {
  // SHA-256 of its arrays of bytes, from which it wrote the files.
  const given = {
    case3_0: "e944474a602402b0121ba74193b55a530ef3d0f076c07d866bac9db6221f95d6",
    case4_1: "af13e929bea499a1f8f6aeb7e70e031985a297340ab13600aa741b6f69a09dd1",
    case7_0: "ca3b47c8cfdf3dd165cf7d455f48a14f0289ef4e36785d0d6d533b16140d0f66",
  };
  for (const [name, hash] of Object.entries(given)) {
    const { data } = await Image.open(new URL(`${name}_f32.png`, FIXTURES));
    strictEqual(createHash("sha256").update(data).digest("hex"), hash);
  }
});

Deno.test("a picture that cannot be written is an OutputError with a remedy, and leaves no file", async () => {
  await withFolder(async (folder) => {
    await rejects(red().save(`${folder}/none/red.png`), (error) => {
      ok(error instanceof OutputError, `${error}`);
      strictEqual(error.file, `${folder}/none/red.png`);
      ok(/make its folder first$/.test(error.message), error.message);
      return true;
    });
    await Deno.mkdir(`${folder}/taken.png`); // a folder where the picture should be
    await rejects(red().save(`${folder}/taken.png`), OutputError);
    await Deno.writeTextFile(`${folder}/file`, "");
    await rejects(red().save(`${folder}/file/red.png`), OutputError);
    deepStrictEqual([...Deno.readDirSync(folder)].map(({ name }) => name).sort(), ["file", "taken.png"]);
  });
  await rejects(red().save("red.jpg"), { name: "RangeError", message: /red.jpg.*\.png/ });
});

Deno.test({
  name: "a file system that takes no files is an OutputError",
  ignore: Deno.build.os !== "linux",
  fn: () => rejects(red().save("/proc/red.png"), OutputError),
});

Deno.test({
  name: "a folder without permission is an OutputError",
  ignore: Deno.uid() === null || Deno.uid() === 0, // root writes everywhere
  fn: () =>
    withFolder(async (folder) => {
      await Deno.chmod(folder, 0o500);
      await rejects(red().save(`${folder}/red.png`), { name: "OutputError", message: /permissions/ });
    }),
});

Deno.test({
  name: "saving without permission names the flag",
  permissions: { read: true, write: false },
  fn: () => rejects(red().save("red.png"), { name: "OutputError", message: /--allow-write/ }),
});

Deno.test("what cannot be opened is a DenoiseError with a remedy", async () => {
  await rejects(Image.open("no/such.png"), (error) => {
    ok(error instanceof DenoiseError, `${error}`);
    strictEqual(error.file, "no/such.png");
    ok(/check the path$/.test(error.message), error.message);
    return true;
  });
  await withFolder(async (folder) => {
    await Deno.writeTextFile(`${folder}/text.png`, "not a picture");
    await rejects(Image.open(`${folder}/text.png`), { name: "DenoiseError", message: /text.png as a PNG/ });
  });
});

Deno.test("a notebook shows a picture as PNG", async () => {
  const image = red() as unknown as Record<symbol, () => Promise<Record<string, string>>>;
  const bundle = await image[Symbol.for("Jupyter.display")]!();
  deepStrictEqual(Object.keys(bundle), ["image/png"]);
  deepStrictEqual((await decodePng(Uint8Array.fromBase64(bundle["image/png"]!))).data, red().data);
});

Deno.test("grid lays pictures out in rows", () => {
  const image = (value: number) => new Image({ width: 1, height: 2, data: new Uint8Array(6).fill(value) });
  const greys = (grid: Image) => [...grid.data].filter((_, i) => i % 3 === 0);

  const square = Image.grid([1, 2, 3].map(image));
  deepStrictEqual([square.width, square.height], [2, 4]);
  deepStrictEqual(greys(square), [1, 2, 1, 2, 3, 0, 3, 0]);

  const row = Image.grid([1, 2, 3].map(image), { columns: 5 });
  deepStrictEqual([row.width, row.height], [3, 2]);
  deepStrictEqual(greys(row), [1, 2, 3, 1, 2, 3]);

  const gap = Image.grid([1, 2].map(image), { columns: 2, gap: 1 });
  deepStrictEqual([gap.width, gap.height], [3, 2]);
  deepStrictEqual(greys(gap), [1, 0, 2, 1, 0, 2]);

  const clear = new Image({ width: 1, height: 2, data: new Uint8Array(8).fill(9) });
  const mixed = Image.grid([image(1), clear], { columns: 1 });
  deepStrictEqual([...mixed.data], [1, 1, 1, 255, 1, 1, 1, 255, 9, 9, 9, 9, 9, 9, 9, 9]);

  throws(() => Image.grid([]), RangeError);
  throws(() => Image.grid([image(1)], { columns: 0 }), RangeError);
  throws(() => Image.grid([image(1)], { gap: -1 }), RangeError);
  throws(() => Image.grid([image(1), red()]), { name: "TypeError", message: /1 by 2 and 2 by 1/ });
});

Deno.test("settings go into metadata and come back, in any script and with any seed", async () => {
  const settings = {
    model: "models/shapes-flux",
    prompt: "a large red star — 北京 🙂",
    prompt2: "",
    negativePrompt: "café",
    seed: 18446744073709551615n,
    numInferenceSteps: 20,
    guidanceScale: 3.5,
    trueCfgScale: 1.0000000000000002,
    width: 128,
    height: 96,
    maxSequenceLength: 32,
    dtype: "bf16",
    batchSize: 2,
    index: 1,
  };
  const metadata = settingsToMetadata(settings, { version: "0.1.0" });
  strictEqual(metadata.num_inference_steps, "20");
  strictEqual(metadata.prompt_2, "");
  strictEqual(metadata.Software, "denoise 0.1.0");
  const image = new Image({ width: 1, height: 1, data: new Uint8Array(3), metadata });
  const opened = await decodePng(await image.toPng());
  deepStrictEqual(settingsFromMetadata(opened.metadata), settings);

  const few = { prompt: "a", seed: 5, numInferenceSteps: 1, guidanceScale: 0, width: 16, height: 16 };
  deepStrictEqual(settingsFromMetadata(settingsToMetadata(few)), few);
});

Deno.test("settings that are missing or no numbers are refused by name", () => {
  const metadata = settingsToMetadata({
    prompt: "a",
    seed: 5,
    numInferenceSteps: 1,
    guidanceScale: 0,
    width: 16,
    height: 16,
  });
  const refused = (changes: Record<string, string>, keyword: string, message: RegExp) =>
    throws(() => settingsFromMetadata({ ...metadata, ...changes }, { file: "x.png" }), (error) => {
      ok(error instanceof DenoiseError && error.key === keyword && error.file === "x.png", `${error}`);
      ok(message.test(error.message), error.message);
      return true;
    });
  refused({ seed: "five" }, "seed", /"five"/);
  refused({ seed: "1.5" }, "seed", /"1.5"/);
  refused({ width: "1e3" }, "width", /"1e3"/);
  refused({ guidance_scale: "" }, "guidance_scale", /not a number/);
  refused({ guidance_scale: "NaN" }, "guidance_scale", /NaN/);
  const { prompt: _, ...rest } = metadata;
  throws(() => settingsFromMetadata(rest), { name: "DenoiseError", message: /its prompt is missing/ });
});
