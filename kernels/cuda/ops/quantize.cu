// From float weights to stored codes, scales and zero points, and back, with the arithmetic of the CPU's kernels
// (kernels/src/ops/quantize.rs), which is torchao's.

#include "../weight.cuh"

#include <algorithm>

namespace denoise {

/// A weight's format, its bits and its group (0: all columns).
static Format format_of(const Call& call, int format, int ebits, int mbits, int group, int64_t k) {
    const int64_t columns = call.i32(group) == 0 ? std::max<int64_t>(k, 1) : call.i32(group);
    return Format{schema::Format(call.params[format]), ebits < 0 ? 0 : call.i32(ebits), mbits < 0 ? 0 : call.i32(mbits),
                  uint32_t(columns)};
}

/// The small float of a format; of `ebits` 0 for integers.
static Small small_of(const Format& format) {
    switch (format.kind) {
    case schema::Format::e4m3: return e4m3_small();
    case schema::Format::e5m2: return e5m2_small();
    case schema::Format::fpx: {
        const int bias = (1 << (format.ebits - 1)) - 1;
        const int exponent = (1 << format.ebits) - 1 - bias;
        const float steps = float((1 << (format.mbits + 1)) - 1);
        return {format.ebits, format.mbits, std::ldexp(steps, exponent - format.mbits), false};
    }
    default: return {0, 0, 0.0f, false};
    }
}

/// How far numbers reach above and below zero; NaN where one is NaN.
struct Reach {
    float above = 0, below = 0;
};

/// The larger number, or NaN where one is.
struct LargerOrNan {
    __device__ float operator()(float a, float b) const { return b > a || is_nan(b) ? b : a; }
};

/// How scales follow from reaches.
struct Scaling {
    bool symmetric;
    schema::DType dtype;
    /// The least range, what a range is divided by, and the least scale.
    float range, divisor, least;

    Scaling(const Format& format, bool symmetric, schema::DType dtype)
        : symmetric(symmetric), dtype(dtype), range(0), divisor(0), least(0) {
        const float smallest_normal = dtype == schema::DType::f16 ? 6.103515625e-5f : 1.17549435e-38f;
        switch (format.kind) {
        case schema::Format::fpx: range = 1e-12f; [[fallthrough]];
        case schema::Format::e4m3:
        case schema::Format::e5m2: divisor = small_of(format).largest; break;
        case schema::Format::int4:
            divisor = symmetric ? 7.5f : 15.0f;
            least = smallest_normal;
            break;
        default: divisor = 127.5f; least = 1.1920929e-7f;
        }
    }

    /// The scale for numbers of a reach, rounded to the dtype after each operation.
    __device__ float scale(Reach reach) const {
        const auto at_least = [](float x, float least) { return x < least ? least : x; };
        const float all = symmetric ? LargerOrNan{}(reach.above, reach.below) : round_to(dtype, reach.above + reach.below);
        return at_least(round_to(dtype, at_least(all, range) / divisor), least);
    }
};

/// The zero point for numbers that reach so far below zero; 0 where that is NaN.
__device__ inline int8_t zero_of(schema::DType dtype, float below, float scale) {
    const float zero = -8.0f - rintf(round_to(dtype, -below / scale));
    return is_nan(zero) ? int8_t(0) : int8_t(fminf(fmaxf(zero, -8.0f), 7.0f));
}

/// A float weight's groups, each a row of its own.
struct GroupsOf {
    const void* data;
    int64_t stride;
    uint32_t groups, size;
    schema::DType dtype;

