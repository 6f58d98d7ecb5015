import assert from "node:assert/strict";
import { parseReport, readReports } from "../../tools/cuda_report.ts";

/** Bytes of shared memory that a block of an H100 or an A100 may have without asking for more. */
const SHARED = 48 << 10;

Deno.test("a report of the compiler is read", () => {
  const text = `ptxas info    : Compiling entry function '_Z4plusv' for 'sm_90a'
ptxas info    : Function properties for _Z4plusv
    8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 8 bytes cumulative stack size, 9216 bytes smem, 600 bytes cmem[0]
ptxas info    : Compiling entry function '_Z5minusv' for 'sm_80'
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 7 registers, 600 bytes cmem[0]
`;
  assert.deepEqual(parseReport("a.cu", text), [
    { source: "a.cu", name: "_Z4plusv", architecture: "sm_90a", registers: 40, spills: 16, stack: 8, shared: 9216 },
    { source: "a.cu", name: "_Z5minusv", architecture: "sm_80", registers: 7, spills: 0, stack: 0, shared: 0 },
  ]);
});

Deno.test("no kernel of the CUDA library spills, or takes more shared memory than a block has", async () => {
  const kernels = await readReports(new URL("../../kernels/cuda/build/device/sm_90a/", import.meta.url));
  if (kernels.length === 0) {
    console.error("skipped: the CUDA library is not built: run `deno task build:cuda`");
    return;
  }
  for (const { source, name, spills, shared } of kernels) {
    assert.equal(spills, 0, `${name} of ${source} spills registers`);
    assert.ok(shared <= SHARED, `${name} of ${source} takes ${shared} bytes of shared memory`);
  }
  for (const part of ["tile_kernel", "attention_kernel", "norm_kernel", "group_norm_kernel", "rope_kernel"]) {
    assert.ok(kernels.some(({ name }) => name.includes(part)), `no ${part} was built`);
  }
});
