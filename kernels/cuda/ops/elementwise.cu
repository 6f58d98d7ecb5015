// Copies with a change of type or order, and functions of one or two operands.

#include "../activation.cuh"
#include "../loops.cuh"

namespace denoise {

template <class A, class B> struct Cast {
    const A* x;
    B* out;
    template <int V> __device__ void run(const int64_t (&at)[2]) const {
        const auto from = *reinterpret_cast<const Pack<A, V>*>(x + at[0]);
        Pack<B, V> to;
        for (int i = 0; i < V; i++) to.v[i] = narrow<B>(widen(from.v[i]));
        *reinterpret_cast<Pack<B, V>*>(out + at[1]) = to;
    }
};

template <class T> struct Move {
    const T* x;
    T* out;
    template <int V> __device__ void run(const int64_t (&at)[2]) const {
        *reinterpret_cast<Pack<T, V>*>(out + at[1]) = *reinterpret_cast<const Pack<T, V>*>(x + at[0]);
    }
};

template <class T> static void move(const Call& call, const View (&views)[2]) {
    each<VECTOR<T>>(call, views, {sizeof(T), sizeof(T)}, Move<T>{views[0].as<const T>(), views[1].as<T>()});
}

} // namespace denoise

DENOISE_OP(copy) {
    const View views[] = {call.view(schema::copy::x), call.view(schema::copy::out)};
    const auto [x, out] = views;
    if (x.dtype == out.dtype) {
        switch (schema::size_of(x.dtype)) {
        case 1: return move<uint8_t>(call, views);
        case 2: return move<uint16_t>(call, views);
        default: return move<uint32_t>(call, views);
        }
    }
    with_float(x.dtype, [&](auto a) {
        with_float(out.dtype, [&](auto b) {
            using A = decltype(a);
            using B = decltype(b);
            each<4>(call, views, {sizeof(A), sizeof(B)}, Cast<A, B>{x.as<const A>(), out.as<B>()});
        });
    });
}

namespace denoise {

__device__ inline float unary_value(schema::Unary kind, float alpha, float beta, float x) {
    switch (kind) {
    case schema::Unary::affine: return fmaf(alpha, x, beta);
    case schema::Unary::silu: return activate(schema::Activation::silu, x);
    case schema::Unary::gelu_tanh: return activate(schema::Activation::gelu_tanh, x);
    case schema::Unary::gelu_erf: return activate(schema::Activation::gelu_erf, x);
    case schema::Unary::quick_gelu: return activate(schema::Activation::quick_gelu, x);
    case schema::Unary::relu: return activate(schema::Activation::relu, x);
    case schema::Unary::sigmoid: return 1.0f / (1.0f + expf(-x));
    case schema::Unary::tanh: return tanhf(x);
    case schema::Unary::exp: return expf(x);
    case schema::Unary::log: return logf(x);
    case schema::Unary::sqrt: return sqrtf(x);
    case schema::Unary::rsqrt: return 1.0f / sqrtf(x);
    case schema::Unary::sin: return sinf(x);
    case schema::Unary::cos: return cosf(x);
    default: return fabsf(x);
    }
}

template <class T> struct UnaryBody {
    const T* x;
    T* out;
    schema::Unary kind;
    float alpha, beta;
    template <int V> __device__ void run(const int64_t (&at)[2]) const {
        auto pack = *reinterpret_cast<const Pack<T, V>*>(x + at[0]);
        for (int i = 0; i < V; i++) pack.v[i] = narrow<T>(unary_value(kind, alpha, beta, widen(pack.v[i])));
        *reinterpret_cast<Pack<T, V>*>(out + at[1]) = pack;
    }
};

} // namespace denoise

DENOISE_OP(unary) {
    const View views[] = {call.view(schema::unary::x), call.view(schema::unary::out)};
    with_float(views[0].dtype, [&](auto zero) {
        using T = decltype(zero);
        const UnaryBody<T> body{views[0].as<const T>(), views[1].as<T>(),
                                schema::Unary(call.params[schema::unary::param_kind]),
                                call.f32(schema::unary::param_alpha), call.f32(schema::unary::param_beta)};
        each<VECTOR<T>>(call, views, {sizeof(T), sizeof(T)}, body);
    });
}

namespace denoise {

/// NaN wins over any number, as in PyTorch.
__device__ inline float binary_value(schema::Binary kind, float a, float b) {
    switch (kind) {
    case schema::Binary::add: return a + b;
    case schema::Binary::sub: return a - b;
    case schema::Binary::mul: return a * b;
    case schema::Binary::div: return a / b;
    case schema::Binary::max: return is_nan(a) || is_nan(b) ? not_a_number() : fmaxf(a, b);
    default: return is_nan(a) || is_nan(b) ? not_a_number() : fminf(a, b);
    }
}

template <class T> struct BinaryBody {
    const T *a, *b;
    T* out;
    schema::Binary kind;
    template <int V> __device__ void run(const int64_t (&at)[3]) const {
        const auto left = *reinterpret_cast<const Pack<T, V>*>(a + at[0]);
        const auto right = *reinterpret_cast<const Pack<T, V>*>(b + at[1]);
        Pack<T, V> to;
        for (int i = 0; i < V; i++) to.v[i] = narrow<T>(binary_value(kind, widen(left.v[i]), widen(right.v[i])));
        *reinterpret_cast<Pack<T, V>*>(out + at[2]) = to;
    }
};

} // namespace denoise

DENOISE_OP(binary) {
    const View views[] = {call.view(schema::binary::a), call.view(schema::binary::b), call.view(schema::binary::out)};
    with_float(views[0].dtype, [&](auto zero) {
        using T = decltype(zero);
        const BinaryBody<T> body{views[0].as<const T>(), views[1].as<const T>(), views[2].as<T>(),
                                 schema::Binary(call.params[schema::binary::param_kind])};
        each<VECTOR<T>>(call, views, {sizeof(T), sizeof(T), sizeof(T)}, body);
    });
}
