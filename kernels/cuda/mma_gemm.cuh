// Matrix multiplies on tensor cores, for products of products.cuh, from sm_80 on.
//
// Many rows: a block makes a tile of the result. Slabs of x and of the weight, as it is packed, go through a ring of stages
// in shared memory by asynchronous copies; warps read fragments of both and multiply.
// Few rows: the weight is read once, straight into registers, by warps that share K.
#pragma once

#include "epilogue.cuh"
#include "gemm.cuh"
#include "products.cuh"

#include <algorithm>
#include <utility>

namespace denoise {

/// Where byte `at` of a row is in a slab of rows that lie side by side, of units of which each of four lanes reads LANE
/// bytes: parts of rows change places from row to row so that what a warp reads at once is in different banks.
template <int LANE, int UNITS> __host__ __device__ constexpr uint32_t place(uint32_t row, uint32_t at) {
    // Of four pieces of 16 bytes, those of eight rows are read at once, or all of two.
    if constexpr (LANE == 16 && UNITS == 1) return row * 64 + (at ^ row / 2 % 4 * 16);
    constexpr uint32_t UNIT = 4 * LANE;
    return (row * UNITS + (at / UNIT ^ row / (16 / LANE) % UNITS)) * UNIT + at % UNIT;
}

/// Whether parts of BYTES, `count` of which a device reads at once, are in different banks.
template <int BYTES, class At> constexpr bool without_conflicts(At at) {
    bool taken[32] = {};
    for (int i = 0; i < 128 / BYTES; i++) {
        for (int word = 0; word < BYTES / 4; word++) {
            const int bank = (at(i) / 4 + word) % 32;
            if (taken[bank]) return false;
            taken[bank] = true;
        }
    }
    return true;
}

/// The same of lanes that read LANE bytes each, of four lanes a row.
template <int LANE, int UNITS> constexpr bool lanes_without_conflicts() {
    for (int first = 0; first < 32; first += 128 / LANE) {
        for (int unit = 0; unit < UNITS; unit++) {
            const auto at = [&](int i) {
                return place<LANE, UNITS>((first + i) / 4, unit * 4 * LANE + (first + i) % 4 * LANE);
            };
            if (!without_conflicts<LANE>(at)) return false;
        }
    }
    return true;
}
static_assert(lanes_without_conflicts<16, 1>() && lanes_without_conflicts<16, 2>() && lanes_without_conflicts<8, 1>() &&
                  lanes_without_conflicts<8, 2>() && lanes_without_conflicts<4, 2>() &&
                  without_conflicts<16>([](int row) { return place<16, 1>(row, 0); }) &&
                  without_conflicts<16>([](int row) { return place<16, 1>(row, 48); }),
              "fragments are read without conflicts of banks");

/// What follows from a product's constants.
template <class Product> struct Slab {
    static constexpr int X_LANE = Product::CODES * Product::ELEMENT; // bytes
    static constexpr int STEPS = X_LANE / 8;                         // of an instruction, in a unit
    static constexpr int UNIT = 4 * Product::CODES;                  // columns of K
    static constexpr int COLUMNS = Product::UNITS * UNIT;            // of K
    static constexpr int X_ROW = Product::UNITS * 4 * X_LANE;        // bytes
    static constexpr int BESIDE = Product::UNITS * 4 * Product::BESIDE;
    static_assert(BESIDE % 4 == 0, "what stands beside a column is copied by words");
    static_assert(!Product::GROUPED || UNIT == 32, "groups are of a multiple of 32 columns");

    /// Bytes of the weight that a lane reads of a unit.
    __host__ __device__ static uint32_t weight_lane(const Product& product) {
        if constexpr (Product::BITS > 0) return Product::CODES * Product::BITS / 8;
        else return product.columns.lane_bytes;
    }
    /// Bytes of a column of the weight.
    __host__ __device__ static uint32_t weight_row(const Product& product) {
        return Product::UNITS * 4 * weight_lane(product);
    }
    /// Where byte `at` of a column of the weight is.
    __device__ static uint32_t weight_place(const Product& product, uint32_t column, uint32_t at) {
        // Lanes of an odd number of bytes have no banks of their own.
        if constexpr (Product::BITS == 0) return column * weight_row(product) + at;
        else return place<Product::CODES * Product::BITS / 8, Product::UNITS>(column, at);
    }
    /// Whether both operands are read as matrices of 16 bytes a row, as they are, in the order of an instruction.
    static constexpr bool AS_MATRICES = Product::ELEMENT * 8 == Product::BITS && Product::UNITS == 1 && X_LANE == 16;
};

/// A block's tile, its warps' tiles, and how many blocks a multiprocessor is to hold.
template <int TILE_ROWS, int TILE_COLUMNS, int ROWS_OF_WARP, int COLUMNS_OF_WARP, int BLOCKS> struct Tile {
    static constexpr int ROWS = TILE_ROWS, COLUMNS = TILE_COLUMNS, RESIDENT = BLOCKS;
    static constexpr int WARP_ROWS = ROWS_OF_WARP, WARP_COLUMNS = COLUMNS_OF_WARP;
    static constexpr int WARPS = ROWS / WARP_ROWS * (COLUMNS / WARP_COLUMNS), THREADS = 32 * WARPS;
    /// A warp's part of what the epilogue reads, of 16 rows, in words; then the sums of its columns.
    static constexpr int STAGED_ROW = WARP_COLUMNS + 4, STAGED = 16 * STAGED_ROW + WARP_COLUMNS;
};
using SmallTile = Tile<64, 64, 32, 32, 3>;
using MediumTile = Tile<128, 128, 64, 64, 2>;
/// Medium tiles of products with groups, whose sums of a unit take registers besides.
using GroupedTile = Tile<128, 128, 64, 32, 1>;
using LargeTile = Tile<128, 256, 64, 64, 1>;

/// Shared memory of a block: a ring of stages, each x, weight, what stands beside it, scales and
/// words of zero points of a slab, or room to read on behind the weight; what the epilogue reads takes its place.
template <class Product, class Tile> struct Ring {
    static constexpr uint32_t ROWS = Tile::ROWS * sizeof(const uint8_t*);
    static constexpr uint32_t WORDS = Product::GROUPED ? Product::UNITS * Tile::COLUMNS * 4 : 0;
    uint32_t weight_at, beside_at, scales_at, zeros_at, stage;

    __host__ __device__ explicit Ring(const Product& product)
        : weight_at(Tile::ROWS * Slab<Product>::X_ROW),
          beside_at(weight_at + Tile::COLUMNS * Slab<Product>::weight_row(product)),
          scales_at(beside_at + Tile::COLUMNS * Slab<Product>::BESIDE),
          zeros_at(scales_at + WORDS), stage(zeros_at + (has_zeros(product) ? WORDS : 16)) {}
    __host__ __device__ static bool has_zeros(const Product& product) {
        if constexpr (Product::GROUPED) return product.groups.zeros != nullptr;
        else return false;
    }
    __host__ __device__ uint32_t bytes(uint32_t stages) const {
        const uint32_t ring = stages * stage, staged = Tile::WARPS * Tile::STAGED * 4;
        return ROWS + (ring > staged ? ring : staged);
    }
};

/// What a warp sums, and how fragments and sums belong together. The weight's columns are the rows of an instruction, and
/// the rows of x its columns: what is widened in registers becomes the operand of four of them as it comes.
template <class Product, class Tile> struct Fragments {
    static constexpr int HIGH = Tile::WARP_ROWS / 8, WIDE = Tile::WARP_COLUMNS / 16;
    static constexpr int STEPS = Slab<Product>::STEPS;
    using Part = typename Product::Part;
    using Sum = typename Product::Sum;
    Sum sums[HIGH][WIDE][4] = {};
    Sum column_sums[Product::COLUMN_SUMS ? WIDE : 1][2] = {};

    /// Adds a unit. `x(i, b)` gives the fragments of the i-th 8 rows, `weight(j, a)` of the j-th 16 columns, and
    /// `scale(j, column)` the scale of one of the 16.
    template <class X, class Weight, class Scale>
    __device__ void add(const Product& product, X x, Weight weight, Scale scale) {
        const int lane = threadIdx.x % 32;
        uint32_t b[HIGH][STEPS][2];
        DENOISE_UNROLL
        for (int i = 0; i < HIGH; i++) x(i, b[i]);
        DENOISE_UNROLL
        for (int j = 0; j < WIDE; j++) {
            uint32_t a[STEPS][4];
            weight(j, a);
            float scales[2] = {};
            if constexpr (Product::GROUPED) {
                for (int below = 0; below < 2; below++) scales[below] = scale(j, lane / 4 + 8 * below);
            }
            if constexpr (Product::COLUMN_SUMS) {
                if (product.sums_columns()) {
                    DENOISE_UNROLL
                    for (int below = 0; below < 2; below++) {
                        int32_t sum = 0;
                        DENOISE_UNROLL
                        for (int i = 0; i < 2 * STEPS; i++) sum = __dp4a(int(a[i / 2][i % 2 * 2 + below]), 0x01010101, sum);
                        if constexpr (Product::GROUPED) column_sums[j][below] += float(sum) * scales[below];
                        else column_sums[j][below] += sum;
                    }
                }
            }
            DENOISE_UNROLL
            for (int i = 0; i < HIGH; i++) {
                if constexpr (Product::GROUPED) {
                    Part part[4] = {};
                    DENOISE_UNROLL
                    for (int step = 0; step < STEPS; step++) product.multiply(part, a[step], b[i][step]);
                    DENOISE_UNROLL
                    for (int at = 0; at < 4; at++) sums[i][j][at] += float(part[at]) * scales[at / 2];
                } else {
                    DENOISE_UNROLL
                    for (int step = 0; step < STEPS; step++) product.multiply(sums[i][j], a[step], b[i][step]);
                }
            }
        }
    }

    /// The sums of columns over the lanes that share them; the first of each four lanes puts them down.
    __device__ void put_column_sums(const Product& product, Sum* to) {
        if constexpr (Product::COLUMN_SUMS) {
            if (!product.sums_columns()) return;
            const int lane = threadIdx.x % 32;
            DENOISE_UNROLL
            for (int j = 0; j < 2 * WIDE; j++) {
                Sum sum = column_sums[j / 2][j % 2];
                sum += __shfl_xor_sync(0xffffffffu, sum, 1);
                sum += __shfl_xor_sync(0xffffffffu, sum, 2);
                if (lane % 4 == 0) to[j * 8 + lane / 4] = sum;
            }
        }
    }

    /// Puts the sums of the i-th 16 rows down.
    __device__ void put(int i, Sum* to, int stride) const {
        const int lane = threadIdx.x % 32;
        DENOISE_UNROLL
        for (int half = 0; half < 2; half++) {
            DENOISE_UNROLL
            for (int j = 0; j < WIDE; j++) {
                DENOISE_UNROLL
                for (int at = 0; at < 4; at++) {
                    const int row = half * 8 + lane % 4 * 2 + at % 2, column = j * 16 + lane / 4 + at / 2 * 8;
                    to[row * stride + column] = sums[2 * i + half][j][at];
                }
            }
        }
    }

    /// What a lane read of a row of x as fragments.
    static __device__ void row(const Words<Slab<Product>::X_LANE / 4>& words, uint32_t (&b)[STEPS][2]) {
        DENOISE_UNROLL
        for (int i = 0; i < 2 * STEPS; i++) b[i / 2][i % 2] = words.v[i];
    }
    /// What it read of a column, or of the one 8 below, as fragments of its half.
    static __device__ void column(const Product& product, const typename Product::Raw& raw, int zero, int below,
                                  uint32_t (&a)[STEPS][4]) {
        uint32_t wide[STEPS][2];
        product.widen(raw, zero, wide);
        DENOISE_UNROLL
        for (int step = 0; step < STEPS; step++) {
            a[step][below] = wide[step][0];
            a[step][2 + below] = wide[step][1];
        }
    }
};

/// Waits until all but the last `groups` groups of copies are there.
__device__ inline void wait_for_all_but(uint32_t groups) {
    switch (groups) {
    case 0: return copy_wait<0>();
    case 1: return copy_wait<1>();
    case 2: return copy_wait<2>();
    default: return copy_wait<3>();
    }
}
constexpr uint32_t MOST_STAGES = 5;

/// Copies slabs into stages.
template <class Product, class Tile> struct Fetch {
    using S = Slab<Product>;
    const Product& product;
    const Ring<Product, Tile>& ring;
    const uint8_t* const* rows; // of x, null beyond the last
    uint32_t first_column, n, k;

    __device__ void operator()(uint32_t slab, uint8_t* stage) const {
        constexpr int X_PIECES = S::X_ROW / 16;
        static_assert(Tile::ROWS * X_PIECES % Tile::THREADS == 0, "threads copy as many pieces of x each");
        DENOISE_UNROLL
        for (int i = 0; i < Tile::ROWS * X_PIECES / Tile::THREADS; i++) {
            const uint32_t piece = threadIdx.x + i * Tile::THREADS, row = piece / X_PIECES, at = piece % X_PIECES * 16;
            const uint64_t from = uint64_t(slab) * S::X_ROW + at;
            const bool wanted = rows[row] && from < uint64_t(k) * Product::ELEMENT;
            uint8_t* to = stage + place<S::X_LANE, Product::UNITS>(row, at);
            copy_async<16>(to, wanted ? rows[row] + from : product.columns.codes, wanted);
        }
        constexpr int PIECE = Product::PIECE;
        const uint32_t bytes = S::weight_row(product), pieces = bytes / PIECE;
        DENOISE_UNROLL
        for (uint32_t i = 0; i < Tile::COLUMNS * pieces / Tile::THREADS; i++) {
            const uint32_t piece = threadIdx.x + i * Tile::THREADS, at = piece % pieces * PIECE;
            const uint32_t within = piece / pieces, column = first_column + within;
            const uint64_t from = uint64_t(slab) * bytes + at;
            const bool wanted = column < n && from < product.columns.bytes;
            uint8_t* to = stage + ring.weight_at + S::weight_place(product, within, at);
            copy_async<PIECE>(to, wanted ? product.columns.at(column) + from : product.columns.codes, wanted);
        }
        if constexpr (S::BESIDE > 0) {
            constexpr int WORDS = S::BESIDE / 4;
            DENOISE_UNROLL
            for (int i = 0; i < Tile::COLUMNS * WORDS / Tile::THREADS; i++) {
                const uint32_t word = threadIdx.x + i * Tile::THREADS, column = first_column + word / WORDS;
                const uint64_t from = uint64_t(slab) * S::BESIDE + word % WORDS * 4;
                const bool wanted = column < n && slab * S::COLUMNS < k;
                const uint8_t* beside = product.columns.at(column) + product.columns.bytes + from;
                copy_async<4>(stage + ring.beside_at + 4 * word, wanted ? beside : product.columns.codes, wanted);
            }
        }
        if constexpr (Product::GROUPED) {
            DENOISE_UNROLL
            for (int i = 0; i < Product::UNITS * Tile::COLUMNS / Tile::THREADS; i++) {
                const uint32_t scale = threadIdx.x + i * Tile::THREADS, column = first_column + scale % Tile::COLUMNS;
                const uint32_t at = slab * S::COLUMNS + scale / Tile::COLUMNS * S::UNIT;
                const bool wanted = column < n && at < k;
                const float* from = wanted ? product.groups.scale(column, at) : product.groups.scales;
                copy_async<4>(stage + ring.scales_at + 4 * scale, from, wanted);
                if (product.groups.zeros) {
                    const int8_t* zeros = wanted ? product.groups.zero_word(column, at) : product.groups.zeros;
                    copy_async<4>(stage + ring.zeros_at + 4 * scale, zeros, wanted);
                }
            }
        }
    }
};

/// Finishes sums that lie side by side in rows, of a warp: `rows` and `columns` of them, those beyond the result left out.
template <class T, class Product>
__device__ void finish_rows(const Product& product, const Epilogue& e, const typename Product::Sum* sums, int stride,
                            const typename Product::Sum* column_sums, uint32_t first_row, uint32_t rows,
                            uint32_t first_column, uint32_t columns) {
    DENOISE_ROLLED
    for (uint32_t i = 0; i < rows; i++) {
        const auto row = product.row(first_row + i);
        for (uint32_t j = threadIdx.x % 32; j < columns; j += 32) {
            const auto column_sum = product.sums_columns() ? column_sums[j] : typename Product::Sum(0);
            const float sum = product.total(sums[i * stride + j], column_sum, row, first_column + j);
            finish<T>(e, sum, first_row + i, first_column + j);
        }
    }
}

/// Calls `body` with a zero of the result's type.
template <class Body> __device__ void with_result(schema::DType dtype, Body body) {
    switch (dtype) {
    case schema::DType::bf16: return body(bf16{});
    case schema::DType::f16: return body(f16{});
    default: return body(float{});
    }
}

template <class Product, class Tile>
__global__ void __launch_bounds__(Tile::THREADS, Tile::RESIDENT)
    mma_kernel(const __grid_constant__ Product product, const __grid_constant__ Epilogue e, schema::DType out, uint32_t m, uint32_t n, uint32_t k, uint32_t stages) {
    using S = Slab<Product>;
    using Sum = typename Product::Sum;
    const Ring<Product, Tile> ring(product);
    const auto rows = dynamic_shared<const uint8_t*>();
    uint8_t* const memory = dynamic_shared<uint8_t>() + Ring<Product, Tile>::ROWS;
    const uint32_t first_row = blockIdx.x * Tile::ROWS, first_column = blockIdx.y * Tile::COLUMNS;
    for (uint32_t i = threadIdx.x; i < Tile::ROWS; i += Tile::THREADS) {
        rows[i] = first_row + i < m ? product.x_row(first_row + i) : nullptr;
    }
    __syncthreads();

    // Load: all stages but one are under way, of slabs beyond the last none.
    const Fetch<Product, Tile> fetch{product, ring, rows, first_column, n, k};
    const uint32_t slabs = (k + S::COLUMNS - 1) / S::COLUMNS;
    for (uint32_t slab = 0; slab + 1 < stages; slab++) {
        if (slab < slabs) fetch(slab, memory + slab * ring.stage);
        copy_commit();
    }

    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    constexpr int ACROSS = Tile::COLUMNS / Tile::WARP_COLUMNS;
    const uint32_t down = warp / ACROSS * Tile::WARP_ROWS, across = warp % ACROSS * Tile::WARP_COLUMNS;
    Fragments<Product, Tile> fragments;
    uint32_t current = 0, next = stages - 1;
    for (uint32_t slab = 0; slab < slabs; slab++) {
        wait_for_all_but(stages - 2);
        // Now the slab is there for all, and nobody reads the stage before it any more.
        __syncthreads();
        if (slab + stages - 1 < slabs) fetch(slab + stages - 1, memory + next * ring.stage);
        copy_commit();
        // Multiply.
        const uint8_t* const stage = memory + current * ring.stage;
        DENOISE_UNROLL
        for (uint32_t unit = 0; unit < Product::UNITS; unit++) {
            const auto x = [&](int i, auto& b) {
                const uint32_t row = down + i * 8;
                if constexpr (S::AS_MATRICES) {
                    // A matrix of each of the four pieces.
                    const uint8_t* from = stage + place<16, 1>(row + lane % 8, lane / 8 * 16);
                    Words<4> words;
                    load_matrices(words.v, from);
                    fragments.row(words, b);
                } else {
                    const uint32_t at = (unit * 4 + lane % 4) * S::X_LANE;
                    fragments.row(Words<S::X_LANE / 4>(stage + place<S::X_LANE, Product::UNITS>(row + lane / 4, at)), b);
                }
            };
            uint32_t zero_shift = 0;
            if constexpr (Product::GROUPED) {
                const uint32_t column = first_column + across + lane / 4;
                zero_shift = product.groups.zero_shift(column, slab * S::COLUMNS + unit * S::UNIT);
            }
            const auto weight = [&](int j, auto& a) {
                const uint8_t* const weights = stage + ring.weight_at;
                if constexpr (S::AS_MATRICES) {
                    // A matrix of eight columns and of eight more, of a piece and of the next.
                    DENOISE_UNROLL
                    for (int step = 0; step < S::STEPS; step++) {
                        load_matrices(a[step], weights + place<16, 1>(across + j * 16 + lane % 16, step * 32 + lane / 16 * 16));
                    }
                } else {
                    DENOISE_UNROLL
                    for (int below = 0; below < 2; below++) {
                        const uint32_t column = across + j * 16 + lane / 4 + 8 * below, part = unit * 4 + lane % 4;
                        int zero = 0;
                        if (ring.has_zeros(product)) {
                            const auto zeros = reinterpret_cast<const uint32_t*>(stage + ring.zeros_at) + unit * Tile::COLUMNS;
                            zero = int8_t(zeros[column] >> zero_shift);
                        }
                        const uint8_t* from = weights + S::weight_place(product, column, part * S::weight_lane(product));
                        const uint32_t beside = (column * Product::UNITS * 4 + part) * Product::BESIDE;
                        fragments.column(product, product.load(from, stage + ring.beside_at + beside), zero, below, a);
                    }
                }
            };
            const auto scale = [&](int j, int column) {
                const auto scales = reinterpret_cast<const float*>(stage + ring.scales_at) + unit * Tile::COLUMNS;
                return scales[across + j * 16 + column];
            };
            fragments.add(product, x, weight, scale);
        }
        current = current + 1 < stages ? current + 1 : 0;
        next = next + 1 < stages ? next + 1 : 0;
    }
    copy_wait<0>();
    __syncthreads();

    // Epilogue and store: each warp lays 16 of its rows side by side at a time.
    Sum* const staged = reinterpret_cast<Sum*>(memory) + warp * Tile::STAGED;
    Sum* const column_sums = staged + 16 * Tile::STAGED_ROW;
    fragments.put_column_sums(product, column_sums);
    const uint32_t column = first_column + across;
    const uint32_t columns = column < n ? std::min(n - column, uint32_t(Tile::WARP_COLUMNS)) : 0;
    DENOISE_UNROLL
    for (int i = 0; i < Tile::WARP_ROWS / 16; i++) {
        __syncwarp();
        fragments.put(i, staged, Tile::STAGED_ROW);
        __syncwarp();
        const uint32_t row = first_row + down + i * 16;
        const uint32_t count = row < m ? std::min(m - row, 16u) : 0;
        with_result(out, [&](auto zero) {
            finish_rows<decltype(zero)>(product, e, staged, Tile::STAGED_ROW, column_sums, row, count, column, columns);
        });
    }
}

/// A block of few rows: 16 rows by 16 columns, K shared by warps, several units at a time.
struct FewRows {
    static constexpr int ROWS = 16, WARP_ROWS = ROWS, WARP_COLUMNS = 16, WARPS = 8, THREADS = 32 * WARPS, AT_ONCE = 4;
};

template <class Product>
__global__ void __launch_bounds__(FewRows::THREADS, 2)
    few_rows_kernel(const __grid_constant__ Product product, const __grid_constant__ Epilogue e, schema::DType out, uint32_t m, uint32_t n, uint32_t k) {
    using S = Slab<Product>;
    using Sum = typename Product::Sum;
    constexpr int COLUMNS = FewRows::WARP_COLUMNS;
    __shared__ Sum parts[FewRows::WARPS][16 * COLUMNS];
    __shared__ Sum part_columns[FewRows::WARPS][COLUMNS];
    const uint32_t first_row = blockIdx.x * 16, first_column = blockIdx.y * COLUMNS;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;

    // What is read is contiguous over the units of a warp. Beyond the last row and K are zeros; lanes of columns beyond
    // the last read that one, and what comes of it is left out.
    const uint8_t* x_rows[2];
    for (int below = 0; below < 2; below++) {
        const uint32_t row = first_row + lane / 4 + below * 8;
        x_rows[below] = row < m ? product.x_row(row) : nullptr;
    }
    const auto known = [&](uint32_t column) { return std::min(first_column + column, n - 1); };
    Fragments<Product, FewRows> fragments;
    const uint32_t units = (k + S::UNIT - 1) / S::UNIT;
    for (uint32_t first = warp * FewRows::AT_ONCE; first < units; first += FewRows::WARPS * FewRows::AT_ONCE) {
        // Load: everything is under way before anything is waited for.
        Words<S::X_LANE / 4> x[FewRows::AT_ONCE][2];
        typename Product::Raw raw[FewRows::AT_ONCE][2];
        DENOISE_UNROLL
        for (uint32_t i = 0; i < FewRows::AT_ONCE; i++) {
            const uint64_t at = uint64_t(first + i) * 4 + lane % 4;
            DENOISE_UNROLL
            for (int below = 0; below < 2; below++) {
                const uint8_t* column = product.columns.at(known(below * 8 + lane / 4));
                const uint8_t* beside = column + product.columns.bytes + at * Product::BESIDE;
                const uint64_t within = at * S::weight_lane(product);
                if (within < product.columns.bytes) raw[i][below] = product.load(column + within, beside);
                const uint64_t from = at * S::X_LANE;
                const bool given = x_rows[below] && from < uint64_t(k) * Product::ELEMENT;
                if (given) x[i][below] = Words<S::X_LANE / 4>(x_rows[below] + from);
            }
        }
        // Multiply.
        DENOISE_UNROLL
        for (uint32_t i = 0; i < FewRows::AT_ONCE; i++) {
            const uint32_t unit = first + i;
            const auto weight = [&](int, auto& a) {
                DENOISE_UNROLL
                for (int below = 0; below < 2; below++) {
                    int zero = 0;
                    if constexpr (Product::GROUPED) {
                        if (unit < units) zero = product.groups.zero(known(below * 8 + lane / 4), unit * S::UNIT);
                    }
                    fragments.column(product, raw[i][below], zero, below, a);
                }
            };
            const auto scale = [&](int, int column) {
                if constexpr (Product::GROUPED) {
                    return unit < units ? *product.groups.scale(known(column), unit * S::UNIT) : 0.0f;
                }
                return 0.0f;
            };
            fragments.add(product, [&](int below, auto& b) { fragments.row(x[i][below], b); }, weight, scale);
        }
    }
    fragments.put(0, parts[warp], COLUMNS);
    fragments.put_column_sums(product, part_columns[warp]);
    __syncthreads();

    // Sum what the warps have.
    for (int i = threadIdx.x; i < 16 * COLUMNS; i += FewRows::THREADS) {
        Sum sum = parts[0][i];
        for (int other = 1; other < FewRows::WARPS; other++) sum = multiply_add(sum, parts[other][i], Sum(1));
        parts[0][i] = sum;
    }
    if (product.sums_columns() && threadIdx.x < COLUMNS) {
        Sum sum = part_columns[0][threadIdx.x];
        for (int other = 1; other < FewRows::WARPS; other++) sum += part_columns[other][threadIdx.x];
        part_columns[0][threadIdx.x] = sum;
    }
    __syncthreads();

    // Epilogue and store: a warp two rows.
    const uint32_t columns = std::min(n - first_column, uint32_t(COLUMNS));
    const uint32_t own = 2 * warp, row = first_row + own, count = row < m ? std::min(m - row, 2u) : 0;
    with_result(out, [&](auto zero) {
        using T = decltype(zero);
        finish_rows<T>(product, e, parts[0] + own * COLUMNS, COLUMNS, part_columns[0], row, count, first_column, columns);
    });
}

/// Whether a product has large tiles: they pay where nothing is unpacked.
template <class Product> constexpr bool HAS_LARGE = Product::ELEMENT * 8 == Product::BITS && !std::is_same_v<Product, Fp8Product>;

template <class Product>
void launch_few_rows(const Call& call, const Product& product, const Epilogue& e, schema::DType out, const Sizes& sizes) {
    const dim3 blocks(blocks_of(ceil_div(sizes.m, FewRows::ROWS)), unsigned(ceil_div(sizes.n, FewRows::WARP_COLUMNS)));
    launch(call, few_rows_kernel<Product>, blocks, FewRows::THREADS, 0, product, e, out, uint32_t(sizes.m),
           uint32_t(sizes.n), uint32_t(sizes.k));
}

template <class Product, class Tile>
void launch_tiles(const Call& call, const Product& product, const Epilogue& e, schema::DType out, const Sizes& sizes) {
    const Ring<Product, Tile> ring(product);
    // A kibibyte of each block is the device's own.
    const int64_t most = int64_t(call.device.properties.sharedMemPerBlockOptin + 1024) / Tile::RESIDENT - 1024;
    uint32_t stages = MOST_STAGES;
    while (stages > 2 && ring.bytes(stages) > most) stages--;
    const dim3 blocks(blocks_of(ceil_div(sizes.m, Tile::ROWS)), unsigned(ceil_div(sizes.n, Tile::COLUMNS)));
    launch(call, mma_kernel<Product, Tile>, blocks, Tile::THREADS, ring.bytes(stages), product, e, out,
           uint32_t(sizes.m), uint32_t(sizes.n), uint32_t(sizes.k), stages);
}

/// Whether rows of x lie so that 16 bytes can be read at once; rows of `element` bytes an element.
inline bool takes_rows(const void* data, const RowMap& rows, int64_t k, int64_t element) {
    bool takes = reinterpret_cast<uintptr_t>(data) % 16 == 0 && k * element % 16 == 0;
    for (int axis = 0; axis < rows.rank; axis++) takes = takes && rows.strides[axis] * element % 16 == 0;
    return takes;
}

/// Adds the ways for a product where its operands lie so that they can be copied in pieces, and sizes can be counted; the
/// first guess is the largest tiles of which every multiprocessor gets one.
template <class Product>
void add_mma(Ways& ways, const Call& call, const Product& product, const Epilogue& e, schema::DType out, const Sizes& sizes) {
    const auto [m, n, k, batch] = sizes;
    const Columns& columns = product.columns;
    if (m == 0 || n == 0 || k == 0 || batch != 1 || m > INT32_MAX || n > 16 * MOST_BLOCKS || k > INT32_MAX) return;
    if (!takes_rows(product.x.data, product.x.rows, k, Product::ELEMENT) || columns.step % Product::PIECE != 0 ||
        columns.bytes % Product::PIECE != 0 || (Product::BESIDE > 0 && k % Slab<Product>::COLUMNS != 0) ||
        reinterpret_cast<uintptr_t>(columns.codes) % Product::PIECE != 0) {
        return;
    }
    // Of ways that fill the device as well, the first is the better guess.
    std::vector<std::pair<int, Way>> guesses;
    const auto add = [&](const char* name, bool good, auto run) {
        guesses.push_back({good ? 0 : 1, {name, [=, &call] { run(call, product, e, out, sizes); }}});
    };
    const auto fills = [&](int rows, int columns) {
        const int64_t tiles = ceil_div(sizes.m, rows) * ceil_div(sizes.n, columns);
        return sizes.m > rows / 2 && tiles >= call.device.properties.multiProcessorCount;
    };
    using Medium = std::conditional_t<Product::GROUPED, GroupedTile, MediumTile>;
    add("mma few rows", m <= FEW_M, launch_few_rows<Product>);
    if constexpr (HAS_LARGE<Product>) {
        add("mma 128x256", fills(LargeTile::ROWS, LargeTile::COLUMNS), launch_tiles<Product, LargeTile>);
    }
    add("mma 128x128", fills(Medium::ROWS, Medium::COLUMNS), launch_tiles<Product, Medium>);
    add("mma 64x64", true, launch_tiles<Product, SmallTile>);
    std::stable_sort(guesses.begin(), guesses.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
    for (const auto& guess : guesses) ways.push_back(guess.second);
}

} // namespace denoise
