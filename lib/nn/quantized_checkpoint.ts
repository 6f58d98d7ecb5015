/**
 * Quantized weights in safetensors, in the convention of `torchao.prototype.safetensors`: the parts of `<module>.weight`
 * are the tensors `<module>._weight_qdata`, `<module>._weight_scale` and `<module>._weight_zero_point`, and the file's
 * metadata says under the weight's name, as JSON, what they make. int8 and fp8 weights of two axes are torchao's own
 * types, which diffusers loads; what torchao has no type for is under names that start with `denoise.`.
 *
 * @module
 */

import { CheckpointError, ConfigError } from "../errors.ts";
import type { FloatDtype } from "../graph/dtypes.ts";
import { type ActivationQuantization, FLOAT_ACTIVATION, sameShape, sizeOf } from "../graph/ops.ts";
import { refusal, storedRowBytes } from "../graph/quantized.ts";
import { FORMAT, type FormatKind, type RowsKind } from "../graph/schema.ts";
import { QuantizedTensor, type WeightQuantization } from "../tensor/quantized.ts";
import { type Checkpoint, readTensor, type SafetensorsDtype, type SafetensorsTensor } from "../tensor/safetensors.ts";
import type { Tensor } from "../tensor/tensor.ts";

/** A part of a quantized weight as it is stored. */
export interface StoredPart {
  /** The tensor's name in the file. */
  readonly name: string;
  /** Its element type in the file. */
  readonly dtype: SafetensorsDtype;
  /** Its shape in the file. */
  readonly shape: readonly number[];
  /** Its values; none stands for zeros. */
  readonly tensor: Tensor | undefined;
}

/** A quantized weight as it is stored. */
export interface StoredWeight {
  /** What the metadata says of it, as JSON. */
  readonly entry: string;
  /** Its parts. */
  readonly parts: readonly StoredPart[];
}

/** Reads a tensor of a checkpoint as a leaf. */
export type LeafReader = (name: string, type: { shape: readonly number[]; dtype: "f32" | "i8" | "u8" }) => Tensor;

type Json = { readonly [key: string]: unknown };

const TORCH_DTYPES: Readonly<Record<FloatDtype, string>> = { f32: "float32", bf16: "bfloat16", f16: "float16" };
const FLOAT8: Readonly<Record<"e4m3" | "e5m2", string>> = { e4m3: "float8_e4m3fn", e5m2: "float8_e5m2" };

/** The element type of codes in a file. */
const CODE_DTYPES: Readonly<Record<FormatKind, SafetensorsDtype>> = {
  int8: "I8",
  int4: "U8",
  e4m3: "F8_E4M3",
  e5m2: "F8_E5M2",
  fpx: "U8",
  sparse_int8: "U8",
};

/** The names of denoise's own types, by format. */
const OWN_TYPES: Readonly<Record<FormatKind, string>> = {
  int8: "denoise.Int8Tensor",
  int4: "denoise.Int4Tensor",
  e4m3: "denoise.Float8Tensor",
  e5m2: "denoise.Float8Tensor",
  fpx: "denoise.FpxTensor",
  sparse_int8: "denoise.SparseInt8Tensor",
};

/** What the input of a layer can be quantized to, by the weight's format. */
const INPUT_ROWS: Readonly<Record<FormatKind, readonly RowsKind[]>> = {
  int8: ["none", "int8"],
  int4: ["none", "int8", "int8_asym"],
  e4m3: ["none", "e4m3"],
  e5m2: ["none", "e5m2"],
  fpx: ["none"],
  sparse_int8: ["int8"],
};

const GROUPS: readonly number[] = [32, 64, 128, 256];

const isFloat8 = (format: string): format is "e4m3" | "e5m2" => format === "e4m3" || format === "e5m2";

/**
 * The name of a part of a quantized weight.
 *
 * @param name The weight's name, such as `proj_out.weight`.
 * @param part `qdata`, `scale` or `zero_point`.
 * @returns The tensor's name, such as `proj_out._weight_qdata`.
 */
export function partName(name: string, part: string): string {
  const dot = name.lastIndexOf(".");
  return `${name.slice(0, dot + 1)}_${name.slice(dot + 1)}_${part}`;
}

/**
 * Whether a checkpoint has a weight, in floats or quantized.
 *
 * @param checkpoint The checkpoint.
 * @param name The weight's name.
 * @returns Whether it does.
 */
