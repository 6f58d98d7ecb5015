// Multiplies by cuBLASLt, which is opened at run time where it is installed: ways of a layer beside denoise's own.
//
// cuBLASLt counts columns first. A matrix whose rows stand one after another is to it the transposed one, so it is asked
// for out^T (N, M) = W (N, K) x^T (K, M): the weight comes first, and the result lies as it should.
#pragma once

#include "epilogue.cuh"
#include "scaling.cuh"

namespace denoise {

/// A matrix by rows at equal steps, in elements.
struct LtMatrix {
    const void* data;
    int64_t row;
};

/// What an element is, by CUDA's numbers.
enum class LtType : int { f32 = 0, f16 = 2, int8 = 3, int32 = 10, bf16 = 14, e4m3 = 28 };

/// What cuBLASLt does to a sum.
enum class LtEpilogue : uint32_t { none = 1, bias = 4, gelu = 32, gelu_bias = 36 };

/// A multiply as cuBLASLt takes it: x (M, K), weight (N, K), out (M, N).
struct LtMultiply {
    LtType type, out_type;
    int64_t m, n, k;
    LtMatrix x, weight, out;
    /// Scales of the rows of x and of the weight, where both have some.
    const float *x_scales = nullptr, *weight_scales = nullptr;
    LtEpilogue epilogue = LtEpilogue::none;
    /// Of the result's type.
    const void* bias = nullptr;
};

/// The library that is opened and its version, as text; empty where there is none.
std::string cublaslt_version();
/// How many algorithms it has for a multiply, the most promising first; none where it is not installed or takes it not.
/// Of addresses only the alignment counts.
int cublaslt_algorithms(DenoiseDevice& device, const LtMultiply& multiply);
/// Queues a multiply by one of its algorithms.
void cublaslt_multiply(const Call& call, const LtMultiply& multiply, int algorithm);

/// The step of rows that have one, or 0; `width` of a single row.
inline int64_t step_of(const RowMap& rows, int64_t width) {
    return rows.rank == 0 ? width : rows.rank == 1 ? rows.strides[0] : 0;
}

template <class T> constexpr LtType LT_TYPE = LtType::f32;
template <> constexpr LtType LT_TYPE<bf16> = LtType::bf16;
template <> constexpr LtType LT_TYPE<f16> = LtType::f16;

/// Stands for memory that is there when a way is run: aligned as such memory is.
inline void* some_memory() { return reinterpret_cast<void*>(uintptr_t(256)); }

/// The result of each sum.
template <class T, class Scaling>
__global__ void __launch_bounds__(256)
    finish_kernel(const typename Scaling::Sum* sums, Scaling scaling, Epilogue e, uint32_t m, uint32_t n) {
    const uint32_t column = blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= n) return;
    const auto of_column = scaling.column(column);
    for (uint32_t row = blockIdx.y; row < m; row += gridDim.y) {
        const float number = Scaling::number(sums[uint64_t(row) * n + column], scaling.row(row), of_column);
        finish<T>(e, number, row, column);
    }
}

/// Scales side by side, of what has one for each row.
template <class Scaling> __global__ void row_scales_kernel(Scaling scaling, float* to, uint32_t m) {
    const uint32_t row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row < m) to[row] = scaling.row(row).scale;
}

template <class T> __global__ void narrow_kernel(const float* from, T* to, uint32_t n) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) to[i] = narrow<T>(from[i]);
}

