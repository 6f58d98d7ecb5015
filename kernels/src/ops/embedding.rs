//! Rows of a table by ids, and the sinusoids of timesteps and positions.

use super::*;
use crate::ensure;
use crate::error::{Code, Error};
use crate::schema::DType;
use crate::simd::Element;
use crate::strided::rows_per_task;
use half::{bf16, f16};
use std::sync::Mutex;

pub static EMBEDDING: Kernel = Kernel { check, run, reference };
/// `embedding` of a table of int8.
pub static QUANTIZED_EMBEDDING: Kernel =
    Kernel { check: check_quantized, run: run_quantized, reference: reference_quantized };
pub static TIMESTEP_EMBEDDING: Kernel =
    Kernel { check: check_timestep, run: |_, args| timestep(args), reference: timestep };
pub static ROTARY_EMBEDDING: Kernel = Kernel { check: check_rotary, run: |_, args| rotary(args), reference: rotary };

fn check(args: &Args) -> Result<()> {
    let (ids, table, out) = (args.view(0), args.view(1), args.out());
    ensure!(ids.dtype == DType::I32, "embedding takes i32 ids, got {:?}", ids.dtype);
    ensure!(
        table.rank == 2 && table.dtype.is_float() && out.dtype.is_float() && table.inner_dense(),
        "embedding takes a float table of two axes, got {:?} {:?}",
        table.dtype,
        table.shape()
    );
    ensure!(
        out.rank == ids.rank + 1
            && out.shape()[..ids.rank] == *ids.shape()
            && out.last() == table.dims[1]
            && out.inner_dense(),
        "embedding of ids {:?} from {:?} cannot give {:?}",
        ids.shape(),
        table.shape(),
        out.shape()
    );
    Ok(())
}

/// The id at a place, which the table must have.
fn id_at(ids: &View, table: &View, place: usize) -> Result<usize> {
    // Volatile: what is checked is what is used, whoever writes in between.
    let id = unsafe { ids.at::<i32>(ids.offset(place)).read_volatile() };
    usize::try_from(id).ok().filter(|&id| id < table.dims[0]).ok_or_else(|| {
        let message = format!("Id {id} at place {place} is outside a table of {} rows", table.dims[0]);
        Error::new(Code::BadValue, message)
    })
}

/// Refuses ids outside the table before anything is written.
fn check_ids(ids: &View, table: &View) -> Result<()> {
    (0..ids.len()).try_for_each(|place| id_at(ids, table, place).map(|_| ()))
}

/// Checks the id again: a program may lay its result over its ids, so that an earlier row has changed it.
fn copy_row(ids: &View, table: &View, out: &View, row: usize) -> Result<()> {
    let id = id_at(ids, table, row)?;
    let (from, to) = (id * table.strides[0], out.row_offset(row));
    unsafe {
        if table.dtype == out.dtype {
            let size = out.dtype.size();
            std::ptr::copy(table.ptr.add(from * size), out.ptr.add(to * size), size * out.last());
        } else {
            (0..out.last()).for_each(|i| out.set(to + i, table.get(from + i)));
        }
    }
    Ok(())
}

fn reference(args: &Args) -> Result<()> {
    let (ids, table, out) = (args.view(0), args.view(1), args.out());
    check_ids(&ids, &table)?;
    (0..ids.len()).try_for_each(|row| copy_row(&ids, &table, &out, row))
}

fn run(cx: &Cx, args: &Args) -> Result<()> {
    let (ids, table, out) = (args.view(0), args.view(1), args.out());
    each_id(cx, &ids, &table, &out, &|row| copy_row(&ids, &table, &out, row))
}

/// Runs `copy` for every row of out on all threads, once all ids are known to be in the table.
fn each_id(cx: &Cx, ids: &View, table: &View, out: &View, copy: &(dyn Fn(usize) -> Result<()> + Sync)) -> Result<()> {
    check_ids(ids, table)?;
    let (count, per_task) = (ids.len(), rows_per_task(out.last()));
    let failure = Mutex::new(None);
    cx.pool.run(count.div_ceil(per_task), &|task, _| {
        let mut rows = task * per_task..(task * per_task + per_task).min(count);
        if let Err(error) = rows.try_for_each(copy) {
            *failure.lock().unwrap_or_else(|e| e.into_inner()) = Some(error);
        }
    })?;
    failure.into_inner().unwrap_or_else(|e| e.into_inner()).map_or(Ok(()), Err)
}

fn check_quantized(args: &Args) -> Result<()> {
    let what = "quantized_embedding";
    let (ids, codes, scale, out) = (args.view(0), args.view(1), args.view(2), args.out());
    ensure!(ids.dtype == DType::I32, "{what} takes i32 ids, got {:?}", ids.dtype);
    ensure!(
        codes.rank == 2 && codes.dtype == DType::I8 && codes.inner_dense(),
        "{what} takes an i8 table of two axes, got {:?} {:?}",
        codes.dtype,
        codes.shape()
    );
    ensure!(
        scale.dtype == DType::F32 && scale.shape() == [codes.dims[0], 1] && scale.is_contiguous(),
        "{what} takes dense f32 scales of [{}, 1], got {:?} {:?}",
        codes.dims[0],
        scale.dtype,
        scale.shape()
    );
    ensure!(
        out.dtype.is_float()
            && out.rank == ids.rank + 1
            && out.shape()[..ids.rank] == *ids.shape()
            && out.last() == codes.dims[1]
            && out.inner_dense(),
        "{what} of ids {:?} from {:?} cannot give {:?} {:?}",
        ids.shape(),
        codes.shape(),
        out.dtype,
        out.shape()
    );
    Ok(())
}

