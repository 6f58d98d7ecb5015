//! Walking several views of one shape together: axes that lie alike are merged, the last one is the inner loop.

use crate::view::{MAX_RANK, View};

/// The merged axes of `N` views.
#[derive(Clone, Copy)]
pub struct Loops<const N: usize> {
    /// How many axes there are besides the inner one.
    rank: usize,
    dims: [usize; MAX_RANK],
    strides: [[usize; MAX_RANK]; N],
    /// The length of the inner loop.
    pub inner: usize,
    /// The distances of the inner loop.
    pub steps: [usize; N],
}

impl<const N: usize> Loops<N> {
    /// Merges the axes of views of one shape. The inner loop is cut to at most `limit` elements, so that one long row
    /// makes several tasks.
    pub fn new(views: &[View; N], limit: usize) -> Self {
        let mut dims = [1; MAX_RANK + 1];
        let mut strides = [[0; MAX_RANK + 1]; N];
        let mut rank = 0;
        for axis in 0..views[0].rank {
            let size = views[0].dims[axis];
            if size == 1 {
                continue;
            }
            let merges =
                rank > 0 && (0..N).all(|i| strides[i][rank - 1] == views[i].strides[axis].saturating_mul(size));
            if !merges {
                rank += 1;
                dims[rank - 1] = 1;
            }
            dims[rank - 1] *= size;
            for (row, view) in strides.iter_mut().zip(views) {
                row[rank - 1] = view.strides[axis];
            }
        }
        if rank == 0 {
            rank = 1;
        }
        // The largest divisor would do as well; a power of two that divides is found faster.
        let last = rank - 1;
        if dims[last] > limit && dims[last].is_multiple_of(2) {
            let parts = dims[last] / limit.max(1);
            let split = 1 << parts.max(2).ilog2().min(dims[last].trailing_zeros());
            dims[rank] = dims[last] / split;
            dims[last] = split;
            for row in &mut strides {
                row[rank] = row[last];
                row[last] *= dims[rank];
            }
            rank += 1;
        }
        let mut loops = Self {
            rank: rank - 1,
            dims: [1; MAX_RANK],
            strides: [[0; MAX_RANK]; N],
            inner: dims[rank - 1],
            steps: std::array::from_fn(|i| strides[i][rank - 1]),
        };
        for axis in 0..rank - 1 {
            loops.dims[axis] = dims[axis];
            for (to, from) in loops.strides.iter_mut().zip(&strides) {
                to[axis] = from[axis];
            }
        }
        loops
    }

    /// The rows of views that have all axes but the last in common: the inner loop runs over rows.
    pub fn of_rows(views: &[View; N]) -> Self {
        Self::new(&views.map(|view| View { rank: view.rank.saturating_sub(1), ..view }), usize::MAX)
    }

    /// How many times the inner loop runs.
    pub fn rows(&self) -> usize {
        self.dims[..self.rank].iter().product()
    }

    /// Calls `body` with the offsets of the first element of each row in a range.
    #[inline(always)]
    pub fn each(&self, from: usize, to: usize, mut body: impl FnMut([usize; N])) {
        let mut index = [0; MAX_RANK];
        let mut rest = from;
        for axis in (0..self.rank).rev() {
            index[axis] = rest % self.dims[axis];
            rest /= self.dims[axis];
        }
        let mut offsets: [usize; N] =
            std::array::from_fn(|i| (0..self.rank).map(|axis| index[axis] * self.strides[i][axis]).sum());
        for _ in from..to {
            body(offsets);
            for axis in (0..self.rank).rev() {
                index[axis] += 1;
                for (offset, row) in offsets.iter_mut().zip(&self.strides) {
                    *offset += row[axis];
                }
                if index[axis] < self.dims[axis] {
                    break;
                }
                for (offset, row) in offsets.iter_mut().zip(&self.strides) {
                    *offset -= self.dims[axis] * row[axis];
                }
                index[axis] = 0;
            }
        }
    }

    /// The offsets of each element in a range, counting in order over all axes.
    pub fn elements(&self, from: usize, to: usize) -> Elements<'_, N> {
        let mut elements = Elements { loops: self, index: [0; MAX_RANK], at: from % self.inner, left: to - from };
        let mut rest = from / self.inner;
        for axis in (0..self.rank).rev() {
            elements.index[axis] = rest % self.dims[axis];
            rest /= self.dims[axis];
        }
        elements
    }
}

/// Offsets of elements of views, one after another. An iterator and no callback: a closure that is not inlined would
/// lack the level's instructions.
pub struct Elements<'a, const N: usize> {
    loops: &'a Loops<N>,
    index: [usize; MAX_RANK],
    at: usize,
    left: usize,
}

impl<const N: usize> Iterator for Elements<'_, N> {
    type Item = [usize; N];

    #[inline(always)]
    fn next(&mut self) -> Option<[usize; N]> {
        if self.left == 0 {
            return None;
        }
        self.left -= 1;
        let loops = self.loops;
        let mut offsets = [0; N];
        for (i, offset) in offsets.iter_mut().enumerate() {
            *offset = self.at * loops.steps[i];
            for axis in 0..loops.rank {
                *offset += self.index[axis] * loops.strides[i][axis];
            }
        }
        self.at += 1;
        if self.at == loops.inner {
            self.at = 0;
            for axis in (0..loops.rank).rev() {
                self.index[axis] += 1;
                if self.index[axis] < loops.dims[axis] {
                    break;
                }
                self.index[axis] = 0;
            }
        }
        Some(offsets)
    }
}

/// Elements that are worth a task of their own.
pub const TASK: usize = 1 << 14;

/// How many rows of a length make a task.
pub fn rows_per_task(inner: usize) -> usize {
    (TASK / inner.max(1)).max(1)
}

/// A vector of elements a step apart, which may be 0.
///
/// # Safety
/// The CPU has the level of `S`; the first `n` elements can be read.
#[inline(always)]
pub unsafe fn load_step<S: crate::simd::Simd, E: crate::simd::Element>(p: *const E, step: usize, n: usize) -> S::V {
    unsafe {
        match step {
            1 if n == S::LANES => E::load::<S>(p),
            1 => E::load_n::<S>(p, n),
            0 => S::splat((*p).get()),
            _ => {
                let mut lanes = [0f32; 16];
                for (i, lane) in lanes.iter_mut().enumerate().take(n) {
                    *lane = (*p.add(i * step)).get();
                }
                S::load(lanes.as_ptr())
            }
        }
    }
}

/// Writes a vector to elements a step apart.
///
/// # Safety
/// The CPU has the level of `S`; the first `n` elements can be written.
#[inline(always)]
pub unsafe fn store_step<S: crate::simd::Simd, E: crate::simd::Element>(p: *mut E, v: S::V, step: usize, n: usize) {
    unsafe {
        match step {
            1 if n == S::LANES => E::store::<S>(p, v),
            1 => E::store_n::<S>(p, v, n),
            _ => {
                let mut lanes = [0f32; 16];
                S::store(lanes.as_mut_ptr(), v);
                for (i, &lane) in lanes.iter().enumerate().take(n) {
                    *p.add(i * step) = E::from(lane);
                }
            }
        }
    }
}
