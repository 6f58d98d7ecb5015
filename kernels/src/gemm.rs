//! The matrix multiply behind `linear` and `matmul`: tiles of rows by panels of two vectors of columns.
//!
//! B lies in panels: the columns of one panel for each step of K, one step after another. Rows of A are first copied
//! ("staged") into the thread's scratch memory, widened to f32 where they are narrower, in blocks of K at a fixed
//! distance from row to row: one pointer then addresses all rows of a tile, and no stride of A can make the rows fight
//! for the same cache sets. A block of one panel fits the first-level cache, while the tiles of rows stream past it
//! from the second.

use crate::activation::act_all;
use crate::codes::{Codes, Fp8, fp8_to_bf16, fp8_to_f32};
use crate::dispatch;
use crate::error::Result;
use crate::level::Level;
use crate::ops::Cx;
use crate::schema::{Activation, DType};
use crate::simd::{Element, Simd};
use crate::strided::load_step;
use crate::view::View;
use half::{bf16, f16};
use std::marker::PhantomData;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Steps of K in a block: a panel's block takes 32 KB of four-byte lanes in AVX-512.
pub const BLOCK: usize = 256;
/// Steps that are decoded at a time for a single tile.
pub const PART: usize = 64;
/// The distance between staged rows: an odd number of cache lines, so that the rows of a tile spread over all sets.
const ROW: usize = BLOCK + 16;
/// Staged rows that may stay for all of K, in four-byte units: most of a second-level cache.
const STAGED: usize = 160 * 1024;
/// Rows in a block where all of K does not fit.
const ROWS: usize = 168;
/// Columns in a task where staging is repeated for each.
const WIDE: usize = 256;
/// Ways to cut the work, by the parameter `variant` of kernels.
pub const WAYS: &[&str] = &["by shape", "narrow tasks", "wide tasks", "other staging"];
/// Threads that remember what they staged; others stage again for every task.
const REMEMBERED: usize = 64;

/// How rows of A become units of four bytes, which a tile multiplies by steps of B.
pub trait Units: Copy + Send + Sync + 'static {
    /// The storage type of A.
    type A: Copy;
    /// Elements of K in a unit at a level.
    fn step(_: Level) -> usize {
        1
    }
    /// Copies `len` elements `stride` apart into units.
    ///
    /// # Safety
    /// All elements can be read, `len` over the step units written.
    unsafe fn stage<S: Codes>(from: *const Self::A, stride: usize, len: usize, to: *mut f32);
}

/// Floats, widened to f32.
#[derive(Clone, Copy)]
pub struct Floats<E>(PhantomData<E>);

impl<E: Element> Units for Floats<E> {
    type A = E;
    #[inline(always)]
    unsafe fn stage<S: Codes>(from: *const E, stride: usize, len: usize, to: *mut f32) {
        unsafe {
            let mut i = 0;
            if stride == 1 {
                while i + S::LANES <= len {
                    S::store(to.add(i), E::load::<S>(from.add(i)));
                    i += S::LANES;
                }
            }
            while i < len {
                *to.add(i) = (*from.add(i * stride)).get();
                i += 1;
            }
        }
    }
}

/// Pairs of bf16.
#[derive(Clone, Copy)]
pub struct FloatPairs;

impl Units for FloatPairs {
    type A = bf16;
    fn step(_: Level) -> usize {
        2
    }
    #[inline(always)]
    unsafe fn stage<S: Codes>(from: *const bf16, stride: usize, len: usize, to: *mut f32) {
        unsafe {
            let to = to as *mut bf16;
            if stride == 1 {
                std::ptr::copy_nonoverlapping(from, to, len);
            } else {
                for i in 0..len {
                    *to.add(i) = *from.add(i * stride);
                }
            }
            pair_last(to, len);
        }
    }
}

/// The odd one's partner must be zero: whatever stands there would be multiplied, and may be NaN.
#[inline(always)]
unsafe fn pair_last(to: *mut bf16, len: usize) {
    if len % 2 == 1 {
        unsafe { *to.add(len) = bf16::ZERO };
    }
}

/// Codes of int8: fours of bytes, shifted to u8, where there is VNNI; elsewhere pairs of i16.
#[derive(Clone, Copy)]
pub struct Bytes;

/// What is added to A's codes where there is VNNI.
pub const VNNI_SHIFT: i32 = 128;

