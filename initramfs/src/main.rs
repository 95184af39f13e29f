//! `circular-init`: the first process of a machine that boots over the network.
#![forbid(unsafe_code)]

fn main() {
    initramfs::init::run()
}
