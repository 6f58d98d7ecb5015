// The ways to multiply by Hopper's tensor cores, each a kernel of a source of its own; what a multiply must be for them,
// and which of them is a good guess.
#pragma once

#include "../epilogue.cuh"
#include "../scaling.cuh"

namespace denoise::hopper {

/// Rows that a copy engine (TMA) reads or writes: of dense elements, at equal steps, which it counts in elements.
struct Lines {
    const void* data;
    int64_t row, batch;
};

/// A multiply as it takes it: x (batch, m, k), weight (n, k), out (batch, m, n).
struct Problem {
    int m, n, k, batch;
    Lines x;
    const void* weight;
    int64_t weight_row;
    Lines out;
    /// Without data where there is none, or the epilogue reads it by itself.
    Lines residual;
};

void bf16_128x256(const Call& call, const Problem& problem, const Epilogue& e, const NoScaling& scaling);

} // namespace denoise::hopper
