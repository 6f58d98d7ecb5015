// Whether the emulated instructions of tensor cores hold to the PTX ISA: where the elements of a matrix are in registers,
// as its figures show them, by lane and element. Run by kernels/tests/cuda_instructions.rs.

#include "../mma.cuh"

#include <cstdio>
#include <cstdlib>

using namespace denoise;

/// Where an element is: a lane, and which of the elements in its registers.
struct Spot {
    int lane, element;
};

// A of m16n8k16, rows 0 and 8: four lanes a row, two elements of each in each half of the columns. Each further row has the
// next four lanes.
constexpr Spot A_K16[2][16] = {
    {{0, 0}, {0, 1}, {1, 0}, {1, 1}, {2, 0}, {2, 1}, {3, 0}, {3, 1}, {0, 4}, {0, 5}, {1, 4}, {1, 5}, {2, 4}, {2, 5}, {3, 4}, {3, 5}},
    {{0, 2}, {0, 3}, {1, 2}, {1, 3}, {2, 2}, {2, 3}, {3, 2}, {3, 3}, {0, 6}, {0, 7}, {1, 6}, {1, 7}, {2, 6}, {2, 7}, {3, 6}, {3, 7}},
};
// B of m16n8k16, column 0. Each further column has the next four lanes.
constexpr Spot B_K16[16] = {{0, 0}, {0, 1}, {1, 0}, {1, 1}, {2, 0}, {2, 1}, {3, 0}, {3, 1},
                            {0, 2}, {0, 3}, {1, 2}, {1, 3}, {2, 2}, {2, 3}, {3, 2}, {3, 3}};
// A of m16n8k32, rows 0 and 8.
constexpr Spot A_K32[2][32] = {
    {{0, 0}, {0, 1}, {0, 2},  {0, 3},  {1, 0}, {1, 1}, {1, 2},  {1, 3},  {2, 0}, {2, 1}, {2, 2},  {2, 3},  {3, 0}, {3, 1}, {3, 2},  {3, 3},
     {0, 8}, {0, 9}, {0, 10}, {0, 11}, {1, 8}, {1, 9}, {1, 10}, {1, 11}, {2, 8}, {2, 9}, {2, 10}, {2, 11}, {3, 8}, {3, 9}, {3, 10}, {3, 11}},
    {{0, 4},  {0, 5},  {0, 6},  {0, 7},  {1, 4},  {1, 5},  {1, 6},  {1, 7},  {2, 4},  {2, 5},  {2, 6},  {2, 7},  {3, 4},  {3, 5},  {3, 6},  {3, 7},
     {0, 12}, {0, 13}, {0, 14}, {0, 15}, {1, 12}, {1, 13}, {1, 14}, {1, 15}, {2, 12}, {2, 13}, {2, 14}, {2, 15}, {3, 12}, {3, 13}, {3, 14}, {3, 15}},
};
// B of m16n8k32, column 0.
constexpr Spot B_K32[32] = {{0, 0}, {0, 1}, {0, 2}, {0, 3}, {1, 0}, {1, 1}, {1, 2}, {1, 3}, {2, 0}, {2, 1}, {2, 2},
                            {2, 3}, {3, 0}, {3, 1}, {3, 2}, {3, 3}, {0, 4}, {0, 5}, {0, 6}, {0, 7}, {1, 4}, {1, 5},
                            {1, 6}, {1, 7}, {2, 4}, {2, 5}, {2, 6}, {2, 7}, {3, 4}, {3, 5}, {3, 6}, {3, 7}};
// C of both, rows 0 and 8.
constexpr Spot C[2][8] = {{{0, 0}, {0, 1}, {1, 0}, {1, 1}, {2, 0}, {2, 1}, {3, 0}, {3, 1}},
                          {{0, 2}, {0, 3}, {1, 2}, {1, 3}, {2, 2}, {2, 3}, {3, 2}, {3, 3}}};

/// Small integers, which every type has, from -3 to 3.
static int value(int i) { return (i * 37 + i / 11) % 7 - 3; }

static void fail(const char* what, int row, int column, double got, double want) {
    std::fprintf(stderr, "%s: row %d, column %d is %g, not %g\n", what, row, column, got, want);
    std::exit(1);
}

static uint32_t code(bf16, int x) { return narrow<bf16>(float(x)).bits; }
static uint32_t code(f16, int x) { return narrow<f16>(float(x)).bits; }
static uint32_t code(int8_t, int x) { return uint8_t(x); }

/// Multiplies in registers that are filled by the figures, and looks for the result where they say.
template <class T, class Sum, int K, class Multiply>
void check_layout(const char* what, const Spot (&a_spots)[2][K], const Spot (&b_spots)[K], Multiply multiply) {
    constexpr int EACH = 4 / int(sizeof(T));
    static uint32_t a[32][4], b[32][2];
    static Sum c[32][4];
    std::memset(a, 0, sizeof(a));
    std::memset(b, 0, sizeof(b));
    const auto put = [](uint32_t* registers, int element, uint32_t bits) {
        registers[element / EACH] |= bits << (element % EACH * int(8 * sizeof(T)));
    };
    for (int k = 0; k < K; k++) {
        for (int row = 0; row < 16; row++) {
            const Spot spot = a_spots[row / 8][k];
            put(a[spot.lane + row % 8 * 4], spot.element, code(T{}, value(row * K + k)));
        }
        for (int column = 0; column < 8; column++) {
            put(b[b_spots[k].lane + column * 4], b_spots[k].element, code(T{}, value(k * 8 + column + 1000)));
        }
    }
    for (int row = 0; row < 16; row++) {
        for (int column = 0; column < 8; column++) {
            const Spot spot = C[row / 8][column];
            c[spot.lane + row % 8 * 4][spot.element] = Sum(row * 8 + column);
        }
    }
    cudaStream_t stream;
    cudaStreamCreateWithFlags(&stream, 0);
    // Two warps, of which the second does the same to nothing.
    emulated::launch(stream, 1, 64, 0, [&] {
        if (threadIdx.x < 32) {
            multiply(c[threadIdx.x], a[threadIdx.x], b[threadIdx.x]);
        } else {
            Sum none[4] = {};
            const uint32_t zeros[4] = {}, two[2] = {};
            multiply(none, zeros, two);
            for (Sum each : none) {
                if (each != 0) fail(what, 0, 0, double(each), 0);
            }
        }
    });
    cudaStreamDestroy(stream);
    for (int row = 0; row < 16; row++) {
        for (int column = 0; column < 8; column++) {
            int want = row * 8 + column;
            for (int k = 0; k < K; k++) want += value(row * K + k) * value(k * 8 + column + 1000);
            const Spot spot = C[row / 8][column];
            const Sum got = c[spot.lane + row % 8 * 4][spot.element];
            if (got != Sum(want)) fail(what, row, column, double(got), want);
        }
    }
}

