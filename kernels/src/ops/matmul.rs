use super::*;
pub static MATMUL: Kernel = MISSING;