    template <class T> __device__ const T* group(uint32_t index) const {
        return static_cast<const T*>(data) + int64_t(index / groups) * stride + int64_t(index % groups) * size;
    }
    /// The reach of a group, for all threads of the team.
    template <class T> __device__ Reach reach(uint32_t index) const {
        const T* x = group<T>(index);
        Reach reach;
        for (uint32_t i = threadIdx.x; i < size; i += blockDim.x) {
            const float v = round_to(dtype, widen(x[i]));
            reach.above = LargerOrNan{}(reach.above, v);
            reach.below = LargerOrNan{}(reach.below, -v);
        }
        return {team_all(reach.above, LargerOrNan{}, 0.0f), team_all(reach.below, LargerOrNan{}, 0.0f)};
    }
};

static GroupsOf groups_of(const View& weight, const Format& format, schema::DType dtype) {
    return {weight.data, weight.strides[0], count32(format.groups(weight.sizes[1])), format.group, dtype};
}

template <class T> __global__ void scale_kernel(GroupsOf groups, Scaling scaling, float* out, uint32_t count) {
    const uint32_t index = team_row();
    if (index >= count) return;
    const Reach reach = groups.reach<T>(index);
    if (threadIdx.x == 0) out[index] = scaling.scale(reach);
}

/// The bits of floats of no sign are ordered as the floats are, with NaN above all.
template <class T> __global__ void whole_reach_kernel(GroupsOf groups, unsigned* bits, uint32_t count) {
    const uint32_t index = team_row();
    if (index >= count) return;
    const Reach reach = groups.reach<T>(index);
    if (threadIdx.x == 0) {
        atomicMax(&bits[0], __float_as_uint(reach.above) & 0x7fffffff);
        atomicMax(&bits[1], __float_as_uint(reach.below) & 0x7fffffff);
    }
}

__global__ void whole_scale_kernel(const unsigned* bits, Scaling scaling, float* out) {
    *out = scaling.scale({__uint_as_float(bits[0]), __uint_as_float(bits[1])});
}

template <class T>
__global__ void zero_kernel(GroupsOf groups, const float* scales, int8_t* out, uint32_t count) {
    const uint32_t index = team_row();
    if (index >= count) return;
    const Reach reach = groups.reach<T>(index);
    if (threadIdx.x == 0) out[index] = zero_of(groups.dtype, reach.below, scales[index]);
}

} // namespace denoise

DENOISE_OP(quantize_scale) {
    namespace op = schema::quantize_scale;
    const View weight = call.view(op::weight), out = call.view(op::out);
    const int64_t n = weight.sizes[0], k = weight.sizes[1];
    const Format format = format_of(call, op::param_format, op::param_ebits, op::param_mbits, op::param_group, k);
    const auto dtype = schema::DType(call.params[op::param_dtype]);
    const Scaling scaling(format, call.i32(op::param_symmetric) == 1, dtype);
    const GroupsOf groups = groups_of(weight, format, dtype);
    const bool whole = call.i32(op::param_group) == 0;
    const uint32_t count = count32(n * groups.groups);
    const Teams teams(count, groups.size);
    with_float(weight.dtype, [&](auto zero) {
        using T = decltype(zero);
        if (!whole) {
            launch(call, scale_kernel<T>, teams.blocks, teams.threads, 0, groups, scaling, out.as<float>(), count);
            return;
        }
        unsigned* bits = call.device.words;
        check(cudaMemsetAsync(bits, 0, 2 * sizeof(*bits), call.device.work), "quantize_scale");
        if (k > 0) launch(call, whole_reach_kernel<T>, teams.blocks, teams.threads, 0, groups, bits, count);
        launch(call, whole_scale_kernel, 1, 1, 0, bits, scaling, out.as<float>());
    });
}

DENOISE_OP(quantize_zero_point) {
    namespace op = schema::quantize_zero_point;
    const View weight = call.view(op::weight), out = call.view(op::out);
    const Format format = format_of(call, op::param_format, -1, -1, op::param_group, weight.sizes[1]);
    const GroupsOf groups = groups_of(weight, format, schema::DType(call.params[op::param_dtype]));
    const uint32_t count = count32(out.length());
    const Teams teams(count, groups.size);
    with_float(weight.dtype, [&](auto zero) {
        launch(call, zero_kernel<decltype(zero)>, teams.blocks, teams.threads, 0, groups,
               call.view(op::scale).as<const float>(), out.as<int8_t>(), count);
    });
}

