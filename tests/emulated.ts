/**
 * The emulated CUDA device, for tests.
 *
 * @module
 */

import { NativeError } from "../lib/errors.ts";
import { Device } from "../lib/tensor/device.ts";

/**
 * Opens the emulated device.
 *
 * @returns It; `undefined`, which is said, where its library is not built, which the build of the tests does.
 */
export async function openEmulated(): Promise<Device | undefined> {
  try {
    return await Device.open({ device: "cuda-emulated" });
  } catch (error) {
    if (!(error instanceof NativeError) || error.code !== "unavailable") throw error;
    console.error(`skipped: ${error.message}`);
    return undefined;
  }
}
