//! Few rows: codes are decoded in registers and multiplied at once, so that the weight is read at the speed of memory and
//! nothing is written but the result.

use crate::dispatch;
use crate::error::Result;
use crate::gemm::{Gemm, Method, Offsets, Strip, finish, panel, row_offsets};
use crate::level::Level;
use crate::ops::Cx;
use crate::simd::Simd;
use half::bf16;

/// The most rows.
pub(super) const ROWS: usize = 16;
/// Bytes from the codes that are multiplied to those that are fetched.
pub(super) const AHEAD: usize = 4096;

/// The most rows of one pass over a panel: two accumulators each, and what decoding takes.
pub(super) fn tile_rows(level: Level) -> usize {
    level.registers() / 4
}

/// Rows of x as products read them, one after another, with zeros up to a multiple of 64 elements and of a tile's rows.
#[derive(Clone, Copy)]
pub(super) struct Staged {
    pub(super) units: *mut f32,
    /// Units in a row.
    pub(super) row: usize,
    /// The sum of each group of each row; null where nobody wants them.
    pub(super) sums: *mut f32,
    pub(super) groups: usize,
}

// Threads share it, and read alone.
unsafe impl Sync for Staged {}

/// A packed weight whose groups are of whole chunks.
pub(super) trait Panels: Sync {
    /// Groups of a row.
    fn groups(&self) -> usize;
    /// Whether the sums of x's groups are wanted.
    fn wants_sums(&self) -> bool;
    /// Sums (rows, panel) of a panel and of rows of x, a tile of them at most.
    ///
    /// # Safety
    /// `x` holds the rows of a whole tile, `sums` has room for them.
    unsafe fn multiply(&self, level: Level, rows: usize, x: Staged, panel: usize, sums: *mut f32);
}

/// `g` by `w`. `variant` picks how finely the work is cut.
pub(super) fn few(cx: &Cx, g: &Gemm, method: Method, w: &impl Panels, variant: u32) -> Result<()> {
    if g.m == 0 || g.n == 0 {
        return Ok(());
    }
    let rows = g.m.next_multiple_of(tile_rows(cx.level));
    let row = g.k.next_multiple_of(64) / method.step(cx.level);
    let groups = w.groups();
    // The caller is the pool's first thread, whose memory no task needs besides.
    let scratch = unsafe { cx.pool.scratch(0, (rows * (row + groups)) * 4) } as *mut f32;
    let sums = if w.wants_sums() { scratch.wrapping_add(rows * row) } else { std::ptr::null_mut() };
    let staged = Staged { units: scratch, row, sums, groups };
    unsafe { stage(cx.level, g, method, rows, staged) };
    let panels = g.n.div_ceil(panel(cx.level));
    // Enough tasks of each thread to balance them.
    let tasks = cx.pool.threads() * [8, 16, 4, 1].get(variant as usize).copied().unwrap_or(8);
    let together = panels.div_ceil(tasks).max(1);
    cx.pool.run(panels.div_ceil(together), &|task, _| {
        let staged = &staged;
        let mut offsets: [Offsets; ROWS] = [[0; 4]; ROWS];
        unsafe {
            row_offsets(g, 0, g.m, offsets.as_mut_ptr());
            for panel in task * together..((task + 1) * together).min(panels) {
                multiply(cx.level, g, w, *staged, panel, &offsets);
            }
        }
    })
}

/// One panel of columns, all rows.
unsafe fn multiply(level: Level, g: &Gemm, w: &impl Panels, x: Staged, column: usize, offsets: &[Offsets; ROWS]) {
    let mut sums = [0f32; 32 * 8];
    let tile = tile_rows(level);
    for row in (0..g.m).step_by(tile) {
        let rows = tile.min(g.m - row);
        unsafe {
            let x = Staged {
                units: x.units.add(row * x.row),
                sums: x.sums.wrapping_add(if x.sums.is_null() { 0 } else { row * x.groups }),
                ..x
            };
            w.multiply(level, rows, x, column, sums.as_mut_ptr());
            finish(level, g, sums.as_mut_ptr(), offsets.as_ptr().add(row), rows, column * panel(level));
        }
    }
}

/// Writes rows of x as units, and the sums of their groups.
unsafe fn stage(level: Level, g: &Gemm, method: Method, rows: usize, x: Staged) {
    let step = method.step(level);
    let group = g.k.div_ceil(x.groups);
    unsafe {
        let strip = Strip { a: g.a, first: 0, row: g.a_row, column: 1, rows: g.m, len: g.k };
        method.stage(level, strip, x.row, x.units);
        for row in 0..rows {
            let to = x.units.add(row * x.row);
            let known = if row < g.m { g.k.div_ceil(step) } else { 0 };
            std::ptr::write_bytes(to.add(known), 0, x.row - known);
            if !x.sums.is_null() {
                for i in 0..x.groups {
                    *x.sums.add(row * x.groups + i) = sum(level, to.add(i * group / step), group, step == 2);
                }
            }
        }
    }
}

dispatch!(fn sum(units: *const f32, len: usize, pairs: bool) -> f32 => sum_on);

/// The sum of staged values, zeros beyond them up to a whole chunk.
#[inline(always)]
unsafe fn sum_on<S: Simd>(units: *const f32, len: usize, pairs: bool) -> f32 {
    unsafe {
        let mut sums = S::splat(0.0);
        for i in (0..len).step_by(S::LANES) {
            let values = if pairs { S::load_bf16((units as *const bf16).add(i)) } else { S::load(units.add(i)) };
            sums = S::add(sums, values);
        }
        S::sum(sums)
    }
}
