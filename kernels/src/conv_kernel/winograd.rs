//! Kernels of 3 by 3 at stride 1 by Winograd's F(2x2, 3x3): windows of 4 by 4 cells of the slab and the weights are
//! transformed so that 16 products give the 4 pixels that take 36 directly. In f32 it is about as exact. Kernels over
//! several frames sum the products of their frames, which are as so many more channels.
//!
//! Weights are transformed while they are in the cache, by every task anew: transformed ones take 16/9 of the memory.

use super::codes::{E4m3, E5m2, I8, Load, Narrow};
use super::{Plan, Sum, Task, UNITS, Widen, any_tile, finish, tile_pixels};
use crate::dispatch;
use crate::level::Level;
use crate::schema::{DType, Format};
use crate::simd::Simd;
use half::{bf16, f16};

/// Pixels along the side of a window that Winograd's transform gives, and of one that it takes.
pub const WINDOW: usize = 2;
const WINDOW_IN: usize = 4;
/// Products of a window.
const PRODUCTS: usize = WINDOW_IN * WINDOW_IN;

/// The working memory of Winograd's way: offsets in floats, each part a multiple of a cache line.
struct Windows {
    /// Where the groups of each frame begin, in bytes of the transformed inputs.
    frames: Vec<usize>,
    /// Windows in a task's widest row, and in all.
    columns: usize,
    count: usize,
    /// Floats between the products of transformed inputs (group, window), weights (channel, filter) and results
    /// (window, filter), and between groups of the first. Not powers of two, so that the 16 products of one window lie
    /// in different sets of the cache.
    input_step: usize,
    group_step: usize,
    weight_step: usize,
    result_step: usize,
}

impl Windows {
    /// For a task's rows and columns, and filters of a block.
    fn new(plan: &Plan, size: (usize, usize), width: usize) -> Self {
        let groups = plan.kt * plan.groups;
        let columns = size.1.div_ceil(WINDOW);
        let count = size.0.div_ceil(WINDOW) * columns;
        let group_step = (count | 1) * UNITS;
        Self {
            frames: (0..plan.kt).map(|frame| frame * plan.groups * group_step * 4).collect(),
            columns,
            count,
            group_step,
            input_step: groups * group_step + UNITS,
            weight_step: groups * UNITS * width + 2 * UNITS,
            result_step: count * width + 2 * UNITS,
        }
    }
}

/// Bytes of working memory of one task by Winograd's way, when blocks of filters are `width` wide.
pub fn winograd_bytes(plan: &Plan, width: usize) -> usize {
    let w = Windows::new(plan, plan.block, width);
    plan.frame_bytes() + (PRODUCTS * (w.input_step + w.weight_step + w.result_step) + plan.sums) * 4
}

/// One task by Winograd's way. Ranges of channels add up as pixels, since the transforms are linear.
///
/// # Safety
/// As `block`; `memory` holds `winograd_bytes`, and the kernel is 3 by 3 in height and width at stride 1.
pub unsafe fn winograd_block(level: Level, plan: &Plan, task: &Task, width: usize, memory: *mut u8) {
    unsafe {
        let (channels, filters) = (plan.x.last(), plan.out.last());
        let all = Windows::new(plan, plan.block, width);
        let slab = memory;
        let inputs = memory.add(plan.frame_bytes()) as *mut f32;
        let weights = inputs.add(PRODUCTS * all.input_step);
        let results = weights.add(PRODUCTS * all.weight_step);
        let sums = results.add(PRODUCTS * all.result_step);
        let w = Windows::new(plan, task.size, width);
        // Whole windows, also where the picture ends within one.
        let size = [task.size.0, task.size.1].map(|n| n.next_multiple_of(WINDOW));
        let windows = Task { size: (size[0], size[1]), ..*task };
        let range = plan.groups * UNITS;
        let ranges = channels.div_ceil(range);
        for r in 0..ranges {
            let channel = r * range;
            let channels = (channels - channel).min(range);
            for (tap, &at) in w.frames.iter().enumerate() {
                (plan.method.fill)(level, plan, &windows, tap, (channel, channels), slab);
                transform_input(level, plan, &windows, &w, channels, slab, inputs.byte_add(at));
            }
            for b in task.blocks.0..task.blocks.1 {
                let lanes = if filters - b * width > width / 2 { width } else { width / 2 };
                let at = channel * plan.taps.len() * lanes * plan.weight_size();
                let packed = plan.weight.add(b * plan.panel + at);
                let transform = match (plan.decoded(), plan.x.dtype) {
                    (None, DType::F32) => transform_weights::<f32>,
                    (None, DType::BF16) => transform_weights::<bf16>,
                    (None, _) => transform_weights::<f16>,
                    (Some(Format::E4m3), _) => transform_weights::<E4m3>,
                    (Some(Format::E5m2), _) => transform_weights::<E5m2>,
                    (Some(_), _) => transform_weights::<I8>,
                };
                transform(level, &w, channels, lanes, packed, weights);
                multiply(level, &w, channels, lanes, inputs, weights, results);
                let index = if ranges == 1 { 0 } else { b - task.blocks.0 };
                let sums = sums.add(index * size[0] * size[1] * width);
                let last = r + 1 == ranges;
                for y in 0..w.count / w.columns {
                    transform_results(level, &w, y, lanes, r == 0, results, sums);
                    if last {
                        finish_rows(level, plan, task, &w, y, (b * width, lanes), sums);
                    }
                }
            }
        }
    }
}

