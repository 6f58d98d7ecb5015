//! Convolution against its reference, over odd shapes.

mod common;

use common::{Level, Rng, Tensor, conform_with, run};
use denoise::ops::{self, Args};
use denoise::pool::Pool;
use denoise::schema::{Activation, DType, Op};
use denoise::view::View;

/// One convolution of the tests.
#[derive(Clone, Debug)]
struct Case {
    dtype: DType,
    batch: usize,
    /// Frames and the kernel's size in time, of videos.
    frames: Option<(usize, usize)>,
    cache: bool,
    size: (usize, usize),
    channels: usize,
    filters: usize,
    kernel: (usize, usize),
    stride: usize,
    /// Above, left, below, right.
    pad: [usize; 4],
    upsample: usize,
    bias: bool,
    residual: Residual,
    act: Activation,
    /// Elements between pixels of x and out beyond their channels.
    gap: usize,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Residual {
    None,
    Dense,
    /// Steps of 2 in the last axis.
    Strided,
    /// 1 but for batch and filters.
    Row,
    /// Of one filter.
    Column,
}

const PLAIN: Case = Case {
    dtype: DType::F32,
    batch: 1,
    frames: None,
    cache: false,
    size: (5, 5),
    channels: 16,
    filters: 16,
    kernel: (3, 3),
    stride: 1,
    pad: [1, 1, 1, 1],
    upsample: 1,
    bias: true,
    residual: Residual::None,
    act: Activation::None,
    gap: 0,
};

fn packed_len(shape: &[usize], dtype: DType) -> usize {
    let taps = shape[2..].iter().product::<usize>();
    shape[0].next_multiple_of(64) * shape[1].next_multiple_of(4) * taps * dtype.size()
}

fn pack(level: Level, pool: &Pool, weight: &Tensor, dtype: DType) -> Tensor {
    let mut packed = Tensor::empty(DType::U8, &[packed_len(&weight.shape, dtype)]);
    run(level, pool, Op::PackConv, &mut [Some(weight.clone())], &mut packed, &[dtype as u32]);
    packed
}

impl Case {
    fn out_size(&self) -> (usize, usize) {
        let extent = |size: usize, kernel: usize, pad: usize| {
            let all = size * self.upsample + pad;
            if all < kernel { 0 } else { (all - kernel) / self.stride + 1 }
        };
        (
            extent(self.size.0, self.kernel.0, self.pad[0] + self.pad[2]),
            extent(self.size.1, self.kernel.1, self.pad[1] + self.pad[3]),
        )
    }
    /// A shape, with frames where there are any.
    fn shape(&self, batch: usize, frames: Option<usize>, rest: [usize; 3]) -> Vec<usize> {
        [batch].into_iter().chain(frames).chain(rest).collect()
    }
    fn params(&self) -> [u32; 9] {
        let [kh, kw] = [self.kernel.0, self.kernel.1].map(|k| k as u32);
        let [top, left] = [self.pad[0] as u32, self.pad[1] as u32];
        let time = self.frames.map_or(1, |frames| frames.1 as u32);
        [time, kh, kw, self.stride as u32, top, left, self.upsample as u32, self.act as u32, 0]
    }
    fn conform(&self) {
        let rng = &mut Rng(7);
        let (height, width) = self.out_size();
        let (b, o) = (self.batch, self.filters);
        let frames = self.frames.map(|frames| frames.0);
        let picture = [self.size.0, self.size.1, self.channels];
        let x = Tensor::padded(self.dtype, &self.shape(b, frames, picture), self.gap).random(rng, 1.0);
        let time = self.frames.map(|frames| frames.1);
        let taps = [o, self.channels].into_iter().chain(time).chain([self.kernel.0, self.kernel.1]).collect::<Vec<_>>();
        let weight = Tensor::empty(self.dtype, &taps).random(rng, 1.0);
        let cache = self.cache.then(|| {
            let shape = self.shape(b, time.map(|time| time - 1), picture);
            Tensor::padded(self.dtype, &shape, 2 * self.gap).random(rng, 1.0)
        });
        let bias = self.bias.then(|| Tensor::empty(DType::F32, &[o]).random(rng, 1.0));
        let residual = match self.residual {
            Residual::None => None,
            Residual::Dense => Some(Tensor::empty(self.dtype, &self.shape(b, frames, [height, width, o]))),
            Residual::Strided => {
                let shape = self.shape(b, frames, [height, width, o]);
                let strides: Vec<usize> =
                    (0..shape.len()).map(|axis| 2 * shape[axis + 1..].iter().product::<usize>()).collect();
                Some(Tensor::with_strides(self.dtype, &shape, &strides))
            }
            Residual::Row => Some(Tensor::empty(self.dtype, &self.shape(b, frames.map(|_| 1), [1, 1, o]))),
            Residual::Column => Some(Tensor::empty(self.dtype, &self.shape(b, frames, [height, width, 1]))),
        };
        let residual = residual.map(|r| r.random(rng, 1.0));
        let out = Tensor::padded(self.dtype, &self.shape(b, frames, [height, width, o]), self.gap);
        conform_with(
            &format!("{self:?}"),
            Op::Conv,
            |level, pool| {
                let packed = pack(level, pool, &weight, self.dtype);
                vec![Some(x.clone()), Some(packed), bias.clone(), residual.clone(), cache.clone()]
            },
            &out,
            &self.params(),
        );
    }
}

const DTYPES: [DType; 3] = [DType::F32, DType::BF16, DType::F16];

#[test]
fn every_count_of_channels_and_filters() {
    for dtype in DTYPES {
        for channels in [1, 3, 4, 16, 33] {
            for filters in [1, 3, 5, 16, 31, 64, 65, 70] {
                Case { dtype, channels, filters, size: (2, 13), ..PLAIN.clone() }.conform();
            }
        }
    }
}

#[test]
fn every_size() {
    let mut i = 0;
    for height in [1, 2, 5, 13, 17] {
        for width in [1, 2, 5, 13, 17] {
            for (kernel, pad) in [((1, 1), [0; 4]), ((3, 3), [1; 4]), ((5, 5), [2; 4]), ((2, 2), [1, 0, 0, 1])] {
                let dtype = DTYPES[i % 3];
                i += 1;
                Case { dtype, size: (height, width), channels: 5, filters: 18, kernel, pad, ..PLAIN.clone() }.conform();
            }
        }
    }
}

#[test]
fn strides_and_enlargement() {
    let mut i = 0;
    for stride in [1, 2, 3] {
        for upsample in [1, 2, 3] {
            for (kernel, pad) in [
                ((1, 1), [0; 4]),
                ((3, 3), [0, 0, 1, 1]),
                ((3, 3), [1; 4]),
                ((3, 1), [1, 0, 1, 0]),
                ((2, 5), [0, 3, 2, 1]),
                ((2, 2), [7, 0, 0, 7]),
            ] {
                let dtype = DTYPES[i % 3];
                i += 1;
                let case = Case { dtype, batch: 2, size: (6, 9), channels: 19, filters: 33, ..PLAIN.clone() };
                Case { stride, upsample, kernel, pad, gap: 3, ..case }.conform();
            }
        }
    }
}

#[test]
fn patches() {
    for dtype in DTYPES {
        for side in [2, 16] {
            let case = Case { dtype, size: (35, 67), channels: 3, filters: 20, kernel: (side, side), ..PLAIN.clone() };
            Case { stride: side, pad: [0; 4], ..case.clone() }.conform();
            Case { stride: side + 1, pad: [1, 3, 4, 4], ..case }.conform();
        }
    }
}

#[test]
fn epilogues() {
    for dtype in DTYPES {
        for filters in [3, 64, 70] {
            for residual in [Residual::Dense, Residual::Strided, Residual::Row, Residual::Column] {
                let act = Activation::from_code((residual as u32 + filters as u32) % 6).unwrap();
                let bias = residual != Residual::Row;
                let case = Case { dtype, filters, residual, act, bias, batch: 2, gap: 5, ..PLAIN.clone() };
                case.conform();
            }
        }
    }
    for code in 0..6 {
        Case { act: Activation::from_code(code).unwrap(), ..PLAIN.clone() }.conform();
    }
}

/// Several ranges of channels, several blocks of pixels, several splits of filters.
#[test]
fn large() {
    for dtype in DTYPES {
        Case { dtype, size: (3, 7), channels: 397, filters: 70, residual: Residual::Dense, ..PLAIN.clone() }.conform();
        Case { dtype, size: (9, 203), channels: 33, filters: 40, ..PLAIN.clone() }.conform();
        Case { dtype, size: (1, 1), channels: 130, filters: 200, kernel: (1, 1), pad: [0; 4], ..PLAIN.clone() }
            .conform();
    }
}

/// Enough channels, filters and pixels for Winograd's way, in windows that the picture's edges cut.
#[test]
fn windows() {
    for dtype in DTYPES {
        let case = Case { dtype, size: (17, 13), channels: 33, filters: 70, gap: 3, ..PLAIN.clone() };
        case.conform();
        Case { residual: Residual::Dense, act: Activation::Silu, batch: 2, ..case.clone() }.conform();
        Case { size: (4, 5), upsample: 3, filters: 48, residual: Residual::Strided, ..case.clone() }.conform();
        Case { pad: [0, 2, 0, 0], filters: 32, bias: false, ..case.clone() }.conform();
        Case { size: (8, 8), channels: 260, residual: Residual::Row, ..case.clone() }.conform();
        Case { size: (1, 131), channels: 32, filters: 33, ..case.clone() }.conform();
        Case { size: (131, 1), channels: 32, filters: 33, ..case.clone() }.conform();
    }
}

#[test]
fn few_filters() {
    let mut i = 0;
    for filters in [1, 2, 3, 4] {
        for channels in [8, 17, 70] {
            for width in [1, 7, 12, 101] {
                let (dtype, stride) = (DTYPES[i % 3], 1 + i % 2);
                i += 1;
                let case = Case { dtype, stride, filters, channels, size: (3, width), gap: 1, ..PLAIN.clone() };
                case.conform();
                Case { kernel: (1, 1), pad: [0; 4], residual: Residual::Dense, ..case }.conform();
            }
        }
    }
}

/// Frames that repeat the first, or that a cache holds; by every way, and by kernels that are longer than the video.
#[test]
fn videos() {
    let mut i = 0;
    for cache in [false, true] {
        for frames in [(1, 3), (2, 3), (5, 3), (3, 2), (2, 5)] {
            for (channels, filters, size) in [(16, 40, (5, 7)), (19, 3, (4, 9)), (5, 33, (3, 6)), (70, 70, (9, 6))] {
                let dtype = DTYPES[i % 3];
                let batch = 1 + i % 2;
                i += 1;
                let case = Case { dtype, batch, frames: Some(frames), cache, channels, filters, size, ..PLAIN.clone() };
                case.conform();
                let act = Activation::from_code(i as u32 % 6).unwrap();
                Case { residual: Residual::Dense, act, gap: 3, ..case.clone() }.conform();
                Case { stride: 2, upsample: 3, pad: [1, 0, 2, 1], gap: 1, ..case.clone() }.conform();
                Case { kernel: (1, 1), pad: [0; 4], residual: Residual::Strided, ..case }.conform();
            }
        }
    }
    for dtype in DTYPES {
        // Only height and width.
        let case = Case { dtype, frames: Some((3, 1)), filters: 40, size: (7, 8), ..PLAIN.clone() };
        case.conform();
        for residual in [Residual::Row, Residual::Column] {
            Case { residual, ..case.clone() }.conform();
        }
        // Several ranges of channels.
        let case = Case { frames: Some((2, 3)), cache: true, channels: 131, size: (8, 6), ..case };
        case.conform();
        Case { residual: Residual::Column, size: (3, 5), ..case.clone() }.conform();
        Case { frames: Some((2, 3)), channels: 40, filters: 33, size: (33, 35), ..case }.conform();
    }
}

#[test]
fn nothing_to_do() {
    Case { frames: Some((0, 3)), ..PLAIN.clone() }.conform();
    Case { frames: Some((0, 3)), cache: true, ..PLAIN.clone() }.conform();
    Case { frames: Some((2, 3)), channels: 0, cache: true, ..PLAIN.clone() }.conform();
    Case { size: (0, 3), kernel: (1, 1), pad: [0; 4], ..PLAIN.clone() }.conform();
    Case { batch: 0, ..PLAIN.clone() }.conform();
    Case { filters: 0, ..PLAIN.clone() }.conform();
    // Bias alone.
    Case { channels: 0, ..PLAIN.clone() }.conform();
    Case { size: (0, 0), pad: [2; 4], ..PLAIN.clone() }.conform();
}

#[test]
fn weights_of_other_types_and_strides() {
    let rng = &mut Rng(3);
    for from in DTYPES {
        for dtype in DTYPES {
            let x = Tensor::empty(dtype, &[1, 4, 4, 7]).random(rng, 1.0);
            // (kh, kw, C, O) seen as (O, C, kh, kw).
            let weight = Tensor::with_strides(from, &[37, 7, 3, 3], &[1, 37, 3 * 7 * 37, 7 * 37]).random(rng, 1.0);
            let out = Tensor::empty(dtype, &[1, 4, 4, 37]);
            let prepare = |level: Level, pool: &Pool| {
                vec![Some(x.clone()), Some(pack(level, pool, &weight, dtype)), None, None, None]
            };
            conform_with("strided weight", Op::Conv, prepare, &out, &PLAIN.params());
        }
    }
}

#[test]
fn not_a_number_stays_where_it_is_seen() {
    for dtype in DTYPES {
        for level in common::levels() {
            let pool = Pool::new(1).unwrap();
            // NaN at pixel 0 reaches pixels 0 and 1 of the row, no other.
            let x = Tensor::empty(dtype, &[1, 1, 20, 3]).fill(|i| if i == 1 { f32::NAN } else { 1.0 });
            let weight = Tensor::empty(dtype, &[5, 3, 3, 3]).fill(|_| 1.0);
            let packed = pack(level, &pool, &weight, dtype);
            let mut out = Tensor::empty(dtype, &[1, 1, 20, 5]);
            run(level, &pool, Op::Conv, &mut [Some(x), Some(packed), None, None, None], &mut out, &PLAIN.params());
            for (i, value) in out.values().into_iter().enumerate() {
                assert_eq!(value.is_nan(), i < 10, "element {i} on {}: {value}", level.name());
            }
        }
    }
}

#[test]
fn refusals() {
    let null = std::ptr::null_mut();
    let view = |dtype, shape: &[usize]| Some(View::contiguous(null, dtype, shape));
    let good = [
        view(DType::F32, &[2, 8, 8, 6]),
        view(DType::U8, &[64 * 8 * 9 * 4]),
        view(DType::F32, &[10]),
        view(DType::F32, &[2, 8, 8, 10]),
        None,
        view(DType::F32, &[2, 8, 8, 10]),
    ];
    let params = PLAIN.params();
    let check = |operands: &[Option<View>], params: &[u32]| {
        (ops::kernel(Op::Conv).check)(&Args { operands, params }).map_err(|e| e.message)
    };
    check(&good, &params).unwrap();
    for (index, bad, word) in [
        (0, view(DType::F32, &[2, 8, 8]), "5 axes"),
        (0, view(DType::U8, &[2, 8, 8, 6]), "float"),
        (0, view(DType::BF16, &[2, 8, 8, 6]), "type"),
        (0, view(DType::F32, &[3, 8, 8, 6]), "batch"),
        (0, view(DType::F32, &[2, 8, 8, 9]), "bytes"),
        (1, view(DType::U8, &[64 * 8 * 9 * 4 - 1]), "bytes"),
        (1, view(DType::F32, &[64 * 8 * 9]), "bytes"),
        (2, view(DType::F32, &[9]), "bias"),
        (2, view(DType::BF16, &[10]), "bias"),
        (3, view(DType::BF16, &[2, 8, 8, 10]), "residual"),
        (3, view(DType::F32, &[2, 8, 7, 10]), "residual"),
        (3, view(DType::F32, &[1, 2, 8, 8, 10]), "residual"),
        (4, view(DType::F32, &[2, 0, 8, 8, 6]), "cache"),
        (5, view(DType::F32, &[2, 8, 8, 65]), "bytes"),
        (5, view(DType::F32, &[2, 8, 8, 10, 1]), "4 axes"),
        (5, view(DType::F32, &[2, 8, 8, 1 << 52]), "bytes"),
    ] {
        let mut operands = good;
        operands[index] = bad;
        let message = check(&operands, &params).unwrap_err();
        assert!(message.starts_with("conv") && message.contains(word), "{message}");
    }
    for (index, value) in [(0, 0), (0, 2), (1, 0), (2, -1), (2, 300), (3, 0), (4, -1), (5, 1 << 30), (6, 0), (7, 99)] {
        let mut params = params;
        params[index] = value as u32;
        check(&good, &params).unwrap_err();
    }
    let video = [
        view(DType::F32, &[2, 4, 8, 8, 6]),
        view(DType::U8, &[64 * 8 * 27 * 4]),
        None,
        view(DType::F32, &[2, 4, 8, 8, 10]),
        view(DType::F32, &[2, 2, 8, 8, 6]),
        view(DType::F32, &[2, 4, 8, 8, 10]),
    ];
    let params = Case { frames: Some((4, 3)), ..PLAIN.clone() }.params();
    check(&video, &params).unwrap();
    for (index, bad, word) in [
        (0, view(DType::F32, &[2, 8, 8, 6]), "5 axes"),
        (0, view(DType::F32, &[2, 5, 8, 8, 6]), "frames"),
        (1, view(DType::U8, &[64 * 8 * 9 * 4]), "bytes"),
        (4, view(DType::F32, &[2, 3, 8, 8, 6]), "cache"),
        (4, view(DType::F32, &[2, 2, 8, 7, 6]), "cache"),
        (4, view(DType::F32, &[1, 2, 8, 8, 6]), "cache"),
        (4, view(DType::BF16, &[2, 2, 8, 8, 6]), "cache"),
        (5, view(DType::F32, &[2, 3, 8, 8, 10]), "frames"),
        (5, view(DType::F32, &[8, 8, 8, 10]), "axes"),
    ] {
        let mut operands = video;
        operands[index] = bad;
        let message = check(&operands, &params).unwrap_err();
        assert!(message.starts_with("conv") && message.contains(word), "{message}");
    }
    let check = |weight: Option<View>, bytes: usize, dtype: u32| {
        let operands = [weight, view(DType::U8, &[bytes])];
        (ops::kernel(Op::PackConv).check)(&Args { operands: &operands, params: &[dtype] })
    };
    check(view(DType::BF16, &[10, 6, 3, 3]), 64 * 8 * 9 * 4, 0).unwrap();
    check(view(DType::BF16, &[10, 6, 3, 3]), 64 * 8 * 9 * 2, 0).unwrap_err();
    check(view(DType::BF16, &[10, 6, 3, 3]), 64 * 8 * 9 * 4, 3).unwrap_err();
    check(view(DType::BF16, &[10, 6, 3, 3, 3]), 64 * 8 * 27 * 4, 0).unwrap();
    check(view(DType::BF16, &[10, 6, 9]), 64 * 8 * 9 * 4, 0).unwrap_err();
    check(view(DType::I8, &[10, 6, 3, 3]), 64 * 8 * 9 * 4, 0).unwrap_err();
    let mut huge = View::contiguous(null, DType::F32, &[1, 1, 3, 3]);
    huge.dims[..2].fill(1 << 40);
    check(Some(huge), 0, 0).unwrap_err();
}
