//! Products of integers: rows of int8 by weights of int8, int4 and 2:4 sparse int8.
//!
//! A packed weight lies in the panels of the matrix multiply, a step of K after another: two or four codes of each
//! column in one step. Codes of int8 lie as they are. Codes of int4 lie with 8 added, two steps in the halves of the
//! same bytes. Of each four sparse ones lie the first kept values of all columns, the second ones, and their places; with
//! VNNI, for each vector of columns their kept values, two side by side, and a bit for each value of the four that is
//! kept. What is not read as it lies is decoded to int8 or i16 by blocks, once for all tiles of rows, or for few rows in
//! registers.
//!
//! After the codes: scales (N / panel, groups, panel), and a word for each column. With one group the word is the sum of
//! its codes without their zero points, in 24 bits above the zero point; with more their scaled sum. Then the zero points
//! in a byte each, in the order of the scales, if there are any.

use super::few::few;
use super::{Args, Parts, Shape, few_integer};
use crate::codes::Codes;
use crate::dispatch;
use crate::error::Result;
use crate::gemm::{Blocks, Bytes, Gemm, Grouped, Groups, Integers, Method, Units, VNNI_SHIFT, Zeros, gemm, panel};
use crate::level::Level;
use crate::ops::Cx;
use crate::quant::rows_scale;
use crate::schema::{Activation, Format};
use crate::view::View;
use std::cmp::Ordering;

/// The most rows that are multiplied by codes in registers.
const FEW: usize = 8;

/// Codes that are unpacked at a time: a group is a multiple of them, or the whole row.
pub(super) const CHUNK: usize = 32;

/// Where the parts of a packed weight lie.
#[derive(Clone, Copy)]
pub(super) struct Layout {
    pub(super) shape: Shape,
    level: Level,
    /// Columns in a panel, and elements of K in a step.
    width: usize,
    step: usize,
    /// Whether a code has a zero point taken from it.
    pub(super) zero: bool,
    pub(super) groups: usize,
    parts: Parts,
    /// Bytes of a panel's codes.
    panel_codes: usize,
}

impl Layout {
    fn new(level: Level, shape: Shape, zero: bool, packed: &View) -> Self {
        let width = panel(level);
        Self {
            shape,
            level,
            width,
            step: Bytes::step(level),
            zero,
            groups: shape.weight.groups(shape.k).max(1),
            parts: Parts::of(&shape, packed.ptr),
            panel_codes: width * shape.k.next_multiple_of(64) * shape.weight.bits() / 8,
        }
    }

    /// The packed columns, those beyond N included.
    fn columns(&self) -> usize {
        self.shape.n.next_multiple_of(64)
    }

    /// The codes of a panel from a step of K on.
    pub(super) fn panel(&self, panel: usize, first: usize) -> *mut u8 {
        let at = panel * self.panel_codes + self.width * first * self.step * self.shape.weight.bits() / 8;
        self.parts.codes.wrapping_add(at)
    }

    /// The scales of a panel's group.
    pub(super) fn scales(&self, panel: usize, group: usize) -> *mut f32 {
        self.parts.scales.wrapping_add((panel * self.groups + group) * self.width)
    }

    /// The zero points of a panel's group, where there are any.
    pub(super) fn zeros(&self, panel: usize, group: usize) -> *mut i8 {
        self.parts.zeros.wrapping_add((panel * self.groups + group) * self.width)
    }

    /// Whether codes are multiplied as they lie.
    fn is_plain(&self) -> bool {
        self.level == Level::Avx512Bf16 && self.shape.weight.format == Format::Int8
    }

    /// The word of a column that has one group: a sum of at most 65536 codes takes 24 bits.
    fn word(sum: i32, zero: i8) -> i32 {
        sum << 8 | zero as u8 as i32
    }
}

