/**
 * Compiled functions as one safetensors file: their programs, the weights as kernels take them at places where they can
 * be used mapped, files and notes. Reading it maps it; nothing is recorded, lowered or packed.
 *
 * Its metadata holds the manifest, `denoise.compiled`, and the SHA-256 of the manifest, the programs and the files,
 * `denoise.sha256`. The weights are not hashed, as they are not read before they are used.
 *
 * @module
 */

import { cudaSources } from "../../ffi/cuda.ts";
import { library, loadLibrary } from "../../ffi/library.ts";
import { NativeProgram } from "../../ffi/native.ts";
import { CheckpointError, NativeError } from "../errors.ts";
import { constantKey, type Stage } from "../graph/compile.ts";
import { byteSize, type Dtype, DTYPES } from "../graph/dtypes.ts";
import type { Storage } from "../graph/lower.ts";
import { leaf, type Node, RATE, type Rate } from "../graph/node.ts";
import { sizeOf } from "../graph/ops.ts";
import type { VariantOf } from "../graph/program.ts";
import { MAX_RANK, schemaHash } from "../graph/schema.ts";
import type { Device } from "../tensor/device.ts";
import {
  CompiledFunction,
  constantValue,
  type Port,
  shapesKey,
  type Specialization,
  valueBytes,
} from "../tensor/function.ts";
import { openSafetensors, readTensor, type SafetensorsFile, writeSafetensors } from "../tensor/safetensors.ts";
import { fromSource } from "../tensor/source.ts";
import type { Tensor } from "../tensor/tensor.ts";

const FORMAT = 1;
const MANIFEST = "denoise.compiled";
const DIGEST = "denoise.sha256";
/** Where each tensor starts: at a multiple of a cache line, as the kernels' vectors have it. */
const ALIGN = 64;
/** Bytes that are copied at once. */
const PIECE = 16 << 20;

/** A file within the file. */
export interface Asset {
  /** Its name. */
  readonly name: string;
  /** Its bytes. */
  readonly bytes: Uint8Array<ArrayBuffer>;
}

/** What a compiled file says besides programs and weights. */
export interface Description {
  /** The class that loads it. */
  readonly target: string;
  /** What the class needs to know, as JSON. */
  readonly notes: Readonly<Record<string, unknown>>;
  /** Files that it needs, by name. */
  readonly assets: readonly Asset[];
}

/** An element type and how many elements. */
interface ValueEntry {
  readonly dtype: Dtype;
  readonly size: number;
}

interface PortEntry {
  readonly name: string;
  readonly shape: readonly number[];
  readonly dtype: Dtype;
}

/** A buffer of a program: a constant, or a value, which the program reads or writes. */
type BufferEntry = { readonly constant: number } | { readonly value: number; readonly written?: true };

interface StageEntry {
  readonly rate: Rate;
  /** The program's number; `null` where there is nothing to compute. */
  readonly program: number | null;
  readonly kernels: number;
  readonly arenaBytes: number;
  readonly buffers: readonly BufferEntry[];
}

/** What one function was compiled to for one combination of shapes. Its values are its arguments first, then others. */
interface FunctionEntry {
  readonly name: string;
  readonly arguments: readonly (PortEntry & { readonly rate: Rate })[];
  /** `replaces`: the number of the argument that it is written over. */
  readonly results: readonly (PortEntry & { readonly value: number; readonly replaces?: number })[];
  readonly values: readonly ValueEntry[];
  readonly stages: readonly StageEntry[];
  readonly weightBytes: number;
}

interface Manifest extends Compatibility {
  readonly target: string;
  readonly notes: Readonly<Record<string, unknown>>;
  readonly assets: readonly { readonly name: string; readonly bytes: number }[];
  readonly programs: readonly number[];
  readonly constants: readonly ValueEntry[];
  readonly functions: readonly FunctionEntry[];
}

