//! From float weights to stored codes, scales and zero points, and back, with the arithmetic of torchao 0.18 on a CPU,
//! operation by operation, so that what is stored is what torchao stores:
//!
//! - `int8` (`Int8Tensor.from_hp`): `_choose_qparams_affine` takes max|w| / 127.5 in the weight's dtype, at least f32's
//!   epsilon, as an f32 scale; `_quantize_affine_no_dtype_cast` then multiplies by the scale's reciprocal in f32. The
//!   largest magnitude lands on 127.5 or beside it, so that -128 occurs.
//! - `int4` (`IntxUnpackedToInt8Tensor.from_hp`): the same two functions with the scale left in the weight's dtype, so
//!   that the reciprocal and the product are rounded to it too; max|w| / 7.5, or (max - min) / 15 with zero points, at
//!   least the dtype's smallest normal number.
//! - `e4m3`, `e5m2` (`Float8Tensor.from_hp`): `_choose_scale_float8` takes max|w| / 448 (57344) in the weight's dtype,
//!   `_quantize_affine_float8` divides by it in f32. A row of zeros has the scale 0, and its 0 / 0 stores NaN
//!   there: here it is zero.
//! - `fpx` (`_choose_qparams_affine_floatx`, `_quantize_affine_floatx`): max|w|, at least 1e-12, over the largest value
//!   in f32, rounded to the weight's dtype; division in f32, nearest even, saturating.
//!
//! The divisions by a number are true divisions, as PyTorch's on a CPU.

use super::quantized_linear::{check_codes, check_scales};
use super::*;
use crate::dispatch;
use crate::ensure;
use crate::quant::{Weight, e4m3, e5m2, small_float};
use crate::schema::{DType, Format};
use crate::simd::{Element, Simd};
use crate::strided::{load_step, rows_per_task, store_step};
use half::{bf16, f16};
use std::sync::atomic::{AtomicU32, Ordering};

pub static QUANTIZE_SCALE: Kernel = Kernel { check: check_scale, run: run_scale, reference: reference_scale };
pub static QUANTIZE_ZERO_POINT: Kernel = Kernel { check: check_zero, run: run_zero, reference: reference_zero };
pub static QUANTIZE_CODES: Kernel = Kernel { check: check_quantize, run: run_quantize, reference: reference_quantize };
pub static DEQUANTIZE: Kernel =
    Kernel { check: check_dequantize, run: run_dequantize, reference: reference_dequantize };
pub static PRUNE_SEMI_STRUCTURED: Kernel = Kernel { check: check_prune, run: run_prune, reference: reference_prune };

/// Reads a weight's format, its bits and its group (0: all columns), which must take k columns.
fn weight_of(what: &str, format: u32, [ebits, mbits]: [u32; 2], group: i32, k: usize) -> Result<Weight> {
    let found = Format::from_code(format);
    ensure!(found.is_some(), "{what} has no format of code {format}");
    ensure!(group >= 0, "{what} takes no negative group, got {group}");
    let group = if group == 0 { k.max(1) } else { group as usize };
    let weight = Weight { format: found.unwrap_or(Format::Int8), ebits, mbits, group };
    ensure!(weight.takes(k), "{what} cannot take {k} columns in groups of {group} as {:?}", weight.format);
    Ok(weight)
}

/// Reads the dtype in which a weight is quantized.
fn dtype_of(what: &str, code: u32) -> Result<DType> {
    let dtype = DType::from_code(code);
    ensure!(dtype.is_some_and(DType::is_float), "{what} computes in a float dtype, got code {code}");
    Ok(dtype.unwrap_or(DType::F32))
}

/// Refuses all but a matrix of floats with dense rows.
fn check_weight(what: &str, weight: &View) -> Result<()> {
    ensure!(
        weight.rank == 2 && weight.dtype.is_float() && weight.inner_dense(),
        "{what} takes a float weight (N, K) with dense rows, got {:?} {:?}",
        weight.dtype,
        weight.shape()
    );
    Ok(())
}

/// A number rounded to a float dtype.
fn round_to(dtype: DType, x: f32) -> f32 {
    match dtype {
        DType::BF16 => bf16::from_f32(x).to_f32(),
        DType::F16 => f16::from_f32(x).to_f32(),
        _ => x,
    }
}

/// A small float's shape.
#[derive(Clone, Copy)]
struct Small {
    ebits: u32,
    mbits: u32,
    /// The largest magnitude.
    largest: f32,
    /// Whether NaN has a code, of all ones but the sign; else it becomes the largest magnitude.
    nan: bool,
}

impl Small {
    /// The float of a format; `None` for integers.
    fn of(weight: &Weight) -> Option<Self> {
        let (ebits, mbits) = (weight.ebits, weight.mbits);
        match weight.format {
            Format::E4m3 => Some(Self { ebits: 4, mbits: 3, largest: 448.0, nan: true }),
            Format::E5m2 => Some(Self { ebits: 5, mbits: 2, largest: 57344.0, nan: true }),
            Format::Fpx => {
                let largest = small_float((1 << (ebits + mbits)) - 1, ebits, mbits);
                Some(Self { ebits, mbits, largest, nan: false })
            }
            _ => None,
        }
    }

    fn bias(&self) -> i32 {
        (1 << (self.ebits - 1)) - 1
    }
}

/// The lowest and the highest integer of a format.
fn bounds(weight: &Weight) -> (i32, i32) {
    if weight.format == Format::Int4 { (-8, 7) } else { (-128, 127) }
}

/// The dtype in which a weight is multiplied by the reciprocal of its scale: int8's scale is f32, which widens a
/// product with it.
fn product_dtype(weight: &Weight, dtype: DType) -> DType {
    if weight.format == Format::Int4 { dtype } else { DType::F32 }
}

