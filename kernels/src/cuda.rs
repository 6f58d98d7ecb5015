//! The CUDA library (`kernels/cuda`), which is opened at run time: its functions, a device of it, and its memory.

use crate::error::{Code, Error, Result};
use crate::program::Program;
use crate::schema::{Op, SCHEMA_HASH, SPECS};
use crate::view::{MAX_RANK, View};
use std::collections::HashMap;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

/// The C ABI's error.
#[repr(C)]
struct RawError {
    code: i32,
    message: [c_char; 508],
}

/// The C ABI's operand.
#[repr(C)]
#[derive(Clone, Copy)]
struct RawOperand {
    data: *mut c_void,
    dtype: u32,
    rank: u32,
    sizes: [u64; MAX_RANK],
    strides: [u64; MAX_RANK],
}

impl RawOperand {
    const ABSENT: Self =
        Self { data: std::ptr::null_mut(), dtype: 0, rank: 0, sizes: [0; MAX_RANK], strides: [0; MAX_RANK] };

    fn of(view: &View) -> Self {
        Self {
            data: view.ptr as *mut c_void,
            dtype: view.dtype as u32,
            rank: view.rank as u32,
            sizes: view.dims.map(|n| n as u64),
            strides: view.strides.map(|n| n as u64),
        }
    }

    fn all(views: &[Option<View>]) -> Vec<Self> {
        views.iter().map(|view| view.as_ref().map_or(Self::ABSENT, Self::of)).collect()
    }
}

type RawDevice = *mut c_void;
type RunOp = unsafe extern "C" fn(RawDevice, *const RawOperand, *const u32, *mut RawError) -> i32;
type NameWays = unsafe extern "C" fn(RawDevice, *const RawOperand, *const u32, *mut c_char, u32, *mut RawError) -> i32;

/// Room for a text that the library writes.
const TEXT: usize = 1 << 12;

/// Declares the functions of the library and how each is found.
macro_rules! functions {
    ($($name:ident: fn($($arg:ty),*) $(-> $result:ty)?;)*) => {
        struct Functions {
            $($name: unsafe extern "C" fn($($arg),*) $(-> $result)?,)*
        }

        impl Functions {
            unsafe fn find(handle: *mut c_void, path: &Path) -> Result<Self> {
                Ok(Self {
                    $($name: unsafe {
                        std::mem::transmute::<*mut c_void, unsafe extern "C" fn($($arg),*) $(-> $result)?>(
                            symbol(handle, concat!("denoise_cuda_", stringify!($name))).ok_or_else(|| foreign(path))?
                        )
                    },)*
                })
            }
        }
    };
}

functions! {
    schema: fn(*mut u32);
    open: fn(i32, *mut RawDevice, *mut RawError) -> i32;
    close: fn(RawDevice);
    describe: fn(RawDevice, *mut c_char, u32, *mut RawError) -> i32;
    allocate: fn(RawDevice, u64, *mut *mut c_void, *mut RawError) -> i32;
    free: fn(RawDevice, *mut c_void);
    upload: fn(RawDevice, *mut c_void, *const c_void, u64, *mut RawError) -> i32;
    download: fn(RawDevice, *mut c_void, *const c_void, u64, *mut RawError) -> i32;
    duplicate: fn(RawDevice, *mut c_void, *const c_void, u64, *mut RawError) -> i32;
    synchronize: fn(RawDevice, *mut RawError) -> i32;
    capture: fn(RawDevice, *mut RawError) -> i32;
    captured: fn(RawDevice, *mut *mut c_void, *mut RawError) -> i32;
    replay: fn(RawDevice, *mut c_void, *mut RawError) -> i32;
    forget: fn(RawDevice, *mut c_void);
    hold: fn(RawDevice, u32, *mut RawError) -> i32;
    mark: fn(RawDevice, u32, *mut RawError) -> i32;
    seconds: fn(RawDevice, u32, *mut f64, *mut RawError) -> i32;
}

fn unavailable(message: String) -> Error {
    Error::new(Code::Unavailable, message)
}

fn foreign(path: &Path) -> Error {
    unavailable(format!("{} is no CUDA library of denoise: run `deno task build:cuda`", path.display()))
}

#[cfg(unix)]
unsafe fn symbol(handle: *mut c_void, name: &str) -> Option<*mut c_void> {
    let name = CString::new(name).ok()?;
    let found = unsafe { libc::dlsym(handle, name.as_ptr()) };
    (!found.is_null()).then_some(found)
}

