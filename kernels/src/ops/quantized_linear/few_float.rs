//! Few rows by codes that become floats.

use super::few::{AHEAD, Panels, Staged, stage, stage_row};
use super::float::{Packed, steps, with_codec};
use crate::codes::{CHUNK, Codec, Codes, Int4, Int8, Small, Unscaled};
use crate::dispatch;
use crate::gemm::{Gemm, Method, panel};
use crate::level::Level;
use crate::schema::Format;
use crate::simd::Simd;
use half::bf16;

macro_rules! pick_rows {
    ($rows:expr, $R:ident => $body:expr) => {
        match $rows {
            1 => pick_rows!(@ 1, $R => $body),
            2 => pick_rows!(@ 2, $R => $body),
            3 | 4 => pick_rows!(@ 4, $R => $body),
            _ => pick_rows!(@ 8, $R => $body),
        }
    };
    (@ $rows:literal, $R:ident => $body:expr) => {{
        const $R: usize = $rows;
        $body
    }};
}

/// Units by values as they are.
impl Panels for Packed {
    fn each(&self) -> usize {
        if self.has_zeros() { self.groups() } else { 0 }
    }

    unsafe fn stage(&self, level: Level, g: &Gemm, method: Method, rows: usize, x: Staged, _: *mut f32) {
        let step = method.step(level);
        let group = g.k.div_ceil(self.groups());
        unsafe {
            stage(level, g, method, rows, x);
            for (row, i) in (0..rows).flat_map(|row| (0..x.each).map(move |i| (row, i))) {
                *x.more.add(row * x.each + i) =
                    sum(level, x.units.add(row * x.row + i * group / step), group, step == 2);
            }
        }
    }

    unsafe fn multiply(&self, level: Level, rows: usize, x: Staged, panel: usize, sums: *mut f32) {
        unsafe {
            pick_rows!(rows, R => with_codec!(self.weight, C => if self.pairs {
                tile::<C, 2, R>(level, self, x, panel, sums)
            } else {
                tile::<C, 1, R>(level, self, x, panel, sums)
            }))
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

/// Floats as two bf16 each, of which the second is what the first leaves: together they have 17 bits. Values that are
/// exact in bf16 need not be widened for them.
pub(super) struct Split<'a>(pub(super) &'a Packed);

impl Panels for Split<'_> {
    fn tile_rows(&self, _: Level) -> usize {
        4
    }

    unsafe fn stage(&self, level: Level, g: &Gemm, method: Method, rows: usize, x: Staged, spare: *mut f32) {
        for row in 0..rows {
            unsafe {
                stage_row(level, g, method, row, spare);
                split(level, spare, x.row, x.units.add(row * x.row) as *mut bf16);
            }
        }
    }

    unsafe fn multiply(&self, level: Level, rows: usize, x: Staged, panel_index: usize, sums: *mut f32) {
        unsafe {
            let halves = Staged { row: x.row / 2, ..x };
            pick_rows!(2 * rows, R => with_codec!(self.0.weight, C => {
                tile::<C, 2, R>(level, self.0, halves, panel_index, sums)
            }));
            let panel = panel(level);
            for (row, i) in (0..rows).flat_map(|row| (0..panel).map(move |i| (row, i))) {
                *sums.add(row * panel + i) = *sums.add(2 * row * panel + i) + *sums.add((2 * row + 1) * panel + i);
            }
        }
    }
}

dispatch!(fn split(from: *const f32, len: usize, to: *mut bf16) => split_on);

/// A row's first parts, then its second ones.
#[inline(always)]
unsafe fn split_on<S: Simd>(from: *const f32, len: usize, to: *mut bf16) {
    unsafe {
        for i in (0..len).step_by(S::LANES) {
            let x = S::load(from.add(i));
            S::store_bf16(to.add(i), x);
            S::store_bf16(to.add(len + i), S::sub(x, S::load_bf16(to.add(i))));
        }
    }
}

/// Floats by small floats of eight bits whose exponents are not moved to where f32 has its zero: the result is. Rows are
/// brought to one size for that, as such values are next to the smallest that there are.
pub(super) struct Unmoved<'a>(pub(super) &'a Packed);

/// The exponent of the largest value of a row.
const LARGEST: i32 = 60;

