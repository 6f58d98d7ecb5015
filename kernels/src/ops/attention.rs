//! softmax(scale * q k^T + bias) v in blocks of keys with a running softmax: scores are never stored beyond a block.
//!
//! Everything is transposed: the lanes of a vector are queries. The scores of a block of keys are k q^T, each key's
//! element broadcast against vectors of queries, so that the softmax's maxima, exponentials and sums run down the
//! lanes without a horizontal step, and the weighted sum is v^T p^T, each value's element broadcast against the vectors
//! of probabilities just made. Keys and values are packed by copies, never transposed; only queries (once) and results
//! (once) are.
//!
//! On levels with BF16 dot products, bf16 operands stay pairs of bf16: along D for the scores, along the keys for the
//! weighted sum, with probabilities rounded to bf16.
//!
//! A query that sees no key (all its biases -inf, or causal with fewer keys than queries) gets zeros, as in PyTorch.
//! NaN and infinities of what a query sees propagate to its result; what causal hides may still pass on a NaN of its
//! value, as it does where masks are added.

use super::*;
use crate::schema::DType;
use crate::simd::{Element, Simd};
use crate::{dispatch, ensure};
use half::{bf16, f16};
use std::any::TypeId;

/// q, k, v (B, H, S, D), bias (B, H, Sq, Sk) optional, out; scale, causal.
pub static ATTENTION: Kernel = Kernel { check, run, reference };

/// Keys in a block: packed once for all queries of a task.
const KEYS: usize = 64;
/// What the queries and sums of one task may take of the L2 cache.
const TASK_BYTES: usize = 600 << 10;
/// Units of queries that stay in the L1 cache while all keys of a block pass.
const UNITS: usize = 128;
/// Below this many multiplications, waking threads costs more than they save.
const SMALL: usize = 2 << 20;

fn check(args: &Args) -> Result<()> {
    let (q, k, v, out) = (args.view(0), args.view(1), args.view(2), args.out());
    for (name, view) in [("q", q), ("k", k), ("v", v), ("out", out)] {
        ensure!(view.rank == 4, "attention: {name} must be (B, H, S, D), not {:?}", view.shape());
        ensure!(view.dtype.is_float(), "attention: {name} must be f32, bf16 or f16, not {:?}", view.dtype);
        ensure!(view.dtype == q.dtype, "attention: {name} must be {:?} like q, not {:?}", q.dtype, view.dtype);
        ensure!(view.inner_dense(), "attention: the last axis of {name} must be dense");
    }
    let (b, h, sq, sk, d) = (q.dims[0], q.dims[1], q.dims[2], k.dims[2], q.dims[3]);
    for (name, view) in [("k", k), ("v", v)] {
        ensure!(
            view.shape() == [b, h, sk, d],
            "attention: {name} must be {:?} to fit q {:?} and k {:?}, not {:?}",
            [b, h, sk, d],
            q.shape(),
            k.shape(),
            view.shape()
        );
    }
    ensure!(out.shape() == q.shape(), "attention: out must be {:?} like q, not {:?}", q.shape(), out.shape());
    if let Some(bias) = args.optional(3) {
        ensure!(bias.dtype == DType::F32, "attention: bias must be f32, not {:?}", bias.dtype);
        ensure!(
            bias.shape() == [b, h, sq, sk],
            "attention: bias must be {:?}, broadcast by strides of 0, not {:?}",
            [b, h, sq, sk],
            bias.shape()
        );
    }
    ensure!((0..=1).contains(&args.i32(1)), "attention: causal must be 0 or 1, not {}", args.i32(1));
    Ok(())
}

