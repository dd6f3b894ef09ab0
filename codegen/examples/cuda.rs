//! The CUDA C of kernels, for looking at one without a recipe.
//!
//!     mdlc build RECIPE --emit=kernels --json > kernels.json
//!     cargo run --release -p mdl-codegen --example cuda -- kernels.json

#![allow(clippy::print_stdout, reason = "what it is for")]

use mdl_compiler::kernel::Kernel;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args().nth(1).ok_or("a file of kernels, as `--emit=kernels --json` writes it")?;
    let kernels: Vec<Kernel> = serde_json::from_str(&std::fs::read_to_string(path)?)?;
    println!("{}", mdl_codegen::cuda::program(&kernels)?.text);
    Ok(())
}
