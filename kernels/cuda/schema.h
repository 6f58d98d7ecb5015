// Written by tools/generate_schema.ts from lib/graph/schema.ts; change that, not this.
#pragma once

#include <cstdint>

namespace denoise::schema {

/// The schema's hash.
constexpr uint32_t HASH[2] = {2085384700u, 487778570u};

/// An element type.
enum class DType : uint32_t {
    f32 = 0,
    bf16 = 1,
    f16 = 2,
    i32 = 3,
    u8 = 4,
    i8 = 5,
};

/// The size of one element in bytes.
constexpr int size_of(DType dtype) {
    constexpr int sizes[] = {4, 2, 2, 4, 1, 1};
    return sizes[int(dtype)];
}

/// An element-wise function of one operand.
enum class Unary : uint32_t {
    affine = 0,
    silu = 1,
    gelu_tanh = 2,
    gelu_erf = 3,
    quick_gelu = 4,
    relu = 5,
    sigmoid = 6,
    tanh = 7,
    exp = 8,
    log = 9,
    sqrt = 10,
    rsqrt = 11,
    sin = 12,
    cos = 13,
    abs = 14,
};

/// An activation fused into another kernel.
enum class Activation : uint32_t {
    none = 0,
    silu = 1,
    gelu_tanh = 2,
    gelu_erf = 3,
    quick_gelu = 4,
    relu = 5,
};

/// An element-wise function of two operands.
enum class Binary : uint32_t {
    add = 0,
    sub = 1,
    mul = 2,
    div = 3,
    max = 4,
    min = 5,
};

/// A reduction of the last axis.
enum class Reduce : uint32_t {
    sum = 0,
    mean = 1,
    max = 2,
};

/// How a quantized weight is stored.
enum class Format : uint32_t {
    int8 = 0,
    int4 = 1,
    e4m3 = 2,
    e5m2 = 3,
    fpx = 4,
    sparse_int8 = 5,
};

/// How rows of activations are quantized at run time.
enum class Rows : uint32_t {
    none = 0,
    int8 = 1,
    int8_asym = 2,
    e4m3 = 3,
    e5m2 = 4,
};

// The places of operands and parameters, by kernel.

namespace copy {
enum Operand { x, out };
}

namespace unary {
enum Operand { x, out };
enum Param { param_kind, param_alpha, param_beta };
}

namespace binary {
enum Operand { a, b, out };
enum Param { param_kind };
}

namespace reduce {
enum Operand { x, out };
enum Param { param_kind };
}

namespace softmax {
enum Operand { x, out };
}

namespace linear {
enum Operand { x, weight, bias, gate, residual, out };
enum Param { param_n, param_k, param_act, param_variant };
}

namespace pack_linear {
enum Operand { weight, out };
enum Param { param_dtype };
}

namespace matmul {
enum Operand { a, b, out };
enum Param { param_alpha };
}

namespace attention {
enum Operand { q, k, v, bias, out };
enum Param { param_scale, param_causal, param_variant };
}

namespace layer_norm {
enum Operand { x, weight, bias, scale, shift, out };
enum Param { param_eps, param_rows };
}

namespace rms_norm {
enum Operand { x, weight, out };
enum Param { param_eps, param_rows };
}

namespace rope {
enum Operand { x, cos, sin, out };
}

namespace rms_norm_rope {
enum Operand { x, weight, cos, sin, out };
enum Param { param_eps };
}

namespace group_norm {
enum Operand { x, weight, bias, scale, shift, out };
enum Param { param_groups, param_eps, param_act, param_first };
}

namespace conv {
enum Operand { x, weight, bias, residual, cache, out };
enum Param { param_kt, param_kh, param_kw, param_stride, param_pad_top, param_pad_left, param_upsample, param_act, param_variant };
}

namespace pack_conv {
enum Operand { weight, out };
enum Param { param_dtype };
}

namespace upsample_nearest {
enum Operand { x, out };
enum Param { param_factor };
}

namespace embedding {
enum Operand { ids, table, out };
}

namespace timestep_embedding {
enum Operand { t, out };
enum Param { param_flip, param_shift, param_max_period, param_scale };
}

namespace rotary_embedding {
enum Operand { ids, out };
enum Param { param_theta, param_axis0, param_axis1, param_axis2, param_axis3 };
}

namespace quantize_scale {
enum Operand { weight, out };
enum Param { param_format, param_ebits, param_mbits, param_group, param_symmetric, param_dtype };
}

namespace quantize_zero_point {
enum Operand { weight, scale, out };
enum Param { param_format, param_group, param_dtype };
}

namespace quantize_codes {
enum Operand { weight, scale, zero, out };
enum Param { param_format, param_ebits, param_mbits, param_group, param_dtype };
}

namespace dequantize {
enum Operand { codes, scale, zero, out };
enum Param { param_n, param_k, param_format, param_ebits, param_mbits, param_group };
}

namespace pack_quantized {
enum Operand { codes, scale, zero, out };
enum Param { param_n, param_k, param_format, param_ebits, param_mbits, param_group, param_rows, param_dtype };
}

namespace quantized_linear {
enum Operand { x, weight, bias, gate, residual, out };
enum Param { param_n, param_k, param_act, param_format, param_ebits, param_mbits, param_group, param_zero, param_rows, param_variant };
}

namespace quantize_rows {
enum Operand { x, amax, out };
enum Param { param_rows };
}

namespace abs_max {
enum Operand { x, out };
}

namespace quantized_embedding {
enum Operand { ids, codes, scale, out };
}

namespace pack_quantized_conv {
enum Operand { codes, scale, out };
enum Param { param_channels, param_kt, param_kh, param_kw, param_format, param_rows, param_dtype };
}

namespace quantized_conv {
enum Operand { x, weight, bias, residual, cache, amax, out };
enum Param { param_kt, param_kh, param_kw, param_stride, param_pad_top, param_pad_left, param_upsample, param_act, param_format, param_rows, param_variant };
}

namespace prune_semi_structured {
enum Operand { weight, out };
}

} // namespace denoise::schema
