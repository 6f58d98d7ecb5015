//! Matrix multiply with a packed right side: the blocks and the register tiles that `linear` and `matmul` share.
//!
//! The right side lies in panels of two vectors of columns, each (K, columns), so that a tile reads it from front to
//! back. Rows of the left side are copied into blocks whose rows stand an odd number of cache lines apart: a tile
//! reads one element of each of its rows at a time, and rows a power of two apart would push each other out of the
//! cache. A block of rows stays in the second-level cache while all panels of a task pass by.

use crate::activation::act;
use crate::arith::Arith;
use crate::dispatch;
use crate::error::Result;
use crate::level::Level;
use crate::pool::Pool;
use crate::schema::Activation;
use crate::simd::{Element, Simd};
use crate::view::View;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Units (elements, or pairs of bf16) of K that a block of rows holds.
const DEPTH: usize = 512;
/// Floats from one row of a block to the next: an odd number of cache lines.
const ROW: usize = DEPTH + 16;
/// The most rows of a block.
const ROWS: usize = 168;
/// The bytes that all blocks of a task's rows may take to be kept for the next task.
const KEPT: usize = 448 << 10;
/// Vectors in a panel's row.
const V: usize = 2;

/// Where the rows of the left side are.
#[derive(Clone, Copy)]
pub struct Rows {
    /// The first element.
    pub ptr: *const u8,
    /// Elements from one row to the next.
    pub row: usize,
    /// Elements from one column to the next.
    pub column: usize,
}

/// What is done to the sums: out = residual + gate * act(alpha * sums + bias).
#[derive(Clone, Copy)]
pub struct Epilogue {
    /// f32, one for each column.
    pub bias: Option<View>,
    /// The activation.
    pub act: Activation,
    /// Broadcast to out's shape.
    pub gate: Option<View>,
    /// Broadcast to out's shape.
    pub residual: Option<View>,
    /// Columns adjacent.
    pub out: View,
    /// The factor.
    pub alpha: f32,
}

/// A multiplication (M, K) by (K, N).
pub struct Gemm {
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub x: Rows,
    /// The panels.
    pub weight: *const u8,
    pub epilogue: Epilogue,
}

unsafe impl Send for Gemm {}
unsafe impl Sync for Gemm {}

/// The columns of a panel.
pub fn panel_columns(level: Level) -> usize {
    match level {
        Level::Avx512 | Level::Avx512Bf16 => 32,
        _ => 16,
    }
}

/// The rows of a packed right side: K to a multiple of 4.
pub fn packed_depth(k: usize) -> usize {
    k.next_multiple_of(4)
}

/// The rows of the largest tile: sums, one row of weights and one element of x must fit the registers.
const fn tile_rows<S: Simd>() -> usize {
    match S::REGISTERS {
        32 => 14,
        16 => 6,
        _ => 2,
    }
}

/// How the work is cut: blocks of rows by groups of panels.
#[derive(Clone, Copy)]
struct Cut {
    rows: usize,
    panels: usize,
    row_blocks: usize,
    tasks: usize,
}

fn cut(gemm: &Gemm, columns: usize, element: usize, threads: usize) -> Cut {
    let all = gemm.n.div_ceil(columns);
    let row_blocks = gemm.m.div_ceil(ROWS);
    let rows = gemm.m.div_ceil(row_blocks);
    // Below about ten microseconds of work, waking the other threads costs more than they save.
    let operations = 2.0 * gemm.m as f64 * gemm.n as f64 * gemm.k as f64;
    let bytes = (all * columns * gemm.k * element) as f64;
    let threads = if operations < 2e6 && bytes < 256e3 { 1 } else { threads };
    let wanted = if threads == 1 { 1 } else { 4 * threads };
    let panels = (all * row_blocks / wanted).clamp((64 / columns).max(1), 192 / columns);
    Cut { rows, panels, row_blocks, tasks: row_blocks * all.div_ceil(panels) }
}

