// `quantized_linear` of x in 16-bit floats, on tensor cores.
#pragma once

#include "mma_gemm.cuh"
#include "quantized_linear.cuh"

namespace denoise {

template <class T> bool multiply_halves(const Call& call, const QuantizedMultiply& multiply) {
    const PackedWeight& weight = multiply.weight;
    const HalfProduct<T> x{{multiply.x.as<const uint8_t>(), RowMap(multiply.x)}, multiply.columns()};
    const auto run = [&](const auto& product) {
        return mma_gemm(call, product, multiply.epilogue, multiply.out.dtype, multiply.sizes, multiply.variant);
    };
    const Format& format = weight.format;
    switch (format.kind) {
    case schema::Format::int4:
        return multiply.by_group() && run(Int4WeightProduct<T>{x, Groups(weight)});
    case schema::Format::int8: return multiply.by_column() && run(Int8WeightProduct<T>{x, weight.scales});
    case schema::Format::e4m3:
    case schema::Format::e5m2:
    case schema::Format::fpx: {
        if (!multiply.by_column() || !SmallBits::fits<T>(format)) return false;
        const SmallBits small = SmallBits::of<T>(format);
        if (format.bits() == 8) return run(SmallWeightProduct<T, true>{x, weight.scales, small});
        return run(SmallWeightProduct<T, false>{x, weight.scales, small});
    }
    default: return false;
    }
}

} // namespace denoise
