//! Times `quantized_linear` of floats and of fp8 rows at Flux.1-dev's shapes beside `linear` in f32: microseconds, GB/s
//! of packed weight, and how many times as fast. Both run by turns over weights that together are more than twice the
//! last-level cache, and the median counts.
//!
//!     cargo run --release --example weight_only_bench [-- threads level dtype M,M.. format,format.. K,N ...]

use denoise::level::Level;
use denoise::ops::{self, Args, Cx};
use denoise::pool::Pool;
use denoise::quant::{Weight, rows_bytes, rows_scale};
use denoise::schema::{DType, Format, Op, Rows};
use denoise::view::View;
use std::time::Instant;

const SHAPES: &[(usize, usize)] = &[(3072, 3072), (3072, 12288), (12288, 3072), (15360, 3072)];
const FORMATS: &str =
    "int8wo,int4wo_32,int4wo_64z,int4wo_128,int4wo_128z,fp8wo,e5m2wo,fp3,fp4,fp5,fp6,fp7,fp8,fp8dqrow";

/// Memory aligned to cache lines.
struct Memory(Vec<u64>, usize);

impl Memory {
    fn new(bytes: usize) -> Self {
        let mut words = vec![0u64; bytes / 8 + 16];
        let start = (words.as_mut_ptr() as *mut u8).align_offset(64);
        Self(words, start)
    }
    fn ptr(&self) -> *mut u8 {
        (self.0.as_ptr() as *mut u8).wrapping_add(self.1)
    }
}

/// What a name stands for: the weight of K columns, whether it has zero points, and the rows.
fn named(name: &str, k: usize) -> (Weight, bool, Rows) {
    let plain = |format, group| Weight { format, ebits: 0, mbits: 0, group };
    let small = |ebits, mbits| (Weight { format: Format::Fpx, ebits, mbits, group: k }, false, Rows::None);
    match name {
        "int8wo" => (plain(Format::Int8, k), false, Rows::None),
        "fp8wo" => (plain(Format::E4m3, k), false, Rows::None),
        "e5m2wo" => (plain(Format::E5m2, k), false, Rows::None),
        "fp8dqrow" => (plain(Format::E4m3, k), false, Rows::E4m3),
        "fp3" => small(1, 1),
        "fp4" => small(2, 1),
        "fp5" => small(2, 2),
        "fp6" => small(3, 2),
        "fp7" => small(3, 3),
        "fp8" => small(4, 3),
        _ => {
            let group = name.strip_prefix("int4wo_").expect("a format's name");
            let zero = group.ends_with('z');
            (plain(Format::Int4, group.trim_end_matches('z').parse().unwrap()), zero, Rows::None)
        }
    }
}

fn cache_bytes() -> usize {
    let text = std::fs::read_to_string("/sys/devices/system/cpu/cpu0/cache/index3/size").unwrap_or_default();
    text.trim().trim_end_matches('K').parse::<usize>().map_or(64 << 20, |kilobytes| kilobytes << 10)
}

/// GB/s at which all threads read memory.
fn read_speed(pool: &Pool) -> f64 {
    let mut memory = Memory::new(4 * cache_bytes().max(32 << 20));
    // Pages that nobody wrote are one page of zeros.
    memory.0.fill(1);
    let words = &memory.0;
    let part = words.len() / pool.threads();
    let mut best = f64::MAX;
    for _ in 0..10 {
        let start = Instant::now();
        pool.run(pool.threads(), &|index, _| {
            let sum = words[index * part..][..part].iter().fold(0u64, |sum, &word| sum.wrapping_add(word));
            std::hint::black_box(sum);
        })
        .unwrap();
        best = best.min(start.elapsed().as_secs_f64());
    }
    (part * pool.threads() * 8) as f64 / best / 1e9
}

/// Copies of a packed weight that together outgrow the cache.
fn copies(packed: Memory, bytes: usize) -> Vec<Memory> {
    let count = if std::env::var("WARM").is_ok() { 1 } else { 2 * cache_bytes() / bytes + 2 };
    let mut all = vec![packed];
    while all.len() < count {
        let copy = Memory::new(bytes);
        unsafe { std::ptr::copy_nonoverlapping(all[0].ptr(), copy.ptr(), bytes) };
        all.push(copy);
    }
    all
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let arg = |i: usize, default: &str| args.get(i).filter(|a| *a != "-").cloned().unwrap_or(default.to_string());
    let pool = Pool::new(arg(0, "2").parse().unwrap()).unwrap();
    let level = Level::named(&arg(1, "")).unwrap();
    let dtype = match arg(2, "f32").as_str() {
        "bf16" => DType::BF16,
        "f16" => DType::F16,
        _ => DType::F32,
    };
    let cx = Cx { level, pool: &pool };
    println!("{} x in {dtype:?}, {} threads, read at {:.1} GB/s", level.name(), pool.threads(), read_speed(&pool));
    let pairs = |text: &str| text.split(',').map(|s| s.parse().unwrap()).collect::<Vec<usize>>();
    let given: Vec<(usize, usize)> = args.iter().skip(5).map(|a| (pairs(a)[0], pairs(a)[1])).collect();
    for &(k, n) in if given.is_empty() { SHAPES } else { &given } {
        let float_bytes = n.next_multiple_of(64) * k.next_multiple_of(4) * 4;
        let floats = Memory::new(float_bytes);
        for i in 0..float_bytes / 4 {
            unsafe { *(floats.ptr() as *mut f32).add(i) = (i % 1000) as f32 / 500.0 - 1.0 };
        }
        let floats = copies(floats, float_bytes);
        for name in arg(4, FORMATS).split(',') {
            let (weight, zero, rows) = named(name, k);
            let bytes = weight.packed_bytes(n, k, zero).unwrap();
            let packed = Memory::new(bytes);
            pack(&cx, &weight, [n, k], zero, rows, dtype, &packed);
            let packed = copies(packed, bytes);
            for m in pairs(&arg(3, "1,4,16,512")) {
                let [own, other] = times(&cx, &weight, [m, n, k], zero, rows, dtype, &packed, &floats);
                println!(
                    "{name:12} M {m:4} K {k:5} N {n:5}: {:9.1} us {:6.1} GB/s {:7.1} GFLOP/s; linear in f32 {:9.1} us {:6.1} GB/s: {:.2} times",
                    own * 1e6,
                    bytes as f64 / own / 1e9,
                    2.0 * (m * n * k) as f64 / own / 1e9,
                    other * 1e6,
                    float_bytes as f64 / other / 1e9,
                    other / own
                );
            }
        }
    }
}

