// What host code of the library shares: errors, devices, calls of ops and how a kernel is launched.
#pragma once

#include "denoise_cuda.h"
#include "schema.h"

#include <cuda_runtime.h>

#include <cstdio>
#include <cstring>
#include <exception>
#include <functional>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

namespace denoise {

/// The core's codes of errors.
enum class Code : int32_t {
    bad_program = 1,
    bad_argument = 3,
    bad_value = 4,
    out_of_memory = 5,
    internal = 8,
    unavailable = 10,
};

/// An error on its way to the C ABI.
struct Failure {
    Code code;
    std::string message;
};

/// Throws what a call of the runtime gave.
inline void check(cudaError_t error, const char* what) {
    if (error == cudaSuccess) return;
    const Code code = error == cudaErrorMemoryAllocation ? Code::out_of_memory : Code::internal;
    throw Failure{code, std::string(what) + ": " + cudaGetErrorString(error)};
}

/// Runs a body and turns what it throws into an error of the C ABI.
template <class Body> int32_t guarded(DenoiseError* error, Body body) {
    Code code;
    std::string message;
    try {
        body();
        return 0;
    } catch (const Failure& failure) {
        code = failure.code;
        message = failure.message;
    } catch (const std::exception& exception) {
        code = Code::internal;
        message = exception.what();
    }
    error->code = int32_t(code);
    std::snprintf(error->message, sizeof(error->message), "%s", message.c_str());
    return error->code;
}

/// Writes a text with the zero that ends it.
inline void write_text(const std::string& text, char* out, uint32_t length) {
    if (text.size() >= length) throw Failure{Code::bad_argument, "There is no room for " + std::to_string(text.size()) + " bytes"};
    std::memcpy(out, text.c_str(), text.size() + 1);
}

/// cuBLASLt with what is known of a device: see cublaslt.cuh.
struct Cublaslt;

/// What a kernel finds wrong in the data: the first id outside a table, with its place; read when the stream is waited for.
struct Complaint {
    unsigned found;
    int id;
    unsigned long long place, rows;
};

} // namespace denoise

struct DenoiseDevice {
    int ordinal = 0;
    cudaDeviceProp properties{};
    cudaStream_t work = nullptr, copies = nullptr;
    /// Where kernels complain, in device memory.
    denoise::Complaint* complaint = nullptr;
    /// Words that a kernel of one call leaves for the next of the same.
    unsigned* words = nullptr;
    /// Pinned memory of copies, two halves used in turn, and what says that one is free again.
    unsigned char* pinned = nullptr;
    cudaEvent_t pinned_free[2] = {};
    /// Where one stream waits for the other.
    cudaEvent_t turn = nullptr;
    std::vector<cudaEvent_t> marks;
    /// Opened when it is first asked for.
    std::shared_ptr<denoise::Cublaslt> cublaslt;
};

namespace denoise {

/// A view that kernels take by value.
struct View {
    void* data;
    schema::DType dtype;
    int rank;
    int64_t sizes[8];
    int64_t strides[8];

    __host__ __device__ int64_t size(int axis_from_last) const {
        const int axis = rank - 1 - axis_from_last;
        return axis < 0 ? 1 : sizes[axis];
    }
    __host__ __device__ int64_t stride(int axis_from_last) const {
        const int axis = rank - 1 - axis_from_last;
        return axis < 0 ? 0 : strides[axis];
    }
    /// The size of the last axis, 1 for a scalar.
    __host__ __device__ int64_t last() const { return size(0); }
    /// How many elements.
    __host__ __device__ int64_t length() const {
        int64_t n = 1;
        for (int axis = 0; axis < rank; axis++) n *= sizes[axis];
        return n;
    }
    /// How many rows of the last axis.
    __host__ __device__ int64_t rows() const {
        int64_t n = 1;
        for (int axis = 0; axis + 1 < rank; axis++) n *= sizes[axis];
        return n;
    }
    __host__ __device__ bool present() const { return data != nullptr; }
    template <class T> __host__ __device__ T* as() const { return static_cast<T*>(data); }
};

/// Refuses a packed weight whose address is no multiple of what is read of it at a time, in bytes.
inline void check_aligned(const View& packed, size_t bytes) {
    if (reinterpret_cast<uintptr_t>(packed.data) % bytes == 0) return;
    throw Failure{Code::bad_argument, "A packed weight lies at an odd address"};
}

/// One instruction: its operands and parameters, in the schema's order.
struct Call {
    DenoiseDevice& device;
    const DenoiseOperand* operands;
    const uint32_t* params;