/// `quantized_linear` of int8 rows.
pub(super) fn run(cx: &Cx, args: &Args, s: Shape, act: Activation) -> Result<()> {
    let layout = Layout::new(cx.level, s, args.params[7] != 0, &args.view(1));
    let shift = if cx.level == Level::Avx512Bf16 { VNNI_SHIFT } else { 0 };
    let grouped = layout.groups > 1;
    let g = Gemm {
        b_panel: layout.panel_codes,
        blocks: if layout.is_plain() { None } else { Some(&layout) },
        column_scale: if grouped { std::ptr::null() } else { layout.parts.scales },
        row_scale: Some(rows_scale(s.k)),
        groups: Groups {
            scales: layout.parts.scales,
            distance: layout.groups * layout.width,
            steps: s.weight.group / layout.step,
            first: 0,
        },
        zeros: if grouped {
            Zeros::Floats(layout.parts.words as *const f32, shift)
        } else {
            Zeros::Integers(layout.parts.words, shift)
        },
        ..super::linear::multiply_of(args, s.n, s.k, act)
    };
    let method = if grouped { Method::of::<Bytes, Grouped<Integers>>() } else { Method::of::<Bytes, Integers>() };
    if g.m <= FEW && cx.level == Level::Avx512Bf16 && !layout.is_plain() {
        return few(cx, &g, method, &layout, args.params[9]);
    }
    gemm(cx, &g, method, args.params[9])
}

impl Blocks for Layout {
    unsafe fn decode(&self, panel: usize, first: usize, steps: usize, to: *mut u8) {
        unsafe { decode(self.level, self, panel, first, steps, to) }
    }
}

dispatch!(fn decode(layout: &Layout, panel: usize, first: usize, steps: usize, to: *mut u8) => decode_on);

#[inline(always)]
unsafe fn decode_on<S: Codes>(layout: &Layout, panel: usize, first: usize, steps: usize, to: *mut u8) {
    unsafe {
        if S::VNNI {
            few_integer::decode::<S>(layout, panel, first, steps, to);
        } else if S::LANES == 16 {
            decode_as::<32, 64>(layout, panel, first, steps, to as *mut i16);
        } else {
            decode_as::<16, 32>(layout, panel, first, steps, to as *mut i16);
        }
    }
}

