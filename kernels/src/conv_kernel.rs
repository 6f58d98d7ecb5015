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

use crate::activation::act_all;
use crate::dispatch;
use crate::level::Level;
use crate::schema::{Activation, DType, Format};
use crate::simd::{Element, Simd};
use crate::strided::{load_step, store_step};
use crate::view::View;
use codes::{Narrow, decode};
use half::{bf16, f16};
use std::marker::PhantomData;

pub mod codes;
pub mod few;
pub mod integers;
pub mod winograd;

/// Units in a cell.
pub const UNITS: usize = 16;
/// Bytes of a cell.
pub const CELL: usize = 64;

/// How values of x become units.
#[allow(clippy::missing_safety_doc)]
pub trait Input: Copy + Send + Sync + 'static {
    /// The storage of activations.
    type E: Element;
    /// How the units are multiplied.
    type By: Product;
    /// Each byte of a cell of zeros.
    const ZERO: u8 = 0;
    /// Fills a cell from `n` adjacent channels, at least one; nothing beyond them is read. `inverse` is one over the
    /// scale of a quantized input.
    unsafe fn fill<S: Narrow>(cell: *mut f32, x: *const Self::E, n: usize, inverse: f32);
}

/// How units and weights are multiplied.
#[allow(clippy::missing_safety_doc)]
pub trait Product: Copy + Send + Sync + 'static {
    /// The storage of weights.
    type W: Copy;
    /// The same product of weights that lie as units do.
    type Units: Product;
    /// Channels in a unit.
    const CHANNELS: usize;
    /// Whether a level multiplies so.
    fn runs<S: Simd>() -> bool {
        true
    }
    /// One unit's weight of one filter of a block, as a unit.
    unsafe fn unit(w: *const Self::W, filter: usize) -> f32;
    /// One unit's weights of a vector of filters.
    unsafe fn weights<S: Narrow>(w: *const Self::W) -> S::V;
    /// sum + unit * weights.
    unsafe fn madd<S: Narrow>(sum: S::V, unit: S::V, weights: S::V) -> S::V;
    /// The sum of the lanes of a sum, as a lane.
    #[inline(always)]
    unsafe fn across<S: Narrow>(sum: S::V) -> f32 {
        unsafe { S::sum(sum) }
    }
}

/// Values widened to f32.
#[derive(Clone, Copy)]
pub struct Floats<E>(PhantomData<E>);

impl<E: Element> Input for Floats<E> {
    type E = E;
    type By = Widen<E>;

    #[inline(always)]
    unsafe fn fill<S: Narrow>(cell: *mut f32, x: *const E, n: usize, _: f32) {
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
}

/// Weights widened to f32 while they are read.
#[derive(Clone, Copy)]
pub struct Widen<E>(PhantomData<E>);

impl<E: Element> Product for Widen<E> {
    type W = E;
    type Units = Widen<f32>;
    const CHANNELS: usize = 1;

    #[inline(always)]
    unsafe fn unit(w: *const E, filter: usize) -> f32 {
        unsafe { (*w.add(filter)).get() }
    }
    #[inline(always)]
    unsafe fn weights<S: Narrow>(w: *const E) -> S::V {
        unsafe { E::load::<S>(w) }
    }
    #[inline(always)]
    unsafe fn madd<S: Narrow>(sum: S::V, unit: S::V, weights: S::V) -> S::V {
        unsafe { S::fma(unit, weights, sum) }
    }
}

/// Pairs of bf16 for levels that have their dot product.
#[derive(Clone, Copy)]
pub struct FloatPairs;

impl Input for FloatPairs {
    type E = bf16;
    type By = Pairs;

    #[inline(always)]
    unsafe fn fill<S: Narrow>(cell: *mut f32, x: *const bf16, n: usize, _: f32) {
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
}

/// Products of pairs of bf16.
#[derive(Clone, Copy)]
pub struct Pairs;

impl Product for Pairs {
    type W = bf16;
    type Units = Pairs;
    const CHANNELS: usize = 2;

