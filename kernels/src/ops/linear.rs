//! `linear` and the packing of its weights.

use super::*;
use crate::ensure;
use crate::error::{Code, Error};
use crate::gemm::{FloatPairs, Floats, Gemm, Groups, Method, Pairs, Stored, Zeros, gemm, panel};
use crate::schema::DType;
use crate::simd::Element;
use half::{bf16, f16};

/// out = residual + gate * act(x W^T + bias).
pub static LINEAR: Kernel = Kernel { check, run, reference };
/// Rows (N, K) to the level's panels.
pub static PACK_LINEAR: Kernel = Kernel { check: check_pack, run: pack, reference: pack_reference };

/// A weight's columns are packed to a multiple of this, whatever the level.
const COLUMNS: usize = 64;
/// Its inner size to a multiple of this.
const INNER: usize = 4;

/// The bytes of a packed weight, or `None` beyond what can be counted.
fn packed_bytes(n: usize, k: usize, dtype: DType) -> Option<usize> {
    let columns = n.checked_next_multiple_of(COLUMNS)?;
    let inner = k.checked_next_multiple_of(INNER)?;
    columns.checked_mul(inner)?.checked_mul(dtype.size())
}

fn size(args: &Args, index: usize, name: &str) -> Result<usize> {
    let value = args.i32(index);
    ensure!(value >= 0, "linear takes no negative {name}, got {value}");
    Ok(value as usize)
}

/// The parameters n, k, act.
fn params(args: &Args) -> Result<(usize, usize, Activation)> {
    let act = Activation::from_code(args.params[2]);
    ensure!(act.is_some(), "linear has no activation of code {}", args.params[2]);
    Ok((size(args, 0, "n")?, size(args, 1, "k")?, act.unwrap_or(Activation::None)))
}

fn check(args: &Args) -> Result<()> {
    let (x, weight, out) = (args.view(0), args.view(1), args.out());
    let (n, k, ..) = params(args)?;
    ensure!(x.dtype.is_float(), "linear takes x of a float dtype, got {:?}", x.dtype);
    ensure!(out.dtype == x.dtype, "linear gives out in x's dtype {:?}, got {:?}", x.dtype, out.dtype);
    ensure!(x.rank > 0 && x.last() == k, "linear takes x of {k} columns, got {:?}", x.shape());
    ensure!(
        x.rank == out.rank && out.last() == n && x.shape()[..x.rank - 1] == out.shape()[..x.rank - 1],
        "linear of x {:?} gives out of {n} columns, got {:?}",
        x.shape(),
        out.shape()
    );
    ensure!(x.inner_dense() && x.row_stride().is_some(), "linear takes x as rows of equal distance");
    ensure!(out.inner_dense(), "linear takes out with a dense last axis");
    ensure!(weight.dtype == DType::U8 && weight.is_contiguous(), "linear takes a packed weight of dense bytes");
    ensure!(
        packed_bytes(n, k, x.dtype) == Some(weight.len()),
        "linear of {n} by {k} in {:?} takes another packed weight than one of {} bytes",
        x.dtype,
        weight.len()
    );
    if let Some(bias) = args.optional(2) {
        ensure!(
            bias.dtype == DType::F32 && bias.shape() == [n] && bias.inner_dense(),
            "linear takes a dense f32 bias of {n} elements, got {:?} {:?}",
            bias.dtype,
            bias.shape()
        );
    }
    for (index, name) in [(3, "gate"), (4, "residual")] {
        if let Some(view) = args.optional(index) {
            ensure!(view.dtype == x.dtype, "linear takes a {name} in x's dtype {:?}, got {:?}", x.dtype, view.dtype);
            ensure!(
                view.broadcast(out.shape()).is_some(),
                "linear takes a {name} that broadcasts to out {:?}, got {:?}",
                out.shape(),
                view.shape()
            );
        }
    }
    Ok(())
}

