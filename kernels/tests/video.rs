//! Videos: what is encoded comes back, what is broken is refused.

use denoise::error::{Code, Result};
use denoise::video::yuv::{Colour, Picture, Planes};
use denoise::video::{Format, Video};

/// A disc that moves over shades, RGB.
fn frame(width: usize, height: usize, t: usize) -> Vec<u8> {
    let pixels = (0..width * height).flat_map(|i| {
        let (x, y) = ((i % width) as f64, (i / width) as f64);
        let (cx, cy) = (width as f64 * 0.3 + 2.0 * t as f64, height as f64 * 0.5);
        let inside = (0.5 - ((x - cx).hypot(y - cy) - height as f64 / 4.0)).clamp(0.0, 1.0);
        let shade = 60.0 + 90.0 * x / width as f64 + 40.0 * (y / 9.0 + t as f64 / 5.0).sin();
        [shade, shade * 0.8 + 20.0, 200.0 - shade]
            .into_iter()
            .zip([200.0, 60.0, 50.0])
            .map(move |(back, disc)| (back + inside * (disc - back)).round() as u8)
    });
    pixels.collect()
}

fn psnr(a: &[u8], b: &[u8]) -> f64 {
    assert_eq!(a.len(), b.len());
    let sum: f64 = a.iter().zip(b).map(|(&a, &b)| (a as f64 - b as f64).powi(2)).sum();
    10.0 * (255.0 * 255.0 * a.len() as f64 / sum).log10()
}

fn push(video: &mut Video, input: &[u8]) -> Result<Vec<u8>> {
    let mut out = vec![0; video.push(input)?];
    video.take(&mut out)?;
    Ok(out)
}

fn drain(video: &mut Video) -> Result<Vec<u8>> {
    let mut out = vec![0; video.drain()?];
    video.take(&mut out)?;
    Ok(out)
}

fn encode(format: Format, (width, height): (usize, usize), fps: f64, qp: u32, count: usize) -> Vec<Vec<u8>> {
    let mut encoder = Video::encoder(format, width, height, fps, qp).unwrap();
    let mut parts: Vec<_> = (0..count).map(|t| push(&mut encoder, &frame(width, height, t)).unwrap()).collect();
    loop {
        let part = drain(&mut encoder).unwrap();
        if part.is_empty() {
            return parts;
        }
        parts.push(part);
    }
}

/// Width, height, delay and pixels.
type Frame = (u32, u32, u32, Vec<u8>);

/// All frames, until a part is refused.
fn decode(format: Format, parts: &[Vec<u8>]) -> (Vec<Frame>, Result<()>) {
    let mut decoder = Video::decoder(format, Colour::BT709).unwrap();
    let mut frames = Vec::new();
    let mut keep = |out: Vec<u8>| {
        if out.is_empty() {
            return false;
        }
        let word = |i: usize| u32::from_le_bytes(out[4 * i..][..4].try_into().unwrap());
        assert_eq!(out.len(), 12 + 3 * (word(0) * word(1)) as usize);
        frames.push((word(0), word(1), word(2), out[12..].to_vec()));
        true
    };
    for part in parts {
        match push(&mut decoder, part) {
            Ok(out) => keep(out),
            Err(error) => return (frames, Err(error)),
        };
    }
    loop {
        match drain(&mut decoder) {
            Ok(out) => {
                if !keep(out) {
                    return (frames, Ok(()));
                }
            }
            Err(error) => return (frames, Err(error)),
        }
    }
}

/// Without the byte that says whether a frame stands for itself.
fn streams(parts: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    parts.into_iter().map(|part| part[1..].to_vec()).collect()
}

