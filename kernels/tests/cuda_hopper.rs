//! What is handed to Hopper's kernels, and which multiplies are: the emulated library has a plain loop in their place.
mod common;

use common::{ACTIVATIONS, Level, Rng, Tensor, conform_with, cuda_ways, levels, run};
use denoise::pool::Pool;
use denoise::quant::{Weight, rows_bytes};
use denoise::schema::{Activation, DType, Format, Op, Rows};

/// A layer, of floats where there is no format.
struct Case {
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    quantized: Option<(Format, Rows)>,
    bias: Option<Tensor>,
    gate: Option<Tensor>,
    residual: Option<Tensor>,
    out: Tensor,
    act: Activation,
}

impl Case {
    fn new(rng: &mut Rng, dtype: DType, quantized: Option<(Format, Rows)>, shape: &[usize], n: usize) -> Self {
        let k = *shape.last().unwrap();
        let weight = Tensor::empty(dtype, &[n, k]).random(rng, 1.0);
        let codes = match quantized {
            Some((Format::Int8, _)) => Tensor::empty(DType::I8, &[n, k]).fill(|_| (rng.next() % 255) as f32 - 127.0),
            // Below the codes of NaN, and with every other sign.
            Some(_) => Tensor::empty(DType::U8, &[n, k]).fill(|i| (rng.next() % 120 + i as u64 % 2 * 128) as f32),
            None => weight,
        };
        let mut out = shape.to_vec();
        *out.last_mut().unwrap() = n;
        Self {
            x: Tensor::padded(dtype, shape, 8).random(rng, 1.0),
            weight: codes,
            scale: Tensor::empty(DType::F32, &[n, 1]).fill(|_| (rng.uniform() + 1.5) * 0.01),
            quantized,
            bias: Some(Tensor::empty(DType::F32, &[n]).random(rng, 1.0)),
            gate: None,
            residual: None,
            out: Tensor::padded(dtype, &out, 16),
            act: Activation::None,
        }
    }
    fn sizes(&self) -> [usize; 2] {
        [self.weight.shape[0], self.weight.shape[1]]
    }
    fn op(&self) -> Op {
        if self.quantized.is_some() { Op::QuantizedLinear } else { Op::Linear }
    }
    fn params(&self) -> Vec<u32> {
        let [n, k] = self.sizes().map(|size| size as u32);
        match self.quantized {
            Some((format, rows)) => vec![n, k, self.act as u32, format as u32, 0, 0, k, 0, rows as u32, 0],
            None => vec![n, k, self.act as u32, 0],
        }
    }
    fn inputs(&self, level: Level, pool: &Pool) -> Vec<Option<Tensor>> {
        let ([n, k], dtype) = (self.sizes(), self.out.dtype as u32);
        let (mut x, packed);
        if let Some((format, rows)) = self.quantized {
            let mut shape = self.x.shape.clone();
            *shape.last_mut().unwrap() = rows_bytes(k);
            x = Tensor::empty(DType::U8, &shape);
            run(level, pool, Op::QuantizeRows, &mut [Some(self.x.clone()), None], &mut x, &[rows as u32]);
            let bytes = Weight { format, ebits: 0, mbits: 0, group: k }.packed_bytes(n, k, false).unwrap();
            let mut out = Tensor::empty(DType::U8, &[bytes]);
            let params = [n as u32, k as u32, format as u32, 0, 0, k as u32, rows as u32, dtype];
            let mut inputs = [Some(self.weight.clone()), Some(self.scale.clone()), None];
            run(level, pool, Op::PackQuantized, &mut inputs, &mut out, &params);
            packed = out;
        } else {
            x = self.x.clone();
            let bytes = n.next_multiple_of(64) * k.next_multiple_of(4) * self.x.dtype.size();
            let mut out = Tensor::empty(DType::U8, &[bytes]);
            run(level, pool, Op::PackLinear, &mut [Some(self.weight.clone())], &mut out, &[dtype]);
            packed = out;
        }
        vec![Some(x), Some(packed), self.bias.clone(), self.gate.clone(), self.residual.clone()]
    }
    fn check(&self) {
        let what = format!("{:?} {:?} to {:?}, {:?}", self.quantized, self.x.shape, self.out.shape, self.act);
        let prepare = |level: Level, pool: &Pool| self.inputs(level, pool);
        conform_with(&what, self.op(), prepare, &self.out, &self.params());
    }
    /// The names of the ways that are Hopper's; `None` where there is no emulated library.
    fn hopper_ways(&self) -> Option<Vec<String>> {
        if !levels().contains(&Level::CudaEmulated) {
            return None;
        }
        let inputs = self.inputs(Level::CudaEmulated, &Pool::new(1).unwrap());
        let names = cuda_ways(self.op(), &inputs, &self.out, &self.params());
        Some(names.into_iter().filter(|name| name.starts_with("hopper")).collect())
    }
}

