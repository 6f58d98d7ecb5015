//! Group norm of pictures and of frames, with modulation and activation, channels last: one pass for the sums, one for
//! the result.

use super::norm::check_vector;
use super::*;
use crate::activation::act;
use crate::buffer::Owned;
use crate::dispatch;
use crate::ensure;
use crate::schema::DType;
use crate::simd::{Element, Simd};
use crate::strided::{TASK, load_step, store_step};
use half::{bf16, f16};

pub static GROUP_NORM: Kernel = Kernel { check, run, reference };

fn check(args: &Args) -> Result<()> {
    let (x, out) = (args.view(0), args.out());
    ensure!(
        x.dtype.is_float() && x.dtype == out.dtype,
        "group_norm takes one float type, got {:?}, {:?}",
        x.dtype,
        out.dtype
    );
    ensure!(
        [4, 5].contains(&x.rank) && x.shape() == out.shape(),
        "group_norm of {:?} cannot give {:?}",
        x.shape(),
        out.shape()
    );
    ensure!(x.inner_dense() && out.inner_dense(), "group_norm takes a dense last axis");
    let groups = args.i32(0);
    ensure!(
        groups > 0 && x.last() % groups as usize == 0,
        "group_norm takes channels in equal groups, got {} in {groups}",
        x.last()
    );
    ensure!(Activation::from_code(args.params[2]).is_some(), "group_norm has no activation {}", args.params[2]);
    check_vector("group_norm", "weight", args.optional(1), x.last())?;
    check_vector("group_norm", "bias", args.optional(2), x.last())?;
    ensure!([0, 1].contains(&args.i32(3)), "group_norm takes first of 0 or 1, got {}", args.i32(3));
    let grids = [args.optional(3), args.optional(4)];
    ensure!(grids[0].is_some() == grids[1].is_some(), "group_norm takes a scale and a shift together");
    for (grid, name) in grids.iter().zip(["scale", "shift"]) {
        if let Some(grid) = grid {
            check_grid(args, grid, name)?;
        }
    }
    Ok(())
}

/// Refuses a scale or shift that does not divide x.
fn check_grid(args: &Args, grid: &View, name: &str) -> Result<()> {
    let x = args.view(0);
    ensure!(
        grid.dtype == x.dtype && grid.inner_dense(),
        "group_norm takes a {:?} {name} with a dense last axis, got {:?}",
        x.dtype,
        grid.dtype
    );
    let first = args.i32(3) as usize;
    let divides = |axis: usize| {
        let apart = if axis == 1 && x.rank == 5 { first } else { 0 };
        match (x.dims[axis].checked_sub(apart), grid.dims[axis].checked_sub(apart)) {
            (Some(whole), Some(0)) => whole == 0,
            (Some(whole), Some(part)) => whole % part == 0,
            _ => false,
        }
    };
    ensure!(
        grid.rank == x.rank
            && grid.dims[0] == x.dims[0]
            && grid.last() == x.last()
            && (1..x.rank - 1).all(divides)
            && (first == 0 || x.rank == 5),
        "group_norm of {:?} takes a {name} of sizes that divide its own{}, got {:?}",
        x.shape(),
        if first == 1 { ", the first frame apart" } else { "" },
        grid.shape()
    );
    Ok(())
}

/// A picture as a video of one frame: (B, T, H, W, C).
fn frames(view: View) -> View {
    if view.rank == 4 { view.insert(1) } else { view }
}

/// Scale and shift, and where a pixel's lie.
struct Modulation {
    scale: View,
    shift: View,
    /// Whether the first frame is apart.
    first: usize,
    /// How many frames, rows and columns share one pixel.
    block: [usize; 3],
}

