// Devices, memory, streams, marks and graphs: the C ABI but for the ops.

#include "cublaslt.cuh"

#include <algorithm>
#include <cstring>
#include <thread>

using namespace denoise;

namespace {

/// Half of the pinned memory of copies.
constexpr size_t PIECE = 8 << 20;
/// Threads that fill it: one alone neither reads a mapped file in nor copies as fast as a bus takes.
constexpr size_t COPIERS = 4;
/// What is worth a thread.
constexpr size_t THREADED = 1 << 20;

/// Runs a body with the device current, as another thread's may be.
template <class Body> int32_t on(DenoiseDevice* device, DenoiseError* error, Body body) {
    return guarded(error, [&] {
        check(cudaSetDevice(device->ordinal), "The device");
        body();
    });
}

[[noreturn]] void unavailable(const std::string& message) { throw Failure{Code::unavailable, message}; }

std::string architecture(const cudaDeviceProp& properties) {
    return "sm_" + std::to_string(properties.major) + std::to_string(properties.minor);
}

/// Copies within the host's memory.
void copy_host(unsigned char* to, const unsigned char* from, size_t bytes) {
    const size_t share = std::max(THREADED, size_t(round_up(int64_t(ceil_div(int64_t(bytes), COPIERS)), 4096)));
    std::vector<std::jthread> others;
    for (size_t at = share; at < bytes; at += share) {
        others.emplace_back([=] { std::memcpy(to + at, from + at, std::min(share, bytes - at)); });
    }
    std::memcpy(to, from, std::min(share, bytes));
}

/// Has one stream wait for what is queued on another.
void wait_for(const DenoiseDevice& device, cudaStream_t waiting, cudaStream_t other) {
    check(cudaEventRecord(device.turn, other), "A stream's turn");
    check(cudaStreamWaitEvent(waiting, device.turn, 0), "A stream's turn");
}

#ifdef __CUDACC__
/// Does nothing for some nanoseconds.
__global__ void hold_kernel(unsigned long long nanoseconds) {
    unsigned long long start, now;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(start));
    do {
        __nanosleep(1000);
        asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
    } while (now - start < nanoseconds);
}

/// What is asked for to see whether there is code for a device.
__global__ void probe_kernel() {}
#endif

/// Refuses a device that the library was not built for.
void check_architecture(const DenoiseDevice& device) {
#ifdef __CUDACC__
    cudaFuncAttributes attributes;
    const cudaError_t error = cudaFuncGetAttributes(&attributes, probe_kernel);
    cudaGetLastError();
    if (error == cudaSuccess) return;
    const std::string name = architecture(device.properties);
    unavailable("The CUDA library has no kernels for " + std::string(device.properties.name) + " (" + name +
                "): build them with `deno task build:cuda --arch " + name + "`");
#else
    (void)device;
#endif
}

} // namespace

extern "C" {

void denoise_cuda_schema(uint32_t hash[2]) { std::memcpy(hash, schema::HASH, sizeof(schema::HASH)); }

int32_t denoise_cuda_open(int32_t ordinal, DenoiseDevice** opened, DenoiseError* error) {
    return guarded(error, [&] {
        int count = 0;
        const cudaError_t found = cudaGetDeviceCount(&count);
        if (found != cudaSuccess) unavailable(std::string("There is no CUDA driver or device: ") + cudaGetErrorString(found));
        if (ordinal < 0 || ordinal >= count) {
            unavailable("There is no device cuda:" + std::to_string(ordinal) + ": this machine has " +
                        std::to_string(count));
        }
        auto* device = new DenoiseDevice;
        const auto close = [&] { denoise_cuda_close(device); };
        try {
            device->ordinal = ordinal;
            check(cudaSetDevice(ordinal), "The device");
            check(cudaGetDeviceProperties(&device->properties, ordinal), "The device's properties");
            check_architecture(*device);
            check(cudaStreamCreateWithFlags(&device->work, cudaStreamNonBlocking), "A stream");
            check(cudaStreamCreateWithFlags(&device->copies, cudaStreamNonBlocking), "A stream");
            void* memory;
            check(cudaMalloc(&memory, sizeof(Complaint) + 64), "Memory");
            device->complaint = static_cast<Complaint*>(memory);
            device->words = reinterpret_cast<unsigned*>(static_cast<unsigned char*>(memory) + sizeof(Complaint));
            check(cudaMemsetAsync(memory, 0, sizeof(Complaint) + 64, device->work), "Memory");
            check(cudaMallocHost(&memory, 2 * PIECE), "Pinned memory");
            device->pinned = static_cast<unsigned char*>(memory);
            for (cudaEvent_t* event : {&device->pinned_free[0], &device->pinned_free[1], &device->turn}) {
                check(cudaEventCreateWithFlags(event, cudaEventDisableTiming), "An event");
            }
            // What a call frees, the next one is to find again.
            cudaMemPool_t pool;
            uint64_t all = UINT64_MAX;
            check(cudaDeviceGetDefaultMemPool(&pool, ordinal), "Memory");
            check(cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &all), "Memory");
        } catch (...) {
            close();
            throw;
        }
        *opened = device;
    });
}

