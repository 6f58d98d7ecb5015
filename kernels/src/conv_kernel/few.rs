//! Convolutions of few filters, which would leave most lanes of a vector of filters idle: here lanes are the units of a
//! cell, and come together at the end.

use super::codes::{Narrow, decode};
use super::{CELL, Plan, Product, Sum, Task, UNITS, fill_slab, finish};
use crate::dispatch;
use crate::level::Level;

/// The most filters that `few_block` takes.
pub const FEW: usize = 4;

/// The weights of at most `FEW` filters for `few_block`: (group, tap, filter, unit), zeros in the last group's rest.
///
/// # Safety
/// `plan.weight` holds the weights of the plan's channels and filters, in blocks of `width`.
pub unsafe fn few_weights(level: Level, plan: &Plan, width: usize) -> Vec<f32> {
    let method = &plan.method;
    let (filters, lanes, taps) = (plan.out.last(), width / 2, plan.taps.len());
    let units = plan.x.last().div_ceil(method.channels);
    let mut weights = vec![0.0; units.div_ceil(UNITS) * taps * filters * UNITS];
    let mut decoded = Vec::<f32>::new();
    let mut from = plan.weight;
    if let Some(format) = plan.decoded() {
        let count = units * method.channels * taps * lanes;
        decoded.reserve_exact(count);
        let to = decoded.as_mut_ptr() as *mut u8;
        unsafe { decode(level, format, plan.weight, count, plan.x.dtype, to) };
        from = to;
    }
    for group in 0..units.div_ceil(UNITS) {
        for tap in 0..taps {
            let to = (group * taps + tap) * filters * UNITS;
            for unit in 0..(units - group * UNITS).min(UNITS) {
                for filter in 0..filters {
                    weights[to + filter * UNITS + unit] = unsafe { (method.unit)(from, filter) };
                }
                from = from.wrapping_add(lanes * method.channels * method.weight);
            }
        }
    }
    weights
}

/// The most pixels of a tile of so many filters.
const fn few_pixels(registers: usize, filters: usize) -> usize {
    let fit = (registers - filters - 2) / filters;
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
unsafe fn few_tile<S: Narrow, P: Product, const M: usize, const F: usize>(
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
                            s[m][f] = P::madd::<S>(s[m][f], units, weights[f]);
                        }
                    }
                }
                w = w.add(F * UNITS);
            }
            group = group.wrapping_add(sum.group_step);
        }
        for m in 0..M {
            for f in 0..F {
                *sums.add(m * S::LANES + f) = P::across::<S>(s[m][f]);
            }
        }
    }
}

dispatch! {
    pub(super) fn any_few_tile<P: Product>(
        m: usize, filters: usize, sum: &Sum, x: *const u8, w: *const f32, sums: *mut f32,
    ) => any_few_tile_on
}

/// `few_tile` for a number of pixels and filters that only the run knows.
#[inline(always)]
unsafe fn any_few_tile_on<S: Narrow, P: Product>(
    m: usize,
    filters: usize,
    sum: &Sum,
    x: *const u8,
    w: *const f32,
    sums: *mut f32,
) {
    if !P::runs::<S>() {
        unreachable!("a level multiplies by what it has");
    }
    macro_rules! arms {
        ($($m:literal)*) => {
            match (m, filters) {
                $(
                    ($m, 1) if $m <= few_pixels(S::REGISTERS, 1) => few_tile::<S, P, $m, 1>(sum, x, w, sums),
                    ($m, 2) if $m <= few_pixels(S::REGISTERS, 2) => few_tile::<S, P, $m, 2>(sum, x, w, sums),
                    ($m, 3) if $m <= few_pixels(S::REGISTERS, 3) => few_tile::<S, P, $m, 3>(sum, x, w, sums),
                    ($m, 4) if $m <= few_pixels(S::REGISTERS, 4) => few_tile::<S, P, $m, 4>(sum, x, w, sums),
                )*
                _ => unreachable!("a tile of {m} pixels by {filters} filters"),
            }
        };
    }
    unsafe { arms!(1 2 3 4 5 6 7 8) }
}

/// One task of at most `FEW` filters, which would leave most lanes of a vector of filters idle. The slab holds all
/// channels; `sums` holds a tile.
///
/// # Safety
/// As `block`; `weights` are those of `few_weights`.
pub unsafe fn few_block(level: Level, plan: &Plan, task: &Task, weights: &[f32], slab: *mut u8, sums: *mut f32) {
    unsafe {
        let method = &plan.method;
        let (channels, filters) = (plan.x.last(), plan.out.last());
        let group_step = plan.columns() * CELL;
        fill_slab(level, plan, task, (0, channels), slab);
        let sum = Sum { group_step, taps: &plan.taps, units: channels.div_ceil(method.channels), first: true };
        // The lanes beyond the filters are never stored, but read.
        std::ptr::write_bytes(sums, 0, 8 * level.lanes());
        let tiles = task.size.1.div_ceil(few_pixels(level.registers(), filters));
        let (least, longer) = (task.size.1 / tiles, task.size.1 % tiles);
        for row in 0..task.size.0 {
            let line = slab.add(row * plan.stride * plan.groups * group_step);
            let mut column = 0;
            for t in 0..tiles {
                let m = least + usize::from(t < longer);
                (method.few_tile)(level, m, filters, &sum, line.add(column * CELL), weights.as_ptr(), sums);
                let at = [task.batch, task.frame, task.origin.0 + row, task.origin.1 + column];
                finish(level, plan, at, m, 0, 1, sums);
                column += m;
            }
        }
    }
}
