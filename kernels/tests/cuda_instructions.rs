//! The emulated instructions of tensor cores and asynchronous copies hold to the PTX ISA.
mod common;

use common::cuda_library;
use std::path::Path;
use std::process::Command;

#[test]
fn emulated_instructions_are_the_isa_s() {
    let build = cuda_library().parent().unwrap().to_path_buf();
    let runtime = build.join("emulated_runtime.cpp.o");
    let Ok(compile) = std::fs::read_to_string(build.join("compile")) else {
        eprintln!("skipped: the emulated CUDA library is not built: run `deno task build:cuda-emulated`");
        return;
    };
    let compile: Vec<&str> = compile.lines().collect();
    let folder = std::env::temp_dir().join(format!("denoise-instructions-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let (object, program) = (folder.join("test.o"), folder.join("test"));
    let run = |command: &mut Command| {
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("cuda");
    run(Command::new(compile[0])
        .args(&compile[1..])
        .args(["-c", "emulated/mma_test.cpp", "-o"])
        .arg(&object)
        .current_dir(sources));
    let sanitizers = compile.iter().filter(|word| word.starts_with("-fsanitize"));
    run(Command::new(compile[0]).args(sanitizers).arg("-o").arg(&program).arg(&object).arg(&runtime));
    run(&mut Command::new(&program));
    std::fs::remove_dir_all(&folder).unwrap();
}