#[cfg(unix)]
fn open_library(path: &Path) -> Result<*mut c_void> {
    use std::os::unix::ffi::OsStrExt;
    let name = CString::new(path.as_os_str().as_bytes())
        .map_err(|_| Error::new(Code::BadArgument, "A path holds no byte of zero"))?;
    let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
    if !handle.is_null() {
        return Ok(handle);
    }
    let why = unsafe { libc::dlerror() };
    let why =
        if why.is_null() { "unknown".into() } else { unsafe { CStr::from_ptr(why) }.to_string_lossy().into_owned() };
    Err(unavailable(format!("Cannot open the CUDA library {}: {why}", path.display())))
}

#[cfg(not(unix))]
unsafe fn symbol(_: *mut c_void, _: &str) -> Option<*mut c_void> {
    None
}

#[cfg(not(unix))]
fn open_library(path: &Path) -> Result<*mut c_void> {
    Err(unavailable(format!("CUDA devices are for Linux: {} cannot be opened here", path.display())))
}

/// The entries of an op.
struct Entry {
    run: RunOp,
    /// Names the ways to run a call, where there can be several.
    ways: Option<NameWays>,
}

/// Whether there is a CUDA driver, which is looked for before anything of a library for devices is read.
pub fn has_driver() -> bool {
    open_library(Path::new("libcuda.so.1")).is_ok()
}

/// An open library. It stays open for as long as the process lives: a driver's threads may run in it.
pub struct Library {
    functions: Functions,
    /// The entries of each op, in the order of `SPECS`; `None` where the library has no kernel.
    ops: Vec<Option<Entry>>,
}

// Function pointers; the library's functions may be called from any thread.
unsafe impl Send for Library {}
unsafe impl Sync for Library {}

static LIBRARIES: Mutex<Vec<(PathBuf, Arc<Library>)>> = Mutex::new(Vec::new());

impl Library {
    /// Opens a library, once.
    pub fn open(path: &Path) -> Result<Arc<Self>> {
        let mut libraries = LIBRARIES.lock().unwrap_or_else(|e| e.into_inner());
        if let Some((_, library)) = libraries.iter().find(|(known, _)| known == path) {
            return Ok(library.clone());
        }
        let handle = open_library(path)?;
        let functions = unsafe { Functions::find(handle, path)? };
        let mut hash = [0; 2];
        unsafe { (functions.schema)(hash.as_mut_ptr()) };
        if hash != SCHEMA_HASH {
            return Err(Error::new(
                Code::Mismatch,
                format!(
                    "The CUDA library {} has the schema {} {}, this one {} {}: run `deno task build:cuda`",
                    path.display(),
                    hash[0],
                    hash[1],
                    SCHEMA_HASH[0],
                    SCHEMA_HASH[1]
                ),
            ));
        }
        let entry = |name: &str| unsafe {
            let run = std::mem::transmute::<*mut c_void, RunOp>(symbol(handle, &format!("denoise_cuda_op_{name}"))?);
            let ways = symbol(handle, &format!("denoise_cuda_ways_{name}"))
                .map(|found| std::mem::transmute::<*mut c_void, NameWays>(found));
            Some(Entry { run, ways })
        };
        let library = Arc::new(Self { functions, ops: SPECS.iter().map(|spec| entry(spec.name)).collect() });
        libraries.push((path.to_path_buf(), library.clone()));
        Ok(library)
    }
}

/// What who calls the library for a device holds.
type Lock<'a> = std::sync::MutexGuard<'a, ()>;

/// A device of the library.
pub struct Cuda {
    library: Arc<Library>,
    raw: RawDevice,
    /// The library takes one call at a time for a device.
    lock: Mutex<()>,
}

// Calls are serialized by the lock.
unsafe impl Send for Cuda {}
unsafe impl Sync for Cuda {}

impl Drop for Cuda {
    fn drop(&mut self) {
        unsafe { (self.library.functions.close)(self.raw) };
    }
}

impl Cuda {
    /// Opens a device of a library by its number.
    pub fn open(path: &Path, ordinal: i32) -> Result<Arc<Self>> {
        let library = Library::open(path)?;
        let mut raw = std::ptr::null_mut();
        call(|error| unsafe { (library.functions.open)(ordinal, &mut raw, error) })?;
        Ok(Arc::new(Self { library, raw, lock: Mutex::new(()) }))
    }

    fn locked(&self) -> Lock<'_> {
        self.lock.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn entry(&self, op: Op) -> Result<&Entry> {
        let index = SPECS.iter().position(|spec| spec.op == op);
        index
            .and_then(|index| self.library.ops[index].as_ref())
            .ok_or_else(|| unavailable(format!("The CUDA library has no kernel for {op:?}: run this part on the CPU")))
    }

