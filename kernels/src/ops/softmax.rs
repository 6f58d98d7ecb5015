//! Softmax and reductions of the last axis.

use super::*;
use crate::dispatch;
use crate::ensure;
use crate::rows::{RowRange, each_row, sum_of, widened};
use crate::schema::{DType, Reduce};
use crate::simd::{Element, Simd};
use crate::strided::{load_step, store_step};
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
    each_row(cx, &[x, out], &|rows, scratch| unsafe { softmax_rows::<E>(cx.level, &x, &out, rows, scratch) })
}

dispatch! {
    fn softmax_rows<E: Element>(x: &View, out: &View, rows: &RowRange<2>, scratch: *mut f32) => softmax_rows_at
}

#[inline(always)]
unsafe fn softmax_rows_at<S: Simd, E: Element>(x: &View, out: &View, rows: &RowRange<2>, scratch: *mut f32) {
    unsafe {
        let n = x.last();
        for [from, to] in rows.offsets() {
            let row = widened::<S, E>(x.at::<E>(from), n, scratch);
            let largest = S::splat(largest_of::<S>(row, n));
            for i in (0..n).step_by(S::LANES) {
                let count = (n - i).min(S::LANES);
                S::store(scratch.add(i), S::exp(S::sub(load_step::<S, f32>(row.add(i), 1, count), largest)));
            }
            let scale = S::splat(1.0 / sum_of::<S>(scratch, n, |v| v));
            for i in (0..n).step_by(S::LANES) {
                let count = (n - i).min(S::LANES);
                store_step::<S, E>(out.at::<E>(to + i), S::mul(S::load(scratch.add(i)), scale), 1, count);
            }
        }
    }
}

/// The largest of a row in f32; NaN is passed over, as it comes back in the sum.
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
    // An out of one element a row.
    let rows = View { rank: x.rank, ..out };
    each_row(cx, &[x, rows], &|rows, scratch| unsafe { reduce_rows::<E>(cx.level, kind, (&x, &out), rows, scratch) })
}

dispatch! {
    fn reduce_rows<E: Element>(
        kind: Reduce, views: (&View, &View), rows: &RowRange<2>, scratch: *mut f32,
    ) => reduce_rows_at
}

#[inline(always)]
unsafe fn reduce_rows_at<S: Simd, E: Element>(
    kind: Reduce,
    (x, out): (&View, &View),
    rows: &RowRange<2>,
    scratch: *mut f32,
) {
    unsafe {
        let n = x.last();
        for [from, to] in rows.offsets() {
            let row = widened::<S, E>(x.at::<E>(from), n, scratch);
            let y = match kind {
                Reduce::Sum => sum_of::<S>(row, n, |v| v),
                Reduce::Mean => sum_of::<S>(row, n, |v| v) / n as f32,
                Reduce::Max => {
                    let any_nan = (0..n).any(|i| (*row.add(i)).is_nan());
                    if any_nan { f32::NAN } else { largest_of::<S>(row, n) }
                }
            };
            *out.at::<E>(to) = E::from(y);
        }
    }
}
