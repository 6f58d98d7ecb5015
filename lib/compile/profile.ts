/**
 * Where the time goes: each kernel call of a run with its seconds, by operation and as a trace.
 *
 * @module
 */

import { allowedSeconds, costOf, type Limits, shapesOf } from "../graph/cost.ts";
import type { Instruction } from "../graph/lower.ts";
import type { Device, ProgramRun } from "../tensor/device.ts";
import { replaceFile } from "../tensor/output.ts";

/** The calls of one operation. */
export interface ProfileRow {
  /** The function that they belong to, such as `transformer`. */
  readonly program: string;
  /** The kernel, such as `linear`. */
  readonly op: string;
  /** The shapes of what they read and wrote, in rows by shape. */
  readonly shapes?: string;
  /** How many there are. */
  readonly calls: number;
  /** Their seconds together. */
  readonly seconds: number;
  /** Of the seconds of all kernels. */
  readonly share: number;
  /** Bytes that they read and write at least. */
  readonly bytes: number;
  /** Operations; a multiply-add counts as two. */
  readonly operations: number;
  /** The time that the limits allow over the time that it took: above 1 where caches beat memory. */
  readonly ofLimit?: number;
}

/** What stands for a kernel in programs that were compiled ahead of time: their files do not name them. */
const UNKNOWN = "compiled ahead of time";

/** A row as it is added up. */
interface Sum {
  readonly program: string;
  readonly op: string;
  readonly shapes: string | undefined;
  calls: number;
  seconds: number;
  bytes: number;
  operations: number;
  /** The seconds that the limits allow. */
  allowed: number;
}

function addCost(sum: Sum, call: Instruction, limits: Limits | undefined): void {
  const cost = costOf(call);
  sum.bytes += cost.bytes;
  sum.operations += cost.operations;
  if (limits) sum.allowed += allowedSeconds(cost, limits);
}

/** What a profile is made with. */
export interface ProfileOptions {
  /** What the machine can do, where the share of that is wanted. */
  readonly limits?: Limits | undefined;
}

/** What ran on a device for some time. */
export class Profile {
  readonly #runs: readonly ProgramRun[];
  readonly #limits: Limits | undefined;

  /** @internal */
  constructor(runs: readonly ProgramRun[], options: ProfileOptions) {
    this.#runs = runs;
    this.#limits = options.limits;
  }

  /**
   * The table of what ran.
   *
   * @param options `shapes`: a row for each combination of shapes, not one for all calls of an operation
   * @returns Rows, those that took longest first
   */
  rows(options: { shapes?: boolean } = {}): ProfileRow[] {
    const sums = new Map<string, Sum>();
    for (const { name, calls, seconds } of this.#runs) {
      for (const [i, time] of seconds.entries()) {
        const call = calls[i];
        const shapes = call && options.shapes ? shapesOf(call) : undefined;
        const key = [name, call?.kernel, shapes].join("\n");
        let sum = sums.get(key);
        if (!sum) {
          const op = call?.kernel ?? UNKNOWN;
          sums.set(key, sum = { program: name, op, shapes, calls: 0, seconds: 0, bytes: 0, operations: 0, allowed: 0 });
        }
        sum.calls++;
        sum.seconds += time;
        if (call) addCost(sum, call, this.#limits);
      }
    }
    const total = sums.values().reduce((all, { seconds }) => all + seconds, 0);
    return [...sums.values()].toSorted((a, b) => b.seconds - a.seconds).map(({ allowed, shapes, ...sum }) => ({
      ...sum,
      ...(shapes === undefined ? {} : { shapes }),
      share: sum.seconds / total,
      ...(this.#limits && sum.op !== UNKNOWN ? { ofLimit: allowed / sum.seconds } : {}),
    }));
  }

  /**
   * Writes a trace that Chrome (`chrome://tracing`) and Perfetto show: programs, and below them their kernels.
   *
   * @param path The JSON file
   * @throws {OutputError} If it cannot be written
   */
  async save(path: string): Promise<void> {
    await replaceFile(path, JSON.stringify({ traceEvents: this.#events(), displayTimeUnit: "ms" }));
  }

  #events(): Record<string, unknown>[] {
    const origin = this.#runs[0]?.start ?? 0;
    const slice = (name: string, thread: number, start: number, end: number, args = {}) => {
      return { name, ph: "X", pid: 1, tid: thread, ts: 1000 * (start - origin), dur: 1000 * (end - start), args };
    };
    return this.#runs.flatMap(({ name, start, end, calls, seconds }) => {
      let at = start;
      const kernels = Array.from(seconds, (time, i) => {
        const call = calls[i];
        if (!call) return slice(UNKNOWN, 2, at, at += 1000 * time);
        const { bytes, operations } = costOf(call);
        const args = { shapes: shapesOf(call), bytes, operations };
        return slice(call.kernel, 2, at, at += 1000 * time, args);
      });
      return [slice(name, 1, start, end), ...kernels];
    });
  }
}

/**
 * Looks at all that runs on a device meanwhile.
 *
 * @param device The device
 * @param run What is done
 * @param options What the machine can do
 * @returns The profile, and what came of the run
 */
export async function profile<T>(
  device: Device,
  run: () => Promise<T>,
  options: ProfileOptions = {},
): Promise<{ profile: Profile; result: T }> {
  const runs: ProgramRun[] = [];
  const before = device.observer;
  device.observer = (seen) => {
    runs.push(seen);
    before?.(seen);
  };
  try {
    return { result: await run(), profile: new Profile(runs, options) };
  } finally {
    device.observer = before;
  }
}
