// Instructions of tensor cores and of asynchronous copies, one function each: a device's own from sm_80 on, on a host
// those of emulated/mma.h.
//
// A warp multiplies A (16, K) by B (K, 8) onto C (16, 8), K of 32 bytes. Lane l holds, with g = l / 4 and t = l % 4, of A
// four registers: bytes 4 t to 4 t + 3 of row g and of row g + 8, then bytes 16 + 4 t on of both; of B the same bytes of
// column g in two; of C columns 2 t and 2 t + 1 of row g, then of row g + 8.
#pragma once

#include "weight.cuh"

#ifdef __CUDACC__
#define DENOISE_UNROLL _Pragma("unroll")
#define DENOISE_ROLLED _Pragma("unroll 1")
#else
#define DENOISE_UNROLL
#define DENOISE_ROLLED
#endif

namespace denoise {

__device__ inline float multiply_add(float sum, float a, float b) { return sum + a * b; }
/// Wraps around, as the zero point of a row may be any number.
__device__ inline int32_t multiply_add(int32_t sum, int32_t a, int32_t b) {
    return int32_t(uint32_t(sum) + uint32_t(a) * uint32_t(b));
}

} // namespace denoise

#ifndef __CUDACC__
#include "mma.h"
#endif

namespace denoise {

/// c += a b, of two bf16 or f16 in a register.
template <class T> __device__ void mma_half(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#ifdef __CUDACC__
    if constexpr (std::is_same_v<T, bf16>) {
        asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    } else {
        asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    }
#else
    emulated::mma<emulated::Half<T>>(c, a, b);
#endif
}

/// c += a b, of four signed bytes in a register; sums wrap around.
__device__ inline void mma_int8(int32_t (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#ifdef __CUDACC__
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    emulated::mma<emulated::Signed>(c, a, b);
#endif
}

/// Reads four matrices of eight rows of 16 bytes, of which lanes 8 i to 8 i + 7 name the rows of the i-th: of each a lane
/// gets the four bytes that it has of an operand, or transposed, of matrices (8, 8) of 16 bits, two of its column.
template <bool TRANSPOSED = false> __device__ void load_matrices(uint32_t (&words)[4], const uint8_t* row) {
#ifdef __CUDACC__
    const unsigned at = unsigned(__cvta_generic_to_shared(row));
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
    emulated::load_matrices<TRANSPOSED>(words, row);
#endif
}

/// The products of two 16-bit floats each, added to two others, rounded once.
template <class T> __device__ uint32_t multiply_add2(uint32_t a, uint32_t b, uint32_t c) {
#ifdef __CUDACC__
    uint32_t sum;
    if constexpr (std::is_same_v<T, bf16>) asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(sum) : "r"(a), "r"(b), "r"(c));
    else asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(sum) : "r"(a), "r"(b), "r"(c));
    return sum;
#else
    uint32_t sums = 0;
    for (int shift = 0; shift < 32; shift += 16) {
        const auto half = [&](uint32_t pair) { return widen(T{uint16_t(pair >> shift)}); };
        sums |= uint32_t(narrow<T>(std::fma(half(a), half(b), half(c))).bits) << shift;
    }
    return sums;
#endif
}

/// Begins to copy BYTES (4 or 16) into shared memory, zeros instead where they are not wanted: nothing is read then.
template <int BYTES> __device__ void copy_async(void* to, const void* from, bool wanted) {
    static_assert(BYTES == 4 || BYTES == 16, "a copy is of a word or of four");
    const int given = wanted ? BYTES : 0;
#ifdef __CUDACC__
    const unsigned at = unsigned(__cvta_generic_to_shared(to));
    if constexpr (BYTES == 16) {
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(at), "l"(from), "r"(given) : "memory");
    } else {
        asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(at), "l"(from), "r"(given) : "memory");
    }
#else
    emulated::copy_async(to, from, BYTES, unsigned(given));
#endif
}

/// Ends a group of copies, which may be of none.
__device__ inline void copy_commit() {
#ifdef __CUDACC__
    asm volatile("cp.async.commit_group;" ::: "memory");
#else
    emulated::copy_commit();
#endif
}

/// Waits for all groups of this thread's copies but the last few.
template <int LAST> __device__ void copy_wait() {
#ifdef __CUDACC__
    asm volatile("cp.async.wait_group %0;" ::"n"(LAST) : "memory");
#else
    emulated::copy_wait(LAST);
#endif
}

} // namespace denoise
