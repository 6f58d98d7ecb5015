// The tensor cores' instructions on the host: the lanes of a warp meet, and the last to come multiplies what their
// registers hold, which is where the PTX ISA's figures of `mma.m16n8k16` and `mma.m16n8k32` say that it is.
#pragma once

#include "../numbers.cuh"

namespace emulated {

/// The registers of a lane.
template <class Sum> struct MmaLane {
    const uint32_t* a; // four, of A (16, K)
    const uint32_t* b; // two, of B (K, 8)
    Sum* c;            // four, of C (16, 8)
};

/// What elements of a register stand for.
template <class T> struct Half {
    static constexpr int BYTES = 2;
    using Sum = float;
    static float value(uint32_t bits) { return denoise::widen(T{uint16_t(bits)}); }
};
struct Signed {
    static constexpr int BYTES = 1;
    using Sum = int32_t;
    static int32_t value(uint32_t bits) { return int8_t(bits); }
};
struct E4m3 {
    static constexpr int BYTES = 1;
    using Sum = float;
    static float value(uint32_t bits) { return denoise::e4m3_value(uint8_t(bits)); }
};

template <class Type> void multiply_lanes(void* const* lanes) {
    using Sum = typename Type::Sum;
    constexpr int EACH = 4 / Type::BYTES, K = 8 * EACH; // elements of a register and of a row
    Sum a[16][K], b[K][8];
    for (int lane = 0; lane < 32; lane++) {
        const auto& mine = *static_cast<const MmaLane<Sum>*>(lanes[lane]);
        const int group = lane / 4, place = lane % 4 * EACH;
        for (int i = 0; i < EACH; i++) {
            const int shift = 8 * Type::BYTES * i;
            const uint32_t mask = (1u << (8 * Type::BYTES)) - 1;
            for (int r = 0; r < 4; r++) {
                a[group + r % 2 * 8][place + r / 2 * (K / 2) + i] = Type::value(mine.a[r] >> shift & mask);
            }
            for (int r = 0; r < 2; r++) b[place + r * (K / 2) + i][group] = Type::value(mine.b[r] >> shift & mask);
        }
    }
    for (int row = 0; row < 16; row++) {
        Sum sums[8] = {};
        for (int k = 0; k < K; k++) {
            for (int column = 0; column < 8; column++) {
                sums[column] = denoise::multiply_add(sums[column], a[row][k], b[k][column]);
            }
        }
        for (int column = 0; column < 8; column++) {
            const auto& mine = *static_cast<const MmaLane<Sum>*>(lanes[row % 8 * 4 + column / 2]);
            Sum& c = mine.c[row / 8 * 2 + column % 2];
            c = denoise::multiply_add(c, sums[column], Sum(1));
        }
    }
}

template <class Type, class Sum> void mma(Sum (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    MmaLane<Sum> mine{a, b, c};
    warp_together(&mine, multiply_lanes<Type>);
}

/// `ldmatrix.x4`: where a lane's row is, and what it gets.
struct MatrixLane {
    const uint8_t* row;
    uint32_t* words;
};

template <bool TRANSPOSED> void load_matrix_lanes(void* const* lanes) {
    const auto lane = [&](int i) { return *static_cast<const MatrixLane*>(lanes[i]); };
    for (int matrix = 0; matrix < 4; matrix++) {
        uint32_t banks = 0;
        for (int row = 0; row < 8; row++) {
            const auto at = reinterpret_cast<uintptr_t>(lane(8 * matrix + row).row);
            if (at % 16 != 0) fail("A row of a matrix at an address that is no multiple of 16");
            banks |= 1u << at / 16 % 8;
        }
        // It would be read all the same, in as many turns: none of these kernels is meant to.
        if (banks != 0xff) fail("Rows of a matrix in the same banks");
        for (int i = 0; i < 32; i++) {
            for (int half = 0; half < 2; half++) {
                const int line = i / 4, pair = i % 4 * 2 + half;
                const uint8_t* row = lane(8 * matrix + (TRANSPOSED ? pair : line)).row;
                auto* word = reinterpret_cast<uint8_t*>(&lane(i).words[matrix]);
                std::memcpy(word + 2 * half, row + 2 * (TRANSPOSED ? line : pair), 2);
            }
        }
    }
}

template <bool TRANSPOSED> void load_matrices(uint32_t (&words)[4], const uint8_t* row) {
    MatrixLane mine{row, words};
    warp_together(&mine, load_matrix_lanes<TRANSPOSED>);
}

} // namespace emulated
