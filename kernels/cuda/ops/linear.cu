// `linear`, the packing of its weights, and `matmul`.

#include "../cublaslt.cuh"
#include "../hopper/ways.cuh"
#include "../mma_gemm.cuh"

namespace denoise {

/// Columns of K to which a packed weight's rows are rounded up.
constexpr int64_t INNER = 4;

template <class T> struct LinearOperands {
    using Value = float;
    using Sum = float;
    const T *x, *weight;
    RowMap x_rows;
    uint32_t inner;
    __device__ float a(uint32_t row, uint32_t k) const { return widen(x[x_rows.offset(row) + k]); }
    __device__ float b(uint32_t column, uint32_t k, uint32_t) const { return widen(weight[uint64_t(column) * inner + k]); }
    __device__ float fold(float sum, uint32_t, uint32_t) const { return sum; }
    __device__ float number(float sum, uint32_t, uint32_t) const { return sum; }
};

} // namespace denoise

DENOISE_WAYS(linear) {
    namespace op = schema::linear;
    const View x = call.view(op::x), weight = call.view(op::weight), out = call.view(op::out);
    const int64_t n = call.i32(op::param_n), k = call.i32(op::param_k);
    const Sizes sizes{out.rows(), n, k, 1};
    check_aligned(weight, schema::size_of(x.dtype));
    const Epilogue e = layer_epilogue(call, out, op::bias, op::gate, op::residual, op::param_act);
    with_float(x.dtype, [&](auto zero) {
        using T = decltype(zero);
        const auto add_own = [&] {
            if constexpr (sizeof(T) == 2) {
                const auto row_bytes = uint64_t(round_up(k, INNER)) * sizeof(T);
                const Columns columns{weight.as<const uint8_t>(), row_bytes, row_bytes, 16};
                add_mma(ways, call, DenseProduct<T>{{{x.as<const uint8_t>(), RowMap(x)}, columns}}, e, out.dtype, sizes);
            }
        };
        // Of few rows, what reads the weight once is the first guess.
        const bool few = sizes.m <= FEW_M;
        if (few) add_own();
        hopper::add_linear<T>(ways, call, x, weight.data, round_up(k, INNER), e, sizes.m, n, k);
        const LinearOperands<T> operands{x.as<const T>(), weight.as<const T>(), RowMap(x), count32(round_up(k, INNER))};
        const LtMatrix rows{x.data, step_of(operands.x_rows, k)}, columns{weight.data, operands.inner};
        const LtMultiply multiply{LT_TYPE<T>, LT_TYPE<T>, sizes.m, n, k, rows, columns, {}};
        add_cublaslt<T>(ways, call, multiply, NoScaling{}, e);
        if (!few) add_own();
        // Tensor cores have no f32.
        if (sizeof(T) == 4 || ways.empty()) add_tiles<T>(ways, call, operands, e, sizes);
    });
}

namespace denoise {

template <class A, class B>
__global__ void pack_linear_kernel(const A* weight, int64_t stride, B* out, int64_t n, int64_t k, int64_t inner, int64_t count) {
    const int64_t step = int64_t(gridDim.x) * blockDim.x;
    for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step) {
        const int64_t row = i / inner, column = i % inner;
        out[i] = narrow<B>(row < n && column < k ? widen(weight[row * stride + column]) : 0.0f);
    }
}

} // namespace denoise

DENOISE_OP(pack_linear) {
    namespace op = schema::pack_linear;
    const View weight = call.view(op::weight), out = call.view(op::out);
    const auto dtype = schema::DType(call.params[op::param_dtype]);
    const int64_t n = weight.sizes[0], k = weight.sizes[1], inner = round_up(k, INNER);
    const int64_t count = out.length() / schema::size_of(dtype);
    check_aligned(out, schema::size_of(dtype));
    with_float(weight.dtype, [&](auto a) {
        with_float(dtype, [&](auto b) {
            using A = decltype(a);
            using B = decltype(b);
            launch(call, pack_linear_kernel<A, B>, blocks_of(std::min<int64_t>(ceil_div(count, 256), 65535)), 256, 0,
                   weight.as<const A>(), weight.strides[0], out.as<B>(), n, k, inner, count);
        });
    });
}

namespace denoise {

template <class T> struct MatmulOperands {
    using Value = float;
    using Sum = float;
    const T *x, *y;
    /// The axes but the last two of each: a batch's matrix.
    RowMap x_batches, y_batches;
    int64_t x_row, x_column, y_row, y_column;
    uint32_t m;
    __device__ float a(uint32_t row, uint32_t k) const {
        const uint32_t batch = row / m;
        return widen(x[x_batches.offset(batch) + int64_t(row - batch * m) * x_row + int64_t(k) * x_column]);
    }
    __device__ float b(uint32_t column, uint32_t k, uint32_t batch) const {
        return widen(y[y_batches.offset(batch) + int64_t(k) * y_row + int64_t(column) * y_column]);
    }
    __device__ float fold(float sum, uint32_t, uint32_t) const { return sum; }
    __device__ float number(float sum, uint32_t, uint32_t) const { return sum; }
};

/// A view without its last axis, whose rows are then the matrices of its batches.
static View matrices(View view) {
    view.rank--;
    return view;
}

} // namespace denoise

DENOISE_OP(matmul) {
    namespace op = schema::matmul;
    const View a = call.view(op::a), b = call.view(op::b), out = call.view(op::out);
    if (out.length() == 0) return;
    const int64_t m = a.size(1), n = b.size(0), k = a.size(0);
    Epilogue e(out);
    e.alpha = call.f32(op::param_alpha);
    with_float(a.dtype, [&](auto zero) {
        using T = decltype(zero);
        const MatmulOperands<T> operands{a.as<const T>(), b.as<const T>(), RowMap(matrices(a)), RowMap(matrices(b)),
                                         a.stride(1), a.stride(0), b.stride(1), b.stride(0), count32(m)};
        multiply_tiles<T, TILE_M>(call, operands, e, {m, n, k, out.rows() / m});
    });
}
