mod common;

use common::{Rng, Tensor, conform, levels, run};
use denoise::ops::{self, Args};
use denoise::pool::Pool;
use denoise::schema::{Binary, DType, Op, Unary};

const FLOATS: [DType; 3] = [DType::F32, DType::BF16, DType::F16];

/// Strides of several kinds for a shape of three axes: dense, with gaps, transposed, broadcast.
fn layouts(shape: &[usize; 3]) -> Vec<Vec<usize>> {
    let [a, b, c] = *shape;
    vec![
        vec![b * c, c, 1],
        vec![b * (c + 3), c + 3, 1],
        vec![1, a, a * b],
        vec![c, a * c, 1],
        vec![2 * b * c, 2 * c, 2],
    ]
}

const SHAPES: [[usize; 3]; 6] = [[1, 1, 1], [2, 3, 5], [3, 17, 16], [7, 1, 31], [1, 130, 64], [5, 2, 1]];

#[test]
fn copies_between_types_and_orders() {
    for from in FLOATS {
        for to in FLOATS {
            for shape in SHAPES {
                for strides in layouts(&shape) {
                    let x = Tensor::with_strides(from, &shape, &strides).random(&mut Rng(1), 3.0);
                    for out in layouts(&shape) {
                        conform("copy", Op::Copy, &[Some(x.clone())], &Tensor::with_strides(to, &shape, &out), &[]);
                    }
                }
            }
        }
    }
    for dtype in [DType::I32, DType::U8, DType::I8] {
        let x = Tensor::with_strides(dtype, &[3, 40], &[1, 3]).fill(|i| (i % 100) as f32);
        conform("copy", Op::Copy, &[Some(x)], &Tensor::empty(dtype, &[3, 40]), &[]);
    }
}

#[test]
fn long_rows_are_shared_among_threads() {
    let x = Tensor::empty(DType::F32, &[1 << 18]).random(&mut Rng(2), 1.0);
    conform("copy", Op::Copy, &[Some(x.clone())], &Tensor::empty(DType::BF16, &[1 << 18]), &[]);
    let x = Tensor::empty(DType::F32, &[100_003]).random(&mut Rng(2), 1.0);
    conform("copy", Op::Copy, &[Some(x)], &Tensor::empty(DType::F32, &[100_003]), &[]);
}

#[test]
fn functions_of_one_operand() {
    for dtype in FLOATS {
        for code in 0.. {
            let Some(kind) = Unary::from_code(code) else { break };
            let positive = matches!(kind, Unary::Log | Unary::Sqrt | Unary::Rsqrt);
            for shape in SHAPES {
                for strides in layouts(&shape).into_iter().take(3) {
                    let mut rng = Rng(code as u64);
                    // A value alone far below zero, where activations are flat, would be compared by its own tiny size.
                    let alone = shape.iter().product::<usize>() == 1;
                    let x = Tensor::with_strides(dtype, &shape, &strides).fill(|_| {
                        let value = rng.uniform() * 4.0;
                        if positive || alone { value.abs() + 0.1 } else { value }
                    });
                    let params = [code, 1.7f32.to_bits(), (-0.3f32).to_bits()];
                    let what = format!("{kind:?} {dtype:?}");
                    conform(&what, Op::Unary, &[Some(x)], &Tensor::padded(dtype, &shape, 2), &params);
                }
            }
        }
    }
}

#[test]
fn functions_of_two_operands() {
    for dtype in FLOATS {
        for code in 0.. {
            let Some(kind) = Binary::from_code(code) else { break };
            for shape in SHAPES {
                let mut rng = Rng(code as u64);
                let dense = Tensor::empty(dtype, &shape).random(&mut rng, 2.0);
                for strides in [vec![0, 0, 1], vec![1, 0, 0], vec![0, 1, 0], vec![0, 0, 0]] {
                    let other = Tensor::with_strides(dtype, &shape, &strides).fill(|i| 1.0 + (i % 7) as f32 / 4.0);
                    let inputs = [Some(dense.clone()), Some(other)];
                    let what = format!("{kind:?} {dtype:?} {strides:?}");
                    conform(&what, Op::Binary, &inputs, &Tensor::padded(dtype, &shape, 1), &[code]);
                }
            }
        }
    }
}

