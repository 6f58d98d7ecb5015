#include "gemm.cuh"

namespace denoise::hopper {

DENOISE_HOPPER_KERNEL(bf16_128x192, NoScaling) {
    using namespace cute;
    using Tile = Shape<_128, _192, _64>;
    Instance<bf16, bf16, NoScaling, Tile, Shape<_2, _1, _1>, Cooperative>::run(call, problem, e, scaling);
}

} // namespace denoise::hopper
