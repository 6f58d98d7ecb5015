//! `linear` and `pack_linear` against the reference.
mod common;

use common::{ACTIVATIONS, Level, Rng, Tensor, conform_with, levels, run};
use denoise::gemm::WAYS;
use denoise::ops::{self, Args};
use denoise::pool::Pool;
use denoise::schema::{Activation, DType, Op};

const FLOATS: [DType; 3] = [DType::F32, DType::BF16, DType::F16];
const ODD: [usize; 12] = [1, 2, 3, 7, 13, 17, 31, 64, 65, 77, 127, 130];

fn packed_bytes(n: usize, k: usize, dtype: DType) -> usize {
    n.next_multiple_of(64) * k.next_multiple_of(4) * dtype.size()
}

fn packed(level: Level, pool: &Pool, weight: &Tensor, dtype: DType) -> Tensor {
    let mut out = Tensor::empty(DType::U8, &[packed_bytes(weight.shape[0], weight.shape[1], dtype)]);
    run(level, pool, Op::PackLinear, &mut [Some(weight.clone())], &mut out, &[dtype as u32]);
    out
}

struct Case {
    x: Tensor,
    weight: Tensor,
    bias: Option<Tensor>,
    gate: Option<Tensor>,
    residual: Option<Tensor>,
    out: Tensor,
    act: Activation,
    variant: u32,
}

impl Case {
    fn new(rng: &mut Rng, dtype: DType, m: usize, n: usize, k: usize) -> Self {
        Self {
            x: Tensor::empty(dtype, &[m, k]).random(rng, 1.0),
            weight: Tensor::empty(dtype, &[n, k]).random(rng, 1.0),
            bias: None,
            gate: None,
            residual: None,
            out: Tensor::empty(dtype, &[m, n]),
            act: Activation::None,
            variant: 0,
        }
    }
    fn check(&self) {
        let (n, k) = (self.weight.shape[0], self.weight.shape[1]);
        let what = format!("{:?} {:?} x ({n}, {k}), {:?}, cut {}", self.x.dtype, self.x.shape, self.act, self.variant);
        let params = [n as u32, k as u32, self.act as u32, self.variant];
        let prepare = |level: Level, pool: &Pool| {
            let weight = packed(level, pool, &self.weight, self.x.dtype);
            vec![Some(self.x.clone()), Some(weight), self.bias.clone(), self.gate.clone(), self.residual.clone()]
        };
        conform_with(&what, Op::Linear, prepare, &self.out, &params);
    }
}

#[test]
fn odd_shapes() {
    let mut rng = Rng(1);
    for dtype in FLOATS {
        for (i, &m) in ODD.iter().enumerate() {
            for (j, &n) in ODD.iter().enumerate() {
                Case::new(&mut rng, dtype, m, n, ODD[(5 * i + 7 * j) % ODD.len()]).check();
            }
        }
        for k in ODD {
            Case::new(&mut rng, dtype, 15, 33, k).check();
        }
    }
}

#[test]
fn every_number_of_rows_of_a_tile() {
    let mut rng = Rng(2);
    for m in 1..=29 {
        Case::new(&mut rng, DType::F32, m, 40, 50).check();
        Case::new(&mut rng, DType::BF16, m, 40, 51).check();
    }
}

#[test]
fn several_blocks_of_k_rows_and_columns() {
    let mut rng = Rng(3);
    for (m, n, k) in [(3, 70, 1025), (29, 40, 2500), (180, 600, 300), (61, 520, 3000), (500, 70, 515)] {
        for dtype in FLOATS {
            if dtype == DType::F32 || m * n * k < 20_000_000 {
                let mut case = Case::new(&mut rng, dtype, m, n, k);
                case.bias = Some(Tensor::empty(DType::F32, &[n]).random(&mut rng, 1.0));
                case.check();
            }
        }
    }
}

