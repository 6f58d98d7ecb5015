mod common;

use common::{Level, Rng, Tensor, conform, levels, run_views};
use denoise::error::Code;
use denoise::ops::{self, Args};
use denoise::pool::Pool;
use denoise::schema::{DType, Op};

const FLOATS: [DType; 3] = [DType::F32, DType::BF16, DType::F16];

#[test]
fn rows_of_tables() {
    for table_dtype in FLOATS {
        for dtype in FLOATS {
            let table = Tensor::padded(table_dtype, &[11, 37], 2).random(&mut Rng(1), 2.0);
            let ids = Tensor::with_strides(DType::I32, &[3, 5], &[1, 3]).fill(|i| ((i * 7) % 11) as f32);
            let out = Tensor::padded(dtype, &[3, 5, 37], 1);
            conform("embedding", Op::Embedding, &[Some(ids), Some(table)], &out, &[]);
        }
    }
}

#[test]
fn an_id_outside_the_table_is_an_error_before_anything_is_read() {
    let pool = Pool::new(2).unwrap();
    for level in levels() {
        for id in [11.0, -1.0, 2e9] {
            let mut table = Tensor::empty(DType::F32, &[11, 5]).fill(|_| 0.0);
            let mut ids = Tensor::empty(DType::I32, &[3]).fill(|i| if i == 1 { id } else { 0.0 });
            let mut out = Tensor::empty(DType::F32, &[3, 5]);
            let operands = [Some(ids.view()), Some(table.view()), Some(out.view())];
            let args = Args { operands: &operands, params: &[] };
            let error = run_views(level, &pool, Op::Embedding, &args).unwrap_err();
            assert_eq!(error.code, Code::BadValue);
            assert!(error.message.contains("place 1") && error.message.contains("11 rows"), "{}", error.message);
        }
    }
}

#[test]
fn rows_of_int8_tables() {
    for dtype in FLOATS {
        for (rows, width) in [(11, 37), (1, 1), (300, 768)] {
            let mut rng = Rng(2);
            let codes = Tensor::padded(DType::I8, &[rows, width], 3).fill(|_| rng.below(256) as u8 as i8 as f32);
            let scale = Tensor::empty(DType::F32, &[rows, 1]).fill(|_| 0.01 + rng.uniform() * 0.005);
            let ids = Tensor::with_strides(DType::I32, &[3, 5], &[1, 3]).fill(|i| ((i * 7) % rows) as f32);
            let out = Tensor::padded(dtype, &[3, 5, width], 1);
            conform("embedding of int8", Op::QuantizedEmbedding, &[Some(ids), Some(codes), Some(scale)], &out, &[]);
        }
    }
}

#[test]
fn a_code_times_its_scale_is_exact() {
    let pool = Pool::new(2).unwrap();
    let mut codes = Tensor::empty(DType::I8, &[3, 256]).fill(|i| i as u8 as i8 as f32);
    let mut scale = Tensor::empty(DType::F32, &[3, 1]).fill(|i| [0.5, 0.1, 3.0][i]);
    let mut ids = Tensor::empty(DType::I32, &[2]).fill(|i| [2.0, 1.0][i]);
    for level in levels() {
        let mut out = Tensor::empty(DType::F32, &[2, 256]);
        let operands = [Some(ids.view()), Some(codes.view()), Some(scale.view()), Some(out.view())];
        run_views(level, &pool, Op::QuantizedEmbedding, &Args { operands: &operands, params: &[] }).unwrap();
        for (i, got) in out.values().into_iter().enumerate() {
            let want = (i % 256) as u8 as i8 as f32 * [3.0, 0.1f32][i / 256];
            assert_eq!(got, want as f64);
        }
    }
}

#[test]
fn an_id_outside_an_int8_table_is_an_error() {
    let pool = Pool::new(2).unwrap();
    for level in levels().into_iter().chain([Level::Reference]) {
        for id in [11.0, -1.0, 2e9] {
            let mut codes = Tensor::empty(DType::I8, &[11, 5]).fill(|_| 0.0);
            let mut scale = Tensor::empty(DType::F32, &[11, 1]).fill(|_| 1.0);
            let mut ids = Tensor::empty(DType::I32, &[3]).fill(|i| if i == 1 { id } else { 0.0 });
            let mut out = Tensor::empty(DType::F32, &[3, 5]);
            let operands = [Some(ids.view()), Some(codes.view()), Some(scale.view()), Some(out.view())];
            let args = Args { operands: &operands, params: &[] };
            let error = run_views(level, &pool, Op::QuantizedEmbedding, &args).unwrap_err();
            assert_eq!(error.code, Code::BadValue);
            assert!(error.message.contains("place 1") && error.message.contains("11 rows"), "{}", error.message);
        }
    }
}

#[test]
fn int8_tables_that_are_refused() {
    let refuses = |codes: (DType, [usize; 2]), scale: (DType, [usize; 2]), out: (DType, [usize; 2]), says: &str| {
        let mut tensors = [(DType::I32, [3, 1]), codes, scale, out].map(|(dtype, shape)| Tensor::empty(dtype, &shape));
        let mut views: Vec<_> = tensors.iter_mut().map(|t| Some(t.view())).collect();
        views[0].as_mut().unwrap().rank = 1;
        let error = (ops::kernel(Op::QuantizedEmbedding).check)(&Args { operands: &views, params: &[] });
        let message = error.expect_err(says).message;
        assert!(message.contains(says), "{message} does not say: {says}");
    };
    let (codes, scale, out) = ((DType::I8, [11, 5]), (DType::F32, [11, 1]), (DType::F32, [3, 5]));
    refuses((DType::U8, [11, 5]), scale, out, "i8 table");
    refuses(codes, (DType::F32, [11, 5]), out, "scales of [11, 1]");
    refuses(codes, (DType::BF16, [11, 1]), out, "f32 scales");
    refuses(codes, scale, (DType::F32, [3, 6]), "cannot give");
    refuses(codes, scale, (DType::I32, [3, 5]), "cannot give");
}

