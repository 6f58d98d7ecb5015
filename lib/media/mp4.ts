/**
 * MP4 files of H.264. OpenH264, in the native library, encodes and decodes the frames; Mediabunny lays out the file.
 *
 * @module
 */

import type { EncodedPacketSink, InputVideoTrack } from "npm:mediabunny@1.61.0";
import { loadLibrary } from "../../ffi/library.ts";
import { NativeVideo, type VideoColour } from "../../ffi/native.ts";
import { DenoiseError, NativeError } from "../errors.ts";
import type { Destination } from "./destination.ts";
import { type FrameReader, type FrameWriter, pixelsOf, readingFile, type VideoFormatOptions } from "./frames.ts";

/** Loaded when a video is written or read, and told to print nothing: what goes wrong is an error here. */
async function mediabunny(): Promise<typeof import("npm:mediabunny@1.61.0")> {
  // Named in full: a module that is imported by URL does not see its own import map.
  const library = await import("npm:mediabunny@1.61.0");
  library.Logging.level = library.LogLevel.Silent;
  return library;
}

/** The sides and the number of pixels that the encoder takes. */
const MIN_SIDE = 16;
const MAX_SIDE = 3840;
const MAX_PIXELS = 3840 * 2160;

/** Colours as the encoder makes them, in the words of WebCodecs. */
const COLOUR_SPACE = { primaries: "bt709", transfer: "bt709", matrix: "bt709", fullRange: false } as const;

/** H.273's numbers of the matrix coefficients. */
const MATRICES: Readonly<Record<string, number>> = {
  bt709: 1,
  fcc: 4,
  bt470bg: 5,
  smpte170m: 6,
  smpte240m: 7,
  "bt2020-ncl": 9,
};

/**
 * Writes an MP4.
 *
 * @param destination Where its bytes go
 * @param options The size, the rate, the quality, the texts
 * @returns What takes its frames
 * @throws {RangeError} If H.264 does not take the size
 */
export async function createMp4(destination: Destination, options: VideoFormatOptions): Promise<FrameWriter> {
  const { width, height, fps, qp, numFrames, metadata } = options;
  const takes = (side: number) => side >= MIN_SIDE && side <= MAX_SIDE && side % 2 === 0;
  if (!takes(width) || !takes(height) || width * height > MAX_PIXELS) {
    throw new RangeError(
      `Cannot write a video of ${width} by ${height} as MP4: pass even sides of ${MIN_SIDE} to ${MAX_SIDE} pixels, ` +
        `at most 3840 by 2160, or a path that ends in .gif`,
    );
  }
  const [{ EncodedPacket, EncodedVideoPacketSource, Mp4OutputFormat, Output, StreamTarget }] = await Promise.all([
    mediabunny(),
    loadLibrary(),
  ]);
  const output = new Output({
    // Custom keywords take the metadata format of QuickTime. Where the length is known, the index goes first.
    format: new Mp4OutputFormat({ fastStart: numFrames === undefined ? false : "reserve", metadataFormat: "mdta" }),
    target: new StreamTarget(
      new WritableStream({ write: ({ data, position }) => destination.write(data, position) }),
    ),
  });
  const track = new EncodedVideoPacketSource("avc");
  output.addVideoTrack(track, {
    frameRate: fps,
    ...(numFrames === undefined ? {} : { maximumPacketCount: numFrames }),
  });
  if (Object.keys(metadata).length > 0) output.setMetadataTags({ raw: { ...metadata } });
  await output.start();
  const encoder = NativeVideo.encoder("h264", { width, height, fps, qp });
  let frames = 0;
  return {
    async write(frame) {
      const encoded = await encoder.push(frame);
      const stream = encoded.subarray(1);
      const packet = new EncodedPacket(stream, encoded[0] === 1 ? "key" : "delta", frames / fps, 1 / fps);
      await track.add(packet, frames === 0 ? { decoderConfig: configOf(stream, options) } : undefined);
      frames++;
    },
    async end() {
      await output.finalize();
      encoder[Symbol.dispose]();
    },
    async cancel() {
      encoder[Symbol.dispose]();
      if (output.state === "started") await output.cancel();
    },
  };
}

