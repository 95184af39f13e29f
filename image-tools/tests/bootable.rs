//! What `circular publish` makes of disks that shall boot: which kernel, which root, and what it refuses. Kernels and programs
//! are stand-ins here; that real ones boot is shown by the tests of machines.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;

const MIB: u64 = 1 << 20;

/// Where partitions of the test disks begin.
const PARTITIONS: [u64; 2] = [MIB, 5 * MIB];

struct Scratch(TempDir);

impl Scratch {
    /// With programs for an initramfs.
    fn new() -> Self {
        let scratch = Self(tempfile::tempdir().unwrap());
        for name in ["client", "init", "busybox"] {
            fs::write(scratch.path(name), static_program()).unwrap();
        }
        scratch
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn run(&self, args: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_circular"))
            .args(args)
            .current_dir(self.0.path())
            .env_remove("CIRCULAR_STORE")
            .env_remove("CIRCULAR_KEYS")
            .env("CIRCULAR_GUEST_CLIENT", self.path("client"))
            .env("CIRCULAR_GUEST_INIT", self.path("init"))
            .env("CIRCULAR_BUSYBOX", self.path("busybox"))
            .env("XDG_CONFIG_HOME", self.path("config"))
            .output()
            .unwrap()
    }

    /// Publishes; returns the summary.
    fn publish(&self, args: &[&str]) -> Value {
        let output = self.run(&[&["publish", "--json"], args].concat());
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{args:?}: {text}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Publishes what is refused; returns why.
    fn refused(&self, args: &[&str]) -> String {
        let output = self.run(&[&["publish"], args].concat());
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{args:?}: {text}");
        text
    }

    /// An ext4 of a system with a kernel of its own.
    fn system(&self, name: &str) -> Vec<u8> {
        let tree = self.path(&format!("{name}.tree"));
        for directory in ["boot", "sbin"] {
            fs::create_dir_all(tree.join(directory)).unwrap();
        }
        fs::write(tree.join("boot/vmlinuz-6.1.0-1-test"), b"a kernel").unwrap();
        fs::write(tree.join("sbin/init"), b"a program").unwrap();
        modules(&tree.join("lib/modules/6.1.0-1-test"));
        self.image_of(name)
    }

    /// An ext4 of its tree, whatever is in that.
    fn image_of(&self, name: &str) -> Vec<u8> {
        let tree = self.path(&format!("{name}.tree"));
        let image = self.path(name);
        File::create(&image).unwrap().set_len(4 * MIB).unwrap();
        let path = format!("/usr/sbin:/sbin:{}", std::env::var("PATH").unwrap());
        let made = Command::new("mke2fs")
            .args(["-q", "-F", "-t", "ext4", "-O", "^has_journal", "-d"])
            .args([&tree, &image])
            .env("PATH", path)
            .status();
        assert!(made.unwrap().success());
        fs::read(image).unwrap()
    }

    /// A disk with an MBR and these two partitions.
    fn disk(&self, name: &str, parts: [&[u8]; 2]) {
        let file = File::create(self.path(name)).unwrap();
        file.set_len(10 * MIB).unwrap();
        let mut sector = [0; 512];
        sector[440..444].copy_from_slice(&0x1234_abcd_u32.to_le_bytes());
        for (number, (start, bytes)) in PARTITIONS.into_iter().zip(parts).enumerate() {
            let entry = &mut sector[446 + number * 16..][..16];
            entry[4] = 0x83;
            entry[8..12].copy_from_slice(&u32::try_from(start / 512).unwrap().to_le_bytes());
            entry[12..16].copy_from_slice(&u32::try_from(4 * MIB / 512).unwrap().to_le_bytes());
            file.write_all_at(bytes, start).unwrap();
        }
        sector[510..].copy_from_slice(&[0x55, 0xaa]);
        file.write_all_at(&sector, 0).unwrap();
    }
}

/// The directory of a kernel's modules that has all that a boot needs built in.
fn modules(directory: &Path) {
    fs::create_dir_all(directory).unwrap();
    fs::write(directory.join("modules.dep"), "").unwrap();
    let names = ["fuse", "loop", "overlay", "ext4", "xfs"];
    let built_in = names.map(|name| format!("kernel/{name}.ko\n"));
    fs::write(directory.join("modules.builtin"), built_in.concat()).unwrap();
}

/// The head of an ELF program that needs no dynamic linker.
fn static_program() -> Vec<u8> {
    let mut program = vec![0; 64];
    program[..6].copy_from_slice(b"\x7fELF\x02\x01");
    program[54] = 56;
    program
}

/// An XFS, as far as its first bytes say so.
fn xfs() -> Vec<u8> {
    let mut head = vec![0; 4096];
    head[..4].copy_from_slice(b"XFSB");
    head[32..48].copy_from_slice(&[0xab; 16]);
    head
}

#[test]
fn an_image_that_boots_is_not_published_without_what_makes_it_boot() {
    let scratch = Scratch::new();
    scratch.system("image");
    let published = scratch.publish(&["image", "a:1"]);
    assert_eq!(published["boot"]["kernel_release"], "6.1.0-1-test");
    let script = scratch.path("store/boot/a=1.ipxe");
    let before = fs::read(&script).unwrap();
    fs::write(scratch.path("image2"), scratch.system("image2")).unwrap();
    fs::remove_file(scratch.path("client")).unwrap();
    let message = scratch.refused(&["image2", "a:1"]);
    assert!(
        message.contains("cannot make the image bootable") && message.contains("--no-boot"),
        "{message}"
    );
    assert_eq!(
        fs::read(&script).unwrap(),
        before,
        "machines boot as they did"
    );
    let listed = scratch.run(&["list", "a", "--json"]);
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    assert!(!listed.contains("\"version\":2"), "{listed}");
    // Whoever says so gets a disk that is mounted only; and so does who has no kernel in it.
    scratch.publish(&["image2", "b", "--no-boot"]);
    fs::write(scratch.path("empty"), vec![1; 100_000]).unwrap();
    let published = scratch.publish(&["empty", "c"]);
    assert!(published["not_bootable"].is_string(), "{published}");
}

#[test]
fn a_partition_that_cannot_be_looked_into_is_passed_over() {
    let scratch = Scratch::new();
    let system = scratch.system("system");
    let mut odd = system[..65_536].to_vec();
    // A feature that nobody knows.
    odd[1024 + 0x60..1024 + 0x64].copy_from_slice(&u32::MAX.to_le_bytes());
    scratch.disk("disk", [&odd, &system]);
    let published = scratch.publish(&["disk", "a"]);
    assert_eq!(published["boot"]["root"], "PARTUUID=1234abcd-02");
    scratch.disk("odd", [&odd, &odd]);
    let published = scratch.publish(&["odd", "b"]);
    let reason = published["not_bootable"].as_str().unwrap();
    assert!(reason.contains("cannot look into its ext4"), "{reason}");
    // A kernel without its modules, which may be where nobody can look.
    fs::remove_dir_all(scratch.path("system.tree/lib")).unwrap();
    let kernel_only = scratch.image_of("system");
    scratch.disk("split", [&kernel_only, &odd]);
    let message = scratch.refused(&["split", "a"]);
    assert!(message.contains("may have their modules"), "{message}");
    // A kernel whose link leads nowhere.
    let kernel = scratch.path("system.tree/boot/vmlinuz-6.1.0-1-test");
    fs::remove_file(&kernel).unwrap();
    std::os::unix::fs::symlink("nowhere", &kernel).unwrap();
    modules(&scratch.path("system.tree/lib/modules/6.1.0-1-test"));
    scratch.image_of("system");
    let message = scratch.refused(&["system", "a"]);
    assert!(message.contains("cannot be read"), "{message}");
}

#[test]
fn a_kernel_from_elsewhere_boots_the_root_that_was_meant() {
    let scratch = Scratch::new();
    let system = scratch.system("system");
    scratch.disk("disk", [&system, &xfs()]);
    fs::write(scratch.path("vmlinuz"), b"another kernel").unwrap();
    modules(&scratch.path("6.6.0-test"));
    let kernel = [
        "disk",
        "a",
        "--kernel",
        "vmlinuz",
        "--modules",
        "6.6.0-test",
    ];
    let message = scratch.refused(&kernel);
    assert!(
        message.contains("say which with --root") && message.contains("PARTUUID=1234abcd-02"),
        "{message}"
    );
    let uuid = "abababab-abab-abab-abab-abababababab";
    for root in [
        "PARTUUID=1234ABCD-02".to_owned(),
        format!("UUID={uuid}"),
        "/dev/vda2".to_owned(),
    ] {
        let published = scratch.publish(&[&kernel[..], &["--root", &root]].concat());
        assert_eq!(published["boot"]["root"], root);
    }
    // Its driver is what is missing, so it is this one that was looked for.
    fs::write(
        scratch.path("6.6.0-test/modules.builtin"),
        "kernel/fuse.ko\nkernel/loop.ko\nkernel/overlay.ko\nkernel/ext4.ko\n",
    )
    .unwrap();
    let message = scratch.refused(&[&kernel[..], &["--root", "/dev/vda2"]].concat());
    assert!(message.contains("xfs"), "{message}");
    for (root, expected) in [
        ("UUID=nobody", "is no file system of the disk"),
        ("/dev/mapper/root", "names no part"),
    ] {
        let message = scratch.refused(&[&kernel[..], &["--root", root]].concat());
        assert!(message.contains(expected), "{message}");
    }
    let message = scratch.refused(&["disk", "a", "--driver", "nvme"]);
    assert!(message.contains("nvme"), "{message}");
}

#[test]
fn a_device_that_is_mounted_is_not_published() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let scratch = Scratch::new();
    scratch.system("system");
    let run = |program: &str, args: &[&str]| {
        let output = Command::new(program).args(args).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{program} {args:?}: {text}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    let image = scratch.path("system");
    let device = run("losetup", &["--find", "--show", image.to_str().unwrap()]);
    let point = scratch.path("mnt");
    fs::create_dir(&point).unwrap();
    run("mount", &[&device, point.to_str().unwrap()]);
    let mounted = scratch.run(&["publish", &device, "a", "--no-boot"]);
    run("umount", &[point.to_str().unwrap()]);
    let free = scratch.run(&["publish", &device, "a", "--no-boot"]);
    run("losetup", &["--detach", &device]);
    let message = String::from_utf8_lossy(&mounted.stderr).into_owned();
    assert!(!mounted.status.success(), "{message}");
    assert!(message.contains("is in use: it is mounted"), "{message}");
    let message = String::from_utf8_lossy(&free.stderr).into_owned();
    assert!(free.status.success(), "{message}");
}

#[test]
fn a_kernel_that_is_too_old_or_a_root_without_a_program_does_not_boot() {
    let scratch = Scratch::new();
    // Nothing to start in it.
    scratch.system("image");
    fs::remove_file(scratch.path("image.tree/sbin/init")).unwrap();
    scratch.image_of("image");
    let published = scratch.publish(&["image", "a"]);
    let reason = published["not_bootable"].as_str().unwrap();
    assert!(reason.contains("no program to start"), "{reason}");
    let message = scratch.refused(&["image", "a", "--cmdline", "quiet"]);
    assert!(message.contains("no program to start"), "{message}");
    // Whoever names one knows better.
    let published = scratch.publish(&["image", "a", "--cmdline", "init=/bin/sh"]);
    assert_eq!(published["boot"]["kernel_release"], "6.1.0-1-test");
    // A kernel without its modules.
    fs::rename(
        scratch.path("image.tree/lib/modules/6.1.0-1-test"),
        scratch.path("modules"),
    )
    .unwrap();
    scratch.image_of("image");
    let published = scratch.publish(&["image", "b"]);
    let reason = published["not_bootable"].as_str().unwrap();
    assert!(
        reason.contains("6.1.0-1-test") && reason.contains("LVM or LUKS"),
        "{reason}"
    );
    // One that cannot unpack what it is given.
    let old = scratch.path("old.tree");
    fs::create_dir_all(old.join("boot")).unwrap();
    fs::create_dir_all(old.join("sbin")).unwrap();
    fs::write(old.join("sbin/init"), b"a program").unwrap();
    fs::write(old.join("boot/vmlinuz-5.4.0-1-test"), b"a kernel").unwrap();
    modules(&old.join("lib/modules/5.4.0-1-test"));
    scratch.image_of("old");
    let published = scratch.publish(&["old", "c"]);
    let reason = published["not_bootable"].as_str().unwrap();
    assert!(
        reason.contains("5.4.0-1-test") && reason.contains("5.9"),
        "{reason}"
    );
}

#[test]
fn a_machine_gets_the_authorities_that_the_publisher_names() {
    let scratch = Scratch::new();
    scratch.system("image");
    fs::write(scratch.path("not.pem"), "nothing").unwrap();
    let message = scratch.refused(&["image", "a", "--cmdline", "quiet", "--guest-ca", "not.pem"]);
    assert!(message.contains("has no certificate in PEM"), "{message}");
    let authority = "-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n";
    fs::write(scratch.path("ca.pem"), authority).unwrap();
    let without = scratch.publish(&["image", "a"]);
    let with = scratch.publish(&["image", "a", "--guest-ca", "ca.pem"]);
    assert_ne!(without["boot"]["initramfs"], with["boot"]["initramfs"]);
    let output = scratch.run(&["publish", "image", "a", "--base-url", "https://h/"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && said.contains("give --guest-ca FILE"),
        "{said}"
    );
}

/// Machines boot as they did, whatever is said to the publisher now.
#[test]
fn what_boots_a_version_is_mended_and_told_the_same() {
    let scratch = Scratch::new();
    scratch.system("image");
    let options = ["--cmdline", "console=ttyS0", "--base-url", "http://h/"];
    let before = scratch.publish(&[&["image", "a"], &options[..]].concat());
    let path = |boot: &Value| {
        let digest = boot["initramfs"]["digest"].as_str().unwrap().to_owned();
        let objects = scratch.path("store/objects");
        objects.join(&digest[..2]).join(digest)
    };
    let initramfs = path(&before["boot"]);
    fs::write(&initramfs, b"rot").unwrap();
    // Another client is built by now: the initramfs is another one.
    let mut newer = static_program();
    newer.extend([7; 100]);
    fs::write(scratch.path("client"), newer).unwrap();
    let mended = scratch.publish(&["--mend", "image", "a"]);
    assert_eq!(mended["published_as"], "mended");
    for key in ["cmdline", "base_url", "root"] {
        assert_eq!(mended["boot"][key], before["boot"][key], "{key}");
    }
    assert_ne!(path(&mended["boot"]), initramfs);
    assert!(fs::metadata(path(&mended["boot"])).unwrap().len() > 100);
    let again = scratch.publish(&["--mend", "image", "a"]);
    assert_eq!(again["published_as"], "unchanged");
}
