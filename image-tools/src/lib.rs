//! `circular`: publishes disk images into a store, and looks after them there.
//!
//! [`cli`] says what can be typed; [`command`] has one module for each subcommand; [`publish`] is
//! the pipeline from a disk image to chunks in a store; [`inside`] looks into an image for what it
//! needs to boot; [`boot`] boots it in QEMU for a look, or to
//! record what it reads; [`explain`] says what a boot waited for; [`keys`] knows where signing keys are kept, and [`roots`]
//! changes which of them count; [`remote`] publishes to a server; [`ui`] is the only module that prints.
#![forbid(unsafe_code)]

pub mod boot;
pub mod cli;
pub mod command;
pub mod explain;
pub mod inside;
pub mod keys;
pub mod publish;
pub mod remote;
pub mod roots;
pub mod ui;
