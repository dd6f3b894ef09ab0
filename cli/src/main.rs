//! The command line of mdlc: arguments, colours, exit codes. Every command is one function of `command/`.

mod args;
mod command;
mod load;
mod paint;
mod progress;
mod world;

use std::process::ExitCode;

/// Exit codes: scripts rely on them.
pub(crate) mod exit {
    /// The recipe or its data is wrong.
    pub(crate) const WRONG: u8 = 1;
    /// The command line is wrong.
    pub(crate) const USAGE: u8 = 2;
    /// The run failed.
    pub(crate) const FAILED: u8 = 3;
}

fn main() -> ExitCode {
    ExitCode::from(command::main(std::env::args_os().collect()))
}
