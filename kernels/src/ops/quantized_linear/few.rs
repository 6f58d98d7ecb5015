//! Few rows: codes become floats in registers and are multiplied at once, so that the weight is read at the speed of
//! memory and nothing is written but the result.

use super::float::{Packed, steps, with_codec};
use crate::codes::{CHUNK, Codec, Codes, Int4, Int8, Small};
use crate::dispatch;
use crate::error::Result;
use crate::gemm::{Gemm, Method, Offsets, Strip, finish, panel, row_offsets};
use crate::level::Level;
use crate::ops::Cx;
use crate::schema::Format;
use crate::simd::Simd;
use half::bf16;

/// The most rows.
pub(super) const ROWS: usize = 8;
/// Whether a level has registers enough for this to pay.
pub(super) fn runs(level: Level) -> bool {
    level.registers() >= 16
}

/// Bytes from the codes that are multiplied to those that are fetched.
const AHEAD: usize = 4096;
/// The most rows of one pass over a panel.
const TILE: usize = 4;

/// Rows of x as products read them, one after another, with zeros up to a multiple of 64 and of `TILE` rows.
#[derive(Clone, Copy)]
struct Staged {
    units: *mut f32,
    /// Units in a row.
    row: usize,
    /// The sum of each group of each row; null where there are no zero points.
    sums: *mut f32,
    groups: usize,
}

// Threads share it, and read alone.
unsafe impl Sync for Staged {}

/// `g` by `w`, whose groups are of whole chunks.
pub(super) fn few(cx: &Cx, g: &Gemm, method: Method, w: &Packed) -> Result<()> {
    if g.m == 0 || g.n == 0 {
        return Ok(());
    }
    let rows = g.m.next_multiple_of(TILE);
    let row = g.k.next_multiple_of(64) / method.step(cx.level);
    let groups = w.groups();
    // The caller is the pool's first thread, whose memory no task needs besides.
    let scratch = unsafe { cx.pool.scratch(0, (rows * (row + groups)) * 4) } as *mut f32;
    let sums = if w.has_zeros() { scratch.wrapping_add(rows * row) } else { std::ptr::null_mut() };
    let staged = Staged { units: scratch, row, sums, groups };
    unsafe { stage(cx.level, g, method, staged) };
    let width = panel(cx.level);
    let panels = g.n.div_ceil(width);
    let together = panels.div_ceil(cx.pool.threads() * TASKS).max(1);
    cx.pool.run(panels.div_ceil(together), &|task, _| {
        let staged = &staged;
        let mut offsets: [Offsets; ROWS] = [[0; 4]; ROWS];
        unsafe {
            row_offsets(g, 0, g.m, offsets.as_mut_ptr());
            for panel in task * together..((task + 1) * together).min(panels) {
                multiply(cx, g, w, *staged, panel, &offsets);
            }
        }
    })
}

/// Tasks of each thread: enough to balance them.
const TASKS: usize = 8;

/// One panel of columns, all rows.
unsafe fn multiply(cx: &Cx, g: &Gemm, w: &Packed, x: Staged, panel: usize, offsets: &[Offsets; ROWS]) {
    let mut sums = [0f32; 32 * TILE];
    let width = crate::gemm::panel(cx.level);
    for row in (0..g.m).step_by(TILE) {
        let rows = TILE.min(g.m - row);
        unsafe {
            let x = Staged {
                units: x.units.add(row * x.row),
                sums: x.sums.wrapping_add(if x.sums.is_null() { 0 } else { row * x.groups }),
                ..x
            };
            macro_rules! rows {
                ($rows:literal) => {
                    with_codec!(w.weight, C => if w.pairs {
                        tile::<C, 2, $rows>(cx.level, w, x, panel, sums.as_mut_ptr())
                    } else {
                        tile::<C, 1, $rows>(cx.level, w, x, panel, sums.as_mut_ptr())
                    })
                };
            }
            match rows {
                1 => rows!(1),
                2 => rows!(2),
                _ => rows!(4),
            }
            finish(cx.level, g, sums.as_mut_ptr(), offsets.as_ptr().add(row), rows, panel * width);
        }
    }
}

dispatch!(fn tile<C: Codec; STEP, R>(w: &Packed, x: Staged, panel: usize, sums: *mut f32) => tile_on);

/// Sums (R, panel) of a panel and of rows of x.
#[inline(always)]
#[allow(clippy::needless_range_loop, reason = "indices of registers, in step with addresses")]
unsafe fn tile_on<S: Codes, C: Codec, const STEP: usize, const R: usize>(
    w: &Packed,
    x: Staged,
    panel: usize,
    sums: *mut f32,
) {
    if S::REGISTERS < 16 || STEP == 2 && !S::BF16_DOT {
        unreachable!("no level multiplies so");
    }
    unsafe {
        let table = S::table(&w.table);
        let zero = S::splat(0.0);
        let mut chunk = w.chunk(panel, 2 * S::LANES, 0);
        let mut units = x.units as *const f32;
        let chunks = x.row * STEP / CHUNK;
        let chunks = if x.groups > 1 { w.weight.group / CHUNK } else { chunks };
        let mut total = [[zero; 2]; R];
        for group in 0..x.groups {
            // Two sums each, or every step would wait for the last.
            let mut acc = [[[zero; 2]; 2]; R];
            for _ in 0..chunks {
                steps!(S, PLACE => {
                    // As many lines as the chunk has, of one to come.
                    if PLACE * 64 < 8 * S::LANES * C::BITS {
                        S::prefetch(chunk.wrapping_add(AHEAD + PLACE * 64));
                    }
                    for v in 0..2 {
                        if STEP == 2 {
                            let pairs = C::pairs::<S>(table, chunk, v, PLACE);
                            for r in 0..R {
                                let x = S::splat(*units.add(r * x.row + PLACE));
                                acc[r][v][PLACE % 2] = S::dot_bf16(acc[r][v][PLACE % 2], x, pairs);
                            }
                        } else {
                            let (even, odd) = C::values::<S>(table, chunk, v, PLACE);
                            for r in 0..R {
                                let x = units.add(r * x.row + 2 * PLACE);
                                acc[r][v][0] = S::fma(S::splat(*x), even, acc[r][v][0]);
                                acc[r][v][1] = S::fma(S::splat(*x.add(1)), odd, acc[r][v][1]);
                            }
                        }
                    }
                });
                chunk = chunk.add(8 * S::LANES * C::BITS);
                units = units.add(CHUNK / STEP);
            }
            for v in 0..2 {
                let (scale, less) = w.group::<S>(panel, v, group);
                for r in 0..R {
                    let mut sum = S::add(acc[r][v][0], acc[r][v][1]);
                    if !x.sums.is_null() {
                        sum = S::fma(less, S::splat(-*x.sums.add(r * x.groups + group)), sum);
                    }
                    total[r][v] = S::fma(sum, scale, total[r][v]);
                }
            }
        }
        for r in 0..R {
            for v in 0..2 {
                S::store(sums.add((r * 2 + v) * S::LANES), total[r][v]);
            }
        }
    }
}

/// Writes rows of x as units, and the sums of their groups.
unsafe fn stage(level: Level, g: &Gemm, method: Method, x: Staged) {
    let step = method.step(level);
    let group = g.k.div_ceil(x.groups);
    unsafe {
        let strip = Strip { a: g.a, first: 0, row: g.a_row, column: 1, rows: g.m, len: g.k };
        method.stage(level, strip, x.row, x.units);
        for row in 0..g.m.next_multiple_of(TILE) {
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