/// The oracle.
fn reference(args: &Args) -> Result<()> {
    let (q, k, v, out) = (args.view(0), args.view(1), args.view(2), args.out());
    let (scale, causal) = (args.f32(0) as f64, args.i32(1) != 0);
    if out.is_empty() {
        return Ok(());
    }
    let (sq, sk, d) = (q.dims[2], k.dims[2], q.dims[3]);
    for row in 0..out.rows() {
        let (qi, head) = (row % sq, row / sq);
        let (b, h) = (head / q.dims[1], head % q.dims[1]);
        let at = |x: View, s: usize| b * x.strides[0] + h * x.strides[1] + s * x.strides[2];
        let seen = if causal { (qi + 1 + sk).saturating_sub(sq).min(sk) } else { sk };
        let mut scores = vec![0.0; seen];
        for (key, score) in scores.iter_mut().enumerate() {
            let dot: f64 = (0..d).map(|i| unsafe { q.get(at(q, qi) + i) as f64 * k.get(at(k, key) + i) as f64 }).sum();
            let bias = args.optional(3).map_or(0.0, |x| unsafe { x.get(at(x, qi) + key * x.strides[3]) });
            *score = scale * dot + bias as f64;
        }
        // A NaN is not a maximum, but makes every probability NaN through the sum.
        let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let hidden = scores.iter().all(|&s| s == f64::NEG_INFINITY);
        scores.iter_mut().for_each(|s| *s = (*s - max).exp());
        let sum: f64 = scores.iter().sum();
        for i in 0..d {
            let dot: f64 = scores.iter().enumerate().map(|(key, p)| p * unsafe { v.get(at(v, key) + i) } as f64).sum();
            unsafe { out.set(at(out, qi) + i, if hidden { 0.0 } else { (dot / sum) as f32 }) };
        }
    }
    Ok(())
}

/// One call: the operands, and how its queries are shared out.
struct Job {
    q: View,
    k: View,
    v: View,
    bias: Option<View>,
    out: View,
    scale: f32,
    causal: bool,
    /// Queries in a block.
    block: usize,
    /// Blocks in a task.
    chunk: usize,
    /// Tasks in a head.
    chunks: usize,
}

fn run(cx: &Cx, args: &Args) -> Result<()> {
    match args.out().dtype {
        DType::BF16 => run_as::<bf16>(cx, args),
        DType::F16 => run_as::<f16>(cx, args),
        _ => run_as::<f32>(cx, args),
    }
}

fn run_as<E: Element>(cx: &Cx, args: &Args) -> Result<()> {
    let (q, k) = (args.view(0), args.view(1));
    if args.out().is_empty() {
        return Ok(());
    }
    let (heads, sq, sk, d) = (q.dims[0] * q.dims[1], q.dims[2], k.dims[2], q.dims[3]);
    let block = unsafe { queries(cx.level) };
    let blocks = sq.div_ceil(block);
    // Keys and values are packed once a task: as many blocks as the cache holds, but tasks enough to share evenly.
    let small = heads.saturating_mul(sq).saturating_mul(sk.max(1)).saturating_mul(d) < SMALL;
    let fit = (TASK_BYTES / (block * 4 * 2) / d).max(1);
    let even = if small { blocks } else { (heads * blocks / (cx.pool.threads() * 3)).max(2) };
    let chunks = blocks.div_ceil(fit.min(even).min(blocks));
    let job = Job {
        q,
        k,
        v: args.view(2),
        bias: args.optional(3),
        out: args.out(),
        scale: args.f32(0),
        causal: args.i32(1) != 0,
        block,
        chunk: blocks.div_ceil(chunks),
        chunks,
    };
    let bytes = Plan::new(block, d, job.chunk).floats * 4;
    let task = |index: usize, thread: usize| unsafe {
        let scratch = cx.pool.scratch(thread, bytes) as *mut f32;
        attend::<E>(cx.level, &job, index, scratch)
    };
    let tasks = heads * chunks;
    if small {
        return cx.pool.run(1, &|_, thread| (0..tasks).for_each(|index| task(index, thread)));
    }
    cx.pool.run(tasks, &task)
}

dispatch!(fn queries() -> usize => queries_on);

/// Queries in a block: the three vectors (one where there are few registers) of a register tile.
#[inline(always)]
unsafe fn queries_on<S: Simd>() -> usize {
    if S::REGISTERS >= 16 { 3 * S::LANES } else { S::LANES }
}

