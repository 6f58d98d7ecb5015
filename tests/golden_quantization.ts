import { sizeOf } from "../lib/graph/ops.ts";
import { weightBits } from "../lib/graph/quantized.ts";
import { RATE, type Rate } from "../lib/graph/node.ts";
import { schemeOf } from "../lib/quantize/schemes.ts";
import { bf16BitsToF32, f16BitsToF32, f32ToBf16Bits, f32ToF16Bits } from "../lib/tensor/convert.ts";
import type { Device } from "../lib/tensor/device.ts";
import { QuantizedTensor, type WeightQuantization } from "../lib/tensor/quantized.ts";
import { realize, toArray } from "../lib/tensor/realize.ts";
import { openSafetensors, readTensor, type SafetensorsDtype, type SafetensorsFile } from "../lib/tensor/safetensors.ts";
import { fromSource } from "../lib/tensor/source.ts";
import type { Tensor } from "../lib/tensor/tensor.ts";

/** What a case may have; `bits` are the codes of small floats. */
export type QuantizationPart = "qdata" | "bits" | "scale" | "zero_point" | "dequant" | "y";

/** One part of one case, as computed, in the golden's own form. */
export interface ComputedPart {
  /** The golden's key. */
  readonly key: string;
  /** Which part it is. */
  readonly part: QuantizationPart;
  /** The golden's dtype. */
  readonly dtype: SafetensorsDtype;
  /** The golden's shape. */
  readonly shape: readonly number[];
  /** The elements in that dtype; floats of 16 and 8 bits as their bits. */
  readonly data: ArrayBufferView<ArrayBuffer>;
}

/** One weight quantized in one way. */
export interface QuantizedCase {
  /** Its name, such as `int4wo_g32.bf16`. */
  readonly name: string;
  /** The float type that it was quantized in. */
  readonly dtype: "f32" | "bf16" | "f16";
  /** How. */
  readonly quantization: WeightQuantization;
  /** The weight before, rounded to the case's dtype. */
  readonly weight: Float32Array;
  /** What the codes stand for. */
  readonly dequantized: Float32Array;
  /** x W^T + b of what the codes stand for and of inputs of the case's dtype, in f64; where there is an input. */
  readonly reference: Float64Array | undefined;
  /** The parts that the golden has. */
  readonly parts: readonly ComputedPart[];
}

/** The names of cases: a scheme of torchao's in a float type, or a small float. */
const CASE = /^(?:(.+?)(?:_g(\d+))?\.(f32|bf16|f16)|(fp[\dx]_e\dm\d))$/;

/** How a case is quantized, `undefined` for schemes that are not known. */
function quantizationOf(file: SafetensorsFile, name: string): WeightQuantization | undefined {
  const [, scheme, group, , small] = CASE.exec(name) ?? [];
  const columns = file.tensors.get("weight")!.shape.at(-1)!;
  try {
    const quantization = schemeOf(small ?? scheme!).quantization({ kind: "linear", columns, sparse: false }, {});
    const zeros = file.tensors.has(`${name}.zero_point`) ? readTensor(file, `${name}.zero_point`) : [];
    const symmetric = quantization.format !== "int4" || zeros.every((zero) => zero === 0);
    return { ...quantization, symmetric, group: group ? Number(group) : quantization.group };
  } catch (error) {
    if (error instanceof RangeError) return undefined;
    throw error;
  }
}

/** The names of the cases of a file. */
function namesOf(file: SafetensorsFile): string[] {
  const names = [...file.tensors.keys()].filter((key) => key.includes(".")).map((key) => key.replace(/\.[^.]+$/, ""));
  return [...new Set(names)].sort();
}

/** Codes of fewer than eight bits, one a byte; int4 with its sign. */
function unpack(bytes: Uint8Array, quantization: WeightQuantization, [n, k]: readonly [number, number]): Uint8Array {
  const bits = weightBits(quantization);
  const rowBytes = bytes.length / n;
  const codes = new Uint8Array(n * k);
  for (let i = 0; i < codes.length; i++) {
    const bit = (i % k) * bits;
    const at = Math.floor(i / k) * rowBytes + (bit >> 3);
    const word = bytes[at]! | (bit % 8 + bits > 8 ? bytes[at + 1]! : 0) << 8;
    const code = word >> (bit % 8) & (1 << bits) - 1;
    codes[i] = quantization.format === "int4" ? code << 28 >> 28 : code;
  }
  return codes;
}

/** Values of a type as the elements of a golden's dtype. */
function elements(values: Float32Array, dtype: SafetensorsDtype): ArrayBufferView<ArrayBuffer> {
  if (dtype === "BF16") return f32ToBf16Bits(values);
  return dtype === "F16" ? f32ToF16Bits(values) : Float32Array.from(values);
}

