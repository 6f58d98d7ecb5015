//! `linear` by quantized weights, and their packing.

mod few;
mod few_digits;
mod few_float;
mod few_integer;
mod float;
mod integer;

use super::*;
use crate::ensure;
use crate::quant::{Weight, rows_bytes, rows_scale, rows_value};
use crate::schema::{DType, Format, Rows};

/// out = residual + gate * act(x W^T + bias), W packed and x of floats or of quantized rows.
pub static QUANTIZED_LINEAR: Kernel = Kernel { check, run, reference };
/// Stored codes, scales and zero points to the level's layout.
pub static PACK_QUANTIZED: Kernel = Kernel { check: check_pack, run: pack, reference: pack_reference };

// Threads share them; what they may touch was checked.
unsafe impl Sync for Parts {}
unsafe impl Send for Parts {}

/// What both kernels are told about a weight.
#[derive(Clone, Copy)]
struct Shape {
    n: usize,
    k: usize,
    weight: Weight,
    /// How x is quantized.
    rows: Rows,
}

/// Reads n, k, format and what belongs to it; the other parameters' places differ.
fn shape(args: &Args, what: &str, n: usize, format: usize, rows: usize) -> Result<Shape> {
    let size = |index: usize, name: &str| {
        let value = args.i32(index);
        ensure!(value >= 0, "{what} takes no negative {name}, got {value}");
        Ok::<usize, crate::error::Error>(value as usize)
    };
    let code = |index: usize| args.params[index];
    let (found, kind) = (Format::from_code(code(format)), Rows::from_code(code(rows)));
    ensure!(found.is_some(), "{what} has no format of code {}", code(format));
    ensure!(kind.is_some(), "{what} has no rows of code {}", code(rows));
    let weight = Weight {
        format: found.unwrap_or(Format::Int8),
        ebits: code(format + 1),
        mbits: code(format + 2),
        group: size(format + 3, "group")?,
    };
    let shape = Shape { n: size(n, "n")?, k: size(n + 1, "k")?, weight, rows: kind.unwrap_or(Rows::None) };
    ensure!(
        weight.takes(shape.k),
        "{what} cannot take {} columns in groups of {} as {:?}",
        shape.k,
        weight.group,
        weight.format
    );
    ensure!(
        match (shape.rows, weight.format) {
            (Rows::None, Format::SparseInt8) => false,
            (Rows::None, _) => true,
            (Rows::Int8 | Rows::Int8Asym, Format::Int8 | Format::Int4 | Format::SparseInt8) => true,
            (Rows::E4m3 | Rows::E5m2, Format::E4m3 | Format::E5m2) => true,
            _ => false,
        },
        "{what} cannot multiply rows of {:?} by a weight of {:?}",
        shape.rows,
        weight.format
    );
    // Sums of integer products must fit 32 bits.
    ensure!(
        matches!(shape.rows, Rows::None | Rows::E4m3 | Rows::E5m2) || shape.k <= 65536,
        "{what} of integers takes at most 65536 columns, got {}",
        shape.k
    );
    ensure!(
        matches!(shape.rows, Rows::None | Rows::E4m3 | Rows::E5m2)
            || weight.group == shape.k
            || weight.group.is_multiple_of(integer::CHUNK),
        "{what} of integers takes groups of a multiple of {} columns, or of all, got {}",
        integer::CHUNK,
        weight.group
    );
    Ok(shape)
}

