//! The one checker of kernels: every level against the plain reference, guard bytes around every buffer and in every
//! gap between rows.
#![allow(dead_code)]

use denoise::cuda::{Cuda, Memory};
use denoise::error::Result;
use denoise::level::Level as CpuLevel;
use denoise::ops::{self, Args, Cx};
use denoise::pool::Pool;
use denoise::schema::{Activation, DType, Op, SPECS};
use denoise::view::{MAX_RANK, View};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

/// All activations that an epilogue may have.
pub const ACTIVATIONS: [Activation; 6] = [
    Activation::None,
    Activation::Silu,
    Activation::GeluTanh,
    Activation::GeluErf,
    Activation::QuickGelu,
    Activation::Relu,
];

/// What kernels run on: a level of the CPU, or the CUDA library, emulated or on a device.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Level {
    /// A level of the CPU.
    Cpu(CpuLevel),
    /// The library that `deno task build:cuda-emulated` makes.
    CudaEmulated,
    /// A device, by the library that `deno task build:cuda` makes.
    Cuda,
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
            Level::Cuda => "cuda",
        }
    }

    /// Whether its kernels are those of the CUDA library.
    pub fn is_cuda(self) -> bool {
        !matches!(self, Level::Cpu(_))
    }

    /// The highest level that this CPU has.
    pub fn best() -> Level {
        Level::Cpu(CpuLevel::best())
    }
}

/// The library of a level, unless another is named.
fn library(level: Level) -> std::path::PathBuf {
    let built = if level == Level::Cuda { "libdenoise_cuda.so" } else { "emulated/libdenoise_cuda_emulated.so" };
    std::env::var_os("DENOISE_CUDA_LIBRARY")
        .map_or_else(|| std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("cuda/build").join(built), Into::into)
}

/// The emulated library, unless another is named.
pub fn cuda_library() -> std::path::PathBuf {
    library(Level::CudaEmulated)
}

thread_local! {
    // One for each test, so that none sees what another's data made a kernel complain of.
    static CUDA: Arc<Cuda> = Cuda::open(&library(Level::Cuda), 0).unwrap();
    static EMULATED: Arc<Cuda> = Cuda::open(&library(Level::CudaEmulated), 0).unwrap();
}

/// The device of a level that is not the CPU's.
fn device(level: Level) -> Arc<Cuda> {
    if level == Level::Cuda { CUDA.with(Arc::clone) } else { EMULATED.with(Arc::clone) }
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
        Level::CudaEmulated | Level::Cuda => run_in_device_memory(&device(level), op, inputs, out, params),
    };
    ran.unwrap_or_else(|e| panic!("{op:?} on {}: {e}", level.name()));
    out.check_guards(&format!("{op:?} on {}", level.name()));
}

/// Runs one instruction at a level over views of the host's memory.
pub fn run_views(level: Level, pool: &Pool, op: Op, args: &Args) -> Result<()> {
    match level {
        Level::Cpu(level) => ops::run(op, &Cx { level, pool }, args),
        Level::CudaEmulated | Level::Cuda => run_over_copies(&device(level), op, args),
    }
}

/// Runs one instruction over copies, in the device's memory, of what views reach; views of the same bytes stay so.
fn run_over_copies(cuda: &Arc<Cuda>, op: Op, args: &Args) -> Result<()> {
    let span = |view: &View| {
        let reach: usize = (0..view.rank).map(|axis| view.dims[axis].saturating_sub(1) * view.strides[axis]).sum();
        let elements = if view.is_empty() { 0 } else { reach + 1 };
        (view.ptr as usize, view.ptr as usize + elements * view.dtype.size())
    };
    let mut spans: Vec<(usize, usize)> = args.operands.iter().flatten().map(span).collect();
    spans.sort();
    let mut regions: Vec<(usize, usize)> = Vec::new();
    for (start, end) in spans {
        match regions.last_mut() {
            Some(last) if start <= last.1 => last.1 = last.1.max(end),
            _ => regions.push((start, end)),
        }
    }
    let bytes = |(start, end): (usize, usize)| unsafe { std::slice::from_raw_parts_mut(start as *mut u8, end - start) };
    let mut copies = Vec::new();
    for &region in &regions {
        let memory = Memory::new(cuda, (region.1 - region.0).max(1))?;
        memory.write(0, bytes(region))?;
        copies.push(memory);
    }
    let copied = |view: &View| {
        let at = regions.iter().rposition(|region| region.0 <= view.ptr as usize).unwrap();
        View { ptr: copies[at].ptr().wrapping_add(view.ptr as usize - regions[at].0), ..*view }
    };
    let operands: Vec<Option<View>> = args.operands.iter().map(|view| view.as_ref().map(copied)).collect();
    cuda.queue(op, &operands, args.params)?;
    cuda.synchronize()?;
    regions.iter().zip(&copies).try_for_each(|(&region, memory)| memory.read(0, bytes(region)))
}

