//! Rotary positions, alone and after an RMS norm.

use super::norm::{check_rows, check_vector, reference_rms_row, rms_factor, rms_vector};
use super::*;
use crate::dispatch;
use crate::ensure;
use crate::rows::{RowRange, each_row, widened};
use crate::schema::DType;
use crate::simd::{Element, Simd};
use crate::strided::{load_step, store_step};
use half::{bf16, f16};

pub static ROPE: Kernel = Kernel { check, run, reference };
pub static RMS_NORM_ROPE: Kernel = Kernel { check: check_norm, run: run_norm, reference: reference_norm };

/// Refuses all but x (B, S, H, D) with even D and tables (S, D).
fn check_tables(what: &str, args: &Args, first: usize) -> Result<()> {
    check_rows(what, args)?;
    let x = args.view(0);
    ensure!(x.rank == 4 && x.last().is_multiple_of(2), "{what} takes (B, S, H, D) of an even D, got {:?}", x.shape());
    for (index, name) in [(first, "cos"), (first + 1, "sin")] {
        let table = args.view(index);
        ensure!(
            table.dtype == DType::F32 && table.shape() == [x.dims[1], x.dims[3]] && table.inner_dense(),
            "{what} takes an f32 {name} of [{}, {}], got {:?} {:?}",
            x.dims[1],
            x.dims[3],
            table.dtype,
            table.shape()
        );
    }
    Ok(())
}

fn check(args: &Args) -> Result<()> {
    check_tables("rope", args, 1)
}

fn check_norm(args: &Args) -> Result<()> {
    check_tables("rms_norm_rope", args, 2)?;
    check_vector("rms_norm_rope", "weight", args.optional(1), args.view(0).last())
}

/// The token of a row of (B, S, H, D).
fn token(x: &View, row: usize) -> usize {
    row / x.dims[2] % x.dims[1]
}

fn reference_rotated(args: &Args, tables: usize, values: impl Fn(usize) -> Vec<f64>) -> Result<()> {
    let (x, out) = (args.view(0), args.out());
    let (cos, sin) = (args.view(tables), args.view(tables + 1));
    for row in 0..x.rows() {
        let values = values(row);
        let token = token(&x, row);
        for i in 0..values.len() {
            let partner = if i % 2 == 0 { -values[i + 1] } else { values[i - 1] };
            unsafe {
                let c = cos.get(token * cos.strides[0] + i) as f64;
                let s = sin.get(token * sin.strides[0] + i) as f64;
                out.set(out.row_offset(row) + i, (values[i] * c + partner * s) as f32);
            }
        }
    }
    Ok(())
}

fn reference(args: &Args) -> Result<()> {
    let x = args.view(0);
    reference_rotated(args, 1, |row| (0..x.last()).map(|i| unsafe { x.get(x.row_offset(row) + i) } as f64).collect())
}

fn reference_norm(args: &Args) -> Result<()> {
    let x = args.view(0);
    reference_rotated(args, 2, |row| reference_rms_row(&x, row, args.optional(1), args.f32(0)))
}

fn run(cx: &Cx, args: &Args) -> Result<()> {
    match args.out().dtype {
        DType::F32 => rotate::<f32>(cx, args, 1, None),
        DType::BF16 => rotate::<bf16>(cx, args, 1, None),
        _ => rotate::<f16>(cx, args, 1, None),
    }
}

fn run_norm(cx: &Cx, args: &Args) -> Result<()> {
    let eps = Some(args.f32(0));
    match args.out().dtype {
        DType::F32 => rotate::<f32>(cx, args, 2, eps),
        DType::BF16 => rotate::<bf16>(cx, args, 2, eps),
        _ => rotate::<f16>(cx, args, 2, eps),
    }
}

/// A call.
struct Rotation {
    x: View,
    out: View,
    cos: View,
    sin: View,
    /// The norm's eps and weight, where there is a norm.
    norm: Option<(f32, Option<*const f32>)>,
}

// Its pointers are of operands, which all threads read.
unsafe impl Sync for Rotation {}

/// Rotates, after a norm where there is an eps.
fn rotate<E: Element>(cx: &Cx, args: &Args, tables: usize, eps: Option<f32>) -> Result<()> {
    let (x, out) = (args.view(0), args.out());
    // A table (S, D) is the same for each image and head.
    let table = |i: usize| {
        let (table, mut view) = (args.view(i), x);
        (view.ptr, view.dtype) = (table.ptr, table.dtype);
        view.strides[..4].copy_from_slice(&[0, table.strides[0], 0, 1]);
        view
    };
    let weight = if tables == 2 { args.optional(1) } else { None };
    let norm = eps.map(|eps| (eps, weight.map(|w| unsafe { w.at::<f32>(0) } as *const f32)));
    let rotation = Rotation { x, out, cos: table(tables), sin: table(tables + 1), norm };
    each_row(cx, &[x, out, rotation.cos, rotation.sin], &|rows, scratch| unsafe {
        rotate_rows::<E>(cx.level, &rotation, rows, scratch)
    })
}

dispatch! {
    fn rotate_rows<E: Element>(rotation: &Rotation, rows: &RowRange<4>, scratch: *mut f32) => rotate_rows_at
}

#[inline(always)]
unsafe fn rotate_rows_at<S: Simd, E: Element>(rotation: &Rotation, rows: &RowRange<4>, scratch: *mut f32) {
    unsafe {
        let n = rotation.x.last();
        let mut signs = [1f32; 16];
        signs.iter_mut().step_by(2).for_each(|s| *s = -1.0);
        let signs = S::load(signs.as_ptr());
        for [x, out, cos, sin] in rows.offsets() {
            let row = widened::<S, E>(rotation.x.at::<E>(x), n, scratch);
            let factor = rotation.norm.map(|(eps, weight)| (rms_factor::<S>(row, n, eps), weight));
            for i in (0..n).step_by(S::LANES) {
                let count = (n - i).min(S::LANES);
                let v = match factor {
                    Some((factor, weight)) => rms_vector::<S>(row.add(i), factor, weight.map(|w| w.add(i)), count),
                    None => load_step::<S, f32>(row.add(i), 1, count),
                };
                let cos = load_step::<S, f32>(rotation.cos.at::<f32>(cos + i), 1, count);
                let sin = load_step::<S, f32>(rotation.sin.at::<f32>(sin + i), 1, count);
                let partner = S::mul(S::swap_pairs(v), signs);
                let y = S::fma(v, cos, S::mul(partner, sin));
                store_step::<S, E>(rotation.out.at::<E>(out + i), y, 1, count);
            }
        }
    }
}
