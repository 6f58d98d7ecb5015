//! Copies with a change of type or order, and functions of one or two operands.

use super::*;
use crate::activation::{act, sigmoid, tanh};
use crate::dispatch;
use crate::ensure;
use crate::schema::{Binary, DType, Unary};
use crate::simd::{Element, Simd};
use crate::strided::{Loops, TASK, load_step, rows_per_task, store_step};
use crate::view::MAX_RANK;
use half::{bf16, f16};

pub static COPY: Kernel = Kernel { check: check_copy, run: run_copy, reference: reference_copy };
pub static UNARY: Kernel = Kernel { check: check_unary, run: run_unary, reference: reference_unary };
pub static BINARY: Kernel = Kernel { check: check_binary, run: run_binary, reference: reference_binary };

fn same_shape(what: &str, x: &View, out: &View) -> Result<()> {
    ensure!(x.shape() == out.shape(), "{what} takes operands of one shape, got {:?} and {:?}", x.shape(), out.shape());
    Ok(())
}

fn check_copy(args: &Args) -> Result<()> {
    let (x, out) = (args.view(0), args.out());
    same_shape("copy", &x, &out)?;
    ensure!(
        x.dtype == out.dtype || (x.dtype.is_float() && out.dtype.is_float()),
        "copy changes floats into floats, not {:?} into {:?}",
        x.dtype,
        out.dtype
    );
    Ok(())
}

fn reference_copy(args: &Args) -> Result<()> {
    let (x, out) = (args.view(0), args.out());
    for i in 0..out.len() {
        unsafe {
            if x.dtype == out.dtype {
                let size = x.dtype.size();
                let (from, to) = (x.ptr.add(x.offset(i) * size), out.ptr.add(out.offset(i) * size));
                std::ptr::copy(from, to, size);
            } else {
                out.set(out.offset(i), x.get(x.offset(i)));
            }
        }
    }
    Ok(())
}

fn run_copy(cx: &Cx, args: &Args) -> Result<()> {
    let (x, out) = (args.view(0), args.out());
    match (x.dtype, out.dtype) {
        (DType::F32, DType::BF16) => cast::<f32, bf16>(cx, x, out),
        (DType::F32, DType::F16) => cast::<f32, f16>(cx, x, out),
        (DType::BF16, DType::F32) => cast::<bf16, f32>(cx, x, out),
        (DType::BF16, DType::F16) => cast::<bf16, f16>(cx, x, out),
        (DType::F16, DType::F32) => cast::<f16, f32>(cx, x, out),
        (DType::F16, DType::BF16) => cast::<f16, bf16>(cx, x, out),
        _ => match x.dtype.size() {
            1 => move_elements::<u8>(cx, x, out),
            2 => move_elements::<u16>(cx, x, out),
            _ => move_elements::<u32>(cx, x, out),
        },
    }
}

/// Runs `body(first, last)` over rows, several at a time.
fn over_rows(cx: &Cx, rows: usize, inner: usize, body: &(dyn Fn(usize, usize) + Sync)) -> Result<()> {
    let per_task = rows_per_task(inner);
    cx.pool.run(rows.div_ceil(per_task), &|task, _| body(task * per_task, (task * per_task + per_task).min(rows)))
}

/// The views, the result last, with their axes in the order of the result's strides: elements are independent of each
/// other, so the innermost loop may write adjacent ones whatever the axes' order.
fn by_result<const N: usize>(views: [View; N]) -> [View; N] {
    let out = views[N - 1];
    if out.strides[..out.rank].is_sorted_by(|a, b| a >= b) {
        return views;
    }
    let mut order: [usize; MAX_RANK] = std::array::from_fn(|axis| axis);
    order[..out.rank].sort_by_key(|&axis| std::cmp::Reverse(out.strides[axis]));
    views.map(|view| View {
        dims: order.map(|axis| view.dims[axis]),
        strides: order.map(|axis| view.strides[axis]),
        ..view
    })
}

/// A copy whose adjacent elements lie along one axis in x and along another in out.
struct Transpose {
    /// The axis that is dense in x: its size and its distance in out.
    dense_x: (usize, usize),
    /// The axis that is dense in out: its size and its distance in x.
    dense_out: (usize, usize),
    /// The axes around them, of no elements' extent in those two.
    around: [View; 2],
}

