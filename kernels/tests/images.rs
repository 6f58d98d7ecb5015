//! Kernels of pictures besides convolution: group norm and enlargement.
mod common;

use common::{Rng, Tensor, conform, levels, run};
use denoise::ops::{self, Args};
use denoise::pool::Pool;
use denoise::schema::{DType, Op};

const FLOATS: [DType; 3] = [DType::F32, DType::BF16, DType::F16];
const EPS: u32 = 0x358637bd; // 1e-6

#[test]
fn group_norms() {
    for dtype in FLOATS {
        for (shape, groups) in [
            (&[1, 1, 1, 1][..], 1),
            (&[2, 3, 5, 6], 3),
            (&[1, 7, 13, 32], 8),
            (&[2, 17, 3, 33], 11),
            (&[1, 64, 70, 24], 4),
            (&[1, 2, 2, 130], 2),
            (&[2, 3, 5, 7, 6], 2),
            (&[1, 9, 33, 40, 20], 4),
        ] {
            for act in [0, 1] {
                let mut rng = Rng(groups as u64);
                let x = Tensor::padded(dtype, shape, 3).fill(|i| rng.uniform() + (i % 5) as f32);
                let vector =
                    |rng: &mut Rng| Some(Tensor::empty(DType::F32, shape.last_chunk::<1>().unwrap()).random(rng, 1.0));
                for vectors in [[None, None], [vector(&mut rng), vector(&mut rng)], [vector(&mut rng), None]] {
                    let [weight, bias] = vectors;
                    let inputs = [Some(x.clone()), weight, bias, None, None];
                    let out = Tensor::padded(dtype, shape, 1);
                    conform(&format!("{shape:?} {dtype:?}"), Op::GroupNorm, &inputs, &out, &[groups, EPS, act, 0]);
                }
            }
        }
    }
}

#[test]
fn modulated_group_norms() {
    let mut rng = Rng(5);
    for dtype in FLOATS {
        for (shape, grid, first) in [
            (&[2, 6, 9, 12][..], &[2, 2, 3, 12][..], 0),
            (&[1, 3, 4, 6, 36], &[1, 3, 4, 6, 36], 0),
            (&[2, 4, 6, 4, 16], &[2, 2, 3, 1, 16], 0),
            (&[1, 9, 6, 10, 40], &[1, 3, 3, 5, 40], 1),
            (&[2, 5, 2, 3, 8], &[2, 2, 1, 1, 8], 1),
            (&[1, 1, 8, 8, 8], &[1, 1, 2, 2, 8], 1),
            (&[1, 7, 40, 50, 24], &[1, 7, 5, 25, 24], 1),
        ] {
            for act in [0, 1] {
                let x = Tensor::padded(dtype, shape, 3).random(&mut rng, 2.0);
                let channels = shape.last_chunk::<1>().unwrap();
                let [weight, bias] = [0; 2].map(|_| Some(Tensor::empty(DType::F32, channels).random(&mut rng, 1.0)));
                let [scale, shift] = [1, 5].map(|gap| Some(Tensor::padded(dtype, grid, gap).random(&mut rng, 1.0)));
                let out = Tensor::padded(dtype, shape, 1);
                let inputs = [Some(x), weight, bias, scale, shift];
                conform(&format!("{shape:?} {grid:?}"), Op::GroupNorm, &inputs, &out, &[4, EPS, act, first]);
            }
        }
    }
}

#[test]
fn group_norm_far_from_zero() {
    let mut rng = Rng(3);
    let x = Tensor::empty(DType::F32, &[1, 20, 20, 16]).fill(|i| 300.0 + (i % 16) as f32 + 0.5 * rng.uniform());
    conform(
        "far",
        Op::GroupNorm,
        &[Some(x), None, None, None, None],
        &Tensor::empty(DType::F32, &[1, 20, 20, 16]),
        &[16, EPS, 0, 0],
    );
}

