//! Running programs: one at a time on a device, kernel by kernel, with a look at the cancel flag between them.

use crate::buffer::{Buffer, Owned};
use crate::error::{Code, Error, Result};
use crate::level::{Level, default_threads};
use crate::ops::{self, Args, Cx};
use crate::pool::Pool;
use crate::program::{Program, Slot};
use crate::view::View;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

/// A CPU with its threads.
pub struct Device {
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
    /// A device of a level with a number of threads, 0 for as many as the machine has.
    pub fn new(level: Level, threads: usize) -> Result<Self> {
        let threads = if threads == 0 { default_threads() } else { threads };
        let state = State { pool: Pool::new(threads)?, arena: Owned::new(0)?, arena_len: 0 };
        Ok(Self { level, state: Mutex::new(state) })
    }

    /// Runs a program. `times`, where given, receives each kernel's seconds.
    pub fn run(
        &self,
        program: &Program,
        buffers: &[Arc<Buffer>],
        cancelled: &AtomicBool,
        mut times: Option<&mut [f64]>,
    ) -> Result<()> {
        check_bindings(program, buffers)?;
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
        let mut views: Vec<Option<View>> = Vec::new();
        for (index, instruction) in program.instructions.iter().enumerate() {
            if cancelled.load(Ordering::Relaxed) {
                return Err(Error::new(Code::Cancelled, format!("Cancelled before kernel {index}")));
            }
            views.clear();
            for operand in &instruction.operands {
                views.push(match operand {
                    None => None,
                    Some(operand) => {
                        let base = match operand.slot {
                            Slot::Arena => arena,
                            Slot::External(slot) => buffers[slot].ptr(),
                        };
                        let mut view = operand.view;
                        view.ptr = unsafe { base.add(operand.offset) };
                        Some(view)
                    }
                });
            }
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

fn check_bindings(program: &Program, buffers: &[Arc<Buffer>]) -> Result<()> {
    let bad = |message: String| Error::new(Code::BadArgument, message);
    if buffers.len() != program.externals.len() {
        return Err(bad(format!("The program takes {} buffers, got {}", program.externals.len(), buffers.len())));
    }
    for (index, (buffer, external)) in buffers.iter().zip(&program.externals).enumerate() {
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
