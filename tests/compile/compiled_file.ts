/**
 * Files of compiled functions, taken apart and put together in wrong ways.
 *
 * @module
 */

/** A file: its metadata, its tensors' entries and their bytes. */
export interface Parts {
  /** `denoise.compiled`, parsed. */
  manifest: Record<string, unknown>;
  /** The header's entries of tensors. */
  tensors: Record<string, { dtype: string; shape: number[]; data_offsets: [number, number] }>;
  /** The tensors' bytes. */
  data: Uint8Array<ArrayBuffer>;
}

/**
 * Takes a file apart.
 *
 * @param path The file.
 * @returns Its parts.
 */
export async function takeApart(path: string): Promise<Parts> {
  const bytes = await Deno.readFile(path);
  const length = Number(new DataView(bytes.buffer).getBigUint64(0, true));
  const { __metadata__: metadata, ...tensors } = JSON.parse(new TextDecoder().decode(bytes.subarray(8, 8 + length)));
  return { manifest: JSON.parse(metadata["denoise.compiled"]), tensors, data: bytes.slice(8 + length) };
}

/**
 * Puts a file together, with the digest that its programs and files have.
 *
 * @param path The file.
 * @param parts Its parts.
 */
export async function putTogether(path: string, { manifest, tensors, data }: Parts): Promise<void> {
  const text = JSON.stringify(manifest);
  const bytesOf = (name: string, bytes: unknown) => {
    const begin = tensors[name]?.data_offsets[0] ?? 0;
    return data.slice(begin, begin + (typeof bytes === "number" ? bytes : 0));
  };
  const list = (value: unknown) => Array.isArray(value) ? value : [];
  const whole = new Blob([
    text,
    ...list(manifest.programs).map((bytes, i) => bytesOf(`program.${i}`, bytes)),
    ...list(manifest.assets).map((asset, i) => bytesOf(`asset.${i}`, asset?.bytes)),
  ]);
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", await whole.arrayBuffer())).toHex();
  const metadata = { "denoise.compiled": text, "denoise.sha256": digest };
  const header = new TextEncoder().encode(JSON.stringify({ __metadata__: metadata, ...tensors }));
  const padded = Math.ceil((8 + header.length) / 64) * 64 - 8;
  const bytes = new Uint8Array(8 + padded + data.length).fill(0x20, 8, 8 + padded);
  new DataView(bytes.buffer).setBigUint64(0, BigInt(padded), true);
  bytes.set(header, 8);
  bytes.set(data, 8 + padded);
  await Deno.writeFile(path, bytes);
}