    /// Queues one instruction; its operands lie in this device's memory.
    pub fn queue(&self, op: Op, operands: &[Option<View>], params: &[u32]) -> Result<()> {
        self.queue_under(&self.locked(), op, operands, params)
    }

    /// The same for who holds the lock.
    fn queue_under(&self, _: &Lock, op: Op, operands: &[Option<View>], params: &[u32]) -> Result<()> {
        let run = self.entry(op)?.run;
        let raw = RawOperand::all(operands);
        call(|error| unsafe { run(self.raw, raw.as_ptr(), params.as_ptr(), error) })
    }

    /// The names of the ways to run an instruction, the library's guess first; none where there is but one. Of its
    /// operands' addresses only the alignment counts.
    pub fn ways(&self, op: Op, operands: &[Option<View>], params: &[u32]) -> Result<Vec<String>> {
        let _lock = self.locked();
        let Some(ways) = self.entry(op)?.ways else { return Ok(Vec::new()) };
        let raw = RawOperand::all(operands);
        let names = text(|out, len, error| unsafe { ways(self.raw, raw.as_ptr(), params.as_ptr(), out, len, error) })?;
        Ok(names.lines().map(String::from).collect())
    }

    /// What tells it from other devices, in lines: name, architecture, bytes of its last cache, what libraries it uses.
    pub fn describe(&self) -> Result<String> {
        let _lock = self.locked();
        text(|out, len, error| unsafe { (self.library.functions.describe)(self.raw, out, len, error) })
    }

    /// Waits for what was queued.
    pub fn synchronize(&self) -> Result<()> {
        let _lock = self.locked();
        call(|error| unsafe { (self.library.functions.synchronize)(self.raw, error) })
    }
}

/// Calls a function of the library; gives the error that it left.
fn call(body: impl FnOnce(*mut RawError) -> c_int) -> Result<()> {
    let mut error = RawError { code: 0, message: [0; 508] };
    if body(&mut error) == 0 {
        return Ok(());
    }
    error.message[507] = 0;
    let message = unsafe { CStr::from_ptr(error.message.as_ptr()) }.to_string_lossy().into_owned();
    let code = match error.code {
        1 => Code::BadProgram,
        3 => Code::BadArgument,
        4 => Code::BadValue,
        5 => Code::OutOfMemory,
        10 => Code::Unavailable,
        _ => Code::Internal,
    };
    Err(Error::new(code, message))
}

/// Calls a function of the library that writes a text.
fn text(body: impl FnOnce(*mut c_char, u32, *mut RawError) -> c_int) -> Result<String> {
    let mut out = vec![0u8; TEXT];
    call(|error| body(out.as_mut_ptr() as *mut c_char, TEXT as u32, error))?;
    let end = out.iter().position(|&byte| byte == 0).unwrap_or(out.len());
    Ok(String::from_utf8_lossy(&out[..end]).into_owned())
}

/// Memory of a device.
pub struct Memory {
    cuda: Arc<Cuda>,
    ptr: *mut u8,
    len: usize,
    /// A number that no other memory ever has: addresses come back.
    id: u64,
}

unsafe impl Send for Memory {}
unsafe impl Sync for Memory {}

impl Drop for Memory {
    fn drop(&mut self) {
        let _lock = self.cuda.locked();
        unsafe { (self.cuda.library.functions.free)(self.cuda.raw, self.ptr as *mut c_void) };
    }
}

static NUMBER: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1);

impl Memory {
    /// Zeroed memory.
    pub fn new(cuda: &Arc<Cuda>, len: usize) -> Result<Self> {
        let mut memory = std::ptr::null_mut();
        let _lock = cuda.locked();
        call(|error| unsafe { (cuda.library.functions.allocate)(cuda.raw, len as u64, &mut memory, error) })?;
        let id = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        Ok(Self { cuda: cuda.clone(), ptr: memory as *mut u8, len, id })
    }

    /// Its address, which only the device can read.
    pub fn ptr(&self) -> *mut u8 {
        self.ptr
    }

    /// Its size in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether it is a device's.
    pub fn is_of(&self, cuda: &Arc<Cuda>) -> bool {
        Arc::ptr_eq(&self.cuda, cuda)
    }

    /// Copies bytes in; `offset` and their number were checked.
    pub fn write(&self, offset: usize, bytes: &[u8]) -> Result<()> {
        let _lock = self.cuda.locked();
        let to = self.ptr.wrapping_add(offset) as *mut c_void;
        let from = bytes.as_ptr() as *const c_void;
        call(|error| unsafe {
            (self.cuda.library.functions.upload)(self.cuda.raw, to, from, bytes.len() as u64, error)
        })
    }

