import { deepStrictEqual, ok, rejects, strictEqual, throws } from "node:assert/strict";
import { createHash } from "node:crypto";
import { CheckpointError, ConfigError, HubError, OutputError } from "../../lib/errors.ts";
import { cacheFolder, type DownloadProgress, resolveModel, type ResolveOptions } from "../../lib/pipelines/hub.ts";

const COMMIT = "0123456789abcdef0123456789abcdef01234567";
const NEXT_COMMIT = "89abcdef0123456789abcdef0123456789abcdef";
const bytesOf = (value: string | Uint8Array<ArrayBuffer>) =>
  typeof value === "string" ? new TextEncoder().encode(value) : value;
const sha256 = (bytes: Uint8Array) => createHash("sha256").update(bytes).digest("hex");

/** Bytes that differ from place to place, so that a part put in the wrong place shows. */
function weights(size: number, seed: number): Uint8Array<ArrayBuffer> {
  let state = seed;
  return Uint8Array.from({ length: size }, () => (state = (Math.imul(state, 1664525) + 1013904223) >>> 0) >>> 24);
}

const TRANSFORMER_1 = weights(300_000, 1);
const TRANSFORMER_2 = weights(200_000, 2);
const VAE = weights(100_000, 3);
const CLIP = weights(50_000, 4);

const MODEL: Record<string, string | Uint8Array<ArrayBuffer>> = {
  "model_index.json": JSON.stringify({
    _class_name: "FluxPipeline",
    _name_or_path: ["not", "a component"],
    feature_extractor: [null, null],
    force_zeros: true,
    scheduler: ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    text_encoder: ["transformers", "CLIPTextModel"],
    tokenizer: ["transformers", "CLIPTokenizer"],
    transformer: ["diffusers", "FluxTransformer2DModel"],
    vae: ["diffusers", "AutoencoderKL"],
  }),
  "scheduler/scheduler_config.json": "{}",
  "text_encoder/config.json": "{}",
  "text_encoder/model.safetensors": CLIP,
  "text_encoder/pytorch_model.bin": "never asked for",
  "tokenizer/vocab.json": "{}",
  "tokenizer/merges.txt": "#version: 0.2",
  "transformer/config.json": "{}",
  "transformer/diffusion_pytorch_model.safetensors.index.json": JSON.stringify({
    metadata: {},
    weight_map: { a: "model-1-of-2.safetensors", b: "model-2-of-2.safetensors", c: "model-1-of-2.safetensors" },
  }),
  "transformer/model-1-of-2.safetensors": TRANSFORMER_1,
  "transformer/model-2-of-2.safetensors": TRANSFORMER_2,
  "vae/config.json": "{}",
  "vae/diffusion_pytorch_model.safetensors": VAE,
};

interface Hub {
  readonly url: string;
  /** Requests so far: `GET transformer/config.json`, without the model's prefix. */
  readonly requests: string[];
  readonly headers: Headers[];
  /** Answers in place of the hub where it returns something. */
  intercept: (path: string, request: Request) => Response | Promise<Response> | undefined;
  files: Record<string, string | Uint8Array<ArrayBuffer>>;
  commit: string | undefined;
}

