//! Products of int8 weights and an input that is quantized to int8 on its way into the slab. Sums are exact, in i32.

use super::codes::Narrow;
use super::{CELL, Input, Product, UNITS};
use crate::simd::{Element, Simd};
use std::marker::PhantomData;

/// The most products in a sum that i32 holds: each is at most 2^14, and the last one must not reach 2^31.
pub const MOST_PRODUCTS: usize = (1 << 17) - 1;

/// What the codes of four channels in a unit are above their values, so that they are unsigned, as VNNI wants them.
pub const OFFSET: i32 = 128;

/// The code of a value of x before it is rounded: x / scale within i8. NaN becomes the largest.
#[inline(always)]
unsafe fn scaled<S: Simd, E: Element>(x: *const E, n: usize, inverse: S::V) -> S::V {
    unsafe {
        let x = if n >= S::LANES { E::load::<S>(x) } else { E::load_n::<S>(x, n) };
        S::max(S::min(S::mul(x, inverse), S::splat(127.0)), S::splat(-128.0))
    }
}

/// Pairs of channels as i16, for levels without VNNI.
#[derive(Clone, Copy)]
pub struct CodePairs<E>(PhantomData<E>);

impl<E: Element> Input for CodePairs<E> {
    type E = E;
    type By = Twos;

    #[inline(always)]
    unsafe fn fill<S: Narrow>(cell: *mut f32, x: *const E, n: usize, inverse: f32) {
        unsafe {
            let inverse = S::splat(inverse);
            for i in (0..UNITS * 2).step_by(S::LANES) {
                let v = scaled::<S, E>(x.wrapping_add(i), n.saturating_sub(i), inverse);
                S::store_i16((cell as *mut i16).add(i), v);
            }
        }
    }
}

/// Four channels as bytes, for levels that have VNNI.
#[derive(Clone, Copy)]
pub struct CodeFours<E>(PhantomData<E>);

impl<E: Element> Input for CodeFours<E> {
    type E = E;
    type By = Fours;
    const ZERO: u8 = OFFSET as u8;

    #[inline(always)]
    unsafe fn fill<S: Narrow>(cell: *mut f32, x: *const E, n: usize, inverse: f32) {
        unsafe {
            let inverse = S::splat(inverse);
            for i in (0..CELL).step_by(S::LANES) {
                let v = scaled::<S, E>(x.wrapping_add(i), n.saturating_sub(i), inverse);
                S::store_offset((cell as *mut u8).add(i), v);
            }
        }
    }
}

/// Products of pairs of i16.
#[derive(Clone, Copy)]
pub struct Twos;

impl Product for Twos {
    type W = i8;
    type Units = Twos;
    const CHANNELS: usize = 2;

    fn runs<S: Simd>() -> bool {
        !S::VNNI
    }
    #[inline(always)]
    unsafe fn unit(w: *const i8, filter: usize) -> f32 {
        let [low, high] = [0, 1].map(|i| unsafe { *w.add(2 * filter + i) } as i16 as u16 as u32);
        f32::from_bits(low | high << 16)
    }
    #[inline(always)]
    unsafe fn weights<S: Narrow>(w: *const i8) -> S::V {
        unsafe { S::load_pairs(w) }
    }
    #[inline(always)]
    unsafe fn madd<S: Narrow>(sum: S::V, unit: S::V, weights: S::V) -> S::V {
        unsafe { S::dot_i16(sum, unit, weights) }
    }
    #[inline(always)]
    unsafe fn across<S: Narrow>(sum: S::V) -> f32 {
        unsafe { across::<S>(sum) }
    }
}

/// Products of fours of bytes.
#[derive(Clone, Copy)]
pub struct Fours;

impl Product for Fours {
    type W = i8;
    type Units = Fours;
    const CHANNELS: usize = 4;

    fn runs<S: Simd>() -> bool {
        S::VNNI
    }
    #[inline(always)]
    unsafe fn unit(w: *const i8, filter: usize) -> f32 {
        unsafe { (w as *const f32).add(filter).read_unaligned() }
    }
    #[inline(always)]
    unsafe fn weights<S: Narrow>(w: *const i8) -> S::V {
        unsafe { S::load(w as *const f32) }
    }
    #[inline(always)]
    unsafe fn madd<S: Narrow>(sum: S::V, unit: S::V, weights: S::V) -> S::V {
        unsafe { S::dot_u8_i8(sum, unit, weights) }
    }
    #[inline(always)]
    unsafe fn across<S: Narrow>(sum: S::V) -> f32 {
        unsafe { across::<S>(sum) }
    }
}

#[inline(always)]
unsafe fn across<S: Narrow>(sum: S::V) -> f32 {
    f32::from_bits(unsafe { S::sum_i32(sum) } as u32)
}
