// Activations of one value.
#pragma once

#include "device.cuh"

namespace denoise {

__device__ inline float activate(schema::Activation activation, float x) {
    switch (activation) {
    case schema::Activation::silu: return x / (1.0f + expf(-x));
    case schema::Activation::gelu_tanh:
        return 0.5f * x * (1.0f + tanhf(0.7978845608028654f * (x + 0.044715f * x * x * x)));
    case schema::Activation::gelu_erf: return 0.5f * x * (1.0f + erff(x * 0.7071067811865476f));
    case schema::Activation::quick_gelu: return x / (1.0f + expf(-1.702f * x));
    case schema::Activation::relu: return x < 0.0f ? 0.0f : x;
    default: return x;
    }
}

} // namespace denoise
