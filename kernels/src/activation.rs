//! Activations of vectors, for epilogues and element-wise kernels.

use crate::dispatch;
use crate::schema::Activation;
use crate::simd::Simd;

/// An activation of one vector. The kind is the same for a whole kernel, so the branch costs nothing beside the
/// arithmetic.
///
/// # Safety
/// The CPU has the level of `S`.
#[inline(always)]
pub unsafe fn act<S: Simd>(kind: Activation, x: S::V) -> S::V {
    unsafe {
        match kind {
            Activation::None => x,
            Activation::Silu => silu::<S>(x),
            Activation::GeluTanh => gelu_tanh::<S>(x),
            Activation::GeluErf => gelu_erf::<S>(x),
            Activation::QuickGelu => quick_gelu::<S>(x),
            Activation::Relu => relu::<S>(x),
        }
    }
}

dispatch!(pub fn act_all(kind: Activation, x: *mut f32, n: usize) => act_all_on);

/// An activation of all of `n` values, whole vectors of them, in place.
#[inline(always)]
unsafe fn act_all_on<S: Simd>(kind: Activation, x: *mut f32, n: usize) {
    macro_rules! known {
        ($($kind:ident),*) => {
            match kind {
                Activation::None => {}
                $(Activation::$kind => {
                    for i in (0..n).step_by(S::LANES) {
                        S::store(x.add(i), act::<S>(Activation::$kind, S::load(x.add(i))));
                    }
                })*
            }
        };
    }
    unsafe { known!(Silu, GeluTanh, GeluErf, QuickGelu, Relu) }
}

/// x / (1 + e^-z): x times the sigmoid of z.
#[inline(always)]
unsafe fn gated<S: Simd>(x: S::V, minus_z: S::V) -> S::V {
    unsafe { S::div(x, S::add(S::splat(1.0), S::exp(minus_z))) }
}

/// 1 / (1 + e^-x).
///
/// # Safety
/// The CPU has the level of `S`.
#[inline(always)]
pub unsafe fn sigmoid<S: Simd>(x: S::V) -> S::V {
    unsafe { gated::<S>(S::splat(1.0), S::sub(S::splat(0.0), x)) }
}

/// x times its sigmoid.
///
/// # Safety
/// The CPU has the level of `S`.
#[inline(always)]
pub unsafe fn silu<S: Simd>(x: S::V) -> S::V {
    unsafe { gated::<S>(x, S::sub(S::splat(0.0), x)) }
}

/// The sigmoid's approximation of GELU.
///
/// # Safety
/// The CPU has the level of `S`.
#[inline(always)]
pub unsafe fn quick_gelu<S: Simd>(x: S::V) -> S::V {
    unsafe { gated::<S>(x, S::mul(S::splat(-1.702), x)) }
}

/// GELU by tanh. (1 + tanh u) / 2 is the sigmoid of 2u, which loses nothing by cancellation.
///
/// # Safety
/// The CPU has the level of `S`.
#[inline(always)]
pub unsafe fn gelu_tanh<S: Simd>(x: S::V) -> S::V {
    const C: f32 = -2.0 * 0.797_884_6; // -2 sqrt(2 / pi)
    unsafe {
        let cubic = S::fma(S::mul(x, x), S::splat(C * 0.044_715), S::splat(C));
        gated::<S>(x, S::mul(x, cubic))
    }
}

/// GELU by erf. x erf(x) is even, so that no sign has to be moved about.
///
/// # Safety
/// The CPU has the level of `S`.
#[inline(always)]
pub unsafe fn gelu_erf<S: Simd>(x: S::V) -> S::V {
    unsafe {
        let magnitude = S::max(S::sub(S::splat(0.0), x), x);
        let erf = erf_magnitude::<S>(S::mul(magnitude, S::splat(std::f32::consts::FRAC_1_SQRT_2)));
        let half = S::splat(0.5);
        S::fma(S::mul(half, magnitude), erf, S::mul(half, x))
    }
}

/// The larger of x and 0; NaN stays.
///
/// # Safety
/// The CPU has the level of `S`.
#[inline(always)]
pub unsafe fn relu<S: Simd>(x: S::V) -> S::V {
    // Of two operands of which one is NaN, `max` gives the second.
    unsafe { S::max(S::splat(0.0), x) }
}

/// erf of a vector of no negative values; NaN need not stay.
#[inline(always)]
unsafe fn erf_magnitude<S: Simd>(t: S::V) -> S::V {
    /// Below it a polynomial in t^2 serves, above it 1 - e^-p(t).
    const SEAM: f32 = 0.927_734_4;
    unsafe {
        let near = S::min(t, S::splat(SEAM));
        let s = S::mul(near, near);
        let mut p = S::splat(-5.967_617e-4);
        for c in [4.991_194e-3, -2.676_813_5e-2, 1.128_199_25e-1, -3.761_253_4e-1, 1.283_791_7e-1] {
            p = S::fma(p, s, S::splat(c));
        }
        let near = S::fma(p, near, near);
        // erf is 1 to the last bit from 4 on.
        let far = S::min(t, S::splat(8.0));
        let s = S::mul(far, far);
        let q = S::fma(S::splat(-1.728_534_7e-5), far, S::splat(3.831_971_3e-4));
        let r = S::fma(S::splat(-3.883_964_4e-3), far, S::splat(2.425_462_2e-2));
        let mut q = S::fma(q, s, r);
        for c in [-1.067_778_8e-1, -6.348_467e-1, -1.287_175_1e-1] {
            q = S::fma(q, far, S::splat(c));
        }
        let q = S::sub(S::mul(q, far), far);
        let far = S::sub(S::splat(1.0), S::exp(q));
        // 0 below the seam, 1 above; what lies between mixes two values that agree.
        let steep = S::mul(S::sub(t, S::splat(SEAM)), S::splat(1e8));
        let side = S::min(S::max(steep, S::splat(0.0)), S::splat(1.0));
        S::fma(side, S::sub(far, near), near)
    }
}

/// tanh x, within some units in the last place of 1.
///
/// # Safety
/// The CPU has the level of `S`.
#[inline(always)]
pub unsafe fn tanh<S: Simd>(x: S::V) -> S::V {
    unsafe {
        // 2 sigmoid(2x) - 1 is exact to rounding of 1 but not of x: near 0 take the series instead.
        let bounded = S::min(S::max(S::splat(-0.35), x), S::splat(0.35));
        let s = S::mul(bounded, bounded);
        let mut p = S::splat(-8.863_236e-3);
        for c in [2.186_948_8e-2, -5.396_825_4e-2, 1.333_333_4e-1, -3.333_333_4e-1] {
            p = S::fma(p, s, S::splat(c));
        }
        let near = S::fma(S::mul(p, s), bounded, bounded);
        let e = S::exp(S::mul(x, S::splat(-2.0)));
        let far = S::sub(S::div(S::splat(2.0), S::add(S::splat(1.0), e)), S::splat(1.0));
        let magnitude = S::max(S::sub(S::splat(0.0), x), x);
        let steep = S::mul(S::sub(magnitude, S::splat(0.35)), S::splat(1e8));
        let side = S::min(S::splat(1.0), S::max(S::splat(0.0), steep));
        S::fma(side, S::sub(far, near), near)
    }
}
