//! H.264 by OpenH264, which is built from its source.

use super::yuv::{Colour, Picture, Planes};
use super::{Coder, bad, broken, check_frame, write_header};
use crate::error::{Code, Error, Result};
use openh264_sys2::source::APILoader as Library;
use openh264_sys2::{
    CONSTANT_ID, DECODER_OPTION_TRACE_LEVEL, ENCODER_OPTION_TRACE_LEVEL, HIGH_COMPLEXITY, ISVCDecoder, ISVCDecoderVtbl,
    ISVCEncoder, ISVCEncoderVtbl, PRO_HIGH, RC_OFF_MODE, SBufferInfo, SDecodingParam, SEncParamExt, SFrameBSInfo,
    SSourcePicture, VIDEO_BITSTREAM_AVC, WELS_LOG_QUIET, videoFormatI420, videoFrameTypeI, videoFrameTypeIDR,
    videoFrameTypeP,
};
use std::collections::VecDeque;
use std::ffi::c_int;
use std::ptr::{from_mut, null, null_mut};

/// The encoder's own limits.
const SIDES: std::ops::RangeInclusive<usize> = 16..=3840;
const PIXELS: usize = 3840 * 2160;
/// A player can start at a picture that stands for itself; there is one as often as this.
const SECONDS_BETWEEN_KEY_FRAMES: f64 = 2.0;
/// H.273's number of the primaries, the transfer function and the matrix of BT.709.
const BT709: u8 = 1;
/// The type of the NAL unit that holds the size and all else that a sequence of pictures shares.
const SEQUENCE_PARAMETERS: u8 = 7;
const START_CODE: [u8; 3] = [0, 0, 1];

/// Calls a method of an object of OpenH264: a pointer to a pointer to a table of functions.
macro_rules! call {
    ($object:expr, $method:ident $(, $arg:expr)*) => {
        match (**$object).$method {
            Some(method) => method($object $(, $arg)*),
            None => return Err(failed(stringify!($method), "missing")),
        }
    };
}

/// An object of OpenH264 that encodes.
struct RawEncoder(*mut *const ISVCEncoderVtbl);

// It is used by one thread at a time, and keeps nothing of a thread.
unsafe impl Send for RawEncoder {}

impl RawEncoder {
    fn new(width: usize, height: usize, fps: f64, qp: u32) -> Result<Self> {
        let mut object: *mut ISVCEncoder = null_mut();
        check("WelsCreateSVCEncoder", unsafe { Library::WelsCreateSVCEncoder(&mut object) })?;
        let encoder = Self(object);
        let mut params = SEncParamExt::default();
        check("GetDefaultParams", unsafe { call!(object, GetDefaultParams, &mut params) })?;
        params.iPicWidth = width as c_int;
        params.iPicHeight = height as c_int;
        params.fMaxFrameRate = fps as f32;
        // With the control of its rate off, it takes the quantizer as it is.
        params.iRCMode = RC_OFF_MODE;
        params.bEnableFrameSkip = false;
        params.bEnableAdaptiveQuant = false;
        params.bEnableBackgroundDetection = false;
        params.iComplexityMode = HIGH_COMPLEXITY;
        params.iEntropyCodingModeFlag = 1; // CABAC, which makes a file smaller by a tenth
        params.eSpsPpsIdStrategy = CONSTANT_ID; // a container names them once
        params.uiIntraPeriod = (fps * SECONDS_BETWEEN_KEY_FRAMES).ceil() as u32;
        // So that a file does not depend on how many threads the machine has.
        params.iMultipleThreadIdc = 1;
        params.iSpatialLayerNum = 1;
        params.iTemporalLayerNum = 1;
        let layer = &mut params.sSpatialLayers[0];
        layer.iVideoWidth = width as c_int;
        layer.iVideoHeight = height as c_int;
        layer.fFrameRate = fps as f32;
        layer.uiProfileIdc = PRO_HIGH;
        layer.iDLayerQp = qp as c_int;
        layer.bVideoSignalTypePresent = true;
        layer.bFullRange = false;
        layer.bColorDescriptionPresent = true;
        layer.uiColorPrimaries = BT709;
        layer.uiTransferCharacteristics = BT709;
        layer.uiColorMatrix = BT709;
        unsafe {
            let mut quiet = WELS_LOG_QUIET;
            check("SetOption", call!(object, SetOption, ENCODER_OPTION_TRACE_LEVEL, from_mut(&mut quiet).cast()))?;
            check("InitializeExt", call!(object, InitializeExt, &params))?;
        }
        Ok(encoder)
    }

