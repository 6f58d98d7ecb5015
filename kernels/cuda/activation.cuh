// Activations of one value.
#pragma once

#include "device.cuh"

namespace denoise {

/// A quotient within two units of the last place, of a finite number by what is neither tiny nor NaN.
__device__ inline float quotient(float a, float b) {
#ifdef __CUDACC__
    return __fdividef(a, b);
#else
    return a / b;
#endif
}

__device__ inline float activate(schema::Activation activation, float x) {
    switch (activation) {
    case schema::Activation::silu: return quotient(x, 1.0f + expf(-x));
    // (1 + tanh(y)) / 2 = 1 / (1 + exp(-2 y)), of which nothing cancels.
    case schema::Activation::gelu_tanh: return quotient(x, 1.0f + expf(-1.5957691216057308f * (x + 0.044715f * x * x * x)));
    case schema::Activation::gelu_erf: return 0.5f * x * (1.0f + erff(x * 0.7071067811865476f));
    case schema::Activation::quick_gelu: return quotient(x, 1.0f + expf(-1.702f * x));
    case schema::Activation::relu: return x < 0.0f ? 0.0f : x;
    default: return x;
    }
}

/// Runs `body` with the activation as a constant, so that a loop over values asks but once.
template <class Body> __device__ void with_activation(schema::Activation activation, Body body) {
    using schema::Activation;
    switch (activation) {
    case Activation::silu: return body(std::integral_constant<Activation, Activation::silu>{});
    case Activation::gelu_tanh: return body(std::integral_constant<Activation, Activation::gelu_tanh>{});
    case Activation::gelu_erf: return body(std::integral_constant<Activation, Activation::gelu_erf>{});
    case Activation::quick_gelu: return body(std::integral_constant<Activation, Activation::quick_gelu>{});
    case Activation::relu: return body(std::integral_constant<Activation, Activation::relu>{});
    default: return body(std::integral_constant<Activation, Activation::none>{});
    }
}

} // namespace denoise
