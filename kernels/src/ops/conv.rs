//! Convolution of pictures and of frames, channels last, without a full im2col: see `conv_kernel` for the loops.

use super::*;
use crate::conv_kernel::few::{FEW, few_block, few_weights};
use crate::conv_kernel::winograd::{WINDOW, winograd_block, winograd_bytes};
use crate::conv_kernel::{CELL, FloatPairs, Floats, Method, Plan, Quantized, TILE_PIXELS, Task, UNITS, block};
use crate::ensure;
use crate::error::{Code, Error};
use crate::schema::DType;
use crate::simd::Element;
use half::{bf16, f16};

pub static CONV: Kernel = Kernel { check, run, reference };
pub static PACK_CONV: Kernel = Kernel { check: check_pack, run: run_pack, reference: reference_pack };

/// The largest kernel, stride and enlargement.
const LIMIT: i32 = 256;
/// The largest padding.
const PAD_LIMIT: i32 = 1 << 20;

/// Bytes of packed weights for O filters of C channels and so many taps, the same on every level.
fn packed_bytes(filters: usize, channels: usize, taps: usize, size: usize) -> Option<usize> {
    filters
        .checked_next_multiple_of(64)?
        .checked_mul(channels.checked_next_multiple_of(4)?)?
        .checked_mul(taps)?
        .checked_mul(size)
}

/// The parameters that a convolution begins with, once they are checked.
pub(super) struct Params {
    kt: usize,
    kh: usize,
    kw: usize,
    stride: usize,
    pad_top: usize,
    pad_left: usize,
    upsample: usize,
    act: Activation,
}

impl Params {
    /// Weights of a channel and filter.
    pub fn taps(&self) -> usize {
        self.kt * self.kh * self.kw
    }
}

/// The operands that convolutions have, with frames whether or not they are videos: (B, T, H, W, C).
pub(super) struct Frames {
    pub x: View,
    pub out: View,
    /// Broadcast to out's shape.
    residual: Option<View>,
    cache: Option<View>,
}

impl Frames {
    pub fn of(args: &Args) -> Self {
        let frames = |view: View| if view.rank == 4 { view.insert(1) } else { view };
        let out = args.out();
        Self {
            x: frames(args.view(0)),
            out: frames(out),
            residual: args.optional(3).and_then(|r| r.broadcast(out.shape())).map(frames),
            cache: args.optional(4),
        }
    }
}

pub(super) fn params(args: &Args, what: &str) -> Result<Params> {
    for (index, name, least, most) in [
        (0, "kt", 1, LIMIT),
        (1, "kh", 1, LIMIT),
        (2, "kw", 1, LIMIT),
        (3, "stride", 1, LIMIT),
        (4, "pad_top", 0, PAD_LIMIT),
        (5, "pad_left", 0, PAD_LIMIT),
        (6, "upsample", 1, LIMIT),
    ] {
        let value = args.i32(index);
        ensure!((least..=most).contains(&value), "{what} takes {name} from {least} to {most}, got {value}");
    }
    let at = |index| args.i32(index) as usize;
    let act = Activation::from_code(args.params[7]);
    ensure!(act.is_some(), "{what} has no activation {}", args.params[7]);
    Ok(Params {
        kt: at(0),
        kh: at(1),
        kw: at(2),
        stride: at(3),
        pad_top: at(4),
        pad_left: at(5),
        upsample: at(6),
        act: act.unwrap_or(Activation::None),
    })
}

fn check(args: &Args) -> Result<()> {
    let p = params(args, "conv")?;
    let size = args.view(0).dtype.size();
    check_operands(args, "conv", &p, |filters, channels| packed_bytes(filters, channels, p.taps(), size))
}