impl Units for Bytes {
    type A = u8;
    fn step(level: Level) -> usize {
        if level == Level::Avx512Bf16 { 4 } else { 2 }
    }
    #[inline(always)]
    unsafe fn stage<S: Codes>(from: *const u8, _: usize, len: usize, to: *mut f32) {
        unsafe {
            if S::VNNI {
                let to = to as *mut u8;
                for i in 0..len {
                    *to.add(i) = *from.add(i) ^ 0x80;
                }
                // Whatever is multiplied by B's zeros.
                std::ptr::write_bytes(to.add(len), 0, len.next_multiple_of(4) - len);
            } else {
                let to = to as *mut i16;
                for i in 0..len {
                    *to.add(i) = *from.add(i) as i8 as i16;
                }
                std::ptr::write_bytes(to.add(len), 0, len % 2);
            }
        }
    }
}

/// Codes of fp8, whose scale waits for the epilogue, as f32.
#[derive(Clone, Copy)]
pub struct Fp8Floats<F>(PhantomData<F>);

impl<F: Fp8> Units for Fp8Floats<F> {
    type A = u8;
    #[inline(always)]
    unsafe fn stage<S: Codes>(from: *const u8, _: usize, len: usize, to: *mut f32) {
        unsafe { fp8_to_f32::<S, F>(from, len, to) }
    }
}

/// Codes of fp8 as pairs of bf16, in which they are exact.
#[derive(Clone, Copy)]
pub struct Fp8Pairs<F>(PhantomData<F>);

impl<F: Fp8> Units for Fp8Pairs<F> {
    type A = u8;
    fn step(_: Level) -> usize {
        2
    }
    #[inline(always)]
    unsafe fn stage<S: Codes>(from: *const u8, _: usize, len: usize, to: *mut f32) {
        unsafe {
            if !S::BF16_DOT {
                unreachable!("pairs are for levels that multiply them");
            }
            fp8_to_bf16::<S, F>(from, len, to as *mut bf16);
            pair_last(to as *mut bf16, len);
        }
    }
}

/// How units of A and steps of B are multiplied.
pub trait Product: Copy + Send + Sync + 'static {
    /// Bytes of one column of one step of B.
    const BYTES: usize;
    /// Whether a level multiplies so.
    fn runs<S: Simd>() -> bool {
        true
    }
    /// Loads a vector of columns.
    ///
    /// # Safety
    /// The CPU has the level of `S`; a vector's bytes can be read.
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const u8) -> S::V {
        unsafe { S::load(p as *const f32) }
    }
    /// acc + a * b.
    ///
    /// # Safety
    /// The CPU has the level of `S`.
    unsafe fn mac<S: Simd>(acc: S::V, a: S::V, b: S::V) -> S::V;
    /// Two sums together.
    ///
    /// # Safety
    /// The CPU has the level of `S`.
    #[inline(always)]
    unsafe fn add<S: Simd>(a: S::V, b: S::V) -> S::V {
        unsafe { S::add(a, b) }
    }
    /// The most rows in a tile: two accumulators each, beside two vectors of B and one of A.
    fn rows(registers: usize) -> usize {
        (registers - 4) / 2
    }
    /// A sum as a float.
    ///
    /// # Safety
    /// The CPU has the level of `S`.
    #[inline(always)]
    unsafe fn float<S: Simd>(sum: S::V) -> S::V {
        sum
    }
    /// Sums (R, panel) of a tile.
    ///
    /// # Safety
    /// The CPU has the level of `S`; the tile's operands can be read, its sums written.
    #[inline(always)]
    unsafe fn accumulate<S: Simd, const R: usize, const U: usize>(t: Tile) {
        unsafe { accumulate::<S, Self, R, U>(t) }
    }
}

/// B in a storage type, widened as it is loaded.
#[derive(Clone, Copy)]
pub struct Stored<E>(PhantomData<E>);

impl<E: Element> Product for Stored<E> {
    const BYTES: usize = E::SIZE;
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const u8) -> S::V {
        unsafe { E::load::<S>(p as *const E) }
    }
    #[inline(always)]
    unsafe fn mac<S: Simd>(acc: S::V, a: S::V, b: S::V) -> S::V {
        unsafe { S::fma(a, b, acc) }
    }
}

/// Pairs of bf16, two elements of K in each four-byte lane, for the CPU's dot product.
#[derive(Clone, Copy)]
pub struct Pairs;

impl Product for Pairs {
    const BYTES: usize = 4;
    fn runs<S: Simd>() -> bool {
        S::BF16_DOT
    }
    #[inline(always)]
    unsafe fn mac<S: Simd>(acc: S::V, a: S::V, b: S::V) -> S::V {
        unsafe { S::dot_bf16(acc, a, b) }
    }
}

/// Codes of int8, summed exactly in i32: fours of bytes where there is VNNI; elsewhere pairs of i16, as a sum of two
/// products of bytes can exceed 16 bits.
#[derive(Clone, Copy)]
pub struct Integers;

