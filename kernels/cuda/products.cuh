// How tensor cores' operands are read: x by rows, weights as they are packed, which become fragments in registers.
//
// K goes in units of which each lane of a column or row reads CODES that lie side by side, the same of x and of the
// weight: so both are read in pieces as long as can be, whatever the order in which an instruction counts K. Sums are of
// all of K, or of a group of 32 columns at a time.
//
// A product is a struct with
//   CODES, ELEMENT, BITS   // what a lane reads of a unit; bytes of x's elements; bits of the weight's, 0 if not known
//   UNITS, PIECE           // units that are copied at once; bytes of the weight that one copy takes
//   BESIDE                 // bytes that a lane reads of what stands beside the codes of a unit
//   GROUPED                // whether a unit's sum is scaled by its group, else `total` scales
//   COLUMN_SUMS            // whether it may take the sums of the weight's codes, where `sums_columns()`
//   Part, Sum              // what instructions sum, and all of K
//   Columns columns;
//   const uint8_t* x_row(row);
//   Raw load(from, beside);                    // a lane's bytes of the weight
//   void widen(raw, zero, b);                  // and these as fragments
//   void multiply(part, a, b);                 // an instruction, or as many as it takes: a of the weight, b of x
//   Row row(row);  float total(sum, column_sum, row, column);
#pragma once

#include "mma.cuh"
#include "scaling.cuh"

namespace denoise {

/// Words that are read at once.
template <int N> struct Words {
    uint32_t v[N] = {};
    Words() = default;
    __device__ explicit Words(const uint8_t* from) {
        const auto pack = *reinterpret_cast<const Pack<uint32_t, N>*>(from);
        DENOISE_UNROLL
        for (int i = 0; i < N; i++) v[i] = pack.v[i];
    }
};

/// Four words as the fragments of two instructions.
__device__ inline void as_they_are(const Words<4>& words, uint32_t (&b)[2][2]) {
    DENOISE_UNROLL
    for (int i = 0; i < 4; i++) b[i / 2][i % 2] = words.v[i];
}

/// The constants of a 16-bit float.
template <class T> struct HalfBits;
template <> struct HalfBits<bf16> {
    static constexpr int MANTISSA = 7, BIAS = 127;
    static constexpr uint32_t ONE = 0x3f803f80;
    static constexpr uint32_t NIBBLE = 0x43084308, MINUS_NIBBLE = 0xc308c308; // 128 + 8 and its negative
};
template <> struct HalfBits<f16> {
    static constexpr int MANTISSA = 10, BIAS = 15;
    static constexpr uint32_t ONE = 0x3c003c00;
    static constexpr uint32_t NIBBLE = 0x64086408, MINUS_NIBBLE = 0xe408e408; // 1024 + 8 and its negative
};

constexpr uint32_t MINUS_ZEROS = 0x80008000;

/// The number twice in a register.
template <class T> __device__ uint32_t twice(float x) { return uint32_t(narrow<T>(x).bits) * 0x10001u; }

/// Pairs of int4 codes as floats: the nibble, its highest bit turned, becomes the end of a mantissa.
template <class T> __device__ void widen_int4(uint32_t word, uint32_t (&pairs)[4]) {
    const uint32_t odd = word >> 4;
    DENOISE_UNROLL
    for (int i = 0; i < 4; i++) {
        const uint32_t bits = __byte_perm(word, odd, 0x4400 + 0x1111 * i) & 0x000f000f;
        pairs[i] = multiply_add2<T>(bits ^ HalfBits<T>::NIBBLE, HalfBits<T>::ONE, HalfBits<T>::MINUS_NIBBLE);
    }
}

/// The pair of bytes 2 I and 2 I + 1 of a word, each in half a register.
template <int I> __device__ uint32_t byte_pair(uint32_t word) { return __byte_perm(word, 0, I == 0 ? 0x4140 : 0x4342); }

/// A pair of int8 codes as floats. A mantissa of bf16 takes seven bits: the eighth makes 128 or 256 to be taken away.
template <class T> __device__ uint32_t widen_int8(uint32_t pair) {
    if constexpr (std::is_same_v<T, bf16>) {
        const uint32_t low = (pair & 0x007f007f) | 0x43004300, high = (pair & 0x00800080) | 0xc300c300;
        return multiply_add2<T>(low, HalfBits<T>::ONE, high);
    } else {
        return multiply_add2<T>((pair ^ 0x00800080) | 0x64006400, HalfBits<T>::ONE, 0xe480e480);
    }
}

/// How small floats become 16-bit ones: their bits go where those have exponent and mantissa, and a factor makes up for
/// the bias; it is exact for subnormals too.
struct SmallBits {
    uint32_t magnitudes, signs; // masks of a pair
    uint32_t left, sign_left;   // by how much they move
    uint32_t factor;
    /// What carries a code that is not finite into bit 7.
    uint32_t special;

