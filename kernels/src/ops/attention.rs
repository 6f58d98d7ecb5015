use super::*;
pub static ATTENTION: Kernel = MISSING;