impl Modulation {
    fn of(args: &Args) -> Option<Self> {
        let x = frames(args.view(0));
        let (scale, shift, first) = (frames(args.optional(3)?), frames(args.optional(4)?), args.i32(3) as usize);
        let block = [0, 1, 2].map(|axis| {
            let apart = if axis == 0 { first } else { 0 };
            // Where nothing but the first frame is, nothing is divided.
            (x.dims[axis + 1] - apart).checked_div(scale.dims[axis + 1] - apart).unwrap_or(1).max(1)
        });
        Some(Self { scale, shift, first, block })
    }

    /// Frame and row of the grid.
    fn line(&self, frame: usize, row: usize) -> (usize, usize) {
        let frame = if frame < self.first { frame } else { self.first + (frame - self.first) / self.block[0] };
        (frame, row / self.block[1])
    }
}

fn activation(args: &Args) -> Activation {
    Activation::from_code(args.params[2]).unwrap_or(Activation::None)
}

fn reference(args: &Args) -> Result<()> {
    let (x, out, modulation) = (frames(args.view(0)), frames(args.out()), Modulation::of(args));
    let [batch, times, height, width, channels] = [0, 1, 2, 3, 4].map(|axis| x.dims[axis]);
    let size = channels / args.i32(0) as usize;
    let at = |view: &View, b: usize, [t, y, x]: [usize; 3], c: usize| {
        let s = &view.strides;
        b * s[0] + t * s[1] + y * s[2] + x * s[3] + c
    };
    let pixels = times * height * width;
    let place = |p: usize| [p / width / height, p / width % height, p % width];
    for b in 0..batch {
        for group in 0..args.i32(0) as usize {
            let members = || (0..pixels).flat_map(|p| (group * size..(group + 1) * size).map(move |c| (p, c)));
            let count = (pixels * size) as f64;
            let value = |(p, c)| unsafe { x.get(at(&x, b, place(p), c)) } as f64;
            let mean = members().map(value).sum::<f64>() / count;
            let variance = members().map(|m| (value(m) - mean).powi(2)).sum::<f64>() / count;
            let factor = 1.0 / (variance + args.f32(1) as f64).sqrt();
            for (p, c) in members() {
                let vector = |i: usize, other| args.optional(i).map_or(other, |v| unsafe { v.get(c) } as f64);
                let mut y = (value((p, c)) - mean) * factor * vector(1, 1.0) + vector(2, 0.0);
                let [t, row, column] = place(p);
                if let Some(m) = &modulation {
                    let (t, row) = m.line(t, row);
                    let grid = |view: &View| unsafe { view.get(at(view, b, [t, row, column / m.block[2]], c)) } as f64;
                    y = y * grid(&m.scale) + grid(&m.shift);
                }
                unsafe { out.set(at(&out, b, place(p), c), activate(activation(args), y) as f32) };
            }
        }
    }
    Ok(())
}

fn run(cx: &Cx, args: &Args) -> Result<()> {
    match args.out().dtype {
        DType::F32 => group_norm::<f32>(cx, args),
        DType::BF16 => group_norm::<bf16>(cx, args),
        _ => group_norm::<f16>(cx, args),
    }
}

/// How the rows of pixels of all frames of a video are cut into parts: by its shape alone, so that the result does not
/// depend on the number of threads.
#[derive(Clone, Copy)]
struct Parts {
    rows: usize,
    count: usize,
}

impl Parts {
    fn of(x: &View) -> Self {
        let all = x.dims[1] * x.dims[2];
        let rows = (2 * TASK / (x.dims[3] * x.dims[4]).max(1)).clamp(1, all);
        Self { rows, count: all.div_ceil(rows) }
    }

    fn range(&self, part: usize, all: usize) -> (usize, usize) {
        (part * self.rows, ((part + 1) * self.rows).min(all))
    }
}