export function hasWeight(checkpoint: Checkpoint, name: string): boolean {
  return checkpoint.tensors.has(name) || checkpoint.tensors.has(partName(name, "qdata"));
}

// Writing

const torchDtype = (name: string): Json => ({ _type: "torch.dtype", _data: name });
const kernelPreference: Json = { _type: "KernelPreference", _data: "AUTO" };

/** torchao's way of saying what shares a scale. */
const granularity = (perTensor: boolean): Json =>
  perTensor ? { _type: "PerTensor", _data: {} } : { _type: "PerRow", _data: { dim: -1 } };

/** Whether torchao has a type for a weight. */
function hasTorchaoType({ shape, quantization, scale }: QuantizedTensor): boolean {
  const { format, group, symmetric, perTensor, activation } = quantization;
  if (shape.length !== 2 || group !== shape[1] || !symmetric) return false;
  // Weights by tensor that were joined have a scale for each row.
  if (perTensor && sizeOf(scale.shape) !== 1) return false;
  return (format === "int8" || isFloat8(format)) && INPUT_ROWS[format].includes(activation.rows);
}

/**
 * What is stored of a quantized weight.
 *
 * @param name The weight's name.
 * @param weight The weight.
 * @returns Its entry in the metadata, and its parts.
 */
export function storedWeight(name: string, weight: QuantizedTensor): StoredWeight {
  const { shape, quantization, dtype } = weight;
  const rows = shape[0]!;
  const part = (suffix: string, dtype: SafetensorsDtype, shape: readonly number[], tensor: Tensor | undefined) => ({
    name: partName(name, suffix),
    dtype,
    shape,
    tensor,
  });
  const parts = [
    part("qdata", CODE_DTYPES[quantization.format], weight.codes.shape, weight.codes),
    part("scale", "F32", weight.scale.shape, weight.scale),
  ];
  const torchao = hasTorchaoType(weight);
  if (weight.zeroPoint) parts.push(part("zero_point", "I8", weight.zeroPoint.shape, weight.zeroPoint));
  else if (torchao && quantization.format === "int8") {
    parts.push(part("zero_point", "I8", weight.scale.shape, undefined));
  }
  const names = parts.map((p) => p.name.slice(partName(name, "").length));
  const entry = torchao
    ? torchaoEntry(quantization, [quantization.perTensor ? rows : 1, shape[1]!], dtype)
    : { _type: OWN_TYPES[quantization.format], _data: ownData(weight) };
  return { entry: JSON.stringify({ ...entry, _tensor_data_names: names }), parts };
}

function torchaoEntry(quantization: WeightQuantization, blockSize: readonly number[], dtype: FloatDtype): Json {
  const { format, activation } = quantization;
  const type = torchDtype(TORCH_DTYPES[dtype]);
  const ofInput = granularity(activation.perTensor === 1);
  if (format === "int8") {
    const act = {
      _type: "QuantizeTensorToInt8Kwargs",
      _data: { granularity: ofInput, mapping_type: { _type: "MappingType", _data: "SYMMETRIC" }, reduce_range: false },
    };
    return {
      _type: "Int8Tensor",
      _data: {
        act_quant_kwargs: activation.rows === "none" ? null : act,
        reduce_range: false,
        block_size: blockSize,
        dtype: type,
      },
    };
  }
  const act = {
    _type: "QuantizeTensorToFloat8Kwargs",
    _data: {
      float8_dtype: torchDtype(FLOAT8[format as "e4m3" | "e5m2"]),
      granularity: ofInput,
      mm_config: null,
      hp_value_lb: null,
      hp_value_ub: null,
      kernel_preference: kernelPreference,
    },
  };
  const multiply = {
    _type: "Float8MMConfig",
    _data: { emulate: false, use_fast_accum: true, pad_inner_dim: false },
  };
  return {
    _type: "Float8Tensor",
    _data: {
      block_size: blockSize,
      mm_config: activation.rows === "none" ? null : multiply,
      act_quant_kwargs: activation.rows === "none" ? null : act,
      kernel_preference: kernelPreference,
      dtype: type,
    },
  };
}

function ownData({ scheme, quantization, shape, dtype }: QuantizedTensor): Json {
  const { format, ebits, mbits, group, symmetric, perTensor, activation } = quantization;
  return {
    scheme,
    format,
    ...(format === "fpx" && { ebits, mbits }),
    group_size: group,
    symmetric,
    per_tensor: perTensor,
    rows: activation.rows,
    rows_per_tensor: activation.perTensor === 1,
    shape,
    dtype: torchDtype(TORCH_DTYPES[dtype]),
  };
}

