//! The `circular` command.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    image_tools::cli::main()
}
