// What the ways to compute attention share: the call, and a running softmax over the fragments of tensor cores.
#pragma once

#include "fragments.cuh"

namespace denoise {

struct AttentionArgs {
    const void *q, *k, *v;
    const float* bias;
    void* out;
    int64_t q_strides[3], k_strides[3], v_strides[3], out_strides[3]; // batch, head, token
    int64_t bias_strides[4];
    uint32_t heads, queries, keys, width;
    float scale;
    bool causal;

    /// How many keys a query sees: query i sees those up to i + keys - queries.
    __device__ uint32_t seen(uint32_t query) const {
        if (!causal) return keys;
        const int64_t count = int64_t(query) + 1 + keys - queries;
        return uint32_t(count < 0 ? 0 : count < keys ? count : keys);
    }
    /// How many keys the queries of a block see together: its last query sees the most.
    __device__ uint32_t seen(uint32_t first, uint32_t count) const {
        return seen(first + count < queries ? first + count - 1 : queries - 1);
    }
};

/// The head of a batch that a block works on, of an operand of T.
template <class T> __device__ T* head_of(const AttentionArgs& args, void* data, const int64_t (&strides)[3]) {
    const uint32_t head = blockIdx.y % args.heads, batch = blockIdx.y / args.heads;
    return static_cast<T*>(data) + batch * strides[0] + head * strides[1];
}
template <class T> __device__ const T* head_of(const AttentionArgs& args, const void* data, const int64_t (&strides)[3]) {
    return head_of<T>(args, const_cast<void*>(data), strides);
}

/// Where a tile of rows of 16-bit elements has a chunk of 8 of them, in bytes. Rows stand in panels of 128 bytes, of which
/// chunks change places by row, so that neither 8 rows of a chunk nor 8 chunks of a row meet in one bank.
template <int ROWS> __device__ inline int chunk_place(int row, int chunk) {
    return chunk / 8 * ROWS * 128 + row * 128 + ((chunk ^ row) % 8) * 16;
}

/// The place of the chunk that is `further` ones on from one of the first 8, of whose number it has no bit.
template <int ROWS> __device__ inline int chunk_further(int place, int further) {
    return (place ^ further % 8 * 16) + further / 8 * ROWS * 128;
}

constexpr float LOG2_E = 1.4426950408889634f;

// A fragment of scores (16 queries, 8 N keys): element i of tile n is of query lane / 4 + 8 (i / 2) and of key
// 8 n + 2 (lane % 4) + i % 2.

/// Hides the keys beyond the last.
template <int N> __device__ inline void hide_beyond(float (&scores)[N][4], uint32_t first_key, uint32_t keys) {
    const uint32_t own = first_key + threadIdx.x % 4 * 2;
    DENOISE_UNROLL
    for (int n = 0; n < N; n++) {
        DENOISE_UNROLL
        for (int i = 0; i < 4; i++) {
            if (own + 8 * n + i % 2 >= keys) scores[n][i] = -INFINITY;
        }
    }
}

/// Makes scores of products: scales, adds the bias, and hides what a query does not see.
template <int N>
__device__ inline void finish_scores(const AttentionArgs& args, float (&scores)[N][4], uint32_t first_query,
                                     uint32_t first_key) {
    const uint32_t head = blockIdx.y % args.heads, batch = blockIdx.y / args.heads;
    const uint32_t own = first_key + threadIdx.x % 4 * 2;
    DENOISE_UNROLL
    for (int row = 0; row < 2; row++) {
        const uint32_t query = first_query + threadIdx.x % 32 / 4 + 8 * row;
        const uint32_t seen = query < args.queries ? args.seen(query) : 0;
        const int64_t bias = batch * args.bias_strides[0] + head * args.bias_strides[1] + query * args.bias_strides[2];
        DENOISE_UNROLL
        for (int n = 0; n < N; n++) {
            DENOISE_UNROLL
            for (int i = 0; i < 2; i++) {
                const uint32_t key = own + 8 * n + i;
                float& score = scores[n][2 * row + i];
                score = key < seen ? args.scale * score : -INFINITY;
                if (args.bias && key < seen) score += args.bias[bias + key * args.bias_strides[3]];
            }
        }
    }
}

/// The softmax of 16 queries while their keys pass: the largest score and the sum of probabilities of this lane's two
/// queries, of which it has its own keys' part. SCALED: scores are final; otherwise products, to be scaled yet.
template <bool SCALED> struct Running {
    float most[2] = {-INFINITY, -INFINITY}, total[2] = {};

    /// Turns scores into probabilities that are relative to the largest so far; gives in `shrink` what to multiply
    /// earlier sums by. NaN is no maximum, but makes the total NaN.
    template <int N> __device__ void take(float (&scores)[N][4], float scale, float (&shrink)[2]) {
        const float rate = SCALED ? LOG2_E : scale * LOG2_E;
        DENOISE_UNROLL
        for (int row = 0; row < 2; row++) {
            float largest = most[row];
            DENOISE_UNROLL
            for (int n = 0; n < N; n++) largest = fmaxf(largest, fmaxf(scores[n][2 * row], scores[n][2 * row + 1]));
            largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, 1));
            largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, 2));
            // Of a query that saw no key yet, all are at -inf.
            const float base = largest == -INFINITY ? 0.0f : largest, offset = base * rate;
            shrink[row] = fast_exp2((most[row] - base) * rate);
            most[row] = largest;
            float sum = 0;
            DENOISE_UNROLL
            for (int n = 0; n < N; n++) {
                DENOISE_UNROLL
                for (int i = 2 * row; i < 2 * row + 2; i++) {
                    // A bias may be the least float, which the rate would make infinite; products take one instruction.
                    const float power = SCALED ? (scores[n][i] - base) * rate : scores[n][i] * rate - offset;
                    scores[n][i] = fast_exp2(power);
                    sum += scores[n][i];
                }
            }
            total[row] = total[row] * shrink[row] + sum;
        }
    }

    /// What sums are multiplied by in the end; 0 where no key was seen.
    __device__ void finish(float (&inverse)[2]) const {
        DENOISE_UNROLL
        for (int row = 0; row < 2; row++) {
            float sum = total[row] + __shfl_xor_sync(0xffffffffu, total[row], 1);
            sum += __shfl_xor_sync(0xffffffffu, sum, 2);
            inverse[row] = sum == 0.0f ? 0.0f : 1.0f / sum;
        }
    }
};

