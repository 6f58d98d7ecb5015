/**
 * Flux's transformer, as diffusers' `FluxTransformer2DModel`: text and image tokens in streams of their own, then in
 * one, each block modulated by the timestep, the guidance and the pooled prompt.
 *
 * @module
 */

import { ConfigError } from "../errors.ts";
import { type LoadOptions, loadParameters } from "../nn/checkpoint.ts";
import { FeedForward } from "../nn/feed_forward.ts";
import { LayerNorm, Linear, RMSNorm } from "../nn/layers.ts";
import { Model, Module } from "../nn/module.ts";
import { TimestepEmbedding } from "../nn/timestep_embedding.ts";
import { weightsChanged } from "../tensor/function.ts";
import { openCheckpoint } from "../tensor/safetensors.ts";
import { attention, concat, rotaryEmbedding, type Tensor, timestepEmbedding } from "../tensor/tensor.ts";
import { ModelConfig } from "./config.ts";
import { fluxBflRows, isFluxBfl } from "./flux_bfl.ts";

/** The fields of the configuration. */
export interface FluxTransformer2DConfig {
  /** Channels of a packed latent token. */
  readonly inChannels: number;
  /** Channels of the prediction for a token. */
  readonly outChannels: number;
  /** Blocks with two streams. */
  readonly numLayers: number;
  /** Blocks with one. */
  readonly numSingleLayers: number;
  /** The size of a head. */
  readonly attentionHeadDim: number;
  /** The heads. */
  readonly numAttentionHeads: number;
  /** The size of a text token. */
  readonly jointAttentionDim: number;
  /** The size of the pooled prompt. */
  readonly pooledProjectionDim: number;
  /** Whether the model takes a guidance scale (dev) or not (schnell). */
  readonly guidanceEmbeds: boolean;
  /** What each axis of a position takes of a head. */
  readonly axesDimsRope: readonly number[];
}

/** What a prediction is made from. */
export interface FluxInputs {
  /** Packed latents, (batch, image tokens, inChannels). */
  hiddenStates: Tensor;
  /** Text tokens, (batch, text tokens, jointAttentionDim). */
  encoderHiddenStates: Tensor;
  /** The condition, (batch, dim): see `condition` and `conditionOfEach`. */
  temb: Tensor;
  /** Positions of image tokens, f32 (image tokens, axes). */
  imgIds: Tensor;
  /** Positions of text tokens, f32 (text tokens, axes). */
  txtIds: Tensor;
}

/** What the blocks are conditioned on. */
export interface FluxCondition {
  /** Timesteps from 0 to 1, f32. */
  timestep: Tensor;
  /** Guidance scales, f32; models without guidance take none. */
  guidance?: Tensor | undefined;
  /** Pooled prompts, (batch, pooledProjectionDim). */
  pooledProjections: Tensor;
}

/** Cosines and sines of the tokens' positions. */
type Rope = { cos: Tensor; sin: Tensor };

/** The size of a number's sinusoids. */
const SINUSOIDS = 256;

class CombinedTimestepGuidanceTextProjEmbeddings extends Module {
  timestep_embedder: TimestepEmbedding;
  guidance_embedder?: TimestepEmbedding;
  text_embedder: TimestepEmbedding;

  constructor(dim: number, config: FluxTransformer2DConfig) {
    super();
    this.timestep_embedder = new TimestepEmbedding(SINUSOIDS, dim);
    if (config.guidanceEmbeds) this.guidance_embedder = new TimestepEmbedding(SINUSOIDS, dim);
    this.text_embedder = new TimestepEmbedding(config.pooledProjectionDim, dim);
  }

  /** The parts of the condition: of times (and guidance), and of prompts. */
  parts({ timestep, guidance, pooledProjections }: FluxCondition): { time: Tensor; text: Tensor } {
    const { dtype } = pooledProjections;
    const sinusoids = (t: Tensor) =>
      // diffusers rounds the number to the model's type before it multiplies.
      timestepEmbedding(t.cast(dtype).mul(1000).cast("f32"), {
        size: SINUSOIDS,
        flipSinToCos: true,
        downscaleFreqShift: 0,
      }).cast(dtype);
    let time = this.timestep_embedder.forward(sinusoids(timestep));
    if (this.guidance_embedder) {
      if (!guidance) throw new TypeError("This Flux takes a guidance scale: pass `guidance`");
      time = time.add(this.guidance_embedder.forward(sinusoids(guidance)));
    }
    return { time, text: this.text_embedder.forward(pooledProjections) };
  }
}

