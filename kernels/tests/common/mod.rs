//! The one checker of kernels: every level against the plain reference, guard bytes around every buffer and in every
//! gap between rows.
#![allow(dead_code)]

use denoise::cuda::{Cuda, Memory};
use denoise::error::Result;
use denoise::level::Level as CpuLevel;
use denoise::ops::{self, Args, Cx};
use denoise::pool::Pool;
use denoise::schema::{DType, Op};
use denoise::view::{MAX_RANK, View};
use std::sync::atomic::{AtomicUsize, Ordering};

/// What kernels run on: a level of the CPU, or the CUDA library, emulated.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Level {
    /// A level of the CPU.
    Cpu(CpuLevel),
    /// The library that `deno task build:cuda-emulated` makes.
    CudaEmulated,
}

#[allow(non_upper_case_globals)]
impl Level {
    /// The plain code.
    pub const Reference: Level = Level::Cpu(CpuLevel::Reference);
    /// The fast kernels in portable Rust.
    pub const Portable: Level = Level::Cpu(CpuLevel::Portable);

    /// The name that messages use.
    pub fn name(self) -> &'static str {
        match self {
            Level::Cpu(level) => level.name(),
            Level::CudaEmulated => "cuda-emulated",
        }
    }

    /// The highest level that this CPU has.
    pub fn best() -> Level {
        Level::Cpu(CpuLevel::best())
    }
}

/// The emulated library, unless another is named.
pub fn cuda_library() -> std::path::PathBuf {
    std::env::var_os("DENOISE_CUDA_LIBRARY").map_or_else(
        || std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("cuda/build/emulated/libdenoise_cuda_emulated.so"),
        Into::into,
    )
}

thread_local! {
    // One for each test, so that none sees what another's data made a kernel complain of.
    static CUDA: std::sync::Arc<Cuda> = Cuda::open(&cuda_library(), 0).unwrap();
}

const GUARD: usize = 256;
/// A NaN in every float type, so that a value read from outside a buffer shows in the result.
const FILL: u8 = 0xff;

/// A small deterministic generator (SplitMix64).
pub struct Rng(pub u64);

impl Rng {
    /// The next 64 bits.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    /// Uniform in [-1, 1).
    pub fn uniform(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }
    /// Uniform in 0..n.
    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
}

/// A tensor in memory of its own, with guards before, after and in gaps.
#[derive(Clone)]
pub struct Tensor {
    memory: Vec<u64>,
    bytes: usize,
    /// The view's dtype.
    pub dtype: DType,
    /// The shape.
    pub shape: Vec<usize>,
    /// The strides in elements.
    pub strides: Vec<usize>,
}

