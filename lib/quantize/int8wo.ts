import { byRow, type Scheme } from "./scheme.ts";

/** int8 weights, symmetric, by output; inputs as they are. torchao's `Int8WeightOnlyConfig`. */
export const int8wo: Scheme = {
  name: "int8wo",
  summary: "int8 weights",
  kinds: ["linear", "conv2d", "conv3d", "embedding"],
  quantization: (input) => byRow("int8", input),
};
