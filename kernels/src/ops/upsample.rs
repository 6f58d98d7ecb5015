//! Nearest-neighbour enlargement, channels last.

use super::*;
use crate::ensure;
use crate::strided::rows_per_task;

pub static UPSAMPLE_NEAREST: Kernel = Kernel { check, run, reference };

fn check(args: &Args) -> Result<()> {
    let (x, out) = (args.view(0), args.out());
    let factor = args.i32(0);
    ensure!((1..=256).contains(&factor), "upsample_nearest takes a factor from 1 to 256, got {factor}");
    let factor = factor as usize;
    ensure!(x.dtype == out.dtype, "upsample_nearest takes one type, got {:?}, {:?}", x.dtype, out.dtype);
    ensure!(
        x.rank == 4
            && out.rank == 4
            && out.dims[0] == x.dims[0]
            && Some(out.dims[1]) == x.dims[1].checked_mul(factor)
            && Some(out.dims[2]) == x.dims[2].checked_mul(factor)
            && out.dims[3] == x.dims[3],
        "upsample_nearest by {factor} of {:?} cannot give {:?}",
        x.shape(),
        out.shape()
    );
    ensure!(x.inner_dense() && out.inner_dense(), "upsample_nearest takes a dense last axis");
    Ok(())
}

/// Where in x the pixel with a number of out comes from.
fn source(x: &View, out: &View, factor: usize, pixel: usize) -> usize {
    let column = pixel % out.dims[2];
    let row = pixel / out.dims[2] % out.dims[1];
    let batch = pixel / out.dims[2] / out.dims[1];
    batch * x.strides[0] + row / factor * x.strides[1] + column / factor * x.strides[2]
}

fn reference(args: &Args) -> Result<()> {
    let (x, out) = (args.view(0), args.out());
    for index in 0..out.len() {
        let (pixel, channel) = (index / out.last(), index % out.last());
        let from = source(&x, &out, args.i32(0) as usize, pixel) + channel;
        unsafe { out.set(out.offset(index), x.get(from)) };
    }
    Ok(())
}

fn run(cx: &Cx, args: &Args) -> Result<()> {
    let (x, out) = (args.view(0), args.out());
    if out.is_empty() {
        return Ok(());
    }
    let (factor, size, pixels) = (args.i32(0) as usize, x.dtype.size(), out.rows());
    let per_task = rows_per_task(out.last());
    cx.pool.run(pixels.div_ceil(per_task), &|task, _| {
        for pixel in task * per_task..(task * per_task + per_task).min(pixels) {
            let (from, to) = (source(&x, &out, factor, pixel), out.row_offset(pixel));
            unsafe { std::ptr::copy_nonoverlapping(x.ptr.add(from * size), out.ptr.add(to * size), size * out.last()) };
        }
    })
}