#[test]
fn h264_comes_back_close_in_order_and_whole() {
    for size in [(16, 16), (18, 34), (130, 66), (352, 240)] {
        let parts = encode(Format::H264, size, 8.0, 18, 20);
        assert_eq!(parts.len(), 20);
        let keys: Vec<_> = (0..20).filter(|&i| parts[i][0] == 1).collect();
        assert!(keys.contains(&0) && keys.contains(&16), "{keys:?}"); // every two seconds
        let (frames, end) = decode(Format::H264, &streams(parts));
        end.unwrap();
        assert_eq!(frames.len(), 20);
        for (t, (width, height, delay, pixels)) in frames.iter().enumerate() {
            assert_eq!((*width as usize, *height as usize, *delay), (size.0, size.1, 0));
            let quality = psnr(pixels, &frame(size.0, size.1, t));
            // A few pixels are mostly the edge of the disc, whose colour four of them share.
            let least = if size.0 < 100 { 27.0 } else { 35.0 };
            assert!(quality >= least, "{size:?} frame {t}: {quality} dB");
            for other in (0..20).filter(|other: &usize| other.abs_diff(t) > 1) {
                assert!(quality > psnr(pixels, &frame(size.0, size.1, other)), "{size:?} frame {t} is {other}");
            }
        }
    }
}

#[test]
fn a_smaller_quantizer_is_larger_and_better() {
    let results: Vec<_> = [4, 12, 20, 28, 40]
        .into_iter()
        .map(|qp| {
            let parts = streams(encode(Format::H264, (96, 64), 30.0, qp, 6));
            let bytes: usize = parts.iter().map(Vec::len).sum();
            let (frames, _) = decode(Format::H264, &parts);
            (bytes, psnr(&frames[5].3, &frame(96, 64, 5)))
        })
        .collect();
    for pair in results.windows(2) {
        assert!(pair[0].0 > pair[1].0 && pair[0].1 > pair[1].1, "{results:?}");
    }
}

#[test]
fn encoding_twice_gives_the_same_bytes() {
    for format in [Format::H264, Format::Gif] {
        assert_eq!(encode(format, (64, 48), 8.0, 18, 5), encode(format, (64, 48), 8.0, 18, 5));
    }
}

#[test]
fn gif_of_few_colours_comes_back_exactly() {
    let (width, height) = (37, 11);
    let frames: Vec<Vec<u8>> = (0..5)
        .map(|t| (0..width * height).flat_map(|i| [(i * 7 + t) as u8 & 0xf0, t as u8, 255 - t as u8]).collect())
        .collect();
    let mut encoder = Video::encoder(Format::Gif, width, height, 8.0, 0).unwrap();
    let mut file: Vec<u8> = frames.iter().flat_map(|frame| push(&mut encoder, frame).unwrap()).collect();
    file.extend(drain(&mut encoder).unwrap());
    assert!(drain(&mut encoder).unwrap().is_empty());
    let (decoded, end) = decode(Format::Gif, &[file]);
    end.unwrap();
    assert_eq!(decoded.iter().map(|frame| frame.2).collect::<Vec<_>>(), [13, 12, 13, 12, 13]); // ends at 12.5 i, rounded
    for (frame, (w, h, _, pixels)) in frames.iter().zip(&decoded) {
        assert_eq!((*w as usize, *h as usize), (width, height));
        assert_eq!(frame, pixels);
    }
}

#[test]
fn gif_of_many_colours_comes_back_close() {
    let file = encode(Format::Gif, (96, 64), 25.0, 0, 3).concat();
    let (frames, end) = decode(Format::Gif, &[file]);
    end.unwrap();
    for (t, frame_) in frames.iter().enumerate() {
        assert!(psnr(&frame_.3, &frame(96, 64, t)) > 30.0);
    }
}