/**
 * The `quantization_config` of a model's configuration: torchao's, which makes diffusers read the weights as quantized
 * ones, where all of them are of torchao's types; otherwise one of denoise's own, which diffusers refuses by name.
 *
 * @param weights The quantized weights of the model.
 * @returns The configuration; `undefined` where no weight is quantized.
 */
export function quantizationConfig(weights: readonly QuantizedTensor[]): Json | undefined {
  if (weights.length === 0) return undefined;
  if (!weights.every(hasTorchaoType)) {
    return { quant_method: "denoise", schemes: [...new Set(weights.map(({ scheme }) => scheme))].sort() };
  }
  // diffusers has one configuration for a model, and each weight says for itself what it is: the most frequent one.
  const count = new Map<string, { count: number; config: Json }>();
  for (const { quantization } of weights) {
    const config = torchaoConfig(quantization);
    const key = JSON.stringify(config);
    count.set(key, { config, count: (count.get(key)?.count ?? 0) + 1 });
  }
  const [most] = [...count.values()].sort((a, b) => b.count - a.count);
  return { modules_to_not_convert: null, quant_method: "torchao", quant_type: { default: most!.config } };
}

/** The configuration with which torchao makes such weights. */
function torchaoConfig({ format, perTensor, activation }: WeightQuantization): Json {
  const share = (perTensor: boolean) => ({ ...granularity(perTensor), _version: 1 });
  if (format === "int8" && activation.rows === "none") {
    return {
      _type: "Int8WeightOnlyConfig",
      _version: 2,
      _data: { granularity: share(perTensor), group_size: null, set_inductor_config: true },
    };
  }
  if (format === "int8") {
    return {
      _type: "Int8DynamicActivationInt8WeightConfig",
      _version: 2,
      _data: {
        act_mapping_type: { _type: "MappingType", _data: "SYMMETRIC" },
        granularity: share(perTensor),
        reduce_range: false,
        set_inductor_config: true,
        weight_only_decode: false,
      },
    };
  }
  const dtype = torchDtype(FLOAT8[format as "e4m3" | "e5m2"]);
  if (activation.rows === "none") {
    return {
      _type: "Float8WeightOnlyConfig",
      _version: 2,
      _data: { granularity: share(perTensor), set_inductor_config: true, weight_dtype: dtype },
    };
  }
  return {
    _type: "Float8DynamicActivationFloat8WeightConfig",
    _version: 2,
    _data: {
      activation_dtype: dtype,
      activation_value_lb: null,
      activation_value_ub: null,
      alg_id: 0,
      granularity: [share(activation.perTensor === 1), share(perTensor)],
      kernel_preference: kernelPreference,
      mm_config: {
        _type: "Float8MMConfig",
        _version: 1,
        _data: { emulate: false, pad_inner_dim: false, use_fast_accum: true },
      },
      packing_format: { _type: "Float8PackingFormat", _data: "PLAIN" },
      set_inductor_config: true,
      weight_dtype: dtype,
    },
  };
}

// Reading

/**
 * Checks that a model was quantized by something whose files can be read.
 *
 * @param fields The fields of its configuration.
 * @param file The configuration's file, for messages.
 * @throws {ConfigError} If not
 */
export function checkQuantizationConfig(fields: Json, file: string): void {
  const { quantization_config: config } = fields;
  if (config === undefined || config === null) return;
  const method = typeof config === "object" ? (config as Json).quant_method : undefined;
  if (method === "torchao" || method === "denoise") return;
  throw new ConfigError(
    `${file} has quantization_config of quant_method ${
      JSON.stringify(method)
    }: denoise reads what torchao and itself ` +
      "quantized; load the model in floats and quantize it here",
    { file, key: "quantization_config" },
  );
}

/** One entry of the metadata, read field by field. */
class Entry {
  readonly #file: string;
  readonly #key: string;
  readonly type: string;
  readonly data: Json;
  readonly names: readonly string[];

