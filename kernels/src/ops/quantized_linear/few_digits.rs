//! Few rows of floats by codes of four bits as integers, where there is VNNI.
//!
//! Eight values of K take a register of a panel's vector: of its bytes the lower halves are four of them, the upper ones
//! the other four, so that one instruction finds 64 of them. x becomes integers of 23 bits for each span of K, relative
//! to the span's largest, and those three digits of a byte each, by which codes are multiplied exactly. A small float is
//! an integer, too, in units of its smallest.

use super::few::{AHEAD, Panels, Staged, stage_row};
use super::few_float::{exponent, power};
use super::float::Packed;
use crate::codes::Codes;
use crate::dispatch;
use crate::gemm::{Gemm, Method};
use crate::level::Level;
use crate::quant::small_float;
use crate::schema::Format;

/// Digits of an integer, of `Codes::digits`.
const DIGITS: usize = 3;
/// Values of K in a register.
const VALUES: usize = 8;
/// Bits of an integer's magnitude.
const BITS: i32 = 22;
/// The least exponent that is told apart from smaller ones.
const LEAST: i32 = -100;

/// A weight with what its codes are as integers.
pub(super) struct Digits<'a> {
    packed: &'a Packed,
    /// The bytes of codes of a small float.
    table: [u8; 16],
    /// What bytes are above the integers.
    above: f32,
    /// What an integer is a multiple of.
    unit: f32,
    /// Values of K that share a size of x: a part of a group.
    span: usize,
    spans: usize,
}

impl<'a> Digits<'a> {
    /// A weight of codes of four bits.
    pub(super) fn new(packed: &'a Packed, k: usize) -> Self {
        let (weight, groups) = (&packed.weight, packed.groups());
        let span = if groups == 1 || weight.group.is_multiple_of(64) { 64 } else { 32 };
        let spans = if groups == 1 { k.div_ceil(span) } else { k / span };
        let int4 = Self { packed, table: [0; 16], above: 8.0, unit: 1.0, span, spans };
        if weight.format == Format::Int4 {
            return int4;
        }
        let unit = power(1 - ((1 << (weight.ebits - 1)) - 1) - weight.mbits as i32);
        // No magnitude is above 64 units.
        let byte = |code| (small_float(code as u32, weight.ebits, weight.mbits) / unit + 64.0) as u8;
        Self { table: std::array::from_fn(byte), above: 64.0, unit, ..int4 }
    }
}

impl Panels for Digits<'_> {
    fn tile_rows(&self, _: Level) -> usize {
        4
    }

    fn row(&self, _: Level, _: Method, k: usize) -> usize {
        k.next_multiple_of(64) / 4 * DIGITS
    }

    fn each(&self) -> usize {
        2 * self.spans
    }

    unsafe fn stage(&self, level: Level, g: &Gemm, method: Method, rows: usize, x: Staged, spare: *mut f32) {
        for row in 0..rows {
            unsafe {
                stage_row(level, g, method, row, spare);
                digits(level, self, spare, x.units.add(row * x.row), x.more.add(row * x.each));
            }
        }
    }

    unsafe fn multiply(&self, level: Level, rows: usize, x: Staged, panel: usize, sums: *mut f32) {
        macro_rules! rows {
            ($rows:literal) => {
                match self.packed.weight.format {
                    Format::Int4 => tile::<Signed, $rows>(level, self, x, panel, sums),
                    _ => tile::<Looked, $rows>(level, self, x, panel, sums),
                }
            };
        }
        unsafe {
            match rows {
                1 => rows!(1),
                2 => rows!(2),
                _ => rows!(4),
            }
        }
    }
}

dispatch!(fn digits(w: &Digits, x: *const f32, to: *mut f32, more: *mut f32) => digits_on);

