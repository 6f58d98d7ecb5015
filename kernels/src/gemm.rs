//! The matrix multiply behind `linear` and `matmul`: tiles of rows by panels of two vectors of columns.
//!
//! B lies in panels: the columns of one panel for each step of K, one step after another. Rows of A are first copied
//! ("staged") into the thread's scratch memory, widened to f32 where they are narrower, in blocks of K at a fixed
//! distance from row to row: one pointer then addresses all rows of a tile, and no stride of A can make the rows fight
//! for the same cache sets. A block of one panel fits the first-level cache, while the tiles of rows stream past it
//! from the second.

use crate::activation::act;
use crate::dispatch;
use crate::error::Result;
use crate::level::Level;
use crate::ops::Cx;
use crate::schema::Activation;
use crate::simd::{Element, Simd};
use crate::view::View;
use half::bf16;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Steps of K in a block: a panel's block takes 32 KB of four-byte lanes in AVX-512.
const BLOCK: usize = 256;
/// The distance between staged rows: an odd number of cache lines, so that the rows of a tile spread over all sets.
const ROW: usize = BLOCK + 16;
/// Staged rows that may stay for all of K, in four-byte units: most of a second-level cache.
const STAGED: usize = 160 * 1024;
/// Rows in a block where all of K does not fit.
const ROWS: usize = 168;
/// Columns in a task where staging is repeated for each.
const WIDE: usize = 256;
/// Threads that remember what they staged; others stage again for every task.
const REMEMBERED: usize = 64;

/// How A and B meet: what a four-byte unit of a staged row holds, and what a lane of B holds.
pub trait Product: Copy + Send + Sync + 'static {
    /// The storage type of A, the result and its epilogue.
    type E: Element;
    /// Elements of K in a step.
    const STEP: usize;
    /// Bytes of one column of one step of B.
    const BYTES: usize;
    /// Loads a vector of columns.
    ///
    /// # Safety
    /// The CPU has the level of `S`; a vector's bytes can be read.
    unsafe fn load<S: Simd>(p: *const u8) -> S::V;
    /// acc + a * b.
    ///
    /// # Safety
    /// The CPU has the level of `S`.
    unsafe fn mac<S: Simd>(acc: S::V, a: S::V, b: S::V) -> S::V;
    /// Copies `len` elements `stride` apart into units.
    ///
    /// # Safety
    /// All elements can be read, `len` over the step units written.
    unsafe fn stage<S: Simd>(from: *const Self::E, stride: usize, len: usize, to: *mut f32) {
        unsafe { widen::<S, Self::E>(from, stride, len, to) }
    }
}

#[inline(always)]
unsafe fn widen<S: Simd, E: Element>(from: *const E, stride: usize, len: usize, to: *mut f32) {
    unsafe {
        let mut i = 0;
        if stride == 1 {
            while i + S::LANES <= len {
                S::store(to.add(i), E::load::<S>(from.add(i)));
                i += S::LANES;
            }
        }
        while i < len {
            *to.add(i) = (*from.add(i * stride)).get();
            i += 1;
        }
    }
}

/// B in the storage type of A, widened as it is loaded.
#[derive(Clone, Copy)]
pub struct Stored<E>(PhantomData<E>);

impl<E: Element> Product for Stored<E> {
    type E = E;
    const STEP: usize = 1;
    const BYTES: usize = E::SIZE;
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const u8) -> S::V {
        unsafe { E::load::<S>(p as *const E) }
    }
    #[inline(always)]
    unsafe fn mac<S: Simd>(acc: S::V, a: S::V, b: S::V) -> S::V {
        unsafe { S::fma(a, b, acc) }
    }
    #[inline(always)]
    unsafe fn stage<S: Simd>(from: *const E, stride: usize, len: usize, to: *mut f32) {
        unsafe { widen::<S, E>(from, stride, len, to) }
    }
}

/// B in f32, whatever A is.
#[derive(Clone, Copy)]
pub struct Widened<E>(PhantomData<E>);

impl<E: Element> Product for Widened<E> {
    type E = E;
    const STEP: usize = 1;
    const BYTES: usize = 4;
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const u8) -> S::V {
        unsafe { S::load(p as *const f32) }
    }
    #[inline(always)]
    unsafe fn mac<S: Simd>(acc: S::V, a: S::V, b: S::V) -> S::V {
        unsafe { S::fma(a, b, acc) }
    }
    #[inline(always)]
    unsafe fn stage<S: Simd>(from: *const E, stride: usize, len: usize, to: *mut f32) {
        unsafe { widen::<S, E>(from, stride, len, to) }
    }
}

