//! The inner loops of convolution: input windows copied into a slab, and register tiles of pixels by filters over it.
//!
//! A slab is the part of the input that one block of output pixels sees, for a range of channels, with zeros where it
//! reaches beyond the input. Its cell is one pixel's group of 16 units, a unit being a channel in f32 or a pair of
//! channels in bf16: 64 bytes, one cache line. Cells lie as (frame, row, group, phase, column), the columns of equal
//! index modulo the stride (a phase) side by side, so that neighbouring output pixels always read neighbouring cells and the
//! tile's loop needs no strides, no borders and no dtypes.
//!
//! `winograd` and `few` are other ways over the same slab, for kernels of 3 by 3 and for few filters. Quantized weights
//! are decoded a block at a time before they are multiplied, or multiplied as integers with an input that is quantized
//! on its way into the slab; scales wait for the end of the sums.

use crate::activation::act;
use crate::dispatch;
use crate::schema::{Activation, Format};
use crate::simd::{Element, Simd};
use crate::view::View;
use codes::{Codes, decode};
use half::bf16;
use std::marker::PhantomData;

pub mod codes;
pub mod few;
pub mod integers;
pub mod winograd;

/// Units in a cell.
pub const UNITS: usize = 16;
/// Bytes of a cell.
pub const CELL: usize = 64;

/// How values are multiplied: what a unit and its weights are.
#[allow(clippy::missing_safety_doc)]
pub trait Arith: Copy + Send + Sync + 'static {
    /// The storage of activations.
    type E: Element;
    /// The storage of weights.
    type W: Copy;
    /// Channels in a unit.
    const CHANNELS: usize;
    /// Each byte of a cell of zeros.
    const ZERO: u8 = 0;
    /// Fills a cell from `n` adjacent channels, at least one; nothing beyond them is read. `inverse` is one over the
    /// scale of a quantized input.
    unsafe fn fill<S: Codes>(cell: *mut f32, x: *const Self::E, n: usize, inverse: f32);
    /// One unit's weight of one filter of a block, as a unit.
    unsafe fn weight(w: *const Self::W, filter: usize) -> f32;
    /// One unit's weights of a vector of filters.
    unsafe fn weights<S: Codes>(w: *const Self::W) -> S::V;
    /// sum + unit * weights.
    unsafe fn madd<S: Codes>(sum: S::V, unit: S::V, weights: S::V) -> S::V;
    /// The sum of the lanes of a sum, as a lane.
    unsafe fn across<S: Codes>(sum: S::V) -> f32 {
        unsafe { S::sum(sum) }
    }
    /// A sum as floats. `excess` is what a quantized input's codes add to it beyond their values.
    unsafe fn total<S: Codes>(sum: S::V, excess: S::V) -> S::V {
        let _ = excess;
        sum
    }
}

/// Values widened to f32: input while it is copied into the slab, weights while they are read.
#[derive(Clone, Copy)]
pub struct Widen<E>(PhantomData<E>);

impl<E: Element> Arith for Widen<E> {
    type E = E;
    type W = E;
    const CHANNELS: usize = 1;

    #[inline(always)]
    unsafe fn fill<S: Codes>(cell: *mut f32, x: *const E, n: usize, _: f32) {
        unsafe {
            let mut i = 0;
            while i < UNITS {
                let v = if i + S::LANES <= n {
                    E::load::<S>(x.add(i))
                } else if i < n {
                    E::load_n::<S>(x.add(i), n - i)
                } else {
                    S::splat(0.0)
                };
                S::store(cell.add(i), v);
                i += S::LANES;
            }
        }
    }
    #[inline(always)]
    unsafe fn weight(w: *const E, filter: usize) -> f32 {
        unsafe { (*w.add(filter)).get() }
    }
    #[inline(always)]
    unsafe fn weights<S: Codes>(w: *const E) -> S::V {
        unsafe { E::load::<S>(w) }
    }
    #[inline(always)]
    unsafe fn madd<S: Codes>(sum: S::V, unit: S::V, weights: S::V) -> S::V {
        unsafe { S::fma(unit, weights, sum) }
    }
}

/// Pairs of bf16 for levels that have their dot product.
#[derive(Clone, Copy)]
pub struct Pairs;

impl Arith for Pairs {
    type E = bf16;
    type W = bf16;
    const CHANNELS: usize = 2;

