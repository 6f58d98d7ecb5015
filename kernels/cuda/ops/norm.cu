// Layer norm with modulation, and RMS norm; to floats, or to quantized rows of them: a team of threads for each row.

#include "../rows_quantize.cuh"

namespace denoise {

/// A view that is broadcast to x, of its float type.
struct Modulation {
    const void* data;
    RowMap rows;
    int64_t step;
    explicit Modulation(const View& view) : data(view.data), rows(view), step(view.stride(0)) {}
    template <class T> __device__ float at(uint32_t row, uint32_t i) const {
        return widen(static_cast<const T*>(data)[rows.offset(row) + int64_t(i) * step]);
    }
};

/// A normalized row's values, one by one.
template <class T> struct Normalized {
    const T* x;
    const float *weight, *bias;
    const Modulation *scale, *shift;
    uint32_t row;
    float mean, factor;
    /// Rounded to T, which quantization starts from too.
    __device__ T at(uint32_t i) const {
        float y = (widen(x[i]) - mean) * factor;
        if (weight) y *= weight[i];
        if (bias) y += bias[i];
        if (scale->data) y *= 1.0f + scale->at<T>(row, i);
        if (shift->data) y += shift->at<T>(row, i);
        return narrow<T>(y);
    }
};

struct NormArgs {
    const void* x;
    RowMap x_rows;
    const float *weight, *bias;
    Modulation scale, shift;
    void* out;
    RowMap out_rows;
    uint32_t rows, width;
    float eps;
    bool centered;
    schema::Rows kind;
};

template <class T> __global__ void norm_kernel(NormArgs args) {
    const uint32_t row = team_row();
    if (row >= args.rows) return;
    const uint32_t width = args.width;
    const T* x = static_cast<const T*>(args.x) + args.x_rows.offset(row);
    float mean = 0;
    if (args.centered) {
        float sum = 0;
        for (uint32_t i = threadIdx.x; i < width; i += blockDim.x) sum += widen(x[i]);
        mean = team_all(sum, Sum{}, 0.0f) / float(width);
    }
    float squares = 0;
    for (uint32_t i = threadIdx.x; i < width; i += blockDim.x) {
        const float v = widen(x[i]) - mean;
        squares += v * v;
    }
    const float factor = 1.0f / sqrtf(team_all(squares, Sum{}, 0.0f) / float(width) + args.eps);
    const Normalized<T> y{x, args.weight, args.bias, &args.scale, &args.shift, row, mean, factor};
    if (args.kind == schema::Rows::none) {
        T* out = static_cast<T*>(args.out) + args.out_rows.offset(row);
        for (uint32_t i = threadIdx.x; i < width; i += blockDim.x) out[i] = y.at(i);
    } else {
        uint8_t* out = static_cast<uint8_t*>(args.out) + args.out_rows.offset(row);
        quantize_row<T>(args.kind, [&](uint32_t i) { return widen(y.at(i)); }, width, nullptr, out);
    }
}

static void run_norm(const Call& call, const NormArgs& args, const View& x, const View& out) {
    const Teams teams(out.length() > 0 ? x.rows() : 0, x.last());
    with_float(x.dtype, [&](auto zero) {
        launch(call, norm_kernel<decltype(zero)>, teams.blocks, teams.threads, 0, args);
    });
}

} // namespace denoise

DENOISE_OP(layer_norm) {
    namespace op = schema::layer_norm;
    const View x = call.view(op::x), out = call.view(op::out);
    const NormArgs args{x.data,
                        RowMap(x),
                        call.view(op::weight).as<const float>(),
                        call.view(op::bias).as<const float>(),
                        Modulation(call.broadcast(op::scale, x)),
                        Modulation(call.broadcast(op::shift, x)),
                        out.data,
                        RowMap(out),
                        count32(x.rows()),
                        count32(x.last()),
                        call.f32(op::param_eps),
                        true,
                        schema::Rows(call.params[op::param_rows])};
    run_norm(call, args, x, out);
}

DENOISE_OP(rms_norm) {
    namespace op = schema::rms_norm;
    const View x = call.view(op::x), out = call.view(op::out);
    const NormArgs args{x.data,
                        RowMap(x),
                        call.view(op::weight).as<const float>(),
                        nullptr,
                        Modulation(View{}),
                        Modulation(View{}),
                        out.data,
                        RowMap(out),
                        count32(x.rows()),
                        count32(x.last()),
                        call.f32(op::param_eps),
                        false,
                        schema::Rows(call.params[op::param_rows])};
    run_norm(call, args, x, out);
}
