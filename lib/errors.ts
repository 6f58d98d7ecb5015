/**
 * The errors that denoise raises on purpose. Wrong arguments are the language's own `TypeError` (a type or a shape)
 * and `RangeError` (a value); what comes from outside the program has a class here.
 *
 * @module
 */

/** What every error of this module carries besides its sentence. */
export interface ErrorDetails extends ErrorOptions {
  /** The file or address at fault. */
  file?: string | undefined;
  /** The key within it: a tensor's name, a configuration field. */
  key?: string | undefined;
}

/** The base of all errors about things outside the program. */
export class DenoiseError extends Error {
  /** The class's name. */
  override name = "DenoiseError";
  /** The file or address at fault, where there is one. */
  readonly file?: string | undefined;
  /** The key within the file, where there is one. */
  readonly key?: string | undefined;

  /** Makes an error from a sentence that names the thing, the value and the remedy. */
  constructor(message: string, details: ErrorDetails = {}) {
    super(message, details.cause === undefined ? undefined : { cause: details.cause });
    this.file = details.file;
    this.key = details.key;
  }
}

/** A checkpoint that is missing, truncated, malformed, or not of the expected names, shapes or dtypes. */
export class CheckpointError extends DenoiseError {
  /** The class's name. */
  override name = "CheckpointError";
}

/** A configuration file that is missing, malformed, or names something that denoise does not have. */
export class ConfigError extends DenoiseError {
  /** The class's name. */
  override name = "ConfigError";
}

/** A download that failed: unreachable, refused, or not what was promised. */
export class HubError extends DenoiseError {
  /** The class's name. */
  override name = "HubError";
}

/** A result that could not be written: no permission, no space, no such folder. */
export class OutputError extends DenoiseError {
  /** The class's name. */
  override name = "OutputError";
}

/** A budget of memory that is too small for the least that would do. */
export class BudgetError extends DenoiseError {
  /** The class's name. */
  override name = "BudgetError";
  /** The bytes that would do. */
  readonly least: number;

  /** Makes an error from a sentence and the bytes that would do. */
  constructor(message: string, details: ErrorDetails & { least: number }) {
    super(message, details);
    this.least = details.least;
  }
}

/** An error of the native library; `code` is one of the library's error codes. */
export class NativeError extends DenoiseError {
  /** The class's name. */
  override name = "NativeError";
  /** The library's error code, a short lower-case word such as `bad_program`. */
  readonly code: string;

  /** Makes an error from the library's code and sentence. */
  constructor(code: string, message: string, details: ErrorDetails = {}) {
    super(message, details);
    this.code = code;
  }
}
