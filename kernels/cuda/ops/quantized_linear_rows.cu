// `quantized_linear` of quantized rows of x, on tensor cores.

#include "../mma_gemm.cuh"
#include "../quantized_linear.cuh"

bool denoise::multiply_rows(const Call& call, const QuantizedMultiply& multiply, const QuantizedRows& x) {
    const PackedWeight& weight = multiply.weight;
    const Columns columns = multiply.columns();
    const auto run = [&](const auto& product) {
        return mma_gemm(call, product, multiply.epilogue, multiply.out.dtype, multiply.sizes, multiply.variant);
    };
    switch (weight.format.kind) {
    case schema::Format::int8: return multiply.by_column() && run(Int8Product{{x, columns}, weight.scales});
    case schema::Format::int4: return multiply.by_group() && run(Int4Product{{x, columns}, Groups(weight)});
    case schema::Format::e4m3:
    case schema::Format::e5m2: {
        const auto x_format = x.kind == schema::Rows::e4m3 ? schema::Format::e4m3 : schema::Format::e5m2;
        const SmallBits x_bits = SmallBits::of<f16>(Format{x_format, 0, 0, 1});
        return multiply.by_column() &&
               run(Fp8Product{x, columns, weight.scales, x_bits, SmallBits::of<f16>(weight.format)});
    }
    default: return false;
    }
}
