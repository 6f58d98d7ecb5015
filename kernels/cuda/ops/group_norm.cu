// Group norm of pictures and of frames, with modulation and activation, channels last: a block for each group of each
// picture or video.

#include "../activation.cuh"
#include "../rows.cuh"

#include <algorithm>

namespace denoise {

/// Scale and shift of (B, t, h, w, C), whose pixels are each for a block of x's.
struct Grid {
    const void *scale, *shift;
    int64_t scale_strides[4], shift_strides[4]; // batch, frame, row, column
    uint32_t frames, height, width;             // of x
    uint32_t block[3];                          // x's frames, rows and columns for one pixel
    uint32_t first;                             // whether the first frame is apart

    template <class T> __device__ float modulate(float y, uint32_t batch, uint32_t pixel, uint32_t channel) const {
        if (!scale) return y;
        const uint32_t line = pixel / width, column = (pixel - line * width) / block[2];
        const uint32_t time = line / height, row = (line - time * height) / block[1];
        const uint32_t frame = time < first ? time : first + (time - first) / block[0];
        const auto at = [&](const void* data, const int64_t (&strides)[4]) {
            return widen(static_cast<const T*>(data)[batch * strides[0] + frame * strides[1] + row * strides[2] +
                                                     column * strides[3] + channel]);
        };
        return y * at(scale, scale_strides) + at(shift, shift_strides);
    }
};

struct GroupNormArgs {
    const void* x;
    RowMap x_rows; // of pixels
    const float *weight, *bias;
    Grid grid;
    void* out;
    RowMap out_rows;
    uint32_t pixels, size; // of a picture or video, of a group
    float eps;
    schema::Activation activation;
};

template <class T> __global__ void group_norm_kernel(GroupNormArgs args) {
    const uint32_t first = blockIdx.x * args.size, image = blockIdx.y * args.pixels;
    const T* x = static_cast<const T*>(args.x) + first;
    T* out = static_cast<T*>(args.out) + first;
    const uint64_t count = uint64_t(args.pixels) * args.size;
    // Neighbouring threads take neighbouring channels.
    const auto each = [&](auto body) {
        for (uint64_t i = threadIdx.x; i < count; i += blockDim.x) {
            const uint32_t pixel = uint32_t(i / args.size), channel = uint32_t(i % args.size);
            body(image + pixel, channel);
        }
    };
    const auto value = [&](uint32_t pixel, uint32_t channel) { return widen(x[args.x_rows.offset(pixel) + channel]); };
    // Distances from a value of the group keep their digits where the mean is far from zero.
    const float near = value(image, 0);
    float sum = 0;
    each([&](uint32_t pixel, uint32_t channel) { sum += value(pixel, channel) - near; });
    const float mean = team_all(sum, Sum{}, 0.0f) / float(count); // beyond that value
    float squares = 0;
    each([&](uint32_t pixel, uint32_t channel) {
        const float v = value(pixel, channel) - near - mean;
        squares += v * v;
    });
    const float factor = 1.0f / sqrtf(team_all(squares, Sum{}, 0.0f) / float(count) + args.eps);
    each([&](uint32_t pixel, uint32_t channel) {
        float y = (value(pixel, channel) - near - mean) * factor;
        if (args.weight) y *= args.weight[first + channel];
        if (args.bias) y += args.bias[first + channel];
        y = args.grid.modulate<T>(y, blockIdx.y, pixel - image, first + channel);
        out[args.out_rows.offset(pixel) + channel] = narrow<T>(activate(args.activation, y));
    });
}

static Grid grid_of(const Call& call) {
    namespace op = schema::group_norm;
    const View x = with_frames(call.view(op::x));
    const View scale = with_frames(call.view(op::scale)), shift = with_frames(call.view(op::shift));
    Grid grid{scale.data, shift.data, {}, {}, count32(x.sizes[1]), count32(x.sizes[2]), count32(x.sizes[3]), {1, 1, 1},
              uint32_t(call.i32(op::param_first))};
    if (!scale.present()) return grid;
    for (int axis = 0; axis < 4; axis++) {
        grid.scale_strides[axis] = scale.strides[axis];
        grid.shift_strides[axis] = shift.strides[axis];
    }
    for (int axis = 0; axis < 3; axis++) {
        const int64_t apart = axis == 0 ? grid.first : 0, parts = scale.sizes[axis + 1] - apart;
        // Where nothing but the first frame is, nothing is divided.
        if (parts > 0) grid.block[axis] = std::max(uint32_t((x.sizes[axis + 1] - apart) / parts), 1u);
    }
    return grid;
}

} // namespace denoise

DENOISE_OP(group_norm) {
    namespace op = schema::group_norm;
    const View x = call.view(op::x), out = call.view(op::out);
    if (x.length() == 0) return;
    const int64_t images = x.sizes[0], groups = call.i32(op::param_groups);
    if (images > MOST_BLOCKS) throw Failure{Code::bad_argument, "group_norm takes at most 65535 pictures at once"};
    const GroupNormArgs args{x.data,
                             RowMap(x),
                             call.view(op::weight).as<const float>(),
                             call.view(op::bias).as<const float>(),
                             grid_of(call),
                             out.data,
                             RowMap(out),
                             count32(x.rows() / images),
                             count32(x.last() / groups),
                             call.f32(op::param_eps),
                             schema::Activation(call.params[op::param_act])};
    const int64_t work = x.length() / images / groups;
    const unsigned threads = work >= 512 ? 512 : unsigned(round_up(work, 32));
    with_float(x.dtype, [&](auto zero) {
        launch(call, group_norm_kernel<decltype(zero)>, dim3(unsigned(groups), unsigned(images)), threads, 0, args);
    });
}
