// `conv` by quantized weights, and their packing.

#include "../conv.cuh"
#include "../weight.cuh"

namespace denoise {

/// A packed weight: codes (O, taps, C), then a scale for each filter.
struct PackedFilters {
    schema::Format format;
    uint32_t k;
    const uint8_t* codes;
    const float* scales;

    PackedFilters(const View& packed, schema::Format format, int64_t filters, const ConvShape& shape)
        : format(format), k(shape.taps() * shape.channels), codes(packed.as<const uint8_t>()) {
        const int64_t rows = round_up(filters, 64), bytes = rows * round_up(shape.channels, 64) * shape.taps();
        check_packed(packed, bytes + 8 * rows);
        scales = reinterpret_cast<const float*>(codes + bytes);
    }
    __device__ float code(uint32_t filter, uint32_t at) const {
        const uint8_t code = codes[uint64_t(filter) * k + at];
        switch (format) {
        case schema::Format::e4m3: return e4m3_value(code);
        case schema::Format::e5m2: return e5m2_value(code);
        default: return float(int8_t(code));
        }
    }
};

/// x of floats.
template <class T> struct FloatConvOperands {
    using Value = float;
    using Sum = float;
    ConvInput<T> x;
    PackedFilters weight;
    __device__ float a(uint32_t row, uint32_t at) const {
        const T* value = x.at(row, at);
        return value ? widen(*value) : 0.0f;
    }
    __device__ float b(uint32_t column, uint32_t at, uint32_t) const { return weight.code(column, at); }
    __device__ float fold(float sum, uint32_t column, uint32_t) const { return sum * weight.scales[column]; }
    __device__ float number(float sum, uint32_t, uint32_t) const { return sum; }
};

/// x that is quantized to int8 as it is read, by a scale for the whole of it.
template <class T> struct IntegerConvOperands {
    using Value = int32_t;
    using Sum = float;
    ConvInput<T> x;
    PackedFilters weight;
    const float* amax;
    __device__ float scale() const { return *amax / 127.0f; }
    __device__ int32_t a(uint32_t row, uint32_t at) const {
        const T* value = x.at(row, at);
        if (!value) return 0;
        const float inverse = scale() == 0.0f ? 0.0f : 1.0f / scale();
        const float scaled = widen(*value) * inverse;
        return is_nan(scaled) ? 127 : int32_t(rintf(fminf(fmaxf(scaled, -128.0f), 127.0f)));
    }
    __device__ int32_t b(uint32_t column, uint32_t at, uint32_t) const { return int32_t(weight.code(column, at)); }
    __device__ float fold(int32_t sum, uint32_t column, uint32_t) const { return float(sum) * weight.scales[column]; }
    __device__ float number(float sum, uint32_t, uint32_t) const { return sum * scale(); }
};

} // namespace denoise

DENOISE_WAYS(quantized_conv) {
    namespace op = schema::quantized_conv;
    const View x = call.view(op::x), packed = call.view(op::weight), out = call.view(op::out), amax = call.view(op::amax);
    if (out.length() == 0) return;
    const ConvShape shape = conv_shape(call, op::x, op::cache, op::out, op::param_kt);
    const PackedFilters weight(packed, schema::Format(call.params[op::param_format]), out.last(), shape);
    const Sizes sizes = conv_sizes(shape, out);
    const Epilogue e = layer_epilogue(call, out, op::bias, -1, op::residual, op::param_act);
    with_float(x.dtype, [&](auto zero) {
        using T = decltype(zero);
        const ConvInput<T> input{shape, x.as<const T>(), call.view(op::cache).as<const T>()};
        if (amax.present()) add_tiles<T>(ways, call, IntegerConvOperands<T>{input, weight, amax.as<const float>()}, e, sizes);
        else add_tiles<T>(ways, call, FloatConvOperands<T>{input, weight}, e, sizes);
    });
}

namespace denoise {

struct PackFiltersArgs {
    const uint8_t* codes;
    int64_t stride; // of a filter's codes (C, taps)
    const float* scales;
    uint8_t* to;
    float* to_scales;
    int64_t filters, channels, taps;
};

__global__ void pack_filters_kernel(PackFiltersArgs args) {
    const int64_t step = int64_t(gridDim.x) * blockDim.x, first = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    for (int64_t i = first; i < args.filters * args.channels * args.taps; i += step) {
        const int64_t channel = i % args.channels, tap = i / args.channels % args.taps;
        const int64_t filter = i / args.channels / args.taps;
        args.to[i] = args.codes[filter * args.stride + channel * args.taps + tap];
    }
    for (int64_t i = first; i < args.filters; i += step) args.to_scales[i] = args.scales[i];
}

} // namespace denoise

DENOISE_OP(pack_quantized_conv) {
    namespace op = schema::pack_quantized_conv;
    const View codes = call.view(op::codes), out = call.view(op::out);
    const int64_t filters = codes.sizes[0], channels = call.i32(op::param_channels);
    const int64_t taps = int64_t(call.i32(op::param_kt)) * call.i32(op::param_kh) * call.i32(op::param_kw);
    const int64_t rows = round_up(filters, 64), code_bytes = rows * round_up(channels, 64) * taps;
    check_packed(out, code_bytes + 8 * rows);
    const PackFiltersArgs args{
        codes.as<const uint8_t>(), codes.strides[0], call.view(op::scale).as<const float>(), out.as<uint8_t>(),
        reinterpret_cast<float*>(out.as<uint8_t>() + code_bytes),
        filters, channels, taps};
    check(cudaMemsetAsync(out.data, 0, size_t(out.length()), call.device.work), "pack_quantized_conv");
    const int64_t count = std::max(filters * channels * taps, filters);
    launch(call, pack_filters_kernel, unsigned(std::min<int64_t>(ceil_div(count, 256), 65535)), 256, 0, args);
}