/** What a container says of a stream, from its first frame: of the codec as RFC 6381, 3.3 writes it. */
function configOf(
  stream: Uint8Array,
  { width, height }: VideoFormatOptions,
): { codec: string; codedWidth: number; codedHeight: number; colorSpace: typeof COLOUR_SPACE } {
  for (let at = 0; at + 6 < stream.length; at++) {
    const starts = stream[at] === 0 && stream[at + 1] === 0 && stream[at + 2] === 1;
    if (!starts || (stream[at + 3]! & 0x1f) !== SEQUENCE_PARAMETERS) continue;
    const codec = `avc1.${stream.subarray(at + 4, at + 7).toHex()}`; // profile, constraints, level
    return { codec, codedWidth: width, codedHeight: height, colorSpace: COLOUR_SPACE };
  }
  throw new NativeError("internal", "The first frame of a video has no parameters; this is a defect of the library");
}

/** The type of the NAL unit that holds a stream's size and all else that its pictures share. */
const SEQUENCE_PARAMETERS = 7;

/**
 * Reads an MP4 of H.264, or a QuickTime file.
 *
 * @param bytes The file's bytes
 * @param options The file's name, for messages
 * @returns Its frames and texts
 * @throws {DenoiseError} If it is broken, or not of H.264
 */
export async function openMp4(bytes: Uint8Array<ArrayBuffer>, options: { file: string }): Promise<FrameReader> {
  const { file } = options;
  const [{ BufferSource, EncodedPacketSink, Input, MP4, QTFF }] = await Promise.all([mediabunny(), loadLibrary()]);
  const reading = <T>(read: () => T | Promise<T>) => readingFile({ file, format: "an MP4" }, read);
  const input = new Input({ source: new BufferSource(bytes), formats: [MP4, QTFF] });
  return await reading(async () => {
    checkCounts(bytes);
    const track = await input.getPrimaryVideoTrack();
    const codec = await track?.getCodec();
    const description = track && codec === "avc" ? (await track.getDecoderConfig())?.description : undefined;
    if (!track || !description) {
      throw new DenoiseError(
        `Cannot read ${file}: it has ${track ? `video of ${codec ?? "an unknown codec"}` : "no video"}; pass an MP4 ` +
          "of H.264 or a GIF",
        { file },
      );
    }
    const parameters = readParameters(bytesOf(description));
    const sink = new EncodedPacketSink(track);
    const { frameCount, fps } = await timing(track, sink, bytes.length);
    const [width, height] = await Promise.all([track.getCodedWidth(), track.getCodedHeight()]);
    const { raw = {} } = await input.getMetadataTags();
    const metadata = Object.fromEntries(
      Object.entries(raw).filter((entry): entry is [string, string] => typeof entry[1] === "string"),
    );
    const colour = await colourOf(track);
    return {
      width,
      height,
      fps,
      frameCount,
      metadata,
      async *frames() {
        using decoder = NativeVideo.decoder("h264", colour);
        const packets = sink.packets();
        let head: readonly Uint8Array[] = parameters.sets;
        for (let given = 0; given < frameCount; given++) {
          const pixels = await reading(async () => {
            // The decoder holds pictures back until it knows their order.
            for (;;) {
              const { value } = await packets.next();
              const output = value
                ? await decoder.push(toByteStream(value.data, { ...parameters, head }))
                : await decoder.drain();
              head = [];
              if (output.length > 0) return pixelsOf(output, { width, height });
              if (!value) throw new Error(`it has ${given} of its ${frameCount} frames`);
            }
          });
          yield pixels;
        }
      },
    };
  });
}

/** Boxes that hold boxes. */
const CONTAINERS = new Set(["moov", "trak", "mdia", "minf", "stbl", "mvex", "moof", "traf"]);
/** Boxes whose entries count samples: the bytes of an entry, and where in it the count stands. */
const COUNTS: Readonly<Record<string, { entry: number; at: number }>> = {
  stts: { entry: 8, at: 0 },
  ctts: { entry: 8, at: 0 },
  stsc: { entry: 12, at: 4 },
};

/**
 * Refuses an index whose few bytes tell of more samples than the file has bytes, as they would be gone through one by
 * one. What else is wrong with it is found when it is read.
 */