/// The ways that the emulated device names for an instruction over memory of its own, which is not touched.
pub fn cuda_ways(op: Op, inputs: &[Option<Tensor>], out: &Tensor, params: &[u32]) -> Vec<String> {
    ways(Level::CudaEmulated, op, inputs, out, params)
}

fn ways(level: Level, op: Op, inputs: &[Option<Tensor>], out: &Tensor, params: &[u32]) -> Vec<String> {
    // As far aligned as a device's memory is.
    let aligned = |tensor: &Tensor| View { ptr: (1usize << 12) as *mut u8, ..tensor.clone().view() };
    let operands: Vec<_> = inputs.iter().map(Option::as_ref).chain([Some(out)]).map(|t| t.map(aligned)).collect();
    device(level).ways(op, &operands, params).unwrap()
}

/// The parameters that make a level run an instruction in each way that is a kernel of its own: those of a device.
/// Emulated, they are one loop.
fn each_way(level: Level, op: Op, inputs: &[Option<Tensor>], out: &Tensor, params: &[u32]) -> Vec<Vec<u32>> {
    let spec = SPECS.iter().find(|spec| spec.op == op).unwrap();
    let variant = spec.params.iter().position(|(name, _)| *name == "variant");
    let Some(variant) = variant.filter(|_| level == Level::Cuda) else { return vec![params.to_vec()] };
    let count = ways(level, op, inputs, out, params).len().max(1);
    (0..count)
        .map(|way| {
            let mut params = params.to_vec();
            params[variant] = way as u32;
            params
        })
        .collect()
}

/// Runs one instruction over copies in the device's memory, guards and all.
fn run_in_device_memory(
    cuda: &Arc<Cuda>,
    op: Op,
    inputs: &[Option<Tensor>],
    out: &mut Tensor,
    params: &[u32],
) -> Result<()> {
    fn bytes(memory: &mut [u64]) -> &mut [u8] {
        unsafe { std::slice::from_raw_parts_mut(memory.as_mut_ptr() as *mut u8, memory.len() * 8) }
    }
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
}

/// The levels to compare with the reference: what this CPU runs, the emulated CUDA library, and a device where there is
/// one, or those named in `DENOISE_TEST_LEVELS`; what is lacking is named.
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
    if wanted(Level::Cuda.name()) && has_device() {
        have.push(Level::Cuda);
    }
    have
}

/// Whether there is a device, which is found out once. One that was asked for by name must be there.
fn has_device() -> bool {
    static FOUND: OnceLock<bool> = OnceLock::new();
    *FOUND.get_or_init(|| match Cuda::open(&library(Level::Cuda), 0) {
        Ok(_) => true,
        Err(error) if std::env::var_os("DENOISE_TEST_LEVELS").is_some() => panic!("no CUDA device: {error}"),
        Err(error) => {
            eprintln!("skipped: no CUDA device: {error}");
            false
        }
    })
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
        for level in levels().into_iter().filter(|&level| threads == 1 || !level.is_cuda()) {
            let mut inputs = prepare(level, &pool);
            for (way, params) in each_way(level, op, &inputs, out, params).iter().enumerate() {
                let mut got = out.clone();
                run(level, &pool, op, &mut inputs, &mut got, params);
                let error = normalized_error(&got.values(), &want_values);
                assert!(
                    error <= bound(out.dtype),
                    "{what}: {op:?} on {} with {threads} threads, way {way}: error {error:.3e} above {:.0e}",
                    level.name(),
                    bound(out.dtype)
                );
            }
        }
    }
}

/// `conform_with` for inputs that are the same on every level.
pub fn conform(what: &str, op: Op, inputs: &[Option<Tensor>], out: &Tensor, params: &[u32]) {
    conform_with(what, op, |_, _| inputs.to_vec(), out, params);
}
