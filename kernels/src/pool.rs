//! A pool of threads that share the tasks of one kernel at a time.

use crate::error::{Code, Error, Result};
use std::alloc::Layout;
use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

/// How long an idle thread watches for the next kernel before it sleeps. Kernels of one program follow each other
/// within microseconds, while waking a thread costs tens of them. Between programs threads sleep at once: the caller's
/// own threads need the cores to get the next one ready.
const SPIN: Duration = Duration::from_micros(200);

type Task<'a> = &'a (dyn Fn(usize, usize) + Sync);

struct Job {
    task: Option<Task<'static>>,
    tasks: usize,
}

struct Shared {
    job: UnsafeCell<Job>,
    /// How many kernels there were (above 32 bits), whether the last still takes threads in, and how many it has.
    gate: AtomicU64,
    /// The kernel after which threads sleep without watching for another.
    rest: AtomicU64,
    /// How often sleeping threads were told to watch.
    alarms: AtomicU64,
    next: AtomicUsize,
    panicked: AtomicBool,
    stop: AtomicBool,
    sleeping: Mutex<usize>,
    wake: Condvar,
}

/// One kernel, the gate being open to threads, and one thread inside, as `Shared::gate` counts them.
const KERNEL: u64 = 1 << 32;
const OPEN: u64 = 1 << 31;
const INSIDE: u64 = 1;

// `job` is written by the caller alone, while the gate is closed and nobody is inside.
unsafe impl Sync for Shared {}
unsafe impl Send for Shared {}

/// Memory of one thread that kernels use for packed tiles; grown, never shrunk.
struct Scratch(UnsafeCell<(*mut u8, usize)>);
unsafe impl Sync for Scratch {}
unsafe impl Send for Scratch {}

impl Drop for Scratch {
    fn drop(&mut self) {
        let (ptr, size) = *self.0.get_mut();
        if size > 0 {
            unsafe { std::alloc::dealloc(ptr, Layout::from_size_align_unchecked(size, 64)) };
        }
    }
}

/// The pool. One kernel runs at a time: the executor holds a lock around a program.
pub struct Pool {
    shared: Arc<Shared>,
    /// Where the caller was when the workers were last sent elsewhere.
    place: AtomicUsize,
    workers: Vec<std::thread::JoinHandle<()>>,
    scratch: Vec<Scratch>,
}

impl Pool {
    /// Starts `threads - 1` workers; the calling thread is the last one.
    pub fn new(threads: usize) -> Result<Self> {
        let threads = threads.clamp(1, 1024);
        let shared = Arc::new(Shared {
            job: UnsafeCell::new(Job { task: None, tasks: 0 }),
            gate: AtomicU64::new(0),
            rest: AtomicU64::new(u64::MAX),
            alarms: AtomicU64::new(0),
            next: AtomicUsize::new(0),
            panicked: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            sleeping: Mutex::new(0),
            wake: Condvar::new(),
        });
        let mut workers = Vec::new();
        for id in 1..threads {
            let shared = shared.clone();
            let worker = std::thread::Builder::new()
                .name(format!("denoise-{id}"))
                .spawn(move || work(&shared, id))
                .map_err(|e| Error::new(Code::OutOfMemory, format!("Cannot start thread {id} of {threads}: {e}")))?;
            workers.push(worker);
        }
        let scratch = (0..threads).map(|_| Scratch(UnsafeCell::new((std::ptr::null_mut(), 0)))).collect();
        Ok(Self { shared, place: AtomicUsize::new(usize::MAX), workers, scratch })
    }

    /// How many threads share the work.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// At least `bytes` of memory aligned to 64 that belong to one thread until its task ends.
    ///
    /// # Safety
    /// `thread` must be the number that the running task was given.
    pub unsafe fn scratch(&self, thread: usize, bytes: usize) -> *mut u8 {
        let slot = unsafe { &mut *self.scratch[thread].0.get() };
        if slot.1 < bytes {
            let size = bytes.next_multiple_of(4096);
            unsafe {
                if slot.1 > 0 {
                    std::alloc::dealloc(slot.0, Layout::from_size_align_unchecked(slot.1, 64));
                    slot.1 = 0;
                }
                let layout = Layout::from_size_align_unchecked(size, 64);
                let ptr = std::alloc::alloc(layout);
                if ptr.is_null() {
                    std::panic::panic_any(OutOfScratch(size));
                }
                *slot = (ptr, size);
            }
        }
        slot.0
    }

