/**
 * Quantized weights: codes, scales and zero points in their stored form, and the lazy float tensor that they stand for,
 * which the layers that read it never compute.
 *
 * @module
 */

import type { FloatDtype } from "../graph/dtypes.ts";
import { type ActivationQuantization, sizeOf } from "../graph/ops.ts";
import { weightBits, type WeightFormat } from "../graph/quantized.ts";
import { concat, record, type Tensor } from "./tensor.ts";

/** How a weight is quantized. */
export interface WeightQuantization extends WeightFormat {
  /** Whether codes are centred on 0; otherwise each group has a zero point, which int4 alone can have. */
  readonly symmetric: boolean;
  /** Whether one scale is for the whole weight, not one for each row or group. */
  readonly perTensor: boolean;
  /** How the input of the layer is quantized. */
  readonly activation: ActivationQuantization;
}

/** The parts of a quantized weight (N, K). */
export interface QuantizedParts {
  /** As the schema's formats say: i8 (N, K), or u8 rows. */
  readonly codes: Tensor;
  /** f32 (N, K / group), or (1, 1) for the whole. */
  readonly scale: Tensor;
  /** i8 of the scale's shape, where there are zero points. */
  readonly zeroPoint?: Tensor | undefined;
}

/** A quantized weight. */
export class QuantizedTensor implements QuantizedParts {
  /** The scheme's name. */
  readonly scheme: string;
  /** How it is quantized. */
  readonly quantization: WeightQuantization;
  /** The weight's shape; codes take all but its first axis as one. */
  readonly shape: readonly number[];
  /** What it was quantized from, and the type of the floats that it stands for. */
  readonly dtype: FloatDtype;
  /** As the schema's formats say: i8 (N, K), or u8 rows. */
  readonly codes: Tensor;
  /** f32 (N, K / group), or (1, 1) for the whole. */
  readonly scale: Tensor;
  /** i8 of the scale's shape, where there are zero points. */
  readonly zeroPoint: Tensor | undefined;
  #tensor: Tensor | undefined;

  /** A weight of parts that are there already. */
  constructor(
    parts: QuantizedParts,
    options: { scheme: string; quantization: WeightQuantization; shape: readonly number[]; dtype: FloatDtype },
  ) {
    this.codes = parts.codes;
    this.scale = parts.scale;
    this.zeroPoint = parts.zeroPoint;
    this.scheme = options.scheme;
    this.quantization = options.quantization;
    this.shape = options.shape;
    this.dtype = options.dtype;
  }

  /**
   * Quantizes a weight, when it is first needed.
   *
   * @param weight Two axes or more; all but the first count as one.
   * @param options The scheme's name, how, and the float type to compute scales in (the weight's own by default).
   * @returns The quantized weight.
   */
  static quantize(
    weight: Tensor,
    options: { scheme: string; quantization: WeightQuantization; dtype?: FloatDtype },
  ): QuantizedTensor {
    const { scheme, quantization, dtype = weight.dtype as FloatDtype } = options;
    const { format, ebits, mbits, group, symmetric, perTensor } = quantization;
    const rows = weight.shape[0]!;
    const matrix = weight.shape.length === 2 ? weight : weight.reshape(rows, sizeOf(weight.shape) / rows);
    const scale = record("quantize_scale", [matrix], {
      format,
      ebits,
      mbits,
      group: perTensor ? 0 : group,
      symmetric: symmetric ? 1 : 0,
      dtype,
    });
    const ofRows = perTensor ? scale.expand(rows, 1) : scale;
    const zeroPoint = symmetric ? undefined : record("quantize_zero_point", [matrix, ofRows], { format, group, dtype });
    const codes = record("quantize_codes", [matrix, ofRows, zeroPoint], { format, ebits, mbits, group, dtype });
    return new QuantizedTensor({ codes, scale, zeroPoint }, { scheme, quantization, shape: weight.shape, dtype });
  }

  /**
   * Quantized weights of one kind on top of each other.
   *
   * @param parts At least one weight.
   * @returns The whole.
   */
  static concat(parts: readonly QuantizedTensor[]): QuantizedTensor {
    const first = parts[0]!;
    const kind = (t: QuantizedTensor) => JSON.stringify([t.scheme, t.quantization, t.dtype, t.shape.slice(1)]);
    const other = parts.find((t) => kind(t) !== kind(first));
    if (other) {
      throw new TypeError(
        `Cannot put a weight in ${other.scheme} below one in ${first.scheme}: quantize both in the same way`,
      );
    }
    const joined = (of: (t: QuantizedTensor) => Tensor) => concat(parts.map(of), 0);
    return new QuantizedTensor({
      codes: joined((t) => t.codes),
      scale: joined((t) => t.#rowScale()),
      zeroPoint: first.zeroPoint && joined((t) => t.zeroPoint!),
    }, { ...first.#options, shape: [parts.reduce((sum, t) => sum + t.shape[0]!, 0), ...first.shape.slice(1)] });
  }

  /**
   * Some of the rows.
   *
   * @param start The first row.
   * @param end The row after the last.
   * @returns A weight of those rows.
   */
  rows(start: number, end: number): QuantizedTensor {
    const part = (t: Tensor) => t.slice(0, start, end);
    return new QuantizedTensor({
      codes: part(this.codes),
      scale: this.scale.size(0) === 1 && this.shape[0] !== 1 ? this.scale : part(this.scale),
      zeroPoint: this.zeroPoint && part(this.zeroPoint),
    }, { ...this.#options, shape: [end - start, ...this.shape.slice(1)] });
  }

  get #options() {
    const { scheme, quantization, shape, dtype } = this;
    return { scheme, quantization, shape, dtype };
  }

  /** A scale for each row, where one is for all. */
  #rowScale(): Tensor {
    const rows = this.shape[0]!;
    return this.scale.size(0) === rows ? this.scale : this.scale.expand(rows, this.scale.size(1));
  }

  /** How the input of the layer is quantized. */
  get activation(): ActivationQuantization {
    return this.quantization.activation;
  }

  /** Bytes of codes, scales and zero points. */
  get byteLength(): number {
    const zeros = this.zeroPoint ? sizeOf(this.zeroPoint.shape) : 0;
    return sizeOf(this.codes.shape) + 4 * sizeOf(this.scale.shape) + zeros;
  }

  /** Bits of storage for each element, scales aside. */
  get bits(): number {
    return weightBits(this.quantization);
  }

  /** The floats that it stands for. Layers that read this tensor take the codes instead. */
  get tensor(): Tensor {
    if (this.#tensor) return this.#tensor;
    const { format, ebits, mbits, group } = this.quantization;
    const [n = 0] = this.shape;
    const matrix = record("dequantize", [this.codes, this.#rowScale(), this.zeroPoint], {
      n,
      k: n === 0 ? 0 : sizeOf(this.shape) / n,
      format,
      ebits,
      mbits,
      group,
      dtype: this.dtype,
    });
    return this.#tensor = this.shape.length === 2 ? matrix : matrix.reshape(...this.shape);
  }
}
