//! Codes of quantized weights as vectors: from the planes in which they are packed to floats.
//!
//! A chunk is 32 values of K of one panel. A four-byte lane is a column; its lower half holds even places of K and its
//! upper half odd ones, as a pair of bf16 does. Codes of B bits take B registers of each of the panel's two vectors, which
//! lie by turns: a half holds as many codes as fit, the first places lowest, so that one shift brings a code to where
//! tables are looked up. What is left of the halves of all registers makes up the last codes (`pieces`). int8 lies as it
//! is, the panel's columns for each place.

use crate::quant::{Weight, e4m3, e5m2, small_float};
use crate::schema::Format;
use crate::simd::{Portable, Simd};
use half::bf16;
use std::sync::LazyLock;

/// Values of K in a chunk.
pub const CHUNK: usize = 32;

/// What the codes of a format mean, in the forms that levels read.
#[derive(Clone, Copy)]
pub struct Table {
    /// The values as bf16, in which all are exact: of all codes up to 6 bits, of magnitudes beyond; repeated up to 128.
    values: [u16; 128],
    /// How far a magnitude goes up to stand where f32 has exponent and mantissa.
    shift: u32,
    /// What such an f32 is multiplied by.
    unit: f32,
    /// The largest magnitude that is finite.
    finite: u32,
}

impl Table {
    /// The table of a weight's format.
    pub fn new(weight: &Weight) -> Self {
        let (ebits, mbits, finite) = match weight.format {
            Format::E4m3 => (4, 3, 0x7e),
            Format::E5m2 => (5, 2, 0x7b),
            Format::Fpx => (weight.ebits, weight.mbits, 0xff),
            Format::Int8 | Format::Int4 | Format::SparseInt8 => (1, 0, 0xff),
        };
        let value = |code: u32| match weight.format {
            Format::E4m3 => e4m3(code as u8),
            Format::E5m2 => e5m2(code as u8),
            Format::Fpx => small_float(code, ebits, mbits),
            Format::Int8 | Format::Int4 | Format::SparseInt8 => ((code << 4) as i8 >> 4) as f32,
        };
        let bits = weight.bits();
        let known = if bits > 6 { bits - 1 } else { bits };
        let mut values = [0; 128];
        for (code, entry) in values.iter_mut().enumerate() {
            *entry = bf16::from_f32(value(code as u32 & ((1 << known) - 1))).to_bits();
        }
        let bias = (1 << (ebits - 1)) - 1;
        Self { values, shift: 23 - mbits, unit: 2f32.powi(127 - bias), finite }
    }
}

fn fp8(format: Format) -> Table {
    Table::new(&Weight { format, ebits: 0, mbits: 0, group: 1 })
}

/// A form of fp8.
pub trait Fp8: Copy + Send + Sync + 'static {
    /// Its table.
    fn table() -> &'static Table;
}

/// e4m3fn.
#[derive(Clone, Copy)]
pub struct E4m3;

/// e5m2.
#[derive(Clone, Copy)]
pub struct E5m2;

impl Fp8 for E4m3 {
    fn table() -> &'static Table {
        static TABLE: LazyLock<Table> = LazyLock::new(|| fp8(Format::E4m3));
        &TABLE
    }
}

impl Fp8 for E5m2 {
    fn table() -> &'static Table {
        static TABLE: LazyLock<Table> = LazyLock::new(|| fp8(Format::E5m2));
        &TABLE
    }
}

/// Vectors of four-byte lanes of codes. All methods are unsafe: the caller vouches for the CPU's level and for the
/// pointers.
#[allow(clippy::missing_safety_doc)]
pub trait Codes: Simd {
    /// A register of codes.
    type I: Copy;
    /// A table in registers.
    type T: Copy;

