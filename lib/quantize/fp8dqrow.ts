import { byRow, type Scheme } from "./scheme.ts";

/**
 * fp8 weights by output and, at run time, fp8 inputs by token. torchao's `Float8DynamicActivationFloat8WeightConfig`
 * by row.
 */
export const fp8dqrow: Scheme = {
  name: "fp8dqrow",
  summary: "fp8 weights and activations, by row",
  kinds: ["linear"],
  quantization: (input, { fp8 = "e4m3" }) => byRow(fp8, input, { activation: { rows: fp8, perTensor: 0 } }),
};
