import assert from "node:assert/strict";
import { parse } from "npm:csv-parse@6.1.0/sync";
import {
  type Axes,
  checkpointName,
  type Configuration,
  nameOf,
  PICTURES,
  type Row,
  type Runs,
  type Settings,
} from "../../bench/matrix.ts";
import { withFolder } from "../folder.ts";

const AXES: Axes = {
  ckpt_id: ["models/shapes-flux"],
  batch_size: [1],
  fuse: [false],
  compile: [false],
  compile_vae: [false],
  quantization: ["none"],
  sparsify: [false],
};
const ROW: Row = {
  ...PICTURES.combine(AXES)[0]!,
  model_memory: 1e6,
  inference_memory: 2e6,
  time: 0.125,
  psnr: Infinity,
  ssim: 1,
  accuracy: 0.5,
};
const RUNS: Runs = {
  machine: "a machine",
  settings: {
    prompts: 2,
    warmup: 0,
    runs: 1,
    num_inference_steps: 1,
    height: 32,
    width: 32,
    max_sequence_length: 16,
  },
  rows: [ROW, { ...ROW, quantization: "int8dq", psnr: 41.5 }],
};

Deno.test("a matrix is every combination, the last column fastest, none twice", () => {
  const all = PICTURES.combine({
    ...AXES,
    batch_size: [1, 4, 4],
    fuse: [false, true],
    quantization: ["none", "int8wo"],
  });
  assert.deepEqual(
    all.map(({ batch_size, fuse, quantization }) => [batch_size, fuse, quantization]),
    [
      [1, false, "none"],
      [1, false, "int8wo"],
      [1, true, "none"],
      [1, true, "int8wo"],
      [4, false, "none"],
      [4, false, "int8wo"],
      [4, true, "none"],
      [4, true, "int8wo"],
    ],
  );
});

Deno.test("a matrix leaves out what means nothing", () => {
  const both = [false, true];
  const compiled = PICTURES.combine({ ...AXES, compile: both, compile_vae: both });
  assert.deepEqual(compiled.map((c) => [c.compile, c.compile_vae]), [[false, false], [true, false], [true, true]]);
  const sparse = PICTURES.combine({ ...AXES, quantization: ["none", "int8dq", "int4wo"], sparsify: both });
  assert.deepEqual(sparse.filter((c) => c.sparsify).map((c) => c.quantization), ["int8dq"]);
  assert.equal(sparse.length, 4);
  assert.deepEqual(PICTURES.combine({ ...AXES, compile_vae: [true] }), []);
});

Deno.test("each configuration has a name of its own, which can be a file's", () => {
  const both = [false, true];
  const all = PICTURES.combine({
    ckpt_id: ["models/shapes-flux", "black-forest-labs/FLUX.1-dev", "https://example.org/a b?c"],
    batch_size: [1, 16],
    fuse: both,
    compile: both,
    compile_vae: both,
    quantization: ["none", "int8dq", "fp6_e3m2"],
    sparsify: both,
  });
  const names = all.map(nameOf);
  assert.equal(new Set(names).size, all.length);
  for (const name of names) assert.match(name, /^[\w.-]+$/);
  assert.equal(checkpointName("../models/shapes-flux/"), "models_shapes_flux");
  const everything = { ...ROW, fuse: true, compile: true, compile_vae: true, quantization: "int8dq", sparsify: true };
  assert.equal(nameOf(everything), "models_shapes_flux-b1-fuse-compile-compile_vae-int8dq-sparsify");
});

Deno.test("what has a row is not missing, whatever the order of its fields", () => {
  const all = PICTURES.combine({ ...AXES, batch_size: [1, 4], quantization: ["none", "int8dq"] });
  const reordered = Object.fromEntries(Object.entries(RUNS.rows[1]!).reverse()) as unknown as Row;
  assert.deepEqual(PICTURES.missing(all, [ROW, reordered]).map(nameOf), [
    "models_shapes_flux-b4-none",
    "models_shapes_flux-b4-int8dq",
  ]);
  assert.deepEqual(PICTURES.missing(all, []), all);
});

Deno.test("rows as CSV have the columns in order, and another reader agrees", () => {
  const rows = [{ ...ROW, ckpt_id: 'a "name", and\nmore' }, RUNS.rows[1]!];
  const text = PICTURES.toCsv(rows);
  assert.equal(
    text.split("\n")[0],
    "ckpt_id,batch_size,fuse,compile,compile_vae,quantization,sparsify,model_memory,inference_memory,time,psnr,ssim,accuracy",
  );
  const read = parse(text, { columns: true }) as Record<string, string>[];
  assert.equal(read.length, 2);
  assert.equal(read[0]!.ckpt_id, rows[0]!.ckpt_id);
  assert.deepEqual([read[0]!.psnr, read[0]!.fuse, read[1]!.psnr, read[1]!.time], ["inf", "false", "41.5", "0.125"]);
});

Deno.test("runs are read back as they were written, and nothing else is left beside them", async () => {
  await withFolder(async (folder) => {
    const file = `${folder}/runs.json`;
    assert.equal(await PICTURES.read<Settings>(file), undefined);
    await PICTURES.write(folder, { ...RUNS, rows: [] });
    await PICTURES.write(folder, RUNS);
    assert.deepEqual(await PICTURES.read<Settings>(file), RUNS);
    const names = (await Array.fromAsync(Deno.readDir(folder))).map(({ name }) => name).sort();
    assert.deepEqual(names, ["runs.csv", "runs.json"]);
    assert.equal(await Deno.readTextFile(`${folder}/runs.csv`), PICTURES.toCsv(RUNS.rows));
    await Deno.writeTextFile(file, "{");
    await assert.rejects(PICTURES.read<Settings>(file), {
      name: "SyntaxError",
      message: /runs.json as it is not JSON/,
    });
  });
});

Deno.test("a row has every column", () => {
  assert.deepEqual(Object.keys(ROW).sort(), [...PICTURES.columns].sort());
  const configuration: Configuration = ROW;
  assert.deepEqual(PICTURES.missing([configuration], [ROW]), []);
});
