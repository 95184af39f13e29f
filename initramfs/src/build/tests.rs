//! Facts about whole initramfs archives, built from a small kernel in a temporary directory.

use std::{collections::BTreeMap, io::Read, path::Path};

use super::*;
use crate::{
    filesystem::FileSystem,
    spec::{DirectoryModules, ExtraFile},
};

/// A 64-bit ELF header with one program header of the given type.
fn program(header_type: u8) -> Vec<u8> {
    let mut elf = vec![0; 64 + 56];
    elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
    elf[32] = 64;
    elf[54] = 56;
    elf[56] = 1;
    elf[64] = header_type;
    elf
}

fn kernel(directory: &Path) {
    let dep = "kernel/fuse.ko:\nkernel/loop.ko:\nkernel/overlay.ko.zst:\n\
               kernel/jbd2.ko:\nkernel/ext4.ko: kernel/jbd2.ko\n\
               kernel/virtio_net.ko:\nkernel/sound.ko:\n";
    fs::create_dir(directory.join("kernel")).unwrap();
    for path in dep.lines().map(|line| line.split_once(':').unwrap().0) {
        let mut bytes = path.as_bytes().to_vec();
        if path.ends_with(".zst") {
            bytes = zstd::bulk::compress(&bytes, 3).unwrap();
        }
        fs::write(directory.join(path), bytes).unwrap();
    }
    fs::write(directory.join("modules.dep"), dep).unwrap();
    let alias = "alias virtio:d00000001v* virtio_net\nalias snd sound\n";
    fs::write(directory.join("modules.alias"), alias).unwrap();
    for name in ["client", "init", "busybox"] {
        fs::write(directory.join(name), program(1)).unwrap();
    }
    fs::write(directory.join("dynamic"), program(3)).unwrap();
}

fn spec<'a>(directory: &Path, modules: &'a DirectoryModules) -> Spec<'a> {
    Spec {
        kernel_release: "6.1".to_owned(),
        modules,
        filesystem: FileSystem::Ext4,
        root: None,
        client: directory.join("client"),
        init: directory.join("init"),
        busybox: directory.join("busybox"),
        extra_modules: Vec::new(),
        extra_files: vec![ExtraFile {
            path: "/etc/circular/root.json".to_owned(),
            bytes: b"{}".to_vec(),
            mode: 0o600,
        }],
    }
}

/// Unpacks an initramfs to path and content.
fn files(initramfs: &Initramfs) -> BTreeMap<String, Vec<u8>> {
    let archive = zstd::stream::decode_all(&initramfs.bytes[..]).unwrap();
    let mut files = BTreeMap::new();
    let mut rest = &archive[..];
    loop {
        let mut reader = cpio::newc::Reader::new(rest).unwrap();
        if reader.entry().is_trailer() {
            return files;
        }
        let path = reader.entry().name().to_owned();
        let mut content = Vec::new();
        reader.read_to_end(&mut content).unwrap();
        files.insert(path, content);
        rest = reader.finish().unwrap();
    }
}

