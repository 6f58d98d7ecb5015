//! Vectors of codes: quantized weights widened as they are loaded, and input rounded as it is stored, for every level.

use crate::dispatch;
use crate::level::Level;
use crate::schema::{DType, Format};
#[cfg(target_arch = "x86_64")]
use crate::simd::{Avx2, Avx512, Avx512Bf16};
use crate::simd::{Element, Portable, Simd};
use half::{bf16, f16};

/// A vector that is loaded from, and stored to, narrower types than f32, and whose lanes can be integers.
#[allow(clippy::missing_safety_doc)]
pub trait Narrow: Simd {
    /// A lane for each code, as a float.
    unsafe fn load_i8(p: *const i8) -> Self::V;
    unsafe fn load_e4m3(p: *const u8) -> Self::V;
    unsafe fn load_e5m2(p: *const u8) -> Self::V;
    /// Two codes in each lane, as i16.
    unsafe fn load_pairs(p: *const i8) -> Self::V;
    /// Each lane of -128 to 127 to the nearest integer, ties to even, as i16.
    unsafe fn store_i16(p: *mut i16, v: Self::V);
    /// The same plus 128, as u8.
    unsafe fn store_offset(p: *mut u8, v: Self::V);
    /// a - b, i32, as floats.
    unsafe fn difference(a: Self::V, b: Self::V) -> Self::V;
    /// The sum of i32 lanes, wrapping.
    unsafe fn sum_i32(a: Self::V) -> i32;
}

/// What a weight is loaded from, one lane each.
#[allow(clippy::missing_safety_doc)]
pub trait Load: Copy + Send + Sync + 'static {
    unsafe fn load<S: Narrow>(p: *const Self) -> S::V;
}

impl<E: Element> Load for E {
    #[inline(always)]
    unsafe fn load<S: Narrow>(p: *const E) -> S::V {
        unsafe { <E as Element>::load::<S>(p) }
    }
}

