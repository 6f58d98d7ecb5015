// Instructions of Hopper (sm_90a): products of a warpgroup whose operands lie in shared memory, barriers there that count
// bytes, and copies by tensor maps. Thin wrappers of PTX; the host has what emulated/hopper.h makes of them.
//
// Matrices of 16-bit elements lie in panels of 64 columns: a row of 128 bytes after the other, at a multiple of 1024 bytes,
// and of every 8 rows the chunks of 16 bytes have changed places: chunk c of row r stands at c ^ r % 8 (what PTX calls the
// 128-byte swizzle). Copies write them so and products read them so.
#pragma once

#include "mma.cuh"

#ifdef __CUDACC__
#include <cuda.h>
#else
#include "emulated/hopper.h"
#endif

/// Whether code is made for a device that has these instructions, or for the host that has them emulated.
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define DENOISE_HOPPER 1
#else
#define DENOISE_HOPPER 0
#endif

namespace denoise {

/// Columns and bytes of a panel's row.
constexpr int PANEL = 64, PANEL_BYTES = 128;

/// The address of shared memory by which instructions know it.
__device__ inline uint32_t shared_address(const void* shared) {
#ifdef __CUDACC__
    return uint32_t(__cvta_generic_to_shared(shared));
#else
    return emulated::shared_address(shared);
#endif
}

/// Describes an operand of a product. Its 8 by 64 elements of a panel, 1024 bytes, are `next` bytes from those of the next
/// 8 rows, and where a panel's columns are rows of the product, `across` bytes from those of the next panel.
__device__ inline uint64_t describe(const void* first, uint32_t next, uint32_t across) {
    constexpr uint64_t SWIZZLE_128 = 1;
    return SWIZZLE_128 << 62 | uint64_t(next >> 4) << 32 | uint64_t(across >> 4) << 16 | (shared_address(first) & 0x3ffff) >> 4;
}

/// The same some bytes further on.
__device__ inline uint64_t further(uint64_t description, uint32_t bytes) { return description + (bytes >> 4); }

#ifdef __CUDACC__
#define DENOISE_SUMS(i) "+f"(sums[i][0]), "+f"(sums[i][1]), "+f"(sums[i][2]), "+f"(sums[i][3])
#define DENOISE_SUMS_8(i)                                                                                              \
    DENOISE_SUMS(i), DENOISE_SUMS(i + 1), DENOISE_SUMS(i + 2), DENOISE_SUMS(i + 3), DENOISE_SUMS(i + 4),               \
        DENOISE_SUMS(i + 5), DENOISE_SUMS(i + 6), DENOISE_SUMS(i + 7)
#define DENOISE_WGMMA_128(TYPES)                                                                                       \
    asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, %66, 0;\n"                                                      \
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32." TYPES " "                                              \
                 "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                             \
                 "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "                    \
                 "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "                    \
                 "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "                   \
                 "%64, %65, add, 1, 1, 0, 0;\n}"                                                                       \
                 : DENOISE_SUMS_8(0), DENOISE_SUMS_8(8)                                                                \
                 : "l"(a), "l"(b), "r"(int(add)))
#define DENOISE_WGMMA_64_REGISTERS(TYPES)                                                                              \
    asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, %37, 0;\n"                                                      \
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32." TYPES " "                                               \
                 "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                             \
                 "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "                   \
                 "{%32, %33, %34, %35}, %36, add, 1, 1, 1;\n}"                                                          \
                 : DENOISE_SUMS_8(0)                                                                                   \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(1))
#define DENOISE_WGMMA_128_REGISTERS(TYPES)                                                                             \
    asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, %69, 0;\n"                                                      \
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32." TYPES " "                                              \
                 "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                             \
                 "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "                    \
                 "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "                    \
                 "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "                   \
                 "{%64, %65, %66, %67}, %68, add, 1, 1, 1;\n}"                                                          \
                 : DENOISE_SUMS_8(0), DENOISE_SUMS_8(8)                                                                \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(1))
#endif

// Fragments of a warpgroup's sums (64, 8 N): warp w % 4 has rows 16 (w % 4) on, as of mma (mma.cuh). Products run beside what
// follows: neither sums nor operands may be touched until they are waited for.

