/**
 * Taking turns and printing what came of it.
 *
 * @module
 */

import { release } from "./tensors.ts";

/** One side of a comparison: seconds of each call, for as many calls as fit in some seconds. */
export type Side = (seconds: number) => Promise<number[]>;

/** Seconds of a call. */
export interface Timing {
  /** The median over the rounds of the median of each round. */
  readonly median: number;
  /** The shortest of all calls. */
  readonly min: number;
}

/** How a comparison is made. */
export interface AlternateOptions {
  /** How often each side has its turn; 7 by default. */
  readonly rounds?: number;
  /** Seconds of a turn; a turn has at least one call. */
  readonly seconds?: number;
}

/** Longer than OpenMP's and our own idle threads watch for more work before they sleep. */
const REST = 30;

/**
 * Makes a side of a function of ours.
 *
 * @param call What a call does.
 * @returns The side; its first call warms the caches, which the other side has just filled, and does not count.
 */
export function ours(call: () => Promise<unknown>): Side {
  return async (seconds) => {
    release(await call());
    const calls: number[] = [];
    const start = performance.now();
    for (let now = start; calls.length === 0 || now - start < 1000 * seconds;) {
      release(await call());
      const end = performance.now();
      calls.push((end - now) / 1000);
      now = end;
    }
    return calls;
  };
}

/**
 * Times sides in turns on an otherwise idle machine, so that what changes with time (clock, neighbours) meets all alike.
 *
 * @param sides The sides, by name.
 * @param options Rounds and seconds.
 * @returns Each side's timing.
 */
export async function alternate<K extends string>(
  sides: Readonly<Record<K, Side>>,
  options: AlternateOptions = {},
): Promise<Record<K, Timing>> {
  const { rounds = 7, seconds = 0.15 } = options;
  const entries = Object.entries(sides) as [K, Side][];
  const calls = new Map<K, number[][]>(entries.map(([name]) => [name, []]));
  for (let round = 0; round < rounds; round++) {
    for (const [name, side] of entries) {
      await new Promise((resolve) => setTimeout(resolve, REST));
      calls.get(name)!.push(await side(seconds));
    }
  }
  return Object.fromEntries(
    entries.map(([name]) => {
      const turns = calls.get(name)!;
      return [name, { median: median(turns.map(median)), min: Math.min(...turns.flat()) }];
    }),
  ) as Record<K, Timing>;
}

/**
 * The middle of some numbers.
 *
 * @param values At least one number.
 * @returns The median.
 */
export function median(values: readonly number[]): number {
  const sorted = values.toSorted((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 === 1 ? sorted[middle]! : (sorted[middle - 1]! + sorted[middle]!) / 2;
}

/** Prints a markdown table line by line, as its rows are measured. */
export class Table {
  readonly #columns: readonly string[];

  /** Prints the head. */
  constructor(columns: readonly string[]) {
    this.#columns = columns;
    console.log(`\n| ${columns.join(" | ")} |`);
    console.log(`|${columns.map((_, i) => i === 0 ? "---|" : "--:|").join("")}`);
  }

  /** Prints a row: a cell for each column. */
  row(...cells: readonly string[]): void {
    if (cells.length !== this.#columns.length) {
      throw new TypeError(`A row of this table has ${this.#columns.length} cells, got ${cells.length}`);
    }
    console.log(`| ${cells.join(" | ")} |`);
  }
}

/** Seconds as milliseconds, with three digits that mean something. */
export function milliseconds(seconds: number): string {
  const value = 1000 * seconds;
  return `${value >= 100 ? value.toFixed(0) : value.toPrecision(3)} ms`;
}

/** A ratio: above 1 where we are faster. The second number is that of the shortest calls. */
export function ratio(peer: Timing, own: Timing): string {
  return `${(peer.median / own.median).toFixed(2)} (${(peer.min / own.min).toFixed(2)})`;
}

/** GFLOP/s of some work in some seconds. */
export function gflops(flop: number, seconds: number): string {
  return (flop / seconds / 1e9).toFixed(0);
}

/** A share in percent. */
export function percent(share: number): string {
  return `${(100 * share).toFixed(0)} %`;
}
