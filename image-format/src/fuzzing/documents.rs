//! Any bytes as each of the JSON documents, and the boot scripts that are made from them.

use std::fmt::Debug;

use crate::boot_script::{self, MenuItem};
use crate::catalogue::{CATALOGUE_BYTES_MAX, Catalogue, ChunkIndexList, VERSION_MAX};
use crate::codec::DecodeError;
use crate::manifest::Manifest;
use crate::marker::Marker;
use crate::minimum::Minimum;
use crate::reference::ImageRef;

/// Any bytes as each of the JSON documents: what is accepted round-trips by value, and what it says
/// ends up in boot scripts as words, never as commands.
///
/// # Panics
/// If what was accepted does not decode from its own encoding, or breaks out of a boot script.
pub fn documents(data: &[u8]) {
    if let Ok(manifest) = Manifest::decode(data) {
        round_trip(&manifest, &manifest.encode(), Manifest::decode);
        script(&manifest);
    }
    if let Ok(catalogue) = Catalogue::decode_any(data) {
        offered(&catalogue);
    }
    if let Ok(list) = ChunkIndexList::decode(data) {
        round_trip(&list, &list.encode(), ChunkIndexList::decode);
    }
    if let Ok(minimum) = Minimum::decode(data) {
        round_trip(&minimum, &minimum.encode(), Minimum::decode);
    }
    if let Ok(marker) = Marker::decode(data) {
        round_trip(&marker, &marker.encode(), Marker::decode);
    }
}

fn round_trip<T: PartialEq + Debug>(
    value: &T,
    encoded: &[u8],
    decode: fn(&[u8]) -> Result<T, DecodeError>,
) {
    let again = decode(encoded).expect("what was accepted decodes from its own encoding");
    assert_eq!(again, *value, "document changes when it is written");
}

/// Whatever a manifest says, its boot script has the same commands.
fn script(manifest: &Manifest) {
    let Some(boot) = &manifest.boot else {
        return;
    };
    let pinned = ImageRef::from(manifest.name.clone()).pinned(manifest.version);
    let script = boot_script::script(&pinned, boot);
    let commands: Vec<_> = script
        .lines()
        .map(|line| line.split(' ').next().unwrap_or_default())
        .collect();
    let expected = [
        "#!ipxe", "#", "isset", "isset", "isset", "imgfree", "kernel", "initrd", "initrd", "boot",
        ":failed", "echo", "exit",
    ];
    assert_eq!(commands, expected, "a manifest adds commands: {script}");
    let expansions = script.matches("${").count();
    assert_eq!(expansions, 12, "a manifest adds expansions: {script}");
}

/// Whatever a catalogue says, each tag leads to a version, and has a script of its own.
fn offered(catalogue: &Catalogue) {
    let encoded = catalogue.encode();
    // Written without blanks a catalogue may be within the limit, and beyond it as we write it.
    if encoded.len() <= CATALOGUE_BYTES_MAX {
        round_trip(catalogue, &encoded, Catalogue::decode_any);
    }
    assert!(catalogue.next_version().number() <= VERSION_MAX + 1);
    let mut items = Vec::new();
    for (tag, version) in &catalogue.tags {
        let reference = ImageRef {
            tag: Some(tag.clone()),
            ..catalogue.name.clone().into()
        };
        let found = catalogue
            .resolve(&reference)
            .expect("tags lead to versions");
        assert_eq!(found.0, *version);
        let path = boot_script::script_path(&reference);
        assert!(!path.contains([':', '%']) && path.matches('/').count() == 1);
        items.push(MenuItem {
            label: format!("version {version}"),
            reference,
        });
    }
    let menu = boot_script::menu(&items, 0);
    let listed = menu.lines().filter(|line| line.starts_with("item "));
    assert_eq!(
        listed.count(),
        if items.is_empty() { 0 } else { items.len() + 5 }
    );
}
