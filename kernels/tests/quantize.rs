//! `quantize_scale`, `quantize_zero_point`, `quantize_codes`, `dequantize` and `prune_semi_structured`: every level
//! equal to the reference in every bit.
mod common;

use common::{Level, Rng, Tensor, levels, run};
use denoise::ops::{self, Args};
use denoise::pool::Pool;
use denoise::quant::{Weight, small_float};
use denoise::schema::{DType, Format, Op};
use denoise::view::View;

const FLOATS: [DType; 3] = [DType::F32, DType::BF16, DType::F16];

const SMALL: [(u32, u32); 9] = [(2, 1), (2, 2), (3, 1), (2, 3), (3, 2), (4, 3), (5, 2), (1, 1), (7, 0)];

/// Every format, with a few of the small floats.
fn formats() -> Vec<(Format, u32, u32)> {
    let mut all = vec![
        (Format::Int8, 0, 0),
        (Format::Int4, 0, 0),
        (Format::E4m3, 0, 0),
        (Format::E5m2, 0, 0),
        (Format::SparseInt8, 0, 0),
    ];
    all.extend(SMALL.map(|(ebits, mbits)| (Format::Fpx, ebits, mbits)));
    all
}

/// The bits of each value, NaN as one.
fn bits(tensor: &Tensor) -> Vec<u64> {
    tensor.values().into_iter().map(|x| if x.is_nan() { u64::MAX } else { x.to_bits() }).collect()
}

/// Runs an instruction on every level with 1 and 3 threads: the reference's result, to which all others are equal.
fn same(what: &str, op: Op, inputs: &[Option<Tensor>], out: &Tensor, params: &[u32]) -> Tensor {
    let one = Pool::new(1).unwrap();
    let mut want = out.clone();
    run(Level::Reference, &one, op, &mut inputs.to_vec(), &mut want, params);
    let want_bits = bits(&want);
    for threads in [1, 3] {
        let pool = Pool::new(threads).unwrap();
        for level in levels() {
            let mut got = out.clone();
            run(level, &pool, op, &mut inputs.to_vec(), &mut got, params);
            let got = bits(&got);
            let differences: Vec<usize> = (0..got.len()).filter(|&i| got[i] != want_bits[i]).collect();
            assert!(
                differences.is_empty(),
                "{what}: {op:?} on {} differs in {} of {} places, the first {:?}: {:?}, not {:?}",
                level.name(),
                differences.len(),
                got.len(),
                differences[0],
                f64::from_bits(got[differences[0]]),
                f64::from_bits(want_bits[differences[0]]),
            );
        }
    }
    want
}

/// A weight's stored form, made on every level.
struct Stored {
    weight: Weight,
    shape: [usize; 2],
    scale: Tensor,
    zero: Option<Tensor>,
    codes: Tensor,
}

/// Quantizes and dequantizes on every level; `symmetric` as in `quantize_scale`.
fn quantized(
    what: &str,
    x: &Tensor,
    (format, ebits, mbits): (Format, u32, u32),
    group: usize,
    symmetric: bool,
    dtype: DType,
) -> Stored {
    let shape = [x.shape[0], x.shape[1]];
    let [n, k] = shape;
    let weight = Weight { format, ebits, mbits, group };
    let groups = [n, weight.groups(k)];
    let what = format!("{what} {:?} {shape:?} {weight:?} symmetric {symmetric} in {dtype:?}", x.dtype);
    let x = Some(x.clone());
    let code = [format as u32, ebits, mbits, group as u32];
    let scale = same(
        &what,
        Op::QuantizeScale,
        std::slice::from_ref(&x),
        &Tensor::empty(DType::F32, &groups),
        &[&code[..], &[symmetric as u32, dtype as u32]].concat(),
    );
    let zero = (!symmetric).then(|| {
        let params = [format as u32, group as u32, dtype as u32];
        let inputs = [x.clone(), Some(scale.clone())];
        same(&what, Op::QuantizeZeroPoint, &inputs, &Tensor::empty(DType::I8, &groups), &params)
    });
    let stored = if format == Format::Int8 { DType::I8 } else { DType::U8 };
    let codes = same(
        &what,
        Op::QuantizeCodes,
        &[x, Some(scale.clone()), zero.clone()],
        &Tensor::empty(stored, &[n, weight.row_bytes(k)]),
        &[&code[..], &[dtype as u32]].concat(),
    );
    for out in FLOATS {
        let params = [&[n as u32, k as u32], &code[..]].concat();
        let inputs = [Some(codes.clone()), Some(scale.clone()), zero.clone()];
        same(&what, Op::Dequantize, &inputs, &Tensor::empty(out, &shape), &params);
    }
    Stored { weight, shape, scale, zero, codes }
}

