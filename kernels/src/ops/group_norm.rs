//! Group norm with an activation, channels last: one pass for the sums, one for the result.

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
    ensure!(x.rank == 4 && x.shape() == out.shape(), "group_norm of {:?} cannot give {:?}", x.shape(), out.shape());
    ensure!(x.inner_dense() && out.inner_dense(), "group_norm takes a dense last axis");
    let groups = args.i32(0);
    ensure!(
        groups > 0 && x.last() % groups as usize == 0,
        "group_norm takes channels in equal groups, got {} in {groups}",
        x.last()
    );
    ensure!(Activation::from_code(args.params[2]).is_some(), "group_norm has no activation {}", args.params[2]);
    check_vector("group_norm", "weight", args.optional(1), x.last())?;
    check_vector("group_norm", "bias", args.optional(2), x.last())
}

fn activation(args: &Args) -> Activation {
    Activation::from_code(args.params[2]).unwrap_or(Activation::None)
}

fn reference(args: &Args) -> Result<()> {
    let (x, out) = (args.view(0), args.out());
    let [batch, height, width, channels] = [x.dims[0], x.dims[1], x.dims[2], x.dims[3]];
    let size = channels / args.i32(0) as usize;
    let at = |view: &View, b: usize, p: usize, c: usize| {
        b * view.strides[0] + p / width * view.strides[1] + p % width * view.strides[2] + c
    };
    for b in 0..batch {
        for group in 0..args.i32(0) as usize {
            let members = || (0..height * width).flat_map(|p| (group * size..(group + 1) * size).map(move |c| (p, c)));
            let count = (height * width * size) as f64;
            let value = |(p, c)| unsafe { x.get(at(&x, b, p, c)) } as f64;
            let mean = members().map(value).sum::<f64>() / count;
            let variance = members().map(|m| (value(m) - mean).powi(2)).sum::<f64>() / count;
            let factor = 1.0 / (variance + args.f32(1) as f64).sqrt();
            for (p, c) in members() {
                let vector = |i: usize, other| args.optional(i).map_or(other, |v| unsafe { v.get(c) } as f64);
                let y = (value((p, c)) - mean) * factor * vector(1, 1.0) + vector(2, 0.0);
                unsafe { out.set(at(&out, b, p, c), activate(activation(args), y) as f32) };
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

/// How an image is cut into parts of some rows of pixels: by its shape alone, so that the result does not depend on
/// the number of threads.
#[derive(Clone, Copy)]
struct Parts {
    rows: usize,
    count: usize,
}

impl Parts {
    fn of(x: &View) -> Self {
        let rows = (2 * TASK / (x.dims[2] * x.dims[3]).max(1)).clamp(1, x.dims[1]);
        Self { rows, count: x.dims[1].div_ceil(rows) }
    }

    fn range(&self, part: usize, height: usize) -> (usize, usize) {
        (part * self.rows, ((part + 1) * self.rows).min(height))
    }
}

fn group_norm<E: Element>(cx: &Cx, args: &Args) -> Result<()> {
    let (x, out) = (args.view(0), args.out());
    let [batch, height, channels] = [x.dims[0], x.dims[1], x.dims[3]];
    if x.is_empty() {
        return Ok(());
    }
    let parts = Parts::of(&x);
    let padded = channels.next_multiple_of(16);
    // For each image and part, the sums and the sums of squares of each channel's distances from its first value.
    let sums = Owned::new(batch * parts.count * 2 * channels * 8)?;
    let sums_of = |image: usize, part: usize| unsafe {
        (sums.ptr() as *mut f64).add((image * parts.count + part) * 2 * channels)
    };
    cx.pool.run(batch * parts.count, &|task, thread| unsafe {
        let (image, part) = (task / parts.count, task % parts.count);
        let line = x.index(image);
        let range = parts.range(part, height);
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
        let views = (x.index(image), out.index(image));
        normalize_part::<E>(cx.level, &views, parts.range(part, height), plan_of(image), padded, kind);
    })
}

dispatch! {
    fn sum_part<E: Element>(x: &View, rows: (usize, usize), sums: *mut f64, scratch: *mut f32) => sum_part_at
}

/// Sums of a part of an image (H, W, C). Distances from a value of the channel keep the squares exact where the mean
/// is large.
#[inline(always)]
unsafe fn sum_part_at<S: Simd, E: Element>(x: &View, rows: (usize, usize), sums: *mut f64, scratch: *mut f32) {
    unsafe {
        let (width, channels) = (x.dims[1], x.dims[2]);
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
                // Short runs in f32, their totals in f64.
                for start in (0..width).step_by(64) {
                    let mut a = [S::splat(0.0); 2];
                    let mut b = [S::splat(0.0); 2];
                    for column in start..(start + 64).min(width) {
                        let p = x.at::<E>(row * x.strides[0] + column * x.strides[1] + c);
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
        let (pixels, channels) = ((x.dims[0] * x.dims[1]) as f64, x.dims[2]);
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

dispatch! {
    fn normalize_part<E: Element>(
        views: &(View, View), rows: (usize, usize), plan: *const f32, padded: usize, kind: Activation,
    ) => normalize_part_at
}

#[inline(always)]
unsafe fn normalize_part_at<S: Simd, E: Element>(
    views: &(View, View),
    rows: (usize, usize),
    plan: *const f32,
    padded: usize,
    kind: Activation,
) {
    unsafe {
        let (x, out) = views;
        let (width, channels) = (x.dims[1], x.dims[2]);
        for row in rows.0..rows.1 {
            for column in 0..width {
                let from = x.at::<E>(row * x.strides[0] + column * x.strides[1]);
                let to = out.at::<E>(row * out.strides[0] + column * out.strides[1]);
                for c in (0..channels).step_by(S::LANES) {
                    let n = (channels - c).min(S::LANES);
                    let centered = S::sub(load_step::<S, E>(from.add(c), 1, n), S::load(plan.add(c)));
                    let y = S::fma(centered, S::load(plan.add(padded + c)), S::load(plan.add(2 * padded + c)));
                    store_step::<S, E>(to.add(c), act::<S>(kind, y), 1, n);
                }
            }
        }
    }
}
