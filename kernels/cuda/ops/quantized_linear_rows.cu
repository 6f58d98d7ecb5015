// `quantized_linear` of quantized rows of x, on tensor cores.

#include "../mma_gemm.cuh"
#include "../quantized_linear.cuh"

void denoise::add_rows(Ways& ways, const Call& call, const QuantizedMultiply& multiply, const QuantizedRows& x) {
    const PackedWeight& weight = multiply.weight;
    const Columns columns = multiply.columns();
    const auto add = [&](const auto& product) {
        add_mma(ways, call, product, multiply.epilogue, multiply.out.dtype, multiply.sizes);
    };
    switch (weight.format.kind) {
    case schema::Format::int8:
        if (weight.by_column()) add(Int8Product{{{x, columns}, {x, weight.scales, weight.sums}}});
        return;
    case schema::Format::sparse_int8:
        if (weight.by_column()) add(SparseProduct{{{x, columns}, {x, weight.scales, weight.sums}}});
        return;
    case schema::Format::int4:
        if (multiply.by_group()) add(Int4Product{{x, columns}, Groups(weight)});
        return;
    case schema::Format::e4m3:
    case schema::Format::e5m2: {
        if (!weight.by_column()) return;
        const auto x_format = x.kind == schema::Rows::e4m3 ? schema::Format::e4m3 : schema::Format::e5m2;
        const SmallBits x_bits = SmallBits::of<f16>(Format{x_format, 0, 0, 1});
        return add(Fp8Product{x, columns, weight.scales, x_bits, SmallBits::of<f16>(weight.format)});
    }
    default: return;
    }
}