/// Pairs of bf16, two elements of K in each four-byte lane, for the CPU's dot product.
#[derive(Clone, Copy)]
pub struct Pairs;

impl Product for Pairs {
    type E = bf16;
    const STEP: usize = 2;
    const BYTES: usize = 4;
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const u8) -> S::V {
        unsafe { S::load(p as *const f32) }
    }
    #[inline(always)]
    unsafe fn mac<S: Simd>(acc: S::V, a: S::V, b: S::V) -> S::V {
        unsafe { S::dot_bf16(acc, a, b) }
    }
    #[inline(always)]
    unsafe fn stage<S: Simd>(from: *const bf16, stride: usize, len: usize, to: *mut f32) {
        unsafe {
            let to = to as *mut bf16;
            if stride == 1 {
                std::ptr::copy_nonoverlapping(from, to, len);
            } else {
                for i in 0..len {
                    *to.add(i) = *from.add(i * stride);
                }
            }
            // The odd one's partner must be zero: whatever stands there would be multiplied, and may be NaN.
            if len % 2 == 1 {
                *to.add(len) = bf16::ZERO;
            }
        }
    }
}

/// Columns in a panel at a level: two vectors.
pub fn panel(level: Level) -> usize {
    match level {
        Level::Avx512 | Level::Avx512Bf16 => 32,
        _ => 16,
    }
}

/// The most rows in a tile: two accumulators each, beside two vectors of B and one of A.
const fn tile_rows(registers: usize) -> usize {
    (registers - 4) / 2
}

/// One multiply: out (M, N) = residual + gate * act(alpha * A B + bias).
#[derive(Clone, Copy)]
pub struct Gemm {
    /// Rows.
    pub m: usize,
    /// Columns.
    pub n: usize,
    /// The inner size.
    pub k: usize,
    /// A's first element.
    pub a: *const u8,
    /// The distance between rows of A in elements.
    pub a_row: usize,
    /// The distance between columns of A in elements.
    pub a_column: usize,
    /// B's first panel.
    pub b: *const u8,
    /// Bytes from panel to panel.
    pub b_panel: usize,
    /// What the sums are multiplied by.
    pub alpha: f32,
    /// Added to each column, or null.
    pub bias: *const f32,
    /// Applied after the bias.
    pub act: Activation,
    /// Of out's shape, broadcast by strides of 0.
    pub gate: Option<View>,
    /// Of out's shape, broadcast by strides of 0.
    pub residual: Option<View>,
    /// The result, its last axis dense.
    pub out: View,
}

// Threads share it; what they may touch was checked.
unsafe impl Send for Gemm {}
unsafe impl Sync for Gemm {}

/// The rows and columns of one task, and how rows are staged.
#[derive(Clone, Copy)]
struct Region {
    row: usize,
    rows: usize,
    column: usize,
    columns: usize,
    /// Whether all blocks of K are staged one after another, instead of each in the place of the last.
    whole: bool,
    /// Whether the scratch memory holds these rows already.
    staged: bool,
}

/// Offsets of one row in out, gate and residual.
type Offsets = [usize; 3];

impl Region {
    /// Bytes of scratch memory: offsets of rows, staged rows, partial sums.
    fn scratch(&self, blocks: usize, panel: usize) -> [usize; 3] {
        let staged = if self.whole { blocks } else { 1 } * self.rows * ROW * 4;
        let sums = if blocks > 1 { self.rows * self.columns.next_multiple_of(panel) } else { 16 * panel } * 4;
        [(self.rows * size_of::<Offsets>()).next_multiple_of(64), staged.next_multiple_of(64), sums]
    }
}