/// Multiplies on all threads.
///
/// # Safety
/// The CPU has the level; every element that `gemm` describes may be read or written.
pub unsafe fn multiply<A: Arith>(level: Level, pool: &Pool, gemm: &Gemm) -> Result<()> {
    if gemm.m == 0 || gemm.n == 0 {
        return Ok(());
    }
    let cut = cut(gemm, panel_columns(level), std::mem::size_of::<A::W>(), pool.threads());
    // Which block of rows a thread's memory holds.
    let held: Vec<AtomicUsize> = (0..pool.threads()).map(|_| AtomicUsize::new(usize::MAX)).collect();
    let bytes = scratch_bytes::<A>(gemm, &cut, panel_columns(level));
    pool.run(cut.tasks, &|task, thread| unsafe {
        block::<A>(level, gemm, &cut, task, pool.scratch(thread, bytes), &held[thread]);
    })
}

fn blocks_of_depth<A: Arith>(k: usize) -> usize {
    k.div_ceil(A::PAIR).div_ceil(DEPTH).max(1)
}

/// Whether a thread keeps all of a block of rows from task to task.
fn keeps<A: Arith>(gemm: &Gemm, cut: &Cut) -> bool {
    blocks_of_depth::<A>(gemm.k) * cut.rows * ROW * 4 <= KEPT
}

fn scratch_bytes<A: Arith>(gemm: &Gemm, cut: &Cut, columns: usize) -> usize {
    let blocks = if keeps::<A>(gemm, cut) { blocks_of_depth::<A>(gemm.k) } else { 1 };
    let sums = if blocks_of_depth::<A>(gemm.k) > 1 { cut.rows * cut.panels * columns } else { 16 * columns };
    4 * (blocks * cut.rows * ROW + sums) + cut.rows * 3 * std::mem::size_of::<usize>()
}

dispatch! {
    fn block<A: Arith>(gemm: &Gemm, cut: &Cut, task: usize, scratch: *mut u8, held: &AtomicUsize) => block_at
}

#[inline(always)]
unsafe fn block_at<S: Simd, A: Arith>(gemm: &Gemm, cut: &Cut, task: usize, scratch: *mut u8, held: &AtomicUsize) {
    unsafe {
        let columns = V * S::LANES;
        // Blocks of rows follow each other for the same panels, which then come from the cache.
        let first_row = task % cut.row_blocks * cut.rows;
        let rows = cut.rows.min(gemm.m.saturating_sub(first_row));
        let first_panel = task / cut.row_blocks * cut.panels;
        let panels = cut.panels.min(gemm.n.div_ceil(columns) - first_panel);
        if rows == 0 {
            return;
        }
        let depths = blocks_of_depth::<A>(gemm.k);
        let kept = keeps::<A>(gemm, cut);
        let held_blocks = if kept { depths } else { 1 };
        let x = scratch as *mut f32;
        let sums = x.add(held_blocks * cut.rows * ROW);
        let sum_floats = if depths > 1 { cut.rows * cut.panels * columns } else { 16 * columns };
        let offsets = Offsets::new(&gemm.epilogue, first_row, rows, sums.add(sum_floats) as *mut usize);

        let fresh = !kept || held.swap(first_row, Ordering::Relaxed) != first_row;
        if kept && fresh {
            for depth in 0..depths {
                copy_rows::<S, A>(gemm, first_row, rows, depth, x.add(depth * cut.rows * ROW));
            }
        }
        // Tiles of nearly equal height.
        let tiles = rows.div_ceil(tile_rows::<S>());
        for depth in 0..depths {
            let block = if kept { x.add(depth * cut.rows * ROW) } else { x };
            if !kept {
                copy_rows::<S, A>(gemm, first_row, rows, depth, block);
            }
            let units = (gemm.k.div_ceil(A::PAIR) - depth * DEPTH).min(DEPTH);
            for tile in 0..tiles {
                let (from, to) = (tile * rows / tiles, (tile + 1) * rows / tiles);
                for panel in 0..panels {
                    let number = first_panel + panel;
                    let weight = (gemm.weight as *const A::W)
                        .add((number * packed_depth(gemm.k) + depth * DEPTH * A::PAIR) * columns);
                    let sum = if depths > 1 { sums.add((panel * cut.rows + from) * columns) } else { sums };
                    any_tile::<S, A>(to - from, units, depth == 0, block.add(from * ROW), weight, sum);
                    if depth + 1 == depths {
                        finish::<S, A::E>(gemm, &offsets, (from, to), number * columns, sum);
                    }
                }
            }
        }
    }
}

