import assert from "node:assert/strict";
import { loadLibrary } from "../../ffi/library.ts";
import { NativeBuffer, NativeDevice, NativeProgram, runProgram } from "../../ffi/native.ts";
import { NativeError } from "../../lib/errors.ts";
import { compileGraph } from "../../lib/graph/compile.ts";
import { byteSize } from "../../lib/graph/dtypes.ts";
import { withFolder } from "../folder.ts";
import { argument, fluxGraph } from "../graph/graphs.ts";

const { symbols } = await loadLibrary();

const code = (wanted: string) => (e: unknown) => {
  assert.ok(e instanceof NativeError, String(e));
  assert.equal(e.code, wanted, e.message);
  return true;
};

/** The last program of a small Flux, with memory for its buffers. */
function smallProgram(): { bytes: Uint8Array<ArrayBuffer>; buffers: NativeBuffer[] } {
  const { stages } = compileGraph(fluxGraph({ dim: 64, heads: 2, double: 1, single: 1, text: 5, image: 9 }));
  const { assemble, buffers } = stages.at(-1)!;
  return { bytes: assemble()!, buffers: buffers.map((b) => NativeBuffer.create(b.size * byteSize(b.dtype))) };
}

Deno.test("handles that are stale, foreign or invented are errors", () => {
  using buffer = NativeBuffer.create(64);
  using device = new NativeDevice({ threads: 1 });
  const error = new Uint8Array(256);
  const n = 256n;
  const stale = NativeBuffer.create(8);
  const old = stale.handle;
  stale[Symbol.dispose]();
  const handles = [0, old, device.handle, 0xffffffff, buffer.handle ^ (1 << 20), buffer.handle + 1];
  let state = 1;
  for (let i = 0; i < 5000; i++) handles.push(state = Math.imul(state, 0x9e3779b1) + 0x7f4a7c15 >>> 0);
  for (const handle of handles) {
    if (handle === buffer.handle) continue;
    error[0] = 0;
    symbols.denoise_buffer_read(handle, 0, new Uint8Array(8), 8n, error, n);
    assert.notEqual(error[0], 0, `handle ${handle} was taken for a buffer`);
    if (handle !== device.handle) {
      error[0] = 0;
      symbols.denoise_free(handle, error, n);
      assert.notEqual(error[0], 0, `handle ${handle} was freed`);
    }
  }
  assert.equal(buffer.read().length, 64);
});

Deno.test("reads and writes stay inside a buffer", () => {
  using buffer = NativeBuffer.create(16);
  assert.throws(() => buffer.read(17), code("bad_argument"));
  assert.throws(() => buffer.read(8, 9), code("bad_argument"));
  assert.throws(() => buffer.write(new Uint8Array(1), 16), code("bad_argument"));
  buffer.write(new Uint8Array([1, 2, 3]), 13);
  assert.deepEqual([...buffer.read(4, 12)], [0, 1, 2, 3]);
});

Deno.test("a file that takes another's place is mapped anew, and the other stays what it was", async () => {
  await withFolder(async (folder) => {
    const path = `${folder}/file`;
    await Deno.writeFile(path, Uint8Array.of(1, 2, 3, 4));
    using old = NativeBuffer.map(path, { offset: 0, byteLength: 4 });
    await Deno.writeFile(`${path}.new`, Uint8Array.of(5, 6, 7, 8));
    await Deno.rename(`${path}.new`, path);
    {
      using part = NativeBuffer.map(path, { offset: 1, byteLength: 2 });
      assert.deepEqual(part.read(), Uint8Array.of(6, 7));
    }
    using whole = NativeBuffer.map(path, { offset: 0, byteLength: 4 });
    assert.deepEqual(whole.read(), Uint8Array.of(5, 6, 7, 8));
    assert.deepEqual(old.read(), Uint8Array.of(1, 2, 3, 4));
  });
});

