//! Running programs: one at a time on a device, kernel by kernel, with a look at the cancel flag between them.

use crate::buffer::{Buffer, Owned};
use crate::cuda::{Cuda, Memory, Runner};
use crate::error::{Code, Error, Result};
use crate::level::{Level, cpu_model, default_threads};
use crate::ops::{self, Args, Cx};
use crate::pool::Pool;
use crate::program::{Program, Slot};
use crate::view::View;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

/// What the memory of a device is aligned to, in bytes.
const MEMORY_ALIGN: usize = 256;

/// Where programs run.
pub enum Device {
    /// A CPU with its threads.
    Cpu(Cpu),
    /// A device of the CUDA library.
    Cuda {
        /// The device, whose memory outlives this.
        cuda: Arc<Cuda>,
        /// What runs programs on it.
        runner: Mutex<Runner>,
    },
}

/// A CPU with its threads.
pub struct Cpu {
    level: Level,
    state: Mutex<State>,
}

struct State {
    pool: Pool,
    /// The arena of the largest program yet: programs run one at a time, so one serves all.
    arena: Owned,
    arena_len: usize,
}

impl Device {
    /// A CPU of a level with a number of threads, 0 for as many as the machine has.
    pub fn cpu(level: Level, threads: usize) -> Result<Self> {
        let threads = if threads == 0 { default_threads() } else { threads };
        let state = State { pool: Pool::new(threads)?, arena: Owned::new(0)?, arena_len: 0 };
        Ok(Self::Cpu(Cpu { level, state: Mutex::new(state) }))
    }

    /// A device of the CUDA library.
    pub fn cuda(cuda: Arc<Cuda>) -> Self {
        let runner = Mutex::new(Runner::new(cuda.clone()));
        Self::Cuda { cuda, runner }
    }

    /// Zeroed memory that its programs can be bound to.
    pub fn allocate(&self, len: usize) -> Result<Buffer> {
        match self {
            Self::Cpu(_) => Buffer::new(len),
            Self::Cuda { cuda, .. } => Memory::new(cuda, len).map(Buffer::Device),
        }
    }

    /// A mapped part of a file as its programs can read it: itself, or a copy in the device's memory.
    pub fn take(&self, mapped: Buffer) -> Result<Buffer> {
        match (self, mapped.bytes()) {
            (Self::Cuda { cuda, .. }, Some(bytes)) => {
                mapped.prefetch();
                let memory = Memory::new(cuda, bytes.len())?;
                memory.write(0, bytes)?;
                Ok(Buffer::Device(memory))
            }
            _ => Ok(mapped),
        }
    }

    /// What tells it from other devices, in lines: name, architecture or level, bytes of its last cache where they are
    /// known, what libraries it uses.
    pub fn describe(&self) -> Result<String> {
        match self {
            Self::Cpu(cpu) => Ok(format!("{}\n{}\n0\n", cpu_model(), cpu.level.name())),
            Self::Cuda { cuda, .. } => cuda.describe(),
        }
    }

    /// The names of the ways to run each instruction of a program, by its parameter `variant`; none where there is but
    /// one.
    pub fn ways(&self, program: &Program) -> Result<Vec<Vec<String>>> {
        let Self::Cuda { cuda, .. } = self else {
            let names = |op| ops::ways(op).iter().map(|name| name.to_string()).collect();
            return Ok(program.instructions.iter().map(|instruction| names(instruction.op)).collect());
        };
        // Memory is aligned alike wherever it lies, and nothing is read.
        let place = std::ptr::without_provenance_mut(MEMORY_ALIGN);
        let places = vec![place; program.externals.len()];
        let mut views = Vec::new();
        let each = program.instructions.iter().enumerate().map(|(index, instruction)| {
            bind(program, index, place, &places, &mut views);
            cuda.ways(instruction.op, &views, &instruction.params)
        });
        each.collect()
    }

