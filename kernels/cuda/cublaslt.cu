// The part of cuBLASLt's C ABI that denoise calls, its version 13's, and what remembers its algorithms.

#include "cublaslt.cuh"

#include <array>
#include <cstdlib>
#include <dlfcn.h>
#include <map>
#include <memory>

#if __has_include(<cublasLt.h>)
#include <cublasLt.h>
#endif

namespace denoise {

namespace {

using Handle = void*;
using Layout = void*;
using Descriptor = void*;
using Preference = void*;

struct Algorithm {
    uint64_t words[8];
};

struct Heuristic {
    Algorithm algorithm;
    size_t workspace;
    int status;
    float waves;
    int reserved[4];
};

enum Compute { COMPUTE_32F = 68, COMPUTE_32I = 72 };
enum Attribute {
    TRANSPOSE_A = 3,
    EPILOGUE = 7,
    BIAS = 8,
    A_SCALES = 17,
    B_SCALES = 18,
    A_SCALE_MODE = 31,
    B_SCALE_MODE = 32,
};
enum PreferenceAttribute { WORKSPACE = 1, ALIGNMENT_A = 5 }; // then B, C and D
constexpr int32_t TRANSPOSED = 1, SCALES_OF_ROWS = 3;

#if __has_include(<cublasLt.h>)
// Where the toolkit has the library's header, it is held against this.
static_assert(sizeof(Algorithm) == sizeof(cublasLtMatmulAlgo_t) && sizeof(Heuristic) == sizeof(cublasLtMatmulHeuristicResult_t));
static_assert(offsetof(Heuristic, status) == offsetof(cublasLtMatmulHeuristicResult_t, state));
static_assert(COMPUTE_32F == int(CUBLAS_COMPUTE_32F) && COMPUTE_32I == int(CUBLAS_COMPUTE_32I));
static_assert(TRANSPOSE_A == int(CUBLASLT_MATMUL_DESC_TRANSA) && EPILOGUE == int(CUBLASLT_MATMUL_DESC_EPILOGUE));
static_assert(BIAS == int(CUBLASLT_MATMUL_DESC_BIAS_POINTER) && A_SCALES == int(CUBLASLT_MATMUL_DESC_A_SCALE_POINTER));
static_assert(B_SCALES == int(CUBLASLT_MATMUL_DESC_B_SCALE_POINTER));
static_assert(A_SCALE_MODE == int(CUBLASLT_MATMUL_DESC_A_SCALE_MODE) && B_SCALE_MODE == int(CUBLASLT_MATMUL_DESC_B_SCALE_MODE));
static_assert(WORKSPACE == int(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES));
static_assert(ALIGNMENT_A == int(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES) && ALIGNMENT_A + 3 == int(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES));
static_assert(TRANSPOSED == int(CUBLAS_OP_T) && SCALES_OF_ROWS == int(CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F));
static_assert(int(LtEpilogue::none) == int(CUBLASLT_EPILOGUE_DEFAULT) && int(LtEpilogue::bias) == int(CUBLASLT_EPILOGUE_BIAS));
static_assert(int(LtEpilogue::gelu) == int(CUBLASLT_EPILOGUE_GELU) && int(LtEpilogue::gelu_bias) == int(CUBLASLT_EPILOGUE_GELU_BIAS));
static_assert(int(LtType::f32) == int(CUDA_R_32F) && int(LtType::f16) == int(CUDA_R_16F) && int(LtType::int8) == int(CUDA_R_8I));
static_assert(int(LtType::int32) == int(CUDA_R_32I) && int(LtType::bf16) == int(CUDA_R_16BF) && int(LtType::e4m3) == int(CUDA_R_8F_E4M3));
#endif

/// The most workspace of a multiply, which is what its maker asks for on Hopper.
constexpr size_t MOST_WORKSPACE = 32 << 20;
/// Algorithms that are offered of each multiply.
constexpr int OFFERED = 4;

void succeed(int status, const char* what) {
    if (status != 0) throw Failure{Code::internal, std::string(what) + " of cuBLASLt fails with its status " + std::to_string(status)};
}

/// The functions of the library.
struct Functions {
    size_t (*version)();
    int (*create)(Handle*);
    int (*destroy)(Handle);
    int (*make_layout)(Layout*, int type, uint64_t rows, uint64_t columns, int64_t step);
    int (*free_layout)(Layout);
    int (*make_descriptor)(Descriptor*, int compute, int scale_type);
    int (*free_descriptor)(Descriptor);
    int (*set_descriptor)(Descriptor, int attribute, const void* value, size_t bytes);
    int (*make_preference)(Preference*);
    int (*free_preference)(Preference);
    int (*set_preference)(Preference, int attribute, const void* value, size_t bytes);
    int (*find_algorithms)(Handle, Descriptor, Layout a, Layout b, Layout c, Layout d, Preference, int wanted, Heuristic* found, int* count);
    int (*multiply)(Handle, Descriptor, const void* alpha, const void* a, Layout, const void* b, Layout, const void* beta,
                    const void* c, Layout, void* d, Layout, const Algorithm*, void* workspace, size_t bytes, cudaStream_t);