/** What a file and the denoise that reads it must agree in. */
interface Compatibility {
  readonly format: number;
  readonly version: string;
  readonly schema: string;
  /** The start of the SHA-256 of the kernels' sources: packed weights mean something to those alone. */
  readonly kernels: string;
  readonly level: string;
}

/** A function to write. */
export interface FunctionToWrite {
  /** Its name in the file. */
  readonly name: string;
  /** Compiles it. */
  readonly specialize: () => Promise<Specialization>;
  /** Chooses its kernels; as they were recorded by default. */
  readonly variantOf: VariantOf | undefined;
}

/** What this denoise writes into a file for a level whose kernels were built from some sources. */
function compatibility(level: string, sources: string): Compatibility {
  const { version } = library().description;
  return { format: FORMAT, version, schema: schemaHash().join(" "), kernels: sources.slice(0, 16), level };
}

/**
 * Writes functions into a file, weights one after another.
 *
 * @param path The file
 * @param content The functions, where they run, what else there is to say
 * @throws {OutputError} If it cannot be written
 */
export async function writeCompiled(
  path: string,
  content: {
    device: Device;
    description: Description;
    functions: readonly FunctionToWrite[];
    signal: AbortSignal | undefined;
  },
): Promise<void> {
  const { device, description, signal } = content;
  const constants = new Constants();
  const programs: Uint8Array<ArrayBuffer>[] = [];
  const functions: FunctionEntry[] = [];
  const written = new Set<string>();
  for (const { name, specialize, variantOf } of content.functions) {
    const specialization = await specialize();
    const key = `${name}: ${portsKey(specialization.arguments)}`;
    if (written.has(key)) continue;
    written.add(key);
    functions.push(functionEntry(specialization, { name, constants, programs, variantOf }));
  }
  const { target, notes, assets } = description;
  const manifest: Manifest = {
    ...compatibility(device.level, device.sources),
    target,
    notes,
    assets: assets.map(({ name, bytes }) => ({ name, bytes: bytes.length })),
    programs: programs.map((bytes) => bytes.length),
    constants: constants.entries,
    functions,
  };
  const text = JSON.stringify(manifest);
  const digest = await digestOf([new TextEncoder().encode(text), ...programs, ...assets.map(({ bytes }) => bytes)]);
  const blob = (name: string, bytes: Uint8Array) => ({ ...padded(name, bytes.length), data: () => pad(bytes) });
  await writeSafetensors(path, [
    ...programs.map((bytes, i) => blob(`program.${i}`, bytes)),
    ...assets.map(({ bytes }, i) => blob(`asset.${i}`, bytes)),
    ...constants.nodes.map((n, i) => {
      const bytes = sizeOf(n.shape) * byteSize(n.dtype);
      return { ...padded(`constant.${i}`, bytes), data: () => piecesOf(n, { bytes, device, signal }) };
    }),
  ], { metadata: { [MANIFEST]: text, [DIGEST]: digest }, align: ALIGN });
}

const portsKey = (ports: readonly PortEntry[]) => shapesKey(Object.fromEntries(ports.map((port) => [port.name, port])));

const roundUp = (size: number) => Math.ceil(size / ALIGN) * ALIGN;

const padded = (name: string, bytes: number) => ({ name, dtype: "U8", shape: [roundUp(bytes)] }) as const;

function pad(bytes: Uint8Array): Uint8Array {
  const whole = new Uint8Array(roundUp(bytes.length));
  whole.set(bytes);
  return whole;
}

/** The bytes of a constant, a piece at a time; what was computed for this alone is let go. */
async function* piecesOf(
  n: Node,
  { bytes, device, signal }: { bytes: number; device: Device; signal: AbortSignal | undefined },
): AsyncGenerator<Uint8Array> {
  signal?.throwIfAborted();
  const { buffer, kept } = await constantValue(n, device);
  try {
    for (let at = 0; at < bytes; at += PIECE) yield buffer.read(Math.min(PIECE, bytes - at), at);
    if (roundUp(bytes) > bytes) yield new Uint8Array(roundUp(bytes) - bytes);
  } finally {
    if (!kept) buffer[Symbol.dispose]();
  }
}

