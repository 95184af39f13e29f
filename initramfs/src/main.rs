//! `circular-init`: the first process of a machine that boots over the network.

fn main() {
    initramfs::init::run()
}