  constructor(text: string, where: { file: string; key: string }) {
    this.#file = where.file;
    this.#key = where.key;
    let value: unknown;
    try {
      value = JSON.parse(text);
    } catch (cause) {
      this.fail("metadata that is not JSON", "download the file again", cause);
    }
    const { _type, _data, _tensor_data_names: names } = isObject(value) ? value : {} as Json;
    if (typeof _type !== "string") this.fail(`metadata of _type ${show(_type)}`, "download the file again");
    this.type = _type as string;
    this.data = isObject(_data) ? _data : {};
    this.names = Array.isArray(names) && names.every((n) => typeof n === "string") ? names : [];
    if (this.type === "Tensor") return;
    if (!isObject(_data)) this.fail(`metadata with _data ${show(_data)}`, "download the file again");
    if (this.names.length === 0 || new Set(this.names).size !== this.names.length) {
      this.fail(`metadata with _tensor_data_names ${show(names)}`, "download the file again");
    }
  }

  fail(what: string, remedy: string, cause?: unknown): never {
    throw new CheckpointError(`${this.#file} has ${this.#key} with ${what}: ${remedy}`, {
      file: this.#file,
      key: this.#key,
      cause,
    });
  }

  /** Refuses what is not one of the values that denoise has. */
  refuse(field: string, value: unknown, takes: string): never {
    this.fail(`${field} ${show(value)}`, `denoise reads ${takes}; load the model in floats and quantize it here`);
  }

  /** The value of one of torchao's enumerations, types, or settings: `{ _type, _data }`. */
  tagged(field: string, value: unknown, type: string): unknown {
    if (!isObject(value) || value._type !== type) this.refuse(field, value, `a ${type}`);
    return value._data;
  }

  /** An object of settings, or nothing. */
  settings(field: string, value: unknown, type: string): Json | undefined {
    if (value === undefined || value === null) return undefined;
    const data = this.tagged(field, value, type);
    if (!isObject(data)) this.refuse(field, value, `a ${type} with settings`);
    return data;
  }

  /** The float type that the weight stands for. */
  dtype(): FloatDtype {
    const name = this.tagged("dtype", this.data.dtype, "torch.dtype");
    const found = Object.entries(TORCH_DTYPES).find(([, torch]) => torch === name);
    return found ? found[0] as FloatDtype : this.refuse("dtype", name, Object.values(TORCH_DTYPES).join(", "));
  }

  sizes(field: string): readonly number[] {
    const value = this.data[field];
    const isSize = (n: unknown) => Number.isSafeInteger(n) && (n as number) > 0;
    if (!Array.isArray(value) || value.length < 2 || value.length > 8 || !value.every(isSize)) {
      this.refuse(field, value, "a list of two sizes or more");
    }
    return value;
  }

  flag(field: string): boolean {
    const value = this.data[field];
    return typeof value === "boolean" ? value : this.refuse(field, value, "true or false");
  }

  index(field: string, fallback?: number): number {
    const value = this.data[field] ?? fallback;
    return Number.isSafeInteger(value) && value as number >= 0
      ? value as number
      : this.refuse(field, value, "a whole number");
  }

  word<T extends string>(field: string, words: readonly T[]): T {
    const value = this.data[field];
    return words.includes(value as T) ? value as T : this.refuse(field, value, words.join(", "));
  }

  /** Whether a setting of torchao's granularity is one scale for all, or one for each row. */
  isPerTensor(field: string, value: unknown): boolean {
    if (isObject(value) && value._type === "PerTensor") return true;
    const data = this.settings(field, value, "PerRow");
    if (data && (data.dim === undefined || data.dim === -1 || data.dim === 1)) return false;
    this.refuse(field, value, "PerTensor, and PerRow of the last axis");
  }
}

const isObject = (value: unknown): value is Json =>
  typeof value === "object" && value !== null && !Array.isArray(value);

/** A value from a file, cut so that a hostile one cannot fill the screen. */
function show(value: unknown): string {
  const text = JSON.stringify(value) ?? "that is missing";
  return text.length > 120 ? `${text.slice(0, 119)}…` : text;
}

/**
 * A quantized weight of a checkpoint.
 *
 * @param checkpoint The checkpoint.
 * @param name The weight's name.
 * @param leaf Reads a part.
 * @returns The weight; `undefined` where the checkpoint has it in floats.
 * @throws {CheckpointError} If a part is missing or of another shape or type, or the weight is quantized in a way that
 *   denoise does not have
 */
