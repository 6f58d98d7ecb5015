//! Softmax and reductions of the last axis.

use super::*;
use crate::dispatch;
use crate::ensure;
use crate::rows::{each_row, sum_of, widen};
use crate::schema::{DType, Reduce};
use crate::simd::{Element, Simd};
use crate::strided::store_step;
use half::{bf16, f16};

pub static SOFTMAX: Kernel = Kernel { check, run, reference };
pub static REDUCE: Kernel = Kernel { check: check_reduce, run: run_reduce, reference: reference_reduce };

fn check(args: &Args) -> Result<()> {
    let (x, out) = (args.view(0), args.out());
    ensure!(
        x.dtype.is_float() && x.dtype == out.dtype,
        "softmax takes one float type, got {:?}, {:?}",
        x.dtype,
        out.dtype
    );
    ensure!(x.rank > 0 && x.shape() == out.shape(), "softmax of {:?} cannot give {:?}", x.shape(), out.shape());
    ensure!(x.inner_dense() && out.inner_dense(), "softmax takes a dense last axis");
    Ok(())
}

fn reference(args: &Args) -> Result<()> {
    let (x, out) = (args.view(0), args.out());
    let width = x.last();
    for row in 0..x.rows() {
        let (from, to) = (x.row_offset(row), out.row_offset(row));
        let values: Vec<f64> = (0..width).map(|i| unsafe { x.get(from + i) } as f64).collect();
        let largest = values.iter().fold(f64::NEG_INFINITY, |a, &b| if b.is_nan() { b } else { a.max(b) });
        let sum: f64 = values.iter().map(|v| (v - largest).exp()).sum();
        for (i, v) in values.iter().enumerate() {
            unsafe { out.set(to + i, ((v - largest).exp() / sum) as f32) };
        }
    }
    Ok(())
}

fn run(cx: &Cx, args: &Args) -> Result<()> {
    match args.out().dtype {
        DType::F32 => softmax::<f32>(cx, args),
        DType::BF16 => softmax::<bf16>(cx, args),
        _ => softmax::<f16>(cx, args),
    }
}

fn softmax<E: Element>(cx: &Cx, args: &Args) -> Result<()> {
    let (x, out) = (args.view(0), args.out());
    each_row(cx, &x, &|row, scratch| unsafe {
        softmax_row::<E>(cx.level, x.at(x.row_offset(row)), out.at(out.row_offset(row)), x.last(), scratch)
    })
}

dispatch! {
    fn softmax_row<E: Element>(x: *const E, out: *mut E, n: usize, scratch: *mut f32) => softmax_row_at
}

#[inline(always)]
unsafe fn softmax_row_at<S: Simd, E: Element>(x: *const E, out: *mut E, n: usize, scratch: *mut f32) {
    unsafe {
        widen::<S, E>(x, scratch, n);
        let largest = S::splat(largest_of::<S>(scratch, n));
        for i in (0..n).step_by(S::LANES) {
            let e = S::exp(S::sub(S::load(scratch.add(i)), largest));
            S::store(scratch.add(i), e);
        }
        let scale = S::splat(1.0 / sum_of::<S>(scratch, n, |v| v));
        for i in (0..n).step_by(S::LANES) {
            store_step::<S, E>(out.add(i), S::mul(S::load(scratch.add(i)), scale), 1, (n - i).min(S::LANES));
        }
    }
}

/// The largest of a widened row; NaN is passed over, as it comes back in the sum.
#[inline(always)]
unsafe fn largest_of<S: Simd>(row: *const f32, n: usize) -> f32 {
    unsafe {
        let mut i = 0;
        let mut most = f32::NEG_INFINITY;
        let mut vector = S::splat(f32::NEG_INFINITY);
        while i + S::LANES <= n {
            vector = S::max(vector, S::load(row.add(i)));
            i += S::LANES;
        }
        let mut lanes = [f32::NEG_INFINITY; 16];
        S::store(lanes.as_mut_ptr(), vector);
        most = lanes[..S::LANES].iter().fold(most, |a, &b| a.max(b));
        while i < n {
            most = most.max(*row.add(i));
            i += 1;
        }
        most
    }
}

fn check_reduce(args: &Args) -> Result<()> {
    let (x, out) = (args.view(0), args.out());
    ensure!(
        x.dtype.is_float() && x.dtype == out.dtype,
        "reduce takes one float type, got {:?}, {:?}",
        x.dtype,
        out.dtype
    );
    ensure!(
        x.rank > 0 && x.shape()[..x.rank - 1] == *out.shape(),
        "reduce of {:?} cannot give {:?}",
        x.shape(),
        out.shape()
    );
    ensure!(x.last() > 0, "reduce takes at least one element, got {:?}", x.shape());
    ensure!(x.inner_dense(), "reduce takes a dense last axis");
    Ok(())
}

fn reduce_kind(args: &Args) -> Reduce {
    Reduce::from_code(args.params[0]).expect("the loader checks codes")
}

fn reference_reduce(args: &Args) -> Result<()> {
    let (x, out) = (args.view(0), args.out());
    let width = x.last();
    for row in 0..x.rows() {
        let from = x.row_offset(row);
        let values = (0..width).map(|i| unsafe { x.get(from + i) } as f64);
        let y = match reduce_kind(args) {
            Reduce::Sum => values.sum(),
            Reduce::Mean => values.sum::<f64>() / width as f64,
            Reduce::Max => {
                values.fold(f64::NEG_INFINITY, |a, b| if a.is_nan() || b.is_nan() { f64::NAN } else { a.max(b) })
            }
        };
        unsafe { out.set(out.offset(row), y as f32) };
    }
    Ok(())
}

fn run_reduce(cx: &Cx, args: &Args) -> Result<()> {
    match args.out().dtype {
        DType::F32 => reduce::<f32>(cx, args),
        DType::BF16 => reduce::<bf16>(cx, args),
        _ => reduce::<f16>(cx, args),
    }
}

fn reduce<E: Element>(cx: &Cx, args: &Args) -> Result<()> {
    let (x, out) = (args.view(0), args.out());
    let kind = reduce_kind(args);
    each_row(cx, &x, &|row, scratch| unsafe {
        let y = reduce_row::<E>(cx.level, kind, x.at(x.row_offset(row)), x.last(), scratch);
        *out.at::<E>(out.offset(row)) = E::from(y);
    })
}

dispatch! {
    fn reduce_row<E: Element>(kind: Reduce, x: *const E, n: usize, scratch: *mut f32) -> f32 => reduce_row_at
}

#[inline(always)]
unsafe fn reduce_row_at<S: Simd, E: Element>(kind: Reduce, x: *const E, n: usize, scratch: *mut f32) -> f32 {
    unsafe {
        widen::<S, E>(x, scratch, n);
        match kind {
            Reduce::Sum => sum_of::<S>(scratch, n, |v| v),
            Reduce::Mean => sum_of::<S>(scratch, n, |v| v) / n as f32,
            Reduce::Max => {
                let any_nan = (0..n).any(|i| (*scratch.add(i)).is_nan());
                if any_nan { f32::NAN } else { largest_of::<S>(scratch, n) }
            }
        }
    }
}
