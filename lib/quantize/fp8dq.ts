import { byRow, fp8Kind, type Scheme } from "./scheme.ts";

/**
 * fp8 weights and, at run time, fp8 inputs, each by one scale for all of the tensor. torchao's
 * `Float8DynamicActivationFloat8WeightConfig` by tensor.
 */
export const fp8dq: Scheme = {
  name: "fp8dq",
  summary: "fp8 weights and activations, by tensor",
  kinds: ["linear"],
  quantization: (input, options) => {
    const fp8 = fp8Kind(options.fp8);
    return byRow(fp8, input, { perTensor: true, activation: { rows: fp8, perTensor: 1 } });
  },
};
