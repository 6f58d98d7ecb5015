/**
 * SentencePiece's compiled normalization, as T5's `tokenizer.json` carries it: which characters become which. The
 * tokenizer library takes it for NFKC, which it is not quite: joined emoji, for one, come out as other tokens.
 *
 * @module
 */

/** A grapheme of this many bytes or more is looked up character by character, as the `tokenizers` crate does. */
const LONG_GRAPHEME = 6;

/** The compiled map: a double array (Darts-clone) of UTF-8 keys, whose values are places in a table of texts. */
export class Charsmap {
  readonly #units: Uint32Array;
  readonly #texts: Uint8Array;
  readonly #encoder = new TextEncoder();
  readonly #decoder = new TextDecoder();
  readonly #segmenter = new Intl.Segmenter("en", { granularity: "grapheme" });

  /**
   * Reads a map.
   *
   * @param base64 The field `precompiled_charsmap`
   * @throws {SyntaxError} If it is not base64, or not of a map's layout
   */
  constructor(base64: string) {
    const bytes = Uint8Array.fromBase64(base64);
    const view = new DataView(bytes.buffer);
    const size = bytes.length >= 4 ? view.getUint32(0, true) : 0; // of the double array, in bytes
    if (size === 0 || size % 4 !== 0 || size + 4 > bytes.length) {
      throw new SyntaxError(`the charsmap of ${bytes.length} bytes says that its first part has ${size}`);
    }
    this.#units = Uint32Array.from({ length: size / 4 }, (_, i) => view.getUint32(4 + i * 4, true));
    this.#texts = bytes.subarray(4 + size);
  }

  /**
   * Normalizes a text.
   *
   * @param text Any text
   * @returns The text with what the map knows replaced
   */
  normalize(text: string): string {
    let out = "";
    for (const { segment } of this.#segmenter.segment(text)) {
      const bytes = this.#encoder.encode(segment);
      const whole = bytes.length < LONG_GRAPHEME ? this.#find(bytes) : undefined;
      if (whole !== undefined) out += whole;
      else for (const character of segment) out += this.#find(this.#encoder.encode(character)) ?? character;
    }
    return out;
  }

  /** The text for the shortest beginning of the key that the map has; that stands for the whole key. */
  #find(key: Uint8Array): string | undefined {
    const units = this.#units;
    let at = offsetOf(units[0]!);
    for (const byte of key) {
      at ^= byte;
      const unit = units[at];
      // The label, with the bit that leaves have set.
      if (byte === 0 || unit === undefined || (unit & 0x800000ff) !== byte) return undefined;
      at ^= offsetOf(unit);
      if ((unit >>> 8) & 1) {
        const start = (units[at] ?? 0) & 0x7fffffff;
        const end = this.#texts.indexOf(0, start);
        return this.#decoder.decode(this.#texts.subarray(start, end < 0 ? undefined : end));
      }
    }
    return undefined;
  }
}

/** How far a unit's children are, exclusive-or its own place. */
function offsetOf(unit: number): number {
  return (unit >>> 10) << ((unit & (1 << 9)) >>> 6);
}
