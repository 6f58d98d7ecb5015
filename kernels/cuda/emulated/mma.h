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

} // namespace emulated
