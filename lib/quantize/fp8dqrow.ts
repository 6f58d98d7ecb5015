import { byRow, fp8Kind, type Scheme } from "./scheme.ts";

/**
 * fp8 weights by output and, at run time, fp8 inputs by token. torchao's `Float8DynamicActivationFloat8WeightConfig`
 * by row.
 */
export const fp8dqrow: Scheme = {
  name: "fp8dqrow",
  summary: "fp8 weights and activations, by row",
  kinds: ["linear"],
  quantization: (input, options) => {
    const fp8 = fp8Kind(options.fp8);
    return byRow(fp8, input, { activation: { rows: fp8, perTensor: 0 } });
  },
};