impl Transpose {
    /// `None` where no two axes lie so, or they are too short to be worth it.
    fn of(x: &View, out: &View) -> Option<Self> {
        let axis = |view: &View| (0..view.rank).find(|&a| view.strides[a] == 1 && view.dims[a] >= 4);
        let (p, q) = (axis(x)?, axis(out)?);
        if p == q {
            return None;
        }
        let without = |mut view: View| {
            (view.dims[p], view.dims[q]) = (1, 1);
            view
        };
        Some(Self {
            dense_x: (x.dims[p], out.strides[p]),
            dense_out: (x.dims[q], x.strides[q]),
            around: [without(*x), without(*out)],
        })
    }

    /// Calls `block(offset in x, offset in out, size of x's axis, size of out's axis)` for blocks of it on all
    /// threads: `TALL` along x's dense axis, so that whole cache lines are read, and all along out's.
    fn run(&self, cx: &Cx, block: &(dyn Fn(usize, usize, usize, usize) + Sync)) -> Result<()> {
        const TALL: usize = 64;
        let (size, step) = self.dense_x;
        let [x, out] = &self.around;
        let strips = size.div_ceil(TALL);
        let per_task = rows_per_task(TALL.min(size) * self.dense_out.0);
        let count = strips * out.len();
        cx.pool.run(count.div_ceil(per_task), &|task, _| {
            for i in task * per_task..(task * per_task + per_task).min(count) {
                let (place, at) = (i / strips, i % strips * TALL);
                let (from, to) = (x.offset(place) + at, out.offset(place) + at * step);
                block(from, to, TALL.min(size - at), self.dense_out.0);
            }
        })
    }
}

fn cast<A: Element, B: Element>(cx: &Cx, x: View, out: View) -> Result<()> {
    if out.is_empty() {
        return Ok(());
    }
    let (from, to) = (Address(x.ptr as *mut A), Address(out.ptr as *mut B));
    if let Some(transpose) = Transpose::of(&x, &out) {
        let steps = (transpose.dense_out.1, transpose.dense_x.1);
        return transpose.run(cx, &|xo, oo, tall, wide| unsafe {
            cast_block::<A, B>(cx.level, from.at(xo), to.at(oo), tall, wide, steps)
        });
    }
    let loops = Loops::new(&by_result([x, out]), TASK);
    let [sx, so] = loops.steps;
    over_rows(cx, loops.rows(), loops.inner, &|first, last| {
        loops.each(first, last, |[xo, oo]| unsafe {
            cast_row::<A, B>(cx.level, from.at(xo), sx, to.at(oo), so, loops.inner)
        })
    })
}

/// The address of elements that threads share.
#[derive(Clone, Copy)]
struct Address<T>(*mut T);
unsafe impl<T> Send for Address<T> {}
unsafe impl<T> Sync for Address<T> {}

impl<T> Address<T> {
    /// The address of an element.
    #[inline(always)]
    unsafe fn at(&self, offset: usize) -> *mut T {
        unsafe { self.0.add(offset) }
    }
}

dispatch! {
    fn cast_row<A: Element, B: Element>(x: *const A, sx: usize, out: *mut B, so: usize, n: usize) => cast_row_at
}

#[inline(always)]
unsafe fn cast_row_at<S: Simd, A: Element, B: Element>(x: *const A, sx: usize, out: *mut B, so: usize, n: usize) {
    unsafe {
        for i in (0..n).step_by(S::LANES) {
            let count = (n - i).min(S::LANES);
            store_step::<S, B>(out.add(i * so), load_step::<S, A>(x.add(i * sx), sx, count), so, count);
        }
    }
}

dispatch! {
    fn cast_block<A: Element, B: Element>(
        x: *const A, out: *mut B, tall: usize, wide: usize, steps: (usize, usize),
    ) => cast_block_at
}

/// As `move_block`, through f32.
#[inline(always)]
unsafe fn cast_block_at<S: Simd, A: Element, B: Element>(
    x: *const A,
    out: *mut B,
    tall: usize,
    wide: usize,
    (sx, so): (usize, usize),
) {
    let (mut tile, mut turned) = ([[0f32; 16]; 16], [[0f32; 16]; 16]);
    unsafe {
        for i in (0..wide).step_by(16) {
            let columns = (wide - i).min(16);
            for j in (0..tall).step_by(16) {
                let rows = (tall - j).min(16);
                for (c, line) in tile.iter_mut().enumerate().take(columns) {
                    for r in (0..rows).step_by(S::LANES) {
                        let v = load_step::<S, A>(x.add((i + c) * sx + j + r), 1, (rows - r).min(S::LANES));
                        S::store(line.as_mut_ptr().add(r), v);
                    }
                }
                turn(&tile, turned.as_mut_ptr() as *mut f32, 16);
                for (r, line) in turned.iter().enumerate().take(rows) {
                    for c in (0..columns).step_by(S::LANES) {
                        let v = S::load(line.as_ptr().add(c));
                        store_step::<S, B>(out.add((j + r) * so + i + c), v, 1, (columns - c).min(S::LANES));
                    }
                }
            }
        }
    }
}

