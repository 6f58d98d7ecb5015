#include "gemm.cuh"

namespace denoise::hopper {

DENOISE_HOPPER_KERNEL(int8_128x256, IntegerScaling) {
    using namespace cute;
    using Tile = Shape<_128, _256, _128>;
    Instance<int8_t, bf16, IntegerScaling, Tile, Shape<_2, _1, _1>, Cooperative>::run(call, problem, e, scaling);
}

} // namespace denoise::hopper