/// What other writers make of a GIF: parts of the screen, what is transparent, and what becomes of a frame.
#[test]
fn gif_frames_lie_over_those_before_them() {
    let mut file = Vec::new();
    {
        let mut encoder = gif::Encoder::new(&mut file, 4, 1, &[0, 0, 0, 10, 20, 30, 40, 50, 60]).unwrap();
        let mut draw = |left, indices: &'static [u8], transparent, dispose| {
            let frame = gif::Frame {
                left,
                width: indices.len() as u16,
                height: 1,
                transparent,
                dispose,
                buffer: indices.into(),
                ..Default::default()
            };
            encoder.write_frame(&frame).unwrap();
        };
        draw(0, &[1, 1, 1, 1], None, gif::DisposalMethod::Keep);
        draw(1, &[2, 0], Some(0), gif::DisposalMethod::Previous);
        draw(2, &[2, 2], None, gif::DisposalMethod::Background);
        draw(0, &[2], None, gif::DisposalMethod::Any);
    }
    let (frames, end) = decode(Format::Gif, &[file]);
    end.unwrap();
    let reds: Vec<Vec<u8>> = frames.iter().map(|frame| frame.3.iter().step_by(3).copied().collect()).collect();
    assert_eq!(reds, [[10, 10, 10, 10], [10, 40, 10, 10], [10, 10, 40, 40], [40, 10, 0, 0]]);
}

#[test]
fn colours_are_converted_as_their_definition_says() {
    for (matrix, full, kr, kb) in
        [(1, false, 0.2126, 0.0722), (6, false, 0.299, 0.114), (9, true, 0.2627, 0.0593), (1, true, 0.2126, 0.0722)]
    {
        let colour = Colour::from_matrix(matrix, full).unwrap();
        let rgb: Vec<u8> = (0..64 * 2).flat_map(|i| [(i % 64 * 4) as u8, (i % 64 * 37) as u8, 255 - i as u8]).collect();
        let mut planes = Planes::new(64, 2);
        planes.read_rgb(&rgb, 64, colour);
        let (black, luma, chroma) = if full { (0.0, 255.0, 255.0) } else { (16.0, 219.0, 224.0) };
        let convert = |[r, g, b]: [f64; 3]| {
            let y = kr * r + (1.0 - kr - kb) * g + kb * b;
            [
                black + y * luma / 255.0,
                128.0 + (b - y) / (2.0 * (1.0 - kb)) * chroma / 255.0,
                128.0 + (r - y) / (2.0 * (1.0 - kr)) * chroma / 255.0,
            ]
        };
        let pixel = |x: usize, y: usize| -> [f64; 3] { std::array::from_fn(|c| rgb[(y * 64 + x) * 3 + c] as f64) };
        for y in 0..2 {
            for x in 0..64 {
                assert!((planes.y[y * 64 + x] as f64 - convert(pixel(x, y))[0]).abs() <= 0.501);
            }
        }
        for x in 0..32 {
            let mean = std::array::from_fn(|c| {
                [(0, 0), (1, 0), (0, 1), (1, 1)].iter().map(|&(dx, dy)| pixel(2 * x + dx, dy)[c] / 4.0).sum()
            });
            let [_, u, v] = convert(mean).map(|value: f64| value.clamp(0.0, 255.0));
            assert!((planes.u[x] as f64 - u).abs() <= 0.501 && (planes.v[x] as f64 - v).abs() <= 0.501);
        }

        // A picture of one colour comes back within what rounding to bytes loses; odd sides as a crop gives them.
        for rgb in [[0u8, 0, 0], [255, 255, 255], [200, 30, 90], [10, 250, 130]] {
            let mut planes = Planes::new(4, 4);
            planes.read_rgb(&rgb.repeat(16), 4, colour);
            let mut out = Vec::new();
            let picture = Picture { planes: [&planes.y, &planes.u, &planes.v], strides: [4, 2], width: 3, height: 3 };
            picture.write_rgb(&mut out, colour);
            assert_eq!(out.len(), 27);
            assert!(out.chunks(3).all(|pixel| pixel.iter().zip(rgb).all(|(&a, b)| a.abs_diff(b) <= 2)), "{out:?}");
        }
    }
}