    /// Encodes a picture; gives its NAL units, each after a start code, and whether it stands for itself.
    fn encode(&mut self, planes: &Planes, width: usize, height: usize, out: &mut Vec<u8>) -> Result<bool> {
        let Planes { y, u, v } = planes;
        let half = width as c_int / 2;
        // It only reads what it takes as mutable.
        let source = SSourcePicture {
            iColorFormat: videoFormatI420,
            iStride: [width as c_int, half, half, 0],
            pData: [y.as_ptr().cast_mut(), u.as_ptr().cast_mut(), v.as_ptr().cast_mut(), null_mut()],
            iPicWidth: width as c_int,
            iPicHeight: height as c_int,
            ..Default::default()
        };
        let mut info = SFrameBSInfo::default();
        check("EncodeFrame", unsafe { call!(self.0, EncodeFrame, &source, &mut info) })?;
        for layer in &info.sLayerInfo[..info.iLayerNum as usize] {
            let bytes: c_int = (0..layer.iNalCount as usize).map(|i| unsafe { *layer.pNalLengthInByte.add(i) }).sum();
            out.extend_from_slice(unsafe { std::slice::from_raw_parts(layer.pBsBuf, bytes as usize) });
        }
        match info.eFrameType {
            kind if kind == videoFrameTypeIDR => Ok(true),
            kind if kind == videoFrameTypeI || kind == videoFrameTypeP => Ok(false),
            kind => Err(failed("EncodeFrame", format!("a frame of type {kind}"))),
        }
    }
}

impl Drop for RawEncoder {
    fn drop(&mut self) {
        unsafe {
            if let Some(uninitialize) = (**self.0).Uninitialize {
                uninitialize(self.0);
            }
            Library::WelsDestroySVCEncoder(self.0);
        }
    }
}

/// An encoder of constant quality. Each output is a byte (1 where the frame stands for itself), then the frame's NAL
/// units, each after a start code.
pub struct Encoder {
    encoder: RawEncoder,
    planes: Planes,
    width: usize,
    height: usize,
}

impl Encoder {
    /// An encoder of frames of one size; `qp` is H.264's quantizer, 0 to 51.
    pub fn new(width: usize, height: usize, fps: f64, qp: u32) -> Result<Self> {
        let takes = |side: usize| SIDES.contains(&side) && side.is_multiple_of(2);
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
        let encoder = RawEncoder::new(width, height, fps, qp)?;
        Ok(Self { encoder, planes: Planes::new(width, height), width, height })
    }
}

impl Coder for Encoder {
    fn push(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<()> {
        check_frame(input, self.width, self.height)?;
        self.planes.read_rgb(input, self.width, Colour::BT709);
        out.push(0);
        out[0] = self.encoder.encode(&self.planes, self.width, self.height, out)? as u8;
        Ok(())
    }

    fn drain(&mut self, _out: &mut Vec<u8>) -> Result<()> {
        Ok(()) // each frame is given when it is pushed
    }
}

/// An object of OpenH264 that decodes.
struct RawDecoder(*mut *const ISVCDecoderVtbl);

// It is used by one thread at a time, and keeps nothing of a thread.
unsafe impl Send for RawDecoder {}

impl RawDecoder {
    fn new() -> Result<Self> {
        let mut object: *mut ISVCDecoder = null_mut();
        check("WelsCreateDecoder", unsafe { Library::WelsCreateDecoder(&mut object) } as c_int)?;
        let decoder = Self(object);
        let mut params = SDecodingParam::default();
        params.sVideoProperty.eVideoBsType = VIDEO_BITSTREAM_AVC;
        unsafe {
            let mut quiet = WELS_LOG_QUIET;
            let quiet = from_mut(&mut quiet).cast();
            check("SetOption", call!(object, SetOption, DECODER_OPTION_TRACE_LEVEL, quiet) as c_int)?;
            check("Initialize", call!(object, Initialize, &params) as c_int)?;
        }
        Ok(decoder)
    }

    /// Decodes NAL units, or with none says that the frame is whole; gives a picture that is ready.
    fn decode(&mut self, units: Option<&[u8]>) -> Result<Option<SBufferInfo>> {
        let (bytes, len) = units.map_or((null(), 0), |units| (units.as_ptr(), units.len() as c_int));
        let mut planes = [null_mut(); 3];
        let mut info = SBufferInfo::default();
        let state = unsafe { call!(self.0, DecodeFrame2, bytes, len, planes.as_mut_ptr(), &mut info) };
        if state != 0 {
            return Err(broken(format!("OpenH264 cannot decode a frame (state {state:#x})")));
        }
        Ok(with_planes(info, planes))
    }