/// How far numbers reach above and below zero; NaN where one is NaN.
#[derive(Clone, Copy, Default)]
struct Reach {
    above: f32,
    below: f32,
}

/// How scales follow from reaches.
#[derive(Clone, Copy)]
struct Scaling {
    symmetric: bool,
    dtype: DType,
    /// The least range.
    range: f32,
    /// What a range is divided by.
    divisor: f32,
    /// The least scale.
    scale: f32,
}

impl Scaling {
    fn of(w: &Weight, symmetric: bool, dtype: DType) -> Self {
        let smallest_normal = if dtype == DType::F16 { f16::MIN_POSITIVE.to_f32() } else { f32::MIN_POSITIVE };
        let (range, divisor, scale) = match (w.format, Small::of(w)) {
            (Format::Fpx, Some(small)) => (1e-12, small.largest, 0.0),
            (_, Some(small)) => (0.0, small.largest, 0.0),
            (Format::Int4, _) => (0.0, if symmetric { 7.5 } else { 15.0 }, smallest_normal),
            _ => (0.0, 127.5, f32::EPSILON),
        };
        Self { symmetric, dtype, range, divisor, scale }
    }

    /// The scale for numbers of a reach, rounded to the dtype after each operation.
    fn scale(&self, reach: Reach) -> f32 {
        // None drops NaN, as `f32::max` would.
        let at_least = |x: f32, least: f32| if x < least { least } else { x };
        let range = if self.symmetric {
            larger(reach.above, reach.below)
        } else {
            round_to(self.dtype, reach.above + reach.below)
        };
        at_least(round_to(self.dtype, at_least(range, self.range) / self.divisor), self.scale)
    }
}

/// The larger number, or NaN where one is.
fn larger(a: f32, b: f32) -> f32 {
    if b > a || b.is_nan() { b } else { a }
}

/// The zero point for numbers that reach so far below zero; 0 where that is NaN.
fn zero_of(dtype: DType, below: f32, scale: f32) -> i8 {
    (-8.0 - round_to(dtype, -below / scale).round_ties_even()).clamp(-8.0, 7.0) as i8
}

// Scales.

fn check_scale(args: &Args) -> Result<()> {
    let what = "quantize_scale";
    let (weight, out) = (args.view(0), args.out());
    check_weight(what, &weight)?;
    let k = weight.dims[1];
    let w = weight_of(what, args.params[0], [args.params[1], args.params[2]], args.i32(3), k)?;
    dtype_of(what, args.params[5])?;
    ensure!(matches!(args.i32(4), 0 | 1), "{what} takes symmetric 0 or 1, got {}", args.i32(4));
    ensure!(args.i32(4) == 1 || w.format == Format::Int4, "{what} has zero points for int4 alone, not {:?}", w.format);
    let shape = if args.i32(3) == 0 { [1, 1] } else { [weight.dims[0], w.groups(k)] };
    ensure!(
        out.dtype == DType::F32 && out.shape() == shape && out.is_contiguous(),
        "{what} of {:?} gives dense f32 {shape:?}, not {:?} {:?}",
        weight.shape(),
        out.dtype,
        out.shape()
    );
    Ok(())
}

/// What `quantize_scale` is told, after its check.
fn scale_params(args: &Args) -> Result<(Weight, Scaling)> {
    let what = "quantize_scale";
    let w = weight_of(what, args.params[0], [args.params[1], args.params[2]], args.i32(3), args.view(0).dims[1])?;
    Ok((w, Scaling::of(&w, args.i32(4) == 1, dtype_of(what, args.params[5])?)))
}

/// The reach of some columns of a row, plainly.
fn reference_reach(weight: &View, row: usize, columns: std::ops::Range<usize>, dtype: DType, from: Reach) -> Reach {
    columns.fold(from, |reach, column| {
        let x = round_to(dtype, unsafe { weight.get(weight.row_offset(row) + column) });
        Reach { above: larger(reach.above, x), below: larger(reach.below, -x) }
    })
}

fn reference_scale(args: &Args) -> Result<()> {
    let (weight, out) = (args.view(0), args.out());
    let (w, scaling) = scale_params(args)?;
    let [n, k] = [weight.dims[0], weight.dims[1]];
    if args.i32(3) == 0 {
        let whole = |reach, row| reference_reach(&weight, row, 0..k, scaling.dtype, reach);
        unsafe { out.set(0, scaling.scale((0..n).fold(Reach::default(), whole))) };
        return Ok(());
    }
    for i in 0..out.len() {
        let (row, start) = (i / w.groups(k), i % w.groups(k) * w.group);
        let reach = reference_reach(&weight, row, start..start + w.group, scaling.dtype, Reach::default());
        unsafe { out.set(i, scaling.scale(reach)) };
    }
    Ok(())
}

/// Runs `body(row, memory)` for every row on all threads, with memory of the thread's own.
fn each_row(cx: &Cx, rows: usize, width: usize, bytes: usize, body: &(dyn Fn(usize, *mut u8) + Sync)) -> Result<()> {
    let per_task = rows_per_task(width);
    cx.pool.run(rows.div_ceil(per_task), &|task, thread| {
        let memory = unsafe { cx.pool.scratch(thread, bytes) };
        (task * per_task..(task * per_task + per_task).min(rows)).for_each(|row| body(row, memory));
    })
}

fn run_scale(cx: &Cx, args: &Args) -> Result<()> {
    let (weight, out) = (args.view(0), args.out());
    let (w, scaling) = scale_params(args)?;
    if args.i32(3) > 0 {
        return each_reach(cx, &weight, &w, scaling.dtype, &|at, reach| unsafe {
            *out.at::<f32>(at) = scaling.scale(reach);
        });
    }
    // The bits of floats of no sign are ordered as the floats are, with NaN above all.
    let [above, below] = [AtomicU32::new(0), AtomicU32::new(0)];
    each_reach(cx, &weight, &w, scaling.dtype, &|_, reach| {
        above.fetch_max(reach.above.to_bits() << 1 >> 1, Ordering::Relaxed);
        below.fetch_max(reach.below.to_bits() << 1 >> 1, Ordering::Relaxed);
    })?;
    let [above, below] = [above, below].map(|bits| f32::from_bits(bits.into_inner()));
    unsafe { out.set(0, scaling.scale(Reach { above, below })) };
    Ok(())
}

