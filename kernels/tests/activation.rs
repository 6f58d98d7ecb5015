//! Activations of vectors against their definitions.

use denoise::activation::{act_all, tanh};
use denoise::dispatch;
use denoise::level::Level;
use denoise::ops::activate;
use denoise::schema::Activation;
use denoise::simd::Simd;

#[inline(always)]
unsafe fn tanh_all_on<S: Simd>(x: *mut f32, n: usize) {
    unsafe {
        for i in (0..n).step_by(S::LANES) {
            S::store(x.add(i), tanh::<S>(S::load(x.add(i))));
        }
    }
}
dispatch!(fn tanh_all(x: *mut f32, n: usize) => tanh_all_on);

fn levels() -> impl Iterator<Item = Level> {
    Level::ALL.into_iter().filter(|&l| l != Level::Reference && l.supported())
}

#[test]
fn close_to_the_definition() {
    let xs: Vec<f32> = (-160_000..160_000).map(|i| i as f32 * 1e-4 + 3e-5).collect();
    for level in levels() {
        for code in 0.. {
            let Some(kind) = Activation::from_code(code) else { break };
            let mut ys = xs.clone();
            unsafe { act_all(level, kind, ys.as_mut_ptr(), ys.len()) };
            for (&x, &y) in xs.iter().zip(&ys) {
                let want = activate(kind, x as f64);
                let error = (y as f64 - want).abs();
                assert!(error <= 4e-7 * (x as f64).abs(), "{kind:?}({x}) on {}: {y}, not {want}", level.name());
            }
        }
        let mut ys = xs.clone();
        unsafe { tanh_all(level, ys.as_mut_ptr(), ys.len()) };
        for (&x, &y) in xs.iter().zip(&ys) {
            let want = (x as f64).tanh();
            assert!((y as f64 - want).abs() <= 1e-6 * want.abs(), "tanh({x}) on {}: {y}, not {want}", level.name());
        }
    }
}

#[test]
fn extremes() {
    for level in levels() {
        for code in 0.. {
            let Some(kind) = Activation::from_code(code) else { break };
            let mut xs = [f32::NAN; 16];
            unsafe { act_all(level, kind, xs.as_mut_ptr(), 16) };
            assert!(xs.iter().all(|x| x.is_nan()), "{kind:?}(NaN) on {}: {xs:?}", level.name());
            for x in [1e4, f32::MAX, f32::INFINITY] {
                let mut xs = [x; 16];
                unsafe { act_all(level, kind, xs.as_mut_ptr(), 16) };
                assert!(xs.iter().all(|&y| y == x), "{kind:?}({x}) on {}: {xs:?}", level.name());
            }
            if kind != Activation::None {
                let mut xs = [-1e4; 16];
                unsafe { act_all(level, kind, xs.as_mut_ptr(), 16) };
                assert!(xs.iter().all(|&y| y == 0.0), "{kind:?}(-1e4) on {}: {xs:?}", level.name());
            }
        }
    }
}
