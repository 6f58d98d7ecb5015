// Written by tools/generate_schema.ts from lib/graph/schema.ts; change that, not this.

//! The schema of kernels: codes, operands and parameters of every instruction.

/// The schema's hash, as it stands in a program's header.
pub const SCHEMA_HASH: [u32; 2] = [2085384700, 487778570];

/// The most dimensions that an operand may have.
pub const MAX_RANK: usize = 8;

/// An element type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum DType {
    /// `f32`.
    F32 = 0,
    /// `bf16`.
    BF16 = 1,
    /// `f16`.
    F16 = 2,
    /// `i32`.
    I32 = 3,
    /// `u8`.
    U8 = 4,
    /// `i8`.
    I8 = 5,
}

impl DType {
    /// The variant of a code.
    pub fn from_code(code: u32) -> Option<Self> {
        match code {
            0 => Some(Self::F32),
            1 => Some(Self::BF16),
            2 => Some(Self::F16),
            3 => Some(Self::I32),
            4 => Some(Self::U8),
            5 => Some(Self::I8),
            _ => None,
        }
    }
}

impl DType {
    /// The size of one element in bytes.
    pub fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::BF16 => 2,
            Self::F16 => 2,
            Self::I32 => 4,
            Self::U8 => 1,
            Self::I8 => 1,
        }
    }

    /// Whether it is a floating-point type.
    pub fn is_float(self) -> bool {
        matches!(self, Self::F32 | Self::BF16 | Self::F16)
    }
}

/// An element-wise function of one operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Unary {
    /// `affine`.
    Affine = 0,
    /// `silu`.
    Silu = 1,
    /// `gelu_tanh`.
    GeluTanh = 2,
    /// `gelu_erf`.
    GeluErf = 3,
    /// `quick_gelu`.
    QuickGelu = 4,
    /// `relu`.
    Relu = 5,
    /// `sigmoid`.
    Sigmoid = 6,
    /// `tanh`.
    Tanh = 7,
    /// `exp`.
    Exp = 8,
    /// `log`.
    Log = 9,
    /// `sqrt`.
    Sqrt = 10,
    /// `rsqrt`.
    Rsqrt = 11,
    /// `sin`.
    Sin = 12,
    /// `cos`.
    Cos = 13,
    /// `abs`.
    Abs = 14,
}

impl Unary {
    /// The variant of a code.
    pub fn from_code(code: u32) -> Option<Self> {
        match code {
            0 => Some(Self::Affine),
            1 => Some(Self::Silu),
            2 => Some(Self::GeluTanh),
            3 => Some(Self::GeluErf),
            4 => Some(Self::QuickGelu),
            5 => Some(Self::Relu),
            6 => Some(Self::Sigmoid),
            7 => Some(Self::Tanh),
            8 => Some(Self::Exp),
            9 => Some(Self::Log),
            10 => Some(Self::Sqrt),
            11 => Some(Self::Rsqrt),
            12 => Some(Self::Sin),
            13 => Some(Self::Cos),
            14 => Some(Self::Abs),
            _ => None,
        }
    }
}

/// An activation fused into another kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Activation {
    /// `none`.
    None = 0,
    /// `silu`.
    Silu = 1,
    /// `gelu_tanh`.
    GeluTanh = 2,
    /// `gelu_erf`.
    GeluErf = 3,
    /// `quick_gelu`.
    QuickGelu = 4,
    /// `relu`.
    Relu = 5,
}

impl Activation {
    /// The variant of a code.
    pub fn from_code(code: u32) -> Option<Self> {
        match code {
            0 => Some(Self::None),
            1 => Some(Self::Silu),
            2 => Some(Self::GeluTanh),
            3 => Some(Self::GeluErf),
            4 => Some(Self::QuickGelu),
            5 => Some(Self::Relu),
            _ => None,
        }
    }
}

/// An element-wise function of two operands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Binary {
    /// `add`.
    Add = 0,
    /// `sub`.
    Sub = 1,
    /// `mul`.
    Mul = 2,
    /// `div`.
    Div = 3,
    /// `max`.
    Max = 4,
    /// `min`.
    Min = 5,
}

impl Binary {
    /// The variant of a code.
    pub fn from_code(code: u32) -> Option<Self> {
        match code {
            0 => Some(Self::Add),
            1 => Some(Self::Sub),
            2 => Some(Self::Mul),
            3 => Some(Self::Div),
            4 => Some(Self::Max),
            5 => Some(Self::Min),
            _ => None,
        }
    }
}

