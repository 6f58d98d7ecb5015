import { deepStrictEqual, ok, rejects, strictEqual, throws } from "node:assert/strict";
import { DenoiseError, OutputError } from "../../lib/errors.ts";
import { Image, settingsFromMetadata, settingsToMetadata } from "../../lib/media/image.ts";
import { psnr } from "../../lib/media/metrics.ts";
import { readVideo, Video, VideoReader, VideoWriter } from "../../lib/media/video.ts";
import { withFolder } from "../folder.ts";

const METADATA = { prompt: 'a red disc — 北京 "🙂"', seed: "5", "negative prompt": "" };

/** A disc and a square that move over moving shades. */
function clip(width: number, height: number, count: number): Image[] {
  return Array.from({ length: count }, (_, t) => {
    const data = new Uint8Array(width * height * 3);
    for (let y = 0; y < height; y++) {
      for (let x = 0; x < width; x++) {
        const disc = Math.hypot(x - width * (0.3 + 0.4 * t / count), y - height / 2) - height / 5;
        const square = Math.max(Math.abs(x - width * 0.7), Math.abs(y - height * (0.2 + 0.6 * t / count))) - height / 8;
        const shade = 40 * Math.sin(x / 17 + t / 9) * Math.cos(y / 13);
        let colour = [90 + 100 * x / width + shade, 120 + 60 * y / height + shade, 160 - 80 * x / width + shade];
        for (const [distance, over] of [[disc, [200, 60, 60]], [square, [50, 70, 200]]] as const) {
          const part = Math.max(0, Math.min(1, 0.5 - distance));
          colour = colour.map((value, c) => value + part * (over[c]! - value));
        }
        data.set(colour.map(Math.round), 3 * (y * width + x));
      }
    }
    return new Image({ width, height, data });
  });
}

const namesIn = (folder: string) => [...Deno.readDirSync(folder)].map(({ name }) => name).sort();

/** The least of the frames' likeness to what they were made from, in decibels. */
function leastPsnr(frames: readonly Image[], sources: readonly Image[]): number {
  strictEqual(frames.length, sources.length);
  return Math.min(...frames.map((frame, i) => psnr(frame, sources[i]!)));
}

Deno.test("an MP4 comes back whole, in order and close, with its rate and its texts", async () => {
  await withFolder(async (folder) => {
    const frames = clip(256, 192, 25);
    await new Video(frames, { fps: 8, metadata: METADATA }).save(`${folder}/clip.mp4`);
    const video = await readVideo(`${folder}/clip.mp4`);
    deepStrictEqual([video.width, video.height, video.fps, video.duration], [256, 192, 8, 25 / 8]);
    deepStrictEqual(video.metadata, METADATA);
    const least = leastPsnr(video.frames, frames);
    ok(least >= 35, `${least} dB`);
    deepStrictEqual(namesIn(folder), ["clip.mp4"]);
  });
});

Deno.test("a GIF comes back whole, in order and close, with its rate and its texts", async () => {
  await withFolder(async (folder) => {
    const frames = clip(65, 33, 9);
    await new Video(frames, { fps: 8, metadata: METADATA }).save(new URL(`file://${folder}/a%20b.GIF`));
    const video = await readVideo(new URL(`file://${folder}/a%20b.GIF`));
    deepStrictEqual([video.width, video.height, video.fps], [65, 33, 8]);
    deepStrictEqual(video.metadata, METADATA);
    const least = leastPsnr(video.frames, frames);
    ok(least >= 25, `${least} dB`); // 256 colours a frame
    deepStrictEqual(namesIn(folder), ["a b.GIF"]);
  });
});

Deno.test("a rate that is no whole number is kept exactly", async () => {
  await withFolder(async (folder) => {
    for (const fps of [1, 12.5, 24000 / 1001, 30000 / 1001, 120, 240]) {
      await new Video(clip(16, 16, 3), { fps }).save(`${folder}/clip.mp4`);
      strictEqual((await VideoReader.open(`${folder}/clip.mp4`)).fps, fps);
    }
  });
});

