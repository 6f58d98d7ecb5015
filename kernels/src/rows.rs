//! Rows of the last axis: what norms and softmax share.

use crate::error::Result;
use crate::ops::Cx;
use crate::simd::{Element, Simd};
use crate::strided::{Elements, Loops, load_step};
use crate::view::View;
use std::any::TypeId;

/// Elements of rows that are worth waking a thread for.
const TASK: usize = 1 << 12;
/// Tasks for each thread at most: enough to share evenly where one is slow.
const TASKS: usize = 8;

/// The rows of one task, of views that have all axes but the last in common.
pub struct RowRange<'a, const N: usize> {
    loops: &'a Loops<N>,
    from: usize,
    to: usize,
}

impl<const N: usize> RowRange<'_, N> {
    /// The offsets of each row.
    #[inline(always)]
    pub fn offsets(&self) -> Elements<'_, N> {
        self.loops.elements(self.from, self.to)
    }
}

/// Runs `body(rows, scratch)` for all rows of views on all threads; scratch holds one row of the first view in f32.
pub fn each_row<const N: usize>(
    cx: &Cx,
    views: &[View; N],
    body: &(dyn Fn(&RowRange<N>, *mut f32) + Sync),
) -> Result<()> {
    let (rows, width) = (views[0].rows(), views[0].last());
    if rows == 0 {
        return Ok(());
    }
    let loops = Loops::of_rows(views);
    let threads = cx.pool.threads();
    let worth = (rows.saturating_mul(width) / TASK).clamp(1, TASKS * threads);
    let tasks = if worth == 1 { 1 } else { worth.next_multiple_of(threads).min(rows) };
    let per_task = rows.div_ceil(tasks);
    cx.pool.run(rows.div_ceil(per_task), &|task, thread| {
        let scratch = unsafe { cx.pool.scratch(thread, 4 * width.next_multiple_of(16)) } as *mut f32;
        let range = RowRange { loops: &loops, from: task * per_task, to: (task * per_task + per_task).min(rows) };
        body(&range, scratch);
    })
}

/// A row in f32: where it is, or widened in the scratch memory.
///
/// # Safety
/// The CPU has the level of `S`; the row has n elements, and `scratch` has room for them, rounded up to 16.
#[inline(always)]
pub unsafe fn widened<S: Simd, E: Element>(x: *const E, n: usize, scratch: *mut f32) -> *const f32 {
    if TypeId::of::<E>() == TypeId::of::<f32>() {
        return x as *const f32;
    }
    unsafe {
        for i in (0..n).step_by(S::LANES) {
            S::store(scratch.add(i), load_step::<S, E>(x.add(i), 1, (n - i).min(S::LANES)));
        }
    }
    scratch
}

/// The sum of `f` of each vector of a row in f32; lanes beyond it count as `f` of the last argument's lanes, 0.
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
