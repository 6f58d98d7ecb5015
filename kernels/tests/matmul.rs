//! `matmul` against the reference.
mod common;

use common::{Rng, Tensor, conform};
use denoise::ops::{self, Args};
use denoise::schema::{DType, Op};

const FLOATS: [DType; 3] = [DType::F32, DType::BF16, DType::F16];
const ODD: [usize; 12] = [1, 2, 3, 7, 13, 17, 31, 64, 65, 77, 127, 130];

fn check(a: Tensor, b: Tensor, out: Tensor, alpha: f32) {
    let what = format!("{:?} {:?} x {:?}", a.dtype, a.shape, b.shape);
    conform(&what, Op::Matmul, &[Some(a), Some(b)], &out, &[alpha.to_bits()]);
}

#[test]
fn odd_shapes() {
    let mut rng = Rng(1);
    for dtype in FLOATS {
        for (i, &m) in ODD.iter().enumerate() {
            for (j, &n) in ODD.iter().enumerate() {
                let k = ODD[(5 * i + 7 * j) % ODD.len()];
                let a = Tensor::empty(dtype, &[m, k]).random(&mut rng, 1.0);
                let b = Tensor::empty(dtype, &[k, n]).random(&mut rng, 1.0);
                check(a, b, Tensor::empty(dtype, &[m, n]), 0.5);
            }
        }
    }
}

#[test]
fn strides_and_batches() {
    let mut rng = Rng(2);
    for dtype in FLOATS {
        let (p, q, m, n, k) = (2, 3, 21, 37, 29);
        // a transposed and shared by the outer batch, b transposed, out in wider rows.
        let a = Tensor::with_strides(dtype, &[p, q, m, k], &[0, m * k, 1, m]).random(&mut rng, 1.0);
        let b = Tensor::with_strides(dtype, &[p, q, k, n], &[q * n * k + 3, n * k, 1, k]).random(&mut rng, 1.0);
        let out = Tensor::with_strides(dtype, &[p, q, m, n], &[n + 2, p * (n + 2), p * q * (n + 2), 1]);
        check(a, b.clone(), out.clone(), 1.0);
        // Every column of b the same, rows of a two apart.
        let a = Tensor::with_strides(dtype, &[p, q, m, k], &[7, 2 * m * k, 2 * k, 2]).random(&mut rng, 1.0);
        let b = Tensor::with_strides(dtype, &[p, q, k, n], &[0, k, 1, 0]).random(&mut rng, 1.0);
        check(a, b, out, -2.0);
    }
}

#[test]
fn several_blocks() {
    let mut rng = Rng(3);
    for (m, n, k) in [(340, 130, 40), (5, 300, 600), (180, 140, 520)] {
        let a = Tensor::empty(DType::F32, &[2, m, k]).random(&mut rng, 1.0);
        let b = Tensor::empty(DType::F32, &[2, k, n]).random(&mut rng, 1.0);
        check(a, b, Tensor::empty(DType::F32, &[2, m, n]), 1.0);
    }
}

#[test]
fn nothing_to_sum_and_nothing_to_make() {
    for (m, n, k) in [(0, 3, 3), (3, 0, 3), (3, 3, 0)] {
        let a = Tensor::empty(DType::F32, &[2, m, k]).fill(|_| 1.0);
        let b = Tensor::empty(DType::F32, &[2, k, n]).fill(|_| 1.0);
        check(a, b, Tensor::empty(DType::F32, &[2, m, n]), 1.0);
    }
}

#[test]
fn refusals() {
    let refuses = |shapes: [&[usize]; 3], dtypes: [DType; 3], says: &str| {
        let mut operands: Vec<_> = shapes.iter().zip(dtypes).map(|(s, d)| Tensor::empty(d, s)).collect();
        let views: Vec<_> = operands.iter_mut().map(|t| Some(t.view())).collect();
        let error = (ops::kernel(Op::Matmul).check)(&Args { operands: &views, params: &[0] }).expect_err(says);
        assert!(error.message.contains(says), "{} does not say: {says}", error.message);
    };
    let f = [DType::F32; 3];
    refuses([&[2, 3], &[4, 5], &[2, 5]], f, "cannot make");
    refuses([&[2, 3], &[3, 5], &[2, 4]], f, "cannot make");
    refuses([&[2, 3], &[3, 5], &[3, 5]], f, "cannot make");
    refuses([&[1, 2, 3], &[2, 3, 5], &[2, 2, 5]], f, "cannot make");
    refuses([&[2, 3], &[1, 3, 5], &[1, 2, 5]], f, "equal rank");
    refuses([&[3], &[3], &[1]], f, "equal rank");
    refuses([&[2, 3], &[3, 5], &[2, 5]], [DType::F32, DType::BF16, DType::F32], "one dtype");
    refuses([&[2, 3], &[3, 5], &[2, 5]], [DType::I32; 3], "float dtype");
}