/// Whether a kernel that does what no device takes is refused, with what words.
template <class Body> void check_refused(const char* words, size_t shared, Body body) {
    cudaStream_t stream;
    cudaStreamCreateWithFlags(&stream, 0);
    try {
        emulated::launch(stream, 1, 32, shared, body);
    } catch (const std::exception& error) {
        if (std::string(error.what()).find(words) != std::string::npos) return void(cudaStreamDestroy(stream));
    }
    std::fprintf(stderr, "nothing was refused as %s\n", words);
    std::exit(1);
}

/// Of four matrices each lane gets the bytes that the figure of `ldmatrix` shows: four lanes a row, four bytes a lane.
static void check_matrices() {
    static uint32_t got[32][4];
    cudaStream_t stream;
    cudaStreamCreateWithFlags(&stream, 0);
    emulated::launch(stream, 1, 32, 512, [&] {
        uint8_t* shared = dynamic_shared<uint8_t>();
        for (int i = 0; i < 16; i++) shared[threadIdx.x * 16 + i] = uint8_t(threadIdx.x * 8 + i / 4);
        __syncwarp();
        // The matrices in turned order.
        load_matrices(got[threadIdx.x], shared + (threadIdx.x ^ 24) * 16);
    });
    cudaStreamDestroy(stream);
    for (int lane = 0; lane < 32; lane++) {
        for (int matrix = 0; matrix < 4; matrix++) {
            const uint32_t want = uint32_t((3 - matrix) * 64 + lane / 4 * 8 + lane % 4) * 0x01010101u;
            if (got[lane][matrix] != want) fail("a matrix", lane, matrix, got[lane][matrix], want);
        }
    }
    check_refused("same banks", 8192, [&] {
        uint32_t words[4];
        load_matrices(words, dynamic_shared<uint8_t>() + threadIdx.x * 64);
    });
}

/// A copy is not there before it was waited for, and what was there before is no more.
static void check_copies() {
    alignas(16) static uint32_t from[64];
    for (int i = 0; i < 64; i++) from[i] = uint32_t(i) + 1;
    static uint32_t before, unwaited, waited, next, zeros;
    cudaStream_t stream;
    cudaStreamCreateWithFlags(&stream, 0);
    emulated::launch(stream, 1, 32, 1024, [&] {
        uint32_t* shared = dynamic_shared<uint32_t>();
        if (threadIdx.x > 0) return;
        shared[0] = 77;
        before = shared[0];
        copy_async<16>(shared, from, true);
        copy_commit();
        copy_async<4>(shared + 8, from + 9, true);
        copy_async<16>(shared + 12, nullptr, false);
        copy_commit();
        unwaited = shared[0];
        copy_wait<1>();
        waited = shared[3];
        next = shared[8];
        copy_wait<0>();
        zeros = shared[12] | shared[15];
        if (shared[8] != 10) fail("a copied word", 0, 0, shared[8], 10);
    });
    cudaStreamDestroy(stream);
    if (before != 77 || unwaited == 77 || unwaited == 1) fail("a copy under way", 0, 0, unwaited, 0);
    if (waited != 4) fail("a copy that was waited for", 0, 0, waited, 4);
    if (next == 10) fail("a copy of the next group", 0, 0, next, 0);
    if (zeros != 0) fail("a copy of zeros", 0, 0, zeros, 0);
    check_refused("multiple of its bytes", 64, [&] { copy_async<16>(dynamic_shared<uint32_t>() + 1, from, true); });
    check_refused("multiple of its bytes", 64, [&] { copy_async<16>(dynamic_shared<uint32_t>(), from + 2, true); });
    check_refused("other than shared memory", 64, [&] { copy_async<16>(from, from, true); });
    check_refused("did not wait for", 64, [&] {
        copy_async<16>(dynamic_shared<uint32_t>(), from, true);
        copy_commit();
    });
    check_refused("different instructions", 0, [&] {
        float c[4] = {};
        const uint32_t a[4] = {}, b[2] = {};
        if (threadIdx.x < 16) mma_half<bf16>(c, a, b);
        else __syncwarp();
    });
}

int main() {
    check_layout<bf16, float>("bf16", A_K16, B_K16, [](auto& c, auto& a, auto& b) { mma_half<bf16>(c, a, b); });
    check_layout<f16, float>("f16", A_K16, B_K16, [](auto& c, auto& a, auto& b) { mma_half<f16>(c, a, b); });
    check_layout<int8_t, int32_t>("int8", A_K32, B_K32, [](auto& c, auto& a, auto& b) { mma_int8(c, a, b); });
    check_matrices();
    check_copies();
}
