import { ok, strictEqual } from "node:assert/strict";
import { formatBytes, formatSeconds, formatTable, ProgressBar } from "../../lib/media/progress.ts";

/** A bar with a clock that is set by hand, and what it wrote. */
function makeBar(options: { total?: number; unit?: "" | "bytes"; columns?: number; enabled?: boolean }) {
  const clock = { now: 1000 };
  const written: string[] = [];
  const bar = new ProgressBar({
    label: "Denoising",
    columns: 80,
    enabled: true,
    ...options,
    write: (text) => written.push(text),
    now: () => clock.now,
  });
  return { bar, clock, written };
}

Deno.test("the bar shows how much is done and the time left", () => {
  const { bar, clock } = makeBar({ total: 20 });
  clock.now += 1000;
  bar.update(1);
  strictEqual(bar.line(), `Denoising ${"█".repeat(2).padEnd(40)} 1/20 1.00 s, 19.0 s left`);
  clock.now += 1000;
  bar.update(2);
  clock.now += 500; // within the third step
  strictEqual(bar.line(), `Denoising ${"█".repeat(4).padEnd(40)} 2/20 2.50 s, 17.5 s left`);
  clock.now += 17_500;
  bar.update(20);
  strictEqual(bar.line(), `Denoising ${"█".repeat(40)} 20/20 20.0 s`);
});

Deno.test("the bar draws parts of a character", () => {
  const { bar } = makeBar({ total: 80 });
  bar.update(1);
  ok(bar.line().startsWith(`Denoising ▌${" ".repeat(39)} 1/80`), bar.line());
});

Deno.test("the time left follows a change of speed", () => {
  const { bar, clock } = makeBar({ total: 1000 });
  for (let step = 1; step <= 100; step++) {
    clock.now += step <= 50 ? 100 : 1000;
    bar.update(step);
  }
  const left = /, (\d+):(\d+) left/.exec(bar.line());
  const seconds = Number(left?.[1]) * 60 + Number(left?.[2]);
  ok(seconds > 850 && seconds <= 900, bar.line());
});

Deno.test("bytes show their speed, which what was there before does not count into", () => {
  const { bar, clock } = makeBar({ total: 10_000_000, unit: "bytes" });
  bar.update(5_000_000);
  clock.now += 1000;
  bar.update(6_000_000);
  ok(bar.line().endsWith(" 6.00 MB/10.0 MB 1.00 MB/s 1.00 s, 4.00 s left"), bar.line());
});

Deno.test("a bar with no total counts", () => {
  const { bar } = makeBar({ unit: "bytes" });
  bar.update(1500);
  strictEqual(bar.line(), "Denoising 1.50 kB 0.00 s");
  bar.update(2000, { total: 4000 });
  ok(bar.line().includes("2.00 kB/4.00 kB"), bar.line());
});

Deno.test("a line is never wider than the terminal", () => {
  for (const columns of [1, 10, 20, 30, 45, 60, 200]) {
    const { bar, clock } = makeBar({ total: 20, columns });
    clock.now += 100;
    bar.update(7);
    ok(bar.line().length < columns || bar.line() === "", `${columns}: ${bar.line()}`);
  }
});

Deno.test("the bar draws at most some dozens of times a second, and always its end", () => {
  const { bar, clock, written } = makeBar({ total: 1000 });
  for (let step = 1; step <= 1000; step++) {
    clock.now += 1;
    bar.update(step);
  }
  ok(written.length <= 22, `${written.length}`);
  ok(written.every((text) => text.startsWith("\r\x1b[K")));
  ok(written.at(-1)!.includes("1000/1000"));
  bar.finish();
  bar.finish();
  bar.update(1000);
  strictEqual(written.filter((text) => text === "\n").length, 1);
  strictEqual(written.at(-1), "\n");
});

Deno.test("a bar that is off, or was never drawn, writes nothing", () => {
  const off = makeBar({ total: 2, enabled: false });
  off.bar.update(1);
  off.bar.finish();
  strictEqual(off.written.length, 0);
  const fresh = makeBar({ total: 2 });
  {
    using _ = fresh.bar;
  }
  strictEqual(fresh.written.length, 0);
});

Deno.test("where the error stream is no terminal, there is no bar", async () => {
  const module = new URL("../../lib/media/progress.ts", import.meta.url);
  const code = `import { ProgressBar } from "${module}";
    using bar = new ProgressBar({ label: "x", total: 2 }); bar.update(1); bar.update(2);`;
  const { success, stderr } = await new Deno.Command(Deno.execPath(), {
    args: ["eval", "--quiet", code],
    stdout: "null",
    stderr: "piped",
  }).output();
  ok(success);
  strictEqual(new TextDecoder().decode(stderr), "");
});

Deno.test("bytes and seconds are shown with three digits", () => {
  const bytes: [number, string][] = [
    [0, "0 B"],
    [999, "999 B"],
    [1000, "1.00 kB"],
    [9994, "9.99 kB"],
    [9996, "10.0 kB"],
    [18_491_640, "18.5 MB"],
    [999_600, "1.00 MB"],
    [23_800_000_000, "23.8 GB"],
    [5e15, "5000 TB"],
  ];
  for (const [value, text] of bytes) strictEqual(formatBytes(value), text);
  const seconds: [number, string][] = [
    [0, "0.00 s"],
    [0.348, "0.35 s"],
    [9.996, "10.0 s"],
    [59.94, "59.9 s"],
    [59.96, "1:00"],
    [65, "1:05"],
    [3599.6, "1:00:00"],
    [3723, "1:02:03"],
  ];
  for (const [value, text] of seconds) strictEqual(formatSeconds(value), text);
});

Deno.test("tables align words to the left and numbers to the right", () => {
  const rows = [{ phase: "load", seconds: 0.1, note: "" }, { phase: "denoising", seconds: 12.25, note: "20 steps" }];
  strictEqual(
    formatTable(rows),
    "phase      seconds  note\n" +
      "load           0.1\n" +
      "denoising    12.25  20 steps",
  );
  strictEqual(formatTable(rows, { header: false }), "load         0.1\ndenoising  12.25  20 steps");
  strictEqual(formatTable([]), "");
});