fn check(args: &Args) -> Result<()> {
    let what = "quantized_linear";
    let (x, weight, out) = (args.view(0), args.view(1), args.out());
    let s = shape(args, what, 0, 3, 8)?;
    ensure!(Activation::from_code(args.params[2]).is_some(), "{what} has no activation of code {}", args.params[2]);
    ensure!(out.dtype.is_float(), "{what} gives out of a float dtype, got {:?}", out.dtype);
    let (columns, dtype) = if s.rows == Rows::None { (s.k, out.dtype) } else { (rows_bytes(s.k), DType::U8) };
    ensure!(x.dtype == dtype, "{what} with rows of {:?} takes x in {dtype:?}, got {:?}", s.rows, x.dtype);
    ensure!(x.rank > 0 && x.last() == columns, "{what} takes x of {columns} columns, got {:?}", x.shape());
    ensure!(
        x.rank == out.rank && out.last() == s.n && x.shape()[..x.rank - 1] == out.shape()[..x.rank - 1],
        "{what} of x {:?} gives out of {} columns, got {:?}",
        x.shape(),
        s.n,
        out.shape()
    );
    ensure!(x.inner_dense() && x.row_stride().is_some(), "{what} takes x as rows of equal distance");
    ensure!(out.inner_dense(), "{what} takes out with a dense last axis");
    ensure!(weight.dtype == DType::U8 && weight.is_contiguous(), "{what} takes a packed weight of dense bytes");
    ensure!(
        s.weight.packed_bytes(s.n, s.k, args.params[7] != 0) == Some(weight.len()),
        "{what} of {} by {} as {:?} takes another packed weight than one of {} bytes",
        s.n,
        s.k,
        s.weight,
        weight.len()
    );
    norm::check_vector(what, "bias", args.optional(2), s.n)?;
    for (index, name) in [(3, "gate"), (4, "residual")] {
        if let Some(view) = args.optional(index) {
            ensure!(view.dtype == out.dtype, "{what} takes a {name} in {:?}, got {:?}", out.dtype, view.dtype);
            ensure!(
                view.broadcast(out.shape()).is_some(),
                "{what} takes a {name} that broadcasts to out {:?}, got {:?}",
                out.shape(),
                view.shape()
            );
        }
    }
    Ok(())
}

/// The parts of a packed weight: codes, scales, a word for each row, zero points where there are any.
#[derive(Clone, Copy)]
struct Parts {
    codes: *mut u8,
    scales: *mut f32,
    words: *mut i32,
    zeros: *mut i8,
}

impl Parts {
    fn of(s: &Shape, packed: *mut u8) -> Self {
        let rows = s.n.next_multiple_of(64);
        let codes = rows * s.k.next_multiple_of(64) * s.weight.bits() / 8;
        let scales = packed.wrapping_add(codes) as *mut f32;
        let words = scales.wrapping_add(rows * s.weight.groups(s.k).max(1)) as *mut i32;
        Self { codes: packed, scales, words, zeros: words.wrapping_add(rows) as *mut i8 }
    }
}

fn reference(args: &Args) -> Result<()> {
    let (x, out) = (args.view(0), args.out());
    let s = shape(args, "quantized_linear", 0, 3, 8)?;
    let act = Activation::from_code(args.params[2]).unwrap_or(Activation::None);
    let p = Parts::of(&s, args.view(1).ptr);
    let groups = s.weight.groups(s.k);
    let mut weight = vec![0f64; s.n * s.k];
    for (i, w) in weight.iter_mut().enumerate() {
        let (row, column) = (i / s.k, i % s.k);
        let at = row * groups + column / s.weight.group;
        unsafe {
            let code = s.weight.value(p.codes.add(row * s.weight.row_bytes(s.k)), column, s.k);
            let zero = if args.params[7] != 0 { *p.zeros.add(at) } else { 0 };
            let scale = p.scales.add(at).read_unaligned();
            *w = (code as f64 - zero as f64) * scale as f64;
        }
    }
    let gate = args.optional(3).and_then(|view| view.broadcast(out.shape()));
    let residual = args.optional(4).and_then(|view| view.broadcast(out.shape()));
    let mut values = vec![0f64; s.k];
    for row in 0..out.rows() {
        unsafe { row_values(&x, row, &s, &mut values) };
        for column in 0..s.n {
            let index = row * s.n + column;
            let mut sum: f64 = values.iter().zip(&weight[column * s.k..]).map(|(x, w)| x * w).sum();
            unsafe {
                sum += args.optional(2).map_or(0.0, |bias| bias.get(column) as f64);
                sum = activate(act, sum);
                sum *= gate.map_or(1.0, |gate| gate.get(gate.offset(index)) as f64);
                sum += residual.map_or(0.0, |residual| residual.get(residual.offset(index)) as f64);
                out.set(out.offset(index), sum as f32);
            }
        }
    }
    Ok(())
}

/// A row of x as numbers, whatever it is stored as.
unsafe fn row_values(x: &View, row: usize, s: &Shape, values: &mut [f64]) {
    unsafe {
        if s.rows == Rows::None {
            (0..s.k).for_each(|i| values[i] = x.get(x.row_offset(row) + i) as f64);
            return;
        }
        let bytes = x.ptr.add(x.row_offset(row));
        let scale = (bytes.add(rows_scale(s.k)) as *const f32).read_unaligned() as f64;
        let zero = (bytes.add(rows_scale(s.k) + 4) as *const i32).read_unaligned() as f64;
        (0..s.k).for_each(|i| values[i] = (rows_value(s.rows, *bytes.add(i)) as f64 - zero) * scale);
    }
}

