//! Convolutions of few filters, which would leave most lanes of a vector of filters idle: here lanes are the units of a
//! cell, and come together at the end.

use super::codes::{Codes, decode};
use super::{Arith, CELL, Plan, Sum, Task, UNITS, fill_slab, finish};
use crate::dispatch;
use crate::level::Level;
use crate::schema::Format;
use crate::simd::{Element, Simd};

/// The most filters that `few_block` takes.
pub const FEW: usize = 4;

/// The weights of at most `FEW` filters for `few_block`: (group, tap, filter, unit), zeros in the last group's rest.
///
/// # Safety
/// `plan.weight` holds the weights of the plan's channels and filters, in blocks of `width`.
pub unsafe fn few_weights<A: Arith>(level: Level, plan: &Plan, width: usize) -> Vec<f32> {
    let (filters, lanes, taps) = (plan.out.last(), width / 2, plan.taps.len());
    let units = plan.x.last().div_ceil(A::CHANNELS);
    let mut weights = vec![0.0; units.div_ceil(UNITS) * taps * filters * UNITS];
    let mut decoded = Vec::<A::E>::new();
    let mut from = plan.weight as *const A::W;
    if let Some(format) = plan.decoded() {
        let count = units * A::CHANNELS * taps * lanes;
        decoded.reserve_exact(count);
        from = decoded.as_ptr() as *const A::W;
        unsafe { decode_all::<A::E>(level, format, plan.weight, count, decoded.as_mut_ptr()) };
    }
    for group in 0..units.div_ceil(UNITS) {
        for tap in 0..taps {
            let to = (group * taps + tap) * filters * UNITS;
            for unit in 0..(units - group * UNITS).min(UNITS) {
                for filter in 0..filters {
                    weights[to + filter * UNITS + unit] = unsafe { A::weight(from, filter) };
                }
                from = from.wrapping_add(lanes * A::CHANNELS);
            }
        }
    }
    weights
}

#[inline(always)]
unsafe fn decode_all_on<S: Codes, E: Element>(format: Format, codes: *const u8, n: usize, to: *mut E) {
    unsafe { decode::<S, E>(format, codes, n, to) }
}
dispatch!(fn decode_all<E: Element>(format: Format, codes: *const u8, n: usize, to: *mut E) => decode_all_on);

/// The most pixels of a tile of so many filters.
const fn few_pixels<S: Simd>(filters: usize) -> usize {
    let fit = (S::REGISTERS - filters - 2) / filters;
    if fit > 8 {
        8
    } else if fit < 1 {
        1
    } else {
        fit
    }
}

/// Sums for `M` neighbouring pixels and `F` filters, whose lanes are units and come together at the end.
#[allow(clippy::needless_range_loop)]
#[inline(always)]
unsafe fn few_tile<S: Codes, A: Arith, const M: usize, const F: usize>(
    sum: &Sum,
    x: *const u8,
    mut w: *const f32,
    sums: *mut f32, // (M, lane)
) {
    unsafe {
        let mut s = [[S::splat(0.0); F]; M];
        let mut group = x;
        for _ in 0..sum.units.div_ceil(UNITS) {
            for &tap in sum.taps {
                let cell = group.add(tap) as *const f32;
                for lane in (0..UNITS).step_by(S::LANES) {
                    let mut weights = [S::splat(0.0); F];
                    for f in 0..F {
                        weights[f] = S::load(w.add(f * UNITS + lane));
                    }
                    for m in 0..M {
                        let units = S::load(cell.add(m * UNITS + lane));
                        for f in 0..F {
                            s[m][f] = A::madd::<S>(s[m][f], units, weights[f]);
                        }
                    }
                }
                w = w.add(F * UNITS);
            }
            group = group.wrapping_add(sum.group_step);
        }
        for m in 0..M {
            for f in 0..F {
                *sums.add(m * S::LANES + f) = A::across::<S>(s[m][f]);
            }
        }
    }
}

/// `few_tile` for a number of pixels and filters that only the run knows.
#[inline(always)]
unsafe fn any_few_tile<S: Codes, A: Arith>(
    m: usize,
    filters: usize,
    sum: &Sum,
    x: *const u8,
    w: *const f32,
    sums: *mut f32,
) {
    macro_rules! arms {
        ($($m:literal)*) => {
            match (m, filters) {
                $(
                    ($m, 1) if $m <= few_pixels::<S>(1) => few_tile::<S, A, $m, 1>(sum, x, w, sums),
                    ($m, 2) if $m <= few_pixels::<S>(2) => few_tile::<S, A, $m, 2>(sum, x, w, sums),
                    ($m, 3) if $m <= few_pixels::<S>(3) => few_tile::<S, A, $m, 3>(sum, x, w, sums),
                    ($m, 4) if $m <= few_pixels::<S>(4) => few_tile::<S, A, $m, 4>(sum, x, w, sums),
                )*
                _ => unreachable!("a tile of {m} pixels by {filters} filters"),
            }
        };
    }
    unsafe { arms!(1 2 3 4 5 6 7 8) }
}

/// One task of at most `FEW` filters, which would leave most lanes of a vector of filters idle. The slab holds all
/// channels; `sums` holds a tile.
#[inline(always)]
unsafe fn few_block_on<S: Codes, A: Arith>(plan: &Plan, task: &Task, weights: &[f32], slab: *mut u8, sums: *mut f32) {
    unsafe {
        let (channels, filters) = (plan.x.last(), plan.out.last());
        let group_step = plan.columns() * CELL;
        fill_slab::<S, A>(plan, task, 0, channels, slab);
        let sum = Sum { group_step, taps: &plan.taps, units: channels.div_ceil(A::CHANNELS), first: true };
        // The lanes beyond the filters are never stored, but read.
        std::ptr::write_bytes(sums, 0, 8 * S::LANES);
        let tiles = task.size.1.div_ceil(few_pixels::<S>(filters));
        let (least, longer) = (task.size.1 / tiles, task.size.1 % tiles);
        for row in 0..task.size.0 {
            let line = slab.add(row * plan.stride * plan.groups * group_step);
            let mut column = 0;
            for t in 0..tiles {
                let m = least + usize::from(t < longer);
                any_few_tile::<S, A>(m, filters, &sum, line.add(column * CELL), weights.as_ptr(), sums);
                let at = [task.batch, task.frame, task.origin.0 + row, task.origin.1 + column];
                finish::<S, A>(plan, at, m, 0, 1, sums);
                column += m;
            }
        }
    }
}
dispatch!(pub fn few_block<A: Arith>(
    plan: &Plan, task: &Task, weights: &[f32], slab: *mut u8, sums: *mut f32
) => few_block_on);
