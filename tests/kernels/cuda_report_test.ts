import assert from "node:assert/strict";
import { fileURLToPath } from "node:url";
import {
  declaredShared,
  findDisassembler,
  type KernelInstructions,
  missingInstructions,
  parseInstructions,
  parseReport,
  readInstructions,
  readReports,
  SHARED_LIMIT,
  type WantedInstruction,
} from "../../tools/cuda_report.ts";

const cuda = new URL("../../kernels/cuda/", import.meta.url);
const device = new URL("build/device/sm_90a/", cuda);

/** What Hopper's multiplies are made of, by the type that their sources are named after. */
const HOPPER: Readonly<Record<string, WantedInstruction["instruction"]>> = {
  bf16: "HGMMA",
  f16: "HGMMA",
  e4m3: "QGMMA",
  int8: "IGMMA",
};

/** The kernels of the operations that must run on tensor cores, by a part of their names. */
const OPERATIONS: readonly WantedInstruction[] = [
  { source: "ops_attention.cu", kernel: "attention_mma16attention_kernel", instruction: "HMMA" },
  { source: "ops_attention.cu", kernel: "attention_hopper16attention_kernel", instruction: "HGMMA" },
  ...["linear", "quantized_linear_bf16", "quantized_linear_f16"].flatMap((name) =>
    ["mma_kernel", "few_rows_kernel"].map((kernel) =>
      ({ source: `ops_${name}.cu`, kernel, instruction: "HMMA" }) as const
    )
  ),
  { source: "ops_quantized_linear_rows.cu", kernel: "Int8Product", instruction: "IMMA" },
  { source: "ops_quantized_linear_rows.cu", kernel: "Int4Product", instruction: "IMMA" },
  { source: "ops_quantized_linear_rows.cu", kernel: "SparseProduct", instruction: "IMMA" },
  { source: "ops_quantized_linear_rows.cu", kernel: "Fp8Product", instruction: "HMMA" },
];

/** The kernels that must run on tensor cores, by the sources that they are from. */
async function wantedInstructions(): Promise<WantedInstruction[]> {
  const names = (await Array.fromAsync(Deno.readDir(new URL("hopper", cuda)))).map(({ name }) => name);
  const multiplies = names.filter((name) => name.endsWith(".cu")).map((name) => ({
    source: `hopper_${name}`,
    kernel: "device_kernel",
    instruction: HOPPER[name.split("_")[0]!]!,
  }));
  return [...multiplies, ...OPERATIONS];
}

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

/** What cuobjdump 13.5 prints of three kernels, without most of their lines. */
const SASS = `
Fatbin elf code:
================
arch = sm_90a
code version = [1,8]
host = linux
compile_size = 64bit

	code for sm_90a
	.target	sm_90a

		Function : _Z4plusPf
	.headerflags	@"EF_CUDA_ACCELERATORS EF_CUDA_SM90 EF_CUDA_VIRTUAL_SM(EF_CUDA_SM90)"
        /*0000*/                   LDC R1, c[0x0][0x28] ;                            /* 0x00000a00ff017b82 */
                                                                                     /* 0x000fe20000000800 */
		Function : _Z8integersPKaS0_Pi
	.headerflags	@"EF_CUDA_ACCELERATORS EF_CUDA_SM90 EF_CUDA_VIRTUAL_SM(EF_CUDA_SM90)"
        /*0020*/                   IMAD.MOV.U32 R3, RZ, RZ, RZ ;                     /* 0x000000ffff037224 */
                                                                                     /* 0x000fe200078e00ff */
        /*0180*/                   IMMA.16816.S8.S8 R4, R14.reuse.ROW, R4.COL, RZ ;  /* 0x000000040e047237 */
                                                                                     /* 0x044fe80000405cff */
        /*0190*/              @!P1 IMMA.16816.S8.S8 R16, R14.ROW, R0.COL, RZ ;       /* 0x000000000e107237 */
                                                                                     /* 0x008ff60000405cff */
		Function : _Z8multiplyPK13__nv_bfloat16S1_Pf
	.headerflags	@"EF_CUDA_ACCELERATORS EF_CUDA_SM90 EF_CUDA_VIRTUAL_SM(EF_CUDA_SM90)"
        /*0160*/                   HMMA.16816.F32.BF16 R16, R4.reuse, R12, RZ ;      /* 0x0000000c0410723c */
                                                                                     /* 0x044fec00000418ff */
`;

