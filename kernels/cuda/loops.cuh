// Walking several views of one shape together, element by element: axes that lie alike in all are merged.
#pragma once

#include "numbers.cuh"

#include <algorithm>

namespace denoise {

/// The merged axes of N views; the last view is the result, whose order they take, so that neighbouring threads write
/// neighbouring elements.
template <int N> struct Loops {
    int rank;
    int64_t sizes[8];
    int64_t strides[N][8];

    explicit Loops(const View (&views)[N]) : rank(0), sizes{}, strides{} {
        const View& out = views[N - 1];
        int order[8];
        for (int axis = 0; axis < out.rank; axis++) order[axis] = axis;
        std::stable_sort(order, order + out.rank, [&](int a, int b) { return out.strides[a] > out.strides[b]; });
        for (int place = 0; place < out.rank; place++) {
            const int axis = order[place];
            const int64_t size = out.sizes[axis];
            if (size == 1) continue;
            bool merges = rank > 0;
            for (int i = 0; i < N; i++) merges = merges && strides[i][rank - 1] == views[i].strides[axis] * size;
            if (!merges) sizes[rank++] = 1;
            sizes[rank - 1] *= size;
            for (int i = 0; i < N; i++) strides[i][rank - 1] = views[i].strides[axis];
        }
        if (rank == 0) sizes[rank++] = 1;
    }

    int64_t length() const {
        int64_t n = 1;
        for (int axis = 0; axis < rank; axis++) n *= sizes[axis];
        return n;
    }

    /// Whether V elements along the last axis lie side by side in every view.
    bool takes_vectors(const View (&views)[N], const size_t (&bytes)[N], int vector) const {
        if (sizes[rank - 1] % vector != 0) return false;
        for (int i = 0; i < N; i++) {
            if (strides[i][rank - 1] != 1 || reinterpret_cast<uintptr_t>(views[i].data) % (bytes[i] * vector) != 0) {
                return false;
            }
            for (int axis = 0; axis + 1 < rank; axis++) {
                if (strides[i][axis] % vector != 0) return false;
            }
        }
        return true;
    }

    /// The same over packs of V elements.
    Loops packs(int vector) const {
        Loops packs = *this;
        packs.sizes[rank - 1] /= vector;
        for (int i = 0; i < N; i++) packs.strides[i][rank - 1] *= vector;
        return packs;
    }

    template <class Index> __device__ void offsets(Index index, int64_t (&offsets)[N]) const {
        for (int i = 0; i < N; i++) offsets[i] = 0;
        for (int axis = rank - 1; axis > 0; axis--) {
            const Index outer = index / Index(sizes[axis]);
            const Index at = index - outer * Index(sizes[axis]);
            for (int i = 0; i < N; i++) offsets[i] += int64_t(at) * strides[i][axis];
            index = outer;
        }
        for (int i = 0; i < N; i++) offsets[i] += int64_t(index) * strides[i][0];
    }
};

template <class Index, int V, int N, class Body> __global__ void each_kernel(Loops<N> loops, Index count, Body body) {
    const Index step = Index(gridDim.x) * blockDim.x;
    for (Index i = Index(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step) {
        int64_t offsets[N];
        loops.offsets(i, offsets);
        body.template run<V>(offsets);
    }
}

/// Runs `body.run<V>(offsets)` for every V elements of some views: as many as fit 16 bytes of `Widest`, or one.
template <int V, int N, class Body>
void each(const Call& call, const View (&views)[N], const size_t (&bytes)[N], Body body) {
    const Loops<N> all(views);
    if (all.length() == 0) return;
    constexpr int threads = 256;
    // Enough to fill any device; each thread then goes over several.
    const int64_t most = int64_t(call.device.properties.multiProcessorCount) * 32;
    auto run = [&](auto vector, const Loops<N>& loops) {
        constexpr int W = decltype(vector)::value;
        const int64_t count = loops.length();
        const unsigned blocks = unsigned(std::min(ceil_div(count, threads), most));
        if (count < INT32_MAX) launch(call, each_kernel<uint32_t, W, N, Body>, blocks, threads, 0, loops, count, body);
        else launch(call, each_kernel<uint64_t, W, N, Body>, blocks, threads, 0, loops, count, body);
    };
    if (V > 1 && all.takes_vectors(views, bytes, V)) run(std::integral_constant<int, V>{}, all.packs(V));
    else run(std::integral_constant<int, 1>{}, all);
}

} // namespace denoise