    #[inline(always)]
    unsafe fn fill<S: Codes>(cell: *mut f32, x: *const bf16, n: usize, _: f32) {
        unsafe {
            if n >= 2 * UNITS {
                std::ptr::copy_nonoverlapping(x as *const u8, cell as *mut u8, CELL);
            } else {
                for i in (0..UNITS).step_by(S::LANES) {
                    let pairs = (n / 2).saturating_sub(i).min(S::LANES);
                    S::store(cell.add(i), S::load_n((x as *const f32).wrapping_add(i), pairs));
                }
                if n % 2 == 1 {
                    *(cell as *mut bf16).add(n - 1) = *x.add(n - 1);
                }
            }
        }
    }
    #[inline(always)]
    unsafe fn weight(w: *const bf16, filter: usize) -> f32 {
        unsafe { *(w as *const f32).add(filter) }
    }
    #[inline(always)]
    unsafe fn weights<S: Codes>(w: *const bf16) -> S::V {
        unsafe { S::load(w as *const f32) }
    }
    #[inline(always)]
    unsafe fn madd<S: Codes>(sum: S::V, unit: S::V, weights: S::V) -> S::V {
        unsafe { S::dot_bf16(sum, unit, weights) }
    }
}

/// What quantized weights bring along.
#[derive(Clone, Copy)]
pub struct Quantized {
    /// Codes that are decoded to the type of activations before they are multiplied; `None` where integers are.
    pub format: Option<Format>,
    /// A scale for each filter, and for those that fill the last block.
    pub scales: *const f32,
    /// `Arith::total`'s excess of each filter of `scales`.
    pub excess: *const f32,
    /// The scale of the input, 1 where it is not quantized.
    pub scale: f32,
}

/// What all tasks of one convolution share. Pictures are of (B, T, H, W, C).
pub struct Plan {
    pub x: View,
    /// The frames before x, if not the first again.
    pub cache: Option<View>,
    /// The packed weights: blocks of filters, each (group, tap, unit, filter of the block).
    pub weight: *const u8,
    pub quantized: Option<Quantized>,
    pub bias: Option<View>,
    /// Broadcast to out's shape.
    pub residual: Option<View>,
    pub out: View,
    pub act: Activation,
    pub kt: usize,
    pub kh: usize,
    pub kw: usize,
    pub stride: usize,
    pub pad_top: usize,
    pub pad_left: usize,
    pub upsample: usize,
    /// Output rows and columns of a block of pixels.
    pub block: (usize, usize),
    /// Groups of channels that a slab holds at a time.
    pub groups: usize,
    /// Bytes from one block of filters to the next.
    pub panel: usize,
    /// Where each tap's cells begin in the slab, in bytes.
    pub taps: Vec<usize>,
    /// Floats that hold the sums of one task between ranges of channels.
    pub sums: usize,
}

unsafe impl Send for Plan {}
unsafe impl Sync for Plan {}

impl Plan {
    /// Rows of cells in a slab.
    pub fn slab_rows(&self) -> usize {
        (self.block.0 - 1) * self.stride + self.kh
    }
    /// Columns of one phase of a slab.
    pub fn phase_columns(&self) -> usize {
        ((self.block.1 - 1) * self.stride + self.kw).div_ceil(self.stride)
    }
    /// Cells of one group of one row of a slab.
    pub fn columns(&self) -> usize {
        self.phase_columns() * self.stride
    }
    /// Bytes of one frame of a slab.
    pub fn frame_bytes(&self) -> usize {
        self.slab_rows() * self.groups * self.columns() * CELL
    }
    /// Bytes of a slab.
    pub fn slab_bytes(&self) -> usize {
        self.kt * self.frame_bytes()
    }
    /// The frame (H, W, C) that a task sees at one tap in time.
    fn frame(&self, task: &Task, tap: usize) -> View {
        let (from, frame) = match ((task.frame + tap).checked_sub(self.kt - 1), &self.cache) {
            (Some(frame), _) => (&self.x, frame),
            (None, Some(cache)) => (cache, task.frame + tap),
            (None, None) => (&self.x, 0),
        };
        from.index(task.batch).index(frame)
    }
    /// How weights are decoded before they are multiplied, if they are.
    pub fn decoded(&self) -> Option<Format> {
        self.quantized.and_then(|q| q.format)
    }
    /// Bytes of a stored weight.
    pub fn weight_size<A: Arith>(&self) -> usize {
        if self.decoded().is_some() { 1 } else { size_of::<A::W>() }
    }
    /// Bytes of the decoded weights of one block of filters and one range of channels.
    pub fn decoded_bytes<A: Arith>(&self, width: usize) -> usize {
        match self.decoded() {
            Some(_) => self.groups * UNITS * A::CHANNELS * self.taps.len() * width * A::E::SIZE,
            None => 0,
        }
    }
}

