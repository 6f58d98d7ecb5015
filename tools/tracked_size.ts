/**
 * Fails when the project's tracked files are more than what a machine without a network can be given:
 * `deno run -A tools/tracked_size.ts`.
 *
 * @module
 */

import { fileURLToPath } from "node:url";
import { formatBytes } from "../lib/media/progress.ts";

const MOST = 40 * 2 ** 20;
const root = fileURLToPath(new URL("..", import.meta.url));

const { success, stdout } = await new Deno.Command("git", { args: ["ls-files", "-z"], cwd: root, stderr: "null" })
  .output();
if (!success) {
  console.error("skipped: this is no checkout of git");
  Deno.exit();
}
const files = new TextDecoder().decode(stdout).split("\0").filter(Boolean);
const sizes = await Promise.all(files.map(async (name) => {
  // One that was removed and not yet committed is no more.
  const size = await Deno.lstat(`${root}/${name}`).then(({ size }) => size, () => 0);
  return { name, size };
}));
const total = sizes.reduce((sum, { size }) => sum + size, 0);
console.log(`${files.length} tracked files, ${formatBytes(total)} of ${formatBytes(MOST)}`);
if (total > MOST) {
  const largest = sizes.toSorted((a, b) => b.size - a.size).slice(0, 10);
  console.error(`The tracked files are ${formatBytes(total)}, more than ${formatBytes(MOST)}; the largest are`);
  for (const { name, size } of largest) console.error(`  ${formatBytes(size)}  ${name}`);
  Deno.exit(1);
}
