// The part of CUDA's execution model and runtime that denoise's kernels use, on the host: what g++ includes in place of
// the toolkit's header of this name. Each thread of a block is a fiber, so that barriers and warp shuffles wait as they
// do on a device; blocks run one after another. Device memory is the host's, so that an address sanitizer sees it.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <type_traits>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __shared__ static thread_local

struct uint3 {
    unsigned x, y, z;
};

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

namespace emulated {

/// Where the fiber that runs now stands; the scheduler sets it.
struct Place {
    uint3 thread, block;
    dim3 threads, blocks;
    unsigned char* shared;
};
extern thread_local Place place;

/// Waits for all threads of the block.
void block_barrier();
/// Hands in a word and waits for all lanes of the warp; gives their words. They stand until the next but one exchange.
const uint64_t* warp_exchange(uint64_t word);

/// Hands in what a lane has of an instruction of the whole warp, and waits for all 32: the last to come runs `together`
/// over what each handed in, in the order of lanes.
void warp_together(void* mine, void (*together)(void* const* lanes));

/// Ends the kernel with an error: it did what no device takes.
[[noreturn]] void fail(const char* what);

/// Begins a copy into shared memory of `bytes`, of which `given` are read and the others are zero. Until it is waited for
/// nothing useful stands there: neither what did before, nor what will.
void copy_async(void* to, const void* from, unsigned bytes, unsigned given);
/// Ends a group of copies of this thread.
void copy_commit();
/// Waits for all groups of this thread's copies but the last few.
void copy_wait(unsigned last);

/// Does something of the host's now, or adds it to the graph that the stream is captured into.
void enqueue(struct Stream* stream, std::function<void()> work);

/// Lets other threads go on, for one that waits for what it can only look at.
void give_way();
/// Says that something is no longer as it was, or was waited for and came: who gives way looks again.
void has_changed();
/// Does something once no thread can go on without it; in every other block, at once.
void later(std::function<void()> transfer);
/// Arrives at a numbered barrier of so many threads, and waits for them or does not.
void numbered_barrier(unsigned number, unsigned threads, bool waits);
/// Of the products that a warp begins, which are made when they are waited for, in every other block at once: called once
/// for all lanes, as their warp meets.
void begin_product(std::function<void()> product);
/// Without it, after products were waited for, others may not see what registers hold.
void fence_products();
void commit_products();
void wait_for_products(unsigned last);

/// Runs a kernel now, or adds it to the graph that the stream is captured into.
void launch(struct Stream* stream, dim3 blocks, dim3 threads, size_t shared, std::function<void()> body);

template <class T> T shuffle(T value, int lane) {
    static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>, "a shuffle moves at most 64 bits");
    uint64_t word = 0;
    std::memcpy(&word, &value, sizeof(T));
    word = warp_exchange(word)[lane & 31];
    std::memcpy(&value, &word, sizeof(T));
    return value;
}

inline int lane() {
    const unsigned index = (place.thread.z * place.threads.y + place.thread.y) * place.threads.x + place.thread.x;
    return int(index % 32);
}

} // namespace emulated

#define threadIdx (emulated::place.thread)
#define blockIdx (emulated::place.block)
#define blockDim (emulated::place.threads)
#define gridDim (emulated::place.blocks)

inline void __syncthreads() { emulated::block_barrier(); }
inline void __syncwarp() { emulated::warp_exchange(0); }
template <class T> T __shfl_sync(unsigned, T value, int lane) { return emulated::shuffle(value, lane); }
template <class T> T __shfl_xor_sync(unsigned, T value, int mask) {
    return emulated::shuffle(value, emulated::lane() ^ mask);
}

inline unsigned __float_as_uint(float x) {
    unsigned bits;
    std::memcpy(&bits, &x, 4);
    return bits;
}
inline float __uint_as_float(unsigned bits) {
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
}

/// Four bytes of eight, each named by four bits.
inline unsigned __byte_perm(unsigned low, unsigned high, unsigned places) {
    const uint64_t both = uint64_t(high) << 32 | low;
    unsigned bytes = 0;
    for (int i = 0; i < 4; i++) bytes |= unsigned(both >> (8 * (places >> (4 * i) & 7)) & 255) << (8 * i);
    return bytes;
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
    return unsigned((uint64_t(high) << 32 | low) >> (shift & 31));
}
/// A sum and the products of four signed bytes each; it wraps around.
inline int __dp4a(int a, int b, int sum) {
    for (int i = 0; i < 32; i += 8) sum = int(unsigned(sum) + unsigned(int8_t(a >> i) * int8_t(b >> i)));
    return sum;
}

// Blocks run one after another and fibers change only where they wait, so that plain operations are atomic.
template <class T> T atomicMax(T* address, T value) {
    const T old = *address;
    if (value > old) *address = value;
    return old;
}
template <class T> T atomicCAS(T* address, T expected, T value) {
    const T old = *address;
    if (old == expected) *address = value;
    return old;
}

// The runtime's functions, of which streams are in order and done when a call returns.

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorMemoryAllocation = 2, cudaErrorNoDevice = 100 };
enum cudaMemcpyKind { cudaMemcpyHostToDevice = 1, cudaMemcpyDeviceToHost = 2, cudaMemcpyDeviceToDevice = 3 };
enum cudaStreamCaptureMode { cudaStreamCaptureModeThreadLocal = 1 };
constexpr unsigned cudaStreamNonBlocking = 1;
constexpr unsigned cudaEventDisableTiming = 2;

struct cudaDeviceProp {
    char name[256];
    size_t totalGlobalMem;
    size_t sharedMemPerBlockOptin;
    int major, minor;
    int multiProcessorCount;
    int l2CacheSize;
};

struct cudaFuncAttributes {
    int binaryVersion;
};

enum cudaMemPoolAttr { cudaMemPoolAttrReleaseThreshold = 4 };

using cudaStream_t = emulated::Stream*;
using cudaMemPool_t = struct emulated_pool*;
using cudaEvent_t = struct emulated_event*;
using cudaGraph_t = struct emulated_graph*;
using cudaGraphExec_t = struct emulated_graph*;

const char* cudaGetErrorString(cudaError_t error);
cudaError_t cudaGetLastError();
cudaError_t cudaGetDeviceCount(int* count);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device);
cudaError_t cudaMemGetInfo(size_t* free, size_t* total);
cudaError_t cudaMalloc(void** memory, size_t bytes);
cudaError_t cudaFree(void* memory);
cudaError_t cudaMallocAsync(void** memory, size_t bytes, cudaStream_t stream);
cudaError_t cudaFreeAsync(void* memory, cudaStream_t stream);
cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t* pool, int device);
cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t pool, cudaMemPoolAttr attribute, void* value);
cudaError_t cudaMemPoolTrimTo(cudaMemPool_t pool, size_t bytes);
cudaError_t cudaDeviceGraphMemTrim(int device);
cudaError_t cudaMallocHost(void** memory, size_t bytes);
cudaError_t cudaFreeHost(void* memory);
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream);
cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t stream);
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags);
cudaError_t cudaStreamDestroy(cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags);
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode);
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph);
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long flags);
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream);
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec);
cudaError_t cudaGraphDestroy(cudaGraph_t graph);
cudaError_t cudaEventCreate(cudaEvent_t* event);
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags);
cudaError_t cudaEventDestroy(cudaEvent_t event);
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream);
cudaError_t cudaEventSynchronize(cudaEvent_t event);
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t from, cudaEvent_t to);