impl Stored {
    /// The values that the codes stand for, in f32.
    fn values(&self) -> Vec<f64> {
        let [n, k] = self.shape;
        let w = self.weight;
        let params = [n, k, w.format as usize, w.ebits as usize, w.mbits as usize, w.group].map(|x| x as u32);
        let mut out = Tensor::empty(DType::F32, &self.shape);
        let mut inputs = [Some(self.codes.clone()), Some(self.scale.clone()), self.zero.clone()];
        run(Level::best(), &Pool::new(1).unwrap(), Op::Dequantize, &mut inputs, &mut out, &params);
        out.values()
    }
}

#[test]
fn every_format_shape_and_dtype() {
    let mut rng = Rng(1);
    for format in formats() {
        for (n, k, groups) in [(1, 8, 1), (3, 40, 5), (7, 96, 3), (2, 1000, 1), (5, 1048, 1), (33, 64, 2), (2, 272, 34)]
        {
            for from in FLOATS {
                let x = Tensor::padded(from, &[n, k], 5).random(&mut rng, 0.3);
                for dtype in FLOATS {
                    quantized("random", &x, format, k / groups, true, dtype);
                    if format.0 == Format::Int4 {
                        quantized("random", &x, format, k / groups, false, dtype);
                    }
                }
            }
        }
    }
}

#[test]
fn columns_that_end_within_a_vector_or_a_byte() {
    let mut rng = Rng(2);
    for format in formats() {
        for k in (1..70).chain([127, 130, 4097]) {
            let weight = Weight { format: format.0, ebits: format.1, mbits: format.2, group: k };
            if weight.takes(k) {
                let x = Tensor::padded(DType::F32, &[3, k], 1).random(&mut rng, 2.0);
                quantized("odd", &x, format, k, true, DType::F32);
            }
        }
    }
}

/// Rows that are hard: zeros, outliers, subnormals, the largest numbers, values at and beside ties.
fn hard(rng: &mut Rng, from: DType, k: usize) -> Tensor {
    let rows: [&mut dyn FnMut(usize) -> f32; 14] = [
        &mut |_| 0.0,
        &mut |_| -0.0,
        &mut |i| if i == 3 { 3e4 } else { 1e-3 * i as f32 },
        &mut |i| i as f32 * 1e-42,
        &mut |_| f32::MIN_POSITIVE,
        &mut |i| if i % 2 == 0 { f32::MAX } else { f32::MIN },
        &mut |i| (i as f32 - 40.0) / 2.0,
        &mut |i| 6e4 * (i % 3) as f32 - 6e4,
        &mut |i| 1.0 + i as f32,
        &mut |i| -1.0 - i as f32,
        &mut |_| 0.1,
        &mut |i| f32::from_bits(i as u32),
        &mut |i| 1e-12 * i as f32,
        &mut |_| rng.uniform().powi(9),
    ];
    let mut rows = rows;
    Tensor::padded(from, &[rows.len(), k], 3).fill(|i| rows[i / k](i % k))
}

#[test]
fn hard_rows() {
    let mut rng = Rng(3);
    for from in FLOATS {
        let x = hard(&mut rng, from, 96);
        for format in formats() {
            for dtype in FLOATS {
                for group in [8, 32, 96] {
                    quantized("hard", &x, format, group, true, dtype);
                    if format.0 == Format::Int4 {
                        quantized("hard", &x, format, group, false, dtype);
                    }
                }
            }
        }
    }
}

#[test]
fn what_is_not_finite_is_the_same_on_all_levels() {
    for from in FLOATS {
        let special = [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY];
        let x = Tensor::empty(from, &[9, 48]).fill(|i| match (i / 48, i % 48) {
            (8, _) => f32::NAN,
            (row, 5) => special[row % 4],
            (row, 7) if row > 3 => special[(row + 1) % 4],
            (row, column) => (row + column) as f32 - 20.0,
        });
        for format in formats() {
            for dtype in FLOATS {
                quantized("not finite", &x, format, 16, true, dtype);
                if format.0 == Format::Int4 {
                    quantized("not finite", &x, format, 16, false, dtype);
                }
            }
        }
    }
}

