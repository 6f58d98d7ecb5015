/**
 * Progress on a terminal's error stream, and tables of what came out.
 *
 * @module
 */

/** Options of {@linkcode ProgressBar}. */
export interface ProgressBarOptions {
  /** What is under way: `Denoising`. */
  label: string;
  /** How much there is to do; without it the bar counts and shows no end. */
  total?: number | undefined;
  /** What is counted: pieces, the default, or bytes. */
  unit?: "" | "bytes";
  /** Whether to draw; by default where the error stream is a terminal. */
  enabled?: boolean;
  /** Where to draw: the error stream by default. */
  write?: (text: string) => void;
  /** The width in characters; the terminal's by default. */
  columns?: number;
  /** The clock in milliseconds, for tests. */
  now?: () => number;
}

const CLEAR_LINE = "\r\x1b[K";
const REDRAW_INTERVAL = 50; // milliseconds
const EIGHTHS = [" ", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
/** The clock of the time left forgets what was longer ago than about this many milliseconds. */
const RATE_WINDOW = 5000;

/**
 * A bar of one line with the time left. It draws nothing where the error stream is no terminal.
 *
 * @example Counting steps
 * ```ts
 * import { ProgressBar } from "./progress.ts";
 *
 * using bar = new ProgressBar({ label: "Denoising", total: 20 });
 * for (let step = 1; step <= 20; step++) bar.update(step);
 * ```
 */
export class ProgressBar {
  readonly #label: string;
  readonly #unit: "" | "bytes";
  readonly #enabled: boolean;
  readonly #write: (text: string) => void;
  readonly #columns: number | undefined;
  readonly #now: () => number;
  readonly #start: number;
  #total: number | undefined;
  #done = 0;
  #first: number | undefined;
  /** Units a millisecond, smoothed; `undefined` before the second update. */
  #rate: number | undefined;
  #updated: number;
  #drawn = -Infinity;
  #finished = false;

  /** Starts the clock; the bar is drawn with its first update. */
  constructor(options: ProgressBarOptions) {
    this.#label = options.label;
    this.#total = options.total;
    this.#unit = options.unit ?? "";
    this.#enabled = options.enabled ?? Deno.stderr.isTerminal();
    this.#write = options.write ?? writeToStderr;
    this.#columns = options.columns;
    this.#now = options.now ?? (() => performance.now());
    this.#start = this.#updated = this.#now();
  }

  /**
   * Tells how much is done.
   *
   * @param done Pieces or bytes, all together
   * @param options The total, where it is known only now
   */
  update(done: number, options: { total?: number | undefined } = {}): void {
    if (options.total !== undefined) this.#total = options.total;
    const now = this.#now();
    const elapsed = now - this.#updated;
    // What was there at the start, such as the part of an earlier download, is not speed.
    if (this.#first === undefined && this.#unit === "bytes") this.#first = done;
    else if (elapsed > 0 && done > this.#done) {
      const rate = (done - this.#done) / elapsed;
      const weight = this.#rate === undefined ? 1 : 1 - Math.exp(-elapsed / RATE_WINDOW);
      this.#rate = (this.#rate ?? 0) * (1 - weight) + rate * weight;
    }
    if (done !== this.#done) this.#updated = now;
    this.#done = done;
    if (!this.#enabled || this.#finished) return;
    const isLast = this.#total !== undefined && done >= this.#total;
    if (!isLast && now - this.#drawn < REDRAW_INTERVAL) return;
    this.#drawn = now;
    this.#write(CLEAR_LINE + this.line());
  }

  /** Ends the line, if one was drawn. Further updates draw nothing. */
  finish(): void {
    if (this.#finished) return;
    this.#finished = true;
    if (this.#drawn > -Infinity) this.#write("\n");
  }

  /** Ends the line. */
  [Symbol.dispose](): void {
    this.finish();
  }

  /**
   * What the bar looks like now.
   *
   * @returns One line, with no line feed, no wider than the terminal
   */
  line(): string {
    const now = this.#now();
    const width = (this.#columns ?? columnsOf()) - 1; // some terminals wrap a full line
    const count = this.#total === undefined
      ? this.#show(this.#done)
      : `${this.#show(this.#done)}/${this.#show(this.#total)}`;
    const elapsed = formatSeconds((now - this.#start) / 1000);
    const left = this.#total === undefined || this.#rate === undefined
      ? ""
      : this.#done >= this.#total
      ? ""
      : `, ${formatSeconds(Math.max(0, (this.#total - this.#done) / this.#rate - (now - this.#updated)) / 1000)} left`;
    const speed = this.#unit === "bytes" && this.#rate !== undefined ? ` ${this.#show(this.#rate * 1000)}/s` : "";
    const after = ` ${count}${speed} ${elapsed}${left}`;
    const room = Math.min(40, width - this.#label.length - after.length - 1);
    const bar = this.#total === undefined || room < 5 ? "" : ` ${drawBar(this.#done / this.#total, room)}`;
    return `${this.#label}${bar}${after}`.slice(0, Math.max(0, width));
  }

  #show(value: number): string {
    return this.#unit === "bytes" ? formatBytes(value) : String(value);
  }
}

/**
 * Rows as lines of text with aligned columns, numbers to the right.
 *
 * @param rows Cells by column name; the first row's names are the columns
 * @param options Whether to start with a line of the names. True by default
 * @returns The lines
 */
export function formatTable(
  rows: readonly Readonly<Record<string, string | number>>[],
  options: { header?: boolean } = {},
): string {
  const { header = true } = options;
  const columns = Object.keys(rows[0] ?? {});
  const cells = rows.map((row) => columns.map((column) => String(row[column] ?? "")));
  const widths = columns.map((column, i) =>
    Math.max(header ? column.length : 0, ...cells.map((line) => line[i]!.length))
  );
  const isNumber = columns.map((column) => rows.every((row) => typeof row[column] === "number"));
  const lines = header ? [columns, ...cells] : cells;
  return lines.map((line) =>
    line.map((cell, i) => isNumber[i] ? cell.padStart(widths[i]!) : cell.padEnd(widths[i]!)).join("  ").trimEnd()
  ).join("\n");
}

/**
 * A number of bytes in the unit that suits it.
 *
 * @param bytes The number
 * @returns Three digits and a unit, of 1000: `18.5 MB`
 */
export function formatBytes(bytes: number): string {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let value = bytes;
  let unit = 0;
  // 999.5 would be shown as 1000.
  while (value >= 999.5 && unit < units.length - 1) {
    value /= 1000;
    unit++;
  }
  const digits = unit === 0 || value >= 99.95 ? 0 : value >= 9.995 ? 1 : 2;
  return `${value.toFixed(digits)} ${units[unit]}`;
}

/**
 * A time in the units that suit it.
 *
 * @param seconds The time
 * @returns `0.35 s`, `12.3 s`, `1:05` (minutes), `1:02:03` (hours)
 */
export function formatSeconds(seconds: number): string {
  if (seconds < 9.995) return `${seconds.toFixed(2)} s`;
  if (seconds < 59.95) return `${seconds.toFixed(1)} s`;
  const whole = Math.round(seconds);
  const two = (value: number) => String(value).padStart(2, "0");
  const minutes = Math.floor(whole / 60);
  return whole < 3600
    ? `${minutes}:${two(whole % 60)}`
    : `${Math.floor(whole / 3600)}:${two(minutes % 60)}:${two(whole % 60)}`;
}

function drawBar(fraction: number, width: number): string {
  const eighths = Math.round(Math.min(1, Math.max(0, fraction)) * width * 8);
  const full = Math.floor(eighths / 8);
  return ("█".repeat(full) + (full < width ? EIGHTHS[eighths % 8]! : "")).padEnd(width);
}

function columnsOf(): number {
  try {
    return Deno.consoleSize().columns || 80;
  } catch {
    return 80; // no terminal
  }
}

function writeToStderr(text: string): void {
  const bytes = new TextEncoder().encode(text);
  for (let at = 0; at < bytes.length;) at += Deno.stderr.writeSync(bytes.subarray(at));
}
