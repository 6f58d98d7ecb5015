// What brings operands to tensor cores and takes results on, beside the instructions of mma.cuh: fragments from shared
// memory, two floats to a register, and powers of 2.
#pragma once

#include "mma.cuh"

namespace denoise {

/// Four matrices (8, 8) of 16-bit elements: lane 8 i + j names row j of matrix i, 16 bytes in shared memory at a multiple
/// of 16. Of each, lane l gets elements 2 (l % 4) and the next of row l / 4, or transposed, of column l / 4.
template <bool TRANSPOSED> __device__ inline void load_matrices(uint32_t (&words)[4], const void* row) {
#ifdef __CUDACC__
    const auto at = uint32_t(__cvta_generic_to_shared(row));
    if constexpr (TRANSPOSED) {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                     : "r"(at)
                     : "memory");
    } else {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                     : "r"(at)
                     : "memory");
    }
#else
    const uint64_t* rows = emulated::warp_exchange(reinterpret_cast<uint64_t>(row));
    const int pair = emulated::lane() % 4 * 2, line = emulated::lane() / 4;
    for (int i = 0; i < 4; i++) {
        const auto element = [&](int row, int column) {
            return uint32_t(reinterpret_cast<const Pack<uint16_t, 8>*>(rows[8 * i + row])->v[column]);
        };
        words[i] = TRANSPOSED ? element(pair, line) | element(pair + 1, line) << 16
                              : element(line, pair) | element(line, pair + 1) << 16;
    }
#endif
}

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