fn run(cx: &Cx, args: &Args) -> Result<()> {
    let x = args.view(0);
    let (n, k, act) = params(args)?;
    aligned(&args.view(1), x.dtype)?;
    let b_panel = panel(cx.level) * k.next_multiple_of(INNER) * x.dtype.size();
    let g = Gemm { b_panel, ..multiply_of(args, n, k, act) };
    let method = match x.dtype {
        DType::F32 => Method::of::<Floats<f32>, Stored<f32>>(),
        DType::BF16 if pairs(cx.level) => Method::of::<FloatPairs, Pairs>(),
        DType::BF16 => Method::of::<Floats<bf16>, Stored<bf16>>(),
        _ => Method::of::<Floats<f16>, Stored<f16>>(),
    };
    gemm(cx, &g, method, args.params[3])
}

/// The multiply of a layer of n outputs and k inputs, with nothing known of how its weight is packed and scaled.
pub(super) fn multiply_of<'a>(args: &Args, n: usize, k: usize, act: Activation) -> Gemm<'a> {
    let (x, out) = (args.view(0), args.out());
    Gemm {
        m: out.rows(),
        n,
        k,
        a: x.ptr,
        a_row: x.row_stride().unwrap_or(0),
        a_column: 1,
        b: args.view(1).ptr,
        b_panel: 0,
        blocks: None,
        alpha: 1.0,
        column_scale: std::ptr::null(),
        row_scale: None,
        groups: Groups::NONE,
        zeros: Zeros::None,
        bias: args.optional(2).map_or(std::ptr::null(), |bias| bias.ptr as *const f32),
        act,
        gate: args.optional(3).and_then(|view| view.broadcast(out.shape())),
        residual: args.optional(4).and_then(|view| view.broadcast(out.shape())),
        out,
    }
}

/// Packed weights are bytes, which a program may bind anywhere, and are read as elements.
pub(super) fn aligned(packed: &View, dtype: DType) -> Result<()> {
    if (packed.ptr as usize).is_multiple_of(dtype.size()) {
        return Ok(());
    }
    Err(Error::new(Code::BadArgument, "A packed weight lies at an odd address"))
}

/// Whether bf16 weights lie in pairs of K.
fn pairs(level: Level) -> bool {
    level == Level::Avx512Bf16
}

fn reference(args: &Args) -> Result<()> {
    let (x, weight, bias, out) = (args.view(0), args.view(1), args.optional(2), args.out());
    let (n, k, act) = params(args)?;
    let gate = args.optional(3).and_then(|view| view.broadcast(out.shape()));
    let residual = args.optional(4).and_then(|view| view.broadcast(out.shape()));
    let inner = k.next_multiple_of(INNER);
    let weight = View { dtype: x.dtype, ..weight };
    for index in 0..out.len() {
        let (row, column) = (index / n, index % n);
        let mut sum = 0f64;
        for i in 0..k {
            unsafe { sum += x.get(x.row_offset(row) + i) as f64 * weight.get(column * inner + i) as f64 };
        }
        unsafe {
            if let Some(bias) = bias {
                sum += bias.get(column) as f64;
            }
            sum = activate(act, sum);
            if let Some(gate) = gate {
                sum *= gate.get(gate.offset(index)) as f64;
            }
            if let Some(residual) = residual {
                sum += residual.get(residual.offset(index)) as f64;
            }
            out.set(out.offset(index), sum as f32);
        }
    }
    Ok(())
}

/// The dtype that a weight is packed for.
fn packed_dtype(args: &Args) -> Result<DType> {
    let dtype = DType::from_code(args.params[0]).filter(|d| d.is_float());
    ensure!(dtype.is_some(), "pack_linear packs for a float dtype, got code {}", args.params[0]);
    Ok(dtype.unwrap_or(DType::F32))
}

fn check_pack(args: &Args) -> Result<()> {
    let (weight, out) = (args.view(0), args.out());
    let dtype = packed_dtype(args)?;
    ensure!(weight.dtype.is_float(), "pack_linear takes a weight of a float dtype, got {:?}", weight.dtype);
    ensure!(weight.rank == 2, "pack_linear takes a weight of two axes, got {:?}", weight.shape());
    ensure!(weight.inner_dense(), "pack_linear takes a weight with a dense last axis");
    ensure!(out.dtype == DType::U8 && out.is_contiguous(), "pack_linear gives dense bytes");
    ensure!(
        packed_bytes(weight.dims[0], weight.dims[1], dtype) == Some(out.len()),
        "pack_linear of {:?} for {dtype:?} gives another size than {} bytes",
        weight.shape(),
        out.len()
    );
    Ok(())
}

