//! H.264 by OpenH264, which is built from its source.

use super::yuv::{Colour, Picture, Planes};
use super::{Coder, bad, broken, check_frame, write_header};
use crate::error::{Code, Error, Result};
use openh264::OpenH264API;
use openh264::decoder::{self, DecodedYUV, DecoderConfig, Flush};
use openh264::encoder::{
    self, Complexity, EncoderConfig, FrameRate, FrameType, IntraFramePeriod, QpRange, RateControlMode, VuiConfig,
};
use openh264::formats::{YUVSlices, YUVSource};
use openh264::nal_units;
use std::collections::VecDeque;

/// The encoder's own limits.
const SIDES: std::ops::RangeInclusive<usize> = 16..=3840;
const PIXELS: usize = 3840 * 2160;
/// A player can start at a picture that stands for itself; there is one as often as this.
const SECONDS_BETWEEN_KEY_FRAMES: f64 = 2.0;
/// The type of the NAL unit that holds the size and all else that a sequence of pictures shares.
const SEQUENCE_PARAMETERS: u8 = 7;
const START_CODE: [u8; 3] = [0, 0, 1];

/// An encoder of constant quality. Each output is a byte (1 where the frame stands for itself), then the frame's NAL
/// units, each after a start code.
pub struct Encoder {
    encoder: encoder::Encoder,
    planes: Planes,
    width: usize,
    height: usize,
}

impl Encoder {
    /// An encoder of frames of one size; `qp` is H.264's quantizer, 0 to 51.
    pub fn new(width: usize, height: usize, fps: f64, qp: u32) -> Result<Self> {
        let takes = |side: usize| SIDES.contains(&side) && side % 2 == 0;
        if !takes(width) || !takes(height) || width * height > PIXELS {
            return Err(bad(format!(
                "H.264 takes even sides from {} to {} and at most {PIXELS} pixels, got {width} by {height}",
                SIDES.start(),
                SIDES.end()
            )));
        }
        if qp > 51 {
            return Err(bad(format!("A quantizer of H.264 is 0 to 51, got {qp}")));
        }
        let config = EncoderConfig::new()
            // With the control of its rate off, the encoder takes the quantizer as it is.
            .rate_control_mode(RateControlMode::Off)
            .qp(QpRange::new(qp as u8, qp as u8))
            .skip_frames(false)
            .adaptive_quantization(false)
            .background_detection(false)
            .complexity(Complexity::High)
            .max_frame_rate(FrameRate::from_hz(fps as f32))
            .intra_frame_period(IntraFramePeriod::from_num_frames((fps * SECONDS_BETWEEN_KEY_FRAMES).ceil() as u32))
            // So that a file does not depend on how many threads the machine has.
            .num_threads(1)
            .vui(VuiConfig::bt709());
        let encoder = encoder::Encoder::with_api_config(OpenH264API::from_source(), config).map_err(internal)?;
        Ok(Self { encoder, planes: Planes::new(width, height), width, height })
    }
}

impl Coder for Encoder {
    fn push(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<()> {
        check_frame(input, self.width, self.height)?;
        self.planes.read_rgb(input, self.width, Colour::BT709);
        let Planes { y, u, v } = &self.planes;
        let half = self.width / 2;
        let source = YUVSlices::new((y, u, v), (self.width, self.height), (self.width, half, half));
        let stream = self.encoder.encode(&source).map_err(internal)?;
        match stream.frame_type() {
            FrameType::IDR => out.push(1),
            FrameType::I | FrameType::P => out.push(0),
            other => return Err(internal(format!("the frame became {other:?}"))),
        }
        stream.write_vec(out);
        Ok(())
    }

    fn drain(&mut self, _out: &mut Vec<u8>) -> Result<()> {
        Ok(()) // each frame is given when it is pushed
    }
}

/// A decoder of NAL units after start codes, all of a frame at once.
pub struct Decoder {
    decoder: decoder::Decoder,
    colour: Colour,
    /// The one sequence parameter set that has been seen.
    sequence: Option<Vec<u8>>,
    /// What the decoder held back to put pictures into their order, once there is no more input.
    rest: Option<VecDeque<Vec<u8>>>,
}

impl Decoder {
    /// A decoder to RGB of colours that the container or the stream names.
    pub fn new(colour: Colour) -> Result<Self> {
        let config = DecoderConfig::new().flush_after_decode(Flush::NoFlush);
        let decoder = decoder::Decoder::with_api_config(OpenH264API::from_source(), config).map_err(internal)?;
        Ok(Self { decoder, colour, sequence: None, rest: None })
    }

    /// Refuses a stream whose size changes: the decoder would free pictures that it has yet to give.
    fn check_sequence(&mut self, input: &[u8]) -> Result<()> {
        for unit in nal_units(input) {
            let unit = &unit[START_CODE.len()..];
            if unit.first().is_none_or(|head| head & 0x1f != SEQUENCE_PARAMETERS) {
                continue;
            }
            // What follows the last bit that is set may belong to the next start code.
            let end = unit.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
            let sequence = self.sequence.get_or_insert_with(|| unit[..end].to_vec());
            if *sequence != unit[..end] {
                return Err(broken("The stream changes its parameters on the way"));
            }
        }
        Ok(())
    }
}

impl Coder for Decoder {
    fn push(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<()> {
        if i32::try_from(input.len()).is_err() {
            return Err(broken(format!("A frame of {} bytes is none of H.264", input.len())));
        }
        self.check_sequence(input)?;
        match self.decoder.decode(input) {
            Ok(Some(picture)) => write_picture(&picture, out, self.colour),
            Ok(None) => {}
            Err(error) => return Err(broken(format!("OpenH264 cannot decode a frame ({error})"))),
        }
        Ok(())
    }

    fn drain(&mut self, out: &mut Vec<u8>) -> Result<()> {
        if self.rest.is_none() {
            let pictures = self.decoder.flush_remaining().map_err(internal)?;
            let frames = pictures.iter().map(|picture| {
                let mut frame = Vec::new();
                write_picture(picture, &mut frame, self.colour);
                frame
            });
            self.rest = Some(frames.collect());
        }
        if let Some(frame) = self.rest.as_mut().and_then(VecDeque::pop_front) {
            *out = frame;
        }
        Ok(())
    }
}

fn write_picture(picture: &DecodedYUV, out: &mut Vec<u8>, colour: Colour) {
    let (width, height) = picture.dimensions();
    let (y, u, _) = picture.strides();
    write_header(out, width, height, 0);
    Picture { planes: [picture.y(), picture.u(), picture.v()], strides: [y, u], width, height }.write_rgb(out, colour);
}

fn internal(error: impl std::fmt::Display) -> Error {
    Error::new(Code::Internal, format!("OpenH264 failed: {error}"))
}
