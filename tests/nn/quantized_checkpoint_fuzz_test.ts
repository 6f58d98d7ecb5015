import assert from "node:assert/strict";
import { CheckpointError } from "../../lib/errors.ts";
import { CLIPTextModel } from "../../lib/models/clip_text_model.ts";
import { partName } from "../../lib/nn/quantized_checkpoint.ts";
import { saveModel } from "../../lib/nn/save.ts";
import { quantize, sparsify } from "../../lib/quantize/quantize.ts";
import { Device } from "../../lib/tensor/device.ts";
import { computeOnce } from "../../lib/tensor/function.ts";
import { Generator } from "../../lib/tensor/random.ts";
import { openSafetensors, readTensor, type TensorToWrite, writeSafetensors } from "../../lib/tensor/safetensors.ts";
import { withFolder } from "../folder.ts";

type Json = Record<string, unknown>;
type Tensors = Map<string, TensorToWrite & { data: Uint8Array<ArrayBuffer> }>;

/** A file's tensors and metadata, to be changed. */
interface Content {
  readonly tensors: Tensors;
  readonly metadata: Record<string, string>;
}

class Dice {
  #generator: Generator;
  constructor(seed: number) {
    this.#generator = new Generator(seed);
  }
  below(n: number): number {
    return this.#generator.random32() % n;
  }
  pick<T>(from: readonly T[]): T {
    return from[this.below(from.length)]!;
  }
}

/** A model with a weight in each stored form, saved in a folder. */
async function makeModel(folder: string): Promise<void> {
  const model = await CLIPTextModel.load("tests/fixtures/clip-mini");
  sparsify(model, { filter: /1\.self_attn\.q_proj/ });
  const { quantized } = quantize(model, [
    { filter: /0\.self_attn\.q_proj/, scheme: "int8wo" },
    { filter: /[01]\.self_attn\.(k_proj|q_proj)/, scheme: "int8dq" },
    { filter: /0\.self_attn\.v_proj/, scheme: "fp8wo" },
    { filter: /1\.self_attn\.v_proj/, scheme: "fp8dq", fp8: "e5m2" },
    { filter: /0\.self_attn\.out_proj/, scheme: "fp8dqrow" },
    { filter: /0\.mlp\.fc2/, scheme: "int4wo", symmetric: false },
    { filter: /1\.mlp\.fc2/, scheme: "int4dq" },
    { filter: /0\.mlp\.fc1/, scheme: "fp5_e2m2" },
    { filter: /token_embedding/, scheme: "int8wo" },
    { scheme: "none" },
  ], { kinds: ["linear", "embedding"] });
  assert.ok(quantized.length >= 10);
  await saveModel(model, folder);
}

function contentOf(path: string): Content {
  const file = openSafetensors(path);
  const tensors: Tensors = new Map(
    [...file.tensors].map(([name, { dtype, shape }]) => [name, { name, dtype, shape, data: readTensor(file, name) }]),
  );
  return { tensors, metadata: { ...file.metadata } };
}

/** Values that no field of an entry takes. */
const JUNK = [null, -1, 0.5, 1e300, "", "int3", [], [[]], {}, { _type: "X", _data: 3 }, "x".repeat(3000)];

/** Fields without which, or with junk in which, an entry says nothing that could be. */
const FIELDS: Readonly<Record<string, readonly string[]>> = {
  Int8Tensor: ["block_size", "dtype"],
  Float8Tensor: ["block_size", "dtype"],
  "denoise.Int4Tensor": [
    "format",
    "group_size",
    "symmetric",
    "per_tensor",
    "rows",
    "rows_per_tensor",
    "shape",
    "dtype",
  ],
  "denoise.FpxTensor": ["format", "ebits", "group_size", "symmetric", "per_tensor", "rows", "shape", "dtype"],
  "denoise.SparseInt8Tensor": ["format", "group_size", "symmetric", "per_tensor", "rows", "shape", "dtype"],
};

/** A change after which a file cannot be what it says; the name of what the error is to be about is in its key. */
type Change = (content: Content, name: string, dice: Dice) => void;

const partsOf = ({ tensors }: Content, name: string) =>
  ["qdata", "scale", "zero_point"].map((part) => partName(name, part)).filter((part) => tensors.has(part));

function changeEntry(content: Content, name: string, change: (entry: Json, data: Json) => void): void {
  const entry = JSON.parse(content.metadata[name]!) as Json;
  change(entry, entry._data as Json);
  content.metadata[name] = JSON.stringify(entry);
}

