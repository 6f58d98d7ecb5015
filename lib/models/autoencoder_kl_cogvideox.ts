/**
 * The autoencoder of CogVideoX, as diffusers' `AutoencoderKLCogVideoX`: videos to latents and back, a few frames at a
 * time, whole or in overlapping tiles.
 *
 * @module
 */

import { BudgetError, ConfigError } from "../errors.ts";
import { byteSize, type Dtype } from "../graph/dtypes.ts";
import { leaf, RATE } from "../graph/node.ts";
import { sizeOf } from "../graph/ops.ts";
import { type LoadOptions, loadParameters } from "../nn/checkpoint.ts";
import { ACTIVATIONS, Conv2d, Conv3d, GroupNorm } from "../nn/layers.ts";
import { Model, Module } from "../nn/module.ts";
import { Device } from "../tensor/device.ts";
import { type CompiledFunction, compileFunction, type KernelChoices } from "../tensor/function.ts";
import { toArray } from "../tensor/realize.ts";
import { openCheckpoint } from "../tensor/safetensors.ts";
import { tensor } from "../tensor/source.ts";
import { concat, Tensor } from "../tensor/tensor.ts";
import type { LatentDistribution } from "./autoencoder_kl.ts";
import { ModelConfig } from "./config.ts";
import {
  Canvas,
  crop,
  type Cut,
  cutAtSteps,
  cutEvenly,
  extentOf,
  frameBatches,
  joinFrames,
  joinVideos,
  type VideoFrames,
  type VideoShape,
} from "./frame_tiles.ts";

/** The fields of the configuration. */
export interface AutoencoderKLCogVideoXConfig {
  /** Channels of a video. */
  readonly inChannels: number;
  /** Channels of a decoded video. */
  readonly outChannels: number;
  /** Channels of the latents. */
  readonly latentChannels: number;
  /** Channels at each resolution, the finest first. */
  readonly blockOutChannels: readonly number[];
  /** Residual blocks at each resolution. */
  readonly layersPerBlock: number;
  /** The activation's name. */
  readonly actFn: string;
  /** What group norms add to the variance. */
  readonly normEps: number;
  /** The groups of group norms. */
  readonly normNumGroups: number;
  /** How many frames become one latent frame. */
  readonly temporalCompressionRatio: number;
  /** Rows of pixels that it was trained on. */
  readonly sampleHeight: number;
  /** Pixels in a row that it was trained on. */
  readonly sampleWidth: number;
  /** What latents are multiplied by for the transformer. */
  readonly scalingFactor: number;
  /** Whether the latents of a given picture are divided by it instead. */
  readonly invertScaleLatents: boolean;
  /** Whether a convolution follows the encoder. */
  readonly useQuantConv: boolean;
  /** Whether a convolution precedes the decoder. */
  readonly usePostQuantConv: boolean;
}

/** How large videos are cut into tiles. */
export interface VideoTiling {
  /** Rows of pixels of a tile; half of `sample_height` at first. */
  tileSampleMinHeight?: number | undefined;
  /** Pixels in a row of a tile; half of `sample_width` at first. */
  tileSampleMinWidth?: number | undefined;
  /** The share of a tile that overlaps the next one below, 1 / 6 at first. */
  tileOverlapFactorHeight?: number | undefined;
  /** The share of a tile that overlaps the next one to the right, 1 / 5 at first. */
  tileOverlapFactorWidth?: number | undefined;
}

/** How a video is encoded. */
export interface VideoEncodeOptions {
  /** Where; the default device by default. */
  device?: Device | undefined;
  /** Stops before the next kernel. */
  signal?: AbortSignal | undefined;
}

/** How latents are decoded. */
export interface VideoDecodeOptions extends VideoEncodeOptions {
  /**
   * The most bytes that decoding may take, weights included: latents that need more are taken in tiles, as large as
   * they can be. By default they are whole, or in the tiles of `enableTiling`.
   */
  memoryBudget?: number | undefined;
}

/** A video that is to be decoded. */
export interface DecodeShape {
  /** How many videos at once; 1 by default. */
  batch?: number;
  /** Rows of pixels. */
  height: number;
  /** Pixels in a row. */
  width: number;
  /** How many frames. */
  numFrames: number;
  /** As of `decode`. */
  memoryBudget?: number | undefined;
}

/** How a video is decoded and what that takes, in bytes. */
export interface DecodePlan {
  /** Rows and columns of tiles; one of each where it is whole. */
  readonly tiles: { readonly rows: number; readonly columns: number };
  /** Whether all tiles of some frames come before the next frames, or all frames of a tile before the next tile. */
  readonly order: "frames" | "tiles";
  /** Weights as kernels take them. */
  readonly weights: number;
  /** The frames before, of each convolution over frames, of those tiles that are begun. */
  readonly caches: number;
  /** What kernels work in. */
  readonly arena: number;
  /** Frames that are not handed over yet. */
  readonly frames: number;
  /** All of it. */
  readonly total: number;
}

/** The eps of norms that no configuration knows of. */
const EPS = 1e-6;

/** Frames that are encoded at once; those that remain go with the first ones. */
const SAMPLE_FRAMES = 8;

/** Latent frames that are decoded at once; those that remain go with the first ones. */
const LATENT_FRAMES = 2;

/** What convolutions over frames saw of the frames before, and what they leave for those after. */
class FrameCaches {
  /** What is left, by name, in the order of the convolutions. */
  readonly after: Record<string, Tensor> = {};
  readonly #before: Readonly<Record<string, Tensor>>;
  readonly #last: boolean;
  #count = 0;

