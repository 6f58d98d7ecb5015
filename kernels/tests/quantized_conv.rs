//! Convolution by quantized weights against its reference, over odd shapes.

mod common;

use common::{Level, Rng, Tensor, conform_with, levels, run};
use denoise::ops::{self, Args};
use denoise::pool::Pool;
use denoise::quant::quantized_conv_bytes;
use denoise::schema::{Activation, DType, Format, Op, Rows};
use denoise::view::View;

/// One convolution of the tests.
#[derive(Clone, Debug)]
struct Case {
    dtype: DType,
    format: Format,
    rows: Rows,
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
    residual: bool,
    act: Activation,
    /// Elements between pixels of x, out and residual, and between rows of codes, beyond their own.
    gap: usize,
}

const PLAIN: Case = Case {
    dtype: DType::F32,
    format: Format::Int8,
    rows: Rows::None,
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
    residual: false,
    act: Activation::None,
    gap: 0,
};

const DTYPES: [DType; 3] = [DType::F32, DType::BF16, DType::F16];

/// What weights and x can be, together.
const FORMS: [(Format, Rows); 4] =
    [(Format::Int8, Rows::None), (Format::Int8, Rows::Int8), (Format::E4m3, Rows::None), (Format::E5m2, Rows::None)];

/// Codes of every value that is a number; of e5m2, which reaches far, of small ones.
fn codes(format: Format, shape: &[usize], gap: usize, rng: &mut Rng) -> Tensor {
    match format {
        Format::Int8 => Tensor::padded(DType::I8, shape, gap).fill(|_| rng.below(256) as f32 - 128.0),
        Format::E4m3 => Tensor::padded(DType::U8, shape, gap).fill(|_| (rng.below(127) + 128 * rng.below(2)) as f32),
        _ => Tensor::padded(DType::U8, shape, gap).fill(|_| (rng.below(64) + 128 * rng.below(2)) as f32),
    }
}

fn largest(x: &Tensor) -> f32 {
    x.values().iter().fold(0.0, |most: f64, v| most.max(v.abs())) as f32
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
    fn time(&self) -> usize {
        self.frames.map_or(1, |frames| frames.1)
    }
    /// A shape, with frames where there are any.
    fn shape(&self, frames: usize, rest: [usize; 3]) -> Vec<usize> {
        [self.batch].into_iter().chain(self.frames.map(|_| frames)).chain(rest).collect()
    }
    fn params(&self) -> [u32; 11] {
        let [kh, kw] = [self.kernel.0, self.kernel.1].map(|k| k as u32);
        let [top, left] = [self.pad[0] as u32, self.pad[1] as u32];
        let (stride, upsample) = (self.stride as u32, self.upsample as u32);
        let act = self.act as u32;
        [self.time() as u32, kh, kw, stride, top, left, upsample, act, self.format as u32, self.rows as u32, 0]
    }
    fn pack(&self, level: Level, pool: &Pool, codes: &Tensor, scale: &Tensor) -> Tensor {
        let (kh, kw) = self.kernel;
        let bytes = quantized_conv_bytes(self.filters, self.channels, self.time() * kh * kw).unwrap();
        let mut packed = Tensor::empty(DType::U8, &[bytes]);
        let [c, kt, kh, kw] = [self.channels, self.time(), kh, kw].map(|size| size as u32);
        let params = [c, kt, kh, kw, self.format as u32, self.rows as u32, self.dtype as u32];
        let mut inputs = [Some(codes.clone()), Some(scale.clone())];
        run(level, pool, Op::PackQuantizedConv, &mut inputs, &mut packed, &params);
        packed
    }
    fn conform(&self) {
        let rng = &mut Rng(7);
        let (height, width) = self.out_size();
        let (o, frames) = (self.filters, self.frames.map_or(0, |frames| frames.0));
        let picture = [self.size.0, self.size.1, self.channels];
        let x = Tensor::padded(self.dtype, &self.shape(frames, picture), self.gap).random(rng, 1.0);
        let cache = self
            .cache
            .then(|| Tensor::padded(self.dtype, &self.shape(self.time() - 1, picture), 2 * self.gap).random(rng, 2.0));
        let taps = self.time() * self.kernel.0 * self.kernel.1;
        let codes = codes(self.format, &[o, self.channels * taps], self.gap, rng);
        let scale = Tensor::empty(DType::F32, &[o, 1]).fill(|_| 0.01 + 0.01 * rng.uniform().abs());
        let bias = self.bias.then(|| Tensor::empty(DType::F32, &[o]).random(rng, 1.0));
        let residual = self
            .residual
            .then(|| Tensor::padded(self.dtype, &self.shape(frames, [height, width, o]), self.gap).random(rng, 1.0));
        let most = cache.iter().map(largest).fold(largest(&x), f32::max);
        let amax = (self.rows == Rows::Int8).then(|| Tensor::empty(DType::F32, &[1]).fill(|_| most));
        let out = Tensor::padded(self.dtype, &self.shape(frames, [height, width, o]), self.gap);
        conform_with(
            &format!("{self:?}"),
            Op::QuantizedConv,
            |level, pool| {
                let packed = self.pack(level, pool, &codes, &scale);
                vec![Some(x.clone()), Some(packed), bias.clone(), residual.clone(), cache.clone(), amax.clone()]
            },
            &out,
            &self.params(),
        );
    }
}

