import { byRow, type Scheme } from "./scheme.ts";

/**
 * int8 weights, symmetric, by output, and int8 inputs, by token, at run time; of a convolution by one scale for all.
 * torchao's `Int8DynamicActivationInt8WeightConfig`. Weights that were pruned are stored without their zeros.
 */
export const int8dq: Scheme = {
  name: "int8dq",
  summary: "int8 weights and activations",
  kinds: ["linear", "conv2d", "conv3d"],
  quantization: (input) =>
    byRow(input.sparse ? "sparse_int8" : "int8", input, {
      activation: { rows: "int8", perTensor: input.kind === "linear" ? 0 : 1 },
    }),
};
