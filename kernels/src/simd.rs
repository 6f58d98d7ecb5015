//! Vectors of f32 behind one trait, so that a kernel is written once and compiled for every level.
//!
//! A kernel is an `#[inline(always)]` function generic over [`Simd`]; [`dispatch!`] compiles it inside functions that
//! enable the level's instructions, and picks among them at run time.

use half::{bf16, f16};

/// A vector of f32 lanes. All methods are unsafe: the caller vouches for the CPU's level and for the pointers.
#[allow(clippy::missing_safety_doc)]
pub trait Simd: Copy + Send + Sync + 'static {
    /// The register.
    type V: Copy;
    /// Lanes in a register.
    const LANES: usize;
    /// Whether `dot_bf16` is one instruction.
    const BF16_DOT: bool = false;
    /// Whether `dot_u8_i8` is one instruction.
    const VNNI: bool = false;
    /// How many registers there are, for choosing tile sizes.
    const REGISTERS: usize;

    /// Asks for a cache line that will be read soon; any address will do.
    #[inline(always)]
    unsafe fn prefetch(p: *const u8) {
        let _ = p;
    }
    unsafe fn splat(x: f32) -> Self::V;
    unsafe fn load(p: *const f32) -> Self::V;
    /// The first `n` lanes, zero beyond; nothing beyond them is read.
    unsafe fn load_n(p: *const f32, n: usize) -> Self::V;
    unsafe fn store(p: *mut f32, v: Self::V);
    /// Writes the first `n` lanes only.
    unsafe fn store_n(p: *mut f32, v: Self::V, n: usize);
    unsafe fn load_bf16(p: *const bf16) -> Self::V;
    /// Rounds to nearest even.
    unsafe fn store_bf16(p: *mut bf16, v: Self::V);
    unsafe fn load_f16(p: *const f16) -> Self::V;
    /// Rounds to nearest even.
    unsafe fn store_f16(p: *mut f16, v: Self::V);
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V;
    /// a * b + c in one rounding where the level has it.
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    unsafe fn sqrt(a: Self::V) -> Self::V;
    /// To the nearest integer, ties to even.
    unsafe fn round(a: Self::V) -> Self::V;
    /// 2^n for a vector of integers as floats within [-126, 127].
    unsafe fn exp2i(n: Self::V) -> Self::V;
    /// Swaps the lanes of each pair (2i, 2i + 1).
    unsafe fn swap_pairs(a: Self::V) -> Self::V;
    unsafe fn sum(a: Self::V) -> f32;
    unsafe fn max_lane(a: Self::V) -> f32;
    /// acc + the products of pairs: each lane of `a` and `b` holds two bf16 values. Only where `BF16_DOT`.
    unsafe fn dot_bf16(acc: Self::V, a: Self::V, b: Self::V) -> Self::V {
        let _ = (a, b);
        acc
    }
    /// acc + the products of pairs, in lanes of i32: each lane of `a` and `b` holds two i16 values.
    unsafe fn dot_i16(acc: Self::V, a: Self::V, b: Self::V) -> Self::V;
    /// acc + the products of fours, in lanes of i32: each lane of `a` holds four u8 values, of `b` four i8 values. Only
    /// where `VNNI`.
    unsafe fn dot_u8_i8(acc: Self::V, a: Self::V, b: Self::V) -> Self::V {
        let _ = (a, b);
        acc
    }
    /// Lanes of i32, wrapping.
    unsafe fn add_i32(a: Self::V, b: Self::V) -> Self::V;
    /// Lanes of i32, wrapping.
    unsafe fn mul_i32(a: Self::V, b: Self::V) -> Self::V;
    /// Lanes of i32 as floats, rounded to nearest even.
    unsafe fn float_i32(a: Self::V) -> Self::V;
    /// e^x, within 2 ulp where the result is normal; 0 below, infinity above.
    #[inline(always)]
    unsafe fn exp(x: Self::V) -> Self::V {
        unsafe {
            // Cody and Waite: x = n ln 2 + r, |r| <= ln 2 / 2, and a polynomial for e^r.
            let clamped = Self::max(Self::min(x, Self::splat(88.722_83)), Self::splat(-87.336_54));
            let n = Self::round(Self::mul(clamped, Self::splat(std::f32::consts::LOG2_E)));
            let r = Self::fma(n, Self::splat(-0.693_359_4), clamped);
            let r = Self::fma(n, Self::splat(2.121_944_4e-4), r);
            let mut p = Self::splat(1.987_569_2e-4);
            for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
                p = Self::fma(p, r, Self::splat(c));
            }
            let e = Self::add(Self::fma(Self::mul(r, r), p, r), Self::splat(1.0));
            // n can be 128 at the upper clamp: scale in two steps.
            let half = Self::round(Self::mul(n, Self::splat(0.5)));
            let scaled = Self::mul(Self::mul(e, Self::exp2i(half)), Self::exp2i(Self::sub(n, half)));
            Self::flush_exp(x, scaled)
        }
    }
    /// `scaled`, but 0 where x is below exp's range, infinity where above, NaN where x is NaN.
    unsafe fn flush_exp(x: Self::V, scaled: Self::V) -> Self::V;
}

