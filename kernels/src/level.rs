//! Instruction levels: which kernels this CPU can run, and which it was asked to.

use crate::error::{Code, Error, Result};

/// A level of instructions. `Reference` is the plain code that every other level is checked against.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Plain loops, one element at a time: the oracle.
    Reference,
    /// The fast kernels in portable Rust.
    Portable,
    /// AVX2, FMA and F16C.
    Avx2,
    /// AVX-512 F, BW, DQ, VL.
    Avx512,
    /// AVX-512 with BF16 dot products, VNNI and VBMI2: Zen 4, Sapphire Rapids and what came after them.
    Avx512Bf16,
}

impl Level {
    /// All levels, lowest first.
    pub const ALL: [Level; 5] = [Level::Reference, Level::Portable, Level::Avx2, Level::Avx512, Level::Avx512Bf16];

    /// The name that options and files use.
    pub fn name(self) -> &'static str {
        match self {
            Level::Reference => "reference",
            Level::Portable => "portable",
            Level::Avx2 => "avx2",
            Level::Avx512 => "avx512",
            Level::Avx512Bf16 => "avx512bf16",
        }
    }

    /// Lanes of f32 in a register.
    pub fn lanes(self) -> usize {
        if self >= Level::Avx512 { 16 } else { 8 }
    }

    /// How many registers there are.
    pub fn registers(self) -> usize {
        match self {
            Level::Reference | Level::Portable => 8,
            Level::Avx2 => 16,
            Level::Avx512 | Level::Avx512Bf16 => 32,
        }
    }

    /// Whether this CPU has the level's instructions.
    pub fn supported(self) -> bool {
        match self {
            Level::Reference | Level::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => {
                is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
            }
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => {
                Level::Avx2.supported()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
            }
            #[cfg(target_arch = "x86_64")]
            Level::Avx512Bf16 => {
                Level::Avx512.supported()
                    && is_x86_feature_detected!("avx512bf16")
                    && is_x86_feature_detected!("avx512vnni")
                    && is_x86_feature_detected!("avx512vbmi2")
            }
            #[cfg(not(target_arch = "x86_64"))]
            _ => false,
        }
    }

    /// The highest level that this CPU has.
    pub fn best() -> Level {
        *Level::ALL.iter().rev().find(|level| level.supported()).unwrap_or(&Level::Portable)
    }

    /// The level of a name, which this CPU must have; an empty name is the best.
    pub fn named(name: &str) -> Result<Level> {
        if name.is_empty() {
            return Ok(Level::best());
        }
        let names = || Level::ALL.map(Level::name).join(", ");
        let level = Level::ALL.into_iter().find(|level| level.name() == name).ok_or_else(|| {
            Error::new(Code::BadArgument, format!("Unknown CPU level `{name}`: the levels are {}", names()))
        })?;
        if !level.supported() {
            return Err(Error::new(
                Code::BadArgument,
                format!("This CPU lacks the level `{name}`: the highest that it has is `{}`", Level::best().name()),
            ));
        }
        Ok(level)
    }
}

/// What this CPU calls itself, with the number of its make: tunings are kept by it.
pub fn cpu_model() -> String {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::__cpuid;
        let words = |leaf| {
            let r = __cpuid(leaf);
            [r.eax, r.ebx, r.ecx, r.edx]
        };
        let brand: Vec<u8> = match words(0x8000_0000)[0] {
            0x8000_0004.. => (0x8000_0002..=0x8000_0004).flat_map(words).flat_map(u32::to_le_bytes).collect(),
            _ => Vec::new(),
        };
        let brand: String = brand.iter().map(|&c| if c.is_ascii_graphic() { c as char } else { ' ' }).collect();
        let name = brand.split_whitespace().collect::<Vec<_>>().join(" ");
        format!("{} {:08x}", if name.is_empty() { "x86_64" } else { &name }, words(1)[0])
    }
    #[cfg(not(target_arch = "x86_64"))]
    std::env::consts::ARCH.to_string()
}

/// How many threads a device has that is told no number.
pub fn default_threads() -> usize {
    std::thread::available_parallelism().map_or(1, |n| n.get())
}