/// Refuses operands that a convolution does not take; `bytes` is the size of a weight of so many filters and channels.
pub(super) fn check_operands(
    args: &Args,
    what: &str,
    p: &Params,
    bytes: impl Fn(usize, usize) -> Option<usize>,
) -> Result<()> {
    let (x, weight, out) = (args.view(0), args.view(1), args.out());
    ensure!(
        x.rank == 5 || (x.rank == 4 && p.kt == 1),
        "{what} takes x of 5 axes, or of 4 by kt of 1, got {:?}",
        x.shape()
    );
    ensure!(out.rank == x.rank, "{what} takes out of {} axes as x, got {:?}", x.rank, out.shape());
    ensure!(x.dtype.is_float(), "{what} takes x of a float type, got {:?}", x.dtype);
    ensure!(out.dtype == x.dtype, "{what} takes out of x's type {:?}, got {:?}", x.dtype, out.dtype);
    let pictures = ..x.rank - 3;
    ensure!(
        x.dims[pictures] == out.dims[pictures],
        "{what} takes x and out of one batch and as many frames, got {:?} and {:?}",
        x.shape(),
        out.shape()
    );
    ensure!(x.inner_dense() && out.inner_dense(), "{what} takes x and out with a dense last axis");
    let (channels, filters) = (x.last(), out.last());
    let bytes = bytes(filters, channels);
    ensure!(
        weight.dtype == DType::U8 && weight.is_contiguous() && Some(weight.len()) == bytes,
        "{what} of {channels} channels by {filters} filters of {} by {} by {} takes a weight of {} bytes, got {:?} {:?}",
        p.kt,
        p.kh,
        p.kw,
        bytes.unwrap_or(usize::MAX),
        weight.dtype,
        weight.shape()
    );
    if let Some(bias) = args.optional(2) {
        ensure!(
            bias.dtype == DType::F32 && bias.shape() == [filters] && bias.is_contiguous(),
            "{what} takes an f32 bias of [{filters}], got {:?} {:?}",
            bias.dtype,
            bias.shape()
        );
    }
    if let Some(residual) = args.optional(3) {
        ensure!(
            residual.dtype == x.dtype && residual.broadcast(out.shape()).is_some(),
            "{what} takes a {:?} residual that broadcasts to {:?}, got {:?} {:?}",
            x.dtype,
            out.shape(),
            residual.dtype,
            residual.shape()
        );
    }
    if let Some(cache) = args.optional(4) {
        let [batch, _, height, width, channels] = [0, 1, 2, 3, 4].map(|axis| x.dims[axis]);
        let shape = [batch, p.kt - 1, height, width, channels];
        ensure!(
            p.kt > 1 && cache.shape() == shape && cache.dtype == x.dtype && cache.inner_dense(),
            "{what} over more than one frame takes a {:?} cache of {shape:?} with a dense last axis, got {:?} {:?}",
            x.dtype,
            cache.dtype,
            cache.shape()
        );
    }
    Ok(())
}

/// The weights as the reference packs them: (O, C, kt, kh, kw) in x's type.
fn reference(args: &Args) -> Result<()> {
    let p = params(args, "conv")?;
    let (x, weight) = (args.view(0), args.view(1));
    let weight = View::contiguous(weight.ptr, x.dtype, &[weight.len() / x.dtype.size()]);
    reference_of(args, &p, |x| x as f64, |index| unsafe { weight.get(index) } as f64, |_| 1.0);
    Ok(())
}

/// The plain loops, over values of x, over weights of (O, C, kt, kh, kw) by their index, and the scale of each filter.
pub(super) fn reference_of(
    args: &Args,
    p: &Params,
    value: impl Fn(f32) -> f64,
    weight: impl Fn(usize) -> f64,
    scale: impl Fn(usize) -> f64,
) {
    let Frames { x, out, residual, cache } = Frames::of(args);
    let [height, width, channels] = [x.dims[2] * p.upsample, x.dims[3] * p.upsample, x.dims[4]];
    for index in 0..out.len() {
        let (pixel, o) = (index / out.dims[4], index % out.dims[4]);
        let (line, column) = (pixel / out.dims[3], pixel % out.dims[3]);
        let (picture, row) = (line / out.dims[2], line % out.dims[2]);
        let (batch, frame) = (picture / out.dims[1], picture % out.dims[1]);
        let mut sum = 0f64;
        for tap in 0..p.taps() {
            let [kt, ky, kx] = [tap / p.kw / p.kh, tap / p.kw % p.kh, tap % p.kw];
            let y = (row * p.stride + ky).wrapping_sub(p.pad_top);
            let at = (column * p.stride + kx).wrapping_sub(p.pad_left);
            if y >= height || at >= width {
                continue;
            }
            let (from, t) = match ((frame + kt).checked_sub(p.kt - 1), &cache) {
                (Some(t), _) => (&x, t),
                (None, Some(cache)) => (cache, frame + kt),
                (None, None) => (&x, 0),
            };
            let (y, at) = (y / p.upsample, at / p.upsample);
            let s = &from.strides;
            let pixel = batch * s[0] + t * s[1] + y * s[2] + at * s[3];
            for c in 0..channels {
                sum += value(unsafe { from.get(pixel + c) }) * weight((o * channels + c) * p.taps() + tap);
            }
        }
        let bias = args.optional(2).map_or(0.0, |bias| unsafe { bias.get(o) });
        let mut value = activate(p.act, sum * scale(o) + bias as f64);
        if let Some(residual) = &residual {
            value += unsafe { residual.get(residual.offset(index)) } as f64;
        }
        unsafe { out.set(out.offset(index), value as f32) };
    }
}

