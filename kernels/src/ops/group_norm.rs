use super::*;
pub static GROUP_NORM: Kernel = MISSING;
