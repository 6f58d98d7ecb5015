#include "gemm.cuh"

namespace denoise::hopper {

DENOISE_HOPPER_KERNEL(e4m3_64x128, Fp8Scaling) {
    using namespace cute;
    using Tile = Shape<_64, _128, _128>;
    Instance<cutlass::float_e4m3_t, bf16, Fp8Scaling, Tile, Shape<_1, _1, _1>, Pingpong>::run(call, problem, e, scaling);
}

} // namespace denoise::hopper
