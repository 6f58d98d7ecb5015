/**
 * Random numbers equal to PyTorch's on a CPU: the same seed gives the same stream of integers, and the same normals but
 * for the last bits of the logarithm, sine and cosine.
 *
 * @module
 */

import { bf16BitsToF32, f16BitsToF32, f32ToBf16Bits, f32ToF16Bits } from "./convert.ts";

/** The dtypes that {@linkcode Generator.randn} draws. Each dtype draws values of its own from the same stream. */
export type RandnDtype = "f32" | "f64" | "bf16" | "f16";

/** The array that holds a draw of each dtype: for bf16 and f16 an element holds the value's bits. */
export interface RandnArrays {
  /** Single precision. */
  f32: Float32Array<ArrayBuffer>;
  /** Double precision. */
  f64: Float64Array<ArrayBuffer>;
  /** The bits of bfloat16 values. */
  bf16: Uint16Array<ArrayBuffer>;
  /** The bits of float16 values. */
  f16: Uint16Array<ArrayBuffer>;
}

/** Options of {@linkcode Generator.randn}. */
export interface RandnOptions<D extends RandnDtype = "f32"> {
  /** The dtype to draw in, `f32` unless told. */
  dtype?: D | undefined;
}

const STATE = 624;
const OFFSET = 397;
const TWO_PI = 2 * Math.PI;
const TWO_PI_F32 = Math.fround(TWO_PI);

/**
 * A source of random numbers, equal to `torch.Generator("cpu").manual_seed(seed)`: the Mersenne Twister mt19937
 * (Matsumoto and Nishimura, 1998).
 *
 * @example Starting noise
 * ```ts
 * const generator = new Generator(2024);
 * const latents = generator.randn([1, 64, 64]); // Float32Array of 4096
 * ```
 */
export class Generator {
  /** The seed, as PyTorch keeps it: 64 bits, no sign. */
  readonly seed: bigint;
  #state = new Int32Array(STATE);
  #next = STATE;
  /** The second normal of a pair, which the next draw of fewer than 16 values returns first. */
  #cached = NaN;

  /**
   * Starts the stream of a seed.
   *
   * @param seed An integer from -2^63 to 2^64 - 1; one beyond 2^53 must be a bigint
   * @throws {TypeError} If the seed is neither a number nor a bigint
   * @throws {RangeError} If the seed is out of range or not an exact integer
   */
  constructor(seed: number | bigint) {
    if (typeof seed !== "number" && typeof seed !== "bigint") {
      throw new TypeError(`Cannot seed a generator with a ${typeof seed}: pass an integer, as a number or a bigint`);
    }
    if (typeof seed === "number" && !Number.isSafeInteger(seed)) {
      throw new RangeError(
        `Cannot seed a generator with ${seed}: pass an integer, as a bigint where it is 2^53 or more in magnitude`,
      );
    }
    const wide = BigInt(seed);
    if (wide < -(1n << 63n) || wide >= 1n << 64n) {
      throw new RangeError(`Cannot seed a generator with ${wide}: pass an integer from -2^63 to 2^64 - 1`);
    }
    this.seed = BigInt.asUintN(64, wide);
    // PyTorch's engine is seeded by the low 32 bits alone.
    const state = this.#state;
    state[0] = Number(BigInt.asIntN(32, wide));
    for (let i = 1; i < STATE; i++) {
      const previous = state[i - 1]!;
      state[i] = Math.imul(1812433253, previous ^ (previous >>> 30)) + i;
    }
  }