impl Product for Integers {
    const BYTES: usize = 4;
    #[inline(always)]
    unsafe fn mac<S: Simd>(acc: S::V, a: S::V, b: S::V) -> S::V {
        unsafe { if S::VNNI { S::dot_u8_i8(acc, a, b) } else { S::dot_i16(acc, a, b) } }
    }
    #[inline(always)]
    unsafe fn add<S: Simd>(a: S::V, b: S::V) -> S::V {
        unsafe { S::add_i32(a, b) }
    }
    #[inline(always)]
    unsafe fn float<S: Simd>(sum: S::V) -> S::V {
        unsafe { S::float_i32(sum) }
    }
}

/// A product whose B has scales for groups of K: each group's sums are multiplied by them, and added up in f32.
#[derive(Clone, Copy)]
pub struct Grouped<P>(PhantomData<P>);

impl<P: Product> Product for Grouped<P> {
    const BYTES: usize = P::BYTES;
    fn runs<S: Simd>() -> bool {
        P::runs::<S>()
    }
    #[inline(always)]
    unsafe fn mac<S: Simd>(acc: S::V, a: S::V, b: S::V) -> S::V {
        unsafe { P::mac::<S>(acc, a, b) }
    }
    /// Each with two sums of all groups besides.
    fn rows(registers: usize) -> usize {
        (registers - 4) / 4
    }
    #[inline(always)]
    unsafe fn accumulate<S: Simd, const R: usize, const U: usize>(t: Tile) {
        unsafe { accumulate_groups::<S, P, R>(t) }
    }
}

/// How A and B meet. All code around the loops over elements is compiled once, and calls them through here.
#[derive(Clone, Copy)]
pub struct Method {
    step: fn(Level) -> usize,
    bytes: usize,
    rows: fn(usize) -> usize,
    stage: unsafe fn(Level, Strip, usize, *mut f32),
    tile: unsafe fn(Level, usize, Tile),
}

impl Method {
    /// Rows of A as `U`, multiplied as `P`.
    pub const fn of<U: Units, P: Product>() -> Self {
        Self { step: U::step, bytes: P::BYTES, rows: P::rows, stage: stage::<U>, tile: tile::<P> }
    }

    /// Elements of K in a step at a level.
    pub fn step(&self, level: Level) -> usize {
        (self.step)(level)
    }

    /// Writes rows of A as units, `distance` apart.
    ///
    /// # Safety
    /// The rows can be read, and their units written.
    pub unsafe fn stage(&self, level: Level, strip: Strip, distance: usize, to: *mut f32) {
        unsafe { (self.stage)(level, strip, distance, to) }
    }
}

/// A part of some rows of A.
#[derive(Clone, Copy)]
pub struct Strip {
    /// The first row's first element, and the distances of rows and of elements, all in elements of `a`'s type.
    pub a: *const u8,
    pub first: usize,
    pub row: usize,
    pub column: usize,
    pub rows: usize,
    pub len: usize,
}

dispatch!(fn stage<U: Units>(strip: Strip, distance: usize, to: *mut f32) => stage_on);

#[inline(always)]
unsafe fn stage_on<S: Codes, U: Units>(strip: Strip, distance: usize, to: *mut f32) {
    unsafe {
        let from = (strip.a as *const U::A).add(strip.first);
        for row in 0..strip.rows {
            U::stage::<S>(from.add(row * strip.row), strip.column, strip.len, to.add(row * distance));
        }
    }
}

/// B in a form of its own, decoded a block of a panel at a time.
pub trait Blocks: Sync {
    /// Writes `steps` steps of a panel, from step `first` on, as the product's B.
    ///
    /// # Safety
    /// `first` is a multiple of `PART`, and `to` has room for `BLOCK` steps.
    unsafe fn decode(&self, panel: usize, first: usize, steps: usize, to: *mut u8);
}

/// Columns in a panel at a level: two vectors.
pub fn panel(level: Level) -> usize {
    2 * level.lanes()
}

/// One multiply: out (M, N) = residual + gate * act(scale * A B + bias).
#[derive(Clone, Copy)]
pub struct Gemm<'a> {
    /// Rows.
    pub m: usize,
    /// Columns.
    pub n: usize,
    /// The inner size.
    pub k: usize,
    /// A's first element.
    pub a: *const u8,
    /// The distance between rows of A in elements.
    pub a_row: usize,
    /// The distance between columns of A in elements.
    pub a_column: usize,
    /// B's first panel.
    pub b: *const u8,
    /// Bytes from panel to panel.
    pub b_panel: usize,
    /// What B is decoded from, in place of `b`.
    pub blocks: Option<&'a dyn Blocks>,
    /// What the sums are multiplied by.
    pub alpha: f32,
    /// What each column's sums are multiplied by besides, up to a whole panel, or null.
    pub column_scale: *const f32,
    /// Where each row of A holds what its sums are multiplied by besides, in bytes from the row's start.
    pub row_scale: Option<usize>,
    /// The scales of groups of K, where B has them.
    pub groups: Groups,
    /// What A's zero points add to the sums.
    pub zeros: Zeros,
    /// Added to each column, or null.
    pub bias: *const f32,
    /// Applied after the bias.
    pub act: Activation,
    /// Of out's shape, broadcast by strides of 0.
    pub gate: Option<View>,
    /// Of out's shape, broadcast by strides of 0.
    pub residual: Option<View>,
    /// The result, its last axis dense.
    pub out: View,
}

