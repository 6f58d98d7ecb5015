//! From float weights to stored codes, scales and zero points, and back.

use super::*;
use crate::error::{Code, Error};

fn absent(_: &Args) -> Result<()> {
    Err(Error::new(Code::Internal, "This kernel is still to be written"))
}

fn absent_run(_: &Cx, args: &Args) -> Result<()> {
    absent(args)
}

pub static QUANTIZE_SCALE: Kernel = Kernel { check: absent, run: absent_run, reference: absent };
pub static QUANTIZE_ZERO_POINT: Kernel = Kernel { check: absent, run: absent_run, reference: absent };
pub static QUANTIZE_CODES: Kernel = Kernel { check: absent, run: absent_run, reference: absent };
pub static DEQUANTIZE: Kernel = Kernel { check: absent, run: absent_run, reference: absent };
pub static PRUNE_SEMI_STRUCTURED: Kernel = Kernel { check: absent, run: absent_run, reference: absent };