  /** Caches after some frames, if any; `last` where no frames come after these. */
  constructor(before: Readonly<Record<string, Tensor>>, options: { last: boolean }) {
    this.#before = before;
    this.#last = options.last;
  }

  /** What the next convolution saw of the frames before, if any; of x, it leaves some frames for those after. */
  exchange(x: Tensor, frames: number): Tensor | undefined {
    const name = `cache${this.#count++}`;
    const before = this.#before[name];
    if (!this.#last) this.after[name] = lastFrames(x, before, frames);
    return before;
  }
}

/** The last of some frames and those before them; the first one is repeated where there are none. */
function lastFrames(x: Tensor, before: Tensor | undefined, frames: number): Tensor {
  const count = x.size(1);
  if (count >= frames) return x.slice(1, count - frames);
  const missing = frames - count;
  const [batch = 0, , ...rest] = x.shape;
  const earlier = before?.slice(1, before.size(1) - missing) ?? x.slice(1, 0, 1).expand(batch, missing, ...rest);
  return concat([earlier, x], 1);
}

/** The size of kernels over frames. */
const SIZE = 3;

/** A convolution over frames that knows those before. */
class CausalConv3d extends Module {
  conv: Conv3d;

  constructor(channels: number, filters: number) {
    super();
    this.conv = new Conv3d(channels, filters, { size: SIZE, padding: 1 });
  }

  forward(x: Tensor, caches: FrameCaches): Tensor {
    return this.conv.forward(x, caches.exchange(x, SIZE - 1));
  }
}

/** A convolution of each pixel alone. */
class PixelConv3d extends Module {
  conv: Conv3d;

  constructor(channels: number, filters: number) {
    super();
    this.conv = new Conv3d(channels, filters, { size: 1 });
  }
}

/** Group norm, with a scale and a shift that follow from the latents at the same place. */
class SpatialNorm3D extends Module {
  norm_layer: GroupNorm;
  conv_y: PixelConv3d;
  conv_b: PixelConv3d;

  constructor(channels: number, latentChannels: number, groups: number) {
    super();
    this.norm_layer = new GroupNorm(groups, channels, { eps: EPS });
    this.conv_y = new PixelConv3d(latentChannels, channels);
    this.conv_b = new PixelConv3d(latentChannels, channels);
  }

  forward(x: Tensor, latents: Tensor): Tensor {
    return this.norm_layer.forward(x, {
      // Of the latents themselves: a convolution of single pixels is the same before they are enlarged.
      scale: this.conv_y.conv.forward(latents),
      shift: this.conv_b.conv.forward(latents),
      firstApart: isFirstApart(x.size(1)),
    });
  }
}

/** Whether the first of some frames is not one of a pair. */
const isFirstApart = (frames: number) => frames > 1 && frames % 2 === 1;

/** A norm of the encoder, or of the decoder. */
type Norm = GroupNorm | SpatialNorm3D;

const normalize = (norm: Norm, x: Tensor, latents: Tensor | undefined) =>
  norm instanceof SpatialNorm3D ? norm.forward(x, latents!) : norm.forward(x);

class ResnetBlock3D extends Module {
  norm1: Norm;
  conv1: CausalConv3d;
  norm2: Norm;
  conv2: CausalConv3d;
  conv_shortcut?: Conv3d;
  readonly #act: (x: Tensor) => Tensor;

  constructor(channels: number, filters: number, options: BlockOptions) {
    super();
    const { config, decodes } = options;
    const norm = (size: number) =>
      decodes
        ? new SpatialNorm3D(size, config.latentChannels, config.normNumGroups)
        : new GroupNorm(config.normNumGroups, size, { eps: config.normEps });
    this.#act = ACTIVATIONS[config.actFn]!;
    this.norm1 = norm(channels);
    this.conv1 = new CausalConv3d(channels, filters);
    this.norm2 = norm(filters);
    this.conv2 = new CausalConv3d(filters, filters);
    if (channels !== filters) this.conv_shortcut = new Conv3d(channels, filters, { size: 1 });
  }

