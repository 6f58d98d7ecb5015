//! Rows of the last axis: what norms and softmax share.

use crate::error::Result;
use crate::ops::Cx;
use crate::simd::{Element, Simd};
use crate::strided::{load_step, rows_per_task};
use crate::view::View;

/// Runs `body(row, scratch)` for every row of a view on all threads; scratch holds one row of f32.
pub fn each_row(cx: &Cx, view: &View, body: &(dyn Fn(usize, *mut f32) + Sync)) -> Result<()> {
    let (rows, width) = (view.rows(), view.last());
    if rows == 0 || width == 0 {
        return Ok(());
    }
    let per_task = rows_per_task(width);
    cx.pool.run(rows.div_ceil(per_task), &|task, thread| {
        let scratch = unsafe { cx.pool.scratch(thread, 4 * width.next_multiple_of(16)) } as *mut f32;
        (task * per_task..(task * per_task + per_task).min(rows)).for_each(|row| body(row, scratch));
    })
}

/// Widens a row into f32.
///
/// # Safety
/// The CPU has the level of `S`; `to` has room for n elements, rounded up to 16.
#[inline(always)]
pub unsafe fn widen<S: Simd, E: Element>(x: *const E, to: *mut f32, n: usize) {
    unsafe {
        for i in (0..n).step_by(S::LANES) {
            S::store(to.add(i), load_step::<S, E>(x.add(i), 1, (n - i).min(S::LANES)));
        }
    }
}

/// The sum of `f` of each vector of a widened row; lanes beyond it count as `f` of the last argument's lanes, 0.
///
/// # Safety
/// The CPU has the level of `S`; the row has n elements.
#[inline(always)]
pub unsafe fn sum_of<S: Simd>(row: *const f32, n: usize, f: impl Fn(S::V) -> S::V) -> f32 {
    unsafe {
        let mut sums = [S::splat(0.0); 4];
        let mut i = 0;
        while i + 4 * S::LANES <= n {
            for (k, sum) in sums.iter_mut().enumerate() {
                *sum = S::add(*sum, f(S::load(row.add(i + k * S::LANES))));
            }
            i += 4 * S::LANES;
        }
        while i + S::LANES <= n {
            sums[0] = S::add(sums[0], f(S::load(row.add(i))));
            i += S::LANES;
        }
        let mut total = S::sum(S::add(S::add(sums[0], sums[1]), S::add(sums[2], sums[3])));
        if i < n {
            let mut lanes = [0f32; 16];
            S::store(lanes.as_mut_ptr(), f(S::load_n(row.add(i), n - i)));
            total += lanes[..n - i].iter().sum::<f32>();
        }
        total
    }
}