/// Runs `body(index, reach)` for every group of a weight on all threads.
fn each_reach<F>(cx: &Cx, weight: &View, w: &Weight, dtype: DType, body: &F) -> Result<()>
where
    F: Fn(usize, Reach) + Sync,
{
    let [n, k] = [weight.dims[0], weight.dims[1]];
    let (groups, size) = (w.groups(k), w.group);
    each_row(cx, n, k, groups * size_of::<Reach>(), &|row, memory| unsafe {
        let (at, found) = (weight.row_offset(row), memory as *mut Reach);
        match weight.dtype {
            DType::F32 => reaches::<f32>(cx.level, weight.at(at), groups, size, found),
            DType::BF16 => reaches::<bf16>(cx.level, weight.at(at), groups, size, found),
            _ => reaches::<f16>(cx.level, weight.at(at), groups, size, found),
        }
        for group in 0..groups {
            let Reach { above, below } = *found.add(group);
            // Rounding keeps order: the reach of what is rounded is the reach rounded.
            let reach = if dtype == weight.dtype {
                Reach { above, below }
            } else {
                Reach { above: round_to(dtype, above), below: round_to(dtype, below) }
            };
            body(row * groups + group, reach);
        }
    })
}

dispatch! {
    fn reaches<E: Element>(x: *const E, groups: usize, size: usize, to: *mut Reach) => reaches_at
}

/// The reach of each group of a row.
#[inline(always)]
unsafe fn reaches_at<S: Simd, E: Element>(x: *const E, groups: usize, size: usize, to: *mut Reach) {
    unsafe {
        let zero = S::splat(0.0);
        let mut none = zero;
        for group in 0..groups {
            let x = x.add(group * size);
            let (mut highest, mut lowest) = ([zero; 2], [zero; 2]);
            let mut take = |v: S::V, lane: usize| {
                // Of a number and NaN the second one is taken, so that NaN shows in `none` alone.
                highest[lane] = S::max(v, highest[lane]);
                lowest[lane] = S::min(v, lowest[lane]);
                none = S::fma(v, zero, none);
            };
            let mut i = 0;
            while i + 2 * S::LANES <= size {
                take(E::load::<S>(x.add(i)), 0);
                take(E::load::<S>(x.add(i + S::LANES)), 1);
                i += 2 * S::LANES;
            }
            while i < size {
                take(load_step::<S, E>(x.add(i), 1, (size - i).min(S::LANES)), 0);
                i += S::LANES;
            }
            let above = S::max_lane(S::max(highest[0], highest[1]));
            let below = S::max_lane(S::sub(zero, S::min(lowest[0], lowest[1])));
            to.add(group).write(Reach { above, below });
        }
        // Infinity times zero is NaN as well.
        if S::sum(none) != 0.0 {
            (0..groups).for_each(|group| to.add(group).write(reach_of(x.add(group * size), size)));
        }
    }
}

/// The reach of n numbers, of which some may be NaN.
#[cold]
unsafe fn reach_of<E: Element>(x: *const E, n: usize) -> Reach {
    (0..n).fold(Reach::default(), |reach, i| {
        let x = unsafe { *x.add(i) }.get();
        Reach { above: larger(reach.above, x), below: larger(reach.below, -x) }
    })
}

// Zero points.

fn check_zero(args: &Args) -> Result<()> {
    let what = "quantize_zero_point";
    let (weight, out) = (args.view(0), args.out());
    check_weight(what, &weight)?;
    let (w, _) = zero_params(args)?;
    ensure!(w.format == Format::Int4, "{what} is for int4 alone, not {:?}", w.format);
    check_scales(what, &w, [weight.dims[0], weight.dims[1]], &args.view(1), Some(out))
}

/// What `quantize_zero_point` is told.
fn zero_params(args: &Args) -> Result<(Weight, DType)> {
    let what = "quantize_zero_point";
    ensure!(args.i32(1) > 0, "{what} takes a positive group, got {}", args.i32(1));
    let w = weight_of(what, args.params[0], [0, 0], args.i32(1), args.view(0).dims[1])?;
    Ok((w, dtype_of(what, args.params[2])?))
}

fn reference_zero(args: &Args) -> Result<()> {
    let (weight, scale, out) = (args.view(0), args.view(1), args.out());
    let (w, dtype) = zero_params(args)?;
    let groups = w.groups(weight.dims[1]);
    for i in 0..out.len() {
        let (row, start) = (i / groups, i % groups * w.group);
        let reach = reference_reach(&weight, row, start..start + w.group, dtype, Reach::default());
        unsafe { *out.at::<i8>(i) = zero_of(dtype, reach.below, scale.get(i)) };
    }
    Ok(())
}

fn run_zero(cx: &Cx, args: &Args) -> Result<()> {
    let (weight, scale, out) = (args.view(0), args.view(1), args.out());
    let (w, dtype) = zero_params(args)?;
    each_reach(cx, &weight, &w, dtype, &|at, reach| unsafe {
        *out.at::<i8>(at) = zero_of(dtype, reach.below, *scale.at::<f32>(at));
    })
}

// Codes.

fn check_quantize(args: &Args) -> Result<()> {
    let what = "quantize_codes";
    let weight = args.view(0);
    check_weight(what, &weight)?;
    let (w, _) = quantize_params(args)?;
    let shape = [weight.dims[0], weight.dims[1]];
    check_scales(what, &w, shape, &args.view(1), args.optional(2))?;
    check_codes(what, &w, shape, &args.out())?;
    ensure!(args.out().is_contiguous(), "{what} gives dense codes");
    Ok(())
}

