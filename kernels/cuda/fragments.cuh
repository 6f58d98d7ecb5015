// What becomes of fragments between two products: powers of 2, and two floats to a register.
#pragma once

#include "mma.cuh"

namespace denoise {

/// Two floats, rounded, in a register, the first in its lower half.
template <class T> __device__ inline uint32_t pack_pair(float low, float high) {
#ifdef __CUDACC__
    uint32_t word;
    if constexpr (std::is_same_v<T, bf16>) asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
    else asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
    return word;
#else
    return uint32_t(narrow<T>(low).bits) | uint32_t(narrow<T>(high).bits) << 16;
#endif
}

/// 2 to the power of x within 2 units in the last place; below the smallest normal number, 0.
__device__ inline float fast_exp2(float x) {
#ifdef __CUDACC__
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#else
    return exp2f(x);
#endif
}

/// Keeps what follows from a number from being computed ahead of a loop, where registers are few.
__device__ inline void keep_in_loop(int& number) {
#ifdef __CUDACC__
    asm volatile("" : "+r"(number));
#else
    (void)number;
#endif
}

} // namespace denoise
