/**
 * From a pipeline to a folder in diffusers' layout.
 *
 * @module
 */

import { CheckpointError } from "../errors.ts";
import type { Model } from "../nn/module.ts";
import { checkWeights, commitModels, type SaveOptions, stageModel, toJson } from "../nn/save.ts";
import type { Device } from "../tensor/device.ts";
import { FolderUpdate } from "../tensor/folder_update.ts";
import { type ModelIndex, readConfig } from "./pipeline.ts";

/** What a pipeline is made of, by the names of the parts' folders. */
export interface PipelineParts {
  /** Where it was loaded from. */
  readonly index: ModelIndex;
  /** The models that were loaded. */
  readonly models: Readonly<Record<string, Model | undefined>>;
  /** The parts without weights that were loaded; their files are copied. */
  readonly others: readonly string[];
  /** Classes that parts without weights were loaded as, where those may be others than the checkpoint's. */
  readonly classes?: Readonly<Record<string, string>> | undefined;
  /** Where weights that are not computed yet are computed. */
  readonly device: Device;
}

/**
 * Saves a pipeline, all of its parts at once: a reader finds the old folder or the new one.
 *
 * @param folder The folder, which is made if there is none.
 * @param parts The pipeline.
 * @param options The size of files.
 */
export async function savePipeline(folder: string, parts: PipelineParts, options: SaveOptions): Promise<void> {
  const { index, others, device } = parts;
  const models = Object.entries(parts.models).filter((entry) => entry[1] !== undefined) as [string, Model][];
  for (const [, model] of models) checkWeights(model);
  await using update = await FolderUpdate.begin(folder);
  for (const [place, model] of models) await stageModel(update, model, { ...options, place, device });
  for (const place of others) {
    const className = parts.classes?.[place];
    for (const name of await filesOf(`${index.folder}/${place}`)) {
      const source = `${index.folder}/${place}/${name}`;
      if (className !== undefined && className !== index.parts.get(place) && name.endsWith("_config.json")) {
        await update.writeText(`${place}/${name}`, toJson({ ...await readConfig(source), _class_name: className }));
      } else await update.copy(`${place}/${name}`, source);
    }
  }
  const here = new Set([...models.map(([place]) => place), ...others]);
  const isOwn = await isSame(folder, index.folder);
  const entries = Object.entries(index.fields).map(([name, value]) => {
    const className = parts.classes?.[name];
    if (Array.isArray(value) && className !== undefined) return [name, [value[0], className]];
    // A part that was left out when this was loaded stays where it is, and is not in other folders.
    return !Array.isArray(value) || here.has(name) || isOwn ? [name, value] : [name, [null, null]];
  });
  await update.writeText("model_index.json", toJson(Object.fromEntries(entries)));
  await commitModels(update, models.map(([, model]) => model));
}

async function filesOf(folder: string): Promise<string[]> {
  try {
    const entries = await Array.fromAsync(Deno.readDir(folder));
    return entries.filter((entry) => !entry.isDirectory && !entry.name.startsWith(".")).map(({ name }) => name).sort();
  } catch (cause) {
    throw new CheckpointError(`Cannot copy ${folder}, from where the pipeline was loaded: save before it goes`, {
      file: folder,
      cause,
    });
  }
}

const isSame = (a: string, b: string): Promise<boolean> =>
  Promise.all([Deno.realPath(a), Deno.realPath(b)]).then(([a, b]) => a === b, () => false);
