// The C ABI of the CUDA library: what the core (kernels/src/cuda.rs) opens at run time.
//
// The library runs the same programs as the CPU's kernels. The core reads and checks a program, lays out its arena and
// hands each instruction to the entry of its op, `denoise_cuda_op_<name>`: the operands as views (address, element type,
// sizes, strides) and the parameters' words, in the order of the schema (schema.h, generated from lib/graph/schema.ts).
// What an operand may be was checked by the core; an entry refuses only what it has no kernel for, and whatever the data
// is, it touches nothing outside its operands. Work is queued on the device's one stream of work: an entry returns at
// once, and `denoise_cuda_synchronize` waits and gives the error that only the data could show.
//
// An op with the parameter `variant` has a second entry, `denoise_cuda_ways_<name>`, that queues nothing and names the
// ways in which a call can be run, a line for each: the first is the library's guess, and what a variant beyond them
// means. Which there are follows from the operands (of whose addresses only the alignment counts), the device, and the
// libraries that are installed, so a name, not a number, is what can be remembered from one process to the next.
//
// Each function gives 0 or an error's code, the core's (kernels/src/error.rs), with its sentence in `error`. All may be
// called from any thread, for one device by one thread at a time.
//
// The sources are CUDA C++ and, over the shim of emulated/, plain C++20: nvcc builds libdenoise_cuda.so, g++ builds
// libdenoise_cuda_emulated.so, which runs every kernel thread by thread on the host. What needs instructions that only a
// device has (tensor cores) stands behind the seam of gemm.cuh: there the emulated library takes the plain tiles, with
// the same epilogue (epilogue.cuh), a scalar function of sum, row and column.
#pragma once

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/// An error: code and sentence.
typedef struct {
    int32_t code;
    char message[508];
} DenoiseError;

/// A strided view of device memory; `data` is null where an optional operand is absent.
typedef struct {
    void* data;
    uint32_t dtype;
    uint32_t rank;
    /// Outermost first.
    uint64_t sizes[8];
    /// In elements; 0 where an axis is broadcast.
    uint64_t strides[8];
} DenoiseOperand;

/// A device with its streams.
typedef struct DenoiseDevice DenoiseDevice;
/// A captured sequence of calls.
typedef struct DenoiseGraph DenoiseGraph;

/// The schema that the library was built from.
void denoise_cuda_schema(uint32_t hash[2]);
/// Opens a device by its number.
int32_t denoise_cuda_open(int32_t ordinal, DenoiseDevice** device, DenoiseError* error);
void denoise_cuda_close(DenoiseDevice* device);
/// What tells it from other devices, in lines: name, architecture, bytes of its last cache, what libraries it uses.
int32_t denoise_cuda_describe(DenoiseDevice* device, char* text, uint32_t length, DenoiseError* error);
/// Zeroed memory.
int32_t denoise_cuda_allocate(DenoiseDevice* device, uint64_t bytes, void** memory, DenoiseError* error);
void denoise_cuda_free(DenoiseDevice* device, void* memory);
/// Copies in from the host, mapped files among it, by pinned buffers in turn; when it returns, `from` is read, and work
/// that is queued then finds the copy.
int32_t denoise_cuda_upload(DenoiseDevice* device, void* to, const void* from, uint64_t bytes, DenoiseError* error);
/// Copies out to the host, after all work.
int32_t denoise_cuda_download(DenoiseDevice* device, void* to, const void* from, uint64_t bytes, DenoiseError* error);
/// Queues a copy within the device's memory.
int32_t denoise_cuda_duplicate(DenoiseDevice* device, void* to, const void* from, uint64_t bytes, DenoiseError* error);
/// Waits for all work; an error where the data of a call was wrong.
int32_t denoise_cuda_synchronize(DenoiseDevice* device, DenoiseError* error);
/// Begins to keep calls instead of running them.
int32_t denoise_cuda_capture(DenoiseDevice* device, DenoiseError* error);
/// Ends it and gives what was kept; with no `graph` it is dropped.
int32_t denoise_cuda_captured(DenoiseDevice* device, DenoiseGraph** graph, DenoiseError* error);
int32_t denoise_cuda_replay(DenoiseDevice* device, DenoiseGraph* graph, DenoiseError* error);
void denoise_cuda_forget(DenoiseDevice* device, DenoiseGraph* graph);
/// Holds the stream of work for about as long as it takes to queue so many kernels with marks.
int32_t denoise_cuda_hold(DenoiseDevice* device, uint32_t kernels, DenoiseError* error);
/// Marks a place in the stream of work: the first of a series with 0, and so on.
int32_t denoise_cuda_mark(DenoiseDevice* device, uint32_t index, DenoiseError* error);
/// Seconds between mark `index` and the next, after `denoise_cuda_synchronize`.
int32_t denoise_cuda_seconds(DenoiseDevice* device, uint32_t index, double* seconds, DenoiseError* error);

#ifdef __cplusplus
}
#endif