const hasFfmpeg = await Promise.all(
  ["ffmpeg", "ffprobe"].map((name) => new Deno.Command(name, { args: ["-version"], stdout: "null" }).output()),
).then(() => true, () => false);
/** Where another decoder is installed, it is asked; ignored tests say that it is not. */
const ffmpegTest = (name: string, fn: () => Promise<void>) =>
  Deno.test({ name: `${name} (by ffmpeg, where it is installed)`, ignore: !hasFfmpeg, fn });

async function run(command: string, ...args: string[]): Promise<Uint8Array> {
  const { success, stdout, stderr } = await new Deno.Command(command, { args: ["-v", "error", ...args] }).output();
  ok(success, new TextDecoder().decode(stderr));
  strictEqual(new TextDecoder().decode(stderr), "");
  return stdout;
}

/** All frames as RGB, as ffmpeg decodes them. */
async function decodeFrames(path: string, width: number, height: number): Promise<Image[]> {
  const bytes = await run("ffmpeg", "-i", path, "-f", "rawvideo", "-pix_fmt", "rgb24", "-");
  const size = width * height * 3;
  return Array.from(
    { length: bytes.length / size },
    (_, i) => new Image({ width, height, data: bytes.subarray(i * size, (i + 1) * size) }),
  );
}

ffmpegTest("an MP4 has the frames, size, rate, length, colours and texts that were asked for", async () => {
  await withFolder(async (folder) => {
    const path = `${folder}/clip.mp4`;
    for (
      const [width, height, count, fps, rate] of [
        [256, 192, 25, 8, "8/1"],
        [322, 178, 13, 30000 / 1001, "30000/1001"],
      ] as const
    ) {
      const frames = clip(width, height, count);
      await new Video(frames, { fps, metadata: METADATA }).save(path);
      const args = ["-count_frames", "-show_streams", "-show_format", "-of", "json", path];
      const { streams, format } = JSON.parse(new TextDecoder().decode(await run("ffprobe", ...args)));
      const [stream] = streams;
      strictEqual(streams.length, 1);
      deepStrictEqual([stream.codec_name, stream.pix_fmt, stream.has_b_frames], ["h264", "yuv420p", 0]);
      deepStrictEqual([stream.width, stream.height], [width, height]);
      deepStrictEqual([stream.r_frame_rate, stream.avg_frame_rate], [rate, rate]);
      deepStrictEqual([stream.nb_frames, stream.nb_read_frames], [String(count), String(count)]);
      ok(Math.abs(Number(stream.duration) - count / fps) < 1e-5, stream.duration);
      deepStrictEqual(
        [stream.color_range, stream.color_space, stream.color_transfer, stream.color_primaries],
        ["tv", "bt709", "bt709", "bt709"],
      );
      for (const [keyword, text] of Object.entries(METADATA)) strictEqual(format.tags[keyword] ?? "", text);
      const least = leastPsnr(await decodeFrames(path, width, height), frames);
      ok(least >= 35, `${least} dB`);
    }
  });
});

ffmpegTest("a GIF has the frames and the length that were asked for", async () => {
  await withFolder(async (folder) => {
    const frames = clip(64, 48, 9);
    await new Video(frames, { fps: 8, metadata: METADATA }).save(`${folder}/clip.gif`);
    const decoded = await decodeFrames(`${folder}/clip.gif`, 64, 48);
    strictEqual(decoded.length, 9);
    // Both decode the same palettes.
    leastPsnr(decoded, (await readVideo(`${folder}/clip.gif`)).frames);
    const args = ["-show_entries", "format=duration", "-of", "csv=p=0", `${folder}/clip.gif`];
    strictEqual(Number(new TextDecoder().decode(await run("ffprobe", ...args))), 1.13); // 112.5 hundredths
  });
});

