//! `circular-server`: serves a store over HTTP.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    match server::app::run(server::cli::Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            server::app::report(&error);
            ExitCode::FAILURE
        }
    }
}
