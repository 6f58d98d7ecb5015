/**
 * Builds a CUDA library where it is missing or older than its sources: `deno task build:cuda` for devices, by the CUDA
 * toolkit's compiler, or `deno task build:cuda-emulated`, by the host's. Object files are kept, and made anew where the
 * sources, the headers that they include, or the command changed.
 *
 * @module
 */

import { createHash } from "node:crypto";
import { parseArgs } from "node:util";
import { fileURLToPath } from "node:url";
import { libraryHash } from "../ffi/library.ts";
import { readReports } from "./cuda_report.ts";

const cuda = new URL("../kernels/cuda/", import.meta.url);
const ARCHITECTURES = ["sm_80", "sm_89", "sm_90a", "sm_100a"];
/** What `deno task build:cuda` gets from PyPI where no toolkit is installed. */
const PACKAGES = [
  ...["nvcc", "crt", "nvvm", "runtime", "cccl"].map((name) => {
    const prefix = name === "nvvm" ? "nvidia" : "nvidia-cuda";
    return `${prefix}-${name}==13.0.*`;
  }),
  // What tests disassemble kernels with, which there is none of 13.0 of.
  ...["cuobjdump", "nvdisasm"].map((name) => `nvidia-cuda-${name}==13.*`),
];

/** The headers of Hopper's multiplies. What the package depends on is for Python. */
const CUTLASS = "nvidia-cutlass==4.2.0.0";
/** The folder of sources that are compiled for one architecture alone, and that one. */
const HOPPER = { folder: "hopper/", architecture: "sm_90a" };

/** How objects are made and joined. */
interface Compiler {
  /** The folder of objects below `build`. */
  readonly folder: string;
  /** The library's name. */
  readonly library: string;
  /** The command that makes an object, to which `-c <source> -o <object>` is added. */
  readonly compile: readonly string[];
  /** What is added to it for a source. */
  readonly flags: (source: string) => readonly string[];
  /** The command that joins objects, to which `-o <library> <objects>` is added. */
  readonly link: readonly string[];
  /** Sources besides those of the ops. */
  readonly sources: readonly string[];
}

function fail(message: string): never {
  console.error(message);
  Deno.exit(1);
}

/** Runs a command; gives what it said, where it succeeded. */
async function run(command: readonly string[], cwd: URL = cuda): Promise<{ success: boolean; said: string }> {
  const [program, ...args] = command;
  try {
    const { success, stdout, stderr } = await new Deno.Command(program!, { args, cwd }).output();
    const said = [stdout, stderr].map((bytes) => new TextDecoder().decode(bytes)).join("");
    return { success, said };
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return { success: false, said: `${program} is not installed` };
    throw error;
  }
}

/** The compiler of the host: g++ or clang++, whichever is there. */
async function hostCompiler(sanitize: boolean): Promise<Compiler> {
  const program = Deno.env.get("CXX") || (await run(["g++", "--version"])).success && "g++" || "clang++";
  if (!(await run([program, "--version"])).success) {
    fail("Building the emulated CUDA library takes a C++20 compiler, which is not installed: get g++ or clang++.");
  }
  const folder = sanitize ? "sanitized" : "emulated";
  const flags = sanitize ? ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-g"] : [];
  const compile = [
    program,
    "-x",
    "c++",
    "-std=c++20",
    "-O2",
    "-fPIC",
    "-ffp-contract=off",
    "-Wall",
    "-Wextra",
    "-Werror",
  ];
  return {
    folder,
    library: `${folder}/libdenoise_cuda_emulated.so`,
    compile: [...compile, ...flags, "-I", "emulated", "-DDENOISE_HOPPER", "-MMD"],
    flags: () => [],
    link: [program, "-shared", ...flags],
    sources: ["emulated/runtime.cpp", "emulated/hopper.cpp"],
  };
}

