/**
 * `scheduler_config.json`, read field by field with the checks that a file from elsewhere needs.
 *
 * @module
 */

import { ConfigError } from "../errors.ts";

/** What a scheduler's configuration is read by. */
export interface SchedulerConfigOptions<C> {
  /** The class of diffusers that it must be of, if it names one. */
  readonly className: string;
  /** Every field with diffusers' default; those of null are numbers, or lists of them. */
  readonly defaults: Readonly<C>;
  /** The fields of null that are lists. */
  readonly lists?: readonly (keyof C)[];
  /** The file, for messages. */
  readonly file?: string | undefined;
}

/**
 * Reads a scheduler's configuration. Fields that are missing have diffusers' defaults; unknown ones are left alone, as
 * diffusers does.
 *
 * @param json The parsed file
 * @param options The class, its fields
 * @returns The fields, in camelCase
 * @throws {ConfigError} If it belongs to another class, or a field has a wrong type
 */
export function readSchedulerConfig<C extends object>(json: unknown, options: SchedulerConfigOptions<C>): C {
  const { className, defaults, lists = [], file } = options;
  const where = file ?? "the scheduler's configuration";
  if (typeof json !== "object" || json === null || Array.isArray(json)) {
    throw new ConfigError(`Cannot read ${where} as it is not a JSON object: use the scheduler_config.json of a model`, {
      file,
    });
  }
  const fields = json as Record<string, unknown>;
  const found = fields["_class_name"];
  if (found !== undefined && found !== className) {
    throw new ConfigError(
      `Cannot read ${where} as its _class_name is ${JSON.stringify(found)}, not ${className}: use the scheduler of ` +
        "that name",
      { file, key: "_class_name" },
    );
  }
  const config: Record<string, unknown> = { ...defaults };
  for (const [name, fallback] of Object.entries(defaults)) {
    const key = name.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);
    const value = fields[key];
    if (value === undefined || value === null) continue;
    const type = fallback !== null ? typeof fallback : lists.includes(name as keyof C) ? "list of numbers" : "number";
    if (!isOf(value, type)) {
      throw new ConfigError(`Cannot read ${where} as its ${key} is ${JSON.stringify(value)}: make it a ${type}`, {
        file,
        key,
      });
    }
    config[name] = value;
  }
  return config as C;
}

function isOf(value: unknown, type: string): boolean {
  if (type === "list of numbers") return Array.isArray(value) && value.every((item) => isOf(item, "number"));
  return typeof value === type && (type !== "number" || Number.isFinite(value));
}

/**
 * The error of a field whose value cannot be used.
 *
 * @param refusal The field, its value, what to do
 * @returns The error
 */
export function refusedField(
  refusal: { file?: string | undefined; key: string; value: unknown; remedy: string },
): ConfigError {
  const { file, key, value, remedy } = refusal;
  return new ConfigError(
    `Cannot use ${file ?? "the scheduler's configuration"} as its ${key} is ${JSON.stringify(value)}: ${remedy}`,
    { file, key },
  );
}
