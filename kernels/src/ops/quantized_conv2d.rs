//! `conv2d` by quantized weights, and their packing.

use super::*;
use crate::error::{Code, Error};

fn absent(_: &Args) -> Result<()> {
    Err(Error::new(Code::Internal, "This kernel is still to be written"))
}

fn absent_run(_: &Cx, args: &Args) -> Result<()> {
    absent(args)
}

pub static QUANTIZED_CONV2D: Kernel = Kernel { check: absent, run: absent_run, reference: absent };
pub static PACK_QUANTIZED_CONV2D: Kernel = Kernel { check: absent, run: absent_run, reference: absent };
