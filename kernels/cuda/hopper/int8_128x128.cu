#include "gemm.cuh"

namespace denoise::hopper {

DENOISE_HOPPER_KERNEL(int8_128x128, IntegerScaling) {
    using namespace cute;
    using Tile = Shape<_128, _128, _128>;
    Instance<int8_t, bf16, IntegerScaling, Tile, Shape<_2, _1, _1>, Pingpong>::run(call, problem, e, scaling);
}

} // namespace denoise::hopper
