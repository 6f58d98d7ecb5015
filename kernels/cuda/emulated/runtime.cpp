// The scheduler of fibers, and the runtime's functions over the host's memory: see cuda_runtime.h of this folder.

#include "cuda_runtime.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <sys/mman.h>
#include <unordered_map>
#include <vector>
#if !defined(__x86_64__)
#include <ucontext.h>
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace emulated {

thread_local Place place;

namespace {

#if defined(__SANITIZE_ADDRESS__)
constexpr size_t STACK = 512 << 10; // instrumented frames are large
#else
constexpr size_t STACK = 64 << 10;
#endif
constexpr unsigned MOST_THREADS = 1024;
constexpr size_t MOST_SHARED = 227 << 10; // of Hopper, for one block

#if defined(__x86_64__)
// Saves what a call preserves and goes on where another stack stopped; a system call for each change, as
// swapcontext makes two, would cost a hundred times as much.
extern "C" void emulated_switch(void** from, void* to);
asm(R"(
.text
.globl emulated_switch
.hidden emulated_switch
.type emulated_switch, @function
emulated_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size emulated_switch, .-emulated_switch
)");
struct Context {
    void* stack = nullptr;
};
void change(Context& from, Context& to) { emulated_switch(&from.stack, to.stack); }
void prepare(Context& context, unsigned char* memory, void (*entry)()) {
    // The stack as `emulated_switch` leaves it, with `entry` as the place to return to and 8 bytes for its alignment.
    auto top = reinterpret_cast<void**>(memory + STACK);
    *--top = nullptr;
    *--top = reinterpret_cast<void*>(entry);
    for (int i = 0; i < 6; i++) *--top = nullptr;
    context.stack = top;
}
#else
struct Context {
    ucontext_t context;
};
void change(Context& from, Context& to) { swapcontext(&from.context, &to.context); }
void prepare(Context& context, unsigned char* memory, void (*entry)()) {
    getcontext(&context.context);
    context.context.uc_stack.ss_sp = memory;
    context.context.uc_stack.ss_size = STACK;
    context.context.uc_link = nullptr;
    makecontext(&context.context, entry, 0);
}
#endif

enum class State : unsigned char { ready, at_block, at_warp, at_number, looking, done };

/// A copy that is under way, and what it brings.
struct Copy {
    unsigned char* to;
    unsigned bytes;
    unsigned char data[16];
};

struct Fiber {
    Context context;
    State state = State::done;
    unsigned turn = 0; // which half of the warp's words is being exchanged
    std::vector<Copy> copies; // under way, in order
    std::vector<size_t> groups; // how many of the copies there were at the end of each group
    unsigned number = 0; // of the barrier that it waits at
    bool looked = false; // whether it only looks again
    void* fake = nullptr; // the address sanitizer's
};

struct Warp {
    unsigned arrived = 0;
    uint64_t words[2][32];
    void* parts[32];
    void (*together)(void* const*) = nullptr; // of the instruction that lanes wait in
    std::vector<std::function<void()>> products; // begun, in order
    std::vector<size_t> product_groups; // how many of them there were at the end of each group
    bool fenced = false;
};

constexpr unsigned NUMBERS = 16; // of barriers

/// All fibers of an operating-system thread, which run one block at a time.
struct Scheduler {
    unsigned char* stacks;
    std::unique_ptr<unsigned char[]> shared{new unsigned char[MOST_SHARED + 1024]};
    std::vector<Fiber> fibers{MOST_THREADS};
    Warp warps[MOST_THREADS / 32];
    Context home;
    const std::function<void()>* body = nullptr;
    const char* fault = nullptr; // what a thread did that no device takes
    unsigned threads = 0, current = 0, arrived = 0, left = 0;
    unsigned arrived_at[NUMBERS] = {}, changes = 0;
    std::vector<std::function<void()>> transfers; // that come when no thread can go on
    bool eager = false; // whether transfers and products are made at once instead
    const void* home_stack = nullptr;
    size_t home_size = 0;

    Scheduler() {
        void* memory = mmap(nullptr, MOST_THREADS * STACK, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (memory == MAP_FAILED) throw std::runtime_error("Cannot get memory for the stacks of a block's threads");
        stacks = static_cast<unsigned char*>(memory);
    }
    ~Scheduler() { munmap(stacks, MOST_THREADS * STACK); }

    void resume(unsigned index, dim3 shape) {
        Fiber& fiber = fibers[index];
        current = index;
        place.thread = {index % shape.x, index / shape.x % shape.y, index / shape.x / shape.y};
#if defined(__SANITIZE_ADDRESS__)
        void* fake;
        __sanitizer_start_switch_fiber(&fake, stacks + index * STACK, STACK);
        change(home, fiber.context);
        __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#else
        change(home, fiber.context);
#endif
    }

    /// Leaves the fiber until the scheduler comes back to it.
    void yield() {
        Fiber& fiber = fibers[current];
#if defined(__SANITIZE_ADDRESS__)
        __sanitizer_start_switch_fiber(&fiber.fake, home_stack, home_size);
        change(fiber.context, home);
        __sanitizer_finish_switch_fiber(fiber.fake, &home_stack, &home_size);
#else
        change(fiber.context, home);
#endif
    }

    /// Ends the launch: the thread that runs is not come back to.
    [[noreturn]] void fail(const char* what) {
        fault = what;
        yield();
        std::abort();
    }

    /// Ends a launch that cannot go on. The stacks are abandoned: what stands there is made anew.
    [[noreturn]] void abandon(const char* what) {
#if defined(__SANITIZE_ADDRESS__)
        // What the functions that are not returned from had forbidden between their variables.
        __asan_unpoison_memory_region(stacks, MOST_THREADS * STACK);
#endif
        for (unsigned i = 0; i < MOST_THREADS; i++) {
            prepare(fibers[i].context, stacks + i * STACK, work);
            fibers[i].copies.clear();
            fibers[i].groups.clear();
        }
        for (Warp& warp : warps) {
            warp.products.clear();
            warp.product_groups.clear();
        }
        transfers.clear();
        fault = nullptr;
        throw std::runtime_error(what);
    }

    /// The warp of the thread that runs, and its lanes.
    Warp& warp(unsigned& first, unsigned& lanes) {
        first = current / 32 * 32;
        lanes = std::min(32u, threads - first);
        return warps[first / 32];
    }

    /// Waits for the lanes of a warp; gives whether this one was the last.
    bool last_of_warp(Warp& warp, unsigned lanes, void (*together)(void* const*)) {
        if (warp.arrived == 0) warp.together = together;
        if (warp.together != together) fail("The lanes of a warp meet in different instructions");
        if (++warp.arrived == lanes) return true;
        fibers[current].state = State::at_warp;
        yield();
        return false;
    }
    void go_on(Warp& warp, unsigned first, unsigned lanes) {
        warp.arrived = 0;
        for (unsigned i = first; i < first + lanes; i++) {
            if (fibers[i].state == State::at_warp) fibers[i].state = State::ready;
        }
    }

    static void work();
    void block(dim3 shape, bool backwards);
};

Scheduler& scheduler() {
    static thread_local Scheduler own;
    return own;
}

/// What a fiber does: the kernel, for one block after another.
void Scheduler::work() {
    Scheduler& s = scheduler();
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(nullptr, &s.home_stack, &s.home_size);
#endif
    for (;;) {
        (*s.body)();
        if (!s.fibers[s.current].copies.empty()) s.fail("A thread ends with copies under way that it did not wait for");
        if (!s.warps[s.current / 32].products.empty()) s.fail("A warp ends with products that it did not wait for");
        s.fibers[s.current].groups.clear();
        s.fibers[s.current].state = State::done;
        s.left--;
        s.yield();
    }
}

void Scheduler::block(dim3 shape, bool backwards) {
    arrived = 0;
    left = threads;
    eager = backwards;
    std::fill(std::begin(arrived_at), std::end(arrived_at), 0);
    const unsigned count = (threads + 31) / 32;
    for (unsigned i = 0; i < count; i++) {
        warps[i].arrived = 0;
        warps[i].fenced = false;
    }
    for (unsigned i = 0; i < threads; i++) {
        fibers[i].state = State::ready;
        fibers[i].turn = 0;
        fibers[i].looked = false;
    }
    while (left > 0) {
        const unsigned before = changes;
        bool moved = false;
        for (unsigned w = 0; w < count; w++) {
            const unsigned warp = backwards ? count - 1 - w : w;
            const unsigned first = 32 * warp, lanes = std::min(32u, threads - first);
            for (unsigned i = first; i < first + lanes; i++) {
                if (fibers[i].state != State::looking) continue;
                fibers[i].state = State::ready;
                fibers[i].looked = true;
            }
            for (bool again = true; again;) {
                again = false;
                for (unsigned i = 0; i < lanes; i++) {
                    const unsigned index = first + (backwards ? lanes - 1 - i : i);
                    if (fibers[index].state != State::ready) continue;
                    moved = moved || !fibers[index].looked;
                    fibers[index].looked = false;
                    resume(index, shape);
                    if (fault) abandon(fault);
                    again = true;
                }
            }
        }
        if (left == 0 || moved || changes != before) continue;
        if (transfers.empty()) {
            abandon("The threads of a block wait for one that never comes: a barrier that only some reach");
        }
        const auto transfer = std::move(transfers.front());
        transfers.erase(transfers.begin());
        transfer();
        if (fault) abandon(fault);
    }
    if (!transfers.empty()) abandon("A block ends with copies under way that nobody waited for");
}

} // namespace

void block_barrier() {
    Scheduler& s = scheduler();
    if (++s.arrived < s.threads) {
        s.fibers[s.current].state = State::at_block;
        s.yield();
        return;
    }
    s.arrived = 0;
    for (unsigned i = 0; i < s.threads; i++) {
        if (s.fibers[i].state == State::at_block) s.fibers[i].state = State::ready;
    }
}

const uint64_t* warp_exchange(uint64_t word) {
    Scheduler& s = scheduler();
    unsigned first, lanes;
    Warp& warp = s.warp(first, lanes);
    Fiber& fiber = s.fibers[s.current];
    uint64_t* words = warp.words[fiber.turn];
    fiber.turn ^= 1;
    words[s.current % 32] = word;
    if (s.last_of_warp(warp, lanes, nullptr)) s.go_on(warp, first, lanes);
    return words;
}

void warp_together(void* mine, void (*together)(void* const*)) {
    Scheduler& s = scheduler();
    unsigned first, lanes;
    Warp& warp = s.warp(first, lanes);
    if (lanes < 32) s.fail("An instruction of a whole warp in one of fewer lanes");
    warp.parts[s.current % 32] = mine;
    if (!s.last_of_warp(warp, lanes, together)) return;
    together(warp.parts);
    s.go_on(warp, first, lanes);
}

void fail(const char* what) { scheduler().fail(what); }

void copy_async(void* to, const void* from, unsigned bytes, unsigned given) {
    Scheduler& s = scheduler();
    const auto shared = reinterpret_cast<uintptr_t>(s.shared.get()), at = reinterpret_cast<uintptr_t>(to);
    if (bytes != 4 && bytes != 8 && bytes != 16) s.fail("An asynchronous copy of other than 4, 8 or 16 bytes");
    if (at % bytes != 0 || (given > 0 && reinterpret_cast<uintptr_t>(from) % bytes != 0)) {
        s.fail("An asynchronous copy at an address that is no multiple of its bytes");
    }
    if (at < shared || at + bytes > shared + MOST_SHARED) s.fail("An asynchronous copy to other than shared memory");
    if (given > bytes) s.fail("An asynchronous copy of more than its bytes");
    Copy copy{static_cast<unsigned char*>(to), bytes, {}};
    if (given > 0) std::memcpy(copy.data, from, given);
    // A device may write at once, or when it is waited for: who counts on either sees this.
    std::memset(to, 0xff, bytes);
    s.fibers[s.current].copies.push_back(copy);
}

void copy_commit() {
    Fiber& fiber = scheduler().fibers[scheduler().current];
    fiber.groups.push_back(fiber.copies.size());
}

void copy_wait(unsigned last) {
    Fiber& fiber = scheduler().fibers[scheduler().current];
    if (fiber.groups.size() <= last) return;
    const size_t whole = fiber.groups.size() - last, done = fiber.groups[whole - 1];
    for (size_t i = 0; i < done; i++) std::memcpy(fiber.copies[i].to, fiber.copies[i].data, fiber.copies[i].bytes);
    fiber.copies.erase(fiber.copies.begin(), fiber.copies.begin() + ptrdiff_t(done));
    fiber.groups.erase(fiber.groups.begin(), fiber.groups.begin() + ptrdiff_t(whole));
    for (size_t& group : fiber.groups) group -= done;
}

void give_way() {
    Scheduler& s = scheduler();
    s.fibers[s.current].state = State::looking;
    s.yield();
}

void has_changed() { scheduler().changes++; }

void later(std::function<void()> transfer) {
    Scheduler& s = scheduler();
    if (s.eager) transfer();
    else s.transfers.push_back(std::move(transfer));
}

void numbered_barrier(unsigned number, unsigned threads, bool waits) {
    Scheduler& s = scheduler();
    if (number >= NUMBERS || threads % 32 != 0 || threads > s.threads) s.fail("A numbered barrier that no device has");
    if (++s.arrived_at[number] < threads) {
        if (!waits) return;
        s.fibers[s.current].number = number;
        s.fibers[s.current].state = State::at_number;
        s.yield();
        return;
    }
    s.arrived_at[number] = 0;
    for (unsigned i = 0; i < s.threads; i++) {
        if (s.fibers[i].state == State::at_number && s.fibers[i].number == number) s.fibers[i].state = State::ready;
    }
    s.changes++;
}

void begin_product(std::function<void()> product) {
    Scheduler& s = scheduler();
    Warp& warp = s.warps[s.current / 32];
    if (!warp.fenced) s.fail("A product without a fence before it");
    if (s.eager) product();
    // Who does not wait is seen all the same.
    warp.products.push_back(s.eager ? [] {} : std::move(product));
}

void fence_products() { scheduler().warps[scheduler().current / 32].fenced = true; }

void commit_products() {
    Warp& warp = scheduler().warps[scheduler().current / 32];
    warp.product_groups.push_back(warp.products.size());
}

void wait_for_products(unsigned last) {
    Warp& warp = scheduler().warps[scheduler().current / 32];
    warp.fenced = false;
    if (warp.product_groups.size() <= last) return;
    const size_t whole = warp.product_groups.size() - last, done = warp.product_groups[whole - 1];
    for (size_t i = 0; i < done; i++) warp.products[i]();
    warp.products.erase(warp.products.begin(), warp.products.begin() + ptrdiff_t(done));
    warp.product_groups.erase(warp.product_groups.begin(), warp.product_groups.begin() + ptrdiff_t(whole));
    for (size_t& group : warp.product_groups) group -= done;
}

/// A stream: what it is given is done at once, or kept while a graph is captured.
struct Stream {
    std::vector<std::function<void()>>* captured = nullptr;
    void take(std::function<void()> work) {
        if (captured) captured->push_back(std::move(work));
        else work();
    }
};

static void run(dim3 blocks, dim3 threads, size_t shared, const std::function<void()>& body) {
    Scheduler& s = scheduler();
    s.threads = threads.x * threads.y * threads.z;
    if (s.threads == 0 || s.threads > MOST_THREADS || blocks.x == 0 || blocks.y == 0 || blocks.z == 0 ||
        blocks.y > 65535 || blocks.z > 65535 || shared > MOST_SHARED) {
        throw std::runtime_error("A launch of " + std::to_string(blocks.x) + " x " + std::to_string(blocks.y) + " x " +
                                 std::to_string(blocks.z) + " blocks of " + std::to_string(s.threads) +
                                 " threads with " + std::to_string(shared) + " bytes is none that a device takes");
    }
    s.body = &body;
    for (unsigned i = 0; i < s.threads; i++) {
        if (s.fibers[i].state == State::done) prepare(s.fibers[i].context, s.stacks + i * STACK, Scheduler::work);
    }
    // At the end of the memory, so that a kernel that uses more than it asked for is seen by a sanitizer.
    place.shared = s.shared.get() + ((MOST_SHARED - shared) & ~size_t(127));
    place.threads = threads;
    place.blocks = blocks;
    unsigned number = 0;
    for (unsigned z = 0; z < blocks.z; z++) {
        for (unsigned y = 0; y < blocks.y; y++) {
            for (unsigned x = 0; x < blocks.x; x++) {
                place.block = {x, y, z};
                // What a block leaves in shared memory is nobody's.
                std::memset(place.shared, 0xff, shared);
                s.block(threads, number++ % 2 == 1);
            }
        }
    }
}

void enqueue(Stream* stream, std::function<void()> work) { stream->take(std::move(work)); }

void launch(Stream* stream, dim3 blocks, dim3 threads, size_t shared, std::function<void()> body) {
    stream->take([=, body = std::move(body)] { run(blocks, threads, shared, body); });
}

} // namespace emulated

using Clock = std::chrono::steady_clock;

struct emulated_event {
    Clock::time_point time;
};

struct emulated_graph {
    std::vector<std::function<void()>> work;
};

const char* cudaGetErrorString(cudaError_t error) {
    switch (error) {
    case cudaSuccess: return "no error";
    case cudaErrorMemoryAllocation: return "out of memory";
    case cudaErrorNoDevice: return "no CUDA-capable device is detected";
    default: return "invalid argument";
    }
}

cudaError_t cudaGetLastError() { return cudaSuccess; }

cudaError_t cudaGetDeviceCount(int* count) {
    *count = 1;
    return cudaSuccess;
}

cudaError_t cudaSetDevice(int device) { return device == 0 ? cudaSuccess : cudaErrorInvalidValue; }

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
    if (device != 0) return cudaErrorInvalidValue;
    *properties = {};
    std::snprintf(properties->name, sizeof(properties->name), "emulated on the host");
    size_t free;
    cudaMemGetInfo(&free, &properties->totalGlobalMem);
    properties->sharedMemPerBlockOptin = emulated::MOST_SHARED;
    properties->major = 9;
    properties->multiProcessorCount = 2;
    properties->l2CacheSize = 1 << 20;
    return cudaSuccess;
}

