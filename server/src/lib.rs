//! Serves a store over HTTP: its files with ranges and validators, each image as one flat file,
//! a page and a health check. Reads only, unless it is told to take uploads from whoever has a token.
//!
//! A request goes through the modules in this order:
//!
//! ```text
//! listen ─► handle ─► route ─► store | raw ─► decide (precondition, range) ─► body
//!  effect    effect    pure       effect             pure                     effect
//! ```
//!
//! Any HTTP server can serve a store; this one adds what a plain one has not: `/raw/`, exact
//! caching, and the refusal of everything that is no part of a store.
//!
//! Invariants: no state between requests but open images; no path of a client reaches the file
//! system (`route`); every answer has a length; every queue and wait has a bound
//! ([`config::Limits`]).
#![forbid(unsafe_code)]

mod access;
pub mod access_log;
pub mod app;
mod body;
pub mod cli;
pub mod config;
mod credentials;
mod decide;
pub mod fuzzing;
mod handle;
mod home;
mod listen;
mod precondition;
mod range;
mod raw;
mod reload;
mod route;
mod store;
mod tls;
pub mod tokens;
mod traces;
mod turns;
mod upload;

pub use app::{Server, StartError};
pub use config::Config;
pub use listen::Drained;
pub use reload::ReloadError;
pub use upload::UploadStartError;
