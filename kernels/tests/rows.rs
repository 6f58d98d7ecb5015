//! Kernels of the last axis: softmax, reductions, norms, rope.
mod common;

use common::{Rng, Tensor, conform, levels, run};
use denoise::ops::{self, Args};
use denoise::pool::Pool;
use denoise::schema::{DType, Op, Reduce};

const FLOATS: [DType; 3] = [DType::F32, DType::BF16, DType::F16];
const WIDTHS: [usize; 12] = [1, 2, 3, 7, 13, 16, 17, 31, 64, 65, 130, 1000];
const EPS: u32 = 0x358637bd; // 1e-6

#[test]
fn softmax_of_rows() {
    for dtype in FLOATS {
        for width in WIDTHS {
            let x = Tensor::padded(dtype, &[2, 5, width], 3).random(&mut Rng(1), 9.0);
            conform("softmax", Op::Softmax, &[Some(x)], &Tensor::padded(dtype, &[2, 5, width], 1), &[]);
        }
    }
}

#[test]
fn softmax_of_masked_rows() {
    let pool = Pool::new(1).unwrap();
    for level in levels() {
        let x = Tensor::empty(DType::F32, &[3, 40]).fill(|i| match i {
            0..40 if i % 2 == 0 => f32::NEG_INFINITY,
            50 => f32::NAN,
            80.. => f32::NEG_INFINITY,
            _ => 1e4,
        });
        let mut out = Tensor::empty(DType::F32, &[3, 40]);
        run(level, &pool, Op::Softmax, &mut [Some(x)], &mut out, &[]);
        let got = out.values();
        assert!((0..40).all(|i| if i % 2 == 0 { got[i] == 0.0 } else { (got[i] - 0.05).abs() < 1e-6 }));
        assert!(got[40..].iter().all(|v| v.is_nan()), "a row with NaN, or of nothing but -infinity, is NaN");
    }
}

#[test]
fn reductions() {
    for dtype in FLOATS {
        for width in WIDTHS {
            for kind in [Reduce::Sum, Reduce::Mean, Reduce::Max] {
                let x = Tensor::padded(dtype, &[3, 7, width], 2).fill(|i| ((i * 37) % 101) as f32 / 50.0 - 0.7);
                let out = Tensor::with_strides(dtype, &[3, 7], &[1, 3]);
                conform(&format!("{kind:?}"), Op::Reduce, &[Some(x)], &out, &[kind as u32]);
            }
        }
    }
}

#[test]
fn layer_norms() {
    for dtype in FLOATS {
        for width in WIDTHS {
            let mut rng = Rng(width as u64);
            let shape = [2, 3, width];
            let x = Tensor::padded(dtype, &shape, 1).fill(|_| rng.uniform() * 2.0 + 3.0);
            let vector = |rng: &mut Rng| Some(Tensor::empty(DType::F32, &[width]).random(rng, 1.0));
            let part =
                |strides: &[usize], rng: &mut Rng| Some(Tensor::with_strides(dtype, &shape, strides).random(rng, 1.0));
            let out = Tensor::padded(dtype, &shape, 2);
            for inputs in [
                vec![None, None, None, None],
                vec![vector(&mut rng), vector(&mut rng), None, None],
                vec![None, None, part(&[width, 0, 1], &mut rng), part(&[width, 0, 1], &mut rng)],
                vec![vector(&mut rng), None, part(&[0, 0, 2], &mut rng), None],
                vec![None, vector(&mut rng), None, part(&[3, 1, 0], &mut rng)],
            ] {
                let inputs = [vec![Some(x.clone())], inputs].concat();
                conform(&format!("layer_norm {width} {dtype:?}"), Op::LayerNorm, &inputs, &out, &[EPS, 0]);
            }
        }
    }
}

#[test]
fn rms_norms() {
    for dtype in FLOATS {
        for width in WIDTHS {
            let mut rng = Rng(width as u64);
            let x = Tensor::padded(dtype, &[2, 3, width], 1).random(&mut rng, 2.0);
            let weight = Tensor::empty(DType::F32, &[width]).random(&mut rng, 1.0);
            for weight in [None, Some(weight)] {
                let out = Tensor::padded(dtype, &[2, 3, width], 2);
                conform("rms_norm", Op::RmsNorm, &[Some(x.clone()), weight], &out, &[EPS, 0]);
            }
        }
    }
}

