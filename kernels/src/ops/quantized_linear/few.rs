//! Few rows: codes are decoded in registers and multiplied at once, so that the weight is read at the speed of memory and
//! nothing is written but the result.

use crate::error::Result;
use crate::gemm::{Gemm, Method, Offsets, Strip, finish, panel, row_offsets};
use crate::level::Level;
use crate::ops::Cx;

/// The most rows.
pub(super) const ROWS: usize = 16;
/// Bytes from the codes that are multiplied to those that are fetched.
pub(super) const AHEAD: usize = 4096;

/// Rows of x as products read them, one after another, with zeros up to a multiple of 64 elements and of a tile's rows.
#[derive(Clone, Copy)]
pub(super) struct Staged {
    pub(super) units: *mut f32,
    /// Units in a row.
    pub(super) row: usize,
    /// What is known of each row besides.
    pub(super) more: *mut f32,
    /// How much that is.
    pub(super) each: usize,
}

// Threads share it, and read alone.
unsafe impl Sync for Staged {}

impl Staged {
    /// From a row on.
    unsafe fn from(self, row: usize) -> Self {
        unsafe { Self { units: self.units.add(row * self.row), more: self.more.add(row * self.each), ..self } }
    }
}

/// A packed weight whose groups are of whole chunks, and a way to multiply by it.
pub(super) trait Panels: Sync {
    /// The most rows of one pass over a panel: two accumulators each, and what decoding takes.
    fn tile_rows(&self, level: Level) -> usize {
        level.registers() / 4
    }
    /// Units of a staged row of k elements.
    fn row(&self, level: Level, method: Method, k: usize) -> usize {
        k.next_multiple_of(64) / method.step(level)
    }
    /// Floats that are known of each row besides.
    fn each(&self) -> usize {
        0
    }
    /// Stages the rows of x, and as many of zeros as a tile wants. There is room for a row of floats in `spare`.
    ///
    /// # Safety
    /// The rows can be read; `x` has room for them.
    unsafe fn stage(&self, level: Level, g: &Gemm, method: Method, rows: usize, x: Staged, spare: *mut f32) {
        let _ = spare;
        unsafe { stage(level, g, method, rows, x) };
    }
    /// Sums (rows, panel) of a panel and of rows of x, a tile of them at most.
    ///
    /// # Safety
    /// `x` holds the rows of a whole tile, `sums` has room for twice as many.
    unsafe fn multiply(&self, level: Level, rows: usize, x: Staged, panel: usize, sums: *mut f32);
}

/// `g` by `w`. `variant` picks how finely the work is cut.
pub(super) fn few(cx: &Cx, g: &Gemm, method: Method, w: &impl Panels, variant: u32) -> Result<()> {
    if g.m == 0 || g.n == 0 {
        return Ok(());
    }
    let rows = g.m.next_multiple_of(w.tile_rows(cx.level));
    let (row, each) = (w.row(cx.level, method, g.k), w.each());
    let spare = g.k.next_multiple_of(64);
    // The caller is the pool's first thread, whose memory no task needs besides.
    let scratch = unsafe { cx.pool.scratch(0, (rows * (row + each) + spare) * 4) } as *mut f32;
    let staged = Staged { units: scratch, row, more: scratch.wrapping_add(rows * row), each };
    unsafe { w.stage(cx.level, g, method, rows, staged, staged.more.wrapping_add(rows * each)) };
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
    let tile = w.tile_rows(level);
    for row in (0..g.m).step_by(tile) {
        let rows = tile.min(g.m - row);
        unsafe {
            w.multiply(level, rows, x.from(row), column, sums.as_mut_ptr());
            finish(level, g, sums.as_mut_ptr(), offsets.as_ptr().add(row), rows, column * panel(level));
        }
    }
}

/// Writes rows of x as units.
///
/// # Safety
/// As `Panels::stage`.
pub(super) unsafe fn stage(level: Level, g: &Gemm, method: Method, rows: usize, x: Staged) {
    unsafe {
        let strip = Strip { a: g.a, first: 0, row: g.a_row, column: 1, rows: g.m, len: g.k };
        method.stage(level, strip, x.row, x.units);
        for row in 0..rows {
            let known = if row < g.m { g.k.div_ceil(method.step(level)) } else { 0 };
            std::ptr::write_bytes(x.units.add(row * x.row + known), 0, x.row - known);
        }
    }
}

/// Writes a row of x as floats, with zeros up to a multiple of 64; one beyond the last is all zeros.
///
/// # Safety
/// As `Panels::stage`; the method's units are floats.
pub(super) unsafe fn stage_row(level: Level, g: &Gemm, method: Method, row: usize, to: *mut f32) {
    unsafe {
        let rows = (row < g.m) as usize;
        let strip = Strip { a: g.a, first: row * g.a_row, row: g.a_row, column: 1, rows, len: g.k };
        method.stage(level, strip, g.k, to);
        let known = rows * g.k;
        std::ptr::write_bytes(to.add(known), 0, g.k.next_multiple_of(64) - known);
    }
}
