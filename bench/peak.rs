//! What a machine can do at most: multiply-adds in registers and bytes read from memory, on all threads at once.
//!
//! `peak THREADS` prints one JSON object: multiply-adds of f32, bf16 and int8 in GFLOP/s (a multiply-add counts as two),
//! memory reads in GB/s. No kernel can be faster than those, nor one that reads its weights once faster than the last.

use std::hint::black_box;
use std::sync::Barrier;
use std::time::Instant;

/// Independent sums: two multiply-adds begin every cycle and each takes four or five, so more than ten are in flight.
const SUMS: usize = 16;
/// Multiply-adds of each sum in one measurement: about a millisecond.
const STEPS: usize = 200_000;
/// Measurements of which the best counts: a clock takes a while to rise, and other programs interrupt.
const ROUNDS: usize = 200;
/// Bytes that each thread reads: more than any cache holds.
const BYTES: usize = 256 << 20;

/// Runs a function of some work on all threads at once, several times; gives the work done in a second, at best.
fn best<T: Sync>(threads: &[T], rounds: usize, work: f64, function: impl Fn(&T) + Sync) -> f64 {
    let barrier = Barrier::new(threads.len());
    let seconds: Vec<Vec<f64>> = std::thread::scope(|scope| {
        let spawned: Vec<_> = threads
            .iter()
            .map(|thread| {
                scope.spawn(|| {
                    let mut seconds = Vec::with_capacity(rounds);
                    for _ in 0..rounds {
                        barrier.wait();
                        let start = Instant::now();
                        function(thread);
                        seconds.push(start.elapsed().as_secs_f64());
                    }
                    seconds
                })
            })
            .collect();
        spawned.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    // A round takes as long as its slowest thread.
    let shortest = (0..rounds)
        .map(|round| seconds.iter().map(|thread| thread[round]).fold(0.0, f64::max))
        .fold(f64::INFINITY, f64::min);
    work * threads.len() as f64 / shortest
}

/// Defines a function that multiplies and adds vectors in registers.
macro_rules! multiply_adds {
    ($name:ident, $features:literal, $vector:ty, $zero:expr, $one:expr, |$sum:ident, $x:ident| $step:expr) => {
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = $features)]
        unsafe fn $name() {
            use std::arch::x86_64::*;
            let $x = black_box($one);
            let mut sums: [$vector; SUMS] = [$zero; SUMS];
            for _ in 0..STEPS {
                for $sum in sums.iter_mut() {
                    *$sum = $step;
                }
            }
            black_box(sums);
        }
    };
}

multiply_adds!(f32_avx512, "avx512f", __m512, _mm512_setzero_ps(), _mm512_set1_ps(0.5), |sum, x| {
    _mm512_fmadd_ps(x, x, *sum)
});
multiply_adds!(f32_avx2, "avx2,fma", __m256, _mm256_setzero_ps(), _mm256_set1_ps(0.5), |sum, x| {
    _mm256_fmadd_ps(x, x, *sum)
});
multiply_adds!(
    bf16_avx512,
    "avx512f,avx512bf16",
    __m512,
    _mm512_setzero_ps(),
    _mm512_cvtne2ps_pbh(_mm512_set1_ps(0.5), _mm512_set1_ps(0.5)),
    |sum, x| _mm512_dpbf16_ps(*sum, x, x)
);

multiply_adds!(int8_vnni, "avx512f,avx512vnni", __m512i, _mm512_setzero_si512(), _mm512_set1_epi8(1), |sum, x| {
    _mm512_dpbusd_epi32(*sum, x, x)
});
// Bytes widened to i16: the instruction that multiplies bytes saturates. The product is of the sum, or it would be
// computed once.
multiply_adds!(int8_avx512, "avx512f,avx512bw", __m512i, _mm512_setzero_si512(), _mm512_set1_epi8(1), |sum, x| {
    _mm512_add_epi32(*sum, _mm512_madd_epi16(*sum, x))
});
multiply_adds!(int8_avx2, "avx2", __m256i, _mm256_setzero_si256(), _mm256_set1_epi8(1), |sum, x| {
    _mm256_add_epi32(*sum, _mm256_madd_epi16(*sum, x))
});

/// Multiply-adds of four lanes, as the compiler makes them without being told of any instruction set.
fn f32_portable() {
    let x = black_box([0.5f32; 4]);
    let mut sums = [[0f32; 4]; SUMS];
    for _ in 0..STEPS {
        for sum in &mut sums {
            for lane in 0..4 {
                sum[lane] += x[lane] * x[lane];
            }
        }
    }
    black_box(sums);
}

/// GFLOP/s of f32, of bf16 and of int8; 0 where the CPU has no instruction for it.
fn multiply_adds(threads: &[()]) -> [f64; 3] {
    let rate = |lanes: usize, function: &(dyn Fn() + Sync)| {
        best(threads, ROUNDS, (2 * lanes * SUMS * STEPS) as f64, |()| function()) / 1e9
    };
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw") {
            let f32 = rate(16, &|| unsafe { f32_avx512() });
            let bf16 = is_x86_feature_detected!("avx512bf16");
            let vnni = is_x86_feature_detected!("avx512vnni");
            return [
                f32,
                if bf16 { rate(32, &|| unsafe { bf16_avx512() }) } else { 0.0 },
                if vnni { rate(64, &|| unsafe { int8_vnni() }) } else { rate(32, &|| unsafe { int8_avx512() }) },
            ];
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            return [rate(8, &|| unsafe { f32_avx2() }), 0.0, rate(16, &|| unsafe { int8_avx2() })];
        }
    }
    [rate(4, &f32_portable), 0.0, 0.0]
}

/// The sum of 64-bit words, in enough parts that the reads are what takes the time.
fn read(words: &Vec<u64>) {
    let mut sums = [0u64; 32];
    for part in words.chunks_exact(sums.len()) {
        for (sum, word) in sums.iter_mut().zip(part) {
            *sum = sum.wrapping_add(*word);
        }
    }
    black_box(sums);
}

fn main() {
    let threads: usize = std::env::args().nth(1).and_then(|n| n.parse().ok()).filter(|n| *n > 0).expect("peak THREADS");
    let [f32, bf16, int8] = multiply_adds(&vec![(); threads]);
    let memory: Vec<Vec<u64>> = (0..threads).map(|_| vec![1; BYTES / 8]).collect();
    let bytes = best(&memory, 10, BYTES as f64, read) / 1e9;
    println!("{{\"f32\": {f32:.1}, \"bf16\": {bf16:.1}, \"int8\": {int8:.1}, \"bytes\": {bytes:.1}}}");
}
