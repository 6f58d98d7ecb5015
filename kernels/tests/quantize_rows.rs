//! `quantize_rows` and `abs_max` against the reference, and against what quantization means.
mod common;

use common::{Level, Rng, Tensor, levels, run};
use denoise::ops::{self, Args};
use denoise::pool::Pool;
use denoise::quant::{rows_bytes, rows_scale, rows_value};
use denoise::schema::{DType, Op, Rows};

const FLOATS: [DType; 3] = [DType::F32, DType::BF16, DType::F16];
const KINDS: [Rows; 4] = [Rows::Int8, Rows::Int8Asym, Rows::E4m3, Rows::E5m2];
const SIZES: [usize; 14] = [0, 1, 2, 3, 7, 15, 16, 17, 63, 64, 65, 127, 300, 1031];

fn quantized(level: Level, pool: &Pool, x: &Tensor, amax: Option<&Tensor>, rows: Rows, gap: usize) -> Tensor {
    let mut shape = x.shape.clone();
    *shape.last_mut().unwrap() = rows_bytes(*x.shape.last().unwrap());
    let mut out = Tensor::padded(DType::U8, &shape, gap);
    run(level, pool, Op::QuantizeRows, &mut [Some(x.clone()), amax.cloned()], &mut out, &[rows as u32]);
    out
}

/// Codes, scale and zero point of a row.
fn parts(out: &Tensor, row: usize, k: usize) -> (Vec<u8>, f32, i32) {
    let bytes: Vec<u8> = out.values()[row * rows_bytes(k)..][..rows_bytes(k)].iter().map(|&v| v as u8).collect();
    let word = |at: usize| <[u8; 4]>::try_from(&bytes[at..at + 4]).unwrap();
    let at = rows_scale(k);
    let (scale, zero) = (f32::from_ne_bytes(word(at)), i32::from_ne_bytes(word(at + 4)));
    assert!(bytes[k..at].iter().chain(&bytes[at + 8..]).all(|&b| b == 0), "what is no code is zero");
    (bytes[..k].to_vec(), scale, zero)
}

fn same_on_every_level(x: &Tensor, amax: Option<&Tensor>, rows: Rows) {
    let pools = [Pool::new(1).unwrap(), Pool::new(3).unwrap()];
    let want = quantized(Level::Reference, &pools[0], x, amax, rows, 0).values();
    for pool in &pools {
        for level in levels() {
            let got = quantized(level, pool, x, amax, rows, 5).values();
            assert!(got == want, "{rows:?} of {:?} {:?} on {}", x.dtype, x.shape, level.name());
        }
    }
}

#[test]
fn every_level_gives_the_same_bytes() {
    let mut rng = Rng(1);
    for dtype in FLOATS {
        for rows in KINDS {
            for k in SIZES {
                for scale in [1.0, 3e-3, 5e4] {
                    let x = Tensor::padded(dtype, &[3, k], 3).random(&mut rng, scale);
                    same_on_every_level(&x, None, rows);
                    if rows != Rows::Int8Asym {
                        let amax = Tensor::empty(DType::F32, &[1]).fill(|_| 0.7 * scale);
                        same_on_every_level(&x, Some(&amax), rows);
                    }
                }
                let positive = Tensor::empty(dtype, &[2, k]).fill(|_| rng.uniform().abs() + 0.5);
                same_on_every_level(&positive, None, rows);
            }
            let x = Tensor::with_strides(dtype, &[2, 3, 40], &[50, 110, 1]).random(&mut rng, 2.0);
            same_on_every_level(&x, None, rows);
        }
    }
}