fn group_norm<E: Element>(cx: &Cx, args: &Args) -> Result<()> {
    let (x, out, modulation) = (frames(args.view(0)), frames(args.out()), Modulation::of(args));
    let [batch, rows, channels] = [x.dims[0], x.dims[1] * x.dims[2], x.dims[4]];
    if x.is_empty() {
        return Ok(());
    }
    let parts = Parts::of(&x);
    let padded = channels.next_multiple_of(16);
    // For each video and part, the sums and the sums of squares of each channel's distances from its first value.
    let sums = Owned::new(batch * parts.count * 2 * channels * 8)?;
    let sums_of = |image: usize, part: usize| unsafe {
        (sums.ptr() as *mut f64).add((image * parts.count + part) * 2 * channels)
    };
    cx.pool.run(batch * parts.count, &|task, thread| unsafe {
        let (image, part) = (task / parts.count, task % parts.count);
        let line = x.index(image);
        let range = parts.range(part, rows);
        let scratch = cx.pool.scratch(thread, 4 * padded) as *mut f32;
        sum_part::<E>(cx.level, &line, range, sums_of(image, part), scratch);
    })?;
    // Mean, factor and bias of each channel.
    let plan = Owned::new(batch * 3 * padded * 4)?;
    let plan_of = |image: usize| unsafe { (plan.ptr() as *mut f32).add(image * 3 * padded) };
    for image in 0..batch {
        let line = x.index(image);
        unsafe { plan_image::<E>(args, &line, (0..parts.count).map(|p| sums_of(image, p)), plan_of(image), padded) };
    }
    let kind = activation(args);
    cx.pool.run(batch * parts.count, &|task, _| unsafe {
        let (image, part) = (task / parts.count, task % parts.count);
        let plan = Normalize {
            x: x.index(image),
            out: out.index(image),
            vectors: plan_of(image),
            padded,
            modulation: modulation.as_ref().map(|m| Modulation {
                scale: m.scale.index(image),
                shift: m.shift.index(image),
                ..*m
            }),
            kind,
        };
        normalize_part::<E>(cx.level, &plan, parts.range(part, rows));
    })
}

dispatch! {
    fn sum_part<E: Element>(x: &View, rows: (usize, usize), sums: *mut f64, scratch: *mut f32) => sum_part_at
}

/// Sums of a part of a video (T, H, W, C). Distances from a value of the channel keep the squares exact where the mean
/// is large.
#[inline(always)]
unsafe fn sum_part_at<S: Simd, E: Element>(x: &View, rows: (usize, usize), sums: *mut f64, scratch: *mut f32) {
    unsafe {
        let (height, width, channels) = (x.dims[1], x.dims[2], x.dims[3]);
        for c in 0..channels {
            *scratch.add(c) = (*x.at::<E>(c)).get();
        }
        // A channel beyond the last would be compared with nothing.
        (channels..channels.next_multiple_of(16)).for_each(|c| *scratch.add(c) = 0.0);
        let mut c = 0;
        while c < channels {
            let n = (channels - c).min(S::LANES);
            let origin = S::load(scratch.add(c));
            let (mut sum, mut squares) = ([0f64; 16], [0f64; 16]);
            for row in rows.0..rows.1 {
                let line = row / height * x.strides[0] + row % height * x.strides[1] + c;
                // Short runs in f32, their totals in f64.
                for start in (0..width).step_by(64) {
                    let mut a = [S::splat(0.0); 2];
                    let mut b = [S::splat(0.0); 2];
                    for column in start..(start + 64).min(width) {
                        let p = x.at::<E>(line + column * x.strides[2]);
                        let d = S::sub(load_step::<S, E>(p, 1, n), origin);
                        let k = column % 2;
                        a[k] = S::add(a[k], d);
                        b[k] = S::fma(d, d, b[k]);
                    }
                    add_lanes::<S>(&mut sum, S::add(a[0], a[1]));
                    add_lanes::<S>(&mut squares, S::add(b[0], b[1]));
                }
            }
            for i in 0..n {
                *sums.add(c + i) = sum[i];
                *sums.add(channels + c + i) = squares[i];
            }
            c += n;
        }
    }
}

#[inline(always)]
unsafe fn add_lanes<S: Simd>(total: &mut [f64; 16], v: S::V) {
    let mut lanes = [0f32; 16];
    unsafe { S::store(lanes.as_mut_ptr(), v) };
    for i in 0..S::LANES {
        total[i] += lanes[i] as f64;
    }
}

