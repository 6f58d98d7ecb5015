//! Linear layers with their epilogue, and the packing of their weights.

use super::*;
use crate::arith::{Arith, Pairs, Widen};
use crate::ensure;
use crate::error::{Code, Error};
use crate::gemm::{Epilogue, Gemm, Rows, multiply, pack_panel, packed_depth, panel_columns};
use crate::schema::DType;
use crate::simd::Element;
use half::{bf16, f16};

pub static LINEAR: Kernel = Kernel { check, run, reference };
pub static PACK_LINEAR: Kernel = Kernel { check: check_pack, run: run_pack, reference: reference_pack };

/// Bytes of a packed weight (N, K), the same on every level.
fn packed_bytes(n: usize, k: usize, size: usize) -> Option<usize> {
    n.checked_next_multiple_of(64)?.checked_mul(k.checked_next_multiple_of(4)?)?.checked_mul(size)
}

fn sizes(args: &Args) -> Result<(usize, usize)> {
    let (n, k) = (args.i32(0), args.i32(1));
    ensure!(n > 0 && k > 0, "linear takes at least one input and output, got n = {n}, k = {k}");
    Ok((n as usize, k as usize))
}

fn check(args: &Args) -> Result<()> {
    let (n, k) = sizes(args)?;
    let (x, weight, out) = (args.view(0), args.view(1), args.out());
    ensure!(x.rank > 0 && x.last() == k, "linear of {k} inputs cannot take {:?}", x.shape());
    ensure!(x.dtype.is_float(), "linear takes x of a float type, got {:?}", x.dtype);
    ensure!(
        out.dtype == x.dtype && out.rank == x.rank && out.shape()[..out.rank - 1] == x.shape()[..x.rank - 1],
        "linear gives {:?} rows of x {:?}, not {:?} {:?}",
        x.dtype,
        x.shape(),
        out.dtype,
        out.shape()
    );
    ensure!(out.last() == n, "linear of {n} outputs cannot give {:?}", out.shape());
    ensure!(
        x.inner_dense() && x.row_stride().is_some() && out.inner_dense(),
        "linear takes x in even rows and a dense last axis of out"
    );
    ensure!(
        weight.dtype == DType::U8 && weight.is_contiguous() && Some(weight.len()) == packed_bytes(n, k, x.dtype.size()),
        "linear of {k} inputs and {n} outputs in {:?} takes a weight packed for it, got {:?} {:?}",
        x.dtype,
        weight.dtype,
        weight.shape()
    );
    if let Some(bias) = args.optional(2) {
        ensure!(
            bias.dtype == DType::F32 && bias.shape() == [n] && bias.is_contiguous(),
            "linear takes an f32 bias of [{n}], got {:?} {:?}",
            bias.dtype,
            bias.shape()
        );
    }
    for (index, name) in [(3, "gate"), (4, "residual")] {
        if let Some(view) = args.optional(index) {
            ensure!(
                view.dtype == x.dtype && view.broadcast(out.shape()).is_some(),
                "linear takes a {:?} {name} that broadcasts to {:?}, got {:?} {:?}",
                x.dtype,
                out.shape(),
                view.dtype,
                view.shape()
            );
        }
    }
    ensure!(Activation::from_code(args.params[2]).is_some(), "linear has no activation {}", args.params[2]);
    Ok(())
}

fn activation(args: &Args) -> Activation {
    Activation::from_code(args.params[2]).unwrap_or(Activation::None)
}

/// The weight as the reference packs it: (N, K) in x's type.
fn reference(args: &Args) -> Result<()> {
    let (n, k) = sizes(args)?;
    let (x, out) = (args.view(0), args.out());
    let weight = View::contiguous(args.view(1).ptr, x.dtype, &[n, k]);
    let shape = out.shape();
    let (gate, residual) = [3, 4].map(|i| args.optional(i).and_then(|v| v.broadcast(shape))).into();
    for index in 0..out.len() {
        let (row, column) = (index / n, index % n);
        let x_row = x.row_offset(row);
        unsafe {
            let mut sum = 0f64;
            for i in 0..k {
                sum += x.get(x_row + i) as f64 * weight.get(column * k + i) as f64;
            }
            if let Some(bias) = args.optional(2) {
                sum += bias.get(column) as f64;
            }
            let mut y = activate(activation(args), sum);
            if let Some(gate) = &gate {
                y *= gate.get(gate.offset(index)) as f64;
            }
            if let Some(residual) = &residual {
                y += residual.get(residual.offset(index)) as f64;
            }
            out.set(out.offset(index), y as f32);
        }
    }
    Ok(())
}