/** The constants of all functions, each once. */
class Constants {
  readonly nodes: Node[] = [];
  readonly #numbers = new Map<string, number>();

  numberOf(n: Node): number {
    const key = constantKey(n);
    let number = this.#numbers.get(key);
    if (number === undefined) {
      this.#numbers.set(key, number = this.nodes.length);
      this.nodes.push(n);
    }
    return number;
  }

  get entries(): ValueEntry[] {
    return this.nodes.map(({ dtype, shape }) => ({ dtype, size: sizeOf(shape) }));
  }
}

function functionEntry(
  specialization: Specialization,
  { name, constants, programs, variantOf }: {
    name: string;
    constants: Constants;
    programs: Uint8Array<ArrayBuffer>[];
    variantOf: VariantOf | undefined;
  },
): FunctionEntry {
  const values: ValueEntry[] = [];
  const numbers = new Map<Node, number>();
  const valueOf = (n: Node): number => {
    let number = numbers.get(n);
    if (number === undefined) {
      numbers.set(n, number = values.length);
      values.push({ dtype: n.dtype, size: sizeOf(n.shape) });
    }
    return number;
  };
  const given = specialization.arguments.map(({ name, shape, dtype, node }) => {
    valueOf(node);
    return { name, shape, dtype, rate: node.rate };
  });
  const bufferOf = ({ external, written }: Storage): BufferEntry => {
    const n = external!;
    if (written) return { value: valueOf(n), written: true };
    // A leaf that is no argument has values of its own, whatever its rate.
    const isConstant = n.rate === RATE.constant || (n.op === "leaf" && !numbers.has(n));
    return isConstant ? { constant: constants.numberOf(n) } : { value: valueOf(n) };
  };
  const stages = specialization.stages.filter(({ rate }) => rate !== RATE.constant).map((stage) => {
    const { rate, kernels, arenaBytes, buffers } = stage;
    const bytes = stage.assemble(variantOf);
    const program = bytes ? programs.push(bytes) - 1 : null;
    return { rate, program, kernels, arenaBytes, buffers: bytes ? buffers.map(bufferOf) : [] };
  });
  const results = specialization.results.map(({ name, shape, dtype, node, replaces }) => ({
    name,
    shape,
    dtype,
    value: valueOf(node),
    ...(replaces && { replaces: valueOf(replaces) }),
  }));
  return { name, arguments: given, results, values, stages, weightBytes: specialization.info.weightBytes };
}

async function digestOf(parts: readonly Uint8Array<ArrayBuffer>[]): Promise<string> {
  const whole = new Blob([...parts]);
  return new Uint8Array(await crypto.subtle.digest("SHA-256", await whole.arrayBuffer())).toHex();
}

/** A file of compiled functions, read and checked. */
export interface CompiledFile {
  /** The file. */
  readonly path: string;
  /** The class that it is for. */
  readonly target: string;
  /** The instruction level that it runs on. */
  readonly level: string;
  /** What the class noted. */
  readonly notes: Readonly<Record<string, unknown>>;
  /** Files within it, by name. */
  readonly assets: ReadonlyMap<string, Uint8Array<ArrayBuffer>>;
  /** What functions were compiled to, by name. */
  readonly functions: ReadonlyMap<string, readonly Specialization[]>;
}

/**
 * Whether a safetensors file holds compiled functions.
 *
 * @param file The open file
 * @returns Whether it has a manifest
 */
export function isCompiled({ metadata }: Pick<SafetensorsFile, "metadata">): boolean {
  return metadata[MANIFEST] !== undefined;
}

/**
 * Reads a file of compiled functions. Its weights are mapped when they are first used.
 *
 * @param path The file
 * @returns The functions, files and notes
 * @throws {CheckpointError} If it is broken, or was made by another denoise or for a level that this CPU lacks
 */
export async function readCompiled(path: string): Promise<CompiledFile> {
  await loadLibrary();
  const file = openSafetensors(path);
  return await new Reader(file).read();
}

