//! Weights that are multiplied as floats: by x of floats, or by rows of fp8.
//!
//! The codes stay packed in memory. They become floats, or pairs of bf16 where the CPU multiplies those and x is in them
//! (all codes are exact in bf16, less their zero point too), a block at a time for many rows. The scale of a whole row of
//! the weight waits for the epilogue. The scales of groups are applied to the block's floats; beside pairs, in which
//! they would be rounded, to the sums of each group.

use super::few_digits::Digits;
use super::few_float::{Split, Unmoved};
use super::*;
use crate::codes::{CHUNK, Codec, Codes, E4m3, E5m2, Int4, Int8, Small, Table, pieces};
use crate::dispatch;
use crate::gemm::{
    Blocks, FloatPairs, Floats, Fp8Floats, Fp8Pairs, Gemm, Grouped, Groups, Method, Pairs, Stored, Units, gemm, panel,
};
use half::{bf16, f16};

/// A packed weight as a level reads it: panels of chunks of codes, each panel's scales, group by group, and its zero
/// points likewise.
pub(super) struct Packed {
    level: Level,
    pub(super) weight: Weight,
    k: usize,
    codes: *const u8,
    scales: *const f32,
    /// Null where there are none.
    zeros: *const i8,
    pub(super) table: Table,
    /// Whether blocks are decoded to pairs of bf16.
    pub(super) pairs: bool,
}

// Threads share it; what they may touch was checked.
unsafe impl Sync for Packed {}

/// What stands between a code and the value that is multiplied.
enum Affine {
    /// Nothing, or what the epilogue applies.
    None,
    /// One scale and zero point of each column in a chunk.
    Chunk,
    /// They may change with every place.
    Place,
}

/// Whether scales and zero points are the same in all of a chunk.
fn chunked(weight: &Weight, k: usize) -> bool {
    weight.group == k || weight.group.is_multiple_of(CHUNK)
}

impl Packed {
    fn new(level: Level, s: &Shape, packed: *mut u8, zero: bool, pairs: bool) -> Self {
        let Parts { codes, scales, zeros, .. } = Parts::of(s, packed);
        let zeros = if zero { zeros } else { std::ptr::null() };
        Self { level, weight: s.weight, k: s.k, codes, scales, zeros, table: Table::new(&s.weight), pairs }
    }

    /// Whether each column has one scale, which the epilogue applies.
    fn by_column(&self) -> bool {
        self.weight.group == self.k
    }

    fn affine(&self) -> Affine {
        if (self.by_column() || self.pairs) && self.zeros.is_null() {
            Affine::None
        } else if chunked(&self.weight, self.k) {
            Affine::Chunk
        } else {
            Affine::Place
        }
    }

    pub(super) fn has_zeros(&self) -> bool {
        !self.zeros.is_null()
    }

    /// Groups of a row, at least one.
    pub(super) fn groups(&self) -> usize {
        self.weight.groups(self.k).max(1)
    }

    /// The codes of a panel from a place of K on that starts a chunk.
    pub(super) unsafe fn chunk(&self, panel: usize, width: usize, k: usize) -> *const u8 {
        let columns = self.k.next_multiple_of(64);
        unsafe { self.codes.add((panel * columns + k) * width * self.weight.bits() / 8) }
    }

    /// The scale of a group in a panel's vector, 1 where the epilogue applies it, and its zero point.
    #[inline(always)]
    pub(super) unsafe fn group<S: Codes>(&self, panel: usize, v: usize, group: usize) -> (S::V, S::V) {
        unsafe {
            let at = ((panel * self.groups() + group) * 2 + v) * S::LANES;
            let scale = if self.by_column() { S::splat(1.0) } else { S::load(self.scales.add(at)) };
            (scale, if self.zeros.is_null() { S::splat(0.0) } else { S::integers(self.zeros.add(at) as *const u8) })
        }
    }

    /// The same for a place of K, or one beyond it.
    #[inline(always)]
    unsafe fn group_of<S: Codes>(&self, panel: usize, v: usize, k: usize) -> (S::V, S::V) {
        unsafe { self.group::<S>(panel, v, (k / self.weight.group).min(self.groups() - 1)) }
    }
}