/// Scales and zero points are data: whatever they hold, codes stay codes.
#[test]
fn any_scale_and_zero_point() {
    let mut rng = Rng(4);
    let x = hard(&mut rng, DType::F32, 32);
    let n = x.shape[0];
    let wild = [0.0, -0.0, -1.0, f32::NAN, f32::INFINITY, 1e-45, f32::MIN_POSITIVE, f32::MAX, f32::MIN, 1.0];
    let scale = Tensor::empty(DType::F32, &[n, 2]).fill(|i| wild[i % wild.len()]);
    let zero = Tensor::empty(DType::I8, &[n, 2]).fill(|i| [127.0, -128.0, 0.0, 7.0][i % 4]);
    for (format, ebits, mbits) in formats() {
        let w = Weight { format, ebits, mbits, group: 16 };
        let zero = (format == Format::Int4).then(|| zero.clone());
        for dtype in FLOATS {
            let inputs = [Some(x.clone()), Some(scale.clone()), zero.clone()];
            let stored = if format == Format::Int8 { DType::I8 } else { DType::U8 };
            let out = Tensor::empty(stored, &[n, w.row_bytes(32)]);
            let params = [format as u32, ebits, mbits, 16, dtype as u32];
            same("any scale", Op::QuantizeCodes, &inputs, &out, &params);
        }
        // Any bytes are codes.
        let stored = if format == Format::Int8 { DType::I8 } else { DType::U8 };
        let codes = Tensor::padded(stored, &[n, w.row_bytes(32)], 3)
            .fill(|_| if stored == DType::I8 { rng.below(256) as f32 - 128.0 } else { rng.below(256) as f32 });
        let inputs = [Some(codes), Some(scale.clone()), zero];
        let params = [n as u32, 32, format as u32, ebits, mbits, 16];
        same("any code", Op::Dequantize, &inputs, &Tensor::empty(DType::F32, &[n, 32]), &params);
    }
}

#[test]
fn one_scale_for_the_whole_weight() {
    let mut rng = Rng(5);
    for (n, k) in [(1, 1), (3, 7), (40, 1000), (2000, 16)] {
        for from in FLOATS {
            let x = Tensor::padded(from, &[n, k], 2).random(&mut rng, 5.0);
            let largest = x.values().iter().fold(0f64, |a, x| a.max(x.abs()));
            for (format, divisor) in [(Format::Int8, 127.5), (Format::E4m3, 448.0), (Format::E5m2, 57344.0)] {
                let params = [format as u32, 0, 0, 0, 1, DType::F32 as u32];
                let out = Tensor::empty(DType::F32, &[1, 1]);
                let scale = same("whole", Op::QuantizeScale, &[Some(x.clone())], &out, &params);
                assert_eq!(scale.values()[0], (largest as f32 / divisor as f32) as f64);
            }
        }
    }
}

/// The formulas by hand, of torchao's `_choose_qparams_affine` and `_quantize_affine`.
#[test]
fn codes_by_hand() {
    let row = |values: &[f32]| Tensor::empty(DType::F32, &[1, values.len()]).fill(|i| values[i]);
    let int8 = quantized("by hand", &row(&[-127.5, 127.5, 0.5, 1.5, -0.5]), (Format::Int8, 0, 0), 5, true, DType::F32);
    assert_eq!(int8.scale.values(), [1.0]);
    assert_eq!(int8.codes.values(), [-128.0, 127.0, 0.0, 2.0, 0.0]);
    let int4 = quantized("by hand", &row(&[-7.5, 3.0, 0.0, 7.5]), (Format::Int4, 0, 0), 4, true, DType::F32);
    assert_eq!(int4.codes.values(), [0x38 as f64, 0x70 as f64]);
    let zeros = quantized("by hand", &row(&[-4.0, 11.0, 0.0, 1.0]), (Format::Int4, 0, 0), 4, false, DType::F32);
    assert_eq!((zeros.scale.values(), zeros.zero.as_ref().unwrap().values()), (vec![1.0], vec![-4.0]));
    assert_eq!(zeros.values(), [-4.0, 11.0, 0.0, 1.0]);
    // 1 / 7.5 in bf16, and by its reciprocal there, 7.46875.
    let half = quantized("by hand", &row(&[1.0, 0.5, -1.0, 0.25]), (Format::Int4, 0, 0), 4, true, DType::BF16);
    assert_eq!(half.scale.values(), [0.133_789_062_5]);
    assert_eq!(half.codes.values(), [0x47 as f64, 0x29 as f64]);
    let fp8 = quantized("by hand", &row(&[448.0, -448.0, 17.0, 0.0]), (Format::E4m3, 0, 0), 4, true, DType::F32);
    assert_eq!(fp8.codes.values(), [0x7e as f64, 0xfe as f64, 0x58 as f64, 0.0]);
    // A row of zeros has the scale 0 in torchao, and codes that are not NaN here.
    let nothing = quantized("by hand", &row(&[0.0, -0.0]), (Format::E4m3, 0, 0), 2, true, DType::F32);
    assert_eq!((nothing.scale.values(), nothing.codes.values()), (vec![0.0], vec![0.0, 128.0]));
}