/**
 * A function of a file.
 *
 * @param file The file
 * @param name The function's name
 * @param device Where it runs, at the file's level
 * @returns The function; called with other shapes than those in the file, it says which there are
 */
export function functionOf<I, O>(file: CompiledFile, name: string, device: Device): CompiledFunction<I, O> {
  const known = new Map((file.functions.get(name) ?? []).map((found) => [portsKey(found.arguments), found]));
  return new CompiledFunction((inputs: I) => {
    const key = shapesKey(inputs as Record<string, Tensor>);
    const found = known.get(key);
    if (found) return found;
    const shapes = known.size === 0 ? "not at all" : `for ${[...known.keys()].join("; or ")}`;
    throw new RangeError(`Cannot run ${name} on ${key}: ${file.path} has it ${shapes}`);
  }, { name, device });
}

const isObject = (value: unknown): value is Record<string, unknown> =>
  typeof value === "object" && value !== null && !Array.isArray(value);
const isCount = (value: unknown): value is number => Number.isSafeInteger(value) && (value as number) >= 0;
const isText = (value: unknown): value is string => typeof value === "string";
const isShape = (value: unknown): value is number[] =>
  Array.isArray(value) && value.length <= MAX_RANK && value.every(isCount) && Number.isSafeInteger(sizeOf(value));
const isDtype = (value: unknown): value is Dtype => isText(value) && Object.hasOwn(DTYPES, value);

/** Reads one file; believes nothing of it. */
class Reader {
  readonly #file: SafetensorsFile;

  constructor(file: SafetensorsFile) {
    this.#file = file;
  }

