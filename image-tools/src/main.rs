//! The `circular` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    image_tools::cli::main()
}
