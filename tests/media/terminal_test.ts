import { deepStrictEqual, ok, rejects, strictEqual } from "node:assert/strict";
import { Image } from "../../lib/media/image.ts";
import { detectProtocol, drawImage } from "../../lib/media/terminal.ts";

/** A picture of noise, which no compression makes small. */
function picture(width: number, height: number): Image {
  let state = 1;
  const next = () => (state = (Math.imul(state, 1664525) + 1013904223) >>> 0) >>> 24;
  return new Image({ width, height, data: Uint8Array.from({ length: width * height * 3 }, next) });
}

Deno.test("kitty gets the PNG in pieces that its protocol takes", async () => {
  const image = picture(64, 64);
  const text = await drawImage(image, { protocol: "kitty", columns: 20 });
  const pieces = [...text.matchAll(new RegExp("\x1b_G([^;]*);([A-Za-z0-9+/=]*)\x1b\\\\", "g"))];
  strictEqual(pieces.map(([piece]) => piece).join("") + "\n", text);
  ok(pieces.length > 1);
  ok(pieces.every(([, , data]) => data!.length <= 4096 && data!.length % 4 === 0));
  deepStrictEqual(pieces.map(([, keys]) => keys), [
    "a=T,f=100,q=2,c=20,m=1",
    ...Array(pieces.length - 2).fill("m=1"),
    "m=0",
  ]);
  deepStrictEqual(Uint8Array.fromBase64(pieces.map(([, , data]) => data).join("")), await image.toPng());

  const small = await drawImage(picture(1, 1), { protocol: "kitty" });
  ok(small.startsWith("\x1b_Ga=T,f=100,q=2,m=0;"), JSON.stringify(small));
});

Deno.test("iTerm gets the PNG with its size", async () => {
  const image = picture(3, 2);
  const png = await image.toPng();
  strictEqual(
    await drawImage(image, { protocol: "iterm" }),
    `\x1b]1337;File=inline=1;size=${png.length}:${png.toBase64()}\x07\n`,
  );
  ok((await drawImage(image, { protocol: "iterm", columns: 9 })).includes(";width=9:"));
});

Deno.test("half blocks show two rows in one", async () => {
  const image = new Image({ width: 1, height: 3, data: Uint8Array.of(1, 2, 3, 4, 5, 6, 7, 8, 9) });
  strictEqual(
    await drawImage(image, { protocol: "blocks" }),
    "\x1b[38;2;1;2;3;48;2;4;5;6m▀\x1b[0m\n\x1b[38;2;7;8;9m▀\x1b[0m\n",
  );
});

Deno.test("half blocks shrink a picture by means, and put what is transparent on black", async () => {
  const values = [[10, 20], [30, 40]].flat().flatMap((value) => [value, value, 255]);
  const image = new Image({ width: 2, height: 2, data: Uint8Array.from(values) });
  strictEqual(await drawImage(image, { protocol: "blocks", columns: 1 }), "\x1b[38;2;25;25;255m▀\x1b[0m\n");

  const clear = new Image({ width: 1, height: 1, data: Uint8Array.of(200, 100, 50, 0) });
  strictEqual(await drawImage(clear, { protocol: "blocks" }), "\x1b[38;2;0;0;0m▀\x1b[0m\n");

  const wide = await drawImage(picture(160, 96), { protocol: "blocks", columns: 40 });
  const lines = wide.trimEnd().split("\n");
  strictEqual(lines.length, 12);
  ok(lines.every((line) => line.split("▀").length - 1 === 40));
});

Deno.test("a width that is none is refused", async () => {
  for (const columns of [0, -1, 1.5, NaN]) {
    await rejects(drawImage(picture(1, 1), { protocol: "blocks", columns }), RangeError);
  }
});

Deno.test("the protocol is the terminal's own", () => {
  const cases: [Record<string, string>, string][] = [
    [{ TERM: "xterm-kitty" }, "kitty"],
    [{ TERM: "xterm-256color", KITTY_WINDOW_ID: "1" }, "kitty"],
    [{ TERM: "xterm-ghostty" }, "kitty"],
    [{ TERM_PROGRAM: "ghostty" }, "kitty"],
    [{ TERM_PROGRAM: "iTerm.app" }, "iterm"],
    [{ TERM_PROGRAM: "WezTerm" }, "iterm"],
    [{ TERM_PROGRAM: "Apple_Terminal", TERM: "xterm-256color" }, "blocks"],
    [{ TERM_PROGRAM: "iTerm.app", TMUX: "/tmp/x" }, "blocks"],
    [{ KITTY_WINDOW_ID: "1", TERM: "screen-256color" }, "blocks"],
    [{}, "blocks"],
  ];
  for (const [env, protocol] of cases) strictEqual(detectProtocol((name) => env[name]), protocol, JSON.stringify(env));
});

Deno.test({
  name: "without permission to the environment, nothing is asked for",
  permissions: { env: false },
  fn: () => strictEqual(detectProtocol(), "blocks"),
});

Deno.test("show draws nothing where standard output is no terminal, unless it is told to", async () => {
  const folder = new URL("../../lib/media/", import.meta.url);
  const run = async (options: string) => {
    const code = `import { Image } from "${folder}image.ts"; import { show } from "${folder}terminal.ts";
      const image = new Image({ width: 1, height: 1, data: Uint8Array.of(1, 2, 3) });
      console.error(await show(image, ${options}));`;
    const { stdout, stderr } = await new Deno.Command(Deno.execPath(), {
      args: ["eval", "--quiet", code],
      stdout: "piped",
      stderr: "piped",
    }).output();
    return [new TextDecoder().decode(stdout), new TextDecoder().decode(stderr)];
  };
  deepStrictEqual(await run("{}"), ["", "false\n"]);
  deepStrictEqual(await run(`{ force: true, protocol: "blocks" }`), ["\x1b[38;2;1;2;3m▀\x1b[0m\n", "true\n"]);
});
