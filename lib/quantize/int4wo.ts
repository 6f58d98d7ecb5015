import { byRow, groupSize, type Scheme } from "./scheme.ts";

/** int4 weights in groups, of 32 by default, symmetric or with zero points; inputs as they are. */
export const int4wo: Scheme = {
  name: "int4wo",
  summary: "int4 weights in groups",
  kinds: ["linear"],
  quantization: (input, options) =>
    byRow("int4", input, { group: groupSize(options.groupSize, 32), symmetric: options.symmetric ?? true }),
};
