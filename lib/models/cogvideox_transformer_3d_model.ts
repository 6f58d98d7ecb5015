/**
 * CogVideoX's transformer (Yang et al., 2024), as diffusers' `CogVideoXTransformer3DModel`: text and video tokens that
 * attend to all of both, through weights that they share and modulations of their own.
 *
 * @module
 */

import { ConfigError } from "../errors.ts";
import { type LoadOptions, loadParameters } from "../nn/checkpoint.ts";
import { FEED_FORWARD_ACTIVATIONS, FeedForward } from "../nn/feed_forward.ts";
import { LayerNorm, Linear } from "../nn/layers.ts";
import { Model, Module, Parameter } from "../nn/module.ts";
import { TimestepEmbedding } from "../nn/timestep_embedding.ts";
import { weightsChanged } from "../tensor/function.ts";
import { openCheckpoint } from "../tensor/safetensors.ts";
import { attention, concat, type Tensor, timestepEmbedding } from "../tensor/tensor.ts";
import { cropRegion, gridPositions, rotaryTable, sinusoidTable, slicePositions } from "./cogvideox_positions.ts";
import { ModelConfig } from "./config.ts";

/** The fields of the configuration. */
export interface CogVideoXTransformer3DConfig {
  /** The heads. */
  readonly numAttentionHeads: number;
  /** The size of a head. */
  readonly attentionHeadDim: number;
  /** Channels of a latent. */
  readonly inChannels: number;
  /** Channels of the prediction. */
  readonly outChannels: number;
  /** Whether a number's cosines come before its sines. */
  readonly flipSinToCos: boolean;
  /** The shift of the denominator of a number's frequencies. */
  readonly freqShift: number;
  /** The size of the condition. */
  readonly timeEmbedDim: number;
  /** The size of the embedding of `ofs`, in models that take one (1.5, from pictures). */
  readonly ofsEmbedDim: number | undefined;
  /** The size of a text token. */
  readonly textEmbedDim: number;
  /** The blocks. */
  readonly numLayers: number;
  /** Whether the projections of q, k and v have a bias. */
  readonly attentionBias: boolean;
  /** Columns of latents that the model was trained on. */
  readonly sampleWidth: number;
  /** Rows of latents that the model was trained on. */
  readonly sampleHeight: number;
  /** Frames of the video, before the VAE, that the model was trained on. */
  readonly sampleFrames: number;
  /** Rows and columns of latents in a token. */
  readonly patchSize: number;
  /** Frames of latents in a token, in the 1.5 family. */
  readonly patchSizeT: number | undefined;
  /** Frames of the video in a frame of latents. */
  readonly temporalCompressionRatio: number;
  /** Text tokens. */
  readonly maxTextSeqLength: number;
  /** The activation of the feed-forward layers. */
  readonly activationFn: string;
  /** The activation of the condition's layers. */
  readonly timestepActivationFn: string;
  /** Whether norms have a weight and a bias. */
  readonly normElementwiseAffine: boolean;
  /** What norms add to a variance. */
  readonly normEps: number;
  /** What rows and columns are divided by in fixed positions. */
  readonly spatialInterpolationScale: number;
  /** What frames are divided by in fixed positions. */
  readonly temporalInterpolationScale: number;
  /** Whether q and k are rotated by their positions (5b), or fixed positions are added to the tokens (2b). */
  readonly useRotaryPositionalEmbeddings: boolean;
  /** Whether trained positions are added to the tokens as well. */
  readonly useLearnedPositionalEmbeddings: boolean;
  /** Whether the projection of tokens has a bias. */
  readonly patchBias: boolean;
}

/** Cosines and sines of the video tokens' positions, f32 (video tokens, head size). */
export interface CogVideoXRotaryEmbedding {
  /** Cosines. */
  readonly cos: Tensor;
  /** Sines. */
  readonly sin: Tensor;
}

/** The size of latents. */
export interface LatentSize {
  /** Frames. */
  readonly frames: number;
  /** Rows. */
  readonly height: number;
  /** Columns. */
  readonly width: number;
}