/// A layer whose sums cuBLASLt makes.
template <class T, class Scaling> struct LtLayer {
    using Sum = typename Scaling::Sum;
    LtMultiply multiply; // without its result
    Scaling scaling;
    Epilogue e;

    /// Whether its scales, where it has some, are a row's and a column's, which cuBLASLt applies on Hopper and later.
    static constexpr bool SCALED = !std::is_empty_v<typename Scaling::Row>;

    /// Sums first, then what follows.
    void run_apart(const Call& call, int algorithm) const {
        const Scratch sums(call, size_t(multiply.m) * multiply.n * sizeof(Sum));
        LtMultiply apart = this->apart();
        apart.out.data = sums.data();
        cublaslt_multiply(call, apart, algorithm);
        const dim3 blocks(blocks_of(ceil_div(multiply.n, 256)), unsigned(std::min(multiply.m, MOST_BLOCKS)));
        launch(call, finish_kernel<T, Scaling>, blocks, 256, 0, static_cast<const Sum*>(sums.data()), scaling, e,
               count32(multiply.m), count32(multiply.n));
    }

    LtMultiply apart() const {
        LtMultiply apart = multiply;
        apart.out_type = std::is_same_v<Sum, int32_t> ? LtType::int32 : LtType::f32;
        apart.out = {some_memory(), multiply.n};
        return apart;
    }

    /// Whether cuBLASLt can do all that follows, too.
    bool is_whole(const Call& call) const {
        const bool activates = e.activation == schema::Activation::none || e.activation == schema::Activation::gelu_tanh;
        const bool scales = !SCALED || (multiply.type == LtType::e4m3 && call.device.properties.major >= 9);
        return activates && scales && e.alpha == 1.0f && !e.gate.data && !e.residual.data;
    }

    LtMultiply whole() const {
        LtMultiply whole = multiply;
        const bool gelu = e.activation == schema::Activation::gelu_tanh;
        whole.out_type = LT_TYPE<T>;
        whole.out = {e.out, step_of(e.out_rows, multiply.n)};
        whole.epilogue = e.bias ? gelu ? LtEpilogue::gelu_bias : LtEpilogue::bias : gelu ? LtEpilogue::gelu : LtEpilogue::none;
        if (e.bias) whole.bias = some_memory();
        if (SCALED) whole.x_scales = static_cast<const float*>(some_memory());
        return whole;
    }

    void run_whole(const Call& call, int algorithm) const {
        const uint32_t m = count32(multiply.m), n = count32(multiply.n);
        LtMultiply whole = this->whole();
        const Scratch bias(call, e.bias ? n * sizeof(T) : 0), scales(call, SCALED ? m * sizeof(float) : 0);
        if (e.bias) {
            launch(call, narrow_kernel<T>, blocks_of(ceil_div(n, 256)), 256, 0, e.bias, static_cast<T*>(bias.data()), n);
            whole.bias = bias.data();
        }
        if constexpr (SCALED) {
            auto* to = static_cast<float*>(scales.data());
            launch(call, row_scales_kernel<Scaling>, blocks_of(ceil_div(m, 256)), 256, 0, scaling, to, m);
            whole.x_scales = to;
        }
        cublaslt_multiply(call, whole, algorithm);
    }
};

/// Adds what cuBLASLt can do of a layer whose result, but for the epilogue, `scaling` makes of the sums.
template <class T, class Scaling>
void add_cublaslt(Ways& ways, const Call& call, const LtMultiply& multiply, const Scaling& scaling, const Epilogue& e) {
    const LtLayer<T, Scaling> layer{multiply, scaling, e};
    const auto add = [&](const std::string& name, const LtMultiply& how, auto run) {
        const int count = cublaslt_algorithms(call.device, how);
        for (int i = 0; i < count; i++) ways.push_back({name + " " + std::to_string(i + 1), [=, &call] { (layer.*run)(call, i); }});
    };
    if (layer.is_whole(call)) add("cuBLASLt", layer.whole(), &LtLayer<T, Scaling>::run_whole);
    add("cuBLASLt, epilogue apart", layer.apart(), &LtLayer<T, Scaling>::run_apart);
}

/// The same by the codes of rows and of a weight with a scale for each of its rows.
template <class T, class Scaling>
void add_cublaslt_codes(Ways& ways, const Call& call, const PackedWeight& weight, const Scaling& scaling, const Epilogue& e,
                        int64_t m, int64_t n) {
    const bool fp8 = weight.format.kind == schema::Format::e4m3 && scaling.x.kind == schema::Rows::e4m3;
    if (!fp8 && weight.format.kind != schema::Format::int8) return;
    const LtType type = fp8 ? LtType::e4m3 : LtType::int8;
    const int64_t k = weight.k;
    LtMultiply multiply{type, type, m, n, k, {scaling.x.data, step_of(scaling.x.rows, k)}, {weight.codes, k}, {}};
    multiply.weight_scales = scaling.scales;
    add_cublaslt<T>(ways, call, multiply, scaling, e);
}

} // namespace denoise
