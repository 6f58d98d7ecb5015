import { deepStrictEqual, ok, strictEqual, throws } from "node:assert/strict";
import { bf16BitsToF32, f16BitsToF32 } from "../../lib/tensor/convert.ts";
import { Generator, type RandnDtype } from "../../lib/tensor/random.ts";
import { openSafetensors, readTensor } from "../../lib/tensor/safetensors.ts";

const goldens = openSafetensors("tests/fixtures/random/cases.safetensors");

function values(name: string): ArrayLike<number> {
  const { buffer } = readTensor(goldens, name);
  switch (goldens.tensors.get(name)!.dtype) {
    case "F64":
      return new Float64Array(buffer);
    case "F16":
      return f16BitsToF32(new Uint16Array(buffer));
    case "BF16":
      return bf16BitsToF32(new Uint16Array(buffer));
    default:
      return new Float32Array(buffer);
  }
}

function draw(generator: Generator, size: number, dtype: RandnDtype): ArrayLike<number> {
  if (dtype === "bf16") return bf16BitsToF32(generator.randn([size], { dtype }));
  if (dtype === "f16") return f16BitsToF32(generator.randn([size], { dtype }));
  return generator.randn([size], { dtype });
}

function assertClose(actual: ArrayLike<number>, expected: ArrayLike<number>, what: string): void {
  strictEqual(actual.length, expected.length, what);
  for (let i = 0; i < expected.length; i++) {
    ok(Math.abs(actual[i]! - expected[i]!) <= 1e-6, `${what}[${i}]: ${actual[i]}, not ${expected[i]}`);
  }
}

Deno.test("Generator.randn equals torch.randn for every seed, size and dtype of the goldens", () => {
  let checked = 0;
  for (const name of goldens.tensors.keys()) {
    const [, seed, size, dtype] = name.match(/^seed(\d+)\.(randn\d+|two_draws)\.(\w+)$/)!;
    const generator = new Generator(BigInt(seed!));
    const drawn = size === "two_draws"
      ? [...generator.randn([3, 7]), ...generator.randn([160])]
      : draw(generator, Number(size!.slice(5)), dtype as RandnDtype);
    assertClose(drawn, values(name), name);
    checked++;
  }
  strictEqual(checked, goldens.tensors.size);
  ok(checked >= 90);
});

Deno.test("Generator.random32 is mt19937's stream", () => {
  // init_genrand(0), and the C++ standard's own check of mt19937: the 10000th value of the default seed.
  const zero = new Generator(0);
  deepStrictEqual([zero.random32(), zero.random32(), zero.random32()], [2357136044, 2546248239, 3071714933]);
  const standard = new Generator(5489);
  for (let i = 1; i < 10000; i++) standard.random32();
  strictEqual(standard.random32(), 4123659995);
});

Deno.test("Generator takes the seeds that torch takes", () => {
  const first = (seed: number | bigint) => new Generator(seed).random32();
  strictEqual(first(7), first(7n));
  strictEqual(new Generator(-1).seed, 0xffff_ffff_ffff_ffffn);
  strictEqual(first(-1), first(0xffff_ffff_ffff_ffffn));
  strictEqual(first(-(2n ** 63n)), first(2n ** 63n));
  for (const seed of [2n ** 64n, -(2n ** 63n) - 1n, 1.5, NaN, Infinity, 2 ** 53]) {
    throws(() => new Generator(seed), RangeError, `${seed}`);
  }
  for (const seed of ["5", null, undefined, {}]) throws(() => new Generator(seed as unknown as number), TypeError);
});

Deno.test("Generator.randn keeps the second normal of a pair for the next small draw", () => {
  const whole = new Generator(11).randn([9]);
  const parts = new Generator(11);
  deepStrictEqual([...parts.randn([3]), ...parts.randn([0]), ...parts.randn([1]), ...parts.randn([5])], [...whole]);
  // A large draw between neither uses nor drops it.
  const around = new Generator(11);
  around.randn([3]);
  around.randn([16]);
  strictEqual(around.randn([1])[0], whole[3]);
});

Deno.test("Generator.randn draws the same in any shape, and refuses what is none", () => {
  const generator = () => new Generator(1);
  deepStrictEqual(generator().randn([2, 3, 8]), generator().randn([48]));
  strictEqual(generator().randn([]).length, 1);
  strictEqual(generator().randn([4, 0]).length, 0);
  for (const shape of [[-1], [1.5], [NaN], [2 ** 30, 2 ** 30]]) throws(() => generator().randn(shape), RangeError);
  throws(() => generator().randn([2], { dtype: "f8" as "f32" }), RangeError);
});

Deno.test("Generator.randn is standard normal over a million draws", () => {
  for (const dtype of ["f32", "f64"] as const) {
    const normals = new Generator(99).randn([1_000_000], { dtype });
    let sum = 0;
    let squares = 0;
    for (const x of normals) {
      sum += x;
      squares += x * x;
    }
    ok(Math.abs(sum / 1e6) < 5e-3, dtype);
    ok(Math.abs(squares / 1e6 - 1) < 7e-3, dtype);
  }
});
