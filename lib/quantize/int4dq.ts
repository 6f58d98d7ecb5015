import type { RowsKind } from "../graph/schema.ts";
import { byRow, groupSize, type Scheme } from "./scheme.ts";

/**
 * int4 weights, symmetric, in groups, of 32 by default, and int8 inputs, by token, at run time, with a zero point or
 * without. torchao's `Int8DynamicActivationIntxWeightConfig` of int4.
 */
export const int4dq: Scheme = {
  name: "int4dq",
  summary: "int4 weights in groups, int8 activations",
  kinds: ["linear"],
  quantization: (input, { groupSize: size, activation = "asymmetric" }) => {
    const rows = ROWS[activation];
    if (rows === undefined) {
      throw new RangeError(`Cannot use an activation of ${JSON.stringify(activation)}: pass asymmetric or symmetric`);
    }
    return byRow("int4", input, { group: groupSize(size, 32), activation: { rows, perTensor: 0 } });
  },
};

const ROWS: Readonly<Record<string, RowsKind>> = { asymmetric: "int8_asym", symmetric: "int8" };