export function readQuantized(checkpoint: Checkpoint, name: string, leaf: LeafReader): QuantizedTensor | undefined {
  const qdata = checkpoint.tensors.get(partName(name, "qdata"));
  const found = checkpoint.files.find(({ metadata }) => Object.hasOwn(metadata, name));
  const file = qdata?.file ?? found?.path ?? checkpoint.path;
  if (found === undefined) {
    if (qdata === undefined) return undefined;
    throw new CheckpointError(
      `${file} has ${qdata.name}, and no metadata that says what ${name} is: use a file with torchao's metadata`,
      { file, key: qdata.name },
    );
  }
  const entry = new Entry(found.metadata[name]!, { file, key: name });
  if (entry.type === "Tensor") return undefined;
  const { shape, dtype, scheme, ...quantization } = readEntry(entry, qdata);
  const columns = sizeOf(shape.slice(1));
  const reason = refusal(quantization, columns);
  if (reason) entry.fail(`group_size ${quantization.group}`, `it cannot be, as ${reason}`);
  const rows = shape[0]!;
  const { format, group, symmetric, perTensor } = quantization;
  const part = (suffix: string, dtype: SafetensorsDtype, shapes: readonly (readonly number[])[]) => {
    const key = partName(name, suffix);
    const tensor = checkpoint.tensors.get(key);
    if (!tensor || !entry.names.includes(suffix)) {
      throw new CheckpointError(`${file} lacks ${key}, a part of ${name}: download the file again`, { file, key });
    }
    if (tensor.dtype === dtype && shapes.some((shape) => sameShape(shape, tensor.shape))) return tensor;
    const wanted = shapes.map((shape) => `[${shape.join(", ")}]`).join(" or ");
    throw new CheckpointError(
      `${file} has ${key} in ${tensor.dtype} of [${
        tensor.shape.join(", ")
      }], and ${name} takes ${dtype} of ${wanted}: ` +
        "download the file again",
      { file: tensor.file, key },
    );
  };
  const unknown = entry.names.find((suffix) => !["qdata", "scale", "zero_point"].includes(suffix));
  if (unknown !== undefined) entry.refuse("the part", unknown, "weights of qdata, scale and zero_point");
  const codesShape = [rows, storedRowBytes(quantization, columns)];
  const scaleShape = [rows, columns / group];
  const codes = part("qdata", CODE_DTYPES[format], [codesShape]);
  // Weights by tensor that were joined have a scale for each row.
  const scale = part("scale", "F32", perTensor ? [[1, 1], scaleShape] : [scaleShape]);
  const hasZeros = entry.names.includes("zero_point");
  if (!symmetric && !hasZeros) entry.fail("no zero_point, which it is quantized with", "download the file again");
  const zeros = hasZeros ? part("zero_point", "I8", [symmetric ? scale.shape : scaleShape]) : undefined;
  if (zeros && symmetric && readTensor(checkpoint, zeros.name).some((zero) => zero !== 0)) {
    entry.fail(
      "a zero_point that is not 0",
      `denoise has zero points in int4 alone; load the model in floats and quantize it here`,
    );
  }
  const read = (tensor: { name: string; shape: readonly number[] }, dtype: "f32" | "i8" | "u8") =>
    leaf(tensor.name, { shape: tensor.shape, dtype });
  return new QuantizedTensor({
    codes: read(codes, format === "int8" ? "i8" : "u8"),
    scale: read(scale, "f32"),
    zeroPoint: symmetric ? undefined : read(zeros!, "i8"),
  }, { scheme, quantization, shape, dtype });
}

/** What an entry says of a weight. */
interface Description extends WeightQuantization {
  readonly scheme: string;
  readonly shape: readonly number[];
  readonly dtype: FloatDtype;
}

function readEntry(entry: Entry, qdata: SafetensorsTensor | undefined): Description {
  if (entry.type === "Int8Tensor" || entry.type === "Float8Tensor") return readTorchao(entry, qdata);
  if (Object.values(OWN_TYPES).includes(entry.type)) return readOwn(entry);
  entry.refuse(
    "_type",
    entry.type,
    `Int8Tensor, Float8Tensor and ${[...new Set(Object.values(OWN_TYPES))].join(", ")}`,
  );
}

