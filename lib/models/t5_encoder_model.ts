/**
 * T5's encoder, as transformers' `T5EncoderModel`.
 *
 * @module
 */

import { type LoadOptions, loadParameters } from "../nn/checkpoint.ts";
import { hasWeight } from "../nn/quantized_checkpoint.ts";
import { ACTIVATIONS, Embedding, Linear, RMSNorm } from "../nn/layers.ts";
import { Model, Module } from "../nn/module.ts";
import { openCheckpoint } from "../tensor/safetensors.ts";
import { tensor } from "../tensor/source.ts";
import { attention, embedding, type Tensor } from "../tensor/tensor.ts";
import { ModelConfig } from "./config.ts";

/** The fields of the configuration. */
export interface T5Config {
  /** The size of a token. */
  readonly dModel: number;
  /** The size of a head. */
  readonly dKv: number;
  /** The size within feed-forward layers. */
  readonly dFf: number;
  /** The layers. */
  readonly numLayers: number;
  /** The attention heads. */
  readonly numHeads: number;
  /** The tokens that there are. */
  readonly vocabSize: number;
  /** The distances that are told apart. */
  readonly relativeAttentionNumBuckets: number;
  /** The distance from which on all are one. */
  readonly relativeAttentionMaxDistance: number;
  /** The norms' epsilon. */
  readonly layerNormEpsilon: number;
  /** The activation's name. */
  readonly activation: string;
  /** Whether feed-forward layers are gated. */
  readonly gated: boolean;
}

class T5Attention extends Module {
  q: Linear;
  k: Linear;
  v: Linear;
  o: Linear;
  relative_attention_bias?: Embedding;
  readonly #config: T5Config;

  constructor(config: T5Config, options: { hasBias: boolean }) {
    super();
    const { dModel, numHeads, dKv, relativeAttentionNumBuckets } = config;
    const inner = numHeads * dKv;
    this.#config = config;
    this.q = new Linear(dModel, inner, { bias: false });
    this.k = new Linear(dModel, inner, { bias: false });
    this.v = new Linear(dModel, inner, { bias: false });
    this.o = new Linear(inner, dModel, { bias: false });
    if (options.hasBias) this.relative_attention_bias = new Embedding(relativeAttentionNumBuckets, numHeads);
  }

  forward(x: Tensor, bias: Tensor): Tensor {
    const { numHeads, dKv } = this.#config;
    const [batch, tokens] = x.shape as [number, number];
    const split = (layer: Linear) => layer.forward(x).reshape(batch, tokens, numHeads, dKv).transpose(1, 2);
    // T5 keeps the scale in its weights.
    const attended = attention(split(this.q), split(this.k), split(this.v), { bias, scale: 1 });
    return this.o.forward(attended.transpose(1, 2).reshape(batch, tokens, numHeads * dKv));
  }
}

class T5LayerSelfAttention extends Module {
  SelfAttention: T5Attention;
  layer_norm: RMSNorm;

  constructor(config: T5Config, options: { hasBias: boolean }) {
    super();
    this.SelfAttention = new T5Attention(config, options);
    this.layer_norm = new RMSNorm(config.dModel, { eps: config.layerNormEpsilon });
  }
}

class T5DenseActDense extends Module {
  wi?: Linear;
  wi_0?: Linear;
  wi_1?: Linear;
  wo: Linear;
  readonly #act: (x: Tensor) => Tensor;

  constructor({ dModel, dFf, activation, gated }: T5Config) {
    super();
    this.#act = ACTIVATIONS[activation]!;
    const layer = () => new Linear(dModel, dFf, { bias: false });
    if (gated) {
      this.wi_0 = layer();
      this.wi_1 = layer();
    } else {
      this.wi = layer();
    }
    this.wo = new Linear(dFf, dModel, { bias: false });
  }

  forward(x: Tensor): Tensor {
    const h = this.wi ? this.#act(this.wi.forward(x)) : this.#act(this.wi_0!.forward(x)).mul(this.wi_1!.forward(x));
    return this.wo.forward(h);
  }
}

class T5LayerFF extends Module {
  DenseReluDense: T5DenseActDense;
  layer_norm: RMSNorm;

  constructor(config: T5Config) {
    super();
    this.DenseReluDense = new T5DenseActDense(config);
    this.layer_norm = new RMSNorm(config.dModel, { eps: config.layerNormEpsilon });
  }
}

class T5Block extends Module {
  layer: [T5LayerSelfAttention, T5LayerFF];

  constructor(config: T5Config, options: { hasBias: boolean }) {
    super();
    this.layer = [new T5LayerSelfAttention(config, options), new T5LayerFF(config)];
  }

  forward(x: Tensor, bias: Tensor): Tensor {
    const [attend, feed] = this.layer;
    const h = x.add(attend.SelfAttention.forward(attend.layer_norm.forward(x), bias));
    return h.add(feed.DenseReluDense.forward(feed.layer_norm.forward(h)));
  }
}

