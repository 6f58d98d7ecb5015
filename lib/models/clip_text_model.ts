/**
 * CLIP's text encoder, as transformers' `CLIPTextModel`.
 *
 * @module
 */

import { ConfigError } from "../errors.ts";
import { type LoadOptions, loadParameters } from "../nn/checkpoint.ts";
import { ACTIVATIONS, Embedding, LayerNorm, Linear } from "../nn/layers.ts";
import { Model, Module } from "../nn/module.ts";
import { openCheckpoint } from "../tensor/safetensors.ts";
import { attention, embedding, type Tensor } from "../tensor/tensor.ts";
import { ModelConfig } from "./config.ts";

/** The fields of the configuration. */
export interface CLIPTextConfig {
  /** The size of a token. */
  readonly hiddenSize: number;
  /** The size within feed-forward layers. */
  readonly intermediateSize: number;
  /** The layers. */
  readonly numHiddenLayers: number;
  /** The attention heads. */
  readonly numAttentionHeads: number;
  /** The most tokens. */
  readonly maxPositionEmbeddings: number;
  /** The tokens that there are. */
  readonly vocabSize: number;
  /** The activation's name. */
  readonly hiddenAct: string;
  /** The norms' epsilon. */
  readonly layerNormEps: number;
  /** The token at which a text ends. */
  readonly eosTokenId: number;
}

/** What the encoder gives. */
export interface CLIPTextOutput {
  /** Every token, (batch, tokens, hiddenSize). */
  readonly lastHiddenState: Tensor;
  /** The token at which each text ends, (batch, hiddenSize). */
  readonly poolerOutput: Tensor;
}

class CLIPTextEmbeddings extends Module {
  token_embedding: Embedding;
  position_embedding: Embedding;

  constructor(config: CLIPTextConfig) {
    super();
    this.token_embedding = new Embedding(config.vocabSize, config.hiddenSize);
    this.position_embedding = new Embedding(config.maxPositionEmbeddings, config.hiddenSize);
  }
}

class CLIPAttention extends Module {
  k_proj: Linear;
  v_proj: Linear;
  q_proj: Linear;
  out_proj: Linear;
  readonly #heads: number;

  constructor({ hiddenSize, numAttentionHeads }: CLIPTextConfig) {
    super();
    this.#heads = numAttentionHeads;
    this.k_proj = new Linear(hiddenSize, hiddenSize);
    this.v_proj = new Linear(hiddenSize, hiddenSize);
    this.q_proj = new Linear(hiddenSize, hiddenSize);
    this.out_proj = new Linear(hiddenSize, hiddenSize);
  }

  forward(x: Tensor): Tensor {
    const [batch, tokens, size] = x.shape as [number, number, number];
    const split = (t: Tensor) => t.reshape(batch, tokens, this.#heads, size / this.#heads).transpose(1, 2);
    const [q, k, v] = [this.q_proj, this.k_proj, this.v_proj].map((layer) => split(layer.forward(x)));
    const attended = attention(q!, k!, v!, { causal: true }).transpose(1, 2).reshape(batch, tokens, size);
    return this.out_proj.forward(attended);
  }
}

class CLIPMLP extends Module {
  fc1: Linear;
  fc2: Linear;
  readonly #act: (x: Tensor) => Tensor;

  constructor(config: CLIPTextConfig) {
    super();
    this.#act = ACTIVATIONS[config.hiddenAct]!;
    this.fc1 = new Linear(config.hiddenSize, config.intermediateSize);
    this.fc2 = new Linear(config.intermediateSize, config.hiddenSize);
  }

  forward(x: Tensor): Tensor {
    return this.fc2.forward(this.#act(this.fc1.forward(x)));
  }
}

class CLIPEncoderLayer extends Module {
  self_attn: CLIPAttention;
  layer_norm1: LayerNorm;
  mlp: CLIPMLP;
  layer_norm2: LayerNorm;

  constructor(config: CLIPTextConfig) {
    super();
    const eps = config.layerNormEps;
    this.self_attn = new CLIPAttention(config);
    this.layer_norm1 = new LayerNorm(config.hiddenSize, { eps });
    this.mlp = new CLIPMLP(config);
    this.layer_norm2 = new LayerNorm(config.hiddenSize, { eps });
  }

  forward(x: Tensor): Tensor {
    const h = x.add(this.self_attn.forward(this.layer_norm1.forward(x)));
    return h.add(this.mlp.forward(this.layer_norm2.forward(h)));
  }
}

class CLIPEncoder extends Module {
  layers: CLIPEncoderLayer[];