/// A reduction of the last axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Reduce {
    /// `sum`.
    Sum = 0,
    /// `mean`.
    Mean = 1,
    /// `max`.
    Max = 2,
}

impl Reduce {
    /// The variant of a code.
    pub fn from_code(code: u32) -> Option<Self> {
        match code {
            0 => Some(Self::Sum),
            1 => Some(Self::Mean),
            2 => Some(Self::Max),
            _ => None,
        }
    }
}

/// How a quantized weight is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Format {
    /// `int8`.
    Int8 = 0,
    /// `int4`.
    Int4 = 1,
    /// `e4m3`.
    E4m3 = 2,
    /// `e5m2`.
    E5m2 = 3,
    /// `fpx`.
    Fpx = 4,
    /// `sparse_int8`.
    SparseInt8 = 5,
}

impl Format {
    /// The variant of a code.
    pub fn from_code(code: u32) -> Option<Self> {
        match code {
            0 => Some(Self::Int8),
            1 => Some(Self::Int4),
            2 => Some(Self::E4m3),
            3 => Some(Self::E5m2),
            4 => Some(Self::Fpx),
            5 => Some(Self::SparseInt8),
            _ => None,
        }
    }
}

/// How rows of activations are quantized at run time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Rows {
    /// `none`.
    None = 0,
    /// `int8`.
    Int8 = 1,
    /// `int8_asym`.
    Int8Asym = 2,
    /// `e4m3`.
    E4m3 = 3,
    /// `e5m2`.
    E5m2 = 4,
}

impl Rows {
    /// The variant of a code.
    pub fn from_code(code: u32) -> Option<Self> {
        match code {
            0 => Some(Self::None),
            1 => Some(Self::Int8),
            2 => Some(Self::Int8Asym),
            3 => Some(Self::E4m3),
            4 => Some(Self::E5m2),
            _ => None,
        }
    }
}

/// A kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Op {
    /// `copy`.
    Copy = 1,
    /// `unary`.
    Unary = 2,
    /// `binary`.
    Binary = 3,
    /// `reduce`.
    Reduce = 4,
    /// `softmax`.
    Softmax = 5,
    /// `linear`.
    Linear = 6,
    /// `pack_linear`.
    PackLinear = 7,
    /// `matmul`.
    Matmul = 8,
    /// `attention`.
    Attention = 9,
    /// `layer_norm`.
    LayerNorm = 10,
    /// `rms_norm`.
    RmsNorm = 11,
    /// `rope`.
    Rope = 12,
    /// `rms_norm_rope`.
    RmsNormRope = 13,
    /// `group_norm`.
    GroupNorm = 14,
    /// `conv`.
    Conv = 15,
    /// `pack_conv`.
    PackConv = 16,
    /// `upsample_nearest`.
    UpsampleNearest = 17,
    /// `embedding`.
    Embedding = 18,
    /// `timestep_embedding`.
    TimestepEmbedding = 19,
    /// `rotary_embedding`.
    RotaryEmbedding = 20,
    /// `quantize_scale`.
    QuantizeScale = 21,
    /// `quantize_zero_point`.
    QuantizeZeroPoint = 22,
    /// `quantize_codes`.
    QuantizeCodes = 23,
    /// `dequantize`.
    Dequantize = 24,
    /// `pack_quantized`.
    PackQuantized = 25,
    /// `quantized_linear`.
    QuantizedLinear = 26,
    /// `quantize_rows`.
    QuantizeRows = 27,
    /// `abs_max`.
    AbsMax = 28,
    /// `quantized_embedding`.
    QuantizedEmbedding = 29,
    /// `pack_quantized_conv`.
    PackQuantizedConv = 30,
    /// `quantized_conv`.
    QuantizedConv = 31,
    /// `prune_semi_structured`.
    PruneSemiStructured = 32,
}

