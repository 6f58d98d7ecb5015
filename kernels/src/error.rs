//! Errors: a code that the caller can switch on, and a sentence for the person.

/// What went wrong, as a short word that is stable across versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum Code {
    /// A program's bytes are malformed, or its operands do not fit its buffers.
    BadProgram = 1,
    /// A handle that was never given out, was freed, or is of another kind.
    BadHandle = 2,
    /// An argument out of its range.
    BadArgument = 3,
    /// A value that only the data can show to be wrong, such as a token id beyond the table.
    BadValue = 4,
    /// Memory could not be had.
    OutOfMemory = 5,
    /// A file could not be opened or mapped.
    Io = 6,
    /// The run was cancelled.
    Cancelled = 7,
    /// A defect of this library: a panic that was caught.
    Internal = 8,
    /// A program or library of another schema.
    Mismatch = 9,
    /// A device that this machine lacks, whose library is missing, or that has no kernel for an instruction.
    Unavailable = 10,
}

/// An error with its code.
#[derive(Clone, Debug)]
pub struct Error {
    /// The code.
    pub code: Code,
    /// The sentence.
    pub message: String,
}

impl Error {
    /// Makes an error.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}: {}", self.code, self.message)
    }
}

impl std::error::Error for Error {}

/// A result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Returns `Err(BadProgram)` with a formatted sentence unless the condition holds.
#[macro_export]
macro_rules! ensure {
    ($cond:expr, $($arg:tt)*) => {
        if !$cond {
            return Err($crate::error::Error::new($crate::error::Code::BadProgram, format!($($arg)*)));
        }
    };
}