fn run(cx: &Cx, args: &Args) -> Result<()> {
    let p = params(args, "conv")?;
    run_float(cx, args, &p, None)
}

/// Runs a convolution whose weights are, or are decoded to, x's type.
pub(super) fn run_float(cx: &Cx, args: &Args, p: &Params, quantized: Option<Quantized>) -> Result<()> {
    let method = match args.view(0).dtype {
        DType::F32 => Method::of::<Floats<f32>>(),
        DType::F16 => Method::of::<Floats<f16>>(),
        _ if has_pairs(cx.level) => Method::of::<FloatPairs>(),
        _ => Method::of::<Floats<bf16>>(),
    };
    run_as(cx, args, p, method, quantized)
}

/// Whether bf16 is multiplied in pairs of channels.
fn has_pairs(level: Level) -> bool {
    level == Level::Avx512Bf16
}

/// Filters in a block: two vectors.
pub(super) fn block_filters(level: Level) -> usize {
    2 * level.lanes()
}

/// Weights of one block of filters over one range of channels stay in the L2 cache while a slab is swept.
const PANEL_BYTES: usize = 160 << 10;
/// Longer sums gain nothing, and weights of 1 by 1 kernels then stay in the L1 cache.
const PANEL_GROUPS: usize = 8;
/// The slab stays in the L2 cache too.
const SLAB_BYTES: usize = 256 << 10;
/// Sums that wait for the next range of channels.
const SUMS_BYTES: usize = 1 << 20;

/// Winograd's way pays from so many channels and pixels on.
const WINDOW_CHANNELS: usize = 8;
const WINDOW_PIXELS: usize = 32;
/// Channels of a range then.
const WINDOW_RANGE: usize = 128;
/// Windows of a task then.
const WINDOWS: usize = 256;
/// Channels in the lanes pay from so many on.
const FEW_CHANNELS: usize = 8;
/// Multiply-adds that take less than some 20 microseconds: not worth a second thread.
const ALONE: f64 = 1e6;
/// Transformed input of a task.
const WINDOWS_BYTES: usize = 3 << 19;

/// How a convolution is computed.
#[derive(Clone, Copy, PartialEq)]
enum Way {
    Direct,
    /// Winograd's.
    Windows,
    /// Channels in the lanes.
    Few,
}

/// How a convolution is cut into tasks.
struct Blocking {
    /// Output rows and columns of a block of pixels.
    rows: usize,
    columns: usize,
    /// Blocks along each axis.
    bands: usize,
    strips: usize,
    /// Groups of channels that are summed at a time, and how often.
    groups: usize,
    ranges: usize,
    /// How many tasks share the filters of one block of pixels.
    splits: usize,
    /// Whether the work is too little for a second thread.
    alone: bool,
}