/// What `quantize_codes` is told.
fn quantize_params(args: &Args) -> Result<(Weight, DType)> {
    let what = "quantize_codes";
    ensure!(args.i32(3) > 0, "{what} takes a positive group, got {}", args.i32(3));
    let w = weight_of(what, args.params[0], [args.params[1], args.params[2]], args.i32(3), args.view(0).dims[1])?;
    Ok((w, dtype_of(what, args.params[4])?))
}

/// The code of a number by a scale and a zero point, plainly; NaN becomes the lowest integer.
fn reference_code(w: &Weight, dtype: DType, x: f32, scale: f32, zero: i32) -> u8 {
    if let Some(small) = Small::of(w) {
        return reference_small(&small, if x == 0.0 && scale == 0.0 { x } else { x / scale });
    }
    let (low, high) = bounds(w);
    let product = product_dtype(w, dtype);
    let rounded = round_to(product, x * round_to(product, 1.0 / scale)).round_ties_even();
    if rounded.is_nan() { low as u8 } else { (rounded + zero as f32).clamp(low as f32, high as f32) as i32 as u8 }
}

/// The code of the small float nearest to a number, ties to the even code.
fn reference_small(small: &Small, x: f32) -> u8 {
    let sign = (x.is_sign_negative() as u8) << (small.ebits + small.mbits);
    if x.is_nan() && small.nan {
        return sign | 0x7f;
    }
    // f32's subnormals are normal in f64, so that its exponent can be read off.
    let magnitude = if x.abs() < small.largest { x.abs() as f64 } else { small.largest as f64 };
    let exponent = ((magnitude.to_bits() >> 52) as i32 - 1023).max(1 - small.bias());
    let steps = magnitude / 2f64.powi(exponent - small.mbits as i32);
    let below = (((exponent + small.bias() - 1) as u8) << small.mbits) + steps as u8;
    let up = steps.fract() > 0.5 || steps.fract() == 0.5 && below % 2 == 1;
    sign | (below + up as u8)
}

/// Which two of four magnitudes are kept: the largest, and of equals the earlier ones.
fn reference_kept(x: [f32; 4]) -> [bool; 4] {
    let magnitude = x.map(|x| x.to_bits() & i32::MAX as u32);
    std::array::from_fn(|i| {
        let above = (0..4).filter(|&j| magnitude[j] > magnitude[i] || magnitude[j] == magnitude[i] && j < i);
        above.count() < 2
    })
}

fn reference_quantize(args: &Args) -> Result<()> {
    let (weight, scale, zero, out) = (args.view(0), args.view(1), args.optional(2), args.out());
    let (w, dtype) = quantize_params(args)?;
    let [n, k] = [weight.dims[0], weight.dims[1]];
    for row in 0..n {
        let x: Vec<f32> = (0..k).map(|i| round_to(dtype, unsafe { weight.get(weight.row_offset(row) + i) })).collect();
        let code = |i: usize| unsafe {
            let at = row * w.groups(k) + i / w.group;
            reference_code(&w, dtype, x[i], scale.get(at), zero.map_or(0, |zero| *zero.at::<i8>(at) as i32))
        };
        let mut bytes = vec![0u8; w.row_bytes(k)];
        for i in 0..k {
            let bit = i * w.bits();
            match w.format {
                Format::Int4 => bytes[i / 2] |= (code(i) & 15) << (4 * (i % 2)),
                Format::Fpx => {
                    let spread = (code(i) as u16) << (bit % 8);
                    bytes[bit / 8] |= spread as u8;
                    if spread > 255 {
                        bytes[bit / 8 + 1] |= (spread >> 8) as u8;
                    }
                }
                Format::SparseInt8 => {
                    let group = i / 4;
                    let kept = reference_kept(std::array::from_fn(|j| x[4 * group + j]));
                    if kept[i % 4] {
                        let place = kept[..i % 4].iter().filter(|&&kept| kept).count();
                        bytes[2 * group + place] = code(i);
                        bytes[k / 2 + group / 2] |= ((i % 4) << (4 * (group % 2) + 2 * place)) as u8;
                    }
                }
                _ => bytes[i] = code(i),
            }
        }
        unsafe { std::ptr::copy(bytes.as_ptr(), out.ptr.add(row * bytes.len()), bytes.len()) };
    }
    Ok(())
}

fn run_quantize(cx: &Cx, args: &Args) -> Result<()> {
    match args.view(0).dtype {
        DType::F32 => quantize::<f32>(cx, args),
        DType::BF16 => quantize::<bf16>(cx, args),
        _ => quantize::<f16>(cx, args),
    }
}

fn quantize<E: Element>(cx: &Cx, args: &Args) -> Result<()> {
    let (weight, scale, zero, out) = (args.view(0), args.view(1), args.optional(2), args.out());
    let (w, dtype) = quantize_params(args)?;
    let [n, k] = [weight.dims[0], weight.dims[1]];
    let (count, bytes) = (w.groups(k), w.row_bytes(k));
    // The numbers of a row, its codes, and which of each four are kept.
    each_row(cx, n, k, row_scratch(k) + k + k / 4, &|row, memory| unsafe {
        let (x, codes, to) = (memory as *mut f32, memory.add(row_scratch(k)), out.at::<u8>(row * bytes));
        let groups = Groups { count, size: w.group, scales: scale.at(row * count) };
        let zeros = zero.map(|zero| zero.at::<i8>(row * count) as *const i8);
        load_row::<E>(
            cx.level,
            weight.at(weight.row_offset(row)),
            x,
            k,
            if dtype == weight.dtype { DType::F32 } else { dtype },
        );
        if w.format == Format::SparseInt8 {
            kept(cx.level, x, codes.add(k), k / 4);
        }
        match Small::of(&w) {
            Some(small) => small_codes(cx.level, x, codes, groups, small),
            None => integer_codes(cx.level, x, codes, groups, zeros, bounds(&w), product_dtype(&w, dtype)),
        }
        match w.format {
            Format::SparseInt8 => pack_sparse(codes, codes.add(k), to, k),
            _ if w.bits() == 8 => std::ptr::copy_nonoverlapping(codes, to, k),
            _ => pack_bits(cx.level, codes, to, k, w.bits()),
        }
    })
}