fn with_kernel<T>(test: impl FnOnce(&Path, Spec<'_>) -> T) -> T {
    let directory = tempfile::tempdir().unwrap();
    kernel(directory.path());
    let modules = DirectoryModules::new(directory.path());
    test(directory.path(), spec(directory.path(), &modules))
}

#[test]
fn the_archive_holds_programs_modules_and_record() {
    with_kernel(|_, spec| {
        let initramfs = build(&spec).unwrap();
        let files = files(&initramfs);
        assert_eq!(files["init"], program(1));
        assert_eq!(files["bin/sh"], b"busybox");
        assert_eq!(files["etc/circular/root.json"], b"{}");
        assert_eq!(
            files["lib/modules/6.1/kernel/overlay.ko"],
            b"kernel/overlay.ko.zst"
        );
        let record = BuildRecord::decode(&files["etc/circular/build.json"]).unwrap();
        assert_eq!(record.load, ["fuse", "loop", "overlay", "ext4"]);
        assert_eq!(initramfs.report.n_modules, 6);
    });
}

#[test]
fn only_wanted_modules_and_their_aliases_are_shipped() {
    with_kernel(|_, spec| {
        let files = files(&build(&spec).unwrap());
        assert!(!files.contains_key("lib/modules/6.1/kernel/sound.ko"));
        let alias = &files["lib/modules/6.1/modules.alias"];
        assert_eq!(alias, b"alias virtio:d00000001v* virtio_net\n");
    });
}

#[test]
fn the_same_input_gives_the_same_bytes() {
    with_kernel(|_, spec| {
        assert_eq!(build(&spec).unwrap().bytes, build(&spec).unwrap().bytes);
    });
}

#[test]
fn a_missing_required_module_is_named() {
    with_kernel(|_, mut spec| {
        spec.filesystem = FileSystem::Xfs;
        let error = build(&spec).unwrap_err();
        assert!(error.to_string().contains("`xfs`"), "{error}");
    });
}

#[test]
fn a_built_in_module_is_neither_shipped_nor_loaded() {
    with_kernel(|directory, mut spec| {
        fs::write(directory.join("modules.builtin"), "kernel/fs/xfs/xfs.ko\n").unwrap();
        spec.filesystem = FileSystem::Xfs;
        let files = files(&build(&spec).unwrap());
        let record = BuildRecord::decode(&files["etc/circular/build.json"]).unwrap();
        assert_eq!(record.load, ["fuse", "loop", "overlay"]);
    });
}

#[test]
fn an_extra_module_is_shipped_but_left_to_its_device() {
    with_kernel(|_, mut spec| {
        spec.extra_modules = vec!["sound".to_owned()];
        let files = files(&build(&spec).unwrap());
        assert!(files.contains_key("lib/modules/6.1/kernel/sound.ko"));
        let record = BuildRecord::decode(&files["etc/circular/build.json"]).unwrap();
        assert!(!record.load.contains(&"sound".to_owned()));
    });
}

#[test]
fn a_program_that_needs_a_linker_is_refused() {
    with_kernel(|directory, mut spec| {
        spec.client = directory.join("dynamic");
        let error = build(&spec).unwrap_err();
        assert!(matches!(
            error,
            BuildError::NotStatic { what: "client", .. }
        ));
    });
}

#[test]
fn a_kernel_without_index_or_a_module_file_is_an_error() {
    with_kernel(|directory, spec| {
        fs::remove_file(directory.join("kernel/jbd2.ko")).unwrap();
        let error = build(&spec).unwrap_err();
        assert!(matches!(error, BuildError::MissingFile { path, .. } if path == "kernel/jbd2.ko"));
        fs::remove_file(directory.join("modules.dep")).unwrap();
        let error = build(&spec).unwrap_err();
        assert!(matches!(error, BuildError::NoIndex { .. }));
    });
}

#[test]
fn what_was_packed_before_is_taken_and_nothing_else() {
    with_kernel(|_, mut spec| {
        let before = build(&spec).unwrap();
        let archive = zstd::stream::decode_all(&before.bytes[..]).unwrap();
        // Of the same content and other bytes, so that it shows which one is taken.
        let known = zstd::bulk::compress(&archive, 1).unwrap();
        assert_ne!(known, before.bytes);
        let taken = unpacked(&spec).unwrap();
        let taken = taken.pack(&[&b"junk"[..], &known]).unwrap();
        assert_eq!(taken.bytes, known);
        assert_eq!(taken.report.total_bytes, known.len() as u64);
        spec.root = Some("LABEL=other".to_owned());
        let other = unpacked(&spec).unwrap().pack(&[known]).unwrap();
        assert_eq!(other.bytes, build(&spec).unwrap().bytes);
    });
}
