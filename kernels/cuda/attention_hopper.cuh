// Attention by Hopper's warpgroups: the scheme of FlashAttention-3 (Shah and others 2024).
//
// A block takes 128 queries of a head. One thread brings in queries and tiles of 128 keys and of their values, two of each at
// a time; two warpgroups have 64 queries each. Scores of the next keys are on their way while those of the last become
// probabilities, which are multiplied with their values at the same time; and while one warpgroup has its softmax, the
// other has the tensor cores.
#pragma once

#include "attention.cuh"
#include "hopper.cuh"

namespace denoise::attention_hopper {

constexpr int WARPGROUP = 128, CONSUMERS = 2, THREADS = WARPGROUP * (1 + CONSUMERS);
constexpr int GROUP_QUERIES = 64, QUERIES = GROUP_QUERIES * CONSUMERS;
constexpr int KEYS = 128;
/// Tiles of keys, and of values, that are there at a time.
constexpr int STAGES = 2;

struct Args {
    AttentionArgs attention;
    TensorMap q, k, v;
};

/// A block's barriers: each stage is full when its tile is there, and empty when all warps that multiply have read it.
struct Barriers {
    Barrier q_full, k_full[STAGES], k_empty[STAGES], v_full[STAGES], v_empty[STAGES];
    /// What compute_first writes.
    float totals[CONSUMERS * WARPGROUP][2];
};

/// Bytes of a tile (ROWS, D).
template <int ROWS, int D> constexpr int TILE_BYTES = 2 * ROWS * D;

/// Shared memory: queries, later results (128, D), keys and values (STAGES, 128, D) each, of 16 bits, and barriers.
template <int D> constexpr size_t SHARED = TILE_BYTES<QUERIES, D> + 2 * STAGES * TILE_BYTES<KEYS, D> + sizeof(Barriers);

/// Begins to copy a tile of rows of this block's head.
template <int ROWS, int D>
__device__ inline void load_tile(unsigned char* tile, const TensorMap& map, uint32_t first, uint32_t heads, Barrier* full) {
    barrier_expect(full, TILE_BYTES<ROWS, D>);
    for (int panel = 0; panel < D / PANEL; panel++) {
        copy_box(tile + panel * ROWS * PANEL_BYTES, map, panel * PANEL, first, blockIdx.y % heads, blockIdx.y / heads, full);
    }
}

/// How far the columns of a step of 16 are into a tile of ROWS.
template <int ROWS> __device__ constexpr uint32_t step_bytes(int step) {
    return step * 16 / PANEL * ROWS * PANEL_BYTES + step * 16 % PANEL * 2;
}

/// Begins scores (64, 128) = q k^T.
template <class T, int D>
__device__ inline void begin_scores(float (&scores)[KEYS / 8][4], const unsigned char* q, const unsigned char* k) {
    const uint64_t a = describe(q, 8 * PANEL_BYTES, 0), b = describe(k, 8 * PANEL_BYTES, 0);
    DENOISE_UNROLL
    for (int step = 0; step < D / 16; step++) {
        wgmma<T>(scores, further(a, step_bytes<QUERIES>(step)), further(b, step_bytes<KEYS>(step)), step > 0);
    }
    wgmma_commit();
}

/// Begins sums (64, D) += p v.
template <class T, int D>
__device__ inline void begin_sums(float (&sums)[D / 8][4], const uint32_t (&p)[KEYS / 16][4], const unsigned char* v) {
    const uint64_t b = describe(v, 8 * PANEL_BYTES, KEYS * PANEL_BYTES);
    DENOISE_UNROLL
    for (int step = 0; step < KEYS / 16; step++) wgmma<T>(sums, p[step], further(b, step * 16 * PANEL_BYTES));
    wgmma_commit();
}

/// MASKED: with a bias, or causal.
template <class T, int D, bool MASKED>
__global__ void __launch_bounds__(THREADS, 1) attention_kernel(const DENOISE_GRID_CONSTANT Args kernel_args) {
#if DENOISE_HOPPER
    const AttentionArgs& args = kernel_args.attention;
    unsigned char* q_tile = dynamic_shared<unsigned char>();
    unsigned char* k_tiles = q_tile + TILE_BYTES<QUERIES, D>;
    unsigned char* v_tiles = k_tiles + STAGES * TILE_BYTES<KEYS, D>;
    auto& barriers = *reinterpret_cast<Barriers*>(v_tiles + STAGES * TILE_BYTES<KEYS, D>);
    const auto tile_of = [](unsigned char* tiles, uint32_t tile) { return tiles + tile % STAGES * TILE_BYTES<KEYS, D>; };
    // How often the barriers of a tile's stage were through before it.
    const auto round = [](uint32_t tile) { return tile / STAGES % 2; };
    const uint32_t first = blockIdx.x * QUERIES, end = args.seen(first, QUERIES), tiles = (end + KEYS - 1) / KEYS;
    if (threadIdx.x == 0) {
        barrier_init(&barriers.q_full, 1);
        for (int stage = 0; stage < STAGES; stage++) {
            barrier_init(&barriers.k_full[stage], 1);
            barrier_init(&barriers.v_full[stage], 1);
            barrier_init(&barriers.k_empty[stage], CONSUMERS * WARPGROUP / 32);
            barrier_init(&barriers.v_empty[stage], CONSUMERS * WARPGROUP / 32);
        }
        barriers_made();
    }
    __syncthreads();

    if (threadIdx.x < WARPGROUP) {
        // Loads.
        release_registers<24>();
        if (threadIdx.x > 0 || tiles == 0) return;
        load_tile<QUERIES, D>(q_tile, kernel_args.q, first, args.heads, &barriers.q_full);
        for (uint32_t tile = 0; tile < tiles; tile++) {
            const uint32_t stage = tile % STAGES;
            barrier_wait(&barriers.k_empty[stage], round(tile) ^ 1);
            load_tile<KEYS, D>(tile_of(k_tiles, tile), kernel_args.k, tile * KEYS, args.heads, &barriers.k_full[stage]);
            barrier_wait(&barriers.v_empty[stage], round(tile) ^ 1);
            load_tile<KEYS, D>(tile_of(v_tiles, tile), kernel_args.v, tile * KEYS, args.heads, &barriers.v_full[stage]);
        }
        return;
    }

    take_registers<240>();
    const int group = threadIdx.x / WARPGROUP - 1, warp = threadIdx.x % WARPGROUP / 32, lane = threadIdx.x % 32;
    const int own_row = group * GROUP_QUERIES + warp * 16;
    const unsigned char* q = q_tile + group * GROUP_QUERIES * PANEL_BYTES;
    // The warpgroups take turns to begin products.
    const auto await_turn = [&] { numbered_sync(1 + group, CONSUMERS * WARPGROUP); };
    const auto pass_turn = [&] { numbered_arrive(2 - group, CONSUMERS * WARPGROUP); };
    const auto release = [&](Barrier& empty) {
        __syncwarp();
        if (lane == 0) barrier_arrive(&empty);
    };
    float scores[KEYS / 8][4], sums[D / 8][4] = {}, shrink[2];
    uint32_t p[KEYS / 16][4];
    Running<MASKED> running;
    const auto make_probabilities = [&](uint32_t tile) {
        if (MASKED) finish_scores(args, scores, first + own_row, tile * KEYS);
        else if ((tile + 1) * KEYS > end) hide_beyond(scores, tile * KEYS, end);
        running.take(scores, args.scale, shrink);
        compute_first(barriers.totals[threadIdx.x - WARPGROUP], running.total);
    };
    const auto pack = [&] {
        DENOISE_UNROLL
        for (int step = 0; step < KEYS / 16; step++) as_operand<T>(p[step], scores[2 * step], scores[2 * step + 1]);
    };

    if (tiles > 0) {
        // The first warpgroup has the first turn.
        if (group == 1) pass_turn();
        // Scores and probabilities of the first tile.
        barrier_wait(&barriers.q_full, 0);
        barrier_wait(&barriers.k_full[0], 0);
        await_turn();
        wgmma_fence();
        begin_scores<T, D>(scores, q, k_tiles);
        pass_turn();
        wgmma_wait<0>(scores);
        release(barriers.k_empty[0]);
        make_probabilities(0);
        pack();
    }
    for (uint32_t tile = 1; tile < tiles; tile++) {
        const uint32_t stage = tile % STAGES, last = (tile - 1) % STAGES;
        barrier_wait(&barriers.k_full[stage], round(tile));
        await_turn();
        // Scores of this tile, and what the one before adds to the sums.
        wgmma_fence();
        begin_scores<T, D>(scores, q, tile_of(k_tiles, tile));
        barrier_wait(&barriers.v_full[last], round(tile - 1));
        begin_sums<T, D>(sums, p, tile_of(v_tiles, tile - 1));
        pass_turn();
        wgmma_wait<1>(scores);
        release(barriers.k_empty[stage]);
        make_probabilities(tile);
        wgmma_wait<0>(sums);
        release(barriers.v_empty[last]);
        DENOISE_UNROLL
        for (int n = 0; n < D / 8; n++) {
            DENOISE_UNROLL
            for (int i = 0; i < 4; i++) sums[n][i] *= shrink[i / 2];
        }
        pack();
    }
    if (tiles > 0) {
        // The second warpgroup's last turn is nobody's to wait for.
        if (group == 0) await_turn();
        barrier_wait(&barriers.v_full[(tiles - 1) % STAGES], round(tiles - 1));
        wgmma_fence();
        begin_sums<T, D>(sums, p, tile_of(v_tiles, tiles - 1));
        wgmma_wait<0>(sums);
    }

    // Results take the place of the warpgroup's queries on their way out.
    numbered_sync(3 + group, WARPGROUP);
    float inverse[2];
    running.finish(inverse);
    put_results<T, QUERIES>(q_tile, own_row, sums, inverse);
    __syncwarp();
    write_results<T, QUERIES, D, 16>(args, q_tile, own_row, first);
#else
    (void)kernel_args;
#endif
}

template <class T> void attend(const Call& call, const Args& args, int64_t heads) {
    const dim3 blocks(blocks_of(ceil_div(args.attention.queries, QUERIES)), unsigned(heads));
    const auto run = [&](auto width, auto masked) {
        constexpr int D = decltype(width)::value;
        static_assert(SHARED<D> <= 227 << 10, "a block of sm_90 has no more shared memory");
        launch(call, attention_kernel<T, D, decltype(masked)::value>, blocks, THREADS, SHARED<D>, args);
    };
    const auto masked = [&](auto width) {
        if (args.attention.bias || args.attention.causal) run(width, std::true_type{});
        else run(width, std::false_type{});
    };
    if (args.attention.width <= 64) masked(std::integral_constant<int, 64>{});
    else masked(std::integral_constant<int, 128>{});
}

} // namespace denoise::attention_hopper
