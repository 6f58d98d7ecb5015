// `quantized_linear` of x in 16-bit floats, on tensor cores.
#pragma once

#include "mma_gemm.cuh"
#include "quantized_linear.cuh"

namespace denoise {

template <class T> void add_halves(Ways& ways, const Call& call, const QuantizedMultiply& multiply) {
    const PackedWeight& weight = multiply.weight;
    const Format& format = weight.format;
    const HalfProduct<T> x{{multiply.x.as<const uint8_t>(), RowMap(multiply.x)}, multiply.columns()};
    const auto add = [&](const auto& product) {
        add_mma(ways, call, product, multiply.epilogue, multiply.out.dtype, multiply.sizes);
    };
    if (format.kind == schema::Format::int4) {
        if (multiply.by_group()) add(Int4WeightProduct<T>{x, Groups(weight)});
        return;
    }
    if (!weight.by_column() || format.kind == schema::Format::sparse_int8) return;
    if (format.kind == schema::Format::int8) return add(Int8WeightProduct<T>{x, weight.scales});
    if (!SmallBits::fits<T>(format)) return;
    const SmallBits small = SmallBits::of<T>(format);
    if (format.bits() == 8) add(SmallWeightProduct<T, true>{x, weight.scales, small});
    else add(SmallWeightProduct<T, false>{x, weight.scales, small});
}

} // namespace denoise