/// Runs a multiply whose B is packed for the level.
pub fn gemm<P: Product>(cx: &Cx, g: &Gemm) -> Result<()> {
    if g.m == 0 || g.n == 0 {
        return Ok(());
    }
    let steps = g.k.div_ceil(P::STEP);
    let blocks = steps.div_ceil(BLOCK).max(1);
    // Blocks of rows depend on the shape alone, so that the order of every sum does.
    let whole = g.m.min(56) * blocks * ROW <= STAGED;
    let most = if whole { (STAGED / (blocks * ROW)).max(1) } else { ROWS };
    let row_blocks = g.m.div_ceil(most);
    let rows = g.m.div_ceil(row_blocks);
    let row_blocks = g.m.div_ceil(rows);
    // Columns: small tasks balance the threads; large ones stage less often, and cost fewer barriers.
    let panel = panel(cx.level);
    let panels = g.n.div_ceil(panel);
    let threads = cx.pool.threads();
    let cost = rows.max(8) * steps * panel / 1024; // of one panel, in about 10 ns
    let least = if whole { (400 / cost.max(1)).max(1) } else { WIDE / panel };
    let tasks = if threads == 1 { 1 } else { (panels / least).clamp(1, threads * if whole { 16 } else { 64 }) };
    let width = panels.div_ceil(tasks).clamp(1, if whole { 1024 } else { 2 * WIDE } / panel);
    let column_blocks = panels.div_ceil(width);
    let staged: [AtomicUsize; REMEMBERED] = [const { AtomicUsize::new(usize::MAX) }; REMEMBERED];
    cx.pool.run(row_blocks * column_blocks, &|index, thread| {
        // Where staged rows last, go along the columns; else along the rows, which find B in the last-level cache.
        let (i, j) = if whole {
            (index / column_blocks, index % column_blocks)
        } else {
            (index % row_blocks, index / row_blocks)
        };
        let row = i * rows;
        let column = j * width * panel;
        let region = Region {
            row,
            rows: rows.min(g.m - row),
            column,
            columns: (width * panel).min(g.n - column),
            whole,
            staged: whole && staged.get(thread).is_some_and(|s| s.swap(i, Ordering::Relaxed) == i),
        };
        // The first block's sizes serve all, so that memory grows before anything is remembered in it.
        let sizes = Region { rows, columns: width * panel, ..region }.scratch(blocks, panel);
        unsafe {
            let scratch = cx.pool.scratch(thread, sizes.iter().sum());
            block::<P>(cx.level, cx.level, g, &region, scratch, sizes);
        }
    })
}

/// Runs a multiply within one task, on one thread: `scratch` has `serial_scratch` bytes.
///
/// # Safety
/// As `gemm`.
pub unsafe fn gemm_serial<P: Product>(level: Level, g: &Gemm, scratch: *mut u8) {
    if g.m == 0 || g.n == 0 {
        return;
    }
    let blocks = g.k.div_ceil(P::STEP).div_ceil(BLOCK).max(1);
    for row in (0..g.m).step_by(ROWS) {
        let region = Region { row, rows: ROWS.min(g.m - row), column: 0, columns: g.n, whole: false, staged: false };
        let sizes = Region { rows: ROWS, ..region }.scratch(blocks, panel(level));
        unsafe { block::<P>(level, level, g, &region, scratch, sizes) };
    }
}

/// What `gemm_serial` needs.
pub fn serial_scratch(level: Level, n: usize, k: usize) -> usize {
    let region = Region { row: 0, rows: ROWS, column: 0, columns: n, whole: false, staged: false };
    region.scratch(k.div_ceil(BLOCK).max(1), panel(level)).iter().sum()
}

dispatch!(fn block<P: Product>(level: Level, g: &Gemm, region: &Region, scratch: *mut u8, sizes: [usize; 3]) => block_on);

#[inline(always)]
unsafe fn block_on<S: Simd, P: Product>(level: Level, g: &Gemm, region: &Region, scratch: *mut u8, sizes: [usize; 3]) {
    unsafe {
        let offsets = scratch as *mut Offsets;
        let stage = scratch.add(sizes[0]) as *mut f32;
        let sums = scratch.add(sizes[0] + sizes[1]) as *mut f32;
        let panel = 2 * S::LANES;
        let panels = region.columns.div_ceil(panel);
        let steps = g.k.div_ceil(P::STEP);
        let blocks = steps.div_ceil(BLOCK).max(1);
        // Tiles of nearly equal rows.
        let tiles = region.rows.div_ceil(tile_rows(S::REGISTERS));
        if !region.staged {
            row_offsets(&g.out, region, offsets, 0);
            for (which, view) in [(1, &g.gate), (2, &g.residual)] {
                if let Some(view) = view {
                    row_offsets(view, region, offsets, which);
                }
            }
        }
        for block in 0..blocks {
            let first = block * BLOCK;
            let count = BLOCK.min(steps - first);
            let stage = if region.whole { stage.add(block * region.rows * ROW) } else { stage };
            if !region.staged {
                let k = first * P::STEP;
                let len = (count * P::STEP).min(g.k - k);
                for row in 0..region.rows {
                    let from = (g.a as *const P::E).add((region.row + row) * g.a_row + k * g.a_column);
                    P::stage::<S>(from, g.a_column, len, stage.add(row * ROW));
                }
            }
            let last = block + 1 == blocks;
            for p in 0..panels {
                let column = region.column + p * panel;
                let b = g.b.add((column / panel) * g.b_panel + first * panel * P::BYTES);
                // The block after this one, which the first tile fetches into the second-level cache.
                let next = if p + 1 < panels { b.wrapping_add(g.b_panel) } else { b };
                let mut row = 0;
                for t in 0..tiles {
                    let end = (t + 1) * region.rows / tiles;
                    let rows = end - row;
                    let sum = if blocks == 1 { sums } else { sums.add((row * panels + p * rows) * panel) };
                    let ahead = if t == 0 { next } else { b };
                    let a = stage.add(row * ROW);
                    tile::<P>(level, rows, Tile { a, b, steps: count, sums: sum, add: block > 0, ahead });
                    if last {
                        finish::<S, P::E>(g, sum, offsets.add(row), rows, column);
                    }
                    row = end;
                }
            }
        }
    }
}