    /// Has all threads watch for kernels, which will follow soon, until the guard is dropped.
    pub fn watch(&self) -> Watch<'_> {
        self.part();
        self.shared.rest.store(u64::MAX, Ordering::Relaxed);
        self.shared.alarms.fetch_add(1, Ordering::SeqCst);
        self.shared.wake_sleepers();
        Watch(&self.shared)
    }

    /// Sends the workers to other processors than the caller's.
    ///
    /// Woken by the caller, a thread may be put where the caller runs, and stay there for milliseconds while another
    /// processor idles: it is about to idle when the system looks for a place, and soon after does not look for work.
    #[cfg(target_os = "linux")]
    fn part(&self) {
        use std::os::unix::thread::JoinHandleExt;
        let Ok(here) = usize::try_from(unsafe { libc::sched_getcpu() }) else { return };
        if self.place.swap(here, Ordering::Relaxed) == here {
            return;
        }
        let size = size_of::<libc::cpu_set_t>();
        unsafe {
            let mut elsewhere: libc::cpu_set_t = std::mem::zeroed();
            if here >= 8 * size || libc::sched_getaffinity(0, size, &mut elsewhere) != 0 {
                return;
            }
            libc::CPU_CLR(here, &mut elsewhere);
            if libc::CPU_COUNT(&elsewhere) > 0 {
                for worker in &self.workers {
                    libc::pthread_setaffinity_np(worker.as_pthread_t() as libc::pthread_t, size, &elsewhere);
                }
            }
        }
    }

    #[cfg(not(target_os = "linux"))]
    fn part(&self) {}

    /// Runs `task(index, thread)` for every index below `tasks`, shared among the threads as they come free, and
    /// returns when all are done.
    pub fn run(&self, tasks: usize, task: &(dyn Fn(usize, usize) + Sync)) -> Result<()> {
        if tasks == 0 {
            return Ok(());
        }
        if tasks == 1 || self.workers.is_empty() {
            let done = catch_unwind(AssertUnwindSafe(|| (0..tasks).for_each(|i| task(i, 0))));
            return done.map_err(|panic| panic_error(panic.as_ref()));
        }
        let shared = &*self.shared;
        // The borrow ends before `run` returns: the gate is closed and every worker has left by then.
        let task: Task<'static> = unsafe { std::mem::transmute::<Task<'_>, Task<'static>>(task) };
        unsafe { *shared.job.get() = Job { task: Some(task), tasks } };
        shared.next.store(0, Ordering::Relaxed);
        shared.gate.fetch_add(KERNEL + OPEN, Ordering::SeqCst);
        shared.wake_sleepers();
        take_tasks(shared, task, tasks, 0);
        // Threads that have not come by now are not waited for: the system may let them run much later.
        shared.gate.fetch_sub(OPEN, Ordering::AcqRel);
        let mut spins = 0u32;
        while shared.gate.load(Ordering::Acquire) % OPEN >= INSIDE {
            spins += 1;
            if spins.is_multiple_of(1 << 10) {
                std::thread::yield_now();
            }
            std::hint::spin_loop();
        }
        if shared.panicked.swap(false, Ordering::SeqCst) {
            return Err(Error::new(Code::Internal, "A kernel panicked; this is a defect of the native library"));
        }
        Ok(())
    }
}

/// Threads watch for kernels while it lives.
pub struct Watch<'a>(&'a Shared);

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        self.0.rest.store(self.0.gate.load(Ordering::Relaxed) / KERNEL, Ordering::Relaxed);
    }
}

impl Shared {
    /// Whether a thread may take tasks of a kernel; it must leave afterwards.
    fn enter(&self, kernel: u64) -> bool {
        let open = |gate: u64| (gate / KERNEL == kernel && gate & OPEN != 0).then_some(gate + INSIDE);
        self.gate.fetch_update(Ordering::AcqRel, Ordering::Acquire, open).is_ok()
    }

    fn leave(&self) {
        self.gate.fetch_sub(INSIDE, Ordering::Release);
    }

    /// Sleeps until there is another kernel than `seen`, or will soon be.
    fn sleep(&self, seen: u64) {
        let mut sleeping = self.sleeping.lock().unwrap_or_else(|e| e.into_inner());
        *sleeping += 1;
        let alarms = self.alarms.load(Ordering::SeqCst);
        while self.gate.load(Ordering::SeqCst) / KERNEL == seen && self.alarms.load(Ordering::SeqCst) == alarms {
            sleeping = self.wake.wait(sleeping).unwrap_or_else(|e| e.into_inner());
        }
        *sleeping -= 1;
    }

    fn wake_sleepers(&self) {
        if *self.sleeping.lock().unwrap_or_else(|e| e.into_inner()) > 0 {
            self.wake.notify_all();
        }
    }
}

/// What a scratch allocation that failed panics with.
struct OutOfScratch(usize);

fn panic_error(panic: &(dyn std::any::Any + Send)) -> Error {
    if let Some(OutOfScratch(size)) = panic.downcast_ref() {
        return Error::new(Code::OutOfMemory, format!("Cannot allocate {size} bytes of working memory"));
    }
    let what = panic
        .downcast_ref::<&str>()
        .map(|s| s.to_string())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_default();
    Error::new(Code::Internal, format!("A kernel panicked ({what}); this is a defect of the native library"))
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.gate.fetch_add(KERNEL, Ordering::SeqCst);
        drop(self.shared.sleeping.lock());
        self.shared.wake.notify_all();
        for worker in self.workers.drain(..) {
            let _ = worker.join();
        }
    }
}

fn take_tasks(shared: &Shared, task: Task<'_>, tasks: usize, thread: usize) {
    let done = catch_unwind(AssertUnwindSafe(|| {
        loop {
            let index = shared.next.fetch_add(1, Ordering::Relaxed);
            if index >= tasks {
                break;
            }
            task(index, thread);
        }
    }));
    if done.is_err() {
        shared.panicked.store(true, Ordering::SeqCst);
    }
}

fn work(shared: &Shared, id: usize) {
    let mut seen = 0;
    let mut start = Instant::now();
    let mut spins = 0u32;
    loop {
        let kernel = shared.gate.load(Ordering::Acquire) / KERNEL;
        if kernel != seen {
            seen = kernel;
            if shared.stop.load(Ordering::SeqCst) {
                return;
            }
            if shared.enter(kernel) {
                let job = unsafe { &*shared.job.get() };
                if let Some(task) = job.task {
                    take_tasks(shared, task, job.tasks, id);
                }
                shared.leave();
            }
            (start, spins) = (Instant::now(), 0);
            continue;
        }
        spins += 1;
        std::hint::spin_loop();
        if spins.is_multiple_of(256) && (shared.rest.load(Ordering::Relaxed) == seen || start.elapsed() > SPIN) {
            shared.sleep(seen);
            start = Instant::now();
        }
    }
}