  forward(x: Tensor, caches: FrameCaches, latents?: Tensor): Tensor {
    const h = this.conv1.forward(this.#act(normalize(this.norm1, x, latents)), caches);
    const shortcut = this.conv_shortcut?.forward(x) ?? x;
    return shortcut.add(this.conv2.forward(this.#act(normalize(this.norm2, h, latents)), caches));
  }
}

/** Of which half of the model a block is. */
interface BlockOptions {
  readonly config: AutoencoderKLCogVideoXConfig;
  readonly decodes: boolean;
}

class MidBlock3D extends Module {
  resnets: ResnetBlock3D[];

  constructor(channels: number, options: BlockOptions) {
    super();
    this.resnets = residuals([channels, channels], 2, options);
  }

  forward(x: Tensor, caches: FrameCaches, latents?: Tensor): Tensor {
    return this.resnets.reduce((h, resnet) => resnet.forward(h, caches, latents), x);
  }
}

/** Frames as pictures of one batch, for what knows no time. */
function eachFrame(x: Tensor, apply: (pictures: Tensor) => Tensor): Tensor {
  const [batch = 0, frames = 0, ...picture] = x.shape;
  const applied = apply(x.reshape(batch * frames, ...picture));
  return applied.reshape(batch, frames, ...applied.shape.slice(1));
}

/** Applies a function to frames, but leaves the first one as it is where it is not one of a pair. */
function pairs(x: Tensor, apply: (frames: Tensor) => Tensor): Tensor {
  const count = x.size(1);
  if (count === 1) return x;
  if (!isFirstApart(count)) return apply(x);
  return concat([x.slice(1, 0, 1), apply(x.slice(1, 1))], 1);
}

/** The mean of each two frames. */
function meanOfPairs(x: Tensor): Tensor {
  const [batch = 0, frames = 0, ...picture] = x.shape;
  const [a, b] = x.reshape(batch, frames / 2, 2, ...picture).chunk(2, 2) as [Tensor, Tensor];
  return a.add(b).mul(0.5).squeeze(2);
}

/** Each frame twice. */
function twice(x: Tensor): Tensor {
  const [batch = 0, frames = 0, ...picture] = x.shape;
  return x.unsqueeze(2).expand(batch, frames, 2, ...picture).reshape(batch, 2 * frames, ...picture);
}

class Downsample3D extends Module {
  conv: Conv2d;
  readonly #compressTime: boolean;

  constructor(channels: number, options: { compressTime: boolean }) {
    super();
    // A zero below and to the right alone, as in diffusers.
    this.conv = new Conv2d(channels, channels, { size: 3, stride: 2, padding: [0, 0, 1, 1] });
    this.#compressTime = options.compressTime;
  }

  forward(x: Tensor): Tensor {
    return eachFrame(this.#compressTime ? pairs(x, meanOfPairs) : x, (pictures) => this.conv.forward(pictures));
  }
}

class Upsample3D extends Module {
  conv: Conv2d;
  readonly #compressTime: boolean;

  constructor(channels: number, options: { compressTime: boolean }) {
    super();
    this.conv = new Conv2d(channels, channels, { size: 3, padding: 1 });
    this.#compressTime = options.compressTime;
  }

  forward(x: Tensor): Tensor {
    const enlarged = eachFrame(x, (pictures) => this.conv.forward(pictures.upsampleNearest(2)));
    // A frame that is there twice is convolved once.
    return this.#compressTime ? pairs(enlarged, twice) : enlarged;
  }
}

class DownBlock3D extends Module {
  resnets: ResnetBlock3D[];
  downsamplers: Downsample3D[];

  constructor(channels: readonly [number, number], options: BlockOptions & { index: number }) {
    super();
    const { config, index } = options;
    this.resnets = residuals(channels, config.layersPerBlock, options);
    this.downsamplers = index === config.blockOutChannels.length - 1
      ? []
      : [new Downsample3D(channels[1], { compressTime: index < timeLevels(config) })];
  }

  forward(x: Tensor, caches: FrameCaches): Tensor {
    const h = this.resnets.reduce((h, resnet) => resnet.forward(h, caches), x);
    return this.downsamplers.reduce((h, downsampler) => downsampler.forward(h), h);
  }
}

class UpBlock3D extends Module {
  resnets: ResnetBlock3D[];
  upsamplers: Upsample3D[];

  constructor(channels: readonly [number, number], options: BlockOptions & { index: number }) {
    super();
    const { config, index } = options;
    this.resnets = residuals(channels, config.layersPerBlock + 1, options);
    this.upsamplers = index === config.blockOutChannels.length - 1
      ? []
      : [new Upsample3D(channels[1], { compressTime: index < timeLevels(config) })];
  }

  forward(x: Tensor, caches: FrameCaches, latents: Tensor): Tensor {
    const h = this.resnets.reduce((h, resnet) => resnet.forward(h, caches, latents), x);
    return this.upsamplers.reduce((h, upsampler) => upsampler.forward(h), h);
  }
}

function residuals([from, to]: readonly [number, number], count: number, options: BlockOptions): ResnetBlock3D[] {
  return Array.from({ length: count }, (_, i) => new ResnetBlock3D(i === 0 ? from : to, to, options));
}

/** How often the number of frames is halved. */
const timeLevels = (config: AutoencoderKLCogVideoXConfig) => Math.floor(Math.log2(config.temporalCompressionRatio));

class Encoder3D extends Module {
  conv_in: CausalConv3d;
  down_blocks: DownBlock3D[];
  mid_block: MidBlock3D;
  norm_out: GroupNorm;
  conv_out: CausalConv3d;

  constructor(config: AutoencoderKLCogVideoXConfig) {
    super();
    const options = { config, decodes: false };
    const sizes = config.blockOutChannels;
    const coarse = sizes.at(-1)!;
    this.conv_in = new CausalConv3d(config.inChannels, sizes[0]!);
    this.down_blocks = sizes.map((size, index) =>
      new DownBlock3D([sizes[index - 1] ?? size, size], { ...options, index })
    );
    this.mid_block = new MidBlock3D(coarse, options);
    this.norm_out = new GroupNorm(config.normNumGroups, coarse, { eps: EPS });
    this.conv_out = new CausalConv3d(coarse, 2 * config.latentChannels);
  }

  forward(x: Tensor, caches: FrameCaches): Tensor {
    let h = this.conv_in.forward(x, caches);
    for (const block of this.down_blocks) h = block.forward(h, caches);
    h = this.mid_block.forward(h, caches);
    return this.conv_out.forward(this.norm_out.forward(h).silu(), caches);
  }
}

class Decoder3D extends Module {
  conv_in: CausalConv3d;
  mid_block: MidBlock3D;
  up_blocks: UpBlock3D[];
  norm_out: SpatialNorm3D;
  conv_out: CausalConv3d;

  constructor(config: AutoencoderKLCogVideoXConfig) {
    super();
    const options = { config, decodes: true };
    const sizes = config.blockOutChannels.toReversed();
    this.conv_in = new CausalConv3d(config.latentChannels, sizes[0]!);
    this.mid_block = new MidBlock3D(sizes[0]!, options);
    this.up_blocks = sizes.map((size, index) => new UpBlock3D([sizes[index - 1] ?? size, size], { ...options, index }));
    this.norm_out = new SpatialNorm3D(sizes.at(-1)!, config.latentChannels, config.normNumGroups);
    this.conv_out = new CausalConv3d(sizes.at(-1)!, config.outChannels);
  }

  forward(latents: Tensor, caches: FrameCaches): Tensor {
    let h = this.mid_block.forward(this.conv_in.forward(latents, caches), caches, latents);
    for (const block of this.up_blocks) h = block.forward(h, caches, latents);
    return this.conv_out.forward(this.norm_out.forward(h, latents).silu(), caches);
  }
}

/** The half of the model that is used. */
type Direction = "encode" | "decode";

/** Where both axes are cut. */
interface Cuts {
  readonly rows: readonly Cut[];
  readonly columns: readonly Cut[];
}

/** How something is taken: in which parts, and which come first. */
interface Schedule {
  readonly cuts: Cuts;
  readonly order: "frames" | "tiles";
}

/** A tile of one or more videos, and what it left of its frames before. */
interface Unit {
  readonly group: number;
  readonly first: number;
  readonly count: number;
  readonly row: number;
  readonly column: number;
  state: Record<string, Tensor>;
}

/** @internal What some frames are computed from, or what they give: `input` or `output`, channels last, and caches. */
export type BatchInputs = Record<string, Tensor>;

/** @internal A function of some frames. */
export type BatchFunction = CompiledFunction<BatchInputs, BatchInputs>;

/** @internal A call of a function, with arguments that have no values. */
export interface DecodeFunctionCall {
  /** The function. */
  readonly fn: BatchFunction;
  /** Arguments of the shapes that it gets. */
  readonly inputs: Readonly<Record<string, Tensor>>;
}

/** The least cells of a tile that is chosen for a budget, on a side of the latents. */
const LEAST_TILE = 8;

/** The least cells by which such tiles overlap. */
const LEAST_OVERLAP = 4;

/** The share of them that overlaps at least: the larger one of diffusers' two. */
const OVERLAP = 1 / 5;

/** The autoencoder. Videos and latents are (batch, channels, frames, rows, columns), as in diffusers. */
export class AutoencoderKLCogVideoX extends Model {
  /** The configuration. */
  readonly config: AutoencoderKLCogVideoXConfig;
  /** @internal Videos to moments. */
  encoder: Encoder3D;
  /** @internal Latents to videos. */
  decoder: Decoder3D;
  /** After the encoder, where a checkpoint has it. */
  quant_conv?: Conv3d;
  /** Before the decoder, where a checkpoint has it. */
  post_quant_conv?: Conv3d;
  #tiling: { [K in keyof VideoTiling]-?: number };
  #useTiling = false;
  #slicing = false;
  /** By where they run; those that nothing runs on are planned with. */
  readonly #functions = new WeakMap<object, Map<string, BatchFunction>>();
  /** Where functions come from that are not recorded. */
  #read: ((name: string) => BatchFunction) | undefined;
  #choices: KernelChoices | undefined;

  /** A model of a configuration, without values. */
  constructor(source: ModelConfig) {
    super(source.fields, "diffusion_pytorch_model");
    const config = readConfig(source);
    this.config = config;
    this.encoder = new Encoder3D(config);
    this.decoder = new Decoder3D(config);
    // Of the sizes that diffusers gives them, which are not the latents'.
    const { outChannels } = config;
    if (config.useQuantConv) this.quant_conv = new Conv3d(2 * outChannels, 2 * outChannels, { size: 1 });
    if (config.usePostQuantConv) this.post_quant_conv = new Conv3d(outChannels, outChannels, { size: 1 });
    this.#tiling = {
      tileSampleMinHeight: Math.floor(config.sampleHeight / 2),
      tileSampleMinWidth: Math.floor(config.sampleWidth / 2),
      tileOverlapFactorHeight: 1 / 6,
      tileOverlapFactorWidth: 1 / 5,
    };
  }

  /**
   * Loads a model.
   *
   * @param folder The folder with `config.json` and the weights.
   * @param options Whether with its weights.
   * @returns The model; its weights are read when they are needed.
   */
  static async load(folder: string, { weights = true }: LoadOptions = {}): Promise<AutoencoderKLCogVideoX> {
    const model = new AutoencoderKLCogVideoX(await ModelConfig.read(folder, "AutoencoderKLCogVideoX"));
    if (weights) loadParameters(model, openCheckpoint(folder));
    return model;
  }

  /** How many pixels a latent is wide. */
  get scaleFactor(): number {
    return 2 ** (this.config.blockOutChannels.length - 1);
  }

  /** Whether large videos are taken in tiles. */
  get useTiling(): boolean {
    return this.#useTiling;
  }

  /** Whether videos of a batch are taken one by one. */
  get useSlicing(): boolean {
    return this.#slicing;
  }

  /**
   * Takes videos larger than a tile in overlapping tiles, which bounds the memory that they need.
   *
   * @param tiling What a tile is; what is not given stays as it is.
   */
  enableTiling(tiling: VideoTiling = {}): void {
    const merged = { ...this.#tiling };
    for (const key of Object.keys(merged) as (keyof VideoTiling)[]) merged[key] = tiling[key] ?? merged[key];
    for (const key of ["tileSampleMinHeight", "tileSampleMinWidth"] as const) {
      if (!Number.isInteger(merged[key]) || merged[key] < this.scaleFactor) {
        throw new RangeError(`A tile has at least ${this.scaleFactor} pixels a side, got ${key} ${merged[key]}`);
      }
    }
    for (
      const [key, side] of [
        ["tileOverlapFactorHeight", merged.tileSampleMinHeight],
        ["tileOverlapFactorWidth", merged.tileSampleMinWidth],
      ] as const
    ) {
      const cells = Math.floor(side / this.scaleFactor);
      if (!(merged[key] >= 0 && Math.floor(cells * (1 - merged[key])) >= 1)) {
        throw new RangeError(
          `Tiles of ${cells} latents a side cannot overlap by ${key} ${
            merged[key]
          }: it is from 0 and leaves at least ` +
            "one latent from tile to tile",
        );
      }
    }
    this.#tiling = merged;
    this.#useTiling = true;
  }

  /** Takes videos whole. */
  disableTiling(): void {
    this.#useTiling = false;
  }

  /** Takes videos of a batch one by one. */
  enableSlicing(): void {
    this.#slicing = true;
  }

  /** Takes a batch at once. */
  disableSlicing(): void {
    this.#slicing = false;
  }

  /**
   * Encodes videos, some frames at a time.
   *
   * @param x Videos within [-1, 1], (batch, inChannels, frames, height, width).
   * @param options Where; a signal.
   * @returns The distribution of their latents.
   */
  async encode(x: Tensor, options: VideoEncodeOptions = {}): Promise<LatentDistribution> {
    const moments = await joinFrames(this.#batches("encode", x, options));
    const { shape: [batch, channels, ...rest], data } = moments;
    const half = data.length / batch / 2;
    const shape = [batch, channels / 2, ...rest];
    const [mean, logvar] = [new Float32Array(data.length / 2), new Float32Array(data.length / 2)];
    for (let b = 0; b < batch; b++) {
      mean.set(data.subarray(2 * b * half, (2 * b + 1) * half), b * half);
      logvar.set(data.subarray((2 * b + 1) * half, (2 * b + 2) * half), b * half);
    }
    const bounded = logvar.map((v) => Math.min(Math.max(v, -30), 20));
    return { mean: tensor(mean, { shape }), logvar: tensor(bounded, { shape }) };
  }

  /**
   * Decodes latents into one tensor. {@linkcode decodeFrames} hands frames over as they come.
   *
   * @param z Latents, (batch, latentChannels, frames, rows, columns), not scaled any more.
   * @param options Where; a budget of memory; a signal.
   * @returns Videos, about [-1, 1], f32 (batch, outChannels, frames, height, width).
   * @throws {BudgetError} If the budget is too small for the smallest tile
   */
  async decode(z: Tensor, options: VideoDecodeOptions = {}): Promise<Tensor> {
    const { shape, data } = await joinFrames(this.#batches("decode", z, options));
    return tensor(data, { shape });
  }

  /**
   * Decodes latents and hands the frames over as they come: the memory that it takes does not grow with their number,
   * but where tiles are decoded one after another.
   *
   * @param z Latents, (batch, latentChannels, frames, rows, columns), not scaled any more.
   * @param options Where; a budget of memory; a signal.
   * @returns The next frames of all videos, about [-1, 1].
   * @throws {BudgetError} If the budget is too small for the smallest tile
   */
  decodeFrames(z: Tensor, options: VideoDecodeOptions = {}): AsyncGenerator<VideoFrames, void> {
    return this.#batches("decode", z, options);
  }

  /**
   * Says how latents will be decoded and what that takes. Nothing is computed.
   *
   * @param shape The video.
   * @returns The tiles and the bytes.
   * @throws {BudgetError} If the budget is too small for the smallest tile
   */
  planDecode(video: DecodeShape): DecodePlan {
    const shape = this.#latentShape(video);
    const { memoryBudget } = video;
    return this.#schedule("decode", shape, memoryBudget).plan ?? this.#measure(shape, this.#tiled("decode", shape));
  }

  #latentShape({ batch = 1, height, width, numFrames }: DecodeShape): VideoShape {
    const { scaleFactor, config } = this;
    const frames = Math.floor((numFrames - 1) / 2 ** timeLevels(config)) + 1;
    const shape = [batch, config.latentChannels, frames, height / scaleFactor, width / scaleFactor] as const;
    for (const size of shape) {
      if (!Number.isInteger(size) || size < 1) {
        throw new RangeError(
          `Cannot decode ${batch} videos of ${numFrames} frames of ${height} by ${width}: height and width are ` +
            `multiples of ${scaleFactor}`,
        );
      }
    }
    return shape;
  }

  /**
   * @internal
   * The calls that decoding latents takes, without values.
   *
   * @param shape The video.
   * @param options Where.
   * @returns Functions with arguments: of each size of tile the first frames, those after them, and the last ones.
   */
  decodeCalls(shape: DecodeShape, { device }: { device: Device }): DecodeFunctionCall[] {
    const latents = this.#latentShape(shape);
    const { cuts } = this.#schedule("decode", latents, shape.memoryBudget);
    return this.#tileCalls(latents, cuts).flatMap(({ calls }) =>
      calls.map(({ last, inputs }) => ({ fn: this.#function("decode", { last, device }), inputs }))
    );
  }

  /** @internal Has the kernels of decoding chosen. */
  choose(choices: KernelChoices, { device }: { device: Device }): void {
    this.#choices = choices;
    for (const [key, fn] of this.#functions.get(device) ?? []) if (key.startsWith("decode")) fn.choose(choices);
  }

  /** @internal What {@linkcode restore} takes to decode as this does. */
  get state(): Readonly<Record<string, unknown>> {
    return { config: this.configFields, tiling: this.#useTiling ? this.#tiling : null, slicing: this.#slicing };
  }

  /**
   * @internal
   * A model without weights, that decodes with functions of a file.
   *
   * @param state What another one's `state` was.
   * @param options The file, for messages; its functions by name.
   * @returns The model.
   * @throws {ConfigError} If the state is broken.
   */
  static restore(
    state: Readonly<Record<string, unknown>>,
    options: { file: string; functions: (name: string) => BatchFunction },
  ): AutoencoderKLCogVideoX {
    const { file, functions } = options;
    const { config, tiling, slicing } = state;
    const isRecord = (value: unknown): value is Record<string, number> => typeof value === "object" && value !== null;
    if (!isRecord(config)) throw new ConfigError(`${file} has no configuration of its VAE: save it again`, { file });
    const model = new AutoencoderKLCogVideoX(new ModelConfig(config, file));
    if (isRecord(tiling)) model.enableTiling(tiling);
    if (slicing === true) model.enableSlicing();
    model.#read = functions;
    return model;
  }

  /** Takes frames a few at a time, in tiles where they are wanted. */
  async *#batches(direction: Direction, x: Tensor, options: VideoDecodeOptions): AsyncGenerator<VideoFrames, void> {
    const { signal, memoryBudget } = options;
    const shape = this.#check(direction, x);
    const [batch, , frames] = shape;
    const { cuts, order } = this.#schedule(direction, shape, memoryBudget);
    const device = options.device ?? await Device.default();
    const data = await toArray<"f32">(x.cast("f32"), { device });
    const parts = frameBatches(frames, direction === "decode" ? LATENT_FRAMES : SAMPLE_FRAMES);
    const groups = this.#groups(batch);
    const canvases = new Map<number, (Canvas | undefined)[]>();
    const units = groups.flatMap(({ first, count }, group) =>
      cuts.rows.flatMap((_, row) =>
        cuts.columns.map((_, column): Unit => ({ group, first, count, row, column, state: {} }))
      )
    );
    const step = async (unit: Unit, index: number) => {
      const part = parts[index]!;
      const last = index === parts.length - 1;
      const place = { rows: cuts.rows[unit.row]!, columns: cuts.columns[unit.column]! };
      const input = crop({ data, shape }, { ...part, ...place, batch: unit });
      const fn = this.#function(direction, { last, device });
      const inputs: BatchInputs = { input, ...unit.state };
      const { output, ...state } = await fn.run(inputs, { signal });
      device.release(input.node);
      if (last) release(unit.state, device);
      unit.state = state;
      const made = { shape: output!.shape as unknown as VideoShape, data: await toArray<"f32">(output!, { device }) };
      device.release(output!.node);
      const row = canvases.get(index) ?? [];
      canvases.set(index, row);
      const canvas = row[unit.group] ??= this.#canvas(direction, cuts, made);
      canvas.place(made, unit);
    };
    const finished = (index: number) => {
      const found = canvases.get(index)!;
      canvases.delete(index);
      return joinVideos(found.map((canvas) => canvas!.frames));
    };
    try {
      if (order === "tiles") { for (const unit of units) for (const index of parts.keys()) await step(unit, index); }
      for (const index of parts.keys()) {
        if (order === "frames") { for (const unit of units) await step(unit, index); }
        yield finished(index);
      }
    } finally {
      for (const unit of units) release(unit.state, device);
    }
  }

  /** The frames that tiles like one are put into. */
  #canvas(direction: Direction, cuts: Cuts, { shape: [batch, frames, , , channels] }: VideoFrames): Canvas {
    return new Canvas(cuts, { batch, frames, channels, sizeOf: (cells) => this.#scaled(direction, cells) });
  }

  /** How many cells of the output a number of cells becomes. */
  #scaled(direction: Direction, cells: number): number {
    return direction === "decode" ? cells * this.scaleFactor : Math.floor(cells / this.scaleFactor);
  }

  /** The videos of a batch that are taken together. */
  #groups(batch: number): { first: number; count: number }[] {
    if (!this.#slicing) return [{ first: 0, count: batch }];
    return Array.from({ length: batch }, (_, first) => ({ first, count: 1 }));
  }

  #check(direction: Direction, x: Tensor): VideoShape {
    const { latentChannels, inChannels } = this.config;
    const channels = direction === "decode" ? latentChannels : inChannels;
    if (x.shape.length !== 5 || x.size(1) !== channels || sizeOf(x.shape) === 0) {
      const what = direction === "decode" ? "Latents" : "Videos";
      throw new TypeError(`${what} are (batch, ${channels}, frames, rows, columns), got [${x.shape.join(", ")}]`);
    }
    return x.shape as unknown as VideoShape;
  }

  /** The function of some frames; of the last ones where nothing comes after them. */
  #function(direction: Direction, options: { last: boolean; device?: Device | undefined }) {
    const { last, device } = options;
    const owner = device ?? this;
    const known = this.#functions.get(owner) ?? new Map<string, BatchFunction>();
    this.#functions.set(owner, known);
    const key = `${direction} ${last} ${this.dtype}`;
    let fn = known.get(key);
    if (!fn) {
      const name = `${direction === "decode" ? "vae" : "vae_encoder"}${last ? "_last" : ""}`;
      fn = this.#read?.(name) ?? compileFunction(
        (inputs: BatchInputs) => this.#record(direction, inputs, { last }),
        { device, name, inPlace: true },
      );
      if (this.#choices && device && direction === "decode") fn.choose(this.#choices);
      known.set(key, fn);
    }
    return fn;
  }

  /** Records some frames: what is left for those after, and the output in f32. */
  #record(direction: Direction, { input, ...before }: BatchInputs, { last }: { last: boolean }): BatchInputs {
    const caches = new FrameCaches(before, { last });
    const x = input!.cast(this.dtype);
    const output = direction === "decode"
      ? this.decoder.forward(this.post_quant_conv?.forward(x) ?? x, caches)
      : this.encoder.forward(x, caches);
    const whole = direction === "encode" ? this.quant_conv?.forward(output) ?? output : output;
    // The caches come first: a frame that is kept is copied when it is there, and not held until the end.
    return { ...caches.after, output: whole.cast("f32") };
  }

  /** Where videos are cut: as a budget asks for, as tiling is set, or nowhere. */
  #schedule(direction: Direction, shape: VideoShape, budget?: number): Schedule & { plan?: DecodePlan } {
    return budget === undefined ? this.#tiled(direction, shape) : this.#within(shape, budget);
  }

  #tiled(direction: Direction, [, , , height, width]: VideoShape): Schedule {
    const { tileSampleMinHeight, tileSampleMinWidth, tileOverlapFactorHeight, tileOverlapFactorWidth } = this.#tiling;
    const axis = (pixels: number, overlap: number) => {
      const cells = Math.floor(pixels / this.scaleFactor);
      return direction === "decode"
        ? { tile: cells, output: pixels, overlap }
        : { tile: pixels, output: cells, overlap };
    };
    const rows = axis(tileSampleMinHeight, tileOverlapFactorHeight);
    const columns = axis(tileSampleMinWidth, tileOverlapFactorWidth);
    if (!this.#useTiling || (height <= rows.tile && width <= columns.tile)) {
      return { cuts: { rows: whole(height), columns: whole(width) }, order: "frames" };
    }
    return { cuts: { rows: cutAtSteps(height, rows), columns: cutAtSteps(width, columns) }, order: "tiles" };
  }

  /** The tiles of the least work that stay within a budget. */
  #within(shape: VideoShape, budget: number): Schedule & { plan: DecodePlan } {
    if (!(budget > 0)) throw new RangeError(`A budget of memory is a number of bytes, got ${budget}`);
    const candidates = this.#candidates(shape);
    const planned = (index: number) => {
      const [frames, tiles] = (["frames", "tiles"] as const).map((order) => {
        const schedule = { cuts: candidates[index]!, order };
        return { ...schedule, plan: this.#measure(shape, schedule) };
      }) as [Schedule & { plan: DecodePlan }, Schedule & { plan: DecodePlan }];
      // Frames come as they are ready where there is room for what all tiles keep.
      return frames.plan.total <= Math.max(budget, tiles.plan.total) ? frames : tiles;
    };
    const fits = (index: number) => planned(index).plan.total <= budget;
    // The first that fits of what takes less and less.
    let [low, high] = [0, candidates.length - 1];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (fits(middle)) high = middle;
      else low = middle + 1;
    }
    const byWork = [...candidates.keys()].slice(low).sort((a, b) => workOf(candidates[a]!) - workOf(candidates[b]!));
    const found = byWork.find(fits);
    if (found !== undefined) return planned(found);
    const least = Math.min(...byWork.map((index) => planned(index).plan.total));
    throw new BudgetError(
      `Cannot decode latents of [${
        shape.join(", ")
      }] within ${budget} bytes as the smallest tile takes ${least}: pass ` +
        "a memoryBudget of at least that, or decode fewer at once",
      { least },
    );
  }

  /** Ways to cut latents evenly, by what a tile takes: the largest tile first. */
  #candidates([, , , height, width]: VideoShape): Cuts[] {
    const ways = (size: number) => {
      const found: Cut[][] = [];
      for (let parts = 1;; parts++) {
        const overlap = Math.max(LEAST_OVERLAP, Math.ceil(size / parts * OVERLAP));
        const cuts = cutEvenly(size, { parts, overlap, scale: this.scaleFactor });
        if (parts > 1 && cuts[0]!.size < LEAST_TILE) return found;
        found.push(cuts);
      }
    };
    const columns = ways(width);
    const all = ways(height).flatMap((rows) => columns.map((columns) => ({ rows, columns })));
    return all.sort((a, b) => areaOf(b) - areaOf(a) || workOf(a) - workOf(b));
  }

  /** The calls of each size of tile, and how many tiles are of it. */
  #tileCalls(shape: VideoShape, cuts: Cuts) {
    const [batch, channels, frames] = shape;
    const parts = frameBatches(frames, LATENT_FRAMES);
    const groups = this.#groups(batch);
    const count = groups[0]!.count;
    const tiles = new Map<string, { height: number; width: number; times: number }>();
    for (const rows of cuts.rows) {
      for (const columns of cuts.columns) {
        const key = `${rows.size} ${columns.size}`;
        const known = tiles.get(key);
        tiles.set(key, { height: rows.size, width: columns.size, times: (known?.times ?? 0) + groups.length });
      }
    }
    return [...tiles.values()].map(({ height, width, times }) => {
      let state: BatchInputs = {};
      // The first frames, all like those after them, and the last ones.
      const calls = [...new Set([0, Math.min(1, parts.length - 1), parts.length - 1])].map((index) => {
        const { start, end } = parts[index]!;
        const last = index === parts.length - 1;
        const input = placeholder([count, end - start, height, width, channels], "f32");
        const inputs: BatchInputs = { input, ...state };
        const { output, ...after } = this.#record("decode", inputs, { last });
        if (!last) {
          state = Object.fromEntries(Object.entries(after).map(([k, t]) => [k, placeholder(t.shape, t.dtype)]));
        }
        return { last, inputs, tile: bytesOf(input) + bytesOf(output!) };
      });
      return { calls, times, cache: Object.values(state).reduce((sum, t) => sum + bytesOf(t), 0) };
    });
  }

