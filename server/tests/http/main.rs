//! The server over real sockets: in-process, on port 0, with a store that each test makes.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod command;
mod connections;
mod files;
mod images;
mod private;
mod publisher;
mod refusals;
mod support;
mod tls;
mod traces;
mod uploads;
