//! GB/s of the kernels that memory bounds, beside a memcpy's of the same bytes, measured in the same run:
//! `cargo run --release --example elementwise_bench [THREADS [LEVEL]]`.

use denoise::level::Level;
use denoise::ops::{self, Args, Cx};
use denoise::pool::Pool;
use denoise::schema::{DType, Op};
use denoise::view::{MAX_RANK, View};
use std::time::Instant;

/// Memory that a view can point into.
struct Memory(Vec<u32>);

impl Memory {
    /// Small numbers: 1 to 2 as f32.
    fn new(bytes: usize) -> Self {
        Self((0..bytes.div_ceil(4)).map(|i| 0x3f80_0000 | (i as u32).wrapping_mul(0x9e37_79b9) >> 9).collect())
    }
    fn view(&mut self, shape: &[usize], strides: Option<&[usize]>) -> View {
        let mut view = View::contiguous(self.0.as_mut_ptr() as *mut u8, DType::F32, shape);
        if let Some(strides) = strides {
            view.strides = [0; MAX_RANK];
            view.strides[..strides.len()].copy_from_slice(strides);
        }
        view
    }
}

/// Seconds of one call in the fastest of some batches.
fn fastest(bytes: usize, mut f: impl FnMut()) -> f64 {
    let calls = (8_000_000 / bytes.max(1)).clamp(1, 2000);
    let batch = |f: &mut dyn FnMut()| {
        let start = Instant::now();
        (0..calls).for_each(|_| f());
        start.elapsed().as_secs_f64() / calls as f64
    };
    f();
    (0..9).map(|_| batch(&mut f)).fold(f64::INFINITY, f64::min)
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let threads = args.first().map_or(2, |t| t.parse().expect("THREADS is a number"));
    let level = Level::named(args.get(1).map_or("", |l| l)).expect("LEVEL is one that this CPU has");
    let pool = Pool::new(threads).expect("threads");
    let cx = Cx { level, pool: &pool };
    let (f, none) = (|x: f32| x.to_bits(), &[][..]);
    println!("{} threads, {}; GB/s count each operand once", threads, level.name());
    println!("{:34} {:>10} {:>8} {:>8}", "", "us", "GB/s", "memcpy");

    // Name, kernel, inputs (shape, strides), the result's shape, parameters.
    type Case<'a> = (&'a str, Op, Vec<Option<(Vec<usize>, Option<Vec<usize>>)>>, Vec<usize>, Vec<u32>);
    let dense = |shape: &[usize]| Some((shape.to_vec(), None));
    let strided = |shape: &[usize], strides: &[usize]| Some((shape.to_vec(), Some(strides.to_vec())));
    let big = [1, 1024, 24, 128];
    let picture = [1, 256, 256, 128];
    let cases: Vec<Case> = vec![
        ("copy, small", Op::Copy, vec![dense(&[1000])], vec![1000], none.to_vec()),
        ("copy, dense", Op::Copy, vec![dense(&big)], big.to_vec(), none.to_vec()),
        (
            "copy, (B,H,S,D) from (B,S,H,D)",
            Op::Copy,
            vec![strided(&[1, 24, 1024, 128], &[0, 128, 3072, 1])],
            vec![1, 24, 1024, 128],
            none.to_vec(),
        ),
        (
            "copy, NHWC from NCHW, 128",
            Op::Copy,
            vec![strided(&picture, &[0, 256, 1, 65536])],
            picture.to_vec(),
            none.to_vec(),
        ),
        (
            "copy, NCHW from NHWC, 128",
            Op::Copy,
            vec![strided(&[1, 128, 256, 256], &[0, 1, 32768, 128])],
            vec![1, 128, 256, 256],
            none.to_vec(),
        ),
        (
            "copy, NHWC from NCHW, 16 of 128",
            Op::Copy,
            vec![strided(&[1, 128, 128, 16], &[0, 128, 1, 16384])],
            vec![1, 128, 128, 16],
            none.to_vec(),
        ),
        ("copy, transpose 3072", Op::Copy, vec![strided(&[3072, 3072], &[1, 3072])], vec![3072, 3072], none.to_vec()),
        ("unary affine", Op::Unary, vec![dense(&big)], big.to_vec(), vec![0, f(2.0), f(1.0)]),
        ("unary silu", Op::Unary, vec![dense(&big)], big.to_vec(), vec![1, 0, 0]),
        ("unary gelu_tanh", Op::Unary, vec![dense(&big)], big.to_vec(), vec![2, 0, 0]),
        ("binary add, small", Op::Binary, vec![dense(&[1000]), dense(&[1000])], vec![1000], vec![0]),
        ("binary add", Op::Binary, vec![dense(&big), dense(&big)], big.to_vec(), vec![0]),
        ("binary max", Op::Binary, vec![dense(&big), dense(&big)], big.to_vec(), vec![4]),
        (
            "binary mul, row broadcast",
            Op::Binary,
            vec![dense(&[1024, 3072]), strided(&[1024, 3072], &[0, 1])],
            vec![1024, 3072],
            vec![2],
        ),
        ("reduce mean", Op::Reduce, vec![dense(&[1024, 3072])], vec![1024], vec![1]),
        ("softmax", Op::Softmax, vec![dense(&[1024, 1024])], vec![1024, 1024], none.to_vec()),
        (
            "layer_norm, modulated",
            Op::LayerNorm,
            vec![dense(&[1024, 3072]), None, None, strided(&[1024, 3072], &[0, 1]), strided(&[1024, 3072], &[0, 1])],
            vec![1024, 3072],
            vec![f(1e-6), 0],
        ),
        (
            "layer_norm, modulated, small",
            Op::LayerNorm,
            vec![dense(&[64, 256]), None, None, strided(&[64, 256], &[0, 1]), strided(&[64, 256], &[0, 1])],
            vec![64, 256],
            vec![f(1e-6), 0],
        ),
        ("rms_norm", Op::RmsNorm, vec![dense(&[1024, 3072]), dense(&[3072])], vec![1024, 3072], vec![f(1e-6), 0]),
        ("rope", Op::Rope, vec![dense(&big), dense(&[1024, 128]), dense(&[1024, 128])], big.to_vec(), none.to_vec()),
        (
            "rms_norm_rope",
            Op::RmsNormRope,
            vec![dense(&big), dense(&[128]), dense(&[1024, 128]), dense(&[1024, 128])],
            big.to_vec(),
            vec![f(1e-6)],
        ),
        (
            "rms_norm_rope, small",
            Op::RmsNormRope,
            vec![strided(&[1, 64, 4, 64], &[0, 768, 64, 1]), dense(&[64]), dense(&[64, 64]), dense(&[64, 64])],
            vec![1, 64, 4, 64],
            vec![f(1e-6)],
        ),
        (
            "group_norm, silu",
            Op::GroupNorm,
            vec![dense(&picture), dense(&[128]), dense(&[128])],
            picture.to_vec(),
            vec![32, f(1e-6), 1],
        ),
        (
            "group_norm",
            Op::GroupNorm,
            vec![dense(&picture), dense(&[128]), dense(&[128])],
            picture.to_vec(),
            vec![32, f(1e-6), 0],
        ),
        ("upsample by 2", Op::UpsampleNearest, vec![dense(&[1, 128, 128, 128])], picture.to_vec(), vec![2]),
    ];
    for (name, op, inputs, shape, params) in cases {
        let reach = |(shape, strides): &(Vec<usize>, Option<Vec<usize>>)| match strides {
            None => shape.iter().product::<usize>(),
            Some(strides) => shape.iter().zip(strides).map(|(n, s)| (n - 1) * s).sum::<usize>() + 1,
        };
        let mut memory: Vec<_> = inputs.iter().map(|i| i.as_ref().map(|i| Memory::new(4 * reach(i)))).collect();
        let mut result = Memory::new(4 * shape.iter().product::<usize>());
        let bytes: usize = memory.iter().flatten().chain([&result]).map(|m| m.0.len() * 4).sum();
        let mut views: Vec<Option<View>> = (memory.iter_mut().zip(&inputs))
            .map(|(m, i)| m.as_mut().zip(i.as_ref()).map(|(m, (shape, strides))| m.view(shape, strides.as_deref())))
            .collect();
        views.push(Some(result.view(&shape, None)));
        let args = Args { operands: &views, params: &params };
        (ops::kernel(op).check)(&args).expect("the kernel takes its operands");
        // As many bytes read and written by the same threads.
        let (from, mut to) = (vec![1u8; bytes / 2], vec![0u8; bytes / 2]);
        let (source, target) = (from.as_ptr() as usize, to.as_mut_ptr() as usize);
        let part = (bytes / 2).div_ceil(if bytes > 1 << 17 { 4 * threads } else { 1 });
        let copy = || {
            let task = |i: usize, _: usize| unsafe {
                let n = part.min((bytes / 2).saturating_sub(i * part));
                std::ptr::copy_nonoverlapping((source + i * part) as *const u8, (target + i * part) as *mut u8, n);
            };
            pool.run((bytes / 2).div_ceil(part), &task).expect("a copy");
        };
        let memcpy = fastest(bytes, copy);
        let seconds = fastest(bytes, || ops::run(op, &cx, &args).expect("a run"));
        let rate = |s: f64| bytes as f64 / s / 1e9;
        println!("{name:34} {:10.2} {:8.1} {:8.1}", seconds * 1e6, rate(seconds), rate(memcpy));
    }
}
