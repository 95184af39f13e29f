//! Where things are inside the initramfs: the builder writes them there, init finds them there.

/// `circular-init`; the kernel starts it by this name.
pub const INIT: &str = "/init";
/// The client that serves the disk.
pub const CLIENT: &str = "/bin/circular-mount";
/// Everything else that a person or init wants from a shell.
pub const BUSYBOX: &str = "/bin/busybox";
/// What `udhcpc` runs when it has a lease.
pub const DHCP_SCRIPT: &str = "/etc/circular/dhcp.sh";
/// The [`BuildRecord`](crate::record::BuildRecord).
pub const BUILD_RECORD: &str = "/etc/circular/build.json";

/// The root that the client trusts, as TUF metadata: what the publisher's keys signed.
pub const TRUSTED_ROOT: &str = "/etc/circular/root.json";

/// Certificate authorities for an https store, in PEM, if somebody put them there: the archive has
/// none of its own. A further initrd is the place to put it.
pub const AUTHORITIES: &str = "/etc/circular/ca.pem";

/// The token of a private store, if somebody put it there, which is better than the kernel command line:
/// everybody can read that. init puts the password there that was in the address of the store.
pub const TOKEN: &str = "/etc/circular/token";

/// The least versions of metadata to take: this machine remembers none. Boot scripts load an initrd
/// that has them.
pub const MINIMUM: &str = image_format::minimum::MINIMUM_IN_GUEST;

/// Where a boot is recorded, if it is; in memory, and found there by people in the booted system.
pub const TRACE: &str = "/run/circular/trace";

/// Where the first program of an image is looked for, in this order, as the kernel does.
pub const INITS: [&str; 4] = ["/sbin/init", "/etc/init", "/bin/init", "/bin/sh"];

/// Names under which busybox can be called.
///
/// init needs `ip` and `udhcpc`; the rest is for the rescue shell.
pub const APPLETS: &[&str] = &[
    "blkid",
    "cat",
    "cp",
    "dd",
    "df",
    "dmesg",
    "echo",
    "find",
    "free",
    "grep",
    "head",
    "hexdump",
    "ifconfig",
    "insmod",
    "ip",
    "kill",
    "less",
    "ln",
    "losetup",
    "ls",
    "lsmod",
    "mkdir",
    "modprobe",
    "more",
    "mount",
    "mv",
    "nc",
    "netstat",
    "nslookup",
    "ping",
    "poweroff",
    "ps",
    "readlink",
    "reboot",
    "rm",
    "route",
    "sed",
    "sh",
    "sha256sum",
    "sleep",
    "sync",
    "tail",
    "top",
    "udhcpc",
    "umount",
    "uname",
    "vi",
    "wget",
];

/// Empty directories that must exist before anything runs.
pub const DIRECTORIES: &[&str] = &[
    "/circular/cache",
    "/circular/disk",
    "/circular/lower",
    "/circular/writes",
    "/dev",
    "/proc",
    "/root",
    "/run",
    "/sys",
    "/sysroot",
    "/tmp",
];

/// Returns the directory of the modules of kernel `release`.
pub fn modules_directory(release: &str) -> String {
    format!("/lib/modules/{release}")
}
