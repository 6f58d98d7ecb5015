/**
 * The noise of a run, drawn as diffusers draws it.
 *
 * @module
 */

import type { FloatDtype } from "../graph/dtypes.ts";
import { Generator } from "../tensor/random.ts";
import type { ArrayOf } from "../tensor/source.ts";
import type { Seed } from "./pipeline.ts";

/** Where the noise of a batch comes from: one generator for all of it, or one for each. Draws go on where they ended. */
export class Noise {
  readonly #generators: readonly Generator[];
  readonly #count: number;

  /**
   * Starts the draws.
   *
   * @param seed The seed of all, or one for each
   * @param options How many results the batch has, and what they are
   * @throws {RangeError} If there are other seeds than results, or one cannot be
   */
  constructor(seed: Seed | readonly Seed[], options: { count: number; what: "pictures" | "videos" }) {
    const { count, what } = options;
    if (typeof seed === "object" && seed.length !== count) {
      throw new RangeError(`Cannot draw noise for ${count} ${what} from ${seed.length} seeds: pass one, or one each`);
    }
    this.#generators = (typeof seed === "object" ? seed : [seed]).map((s) => new Generator(s));
    this.#count = count;
  }

  /**
   * Draws standard normals for the batch.
   *
   * @param shape The shape of one of its results
   * @param dtype The type that they are drawn in
   * @returns The values, one result after another
   */
  draw(shape: readonly number[], dtype: FloatDtype): ArrayOf[FloatDtype] {
    const count = this.#count / this.#generators.length;
    const draws = this.#generators.map((generator) => generator.randn([count, ...shape], { dtype }));
    if (draws.length === 1) return draws[0]!;
    const size = draws[0]!.length;
    const all = dtype === "f32" ? new Float32Array(draws.length * size) : new Uint16Array(draws.length * size);
    for (const [i, draw] of draws.entries()) all.set(draw, i * size);
    return all;
  }
}

/**
 * The seed of each result.
 *
 * @param seed The seed of all, or one for each
 * @param count How many results there are
 * @returns One for each
 */
export function seedsOf(seed: Seed | readonly Seed[], count: number): readonly Seed[] {
  return typeof seed === "object" ? seed : Array.from({ length: count }, () => seed);
}
