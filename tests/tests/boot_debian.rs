//! A Debian boots over HTTP on a machine without a disk, and it is the Debian that was published.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use circular_tests::console::Console;
use circular_tests::machine::{Machine, Options};
use circular_tests::nginx::Nginx;
use circular_tests::proxy::Proxy;
use circular_tests::require::{self, Need};
use circular_tests::server::Server;
use circular_tests::store::TestStore;
use circular_tests::{binaries, images};
use sha2::{Digest as _, Sha256};

mod tls;

/// A boot under emulation takes half a minute on two idle cores; a hang takes for ever.
const BOOT: Duration = Duration::from_secs(240);

/// Longest command in the machine.
const COMMAND: Duration = Duration::from_secs(120);

/// What a boot needs of this machine.
const NEEDS: &[Need] = &[Need::Qemu, Need::Debian, Need::Guest];

/// Lets whoever has it read a private store; as long as those that `circular-server token` makes.
const TOKEN: &str = "circular_0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

/// How a machine in QEMU sees the one that it is in.
const MACHINES_SEE: &str = "10.0.2.2";

/// Of all that was fetched and is on the disk, a boot may take this part at most.
const FETCHED_PART_MAX: u64 = 8;

/// Words that no healthy boot or shutdown shows.
const TROUBLE: &[&str] = &[
    "BUG:",
    "Oops",
    "WARNING: CPU",
    "blocked for more than",
    "I/O error",
    "EXT4-fs error",
    "Failed unmounting",
    "Failed to unmount",
    "Failed to start",
];

#[test]
fn machine_boots_the_whole_disk_image() -> Result<()> {
    if require::missing(NEEDS)? {
        return Ok(());
    }
    let store = TestStore::new()?;
    let image = images::debian("debian.raw")?;
    store.publish_bootable(&image, "debian:12")?;
    let server = Server::start(&store.path())?;
    // Firmware and iPXE fetch over http, the machine over https: it knows the authority, because the publisher said it.
    let authority = tls::certify(&store, MACHINES_SEE)?;
    let [cert, key, authority] = [&authority.certificate, &authority.key, &authority.authority];
    let arguments = [
        "--tls-cert".as_ref(),
        cert.as_os_str(),
        "--tls-key".as_ref(),
        key.as_os_str(),
    ];
    let secret = Server::start_with(&store.path(), &arguments)?;
    let base = secret.url().replace("127.0.0.1", MACHINES_SEE);
    let [image_path, authority] = [&image, authority].map(|path| path.to_str());
    let path = image_path.context("test paths are plain")?;
    let authority = authority.context("test paths are plain")?;
    let console = ["--cmdline", "console=ttyS0"];
    let to = ["--base-url", &base, "--guest-ca", authority];
    store.json(&[&["publish", path, "debian:12"], &console[..], &to].concat())?;
    let said = boots(server.url(), "boot/debian=12.ipxe", &image, "boot-debian")?;
    ensure!(
        said.contains(&format!("booting debian:12@1 from {base}")),
        "it asks {base}"
    );
    Ok(())
}

#[test]
fn machine_refuses_a_store_that_is_not_signed_by_its_publisher() -> Result<()> {
    if require::missing(NEEDS)? {
        return Ok(());
    }
    let store = TestStore::new()?;
    store.publish_bootable(&images::debian("debian.raw")?, "debian:12")?;
    forge(&store.path().join("metadata/timestamp.json"))?;
    let server = Server::start(&store.path())?;
    let options = Options::named("boot-forged");
    let mut machine = Machine::boot(server.url(), "boot/debian=12.ipxe", &options)?;
    let console = &mut machine.console;
    console.wait_for(
        "circular-mount: cannot open `debian:12@1`: bad signature: the store's timestamp metadata",
        BOOT,
    )?;
    console.wait_for("the client ended before it served the disk", BOOT)?;
    Ok(())
}

/// When the publisher says that it wrote the least versions; their initrd is plain text, mostly.
fn written(store: &TestStore) -> Result<u64> {
    let initrd = fs::read(store.path().join("boot/minimum.img"))?;
    let text = String::from_utf8_lossy(&initrd);
    let (_, after) = text.split_once("\"written\": ").context("no time")?;
    let digits = after.split('\n').next().unwrap_or_default();
    digits.parse().context("no number")
}

/// Changes one digit of the only signature.
fn forge(metadata: &Path) -> Result<()> {
    let signed = fs::read_to_string(metadata)?;
    let at = signed.find("\"sig\"").context("it has a signature")? + "\"sig\": \"".len() + 10;
    let mut forged = signed.into_bytes();
    forged[at] = if forged[at] == b'0' { b'1' } else { b'0' };
    fs::write(metadata, forged).context("cannot write the metadata")
}