namespace {

/// The device's memory: what was given out, and how much there is, which the environment may lower.
struct DeviceMemory {
    std::mutex mutex;
    std::unordered_map<void*, size_t> given;
    size_t used = 0, total = size_t(1) << 34;

    DeviceMemory() {
        if (const char* bytes = std::getenv("DENOISE_EMULATED_MEMORY")) total = std::strtoull(bytes, nullptr, 10);
    }
};

DeviceMemory& device_memory() {
    static DeviceMemory memory;
    return memory;
}

} // namespace

cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
    DeviceMemory& device = device_memory();
    const std::lock_guard lock(device.mutex);
    *total = device.total;
    *free = device.total - device.used;
    return cudaSuccess;
}

cudaError_t cudaMalloc(void** memory, size_t bytes) {
    *memory = nullptr;
    DeviceMemory& device = device_memory();
    const std::lock_guard lock(device.mutex);
    // 256 bytes are what a device aligns to.
    if (bytes > device.total - device.used || posix_memalign(memory, 256, std::max<size_t>(bytes, 1)) != 0) {
        return cudaErrorMemoryAllocation;
    }
    device.given[*memory] = bytes;
    device.used += bytes;
    return cudaSuccess;
}

cudaError_t cudaFree(void* memory) {
    if (!memory) return cudaSuccess;
    DeviceMemory& device = device_memory();
    const std::lock_guard lock(device.mutex);
    const auto found = device.given.find(memory);
    if (found == device.given.end()) return cudaErrorInvalidValue;
    device.used -= found->second;
    device.given.erase(found);
    std::free(memory);
    return cudaSuccess;
}