/** Layer norm whose scale and shift, and the gates of what follows, are computed from the condition. */
class AdaLayerNorm extends Module {
  linear: Linear;
  readonly #parts: number;
  readonly #norm = new LayerNorm(0, { eps: 1e-6, affine: false });

  constructor(dim: number, parts: number) {
    super();
    this.linear = new Linear(dim, parts * dim);
    this.#parts = parts;
  }

  /** The parts, each (batch, 1, dim). */
  modulation(temb: Tensor): Tensor[] {
    return this.linear.forward(temb.silu()).chunk(this.#parts).map((part) => part.unsqueeze(1));
  }

  apply(x: Tensor, { shift, scale }: { shift: Tensor; scale: Tensor }): Tensor {
    return this.#norm.forward(x).mul(scale.add(1)).add(shift);
  }
}

class FluxAttention extends Module {
  norm_q: RMSNorm;
  norm_k: RMSNorm;
  /** The three projections, or one of all. */
  to_q?: Linear;
  to_k?: Linear;
  to_v?: Linear;
  to_qkv?: Linear;
  to_out?: [Linear];
  norm_added_q?: RMSNorm;
  norm_added_k?: RMSNorm;
  add_q_proj?: Linear;
  add_k_proj?: Linear;
  add_v_proj?: Linear;
  to_added_qkv?: Linear;
  to_add_out?: Linear;
  readonly #heads: number;
  readonly #size: number;

  constructor({ numAttentionHeads, attentionHeadDim }: FluxTransformer2DConfig, options: { streams: 1 | 2 }) {
    super();
    const dim = numAttentionHeads * attentionHeadDim;
    this.#heads = numAttentionHeads;
    this.#size = attentionHeadDim;
    this.norm_q = new RMSNorm(attentionHeadDim, { eps: 1e-6 });
    this.norm_k = new RMSNorm(attentionHeadDim, { eps: 1e-6 });
    this.to_q = new Linear(dim, dim);
    this.to_k = new Linear(dim, dim);
    this.to_v = new Linear(dim, dim);
    if (options.streams === 1) return;
    this.to_out = [new Linear(dim, dim)];
    this.norm_added_q = new RMSNorm(attentionHeadDim, { eps: 1e-6 });
    this.norm_added_k = new RMSNorm(attentionHeadDim, { eps: 1e-6 });
    this.add_q_proj = new Linear(dim, dim);
    this.add_k_proj = new Linear(dim, dim);
    this.add_v_proj = new Linear(dim, dim);
    this.to_add_out = new Linear(dim, dim);
  }

  /** The projections of each stream become one, under diffusers' names. */
  fuseProjections(): void {
    if (this.to_qkv) return;
    this.to_qkv = Linear.join([this.to_q!, this.to_k!, this.to_v!]);
    for (const name of ["to_q", "to_k", "to_v"] as const) delete this[name];
    if (!this.to_add_out) return;
    this.to_added_qkv = Linear.join([this.add_q_proj!, this.add_k_proj!, this.add_v_proj!]);
    for (const name of ["add_q_proj", "add_k_proj", "add_v_proj"] as const) delete this[name];
  }

  /** The projections become three again. */
  unfuseProjections(): void {
    if (!this.to_qkv) return;
    const dim = this.#heads * this.#size;
    [this.to_q, this.to_k, this.to_v] = this.to_qkv.split([dim, dim, dim]) as [Linear, Linear, Linear];
    delete this.to_qkv;
    if (!this.to_added_qkv) return;
    const added = this.to_added_qkv.split([dim, dim, dim]) as [Linear, Linear, Linear];
    [this.add_q_proj, this.add_k_proj, this.add_v_proj] = added;
    delete this.to_added_qkv;
  }

