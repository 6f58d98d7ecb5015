//! The conformance of the emulated CUDA kernels can fail: with a fault in a kernel's source, or in the epilogue, it does.
mod common;

use common::{Level, Rng, Tensor, conform, conform_with, cuda_library, levels, run};
use denoise::pool::Pool;
use denoise::schema::{Activation, DType, Op};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A source, the object that the build makes of it, what stands in the source, and the fault.
const FAULTS: [(&str, &str, &str, &str); 13] = [
    ("ops/norm.cu", "layer norm without its shift", "if (shift->data)", "if (false)"),
    ("ops/linear.cu", "an epilogue that adds the gate", "y *= gate;", "y += gate;"),
    (
        "ops/linear.cu",
        "a tile that is multiplied before it is there",
        "        __syncthreads();\n        // Multiply.",
        "        // Multiply.",
    ),
    ("ops/linear.cu", "results beyond the last column", "if (column < n) finish<T>", "finish<T>"),
    (
        "ops/attention.cu",
        "sums that keep what they were relative to",
        "sums[m][n][i] *= shrink[i / 2];",
        "sums[m][n][i] *= 1.0f;",
    ),
    (
        "ops/attention.cu",
        "keys that are read before they are there",
        "copy_wait<0>();\n        __syncthreads();\n        v.template",
        "__syncthreads();\n        v.template",
    ),
    (
        "ops/attention.cu",
        "keys whose place is taken before they are read",
        "barrier_wait(&barriers.k_empty[stage], round(tile) ^ 1);",
        "",
    ),
    (
        "ops/attention.cu",
        "scores that are read before they are there",
        "wgmma_wait<1>(scores)",
        "wgmma_wait<2>(scores)",
    ),
    ("ops/linear.cu", "a slab that is not waited for", "wait_for_all_but(stages - 2);", ";"),
    (
        "ops/linear.cu",
        "a slab that other threads may not have copied yet",
        "nobody reads the stage before it any more.\n        __syncthreads();",
        "nobody reads the stage before it any more.",
    ),
    (
        "ops/linear.cu",
        "a slab that reads on beyond K",
        "rows[row] && from < uint64_t(k)",
        "rows[row] && from <= uint64_t(k)",
    ),
    ("ops/linear.cu", "a fragment of other rows", "across + j * 16 + lane % 16,", "across + j * 16 + lane % 8,"),
    ("ops/softmax.cu", "a warp that loses a lane", "for (int mask = 16;", "for (int mask = 8;"),
];

/// What a fault is to be seen by: run in a process of its own, over the library that the environment names.
#[test]
#[ignore = "run by faults_are_seen"]
fn conformance() {
    let mut rng = Rng(1);
    let x = Tensor::padded(DType::F32, &[3, 70], 2).random(&mut rng, 2.0);
    let row = Tensor::with_strides(DType::F32, &[3, 70], &[0, 1]).random(&mut rng, 1.0);
    let inputs = [Some(x.clone()), None, None, Some(row.clone()), Some(row)];
    conform("faults", Op::LayerNorm, &inputs, &Tensor::padded(DType::F32, &[3, 70], 1), &[1e-6f32.to_bits(), 0]);
    conform("faults", Op::Softmax, &[Some(x.clone())], &Tensor::empty(DType::F32, &[3, 70]), &[]);
    let mut heads = |tokens| Some(Tensor::empty(DType::BF16, &[1, 2, tokens, 40]).random(&mut rng, 2.0));
    let inputs = [heads(70), heads(300), heads(300), None];
    let out = Tensor::empty(DType::BF16, &[1, 2, 70, 40]);
    for way in 0..2 {
        conform("faults", Op::Attention, &inputs, &out, &[0.2f32.to_bits(), 0, way]);
    }
    let weight = Tensor::empty(DType::F32, &[90, 70]).random(&mut rng, 1.0);
    let gate = Tensor::empty(DType::F32, &[90]).random(&mut rng, 1.0);
    let prepare = |level: Level, pool: &Pool| {
        let mut packed = Tensor::empty(DType::U8, &[128 * 72 * 4]);
        run(level, pool, Op::PackLinear, &mut [Some(weight.clone())], &mut packed, &[DType::F32 as u32]);
        vec![Some(x.clone()), Some(packed), None, Some(gate.clone()), None]
    };
    let params = [90, 70, Activation::Silu as u32, 0];
    conform_with("faults", Op::Linear, prepare, &Tensor::padded(DType::F32, &[3, 90], 3), &params);
    // On tensor cores.
    let x = Tensor::padded(DType::BF16, &[40, 200], 8).random(&mut rng, 1.0);
    let weight = Tensor::empty(DType::BF16, &[90, 200]).random(&mut rng, 1.0);
    let prepare = |level: Level, pool: &Pool| {
        let mut packed = Tensor::empty(DType::U8, &[128 * 200 * 2]);
        run(level, pool, Op::PackLinear, &mut [Some(weight.clone())], &mut packed, &[DType::BF16 as u32]);
        vec![Some(x.clone()), Some(packed), None, None, None]
    };
    conform_with("faults", Op::Linear, prepare, &Tensor::padded(DType::BF16, &[40, 90], 3), &[90, 200, 0, 0]);
}