namespace denoise {

/// Which two of four magnitudes are kept, a bit for each: the largest, and of equals the earlier ones.
__device__ inline unsigned kept_of(const float (&x)[4]) {
    unsigned magnitude[4], kept = 0;
    for (int i = 0; i < 4; i++) magnitude[i] = __float_as_uint(x[i]) & 0x7fffffff;
    for (int i = 0; i < 4; i++) {
        int above = 0;
        for (int j = 0; j < 4; j++) above += magnitude[j] > magnitude[i] || (magnitude[j] == magnitude[i] && j < i);
        if (above < 2) kept |= 1u << i;
    }
    return kept;
}

/// The place of the first or the second one that is kept.
__device__ inline unsigned kept_place(unsigned kept, unsigned which) {
    unsigned place = 0;
    for (unsigned seen = 0; place < 3; place++) {
        if ((kept >> place & 1) && seen++ == which) break;
    }
    return place;
}

struct Codes {
    const void* weight;
    int64_t stride;
    const float* scales;
    const int8_t* zeros;
    uint32_t k, groups;
    Format format;
    Small small;
    schema::DType dtype;

    template <class T> __device__ float value(uint32_t row, uint32_t column) const {
        return round_to(dtype, widen(static_cast<const T*>(weight)[row * stride + column]));
    }

    /// The code of a number; NaN becomes the lowest integer.
    template <class T> __device__ uint8_t code(uint32_t row, uint32_t column) const {
        const float x = value<T>(row, column);
        const uint64_t at = uint64_t(row) * groups + column / format.group;
        const float scale = scales[at];
        if (small.ebits > 0) return small_code(small, x == 0.0f && scale == 0.0f ? x : x / scale);
        const bool nibble = format.kind == schema::Format::int4;
        const float low = nibble ? -8.0f : -128.0f, high = nibble ? 7.0f : 127.0f;
        // int8's scale is f32, which widens a product with it.
        const schema::DType product = nibble ? dtype : schema::DType::f32;
        const float rounded = rintf(round_to(product, x * round_to(product, 1.0f / scale)));
        if (is_nan(rounded)) return uint8_t(int8_t(low));
        const float zero = zeros ? float(zeros[at]) : 0.0f;
        return uint8_t(int8_t(fminf(fmaxf(rounded + zero, low), high)));
    }

    template <class T> __device__ unsigned kept(uint32_t row, uint32_t four) const {
        float x[4];
        for (int i = 0; i < 4; i++) x[i] = value<T>(row, 4 * four + i);
        return kept_of(x);
    }

    /// A byte of a stored row.
    template <class T> __device__ uint8_t byte(uint32_t row, uint32_t at) const {
        const int bits = format.bits();
        if (format.kind == schema::Format::sparse_int8) {
            if (at < k / 2) return code<T>(row, 4 * (at / 2) + kept_place(kept<T>(row, at / 2), at % 2));
            const uint32_t first = 2 * (at - k / 2);
            unsigned places = 0;
            for (uint32_t half = 0; half < 2; half++) {
                const unsigned two = kept<T>(row, first + half);
                places |= (kept_place(two, 0) | kept_place(two, 1) << 2) << (4 * half);
            }
            return uint8_t(places);
        }
        if (bits == 8) return code<T>(row, at);
        // Codes side by side, from the lowest bit on.
        const uint64_t first = uint64_t(at) * 8;
        unsigned byte = 0;
        for (uint64_t column = first / bits; column < k && column * bits < first + 8; column++) {
            const unsigned mask = (1u << bits) - 1, value = code<T>(row, uint32_t(column)) & mask;
            const int shift = int(int64_t(column * bits) - int64_t(first));
            byte |= shift >= 0 ? value << shift : value >> -shift;
        }
        return uint8_t(byte);
    }
};

template <class T> __global__ void codes_kernel(Codes codes, uint8_t* out, uint32_t row_bytes, uint64_t count) {
    const uint64_t step = uint64_t(gridDim.x) * blockDim.x;
    for (uint64_t i = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step) {
        out[i] = codes.byte<T>(uint32_t(i / row_bytes), uint32_t(i % row_bytes));
    }
}

/// The blocks of a kernel whose threads each go over several of so many elements.
static unsigned blocks_over(int64_t count) { return unsigned(std::min<int64_t>(ceil_div(count, 256), 65535)); }

} // namespace denoise

