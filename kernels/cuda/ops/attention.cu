// softmax(scale * q k^T + bias) v with a running softmax: scores are never stored beyond a tile of keys. There are several
// ways: by tensor cores, for what they take (attention_mma.cuh, attention_hopper.cuh), and for all else the plain one here.
//
// Of the plain one, a block takes 16 queries of a head, a warp four of them. Keys come in tiles of 32, one a lane: its
// score of each of the warp's queries is that lane's alone, maxima and sums run across the warp. Of the values each lane
// sums up every 32nd column.
//
// A query that sees no key (all its biases -inf, or causal with fewer keys than queries) gets zeros, as in PyTorch.

#include "../attention_hopper.cuh"
#include "../attention_mma.cuh"
#include "../rows.cuh"

namespace denoise {

constexpr int QUERIES = 16, KEYS = 32, WARPS = 4, WARP_QUERIES = QUERIES / WARPS;

/// Shared memory: queries (16, D), keys or values (32, D + 1), probabilities (16, 32), all f32.
static constexpr size_t attention_shared(int64_t width) {
    return sizeof(float) * size_t(QUERIES * width + KEYS * (width + 1) + QUERIES * KEYS);
}

/// Columns is the most of D that a lane sums up.
template <class T, int COLUMNS> __global__ void __launch_bounds__(32 * WARPS) attention_kernel(AttentionArgs args) {
    const uint32_t width = args.width, pitch = width + 1;
    float* queries = dynamic_shared<float>();
    float* tile = queries + QUERIES * width;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    float* probabilities = tile + KEYS * pitch + warp * WARP_QUERIES * KEYS;
    const uint32_t first = blockIdx.x * QUERIES, head = blockIdx.y % args.heads, batch = blockIdx.y / args.heads;
    const T* q = head_of<T>(args, args.q, args.q_strides);
    const T* k = head_of<T>(args, args.k, args.k_strides);
    const T* v = head_of<T>(args, args.v, args.v_strides);
    for (uint32_t i = threadIdx.x; i < QUERIES * width; i += blockDim.x) {
        const uint32_t token = first + i / width;
        queries[i] = token < args.queries ? widen(q[token * args.q_strides[2] + i % width]) : 0.0f;
    }
    float sums[WARP_QUERIES][COLUMNS] = {}, most[WARP_QUERIES], total[WARP_QUERIES] = {};
    for (float& m : most) m = -INFINITY;
    const uint32_t end = args.seen(first, QUERIES);
    const auto load = [&](const T* from, int64_t stride, uint32_t start) {
        __syncthreads();
        for (uint32_t i = threadIdx.x; i < KEYS * width; i += blockDim.x) {
            const uint32_t key = start + i / width;
            tile[i / width * pitch + i % width] = key < args.keys ? widen(from[key * stride + i % width]) : 0.0f;
        }
        __syncthreads();
    };
    for (uint32_t start = 0; start < end; start += KEYS) {
        load(k, args.k_strides[2], start);
        for (int i = 0; i < WARP_QUERIES; i++) {
            const uint32_t place = warp * WARP_QUERIES + i, token = first + place, key = start + lane;
            const bool sees = token < args.queries && key < args.seen(token);
            float score = -INFINITY;
            if (sees) {
                float dot = 0;
                for (uint32_t d = 0; d < width; d++) dot += queries[place * width + d] * tile[lane * pitch + d];
                score = args.scale * dot;
                if (args.bias) {
                    score += args.bias[batch * args.bias_strides[0] + head * args.bias_strides[1] +
                                       token * args.bias_strides[2] + key * args.bias_strides[3]];
                }
            }
            // NaN is no maximum, but makes every probability NaN through the sum.
            const float largest = fmaxf(most[i], warp_all(score, Largest{}));
            const bool none = largest == -INFINITY;
            float p = sees ? expf(score - largest) : 0.0f;
            if (none) p = sees && is_nan(score) ? score : 0.0f;
            const float shrink = none ? 1.0f : expf(most[i] - largest);
            most[i] = largest;
            total[i] = total[i] * shrink + warp_all(p, Sum{});
            for (float& sum : sums[i]) sum *= shrink;
            probabilities[i * KEYS + lane] = p;
        }
        load(v, args.v_strides[2], start);
        for (int i = 0; i < WARP_QUERIES; i++) {
            const uint32_t token = first + warp * WARP_QUERIES + i;
            if (token >= args.queries) break;
            const uint32_t count = args.seen(token), keys = count <= start ? 0 : count - start < KEYS ? count - start : KEYS;
            for (uint32_t key = 0; key < keys; key++) {
                const float p = probabilities[i * KEYS + key];
                for (int c = 0; c < COLUMNS; c++) {
                    const uint32_t column = lane + 32 * c;
                    if (column < width) sums[i][c] += p * tile[key * pitch + column];
                }
            }
        }
    }
    T* out = head_of<T>(args, args.out, args.out_strides);
    for (int i = 0; i < WARP_QUERIES; i++) {
        const uint32_t token = first + warp * WARP_QUERIES + i;
        if (token >= args.queries) break;
        for (int c = 0; c < COLUMNS; c++) {
            const uint32_t column = lane + 32 * c;
            if (column >= width) continue;
            const float y = total[i] == 0.0f ? 0.0f : sums[i][c] / total[i];
            out[token * args.out_strides[2] + column] = narrow<T>(y);
        }
    }
}

/// The widest head.
constexpr int64_t MOST_WIDTH = 512;
DENOISE_SHARED(attention_kernel, attention_shared(MOST_WIDTH));

static void attend(const Call& call, const AttentionArgs& args, schema::DType dtype, int64_t heads) {
    const dim3 blocks(blocks_of(ceil_div(args.queries, QUERIES)), unsigned(heads));
    const size_t shared = attention_shared(args.width);
    with_float(dtype, [&](auto zero) {
        const auto run = [&](auto columns) {
            launch(call, attention_kernel<decltype(zero), decltype(columns)::value>, blocks, 32 * WARPS, shared, args);
        };
        if (args.width <= 64) run(std::integral_constant<int, 2>{});
        else if (args.width <= 128) run(std::integral_constant<int, 4>{});
        else run(std::integral_constant<int, MOST_WIDTH / 32>{});
    });
}

/// Whether tensor cores take a call: rows of 16-bit floats that can be read 16 bytes at a time.
static bool for_tensor_cores(const AttentionArgs& args, schema::DType dtype) {
    if (dtype != schema::DType::bf16 && dtype != schema::DType::f16) return false;
    // A largest product is a largest score only so.
    if (!(args.scale > 0) || args.width > 128 || args.width % 8 != 0) return false;
    for (const void* data : {args.q, args.k, args.v, static_cast<const void*>(args.out)}) {
        if (reinterpret_cast<uintptr_t>(data) % 16 != 0) return false;
    }
    for (const auto* strides : {&args.q_strides, &args.k_strides, &args.v_strides, &args.out_strides}) {
        for (const int64_t stride : *strides) {
            if (stride % 8 != 0) return false;
        }
    }
    return true;
}

static void attend_mma(const Call& call, const AttentionArgs& args, schema::DType dtype, int64_t heads) {
    if (dtype == schema::DType::bf16) attention_mma::attend<bf16>(call, args, heads);
    else attention_mma::attend<f16>(call, args, heads);
}

/// Maps of the operands, where Hopper's copies take them.
static bool make_maps(attention_hopper::Args& args, schema::DType dtype, int64_t heads) {
    const AttentionArgs& a = args.attention;
    const auto make = [&](TensorMap& map, const void* data, const int64_t (&strides)[3], uint32_t tokens, int rows) {
        const int64_t sizes[] = {heads / a.heads, a.heads, tokens, a.width};
        return make_map(map, data, dtype, sizes, strides, uint32_t(rows));
    };
    return make(args.q, a.q, a.q_strides, a.queries, attention_hopper::QUERIES) &&
           make(args.k, a.k, a.k_strides, a.keys, attention_hopper::KEYS) &&
           make(args.v, a.v, a.v_strides, a.keys, attention_hopper::KEYS);
}

} // namespace denoise

