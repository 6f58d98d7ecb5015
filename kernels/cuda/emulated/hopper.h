// The instructions of ../hopper.cuh on the host: descriptors, the swizzle and fragments are decoded as the PTX ISA says of
// `wgmma`, copies by tensor maps come when no thread can go on without them, and products are made when they are waited
// for; in every other block both are made at once, as a device may do either.
#pragma once

#include "../numbers.cuh"

#include <array>

namespace emulated {

inline uint32_t shared_address(const void* shared) {
    return uint32_t(static_cast<const unsigned char*>(shared) - place.shared);
}

/// An element of shared memory by its address before the 128-byte swizzle.
inline uint16_t* swizzled(uint32_t address) {
    return reinterpret_cast<uint16_t*>(place.shared + (address ^ (address >> 7 & 7) << 4));
}

/// What a lane brings to a product.
struct WgmmaLane {
    float (*sums)[4];
    const uint32_t* a; // a fragment (16, 16), or null where it is in shared memory
    uint64_t a_matrix, b_matrix;
    bool add;
    unsigned warp; // of its warpgroup
};

/// A descriptor's parts, in bytes.
struct Matrix {
    uint32_t start, across, next;
    explicit Matrix(uint64_t bits)
        : start(uint32_t(bits & 0x3fff) << 4), across(uint32_t(bits >> 16 & 0x3fff) << 4),
          next(uint32_t(bits >> 32 & 0x3fff) << 4) {
        if (bits >> 62 != 1) fail("A product of a matrix without the 128-byte swizzle");
        if (bits >> 49 & 7) fail("A product of a matrix with a base offset");
    }
    /// Of a matrix whose rows are a panel's rows: K along the row.
    uint16_t* along(uint32_t row, uint32_t k) const { return swizzled(start + row / 8 * next + row % 8 * 128 + 2 * k); }
    /// Of one whose rows are a panel's columns.
    uint16_t* down(uint32_t row, uint32_t k) const {
        return swizzled(start + row / 64 * across + k / 8 * next + k % 8 * 128 + row % 64 * 2);
    }
};

/// A warp's part of a product (64, 8 N): its 16 rows.
template <class T, int N, bool TRANSPOSED> void multiply_warp(const std::array<WgmmaLane, 32>& lanes) {
    const auto value = [](uint32_t bits) { return denoise::widen(T{uint16_t(bits)}); };
    static thread_local float a[16][16], b[16][8 * N], sums[16][8 * N];
    const Matrix b_matrix(lanes[0].b_matrix);
    for (uint32_t k = 0; k < 16; k++) {
        for (uint32_t n = 0; n < 8 * N; n++) b[k][n] = value(TRANSPOSED ? *b_matrix.down(n, k) : *b_matrix.along(n, k));
    }
    for (int i = 0; i < 32; i++) {
        const WgmmaLane& lane = lanes[i];
        const int row = i / 4, column = i % 4 * 2;
        for (int n = 0; n < N; n++) {
            for (int j = 0; j < 4; j++) {
                sums[row + j / 2 * 8][8 * n + column + j % 2] = lane.add ? lane.sums[n][j] : 0.0f;
            }
        }
        if (lane.a) {
            for (int j = 0; j < 4; j++) {
                for (int half = 0; half < 2; half++) {
                    a[row + j % 2 * 8][column + j / 2 * 8 + half] = value(lane.a[j] >> 16 * half);
                }
            }
        }
    }
    if (!lanes[0].a) {
        const Matrix a_matrix(lanes[0].a_matrix);
        for (uint32_t row = 0; row < 16; row++) {
            for (uint32_t k = 0; k < 16; k++) a[row][k] = value(*a_matrix.along(16 * lanes[0].warp + row, k));
        }
    }
    for (int row = 0; row < 16; row++) {
        for (int k = 0; k < 16; k++) {
            for (int n = 0; n < 8 * N; n++) sums[row][n] += a[row][k] * b[k][n];
        }
    }
    for (int i = 0; i < 32; i++) {
        for (int n = 0; n < N; n++) {
            for (int j = 0; j < 4; j++) lanes[i].sums[n][j] = sums[i / 4 + j / 2 * 8][8 * n + i % 4 * 2 + j % 2];
        }
    }
}

template <class T, int N, bool TRANSPOSED>
void wgmma(float (&sums)[N][4], const uint32_t* a, uint64_t a_matrix, uint64_t b_matrix, bool add) {
    WgmmaLane mine{sums, a, a_matrix, b_matrix, add, threadIdx.x / 32 % 4};
    warp_together(&mine, [](void* const* lanes) {
        std::array<WgmmaLane, 32> all;
        for (int i = 0; i < 32; i++) all[i] = *static_cast<const WgmmaLane*>(lanes[i]);
        begin_product([all] { multiply_warp<T, N, TRANSPOSED>(all); });
    });
}

inline void wgmma_fence() {
    warp_together(nullptr, [](void* const*) { fence_products(); });
}
inline void wgmma_commit() {
    warp_together(nullptr, [](void* const*) { commit_products(); });
}
inline void wgmma_wait(unsigned last) {
    warp_together(&last, [](void* const* lanes) { wait_for_products(*static_cast<const unsigned*>(lanes[0])); });
}

/// What a barrier's word holds.
struct BarrierState {
    unsigned arrivals : 15, phase : 1, missing : 16;
    int32_t bytes;
};
static_assert(sizeof(BarrierState) == 8, "a barrier is a word of 64 bits");

/// Changes a barrier, whose phase ends with the last arrival and byte.
template <class Change> void change_barrier(uint64_t* barrier, Change change) {
    BarrierState state;
    std::memcpy(&state, barrier, sizeof(state));
    change(state);
    if (state.missing == 0 && state.bytes == 0) {
        state.phase ^= 1;
        state.missing = state.arrivals;
    }
    std::memcpy(barrier, &state, sizeof(state));
    has_changed();
}

inline void barrier_init(uint64_t* barrier, uint32_t arrivals) {
    BarrierState state{};
    state.arrivals = arrivals & 0x7fff;
    state.missing = arrivals & 0x7fff;
    std::memcpy(barrier, &state, sizeof(state));
}

inline void barrier_arrive(uint64_t* barrier, uint32_t bytes) {
    change_barrier(barrier, [&](BarrierState& state) {
        if (state.missing == 0) fail("More threads arrive at a barrier than it was made for");
        state.missing--;
        state.bytes += int32_t(bytes);
    });
}

inline void barrier_wait(uint64_t* barrier, uint32_t parity) {
    for (;;) {
        BarrierState state;
        std::memcpy(&state, barrier, sizeof(state));
        if (state.phase != parity) break;
        give_way();
    }
    has_changed();
}

/// A tensor (batch, head, token, column) of 16-bit elements, innermost first.
struct TensorMap {
    const void* data;
    uint64_t sizes[4];
    uint64_t steps[3]; // in bytes, of all axes but the first
    uint32_t tokens;   // of a box
};

inline void begin_box(void* panel, const TensorMap& map, uint32_t column, uint32_t token, uint32_t head, uint32_t batch,
                     uint64_t* barrier) {
    const uint32_t first = shared_address(panel);
    if (first % 1024 != 0) fail("A panel at no multiple of 1024 bytes");
    later([=, map = map] {
        for (uint32_t row = 0; row < map.tokens; row++) {
            for (uint32_t i = 0; i < 64; i++) {
                uint16_t element = 0;
                if (column + i < map.sizes[0] && token + row < map.sizes[1] && head < map.sizes[2] && batch < map.sizes[3]) {
                    const auto from = static_cast<const unsigned char*>(map.data) + (token + row) * map.steps[0] +
                                      head * map.steps[1] + batch * map.steps[2] + 2 * (column + i);
                    std::memcpy(&element, from, sizeof(element));
                }
                *swizzled(first + 128 * row + 2 * i) = element;
            }
        }
        change_barrier(barrier, [&](BarrierState& state) { state.bytes -= int32_t(128 * map.tokens); });
    });
}

} // namespace emulated
