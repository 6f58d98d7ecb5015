use super::*;
pub static CONV2D: Kernel = MISSING;
pub static PACK_CONV2D: Kernel = MISSING;