/** What the blocks are conditioned on. */
export interface CogVideoXCondition {
  /** Timesteps from 0 to 999, f32 (T). */
  timestep: Tensor;
  /** What models with `ofs_embed_dim` take besides, f32 (1) or (T). */
  ofs?: Tensor | undefined;
}

/** What a prediction is made from. */
export interface CogVideoXInputs {
  /** Latents, (batch, frames, channels, height, width). */
  hiddenStates: Tensor;
  /** Text tokens, (batch, text tokens, textEmbedDim). */
  encoderHiddenStates: Tensor;
  /** The condition, (batch, timeEmbedDim), or one for all: see `condition`. */
  temb: Tensor;
  /** The positions of the video tokens, of models that rotate: see `rotaryEmbedding`. */
  imageRotaryEmb?: CogVideoXRotaryEmbedding | undefined;
}

/** The two streams: (batch, text tokens, dim) and (batch, video tokens, dim). */
type Streams = { text: Tensor; video: Tensor };

/** The projection of patches, a convolution whose kernel is its stride: each patch once, by one matrix. */
class PatchProjection extends Module {
  /** (dim, channels, rows, columns), or as a matrix. */
  weight: Parameter;
  bias?: Parameter;

  constructor(shape: readonly number[], options: { bias: boolean }) {
    super();
    this.weight = new Parameter(...shape);
    if (options.bias) this.bias = new Parameter(shape[0]!);
  }

  /** (..., channels * rows * columns) to (..., dim). */
  forward(patches: Tensor): Tensor {
    const weight = this.weight.tensor.reshape(this.weight.shape[0]!, -1);
    return patches.linear(weight, this.bias?.tensor);
  }
}

class CogVideoXPatchEmbed extends Module {
  proj: PatchProjection | Linear;
  text_proj: Linear;
  /** Trained positions, (1, text and video tokens, dim). */
  pos_embedding?: Parameter;
  readonly #config: CogVideoXTransformer3DConfig;

  constructor(dim: number, config: CogVideoXTransformer3DConfig) {
    super();
    this.#config = config;
    const { inChannels, patchSize: p, patchSizeT, patchBias, textEmbedDim } = config;
    this.proj = patchSizeT === undefined
      ? new PatchProjection([dim, inChannels, p, p], { bias: patchBias })
      : new Linear(inChannels * p * p * patchSizeT, dim);
    this.text_proj = new Linear(textEmbedDim, dim);
    if (config.useLearnedPositionalEmbeddings) {
      const frames = Math.floor((config.sampleFrames - 1) / config.temporalCompressionRatio) + 1;
      const tokens = frames * Math.floor(config.sampleHeight / p) * Math.floor(config.sampleWidth / p);
      this.pos_embedding = new Parameter(1, config.maxTextSeqLength + tokens, dim);
    }
  }