impl Tensor {
    /// A tensor of unset elements with the given strides.
    pub fn with_strides(dtype: DType, shape: &[usize], strides: &[usize]) -> Self {
        let empty = shape.contains(&0);
        let reach = shape.iter().zip(strides).map(|(&n, &s)| n.saturating_sub(1) * s).sum::<usize>();
        let bytes = if empty { 0 } else { (reach + 1) * dtype.size() };
        let memory = vec![u64::from_ne_bytes([FILL; 8]); (bytes + 2 * GUARD).div_ceil(8)];
        Self { memory, bytes, dtype, shape: shape.to_vec(), strides: strides.to_vec() }
    }
    /// A dense tensor of unset elements.
    pub fn empty(dtype: DType, shape: &[usize]) -> Self {
        Self::padded(dtype, shape, 0)
    }
    /// Unset elements, dense but for a gap of `gap` elements after each row of the last axis.
    pub fn padded(dtype: DType, shape: &[usize], gap: usize) -> Self {
        let mut strides = vec![1; shape.len()];
        let mut step = 1;
        for axis in (0..shape.len()).rev() {
            strides[axis] = step;
            step *= shape[axis];
            if axis + 1 == shape.len() {
                step += gap;
            }
        }
        Self::with_strides(dtype, shape, &strides)
    }
    /// Fills with values of a function of the element's index.
    pub fn fill(mut self, mut value: impl FnMut(usize) -> f32) -> Self {
        let view = self.view();
        for i in 0..view.len() {
            unsafe { view.set(view.offset(i), value(i)) };
        }
        self
    }
    /// Fills with values uniform in [-scale, scale).
    pub fn random(self, rng: &mut Rng, scale: f32) -> Self {
        self.fill(|_| rng.uniform() * scale)
    }
    /// The view that kernels take.
    pub fn view(&mut self) -> View {
        let mut view = View {
            ptr: unsafe { (self.memory.as_mut_ptr() as *mut u8).add(GUARD) },
            dtype: self.dtype,
            rank: self.shape.len(),
            dims: [1; MAX_RANK],
            strides: [0; MAX_RANK],
        };
        view.dims[..self.shape.len()].copy_from_slice(&self.shape);
        view.strides[..self.shape.len()].copy_from_slice(&self.strides);
        view
    }
    /// The values, widened, in order.
    pub fn values(&self) -> Vec<f64> {
        let view = self.clone_view();
        (0..view.len()).map(|i| unsafe { view.get(view.offset(i)) } as f64).collect()
    }
    fn clone_view(&self) -> View {
        let mut view = View::contiguous(std::ptr::null_mut(), self.dtype, &self.shape);
        view.strides[..self.shape.len()].copy_from_slice(&self.strides);
        view.ptr = unsafe { (self.memory.as_ptr() as *mut u8).add(GUARD) };
        view
    }
    /// Fails unless every byte that no element covers is as it was.
    pub fn check_guards(&self, what: &str) {
        let bytes: &[u8] =
            unsafe { std::slice::from_raw_parts(self.memory.as_ptr() as *const u8, self.memory.len() * 8) };
        let mut covered = vec![false; bytes.len()];
        let view = self.clone_view();
        let size = self.dtype.size();
        for i in 0..view.len() {
            let at = GUARD + view.offset(i) * size;
            covered[at..at + size].fill(true);
        }
        for (at, (&byte, &covered)) in bytes.iter().zip(&covered).enumerate() {
            assert!(
                covered || byte == FILL,
                "{what} wrote outside its result, at byte {}",
                at as isize - GUARD as isize
            );
        }
    }
}

/// The sum of squared differences over the sum of squares.
pub fn normalized_error(got: &[f64], want: &[f64]) -> f64 {
    let difference: f64 = got.iter().zip(want).map(|(g, w)| (g - w) * (g - w)).sum();
    let power: f64 = want.iter().map(|w| w * w).sum();
    if difference == 0.0 { 0.0 } else { difference / power.max(1e-30) }
}

/// The bound on the normalized squared error for a result of this dtype.
pub fn bound(dtype: DType) -> f64 {
    match dtype {
        DType::F32 => 1e-10,
        DType::F16 => 1e-6,
        DType::BF16 => 1e-5,
        _ => 0.0,
    }
}

/// Runs one instruction at a level into `out`, guards checked.
pub fn run(level: Level, pool: &Pool, op: Op, inputs: &mut [Option<Tensor>], out: &mut Tensor, params: &[u32]) {
    let mut views: Vec<Option<View>> = inputs.iter_mut().map(|t| t.as_mut().map(Tensor::view)).collect();
    views.push(Some(out.view()));
    let args = Args { operands: &views, params };
    (ops::kernel(op).check)(&args).unwrap_or_else(|e| panic!("{op:?} refuses its operands: {e}"));
    let ran = match level {
        Level::Cpu(_) => run_views(level, pool, op, &args),
        Level::CudaEmulated => run_in_device_memory(op, inputs, out, params),
    };
    ran.unwrap_or_else(|e| panic!("{op:?} on {}: {e}", level.name()));
    out.check_guards(&format!("{op:?} on {}", level.name()));
}

/// Runs one instruction at a level over views of the host's memory, which an emulated device can read, too.
pub fn run_views(level: Level, pool: &Pool, op: Op, args: &Args) -> Result<()> {
    match level {
        Level::Cpu(level) => ops::run(op, &Cx { level, pool }, args),
        Level::CudaEmulated => CUDA.with(|cuda| {
            cuda.queue(op, args.operands, args.params)?;
            cuda.synchronize()
        }),
    }
}

/// The ways that the emulated device names for an instruction over memory of its own, which is not touched.
pub fn cuda_ways(op: Op, inputs: &[Option<Tensor>], out: &Tensor, params: &[u32]) -> Vec<String> {
    // As far aligned as a device's memory is.
    let aligned = |tensor: &Tensor| View { ptr: (1usize << 12) as *mut u8, ..tensor.clone().view() };
    let operands: Vec<_> = inputs.iter().map(Option::as_ref).chain([Some(out)]).map(|t| t.map(aligned)).collect();
    CUDA.with(|cuda| cuda.ways(op, &operands, params)).unwrap()
}

