//! Times `quantized_linear` at Flux.1-dev's shapes, quantizing its input aside: GOP/s and their share of the machine's
//! peak of the same multiply-adds, GB/s of packed weight, and how much faster it is than `linear` in f32.
//!
//!     cargo run --release --example quantized_bench -- int8dq [M level threads variant N,K ...]
//!
//! The forms are int8dq, int4dq (groups of 32, asymmetric rows) and sparse (2:4, int8 rows). With M of 1 each call takes
//! another of weights that together are more than any cache holds.

use denoise::level::Level;
use denoise::ops::{self, Args, Cx};
use denoise::pool::Pool;
use denoise::quant::{Weight, rows_bytes};
use denoise::schema::{DType, Format, Op, Rows};
use denoise::simd::Simd;
use denoise::view::View;
use std::time::Instant;

const SHAPES: &[(usize, usize)] = &[(3072, 3072), (12288, 3072), (3072, 12288), (3072, 15360)];
/// Bytes of weights that no cache holds.
const BEYOND_CACHES: usize = 600 << 20;

#[inline(always)]
unsafe fn burn_on<S: Simd>(rounds: usize) -> f32 {
    unsafe {
        let x = S::splat(std::hint::black_box(1.0));
        let mut acc = [x; 16];
        for _ in 0..rounds {
            for a in &mut acc {
                // The product of the sum, or it would be computed once.
                *a = if S::VNNI { S::dot_u8_i8(*a, x, x) } else { S::dot_i16(*a, *a, x) };
            }
        }
        acc.iter().map(|&a| S::sum(a)).sum()
    }
}
denoise::dispatch!(fn burn(rounds: usize) -> f32 => burn_on);

/// The best GOP/s that all threads reach with nothing but multiply-adds of integers.
fn peak(pool: &Pool, level: Level) -> f64 {
    let products = match level {
        Level::Avx512Bf16 => 64,
        Level::Avx512 => 32,
        _ => 16,
    };
    let rounds = 40_000;
    let mut best = f64::MAX;
    for _ in 0..300 {
        let start = now(pool.threads());
        pool.run(pool.threads(), &|_, _| {
            std::hint::black_box(unsafe { burn(level, rounds) });
        })
        .unwrap();
        best = best.min(now(pool.threads()) - start);
    }
    (2 * 16 * products * rounds * pool.threads()) as f64 / best / 1e9
}

/// Seconds: with one thread those that it ran, whatever else the machine did; with more those that passed.
fn now(threads: usize) -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    let clock = if threads == 1 { libc::CLOCK_THREAD_CPUTIME_ID } else { libc::CLOCK_MONOTONIC };
    unsafe { libc::clock_gettime(clock, &mut time) };
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

/// Memory for a view, and the view, aligned as buffers are.
fn tensor(dtype: DType, shape: &[usize]) -> (Vec<u64>, View) {
    let mut memory = vec![0u64; shape.iter().product::<usize>() * dtype.size() / 8 + 16];
    let ptr = memory.as_mut_ptr() as *mut u8;
    let view = View::contiguous(ptr.wrapping_add(ptr.align_offset(64)), dtype, shape);
    (memory, view)
}

/// The least seconds of many calls, each with the next of some operands.
fn least(threads: usize, cx: &Cx, op: Op, operands: &[Vec<Option<View>>], params: &[u32]) -> f64 {
    let mut best = f64::MAX;
    let (began, mut round) = (Instant::now(), 0);
    while round < 5 || (began.elapsed().as_secs_f64() < 0.6 && round < 20_000) {
        let args = Args { operands: &operands[round % operands.len()], params };
        let start = now(threads);
        ops::run(op, cx, &args).unwrap();
        best = best.min(now(threads) - start);
        round += 1;
    }
    best
}