impl Panels for Unmoved<'_> {
    fn each(&self) -> usize {
        1
    }

    unsafe fn stage(&self, level: Level, g: &Gemm, method: Method, rows: usize, x: Staged, _: *mut f32) {
        unsafe {
            stage(level, g, method, rows, x);
            for row in 0..rows {
                let values = x.units.add(row * x.row);
                let exponent = exponent(values, x.row).unwrap_or(LARGEST);
                // In two steps, as the distance can be more than a float's exponent.
                let half = (LARGEST - exponent) / 2;
                let (first, second) = (power(half), power(LARGEST - exponent - half));
                for i in 0..x.row {
                    *values.add(i) = *values.add(i) * first * second;
                }
                *x.more.add(row) = power(exponent);
            }
        }
    }

    unsafe fn multiply(&self, level: Level, rows: usize, x: Staged, panel_index: usize, sums: *mut f32) {
        unsafe {
            pick_rows!(rows, R => tile::<Unscaled, 1, R>(level, self.0, x, panel_index, sums));
            let panel = panel(level);
            let up = power(self.0.table.exponent() - LARGEST);
            for (row, i) in (0..rows).flat_map(|row| (0..panel).map(move |i| (row, i))) {
                let sum = sums.add(row * panel + i);
                *sum = *sum * up * *x.more.add(row);
            }
        }
    }
}

/// The largest exponent of some floats, not below that of normal ones; none if some are not finite.
#[inline(always)]
pub(super) unsafe fn exponent(values: *const f32, len: usize) -> Option<i32> {
    let mut largest = 0;
    for i in 0..len {
        largest = largest.max(unsafe { *values.add(i) }.to_bits() & 0x7fff_ffff);
    }
    let exponent = (largest >> 23) as i32 - 127;
    (exponent < 128).then_some(exponent.max(-126))
}

/// 2^n of a normal float.
pub(super) fn power(n: i32) -> f32 {
    f32::from_bits(((n + 127) as u32) << 23)
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
    if R > S::REGISTERS / 4 || S::REGISTERS < 16 || STEP == 2 && !S::BF16_DOT {
        unreachable!("no level multiplies so");
    }
    unsafe {
        let table = S::table(&w.table);
        let zero = S::splat(0.0);
        let mut chunk = w.chunk(panel, 2 * S::LANES, 0);
        let mut units = x.units as *const f32;
        let chunks = if w.groups() > 1 { w.weight.group / CHUNK } else { x.row * STEP / CHUNK };
        let mut total = [[zero; 2]; R];
        for group in 0..w.groups() {
            // Two sums each of few rows, or every step would wait for the last.
            let apart = if R > 4 { 0 } else { 1 };
            let mut acc = [[[zero; 2]; 2]; R];
            for _ in 0..chunks * (CHUNK / 2 / C::PERIOD) {
                let bytes = C::PERIOD * S::LANES * C::BITS / 2;
                steps!(S, PLACE => {
                    if PLACE < C::PERIOD {
                        // As many lines as are read here, of some to come.
                        if PLACE * 64 < bytes {
                            S::prefetch(chunk.wrapping_add(AHEAD + PLACE * 64));
                        }
                        for v in 0..2 {
                            if STEP == 2 {
                                let pairs = C::pairs::<S>(table, chunk, v, PLACE);
                                for r in 0..R {
                                    let x = units.add(r * x.row + PLACE);
                                    acc[r][v][PLACE & apart] = S::dot_bf16_at(acc[r][v][PLACE & apart], x, pairs);
                                }
                            } else {
                                let (even, odd) = C::values::<S>(table, chunk, v, PLACE);
                                for r in 0..R {
                                    let x = units.add(r * x.row + 2 * PLACE);
                                    acc[r][v][0] = S::fma_at(x, even, acc[r][v][0]);
                                    acc[r][v][apart] = S::fma_at(x.add(1), odd, acc[r][v][apart]);
                                }
                            }
                        }
                    }
                });
                chunk = chunk.add(bytes);
                units = units.add(2 * C::PERIOD / STEP);
            }
            for v in 0..2 {
                let (scale, less) = w.group::<S>(panel, v, group);
                for r in 0..R {
                    let mut sum = if apart == 0 { acc[r][v][0] } else { S::add(acc[r][v][0], acc[r][v][1]) };
                    if w.has_zeros() {
                        sum = S::fma(less, S::splat(-*x.more.add(r * x.each + group)), sum);
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
