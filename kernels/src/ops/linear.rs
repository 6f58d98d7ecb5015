use super::*;
pub static LINEAR: Kernel = MISSING;
pub static PACK_LINEAR: Kernel = MISSING;
