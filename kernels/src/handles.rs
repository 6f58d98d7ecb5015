//! Handles: numbers that stand for objects across the boundary. Each holds a slot and the slot's generation, so that
//! one used after it was freed, one of another kind, and one made up are errors and never a wrong object.

use crate::buffer::Buffer;
use crate::error::{Code, Error, Result};
use crate::executor::Device;
use crate::program::Program;
use crate::video::Video;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

const INDEX_BITS: u32 = 20;
const MAX_GENERATION: u32 = (1 << (32 - INDEX_BITS)) - 1;

/// What a handle can stand for.
#[derive(Clone)]
pub enum Object {
    /// A device with its threads.
    Device(Arc<Device>),
    /// Memory.
    Buffer(Arc<Buffer>),
    /// A checked program.
    Program(Arc<Program>),
    /// A flag that stops a run.
    Token(Arc<AtomicBool>),
    /// A video encoder or decoder.
    Video(Arc<Mutex<Video>>),
}

impl Object {
    fn kind(&self) -> &'static str {
        match self {
            Object::Device(_) => "device",
            Object::Buffer(_) => "buffer",
            Object::Program(_) => "program",
            Object::Token(_) => "token",
            Object::Video(_) => "video",
        }
    }
}

struct Slot {
    generation: u32,
    object: Option<Object>,
}

struct Table {
    slots: Vec<Slot>,
    free: Vec<u32>,
}

static TABLE: Mutex<Table> = Mutex::new(Table { slots: Vec::new(), free: Vec::new() });

fn table() -> std::sync::MutexGuard<'static, Table> {
    TABLE.lock().unwrap_or_else(|e| e.into_inner())
}

/// Gives an object a handle, which is never 0.
pub fn insert(object: Object) -> Result<u32> {
    let mut table = table();
    let index = match table.free.pop() {
        Some(index) => index,
        None => {
            let index = table.slots.len() as u32;
            if index >= 1 << INDEX_BITS {
                return Err(Error::new(Code::OutOfMemory, "There are a million handles in use: free some"));
            }
            table.slots.push(Slot { generation: 1, object: None });
            index
        }
    };
    let slot = &mut table.slots[index as usize];
    slot.object = Some(object);
    Ok(slot.generation << INDEX_BITS | index)
}

/// The object of a handle.
pub fn get(handle: u32) -> Result<Object> {
    let table = table();
    let (index, generation) = (handle & ((1 << INDEX_BITS) - 1), handle >> INDEX_BITS);
    table
        .slots
        .get(index as usize)
        .filter(|slot| slot.generation == generation)
        .and_then(|slot| slot.object.clone())
        .ok_or_else(|| {
            Error::new(Code::BadHandle, format!("Handle {handle} stands for nothing: it was freed or made up"))
        })
}

/// Frees a handle; what it stood for lives on while a run uses it.
pub fn remove(handle: u32) -> Result<()> {
    get(handle)?;
    let object = {
        let mut table = table();
        let index = handle & ((1 << INDEX_BITS) - 1);
        let slot = &mut table.slots[index as usize];
        let object = slot.object.take();
        // A slot whose generations are used up is retired: a stale handle can then never match.
        if slot.generation < MAX_GENERATION {
            slot.generation += 1;
            table.free.push(index);
        }
        object
    };
    drop(object);
    Ok(())
}

macro_rules! getter {
    ($name:ident, $variant:ident, $type:ty) => {
        /// The object of a handle of this kind.
        pub fn $name(handle: u32) -> Result<Arc<$type>> {
            match get(handle)? {
                Object::$variant(object) => Ok(object),
                other => Err(Error::new(
                    Code::BadHandle,
                    format!("Handle {handle} stands for a {}, not for a {}", other.kind(), stringify!($name)),
                )),
            }
        }
    };
}
getter!(device, Device, Device);
getter!(buffer, Buffer, Buffer);
getter!(program, Program, Program);
getter!(token, Token, AtomicBool);
getter!(video, Video, Mutex<Video>);