    /// Copies bytes out; `offset` and their number were checked.
    pub fn read(&self, offset: usize, out: &mut [u8]) -> Result<()> {
        let _lock = self.cuda.locked();
        let from = self.ptr.wrapping_add(offset) as *const c_void;
        let to = out.as_mut_ptr() as *mut c_void;
        call(|error| unsafe {
            (self.cuda.library.functions.download)(self.cuda.raw, to, from, out.len() as u64, error)
        })
    }
}

/// What a device knows of a program that ran.
struct Recorded {
    /// The memory that it ran with.
    ids: Vec<u64>,
    /// What stands in the graph for memory that is another's in each run: it is copied in before and out after. Weights
    /// stay where they are.
    staged: Vec<Option<Memory>>,
    /// Its calls over that memory; `None` before the second run.
    graph: Option<*mut c_void>,
    /// When it ran last, counted in runs.
    ran: u64,
}

/// Programs that a device knows something of.
const MOST_RECORDED: usize = 64;

/// Writes an instruction's operands with their addresses, given those of the program's buffers.
pub type Bind<'a> = &'a dyn Fn(usize, &[*mut u8], &mut Vec<Option<View>>);
/// The same with all addresses known.
type Views<'a> = &'a dyn Fn(usize, &mut Vec<Option<View>>);

/// What runs programs on a device.
pub struct Runner {
    cuda: Arc<Cuda>,
    arena: Option<Memory>,
    recorded: HashMap<u64, Recorded>,
    runs: u64,
}

// A graph is touched by who holds the runner.
unsafe impl Send for Runner {}

impl Drop for Runner {
    fn drop(&mut self) {
        self.forget();
    }
}

impl Runner {
    /// A runner of a device.
    pub fn new(cuda: Arc<Cuda>) -> Self {
        Self { cuda, arena: None, recorded: HashMap::new(), runs: 0 }
    }

    fn forget(&mut self) {
        for (_, mut recorded) in std::mem::take(&mut self.recorded) {
            self.forget_graph(&mut recorded);
        }
    }

    fn forget_graph(&self, recorded: &mut Recorded) {
        if let Some(graph) = recorded.graph.take() {
            let _lock = self.cuda.locked();
            unsafe { (self.cuda.library.functions.forget)(self.cuda.raw, graph) };
        }
    }

    /// Makes room for one more: of programs that ran but once, as those of constants do, else of all, the one that ran
    /// longest ago goes.
    fn make_room(&mut self) {
        if self.recorded.len() < MOST_RECORDED {
            return;
        }
        let oldest = self.recorded.iter().min_by_key(|(_, recorded)| (recorded.graph.is_some(), recorded.ran));
        let Some(id) = oldest.map(|(&id, _)| id) else { return };
        if let Some(mut recorded) = self.recorded.remove(&id) {
            self.forget_graph(&mut recorded);
        }
    }

    /// Gets the arena of a program ready; gives its address.
    pub fn arena(&mut self, bytes: usize) -> Result<*mut u8> {
        if self.arena.as_ref().is_none_or(|arena| arena.len() < bytes) {
            // The old one first, so that both need never be there.
            self.forget();
            self.arena = None;
            let arena = Memory::new(&self.cuda, bytes)
                .map_err(|e| Error::new(e.code, format!("A program's working memory: {}", e.message)))?;
            self.arena = Some(arena);
        }
        Ok(self.arena.as_ref().map_or(std::ptr::null_mut(), Memory::ptr))
    }

    /// Runs a program over buffers and waits for it. From its second run on it is a captured graph that is replayed.
    pub fn run(&mut self, program: &Program, memory: &[&Memory], bind: Bind, times: Option<&mut [f64]>) -> Result<()> {
        let places: Vec<*mut u8> = memory.iter().map(|memory| memory.ptr()).collect();
        if let Some(times) = times {
            return self.timed(program, &|index, views| bind(index, &places, views), times);
        }
        let ids: Vec<u64> = memory.iter().map(|memory| memory.id).collect();
        self.runs += 1;
        let ran = self.runs;
        let Some(mut recorded) = self.recorded.remove(&program.id) else {
            self.make_room();
            let staged = memory.iter().map(|_| None).collect();
            self.recorded.insert(program.id, Recorded { ids, staged, graph: None, ran });
            self.queue(program, &|index, views| bind(index, &places, views))?;
            return self.cuda.synchronize();
        };
        let result = self.replay(program, memory, bind, &mut recorded);
        match &result {
            Ok(()) => drop(self.recorded.insert(program.id, Recorded { ids, ran, ..recorded })),
            Err(_) => self.forget_graph(&mut recorded),
        }
        result
    }