#[test]
fn every_count_of_channels_and_filters() {
    let mut i = 0;
    for (format, rows) in FORMS {
        for channels in [1, 2, 3, 5, 16, 33, 67, 130] {
            for filters in [1, 3, 5, 16, 31, 64, 70] {
                let dtype = DTYPES[i % 3];
                i += 1;
                Case { dtype, format, rows, channels, filters, size: (2, 13), ..PLAIN.clone() }.conform();
            }
        }
    }
}

#[test]
fn every_size() {
    let mut i = 0;
    for height in [1, 2, 5, 17] {
        for width in [1, 2, 5, 17] {
            for (kernel, pad) in [((1, 1), [0; 4]), ((3, 3), [1; 4]), ((5, 5), [2; 4]), ((2, 2), [1, 0, 0, 1])] {
                let (dtype, (format, rows)) = (DTYPES[i % 3], FORMS[i % 4]);
                i += 1;
                let size = (height, width);
                Case { dtype, format, rows, size, channels: 5, filters: 18, kernel, pad, ..PLAIN.clone() }.conform();
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
                for (format, rows) in FORMS {
                    let dtype = DTYPES[i % 3];
                    i += 1;
                    let case = Case { dtype, format, rows, batch: 2, size: (6, 9), ..PLAIN.clone() };
                    Case { channels: 19, filters: 33, stride, upsample, kernel, pad, gap: 3, ..case }.conform();
                }
            }
        }
    }
}

#[test]
fn epilogues() {
    for (format, rows) in FORMS {
        for dtype in DTYPES {
            for (filters, code) in [(3, 1), (64, 2), (70, 3)] {
                let act = Activation::from_code(code).unwrap();
                let case = Case { dtype, format, rows, filters, act, batch: 2, gap: 5, ..PLAIN.clone() };
                Case { residual: true, ..case.clone() }.conform();
                Case { bias: false, ..case }.conform();
            }
        }
    }
}

/// Several ranges of channels, several blocks of pixels, several splits of filters.
#[test]
fn large() {
    for (format, rows) in FORMS {
        for dtype in DTYPES {
            let case = Case { dtype, format, rows, ..PLAIN.clone() };
            Case { size: (3, 7), channels: 1061, filters: 70, residual: true, ..case.clone() }.conform();
            Case { size: (9, 203), channels: 33, filters: 40, ..case.clone() }.conform();
            Case { size: (1, 1), channels: 130, filters: 200, kernel: (1, 1), pad: [0; 4], ..case }.conform();
        }
    }
}

/// Enough channels, filters and pixels for Winograd's way, in windows that the picture's edges cut.
#[test]
fn windows() {
    for (format, rows) in FORMS {
        let case = Case { format, rows, size: (17, 13), channels: 33, filters: 70, gap: 3, ..PLAIN.clone() };
        case.conform();
        Case { residual: true, act: Activation::Silu, batch: 2, ..case.clone() }.conform();
        Case { size: (4, 5), upsample: 3, filters: 48, ..case.clone() }.conform();
        Case { pad: [0, 2, 0, 0], filters: 32, bias: false, ..case.clone() }.conform();
        Case { size: (8, 8), channels: 260, ..case.clone() }.conform();
    }
}