/// B^T d B of every window d (4, 4) of the slab.
#[allow(clippy::needless_range_loop)]
#[inline(always)]
unsafe fn transform_input_on<S: Simd>(
    plan: &Plan,
    task: &Task,
    w: &Windows,
    channels: usize,
    slab: *const u8,
    inputs: *mut f32,
) {
    unsafe {
        let columns = plan.columns();
        for group in 0..channels.div_ceil(UNITS) {
            for y in 0..task.size.0 / WINDOW {
                for x in 0..w.columns {
                    let cell = ((y * WINDOW * plan.groups + group) * columns + x * WINDOW) * UNITS;
                    let from = (slab as *const f32).add(cell);
                    let to = inputs.add(group * w.group_step + (y * w.columns + x) * UNITS);
                    for lane in (0..UNITS).step_by(S::LANES) {
                        let mut d = [[S::splat(0.0); 4]; 4];
                        for i in 0..4 {
                            let row = from.add(i * plan.groups * columns * UNITS + lane);
                            let [a, b, c, e] = [0, 1, 2, 3].map(|j| row.add(j * UNITS));
                            d[i] = input_row::<S>(S::load(a), S::load(b), S::load(c), S::load(e));
                        }
                        for j in 0..4 {
                            let t = input_row::<S>(d[0][j], d[1][j], d[2][j], d[3][j]);
                            for i in 0..4 {
                                S::store(to.add((i * 4 + j) * w.input_step + lane), t[i]);
                            }
                        }
                    }
                }
            }
        }
    }
}
dispatch!(fn transform_input(
    plan: &Plan, task: &Task, w: &Windows, channels: usize, slab: *const u8, inputs: *mut f32
) => transform_input_on);

#[inline(always)]
unsafe fn input_row<S: Simd>(a: S::V, b: S::V, c: S::V, d: S::V) -> [S::V; 4] {
    unsafe { [S::sub(a, c), S::add(b, c), S::sub(c, b), S::sub(b, d)] }
}

/// G g G^T of the weights g (3, 3) of every frame, channel and filter.
#[allow(clippy::needless_range_loop)]
#[inline(always)]
unsafe fn transform_weights_on<S: Narrow, L: Load>(
    w: &Windows,
    channels: usize,
    lanes: usize,
    packed: *const u8,     // (group, frame, tap, unit, filter)
    mut weights: *mut f32, // (product, group, frame, unit, filter)
) {
    unsafe {
        let mut from = packed as *const L;
        for first in (0..channels).step_by(UNITS) {
            let units = (channels - first).min(UNITS);
            for _ in &w.frames {
                for at in (0..units * lanes).step_by(S::LANES) {
                    let mut g = [[S::splat(0.0); 4]; 3];
                    for i in 0..3 {
                        let [a, b, c] = [0, 1, 2].map(|j| from.add((i * 3 + j) * units * lanes + at));
                        g[i] = weight_row::<S>(L::load::<S>(a), L::load::<S>(b), L::load::<S>(c));
                    }
                    for j in 0..4 {
                        let t = weight_row::<S>(g[0][j], g[1][j], g[2][j]);
                        for i in 0..4 {
                            S::store(weights.add((i * 4 + j) * w.weight_step + at), t[i]);
                        }
                    }
                }
                from = from.add(9 * units * lanes);
                weights = weights.add(units * lanes);
            }
        }
    }
}
dispatch!(fn transform_weights<L: Load>(
    w: &Windows, channels: usize, lanes: usize, packed: *const u8, weights: *mut f32
) => transform_weights_on);

