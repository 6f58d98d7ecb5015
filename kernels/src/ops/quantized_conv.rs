//! `conv` by quantized weights, and their packing.
//!
//! A packed weight is its codes in the order in which `conv` has its weights, rounded up to 64 filters and channels,
//! then a scale (f32) and a sum (i32) for each of those filters. Codes are decoded while they are multiplied, a block
//! at a time, or multiplied as integers by an input that is quantized as it is read.

use super::conv::{Params, check_operands, pack_blocks, params, reference_of, run_as, run_float};
use super::*;
use crate::conv_kernel::integers::{CodeFours, CodePairs, MOST_PRODUCTS, OFFSET};
use crate::conv_kernel::{Method, Quantized, inverse};
use crate::ensure;
use crate::error::{Code, Error};
use crate::quant::{Weight, quantized_conv_bytes, quantized_conv_scales};
use crate::schema::{DType, Format, Rows};
use half::{bf16, f16};

/// out = residual + act(conv(x, weight) + bias), the weight packed.
pub static QUANTIZED_CONV: Kernel = Kernel { check, run, reference };
/// Stored codes and scales to the level's layout.
pub static PACK_QUANTIZED_CONV: Kernel = Kernel { check: check_pack, run: run_pack, reference: reference_pack };

/// How the weight and x are quantized: parameters from `format` on.
fn formats(args: &Args, what: &str, format: usize) -> Result<(Format, Rows)> {
    let codes = [args.params[format], args.params[format + 1]];
    let (format, rows) = (Format::from_code(codes[0]), Rows::from_code(codes[1]));
    match (format, rows) {
        (Some(Format::Int8), Some(Rows::Int8)) => Ok((Format::Int8, Rows::Int8)),
        (Some(format @ (Format::Int8 | Format::E4m3 | Format::E5m2)), Some(Rows::None)) => Ok((format, Rows::None)),
        _ => Err(Error::new(
            Code::BadProgram,
            format!(
                "{what} takes int8, e4m3 or e5m2 with rows of none, or int8 with rows of int8, got the codes {} and {}",
                codes[0], codes[1]
            ),
        )),
    }
}

/// The scale of x by its largest magnitude.
unsafe fn scale_of(amax: &View) -> f32 {
    unsafe { amax.get(0) / 127.0 }
}

fn check(args: &Args) -> Result<()> {
    let what = "quantized_conv";
    let p = params(args, what)?;
    let (_, rows) = formats(args, what, 8)?;
    check_operands(args, what, &p, |filters, channels| quantized_conv_bytes(filters, channels, p.taps()))?;
    let amax = args.optional(5);
    if let Some(amax) = &amax {
        ensure!(
            amax.dtype == DType::F32 && amax.shape() == [1],
            "{what} takes an f32 amax of [1], got {:?} {:?}",
            amax.dtype,
            amax.shape()
        );
    }
    ensure!(
        amax.is_some() == (rows == Rows::Int8),
        "{what} takes amax with rows of int8, and only then; rows are {rows:?}"
    );
    let (channels, taps) = (args.view(0).last(), p.taps());
    ensure!(
        rows == Rows::None || channels.saturating_mul(taps) <= MOST_PRODUCTS,
        "{what} with rows of int8 sums at most {MOST_PRODUCTS} products, got {channels} channels by {taps} taps"
    );
    Ok(())
}

fn reference(args: &Args) -> Result<()> {
    let what = "quantized_conv";
    let p = params(args, what)?;
    let (format, rows) = formats(args, what, 8)?;
    let (packed, channels, filters) = (args.view(1), args.view(0).last(), args.out().last());
    let weight = Weight { format, ebits: 0, mbits: 0, group: 1 };
    let count = filters * channels * p.taps();
    let code = |index| unsafe { weight.value(packed.ptr, index, count) } as f64;
    let scales = packed.ptr.wrapping_add(quantized_conv_scales(filters, channels, p.taps()));
    let scale = |filter| unsafe { (scales as *const f32).add(filter).read_unaligned() } as f64;
    match args.optional(5) {
        Some(amax) if rows == Rows::Int8 => {
            let x_scale = unsafe { scale_of(&amax) };
            let inverse = inverse(x_scale);
            let quantize = |x: f32| match x * inverse {
                scaled if scaled.is_nan() => 127.0,
                scaled => scaled.clamp(-128.0, 127.0).round_ties_even() as f64,
            };
            reference_of(args, &p, quantize, code, |filter| scale(filter) * x_scale as f64);
        }
        _ => reference_of(args, &p, |x| x as f64, code, scale),
    }
    Ok(())
}

fn run(cx: &Cx, args: &Args) -> Result<()> {
    let what = "quantized_conv";
    let p = params(args, what)?;
    let (format, rows) = formats(args, what, 8)?;
    let (channels, packed, filters) = (args.view(0).last(), args.view(1), args.out().last());
    if !(packed.ptr as usize).is_multiple_of(4) {
        return Err(Error::new(Code::BadArgument, "quantized_conv takes a weight aligned to 4 bytes"));
    }
    let scales = packed.ptr.wrapping_add(quantized_conv_scales(filters, channels, p.taps())) as *const f32;
    let excess = scales.wrapping_add(filters.next_multiple_of(64));
    match args.optional(5) {
        Some(amax) if rows == Rows::Int8 => {
            let quantized = Quantized { format: None, scales, excess, scale: unsafe { scale_of(&amax) } };
            run_integers(cx, args, &p, quantized)
        }
        _ => run_float(cx, args, &p, Some(Quantized { format: Some(format), scales, excess, scale: 1.0 })),
    }
}

