/**
 * Timing kernels as they will run: small programs of a few calls, over memory of their own, alternated.
 *
 * @module
 */

import { NativeBuffer, NativeProgram, runProgram } from "../../ffi/native.ts";
import { compileGraph } from "../graph/compile.ts";
import { byteSize } from "../graph/dtypes.ts";
import type { Instruction, Storage, View } from "../graph/lower.ts";
import { leaf, type Node, RATE } from "../graph/node.ts";
import { planArena } from "../graph/plan.ts";
import { assemble } from "../graph/program.ts";
import type { Device } from "../tensor/device.ts";

/** How kernels are timed. */
export interface MeasureOptions {
  /** Where they run. */
  readonly device: Device;
  /**
   * Bytes of weights that a real run reads from one use of a weight to the next: as many are read here, so that what a
   * run would not find in a cache is not found here either. One number for all candidates, or one for each. 0, the
   * default: the same weight again and again.
   */
  readonly workingSet?: number | readonly number[] | undefined;
  /** Milliseconds to spend on all candidates together, 60 by default; each is timed twice at least. */
  readonly milliseconds?: number | undefined;
  /**
   * The share of a candidate's times that lie below what counts: 0.5, the median, by default. Less hears less of
   * neighbours on the machine, who make every second time of a short call that several threads share a long one.
   */
  readonly quantile?: number | undefined;
  /** Stops between two runs. */
  readonly signal?: AbortSignal | undefined;
}

/**
 * The kernel calls that a graph's value takes each time that it is computed: without the packing of weights and all else
 * that is computed once. What changes with a run counts as such, so arguments are recorded as leaves of rate `step`.
 *
 * @param outputs The outputs as recorded.
 * @returns The calls, in order.
 */
export function callsOf(outputs: readonly Node[]): readonly Instruction[] {
  return compileGraph(outputs).stages.at(-1)!.calls;
}

/**
 * Times candidates, each a few kernel calls that do one thing, one after another and again.
 *
 * What the calls read and do not write is bound to memory with ordinary numbers in every type; where it is constant, it
 * is a weight, and taken in turn from as many copies as the working set asks for.
 *
 * @param candidates The calls of each.
 * @param options Where, and how long.
 * @returns The seconds of each: the sum over its calls of their medians, or of another quantile that was asked for.
 */
export async function timeCalls(
  candidates: readonly (readonly Instruction[])[],
  options: MeasureOptions,
): Promise<number[]> {
  const { device, milliseconds = 60, signal, workingSet = 0, quantile = 0.5 } = options;
  const end = performance.now() + milliseconds;
  using memory = new Memory(device);
  const trials: Trial[] = [];
  try {
    for (const [i, calls] of candidates.entries()) {
      signal?.throwIfAborted();
      const bytes = typeof workingSet === "number" ? workingSet : workingSet[i]!;
      trials.push(await makeTrial(calls, { device, memory, workingSet: bytes }));
    }
    for (let round = 0; round < 2 || (round < MOST_ROUNDS && performance.now() < end); round++) {
      for (const trial of trials) {
        signal?.throwIfAborted();
        for (const times of await runTrial(trial, device)) {
          times.forEach((time, call) => trial.samples[call]!.push(time));
        }
      }
    }
    return trials.map(({ samples }) => samples.reduce((sum, times) => sum + quantileOf(times, quantile), 0));
  } finally {
    for (const trial of trials) trial.program[Symbol.dispose]();
  }
}

/** Enough for a median that a disturbed run does not move. */
const MOST_ROUNDS = 25;
/** Seconds of a run that are worth its start. */
const RUN_SECONDS = 0.002;
/** The most copies of a weight: those of many more are so small that their reading does not count. */
const MOST_COPIES = 128;

/** Bytes of weights in a second that even slow memory gives. */
const SLOW_MEMORY = 10e9;
/** The same of a device's own. */
const SLOW_DEVICE_MEMORY = 500e9;
/** How many times longer than that a candidate takes whose speed does not follow from where its weights are. */
const COMPUTE_BOUND = 5;

/** A program of a candidate's calls, several times over. */
interface Trial {
  readonly program: NativeProgram;
  readonly buffers: readonly NativeBuffer[];
  /** How often the calls are repeated. */
  readonly repeats: number;
  /** How many kernel calls a repetition has. */
  readonly calls: number;
  /** Seconds by call. */
  readonly samples: readonly number[][];
}

async function makeTrial(
  calls: readonly Instruction[],
  { device, memory, workingSet }: { device: Device; memory: Memory; workingSet: number },
): Promise<Trial> {
  let seconds: number;
  {
    const once = trialOf(calls, { repeats: 1, copies: 1, memory });
    using _ = once.program;
    await runTrial(once, device);
    seconds = (await runTrial(once, device))[0]!.reduce((a, b) => a + b, 0);
  }
  const weights = readBy(calls).filter(isWeight).reduce((sum, { size, dtype }) => sum + size * byteSize(dtype), 0);
  // Twice the last-level cache leaves nothing of a copy in it until its turn comes again.
  const rotated = Math.min(workingSet, 2 * (device.description.cacheBytes || lastLevelCache()));
  const isBound = seconds > COMPUTE_BOUND * weights / (device.memory ? SLOW_DEVICE_MEMORY : SLOW_MEMORY);
  const copies = isBound ? 1 : Math.min(MOST_COPIES, Math.max(1, Math.ceil(rotated / weights)));
  const repeats = Math.max(copies, Math.min(64, Math.ceil(RUN_SECONDS / Math.max(seconds, 1e-7))));
  return trialOf(calls, { repeats, copies, memory });
}

