/**
 * The autoencoder of Stable Diffusion and Flux, as diffusers' `AutoencoderKL`: pictures to latents and back, whole or
 * in overlapping tiles.
 *
 * @module
 */

import { type LoadOptions, loadParameters } from "../nn/checkpoint.ts";
import { ACTIVATIONS, Conv2d, GroupNorm, Linear } from "../nn/layers.ts";
import { Model, Module } from "../nn/module.ts";
import { openCheckpoint } from "../tensor/safetensors.ts";
import { tensor } from "../tensor/source.ts";
import { attention, concat, type Tensor } from "../tensor/tensor.ts";
import { ModelConfig } from "./config.ts";

/** The fields of the configuration. */
export interface AutoencoderKLConfig {
  /** Channels of a picture. */
  readonly inChannels: number;
  /** Channels of a decoded picture. */
  readonly outChannels: number;
  /** Channels of the latents. */
  readonly latentChannels: number;
  /** Channels at each resolution, the finest first. */
  readonly blockOutChannels: readonly number[];
  /** Residual blocks at each resolution. */
  readonly layersPerBlock: number;
  /** The groups of group norms. */
  readonly normNumGroups: number;
  /** The activation's name. */
  readonly actFn: string;
  /** Whether the coarsest resolution has an attention layer. */
  readonly midBlockAddAttention: boolean;
  /** Whether a convolution follows the encoder. */
  readonly useQuantConv: boolean;
  /** Whether a convolution precedes the decoder. */
  readonly usePostQuantConv: boolean;
  /** The pixels of the pictures that it was trained on. */
  readonly sampleSize: number;
  /** What latents are multiplied by for the transformer. */
  readonly scalingFactor: number;
  /** What is taken from latents before. */
  readonly shiftFactor: number;
}

/** The distribution of latents that an encoded picture has. */
export interface LatentDistribution {
  /** The means, (batch, latentChannels, rows, columns). */
  readonly mean: Tensor;
  /** The logarithms of the variances, within [-30, 20]. */
  readonly logvar: Tensor;
}

const EPS = 1e-6;

type Act = (x: Tensor) => Tensor;

class ResnetBlock2D extends Module {
  norm1: GroupNorm;
  conv1: Conv2d;
  norm2: GroupNorm;
  conv2: Conv2d;
  conv_shortcut?: Conv2d;
  readonly #act: Act;

  constructor(channels: number, filters: number, config: AutoencoderKLConfig) {
    super();
    this.#act = ACTIVATIONS[config.actFn]!;
    this.norm1 = new GroupNorm(config.normNumGroups, channels, { eps: EPS });
    this.conv1 = new Conv2d(channels, filters, { size: 3, padding: 1 });
    this.norm2 = new GroupNorm(config.normNumGroups, filters, { eps: EPS });
    this.conv2 = new Conv2d(filters, filters, { size: 3, padding: 1 });
    if (channels !== filters) this.conv_shortcut = new Conv2d(channels, filters, { size: 1 });
  }

