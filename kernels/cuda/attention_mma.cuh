// Attention by the tensor cores of sm_80 and later: the scheme of FlashAttention-2 (Dao 2023).
//
// A block takes 128 queries of a head, a warp 32 of them. Keys pass in tiles: their scores stay in registers, are turned
// into probabilities there, and are at once the first operand of the product with their values. The next keys are on
// their way while values are multiplied, and values while keys are.
#pragma once

#include "attention.cuh"

namespace denoise::attention_mma {

constexpr int WARPS = 4, THREADS = 32 * WARPS;
/// Tiles of 16 queries of a warp, which share what it reads of keys and values.
constexpr int TILES = 2;
constexpr int QUERIES = 16 * TILES * WARPS;

/// Keys in a tile: fewer where the registers for scores, beside those for results, do not suffice for more.
template <int D, bool MASKED> constexpr int KEYS = D > 64 && MASKED ? 32 : 64;

/// Shared memory: queries, later results (128, D), keys and values (KEYS, D), of 16 bits.
template <int D, bool MASKED> constexpr size_t SHARED = 2 * D * (QUERIES + 2 * KEYS<D, MASKED>);

/// Rows of a head on their way into tiles: each thread copies one chunk of some rows.
template <class T, int D> struct Rows {
    static constexpr int CHUNKS = D / 8, STEP = THREADS / CHUNKS;
    const T* source;
    int64_t step;
    bool known;

    __device__ Rows(const AttentionArgs& args, const void* data, const int64_t (&strides)[3], uint32_t first)
        : step(STEP * strides[2]), known(threadIdx.x % CHUNKS * 8 < args.width) {
        const int chunk = threadIdx.x % CHUNKS, own = threadIdx.x / CHUNKS;
        source = head_of<T>(args, data, strides) + (first + own) * strides[2] + chunk * 8;
    }

    /// Begins to copy the next ROWS rows, of which there are `count`, into a tile, which has zeros beyond them.
    template <int ROWS> __device__ void load(unsigned char* tile, uint32_t count) {
        static_assert(THREADS % CHUNKS == 0 && ROWS % STEP == 0, "all threads copy as many rows");
        const int chunk = threadIdx.x % CHUNKS, own = threadIdx.x / CHUNKS;
        DENOISE_UNROLL
        for (int row = 0; row < ROWS; row += STEP, source += step) {
            copy_async<16>(tile + chunk_place<ROWS>(own + row, chunk), source, known && uint32_t(own + row) < count);
        }
    }
};

/// MASKED: with a bias, or causal.
template <class T, int D, bool MASKED> __global__ void __launch_bounds__(THREADS, 2) attention_kernel(AttentionArgs args) {
    constexpr int KEYS = attention_mma::KEYS<D, MASKED>;
    unsigned char* q_tile = dynamic_shared<unsigned char>();
    unsigned char* k_tile = q_tile + QUERIES * D * 2;
    unsigned char* v_tile = k_tile + KEYS * D * 2;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const uint32_t first = blockIdx.x * QUERIES, end = args.seen(first, QUERIES);
    Rows<T, D> k(args, args.k, args.k_strides, 0), v(args, args.v, args.v_strides, 0);
    Rows<T, D>(args, args.q, args.q_strides, first).template load<QUERIES>(q_tile, args.queries - first);
    k.template load<KEYS>(k_tile, end);
    copy_commit();
    float sums[TILES][D / 8][4] = {};
    Running<MASKED> running[TILES];
    // Where a lane's part of the first fragment of each operand lies.
    int q_place = chunk_place<QUERIES>(warp * TILES * 16 + lane % 16, lane / 16);
    int k_place = chunk_place<KEYS>(lane / 16 * 8 + lane % 8, lane / 8 % 2);
    int v_place = chunk_place<KEYS>(lane % 16, lane / 16);
    for (uint32_t start = 0; start < end; start += KEYS) {
        keep_in_loop(q_place);
        keep_in_loop(k_place);
        keep_in_loop(v_place);
        // These keys are there, and the values before were read.
        copy_wait<0>();
        __syncthreads();
        v.template load<KEYS>(v_tile, end - start);
        copy_commit();

        // Scores: q k^T.
        float scores[TILES][KEYS / 8][4] = {};
        DENOISE_UNROLL
        for (int step = 0; step < D / 16; step++) {
            uint32_t a[TILES][4];
            DENOISE_UNROLL
            for (int m = 0; m < TILES; m++) {
                load_matrices<false>(a[m], q_tile + m * 16 * 128 + chunk_further<QUERIES>(q_place, 2 * step));
            }
            DENOISE_UNROLL
            for (int n = 0; n < KEYS / 8; n += 2) {
                uint32_t b[4];
                load_matrices<false>(b, k_tile + n * 8 * 128 + chunk_further<KEYS>(k_place, 2 * step));
                DENOISE_UNROLL
                for (int m = 0; m < TILES; m++) {
                    mma_half<T>(scores[m][n], a[m], {b[0], b[1]});
                    mma_half<T>(scores[m][n + 1], a[m], {b[2], b[3]});
                }
            }
        }

        // The values are there, and the keys were read.
        copy_wait<0>();
        __syncthreads();
        if (start + KEYS < end) k.template load<KEYS>(k_tile, end - start - KEYS);
        copy_commit();

        // Probabilities.
        DENOISE_UNROLL
        for (int m = 0; m < TILES; m++) {
            if (MASKED) finish_scores(args, scores[m], first + (warp * TILES + m) * 16, start);
            else if (start + KEYS > end) hide_beyond(scores[m], start, end);
            float shrink[2];
            running[m].take(scores[m], args.scale, shrink);
            DENOISE_UNROLL
            for (int n = 0; n < D / 8; n++) {
                DENOISE_UNROLL
                for (int i = 0; i < 4; i++) sums[m][n][i] *= shrink[i / 2];
            }
        }

        // Sums: p v.
        DENOISE_UNROLL
        for (int step = 0; step < KEYS / 16; step++) {
            uint32_t a[TILES][4];
            DENOISE_UNROLL
            for (int m = 0; m < TILES; m++) as_operand<T>(a[m], scores[m][2 * step], scores[m][2 * step + 1]);
            DENOISE_UNROLL
            for (int n = 0; n < D / 8; n += 2) {
                uint32_t b[4];
                load_matrices<true>(b, v_tile + step * 16 * 128 + chunk_further<KEYS>(v_place, n));
                DENOISE_UNROLL
                for (int m = 0; m < TILES; m++) {
                    mma_half<T>(sums[m][n], a[m], {b[0], b[1]});
                    mma_half<T>(sums[m][n + 1], a[m], {b[2], b[3]});
                }
            }
        }
    }

    // A warp's queries are its own to read, so its results take their place on their way out.
    copy_wait<0>();
    __syncthreads();
    DENOISE_UNROLL
    for (int m = 0; m < TILES; m++) {
        float inverse[2];
        running[m].finish(inverse);
        put_results<T, QUERIES>(q_tile, (warp * TILES + m) * 16, sums[m], inverse);
    }
    __syncwarp();
    write_results<T, QUERIES, D, 16 * TILES>(args, q_tile, warp * TILES * 16, first);
}

template <class T> void attend(const Call& call, const AttentionArgs& args, int64_t heads) {
    const dim3 blocks(blocks_of(ceil_div(args.queries, QUERIES)), unsigned(heads));
    const auto run = [&](auto width, auto masked) {
        constexpr int D = decltype(width)::value;
        constexpr bool MASKED = decltype(masked)::value;
        static_assert(SHARED<D, MASKED> <= 163 << 10, "a block of sm_80 has no more shared memory");
        launch(call, attention_kernel<T, D, MASKED>, blocks, THREADS, SHARED<D, MASKED>, args);
    };
    const auto masked = [&](auto width) {
        if (args.bias || args.causal) run(width, std::true_type{});
        else run(width, std::false_type{});
    };
    if (args.width <= 64) masked(std::integral_constant<int, 64>{});
    else masked(std::integral_constant<int, 128>{});
}

} // namespace denoise::attention_mma