fn check_pack(args: &Args) -> Result<()> {
    let what = "pack_quantized";
    let (codes, scale, out) = (args.view(0), args.view(1), args.out());
    let s = shape(args, what, 0, 2, 6)?;
    let dtype = DType::from_code(args.params[7]);
    ensure!(dtype.is_some_and(DType::is_float), "{what} packs for a float dtype, got code {}", args.params[7]);
    check_codes(what, &s.weight, [s.n, s.k], &codes)?;
    check_scales(what, &s.weight, [s.n, s.k], &scale, args.optional(2))?;
    ensure!(out.dtype == DType::U8 && out.is_contiguous(), "{what} gives dense bytes");
    ensure!(
        s.weight.packed_bytes(s.n, s.k, args.optional(2).is_some()) == Some(out.len()),
        "{what} of {} by {} gives another size than {} bytes",
        s.n,
        s.k,
        out.len()
    );
    Ok(())
}

/// Refuses codes that are not the stored form of a weight (n, k).
pub(super) fn check_codes(what: &str, weight: &Weight, [n, k]: [usize; 2], codes: &View) -> Result<()> {
    let dtype = if weight.format == Format::Int8 { DType::I8 } else { DType::U8 };
    ensure!(codes.dtype == dtype, "{what} takes codes in {dtype:?}, got {:?}", codes.dtype);
    ensure!(
        codes.shape() == [n, weight.row_bytes(k)] && codes.inner_dense(),
        "{what} takes codes of [{n}, {}], got {:?}",
        weight.row_bytes(k),
        codes.shape()
    );
    Ok(())
}

/// Refuses scales and zero points that are not those of a weight (n, k).
pub(super) fn check_scales(
    what: &str,
    weight: &Weight,
    [n, k]: [usize; 2],
    scale: &View,
    zero: Option<View>,
) -> Result<()> {
    let shape = [n, weight.groups(k)];
    ensure!(
        scale.dtype == DType::F32 && scale.shape() == shape && scale.is_contiguous(),
        "{what} takes dense f32 scales of {shape:?}, got {:?} {:?}",
        scale.dtype,
        scale.shape()
    );
    if let Some(zero) = zero {
        ensure!(weight.format == Format::Int4, "{what} takes zero points of int4 alone, not of {:?}", weight.format);
        ensure!(
            zero.dtype == DType::I8 && zero.shape() == shape && zero.is_contiguous(),
            "{what} takes dense i8 zero points of {shape:?}, got {:?} {:?}",
            zero.dtype,
            zero.shape()
        );
    }
    Ok(())
}

fn pack_reference(args: &Args) -> Result<()> {
    let (codes, scale, zero) = (args.view(0), args.view(1), args.optional(2));
    let s = shape(args, "pack_quantized", 0, 2, 6)?;
    let p = Parts::of(&s, args.out().ptr);
    unsafe {
        std::ptr::write_bytes(args.out().ptr, 0, args.out().len());
        let bytes = s.weight.row_bytes(s.k);
        for row in 0..s.n {
            std::ptr::copy_nonoverlapping(codes.ptr.add(row * codes.strides[0]), p.codes.add(row * bytes), bytes);
        }
        for i in 0..scale.len() {
            p.scales.add(i).write_unaligned(scale.get(i));
            if let Some(zero) = zero {
                *p.zeros.add(i) = *zero.at::<i8>(i);
            }
        }
    }
    Ok(())
}

fn run(cx: &Cx, args: &Args) -> Result<()> {
    let s = shape(args, "quantized_linear", 0, 3, 8)?;
    let act = Activation::from_code(args.params[2]).unwrap_or(Activation::None);
    match s.rows {
        Rows::Int8 | Rows::Int8Asym => integer::run(cx, args, s, act),
        Rows::None | Rows::E4m3 | Rows::E5m2 => float::run(cx, args, s, act),
    }
}

fn pack(cx: &Cx, args: &Args) -> Result<()> {
    let s = shape(args, "pack_quantized", 0, 2, 6)?;
    match s.rows {
        Rows::Int8 | Rows::Int8Asym => integer::pack(cx, args, s),
        Rows::None | Rows::E4m3 | Rows::E5m2 => float::pack(cx, args, &s),
    }
}