/// Writes the offsets of a region's rows in a view.
unsafe fn row_offsets(view: &View, region: &Region, offsets: *mut Offsets, which: usize) {
    unsafe {
        if let Some(stride) = view.row_stride() {
            for i in 0..region.rows {
                (*offsets.add(i))[which] = (region.row + i) * stride;
            }
        } else {
            for i in 0..region.rows {
                (*offsets.add(i))[which] = view.row_offset(region.row + i);
            }
        }
    }
}

/// One tile's operands: staged rows, a panel's block and its steps, sums, what to fetch meanwhile.
#[derive(Clone, Copy)]
struct Tile {
    a: *const f32,
    b: *const u8,
    steps: usize,
    sums: *mut f32,
    /// Whether to add to the sums.
    add: bool,
    ahead: *const u8,
}

/// Picks the code for the number of rows.
unsafe fn tile<P: Product>(level: Level, rows: usize, t: Tile) {
    macro_rules! pick {
        ($($rows:literal: $unroll:literal),*) => {
            match rows {
                $($rows => tile_of::<P, $rows, $unroll>(level, t),)*
                _ => unreachable!("tiles have at most so many rows as registers allow"),
            }
        };
    }
    unsafe { pick!(1: 4, 2: 2, 3: 2, 4: 1, 5: 1, 6: 1, 7: 1, 8: 1, 9: 1, 10: 1, 11: 1, 12: 1, 13: 1, 14: 1) }
}

/// Picks the code for the level. Each is a function of its own: inlined side by side, the compiler runs out of
/// registers in some.
unsafe fn tile_of<P: Product, const R: usize, const U: usize>(level: Level, t: Tile) {
    #[cfg(target_arch = "x86_64")]
    #[inline(never)]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn avx2<P: Product, const R: usize, const U: usize>(t: Tile) {
        unsafe { accumulate::<crate::simd::Avx2, P, R, U>(t) }
    }
    #[cfg(target_arch = "x86_64")]
    #[inline(never)]
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
    unsafe fn avx512<P: Product, const R: usize, const U: usize>(t: Tile) {
        unsafe { accumulate::<crate::simd::Avx512, P, R, U>(t) }
    }
    #[cfg(target_arch = "x86_64")]
    #[inline(never)]
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx512vnni")]
    unsafe fn avx512_bf16<P: Product, const R: usize, const U: usize>(t: Tile) {
        unsafe { accumulate::<crate::simd::Avx512Bf16, P, R, U>(t) }
    }
    unsafe {
        match level {
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => avx2::<P, R, U>(t),
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => avx512::<P, R, U>(t),
            #[cfg(target_arch = "x86_64")]
            Level::Avx512Bf16 => avx512_bf16::<P, R, U>(t),
            _ => accumulate::<crate::simd::Portable, P, R, U>(t),
        }
    }
}

