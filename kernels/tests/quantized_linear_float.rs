//! `quantized_linear` and `pack_quantized` of weights that are multiplied as floats, against the reference.
mod common;

use common::{ACTIVATIONS, Level, Rng, Tensor, bound, conform_with, levels, normalized_error, run};
use denoise::gemm::WAYS;
use denoise::ops::{self, Args};
use denoise::pool::Pool;
use denoise::quant::{Weight, rows_bytes, rows_scale, small_float};
use denoise::schema::{Activation, DType, Format, Op, Rows};

const FLOATS: [DType; 3] = [DType::F32, DType::BF16, DType::F16];
const ODD: [usize; 10] = [1, 2, 3, 7, 17, 31, 64, 65, 77, 130];

/// Small floats of every width, both extremes of exponent and mantissa among them.
const SMALL: [(u32, u32); 15] = [
    (1, 1),
    (2, 0),
    (2, 1),
    (1, 2),
    (3, 0),
    (2, 2),
    (4, 0),
    (3, 2),
    (2, 3),
    (3, 3),
    (5, 1),
    (4, 3),
    (1, 6),
    (7, 0),
    (5, 2),
];

fn weight(format: Format, group: usize) -> Weight {
    Weight { format, ebits: 0, mbits: 0, group }
}

fn small(ebits: u32, mbits: u32, group: usize) -> Weight {
    Weight { format: Format::Fpx, ebits, mbits, group }
}

struct Case {
    x: Tensor,
    n: usize,
    k: usize,
    weight: Weight,
    codes: Tensor,
    scale: Tensor,
    zero: Option<Tensor>,
    rows: Rows,
    bias: Option<Tensor>,
    gate: Option<Tensor>,
    residual: Option<Tensor>,
    out: Tensor,
    act: Activation,
    variant: u32,
}

/// Whether a code of a format is a finite number.
fn finite(format: Format, code: u8) -> bool {
    match format {
        Format::E4m3 => code & 0x7f != 0x7f,
        Format::E5m2 => code & 0x7c != 0x7c,
        _ => true,
    }
}

/// The largest magnitude of a format.
fn largest(weight: &Weight) -> f32 {
    match weight.format {
        Format::Int8 | Format::SparseInt8 => 128.0,
        Format::Int4 => 8.0,
        Format::E4m3 => 448.0,
        Format::E5m2 => 57344.0,
        Format::Fpx => small_float((1 << (weight.ebits + weight.mbits)) - 1, weight.ebits, weight.mbits),
    }
}

/// Random codes of which all are finite.
fn codes(rng: &mut Rng, weight: &Weight, n: usize, k: usize, gap: usize) -> Tensor {
    let dtype = if weight.format == Format::Int8 { DType::I8 } else { DType::U8 };
    Tensor::padded(dtype, &[n, weight.row_bytes(k)], gap).fill(|_| {
        let code = loop {
            let code = rng.below(256) as u8;
            if finite(weight.format, code) {
                break code;
            }
        };
        if dtype == DType::I8 { code as i8 as f32 } else { code as f32 }
    })
}

/// Quantized rows of random finite codes with scales of their own.
fn quantized_rows(rng: &mut Rng, rows: Rows, m: usize, k: usize, gap: usize) -> Tensor {
    let width = rows_bytes(k);
    let format = if rows == Rows::E4m3 { Format::E4m3 } else { Format::E5m2 };
    let x = codes(rng, &weight(format, 1), m, k, 0).values();
    let at = rows_scale(k);
    let mut scale = 0f32;
    Tensor::padded(DType::U8, &[m, width], gap).fill(|i| {
        let (row, column) = (i / width, i % width);
        if column == at {
            scale = (1.0 + rng.uniform() * 0.5) / largest(&weight(format, 1));
        }
        let byte = match column {
            _ if column < k => return x[row * k + column] as f32,
            _ if (at..at + 4).contains(&column) => scale.to_le_bytes()[column - at],
            _ => 0,
        };
        byte as f32
    })
}

