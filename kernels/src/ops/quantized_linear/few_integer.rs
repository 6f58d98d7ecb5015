//! Codes of int4 and of 2:4 sparse int8 as fours of bytes, where there is VNNI: in registers for few rows, or a block at a
//! time.

use super::few::{AHEAD, Panels, Staged};
use super::integer::Layout;
use crate::codes::Codes;
use crate::dispatch;
use crate::level::Level;
use crate::schema::Format;

/// How codes lie in steps of fours.
trait Fours {
    /// Steps that lie together.
    const STEPS: usize;
    /// Bytes of those of a vector of columns.
    const BYTES: usize;
    /// Writes none but the first `STEPS`.
    unsafe fn decode<S: Codes>(from: *const u8, less: S::V) -> [S::V; 2];
}

/// Two steps in the halves of bytes, from each of which is taken what is above its value.
struct Halves;

impl Fours for Halves {
    const STEPS: usize = 2;
    const BYTES: usize = 64;
    #[inline(always)]
    unsafe fn decode<S: Codes>(from: *const u8, less: S::V) -> [S::V; 2] {
        unsafe { S::half_bytes(from, less) }
    }
}

/// Two of four, and a bit for each of the four that is kept.
struct TwoOfFour;

impl Fours for TwoOfFour {
    const STEPS: usize = 1;
    const BYTES: usize = 40;
    #[inline(always)]
    unsafe fn decode<S: Codes>(from: *const u8, less: S::V) -> [S::V; 2] {
        unsafe { [S::expand(from, (from.add(32) as *const u64).read_unaligned()), less] }
    }
}

impl Layout {
    /// What is taken from the half bytes of a panel's group.
    #[inline(always)]
    unsafe fn less<S: Codes>(&self, panel: usize, group: usize) -> [S::V; 2] {
        unsafe {
            if self.zero {
                let zeros = self.zeros(panel, group);
                [S::fours_above(zeros), S::fours_above(zeros.add(S::LANES))]
            } else {
                [S::splat(f32::from_bits(0x0808_0808)); 2]
            }
        }
    }

    /// Steps in a group.
    fn group_steps(&self) -> usize {
        if self.groups > 1 { self.shape.weight.group / 4 } else { self.shape.k.next_multiple_of(64) / 4 }
    }
}

impl Panels for Layout {
    unsafe fn multiply(&self, level: Level, rows: usize, x: Staged, panel: usize, sums: *mut f32) {
        macro_rules! rows {
            ($rows:literal) => {
                match self.shape.weight.format {
                    Format::SparseInt8 => tile::<TwoOfFour, $rows>(level, self, x, panel, sums),
                    _ => tile::<Halves, $rows>(level, self, x, panel, sums),
                }
            };
        }
        unsafe {
            match rows {
                1 => rows!(1),
                2 => rows!(2),
                3 | 4 => rows!(4),
                _ => rows!(8),
            }
        }
    }
}

dispatch!(fn tile<F: Fours; R>(w: &Layout, x: Staged, panel: usize, sums: *mut f32) => tile_on);

/// Sums (R, panel) of a panel and of rows of x: integers, or floats where there are several groups.
#[inline(always)]
#[allow(clippy::needless_range_loop, reason = "indices of registers, in step with addresses")]
unsafe fn tile_on<S: Codes, F: Fours, const R: usize>(w: &Layout, x: Staged, panel: usize, sums: *mut f32) {
    if !S::VNNI {
        unreachable!("no other level has fours of bytes");
    }
    unsafe {
        let zero = S::splat(0.0);
        let mut from = w.panel(panel, 0) as *const u8;
        let mut units = x.units as *const f32;
        let mut total = [[zero; 2]; R];
        for group in 0..w.groups {
            let less = w.less::<S>(panel, group);
            // Two sums each of few rows, or every step would wait for the last.
            let apart = if R > 4 { 0 } else { 1 };
            let mut acc = [[[zero; 2]; 2]; R];
            for part in 0..w.group_steps() / 2 {
                for i in 0..2 / F::STEPS {
                    for v in 0..2 {
                        let at = from.add((i * 2 + v) * F::BYTES);
                        S::prefetch(at.wrapping_add(AHEAD));
                        let steps = F::decode::<S>(at, less[v]);
                        for s in 0..F::STEPS {
                            for r in 0..R {
                                let step = i * F::STEPS + s;
                                let x = S::splat(*units.add(r * x.row + 2 * part + step));
                                let acc = &mut acc[r][v][step & apart];
                                *acc = S::dot_u8_i8(*acc, x, steps[s]);
                            }
                        }
                    }
                }
                from = from.add(2 / F::STEPS * 2 * F::BYTES);
            }
            units = units.add(w.group_steps());
            for r in 0..R {
                for v in 0..2 {
                    let sum = if apart == 0 { acc[r][v][0] } else { S::add_i32(acc[r][v][0], acc[r][v][1]) };
                    total[r][v] = if w.groups > 1 {
                        S::fma(S::float_i32(sum), S::load(w.scales(panel, group).add(v * S::LANES)), total[r][v])
                    } else {
                        sum
                    };
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

/// Decodes steps of a panel to fours of bytes, as the tiles of many rows read them.
///
/// # Safety
/// As `Blocks::decode`; the level has VNNI.
#[inline(always)]
pub(super) unsafe fn decode<S: Codes>(w: &Layout, panel: usize, first: usize, steps: usize, to: *mut u8) {
    unsafe {
        match w.shape.weight.format {
            Format::SparseInt8 => decode_as::<S, TwoOfFour>(w, panel, first, steps, to),
            _ => decode_as::<S, Halves>(w, panel, first, steps, to),
        }
    }
}

#[inline(always)]
unsafe fn decode_as<S: Codes, F: Fours>(w: &Layout, panel: usize, first: usize, steps: usize, to: *mut u8) {
    unsafe {
        let mut step = first;
        while step < first + steps {
            let group = step / w.group_steps();
            let end = ((group + 1) * w.group_steps()).min(first + steps);
            let less = w.less::<S>(panel, group);
            while step < end {
                let from = w.panel(panel, step);
                for (v, &less) in less.iter().enumerate() {
                    let fours = F::decode::<S>(from.add(v * F::BYTES), less);
                    for (s, &four) in fours.iter().enumerate().take(F::STEPS) {
                        let at = (step - first + s) * 2 + v;
                        S::store((to as *mut f32).add(at * S::LANES), four);
                    }
                }
                step += F::STEPS;
            }
        }
    }
}