    unsafe fn table(table: &Table) -> Self::T;
    unsafe fn register(p: *const u8) -> Self::I;
    /// Lanes moved down, or up where `n` is negative. What crosses the halves lands above the codes of both.
    unsafe fn shift(x: Self::I, n: i32) -> Self::I;
    /// The lowest `N` bits of each half of `low`, the rest of `high`.
    unsafe fn merge<const N: u32>(low: Self::I, high: Self::I) -> Self::I;
    /// As many bytes as lanes, one in each.
    unsafe fn bytes(p: *const u8) -> Self::I;
    /// The same of signed bytes as floats.
    unsafe fn integers(p: *const u8) -> Self::V;
    /// The values of the halves' lowest four bits, two's complement: even ones and odd ones.
    unsafe fn nibbles(table: Self::T, x: Self::I) -> (Self::V, Self::V);
    /// The values of the halves' lowest `BITS` bits, small floats: even ones and odd ones. Of 7 the sign is the highest.
    unsafe fn floats<const BITS: usize>(table: Self::T, x: Self::I) -> (Self::V, Self::V);
    /// The bytes of lanes whose highest bit is `up` below the lane's, small floats of eight bits: with f32's exponent as far
    /// above zero as theirs.
    unsafe fn unscaled(table: Self::T, x: Self::I, up: i32) -> Self::V;
    /// acc + the float at `p` times `b`. An instruction that takes `p` from memory leaves the ports of vectors to decoding.
    #[inline(always)]
    unsafe fn fma_at(p: *const f32, b: Self::V, acc: Self::V) -> Self::V {
        unsafe { Self::fma(Self::splat(*p), b, acc) }
    }
    /// Those of `nibbles` as pairs of bf16. Only where `BF16_DOT`, as all below.
    #[inline(always)]
    unsafe fn nibble_pairs(table: Self::T, x: Self::I) -> Self::V {
        unsafe {
            let (even, odd) = Self::nibbles(table, x);
            Self::pairs(even, odd)
        }
    }
    /// Those of `floats` as pairs of bf16.
    #[inline(always)]
    unsafe fn float_pairs<const BITS: usize>(table: Self::T, x: Self::I) -> Self::V {
        unsafe {
            let (even, odd) = Self::floats::<BITS>(table, x);
            Self::pairs(even, odd)
        }
    }
    /// Floats rounded to pairs of bf16.
    #[inline(always)]
    unsafe fn pairs(even: Self::V, odd: Self::V) -> Self::V {
        let _ = odd;
        even
    }
    /// acc + the products of the pair at `p` and those of `b`, as `fma_at`.
    #[inline(always)]
    unsafe fn dot_bf16_at(acc: Self::V, p: *const f32, b: Self::V) -> Self::V {
        unsafe { Self::dot_bf16(acc, Self::splat(*p), b) }
    }
    /// Twice as many bytes as lanes, one in each half.
    #[inline(always)]
    unsafe fn halves(p: *const u8) -> Self::I {
        unsafe { Self::bytes(p) }
    }
    /// Of four times as many bytes as lanes the lower halves and the upper ones, less the bytes of `less`. Only where
    /// `VNNI`, as all below.
    unsafe fn half_bytes(p: *const u8, less: Self::V) -> [Self::V; 2] {
        let _ = p;
        [less; 2]
    }
    /// The same, with bits flipped.
    #[inline(always)]
    unsafe fn flipped_half_bytes(p: *const u8, flip: u8) -> [Self::V; 2] {
        unsafe { [Self::splat((*p ^ flip) as f32); 2] }
    }
    /// A table for `lookup_bytes`.
    #[inline(always)]
    unsafe fn bytes_table(table: &[u8; 16]) -> Self::V {
        unsafe { Self::splat(table[0] as f32) }
    }
    /// Bytes by bytes below 16.
    #[inline(always)]
    unsafe fn lookup_bytes(table: Self::V, x: Self::V) -> Self::V {
        let _ = table;
        x
    }
    /// acc + the products of fours of bytes of `a` and the four at `p`, as `fma_at`.
    #[inline(always)]
    unsafe fn dot_u8_i8_at(acc: Self::V, a: Self::V, p: *const f32) -> Self::V {
        unsafe { Self::dot_u8_i8(acc, a, Self::splat(*p)) }
    }
    /// The integers nearest to lanes within 2^22, and each one's three digits of a signed byte, the lowest first: twos of
    /// four bytes each for every eight lanes, in the order in which `flipped_half_bytes` has codes of four bits.
    #[inline(always)]
    unsafe fn digits(x: Self::V, to: *mut f32) -> Self::V {
        let _ = to;
        x
    }
    /// As many bytes as lanes, 8 added to each, four times in its lane.
    #[inline(always)]
    unsafe fn fours_above(p: *const i8) -> Self::V {
        unsafe { Self::splat(*p as f32) }
    }
    /// Twice as many bytes as lanes, in the places of set bits; zeros in the others.
    #[inline(always)]
    unsafe fn expand(p: *const u8, kept: u64) -> Self::V {
        let _ = p;
        unsafe { Self::splat(kept as f32) }
    }
}