/// The part of the result that one task computes.
#[derive(Clone, Copy)]
pub struct Task {
    pub batch: usize,
    pub frame: usize,
    /// The first output row and column.
    pub origin: (usize, usize),
    /// Output rows and columns.
    pub size: (usize, usize),
    /// The blocks of filters.
    pub blocks: (usize, usize),
}

/// The most pixels of any tile.
pub const TILE_PIXELS: usize = 14;

/// The most pixels of a tile that is `vectors` wide: sums, weights and one unit must fit the registers.
pub const fn tile_pixels<S: Simd>(vectors: usize) -> usize {
    match (S::REGISTERS, vectors) {
        (32, _) => TILE_PIXELS,
        (16, 2) => 6,
        (16, _) => 12,
        (_, 2) => 2,
        _ => 4,
    }
}

/// One over the scale of a quantized input, 0 where there is none: a scale of 0 has only codes of 0.
pub fn inverse(scale: f32) -> f32 {
    if scale == 0.0 { 0.0 } else { 1.0 / scale }
}

/// Copies the input that a task sees, `channels` of them from `channel` on, into the slab.
#[inline(always)]
unsafe fn fill_slab<S: Codes, A: Arith>(plan: &Plan, task: &Task, channel: usize, channels: usize, slab: *mut u8) {
    for tap in 0..plan.kt {
        unsafe { fill_frame::<S, A>(plan, task, tap, (channel, channels), slab.add(tap * plan.frame_bytes())) };
    }
}

/// `fill_slab` of the frame at one tap in time.
#[inline(always)]
unsafe fn fill_frame<S: Codes, A: Arith>(
    plan: &Plan,
    task: &Task,
    tap: usize,
    (channel, channels): (usize, usize),
    slab: *mut u8,
) {
    unsafe {
        let x = plan.frame(task, tap);
        let (height, width) = (x.dims[0] * plan.upsample, x.dims[1] * plan.upsample);
        let rows = (task.size.0 - 1) * plan.stride + plan.kh;
        let columns = (task.size.1 - 1) * plan.stride + plan.kw;
        let group_step = plan.columns() * CELL;
        let per_group = UNITS * A::CHANNELS;
        let groups = channels.div_ceil(per_group);
        let inverse = plan.quantized.map_or(1.0, |q| inverse(q.scale));
        for row in 0..rows {
            // Wraps to a huge value above the input.
            let y = (task.origin.0 * plan.stride + row).wrapping_sub(plan.pad_top);
            let row_cells = slab.add(row * plan.groups * group_step);
            if y >= height {
                std::ptr::write_bytes(row_cells, A::ZERO, groups * group_step);
                continue;
            }
            let line = y / plan.upsample * x.strides[0] + channel;
            let mut phase = 0;
            let mut column_cells = row_cells;
            for column in 0..columns {
                let at = (task.origin.1 * plan.stride + column).wrapping_sub(plan.pad_left);
                let mut cell = column_cells;
                if at >= width {
                    for _ in 0..groups {
                        std::ptr::write_bytes(cell, A::ZERO, CELL);
                        cell = cell.add(group_step);
                    }
                } else {
                    let column = if plan.upsample == 1 { at } else { at / plan.upsample };
                    let mut from = x.at::<A::E>(line + column * x.strides[1]);
                    let mut left = channels;
                    for _ in 0..groups {
                        A::fill::<S>(cell as *mut f32, from, left.min(per_group), inverse);
                        cell = cell.add(group_step);
                        from = from.wrapping_add(per_group);
                        left = left.saturating_sub(per_group);
                    }
                }
                // The next phase, or the next column of the first.
                phase += 1;
                column_cells = column_cells.wrapping_add(plan.phase_columns() * CELL);
                if phase == plan.stride {
                    phase = 0;
                    column_cells = column_cells.wrapping_sub(group_step).wrapping_add(CELL);
                }
            }
        }
    }
}