  forward(x: Tensor): Tensor {
    const h = this.conv1.forward(this.#act(this.norm1.forward(x)));
    const shortcut = this.conv_shortcut?.forward(x) ?? x;
    return shortcut.add(this.conv2.forward(this.#act(this.norm2.forward(h))));
  }
}

/** Attention of all pixels with one head. */
class Attention extends Module {
  group_norm: GroupNorm;
  to_q: Linear;
  to_k: Linear;
  to_v: Linear;
  to_out: [Linear];

  constructor(channels: number, config: AutoencoderKLConfig) {
    super();
    this.group_norm = new GroupNorm(config.normNumGroups, channels, { eps: EPS });
    this.to_q = new Linear(channels, channels);
    this.to_k = new Linear(channels, channels);
    this.to_v = new Linear(channels, channels);
    this.to_out = [new Linear(channels, channels)];
  }

  forward(x: Tensor): Tensor {
    const [batch, height, width, channels] = x.shape as [number, number, number, number];
    const tokens = this.group_norm.forward(x).reshape(batch, height * width, channels);
    const head = (layer: Linear) => layer.forward(tokens).unsqueeze(1); // (batch, 1, pixels, channels)
    const attended = attention(head(this.to_q), head(this.to_k), head(this.to_v)).squeeze(1);
    return x.add(this.to_out[0].forward(attended).reshape(batch, height, width, channels));
  }
}

class MidBlock extends Module {
  attentions: Attention[];
  resnets: [ResnetBlock2D, ResnetBlock2D];

  constructor(channels: number, config: AutoencoderKLConfig) {
    super();
    this.attentions = config.midBlockAddAttention ? [new Attention(channels, config)] : [];
    this.resnets = [new ResnetBlock2D(channels, channels, config), new ResnetBlock2D(channels, channels, config)];
  }

  forward(x: Tensor): Tensor {
    let h = this.resnets[0].forward(x);
    for (const attention of this.attentions) h = attention.forward(h);
    return this.resnets[1].forward(h);
  }
}

class Downsample2D extends Module {
  conv: Conv2d;

  constructor(channels: number) {
    super();
    // A zero below and to the right alone, as in diffusers.
    this.conv = new Conv2d(channels, channels, { size: 3, stride: 2, padding: [0, 0, 1, 1] });
  }
}

class Upsample2D extends Module {
  conv: Conv2d;

  constructor(channels: number) {
    super();
    this.conv = new Conv2d(channels, channels, { size: 3, padding: 1 });
  }
}

class DownEncoderBlock2D extends Module {
  resnets: ResnetBlock2D[];
  downsamplers: Downsample2D[];

  constructor(channels: readonly [number, number], options: { last: boolean }, config: AutoencoderKLConfig) {
    super();
    const [from, to] = channels;
    this.resnets = residuals(from, to, config.layersPerBlock, config);
    this.downsamplers = options.last ? [] : [new Downsample2D(to)];
  }

  forward(x: Tensor): Tensor {
    let h = x;
    for (const resnet of this.resnets) h = resnet.forward(h);
    for (const { conv } of this.downsamplers) h = conv.forward(h);
    return h;
  }
}

class UpDecoderBlock2D extends Module {
  resnets: ResnetBlock2D[];
  upsamplers: Upsample2D[];

  constructor(channels: readonly [number, number], options: { last: boolean }, config: AutoencoderKLConfig) {
    super();
    const [from, to] = channels;
    this.resnets = residuals(from, to, config.layersPerBlock + 1, config);
    this.upsamplers = options.last ? [] : [new Upsample2D(to)];
  }

  forward(x: Tensor): Tensor {
    let h = x;
    for (const resnet of this.resnets) h = resnet.forward(h);
    for (const { conv } of this.upsamplers) h = conv.forward(h.upsampleNearest(2));
    return h;
  }
}

function residuals(from: number, to: number, count: number, config: AutoencoderKLConfig): ResnetBlock2D[] {
  return Array.from({ length: count }, (_, i) => new ResnetBlock2D(i === 0 ? from : to, to, config));
}

class Encoder extends Module {
  conv_in: Conv2d;
  down_blocks: DownEncoderBlock2D[];
  mid_block: MidBlock;
  conv_norm_out: GroupNorm;
  conv_out: Conv2d;
  readonly #act: Act;

  constructor(config: AutoencoderKLConfig) {
    super();
    const sizes = config.blockOutChannels;
    const coarse = sizes.at(-1)!;
    this.#act = ACTIVATIONS[config.actFn]!;
    this.conv_in = new Conv2d(config.inChannels, sizes[0]!, { size: 3, padding: 1 });
    this.down_blocks = sizes.map((size, i) =>
      new DownEncoderBlock2D([sizes[i - 1] ?? size, size], { last: i === sizes.length - 1 }, config)
    );
    this.mid_block = new MidBlock(coarse, config);
    this.conv_norm_out = new GroupNorm(config.normNumGroups, coarse, { eps: EPS });
    this.conv_out = new Conv2d(coarse, 2 * config.latentChannels, { size: 3, padding: 1 });
  }

  forward(x: Tensor): Tensor {
    let h = this.conv_in.forward(x);
    for (const block of this.down_blocks) h = block.forward(h);
    return this.conv_out.forward(this.#act(this.conv_norm_out.forward(this.mid_block.forward(h))));
  }
}

class Decoder extends Module {
  conv_in: Conv2d;
  mid_block: MidBlock;
  up_blocks: UpDecoderBlock2D[];
  conv_norm_out: GroupNorm;
  conv_out: Conv2d;
  readonly #act: Act;

  constructor(config: AutoencoderKLConfig) {
    super();
    const sizes = config.blockOutChannels.toReversed();
    this.#act = ACTIVATIONS[config.actFn]!;
    this.conv_in = new Conv2d(config.latentChannels, sizes[0]!, { size: 3, padding: 1 });
    this.mid_block = new MidBlock(sizes[0]!, config);
    this.up_blocks = sizes.map((size, i) =>
      new UpDecoderBlock2D([sizes[i - 1] ?? size, size], { last: i === sizes.length - 1 }, config)
    );
    this.conv_norm_out = new GroupNorm(config.normNumGroups, sizes.at(-1)!, { eps: EPS });
    this.conv_out = new Conv2d(sizes.at(-1)!, config.outChannels, { size: 3, padding: 1 });
  }

  forward(z: Tensor): Tensor {
    let h = this.mid_block.forward(this.conv_in.forward(z));
    for (const block of this.up_blocks) h = block.forward(h);
    return this.conv_out.forward(this.#act(this.conv_norm_out.forward(h)));
  }
}

/** How a picture is cut into tiles: each dimension of input and output, and how much of two tiles is mixed. */
interface Tiling {
  /** The size of a tile of the input. */
  readonly tile: number;
  /** From one tile of the input to the next. */
  readonly step: number;
  /** How much of a tile of the output is mixed with its neighbour. */
  readonly blend: number;
  /** What is kept of a tile of the output. */
  readonly keep: number;
}

/** The share of a tile that overlaps the next. */
const OVERLAP = 0.25;

/** The autoencoder. Pictures and latents are (batch, channels, rows, columns), as in diffusers. */
export class AutoencoderKL extends Model {
  /** The configuration. */
  readonly config: AutoencoderKLConfig;
  /** @internal Pictures to moments. */
  encoder: Encoder;
  /** @internal Latents to pictures. */
  decoder: Decoder;
  /** After the encoder, where a checkpoint has it. */
  quant_conv?: Conv2d;
  /** Before the decoder, where a checkpoint has it. */
  post_quant_conv?: Conv2d;
  #tileSampleSize: number;
  #tiling = false;
  #slicing = false;

  /** A model of a configuration, without values. */
  constructor(source: ModelConfig) {
    super(source.fields, "diffusion_pytorch_model");
    const config = readConfig(source);
    this.config = config;
    this.encoder = new Encoder(config);
    this.decoder = new Decoder(config);
    const { latentChannels } = config;
    if (config.useQuantConv) this.quant_conv = new Conv2d(2 * latentChannels, 2 * latentChannels, { size: 1 });
    if (config.usePostQuantConv) this.post_quant_conv = new Conv2d(latentChannels, latentChannels, { size: 1 });
    this.#tileSampleSize = config.sampleSize;
  }

  /**
   * Loads a model.
   *
   * @param folder The folder with `config.json` and the weights.
   * @param options Whether with its weights.
   * @returns The model; its weights are read when they are needed.
   */
  static async load(folder: string, { weights = true }: LoadOptions = {}): Promise<AutoencoderKL> {
    const model = new AutoencoderKL(await ModelConfig.read(folder, "AutoencoderKL"));
    if (weights) loadParameters(model, openCheckpoint(folder));
    return model;
  }

  /** How many pixels a latent is wide. */
  get scaleFactor(): number {
    return 2 ** (this.config.blockOutChannels.length - 1);
  }

  /** Whether large pictures are taken in tiles. */
  get useTiling(): boolean {
    return this.#tiling;
  }

  /** Whether pictures of a batch are taken one by one. */
  get useSlicing(): boolean {
    return this.#slicing;
  }

  /**
   * Takes pictures larger than a tile in overlapping tiles, which bounds the memory that they need.
   *
   * @param options The pixels of a tile; `sample_size` by default.
   */
  enableTiling(options: { tileSampleSize?: number } = {}): void {
    const { tileSampleSize = this.config.sampleSize } = options;
    if (!Number.isInteger(tileSampleSize) || tileSampleSize < 4 * this.scaleFactor) {
      throw new RangeError(`A tile has at least ${4 * this.scaleFactor} pixels a side, got ${tileSampleSize}`);
    }
    this.#tileSampleSize = tileSampleSize;
    this.#tiling = true;
  }

  /** Takes pictures whole. */
  disableTiling(): void {
    this.#tiling = false;
  }

  /** Takes pictures of a batch one by one. */
  enableSlicing(): void {
    this.#slicing = true;
  }

  /** Takes a batch at once. */
  disableSlicing(): void {
    this.#slicing = false;
  }

  /**
   * Encodes pictures.
   *
   * @param x Pictures within [-1, 1], (batch, inChannels, height, width).
   * @returns The distribution of their latents.
   */
  encode(x: Tensor): LatentDistribution {
    const size = Math.floor(this.#tileSampleSize / this.scaleFactor);
    const tiling = {
      tile: this.#tileSampleSize,
      step: Math.floor(this.#tileSampleSize * (1 - OVERLAP)),
      blend: Math.floor(size * OVERLAP),
      keep: size - Math.floor(size * OVERLAP),
    };
    const encodeTile = (tile: Tensor) => {
      const moments = this.encoder.forward(tile);
      return this.quant_conv?.forward(moments) ?? moments;
    };
    const [mean, logvar] = this.#each(x, tiling, encodeTile).chunk(2, 1) as [Tensor, Tensor];
    const bound = (value: number) => tensor([value]).cast(logvar.dtype);
    return { mean, logvar: logvar.maximum(bound(-30)).minimum(bound(20)) };
  }

  /**
   * Decodes latents.
   *
   * @param z Latents, (batch, latentChannels, rows, columns), not scaled and shifted any more.
   * @returns Pictures, about [-1, 1], (batch, outChannels, height, width).
   */
  decode(z: Tensor): Tensor {
    const size = Math.floor(this.#tileSampleSize / this.scaleFactor);
    const blend = Math.floor(this.#tileSampleSize * OVERLAP);
    const tiling = { tile: size, step: Math.floor(size * (1 - OVERLAP)), blend, keep: this.#tileSampleSize - blend };
    return this.#each(z, tiling, (tile) => this.decoder.forward(this.post_quant_conv?.forward(tile) ?? tile));
  }

  /** Applies a function of (batch, rows, columns, channels) to what is (batch, channels, rows, columns). */
  #each(x: Tensor, tiling: Tiling, apply: (x: Tensor) => Tensor): Tensor {
    const whole = x.permute(0, 2, 3, 1);
    const tiled = this.#tiling && (x.size(2) > tiling.tile || x.size(3) > tiling.tile);
    const one = (part: Tensor) => tiled ? inTiles(part, tiling, apply) : apply(part);
    const batch = x.size(0);
    const parts = this.#slicing && batch > 1 ? whole.split(new Array<number>(batch).fill(1), 0).map(one) : [one(whole)];
    return concat(parts, 0).permute(0, 3, 1, 2);
  }
}

/** Applies a function tile by tile; each is mixed with what its upper and left neighbours became. */
function inTiles(x: Tensor, tiling: Tiling, apply: (x: Tensor) => Tensor): Tensor {
  const { tile, step, blend, keep } = tiling;
  const cut = (t: Tensor, axis: number, start: number, size: number) =>
    t.slice(axis, start, Math.min(start + size, t.size(axis)));
  const rows: Tensor[] = [];
  let above: Tensor[] = [];
  for (let i = 0; i < x.size(1); i += step) {
    const row: Tensor[] = [];
    for (let j = 0; j < x.size(2); j += step) {
      let done = apply(cut(cut(x, 1, i, tile), 2, j, tile));
      const [upper, left] = [above[row.length], row.at(-1)];
      if (upper) done = mix(upper, done, { axis: 1, extent: blend });
      if (left) done = mix(left, done, { axis: 2, extent: blend });
      row.push(done);
    }
    rows.push(concat(row.map((done) => cut(cut(done, 1, 0, keep), 2, 0, keep)), 2));
    above = row;
  }
  return concat(rows, 1);
}

/** The second tile, whose beginning fades in from the end of the first. */
function mix(a: Tensor, b: Tensor, options: { axis: 1 | 2; extent: number }): Tensor {
  const { axis } = options;
  const extent = Math.min(a.size(axis), b.size(axis), options.extent);
  if (extent === 0) return b;
  const shares = Float32Array.from({ length: extent }, (_, i) => i / extent);
  const share = tensor(shares, { shape: axis === 1 ? [extent, 1, 1] : [extent, 1] }).cast(b.dtype);
  const from = a.slice(axis, a.size(axis) - extent).mul(share.neg().add(1));
  return concat([from.add(b.slice(axis, 0, extent).mul(share)), b.slice(axis, extent)], axis);
}

function readConfig(source: ModelConfig): AutoencoderKLConfig {
  const blockOutChannels = source.counts("block_out_channels", [64]);
  source.every("down_block_types", "DownEncoderBlock2D");
  source.every("up_block_types", "UpDecoderBlock2D");
  return {
    inChannels: source.count("in_channels", 3),
    outChannels: source.count("out_channels", 3),
    latentChannels: source.count("latent_channels", 4),
    blockOutChannels,
    layersPerBlock: source.count("layers_per_block", 1),
    normNumGroups: source.count("norm_num_groups", 32),
    actFn: source.choice("act_fn", Object.keys(ACTIVATIONS), "silu"),
    midBlockAddAttention: source.flag("mid_block_add_attention", true),
    useQuantConv: source.flag("use_quant_conv", true),
    usePostQuantConv: source.flag("use_post_quant_conv", true),
    sampleSize: source.count("sample_size", 32),
    scalingFactor: source.number("scaling_factor", 0.18215),
    shiftFactor: source.optionalNumber("shift_factor") ?? 0,
  };
}
