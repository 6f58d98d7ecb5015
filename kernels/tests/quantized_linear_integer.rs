//! `quantized_linear` of int8 rows by weights of integers, and their packing, against the reference.
mod common;

use common::{ACTIVATIONS, Level, Rng, Tensor, conform_with, levels, run};
use denoise::gemm::WAYS;
use denoise::ops::{self, Args};
use denoise::pool::Pool;
use denoise::quant::{Weight, rows_bytes, rows_scale};
use denoise::schema::{Activation, DType, Format, Op, Rows};

const FLOATS: [DType; 3] = [DType::F32, DType::BF16, DType::F16];
const FORMATS: [Format; 3] = [Format::Int8, Format::Int4, Format::SparseInt8];

fn bytes(tensor: &mut Tensor) -> *mut u8 {
    tensor.view().ptr
}

/// Quantized rows of any codes, -128 among them.
fn rows(rng: &mut Rng, kind: Rows, lead: &[usize], k: usize, gap: usize, exact: bool) -> Tensor {
    let mut shape = lead.to_vec();
    shape.push(rows_bytes(k));
    let mut x = Tensor::padded(DType::U8, &shape, gap);
    let view = x.view();
    for row in 0..view.rows() {
        let to = unsafe { view.ptr.add(view.row_offset(row)) };
        let codes = (0..k).map(|_| (rng.next() % 256) as u8);
        let mut all: Vec<u8> = codes.collect();
        all.resize(rows_bytes(k), 0);
        let scale = if exact { 1.0 } else { (rng.uniform() + 1.5) * 0.01 };
        let zero = if kind == Rows::Int8Asym { (rng.next() % 256) as i32 - 128 } else { 0 };
        all[rows_scale(k)..][..4].copy_from_slice(&f32::to_ne_bytes(scale));
        all[rows_scale(k) + 4..][..4].copy_from_slice(&i32::to_ne_bytes(zero));
        unsafe { std::ptr::copy_nonoverlapping(all.as_ptr(), to, all.len()) };
    }
    x
}

struct Case {
    weight: Weight,
    n: usize,
    k: usize,
    kind: Rows,
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero: Option<Tensor>,
    bias: Option<Tensor>,
    gate: Option<Tensor>,
    residual: Option<Tensor>,
    out: Tensor,
    act: Activation,
    variant: u32,
}