    /// Finds them; whether all are there.
    bool find(void* library) {
        bool all = true;
        const auto one = [&](auto& function, const char* name) {
            function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(library, name));
            all = all && function;
        };
        one(version, "cublasLtGetVersion");
        one(create, "cublasLtCreate");
        one(destroy, "cublasLtDestroy");
        one(make_layout, "cublasLtMatrixLayoutCreate");
        one(free_layout, "cublasLtMatrixLayoutDestroy");
        one(make_descriptor, "cublasLtMatmulDescCreate");
        one(free_descriptor, "cublasLtMatmulDescDestroy");
        one(set_descriptor, "cublasLtMatmulDescSetAttribute");
        one(make_preference, "cublasLtMatmulPreferenceCreate");
        one(free_preference, "cublasLtMatmulPreferenceDestroy");
        one(set_preference, "cublasLtMatmulPreferenceSetAttribute");
        one(find_algorithms, "cublasLtMatmulAlgoGetHeuristic");
        one(multiply, "cublasLtMatmul");
        return all;
    }
};

/// What is opened: the library that is named in the environment, else, on a device, the one that is installed.
const Functions* functions() {
    static const std::unique_ptr<Functions> opened = [] {
        auto found = std::make_unique<Functions>();
        const char* name = std::getenv("DENOISE_CUBLASLT");
#ifdef __CUDACC__
        if (!name) name = "libcublasLt.so.13";
#endif
        void* library = name ? dlopen(name, RTLD_NOW | RTLD_LOCAL) : nullptr;
        if (!library || !found->find(library)) found.reset();
        return found;
    }();
    return opened.get();
}

/// An object of the library, which frees itself.
using Object = std::unique_ptr<void, int (*)(void*)>;

template <class Create> Object object(Create create, int (*free)(void*), const char* what) {
    void* made = nullptr;
    succeed(create(&made), what);
    return {made, free};
}

/// A multiply in the library's terms.
struct Plan {
    Object descriptor, weight, x, out;

    Plan(const Functions& lt, const LtMultiply& m)
        : descriptor(object([&](void** made) {
              const bool integers = m.type == LtType::int8;
              return lt.make_descriptor(made, integers ? COMPUTE_32I : COMPUTE_32F, int(integers ? LtType::int32 : LtType::f32));
          }, lt.free_descriptor, "A multiply")),
          weight(layout(lt, m.type, m.k, m.n, m.weight.row)), x(layout(lt, m.type, m.k, m.m, m.x.row)),
          out(layout(lt, m.out_type, m.n, m.m, m.out.row)) {
        const auto set = [&](int attribute, const auto& value) {
            succeed(lt.set_descriptor(descriptor.get(), attribute, &value, sizeof(value)), "An attribute");
        };
        set(TRANSPOSE_A, TRANSPOSED);
        set(EPILOGUE, uint32_t(m.epilogue));
        if (m.bias) set(BIAS, m.bias);
        if (!m.x_scales) return;
        set(A_SCALE_MODE, SCALES_OF_ROWS);
        set(B_SCALE_MODE, SCALES_OF_ROWS);
        set(A_SCALES, m.weight_scales);
        set(B_SCALES, m.x_scales);
    }

    static Object layout(const Functions& lt, LtType type, int64_t rows, int64_t columns, int64_t step) {
        return object([&](void** made) { return lt.make_layout(made, int(type), uint64_t(rows), uint64_t(columns), step); },
                      lt.free_layout, "A matrix");
    }
};

/// What an address is a multiple of, up to what memory is aligned to.
uint32_t alignment_of(const void* address) {
    const auto bits = reinterpret_cast<uintptr_t>(address) | 256;
    return uint32_t(bits & -bits);
}

/// What the choice of an algorithm follows from.
std::array<int64_t, 13> key_of(const LtMultiply& m) {
    return {int64_t(m.type), int64_t(m.out_type), m.m, m.n, m.k, m.x.row, m.weight.row, m.out.row, int64_t(m.epilogue),
            m.x_scales != nullptr, alignment_of(m.x.data), alignment_of(m.weight.data), alignment_of(m.out.data)};
}

} // namespace

