//! `circular-mount`: shows a published image as a local disk file.
//!
//! A read travels down, bytes travel up:
//!
//! ```text
//! kernel ── fuse ─► fs ─► disk ─► chunks ─► memory ─► cache file ─► flight ─► fetcher ─► http
//!                        (plan)            (verified)  (verified)            (plan, retry, verify)
//!                         ├─ readahead ─► chunks
//!                         └─ prefetch (boot pack) ─► chunks
//! ```
//!
//! Beside `fuse ─► fs` there are [`tree`] (all images of a store) and [`nbd`] (a socket).
//!
//! Decisions are pure and stand alone: [`disk::plan`] (bytes to chunks), [`fetch::plan`] (chunks to
//! requests), [`fetch::retry`], [`readahead`], [`prefetch::planner`]. What acts is kept at the edge: [`fuse`] is the only
//! file that knows the kernel's interface, [`fetch::http`] the only one that talks to a server,
//! [`cache::disk`], [`trust`] and [`record`] the only ones that keep files. [`supervise`] keeps a mount
//! through the death of the process that serves it. [`app`] nests them; [`open`] is where
//! a reference becomes a disk, [`withdrawn`] looks whether the store still has it, [`trust`] decides what of a store is believed, [`inside`] is what can be seen from outside.

pub mod app;
pub mod cache;
pub mod chunks;
pub mod cli;
pub mod config;
pub mod disk;
pub mod fetch;
pub mod flight;
pub mod fs;
pub mod fstab;
pub mod fuse;
pub mod inside;
pub mod log;
pub mod mount;
pub mod nbd;
pub mod open;
pub mod overlay;
pub mod panics;
pub mod passthrough;
pub mod place;
pub mod prefetch;
pub mod process;
pub mod readahead;
pub mod record;
pub mod stats;
pub mod supervise;
pub mod tasks;
pub mod top;
pub mod tree;
pub mod trust;
pub mod waits;
pub mod withdrawn;
