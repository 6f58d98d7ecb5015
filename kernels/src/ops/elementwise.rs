//! Copies with a change of type or order, and functions of one or two operands.

use super::*;
use crate::activation::{act, sigmoid, tanh};
use crate::dispatch;
use crate::ensure;
use crate::schema::{Binary, DType, Unary};
use crate::simd::{Element, Simd};
use crate::strided::{Loops, TASK, load_step, rows_per_task, store_step};
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

fn cast<A: Element, B: Element>(cx: &Cx, x: View, out: View) -> Result<()> {
    if out.is_empty() {
        return Ok(());
    }
    let loops = Loops::new(&[x, out], TASK);
    over_rows(cx, loops.rows(), loops.inner, &|from, to| unsafe {
        cast_rows::<A, B>(cx.level, &loops, x.at::<A>(0), out.at::<B>(0), from, to)
    })
}

dispatch! {
    fn cast_rows<A: Element, B: Element>(
        loops: &Loops<2>, x: *const A, out: *mut B, from: usize, to: usize,
    ) => cast_rows_at
}

#[inline(always)]
unsafe fn cast_rows_at<S: Simd, A: Element, B: Element>(
    loops: &Loops<2>,
    x: *const A,
    out: *mut B,
    from: usize,
    to: usize,
) {
    let [sx, so] = loops.steps;
    loops.each(from, to, |[xo, oo]| unsafe {
        for i in (0..loops.inner).step_by(S::LANES) {
            let n = (loops.inner - i).min(S::LANES);
            store_step::<S, B>(out.add(oo + i * so), load_step::<S, A>(x.add(xo + i * sx), sx, n), so, n);
        }
    });
}