// Threads share it; what they may touch was checked.
unsafe impl Send for Gemm<'_> {}
unsafe impl Sync for Gemm<'_> {}

/// The scales of B's groups of K: (N / panel, groups, panel). None where the distance is 0.
#[derive(Clone, Copy)]
pub struct Groups {
    /// The first panel's, then the tile's panel's.
    pub scales: *const f32,
    /// Elements from panel to panel.
    pub distance: usize,
    /// Steps of K in a group.
    pub steps: usize,
    /// The step of K at which a tile's block begins.
    pub first: usize,
}

impl Groups {
    /// Those of a B that has none.
    pub const NONE: Groups = Groups { scales: std::ptr::null(), distance: 0, steps: 0, first: 0 };

    /// Those of a panel's block.
    fn panel(self, column: usize, panel: usize, first: usize) -> Self {
        Self { scales: self.scales.wrapping_add(column / panel * self.distance), first, ..self }
    }
}

/// How sums of codes become sums of what the codes stand for: x - zero, or x + shift - zero where A was shifted.
#[derive(Clone, Copy)]
pub enum Zeros {
    /// They are that already.
    None,
    /// Sums are integers: take zero times each column's sum of B's codes, 24 bits above eight others.
    Integers(*const i32, i32),
    /// Sums are floats: take zero times each column's scaled sum of B's codes.
    Floats(*const f32, i32),
}

impl Zeros {
    /// The sums of a vector of columns from `from` on, for a row with this zero point.
    #[inline(always)]
    unsafe fn apply<S: Simd>(self, sum: S::V, zero: i32, from: usize) -> S::V {
        unsafe {
            match self {
                Zeros::None => sum,
                Zeros::Integers(columns, shift) => {
                    let mut lanes = [0f32; 16];
                    for (i, lane) in lanes.iter_mut().enumerate().take(S::LANES) {
                        *lane = f32::from_bits((columns.add(from + i).read_unaligned() >> 8) as u32);
                    }
                    let times = S::splat(f32::from_bits(zero.wrapping_add(shift).wrapping_neg() as u32));
                    S::float_i32(S::add_i32(sum, S::mul_i32(times, S::load(lanes.as_ptr()))))
                }
                Zeros::Floats(columns, shift) => {
                    let times = S::splat(-(zero.wrapping_add(shift) as f32));
                    S::fma(times, S::load(columns.add(from)), sum)
                }
            }
        }
    }
}

/// The rows and columns of one task, and how rows are staged.
#[derive(Clone, Copy)]
struct Region {
    row: usize,
    rows: usize,
    column: usize,
    columns: usize,
    /// The first column of what the thread will probably do next.
    next: usize,
    /// Whether all blocks of K are staged one after another, instead of each in the place of the last.
    whole: bool,
    /// Whether the scratch memory holds these rows already.
    staged: bool,
}

/// Offsets of one row in out, gate and residual; bytes from A to the row's scale.
pub type Offsets = [usize; 4];

impl Region {
    /// Bytes of scratch memory: offsets of rows, staged rows, a decoded block, partial sums.
    fn scratch(&self, decoded: bool, blocks: usize, panel: usize) -> [usize; 4] {
        let staged = if self.whole { blocks } else { 1 } * self.rows * ROW * 4;
        let decoded = if decoded { BLOCK * panel * 4 } else { 0 };
        let sums = if blocks > 1 { self.rows * self.columns.next_multiple_of(panel) } else { 16 * panel } * 4;
        [(self.rows * size_of::<Offsets>()).next_multiple_of(64), staged.next_multiple_of(64), decoded, sums]
    }
}