/// `len` codes of fp8 to floats.
///
/// # Safety
/// The CPU has the level of `S`; all codes can be read, all floats written.
#[inline(always)]
pub unsafe fn fp8_to_f32<S: Codes, F: Fp8>(from: *const u8, len: usize, to: *mut f32) {
    unsafe {
        let table = F::table();
        let t = S::table(table);
        let mut i = 0;
        while i + S::LANES <= len {
            S::store(to.add(i), S::floats::<8>(t, S::bytes(from.add(i))).0);
            i += S::LANES;
        }
        for i in i..len {
            *to.add(i) = f32::from_bits((table.fp8(*from.add(i)) as u32) << 16);
        }
    }
}

/// `len` codes of fp8 to bf16.
///
/// # Safety
/// As `fp8_to_f32`, and the level has `BF16_DOT`.
#[inline(always)]
pub unsafe fn fp8_to_bf16<S: Codes, F: Fp8>(from: *const u8, len: usize, to: *mut bf16) {
    unsafe {
        let table = F::table();
        let t = S::table(table);
        let mut i = 0;
        while i + 2 * S::LANES <= len {
            S::store(to.add(i) as *mut f32, S::float_pairs::<8>(t, S::halves(from.add(i))));
            i += 2 * S::LANES;
        }
        for i in i..len {
            *to.add(i) = bf16::from_bits(table.fp8(*from.add(i)));
        }
    }
}

impl Table {
    /// The exponent of what `unscaled` values are to be multiplied by.
    pub fn exponent(&self) -> i32 {
        (self.unit.to_bits() >> 23) as i32 - 127
    }

    /// How far a byte at the top of a lane goes down to stand where f32 has exponent and mantissa, but for its sign.
    fn down(&self) -> u32 {
        24 - self.shift
    }

    /// The bits that it has there.
    fn kept(&self) -> u32 {
        1 << 31 | 0x7f << self.shift
    }

    /// The bf16 of a code of eight bits.
    fn fp8(&self, code: u8) -> u16 {
        self.values[(code & 0x7f) as usize] | ((code & 0x80) as u16) << 8
    }
}

/// How a format's codes lie in a chunk and become values.
#[allow(clippy::missing_safety_doc)]
pub trait Codec: Copy + Send + Sync + 'static {
    /// Bits of a code.
    const BITS: usize;
    /// After how many steps codes lie as they did before, an even number.
    const PERIOD: usize;
    /// Places 2 `step` and 2 `step` + 1 of a chunk, of vector `v` of the panel.
    unsafe fn values<S: Codes>(table: S::T, chunk: *const u8, v: usize, step: usize) -> (S::V, S::V);
    /// The same as pairs of bf16.
    unsafe fn pairs<S: Codes>(table: S::T, chunk: *const u8, v: usize, step: usize) -> S::V;
}

/// int8.
#[derive(Clone, Copy)]
pub struct Int8;

impl Codec for Int8 {
    const BITS: usize = 8;
    const PERIOD: usize = 2;
    #[inline(always)]
    unsafe fn values<S: Codes>(_: S::T, chunk: *const u8, v: usize, step: usize) -> (S::V, S::V) {
        unsafe {
            let at = chunk.add((4 * step + v) * S::LANES);
            (S::integers(at), S::integers(at.add(2 * S::LANES)))
        }
    }
    #[inline(always)]
    unsafe fn pairs<S: Codes>(table: S::T, chunk: *const u8, v: usize, step: usize) -> S::V {
        unsafe {
            let (even, odd) = Self::values::<S>(table, chunk, v, step);
            S::pairs(even, odd)
        }
    }
}

/// int4.
#[derive(Clone, Copy)]
pub struct Int4;

impl Codec for Int4 {
    const BITS: usize = 4;
    const PERIOD: usize = 4;
    #[inline(always)]
    unsafe fn values<S: Codes>(table: S::T, chunk: *const u8, v: usize, step: usize) -> (S::V, S::V) {
        unsafe { S::nibbles(table, codes::<S, 4>(chunk, v, step)) }
    }
    #[inline(always)]
    unsafe fn pairs<S: Codes>(table: S::T, chunk: *const u8, v: usize, step: usize) -> S::V {
        unsafe { S::nibble_pairs(table, codes::<S, 4>(chunk, v, step)) }
    }
}

/// Floats of `B` bits.
#[derive(Clone, Copy)]
pub struct Small<const B: usize>;

impl<const B: usize> Codec for Small<B> {
    const BITS: usize = B;
    const PERIOD: usize = if 16 % B == 0 { 16 / B } else { CHUNK / 2 };
    #[inline(always)]
    unsafe fn values<S: Codes>(table: S::T, chunk: *const u8, v: usize, step: usize) -> (S::V, S::V) {
        unsafe { S::floats::<B>(table, codes::<S, B>(chunk, v, step)) }
    }
    #[inline(always)]
    unsafe fn pairs<S: Codes>(table: S::T, chunk: *const u8, v: usize, step: usize) -> S::V {
        unsafe { S::float_pairs::<B>(table, codes::<S, B>(chunk, v, step)) }
    }
}

