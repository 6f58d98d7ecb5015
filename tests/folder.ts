/**
 * Runs a test with a folder of its own, which is removed whatever happens.
 *
 * @param test What to do in it.
 */
export async function withFolder(test: (folder: string) => void | Promise<void>): Promise<void> {
  const folder = await Deno.makeTempDir();
  try {
    await test(folder);
  } finally {
    await Deno.chmod(folder, 0o700).catch(() => {}); // a test may have closed it
    await Deno.remove(folder, { recursive: true });
  }
}