/// Writes a tile with its axes exchanged, to rows a step apart.
#[inline(always)]
unsafe fn turn<T: Copy>(tile: &[[T; 16]; 16], out: *mut T, step: usize) {
    unsafe {
        #[cfg(target_arch = "x86_64")]
        if size_of::<T>() == 4 {
            use std::arch::x86_64::*;
            // Four by four in registers, of instructions that every such CPU has. Row by row of the result, so that
            // few of its cache lines are open at a time.
            for r in (0..16).step_by(4) {
                for c in (0..16).step_by(4) {
                    let line = |k: usize| _mm_loadu_ps(tile[c + k].as_ptr().add(r) as *const f32);
                    let (mut a, mut b, mut d, mut e) = (line(0), line(1), line(2), line(3));
                    _MM_TRANSPOSE4_PS(&mut a, &mut b, &mut d, &mut e);
                    for (k, v) in [a, b, d, e].into_iter().enumerate() {
                        _mm_storeu_ps(out.add((r + k) * step + c) as *mut f32, v);
                    }
                }
            }
            return;
        }
        for r in 0..16 {
            for (c, line) in tile.iter().enumerate() {
                *out.add(r * step + c) = line[r];
            }
        }
    }
}

/// Moves elements of a size without a look at them.
fn move_elements<T: Copy + Default + Send + Sync>(cx: &Cx, x: View, out: View) -> Result<()> {
    if out.is_empty() {
        return Ok(());
    }
    let (from, to) = (Address(x.ptr as *mut T), Address(out.ptr as *mut T));
    if let Some(transpose) = Transpose::of(&x, &out) {
        let steps = (transpose.dense_out.1, transpose.dense_x.1);
        return transpose
            .run(cx, &|xo, oo, tall, wide| unsafe { move_block(from.at(xo), to.at(oo), tall, wide, steps) });
    }
    let loops = Loops::new(&by_result([x, out]), TASK);
    let [sx, so] = loops.steps;
    let inner = loops.inner;
    over_rows(cx, loops.rows(), inner, &|first, last| {
        loops.each(first, last, |[xo, oo]| unsafe {
            let (x, out) = (from.at(xo), to.at(oo));
            match (sx, so) {
                (1, 1) => std::ptr::copy(x, out, inner),
                (0, 1) => (0..inner).for_each(|i| *out.add(i) = *x),
                _ => (0..inner).for_each(|i| *out.add(i * so) = *x.add(i * sx)),
            }
        })
    })
}

/// Transposes a block by tiles that go through memory of their own: both sides are read and written by the cache
/// line, even where strides of powers of two leave few places for them in the cache.
unsafe fn move_block<T: Copy + Default>(x: *const T, out: *mut T, tall: usize, wide: usize, (sx, so): (usize, usize)) {
    let mut tile = [[T::default(); 16]; 16];
    unsafe {
        for i in (0..wide).step_by(16) {
            let columns = (wide - i).min(16);
            for j in (0..tall).step_by(16) {
                let rows = (tall - j).min(16);
                if rows == 16 && columns == 16 {
                    for (c, line) in tile.iter_mut().enumerate() {
                        *line = (x.add((i + c) * sx + j) as *const [T; 16]).read_unaligned();
                    }
                    turn(&tile, out.add(j * so + i), so);
                } else {
                    for r in 0..rows {
                        for c in 0..columns {
                            *out.add((j + r) * so + i + c) = *x.add((i + c) * sx + j + r);
                        }
                    }
                }
            }
        }
    }
}

fn check_unary(args: &Args) -> Result<()> {
    let (x, out) = (args.view(0), args.out());
    same_shape("unary", &x, &out)?;
    ensure!(
        x.dtype.is_float() && x.dtype == out.dtype,
        "unary takes one float type, got {:?}, {:?}",
        x.dtype,
        out.dtype
    );
    Ok(())
}

