/**
 * The folder of what is kept from one process to the next: downloads, tunings.
 *
 * @module
 */

import { environment } from "../../ffi/environment.ts";

/**
 * The folder of caches.
 *
 * @returns `DENOISE_CACHE`, or `denoise` in the platform's folder of caches; `undefined` where the environment does not
 * say where that is, or may not be read
 */
export function findCacheFolder(): string | undefined {
  const env = (name: string) => environment(name) || undefined;
  const own = env("DENOISE_CACHE");
  if (own !== undefined) return own;
  const home = env("HOME");
  const caches = Deno.build.os === "windows"
    ? env("LOCALAPPDATA")
    : Deno.build.os === "darwin"
    ? home && `${home}/Library/Caches`
    : env("XDG_CACHE_HOME") ?? (home && `${home}/.cache`);
  return caches && `${caches}/denoise`;
}
