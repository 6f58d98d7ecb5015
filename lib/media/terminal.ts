/**
 * Pictures in the terminal: as pictures where it can draw them, as coloured half blocks where it cannot.
 *
 * @module
 */

import type { Image } from "./image.ts";
import { channelsOf } from "./png.ts";

/** How a picture is drawn: kitty's graphics protocol, iTerm2's inline images, or half blocks in 24-bit colour. */
export type TerminalProtocol = "kitty" | "iterm" | "blocks";

/** Options of {@linkcode show}. */
export interface ShowOptions {
  /** How to draw; by the terminal's own variables by default. */
  protocol?: TerminalProtocol;
  /** The width in characters that the picture may take; what suits its pixels by default. */
  columns?: number;
  /** Whether to draw where standard output is no terminal. False by default. */
  force?: boolean;
}

/** Kitty takes a command's data in pieces of at most this many characters. */
const KITTY_CHUNK = 4096;
/** Two pixels of a picture drawn in half blocks are this wide at most. */
const MAX_BLOCK_COLUMNS = 64;

/**
 * Draws a picture on standard output, if that is a terminal.
 *
 * @param image The picture
 * @param options How, and how wide
 * @returns Whether it was drawn
 */
export async function show(image: Image, options: ShowOptions = {}): Promise<boolean> {
  const { force = false } = options;
  if (!force && !Deno.stdout.isTerminal()) return false;
  const protocol = options.protocol ?? detectProtocol();
  let columns = options.columns;
  if (protocol === "blocks") columns ??= Math.min(MAX_BLOCK_COLUMNS, terminalColumns());
  const text = await drawImage(image, { protocol, columns });
  const bytes = new TextEncoder().encode(text);
  for (let at = 0; at < bytes.length;) at += await Deno.stdout.write(bytes.subarray(at));
  return true;
}

/**
 * The escape sequences and characters that draw a picture.
 *
 * @param image The picture
 * @param options How, and how wide
 * @returns Text to write to a terminal, a line feed at its end
 */
export async function drawImage(
  image: Image,
  options: { protocol: TerminalProtocol; columns?: number | undefined },
): Promise<string> {
  const { protocol, columns } = options;
  if (columns !== undefined && (!Number.isInteger(columns) || columns < 1)) {
    throw new RangeError(`Cannot draw a picture ${columns} characters wide: pass a positive integer`);
  }
  if (protocol === "blocks") return drawBlocks(image, columns ?? MAX_BLOCK_COLUMNS);
  const png = await image.toPng();
  return protocol === "kitty" ? kitty(png, columns) : iterm(png, columns);
}

/**
 * Which protocol the terminal speaks, by the variables that terminals set.
 *
 * @param env How to read a variable; those that may be read without asking by default
 * @returns The protocol; half blocks where nothing better is known
 */
export function detectProtocol(env: (variable: string) => string | undefined = readEnv): TerminalProtocol {
  // A multiplexer passes neither protocol on.
  if (env("TMUX") !== undefined || /^(?:screen|tmux)/.test(env("TERM") ?? "")) return "blocks";
  const program = env("TERM_PROGRAM") ?? "";
  if (/^xterm-(?:kitty|ghostty)$/.test(env("TERM") ?? "") || program === "ghostty" || env("KITTY_WINDOW_ID")) {
    return "kitty";
  }
  return program === "iTerm.app" || program === "WezTerm" ? "iterm" : "blocks";
}

/** https://sw.kovidgoyal.net/kitty/graphics-protocol: transmit and display (a=T) a PNG (f=100), with no answer (q=2). */
function kitty(png: Uint8Array, columns: number | undefined): string {
  const data = png.toBase64();
  const size = columns === undefined ? "" : `,c=${columns}`;
  let text = "";
  for (let at = 0; at < data.length; at += KITTY_CHUNK) {
    const more = at + KITTY_CHUNK < data.length ? 1 : 0;
    const keys = at === 0 ? `a=T,f=100,q=2${size},m=${more}` : `m=${more}`;
    text += `\x1b_G${keys};${data.slice(at, at + KITTY_CHUNK)}\x1b\\`;
  }
  return `${text}\n`;
}

/** https://iterm2.com/documentation-images.html */
function iterm(png: Uint8Array, columns: number | undefined): string {
  const size = columns === undefined ? "" : `;width=${columns}`;
  return `\x1b]1337;File=inline=1;size=${png.length}${size}:${png.toBase64()}\x07\n`;
}

/** Upper half blocks: the upper pixel is the character's colour and the lower one its ground. */
function drawBlocks(image: Image, columns: number): string {
  const width = Math.min(columns, image.width);
  const height = Math.max(1, Math.round(image.height * width / image.width));
  const pixels = shrink(image, width, height);
  let text = "";
  for (let y = 0; y < height; y += 2) {
    for (let x = 0; x < width; x++) {
      const upper = colourAt(pixels, y * width + x);
      text += y + 1 < height
        ? `\x1b[38;2;${upper};48;2;${colourAt(pixels, (y + 1) * width + x)}m▀`
        : `\x1b[38;2;${upper}m▀`;
    }
    text += "\x1b[0m\n";
  }
  return text;
}

/** Means over the boxes of pixels that fall on each new one, on black where the picture is transparent. */
function shrink(image: Image, width: number, height: number): Float64Array {
  const channels = channelsOf(image);
  const out = new Float64Array(width * height * 3);
  for (let y = 0; y < height; y++) {
    const top = Math.floor(y * image.height / height);
    const bottom = Math.max(top + 1, Math.floor((y + 1) * image.height / height));
    for (let x = 0; x < width; x++) {
      const left = Math.floor(x * image.width / width);
      const right = Math.max(left + 1, Math.floor((x + 1) * image.width / width));
      const area = (bottom - top) * (right - left);
      for (let v = top; v < bottom; v++) {
        for (let u = left; u < right; u++) {
          const at = (v * image.width + u) * channels;
          const opacity = channels === 4 ? image.data[at + 3]! / 255 : 1;
          for (let c = 0; c < 3; c++) out[(y * width + x) * 3 + c]! += image.data[at + c]! * opacity / area;
        }
      }
    }
  }
  return out;
}

function colourAt(pixels: Float64Array, index: number): string {
  return [0, 1, 2].map((c) => Math.round(pixels[index * 3 + c]!)).join(";");
}

function terminalColumns(): number {
  try {
    return Deno.consoleSize().columns || 80;
  } catch {
    return 80; // no terminal
  }
}

function readEnv(variable: string): string | undefined {
  const { state } = Deno.permissions.querySync({ name: "env", variable });
  return state === "granted" ? Deno.env.get(variable) || undefined : undefined;
}
