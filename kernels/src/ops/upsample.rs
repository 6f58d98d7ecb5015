use super::*;
pub static UPSAMPLE_NEAREST: Kernel = MISSING;