DENOISE_OP(quantize_codes) {
    namespace op = schema::quantize_codes;
    const View weight = call.view(op::weight), out = call.view(op::out);
    const int64_t k = weight.sizes[1];
    const Format format = format_of(call, op::param_format, op::param_ebits, op::param_mbits, op::param_group, k);
    const Codes codes{weight.data,
                      weight.strides[0],
                      call.view(op::scale).as<const float>(),
                      call.view(op::zero).as<const int8_t>(),
                      count32(k),
                      count32(format.groups(k)),
                      format,
                      small_of(format),
                      schema::DType(call.params[op::param_dtype])};
    const int64_t count = out.length();
    with_float(weight.dtype, [&](auto zero) {
        launch(call, codes_kernel<decltype(zero)>, blocks_over(count), 256, 0, codes, out.as<uint8_t>(),
               uint32_t(format.row_bytes(k)), uint64_t(count));
    });
}

namespace denoise {

struct Stored {
    const uint8_t* codes;
    int64_t stride;
    const float* scales;
    const int8_t* zeros;
    uint32_t k, groups;
    Format format;
};

template <class T> __global__ void dequantize_kernel(Stored stored, T* out, uint64_t count) {
    const uint64_t step = uint64_t(gridDim.x) * blockDim.x;
    for (uint64_t i = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step) {
        const uint32_t row = uint32_t(i / stored.k), column = uint32_t(i % stored.k);
        const uint64_t at = uint64_t(row) * stored.groups + column / stored.format.group;
        const float code = stored.format.value(stored.codes + row * stored.stride, column, stored.k);
        out[i] = narrow<T>((code - (stored.zeros ? float(stored.zeros[at]) : 0.0f)) * stored.scales[at]);
    }
}

} // namespace denoise

DENOISE_OP(dequantize) {
    namespace op = schema::dequantize;
    const View codes = call.view(op::codes), out = call.view(op::out);
    const int64_t k = call.i32(op::param_k);
    const Format format = format_of(call, op::param_format, op::param_ebits, op::param_mbits, op::param_group, k);
    const Stored stored{codes.as<const uint8_t>(),
                        codes.strides[0],
                        call.view(op::scale).as<const float>(),
                        call.view(op::zero).as<const int8_t>(),
                        count32(k),
                        count32(format.groups(k)),
                        format};
    with_float(out.dtype, [&](auto zero) {
        using T = decltype(zero);
        launch(call, dequantize_kernel<T>, blocks_over(out.length()), 256, 0, stored, out.as<T>(), uint64_t(out.length()));
    });
}

namespace denoise {

template <class T>
__global__ void prune_kernel(const T* weight, int64_t stride, T* out, uint32_t fours, uint64_t count) {
    const uint64_t step = uint64_t(gridDim.x) * blockDim.x;
    for (uint64_t i = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step) {
        const T* from = weight + int64_t(i / fours) * stride + int64_t(i % fours) * 4;
        float x[4];
        for (int j = 0; j < 4; j++) x[j] = widen(from[j]);
        const unsigned kept = kept_of(x);
        for (int j = 0; j < 4; j++) out[4 * i + j] = kept >> j & 1 ? from[j] : narrow<T>(0.0f);
    }
}

} // namespace denoise

DENOISE_OP(prune_semi_structured) {
    namespace op = schema::prune_semi_structured;
    const View weight = call.view(op::weight), out = call.view(op::out);
    const int64_t count = out.length() / 4;
    with_float(weight.dtype, [&](auto zero) {
        using T = decltype(zero);
        launch(call, prune_kernel<T>, blocks_over(count), 256, 0, weight.as<const T>(), weight.strides[0], out.as<T>(),
               count32(weight.sizes[1] / 4), uint64_t(count));
    });
}