#[test]
fn few_filters() {
    let mut i = 0;
    for filters in [1, 2, 3, 4] {
        for channels in [8, 17, 70] {
            for (format, rows) in FORMS {
                let (dtype, stride) = (DTYPES[i % 3], 1 + i % 2);
                i += 1;
                let case = Case { dtype, format, rows, stride, filters, channels, gap: 1, ..PLAIN.clone() };
                Case { size: (3, 1 + 11 * (i % 9)), ..case.clone() }.conform();
                Case { kernel: (1, 1), pad: [0; 4], residual: true, ..case }.conform();
            }
        }
    }
}

#[test]
fn videos() {
    let mut i = 0;
    for (format, rows) in FORMS {
        for cache in [false, true] {
            for frames in [(1, 3), (5, 3), (2, 2)] {
                for (channels, filters, size) in [(16, 40, (5, 7)), (19, 3, (4, 9)), (5, 33, (3, 6)), (70, 70, (9, 6))]
                {
                    let dtype = DTYPES[i % 3];
                    i += 1;
                    let case = Case { dtype, format, rows, frames: Some(frames), cache, channels, ..PLAIN.clone() };
                    let case = Case { filters, size, ..case };
                    case.conform();
                    let act = Activation::from_code(i as u32 % 6).unwrap();
                    Case { residual: true, act, gap: 3, batch: 2, ..case.clone() }.conform();
                    Case { kernel: (1, 1), pad: [0; 4], ..case }.conform();
                }
            }
        }
        // Several ranges of channels.
        let case = Case { format, rows, frames: Some((2, 3)), cache: true, channels: 300, ..PLAIN.clone() };
        Case { filters: 40, size: (8, 6), ..case.clone() }.conform();
        Case { filters: 2, size: (3, 5), ..case }.conform();
    }
}

#[test]
fn nothing_to_do() {
    for (format, rows) in FORMS {
        let case = Case { format, rows, ..PLAIN.clone() };
        Case { size: (0, 3), kernel: (1, 1), pad: [0; 4], ..case.clone() }.conform();
        Case { batch: 0, ..case.clone() }.conform();
        Case { filters: 0, ..case.clone() }.conform();
        // Bias alone.
        Case { channels: 0, ..case.clone() }.conform();
        Case { size: (0, 0), pad: [2; 4], ..case.clone() }.conform();
    }
}

/// Convolves x by codes and scales at a level.
fn convolve(case: &Case, level: Level, x: &Tensor, codes: &Tensor, scale: f32, amax: Option<f32>) -> Vec<f64> {
    let pool = Pool::new(1).unwrap();
    let scale = Tensor::empty(DType::F32, &[case.filters, 1]).fill(|_| scale);
    let packed = case.pack(level, &pool, codes, &scale);
    let amax = amax.map(|amax| Tensor::empty(DType::F32, &[1]).fill(|_| amax));
    let (height, width) = case.out_size();
    let mut out = Tensor::empty(case.dtype, &[case.batch, height, width, case.filters]);
    let mut inputs = [Some(x.clone()), Some(packed), None, None, None, amax];
    run(level, &pool, Op::QuantizedConv, &mut inputs, &mut out, &case.params());
    out.values()
}

/// Integers as large as they come, in sums beyond what f32 counts, come out exact but for the last rounding.
#[test]
fn sums_of_integers_are_exact() {
    let case = Case { rows: Rows::Int8, channels: 3001, filters: 7, size: (3, 4), bias: false, ..PLAIN.clone() };
    let rng = &mut Rng(5);
    let codes = codes(Format::Int8, &[7, 3001 * 9], 0, rng);
    let codes = codes.fill(|i| if i < 3001 * 9 { -128.0 } else { rng.below(256) as f32 - 128.0 });
    let x = Tensor::empty(DType::F32, &[1, 3, 4, 3001])
        .fill(|i| if i % 7 == 0 { 127.0 } else { rng.below(255) as f32 - 127.0 });
    let want = convolve(&case, Level::Reference, &x, &codes, 1.0, Some(127.0));
    assert!(want.iter().any(|v| v.abs() > (1 << 25) as f64));
    for level in levels() {
        assert_eq!(convolve(&case, level, &x, &codes, 1.0, Some(127.0)), want, "{}", level.name());
    }
}

