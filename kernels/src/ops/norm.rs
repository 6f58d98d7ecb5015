//! Layer norm with modulation, and RMS norm; to floats, or to quantized rows of them.

use super::quantize_rows::{RowKind, check_out, quantize_widened, reference_row, rows_param};
use super::*;
use crate::dispatch;
use crate::ensure;
use crate::rows::{RowRange, each_row, sum_of, widened};
use crate::schema::{DType, Rows};
use crate::simd::{Element, Simd};
use crate::strided::{load_step, store_step};
use half::{bf16, f16};

pub static LAYER_NORM: Kernel = Kernel { check, run, reference };
pub static RMS_NORM: Kernel = Kernel { check: check_rms, run: run_rms, reference: reference_rms };

/// Refuses all but x and out of one shape and float type.
pub(super) fn check_rows(what: &str, args: &Args) -> Result<()> {
    let (x, out) = (args.view(0), args.out());
    ensure!(
        x.dtype.is_float() && x.dtype == out.dtype,
        "{what} takes one float type, got {:?}, {:?}",
        x.dtype,
        out.dtype
    );
    ensure!(x.rank > 0 && x.shape() == out.shape(), "{what} of {:?} cannot give {:?}", x.shape(), out.shape());
    ensure!(x.inner_dense() && out.inner_dense(), "{what} takes a dense last axis");
    Ok(())
}

/// Refuses a vector that is not f32 of one size.
pub(super) fn check_vector(what: &str, name: &str, vector: Option<View>, size: usize) -> Result<()> {
    if let Some(v) = vector {
        ensure!(
            v.dtype == DType::F32 && v.shape() == [size] && v.is_contiguous(),
            "{what} takes an f32 {name} of [{size}], got {:?} {:?}",
            v.dtype,
            v.shape()
        );
    }
    Ok(())
}

/// Refuses all but x and out of one shape and float type, or an out of x's quantized rows.
fn check_target(what: &str, args: &Args) -> Result<()> {
    match rows_param(what, args, 1)? {
        Rows::None => check_rows(what, args),
        rows => check_out(what, rows, &args.view(0), &args.out()),
    }
}

/// Where rows go: to floats, or to quantized rows of a kind.
struct Target {
    out: View,
    kind: Option<RowKind>,
}

impl Target {
    fn of(args: &Args) -> Self {
        let kind = match Rows::from_code(args.params[1]) {
            None | Some(Rows::None) => None,
            Some(rows) => Some(RowKind { rows, dtype: args.view(0).dtype, amax: None }),
        };
        Self { out: args.out(), kind }
    }

    /// Takes a vector of the row at an offset: at once, or in the scratch memory with the precision of E.
    #[inline(always)]
    unsafe fn put<S: Simd, E: Element>(&self, row: usize, (i, count): (usize, usize), y: S::V, scratch: *mut f32) {
        unsafe {
            if self.kind.is_none() {
                store_step::<S, E>(self.out.at::<E>(row + i), y, 1, count);
            } else if E::SIZE == 4 {
                S::store(scratch.add(i), y);
            } else {
                let mut lanes = [E::from(0.0); 16];
                E::store::<S>(lanes.as_mut_ptr(), y);
                S::store(scratch.add(i), E::load::<S>(lanes.as_ptr()));
            }
        }
    }

    /// Takes what was put in the scratch memory.
    #[inline(always)]
    unsafe fn finish<S: Simd>(&self, row: usize, n: usize, scratch: *const f32) {
        if let Some(kind) = self.kind {
            unsafe { quantize_widened::<S>(scratch, n, kind, self.out.at::<u8>(row)) };
        }
    }
}

/// Writes a row, plainly.
unsafe fn reference_put(args: &Args, row: usize, values: &[f64]) {
    let (x, out) = (args.view(0), args.out());
    let rows = Rows::from_code(args.params[1]).unwrap_or(Rows::None);
    unsafe {
        if rows == Rows::None {
            values.iter().enumerate().for_each(|(i, v)| out.set(out.row_offset(row) + i, *v as f32));
            return;
        }
        let rounded = |&v: &f64| match x.dtype {
            DType::BF16 => bf16::from_f32(v as f32).to_f32(),
            DType::F16 => f16::from_f32(v as f32).to_f32(),
            _ => v as f32,
        };
        let values: Vec<f32> = values.iter().map(rounded).collect();
        reference_row(rows, x.dtype, &values, None, out.at::<u8>(out.row_offset(row)));
    }
}

