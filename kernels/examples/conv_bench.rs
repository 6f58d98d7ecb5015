//! GFLOP/s of convolutions, beside the machine's peak of multiply-adds, measured in the same run:
//! `cargo run --release --example conv_bench [THREADS [LEVEL]]`.

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

/// (height, width, channels, filters, kernel, stride, upsample)
type Shape = (usize, usize, usize, usize, usize, usize, usize);

fn measure(cx: &Cx, shape: Shape, dtype: DType, runs: usize) -> (f64, f64) {
    let (h, w, c, o, k, stride, upsample) = shape;
    let (ho, wo) = (h * upsample / stride, w * upsample / stride);
    let size = dtype.size();
    let memory = |elements: usize| {
        let mut memory = vec![0u32; (elements * size).div_ceil(4) + 16];
        let view = View::contiguous(memory.as_mut_ptr() as *mut u8, dtype, &[elements]);
        for i in 0..elements {
            unsafe { view.set(i, ((i * 7919) % 1000) as f32 / 1000.0 - 0.5) };
        }
        memory
    };
    let ptr = |m: &mut Vec<u32>| m.as_mut_ptr() as *mut u8;
    let (mut x, mut weight, mut out) = (memory(h * w * c), memory(o * c * k * k), memory(ho * wo * o));
    let bytes = o.next_multiple_of(64) * c.next_multiple_of(4) * k * k * size;
    let mut packed = vec![0u32; bytes / 4];
    let mut bias = vec![0u32; o];
    let operands = [
        Some(View::contiguous(ptr(&mut weight), dtype, &[o, c, k, k])),
        Some(View::contiguous(ptr(&mut packed), DType::U8, &[bytes])),
    ];
    ops::run(Op::PackConv2d, cx, &Args { operands: &operands, params: &[dtype as u32] }).unwrap();
    let operands = [
        Some(View::contiguous(ptr(&mut x), dtype, &[1, h, w, c])),
        Some(View::contiguous(ptr(&mut packed), DType::U8, &[bytes])),
        Some(View::contiguous(ptr(&mut bias), DType::F32, &[o])),
        None,
        Some(View::contiguous(ptr(&mut out), dtype, &[1, ho, wo, o])),
    ];
    let pad = (k as u32 - 1) / 2;
    let params = [k as u32, k as u32, stride as u32, pad, pad, upsample as u32, 0];
    let args = Args { operands: &operands, params: &params };
    (ops::kernel(Op::Conv2d).check)(&args).unwrap();
    let once = fastest(2, || ops::run(Op::Conv2d, cx, &args).unwrap());
    let inner = (0.01 / once).ceil() as usize;
    let seconds = fastest(runs, || (0..inner).for_each(|_| ops::run(Op::Conv2d, cx, &args).unwrap())) / inner as f64;
    (seconds, (2 * ho * wo * o * c * k * k) as f64 / seconds / 1e9)
}

const SHAPES: [Shape; 20] = [
    (64, 64, 512, 512, 3, 1, 1),
    (128, 128, 256, 256, 3, 1, 1),
    (256, 256, 128, 128, 3, 1, 1),
    (64, 64, 512, 512, 3, 1, 2),
    (128, 128, 256, 256, 3, 2, 1),
    (128, 128, 512, 256, 1, 1, 1),
    (64, 64, 16, 512, 3, 1, 1),
    (256, 256, 3, 128, 3, 1, 1),
    (256, 256, 128, 3, 3, 1, 1),
    // The default checkpoint's decoder at 128 by 128.
    (16, 16, 16, 64, 3, 1, 1),
    (16, 16, 64, 64, 3, 1, 1),
    (16, 16, 64, 64, 3, 1, 2),
    (32, 32, 64, 64, 3, 1, 2),
    (64, 64, 64, 32, 3, 1, 1),
    (64, 64, 64, 32, 1, 1, 1),
    (64, 64, 32, 32, 3, 1, 1),
    (64, 64, 32, 32, 3, 1, 2),
    (128, 128, 32, 16, 3, 1, 1),
    (128, 128, 16, 16, 3, 1, 1),
    (128, 128, 16, 3, 3, 1, 1),
];

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let threads = args.get(1).map_or(2, |n| n.parse().unwrap());
    let level = Level::named(args.get(2).map_or("", |name| name)).unwrap();
    let pool = Pool::new(threads).unwrap();
    let cx = Cx { level, pool: &pool };
    let peak = peak(&cx);
    println!("{} on {threads} threads, peak {peak:.0} GFLOP/s in f32", level.name());
    println!("{:>28} {:>6} {:>10} {:>9} {:>6}", "H W C O k stride upsample", "dtype", "us", "GFLOP/s", "peak");
    for shape in SHAPES {
        for dtype in [DType::F32, DType::BF16, DType::F16] {
            let (seconds, rate) = measure(&cx, shape, dtype, 10);
            let text = format!("{shape:?}").replace(['(', ')', ','], "");
            println!("{text:>28} {:>6} {:>10.1} {rate:>9.1} {:>6.2}", format!("{dtype:?}"), seconds * 1e6, rate / peak);
        }
    }
}