/// Runs a multiply whose B is packed for the level.
///
/// `variant` picks one of [`WAYS`] to cut the work: 1 into tasks of half as many columns as by shape, 2 of twice as many, 3
/// with rows staged once for all columns where they are staged again by shape, and the reverse; any other is by shape.
pub fn gemm(cx: &Cx, g: &Gemm, method: Method, variant: u32) -> Result<()> {
    if g.m == 0 || g.n == 0 {
        return Ok(());
    }
    let steps = g.k.div_ceil(method.step(cx.level));
    let blocks = steps.div_ceil(BLOCK).max(1);
    // Blocks of rows depend on the shape alone, so that the order of every sum does.
    let whole = (g.m.min(56) * blocks * ROW <= STAGED) != (variant == 3);
    let most = if whole { (STAGED / (blocks * ROW)).max(1) } else { ROWS };
    let row_blocks = g.m.div_ceil(most);
    let rows = g.m.div_ceil(row_blocks);
    let row_blocks = g.m.div_ceil(rows);
    // Columns: small tasks balance the threads; large ones stage less often, and cost fewer barriers.
    let panel = panel(cx.level);
    let panels = g.n.div_ceil(panel);
    let threads = cx.pool.threads();
    let cost = rows.max(8) * steps * panel / 1024; // of one panel, in about 10 ns
    let least = if whole { (400 / cost.max(1)).max(1) } else { WIDE / panel };
    let tasks = if threads == 1 { 1 } else { (panels / least).clamp(1, threads * if whole { 16 } else { 64 }) };
    let width = panels.div_ceil(tasks).clamp(1, if whole { 1024 } else { 2 * WIDE } / panel);
    let width = match variant {
        1 => width.div_ceil(2),
        2 => (2 * width).min(panels),
        _ => width,
    };
    let column_blocks = panels.div_ceil(width);
    let staged: [AtomicUsize; REMEMBERED] = [const { AtomicUsize::new(usize::MAX) }; REMEMBERED];
    cx.pool.run(row_blocks * column_blocks, &|index, thread| {
        // Where staged rows last, go along the columns; else along the rows, which find B in the last-level cache.
        let place = |index: usize| {
            if whole {
                (index / column_blocks, index % column_blocks)
            } else {
                (index % row_blocks, index / row_blocks)
            }
        };
        let (i, j) = place(index);
        let row = i * rows;
        let column = j * width * panel;
        // Threads take turns, more or less.
        let next = place((index + threads).min(row_blocks * column_blocks - 1)).1 * width * panel;
        let region = Region {
            row,
            rows: rows.min(g.m - row),
            column,
            columns: (width * panel).min(g.n - column),
            next,
            whole,
            staged: whole && staged.get(thread).is_some_and(|s| s.swap(i, Ordering::Relaxed) == i),
        };
        // The first block's sizes serve all, so that memory grows before anything is remembered in it.
        let sizes = Region { rows, columns: width * panel, ..region }.scratch(g.blocks.is_some(), blocks, panel);
        unsafe {
            let scratch = cx.pool.scratch(thread, sizes.iter().sum());
            block(cx.level, g, method, &region, scratch, sizes);
        }
    })
}

/// Runs a multiply within one task, on one thread: `scratch` has `serial_scratch` bytes.
///
/// # Safety
/// As `gemm`.
pub unsafe fn gemm_serial(level: Level, g: &Gemm, method: Method, scratch: *mut u8) {
    if g.m == 0 || g.n == 0 {
        return;
    }
    let blocks = g.k.div_ceil(method.step(level)).div_ceil(BLOCK).max(1);
    for row in (0..g.m).step_by(ROWS) {
        let region =
            Region { row, rows: ROWS.min(g.m - row), column: 0, columns: g.n, next: 0, whole: false, staged: false };
        let sizes = Region { rows: ROWS, ..region }.scratch(g.blocks.is_some(), blocks, panel(level));
        unsafe { block(level, g, method, &region, scratch, sizes) };
    }
}

/// What `gemm_serial` needs.
pub fn serial_scratch(level: Level, n: usize, k: usize) -> usize {
    let region = Region { row: 0, rows: ROWS, column: 0, columns: n, next: 0, whole: false, staged: false };
    region.scratch(false, k.div_ceil(BLOCK).max(1), panel(level)).iter().sum()
}