/// Every code of every format through every way, one at a time: an identity of one filter's weight.
#[test]
fn every_code_is_its_value() {
    for format in [Format::Int8, Format::E4m3, Format::E5m2] {
        for (kernel, filters) in [((1, 1), 256), ((3, 3), 256), ((1, 1), 4)] {
            let case = Case { format, kernel, filters, channels: 8, size: (8, 8), pad: [0; 4], ..PLAIN.clone() };
            let taps = kernel.0 * kernel.1;
            let dtype = if format == Format::Int8 { DType::I8 } else { DType::U8 };
            for first in (0..256).step_by(filters) {
                let code = |filter: usize| (first + filter) as f32 - if format == Format::Int8 { 128.0 } else { 0.0 };
                // The first channel's middle tap, and no other.
                let at = |i: usize| i % (8 * taps) == taps / 2;
                let codes =
                    Tensor::empty(dtype, &[filters, 8 * taps]).fill(|i| if at(i) { code(i / (8 * taps)) } else { 0.0 });
                let x = Tensor::empty(DType::F32, &[1, 8, 8, 8]).fill(|i| (i % 8 == 0) as u8 as f32);
                let want = convolve(&case, Level::Reference, &x, &codes, 0.5, None);
                for level in levels() {
                    let got = convolve(&case, level, &x, &codes, 0.5, None);
                    // Winograd's sums make NaN of infinity.
                    let same = |(g, w): (&f64, &f64)| g == w || !g.is_finite() && !w.is_finite();
                    assert!(got.iter().zip(&want).all(same), "{format:?} {kernel:?} on {}", level.name());
                }
            }
        }
    }
}

/// Scales that only broken data has: the results are numbers or not, but the same, and nothing is touched beside them.
#[test]
fn scales_of_nothing_and_of_everything() {
    let case = Case { rows: Rows::Int8, filters: 5, channels: 67, ..PLAIN.clone() };
    let codes = codes(Format::Int8, &[5, 67 * 9], 0, &mut Rng(1));
    let x = Tensor::empty(DType::F32, &[1, 5, 5, 67]).random(&mut Rng(2), 1e30);
    let zeros = Tensor::empty(DType::F32, &[1, 5, 5, 67]).fill(|_| 0.0);
    let wild = x.clone().fill(|i| [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e38, -0.0][i % 5]);
    for level in levels() {
        assert!(convolve(&case, level, &zeros, &codes, 1.0, Some(0.0)).iter().all(|&v| v == 0.0));
        for x in [&x, &zeros, &wild] {
            for amax in [0.0, 1e-44, 1e-3, -1.0, f32::INFINITY, f32::NAN] {
                let want = convolve(&case, Level::Reference, x, &codes, 1.0, Some(amax));
                let got = convolve(&case, level, x, &codes, 1.0, Some(amax));
                for (g, w) in got.iter().zip(&want) {
                    let near = g == w || (g - w).abs() <= 1e-6 * w.abs();
                    assert!(near || g.is_nan() && w.is_nan(), "amax {amax} on {}: {g}, {w}", level.name());
                }
            }
        }
    }
}

