mod common;

use common::{Rng, Tensor, conform_with, levels, run};
use denoise::level::Level;
use denoise::ops::{self, Args};
use denoise::pool::Pool;
use denoise::schema::{Activation, DType, Op};

const FLOATS: [DType; 3] = [DType::F32, DType::BF16, DType::F16];

fn pack(level: Level, pool: &Pool, weight: &Tensor, dtype: DType) -> Tensor {
    let bytes = weight.shape[0].next_multiple_of(64) * weight.shape[1].next_multiple_of(4) * dtype.size();
    let mut packed = Tensor::empty(DType::U8, &[bytes]);
    run(level, pool, Op::PackLinear, &mut [Some(weight.clone())], &mut packed, &[dtype as u32]);
    packed
}

/// What one test varies.
struct Case {
    rows: Vec<usize>,
    n: usize,
    k: usize,
    dtype: DType,
    weight_dtype: DType,
    bias: bool,
    act: Activation,
    /// The gate's and the residual's shapes; empty where absent.
    gate: Vec<usize>,
    residual: Vec<usize>,
    /// Elements between rows of x and out.
    gap: usize,
}

impl Case {
    fn plain(rows: &[usize], n: usize, k: usize, dtype: DType) -> Self {
        Self {
            rows: rows.to_vec(),
            n,
            k,
            dtype,
            weight_dtype: dtype,
            bias: false,
            act: Activation::None,
            gate: vec![],
            residual: vec![],
            gap: 0,
        }
    }

    fn conform(&self) {
        let mut rng = Rng(self.n as u64 * 131 + self.k as u64);
        let mut shape = self.rows.clone();
        shape.push(self.k);
        let x = Tensor::padded(self.dtype, &shape, self.gap).random(&mut rng, 1.0);
        let weight = Tensor::padded(self.weight_dtype, &[self.n, self.k], self.gap).random(&mut rng, 1.0);
        let bias = self.bias.then(|| Tensor::empty(DType::F32, &[self.n]).random(&mut rng, 1.0));
        let operand = |shape: &[usize], rng: &mut Rng| {
            (!shape.is_empty()).then(|| Tensor::empty(self.dtype, shape).random(rng, 1.0))
        };
        let gate = operand(&self.gate, &mut rng);
        let residual = operand(&self.residual, &mut rng);
        *shape.last_mut().unwrap() = self.n;
        let out = Tensor::padded(self.dtype, &shape, self.gap);
        conform_with(
            &format!("{shape:?} of {} inputs in {:?}", self.k, self.dtype),
            Op::Linear,
            |level, pool| {
                let packed = pack(level, pool, &weight, self.dtype);
                vec![Some(x.clone()), Some(packed), bias.clone(), gate.clone(), residual.clone()]
            },
            &out,
            &[self.n as u32, self.k as u32, self.act as u32],
        );
    }
}

#[test]
fn odd_sizes() {
    for dtype in FLOATS {
        for (m, n, k) in [
            (1, 1, 1),
            (2, 3, 7),
            (3, 13, 2),
            (7, 31, 17),
            (13, 64, 65),
            (14, 65, 64),
            (15, 32, 130),
            (17, 77, 127),
            (29, 130, 31),
            (64, 17, 13),
            (77, 33, 3),
            (1, 127, 130),
            (5, 2, 1030),
            (31, 70, 1024),
            (180, 35, 9),
        ] {
            Case::plain(&[m], n, k, dtype).conform();
        }
    }
}

#[test]
fn rows_of_several_axes_with_gaps() {
    for dtype in FLOATS {
        Case { gap: 3, ..Case::plain(&[2, 9], 37, 21, dtype) }.conform();
        Case { gap: 5, ..Case::plain(&[3, 1, 5], 64, 33, dtype) }.conform();
    }
}

