//! A machine whose own disk has all of the image boots without any server.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use circular_tests::file_system::FileSystem;
use circular_tests::machine::{Machine, Options};
use circular_tests::require::{self, Need};
use circular_tests::server::Server;
use circular_tests::store::TestStore;
use circular_tests::{binaries, images};

/// A boot under emulation takes half a minute on two idle cores; a hang takes for ever.
const BOOT: Duration = Duration::from_secs(300);

/// Longest command in the machine.
const COMMAND: Duration = Duration::from_secs(180);

/// All of the image has room, compressed or not.
const CACHE_BYTES: u64 = 1 << 30;

#[test]
fn machine_boots_without_a_server_from_a_disk_that_has_all_of_the_image() -> Result<()> {
    if require::missing(&[Need::Qemu, Need::Debian, Need::Guest, Need::Fuse])? {
        return Ok(());
    }
    let store = TestStore::new()?;
    let image = images::debian("debian.raw")?;
    store.publish_bootable(&image, "debian:12")?;
    let server = Server::start(&store.path())?;
    let url = server.url().replacen("127.0.0.1", "10.0.2.2", 1);
    let cache = store.beside("cache");
    let system = FileSystem::in_file(&cache, CACHE_BYTES)?;
    let fetched = std::process::Command::new(binaries::host("circular-mount")?)
        .arg("fetch")
        .arg("--root")
        .arg(store.trusted_root())
        .arg("--cache")
        .arg(system.path())
        .args([server.url(), "debian:12"])
        .output()
        .context("cannot run circular-mount")?;
    ensure!(fetched.status.success(), "{fetched:?}");
    drop(system);
    drop(server);

    let script = fs::read_to_string(store.path().join("boot/debian=12.ipxe"))?;
    let object = |keyword: &str| {
        let mut lines = script.lines().filter(|line| line.starts_with(keyword));
        let words = lines.next_back()?.split(' ');
        let path = words
            .into_iter()
            .find_map(|word| word.strip_prefix("../"))?;
        Some(store.path().join(path))
    };
    let kernel = object("kernel ").context("the script has no kernel")?;
    let initramfs = object("initrd ").context("the script has no initramfs")?;
    let line = format!(
        "console=ttyS0 circular.url={url} circular.image=debian:12 circular.cache=/dev/vda ip=dhcp"
    );
    let mut options = Options::named("boot-offline");
    let drive = format!("file={},format=raw,if=virtio", cache.display());
    for (option, value) in [
        ("-kernel", kernel.display().to_string()),
        ("-initrd", initramfs.display().to_string()),
        ("-append", line),
        ("-drive", drive),
        ("-nic", "user,model=virtio-net-pci".to_owned()),
    ] {
        options.arguments.extend([option.to_owned(), value]);
    }
    let mut machine = Machine::switch_on(&options)?;
    let console = &mut machine.console;
    console.wait_for("the cache is on /dev/vda", BOOT)?;
    console.wait_for("root@debian:~# ", BOOT)?;
    let hash_files = binaries::checkout().join("tests/image/hash-files.sh");
    let command = fs::read_to_string(hash_files)?;
    let outcome = console.run(command.trim_end(), COMMAND)?;
    let expected = fs::read_to_string(images::debian("debian.hashes")?)?;
    ensure!(
        outcome.text == expected.trim_end(),
        "the files are not those of the image: {outcome:?}"
    );
    console.send("systemctl poweroff")?;
    console.wait_for("reboot: Power down", BOOT)?;
    ensure!(machine.wait_until_off(COMMAND)?.success());
    Ok(())
}