  /** q, k and v of (batch, tokens, dim), each (batch, tokens, heads, size). */
  #project(x: Tensor, fused: Linear | undefined, apart: readonly (Linear | undefined)[]): [Tensor, Tensor, Tensor] {
    const parts = fused ? fused.forward(x).chunk(3) : apart.map((layer) => layer!.forward(x));
    return parts.map((part) => part.reshape(x.size(0), x.size(1), this.#heads, this.#size)) as [Tensor, Tensor, Tensor];
  }

  /** q of the tokens from `first` on; k and v of all. */
  #own(x: Tensor, first: number): [Tensor, Tensor, Tensor] {
    const [q, k, v] = this.#project(x, this.to_qkv, [this.to_q, this.to_k, this.to_v]);
    return [this.norm_q.forward(q.slice(1, first)), this.norm_k.forward(k), v];
  }

  #added(text: Tensor): [Tensor, Tensor, Tensor] {
    const apart = [this.add_q_proj, this.add_k_proj, this.add_v_proj];
    const [q, k, v] = this.#project(text, this.to_added_qkv, apart);
    return [this.norm_added_q!.forward(q), this.norm_added_k!.forward(k), v];
  }

  /** q, k, v of (batch, tokens, heads, size) to what the tokens of q, the last ones, see: (batch, tokens of q, dim). */
  #attend(q: Tensor, k: Tensor, v: Tensor, { cos, sin }: Rope): Tensor {
    const heads = (x: Tensor) => x.transpose(1, 2);
    const first = k.size(1) - q.size(1);
    const seeing = q.rope(cos.slice(0, first), sin.slice(0, first));
    return attention(heads(seeing), heads(k.rope(cos, sin)), heads(v))
      .transpose(1, 2).reshape(q.size(0), q.size(1), this.#heads * this.#size);
  }

  /** One stream: (batch, tokens, dim) to those of its tokens from `first` on, before any projection. */
  forward(x: Tensor, rope: Rope, first: number): Tensor {
    return this.#attend(...this.#own(x, first), rope);
  }

  /** Two streams that see each other. */
  forwardBoth(x: Tensor, text: Tensor, rope: Rope): { x: Tensor; text: Tensor } {
    const own = this.#own(x, 0);
    const [q, k, v] = this.#added(text).map((part, i) => concat([part, own[i]!], 1)) as [Tensor, Tensor, Tensor];
    const attended = this.#attend(q, k, v, rope);
    const tokens = text.size(1);
    return {
      x: this.to_out![0].forward(attended.slice(1, tokens)),
      text: this.to_add_out!.forward(attended.slice(1, 0, tokens)),
    };
  }
}

/** A block with a stream for the text and one for the image. */
class FluxTransformerBlock extends Module {
  norm1: AdaLayerNorm;
  norm1_context: AdaLayerNorm;
  attn: FluxAttention;
  ff: FeedForward;
  ff_context: FeedForward;

  constructor(dim: number, config: FluxTransformer2DConfig) {
    super();
    this.norm1 = new AdaLayerNorm(dim, 6);
    this.norm1_context = new AdaLayerNorm(dim, 6);
    this.attn = new FluxAttention(config, { streams: 2 });
    this.ff = new FeedForward(dim, { activation: "gelu-approximate" });
    this.ff_context = new FeedForward(dim, { activation: "gelu-approximate" });
  }

  forward(x: Tensor, text: Tensor, temb: Tensor, rope: Rope): { x: Tensor; text: Tensor } {
    const image = six(this.norm1.modulation(temb));
    const words = six(this.norm1_context.modulation(temb));
    const attended = this.attn.forwardBoth(
      this.norm1.apply(x, image[0]),
      this.norm1_context.apply(text, words[0]),
      rope,
    );
    x = x.add(image[0].gate.mul(attended.x));
    x = x.add(image[1].gate.mul(this.ff.forward(this.norm1.apply(x, image[1]))));
    text = text.add(words[0].gate.mul(attended.text));
    text = text.add(words[1].gate.mul(this.ff_context.forward(this.norm1_context.apply(text, words[1]))));
    return { x, text };
  }
}