  /**
   * Draws the next 32 bits of the stream.
   *
   * @returns An integer from 0 to 2^32 - 1
   */
  random32(): number {
    if (this.#next === STATE) this.#twist();
    let y = this.#state[this.#next++]!;
    y ^= y >>> 11;
    y ^= (y << 7) & 0x9d2c5680;
    y ^= (y << 15) & 0xefc60000;
    return (y ^ (y >>> 18)) >>> 0;
  }

  /**
   * Draws standard normals, equal to `torch.randn(shape, generator=generator, dtype=dtype)`.
   *
   * @param shape The sizes; the values come flat, in row-major order
   * @param options The dtype
   * @returns The values: Float32Array, Float64Array, or the bits of bf16 or f16 as Uint16Array
   * @throws {RangeError} If a size is not a non-negative integer, or the dtype is unknown
   */
  randn<D extends RandnDtype = "f32">(shape: readonly number[], options: RandnOptions<D> = {}): RandnArrays[D] {
    let size = 1;
    for (const n of shape) {
      if (!Number.isSafeInteger(n) || n < 0) {
        throw new RangeError(
          `Cannot draw a shape of [${shape.join(", ")}]: each size must be an integer of at least 0`,
        );
      }
      size *= n;
    }
    if (!Number.isSafeInteger(size)) {
      throw new RangeError(`Cannot draw a shape of [${shape.join(", ")}]: it has more values than an array can hold`);
    }
    const dtype: RandnDtype = options.dtype ?? "f32";
    return this.#draw(size, dtype) as RandnArrays[D];
  }

  #draw(size: number, dtype: RandnDtype): RandnArrays[RandnDtype] {
    switch (dtype) {
      case "f32": {
        const out = new Float32Array(size);
        return size < 16 ? this.#few(out) : this.#fillF32(out);
      }
      case "f64": {
        const out = new Float64Array(size);
        return size < 16 ? this.#few(out) : this.#fillF64(out);
      }
      case "bf16":
        return size < 16 ? f32ToBf16Bits(this.#few(new Float32Array(size))) : this.#fillHalf(size, BF16);
      case "f16":
        return size < 16 ? f32ToF16Bits(this.#few(new Float32Array(size))) : this.#fillHalf(size, F16);
      default:
        throw new RangeError(`Cannot draw normals of dtype "${dtype}": pass f32, f64, bf16 or f16`);
    }
  }

  /** Fewer than 16 values come one by one, in double precision, from pairs whose second half waits for the next draw. */
  #few<A extends Float32Array<ArrayBuffer> | Float64Array<ArrayBuffer>>(out: A): A {
    for (let i = 0; i < out.length; i++) {
      if (!Number.isNaN(this.#cached)) {
        out[i] = this.#cached;
        this.#cached = NaN;
        continue;
      }
      const theta = TWO_PI * this.#uniform53();
      const radius = Math.sqrt(-2 * Math.log1p(-this.#uniform53()));
      this.#cached = radius * Math.sin(theta);
      out[i] = radius * Math.cos(theta);
    }
    return out;
  }

  #fillF32(out: Float32Array<ArrayBuffer>): Float32Array<ArrayBuffer> {
    return fillBlocks(out, () => (this.random32() & 0xffffff) / 0x1000000, (at) => {
      for (let j = at; j < at + 8; j++) {
        const radius = Math.sqrt(-2 * Math.log(1 - out[j]!));
        const theta = Math.fround(TWO_PI_F32 * out[j + 8]!); // the angle's own rounding shows in the normals
        out[j] = radius * Math.cos(theta);
        out[j + 8] = radius * Math.sin(theta);
      }
    });
  }

  #fillF64(out: Float64Array<ArrayBuffer>): Float64Array<ArrayBuffer> {
    return fillBlocks(out, () => this.#uniform53(), (at) => {
      for (let j = at; j < at + 8; j++) {
        const radius = Math.sqrt(-2 * Math.log(1 - out[j]!));
        const theta = TWO_PI * out[j + 8]!;
        out[j] = radius * Math.cos(theta);
        out[j + 8] = radius * Math.sin(theta);
      }
    });
  }

  /** bf16 and f16 round after each operation; their uniforms are so few that tables hold every radius and angle. */
  #fillHalf(size: number, format: HalfFormat): Uint16Array<ArrayBuffer> {
    const { radius, cos, sin } = halfTables(format);
    const mask = radius.length - 1;
    const uniforms = new Uint16Array(size);
    const out = new Float32Array(size);
    fillBlocks(uniforms, () => this.random32() & mask, (at) => {
      for (let j = at; j < at + 8; j++) {
        const r = radius[uniforms[j]!]!;
        const u = uniforms[j + 8]!;
        out[j] = r * cos[u]!;
        out[j + 8] = r * sin[u]!;
      }
    });
    return format.toBits(out);
  }

  /** A uniform in [0, 1) of 53 bits, from two draws, the high half first. */
  #uniform53(): number {
    const high = this.random32() & 0x1fffff;
    return (high * 0x100000000 + this.random32()) / 0x20000000000000;
  }

  #twist(): void {
    const state = this.#state;
    const mix = (at: number, next: number, far: number): void => {
      const y = (state[at]! & 0x80000000) | (state[next]! & 0x7fffffff);
      state[at] = state[far]! ^ (y >>> 1) ^ (-(y & 1) & 0x9908b0df);
    };
    let i = 0;
    for (; i < STATE - OFFSET; i++) mix(i, i + 1, i + OFFSET);
    for (; i < STATE - 1; i++) mix(i, i + 1, i + OFFSET - STATE);
    mix(STATE - 1, 0, OFFSET - 1);
    this.#next = 0;
  }
}

/**
 * Draws every uniform first, then turns them into normals in blocks of 16; where a rest remains, the last 16 values are
 * drawn anew over what stood there, as PyTorch's `normal_fill` does.
 */
function fillBlocks<A extends Float32Array | Float64Array | Uint16Array>(
  values: A,
  uniform: () => number,
  transform: (at: number) => void,
): A {
  const size = values.length;
  for (let i = 0; i < size; i++) values[i] = uniform();
  for (let i = 0; i + 16 <= size; i += 16) transform(i);
  if (size % 16 !== 0) {
    for (let i = size - 16; i < size; i++) values[i] = uniform();
    transform(size - 16);
  }
  return values;
}

/** A half-width float: how many bits its uniforms have, and how float32 rounds to it. */
interface HalfFormat {
  digits: number;
  toBits: (values: Float32Array) => Uint16Array<ArrayBuffer>;
  toF32: (bits: Uint16Array) => Float32Array<ArrayBuffer>;
  tables?: HalfTables;
}

/** By uniform, in units of 2^-digits: the radius as first of a pair; the angle's cosine and sine as second. */
interface HalfTables {
  radius: Float32Array;
  cos: Float32Array;
  sin: Float32Array;
}

const BF16: HalfFormat = { digits: 8, toBits: f32ToBf16Bits, toF32: bf16BitsToF32 };
const F16: HalfFormat = { digits: 11, toBits: f32ToF16Bits, toF32: f16BitsToF32 };

function halfTables(format: HalfFormat): HalfTables {
  if (format.tables) return format.tables;
  const round = (values: Float32Array): Float32Array => format.toF32(format.toBits(values));
  const uniforms = Float32Array.from({ length: 2 ** format.digits }, (_, i) => i / 2 ** format.digits);
  const log = round(uniforms.map((u) => Math.log(1 - u)));
  const theta = round(uniforms.map((u) => TWO_PI * u));
  return format.tables = {
    radius: round(round(log.map((x) => -2 * x)).map(Math.sqrt)),
    cos: round(theta.map(Math.cos)),
    sin: round(theta.map(Math.sin)),
  };
}