/// Three promises in one boot: only a client with the token, which iPXE had in the address, gets as far
/// as to see that the store went back; and its clock, whose battery is empty, is set before.
#[test]
fn machine_refuses_a_private_store_that_is_older_than_it_was_told() -> Result<()> {
    if require::missing(NEEDS)? {
        return Ok(());
    }
    let store = TestStore::new()?;
    store.publish_bootable(&images::debian("debian.raw")?, "debian:12")?;
    let timestamp = store.path().join("metadata/timestamp.json");
    let old = fs::read(&timestamp)?;
    store.json(&["refresh"])?;
    fs::write(&timestamp, old)?;
    let tokens = store.beside("tokens");
    let digest: String = Sha256::digest(TOKEN)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    fs::write(&tokens, format!("read {digest} room-3\n"))?;
    let private = ["--private", "--tokens"].map(OsStr::new);
    let server = Server::start_with(&store.path(), &[&private[..], &[tokens.as_ref()]].concat())?;
    let url = server.url().replace("://", &format!("://x:{TOKEN}@"));
    let empty_battery = ["-rtc", "base=2001-01-01T00:00:00"];
    let options = Options {
        arguments: empty_battery.map(str::to_owned).to_vec(),
        ..Options::named("boot-older")
    };
    let mut machine = Machine::boot(&url, "boot/debian=12.ipxe", &options)?;
    let console = &mut machine.console;
    console.wait_for("booting debian:12@1 from http://10.0.2.2:", BOOT)?;
    let clock = format!(
        "the clock is wrong: set to {} s since 1970",
        written(&store)?
    );
    console.wait_for(&clock, BOOT)?;
    let said = console.wait_for(
        "circular-mount: cannot open `debian:12@1`: rollback: the store offers timestamp metadata of version",
        BOOT,
    )?;
    console.wait_for("this machine was told to take none below", BOOT)?;
    console.wait_for("the client ended before it served the disk", BOOT)?;
    // The kernel shows its command line, before any of our programs runs.
    ensure!(!said.contains(TOKEN), "the token is on the console");
    Ok(())
}

#[test]
fn machine_boots_the_partitioned_image_from_nginx_through_the_menu() -> Result<()> {
    if require::missing(&[NEEDS, &[Need::Nginx]].concat())? {
        return Ok(());
    }
    let store = TestStore::new()?;
    let image = images::debian("debian-gpt.raw")?;
    // Nobody chooses in the menu: what was published last is booted.
    store.publish_bootable(&image, "lab/debian:12")?;
    // The initramfs has the first root; the machine has to follow the keys that came after.
    for _ in 0..2 {
        store.json(&["key", "rotate", "root", "targets", "snapshot", "timestamp"])?;
    }
    ensure!(store.path().join("metadata/3.root.json").is_file());
    let nginx = Nginx::start(&store.path())?;
    boots(nginx.url(), "boot.ipxe", &image, "boot-debian-gpt")?;
    Ok(())
}

/// Kills the process that serves the root disk, again and again from the moment at which the root is
/// there to the moment at which the machine is off; then becomes the init of the image. Only the
/// supervisor is a child of the first process. Written so that iPXE and the kernel pass it on whole.
const KILLER: &str = r#"init=/bin/sh -- -c "while sleep 1; do for p in /proc/[0-9]*/stat; do read -r a b c d e <$p; case $b$d in *mount?1) ;; *circular-mount*) kill -9 $a;; esac; done; done 2>/dev/null & exec /sbin/init""#;

/// As many of them are waited for.
const DEATHS: u32 = 50;

#[test]
fn machine_outlives_the_deaths_of_the_process_that_serves_its_root() -> Result<()> {
    if require::missing(NEEDS)? {
        return Ok(());
    }
    let store = TestStore::new()?;
    let image = images::debian("debian.raw")?;
    let path = image.to_str().context("test paths are plain")?;
    let cmdline = format!("console=ttyS0 {KILLER}");
    store.json(&["publish", path, "debian:12", "--cmdline", &cmdline])?;
    let server = Server::start(&store.path())?;
    let options = Options::named("boot-killed");
    let mut machine = Machine::boot(server.url(), "boot/debian=12.ipxe", &options)?;
    let console = &mut machine.console;
    console.wait_for("readers wait for another", BOOT)?;
    log_in(console)?;
    root_is_the_image(console)?;
    let died = "dmesg | grep -c 'readers wait for another'";
    let wait = format!("while [ $({died}) -lt {DEATHS} ]; do sleep 1; done; {died}");
    let deaths = console.run(&wait, COMMAND)?.text;
    ensure!(deaths.parse::<u32>().is_ok_and(|n| n >= DEATHS), "{deaths}");
    // Nothing of the disk is in memory, and the process that has to bring it back is killed.
    let again = "echo 3 > /proc/sys/vm/drop_caches; find /usr -xdev -type f | head -n 100 | xargs cat > /dev/null";
    let read = console.run(again, BOOT)?;
    ensure!(read.status == 0, "{read:?}");
    console.send("systemctl poweroff")?;
    console.wait_for("reboot: Power down", BOOT)?;
    let status = machine.wait_until_off(COMMAND)?;
    ensure!(status.success(), "QEMU ended with {status}");
    let text = machine.console.text();
    for word in TROUBLE {
        ensure!(
            !text.contains(word),
            "{word:?} is on the console, see {}",
            machine.log().display()
        );
    }
    Ok(())
}

