// Element types: 16-bit floats as their bits, fp8 and smaller floats, and what rounds to them. The same functions on a
// device and on the host, but for the conversions that a device has instructions for.
#pragma once

#include "device.cuh"

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

namespace denoise {

struct bf16 {
    uint16_t bits;
};

struct f16 {
    uint16_t bits;
};

__device__ inline float widen(float x) { return x; }
__device__ inline float widen(bf16 x) { return __uint_as_float(unsigned(x.bits) << 16); }
__device__ inline float widen(f16 x) {
#ifdef __CUDACC__
    return __half2float(__ushort_as_half(x.bits));
#else
    const unsigned sign = unsigned(x.bits & 0x8000) << 16, rest = x.bits & 0x7fff;
    if (rest >= 0x7c00) return __uint_as_float(sign | 0x7f800000 | (rest & 0x3ff) << 13);
    // Subnormals too: the product is exact.
    return __uint_as_float(sign | __float_as_uint(__uint_as_float(rest << 13) * 0x1p112f));
#endif
}
__device__ inline float widen(int32_t x) { return float(x); }
__device__ inline float widen(uint8_t x) { return float(x); }
__device__ inline float widen(int8_t x) { return float(x); }

/// A float in another type, rounded to nearest even.
template <class T> __device__ T narrow(float x);
template <> __device__ inline float narrow<float>(float x) { return x; }
template <> __device__ inline bf16 narrow<bf16>(float x) {
#ifdef __CUDACC__
    return bf16{__bfloat16_as_ushort(__float2bfloat16_rn(x))};
#else
    const unsigned bits = __float_as_uint(x);
    if (x != x) return bf16{uint16_t(bits >> 16 | 0x40)};
    return bf16{uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
#endif
}
template <> __device__ inline f16 narrow<f16>(float x) {
#ifdef __CUDACC__
    return f16{__half_as_ushort(__float2half_rn(x))};
#else
    const unsigned all = __float_as_uint(x), sign = all >> 16 & 0x8000, bits = all & 0x7fffffff;
    if (bits > 0x7f800000) return f16{uint16_t(sign | 0x7e00)};
    if (bits >= 0x477ff000) return f16{uint16_t(sign | 0x7c00)};
    // Adding a half leaves a subnormal's code in the lowest bits.
    if (bits < 0x38800000) return f16{uint16_t(sign | (__float_as_uint(__uint_as_float(bits) + 0.5f) - 0x3f000000))};
    return f16{uint16_t(sign | (bits + 0xfff + (bits >> 13 & 1) - 0x38000000) >> 13)};
#endif
}

/// A number rounded to a float type.
__device__ inline float round_to(schema::DType dtype, float x) {
    switch (dtype) {
    case schema::DType::bf16: return widen(narrow<bf16>(x));
    case schema::DType::f16: return widen(narrow<f16>(x));
    default: return x;
    }
}

/// Runs `body` with a zero of the float type that a dtype names.
template <class Body> void with_float(schema::DType dtype, Body body) {
    switch (dtype) {
    case schema::DType::f32: return body(float{});
    case schema::DType::bf16: return body(bf16{});
    case schema::DType::f16: return body(f16{});
    default: throw Failure{Code::bad_program, "A kernel of floats got another element type"};
    }
}

/// V elements that are read or written at once.
template <class T, int V> struct alignas(sizeof(T) * V) Pack {
    T v[V];
};

/// How many elements a thread reads at once, where they lie so.
template <class T> constexpr int VECTOR = 16 / int(sizeof(T));

__device__ inline bool is_finite(float x) { return (__float_as_uint(x) & 0x7fffffff) < 0x7f800000; }
__device__ inline bool is_nan(float x) { return (__float_as_uint(x) & 0x7fffffff) > 0x7f800000; }
__device__ inline float not_a_number() { return __uint_as_float(0x7fc00000); }

/// A small float's shape.
struct Small {
    int ebits, mbits;
    /// The largest magnitude.
    float largest;
    /// Whether NaN has a code, of all ones but the sign; else it becomes the largest magnitude.
    bool nan;

    __host__ __device__ int bias() const { return (1 << (ebits - 1)) - 1; }
};

/// The value of a code of a sign, `ebits` and `mbits`, of which every one is finite.
__device__ inline float small_value(int ebits, int mbits, unsigned code) {
    const int bias = (1 << (ebits - 1)) - 1;
    const unsigned magnitude = code & ((1u << (ebits + mbits)) - 1);
    // The bits where f32 has exponent and mantissa; the factor makes up for the bias, and is exact for subnormals too.
    const float unit = __uint_as_float(unsigned(127 + 127 - bias) << 23);
    const float value = __uint_as_float(magnitude << (23 - mbits)) * unit;
    return code >> (ebits + mbits) & 1 ? -value : value;
}

__device__ inline float e4m3_value(uint8_t code) {
    return (code & 0x7f) == 0x7f ? not_a_number() : small_value(4, 3, code);
}

__device__ inline float e5m2_value(uint8_t code) { return widen(f16{uint16_t(code << 8)}); }

/// The code of the small float nearest to a number, ties to the even code; beyond the largest that one.
__device__ inline uint8_t small_code(const Small& small, float x) {
    const unsigned sign = __float_as_uint(x) >> 31 << (small.ebits + small.mbits);
    if (is_nan(x) && small.nan) return uint8_t(sign | 0x7f);
    const float magnitude = fabsf(x) < small.largest ? fabsf(x) : small.largest;
    const unsigned bits = __float_as_uint(magnitude);
    const int bias = small.bias(), drop = 23 - small.mbits;
    if (bits < unsigned(128 - bias) << 23) {
        // Adding it leaves a subnormal's code in the lowest bits.
        const float magic = __uint_as_float(unsigned(127 + 23 + 1 - bias - small.mbits) << 23);
        return uint8_t(sign | (__float_as_uint(magnitude + magic) - __float_as_uint(magic)));
    }
    const unsigned half = (1u << (drop - 1)) - 1 + (bits >> drop & 1);
    return uint8_t(sign | (bits + half - (unsigned(127 - bias) << 23)) >> drop);
}

inline Small e4m3_small() { return {4, 3, 448.0f, true}; }
inline Small e5m2_small() { return {5, 2, 57344.0f, true}; }

} // namespace denoise
