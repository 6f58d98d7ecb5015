import { strictEqual, throws } from "node:assert/strict";
import { maxAbsDifference, psnr } from "../../lib/media/metrics.ts";

Deno.test("psnr is 10 log10(peak^2 / mean squared difference)", () => {
  strictEqual(psnr([0, 0], [1, 1]), 10 * Math.log10(255 ** 2));
  strictEqual(psnr([0, 0, 0, 0], [0, 0, 0, 2], { peak: 1 }), 0);
  strictEqual(psnr(Float32Array.of(1), Float32Array.of(1)), Infinity);
  strictEqual(psnr([NaN], [1]), NaN);
});

Deno.test("maxAbsDifference finds the largest difference of either sign", () => {
  const picture = (data: number[]) => ({ width: 1, height: 1, data: Uint8Array.from(data) });
  strictEqual(maxAbsDifference(picture([0, 10, 255]), picture([1, 10, 250])), 5);
  strictEqual(maxAbsDifference([1, -2], [1, 2]), 4);
  strictEqual(maxAbsDifference([1, NaN], [1, 2]), NaN);
  strictEqual(maxAbsDifference([3], [3]), 0);
});

Deno.test("pictures of other sizes are not compared", () => {
  const data = new Uint8Array(6);
  throws(() => psnr({ width: 2, height: 1, data }, { width: 1, height: 2, data }), {
    name: "TypeError",
    message: /2 by 1.*1 by 2/,
  });
  throws(() => maxAbsDifference([1], [1, 2]), { name: "TypeError", message: /1 values with 2 values/ });
  throws(() => psnr([], []), TypeError);
});