/** The folder of an installed toolkit, or of one from PyPI in an ignored folder. */
async function toolkit(): Promise<string> {
  for (const folder of [Deno.env.get("CUDA_HOME"), "/usr/local/cuda"]) {
    if (!folder) continue;
    const { success, said } = await run([`${folder}/bin/nvcc`, "--version"]);
    if (success && said.includes("release 13.")) return folder;
  }
  const packages = fileURLToPath(new URL("build/toolkit/", cuda));
  const found = `${packages}nvidia/cu13`;
  if ((await run([`${found}/bin/nvcc`, "--version"])).success) return found;
  console.error("Getting the CUDA 13.0 compiler from PyPI; this happens once.");
  const { success, said } = await install(packages, PACKAGES);
  if (!success) fail(`Cannot get the CUDA compiler: ${said}\nInstall CUDA 13.0 and name its folder in CUDA_HOME.`);
  return found;
}

function install(folder: string, packages: readonly string[]): Promise<{ success: boolean; said: string }> {
  return run(["python3", "-m", "pip", "install", "--quiet", "--no-deps", "--target", folder, ...packages]);
}

/** The folder of CUTLASS's headers, got from PyPI into an ignored folder that says which they are. */
async function cutlass(): Promise<string> {
  const packages = fileURLToPath(new URL(`build/${CUTLASS.replace("==", "-")}/`, cuda));
  const found = `${packages}cutlass_library/source/include`;
  if (await Deno.stat(`${found}/cutlass/version.h`).catch(() => undefined)) return found;
  console.error("Getting CUTLASS from PyPI; this happens once.");
  const { success, said } = await install(packages, [CUTLASS]);
  if (!success) fail(`Cannot get CUTLASS: ${said}`);
  return found;
}

/** The compiler of devices. */
async function deviceCompiler(architectures: readonly string[]): Promise<Compiler> {
  const home = await toolkit();
  const target = (name: string) => ["-gencode", `arch=${name.replace("sm_", "compute_")},code=${name}`];
  const targets = architectures.flatMap(target);
  const hopper = architectures.includes(HOPPER.architecture)
    ? { define: ["-DDENOISE_HOPPER"], headers: await cutlass(), sources: await sourcesIn(HOPPER.folder) }
    : { define: [], headers: "", sources: [] };
  // CUTLASS's assertions are calls, around which no multiply may be in flight.
  const special = [...target(HOPPER.architecture), "-DNDEBUG", "-isystem", hopper.headers];
  return {
    folder: `device/${architectures.join("-")}`,
    library: "libdenoise_cuda.so",
    compile: [
      `${home}/bin/nvcc`,
      ...["-std=c++20", "-O3", "-Xcompiler", "-fPIC", "--expt-relaxed-constexpr", "-Xptxas", "-v", "-MMD"],
      ...hopper.define,
    ],
    flags: (source) => source.startsWith(HOPPER.folder) ? special : targets,
    link: [`${home}/bin/nvcc`, "-shared", "-cudart", "static", "-L", `${home}/lib`, "-L", `${home}/lib64`, ...targets],
    sources: hopper.sources,
  };
}

/** What an object was made of: its command, its source, and the headers that its dependency file names. */
async function fingerprint(
  command: readonly string[],
  source: string,
  dependencies: string,
): Promise<string | undefined> {
  const hash = createHash("sha256").update(JSON.stringify(command));
  let text: string;
  try {
    text = await Deno.readTextFile(new URL(dependencies, cuda));
  } catch {
    return undefined;
  }
  const files = text.replace(/^[^:]*:/, "").replaceAll("\\\n", " ").split(/\s+/).filter(Boolean);
  for (const file of [source, ...files].filter((file) => !file.startsWith("/")).sort()) {
    try {
      hash.update(file).update(await Deno.readFile(new URL(file, cuda)));
    } catch {
      return undefined;
    }
  }
  return hash.digest("hex");
}

/** Makes an object where it is missing or stale; keeps what the compiler says beside it. Gives whether it was made. */
async function makeObject({ compile, flags }: Compiler, source: string, object: string): Promise<boolean> {
  const command = [...compile, ...flags(source)];
  const stamp = new URL(`${object}.stamp`, cuda);
  const dependencies = object.replace(/\.o$/, ".d");
  const known = await Deno.readTextFile(stamp).catch(() => undefined);
  if (known !== undefined && known === await fingerprint(command, source, dependencies)) return false;
  await Deno.remove(stamp).catch(() => {});
  const { success, said } = await run([...command, "-c", source, "-o", object]);
  if (!success) fail(`Cannot compile ${source}:\n${said}`);
  await Deno.writeTextFile(new URL(`${object}.log`, cuda), said);
  await Deno.writeTextFile(stamp, await fingerprint(command, source, dependencies) ?? "");
  return true;
}