    /// Runs a program by its graph, which is made anew where memory changed that was the same so far.
    fn replay(&self, program: &Program, memory: &[&Memory], bind: Bind, recorded: &mut Recorded) -> Result<()> {
        for (index, external) in program.externals.iter().enumerate() {
            let moves = external.written || memory[index].id != recorded.ids[index];
            if moves && recorded.staged[index].is_none() {
                self.forget_graph(recorded);
                recorded.staged[index] = Some(Memory::new(&self.cuda, external.bytes)?);
            }
        }
        for (place, staged) in memory.iter().zip(&recorded.staged) {
            if let Some(staged) = staged {
                self.copy(staged, place, staged.len())?;
            }
        }
        let graph = match recorded.graph {
            Some(graph) => graph,
            None => {
                let places: Vec<*mut u8> = memory
                    .iter()
                    .zip(&recorded.staged)
                    .map(|(own, staged)| staged.as_ref().unwrap_or(own).ptr())
                    .collect();
                *recorded.graph.insert(self.capture(program, &|index, views| bind(index, &places, views))?)
            }
        };
        {
            let _lock = self.cuda.locked();
            call(|error| unsafe { (self.cuda.library.functions.replay)(self.cuda.raw, graph, error) })?;
        }
        for ((place, staged), external) in memory.iter().zip(&recorded.staged).zip(&program.externals) {
            if let Some(staged) = staged.as_ref().filter(|_| external.written) {
                self.copy(place, staged, staged.len())?;
            }
        }
        self.cuda.synchronize()
    }

    /// Queues a copy.
    fn copy(&self, to: &Memory, from: &Memory, bytes: usize) -> Result<()> {
        let _lock = self.cuda.locked();
        let (to, from) = (to.ptr as *mut c_void, from.ptr as *const c_void);
        call(|error| unsafe { (self.cuda.library.functions.duplicate)(self.cuda.raw, to, from, bytes as u64, error) })
    }

    /// Queues a program, with nothing of another thread's in between.
    fn queue(&self, program: &Program, views: Views) -> Result<()> {
        let lock = self.cuda.locked();
        (0..program.instructions.len()).try_for_each(|index| self.queue_one(&lock, program, index, views))
    }

    fn queue_one(&self, lock: &Lock, program: &Program, index: usize, views: Views) -> Result<()> {
        let instruction = &program.instructions[index];
        let mut operands = Vec::new();
        views(index, &mut operands);
        self.cuda
            .queue_under(lock, instruction.op, &operands, &instruction.params)
            .map_err(|e| Error::new(e.code, format!("Kernel {index} ({:?}): {}", instruction.op, e.message)))
    }

    fn capture(&self, program: &Program, views: Views) -> Result<*mut c_void> {
        let functions = &self.cuda.library.functions;
        let raw = self.cuda.raw;
        // All of it under the lock: what another thread queued meanwhile would be captured, too.
        let lock = self.cuda.locked();
        call(|error| unsafe { (functions.capture)(raw, error) })?;
        let queued = (0..program.instructions.len()).try_for_each(|index| self.queue_one(&lock, program, index, views));
        if let Err(error) = queued {
            // The stream must not stay as it is; the first error is the one to tell.
            let _ = call(|error| unsafe { (functions.captured)(raw, std::ptr::null_mut(), error) });
            return Err(error);
        }
        let mut graph = std::ptr::null_mut();
        call(|error| unsafe { (functions.captured)(raw, &mut graph, error) })?;
        Ok(graph)
    }

    /// Runs a program with a mark before each kernel; `times` receives their seconds.
    fn timed(&self, program: &Program, views: Views, times: &mut [f64]) -> Result<()> {
        let functions = &self.cuda.library.functions;
        let mark = |index: usize| call(|error| unsafe { (functions.mark)(self.cuda.raw, index as u32, error) });
        let count = program.instructions.len();
        {
            let lock = self.cuda.locked();
            // The device waits until the queue is ahead of it: a kernel's time is not that of its queueing.
            call(|error| unsafe { (functions.hold)(self.cuda.raw, count as u32, error) })?;
            for index in 0..count {
                mark(index)?;
                self.queue_one(&lock, program, index, views)?;
            }
            mark(count)?;
        }
        self.cuda.synchronize()?;
        for (index, time) in times.iter_mut().enumerate().take(program.instructions.len()) {
            call(|error| unsafe { (functions.seconds)(self.cuda.raw, index as u32, time, error) })?;
        }
        Ok(())
    }
}
