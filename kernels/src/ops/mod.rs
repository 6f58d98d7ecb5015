//! The kernels, one file a kind: each with a check of shapes and dtypes that runs when a program is loaded, a plain
//! reference, and the fast version.

use crate::error::Result;
use crate::level::Level;
use crate::pool::Pool;
use crate::schema::{Activation, Op};
use crate::view::View;

pub mod attention;
pub mod conv;
pub mod elementwise;
pub mod embedding;
pub mod group_norm;
pub mod linear;
pub mod matmul;
pub mod norm;
pub mod quantize;
pub mod quantize_rows;
pub mod quantized_conv;
pub mod quantized_linear;
pub mod rope;
pub mod softmax;
pub mod upsample;

/// What a kernel runs on.
pub struct Cx<'a> {
    /// The instruction level, never `Reference` for a fast kernel.
    pub level: Level,
    /// The threads.
    pub pool: &'a Pool,
}

/// One instruction's operands and parameters, in the schema's order.
pub struct Args<'a> {
    /// The operands; absent ones are `None`. The loader has checked that required ones are present.
    pub operands: &'a [Option<View>],
    /// The parameters' 32-bit words.
    pub params: &'a [u32],
}

impl Args<'_> {
    /// A required operand.
    pub fn view(&self, index: usize) -> View {
        self.operands[index].expect("the loader checks that required operands are present")
    }

    /// An optional operand.
    pub fn optional(&self, index: usize) -> Option<View> {
        self.operands[index]
    }

    /// The result.
    pub fn out(&self) -> View {
        self.view(self.operands.len() - 1)
    }

    /// An integer parameter.
    pub fn i32(&self, index: usize) -> i32 {
        self.params[index] as i32
    }

    /// A float parameter.
    pub fn f32(&self, index: usize) -> f32 {
        f32::from_bits(self.params[index])
    }
}

/// How one kernel is checked and run.
pub struct Kernel {
    /// Refuses shapes, dtypes and parameters that the kernel does not take. Pointers are null here. After it, `run`
    /// must touch nothing outside the operands, whatever the data.
    pub check: fn(&Args) -> Result<()>,
    /// The fast version.
    pub run: fn(&Cx, &Args) -> Result<()>,
    /// The plain version, the oracle.
    pub reference: fn(&Args) -> Result<()>,
}

/// The one table from op to kernel.
pub fn kernel(op: Op) -> &'static Kernel {
    match op {
        Op::Copy => &elementwise::COPY,
        Op::Unary => &elementwise::UNARY,
        Op::Binary => &elementwise::BINARY,
        Op::Reduce => &softmax::REDUCE,
        Op::Softmax => &softmax::SOFTMAX,
        Op::Linear => &linear::LINEAR,
        Op::PackLinear => &linear::PACK_LINEAR,
        Op::Matmul => &matmul::MATMUL,
        Op::Attention => &attention::ATTENTION,
        Op::LayerNorm => &norm::LAYER_NORM,
        Op::RmsNorm => &norm::RMS_NORM,
        Op::Rope => &rope::ROPE,
        Op::RmsNormRope => &rope::RMS_NORM_ROPE,
        Op::GroupNorm => &group_norm::GROUP_NORM,
        Op::Conv => &conv::CONV,
        Op::PackConv => &conv::PACK_CONV,
        Op::UpsampleNearest => &upsample::UPSAMPLE_NEAREST,
        Op::Embedding => &embedding::EMBEDDING,
        Op::TimestepEmbedding => &embedding::TIMESTEP_EMBEDDING,
        Op::RotaryEmbedding => &embedding::ROTARY_EMBEDDING,
        Op::QuantizeScale => &quantize::QUANTIZE_SCALE,
        Op::QuantizeZeroPoint => &quantize::QUANTIZE_ZERO_POINT,
        Op::QuantizeCodes => &quantize::QUANTIZE_CODES,
        Op::Dequantize => &quantize::DEQUANTIZE,
        Op::PackQuantized => &quantized_linear::PACK_QUANTIZED,
        Op::QuantizedLinear => &quantized_linear::QUANTIZED_LINEAR,
        Op::QuantizeRows => &quantize_rows::QUANTIZE_ROWS,
        Op::AbsMax => &quantize_rows::ABS_MAX,
        Op::QuantizedEmbedding => &embedding::QUANTIZED_EMBEDDING,
        Op::PackQuantizedConv => &quantized_conv::PACK_QUANTIZED_CONV,
        Op::QuantizedConv => &quantized_conv::QUANTIZED_CONV,
        Op::PruneSemiStructured => &quantize::PRUNE_SEMI_STRUCTURED,
    }
}

/// The ways in which a kernel can cut its work, by its parameter `variant`: 0 is a good guess, and what a variant beyond
/// them means. None where there is but one.
pub fn ways(op: Op) -> &'static [&'static str] {
    match op {
        Op::Linear | Op::QuantizedLinear => crate::gemm::WAYS,
        _ => &[],
    }
}

/// Runs one instruction at a level.
pub fn run(op: Op, cx: &Cx, args: &Args) -> Result<()> {
    let kernel = kernel(op);
    if cx.level == Level::Reference { (kernel.reference)(args) } else { (kernel.run)(cx, args) }
}

/// An activation of one value, in f64: the definition that the fast versions are checked against.
pub fn activate(act: Activation, x: f64) -> f64 {
    match act {
        Activation::None => x,
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::GeluTanh => {
            0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x)).tanh())
        }
        Activation::GeluErf => 0.5 * x * (1.0 + libm::erf(x / std::f64::consts::SQRT_2)),
        Activation::QuickGelu => x / (1.0 + (-1.702 * x).exp()),
        Activation::Relu => x.max(0.0),
    }
}