#[test]
fn every_value_of_fp8_and_what_lies_between() {
    for rows in [Rows::E4m3, Rows::E5m2] {
        let mut values: Vec<f32> = (0..=255).map(|code| rows_value(rows, code)).filter(|v| v.is_finite()).collect();
        values.sort_by(f32::total_cmp);
        let exact = values.len();
        let between: Vec<f32> = values.windows(2).map(|pair| (pair[0] + pair[1]) / 2.0).collect();
        let near: Vec<f32> = between.iter().flat_map(|v| [v.next_up(), v.next_down()]).collect();
        let all: Vec<f32> = values.into_iter().chain(between).chain(near).collect();
        // The scale is 1, as the largest value is among them.
        let x = Tensor::empty(DType::F32, &[1, all.len()]).fill(|i| all[i]);
        same_on_every_level(&x, None, rows);
        let out = quantized(Level::Portable, &Pool::new(1).unwrap(), &x, None, rows, 0);
        let (codes, scale, _) = parts(&out, 0, all.len());
        assert_eq!(scale, 1.0);
        for (i, (&code, &value)) in codes.iter().zip(&all).enumerate().take(exact) {
            assert_eq!(rows_value(rows, code), value, "{rows:?} {i}");
        }
    }
}

#[test]
fn close_to_what_was_quantized() {
    let mut rng = Rng(2);
    let pool = Pool::new(2).unwrap();
    let k = 200;
    for dtype in FLOATS {
        for rows in KINDS {
            for shift in [0.0, 0.8, -3.0] {
                let x = Tensor::empty(dtype, &[4, k]).fill(|_| rng.uniform() + shift);
                for level in levels() {
                    let out = quantized(level, &pool, &x, None, rows, 0);
                    for row in 0..4 {
                        let (codes, scale, zero) = parts(&out, row, k);
                        for (i, &code) in codes.iter().enumerate() {
                            let want = x.values()[row * k + i] as f32;
                            let got = (rows_value(rows, code) - zero as f32) * scale;
                            // Half a step, more at the ends where 127.5 is cut to 127; an eighth or a quarter of fp8.
                            let step = match rows {
                                Rows::E4m3 => want.abs() / 16.0 + scale / 512.0,
                                Rows::E5m2 => want.abs() / 8.0 + scale / 65536.0,
                                _ => 1.01 * scale,
                            };
                            let slack = step + want.abs() / 200.0;
                            assert!((got - want).abs() <= slack, "{rows:?} {dtype:?}: {got}, not {want}");
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn zeros_stay_zeros() {
    let pool = Pool::new(1).unwrap();
    for dtype in FLOATS {
        for rows in KINDS {
            let x = Tensor::empty(dtype, &[1, 70]).fill(|_| 0.0);
            same_on_every_level(&x, None, rows);
            for level in levels() {
                let (codes, scale, zero) = parts(&quantized(level, &pool, &x, None, rows, 0), 0, 70);
                assert!(scale.is_finite() && scale > 0.0);
                assert!(codes.iter().all(|&c| rows_value(rows, c) == zero as f32), "{rows:?} of zeros");
            }
        }
    }
}

#[test]
fn what_is_not_finite_makes_its_row_nan() {
    let pool = Pool::new(1).unwrap();
    for rows in KINDS {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for at in [0, 33, 69] {
                let x = Tensor::empty(DType::F32, &[2, 70]).fill(|i| if i == at { bad } else { 1.0 });
                for level in levels().into_iter().chain([Level::Reference]) {
                    let out = quantized(level, &pool, &x, None, rows, 0);
                    assert!(parts(&out, 0, 70).1.is_nan(), "{rows:?} {bad} on {}", level.name());
                    assert!(parts(&out, 1, 70).1.is_finite());
                    // A scale from elsewhere, of which the row knows nothing.
                    if rows != Rows::Int8Asym {
                        for amax in [1.0, 0.0, -1.0, bad] {
                            let amax = Tensor::empty(DType::F32, &[1]).fill(|_| amax);
                            let want = quantized(Level::Reference, &pool, &x, Some(&amax), rows, 0);
                            let got = quantized(level, &pool, &x, Some(&amax), rows, 0);
                            assert!(got.values() == want.values(), "{rows:?} {bad} on {}", level.name());
                        }
                    }
                }
            }
        }
        let x = Tensor::empty(DType::F32, &[1, 40]).fill(|i| if i % 2 == 0 { f32::MAX } else { f32::MIN });
        same_on_every_level(&x, None, rows);
    }
}

#[test]
fn the_largest_magnitude() {
    let mut rng = Rng(3);
    for dtype in FLOATS {
        for shape in [vec![], vec![1], vec![0, 4], vec![3, 17], vec![2, 65, 300], vec![200_000]] {
            let mut x = Tensor::empty(dtype, &shape).random(&mut rng, 3.0);
            if shape.len() == 3 {
                x = Tensor::with_strides(dtype, &shape, &[1, 700, 2]).random(&mut rng, 3.0);
            }
            let want = x.values().iter().fold(0.0, |a: f64, v| a.max(v.abs()));
            for threads in [1, 3] {
                let pool = Pool::new(threads).unwrap();
                for level in levels().into_iter().chain([Level::Reference]) {
                    let mut out = Tensor::empty(DType::F32, &[1]);
                    run(level, &pool, Op::AbsMax, &mut [Some(x.clone())], &mut out, &[]);
                    assert_eq!(out.values(), [want], "{dtype:?} {shape:?} on {}", level.name());
                }
            }
        }
        for (bad, says) in [(f32::INFINITY, f64::INFINITY), (f32::NAN, f64::NAN)] {
            let x = Tensor::empty(dtype, &[90]).fill(|i| if i == 41 { -bad } else { 1.0 });
            for level in levels().into_iter().chain([Level::Reference]) {
                let mut out = Tensor::empty(DType::F32, &[1]);
                run(level, &Pool::new(1).unwrap(), Op::AbsMax, &mut [Some(x.clone())], &mut out, &[]);
                assert!(out.values()[0] == says || says.is_nan() && out.values()[0].is_nan());
            }
        }
    }
}

#[test]
fn refusals() {
    let tensor = |dtype: DType, shape: &[usize]| Some(Tensor::empty(dtype, shape));
    let refuses = |op: Op, mut operands: Vec<Option<Tensor>>, params: &[u32], says: &str| {
        let views: Vec<_> = operands.iter_mut().map(|t| t.as_mut().map(Tensor::view)).collect();
        let error = (ops::kernel(op).check)(&Args { operands: &views, params }).expect_err(says);
        assert!(error.message.contains(says), "{} does not say: {says}", error.message);
    };
    let (f32, u8) = (DType::F32, DType::U8);
    let one = || tensor(f32, &[1]);
    let quantize = |x, amax, out, rows: u32, says: &str| refuses(Op::QuantizeRows, vec![x, amax, out], &[rows], says);
    quantize(tensor(f32, &[2, 5]), None, tensor(u8, &[2, 128]), 0, "not none");
    quantize(tensor(f32, &[2, 5]), None, tensor(u8, &[2, 128]), 9, "no rows of code 9");
    quantize(tensor(f32, &[2, 5]), None, tensor(u8, &[2, 127]), 1, "128 bytes for each row");
    quantize(tensor(f32, &[2, 5]), None, tensor(u8, &[3, 128]), 1, "128 bytes for each row");
    quantize(tensor(f32, &[2, 5]), None, tensor(u8, &[256]), 1, "U8 of 2 axes");
    quantize(tensor(f32, &[2, 5]), None, tensor(DType::I8, &[2, 128]), 1, "rows of U8");
    quantize(tensor(DType::I32, &[2, 5]), None, tensor(u8, &[2, 128]), 1, "float dtype");
    quantize(tensor(f32, &[]), None, tensor(u8, &[]), 1, "dense last axis");
    quantize(tensor(f32, &[2, 5]), one(), tensor(u8, &[2, 128]), 2, "no amax for asymmetric rows");
    quantize(tensor(f32, &[2, 5]), tensor(f32, &[2]), tensor(u8, &[2, 128]), 1, "f32 amax of [1]");
    refuses(Op::AbsMax, vec![tensor(u8, &[2]), one()], &[], "float dtype");
    refuses(Op::AbsMax, vec![tensor(f32, &[2]), tensor(f32, &[2])], &[], "f32 out of [1]");
}

const EPS: u32 = 0x358637bd; // 1e-6

/// A norm to quantized rows gives the bytes of the norm and then `quantize_rows`, on every level.
#[test]
fn norms_to_rows() {
    let mut rng = Rng(4);
    let pool = Pool::new(2).unwrap();
    for dtype in FLOATS {
        for kind in KINDS {
            for width in [0, 1, 7, 16, 33, 130, 1000] {
                let shape = [2, 3, width];
                let x = Tensor::padded(dtype, &shape, 1).fill(|_| rng.uniform() * 2.0 + 0.5);
                let weight = Tensor::empty(DType::F32, &[width]).random(&mut rng, 1.0);
                let scale = Tensor::with_strides(dtype, &shape, &[width, 0, 1]).random(&mut rng, 1.0);
                let layer = vec![Some(x.clone()), None, Some(weight.clone()), Some(scale.clone()), Some(scale)];
                for (op, inputs) in [(Op::LayerNorm, layer), (Op::RmsNorm, vec![Some(x), Some(weight)])] {
                    let mut want = Vec::new();
                    for level in [Level::Reference].into_iter().chain(levels()) {
                        let mut floats = Tensor::empty(dtype, &shape);
                        run(level, &pool, op, &mut inputs.clone(), &mut floats, &[EPS, 0]);
                        let apart = quantized(level, &pool, &floats, None, kind, 0);
                        let mut fused = Tensor::padded(DType::U8, &[2, 3, rows_bytes(width)], 3);
                        run(level, &pool, op, &mut inputs.clone(), &mut fused, &[EPS, kind as u32]);
                        let what = format!("{op:?} of {dtype:?} {width} to {kind:?} on {}", level.name());
                        assert!(fused.values() == apart.values(), "{what}");
                        let values: Vec<f64> = (0..6)
                            .flat_map(|row| {
                                let (codes, scale, zero) = parts(&fused, row, width);
                                codes.into_iter().map(move |c| ((rows_value(kind, c) - zero as f32) * scale) as f64)
                            })
                            .collect();
                        if level == Level::Reference {
                            want = values;
                        } else {
                            // Sums in another order move some values over the edge of a step.
                            let error = common::normalized_error(&values, &want);
                            assert!(error <= 1e-4, "{what}: {error:.1e}");
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn norms_refuse_other_rows() {
    let refuses = |op: Op, x: (DType, &[usize]), out: (DType, &[usize]), rows: u32, says: &str| {
        let mut tensors = vec![Some(Tensor::empty(x.0, x.1))];
        tensors.resize(if op == Op::RmsNorm { 2 } else { 5 }, None);
        tensors.push(Some(Tensor::empty(out.0, out.1)));
        let views: Vec<_> = tensors.iter_mut().map(|t| t.as_mut().map(Tensor::view)).collect();
        let error = (ops::kernel(op).check)(&Args { operands: &views, params: &[EPS, rows] }).expect_err(says);
        assert!(error.message.contains(says), "{} does not say: {says}", error.message);
    };
    let (f32, u8) = (DType::F32, DType::U8);
    for op in [Op::LayerNorm, Op::RmsNorm] {
        refuses(op, (f32, &[2, 5]), (f32, &[2, 5]), 1, "rows of U8");
        refuses(op, (f32, &[2, 5]), (u8, &[2, 128]), 0, "one float type");
        refuses(op, (f32, &[2, 5]), (u8, &[2, 64]), 2, "128 bytes for each row");
        refuses(op, (f32, &[2, 5]), (u8, &[1, 128]), 2, "128 bytes for each row");
        refuses(op, (u8, &[2, 5]), (u8, &[2, 128]), 2, "float dtype");
        refuses(op, (f32, &[2, 5]), (u8, &[2, 128]), 5, "no rows of code 5");
    }
}