fn check(args: &Args) -> Result<()> {
    check_target("layer_norm", args)?;
    let x = args.view(0);
    check_vector("layer_norm", "weight", args.optional(1), x.last())?;
    check_vector("layer_norm", "bias", args.optional(2), x.last())?;
    for (index, name) in [(3, "scale"), (4, "shift")] {
        if let Some(v) = args.optional(index) {
            ensure!(
                v.dtype == x.dtype && v.broadcast(x.shape()).is_some(),
                "layer_norm takes a {:?} {name} that broadcasts to {:?}, got {:?} {:?}",
                x.dtype,
                x.shape(),
                v.dtype,
                v.shape()
            );
        }
    }
    Ok(())
}

fn modulation(args: &Args) -> [Option<View>; 2] {
    [3, 4].map(|i| args.optional(i).and_then(|v| v.broadcast(args.view(0).shape())))
}

fn reference(args: &Args) -> Result<()> {
    let x = args.view(0);
    let width = x.last();
    let [scale, shift] = modulation(args);
    for row in 0..x.rows() {
        let from = x.row_offset(row);
        let values: Vec<f64> = (0..width).map(|i| unsafe { x.get(from + i) } as f64).collect();
        let mean = values.iter().sum::<f64>() / width as f64;
        let variance = values.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / width as f64;
        let factor = 1.0 / (variance + args.f32(0) as f64).sqrt();
        let normalized = values.iter().enumerate().map(|(i, v)| {
            let at = row * width + i;
            let or = |view: Option<View>, index: usize, other: f64| {
                view.map_or(other, |v| unsafe { v.get(v.offset(index)) } as f64)
            };
            let y = (v - mean) * factor * or(args.optional(1), i, 1.0) + or(args.optional(2), i, 0.0);
            y * (1.0 + or(scale, at, 0.0)) + or(shift, at, 0.0)
        });
        let normalized: Vec<f64> = normalized.collect();
        unsafe { reference_put(args, row, &normalized) };
    }
    Ok(())
}

fn run(cx: &Cx, args: &Args) -> Result<()> {
    match args.view(0).dtype {
        DType::F32 => layer_norm::<f32>(cx, args),
        DType::BF16 => layer_norm::<bf16>(cx, args),
        _ => layer_norm::<f16>(cx, args),
    }
}

/// A call of layer norm.
struct LayerNorm {
    x: View,
    target: Target,
    eps: f32,
    weight: Option<*const f32>,
    bias: Option<*const f32>,
    scale: Option<View>,
    shift: Option<View>,
}

// Its pointers are of operands, which all threads read.
unsafe impl Sync for LayerNorm {}

fn layer_norm<E: Element>(cx: &Cx, args: &Args) -> Result<()> {
    let [scale, shift] = modulation(args);
    let vector = |i: usize| args.optional(i).map(|v| unsafe { v.at::<f32>(0) } as *const f32);
    let x = args.view(0);
    let norm =
        LayerNorm { x, target: Target::of(args), eps: args.f32(0), weight: vector(1), bias: vector(2), scale, shift };
    let views = [x, args.out(), scale.unwrap_or(x), shift.unwrap_or(x)];
    each_row(cx, &views, &|rows, scratch| unsafe { layer_norm_rows::<E>(cx.level, &norm, rows, scratch) })
}

dispatch! {
    fn layer_norm_rows<E: Element>(norm: &LayerNorm, rows: &RowRange<4>, scratch: *mut f32) => layer_norm_rows_at
}

#[inline(always)]
unsafe fn layer_norm_rows_at<S: Simd, E: Element>(norm: &LayerNorm, rows: &RowRange<4>, scratch: *mut f32) {
    unsafe {
        let n = norm.x.last();
        let one = S::splat(1.0);
        // The first element and the step.
        let part = |view: Option<View>, at: usize| view.map(|v| (v.at::<E>(at) as *const E, v.strides[v.rank - 1]));
        for [x, out, scale, shift] in rows.offsets() {
            let (scale, shift) = (part(norm.scale, scale), part(norm.shift, shift));
            let row = widened::<S, E>(norm.x.at::<E>(x), n, scratch);
            let mean = S::splat(sum_of::<S>(row, n, |v| v) / n as f32);
            let squares = sum_of::<S>(row, n, |v| {
                let d = S::sub(v, mean);
                S::mul(d, d)
            });
            let factor = S::splat(1.0 / (squares / n as f32 + norm.eps).sqrt());
            for i in (0..n).step_by(S::LANES) {
                let count = (n - i).min(S::LANES);
                let mut y = S::mul(S::sub(load_step::<S, f32>(row.add(i), 1, count), mean), factor);
                if let Some(weight) = norm.weight {
                    y = S::mul(y, load_step::<S, f32>(weight.add(i), 1, count));
                }
                if let Some(bias) = norm.bias {
                    y = S::add(y, load_step::<S, f32>(bias.add(i), 1, count));
                }
                if let Some((scale, step)) = scale {
                    y = S::mul(y, S::add(one, load_step::<S, E>(scale.add(i * step), step, count)));
                }
                if let Some((shift, step)) = shift {
                    y = S::add(y, load_step::<S, E>(shift.add(i * step), step, count));
                }
                norm.target.put::<S, E>(out, (i, count), y, scratch);
            }
            norm.target.finish::<S>(out, n, scratch);
        }
    }
}

