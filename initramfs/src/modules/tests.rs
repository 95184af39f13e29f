//! Facts about the module index, on a small index in the words of a real one.

use proptest::prelude::*;

use super::*;

fn index() -> ModuleIndex {
    ModuleIndex::parse(&IndexTexts {
        dep: "kernel/fs/ext4/ext4.ko: kernel/fs/jbd2/jbd2.ko kernel/lib/libcrc32c.ko\n\
              kernel/fs/jbd2/jbd2.ko:\n\
              kernel/lib/libcrc32c.ko.xz:\n\
              kernel/arch/x86/crypto/crc32c-intel.ko:\n\
              kernel/crypto/crc32c_generic.ko:\n\
              kernel/drivers/net/virtio_net.ko: kernel/net/core/failover.ko kernel/drivers/virtio/virtio.ko\n\
              kernel/net/core/failover.ko: kernel/drivers/virtio/virtio.ko\n\
              kernel/drivers/virtio/virtio.ko:\n"
            .to_owned(),
        softdep: "# comment\nsoftdep libcrc32c pre: crc32c\nsoftdep cifs gcm\nsoftdep virtio_net post: ext4\n"
            .to_owned(),
        alias: "# comment\n\
                alias crc32c crc32c_intel\n\
                alias crc32c crc32c_generic\n\
                alias virtio:d00000001v* virtio_net\n"
            .to_owned(),
        builtin: "kernel/fs/fuse/fuse.ko\n".to_owned(),
    })
}

fn names(order: &[Load<'_>]) -> Vec<String> {
    order.iter().map(|load| load.name.to_string()).collect()
}

#[test]
fn what_a_module_needs_comes_before_it() {
    let index = index();
    let order = index.load_order(&ModuleName::new("failover"));
    assert_eq!(names(&order), ["virtio", "failover"]);
}

#[test]
fn a_soft_dependency_by_alias_brings_all_that_match() {
    let index = index();
    let order = index.load_order(&ModuleName::new("ext4"));
    let expected = [
        "crc32c_intel",
        "crc32c_generic",
        "libcrc32c",
        "jbd2",
        "ext4",
    ];
    assert_eq!(names(&order), expected);
    let needed: Vec<bool> = order.iter().map(|load| load.needed).collect();
    assert_eq!(needed, [false, false, true, true, true]);
}

#[test]
fn a_post_dependency_comes_after() {
    let index = index();
    let order = index.load_order(&ModuleName::new("virtio-net"));
    assert_eq!(names(&order)[..3], ["virtio", "failover", "virtio_net"]);
    assert_eq!(names(&order).last().unwrap(), "ext4");
}

#[test]
fn drivers_are_in_a_file_in_the_kernel_or_nowhere() {
    let index = index();
    assert_eq!(index.place(&ModuleName::new("ext4")), Place::File);
    assert_eq!(index.place(&ModuleName::new("fuse")), Place::Kernel);
    assert_eq!(index.place(&ModuleName::new("zfs")), Place::Absent);
    assert!(index.load_order(&ModuleName::new("fuse")).is_empty());
}

#[test]
fn a_device_finds_its_driver() {
    let index = index();
    let found = index.wanted_by("virtio:d00000001v00001AF4");
    assert_eq!(found, [&ModuleName::new("virtio_net")]);
    assert!(index.wanted_by("virtio:d00000002v00001AF4").is_empty());
}

#[test]
fn a_subset_holds_only_its_modules_and_their_aliases() {
    let wanted = BTreeSet::from([ModuleName::new("ext4"), ModuleName::new("jbd2")]);
    let subset = index().subset(&wanted, |path| path.replace(".xz", ""));
    let texts = subset.encode();
    assert_eq!(
        texts.dep,
        "kernel/fs/ext4/ext4.ko: kernel/fs/jbd2/jbd2.ko\nkernel/fs/jbd2/jbd2.ko:\n"
    );
    assert_eq!(texts.alias, "");
}

#[test]
fn an_index_reads_back_as_it_was_written() {
    let index = index();
    let again = ModuleIndex::parse(&index.encode());
    assert_eq!(again.aliases, index.aliases);
    assert_eq!(again.modules, index.modules);
    assert_eq!(again.kernel, index.kernel);
}

#[test]
fn modules_that_need_each_other_end() {
    let dep = "a.ko: b.ko\nb.ko: a.ko\n".to_owned();
    let index = ModuleIndex::parse(&IndexTexts {
        dep,
        ..IndexTexts::default()
    });
    assert_eq!(names(&index.load_order(&ModuleName::new("a"))), ["b", "a"]);
}

proptest! {
    /// Any graph: each module once, and after all that it needs unless they need each other.
    #[test]
    fn every_module_is_loaded_once(edges in prop::collection::vec((0..12_u8, 0..12_u8), 0..40)) {
        let line = |from: u8| edges.iter().filter(|edge| edge.0 == from).map(|edge| format!(" m{}.ko", edge.1)).collect::<String>();
        let dep: String = (0..12).map(|module| format!("m{module}.ko:{}\n", line(module))).collect();
        let index = ModuleIndex::parse(&IndexTexts { dep, ..IndexTexts::default() });
        let order = names(&index.load_order(&ModuleName::new("m0")));
        let unique: BTreeSet<_> = order.iter().collect();
        prop_assert_eq!(unique.len(), order.len());
        prop_assert_eq!(order.last().map(String::as_str), Some("m0"));
    }
}
