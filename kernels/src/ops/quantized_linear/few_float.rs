//! Few rows by codes that become floats.

use super::few::{AHEAD, Panels, Staged};
use super::float::{Packed, steps, with_codec};
use crate::codes::{CHUNK, Codec, Codes, Int4, Int8, Small};
use crate::dispatch;
use crate::level::Level;
use crate::schema::Format;

impl Panels for Packed {
    fn groups(&self) -> usize {
        Packed::groups(self)
    }

    fn wants_sums(&self) -> bool {
        self.has_zeros()
    }

    unsafe fn multiply(&self, level: Level, rows: usize, x: Staged, panel: usize, sums: *mut f32) {
        macro_rules! rows {
            ($rows:literal) => {
                with_codec!(self.weight, C => if self.pairs {
                    tile::<C, 2, $rows>(level, self, x, panel, sums)
                } else {
                    tile::<C, 1, $rows>(level, self, x, panel, sums)
                })
            };
        }
        unsafe {
            match rows {
                1 => rows!(1),
                2 => rows!(2),
                3 | 4 => rows!(4),
                _ => rows!(8),
            }
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
    if R > S::REGISTERS / 4 || S::REGISTERS < 16 || STEP == 2 && !S::BF16_DOT {
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
                                    let x = S::splat(*units.add(r * x.row + PLACE));
                                    acc[r][v][PLACE & apart] = S::dot_bf16(acc[r][v][PLACE & apart], x, pairs);
                                }
                            } else {
                                let (even, odd) = C::values::<S>(table, chunk, v, PLACE);
                                for r in 0..R {
                                    let x = units.add(r * x.row + 2 * PLACE);
                                    acc[r][v][0] = S::fma(S::splat(*x), even, acc[r][v][0]);
                                    acc[r][v][apart] = S::fma(S::splat(*x.add(1)), odd, acc[r][v][apart]);
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
