//! The initramfs of Circular: what builds it, and what runs in it.
//!
//! Two halves meet here. [`build`](mod@build) puts a kernel's modules, the static client, busybox and
//! `circular-init` into one reproducible archive; [`init`] is that `circular-init`, the first
//! process of the booted machine. What both must agree on stands in between, as pure values:
//! the places inside the archive ([`layout`]), the note that the builder leaves for init
//! ([`record`]), the module index ([`modules`]), and how a disk is looked at ([`filesystem`];
//! partition tables are read by `image_format::partition`).
//!
//! Reading order: [`spec`] (what goes in) → [`build`](mod@build) → [`tree`] → [`archive`]; then
//! [`init`], whose header tells the story of a boot.
//!
//! Absent on purpose: the network client. It is a separate program, packed as it is.

pub mod archive;
pub mod build;
pub mod filesystem;
pub mod fuzzing;
pub mod init;
pub mod layout;
pub mod modules;
pub mod record;
pub mod spec;
pub mod tree;

pub use build::{BuildError, Initramfs, Report, Unpacked, build, unpacked};
pub use filesystem::FileSystem;
pub use spec::{DirectoryModules, ExtraFile, ModuleSource, Spec};