type Modulation = { shift: Tensor; scale: Tensor; gate: Tensor };

/** Six parts of a modulation: for attention, and for the feed-forward layers. */
function six(parts: readonly Tensor[]): [Modulation, Modulation] {
  const [a, b, c, d, e, f] = parts;
  return [{ shift: a!, scale: b!, gate: c! }, { shift: d!, scale: e!, gate: f! }];
}

/** A block whose attention and feed-forward layers read one stream side by side. */
class FluxSingleTransformerBlock extends Module {
  norm: AdaLayerNorm;
  proj_mlp: Linear;
  proj_out: Linear;
  attn: FluxAttention;

  constructor(dim: number, config: FluxTransformer2DConfig) {
    super();
    this.norm = new AdaLayerNorm(dim, 3);
    this.proj_mlp = new Linear(dim, 4 * dim);
    this.proj_out = new Linear(5 * dim, dim);
    this.attn = new FluxAttention(config, { streams: 1 });
  }

  /** All tokens to those from `first` on. */
  forward(x: Tensor, temb: Tensor, rope: Rope, first: number): Tensor {
    const [shift, scale, gate] = this.norm.modulation(temb) as [Tensor, Tensor, Tensor];
    const h = this.norm.apply(x, { shift, scale });
    const mlp = this.proj_mlp.forward(h.slice(1, first)).gelu("tanh"); // (batch, tokens - first, 4 dim)
    const attended = this.attn.forward(h, rope, first); // (batch, tokens - first, dim)
    return x.slice(1, first).add(gate.mul(this.proj_out.forward(concat([attended, mlp], -1))));
  }
}

/** Flux's transformer. */
export class FluxTransformer2DModel extends Model {
  /** The configuration. */
  readonly config: FluxTransformer2DConfig;
  /** @internal From the condition's parts to the condition. */
  time_text_embed: CombinedTimestepGuidanceTextProjEmbeddings;
  /** Text tokens to the model's size. */
  context_embedder: Linear;
  /** Latent tokens to the model's size. */
  x_embedder: Linear;
  /** @internal The blocks with two streams. */
  transformer_blocks: FluxTransformerBlock[];
  /** @internal The blocks with one. */
  single_transformer_blocks: FluxSingleTransformerBlock[];
  /** @internal The last norm. */
  norm_out: AdaLayerNorm;
  /** Tokens to predictions. */
  proj_out: Linear;

  /** A model of a configuration, without values. */
  constructor(source: ModelConfig) {
    super(source.fields, "diffusion_pytorch_model");
    const config = readConfig(source);
    const dim = config.numAttentionHeads * config.attentionHeadDim;
    const times = <T>(count: number, make: () => T) => Array.from({ length: count }, make);
    this.config = config;
    this.time_text_embed = new CombinedTimestepGuidanceTextProjEmbeddings(dim, config);
    this.context_embedder = new Linear(config.jointAttentionDim, dim);
    this.x_embedder = new Linear(config.inChannels, dim);
    this.transformer_blocks = times(config.numLayers, () => new FluxTransformerBlock(dim, config));
    this.single_transformer_blocks = times(config.numSingleLayers, () => new FluxSingleTransformerBlock(dim, config));
    this.norm_out = new AdaLayerNorm(dim, 2);
    this.proj_out = new Linear(dim, config.outChannels);
  }

  /**
   * Loads a model.
   *
   * @param folder The folder with `config.json` and the weights.
   * @param options Whether with its weights, and where they are if not in the folder: a safetensors file of diffusers'
   *   names or of Black Forest Labs'.
   * @returns The model; its weights are read when they are needed.
   */
  static async load(
    folder: string,
    { weights = true, checkpoint: path = folder }: LoadOptions & { checkpoint?: string | undefined } = {},
  ): Promise<FluxTransformer2DModel> {
    const model = new FluxTransformer2DModel(await ModelConfig.read(folder, "FluxTransformer2DModel"));
    if (!weights) return model;
    const checkpoint = openCheckpoint(path);
    if (checkpoint.tensors.keys().some((name) => /\.to_qkv\./.test(name))) model.fuseQkvProjections();
    const { numAttentionHeads, attentionHeadDim } = model.config;
    const dim = numAttentionHeads * attentionHeadDim;
    loadParameters(
      model,
      checkpoint,
      isFluxBfl(checkpoint) ? { find: (name, shape) => fluxBflRows(name, shape, dim) } : {},
    );
    return model;
  }

