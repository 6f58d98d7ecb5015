//! Programs: a flat list of kernel calls over an arena and the caller's buffers. A program is untrusted input: every
//! count, offset, shape, dtype and parameter is checked here, once, so that running it touches nothing else.

use crate::error::{Code, Error, Result};
use crate::ops::{Args, kernel};
use crate::schema::{
    Activation, Binary, DType, Format, Layout, Op, Param, Reduce, Rows, SCHEMA_HASH, SPECS, Spec, Unary,
};
use crate::view::{MAX_RANK, View};
use std::sync::atomic::{AtomicU64, Ordering};

/// The first word: `DNSE`.
pub const MAGIC: u32 = 0x4553_4e44;
/// The layout of the words below.
pub const FORMAT: u32 = 1;

const MAX_BYTES: u64 = 1 << 46;

/// Where an operand's memory comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slot {
    /// The program's own arena.
    Arena,
    /// One of the buffers that a run binds.
    External(usize),
}

/// An operand: a view whose pointer is filled in when the program runs.
#[derive(Clone, Copy, Debug)]
pub struct Operand {
    /// Where its memory comes from.
    pub slot: Slot,
    /// Bytes from the start of that memory.
    pub offset: usize,
    /// Shape, strides, dtype; a null pointer.
    pub view: View,
}

/// One kernel call.
pub struct Instruction {
    /// The kernel.
    pub op: Op,
    /// The operands in the schema's order.
    pub operands: Vec<Option<Operand>>,
    /// The parameters' words.
    pub params: Vec<u32>,
}

/// A buffer that a run must bind.
#[derive(Clone, Copy, Debug)]
pub struct External {
    /// Whether the program writes it.
    pub written: bool,
    /// The bytes that it must have at least.
    pub bytes: usize,
    /// What its address must be a multiple of, for the elements that kernels read in it.
    pub align: usize,
}

/// A checked program.
pub struct Program {
    /// A number that no other program has.
    pub id: u64,
    /// The buffers to bind, in order.
    pub externals: Vec<External>,
    /// The arena's size.
    pub arena: usize,
    /// The kernel calls in order.
    pub instructions: Vec<Instruction>,
}

struct Words<'a> {
    bytes: &'a [u8],
    at: usize,
}

fn bad(message: String) -> Error {
    Error::new(Code::BadProgram, message)
}

impl Words<'_> {
    fn next(&mut self) -> Result<u32> {
        let word = self.bytes.get(self.at..self.at + 4).ok_or_else(|| bad("The program is cut short".into()))?;
        self.at += 4;
        Ok(u32::from_le_bytes([word[0], word[1], word[2], word[3]]))
    }
    fn long(&mut self) -> Result<u64> {
        let low = self.next()? as u64;
        Ok(low | (self.next()? as u64) << 32)
    }
    /// A count of things that take at least `words` words each, which the rest must hold.
    fn count(&mut self, what: &str, words: usize) -> Result<usize> {
        let count = self.next()? as usize;
        let left = (self.bytes.len() - self.at) / 4;
        if count > left / words {
            return Err(bad(format!("The program claims {count} {what} in {left} words")));
        }
        Ok(count)
    }
    fn bytes(&mut self, what: &str) -> Result<usize> {
        let bytes = self.long()?;
        if bytes > MAX_BYTES {
            return Err(bad(format!("The program claims {bytes} bytes of {what}")));
        }
        Ok(bytes as usize)
    }
}

impl Program {
    /// Reads and checks a program.
    pub fn parse(bytes: &[u8]) -> Result<Program> {
        if !bytes.len().is_multiple_of(4) {
            return Err(bad(format!("A program is made of 4-byte words, got {} bytes", bytes.len())));
        }
        let mut words = Words { bytes, at: 0 };
        if words.next()? != MAGIC {
            return Err(bad("This is not a program: it does not begin with `DNSE`".into()));
        }
        let format = words.next()?;
        let hash = [words.next()?, words.next()?];
        if format != FORMAT || hash != SCHEMA_HASH {
            return Err(Error::new(
                Code::Mismatch,
                format!(
                    "The program has format {format} and schema {:08x}{:08x}, this library {FORMAT} and {:08x}{:08x}: lower it again",
                    hash[0], hash[1], SCHEMA_HASH[0], SCHEMA_HASH[1]
                ),
            ));
        }
        let arena = words.bytes("arena")?;
        let mut externals = Vec::new();
        for _ in 0..words.count("buffers", 3)? {
            let written = match words.next()? {
                0 => false,
                1 => true,
                other => return Err(bad(format!("A buffer's access is 0 or 1, got {other}"))),
            };
            externals.push(External { written, bytes: words.bytes("a buffer")?, align: 1 });
        }
        let mut instructions = Vec::new();
        for index in 0..words.count("instructions", 2)? {
            let instruction = parse_instruction(&mut words, arena, &externals)
                .map_err(|e| Error::new(e.code, format!("Instruction {index}: {}", e.message)))?;
            for operand in instruction.operands.iter().flatten() {
                if let Slot::External(slot) = operand.slot {
                    let align = &mut externals[slot].align;
                    *align = (*align).max(operand.view.dtype.size());
                }
            }
            instructions.push(instruction);
        }
        if words.at != bytes.len() {
            return Err(bad(format!("{} bytes follow the program", bytes.len() - words.at)));
        }
        static NUMBER: AtomicU64 = AtomicU64::new(1);
        Ok(Program { id: NUMBER.fetch_add(1, Ordering::Relaxed), externals, arena, instructions })
    }
}