fn pack_reference(args: &Args) -> Result<()> {
    let (weight, out) = (args.view(0), View { dtype: packed_dtype(args)?, ..args.out() });
    let (n, k) = (weight.dims[0], weight.dims[1]);
    let inner = k.next_multiple_of(INNER);
    for column in 0..n.next_multiple_of(COLUMNS) {
        for i in 0..inner {
            let inside = column < n && i < k;
            unsafe {
                let value = if inside { weight.get(column * weight.strides[0] + i) } else { 0.0 };
                out.set(column * inner + i, value);
            }
        }
    }
    Ok(())
}

fn pack(cx: &Cx, args: &Args) -> Result<()> {
    let (weight, out) = (args.view(0), args.out());
    let dtype = packed_dtype(args)?;
    let (n, k) = (weight.dims[0], weight.dims[1]);
    let width = panel(cx.level);
    let panels = n.next_multiple_of(COLUMNS) / width;
    let bytes = width * k.next_multiple_of(INNER) * dtype.size();
    let together = (64 * 1024 / bytes.max(1)).clamp(1, panels.max(1));
    cx.pool.run(panels.div_ceil(together), &|task, _| {
        let (weight, out) = (&weight, &out);
        for index in task * together..((task + 1) * together).min(panels) {
            let first = index * width;
            let columns = width.min(n.saturating_sub(first));
            let from = weight.ptr.wrapping_add(first.min(n) * weight.strides[0] * weight.dtype.size());
            let rows = Rows { from, stride: weight.strides[0], columns, k };
            unsafe {
                let to = out.ptr.add(index * bytes);
                let pair = pairs(cx.level);
                match (weight.dtype, dtype) {
                    (DType::F32, DType::F32) => pack_panel::<f32, f32, 1>(rows, width, to),
                    (DType::F32, DType::F16) => pack_panel::<f32, f16, 1>(rows, width, to),
                    (DType::F32, _) if pair => pack_panel::<f32, bf16, 2>(rows, width, to),
                    (DType::F32, _) => pack_panel::<f32, bf16, 1>(rows, width, to),
                    (DType::BF16, DType::F32) => pack_panel::<bf16, f32, 1>(rows, width, to),
                    (DType::BF16, DType::F16) => pack_panel::<bf16, f16, 1>(rows, width, to),
                    (DType::BF16, _) if pair => pack_panel::<bf16, bf16, 2>(rows, width, to),
                    (DType::BF16, _) => pack_panel::<bf16, bf16, 1>(rows, width, to),
                    (_, DType::F32) => pack_panel::<f16, f32, 1>(rows, width, to),
                    (_, DType::F16) => pack_panel::<f16, f16, 1>(rows, width, to),
                    (_, _) if pair => pack_panel::<f16, bf16, 2>(rows, width, to),
                    (_, _) => pack_panel::<f16, bf16, 1>(rows, width, to),
                }
            }
        }
    })
}

/// The rows of a weight that become the columns of one panel.
#[derive(Clone, Copy)]
struct Rows {
    from: *const u8,
    stride: usize,
    columns: usize,
    k: usize,
}

/// (columns, K) to (K / step, panel, step), zeros beyond columns and K.
unsafe fn pack_panel<W: Element, E: Element, const STEP: usize>(rows: Rows, panel: usize, to: *mut u8) {
    unsafe {
        let to = to as *mut E;
        let from = rows.from as *const W;
        let inner = rows.k.next_multiple_of(INNER);
        // Some elements of K at a time: every row's cache line is read while it is near.
        let mut k = 0;
        while k < inner {
            let end = (k + 16).min(inner);
            for c in 0..panel {
                let known = if c < rows.columns { end.min(rows.k) } else { k };
                let at = |i: usize| to.add((i / STEP) * STEP * panel + c * STEP + i % STEP);
                for i in k..known {
                    let value = (*from.add(c * rows.stride + i)).get();
                    at(i).write_unaligned(<E as Element>::from(value));
                }
                for i in known..end {
                    at(i).write_unaligned(<E as Element>::from(0.0));
                }
            }
            k = end;
        }
    }
}
