// The seam of matrix multiplies: out (M, N) = epilogue(sum over K of a (M, K) b (N, K)), for operands that say how an
// element is read. The tiles below take any operands, on every device and emulated; what multiplies by instructions that
// only some operands and devices take is added to an op's ways before them.
//
// Operands are a struct with
//   using Value = float or int32_t;          // what products are summed in
//   Value a(uint32_t row, uint32_t k);       // rows of all batches are counted on
//   Value b(uint32_t column, uint32_t k, uint32_t batch);
//   using Sum = float or int32_t;            // what the sums of tiles of K are summed in
//   Sum fold(Value sum, uint32_t column, uint32_t k);  // the sum of a tile of K that begins at k
//   float number(Sum sum, uint32_t row, uint32_t column);  // what a whole sum is
#pragma once

#include "epilogue.cuh"
#include "mma.cuh"

namespace denoise {

/// A multiply's sizes: M rows in each batch.
struct Sizes {
    int64_t m, n, k, batch;
};

constexpr int TILE_N = 64, TILE_K = 16;
/// Rows of a tile, where there are many and where there are few.
constexpr int TILE_M = 64, FEW_M = 16;

/// A block makes a tile of ROWS by 64, a thread 4 by 4 of it.
template <class T, int ROWS, class Operands>
__global__ void __launch_bounds__(4 * ROWS) tile_kernel(Operands operands, Epilogue e, uint32_t m, uint32_t n, uint32_t k) {
    using Value = typename Operands::Value;
    using Sum = typename Operands::Sum;
    constexpr int THREADS = 4 * ROWS;
    // The last columns keep the writes of a column of threads from meeting in one bank.
    __shared__ Value a_tile[TILE_K][ROWS + 4];   // (K, M)
    __shared__ Value b_tile[TILE_K][TILE_N + 4]; // (K, N)
    const uint32_t batch = blockIdx.z;
    const uint32_t first_row = blockIdx.x * ROWS, first_column = blockIdx.y * TILE_N;
    const int across = threadIdx.x % 16 * 4, down = threadIdx.x / 16 * 4;
    Sum sums[4][4] = {};
    for (uint32_t k0 = 0; k0 < k; k0 += TILE_K) {
        // Load: neighbouring threads read neighbouring elements of K.
        for (int i = threadIdx.x; i < ROWS * TILE_K; i += THREADS) {
            const uint32_t at = i % TILE_K, line = i / TILE_K, row = first_row + line;
            a_tile[at][line] = k0 + at < k && row < m ? operands.a(batch * m + row, k0 + at) : Value(0);
        }
        for (int i = threadIdx.x; i < TILE_N * TILE_K; i += THREADS) {
            const uint32_t at = i % TILE_K, line = i / TILE_K, column = first_column + line;
            b_tile[at][line] = k0 + at < k && column < n ? operands.b(column, k0 + at, batch) : Value(0);
        }
        __syncthreads();
        // Multiply.
        Value parts[4][4] = {};
        for (int at = 0; at < TILE_K; at++) {
            for (int i = 0; i < 4; i++) {
                for (int j = 0; j < 4; j++) {
                    parts[i][j] = multiply_add(parts[i][j], a_tile[at][down + i], b_tile[at][across + j]);
                }
            }
        }
        __syncthreads();
        for (int j = 0; j < 4; j++) {
            const uint32_t column = first_column + across + j;
            if (column >= n) continue;
            for (int i = 0; i < 4; i++) sums[i][j] = multiply_add(sums[i][j], operands.fold(parts[i][j], column, k0), Sum(1));
        }
    }
    // Epilogue and store.
    for (int i = 0; i < 4; i++) {
        const uint32_t row = first_row + down + i;
        if (row >= m) continue;
        for (int j = 0; j < 4; j++) {
            const uint32_t at = batch * m + row, column = first_column + across + j;
            if (column < n) finish<T>(e, operands.number(sums[i][j], at, column), at, column);
        }
    }
}

template <class T, int ROWS, class Operands>
void multiply_tiles(const Call& call, const Operands& operands, const Epilogue& e, const Sizes& sizes) {
    const auto [m, n, k, batch] = sizes;
    if (m * batch > INT32_MAX || n > INT32_MAX || k > INT32_MAX || batch > MOST_BLOCKS) {
        throw Failure{Code::bad_argument, "A multiply of " + std::to_string(batch) + " x " + std::to_string(m) + " by " +
                                              std::to_string(n) + " by " + std::to_string(k) +
                                              " is too large for this device: cut the batch"};
    }
    const dim3 blocks(blocks_of(ceil_div(m, ROWS)), unsigned(ceil_div(n, TILE_N)), unsigned(batch));
    if (blocks.y > MOST_BLOCKS) throw Failure{Code::bad_argument, "A multiply of more than 4194240 columns"};
    launch(call, tile_kernel<T, ROWS, Operands>, blocks, 4 * ROWS, 0, operands, e, uint32_t(m), uint32_t(n), uint32_t(k));
}

/// Adds the ways that take any operands; the result, gate and residual are of T.
template <class T, class Operands>
void add_tiles(Ways& ways, const Call& call, const Operands& operands, const Epilogue& e, const Sizes& sizes) {
    const Way many{"tiles of 64 rows", [=, &call] { multiply_tiles<T, TILE_M>(call, operands, e, sizes); }};
    const Way few{"tiles of 16 rows", [=, &call] { multiply_tiles<T, FEW_M>(call, operands, e, sizes); }};
    const bool is_few = sizes.m <= FEW_M;
    ways.push_back(is_few ? few : many);
    ways.push_back(is_few ? many : few);
}

/// The epilogue of a layer: bias, activation, gate and residual by the places of its operands.
inline Epilogue layer_epilogue(const Call& call, const View& out, int bias, int gate, int residual, int activation) {
    Epilogue e(out);
    e.bias = call.view(bias).as<const float>();
    e.activation = schema::Activation(call.params[activation]);
    if (gate >= 0) e.gate = Operand2d(call.broadcast(gate, out));
    e.residual = Operand2d(call.broadcast(residual, out));
    return e;
}

} // namespace denoise