/** A weight of one of torchao's types, whose shape is that of its codes. */
function readTorchao(entry: Entry, qdata: SafetensorsTensor | undefined): Description {
  const { shape = [], dtype: codes = "none" } = qdata ?? {};
  const [rows = 0, columns = 0] = shape;
  if (shape.length !== 2 || rows === 0 || columns === 0) entry.refuse("qdata of shape", shape, "weights of two axes");
  const [blockRows, group] = entry.sizes("block_size") as [number, number];
  const perTensor = blockRows === rows && group === columns && rows !== 1;
  if (entry.sizes("block_size").length !== 2 || (!perTensor && (blockRows !== 1 || group !== columns))) {
    entry.refuse("block_size", entry.data.block_size, `[1, ${columns}], by row, and [${rows}, ${columns}], by tensor`);
  }
  const common = { ebits: 0, mbits: 0, group: columns, symmetric: true, perTensor, shape, dtype: entry.dtype() };
  if (entry.type === "Int8Tensor") {
    const activation = int8Activation(entry);
    return { ...common, format: "int8", activation, scheme: activation.rows === "none" ? "int8wo" : "int8dq" };
  }
  const format = codes === CODE_DTYPES.e5m2 ? "e5m2" : "e4m3";
  const activation = float8Activation(entry, format);
  const scheme = activation.rows === "none" ? "fp8wo" : activation.perTensor ? "fp8dq" : "fp8dqrow";
  return { ...common, format, activation, scheme };
}

function int8Activation(entry: Entry): ActivationQuantization {
  const settings = entry.settings("act_quant_kwargs", entry.data.act_quant_kwargs, "QuantizeTensorToInt8Kwargs");
  if (!settings) return FLOAT_ACTIVATION;
  const mapping = entry.tagged("mapping_type of act_quant_kwargs", settings.mapping_type, "MappingType");
  if (mapping !== "SYMMETRIC") entry.refuse("mapping_type of act_quant_kwargs", mapping, "SYMMETRIC");
  if (settings.reduce_range) entry.refuse("reduce_range of act_quant_kwargs", settings.reduce_range, "false");
  const perTensor = entry.isPerTensor("granularity of act_quant_kwargs", settings.granularity);
  return { rows: "int8", perTensor: perTensor ? 1 : 0 };
}

function float8Activation(entry: Entry, format: "e4m3" | "e5m2"): ActivationQuantization {
  const settings = entry.settings("act_quant_kwargs", entry.data.act_quant_kwargs, "QuantizeTensorToFloat8Kwargs");
  if (!settings) return FLOAT_ACTIVATION;
  const dtype = entry.tagged("float8_dtype of act_quant_kwargs", settings.float8_dtype, "torch.dtype");
  if (dtype !== FLOAT8[format]) entry.refuse("float8_dtype of act_quant_kwargs", dtype, "the weight's own");
  for (const bound of ["hp_value_lb", "hp_value_ub"]) {
    const value = settings[bound];
    if (value !== undefined && value !== null) entry.refuse(`${bound} of act_quant_kwargs`, value, "null");
  }
  const perTensor = entry.isPerTensor("granularity of act_quant_kwargs", settings.granularity);
  return { rows: format, perTensor: perTensor ? 1 : 0 };
}

/** A weight of one of denoise's own types. */
function readOwn(entry: Entry): Description {
  const format = entry.word("format", Object.keys(FORMAT) as FormatKind[]);
  if (OWN_TYPES[format] !== entry.type) entry.refuse("format", format, `the one of ${entry.type}`);
  const { scheme } = entry.data;
  if (typeof scheme !== "string" || scheme.length > 80) entry.refuse("scheme", scheme, "a name");
  const symmetric = entry.flag("symmetric");
  if (!symmetric && format !== "int4") entry.refuse("symmetric", symmetric, "zero points in int4 alone");
  const perTensor = entry.flag("per_tensor");
  if (perTensor && format !== "int8" && !isFloat8(format)) entry.refuse("per_tensor", perTensor, `${format} by row`);
  const shape = entry.sizes("shape");
  const group = entry.index("group_size");
  const columns = sizeOf(shape.slice(1));
  const groups = format === "int4" ? GROUPS : [columns];
  if (!groups.includes(group)) entry.refuse("group_size", group, `${format} in groups of ${groups.join(", ")}`);
  return {
    scheme,
    format,
    ebits: entry.index("ebits", 0),
    mbits: entry.index("mbits", 0),
    group,
    symmetric,
    perTensor,
    activation: {
      rows: entry.word("rows", INPUT_ROWS[format]),
      perTensor: entry.flag("rows_per_tensor") ? 1 : 0,
    },
    shape,
    dtype: entry.dtype(),
  };
}
