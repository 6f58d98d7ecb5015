//! `matmul`: batches of products of any strides.

use super::*;
use crate::dispatch;
use crate::ensure;
use crate::gemm::{Floats, Gemm, Groups, Method, Stored, Zeros, gemm_serial, panel, serial_scratch};
use crate::schema::DType;
use crate::simd::{Element, Simd};
use half::{bf16, f16};

/// out = alpha * a b.
pub static MATMUL: Kernel = Kernel { check, run, reference };

/// Columns of a task: b is packed for them.
const COLUMNS: usize = 128;
/// Rows of a task.
const ROWS: usize = 336;

fn check(args: &Args) -> Result<()> {
    let (a, b, out) = (args.view(0), args.view(1), args.out());
    ensure!(a.dtype.is_float(), "matmul takes a of a float dtype, got {:?}", a.dtype);
    ensure!(
        b.dtype == a.dtype && out.dtype == a.dtype,
        "matmul takes a, b and out of one dtype, got {:?}, {:?} and {:?}",
        a.dtype,
        b.dtype,
        out.dtype
    );
    let rank = out.rank;
    ensure!(
        rank >= 2 && a.rank == rank && b.rank == rank,
        "matmul takes a, b and out of equal rank of at least 2, got {}, {} and {rank}",
        a.rank,
        b.rank
    );
    ensure!(
        a.dims[..rank - 2] == out.dims[..rank - 2]
            && b.dims[..rank - 2] == out.dims[..rank - 2]
            && a.dims[rank - 2] == out.dims[rank - 2]
            && b.dims[rank - 1] == out.dims[rank - 1]
            && a.dims[rank - 1] == b.dims[rank - 2],
        "matmul cannot make {:?} of {:?} and {:?}",
        out.shape(),
        a.shape(),
        b.shape()
    );
    ensure!(out.inner_dense(), "matmul takes out with a dense last axis");
    // Packed columns of b are memory of a thread's own.
    ensure!(
        a.dims[rank - 1].checked_mul(COLUMNS * 4 + 4096).is_some_and(|bytes| bytes < isize::MAX as usize / 2),
        "matmul cannot take an inner size of {}",
        a.dims[rank - 1]
    );
    Ok(())
}

/// The offset of a matrix of a batch, counting in order over all axes but the last two.
fn batch_offset(view: &View, mut batch: usize) -> usize {
    let mut offset = 0;
    for axis in (0..view.rank - 2).rev() {
        offset += (batch % view.dims[axis]) * view.strides[axis];
        batch /= view.dims[axis];
    }
    offset
}

/// One matrix of a batch.
fn matrix(view: &View, batch: usize) -> View {
    let mut matrix = *view;
    matrix.ptr = view.ptr.wrapping_add(batch_offset(view, batch) * view.dtype.size());
    matrix.rank = 2;
    matrix.dims.copy_within(view.rank - 2..view.rank, 0);
    matrix.strides.copy_within(view.rank - 2..view.rank, 0);
    matrix
}

fn run(cx: &Cx, args: &Args) -> Result<()> {
    match args.out().dtype {
        DType::F32 => run_as::<f32>(cx, args),
        DType::BF16 => run_as::<bf16>(cx, args),
        _ => run_as::<f16>(cx, args),
    }
}