impl Case {
    fn new(rng: &mut Rng, weight: Weight, kind: Rows, [m, n, k]: [usize; 3], zero: bool) -> Self {
        let groups = weight.groups(k);
        let dtype = if weight.format == Format::Int8 { DType::I8 } else { DType::U8 };
        let mut codes = Tensor::padded(dtype, &[n, weight.row_bytes(k)], 5);
        let view = codes.view();
        for row in 0..n {
            for i in 0..weight.row_bytes(k) {
                unsafe { *view.ptr.add(row * view.strides[0] + i) = (rng.next() % 256) as u8 };
            }
        }
        let zero = zero.then(|| Tensor::empty(DType::I8, &[n, groups]).fill(|_| (rng.next() % 16) as f32 - 8.0));
        Self {
            weight,
            n,
            k,
            kind,
            x: rows(rng, kind, &[m], k, if k % 64 == 0 { 16 } else { 3 }, false),
            codes,
            scale: Tensor::empty(DType::F32, &[n, groups]).fill(|_| (rng.uniform() + 1.5) * 0.01),
            zero,
            bias: None,
            gate: None,
            residual: None,
            out: Tensor::empty(DType::F32, &[m, n]),
            act: Activation::None,
            variant: 0,
        }
    }
    fn pack_params(&self) -> [u32; 8] {
        let w = &self.weight;
        let (n, k, group) = (self.n as u32, self.k as u32, w.group as u32);
        [n, k, w.format as u32, w.ebits, w.mbits, group, self.kind as u32, self.out.dtype as u32]
    }
    fn params(&self) -> [u32; 10] {
        let [n, k, format, ebits, mbits, group, rows, _] = self.pack_params();
        [n, k, self.act as u32, format, ebits, mbits, group, self.zero.is_some() as u32, rows, self.variant]
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
    fn check(&self) {
        let what = format!(
            "{:?} {:?} x ({}, {}) of {:?}, zero points {}, {:?} to {:?}",
            self.kind,
            self.x.shape,
            self.n,
            self.k,
            self.weight,
            self.zero.is_some(),
            self.act,
            self.out.dtype
        );
        let prepare = |level: Level, pool: &Pool| self.inputs(level, pool);
        conform_with(&what, Op::QuantizedLinear, prepare, &self.out, &self.params());
    }
}

fn weight(format: Format, group: usize) -> Weight {
    Weight { format, ebits: 0, mbits: 0, group }
}

/// What the sizes of a format's K are multiples of.
fn unit(format: Format) -> usize {
    match format {
        Format::Int4 => 2,
        Format::SparseInt8 => 8,
        _ => 1,
    }
}

const KINDS: [Rows; 2] = [Rows::Int8, Rows::Int8Asym];

#[test]
fn odd_shapes() {
    let mut rng = Rng(1);
    let sizes: [usize; 12] = [1, 2, 3, 7, 13, 17, 31, 64, 65, 77, 127, 130];
    for format in FORMATS {
        for (i, &m) in sizes.iter().enumerate() {
            for (j, &n) in sizes.iter().enumerate() {
                let k = sizes[(5 * i + 7 * j) % sizes.len()].next_multiple_of(unit(format));
                let kind = KINDS[(i + j) % 2];
                Case::new(&mut rng, weight(format, k), kind, [m, n, k], format == Format::Int4 && i % 2 == 0).check();
            }
        }
    }
}

#[test]
fn every_number_of_rows_of_a_tile() {
    let mut rng = Rng(2);
    for m in 1..=29 {
        for format in FORMATS {
            Case::new(&mut rng, weight(format, 72), Rows::Int8, [m, 40, 72], false).check();
            Case::new(&mut rng, weight(format, 32), Rows::Int8Asym, [m, 40, 96], false).check();
        }
    }
}

#[test]
fn every_way_to_cut_the_work() {
    let mut rng = Rng(12);
    for variant in 0..=WAYS.len() as u32 {
        for (group, [m, n, k]) in [(96, [3, 130, 96]), (32, [70, 200, 96]), (2112, [190, 97, 2112])] {
            for format in FORMATS {
                let mut case = Case::new(&mut rng, weight(format, group), Rows::Int8, [m, n, k], false);
                case.variant = variant;
                case.check();
            }
        }
    }
}

/// Columns that are a multiple of 32, of rows at a multiple of 16 bytes, which tensor cores take: tiles that end within,
/// sums that end within a slab, of every way to cut the work.
#[test]
fn rows_of_sixteen_bytes() {
    let mut rng = Rng(14);
    let shapes = [(1, 40, 32), (9, 70, 1056), (16, 33, 128), (21, 130, 256), (150, 150, 160), (70, 300, 128)];
    for variant in 0..=WAYS.len() as u32 {
        for (m, n, k) in shapes {
            for kind in KINDS {
                for (format, group, zero) in [
                    (Format::Int8, k, false),
                    (Format::Int4, 32, false),
                    (Format::Int4, k, true),
                    (Format::SparseInt8, k, false),
                ] {
                    let mut case = Case::new(&mut rng, weight(format, group), kind, [m, n, k], zero);
                    case.x = rows(&mut rng, kind, &[m], k, 16, false);
                    case.variant = variant;
                    case.bias = Some(Tensor::empty(DType::F32, &[n]).random(&mut rng, 1.0));
                    case.check();
                }
            }
        }
    }
}

#[test]
fn groups() {
    let mut rng = Rng(3);
    for format in FORMATS {
        for (group, k) in [(32, 32), (32, 64), (32, 96), (64, 192), (96, 288), (128, 384), (256, 1280), (672, 1344)] {
            for kind in KINDS {
                for zero in [false, true] {
                    if !zero || format == Format::Int4 {
                        for m in [1, 5, 19] {
                            Case::new(&mut rng, weight(format, group), kind, [m, 37, k], zero).check();
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn several_blocks_of_k_rows_and_columns() {
    let mut rng = Rng(4);
    for (m, n, k) in [(3, 70, 1048), (29, 40, 4200), (180, 600, 320), (61, 260, 3072), (400, 70, 2080)] {
        for format in FORMATS {
            let mut case = Case::new(&mut rng, weight(format, k), Rows::Int8Asym, [m, n, k], format == Format::Int4);
            case.bias = Some(Tensor::empty(DType::F32, &[n]).random(&mut rng, 1.0));
            case.check();
        }
        if k % 32 == 0 {
            Case::new(&mut rng, weight(Format::Int4, 32), Rows::Int8Asym, [m, n, k], false).check();
        }
    }
}

#[test]
fn epilogues() {
    let mut rng = Rng(5);
    for (i, dtype) in FLOATS.into_iter().cycle().take(9).enumerate() {
        let (format, n, k) = [(FORMATS[i / 3], 77, 64), (FORMATS[i / 3], 64, 128)][i % 2];
        for parts in 0..8 {
            for act in ACTIVATIONS {
                let group = if parts % 2 == 0 { k } else { 32 };
                let mut case = Case::new(&mut rng, weight(format, group), KINDS[parts % 2], [17, n, k], false);
                (case.act, case.out) = (act, Tensor::padded(dtype, &[17, n], 2));
                if parts & 1 > 0 {
                    case.bias = Some(Tensor::empty(DType::F32, &[n]).random(&mut rng, 1.0));
                }
                if parts & 2 > 0 {
                    let shapes = [vec![17, n], vec![1, n], vec![17, 1], vec![n], vec![1], vec![]];
                    case.gate = Some(Tensor::empty(dtype, &shapes[rng.below(6)]).random(&mut rng, 1.0));
                }
                if parts & 4 > 0 {
                    case.residual = Some(Tensor::padded(dtype, &[17, n], 3).random(&mut rng, 1.0));
                }
                case.check();
            }
        }
    }
}

#[test]
fn strides_and_batches() {
    let mut rng = Rng(6);
    let (b, m, n, k) = (3, 19, 70, 64);
    for format in FORMATS {
        for (lead, gap) in [([b, m], 0), ([1, b * m], 5), ([b * m, 1], 2)] {
            let [b, m] = lead;
            let mut case = Case::new(&mut rng, weight(format, 32), Rows::Int8Asym, [1, n, k], format == Format::Int4);
            case.x = rows(&mut rng, Rows::Int8Asym, &lead, k, gap, false);
            case.out = Tensor::with_strides(DType::BF16, &[b, m, n], &[(m + 4) * (n + 9), n + 9, 1]);
            case.gate = Some(Tensor::with_strides(DType::BF16, &[b, m, n], &[n, 0, 1]).random(&mut rng, 1.0));
            case.residual = Some(Tensor::with_strides(DType::BF16, &[b, m, n], &[1, b, m * b]).random(&mut rng, 1.0));
            case.check();
        }
    }
}

#[test]
fn nothing_to_sum_and_nothing_to_make() {
    let mut rng = Rng(7);
    for format in FORMATS {
        for (m, n, k) in [(0, 5, 8), (5, 0, 8), (0, 0, 0), (5, 7, 0)] {
            let group = if k == 0 { 32 } else { k };
            Case::new(&mut rng, weight(format, group), Rows::Int8Asym, [m, n, k], false).check();
        }
    }
}

/// With scales of 1 and sums below 2^24 nothing rounds: results are the integers themselves, on every level.
#[test]
fn sums_are_exact() {
    let mut rng = Rng(8);
    for format in FORMATS {
        for (group, k) in [(264, 264), (32, 288), (480, 480)] {
            for kind in KINDS {
                let mut case = Case::new(&mut rng, weight(format, group), kind, [23, 50, k], format == Format::Int4);
                case.scale = Tensor::empty(DType::F32, &[50, k / group]).fill(|_| 1.0);
                case.x = rows(&mut rng, kind, &[23], k, 0, true);
                let pool = Pool::new(1).unwrap();
                let result = |level: Level| {
                    let mut out = case.out.clone();
                    run(level, &pool, Op::QuantizedLinear, &mut case.inputs(level, &pool), &mut out, &case.params());
                    out.values()
                };
                let want = result(Level::Reference);
                assert!(want.iter().all(|v| v.fract() == 0.0 && v.abs() < 16_777_216.0));
                for level in levels() {
                    assert!(result(level) == want, "{kind:?} by {:?} on {}", case.weight, level.name());
                }
            }
        }
    }
}

/// The largest sums that 65536 columns can have: -128 everywhere, and zero points at the other end.
#[test]
fn the_longest_rows_do_not_overflow() {
    let pool = Pool::new(1).unwrap();
    let k = 65536;
    for (code, zero) in [(-128i8, 127i32), (127, -128), (-128, 0)] {
        let mut case = Case::new(&mut Rng(9), weight(Format::Int8, k), Rows::Int8Asym, [2, 33, k], false);
        case.codes = Tensor::empty(DType::I8, &[33, k]).fill(|_| -128.0);
        case.scale = Tensor::empty(DType::F32, &[33, 1]).fill(|_| 1.0);
        let (to, step) = (bytes(&mut case.x), case.x.strides[0]);
        for row in 0..2 {
            unsafe {
                let to = to.add(row * step);
                std::ptr::write_bytes(to, code as u8, k);
                (to.add(rows_scale(k)) as *mut f32).write_unaligned(1.0);
                (to.add(rows_scale(k) + 4) as *mut i32).write_unaligned(zero);
            }
        }
        let want = (code as i64 - zero as i64) * -128 * k as i64;
        for level in levels() {
            let mut out = case.out.clone();
            run(level, &pool, Op::QuantizedLinear, &mut case.inputs(level, &pool), &mut out, &case.params());
            assert!(out.values().iter().all(|&v| v == want as f32 as f64), "{}: {want}", level.name());
        }
    }
}

/// Whatever stands in packed bytes and in rows, only operands are touched.
#[test]
fn any_data_is_harmless() {
    let mut rng = Rng(10);
    let pool = Pool::new(2).unwrap();
    for format in FORMATS {
        for group in [96, 32] {
            let case = Case::new(&mut rng, weight(format, group), Rows::Int8Asym, [5, 70, 96], format == Format::Int4);
            for level in levels().into_iter().chain([Level::Reference]) {
                let mut inputs = case.inputs(level, &pool);
                for tensor in inputs.iter_mut().take(2).flatten() {
                    let (to, len) = (bytes(tensor), tensor.shape.iter().product::<usize>());
                    (0..len).for_each(|i| unsafe { *to.add(i) = (rng.next() % 256) as u8 });
                }
                run(level, &pool, Op::QuantizedLinear, &mut inputs, &mut case.out.clone(), &case.params());
            }
        }
    }
}

#[test]
fn packing_depends_on_nothing_else() {
    let mut rng = Rng(11);
    for (format, group, zero) in [(Format::Int8, 96, false), (Format::Int4, 32, true), (Format::SparseInt8, 96, false)]
    {
        let case = Case::new(&mut rng, weight(format, group), Rows::Int8, [1, 70, 96], zero);
        for level in levels() {
            let first = case.packed(level, &Pool::new(1).unwrap()).values();
            assert!(first == case.packed(level, &Pool::new(3).unwrap()).values());
        }
    }
}

#[test]
fn threads_do_not_change_results() {
    let mut rng = Rng(12);
    for (format, group) in [(Format::Int8, 1600), (Format::Int4, 32), (Format::SparseInt8, 1600)] {
        let case = Case::new(&mut rng, weight(format, group), Rows::Int8, [45, 300, 1600], false);
        for level in levels() {
            let mut first = None;
            for threads in 1..=4 {
                let pool = Pool::new(threads).unwrap();
                let mut out = case.out.clone();
                run(level, &pool, Op::QuantizedLinear, &mut case.inputs(level, &pool), &mut out, &case.params());
                let values = out.values();
                assert!(first.get_or_insert_with(|| values.clone()) == &values, "{}", level.name());
            }
        }
    }
}

#[test]
fn refusals() {
    let mut rng = Rng(13);
    let refuses = |op: Op, mut operands: Vec<Option<Tensor>>, params: &[u32], says: &str| {
        let views: Vec<_> = operands.iter_mut().map(|t| t.as_mut().map(Tensor::view)).collect();
        let error = (ops::kernel(op).check)(&Args { operands: &views, params }).expect_err(says);
        assert!(error.message.contains(says), "{} does not say: {says}", error.message);
    };
    let case = Case::new(&mut rng, weight(Format::Int4, 32), Rows::Int8, [3, 10, 96], true);
    let pool = Pool::new(1).unwrap();
    let good = || {
        let mut operands = case.inputs(Level::Portable, &pool);
        operands.push(Some(case.out.clone()));
        operands
    };
    let with = |index: usize, value: u32| {
        let mut params = case.params();
        params[index] = value;
        params
    };
    let linear = |params: &[u32], says: &str| refuses(Op::QuantizedLinear, good(), params, says);
    linear(&with(0, 11), "gives out of 11 columns");
    linear(&with(1, 192), "takes x of 256 columns");
    linear(&with(3, 9), "no format of code 9");
    linear(&with(3, Format::E4m3 as u32), "cannot multiply rows of Int8 by a weight of E4m3");
    linear(&with(6, 48), "groups of a multiple of 32 columns");
    linear(&with(6, 0), "groups of 0");
    linear(&with(6, 96), "another packed weight");
    linear(&with(8, 7), "no rows of code 7");
    linear(&with(8, Rows::E4m3 as u32), "cannot multiply");
    let mut operands = good();
    operands[0] = Some(Tensor::empty(DType::I8, &[3, rows_bytes(96)]));
    refuses(Op::QuantizedLinear, operands, &case.params(), "takes x in U8");
    let mut long = case.params();
    (long[1], long[6]) = (131_072, 32);
    linear(&long, "at most 65536 columns");
    let pack = |index: usize, tensor: Option<Tensor>, says: &str| {
        let out = Tensor::empty(DType::U8, &[case.weight.packed_bytes(10, 96, case.zero.is_some()).unwrap()]);
        let mut operands = vec![Some(case.codes.clone()), Some(case.scale.clone()), case.zero.clone(), Some(out)];
        operands[index] = tensor;
        refuses(Op::PackQuantized, operands, &case.pack_params(), says);
    };
    pack(0, Some(Tensor::empty(DType::U8, &[10, 47])), "takes codes of [10, 48]");
    pack(0, Some(Tensor::empty(DType::I8, &[10, 48])), "codes in U8");
    pack(1, Some(Tensor::empty(DType::F32, &[10, 2])), "scales of [10, 3]");
    pack(2, Some(Tensor::empty(DType::I8, &[10, 1])), "zero points of [10, 3]");
    pack(3, Some(Tensor::empty(DType::U8, &[100])), "another size");
}