Deno.test("a file that is missing or too short cannot be mapped", async () => {
  const path = await Deno.makeTempFile();
  await Deno.writeFile(path, new Uint8Array(10));
  assert.throws(() => NativeBuffer.map(path, { offset: 8, byteLength: 4 }), code("io"));
  assert.throws(() => NativeBuffer.map(`${path}.missing`, { offset: 0, byteLength: 4 }), code("io"));
  await Deno.remove(path);
});

Deno.test("a device of an unknown level, or of no thread count, is an error", () => {
  assert.throws(() => new NativeDevice({ level: "sse2" }), NativeError);
  assert.throws(() => new NativeDevice({ threads: -1 }), RangeError);
});

Deno.test("broken programs are refused, and those that pass run without harm", async () => {
  const { bytes, buffers } = smallProgram();
  using device = new NativeDevice({ threads: 2 });
  let state = 12345;
  const below = (n: number) => {
    state = Math.imul(state ^ (state >>> 15), 0x2c1b3c6d) + 0x9e3779b9 | 0;
    return (state >>> 4) % n;
  };
  const words = bytes.length / 4;
  let [refused, ran] = [0, 0];
  for (let round = 0; round < 4000; round++) {
    const copy = bytes.slice();
    const view = new DataView(copy.buffer);
    for (let k = 0; k <= below(3); k++) {
      const at = 4 * below(words);
      const old = view.getUint32(at, true);
      const values = [0, 1, 0xffffffff, 0x7fffffff, old + 1, old - 1, old << 1, below(256), below(0x7fffffff) << 1];
      view.setUint32(at, values[below(values.length)]! >>> 0, true);
    }
    const end = below(10) === 0 ? below(bytes.length) : bytes.length;
    let program: NativeProgram;
    try {
      program = new NativeProgram(copy.slice(0, end));
    } catch (e) {
      assert.ok(e instanceof NativeError && ["bad_program", "mismatch"].includes(e.code), String(e));
      refused++;
      continue;
    }
    using _ = program;
    try {
      await runProgram({ device, program }, buffers);
      ran++;
    } catch (e) {
      assert.ok(e instanceof NativeError, String(e));
      assert.notEqual(e.code, "internal", e.message);
    }
  }
  assert.ok(refused > 1000 && ran > 100, `${refused} refused, ${ran} ran`);
  buffers.forEach((b) => b[Symbol.dispose]());
});

Deno.test("a program is bound to as many buffers as it takes, large enough, of its own device", async () => {
  const { bytes, buffers } = smallProgram();
  using device = new NativeDevice({ threads: 1 });
  using program = new NativeProgram(bytes);
  await assert.rejects(runProgram({ device, program }, buffers.slice(1)), code("bad_argument"));
  using short = NativeBuffer.create(1);
  await assert.rejects(runProgram({ device, program }, [short, ...buffers.slice(1)]), code("bad_argument"));
  device[Symbol.dispose]();
  await assert.rejects(runProgram({ device, program }, buffers), code("bad_handle"));
});

Deno.test("a run that is cancelled stops and frees the event loop throughout", async () => {
  let x = argument([512, 512]);
  for (let i = 0; i < 200; i++) x = x.matmul(argument([512, 512]));
  const { stages } = compileGraph([x.node]);
  const { assemble, buffers } = stages.at(-1)!;
  const memory = buffers.map((b) => NativeBuffer.create(4 * b.size));
  using device = new NativeDevice();
  using program = new NativeProgram(assemble()!);
  let ticks = 0;
  const timer = setInterval(() => ticks++, 1);
  const controller = new AbortController();
  setTimeout(() => controller.abort(), 20);
  const run = runProgram({ device, program }, memory, { signal: controller.signal });
  await assert.rejects(run, { name: "AbortError" });
  clearInterval(timer);
  assert.ok(ticks > 0);
  await assert.rejects(runProgram({ device, program }, memory, { signal: controller.signal }), { name: "AbortError" });
  memory.forEach((b) => b[Symbol.dispose]());
});
