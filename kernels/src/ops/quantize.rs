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
//!   `_quantize_affine_float8` divides by it in f32. A row of zeros has the scale 0, and its 0 / 0 would store NaN:
//!   here zero divided by any scale is zero.
//! - `fpx` (`_choose_qparams_affine_floatx`, `_quantize_affine_floatx`): max|w|, at least 1e-12, over the largest value
//!   in f32, rounded to the weight's dtype; division in f32, nearest even, saturating.
//!
//! The divisions by a number are true divisions, as PyTorch's on a CPU.

use super::quantized_linear::{check_codes, check_scales};
use super::*;
use crate::dispatch;
use crate::ensure;
use crate::quant::{Weight, e4m3, e5m2, small_float};
use crate::rows::widen;
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

/// The scale for numbers of a reach, rounded to `dtype` after each operation.
fn scale_of(weight: &Weight, symmetric: bool, dtype: DType, reach: Reach) -> f32 {
    // Neither drops NaN, as `f32::max` would.
    let larger = |a: f32, b: f32| if a < b || b.is_nan() { b } else { a };
    let at_least = |x: f32, least: f32| if x < least { least } else { x };
    let range = if symmetric { larger(reach.above, reach.below) } else { round_to(dtype, reach.above + reach.below) };
    let over = |range: f32, divisor: f32| round_to(dtype, range / divisor);
    match (weight.format, Small::of(weight)) {
        (Format::Fpx, Some(small)) => over(at_least(range, 1e-12), small.largest),
        (_, Some(small)) => over(range, small.largest),
        (Format::Int4, _) => {
            let smallest_normal = if dtype == DType::F16 { f16::MIN_POSITIVE.to_f32() } else { f32::MIN_POSITIVE };
            at_least(over(range, if symmetric { 7.5 } else { 15.0 }), smallest_normal)
        }
        _ => at_least(over(range, 127.5), f32::EPSILON),
    }
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
fn scale_params(args: &Args) -> Result<(Weight, bool, DType)> {
    let what = "quantize_scale";
    let w = weight_of(what, args.params[0], [args.params[1], args.params[2]], args.i32(3), args.view(0).dims[1])?;
    Ok((w, args.i32(4) == 1, dtype_of(what, args.params[5])?))
}

/// The reach of some columns of a row, plainly.
fn reference_reach(weight: &View, row: usize, columns: std::ops::Range<usize>, dtype: DType, from: Reach) -> Reach {
    let larger = |a: f32, b: f32| if b > a || b.is_nan() { b } else { a };
    columns.fold(from, |reach, column| {
        let x = round_to(dtype, unsafe { weight.get(weight.row_offset(row) + column) });
        Reach { above: larger(reach.above, x), below: larger(reach.below, -x) }
    })
}

fn reference_scale(args: &Args) -> Result<()> {
    let (weight, out) = (args.view(0), args.out());
    let (w, symmetric, dtype) = scale_params(args)?;
    let [n, k] = [weight.dims[0], weight.dims[1]];
    if args.i32(3) == 0 {
        let all = (0..n).fold(Reach::default(), |reach, row| reference_reach(&weight, row, 0..k, dtype, reach));
        unsafe { out.set(0, scale_of(&w, symmetric, dtype, all)) };
        return Ok(());
    }
    for i in 0..out.len() {
        let (row, start) = (i / w.groups(k), i % w.groups(k) * w.group);
        let reach = reference_reach(&weight, row, start..start + w.group, dtype, Reach::default());
        unsafe { out.set(i, scale_of(&w, symmetric, dtype, reach)) };
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

/// Bytes of a row of k floats in scratch memory.
fn row_scratch(k: usize) -> usize {
    4 * k.next_multiple_of(16)
}

/// Reads a row of a weight as f32, rounded to a dtype.
unsafe fn load_row(cx: &Cx, weight: &View, row: usize, dtype: DType, to: *mut f32) {
    let (at, k) = (weight.row_offset(row), weight.dims[1]);
    unsafe {
        match weight.dtype {
            DType::F32 => load_row_as::<f32>(cx.level, weight.at(at), to, k),
            DType::BF16 => load_row_as::<bf16>(cx.level, weight.at(at), to, k),
            _ => load_row_as::<f16>(cx.level, weight.at(at), to, k),
        }
        if dtype != weight.dtype {
            round_row(cx.level, dtype, to, k);
        }
    }
}

dispatch! {
    fn load_row_as<E: Element>(x: *const E, to: *mut f32, n: usize) => widen
}

/// Rounds a row in scratch memory to a dtype in place; no element is written but the row's own.
unsafe fn round_row(level: crate::level::Level, dtype: DType, row: *mut f32, n: usize) {
    unsafe {
        match dtype {
            DType::BF16 => round_row_as::<bf16>(level, row, n),
            DType::F16 => round_row_as::<f16>(level, row, n),
            _ => {}
        }
    }
}

dispatch! {
    fn round_row_as<E: Element>(row: *mut f32, n: usize) => round_row_at
}

#[inline(always)]
unsafe fn round_row_at<S: Simd, E: Element>(row: *mut f32, n: usize) {
    unsafe {
        let mut lanes = [E::from(0.0); 16];
        for i in (0..n).step_by(S::LANES) {
            let count = (n - i).min(S::LANES);
            E::store::<S>(lanes.as_mut_ptr(), S::load_n(row.add(i), count));
            S::store_n(row.add(i), E::load::<S>(lanes.as_ptr()), count);
        }
    }
}

/// Loops over rows take this many elements at once, so that they are whole vectors on every level.
const CHUNK: usize = 16;

dispatch! {
    fn reaches(row: *const f32, groups: usize, group: usize, to: *mut Reach) => reaches_at
}

/// The reach of each group of a row. The bits of floats are ordered as the floats are, with NaN above all.
#[inline(always)]
unsafe fn reaches_at<S: Simd>(row: *const f32, groups: usize, group: usize, to: *mut Reach) {
    for index in 0..groups {
        let part = unsafe { std::slice::from_raw_parts(row.add(index * group), group) };
        let (mut above, mut below) = ([0i32; CHUNK], [0i32; CHUNK]);
        let chunks = part.chunks_exact(CHUNK);
        for (lane, x) in chunks.remainder().iter().enumerate() {
            let bits = x.to_bits() as i32;
            above[lane] = bits.max(0);
            below[lane] = (bits ^ i32::MIN).max(0);
        }
        for chunk in chunks {
            for lane in 0..CHUNK {
                let bits = chunk[lane].to_bits() as i32;
                above[lane] = above[lane].max(bits);
                below[lane] = below[lane].max(bits ^ i32::MIN);
            }
        }
        let largest = |lanes: [i32; CHUNK]| f32::from_bits(lanes.into_iter().fold(0, i32::max) as u32);
        unsafe { to.add(index).write(Reach { above: largest(above), below: largest(below) }) };
    }
}

fn run_scale(cx: &Cx, args: &Args) -> Result<()> {
    let (weight, out) = (args.view(0), args.out());
    let (w, symmetric, dtype) = scale_params(args)?;
    if args.i32(3) > 0 {
        return each_reach(cx, &weight, &w, dtype, &|at, reach| unsafe {
            *out.at::<f32>(at) = scale_of(&w, symmetric, dtype, reach);
        });
    }
    let [above, below] = [AtomicU32::new(0), AtomicU32::new(0)];
    each_reach(cx, &weight, &w, dtype, &|_, reach| {
        above.fetch_max(reach.above.to_bits(), Ordering::Relaxed);
        below.fetch_max(reach.below.to_bits(), Ordering::Relaxed);
    })?;
    let [above, below] = [above, below].map(|bits| f32::from_bits(bits.into_inner()));
    unsafe { out.set(0, scale_of(&w, symmetric, dtype, Reach { above, below })) };
    Ok(())
}

/// Runs `body(index, reach)` for every group of a weight on all threads.
fn each_reach(cx: &Cx, weight: &View, w: &Weight, dtype: DType, body: &(dyn Fn(usize, Reach) + Sync)) -> Result<()> {
    let [n, k] = [weight.dims[0], weight.dims[1]];
    let groups = w.groups(k);
    each_row(cx, n, k, row_scratch(k) + groups * size_of::<Reach>(), &|row, memory| unsafe {
        let (x, found) = (memory as *mut f32, memory.add(row_scratch(k)) as *mut Reach);
        load_row(cx, weight, row, dtype, x);
        reaches(cx.level, x, groups, w.group, found);
        (0..groups).for_each(|group| body(row * groups + group, *found.add(group)));
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
        return reference_small(&small, if x == 0.0 { x } else { x / scale });
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
    let (weight, scale, zero, out) = (args.view(0), args.view(1), args.optional(2), args.out());
    let (w, dtype) = quantize_params(args)?;
    let [n, k] = [weight.dims[0], weight.dims[1]];
    let (groups, bytes) = (w.groups(k), w.row_bytes(k));
    let (product, small) = (product_dtype(&w, dtype), Small::of(&w));
    // A row of floats, its codes, and which of each four are kept.
    each_row(cx, n, k, row_scratch(k) + k + k / 4, &|row, memory| unsafe {
        let (x, codes) = (memory as *mut f32, memory.add(row_scratch(k)));
        let masks = codes.add(k);
        load_row(cx, &weight, row, dtype, x);
        if w.format == Format::SparseInt8 {
            kept(cx.level, x, masks, k / 4);
        }
        let groups = Groups { count: groups, size: w.group, scales: scale.at(row * groups) };
        match small {
            Some(small) => small_codes(cx.level, x, codes, groups, small),
            None => {
                multiply(cx.level, x, groups, product);
                round_row(cx.level, product, x, k);
                let zeros = zero.map(|zero| zero.at::<i8>(row * groups.count) as *const i8);
                integer_codes(cx.level, x, codes, groups, zeros, bounds(&w));
            }
        }
        let to = out.at::<u8>(row * bytes);
        match w.format {
            Format::SparseInt8 => pack_sparse(codes, masks, to, k),
            _ if w.bits() == 8 => std::ptr::copy_nonoverlapping(codes, to, bytes),
            _ => pack_bits(cx.level, codes, to, k, w.bits()),
        }
    })
}

/// The groups of a row, and their scales.
#[derive(Clone, Copy)]
struct Groups {
    count: usize,
    size: usize,
    scales: *const f32,
}

impl Groups {
    /// Calls `body(first, scale, group)` for each.
    #[inline(always)]
    unsafe fn each(&self, mut body: impl FnMut(usize, f32, usize)) {
        for group in 0..self.count {
            body(group * self.size, unsafe { *self.scales.add(group) }, group);
        }
    }
}

/// The first `size` elements at two places, in chunks of `CHUNK`, and the rest one by one.
#[inline(always)]
unsafe fn each_pair<A, B>(from: *const A, to: *mut B, size: usize, mut f: impl FnMut(&A, &mut B)) {
    let (from, to) = unsafe { (std::slice::from_raw_parts(from, size), std::slice::from_raw_parts_mut(to, size)) };
    let (from, to) = (from.chunks(CHUNK), to.chunks_mut(CHUNK));
    for (from, to) in from.zip(to) {
        match (<&[A; CHUNK]>::try_from(from), <&mut [B; CHUNK]>::try_from(&mut *to)) {
            (Ok(from), Ok(to)) => from.iter().zip(to).for_each(|(a, b)| f(a, b)),
            _ => from.iter().zip(to).for_each(|(a, b)| f(a, b)),
        }
    }
}

dispatch! {
    fn multiply(row: *mut f32, groups: Groups, product: DType) => multiply_at
}

/// Multiplies numbers by the reciprocal of their scale.
#[inline(always)]
unsafe fn multiply_at<S: Simd>(row: *mut f32, groups: Groups, product: DType) {
    unsafe {
        groups.each(|first, scale, _| {
            let factor = S::splat(round_to(product, 1.0 / scale));
            for i in (0..groups.size).step_by(S::LANES) {
                let (at, count) = (row.add(first + i), (groups.size - i).min(S::LANES));
                store_step::<S, f32>(at, S::mul(load_step::<S, f32>(at, 1, count), factor), 1, count);
            }
        });
    }
}

dispatch! {
    fn integer_codes(
        row: *const f32, codes: *mut u8, groups: Groups, zeros: Option<*const i8>, bounds: (i32, i32),
    ) => integer_codes_at
}

/// Rounds numbers to integers, adds the zero point and keeps them within bounds.
#[inline(always)]
unsafe fn integer_codes_at<S: Simd>(
    row: *const f32,
    codes: *mut u8,
    groups: Groups,
    zeros: Option<*const i8>,
    (low, high): (i32, i32),
) {
    // Adding 1.5 * 2^23 leaves no room for a fraction: the integer stands in the lowest bits.
    const MAGIC: f32 = 12_582_912.0;
    // Beyond what any zero point brings back within bounds.
    const FAR: f32 = 1024.0;
    unsafe {
        groups.each(|first, _, group| {
            let zero = zeros.map_or(0, |zeros| *zeros.add(group) as i32) - MAGIC.to_bits() as i32;
            each_pair(row.add(first), codes.add(first), groups.size, |&x, code| {
                let x = if x > -FAR { x } else { -FAR };
                let x = if x < FAR { x } else { FAR };
                *code = ((x + MAGIC).to_bits() as i32 + zero).max(low).min(high) as u8;
            });
        });
    }
}

dispatch! {
    fn small_codes(row: *const f32, codes: *mut u8, groups: Groups, small: Small) => small_codes_at
}

/// Divides numbers by their scale and rounds them to small floats.
#[inline(always)]
unsafe fn small_codes_at<S: Simd>(row: *const f32, codes: *mut u8, groups: Groups, small: Small) {
    let drop = 23 - small.mbits;
    let half = (1u32 << (drop - 1)) - 1;
    let rebias = ((127 - small.bias()) as u32) << small.mbits;
    let power = |exponent: i32| f32::from_bits(((127 + exponent) as u32) << 23);
    let least_normal = power(1 - small.bias());
    // Its last place is the step between subnormals: adding it rounds to whole steps.
    let magic = power(1 - small.bias() - small.mbits as i32 + 23);
    let nan = if small.nan { 0x7f } else { (1u32 << (small.ebits + small.mbits)) - 1 };
    unsafe {
        groups.each(|first, scale, _| {
            each_pair(row.add(first), codes.add(first), groups.size, |&x, code| {
                let x = if x == 0.0 { x } else { x / scale };
                let sign = (x.to_bits() >> 31) << (small.ebits + small.mbits);
                let magnitude = if x.abs() < small.largest { x.abs() } else { small.largest };
                let subnormal = (magnitude + magic).to_bits().wrapping_sub(magic.to_bits());
                let bits = magnitude.to_bits();
                let normal = ((bits + half + ((bits >> drop) & 1)) >> drop).wrapping_sub(rebias);
                let rounded = if magnitude < least_normal { subnormal } else { normal };
                *code = (sign | if x.is_nan() { nan } else { rounded }) as u8;
            });
        });
    }
}

dispatch! {
    fn kept(row: *const f32, masks: *mut u8, fours: usize) => kept_at
}

/// Which two of each four numbers are kept, as bits: the largest magnitudes, and of equals the earlier ones.
#[inline(always)]
unsafe fn kept_at<S: Simd>(row: *const f32, masks: *mut u8, fours: usize) {
    unsafe {
        each_pair(row as *const [f32; 4], masks, fours, |x, mask| {
            let [a, b, c, d] = x.map(|x| (x.to_bits() & i32::MAX as u32) as i32);
            let [ab, ac, ad, bc, bd, cd] = [a >= b, a >= c, a >= d, b >= c, b >= d, c >= d].map(|over| over as u8);
            // A number is kept that is above two of the others.
            let wins = [ab + ac + ad, 1 - ab + bc + bd, 2 - ac - bc + cd, 3 - ad - bd - cd];
            *mask = wins.into_iter().enumerate().fold(0, |mask, (i, wins)| mask | (wins >> 1) << i);
        });
    }
}

/// The places of the bits of a mask of two: the lower one in two bits, then the higher one.
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
            let [first, second] = [0, 1].map(|i| PLACES[(*masks.add(2 * pair + i) & 15) as usize]);
            for (i, places) in [first, second].into_iter().enumerate() {
                let (group, to) = (codes.add(8 * pair + 4 * i), to.add(4 * pair + 2 * i));
                *to = *group.add((places & 3) as usize);
                *to.add(1) = *group.add((places >> 2) as usize);
            }
            *to.add(k / 2 + pair) = first | second << 4;
        }
    }
}

dispatch! {
    fn pack_bits(codes: *const u8, to: *mut u8, n: usize, bits: usize) => pack_bits_at
}

/// Packs codes of fewer than 8 bits one after another.
#[inline(always)]
unsafe fn pack_bits_at<S: Simd>(codes: *const u8, to: *mut u8, n: usize, bits: usize) {
    unsafe {
        let whole = n / 8;
        let mask = 0x0101_0101_0101_0101 * ((1u64 << bits) - 1);
        for i in 0..whole {
            let packed = squeeze((codes as *const u64).add(i).read_unaligned() & mask, bits);
            std::ptr::copy_nonoverlapping(packed.to_le_bytes().as_ptr(), to.add(i * bits), bits);
        }
        let mut last = [0u8; 8];
        std::ptr::copy_nonoverlapping(codes.add(8 * whole), last.as_mut_ptr(), n % 8);
        let packed = squeeze(u64::from_le_bytes(last) & mask, bits);
        std::ptr::copy_nonoverlapping(packed.to_le_bytes().as_ptr(), to.add(whole * bits), (n % 8 * bits).div_ceil(8));
    }
}

/// Eight codes in the bytes of a word to adjacent bits: pairs, then fours, then all.
#[inline(always)]
fn squeeze(codes: u64, bits: usize) -> u64 {
    const PAIRS: u64 = 0x00ff_00ff_00ff_00ff;
    const FOURS: u64 = 0x0000_ffff_0000_ffff;
    const ALL: u64 = 0x0000_0000_ffff_ffff;
    let x = (codes & PAIRS) | ((codes >> 8) & PAIRS) << bits;
    let x = (x & FOURS) | ((x >> 16) & FOURS) << (2 * bits);
    (x & ALL) | (x >> 32) << (4 * bits)
}

/// The inverse of `squeeze`.
#[inline(always)]
fn spread(packed: u64, bits: usize) -> u64 {
    let low = |width: usize| (1u64 << width) - 1;
    let repeat = |lanes: u64, width: usize| lanes * low(width);
    let x = (packed & low(4 * bits)) | ((packed >> (4 * bits)) & low(4 * bits)) << 32;
    let fours = repeat(0x0000_0001_0000_0001, 2 * bits);
    let x = (x & fours) | ((x >> (2 * bits)) & fours) << 16;
    let pairs = repeat(0x0001_0001_0001_0001, bits);
    (x & pairs) | ((x >> bits) & pairs) << 8
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
    let groups = w.groups(k);
    let table = table(&w);
    // A row of floats, and of codes of a byte each.
    each_row(cx, n, k, row_scratch(k) + k, &|row, memory| unsafe {
        let (x, bytes) = (memory as *mut f32, memory.add(row_scratch(k)));
        let from = codes.at::<u8>(codes.row_offset(row)) as *const u8;
        match w.format {
            Format::SparseInt8 => unpack_sparse(from, bytes, k),
            _ if w.bits() == 8 => std::ptr::copy_nonoverlapping(from, bytes, k),
            _ => unpack_bits(cx.level, from, bytes, k, w.bits()),
        }
        (0..k).for_each(|i| *x.add(i) = table[*bytes.add(i) as usize]);
        let groups = Groups { count: groups, size: w.group, scales: scale.at(row * groups) };
        let zeros = zero.map(|zero| zero.at::<i8>(row * groups.count) as *const i8);
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
        row: *const f32, groups: Groups, zeros: Option<*const i8>, out: *mut E,
    ) => dequantize_row_at
}

#[inline(always)]
unsafe fn dequantize_row_at<S: Simd, E: Element>(
    row: *const f32,
    groups: Groups,
    zeros: Option<*const i8>,
    out: *mut E,
) {
    unsafe {
        groups.each(|first, scale, group| {
            let (zero, scale) = (S::splat(zeros.map_or(0.0, |zeros| *zeros.add(group) as f32)), S::splat(scale));
            for i in (first..first + groups.size).step_by(S::LANES) {
                let count = (first + groups.size - i).min(S::LANES);
                let x = S::mul(S::sub(load_step::<S, f32>(row.add(i), 1, count), zero), scale);
                store_step::<S, E>(out.add(i), x, 1, count);
            }
        });
    }
}

dispatch! {
    fn unpack_bits(from: *const u8, codes: *mut u8, n: usize, bits: usize) => unpack_bits_at
}

/// The inverse of `pack_bits`.
#[inline(always)]
unsafe fn unpack_bits_at<S: Simd>(from: *const u8, codes: *mut u8, n: usize, bits: usize) {
    unsafe {
        for first in (0..n).step_by(8) {
            let count = (n - first).min(8);
            let mut packed = [0u8; 8];
            let from = from.add(first / 8 * bits);
            std::ptr::copy_nonoverlapping(from, packed.as_mut_ptr(), (count * bits).div_ceil(8));
            let spread = spread(u64::from_le_bytes(packed), bits).to_le_bytes();
            std::ptr::copy_nonoverlapping(spread.as_ptr(), codes.add(first), count);
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
    each_row(cx, n, k, row_scratch(k) + k / 4, &|row, memory| unsafe {
        let (x, masks) = (memory as *mut f32, memory.add(row_scratch(k)));
        load_row(cx, &weight, row, weight.dtype, x);
        kept(cx.level, x, masks, k / 4);
        prune_row::<E>(cx.level, x, masks, out.at(row * k), k);
    })
}

dispatch! {
    fn prune_row<E: Element>(row: *mut f32, masks: *const u8, out: *mut E, n: usize) => prune_row_at
}

#[inline(always)]
unsafe fn prune_row_at<S: Simd, E: Element>(row: *mut f32, masks: *const u8, out: *mut E, n: usize) {
    unsafe {
        each_pair(masks, row as *mut [f32; 4], n / 4, |&mask, x| {
            *x = std::array::from_fn(|i| if mask >> i & 1 == 1 { x[i] } else { 0.0 });
        });
        for i in (0..n).step_by(S::LANES) {
            let count = (n - i).min(S::LANES);
            store_step::<S, E>(out.add(i), load_step::<S, f32>(row.add(i), 1, count), 1, count);
        }
    }
}
