// `conv` by float weights, and their packing.

#include "../conv.cuh"
#include "../loops.cuh"

namespace denoise {

template <class T> struct ConvOperands {
    using Value = float;
    using Sum = float;
    ConvInput<T> x;
    const T* weight;
    uint32_t k;
    __device__ float a(uint32_t row, uint32_t at) const {
        const T* value = x.at(row, at);
        return value ? widen(*value) : 0.0f;
    }
    __device__ float b(uint32_t column, uint32_t at, uint32_t) const { return widen(weight[uint64_t(column) * k + at]); }
    __device__ float fold(float sum, uint32_t, uint32_t) const { return sum; }
    __device__ float number(float sum, uint32_t, uint32_t) const { return sum; }
};

} // namespace denoise

DENOISE_WAYS(conv) {
    namespace op = schema::conv;
    const View x = call.view(op::x), weight = call.view(op::weight), out = call.view(op::out);
    if (out.length() == 0) return;
    check_aligned(weight, schema::size_of(x.dtype));
    const ConvShape shape = conv_shape(call, op::x, op::cache, op::out, op::param_kt);
    const Sizes sizes = conv_sizes(shape, out);
    const Epilogue e = layer_epilogue(call, out, op::bias, -1, op::residual, op::param_act);
    with_float(x.dtype, [&](auto zero) {
        using T = decltype(zero);
        const ConvInput<T> input{shape, x.as<const T>(), call.view(op::cache).as<const T>()};
        add_tiles<T>(ways, call, ConvOperands<T>{input, weight.as<const T>(), count32(sizes.k)}, e, sizes);
    });
}

namespace denoise {

/// A weight (O, C, kt, kh, kw) by strides.
struct FilterTaps {
    int64_t filters, channels, kt, kh, kw;
    int64_t strides[5];
};

template <class A, class B>
__global__ void pack_conv_kernel(const A* weight, FilterTaps taps, B* out, int64_t count) {
    const int64_t step = int64_t(gridDim.x) * blockDim.x;
    const int64_t known = taps.filters * taps.channels * taps.kt * taps.kh * taps.kw;
    for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step) {
        float value = 0.0f;
        if (i < known) {
            const int64_t channel = i % taps.channels, tap = i / taps.channels;
            const int64_t kx = tap % taps.kw, ky = tap / taps.kw % taps.kh, plane = tap / taps.kw / taps.kh;
            const int64_t kt = plane % taps.kt, filter = plane / taps.kt;
            value = widen(weight[filter * taps.strides[0] + channel * taps.strides[1] + kt * taps.strides[2] +
                                 ky * taps.strides[3] + kx * taps.strides[4]]);
        }
        out[i] = narrow<B>(value);
    }
}

} // namespace denoise

DENOISE_OP(pack_conv) {
    namespace op = schema::pack_conv;
    const View weight = call.view(op::weight), out = call.view(op::out);
    const auto dtype = schema::DType(call.params[op::param_dtype]);
    check_aligned(out, schema::size_of(dtype));
    FilterTaps taps{weight.sizes[0], weight.sizes[1], 1, weight.size(1), weight.size(0),
                    {weight.strides[0], weight.strides[1], 0, weight.stride(1), weight.stride(0)}};
    if (weight.rank == 5) {
        taps.kt = weight.sizes[2];
        taps.strides[2] = weight.strides[2];
    }
    const int64_t count = out.length() / schema::size_of(dtype);
    with_float(weight.dtype, [&](auto a) {
        with_float(dtype, [&](auto b) {
            using A = decltype(a);
            using B = decltype(b);
            launch(call, pack_conv_kernel<A, B>, unsigned(std::min<int64_t>(ceil_div(count, 256), 65535)), 256, 0,
                   weight.as<const A>(), taps, out.as<B>(), count);
        });
    });
}