/// The definition of a function of one operand.
fn unary_value(kind: Unary, alpha: f64, beta: f64, x: f64) -> f64 {
    match kind {
        Unary::Affine => alpha * x + beta,
        Unary::Silu => activate(Activation::Silu, x),
        Unary::GeluTanh => activate(Activation::GeluTanh, x),
        Unary::GeluErf => activate(Activation::GeluErf, x),
        Unary::QuickGelu => activate(Activation::QuickGelu, x),
        Unary::Relu => activate(Activation::Relu, x),
        Unary::Sigmoid => 1.0 / (1.0 + (-x).exp()),
        Unary::Tanh => x.tanh(),
        Unary::Exp => x.exp(),
        Unary::Log => x.ln(),
        Unary::Sqrt => x.sqrt(),
        Unary::Rsqrt => 1.0 / x.sqrt(),
        Unary::Sin => x.sin(),
        Unary::Cos => x.cos(),
        Unary::Abs => x.abs(),
    }
}

fn unary_kind(args: &Args) -> Unary {
    Unary::from_code(args.params[0]).expect("the loader checks codes")
}

fn reference_unary(args: &Args) -> Result<()> {
    let (x, out) = (args.view(0), args.out());
    let (alpha, beta) = (args.f32(1) as f64, args.f32(2) as f64);
    for i in 0..out.len() {
        unsafe {
            let y = unary_value(unary_kind(args), alpha, beta, x.get(x.offset(i)) as f64);
            out.set(out.offset(i), y as f32);
        }
    }
    Ok(())
}

/// A function of one vector as a type, so that each has loops of its own: one function with a branch for every kind
/// is too large to be inlined, and what is not inlined is compiled without the level's instructions.
trait Function: 'static {
    unsafe fn of<S: Simd>(x: S::V, alpha: f32, beta: f32) -> S::V;
}

macro_rules! functions {
    ($($name:ident |$x:ident, $alpha:ident, $beta:ident| $value:expr;)*) => {
        mod function {
            use super::*;
            $(
                pub struct $name;
                impl Function for $name {
                    #[inline(always)]
                    unsafe fn of<S: Simd>($x: S::V, $alpha: f32, $beta: f32) -> S::V {
                        unsafe { $value }
                    }
                }
            )*
        }

        fn unary<E: Element>(cx: &Cx, args: &Args) -> Result<()> {
            match unary_kind(args) {
                $(Unary::$name => map(cx, args, map_row::<E, function::$name>),)*
            }
        }
    };
}

functions! {
    Affine |x, alpha, beta| S::fma(x, S::splat(alpha), S::splat(beta));
    Silu |x, _a, _b| act::<S>(Activation::Silu, x);
    GeluTanh |x, _a, _b| act::<S>(Activation::GeluTanh, x);
    GeluErf |x, _a, _b| act::<S>(Activation::GeluErf, x);
    QuickGelu |x, _a, _b| act::<S>(Activation::QuickGelu, x);
    Relu |x, _a, _b| act::<S>(Activation::Relu, x);
    Sigmoid |x, _a, _b| sigmoid::<S>(x);
    Tanh |x, _a, _b| tanh::<S>(x);
    Exp |x, _a, _b| S::exp(x);
    Sqrt |x, _a, _b| S::sqrt(x);
    Rsqrt |x, _a, _b| S::div(S::splat(1.0), S::sqrt(x));
    // Of two equal values `max` gives the second: 0, not -0.
    Abs |x, _a, _b| S::max(x, S::sub(S::splat(0.0), x));
    // Rare in models, so the library's functions serve.
    Log |x, _a, _b| by_lanes::<S>(x, f64::ln);
    Sin |x, _a, _b| by_lanes::<S>(x, f64::sin);
    Cos |x, _a, _b| by_lanes::<S>(x, f64::cos);
}

#[inline(always)]
unsafe fn by_lanes<S: Simd>(x: S::V, f: fn(f64) -> f64) -> S::V {
    let mut lanes = [0f32; 16];
    unsafe {
        S::store(lanes.as_mut_ptr(), x);
        for lane in &mut lanes[..S::LANES] {
            *lane = f(*lane as f64) as f32;
        }
        S::load(lanes.as_ptr())
    }
}

fn run_unary(cx: &Cx, args: &Args) -> Result<()> {
    match args.out().dtype {
        DType::F32 => unary::<f32>(cx, args),
        DType::BF16 => unary::<bf16>(cx, args),
        _ => unary::<f16>(cx, args),
    }
}

