use super::*;
pub static EMBEDDING: Kernel = MISSING;
pub static TIMESTEP_EMBEDDING: Kernel = MISSING;
pub static ROTARY_EMBEDDING: Kernel = MISSING;
