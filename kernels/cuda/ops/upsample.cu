// Nearest-neighbour enlargement, channels last.

#include "../loops.cuh"

namespace denoise {

template <class T> struct Enlarge {
    const T* x;
    T* out;
    template <int V> __device__ void run(const int64_t (&at)[2]) const {
        *reinterpret_cast<Pack<T, V>*>(out + at[1]) = *reinterpret_cast<const Pack<T, V>*>(x + at[0]);
    }
};

} // namespace denoise

DENOISE_OP(upsample_nearest) {
    namespace op = schema::upsample_nearest;
    const View x = call.view(op::x), out = call.view(op::out);
    const int64_t factor = call.i32(op::param_factor);
    // (B, H, f, W, f, C) of both, where x stays in its place along f.
    const int64_t sizes[] = {x.sizes[0], x.sizes[1], factor, x.sizes[2], factor, x.sizes[3]};
    View views[] = {x, out};
    const int64_t from[] = {x.strides[0], x.strides[1], 0, x.strides[2], 0, x.strides[3]};
    const int64_t to[] = {out.strides[0], factor * out.strides[1], out.strides[1],
                          factor * out.strides[2], out.strides[2], out.strides[3]};
    for (View& view : views) view.rank = 6;
    for (int axis = 0; axis < 6; axis++) {
        views[0].sizes[axis] = views[1].sizes[axis] = sizes[axis];
        views[0].strides[axis] = from[axis];
        views[1].strides[axis] = to[axis];
    }
    const auto run = [&](auto zero) {
        using T = decltype(zero);
        each<VECTOR<T>>(call, views, {sizeof(T), sizeof(T)}, Enlarge<T>{x.as<const T>(), out.as<T>()});
    };
    switch (schema::size_of(x.dtype)) {
    case 1: return run(uint8_t{});
    case 2: return run(uint16_t{});
    default: return run(uint32_t{});
    }
}