/// Copies rows' units of one block of K; zeros follow the last to the end of its cache line.
#[inline(always)]
unsafe fn copy_rows<S: Simd, A: Arith>(gemm: &Gemm, first: usize, rows: usize, depth: usize, block: *mut f32) {
    unsafe {
        let start = depth * DEPTH * A::PAIR;
        let elements = (gemm.k - start).min(DEPTH * A::PAIR);
        let cell = 16 * A::PAIR;
        for row in 0..rows {
            let x = (gemm.x.ptr as *const A::E).add((first + row) * gemm.x.row + start * gemm.x.column);
            let to = block.add(row * ROW);
            let mut at = 0;
            while at < elements {
                let n = (elements - at).min(cell);
                if gemm.x.column == 1 {
                    A::fill::<S>(to.add(at / A::PAIR), x.add(at), n);
                } else {
                    let mut gathered = [<A::E as Element>::from(0.0); 32];
                    for (i, value) in gathered.iter_mut().enumerate().take(n) {
                        *value = *x.add((at + i) * gemm.x.column);
                    }
                    A::fill::<S>(to.add(at / A::PAIR), gathered.as_ptr(), n);
                }
                at += cell;
            }
        }
    }
}

/// Sums of `M` rows and one panel, in registers.
// Plain counted loops are what the compiler keeps in registers.
#[allow(clippy::needless_range_loop)]
#[inline(always)]
unsafe fn tile<S: Simd, A: Arith, const M: usize>(
    units: usize,
    first: bool,
    x: *const f32,  // (M, ROW)
    w: *const A::W, // (units, columns)
    sums: *mut f32, // (M, columns)
) {
    unsafe {
        let mut s = [[S::splat(0.0); V]; M];
        if !first {
            for m in 0..M {
                for v in 0..V {
                    s[m][v] = S::load(sums.add((m * V + v) * S::LANES));
                }
            }
        }
        let step = S::LANES * A::PAIR;
        let mut w = w;
        for unit in 0..units {
            let mut weights = [S::splat(0.0); V];
            for v in 0..V {
                weights[v] = A::weights::<S>(w.add(v * step));
            }
            S::prefetch(w.wrapping_add(16 * V * step) as *const u8);
            S::prefetch(w.wrapping_add((16 * V + 1) * step) as *const u8);
            for m in 0..M {
                let value = S::splat(*x.add(m * ROW + unit));
                for v in 0..V {
                    s[m][v] = A::madd::<S>(s[m][v], value, weights[v]);
                }
            }
            w = w.add(V * step);
        }
        for m in 0..M {
            for v in 0..V {
                S::store(sums.add((m * V + v) * S::LANES), s[m][v]);
            }
        }
    }
}

/// `tile` for a number of rows that only the run knows.
#[inline(always)]
unsafe fn any_tile<S: Simd, A: Arith>(
    m: usize,
    units: usize,
    first: bool,
    x: *const f32,
    w: *const A::W,
    sums: *mut f32,
) {
    macro_rules! arms {
        ($($m:literal)*) => {
            match m {
                $($m if $m <= tile_rows::<S>() => tile::<S, A, $m>(units, first, x, w, sums),)*
                _ => unreachable!("a tile of {m} rows"),
            }
        };
    }
    unsafe { arms!(1 2 3 4 5 6 7 8 9 10 11 12 13 14) }
}

/// Where each row of a task begins in the results and what is applied to them, in elements.
struct Offsets {
    out: *mut usize,
    gate: *mut usize,
    residual: *mut usize,
}