ffmpegTest("other writers' MP4s are read: frames out of order, other colours, fragments", async () => {
  await withFolder(async (folder) => {
    const path = `${folder}/other.mp4`;
    const frames = clip(256, 192, 12);
    await Deno.writeFile(
      `${folder}/raw`,
      new Uint8Array(await new Blob(frames.map(({ data }) => data.slice())).arrayBuffer()),
    );
    const source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", "256x192", "-r", "25", "-i", `${folder}/raw`];
    for (
      const options of [
        ["-bf", "3", "-refs", "4", "-b_strategy", "0"],
        ["-bf", "0", "-profile:v", "baseline"],
        ["-bf", "2", "-g", "5", "-movflags", "frag_keyframe+empty_moov"],
        ["-vf", "scale=out_color_matrix=bt709:out_range=full", "-color_range", "pc", "-colorspace", "bt709"],
        ["-movflags", "+faststart"],
      ]
    ) {
      await run("ffmpeg", "-y", ...source, "-c:v", "libx264", "-crf", "12", "-pix_fmt", "yuv420p", ...options, path);
      const video = await readVideo(path);
      deepStrictEqual([video.width, video.height, video.fps], [256, 192, 25]);
      const least = leastPsnr(video.frames, frames);
      ok(least >= 33, `${options}: ${least} dB`);
    }
    await run("ffmpeg", "-y", ...source, "-c:v", "mpeg4", path);
    await rejects(readVideo(path), { name: "DenoiseError", message: /other\.mp4: it has video of .*H\.264/ });
    await run("ffmpeg", "-y", "-f", "lavfi", "-i", "sine=duration=1", "-c:a", "aac", path);
    await rejects(readVideo(path), { name: "DenoiseError", message: /other\.mp4: it has no video/ });
  });
});

Deno.test("frames are written as they come, one at a time, and appear when the video is closed", async () => {
  await withFolder(async (folder) => {
    for (const ending of ["mp4", "gif"]) {
      const frames = clip(128, 96, 20);
      const writer = await VideoWriter.create(`${folder}/clip.${ending}`, { width: 128, height: 96, fps: 8 });
      const written = frames.map((frame) => writer.write(frame)); // nobody waits between them
      await Promise.all(written);
      strictEqual(writer.frameCount, 20);
      const [partial] = namesIn(folder);
      ok(partial!.endsWith(".partial"));
      const { size } = await Deno.stat(`${folder}/${partial}`);
      await writer.close();
      const whole = (await Deno.stat(`${folder}/clip.${ending}`)).size;
      ok(size > whole / 2, `${size} of ${whole} bytes`);
      deepStrictEqual(namesIn(folder), [`clip.${ending}`]);
      const least = leastPsnr((await readVideo(`${folder}/clip.${ending}`)).frames, frames);
      ok(least > 25, `${least} dB`);
      await rejects(writer.write(frames[0]!), { name: "TypeError", message: /closed/ });
      await rejects(writer.close(), { name: "TypeError", message: /closed/ });
      await writer.abort(); // does nothing any more
      deepStrictEqual(namesIn(folder), [`clip.${ending}`]);
      await Deno.remove(`${folder}/clip.${ending}`);
    }
  });
});

Deno.test("an MP4's index stands first where its length is known", async () => {
  await withFolder(async (folder) => {
    for (const numFrames of [undefined, 4, 100]) {
      const path = `${folder}/clip.mp4`;
      const known = numFrames === undefined ? {} : { numFrames };
      const writer = await VideoWriter.create(path, { width: 32, height: 32, fps: 8, metadata: METADATA, ...known });
      for (const { data } of clip(32, 32, 4)) await writer.write(data);
      if (numFrames === 4) {
        await rejects(writer.write(clip(32, 32, 1)[0]!), { name: "RangeError", message: /numFrames is 4/ });
      }
      await writer.close();
      const bytes = new TextDecoder("latin1").decode(await Deno.readFile(path));
      strictEqual(bytes.indexOf("moov") < bytes.indexOf("mdat"), numFrames !== undefined);
      strictEqual((await readVideo(path)).frames.length, 4);
    }
  });
});

Deno.test("the quality is a choice", async () => {
  const video = new Video(clip(64, 64, 4), { fps: 8 });
  const sizes = await Promise.all([4, 18, 40].map(async (qp) => (await video.toMp4({ qp })).length));
  ok(sizes[0]! > sizes[1]! && sizes[1]! > sizes[2]!, `${sizes}`);
});