/// Packed weights are read as elements wherever they lie; a program may bind bytes anywhere.
fn aligned(view: &View, dtype: DType) -> Result<()> {
    if !(view.ptr as usize).is_multiple_of(dtype.size()) {
        return Err(Error::new(Code::BadArgument, "A packed weight lies at an odd address"));
    }
    Ok(())
}

fn run(cx: &Cx, args: &Args) -> Result<()> {
    match args.view(0).dtype {
        DType::F32 => run_as::<Widen<f32>>(cx, args),
        DType::F16 => run_as::<Widen<f16>>(cx, args),
        _ if cx.level == Level::Avx512Bf16 => run_as::<Pairs>(cx, args),
        _ => run_as::<Widen<bf16>>(cx, args),
    }
}

fn run_as<A: Arith>(cx: &Cx, args: &Args) -> Result<()> {
    let (n, k) = sizes(args)?;
    let (x, weight, out) = (args.view(0), args.view(1), args.out());
    aligned(&weight, x.dtype)?;
    let broadcast = |index: usize| args.optional(index).and_then(|v| v.broadcast(out.shape()));
    let gemm = Gemm {
        m: out.rows(),
        n,
        k,
        x: Rows { ptr: x.ptr, row: x.row_stride().unwrap_or(0), column: 1 },
        weight: weight.ptr,
        epilogue: Epilogue {
            bias: args.optional(2),
            act: activation(args),
            gate: broadcast(3),
            residual: broadcast(4),
            out,
            alpha: 1.0,
        },
    };
    unsafe { multiply::<A>(cx.level, cx.pool, &gemm) }
}

fn check_pack(args: &Args) -> Result<()> {
    let (weight, out) = (args.view(0), args.out());
    let dtype = packed_dtype(args)?;
    ensure!(
        weight.rank == 2 && weight.dtype.is_float() && weight.inner_dense(),
        "pack_linear takes a float weight of two axes, got {:?} {:?}",
        weight.dtype,
        weight.shape()
    );
    let bytes = packed_bytes(weight.dims[0], weight.dims[1], dtype.size());
    ensure!(
        out.dtype == DType::U8 && out.rank == 1 && Some(out.len()) == bytes && out.is_contiguous(),
        "pack_linear of {:?} for {dtype:?} gives {} bytes, not {:?} {:?}",
        weight.shape(),
        bytes.unwrap_or(usize::MAX),
        out.dtype,
        out.shape()
    );
    Ok(())
}

fn packed_dtype(args: &Args) -> Result<DType> {
    match DType::from_code(args.params[0]) {
        Some(dtype) if dtype.is_float() => Ok(dtype),
        _ => Err(Error::new(Code::BadProgram, format!("pack_linear takes a float type, got {}", args.params[0]))),
    }
}

fn reference_pack(args: &Args) -> Result<()> {
    let (weight, dtype) = (args.view(0), packed_dtype(args)?);
    let out = View::contiguous(args.out().ptr, dtype, weight.shape());
    for index in 0..weight.len() {
        unsafe { out.set(index, weight.get(weight.offset(index))) };
    }
    Ok(())
}

fn run_pack(cx: &Cx, args: &Args) -> Result<()> {
    match (args.view(0).dtype, packed_dtype(args)?) {
        (DType::F32, to) => pack_from::<f32>(cx, args, to),
        (DType::BF16, to) => pack_from::<bf16>(cx, args, to),
        (_, to) => pack_from::<f16>(cx, args, to),
    }
}

fn pack_from<E: Element>(cx: &Cx, args: &Args, to: DType) -> Result<()> {
    match to {
        DType::F32 => pack_as::<E, f32>(cx, args, 1),
        DType::BF16 => pack_as::<E, bf16>(cx, args, if cx.level == Level::Avx512Bf16 { 2 } else { 1 }),
        _ => pack_as::<E, f16>(cx, args, 1),
    }
}

fn pack_as<E: Element, W: Element>(cx: &Cx, args: &Args, pair: usize) -> Result<()> {
    let (weight, out) = (args.view(0), args.out());
    aligned(&out, packed_dtype(args)?)?;
    let (n, k) = (weight.dims[0], weight.dims[1]);
    let columns = panel_columns(cx.level);
    cx.pool.run(n.next_multiple_of(64) / columns, &|panel, _| unsafe {
        let first = panel * columns;
        let to = out.at::<W>(first * packed_depth(k));
        pack_panel(to, pair, (k, columns), n.saturating_sub(first), |depth, column| {
            (*weight.at::<E>((first + column) * weight.strides[0] + depth)).get()
        });
    })
}