function checkCounts(bytes: Uint8Array): void {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const check = (type: string, count: number) => {
    if (count > bytes.length) throw new Error(`its box ${type} tells of ${count} samples in ${bytes.length} bytes`);
  };
  const walk = (start: number, end: number) => {
    for (let at = start; at + 16 <= end;) {
      const type = new TextDecoder("latin1").decode(bytes.subarray(at + 4, at + 8));
      const short = view.getUint32(at); // 1: the size follows in 64 bits; 0: to the end
      const size = short === 1 ? Number(view.getBigUint64(at + 8)) : short || end - at;
      const content = at + (short === 1 ? 16 : 8);
      const next = Math.min(end, at + Math.max(size, 8));
      if (CONTAINERS.has(type)) walk(content, next);
      if (type === "trun" && content + 8 <= next) check(type, view.getUint32(content + 4));
      const counts = COUNTS[type];
      if (counts) {
        for (let entry = content + 8; entry + counts.entry <= next; entry += counts.entry) {
          check(type, view.getUint32(entry + counts.at));
        }
      }
      at = next;
    }
  };
  walk(0, bytes.length);
}

/** How many frames there are, and how many a second: exact where all are shown for the same time. */
async function timing(
  track: InputVideoTrack,
  sink: EncodedPacketSink,
  fileBytes: number,
): Promise<{ frameCount: number; fps: number }> {
  const resolution = await track.getTimeResolution();
  let frameCount = 0;
  let ticks = 0;
  for await (const { duration } of sink.packets(undefined, undefined, { metadataOnly: true })) {
    // An index of a few bytes may tell of billions.
    if (++frameCount > fileBytes) throw new Error(`its index tells of more frames than it has bytes`);
    ticks += Math.round(duration * resolution);
  }
  const fps = frameCount * resolution / ticks;
  if (!Number.isFinite(fps)) throw new Error(`its ${frameCount} frames are shown for ${ticks / resolution} seconds`);
  return { frameCount, fps };
}

async function colourOf(track: InputVideoTrack): Promise<VideoColour> {
  const { matrix, fullRange } = await track.getColorSpace();
  // What players do with videos that do not say.
  const unnamed = await track.getCodedHeight() < 720 ? "smpte170m" : "bt709";
  return { matrix: MATRICES[matrix ?? unnamed] ?? MATRICES[unnamed]!, fullRange: fullRange ?? false };
}

/** The parameter sets of a stream, and in how many bytes its NAL units' lengths are. */
interface Parameters {
  readonly sets: readonly Uint8Array[];
  readonly lengthBytes: number;
}

/** Reads an AVCDecoderConfigurationRecord (ISO/IEC 14496-15, 5.3.3.1). */
function readParameters(record: Uint8Array): Parameters {
  const fields = new Fields(record);
  fields.take(4); // version, profile, constraints, level
  const lengthBytes = (fields.number(1) & 3) + 1;
  const sets: Uint8Array[] = [];
  for (const mask of [0x1f, 0xff]) {
    for (let count = fields.number(1) & mask; count > 0; count--) sets.push(fields.take(fields.number(2)));
  }
  return { sets, lengthBytes };
}

const START_CODE = Uint8Array.of(0, 0, 0, 1);

/** NAL units after their lengths as NAL units after start codes, others before them. */
function toByteStream(
  packet: Uint8Array,
  { head, lengthBytes }: { head: readonly Uint8Array[]; lengthBytes: number },
): Uint8Array<ArrayBuffer> {
  const units = [...head];
  for (const fields = new Fields(packet); !fields.ended;) units.push(fields.take(fields.number(lengthBytes)));
  const out = new Uint8Array(units.reduce((sum, unit) => sum + START_CODE.length + unit.length, 0));
  let at = 0;
  for (const unit of units) {
    out.set(START_CODE, at);
    out.set(unit, at + START_CODE.length);
    at += START_CODE.length + unit.length;
  }
  return out;
}

/** Big-endian numbers and bytes, one after another. */
class Fields {
  #at = 0;
  readonly #bytes: Uint8Array;

  constructor(bytes: Uint8Array) {
    this.#bytes = bytes;
  }

  get ended(): boolean {
    return this.#at === this.#bytes.length;
  }

  take(count: number): Uint8Array {
    const end = this.#at + count;
    if (end > this.#bytes.length) throw new Error(`a frame ends ${end - this.#bytes.length} bytes early`);
    const field = this.#bytes.subarray(this.#at, end);
    this.#at = end;
    return field;
  }

  number(count: number): number {
    return this.take(count).reduce((value, byte) => value * 256 + byte, 0);
  }
}

function bytesOf(source: AllowSharedBufferSource): Uint8Array {
  return ArrayBuffer.isView(source)
    ? new Uint8Array(source.buffer, source.byteOffset, source.byteLength)
    : new Uint8Array(source);
}