#[test]
fn what_no_format_takes_is_refused() {
    let code = |result: Result<Video>| result.err().map(|error| error.code);
    for (width, height) in [(15, 16), (16, 0), (17, 16), (3842, 16), (3840, 2162), (usize::MAX, 16)] {
        assert_eq!(code(Video::encoder(Format::H264, width, height, 8.0, 18)), Some(Code::BadArgument));
    }
    assert_eq!(code(Video::encoder(Format::H264, 16, 16, 8.0, 52)), Some(Code::BadArgument));
    for fps in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        assert_eq!(code(Video::encoder(Format::H264, 16, 16, fps, 18)), Some(Code::BadArgument));
    }
    for (width, height) in [(0, 1), (1, 65536)] {
        assert_eq!(code(Video::encoder(Format::Gif, width, height, 8.0, 0)), Some(Code::BadArgument));
    }
    assert!(Format::from_number(2).is_err());
    assert!(Colour::from_matrix(0, false).is_err());
    for format in [Format::H264, Format::Gif] {
        let mut encoder = Video::encoder(format, 16, 16, 8.0, 18).unwrap();
        assert_eq!(encoder.push(&[0; 767]).unwrap_err().code, Code::BadArgument);
        let length = encoder.push(&[0; 768]).unwrap();
        assert!(encoder.take(&mut vec![0; length + 1]).is_err());
        encoder.take(&mut vec![0; length]).unwrap();
    }
    let mut ended = Video::encoder(Format::Gif, 16, 16, 8.0, 0).unwrap();
    ended.push(&[0; 768]).unwrap();
    ended.drain().unwrap();
    assert_eq!(ended.push(&[0; 768]).unwrap_err().code, Code::BadArgument);
    let mut decoder = Video::decoder(Format::Gif, Colour::BT709).unwrap();
    assert_eq!(decoder.drain().unwrap_err().code, Code::BadArgument);
    assert_eq!(Video::decoder(Format::H264, Colour::BT709).unwrap().push(&[]).unwrap_err().code, Code::BadValue);
}

#[test]
fn a_stream_of_two_sizes_is_refused() {
    let mut parts = streams(encode(Format::H264, (32, 32), 8.0, 18, 3));
    parts.extend(streams(encode(Format::H264, (64, 32), 8.0, 18, 3)));
    let (frames, end) = decode(Format::H264, &parts);
    assert!(frames.len() <= 3);
    assert_eq!(end.unwrap_err().code, Code::BadValue);
}

#[test]
fn a_gif_that_asks_for_too_much_memory_is_refused() {
    let mut file = encode(Format::Gif, (16, 16), 8.0, 0, 1).concat();
    file[6..10].fill(0xff); // a screen of 65535 by 65535
    let (_, end) = decode(Format::Gif, &[file]);
    assert_eq!(end.unwrap_err().code, Code::BadValue);
}

/// Bytes changed, cut off and doubled anywhere: a decoder gives frames or an error, and goes on to be one.
#[test]
fn broken_streams_are_decoded_or_refused() {
    let mut state = 1u64;
    let mut random = move |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    for format in [Format::H264, Format::Gif] {
        let whole = match format {
            Format::H264 => streams(encode(format, (64, 48), 3.0, 24, 8)),
            Format::Gif => vec![encode(format, (24, 16), 8.0, 0, 4).concat()],
        };
        let mut refused = 0;
        for round in 0..400 {
            let mut parts = whole.clone();
            for _ in 0..1 + round % 4 {
                let i = random(parts.len());
                let len = parts[i].len();
                let at = random(if round % 2 == 0 { len.min(60) } else { len });
                match random(4) {
                    0 => parts[i][at] ^= 1 << random(8),
                    1 => parts[i][at] = random(256) as u8,
                    2 if at > 0 => parts[i].truncate(at),
                    _ => {
                        let tail = parts[i][at..].to_vec();
                        parts[i].extend(tail);
                    }
                }
            }
            let (frames, end) = decode(format, &parts);
            assert!(frames.len() <= 5000);
            if let Err(error) = end {
                assert!([Code::BadValue, Code::BadArgument].contains(&error.code), "{error}");
                refused += 1;
            }
        }
        assert!(refused > 50, "{format:?}: {refused} of 400");
    }
}