  /** What decoding takes. */
  #measure(shape: VideoShape, { cuts, order }: Schedule): DecodePlan {
    const [batch, channels, frames, height, width] = shape;
    const parts = frameBatches(frames, LATENT_FRAMES);
    let [weights, arena, tile, allCaches, oneCache] = [0, 0, 0, 0, 0];
    for (const { calls, times, cache } of this.#tileCalls(shape, cuts)) {
      for (const call of calls) {
        const info = this.#function("decode", { last: call.last }).inspect(call.inputs);
        weights = Math.max(weights, info.weightBytes);
        arena = Math.max(arena, info.arenaBytes);
        tile = Math.max(tile, call.tile);
      }
      allCaches += cache * times;
      oneCache = Math.max(oneCache, cache);
    }
    const scaled = (axis: readonly Cut[]) => extentOf(axis, (cells) => this.#scaled("decode", cells));
    const frame = 4 * batch * this.config.outChannels * scaled(cuts.rows) * scaled(cuts.columns);
    const made = parts.map(({ start, end }) => frame * framesOf(end - start, this.config));
    const bytes = {
      weights,
      caches: order === "frames" ? allCaches : oneCache,
      arena,
      // A tile is there twice, on the device and on the host, and the latents.
      frames: 2 * tile + 8 * sizeOf([batch, channels, frames, height, width]) +
        (order === "frames" ? Math.max(...made) : made.reduce((a, b) => a + b)),
    };
    return {
      tiles: { rows: cuts.rows.length, columns: cuts.columns.length },
      order,
      ...bytes,
      total: bytes.weights + bytes.caches + bytes.arena + bytes.frames,
    };
  }
}

/** Stands for a tensor of a type. */
function placeholder(shape: readonly number[], dtype: Dtype): Tensor {
  return new Tensor(leaf(shape, { dtype, rate: RATE.run }));
}

const bytesOf = ({ shape, dtype }: Tensor) => sizeOf(shape) * byteSize(dtype);

/** How many frames latent frames become that are decoded at once. */
function framesOf(latents: number, config: AutoencoderKLCogVideoXConfig): number {
  const ratio = 2 ** timeLevels(config);
  if (latents === 1) return 1;
  return isFirstApart(latents) ? 1 + (latents - 1) * ratio : latents * ratio;
}

/** What is computed, in cells. */
const workOf = ({ rows, columns }: Cuts) => rows.length * columns.length * areaOf({ rows, columns });

/** The cells of the largest tile. */
const areaOf = ({ rows, columns }: Cuts) => rows[0]!.size * columns[0]!.size;

/** An axis in one part. */
const whole = (size: number): Cut[] => [{ start: 0, size, blend: 0, keep: Infinity }];

function release(state: Readonly<Record<string, Tensor>>, device: Device): void {
  for (const { node } of Object.values(state)) device.release(node);
}

function readConfig(source: ModelConfig): AutoencoderKLCogVideoXConfig {
  const blockOutChannels = source.counts("block_out_channels", [128, 256, 256, 512]);
  for (
    const [key, word] of [["down_block_types", "CogVideoXDownBlock3D"], [
      "up_block_types",
      "CogVideoXUpBlock3D",
    ]] as const
  ) {
    if (source.fields[key] === undefined) continue;
    const count = source.every(key, word);
    if (count === blockOutChannels.length) continue;
    throw new ConfigError(
      `${source.file} has ${count} ${key} and ${blockOutChannels.length} block_out_channels: there must be as many`,
      { file: source.file, key },
    );
  }
  return {
    inChannels: source.count("in_channels", 3),
    outChannels: source.count("out_channels", 3),
    latentChannels: source.count("latent_channels", 16),
    blockOutChannels,
    layersPerBlock: source.count("layers_per_block", 3),
    actFn: source.choice("act_fn", Object.keys(ACTIVATIONS), "silu"),
    normEps: source.number("norm_eps", 1e-6),
    normNumGroups: source.count("norm_num_groups", 32),
    temporalCompressionRatio: source.number("temporal_compression_ratio", 4),
    sampleHeight: source.count("sample_height", 480),
    sampleWidth: source.count("sample_width", 720),
    scalingFactor: source.number("scaling_factor", 1.15258426),
    invertScaleLatents: source.flag("invert_scale_latents", false),
    useQuantConv: source.flag("use_quant_conv", false),
    usePostQuantConv: source.flag("use_post_quant_conv", false),
  };
}
