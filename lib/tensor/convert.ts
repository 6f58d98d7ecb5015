/**
 * Conversions between float32 and the two half-width floats, on whole arrays. They round to nearest even, as PyTorch
 * does, keep signed zeros, infinities and subnormals, and keep a NaN a NaN of the same sign.
 *
 * @module
 */

/**
 * Rounds float32 values to bfloat16.
 *
 * @param values Any float32 values
 * @returns The bits of the rounded values, one bfloat16 an element
 */
export function f32ToBf16Bits(values: Float32Array): Uint16Array<ArrayBuffer> {
  const bits = new Uint32Array(values.buffer, values.byteOffset, values.length);
  const out = new Uint16Array(bits.length);
  for (let i = 0; i < bits.length; i++) {
    const b = bits[i]!;
    // A NaN whose payload lies in the dropped half would round to infinity: the quiet bit keeps it a NaN.
    out[i] = (b & 0x7fffffff) > 0x7f800000 ? (b >>> 16) | 0x40 : (b + 0x7fff + ((b >>> 16) & 1)) >>> 16;
  }
  return out;
}

/**
 * Widens bfloat16 to float32, exactly.
 *
 * @param bits The bits of the values, one bfloat16 an element
 * @returns The same values
 */
export function bf16BitsToF32(bits: Uint16Array): Float32Array<ArrayBuffer> {
  const out = new Uint32Array(bits.length);
  for (let i = 0; i < bits.length; i++) out[i] = bits[i]! << 16;
  return new Float32Array(out.buffer);
}

/**
 * Rounds float32 values to float16; what is 65520 or more in magnitude becomes an infinity.
 *
 * @param values Any float32 values
 * @returns The bits of the rounded values, one float16 an element
 */
export function f32ToF16Bits(values: Float32Array): Uint16Array<ArrayBuffer> {
  const bits = new Uint32Array(values.buffer, values.byteOffset, values.length);
  const out = new Uint16Array(bits.length);
  for (let i = 0; i < bits.length; i++) {
    const b = bits[i]!;
    const sign = (b >>> 16) & 0x8000;
    const magnitude = b & 0x7fffffff;
    let half: number;
    if (magnitude > 0x7f800000) {
      half = 0x7e00 | ((magnitude >>> 13) & 0x3ff);
    } else if (magnitude >= 0x477ff000) { // 65520, halfway from the largest float16 to the next power of two
      half = 0x7c00;
    } else if (magnitude >= 0x38800000) { // 2^-14, the smallest normal float16
      // Rebiases the exponent from 127 to 15; a carry out of the mantissa raises the exponent as it should.
      half = (magnitude - 0x38000000 + 0xfff + ((magnitude >>> 13) & 1)) >>> 13;
    } else if (magnitude > 0x33000000) { // 2^-25, half the smallest subnormal, which ties to zero
      const shift = 126 - (magnitude >>> 23); // 14 to 24
      const mantissa = (magnitude & 0x7fffff) | 0x800000;
      half = (mantissa + (1 << (shift - 1)) - 1 + ((mantissa >>> shift) & 1)) >>> shift;
    } else {
      half = 0;
    }
    out[i] = sign | half;
  }
  return out;
}

/**
 * Widens float16 to float32, exactly.
 *
 * @param bits The bits of the values, one float16 an element
 * @returns The same values
 */
export function f16BitsToF32(bits: Uint16Array): Float32Array<ArrayBuffer> {
  const out = new Uint32Array(bits.length);
  for (let i = 0; i < bits.length; i++) {
    const b = bits[i]!;
    const sign = (b & 0x8000) << 16;
    const exponent = b & 0x7c00;
    const mantissa = b & 0x3ff;
    if (exponent === 0x7c00) {
      out[i] = sign | 0x7f800000 | (mantissa << 13);
    } else if (exponent !== 0) {
      out[i] = sign | (((b & 0x7fff) << 13) + 0x38000000);
    } else if (mantissa !== 0) {
      const leading = Math.clz32(mantissa) - 21; // 1 to 10: the shift that brings the highest bit to the hidden place
      out[i] = sign | ((113 - leading) << 23) | ((mantissa << (13 + leading)) & 0x7fffff);
    } else {
      out[i] = sign;
    }
  }
  return new Float32Array(out.buffer);
}