/// What a small float can hold is stored as it is.
#[test]
fn small_floats_round_trip() {
    for (ebits, mbits) in SMALL {
        let count = 1usize << (1 + ebits + mbits);
        let x = Tensor::empty(DType::F32, &[1, count]).fill(|i| small_float(i as u32, ebits, mbits));
        let stored = quantized("round trip", &x, (Format::Fpx, ebits, mbits), count, true, DType::F32);
        assert_eq!(stored.scale.values(), [1.0]);
        assert_eq!(stored.values(), x.values());
    }
}

#[test]
fn pruning_keeps_two_of_four() {
    let mut rng = Rng(6);
    for from in FLOATS {
        for k in [0, 4, 12, 64, 100, 1028] {
            // Of few values, so that many are equal.
            let x = Tensor::padded(from, &[5, k], 2).fill(|_| rng.below(7) as f32 - 3.0);
            let out = Tensor::empty(from, &[5, k]);
            let pruned = same("prune", Op::PruneSemiStructured, &[Some(x.clone())], &out, &[]).values();
            for (x, pruned) in x.values().chunks(4).zip(pruned.chunks(4)) {
                let mut order: Vec<usize> = (0..4).collect();
                order.sort_by(|&a, &b| x[b].abs().total_cmp(&x[a].abs()));
                let want: Vec<f64> = (0..4).map(|i| if order[..2].contains(&i) { x[i] } else { 0.0 }).collect();
                assert_eq!(pruned, want);
            }
        }
    }
}

/// Pruned and then int8 is sparse int8, value by value.
#[test]
fn sparse_is_pruned_int8() {
    let mut rng = Rng(7);
    let x = Tensor::padded(DType::F32, &[9, 136], 4).random(&mut rng, 1.0);
    let out = Tensor::empty(DType::F32, &[9, 136]);
    let pruned = same("prune", Op::PruneSemiStructured, &[Some(x.clone())], &out, &[]);
    let sparse = quantized("sparse", &x, (Format::SparseInt8, 0, 0), 136, true, DType::F32);
    let dense = quantized("dense", &pruned, (Format::Int8, 0, 0), 136, true, DType::F32);
    assert_eq!(sparse.scale.values(), dense.scale.values());
    assert_eq!(sparse.values(), dense.values());
}

#[test]
fn nothing_to_do() {
    for format in formats() {
        quantized("no rows", &Tensor::empty(DType::F32, &[0, 16]), format, 8, true, DType::F32);
        quantized("no columns", &Tensor::empty(DType::F32, &[3, 0]), format, 8, true, DType::F32);
    }
}