#[test]
fn epilogues() {
    for dtype in FLOATS {
        for act in [
            Activation::None,
            Activation::Silu,
            Activation::GeluTanh,
            Activation::GeluErf,
            Activation::QuickGelu,
            Activation::Relu,
        ] {
            Case { bias: true, act, ..Case::plain(&[2, 7], 45, 19, dtype) }.conform();
        }
        for (gate, residual) in [
            (vec![2, 1, 45], vec![]),
            (vec![], vec![2, 7, 45]),
            (vec![2, 1, 45], vec![2, 7, 45]),
            (vec![1], vec![7, 1]),
            (vec![2, 7, 1], vec![45]),
        ] {
            let case = Case { bias: true, act: Activation::Silu, ..Case::plain(&[2, 7], 45, 19, dtype) };
            Case { gate: gate.clone(), residual: residual.clone(), ..case }.conform();
            Case { gate, residual, ..Case::plain(&[2, 7], 45, 1100, dtype) }.conform();
        }
    }
}

#[test]
fn weights_of_other_types() {
    for dtype in FLOATS {
        for weight_dtype in FLOATS {
            Case { weight_dtype, gap: 1, ..Case::plain(&[9], 35, 66, dtype) }.conform();
        }
    }
}

#[test]
fn large_enough_for_several_tasks_a_thread() {
    Case { bias: true, ..Case::plain(&[400], 600, 300, DType::F32) }.conform();
    Case { bias: true, ..Case::plain(&[200], 300, 1700, DType::BF16) }.conform();
}

#[test]
fn nothing_to_do() {
    Case::plain(&[0], 5, 7, DType::F32).conform();
}

#[test]
fn not_a_number_stays_in_its_row() {
    let pool = Pool::new(2).unwrap();
    for level in levels() {
        for dtype in FLOATS {
            let mut rng = Rng(5);
            let weight = Tensor::empty(dtype, &[40, 20]).random(&mut rng, 1.0);
            let x = Tensor::empty(dtype, &[20, 20]).fill(|i| if i == 45 { f32::NAN } else { 1.0 });
            let packed = pack(level, &pool, &weight, dtype);
            let mut out = Tensor::empty(dtype, &[20, 40]);
            let mut inputs = [Some(x), Some(packed), None, None, None];
            run(level, &pool, Op::Linear, &mut inputs, &mut out, &[40, 20, 0]);
            for (i, value) in out.values().iter().enumerate() {
                assert_eq!(value.is_nan(), i / 40 == 2, "{} {dtype:?} {i}", level.name());
            }
        }
    }
}

#[test]
fn refusals() {
    let view = |dtype, shape: &[usize]| Some(Tensor::empty(dtype, shape).view());
    let good = || {
        [
            view(DType::F32, &[3, 5]),
            view(DType::U8, &[64 * 8 * 4]),
            view(DType::F32, &[7]),
            view(DType::F32, &[3, 7]),
            view(DType::F32, &[1, 7]),
            view(DType::F32, &[3, 7]),
        ]
    };
    let check = |operands: &[Option<denoise::view::View>], params: &[u32]| {
        (ops::kernel(Op::Linear).check)(&Args { operands, params })
    };
    check(&good(), &[7, 5, 0]).unwrap();
    for params in [[8, 5, 0], [7, 6, 0], [0, 5, 0], [u32::MAX, 5, 0], [7, 0, 0], [7, 5, 99]] {
        check(&good(), &params).unwrap_err();
    }
    for (index, dtype, shape) in [
        (0, DType::I32, vec![3, 5]),
        (0, DType::F32, vec![3, 6]),
        (0, DType::BF16, vec![3, 5]),
        (1, DType::U8, vec![64 * 8 * 4 - 1]),
        (1, DType::F32, vec![64 * 8]),
        (2, DType::BF16, vec![7]),
        (2, DType::F32, vec![8]),
        (3, DType::F32, vec![2, 7]),
        (4, DType::F16, vec![1, 7]),
        (5, DType::F32, vec![3, 8]),
        (5, DType::F32, vec![4, 7]),
    ] {
        let mut operands = good();
        operands[index] = view(dtype, &shape);
        let refused = check(&operands, &[7, 5, 0]).unwrap_err();
        assert!(refused.message.starts_with("linear"), "{}", refused.message);
    }
}