#[test]
fn refusals() {
    let null = std::ptr::null_mut();
    let view = |dtype, shape: &[usize]| Some(View::contiguous(null, dtype, shape));
    let bytes = 64 * 64 * 9 + 64 * 8;
    let good = [
        view(DType::F32, &[2, 8, 8, 6]),
        view(DType::U8, &[bytes]),
        view(DType::F32, &[10]),
        view(DType::F32, &[2, 8, 8, 10]),
        None,
        None,
        view(DType::F32, &[2, 8, 8, 10]),
    ];
    let params = PLAIN.params();
    let check = |operands: &[Option<View>], params: &[u32]| {
        (ops::kernel(Op::QuantizedConv).check)(&Args { operands, params }).map_err(|e| e.message)
    };
    check(&good, &params).unwrap();
    for (index, bad, word) in [
        (0, view(DType::F32, &[2, 8, 8]), "5 axes"),
        (0, view(DType::U8, &[2, 8, 8, 6]), "float"),
        (0, view(DType::BF16, &[2, 8, 8, 6]), "type"),
        (0, view(DType::F32, &[2, 8, 8, 65]), "bytes"),
        (1, view(DType::U8, &[bytes - 1]), "bytes"),
        (1, view(DType::I8, &[bytes]), "bytes"),
        (2, view(DType::F32, &[9]), "bias"),
        (3, view(DType::F32, &[2, 8, 7, 10]), "residual"),
        (4, view(DType::F32, &[2, 0, 8, 8, 6]), "cache"),
        (5, view(DType::F32, &[1]), "amax"),
        (6, view(DType::F32, &[2, 8, 8, 65]), "bytes"),
        (6, view(DType::F32, &[2, 8, 8, 1 << 58]), "bytes"),
    ] {
        let mut operands = good;
        operands[index] = bad;
        let message = check(&operands, &params).unwrap_err();
        assert!(message.starts_with("quantized_conv") && message.contains(word), "{message}");
    }
    for (index, value) in
        [(0, 0), (1, 0), (2, 300), (3, 0), (4, -1), (6, 0), (7, 99), (8, 1), (8, 4), (8, 99), (9, 2), (9, 99)]
    {
        let mut params = params;
        params[index] = value as u32;
        check(&good, &params).unwrap_err();
    }
    let integers = Case { rows: Rows::Int8, ..PLAIN.clone() }.params();
    let mut operands = good;
    assert!(check(&operands, &integers).unwrap_err().contains("amax"));
    operands[5] = view(DType::F32, &[1]);
    check(&operands, &integers).unwrap();
    let fp8 = Case { rows: Rows::Int8, format: Format::E4m3, ..PLAIN.clone() }.params();
    assert!(check(&operands, &fp8).unwrap_err().contains("int8"));
    operands[5] = view(DType::F32, &[2]);
    assert!(check(&operands, &integers).unwrap_err().contains("amax"));
    operands[5] = view(DType::F32, &[1]);
    operands[0] = view(DType::F32, &[2, 8, 8, 1 << 15]);
    operands[1] = view(DType::U8, &[64 * 9 * (1 << 15) + 64 * 8]);
    assert!(check(&operands, &integers).unwrap_err().contains("131071"));

    let good = [view(DType::I8, &[10, 54]), view(DType::F32, &[10, 1]), view(DType::U8, &[bytes])];
    let params = [6, 1, 3, 3, Format::Int8 as u32, Rows::None as u32, DType::F32 as u32];
    let check = |operands: &[Option<View>], params: &[u32]| {
        (ops::kernel(Op::PackQuantizedConv).check)(&Args { operands, params }).map_err(|e| e.message)
    };
    check(&good, &params).unwrap();
    for (index, bad, word) in [
        (0, view(DType::U8, &[10, 54]), "codes"),
        (0, view(DType::I8, &[10, 53]), "codes"),
        (0, view(DType::I8, &[10, 6, 9]), "codes"),
        (1, view(DType::F32, &[10]), "scales"),
        (1, view(DType::BF16, &[10, 1]), "scales"),
        (1, view(DType::F32, &[1, 1]), "scales"),
        (2, view(DType::U8, &[bytes + 64]), "bytes"),
        (2, view(DType::I8, &[bytes]), "bytes"),
    ] {
        let mut operands = good;
        operands[index] = bad;
        let message = check(&operands, &params).unwrap_err();
        assert!(message.starts_with("pack_quantized_conv") && message.contains(word), "{message}");
    }
    for (index, value) in
        [(0, -1), (0, i32::MAX), (1, 0), (1, 3), (2, 0), (2, 9), (3, 300), (4, 2), (4, 5), (5, 2), (6, 3), (6, 99)]
    {
        let mut params = params;
        params[index] = value as u32;
        check(&good, &params).unwrap_err();
    }
}