#[test]
fn refusals() {
    let tensor = |dtype: DType, shape: &[usize]| Some(Tensor::empty(dtype, shape));
    let refuses = |op: Op, mut operands: Vec<Option<Tensor>>, params: &[u32], says: &str| {
        let views: Vec<Option<View>> = operands.iter_mut().map(|t| t.as_mut().map(Tensor::view)).collect();
        let error = (ops::kernel(op).check)(&Args { operands: &views, params }).expect_err(says);
        assert!(error.message.contains(says), "{} does not say: {says}", error.message);
    };
    let (f, u, i) = (DType::F32, DType::U8, DType::I8);
    let (int8, int4, fpx) = (Format::Int8 as u32, Format::Int4 as u32, Format::Fpx as u32);
    let minus = -1i32 as u32;

    let op = Op::QuantizeScale;
    let good = || vec![tensor(f, &[4, 32]), tensor(f, &[4, 2])];
    refuses(op, vec![tensor(i, &[4, 32]), tensor(f, &[4, 2])], &[int8, 0, 0, 16, 1, 0], "float weight");
    refuses(op, vec![tensor(f, &[4, 2, 16]), tensor(f, &[4, 2])], &[int8, 0, 0, 16, 1, 0], "float weight");
    refuses(op, good(), &[77, 0, 0, 16, 1, 0], "format of code 77");
    refuses(op, good(), &[int8, 0, 0, minus, 1, 0], "negative group");
    refuses(op, good(), &[int8, 0, 0, 5, 1, 0], "groups of 5");
    refuses(op, good(), &[int8, 0, 0, 8, 1, 0], "gives dense f32 [4, 4]");
    refuses(op, good(), &[int8, 0, 0, 0, 1, 0], "gives dense f32 [1, 1]");
    refuses(op, good(), &[int8, 0, 0, 16, 2, 0], "symmetric 0 or 1");
    refuses(op, good(), &[int8, 0, 0, 16, 0, 0], "int4 alone");
    refuses(op, good(), &[int8, 0, 0, 16, 1, 3], "float dtype");
    for (ebits, mbits) in [(0, 3), (8, 0), (4, 4), (1, 0), (minus, 7), (3, minus)] {
        refuses(op, good(), &[fpx, ebits, mbits, 16, 1, 0], "as Fpx");
    }
    let odd = vec![tensor(f, &[4, 12]), tensor(f, &[4, 1])];
    refuses(op, odd, &[Format::SparseInt8 as u32, 0, 0, 12, 1, 0], "as SparseInt8");

    let op = Op::QuantizeZeroPoint;
    let zero = |scale, out| vec![tensor(f, &[4, 32]), scale, out];
    let (scale, out) = (tensor(f, &[4, 2]), tensor(i, &[4, 2]));
    refuses(op, zero(scale.clone(), out.clone()), &[int8, 16, 0], "int4 alone");
    refuses(op, zero(scale.clone(), out.clone()), &[int4, 0, 0], "positive group");
    refuses(op, zero(tensor(f, &[4, 3]), out.clone()), &[int4, 16, 0], "f32 scales");
    refuses(op, zero(scale.clone(), tensor(u, &[4, 2])), &[int4, 16, 0], "i8 zero points");
    refuses(op, zero(scale.clone(), out.clone()), &[int4, 16, 9], "float dtype");

    let op = Op::QuantizeCodes;
    let codes = |zero, out| vec![tensor(f, &[4, 32]), tensor(f, &[4, 2]), zero, out];
    refuses(op, codes(None, tensor(u, &[4, 32])), &[int8, 0, 0, 16, 0], "codes in I8");
    refuses(op, codes(None, tensor(u, &[4, 32])), &[int4, 0, 0, 16, 0], "codes of [4, 16]");
    refuses(op, codes(tensor(i, &[4, 2]), tensor(i, &[4, 32])), &[int8, 0, 0, 16, 0], "zero points of int4 alone");
    refuses(op, codes(tensor(u, &[4, 2]), tensor(u, &[4, 16])), &[int4, 0, 0, 16, 0], "i8 zero points");
    refuses(op, codes(None, tensor(i, &[4, 32])), &[int8, 0, 0, 0, 0], "positive group");
    let gaps = Some(Tensor::padded(i, &[4, 32], 1));
    refuses(op, codes(None, gaps), &[int8, 0, 0, 16, 0], "dense codes");

    let op = Op::Dequantize;
    let stored = |codes, out| vec![codes, tensor(f, &[4, 2]), None, out];
    let fine = || stored(tensor(i, &[4, 32]), tensor(f, &[4, 32]));
    refuses(op, fine(), &[minus, 32, int8, 0, 0, 16], "negative shape");
    refuses(op, fine(), &[4, 32, int8, 0, 0, 0], "positive group");
    refuses(op, fine(), &[4, 32, int4, 0, 0, 16], "codes in U8");
    refuses(op, fine(), &[4, 64, int8, 0, 0, 32], "codes of [4, 64]");
    refuses(op, stored(tensor(i, &[4, 32]), tensor(i, &[4, 32])), &[4, 32, int8, 0, 0, 16], "dense floats");
    refuses(op, stored(tensor(i, &[4, 32]), tensor(f, &[32, 4])), &[4, 32, int8, 0, 0, 16], "dense floats");

    let op = Op::PruneSemiStructured;
    refuses(op, vec![tensor(f, &[4, 6]), tensor(f, &[4, 6])], &[], "columns in fours");
    refuses(op, vec![tensor(f, &[4, 8]), tensor(DType::BF16, &[4, 8])], &[], "cannot give");
    refuses(op, vec![tensor(i, &[4, 8]), tensor(i, &[4, 8])], &[], "float weight");
}
