//! GFLOP/s of convolutions, beside the machine's peak of multiply-adds, measured in the same run:
//! `cargo run --release --example conv_bench [THREADS [LEVEL [FIRST [COUNT]]]]`, of COUNT shapes from FIRST on.

use denoise::dispatch;
use denoise::level::Level;
use denoise::ops::{self, Args, Cx};
use denoise::pool::Pool;
use denoise::quant::quantized_conv_bytes;
use denoise::schema::{DType, Format, Op, Rows};
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

/// (frames, height, width, channels, filters, time, kernel, stride, upsample)
type Shape = (usize, usize, usize, usize, usize, usize, usize, usize, usize);

/// The type of x, and what the weight and x are quantized to.
type Form = (DType, Option<(Format, Rows)>);

const FORMS: [Form; 7] = [
    (DType::F32, None),
    (DType::BF16, None),
    (DType::F16, None),
    (DType::F32, Some((Format::Int8, Rows::None))),
    (DType::F32, Some((Format::E4m3, Rows::None))),
    (DType::F32, Some((Format::Int8, Rows::Int8))),
    (DType::BF16, Some((Format::Int8, Rows::Int8))),
];

fn measure(cx: &Cx, shape: Shape, (dtype, quantized): Form, runs: usize) -> (f64, f64) {
    let (t, h, w, c, o, time, k, stride, upsample) = shape;
    let taps = time * k * k;
    let (ho, wo) = (h * upsample / stride, w * upsample / stride);
    let memory = |dtype: DType, elements: usize| {
        let mut memory = vec![0u64; (elements * dtype.size()).div_ceil(8) + 8];
        let view = View::contiguous(memory.as_mut_ptr() as *mut u8, dtype, &[elements]);
        let span = if dtype.is_float() { 1.0 } else { 100.0 };
        for i in 0..elements {
            unsafe {
                view.set(i, span * (((i * 7919) % 1000) as f32 / 1000.0 - if dtype == DType::U8 { 0.0 } else { 0.5 }))
            };
        }
        memory
    };
    let view =
        |m: &mut Vec<u64>, dtype, shape: &[usize]| Some(View::contiguous(m.as_mut_ptr() as *mut u8, dtype, shape));
    let (mut x, mut out) = (memory(dtype, t * h * w * c), memory(dtype, t * ho * wo * o));
    let (mut bias, mut scale, mut amax) = (memory(DType::F32, o), memory(DType::F32, o), memory(DType::F32, 1));
    let stored = match quantized {
        None => dtype,
        Some((Format::Int8, _)) => DType::I8,
        Some(_) => DType::U8,
    };
    let mut weight = memory(stored, o * c * taps);
    let bytes = match quantized {
        None => o.next_multiple_of(64) * c.next_multiple_of(4) * taps * dtype.size(),
        Some(_) => quantized_conv_bytes(o, c, taps).unwrap(),
    };
    let mut packed = vec![0u64; bytes / 8];
    let [time, size] = [time, k].map(|size| size as u32);
    let (op, mut params) = match quantized {
        None => {
            let operands =
                [view(&mut weight, stored, &[o, c, taps / k / k, k, k]), view(&mut packed, DType::U8, &[bytes])];
            ops::run(Op::PackConv, cx, &Args { operands: &operands, params: &[dtype as u32] }).unwrap();
            (Op::Conv, vec![0])
        }
        Some((format, rows)) => {
            let operands = [
                view(&mut weight, stored, &[o, c * taps]),
                view(&mut scale, DType::F32, &[o, 1]),
                view(&mut packed, DType::U8, &[bytes]),
            ];
            let params = [c as u32, time, size, size, format as u32, rows as u32, dtype as u32];
            ops::run(Op::PackQuantizedConv, cx, &Args { operands: &operands, params: &params }).unwrap();
            (Op::QuantizedConv, vec![format as u32, rows as u32, 0])
        }
    };
    let mut operands = vec![
        view(&mut x, dtype, &[1, t, h, w, c]),
        view(&mut packed, DType::U8, &[bytes]),
        view(&mut bias, DType::F32, &[o]),
        None,
        None,
        view(&mut out, dtype, &[1, t, ho, wo, o]),
    ];
    if let Some((_, rows)) = quantized {
        operands.insert(5, view(&mut amax, DType::F32, &[1]).filter(|_| rows == Rows::Int8));
    }
    let pad = (size - 1) / 2;
    params.splice(0..0, [time, size, size, stride as u32, pad, pad, upsample as u32, 0]);
    let args = Args { operands: &operands, params: &params };
    (ops::kernel(op).check)(&args).unwrap();
    let once = fastest(2, || ops::run(op, cx, &args).unwrap());
    let inner = (0.01 / once).ceil() as usize;
    let seconds = fastest(runs, || (0..inner).for_each(|_| ops::run(op, cx, &args).unwrap())) / inner as f64;
    (seconds, (2 * t * ho * wo * o * c * taps) as f64 / seconds / 1e9)
}

