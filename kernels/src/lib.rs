//! The native core of denoise: CPU kernels and the program executor.

pub mod activation;
pub mod error;
pub mod level;
pub mod ops;
pub mod pool;
pub mod schema;
pub mod simd;
pub mod view;
