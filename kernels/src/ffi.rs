//! The C surface. Scalars of at most 32 bits and f64, handles, byte slices. Each call that can fail takes a buffer for
//! its error: one byte of code (0: none), two of length, then the sentence; so no thread reads another's error.

// Buffers that are only read are still taken as `&mut`: the generator knows no other kind.

use crate::buffer::Buffer;
use crate::cuda::{self, Cuda};
use crate::error::{Code, Error, Result};
use crate::executor::Device;
use crate::handles::{self, Object};
use crate::level::{Level, default_threads};
use crate::program::Program;
use crate::schema::SCHEMA_HASH;
use crate::video::yuv::Colour;
use crate::video::{Format, Video};
use deno_bindgen::deno_bindgen;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

/// Runs a body so that neither its error nor its panic crosses the boundary.
fn guarded<T: Default>(error: &mut [u8], body: impl FnOnce() -> Result<T>) -> T {
    let result = catch_unwind(AssertUnwindSafe(body))
        .unwrap_or_else(|_| Err(Error::new(Code::Internal, "The native library panicked; this is a defect of it")));
    match result {
        Ok(value) => {
            write_error(error, 0, "");
            value
        }
        Err(e) => {
            write_error(error, e.code as u8, &e.message);
            T::default()
        }
    }
}

fn write_error(error: &mut [u8], code: u8, message: &str) {
    let Some(room) = error.len().checked_sub(3) else { return };
    let mut len = message.len().min(room).min(u16::MAX as usize);
    while !message.is_char_boundary(len) {
        len -= 1;
    }
    error[0] = code;
    error[1..3].copy_from_slice(&(len as u16).to_le_bytes());
    error[3..3 + len].copy_from_slice(&message.as_bytes()[..len]);
}

fn size(value: f64, what: &str) -> Result<usize> {
    if value.fract() == 0.0 && (0.0..=9_007_199_254_740_992.0).contains(&value) {
        Ok(value as usize)
    } else {
        Err(Error::new(Code::BadArgument, format!("A {what} is a whole number of bytes, got {value}")))
    }
}

fn utf8<'a>(bytes: &'a [u8], what: &str) -> Result<&'a str> {
    std::str::from_utf8(bytes).map_err(|_| Error::new(Code::BadArgument, format!("The {what} is not UTF-8")))
}

/// Writes a text into `out`, which must hold all of it; gives the length.
fn write_text(text: &str, out: &mut [u8]) -> Result<u32> {
    let room = out.len();
    let to = out
        .get_mut(..text.len())
        .ok_or_else(|| Error::new(Code::BadArgument, format!("A text of {} bytes does not fit {room}", text.len())))?;
    to.copy_from_slice(text.as_bytes());
    Ok(text.len() as u32)
}

/// Writes `version\nschema hash\nbest level\nlevels of this CPU\nthreads` into `out`; gives the length.
#[deno_bindgen]
fn denoise_describe(out: &mut [u8]) -> u32 {
    let levels: Vec<&str> = Level::ALL.into_iter().filter(|l| l.supported()).map(Level::name).collect();
    let text = format!(
        "{}\n{} {}\n{}\n{}\n{}",
        env!("CARGO_PKG_VERSION"),
        SCHEMA_HASH[0],
        SCHEMA_HASH[1],
        Level::best().name(),
        levels.join(" "),
        default_threads()
    );
    let len = text.len().min(out.len());
    out[..len].copy_from_slice(&text.as_bytes()[..len]);
    len as u32
}

/// The most memory that the process has had, in bytes; 0 where the system does not say.
#[deno_bindgen]
fn denoise_peak_memory() -> f64 {
    #[cfg(unix)]
    {
        let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
        let peak = match unsafe { libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr()) } {
            0 => unsafe { usage.assume_init() }.ru_maxrss as f64,
            _ => 0.0,
        };
        // Darwin counts bytes, the others kilobytes.
        if cfg!(target_vendor = "apple") { peak } else { 1024.0 * peak }
    }
    #[cfg(not(unix))]
    0.0
}