  forward(text: Tensor, latents: Tensor): Streams {
    const { frames, height, width } = gridOf(sizeOfLatents(latents), this.#config);
    const streams = { text: this.text_proj.forward(text), video: this.proj.forward(this.#patches(latents)) };
    if (!this.pos_embedding) {
      if (this.#config.useRotaryPositionalEmbeddings) return streams;
      return { ...streams, video: this.#addFixed(streams.video, { frames, height, width }) };
    }
    return this.#addLearned(streams, latents);
  }

  /** (batch, frames, channels, height, width) to (batch, video tokens, numbers of a patch). */
  #patches(latents: Tensor): Tensor {
    const { patchSize: p, patchSizeT: pt = 1 } = this.#config;
    const [batch, , channels] = latents.shape as [number, number, number];
    const { frames, height, width } = gridOf(sizeOfLatents(latents), this.#config);
    // A convolution leaves out the rows and columns that do not fill a patch.
    return latents.slice(3, 0, height * p).slice(4, 0, width * p)
      .reshape(batch, frames, pt, channels, height, p, width, p)
      .permute(0, 1, 4, 6, 3, 2, 5, 7)
      .reshape(batch, frames * height * width, channels * pt * p * p);
  }

  /** A quarter of the features is the frame's sinusoids, then come those of the column, then those of the row. */
  #addFixed(video: Tensor, { frames, height, width }: LatentSize): Tensor {
    const { spatialInterpolationScale, temporalInterpolationScale } = this.#config;
    const [batch, tokens, dim] = video.shape as [number, number, number];
    const [ofFrame, ofSide] = [dim / 4, dim / 8 * 3];
    const table = (count: number, size: number, scale: number) => sinusoidTable(count, { size, scale });
    const tables = [
      table(frames, ofFrame, temporalInterpolationScale).reshape(frames, 1, 1, ofFrame),
      table(width, ofSide, spatialInterpolationScale).reshape(1, 1, width, ofSide),
      table(height, ofSide, spatialInterpolationScale).reshape(1, height, 1, ofSide),
    ];
    const parts = video.reshape(batch, frames, height, width, dim).split([ofFrame, ofSide, ofSide]);
    return concat(parts.map((part, i) => part.add(tables[i]!.cast(video.dtype))), -1).reshape(batch, tokens, dim);
  }

  #addLearned({ text, video }: Streams, latents: Tensor): Streams {
    const { sampleHeight, sampleWidth, sampleFrames, temporalCompressionRatio, maxTextSeqLength } = this.#config;
    const size = sizeOfLatents(latents);
    if (size.height !== sampleHeight || size.width !== sampleWidth) {
      throw new RangeError(
        `Cannot predict latents of ${size.height} x ${size.width} as the model learned the positions of ` +
          `${sampleHeight} x ${sampleWidth}: pass latents of that size`,
      );
    }
    // diffusers has fixed positions for videos of other lengths.
    if ((size.frames - 1) * temporalCompressionRatio + 1 !== sampleFrames) {
      return { text, video: this.#addFixed(video, gridOf(size, this.#config)) };
    }
    if (text.size(1) !== maxTextSeqLength) {
      throw new RangeError(
        `Cannot predict with ${text.size(1)} text tokens as the model learned the positions of ${maxTextSeqLength}: ` +
          "pad the text to that",
      );
    }
    const positions = this.pos_embedding!.tensor.cast(video.dtype);
    return {
      text: text.add(positions.slice(1, 0, maxTextSeqLength)),
      video: video.add(positions.slice(1, maxTextSeqLength)),
    };
  }
}

/** What modulates a stream. */
type Modulation = { shift: Tensor; scale: Tensor; gate: Tensor };

/** Layer norm of both streams, each with a scale and shift, and a gate for what follows, of the condition. */
class CogVideoXLayerNormZero extends Module {
  linear: Linear;
  norm: LayerNorm;

  constructor(dim: number, config: CogVideoXTransformer3DConfig) {
    super();
    this.linear = new Linear(config.timeEmbedDim, 6 * dim);
    this.norm = normOf(dim, config);
  }

  forward({ text, video }: Streams, temb: Tensor): { normed: Streams; gates: Streams } {
    const [ofVideo, ofText] = this.linear.forward(temb.silu()).chunk(2).map(modulationOf) as [Modulation, Modulation];
    return {
      normed: {
        text: modulate(this.norm.forward(text), ofText),
        video: modulate(this.norm.forward(video), ofVideo),
      },
      gates: { text: ofText.gate, video: ofVideo.gate },
    };
  }
}

/** Shift, scale and gate of (rows, 3 dim), each (rows, 1, dim). */
function modulationOf(parts: Tensor): Modulation {
  const [shift, scale, gate] = parts.unsqueeze(1).chunk(3) as [Tensor, Tensor, Tensor];
  return { shift, scale, gate };
}

const modulate = (x: Tensor, { shift, scale }: Omit<Modulation, "gate">) => x.mul(scale.add(1)).add(shift);

const normOf = (dim: number, { normEps, normElementwiseAffine }: CogVideoXTransformer3DConfig) =>
  new LayerNorm(dim, { eps: normEps, affine: normElementwiseAffine });

class CogVideoXAttention extends Module {
  norm_q: LayerNorm;
  norm_k: LayerNorm;
  /** The three projections, or one of all. */
  to_q?: Linear;
  to_k?: Linear;
  to_v?: Linear;
  to_qkv?: Linear;
  to_out: [Linear];
  readonly #heads: number;
  readonly #size: number;

  constructor(dim: number, { numAttentionHeads, attentionHeadDim, attentionBias }: CogVideoXTransformer3DConfig) {
    super();
    this.#heads = numAttentionHeads;
    this.#size = attentionHeadDim;
    this.norm_q = new LayerNorm(attentionHeadDim, { eps: 1e-6 });
    this.norm_k = new LayerNorm(attentionHeadDim, { eps: 1e-6 });
    this.to_q = new Linear(dim, dim, { bias: attentionBias });
    this.to_k = new Linear(dim, dim, { bias: attentionBias });
    this.to_v = new Linear(dim, dim, { bias: attentionBias });
    this.to_out = [new Linear(dim, dim)];
  }

  /** The projections become one, under diffusers' name. */
  fuseProjections(): void {
    if (this.to_qkv) return;
    this.to_qkv = Linear.join([this.to_q!, this.to_k!, this.to_v!]);
    for (const name of ["to_q", "to_k", "to_v"] as const) delete this[name];
  }

  /** The projections become three again. */
  unfuseProjections(): void {
    if (!this.to_qkv) return;
    const dim = this.#heads * this.#size;
    [this.to_q, this.to_k, this.to_v] = this.to_qkv.split([dim, dim, dim]) as [Linear, Linear, Linear];
    delete this.to_qkv;
  }

  /** Every token sees all of both streams. */
  forward({ text, video }: Streams, rope: CogVideoXRotaryEmbedding | undefined): Streams {
    const tokens = concat([text, video], 1);
    const projected = this.to_qkv
      ? this.to_qkv.forward(tokens).chunk(3)
      : [this.to_q!, this.to_k!, this.to_v!].map((layer) => layer.forward(tokens));
    const heads = (x: Tensor) => x.reshape(x.size(0), x.size(1), this.#heads, this.#size);
    const [q, k, v] = projected.map(heads) as [Tensor, Tensor, Tensor];
    const split = (x: Tensor, norm: LayerNorm): Streams => {
      const [ofText, ofVideo] = x.split([text.size(1), video.size(1)], 1) as [Tensor, Tensor];
      const normed = norm.forward(ofVideo);
      return { text: norm.forward(ofText), video: rope ? normed.rope(rope.cos, rope.sin) : normed };
    };
    const queries = split(q, this.norm_q);
    const ofText = split(k, this.norm_k);
    const keys = concat([ofText.text, ofText.video], 1);
    // Apart, so that each stream's result is a matrix that the next layer reads as it is.
    const attend = (x: Tensor) =>
      this.to_out[0].forward(
        attention(x.transpose(1, 2), keys.transpose(1, 2), v.transpose(1, 2))
          .transpose(1, 2).reshape(x.size(0), x.size(1), this.#heads * this.#size),
      );
    return { text: attend(queries.text), video: attend(queries.video) };
  }
}

class CogVideoXBlock extends Module {
  norm1: CogVideoXLayerNormZero;
  attn1: CogVideoXAttention;
  norm2: CogVideoXLayerNormZero;
  ff: FeedForward;

  constructor(dim: number, config: CogVideoXTransformer3DConfig) {
    super();
    this.norm1 = new CogVideoXLayerNormZero(dim, config);
    this.attn1 = new CogVideoXAttention(dim, config);
    this.norm2 = new CogVideoXLayerNormZero(dim, config);
    this.ff = new FeedForward(dim, { activation: config.activationFn });
  }

  forward(streams: Streams, temb: Tensor, rope: CogVideoXRotaryEmbedding | undefined): Streams {
    const first = this.norm1.forward(streams, temb);
    const attended = addGated(streams, first.gates, this.attn1.forward(first.normed, rope));
    const { normed, gates } = this.norm2.forward(attended, temb);
    return addGated(attended, gates, { text: this.ff.forward(normed.text), video: this.ff.forward(normed.video) });
  }
}

const addGated = (x: Streams, gates: Streams, change: Streams): Streams => ({
  text: x.text.add(gates.text.mul(change.text)),
  video: x.video.add(gates.video.mul(change.video)),
});

/** The last norm, whose scale and shift are computed from the condition. */
class AdaLayerNorm extends Module {
  linear: Linear;
  norm: LayerNorm;

  constructor(dim: number, config: CogVideoXTransformer3DConfig) {
    super();
    this.linear = new Linear(config.timeEmbedDim, 2 * dim);
    this.norm = normOf(dim, config);
  }

  forward(x: Tensor, temb: Tensor): Tensor {
    const [shift, scale] = this.linear.forward(temb.silu()).unsqueeze(1).chunk(2) as [Tensor, Tensor];
    return modulate(this.norm.forward(x), { shift, scale });
  }
}

/** CogVideoX's transformer. */
export class CogVideoXTransformer3DModel extends Model {
  /** The configuration. */
  readonly config: CogVideoXTransformer3DConfig;
  /** @internal Text and latents to tokens. */
  patch_embed: CogVideoXPatchEmbed;
  /** @internal The timestep to the condition. */
  time_embedding: TimestepEmbedding;
  /** @internal What models from pictures take besides. */
  ofs_embedding?: TimestepEmbedding;
  /** @internal The blocks. */
  transformer_blocks: CogVideoXBlock[];
  /** The norm behind the blocks. */
  norm_final: LayerNorm;
  /** @internal The last norm. */
  norm_out: AdaLayerNorm;
  /** Tokens to predictions. */
  proj_out: Linear;

  /** A model of a configuration, without values. */
  constructor(source: ModelConfig) {
    super(source.fields, "diffusion_pytorch_model");
    const config = readConfig(source);
    const { timeEmbedDim, ofsEmbedDim, timestepActivationFn: activation, patchSize, patchSizeT = 1 } = config;
    const dim = dimOf(config);
    this.config = config;
    this.patch_embed = new CogVideoXPatchEmbed(dim, config);
    this.time_embedding = new TimestepEmbedding(dim, timeEmbedDim, { activation });
    if (ofsEmbedDim !== undefined) this.ofs_embedding = new TimestepEmbedding(ofsEmbedDim, ofsEmbedDim, { activation });
    this.transformer_blocks = Array.from({ length: config.numLayers }, () => new CogVideoXBlock(dim, config));
    this.norm_final = normOf(dim, config);
    this.norm_out = new AdaLayerNorm(dim, config);
    this.proj_out = new Linear(dim, patchSize * patchSize * patchSizeT * config.outChannels);
  }

  /**
   * Loads a model.
   *
   * @param folder The folder with `config.json` and the weights.
   * @param options Whether with its weights.
   * @returns The model; its weights are read when they are needed.
   */
  static async load(folder: string, { weights = true }: LoadOptions = {}): Promise<CogVideoXTransformer3DModel> {
    const model = new CogVideoXTransformer3DModel(await ModelConfig.read(folder, "CogVideoXTransformer3DModel"));
    if (!weights) return model;
    const checkpoint = openCheckpoint(folder, model.weightsName);
    if (checkpoint.tensors.keys().some((name) => /\.to_qkv\./.test(name))) model.fuseQkvProjections();
    loadParameters(model, checkpoint);
    return model;
  }

  /** Makes one projection of q, k and v of each block, as diffusers' method of the name; before or after quantizing. */
  fuseQkvProjections(): void {
    for (const block of this.transformer_blocks) block.attn1.fuseProjections();
    weightsChanged();
  }

  /** Takes `fuseQkvProjections` back. */
  unfuseQkvProjections(): void {
    for (const block of this.transformer_blocks) block.attn1.unfuseProjections();
    weightsChanged();
  }

  /**
   * The conditions of timesteps.
   *
   * @param condition Timesteps (T), and `ofs` where the model takes it.
   * @returns (T, timeEmbedDim).
   */
  condition({ timestep, ofs }: CogVideoXCondition): Tensor {
    const { ofsEmbedDim } = this.config;
    const temb = this.time_embedding.forward(this.#sinusoids(timestep, dimOf(this.config)));
    if (!this.ofs_embedding) return temb;
    if (!ofs) throw new TypeError("This CogVideoX takes an offset: pass `ofs`");
    return temb.add(this.ofs_embedding.forward(this.#sinusoids(ofs, ofsEmbedDim!)));
  }

  #sinusoids(t: Tensor, size: number): Tensor {
    const { flipSinToCos, freqShift } = this.config;
    return timestepEmbedding(t, { size, flipSinToCos, downscaleFreqShift: freqShift }).cast(this.dtype);
  }

  /**
   * The positions of latents of a size, as diffusers' pipeline gives them to models that rotate: those of the trained
   * size, of which other sizes are a crop after resizing, or in the 1.5 family its first rows and columns.
   *
   * @param size The latents' size.
   * @returns Cosines and sines; none of models that do not rotate.
   * @throws {RangeError} If a model of the 1.5 family was trained on fewer rows or columns.
   */
  rotaryEmbedding(size: LatentSize): CogVideoXRotaryEmbedding | undefined {
    const { config } = this;
    if (!config.useRotaryPositionalEmbeddings) return undefined;
    const { patchSize, patchSizeT, attentionHeadDim } = config;
    const grid = {
      frames: Math.ceil(size.frames / (patchSizeT ?? 1)),
      height: Math.floor(size.height / patchSize),
      width: Math.floor(size.width / patchSize),
    };
    const trained = {
      height: Math.floor(config.sampleHeight / patchSize),
      width: Math.floor(config.sampleWidth / patchSize),
    };
    const positions = patchSizeT === undefined
      ? gridPositions(grid, cropRegion(grid, trained))
      : slicePositions(grid, trained);
    return rotaryTable(positions, attentionHeadDim);
  }

  /**
   * Predicts what the noise schedule asks for.
   *
   * @param inputs Latents, text, condition and positions.
   * @returns (batch, frames, outChannels, height, width).
   * @throws {RangeError} If the model learned the positions of another size
   * @throws {TypeError} If latents do not fill patches of frames
   */
  forward({ hiddenStates, encoderHiddenStates, temb, imageRotaryEmb }: CogVideoXInputs): Tensor {
    let streams = this.patch_embed.forward(encoderHiddenStates, hiddenStates);
    for (const block of this.transformer_blocks) streams = block.forward(streams, temb, imageRotaryEmb);
    const predicted = this.proj_out.forward(this.norm_out.forward(this.norm_final.forward(streams.video), temb));
    const { patchSize: p, patchSizeT: pt = 1, outChannels } = this.config;
    const { frames, height, width } = gridOf(sizeOfLatents(hiddenStates), this.config);
    return predicted.reshape(-1, frames, height, width, outChannels, pt, p, p)
      .permute(0, 1, 5, 4, 2, 6, 3, 7)
      .reshape(-1, frames * pt, outChannels, height * p, width * p);
  }
}

const dimOf = ({ numAttentionHeads, attentionHeadDim }: CogVideoXTransformer3DConfig) =>
  numAttentionHeads * attentionHeadDim;

/** Frames, rows and columns of (batch, frames, channels, height, width). */
function sizeOfLatents(latents: Tensor): LatentSize {
  const [, frames, , height, width] = latents.shape as [number, number, number, number, number];
  return { frames, height, width };
}

/** Frames, rows and columns of tokens. */
function gridOf({ frames, height, width }: LatentSize, config: CogVideoXTransformer3DConfig): LatentSize {
  const { patchSize, patchSizeT } = config;
  if (patchSizeT !== undefined && (frames % patchSizeT !== 0 || height % patchSize !== 0 || width % patchSize !== 0)) {
    throw new TypeError(
      `Latents of ${frames} x ${height} x ${width} do not fill patches of ${patchSizeT} x ${patchSize} x ${patchSize}: ` +
        "pass whole patches",
    );
  }
  return {
    frames: frames / (patchSizeT ?? 1),
    height: Math.floor(height / patchSize),
    width: Math.floor(width / patchSize),
  };
}

function readConfig(source: ModelConfig): CogVideoXTransformer3DConfig {
  const config: CogVideoXTransformer3DConfig = {
    numAttentionHeads: source.count("num_attention_heads", 30),
    attentionHeadDim: source.count("attention_head_dim", 64),
    inChannels: source.count("in_channels", 16),
    outChannels: source.count("out_channels", 16),
    flipSinToCos: source.flag("flip_sin_to_cos", true),
    freqShift: source.number("freq_shift", 0),
    timeEmbedDim: source.count("time_embed_dim", 512),
    ofsEmbedDim: source.optionalCount("ofs_embed_dim"),
    textEmbedDim: source.count("text_embed_dim", 4096),
    numLayers: source.index("num_layers", 30),
    attentionBias: source.flag("attention_bias", true),
    sampleWidth: source.count("sample_width", 90),
    sampleHeight: source.count("sample_height", 60),
    sampleFrames: source.count("sample_frames", 49),
    patchSize: source.count("patch_size", 2),
    patchSizeT: source.optionalCount("patch_size_t"),
    temporalCompressionRatio: source.count("temporal_compression_ratio", 4),
    maxTextSeqLength: source.count("max_text_seq_length", 226),
    activationFn: source.choice("activation_fn", Object.keys(FEED_FORWARD_ACTIVATIONS), "gelu-approximate"),
    timestepActivationFn: source.choice("timestep_activation_fn", TIMESTEP_ACTIVATIONS, "silu"),
    normElementwiseAffine: source.flag("norm_elementwise_affine", true),
    normEps: source.number("norm_eps", 1e-5),
    spatialInterpolationScale: source.number("spatial_interpolation_scale", 1.875),
    temporalInterpolationScale: source.number("temporal_interpolation_scale", 1),
    useRotaryPositionalEmbeddings: source.flag("use_rotary_positional_embeddings", false),
    useLearnedPositionalEmbeddings: source.flag("use_learned_positional_embeddings", false),
    patchBias: source.flag("patch_bias", true),
  };
  checkConfig(config, source);
  return config;
}

/** The activations that diffusers has for the condition's layers. */
const TIMESTEP_ACTIVATIONS = ["silu", "swish", "mish", "gelu", "relu"] as const;

/** Refuses fields that cannot be together. */
function checkConfig(config: CogVideoXTransformer3DConfig, { file }: ModelConfig): void {
  const refuse = (key: string, sentence: string) => {
    throw new ConfigError(`${file} has ${sentence}`, { file, key });
  };
  const { useRotaryPositionalEmbeddings: rotates, useLearnedPositionalEmbeddings: learned } = config;
  const { attentionHeadDim, ofsEmbedDim, timeEmbedDim, patchSizeT = 1 } = config;
  const dim = dimOf(config);
  if (learned && !rotates) {
    refuse(
      "use_learned_positional_embeddings",
      "use_learned_positional_embeddings true: it takes use_rotary_positional_embeddings true as well",
    );
  }
  if (rotates && attentionHeadDim % 16 !== 0) {
    refuse("attention_head_dim", `attention_head_dim ${attentionHeadDim}: rotary positions take a multiple of 16`);
  }
  if ((!rotates || learned) && dim % 16 !== 0) {
    refuse("num_attention_heads", `${dim} features in all heads: fixed positions take a multiple of 16`);
  }
  if ((!rotates || learned) && patchSizeT !== 1) {
    refuse("patch_size_t", `patch_size_t ${patchSizeT}: it takes rotary positions alone`);
  }
  if (ofsEmbedDim !== undefined && ofsEmbedDim !== timeEmbedDim) {
    refuse("ofs_embed_dim", `ofs_embed_dim ${ofsEmbedDim}: it takes time_embed_dim, which is ${timeEmbedDim}`);
  }
  for (
    const [key, scale] of [
      ["spatial_interpolation_scale", config.spatialInterpolationScale],
      ["temporal_interpolation_scale", config.temporalInterpolationScale],
    ] as const
  ) {
    if (!(scale > 0)) refuse(key, `${key} ${scale}: it takes a number above 0`);
  }
}
