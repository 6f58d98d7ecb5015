// `quantized_linear` of x in bf16, on tensor cores.

#include "../quantized_linear_halves.cuh"

void denoise::add_bf16(Ways& ways, const Call& call, const QuantizedMultiply& multiply) {
    add_halves<bf16>(ways, call, multiply);
}
