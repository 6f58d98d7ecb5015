/**
 * Writes the schema of kernels into Rust and C++: `deno run -RW tools/generate_schema.ts`, or `--check` to see whether
 * the committed files are in step.
 *
 * @module
 */

import { DTYPES } from "../lib/graph/dtypes.ts";
import {
  ACTIVATION,
  BINARY,
  FORMAT,
  KERNELS,
  type KernelSpec,
  MAX_RANK,
  REDUCE,
  ROWS,
  schemaHash,
  UNARY,
} from "../lib/graph/schema.ts";

const pascal = (name: string) => name.replace(/(?:^|_)([a-z])/g, (_, letter: string) => letter.toUpperCase());
const variant = (name: string) => /^(?:b?f|[iu])\d+$/.test(name) ? name.toUpperCase() : pascal(name);
const snake = (name: string) => name.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);

function enumeration(name: string, doc: string, codes: Record<string, number>): string {
  const variants = Object.entries(codes).map(([key, code]) => `    /// \`${key}\`.\n    ${variant(key)} = ${code},\n`)
    .join("");
  const arms = Object.entries(codes).map(([key, code]) => `            ${code} => Some(Self::${variant(key)}),\n`).join(
    "",
  );
  return `/// ${doc}
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum ${name} {
${variants}}

impl ${name} {
    /// The variant of a code.
    pub fn from_code(code: u32) -> Option<Self> {
        match code {
${arms}            _ => None,
        }
    }
}
`;
}

const kernels = Object.entries(KERNELS as Record<string, KernelSpec>);
const [high, low] = schemaHash();
const rust = `// Written by tools/generate_schema.ts from lib/graph/schema.ts; change that, not this.

//! The schema of kernels: codes, operands and parameters of every instruction.

/// The schema's hash, as it stands in a program's header.
pub const SCHEMA_HASH: [u32; 2] = [${high}, ${low}];

/// The most dimensions that an operand may have.
pub const MAX_RANK: usize = ${MAX_RANK};

${enumeration("DType", "An element type.", Object.fromEntries(Object.entries(DTYPES).map(([k, v]) => [k, v.code])))}
impl DType {
    /// The size of one element in bytes.
    pub fn size(self) -> usize {
        match self {
${Object.entries(DTYPES).map(([k, v]) => `            Self::${variant(k)} => ${v.size},\n`).join("")}        }
    }

    /// Whether it is a floating-point type.
    pub fn is_float(self) -> bool {
        matches!(self, ${
  Object.entries(DTYPES).filter(([, v]) => v.float).map(([k]) => `Self::${variant(k)}`).join(" | ")
})
    }
}

${enumeration("Unary", "An element-wise function of one operand.", UNARY)}
${enumeration("Activation", "An activation fused into another kernel.", ACTIVATION)}
${enumeration("Binary", "An element-wise function of two operands.", BINARY)}
${enumeration("Reduce", "A reduction of the last axis.", REDUCE)}
${enumeration("Format", "How a quantized weight is stored.", FORMAT)}
${enumeration("Rows", "How rows of activations are quantized at run time.", ROWS)}
${enumeration("Op", "A kernel.", Object.fromEntries(kernels.map(([k, v]) => [k, v.code])))}
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
    /// A code of [\`Unary\`].
    Unary,
    /// A code of [\`Activation\`].
    Activation,
    /// A code of [\`Binary\`].
    Binary,
    /// A code of [\`Reduce\`].
    Reduce,
    /// A code of [\`Format\`].
    Format,
    /// A code of [\`Rows\`].
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
${
  kernels.map(([name, spec]) =>
    `    Spec {
        op: Op::${variant(name)},
        name: "${name}",
        operands: &[${
      Object.entries(spec.operands).map(([key, o]) => `("${key}", ${o.optional ?? false}, Layout::${pascal(o.layout)})`)
        .join(", ")
    }],
        params: &[${
      Object.entries(spec.params).map(([key, type]) => `("${snake(key)}", Param::${variant(type)})`).join(", ")
    }],
    },
`
  ).join("")
}];
`;

/** Codes of C++, whose names are the schema's own. */
const codes = (name: string, doc: string, values: Record<string, number>) =>
  `/// ${doc}
enum class ${name} : uint32_t {
${Object.entries(values).map(([key, code]) => `    ${key} = ${code},\n`).join("")}};
`;

/** The places of a kernel's operands and parameters. */
const places = (name: string, { operands, params }: KernelSpec) =>
  `namespace ${name} {
enum Operand { ${Object.keys(operands).join(", ")} };
${
    Object.keys(params).length > 0
      ? `enum Param { ${Object.keys(params).map((key) => `param_${snake(key)}`).join(", ")} };\n`
      : ""
  }}
`;

const cpp = `// Written by tools/generate_schema.ts from lib/graph/schema.ts; change that, not this.
#pragma once

#include <cstdint>

namespace denoise::schema {

/// The schema's hash.
constexpr uint32_t HASH[2] = {${high}u, ${low}u};

${codes("DType", "An element type.", Object.fromEntries(Object.entries(DTYPES).map(([k, v]) => [k, v.code])))}
/// The size of one element in bytes.
constexpr int size_of(DType dtype) {
    constexpr int sizes[] = {${
  Object.values(DTYPES).toSorted((a, b) => a.code - b.code).map(({ size }) => size).join(", ")
}};
    return sizes[int(dtype)];
}

${codes("Unary", "An element-wise function of one operand.", UNARY)}
${codes("Activation", "An activation fused into another kernel.", ACTIVATION)}
${codes("Binary", "An element-wise function of two operands.", BINARY)}
${codes("Reduce", "A reduction of the last axis.", REDUCE)}
${codes("Format", "How a quantized weight is stored.", FORMAT)}
${codes("Rows", "How rows of activations are quantized at run time.", ROWS)}
// The places of operands and parameters, by kernel.

${kernels.map(([name, spec]) => places(name, spec)).join("\n")}
} // namespace denoise::schema
`;

async function formatted(source: string): Promise<string> {
  const format = new Deno.Command("rustfmt", {
    args: ["--edition", "2021", "--config-path", new URL("../kernels", import.meta.url).pathname],
    stdin: "piped",
    stdout: "piped",
  }).spawn();
  const writer = format.stdin.getWriter();
  await writer.write(new TextEncoder().encode(source));
  await writer.close();
  const { stdout, success } = await format.output();
  if (!success) throw new Error("rustfmt could not read what was generated");
  return new TextDecoder().decode(stdout);
}

const files = { "kernels/src/schema.rs": await formatted(rust), "kernels/cuda/schema.h": cpp };
for (const [name, text] of Object.entries(files)) {
  const file = new URL(`../${name}`, import.meta.url);
  if (!Deno.args.includes("--check")) await Deno.writeTextFile(file, text);
  else if (await Deno.readTextFile(file) !== text) {
    console.error(`${name} is not what lib/graph/schema.ts says: run \`deno task generate\``);
    Deno.exit(1);
  }
}
