/**
 * Environment variables, for programs that may not be allowed to read them.
 *
 * @module
 */

/**
 * An environment variable.
 *
 * @param name Its name.
 * @returns Its value; `undefined` where it is not set or may not be read.
 */
export function environment(name: string): string | undefined {
  // Asking first keeps Deno from stopping to ask the person.
  if (Deno.permissions.querySync({ name: "env", variable: name }).state !== "granted") return undefined;
  return Deno.env.get(name);
}