/// Sums (R, panel), added to or stored. Few rows take several sums each, or every step would wait for the last.
#[inline(always)]
#[allow(clippy::needless_range_loop, reason = "indices of registers, in step with addresses")]
unsafe fn accumulate<S: Simd, P: Product, const R: usize, const U: usize>(t: Tile) {
    if R > tile_rows(S::REGISTERS) {
        unreachable!("tiles have at most so many rows as registers allow");
    }
    let Tile { a, b, steps, sums, add, ahead } = t;
    unsafe {
        let zero = S::splat(0.0);
        let mut acc = [[[zero; 2]; R]; U];
        if add {
            for r in 0..R {
                for v in 0..2 {
                    acc[0][r][v] = S::load(sums.add((r * 2 + v) * S::LANES));
                }
            }
        }
        let vector = S::LANES * P::BYTES;
        let mut s = 0;
        while s + U <= steps {
            for u in 0..U {
                let b = b.add((s + u) * 2 * vector);
                prefetch(ahead.wrapping_add((s + u) * 2 * vector));
                if vector == 64 {
                    prefetch(ahead.wrapping_add((s + u) * 2 * vector + 64));
                }
                let (b0, b1) = (P::load::<S>(b), P::load::<S>(b.add(vector)));
                for r in 0..R {
                    let x = S::splat(*a.add(r * ROW + s + u));
                    acc[u][r][0] = P::mac::<S>(acc[u][r][0], x, b0);
                    acc[u][r][1] = P::mac::<S>(acc[u][r][1], x, b1);
                }
            }
            s += U;
        }
        while s < steps {
            let b = b.add(s * 2 * vector);
            let (b0, b1) = (P::load::<S>(b), P::load::<S>(b.add(vector)));
            for r in 0..R {
                let x = S::splat(*a.add(r * ROW + s));
                acc[0][r][0] = P::mac::<S>(acc[0][r][0], x, b0);
                acc[0][r][1] = P::mac::<S>(acc[0][r][1], x, b1);
            }
            s += 1;
        }
        for r in 0..R {
            for v in 0..2 {
                let mut sum = acc[0][r][v];
                for more in acc.iter().skip(1) {
                    sum = S::add(sum, more[r][v]);
                }
                S::store(sums.add((r * 2 + v) * S::LANES), sum);
            }
        }
    }
}

/// Brings a line into the second-level cache; any address will do.
#[inline(always)]
unsafe fn prefetch(p: *const u8) {
    #[cfg(target_arch = "x86_64")]
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T1>(p as *const i8);
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = p;
}

/// Turns sums into results: alpha, bias, activation, gate, residual.
#[inline(always)]
unsafe fn finish<S: Simd, E: Element>(g: &Gemm, sums: *const f32, offsets: *const Offsets, rows: usize, column: usize) {
    unsafe {
        for v in 0..2 {
            let from = column + v * S::LANES;
            if from >= g.n {
                break;
            }
            let width = S::LANES.min(g.n - from);
            let sums = sums.add(v * S::LANES);
            macro_rules! known {
                ($($kind:ident),*) => {
                    match g.act {
                        $(Activation::$kind => {
                            finish_rows::<S, E>(g, Activation::$kind, sums, offsets, rows, from, width)
                        })*
                    }
                };
            }
            known!(None, Silu, GeluTanh, GeluErf, QuickGelu, Relu);
        }
    }
}

/// One vector of columns, all rows of a tile.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn finish_rows<S: Simd, E: Element>(
    g: &Gemm,
    kind: Activation,
    sums: *const f32,
    offsets: *const Offsets,
    rows: usize,
    from: usize,
    width: usize,
) {
    unsafe {
        let alpha = S::splat(g.alpha);
        let bias = if g.bias.is_null() { S::splat(0.0) } else { load::<S, f32>(g.bias.add(from), width) };
        for r in 0..rows {
            let at = &*offsets.add(r);
            let mut y = S::fma(S::load(sums.add(r * 2 * S::LANES)), alpha, bias);
            y = act::<S>(kind, y);
            if let Some(gate) = &g.gate {
                y = S::mul(y, columns::<S, E>(gate, at[1], from, width));
            }
            if let Some(residual) = &g.residual {
                y = S::add(y, columns::<S, E>(residual, at[2], from, width));
            }
            let to = g.out.at::<E>(at[0] + from);
            if width == S::LANES {
                E::store::<S>(to, y);
            } else {
                E::store_n::<S>(to, y, width);
            }
        }
    }
}

#[inline(always)]
unsafe fn load<S: Simd, E: Element>(p: *const E, width: usize) -> S::V {
    unsafe { if width == S::LANES { E::load::<S>(p) } else { E::load_n::<S>(p, width) } }
}

/// A vector of a row of a view of any stride.
#[inline(always)]
unsafe fn columns<S: Simd, E: Element>(view: &View, row: usize, from: usize, width: usize) -> S::V {
    unsafe {
        let stride = view.strides[view.rank - 1];
        if stride == 1 {
            return load::<S, E>(view.at::<E>(row + from), width);
        }
        if stride == 0 {
            return S::splat((*view.at::<E>(row)).get());
        }
        let mut lanes = [0f32; 16];
        for (i, lane) in lanes.iter_mut().enumerate().take(width) {
            *lane = (*view.at::<E>(row + (from + i) * stride)).get();
        }
        S::load(lanes.as_ptr())
    }
}