/** Values rounded to a float type. */
function rounded(values: Float32Array, dtype: QuantizedCase["dtype"]): Float32Array<ArrayBuffer> {
  if (dtype === "bf16") return bf16BitsToF32(f32ToBf16Bits(values));
  return dtype === "f16" ? f16BitsToF32(f32ToF16Bits(values)) : Float32Array.from(values);
}

/** Values of a tensor of any float type. */
async function floats(t: Tensor, device: Device): Promise<Float32Array> {
  return await toArray<"f32">(t.dtype === "f32" ? t : t.cast("f32"), { device });
}

/** x W^T + b in f64: x (M, K), W (N, K). */
function linear(x: Float32Array, weight: Float32Array, bias: Float32Array | undefined, k: number): Float64Array {
  const [m, n] = [x.length / k, weight.length / k];
  return Float64Array.from({ length: m * n }, (_, i) => {
    const [row, column] = [Math.floor(i / n) * k, (i % n) * k];
    let sum = bias ? bias[i % n]! : 0;
    for (let j = 0; j < k; j++) sum += x[row + j]! * weight[column + j]!;
    return sum;
  });
}

/**
 * Quantizes a folder's weight in every way that its goldens have, and multiplies by it.
 *
 * @param folder The folder: `cases.safetensors` with `weight`, perhaps `x` and `bias`, and
 * `<scheme>[_g<group>].<dtype>.<part>` or `fp<bits>_e<ebits>m<mbits>.<part>`.
 * @param options Where to compute.
 * @returns Each case; the name alone of one whose scheme is not known.
 */
export async function* computeQuantizationCases(
  folder: string,
  { device }: { device: Device },
): AsyncGenerator<QuantizedCase | string> {
  const file = openSafetensors(`${folder}/cases.safetensors`);
  const read = (key: string) => file.tensors.has(key) ? new Float32Array(readTensor(file, key).buffer) : undefined;
  const shape = file.tensors.get("weight")!.shape;
  const [n, k] = [shape[0]!, sizeOf(shape.slice(1))];
  for (const name of namesOf(file)) {
    const quantization = quantizationOf(file, name);
    if (!quantization) {
      yield name;
      continue;
    }
    const dtype = (CASE.exec(name)![3] ?? "f32") as QuantizedCase["dtype"];
    const input = (key: string, rate: Rate = RATE.constant) => {
      const values = read(key);
      const { shape } = file.tensors.get(key) ?? { shape: [] };
      const bytes = values && new Uint8Array(values.buffer);
      return bytes && fromSource({ kind: "host", bytes }, { shape, dtype: "f32", rate }).cast(dtype);
    };
    const weight = input("weight")!;
    const quantized = QuantizedTensor.quantize(weight, { scheme: name, quantization, dtype });
    const has = (part: QuantizationPart) => file.tensors.has(`${name}.${part}`);
    const [codes, scale, dequantized, zeroPoint] = await realize([
      quantized.codes,
      quantized.scale,
      quantized.tensor,
      ...(quantized.zeroPoint ? [quantized.zeroPoint] : []),
    ], { device });
    const bytes = await toArray<"u8">(codes!, { device });
    const stored = new Uint8Array(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    const values = await floats(dequantized!, device);
    const parts: ComputedPart[] = [];
    const add = (part: QuantizationPart, make: (dtype: SafetensorsDtype) => ArrayBufferView<ArrayBuffer>) => {
      if (!has(part)) return;
      const key = `${name}.${part}`;
      const { dtype, shape } = file.tensors.get(key)!;
      parts.push({ key, part, dtype, shape, data: make(dtype) });
    };
    const asBytes = () => Uint8Array.from(weightBits(quantization) < 8 ? unpack(stored, quantization, [n, k]) : stored);
    add("qdata", asBytes);
    add("bits", asBytes);
    const scales = await floats(scale!, device);
    add("scale", (dtype) => elements(scales, dtype));
    const zeros = zeroPoint && await toArray<"i8">(zeroPoint, { device });
    add("zero_point", () => Int8Array.from(zeros ?? new Int8Array(scales.length)));
    add("dequant", (dtype) => elements(values, dtype));
    const x = input("x", RATE.run);
    let reference: Float64Array | undefined;
    if (x && has("y")) {
      const [y] = await realize([x.linear(quantized.tensor, input("bias"), quantized.activation)], { device });
      const outputs = await floats(y!, device);
      add("y", (dtype) => elements(outputs, dtype));
      const bias = read("bias");
      reference = linear(rounded(read("x")!, dtype), values, bias && rounded(bias, dtype), k);
    }
    yield { name, dtype, quantization, weight: rounded(read("weight")!, dtype), dequantized: values, reference, parts };
  }
}
