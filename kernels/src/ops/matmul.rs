//! Matrix products of two activations: the right side is packed by each task that uses it.

use super::*;
use crate::arith::Widen;
use crate::buffer::Owned;
use crate::ensure;
use crate::gemm::{Epilogue, Gemm, Rows, multiply, pack_panel, packed_depth, panel_columns};
use crate::schema::DType;
use crate::simd::Element;
use half::{bf16, f16};

pub static MATMUL: Kernel = Kernel { check, run, reference };

fn check(args: &Args) -> Result<()> {
    let (a, b, out) = (args.view(0), args.view(1), args.out());
    ensure!(a.dtype.is_float() && b.dtype == a.dtype && out.dtype == a.dtype, "matmul takes one float type");
    ensure!(
        out.rank >= 2 && a.rank == out.rank && b.rank == out.rank,
        "matmul takes operands of one rank, got {:?}, {:?}, {:?}",
        a.shape(),
        b.shape(),
        out.shape()
    );
    let lead = out.rank - 2;
    let fits = a.dims[..lead] == out.dims[..lead]
        && b.dims[..lead] == out.dims[..lead]
        && a.dims[lead] == out.dims[lead]
        && b.dims[lead + 1] == out.dims[lead + 1]
        && a.dims[lead + 1] == b.dims[lead];
    ensure!(fits, "matmul cannot multiply {:?} by {:?} to {:?}", a.shape(), b.shape(), out.shape());
    ensure!(out.inner_dense(), "matmul takes a dense last axis of out");
    Ok(())
}

/// The matrices of one index of the leading axes.
fn matrix(view: &View, mut index: usize) -> View {
    let lead = view.rank - 2;
    let mut offset = 0;
    for axis in (0..lead).rev() {
        offset += index % view.dims[axis] * view.strides[axis];
        index /= view.dims[axis];
    }
    let mut matrix = *view;
    matrix.ptr = view.ptr.wrapping_add(offset * view.dtype.size());
    matrix.rank = 2;
    matrix.dims = [1; MAX_RANK];
    matrix.strides = [0; MAX_RANK];
    for axis in 0..2 {
        matrix.dims[axis] = view.dims[lead + axis];
        matrix.strides[axis] = view.strides[lead + axis];
    }
    matrix
}

fn batches(out: &View) -> usize {
    out.dims[..out.rank - 2].iter().product()
}

fn reference(args: &Args) -> Result<()> {
    for index in 0..batches(&args.out()) {
        let [a, b, out] = [0, 1, 2].map(|i| matrix(&args.view(i), index));
        for row in 0..out.dims[0] {
            for column in 0..out.dims[1] {
                let mut sum = 0f64;
                for k in 0..a.dims[1] {
                    let (x, y) = unsafe {
                        (a.get(row * a.strides[0] + k * a.strides[1]), b.get(k * b.strides[0] + column * b.strides[1]))
                    };
                    sum += x as f64 * y as f64;
                }
                let y = sum * args.f32(0) as f64;
                unsafe { out.set(row * out.strides[0] + column * out.strides[1], y as f32) };
            }
        }
    }
    Ok(())
}

fn run(cx: &Cx, args: &Args) -> Result<()> {
    match args.out().dtype {
        DType::F32 => run_as::<f32>(cx, args),
        DType::BF16 => run_as::<bf16>(cx, args),
        _ => run_as::<f16>(cx, args),
    }
}

fn run_as<E: Element>(cx: &Cx, args: &Args) -> Result<()> {
    let columns = panel_columns(cx.level);
    for index in 0..batches(&args.out()) {
        let [a, b, out] = [0, 1, 2].map(|i| matrix(&args.view(i), index));
        let (m, k, n) = (out.dims[0], a.dims[1], out.dims[1]);
        let panels = n.div_ceil(columns);
        // The packed right side is f32 on all levels: it is used once, so that what it takes to read it matters little.
        let packed = Owned::new(4 * panels * columns * packed_depth(k))?;
        cx.pool.run(panels, &|panel, _| unsafe {
            let first = panel * columns;
            let to = (packed.ptr() as *mut f32).add(first * packed_depth(k));
            pack_panel(to, 1, (k, columns), n - first, |depth, column| {
                (*b.at::<E>(depth * b.strides[0] + (first + column) * b.strides[1])).get()
            });
        })?;
        let gemm = Gemm {
            m,
            n,
            k,
            x: Rows { ptr: a.ptr, row: a.strides[0], column: if k <= 1 { 1 } else { a.strides[1] } },
            weight: packed.ptr(),
            epilogue: Epilogue {
                bias: None,
                act: Activation::None,
                gate: None,
                residual: None,
                out,
                alpha: args.f32(0),
            },
        };
        unsafe { multiply::<Widen<E, f32>>(cx.level, cx.pool, &gemm)? };
    }
    Ok(())
}