const CHANGES: Readonly<Record<string, Change>> = {
  "a part is missing": (content, name, dice) => {
    content.tensors.delete(dice.pick(partsOf(content, name)));
  },
  "a part has another shape": (content, name, dice) => {
    const part = content.tensors.get(dice.pick(partsOf(content, name)))!;
    const [rows, columns] = part.shape as [number, number];
    const size = part.data.length / (rows * columns || 1);
    part.shape = dice.pick([[rows * columns], [1, rows, columns], [rows - 1, columns], [rows, columns * 2], [
      0,
      columns,
    ]]);
    part.data = new Uint8Array(part.shape.reduce((a, b) => a * b, size));
  },
  "a part has another dtype": (content, name, dice) => {
    const part = content.tensors.get(dice.pick(partsOf(content, name)))!;
    const others = { 1: ["I8", "U8", "BOOL"], 4: ["I32", "U32"], 2: [] } as const;
    const size = part.dtype === "F32" ? 4 : 1;
    // Which of the fp8 types codes are in, nothing else says; but for the type of activations.
    part.dtype = dice.pick(others[size].filter((dtype) => dtype !== part.dtype));
  },
  "the metadata is missing": ({ metadata }, name) => {
    delete metadata[name];
  },
  "the metadata is not JSON": ({ metadata }, name, dice) => {
    const text = metadata[name]!;
    metadata[name] = dice.pick(["", "{", text.slice(0, 20 + dice.below(20)), `${text}}`, text.replaceAll('"', "'")]);
  },
  "the metadata is JSON of another type": ({ metadata }, name, dice) => {
    metadata[name] = dice.pick(["null", "3", "true", '"Int8Tensor"', "[]", "{}", "[".repeat(5000) + "]".repeat(5000)]);
  },
  "the type is another": (content, name, dice) => {
    changeEntry(content, name, (entry) => {
      const type = dice.pick([
        ...JUNK,
        "Int4TilePackedTo4dTensor",
        "NVFP4Tensor",
        "denoise.Int9Tensor",
        "denoise.FpxTensor",
      ]);
      entry._type = type === entry._type ? "MXTensor" : type;
    });
  },
  "a weight is said to be in floats": (content, name) => {
    content.metadata[name] = JSON.stringify({ _type: "Tensor" });
  },
  "there are no settings": (content, name, dice) => {
    changeEntry(content, name, (entry) => entry._data = dice.pick([undefined, null, 3, "x", []]));
  },
  "a setting is missing or of another type": (content, name, dice) => {
    changeEntry(content, name, (entry, data) => {
      const field = dice.pick(FIELDS[entry._type as string]!);
      if (dice.below(3) === 0 && field !== "ebits") delete data[field];
      else data[field] = dice.pick(JUNK.filter((value) => field !== "ebits" || value !== null));
    });
  },
  "the settings of activations are not ours": (content, name, dice) => {
    changeEntry(content, name, (entry, data) => {
      if (String(entry._type).startsWith("denoise.")) {
        data.rows = dice.pick(["int16", "e3m4", null, 7]);
        return;
      }
      const settings = (data.act_quant_kwargs as Json | null)?._data as Json | undefined;
      if (!settings) data.act_quant_kwargs = dice.pick([3, "x", [], { _type: "X", _data: {} }, { _data: {} }]);
      else {
        const [field, value] = dice.pick<[string, unknown]>([
          ["granularity", { _type: "PerGroup", _data: { group_size: 32 } }],
          ["granularity", { _type: "PerRow", _data: { dim: 0 } }],
          ["granularity", null],
          ["granularity", dice.pick(JUNK)],
          ...(entry._type === "Int8Tensor"
            ? [
              ["mapping_type", { _type: "MappingType", _data: "ASYMMETRIC" }],
              ["mapping_type", "SYMMETRIC"],
              ["reduce_range", true],
            ] as [string, unknown][]
            : [
              ["float8_dtype", { _type: "torch.dtype", _data: "float8_e4m3fnuz" }],
              ["float8_dtype", null],
              ["hp_value_ub", 12.5],
              ["hp_value_lb", 1e-3],
            ] as [string, unknown][]),
        ]);
        settings[field] = value;
      }
    });
  },
  "the names of parts are others": (content, name, dice) => {
    changeEntry(content, name, (entry) => {
      const names = entry._tensor_data_names as string[];
      entry._tensor_data_names = dice.pick([
        undefined,
        [],
        "qdata",
        [...names, names[0]],
        [...names, "act_quant_scale"],
        names.filter((part) => part !== "qdata"),
        names.filter((part) => part !== "scale"),
        names.map((_, i) => i),
      ]);
    });
  },
  "sizes are others": (content, name, dice) => {
    changeEntry(content, name, (entry, data) => {
      const field = String(entry._type).startsWith("denoise.") ? "shape" : "block_size";
      const [rows, columns] = data[field] as [number, number];
      const sizes = [[rows, columns / 2], [rows + 1, columns], [columns], [rows, columns, 1], [rows, 2 ** 40], [
        0,
        columns,
      ]];
      data[field] = dice.pick([...sizes, [-rows, columns], [rows, columns + 0.5], [String(rows), columns]]);
    });
  },
  "a zero point is not 0": (content, name, dice) => {
    const zeros = content.tensors.get(partName(name, "zero_point"));
    // Weights without zero points have none to lie about, and int4 may have any.
    if (!zeros || content.metadata[name]!.includes("Int4")) return CHANGES["a part is missing"]!(content, name, dice);
    zeros.data[dice.below(zeros.data.length)] = 1 + dice.below(255);
  },
  "there is a part too many": (content, name) => {
    const extra = partName(name, "extra");
    content.tensors.set(extra, { name: extra, dtype: "U8", shape: [1], data: new Uint8Array(1) });
  },
  "groups are others": (content, name, dice) => {
    changeEntry(content, name, (entry, data) => {
      if (String(entry._type).startsWith("denoise.")) data.group_size = dice.pick([0, 1, 2, 16, 33, 512, -32, 2 ** 52]);
      else data.block_size = dice.pick([[1, 16], [2, 48], [1, 1], [1, 2 ** 52], []]);
    });
  },
};

