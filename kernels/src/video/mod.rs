//! Videos: encoders from frames to a format's bytes, decoders back. Containers and files are the caller's.

pub mod gif;
pub mod h264;
pub mod yuv;

use crate::error::{Code, Error, Result};
use yuv::Colour;

/// A video format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// H.264 in the byte stream form of its Annex B.
    H264,
    /// Animated GIF.
    Gif,
}

impl Format {
    /// The format of a number of the C surface.
    pub fn from_number(number: u32) -> Result<Self> {
        match number {
            0 => Ok(Self::H264),
            1 => Ok(Self::Gif),
            _ => Err(bad(format!("There is no video format {number}"))),
        }
    }
}

/// One direction of a format.
pub trait Coder: Send {
    /// Takes a frame or a piece of a stream, and appends what comes of it.
    fn push(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<()>;

    /// Appends the next thing that is left when there is no more input; nothing when all has been given.
    fn drain(&mut self, out: &mut Vec<u8>) -> Result<()>;
}

/// An encoder or a decoder, with the output that waits to be taken.
pub struct Video {
    coder: Box<dyn Coder>,
    out: Vec<u8>,
}

impl Video {
    /// An encoder of frames of `height * width * 3` bytes of RGB; `qp` is H.264's quantizer.
    pub fn encoder(format: Format, width: usize, height: usize, fps: f64, qp: u32) -> Result<Self> {
        if !(fps.is_finite() && fps > 0.0) {
            return Err(bad(format!("A video has a positive number of frames a second, got {fps}")));
        }
        Ok(Self::new(match format {
            Format::H264 => Box::new(h264::Encoder::new(width, height, fps, qp)?),
            Format::Gif => Box::new(gif::Encoder::new(width, height, fps)?),
        }))
    }

    /// A decoder. Each output is one frame: its width, its height and the hundredths of a second for which it is shown (0
    /// where the format does not say) as little-endian u32, then `height * width * 3` bytes of RGB.
    pub fn decoder(format: Format, colour: Colour) -> Result<Self> {
        Ok(Self::new(match format {
            Format::H264 => Box::new(h264::Decoder::new(colour)?),
            Format::Gif => Box::new(gif::Decoder::default()),
        }))
    }

    fn new(coder: Box<dyn Coder>) -> Self {
        Self { coder, out: Vec::new() }
    }

    /// Pushes input; gives the number of bytes of output.
    pub fn push(&mut self, input: &[u8]) -> Result<usize> {
        self.out.clear();
        self.coder.push(input, &mut self.out)?;
        Ok(self.out.len())
    }

    /// Gets the next thing that is left at the end; gives the number of bytes of output.
    pub fn drain(&mut self) -> Result<usize> {
        self.out.clear();
        self.coder.drain(&mut self.out)?;
        Ok(self.out.len())
    }

    /// Copies the output of the last call.
    pub fn take(&mut self, out: &mut [u8]) -> Result<()> {
        if out.len() != self.out.len() {
            return Err(bad(format!("The output has {} bytes, not {}", self.out.len(), out.len())));
        }
        out.copy_from_slice(&self.out);
        Ok(())
    }
}

/// Writes what stands before a decoded frame's pixels.
fn write_header(out: &mut Vec<u8>, width: usize, height: usize, delay: u32) {
    for value in [width as u32, height as u32, delay] {
        out.extend_from_slice(&value.to_le_bytes());
    }
}

fn check_frame(input: &[u8], width: usize, height: usize) -> Result<()> {
    if input.len() == width * height * 3 {
        return Ok(());
    }
    Err(bad(format!("A frame of {width} by {height} takes {} bytes of RGB, got {}", width * height * 3, input.len())))
}

fn bad(message: impl Into<String>) -> Error {
    Error::new(Code::BadArgument, message)
}

fn broken(message: impl Into<String>) -> Error {
    Error::new(Code::BadValue, message)
}