Deno.test("a video that is given up leaves nothing, and the old one is as it was", async () => {
  await withFolder(async (folder) => {
    for (const ending of ["mp4", "gif"]) {
      const path = `${folder}/clip.${ending}`;
      await Deno.writeTextFile(path, "the old one");
      const options = { width: 32, height: 32, fps: 8 };
      const writer = await VideoWriter.create(path, options);
      for (const frame of clip(32, 32, 3)) await writer.write(frame);
      await writer.abort();
      await rejects(writer.write(clip(32, 32, 1)[0]!), { name: "TypeError", message: /given up/ });
      {
        await using disposed = await VideoWriter.create(path, options);
        await disposed.write(clip(32, 32, 1)[0]!);
        await rejects(disposed.write(clip(32, 16, 1)[0]!), { name: "TypeError", message: /32 by 16/ });
      }
      {
        await using empty = await VideoWriter.create(path, options);
        await rejects(empty.close(), { name: "RangeError", message: /a frame or more/ });
      }
      await rejects(
        (async () => {
          await using failing = await VideoWriter.create(path, options);
          await failing.write(clip(32, 32, 1)[0]!);
          throw new Error("of the model");
        })(),
        /of the model/,
      );
      strictEqual(await Deno.readTextFile(path), "the old one");
      deepStrictEqual(namesIn(folder), [`clip.${ending}`]);
      await Deno.remove(path);
    }
  });
});

Deno.test("a video that cannot be written is an OutputError with a remedy, and leaves no file", async () => {
  const video = new Video(clip(16, 16, 2), { fps: 8 });
  await withFolder(async (folder) => {
    for (const ending of ["mp4", "gif", "png"]) {
      await rejects(video.save(`${folder}/none/clip.${ending}`), (error) => {
        ok(error instanceof OutputError, `${error}`);
        ok(/make its folder first$/.test(error.message), error.message);
        return true;
      });
      await Deno.mkdir(`${folder}/taken.${ending}`); // a folder where the video should be
      await rejects(video.save(`${folder}/taken.${ending}`), OutputError);
    }
    deepStrictEqual(namesIn(folder), ["taken.gif", "taken.mp4", "taken.png"]);
  });
});

Deno.test({
  name: "writing a video without permission names the flag",
  permissions: { read: true, write: false, ffi: true, env: true },
  fn: () =>
    rejects(
      VideoWriter.create("clip.mp4", { width: 16, height: 16, fps: 8 }),
      { name: "OutputError", message: /--allow-write/ },
    ),
});

Deno.test({
  name: "a full disk is an OutputError, and leaves no file",
  ignore: Deno.build.os !== "linux",
  fn: () =>
    withFolder(async (folder) => {
      // No file may grow over 64 KiB, which fails a write as a full disk does.
      const limit = `trap "" XFSZ; ulimit -f 64; exec "$0" eval "$1"`;
      for (const ending of ["mp4", "gif"]) {
        for (const options of ["{}", "{ numFrames: 200 }"]) {
          const script = `
            const { VideoWriter } = await import("${import.meta.resolve("../../mod.ts")}");
            const [width, height] = [128, 128];
            const writer = await VideoWriter.create("${folder}/clip.${ending}", { width, height, fps: 8, ...${options} });
            const noise = () => crypto.getRandomValues(new Uint8Array(width * height * 3));
            try {
              for (let i = 0; i < 20; i++) await writer.write(noise());
              await writer.close();
            } catch (error) {
              console.log(error.name, error.message, [...Deno.readDirSync("${folder}")].length);
            }`;
          const { stdout } = await new Deno.Command("bash", { args: ["-c", limit, Deno.execPath(), script] }).output();
          const text = new TextDecoder().decode(stdout);
          ok(/^OutputError Cannot write .*clip\.(mp4|gif): .*space left 0\n$/.test(text), text);
        }
      }
    }),
});

