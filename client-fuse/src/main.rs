//! `circular-mount`: parses the command line, runs, turns the outcome into an exit code.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    client_fuse::cli::main()
}