/// A row of a function of one operand: x and its step, out and its step, elements, alpha, beta.
type MapRow = unsafe fn(Level, *const u8, usize, *mut u8, usize, usize, f32, f32);

fn map(cx: &Cx, args: &Args, row: MapRow) -> Result<()> {
    let (x, out) = (args.view(0), args.out());
    if out.is_empty() {
        return Ok(());
    }
    let size = out.dtype.size();
    let (from, to) = (Address(x.ptr), Address(out.ptr));
    let (alpha, beta) = (args.f32(1), args.f32(2));
    let loops = Loops::new(&by_result([x, out]), TASK);
    let [sx, so] = loops.steps;
    over_rows(cx, loops.rows(), loops.inner, &|first, last| {
        loops.each(first, last, |[xo, oo]| unsafe {
            row(cx.level, from.at(xo * size), sx, to.at(oo * size), so, loops.inner, alpha, beta)
        })
    })
}

/// Elements that are widened at a time where they are not read and written as they lie.
const PART: usize = 256;

#[allow(clippy::too_many_arguments)]
unsafe fn map_row<E: Element, F: Function>(
    level: Level,
    x: *const u8,
    sx: usize,
    out: *mut u8,
    so: usize,
    n: usize,
    alpha: f32,
    beta: f32,
) {
    let (x, out) = (x as *const E, out as *mut E);
    unsafe {
        let direct = if (sx, so) == (1, 1) { n - n % level.lanes() } else { 0 };
        map_vectors::<E, F>(level, x, out, direct, alpha, beta);
        for i in (direct..n).step_by(PART) {
            let count = (n - i).min(PART);
            let mut part = [0f32; PART];
            let values = part.as_mut_ptr();
            cast_row::<E, f32>(level, x.add(i * sx), sx, values, 1, count);
            map_vectors::<f32, F>(level, values, values, count.next_multiple_of(level.lanes()), alpha, beta);
            cast_row::<f32, E>(level, values, 1, out.add(i * so), so, count);
        }
    }
}

dispatch! {
    fn map_vectors<E: Element, F: Function>(x: *const E, out: *mut E, n: usize, alpha: f32, beta: f32) => map_vectors_at
}

/// Whole vectors of adjacent elements.
#[inline(always)]
unsafe fn map_vectors_at<S: Simd, E: Element, F: Function>(x: *const E, out: *mut E, n: usize, alpha: f32, beta: f32) {
    for i in (0..n).step_by(S::LANES) {
        unsafe { E::store::<S>(out.add(i), F::of::<S>(E::load::<S>(x.add(i)), alpha, beta)) };
    }
}

fn check_binary(args: &Args) -> Result<()> {
    let (a, b, out) = (args.view(0), args.view(1), args.out());
    same_shape("binary", &a, &out)?;
    same_shape("binary", &b, &out)?;
    ensure!(
        a.dtype.is_float() && a.dtype == out.dtype && b.dtype == out.dtype,
        "binary takes one float type, got {:?}, {:?}, {:?}",
        a.dtype,
        b.dtype,
        out.dtype
    );
    Ok(())
}

fn binary_kind(args: &Args) -> Binary {
    Binary::from_code(args.params[0]).expect("the loader checks codes")
}

/// The definition of a function of two operands; NaN wins over any number, as in PyTorch.
fn binary_value(kind: Binary, a: f32, b: f32) -> f32 {
    match kind {
        Binary::Add => a + b,
        Binary::Sub => a - b,
        Binary::Mul => a * b,
        Binary::Div => a / b,
        Binary::Max if a.is_nan() || b.is_nan() => f32::NAN,
        Binary::Min if a.is_nan() || b.is_nan() => f32::NAN,
        Binary::Max => a.max(b),
        Binary::Min => a.min(b),
    }
}

fn reference_binary(args: &Args) -> Result<()> {
    let (a, b, out) = (args.view(0), args.view(1), args.out());
    for i in 0..out.len() {
        unsafe {
            let y = binary_value(binary_kind(args), a.get(a.offset(i)), b.get(b.offset(i)));
            out.set(out.offset(i), y);
        }
    }
    Ok(())
}

fn run_binary(cx: &Cx, args: &Args) -> Result<()> {
    match args.out().dtype {
        DType::F32 => binary::<f32>(cx, args),
        DType::BF16 => binary::<bf16>(cx, args),
        _ => binary::<f16>(cx, args),
    }
}

