//! The native core of denoise: CPU kernels and the program executor.

pub mod activation;
pub mod buffer;
pub mod codes;
pub mod conv_kernel;
pub mod cuda;
pub mod error;
pub mod executor;
pub mod ffi;
pub mod gemm;
pub mod handles;
pub mod level;
pub mod ops;
pub mod pool;
pub mod program;
pub mod quant;
pub mod rows;
pub mod schema;
pub mod simd;
pub mod strided;
pub mod video;
pub mod view;