Deno.test("what no video can be is refused", async () => {
  await withFolder(async (folder) => {
    const create = (path: string, options: object) =>
      VideoWriter.create(`${folder}/${path}`, { width: 32, height: 32, fps: 8, ...options });
    for (
      const [path, options, message] of [
        ["clip.avi", {}, /clip\.avi.*\.mp4 or \.gif/],
        ["clip", {}, /\.mp4 or \.gif/],
        ["clip.mp4", { width: 33 }, /33 by 32 as MP4.*even.*\.gif/],
        ["clip.mp4", { height: 14 }, /32 by 14/],
        ["clip.mp4", { width: 3840, height: 3840 }, /3840 by 2160/],
        ["clip.mp4", { width: 0 }, /0 by 32.*positive/],
        ["clip.mp4", { width: 16.5 }, /16\.5/],
        ["clip.gif", { width: 65536 }, /65536/],
        ["clip.gif", { fps: 60 }, /60 frames a second.*\.mp4/],
        ["clip.mp4", { fps: 0 }, /0 frames/],
        ["clip.mp4", { fps: NaN }, /NaN frames/],
        ["clip.mp4", { fps: 241 }, /241/],
        ["clip.mp4", { qp: 52 }, /52/],
        ["clip.mp4", { qp: 1.5 }, /1\.5/],
        ["clip.mp4", { numFrames: 0 }, /0 frames/],
      ] as const
    ) {
      await rejects(create(path, options), { name: "RangeError", message });
    }
    await rejects(create("clip.mp4", { metadata: { seed: 5 } }), { name: "TypeError", message: /"seed".*number/ });
    await using writer = await create("clip.mp4", {});
    const rgba = new Image({ width: 32, height: 32, data: new Uint8Array(32 * 32 * 4) });
    await rejects(writer.write(rgba), { name: "TypeError", message: /4 channels/ });
    await rejects(writer.write(new Uint8Array(5)), { name: "TypeError", message: /3072 bytes.*5 bytes/ });
    const [small, large] = [clip(16, 32, 1)[0]!, clip(32, 16, 1)[0]!];
    throws(() => new Video([small, large], { fps: 8 }), { name: "TypeError", message: /one size/ });
    throws(() => new Video([], { fps: 8 }), { name: "RangeError", message: /no frames/ });
    throws(() => new Video([small], { fps: 0 }), RangeError);
    await rejects(new Video([small], { fps: 8 }).save(`${folder}/clip.jpg`), { name: "RangeError" });
  });
});

Deno.test("what is no video is a DenoiseError with a remedy", async () => {
  await rejects(readVideo("no/such.mp4"), (error) => {
    ok(error instanceof DenoiseError, `${error}`);
    strictEqual(error.file, "no/such.mp4");
    ok(/check the path$/.test(error.message), error.message);
    return true;
  });
  await withFolder(async (folder) => {
    const path = `${folder}/clip.mp4`;
    for (const text of ["", "not a video", "GIF89a", "GIF89a and more than that is not a GIF", "\0\0\0\x08ftyp"]) {
      await Deno.writeTextFile(path, text);
      await rejects(readVideo(path), (error) => {
        ok(error instanceof DenoiseError, `${text}: ${error}`);
        ok(error.message.includes("clip.mp4"), error.message);
        return true;
      });
    }
    await clip(16, 16, 1)[0]!.save(`${folder}/picture.png`);
    await rejects(readVideo(`${folder}/picture.png`), {
      name: "DenoiseError",
      message: /picture\.png.*H\.264 or a GIF/,
    });
  });
});

/** Gives a broken file to the reader, which may read or refuse it, and do nothing else. */
async function isRefused(path: string, bytes: Uint8Array): Promise<boolean> {
  await Deno.writeFile(path, bytes);
  try {
    let count = 0;
    for await (const _ of await VideoReader.open(path)) ok(++count < 1000);
    return false;
  } catch (error) {
    ok(error instanceof DenoiseError, `${error}`);
    strictEqual(error.file, path);
    return true;
  }
}