/// Where the parts of a task's scratch memory lie, in floats; all are multiples of a cache line.
struct Plan {
    /// The elements of a row, padded for the scores' steps of 4 and the sums' tiles.
    depth: usize,
    /// Queries and sums of each block: (depth, queries) each, then maxima and sums (queries).
    block: usize,
    keys: usize,
    values: usize,
    /// The scores of a block of keys (KEYS, queries).
    scores: usize,
    /// Their biases (KEYS, queries).
    biases: usize,
    /// Rows on their way between types (queries, depth).
    rows: usize,
    floats: usize,
}

impl Plan {
    #[inline(always)]
    fn new(queries: usize, d: usize, chunk: usize) -> Self {
        let depth = d.next_multiple_of(16);
        let block = (2 * depth + 2) * queries;
        let keys = chunk * block;
        let values = keys + KEYS * depth;
        let scores = values + KEYS * depth;
        let biases = scores + KEYS * queries;
        let rows = biases + KEYS * queries;
        Self { depth, block, keys, values, scores, biases, rows, floats: rows + queries * depth }
    }
}

dispatch!(fn attend<E: Element>(job: &Job, index: usize, scratch: *mut f32) => attend_on);

#[inline(always)]
unsafe fn attend_on<S: Simd, E: Element>(job: &Job, index: usize, scratch: *mut f32) {
    unsafe {
        let dot = S::BF16_DOT && TypeId::of::<E>() == TypeId::of::<bf16>();
        match (S::REGISTERS, dot) {
            (32, true) => task::<S, E, 8, 3, true>(job, index, scratch),
            (32, false) => task::<S, E, 8, 3, false>(job, index, scratch),
            (16, _) => task::<S, E, 4, 3, false>(job, index, scratch),
            _ => task::<S, E, 4, 1, false>(job, index, scratch),
        }
    }
}