fn main() {
    let mut args = std::env::args().skip(1);
    let form = args.next().unwrap_or("int8dq".into());
    let m: usize = args.next().map_or(512, |a| a.parse().unwrap());
    let level = Level::named(&args.next().unwrap_or_default()).unwrap();
    let threads: usize = args.next().map_or(2, |a| a.parse().unwrap());
    let variant: u32 = args.next().map_or(0, |a| a.parse().unwrap());
    let given: Vec<(usize, usize)> = args
        .map(|a| {
            let sizes: Vec<usize> = a.split(',').map(|s| s.parse().unwrap()).collect();
            (sizes[0], sizes[1])
        })
        .collect();
    let pool = Pool::new(threads).unwrap();
    let cx = Cx { level, pool: &pool };
    let top = peak(&pool, level);
    println!("{form} {} {threads} threads variant {variant}: integer peak {top:.0} GOP/s", level.name());
    for &(n, k) in if given.is_empty() { SHAPES } else { &given[..] } {
        let (format, group, rows) = match form.as_str() {
            "int8dq" => (Format::Int8, k, Rows::Int8),
            "int4dq" => (Format::Int4, 32, Rows::Int8Asym),
            "sparse" => (Format::SparseInt8, k, Rows::Int8),
            _ => panic!("The forms are int8dq, int4dq and sparse, not {form}"),
        };
        let weight = Weight { format, ebits: 0, mbits: 0, group };
        let (_x, x) = tensor(DType::F32, &[m, k]);
        (0..x.len()).for_each(|i| unsafe { x.set(i, ((i * 2_654_435_761) % 1000) as f32 / 500.0 - 1.0) });
        let (_q, quantized) = tensor(DType::U8, &[m, rows_bytes(k)]);
        let quantize = [vec![Some(x), None, Some(quantized)]];
        let quantizing = least(threads, &cx, Op::QuantizeRows, &quantize, &[rows as u32]);
        let dtype = if format == Format::Int8 { DType::I8 } else { DType::U8 };
        let (_c, codes) = tensor(dtype, &[n, weight.row_bytes(k)]);
        (0..codes.len()).for_each(|i| unsafe { *codes.ptr.add(i) = ((i * 2_654_435_761) >> 13) as u8 });
        let (_s, scale) = tensor(DType::F32, &[n, k / group]);
        (0..scale.len()).for_each(|i| unsafe { scale.set(i, 0.01) });
        let bytes = weight.packed_bytes(n, k, false).unwrap();
        let (_b, bias) = tensor(DType::F32, &[n]);
        let (_o, out) = tensor(DType::F32, &[m, n]);
        let copies = if m == 1 { BEYOND_CACHES.div_ceil(bytes) } else { 1 };
        let packed: Vec<_> = (0..copies).map(|_| tensor(DType::U8, &[bytes])).collect();
        let params = [n as u32, k as u32, format as u32, 0, 0, group as u32, rows as u32, 0];
        let start = now(threads);
        for (_, packed) in &packed {
            let operands = [Some(codes), Some(scale), None, Some(*packed)];
            ops::run(Op::PackQuantized, &cx, &Args { operands: &operands, params: &params }).unwrap();
        }
        let packing = (now(threads) - start) / copies as f64;
        let operands: Vec<_> =
            packed.iter().map(|(_, p)| vec![Some(quantized), Some(*p), Some(bias), None, None, Some(out)]).collect();
        let params = [n as u32, k as u32, 0, format as u32, 0, 0, group as u32, 0, rows as u32, variant];
        let best = least(threads, &cx, Op::QuantizedLinear, &operands, &params);
        // The same in f32, of which the codes' values do not matter, but that each page is one of its own.
        let bytes32 = n.next_multiple_of(64) * k * 4;
        let copies = if m == 1 { BEYOND_CACHES.div_ceil(bytes32) } else { 1 };
        let plain: Vec<_> = (0..copies).map(|_| tensor(DType::U8, &[bytes32])).collect();
        for (_, packed) in &plain {
            (0..bytes32).step_by(4).for_each(|i| unsafe { *(packed.ptr.add(i) as *mut f32) = 0.5 });
        }
        let operands: Vec<_> =
            plain.iter().map(|(_, p)| vec![Some(x), Some(*p), Some(bias), None, None, Some(out)]).collect();
        let floats = least(threads, &cx, Op::Linear, &operands, &[n as u32, k as u32, 0, 0]);
        let operations = 2.0 * (m * n * k) as f64;
        println!(
            "M {m:4} N {n:5} K {k:5}: {:9.1} us {:7.1} GOP/s {:5.1} % {:6.1} GB/s; f32 {:9.1} us, {:.2} times; \
             rows in {:.1} us, packed at {:.2} G codes/s",
            best * 1e6,
            operations / best / 1e9,
            operations / best / 1e7 / top,
            bytes as f64 / best / 1e9,
            floats * 1e6,
            floats / best,
            quantizing * 1e6,
            (n * k) as f64 / packing / 1e9
        );
    }
}