/// Names the codec of a weight's codes in an expression.
macro_rules! with_codec {
    ($weight:expr, $codec:ident => $body:expr) => {
        match ($weight.format, $weight.bits()) {
            (Format::Int8 | Format::SparseInt8, _) => with_codec!(@ Int8, $codec => $body),
            (Format::Int4, _) => with_codec!(@ Int4, $codec => $body),
            (_, 8) => with_codec!(@ Small<8>, $codec => $body),
            (_, 7) => with_codec!(@ Small<7>, $codec => $body),
            (_, 6) => with_codec!(@ Small<6>, $codec => $body),
            (_, 5) => with_codec!(@ Small<5>, $codec => $body),
            (_, 4) => with_codec!(@ Small<4>, $codec => $body),
            _ => with_codec!(@ Small<3>, $codec => $body),
        }
    };
    (@ $type:ty, $codec:ident => $body:expr) => {{
        type $codec = $type;
        $body
    }};
}
pub(super) use with_codec;

/// Repeats a block for every step of a chunk, as a constant where a level has registers, so that shifts are by constants.
macro_rules! steps {
    ($simd:ident, $step:ident => $body:block) => {
        if $simd::REGISTERS < 16 {
            #[allow(non_snake_case, reason = "a constant below")]
            for $step in 0..CHUNK / 2 {
                $body
            }
        } else {
            steps!(@ $step $body 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15)
        }
    };
    (@ $step:ident $body:block $($n:literal)*) => {{
        $({
            const $step: usize = $n;
            $body
        })*
    }};
}
pub(super) use steps;

impl Blocks for Packed {
    unsafe fn decode(&self, panel: usize, first: usize, steps: usize, to: *mut u8) {
        let to = to as *mut f32;
        unsafe {
            with_codec!(self.weight, C => if self.pairs {
                decode::<C, 2>(self.level, self, panel, first, steps, to)
            } else {
                decode::<C, 1>(self.level, self, panel, first, steps, to)
            })
        }
    }
}

dispatch!(fn decode<C: Codec; STEP>(w: &Packed, panel: usize, first: usize, steps: usize, to: *mut f32) => decode_on);

#[inline(always)]
unsafe fn decode_on<S: Codes, C: Codec, const STEP: usize>(
    w: &Packed,
    panel: usize,
    first: usize,
    steps: usize,
    to: *mut f32,
) {
    if STEP == 2 && !S::BF16_DOT {
        unreachable!("pairs are for levels that multiply them");
    }
    unsafe {
        let table = S::table(&w.table);
        let width = 2 * S::LANES;
        for c in 0..(steps * STEP).div_ceil(CHUNK) {
            let k = first * STEP + c * CHUNK;
            let chunk = w.chunk(panel, width, k);
            let to = to.add(c * CHUNK / STEP * width);
            match w.affine() {
                Affine::None if STEP == 2 => steps!(S, PLACE => {
                    for v in 0..2 {
                        S::store(to.add((PLACE * 2 + v) * S::LANES), C::pairs::<S>(table, chunk, v, PLACE));
                    }
                }),
                Affine::None => steps!(S, PLACE => {
                    for v in 0..2 {
                        let (even, odd) = C::values::<S>(table, chunk, v, PLACE);
                        store::<S, STEP>(to, v, PLACE, even, odd);
                    }
                }),
                Affine::Chunk => {
                    for v in 0..2 {
                        let (scale, zero) = w.group_of::<S>(panel, v, k);
                        steps!(S, PLACE => {
                            let (even, odd) = C::values::<S>(table, chunk, v, PLACE);
                            let (mut even, mut odd) = (S::sub(even, zero), S::sub(odd, zero));
                            if STEP == 1 {
                                (even, odd) = (S::mul(even, scale), S::mul(odd, scale));
                            }
                            store::<S, STEP>(to, v, PLACE, even, odd);
                        });
                    }
                }
                Affine::Place if STEP == 2 => unreachable!("pairs are of one group"),
                Affine::Place => {
                    for (step, v) in (0..CHUNK / 2).flat_map(|step| [(step, 0), (step, 1)]) {
                        let (even, odd) = C::values::<S>(table, chunk, v, step);
                        let (even_scale, even_zero) = w.group_of::<S>(panel, v, k + 2 * step);
                        let (odd_scale, odd_zero) = w.group_of::<S>(panel, v, k + 2 * step + 1);
                        let even = S::mul(S::sub(even, even_zero), even_scale);
                        let odd = S::mul(S::sub(odd, odd_zero), odd_scale);
                        store::<S, STEP>(to, v, step, even, odd);
                    }
                }
            }
        }
    }
}

/// Stores two places of a chunk as the product reads them.
#[inline(always)]
unsafe fn store<S: Codes, const STEP: usize>(to: *mut f32, v: usize, step: usize, even: S::V, odd: S::V) {
    unsafe {
        if STEP == 2 {
            S::store(to.add((step * 2 + v) * S::LANES), S::pairs(even, odd));
        } else {
            S::store(to.add((step * 4 + v) * S::LANES), even);
            S::store(to.add((step * 4 + 2 + v) * S::LANES), odd);
        }
    }
}