const KINDS: [(DType, Option<(Format, Rows)>); 5] = [
    (DType::BF16, None),
    (DType::F16, None),
    (DType::BF16, Some((Format::E4m3, Rows::E4m3))),
    (DType::BF16, Some((Format::Int8, Rows::Int8))),
    (DType::BF16, Some((Format::Int8, Rows::Int8Asym))),
];

#[test]
fn every_kind_of_operands_and_what_follows() {
    let mut rng = Rng(1);
    for (dtype, quantized) in KINDS {
        for (i, (m, n, k)) in [(1, 8, 16), (5, 72, 48), (70, 136, 160)].into_iter().enumerate() {
            let mut case = Case::new(&mut rng, dtype, quantized, &[m, k], n);
            case.act = ACTIVATIONS[i];
            case.check();
            case.act = ACTIVATIONS[i + 3];
            case.residual = Some(Tensor::padded(dtype, &[m, n], 8).random(&mut rng, 1.0));
            case.check();
            // Rows of the residual that no copy engine takes, and one row for all.
            case.gate = Some(Tensor::empty(dtype, &[n]).random(&mut rng, 1.0));
            case.residual = Some(Tensor::padded(dtype, &[m, n], 3).random(&mut rng, 1.0));
            case.check();
            case.residual = Some(Tensor::with_strides(dtype, &[m, n], &[0, 1]).random(&mut rng, 1.0));
            case.check();
        }
    }
}

/// A part of a joint sequence is written in place: its batches lie further apart than their rows.
#[test]
fn batches_of_slices() {
    let mut rng = Rng(2);
    for (dtype, quantized) in KINDS {
        let mut case = Case::new(&mut rng, dtype, quantized, &[3, 7, 48], 40);
        case.out = Tensor::with_strides(dtype, &[3, 7, 40], &[1000, 40, 1]);
        case.gate = Some(Tensor::with_strides(dtype, &[3, 7, 40], &[40, 0, 1]).random(&mut rng, 1.0));
        case.residual = Some(Tensor::with_strides(dtype, &[3, 7, 40], &[2000, 48, 1]).random(&mut rng, 1.0));
        assert!(case.hopper_ways().is_none_or(|ways| !ways.is_empty()));
        case.check();
        case.residual = Some(Tensor::empty(dtype, &[3, 7, 40]).random(&mut rng, 1.0));
        case.check();
        // One for all batches.
        case.residual = Some(Tensor::with_strides(dtype, &[3, 7, 40], &[0, 40, 1]).random(&mut rng, 1.0));
        case.check();
    }
}

#[test]
fn multiplies_are_handed_over_where_they_lie_so() {
    let mut rng = Rng(3);
    for (dtype, quantized) in KINDS {
        let named = |case: &Case| case.hopper_ways().unwrap_or_default();
        let few = named(&Case::new(&mut rng, dtype, quantized, &[5, 64], 64));
        let many = named(&Case::new(&mut rng, dtype, quantized, &[1024, 64], 1024));
        if !levels().contains(&Level::CudaEmulated) {
            return;
        }
        assert!(few.len() >= 2 && few.len() == many.len(), "{quantized:?} {few:?} {many:?}");
        assert_ne!(few[0], many[0], "{quantized:?}: the guess follows the rows");
        let none = |case: Case, why: &str| assert!(case.hopper_ways().unwrap().is_empty(), "{quantized:?}: {why}");
        none(Case::new(&mut rng, dtype, quantized, &[5, 68], 64), "rows of the weight of no multiple of 16 bytes");
        none(Case::new(&mut rng, dtype, quantized, &[5, 64], 65), "rows of the result of no multiple of 16 bytes");
        let mut case = Case::new(&mut rng, dtype, quantized, &[5, 64], 64);
        case.out = Tensor::padded(dtype, &[5, 64], 3);
        none(case, "rows of the result at odd distances");
        let mut case = Case::new(&mut rng, dtype, quantized, &[5, 64], 64);
        case.gate = Some(Tensor::with_strides(dtype, &[5, 64], &[1, 0]).random(&mut rng, 1.0));
        none(case, "one gate for a row");
        let mut case = Case::new(&mut rng, dtype, quantized, &[2, 3, 5, 64], 64);
        case.out = Tensor::with_strides(dtype, &[2, 3, 5, 64], &[9000, 1000, 64, 1]);
        none(case, "batches of batches");
    }
    if levels().contains(&Level::CudaEmulated) {
        let case = Case::new(&mut rng, DType::F32, None, &[64, 64], 64);
        assert_eq!(case.hopper_ways(), Some(vec![]), "floats of 32 bits");
        let case = Case::new(&mut rng, DType::F32, Some((Format::Int8, Rows::Int8)), &[64, 64], 64);
        assert_eq!(case.hopper_ways(), Some(vec![]), "a result of 32 bits");
    }
}
