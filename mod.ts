/**
 * Pictures from prompts with published diffusion models, on Deno: load a checkpoint, call it, save what it made.
 *
 * @example A picture
 * ```ts
 * import { FluxPipeline } from "./mod.ts";
 *
 * const pipe = await FluxPipeline.load("models/shapes-flux");
 * const { images } = await pipe("a large red star on a navy background", { seed: 5, numInferenceSteps: 4 });
 * console.log(images[0]!.width, images[0]!.height); // 128 128
 * ```
 *
 * @module
 */

export {
  autoquant,
  AUTOQUANT_SCHEMES,
  type AutoquantOptions,
  type AutoquantProgress,
  type AutoquantScheme,
  type LayerError,
  layerErrors,
} from "./lib/compile/autoquant.ts";
export type { Calibratable } from "./lib/compile/capture.ts";
export { type Autotune, type Compilable, compile, Compiled, type CompileOptions } from "./lib/compile/compile.ts";
export { Profile, profile, type ProfileOptions, type ProfileRow } from "./lib/compile/profile.ts";
export type { TriedKernel } from "./lib/compile/tuner.ts";
export * from "./lib/errors.ts";
export * from "./lib/graph/dtypes.ts";
export type { Arithmetic, Limits } from "./lib/graph/cost.ts";
export type { Node, OpName, Params, Rate, ViewName } from "./lib/graph/node.ts";
export type { ActivationQuantization } from "./lib/graph/ops.ts";
export type { WeightFormat } from "./lib/graph/quantized.ts";
export type { ActivationKind, FormatKind, KernelName, RowsKind } from "./lib/graph/schema.ts";
export * from "./lib/media/image.ts";
export * from "./lib/media/metrics.ts";
export type { Pixels } from "./lib/media/png.ts";
export * from "./lib/media/progress.ts";
export * from "./lib/media/terminal.ts";
export * from "./lib/media/video.ts";
export * from "./lib/models/autoencoder_kl.ts";
export * from "./lib/models/autoencoder_kl_cogvideox.ts";
export * from "./lib/models/clip_text_model.ts";
export * from "./lib/models/cogvideox_transformer_3d_model.ts";
export * from "./lib/models/config.ts";
export * from "./lib/models/flux_transformer_2d_model.ts";
export type { VideoFrames, VideoShape } from "./lib/models/frame_tiles.ts";
export * from "./lib/models/t5_encoder_model.ts";
export type { LoadOptions } from "./lib/nn/checkpoint.ts";
export * from "./lib/nn/layers.ts";
export * from "./lib/nn/module.ts";
export { saveModel, type SaveOptions } from "./lib/nn/save.ts";
export * from "./lib/pipelines/cogvideox.ts";
export type { CogVideoXSchedulerClass } from "./lib/pipelines/cogvideox_functions.ts";
export * from "./lib/pipelines/cogvideox_published.ts";
export * from "./lib/pipelines/flux.ts";
export * from "./lib/pipelines/generated_video.ts";
export * from "./lib/pipelines/hub.ts";
export type { PipelineLoadOptions } from "./lib/pipelines/load.ts";
export type { MemoryPlan, ModelMemory, Phase, PhaseMemory } from "./lib/pipelines/memory.ts";
export * from "./lib/pipelines/optimize.ts";
export type { Seed } from "./lib/pipelines/pipeline.ts";
export * from "./lib/pipelines/recipe.ts";
export * from "./lib/pipelines/recipe_video.ts";
export type { PhaseSeconds } from "./lib/pipelines/run.ts";
export * from "./lib/pipelines/tokenizer.ts";
export * from "./lib/quantize/describe.ts";
export * from "./lib/quantize/fp8dq.ts";
export * from "./lib/quantize/fp8dqrow.ts";
export * from "./lib/quantize/fp8wo.ts";
export * from "./lib/quantize/fpx.ts";
export * from "./lib/quantize/int4dq.ts";
export * from "./lib/quantize/int4wo.ts";
export * from "./lib/quantize/int8dq.ts";
export * from "./lib/quantize/int8wo.ts";
export * from "./lib/quantize/plan.ts";
export * from "./lib/quantize/quantize.ts";
export * from "./lib/quantize/scheme.ts";
export * from "./lib/quantize/schemes.ts";
export {
  CogVideoXScheduler,
  type CogVideoXSchedulerConfig,
  type CogVideoXStepInputs,
  type CogVideoXStepOutputs,
} from "./lib/schedulers/cogvideox.ts";
export * from "./lib/schedulers/ddim_cogvideox.ts";
export * from "./lib/schedulers/dpm_cogvideox.ts";
export * from "./lib/schedulers/flow_match_euler_discrete.ts";
export { Device, type DeviceName, type DeviceOptions } from "./lib/tensor/device.ts";
export {
  type CallOptions,
  CompiledFunction,
  type CompiledInfo,
  compileFunction,
  type FunctionOptions,
} from "./lib/tensor/function.ts";
export * from "./lib/tensor/quantized.ts";
export * from "./lib/tensor/random.ts";
export * from "./lib/tensor/realize.ts";
export { type ArrayOf, tensor } from "./lib/tensor/source.ts";
export * from "./lib/tensor/tensor.ts";
