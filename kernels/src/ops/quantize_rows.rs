//! Quantized rows of activations, and the magnitude that a scale for all rows needs.

use super::*;
use crate::dispatch;
use crate::ensure;
use crate::quant::{e4m3, e5m2, rows_bytes, rows_scale};
use crate::rows::{RowRange, each_row, widened};
use crate::schema::{DType, Rows};
use crate::simd::{Element, Simd};
use crate::strided::{Loops, TASK, rows_per_task};
use half::{bf16, f16};
use std::sync::atomic::{AtomicU32, Ordering};

/// Floats to rows of codes, each with its scale and zero point.
pub static QUANTIZE_ROWS: Kernel = Kernel { check, run, reference };
/// The largest magnitude.
pub static ABS_MAX: Kernel = Kernel { check: check_abs_max, run: run_abs_max, reference: reference_abs_max };

/// Refuses an out that is not the quantized rows of x.
pub(super) fn check_out(what: &str, rows: Rows, x: &View, out: &View) -> Result<()> {
    ensure!(x.dtype.is_float(), "{what} takes x of a float dtype, got {:?}", x.dtype);
    ensure!(x.rank > 0 && x.inner_dense(), "{what} takes x with a dense last axis, got {:?}", x.shape());
    let bytes = rows_bytes(x.last());
    ensure!(
        out.dtype == DType::U8 && out.rank == x.rank && out.inner_dense(),
        "{what} to rows of {rows:?} gives dense rows of U8 of {} axes, got {:?} {:?}",
        x.rank,
        out.dtype,
        out.shape()
    );
    ensure!(
        out.last() == bytes && out.shape()[..x.rank - 1] == x.shape()[..x.rank - 1],
        "{what} of {:?} to rows of {rows:?} gives {bytes} bytes for each row, got {:?}",
        x.shape(),
        out.shape()
    );
    Ok(())
}

/// The rows that a parameter names, `None` among them.
pub(super) fn rows_param(what: &str, args: &Args, index: usize) -> Result<Rows> {
    let rows = Rows::from_code(args.params[index]);
    ensure!(rows.is_some(), "{what} has no rows of code {}", args.params[index]);
    Ok(rows.unwrap_or(Rows::None))
}

fn check(args: &Args) -> Result<()> {
    let what = "quantize_rows";
    let rows = rows_param(what, args, 0)?;
    ensure!(rows != Rows::None, "{what} takes a kind of rows, not none");
    check_out(what, rows, &args.view(0), &args.out())?;
    if let Some(amax) = args.optional(1) {
        norm::check_vector(what, "amax", Some(amax), 1)?;
        ensure!(rows != Rows::Int8Asym, "{what} takes no amax for asymmetric rows, whose scale needs a range");
    }
    Ok(())
}

/// The scale and zero point of a row; what lies in the row follows from them.
#[derive(Clone, Copy, Debug)]
struct Affine {
    /// NaN where the row has no scale: something in it, or its range, is not finite.
    scale: f32,
    zero: i32,
}

/// Chooses them for values between low and high, as torchao does: computed in the activation's dtype, zero in range,
/// never so small that its reciprocal is not finite.
fn affine(rows: Rows, dtype: DType, low: f32, high: f32) -> Affine {
    let in_dtype = |value: f32| match dtype {
        DType::BF16 => bf16::from_f32(value).to_f32(),
        DType::F16 => f16::from_f32(value).to_f32(),
        _ => value,
    };
    let smallest_normal = if dtype == DType::F16 { f16::MIN_POSITIVE.to_f32() } else { f32::MIN_POSITIVE };
    let amax = high.max(-low);
    let (range, steps, least) = match rows {
        // (127 - -128) / 2.
        Rows::Int8 => (amax, 127.5, f32::EPSILON),
        Rows::Int8Asym => (high - low, 255.0, smallest_normal),
        // An fp8 scale has no least value in torchao, where a row of zeros becomes NaN.
        Rows::E5m2 => (amax, 57344.0, f32::MIN_POSITIVE),
        _ => (amax, 448.0, f32::MIN_POSITIVE),
    };
    // Comparing with NaN gives the least: what is not finite is looked for before.
    if !(low.is_finite() && high.is_finite() && range.is_finite()) {
        return Affine { scale: f32::NAN, zero: 0 };
    }
    let scale = in_dtype(range / steps).max(least);
    if !scale.is_finite() {
        return Affine { scale: f32::NAN, zero: 0 };
    }
    let zero = if rows == Rows::Int8Asym { -128.0 - in_dtype(low / scale).round_ties_even() } else { 0.0 };
    Affine { scale, zero: zero.clamp(-128.0, 127.0) as i32 }
}