/// `quantized_linear` of floats or of rows of fp8.
pub(super) fn run(cx: &Cx, args: &Args, s: Shape, act: Activation) -> Result<()> {
    linear::aligned(&args.view(1), DType::F32)?;
    let pairs = pairs(cx.level, &s, args.out().rows());
    match (s.rows, args.out().dtype) {
        (Rows::E4m3, _) if pairs => multiply::<Fp8Pairs<E4m3>>(cx, args, s, act),
        (Rows::E4m3, _) => multiply::<Fp8Floats<E4m3>>(cx, args, s, act),
        (Rows::E5m2, _) if pairs => multiply::<Fp8Pairs<E5m2>>(cx, args, s, act),
        (Rows::E5m2, _) => multiply::<Fp8Floats<E5m2>>(cx, args, s, act),
        (_, DType::F32) => multiply::<Floats<f32>>(cx, args, s, act),
        (_, DType::BF16) if pairs => multiply::<FloatPairs>(cx, args, s, act),
        (_, DType::BF16) => multiply::<Floats<bf16>>(cx, args, s, act),
        (_, _) => multiply::<Floats<f16>>(cx, args, s, act),
    }
}

/// The most rows that are multiplied by codes in registers: none where there are few registers.
fn few_rows(level: Level) -> usize {
    match level.registers() {
        32 => few::ROWS,
        16 => 8,
        _ => 0,
    }
}

/// Whether floats that are exact in bf16 are multiplied in pairs.
fn pairs(level: Level, s: &Shape, m: usize) -> bool {
    // In registers int8 becomes f32 sooner than bf16, which pays for few rows.
    level == Level::Avx512Bf16 && chunked(&s.weight, s.k) && (s.weight.format != Format::Int8 || m > 4)
}

fn multiply<U: Units>(cx: &Cx, args: &Args, s: Shape, act: Activation) -> Result<()> {
    let step = U::step(cx.level);
    let packed = Packed::new(cx.level, &s, args.view(1).ptr, args.i32(7) != 0, step == 2);
    let g = Gemm {
        b: packed.codes,
        b_panel: panel(cx.level) * s.k.next_multiple_of(64) * s.weight.bits() / 8,
        blocks: Some(&packed),
        column_scale: if packed.by_column() { packed.scales } else { std::ptr::null() },
        row_scale: (s.rows != Rows::None).then(|| rows_scale(s.k)),
        groups: Groups {
            scales: packed.scales,
            distance: s.weight.groups(s.k) * panel(cx.level),
            steps: s.weight.group / step,
            first: 0,
        },
        ..linear::multiply_of(args, s.n, s.k, act)
    };
    let method = match (packed.pairs, packed.by_column()) {
        (false, _) => Method::of::<U, Stored<f32>>(),
        (true, true) => Method::of::<U, Pairs>(),
        (true, false) => Method::of::<U, Grouped<Pairs>>(),
    };
    if g.m <= few_rows(cx.level) && chunked(&s.weight, s.k) {
        return few_rows_of(cx, &g, method, &packed, args.params[9]);
    }
    gemm(cx, &g, method, args.params[9])
}

/// The most rows of two parts each: of more, adding both parts' products takes longer than widening values once.
const SPLIT: usize = 4;

/// Few rows, in the way that suits the codes.
fn few_rows_of(cx: &Cx, g: &Gemm, method: Method, packed: &Packed, variant: u32) -> Result<()> {
    let best = cx.level == Level::Avx512Bf16;
    match packed.weight.bits() {
        _ if packed.pairs || packed.weight.format == Format::Int8 => few::few(cx, g, method, packed, variant),
        4 if best => few::few(cx, g, method, &Digits::new(packed, g.k), variant),
        // Only int4 has zero points, whatever a program says.
        _ if packed.has_zeros() => few::few(cx, g, method, packed, variant),
        8 => few::few(cx, g, method, &Unmoved(packed), variant),
        _ if best && g.m <= SPLIT => few::few(cx, g, method, &Split(packed), variant),
        _ => few::few(cx, g, method, packed, variant),
    }
}