impl Op {
    /// The variant of a code.
    pub fn from_code(code: u32) -> Option<Self> {
        match code {
            1 => Some(Self::Copy),
            2 => Some(Self::Unary),
            3 => Some(Self::Binary),
            4 => Some(Self::Reduce),
            5 => Some(Self::Softmax),
            6 => Some(Self::Linear),
            7 => Some(Self::PackLinear),
            8 => Some(Self::Matmul),
            9 => Some(Self::Attention),
            10 => Some(Self::LayerNorm),
            11 => Some(Self::RmsNorm),
            12 => Some(Self::Rope),
            13 => Some(Self::RmsNormRope),
            14 => Some(Self::GroupNorm),
            15 => Some(Self::Conv),
            16 => Some(Self::PackConv),
            17 => Some(Self::UpsampleNearest),
            18 => Some(Self::Embedding),
            19 => Some(Self::TimestepEmbedding),
            20 => Some(Self::RotaryEmbedding),
            21 => Some(Self::QuantizeScale),
            22 => Some(Self::QuantizeZeroPoint),
            23 => Some(Self::QuantizeCodes),
            24 => Some(Self::Dequantize),
            25 => Some(Self::PackQuantized),
            26 => Some(Self::QuantizedLinear),
            27 => Some(Self::QuantizeRows),
            28 => Some(Self::AbsMax),
            29 => Some(Self::QuantizedEmbedding),
            30 => Some(Self::PackQuantizedConv),
            31 => Some(Self::QuantizedConv),
            32 => Some(Self::PruneSemiStructured),
            _ => None,
        }
    }
}

/// What strides a kernel takes for an operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Any.
    Strided,
    /// The last axis is dense.
    Inner,
    /// The last axis is dense and the others fold into rows of equal distance.
    Rows,
    /// No gaps.
    Dense,
}

/// The type of a parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Param {
    /// A signed integer.
    I32,
    /// A float.
    F32,
    /// A code of [`Unary`].
    Unary,
    /// A code of [`Activation`].
    Activation,
    /// A code of [`Binary`].
    Binary,
    /// A code of [`Reduce`].
    Reduce,
    /// A code of [`Format`].
    Format,
    /// A code of [`Rows`].
    Rows,
}

/// One operand's name, whether it may be absent, and its layout.
pub type Operand = (&'static str, bool, Layout);

/// One kernel's name, operands (the last is the result) and parameters.
pub struct Spec {
    /// The kernel.
    pub op: Op,
    /// Its name in the schema.
    pub name: &'static str,
    /// Its operands in order.
    pub operands: &'static [Operand],
    /// Its parameters in order.
    pub params: &'static [(&'static str, Param)],
}