  #refuse(what: string, details: { key?: string; cause?: unknown } = {}): never {
    throw new CheckpointError(`Cannot load ${this.#file.path} as ${what}: compile and save it again`, {
      file: this.#file.path,
      ...details,
    });
  }

  #need(condition: boolean, what: string): asserts condition {
    if (!condition) this.#refuse(`its manifest is broken (${what})`, { key: MANIFEST });
  }

  #list(value: unknown, what: string): Record<string, unknown>[] {
    this.#need(Array.isArray(value) && value.every(isObject), `${what} are no list of objects`);
    return value as Record<string, unknown>[];
  }

  async read(): Promise<CompiledFile> {
    const text = this.#file.metadata[MANIFEST];
    if (text === undefined) this.#refuse("it is no file of compiled functions");
    let manifest: unknown;
    try {
      manifest = JSON.parse(text);
    } catch (cause) {
      this.#refuse("its manifest is not JSON", { key: MANIFEST, cause });
    }
    this.#need(isObject(manifest), "no object");
    await this.#checkCompatibility(manifest);
    const { target, notes, assets, programs, constants, functions } = manifest;
    this.#need(isText(target) && isObject(notes), "no target or notes");
    const files = this.#list(assets, "assets").map(({ name, bytes }, i) => {
      this.#need(isText(name) && isCount(bytes), `asset ${i}`);
      return { name, bytes: this.#blob(`asset.${i}`, bytes) };
    });
    this.#need(Array.isArray(programs) && programs.every(isCount), "programs");
    const code = programs.map((bytes, i) => this.#blob(`program.${i}`, bytes));
    const digest = await digestOf([new TextEncoder().encode(text), ...code, ...files.map(({ bytes }) => bytes)]);
    if (digest !== this.#file.metadata[DIGEST]) {
      this.#refuse(`its programs and files have the SHA-256 ${digest} and it says ${this.#file.metadata[DIGEST]}`, {
        key: DIGEST,
      });
    }
    const weights = this.#list(constants, "constants").map((entry, i) => this.#constant(entry, i));
    const found = new Map<string, Specialization[]>();
    for (const entry of this.#list(functions, "functions")) {
      this.#need(isText(entry.name), "a function has no name");
      const specialization = this.#function(entry, { weights, code });
      found.set(entry.name, [...found.get(entry.name) ?? [], specialization]);
    }
    return {
      path: this.#file.path,
      target,
      level: manifest.level as string,
      notes,
      assets: new Map(files.map(({ name, bytes }) => [name, bytes])),
      functions: found,
    };
  }

  async #checkCompatibility(manifest: Record<string, unknown>): Promise<void> {
    const { level } = manifest;
    this.#need(isText(level), "no level");
    const { description: { levels }, sources } = library();
    // Whether there is such a device shows when it is opened.
    const isCuda = level === "cuda" || level === "cuda-emulated";
    const own = isCuda ? await cudaSources(level) ?? "" : sources;
    for (const [name, wanted] of Object.entries(compatibility(level, own))) {
      if (manifest[name] === wanted) continue;
      this.#refuse(`its ${name} is ${JSON.stringify(manifest[name])}, and this denoise has ${JSON.stringify(wanted)}`, {
        key: name,
      });
    }
    if (isCuda || levels.includes(level)) return;
    throw new CheckpointError(
      `Cannot load ${this.#file.path} as it was compiled for ${level}, which this CPU lacks (it has ${
        levels.join(", ")
      }): compile and save it on this machine`,
      { file: this.#file.path, key: "level" },
    );
  }

  /** A small tensor's bytes, without what fills it up. */
  #blob(name: string, bytes: number): Uint8Array<ArrayBuffer> {
    this.#place(name, bytes);
    return readTensor(this.#file, name).subarray(0, bytes);
  }

  /** Where a tensor of a length lies. */
  #place(name: string, bytes: number): number {
    const tensor = this.#file.tensors.get(name);
    if (!tensor) this.#refuse(`it lacks ${name}`, { key: name });
    if (tensor.byteLength !== roundUp(bytes) || tensor.offset % ALIGN !== 0) {
      this.#refuse(
        `${name} has ${tensor.byteLength} bytes at ${tensor.offset} in place of ${roundUp(bytes)} at a multiple of ` +
          `${ALIGN}`,
        { key: name },
      );
    }
    return tensor.offset;
  }

  /** A constant as a leaf of the file's. */
  #constant({ dtype, size }: Record<string, unknown>, i: number): Node {
    this.#need(isDtype(dtype) && isCount(size), `constant ${i}`);
    const byteLength = size * byteSize(dtype);
    const offset = this.#place(`constant.${i}`, byteLength);
    const { path, stamp } = this.#file;
    return fromSource({ kind: "file", path, offset, byteLength, stamp }, { shape: [size], dtype }).node;
  }

  #port({ name, shape, dtype }: Record<string, unknown>): PortEntry {
    this.#need(isText(name) && isShape(shape) && isDtype(dtype), "an argument or result");
    return { name, shape, dtype };
  }

  #function(
    entry: Record<string, unknown>,
    { weights, code }: { weights: readonly Node[]; code: readonly Uint8Array<ArrayBuffer>[] },
  ): Specialization {
    const given = this.#list(entry.arguments, "arguments");
    const ports = given.map((argument) => this.#port(argument));
    this.#need(new Set(ports.map(({ name }) => name)).size === ports.length, "arguments of one name");
    const values = this.#list(entry.values, "values").map(({ dtype, size }, i) => {
      this.#need(isDtype(dtype) && isCount(size), `value ${i}`);
      const rate = i < given.length ? given[i]!.rate : RATE.step;
      this.#need(rate === RATE.run || rate === RATE.step, `the rate of argument ${i}`);
      return leaf(ports[i]?.shape ?? [size], { dtype, rate, name: ports[i]?.name ?? "" });
    });
    const sizes = (entry.values as unknown as ValueEntry[]).map(({ size }) => size);
    const fits = ({ shape, dtype }: PortEntry, i: number) => values[i]?.dtype === dtype && sizes[i] === sizeOf(shape);
    this.#need(ports.every(fits), "arguments of other sizes than their values");
    const stages = this.#stages(entry.stages, { values, sizes, arguments: given.length, weights, code });
    const last = new Set(stages.at(-1)!.buffers.filter(({ written }) => written).map(({ external }) => external));
    const replaced = new Set<number>();
    const results = this.#list(entry.results, "results").map((result): Port => {
      const port = this.#port(result);
      const { value, replaces } = result;
      this.#need(isCount(value) && fits(port, value) && last.has(values[value]!), `the result ${port.name}`);
      if (replaces === undefined) return { ...port, node: values[value]! };
      const mayReplace = isCount(replaces) && replaces < given.length && fits(port, replaces) &&
        !replaced.has(replaces);
      this.#need(mayReplace, `what ${port.name} replaces`);
      replaced.add(replaces);
      return { ...port, node: values[value]!, replaces: values[replaces]! };
    });
    this.#need(isCount(entry.weightBytes), "no bytes of weights");
    const named = ports.map((port, i): Port => ({ ...port, node: values[i]! }));
    const found = { arguments: named, results, stages: [NOTHING, ...stages] };
    return {
      ...found,
      info: {
        kernels: stages.at(-1)!.kernels,
        arenaBytes: Math.max(...stages.map(({ arenaBytes }) => arenaBytes)),
        weightBytes: entry.weightBytes,
        valueBytes: valueBytes(found),
        milliseconds: 0,
      },
    };
  }

  #stages(
    entries: unknown,
    { values, sizes, arguments: given, weights, code }: {
      values: readonly Node[];
      sizes: readonly number[];
      arguments: number;
      weights: readonly Node[];
      code: readonly Uint8Array<ArrayBuffer>[];
    },
  ): Stage[] {
    const list = this.#list(entries, "stages");
    this.#need(list.length === 1 || list.length === 2, "a function has one stage or two");
    // What a stage may read: the arguments that change no more often, and what was written before.
    const known = new Map<Node, Rate>(values.slice(0, given).map((n) => [n, n.rate]));
    return list.map((entry, index) => {
      const rate = (index + 1) as Rate;
      const { program, kernels, arenaBytes } = entry;
      this.#need(entry.rate === rate && isCount(kernels) && isCount(arenaBytes), `stage ${index}`);
      this.#need(program === null ? kernels === 0 : isCount(program) && program < code.length, `program of a stage`);
      const written: Node[] = [];
      const buffers = this.#list(entry.buffers, "buffers").map((buffer): Storage => {
        if (buffer.constant !== undefined) {
          const n = weights[buffer.constant as number];
          this.#need(n !== undefined, `constant ${buffer.constant}`);
          return { dtype: n.dtype, size: n.shape[0]!, external: n, written: false };
        }
        const number = buffer.value as number;
        const n = values[number];
        this.#need(n !== undefined, `value ${number}`);
        const writes = buffer.written === true;
        // What an earlier stage wrote may be written again, where it is a result.
        const mayWrite = number >= given && !written.includes(n);
        this.#need(writes ? mayWrite : (known.get(n) ?? Infinity) <= rate, "a buffer");
        if (writes) written.push(n);
        return { dtype: n.dtype, size: sizes[number]!, external: n, written: writes };
      });
      for (const n of written) if (!known.has(n)) known.set(n, rate);
      const bytes = program === null ? undefined : code[program as number];
      if (bytes) this.#checkProgram(bytes);
      return { rate, calls: [], assemble: () => bytes, kernels, arenaBytes, buffers };
    });
  }

  /** Has the library check a program now, so that a broken file is not found out after a minute of work. */
  #checkProgram(bytes: Uint8Array<ArrayBuffer>): void {
    try {
      using _ = new NativeProgram(bytes);
    } catch (cause) {
      if (!(cause instanceof NativeError)) throw cause;
      this.#refuse(`a program of it is refused (${cause.message})`, { cause });
    }
  }
}

/** The stage of what never changes: it is in the file. */
const NOTHING: Stage = {
  rate: RATE.constant,
  calls: [],
  assemble: () => undefined,
  kernels: 0,
  arenaBytes: 0,
  buffers: [],
};
