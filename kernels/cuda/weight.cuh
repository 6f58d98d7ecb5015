// Stored forms of quantized weights and activations: the device's half of kernels/src/quant.rs.
#pragma once

#include "rows.cuh"

#include <algorithm>

namespace denoise {

/// A format with what it takes besides.
struct Format {
    schema::Format kind;
    int ebits, mbits;
    /// Columns that share a scale.
    uint32_t group;

    __host__ __device__ int bits() const {
        switch (kind) {
        case schema::Format::int4: return 4;
        case schema::Format::fpx: return 1 + ebits + mbits;
        // Half a byte of value and a quarter of places for each two of four.
        case schema::Format::sparse_int8: return 5;
        default: return 8;
        }
    }
    bool is_integer() const {
        return kind == schema::Format::int8 || kind == schema::Format::int4 || kind == schema::Format::sparse_int8;
    }
    /// Bytes of a stored row of k columns.
    __host__ __device__ int64_t row_bytes(int64_t k) const { return (k * bits() + 7) / 8; }
    /// Scales in a row of k columns.
    __host__ __device__ int64_t groups(int64_t k) const { return k / group; }

    /// The value of a column of a stored row, before zero point and scale.
    __device__ float value(const uint8_t* row, uint32_t column, uint32_t k) const {
        switch (kind) {
        case schema::Format::int4: {
            const uint8_t byte = row[column / 2];
            const int nibble = column % 2 == 0 ? byte & 15 : byte >> 4;
            return float((nibble ^ 8) - 8);
        }
        case schema::Format::e4m3: return e4m3_value(row[column]);
        case schema::Format::e5m2: return e5m2_value(row[column]);
        case schema::Format::fpx: {
            const uint64_t at = uint64_t(column) * bits();
            const unsigned shift = unsigned(at % 8);
            const unsigned low = row[at / 8], high = shift + bits() > 8 ? row[at / 8 + 1] : 0;
            return small_value(ebits, mbits, (low | high << 8) >> shift & ((1u << bits()) - 1));
        }
        case schema::Format::sparse_int8: {
            const uint32_t four = column / 4, place = column % 4;
            const unsigned places = row[k / 2 + four / 2] >> (4 * (four % 2));
            for (int i = 0; i < 2; i++) {
                if ((places >> (2 * i) & 3) == place) return float(int8_t(row[2 * four + i]));
            }
            return 0.0f;
        }
        default: return float(int8_t(row[column]));
        }
    }
};

/// Bytes of a quantized row of k values: codes, rounded up to 64, then scale, zero point and room.
__host__ __device__ inline int64_t rows_bytes(int64_t k) { return (k + 63) / 64 * 64 + 64; }
/// The byte at which its scale (f32) and then its zero point (i32) stand.
__host__ __device__ inline int64_t rows_scale(int64_t k) { return (k + 63) / 64 * 64; }

/// A word at any address.
template <class T> __device__ T load_word(const uint8_t* from) {
    static_assert(sizeof(T) == 4, "a word has four bytes");
    const unsigned bits = from[0] | unsigned(from[1]) << 8 | unsigned(from[2]) << 16 | unsigned(from[3]) << 24;
    T value;
    memcpy(&value, &bits, 4);
    return value;
}

template <class T> __device__ void store_word(uint8_t* to, T value) {
    static_assert(sizeof(T) == 4, "a word has four bytes");
    unsigned bits;
    memcpy(&bits, &value, 4);
    for (int i = 0; i < 4; i++) to[i] = uint8_t(bits >> (8 * i));
}

/// The value of a code of a quantized row, before zero point and scale.
__device__ inline float rows_value(schema::Rows rows, uint8_t code) {
    switch (rows) {
    case schema::Rows::e4m3: return e4m3_value(code);
    case schema::Rows::e5m2: return e5m2_value(code);
    default: return float(int8_t(code));
    }
}

/// Refuses a packed weight that does not lie where its scales can be read, or is of another size than its parts: the core
/// and this library then differ in what they pack.
inline void check_packed(const View& packed, int64_t bytes) {
    check_aligned(packed, 16);
    if (packed.length() != bytes) {
        throw Failure{Code::unavailable, "The CUDA library packs a weight into " + std::to_string(bytes) + " bytes, not " +
                                             std::to_string(packed.length()) + ": build it again"};
    }
}

/// A packed weight (N, K): the stored rows, scales, a word for each row, and zero points where there are any, as the
/// reference packs it. The word is the sum of the row's codes, where they are integers and have one scale.
struct PackedWeight {
    Format format;
    uint32_t k;
    const uint8_t* codes;
    const float* scales;
    const int32_t* sums;
    const int8_t* zeros;

    PackedWeight(const View& packed, const Format& format, int64_t n, int64_t k, bool zero)
        : format(format), k(count32(k)), codes(packed.as<const uint8_t>()) {
        const int64_t rows = round_up(n, 64), groups = std::max<int64_t>(format.groups(k), 1);
        const int64_t code_bytes = rows * round_up(k, 64) / 8 * format.bits();
        check_packed(packed, code_bytes + rows * (groups * (zero ? 5 : 4) + 4));
        scales = reinterpret_cast<const float*>(codes + code_bytes);
        sums = reinterpret_cast<const int32_t*>(scales + rows * groups);
        zeros = zero ? reinterpret_cast<const int8_t*>(sums + rows) : nullptr;
    }
    /// Whether all codes of a row have one scale, and nothing else.
    bool by_column() const { return !zeros && format.group == k; }
    __device__ int zero(uint64_t group) const { return zeros ? zeros[group] : 0; }
    __device__ uint64_t group_of(uint32_t row, uint32_t column) const {
        return uint64_t(row) * format.groups(k) + column / format.group;
    }
    __device__ float code(uint32_t row, uint32_t column) const {
        return format.value(codes + uint64_t(row) * format.row_bytes(k), column, k);
    }
};

} // namespace denoise