impl Case {
    fn new(rng: &mut Rng, dtype: DType, weight: Weight, [m, n, k]: [usize; 3]) -> Self {
        let groups = weight.groups(k);
        Self {
            x: Tensor::empty(dtype, &[m, k]).random(rng, 1.0),
            n,
            k,
            weight,
            codes: codes(rng, &weight, n, k, 0),
            scale: Tensor::empty(DType::F32, &[n, groups]).fill(|_| (1.0 + rng.uniform() * 0.5) / largest(&weight)),
            zero: None,
            rows: Rows::None,
            bias: None,
            gate: None,
            residual: None,
            out: Tensor::empty(dtype, &[m, n]),
            act: Activation::None,
            variant: 0,
        }
    }
    fn zeros(mut self, rng: &mut Rng) -> Self {
        let groups = self.weight.groups(self.k);
        self.zero = Some(Tensor::empty(DType::I8, &[self.n, groups]).fill(|_| rng.below(16) as f32 - 8.0));
        self
    }
    fn rows(mut self, rng: &mut Rng, rows: Rows) -> Self {
        self.x = quantized_rows(rng, rows, self.x.shape[0], self.k, 0);
        self.rows = rows;
        self
    }
    fn params(&self) -> [u32; 10] {
        let w = &self.weight;
        [
            self.n as u32,
            self.k as u32,
            self.act as u32,
            w.format as u32,
            w.ebits,
            w.mbits,
            w.group as u32,
            self.zero.is_some() as u32,
            self.rows as u32,
            self.variant,
        ]
    }
    fn pack_params(&self) -> [u32; 8] {
        let p = self.params();
        [p[0], p[1], p[3], p[4], p[5], p[6], p[8], self.out.dtype as u32]
    }
    fn packed(&self, level: Level, pool: &Pool) -> Tensor {
        let mut out =
            Tensor::empty(DType::U8, &[self.weight.packed_bytes(self.n, self.k, self.zero.is_some()).unwrap()]);
        let mut inputs = [Some(self.codes.clone()), Some(self.scale.clone()), self.zero.clone()];
        run(level, pool, Op::PackQuantized, &mut inputs, &mut out, &self.pack_params());
        out
    }
    fn inputs(&self, level: Level, pool: &Pool) -> Vec<Option<Tensor>> {
        let packed = self.packed(level, pool);
        vec![Some(self.x.clone()), Some(packed), self.bias.clone(), self.gate.clone(), self.residual.clone()]
    }
    fn what(&self) -> String {
        let zero = if self.zero.is_some() { " with zero points" } else { "" };
        format!("{:?} x ({}, {}) as {:?}{zero}, {:?}", self.x.shape, self.n, self.k, self.weight, self.rows)
    }
    fn check(&self) {
        let prepare = |level: Level, pool: &Pool| self.inputs(level, pool);
        conform_with(&self.what(), Op::QuantizedLinear, prepare, &self.out, &self.params());
    }
    fn run(&self, level: Level, pool: &Pool) -> Vec<f64> {
        let mut out = self.out.clone();
        run(level, pool, Op::QuantizedLinear, &mut self.inputs(level, pool), &mut out, &self.params());
        out.values()
    }
}

/// The formats that stand for themselves, by row.
fn formats(k: usize) -> Vec<Weight> {
    let known = [Format::Int8, Format::E4m3, Format::E5m2].map(|format| weight(format, k));
    let even = k.is_multiple_of(2).then(|| weight(Format::Int4, k));
    known.into_iter().chain(even).chain(SMALL.map(|(ebits, mbits)| small(ebits, mbits, k))).collect()
}

#[test]
fn every_way_to_cut_the_work() {
    let mut rng = Rng(13);
    for variant in 0..=WAYS.len() as u32 {
        for format in [Format::Int8, Format::Int4, Format::E4m3] {
            for (group, [m, n, k]) in [(96, [3, 130, 96]), (32, [70, 200, 96]), (544, [190, 97, 544])] {
                for dtype in [DType::F32, DType::BF16] {
                    let mut case = Case::new(&mut rng, dtype, weight(format, group), [m, n, k]);
                    case.variant = variant;
                    case.check();
                }
            }
        }
    }
}

