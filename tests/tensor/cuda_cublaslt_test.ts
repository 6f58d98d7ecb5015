import assert from "node:assert/strict";
import { fileURLToPath } from "node:url";
import { openEmulated } from "../emulated.ts";
import { withFolder } from "../folder.ts";

const url = (path: string) => new URL(`../../${path}`, import.meta.url).href;

/** Runs layers again and again, so that they are queued, captured, and replayed; prints the largest error. */
const SCRIPT = `
import { callsOf } from "${url("lib/compile/measure.ts")}";
import { leaf, RATE } from "${url("lib/graph/node.ts")}";
import { Device } from "${url("lib/tensor/device.ts")}";
import { compileFunction } from "${url("lib/tensor/function.ts")}";
import { toArray } from "${url("lib/tensor/realize.ts")}";
import { tensor } from "${url("lib/tensor/source.ts")}";
import { Tensor } from "${url("lib/tensor/tensor.ts")}";

const weight = tensor(Array.from({ length: 24 * 16 }, (_, i) => Math.sin(i)), { shape: [24, 16] });
const bias = tensor(Array.from({ length: 24 }, (_, i) => Math.cos(i)), { shape: [24] });
const layers = (x) => x.linear(weight, bias).gelu("tanh").add(x.linear(weight).silu().mul(x.slice(-1, 0, 1)));
const [there, here] = [await Device.open({ device: "cuda-emulated" }), await Device.open()];
const run = (device) => compileFunction(({ x }) => ({ y: layers(x) }), { device, varying: ["x"] });
const [a, b] = [run(there), run(here)];
let worst = 0;
for (let call = 0; call < 4; call++) {
  const x = tensor(Array.from({ length: 5 * 16 }, (_, i) => Math.sin(i * (call + 1))), { shape: [5, 16] });
  const [{ y }, { y: wanted }] = [await a.run({ x }), await b.run({ x })];
  const [got, want] = [await toArray(y, { device: there }), await toArray(wanted, { device: here })];
  got.forEach((value, i) => worst = Math.max(worst, Math.abs(value - want[i])));
}
const given = (rate, ...shape) => new Tensor(leaf(shape, { dtype: "f32", rate }));
const [linear] = callsOf([given(RATE.step, 5, 16).linear(given(RATE.constant, 24, 16)).node]);
console.log(JSON.stringify({ worst, ways: there.waysOf(linear), libraries: there.description.libraries }));
`;

Deno.test("layers by cuBLASLt are captured and replayed as others are, with memory of their own", async () => {
  using device = await openEmulated();
  if (!device) return;
  assert.deepEqual(device.description.libraries, []);
  await withFolder(async (folder) => {
    const library = `${folder}/libcublasLt.so`;
    const source = fileURLToPath(url("kernels/tests/cublaslt/fake.c"));
    const args = ["-O1", "-shared", "-fPIC", "-o", library, source, "-lm"];
    const built = await new Deno.Command(Deno.env.get("CC") || "cc", { args }).output();
    assert.ok(built.success, new TextDecoder().decode(built.stderr));
    await Deno.writeTextFile(`${folder}/script.ts`, SCRIPT);
    const { code, stdout, stderr } = await new Deno.Command(Deno.execPath(), {
      args: ["run", "--allow-all", "--no-check", `${folder}/script.ts`],
      env: { DENOISE_CUBLASLT: library },
    }).output();
    assert.equal(code, 0, new TextDecoder().decode(stderr));
    const { worst, ways, libraries } = JSON.parse(new TextDecoder().decode(stdout));
    assert.ok(worst < 1e-5, `${worst}`);
    assert.deepEqual(ways.slice(0, 2), ["cuBLASLt 1", "cuBLASLt 2"]);
    assert.deepEqual(libraries, ["cuBLASLt 130000"]);
  });
});
