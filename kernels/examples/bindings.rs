//! Writes the TypeScript bindings of the C surface, as deno_bindgen generates them, to the path given.

use deno_bindgen::codegen::{Options, Target, generate};

// Links the crate, whose functions register themselves.
use denoise as _;

fn main() -> std::io::Result<()> {
    let out = std::env::args().nth(1).expect("usage: bindings OUT.ts");
    let options =
        Options { target: Target::Deno, out: Some(out.into()), local_dylib_path: "libdenoise".into(), lazy_init: true };
    generate(&deno_bindgen::INVENTORY, options)
}