/// Moves elements of a size without a look at them.
fn move_elements<T: Copy + Send + Sync>(cx: &Cx, x: View, out: View) -> Result<()> {
    if out.is_empty() {
        return Ok(());
    }
    let loops = Loops::new(&[x, out], TASK);
    let [sx, so] = loops.steps;
    let inner = loops.inner;
    over_rows(cx, loops.rows(), inner, &|from, to| {
        loops.each(from, to, |[xo, oo]| unsafe {
            let (x, out) = (x.at::<T>(xo), out.at::<T>(oo));
            match (sx, so) {
                (1, 1) => std::ptr::copy_nonoverlapping(x, out, inner),
                (0, 1) => (0..inner).for_each(|i| *out.add(i) = *x),
                _ => (0..inner).for_each(|i| *out.add(i * so) = *x.add(i * sx)),
            }
        })
    })
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

fn run_unary(cx: &Cx, args: &Args) -> Result<()> {
    match args.out().dtype {
        DType::F32 => unary::<f32>(cx, args),
        DType::BF16 => unary::<bf16>(cx, args),
        _ => unary::<f16>(cx, args),
    }
}

fn unary<E: Element>(cx: &Cx, args: &Args) -> Result<()> {
    let (x, out) = (args.view(0), args.out());
    if out.is_empty() {
        return Ok(());
    }
    let function = (unary_kind(args), args.f32(1), args.f32(2));
    let loops = Loops::new(&[x, out], TASK);
    over_rows(cx, loops.rows(), loops.inner, &|from, to| unsafe {
        unary_rows::<E>(cx.level, function, &loops, x.at::<E>(0), out.at::<E>(0), from, to)
    })
}

dispatch! {
    fn unary_rows<E: Element>(
        function: (Unary, f32, f32), loops: &Loops<2>, x: *const E, out: *mut E, from: usize, to: usize,
    ) => unary_rows_at
}

#[inline(always)]
unsafe fn unary_rows_at<S: Simd, E: Element>(
    function: (Unary, f32, f32),
    loops: &Loops<2>,
    x: *const E,
    out: *mut E,
    from: usize,
    to: usize,
) {
    let [sx, so] = loops.steps;
    loops.each(from, to, |[xo, oo]| unsafe {
        for i in (0..loops.inner).step_by(S::LANES) {
            let n = (loops.inner - i).min(S::LANES);
            let v = load_step::<S, E>(x.add(xo + i * sx), sx, n);
            store_step::<S, E>(out.add(oo + i * so), unary_vector::<S>(function, v), so, n);
        }
    });
}

#[inline(always)]
unsafe fn unary_vector<S: Simd>((kind, alpha, beta): (Unary, f32, f32), x: S::V) -> S::V {
    unsafe {
        match kind {
            Unary::Affine => S::fma(x, S::splat(alpha), S::splat(beta)),
            Unary::Silu => act::<S>(Activation::Silu, x),
            Unary::GeluTanh => act::<S>(Activation::GeluTanh, x),
            Unary::GeluErf => act::<S>(Activation::GeluErf, x),
            Unary::QuickGelu => act::<S>(Activation::QuickGelu, x),
            Unary::Relu => act::<S>(Activation::Relu, x),
            Unary::Sigmoid => sigmoid::<S>(x),
            Unary::Tanh => tanh::<S>(x),
            Unary::Exp => S::exp(x),
            Unary::Sqrt => S::sqrt(x),
            Unary::Rsqrt => S::div(S::splat(1.0), S::sqrt(x)),
            // Rare in models, so the library's functions serve.
            Unary::Log | Unary::Sin | Unary::Cos | Unary::Abs => {
                let mut lanes = [0f32; 16];
                S::store(lanes.as_mut_ptr(), x);
                for lane in &mut lanes[..S::LANES] {
                    *lane = unary_value(kind, 0.0, 0.0, *lane as f64) as f32;
                }
                S::load(lanes.as_ptr())
            }
        }
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

fn binary<E: Element>(cx: &Cx, args: &Args) -> Result<()> {
    let (a, b, out) = (args.view(0), args.view(1), args.out());
    if out.is_empty() {
        return Ok(());
    }
    let kind = binary_kind(args);
    let loops = Loops::new(&[a, b, out], TASK);
    over_rows(cx, loops.rows(), loops.inner, &|from, to| unsafe {
        binary_rows::<E>(cx.level, kind, &loops, a.at::<E>(0), b.at::<E>(0), out.at::<E>(0), (from, to))
    })
}

dispatch! {
    fn binary_rows<E: Element>(
        kind: Binary, loops: &Loops<3>, a: *const E, b: *const E, out: *mut E, range: (usize, usize),
    ) => binary_rows_at
}

#[inline(always)]
unsafe fn binary_rows_at<S: Simd, E: Element>(
    kind: Binary,
    loops: &Loops<3>,
    a: *const E,
    b: *const E,
    out: *mut E,
    range: (usize, usize),
) {
    let [sa, sb, so] = loops.steps;
    loops.each(range.0, range.1, |[ao, bo, oo]| unsafe {
        for i in (0..loops.inner).step_by(S::LANES) {
            let n = (loops.inner - i).min(S::LANES);
            let x = load_step::<S, E>(a.add(ao + i * sa), sa, n);
            let y = load_step::<S, E>(b.add(bo + i * sb), sb, n);
            store_step::<S, E>(out.add(oo + i * so), binary_vector::<S>(kind, x, y), so, n);
        }
    });
}

#[inline(always)]
unsafe fn binary_vector<S: Simd>(kind: Binary, a: S::V, b: S::V) -> S::V {
    unsafe {
        match kind {
            Binary::Add => S::add(a, b),
            Binary::Sub => S::sub(a, b),
            Binary::Mul => S::mul(a, b),
            Binary::Div => S::div(a, b),
            // Machines disagree about the maximum of a number and NaN; both are rare in models.
            Binary::Max | Binary::Min => {
                let (mut x, mut y) = ([0f32; 16], [0f32; 16]);
                S::store(x.as_mut_ptr(), a);
                S::store(y.as_mut_ptr(), b);
                for (x, y) in x.iter_mut().zip(&y) {
                    *x = binary_value(kind, *x, *y);
                }
                S::load(x.as_ptr())
            }
        }
    }
}