/// Floats of eight bits, whose values are to be multiplied by 2^`Table::exponent`.
#[derive(Clone, Copy)]
pub struct Unscaled;

impl Codec for Unscaled {
    const BITS: usize = 8;
    const PERIOD: usize = 2;
    #[inline(always)]
    unsafe fn values<S: Codes>(table: S::T, chunk: *const u8, v: usize, step: usize) -> (S::V, S::V) {
        unsafe {
            let register = S::register(chunk.add((step / 2 * 2 + v) * 4 * S::LANES));
            let up = 8 - 8 * (step % 2) as i32;
            (S::unscaled(table, register, 16 + up), S::unscaled(table, register, up))
        }
    }
    #[inline(always)]
    unsafe fn pairs<S: Codes>(table: S::T, chunk: *const u8, v: usize, step: usize) -> S::V {
        unsafe {
            let (even, odd) = Self::values::<S>(table, chunk, v, step);
            S::pairs(even, odd)
        }
    }
}

/// Some bits of a code.
#[derive(Clone, Copy)]
pub struct Piece {
    /// The register of a vector that has them.
    pub register: usize,
    /// Their lowest bit in its halves.
    pub at: usize,
    /// Their lowest bit in the code.
    pub from: usize,
    /// How many there are.
    pub width: usize,
}

/// Where the bits of a step's codes lie in a chunk.
pub fn pieces(bits: usize, step: usize) -> impl Iterator<Item = Piece> {
    let piece = |register, at, from, width| Piece { register, at, from, width };
    let each = 16 / bits;
    let (register, i) = (step / each, step % each);
    let last = step.saturating_sub(each * bits);
    let whole = step < each * bits;
    let count = match bits {
        _ if whole && bits != 7 => 1,
        6 | 7 if whole || bits == 6 => 2,
        7 => 4,
        _ => bits,
    };
    (0..count).map(move |n| match (bits, n) {
        (7, 0) if whole => piece(register, 6 * i, 0, 6),
        (7, _) if whole => piece(register, 15 - i, 6, 1),
        _ if whole => piece(register, bits * i, 0, bits),
        (7, 3) => piece(6, 12 + last, 6, 1),
        (7, _) => piece(3 * last + n, 12, 2 * n, 2),
        (6, 0) => piece(last, 12, 0, 4),
        (6, _) => piece(4 + last / 2, 12 + 2 * (last % 2), 4, 2),
        _ => piece(n, 15, n, 1),
    })
}

/// The codes of a step, with anything above them.
#[inline(always)]
unsafe fn codes<S: Codes, const B: usize>(chunk: *const u8, v: usize, step: usize) -> S::I {
    unsafe {
        let shifted = |register: usize, n: i32| S::shift(S::register(chunk.add((register * 2 + v) * 4 * S::LANES)), n);
        let each = 16 / B;
        let last = step.wrapping_sub(each * B);
        match B {
            7 if step < 14 && step.is_multiple_of(2) => shifted(step / 2, 0),
            7 if step < 14 => S::merge::<6>(shifted(step / 2, 6), shifted(step / 2, -1)),
            _ if step < each * B => shifted(step / each, (step % each * B) as i32),
            7 => {
                let high = S::merge::<6>(shifted(3 * last + 2, 8), shifted(6, last as i32 - 3));
                S::merge::<2>(shifted(3 * last, 12), S::merge::<4>(shifted(3 * last + 1, 10), high))
            }
            6 => S::merge::<4>(shifted(last, 12), shifted(4 + last / 2, 8 + 2 * (last % 2) as i32)),
            5 => {
                let high = S::merge::<3>(shifted(2, 13), S::merge::<4>(shifted(3, 12), shifted(4, 11)));
                S::merge::<1>(shifted(0, 15), S::merge::<2>(shifted(1, 14), high))
            }
            _ => S::merge::<1>(shifted(0, 15), S::merge::<2>(shifted(1, 14), shifted(2, 13))),
        }
    }
}

/// Where a half has the sign of a float of so many bits.
const fn sign_bit(bits: usize) -> usize {
    if bits == 7 { 15 } else { bits - 1 }
}

/// The same bits in both halves of a lane.
const fn both(bits: u32) -> u32 {
    bits << 16 | bits
}