/// Nothing here that changes a sum's order depends on the number of threads.
fn blocking(
    way: Way,
    method: &Method,
    p: &Params,
    channels: usize,
    out: &View,
    width: usize,
    threads: usize,
) -> Blocking {
    let (pictures, all_rows, all_columns, filters) = (out.dims[0] * out.dims[1], out.dims[2], out.dims[3], out.dims[4]);
    let blocks = filters.div_ceil(width);
    let taps = p.taps();

    // The range of channels that is summed at a time: as even as can be.
    let all_groups = channels.div_ceil(UNITS * method.channels).max(1);
    let group_bytes = taps * UNITS * method.channels * width * method.weight;
    let most = match way {
        Way::Direct => (PANEL_BYTES / group_bytes).min(PANEL_GROUPS),
        Way::Windows => (WINDOW_RANGE / UNITS).div_ceil(p.kt),
        Way::Few => all_groups,
    };
    let ranges = all_groups.div_ceil(most.clamp(1, all_groups));
    let groups = all_groups.div_ceil(ranges);

    // The block of pixels: a strip of the picture, as high as the caches allow, in whole windows.
    let step = if way == Way::Windows { WINDOW } else { 1 };
    let strip = match way {
        Way::Windows => 32,
        _ => (2 * SLAB_BYTES / (p.kt * p.kh * p.stride * groups * CELL)).clamp(1, 96),
    };
    let columns = all_columns.div_ceil(all_columns.div_ceil(strip)).next_multiple_of(step);
    let strips = all_columns.div_ceil(columns);
    let most = match way {
        Way::Windows => {
            let count = (WINDOWS_BYTES / (16 * p.kt * groups * CELL)).min(WINDOWS);
            count.div_ceil(columns / WINDOW) * WINDOW
        }
        _ => {
            let line = p.kt * ((columns - 1) * p.stride + p.kw).next_multiple_of(p.stride) * groups * CELL;
            let halo = p.kh.saturating_sub(p.stride);
            let most = (SLAB_BYTES / line).saturating_sub(halo) / p.stride;
            let sums = if ranges > 1 { columns * blocks * width * 4 } else { 0 };
            most.min(SUMS_BYTES.checked_div(sums).unwrap_or(most))
        }
    };

    // Enough tasks that threads end together, but not at the price of tiny ones.
    let enough = if threads == 1 { 1 } else { 4 * threads };
    let least = if way == Way::Windows { 128 } else { 64 };
    let mut rows = most.clamp(1, all_rows);
    while pictures * strips * all_rows.div_ceil(rows) < enough && rows > 1 && rows * columns > least {
        rows = rows.div_ceil(2);
    }
    let rows = all_rows.div_ceil(all_rows.div_ceil(rows)).next_multiple_of(step);
    let bands = all_rows.div_ceil(rows);
    let alone = (out.len() as f64) * ((taps * channels) as f64) < ALONE;
    let splits = if alone { 1 } else { (enough / (pictures * bands * strips)).clamp(1, blocks) };
    Blocking { rows, columns, bands, strips, groups, ranges, splits, alone }
}

