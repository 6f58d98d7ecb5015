// Quantized rows of activations, and the magnitude that a scale for all rows needs.

#include "../loops.cuh"
#include "../rows_quantize.cuh"

namespace denoise {

template <class T>
__global__ void quantize_rows_kernel(const T* x, RowMap x_rows, const float* amax, uint8_t* out, RowMap out_rows,
                                     schema::Rows kind, uint32_t rows, uint32_t k) {
    const uint32_t row = team_row();
    if (row >= rows) return;
    const T* from = x + x_rows.offset(row);
    quantize_row<T>(kind, [&](uint32_t i) { return widen(from[i]); }, k, amax, out + out_rows.offset(row));
}

} // namespace denoise

DENOISE_OP(quantize_rows) {
    namespace op = schema::quantize_rows;
    const View x = call.view(op::x), out = call.view(op::out);
    const auto kind = schema::Rows(call.params[op::param_rows]);
    const Teams teams(x.rows(), x.last());
    with_float(x.dtype, [&](auto zero) {
        using T = decltype(zero);
        launch(call, quantize_rows_kernel<T>, teams.blocks, teams.threads, 0, x.as<const T>(), RowMap(x),
               call.view(op::amax).as<const float>(), out.as<uint8_t>(), RowMap(out), kind, count32(x.rows()),
               count32(x.last()));
    });
}

namespace denoise {

/// Magnitudes order as their bits do, and NaN above them all.
template <class T> struct AbsMax {
    const T* x;
    unsigned* out;
    template <int V> __device__ void run(const int64_t (&at)[1]) const {
        const auto pack = *reinterpret_cast<const Pack<T, V>*>(x + at[0]);
        unsigned most = 0;
        for (int i = 0; i < V; i++) {
            const unsigned bits = __float_as_uint(widen(pack.v[i])) & 0x7fffffff;
            most = bits > most ? bits : most;
        }
        // Few are the largest so far: most threads need no more than a look.
        if (most > *const_cast<volatile unsigned*>(out)) atomicMax(out, most);
    }
};

} // namespace denoise

DENOISE_OP(abs_max) {
    const View views[] = {call.view(schema::abs_max::x)};
    unsigned* out = call.view(schema::abs_max::out).as<unsigned>();
    check(cudaMemsetAsync(out, 0, sizeof(*out), call.device.work), "abs_max");
    with_float(views[0].dtype, [&](auto zero) {
        using T = decltype(zero);
        each<VECTOR<T>>(call, views, {sizeof(T)}, AbsMax<T>{views[0].as<const T>(), out});
    });
}