/// Begins sums (64, 128) = or += a b^T, of matrices (64, 16) and (128, 16) in shared memory.
template <class T> __device__ inline void wgmma(float (&sums)[16][4], uint64_t a, uint64_t b, bool add) {
#ifdef __CUDACC__
    if constexpr (std::is_same_v<T, bf16>) DENOISE_WGMMA_128("bf16.bf16");
    else DENOISE_WGMMA_128("f16.f16");
#else
    emulated::wgmma<T, 16, false>(sums, nullptr, a, b, add);
#endif
}

/// Begins sums (64, 8 N) += a b, of a fragment (64, 16) in registers and a matrix (16, 8 N) in shared memory.
template <class T, int N> __device__ inline void wgmma(float (&sums)[N][4], const uint32_t (&a)[4], uint64_t b) {
    static_assert(N == 8 || N == 16, "products of 64 or 128 columns");
#ifdef __CUDACC__
    if constexpr (std::is_same_v<T, bf16>) {
        if constexpr (N == 8) DENOISE_WGMMA_64_REGISTERS("bf16.bf16");
        else DENOISE_WGMMA_128_REGISTERS("bf16.bf16");
    } else {
        if constexpr (N == 8) DENOISE_WGMMA_64_REGISTERS("f16.f16");
        else DENOISE_WGMMA_128_REGISTERS("f16.f16");
    }
#else
    emulated::wgmma<T, N, true>(sums, a, 0, b, true);
#endif
}

/// Has products that follow see what registers hold now.
__device__ inline void wgmma_fence() {
#ifdef __CUDACC__
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#else
    emulated::wgmma_fence();
#endif
}

/// Makes a group of the products since the last one.
__device__ inline void wgmma_commit() {
#ifdef __CUDACC__
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#else
    emulated::wgmma_commit();
#endif
}

/// Has two numbers computed beside the products that run, and not after the next wait, which the compiler would put first:
/// writes them to shared memory, at a multiple of 8 bytes, where nobody reads them.
__device__ inline void compute_first(void* place, const float (&numbers)[2]) {
#ifdef __CUDACC__
    asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(shared_address(place)), "f"(numbers[0]), "f"(numbers[1]) : "memory");
#else
    (void)place;
    (void)numbers;
#endif
}

/// Waits for all groups of products but the last few; after it, `sums` are what they were to be.
template <int LAST, int N> __device__ inline void wgmma_wait(float (&sums)[N][4]) {
#ifdef __CUDACC__
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(LAST) : "memory");
    DENOISE_UNROLL
    for (int n = 0; n < N; n++) {
        DENOISE_UNROLL
        for (int i = 0; i < 4; i++) asm volatile("" : "+f"(sums[n][i])::"memory");
    }
#else
    (void)sums;
    emulated::wgmma_wait(LAST);
#endif
}

/// A barrier in shared memory: a phase ends when all have arrived and all bytes that were said to come are there.
using Barrier = uint64_t;

__device__ inline void barrier_init(Barrier* barrier, uint32_t arrivals) {
#ifdef __CUDACC__
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
#else
    emulated::barrier_init(barrier, arrivals);
#endif
}

/// Has copies see the barriers that were made; a __syncthreads follows.
__device__ inline void barriers_made() {
#ifdef __CUDACC__
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
}

__device__ inline void barrier_arrive(Barrier* barrier) {
#ifdef __CUDACC__
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
#else
    emulated::barrier_arrive(barrier, 0);
#endif
}

/// Arrives, and says that bytes are to come in this phase.
__device__ inline void barrier_expect(Barrier* barrier, uint32_t bytes) {
#ifdef __CUDACC__
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
                 : "memory");
#else
    emulated::barrier_arrive(barrier, bytes);
#endif
}

/// Waits for the end of the phase of a parity; the phase before the first has parity 1.
__device__ inline void barrier_wait(Barrier* barrier, uint32_t parity) {
#ifdef __CUDACC__
    asm volatile("{\n.reg .pred done;\nWAIT:\nmbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
                 "@!done bra WAIT;\n}" ::"r"(shared_address(barrier)),
                 "r"(parity)
                 : "memory");
#else
    emulated::barrier_wait(barrier, parity);
#endif
}

