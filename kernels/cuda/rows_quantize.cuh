// Quantizing a row by a team of threads: the device's half of kernels/src/ops/quantize_rows.rs, with its arithmetic.
#pragma once

#include "weight.cuh"

namespace denoise {

/// The scale and zero point of a row.
struct RowAffine {
    /// NaN where the row has no scale: something in it, or its range, is not finite.
    float scale;
    int zero;
};

/// Chooses them for values between low and high, as torchao does: computed in the activation's dtype, zero in range,
/// never so small that its reciprocal is not finite.
template <class T> __device__ RowAffine row_affine(schema::Rows rows, float low, float high) {
    const auto in_dtype = [](float x) { return widen(narrow<T>(x)); };
    const float smallest_normal = std::is_same_v<T, f16> ? 6.103515625e-5f : 1.17549435e-38f;
    const float amax = fmaxf(high, -low);
    float range = amax, steps = 448.0f, least = 1.17549435e-38f;
    if (rows == schema::Rows::int8) {
        steps = 127.5f;
        least = 1.1920929e-7f;
    } else if (rows == schema::Rows::int8_asym) {
        range = high - low;
        steps = 255.0f;
        least = smallest_normal;
    } else if (rows == schema::Rows::e5m2) {
        steps = 57344.0f;
    }
    if (!is_finite(low) || !is_finite(high) || !is_finite(range)) return {not_a_number(), 0};
    const float scale = fmaxf(in_dtype(range / steps), least);
    if (!is_finite(scale)) return {not_a_number(), 0};
    if (rows != schema::Rows::int8_asym) return {scale, 0};
    return {scale, int(fminf(fmaxf(-128.0f - rintf(in_dtype(low / scale)), -128.0f), 127.0f))};
}

__device__ inline uint8_t row_code(schema::Rows rows, const RowAffine& affine, float v) {
    if (is_nan(affine.scale)) return 0;
    // With a scale from elsewhere, NaN counts as the largest value.
    if (is_nan(v)) v = INFINITY;
    switch (rows) {
    case schema::Rows::e4m3: return small_code(Small{4, 3, 448.0f, true}, v / affine.scale);
    case schema::Rows::e5m2: return small_code(Small{5, 2, 57344.0f, true}, v / affine.scale);
    default: {
        const float code = rintf(v * (1.0f / affine.scale)) + float(affine.zero);
        return uint8_t(int8_t(fminf(fmaxf(code, -128.0f), 127.0f)));
    }
    }
}

/// Writes the quantized row of `value(i)`, of the precision of T; with `amax`, by a scale for all rows.
template <class T, class F>
__device__ void quantize_row(schema::Rows rows, F value, uint32_t k, const float* amax, uint8_t* to) {
    float low = 0, high = 0;
    if (amax) {
        high = *amax;
    } else {
        float wrong = 0;
        for (uint32_t i = threadIdx.x; i < k; i += blockDim.x) {
            const float v = value(i);
            low = fminf(low, v);
            high = fmaxf(high, v);
            if (!is_finite(v)) wrong = 1;
        }
        low = team_all(low, Least{}, 0.0f);
        high = team_all(high, Largest{}, 0.0f);
        if (team_all(wrong, Largest{}, 0.0f) > 0) low = high = not_a_number();
    }
    const RowAffine affine = row_affine<T>(rows, low, high);
    for (uint32_t i = threadIdx.x; i < k; i += blockDim.x) to[i] = row_code(rows, affine, value(i));
    const uint32_t trailer = uint32_t(rows_scale(k));
    for (uint32_t i = k + threadIdx.x; i < uint32_t(rows_bytes(k)); i += blockDim.x) {
        if (i < trailer || i >= trailer + 8) to[i] = 0;
    }
    if (threadIdx.x == 0) {
        store_word(to + trailer, affine.scale);
        store_word(to + trailer + 4, affine.zero);
    }
}

} // namespace denoise
