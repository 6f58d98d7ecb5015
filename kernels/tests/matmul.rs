mod common;

use common::{Rng, Tensor, conform};
use denoise::ops::{self, Args};
use denoise::schema::{DType, Op};

const FLOATS: [DType; 3] = [DType::F32, DType::BF16, DType::F16];

#[test]
fn odd_sizes_and_batches() {
    for dtype in FLOATS {
        for (lead, m, k, n) in [
            (vec![], 1, 1, 1),
            (vec![], 7, 13, 17),
            (vec![2], 31, 3, 65),
            (vec![2, 3], 5, 64, 33),
            (vec![], 130, 127, 77),
            (vec![], 3, 1100, 70),
            (vec![3], 1, 9, 130),
        ] {
            let mut rng = Rng(m as u64);
            let shape = |rows, columns| [lead.clone(), vec![rows, columns]].concat();
            let a = Tensor::padded(dtype, &shape(m, k), 2).random(&mut rng, 1.0);
            let b = Tensor::padded(dtype, &shape(k, n), 1).random(&mut rng, 1.0);
            let out = Tensor::padded(dtype, &shape(m, n), 3);
            let params = [0.37f32.to_bits()];
            conform(&format!("{lead:?} {m} {k} {n}"), Op::Matmul, &[Some(a), Some(b)], &out, &params);
        }
    }
}

#[test]
fn transposed_and_broadcast() {
    for dtype in FLOATS {
        let mut rng = Rng(9);
        let a = Tensor::with_strides(dtype, &[2, 19, 23], &[0, 1, 19]).random(&mut rng, 1.0);
        let b = Tensor::with_strides(dtype, &[2, 23, 37], &[23 * 37, 1, 23]).random(&mut rng, 1.0);
        conform("transposed", Op::Matmul, &[Some(a), Some(b)], &Tensor::empty(dtype, &[2, 19, 37]), &[1f32.to_bits()]);
    }
}

#[test]
fn nothing_to_sum_is_zero() {
    let operands = [Some(Tensor::empty(DType::F32, &[2, 0])), Some(Tensor::empty(DType::F32, &[0, 3]))];
    conform("K = 0", Op::Matmul, &operands, &Tensor::empty(DType::F32, &[2, 3]), &[1f32.to_bits()]);
}

#[test]
fn refusals() {
    let check = |shapes: [(DType, &[usize]); 3]| {
        let operands = shapes.map(|(dtype, shape)| Some(Tensor::empty(dtype, shape).view()));
        (ops::kernel(Op::Matmul).check)(&Args { operands: &operands, params: &[1f32.to_bits()] })
    };
    let f = DType::F32;
    check([(f, &[2, 3]), (f, &[3, 4]), (f, &[2, 4])]).unwrap();
    check([(f, &[2, 3]), (f, &[4, 4]), (f, &[2, 4])]).unwrap_err();
    check([(f, &[2, 3]), (f, &[3, 4]), (f, &[2, 5])]).unwrap_err();
    check([(f, &[2, 3]), (f, &[3, 4]), (f, &[1, 2, 4])]).unwrap_err();
    check([(f, &[3]), (f, &[3]), (f, &[3])]).unwrap_err();
    check([(f, &[2, 3]), (DType::BF16, &[3, 4]), (f, &[2, 4])]).unwrap_err();
}
