// Rows of the last axis: where they lie, and how a team of threads shares one.
#pragma once

#include "numbers.cuh"

namespace denoise {

/// From a row's number, counted over all axes but the last, to its offset in elements. Axes that lie one after another
/// are one: most views have a single step, and what is broadcast over tokens has two.
struct RowMap {
    int rank;
    uint32_t sizes[7];
    int64_t strides[7];

    explicit RowMap(const View& view) : rank(0), sizes{}, strides{} {
        for (int axis = 0; axis + 1 < view.rank; axis++) {
            const int64_t size = view.sizes[axis], stride = view.strides[axis];
            if (size == 1) continue;
            if (rank > 0 && strides[rank - 1] == stride * size) {
                sizes[rank - 1] = count32(sizes[rank - 1] * size);
            } else {
                sizes[rank++] = count32(size);
            }
            strides[rank - 1] = stride;
        }
    }

    __device__ int64_t offset(uint32_t row) const {
        int64_t offset = 0;
        for (int axis = rank - 1; axis > 0; axis--) {
            const uint32_t outer = row / sizes[axis];
            offset += int64_t(row - outer * sizes[axis]) * strides[axis];
            row = outer;
        }
        return rank > 0 ? offset + int64_t(row) * strides[0] : 0;
    }
};

/// A view with frames, whether or not it is a video: (B, T, H, W, C).
inline View with_frames(const View& view) {
    if (view.rank != 4) return view;
    View video{view.data, view.dtype, 5, {view.sizes[0], 1}, {view.strides[0], 0}};
    for (int axis = 1; axis < 4; axis++) {
        video.sizes[axis + 1] = view.sizes[axis];
        video.strides[axis + 1] = view.strides[axis];
    }
    return video;
}

/// The blocks and threads of a kernel that gives each row to a team: a warp, four to a block, or a whole block.
struct Teams {
    dim3 blocks, threads;
    Teams(int64_t rows, int64_t work) {
        count32(rows);
        // A warp goes over some elements by itself before more of them pay.
        if (work <= 32 * 16) {
            threads = dim3(32, 4);
            blocks = dim3(blocks_of(ceil_div(rows, 4)));
        } else {
            threads = dim3(256);
            blocks = dim3(blocks_of(rows));
        }
    }
};

/// The row of this thread's team, which may lie beyond the last.
__device__ inline uint32_t team_row() { return blockIdx.x * blockDim.y + threadIdx.y; }

struct Sum {
    __device__ float operator()(float a, float b) const { return a + b; }
};
struct Largest {
    __device__ float operator()(float a, float b) const { return fmaxf(a, b); }
};
struct Least {
    __device__ float operator()(float a, float b) const { return fminf(a, b); }
};

template <class Op> __device__ float warp_all(float x, Op op) {
    for (int mask = 16; mask > 0; mask /= 2) x = op(x, __shfl_xor_sync(0xffffffffu, x, mask));
    return x;
}

/// Combines a value of each thread of the team; all get the result. `none` is what changes nothing.
template <class Op> __device__ float team_all(float x, Op op, float none) {
    x = warp_all(x, op);
    if (blockDim.x == 32) return x;
    __shared__ float parts[32];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    // What an earlier call left there may still be read.
    __syncthreads();
    if (lane == 0) parts[warp] = x;
    __syncthreads();
    return warp_all(lane < int(blockDim.x / 32) ? parts[lane] : none, op);
}

} // namespace denoise