/// Opens a CPU of a level (empty: the best) with a number of threads (0: all).
#[deno_bindgen]
fn denoise_device_open(level: &mut [u8], threads: u32, error: &mut [u8]) -> u32 {
    guarded(error, || {
        let level = Level::named(utf8(level, "level")?.trim_end_matches('\0'))?;
        handles::insert(Object::Device(Arc::new(Device::cpu(level, threads as usize)?)))
    })
}

/// Whether there is a CUDA driver.
#[deno_bindgen]
fn denoise_cuda_driver() -> u32 {
    cuda::has_driver() as u32
}

/// Opens a device of a CUDA library by its number.
#[deno_bindgen]
fn denoise_cuda_open(library: &mut [u8], ordinal: u32, error: &mut [u8]) -> u32 {
    guarded(error, || {
        let ordinal = i32::try_from(ordinal)
            .map_err(|_| Error::new(Code::BadArgument, format!("There is no CUDA device {ordinal}")))?;
        let cuda = Cuda::open(Path::new(utf8(library, "path")?), ordinal)?;
        handles::insert(Object::Device(Arc::new(Device::cuda(cuda))))
    })
}

/// Writes what tells a device from others into `out`, in lines: name, architecture or level, bytes of its last cache (0:
/// unknown), what libraries it uses; gives the length.
#[deno_bindgen]
fn denoise_device_describe(device: u32, out: &mut [u8], error: &mut [u8]) -> u32 {
    guarded(error, || write_text(&handles::device(device)?.describe()?, out))
}

/// Writes the names of the ways in which a device can run each instruction of a program, by its parameter `variant`, into
/// `out`: a line for each instruction, names between tabs; gives the length.
#[deno_bindgen]
fn denoise_program_ways(device: u32, program: u32, out: &mut [u8], error: &mut [u8]) -> u32 {
    guarded(error, || {
        let ways = handles::device(device)?.ways(&*handles::program(program)?)?;
        let lines: Vec<String> = ways.iter().map(|names| names.join("\t")).collect();
        write_text(&lines.join("\n"), out)
    })
}

/// The device whose memory a buffer is to lie in; `None` for 0, the host's memory.
fn own_memory(device: u32) -> Result<Option<Arc<Device>>> {
    if device == 0 { Ok(None) } else { handles::device(device).map(Some) }
}

/// Makes a zeroed buffer, in the host's memory (0) or in a device's own.
#[deno_bindgen]
fn denoise_buffer_create(device: u32, bytes: f64, error: &mut [u8]) -> u32 {
    guarded(error, || {
        let bytes = size(bytes, "buffer")?;
        let buffer = match own_memory(device)? {
            None => Buffer::new(bytes)?,
            Some(device) => device.allocate(bytes)?,
        };
        handles::insert(Object::Buffer(Arc::new(buffer)))
    })
}

/// Maps a part of a file (0), or copies it into a device's own memory.
#[deno_bindgen]
fn denoise_buffer_map(device: u32, path: &mut [u8], offset: f64, bytes: f64, error: &mut [u8]) -> u32 {
    guarded(error, || {
        let path = Path::new(utf8(path, "path")?);
        let mapped = Buffer::map(path, size(offset, "offset")?, size(bytes, "buffer")?)?;
        let buffer = match own_memory(device)? {
            None => mapped,
            Some(device) => device.take(mapped)?,
        };
        handles::insert(Object::Buffer(Arc::new(buffer)))
    })
}

/// Copies bytes into a buffer.
#[deno_bindgen]
fn denoise_buffer_write(buffer: u32, offset: f64, bytes: &mut [u8], error: &mut [u8]) -> u32 {
    guarded(error, || handles::buffer(buffer)?.write(size(offset, "offset")?, bytes).map(|()| 1))
}

/// Copies bytes out of a buffer.
#[deno_bindgen]
fn denoise_buffer_read(buffer: u32, offset: f64, out: &mut [u8], error: &mut [u8]) -> u32 {
    guarded(error, || handles::buffer(buffer)?.read(size(offset, "offset")?, out).map(|()| 1))
}