void denoise_cuda_close(DenoiseDevice* device) {
    if (cudaSetDevice(device->ordinal) == cudaSuccess) {
        if (device->work) cudaStreamSynchronize(device->work);
        for (cudaEvent_t mark : device->marks) cudaEventDestroy(mark);
        for (cudaEvent_t event : {device->pinned_free[0], device->pinned_free[1], device->turn}) {
            if (event) cudaEventDestroy(event);
        }
        if (device->pinned) cudaFreeHost(device->pinned);
        if (device->complaint) cudaFree(device->complaint);
        if (device->copies) cudaStreamDestroy(device->copies);
        if (device->work) cudaStreamDestroy(device->work);
    }
    delete device;
}

int32_t denoise_cuda_describe(DenoiseDevice* device, char* text, uint32_t length, DenoiseError* error) {
    return on(device, error, [&] {
        const cudaDeviceProp& properties = device->properties;
        write_text(std::string(properties.name) + "\n" + architecture(properties) + "\n" +
                       std::to_string(properties.l2CacheSize) + "\n" + cublaslt_version() + "\n",
                   text, length);
    });
}

int32_t denoise_cuda_allocate(DenoiseDevice* device, uint64_t bytes, void** memory, DenoiseError* error) {
    return on(device, error, [&] {
        *memory = nullptr;
        const size_t size = std::max<uint64_t>(bytes, 1);
        if (cudaMalloc(memory, size) != cudaSuccess) {
            trim_memory(*device);
            if (cudaMalloc(memory, size) != cudaSuccess) refuse_memory(*device, bytes);
        }
        check(cudaMemsetAsync(*memory, 0, size, device->work), "Memory");
    });
}

void denoise_cuda_free(DenoiseDevice* device, void* memory) {
    // Work that was queued may still use it; cudaFree waits for that.
    if (cudaSetDevice(device->ordinal) == cudaSuccess) cudaFree(memory);
}

int32_t denoise_cuda_upload(DenoiseDevice* device, void* to, const void* from, uint64_t bytes, DenoiseError* error) {
    return on(device, error, [&] {
        // What is overwritten may still be read.
        wait_for(*device, device->copies, device->work);
        for (uint64_t done = 0, piece = 0; done < bytes; done += PIECE, piece++) {
            const size_t size = size_t(std::min<uint64_t>(PIECE, bytes - done)), half = piece % 2;
            unsigned char* pinned = device->pinned + half * PIECE;
            // While this half is filled from the host, the other is on its way.
            check(cudaEventSynchronize(device->pinned_free[half]), "A copy");
            copy_host(pinned, static_cast<const unsigned char*>(from) + done, size);
            check(cudaMemcpyAsync(static_cast<unsigned char*>(to) + done, pinned, size, cudaMemcpyHostToDevice,
                                  device->copies),
                  "A copy");
            check(cudaEventRecord(device->pinned_free[half], device->copies), "A copy");
        }
        wait_for(*device, device->work, device->copies);
    });
}

