//! GFLOP/s of linear layers, beside the machine's peak of multiply-adds, measured in the same run:
//! `cargo run --release --example gemm_bench [THREADS [LEVEL]]`.

use denoise::dispatch;
use denoise::level::Level;
use denoise::ops::{self, Args, Cx};
use denoise::pool::Pool;
use denoise::schema::{DType, Op};
use denoise::simd::Simd;
use denoise::view::View;
use std::time::Instant;

/// Multiply-adds in registers alone; gives the operations done.
#[inline(always)]
unsafe fn spin_on<S: Simd>(rounds: usize) -> f64 {
    unsafe {
        let mut sums = [S::splat(0.0); 12];
        let (a, b) = (S::splat(1.0), S::splat(rounds as f32 * 1e-30));
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = S::fma(a, *sum, b);
            }
        }
        let total = sums.iter().fold(0.0, |t, &s| t + S::sum(s));
        std::hint::black_box(total);
        (rounds * sums.len() * S::LANES * 2) as f64
    }
}
dispatch!(fn spin(rounds: usize) -> f64 => spin_on);

/// Seconds of the fastest of some runs.
fn fastest(runs: usize, mut f: impl FnMut()) -> f64 {
    let time = |f: &mut dyn FnMut()| {
        let start = Instant::now();
        f();
        start.elapsed().as_secs_f64()
    };
    (0..runs).map(|_| time(&mut f)).fold(f64::INFINITY, f64::min)
}

fn peak(cx: &Cx) -> f64 {
    let rounds = 1_000_000;
    let lanes = if cx.level >= Level::Avx512 { 16.0 } else { 8.0 };
    let seconds = fastest(5, || {
        cx.pool
            .run(cx.pool.threads(), &|_, _| {
                unsafe { spin(cx.level, rounds) };
            })
            .unwrap()
    });
    rounds as f64 * 12.0 * lanes * 2.0 * cx.pool.threads() as f64 / seconds / 1e9
}

/// Seconds of a linear layer of a shape.
fn measure(cx: &Cx, (m, k, n): (usize, usize, usize), dtype: DType) -> f64 {
    let zeroed = |bytes: usize| vec![0u64; bytes.div_ceil(8) + 8];
    let size = dtype.size();
    let (mut x, mut weight, mut out) = (zeroed(m * k * size), zeroed(n * k * size), zeroed(m * n * size));
    let bytes = n.next_multiple_of(64) * k.next_multiple_of(4) * size;
    let mut packed = zeroed(bytes + 64);
    let packed_ptr = packed.as_mut_ptr() as *mut u8;
    let packed_ptr = packed_ptr.wrapping_add(packed_ptr.align_offset(64));
    let view =
        |memory: &mut Vec<u64>, shape: &[usize]| Some(View::contiguous(memory.as_mut_ptr() as *mut u8, dtype, shape));
    let packed = Some(View::contiguous(packed_ptr, DType::U8, &[bytes]));
    let operands = [view(&mut weight, &[n, k]), packed];
    ops::run(Op::PackLinear, cx, &Args { operands: &operands, params: &[dtype as u32] }).unwrap();
    let operands = [view(&mut x, &[m, k]), packed, None, None, None, view(&mut out, &[m, n])];
    let args = Args { operands: &operands, params: &[n as u32, k as u32, 0] };
    let runs = ((2e10 / (m * n * k) as f64) as usize).clamp(5, 400);
    fastest(runs, || ops::run(Op::Linear, cx, &args).unwrap())
}

fn main() {
    let mut args = std::env::args().skip(1);
    let threads = args.next().map_or(2, |a| a.parse().unwrap());
    let level = args.next().map_or(Level::best(), |a| Level::named(&a).unwrap());
    let pool = Pool::new(threads).unwrap();
    let cx = Cx { level, pool: &pool };
    let peak = peak(&cx);
    println!("{} with {threads} threads: {peak:.0} GFLOP/s of multiply-adds", level.name());
    let large = [(3072, 3072), (3072, 12288), (12288, 3072), (15360, 3072)];
    let mut shapes: Vec<_> = [1, 64, 512].iter().flat_map(|&m| large.map(|(k, n)| (m, k, n))).collect();
    for (k, n) in [(256, 256), (256, 768), (256, 1024), (1024, 256), (1280, 256)] {
        shapes.extend([32, 64, 96].map(|m| (m, k, n)));
    }
    shapes.push((20, 256, 8192));
    for dtype in [DType::F32, DType::BF16] {
        for (m, k, n) in shapes.iter().copied() {
            let seconds = measure(&cx, (m, k, n), dtype);
            let rate = 2.0 * (m * n * k) as f64 / seconds / 1e9;
            let bandwidth = (n * k * dtype.size()) as f64 / seconds / 1e9;
            println!(
                "{dtype:?} {m:4} x {k:5} x {n:5}: {:9.1} us {rate:7.1} GFLOP/s ({:3.0}% of peak), weights at {bandwidth:5.1} GB/s",
                seconds * 1e6,
                100.0 * rate / peak
            );
        }
    }
}