/// A code times its row's scale is one rounding in f32, and one more in a narrower out.
fn scale_row([ids, codes, scale, out]: &[View; 4], row: usize) -> Result<()> {
    let id = id_at(ids, codes, row)?;
    let (from, to) = (id * codes.strides[0], out.row_offset(row));
    unsafe {
        let scale = scale.get(id);
        match out.dtype {
            DType::F32 => scale_into::<f32>(codes.at(from), scale, out.at(to), out.last()),
            DType::BF16 => scale_into::<bf16>(codes.at(from), scale, out.at(to), out.last()),
            _ => scale_into::<f16>(codes.at(from), scale, out.at(to), out.last()),
        }
    }
    Ok(())
}

unsafe fn scale_into<E: Element>(codes: *const i8, scale: f32, out: *mut E, len: usize) {
    for i in 0..len {
        unsafe { *out.add(i) = E::from(*codes.add(i) as f32 * scale) };
    }
}

fn quantized_views(args: &Args) -> [View; 4] {
    [args.view(0), args.view(1), args.view(2), args.out()]
}

fn reference_quantized(args: &Args) -> Result<()> {
    let [ids, codes, scale, out] = &quantized_views(args);
    check_ids(ids, codes)?;
    for row in 0..ids.len() {
        let id = id_at(ids, codes, row)?;
        for i in 0..out.last() {
            unsafe { out.set(out.row_offset(row) + i, codes.get(id * codes.strides[0] + i) * scale.get(id)) };
        }
    }
    Ok(())
}

fn run_quantized(cx: &Cx, args: &Args) -> Result<()> {
    let views = quantized_views(args);
    each_id(cx, &views[0], &views[1], &views[3], &|row| scale_row(&views, row))
}

fn check_timestep(args: &Args) -> Result<()> {
    let (t, out) = (args.view(0), args.out());
    ensure!(
        t.dtype == DType::F32 && t.rank == 1 && out.dtype == DType::F32 && out.rank == 2 && out.dims[0] == t.dims[0],
        "timestep_embedding takes f32 (B) and gives f32 (B, D), got {:?} {:?}, {:?} {:?}",
        t.dtype,
        t.shape(),
        out.dtype,
        out.shape()
    );
    ensure!(args.i32(0) == 0 || args.i32(0) == 1, "timestep_embedding takes flip 0 or 1, got {}", args.i32(0));
    Ok(())
}

/// Rounded to f32 after each operation, as PyTorch computes it: a timestep of 1000 makes a difference in the last
/// place of a frequency a hundred times as large in its sine.
fn timestep(args: &Args) -> Result<()> {
    let (t, out) = (args.view(0), args.out());
    let (flip, shift, max_period, scale) = (args.i32(0) == 1, args.f32(1), args.f32(2), args.f32(3));
    let half = out.dims[1] / 2;
    let slope = -(max_period as f64).ln() as f32;
    for b in 0..t.dims[0] {
        let time = unsafe { t.get(b * t.strides[0]) };
        let row = out.row_offset(b);
        for i in 0..half {
            let exponent = slope * i as f32 / (half as f32 - shift);
            let angle = scale * (time * (exponent as f64).exp() as f32);
            let (sine, cosine) = (angle as f64).sin_cos();
            let (first, second) = if flip { (cosine, sine) } else { (sine, cosine) };
            unsafe {
                out.set(row + i * out.strides[1], first as f32);
                out.set(row + (half + i) * out.strides[1], second as f32);
            }
        }
        // An odd size ends with a zero, as in diffusers.
        if out.dims[1] % 2 == 1 {
            unsafe { out.set(row + 2 * half * out.strides[1], 0.0) };
        }
    }
    Ok(())
}

fn sizes(args: &Args) -> [i32; 4] {
    [1, 2, 3, 4].map(|i| args.i32(i))
}

fn check_rotary(args: &Args) -> Result<()> {
    let (ids, out) = (args.view(0), args.out());
    let sizes = sizes(args);
    ensure!(
        sizes.iter().all(|&n| (0..1 << 20).contains(&n) && n % 2 == 0),
        "rotary_embedding takes even sizes, got {sizes:?}"
    );
    let axes = sizes.iter().filter(|&&n| n > 0).count();
    let total: i32 = sizes.iter().sum();
    ensure!(
        ids.dtype == DType::F32 && ids.rank == 2 && ids.dims[1] == axes,
        "rotary_embedding of {axes} axes takes f32 (S, {axes}), got {:?} {:?}",
        ids.dtype,
        ids.shape()
    );
    ensure!(
        out.dtype == DType::F32 && out.shape() == [2, ids.dims[0], total as usize] && out.is_contiguous(),
        "rotary_embedding gives f32 [2, {}, {total}], not {:?} {:?}",
        ids.dims[0],
        out.dtype,
        out.shape()
    );
    Ok(())
}

/// In f64, as diffusers computes it.
fn rotary(args: &Args) -> Result<()> {
    let (ids, out) = (args.view(0), args.out());
    let (tokens, width) = (out.dims[1], out.dims[2]);
    for token in 0..tokens {
        let mut column = 0;
        for (axis, &size) in sizes(args).iter().filter(|&&n| n > 0).enumerate() {
            let position = unsafe { ids.get(token * ids.strides[0] + axis * ids.strides[1]) } as f64;
            for i in 0..size as usize / 2 {
                let frequency = 1.0 / (args.f32(0) as f64).powf(2.0 * i as f64 / size as f64);
                let (sine, cosine) = (position * frequency).sin_cos();
                for twin in 0..2 {
                    let at = token * width + column + 2 * i + twin;
                    unsafe {
                        out.set(at, cosine as f32);
                        out.set(tokens * width + at, sine as f32);
                    }
                }
            }
            column += size as usize;
        }
    }
    Ok(())
}