/// Rows of a multiple of 16 bytes, of x and of the weight, which tensor cores take: tiles that end within, sums that end
/// within a slab, of every way to cut the work.
#[test]
fn rows_of_sixteen_bytes() {
    let mut rng = Rng(20);
    let shapes = [(1, 40, 32), (9, 70, 1056), (16, 33, 128), (21, 130, 96), (150, 150, 160), (70, 300, 64)];
    for variant in 0..=WAYS.len() as u32 {
        for dtype in [DType::BF16, DType::F16] {
            for (i, (m, n, k)) in shapes.into_iter().enumerate() {
                let group = if k % 64 == 0 { 64 } else { 32 };
                let mut cases = vec![
                    Case::new(&mut rng, dtype, weight(Format::Int8, k), [m, n, k]),
                    Case::new(&mut rng, dtype, weight(Format::Int4, group), [m, n, k]),
                    Case::new(&mut rng, dtype, weight(Format::Int4, 32), [m, n, k]).zeros(&mut rng),
                ];
                for format in [Format::E4m3, Format::E5m2] {
                    cases.push(Case::new(&mut rng, dtype, weight(format, k), [m, n, k]));
                    let rows = if i % 2 == 0 { Rows::E4m3 } else { Rows::E5m2 };
                    cases.push(Case::new(&mut rng, dtype, weight(format, k), [m, n, k]).rows(&mut rng, rows));
                }
                for (at, (ebits, mbits)) in SMALL.into_iter().enumerate() {
                    if (at + i + variant as usize).is_multiple_of(3) {
                        cases.push(Case::new(&mut rng, dtype, small(ebits, mbits, k), [m, n, k]));
                    }
                }
                for mut case in cases {
                    case.variant = variant;
                    case.bias = Some(Tensor::empty(DType::F32, &[n]).random(&mut rng, 1.0));
                    case.check();
                }
            }
        }
    }
}

