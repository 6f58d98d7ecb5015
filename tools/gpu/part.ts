/**
 * What a GPU is asked, in parts of cells: each cell is a process of its own and gives a row, so that what was measured
 * stays, whatever a later cell does.
 *
 * @module
 */

import type { DeviceName } from "../../lib/tensor/device.ts";

/** Where cells run, and how large they are. */
export interface Setting {
  /** The device. */
  readonly device: DeviceName;
  /** Whether everything is as small as it can be, for a device that is emulated. */
  readonly small: boolean;
  /** The folder of results, and of what cells leave for each other. */
  readonly out: string;
  /** A Python with PyTorch, for ceilings and the peer. */
  readonly python: string;
}

/** What a cell found, by column. */
export type Row = Readonly<Record<string, string | number | boolean>>;

/** Cells that ask the same of several things. */
export interface Part {
  /** Its name. */
  readonly name: string;
  /** What it asks. */
  readonly about: string;
  /** Its cells by name, most telling first. */
  cells(setting: Setting): Promise<readonly string[]>;
  /** Runs a cell, which may find several things. */
  run(cell: string, setting: Setting): Promise<Row | readonly Row[]>;
  /** The part whose rows of the same columns these are held against, and the column of the time. */
  readonly beside?: { readonly part: string; readonly columns: readonly string[]; readonly time: string };
}

/** A line of the file of results. */
export interface Result {
  readonly part: string;
  readonly cell: string;
  /** What was found, where the cell did not fail. */
  readonly rows?: readonly Row[];
  /** Why the cell failed. */
  readonly error?: string;
  /** How long it took, and when it was done. */
  readonly seconds: number;
  readonly at: string;
}

/**
 * The results so far: the last line of a cell is the one that counts.
 *
 * @param out The folder of results
 * @returns By part and cell
 */
export async function readResults(out: string): Promise<Map<string, Result>> {
  const text = await Deno.readTextFile(`${out}/results.jsonl`).catch(() => "");
  const results = new Map<string, Result>();
  for (const line of text.split("\n").filter(Boolean)) {
    const result = JSON.parse(line) as Result;
    results.set(keyOf(result.part, result.cell), result);
  }
  return results;
}

/**
 * Adds a line to the results.
 *
 * @param out The folder of results
 * @param result The line
 */
export async function addResult(out: string, result: Result): Promise<void> {
  await Deno.mkdir(out, { recursive: true });
  await Deno.writeTextFile(`${out}/results.jsonl`, `${JSON.stringify(result)}\n`, { append: true });
}

/**
 * What a result is known by.
 *
 * @param part The part's name
 * @param cell The cell's name
 * @returns A text
 */
export const keyOf = (part: string, cell: string): string => `${part} ${cell}`;

/**
 * Runs a program that is no longer needed after some seconds.
 *
 * @param command The program and its arguments
 * @param options What its environment has besides, and the seconds
 * @returns What it printed
 * @throws {Error} If it failed, with the end of what it said, or was stopped
 */
export async function output(
  command: readonly string[],
  options: { env?: Record<string, string>; seconds: number },
): Promise<string> {
  const [program, ...args] = command;
  const signal = AbortSignal.timeout(1000 * options.seconds);
  const { success, stdout, stderr } = await new Deno.Command(program!, {
    args,
    env: options.env ?? {},
    signal,
    stdin: "null",
  }).output();
  const text = new TextDecoder();
  if (success) return text.decode(stdout);
  if (signal.aborted) throw new Error(`stopped after ${options.seconds.toFixed(0)} seconds`);
  const said = text.decode(stderr).trim() || text.decode(stdout).trim();
  throw new Error(said.split("\n").slice(-12).join("\n"));
}
