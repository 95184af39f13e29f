//! Explains a slow boot: which reads had to wait, for how long, for which files, and why.
//!
//! ```text
//! trace ──► stalls (pure) ──┐
//! disk ──► ext4 ─► map ─────┴─► report
//! ```
//!
//! [`stalls`] finds the waiting in a trace; [`ext4`] walks the file systems of the disk once and says
//! in a [`map`] what lies where; [`disk`] reads the disk from a store or a file; [`report`] joins them.

pub mod disk;
pub mod ext4;
pub mod map;
pub mod report;
pub mod stalls;