class T5Stack extends Module {
  block: T5Block[];
  final_layer_norm: RMSNorm;

  constructor(config: T5Config) {
    super();
    this.block = Array.from({ length: config.numLayers }, (_, i) => new T5Block(config, { hasBias: i === 0 }));
    this.final_layer_norm = new RMSNorm(config.dModel, { eps: config.layerNormEpsilon });
  }
}

/** T5's encoder. */
export class T5EncoderModel extends Model {
  /** The configuration. */
  readonly config: T5Config;
  /** The tokens' vectors. */
  shared: Embedding;
  /** @internal The layers. */
  encoder: T5Stack;

  /** A model of a configuration, without values. */
  constructor(source: ModelConfig) {
    super(source.fields, "model");
    this.config = readConfig(source);
    this.shared = new Embedding(this.config.vocabSize, this.config.dModel);
    this.encoder = new T5Stack(this.config);
  }

  /**
   * Loads a model.
   *
   * @param folder The folder with `config.json` and the weights.
   * @param options Whether with its weights.
   * @returns The model; its weights are read when they are needed.
   */
  static async load(folder: string, { weights = true }: LoadOptions = {}): Promise<T5EncoderModel> {
    const model = new T5EncoderModel(await ModelConfig.read(folder));
    if (!weights) return model;
    const checkpoint = openCheckpoint(folder, model.weightsName);
    // One table under two names: a checkpoint has either or both.
    const table = hasWeight(checkpoint, "shared.weight") ? "shared.weight" : "encoder.embed_tokens.weight";
    loadParameters(model, checkpoint, {
      find: (name) => [{ name: name === "shared.weight" ? table : name }],
      ignore: /^encoder\.embed_tokens\.|^decoder\.|^lm_head\./,
    });
    return model;
  }

  /**
   * Encodes texts.
   *
   * @param inputs The tokens' ids, i32 (batch, tokens).
   * @returns Every token, (batch, tokens, dModel).
   */
  forward({ inputIds }: { inputIds: Tensor }): { lastHiddenState: Tensor } {
    const bias = this.#bias(inputIds.size(1));
    let x = this.shared.forward(inputIds, this.dtype);
    for (const block of this.encoder.block) x = block.forward(x, bias);
    return { lastHiddenState: this.encoder.final_layer_norm.forward(x) };
  }

  /** What is added to the scores for the distance of query and key, (1, heads, tokens, tokens). */
  #bias(tokens: number): Tensor {
    const buckets = new Int32Array(tokens * tokens);
    for (let query = 0; query < tokens; query++) {
      for (let key = 0; key < tokens; key++) buckets[query * tokens + key] = this.#bucket(key - query);
    }
    const table = this.encoder.block[0]!.layer[0].SelfAttention.relative_attention_bias!.weight.tensor;
    const bias = embedding(tensor(buckets, { shape: [tokens, tokens], dtype: "i32" }), table, this.dtype);
    return bias.permute(2, 0, 1).unsqueeze(0);
  }

  /** The number of a distance: half of them for each direction, of these half exact and half by logarithm. */
  #bucket(distance: number): number {
    const half = Math.floor(this.config.relativeAttentionNumBuckets / 2);
    const exact = Math.floor(half / 2);
    const base = distance > 0 ? half : 0;
    const size = Math.abs(distance);
    if (size < exact) return base + size;
    // Rounded as PyTorch does in f32: a distance at the edge of two buckets falls into the same.
    const logarithm = Math.fround(Math.log(Math.fround(size / exact)));
    const scale = Math.log(this.config.relativeAttentionMaxDistance / exact);
    const steps = Math.fround(Math.fround(logarithm / Math.fround(scale)) * (half - exact));
    return base + Math.min(half - 1, exact + Math.trunc(steps));
  }
}

function readConfig(source: ModelConfig): T5Config {
  const projections = Object.keys(ACTIVATIONS).flatMap((act) => [act, `gated-${act}`]);
  const projection = source.choice("feed_forward_proj", projections, "relu");
  const gated = projection.startsWith("gated-");
  const activation = projection.replace("gated-", "");
  return {
    dModel: source.count("d_model", 512),
    dKv: source.count("d_kv", 64),
    dFf: source.count("d_ff", 2048),
    numLayers: source.count("num_layers", 6),
    numHeads: source.count("num_heads", 8),
    vocabSize: source.count("vocab_size", 32128),
    relativeAttentionNumBuckets: source.count("relative_attention_num_buckets", 32),
    relativeAttentionMaxDistance: source.count("relative_attention_max_distance", 128),
    layerNormEpsilon: source.number("layer_norm_epsilon", 1e-6),
    // transformers: "gated-gelu" has always meant the approximation by tanh.
    activation: gated && activation === "gelu" ? "gelu_new" : activation,
    gated,
  };
}
