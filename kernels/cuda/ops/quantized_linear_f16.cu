// `quantized_linear` of x in f16, on tensor cores.

#include "../quantized_linear_halves.cuh"

void denoise::add_f16(Ways& ways, const Call& call, const QuantizedMultiply& multiply) {
    add_halves<f16>(ways, call, multiply);
}