/// The words of a command that the build wrote down, one a line; `None` where there is no build.
fn command(build: &Path, name: &str) -> Option<Vec<String>> {
    Some(std::fs::read_to_string(build.join(name)).ok()?.lines().map(String::from).collect())
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let (path, name) = (entry.path(), entry.file_name());
        match path.is_dir() {
            true if name == "build" => {}
            true => copy_folder(&path, &to.join(name)),
            false => drop(std::fs::copy(&path, to.join(name)).unwrap()),
        }
    }
}

/// Whether conformance passes over a library; what it says if not.
fn conforms(library: &Path) -> Result<(), String> {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "conformance"])
        .env("DENOISE_CUDA_LIBRARY", library)
        .env("DENOISE_TEST_LEVELS", "cuda-emulated")
        .output()
        .unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if output.status.success() { Ok(()) } else { Err(said) }
}

/// Builds the library of a copy of the sources in which one object is made anew.
fn rebuilt(folder: &Path, build: &Path, source: &str) -> PathBuf {
    let (compile, link) = (command(build, "compile").unwrap(), command(build, "link").unwrap());
    let (object, library) = (folder.join("fault.o"), folder.join("libfault.so"));
    let made = Command::new(&compile[0])
        .args(&compile[1..])
        .args(["-O0", "-c", source, "-o"])
        .arg(&object)
        .current_dir(folder)
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let replaced = format!("{}.o", source.replace('/', "_"));
    let others = std::fs::read_dir(build).unwrap().map(|entry| entry.unwrap().path());
    let others = others.filter(|path| path.extension().is_some_and(|e| e == "o") && !path.ends_with(&replaced));
    let made =
        Command::new(&link[0]).args(&link[1..]).arg("-o").arg(&library).arg(&object).args(others).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    library
}

#[test]
fn faults_are_seen() {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("cuda");
    let build = cuda_library().parent().unwrap().to_path_buf();
    if !levels().contains(&Level::CudaEmulated) || command(&build, "compile").is_none() {
        eprintln!("skipped: the emulated CUDA library is not built: run `deno task build:cuda-emulated`");
        return;
    }
    conforms(&cuda_library()).unwrap_or_else(|said| panic!("without a fault: {said}"));
    for (source, what, right, wrong) in FAULTS {
        let folder = std::env::temp_dir().join(format!("denoise-fault-{}", std::process::id()));
        copy_folder(&sources, &folder);
        // The fault is in the source, or in a header that it includes.
        let headers = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).filter(|p| p.is_file());
        let mut found = 0;
        for file in headers.chain([folder.join(source)]) {
            let text = std::fs::read_to_string(&file).unwrap();
            found += text.matches(right).count();
            std::fs::write(&file, text.replacen(right, wrong, 1)).unwrap();
        }
        assert_eq!(found, 1, "{what}: `{right}` stands once in {source} and the headers");
        let seen = conforms(&rebuilt(&folder, &build, source));
        std::fs::remove_dir_all(&folder).unwrap();
        let said = seen.expect_err(what);
        assert!(said.contains("panicked"), "{what}: {said}");
    }
}