/// The library on one device.
struct Cublaslt {
    const Functions& lt;
    /// Null where it cannot be opened on the device, and then is not offered.
    Handle handle = nullptr;
    std::map<std::array<int64_t, 13>, std::vector<Heuristic>> known;

    explicit Cublaslt(const Functions& lt) : lt(lt) {
        if (lt.create(&handle) != 0) handle = nullptr;
    }
    Cublaslt(const Cublaslt&) = delete;
    ~Cublaslt() {
        if (handle) lt.destroy(handle);
    }

    const std::vector<Heuristic>& algorithms(const LtMultiply& m) {
        const auto [at, is_new] = known.try_emplace(key_of(m));
        if (is_new) at->second = find(m);
        return at->second;
    }

  private:
    /// None where the library takes no such multiply.
    std::vector<Heuristic> find(const LtMultiply& m) const {
        const Plan plan(lt, m);
        const auto preference = object(lt.make_preference, lt.free_preference, "A preference");
        const auto set = [&](int attribute, auto value) {
            succeed(lt.set_preference(preference.get(), attribute, &value, sizeof(value)), "A preference");
        };
        set(WORKSPACE, uint64_t(MOST_WORKSPACE));
        const void* matrices[] = {m.weight.data, m.x.data, m.out.data, m.out.data};
        for (int i = 0; i < 4; i++) set(ALIGNMENT_A + i, alignment_of(matrices[i]));
        std::vector<Heuristic> found(OFFERED);
        int count = 0;
        const int status = lt.find_algorithms(handle, plan.descriptor.get(), plan.weight.get(), plan.x.get(), plan.out.get(),
                                              plan.out.get(), preference.get(), OFFERED, found.data(), &count);
        found.resize(status == 0 ? size_t(count) : 0);
        std::erase_if(found, [](const Heuristic& heuristic) { return heuristic.status != 0; });
        return found;
    }
};

namespace {

/// The library on a device; null where it is not installed.
Cublaslt* cublaslt_of(DenoiseDevice& device) {
    const Functions* lt = functions();
    if (lt && !device.cublaslt) device.cublaslt = std::make_shared<Cublaslt>(*lt);
    return lt && device.cublaslt->handle ? device.cublaslt.get() : nullptr;
}

} // namespace

std::string cublaslt_version() {
    const Functions* lt = functions();
    return lt ? "cuBLASLt " + std::to_string(lt->version()) : "";
}

int cublaslt_algorithms(DenoiseDevice& device, const LtMultiply& m) {
    if (m.m == 0 || m.n == 0 || m.k == 0 || m.x.row < m.k || m.weight.row < m.k || m.out.row < m.n) return 0;
    Cublaslt* cublaslt = cublaslt_of(device);
    return cublaslt ? int(cublaslt->algorithms(m).size()) : 0;
}

void cublaslt_multiply(const Call& call, const LtMultiply& m, int algorithm) {
    Cublaslt& cublaslt = *cublaslt_of(call.device);
    const Heuristic heuristic = cublaslt.algorithms(m).at(algorithm);
    const Scratch workspace(call, heuristic.workspace);
    const auto plan = std::make_shared<const Plan>(cublaslt.lt, m);
    const auto multiply = [=, &cublaslt, work = call.device.work, memory = workspace.data()] {
        // One and zero, as numbers of the type of the sums.
        const bool integers = m.type == LtType::int8;
        const uint32_t one = integers ? 1 : 0x3f800000, zero = 0;
        auto* out = const_cast<void*>(m.out.data);
        succeed(cublaslt.lt.multiply(cublaslt.handle, plan->descriptor.get(), &one, m.weight.data, plan->weight.get(),
                                     m.x.data, plan->x.get(), &zero, out, plan->out.get(), out, plan->out.get(),
                                     &heuristic.algorithm, memory, heuristic.workspace, work),
                "A multiply");
    };
#ifdef __CUDACC__
    multiply();
#else
    emulated::enqueue(call.device.work, multiply);
#endif
}

} // namespace denoise
