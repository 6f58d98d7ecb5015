// Softmax and reductions of the last axis: a team of threads for each row.

#include "../rows.cuh"

namespace denoise {

template <class T>
__global__ void softmax_kernel(const T* x, RowMap x_rows, T* out, RowMap out_rows, uint32_t rows, uint32_t width) {
    const uint32_t row = team_row();
    if (row >= rows) return;
    const T* from = x + x_rows.offset(row);
    T* to = out + out_rows.offset(row);
    float most = -INFINITY;
    for (uint32_t i = threadIdx.x; i < width; i += blockDim.x) most = fmaxf(most, widen(from[i]));
    most = team_all(most, Largest{}, -INFINITY);
    float sum = 0;
    for (uint32_t i = threadIdx.x; i < width; i += blockDim.x) sum += expf(widen(from[i]) - most);
    const float scale = 1.0f / team_all(sum, Sum{}, 0.0f);
    for (uint32_t i = threadIdx.x; i < width; i += blockDim.x) to[i] = narrow<T>(expf(widen(from[i]) - most) * scale);
}

} // namespace denoise

DENOISE_OP(softmax) {
    const View x = call.view(schema::softmax::x), out = call.view(schema::softmax::out);
    const Teams teams(x.length() > 0 ? x.rows() : 0, x.last());
    with_float(x.dtype, [&](auto zero) {
        using T = decltype(zero);
        launch(call, softmax_kernel<T>, teams.blocks, teams.threads, 0, x.as<const T>(), RowMap(x), out.as<T>(),
               RowMap(out), count32(x.rows()), count32(x.last()));
    });
}

namespace denoise {

/// Where results go that need not be rows.
struct Places {
    RowMap rows;
    int64_t step;
    uint32_t width;
    explicit Places(const View& view) : rows(view), step(view.stride(0)), width(count32(view.last())) {}
    __device__ int64_t offset(uint32_t index) const {
        return rows.offset(index / width) + int64_t(index % width) * step;
    }
};

template <class T>
__global__ void reduce_kernel(const T* x, RowMap x_rows, T* out, Places places, schema::Reduce kind, uint32_t rows,
                              uint32_t width) {
    const uint32_t row = team_row();
    if (row >= rows) return;
    const T* from = x + x_rows.offset(row);
    float value;
    if (kind == schema::Reduce::max) {
        float most = -INFINITY, none = 0;
        for (uint32_t i = threadIdx.x; i < width; i += blockDim.x) {
            const float v = widen(from[i]);
            most = fmaxf(most, v);
            if (is_nan(v)) none = 1;
        }
        most = team_all(most, Largest{}, -INFINITY);
        value = team_all(none, Largest{}, 0.0f) > 0 ? not_a_number() : most;
    } else {
        float sum = 0;
        for (uint32_t i = threadIdx.x; i < width; i += blockDim.x) sum += widen(from[i]);
        value = team_all(sum, Sum{}, 0.0f);
        if (kind == schema::Reduce::mean) value /= float(width);
    }
    if (threadIdx.x == 0) out[places.offset(row)] = narrow<T>(value);
}

} // namespace denoise

DENOISE_OP(reduce) {
    const View x = call.view(schema::reduce::x), out = call.view(schema::reduce::out);
    const Teams teams(x.length() > 0 ? x.rows() : 0, x.last());
    const auto kind = schema::Reduce(call.params[schema::reduce::param_kind]);
    with_float(x.dtype, [&](auto zero) {
        using T = decltype(zero);
        launch(call, reduce_kernel<T>, teams.blocks, teams.threads, 0, x.as<const T>(), RowMap(x), out.as<T>(),
               Places(out), kind, count32(x.rows()), count32(x.last()));
    });
}
