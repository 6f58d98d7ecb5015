// `linear` by quantized weights, and their packing.

#include "../cublaslt.cuh"
#include "../hopper/ways.cuh"
#include "../quantized_linear.cuh"

namespace denoise {

/// x of floats by a quantized weight, which becomes floats as it is read.
template <class T> struct WeightOnlyOperands {
    using Value = float;
    using Sum = float;
    const T* x;
    RowMap x_rows;
    PackedWeight weight;
    __device__ float a(uint32_t row, uint32_t k) const { return widen(x[x_rows.offset(row) + k]); }
    __device__ float b(uint32_t column, uint32_t k, uint32_t) const {
        const uint64_t group = weight.group_of(column, k);
        return (weight.code(column, k) - float(weight.zero(group))) * weight.scales[group];
    }
    __device__ float fold(float sum, uint32_t, uint32_t) const { return sum; }
    __device__ float number(float sum, uint32_t, uint32_t) const { return sum; }
};

/// Rows of fp8 by a weight of fp8.
struct Fp8Operands {
    using Value = float;
    using Sum = float;
    QuantizedRows x;
    PackedWeight weight;
    __device__ float a(uint32_t row, uint32_t k) const { return rows_value(x.kind, x.row(row)[k]); }
    __device__ float b(uint32_t column, uint32_t k, uint32_t) const {
        return weight.code(column, k) * weight.scales[weight.group_of(column, k)];
    }
    __device__ float fold(float sum, uint32_t, uint32_t) const { return sum; }
    __device__ float number(float sum, uint32_t row, uint32_t) const { return sum * x.scale(row); }
};

/// Rows of integers by a weight of integers: a tile's sum is exact, and of one group of the weight, as groups are of a
/// multiple of a tile's columns or of all.
struct IntegerOperands {
    using Value = int32_t;
    using Sum = float;
    QuantizedRows x;
    PackedWeight weight;
    __device__ int32_t a(uint32_t row, uint32_t k) const { return int32_t(uint32_t(int8_t(x.row(row)[k])) - uint32_t(x.zero(row))); }
    __device__ int32_t b(uint32_t column, uint32_t k, uint32_t) const {
        return int32_t(weight.code(column, k)) - weight.zero(weight.group_of(column, k));
    }
    __device__ float fold(int32_t sum, uint32_t column, uint32_t k) const {
        return float(sum) * weight.scales[weight.group_of(column, k)];
    }
    __device__ float number(float sum, uint32_t row, uint32_t) const { return sum * x.scale(row); }
};

/// Codes of rows by codes of a weight, whose sums are scaled as a whole.
template <class Scaling> struct CodesOperands {
    using Value = typename Scaling::Sum;
    using Sum = Value;
    PackedWeight weight;
    Scaling scaling;
    __device__ Value a(uint32_t row, uint32_t k) const { return Value(rows_value(scaling.x.kind, scaling.x.row(row)[k])); }
    __device__ Value b(uint32_t column, uint32_t k, uint32_t) const { return Value(weight.code(column, k)); }
    __device__ Sum fold(Value sum, uint32_t, uint32_t) const { return sum; }
    __device__ float number(Sum sum, uint32_t row, uint32_t column) const {
        return Scaling::number(sum, scaling.row(row), scaling.column(column));
    }
};

static Format packed_format(const Call& call, int format) {
    return Format{schema::Format(call.params[format]), call.i32(format + 1), call.i32(format + 2),
                  uint32_t(call.i32(format + 3))};
}

} // namespace denoise

