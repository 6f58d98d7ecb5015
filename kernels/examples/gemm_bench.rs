//! Times `linear` at Flux.1-dev's shapes and at those of small models: GFLOP/s, GB/s of packed weight for one row, and
//! the share of the machine's multiply-add peak, measured in the same run.
//!
//!     cargo run --release --example gemm_bench [-- threads dtype level M,N,K ...]

use denoise::level::Level;
use denoise::ops::{self, Args, Cx};
use denoise::pool::Pool;
use denoise::schema::{DType, Op};
use denoise::simd::Simd;
use denoise::view::View;
use std::time::Instant;

const SHAPES: &[(usize, usize, usize)] = &[
    (1, 3072, 3072),
    (64, 3072, 3072),
    (512, 3072, 3072),
    (1, 12288, 3072),
    (64, 12288, 3072),
    (512, 12288, 3072),
    (1, 3072, 12288),
    (64, 3072, 12288),
    (512, 3072, 12288),
    (1, 3072, 15360),
    (64, 3072, 15360),
    (512, 3072, 15360),
    (1, 1536, 256),
    (1, 256, 256),
    (32, 256, 256),
    (64, 256, 256),
    (64, 1024, 256),
    (64, 256, 1024),
    (96, 256, 256),
    (96, 768, 256),
    (96, 1024, 256),
    (96, 1792, 256),
    (96, 256, 1280),
    (288, 256, 256),
    (288, 1024, 256),
    (288, 256, 1280),
    (600, 2048, 512),
];

/// Multiplies and adds in registers alone.
#[inline(always)]
unsafe fn burn_on<S: Simd>(rounds: usize) -> f32 {
    unsafe {
        let (x, y) = (S::splat(std::hint::black_box(0.5)), S::splat(std::hint::black_box(0.25)));
        let mut acc = [y; 12];
        for _ in 0..rounds {
            for a in &mut acc {
                *a = S::fma(*a, x, y);
            }
        }
        acc.iter().map(|&a| S::sum(a)).sum()
    }
}
denoise::dispatch!(fn burn(rounds: usize) -> f32 => burn_on);

#[inline(always)]
unsafe fn burn_dot_on<S: Simd>(rounds: usize) -> f32 {
    unsafe {
        let (x, y) = (S::splat(std::hint::black_box(0.0)), S::splat(std::hint::black_box(0.0)));
        let mut acc = [y; 12];
        for _ in 0..rounds {
            for a in &mut acc {
                *a = S::dot_bf16(*a, x, y);
            }
        }
        acc.iter().map(|&a| S::sum(a)).sum()
    }
}
denoise::dispatch!(fn burn_dot(rounds: usize) -> f32 => burn_dot_on);

/// The best GFLOP/s that all threads reach with nothing but multiply-adds.
fn peak(pool: &Pool, level: Level, dot: bool) -> f64 {
    let lanes = if level >= Level::Avx512 { 16 } else { 8 };
    let rounds = 40_000;
    let mut best = f64::MAX;
    for _ in 0..2000 {
        let start = now(pool.threads());
        pool.run(pool.threads(), &|_, _| {
            std::hint::black_box(unsafe { if dot { burn_dot(level, rounds) } else { burn(level, rounds) } });
        })
        .unwrap();
        best = best.min(now(pool.threads()) - start);
    }
    let each = if dot { 4 } else { 2 };
    (each * 12 * lanes * rounds * pool.threads()) as f64 / best / 1e9
}

/// Seconds: with one thread those that it ran, whatever else the machine did; with more those that passed.
fn now(threads: usize) -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    let clock = if threads == 1 { libc::CLOCK_THREAD_CPUTIME_ID } else { libc::CLOCK_MONOTONIC };
    unsafe { libc::clock_gettime(clock, &mut time) };
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

fn main() {
    let mut args = std::env::args().skip(1);
    let threads: usize = args.next().map_or(2, |a| a.parse().unwrap());
    let dtype = match args.next().as_deref() {
        Some("bf16") => DType::BF16,
        Some("f16") => DType::F16,
        _ => DType::F32,
    };
    let level = Level::named(&args.next().unwrap_or_default()).unwrap();
    let given: Vec<(usize, usize, usize)> = args
        .map(|a| {
            let sizes: Vec<usize> = a.split(',').map(|s| s.parse().unwrap()).collect();
            (sizes[0], sizes[1], sizes[2])
        })
        .collect();
    let shapes = if given.is_empty() { SHAPES } else { &given[..] };
    let pool = Pool::new(threads).unwrap();
    let dot = dtype == DType::BF16 && level == Level::Avx512Bf16;
    let top = peak(&pool, level, dot);
    println!("{} {dtype:?} {threads} threads: multiply-add peak {top:.0} GFLOP/s", level.name());
    for &(m, n, k) in shapes {
        let size = dtype.size();
        let buffer = |bytes: usize| {
            let mut v = vec![0u64; bytes / 8 + 16];
            let ptr = v.as_mut_ptr() as *mut u8;
            let aligned = ptr.wrapping_add(ptr.align_offset(64));
            (v, aligned)
        };
        let (_x, x) = buffer(m * k * size);
        let (_w, w) = buffer(n * k * size);
        let bytes = n.next_multiple_of(64) * k.next_multiple_of(4) * size;
        let (_p, p) = buffer(bytes);
        let (_b, b) = buffer(n * 4);
        let (_o, o) = buffer(m * n * size);
        let x = View::contiguous(x, dtype, &[m, k]);
        let w = View::contiguous(w, dtype, &[n, k]);
        for (view, scale) in [(x, 1.0), (w, 0.05)] {
            for i in 0..view.len() {
                unsafe { view.set(i, ((i * 2_654_435_761) % 1000) as f32 / 500.0 * scale - scale) };
            }
        }
        let p = View::contiguous(p, DType::U8, &[bytes]);
        let bias = View::contiguous(b, DType::F32, &[n]);
        let out = View::contiguous(o, dtype, &[m, n]);
        let cx = Cx { level, pool: &pool };
        let start = now(threads);
        ops::run(Op::PackLinear, &cx, &Args { operands: &[Some(w), Some(p)], params: &[dtype as u32] }).unwrap();
        let packing = now(threads) - start;
        let operands = [Some(x), Some(p), Some(bias), None, None, Some(out)];
        let args = Args { operands: &operands, params: &[n as u32, k as u32, 0] };
        let flops = 2.0 * (m * n * k) as f64;
        // The least of many calls: what other processes take from the machine does not count.
        let mut best = f64::MAX;
        let began = Instant::now();
        let mut rounds = 0;
        while rounds < 5 || (began.elapsed().as_secs_f64() < 0.5 && rounds < 20_000) {
            let start = now(threads);
            ops::run(Op::Linear, &cx, &args).unwrap();
            best = best.min(now(threads) - start);
            rounds += 1;
        }
        println!(
            "M {m:4} N {n:5} K {k:5}: {:10.1} us {:7.1} GFLOP/s {:5.1} % {:6.1} GB/s; packed at {:.1} GB/s",
            best * 1e6,
            flops / best / 1e9,
            flops / best / 1e7 / top,
            bytes as f64 / best / 1e9,
            bytes as f64 / packing / 1e9
        );
    }
}