/// Frees a handle of any kind.
#[deno_bindgen]
fn denoise_free(handle: u32, error: &mut [u8]) -> u32 {
    guarded(error, || handles::remove(handle).map(|()| 1))
}

/// Reads and checks a program.
#[deno_bindgen]
fn denoise_program_load(bytes: &mut [u8], error: &mut [u8]) -> u32 {
    guarded(error, || handles::insert(Object::Program(Arc::new(Program::parse(bytes)?))))
}

/// Makes a flag that stops a run.
#[deno_bindgen]
fn denoise_token_create(error: &mut [u8]) -> u32 {
    guarded(error, || handles::insert(Object::Token(Arc::new(AtomicBool::new(false)))))
}

/// Raises the flag: the run that has it stops before its next kernel.
#[deno_bindgen]
fn denoise_token_cancel(token: u32, error: &mut [u8]) -> u32 {
    guarded(error, || {
        handles::token(token)?.store(true, Ordering::Relaxed);
        Ok(1)
    })
}

/// Runs a program on a device over buffers, given as little-endian handles. `times` holds an f64 for each kernel, or is
/// shorter where no times are wanted.
#[deno_bindgen(non_blocking)]
fn denoise_program_run(
    device: u32,
    program: u32,
    buffers: &mut [u8],
    token: u32,
    times: &mut [u8],
    error: &mut [u8],
) -> u32 {
    guarded(error, || {
        let device = handles::device(device)?;
        let program = handles::program(program)?;
        let token = handles::token(token)?;
        let buffers = buffers
            .chunks_exact(4)
            .map(|word| handles::buffer(u32::from_le_bytes([word[0], word[1], word[2], word[3]])))
            .collect::<Result<Vec<_>>>()?;
        let mut seconds = vec![0.0; times.len() / 8];
        device.run(&program, &buffers, &token, Some(&mut seconds))?;
        for (time, seconds) in times.chunks_exact_mut(8).zip(&seconds) {
            time.copy_from_slice(&seconds.to_le_bytes());
        }
        Ok(1)
    })
}

fn insert_video(video: Video) -> Result<u32> {
    handles::insert(Object::Video(Arc::new(Mutex::new(video))))
}

fn with_video<T>(video: u32, body: impl FnOnce(&mut Video) -> Result<T>) -> Result<T> {
    let video = handles::video(video)?;
    let mut video = video.lock().unwrap_or_else(|e| e.into_inner());
    body(&mut video)
}

/// Makes an encoder of a video format (0: H.264, 1: GIF) from RGB; `qp` is H.264's quantizer.
#[deno_bindgen]
fn denoise_video_encoder_create(format: u32, width: u32, height: u32, fps: f64, qp: u32, error: &mut [u8]) -> u32 {
    guarded(error, || {
        insert_video(Video::encoder(Format::from_number(format)?, width as usize, height as usize, fps, qp)?)
    })
}

/// Makes a decoder of a video format to RGB, of the matrix coefficients of H.273 where the format has several.
#[deno_bindgen]
fn denoise_video_decoder_create(format: u32, matrix: u32, full_range: u32, error: &mut [u8]) -> u32 {
    guarded(error, || {
        insert_video(Video::decoder(Format::from_number(format)?, Colour::from_matrix(matrix, full_range != 0)?)?)
    })
}

/// Gives an encoder a frame or a decoder a piece of its stream; gives the number of bytes that came of it.
#[deno_bindgen(non_blocking)]
fn denoise_video_push(video: u32, input: &mut [u8], error: &mut [u8]) -> u32 {
    guarded(error, || with_video(video, |video| Ok(video.push(input)? as u32)))
}

/// After the last input, gets the next thing that is left; gives its number of bytes, 0 where nothing is left.
#[deno_bindgen(non_blocking)]
fn denoise_video_drain(video: u32, error: &mut [u8]) -> u32 {
    guarded(error, || with_video(video, |video| Ok(video.drain()? as u32)))
}

/// Copies what came of the last call.
#[deno_bindgen]
fn denoise_video_take(video: u32, out: &mut [u8], error: &mut [u8]) -> u32 {
    guarded(error, || with_video(video, |video| video.take(out).map(|()| 1)))
}
