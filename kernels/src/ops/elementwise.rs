use super::*;
pub static COPY: Kernel = MISSING;
pub static UNARY: Kernel = MISSING;
pub static BINARY: Kernel = MISSING;