    View view(int index) const {
        const DenoiseOperand& o = operands[index];
        View view{o.data, schema::DType(o.dtype), int(o.rank), {}, {}};
        for (int axis = 0; axis < 8; axis++) {
            view.sizes[axis] = int64_t(o.sizes[axis]);
            view.strides[axis] = int64_t(o.strides[axis]);
        }
        return view;
    }
    /// The view broadcast to another's shape, as numpy does; absent where it is.
    View broadcast(int index, const View& to) const {
        const View from = view(index);
        View view{from.data, from.dtype, to.rank, {}, {}};
        const int lead = to.rank - from.rank;
        for (int axis = 0; axis < to.rank; axis++) {
            view.sizes[axis] = to.sizes[axis];
            if (axis >= lead && from.sizes[axis - lead] == to.sizes[axis]) view.strides[axis] = from.strides[axis - lead];
        }
        return view;
    }
    int32_t i32(int index) const { return int32_t(params[index]); }
    float f32(int index) const {
        float value;
        static_assert(sizeof(value) == sizeof(params[index]), "a parameter is a word");
        __builtin_memcpy(&value, &params[index], sizeof(value));
        return value;
    }
};

/// Gives memory back that was freed, but is kept for what comes next.
inline void trim_memory(const DenoiseDevice& device) {
    cudaMemPool_t pool;
    cudaStreamSynchronize(device.work);
    if (cudaDeviceGetDefaultMemPool(&pool, device.ordinal) == cudaSuccess) cudaMemPoolTrimTo(pool, 0);
    cudaDeviceGraphMemTrim(device.ordinal);
    cudaGetLastError();
}

[[noreturn]] inline void refuse_memory(const DenoiseDevice& device, uint64_t bytes) {
    cudaGetLastError();
    size_t free = 0, total = 0;
    cudaMemGetInfo(&free, &total);
    throw Failure{Code::out_of_memory, "Cannot allocate " + std::to_string(bytes) + " bytes on " +
                                           device.properties.name + ", where " + std::to_string(free) + " of " +
                                           std::to_string(total) +
                                           " are free: run with a smaller batch or size, in tiles, or quantized"};
}

/// Memory of a call's own for as long as what is queued while this lives; where calls are captured, it is the graph's.
class Scratch {
  public:
    Scratch(const Call& call, size_t bytes) : stream(call.device.work) {
        if (bytes == 0) return;
        const cudaError_t error = cudaMallocAsync(&memory, bytes, stream);
        if (error == cudaErrorMemoryAllocation) refuse_memory(call.device, bytes);
        check(error, "Memory of a call");
    }
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;
    ~Scratch() {
        if (memory) cudaFreeAsync(memory, stream);
    }
    /// Null where there are no bytes; aligned as all device memory is.
    void* data() const { return memory; }