/// Bytes of a row of k floats in scratch memory.
fn row_scratch(k: usize) -> usize {
    4 * k.next_multiple_of(16)
}

dispatch! {
    fn load_row<E: Element>(x: *const E, to: *mut f32, n: usize, dtype: DType) => load_row_at
}

/// Widens a row, rounded to a dtype.
#[inline(always)]
unsafe fn load_row_at<S: Simd, E: Element>(x: *const E, to: *mut f32, n: usize, dtype: DType) {
    unsafe {
        for i in (0..n).step_by(S::LANES) {
            let count = (n - i).min(S::LANES);
            store_step::<S, f32>(to.add(i), round::<S>(load_step::<S, E>(x.add(i), 1, count), dtype), 1, count);
        }
    }
}

/// A vector rounded to a dtype.
#[inline(always)]
unsafe fn round<S: Simd>(v: S::V, dtype: DType) -> S::V {
    unsafe {
        match dtype {
            DType::BF16 => {
                let mut lanes = [bf16::ZERO; 16];
                S::store_bf16(lanes.as_mut_ptr(), v);
                S::load_bf16(lanes.as_ptr())
            }
            DType::F16 => {
                let mut lanes = [f16::ZERO; 16];
                S::store_f16(lanes.as_mut_ptr(), v);
                S::load_f16(lanes.as_ptr())
            }
            _ => v,
        }
    }
}

/// The groups of a row, and their scales.
#[derive(Clone, Copy)]
struct Groups {
    count: usize,
    size: usize,
    scales: *const f32,
}

impl Groups {
    /// Columns of the row.
    #[inline(always)]
    fn columns(&self) -> usize {
        self.count * self.size
    }

    /// Calls `body(index, scale, columns)` for each.
    #[inline(always)]
    unsafe fn each(&self, mut body: impl FnMut(usize, f32, std::ops::Range<usize>)) {
        for group in 0..self.count {
            let first = group * self.size;
            body(group, unsafe { *self.scales.add(group) }, first..first + self.size);
        }
    }
}

/// Two rows of n elements.
#[inline(always)]
unsafe fn pair<'a, A: 'a, B: 'a>(from: *const A, to: *mut B, n: usize) -> impl Iterator<Item = (&'a A, &'a mut B)> {
    unsafe { std::slice::from_raw_parts(from, n).iter().zip(std::slice::from_raw_parts_mut(to, n)) }
}

dispatch! {
    fn integer_codes(
        x: *mut f32,
        codes: *mut u8,
        groups: Groups,
        zeros: Option<*const i8>,
        bounds: (i32, i32),
        product: DType,
    ) => integer_codes_at
}

/// Multiplies numbers by the reciprocal of their scale, rounds to integers, adds the zero point and keeps within bounds;
/// x is used up.
#[inline(always)]
unsafe fn integer_codes_at<S: Simd>(
    x: *mut f32,
    codes: *mut u8,
    groups: Groups,
    zeros: Option<*const i8>,
    (low, high): (i32, i32),
    product: DType,
) {
    // In a float about 1.5 * 2^23 the integer stands in the lowest bits, of which those of the constant are zeros.
    const MAGIC: f32 = 12_582_912.0;
    unsafe {
        groups.each(|group, scale, columns| {
            let factor = S::splat(round_to(product, 1.0 / scale));
            let zero = zeros.map_or(0, |zeros| *zeros.add(group) as i32);
            // Bounds are integers, so that it is the same to keep within them before rounding.
            let [low, high] = [low, high].map(|bound| S::splat((bound - zero) as f32));
            let magic = S::splat(MAGIC + zero as f32);
            for i in columns.clone().step_by(S::LANES) {
                let count = (columns.end - i).min(S::LANES);
                let v = round::<S>(S::mul(load_step::<S, f32>(x.add(i), 1, count), factor), product);
                // Of NaN and a bound the bound is taken.
                let v = S::round(S::min(S::max(v, low), high));
                store_step::<S, f32>(x.add(i), S::add(v, magic), 1, count);
            }
        });
        pair(x, codes, groups.columns()).for_each(|(x, code)| *code = x.to_bits() as u8);
    }
}

dispatch! {
    fn small_codes(x: *mut f32, codes: *mut u8, groups: Groups, small: Small) => small_codes_at
}