DENOISE_WAYS(quantized_linear) {
    namespace op = schema::quantized_linear;
    const View x = call.view(op::x), packed = call.view(op::weight), out = call.view(op::out);
    const int64_t n = call.i32(op::param_n), k = call.i32(op::param_k);
    const PackedWeight weight(packed, packed_format(call, op::param_format), n, k, call.i32(op::param_zero) != 0);
    const Epilogue e = layer_epilogue(call, out, op::bias, op::gate, op::residual, op::param_act);
    const auto rows = schema::Rows(call.params[op::param_rows]);
    const Sizes sizes{out.rows(), n, k, 1};
    const QuantizedRows quantized(x, rows, k);
    const QuantizedMultiply multiply{x, out, weight, e, sizes};
    const auto add_own = [&] {
        if (rows != schema::Rows::none) add_rows(ways, call, multiply, quantized);
        else if (x.dtype == schema::DType::bf16) add_bf16(ways, call, multiply);
        else if (x.dtype == schema::DType::f16) add_f16(ways, call, multiply);
    };
    // Of few rows, what reads the weight once is the first guess.
    const bool few = sizes.m <= FEW_M;
    if (few) add_own();
    with_float(out.dtype, [&](auto zero) {
        using T = decltype(zero);
        const auto add_others = [&](const auto& operands) {
            if (!few) add_own();
            if (ways.empty()) add_tiles<T>(ways, call, operands, e, sizes);
        };
        const auto add_codes = [&](const auto& scaling) {
            hopper::add_codes<T>(ways, call, x, weight, scaling, e, sizes.m, n);
            add_cublaslt_codes<T>(ways, call, weight, scaling, e, sizes.m, n);
            add_others(CodesOperands<std::decay_t<decltype(scaling)>>{weight, scaling});
        };
        switch (rows) {
        case schema::Rows::none: return add_others(WeightOnlyOperands<T>{x.as<const T>(), RowMap(x), weight});
        case schema::Rows::e4m3:
        case schema::Rows::e5m2:
            if (weight.by_column()) return add_codes(Fp8Scaling{quantized, weight.scales});
            return add_others(Fp8Operands{quantized, weight});
        default:
            if (weight.by_column()) return add_codes(IntegerScaling{quantized, weight.scales, weight.sums});
            return add_others(IntegerOperands{quantized, weight});
        }
    });
}

namespace denoise {

struct PackArgs {
    const uint8_t* codes;
    int64_t stride;
    const float* scales;
    const int8_t* zeros;
    uint8_t* to;
    float* to_scales;
    int8_t* to_zeros;
    uint64_t row_bytes, code_bytes, groups;
};

/// The sum of the codes of each row of a packed weight, by a team for each.
__global__ void sum_codes_kernel(PackedWeight packed, int32_t* sums, uint32_t rows) {
    const uint32_t row = team_row();
    if (row >= rows) return;
    // Exact in floats: a lane adds up few enough.
    float sum = 0;
    for (uint32_t i = threadIdx.x; i < packed.k; i += blockDim.x) sum += packed.code(row, i);
    sum = team_all(sum, Sum{}, 0.0f);
    if (threadIdx.x == 0) sums[row] = int32_t(sum);
}

__global__ void pack_quantized_kernel(PackArgs args) {
    const uint64_t step = uint64_t(gridDim.x) * blockDim.x, first = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    for (uint64_t i = first; i < args.code_bytes; i += step) {
        args.to[i] = args.codes[int64_t(i / args.row_bytes) * args.stride + int64_t(i % args.row_bytes)];
    }
    for (uint64_t i = first; i < args.groups; i += step) {
        args.to_scales[i] = args.scales[i];
        if (args.zeros) args.to_zeros[i] = args.zeros[i];
    }
}

} // namespace denoise

DENOISE_OP(pack_quantized) {
    namespace op = schema::pack_quantized;
    const View codes = call.view(op::codes), out = call.view(op::out);
    const int64_t n = call.i32(op::param_n), k = call.i32(op::param_k);
    const Format format = packed_format(call, op::param_format);
    const int8_t* zeros = call.view(op::zero).as<const int8_t>();
    const PackedWeight packed(out, format, n, k, zeros != nullptr);
    const PackArgs args{codes.as<const uint8_t>(),
                        codes.strides[0],
                        call.view(op::scale).as<const float>(),
                        zeros,
                        out.as<uint8_t>(),
                        const_cast<float*>(packed.scales),
                        const_cast<int8_t*>(packed.zeros),
                        uint64_t(format.row_bytes(k)),
                        uint64_t(n * format.row_bytes(k)),
                        uint64_t(n * format.groups(k))};
    check(cudaMemsetAsync(out.data, 0, size_t(out.length()), call.device.work), "pack_quantized");
    const int64_t count = std::max(args.code_bytes, args.groups);
    launch(call, pack_quantized_kernel, unsigned(std::min<int64_t>(ceil_div(count, 256), 65535)), 256, 0, args);
    if (format.is_integer() && packed.by_column()) {
        const Teams teams(n, k);
        launch(call, sum_codes_kernel, teams.blocks, teams.threads, 0, packed, const_cast<int32_t*>(packed.sums), count32(n));
    }
}