#[test]
fn ropes() {
    for dtype in FLOATS {
        for size in [2, 4, 6, 16, 18, 30, 64, 128] {
            let mut rng = Rng(size as u64);
            let shape = [2, 5, 3, size];
            let x = Tensor::padded(dtype, &shape, 2).random(&mut rng, 2.0);
            let cos = Tensor::padded(DType::F32, &[5, size], 1).random(&mut rng, 1.0);
            let sin = Tensor::padded(DType::F32, &[5, size], 3).random(&mut rng, 1.0);
            let weight = Tensor::empty(DType::F32, &[size]).random(&mut rng, 1.0);
            // Heads before tokens in memory, as attention reads them.
            let out = Tensor::with_strides(dtype, &shape, &[15 * size, size, 5 * size, 1]);
            conform("rope", Op::Rope, &[Some(x.clone()), Some(cos.clone()), Some(sin.clone())], &out, &[]);
            for weight in [None, Some(weight)] {
                let inputs = [Some(x.clone()), weight, Some(cos.clone()), Some(sin.clone())];
                conform("rms_norm_rope", Op::RmsNormRope, &inputs, &out, &[EPS]);
            }
        }
    }
}

#[test]
fn many_rows() {
    let x = Tensor::empty(DType::F32, &[3000, 65]).random(&mut Rng(3), 1.0);
    let out = Tensor::empty(DType::F32, &[3000, 65]);
    conform("softmax", Op::Softmax, &[Some(x.clone())], &out, &[]);
    conform("layer_norm", Op::LayerNorm, &[Some(x), None, None, None, None], &out, &[EPS, 0]);
}

#[test]
fn nothing_to_do() {
    for shape in [[0, 4], [3, 0]] {
        let none = Tensor::empty(DType::F32, &shape);
        conform("softmax", Op::Softmax, &[Some(none.clone())], &none, &[]);
        conform("layer_norm", Op::LayerNorm, &[Some(none.clone()), None, None, None, None], &none, &[EPS, 0]);
        conform("rms_norm", Op::RmsNorm, &[Some(none.clone()), None], &none, &[EPS, 0]);
    }
}

#[test]
fn refusals() {
    let check = |op, tensors: &[Option<(DType, &[usize])>], params: &[u32]| {
        let operands: Vec<_> = tensors.iter().map(|t| t.map(|(d, s)| Tensor::empty(d, s).view())).collect();
        (ops::kernel(op).check)(&Args { operands: &operands, params }).unwrap_err()
    };
    let f = DType::F32;
    let x = Some((f, &[2usize, 3, 2, 4][..]));
    check(Op::Softmax, &[x, Some((f, &[2, 3, 8]))], &[]);
    check(Op::Softmax, &[Some((DType::I32, &[2])), Some((DType::I32, &[2]))], &[]);
    check(Op::Reduce, &[x, x], &[0]);
    check(Op::Reduce, &[Some((f, &[2, 0])), Some((f, &[2]))], &[0]);
    check(Op::LayerNorm, &[x, Some((f, &[5])), None, None, None, x], &[EPS, 0]);
    check(Op::LayerNorm, &[x, None, None, Some((DType::BF16, &[4])), None, x], &[EPS, 0]);
    check(Op::LayerNorm, &[x, None, None, None, Some((f, &[3])), x], &[EPS, 0]);
    check(Op::RmsNorm, &[x, Some((DType::BF16, &[4])), x], &[EPS, 0]);
    let table = Some((f, &[3usize, 4][..]));
    check(Op::Rope, &[x, table, Some((f, &[2, 4])), x], &[]);
    let odd = Some((f, &[2usize, 3, 2, 5][..]));
    check(Op::Rope, &[odd, Some((f, &[3, 5])), Some((f, &[3, 5])), odd], &[]);
    check(Op::RmsNormRope, &[x, Some((f, &[3])), table, table, x], &[EPS]);
}