/** A hub on loopback and an empty cache, with options for fast tests. */
async function withHub(test: (hub: Hub, options: ResolveOptions & { cache: string }) => Promise<void>): Promise<void> {
  const hub: Hub = {
    url: "",
    requests: [],
    headers: [],
    intercept: () => undefined,
    files: MODEL,
    commit: COMMIT,
  };
  const server = Deno.serve({ hostname: "127.0.0.1", port: 0, onListen: () => {} }, async (request) => {
    const path = decodeURIComponent(new URL(request.url).pathname).replace(/^\/org\/name\/resolve\/[^/]+\//, "");
    hub.requests.push(`${request.method} ${path}`);
    hub.headers.push(request.headers);
    return await hub.intercept(path, request) ?? serveFile(hub, path, request);
  });
  (hub as { url: string }).url = `http://127.0.0.1:${server.addr.port}`;
  const cache = await Deno.makeTempDir();
  try {
    await test(hub, { endpoint: hub.url, cache, retryDelay: 1, token: "secret" });
  } finally {
    await server.shutdown();
    await Deno.remove(cache, { recursive: true });
  }
}

/** What the hub says of a file: its commit, and for large ones their hash as ETag. */
function serveFile(hub: Hub, path: string, request: Request): Response {
  const file = hub.files[path];
  const headers = new Headers(hub.commit === undefined ? {} : { "x-repo-commit": hub.commit });
  if (file === undefined) {
    headers.set("x-error-code", "EntryNotFound");
    return new Response("not found", { status: 404, headers });
  }
  const bytes = bytesOf(file);
  headers.set("etag", path.endsWith(".safetensors") ? `"${sha256(bytes)}"` : `"${bytes.length}"`);
  const from = Number(/^bytes=(\d+)-$/.exec(request.headers.get("range") ?? "")?.[1] ?? NaN);
  const isSame = (request.headers.get("if-range") ?? headers.get("etag")) === headers.get("etag");
  if (from >= bytes.length && isSame) {
    headers.set("content-range", `bytes */${bytes.length}`);
    return new Response(null, { status: 416, headers });
  }
  if (!Number.isNaN(from) && isSame) {
    headers.set("content-range", `bytes ${from}-${bytes.length - 1}/${bytes.length}`);
    return new Response(bytes.subarray(from), { status: 206, headers });
  }
  headers.set("content-length", String(bytes.length));
  return new Response(request.method === "HEAD" ? null : bytes, { headers });
}

/** The first bytes of a file, then a lost connection; or nothing more, where `hang` is set. */
function partOf(hub: Hub, path: string, options: { end: number; request: Request; hang?: boolean }): Response {
  const whole = serveFile(hub, path, options.request);
  const bytes = bytesOf(hub.files[path]!);
  const start = Number(/^bytes (\d+)/.exec(whole.headers.get("content-range") ?? "")?.[1] ?? 0);
  let sent = false;
  const body = new ReadableStream({
    pull(controller) {
      if (!sent) {
        sent = true;
        controller.enqueue(bytes.slice(start, options.end));
        return;
      }
      if (options.hang) return new Promise(() => {});
      controller.close();
    },
  });
  whole.headers.set("content-length", String(bytes.length - start));
  return new Response(body, { status: whole.status, headers: whole.headers });
}

async function filesIn(folder: string, prefix = ""): Promise<string[]> {
  const names: string[] = [];
  for await (const { name, isDirectory } of Deno.readDir(folder)) {
    names.push(...isDirectory ? await filesIn(`${folder}/${name}`, `${prefix}${name}/`) : [prefix + name]);
  }
  return names.sort();
}

const SHARD = "transformer/model-1-of-2.safetensors";
const only = (...components: string[]) => ({ components });

/** Checks an error's class and words. */
function fails(type: typeof HubError | typeof CheckpointError, ...words: RegExp[]) {
  return (error: unknown): boolean => {
    ok(error instanceof type, `${error}`);
    for (const word of words) ok(word.test(error.message), error.message);
    ok(error.file, "names no file");
    return true;
  };
}

Deno.test("a folder or a file that is here is used as it is", async () => {
  const folder = new URL("../../models/shapes-flux", import.meta.url).pathname;
  strictEqual(await resolveModel(folder), folder);
  strictEqual(await resolveModel(`${folder}/model_index.json`), `${folder}/model_index.json`);
});

Deno.test("what is no folder, id or URL is refused", async () => {
  for (
    const model of [
      "no/such/folder",
      "./none",
      "/none",
      "none",
      "a..b/c",
      "../no-such-folder",
      "org/name@a@b",
      "org/-x",
    ]
  ) {
    await rejects(resolveModel(model), fails(CheckpointError, /check the path/), model);
  }
  for (const model of ["ftp://host/model", "https://user:pass@host/model", "file:///none"]) {
    await rejects(resolveModel(model), fails(HubError, /https address/), model);
  }
  await rejects(resolveModel(""), TypeError);
  await rejects(resolveModel("org/name@../x", { cache: "none" }), fails(HubError, /revision "..\/x"/));
});

Deno.test("a hub id is downloaded: what model_index.json needs and no more", async () => {
  await withHub(async (hub, options) => {
    const progress: DownloadProgress[] = [];
    const folder = await resolveModel("org/name", { ...options, onProgress: (step) => progress.push(step) });
    const files = (await filesIn(folder)).filter((name) => !name.startsWith(".absent/"));
    deepStrictEqual(files, Object.keys(MODEL).filter((name) => !name.endsWith(".bin")).sort());
    for (const name of files) deepStrictEqual(await Deno.readFile(`${folder}/${name}`), bytesOf(MODEL[name]!), name);

    const total = [TRANSFORMER_1, TRANSFORMER_2, VAE, CLIP].reduce((sum, { length }) => sum + length, 0);
    deepStrictEqual(progress.at(-1), { bytes: total, total, file: progress.at(-1)!.file });
    for (const step of progress) strictEqual(step.total, total);
    ok(hub.headers.every((headers) => headers.get("authorization") === "Bearer secret"));
    ok(!hub.requests.some((request) => request.endsWith(".bin")));
  });
});

Deno.test("a model that is here is used with no request, by a name with a revision too", async () => {
  await withHub(async (hub, options) => {
    const folder = await resolveModel("org/name", options);
    const { length } = hub.requests;
    strictEqual(await resolveModel("org/name", options), folder);
    strictEqual(await resolveModel("org/name@main", { ...options, offline: true }), folder);
    strictEqual(await resolveModel(`${hub.url}/org/name`, { ...options, offline: true }), folder);
    strictEqual(await resolveModel(`org/name@${COMMIT}`, { ...options, offline: true }), folder);
    strictEqual(hub.requests.length, length);
  });
});

Deno.test("a revision is asked for encoded, and its files are all of one commit", async () => {
  await withHub(async (hub, options) => {
    const paths: string[] = [];
    hub.intercept = (_, request) => {
      paths.push(new URL(request.url).pathname);
      return undefined;
    };
    const folder = await resolveModel("org/name@refs/pr/1", { ...options, ...only("vae") });
    ok(folder.endsWith(`/org--name/${COMMIT}`), folder);
    strictEqual(paths[0], "/org/name/resolve/refs%2Fpr%2F1/model_index.json");
    ok(paths.length > 3 && paths.slice(1).every((path) => path.startsWith(`/org/name/resolve/${COMMIT}/`)), `${paths}`);
  });
});

Deno.test("components are downloaded as they are needed", async () => {
  await withHub(async (hub, options) => {
    const folder = await resolveModel("org/name", { ...options, ...only("vae", "scheduler") });
    const files = (await filesIn(folder)).filter((name) => !name.startsWith(".absent/"));
    deepStrictEqual(files, [
      "model_index.json",
      "scheduler/scheduler_config.json",
      "vae/config.json",
      "vae/diffusion_pytorch_model.safetensors",
    ]);
    await rejects(resolveModel("org/name", { ...options, offline: true }), fails(HubError, /offline/));
    const before = hub.requests.length;
    await resolveModel("org/name", { ...options, ...only("text_encoder") });
    deepStrictEqual(hub.requests.slice(before).sort(), [
      "GET text_encoder/config.json",
      "GET text_encoder/model.safetensors",
      "GET text_encoder/model.safetensors.index.json",
      "HEAD text_encoder/model.safetensors",
    ]);
    await rejects(
      resolveModel("org/name", { ...options, ...only("unet") }),
      fails(HubError, /"unet"/, /transformer, vae/),
    );
  });
});

Deno.test("configurations are downloaded without weights", async () => {
  await withHub(async (_, options) => {
    const folder = await resolveModel("org/name", { ...options, weights: [] });
    const files = (await filesIn(folder)).filter((name) => !name.startsWith(".absent/"));
    ok(files.includes("transformer/config.json") && files.includes("vae/config.json"), `${files}`);
    deepStrictEqual(files.filter((name) => name.endsWith(".safetensors")), []);
    await resolveModel("org/name", { ...options, weights: [], offline: true });
    await rejects(resolveModel("org/name", { ...options, offline: true }), fails(HubError, /offline/));
    await resolveModel("org/name", { ...options, weights: ["vae"] });
    const weights = (await filesIn(folder)).filter((name) => name.endsWith(".safetensors"));
    deepStrictEqual(weights, ["vae/diffusion_pytorch_model.safetensors"]);
  });
});

Deno.test("a download that is cut off goes on where it was", async () => {
  await withHub(async (hub, options) => {
    const ranges: [string | null, string | null][] = [];
    hub.intercept = (path, request) => {
      if (path !== SHARD || request.method === "HEAD") return undefined;
      ranges.push([request.headers.get("range"), request.headers.get("if-range")]);
      return ranges.length < 3 ? partOf(hub, path, { end: ranges.length * 100_000, request }) : undefined;
    };
    const folder = await resolveModel("org/name", { ...options, ...only("transformer") });
    deepStrictEqual(await Deno.readFile(`${folder}/${SHARD}`), TRANSFORMER_1);
    const etag = `"${sha256(TRANSFORMER_1)}"`;
    deepStrictEqual(ranges, [[null, null], ["bytes=100000-", etag], ["bytes=200000-", etag]]);
    ok(!(await filesIn(folder)).some((name) => name.includes(".part")));
  });
});

Deno.test("a download that is aborted goes on at the next call", async () => {
  await withHub(async (hub, options) => {
    const controller = new AbortController();
    hub.intercept = (path, request) =>
      path === SHARD && request.method === "GET" && !controller.signal.aborted
        ? partOf(hub, path, { end: 120_000, request, hang: true })
        : undefined;
    const reason = new Error("stopped by hand");
    const stopped = rejects(
      resolveModel("org/name", { ...options, ...only("transformer"), signal: controller.signal }),
      (error) => error === reason,
    );
    const part = `${options.cache}/127.0.0.1_${new URL(hub.url).port}/org--name/${COMMIT}/${SHARD}.part`;
    while ((await Deno.stat(part).catch(() => undefined))?.size !== 120_000) {
      await new Promise((done) => setTimeout(done, 10));
    }
    controller.abort(reason);
    await stopped;
    strictEqual((await Deno.stat(part)).size, 120_000);
    const before = hub.headers.length;
    const folder = await resolveModel("org/name", { ...options, ...only("transformer") });
    deepStrictEqual(await Deno.readFile(`${folder}/${SHARD}`), TRANSFORMER_1);
    ok(hub.headers.slice(before).some((headers) => headers.get("range") === "bytes=120000-"));
  });
  await rejects(resolveModel("org/name", { signal: AbortSignal.abort() }), { name: "AbortError" });
});

Deno.test("a connection that goes quiet is given up and taken up again", async () => {
  await withHub(async (hub, options) => {
    let tries = 0;
    hub.intercept = (path, request) =>
      path === SHARD && request.method === "GET" && ++tries === 1
        ? partOf(hub, path, { end: 1000, request, hang: true })
        : undefined;
    const folder = await resolveModel("org/name", { ...options, ...only("transformer"), stallTimeout: 200 });
    deepStrictEqual(await Deno.readFile(`${folder}/${SHARD}`), TRANSFORMER_1);
    strictEqual(tries, 2);
  });
});

Deno.test("a file that changed between two tries starts anew", async () => {
  await withHub(async (hub, options) => {
    let tries = 0;
    hub.intercept = (path, request) => {
      if (path !== SHARD || request.method === "HEAD" || ++tries > 1) return undefined;
      const response = partOf(hub, path, { end: 150_000, request });
      hub.files = { ...MODEL, [SHARD]: weights(250_000, 9) };
      return response;
    };
    const folder = await resolveModel("org/name", { ...options, ...only("transformer") });
    deepStrictEqual(await Deno.readFile(`${folder}/${SHARD}`), weights(250_000, 9));
  });
});

Deno.test("a part whose bytes are wrong is thrown away and downloaded again", async () => {
  await withHub(async (hub, options) => {
    let tries = 0;
    hub.intercept = (path, request) => {
      if (path !== SHARD || request.method === "HEAD" || ++tries > 1) return undefined;
      const files = hub.files;
      hub.files = { ...files, [SHARD]: TRANSFORMER_1.map((byte) => byte ^ 1) };
      const response = partOf(hub, path, { end: 150_000, request });
      hub.files = files;
      response.headers.set("etag", `"${sha256(TRANSFORMER_1)}"`);
      return response;
    };
    const folder = await resolveModel("org/name", { ...options, ...only("transformer") });
    deepStrictEqual(await Deno.readFile(`${folder}/${SHARD}`), TRANSFORMER_1);
    strictEqual(tries, 3); // the wrong part, the rest that did not fit it, the whole
  });
});

Deno.test("a whole part that was not renamed is checked and kept", async () => {
  await withHub(async (hub, options) => {
    const folder = await resolveModel("org/name", { ...options, ...only("transformer") });
    await Deno.rename(`${folder}/${SHARD}`, `${folder}/${SHARD}.part`);
    await Deno.writeTextFile(`${folder}/${SHARD}.part.json`, JSON.stringify({ sha256: sha256(TRANSFORMER_1) }));
    const before = hub.requests.length;
    await resolveModel("org/name", { ...options, ...only("transformer") });
    deepStrictEqual(await Deno.readFile(`${folder}/${SHARD}`), TRANSFORMER_1);
    deepStrictEqual(hub.requests.slice(before), [`HEAD ${SHARD}`, `GET ${SHARD}`]);
  });
});

Deno.test("a file of another hash than promised is refused, and not kept", async () => {
  await withHub(async (hub, options) => {
    hub.intercept = (path, request) => {
      if (path !== SHARD) return undefined;
      const response = serveFile(hub, path, request);
      response.headers.set("etag", `"${"0".repeat(64)}"`);
      return response;
    };
    await rejects(
      resolveModel("org/name", { ...options, ...only("transformer") }),
      fails(HubError, new RegExp(`SHA-256 is ${sha256(TRANSFORMER_1)} and not 0{64}`)),
    );
    ok(!(await filesIn(options.cache)).some((name) => name.includes("model-1-of-2")));
  });
});

Deno.test("a file of another size than promised is refused", async () => {
  await withHub(async (hub, options) => {
    hub.intercept = (path, request) => {
      if (path !== SHARD) return undefined;
      const response = serveFile(hub, path, request);
      response.headers.set("x-linked-size", "1000");
      return response;
    };
    await rejects(
      resolveModel("org/name", { ...options, ...only("transformer") }),
      fails(HubError, /more than the 1000 bytes/),
    );
    ok(!(await filesIn(options.cache)).some((name) => name.includes("model-1-of-2")));

    hub.intercept = (path, request) => {
      if (path !== SHARD) return undefined;
      const response = serveFile(hub, path, request);
      response.headers.set("x-linked-size", "1000000");
      return response;
    };
    await rejects(
      resolveModel("org/name", { ...options, ...only("transformer"), retries: 1 }),
      fails(HubError, /300000|does not fit/),
    );
    ok(!(await filesIn(options.cache)).some((name) => name.endsWith("model-1-of-2.safetensors")));
  });
});

Deno.test("a redirect to another host does not take the token along, and the hub's hash counts", async () => {
  await withHub(async (hub, options) => {
    const store: Headers[] = [];
    const server = Deno.serve({ hostname: "127.0.0.1", port: 0, onListen: () => {} }, (request) => {
      store.push(request.headers);
      // A store's ETag may look like a hash and be of something else.
      const response = serveFile(hub, new URL(request.url).pathname.slice(1), request);
      response.headers.set("etag", `"${"f".repeat(64)}"`);
      return response;
    });
    hub.intercept = (path) => {
      if (!path.endsWith(".safetensors")) return undefined;
      const bytes = bytesOf(MODEL[path]!);
      return new Response(null, {
        status: 302,
        headers: {
          location: `http://127.0.0.1:${server.addr.port}/${path}`,
          "x-linked-size": String(bytes.length),
          "x-linked-etag": `"${sha256(bytes)}"`,
          "x-repo-commit": COMMIT,
        },
      });
    };
    const folder = await resolveModel("org/name", { ...options, ...only("vae") });
    deepStrictEqual(await Deno.readFile(`${folder}/vae/diffusion_pytorch_model.safetensors`), VAE);
    strictEqual(store.length, 1); // the hub itself answered the question for the size
    strictEqual(store[0]!.get("authorization"), null);
    ok(hub.headers.every((headers) => headers.get("authorization") === "Bearer secret"));

    hub.intercept = (path) =>
      path.endsWith(".safetensors")
        ? new Response(null, { status: 302, headers: { location: `${hub.url}/org/name/resolve/x/${path}` } })
        : undefined;
    await rejects(
      resolveModel("org/name", { ...options, ...only("transformer") }),
      fails(HubError, /redirects more than 8 times/),
    );
    hub.intercept = (path) =>
      path.endsWith(".safetensors")
        ? new Response(null, { status: 302, headers: { location: "file:///x" } })
        : undefined;
    await rejects(resolveModel("org/name", { ...options, ...only("transformer") }), fails(HubError, /"file:\/\/\/x"/));
    await server.shutdown();
  });
});

Deno.test("the token of the environment is for its own hub alone", async () => {
  await withHub(async (hub, { token: _, ...options }) => {
    const { endpoint: __, ...elsewhere } = options;
    const before = Deno.env.get("HF_TOKEN");
    Deno.env.set("HF_TOKEN", "from the environment");
    try {
      await resolveModel(`${hub.url}/org/name/tree/main`, { ...elsewhere, ...only("scheduler") });
      ok(hub.headers.length > 0 && hub.headers.every((headers) => !headers.has("authorization")));
      await resolveModel("org/name", { ...options, ...only("vae") });
      strictEqual(hub.headers.at(-1)!.get("authorization"), "Bearer from the environment");
    } finally {
      if (before === undefined) Deno.env.delete("HF_TOKEN");
      else Deno.env.set("HF_TOKEN", before);
    }
  });
});

Deno.test("refusals say what to do", async () => {
  await withHub(async (hub, { token, ...options }) => {
    const answer = (status: number, headers: Record<string, string> = {}) => {
      hub.intercept = () => new Response(null, { status, headers });
    };
    answer(401);
    await rejects(
      resolveModel("org/name", options),
      fails(HubError, /401/, /accept its license/, /HF_TOKEN/, /no folder/),
    );
    await rejects(resolveModel("org/name", { ...options, token: token! }), fails(HubError, /the token is not valid/));
    answer(403, { "x-error-message": "Access to model org/name is restricted" });
    await rejects(
      resolveModel("org/name", options),
      fails(HubError, /403 \(Access to model/, /accept the model's license/),
    );
    answer(404, { "x-error-code": "RepoNotFound" });
    await rejects(
      resolveModel("org/name", options),
      fails(HubError, /404/, /check the name/, /no folder org\/name here/),
    );
    answer(404);
    await rejects(
      resolveModel("org/name", options),
      fails(HubError, /no model_index.json or config.json/, /no folder/),
    );
    await rejects(resolveModel(`${hub.url}/org/name`, options), fails(HubError, /no model_index.json or config.json/));
    answer(429);
    await rejects(resolveModel("org/name", { ...options, retries: 1 }), fails(HubError, /429/, /wait some minutes/));
    answer(418);
    await rejects(resolveModel("org/name", options), fails(HubError, /418/, /check the address/));
    const tries = hub.requests.length;
    answer(503);
    await rejects(resolveModel("org/name", { ...options, retries: 3 }), fails(HubError, /503/, /run again later/));
    strictEqual(hub.requests.length, tries + 4);
  });
});

Deno.test("a model that was not found can be found later", async () => {
  await withHub(async (hub, options) => {
    hub.commit = undefined;
    hub.files = {};
    await rejects(resolveModel("org/name", options), HubError);
    hub.files = MODEL;
    const folder = await resolveModel("org/name", { ...options, ...only("vae") });
    deepStrictEqual(await Deno.readFile(`${folder}/vae/diffusion_pytorch_model.safetensors`), VAE);
  });
});

Deno.test("a busy or failing server is asked again, no sooner than it says", async () => {
  await withHub(async (hub, options) => {
    const failures = [429, 500, 503, 408];
    let asked = 0;
    hub.intercept = (path, request) => {
      if (path !== "vae/config.json" || request.method === "HEAD") return undefined;
      if (asked === 0) asked = performance.now();
      const status = failures.shift();
      return status === undefined
        ? undefined
        : new Response(null, { status, headers: status === 429 ? { "retry-after": "1" } : {} });
    };
    await resolveModel("org/name", { ...options, ...only("vae") });
    deepStrictEqual(failures, []);
    ok(performance.now() - asked > 990);
  });
});

Deno.test("a server that cannot be reached is named, and soon", async () => {
  const cache = await Deno.makeTempDir();
  const listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  const endpoint = `http://127.0.0.1:${listener.addr.port}`;
  listener.close();
  const options = { cache, endpoint, retryDelay: 1 };
  await rejects(resolveModel("org/name", options), fails(HubError, new RegExp(`cannot reach ${endpoint.slice(7)}`)));
  await rejects(
    resolveModel("org/name", { ...options, offline: true }),
    fails(HubError, /offline/, /with a connection/),
  );
  await Deno.remove(cache, { recursive: true });
});

Deno.test("names that lead out of the folder are refused", async () => {
  const index = "transformer/diffusion_pytorch_model.safetensors.index.json";
  const names = [
    "../x.safetensors",
    "/x.safetensors",
    "a/../../x.safetensors",
    "a\\..\\x.safetensors",
    "",
    ".x",
    "C:x",
    5,
  ];
  for (const name of names) {
    await withHub(async (hub, options) => {
      hub.files = { ...MODEL, [index]: JSON.stringify({ weight_map: { "a.weight": name } }) };
      await rejects(resolveModel("org/name", { ...options, ...only("transformer") }), (error) => {
        ok(error instanceof HubError && error.key === "a.weight", `${error}`);
        return fails(HubError, /not a plain relative path/)(error);
      });
    });
  }
  await withHub(async (hub, options) => {
    hub.files = { ...MODEL, "model_index.json": JSON.stringify({ "../../x": ["diffusers", "AutoencoderKL"] }) };
    await rejects(resolveModel("org/name", options), fails(HubError, /"..\/..\/x"/));
    hub.files = { ...MODEL, [index]: JSON.stringify({ weight_map: { a: "x.bin" } }) };
  });
  await withHub(async (hub, options) => {
    hub.files = { ...MODEL, [index]: JSON.stringify({ weight_map: { a: "x.bin" } }) };
    await rejects(
      resolveModel("org/name", { ...options, ...only("transformer") }),
      fails(HubError, /only safetensors/),
    );
  });
});

Deno.test("broken lists and missing weights are named", async () => {
  await withHub(async (hub, options) => {
    hub.files = { ...MODEL, "model_index.json": "{" };
    await rejects(resolveModel("org/name", options), (error) => {
      ok(error instanceof ConfigError && error.file!.endsWith("model_index.json"), `${error}`);
      return /remove it and run again/.test(error.message);
    });
  });
  await withHub(async (hub, options) => {
    hub.files = { ...MODEL, "transformer/diffusion_pytorch_model.safetensors.index.json": '{"weight_map":{}}' };
    await rejects(
      resolveModel("org/name", options),
      (error) => error instanceof ConfigError && error.key === "weight_map",
    );
  });
  await withHub(async (hub, options) => {
    const { "text_encoder/model.safetensors": _, ...files } = MODEL;
    hub.files = files;
    await rejects(
      resolveModel("org/name", options),
      fails(HubError, /has no text_encoder\/model.safetensors/, /only safetensors/),
    );
  });
});

Deno.test("a model without model_index.json is one component", async () => {
  await withHub(async (hub, options) => {
    hub.files = { "config.json": '{"_class_name":"AutoencoderKL"}', "diffusion_pytorch_model.safetensors": VAE };
    const folder = await resolveModel("org/name", options);
    deepStrictEqual(await Deno.readFile(`${folder}/diffusion_pytorch_model.safetensors`), VAE);
  });
  await withHub(async (hub, options) => {
    hub.files = { "config.json": '{"architectures":["CLIPTextModel"]}', "model.safetensors": CLIP };
    const folder = await resolveModel("org/name", options);
    deepStrictEqual(await Deno.readFile(`${folder}/model.safetensors`), CLIP);
  });
});

Deno.test("calls at the same time download everything once", async () => {
  await withHub(async (hub, options) => {
    hub.intercept = async (path, request) => {
      if (request.method === "GET" && path.endsWith(".safetensors")) await new Promise((done) => setTimeout(done, 50));
      return undefined as unknown as Response;
    };
    const folders = await Promise.all([1, 2, 3].map(() => resolveModel("org/name", options)));
    strictEqual(new Set(folders).size, 1);
    const gets = hub.requests.filter((request) => request.startsWith("GET"));
    deepStrictEqual(gets, [...new Set(gets)]);
    deepStrictEqual(await Deno.readFile(`${folders[0]}/${SHARD}`), TRANSFORMER_1);
  });
});

Deno.test("processes at the same time download everything once, and go on from one that was killed", async () => {
  await withHub(async (hub, { endpoint, cache }) => {
    const module = new URL("../../lib/pipelines/hub.ts", import.meta.url);
    const start = () =>
      new Deno.Command(Deno.execPath(), {
        args: [
          "eval",
          "--quiet",
          `import { resolveModel } from "${module}";
          console.log(await resolveModel("org/name", ${
            JSON.stringify({ endpoint, cache, components: ["transformer"] })
          }));`,
        ],
        stdout: "piped",
      }).spawn();

    hub.intercept = (path, request) =>
      path === SHARD && request.method === "GET" ? partOf(hub, path, { end: 120_000, request, hang: true }) : undefined;
    const killed = start();
    const part = `${cache}/127.0.0.1_${new URL(hub.url).port}/org--name/${COMMIT}/${SHARD}.part`;
    while ((await Deno.stat(part).catch(() => undefined))?.size !== 120_000) {
      await new Promise((done) => setTimeout(done, 10));
    }
    killed.kill("SIGKILL");
    await killed.output();

    hub.intercept = () => undefined;
    hub.requests.length = 0;
    hub.headers.length = 0;
    const outputs = await Promise.all([start(), start(), start()].map((process) => process.output()));
    const folders = outputs.map(({ stdout }) => new TextDecoder().decode(stdout).trim());
    strictEqual(new Set(folders).size, 1);
    deepStrictEqual(await Deno.readFile(`${folders[0]}/${SHARD}`), TRANSFORMER_1);
    const gets = hub.requests.filter((request) => request.startsWith("GET"));
    deepStrictEqual(gets, [...new Set(gets)]);
    strictEqual(hub.headers[hub.requests.indexOf(`GET ${SHARD}`)]!.get("range"), "bytes=120000-");
  });
});

Deno.test("refresh asks what a branch is now, and keeps what did not change its commit", async () => {
  await withHub(async (hub, options) => {
    const vae = { ...options, ...only("vae") };
    const folder = await resolveModel("org/name", vae);
    const before = hub.requests.length;
    strictEqual(await resolveModel("org/name", { ...vae, refresh: true }), folder);
    deepStrictEqual(hub.requests.slice(before), ["HEAD model_index.json"]);

    hub.commit = NEXT_COMMIT;
    hub.files = { ...MODEL, "vae/diffusion_pytorch_model.safetensors": CLIP };
    strictEqual(await resolveModel("org/name", vae), folder);
    const next = await resolveModel("org/name", { ...vae, refresh: true });
    ok(next.endsWith(NEXT_COMMIT), next);
    deepStrictEqual(await Deno.readFile(`${next}/vae/diffusion_pytorch_model.safetensors`), CLIP);
    strictEqual(await resolveModel("org/name", { ...vae, offline: true }), next);
  });
});

Deno.test("a folder on any server, and one file, are downloaded by URL", async () => {
  await withHub(async (hub, options) => {
    hub.commit = undefined;
    hub.files = Object.fromEntries(Object.entries(MODEL).map(([name, file]) => [`/models/my flux/${name}`, file]));
    const elsewhere = { ...options, endpoint: "https://hub.invalid" };
    const url = `${hub.url}/models/my%20flux/`;
    const folder = await resolveModel(url, elsewhere);
    deepStrictEqual(await Deno.readFile(`${folder}/${SHARD}`), TRANSFORMER_1);
    strictEqual(await resolveModel(url, { ...elsewhere, offline: true }), folder);

    hub.files["/models/my flux/vae/config.json"] = '{"changed":true}';
    await resolveModel(url, { ...elsewhere, refresh: true });
    strictEqual(await Deno.readTextFile(`${folder}/vae/config.json`), '{"changed":true}');

    const file = `${hub.url}/models/my%20flux/vae/diffusion_pytorch_model.safetensors?signature=1`;
    const path = await resolveModel(file, elsewhere);
    ok(path.endsWith("/diffusion_pytorch_model.safetensors"), path);
    deepStrictEqual(await Deno.readFile(path), VAE);
    strictEqual(await resolveModel(file, { ...elsewhere, offline: true }), path);
  });
  await withHub(async (hub, options) => {
    const path = await resolveModel(`${hub.url}/org/name/blob/main/${SHARD}`, options);
    ok(path.endsWith(`/${COMMIT}/${SHARD}`), path);
    deepStrictEqual(await Deno.readFile(path), TRANSFORMER_1);
    await rejects(
      resolveModel(`${hub.url}/org/name/tree/main/vae`, options),
      fails(HubError, /components/),
    );
  });
});

Deno.test("a cache that cannot be written is an OutputError that names the way out", async () => {
  await withHub(async (_, options) => {
    await Deno.writeTextFile(`${options.cache}/file`, "");
    await rejects(resolveModel("org/name", { ...options, cache: `${options.cache}/file` }), (error) => {
      ok(error instanceof OutputError, `${error}`);
      return /DENOISE_CACHE/.test(error.message);
    });
  });
});

Deno.test({
  name: "without permission to the network, the flag is named",
  permissions: { read: true, write: true, env: true, net: false },
  fn: async () => {
    const cache = await Deno.makeTempDir();
    await rejects(
      resolveModel("org/name", { cache, endpoint: "https://hub.invalid" }),
      fails(HubError, /--allow-net=hub.invalid/),
    );
    await Deno.remove(cache, { recursive: true });
  },
});

Deno.test("downloads are kept in DENOISE_CACHE, or in the platform's folder of caches", () => {
  const before = Deno.env.get("DENOISE_CACHE");
  try {
    Deno.env.set("DENOISE_CACHE", "/some/where");
    strictEqual(cacheFolder(), "/some/where");
    Deno.env.delete("DENOISE_CACHE");
    ok(cacheFolder().endsWith("/denoise"));
  } finally {
    if (before === undefined) Deno.env.delete("DENOISE_CACHE");
    else Deno.env.set("DENOISE_CACHE", before);
  }
});

Deno.test({
  name: "without permission to the environment, a cache must be passed",
  permissions: { env: false },
  fn: () => throws(() => cacheFolder(), { name: "HubError", message: /DENOISE_CACHE/ }),
});