#[test]
fn epilogues() {
    let mut rng = Rng(4);
    for dtype in FLOATS {
        for (n, k) in [(77, 13), (64, 31), (130, 300)] {
            for parts in 0..8 {
                for act in ACTIVATIONS {
                    let mut case = Case::new(&mut rng, dtype, 17, n, k);
                    case.act = act;
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
}

#[test]
fn strides_and_batches() {
    let mut rng = Rng(5);
    for dtype in FLOATS {
        let (b, m, n, k) = (3, 19, 70, 45);
        for (rows, gap) in [([b, m], 0), ([1, b * m], 5), ([b * m, 1], 2)] {
            let [b, m] = rows;
            let mut case = Case::new(&mut rng, dtype, 1, n, k);
            case.x = Tensor::padded(dtype, &[b, m, k], gap).random(&mut rng, 1.0);
            // A slice of a longer sequence, of wider rows.
            case.out = Tensor::with_strides(dtype, &[b, m, n], &[(m + 4) * (n + 9), n + 9, 1]);
            case.gate = Some(Tensor::with_strides(dtype, &[b, m, n], &[n, 0, 1]).random(&mut rng, 1.0));
            case.residual = Some(Tensor::with_strides(dtype, &[b, m, n], &[1, b, m * b]).random(&mut rng, 1.0));
            case.check();
            case.gate = Some(Tensor::with_strides(dtype, &[b, m, n], &[2, 0, 0]).random(&mut rng, 1.0));
            case.weight = Tensor::padded(DType::BF16, &[n, k], 11).random(&mut rng, 1.0);
            case.check();
        }
        // One row for all.
        let mut case = Case::new(&mut rng, dtype, 1, 33, 40);
        case.x = Tensor::with_strides(dtype, &[5, 40], &[0, 1]).random(&mut rng, 1.0);
        case.out = Tensor::empty(dtype, &[5, 33]);
        case.check();
        case.x = Tensor::empty(dtype, &[40]).random(&mut rng, 1.0);
        case.out = Tensor::empty(dtype, &[33]);
        case.check();
    }
}

#[test]
fn every_way_to_cut_the_work() {
    let mut rng = Rng(8);
    for variant in 0..=WAYS.len() as u32 {
        for dtype in [DType::F32, DType::BF16] {
            for (m, n, k) in [(1, 130, 77), (5, 65, 300), (70, 200, 33), (190, 97, 530)] {
                let mut case = Case::new(&mut rng, dtype, m, n, k);
                case.variant = variant;
                case.bias = Some(Tensor::empty(DType::F32, &[n]).random(&mut rng, 1.0));
                case.check();
            }
        }
    }
}

/// Rows of a multiple of 16 bytes, which tensor cores take: tiles that end within, sums that end within a slab, of every
/// way to cut the work.
#[test]
fn rows_of_sixteen_bytes() {
    let mut rng = Rng(9);
    let shapes =
        [(1, 40, 8), (7, 33, 72), (16, 70, 2056), (21, 130, 40), (70, 77, 136), (150, 300, 200), (33, 515, 64)];
    for variant in 0..=WAYS.len() as u32 {
        for dtype in [DType::BF16, DType::F16] {
            for (m, n, k) in shapes {
                let mut case = Case::new(&mut rng, dtype, m, n, k);
                case.variant = variant;
                case.bias = Some(Tensor::empty(DType::F32, &[n]).random(&mut rng, 1.0));
                case.residual = Some(Tensor::padded(dtype, &[m, n], 3).random(&mut rng, 1.0));
                case.check();
            }
            // Batches of slices of longer sequences.
            let mut case = Case::new(&mut rng, dtype, 1, 90, 48);
            case.variant = variant;
            case.x = Tensor::padded(dtype, &[3, 29, 48], 8).random(&mut rng, 1.0);
            case.out = Tensor::with_strides(dtype, &[3, 29, 90], &[3000, 100, 1]);
            case.gate = Some(Tensor::with_strides(dtype, &[3, 29, 90], &[90, 0, 1]).random(&mut rng, 1.0));
            case.act = Activation::GeluTanh;
            case.check();
        }
    }
}

#[test]
fn nothing_to_sum_and_nothing_to_make() {
    let mut rng = Rng(6);
    for dtype in FLOATS {
        for (m, n, k) in [(0, 5, 5), (5, 0, 5), (0, 0, 0)] {
            Case::new(&mut rng, dtype, m, n, k).check();
        }
        let mut case = Case::new(&mut rng, dtype, 20, 40, 0);
        case.check();
        case.bias = Some(Tensor::empty(DType::F32, &[40]).random(&mut rng, 1.0));
        case.check();
    }
}

/// The identity times a weight is the weight, whatever dtype it was packed from.
#[test]
fn packing_round_trips() {
    let mut rng = Rng(7);
    let pool = Pool::new(2).unwrap();
    for from in FLOATS {
        for dtype in FLOATS {
            for (n, k) in [(1, 1), (65, 7), (100, 33), (64, 64)] {
                // Of both types' precision, so that nothing rounds.
                let weight = Tensor::padded(from, &[n, k], 3).fill(|_| (rng.below(129) as f32 - 64.0) / 64.0);
                let x = Tensor::empty(dtype, &[k, k]).fill(|i| (i / k == i % k) as u8 as f32);
                let want = weight.values();
                for level in levels().into_iter().chain([Level::Reference]) {
                    let packed = packed(level, &pool, &weight, dtype);
                    let mut out = Tensor::empty(dtype, &[k, n]);
                    let mut inputs = [Some(x.clone()), Some(packed), None, None, None];
                    run(level, &pool, Op::Linear, &mut inputs, &mut out, &[n as u32, k as u32, 0, 0]);
                    let got = out.values();
                    for i in 0..n * k {
                        assert_eq!(got[(i % k) * n + i / k], want[i], "{from:?} to {dtype:?} on {}", level.name());
                    }
                }
            }
        }
    }
}

#[test]
fn threads_do_not_change_results() {
    let mut rng = Rng(8);
    let (m, n, k) = (45, 300, 700);
    let x = Tensor::empty(DType::F32, &[m, k]).random(&mut rng, 1.0);
    let weight = Tensor::empty(DType::F32, &[n, k]).random(&mut rng, 1.0);
    for level in levels() {
        let mut first = None;
        for threads in 1..=4 {
            let pool = Pool::new(threads).unwrap();
            let mut out = Tensor::empty(DType::F32, &[m, n]);
            let mut inputs = [Some(x.clone()), Some(packed(level, &pool, &weight, DType::F32)), None, None, None];
            run(level, &pool, Op::Linear, &mut inputs, &mut out, &[n as u32, k as u32, 0, 0]);
            let values = out.values();
            assert!(first.get_or_insert_with(|| values.clone()) == &values, "{} with {threads} threads", level.name());
        }
    }
}

#[test]
fn what_is_not_finite_stays_so() {
    let pool = Pool::new(1).unwrap();
    for dtype in FLOATS {
        for level in levels() {
            let weight = Tensor::empty(dtype, &[40, 21]).fill(|_| 1.0);
            let x = Tensor::empty(dtype, &[4, 21]).fill(|i| match i {
                5 => f32::NAN,
                30 => f32::INFINITY,
                50 => f32::NEG_INFINITY,
                _ => 1.0,
            });
            let mut out = Tensor::empty(dtype, &[4, 40]);
            let mut inputs = [Some(x), Some(packed(level, &pool, &weight, dtype)), None, None, None];
            run(level, &pool, Op::Linear, &mut inputs, &mut out, &[40, 21, 0, 0]);
            let got = out.values();
            for column in 0..40 {
                assert!(got[column].is_nan());
                assert_eq!(got[40 + column], f64::INFINITY);
                assert_eq!(got[80 + column], f64::NEG_INFINITY);
                assert_eq!(got[120 + column], 21.0);
            }
        }
    }
}

#[test]
fn refusals() {
    let f32s = |shape: &[usize]| Some(Tensor::empty(DType::F32, shape));
    let bytes = |n: usize| Some(Tensor::empty(DType::U8, &[n]));
    let refuses = |op: Op, mut operands: Vec<Option<Tensor>>, params: &[u32], says: &str| {
        let views: Vec<_> = operands.iter_mut().map(|t| t.as_mut().map(Tensor::view)).collect();
        let error = (ops::kernel(op).check)(&Args { operands: &views, params }).expect_err(says);
        assert!(error.message.contains(says), "{} does not say: {says}", error.message);
    };
    let size = packed_bytes(5, 3, DType::F32);
    let good = || vec![f32s(&[2, 3]), bytes(size), f32s(&[5]), f32s(&[1, 5]), f32s(&[2, 1]), f32s(&[2, 5])];
    let with = |index: usize, tensor: Option<Tensor>| {
        let mut operands = good();
        operands[index] = tensor;
        operands
    };
    let params = [5, 3, 0, 0];
    let mut fine = good();
    let views: Vec<_> = fine.iter_mut().map(|t| t.as_mut().map(Tensor::view)).collect();
    (ops::kernel(Op::Linear).check)(&Args { operands: &views, params: &params }).unwrap();
    refuses(Op::Linear, with(0, f32s(&[2, 4])), &params, "x of 3 columns");
    refuses(Op::Linear, with(0, f32s(&[])), &params, "x of 3 columns");
    refuses(Op::Linear, with(0, Some(Tensor::empty(DType::I32, &[2, 3]))), &params, "float dtype");
    refuses(Op::Linear, with(0, Some(Tensor::empty(DType::F16, &[2, 3]))), &params, "x's dtype");
    refuses(Op::Linear, with(1, bytes(size - 1)), &params, "packed weight");
    refuses(Op::Linear, with(1, f32s(&[size])), &params, "packed weight");
    refuses(Op::Linear, with(2, f32s(&[4])), &params, "bias of 5 elements");
    refuses(Op::Linear, with(2, Some(Tensor::empty(DType::BF16, &[5]))), &params, "f32 bias");
    refuses(Op::Linear, with(3, f32s(&[3, 5])), &params, "gate that broadcasts");
    refuses(Op::Linear, with(4, Some(Tensor::empty(DType::BF16, &[2, 5]))), &params, "residual in x's dtype");
    refuses(Op::Linear, with(5, f32s(&[3, 5])), &params, "gives out");
    refuses(Op::Linear, with(5, f32s(&[2, 6])), &params, "gives out");
    refuses(Op::Linear, good(), &[-5i32 as u32, 3, 0, 0], "negative n");
    refuses(Op::Linear, good(), &[5, 3, 99, 0], "activation of code 99");
    refuses(Op::PackLinear, vec![f32s(&[5, 3]), bytes(size + 1)], &[0], "another size");
    refuses(Op::PackLinear, vec![f32s(&[5, 3]), bytes(size)], &[1], "another size");
    refuses(Op::PackLinear, vec![f32s(&[5, 3]), bytes(size)], &[3], "code 3");
    refuses(Op::PackLinear, vec![f32s(&[15]), bytes(size)], &[0], "two axes");
    refuses(Op::PackLinear, vec![Some(Tensor::empty(DType::I8, &[5, 3])), bytes(size)], &[0], "float dtype");
    refuses(Op::PackLinear, vec![f32s(&[5, 3]), f32s(&[size])], &[0], "dense bytes");
    let mut huge = [Tensor::empty(DType::F32, &[1, 1]).view(), Tensor::empty(DType::U8, &[1]).view()];
    huge[0].dims[0] = usize::MAX / 2;
    huge[0].dims[1] = usize::MAX / 2;
    let error = (ops::kernel(Op::PackLinear).check)(&Args { operands: &huge.map(Some), params: &[0] });
    assert!(error.is_err());
}