  constructor(config: CLIPTextConfig) {
    super();
    this.layers = Array.from({ length: config.numHiddenLayers }, () => new CLIPEncoderLayer(config));
  }
}

class CLIPTextTransformer extends Module {
  embeddings: CLIPTextEmbeddings;
  encoder: CLIPEncoder;
  final_layer_norm: LayerNorm;

  constructor(config: CLIPTextConfig) {
    super();
    this.embeddings = new CLIPTextEmbeddings(config);
    this.encoder = new CLIPEncoder(config);
    this.final_layer_norm = new LayerNorm(config.hiddenSize, { eps: config.layerNormEps });
  }
}

/** CLIP's text encoder. */
export class CLIPTextModel extends Model {
  /** The configuration. */
  readonly config: CLIPTextConfig;
  /** @internal All of it, under the name that checkpoints use. */
  text_model: CLIPTextTransformer;

  /** A model of a configuration, without values. */
  constructor(source: ModelConfig) {
    super(source.fields, "model");
    this.config = readConfig(source);
    this.text_model = new CLIPTextTransformer(this.config);
  }

  /**
   * Loads a model.
   *
   * @param folder The folder with `config.json` and the weights.
   * @param options Whether with its weights.
   * @returns The model; its weights are read when they are needed.
   */
  static async load(folder: string, { weights = true }: LoadOptions = {}): Promise<CLIPTextModel> {
    const model = new CLIPTextModel(await ModelConfig.read(folder));
    if (!weights) return model;
    // Older checkpoints keep the numbers 0, 1, 2, ... and, with a projection, its weight.
    loadParameters(model, openCheckpoint(folder, model.weightsName), {
      ignore: /\.position_ids$|^text_projection\.weight$/,
    });
    return model;
  }

  /**
   * Where texts end, for `forward`.
   *
   * @param ids The tokens' ids, (batch, tokens).
   * @param options How many texts there are, and the token at which one ends: the configuration's `eosTokenId`.
   * @returns For each text, its number times the tokens, plus the place of its end token.
   */
  static endPositions(
    ids: Int32Array,
    { batch, eosTokenId }: { batch: number; eosTokenId: number },
  ): Int32Array<ArrayBuffer> {
    const tokens = ids.length / batch;
    return Int32Array.from({ length: batch }, (_, i) => {
      const text = ids.subarray(i * tokens, (i + 1) * tokens);
      // transformers: an end token of 2 stands in configurations that are wrong about it; the largest id is the end.
      const end = eosTokenId === 2 ? text.indexOf(Math.max(...text)) : text.indexOf(eosTokenId);
      return i * tokens + Math.max(0, end);
    });
  }

  /**
   * Encodes texts.
   *
   * @param inputs The tokens' ids, i32 (batch, tokens), and where texts end, i32 (batch), by `endPositions`.
   * @returns Every token, and the last of each text.
   */
  forward({ inputIds, endPositions }: { inputIds: Tensor; endPositions: Tensor }): CLIPTextOutput {
    const { embeddings, encoder, final_layer_norm } = this.text_model;
    const [batch, tokens] = inputIds.shape as [number, number];
    const positions = embeddings.position_embedding.weight.tensor.slice(0, 0, tokens).cast(this.dtype);
    let x = embeddings.token_embedding.forward(inputIds, this.dtype).add(positions);
    for (const layer of encoder.layers) x = layer.forward(x);
    const lastHiddenState = final_layer_norm.forward(x);
    const rows = lastHiddenState.reshape(batch * tokens, this.config.hiddenSize);
    return { lastHiddenState, poolerOutput: embedding(endPositions, rows) };
  }
}

function readConfig(source: ModelConfig): CLIPTextConfig {
  const hiddenSize = source.count("hidden_size", 512);
  const numAttentionHeads = source.count("num_attention_heads", 8);
  if (hiddenSize % numAttentionHeads !== 0) {
    throw new ConfigError(
      `${source.file} has num_attention_heads ${numAttentionHeads}: it takes a divisor of hidden_size ${hiddenSize}`,
      { file: source.file, key: "num_attention_heads" },
    );
  }
  return {
    hiddenSize,
    intermediateSize: source.count("intermediate_size", 2048),
    numHiddenLayers: source.index("num_hidden_layers", 12),
    numAttentionHeads,
    maxPositionEmbeddings: source.count("max_position_embeddings", 77),
    vocabSize: source.count("vocab_size", 49408),
    hiddenAct: source.choice("hidden_act", Object.keys(ACTIVATIONS), "quick_gelu"),
    layerNormEps: source.number("layer_norm_eps", 1e-5),
    eosTokenId: source.index("eos_token_id", 49407),
  };
}
