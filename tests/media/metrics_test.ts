import { ok, strictEqual, throws } from "node:assert/strict";
import { Image } from "../../lib/media/image.ts";
import { maxAbsDifference, psnr, ssim } from "../../lib/media/metrics.ts";

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

Deno.test("ssim is that of scikit-image with a Gaussian window and population covariances", async () => {
  const [width, height] = [17, 13];
  const picture = (value: (x: number, y: number, c: number) => number) => ({
    width,
    height,
    data: Uint8Array.from({ length: width * height * 3 }, (_, i) => {
      const at = Math.floor(i / 3);
      return value(at % width, Math.floor(at / width), i % 3);
    }),
  });
  const a = picture((x, y, c) => x * 37 + y * 91 + c * 53);
  const b = picture((x, y, c) => x * 37 + y * 91 + c * 53 + (x * y) % 23);
  // structural_similarity(a, b, channel_axis=2, gaussian_weights=True, sigma=1.5, use_sample_covariance=False)
  ok(Math.abs(ssim(a, b) - 0.6312868257008827) < 1e-12, `${ssim(a, b)}`);
  strictEqual(ssim(a, b), ssim(b, a));
  strictEqual(ssim(a, a), 1);
  const open = (name: string) => Image.open(`tests/fixtures/shapes-flux/case0_0_${name}.png`);
  const similarity = ssim(await open("f32"), await open("bf16"));
  ok(Math.abs(similarity - 0.8405780965198795) < 1e-12, `${similarity}`);
});

Deno.test("ssim refuses pictures of other sizes, and those smaller than its window", () => {
  const picture = (width: number, height: number) => ({ width, height, data: new Uint8Array(width * height * 3) });
  throws(() => ssim(picture(11, 12), picture(12, 11)), { name: "TypeError", message: /11 by 12.*12 by 11/ });
  throws(() => ssim(picture(10, 12), picture(10, 12)), {
    name: "TypeError",
    message: /10 by 12: pass some of 11 by 11/,
  });
});
