/**
 * The same linear layers by each scheme under `deno bench`, with the float one as baseline:
 * `deno bench -A --v8-flags=--expose-gc bench/schemes_bench.ts`, or some of them by `--filter "1 x 3072 x 3072"`.
 *
 * With one row a call goes through as many layers as it takes for no weight to come from a cache, as in a model. The
 * table with the machine's peaks and the peer is `bench/quantized.ts`.
 *
 * @module
 */

import { FLOAT, LINEAR_SCHEMES, LINEAR_SHAPES, type Linears, makeLinears, weightBytes } from "./linears.ts";
import { cacheBytes } from "./machine.ts";

const cache = await cacheBytes();
let current: { name: string; linears: Linears } | undefined;

/** The layers of a benchmark: made when its turn comes, and let go after it, as all of them at once would not fit. */
async function linearsOf(name: string, make: () => Linears): Promise<Linears> {
  if (current?.name === name) return current.linears;
  current = undefined;
  const { gc } = globalThis as { gc?: () => void };
  gc?.();
  const linears = make();
  await linears.run(); // packs the weights
  current = { name, linears };
  return linears;
}

for (const rows of [1, 512]) {
  for (const shape of LINEAR_SHAPES) {
    const smallest = Math.min(...LINEAR_SCHEMES.map((scheme) => weightBytes(scheme, { shape })));
    const count = rows === 1 ? Math.ceil(2 * cache / smallest) : 1;
    const group = `${rows} x ${shape.join(" x ")}${count > 1 ? `, ${count} layers` : ""}`;
    for (const scheme of LINEAR_SCHEMES) {
      const name = `${scheme}, ${group}`;
      Deno.bench(name, { group, baseline: scheme === FLOAT }, async (b) => {
        const { run } = await linearsOf(name, () => makeLinears(scheme, { shape, rows, count }));
        b.start();
        await run();
        b.end();
      });
    }
  }
}