impl Offsets {
    unsafe fn new(epilogue: &Epilogue, first: usize, rows: usize, memory: *mut usize) -> Self {
        unsafe {
            let offsets = Self { out: memory, gate: memory.add(rows), residual: memory.add(2 * rows) };
            fill_offsets(&epilogue.out, first, rows, offsets.out);
            if let Some(gate) = &epilogue.gate {
                fill_offsets(gate, first, rows, offsets.gate);
            }
            if let Some(residual) = &epilogue.residual {
                fill_offsets(residual, first, rows, offsets.residual);
            }
            offsets
        }
    }
}

unsafe fn fill_offsets(view: &View, first: usize, rows: usize, to: *mut usize) {
    unsafe {
        match view.row_stride() {
            Some(stride) => (0..rows).for_each(|i| *to.add(i) = (first + i) * stride),
            None => (0..rows).for_each(|i| *to.add(i) = view.row_offset(first + i)),
        }
    }
}

/// Applies the epilogue to a tile's sums and writes the results.
#[inline(always)]
unsafe fn finish<S: Simd, E: Element>(
    gemm: &Gemm,
    offsets: &Offsets,
    rows: (usize, usize),
    column: usize,
    sums: *const f32, // (M, columns)
) {
    unsafe {
        let epilogue = &gemm.epilogue;
        for v in 0..V {
            let column = column + v * S::LANES;
            if column >= gemm.n {
                return;
            }
            let n = (gemm.n - column).min(S::LANES);
            let bias = match &epilogue.bias {
                Some(bias) if n == S::LANES => S::load(bias.at::<f32>(column)),
                Some(bias) => S::load_n(bias.at::<f32>(column), n),
                None => S::splat(0.0),
            };
            for row in rows.0..rows.1 {
                let sum = S::load(sums.add(((row - rows.0) * V + v) * S::LANES));
                let mut y = S::fma(sum, S::splat(epilogue.alpha), bias);
                y = act::<S>(epilogue.act, y);
                if let Some(gate) = &epilogue.gate {
                    y = S::mul(y, row_vector::<S, E>(gate, *offsets.gate.add(row), column, n));
                }
                if let Some(residual) = &epilogue.residual {
                    y = S::add(y, row_vector::<S, E>(residual, *offsets.residual.add(row), column, n));
                }
                let to = epilogue.out.at::<E>(*offsets.out.add(row) + column);
                if n == S::LANES { E::store::<S>(to, y) } else { E::store_n::<S>(to, y, n) }
            }
        }
    }
}

/// A vector of a row of an operand whose columns may be adjacent, all one, or far apart.
#[inline(always)]
unsafe fn row_vector<S: Simd, E: Element>(view: &View, row: usize, column: usize, n: usize) -> S::V {
    unsafe {
        let stride = view.strides[view.rank - 1];
        match stride {
            0 => S::splat((*view.at::<E>(row)).get()),
            1 if n == S::LANES => E::load::<S>(view.at::<E>(row + column)),
            1 => E::load_n::<S>(view.at::<E>(row + column), n),
            _ => {
                let mut lanes = [0f32; 16];
                for (i, lane) in lanes.iter_mut().enumerate().take(n) {
                    *lane = (*view.at::<E>(row + (column + i) * stride)).get();
                }
                S::load(lanes.as_ptr())
            }
        }
    }
}

/// Writes one panel of a right side whose elements `get(k, column)` gives; zeros fill it up.
///
/// # Safety
/// `panel` has room for (packed_depth(k), columns) elements.
#[inline(always)]
pub unsafe fn pack_panel<W: Element>(
    panel: *mut W,
    pair: usize,
    (k, columns): (usize, usize),
    valid: usize,
    get: impl Fn(usize, usize) -> f32,
) {
    unsafe {
        // Blocks of K, so that the writes of a block stay in the first-level cache.
        for start in (0..packed_depth(k)).step_by(64) {
            let end = (start + 64).min(packed_depth(k));
            for column in 0..columns {
                for depth in start..end {
                    let value = if column < valid && depth < k { get(depth, column) } else { 0.0 };
                    let at = depth / pair * pair * columns + column * pair + depth % pair;
                    *panel.add(at) = W::from(value);
                }
            }
        }
    }
}
