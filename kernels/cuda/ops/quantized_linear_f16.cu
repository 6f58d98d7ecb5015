// `quantized_linear` of x in f16, on tensor cores.

#include "../quantized_linear_halves.cuh"

bool denoise::multiply_f16(const Call& call, const QuantizedMultiply& multiply) {
    return multiply_halves<f16>(call, multiply);
}
