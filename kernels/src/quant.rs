//! The stored forms of quantized weights and activations: sizes, and what each code means.

use crate::schema::{Format, Rows};

/// A weight's format with what it takes besides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Weight {
    /// The form of a code.
    pub format: Format,
    /// Exponent bits, of `fpx` alone.
    pub ebits: u32,
    /// Mantissa bits, of `fpx` alone.
    pub mbits: u32,
    /// Columns that share a scale.
    pub group: usize,
}

impl Weight {
    /// Bits of storage for each element of the weight.
    pub fn bits(&self) -> usize {
        match self.format {
            Format::Int8 | Format::E4m3 | Format::E5m2 => 8,
            Format::Int4 => 4,
            Format::Fpx => (1 + self.ebits + self.mbits) as usize,
            // Half a byte of value and a quarter of places for each two of four.
            Format::SparseInt8 => 5,
        }
    }

    /// Whether the format is known, and k columns divide as it wants.
    pub fn takes(&self, k: usize) -> bool {
        let whole = match self.format {
            Format::Int4 => k.is_multiple_of(2),
            Format::SparseInt8 => k.is_multiple_of(8),
            Format::Fpx => (1..=7).contains(&self.ebits) && self.mbits <= 6 && (3..=8).contains(&self.bits()),
            _ => true,
        };
        whole && self.group > 0 && k.is_multiple_of(self.group)
    }

    /// Bytes of a stored row of k columns.
    pub fn row_bytes(&self, k: usize) -> usize {
        (k * self.bits()).div_ceil(8)
    }

    /// Scales in a row of k columns.
    pub fn groups(&self, k: usize) -> usize {
        k / self.group
    }

    /// Bytes of a packed weight, the same on all levels: codes with rows and columns rounded up to 64, a scale for each
    /// group of each of those rows, a word for each row, and where there are zero points, a byte for each scale. `None`
    /// beyond what can be counted.
    pub fn packed_bytes(&self, n: usize, k: usize, zero: bool) -> Option<usize> {
        let rows = n.checked_next_multiple_of(64)?;
        let columns = k.checked_next_multiple_of(64)?;
        let codes = rows.checked_mul(columns)?.checked_mul(self.bits())? / 8;
        let each = if zero { 5 } else { 4 };
        codes.checked_add(rows.checked_mul(self.groups(k).max(1).checked_mul(each)?.checked_add(4)?)?)
    }

    /// The value of column `column` of a stored row, before zero point and scale.
    ///
    /// # Safety
    /// The row has all bytes of its columns.
    pub unsafe fn value(&self, row: *const u8, column: usize, k: usize) -> f32 {
        unsafe {
            match self.format {
                Format::Int8 => *(row as *const i8).add(column) as f32,
                Format::Int4 => {
                    let byte = *row.add(column / 2);
                    let nibble = if column.is_multiple_of(2) { byte & 15 } else { byte >> 4 };
                    (((nibble << 4) as i8) >> 4) as f32
                }
                Format::E4m3 => e4m3(*row.add(column)),
                Format::E5m2 => e5m2(*row.add(column)),
                Format::Fpx => {
                    let bits = self.bits();
                    let at = column * bits;
                    let low = *row.add(at / 8) as u32;
                    let spans = at % 8 + bits > 8;
                    let high = if spans { *row.add(at / 8 + 1) as u32 } else { 0 };
                    small_float(((low | high << 8) >> (at % 8)) & ((1 << bits) - 1), self.ebits, self.mbits)
                }
                Format::SparseInt8 => {
                    let group = column / 4;
                    let places = *row.add(k / 2 + group / 2) >> (4 * (group % 2));
                    let place = (column % 4) as u8;
                    let kept = (0..2).find(|i| (places >> (2 * i)) & 3 == place);
                    kept.map_or(0.0, |i| *(row as *const i8).add(2 * group + i) as f32)
                }
            }
        }
    }
}

/// The value of a small float with a sign, subnormals, and neither infinities nor NaN.
pub fn small_float(code: u32, ebits: u32, mbits: u32) -> f32 {
    let mantissa = code & ((1 << mbits) - 1);
    let exponent = (code >> mbits) & ((1 << ebits) - 1);
    let bias = (1i32 << (ebits - 1)) - 1;
    let unit = |power: i32| 2f64.powi(power);
    let magnitude = if exponent == 0 {
        mantissa as f64 * unit(1 - bias - mbits as i32)
    } else {
        ((1 << mbits) + mantissa) as f64 * unit(exponent as i32 - bias - mbits as i32)
    };
    (if code >> (ebits + mbits) & 1 == 1 { -magnitude } else { magnitude }) as f32
}

/// The value of an fp8 e4m3fn code.
pub fn e4m3(code: u8) -> f32 {
    if code & 0x7f == 0x7f { f32::NAN } else { small_float(code as u32, 4, 3) }
}

/// The value of an fp8 e5m2 code.
pub fn e5m2(code: u8) -> f32 {
    half::f16::from_bits((code as u16) << 8).to_f32()
}

/// Where a quantized row's scale stands: after its codes, rounded up to this.
const CODES: usize = 64;
/// Bytes of scale, zero point and room.
const TRAILER: usize = 64;

/// Bytes of a quantized row of k values.
pub fn rows_bytes(k: usize) -> usize {
    k.next_multiple_of(CODES) + TRAILER
}

/// The byte of a quantized row at which its scale (f32) and then its zero point (i32) stand.
pub fn rows_scale(k: usize) -> usize {
    k.next_multiple_of(CODES)
}

/// The value of a code of a quantized row, before zero point and scale.
pub fn rows_value(rows: Rows, code: u8) -> f32 {
    match rows {
        Rows::E4m3 => e4m3(code),
        Rows::E5m2 => e5m2(code),
        _ => code as i8 as f32,
    }
}

/// The byte of a packed quantized convolution weight at which its scales stand, after its codes: filters and channels
/// are rounded up to 64. `quantized_conv_bytes` has counted it.
pub fn quantized_conv_scales(filters: usize, channels: usize, taps: usize) -> usize {
    filters.next_multiple_of(64) * channels.next_multiple_of(64) * taps
}

/// Bytes of a packed quantized convolution weight, the same on all levels: its codes, then a scale and a sum for each
/// filter. `None` beyond what can be counted.
pub fn quantized_conv_bytes(filters: usize, channels: usize, taps: usize) -> Option<usize> {
    let filters = filters.checked_next_multiple_of(64)?;
    let codes = filters.checked_mul(channels.checked_next_multiple_of(64)?)?.checked_mul(taps)?;
    codes.checked_add(filters.checked_mul(8)?)
}
