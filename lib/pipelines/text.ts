/**
 * Prompts through T5, for every pipeline that reads them with it.
 *
 * @module
 */

import type { CompiledFunction } from "../tensor/function.ts";
import { tensor } from "../tensor/source.ts";
import type { Tensor } from "../tensor/tensor.ts";
import { tokenize } from "./pipeline.ts";
import type { Tokenizer } from "./tokenizer.ts";

/** T5, from ids to embeddings. */
export type T5 = CompiledFunction<{ inputIds: Tensor }, { embeds: Tensor }>;

/**
 * What T5 makes of prompts.
 *
 * @param t5 T5 and its tokenizer
 * @param prompts The prompts
 * @param options The tokens of each; a signal
 * @returns (prompts, tokens, size)
 */
export async function encodeWithT5(
  t5: { fn: T5; tokenizer: Tokenizer },
  prompts: readonly string[],
  options: { maxSequenceLength: number; signal: AbortSignal | undefined },
): Promise<Tensor> {
  const { maxSequenceLength, signal } = options;
  const ids = tokenize(t5.tokenizer, prompts, { maxLength: maxSequenceLength, limit: "maxSequenceLength" });
  const inputIds = tensor(ids, { shape: [prompts.length, maxSequenceLength], dtype: "i32" });
  const { embeds } = await t5.fn.run({ inputIds }, { signal });
  return embeds;
}
