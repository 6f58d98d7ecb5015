// What multiplies by quantized weights on tensor cores; each is compiled by itself.
#pragma once

#include "epilogue.cuh"
#include "gemm.cuh"
#include "products.cuh"

namespace denoise {

/// A multiply by a quantized weight.
struct QuantizedMultiply {
    View x, out;
    PackedWeight weight;
    Epilogue epilogue;
    Sizes sizes;

    Columns columns() const {
        const auto step = uint64_t(weight.format.row_bytes(sizes.k));
        // Behind the values of a sparse row are their places.
        const bool sparse = weight.format.kind == schema::Format::sparse_int8;
        return {weight.codes, step, sparse ? uint64_t(sizes.k) / 2 : step, uint32_t(weight.format.bits())};
    }
    /// Whether a unit of a product with groups is of one group.
    bool by_group() const { return weight.format.group % 32 == 0; }
};

// Each adds its ways where the format is one of its own and operands lie as tensor cores need them.

/// x of bf16 or f16 by any weight.
void add_bf16(Ways& ways, const Call& call, const QuantizedMultiply& multiply);
void add_f16(Ways& ways, const Call& call, const QuantizedMultiply& multiply);
/// Quantized rows of x.
void add_rows(Ways& ways, const Call& call, const QuantizedMultiply& multiply, const QuantizedRows& x);

} // namespace denoise
