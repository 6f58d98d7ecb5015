//! Animated GIF: each frame with a palette of its own.

use super::{Coder, bad, broken, check_frame, write_header};
use crate::error::{Error, Result};
use gif::{ColorOutput, DecodeOptions, DisposalMethod, Frame, MemoryLimit, Repeat};
use std::io::{self, Cursor};
use std::num::NonZeroU64;
use std::sync::{Arc, Mutex};

/// A palette of more than 256 colours is chosen from about this many of a frame's pixels.
const PALETTE_PIXELS: u32 = 1 << 15;
/// The most pixels that a GIF's screen may have to be read: a header of a few bytes may ask for 4 billion.
const MAX_PIXELS: usize = 1 << 26;

/// What the encoder has written and nobody has taken.
#[derive(Clone, Default)]
struct Sink(Arc<Mutex<Vec<u8>>>);

impl Sink {
    fn take(&self, out: &mut Vec<u8>) {
        out.append(&mut self.0.lock().unwrap_or_else(|e| e.into_inner()));
    }
}

impl io::Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(|e| e.into_inner()).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// An encoder of a GIF that repeats for ever.
pub struct Encoder {
    encoder: Option<gif::Encoder<Sink>>,
    sink: Sink,
    width: u16,
    height: u16,
    fps: f64,
    frames: u32,
}

impl Encoder {
    /// An encoder of frames of one size.
    pub fn new(width: usize, height: usize, fps: f64) -> Result<Self> {
        let side = |side: usize| u16::try_from(side).ok().filter(|&side| side > 0);
        let (Some(width), Some(height)) = (side(width), side(height)) else {
            return Err(bad(format!("A GIF has sides of 1 to 65535 pixels, got {width} by {height}")));
        };
        let sink = Sink::default();
        let mut encoder = gif::Encoder::new(sink.clone(), width, height, &[]).map_err(refused)?;
        encoder.set_repeat(Repeat::Infinite).map_err(refused)?;
        Ok(Self { encoder: Some(encoder), sink, width, height, fps, frames: 0 })
    }

    /// Hundredths of a second for which the next frame is shown, so that the sum stays right.
    fn next_delay(&mut self) -> u16 {
        let end = |frames: u32| (100.0 * frames as f64 / self.fps).round();
        let delay = end(self.frames + 1) - end(self.frames);
        self.frames += 1;
        delay as u16
    }
}

impl Coder for Encoder {
    fn push(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<()> {
        check_frame(input, self.width as usize, self.height as usize)?;
        // Of every so many pixels one is looked at, 1 to 30.
        let every = (self.width as u32 * self.height as u32 / PALETTE_PIXELS).clamp(1, 30) as i32;
        let mut frame = Frame::from_rgb_speed(self.width, self.height, input, every);
        frame.delay = self.next_delay();
        let encoder = self.encoder.as_mut().ok_or_else(|| bad("The GIF has been ended"))?;
        encoder.write_frame(&frame).map_err(refused)?;
        self.sink.take(out);
        Ok(())
    }

    fn drain(&mut self, out: &mut Vec<u8>) -> Result<()> {
        drop(self.encoder.take()); // which writes the trailer
        self.sink.take(out);
        Ok(())
    }
}

/// A decoder of a whole file's bytes; frames are given by `drain`.
#[derive(Default)]
pub struct Decoder {
    decoder: Option<gif::Decoder<Cursor<Vec<u8>>>>,
    /// The screen so far, RGB; black where nothing has been drawn.
    screen: Vec<u8>,
}

impl Coder for Decoder {
    fn push(&mut self, input: &[u8], _out: &mut Vec<u8>) -> Result<()> {
        let mut options = DecodeOptions::new();
        options.set_color_output(ColorOutput::RGBA);
        options.check_frame_consistency(true);
        options.set_memory_limit(MemoryLimit::Bytes(const { NonZeroU64::new(4 * MAX_PIXELS as u64).unwrap() }));
        let decoder = options.read_info(Cursor::new(input.to_vec())).map_err(malformed)?;
        let pixels = decoder.width() as usize * decoder.height() as usize;
        if pixels > MAX_PIXELS {
            return Err(broken(format!("A GIF of {pixels} pixels is larger than the {MAX_PIXELS} that are read")));
        }
        self.screen = vec![0; 3 * pixels];
        self.decoder = Some(decoder);
        Ok(())
    }

    fn drain(&mut self, out: &mut Vec<u8>) -> Result<()> {
        let decoder = self.decoder.as_mut().ok_or_else(|| bad("The GIF has not been given"))?;
        let (width, height) = (decoder.width() as usize, decoder.height() as usize);
        let Some(frame) = decoder.read_next_frame().map_err(malformed)? else { return Ok(()) };
        let place =
            Place { left: frame.left as usize, top: frame.top as usize, width: frame.width as usize, screen: width };
        let before = (frame.dispose == DisposalMethod::Previous).then(|| self.screen.clone());
        place.draw(&frame.buffer, &mut self.screen);
        write_header(out, width, height, frame.delay as u32);
        out.extend_from_slice(&self.screen);
        match (frame.dispose, before) {
            (_, Some(before)) => self.screen = before,
            (DisposalMethod::Background, _) => place.clear(frame.height as usize, &mut self.screen),
            _ => {}
        }
        Ok(())
    }
}

/// Where a frame lies on the screen, in which it does.
struct Place {
    left: usize,
    top: usize,
    width: usize,
    screen: usize,
}

impl Place {
    fn row<'a>(&self, y: usize, screen: &'a mut [u8]) -> &'a mut [u8] {
        &mut screen[3 * ((self.top + y) * self.screen + self.left)..][..3 * self.width]
    }

    /// Draws RGBA, of which what is transparent leaves the screen as it is.
    fn draw(&self, rgba: &[u8], screen: &mut [u8]) {
        for (y, pixels) in rgba.chunks_exact(4 * self.width).enumerate() {
            for (from, to) in pixels.chunks_exact(4).zip(self.row(y, screen).chunks_exact_mut(3)) {
                if from[3] != 0 {
                    to.copy_from_slice(&from[..3]);
                }
            }
        }
    }

    fn clear(&self, height: usize, screen: &mut [u8]) {
        for y in 0..height {
            self.row(y, screen).fill(0);
        }
    }
}

fn refused(error: gif::EncodingError) -> Error {
    bad(format!("The GIF cannot be written: {error}"))
}

fn malformed(error: gif::DecodingError) -> Error {
    broken(format!("The GIF is broken: {error}"))
}