pub(super) fn run_as(cx: &Cx, args: &Args, p: &Params, method: Method, quantized: Option<Quantized>) -> Result<()> {
    let (Frames { x, out, residual, cache }, weight) = (Frames::of(args), args.view(1));
    if out.is_empty() {
        return Ok(());
    }
    if !(weight.ptr as usize).is_multiple_of(method.weight) {
        return Err(Error::new(Code::BadArgument, "conv takes a weight aligned to its elements"));
    }
    let (channels, filters) = (x.last(), out.last());
    let taps = p.taps();
    let width = block_filters(cx.level);
    let blocks = filters.div_ceil(width);
    let small = (p.kh, p.kw, p.stride) == (3, 3, 1) && method.channels == 1;
    let way = match () {
        _ if filters <= FEW && channels >= FEW_CHANNELS => Way::Few,
        _ if small && channels >= WINDOW_CHANNELS && out.dims[2] * out.dims[3] >= WINDOW_PIXELS => Way::Windows,
        _ => Way::Direct,
    };
    let b = blocking(way, &method, p, channels, &out, width, cx.pool.threads());

    let mut plan = Plan {
        method,
        x,
        cache,
        weight: weight.ptr,
        quantized,
        bias: args.optional(2),
        residual,
        out,
        act: p.act,
        kt: p.kt,
        kh: p.kh,
        kw: p.kw,
        stride: p.stride,
        pad_top: p.pad_top,
        pad_left: p.pad_left,
        upsample: p.upsample,
        block: (b.rows, b.columns),
        groups: b.groups,
        panel: 0,
        taps: Vec::with_capacity(taps),
        // All sums between ranges; else those of a block of filters, or of a tile.
        sums: match way {
            _ if b.ranges > 1 => b.rows * b.columns * width * blocks.div_ceil(b.splits),
            Way::Windows => b.rows * b.columns * width,
            _ => TILE_PIXELS * width,
        },
    };
    for tap in 0..taps {
        let [kt, ky, kx] = [tap / p.kw / p.kh, tap / p.kw % p.kh, tap % p.kw];
        let column = kx % p.stride * plan.phase_columns() + kx / p.stride;
        plan.taps.push(kt * plan.frame_bytes() + (ky * plan.groups * plan.columns() + column) * CELL);
    }
    plan.panel = width * taps * channels.next_multiple_of(method.channels) * plan.weight_size();
    let few_weights = if way == Way::Few { unsafe { few_weights(cx.level, &plan, width) } } else { Vec::new() };
    let (slab_bytes, sum_bytes) = (plan.slab_bytes(), (plan.sums * 4).next_multiple_of(CELL));
    let bytes = match way {
        Way::Direct => slab_bytes + sum_bytes + plan.decoded_bytes(width),
        Way::Windows => winograd_bytes(&plan, width),
        Way::Few => slab_bytes + sum_bytes,
    };

    let task = |index: usize, thread: usize| {
        let (split, index) = (index % b.splits, index / b.splits);
        // Frames of one place follow each other: they read the same frames.
        let (frame, index) = (index % out.dims[1], index / out.dims[1]);
        let (strip, index) = (index % b.strips, index / b.strips);
        let (band, batch) = (index % b.bands, index / b.bands);
        let origin = (band * b.rows, strip * b.columns);
        let size = (b.rows.min(out.dims[2] - origin.0), b.columns.min(out.dims[3] - origin.1));
        let blocks = (split * blocks / b.splits, (split + 1) * blocks / b.splits);
        let task = Task { batch, frame, origin, size, blocks };
        unsafe {
            // The slab, the sums, decoded weights.
            let memory = cx.pool.scratch(thread, bytes);
            let sums = memory.add(slab_bytes) as *mut f32;
            match way {
                Way::Direct => block(cx.level, &plan, &task, memory, sums, memory.add(slab_bytes + sum_bytes)),
                Way::Windows => winograd_block(cx.level, &plan, &task, width, memory),
                Way::Few => few_block(cx.level, &plan, &task, &few_weights, memory, sums),
            }
        }
    };
    let tasks = out.dims[0] * out.dims[1] * b.bands * b.strips * b.splits;
    if b.alone {
        cx.pool.run(1, &|_, thread| (0..tasks).for_each(|index| task(index, thread)))
    } else {
        cx.pool.run(tasks, &task)
    }
}

fn check_pack(args: &Args) -> Result<()> {
    let (weight, out) = (args.view(0), args.out());
    let dtype = DType::from_code(args.params[0]).filter(|dtype| dtype.is_float());
    ensure!(dtype.is_some(), "pack_conv takes the code of a float type, got {}", args.params[0]);
    ensure!([4, 5].contains(&weight.rank), "pack_conv takes a weight of 4 or 5 axes, got {:?}", weight.shape());
    ensure!(weight.dtype.is_float(), "pack_conv takes a weight of a float type, got {:?}", weight.dtype);
    let [filters, channels] = [weight.dims[0], weight.dims[1]];
    let taps = weight.shape()[2..].iter().try_fold(1usize, |taps, &size| taps.checked_mul(size));
    let bytes = taps.zip(dtype).and_then(|(taps, dtype)| packed_bytes(filters, channels, taps, dtype.size()));
    ensure!(
        out.dtype == DType::U8 && out.is_contiguous() && Some(out.len()) == bytes,
        "pack_conv of {:?} takes an out of {} bytes, got {:?} {:?}",
        weight.shape(),
        bytes.unwrap_or(usize::MAX),
        out.dtype,
        out.shape()
    );
    Ok(())
}