/// One task: some blocks of queries of one head, over all keys.
#[inline(always)]
unsafe fn task<S: Simd, E: Element, const R: usize, const C: usize, const DOT: bool>(
    job: &Job,
    index: usize,
    scratch: *mut f32,
) {
    unsafe {
        let (head, chunk) = (index / job.chunks, index % job.chunks);
        let (b, h) = (head / job.q.dims[1], head % job.q.dims[1]);
        let (sq, sk, d) = (job.q.dims[2], job.k.dims[2], job.q.dims[3]);
        let base = |x: &View| x.at::<E>(b * x.strides[0] + h * x.strides[1]);
        let (q, k, v, out) = (base(&job.q), base(&job.k), base(&job.v), base(&job.out));
        let bias = job.bias.map(|x| (x.at::<f32>(b * x.strides[0] + h * x.strides[1]), x.strides[2], x.strides[3]));
        let plan = Plan::new(job.block, d, job.chunk);
        let (keys, values, scores, rows) =
            (scratch.add(plan.keys), scratch.add(plan.values), scratch.add(plan.scores), scratch.add(plan.rows));
        let biases = scratch.add(plan.biases);
        // Bf16 pairs count as one unit.
        let units = if DOT { d.div_ceil(2) } else { d }.next_multiple_of(4);
        let panels = d.div_ceil(R);

        // This task's queries: those of each block transposed, sums at zero, maxima at the least float, so that a
        // score of -inf stays infinitely far below it.
        let first = (chunk * job.chunk * job.block).min(sq);
        let last = ((chunk + 1) * job.chunk * job.block).min(sq);
        let block_at = |start: usize| {
            let width = (last - start).min(job.block).div_ceil(S::LANES) * S::LANES;
            let queries = scratch.add((start - first) / job.block * plan.block);
            let sums = queries.add(plan.depth * width);
            let max = sums.add(plan.depth * width);
            Block { queries, sums, max, total: max.add(width), width, count: (last - start).min(job.block) }
        };
        for start in (first..last).step_by(job.block) {
            let block = block_at(start);
            for i in 0..block.count {
                unit_row::<S, E, DOT>(q.add((start + i) * job.q.strides[2]), d, units, rows.add(i * units));
            }
            std::ptr::write_bytes(rows.add(block.count * units), 0, (block.width - block.count) * units);
            transpose(rows, units, block.width, units, block.queries, block.width);
            std::ptr::write_bytes(block.sums, 0, panels * R * block.width);
            for i in 0..block.width {
                *block.max.add(i) = f32::MIN;
                *block.total.add(i) = 0.0;
            }
        }

        // Query i sees the keys up to i + sk - sq.
        let seen = |query: usize| if job.causal { (query + 1 + sk).saturating_sub(sq).min(sk) } else { sk };
        for key in (0..if last > first { seen(last - 1) } else { 0 }).step_by(KEYS) {
            let count = (sk - key).min(KEYS);
            pack_keys::<S, E, R, DOT>(k.add(key * job.k.strides[2]), job.k.strides[2], count, d, units, rows, keys);
            pack_values::<S, E, R, DOT>(v.add(key * job.v.strides[2]), job.v.strides[2], count, d, rows, values);
            for start in (first..last).step_by(job.block) {
                let block = block_at(start);
                if seen(start + block.count - 1) <= key {
                    continue;
                }
                if let Some((bias, q_stride, k_stride)) = bias {
                    let bias = bias.add(start * q_stride + key * k_stride);
                    place_bias(bias, q_stride, k_stride, block.count, count, biases, block.width);
                }
                // Key j of the block is hidden from lane i where j > i + offset.
                let offset = if job.causal { (start + sk) as isize - (sq + key) as isize } else { isize::MAX };
                let step = Step {
                    keys,
                    values,
                    scores,
                    count,
                    units,
                    panels,
                    scale: job.scale,
                    biases: bias.map(|_| biases as *const f32),
                    offset,
                };
                match block.width / S::LANES {
                    1 => advance::<S, R, 1, DOT>(&block, &step),
                    2 if C >= 2 => advance::<S, R, 2, DOT>(&block, &step),
                    _ => advance::<S, R, C, DOT>(&block, &step),
                }
            }
        }

        // Each sum over its total, to rows of the result. Where a key was seen, the total is at least 1.
        for start in (first..last).step_by(job.block) {
            let block = block_at(start);
            for i in 0..block.width {
                let total = *block.total.add(i);
                *block.total.add(i) = if total < 0.5 { 0.0 } else { 1.0 / total };
            }
            for i in 0..d {
                let row = block.sums.add(i * block.width);
                for lane in (0..block.width).step_by(S::LANES) {
                    let factor = S::load(block.total.add(lane));
                    S::store(row.add(lane), S::mul(S::load(row.add(lane)), factor));
                }
            }
            let to = out.add(start * job.out.strides[2]);
            if is_f32::<E>() {
                transpose(block.sums, block.width, d, block.count, to as *mut f32, job.out.strides[2]);
            } else {
                transpose(block.sums, block.width, d, block.count, rows, plan.depth);
                for i in 0..block.count {
                    narrow::<S, E>(rows.add(i * plan.depth), d, to.add(i * job.out.strides[2]));
                }
            }
        }
    }
}

/// The state of a block of queries, all with queries as the last axis.
struct Block {
    /// (units, width)
    queries: *mut f32,
    /// (panels * R, width)
    sums: *mut f32,
    /// The running maxima (width).
    max: *mut f32,
    /// The running sums of probabilities (width).
    total: *mut f32,
    width: usize,
    count: usize,
}

/// What a block of keys is to a block of queries.
struct Step {
    /// (count / R, units / 4, R, 4)
    keys: *const f32,
    /// (panels, KEYS, R); with pairs (panels, KEYS / 2, R)
    values: *const f32,
    /// (count, width)
    scores: *mut f32,
    count: usize,
    units: usize,
    panels: usize,
    scale: f32,
    /// (count, width)
    biases: Option<*const f32>,
    offset: isize,
}

/// acc + a * b, of f32 or of pairs of bf16.
#[inline(always)]
unsafe fn mac<S: Simd, const DOT: bool>(acc: S::V, a: S::V, b: S::V) -> S::V {
    unsafe { if DOT { S::dot_bf16(acc, a, b) } else { S::fma(a, b, acc) } }
}