fn run_integers(cx: &Cx, args: &Args, p: &Params, quantized: Quantized) -> Result<()> {
    let method = match (args.view(0).dtype, has_fours(cx.level)) {
        (DType::F32, true) => Method::of::<CodeFours<f32>>(),
        (DType::F16, true) => Method::of::<CodeFours<f16>>(),
        (_, true) => Method::of::<CodeFours<bf16>>(),
        (DType::F32, false) => Method::of::<CodePairs<f32>>(),
        (DType::F16, false) => Method::of::<CodePairs<f16>>(),
        (_, false) => Method::of::<CodePairs<bf16>>(),
    };
    run_as(cx, args, p, method, Some(quantized))
}

/// Whether integers are multiplied four at a time.
fn has_fours(level: Level) -> bool {
    level == Level::Avx512Bf16
}

/// Filters, channels, kt, kh and kw of a weight that is to be packed.
fn pack_shape(args: &Args) -> Result<[usize; 5]> {
    let codes = args.view(0);
    for (index, name, most) in [(0, "channels", i32::MAX), (1, "kt", 256), (2, "kh", 256), (3, "kw", 256)] {
        let (value, least) = (args.i32(index), i32::from(index > 0));
        ensure!(
            (least..=most).contains(&value),
            "pack_quantized_conv takes {name} from {least} to {most}, got {value}"
        );
    }
    let at = |index| args.i32(index) as usize;
    Ok([codes.dims[0], at(0), at(1), at(2), at(3)])
}

fn check_pack(args: &Args) -> Result<()> {
    let what = "pack_quantized_conv";
    let [filters, channels, kt, kh, kw] = pack_shape(args)?;
    let taps = kt * kh * kw;
    let (format, _) = formats(args, what, 4)?;
    let dtype = DType::from_code(args.params[6]).filter(|dtype| dtype.is_float());
    ensure!(dtype.is_some(), "{what} takes the code of a float type, got {}", args.params[6]);
    let (codes, scale, out) = (args.view(0), args.view(1), args.out());
    let stored = if format == Format::Int8 { DType::I8 } else { DType::U8 };
    ensure!(
        codes.rank == 2 && codes.dtype == stored && Some(codes.dims[1]) == channels.checked_mul(taps),
        "{what} takes {stored:?} codes of rows of {channels} x {kt} x {kh} x {kw}, got {:?} {:?}",
        codes.dtype,
        codes.shape()
    );
    ensure!(codes.inner_dense(), "{what} takes codes with a dense last axis");
    ensure!(
        scale.dtype == DType::F32 && scale.shape() == [filters, 1] && scale.is_contiguous(),
        "{what} takes f32 scales of [{filters}, 1], got {:?} {:?}",
        scale.dtype,
        scale.shape()
    );
    let bytes = quantized_conv_bytes(filters, channels, taps);
    ensure!(
        out.dtype == DType::U8 && out.is_contiguous() && Some(out.len()) == bytes,
        "{what} of {:?} takes an out of {} bytes, got {:?} {:?}",
        codes.shape(),
        bytes.unwrap_or(usize::MAX),
        out.dtype,
        out.shape()
    );
    Ok(())
}

/// Codes as they are, then the scales.
fn reference_pack(args: &Args) -> Result<()> {
    let [filters, channels, kernel @ ..] = pack_shape(args)?;
    let taps = kernel.iter().product();
    let (codes, scale, out) = (args.view(0), args.view(1), args.out());
    unsafe {
        std::ptr::write_bytes(out.ptr, 0, out.len());
        let row = channels * taps;
        let scales = out.ptr.add(quantized_conv_scales(filters, channels, taps)) as *mut f32;
        for filter in 0..filters {
            let from = codes.at::<u8>(filter * codes.strides[0]);
            std::ptr::copy_nonoverlapping(from, out.ptr.add(filter * row), row);
            scales.add(filter).write_unaligned(scale.get(filter));
        }
    }
    Ok(())
}

fn run_pack(cx: &Cx, args: &Args) -> Result<()> {
    let shape @ [filters, channels, kernel @ ..] = pack_shape(args)?;
    let taps = kernel.iter().product();
    let (_, rows) = formats(args, "pack_quantized_conv", 4)?;
    let (codes, scale, out) = (args.view(0), args.view(1), args.out());
    let fours = rows == Rows::Int8 && has_fours(cx.level);
    let pairs = cx.level == Level::Avx512Bf16 && DType::from_code(args.params[6]) == Some(DType::BF16);
    let unit_channels = match rows {
        Rows::None if pairs => 2,
        Rows::None => 1,
        _ if fours => 4,
        _ => 2,
    };
    let mut weight = View::contiguous(codes.ptr, codes.dtype, &shape);
    weight.strides[0] = codes.strides[0];
    let len = quantized_conv_scales(filters, channels, taps);
    pack_blocks(cx, &weight, unit_channels, (out.ptr, len), 0, |at| unsafe { *weight.at::<u8>(at) })?;
    unsafe {
        let scales = out.ptr.add(len) as *mut f32;
        let excess = scales.add(filters.next_multiple_of(64)) as *mut i32;
        for filter in 0..filters.next_multiple_of(64) {
            let known = filter < filters;
            scales.add(filter).write_unaligned(if known { scale.get(filter) } else { 0.0 });
            let mut sum = 0;
            if known && fours {
                let row = std::slice::from_raw_parts(codes.at::<i8>(filter * codes.strides[0]), channels * taps);
                sum = row.iter().fold(0i32, |sum, &code| sum.wrapping_add(code as i32 * OFFSET));
            }
            excess.add(filter).write_unaligned(sum);
        }
    }
    Ok(())
}