const SHAPES: [Shape; 26] = [
    (1, 64, 64, 512, 512, 1, 3, 1, 1),
    (1, 128, 128, 256, 256, 1, 3, 1, 1),
    (1, 256, 256, 128, 128, 1, 3, 1, 1),
    (1, 64, 64, 512, 512, 1, 3, 1, 2),
    (1, 128, 128, 256, 256, 1, 3, 2, 1),
    (1, 128, 128, 512, 256, 1, 1, 1, 1),
    (1, 64, 64, 16, 512, 1, 3, 1, 1),
    (1, 256, 256, 3, 128, 1, 3, 1, 1),
    (1, 256, 256, 128, 3, 1, 3, 1, 1),
    // The default checkpoint's decoder at 128 by 128.
    (1, 16, 16, 16, 64, 1, 3, 1, 1),
    (1, 16, 16, 64, 64, 1, 3, 1, 1),
    (1, 16, 16, 64, 64, 1, 3, 1, 2),
    (1, 32, 32, 64, 64, 1, 3, 1, 2),
    (1, 64, 64, 64, 32, 1, 3, 1, 1),
    (1, 64, 64, 64, 32, 1, 1, 1, 1),
    (1, 64, 64, 32, 32, 1, 3, 1, 1),
    (1, 64, 64, 32, 32, 1, 3, 1, 2),
    (1, 128, 128, 32, 16, 1, 3, 1, 1),
    (1, 128, 128, 16, 16, 1, 3, 1, 1),
    (1, 128, 128, 16, 3, 1, 3, 1, 1),
    // CogVideoX's decoder at 480 by 720.
    (2, 60, 90, 512, 512, 3, 3, 1, 1),
    (4, 120, 180, 256, 256, 3, 3, 1, 1),
    (2, 240, 360, 256, 256, 3, 3, 1, 1),
    (2, 480, 720, 128, 128, 3, 3, 1, 1),
    (2, 60, 90, 16, 512, 3, 3, 1, 1),
    (2, 480, 720, 128, 3, 3, 3, 1, 1),
];

/// Runs that the fastest is of.
const RUNS: usize = 2;

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let threads = args.get(1).map_or(2, |n| n.parse().unwrap());
    let level = Level::named(args.get(2).map_or("", |name| name)).unwrap();
    let pool = Pool::new(threads).unwrap();
    let cx = Cx { level, pool: &pool };
    let first = args.get(3).map_or(0, |n| n.parse().unwrap());
    let count = args.get(4).map_or(SHAPES.len(), |n| n.parse().unwrap());
    let peak = peak(&cx);
    println!("{} on {threads} threads, peak {peak:.0} GFLOP/s in f32", level.name());
    println!(
        "{:>32} {:>16} {:>10} {:>9} {:>6}",
        "T H W C O kt k stride upsample", "x weight rows", "us", "GFLOP/s", "peak"
    );
    for shape in SHAPES.iter().skip(first).take(count) {
        for form in FORMS {
            let (seconds, rate) = measure(&cx, *shape, form, RUNS);
            let text = format!("{shape:?}").replace(['(', ')', ','], "");
            let form = form.1.map_or(format!("{:?}", form.0), |(f, r)| format!("{:?} {f:?} {r:?}", form.0));
            println!("{text:>32} {form:>16} {:>10.1} {rate:>9.1} {:>6.2}", seconds * 1e6, rate / peak);
        }
    }
}