#[test]
fn not_a_number_stays_in_its_group() {
    let pool = Pool::new(2).unwrap();
    for level in levels() {
        let x = Tensor::empty(DType::F32, &[1, 4, 4, 8]).fill(|i| if i == 9 { f32::NAN } else { (i % 11) as f32 });
        let mut out = Tensor::empty(DType::F32, &[1, 4, 4, 8]);
        run(level, &pool, Op::GroupNorm, &mut [Some(x), None, None, None, None], &mut out, &[2, EPS, 0, 0]);
        for (i, v) in out.values().iter().enumerate() {
            assert_eq!(v.is_nan(), i % 8 < 4, "{} {i}", level.name());
        }
    }
}

#[test]
fn enlargements() {
    for dtype in [DType::F32, DType::BF16, DType::U8] {
        for factor in [1, 2, 3] {
            let x = Tensor::padded(dtype, &[2, 3, 5, 7], 2).fill(|i| (i % 97) as f32);
            let out = Tensor::padded(dtype, &[2, 3 * factor, 5 * factor, 7], 1);
            conform("upsample", Op::UpsampleNearest, &[Some(x)], &out, &[factor as u32]);
        }
    }
}

#[test]
fn nothing_to_do() {
    let none = Tensor::empty(DType::F32, &[0, 3, 3, 4]);
    conform("group_norm", Op::GroupNorm, &[Some(none.clone()), None, None, None, None], &none, &[2, EPS, 0, 0]);
    conform("upsample", Op::UpsampleNearest, &[Some(none.clone())], &none, &[1]);
}

#[test]
fn refusals() {
    let check = |op, tensors: &[Option<(DType, &[usize])>], params: &[u32]| {
        let operands: Vec<_> = tensors.iter().map(|t| t.map(|(d, s)| Tensor::empty(d, s).view())).collect();
        (ops::kernel(op).check)(&Args { operands: &operands, params }).unwrap_err()
    };
    let x = Some((DType::F32, &[1usize, 2, 3, 8][..]));
    check(Op::GroupNorm, &[x, None, None, None, None, x], &[3, EPS, 0, 0]);
    check(Op::GroupNorm, &[x, None, None, None, None, x], &[0, EPS, 0, 0]);
    check(Op::GroupNorm, &[x, Some((DType::F32, &[7])), None, None, None, x], &[2, EPS, 0, 0]);
    check(Op::GroupNorm, &[x, None, None, None, None, Some((DType::F32, &[1, 2, 3, 4]))], &[2, EPS, 0, 0]);
    check(Op::GroupNorm, &[x, None, None, None, None, x], &[2, EPS, 0, 2]);
    let video = Some((DType::F32, &[1usize, 5, 4, 6, 8][..]));
    let grid = |shape: &'static [usize]| Some((DType::F32, shape));
    for (scale, first) in [
        (grid(&[1, 5, 4, 6]), 0),
        (grid(&[1, 5, 3, 6, 8]), 0),
        (grid(&[1, 2, 4, 6, 8]), 0),
        (grid(&[1, 5, 4, 6, 4]), 0),
        (grid(&[2, 5, 4, 6, 8]), 0),
        (grid(&[1, 0, 4, 6, 8]), 0),
        (grid(&[1, 0, 4, 6, 8]), 1),
        (grid(&[1, 1, 4, 6, 8]), 1),
        (grid(&[1, 4, 4, 6, 8]), 1),
        (Some((DType::BF16, &[1, 5, 4, 6, 8])), 0),
        (None, 0),
    ] {
        check(Op::GroupNorm, &[video, None, None, scale, grid(&[1, 5, 4, 6, 8]), video], &[2, EPS, 0, first]);
        check(Op::GroupNorm, &[video, None, None, grid(&[1, 5, 4, 6, 8]), scale, video], &[2, EPS, 0, first]);
    }
    check(Op::GroupNorm, &[x, None, None, x, x, x], &[2, EPS, 0, 1]);
    check(Op::UpsampleNearest, &[x, Some((DType::F32, &[1, 4, 5, 8]))], &[2]);
    check(Op::UpsampleNearest, &[x, x], &[0]);
    check(Op::UpsampleNearest, &[x, Some((DType::BF16, &[1, 4, 6, 8]))], &[2]);
}