/// A row's digits in the order of a register's bytes, and of each span its unit and the sum of its integers.
#[inline(always)]
unsafe fn digits_on<S: Codes>(w: &Digits, x: *const f32, to: *mut f32, more: *mut f32) {
    if !S::VNNI {
        unreachable!("no other level has fours of bytes");
    }
    unsafe {
        for span in 0..w.spans {
            let x = x.add(span * w.span);
            let (up, unit) = match exponent(x, w.span) {
                Some(exponent) => (power(BITS - 1 - exponent.max(LEAST)), power(exponent.max(LEAST) + 1 - BITS)),
                None => (0.0, f32::NAN),
            };
            let to = to.add(span * w.span / 4 * DIGITS);
            let mut sum = S::splat(0.0);
            for i in (0..w.span).step_by(S::LANES) {
                let integers = S::digits(S::mul(S::load(x.add(i)), S::splat(up)), to.add(i / 4 * DIGITS));
                sum = S::add(sum, S::float_i32(integers));
            }
            *more.add(2 * span) = unit * w.unit;
            *more.add(2 * span + 1) = S::sum(sum);
        }
    }
}

/// How a register's codes become bytes.
trait Bytes {
    /// Those of its lower halves, and of its upper ones.
    unsafe fn of<S: Codes>(table: S::V, p: *const u8) -> [S::V; 2];
}

/// Two's complement, with 8 added.
struct Signed;

impl Bytes for Signed {
    #[inline(always)]
    unsafe fn of<S: Codes>(_: S::V, p: *const u8) -> [S::V; 2] {
        unsafe { S::flipped_half_bytes(p, 8) }
    }
}

/// By a table.
struct Looked;

impl Bytes for Looked {
    #[inline(always)]
    unsafe fn of<S: Codes>(table: S::V, p: *const u8) -> [S::V; 2] {
        unsafe {
            let [low, high] = S::flipped_half_bytes(p, 0);
            [S::lookup_bytes(table, low), S::lookup_bytes(table, high)]
        }
    }
}

dispatch!(fn tile<B: Bytes; R>(w: &Digits, x: Staged, panel: usize, sums: *mut f32) => tile_on);

/// Sums (R, panel) of a panel and of rows of x.
#[inline(always)]
#[allow(clippy::needless_range_loop, reason = "indices of registers, in step with addresses")]
unsafe fn tile_on<S: Codes, B: Bytes, const R: usize>(w: &Digits, x: Staged, panel: usize, sums: *mut f32) {
    if !S::VNNI {
        unreachable!("no other level has fours of bytes");
    }
    unsafe {
        let table = S::bytes_table(&w.table);
        let zero = S::splat(0.0);
        let mut from = w.packed.chunk(panel, 2 * S::LANES, 0);
        let mut units = x.units as *const f32;
        let mut total = [[zero; 2]; R];
        for span in 0..w.spans {
            let mut acc = [[[zero; DIGITS]; 2]; R];
            for _ in 0..w.span / VALUES {
                S::prefetch(from.wrapping_add(AHEAD));
                S::prefetch(from.wrapping_add(AHEAD + 64));
                let vectors = [B::of::<S>(table, from), B::of::<S>(table, from.add(64))];
                for half in 0..2 {
                    for r in 0..R {
                        for d in 0..DIGITS {
                            let x = units.add(r * x.row + 2 * d + half);
                            for v in 0..2 {
                                acc[r][v][d] = S::dot_u8_i8_at(acc[r][v][d], vectors[v][half], x);
                            }
                        }
                    }
                }
                from = from.add(128);
                units = units.add(2 * DIGITS);
            }
            for v in 0..2 {
                let (scale, zero) = w.packed.group::<S>(panel, v, span * w.span / w.packed.weight.group);
                let above = S::add(zero, S::splat(w.above));
                for r in 0..R {
                    let more = x.more.add(r * x.each + 2 * span);
                    let mut sum = S::splat(0.0);
                    for d in (0..DIGITS).rev() {
                        sum = S::fma(sum, S::splat(256.0), S::float_i32(acc[r][v][d]));
                    }
                    sum = S::fma(above, S::splat(-*more.add(1)), sum);
                    total[r][v] = S::fma(sum, S::mul(scale, S::splat(*more)), total[r][v]);
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
