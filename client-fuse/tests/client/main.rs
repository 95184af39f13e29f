//! The client's stack against stores made on the spot: counts, faults, a model, HTTP, trust, a real mount.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test that cannot go on fails, and says what it skips"
)]

mod access;
mod cache;
mod counts;
mod far;
mod faults;
mod footprint;
mod hostile;
mod http;
mod inside;
mod mirrors;
mod model;
mod mount;
mod mount_ways;
mod nbd;
mod near;
mod offline;
mod open;
mod overlay;
mod partitions;
mod passthrough;
mod prefetch;
mod proxies;
mod publisher;
mod record;
mod rounds;
mod server;
mod since;
mod source;
mod stack;
mod store;
mod supervise;
mod tls;
mod tree;
mod trust;