/// Runs one instruction over copies in the device's memory, guards and all.
fn run_in_device_memory(op: Op, inputs: &[Option<Tensor>], out: &mut Tensor, params: &[u32]) -> Result<()> {
    fn bytes(memory: &mut [u64]) -> &mut [u8] {
        unsafe { std::slice::from_raw_parts_mut(memory.as_mut_ptr() as *mut u8, memory.len() * 8) }
    }
    CUDA.with(|cuda| {
        let copy = |tensor: &mut Tensor| -> Result<(Memory, View)> {
            let memory = Memory::new(cuda, tensor.memory.len() * 8)?;
            memory.write(0, bytes(&mut tensor.memory))?;
            let view = View { ptr: memory.ptr().wrapping_add(GUARD), ..tensor.view() };
            Ok((memory, view))
        };
        let copies = inputs.iter().map(|input| input.clone().as_mut().map(copy).transpose());
        let copies = copies.collect::<Result<Vec<_>>>()?;
        let (memory, view) = copy(out)?;
        let mut operands: Vec<Option<View>> = copies.iter().map(|copy| copy.as_ref().map(|(_, view)| *view)).collect();
        operands.push(Some(view));
        cuda.queue(op, &operands, params)?;
        cuda.synchronize()?;
        memory.read(0, bytes(&mut out.memory))
    })
}

/// The levels to compare with the reference: what this CPU runs and the emulated CUDA library, or those named in
/// `DENOISE_TEST_LEVELS`; what is lacking is named.
pub fn levels() -> Vec<Level> {
    let wanted = std::env::var("DENOISE_TEST_LEVELS").ok();
    let wanted = |name: &str| wanted.as_ref().is_none_or(|names| names.split(',').any(|n| n == name));
    let mut have = Vec::new();
    for level in CpuLevel::ALL.into_iter().filter(|&l| l != CpuLevel::Reference && wanted(l.name())) {
        if level.supported() {
            have.push(Level::Cpu(level));
        } else {
            eprintln!("skipped: this CPU lacks {}", level.name());
        }
    }
    if wanted(Level::CudaEmulated.name()) {
        if cuda_library().exists() {
            have.push(Level::CudaEmulated);
        } else {
            eprintln!("skipped: there is no {}: run `deno task build:cuda-emulated`", cuda_library().display());
        }
    }
    have
}

/// Whether the next case is compared: each is, or only every so manyth where `DENOISE_TEST_EVERY` says so, for sanitizers
/// make the large ones slow.
fn is_compared() -> bool {
    static CASES: AtomicUsize = AtomicUsize::new(0);
    let every = std::env::var("DENOISE_TEST_EVERY").ok().and_then(|n| n.parse().ok()).unwrap_or(1);
    CASES.fetch_add(1, Ordering::Relaxed).is_multiple_of(every)
}

/// Runs one instruction on every level with 1 and 3 threads and compares with the reference. Weights that are packed
/// by level are made by `prepare(level)`, which gives all inputs.
pub fn conform_with(
    what: &str,
    op: Op,
    mut prepare: impl FnMut(Level, &Pool) -> Vec<Option<Tensor>>,
    out: &Tensor,
    params: &[u32],
) {
    if !is_compared() {
        return;
    }
    let one = Pool::new(1).unwrap();
    let mut want = out.clone();
    run(Level::Reference, &one, op, &mut prepare(Level::Reference, &one), &mut want, params);
    let want_values = want.values();
    assert!(want_values.iter().all(|v| v.is_finite()), "{what}: the reference is not finite");
    for threads in [1, 3] {
        let pool = Pool::new(threads).unwrap();
        // A device has no use for the pool's threads.
        for level in levels().into_iter().filter(|&level| threads == 1 || level != Level::CudaEmulated) {
            let mut got = out.clone();
            run(level, &pool, op, &mut prepare(level, &pool), &mut got, params);
            let error = normalized_error(&got.values(), &want_values);
            assert!(
                error <= bound(out.dtype),
                "{what}: {op:?} on {} with {threads} threads: error {error:.3e} above {:.0e}",
                level.name(),
                bound(out.dtype)
            );
        }
    }
}

/// `conform_with` for inputs that are the same on every level.
pub fn conform(what: &str, op: Op, inputs: &[Option<Tensor>], out: &Tensor, params: &[u32]) {
    conform_with(what, op, |_, _| inputs.to_vec(), out, params);
}
