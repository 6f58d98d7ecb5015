import { byRow, groupSize, type Scheme } from "./scheme.ts";

/**
 * int4 weights, symmetric, in groups, of 32 by default, and int8 inputs, by token, at run time, with a zero point or
 * without. torchao's `Int8DynamicActivationIntxWeightConfig` of int4.
 */
export const int4dq: Scheme = {
  name: "int4dq",
  summary: "int4 weights in groups, int8 activations",
  kinds: ["linear"],
  quantization: (input, { groupSize: size, activation = "asymmetric" }) =>
    byRow("int4", input, {
      group: groupSize(size, 32),
      activation: { rows: activation === "asymmetric" ? "int8_asym" : "int8", perTensor: 0 },
    }),
};
