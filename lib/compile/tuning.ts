/**
 * The tuning file: what was measured, by machine and problem, for all processes.
 *
 * Each process reads it once and adds what it measures. A write happens under a lock, into what the file holds by then,
 * beside its place and then into it: processes lose nothing of each other, and a reader finds a whole file.
 *
 * @module
 */

import { dirname } from "node:path";
import { replaceFile } from "../tensor/output.ts";

/** What was measured of a problem. */
export interface Tuning {
  /** The fastest way, by its name. */
  readonly chosen: string;
  /** The median microseconds of each way. */
  readonly microseconds: Readonly<Record<string, number>>;
}

type Section = Map<string, Tuning>;

const FORMAT = 2;
/** Machines, levels and libraries that a file remembers; the one that was written longest ago goes first. */
const MOST_SECTIONS = 32;

/** The tunings of one machine. */
export class TuningFile {
  /** The file; `undefined` where nothing is remembered. */
  readonly path: string | undefined;
  /** The device and its kernels: what the times hold for. */
  readonly machine: string;
  readonly #known: Section;
  readonly #added: Section = new Map();
  #ours: boolean;

  private constructor(path: string | undefined, machine: string, found: Map<string, Section> | "foreign") {
    this.path = path;
    this.machine = machine;
    this.#ours = found !== "foreign";
    this.#known = found === "foreign" ? new Map() : found.get(machine) ?? new Map();
  }

  /**
   * Opens a tuning file, which need not be there. One that is broken or something else is left alone, with a warning.
   *
   * @param path The file; `undefined` to remember nothing
   * @param machine What times hold for
   * @returns The tunings
   */
  static async open(path: string | undefined, machine: string): Promise<TuningFile> {
    return new TuningFile(path, machine, path === undefined ? new Map() : await read(path));
  }

  /** What is known of a problem. */
  get(problem: string): Tuning | undefined {
    return this.#added.get(problem) ?? this.#known.get(problem);
  }

  /** Adds what was measured. */
  set(problem: string, tuning: Tuning): void {
    this.#added.set(problem, tuning);
  }

  /** Writes what was added, where there is something. A file that cannot be written is a warning. */
  async save(): Promise<void> {
    if (this.path === undefined || !this.#ours || this.#added.size === 0) return;
    try {
      await Deno.mkdir(dirname(this.path), { recursive: true });
      using lock = await Deno.open(`${this.path}.lock`, { create: true, write: true });
      await lock.lock(true);
      await this.#write(this.path);
    } catch (error) {
      console.warn(
        `Cannot remember the tuning of kernels in ${this.path}: ${(error as Error).message}; ` +
          "name another file in DENOISE_AUTOTUNE_PATH",
      );
    }
  }

  async #write(path: string): Promise<void> {
    const sections = await read(path);
    if (sections === "foreign") {
      this.#ours = false;
      return;
    }
    const own = new Map([...sections.get(this.machine) ?? [], ...this.#added]);
    // What is written last stands last.
    sections.delete(this.machine);
    sections.set(this.machine, own);
    const kept = [...sections].slice(-MOST_SECTIONS).map((
      [machine, section],
    ) => [machine, Object.fromEntries(section)]);
    const text = JSON.stringify({ denoise_tuning: FORMAT, machines: Object.fromEntries(kept) }, null, 1);
    await replaceFile(path, `${text}\n`);
    for (const [problem, tuning] of this.#added) this.#known.set(problem, tuning);
    this.#added.clear();
  }
}

async function read(path: string): Promise<Map<string, Section> | "foreign"> {
  let text: string;
  try {
    text = await Deno.readTextFile(path);
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return new Map();
    return ignore(path, (error as Error).message);
  }
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch (error) {
    return ignore(path, `it is not JSON (${(error as Error).message})`);
  }
  if (!isObject(json) || json.denoise_tuning === undefined) return ignore(path, "it holds something else");
  // What an older denoise measured is measured again.
  if (json.denoise_tuning === 1) return new Map();
  if (json.denoise_tuning !== FORMAT) {
    return ignore(path, `its format is ${JSON.stringify(json.denoise_tuning)}, and this denoise has ${FORMAT}`);
  }
  if (!isObject(json.machines)) return ignore(path, "its machines are no object");
  const sections = new Map<string, Section>();
  for (const [machine, entries] of Object.entries(json.machines)) {
    if (!isObject(entries)) return ignore(path, `what it has of ${machine} is no object`);
    const section: Section = new Map();
    for (const [problem, tuning] of Object.entries(entries)) {
      if (!isTuning(tuning)) return ignore(path, `what it has of ${problem} is no tuning`);
      section.set(problem, tuning);
    }
    sections.set(machine, section);
  }
  return sections;
}

function ignore(path: string, reason: string): "foreign" {
  console.warn(
    `Ignoring the tuning file ${path}: ${reason}; remove it, or name another in DENOISE_AUTOTUNE_PATH`,
  );
  return "foreign";
}

const isObject = (value: unknown): value is Record<string, unknown> =>
  typeof value === "object" && value !== null && !Array.isArray(value);

function isTuning(value: unknown): value is Tuning {
  if (!isObject(value)) return false;
  const { chosen, microseconds } = value;
  return isObject(microseconds) && typeof chosen === "string" && Object.hasOwn(microseconds, chosen) &&
    Object.values(microseconds).every((time) => Number.isFinite(time) && (time as number) > 0);
}