/// Every code of every format by an x of 16 bits: the identity times a weight is the weight.
#[test]
fn every_code_has_its_value_in_halves() {
    let pool = Pool::new(1).unwrap();
    let k = 256;
    for dtype in [DType::BF16, DType::F16] {
        for weight in formats(k) {
            let mut case = Case::new(&mut Rng(21), dtype, weight, [k, 1, k]);
            // The codes in their order; what is not finite apart, as it would make all sums of its row NaN.
            let bits = weight.bits();
            case.codes = Tensor::empty(case.codes.dtype, &[1, weight.row_bytes(k)]).fill(|i| {
                let mut value = 0u8;
                for bit in 0..8 {
                    let at = i * 8 + bit;
                    let code = (at / bits) as u8;
                    let code = if finite(weight.format, code) { code } else { 0 };
                    value |= (code >> (at % bits) & 1) << bit;
                }
                if weight.format == Format::Int8 { value as i8 as f32 } else { value as f32 }
            });
            case.scale = Tensor::empty(DType::F32, &[1, 1]).fill(|_| 1.0);
            let x = Tensor::empty(dtype, &[k, k]).fill(|i| (i / k == i % k) as u8 as f32);
            for m in [8, 64, k] {
                case.out = Tensor::empty(dtype, &[m, 1]);
                for first in (0..k).step_by(m) {
                    let values = x.values();
                    case.x = Tensor::empty(dtype, &[m, k]).fill(|i| values[first * k + i] as f32);
                    for level in levels() {
                        let got = case.run(level, &pool);
                        for (i, got) in got.into_iter().enumerate() {
                            let view = case.codes.view();
                            let want = unsafe { weight.value(view.ptr, first + i, k) };
                            let rounded = Tensor::empty(dtype, &[1]).fill(|_| want).values()[0];
                            let what = format!("{weight:?} in {dtype:?} on {}", level.name());
                            assert!(got == rounded, "{what}: {got} is not {rounded} at {}", first + i);
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn odd_shapes_of_every_format() {
    let mut rng = Rng(1);
    for dtype in FLOATS {
        for (i, &m) in ODD.iter().enumerate() {
            for (j, &n) in ODD.iter().enumerate() {
                let k = ODD[(3 * i + 7 * j) % ODD.len()];
                let formats = formats(k);
                Case::new(&mut rng, dtype, formats[(i * ODD.len() + j) % formats.len()], [m, n, k]).check();
            }
        }
        for k in ODD {
            for weight in formats(k) {
                for m in [1, 20] {
                    Case::new(&mut rng, dtype, weight, [m, 37, k]).check();
                }
            }
        }
    }
}

#[test]
fn every_number_of_rows_of_a_tile() {
    let mut rng = Rng(2);
    for m in 1..=29 {
        for dtype in FLOATS {
            Case::new(&mut rng, dtype, weight(Format::Int8, 51), [m, 40, 51]).check();
            Case::new(&mut rng, dtype, weight(Format::Int4, 64), [m, 40, 128]).zeros(&mut rng).check();
            Case::new(&mut rng, dtype, small(3, 2, 51), [m, 70, 51]).check();
        }
    }
}

#[test]
fn groups_and_zero_points() {
    let mut rng = Rng(3);
    for dtype in FLOATS {
        for m in [1, 3, 8, 33] {
            for (k, group) in [(64, 32), (192, 64), (384, 128), (768, 256), (1056, 32), (2, 2), (66, 66), (160, 160)] {
                for n in [5, 66] {
                    Case::new(&mut rng, dtype, weight(Format::Int4, group), [m, n, k]).check();
                    Case::new(&mut rng, dtype, weight(Format::Int4, group), [m, n, k]).zeros(&mut rng).check();
                }
            }
            // Groups that end within a chunk, within a pair, or hold one column.
            for (k, group) in [(70, 35), (66, 2), (30, 15), (12, 1), (120, 24)] {
                Case::new(&mut rng, dtype, weight(Format::Int4, group), [m, 40, k]).zeros(&mut rng).check();
                Case::new(&mut rng, dtype, small(2, 3, group), [m, 40, k]).check();
                Case::new(&mut rng, dtype, weight(Format::Int8, group), [m, 40, k]).check();
            }
            for format in [Format::Int8, Format::E4m3, Format::E5m2] {
                Case::new(&mut rng, dtype, weight(format, 32), [m, 40, 96]).check();
                Case::new(&mut rng, dtype, weight(format, 9), [m, 40, 27]).check();
            }
        }
    }
}

#[test]
fn rows_of_fp8() {
    let mut rng = Rng(4);
    for rows in [Rows::E4m3, Rows::E5m2] {
        for format in [Format::E4m3, Format::E5m2] {
            for dtype in FLOATS {
                for (m, n, k) in [(1, 1, 1), (3, 40, 63), (8, 65, 130), (21, 33, 64), (70, 130, 301)] {
                    let mut case = Case::new(&mut rng, dtype, weight(format, k), [m, n, k]).rows(&mut rng, rows);
                    case.check();
                    case.x = quantized_rows(&mut rng, rows, m, k, 64);
                    case.bias = Some(Tensor::empty(DType::F32, &[n]).random(&mut rng, 1.0));
                    case.check();
                }
                for (group, k) in [(32, 96), (9, 27)] {
                    Case::new(&mut rng, dtype, weight(format, group), [9, 40, k]).rows(&mut rng, rows).check();
                }
            }
        }
    }
}

#[test]
fn several_blocks_of_k_rows_and_columns() {
    let mut rng = Rng(5);
    for (m, n, k) in [(3, 70, 1026), (1, 300, 2500), (29, 40, 2500), (180, 200, 600), (420, 70, 516)] {
        for dtype in FLOATS {
            for weight in [weight(Format::Int8, k), weight(Format::Int4, k / 2), small(3, 2, k), small(4, 3, k)] {
                let mut case = Case::new(&mut rng, dtype, weight, [m, n, k]);
                case.bias = Some(Tensor::empty(DType::F32, &[n]).random(&mut rng, 1.0));
                case.check();
            }
        }
    }
    let case = Case::new(&mut rng, DType::F32, weight(Format::E4m3, 1100), [200, 70, 1100]);
    case.rows(&mut rng, Rows::E4m3).check();
}

#[test]
fn epilogues() {
    let mut rng = Rng(6);
    for dtype in FLOATS {
        for (m, weight) in [(1, weight(Format::Int4, 32)), (5, weight(Format::Int8, 64)), (17, small(2, 1, 64))] {
            for (parts, act) in (0..8).flat_map(|parts| ACTIVATIONS.map(|act| (parts, act))) {
                let n = 77;
                let mut case = Case::new(&mut rng, dtype, weight, [m, n, 64]);
                case.act = act;
                if parts & 1 > 0 {
                    case.bias = Some(Tensor::empty(DType::F32, &[n]).random(&mut rng, 1.0));
                }
                if parts & 2 > 0 {
                    let shapes = [vec![m, n], vec![1, n], vec![m, 1], vec![n], vec![1], vec![]];
                    case.gate = Some(Tensor::empty(dtype, &shapes[rng.below(6)]).random(&mut rng, 1.0));
                }
                if parts & 4 > 0 {
                    case.residual = Some(Tensor::padded(dtype, &[m, n], 3).random(&mut rng, 1.0));
                }
                case.check();
            }
        }
    }
}

#[test]
fn strides_and_batches() {
    let mut rng = Rng(7);
    for dtype in FLOATS {
        for (b, m) in [(3, 19), (1, 57), (57, 1), (2, 1)] {
            let (n, k) = (70, 46);
            for weight in [weight(Format::Int8, k), weight(Format::Int4, k), small(4, 2, k)] {
                let mut case = Case::new(&mut rng, dtype, weight, [1, n, k]);
                case.x = Tensor::padded(dtype, &[b, m, k], 5).random(&mut rng, 1.0);
                case.out = Tensor::with_strides(dtype, &[b, m, n], &[(m + 4) * (n + 9), n + 9, 1]);
                case.gate = Some(Tensor::with_strides(dtype, &[b, m, n], &[n, 0, 1]).random(&mut rng, 1.0));
                case.residual = Some(Tensor::with_strides(dtype, &[b, m, n], &[1, b, m * b]).random(&mut rng, 1.0));
                case.codes = codes(&mut rng, &weight, n, k, 11);
                case.check();
            }
        }
        let mut case = Case::new(&mut rng, dtype, weight(Format::Int8, 40), [1, 33, 40]);
        case.x = Tensor::with_strides(dtype, &[5, 40], &[0, 1]).random(&mut rng, 1.0);
        case.out = Tensor::empty(dtype, &[5, 33]);
        case.check();
        case.x = Tensor::empty(dtype, &[40]).random(&mut rng, 1.0);
        case.out = Tensor::empty(dtype, &[33]);
        case.check();
    }
}

#[test]
fn nothing_to_sum_and_nothing_to_make() {
    let mut rng = Rng(8);
    for dtype in FLOATS {
        for (m, n, k) in [(0, 5, 6), (5, 0, 6), (0, 0, 0), (1, 40, 0), (20, 40, 0)] {
            for weight in [weight(Format::Int8, k.max(1)), weight(Format::Int4, k.max(1)), small(3, 2, k.max(1))] {
                Case::new(&mut rng, dtype, weight, [m, n, k]).check();
                let mut case = Case::new(&mut rng, dtype, weight, [m, n, k]);
                case.bias = Some(Tensor::empty(DType::F32, &[n]).random(&mut rng, 1.0));
                case.check();
            }
        }
    }
}

/// The identity times a weight is the weight: every code of every format, exactly.
#[test]
fn every_code_has_its_value() {
    let pool = Pool::new(2).unwrap();
    let k = 256;
    for weight in formats(k) {
        let mut case = Case::new(&mut Rng(9), DType::F32, weight, [k, 3, k]);
        let dtype = case.codes.dtype;
        // Bits run through all codes; the rows begin at different ones.
        case.codes = Tensor::empty(dtype, &[3, weight.row_bytes(k)]).fill(|i| {
            let (row, byte) = (i / weight.row_bytes(k), i % weight.row_bytes(k));
            let mut value = 0;
            for bit in 0..8 {
                let at = byte * 8 + bit;
                let code = at / weight.bits() + row * 5;
                value |= (code >> (at % weight.bits()) & 1) << bit;
            }
            if dtype == DType::I8 { value as u8 as i8 as f32 } else { value as f32 }
        });
        case.scale = Tensor::empty(DType::F32, &[3, 1]).fill(|_| 1.0);
        for m in [1, 4, k] {
            for first in (0..k).step_by(m).take(64) {
                case.x = Tensor::empty(DType::F32, &[m, k]).fill(|i| (i / k + first == i % k) as u8 as f32);
                case.out = Tensor::empty(DType::F32, &[m, 3]);
                for level in levels() {
                    let got = case.run(level, &pool);
                    for (i, got) in got.iter().enumerate() {
                        let (column, row) = (i % 3, i / 3 + first);
                        let view = case.codes.view();
                        let want = unsafe { weight.value(view.ptr.add(column * weight.row_bytes(k)), row, k) } as f64;
                        // One code that is not finite makes all sums of its row NaN: 0 times infinity.
                        let special = (0..k).any(|at| {
                            !unsafe { weight.value(view.ptr.add(column * weight.row_bytes(k)), at, k) }.is_finite()
                        });
                        assert!(
                            if special { !got.is_finite() } else { *got == want },
                            "{weight:?} on {}: {got} is not {want} at {column}, {row}",
                            level.name()
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn what_is_not_finite_stays_so() {
    let pool = Pool::new(1).unwrap();
    let (n, k) = (40, 64);
    for dtype in FLOATS {
        for (format, code) in [(Format::E4m3, 0x7f), (Format::E4m3, 0xff), (Format::E5m2, 0x7e), (Format::E5m2, 0xfc)] {
            for rows in [Rows::None, Rows::E4m3, Rows::E5m2] {
                for m in [1, 20] {
                    let mut case = Case::new(&mut Rng(10), dtype, weight(format, k), [m, n, k]);
                    case.scale = Tensor::empty(DType::F32, &[n, 1]).fill(|_| 1e-7);
                    case.codes =
                        Tensor::empty(DType::U8, &[n, k]).fill(|i| if i == 7 * k + 33 { code as f32 } else { 0.0 });
                    if rows != Rows::None {
                        case = case.rows(&mut Rng(11), rows);
                    }
                    for level in levels() {
                        let got = case.run(level, &pool);
                        for (i, value) in got.iter().enumerate() {
                            assert_eq!(value.is_finite(), i % n != 7, "{} on {} at {i}", case.what(), level.name());
                        }
                    }
                }
            }
        }
        for m in [3, 20] {
            // Of x, one row alone is touched.
            let mut case = Case::new(&mut Rng(12), dtype, weight(Format::Int4, 32), [m, n, k]).zeros(&mut Rng(13));
            let x = case.x.values();
            case.x = Tensor::empty(dtype, &[m, k]).fill(|i| if i == k + 5 { f32::NAN } else { x[i] as f32 });
            for level in levels() {
                let got = case.run(level, &pool);
                assert!(got.iter().enumerate().all(|(i, value)| value.is_nan() == (i / n == 1)));
            }
        }
    }
}

#[test]
fn the_largest_codes() {
    let mut rng = Rng(14);
    for m in [1, 4, 18] {
        for byte in [0x80u8, 0x88, 0x7f, 0x77, 0xff] {
            for dtype in [DType::F32, DType::BF16] {
                let mut case = Case::new(&mut rng, dtype, weight(Format::Int8, 130), [m, 33, 130]);
                case.codes = Tensor::empty(DType::I8, &[33, 130]).fill(|_| byte as i8 as f32);
                case.check();
                let mut case = Case::new(&mut rng, dtype, weight(Format::Int4, 64), [m, 33, 128]).zeros(&mut rng);
                case.codes = Tensor::empty(DType::U8, &[33, 64]).fill(|_| byte as f32);
                case.check();
            }
        }
    }
}

#[test]
fn threads_do_not_change_results() {
    let mut rng = Rng(15);
    for m in [1, 4, 45] {
        for weight in [weight(Format::Int8, 704), weight(Format::Int4, 64)] {
            let case = Case::new(&mut rng, DType::F32, weight, [m, 300, 704]);
            for level in levels() {
                let mut first = None;
                for threads in 1..=4 {
                    let values = case.run(level, &Pool::new(threads).unwrap());
                    assert!(first.get_or_insert_with(|| values.clone()) == &values, "{} {threads}", level.name());
                }
            }
        }
    }
}

/// Any bytes can stand in a packed weight of an untrusted file.
#[test]
fn any_packed_bytes_are_taken() {
    let mut rng = Rng(16);
    let pool = Pool::new(2).unwrap();
    for weight in formats(64).into_iter().chain([weight(Format::Int4, 32)]) {
        for m in [1, 20] {
            let case = Case::new(&mut rng, DType::F32, weight, [m, 70, 64]).zeros(&mut rng);
            let bytes = weight.packed_bytes(70, 64, true).unwrap();
            let packed = Tensor::empty(DType::U8, &[bytes]).fill(|_| rng.below(256) as f32);
            for level in levels() {
                let mut inputs = [Some(case.x.clone()), Some(packed.clone()), None, None, None];
                run(level, &pool, Op::QuantizedLinear, &mut inputs, &mut case.out.clone(), &case.params());
            }
        }
    }
}

#[test]
fn refusals() {
    let mut rng = Rng(17);
    let case = || Case::new(&mut Rng(18), DType::F32, weight(Format::Int4, 32), [2, 5, 64]);
    let refuses = |case: &Case, change: &dyn Fn(&mut [u32; 10]), says: &str| {
        let packed =
            Tensor::empty(DType::U8, &[case.weight.packed_bytes(case.n, case.k, case.zero.is_some()).unwrap_or(1)]);
        let mut tensors = [Some(case.x.clone()), Some(packed), None, None, None, Some(case.out.clone())];
        let views: Vec<_> = tensors.iter_mut().map(|t| t.as_mut().map(Tensor::view)).collect();
        let mut params = case.params();
        change(&mut params);
        let error = (ops::kernel(Op::QuantizedLinear).check)(&Args { operands: &views, params: &params });
        let message = error.expect_err(says).message;
        assert!(message.contains(says), "{message} does not say: {says}");
    };
    refuses(&case(), &|p| p[6] = 48, "groups of 48");
    refuses(&case(), &|p| p[3] = 9, "format of code 9");
    refuses(&case(), &|p| p[8] = 9, "rows of code 9");
    refuses(&case(), &|p| p[2] = 99, "activation of code 99");
    refuses(&case(), &|p| p[8] = Rows::E4m3 as u32, "cannot multiply rows of E4m3");
    refuses(&case(), &|p| p[0] = 200, "gives out");
    let mut other = case();
    other.x = Tensor::empty(DType::BF16, &[2, 64]);
    refuses(&other, &|_| (), "takes x in F32");
    let mut other = case();
    other.weight = small(8, 0, 64);
    refuses(&other, &|_| (), "cannot take 64 columns");
    let _ = rng.next();
}

/// The bound of the whole: errors of all outputs together, at a width that models have.
#[test]
fn errors_stay_within_bounds_at_width() {
    let mut rng = Rng(19);
    let pool = Pool::new(2).unwrap();
    for dtype in FLOATS {
        for m in [1, 12] {
            let case = Case::new(&mut rng, dtype, weight(Format::Int4, 128), [m, 256, 3072]).zeros(&mut rng);
            let want = case.run(Level::Reference, &pool);
            for level in levels() {
                let error = normalized_error(&case.run(level, &pool), &want);
                assert!(error <= bound(dtype), "{dtype:?} on {}: {error:.3e}", level.name());
            }
        }
    }
}