/// Stored codes, scales and zero points to panels.
pub(super) fn pack(cx: &Cx, args: &Args, s: &Shape) -> Result<()> {
    let (codes, scale, zero, out) = (args.view(0), args.view(1), args.optional(2), args.out());
    linear::aligned(&out, DType::F32)?;
    let width = panel(cx.level);
    let known = s.weight.groups(s.k);
    let groups = known.max(1);
    let columns = s.k.next_multiple_of(64);
    let bytes = CHUNK * width * s.weight.bits() / 8;
    let parts = Parts::of(s, out.ptr);
    unsafe { std::ptr::write_bytes(parts.words, 0, s.n.next_multiple_of(64)) };
    cx.pool.run(s.n.next_multiple_of(64) / width, &|panel, _| {
        let (codes, parts, out) = (&codes, &parts, &out);
        let mut places = [[0u8; 32]; CHUNK];
        for c in 0..columns / CHUNK {
            for column in 0..width {
                let row = panel * width + column;
                let mut chunk = [0; CHUNK];
                if row < s.n {
                    unsafe { stored_chunk(s, codes.ptr.add(row * codes.strides[0]), c, &mut chunk) };
                }
                for (place, code) in places.iter_mut().zip(chunk) {
                    place[column] = code;
                }
            }
            let chunk = unsafe {
                let at = (panel * (columns / CHUNK) + c) * bytes;
                std::slice::from_raw_parts_mut(out.ptr.add(at), bytes)
            };
            pack_chunk(&s.weight, &places, width, chunk);
        }
        for (group, column) in (0..groups).flat_map(|group| (0..width).map(move |column| (group, column))) {
            let row = panel * width + column;
            let at = (panel * groups + group) * width + column;
            let from = row * known + group;
            let inside = row < s.n && group < known;
            unsafe {
                *parts.scales.add(at) = match inside {
                    true if has_special(s, codes.ptr.add(row * codes.strides[0]), group) => f32::NAN,
                    true => scale.get(from),
                    false => 0.0,
                };
                if let Some(zero) = zero {
                    *parts.zeros.add(at) = if inside { *zero.at::<i8>(from) } else { 0 };
                }
            }
        }
    })
}

/// Whether a group of a stored row has an infinity or a NaN, which makes no sum of it a number: its scale says so, as
/// not every way to multiply knows such codes.
unsafe fn has_special(s: &Shape, row: *const u8, group: usize) -> bool {
    let finite = match s.weight.format {
        Format::E4m3 => 0x7e,
        Format::E5m2 => 0x7b,
        _ => return false,
    };
    let codes = unsafe { std::slice::from_raw_parts(row.add(group * s.weight.group), s.weight.group) };
    codes.iter().any(|code| code & 0x7f > finite)
}

/// The codes of a chunk of a stored row, zeros beyond K.
unsafe fn stored_chunk(s: &Shape, row: *const u8, chunk: usize, to: &mut [u8; CHUNK]) {
    let bits = s.weight.bits();
    // A chunk of any width starts with a byte.
    let first = chunk * CHUNK * bits / 8;
    let mut bytes = [0u8; CHUNK + 8];
    let known = (CHUNK * bits / 8).min(s.weight.row_bytes(s.k).saturating_sub(first));
    unsafe { std::ptr::copy_nonoverlapping(row.wrapping_add(first), bytes.as_mut_ptr(), known) };
    for (i, code) in to.iter_mut().enumerate() {
        if chunk * CHUNK + i < s.k {
            let at = i * bits;
            let window = u16::from_le_bytes([bytes[at / 8], bytes[at / 8 + 1]]);
            *code = (window >> (at % 8)) as u8 & (0xff >> (8 - bits));
        }
    }
}

/// The codes of a chunk, place by place, to its registers.
fn pack_chunk(weight: &Weight, places: &[[u8; 32]; CHUNK], width: usize, to: &mut [u8]) {
    if weight.format == Format::Int8 {
        for (to, place) in to.chunks_exact_mut(width).zip(places) {
            to.copy_from_slice(&place[..width]);
        }
        return;
    }
    let mut registers = [[0u32; 32]; 8];
    for (step, pair) in places.chunks_exact(2).enumerate() {
        for piece in pieces(weight.bits(), step) {
            let lanes = &mut registers[piece.register];
            for (half, place) in [0, 16].into_iter().zip(pair) {
                for (lane, &code) in lanes.iter_mut().zip(place) {
                    *lane |= (code as u32 >> piece.from & ((1 << piece.width) - 1)) << (half + piece.at);
                }
            }
        }
    }
    for (to, lanes) in to.chunks_exact_mut(4 * width).zip(registers) {
        for (to, lane) in to.chunks_exact_mut(4).zip(lanes) {
            to.copy_from_slice(&lane.to_le_bytes());
        }
    }
}
