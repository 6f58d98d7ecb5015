//! Buffers: memory of the library's own, a part of a mapped file, or memory of a CUDA device.

use crate::cuda::Memory as DeviceMemory;
use crate::error::{Code, Error, Result};
use memmap2::{Mmap, MmapMut};
use std::collections::HashMap;
use std::fs::Metadata;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Weak};
use std::time::SystemTime;

/// What a program may read, and, where it is not a file, write.
pub enum Buffer {
    /// Zeroed memory.
    Owned(Owned),
    /// Bytes of a file; never written.
    Mapped(Mapped),
    /// Memory of a CUDA device.
    Device(DeviceMemory),
}

/// A part of a mapped file.
pub struct Mapped {
    file: Arc<Mmap>,
    offset: usize,
    len: usize,
}

impl Drop for Mapped {
    /// The file may stay mapped for the sake of other parts; this one's pages need not be in memory for it.
    fn drop(&mut self) {
        // Sound for a file that is mapped to be read: whoever reads these pages again has them read in again.
        #[cfg(unix)]
        unsafe {
            let _ = self.file.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, self.offset, self.len);
        }
    }
}

/// Zeroed memory, aligned to 64 bytes, that frees itself.
pub struct Owned {
    ptr: *mut u8,
    len: usize,
    _memory: Memory,
}

enum Memory {
    Small {
        _lines: Box<[Line]>,
    },
    /// Pages that the system zeroes when they are first touched, by the thread that touches them.
    Large {
        _pages: MmapMut,
    },
    /// Such pages, among those of other buffers.
    #[cfg(target_os = "linux")]
    Medium {
        _pages: Pages,
    },
}

/// A part of address space that many buffers share which are too small for huge pages of their own. A model's weights
/// come one after another: a few huge pages hold them, where small ones would be more than a CPU remembers the places of.
#[cfg(target_os = "linux")]
struct Pages {
    space: Arc<MmapMut>,
    offset: usize,
    len: usize,
}

/// The space that the next buffers lie in, and how many of its bytes were given out; none is given out twice.
#[cfg(target_os = "linux")]
static SPACE: Mutex<Option<(Arc<MmapMut>, usize)>> = Mutex::new(None);

#[cfg(target_os = "linux")]
impl Pages {
    fn new(len: usize) -> std::io::Result<Self> {
        let mut current = SPACE.lock().unwrap_or_else(|e| e.into_inner());
        let (space, offset) = match current.take() {
            Some((space, used)) if len <= space.len() - used => (space, used),
            _ => {
                let space = MmapMut::map_anon(SPACE_BYTES)?;
                let _ = space.advise(memmap2::Advice::HugePage);
                (Arc::new(space), 0)
            }
        };
        *current = Some((space.clone(), offset + len.next_multiple_of(PAGE)));
        Ok(Self { space, offset, len })
    }
}

#[cfg(target_os = "linux")]
impl Drop for Pages {
    /// The space stays for the sake of other buffers; this one's pages go back to the system.
    fn drop(&mut self) {
        // Nothing reads or writes them again.
        let _ = unsafe { self.space.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, self.offset, self.len) };
    }
}

#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line {
    _bytes: [u8; 64],
}

/// What is worth pages of its own.
const LARGE: usize = 1 << 16;
/// What is worth huge pages, of 2 MiB mostly.
#[cfg(target_os = "linux")]
const HUGE: usize = 1 << 22;
/// The address space that smaller ones share: a multiple of `HUGE`, as long as what they leave over is little of it.
#[cfg(target_os = "linux")]
const SPACE_BYTES: usize = 1 << 26;
/// Buffers in it begin on pages of their own, which are no larger than this on any machine.
#[cfg(target_os = "linux")]
const PAGE: usize = 1 << 16;

// Runs are serialized by the device's lock; reads and writes from the host are bounded copies.
unsafe impl Send for Owned {}
unsafe impl Sync for Owned {}

impl Owned {
    /// Zeroed memory of a length.
    pub fn new(len: usize) -> Result<Self> {
        if len < LARGE {
            let mut lines = vec![Line { _bytes: [0; 64] }; len.div_ceil(64)].into_boxed_slice();
            return Ok(Self { ptr: lines.as_mut_ptr() as *mut u8, len, _memory: Memory::Small { _lines: lines } });
        }
        let failed = |e| Error::new(Code::OutOfMemory, format!("Cannot allocate {len} bytes: {e}"));
        #[cfg(target_os = "linux")]
        if len < HUGE {
            let pages = Pages::new(len).map_err(failed)?;
            let ptr = unsafe { pages.space.as_ptr().add(pages.offset) as *mut u8 };
            return Ok(Self { ptr, len, _memory: Memory::Medium { _pages: pages } });
        }
        let mut pages = MmapMut::map_anon(len).map_err(failed)?;
        // Fewer, larger pages where there is room for them; without, it works as well.
        #[cfg(target_os = "linux")]
        let _ = pages.advise(memmap2::Advice::HugePage);
        Ok(Self { ptr: pages.as_mut_ptr(), len, _memory: Memory::Large { _pages: pages } })
    }

    /// The first byte.
    pub fn ptr(&self) -> *mut u8 {
        self.ptr
    }
}