/// One task.
unsafe fn block(level: Level, g: &Gemm, method: Method, region: &Region, scratch: *mut u8, sizes: [usize; 4]) {
    unsafe {
        let offsets = scratch as *mut Offsets;
        let stage = scratch.add(sizes[0]) as *mut f32;
        let decoded = scratch.add(sizes[0] + sizes[1]);
        let sums = scratch.add(sizes[0] + sizes[1] + sizes[2]) as *mut f32;
        let panel = panel(level);
        let panels = region.columns.div_ceil(panel);
        let step = method.step(level);
        let steps = g.k.div_ceil(step);
        let blocks = steps.div_ceil(BLOCK).max(1);
        // Tiles of nearly equal rows.
        let tiles = region.rows.div_ceil((method.rows)(level.registers()));
        if !region.staged {
            row_offsets(g, region.row, region.rows, offsets);
        }
        // About where a step of a panel is stored, whose length may be padded.
        let stored =
            |column: usize, step: usize| g.b.wrapping_add(column / panel * g.b_panel + g.b_panel * step / steps.max(1));
        for block in 0..blocks {
            let first = block * BLOCK;
            let count = BLOCK.min(steps - first);
            let stage = if region.whole { stage.add(block * region.rows * ROW) } else { stage };
            if !region.staged {
                let k = first * step;
                let strip = Strip {
                    a: g.a,
                    first: region.row * g.a_row + k * g.a_column,
                    row: g.a_row,
                    column: g.a_column,
                    rows: region.rows,
                    len: (count * step).min(g.k - k),
                };
                method.stage(level, strip, ROW, stage);
            }
            let last = block + 1 == blocks;
            // What is decoded for one tile stays in the first-level cache; for many, longer parts cost fewer sums.
            let part = if g.blocks.is_some() && tiles == 1 { PART } else { BLOCK };
            for p in 0..panels {
                let column = region.column + p * panel;
                for done in (0..count.max(1)).step_by(part) {
                    let first = first + done;
                    let count = part.min(count - done);
                    let groups = g.groups.panel(column, panel, first);
                    // The same part of what comes after this panel's block: while the tiles are computed, each has its
                    // share of that fetched into the second-level cache.
                    let next = match (p + 1 < panels, last) {
                        (true, _) => stored(column + panel, first),
                        (false, false) => stored(region.column, first + BLOCK),
                        (false, true) => stored(region.next, done),
                    };
                    let share = (g.b_panel * count / steps.max(1)).div_ceil(tiles);
                    let mut b = g.b.wrapping_add(column / panel * g.b_panel + first * panel * method.bytes);
                    if let Some(blocks) = g.blocks {
                        blocks.decode(column / panel, first, count, decoded);
                        b = decoded;
                    }
                    let mut row = 0;
                    for t in 0..tiles {
                        let end = (t + 1) * region.rows / tiles;
                        let rows = end - row;
                        let sum = if blocks == 1 { sums } else { sums.add((row * panels + p * rows) * panel) };
                        let ahead = next.wrapping_add(t * share);
                        let pace = share.div_ceil(count.max(1));
                        let a = stage.add(row * ROW + done);
                        let add = block > 0 || done > 0;
                        (method.tile)(level, rows, Tile { a, b, steps: count, sums: sum, add, ahead, pace, groups });
                        if last && first + count == steps {
                            finish(level, g, sum, offsets.add(row), rows, column);
                        }
                        row = end;
                    }
                }
            }
        }
    }
}

/// Writes the offsets of rows.
///
/// # Safety
/// `to` has room for them.
pub unsafe fn row_offsets(g: &Gemm, row: usize, rows: usize, to: *mut Offsets) {
    unsafe {
        for (which, view) in [(0, Some(&g.out)), (1, g.gate.as_ref()), (2, g.residual.as_ref())] {
            let Some(view) = view else { continue };
            let stride = view.row_stride();
            for i in 0..rows {
                (*to.add(i))[which] = stride.map_or_else(|| view.row_offset(row + i), |stride| (row + i) * stride);
            }
        }
        if let Some(scale) = g.row_scale {
            for i in 0..rows {
                (*to.add(i))[3] = (row + i) * g.a_row + scale;
            }
        }
    }
}

/// One tile's operands: staged rows, a panel's block and its steps, sums.
#[derive(Clone, Copy)]
pub struct Tile {
    a: *const f32,
    b: *const u8,
    steps: usize,
    sums: *mut f32,
    /// Whether to add to the sums.
    add: bool,
    /// What to fetch into the second-level cache meanwhile, and how many bytes of it in a step.
    ahead: *const u8,
    pace: usize,
    groups: Groups,
}

/// Picks the code for the number of rows.
unsafe fn tile<P: Product>(level: Level, rows: usize, t: Tile) {
    macro_rules! pick {
        ($($rows:literal: $unroll:literal),*) => {
            match rows {
                $($rows => tile_of::<P, $rows, $unroll>(level, t),)*
                _ => unreachable!("tiles have at most so many rows as registers allow"),
            }
        };
    }
    unsafe { pick!(1: 4, 2: 2, 3: 2, 4: 1, 5: 1, 6: 1, 7: 1, 8: 1, 9: 1, 10: 1, 11: 1, 12: 1, 13: 1, 14: 1) }
}