/// Divides numbers by their scale and rounds them to small floats; x is used up.
#[inline(always)]
unsafe fn small_codes_at<S: Simd>(x: *mut f32, codes: *mut u8, groups: Groups, small: Small) {
    let drop = 23 - small.mbits;
    let half = (1u32 << (drop - 1)) - 1;
    let rebias = ((127 - small.bias()) as u32) << small.mbits;
    let power = |exponent: i32| f32::from_bits(((127 + exponent) as u32) << 23);
    let least_normal = power(1 - small.bias());
    // Its last place is the step between subnormals: adding it rounds to whole steps.
    let magic = power(1 - small.bias() - small.mbits as i32 + 23);
    let nan = if small.nan { 0x7f } else { (1u32 << (small.ebits + small.mbits)) - 1 };
    unsafe {
        groups.each(|_, scale, columns| {
            if scale == 0.0 {
                columns.for_each(|i| *x.add(i) = if *x.add(i) == 0.0 { *x.add(i) } else { *x.add(i) / scale });
                return;
            }
            let divisor = S::splat(scale);
            for i in columns.clone().step_by(S::LANES) {
                let count = (columns.end - i).min(S::LANES);
                store_step::<S, f32>(x.add(i), S::div(load_step::<S, f32>(x.add(i), 1, count), divisor), 1, count);
            }
        });
        pair(x, codes, groups.columns()).for_each(|(&x, code)| {
            let sign = (x.to_bits() >> 31) << (small.ebits + small.mbits);
            let magnitude = if x.abs() < small.largest { x.abs() } else { small.largest };
            let subnormal = (magnitude + magic).to_bits().wrapping_sub(magic.to_bits());
            let bits = magnitude.to_bits();
            let normal = ((bits + half + ((bits >> drop) & 1)) >> drop).wrapping_sub(rebias);
            let rounded = if magnitude < least_normal { subnormal } else { normal };
            *code = (sign | if x.is_nan() { nan } else { rounded }) as u8;
        });
    }
}

dispatch! {
    fn kept(x: *const f32, masks: *mut u8, fours: usize) => kept_at
}

/// Which two of each four numbers are kept, as bits: the largest magnitudes, and of equals the earlier ones.
#[inline(always)]
#[allow(clippy::extra_unused_type_parameters, reason = "the level alone makes vectors of the loops")]
unsafe fn kept_at<S: Simd>(x: *const f32, masks: *mut u8, fours: usize) {
    /// Fours whose first, second, third and fourth numbers are set apart to be compared by vectors.
    const BLOCK: usize = 64;
    let mut apart = [[0i32; BLOCK]; 4];
    for first in (0..fours).step_by(BLOCK) {
        let (x, masks) = unsafe {
            let count = (fours - first).min(BLOCK);
            let x = std::slice::from_raw_parts((x as *const [f32; 4]).add(first), count);
            (x, std::slice::from_raw_parts_mut(masks.add(first), count))
        };
        for (i, x) in x.iter().enumerate() {
            for place in 0..4 {
                apart[place][i] = (x[place].to_bits() & i32::MAX as u32) as i32;
            }
        }
        let [a, b, c, d] = &apart;
        for (i, mask) in masks.iter_mut().enumerate() {
            let over = |x: &[i32; BLOCK], y: &[i32; BLOCK]| (x[i] >= y[i]) as i32;
            let [ab, ac, ad, bc, bd, cd] = [over(a, b), over(a, c), over(a, d), over(b, c), over(b, d), over(c, d)];
            // A number is kept that is above two of the others.
            let wins = [ab + ac + ad, 1 - ab + bc + bd, 2 - ac - bc + cd, 3 - ad - bd - cd];
            *mask = (wins[0] >> 1 | wins[1] & 2 | (wins[2] & 2) << 1 | (wins[3] & 2) << 2) as u8;
        }
    }
}

/// The places of the two bits of a mask of four: the lower one in two bits, then the higher one.
const PLACES: [u8; 16] = {
    let mut places = [0; 16];
    let mut low = 0;
    while low < 4 {
        let mut high = low + 1;
        while high < 4 {
            places[1 << low | 1 << high] = (low | high << 2) as u8;
            high += 1;
        }
        low += 1;
    }
    places
};

/// The kept codes of a row, then their places.
unsafe fn pack_sparse(codes: *const u8, masks: *const u8, to: *mut u8, k: usize) {
    unsafe {
        for pair in 0..k / 8 {
            let mut both = 0;
            for group in 2 * pair..2 * pair + 2 {
                let places = PLACES[(*masks.add(group) & 15) as usize];
                let four = u32::from_le_bytes((codes as *const [u8; 4]).add(group).read());
                *to.add(2 * group) = (four >> (8 * (places & 3))) as u8;
                *to.add(2 * group + 1) = (four >> (8 * (places >> 2))) as u8;
                both |= places << (4 * (group % 2));
            }
            *to.add(k / 2 + pair) = both;
        }
    }
}

dispatch! {
    fn pack_bits(codes: *const u8, to: *mut u8, n: usize, bits: usize) => pack_bits_at
}

/// Packs codes of fewer than 8 bits one after another.
#[inline(always)]
#[allow(clippy::extra_unused_type_parameters, reason = "the level alone makes vectors of the loops")]
unsafe fn pack_bits_at<S: Simd>(codes: *const u8, to: *mut u8, n: usize, bits: usize) {
    unsafe {
        match bits {
            3 => pack::<3>(codes, to, n),
            4 => pack::<4>(codes, to, n),
            5 => pack::<5>(codes, to, n),
            6 => pack::<6>(codes, to, n),
            _ => pack::<7>(codes, to, n),
        }
    }
}

/// `pack_bits` of a size that the compiler knows.
#[inline(always)]
unsafe fn pack<const BITS: usize>(codes: *const u8, to: *mut u8, n: usize) {
    unsafe {
        let whole = n / 8;
        for i in 0..whole {
            let packed = squeeze((codes as *const [u8; 8]).add(i).read(), BITS);
            (to as *mut [u8; BITS]).add(i).write(*(packed.as_ptr() as *const [u8; BITS]));
        }
        let mut last = [0u8; 8];
        std::ptr::copy_nonoverlapping(codes.add(8 * whole), last.as_mut_ptr(), n % 8);
        let packed = squeeze(last, BITS);
        std::ptr::copy_nonoverlapping(packed.as_ptr(), to.add(whole * BITS), (n % 8 * BITS).div_ceil(8));
    }
}

