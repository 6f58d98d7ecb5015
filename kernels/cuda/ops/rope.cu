// Rotary positions, alone and after an RMS norm: a team of threads for each head of each token.

#include "../rows.cuh"

namespace denoise {

struct RopeArgs {
    const void* x;
    RowMap x_rows;
    const float* weight;
    const float *cos, *sin;
    int64_t cos_row, sin_row;
    void* out;
    RowMap out_rows;
    uint32_t rows, heads, tokens, width;
    float eps;
    bool norm;
};

template <class T> __global__ void rope_kernel(RopeArgs args) {
    const uint32_t row = team_row();
    if (row >= args.rows) return;
    const T* x = static_cast<const T*>(args.x) + args.x_rows.offset(row);
    T* out = static_cast<T*>(args.out) + args.out_rows.offset(row);
    const uint32_t token = row / args.heads % args.tokens;
    const float *cos = args.cos + token * args.cos_row, *sin = args.sin + token * args.sin_row;
    float factor = 1.0f;
    if (args.norm) {
        float squares = 0;
        for (uint32_t i = threadIdx.x; i < args.width; i += blockDim.x) squares += widen(x[i]) * widen(x[i]);
        factor = 1.0f / sqrtf(team_all(squares, Sum{}, 0.0f) / float(args.width) + args.eps);
    }
    for (uint32_t i = 2 * threadIdx.x; i < args.width; i += 2 * blockDim.x) {
        float even = widen(x[i]) * factor, odd = widen(x[i + 1]) * factor;
        if (args.weight) {
            even *= args.weight[i];
            odd *= args.weight[i + 1];
        }
        out[i] = narrow<T>(even * cos[i] - odd * sin[i]);
        out[i + 1] = narrow<T>(odd * cos[i + 1] + even * sin[i + 1]);
    }
}

static void run_rope(const Call& call, const View& x, const View& out, const View& cos, const View& sin,
                     const float* weight, bool norm, float eps) {
    const RopeArgs args{x.data,
                        RowMap(x),
                        weight,
                        cos.as<const float>(),
                        sin.as<const float>(),
                        cos.strides[0],
                        sin.strides[0],
                        out.data,
                        RowMap(out),
                        count32(x.rows()),
                        count32(x.sizes[2]),
                        count32(x.sizes[1]),
                        count32(x.last()),
                        eps,
                        norm};
    const Teams teams(x.length() > 0 ? x.rows() : 0, x.last());
    with_float(x.dtype, [&](auto zero) {
        launch(call, rope_kernel<decltype(zero)>, teams.blocks, teams.threads, 0, args);
    });
}

} // namespace denoise

DENOISE_OP(rope) {
    namespace op = schema::rope;
    run_rope(call, call.view(op::x), call.view(op::out), call.view(op::cos), call.view(op::sin), nullptr, false, 0.0f);
}

DENOISE_OP(rms_norm_rope) {
    namespace op = schema::rms_norm_rope;
    run_rope(call, call.view(op::x), call.view(op::out), call.view(op::cos), call.view(op::sin),
             call.view(op::weight).as<const float>(), true, call.f32(op::param_eps));
}
