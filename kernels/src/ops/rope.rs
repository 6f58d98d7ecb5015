use super::*;
pub static ROPE: Kernel = MISSING;
pub static RMS_NORM_ROPE: Kernel = MISSING;