/// What one call of `tile` sums over.
#[derive(Clone, Copy)]
struct Sum<'a> {
    /// Bytes from one group of the slab to the next.
    group_step: usize,
    taps: &'a [usize],
    /// All units of all groups.
    units: usize,
    /// Whether to start from zero, not from `sums`.
    first: bool,
}

/// Sums for `M` neighbouring pixels and `V` vectors of filters, in registers.
// Plain counted loops are what the compiler keeps in registers.
#[allow(clippy::needless_range_loop)]
#[inline(always)]
unsafe fn tile<S: Codes, A: Arith, const M: usize, const V: usize>(
    sum: &Sum,
    x: *const u8,
    mut w: *const A::W,
    sums: *mut f32, // (M, V)
) {
    unsafe {
        let mut s = [[S::splat(0.0); V]; M];
        if !sum.first {
            for m in 0..M {
                for v in 0..V {
                    s[m][v] = S::load(sums.add((m * V + v) * S::LANES));
                }
            }
        }
        let mut left = sum.units;
        let mut group = x;
        while left > 0 {
            let units = left.min(UNITS);
            for &tap in sum.taps {
                let mut cell = group.add(tap) as *const f32;
                for _ in 0..units {
                    let mut weights = [S::splat(0.0); V];
                    for v in 0..V {
                        weights[v] = A::weights::<S>(w.add(v * S::LANES * A::CHANNELS));
                    }
                    for m in 0..M {
                        let unit = S::splat(*cell.add(m * (CELL / 4)));
                        for v in 0..V {
                            s[m][v] = A::madd::<S>(s[m][v], unit, weights[v]);
                        }
                    }
                    w = w.add(V * S::LANES * A::CHANNELS);
                    cell = cell.add(1);
                }
            }
            left -= units;
            group = group.wrapping_add(sum.group_step);
        }
        for m in 0..M {
            for v in 0..V {
                S::store(sums.add((m * V + v) * S::LANES), s[m][v]);
            }
        }
    }
}

/// `tile` for a number of pixels and vectors that only the run knows.
#[inline(always)]
unsafe fn any_tile<S: Codes, A: Arith>(
    m: usize,
    vectors: usize,
    sum: &Sum,
    x: *const u8,
    w: *const A::W,
    sums: *mut f32,
) {
    macro_rules! arms {
        ($($m:literal)*) => {
            match (m, vectors) {
                $(
                    ($m, 2) if $m <= tile_pixels::<S>(2) => tile::<S, A, $m, 2>(sum, x, w, sums),
                    ($m, 1) if $m <= tile_pixels::<S>(1) => tile::<S, A, $m, 1>(sum, x, w, sums),
                )*
                _ => unreachable!("a tile of {m} pixels by {vectors} vectors"),
            }
        };
    }
    unsafe { arms!(1 2 3 4 5 6 7 8 9 10 11 12 13 14) }
}

