//! cuBLASLt as a way of the CUDA library's layers, where it stands for the real one what does by its definition what
//! denoise asks of it: how it is opened, which matrix is which, and what follows the sums.
mod common;

use common::{Level, Rng, Tensor, conform_with, cuda_library, levels, run};
use denoise::cuda::Cuda;
use denoise::pool::Pool;
use denoise::schema::{Activation, DType, Op};
use std::path::Path;
use std::process::Command;

/// The names of the ways to run a call.
fn ways(op: Op, inputs: &mut [Option<Tensor>], out: &mut Tensor, params: &[u32]) -> Vec<String> {
    let cuda = Cuda::open(&cuda_library(), 0).unwrap();
    let mut views: Vec<_> = inputs.iter_mut().map(|input| input.as_mut().map(Tensor::view)).collect();
    views.push(Some(out.view()));
    cuda.ways(op, &views, params).unwrap()
}

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
    let names = ways(op, &mut prepare(Level::CudaEmulated, &pool), &mut out.clone(), params);
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