/// Two neighbouring tiles of a fragment of sums, rounded, as the fragment of a product's first operand.
template <class T> __device__ inline void as_operand(uint32_t (&a)[4], const float (&left)[4], const float (&right)[4]) {
    a[0] = pack_pair<T>(left[0], left[1]);
    a[1] = pack_pair<T>(left[2], left[3]);
    a[2] = pack_pair<T>(right[0], right[1]);
    a[3] = pack_pair<T>(right[2], right[3]);
}

/// Puts the results of 16 queries into rows of a tile, which has ROWS of them.
template <class T, int ROWS, int N>
__device__ inline void put_results(unsigned char* tile, int first_row, const float (&sums)[N][4], const float (&inverse)[2]) {
    const int lane = threadIdx.x % 32;
    DENOISE_UNROLL
    for (int row = 0; row < 2; row++) {
        const int place = first_row + lane / 4 + 8 * row;
        DENOISE_UNROLL
        for (int n = 0; n < N; n++) {
            // Nothing was summed where the inverse is 0, unless a value is not finite.
            const auto result = [&](float sum) { return inverse[row] == 0.0f ? 0.0f : sum * inverse[row]; };
            const uint32_t pair = pack_pair<T>(result(sums[n][2 * row]), result(sums[n][2 * row + 1]));
            *reinterpret_cast<uint32_t*>(tile + chunk_place<ROWS>(place, n) + lane % 4 * 4) = pair;
        }
    }
}

/// Writes a warp's COUNT rows of a tile of results (ROWS, D), which begin at `first_row`.
template <class T, int ROWS, int D, int COUNT>
__device__ inline void write_results(const AttentionArgs& args, const unsigned char* tile, int first_row,
                                     uint32_t first_query) {
    constexpr int CHUNKS = D / 8;
    T* out = head_of<T>(args, args.out, args.out_strides);
    const int lane = threadIdx.x % 32, chunk = lane % CHUNKS;
    for (int row = first_row + lane / CHUNKS; row < first_row + COUNT; row += 32 / CHUNKS) {
        const uint32_t query = first_query + row;
        if (query >= args.queries || chunk * 8u >= args.width) continue;
        const auto& results = *reinterpret_cast<const Pack<T, 8>*>(tile + chunk_place<ROWS>(row, chunk));
        *reinterpret_cast<Pack<T, 8>*>(out + query * args.out_strides[2] + chunk * 8) = results;
    }
}

} // namespace denoise
