//! From a disk image to chunks in a store.
//!
//! One thread reads the data of the image and cuts it ([`source`]); workers, one a core, hash each
//! chunk, look it up, and compress it if the store does not have it ([`prepare`]); one task takes
//! the results in the order of the disk and writes them ([`image_store::ImageWriter`]). The queues
//! between them are bounded, so memory does not grow with the image.

pub mod boot;
pub mod carry;
mod moves;
pub mod prepare;
pub mod source;