fn sinusoids(t: f32, size: usize, flip: u32, shift: f32, scale: f32) -> Vec<f64> {
    let pool = Pool::new(1).unwrap();
    let mut t = Tensor::empty(DType::F32, &[1]).fill(|_| t);
    let mut out = Tensor::empty(DType::F32, &[1, size]);
    let operands = [Some(t.view()), Some(out.view())];
    let params = [flip, shift.to_bits(), 10000f32.to_bits(), scale.to_bits()];
    let args = Args { operands: &operands, params: &params };
    (ops::kernel(Op::TimestepEmbedding).check)(&args).unwrap();
    let level = levels()[0];
    run_views(level, &pool, Op::TimestepEmbedding, &args).unwrap();
    out.values()
}

#[test]
fn sinusoids_of_timesteps() {
    let close = |got: f64, want: f64| assert!((got - want).abs() < 1e-4, "{got} is not {want}");
    let got = sinusoids(3.0, 6, 0, 1.0, 1.0);
    for (i, frequency) in [1f64, 0.01, 0.0001].into_iter().enumerate() {
        close(got[i], (3.0 * frequency).sin());
        close(got[3 + i], (3.0 * frequency).cos());
    }
    let flipped = sinusoids(3.0, 6, 1, 1.0, 1.0);
    assert_eq!(flipped[..3], got[3..]);
    let scaled = sinusoids(0.5, 4, 0, 0.0, 100.0);
    close(scaled[0], 50f64.sin());
    close(scaled[1], 0.5f64.sin());
    assert_eq!(sinusoids(3.0, 7, 0, 1.0, 1.0)[6], 0.0, "an odd size ends with a zero");
}

#[test]
fn rotary_positions() {
    let ids = Tensor::empty(DType::F32, &[3, 2]).fill(|i| i as f32);
    let params = [10000f32.to_bits(), 4, 0, 2, 0];
    let out = Tensor::empty(DType::F32, &[2, 3, 6]);
    conform("rotary", Op::RotaryEmbedding, &[Some(ids.clone())], &out, &params);
    let pool = Pool::new(1).unwrap();
    let (mut ids, mut out) = (ids, out);
    common::run(levels()[0], &pool, Op::RotaryEmbedding, &mut [Some(ids.clone())], &mut out, &params);
    let got = out.values();
    for token in 0..3 {
        let position = |axis: usize| (2 * token + axis) as f64;
        let angles = [position(0), position(0), position(0) * 0.01, position(0) * 0.01, position(1), position(1)];
        for (i, angle) in angles.iter().enumerate() {
            assert!((got[token * 6 + i] - angle.cos()).abs() < 1e-6);
            assert!((got[18 + token * 6 + i] - angle.sin()).abs() < 1e-6);
        }
    }
    ids.view();
}

#[test]
fn refusals() {
    let check = |op, tensors: &[(DType, &[usize])], params: &[u32]| {
        let operands: Vec<_> = tensors.iter().map(|(d, s)| Some(Tensor::empty(*d, s).view())).collect();
        (ops::kernel(op).check)(&Args { operands: &operands, params }).unwrap_err()
    };
    let (f, i) = (DType::F32, DType::I32);
    check(Op::Embedding, &[(f, &[3]), (f, &[5, 4]), (f, &[3, 4])], &[]);
    check(Op::Embedding, &[(i, &[3]), (f, &[5, 4]), (f, &[3, 5])], &[]);
    check(Op::Embedding, &[(i, &[3]), (i, &[5, 4]), (f, &[3, 4])], &[]);
    check(Op::TimestepEmbedding, &[(f, &[3]), (f, &[2, 4])], &[0, 0, 0, 0]);
    check(Op::TimestepEmbedding, &[(f, &[3]), (f, &[3, 4])], &[2, 0, 0, 0]);
    check(Op::RotaryEmbedding, &[(f, &[3, 2]), (f, &[2, 3, 7])], &[0, 4, 3, 0, 0]);
    check(Op::RotaryEmbedding, &[(f, &[3, 2]), (f, &[2, 3, 4])], &[0, 4, 0, 0, 0]);
    check(Op::RotaryEmbedding, &[(f, &[3, 1]), (f, &[2, 3, 6])], &[0, 4, 0, 0, 0]);
    check(Op::RotaryEmbedding, &[(f, &[3, 1]), (f, &[2, 3, 4])], &[0, u32::MAX - 1, 0, 0, 0]);
}

#[test]
fn an_id_that_the_result_overwrites_is_an_error_too() {
    let pool = Pool::new(1).unwrap();
    for level in levels() {
        // Row 0 of out lies on id 1: what is written there is no id of the table.
        let mut table = Tensor::empty(DType::F32, &[4, 1]).fill(|_| -1.0);
        let mut ids = Tensor::empty(DType::I32, &[3]).fill(|i| i as f32);
        let mut out = ids.view();
        out.ptr = out.ptr.wrapping_add(4);
        out.dtype = DType::F32;
        (out.rank, out.dims[0], out.dims[1]) = (2, 2, 1);
        (out.strides[0], out.strides[1]) = (1, 1);
        let mut ids = ids.view();
        ids.dims[0] = 2;
        let operands = [Some(ids), Some(table.view()), Some(out)];
        let args = Args { operands: &operands, params: &[] };
        (ops::kernel(Op::Embedding).check)(&args).unwrap();
        let error = run_views(level, &pool, Op::Embedding, &args).unwrap_err();
        assert_eq!(error.code, Code::BadValue);
    }
}
