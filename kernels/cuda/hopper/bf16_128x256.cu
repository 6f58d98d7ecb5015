#include "gemm.cuh"

void denoise::hopper::bf16_128x256(const Call& call, const Problem& problem, const Epilogue& e, const NoScaling& scaling) {
    using namespace cute;
    Kernel<bf16, bf16, NoScaling, Shape<_128, _256, _64>, Shape<_2, _1, _1>, Cooperative>::run(call, problem, e, scaling);
}