macro_rules! stored_code {
    ($(#[$doc:meta])* $name:ident($type:ty), $load:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy)]
        #[repr(transparent)]
        pub struct $name($type);

        impl Load for $name {
            #[inline(always)]
            unsafe fn load<S: Narrow>(p: *const $name) -> S::V {
                unsafe { S::$load(p as *const $type) }
            }
        }
    };
}
stored_code!(
    /// A code of int8.
    I8(i8), load_i8
);
stored_code!(
    /// A code of fp8 e4m3fn.
    E4m3(u8), load_e4m3
);
stored_code!(
    /// A code of fp8 e5m2.
    E5m2(u8), load_e5m2
);

/// Decodes `n` codes, a multiple of the lanes, of int8 or one of the fp8 formats, to a float dtype, in any of which all
/// their values are exact.
///
/// # Safety
/// The CPU has the level; codes can be read and values written.
pub unsafe fn decode(level: Level, format: Format, codes: *const u8, n: usize, dtype: DType, to: *mut u8) {
    unsafe {
        match dtype {
            DType::F32 => decode_to::<f32>(level, format, codes, n, to as *mut f32),
            DType::BF16 => decode_to::<bf16>(level, format, codes, n, to as *mut bf16),
            _ => decode_to::<f16>(level, format, codes, n, to as *mut f16),
        }
    }
}

dispatch!(fn decode_to<E: Element>(format: Format, codes: *const u8, n: usize, to: *mut E) => decode_to_on);

#[inline(always)]
unsafe fn decode_to_on<S: Narrow, E: Element>(format: Format, codes: *const u8, n: usize, to: *mut E) {
    unsafe {
        match format {
            Format::E4m3 => decode_as::<S, E, E4m3>(codes as *const E4m3, n, to),
            Format::E5m2 => decode_as::<S, E, E5m2>(codes as *const E5m2, n, to),
            _ => decode_as::<S, E, I8>(codes as *const I8, n, to),
        }
    }
}

#[inline(always)]
unsafe fn decode_as<S: Narrow, E: Element, L: Load>(codes: *const L, n: usize, to: *mut E) {
    for i in (0..n).step_by(S::LANES) {
        unsafe { E::store::<S>(to.add(i), L::load::<S>(codes.add(i))) };
    }
}

/// e4m3's bits as those of an f16 that is 2^8 times smaller, which NaN is not.
const E4M3_UNIT: f32 = 256.0;

impl Narrow for Portable {
    #[inline(always)]
    unsafe fn load_i8(p: *const i8) -> Self::V {
        std::array::from_fn(|i| unsafe { *p.add(i) } as f32)
    }
    #[inline(always)]
    unsafe fn load_e4m3(p: *const u8) -> Self::V {
        std::array::from_fn(|i| crate::quant::e4m3(unsafe { *p.add(i) }))
    }
    #[inline(always)]
    unsafe fn load_e5m2(p: *const u8) -> Self::V {
        std::array::from_fn(|i| crate::quant::e5m2(unsafe { *p.add(i) }))
    }
    #[inline(always)]
    unsafe fn load_pairs(p: *const i8) -> Self::V {
        std::array::from_fn(|i| {
            let [low, high] = [0, 1].map(|j| unsafe { *p.add(2 * i + j) } as i16 as u16 as u32);
            f32::from_bits(low | high << 16)
        })
    }
    #[inline(always)]
    unsafe fn store_i16(p: *mut i16, v: Self::V) {
        let rounded = unsafe { Self::round(v) };
        (0..Self::LANES).for_each(|i| unsafe { *p.add(i) = rounded[i] as i16 });
    }
    #[inline(always)]
    unsafe fn store_offset(p: *mut u8, v: Self::V) {
        let rounded = unsafe { Self::round(v) };
        (0..Self::LANES).for_each(|i| unsafe { *p.add(i) = (rounded[i] as i32 + 128) as u8 });
    }
    #[inline(always)]
    unsafe fn difference(a: Self::V, b: Self::V) -> Self::V {
        std::array::from_fn(|i| (a[i].to_bits() as i32).wrapping_sub(b[i].to_bits() as i32) as f32)
    }
    #[inline(always)]
    unsafe fn sum_i32(a: Self::V) -> i32 {
        a.iter().fold(0, |sum, lane| sum.wrapping_add(lane.to_bits() as i32))
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{Avx2, Avx512, Avx512Bf16, E4M3_UNIT, Narrow};
    use std::arch::x86_64::*;

    impl Narrow for Avx2 {
        #[inline(always)]
        unsafe fn load_i8(p: *const i8) -> __m256 {
            unsafe { _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(p as *const __m128i))) }
        }
        #[inline(always)]
        unsafe fn load_e4m3(p: *const u8) -> __m256 {
            unsafe {
                let codes = _mm_cvtepu8_epi16(_mm_loadl_epi64(p as *const __m128i));
                let magnitude = _mm_and_si128(codes, _mm_set1_epi16(0x7f));
                let sign = _mm_slli_epi16::<8>(_mm_andnot_si128(_mm_set1_epi16(0x7f), codes));
                let nan = _mm_and_si128(_mm_cmpeq_epi16(magnitude, _mm_set1_epi16(0x7f)), _mm_set1_epi16(0x7e00));
                let bits = _mm_or_si128(_mm_or_si128(sign, _mm_slli_epi16::<7>(magnitude)), nan);
                _mm256_mul_ps(_mm256_cvtph_ps(bits), _mm256_set1_ps(E4M3_UNIT))
            }
        }
        #[inline(always)]
        unsafe fn load_e5m2(p: *const u8) -> __m256 {
            unsafe {
                let codes = _mm_cvtepu8_epi16(_mm_loadl_epi64(p as *const __m128i));
                _mm256_cvtph_ps(_mm_slli_epi16::<8>(codes))
            }
        }
        #[inline(always)]
        unsafe fn load_pairs(p: *const i8) -> __m256 {
            unsafe { _mm256_castsi256_ps(_mm256_cvtepi8_epi16(_mm_loadu_si128(p as *const __m128i))) }
        }
        #[inline(always)]
        unsafe fn store_i16(p: *mut i16, v: __m256) {
            unsafe {
                let wide = _mm256_cvtps_epi32(v);
                let narrow = _mm_packs_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256::<1>(wide));
                _mm_storeu_si128(p as *mut __m128i, narrow);
            }
        }
        #[inline(always)]
        unsafe fn store_offset(p: *mut u8, v: __m256) {
            unsafe {
                let wide = _mm256_cvtps_epi32(v);
                let narrow = _mm_packs_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256::<1>(wide));
                let bytes = _mm_packs_epi16(narrow, narrow);
                _mm_storel_epi64(p as *mut __m128i, _mm_xor_si128(bytes, _mm_set1_epi8(i8::MIN)));
            }
        }
        #[inline(always)]
        unsafe fn difference(a: __m256, b: __m256) -> __m256 {
            unsafe { _mm256_cvtepi32_ps(_mm256_sub_epi32(_mm256_castps_si256(a), _mm256_castps_si256(b))) }
        }
        #[inline(always)]
        unsafe fn sum_i32(a: __m256) -> i32 {
            unsafe {
                let a = _mm256_castps_si256(a);
                let q = _mm_add_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256::<1>(a));
                let d = _mm_add_epi32(q, _mm_shuffle_epi32::<0b10_11>(q));
                _mm_cvtsi128_si32(_mm_add_epi32(d, _mm_shuffle_epi32::<1>(d)))
            }
        }
    }

    macro_rules! avx512 {
        ($name:ident) => {
            impl Narrow for $name {
                #[inline(always)]
                unsafe fn load_i8(p: *const i8) -> __m512 {
                    unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(p as *const __m128i))) }
                }
                #[inline(always)]
                unsafe fn load_e4m3(p: *const u8) -> __m512 {
                    unsafe {
                        let codes = _mm256_cvtepu8_epi16(_mm_loadu_si128(p as *const __m128i));
                        let low = _mm256_set1_epi16(0x7f);
                        let magnitude = _mm256_and_si256(codes, low);
                        let sign = _mm256_slli_epi16::<8>(_mm256_andnot_si256(low, codes));
                        let nan = _mm256_cmpeq_epi16_mask(magnitude, low);
                        let bits = _mm256_or_si256(sign, _mm256_slli_epi16::<7>(magnitude));
                        let bits = _mm256_mask_mov_epi16(bits, nan, _mm256_set1_epi16(0x7e00));
                        _mm512_mul_ps(_mm512_cvtph_ps(bits), _mm512_set1_ps(E4M3_UNIT))
                    }
                }
                #[inline(always)]
                unsafe fn load_e5m2(p: *const u8) -> __m512 {
                    unsafe {
                        let codes = _mm256_cvtepu8_epi16(_mm_loadu_si128(p as *const __m128i));
                        _mm512_cvtph_ps(_mm256_slli_epi16::<8>(codes))
                    }
                }
                #[inline(always)]
                unsafe fn load_pairs(p: *const i8) -> __m512 {
                    unsafe { _mm512_castsi512_ps(_mm512_cvtepi8_epi16(_mm256_loadu_si256(p as *const __m256i))) }
                }
                #[inline(always)]
                unsafe fn store_i16(p: *mut i16, v: __m512) {
                    unsafe { _mm256_storeu_si256(p as *mut __m256i, _mm512_cvtsepi32_epi16(_mm512_cvtps_epi32(v))) }
                }
                #[inline(always)]
                unsafe fn store_offset(p: *mut u8, v: __m512) {
                    unsafe {
                        let bytes = _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(v));
                        _mm_storeu_si128(p as *mut __m128i, _mm_xor_si128(bytes, _mm_set1_epi8(i8::MIN)));
                    }
                }
                #[inline(always)]
                unsafe fn difference(a: __m512, b: __m512) -> __m512 {
                    unsafe { _mm512_cvtepi32_ps(_mm512_sub_epi32(_mm512_castps_si512(a), _mm512_castps_si512(b))) }
                }
                #[inline(always)]
                unsafe fn sum_i32(a: __m512) -> i32 {
                    unsafe { _mm512_reduce_add_epi32(_mm512_castps_si512(a)) }
                }
            }
        };
    }

    avx512!(Avx512);
    avx512!(Avx512Bf16);
}