cudaError_t cudaMallocAsync(void** memory, size_t bytes, cudaStream_t) { return cudaMalloc(memory, bytes); }

cudaError_t cudaFreeAsync(void* memory, cudaStream_t stream) {
    if (!stream->captured) return cudaFree(memory);
    // A graph has it for as long as it may be launched.
    stream->take([kept = std::shared_ptr<void>(memory, [](void* memory) { cudaFree(memory); })] {});
    return cudaSuccess;
}

cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t* pool, int) {
    *pool = nullptr;
    return cudaSuccess;
}
cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t, cudaMemPoolAttr, void*) { return cudaSuccess; }
cudaError_t cudaMemPoolTrimTo(cudaMemPool_t, size_t) { return cudaSuccess; }
cudaError_t cudaDeviceGraphMemTrim(int) { return cudaSuccess; }

cudaError_t cudaMallocHost(void** memory, size_t bytes) {
    return posix_memalign(memory, 4096, std::max<size_t>(bytes, 1)) == 0 ? cudaSuccess : cudaErrorMemoryAllocation;
}
cudaError_t cudaFreeHost(void* memory) {
    std::free(memory);
    return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t stream) {
    stream->take([=] {
        if (bytes > 0) std::memcpy(to, from, bytes);
    });
    return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t stream) {
    stream->take([=] {
        if (bytes > 0) std::memset(memory, value, bytes);
    });
    return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
    *stream = new emulated::Stream;
    return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    delete stream;
    return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    return stream->captured ? cudaErrorInvalidValue : cudaSuccess;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned) { return cudaSuccess; }

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
    if (stream->captured) return cudaErrorInvalidValue;
    stream->captured = new std::vector<std::function<void()>>;
    return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
    if (!stream->captured) return cudaErrorInvalidValue;
    *graph = new emulated_graph{std::move(*stream->captured)};
    delete stream->captured;
    stream->captured = nullptr;
    return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long) {
    *exec = new emulated_graph(*graph);
    return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
    for (const auto& work : exec->work) stream->take(work);
    return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
    delete exec;
    return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
    delete graph;
    return cudaSuccess;
}

cudaError_t cudaEventCreate(cudaEvent_t* event) { return cudaEventCreateWithFlags(event, 0); }

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
    *event = new emulated_event{};
    return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
    delete event;
    return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
    stream->take([=] { event->time = Clock::now(); });
    return cudaSuccess;
}

cudaError_t cudaEventSynchronize(cudaEvent_t) { return cudaSuccess; }

cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t from, cudaEvent_t to) {
    *milliseconds = std::chrono::duration<float, std::milli>(to->time - from->time).count();
    return cudaSuccess;
}