macro_rules! lanes {
    (|$i:ident| $body:expr) => {{
        let mut out = [Default::default(); 8];
        let mut $i = 0;
        while $i < 8 {
            out[$i] = $body;
            $i += 1;
        }
        out
    }};
}

impl Codes for Portable {
    type I = [u32; 8];
    type T = *const Table;

    #[inline(always)]
    unsafe fn table(table: &Table) -> Self::T {
        table
    }
    #[inline(always)]
    unsafe fn register(p: *const u8) -> Self::I {
        unsafe { (p as *const [u32; 8]).read_unaligned() }
    }
    #[inline(always)]
    unsafe fn shift(x: Self::I, n: i32) -> Self::I {
        lanes!(|i| if n < 0 { x[i] << -n } else { x[i] >> n })
    }
    #[inline(always)]
    unsafe fn merge<const N: u32>(low: Self::I, high: Self::I) -> Self::I {
        let mask = both((1 << N) - 1);
        lanes!(|i| low[i] & mask | high[i] & !mask)
    }
    #[inline(always)]
    unsafe fn bytes(p: *const u8) -> Self::I {
        unsafe { lanes!(|i| *p.add(i) as u32) }
    }
    #[inline(always)]
    unsafe fn integers(p: *const u8) -> Self::V {
        unsafe { lanes!(|i| *(p as *const i8).add(i) as f32) }
    }
    #[inline(always)]
    unsafe fn nibbles(_: Self::T, x: Self::I) -> (Self::V, Self::V) {
        (lanes!(|i| ((x[i] << 28) as i32 >> 28) as f32), lanes!(|i| ((x[i] << 12) as i32 >> 28) as f32))
    }
    #[inline(always)]
    unsafe fn floats<const BITS: usize>(table: Self::T, x: Self::I) -> (Self::V, Self::V) {
        let table = unsafe { &*table };
        let value = |code: u32| {
            let known = if BITS > 6 { BITS - 1 } else { BITS };
            let value = table.values[(code & ((1 << known) - 1)) as usize] as u32;
            let sign = if BITS > 6 { code >> sign_bit(BITS) & 1 } else { 0 };
            f32::from_bits(value << 16 | sign << 31)
        };
        (lanes!(|i| value(x[i])), lanes!(|i| value(x[i] >> 16)))
    }
    #[inline(always)]
    unsafe fn unscaled(table: Self::T, x: Self::I, up: i32) -> Self::V {
        let (down, kept) = unsafe { ((*table).down(), (*table).kept()) };
        lanes!(|i| f32::from_bits(((x[i] << up) as i32 >> down) as u32 & kept))
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{Codes, Table, both, sign_bit};
    use crate::simd::{Avx2, Avx512, Avx512Bf16, Simd};
    use std::arch::asm;
    use std::arch::x86_64::*;

    /// What AVX2 computes floats by, for want of a table in registers.
    #[derive(Clone, Copy)]
    pub struct Arithmetic {
        shift: __m128i,
        unit: __m256,
        finite: __m256i,
        down: __m128i,
        kept: __m256i,
    }

    /// The values of the lanes' lowest `BITS` bits.
    #[inline(always)]
    unsafe fn float<const BITS: usize>(t: Arithmetic, x: __m256i) -> __m256 {
        unsafe {
            let magnitude = _mm256_and_si256(x, _mm256_set1_epi32((1 << (BITS - 1)) - 1));
            let up = _mm_cvtsi32_si128(31 - sign_bit(BITS) as i32);
            let sign = _mm256_and_si256(_mm256_sll_epi32(x, up), _mm256_set1_epi32(i32::MIN));
            let mut bits = _mm256_or_si256(_mm256_sll_epi32(magnitude, t.shift), sign);
            if BITS == 8 {
                let special = _mm256_cmpgt_epi32(magnitude, t.finite);
                bits = _mm256_or_si256(bits, _mm256_and_si256(special, _mm256_set1_epi32(0x7f80_0000)));
            }
            // Subnormals of the small float are subnormals here too, until they are multiplied.
            _mm256_mul_ps(_mm256_castsi256_ps(bits), t.unit)
        }
    }

    impl Codes for Avx2 {
        type I = __m256i;
        type T = Arithmetic;

        #[inline(always)]
        unsafe fn table(table: &Table) -> Arithmetic {
            unsafe {
                Arithmetic {
                    shift: _mm_cvtsi32_si128(table.shift as i32),
                    unit: _mm256_set1_ps(table.unit),
                    finite: _mm256_set1_epi32(table.finite as i32),
                    down: _mm_cvtsi32_si128(table.down() as i32),
                    kept: _mm256_set1_epi32(table.kept() as i32),
                }
            }
        }
        #[inline(always)]
        unsafe fn register(p: *const u8) -> __m256i {
            unsafe { _mm256_loadu_si256(p as *const __m256i) }
        }
        #[inline(always)]
        unsafe fn shift(x: __m256i, n: i32) -> __m256i {
            unsafe {
                if n < 0 {
                    _mm256_sll_epi32(x, _mm_cvtsi32_si128(-n))
                } else {
                    _mm256_srl_epi32(x, _mm_cvtsi32_si128(n))
                }
            }
        }
        #[inline(always)]
        unsafe fn merge<const N: u32>(low: __m256i, high: __m256i) -> __m256i {
            unsafe {
                let mask = _mm256_set1_epi32(both((1 << N) - 1) as i32);
                _mm256_or_si256(_mm256_and_si256(mask, low), _mm256_andnot_si256(mask, high))
            }
        }
        #[inline(always)]
        unsafe fn bytes(p: *const u8) -> __m256i {
            unsafe { _mm256_cvtepu8_epi32(_mm_loadl_epi64(p as *const __m128i)) }
        }
        #[inline(always)]
        unsafe fn integers(p: *const u8) -> __m256 {
            unsafe { _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(p as *const __m128i))) }
        }
        #[inline(always)]
        unsafe fn nibbles(_: Arithmetic, x: __m256i) -> (__m256, __m256) {
            unsafe {
                let even = _mm256_srai_epi32::<28>(_mm256_slli_epi32::<28>(x));
                let odd = _mm256_srai_epi32::<28>(_mm256_slli_epi32::<12>(x));
                (_mm256_cvtepi32_ps(even), _mm256_cvtepi32_ps(odd))
            }
        }
        #[inline(always)]
        unsafe fn floats<const BITS: usize>(t: Arithmetic, x: __m256i) -> (__m256, __m256) {
            unsafe { (float::<BITS>(t, x), float::<BITS>(t, _mm256_srli_epi32::<16>(x))) }
        }
        #[inline(always)]
        unsafe fn unscaled(t: Arithmetic, x: __m256i, up: i32) -> __m256 {
            unsafe {
                let top = _mm256_sll_epi32(x, _mm_cvtsi32_si128(up));
                _mm256_castsi256_ps(_mm256_and_si256(_mm256_sra_epi32(top, t.down), t.kept))
            }
        }
    }

    /// What AVX-512 computes floats by.
    #[derive(Clone, Copy)]
    pub struct Tables {
        values: [__m512i; 4],
        down: __m512i,
        kept: __m512i,
    }

    /// The bf16 values of the halves' lowest `BITS` bits.
    #[inline(always)]
    unsafe fn lookup<const BITS: usize>(t: Tables, x: __m512i) -> __m512i {
        let t = t.values;
        unsafe {
            let signed = |magnitude, up: __m512i| {
                // magnitude | up & sign
                _mm512_ternarylogic_epi32::<0xf8>(magnitude, up, _mm512_set1_epi16(i16::MIN))
            };
            match BITS {
                8 => {
                    let low = _mm512_permutex2var_epi16(t[0], x, t[1]);
                    let high = _mm512_permutex2var_epi16(t[2], x, t[3]);
                    let upper = _mm512_test_epi16_mask(x, _mm512_set1_epi16(0x40));
                    signed(_mm512_mask_blend_epi16(upper, low, high), _mm512_slli_epi32::<8>(x))
                }
                7 => signed(_mm512_permutex2var_epi16(t[0], x, t[1]), x),
                6 => _mm512_permutex2var_epi16(t[0], x, t[1]),
                _ => _mm512_permutexvar_epi16(x, t[0]),
            }
        }
    }

    /// Pairs of bf16 as floats: even ones and odd ones.
    #[inline(always)]
    unsafe fn widen(pairs: __m512i) -> (__m512, __m512) {
        unsafe {
            let odd = _mm512_and_si512(pairs, _mm512_set1_epi32(0xffff_0000u32 as i32));
            (_mm512_castsi512_ps(_mm512_slli_epi32::<16>(pairs)), _mm512_castsi512_ps(odd))
        }
    }

    /// One instruction that adds products with the four bytes at an address, in all lanes: the compiler would load them
    /// once for all that they are multiplied by.
    macro_rules! add_products_at {
        ($instruction:literal, $acc:ident, $register:ident, $p:ident) => {
            asm!(
                concat!($instruction, " {acc}, {register}, dword ptr [{p}]{{1to16}}"),
                acc = inout(zmm_reg) $acc,
                register = in(zmm_reg) $register,
                p = in(reg) $p,
                options(pure, readonly, nostack, preserves_flags)
            )
        };
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn fma_at(p: *const f32, b: __m512, mut acc: __m512) -> __m512 {
        unsafe { add_products_at!("vfmadd231ps", acc, b, p) };
        acc
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bf16")]
    unsafe fn dot_bf16_at(mut acc: __m512, p: *const f32, b: __m512) -> __m512 {
        unsafe { add_products_at!("vdpbf16ps", acc, b, p) };
        acc
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512vnni")]
    unsafe fn dot_u8_i8_at(mut acc: __m512, a: __m512, p: *const f32) -> __m512 {
        unsafe { add_products_at!("vpdpbusd", acc, a, p) };
        acc
    }

    macro_rules! avx512 {
        ($name:ident, $($extra:item)*) => {
            impl Codes for $name {
                type I = __m512i;
                type T = Tables;

                #[inline(always)]
                unsafe fn table(table: &Table) -> Tables {
                    unsafe {
                        let values = table.values.as_ptr();
                        Tables {
                            values: [0, 1, 2, 3].map(|i| _mm512_loadu_si512(values.add(32 * i) as *const __m512i)),
                            down: _mm512_set1_epi32(table.down() as i32),
                            kept: _mm512_set1_epi32(table.kept() as i32),
                        }
                    }
                }
                #[inline(always)]
                unsafe fn register(p: *const u8) -> __m512i {
                    unsafe { _mm512_loadu_si512(p as *const __m512i) }
                }
                #[inline(always)]
                unsafe fn shift(x: __m512i, n: i32) -> __m512i {
                    unsafe {
                        if n < 0 {
                            _mm512_sll_epi32(x, _mm_cvtsi32_si128(-n))
                        } else {
                            _mm512_srl_epi32(x, _mm_cvtsi32_si128(n))
                        }
                    }
                }
                #[inline(always)]
                unsafe fn merge<const N: u32>(low: __m512i, high: __m512i) -> __m512i {
                    // mask ? low : high
                    unsafe {
                        let mask = _mm512_set1_epi32(both((1 << N) - 1) as i32);
                        _mm512_ternarylogic_epi32::<0xca>(mask, low, high)
                    }
                }
                #[inline(always)]
                unsafe fn bytes(p: *const u8) -> __m512i {
                    unsafe { _mm512_cvtepu8_epi32(_mm_loadu_si128(p as *const __m128i)) }
                }
                #[inline(always)]
                unsafe fn integers(p: *const u8) -> __m512 {
                    unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(p as *const __m128i))) }
                }
                #[inline(always)]
                unsafe fn nibbles(t: Tables, x: __m512i) -> (__m512, __m512) {
                    unsafe { widen(lookup::<4>(t, x)) }
                }
                #[inline(always)]
                unsafe fn floats<const BITS: usize>(t: Tables, x: __m512i) -> (__m512, __m512) {
                    unsafe { widen(lookup::<BITS>(t, x)) }
                }
                #[inline(always)]
                unsafe fn unscaled(t: Tables, x: __m512i, up: i32) -> __m512 {
                    unsafe {
                        let top = _mm512_sll_epi32(x, _mm_cvtsi32_si128(up));
                        _mm512_castsi512_ps(_mm512_and_si512(_mm512_srav_epi32(top, t.down), t.kept))
                    }
                }
                #[inline(always)]
                unsafe fn fma_at(p: *const f32, b: __m512, acc: __m512) -> __m512 {
                    unsafe { fma_at(p, b, acc) }
                }
                $($extra)*
            }
        };
    }

    avx512! { Avx512, }
    avx512! {
        Avx512Bf16,
        #[inline(always)]
        unsafe fn nibble_pairs(t: Tables, x: __m512i) -> __m512 {
            unsafe { _mm512_castsi512_ps(lookup::<4>(t, x)) }
        }
        #[inline(always)]
        unsafe fn float_pairs<const BITS: usize>(t: Tables, x: __m512i) -> __m512 {
            unsafe { _mm512_castsi512_ps(lookup::<BITS>(t, x)) }
        }
        #[inline(always)]
        unsafe fn pairs(even: __m512, odd: __m512) -> __m512 {
            unsafe {
                let apart = std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(odd, even));
                _mm512_castsi512_ps(_mm512_permutexvar_epi16(
                    _mm512_loadu_si512(PAIRED.0.as_ptr() as *const __m512i),
                    apart,
                ))
            }
        }
        #[inline(always)]
        unsafe fn dot_bf16_at(acc: __m512, p: *const f32, b: __m512) -> __m512 {
            unsafe { dot_bf16_at(acc, p, b) }
        }
        #[inline(always)]
        unsafe fn halves(p: *const u8) -> __m512i {
            unsafe { _mm512_cvtepu8_epi16(_mm256_loadu_si256(p as *const __m256i)) }
        }
        #[inline(always)]
        unsafe fn half_bytes(p: *const u8, less: __m512) -> [__m512; 2] {
            unsafe {
                let (x, less, mask) = (Self::register(p), _mm512_castps_si512(less), _mm512_set1_epi8(15));
                let (low, high) = (_mm512_and_si512(x, mask), _mm512_and_si512(_mm512_srli_epi32::<4>(x), mask));
                let (low, high) = (_mm512_sub_epi8(low, less), _mm512_sub_epi8(high, less));
                [_mm512_castsi512_ps(low), _mm512_castsi512_ps(high)]
            }
        }
        #[inline(always)]
        unsafe fn flipped_half_bytes(p: *const u8, flip: u8) -> [__m512; 2] {
            unsafe {
                let (mask, flip) = (_mm512_set1_epi8(15), _mm512_set1_epi8(flip as i8));
                let (low, high) = (Self::register(p), _mm512_srli_epi32::<4>(Self::register(p)));
                // half & mask ^ flip
                let low = _mm512_ternarylogic_epi32::<0x6a>(low, mask, flip);
                let high = _mm512_ternarylogic_epi32::<0x6a>(high, mask, flip);
                [_mm512_castsi512_ps(low), _mm512_castsi512_ps(high)]
            }
        }
        #[inline(always)]
        unsafe fn bytes_table(table: &[u8; 16]) -> __m512 {
            unsafe {
                let table = _mm_loadu_si128(table.as_ptr() as *const __m128i);
                _mm512_castsi512_ps(_mm512_broadcast_i32x4(table))
            }
        }
        #[inline(always)]
        unsafe fn lookup_bytes(table: __m512, x: __m512) -> __m512 {
            unsafe {
                let bytes = _mm512_shuffle_epi8(_mm512_castps_si512(table), _mm512_castps_si512(x));
                _mm512_castsi512_ps(bytes)
            }
        }
        #[inline(always)]
        unsafe fn dot_u8_i8_at(acc: __m512, a: __m512, p: *const f32) -> __m512 {
            unsafe { dot_u8_i8_at(acc, a, p) }
        }
        #[inline(always)]
        unsafe fn digits(x: __m512, to: *mut f32) -> __m512 {
            unsafe {
                let order = _mm_set_epi8(15, 11, 14, 10, 13, 9, 12, 8, 7, 3, 6, 2, 5, 1, 4, 0);
                let integers = _mm512_cvtps_epi32(x);
                let mut rest = integers;
                for digit in 0..3 {
                    let bytes = _mm_shuffle_epi8(_mm512_cvtepi32_epi8(rest), order);
                    _mm_storel_epi64(to.add(2 * digit) as *mut __m128i, bytes);
                    _mm_storeh_pd(to.add(6 + 2 * digit) as *mut f64, _mm_castsi128_pd(bytes));
                    // What the byte says as a signed one is taken away.
                    rest = _mm512_srai_epi32::<8>(_mm512_add_epi32(rest, _mm512_set1_epi32(128)));
                }
                _mm512_castsi512_ps(integers)
            }
        }
        #[inline(always)]
        unsafe fn fours_above(p: *const i8) -> __m512 {
            unsafe {
                let bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128(p as *const __m128i));
                let two = _mm512_or_si512(bytes, _mm512_slli_epi32::<8>(bytes));
                let four = _mm512_or_si512(two, _mm512_slli_epi32::<16>(two));
                _mm512_castsi512_ps(_mm512_add_epi8(four, _mm512_set1_epi8(8)))
            }
        }
        #[inline(always)]
        unsafe fn expand(p: *const u8, kept: u64) -> __m512 {
            unsafe {
                let bytes = _mm512_zextsi256_si512(_mm256_loadu_si256(p as *const __m256i));
                _mm512_castsi512_ps(_mm512_maskz_expand_epi8(kept, bytes))
            }
        }
    }

    #[repr(align(64))]
    struct Order([u16; 2 * <Avx512 as Simd>::LANES]);

    /// Puts the halves of a register side by side.
    static PAIRED: Order = {
        let mut order = [0; 32];
        let mut i = 0;
        while i < 32 {
            order[i] = (i / 2 + i % 2 * 16) as u16;
            i += 1;
        }
        Order(order)
    };
}