Deno.test("broken videos are read or refused, never anything else", async () => {
  await withFolder(async (folder) => {
    const video = new Video(clip(32, 32, 6), { fps: 2, metadata: { prompt: "a — b" } });
    for (const bytes of [await video.toMp4(), await video.toGif()]) {
      let state = 1;
      const random = (below: number) => {
        state = (Math.imul(state, 1103515245) + 12345) >>> 0;
        return Math.floor(state / 2 ** 32 * below);
      };
      let refused = 0;
      for (let i = 0; i < 60; i++) {
        if (await isRefused(`${folder}/clip`, bytes.subarray(0, Math.floor(i * bytes.length / 60)))) refused++;
      }
      ok(refused >= 55, `${refused} of 60 that were cut off`);
      refused = 0;
      // The index of an MP4 ends where room for more begins.
      const index = new TextDecoder("latin1").decode(bytes).indexOf("free");
      for (let i = 0; i < 300; i++) {
        const broken = bytes.slice();
        const end = index > 0 && i % 3 > 0 ? index : bytes.length;
        for (let n = 0; n <= i % 3; n++) broken[random(end)] = [0, 255, random(256)][random(3)]!;
        if (await isRefused(`${folder}/clip`, broken)) refused++;
      }
      ok(refused > 50, `${refused} of 300 that were changed`);
    }
  });
});

Deno.test("a notebook plays a video", async () => {
  const shown = (video: Video) =>
    (video as unknown as Record<symbol, () => Promise<Record<string, string>>>)[Symbol.for("Jupyter.display")]!();
  const bundle = await shown(new Video(clip(32, 16, 2), { fps: 8 }));
  deepStrictEqual(Object.keys(bundle), ["text/html"]);
  const [, data] = bundle["text/html"]!.match(/^<video [^>]*src="data:video\/mp4;base64,([^"]+)"><\/video>$/)!;
  strictEqual(new TextDecoder().decode(Uint8Array.fromBase64(data!).subarray(4, 8)), "ftyp");
  const odd = await shown(new Video(clip(17, 9, 2), { fps: 8 }));
  deepStrictEqual(Object.keys(odd), ["image/gif"]);
  strictEqual(new TextDecoder().decode(Uint8Array.fromBase64(odd["image/gif"]!).subarray(0, 6)), "GIF89a");
});

Deno.test("a strip shows frames from the first to the last", async () => {
  const grey = (value: number) => new Image({ width: 2, height: 1, data: new Uint8Array(6).fill(value) });
  const video = new Video(Array.from({ length: 10 }, (_, i) => grey(i)), { fps: 8, metadata: METADATA });
  const values = (image: Image) => [...image.data].filter((_, i) => i % 6 === 0);
  const strip = video.strip({ count: 4 });
  deepStrictEqual([strip.width, strip.height, values(strip)], [8, 1, [0, 3, 6, 9]]);
  deepStrictEqual(values(video.strip({ count: 1 })), [0]);
  deepStrictEqual(values(video.strip({ count: 99 })), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
  const block = video.strip({ count: 4, columns: 2, gap: 1 });
  deepStrictEqual([block.width, block.height], [5, 3]);
  throws(() => video.strip({ count: 0 }), { name: "RangeError", message: /0 frames/ });
  await withFolder(async (folder) => {
    await video.save(`${folder}/strip.png`);
    const saved = await Image.open(`${folder}/strip.png`);
    deepStrictEqual([saved.width, saved.metadata], [16, METADATA]);
  });
});

Deno.test("the settings that make a video again are in the file", async () => {
  await withFolder(async (folder) => {
    const settings = {
      model: "CogVideoX-2b",
      prompt: "a disc",
      seed: 5,
      numInferenceSteps: 50,
      guidanceScale: 6,
      width: 32,
      height: 32,
      numFrames: 2,
      fps: 7.5,
    };
    const metadata = settingsToMetadata(settings);
    await new Video(clip(32, 32, 2), { fps: 7.5, metadata }).save(`${folder}/clip.mp4`);
    deepStrictEqual(settingsFromMetadata((await readVideo(`${folder}/clip.mp4`)).metadata), settings);
  });
});