/// Picks the code for the level. Each is a function of its own: inlined side by side, the compiler runs out of
/// registers in some.
unsafe fn tile_of<P: Product, const R: usize, const U: usize>(level: Level, t: Tile) {
    #[cfg(target_arch = "x86_64")]
    #[inline(never)]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn avx2<P: Product, const R: usize, const U: usize>(t: Tile) {
        unsafe { P::accumulate::<crate::simd::Avx2, R, U>(t) }
    }
    #[cfg(target_arch = "x86_64")]
    #[inline(never)]
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
    unsafe fn avx512<P: Product, const R: usize, const U: usize>(t: Tile) {
        unsafe { P::accumulate::<crate::simd::Avx512, R, U>(t) }
    }
    #[cfg(target_arch = "x86_64")]
    #[inline(never)]
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx512vnni,avx512vbmi2")]
    unsafe fn avx512_bf16<P: Product, const R: usize, const U: usize>(t: Tile) {
        unsafe { P::accumulate::<crate::simd::Avx512Bf16, R, U>(t) }
    }
    unsafe {
        match level {
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => avx2::<P, R, U>(t),
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => avx512::<P, R, U>(t),
            #[cfg(target_arch = "x86_64")]
            Level::Avx512Bf16 => avx512_bf16::<P, R, U>(t),
            _ => P::accumulate::<crate::simd::Portable, R, U>(t),
        }
    }
}

/// Sums (R, panel), added to or stored. Few rows take several sums each, or every step would wait for the last.
#[inline(always)]
#[allow(clippy::needless_range_loop, reason = "indices of registers, in step with addresses")]
unsafe fn accumulate<S: Simd, P: Product, const R: usize, const U: usize>(t: Tile) {
    if R > P::rows(S::REGISTERS) || !P::runs::<S>() {
        unreachable!("no level has such a tile");
    }
    let Tile { a, b, steps, sums, add, mut ahead, pace, .. } = t;
    unsafe {
        let zero = S::splat(0.0);
        let mut acc = [[[zero; 2]; R]; U];
        if add {
            for r in 0..R {
                for v in 0..2 {
                    acc[0][r][v] = S::load(sums.add((r * 2 + v) * S::LANES));
                }
            }
        }
        let vector = S::LANES * P::BYTES;
        let mut s = 0;
        while s + U <= steps {
            for u in 0..U {
                let b = b.add((s + u) * 2 * vector);
                prefetch(ahead);
                if vector == 64 {
                    prefetch(ahead.wrapping_add(pace / 2));
                }
                ahead = ahead.wrapping_add(pace);
                let (b0, b1) = (P::load::<S>(b), P::load::<S>(b.add(vector)));
                for r in 0..R {
                    let x = S::splat(*a.add(r * ROW + s + u));
                    acc[u][r][0] = P::mac::<S>(acc[u][r][0], x, b0);
                    acc[u][r][1] = P::mac::<S>(acc[u][r][1], x, b1);
                }
            }
            s += U;
        }
        while s < steps {
            let b = b.add(s * 2 * vector);
            let (b0, b1) = (P::load::<S>(b), P::load::<S>(b.add(vector)));
            for r in 0..R {
                let x = S::splat(*a.add(r * ROW + s));
                acc[0][r][0] = P::mac::<S>(acc[0][r][0], x, b0);
                acc[0][r][1] = P::mac::<S>(acc[0][r][1], x, b1);
            }
            s += 1;
        }
        for r in 0..R {
            for v in 0..2 {
                let mut sum = acc[0][r][v];
                for more in acc.iter().skip(1) {
                    sum = P::add::<S>(sum, more[r][v]);
                }
                S::store(sums.add((r * 2 + v) * S::LANES), sum);
            }
        }
    }
}

/// Sums (R, panel) in f32 of scaled sums by group.
#[inline(always)]
#[allow(clippy::needless_range_loop, reason = "indices of registers, in step with addresses")]
unsafe fn accumulate_groups<S: Simd, P: Product, const R: usize>(t: Tile) {
    if R > Grouped::<P>::rows(S::REGISTERS) || !P::runs::<S>() {
        unreachable!("no level has such a tile");
    }
    let Tile { a, b, steps, sums, add, ahead, pace, groups } = t;
    unsafe {
        let zero = S::splat(0.0);
        let mut total = [[zero; 2]; R];
        if add {
            for r in 0..R {
                for v in 0..2 {
                    total[r][v] = S::load(sums.add((r * 2 + v) * S::LANES));
                }
            }
        }
        let vector = S::LANES * P::BYTES;
        for line in (0..pace * steps).step_by(64) {
            prefetch(ahead.wrapping_add(line));
        }
        let mut group = groups.first / groups.steps;
        let mut s = 0;
        while s < steps {
            let end = ((group + 1) * groups.steps - groups.first).min(steps);
            let mut acc = [[zero; 2]; R];
            while s < end {
                let at = s * 2 * vector;
                let (b0, b1) = (P::load::<S>(b.add(at)), P::load::<S>(b.add(at + vector)));
                for r in 0..R {
                    let x = S::splat(*a.add(r * ROW + s));
                    acc[r][0] = P::mac::<S>(acc[r][0], x, b0);
                    acc[r][1] = P::mac::<S>(acc[r][1], x, b1);
                }
                s += 1;
            }
            for v in 0..2 {
                let scale = S::load(groups.scales.add((group * 2 + v) * S::LANES));
                for r in 0..R {
                    total[r][v] = S::fma(P::float::<S>(acc[r][v]), scale, total[r][v]);
                }
            }
            group += 1;
        }
        for r in 0..R {
            for v in 0..2 {
                S::store(sums.add((r * 2 + v) * S::LANES), total[r][v]);
            }
        }
    }
}