/// Boots from the server at `url`, looks around, writes, and switches off.
fn boots(url: &str, script: &str, image: &Path, name: &str) -> Result<String> {
    let proxy = Proxy::start(url)?;
    let mut machine = Machine::boot(proxy.url(), script, &Options::named(name))?;
    let console = &mut machine.console;
    console.wait_for("Reached target graphical.target", BOOT)?;
    log_in(console)?;
    let fetched = proxy.bytes();
    root_is_the_image(console)?;
    writes_go_to_the_overlay(console)?;
    kernel_is_content(console)?;
    console.send("systemctl poweroff")?;
    console.wait_for("reboot: Power down", BOOT)?;
    let status = machine.wait_until_off(COMMAND)?;

    ensure!(status.success(), "QEMU ended with {status}");
    let text = machine.console.text();
    ensure!(
        text.contains("the store's metadata is not older than this machine was told"),
        "the machine was not told what is too old, see {}",
        machine.log().display()
    );
    for word in TROUBLE {
        ensure!(
            !text.contains(word),
            "{word:?} is on the console, see {}",
            machine.log().display()
        );
    }
    let whole = fs::metadata(image)?.len();
    ensure!(
        fetched < whole / FETCHED_PART_MAX,
        "the boot fetched {fetched} bytes of a disk of {whole}"
    );
    Ok(text.to_owned())
}

/// The console logs root in; all that is left is to wait for the prompt and quieten the kernel.
fn log_in(console: &mut Console) -> Result<()> {
    console.wait_for("root@debian:~# ", BOOT)?;
    let outcome = console.run("dmesg --console-off", COMMAND)?;
    ensure!(outcome.status == 0, "{outcome:?}");
    Ok(())
}

fn root_is_the_image(console: &mut Console) -> Result<()> {
    let hash_files = binaries::checkout().join("tests/image/hash-files.sh");
    let command = fs::read_to_string(hash_files).context("cannot read hash-files.sh")?;
    let expected = fs::read_to_string(images::debian("debian.hashes")?)?;
    let outcome = console.run(command.trim_end(), COMMAND)?;
    ensure!(
        outcome.text == expected.trim_end(),
        "the files in the machine are not those of the image: {outcome:?}"
    );
    let disks = console.run("ls /sys/block | grep -v -e loop -e ram -e zram", COMMAND)?;
    ensure!(
        disks.text.is_empty(),
        "the machine has a disk: {}",
        disks.text
    );
    Ok(())
}

fn writes_go_to_the_overlay(console: &mut Console) -> Result<()> {
    let root = console.run("findmnt -n -o FSTYPE /", COMMAND)?;
    ensure!(root.text == "overlay", "the root is {root:?}");
    let written = console.run(
        "head -c 5000000 /dev/urandom > /root/new && sync && a=$(sha256sum < /root/new) \
         && echo 3 > /proc/sys/vm/drop_caches && b=$(sha256sum < /root/new) && [ \"$a\" = \"$b\" ] \
         && echo changed >> /etc/hostname && tail -n 1 /etc/hostname && rm /etc/motd && ls /etc/motd",
        COMMAND,
    )?;
    ensure!(written.text.starts_with("changed\n"), "{written:?}");
    ensure!(
        written.text.contains("No such file"),
        "a removed file is still there: {written:?}"
    );
    Ok(())
}

/// Neither the kernel nor systemd has anything to complain about.
fn kernel_is_content(console: &mut Console) -> Result<()> {
    let failed = console.run("systemctl --failed --no-legend --plain", COMMAND)?;
    ensure!(failed.text.is_empty(), "units failed: {}", failed.text);
    let log = console.run(
        "dmesg --level=emerg,alert,crit,err,warn | grep -i -e fuse -e loop -e overlay -e ext4 -e circular",
        COMMAND,
    )?;
    ensure!(log.text.is_empty(), "the kernel complains: {}", log.text);
    Ok(())
}