Deno.test("600 quantized files that cannot be what they say are refused, naming the file and the tensor", async () => {
  await withFolder(async (folder) => {
    await makeModel(folder);
    const path = `${folder}/model.safetensors`;
    const whole = contentOf(path);
    const weights = Object.keys(whole.metadata).filter((name) =>
      /"_type":"(denoise\.|Int8|Float8)/.test(whole.metadata[name]!)
    );
    assert.ok(weights.length >= 10);
    const kinds = new Set(weights.map((name) => JSON.parse(whole.metadata[name]!)._type));
    assert.equal(kinds.size, 5, [...kinds].join());
    const dice = new Dice(11);
    const names = Object.keys(CHANGES);
    for (let i = 0; i < 600; i++) {
      const content: Content = {
        tensors: new Map([...whole.tensors].map(([name, t]) => [name, { ...t, data: t.data.slice() }])),
        metadata: { ...whole.metadata },
      };
      const [change, weight] = [names[i % names.length]!, dice.pick(weights)];
      CHANGES[change]!(content, weight, dice);
      await writeSafetensors(path, content.tensors.values(), { metadata: content.metadata });
      const what = `${i}: ${change}, ${weight}: ${content.metadata[weight]?.slice(0, 400)}`;
      const error = await CLIPTextModel.load(folder).then(() => undefined, (e) => e);
      assert.ok(error instanceof CheckpointError, `${what}: ${error?.stack}`);
      assert.ok(error.file === path && error.message.includes(path), `${what}: ${error.message}`);
      const module = weight.replace(/weight$/, "");
      assert.ok(error.key?.startsWith(module) && error.message.includes(module), `${what}: ${error.message}`);
      assert.ok(error.message.length < 2000, what);
    }
  });
});

Deno.test("quantized files with changed bytes are refused with a typed error, or are read without harm", async () => {
  await withFolder(async (folder) => {
    await makeModel(folder);
    const path = `${folder}/model.safetensors`;
    const whole = await Deno.readFile(path);
    const headerBytes = 8 + Number(new DataView(whole.buffer).getBigUint64(0, true));
    const device = await Device.default();
    const dice = new Dice(12);
    const text = new TextDecoder().decode(whole.subarray(0, headerBytes));
    const places = [...text.matchAll(/_type|_data|block_size|dtype|shape|qdata|group|rows|format/g)].map((m) =>
      m.index
    );
    let [refused, read] = [0, 0];
    for (let i = 0; i < 500; i++) {
      const bytes = whole.slice();
      for (let n = dice.below(3); n >= 0; n--) {
        // Half of the changes are in or near words that matter, the others anywhere.
        const at = Math.min(
          bytes.length - 1,
          dice.below(2) ? dice.pick(places) + dice.below(24) : dice.below(bytes.length),
        );
        bytes[at] = dice.below(2) ? dice.below(256) : 0x30 + dice.below(10);
      }
      await Deno.writeFile(path, bytes);
      try {
        const model = await CLIPTextModel.load(folder);
        const tensors = [...model.namedParameters()].map(([, { tensor }]) => tensor);
        for (const buffer of await computeOnce(tensors, device)) buffer[Symbol.dispose]();
        read++;
      } catch (error) {
        assert.ok(error instanceof CheckpointError, `${i}: ${error instanceof Error ? error.stack : error}`);
        refused++;
      }
    }
    assert.ok(refused > 50 && read > 50, `${refused} refused, ${read} read`);
  });
});