/// Each group's moments from its channels' sums, and from them what is done to each channel.
unsafe fn plan_image<E: Element>(
    args: &Args,
    x: &View,
    parts: impl Iterator<Item = *mut f64> + Clone,
    plan: *mut f32,
    padded: usize,
) {
    unsafe {
        let (pixels, channels) = ((x.dims[0] * x.dims[1] * x.dims[2]) as f64, x.dims[3]);
        let size = channels / args.i32(0) as usize;
        for first in (0..channels).step_by(size) {
            let moments: Vec<(f64, f64)> = (first..first + size)
                .map(|c| {
                    let sum: f64 = parts.clone().map(|p| *p.add(c)).sum();
                    let squares: f64 = parts.clone().map(|p| *p.add(channels + c)).sum();
                    let mean = (*x.at::<E>(c)).get() as f64 + sum / pixels;
                    (mean, squares - sum * sum / pixels)
                })
                .collect();
            let mean = moments.iter().map(|m| m.0).sum::<f64>() / size as f64;
            let spread: f64 = moments.iter().map(|m| m.1 + pixels * (m.0 - mean).powi(2)).sum();
            let factor = 1.0 / (spread / (pixels * size as f64) + args.f32(1) as f64).sqrt();
            for c in first..first + size {
                let vector = |i: usize, other: f32| args.optional(i).map_or(other, |v| v.get(c));
                let scale = factor * vector(1, 1.0) as f64;
                *plan.add(c) = mean as f32;
                *plan.add(padded + c) = scale as f32;
                // What rounding took from the mean goes into the bias.
                *plan.add(2 * padded + c) = (vector(2, 0.0) as f64 - (mean - mean as f32 as f64) * scale) as f32;
            }
        }
    }
}

/// What the second pass does to a video (T, H, W, C).
struct Normalize {
    x: View,
    out: View,
    /// Mean, factor and bias of each channel, `padded` apart.
    vectors: *const f32,
    padded: usize,
    modulation: Option<Modulation>,
    kind: Activation,
}

dispatch! {
    fn normalize_part<E: Element>(plan: &Normalize, rows: (usize, usize)) => normalize_part_at
}

#[inline(always)]
unsafe fn normalize_part_at<S: Simd, E: Element>(plan: &Normalize, rows: (usize, usize)) {
    unsafe {
        let Normalize { x, out, vectors, padded, modulation, kind } = plan;
        let (height, width, channels) = (x.dims[1], x.dims[2], x.dims[3]);
        for row in rows.0..rows.1 {
            let (frame, row) = (row / height, row % height);
            let line = |view: &View, (frame, row): (usize, usize)| frame * view.strides[0] + row * view.strides[1];
            for column in 0..width {
                let from = x.at::<E>(line(x, (frame, row)) + column * x.strides[2]);
                let to = out.at::<E>(line(out, (frame, row)) + column * out.strides[2]);
                let grid = modulation.as_ref().map(|m| {
                    let at = m.line(frame, row);
                    let place = |view: &View| view.at::<E>(line(view, at) + column / m.block[2] * view.strides[2]);
                    (place(&m.scale), place(&m.shift))
                });
                for c in (0..channels).step_by(S::LANES) {
                    let n = (channels - c).min(S::LANES);
                    let centered = S::sub(load_step::<S, E>(from.add(c), 1, n), S::load(vectors.add(c)));
                    let mut y =
                        S::fma(centered, S::load(vectors.add(padded + c)), S::load(vectors.add(2 * padded + c)));
                    if let Some((scale, shift)) = grid {
                        y = S::fma(y, load_step::<S, E>(scale.add(c), 1, n), load_step::<S, E>(shift.add(c), 1, n));
                    }
                    store_step::<S, E>(to.add(c), act::<S>(*kind, y), 1, n);
                }
            }
        }
    }
}