/// What tells a file from another that was written to its path later.
#[derive(PartialEq, Eq, Hash)]
struct FileKey {
    path: PathBuf,
    len: u64,
    modified: Option<SystemTime>,
    /// Device and number, where files have them.
    id: (u64, u64),
}

impl FileKey {
    fn of(path: &Path, metadata: &Metadata) -> Self {
        #[cfg(unix)]
        let id = {
            use std::os::unix::fs::MetadataExt;
            (metadata.dev(), metadata.ino())
        };
        #[cfg(not(unix))]
        let id = (0, 0);
        FileKey { path: path.to_path_buf(), len: metadata.len(), modified: metadata.modified().ok(), id }
    }
}

/// Files that are mapped now, so that a thousand tensors of one file share one mapping.
static MAPS: Mutex<Option<HashMap<FileKey, Weak<Mmap>>>> = Mutex::new(None);

impl Buffer {
    /// Zeroed memory.
    pub fn new(len: usize) -> Result<Self> {
        Owned::new(len).map(Buffer::Owned)
    }

    /// A part of a file.
    pub fn map(path: &Path, offset: usize, len: usize) -> Result<Self> {
        let map = map_file(path)?;
        if offset.checked_add(len).is_none_or(|end| end > map.len()) {
            return Err(Error::new(
                Code::Io,
                format!(
                    "{} has {} bytes and cannot hold {len} at {offset}: it was cut short",
                    path.display(),
                    map.len()
                ),
            ));
        }
        Ok(Buffer::Mapped(Mapped { file: map, offset, len }))
    }

    /// How many bytes there are.
    pub fn len(&self) -> usize {
        match self {
            Buffer::Owned(owned) => owned.len,
            Buffer::Mapped(mapped) => mapped.len,
            Buffer::Device(memory) => memory.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether a program may write it.
    pub fn writable(&self) -> bool {
        !matches!(self, Buffer::Mapped(_))
    }

    /// The memory of a device, where it is of one.
    pub fn device(&self) -> Option<&DeviceMemory> {
        match self {
            Buffer::Device(memory) => Some(memory),
            _ => None,
        }
    }

    /// The first byte, where its device can read it.
    pub fn ptr(&self) -> *mut u8 {
        match self {
            Buffer::Owned(owned) => owned.ptr,
            Buffer::Mapped(mapped) => unsafe { mapped.file.as_ptr().add(mapped.offset) as *mut u8 },
            Buffer::Device(memory) => memory.ptr(),
        }
    }

    /// The bytes of a mapped file; `None` of memory, which may change.
    pub fn bytes(&self) -> Option<&[u8]> {
        match self {
            Buffer::Mapped(mapped) => Some(&mapped.file[mapped.offset..mapped.offset + mapped.len]),
            _ => None,
        }
    }

    /// Has the system begin to read what is mapped.
    pub fn prefetch(&self) {
        #[cfg(unix)]
        if let Buffer::Mapped(mapped) = self {
            let _ = mapped.file.advise_range(memmap2::Advice::WillNeed, mapped.offset, mapped.len);
        }
    }

    /// Copies bytes in.
    pub fn write(&self, offset: usize, bytes: &[u8]) -> Result<()> {
        if !self.writable() {
            return Err(Error::new(Code::BadArgument, "A mapped file cannot be written"));
        }
        self.check(offset, bytes.len())?;
        if let Buffer::Device(memory) = self {
            return memory.write(offset, bytes);
        }
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.ptr().add(offset), bytes.len()) };
        Ok(())
    }

    /// Copies bytes out.
    pub fn read(&self, offset: usize, out: &mut [u8]) -> Result<()> {
        self.check(offset, out.len())?;
        if let Buffer::Device(memory) = self {
            return memory.read(offset, out);
        }
        unsafe { std::ptr::copy_nonoverlapping(self.ptr().add(offset), out.as_mut_ptr(), out.len()) };
        Ok(())
    }

    fn check(&self, offset: usize, len: usize) -> Result<()> {
        if offset.checked_add(len).is_none_or(|end| end > self.len()) {
            return Err(Error::new(
                Code::BadArgument,
                format!("{len} bytes at {offset} lie outside a buffer of {}", self.len()),
            ));
        }
        Ok(())
    }
}

fn map_file(path: &Path) -> Result<Arc<Mmap>> {
    let failed = |e: std::io::Error| Error::new(Code::Io, format!("Cannot map {}: {e}", path.display()));
    let file = std::fs::File::open(path).map_err(failed)?;
    let key = FileKey::of(path, &file.metadata().map_err(failed)?);
    let mut maps = MAPS.lock().unwrap_or_else(|e| e.into_inner());
    let maps = maps.get_or_insert_with(HashMap::new);
    if let Some(map) = maps.get(&key).and_then(Weak::upgrade) {
        return Ok(map);
    }
    maps.retain(|_, map| map.strong_count() > 0);
    // Sound as long as nobody truncates the file while it is in use, which is every mapping's condition.
    let map = Arc::new(unsafe { Mmap::map(&file) }.map_err(failed)?);
    maps.insert(key, Arc::downgrade(&map));
    Ok(map)
}