#[test]
fn not_a_number_and_infinity_stay() {
    let pool = Pool::new(2).unwrap();
    let odd = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1.0];
    for level in levels() {
        for (kind, want) in
            [(Binary::Max, [f32::NAN, f32::INFINITY, 0.0, 1.0]), (Binary::Min, [f32::NAN, 0.0, f32::NEG_INFINITY, 0.0])]
        {
            for swapped in [false, true] {
                let x = Tensor::empty(DType::F32, &[4]).fill(|i| odd[i]);
                let zero = Tensor::empty(DType::F32, &[4]).fill(|_| 0.0);
                let mut inputs = if swapped { [Some(zero), Some(x)] } else { [Some(x), Some(zero)] };
                let mut out = Tensor::empty(DType::F32, &[4]);
                run(level, &pool, Op::Binary, &mut inputs, &mut out, &[kind as u32]);
                for (got, want) in out.values().iter().zip(want) {
                    assert!(*got as f32 == want || (got.is_nan() && want.is_nan()), "{kind:?} gives {got}, not {want}");
                }
            }
        }
        let mut out = Tensor::empty(DType::BF16, &[4]);
        let x = Tensor::empty(DType::F32, &[4]).fill(|i| odd[i]);
        run(level, &pool, Op::Copy, &mut [Some(x)], &mut out, &[]);
        let got = out.values();
        assert!(got[0].is_nan() && got[1] == f64::INFINITY && got[2] == f64::NEG_INFINITY && got[3] == 1.0);
    }
}

#[test]
fn nothing_to_do() {
    let none = Tensor::empty(DType::F32, &[3, 0]);
    conform("empty", Op::Copy, &[Some(none.clone())], &none, &[]);
    conform("empty", Op::Unary, &[Some(none.clone())], &none, &[1, 0, 0]);
    conform("empty", Op::Binary, &[Some(none.clone()), Some(none.clone())], &none, &[0]);
}

#[test]
fn refusals() {
    let check = |op, tensors: &[(DType, &[usize])], params: &[u32]| {
        let operands: Vec<_> = tensors.iter().map(|(d, s)| Some(Tensor::empty(*d, s).view())).collect();
        (ops::kernel(op).check)(&Args { operands: &operands, params })
    };
    let f = DType::F32;
    check(Op::Copy, &[(f, &[2, 3]), (f, &[3, 2])], &[]).unwrap_err();
    check(Op::Copy, &[(DType::I32, &[2]), (f, &[2])], &[]).unwrap_err();
    check(Op::Unary, &[(f, &[2]), (DType::BF16, &[2])], &[0, 0, 0]).unwrap_err();
    check(Op::Unary, &[(DType::I32, &[2]), (DType::I32, &[2])], &[0, 0, 0]).unwrap_err();
    check(Op::Binary, &[(f, &[2]), (f, &[1]), (f, &[2])], &[0]).unwrap_err();
    check(Op::Binary, &[(f, &[2]), (DType::F16, &[2]), (f, &[2])], &[0]).unwrap_err();
}

#[test]
fn transposing_copies() {
    // Whole tiles, their remainders, several strips, one axis around them.
    for (from, to) in
        [(DType::F32, DType::F32), (DType::F16, DType::F16), (DType::F32, DType::BF16), (DType::BF16, DType::F32)]
    {
        for shape in [[3, 16, 16], [2, 70, 33], [1, 129, 200], [5, 4, 67], [2, 3, 40]] {
            let [a, b, c] = shape;
            let x = Tensor::with_strides(from, &shape, &[b * (c + 1), 1, b]).random(&mut Rng(7), 3.0);
            conform("transpose", Op::Copy, &[Some(x.clone())], &Tensor::padded(to, &shape, 3), &[]);
            let out = Tensor::with_strides(to, &shape, &[1, a * c, a]);
            conform("transpose", Op::Copy, &[Some(x)], &out, &[]);
        }
    }
    let x = Tensor::with_strides(DType::U8, &[70, 90], &[1, 71]).fill(|i| (i % 251) as f32);
    conform("transpose", Op::Copy, &[Some(x)], &Tensor::empty(DType::U8, &[70, 90]), &[]);
}