  private:
    cudaStream_t stream;
    void* memory = nullptr;
};

/// A way to run a call, by the name that tunings remember it by.
struct Way {
    std::string name;
    std::function<void()> run;
};

/// The ways to run a call, the best guess first; none where there is nothing to do.
using Ways = std::vector<Way>;

/// Runs a way by its number; one that is not there is the first.
inline void run_way(const Ways& ways, uint32_t variant) {
    if (!ways.empty()) ways[variant < ways.size() ? variant : 0].run();
}

inline std::string names_of(const Ways& ways) {
    std::string names;
    for (const Way& way : ways) names += way.name + "\n";
    return names;
}

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

/// A size as kernels count it, which is in 32 bits.
inline uint32_t count32(int64_t count) {
    if (count > INT32_MAX) {
        throw Failure{Code::bad_argument, "A CUDA kernel counts to 2147483647, got " + std::to_string(count) +
                                              ": cut the batch"};
    }
    return uint32_t(count);
}

/// The most blocks of an axis that is not the first.
constexpr int64_t MOST_BLOCKS = 65535;

/// How many blocks of the first axis, which a device counts in 31 bits.
inline unsigned blocks_of(int64_t count) {
    if (count > INT32_MAX) throw Failure{Code::bad_argument, "A kernel of more than 2147483647 blocks: cut the batch"};
    return unsigned(count);
}

/// Queues a kernel on the stream of work; of no blocks, nothing.
template <class... Params, class... Args>
void launch(const Call& call, void (*kernel)(Params...), dim3 blocks, dim3 threads, size_t shared, Args... args) {
    if (blocks.x == 0 || blocks.y == 0 || blocks.z == 0) return;
#ifdef __CUDACC__
    // Beyond what every device allows, a kernel has to ask.
    if (shared > 48 << 10) {
        check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared)), "Shared memory");
    }
    kernel<<<blocks, threads, shared, call.device.work>>>(Params(args)...);
    check(cudaGetLastError(), "A kernel's launch");
#else
    const std::tuple<Params...> given{Params(args)...};
    emulated::launch(call.device.work, blocks, threads, shared, [=] { std::apply(kernel, given); });
#endif
}

/// The shared memory that a launch asked for.
template <class T> __device__ T* dynamic_shared() {
#ifdef __CUDACC__
    extern __shared__ __align__(1024) unsigned char memory[];
    return reinterpret_cast<T*>(memory);
#else
    return reinterpret_cast<T*>(emulated::place.shared);
#endif
}

} // namespace denoise

/// Says how much shared memory launches of a kernel ask for at most, in bytes: tests hold it to what devices have.
#define DENOISE_SHARED(kernel, bytes) extern "C" const unsigned denoise_cuda_shared_##kernel = bytes

/// Defines the C entry of an op; its body follows, with `call` and the op's names of operands and parameters.
#define DENOISE_OP(name)                                                                                               \
    namespace denoise {                                                                                                \
    static void op_##name(const Call& call);                                                                           \
    }                                                                                                                  \
    extern "C" int32_t denoise_cuda_op_##name(DenoiseDevice* device, const DenoiseOperand* operands,                   \
                                              const uint32_t* params, DenoiseError* error) {                           \
        return denoise::guarded(error, [&] {                                                                           \
            denoise::check(cudaSetDevice(device->ordinal), "The device");                                              \
            denoise::op_##name(denoise::Call{*device, operands, params});                                              \
        });                                                                                                            \
    }                                                                                                                  \
    static void denoise::op_##name(const Call& call)

/// Defines the C entries of an op that can be run in several ways. Its body, with `call` as above, adds them to `ways`,
/// the best guess first, and queues nothing itself: what runs a way is called while `call` lives.
#define DENOISE_WAYS(name)                                                                                             \
    namespace denoise {                                                                                                \
    static void ways_##name(const Call& call, Ways& ways);                                                             \
    }                                                                                                                  \
    extern "C" int32_t denoise_cuda_ways_##name(DenoiseDevice* device, const DenoiseOperand* operands,                 \
                                                const uint32_t* params, char* names, uint32_t length,                  \
                                                DenoiseError* error) {                                                 \
        return denoise::guarded(error, [&] {                                                                           \
            denoise::check(cudaSetDevice(device->ordinal), "The device");                                              \
            denoise::Ways ways;                                                                                        \
            denoise::ways_##name(denoise::Call{*device, operands, params}, ways);                                      \
            denoise::write_text(denoise::names_of(ways), names, length);                                               \
        });                                                                                                            \
    }                                                                                                                  \
    DENOISE_OP(name) {                                                                                                 \
        Ways ways;                                                                                                     \
        ways_##name(call, ways);                                                                                       \
        run_way(ways, call.params[schema::name::param_variant]);                                                       \
    }                                                                                                                  \
    static void denoise::ways_##name(const Call& call, Ways& ways)
