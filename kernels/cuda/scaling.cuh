// What makes a number of a sum of products: scales of its row and of its column, which do not change along K, so that a
// multiply sums codes alone. What a row has, and what a column has, is found once for all sums that share it.
#pragma once

#include "weight.cuh"

namespace denoise {

/// Quantized rows of x, as bytes.
struct QuantizedRows {
    const uint8_t* data;
    RowMap rows;
    schema::Rows kind;
    uint32_t trailer;

    QuantizedRows(const View& x, schema::Rows kind, int64_t k)
        : data(x.as<const uint8_t>()), rows(x), kind(kind), trailer(count32(rows_scale(k))) {}
    __device__ const uint8_t* row(uint32_t row) const { return data + rows.offset(row); }
    __device__ float scale(uint32_t at) const { return load_word<float>(row(at) + trailer); }
    __device__ int zero(uint32_t at) const { return load_word<int>(row(at) + trailer + 4); }
};

/// Sums of the numbers themselves.
struct NoScaling {
    using Sum = float;
    struct Row {};
    struct Column {};
    __device__ Row row(uint32_t) const { return {}; }
    __device__ Column column(uint32_t) const { return {}; }
    __device__ static float number(float sum, Row, Column) { return sum; }
};

/// Rows of fp8 by a weight of fp8 with a scale for each of its rows.
struct Fp8Scaling {
    using Sum = float;
    struct Row {
        float scale;
    };
    struct Column {
        float scale;
    };
    QuantizedRows x;
    const float* scales;
    __device__ Row row(uint32_t row) const { return {x.scale(row)}; }
    __device__ Column column(uint32_t column) const { return {scales[column]}; }
    __device__ static float number(float sum, Row row, Column column) { return sum * column.scale * row.scale; }
};

/// Rows of integers by a weight of integers with a scale for each of its rows. A row's zero point counts as often as the
/// codes of the column add up to.
struct IntegerScaling {
    using Sum = int32_t;
    struct Row {
        float scale;
        int zero;
    };
    struct Column {
        float scale;
        int codes;
    };
    QuantizedRows x;
    const float* scales;
    const int32_t* codes;
    __device__ Row row(uint32_t row) const { return {x.scale(row), x.zero(row)}; }
    __device__ Column column(uint32_t column) const { return {scales[column], codes[column]}; }
    __device__ static float number(int32_t sum, Row row, Column column) {
        // Wraps around, as the zero point of a row may be any number.
        const int32_t centred = int32_t(uint32_t(sum) - uint32_t(row.zero) * uint32_t(column.codes));
        return float(centred) * column.scale * row.scale;
    }
};

} // namespace denoise