/// Decodes to i16, of which a step has `W` in `P` columns.
#[inline(always)]
unsafe fn decode_as<const P: usize, const W: usize>(
    layout: &Layout,
    panel: usize,
    first: usize,
    steps: usize,
    to: *mut i16,
) {
    unsafe {
        let from = layout.panel(panel, first);
        match layout.shape.weight.format {
            Format::Int4 => decode_int4::<P, W>(layout, panel, first, steps, to),
            Format::SparseInt8 => decode_sparse::<P, W>(from, steps * W / (4 * P), to),
            _ => {
                for i in 0..steps * W {
                    *to.add(i) = *(from.add(i) as *const i8) as i16;
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn decode_int4<const P: usize, const W: usize>(
    layout: &Layout,
    panel: usize,
    first: usize,
    steps: usize,
    to: *mut i16,
) {
    unsafe {
        let group = layout.shape.weight.group / (W / P);
        let mut less = [8; W];
        let mut s = 0;
        while s < steps {
            let mut end = steps;
            if layout.zero {
                let index = if layout.groups > 1 { (first + s) / group } else { 0 };
                if layout.groups > 1 {
                    end = ((index + 1) * group - first).min(steps);
                }
                for (column, less) in less.chunks_exact_mut(W / P).enumerate() {
                    less.fill(*layout.zeros(panel, index).add(column) as i16 + 8);
                }
            }
            let from = layout.panel(panel, first + s);
            let to = to.add(s * W);
            for pair in 0..(end - s).div_ceil(2) {
                for (i, &less) in less.iter().enumerate() {
                    let byte = *from.add(pair * W + i);
                    *to.add(2 * pair * W + i) = (byte & 15) as i16 - less;
                    *to.add((2 * pair + 1) * W + i) = (byte >> 4) as i16 - less;
                }
            }
            s = end;
        }
    }
}

/// Decodes fours of K.
#[inline(always)]
unsafe fn decode_sparse<const P: usize, const W: usize>(from: *const u8, fours: usize, to: *mut i16) {
    let wide = |code: u8| code as i8 as i16 as u16 as u64;
    unsafe {
        for four in 0..fours {
            let from = from.add(four * P * 5 / 2);
            let to = to.add(four * 4 * P);
            for i in 0..P / 2 {
                let places = *from.add(2 * P + i);
                for (column, places) in [(i, places), (i + P / 2, places >> 4)] {
                    let [a, b] = [*from.add(column), *from.add(P + column)];
                    let four = wide(a) << (16 * (places & 3)) | wide(b) << (16 * (places >> 2 & 3));
                    let to = to.add(column * (W / P));
                    *(to as *mut u32) = four as u32;
                    *(to.add(W) as *mut u32) = (four >> 32) as u32;
                }
            }
        }
    }
}

/// `pack_quantized` for int8 rows.
pub(super) fn pack(cx: &Cx, args: &Args, s: Shape) -> Result<()> {
    let (codes, scale, zero, out) = (args.view(0), args.view(1), args.optional(2), args.out());
    let layout = Layout::new(cx.level, s, zero.is_some(), &out);
    let source = Source { codes, scale, zero };
    cx.pool.run(layout.columns() / layout.width, &|panel, _| unsafe { pack_panel(&layout, &source, panel) })
}

/// The stored form of a weight.
struct Source {
    codes: View,
    scale: View,
    zero: Option<View>,
}

// Threads share it; what they may touch was checked.
unsafe impl Sync for Source {}

impl Source {
    /// The scale and zero point of a row's group; of a row beyond the last nothing.
    unsafe fn group(&self, row: usize, group: usize) -> (f32, i8) {
        let [rows, groups] = [self.scale.dims[0], self.scale.dims[1]];
        if row >= rows || group >= groups {
            return (0.0, 0);
        }
        let at = row * groups + group;
        unsafe { (self.scale.get(at), self.zero.map_or(0, |zero| *zero.at::<i8>(at))) }
    }

    /// Codes of a row from `k` on, zeros beyond its end; with the places of sparse ones, a byte for each two fours.
    unsafe fn chunk(&self, s: &Shape, row: usize, k: usize) -> Chunk {
        let mut chunk = Chunk { codes: [0; CHUNK], places: [0; CHUNK / 8] };
        if row >= s.n {
            return chunk;
        }
        let count = CHUNK.min(s.k.saturating_sub(k));
        unsafe {
            let from = self.codes.at::<u8>(row * self.codes.strides[0]) as *const u8;
            match s.weight.format {
                Format::Int4 => {
                    for (i, code) in chunk.codes.iter_mut().enumerate().take(count) {
                        let byte = *from.add((k + i) / 2);
                        *code = if i % 2 == 0 { (byte << 4) as i8 >> 4 } else { byte as i8 >> 4 };
                    }
                }
                Format::SparseInt8 => {
                    std::ptr::copy_nonoverlapping(from.add(k / 2) as *const i8, chunk.codes.as_mut_ptr(), count / 2);
                    std::ptr::copy_nonoverlapping(from.add(s.k / 2 + k / 8), chunk.places.as_mut_ptr(), count / 8);
                    for four in 0..count / 4 {
                        // Of two values in one place the first counts.
                        let places = chunk.places(four);
                        if places & 3 == places >> 2 {
                            chunk.codes[2 * four + 1] = 0;
                        }
                    }
                }
                _ => std::ptr::copy_nonoverlapping(from.add(k) as *const i8, chunk.codes.as_mut_ptr(), count),
            }
        }
        chunk
    }
}

/// Some codes of a row; the kept ones and their places where it is sparse.
struct Chunk {
    codes: [i8; CHUNK],
    places: [u8; CHUNK / 8],
}

impl Chunk {
    /// The places of a four's kept values.
    fn places(&self, four: usize) -> u8 {
        self.places[four / 2] >> (4 * (four % 2)) & 15
    }

    /// A four's kept values in the order of their places, and a bit for each place.
    fn kept(&self, four: usize) -> ([i8; 2], u8) {
        let [a, b] = [self.codes[2 * four], self.codes[2 * four + 1]];
        let (first, second) = (self.places(four) & 3, self.places(four) >> 2);
        let bits = 1 << first | 1 << second;
        match first.cmp(&second) {
            Ordering::Less => ([a, b], bits),
            Ordering::Greater => ([b, a], bits),
            // Some other place has the 0.
            Ordering::Equal if first == 3 => ([0, a], bits | 1),
            Ordering::Equal => ([a, 0], bits | 8),
        }
    }
}

unsafe fn pack_panel(layout: &Layout, source: &Source, panel: usize) {
    let (s, width, step) = (&layout.shape, layout.width, layout.step);
    // Sums of codes without zero points by column, and scaled.
    let (mut sums, mut scaled) = ([0i32; 32], [0f64; 32]);
    unsafe {
        for k in (0..s.k.next_multiple_of(64)).step_by(CHUNK) {
            let group = if layout.groups > 1 { k / s.weight.group } else { 0 };
            for c in 0..width {
                let row = panel * width + c;
                let chunk = source.chunk(s, row, k);
                let (scale, zero) = source.group(row, group);
                let known = if row < s.n { CHUNK.min(s.k.saturating_sub(k)) as i32 } else { 0 };
                let sum = chunk.codes.iter().map(|&code| code as i32).sum::<i32>() - zero as i32 * known;
                sums[c] += sum;
                scaled[c] += sum as f64 * scale as f64;
                let to = layout.panel(panel, k / step);
                match s.weight.format {
                    Format::Int4 => {
                        for (i, pair) in chunk.codes.chunks_exact(2 * step).enumerate() {
                            for j in 0..step {
                                let [low, high] = [pair[j], pair[step + j]].map(|code| (code + 8) as u8);
                                *to.add((i * width + c) * step + j) = low | high << 4;
                            }
                        }
                    }
                    Format::SparseInt8 if layout.level == Level::Avx512Bf16 => {
                        for four in 0..CHUNK / 4 {
                            let to = to.add(four * width * 5 / 2 + c / 16 * 40);
                            let (codes, kept) = chunk.kept(four);
                            std::ptr::copy_nonoverlapping(codes.as_ptr() as *const u8, to.add(c % 16 * 2), 2);
                            let (at, up) = (32 + c % 16 / 2, 4 * (c % 2));
                            let before = if up == 0 { 0 } else { *to.add(at) };
                            *to.add(at) = before | kept << up;
                        }
                    }
                    Format::SparseInt8 => {
                        for four in 0..CHUNK / 4 {
                            let to = to.add(four * width * 5 / 2);
                            *to.add(c) = chunk.codes[2 * four] as u8;
                            *to.add(width + c) = chunk.codes[2 * four + 1] as u8;
                            let (at, up) = (c % (width / 2), 4 * (c / (width / 2)));
                            let before = if up == 0 { 0 } else { *to.add(2 * width + at) };
                            *to.add(2 * width + at) = before | chunk.places(four) << up;
                        }
                    }
                    _ => {
                        for (i, codes) in chunk.codes.chunks_exact(step).enumerate() {
                            std::ptr::copy_nonoverlapping(
                                codes.as_ptr() as *const u8,
                                to.add((i * width + c) * step),
                                step,
                            );
                        }
                    }
                }
            }
        }
        for c in 0..width {
            for group in 0..layout.groups {
                let (scale, zero) = source.group(panel * width + c, group);
                layout.scales(panel, group).add(c).write_unaligned(scale);
                if layout.zero {
                    *layout.zeros(panel, group).add(c) = zero;
                }
            }
            let word = if layout.groups > 1 {
                (scaled[c] as f32).to_bits() as i32
            } else {
                Layout::word(sums[c], source.group(panel * width + c, 0).1)
            };
            layout.parts.words.add(panel * width + c).write_unaligned(word);
        }
    }
}
