// Multiplies by Hopper's tensor cores, put together of CUTLASS's collectives: copies by TMA into a pipeline in shared
// memory, `wgmma` in warpgroups of their own, and an epilogue that calls the scalar function of epilogue.cuh. For sm_90a
// alone.
#pragma once

#include "ways.cuh"

// How a copy of shared memory is described comes from the driver, which the runtime finds: nothing links to it.
#include <cutlass/cutlass.h>
#include <cutlass/epilogue/collective/collective_builder.hpp>
#include <cutlass/gemm/collective/collective_builder.hpp>
#include <cutlass/gemm/device/gemm_universal_adapter.h>
#include <cutlass/gemm/dispatch_policy.hpp>
#include <cutlass/gemm/kernel/gemm_universal.hpp>

namespace denoise::hopper {

template <class T> struct CutlassElement {
    using type = T;
};
template <> struct CutlassElement<bf16> {
    using type = cutlass::bfloat16_t;
};
template <> struct CutlassElement<f16> {
    using type = cutlass::half_t;
};
template <class T> using Element = typename CutlassElement<T>::type;

/// The node of an epilogue: what CUTLASS asks of a visitor. A thread calls the scalar function for each of its sums.
template <class T, class Scaling> struct Visitor {
    struct SharedStorage {};
    // A residual that is read with the tiles is the matrix C.
    using Arguments = Finish<T, Scaling>;
    using Params = Arguments;
    using Row = typename Params::Row;

    template <class Shape> static constexpr Params to_underlying_arguments(const Shape&, const Arguments& args, void*) {
        return args;
    }
    template <class Shape> static bool can_implement(const Shape&, const Arguments&) { return true; }
    template <class Shape> static size_t get_workspace_size(const Shape&, const Arguments&) { return 0; }
    template <class Shape>
    static cutlass::Status initialize_workspace(const Shape&, const Arguments&, void*, cudaStream_t,
                                                cutlass::CudaHostAdapter* = nullptr) {
        return cutlass::Status::kSuccess;
    }

    const Params* params;

    CUTLASS_HOST_DEVICE Visitor() {}
    CUTLASS_HOST_DEVICE Visitor(const Params& params, const SharedStorage&) : params(&params) {}
    CUTLASS_DEVICE bool is_producer_load_needed() const { return params->tiled_residual; }
    CUTLASS_DEVICE bool is_C_load_needed() const { return params->tiled_residual; }

    template <class... Args>
    CUTLASS_DEVICE auto get_producer_load_callbacks(const cutlass::epilogue::fusion::ProducerLoadArgs<Args...>&) {
        return cutlass::epilogue::fusion::EmptyProducerLoadCallbacks{};
    }

    // Coordinates are of (CPY, CPY_M, CPY_N, EPI_M, EPI_N), relative to the thread's first; rows are the same without
    // what differs in the column alone.
    template <class Rows, class Coordinates, class Source>
    struct Callbacks : cutlass::epilogue::fusion::EmptyConsumerStoreCallbacks {
        const Params& params;
        Rows rows;
        Coordinates coordinates;
        const Source& source;
        uint32_t first_row, first_column, batch, m, n;

        CUTLASS_DEVICE Callbacks(const Params& params, Rows rows, Coordinates coordinates, const Source& source,
                                 uint32_t first_row, uint32_t first_column, uint32_t batch, uint32_t m, uint32_t n)
            : params(params), rows(rows), coordinates(coordinates), source(source), first_row(first_row),
              first_column(first_column), batch(batch), m(m), n(n) {}

        CUTLASS_DEVICE void begin() {
            auto found = cute::filter_zeros(rows);
            auto places = cute::filter_zeros(coordinates, rows.stride());
            CUTLASS_PRAGMA_UNROLL
            for (int i = 0; i < cute::size(found); i++) {
                // Beyond the last row it is read once more, as a tile's results there are not written.
                found(i) = params.row(batch * m + min(first_row + uint32_t(cute::get<0>(places(i))), m - 1));
            }
        }

        template <class Sum, int N>
        CUTLASS_DEVICE cutlass::Array<Element<T>, N> visit(const cutlass::Array<Sum, N>& sums, int epi_v, int epi_m,
                                                           int epi_n) {
            const Epilogue& e = params.e;
            auto places = coordinates(cute::_, cute::_, cute::_, epi_m, epi_n);
            auto lines = rows(cute::_, cute::_, cute::_, epi_m, epi_n);
            uint32_t column[N];
            cutlass::Array<float, N> number, bias, gate, residual;
            bias.fill(0.0f), gate.fill(1.0f), residual.fill(0.0f);
            // One question for all elements, so that those of a column share what they read.
            const auto each = [&](auto body) {
                CUTLASS_PRAGMA_UNROLL
                for (int i = 0; i < N; i++) body(i, lines(epi_v * N + i));
            };
            each([&](int i, const Row&) {
                column[i] = min(first_column + uint32_t(cute::get<1>(places(epi_v * N + i))), n - 1);
            });
            each([&](int i, const Row& row) {
                number[i] = Scaling::number(sums[i], row.scaling, params.scaling.column(column[i]));
            });
            if (e.bias) each([&](int i, const Row&) { bias[i] = e.bias[column[i]]; });
            if (e.gate.data) each([&](int i, const Row& row) { gate[i] = widen(row.gate[column[i]]); });
            if (params.tiled_residual) {
                const auto sources = cute::recast<cutlass::Array<typename Source::value_type, N>>(source)(epi_v);
                each([&](int i, const Row&) { residual[i] = float(sources[i]); });
            } else if (params.reads_residual()) {
                each([&](int i, const Row& row) { residual[i] = widen(row.residual[column[i]]); });
            }
            with_activation(e.activation, [&](auto activation) {
                Epilogue known = e;
                known.activation = activation;
                each([&](int i, const Row&) { number[i] = epilogue(known, number[i], bias[i], gate[i], residual[i]); });
            });
            return cutlass::NumericArrayConverter<Element<T>, float, N>{}(number);
        }
    };

    template <bool ReferenceSrc, class... Args>
    CUTLASS_DEVICE auto
    get_consumer_store_callbacks(const cutlass::epilogue::fusion::ConsumerStoreArgs<Args...>& args) {
        using namespace cute;
        const auto [m, n, k, batches] = args.problem_shape_mnkl;
        const auto [tile_m, tile_n, tile_k, batch] = args.tile_coord_mnkl;
        // The layout of the thread's elements in which columns count for nothing.
        auto by_row = make_tensor(make_gmem_ptr(static_cast<const Row*>(nullptr)),
                                  make_layout(make_shape(m, n, batches), make_stride(_1{}, _0{}, _0{})));
        auto mine = cutlass::epilogue::fusion::sm90_partition_for_epilogue<ReferenceSrc>(
            by_row, args.tile_shape_mnk, args.tile_coord_mnkl, args.epi_tile, args.tiled_copy, args.thread_idx);
        auto rows = make_tensor_like<Row>(mine);
        return Callbacks<decltype(rows), decltype(args.tCcD), remove_cvref_t<decltype(args.tCrC)>>(
            *params, rows, args.tCcD, args.tCrC, uint32_t(m - get<0>(args.residue_tCcD)),
            uint32_t(n - get<1>(args.residue_tCcD)), uint32_t(batch), uint32_t(m), uint32_t(n));
    }
};

/// Two warpgroups share a tile, or take tiles in turn, so that one multiplies while the other finishes.
struct Cooperative {
    using Mainloop = cutlass::gemm::KernelTmaWarpSpecializedCooperative;
    using Epilogue = cutlass::epilogue::TmaWarpSpecializedCooperative;
};
struct Pingpong {
    using Mainloop = cutlass::gemm::KernelTmaWarpSpecializedPingpong;
    using Epilogue = cutlass::epilogue::TmaWarpSpecialized;
};

/// An instance: x (M, K) of A and a weight (N, K) of A to out (M, N) of T, both rows of dense K.
template <class A, class T, class Scaling, class Tile, class Cluster, class Schedule> struct Instance {
    static_assert(sizeof(T) == 2, "a residual comes as its own type alone where it has 16 bits");
    using Strides = cute::Stride<int64_t, cute::_1, int64_t>;
    // One weight for all batches.
    using WeightStrides = cute::Stride<int64_t, cute::_1, cute::_0>;
    static constexpr int ALIGNED = 16 / sizeof(A), OUT_ALIGNED = 16 / sizeof(T);

    using Store = typename cutlass::epilogue::collective::CollectiveBuilder<
        cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, Tile, Cluster,
        cutlass::epilogue::collective::EpilogueTileAuto, typename Scaling::Sum, float, Element<T>, Strides, OUT_ALIGNED,
        Element<T>, Strides, OUT_ALIGNED, typename Schedule::Epilogue, Visitor<T, Scaling>>::CollectiveOp;
    using Multiply = typename cutlass::gemm::collective::CollectiveBuilder<
        cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, Element<A>, Strides, ALIGNED, Element<A>, WeightStrides,
        ALIGNED, typename Scaling::Sum, Tile, Cluster,
        cutlass::gemm::collective::StageCountAutoCarveout<int(sizeof(typename Store::SharedStorage))>,
        typename Schedule::Mainloop>::CollectiveOp;
    // Sizes are (M, N, K, batches).
    using Kernel = cutlass::gemm::kernel::GemmUniversal<cute::Shape<int, int, int, int>, Multiply, Store>;
    using Gemm = cutlass::gemm::device::GemmUniversalAdapter<Kernel>;

    static_assert(Kernel::SharedStorageSize <= 227 << 10, "a block has 227 KB of shared memory");

    static void run(const Call& call, const Problem& p, const Epilogue& e, const Scaling& scaling) {
        const auto* x = static_cast<const Element<A>*>(p.x.data);
        const auto* weight = static_cast<const Element<A>*>(p.weight);
        auto* out = static_cast<Element<T>*>(e.out);
        const bool tiled = p.residual.data != nullptr;
        // Where there is no residual, it is not read, but has to be a place.
        const auto* residual = tiled ? static_cast<const Element<T>*>(p.residual.data) : out;
        const Lines& lines = tiled ? p.residual : p.out;
        typename Kernel::Arguments args{
            cutlass::gemm::GemmUniversalMode::kGemm,
            {p.m, p.n, p.k, p.batch},
            {x, {p.x.row, {}, p.x.batch}, weight, {p.weight_row, {}, {}}},
            {{e, scaling, tiled}, residual, {lines.row, {}, lines.batch}, out, {p.out.row, {}, p.out.batch}},
            {},
            {}};
        args.hw_info.device_id = call.device.ordinal;
        args.hw_info.sm_count = call.device.properties.multiProcessorCount;
        if (!Kernel::can_implement(args)) {
            throw Failure{Code::internal, "A tensor-core multiply got operands that it does not take"};
        }
        check(cudaFuncSetAttribute(cutlass::device_kernel<Kernel>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                   Kernel::SharedStorageSize),
              "Shared memory");
        typename Kernel::Params params = Kernel::to_underlying_arguments(args, nullptr);
        if (Gemm::run(params, call.device.work) != cutlass::Status::kSuccess) {
            throw Failure{Code::internal, "The launch of a tensor-core multiply failed"};
        }
    }
};

} // namespace denoise::hopper