fn pack(cx: &Cx, weight: &Weight, [n, k]: [usize; 2], zero: bool, rows: Rows, dtype: DType, to: &Memory) {
    let row = weight.row_bytes(k);
    let codes = Memory::new(n * row);
    for i in 0..n * row {
        unsafe { *codes.ptr().add(i) = (i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes()[1] & 0xbe };
    }
    let groups = weight.groups(k);
    let scales = Memory::new(n * groups * 4);
    (0..n * groups).for_each(|i| unsafe { *(scales.ptr() as *mut f32).add(i) = 0.01 });
    let zeros = Memory::new(n * groups);
    let codes_dtype = if weight.format == Format::Int8 { DType::I8 } else { DType::U8 };
    let bytes = weight.packed_bytes(n, k, zero).unwrap();
    let operands = [
        Some(View::contiguous(codes.ptr(), codes_dtype, &[n, row])),
        Some(View::contiguous(scales.ptr(), DType::F32, &[n, groups])),
        zero.then(|| View::contiguous(zeros.ptr(), DType::I8, &[n, groups])),
        Some(View::contiguous(to.ptr(), DType::U8, &[bytes])),
    ];
    let params =
        [n, k, weight.format as usize, weight.ebits as usize, weight.mbits as usize, weight.group, rows as usize];
    let params: Vec<u32> = params.into_iter().chain([dtype as usize]).map(|p| p as u32).collect();
    ops::run(Op::PackQuantized, cx, &Args { operands: &operands, params: &params }).unwrap();
}

/// Seconds of `quantized_linear` and of `linear` in f32.
#[allow(clippy::too_many_arguments)]
fn times(
    cx: &Cx,
    weight: &Weight,
    [m, n, k]: [usize; 3],
    zero: bool,
    rows: Rows,
    dtype: DType,
    packed: &[Memory],
    floats: &[Memory],
) -> [f64; 2] {
    let (x, out) = (Memory::new(m * rows_bytes(k) * 4), Memory::new(m * n * 4));
    let view = View::contiguous(x.ptr(), dtype, &[m, k]);
    let fill = |view: &View| (0..view.len()).for_each(|i| unsafe { view.set(i, (i % 89) as f32 / 44.0 - 1.0) });
    fill(&view);
    let mut x_view = view;
    if rows != Rows::None {
        x_view = View::contiguous(x.ptr(), DType::U8, &[m, rows_bytes(k)]);
        for i in 0..m {
            unsafe { *(x.ptr().add(i * rows_bytes(k) + rows_scale(k)) as *mut f32) = 0.01 };
        }
    }
    let float_x = Memory::new(m * k * 4);
    let float_view = View::contiguous(float_x.ptr(), DType::F32, &[m, k]);
    fill(&float_view);
    let bytes = weight.packed_bytes(n, k, zero).unwrap();
    let params = [n, k, 0, weight.format as usize, weight.ebits as usize, weight.mbits as usize, weight.group];
    let params: Vec<u32> =
        params.into_iter().chain([zero as usize, rows as usize, variant()]).map(|p| p as u32).collect();
    let own = |round: usize| {
        let w = View::contiguous(packed[round % packed.len()].ptr(), DType::U8, &[bytes]);
        let operands = [Some(x_view), Some(w), None, None, None, Some(View::contiguous(out.ptr(), dtype, &[m, n]))];
        let start = Instant::now();
        ops::run(Op::QuantizedLinear, cx, &Args { operands: &operands, params: &params }).unwrap();
        start.elapsed().as_secs_f64()
    };
    let other = |round: usize| {
        let bytes = n.next_multiple_of(64) * k.next_multiple_of(4) * 4;
        let w = View::contiguous(floats[round % floats.len()].ptr(), DType::U8, &[bytes]);
        let out = View::contiguous(out.ptr(), DType::F32, &[m, n]);
        let operands = [Some(float_view), Some(w), None, None, None, Some(out)];
        let start = Instant::now();
        ops::run(Op::Linear, cx, &Args { operands: &operands, params: &[n as u32, k as u32, 0, 0] }).unwrap();
        start.elapsed().as_secs_f64()
    };
    let (mut owns, mut others) = (Vec::new(), Vec::new());
    let start = Instant::now();
    let mut round = 0;
    while round < 5 || start.elapsed().as_secs_f64() < 0.25 {
        owns.push(own(round));
        others.push(other(round));
        round += 1;
    }
    [median(owns), median(others)]
}

/// The variant to time, by environment: `VARIANT`.
fn variant() -> usize {
    std::env::var("VARIANT").map_or(0, |v| v.parse().unwrap())
}