Deno.test("the tensor cores' instructions are counted, and what lacks them is named", () => {
  const kernels = parseInstructions(SASS);
  assert.deepEqual(kernels, [
    { name: "_Z4plusPf", architecture: "sm_90a", counts: {} },
    { name: "_Z8integersPKaS0_Pi", architecture: "sm_90a", counts: { IMMA: 2 } },
    { name: "_Z8multiplyPK13__nv_bfloat16S1_Pf", architecture: "sm_90a", counts: { HMMA: 1 } },
  ]);
  const missing = (kernel: string, instruction: WantedInstruction["instruction"]) =>
    missingInstructions("a.cu", kernels, [{ source: "a.cu", kernel, instruction }]);
  assert.deepEqual(missing("integers", "IMMA"), []);
  assert.deepEqual(missing("multiply", "HGMMA"), [
    "_Z8multiplyPK13__nv_bfloat16S1_Pf of a.cu has no HGMMA for sm_90a",
  ]);
  assert.deepEqual(missing("divide", "HMMA"), ["a.cu has no divide"]);
  assert.deepEqual(
    missingInstructions("b.cu", kernels, [{ source: "a.cu", kernel: "divide", instruction: "HMMA" }]),
    [],
  );
});

Deno.test("no kernel of the CUDA library spills, or takes more shared memory than a block has", async () => {
  const kernels = await readReports(device);
  if (kernels.length === 0) {
    console.error("skipped: the CUDA library is not built: run `deno task build:cuda`");
    return;
  }
  const library = new URL("build/libdenoise_cuda.so", cuda);
  const declared = await declaredShared(library);
  for (const { source, name, spills, shared, architecture } of kernels) {
    assert.equal(spills, 0, `${name} of ${source} spills registers`);
    // The longest name that is a part of the kernel's.
    const asking = [...declared].filter(([kernel]) => name.includes(kernel)).toSorted(([a], [b]) =>
      b.length - a.length
    );
    const all = shared + (asking[0]?.[1] ?? 0);
    assert.ok(all <= SHARED_LIMIT[architecture]!, `${name} of ${source} takes ${all} bytes of shared memory`);
  }
  for (const kernel of declared.keys()) {
    assert.ok(kernels.some(({ name }) => name.includes(kernel)), `no ${kernel} was built, whose shared memory is told`);
  }
});

/** A source says what it asks for, or the compiler holds it to a limit, or it asks the device. */
const BOUNDED = /DENOISE_SHARED\(|static_assert\([^;]*shared memory"\)|sharedMemPerBlockOptin/;

Deno.test("each source whose kernels ask for shared memory says how much, or keeps to what there is", async () => {
  const silent: string[] = [];
  let asking = 0;
  for (const folder of ["", "ops/", "hopper/"]) {
    for await (const { name } of Deno.readDir(new URL(folder, cuda))) {
      if (!/\.cuh?$/.test(name) || name === "device.cuh") continue;
      const text = await Deno.readTextFile(new URL(folder + name, cuda));
      if (!/\bdynamic_shared\s*</.test(text) && !/\bextern\s+__shared__/.test(text)) continue;
      asking++;
      if (!BOUNDED.test(text)) silent.push(folder + name);
    }
  }
  assert.ok(asking > 0, "no source was found that asks for shared memory");
  assert.deepEqual(silent, []);
});

Deno.test("kernels that multiply run on tensor cores", async () => {
  const toolkit = await findDisassembler();
  if ((await readReports(device)).length === 0 || toolkit === undefined) {
    console.error("skipped: there is no CUDA library or no cuobjdump: run `deno task build:cuda`");
    return;
  }
  const missing: string[] = [];
  const wanted = await wantedInstructions();
  assert.ok(wanted.length > 0 && wanted.every(({ instruction }) => instruction), JSON.stringify(wanted));
  for (const source of new Set(wanted.map(({ source }) => source))) {
    const kernels: KernelInstructions[] = await readInstructions(
      fileURLToPath(new URL(`${source}.o`, device)),
      toolkit,
    );
    missing.push(...missingInstructions(source, kernels, wanted));
  }
  assert.deepEqual(missing, []);
});
