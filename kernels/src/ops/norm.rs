use super::*;
pub static LAYER_NORM: Kernel = MISSING;
pub static RMS_NORM: Kernel = MISSING;
