import assert from "node:assert/strict";
import { dirname, join, relative } from "node:path";
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL("..", import.meta.url));

/** What each folder may import from, besides itself: ARCHITECTURE.md's table. `lib/errors.ts` is open to all. */
const ALLOWED: Readonly<Record<string, readonly string[]>> = {
  "mod.ts": ["lib"],
  "ffi": ["lib/graph/schema.ts"],
  "lib/graph": [],
  "lib/tensor": ["lib/graph", "ffi"],
  "lib/nn": ["lib/tensor", "lib/graph"],
  "lib/models": ["lib/nn", "lib/tensor", "lib/graph"],
  "lib/schedulers": ["lib/tensor", "lib/graph"],
  "lib/media": ["lib/tensor", "lib/graph", "ffi"],
  "lib/quantize": ["lib/nn", "lib/tensor", "lib/graph"],
  "lib/compile": ["lib/quantize", "lib/nn", "lib/tensor", "lib/graph", "ffi"],
  "lib/pipelines": [
    "lib/compile",
    "lib/quantize",
    "lib/models",
    "lib/nn",
    "lib/schedulers",
    "lib/media",
    "lib/tensor",
    "lib/graph",
    "ffi/environment.ts",
  ],
  "recipes": ["mod.ts"],
  "bench": ["mod.ts", "lib", "tests/picture_check.ts"],
};

async function* sources(folder: string): AsyncGenerator<string> {
  for await (const entry of Deno.readDir(join(root, folder))) {
    const path = folder === "" ? entry.name : `${folder}/${entry.name}`;
    if (entry.isDirectory) yield* sources(path);
    else if (entry.name.endsWith(".ts")) yield path;
  }
}

async function importsOf(path: string): Promise<string[]> {
  const text = await Deno.readTextFile(join(root, path));
  const found = [
    ...text.matchAll(/^(?:import|export)\b[^;"']*?\bfrom\s+["']([^"']+)["']/gms),
    ...text.matchAll(/\bimport\(\s*["']([^"']+)["']/g),
  ];
  return found.map((m) => m[1]!);
}

const within = (path: string, place: string) => path === place || path.startsWith(`${place}/`);

Deno.test("imports point one way: from the API to the native library", async () => {
  const wrong: string[] = [];
  let count = 0;
  for (const [place, allowed] of Object.entries(ALLOWED)) {
    const files = place.endsWith(".ts") ? [place] : await Array.fromAsync(sources(place));
    for (const file of files) {
      for (const specifier of await importsOf(file)) {
        if (!specifier.startsWith(".")) {
          // mod.ts is imported by address, where no import map is seen.
          if (!/^(node|npm):/.test(specifier)) wrong.push(`${file} imports ${specifier}`);
          continue;
        }
        count++;
        const target = relative(root, join(root, dirname(file), specifier)).replaceAll("\\", "/");
        const fine = [place, "lib/errors.ts", ...allowed].some((p) => within(target, p));
        if (!fine) wrong.push(`${file} imports ${target}`);
      }
    }
  }
  assert.deepEqual(wrong, []);
  assert.ok(count > 50, `only ${count} imports were read`);
});

Deno.test("no module of lib stands in a ring", async () => {
  const graph = new Map<string, string[]>();
  for (const folder of ["lib", "ffi"]) {
    for await (const file of sources(folder)) {
      const imports = (await importsOf(file)).filter((s) => s.startsWith("."));
      graph.set(file, imports.map((s) => relative(root, join(root, dirname(file), s)).replaceAll("\\", "/")));
    }
  }
  const state = new Map<string, "open" | "done">();
  const visit = (file: string, path: readonly string[]) => {
    if (state.get(file) === "done") return;
    assert.notEqual(state.get(file), "open", `a ring: ${[...path, file].join(" -> ")}`);
    state.set(file, "open");
    for (const next of graph.get(file) ?? []) visit(next, [...path, file]);
    state.set(file, "done");
  };
  for (const file of graph.keys()) visit(file, []);
});
