/**
 * Runs recipes as a user does.
 *
 * @module
 */

import type { Image } from "../../lib/media/image.ts";
import { FluxPipeline } from "../../lib/pipelines/flux.ts";

/**
 * The picture that recipes make, by the model in floats.
 *
 * @returns The picture.
 */
export async function floatPicture(): Promise<Image> {
  const pipe = await FluxPipeline.load("models/shapes-flux");
  const { images } = await pipe("a large red star on a navy background", { seed: 5, numInferenceSteps: 20 });
  return images[0]!;
}

/**
 * A recipe's own permissions, from its first line.
 *
 * @param recipe Its path from the project's folder.
 * @returns The flags.
 */
export async function permissionsOf(recipe: string): Promise<string[]> {
  const [first = ""] = (await Deno.readTextFile(recipe)).split("\n");
  return first.split(" ").filter((word) => word.startsWith("--"));
}

/**
 * Runs a recipe under its own permissions.
 *
 * @param recipe Its path from the project's folder.
 * @param args Its arguments.
 * @returns Its exit code and what it printed.
 */
export async function runRecipe(
  recipe: string,
  ...args: readonly string[]
): Promise<{ code: number; stdout: string; stderr: string }> {
  const { code, stdout, stderr } = await new Deno.Command(Deno.execPath(), {
    args: ["run", ...await permissionsOf(recipe), recipe, ...args],
    env: { NO_COLOR: "1" },
  }).output();
  const text = new TextDecoder();
  return { code, stdout: text.decode(stdout), stderr: text.decode(stderr) };
}