/// A storage type of activations: read and written as vectors of f32.
#[allow(clippy::missing_safety_doc)]
pub trait Element: Copy + Send + Sync + 'static {
    /// Bytes.
    const SIZE: usize;
    unsafe fn load<S: Simd>(p: *const Self) -> S::V;
    unsafe fn store<S: Simd>(p: *mut Self, v: S::V);
    fn get(self) -> f32;
    fn from(x: f32) -> Self;

    /// The first `n` lanes, zero beyond; nothing beyond them is read.
    #[inline(always)]
    unsafe fn load_n<S: Simd>(p: *const Self, n: usize) -> S::V {
        unsafe {
            let mut lanes = [0f32; 16];
            for (i, lane) in lanes.iter_mut().enumerate().take(n) {
                *lane = (*p.add(i)).get();
            }
            S::load(lanes.as_ptr())
        }
    }
    /// Writes the first `n` lanes only.
    #[inline(always)]
    unsafe fn store_n<S: Simd>(p: *mut Self, v: S::V, n: usize) {
        unsafe {
            let mut lanes = [0f32; 16];
            S::store(lanes.as_mut_ptr(), v);
            for (i, lane) in lanes.iter().enumerate().take(n) {
                *p.add(i) = Self::from(*lane);
            }
        }
    }
}

impl Element for f32 {
    const SIZE: usize = 4;
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const Self) -> S::V {
        unsafe { S::load(p) }
    }
    #[inline(always)]
    unsafe fn store<S: Simd>(p: *mut Self, v: S::V) {
        unsafe { S::store(p, v) }
    }
    #[inline(always)]
    unsafe fn load_n<S: Simd>(p: *const Self, n: usize) -> S::V {
        unsafe { S::load_n(p, n) }
    }
    #[inline(always)]
    unsafe fn store_n<S: Simd>(p: *mut Self, v: S::V, n: usize) {
        unsafe { S::store_n(p, v, n) }
    }
    #[inline(always)]
    fn get(self) -> f32 {
        self
    }
    #[inline(always)]
    fn from(x: f32) -> Self {
        x
    }
}

macro_rules! half_element {
    ($type:ty, $load:ident, $store:ident) => {
        impl Element for $type {
            const SIZE: usize = 2;
            #[inline(always)]
            unsafe fn load<S: Simd>(p: *const Self) -> S::V {
                unsafe { S::$load(p) }
            }
            #[inline(always)]
            unsafe fn store<S: Simd>(p: *mut Self, v: S::V) {
                unsafe { S::$store(p, v) }
            }
            #[inline(always)]
            fn get(self) -> f32 {
                self.to_f32()
            }
            #[inline(always)]
            fn from(x: f32) -> Self {
                Self::from_f32(x)
            }
        }
    };
}
half_element!(bf16, load_bf16, store_bf16);
half_element!(f16, load_f16, store_f16);