int32_t denoise_cuda_download(DenoiseDevice* device, void* to, const void* from, uint64_t bytes, DenoiseError* error) {
    return on(device, error, [&] {
        for (uint64_t done = 0; done < bytes; done += PIECE) {
            const size_t size = size_t(std::min<uint64_t>(PIECE, bytes - done));
            const auto* source = static_cast<const unsigned char*>(from) + done;
            check(cudaMemcpyAsync(device->pinned, source, size, cudaMemcpyDeviceToHost, device->work), "A copy");
            check(cudaStreamSynchronize(device->work), "A copy");
            copy_host(static_cast<unsigned char*>(to) + done, device->pinned, size);
        }
    });
}

int32_t denoise_cuda_duplicate(DenoiseDevice* device, void* to, const void* from, uint64_t bytes, DenoiseError* error) {
    return on(device, error, [&] {
        check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, device->work), "A copy");
    });
}

int32_t denoise_cuda_synchronize(DenoiseDevice* device, DenoiseError* error) {
    return on(device, error, [&] {
        auto* complaint = reinterpret_cast<Complaint*>(device->pinned);
        check(cudaMemcpyAsync(complaint, device->complaint, sizeof(Complaint), cudaMemcpyDeviceToHost, device->work),
              "The work");
        check(cudaStreamSynchronize(device->work), "The work");
        if (complaint->found == 0) return;
        check(cudaMemsetAsync(device->complaint, 0, sizeof(Complaint), device->work), "The work");
        throw Failure{Code::bad_value, "Id " + std::to_string(complaint->id) + " at place " +
                                           std::to_string(complaint->place) + " is outside a table of " +
                                           std::to_string(complaint->rows) + " rows"};
    });
}

int32_t denoise_cuda_capture(DenoiseDevice* device, DenoiseError* error) {
    return on(device, error, [&] {
        check(cudaStreamBeginCapture(device->work, cudaStreamCaptureModeThreadLocal), "A graph");
    });
}

int32_t denoise_cuda_captured(DenoiseDevice* device, DenoiseGraph** graph, DenoiseError* error) {
    return on(device, error, [&] {
        cudaGraph_t captured = nullptr;
        check(cudaStreamEndCapture(device->work, &captured), "A graph");
        cudaGraphExec_t exec = nullptr;
        const cudaError_t made = graph ? cudaGraphInstantiate(&exec, captured, 0) : cudaSuccess;
        cudaGraphDestroy(captured);
        check(made, "A graph");
        if (graph) *graph = reinterpret_cast<DenoiseGraph*>(exec);
    });
}

int32_t denoise_cuda_replay(DenoiseDevice* device, DenoiseGraph* graph, DenoiseError* error) {
    return on(device, error, [&] {
        check(cudaGraphLaunch(reinterpret_cast<cudaGraphExec_t>(graph), device->work), "A graph");
    });
}

void denoise_cuda_forget(DenoiseDevice* device, DenoiseGraph* graph) {
    if (cudaSetDevice(device->ordinal) == cudaSuccess) cudaGraphExecDestroy(reinterpret_cast<cudaGraphExec_t>(graph));
}

int32_t denoise_cuda_hold(DenoiseDevice* device, uint32_t kernels, DenoiseError* error) {
    return on(device, error, [&] {
#ifdef __CUDACC__
        hold_kernel<<<1, 1, 0, device->work>>>(20000ull * kernels);
        check(cudaGetLastError(), "A kernel's launch");
#else
        (void)kernels;
#endif
    });
}

int32_t denoise_cuda_mark(DenoiseDevice* device, uint32_t index, DenoiseError* error) {
    return on(device, error, [&] {
        while (device->marks.size() <= index) {
            cudaEvent_t mark;
            check(cudaEventCreate(&mark), "An event");
            device->marks.push_back(mark);
        }
        check(cudaEventRecord(device->marks[index], device->work), "An event");
    });
}

int32_t denoise_cuda_seconds(DenoiseDevice* device, uint32_t index, double* seconds, DenoiseError* error) {
    return on(device, error, [&] {
        if (index + size_t(1) >= device->marks.size()) throw Failure{Code::bad_argument, "There is no such mark"};
        float milliseconds = 0;
        check(cudaEventElapsedTime(&milliseconds, device->marks[index], device->marks[index + 1]), "An event");
        *seconds = double(milliseconds) / 1000;
    });
}

} // extern "C"