#[inline(always)]
unsafe fn weight_row<S: Simd>(a: S::V, b: S::V, c: S::V) -> [S::V; 4] {
    unsafe {
        let half = S::splat(0.5);
        let outer = S::mul(half, S::add(a, c));
        let inner = S::mul(half, b);
        [a, S::add(outer, inner), S::sub(outer, inner), c]
    }
}

/// The 16 matrix products: windows by filters, over channels of all frames.
unsafe fn multiply(
    level: Level,
    w: &Windows,
    channels: usize,
    lanes: usize,
    inputs: *const f32,
    weights: *const f32,
    results: *mut f32,
) {
    unsafe {
        let vectors = lanes / level.lanes();
        let sum = Sum { group_step: w.group_step * 4, taps: &w.frames, units: channels, first: true };
        let tiles = w.count.div_ceil(tile_pixels(level.registers(), vectors));
        let (least, longer) = (w.count / tiles, w.count % tiles);
        for product in 0..PRODUCTS {
            let inputs = inputs.add(product * w.input_step);
            let weights = weights.add(product * w.weight_step) as *const u8;
            let results = results.add(product * w.result_step);
            let mut window = 0;
            for t in 0..tiles {
                let m = least + usize::from(t < longer);
                let x = inputs.add(window * UNITS) as *const u8;
                any_tile::<Widen<f32>>(level, m, vectors, &sum, x, weights, results.add(window * lanes));
                window += m;
            }
        }
    }
}

/// A^T m A of the products m (4, 4) of every window of row `y`: four pixels, added to what `sums` holds unless they are
/// the first.
#[allow(clippy::needless_range_loop)]
#[inline(always)]
unsafe fn transform_results_on<S: Simd>(
    w: &Windows,
    y: usize,
    lanes: usize,
    first: bool,
    results: *const f32,
    sums: *mut f32, // (row, column, filter)
) {
    unsafe {
        let line = w.columns * WINDOW * lanes;
        for x in 0..w.columns {
            for lane in (0..lanes).step_by(S::LANES) {
                let from = results.add((y * w.columns + x) * lanes + lane);
                let mut m = [[S::splat(0.0); 2]; 4];
                for i in 0..4 {
                    let [a, b, c, d] = [0, 1, 2, 3].map(|j| from.add((i * 4 + j) * w.result_step));
                    m[i] = result_row::<S>(S::load(a), S::load(b), S::load(c), S::load(d));
                }
                let to = sums.add(y * WINDOW * line + x * WINDOW * lanes + lane);
                for j in 0..2 {
                    let t = result_row::<S>(m[0][j], m[1][j], m[2][j], m[3][j]);
                    for i in 0..2 {
                        let to = to.add(i * line + j * lanes);
                        S::store(to, if first { t[i] } else { S::add(S::load(to), t[i]) });
                    }
                }
            }
        }
    }
}
dispatch!(fn transform_results(
    w: &Windows, y: usize, lanes: usize, first: bool, results: *const f32, sums: *mut f32
) => transform_results_on);

/// The results of a row of windows, of a block of filters: the first and its lanes.
unsafe fn finish_rows(
    level: Level,
    plan: &Plan,
    task: &Task,
    w: &Windows,
    y: usize,
    (filter, lanes): (usize, usize),
    sums: *mut f32,
) {
    for row in y * WINDOW..((y + 1) * WINDOW).min(task.size.0) {
        let at = [task.batch, task.frame, task.origin.0 + row, task.origin.1];
        let sums = sums.wrapping_add(row * w.columns * WINDOW * lanes);
        unsafe { finish(level, plan, at, task.size.1, filter, lanes / level.lanes(), sums) };
    }
}

#[inline(always)]
unsafe fn result_row<S: Simd>(a: S::V, b: S::V, c: S::V, d: S::V) -> [S::V; 2] {
    unsafe { [S::add(S::add(a, b), c), S::sub(S::sub(b, c), d)] }
}
