/**
 * Finding and checking the CUDA libraries, which the native library opens.
 *
 * @module
 */

import { fileURLToPath } from "node:url";
import { NativeError } from "../lib/errors.ts";
import { environment } from "./environment.ts";
import { buildRecord, libraryHash, loadLibrary } from "./library.ts";

/** A CUDA library: for devices, or the emulated one, which runs kernels thread by thread on the host. */
export type CudaKind = "cuda" | "cuda-emulated";

const BUILT: Readonly<Record<CudaKind, { file: string; task: string }>> = {
  "cuda": { file: "libdenoise_cuda.so", task: "build:cuda" },
  "cuda-emulated": { file: "emulated/libdenoise_cuda_emulated.so", task: "build:cuda-emulated" },
};

/** A CUDA library that was built. */
export interface CudaLibrary {
  /** Its path. */
  readonly path: string;
  /** The SHA-256 of what it was built from. */
  readonly sources: string;
}

/**
 * Where a build puts a CUDA library.
 *
 * @param kind Which.
 * @returns Its path; `undefined` where denoise was imported from an address.
 */
export function builtCudaLibrary(kind: CudaKind): string | undefined {
  const url = new URL(`../kernels/cuda/build/${BUILT[kind].file}`, import.meta.url);
  return url.protocol === "file:" ? fileURLToPath(url) : undefined;
}

const namedCudaLibrary = (kind: CudaKind) => kind === "cuda" ? environment("DENOISE_CUDA_LIBRARY") : undefined;

/**
 * What a CUDA library was built from, without a look at the library itself.
 *
 * @param kind Which.
 * @returns The SHA-256; `undefined` where there is none.
 */
export async function cudaSources(kind: CudaKind): Promise<string | undefined> {
  const path = namedCudaLibrary(kind) ?? builtCudaLibrary(kind);
  return path === undefined ? undefined : (await buildRecord(path))?.sources;
}

/**
 * The CUDA library to open: for devices the one named in `DENOISE_CUDA_LIBRARY`, else, where there is a driver, the one
 * that was built here. Its hash is checked, as a truncated one would crash the process.
 *
 * @param kind Which.
 * @returns The library.
 * @throws {NativeError} If there is none (`unavailable`), or it is not what was built (`corrupt`)
 */
export async function findCudaLibrary(kind: CudaKind): Promise<CudaLibrary> {
  const { task } = BUILT[kind];
  const named = namedCudaLibrary(kind);
  if (kind === "cuda" && named === undefined && (await loadLibrary()).symbols.denoise_cuda_driver() === 0) {
    throw new NativeError("unavailable", "Cannot run on cuda as there is no CUDA driver: install NVIDIA's");
  }
  const path = named ?? builtCudaLibrary(kind);
  const [hash, record] = path === undefined
    ? [undefined, undefined]
    : await Promise.all([libraryHash(path), buildRecord(path)]);
  if (path === undefined || hash === undefined) {
    throw new NativeError(
      "unavailable",
      `Cannot run on ${kind} as there is no CUDA library${path === undefined ? "" : ` at ${path}`}: run ` +
        `\`deno task ${task}\`, or name one in DENOISE_CUDA_LIBRARY`,
      { file: path },
    );
  }
  if (record?.library !== hash) {
    throw new NativeError(
      "corrupt",
      `The CUDA library ${path} is not the one that was built (its SHA-256 is ${hash}, the build recorded ` +
        `${record?.library ?? "none"}): run \`deno task ${task}\``,
      { file: path },
    );
  }
  return { path, sources: record.sources };
}
