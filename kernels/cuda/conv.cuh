// Convolution of pictures and of frames, channels last, as an implicit matrix multiply: rows are pixels of the result,
// columns filters, K is taps by channels. Packed weights are (O, taps, C), so that neighbouring threads read neighbouring
// channels. Causal in time: what lies before the first frame is the cache, or the first frame again.
#pragma once

#include "gemm.cuh"

namespace denoise {

/// What x and the taps look like; a picture is a video of one frame.
struct ConvShape {
    uint32_t height, width, channels; // of a frame of x
    uint32_t frames, out_height, out_width;
    uint32_t kt, kh, kw;
    int stride, pad_top, pad_left, upsample;
    int64_t strides[4];       // of x: batch, frame, row, column
    int64_t cache_strides[4]; // of the cache

    __host__ __device__ uint32_t taps() const { return kt * kh * kw; }
};

/// x with what came before it.
template <class T> struct ConvInput {
    ConvShape shape;
    const T *x, *cache;

    /// What a tap and channel of a pixel reads; null outside a frame.
    __device__ const T* at(uint32_t pixel, uint32_t k) const {
        const ConvShape& s = shape;
        const uint32_t tap = k / s.channels, channel = k - tap * s.channels;
        const uint32_t plane = tap / s.kw, kx = tap - plane * s.kw;
        const uint32_t kt = plane / s.kh, ky = plane - kt * s.kh;
        const uint32_t line = pixel / s.out_width, column = pixel - line * s.out_width;
        const uint32_t picture = line / s.out_height, row = line - picture * s.out_height;
        const uint32_t batch = picture / s.frames, frame = picture - batch * s.frames;
        const int64_t y = int64_t(row) * s.stride + ky - s.pad_top, x_at = int64_t(column) * s.stride + kx - s.pad_left;
        if (y < 0 || x_at < 0 || y >= int64_t(s.height) * s.upsample || x_at >= int64_t(s.width) * s.upsample) {
            return nullptr;
        }
        const bool before = frame + kt < s.kt - 1;
        const bool cached = before && cache != nullptr;
        const int64_t time = cached ? frame + kt : before ? 0 : frame + kt - (s.kt - 1);
        const int64_t* strides = cached ? s.cache_strides : s.strides;
        return (cached ? cache : x) + batch * strides[0] + time * strides[1] + y / s.upsample * strides[2] +
               x_at / s.upsample * strides[3] + channel;
    }
};

/// The shape of a convolution whose parameters begin with kt.
inline ConvShape conv_shape(const Call& call, int x_index, int cache_index, int out_index, int kt) {
    const View x = with_frames(call.view(x_index)), cache = call.view(cache_index);
    const View out = with_frames(call.view(out_index));
    ConvShape shape{count32(x.sizes[2]),
                    count32(x.sizes[3]),
                    count32(x.sizes[4]),
                    count32(out.sizes[1]),
                    count32(out.sizes[2]),
                    count32(out.sizes[3]),
                    uint32_t(call.i32(kt)),
                    uint32_t(call.i32(kt + 1)),
                    uint32_t(call.i32(kt + 2)),
                    call.i32(kt + 3),
                    call.i32(kt + 4),
                    call.i32(kt + 5),
                    call.i32(kt + 6),
                    {},
                    {}};
    for (int axis = 0; axis < 4; axis++) {
        shape.strides[axis] = x.strides[axis];
        shape.cache_strides[axis] = cache.strides[axis];
    }
    return shape;
}

inline Sizes conv_sizes(const ConvShape& shape, const View& out) {
    return {out.rows(), out.last(), int64_t(shape.taps()) * shape.channels, 1};
}

} // namespace denoise
