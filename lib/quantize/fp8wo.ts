import { byRow, fp8Kind, type Scheme } from "./scheme.ts";

/** fp8 weights by output; inputs as they are. torchao's `Float8WeightOnlyConfig`. */
export const fp8wo: Scheme = {
  name: "fp8wo",
  summary: "fp8 weights",
  kinds: ["linear", "conv2d", "conv3d"],
  quantization: (input, { fp8 }) => byRow(fp8Kind(fp8), input),
};