/// Writes what follows the codes.
unsafe fn finish(to: *mut u8, k: usize, affine: Affine) {
    unsafe {
        std::ptr::write_bytes(to.add(k), 0, rows_bytes(k) - k);
        let trailer = to.add(rows_scale(k));
        (trailer as *mut f32).write_unaligned(affine.scale);
        (trailer.add(4) as *mut i32).write_unaligned(affine.zero);
    }
}

fn reference(args: &Args) -> Result<()> {
    let (x, amax, out) = (args.view(0), args.optional(1), args.out());
    let rows = rows_param("quantize_rows", args, 0)?;
    let amax = amax.map(|amax| unsafe { amax.get(0) });
    for row in 0..out.rows() {
        let from = x.row_offset(row);
        let values: Vec<f32> = (0..x.last()).map(|i| unsafe { x.get(from + i) }).collect();
        unsafe { reference_row(rows, x.dtype, &values, amax, out.at::<u8>(out.row_offset(row))) };
    }
    Ok(())
}

/// One row, plainly: `values` have the precision of `dtype`.
///
/// # Safety
/// `to` has the bytes of a quantized row.
pub(super) unsafe fn reference_row(rows: Rows, dtype: DType, values: &[f32], amax: Option<f32>, to: *mut u8) {
    let finite = values.iter().all(|v| v.is_finite());
    let low = values.iter().fold(0f32, |a, &v| a.min(v));
    let high = values.iter().fold(0f32, |a, &v| a.max(v));
    let (low, high) = match amax {
        Some(amax) => (0.0, amax),
        None if finite => (low, high),
        None => (f32::NAN, f32::NAN),
    };
    let affine = affine(rows, dtype, low, high);
    for (i, &v) in values.iter().enumerate() {
        // With a scale from elsewhere, NaN counts as the largest value.
        let v = if v.is_nan() { f32::INFINITY } else { v };
        let code = if affine.scale.is_nan() {
            0
        } else if matches!(rows, Rows::E4m3 | Rows::E5m2) {
            nearest(rows, v / affine.scale)
        } else {
            let code = (v * (1.0 / affine.scale)).round_ties_even() + affine.zero as f32;
            code.clamp(-128.0, 127.0) as i8 as u8
        };
        unsafe { *to.add(i) = code };
    }
    unsafe { finish(to, values.len(), affine) };
}

/// The fp8 code of the nearest value, of two the even one; beyond the largest that one.
fn nearest(rows: Rows, value: f32) -> u8 {
    let of = |code: u8| if rows == Rows::E5m2 { e5m2(code) } else { e4m3(code) } as f64;
    let largest = if rows == Rows::E5m2 { 0x7b } else { 0x7e };
    let magnitude = value.abs().min(of(largest) as f32) as f64;
    let above = (0..=largest).find(|&code| of(code) >= magnitude).unwrap_or(largest);
    let below = above.saturating_sub(1);
    let code = match (magnitude - of(below)).total_cmp(&(of(above) - magnitude)) {
        std::cmp::Ordering::Less => below,
        std::cmp::Ordering::Greater => above,
        std::cmp::Ordering::Equal => below + below % 2,
    };
    code | if value.is_sign_negative() { 0x80 } else { 0 }
}

fn run(cx: &Cx, args: &Args) -> Result<()> {
    match args.view(0).dtype {
        DType::F32 => quantize_rows::<f32>(cx, args),
        DType::BF16 => quantize_rows::<bf16>(cx, args),
        _ => quantize_rows::<f16>(cx, args),
    }
}

fn quantize_rows<E: Element>(cx: &Cx, args: &Args) -> Result<()> {
    let (x, out) = (args.view(0), args.out());
    let rows = rows_param("quantize_rows", args, 0)?;
    let amax = args.optional(1).map(|amax| unsafe { amax.get(0) });
    let kind = RowKind { rows, dtype: x.dtype, amax };
    each_row(cx, &[x, out], &|rows, scratch| unsafe { quantize_range::<E>(cx.level, (&x, &out), rows, kind, scratch) })
}

/// What rows are quantized to.
#[derive(Clone, Copy)]
pub(super) struct RowKind {
    /// The form.
    pub rows: Rows,
    /// The dtype that the values have.
    pub dtype: DType,
    /// The magnitude of all rows, where they share a scale.
    pub amax: Option<f32>,
}