fn reference_pack(args: &Args) -> Result<()> {
    let (weight, out) = (args.view(0), args.out());
    let Some(dtype) = DType::from_code(args.params[0]) else { return Ok(()) };
    unsafe { std::ptr::write_bytes(out.ptr, 0, out.len()) };
    let to = View::contiguous(out.ptr, dtype, weight.shape());
    for index in 0..weight.len() {
        unsafe { to.set(index, weight.get(weight.offset(index))) };
    }
    Ok(())
}

fn run_pack(cx: &Cx, args: &Args) -> Result<()> {
    match args.view(0).dtype {
        DType::F32 => pack_from::<f32>(cx, args),
        DType::F16 => pack_from::<f16>(cx, args),
        _ => pack_from::<bf16>(cx, args),
    }
}

fn pack_from<F: Element>(cx: &Cx, args: &Args) -> Result<()> {
    match DType::from_code(args.params[0]) {
        Some(DType::F32) => pack::<F, f32>(cx, args, 1),
        Some(DType::F16) => pack::<F, f16>(cx, args, 1),
        _ => pack::<F, bf16>(cx, args, if has_pairs(cx.level) { 2 } else { 1 }),
    }
}

/// Packs float weights of `F` as `E`, for units of so many channels.
fn pack<F: Element, E: Element>(cx: &Cx, args: &Args, unit_channels: usize) -> Result<()> {
    let (weight, out) = (args.view(0), args.out());
    if !(out.ptr as usize).is_multiple_of(E::SIZE) {
        return Err(Error::new(Code::BadArgument, "pack_conv takes an out aligned to its elements"));
    }
    let out = (out.ptr as *mut E, out.len() / E::SIZE);
    let zero = <E as Element>::from(0.0);
    pack_blocks(cx, &weight, unit_channels, out, zero, |at| unsafe {
        <E as Element>::from((*weight.at::<F>(at)).get())
    })
}

/// Weights of (O, C, kt, kh, kw) or (O, C, kh, kw) as `Plan` wants them, for units of so many channels; a last block of
/// few filters is one vector wide. `read` gives the weight at an offset in `weight`.
pub(super) fn pack_blocks<T: Copy + Sync>(
    cx: &Cx,
    weight: &View,
    unit_channels: usize,
    (out, len): (*mut T, usize),
    zero: T,
    read: impl Fn(usize) -> T + Sync,
) -> Result<()> {
    /// Each task writes a block of its own.
    #[derive(Clone, Copy)]
    struct Blocks<T>(*mut T);
    unsafe impl<T> Sync for Blocks<T> {}

    let weight = if weight.rank == 4 { weight.insert(2) } else { *weight };
    let [filters, channels, kt, kh, kw] = [0, 1, 2, 3, 4].map(|axis| weight.dims[axis]);
    let width = block_filters(cx.level);
    let blocks = filters.div_ceil(width);
    let taps = kt * kh * kw;
    let panel = width * taps * channels.next_multiple_of(unit_channels);
    let out = Blocks(out);
    let pack_block = |b: usize| unsafe {
        let out = &out;
        let mut to = out.0.add(b * panel);
        let lanes = if filters - b * width > width / 2 { width } else { width / 2 };
        for first in (0..channels).step_by(UNITS * unit_channels) {
            let last = (first + UNITS * unit_channels).min(channels);
            for tap in 0..taps {
                let s = &weight.strides;
                let at = tap / kw / kh * s[2] + tap / kw % kh * s[3] + tap % kw * s[4];
                for unit in (first..last).step_by(unit_channels) {
                    for filter in b * width..b * width + lanes {
                        for channel in unit..unit + unit_channels {
                            *to = if filter < filters && channel < channels {
                                read(at + filter * weight.strides[0] + channel * weight.strides[1])
                            } else {
                                zero
                            };
                            to = to.add(1);
                        }
                    }
                }
            }
        }
        // What no level reads, so that a packed weight is the same whenever it is made.
        let end = out.0.add(if b + 1 == blocks { len } else { (b + 1) * panel });
        while to < end {
            *to = zero;
            to = to.add(1);
        }
    };
    if len * size_of::<T>() < 1 << 16 {
        cx.pool.run(1, &|_, _| (0..blocks).for_each(pack_block))
    } else {
        cx.pool.run(blocks, &|b, _| pack_block(b))
    }
}
