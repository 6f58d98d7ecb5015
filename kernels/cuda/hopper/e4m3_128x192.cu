#include "gemm.cuh"

namespace denoise::hopper {

DENOISE_HOPPER_KERNEL(e4m3_128x192, Fp8Scaling) {
    using namespace cute;
    using Tile = Shape<_128, _192, _128>;
    Instance<cutlass::float_e4m3_t, bf16, Fp8Scaling, Tile, Shape<_2, _1, _1>, Cooperative>::run(call, problem, e, scaling);
}

} // namespace denoise::hopper
