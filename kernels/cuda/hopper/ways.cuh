// The ways to multiply by Hopper's tensor cores: each is a kernel of a source of its own, compiled for sm_90a alone. Here
// is what a multiply must be for them, and which of them is the best guess.
#pragma once

#include "../epilogue.cuh"
#include "../scaling.cuh"

#include <algorithm>
#include <optional>

namespace denoise::hopper {

/// Rows that a copy engine (TMA) reads or writes: of dense elements, at equal steps, which are counted in elements.
struct Lines {
    const void* data;
    int64_t row, batch;
};

/// A multiply as it is taken: x (batch, m, k), weight (n, k), out (batch, m, n).
struct Problem {
    int m, n, k, batch;
    Lines x;
    const void* weight;
    int64_t weight_row;
    Lines out;
    /// Without data where there is none, or the epilogue reads it by itself.
    Lines residual;
};

/// What becomes of sums: what a row and a column have is found once for all of them.
template <class T, class Scaling> struct Finish {
    Epilogue e;
    Scaling scaling;
    /// Whether the residual is read with the result's tiles.
    bool tiled_residual;

    /// Gate and residual are of dense rows.
    struct Row {
        typename Scaling::Row scaling;
        const T *gate, *residual;
    };
    __device__ Row row(uint32_t row) const {
        Row found{scaling.row(row), nullptr, nullptr};
        if (e.gate.data) found.gate = static_cast<const T*>(e.gate.data) + e.gate.rows.offset(row);
        if (reads_residual()) found.residual = static_cast<const T*>(e.residual.data) + e.residual.rows.offset(row);
        return found;
    }
    __device__ bool reads_residual() const { return e.residual.data && !tiled_residual; }
};

/// A kernel and the tile of the result that it makes at once.
template <class Scaling> struct Kernel {
    const char* name;
    int m, n;
    void (*run)(const Call&, const Problem&, const Epilogue&, const Scaling&);
};

#ifdef DENOISE_HOPPER

#define DENOISE_HOPPER_KERNEL(name, kind)                                                                              \
    void name(const Call& call, const Problem& problem, const Epilogue& e, const kind& scaling)
DENOISE_HOPPER_KERNEL(bf16_128x256, NoScaling);
DENOISE_HOPPER_KERNEL(bf16_128x192, NoScaling);
DENOISE_HOPPER_KERNEL(bf16_128x128, NoScaling);
DENOISE_HOPPER_KERNEL(bf16_64x128, NoScaling);
DENOISE_HOPPER_KERNEL(f16_128x256, NoScaling);
DENOISE_HOPPER_KERNEL(f16_128x128, NoScaling);
DENOISE_HOPPER_KERNEL(e4m3_128x192, Fp8Scaling);
DENOISE_HOPPER_KERNEL(e4m3_128x128, Fp8Scaling);
DENOISE_HOPPER_KERNEL(e4m3_64x128, Fp8Scaling);
DENOISE_HOPPER_KERNEL(int8_128x256, IntegerScaling);
DENOISE_HOPPER_KERNEL(int8_128x128, IntegerScaling);
DENOISE_HOPPER_KERNEL(int8_64x128, IntegerScaling);

/// The kernels for x of a float type, with a result of the same.
template <class T> std::vector<Kernel<NoScaling>> float_kernels() {
    if constexpr (std::is_same_v<T, bf16>) {
        return {{"hopper 128x256", 128, 256, bf16_128x256},
                {"hopper 128x192", 128, 192, bf16_128x192},
                {"hopper 128x128", 128, 128, bf16_128x128},
                {"hopper 64x128", 64, 128, bf16_64x128}};
    } else if constexpr (std::is_same_v<T, f16>) {
        return {{"hopper 128x256", 128, 256, f16_128x256}, {"hopper 128x128", 128, 128, f16_128x128}};
    } else {
        return {};
    }
}

/// The kernels for quantized rows by a weight of a format, with a result of T.
template <class T> std::vector<Kernel<Fp8Scaling>> code_kernels(const Format& format, const Fp8Scaling& scaling) {
    if (!std::is_same_v<T, bf16> || format.kind != schema::Format::e4m3 || scaling.x.kind != schema::Rows::e4m3) return {};
    return {{"hopper 128x192", 128, 192, e4m3_128x192},
            {"hopper 128x128", 128, 128, e4m3_128x128},
            {"hopper 64x128", 64, 128, e4m3_64x128}};
}
template <class T> std::vector<Kernel<IntegerScaling>> code_kernels(const Format& format, const IntegerScaling&) {
    if (!std::is_same_v<T, bf16> || format.kind != schema::Format::int8) return {};
    return {{"hopper 128x256", 128, 256, int8_128x256},
            {"hopper 128x128", 128, 128, int8_128x128},
            {"hopper 64x128", 64, 128, int8_64x128}};
}

#else

template <class T> std::vector<Kernel<NoScaling>> float_kernels() { return {}; }
template <class T, class Scaling> std::vector<Kernel<Scaling>> code_kernels(const Format&, const Scaling&) { return {}; }

#endif

/// Whether TMA takes lines of elements of `bytes` bytes: addresses and steps are of 16 bytes, and steps below 2^40.
inline bool takes(const Lines& lines, int64_t bytes) {
    const auto step = [&](int64_t elements) {
        return elements >= 0 && elements < (int64_t(1) << 40) / bytes && elements * bytes % 16 == 0;
    };
    return reinterpret_cast<uintptr_t>(lines.data) % 16 == 0 && step(lines.row) && step(lines.batch);
}

/// Rows as lines of `batch` batches of m, where they lie so.
inline std::optional<Lines> lines_of(const void* data, const RowMap& rows, int64_t m, int64_t batch, int64_t columns) {
    // A step that is not taken is any that is allowed.
    const int64_t dense = round_up(columns, 16);
    if (rows.rank == 0) return Lines{data, dense, 0};
    if (rows.rank == 1 && rows.strides[0] < columns) return std::nullopt;
    if (rows.rank == 1 && m == 1) return Lines{data, dense, rows.strides[0]};
    if (rows.rank == 1) return Lines{data, rows.strides[0], batch > 1 ? m * rows.strides[0] : 0};
    if (rows.rank != 2 || int64_t(rows.sizes[0]) != batch || rows.strides[1] < columns || rows.strides[0] < 0) {
        return std::nullopt;
    }
    return Lines{data, rows.strides[1], rows.strides[0]};
}

/// What of a multiply its operands are: x and weight of elements of `bytes` bytes, and what the epilogue reads and
/// writes of T. The weight has rows of `weight_row` elements.
template <class T>
std::optional<Problem> problem_of(const View& x, int64_t bytes, const void* weight, int64_t weight_row, const Epilogue& e,
                                  int64_t rows, int64_t n, int64_t k) {
    if (rows <= 0 || n <= 0 || k <= 0 || rows > INT32_MAX || n > INT32_MAX || k > INT32_MAX) return std::nullopt;
    // Rows of the result may lie in batches, as they do in a part of a joint sequence.
    const int64_t batch = e.out_rows.rank == 2 ? e.out_rows.sizes[0] : 1, m = rows / batch;
    const auto in = lines_of(x.data, RowMap(x), m, batch, k), out = lines_of(e.out, e.out_rows, m, batch, n);
    const Lines weights{weight, weight_row, 0};
    const bool aligned = k * bytes % 16 == 0 && n * int64_t(sizeof(T)) % 16 == 0;
    if (!in || !out || !aligned || !takes(*in, bytes) || !takes(weights, bytes) || !takes(*out, sizeof(T))) {
        return std::nullopt;
    }
    if ((e.gate.data && e.gate.step != 1) || (e.residual.data && e.residual.step != 1)) return std::nullopt;
    Problem problem{int(m), int(n), int(k), int(batch), *in, weight, weight_row, *out, {}};
    if (e.residual.data) {
        const auto residual = lines_of(e.residual.data, e.residual.rows, m, batch, n);
        if (residual && takes(*residual, sizeof(T))) problem.residual = *residual;
    }
    return problem;
}

/// Rows for which a tile would mostly be empty, while too few of them read the weight.
constexpr int64_t FEW_ROWS = 64;

/// Adds the ways that a device has for a multiply, behind others where there are few rows, else before them. The best
/// guess is first: least of what a processor does that makes most tiles. A tile costs its products and what is loaded
/// for it.
template <class Scaling>
void add(Ways& ways, const Call& call, std::vector<Kernel<Scaling>> kernels, const std::optional<Problem>& problem,
         const Epilogue& e, const Scaling& scaling) {
    if (call.device.properties.major != 9 || !problem) return;
    const auto cost = [&](const Kernel<Scaling>& kernel) {
        const int64_t tiles = ceil_div(problem->m, kernel.m) * ceil_div(problem->n, kernel.n) * problem->batch;
        const int64_t most = ceil_div(tiles, call.device.properties.multiProcessorCount);
        return most * (int64_t(kernel.m) * kernel.n + 16 * (kernel.m + kernel.n));
    };
    std::stable_sort(kernels.begin(), kernels.end(), [&](const auto& a, const auto& b) { return cost(a) < cost(b); });
    Ways found;
    for (const Kernel<Scaling>& kernel : kernels) {
        const auto run = [run = kernel.run, &call, problem = *problem, e, scaling] { run(call, problem, e, scaling); };
        found.push_back({kernel.name, run});
    }
    ways.insert(problem->m > FEW_ROWS ? ways.begin() : ways.end(), found.begin(), found.end());
}

/// Adds the ways for x of T by a weight of T, whose rows have `inner` elements.
template <class T>
void add_linear(Ways& ways, const Call& call, const View& x, const void* weight, int64_t inner, const Epilogue& e,
                int64_t rows, int64_t n, int64_t k) {
    add(ways, call, float_kernels<T>(), problem_of<T>(x, sizeof(T), weight, inner, e, rows, n, k), e, NoScaling{});
}

/// Adds the ways for quantized rows by a weight with one scale for each column.
template <class T, class Scaling>
void add_codes(Ways& ways, const Call& call, const View& x, const PackedWeight& weight, const Scaling& scaling,
               const Epilogue& e, int64_t rows, int64_t n) {
    add(ways, call, code_kernels<T>(weight.format, scaling),
        problem_of<T>(x, 1, weight.codes, weight.k, e, rows, n, weight.k), e, scaling);
}

} // namespace denoise::hopper
