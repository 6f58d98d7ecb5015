//! cuBLASLt as a way of the CUDA library's layers, where it stands for the real one what does by its definition what
//! denoise asks of it: how it is opened, which matrix is which, and what follows the sums.
mod common;

use common::{Level, Rng, Tensor, conform_with, cuda_ways, levels, run};
use denoise::pool::Pool;
use denoise::quant::{Weight, rows_bytes, rows_scale};
use denoise::schema::{Activation, DType, Format, Op, Rows};
use std::path::Path;
use std::process::Command;

/// Runs a layer by all of its ways, of which these are cuBLASLt's; `params` ends with the variant.
fn check(
    what: &str,
    op: Op,
    prepare: impl Fn(Level, &Pool) -> Vec<Option<Tensor>>,
    out: &Tensor,
    params: &[u32],
    offered: &[&str],
) {
    let pool = Pool::new(1).unwrap();
    let names = cuda_ways(op, &prepare(Level::CudaEmulated, &pool), out, params);
    let own = names.iter().filter(|name| name.starts_with("cuBLASLt")).collect::<Vec<_>>();
    assert_eq!(own, offered, "{what}: {names:?}");
    for (variant, name) in names.iter().enumerate() {
        let mut params = params.to_vec();
        *params.last_mut().unwrap() = variant as u32;
        conform_with(&format!("{what} by {name}"), op, &prepare, out, &params);
    }
}

const WHOLE: [&str; 4] = ["cuBLASLt 1", "cuBLASLt 2", "cuBLASLt, epilogue apart 1", "cuBLASLt, epilogue apart 2"];
const APART: [&str; 2] = ["cuBLASLt, epilogue apart 1", "cuBLASLt, epilogue apart 2"];

/// Rows of codes, each with a scale, and a zero point where their kind has some.
fn rows(rng: &mut Rng, kind: Rows, m: usize, k: usize) -> Tensor {
    let mut all = vec![0u8; m * rows_bytes(k)];
    for row in all.chunks_exact_mut(rows_bytes(k)) {
        row[..k].fill_with(|| code(rng, kind == Rows::E4m3));
        row[rows_scale(k)..][..4].copy_from_slice(&((rng.uniform() + 1.5) * 0.01).to_ne_bytes());
        let zero = if kind == Rows::Int8Asym { rng.below(256) as i32 - 128 } else { 0 };
        row[rows_scale(k) + 4..][..4].copy_from_slice(&zero.to_ne_bytes());
    }
    Tensor::padded(DType::U8, &[m, rows_bytes(k)], 16).fill(|i| all[i] as f32)
}

/// A byte that is a number.
fn code(rng: &mut Rng, fp8: bool) -> u8 {
    let byte = rng.below(256) as u8;
    if fp8 && byte & 0x7f == 0x7f { 0 } else { byte }
}

fn quantized(rng: &mut Rng, kind: Rows, dtype: DType, act: Activation, offered: &[&str]) {
    let (m, n, k) = (7, 45, 48);
    let fp8 = kind == Rows::E4m3;
    let format = if fp8 { Format::E4m3 } else { Format::Int8 };
    let weight = Weight { format, ebits: 0, mbits: 0, group: k };
    let x = rows(rng, kind, m, k);
    let stored = if fp8 { DType::U8 } else { DType::I8 };
    let codes = Tensor::empty(stored, &[n, k])
        .fill(|_| if fp8 { code(rng, true) as f32 } else { code(rng, false) as i8 as f32 });
    let scale = Tensor::empty(DType::F32, &[n, 1]).fill(|_| (rng.uniform() + 1.5) * 0.01);
    let bias = Tensor::empty(DType::F32, &[n]).random(rng, 1.0);
    let common = [format as u32, 0, 0, k as u32];
    let prepare = |level: Level, pool: &Pool| {
        let mut packed = Tensor::empty(DType::U8, &[weight.packed_bytes(n, k, false).unwrap()]);
        let params = [&[n as u32, k as u32], &common[..], &[kind as u32, dtype as u32]].concat();
        let mut inputs = [Some(codes.clone()), Some(scale.clone()), None];
        run(level, pool, Op::PackQuantized, &mut inputs, &mut packed, &params);
        vec![Some(x.clone()), Some(packed), Some(bias.clone()), None, None]
    };
    let params = [&[n as u32, k as u32, act as u32], &common[..], &[0, kind as u32, 0]].concat();
    let out = Tensor::padded(dtype, &[m, n], 3);
    check(&format!("{kind:?} to {dtype:?}, {act:?}"), Op::QuantizedLinear, prepare, &out, &params, offered);
}

