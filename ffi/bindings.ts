// Written by tools/generate_bindings.ts with deno_bindgen from kernels/src/ffi.rs; change that, not this.

/** The functions of the native library, as `Deno.dlopen` takes them. */
export const SYMBOLS = {
  "denoise_buffer_create": { "parameters": ["u32", "f64", "buffer", "usize"], "result": "u32", "nonblocking": false },
  "denoise_buffer_map": {
    "parameters": ["u32", "buffer", "usize", "f64", "f64", "buffer", "usize"],
    "result": "u32",
    "nonblocking": false,
  },
  "denoise_buffer_read": {
    "parameters": ["u32", "f64", "buffer", "usize", "buffer", "usize"],
    "result": "u32",
    "nonblocking": false,
  },
  "denoise_buffer_write": {
    "parameters": ["u32", "f64", "buffer", "usize", "buffer", "usize"],
    "result": "u32",
    "nonblocking": false,
  },
  "denoise_cuda_driver": { "parameters": [], "result": "u32", "nonblocking": false },
  "denoise_cuda_open": {
    "parameters": ["buffer", "usize", "u32", "buffer", "usize"],
    "result": "u32",
    "nonblocking": false,
  },
  "denoise_describe": { "parameters": ["buffer", "usize"], "result": "u32", "nonblocking": false },
  "denoise_device_describe": {
    "parameters": ["u32", "buffer", "usize", "buffer", "usize"],
    "result": "u32",
    "nonblocking": false,
  },
  "denoise_device_open": {
    "parameters": ["buffer", "usize", "u32", "buffer", "usize"],
    "result": "u32",
    "nonblocking": false,
  },
  "denoise_free": { "parameters": ["u32", "buffer", "usize"], "result": "u32", "nonblocking": false },
  "denoise_peak_memory": { "parameters": [], "result": "f64", "nonblocking": false },
  "denoise_program_load": {
    "parameters": ["buffer", "usize", "buffer", "usize"],
    "result": "u32",
    "nonblocking": false,
  },
  "denoise_program_run": {
    "parameters": ["u32", "u32", "buffer", "usize", "u32", "buffer", "usize", "buffer", "usize"],
    "result": "u32",
    "nonblocking": true,
  },
  "denoise_program_ways": {
    "parameters": ["u32", "u32", "buffer", "usize", "buffer", "usize"],
    "result": "u32",
    "nonblocking": false,
  },
  "denoise_token_cancel": { "parameters": ["u32", "buffer", "usize"], "result": "u32", "nonblocking": false },
  "denoise_token_create": { "parameters": ["buffer", "usize"], "result": "u32", "nonblocking": false },
  "denoise_video_decoder_create": {
    "parameters": ["u32", "u32", "u32", "buffer", "usize"],
    "result": "u32",
    "nonblocking": false,
  },
  "denoise_video_drain": { "parameters": ["u32", "buffer", "usize"], "result": "u32", "nonblocking": true },
  "denoise_video_encoder_create": {
    "parameters": ["u32", "u32", "u32", "f64", "u32", "buffer", "usize"],
    "result": "u32",
    "nonblocking": false,
  },
  "denoise_video_push": {
    "parameters": ["u32", "buffer", "usize", "buffer", "usize"],
    "result": "u32",
    "nonblocking": true,
  },
  "denoise_video_take": {
    "parameters": ["u32", "buffer", "usize", "buffer", "usize"],
    "result": "u32",
    "nonblocking": false,
  },
} as const;