/// Bias, activation, residual, and the result of a tile: `m` pixels from (row, column) on, filters from `filter` on.
#[inline(always)]
unsafe fn finish<S: Codes, A: Arith>(
    plan: &Plan,
    at: [usize; 4], // batch, frame, row, column
    m: usize,
    filter: usize,
    vectors: usize,
    sums: *const f32, // (M, V)
) {
    unsafe {
        let (out, filters) = (&plan.out, plan.out.last());
        let start = |view: &View| at.iter().zip(&view.strides).map(|(at, stride)| at * stride).sum::<usize>();
        for v in 0..vectors {
            let filter = filter + v * S::LANES;
            if filter >= filters {
                break;
            }
            let n = (filters - filter).min(S::LANES);
            let bias = match &plan.bias {
                Some(bias) if n == S::LANES => S::load(bias.at(filter)),
                Some(bias) => S::load_n(bias.at(filter), n),
                None => S::splat(0.0),
            };
            let (scale, excess) = match &plan.quantized {
                Some(q) => (S::mul(S::splat(q.scale), S::load(q.scales.add(filter))), S::load(q.excess.add(filter))),
                None => (S::splat(1.0), S::splat(0.0)),
            };
            let sum = |sums: *const f32| S::fma(A::total::<S>(S::load(sums), excess), scale, bias);
            let mut to = out.at::<A::E>(start(out) + filter);
            let mut sums = sums.add(v * S::LANES);
            if plan.act == Activation::None && plan.residual.is_none() && n == S::LANES {
                for _ in 0..m {
                    A::E::store::<S>(to, sum(sums));
                    to = to.wrapping_add(out.strides[3]);
                    sums = sums.wrapping_add(vectors * S::LANES);
                }
                continue;
            }
            for p in 0..m {
                let mut y = act::<S>(plan.act, sum(sums));
                if let Some(residual) = &plan.residual {
                    let step = residual.strides[4];
                    let from = start(residual) + p * residual.strides[3] + filter * step;
                    let from = residual.at::<A::E>(from);
                    let r = match step {
                        0 => S::splat((*from).get()),
                        1 if n == S::LANES => A::E::load::<S>(from),
                        1 => A::E::load_n::<S>(from, n),
                        _ => {
                            let mut lanes = [0f32; 16];
                            for (i, lane) in lanes.iter_mut().enumerate().take(n) {
                                *lane = (*from.add(i * step)).get();
                            }
                            S::load(lanes.as_ptr())
                        }
                    };
                    y = S::add(r, y);
                }
                if n == S::LANES {
                    A::E::store::<S>(to, y);
                } else {
                    A::E::store_n::<S>(to, y, n);
                }
                to = to.wrapping_add(out.strides[3]);
                sums = sums.wrapping_add(vectors * S::LANES);
            }
        }
    }
}

/// One task: the slab is filled for a range of channels at a time, and swept by every block of filters. Sums wait in
/// `sums` between ranges; quantized weights are decoded to `decoded`.
#[inline(always)]
unsafe fn block_on<S: Codes, A: Arith>(plan: &Plan, task: &Task, slab: *mut u8, sums: *mut f32, decoded: *mut u8) {
    unsafe {
        let (channels, filters) = (plan.x.last(), plan.out.last());
        let width = 2 * S::LANES;
        let range = plan.groups * UNITS * A::CHANNELS;
        let ranges = channels.div_ceil(range).max(1);
        let pixels = task.size.0 * task.size.1;
        let group_step = plan.columns() * CELL;
        for r in 0..ranges {
            let channel = r * range;
            let channels = (channels - channel).min(range);
            fill_slab::<S, A>(plan, task, channel, channels, slab);
            let sum = Sum { group_step, taps: &plan.taps, units: channels.div_ceil(A::CHANNELS), first: r == 0 };
            for b in task.blocks.0..task.blocks.1 {
                let filter = b * width;
                let vectors = if filters - filter > S::LANES { 2 } else { 1 };
                let each = plan.taps.len() * vectors * S::LANES; // weights of a channel
                let w = plan.weight.add(b * plan.panel);
                let w = w.add(channel.next_multiple_of(A::CHANNELS) * each * plan.weight_size::<A>());
                let w = match plan.decoded() {
                    Some(format) => {
                        let count = channels.next_multiple_of(A::CHANNELS) * each;
                        decode::<S, A::E>(format, w, count, decoded as *mut A::E);
                        decoded
                    }
                    None => w,
                } as *const A::W;
                // As even as can be, so that no tile is too small to hide the latency of its sums.
                let tiles = task.size.1.div_ceil(tile_pixels::<S>(vectors));
                let (least, longer) = (task.size.1 / tiles, task.size.1 % tiles);
                for row in 0..task.size.0 {
                    let line = slab.add(row * plan.stride * plan.groups * group_step);
                    let mut column = 0;
                    for t in 0..tiles {
                        let m = least + usize::from(t < longer);
                        let sums = if ranges == 1 {
                            sums
                        } else {
                            let index = (b - task.blocks.0) * pixels + row * task.size.1 + column;
                            sums.add(index * width)
                        };
                        any_tile::<S, A>(m, vectors, &sum, line.add(column * CELL), w, sums);
                        if r + 1 == ranges {
                            let at = [task.batch, task.frame, task.origin.0 + row, task.origin.1 + column];
                            finish::<S, A>(plan, at, m, filter, vectors, sums);
                        }
                        column += m;
                    }
                }
            }
        }
    }
}
dispatch!(pub fn block<A: Arith>(
    plan: &Plan, task: &Task, slab: *mut u8, sums: *mut f32, decoded: *mut u8
) => block_on);
