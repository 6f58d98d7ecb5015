// In place of Hopper's kernels: a plain loop over a multiply as they are handed it, with what they do with sums.
#include "../hopper/ways.cuh"

namespace denoise::hopper {

struct E4m3 {
    uint8_t code;
};

static float value(bf16 x) { return widen(x); }
static float value(f16 x) { return widen(x); }
static float value(E4m3 x) { return e4m3_value(x.code); }
static int32_t value(int8_t x) { return x; }

template <class T> static const T* line(const Lines& lines, uint32_t batch, uint32_t row) {
    return static_cast<const T*>(lines.data) + batch * lines.batch + row * lines.row;
}

/// A thread for each element of the result.
template <class A, class T, class Scaling> static void plain_kernel(Problem p, Finish<T, Scaling> finish) {
    const uint32_t column = blockIdx.x * blockDim.x + threadIdx.x, row = blockIdx.y, batch = blockIdx.z;
    if (column >= uint32_t(p.n)) return;
    const A *x = line<A>(p.x, batch, row), *weight = line<A>({p.weight, p.weight_row, 0}, 0, column);
    typename Scaling::Sum sum = 0;
    for (int i = 0; i < p.k; i++) sum += value(x[i]) * value(weight[i]);
    const Epilogue& e = finish.e;
    const auto found = finish.row(batch * p.m + row);
    const float bias = e.bias ? e.bias[column] : 0.0f, gate = e.gate.data ? widen(found.gate[column]) : 1.0f;
    float residual = 0.0f;
    if (finish.tiled_residual) residual = widen(line<T>(p.residual, batch, row)[column]);
    if (finish.reads_residual()) residual = widen(found.residual[column]);
    const float number = Scaling::number(sum, found.scaling, finish.scaling.column(column));
    const_cast<T*>(line<T>(p.out, batch, row))[column] = narrow<T>(epilogue(e, number, bias, gate, residual));
}

template <class A, class T, class Scaling>
static void plain(const Call& call, const Problem& problem, const Epilogue& e, const Scaling& scaling) {
    const dim3 blocks(unsigned(ceil_div(problem.n, 64)), unsigned(problem.m), unsigned(problem.batch));
    const Finish<T, Scaling> finish{e, scaling, problem.residual.data != nullptr};
    launch(call, plain_kernel<A, T, Scaling>, blocks, 64, 0, problem, finish);
}

DENOISE_HOPPER_KERNEL(bf16_128x256, NoScaling) { plain<bf16, bf16>(call, problem, e, scaling); }
DENOISE_HOPPER_KERNEL(bf16_128x192, NoScaling) { plain<bf16, bf16>(call, problem, e, scaling); }
DENOISE_HOPPER_KERNEL(bf16_128x128, NoScaling) { plain<bf16, bf16>(call, problem, e, scaling); }
DENOISE_HOPPER_KERNEL(bf16_64x128, NoScaling) { plain<bf16, bf16>(call, problem, e, scaling); }
DENOISE_HOPPER_KERNEL(f16_128x256, NoScaling) { plain<f16, f16>(call, problem, e, scaling); }
DENOISE_HOPPER_KERNEL(f16_128x128, NoScaling) { plain<f16, f16>(call, problem, e, scaling); }
DENOISE_HOPPER_KERNEL(e4m3_128x192, Fp8Scaling) { plain<E4m3, bf16>(call, problem, e, scaling); }
DENOISE_HOPPER_KERNEL(e4m3_128x128, Fp8Scaling) { plain<E4m3, bf16>(call, problem, e, scaling); }
DENOISE_HOPPER_KERNEL(e4m3_64x128, Fp8Scaling) { plain<E4m3, bf16>(call, problem, e, scaling); }
DENOISE_HOPPER_KERNEL(int8_128x256, IntegerScaling) { plain<int8_t, bf16>(call, problem, e, scaling); }
DENOISE_HOPPER_KERNEL(int8_128x128, IntegerScaling) { plain<int8_t, bf16>(call, problem, e, scaling); }
DENOISE_HOPPER_KERNEL(int8_64x128, IntegerScaling) { plain<int8_t, bf16>(call, problem, e, scaling); }

} // namespace denoise::hopper