/// All kernels, in order of their codes.
pub const SPECS: &[Spec] = &[
    Spec {
        op: Op::Copy,
        name: "copy",
        operands: &[("x", false, Layout::Strided), ("out", false, Layout::Strided)],
        params: &[],
    },
    Spec {
        op: Op::Unary,
        name: "unary",
        operands: &[("x", false, Layout::Strided), ("out", false, Layout::Strided)],
        params: &[("kind", Param::Unary), ("alpha", Param::F32), ("beta", Param::F32)],
    },
    Spec {
        op: Op::Binary,
        name: "binary",
        operands: &[("a", false, Layout::Strided), ("b", false, Layout::Strided), ("out", false, Layout::Strided)],
        params: &[("kind", Param::Binary)],
    },
    Spec {
        op: Op::Reduce,
        name: "reduce",
        operands: &[("x", false, Layout::Inner), ("out", false, Layout::Strided)],
        params: &[("kind", Param::Reduce)],
    },
    Spec {
        op: Op::Softmax,
        name: "softmax",
        operands: &[("x", false, Layout::Inner), ("out", false, Layout::Inner)],
        params: &[],
    },
    Spec {
        op: Op::Linear,
        name: "linear",
        operands: &[
            ("x", false, Layout::Rows),
            ("weight", false, Layout::Dense),
            ("bias", true, Layout::Dense),
            ("gate", true, Layout::Strided),
            ("residual", true, Layout::Strided),
            ("out", false, Layout::Inner),
        ],
        params: &[("n", Param::I32), ("k", Param::I32), ("act", Param::Activation), ("variant", Param::I32)],
    },
    Spec {
        op: Op::PackLinear,
        name: "pack_linear",
        operands: &[("weight", false, Layout::Inner), ("out", false, Layout::Dense)],
        params: &[("dtype", Param::I32)],
    },
    Spec {
        op: Op::Matmul,
        name: "matmul",
        operands: &[("a", false, Layout::Strided), ("b", false, Layout::Strided), ("out", false, Layout::Inner)],
        params: &[("alpha", Param::F32)],
    },
    Spec {
        op: Op::Attention,
        name: "attention",
        operands: &[
            ("q", false, Layout::Inner),
            ("k", false, Layout::Inner),
            ("v", false, Layout::Inner),
            ("bias", true, Layout::Strided),
            ("out", false, Layout::Inner),
        ],
        params: &[("scale", Param::F32), ("causal", Param::I32), ("variant", Param::I32)],
    },
    Spec {
        op: Op::LayerNorm,
        name: "layer_norm",
        operands: &[
            ("x", false, Layout::Inner),
            ("weight", true, Layout::Dense),
            ("bias", true, Layout::Dense),
            ("scale", true, Layout::Strided),
            ("shift", true, Layout::Strided),
            ("out", false, Layout::Inner),
        ],
        params: &[("eps", Param::F32), ("rows", Param::Rows)],
    },
    Spec {
        op: Op::RmsNorm,
        name: "rms_norm",
        operands: &[("x", false, Layout::Inner), ("weight", true, Layout::Dense), ("out", false, Layout::Inner)],
        params: &[("eps", Param::F32), ("rows", Param::Rows)],
    },
    Spec {
        op: Op::Rope,
        name: "rope",
        operands: &[
            ("x", false, Layout::Inner),
            ("cos", false, Layout::Inner),
            ("sin", false, Layout::Inner),
            ("out", false, Layout::Inner),
        ],
        params: &[],
    },
    Spec {
        op: Op::RmsNormRope,
        name: "rms_norm_rope",
        operands: &[
            ("x", false, Layout::Inner),
            ("weight", true, Layout::Dense),
            ("cos", false, Layout::Inner),
            ("sin", false, Layout::Inner),
            ("out", false, Layout::Inner),
        ],
        params: &[("eps", Param::F32)],
    },
    Spec {
        op: Op::GroupNorm,
        name: "group_norm",
        operands: &[
            ("x", false, Layout::Inner),
            ("weight", true, Layout::Dense),
            ("bias", true, Layout::Dense),
            ("scale", true, Layout::Inner),
            ("shift", true, Layout::Inner),
            ("out", false, Layout::Inner),
        ],
        params: &[("groups", Param::I32), ("eps", Param::F32), ("act", Param::Activation), ("first", Param::I32)],
    },
    Spec {
        op: Op::Conv,
        name: "conv",
        operands: &[
            ("x", false, Layout::Inner),
            ("weight", false, Layout::Dense),
            ("bias", true, Layout::Dense),
            ("residual", true, Layout::Strided),
            ("cache", true, Layout::Inner),
            ("out", false, Layout::Inner),
        ],
        params: &[
            ("kt", Param::I32),
            ("kh", Param::I32),
            ("kw", Param::I32),
            ("stride", Param::I32),
            ("pad_top", Param::I32),
            ("pad_left", Param::I32),
            ("upsample", Param::I32),
            ("act", Param::Activation),
            ("variant", Param::I32),
        ],
    },
    Spec {
        op: Op::PackConv,
        name: "pack_conv",
        operands: &[("weight", false, Layout::Strided), ("out", false, Layout::Dense)],
        params: &[("dtype", Param::I32)],
    },
    Spec {
        op: Op::UpsampleNearest,
        name: "upsample_nearest",
        operands: &[("x", false, Layout::Inner), ("out", false, Layout::Inner)],
        params: &[("factor", Param::I32)],
    },
    Spec {
        op: Op::Embedding,
        name: "embedding",
        operands: &[("ids", false, Layout::Strided), ("table", false, Layout::Inner), ("out", false, Layout::Inner)],
        params: &[],
    },
    Spec {
        op: Op::TimestepEmbedding,
        name: "timestep_embedding",
        operands: &[("t", false, Layout::Strided), ("out", false, Layout::Inner)],
        params: &[("flip", Param::I32), ("shift", Param::F32), ("max_period", Param::F32), ("scale", Param::F32)],
    },
    Spec {
        op: Op::RotaryEmbedding,
        name: "rotary_embedding",
        operands: &[("ids", false, Layout::Strided), ("out", false, Layout::Dense)],
        params: &[
            ("theta", Param::F32),
            ("axis0", Param::I32),
            ("axis1", Param::I32),
            ("axis2", Param::I32),
            ("axis3", Param::I32),
        ],
    },
    Spec {
        op: Op::QuantizeScale,
        name: "quantize_scale",
        operands: &[("weight", false, Layout::Inner), ("out", false, Layout::Dense)],
        params: &[
            ("format", Param::Format),
            ("ebits", Param::I32),
            ("mbits", Param::I32),
            ("group", Param::I32),
            ("symmetric", Param::I32),
            ("dtype", Param::I32),
        ],
    },
    Spec {
        op: Op::QuantizeZeroPoint,
        name: "quantize_zero_point",
        operands: &[("weight", false, Layout::Inner), ("scale", false, Layout::Dense), ("out", false, Layout::Dense)],
        params: &[("format", Param::Format), ("group", Param::I32), ("dtype", Param::I32)],
    },
    Spec {
        op: Op::QuantizeCodes,
        name: "quantize_codes",
        operands: &[
            ("weight", false, Layout::Inner),
            ("scale", false, Layout::Dense),
            ("zero", true, Layout::Dense),
            ("out", false, Layout::Dense),
        ],
        params: &[
            ("format", Param::Format),
            ("ebits", Param::I32),
            ("mbits", Param::I32),
            ("group", Param::I32),
            ("dtype", Param::I32),
        ],
    },
    Spec {
        op: Op::Dequantize,
        name: "dequantize",
        operands: &[
            ("codes", false, Layout::Inner),
            ("scale", false, Layout::Dense),
            ("zero", true, Layout::Dense),
            ("out", false, Layout::Dense),
        ],
        params: &[
            ("n", Param::I32),
            ("k", Param::I32),
            ("format", Param::Format),
            ("ebits", Param::I32),
            ("mbits", Param::I32),
            ("group", Param::I32),
        ],
    },
    Spec {
        op: Op::PackQuantized,
        name: "pack_quantized",
        operands: &[
            ("codes", false, Layout::Inner),
            ("scale", false, Layout::Dense),
            ("zero", true, Layout::Dense),
            ("out", false, Layout::Dense),
        ],
        params: &[
            ("n", Param::I32),
            ("k", Param::I32),
            ("format", Param::Format),
            ("ebits", Param::I32),
            ("mbits", Param::I32),
            ("group", Param::I32),
            ("rows", Param::Rows),
            ("dtype", Param::I32),
        ],
    },
    Spec {
        op: Op::QuantizedLinear,
        name: "quantized_linear",
        operands: &[
            ("x", false, Layout::Rows),
            ("weight", false, Layout::Dense),
            ("bias", true, Layout::Dense),
            ("gate", true, Layout::Strided),
            ("residual", true, Layout::Strided),
            ("out", false, Layout::Inner),
        ],
        params: &[
            ("n", Param::I32),
            ("k", Param::I32),
            ("act", Param::Activation),
            ("format", Param::Format),
            ("ebits", Param::I32),
            ("mbits", Param::I32),
            ("group", Param::I32),
            ("zero", Param::I32),
            ("rows", Param::Rows),
            ("variant", Param::I32),
        ],
    },
    Spec {
        op: Op::QuantizeRows,
        name: "quantize_rows",
        operands: &[("x", false, Layout::Inner), ("amax", true, Layout::Dense), ("out", false, Layout::Inner)],
        params: &[("rows", Param::Rows)],
    },
    Spec {
        op: Op::AbsMax,
        name: "abs_max",
        operands: &[("x", false, Layout::Strided), ("out", false, Layout::Dense)],
        params: &[],
    },
    Spec {
        op: Op::QuantizedEmbedding,
        name: "quantized_embedding",
        operands: &[
            ("ids", false, Layout::Strided),
            ("codes", false, Layout::Inner),
            ("scale", false, Layout::Dense),
            ("out", false, Layout::Inner),
        ],
        params: &[],
    },
    Spec {
        op: Op::PackQuantizedConv,
        name: "pack_quantized_conv",
        operands: &[("codes", false, Layout::Inner), ("scale", false, Layout::Dense), ("out", false, Layout::Dense)],
        params: &[
            ("channels", Param::I32),
            ("kt", Param::I32),
            ("kh", Param::I32),
            ("kw", Param::I32),
            ("format", Param::Format),
            ("rows", Param::Rows),
            ("dtype", Param::I32),
        ],
    },
    Spec {
        op: Op::QuantizedConv,
        name: "quantized_conv",
        operands: &[
            ("x", false, Layout::Inner),
            ("weight", false, Layout::Dense),
            ("bias", true, Layout::Dense),
            ("residual", true, Layout::Strided),
            ("cache", true, Layout::Inner),
            ("amax", true, Layout::Dense),
            ("out", false, Layout::Inner),
        ],
        params: &[
            ("kt", Param::I32),
            ("kh", Param::I32),
            ("kw", Param::I32),
            ("stride", Param::I32),
            ("pad_top", Param::I32),
            ("pad_left", Param::I32),
            ("upsample", Param::I32),
            ("act", Param::Activation),
            ("format", Param::Format),
            ("rows", Param::Rows),
            ("variant", Param::I32),
        ],
    },
    Spec {
        op: Op::PruneSemiStructured,
        name: "prune_semi_structured",
        operands: &[("weight", false, Layout::Inner), ("out", false, Layout::Dense)],
        params: &[],
    },
];