/// Eight lanes of plain Rust, which the compiler vectorizes as it can.
#[derive(Clone, Copy)]
pub struct Portable;

macro_rules! lanes {
    (|$i:ident| $body:expr) => {{
        let mut out = [0f32; 8];
        let mut $i = 0;
        while $i < 8 {
            out[$i] = $body;
            $i += 1;
        }
        out
    }};
}

impl Simd for Portable {
    type V = [f32; 8];
    const LANES: usize = 8;
    const REGISTERS: usize = 8;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::V {
        [x; 8]
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::V {
        unsafe { (p as *const [f32; 8]).read_unaligned() }
    }
    #[inline(always)]
    unsafe fn load_n(p: *const f32, n: usize) -> Self::V {
        unsafe { lanes!(|i| if i < n { *p.add(i) } else { 0.0 }) }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: Self::V) {
        unsafe { (p as *mut [f32; 8]).write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn store_n(p: *mut f32, v: Self::V, n: usize) {
        unsafe {
            for (i, lane) in v.iter().enumerate().take(n) {
                *p.add(i) = *lane;
            }
        }
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const bf16) -> Self::V {
        unsafe { lanes!(|i| (*p.add(i)).to_f32()) }
    }
    #[inline(always)]
    unsafe fn store_bf16(p: *mut bf16, v: Self::V) {
        unsafe {
            for (i, lane) in v.iter().enumerate() {
                *p.add(i) = bf16::from_f32(*lane);
            }
        }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const f16) -> Self::V {
        unsafe { lanes!(|i| (*p.add(i)).to_f32()) }
    }
    #[inline(always)]
    unsafe fn store_f16(p: *mut f16, v: Self::V) {
        unsafe {
            for (i, lane) in v.iter().enumerate() {
                *p.add(i) = f16::from_f32(*lane);
            }
        }
    }
    #[inline(always)]
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
        lanes!(|i| a[i] + b[i])
    }
    #[inline(always)]
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V {
        lanes!(|i| a[i] - b[i])
    }
    #[inline(always)]
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
        lanes!(|i| a[i] * b[i])
    }
    #[inline(always)]
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V {
        lanes!(|i| a[i] / b[i])
    }
    #[inline(always)]
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V {
        lanes!(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V {
        lanes!(|i| if a[i] < b[i] { a[i] } else { b[i] })
    }
    // mul_add would be a library call where the target has no FMA.
    #[inline(always)]
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        lanes!(|i| a[i] * b[i] + c[i])
    }
    #[inline(always)]
    unsafe fn sqrt(a: Self::V) -> Self::V {
        lanes!(|i| a[i].sqrt())
    }
    #[inline(always)]
    unsafe fn round(a: Self::V) -> Self::V {
        // Adding 1.5 * 2^23 leaves no room for a fraction.
        const MAGIC: f32 = 12_582_912.0;
        lanes!(|i| if a[i].abs() < 4_194_304.0 { (a[i] + MAGIC) - MAGIC } else { a[i] })
    }
    #[inline(always)]
    unsafe fn exp2i(n: Self::V) -> Self::V {
        lanes!(|i| f32::from_bits(((n[i] as i32 + 127) as u32) << 23))
    }
    #[inline(always)]
    unsafe fn swap_pairs(a: Self::V) -> Self::V {
        lanes!(|i| a[i ^ 1])
    }
    #[inline(always)]
    unsafe fn sum(a: Self::V) -> f32 {
        ((a[0] + a[4]) + (a[1] + a[5])) + ((a[2] + a[6]) + (a[3] + a[7]))
    }
    #[inline(always)]
    unsafe fn max_lane(a: Self::V) -> f32 {
        a.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }
    #[inline(always)]
    unsafe fn dot_i16(acc: Self::V, a: Self::V, b: Self::V) -> Self::V {
        let half = |x: f32, shift: u32| (x.to_bits() << (16 - shift)) as i32 >> 16;
        lanes!(|i| {
            let sum = half(a[i], 0) * half(b[i], 0) + half(a[i], 16) * half(b[i], 16);
            f32::from_bits((acc[i].to_bits()).wrapping_add(sum as u32))
        })
    }
    #[inline(always)]
    unsafe fn add_i32(a: Self::V, b: Self::V) -> Self::V {
        lanes!(|i| f32::from_bits(a[i].to_bits().wrapping_add(b[i].to_bits())))
    }
    #[inline(always)]
    unsafe fn mul_i32(a: Self::V, b: Self::V) -> Self::V {
        lanes!(|i| f32::from_bits(a[i].to_bits().wrapping_mul(b[i].to_bits())))
    }
    #[inline(always)]
    unsafe fn float_i32(a: Self::V) -> Self::V {
        lanes!(|i| a[i].to_bits() as i32 as f32)
    }
    #[inline(always)]
    unsafe fn flush_exp(x: Self::V, scaled: Self::V) -> Self::V {
        lanes!(|i| if x[i].is_nan() {
            x[i]
        } else if x[i] < -87.336_54 {
            0.0
        } else if x[i] > 88.722_83 {
            f32::INFINITY
        } else {
            scaled[i]
        })
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{Simd, bf16, f16};
    use std::arch::x86_64::*;

    /// AVX2, FMA, F16C: eight lanes.
    #[derive(Clone, Copy)]
    pub struct Avx2;

    /// A mask whose first `n` lanes are set.
    static TAIL: [i32; 16] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];

    #[inline(always)]
    unsafe fn tail(n: usize) -> __m256i {
        unsafe { _mm256_loadu_si256(TAIL.as_ptr().add(8 - n) as *const __m256i) }
    }

    impl Simd for Avx2 {
        type V = __m256;
        const LANES: usize = 8;
        const REGISTERS: usize = 16;

        #[inline(always)]
        unsafe fn prefetch(p: *const u8) {
            unsafe { _mm_prefetch::<_MM_HINT_T0>(p as *const i8) }
        }
        #[inline(always)]
        unsafe fn splat(x: f32) -> __m256 {
            unsafe { _mm256_set1_ps(x) }
        }
        #[inline(always)]
        unsafe fn load(p: *const f32) -> __m256 {
            unsafe { _mm256_loadu_ps(p) }
        }
        #[inline(always)]
        unsafe fn load_n(p: *const f32, n: usize) -> __m256 {
            unsafe { _mm256_maskload_ps(p, tail(n)) }
        }
        #[inline(always)]
        unsafe fn store(p: *mut f32, v: __m256) {
            unsafe { _mm256_storeu_ps(p, v) }
        }
        #[inline(always)]
        unsafe fn store_n(p: *mut f32, v: __m256, n: usize) {
            unsafe { _mm256_maskstore_ps(p, tail(n), v) }
        }
        #[inline(always)]
        unsafe fn load_bf16(p: *const bf16) -> __m256 {
            unsafe {
                let half = _mm_loadu_si128(p as *const __m128i);
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(half)))
            }
        }
        #[inline(always)]
        unsafe fn store_bf16(p: *mut bf16, v: __m256) {
            unsafe {
                let bits = _mm256_castps_si256(v);
                let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
                let rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
                let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(v, v));
                let quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x0040_0000));
                let top = _mm256_srli_epi32::<16>(_mm256_blendv_epi8(rounded, quiet, nan));
                let packed = _mm256_permute4x64_epi64::<0b1000>(_mm256_packus_epi32(top, top));
                _mm_storeu_si128(p as *mut __m128i, _mm256_castsi256_si128(packed));
            }
        }
        #[inline(always)]
        unsafe fn load_f16(p: *const f16) -> __m256 {
            unsafe { _mm256_cvtph_ps(_mm_loadu_si128(p as *const __m128i)) }
        }
        #[inline(always)]
        unsafe fn store_f16(p: *mut f16, v: __m256) {
            unsafe { _mm_storeu_si128(p as *mut __m128i, _mm256_cvtps_ph::<0>(v)) }
        }
        #[inline(always)]
        unsafe fn add(a: __m256, b: __m256) -> __m256 {
            unsafe { _mm256_add_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn sub(a: __m256, b: __m256) -> __m256 {
            unsafe { _mm256_sub_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn mul(a: __m256, b: __m256) -> __m256 {
            unsafe { _mm256_mul_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn div(a: __m256, b: __m256) -> __m256 {
            unsafe { _mm256_div_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn max(a: __m256, b: __m256) -> __m256 {
            unsafe { _mm256_max_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn min(a: __m256, b: __m256) -> __m256 {
            unsafe { _mm256_min_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn fma(a: __m256, b: __m256, c: __m256) -> __m256 {
            unsafe { _mm256_fmadd_ps(a, b, c) }
        }
        #[inline(always)]
        unsafe fn sqrt(a: __m256) -> __m256 {
            unsafe { _mm256_sqrt_ps(a) }
        }
        #[inline(always)]
        unsafe fn round(a: __m256) -> __m256 {
            unsafe { _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a) }
        }
        #[inline(always)]
        unsafe fn exp2i(n: __m256) -> __m256 {
            unsafe {
                let biased = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
                _mm256_castsi256_ps(_mm256_slli_epi32::<23>(biased))
            }
        }
        #[inline(always)]
        unsafe fn swap_pairs(a: __m256) -> __m256 {
            unsafe { _mm256_permute_ps::<0b10_11_00_01>(a) }
        }
        #[inline(always)]
        unsafe fn sum(a: __m256) -> f32 {
            unsafe {
                let q = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
                let d = _mm_add_ps(q, _mm_movehl_ps(q, q));
                _mm_cvtss_f32(_mm_add_ss(d, _mm_shuffle_ps::<1>(d, d)))
            }
        }
        #[inline(always)]
        unsafe fn max_lane(a: __m256) -> f32 {
            unsafe {
                let q = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
                let d = _mm_max_ps(q, _mm_movehl_ps(q, q));
                _mm_cvtss_f32(_mm_max_ss(d, _mm_shuffle_ps::<1>(d, d)))
            }
        }
        #[inline(always)]
        unsafe fn dot_i16(acc: __m256, a: __m256, b: __m256) -> __m256 {
            unsafe {
                let products = _mm256_madd_epi16(_mm256_castps_si256(a), _mm256_castps_si256(b));
                _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(acc), products))
            }
        }
        #[inline(always)]
        unsafe fn add_i32(a: __m256, b: __m256) -> __m256 {
            unsafe { _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a), _mm256_castps_si256(b))) }
        }
        #[inline(always)]
        unsafe fn mul_i32(a: __m256, b: __m256) -> __m256 {
            unsafe { _mm256_castsi256_ps(_mm256_mullo_epi32(_mm256_castps_si256(a), _mm256_castps_si256(b))) }
        }
        #[inline(always)]
        unsafe fn float_i32(a: __m256) -> __m256 {
            unsafe { _mm256_cvtepi32_ps(_mm256_castps_si256(a)) }
        }
        #[inline(always)]
        unsafe fn flush_exp(x: __m256, scaled: __m256) -> __m256 {
            unsafe {
                let under = _mm256_cmp_ps::<_CMP_LT_OQ>(x, _mm256_set1_ps(-87.336_54));
                let over = _mm256_cmp_ps::<_CMP_GT_OQ>(x, _mm256_set1_ps(88.722_83));
                let nan = _mm256_cmp_ps::<_CMP_UNORD_Q>(x, x);
                let e = _mm256_andnot_ps(under, scaled);
                let e = _mm256_blendv_ps(e, _mm256_set1_ps(f32::INFINITY), over);
                _mm256_blendv_ps(e, x, nan)
            }
        }
    }

    macro_rules! avx512 {
        ($(#[$doc:meta])* $name:ident, $($extra:item)*) => {
            $(#[$doc])*
            #[derive(Clone, Copy)]
            pub struct $name;

            impl Simd for $name {
                type V = __m512;
                const LANES: usize = 16;
                const REGISTERS: usize = 32;

                #[inline(always)]
                unsafe fn prefetch(p: *const u8) {
                    unsafe { _mm_prefetch::<_MM_HINT_T0>(p as *const i8) }
                }
                #[inline(always)]
                unsafe fn splat(x: f32) -> __m512 {
                    unsafe { _mm512_set1_ps(x) }
                }
                #[inline(always)]
                unsafe fn load(p: *const f32) -> __m512 {
                    unsafe { _mm512_loadu_ps(p) }
                }
                #[inline(always)]
                unsafe fn load_n(p: *const f32, n: usize) -> __m512 {
                    unsafe { _mm512_maskz_loadu_ps(((1u32 << n) - 1) as u16, p) }
                }
                #[inline(always)]
                unsafe fn store(p: *mut f32, v: __m512) {
                    unsafe { _mm512_storeu_ps(p, v) }
                }
                #[inline(always)]
                unsafe fn store_n(p: *mut f32, v: __m512, n: usize) {
                    unsafe { _mm512_mask_storeu_ps(p, ((1u32 << n) - 1) as u16, v) }
                }
                #[inline(always)]
                unsafe fn load_bf16(p: *const bf16) -> __m512 {
                    unsafe {
                        let half = _mm256_loadu_si256(p as *const __m256i);
                        _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(half)))
                    }
                }
                #[inline(always)]
                unsafe fn load_f16(p: *const f16) -> __m512 {
                    unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(p as *const __m256i)) }
                }
                #[inline(always)]
                unsafe fn store_f16(p: *mut f16, v: __m512) {
                    unsafe { _mm256_storeu_si256(p as *mut __m256i, _mm512_cvtps_ph::<0>(v)) }
                }
                #[inline(always)]
                unsafe fn add(a: __m512, b: __m512) -> __m512 {
                    unsafe { _mm512_add_ps(a, b) }
                }
                #[inline(always)]
                unsafe fn sub(a: __m512, b: __m512) -> __m512 {
                    unsafe { _mm512_sub_ps(a, b) }
                }
                #[inline(always)]
                unsafe fn mul(a: __m512, b: __m512) -> __m512 {
                    unsafe { _mm512_mul_ps(a, b) }
                }
                #[inline(always)]
                unsafe fn div(a: __m512, b: __m512) -> __m512 {
                    unsafe { _mm512_div_ps(a, b) }
                }
                #[inline(always)]
                unsafe fn max(a: __m512, b: __m512) -> __m512 {
                    unsafe { _mm512_max_ps(a, b) }
                }
                #[inline(always)]
                unsafe fn min(a: __m512, b: __m512) -> __m512 {
                    unsafe { _mm512_min_ps(a, b) }
                }
                #[inline(always)]
                unsafe fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
                    unsafe { _mm512_fmadd_ps(a, b, c) }
                }
                #[inline(always)]
                unsafe fn sqrt(a: __m512) -> __m512 {
                    unsafe { _mm512_sqrt_ps(a) }
                }
                #[inline(always)]
                unsafe fn round(a: __m512) -> __m512 {
                    unsafe { _mm512_roundscale_ps::<0>(a) }
                }
                #[inline(always)]
                unsafe fn exp2i(n: __m512) -> __m512 {
                    unsafe { _mm512_scalef_ps(_mm512_set1_ps(1.0), n) }
                }
                #[inline(always)]
                unsafe fn swap_pairs(a: __m512) -> __m512 {
                    unsafe { _mm512_permute_ps::<0b10_11_00_01>(a) }
                }
                #[inline(always)]
                unsafe fn sum(a: __m512) -> f32 {
                    unsafe { _mm512_reduce_add_ps(a) }
                }
                #[inline(always)]
                unsafe fn max_lane(a: __m512) -> f32 {
                    unsafe { _mm512_reduce_max_ps(a) }
                }
                #[inline(always)]
                unsafe fn dot_i16(acc: __m512, a: __m512, b: __m512) -> __m512 {
                    unsafe {
                        let products = _mm512_madd_epi16(_mm512_castps_si512(a), _mm512_castps_si512(b));
                        _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(acc), products))
                    }
                }
                #[inline(always)]
                unsafe fn add_i32(a: __m512, b: __m512) -> __m512 {
                    unsafe { _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(a), _mm512_castps_si512(b))) }
                }
                #[inline(always)]
                unsafe fn mul_i32(a: __m512, b: __m512) -> __m512 {
                    unsafe { _mm512_castsi512_ps(_mm512_mullo_epi32(_mm512_castps_si512(a), _mm512_castps_si512(b))) }
                }
                #[inline(always)]
                unsafe fn float_i32(a: __m512) -> __m512 {
                    unsafe { _mm512_cvtepi32_ps(_mm512_castps_si512(a)) }
                }
                #[inline(always)]
                unsafe fn flush_exp(x: __m512, scaled: __m512) -> __m512 {
                    unsafe {
                        let under = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(x, _mm512_set1_ps(-87.336_54));
                        let over = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(x, _mm512_set1_ps(88.722_83));
                        let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x, x);
                        let e = _mm512_maskz_mov_ps(!under, scaled);
                        let e = _mm512_mask_mov_ps(e, over, _mm512_set1_ps(f32::INFINITY));
                        _mm512_mask_mov_ps(e, nan, x)
                    }
                }
                $($extra)*
            }
        };
    }

    avx512!(
        /// AVX-512 F, BW, DQ, VL: sixteen lanes.
        Avx512,
        #[inline(always)]
        unsafe fn store_bf16(p: *mut bf16, v: __m512) {
            unsafe {
                let bits = _mm512_castps_si512(v);
                let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
                let rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
                let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(v, v);
                let quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x0040_0000));
                let top = _mm512_srli_epi32::<16>(_mm512_mask_mov_epi32(rounded, nan, quiet));
                _mm256_storeu_si256(p as *mut __m256i, _mm512_cvtepi32_epi16(top));
            }
        }
    );

    avx512!(
        /// AVX-512 with BF16 and VNNI dot products, and VBMI2.
        Avx512Bf16,
        const BF16_DOT: bool = true;
        const VNNI: bool = true;
        #[inline(always)]
        unsafe fn dot_u8_i8(acc: __m512, a: __m512, b: __m512) -> __m512 {
            unsafe {
                let sums = _mm512_dpbusd_epi32(_mm512_castps_si512(acc), _mm512_castps_si512(a), _mm512_castps_si512(b));
                _mm512_castsi512_ps(sums)
            }
        }
        // Not vcvtneps2bf16, which flushes subnormals: storage keeps them on every level.
        #[inline(always)]
        unsafe fn store_bf16(p: *mut bf16, v: __m512) {
            unsafe { Avx512::store_bf16(p, v) }
        }
        #[inline(always)]
        unsafe fn dot_bf16(acc: __m512, a: __m512, b: __m512) -> __m512 {
            unsafe { _mm512_dpbf16_ps(acc, std::mem::transmute::<__m512, __m512bh>(a), std::mem::transmute::<__m512, __m512bh>(b)) }
        }
    );
}
#[cfg(target_arch = "x86_64")]
pub use x86::{Avx2, Avx512, Avx512Bf16};