fn check_rms(args: &Args) -> Result<()> {
    check_target("rms_norm", args)?;
    check_vector("rms_norm", "weight", args.optional(1), args.view(0).last())
}

fn reference_rms(args: &Args) -> Result<()> {
    let x = args.view(0);
    for row in 0..x.rows() {
        let values = reference_rms_row(&x, row, args.optional(1), args.f32(0));
        unsafe { reference_put(args, row, &values) };
    }
    Ok(())
}

/// One row's RMS norm, plainly.
pub(super) fn reference_rms_row(x: &View, row: usize, weight: Option<View>, eps: f32) -> Vec<f64> {
    let width = x.last();
    let from = x.row_offset(row);
    let values: Vec<f64> = (0..width).map(|i| unsafe { x.get(from + i) } as f64).collect();
    let squares = values.iter().map(|v| v * v).sum::<f64>() / width as f64;
    let factor = 1.0 / (squares + eps as f64).sqrt();
    let weight = |i: usize| weight.map_or(1.0, |w| unsafe { w.get(i) } as f64);
    values.iter().enumerate().map(|(i, v)| v * factor * weight(i)).collect()
}

fn run_rms(cx: &Cx, args: &Args) -> Result<()> {
    match args.view(0).dtype {
        DType::F32 => rms_norm::<f32>(cx, args),
        DType::BF16 => rms_norm::<bf16>(cx, args),
        _ => rms_norm::<f16>(cx, args),
    }
}

/// A call of RMS norm.
struct RmsNorm {
    x: View,
    target: Target,
    eps: f32,
    weight: Option<*const f32>,
}

// As for `LayerNorm`.
unsafe impl Sync for RmsNorm {}

fn rms_norm<E: Element>(cx: &Cx, args: &Args) -> Result<()> {
    let weight = args.optional(1).map(|v| unsafe { v.at::<f32>(0) } as *const f32);
    let norm = RmsNorm { x: args.view(0), target: Target::of(args), eps: args.f32(0), weight };
    each_row(cx, &[norm.x, args.out()], &|rows, scratch| unsafe { rms_norm_rows::<E>(cx.level, &norm, rows, scratch) })
}

dispatch! {
    fn rms_norm_rows<E: Element>(norm: &RmsNorm, rows: &RowRange<2>, scratch: *mut f32) => rms_norm_rows_at
}

#[inline(always)]
unsafe fn rms_norm_rows_at<S: Simd, E: Element>(norm: &RmsNorm, rows: &RowRange<2>, scratch: *mut f32) {
    unsafe {
        let n = norm.x.last();
        for [x, out] in rows.offsets() {
            let row = widened::<S, E>(norm.x.at::<E>(x), n, scratch);
            let factor = rms_factor::<S>(row, n, norm.eps);
            for i in (0..n).step_by(S::LANES) {
                let count = (n - i).min(S::LANES);
                let y = rms_vector::<S>(row.add(i), factor, norm.weight.map(|w| w.add(i)), count);
                norm.target.put::<S, E>(out, (i, count), y, scratch);
            }
            norm.target.finish::<S>(out, n, scratch);
        }
    }
}

/// 1 / sqrt(mean(x^2) + eps) in every lane.
///
/// # Safety
/// The CPU has the level of `S`; the row has n elements.
#[inline(always)]
pub(super) unsafe fn rms_factor<S: Simd>(row: *const f32, n: usize, eps: f32) -> S::V {
    unsafe { S::splat(1.0 / (sum_of::<S>(row, n, |v| S::mul(v, v)) / n as f32 + eps).sqrt()) }
}

/// A vector of a row, normalized; `n` elements of it count.
///
/// # Safety
/// As `rms_factor`.
#[inline(always)]
pub(super) unsafe fn rms_vector<S: Simd>(x: *const f32, factor: S::V, weight: Option<*const f32>, n: usize) -> S::V {
    unsafe {
        let y = S::mul(load_step::<S, f32>(x, 1, n), factor);
        weight.map_or(y, |w| S::mul(y, load_step::<S, f32>(w, 1, n)))
    }
}