    template <class T> static SmallBits of(int ebits, int mbits, uint32_t special) {
        using B = HalfBits<T>;
        const int exponent = 2 * B::BIAS - ((1 << (ebits - 1)) - 1);
        const uint32_t one = 0x10001u;
        return {one * ((1u << (ebits + mbits)) - 1),
                one << (ebits + mbits),
                uint32_t(B::MANTISSA - mbits),
                uint32_t(15 - ebits - mbits),
                one * (uint32_t(exponent) << B::MANTISSA),
                one * special};
    }
    template <class T> static SmallBits of(const Format& format) {
        switch (format.kind) {
        case schema::Format::e4m3: return of<T>(4, 3, 1);
        case schema::Format::e5m2: return of<T>(5, 2, 4);
        default: return of<T>(format.ebits, format.mbits, 0);
        }
    }
    /// Whether every finite value is one of T.
    template <class T> static bool fits(const Format& format) {
        return std::is_same_v<T, bf16> || format.kind != schema::Format::fpx || format.ebits <= 4;
    }
    /// A pair of codes, each in half a register; what stands above them is not looked at.
    template <class T, bool SPECIAL> __device__ uint32_t widen(uint32_t pair) const {
        const uint32_t magnitude = pair & magnitudes;
        uint32_t bits = magnitude << left | (pair & signs) << sign_left;
        constexpr uint32_t exponent = std::is_same_v<T, bf16> ? 0xff : 0xf8; // times 128: all ones
        if constexpr (SPECIAL) bits |= ((magnitude + special) & 0x00800080) * exponent;
        return multiply_add2<T>(bits, factor, MINUS_ZEROS);
    }
};

/// The columns of a weight as they lie in memory.
struct Columns {
    const uint8_t* codes;
    uint64_t step;       // from one to the next
    uint64_t bytes;      // of one's codes, behind which is what stands beside them
    uint32_t lane_bytes; // what a lane reads of a unit
    __device__ const uint8_t* at(uint32_t column) const { return codes + column * step; }
};

/// x of 16-bit floats.
struct HalfRows {
    const uint8_t* data;
    RowMap rows;
    __device__ const uint8_t* row(uint32_t row) const { return data + 2 * rows.offset(row); }
};

struct NoRow {};
struct QuantizedRow {
    float scale;
    int zero;
};

/// What products of 16-bit floats have in common.
template <class T> struct HalfProduct {
    using Part = float;
    using Sum = float;
    using Row = NoRow;
    static constexpr int CODES = 8, ELEMENT = 2, BESIDE = 0;
    static constexpr bool COLUMN_SUMS = false;
    HalfRows x;
    Columns columns;
    __device__ const uint8_t* x_row(uint32_t row) const { return x.row(row); }
    __device__ bool sums_columns() const { return false; }
    __device__ NoRow row(uint32_t) const { return {}; }
    __device__ void multiply(float (&part)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) const {
        mma_half<T>(part, a, b);
    }
};

/// Floats by floats.
template <class T> struct DenseProduct : HalfProduct<T> {
    static constexpr int UNITS = 1, PIECE = 16, BITS = 16;
    static constexpr bool GROUPED = false;
    using Raw = Words<4>;
    __device__ Raw load(const uint8_t* from, const uint8_t*) const { return Raw(from); }
    __device__ void widen(const Raw& raw, int, uint32_t (&b)[2][2]) const { as_they_are(raw, b); }
    __device__ float total(float sum, float, NoRow, uint32_t) const { return sum; }
};

/// Floats by int8 with a scale for each column.
template <class T> struct Int8WeightProduct : HalfProduct<T> {
    static constexpr int UNITS = 2, PIECE = 16, BITS = 8;
    static constexpr bool GROUPED = false;
    const float* scales;
    using Raw = Words<2>;
    __device__ Raw load(const uint8_t* from, const uint8_t*) const { return Raw(from); }
    __device__ void widen(const Raw& raw, int, uint32_t (&b)[2][2]) const {
        DENOISE_UNROLL
        for (int i = 0; i < 2; i++) {
            b[i][0] = widen_int8<T>(byte_pair<0>(raw.v[i]));
            b[i][1] = widen_int8<T>(byte_pair<1>(raw.v[i]));
        }
    }
    __device__ float total(float sum, float, NoRow, uint32_t column) const { return sum * scales[column]; }
};

/// Floats by small floats, of eight bits or of any number that divides a row into words.
template <class T, bool BYTES> struct SmallWeightProduct : HalfProduct<T> {
    static constexpr int UNITS = 2, PIECE = BYTES ? 16 : 4, BITS = BYTES ? 8 : 0;
    static constexpr bool GROUPED = false;
    const float* scales;
    SmallBits small;
    using Raw = Words<2>;
    __device__ Raw load(const uint8_t* from, const uint8_t*) const {
        if constexpr (BYTES) {
            return Raw(from);
        } else {
            // Eight codes are as many bytes as a code has bits, and begin within a word.
            const uint32_t ahead = uint32_t(reinterpret_cast<uintptr_t>(from) & 3), shift = 8 * ahead;
            const auto words = reinterpret_cast<const uint32_t*>(from - ahead);
            const uint32_t middle = words[1];
            Raw raw;
            raw.v[0] = __funnelshift_r(words[0], middle, shift);
            raw.v[1] = __funnelshift_r(middle, words[2], shift);
            return raw;
        }
    }
    __device__ void widen(const Raw& raw, int, uint32_t (&b)[2][2]) const {
        if constexpr (BYTES) {
            DENOISE_UNROLL
            for (int i = 0; i < 2; i++) {
                b[i][0] = small.widen<T, true>(byte_pair<0>(raw.v[i]));
                b[i][1] = small.widen<T, true>(byte_pair<1>(raw.v[i]));
            }
        } else {
            const uint32_t bits = this->columns.lane_bytes;
            const uint64_t codes = uint64_t(raw.v[1]) << 32 | raw.v[0];
            DENOISE_UNROLL
            for (int i = 0; i < 4; i++) {
                const uint32_t two = uint32_t(codes >> (2 * i * bits));
                b[i / 2][i % 2] = small.widen<T, false>(__byte_perm(two, two << (16 - bits), 0x7610));
            }
        }
    }
    __device__ float total(float sum, float, NoRow, uint32_t column) const { return sum * scales[column]; }
};

/// Scales and zero points of groups of columns.
struct Groups {
    const float* scales;
    const int8_t* zeros;
    uint32_t group, count; // columns in a group, groups in a row
    explicit Groups(const PackedWeight& weight)
        : scales(weight.scales), zeros(weight.zeros), group(weight.format.group),
          count(uint32_t(weight.format.groups(weight.k))) {}
    __device__ const float* scale(uint32_t column, uint32_t k) const {
        return scales + uint64_t(column) * count + k / group;
    }
    __device__ int zero(uint32_t column, uint32_t k) const {
        return zeros ? zeros[uint64_t(column) * count + k / group] : 0;
    }
    /// The word in which a zero point stands, and by how many bits above the lowest: the same every eighth column.
    __device__ const int8_t* zero_word(uint32_t column, uint32_t k) const {
        return zeros + ((uint64_t(column) * count + k / group) & ~uint64_t(3));
    }
    __device__ uint32_t zero_shift(uint32_t column, uint32_t k) const { return (column * count + k / group) % 4 * 8; }
};

/// Floats by int4 with scales and zero points for groups.
template <class T> struct Int4WeightProduct : HalfProduct<T> {
    static constexpr int UNITS = 2, PIECE = 16, BITS = 4;
    static constexpr bool GROUPED = true;
    Groups groups;
    using Raw = Words<1>;
    __device__ Raw load(const uint8_t* from, const uint8_t*) const { return Raw(from); }
    __device__ void widen(const Raw& raw, int zero, uint32_t (&b)[2][2]) const {
        uint32_t pairs[4];
        widen_int4<T>(raw.v[0], pairs);
        const uint32_t minus_zero = twice<T>(float(-zero));
        DENOISE_UNROLL
        for (int i = 0; i < 4; i++) {
            if (groups.zeros) pairs[i] = multiply_add2<T>(pairs[i], HalfBits<T>::ONE, minus_zero);
            b[i / 2][i % 2] = pairs[i];
        }
    }
    __device__ float total(float sum, float, NoRow, uint32_t) const { return sum; }
};

/// What products of integers have in common.
struct IntegerProduct {
    using Part = int32_t;
    using Row = QuantizedRow;
    static constexpr int ELEMENT = 1, PIECE = 16;
    QuantizedRows x;
    Columns columns;
    __device__ const uint8_t* x_row(uint32_t row) const { return x.row(row); }
    __device__ bool sums_columns() const { return x.kind == schema::Rows::int8_asym; }
    __device__ QuantizedRow row(uint32_t row) const { return {x.scale(row), x.zero(row)}; }
    __device__ void multiply(int32_t (&part)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) const {
        mma_int8(part, a, b);
    }
};

/// Rows of int8 by integers with a scale for each column, whose sums are packed with them.
struct ScaledProduct : IntegerProduct {
    using Sum = int32_t;
    using Row = IntegerScaling::Row;
    static constexpr int CODES = 16, UNITS = 1;
    static constexpr bool GROUPED = false, COLUMN_SUMS = false;
    IntegerScaling scaling;
    __device__ bool sums_columns() const { return false; }
    __device__ Row row(uint32_t row) const { return scaling.row(row); }
    __device__ float total(int32_t sum, int32_t, const Row& row, uint32_t column) const {
        return IntegerScaling::number(sum, row, scaling.column(column));
    }
};

/// By int8.
struct Int8Product : ScaledProduct {
    static constexpr int BITS = 8, BESIDE = 0;
    using Raw = Words<4>;
    __device__ Raw load(const uint8_t* from, const uint8_t*) const { return Raw(from); }
    __device__ void widen(const Raw& raw, int, uint32_t (&b)[2][2]) const { as_they_are(raw, b); }
};

/// By int8 of which two of four are there, with their places beside them, two bits each.
struct SparseProduct : ScaledProduct {
    static constexpr int BITS = 4, BESIDE = 2;
    struct Raw {
        Words<2> values;
        uint32_t places = 0;
    };
    __device__ Raw load(const uint8_t* from, const uint8_t* beside) const {
        return {Words<2>(from), *reinterpret_cast<const uint16_t*>(beside)};
    }
    __device__ void widen(const Raw& raw, int, uint32_t (&b)[2][2]) const {
        DENOISE_UNROLL
        for (int i = 0; i < 4; i++) {
            const uint32_t two = raw.values.v[i / 2] >> (16 * (i % 2)), places = raw.places >> (4 * i);
            const uint32_t first = 8 * (places & 3), second = 8 * (places >> 2 & 3);
            // The first is what counts where both have one place.
            b[i / 2][i % 2] = ((two >> 8 & 255) << second & ~(255u << first)) | (two & 255) << first;
        }
    }
};

/// Rows of int8 by int4 with scales and zero points for groups.
struct Int4Product : IntegerProduct {
    using Sum = float;
    static constexpr int CODES = 8, UNITS = 2, BITS = 4, BESIDE = 0;
    static constexpr bool GROUPED = true, COLUMN_SUMS = true;
    Groups groups;
    using Raw = Words<1>;
    __device__ Raw load(const uint8_t* from, const uint8_t*) const { return Raw(from); }
    __device__ void widen(const Raw& raw, int zero, uint32_t (&b)[1][2]) const {
        const uint32_t word = raw.v[0];
        // A code is its nibble, the highest bit turned, less 8; bit 7 keeps a byte's difference from borrowing.
        const uint32_t less = uint32_t(uint8_t(8 + zero)) * 0x01010101u;
        const uint32_t even = (((word & 0x0f0f0f0f) ^ 0x88888888) - less) ^ 0x80808080;
        const uint32_t odd = (((word >> 4 & 0x0f0f0f0f) ^ 0x88888888) - less) ^ 0x80808080;
        b[0][0] = __byte_perm(even, odd, 0x5140);
        b[0][1] = __byte_perm(even, odd, 0x7362);
    }
    __device__ float total(float sum, float column_sum, const QuantizedRow& row, uint32_t) const {
        return (sum - float(row.zero) * column_sum) * row.scale;
    }
};

/// Rows of fp8 by fp8 with a scale for each column, as f16, which has every value of both.
struct Fp8Product {
    using Part = float;
    using Sum = float;
    using Row = QuantizedRow;
    static constexpr int CODES = 16, ELEMENT = 1, UNITS = 1, PIECE = 16, BITS = 8, BESIDE = 0;
    static constexpr bool GROUPED = false, COLUMN_SUMS = false;
    QuantizedRows x;
    Columns columns;
    const float* scales;
    SmallBits x_bits, weight_bits;
    __device__ const uint8_t* x_row(uint32_t row) const { return x.row(row); }
    __device__ bool sums_columns() const { return false; }
    __device__ QuantizedRow row(uint32_t row) const { return {x.scale(row), 0}; }
    using Raw = Words<4>;
    __device__ Raw load(const uint8_t* from, const uint8_t*) const { return Raw(from); }
    __device__ void widen(const Raw& raw, int, uint32_t (&b)[2][2]) const { as_they_are(raw, b); }
    /// A register of four codes is one of each of two registers of an instruction.
    __device__ void multiply(float (&part)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) const {
        const auto weight = [&](uint32_t pair) { return weight_bits.widen<f16, true>(pair); };
        DENOISE_UNROLL
        for (int i = 0; i < 2; i++) {
            const uint32_t column = a[2 * i], below = a[2 * i + 1];
            const uint32_t columns[4] = {weight(byte_pair<0>(column)), weight(byte_pair<0>(below)),
                                         weight(byte_pair<1>(column)), weight(byte_pair<1>(below))};
            const uint32_t row[2] = {x_bits.widen<f16, true>(byte_pair<0>(b[i])), x_bits.widen<f16, true>(byte_pair<1>(b[i]))};
            mma_half<f16>(part, columns, row);
        }
    }
    __device__ float total(float sum, float, const QuantizedRow& row, uint32_t column) const {
        return sum * scales[column] * row.scale;
    }
};

} // namespace denoise