    fn runs<S: Simd>() -> bool {
        S::BF16_DOT
    }
    #[inline(always)]
    unsafe fn unit(w: *const bf16, filter: usize) -> f32 {
        unsafe { *(w as *const f32).add(filter) }
    }
    #[inline(always)]
    unsafe fn weights<S: Narrow>(w: *const bf16) -> S::V {
        unsafe { S::load(w as *const f32) }
    }
    #[inline(always)]
    unsafe fn madd<S: Narrow>(sum: S::V, unit: S::V, weights: S::V) -> S::V {
        unsafe { S::dot_bf16(sum, unit, weights) }
    }
}

/// How a convolution multiplies. All code around the loops over elements is compiled once, and calls them through here.
#[derive(Clone, Copy)]
pub struct Method {
    /// Channels in a unit.
    pub channels: usize,
    /// Bytes of a weight.
    pub weight: usize,
    fill: unsafe fn(Level, &Plan, &Task, usize, (usize, usize), *mut u8),
    tile: unsafe fn(Level, usize, usize, &Sum, *const u8, *const u8, *mut f32),
    few_tile: unsafe fn(Level, usize, usize, &Sum, *const u8, *const f32, *mut f32),
    unit: unsafe fn(*const u8, usize) -> f32,
}

impl Method {
    /// That of an input.
    pub const fn of<I: Input>() -> Self {
        Self {
            channels: I::By::CHANNELS,
            weight: size_of::<<I::By as Product>::W>(),
            fill: fill_frame::<I>,
            tile: any_tile::<I::By>,
            few_tile: few::any_few_tile::<<I::By as Product>::Units>,
            unit: unit::<I::By>,
        }
    }
}

unsafe fn unit<P: Product>(w: *const u8, filter: usize) -> f32 {
    unsafe { P::unit(w as *const P::W, filter) }
}

/// What quantized weights bring along.
#[derive(Clone, Copy)]
pub struct Quantized {
    /// Codes that are decoded to the type of activations before they are multiplied; `None` where integers are.
    pub format: Option<Format>,
    /// A scale for each filter, and for those that fill the last block.
    pub scales: *const f32,
    /// What a quantized input's codes add to the sums of each filter of `scales` beyond their values.
    pub excess: *const f32,
    /// The scale of the input, 1 where it is not quantized.
    pub scale: f32,
}

/// What all tasks of one convolution share. Pictures are of (B, T, H, W, C).
pub struct Plan {
    pub method: Method,
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
    pub fn weight_size(&self) -> usize {
        if self.decoded().is_some() { 1 } else { self.method.weight }
    }
    /// Bytes of the decoded weights of one block of filters and one range of channels.
    pub fn decoded_bytes(&self, width: usize) -> usize {
        match self.decoded() {
            Some(_) => self.groups * UNITS * self.method.channels * self.taps.len() * width * self.x.dtype.size(),
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
pub const fn tile_pixels(registers: usize, vectors: usize) -> usize {
    match (registers, vectors) {
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

/// Copies the input that a task sees, some channels from a first one on, into the slab.
unsafe fn fill_slab(level: Level, plan: &Plan, task: &Task, channels: (usize, usize), slab: *mut u8) {
    for tap in 0..plan.kt {
        unsafe { (plan.method.fill)(level, plan, task, tap, channels, slab.add(tap * plan.frame_bytes())) };
    }
}

dispatch! {
    fn fill_frame<I: Input>(
        plan: &Plan, task: &Task, tap: usize, channels: (usize, usize), slab: *mut u8,
    ) => fill_frame_on
}

/// The frame of the slab at one tap in time.
#[inline(always)]
unsafe fn fill_frame_on<S: Narrow, I: Input>(
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
        let per_group = UNITS * I::By::CHANNELS;
        let groups = channels.div_ceil(per_group);
        let inverse = plan.quantized.map_or(1.0, |q| inverse(q.scale));
        for row in 0..rows {
            // Wraps to a huge value above the input.
            let y = (task.origin.0 * plan.stride + row).wrapping_sub(plan.pad_top);
            let row_cells = slab.add(row * plan.groups * group_step);
            if y >= height {
                std::ptr::write_bytes(row_cells, I::ZERO, groups * group_step);
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
                        std::ptr::write_bytes(cell, I::ZERO, CELL);
                        cell = cell.add(group_step);
                    }
                } else {
                    let column = if plan.upsample == 1 { at } else { at / plan.upsample };
                    let mut from = x.at::<I::E>(line + column * x.strides[1]);
                    let mut left = channels;
                    for _ in 0..groups {
                        I::fill::<S>(cell as *mut f32, from, left.min(per_group), inverse);
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
unsafe fn tile<S: Narrow, P: Product, const M: usize, const V: usize>(
    sum: &Sum,
    x: *const u8,
    mut w: *const P::W,
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
                        weights[v] = P::weights::<S>(w.add(v * S::LANES * P::CHANNELS));
                    }
                    for m in 0..M {
                        let unit = S::splat(*cell.add(m * (CELL / 4)));
                        for v in 0..V {
                            s[m][v] = P::madd::<S>(s[m][v], unit, weights[v]);
                        }
                    }
                    w = w.add(V * S::LANES * P::CHANNELS);
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

dispatch! {
    fn any_tile<P: Product>(m: usize, vectors: usize, sum: &Sum, x: *const u8, w: *const u8, sums: *mut f32) => any_tile_on
}

/// `tile` for a number of pixels and vectors that only the run knows.
#[inline(always)]
unsafe fn any_tile_on<S: Narrow, P: Product>(
    m: usize,
    vectors: usize,
    sum: &Sum,
    x: *const u8,
    w: *const u8,
    sums: *mut f32,
) {
    if !P::runs::<S>() {
        unreachable!("a level multiplies by what it has");
    }
    let w = w as *const P::W;
    macro_rules! arms {
        ($($m:literal)*) => {
            match (m, vectors) {
                $(
                    ($m, 2) if $m <= tile_pixels(S::REGISTERS, 2) => tile::<S, P, $m, 2>(sum, x, w, sums),
                    ($m, 1) if $m <= tile_pixels(S::REGISTERS, 1) => tile::<S, P, $m, 1>(sum, x, w, sums),
                )*
                _ => unreachable!("a tile of {m} pixels by {vectors} vectors"),
            }
        };
    }
    unsafe { arms!(1 2 3 4 5 6 7 8 9 10 11 12 13 14) }
}

/// Bias, activation, residual, and the result of a tile, in place until they are written: `m` pixels from `at` (batch,
/// frame, row, column) on, filters from `filter` on.
unsafe fn finish(
    level: Level,
    plan: &Plan,
    at: [usize; 4],
    m: usize,
    filter: usize,
    vectors: usize,
    sums: *mut f32, // (M, V)
) {
    unsafe {
        total(level, plan, m, filter, vectors, sums);
        act_all(level, plan.act, sums, m * vectors * level.lanes());
        match plan.out.dtype {
            DType::F32 => write::<f32>(level, plan, at, m, filter, vectors, sums),
            DType::BF16 => write::<bf16>(level, plan, at, m, filter, vectors, sums),
            _ => write::<f16>(level, plan, at, m, filter, vectors, sums),
        }
    }
}

dispatch!(fn total(plan: &Plan, m: usize, filter: usize, vectors: usize, sums: *mut f32) => total_on);

/// Sums of products to sums of values: scales, and bias. Filters beyond the last one hold anything.
#[inline(always)]
unsafe fn total_on<S: Narrow>(plan: &Plan, m: usize, filter: usize, vectors: usize, sums: *mut f32) {
    unsafe {
        let filters = plan.out.last();
        for v in 0..vectors {
            let filter = filter + v * S::LANES;
            if filter >= filters {
                break;
            }
            let bias = match &plan.bias {
                Some(bias) => f32::load_n::<S>(bias.at(filter), (filters - filter).min(S::LANES)),
                None => S::splat(0.0),
            };
            let at = |p: usize| sums.add((p * vectors + v) * S::LANES);
            match &plan.quantized {
                None => (0..m).for_each(|p| S::store(at(p), S::add(S::load(at(p)), bias))),
                Some(q) => {
                    let scale = S::mul(S::splat(q.scale), S::load(q.scales.add(filter)));
                    let excess = S::load(q.excess.add(filter));
                    for p in 0..m {
                        let sum = S::load(at(p));
                        let sum = if q.format.is_none() { S::difference(sum, excess) } else { sum };
                        S::store(at(p), S::fma(sum, scale, bias));
                    }
                }
            }
        }
    }
}

dispatch! {
    fn write<E: Element>(
        plan: &Plan, at: [usize; 4], m: usize, filter: usize, vectors: usize, sums: *const f32,
    ) => write_on
}

/// Residual, and the result.
#[inline(always)]
unsafe fn write_on<S: Simd, E: Element>(
    plan: &Plan,
    at: [usize; 4],
    m: usize,
    filter: usize,
    vectors: usize,
    sums: *const f32,
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
            for p in 0..m {
                let mut y = S::load(sums.add((p * vectors + v) * S::LANES));
                if let Some(residual) = &plan.residual {
                    let step = residual.strides[4];
                    let from = start(residual) + p * residual.strides[3] + filter * step;
                    y = S::add(load_step::<S, E>(residual.at(from), step, n), y);
                }
                store_step::<S, E>(out.at(start(out) + p * out.strides[3] + filter), y, 1, n);
            }
        }
    }
}

/// One task: the slab is filled for a range of channels at a time, and swept by every block of filters. Sums wait in
/// `sums` between ranges; quantized weights are decoded to `decoded`.
///
/// # Safety
/// As `Plan` says of its parts; the memory is as large as it says.
pub unsafe fn block(level: Level, plan: &Plan, task: &Task, slab: *mut u8, sums: *mut f32, decoded: *mut u8) {
    unsafe {
        let method = &plan.method;
        let (channels, filters) = (plan.x.last(), plan.out.last());
        let lanes = level.lanes();
        let width = 2 * lanes;
        let range = plan.groups * UNITS * method.channels;
        let ranges = channels.div_ceil(range).max(1);
        let pixels = task.size.0 * task.size.1;
        let group_step = plan.columns() * CELL;
        for r in 0..ranges {
            let channel = r * range;
            let channels = (channels - channel).min(range);
            fill_slab(level, plan, task, (channel, channels), slab);
            let sum = Sum { group_step, taps: &plan.taps, units: channels.div_ceil(method.channels), first: r == 0 };
            for b in task.blocks.0..task.blocks.1 {
                let filter = b * width;
                let vectors = if filters - filter > lanes { 2 } else { 1 };
                let each = plan.taps.len() * vectors * lanes; // weights of a channel
                let mut w = plan.weight.add(b * plan.panel);
                w = w.add(channel.next_multiple_of(method.channels) * each * plan.weight_size());
                if let Some(format) = plan.decoded() {
                    let count = channels.next_multiple_of(method.channels) * each;
                    decode(level, format, w, count, plan.x.dtype, decoded);
                    w = decoded;
                }
                // As even as can be, so that no tile is too small to hide the latency of its sums.
                let tiles = task.size.1.div_ceil(tile_pixels(level.registers(), vectors));
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
                        (method.tile)(level, m, vectors, &sum, line.add(column * CELL), w, sums);
                        if r + 1 == ranges {
                            let at = [task.batch, task.frame, task.origin.0 + row, task.origin.1 + column];
                            finish(level, plan, at, m, filter, vectors, sums);
                        }
                        column += m;
                    }
                }
            }
        }
    }
}