    /// A picture that was held back to put pictures into their order.
    fn flush(&mut self) -> Result<Option<SBufferInfo>> {
        let mut planes = [null_mut(); 3];
        let mut info = SBufferInfo::default();
        check("FlushFrame", unsafe { call!(self.0, FlushFrame, planes.as_mut_ptr(), &mut info) } as c_int)?;
        Ok(with_planes(info, planes))
    }
}

impl Drop for RawDecoder {
    fn drop(&mut self) {
        unsafe {
            if let Some(uninitialize) = (**self.0).Uninitialize {
                uninitialize(self.0);
            }
            Library::WelsDestroyDecoder(self.0);
        }
    }
}

/// What a call gave, if it gave a picture.
fn with_planes(mut info: SBufferInfo, planes: [*mut u8; 3]) -> Option<SBufferInfo> {
    info.pDst = planes;
    (info.iBufferStatus == 1 && planes.iter().all(|plane| !plane.is_null())).then_some(info)
}

/// A decoder of NAL units after start codes, all of a frame at once.
pub struct Decoder {
    decoder: RawDecoder,
    colour: Colour,
    /// The one sequence parameter set that has been seen.
    sequence: Option<Vec<u8>>,
    /// Frames that are ready, in order.
    ready: VecDeque<Vec<u8>>,
}

impl Decoder {
    /// A decoder to RGB of colours that the container or the stream names.
    pub fn new(colour: Colour) -> Result<Self> {
        Ok(Self { decoder: RawDecoder::new()?, colour, sequence: None, ready: VecDeque::new() })
    }

    /// Refuses a stream whose size changes: the decoder would free pictures that it has yet to give.
    fn check_sequence(&mut self, input: &[u8]) -> Result<()> {
        for unit in nal_units(input) {
            if unit.first().is_none_or(|head| head & 0x1f != SEQUENCE_PARAMETERS) {
                continue;
            }
            let sequence = self.sequence.get_or_insert_with(|| unit.to_vec());
            if sequence != unit {
                return Err(broken("The stream changes its parameters on the way"));
            }
        }
        Ok(())
    }

    /// Copies a picture before the next call, which may change it.
    fn keep(&mut self, picture: Option<SBufferInfo>) -> Result<()> {
        let Some(picture) = picture else { return Ok(()) };
        let info = unsafe { picture.UsrData.sSystemBuffer };
        let (width, height) = (info.iWidth as usize, info.iHeight as usize);
        let strides = info.iStride.map(|stride| stride as usize);
        if info.iFormat != videoFormatI420 || strides[0] < width || strides[1] < width.div_ceil(2) {
            return Err(broken(format!("OpenH264 gave a picture of format {}, {width} by {height}", info.iFormat)));
        }
        let plane = |i: usize, stride: usize, rows: usize| unsafe {
            std::slice::from_raw_parts(picture.pDst[i].cast_const(), stride * rows)
        };
        let half = height.div_ceil(2);
        let planes = [plane(0, strides[0], height), plane(1, strides[1], half), plane(2, strides[1], half)];
        let mut frame = Vec::new();
        write_header(&mut frame, width, height, 0);
        Picture { planes, strides, width, height }.write_rgb(&mut frame, self.colour);
        self.ready.push_back(frame);
        Ok(())
    }

    fn give(&mut self, out: &mut Vec<u8>) {
        if let Some(frame) = self.ready.pop_front() {
            *out = frame;
        }
    }
}

impl Coder for Decoder {
    fn push(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<()> {
        if input.is_empty() || c_int::try_from(input.len()).is_err() {
            return Err(broken(format!("A frame of {} bytes is none of H.264", input.len())));
        }
        self.check_sequence(input)?;
        for units in [Some(input), None] {
            let picture = self.decoder.decode(units)?;
            self.keep(picture)?;
        }
        self.give(out);
        Ok(())
    }

    fn drain(&mut self, out: &mut Vec<u8>) -> Result<()> {
        if self.ready.is_empty() {
            let picture = self.decoder.flush()?;
            self.keep(picture)?;
        }
        self.give(out);
        Ok(())
    }
}

/// The NAL units of a byte stream, without the zeros that may follow them.
fn nal_units(stream: &[u8]) -> impl Iterator<Item = &[u8]> {
    let find = |bytes: &[u8]| bytes.windows(START_CODE.len()).position(|window| window == START_CODE);
    let mut rest = find(stream).map(|at| &stream[at + START_CODE.len()..]);
    std::iter::from_fn(move || {
        let bytes = rest?;
        let end = find(bytes);
        rest = end.map(|at| &bytes[at + START_CODE.len()..]);
        let unit = &bytes[..end.unwrap_or(bytes.len())];
        Some(&unit[..unit.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1)])
    })
}

fn check(what: &str, code: c_int) -> Result<()> {
    if code == 0 { Ok(()) } else { Err(failed(what, format!("code {code}"))) }
}

fn failed(what: &str, how: impl std::fmt::Display) -> Error {
    Error::new(Code::Internal, format!("OpenH264's {what} failed: {how}"))
}
