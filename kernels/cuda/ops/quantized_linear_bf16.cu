// `quantized_linear` of x in bf16, on tensor cores.

#include "../quantized_linear_halves.cuh"

bool denoise::multiply_bf16(const Call& call, const QuantizedMultiply& multiply) {
    return multiply_halves<bf16>(call, multiply);
}