    /// Runs a program. `times`, where given, receives each kernel's seconds.
    pub fn run(
        &self,
        program: &Program,
        buffers: &[Arc<Buffer>],
        cancelled: &AtomicBool,
        times: Option<&mut [f64]>,
    ) -> Result<()> {
        self.check_bindings(program, buffers)?;
        match self {
            Self::Cpu(cpu) => cpu.run(program, buffers, cancelled, times),
            Self::Cuda { runner, .. } => {
                let mut runner = runner.lock().unwrap_or_else(|e| e.into_inner());
                // What is queued cannot be taken back: a run is stopped before it begins, or not.
                if cancelled.load(Ordering::Relaxed) {
                    return Err(Error::new(Code::Cancelled, "Cancelled before the program"));
                }
                let arena = runner.arena(program.arena)?;
                let memory: Vec<&Memory> = buffers.iter().filter_map(|buffer| buffer.device()).collect();
                let times = times.filter(|times| !times.is_empty());
                runner.run(program, &memory, &|index, places, views| bind(program, index, arena, places, views), times)
            }
        }
    }

    fn check_bindings(&self, program: &Program, buffers: &[Arc<Buffer>]) -> Result<()> {
        let bad = |message: String| Error::new(Code::BadArgument, message);
        if buffers.len() != program.externals.len() {
            return Err(bad(format!("The program takes {} buffers, got {}", program.externals.len(), buffers.len())));
        }
        for (index, (buffer, external)) in buffers.iter().zip(&program.externals).enumerate() {
            let here = match self {
                Self::Cpu(_) => buffer.device().is_none(),
                Self::Cuda { cuda, .. } => buffer.device().is_some_and(|memory| memory.is_of(cuda)),
            };
            if !here {
                return Err(bad(format!("Buffer {index} lies in the memory of another device: copy it")));
            }
            if buffer.len() < external.bytes {
                return Err(bad(format!(
                    "Buffer {index} has {} bytes, the program needs {}",
                    buffer.len(),
                    external.bytes
                )));
            }
            if external.written && !buffer.writable() {
                return Err(bad(format!("The program writes buffer {index}, which is a mapped file")));
            }
            if !(buffer.ptr() as usize).is_multiple_of(external.align) {
                return Err(bad(format!(
                    "Buffer {index} is not aligned to {} bytes: copy it instead of mapping it",
                    external.align
                )));
            }
        }
        Ok(())
    }
}

/// The operands of an instruction with their addresses, given those of the arena and of the program's buffers.
fn bind(program: &Program, index: usize, arena: *mut u8, places: &[*mut u8], views: &mut Vec<Option<View>>) {
    views.clear();
    for operand in &program.instructions[index].operands {
        views.push(match operand {
            None => None,
            Some(operand) => {
                let base = match operand.slot {
                    Slot::Arena => arena,
                    Slot::External(slot) => places[slot],
                };
                let mut view = operand.view;
                view.ptr = base.wrapping_add(operand.offset);
                Some(view)
            }
        });
    }
}

impl Cpu {
    fn run(
        &self,
        program: &Program,
        buffers: &[Arc<Buffer>],
        cancelled: &AtomicBool,
        mut times: Option<&mut [f64]>,
    ) -> Result<()> {
        let mut state = self.state.lock().unwrap_or_else(|e| e.into_inner());
        if state.arena_len < program.arena {
            state.arena = Owned::new(0)?;
            state.arena_len = 0;
            state.arena = Owned::new(program.arena)?;
            state.arena_len = program.arena;
        }
        let arena = state.arena.ptr();
        let cx = Cx { level: self.level, pool: &state.pool };
        let _watch = state.pool.watch();
        let places: Vec<*mut u8> = buffers.iter().map(|buffer| buffer.ptr()).collect();
        let mut views: Vec<Option<View>> = Vec::new();
        for (index, instruction) in program.instructions.iter().enumerate() {
            if cancelled.load(Ordering::Relaxed) {
                return Err(Error::new(Code::Cancelled, format!("Cancelled before kernel {index}")));
            }
            bind(program, index, arena, &places, &mut views);
            let start = Instant::now();
            ops::run(instruction.op, &cx, &Args { operands: &views, params: &instruction.params })
                .map_err(|e| Error::new(e.code, format!("Kernel {index} ({:?}): {}", instruction.op, e.message)))?;
            if let Some(time) = times.as_mut().and_then(|times| times.get_mut(index)) {
                *time = start.elapsed().as_secs_f64();
            }
        }
        Ok(())
    }
}