/// Takes a block of keys into the softmax and the sums of a block of queries.
#[inline(always)]
#[allow(clippy::needless_range_loop)] // An index goes through several arrays at once.
unsafe fn advance<S: Simd, const R: usize, const C: usize, const DOT: bool>(block: &Block, step: &Step) {
    unsafe {
        let width = C * S::LANES;
        let at = |row: usize, c: usize| step.scores.add(row * width + c * S::LANES);

        // Scores: R keys by C vectors of queries in registers.
        let scale = S::splat(step.scale);
        let mut top = [S::splat(f32::MIN); C];
        for unit in (0..step.units).step_by(UNITS) {
            let units = (step.units - unit).min(UNITS);
            for first in (0..step.count).step_by(R) {
                // What earlier units came to; rows of zero keys have room.
                let mut acc = [[S::splat(0.0); C]; R];
                if unit > 0 {
                    for (r, acc) in acc.iter_mut().enumerate() {
                        for c in 0..C {
                            acc[c] = S::load(at(first + r, c));
                        }
                    }
                }
                let keys = step.keys.add(first * step.units + unit * R);
                let acc = score_tile::<S, R, C, DOT>(acc, keys, block.queries.add(unit * width), units);
                if unit + units < step.units {
                    for (r, acc) in acc.iter().enumerate() {
                        for c in 0..C {
                            S::store(at(first + r, c), acc[c]);
                        }
                    }
                    continue;
                }
                for (r, acc) in acc.iter().enumerate() {
                    if r >= step.count - first {
                        break;
                    }
                    for c in 0..C {
                        let s = match step.biases {
                            Some(x) => S::fma(acc[c], scale, S::load(x.add((first + r) * width + c * S::LANES))),
                            None => S::mul(acc[c], scale),
                        };
                        S::store(at(first + r, c), s);
                        // The second operand where either is NaN: maxima are never NaN.
                        top[c] = S::max(s, top[c]);
                    }
                }
            }
        }

        // Hide the keys beyond the diagonal.
        if step.offset < step.count as isize - 1 {
            for j in (step.offset + 1).max(0) as usize..step.count {
                let hidden = ((j as isize - step.offset) as usize).min(width);
                for i in 0..hidden {
                    *step.scores.add(j * width + i) = f32::NEG_INFINITY;
                }
            }
            for c in 0..C {
                top[c] = S::splat(f32::MIN);
                for j in 0..step.count {
                    top[c] = S::max(S::load(at(j, c)), top[c]);
                }
            }
        }

        // Probabilities beside the new maxima, and what the old sums are worth beside them.
        let mut worth = [S::splat(0.0); C];
        for c in 0..C {
            let lane = c * S::LANES;
            let old = S::load(block.max.add(lane));
            let max = S::max(top[c], old);
            S::store(block.max.add(lane), max);
            worth[c] = exp_down::<S>(S::sub(old, max));
            top[c] = max;
        }
        let mut total = [S::splat(0.0); C];
        if DOT {
            for pair in 0..step.count.div_ceil(2) {
                for c in 0..C {
                    let low = exp_down::<S>(S::sub(S::load(at(2 * pair, c)), top[c]));
                    let mut high = S::splat(0.0);
                    if 2 * pair + 1 < step.count {
                        high = exp_down::<S>(S::sub(S::load(at(2 * pair + 1, c)), top[c]));
                    }
                    total[c] = S::add(total[c], S::add(low, high));
                    S::store(at(pair, c), pair_bf16::<S>(low, high));
                }
            }
        } else {
            for j in 0..step.count {
                for c in 0..C {
                    let p = exp_down::<S>(S::sub(S::load(at(j, c)), top[c]));
                    total[c] = S::add(total[c], p);
                    S::store(at(j, c), p);
                }
            }
        }
        for c in 0..C {
            let p = block.total.add(c * S::LANES);
            S::store(p, S::fma(S::load(p), worth[c], total[c]));
        }

        // Sums: R elements of the values by C vectors of queries in registers.
        let (count, stride) = if DOT { (step.count.div_ceil(2), KEYS / 2) } else { (step.count, KEYS) };
        for panel in 0..step.panels {
            let sums = block.sums.add(panel * R * width);
            let mut acc = [[S::splat(0.0); C]; R];
            for (r, acc) in acc.iter_mut().enumerate() {
                for c in 0..C {
                    acc[c] = S::mul(S::load(sums.add(r * width + c * S::LANES)), worth[c]);
                }
            }
            let mut values = step.values.add(panel * stride * R);
            let mut p = step.scores as *const f32;
            for _ in 0..count {
                let mut x = [S::splat(0.0); C];
                for (c, x) in x.iter_mut().enumerate() {
                    *x = S::load(p.add(c * S::LANES));
                }
                for (r, acc) in acc.iter_mut().enumerate() {
                    let value = S::splat(*values.add(r));
                    for c in 0..C {
                        acc[c] = mac::<S, DOT>(acc[c], value, x[c]);
                    }
                }
                values = values.add(R);
                p = p.add(width);
            }
            for (r, acc) in acc.iter().enumerate() {
                for c in 0..C {
                    S::store(sums.add(r * width + c * S::LANES), acc[c]);
                }
            }
        }
    }
}