dispatch! {
    fn quantize_range<E: Element>(
        views: (&View, &View), rows: &RowRange<2>, kind: RowKind, scratch: *mut f32,
    ) => quantize_range_on
}

#[inline(always)]
unsafe fn quantize_range_on<S: Simd, E: Element>(
    (x, out): (&View, &View),
    rows: &RowRange<2>,
    kind: RowKind,
    scratch: *mut f32,
) {
    unsafe {
        let k = x.last();
        for [from, to] in rows.offsets() {
            let row = widened::<S, E>(x.at::<E>(from), k, scratch);
            quantize_widened::<S>(row, k, kind, out.at::<u8>(to));
        }
    }
}

/// Quantizes a row of f32.
///
/// # Safety
/// The CPU has the level of `S`; the row has k elements, `to` the bytes of a quantized row.
#[inline(always)]
pub(super) unsafe fn quantize_widened<S: Simd>(row: *const f32, k: usize, kind: RowKind, to: *mut u8) {
    unsafe {
        let (low, high) = match kind.amax {
            Some(amax) => (0.0, amax),
            None => range::<S>(row, k),
        };
        let affine = affine(kind.rows, kind.dtype, low, high);
        if affine.scale.is_nan() {
            std::ptr::write_bytes(to, 0, k);
        } else {
            match kind.rows {
                Rows::E4m3 => fp8_codes::<S, 3>(row, k, affine, to),
                Rows::E5m2 => fp8_codes::<S, 2>(row, k, affine, to),
                _ => int8_codes::<S>(row, k, affine, to),
            }
        }
        finish(to, k, affine);
    }
}

/// The least and the largest value, 0 among them; NaN where one is not finite.
#[inline(always)]
unsafe fn range<S: Simd>(row: *const f32, k: usize) -> (f32, f32) {
    unsafe {
        let zero = S::splat(0.0);
        let (mut low, mut high, mut finite) = ([zero; 4], [zero; 4], [zero; 4]);
        for i in (0..k).step_by(4 * S::LANES) {
            for part in 0..4 {
                let at = i + part * S::LANES;
                if at >= k {
                    break;
                }
                let left = (k - at).min(S::LANES);
                let v = if left == S::LANES { S::load(row.add(at)) } else { S::load_n(row.add(at), left) };
                low[part] = S::min(v, low[part]);
                high[part] = S::max(v, high[part]);
                // 0 times what is not finite is NaN.
                finite[part] = S::fma(v, zero, finite[part]);
            }
        }
        for part in 1..4 {
            low[0] = S::min(low[part], low[0]);
            high[0] = S::max(high[part], high[0]);
            finite[0] = S::add(finite[part], finite[0]);
        }
        let (low, finite) = (-S::max_lane(S::sub(zero, low[0])), S::sum(finite[0]));
        (low + finite, S::max_lane(high[0]) + finite)
    }
}

#[inline(always)]
unsafe fn int8_codes<S: Simd>(row: *const f32, k: usize, affine: Affine, to: *mut u8) {
    unsafe {
        let (inverse, zero) = (S::splat(1.0 / affine.scale), S::splat(affine.zero as f32));
        each_vector::<S>(
            row,
            k,
            to,
            |v| {
                let code = S::add(S::round(S::mul(v, inverse)), zero);
                S::max(S::min(code, S::splat(127.0)), S::splat(-128.0))
            },
            |code| code.to_int_unchecked::<i32>() as u8,
        );
    }
}

/// Codes of fp8 with M bits of mantissa (and 7 - M of exponent).
#[inline(always)]
unsafe fn fp8_codes<S: Simd, const M: u32>(row: *const f32, k: usize, affine: Affine, to: *mut u8) {
    let bias = (1 << (6 - M)) - 1;
    let largest = if M == 3 { 448.0 } else { 57344.0 };
    let least_normal = ((128 - bias) as u32) << 23;
    // Adding it leaves a subnormal's code in the lowest bits.
    let magic = f32::from_bits(((127 + 23 + 1 - bias) as u32 - M) << 23);
    unsafe {
        let scale = S::splat(affine.scale);
        each_vector::<S>(
            row,
            k,
            to,
            |v| S::max(S::min(S::div(v, scale), S::splat(largest)), S::splat(-largest)),
            |v| {
                let bits = v.to_bits() & 0x7fff_ffff;
                let subnormal = (f32::from_bits(bits) + magic).to_bits().wrapping_sub(magic.to_bits());
                let half = (1 << (22 - M)) - 1 + (bits >> (23 - M) & 1);
                let normal = (bits + half).wrapping_sub(((127 - bias) as u32) << 23) >> (23 - M);
                let code = if bits < least_normal { subnormal } else { normal };
                (code | v.to_bits() >> 24 & 0x80) as u8
            },
        );
    }
}

