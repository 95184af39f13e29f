//! The harness of the tests that take more than one crate: real programs, real mounts, real machines.
//!
//! Everything is driven from outside, through the command lines and HTTP, as a user would.
//! Each piece is a guard: dropping it ends the process, the mount or the machine that it stands for.
//!
//! Reading order: [`require`] (may this test run here?) → [`binaries`] → [`daemon`] → [`store`],
//! [`server`], [`nginx`], [`mount`] → [`proxy`] (counts requests) → [`console`] and [`machine`].
//! [`images`] makes the disks, [`link`] a line with a delay and a rate, [`replay`] reads as a boot did;
//! [`mod@bench`] puts these together. [`torture`] writes to a disk and knows what must be on it.
//!
//! No guard sleeps until something is ready: each waits for a line, a byte or a connection, and
//! a deadline is only there so that a hang becomes a failure.

pub mod bench;
pub mod binaries;
pub mod console;
pub mod daemon;
pub mod file_system;
pub mod images;
pub mod link;
pub mod loop_device;
pub mod machine;
pub mod mount;
pub mod nginx;
pub mod proxy;
pub mod python;
pub mod random;
pub mod replay;
pub mod require;
pub mod served;
pub mod server;
pub mod squid;
pub mod store;
pub mod torture;