/// Adds the products of R keys by C vectors of queries.
#[inline(always)]
#[allow(clippy::needless_range_loop)] // An index goes through several arrays at once.
unsafe fn score_tile<S: Simd, const R: usize, const C: usize, const DOT: bool>(
    mut acc: [[S::V; C]; R],
    mut keys: *const f32,
    mut queries: *const f32,
    units: usize,
) -> [[S::V; C]; R] {
    unsafe {
        for _ in 0..units / 4 {
            for j in 0..4 {
                let mut x = [S::splat(0.0); C];
                for (c, x) in x.iter_mut().enumerate() {
                    *x = S::load(queries.add((j * C + c) * S::LANES));
                }
                for (r, acc) in acc.iter_mut().enumerate() {
                    let key = S::splat(*keys.add(r * 4 + j));
                    for c in 0..C {
                        acc[c] = mac::<S, DOT>(acc[c], key, x[c]);
                    }
                }
            }
            keys = keys.add(4 * R);
            queries = queries.add(4 * C * S::LANES);
        }
        acc
    }
}

/// e^x of x <= 0 to about 1e-6: what rounds to less than 2^-126 may come out as 2^-127 or 0. NaN stays NaN.
#[inline(always)]
unsafe fn exp_down<S: Simd>(x: S::V) -> S::V {
    unsafe {
        const POLYNOMIAL: [f32; 5] = [9.618_13e-3, 5.550_411e-2, 2.402_265e-1, std::f32::consts::LN_2, 1.0];
        let mut p = S::splat(1.333_336e-3);
        #[cfg(target_arch = "x86_64")]
        if S::REGISTERS == 32 {
            // The instructions for the fraction and for the power take every float, infinities and NaN included.
            use std::arch::x86_64::*;
            let y: __m512 = std::mem::transmute_copy(&S::mul(x, S::splat(std::f32::consts::LOG2_E)));
            let r = _mm512_reduce_ps::<0>(y);
            let n = _mm512_sub_ps(y, r);
            let r: S::V = std::mem::transmute_copy(&r);
            for c in POLYNOMIAL {
                p = S::fma(p, r, S::splat(c));
            }
            let e = _mm512_scalef_ps(std::mem::transmute_copy(&p), n);
            return std::mem::transmute_copy(&e);
        }
        // 2^-127 by its exponent's bits is 0. The operands' order keeps NaN.
        let x = S::max(S::splat(-88.029_69), x);
        let y = S::mul(x, S::splat(std::f32::consts::LOG2_E));
        let n = S::round(y);
        let r = S::sub(y, n);
        for c in POLYNOMIAL {
            p = S::fma(p, r, S::splat(c));
        }
        S::mul(p, S::exp2i(n))
    }
}