/// Waits at a numbered barrier until so many threads of whole warps are there, or have said that they need not wait.
__device__ inline void numbered_sync(uint32_t number, uint32_t threads) {
#ifdef __CUDACC__
    asm volatile("bar.sync %0, %1;" ::"r"(number), "r"(threads) : "memory");
#else
    emulated::numbered_barrier(number, threads, true);
#endif
}
__device__ inline void numbered_arrive(uint32_t number, uint32_t threads) {
#ifdef __CUDACC__
    asm volatile("bar.arrive %0, %1;" ::"r"(number), "r"(threads) : "memory");
#else
    emulated::numbered_barrier(number, threads, false);
#endif
}

/// Gives registers of this warpgroup's threads back to the block, or takes them, so that each has REGISTERS.
template <int REGISTERS> __device__ inline void release_registers() {
#ifdef __CUDACC__
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(REGISTERS));
#endif
}
template <int REGISTERS> __device__ inline void take_registers() {
#ifdef __CUDACC__
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(REGISTERS));
#endif
}

#ifdef __CUDACC__
#define DENOISE_GRID_CONSTANT __grid_constant__
using TensorMap = CUtensorMap;
#else
#define DENOISE_GRID_CONSTANT
using TensorMap = emulated::TensorMap;
#endif

/// Begins to copy a box of a map's tensor, from a column, token, head and batch on, into a panel; beyond the tensor it has
/// zeros. All its bytes come to the barrier.
__device__ inline void copy_box(void* panel, const TensorMap& map, uint32_t column, uint32_t token, uint32_t head,
                                uint32_t batch, Barrier* barrier) {
#ifdef __CUDACC__
    asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%3, %4, %5, %6}], [%2];" ::"r"(shared_address(panel)),
                 "l"(&map), "r"(shared_address(barrier)), "r"(column), "r"(token), "r"(head), "r"(batch)
                 : "memory");
#else
    emulated::begin_box(panel, map, column, token, head, batch, barrier);
#endif
}

/// A map of a tensor of 16-bit floats (batch, head, token, D) of a dense last axis, in boxes of a panel's columns and some
/// tokens; false where there is no such map.
inline bool make_map(TensorMap& map, const void* data, schema::DType dtype, const int64_t (&sizes)[4],
                     const int64_t (&strides)[3], uint32_t tokens) {
    constexpr int64_t WORD = 16;
    uint64_t steps[3], counts[4];
    for (int axis = 0; axis < 4; axis++) counts[axis] = uint64_t(sizes[3 - axis]);
    for (int axis = 0; axis < 3; axis++) {
        // The step of an axis of one may be any.
        const int64_t step = sizes[2 - axis] == 1 ? WORD : 2 * strides[2 - axis];
        if (step <= 0 || step % WORD != 0 || step >= int64_t(1) << 40) return false;
        steps[axis] = uint64_t(step);
    }
    for (const uint64_t count : counts) {
        if (count == 0 || count > uint64_t(1) << 32) return false;
    }
    if (reinterpret_cast<uintptr_t>(data) % WORD != 0) return false;
#ifdef __CUDACC__
    // The driver's function is found at run time, so that the library loads without a driver.
    static const auto encode = [] {
        void* found = nullptr;
        cudaDriverEntryPointQueryResult result;
        const cudaError_t error =
            cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &result);
        if (error != cudaSuccess) {
            cudaGetLastError();
            found = nullptr;
        }
        return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(found);
    }();
    const cuuint32_t box[4] = {PANEL, tokens, 1, 1}, each[4] = {1, 1, 1, 1};
    const auto type = dtype == schema::DType::bf16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
    static_assert(sizeof(cuuint64_t) == sizeof(uint64_t), "sizes and steps are words of 64 bits");
    return encode && encode(&map, type, 4, const_cast<void*>(data), reinterpret_cast<cuuint64_t*>(counts),
                            reinterpret_cast<cuuint64_t*>(steps), box, each, CU_TENSOR_MAP_INTERLEAVE_NONE,
                            CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                            CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
#else
    (void)dtype;
    map = {data, {}, {}, tokens};
    for (int axis = 0; axis < 4; axis++) map.sizes[axis] = counts[axis];
    for (int axis = 0; axis < 3; axis++) map.steps[axis] = steps[axis];
    return true;
#endif
}

} // namespace denoise