/** Seconds of each call of each repetition. */
async function runTrial({ program, buffers, repeats, calls }: Trial, device: Device): Promise<Float64Array[]> {
  const times = new Float64Array(repeats * calls);
  await runProgram({ device: device.native, program }, buffers, { times });
  const found = Array.from({ length: repeats }, (_, i) => times.subarray(i * calls, (i + 1) * calls));
  // The first of several wakes the threads, which in a real run are awake.
  return repeats > 4 ? found.slice(1) : found;
}

function trialOf(
  calls: readonly Instruction[],
  { repeats, copies, memory }: { repeats: number; copies: number; memory: Memory },
): Trial {
  const given = readBy(calls);
  const renewed = new Map<Storage, Storage[]>();
  const externals: Storage[] = [];
  const buffers: NativeBuffer[] = [];

  /** What stands for a storage in a repetition: a bound buffer where it is given, a piece of the arena elsewhere. */
  const renew = (storage: Storage, repeat: number): Storage => {
    const { dtype, size } = storage;
    const copy = isWeight(storage) ? repeat % copies : 0;
    if (!renewed.has(storage)) renewed.set(storage, []);
    const copiesOf = renewed.get(storage)!;
    if (copiesOf[copy]) return copiesOf[copy];
    const ordinal = given.indexOf(storage);
    if (ordinal < 0) return copiesOf[copy] = { dtype, size, written: true };
    const bound = { dtype, size, written: false, external: ANY };
    externals.push(bound);
    buffers.push(memory.take(size * byteSize(dtype), { dtype, use: `${ordinal} ${copy}` }));
    return copiesOf[copy] = bound;
  };

  const view = (v: View | null, repeat: number) => v && { ...v, storage: renew(v.storage, repeat) };
  const instructions: Instruction[] = [];
  for (let repeat = 0; repeat < repeats; repeat++) {
    for (const call of calls) {
      instructions.push({ ...call, operands: call.operands.map((operand) => view(operand, repeat)) });
    }
  }
  const program = new NativeProgram(assemble({ instructions, externals }, planArena(instructions)));
  return { program, buffers, repeats, calls: calls.length, samples: calls.map(() => []) };
}

/** Any node marks a storage as one that a run binds. */
const ANY = leaf([], { dtype: "f32", rate: RATE.step });

/** What calls read before they write it. */
function readBy(calls: readonly Instruction[]): Storage[] {
  const written = new Set<Storage>();
  const given = new Set<Storage>();
  for (const { operands } of calls) {
    for (const operand of operands.slice(0, -1)) {
      if (operand && !written.has(operand.storage)) given.add(operand.storage);
    }
    written.add(operands.at(-1)!.storage);
  }
  return [...given];
}

const isWeight = ({ external }: Storage) => external?.rate === RATE.constant;

/** Bytes that are ordinary numbers in every type and packed form: floats from 1e-4 to 2, no subnormals, no NaN. */
const ORDINARY = crypto.getRandomValues(new Uint8Array(1 << 16)).map((byte) => 0x38 | byte & 7);
/** Ids are 0, as they must be rows of a table. */
const ZEROS = new Uint8Array(1 << 16);

/** Buffers, which candidates take turns in. */
class Memory implements Disposable {
  readonly #buffers = new Map<string, NativeBuffer>();
  readonly #device: Device;

  constructor(device: Device) {
    this.#device = device;
  }

  take(bytes: number, { dtype, use }: { dtype: Storage["dtype"]; use: string }): NativeBuffer {
    const key = `${bytes} ${dtype} ${use}`;
    let buffer = this.#buffers.get(key);
    if (!buffer) {
      this.#buffers.set(key, buffer = NativeBuffer.create(bytes, this.#device.memory));
      const pattern = dtype === "i32" ? ZEROS : ORDINARY;
      for (let at = 0; at < bytes; at += pattern.length) {
        buffer.write(pattern.subarray(0, Math.min(pattern.length, bytes - at)), at);
      }
    }
    return buffer;
  }

  [Symbol.dispose](): void {
    for (const buffer of this.#buffers.values()) buffer[Symbol.dispose]();
  }
}

let cacheBytes: number | undefined;

/** The size of the CPU's last cache in bytes. */
function lastLevelCache(): number {
  return cacheBytes ??= readCacheSizes();
}

/** What is assumed where the system does not say. */
const ASSUMED_CACHE = 64 << 20;

function readCacheSizes(): number {
  let largest = 0;
  for (let index = 0; index < 8; index++) {
    const path = `/sys/devices/system/cpu/cpu0/cache/index${index}/size`;
    if (Deno.permissions.querySync({ name: "read", path }).state !== "granted") break;
    try {
      const [, count, unit] = /^(\d+)([KMG])/.exec(Deno.readTextFileSync(path))!;
      largest = Math.max(largest, Number(count) * { K: 1 << 10, M: 1 << 20, G: 1 << 30 }[unit as "K" | "M" | "G"]);
    } catch {
      break;
    }
  }
  return largest || ASSUMED_CACHE;
}

function quantileOf(values: readonly number[], share: number): number {
  const sorted = values.toSorted((a, b) => a - b);
  return sorted[Math.floor(share * sorted.length)]!;
}