DENOISE_WAYS(attention) {
    namespace op = schema::attention;
    const View q = call.view(op::q), k = call.view(op::k), v = call.view(op::v), bias = call.view(op::bias);
    const View out = call.view(op::out);
    if (out.length() == 0) return;
    const int64_t heads = q.sizes[0] * q.sizes[1];
    if (heads > MOST_BLOCKS) {
        throw Failure{Code::unavailable, "This device's attention takes at most 65535 heads, got " + std::to_string(heads) +
                                             ": cut the batch"};
    }
    AttentionArgs args{q.data, k.data, v.data, bias.as<const float>(), out.data, {}, {}, {}, {}, {},
                       count32(q.sizes[1]), count32(q.sizes[2]), count32(k.sizes[2]), count32(q.last()),
                       call.f32(op::param_scale), call.i32(op::param_causal) != 0};
    for (int axis = 0; axis < 3; axis++) {
        args.q_strides[axis] = q.strides[axis];
        args.k_strides[axis] = k.strides[axis];
        args.v_strides[axis] = v.strides[axis];
        args.out_strides[axis] = out.strides[axis];
    }
    for (int axis = 0; axis < 4; axis++) args.bias_strides[axis] = bias.strides[axis];
    const auto add = [&](const char* name, auto attend) {
        ways.push_back({name, [=, &call] { attend(call, args, q.dtype, heads); }});
    };
    const bool tensor_cores = for_tensor_cores(args, q.dtype);
    attention_hopper::Args hopper{args, {}, {}, {}};
    if (tensor_cores && call.device.properties.major == 9 && make_maps(hopper, q.dtype, heads)) {
        ways.push_back({"warpgroups", [=, &call] {
                            if (q.dtype == schema::DType::bf16) attention_hopper::attend<bf16>(call, hopper, heads);
                            else attention_hopper::attend<f16>(call, hopper, heads);
                        }});
    }
    if (tensor_cores && call.device.properties.major >= 8) add("warps", attend_mma);
    if (args.width <= MOST_WIDTH) add("tiles of 16 queries", attend);
    if (ways.empty()) {
        throw Failure{Code::unavailable, "This device's attention takes heads of at most " + std::to_string(MOST_WIDTH) +
                                             " elements, got " + std::to_string(args.width)};
    }
}
