// Rows of a table by ids, and the sinusoids of timesteps and positions.

#include "../loops.cuh"
#include "../rows.cuh"

namespace denoise {

/// Where ids lie, by their number.
struct Ids {
    const int32_t* data;
    RowMap rows;
    int64_t step;
    uint32_t width;
    explicit Ids(const View& view)
        : data(view.as<const int32_t>()), rows(view), step(view.stride(0)), width(count32(view.last())) {}
    __device__ int32_t at(uint32_t place) const {
        return data[rows.offset(place / width) + int64_t(place % width) * step];
    }
};

/// The id at a place; -1, with a complaint, where the table has no such row.
__device__ inline int64_t checked_id(const Ids& ids, uint32_t place, int64_t rows, Complaint* complaint) {
    const int32_t id = ids.at(place);
    if (id >= 0 && id < rows) return id;
    if (atomicCAS(&complaint->found, 0u, 1u) == 0u) {
        complaint->id = id;
        complaint->place = place;
        complaint->rows = (unsigned long long)(rows);
    }
    return -1;
}

template <class A, class B> struct PlainRow {
    const A* table;
    int64_t stride;
    __device__ B at(int64_t id, uint32_t i) const {
        if constexpr (std::is_same_v<A, B>) return table[id * stride + i];
        else return narrow<B>(widen(table[id * stride + i]));
    }
};

/// A code times its row's scale is one rounding in f32, and one more in a narrower out.
template <class B> struct ScaledRow {
    const int8_t* codes;
    int64_t stride;
    const float* scales;
    __device__ B at(int64_t id, uint32_t i) const { return narrow<B>(float(codes[id * stride + i]) * scales[id]); }
};

template <class T, class Table>
__global__ void embedding_kernel(Ids ids, Table table, int64_t table_rows, T* out, RowMap out_rows, uint32_t rows,
                                 uint32_t width, Complaint* complaint) {
    const uint32_t row = team_row();
    if (row >= rows) return;
    // Every thread looks for itself, so that what is checked is what is used.
    const int64_t id = checked_id(ids, row, table_rows, complaint);
    if (id < 0) return;
    T* to = out + out_rows.offset(row);
    for (uint32_t i = threadIdx.x; i < width; i += blockDim.x) to[i] = table.at(id, i);
}

template <class T, class Table>
static void embed(const Call& call, const View& ids, const Table& table, int64_t table_rows, const View& out) {
    const Teams teams(ids.length(), out.last());
    launch(call, embedding_kernel<T, Table>, teams.blocks, teams.threads, 0, Ids(ids), table, table_rows, out.as<T>(),
           RowMap(out), count32(ids.length()), count32(out.last()), call.device.complaint);
}

} // namespace denoise

DENOISE_OP(embedding) {
    namespace op = schema::embedding;
    const View ids = call.view(op::ids), table = call.view(op::table), out = call.view(op::out);
    with_float(table.dtype, [&](auto a) {
        with_float(out.dtype, [&](auto b) {
            using A = decltype(a);
            using B = decltype(b);
            embed<B>(call, ids, PlainRow<A, B>{table.as<const A>(), table.strides[0]}, table.sizes[0], out);
        });
    });
}

DENOISE_OP(quantized_embedding) {
    namespace op = schema::quantized_embedding;
    const View ids = call.view(op::ids), codes = call.view(op::codes), out = call.view(op::out);
    const float* scales = call.view(op::scale).as<const float>();
    with_float(out.dtype, [&](auto zero) {
        using T = decltype(zero);
        embed<T>(call, ids, ScaledRow<T>{codes.as<const int8_t>(), codes.strides[0], scales}, codes.sizes[0], out);
    });
}

namespace denoise {

struct TimestepArgs {
    const float* t;
    int64_t t_step;
    float* out;
    int64_t row, step;
    uint32_t half, width;
    float slope, shift, scale;
    bool flip;
};

/// Rounded to f32 after each operation, as PyTorch computes it: a timestep of 1000 makes a difference in the last
/// place of a frequency a hundred times as large in its sine.
__global__ void timestep_kernel(TimestepArgs args) {
    const uint32_t b = blockIdx.x;
    float* out = args.out + b * args.row;
    const float time = args.t[b * args.t_step];
    for (uint32_t i = threadIdx.x; i < args.half; i += blockDim.x) {
        const float exponent = args.slope * float(i) / (float(args.half) - args.shift);
        const float angle = args.scale * (time * float(exp(double(exponent))));
        const float sine = float(sin(double(angle))), cosine = float(cos(double(angle)));
        out[i * args.step] = args.flip ? cosine : sine;
        out[(args.half + i) * args.step] = args.flip ? sine : cosine;
    }
    // An odd size ends with a zero, as in diffusers.
    if (threadIdx.x == 0 && args.width % 2 == 1) out[2 * args.half * args.step] = 0.0f;
}

} // namespace denoise

DENOISE_OP(timestep_embedding) {
    namespace op = schema::timestep_embedding;
    const View t = call.view(op::t), out = call.view(op::out);
    const TimestepArgs args{t.as<const float>(),
                            t.strides[0],
                            out.as<float>(),
                            out.strides[0],
                            out.strides[1],
                            count32(out.sizes[1] / 2),
                            count32(out.sizes[1]),
                            float(-std::log(double(call.f32(op::param_max_period)))),
                            call.f32(op::param_shift),
                            call.f32(op::param_scale),
                            call.i32(op::param_flip) == 1};
    if (out.length() > 0) launch(call, timestep_kernel, blocks_of(t.sizes[0]), 128, 0, args);
}

namespace denoise {

struct RotaryArgs {
    const float* ids;
    int64_t row, step;
    float* out;
    uint32_t tokens, width;
    int sizes[4]; // of the axes that ids have
    int axes;
    double theta;
};

/// In f64, as diffusers computes it.
__global__ void rotary_kernel(RotaryArgs args) {
    const uint32_t token = blockIdx.x;
    for (uint32_t pair = threadIdx.x; pair < args.width / 2; pair += blockDim.x) {
        int axis = 0, first = 0;
        while (2 * int(pair) >= first + args.sizes[axis]) first += args.sizes[axis++];
        const int i = int(pair) - first / 2;
        const double position = args.ids[token * args.row + axis * args.step];
        const double frequency = 1.0 / pow(args.theta, 2.0 * i / args.sizes[axis]);
        const float cosine = float(cos(position * frequency)), sine = float(sin(position * frequency));
        float* out = args.out + uint64_t(token) * args.width + 2 * pair;
        const uint64_t sines = uint64_t(args.tokens) * args.width;
        for (int twin = 0; twin < 2; twin++) {
            out[twin] = cosine;
            out[sines + twin] = sine;
        }
    }
}

} // namespace denoise

DENOISE_OP(rotary_embedding) {
    namespace op = schema::rotary_embedding;
    const View ids = call.view(op::ids), out = call.view(op::out);
    RotaryArgs args{ids.as<const float>(), ids.strides[0],         ids.strides[1],         out.as<float>(),
                    count32(out.sizes[1]), count32(out.sizes[2]), {}, 0, double(call.f32(op::param_theta))};
    for (int axis = 0; axis < 4; axis++) {
        const int size = call.i32(op::param_axis0 + axis);
        if (size > 0) args.sizes[args.axes++] = size;
    }
    if (out.length() > 0) launch(call, rotary_kernel, blocks_of(args.tokens), 128, 0, args);
}