/// Maps a row by a function of vectors, and then of one value to its code, which the compiler makes one of vectors too.
#[inline(always)]
unsafe fn each_vector<S: Simd>(
    row: *const f32,
    k: usize,
    to: *mut u8,
    map: impl Fn(S::V) -> S::V,
    code: impl Fn(f32) -> u8,
) {
    unsafe {
        let mut lanes = [0f32; 16];
        let mut i = 0;
        while i + 16 <= k {
            for part in (0..16).step_by(S::LANES) {
                S::store(lanes.as_mut_ptr().add(part), map(S::load(row.add(i + part))));
            }
            for (lane, value) in lanes.iter().enumerate() {
                *to.add(i + lane) = code(*value);
            }
            i += 16;
        }
        for part in (0..k - i).step_by(S::LANES) {
            S::store(lanes.as_mut_ptr().add(part), map(S::load_n(row.add(i + part), (k - i - part).min(S::LANES))));
        }
        for (lane, value) in lanes.iter().enumerate().take(k - i) {
            *to.add(i + lane) = code(*value);
        }
    }
}

fn check_abs_max(args: &Args) -> Result<()> {
    let (x, out) = (args.view(0), args.out());
    ensure!(x.dtype.is_float(), "abs_max takes x of a float dtype, got {:?}", x.dtype);
    norm::check_vector("abs_max", "out", Some(out), 1)
}

fn reference_abs_max(args: &Args) -> Result<()> {
    let (x, out) = (args.view(0), args.out());
    let mut most = 0f32;
    for i in 0..x.len() {
        let v = unsafe { x.get(x.offset(i)) }.abs();
        if v > most || v.is_nan() {
            most = v;
        }
        if most.is_nan() {
            break;
        }
    }
    unsafe { out.set(0, most) };
    Ok(())
}

fn run_abs_max(cx: &Cx, args: &Args) -> Result<()> {
    let (x, out) = (args.view(0), args.out());
    // Magnitudes order as their bits do, and NaN above them all.
    let most = AtomicU32::new(0);
    if !x.is_empty() {
        let loops = Loops::new(&[x], TASK);
        let rows = rows_per_task(loops.inner);
        cx.pool.run(loops.rows().div_ceil(rows), &|task, _| {
            loops.each(task * rows, (task * rows + rows).min(loops.rows()), |[at]| {
                let bits = unsafe {
                    match x.dtype {
                        DType::F32 => most_of_32(cx.level, x.at::<u32>(at), loops.inner, loops.steps[0]),
                        _ => most_of_16(cx.level, x.at::<u16>(at), loops.inner, loops.steps[0]) as u32,
                    }
                };
                most.fetch_max(bits, Ordering::Relaxed);
            });
        })?;
    }
    let bits = most.into_inner();
    let value = match x.dtype {
        DType::F32 => f32::from_bits(bits),
        DType::BF16 => bf16::from_bits(bits as u16).to_f32(),
        _ => f16::from_bits(bits as u16).to_f32(),
    };
    unsafe { out.set(0, value) };
    Ok(())
}

macro_rules! most_of {
    ($name:ident, $on:ident, $bits:ty) => {
        dispatch!(fn $name(x: *const $bits, n: usize, step: usize) -> $bits => $on);

        /// The largest bits without a sign, of n elements a step apart.
        #[inline(always)]
        #[allow(clippy::extra_unused_type_parameters, reason = "the level alone makes vectors of the loop")]
        unsafe fn $on<S: Simd>(x: *const $bits, n: usize, step: usize) -> $bits {
            const MAGNITUDE: $bits = <$bits>::MAX >> 1;
            let each = |i: usize| unsafe { *x.add(i) & MAGNITUDE };
            if step == 1 { (0..n).map(each).fold(0, <$bits>::max) } else { (0..n).map(|i| each(i * step)).fold(0, <$bits>::max) }
        }
    };
}
most_of!(most_of_32, most_of_32_on, u32);
most_of!(most_of_16, most_of_16_on, u16);
