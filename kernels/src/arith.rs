//! How values are multiplied: in f32, whatever they are stored in, or by pairs of bf16 where the CPU has dot products.

use crate::simd::{Element, Simd};
use half::bf16;
use std::marker::PhantomData;

/// Units in a cell, a cache line of units.
pub const UNITS: usize = 16;
/// Bytes of a cell.
pub const CELL: usize = 64;

/// A unit is what one multiply-add takes of the left side: an element as f32, or a pair of bf16.
#[allow(clippy::missing_safety_doc)]
pub trait Arith: Copy + Send + Sync + 'static {
    /// The storage of activations.
    type E: Element;
    /// The storage of packed weights.
    type W: Element;
    /// Elements in a unit.
    const PAIR: usize;
    /// Fills a cell from `n` adjacent elements, at least one, and zeros; nothing beyond them is read.
    unsafe fn fill<S: Simd>(cell: *mut f32, x: *const Self::E, n: usize);
    /// One unit's weights of a vector of columns.
    unsafe fn weights<S: Simd>(w: *const Self::W) -> S::V;
    /// sum + unit * weights.
    unsafe fn madd<S: Simd>(sum: S::V, unit: S::V, weights: S::V) -> S::V;
}

/// Values widened to f32: the left side while it is copied, weights while they are read.
#[derive(Clone, Copy)]
pub struct Widen<E, W = E>(PhantomData<(E, W)>);

impl<E: Element, W: Element> Arith for Widen<E, W> {
    type E = E;
    type W = W;
    const PAIR: usize = 1;

    #[inline(always)]
    unsafe fn fill<S: Simd>(cell: *mut f32, x: *const E, n: usize) {
        unsafe {
            let mut i = 0;
            while i < UNITS {
                let v = if i + S::LANES <= n {
                    E::load::<S>(x.add(i))
                } else if i < n {
                    E::load_n::<S>(x.add(i), n - i)
                } else {
                    S::splat(0.0)
                };
                S::store(cell.add(i), v);
                i += S::LANES;
            }
        }
    }
    #[inline(always)]
    unsafe fn weights<S: Simd>(w: *const W) -> S::V {
        unsafe { W::load::<S>(w) }
    }
    #[inline(always)]
    unsafe fn madd<S: Simd>(sum: S::V, unit: S::V, weights: S::V) -> S::V {
        unsafe { S::fma(unit, weights, sum) }
    }
}

/// Pairs of bf16 for levels that have their dot product.
#[derive(Clone, Copy)]
pub struct Pairs;

impl Arith for Pairs {
    type E = bf16;
    type W = bf16;
    const PAIR: usize = 2;

    #[inline(always)]
    unsafe fn fill<S: Simd>(cell: *mut f32, x: *const bf16, n: usize) {
        unsafe {
            if n >= 2 * UNITS {
                std::ptr::copy_nonoverlapping(x as *const u8, cell as *mut u8, CELL);
            } else {
                std::ptr::write_bytes(cell as *mut u8, 0, CELL);
                std::ptr::copy_nonoverlapping(x as *const u8, cell as *mut u8, 2 * n);
            }
        }
    }
    #[inline(always)]
    unsafe fn weights<S: Simd>(w: *const bf16) -> S::V {
        unsafe { S::load(w as *const f32) }
    }
    #[inline(always)]
    unsafe fn madd<S: Simd>(sum: S::V, unit: S::V, weights: S::V) -> S::V {
        unsafe { S::dot_bf16(sum, unit, weights) }
    }
}