fn run_as<E: Element>(cx: &Cx, args: &Args) -> Result<()> {
    let (a, b, out) = (args.view(0), args.view(1), args.out());
    if out.is_empty() {
        return Ok(());
    }
    let rank = out.rank;
    let (m, n, k) = (out.dims[rank - 2], out.dims[rank - 1], a.dims[rank - 1]); // (M, K) (K, N)
    let batches: usize = out.dims[..rank - 2].iter().product();
    let (row_blocks, column_blocks) = (m.div_ceil(ROWS), n.div_ceil(COLUMNS));
    let width = panel(cx.level);
    let packed = n.min(COLUMNS).next_multiple_of(width) * k * 4;
    let packed = packed.next_multiple_of(64);
    let per_batch = row_blocks * column_blocks;
    let tasks = batches * per_batch;
    // Small products are not worth a barrier: one task takes several.
    let cost = m.min(ROWS) * n.min(COLUMNS) * k.max(1);
    let together = if cx.pool.threads() == 1 { tasks } else { (500_000 / cost).clamp(1, tasks) };
    cx.pool.run(tasks.div_ceil(together), &|group, thread| {
        let scratch = unsafe { cx.pool.scratch(thread, packed + serial_scratch(cx.level, n.min(COLUMNS), k)) };
        for task in group * together..((group + 1) * together).min(tasks) {
            let (batch, rest) = (task / per_batch, task % per_batch);
            let (row, column) = (rest / column_blocks * ROWS, rest % column_blocks * COLUMNS);
            let (a, b, mut out) = (matrix(&a, batch), matrix(&b, batch), matrix(&out, batch));
            let columns = COLUMNS.min(n - column);
            out.ptr = out.ptr.wrapping_add((row * out.strides[0] + column) * out.dtype.size());
            out.dims[0] = ROWS.min(m - row);
            out.dims[1] = columns;
            let a_row = a.strides[0];
            let g = Gemm {
                m: out.dims[0],
                n: columns,
                k,
                a: a.ptr.wrapping_add(row * a_row * a.dtype.size()),
                a_row,
                a_column: a.strides[1],
                b: scratch,
                b_panel: width * k * 4,
                blocks: None,
                alpha: args.f32(0),
                column_scale: std::ptr::null(),
                row_scale: None,
                groups: Groups::NONE,
                zeros: Zeros::None,
                bias: std::ptr::null(),
                act: Activation::None,
                gate: None,
                residual: None,
                out,
            };
            unsafe {
                let from = b.ptr.wrapping_add(column * b.strides[1] * b.dtype.size());
                pack::<E>(cx.level, from, [b.strides[0], b.strides[1]], k, columns, scratch as *mut f32);
                gemm_serial(cx.level, &g, Method::of::<Floats<E>, Stored<f32>>(), scratch.add(packed));
            }
        }
    })
}

dispatch!(fn pack<E: Element>(from: *const u8, strides: [usize; 2], k: usize, n: usize, to: *mut f32) => pack_on);

/// (K, N) of any strides to panels, zeros beyond N.
#[inline(always)]
unsafe fn pack_on<S: Simd, E: Element>(from: *const u8, strides: [usize; 2], k: usize, n: usize, to: *mut f32) {
    unsafe {
        let from = from as *const E;
        let panel = 2 * S::LANES;
        for first in (0..n).step_by(panel) {
            let to = to.add(first * k);
            let columns = panel.min(n - first);
            for i in 0..k {
                let from = from.add(i * strides[0] + first * strides[1]);
                let to = to.add(i * panel);
                if strides[1] == 1 && columns == panel {
                    S::store(to, E::load::<S>(from));
                    S::store(to.add(S::LANES), E::load::<S>(from.add(S::LANES)));
                } else {
                    for c in 0..panel {
                        *to.add(c) = if c < columns { (*from.add(c * strides[1])).get() } else { 0.0 };
                    }
                }
            }
        }
    }
}

fn reference(args: &Args) -> Result<()> {
    let (a, b, out) = (args.view(0), args.view(1), args.out());
    if out.is_empty() {
        return Ok(());
    }
    let rank = out.rank;
    let (m, n, k) = (out.dims[rank - 2], out.dims[rank - 1], a.dims[rank - 1]);
    for batch in 0..out.dims[..rank - 2].iter().product() {
        let (a, b, out) = (matrix(&a, batch), matrix(&b, batch), matrix(&out, batch));
        for row in 0..m {
            for column in 0..n {
                let mut sum = 0f64;
                for i in 0..k {
                    unsafe {
                        let left = a.get(row * a.strides[0] + i * a.strides[1]) as f64;
                        sum += left * b.get(i * b.strides[0] + column * b.strides[1]) as f64;
                    }
                }
                unsafe { out.set(row * out.strides[0] + column, (sum * args.f32(0) as f64) as f32) };
            }
        }
    }
    Ok(())
}
