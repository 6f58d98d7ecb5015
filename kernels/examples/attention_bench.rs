//! GFLOP/s of attention, beside the machine's peak of multiply-adds, measured in the same run:
//! `cargo run --release --example attention_bench [THREADS [LEVEL]]`.

use denoise::dispatch;
use denoise::level::Level;
use denoise::ops::{self, Args, Cx};
use denoise::pool::Pool;
use denoise::schema::{DType, Op};
use denoise::simd::Simd;
use denoise::view::{MAX_RANK, View};
use std::time::Instant;

/// Multiply-adds in registers alone; gives the operations done.
#[inline(always)]
unsafe fn spin_on<S: Simd>(rounds: usize, dot: bool) -> f64 {
    unsafe {
        let mut sums = [S::splat(0.0); 12];
        let (a, b) = (S::splat(std::hint::black_box(1.0)), S::splat(rounds as f32 * 1e-30));
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = if dot { S::dot_bf16(*sum, a, b) } else { S::fma(a, *sum, b) };
            }
        }
        let total = sums.iter().fold(0.0, |t, &s| t + S::sum(s));
        std::hint::black_box(total);
        (rounds * sums.len() * S::LANES * if dot { 4 } else { 2 }) as f64
    }
}
dispatch!(fn spin(rounds: usize, dot: bool) -> f64 => spin_on);

/// Seconds of the fastest of some runs.
fn fastest(runs: usize, mut f: impl FnMut()) -> f64 {
    let mut time = || {
        let start = Instant::now();
        f();
        start.elapsed().as_secs_f64()
    };
    (0..runs).map(|_| time()).fold(f64::INFINITY, f64::min)
}

fn peak(cx: &Cx, dot: bool) -> f64 {
    let rounds = 400_000;
    let operations = unsafe { spin(cx.level, rounds, dot) } * cx.pool.threads() as f64;
    let seconds = fastest(8, || {
        cx.pool
            .run(cx.pool.threads(), &|_, _| {
                unsafe { spin(cx.level, rounds, dot) };
            })
            .unwrap()
    });
    operations / seconds / 1e9
}

/// (heads, queries, keys, D), views of (S, H, D).
type Shape = (usize, usize, usize, usize);

fn measure(cx: &Cx, shape: Shape, dtype: DType, biased: bool) -> (f64, f64) {
    let (h, sq, sk, d) = shape;
    let memory = |elements: usize, dtype: DType| {
        let mut memory = vec![0u32; (elements * dtype.size()).div_ceil(4) + 16];
        let view = View::contiguous(memory.as_mut_ptr() as *mut u8, dtype, &[elements]);
        for i in 0..elements {
            unsafe { view.set(i, ((i * 7919) % 1000) as f32 / 500.0 - 1.0) };
        }
        memory
    };
    let (mut q, mut k, mut v) = (memory(h * sq * d, dtype), memory(h * sk * d, dtype), memory(h * sk * d, dtype));
    let (mut bias, mut out) = (memory(h * sq * sk, DType::F32), memory(h * sq * d, dtype));
    let view = |m: &mut Vec<u32>, s: usize| {
        let mut view = View::contiguous(m.as_mut_ptr() as *mut u8, dtype, &[1, h, s, d]);
        view.strides = [0; MAX_RANK];
        view.strides[..4].copy_from_slice(&[s * h * d, d, h * d, 1]);
        Some(view)
    };
    let bias = biased.then(|| View::contiguous(bias.as_mut_ptr() as *mut u8, DType::F32, &[1, h, sq, sk]));
    let operands = [view(&mut q, sq), view(&mut k, sk), view(&mut v, sk), bias, view(&mut out, sq)];
    let params = [(1.0 / (d as f32).sqrt()).to_bits(), 0, 0];
    let args = Args { operands: &operands, params: &params };
    (ops::kernel(Op::Attention).check)(&args).unwrap();
    let operations = 4.0 * (h * sq * sk * d) as f64;
    let runs = (3e10 / operations).clamp(5.0, 500.0) as usize;
    let seconds = fastest(runs, || ops::run(Op::Attention, cx, &args).unwrap());
    (seconds, operations / seconds / 1e9)
}

fn main() {
    let mut args = std::env::args().skip(1);
    let threads = args.next().and_then(|t| t.parse().ok()).unwrap_or(2);
    let level = Level::named(&args.next().unwrap_or_default()).unwrap();
    let pool = Pool::new(threads).unwrap();
    let cx = Cx { level, pool: &pool };
    let fma = peak(&cx, false);
    println!("{} with {threads} threads: {fma:.0} GFLOP/s of multiply-adds in registers", level.name());
    if level == Level::Avx512Bf16 {
        println!("{:.0} GFLOP/s of bf16 dot products in registers", peak(&cx, true));
    }
    let shapes = [
        (24, 1024, 1024, 128),
        (24, 1536, 1536, 128),
        (64, 512, 512, 64),
        (4, 96, 96, 64),
        (4, 320, 320, 64),
        (4, 640, 640, 64),
        (12, 77, 77, 64),
        (4, 128, 128, 32),
        (1, 1024, 1024, 64),
        (1, 1024, 1024, 512),
    ];
    for shape in shapes {
        for (dtype, biased) in [(DType::F32, false), (DType::F32, true), (DType::BF16, false), (DType::F16, false)] {
            let (seconds, speed) = measure(&cx, shape, dtype, biased);
            println!(
                "{shape:?} {dtype:?}{}: {:.3} ms, {speed:.0} GFLOP/s, {:.0}% of the peak",
                if biased { " biased" } else { "" },
                seconds * 1e3,
                speed / fma * 100.0
            );
        }
    }
}