async function sourcesIn(folder: string): Promise<string[]> {
  const found: string[] = [];
  for await (const { name } of Deno.readDir(new URL(folder, cuda))) {
    if (name.endsWith(".cu")) found.push(`${folder}${name}`);
  }
  return found;
}

async function build(compiler: Compiler, jobs: number): Promise<void> {
  const { folder, library, link } = compiler;
  await Deno.mkdir(new URL(`build/${folder}`, cuda), { recursive: true });
  const all = ["cublaslt.cu", "runtime.cu", ...compiler.sources, ...await sourcesIn("ops/")].sort().map((source) => ({
    source,
    object: `build/${folder}/${source.replaceAll("/", "_")}.o`,
  }));
  // For tests that build a part of it with a fault.
  for (const [name, command] of Object.entries({ compile: compiler.compile, link })) {
    await Deno.writeTextFile(new URL(`build/${folder}/${name}`, cuda), command.map((word) => `${word}\n`).join(""));
  }
  for await (const { name } of Deno.readDir(new URL(`build/${folder}`, cuda))) {
    // Of a source that is no more.
    const stale = name.endsWith(".o") && !all.some(({ object }) => object.endsWith(`/${name}`));
    if (stale) await Deno.remove(new URL(`build/${folder}/${name}`, cuda));
  }
  const waiting = [...all];
  let made = 0;
  await Promise.all(Array.from({ length: jobs }, async () => {
    for (let next = waiting.pop(); next; next = waiting.pop()) {
      if (await makeObject(compiler, next.source, next.object)) console.error(`${++made}. ${next.source}`);
    }
  }));
  const path = new URL(`build/${library}`, cuda);
  const stamp = new URL(`build/${library}.json`, cuda);
  const record = await Deno.readTextFile(stamp).then((text) => JSON.parse(text)).catch(() => ({}));
  const hash = createHash("sha256");
  for (const { object } of all) hash.update(await Deno.readTextFile(new URL(`${object}.stamp`, cuda)));
  const wanted = hash.digest("hex");
  if (record.sources === wanted && record.library === await libraryHash(fileURLToPath(path))) return;
  const partial = `build/${library}.partial`;
  const { success, said } = await run([...link, "-o", partial, ...all.map(({ object }) => object)]);
  if (!success) fail(`Cannot link ${library}:\n${said}`);
  await Deno.rename(new URL(partial, cuda), path);
  const text = JSON.stringify({ sources: wanted, library: await libraryHash(fileURLToPath(path)) });
  await Deno.writeTextFile(stamp, text);
}

const { values: flags } = parseArgs({
  options: {
    emulated: { type: "boolean" },
    sanitize: { type: "boolean" },
    arch: { type: "string", multiple: true },
    jobs: { type: "string" },
  },
});
const architectures = flags.arch ?? ["sm_90a"];
const unknown = architectures.find((name) => !ARCHITECTURES.includes(name));
if (unknown !== undefined) fail(`Cannot build for ${unknown}: pass --arch ${ARCHITECTURES.join(", ")}`);
const compiler = flags.emulated ? await hostCompiler(flags.sanitize ?? false) : await deviceCompiler(architectures);
await build(compiler, Number(flags.jobs ?? navigator.hardwareConcurrency));
if (!flags.emulated) {
  const kernels = await readReports(new URL(`build/${compiler.folder}/`, cuda));
  const most = kernels.reduce((a, b) => a.registers > b.registers ? a : b);
  const spilling = kernels.filter(({ spills }) => spills > 0);
  console.error(
    `${kernels.length} kernels, at most ${most.registers} registers (${most.source}); ` +
      (spilling.map(({ name, spills }) => `${name} spills ${spills} bytes`).join(", ") || "none spills"),
  );
}