  /** Makes one projection of q, k and v of each stream, as diffusers' method of the name; before or after quantizing. */
  fuseQkvProjections(): void {
    for (const block of [...this.transformer_blocks, ...this.single_transformer_blocks]) block.attn.fuseProjections();
    weightsChanged();
  }

  /** Takes `fuseQkvProjections` back. */
  unfuseQkvProjections(): void {
    for (const block of [...this.transformer_blocks, ...this.single_transformer_blocks]) block.attn.unfuseProjections();
    weightsChanged();
  }

  /**
   * The conditions of every timestep with every prompt.
   *
   * @param condition Timesteps (T), guidance (1) and pooled prompts (B, size).
   * @returns (T * B, dim), the prompts of one timestep one after another.
   */
  condition(condition: FluxCondition): Tensor {
    const { time, text } = this.time_text_embed.parts(condition);
    return time.unsqueeze(1).add(text.unsqueeze(0)).reshape(-1, text.size(1));
  }

  /**
   * The conditions of each timestep with its own prompt.
   *
   * @param condition Timesteps (B), guidance (B) and pooled prompts (B, size).
   * @returns (B, dim).
   */
  conditionOfEach(condition: FluxCondition): Tensor {
    const { time, text } = this.time_text_embed.parts(condition);
    return time.add(text);
  }

  /**
   * Predicts the flow.
   *
   * @param inputs Latents, text, condition and positions.
   * @returns (batch, image tokens, outChannels).
   */
  forward({ hiddenStates, encoderHiddenStates, temb, imgIds, txtIds }: FluxInputs): Tensor {
    const rope = rotaryEmbedding(concat([txtIds, imgIds], 0), { axes: this.config.axesDimsRope, theta: 10000 });
    let x = this.x_embedder.forward(hiddenStates);
    let text = this.context_embedder.forward(encoderHiddenStates);
    for (const block of this.transformer_blocks) ({ x, text } = block.forward(x, text, temb, rope));
    let joined = concat([text, x], 1);
    const last = this.single_transformer_blocks.at(-1);
    for (const block of this.single_transformer_blocks) {
      // Nothing reads the last block's text.
      joined = block.forward(joined, temb, rope, block === last ? text.size(1) : 0);
    }
    const image = last ? joined : x;
    const [scale, shift] = this.norm_out.modulation(temb) as [Tensor, Tensor];
    return this.proj_out.forward(this.norm_out.apply(image, { shift, scale }));
  }
}

function readConfig(source: ModelConfig): FluxTransformer2DConfig {
  const inChannels = source.count("in_channels", 64);
  const attentionHeadDim = source.count("attention_head_dim", 128);
  const axesDimsRope = source.counts("axes_dims_rope", [16, 56, 56]);
  const patch = source.count("patch_size", 1);
  const sum = axesDimsRope.reduce((a, b) => a + b, 0);
  if (sum !== attentionHeadDim || axesDimsRope.length > 4 || axesDimsRope.some((n) => n % 2 === 1)) {
    throw new ConfigError(
      `${source.file} has axes_dims_rope [${axesDimsRope.join(", ")}]: up to four even sizes make ` +
        `attention_head_dim ${attentionHeadDim}`,
      { file: source.file, key: "axes_dims_rope" },
    );
  }
  return {
    inChannels,
    outChannels: patch * patch * (source.optionalCount("out_channels") ?? inChannels),
    numLayers: source.index("num_layers", 19),
    numSingleLayers: source.index("num_single_layers", 38),
    attentionHeadDim,
    numAttentionHeads: source.count("num_attention_heads", 24),
    jointAttentionDim: source.count("joint_attention_dim", 4096),
    pooledProjectionDim: source.count("pooled_projection_dim", 768),
    guidanceEmbeds: source.flag("guidance_embeds", false),
    axesDimsRope,
  };
}