/// The low bits of eight codes, next to each other: pairs, then fours, then all.
#[inline(always)]
fn squeeze(codes: [u8; 8], bits: usize) -> [u8; 8] {
    let x = u64::from_le_bytes(codes) & repeat(8, bits);
    let x = x & repeat(16, bits) | (x >> 8 & repeat(16, bits)) << bits;
    let x = x & repeat(32, 2 * bits) | (x >> 16 & repeat(32, 2 * bits)) << (2 * bits);
    (x & repeat(64, 4 * bits) | x >> 32 << (4 * bits)).to_le_bytes()
}

/// The inverse of `squeeze`.
#[inline(always)]
fn spread(packed: [u8; 8], bits: usize) -> [u8; 8] {
    let x = u64::from_le_bytes(packed);
    let x = x & repeat(64, 4 * bits) | (x >> (4 * bits) & repeat(64, 4 * bits)) << 32;
    let x = x & repeat(32, 2 * bits) | (x >> (2 * bits) & repeat(32, 2 * bits)) << 16;
    (x & repeat(16, bits) | (x >> bits & repeat(16, bits)) << 8).to_le_bytes()
}

/// The lowest bits of each part of a word.
#[inline(always)]
const fn repeat(part: usize, bits: usize) -> u64 {
    u64::MAX / (u64::MAX >> (64 - part)) * ((1 << bits) - 1)
}

// Back to floats.

fn check_dequantize(args: &Args) -> Result<()> {
    let what = "dequantize";
    let (w, shape) = dequantize_params(args)?;
    check_codes(what, &w, shape, &args.view(0))?;
    check_scales(what, &w, shape, &args.view(1), args.optional(2))?;
    let out = args.out();
    ensure!(
        out.dtype.is_float() && out.shape() == shape && out.is_contiguous(),
        "{what} gives dense floats {shape:?}, not {:?} {:?}",
        out.dtype,
        out.shape()
    );
    Ok(())
}

/// What `dequantize` is told.
fn dequantize_params(args: &Args) -> Result<(Weight, [usize; 2])> {
    let what = "dequantize";
    let [n, k, group] = [0, 1, 5].map(|index| args.i32(index));
    ensure!(n >= 0 && k >= 0, "{what} takes no negative shape, got [{n}, {k}]");
    ensure!(group > 0, "{what} takes a positive group, got {group}");
    let w = weight_of(what, args.params[2], [args.params[3], args.params[4]], group, k as usize)?;
    Ok((w, [n as usize, k as usize]))
}

/// The product is rounded to f32, then to out's dtype, as in `_dequantize_affine_no_dtype_check`,
/// `_dequantize_affine_float8` and `_dequantize_affine_floatx`.
fn reference_dequantize(args: &Args) -> Result<()> {
    let (codes, scale, zero, out) = (args.view(0), args.view(1), args.optional(2), args.out());
    let (w, [n, k]) = dequantize_params(args)?;
    for i in 0..n * k {
        let (row, column) = (i / k, i % k);
        let at = row * w.groups(k) + column / w.group;
        unsafe {
            let code = w.value(codes.ptr.add(codes.row_offset(row)), column, k);
            let zero = zero.map_or(0.0, |zero| zero.get(at));
            out.set(i, (code - zero) * scale.get(at));
        }
    }
    Ok(())
}

fn run_dequantize(cx: &Cx, args: &Args) -> Result<()> {
    match args.out().dtype {
        DType::F32 => dequantize::<f32>(cx, args),
        DType::BF16 => dequantize::<bf16>(cx, args),
        _ => dequantize::<f16>(cx, args),
    }
}

fn dequantize<E: Element>(cx: &Cx, args: &Args) -> Result<()> {
    let (codes, scale, zero, out) = (args.view(0), args.view(1), args.optional(2), args.out());
    let (w, [n, k]) = dequantize_params(args)?;
    let count = w.groups(k);
    let table = table(&w);
    // The values of a row, and a byte for each of its codes.
    each_row(cx, n, k, row_scratch(k) + k, &|row, memory| unsafe {
        let (x, bytes) = (memory as *mut f32, memory.add(row_scratch(k)));
        let from = codes.at::<u8>(codes.row_offset(row)) as *const u8;
        match w.format {
            Format::SparseInt8 => unpack_sparse(from, bytes, k),
            _ if w.bits() == 8 => std::ptr::copy_nonoverlapping(from, bytes, k),
            _ => unpack_bits(cx.level, from, bytes, k, w.bits()),
        }
        let groups = Groups { count, size: w.group, scales: scale.at(row * count) };
        let zeros = zero.map(|zero| zero.at::<i8>(row * count) as *const i8);
        pair(bytes, x, k).for_each(|(&code, x)| *x = table[code as usize]);
        dequantize_row::<E>(cx.level, x, groups, zeros, out.at(row * k));
    })
}

/// The value of each code of a byte.
fn table(w: &Weight) -> [f32; 256] {
    std::array::from_fn(|code| match w.format {
        Format::Int4 => (((code as u8) << 4) as i8 >> 4) as f32,
        Format::E4m3 => e4m3(code as u8),
        Format::E5m2 => e5m2(code as u8),
        Format::Fpx => small_float(code as u32 & ((1 << w.bits()) - 1), w.ebits, w.mbits),
        Format::Int8 | Format::SparseInt8 => code as u8 as i8 as f32,
    })
}

dispatch! {
    fn dequantize_row<E: Element>(
        x: *const f32, groups: Groups, zeros: Option<*const i8>, out: *mut E,
    ) => dequantize_row_at
}

/// Values of codes, less the zero point, times the scale.
#[inline(always)]
unsafe fn dequantize_row_at<S: Simd, E: Element>(x: *const f32, groups: Groups, zeros: Option<*const i8>, out: *mut E) {
    unsafe {
        groups.each(|group, scale, columns| {
            let (zero, scale) = (S::splat(zeros.map_or(0.0, |zeros| *zeros.add(group) as f32)), S::splat(scale));
            for i in columns.clone().step_by(S::LANES) {
                let count = (columns.end - i).min(S::LANES);
                let v = S::mul(S::sub(load_step::<S, f32>(x.add(i), 1, count), zero), scale);
                store_step::<S, E>(out.add(i), v, 1, count);
            }
        });
    }
}

