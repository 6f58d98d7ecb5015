/**
 * PyTorch and diffusers as the other side of a benchmark: their environment, and a process of theirs that takes turns
 * with ours.
 *
 * @module
 */

import { fileURLToPath } from "node:url";
import { THREADS } from "./machine.ts";

const here = (path: string) => fileURLToPath(new URL(path, import.meta.url));
const VENV = here("../.peers/venv");

/** The peers' Python. */
export const PYTHON = `${VENV}/bin/python`;

/** What the peers are asked to do: `kind` names a function of `peers/worker.py`, the rest is what that reads. */
export type PeerTask = { readonly kind: string } & Readonly<Record<string, string | number>>;

/** A task that the peer is ready to run. */
export interface PreparedTask {
  /** The peer's way of doing it that was fastest, of those that it tried. */
  readonly variant: string;
  /** Seconds of the first calls: compiling, where it compiles. */
  readonly warmSeconds: number;
  /** Seconds of each call, for as many calls as fit in some seconds. */
  run(seconds: number): Promise<number[]>;
  /** Lets its memory go. */
  drop(): Promise<void>;
}

/** A Python process that waits for its turn. */
export interface Peer extends AsyncDisposable {
  /** Makes a task ready: tensors, modules, compiled code, caches. */
  prepare(task: PeerTask): Promise<PreparedTask>;
}

/** Installs the peers into `.peers`, which git ignores, if they are not there yet: several gigabytes, some minutes. */
export async function installPeers(): Promise<void> {
  const requirements = await Deno.readTextFile(here("peers/requirements.txt"));
  const stamp = `${VENV}/requirements.txt`;
  if (await Deno.readTextFile(stamp).catch(() => "") === requirements) return;
  console.error("Installing PyTorch and diffusers into .peers; this happens once.");
  if (!await Deno.stat(PYTHON).catch(() => undefined)) {
    await execute(await findPython(), ["-m", "venv", VENV]);
  }
  await execute(PYTHON, ["-m", "pip", "install", "--quiet", "--requirement", here("peers/requirements.txt")]);
  await Deno.writeTextFile(`${stamp}.partial`, requirements);
  await Deno.rename(`${stamp}.partial`, stamp);
}

/** A Python that PyTorch has wheels for. */
async function findPython(): Promise<string> {
  for (const name of ["python3.11", "python3.12", "python3.13", "python3.10", "python3"]) {
    const check = "import sys, venv; sys.exit(not (3, 10) <= sys.version_info < (3, 14))";
    const found = await new Deno.Command(name, { args: ["-c", check], stdout: "null", stderr: "null" }).output()
      .catch(() => undefined);
    if (found?.success) return name;
  }
  throw new Error("The comparison with PyTorch needs Python 3.10 to 3.13, which was not found");
}

async function execute(command: string, args: string[]): Promise<void> {
  const { success } = await new Deno.Command(command, { args, stdout: "inherit", stderr: "inherit" }).spawn().status;
  if (!success) throw new Error(`${command} ${args.join(" ")} failed`);
}

/**
 * Starts a peer.
 *
 * Its OpenMP threads keep OpenMP's default policy, at which PyTorch is as fast as with `OMP_WAIT_POLICY=active`; they
 * watch for more work for some milliseconds after a call and then sleep, which is why {@link alternate} waits between
 * turns.
 */
export async function startPeer(options: { env?: Record<string, string> } = {}): Promise<Peer> {
  await installPeers();
  const args = [here("peers/worker.py"), "--threads", String(THREADS)];
  // A cache of its own: what another version of PyTorch or a run that was cut off left in the shared one makes
  // torch.compile fail, and what a good one left there is not compiled, so that its seconds would not count.
  const cache = await Deno.makeTempDir();
  const process = new Deno.Command(PYTHON, {
    args,
    env: {
      HF_HUB_OFFLINE: "1",
      TRANSFORMERS_VERBOSITY: "error",
      DIFFUSERS_VERBOSITY: "error",
      TORCHINDUCTOR_CACHE_DIR: cache,
      ...options.env,
    },
    stdin: "piped",
    stdout: "piped",
    stderr: Deno.env.has("DENOISE_PEER_LOG") ? "inherit" : "null",
  }).spawn();
  const writer = process.stdin.getWriter();
  const lines = linesOf(process.stdout);
  const ask = async <T>(request: unknown): Promise<T> => {
    await writer.write(new TextEncoder().encode(`${JSON.stringify(request)}\n`));
    const { value } = await lines.next();
    if (value === undefined) throw new Error("The peer's process ended; DENOISE_PEER_LOG=1 shows why");
    const answer = JSON.parse(value) as T & { error?: string };
    if (answer.error) throw new Error(`The peer failed at ${JSON.stringify(request)}: ${answer.error}`);
    return answer;
  };
  return {
    prepare: async (task) => {
      const { id, ...rest } = await ask<{ id: number; variant: string; warmSeconds: number }>({ prepare: task });
      return {
        ...rest,
        run: async (seconds) => (await ask<{ calls: number[] }>({ run: id, seconds })).calls,
        drop: async () => void await ask({ drop: id }),
      };
    },
    [Symbol.asyncDispose]: async () => {
      await writer.close();
      await process.status;
      await Deno.remove(cache, { recursive: true });
    },
  };
}

async function* linesOf(stream: ReadableStream<Uint8Array<ArrayBuffer>>): AsyncGenerator<string> {
  let rest = "";
  for await (const text of stream.pipeThrough(new TextDecoderStream())) {
    const lines = (rest + text).split("\n");
    rest = lines.pop()!;
    yield* lines;
  }
}