fn parse_instruction(words: &mut Words, arena: usize, externals: &[External]) -> Result<Instruction> {
    let code = words.next()?;
    let op = Op::from_code(code).ok_or_else(|| bad(format!("Unknown kernel {code}")))?;
    let spec = SPECS.iter().find(|spec| spec.op == op).ok_or_else(|| bad(format!("Unknown kernel {code}")))?;
    let mut operands = Vec::with_capacity(spec.operands.len());
    for (index, (name, optional, layout)) in spec.operands.iter().enumerate() {
        let operand = parse_operand(words, arena, externals)
            .and_then(|operand| match operand {
                None if !optional => Err(bad("it is required".into())),
                Some(o) if index + 1 == spec.operands.len() => writable(o, externals).map(Some),
                other => Ok(other),
            })
            .map_err(|e| bad(format!("{} operand {name}: {}", spec.name, e.message)))?;
        if let Some(operand) = &operand {
            if !fits(&operand.view, *layout) {
                return Err(bad(format!("{} takes {name} with {layout:?} strides", spec.name)));
            }
        }
        operands.push(operand);
    }
    let params = parse_params(words, spec)?;
    let views: Vec<Option<View>> = operands.iter().map(|o| o.map(|o| o.view)).collect();
    (kernel(op).check)(&Args { operands: &views, params: &params })?;
    Ok(Instruction { op, operands, params })
}

fn writable(operand: Operand, externals: &[External]) -> Result<Operand> {
    if let Slot::External(index) = operand.slot {
        if !externals[index].written {
            return Err(bad(format!("buffer {index} is declared as read only")));
        }
    }
    // Two elements in one place would make the result depend on the threads.
    let mut axes: Vec<(usize, usize)> =
        (0..operand.view.rank).map(|a| (operand.view.strides[a], operand.view.dims[a])).filter(|a| a.1 > 1).collect();
    axes.sort_unstable();
    let mut reach = 0;
    for (stride, size) in axes {
        if stride <= reach {
            return Err(bad("its elements overlap".into()));
        }
        reach += stride * (size - 1);
    }
    Ok(operand)
}

fn fits(view: &View, layout: Layout) -> bool {
    match layout {
        Layout::Strided => true,
        Layout::Inner => view.inner_dense(),
        Layout::Rows => view.inner_dense() && view.row_stride().is_some(),
        Layout::Dense => view.is_contiguous(),
    }
}

fn parse_operand(words: &mut Words, arena: usize, externals: &[External]) -> Result<Option<Operand>> {
    let (slot, limit) = match words.next()? {
        0 => return Ok(None),
        1 => (Slot::Arena, arena),
        n => {
            let index = n as usize - 2;
            let external = externals.get(index).ok_or_else(|| bad(format!("there is no buffer {index}")))?;
            (Slot::External(index), external.bytes)
        }
    };
    let code = words.next()?;
    let dtype = DType::from_code(code).ok_or_else(|| bad(format!("unknown dtype {code}")))?;
    let rank = words.next()? as usize;
    if rank > MAX_RANK {
        return Err(bad(format!("{rank} axes are more than {MAX_RANK}")));
    }
    let offset = words.bytes("offset")?;
    let mut view = View { ptr: std::ptr::null_mut(), dtype, rank, dims: [1; MAX_RANK], strides: [0; MAX_RANK] };
    for axis in 0..rank {
        view.dims[axis] = words.next()? as usize;
    }
    for axis in 0..rank {
        view.strides[axis] = words.next()? as usize;
    }
    let mut len = 1u64;
    let mut reach = 0u64;
    for axis in 0..rank {
        let (size, stride) = (view.dims[axis] as u64, view.strides[axis] as u64);
        len = len.checked_mul(size).filter(|&n| n <= MAX_BYTES).ok_or_else(|| bad("it is too large".into()))?;
        reach = size
            .saturating_sub(1)
            .checked_mul(stride)
            .and_then(|n| n.checked_add(reach))
            .filter(|&n| n <= MAX_BYTES)
            .ok_or_else(|| bad("its strides are too large".into()))?;
    }
    let end = if len == 0 { offset as u64 } else { offset as u64 + (reach + 1) * dtype.size() as u64 };
    if end > limit as u64 {
        return Err(bad(format!("it reaches byte {end} of {limit}")));
    }
    if offset % dtype.size() != 0 {
        return Err(bad(format!("offset {offset} is not a multiple of {}", dtype.size())));
    }
    Ok(Some(Operand { slot, offset, view }))
}

fn parse_params(words: &mut Words, spec: &Spec) -> Result<Vec<u32>> {
    let mut params = Vec::with_capacity(spec.params.len());
    for (name, kind) in spec.params {
        let word = words.next()?;
        let known = match kind {
            Param::I32 => true,
            Param::F32 => !f32::from_bits(word).is_nan(),
            Param::Unary => Unary::from_code(word).is_some(),
            Param::Activation => Activation::from_code(word).is_some(),
            Param::Binary => Binary::from_code(word).is_some(),
            Param::Reduce => Reduce::from_code(word).is_some(),
            Param::Format => Format::from_code(word).is_some(),
            Param::Rows => Rows::from_code(word).is_some(),
        };
        if !known {
            return Err(bad(format!("{} has no {name} {word}", spec.name)));
        }
        params.push(word);
    }
    Ok(params)
}
