//! Tools that write to a disk and verify what they wrote: fio, and fsx, the file system exerciser.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::binaries::checkout;

/// What fsx does, and how often. It never changes how long the disk is, and uses `length` bytes from its start.
fn fsx_settings(length: u64) -> String {
    format!(
        "flen = {length}\n\
         blockmode = true\n\
         nosizechecks = true\n\
         [opsize]\n\
         min = 1\n\
         max = 65536\n\
         [weights]\n\
         read = 10\n\
         write = 10\n\
         mapread = 10\n\
         mapwrite = 10\n\
         punch_hole = 4\n\
         copy_file_range = 2\n\
         sendfile = 2\n\
         invalidate = 1\n\
         posix_fadvise = 1\n\
         fsync = 1\n\
         fdatasync = 1\n\
         close_open = 0\n\
         truncate = 0\n\
         posix_fallocate = 0\n"
    )
}

/// Returns where `make fsx` puts fsx.
pub fn fsx_program() -> PathBuf {
    checkout().join("build/fsx/bin/fsx")
}

/// Lets fsx do `operations` on the first `length` bytes of `disk`, after it has zeroed them: it writes, reads, maps,
/// syncs, copies and punches holes at any byte, and compares each byte that it reads. `scratch` is a directory for
/// what it leaves when a byte is wrong.
///
/// # Errors
/// An operation failed, or a byte was wrong: with what fsx says, its last operations among it.
pub fn fsx(disk: &Path, length: u64, operations: u64, seed: u64, scratch: &Path) -> Result<()> {
    let settings = scratch.join("fsx.toml");
    fs::write(&settings, fsx_settings(length))?;
    let mut command = Command::new(fsx_program());
    command
        .arg("-f")
        .arg(settings)
        .arg("-P")
        .arg(scratch)
        .args(["-N", &operations.to_string(), "-S", &seed.to_string()])
        .arg(disk);
    verify(&mut command).context("fsx (`make fsx` installs it)")
}

/// Lets fio write and verify the first `length` bytes of `disk`, in one of three ways, which `seed` chooses. (They are
/// the first ones because fio 3.33 takes no notice of an offset when it maps.)
///
/// # Errors
/// An operation failed, or a block was not what was written: with what fio says.
pub fn fio(disk: &Path, length: u64, seed: u64) -> Result<()> {
    let ways: [&[&str]; 3] = [
        // Parts of blocks, through the page cache.
        &[
            "--rw=randwrite",
            "--bsrange=512-64k",
            "--blockalign=512",
            "--fsync=32",
        ],
        &[
            "--rw=randrw",
            "--bs=4k",
            "--direct=1",
            "--ioengine=libaio",
            "--iodepth=16",
        ],
        &["--rw=randwrite", "--bs=4k", "--ioengine=mmap", "--fsync=64"],
    ];
    let mut command = Command::new("fio");
    command
        .args(["--name=verify", "--verify=crc32c", "--verify_fatal=1"])
        .args([
            "--verify_state_save=0",
            "--allow_file_create=0",
            "--io_size=2m",
        ])
        .arg(format!("--size={length}"))
        .arg(format!("--filename={}", disk.display()))
        .arg(format!("--randseed={}", seed >> 1))
        .args(ways[usize::try_from(seed % 3)?]);
    verify(&mut command).context("fio (tests/setup.sh installs it)")
}

fn verify(command: &mut Command) -> Result<()> {
    let output = command.output().context("cannot be run")?;
    let (out, err) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    ensure!(output.status.success(), "{}: {out}{err}", output.status);
    Ok(())
}