/// Brings a line into the second-level cache; any address will do.
#[inline(always)]
unsafe fn prefetch(p: *const u8) {
    #[cfg(target_arch = "x86_64")]
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T1>(p as *const i8);
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = p;
}

/// Turns a tile's sums into results, in place until they are written: scales and bias, activation, gate, residual.
///
/// # Safety
/// As `gemm`; `sums` holds (rows, panel), `offsets` those of the rows.
pub unsafe fn finish(level: Level, g: &Gemm, sums: *mut f32, offsets: *const Offsets, rows: usize, column: usize) {
    unsafe {
        scale(level, g, sums, offsets, rows, column);
        act_all(level, g.act, sums, rows * panel(level));
        match g.out.dtype {
            DType::F32 => write::<f32>(level, g, sums, offsets, rows, column),
            DType::BF16 => write::<bf16>(level, g, sums, offsets, rows, column),
            _ => write::<f16>(level, g, sums, offsets, rows, column),
        }
    }
}

dispatch!(fn scale(g: &Gemm, sums: *mut f32, offsets: *const Offsets, rows: usize, column: usize) => scale_on);

/// Scales and bias. Columns beyond the last one hold anything.
#[inline(always)]
unsafe fn scale_on<S: Simd>(g: &Gemm, sums: *mut f32, offsets: *const Offsets, rows: usize, column: usize) {
    unsafe {
        for v in 0..2 {
            let from = column + v * S::LANES;
            if from >= g.n {
                break;
            }
            let mut alpha = S::splat(g.alpha);
            if !g.column_scale.is_null() {
                alpha = S::mul(alpha, S::load(g.column_scale.add(from)));
            }
            let width = S::LANES.min(g.n - from);
            let bias = if g.bias.is_null() { S::splat(0.0) } else { load::<S, f32>(g.bias.add(from), width) };
            for r in 0..rows {
                let at = sums.add((r * 2 + v) * S::LANES);
                let mut sum = S::load(at);
                if g.row_scale.is_some() {
                    let scale = g.a.add((*offsets.add(r))[3]) as *const f32;
                    sum = g.zeros.apply::<S>(sum, (scale.add(1) as *const i32).read_unaligned(), from);
                    sum = S::mul(sum, S::splat(scale.read_unaligned()));
                }
                S::store(at, S::fma(sum, alpha, bias));
            }
        }
    }
}

dispatch! {
    fn write<E: Element>(g: &Gemm, sums: *const f32, offsets: *const Offsets, rows: usize, column: usize) => write_on
}

/// Gate, residual, and the result.
#[inline(always)]
unsafe fn write_on<S: Simd, E: Element>(
    g: &Gemm,
    sums: *const f32,
    offsets: *const Offsets,
    rows: usize,
    column: usize,
) {
    unsafe {
        for v in 0..2 {
            let from = column + v * S::LANES;
            if from >= g.n {
                break;
            }
            let width = S::LANES.min(g.n - from);
            for r in 0..rows {
                let at = &*offsets.add(r);
                let mut y = S::load(sums.add((r * 2 + v) * S::LANES));
                if let Some(gate) = &g.gate {
                    y = S::mul(y, columns::<S, E>(gate, at[1], from, width));
                }
                if let Some(residual) = &g.residual {
                    y = S::add(y, columns::<S, E>(residual, at[2], from, width));
                }
                let to = g.out.at::<E>(at[0] + from);
                if width == S::LANES {
                    E::store::<S>(to, y);
                } else {
                    E::store_n::<S>(to, y, width);
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn load<S: Simd, E: Element>(p: *const E, width: usize) -> S::V {
    unsafe { if width == S::LANES { E::load::<S>(p) } else { E::load_n::<S>(p, width) } }
}

/// A vector of a row of a view of any stride.
#[inline(always)]
unsafe fn columns<S: Simd, E: Element>(view: &View, row: usize, from: usize, width: usize) -> S::V {
    unsafe {
        let step = view.strides[view.rank - 1];
        load_step::<S, E>(view.at::<E>(row + from * step), step, width)
    }
}