/// Run in a process of its own, whose environment names the library.
#[test]
#[ignore = "run by cublaslt_is_a_way"]
fn conformance() {
    let mut rng = Rng(3);
    let (m, n, k) = (7, 45, 34);
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        let weight = Tensor::empty(dtype, &[n, k]).random(&mut rng, 1.0);
        let x = Tensor::padded(dtype, &[m, k], 6).random(&mut rng, 1.0);
        let bias = Tensor::empty(DType::F32, &[n]).random(&mut rng, 1.0);
        let gate = Tensor::empty(dtype, &[n]).random(&mut rng, 1.0);
        let residual = Tensor::padded(dtype, &[m, n], 1).random(&mut rng, 1.0);
        let layer = |bias: Option<&Tensor>, act: Activation, gate: Option<&Tensor>, residual: Option<&Tensor>| {
            let offered: &[&str] = match act {
                Activation::None | Activation::GeluTanh if gate.is_none() && residual.is_none() => &WHOLE,
                _ => &APART,
            };
            let prepare = |level: Level, pool: &Pool| {
                let bytes = n.next_multiple_of(64) * k.next_multiple_of(4) * dtype.size();
                let mut packed = Tensor::empty(DType::U8, &[bytes]);
                run(level, pool, Op::PackLinear, &mut [Some(weight.clone())], &mut packed, &[dtype as u32]);
                vec![Some(x.clone()), Some(packed), bias.cloned(), gate.cloned(), residual.cloned()]
            };
            let what = format!("{dtype:?}, {act:?}");
            let params = [n as u32, k as u32, act as u32, 0];
            check(&what, Op::Linear, prepare, &Tensor::padded(dtype, &[m, n], 3), &params, offered);
        };
        layer(None, Activation::None, None, None);
        layer(Some(&bias), Activation::None, None, None);
        layer(None, Activation::GeluTanh, None, None);
        layer(Some(&bias), Activation::GeluTanh, None, None);
        layer(Some(&bias), Activation::Silu, None, None);
        layer(Some(&bias), Activation::None, Some(&gate), Some(&residual));
        for act in [Activation::None, Activation::GeluTanh] {
            quantized(&mut rng, Rows::E4m3, dtype, act, &WHOLE);
        }
        quantized(&mut rng, Rows::E4m3, dtype, Activation::Silu, &APART);
        quantized(&mut rng, Rows::Int8, dtype, Activation::None, &APART);
        quantized(&mut rng, Rows::Int8Asym, dtype, Activation::GeluTanh, &APART);
    }
}

#[test]
fn cublaslt_is_a_way() {
    if !levels().contains(&Level::CudaEmulated) {
        return;
    }
    let folder = std::env::temp_dir().join(format!("denoise-cublaslt-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let library = folder.join("libcublasLt.so");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cublaslt/fake.c");
    let compiler = std::env::var("CC").unwrap_or("cc".into());
    let flags = ["-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"];
    let made = Command::new(compiler).args(flags).arg("-o").arg(&library).arg(source).arg("-lm").output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "conformance"])
        .env("DENOISE_CUBLASLT", &library)
        .env("DENOISE_TEST_LEVELS", "cuda-emulated")
        .output()
        .unwrap();
    std::fs::remove_dir_all(&folder).unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}");
}
