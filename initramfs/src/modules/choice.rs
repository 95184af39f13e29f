//! Which modules a network boot wants.
//!
//! [`REQUIRED`] and the root's file system must be there, as file or in the kernel. [`DRIVERS`]
//! and [`FILE_SYSTEMS`] are taken when the kernel has them: a cloud kernel ships a few of these
//! drivers, a desktop kernel nearly all. The list is by hand and short, for every boot downloads it; what a
//! site needs beyond it, the publisher names (`circular publish --driver`).

use crate::filesystem::FileSystem;

/// Without these nothing boots.
pub const REQUIRED: [&str; 3] = ["fuse", "loop", "overlay"];

/// Loaded at every boot too where it is a module: `udhcpc` talks through it.
pub const PACKET_SOCKETS: &str = "af_packet";

/// Buses and network cards.
pub const DRIVERS: &[&str] = &[
    // virtual machines
    "virtio_pci",
    "virtio_mmio",
    "virtio_net",
    "virtio_blk",
    "vmxnet3",
    "hv_vmbus",
    "pci_hyperv",
    "hv_netvsc",
    "xen_netfront",
    "ena",
    "gve",
    "mana",
    "ixgbevf",
    "iavf",
    "e1000",
    // machines of metal
    "e1000e",
    "igb",
    "igc",
    "ixgbe",
    "i40e",
    "ice",
    "r8169",
    "realtek",
    "8139cp",
    "tg3",
    "bnxt_en",
    "atlantic",
    "alx",
    "sky2",
    "forcedeth",
    "mlx4_en",
    "mlx5_core",
    // USB adapters, and the buses that they hang on
    "xhci_pci",
    "ehci_pci",
    "cdc_ether",
    "cdc_ncm",
    "r8152",
    "ax88179_178a",
    "asix",
];

/// For disks with other file systems than that of the root, such as a local cache.
pub const FILE_SYSTEMS: [FileSystem; 1] = [FileSystem::Ext4];
