//! Strided views of memory: the operands of every kernel.

use crate::schema::DType;
pub use crate::schema::MAX_RANK;

/// A strided view. While a program is being checked `ptr` is null; when a kernel runs, every element that dims and
/// strides can reach lies inside its buffer (the loader has checked that).
#[derive(Clone, Copy, Debug)]
pub struct View {
    /// The first element.
    pub ptr: *mut u8,
    /// The element type.
    pub dtype: DType,
    /// How many of `dims` count.
    pub rank: usize,
    /// Sizes, outermost first; 1 beyond `rank`.
    pub dims: [usize; MAX_RANK],
    /// Distances in elements, 0 where a dimension is broadcast.
    pub strides: [usize; MAX_RANK],
}

// Kernels hand views to the pool's threads; what they may touch is decided by the program, which was checked.
unsafe impl Send for View {}
unsafe impl Sync for View {}

impl View {
    /// A dense view, for tests and scratch memory.
    pub fn contiguous(ptr: *mut u8, dtype: DType, shape: &[usize]) -> Self {
        let mut dims = [1; MAX_RANK];
        let mut strides = [0; MAX_RANK];
        let mut step = 1;
        for (axis, &size) in shape.iter().enumerate().rev() {
            dims[axis] = size;
            strides[axis] = step;
            step *= size;
        }
        Self { ptr, dtype, rank: shape.len(), dims, strides }
    }

    /// The dimensions.
    pub fn shape(&self) -> &[usize] {
        &self.dims[..self.rank]
    }

    /// How many elements there are.
    pub fn len(&self) -> usize {
        self.shape().iter().product()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The size of the last dimension, 1 for a scalar.
    pub fn last(&self) -> usize {
        if self.rank == 0 { 1 } else { self.dims[self.rank - 1] }
    }

    /// Whether the elements of the last dimension are adjacent.
    pub fn inner_dense(&self) -> bool {
        self.rank == 0 || self.last() <= 1 || self.strides[self.rank - 1] == 1
    }

    /// Whether the elements lie one after another in order.
    pub fn is_contiguous(&self) -> bool {
        let mut step = 1;
        for axis in (0..self.rank).rev() {
            if self.dims[axis] != 1 && self.strides[axis] != step {
                return false;
            }
            step *= self.dims[axis];
        }
        true
    }

    /// The distance between rows when all dimensions but the last fold into one of equal steps; `None` where they
    /// do not. A single row has distance 0.
    pub fn row_stride(&self) -> Option<usize> {
        let mut stride = 0;
        let mut span = 1;
        for axis in (0..self.rank.saturating_sub(1)).rev() {
            let (size, step) = (self.dims[axis], self.strides[axis]);
            if size == 1 {
                continue;
            }
            if span == 1 {
                stride = step;
            } else if step != stride * span {
                return None;
            }
            span *= size;
        }
        Some(stride)
    }

    /// How many rows of the last dimension there are.
    pub fn rows(&self) -> usize {
        if self.rank == 0 { 1 } else { self.dims[..self.rank - 1].iter().product() }
    }

    /// The offset in elements of the row with this index, counting in order over all dimensions but the last.
    pub fn row_offset(&self, mut row: usize) -> usize {
        let mut offset = 0;
        for axis in (0..self.rank.saturating_sub(1)).rev() {
            let size = self.dims[axis];
            offset += (row % size) * self.strides[axis];
            row /= size;
        }
        offset
    }

    /// The offset in elements of the element with this index, counting in order over all dimensions.
    pub fn offset(&self, mut index: usize) -> usize {
        let mut offset = 0;
        for axis in (0..self.rank).rev() {
            let size = self.dims[axis];
            offset += (index % size) * self.strides[axis];
            index /= size;
        }
        offset
    }

    /// The address of the element at an offset.
    ///
    /// # Safety
    /// The offset must be one that dims and strides reach.
    pub unsafe fn at<T>(&self, offset: usize) -> *mut T {
        unsafe { (self.ptr as *mut T).add(offset) }
    }

    /// Reads a float element at an offset, widened.
    ///
    /// # Safety
    /// As `at`; the dtype must be a float or an integer of at most 32 bits.
    pub unsafe fn get(&self, offset: usize) -> f32 {
        unsafe {
            match self.dtype {
                DType::F32 => *self.at::<f32>(offset),
                DType::BF16 => (*self.at::<half::bf16>(offset)).to_f32(),
                DType::F16 => (*self.at::<half::f16>(offset)).to_f32(),
                DType::I32 => *self.at::<i32>(offset) as f32,
                DType::U8 => *self.at::<u8>(offset) as f32,
                DType::I8 => *self.at::<i8>(offset) as f32,
            }
        }
    }

    /// Writes a float element at an offset, rounded to nearest even; integers saturate.
    ///
    /// # Safety
    /// As `get`.
    pub unsafe fn set(&self, offset: usize, value: f32) {
        unsafe {
            match self.dtype {
                DType::F32 => *self.at::<f32>(offset) = value,
                DType::BF16 => *self.at::<half::bf16>(offset) = half::bf16::from_f32(value),
                DType::F16 => *self.at::<half::f16>(offset) = half::f16::from_f32(value),
                DType::I32 => *self.at::<i32>(offset) = value.round_ties_even() as i32,
                DType::U8 => *self.at::<u8>(offset) = value.round_ties_even() as u8,
                DType::I8 => *self.at::<i8>(offset) = value.round_ties_even() as i8,
            }
        }
    }

    /// A view without its first axis, at one index of it.
    pub fn index(&self, i: usize) -> Self {
        let mut view = *self;
        view.ptr = view.ptr.wrapping_add(i * self.strides[0] * self.dtype.size());
        view.rank -= 1;
        view.dims.copy_within(1.., 0);
        view.strides.copy_within(1.., 0);
        view.dims[MAX_RANK - 1] = 1;
        view.strides[MAX_RANK - 1] = 0;
        view
    }

    /// A view with another axis, of one element, before axis `axis`; of fewer than `MAX_RANK` before.
    pub fn insert(&self, axis: usize) -> Self {
        let mut view = *self;
        view.rank += 1;
        view.dims.copy_within(axis..MAX_RANK - 1, axis + 1);
        view.strides.copy_within(axis..MAX_RANK - 1, axis + 1);
        (view.dims[axis], view.strides[axis]) = (1, 0);
        view
    }

    /// The view broadcast to a shape (numpy's rule), or `None` where it does not fit.
    pub fn broadcast(&self, shape: &[usize]) -> Option<Self> {
        if self.rank > shape.len() {
            return None;
        }
        let lead = shape.len() - self.rank;
        let mut view = Self { rank: shape.len(), dims: [1; MAX_RANK], strides: [0; MAX_RANK], ..*self };
        for (axis, &size) in shape.iter().enumerate() {
            view.dims[axis] = size;
            if axis >= lead {
                let from = axis - lead;
                if self.dims[from] == size {
                    view.strides[axis] = self.strides[from];
                } else if self.dims[from] != 1 {
                    return None;
                }
            }
        }
        Some(view)
    }
}