/// Defines `fn $name(level, args...)` that runs the generic `$kernel::<S>` compiled for the level:
///
/// ```text
/// dispatch!(fn softmax_rows(x: View, out: View) => softmax_rows_on);
/// ```
///
/// The kernel is `#[inline(always)] unsafe fn softmax_rows_on<S: Simd>(x: View, out: View)`. Types that it takes besides
/// follow the name as `<T: Trait>`, numbers after them as in `<T: Trait; R>`. A closure that it hands on
/// must itself be inlined, or it is compiled without the level's instructions: call the dispatched function inside the
/// pool's task, not the pool inside the dispatched function.
#[macro_export]
macro_rules! dispatch {
    ($vis:vis fn $name:ident $(<$($g:ident : $bound:path),* $(; $($c:ident),*)?>)? ($($arg:ident : $type:ty),* $(,)?) $(-> $ret:ty)? => $kernel:ident) => {
        /// Runs the kernel at a level.
        ///
        /// # Safety
        /// The CPU has the level; pointers are as the kernel says.
        #[allow(clippy::too_many_arguments)]
        $vis unsafe fn $name $(<$($g: $bound),* $($(, const $c: usize)*)?>)? (level: $crate::level::Level, $($arg: $type),*) $(-> $ret)? {
            use $crate::level::Level;
            #[cfg(target_arch = "x86_64")]
            #[allow(clippy::too_many_arguments)]
            #[target_feature(enable = "avx2,fma,f16c")]
            unsafe fn avx2 $(<$($g: $bound),* $($(, const $c: usize)*)?>)? ($($arg: $type),*) $(-> $ret)? {
                unsafe { $kernel::<$crate::simd::Avx2 $($(, $g)* $($(, $c)*)?)?>($($arg),*) }
            }
            #[cfg(target_arch = "x86_64")]
            #[allow(clippy::too_many_arguments)]
            #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
            unsafe fn avx512 $(<$($g: $bound),* $($(, const $c: usize)*)?>)? ($($arg: $type),*) $(-> $ret)? {
                unsafe { $kernel::<$crate::simd::Avx512 $($(, $g)* $($(, $c)*)?)?>($($arg),*) }
            }
            #[cfg(target_arch = "x86_64")]
            #[allow(clippy::too_many_arguments)]
            #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx512vnni,avx512vbmi2")]
            unsafe fn avx512_bf16 $(<$($g: $bound),* $($(, const $c: usize)*)?>)? ($($arg: $type),*) $(-> $ret)? {
                unsafe { $kernel::<$crate::simd::Avx512Bf16 $($(, $g)* $($(, $c)*)?)?>($($arg),*) }
            }
            // Apart, or it is inlined wherever the function is called.
            #[inline(never)]
            #[allow(clippy::too_many_arguments)]
            unsafe fn portable $(<$($g: $bound),* $($(, const $c: usize)*)?>)? ($($arg: $type),*) $(-> $ret)? {
                unsafe { $kernel::<$crate::simd::Portable $($(, $g)* $($(, $c)*)?)?>($($arg),*) }
            }
            unsafe {
                match level {
                    #[cfg(target_arch = "x86_64")]
                    Level::Avx2 => avx2 $(::<$($g),* $($(, $c)*)?>)? ($($arg),*),
                    #[cfg(target_arch = "x86_64")]
                    Level::Avx512 => avx512 $(::<$($g),* $($(, $c)*)?>)? ($($arg),*),
                    #[cfg(target_arch = "x86_64")]
                    Level::Avx512Bf16 => avx512_bf16 $(::<$($g),* $($(, $c)*)?>)? ($($arg),*),
                    _ => portable $(::<$($g),* $($(, $c)*)?>)? ($($arg),*),
                }
            }
        }
    };
}