dispatch! {
    fn unpack_bits(from: *const u8, codes: *mut u8, n: usize, bits: usize) => unpack_bits_at
}

/// The inverse of `pack_bits`.
#[inline(always)]
#[allow(clippy::extra_unused_type_parameters, reason = "the level alone makes vectors of the loops")]
unsafe fn unpack_bits_at<S: Simd>(from: *const u8, codes: *mut u8, n: usize, bits: usize) {
    unsafe {
        match bits {
            3 => unpack::<3>(from, codes, n),
            4 => unpack::<4>(from, codes, n),
            5 => unpack::<5>(from, codes, n),
            6 => unpack::<6>(from, codes, n),
            _ => unpack::<7>(from, codes, n),
        }
    }
}

/// `unpack_bits` of a size that the compiler knows.
#[inline(always)]
unsafe fn unpack<const BITS: usize>(from: *const u8, codes: *mut u8, n: usize) {
    unsafe {
        // Whole words as far as the row reaches, the rest byte by byte.
        let bytes = (n * BITS).div_ceil(8);
        let words = (bytes.saturating_sub(8 - BITS) / BITS).min(n / 8);
        for i in 0..words {
            let packed = (from.add(i * BITS) as *const [u8; 8]).read();
            (codes as *mut [u8; 8]).add(i).write(spread(packed, BITS));
        }
        for first in (8 * words..n).step_by(8) {
            let count = (n - first).min(8);
            let mut packed = [0u8; 8];
            let from = from.add(first / 8 * BITS);
            std::ptr::copy_nonoverlapping(from, packed.as_mut_ptr(), (count * BITS).div_ceil(8));
            std::ptr::copy_nonoverlapping(spread(packed, BITS).as_ptr(), codes.add(first), count);
        }
    }
}

/// The codes of a sparse row, with zeros where none is kept.
unsafe fn unpack_sparse(from: *const u8, codes: *mut u8, k: usize) {
    unsafe {
        std::ptr::write_bytes(codes, 0, k);
        for group in 0..k / 4 {
            let places = *from.add(k / 2 + group / 2) >> (4 * (group % 2));
            // The first of two at one place counts, as in `Weight::value`.
            for i in [1, 0] {
                *codes.add(4 * group + ((places >> (2 * i)) & 3) as usize) = *from.add(2 * group + i);
            }
        }
    }
}

// Pruning.

fn check_prune(args: &Args) -> Result<()> {
    let what = "prune_semi_structured";
    let (weight, out) = (args.view(0), args.out());
    check_weight(what, &weight)?;
    ensure!(weight.dims[1].is_multiple_of(4), "{what} takes columns in fours, got {}", weight.dims[1]);
    ensure!(
        out.dtype == weight.dtype && out.shape() == weight.shape() && out.is_contiguous(),
        "{what} of {:?} {:?} cannot give {:?} {:?}",
        weight.dtype,
        weight.shape(),
        out.dtype,
        out.shape()
    );
    Ok(())
}

fn reference_prune(args: &Args) -> Result<()> {
    let (weight, out) = (args.view(0), args.out());
    for first in (0..weight.len()).step_by(4) {
        let x: [f32; 4] = std::array::from_fn(|i| unsafe { weight.get(weight.offset(first + i)) });
        for (i, kept) in reference_kept(x).into_iter().enumerate() {
            unsafe { out.set(first + i, if kept { x[i] } else { 0.0 }) };
        }
    }
    Ok(())
}

fn run_prune(cx: &Cx, args: &Args) -> Result<()> {
    match args.out().dtype {
        DType::F32 => prune::<f32>(cx, args),
        DType::BF16 => prune::<bf16>(cx, args),
        _ => prune::<f16>(cx, args),
    }
}

fn prune<E: Element>(cx: &Cx, args: &Args) -> Result<()> {
    let (weight, out) = (args.view(0), args.out());
    let [n, k] = [weight.dims[0], weight.dims[1]];
    // The numbers of a row, and which of each four are kept.
    each_row(cx, n, k, row_scratch(k) + k / 4, &|row, memory| unsafe {
        let (x, masks) = (memory as *mut f32, memory.add(row_scratch(k)));
        load_row::<E>(cx.level, weight.at(weight.row_offset(row)), x, k, DType::F32);
        kept(cx.level, x, masks, k / 4);
        prune_row::<E>(cx.level, x, masks, out.at(row * k), k);
    })
}

/// For each mask of four, all bits of what is kept.
const KEPT: [[u32; 4]; 16] = {
    let mut kept = [[0; 4]; 16];
    let mut i = 0;
    while i < 64 {
        kept[i / 4][i % 4] = if ((i / 4) >> (i % 4)) & 1 == 1 { u32::MAX } else { 0 };
        i += 1;
    }
    kept
};

dispatch! {
    fn prune_row<E: Element>(x: *mut f32, masks: *const u8, out: *mut E, n: usize) => prune_row_at
}

#[inline(always)]
unsafe fn prune_row_at<S: Simd, E: Element>(x: *mut f32, masks: *const u8, out: *mut E, n: usize) {
    unsafe {
        pair(masks, x as *mut [u32; 4], n / 4).for_each(|(&mask, x)| {
            let kept = KEPT[(mask & 15) as usize];
            *x = [x[0] & kept[0], x[1] & kept[1], x[2] & kept[2], x[3] & kept[3]];
        });
        for i in (0..n).step_by(S::LANES) {
            let count = (n - i).min(S::LANES);
            store_step::<S, E>(out.add(i), load_step::<S, f32>(x.add(i), 1, count), 1, count);
        }
    }
}