/// Lanes of pairs of bf16, `low` first, rounded to nearest even.
#[inline(always)]
unsafe fn pair_bf16<S: Simd>(low: S::V, high: S::V) -> S::V {
    #[cfg(target_arch = "x86_64")]
    if S::BF16_DOT {
        use std::arch::x86_64::*;
        unsafe {
            let (low, high): (__m512, __m512) = (std::mem::transmute_copy(&low), std::mem::transmute_copy(&high));
            // Sixteen of `low`, then sixteen of `high`: interleave them.
            let both: __m512i = std::mem::transmute(_mm512_cvtne2ps_pbh(high, low));
            let order = _mm512_add_epi32(
                _mm512_set1_epi32(16 << 16),
                _mm512_mullo_epi32(
                    _mm512_set1_epi32(0x1_0001),
                    _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
                ),
            );
            return std::mem::transmute_copy(&_mm512_permutexvar_epi16(order, both));
        }
    }
    let _ = high;
    low
}

#[inline(always)]
fn is_f32<E: Element>() -> bool {
    TypeId::of::<E>() == TypeId::of::<f32>()
}

/// A row as f32, or as pairs of bf16, padded with zeros to `units`.
#[inline(always)]
unsafe fn unit_row<S: Simd, E: Element, const DOT: bool>(from: *const E, d: usize, units: usize, to: *mut f32) {
    unsafe {
        if DOT || is_f32::<E>() {
            let bytes = d * E::SIZE;
            std::ptr::copy_nonoverlapping(from as *const u8, to as *mut u8, bytes);
            std::ptr::write_bytes((to as *mut u8).add(bytes), 0, units * 4 - bytes);
            return;
        }
        let mut i = 0;
        while i + S::LANES <= d {
            S::store(to.add(i), E::load::<S>(from.add(i)));
            i += S::LANES;
        }
        while i < d {
            *to.add(i) = (*from.add(i)).get();
            i += 1;
        }
        std::ptr::write_bytes(to.add(d), 0, units - d);
    }
}

/// Rounds a row of f32.
#[inline(always)]
unsafe fn narrow<S: Simd, E: Element>(from: *const f32, d: usize, to: *mut E) {
    unsafe {
        let mut i = 0;
        while i + S::LANES <= d {
            E::store::<S>(to.add(i), S::load(from.add(i)));
            i += S::LANES;
        }
        while i < d {
            *to.add(i) = E::from(*from.add(i));
            i += 1;
        }
    }
}

/// Keys in panels of R, four units of each key together: (count / R, units / 4, R, 4), zeros for missing keys.
#[inline(always)]
unsafe fn pack_keys<S: Simd, E: Element, const R: usize, const DOT: bool>(
    from: *const E,
    stride: usize,
    count: usize,
    d: usize,
    units: usize,
    row: *mut f32,
    to: *mut f32,
) {
    unsafe {
        for key in 0..count.next_multiple_of(R) {
            let mut quads = row as *const [f32; 4];
            if key >= count {
                std::ptr::write_bytes(row, 0, units);
            } else if (DOT || is_f32::<E>()) && d * E::SIZE == units * 4 {
                quads = from.add(key * stride) as *const [f32; 4];
            } else {
                unit_row::<S, E, DOT>(from.add(key * stride), d, units, row);
            }
            let panel = to.add(key / R * R * units + key % R * 4) as *mut [f32; 4];
            for i in 0..units / 4 {
                panel.add(i * R).write_unaligned(quads.add(i).read_unaligned());
            }
        }
    }
}