/// A function of two vectors as a type; see `Function`.
trait Pair: 'static {
    unsafe fn of<S: Simd>(a: S::V, b: S::V) -> S::V;
}

macro_rules! pairs {
    ($($name:ident |$a:ident, $b:ident| $value:expr;)*) => {
        mod pair {
            use super::*;
            $(
                pub struct $name;
                impl Pair for $name {
                    #[inline(always)]
                    unsafe fn of<S: Simd>($a: S::V, $b: S::V) -> S::V {
                        unsafe { $value }
                    }
                }
            )*
        }

        fn binary<E: Element>(cx: &Cx, args: &Args) -> Result<()> {
            match binary_kind(args) {
                $(Binary::$name => zip(cx, args, zip_row::<E, pair::$name>),)*
            }
        }
    };
}

pairs! {
    Add |a, b| S::add(a, b);
    Sub |a, b| S::sub(a, b);
    Mul |a, b| S::mul(a, b);
    Div |a, b| S::div(a, b);
    // Where either is NaN, the vector's maximum is its second operand: a's NaN stays, and b's is added.
    Max |a, b| S::add(S::max(b, a), nan_or_zero::<S>(b));
    Min |a, b| S::add(S::min(b, a), nan_or_zero::<S>(b));
}

/// NaN where x is, 0 elsewhere, also for infinities.
#[inline(always)]
unsafe fn nan_or_zero<S: Simd>(x: S::V) -> S::V {
    unsafe { S::mul(S::max(S::splat(-1.0), S::min(S::splat(1.0), x)), S::splat(0.0)) }
}

/// A row of a function of two operands: they, out, the steps of all, elements.
type ZipRow = unsafe fn(Level, *const u8, *const u8, *mut u8, [usize; 3], usize);

fn zip(cx: &Cx, args: &Args, row: ZipRow) -> Result<()> {
    let (a, b, out) = (args.view(0), args.view(1), args.out());
    if out.is_empty() {
        return Ok(());
    }
    let size = out.dtype.size();
    let (x, y, to) = (Address(a.ptr), Address(b.ptr), Address(out.ptr));
    let loops = Loops::new(&by_result([a, b, out]), TASK);
    over_rows(cx, loops.rows(), loops.inner, &|first, last| {
        loops.each(first, last, |[ao, bo, oo]| unsafe {
            row(cx.level, x.at(ao * size), y.at(bo * size), to.at(oo * size), loops.steps, loops.inner)
        })
    })
}

unsafe fn zip_row<E: Element, F: Pair>(
    level: Level,
    a: *const u8,
    b: *const u8,
    out: *mut u8,
    [sa, sb, so]: [usize; 3],
    n: usize,
) {
    let (a, b, out) = (a as *const E, b as *const E, out as *mut E);
    unsafe {
        // A step of 0 is one value for all.
        let direct = if sa == 1 && sb <= 1 && so == 1 { n - n % level.lanes() } else { 0 };
        zip_vectors::<E, F>(level, a, b, sb, out, direct);
        for i in (direct..n).step_by(PART) {
            let count = (n - i).min(PART);
            let (mut part, mut other) = ([0f32; PART], [0f32; PART]);
            let (x, y) = (part.as_mut_ptr(), other.as_mut_ptr());
            cast_row::<E, f32>(level, a.add(i * sa), sa, x, 1, count);
            cast_row::<E, f32>(level, b.add(i * sb), sb, y, 1, count);
            zip_vectors::<f32, F>(level, x, y, 1, x, count.next_multiple_of(level.lanes()));
            cast_row::<f32, E>(level, x, 1, out.add(i * so), so, count);
        }
    }
}

dispatch! {
    fn zip_vectors<E: Element, F: Pair>(a: *const E, b: *const E, sb: usize, out: *mut E, n: usize) => zip_vectors_at
}

/// Whole vectors of adjacent elements, or of one value of b.
#[inline(always)]
unsafe fn zip_vectors_at<S: Simd, E: Element, F: Pair>(a: *const E, b: *const E, sb: usize, out: *mut E, n: usize) {
    unsafe {
        if sb == 0 {
            let b = S::splat((*b).get());
            for i in (0..n).step_by(S::LANES) {
                E::store::<S>(out.add(i), F::of::<S>(E::load::<S>(a.add(i)), b));
            }
        } else {
            for i in (0..n).step_by(S::LANES) {
                E::store::<S>(out.add(i), F::of::<S>(E::load::<S>(a.add(i)), E::load::<S>(b.add(i))));
            }
        }
    }
}