/// Values in panels of R elements: (D / R, KEYS, R), or pairs of two keys' (D / R, KEYS / 2, R); zeros beyond.
#[inline(always)]
unsafe fn pack_values<S: Simd, E: Element, const R: usize, const DOT: bool>(
    from: *const E,
    stride: usize,
    count: usize,
    d: usize,
    row: *mut f32,
    to: *mut f32,
) {
    unsafe {
        let depth = d.next_multiple_of(R);
        if DOT {
            for pair in 0..count.div_ceil(2) {
                let low = from.add(2 * pair * stride) as *const u16;
                let high = low.add(if 2 * pair + 1 < count { stride } else { 0 });
                // A missing key is read as its neighbour, with a weight of zero; but zero times infinity is not zero.
                let mask = if 2 * pair + 1 < count { u32::MAX << 16 } else { 0 };
                let mut i = 0;
                while i < d {
                    let to = to.add((i / R * (KEYS / 2) + pair) * R) as *mut [u32; R];
                    let mut both = [0u32; R];
                    if i + R <= d {
                        for (j, both) in both.iter_mut().enumerate() {
                            *both = *low.add(i + j) as u32 | ((*high.add(i + j) as u32) << 16 & mask);
                        }
                    } else {
                        for (j, both) in both.iter_mut().enumerate().take(d - i) {
                            *both = *low.add(i + j) as u32 | ((*high.add(i + j) as u32) << 16 & mask);
                        }
                    }
                    to.write_unaligned(both);
                    i += R;
                }
            }
            return;
        }
        for key in 0..count {
            let mut groups = row as *const [f32; R];
            if is_f32::<E>() && depth == d {
                groups = from.add(key * stride) as *const [f32; R];
            } else {
                unit_row::<S, E, false>(from.add(key * stride), d, depth, row);
            }
            for i in 0..depth / R {
                (to.add((i * KEYS + key) * R) as *mut [f32; R]).write_unaligned(groups.add(i).read_unaligned());
            }
        }
    }
}

/// The biases of `queries` by `keys`, transposed to (keys, width).
#[inline(always)]
unsafe fn place_bias(
    bias: *const f32,
    q_stride: usize,
    k_stride: usize,
    queries: usize,
    keys: usize,
    to: *mut f32,
    width: usize,
) {
    unsafe {
        if q_stride == 0 {
            for key in 0..keys {
                let value = *bias.add(key * k_stride);
                for i in 0..width {
                    *to.add(key * width + i) = value;
                }
            }
            return;
        }
        if k_stride == 1 {
            transpose(bias, q_stride, queries, keys, to, width);
        } else {
            for key in 0..keys {
                for i in 0..queries {
                    *to.add(key * width + i) = *bias.add(i * q_stride + key * k_stride);
                }
            }
        }
        if queries < width {
            for key in 0..keys {
                std::ptr::write_bytes(to.add(key * width + queries), 0, width - queries);
            }
        }
    }
}

/// to (columns, rows) from (rows, columns), four by four.
#[inline(always)]
unsafe fn transpose(from: *const f32, stride: usize, rows: usize, columns: usize, to: *mut f32, to_stride: usize) {
    unsafe {
        let (rows4, columns4) = (rows & !3, columns & !3);
        for i in (0..rows4).step_by(4) {
            for j in (0..columns4).step_by(4) {
                quad(from.add(i * stride + j), stride, to.add(j * to_stride + i), to_stride);
            }
        }
        for i in 0..rows {
            for j in if i < rows4 { columns4 } else { 0 }..columns {
                *to.add(j * to_stride + i) = *from.add(i * stride + j);
            }
        }
    }
}

/// A transposed square of four by four.
#[inline(always)]
unsafe fn quad(from: *const f32, stride: usize, to: *mut f32, to_stride: usize) {
    #[cfg(target_arch = "x86_64")]
    unsafe {
        use std::arch::x86_64::*;
        let (a, b) = (_mm_loadu_ps(from), _mm_loadu_ps(from.add(stride)));
        let (c, d) = (_mm_loadu_ps(from.add(2 * stride)), _mm_loadu_ps(from.add(3 * stride)));
        let (ab, cd) = (_mm_unpacklo_ps(a, b), _mm_unpacklo_ps(c, d));
        let (ab_high, cd_high) = (_mm_unpackhi_ps(a, b), _mm_unpackhi_ps(c, d));
        _mm_storeu_ps(to, _mm_movelh_ps(ab, cd));
        _mm_storeu_ps(to.add(to_stride), _mm_movehl_ps(cd, ab));
        _mm_storeu_ps(to.add(2 * to_stride), _mm_movelh_ps(ab_high, cd_high));
        _mm_storeu_ps(to.add(3 * to_stride), _mm_movehl_ps(cd_high, ab_high));
    }
    #[cfg(not(target_arch = "x86_64"))]
    unsafe {
        for i in 0..4 {
            for j in 0..4 {
                *to.add(j * to_stride + i) = *from.add(i * stride + j);
            }
        }
    }
}
