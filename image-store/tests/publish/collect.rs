//! What is deleted, when, and what never is.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use image_format::catalogue::catalogue_path;
use image_format::geometry::BLOCK_LEN;
use image_format::{ChunkId, Digest, ImageName, ObjectRef, Version};
use image_store::gc::list::LIST_PATH;
use image_store::gc::remove::{Removal, remove};
use image_store::gc::{Collected, GRACE_DEFAULT, GcConfig, GcError, Mode, collect};
use image_store::publication::PublishError;
use image_store::{ImageWriter, Prepared, PublishedAs, Signer, Store};

use crate::killer::{Mortal, Trigger};
use crate::{
    Scratch, disk, publication, publish, publish_bootable, read, read_back, ring, signer, write,
};

const DAY: u64 = 24 * 60 * 60;

async fn collect_after(
    store: &Store,
    days: u64,
    grace: Duration,
    mode: Mode,
) -> Result<Collected, GcError> {
    let ring = ring(store);
    let now = signer(&ring).now + days * DAY;
    let later = Signer {
        now,
        ..signer(&ring)
    };
    collect(store, &later, GcConfig { grace, mode }).await
}

/// Sweeps without a grace period.
pub(super) async fn sweep(store: &Store) -> Collected {
    let swept = collect_after(store, 0, Duration::ZERO, Mode::Sweep).await;
    swept.unwrap()
}

pub(super) async fn remove_version(store: &Store, name: &str, version: &str) {
    let (name, version): (ImageName, Version) = (name.parse().unwrap(), version.parse().unwrap());
    let ring = ring(store);
    let wanted = |it: &ImageName| (*it == name).then(|| Removal::Versions(vec![version]));
    let removed = remove(store, &signer(&ring), wanted, Mode::Sweep).await;
    assert_eq!(removed.unwrap().len(), 1);
}

/// The packs that are there.
fn packs(scratch: &Scratch) -> BTreeSet<PathBuf> {
    let files = scratch.files().into_iter();
    files
        .filter(|(_, bytes)| bytes.starts_with(b"CIRCPACK"))
        .map(|(path, _)| path)
        .collect()
}

#[tokio::test]
async fn what_nothing_refers_to_waits_for_the_grace_period() {
    let scratch = Scratch::new();
    let store = scratch.store().await;
    publish(&store, "a", &disk(1, 3)).await.unwrap();
    let first = packs(&scratch);
    publish(&store, "a", &disk(3, 3)).await.unwrap();
    remove_version(&store, "a", "1").await;
    for days in [0, 29] {
        let collected = collect_after(&store, days, GRACE_DEFAULT, Mode::Sweep).await;
        let collected = collected.unwrap();
        assert!(
            collected.deleted.is_empty() && collected.waiting > 4,
            "day {days}"
        );
        assert_eq!(packs(&scratch).len(), 2);
    }
    let dry = collect_after(&store, 30, GRACE_DEFAULT, Mode::DryRun).await;
    assert_eq!(packs(&scratch).len(), 2);
    let collected = collect_after(&store, 30, GRACE_DEFAULT, Mode::Sweep).await;
    let (dry, collected) = (dry.unwrap(), collected.unwrap());
    assert_eq!(dry, collected);
    assert!(
        first.is_disjoint(&packs(&scratch)),
        "the pack is there still"
    );
    assert_eq!(read_back(&scratch.root(), "a").await, disk(3, 3));
    // Its chunks are not known any more, and its number is not given again.
    let (again, stats) = publish(&store, "a", &disk(1, 3)).await.unwrap();
    assert_eq!(
        (again.reference.to_string(), stats.new_chunks),
        ("a:latest@3".to_owned(), 3)
    );
    assert_eq!(read_back(&scratch.root(), "a").await, disk(1, 3));
}

#[tokio::test]
async fn what_is_needed_again_leaves_the_list() {
    let scratch = Scratch::new();
    let store = scratch.store().await;
    publish(&store, "a", &disk(1, 3)).await.unwrap();
    publish(&store, "a", &disk(3, 3)).await.unwrap();
    remove_version(&store, "a", "1").await;
    let grace = GRACE_DEFAULT;
    collect_after(&store, 0, grace, Mode::Sweep).await.unwrap();
    let (_, stats) = publish(&store, "b", &disk(1, 3)).await.unwrap();
    assert_eq!(stats.new_chunks, 0, "what waits is used again");
    collect_after(&store, 29, grace, Mode::Sweep).await.unwrap();
    remove_and_forget(&store, "b").await;
    // Its wait began anew: it was needed in between.
    collect_after(&store, 31, grace, Mode::Sweep).await.unwrap();
    assert_eq!(packs(&scratch).len(), 2);
    collect_after(&store, 61, grace, Mode::Sweep).await.unwrap();
    assert_eq!(packs(&scratch).len(), 1);
}

#[tokio::test]
async fn what_is_let_go_again_has_all_of_its_grace_period_again() {
    let scratch = Scratch::new();
    let store = scratch.store().await;
    publish(&store, "a", &disk(1, 3)).await.unwrap();
    publish(&store, "a", &disk(3, 3)).await.unwrap();
    remove_version(&store, "a", "1").await;
    let sweep_after = async |days| {
        let swept = collect_after(&store, days, GRACE_DEFAULT, Mode::Sweep).await;
        swept.unwrap().deleted.len()
    };
    sweep_after(0).await;
    // It is needed again, and let go before anybody sweeps.
    publish(&store, "b", &disk(1, 3)).await.unwrap();
    publish(&store, "b", &disk(5, 3)).await.unwrap();
    remove_version(&store, "b", "1").await;
    assert_eq!(packs(&scratch).len(), 3);
    // What went with the version removed first, and nothing needed again, is due: its manifest and its catalogues.
    sweep_after(31).await;
    assert_eq!(packs(&scratch).len(), 3, "a machine may run from b@1 still");
    assert_eq!(sweep_after(60).await, 0);
    sweep_after(61).await;
    assert_eq!(packs(&scratch).len(), 2);
}

#[tokio::test]
async fn where_nobody_knows_what_is_let_go_all_waits_anew() {
    let scratch = Scratch::new();
    let store = scratch.store().await;
    for seed in [1, 3, 5] {
        publish(&store, "a", &disk(seed, 3)).await.unwrap();
    }
    remove_version(&store, "a", "1").await;
    let grace = GRACE_DEFAULT;
    collect_after(&store, 0, grace, Mode::Sweep).await.unwrap();
    let resolved = store.resolve(&"a@2".parse().unwrap()).await.unwrap();
    let manifest = ObjectRef::of(&resolved.manifest.encode());
    std::fs::remove_file(scratch.root().join(manifest.digest.object_path())).unwrap();
    remove_version(&store, "a", "2").await;
    let swept = collect_after(&store, 31, grace, Mode::Sweep).await.unwrap();
    assert!(swept.deleted.is_empty() && swept.waiting > 4);
}

#[tokio::test]
async fn a_removal_that_fails_leaves_what_boots() {
    let scratch = Scratch::new();
    let store = scratch.store().await;
    publish_bootable(&store, "a", &disk(1, 3)).await.unwrap();
    let keys = ring(&store);
    let before = scratch.files();
    let attempt = async || {
        let keys = ring(&store);
        remove(&store, &signer(&keys), |_| Some(Removal::All), Mode::Sweep).await
    };
    // No key that signs targets.
    let (key, aside) = (
        keys.directory().join("targets.der"),
        keys.directory().join("aside"),
    );
    std::fs::rename(&key, &aside).unwrap();
    assert!(attempt().await.is_err());
    assert!(scratch.files() == before, "nothing is changed");
    std::fs::rename(&aside, &key).unwrap();
    // It cannot be made current, and the scripts were taken away by then.
    let trigger = Trigger::refusing("metadata/timestamp.json");
    let refusing = store.clone().wrapped(|inner| {
        Arc::new(Mortal {
            inner,
            trigger: trigger.clone(),
        })
    });
    let keys = ring(&store);
    let failed = remove(
        &refusing,
        &signer(&keys),
        |_| Some(Removal::All),
        Mode::Sweep,
    )
    .await;
    assert!(failed.is_err());
    assert!(scratch.root().join("boot/a.ipxe").is_file());
    assert!(scratch.root().join("boot/a.json").is_file());
    assert_eq!(attempt().await.unwrap().len(), 1);
    assert!(!scratch.root().join("boot/a.ipxe").exists());
}

async fn remove_and_forget(store: &Store, name: &str) {
    let ring = ring(store);
    let wanted = |it: &ImageName| (it.as_str() == name).then_some(Removal::All);
    remove(store, &signer(&ring), wanted, Mode::Sweep)
        .await
        .unwrap();
}

#[tokio::test]
async fn a_whole_image_goes_and_its_numbers_with_it() {
    let scratch = Scratch::new();
    let store = scratch.store().await;
    publish_bootable(&store, "a", &disk(1, 3)).await.unwrap();
    let script = scratch.root().join("boot/a.ipxe");
    assert!(script.is_file());
    remove_and_forget(&store, "a").await;
    assert!(!script.exists());
    let left = std::fs::read_dir(scratch.root().join("boot")).unwrap();
    let left: Vec<_> = left.map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["minimum.img"]);
    assert!(read(&scratch.root(), &"a".parse().unwrap()).await.is_err());
    let menu = std::fs::read_to_string(scratch.root().join("boot.ipxe")).unwrap();
    assert!(
        !menu.contains("a:latest") && !menu.contains("boot/a"),
        "{menu}"
    );
    assert!(sweep(&store).await.deleted.len() > 6);
    assert!(packs(&scratch).is_empty());
    let (again, _) = publish(&store, "a", &disk(1, 3)).await.unwrap();
    assert_eq!(again.reference.to_string(), "a:latest@2");
}

#[tokio::test]
async fn nothing_that_a_version_needs_is_deleted_however_short_the_grace_period() {
    let scratch = Scratch::new();
    let store = scratch.store().await;
    publish(&store, "a", &disk(1, 3)).await.unwrap();
    publish(&store, "a:old", &[disk(1, 3), disk(3, 2)].concat())
        .await
        .unwrap();
    publish(&store, "lab/b", &disk(5, 2)).await.unwrap();
    let far = far_disk(&store).await;
    let deleted = sweep(&store).await.deleted;
    // Old metadata and catalogues.
    assert!(
        deleted.keys().all(|path| !path.starts_with("objects/")),
        "{deleted:?}"
    );
    assert_eq!(read_back(&scratch.root(), "a@1").await, disk(1, 3));
    assert_eq!(
        read_back(&scratch.root(), "a:old").await,
        [disk(1, 3), disk(3, 2)].concat()
    );
    assert_eq!(read_back(&scratch.root(), "lab/b").await, disk(5, 2));
    let reader = image_store::ImageReader::open(store.clone(), &far)
        .await
        .unwrap();
    assert_eq!(
        reader.read(70 << 30, BLOCK_LEN).await.unwrap(),
        vec![9; BLOCK_LEN]
    );
    let before = scratch.files();
    assert_eq!(sweep(&store).await, Collected::default());
    assert!(scratch.files() == before, "a second run changed something");
}

/// Publishes a disk whose region table has leaves, with one block far behind.
async fn far_disk(store: &Store) -> image_format::manifest::Manifest {
    let plain = vec![9; BLOCK_LEN];
    let mut writer = ImageWriter::new(store.clone(), Arc::default());
    let block = (70 << 30) / BLOCK_LEN as u64;
    let (chunk, stored) = (ChunkId::of(&plain), Prepared::Encoded(plain));
    writer.push(block, 1, chunk, stored).await.unwrap();
    let written = writer.finish(71 << 30).await.unwrap();
    let ring = ring(store);
    let published = publication("far", written)
        .commit(store, &signer(&ring))
        .await;
    published.unwrap().manifest
}

#[tokio::test]
async fn what_cannot_be_read_stops_the_sweep() {
    let scratch = Scratch::new();
    let store = scratch.store().await;
    publish(&store, "a", &disk(1, 3)).await.unwrap();
    publish(&store, "a", &disk(3, 3)).await.unwrap();
    remove_version(&store, "a", "1").await;
    let intact = scratch.files();
    for (path, bytes) in &intact {
        let inner = path.strip_prefix(scratch.root()).unwrap();
        let irrelevant = bytes.starts_with(b"CIRCPACK") || inner.starts_with("boot.ipxe");
        std::fs::write(path, "rotten").unwrap();
        let rotten = scratch.files();
        let ring = ring(&store);
        let config = GcConfig {
            grace: Duration::ZERO,
            mode: Mode::Sweep,
        };
        if collect(&store, &signer(&ring), config).await.is_err() {
            assert!(scratch.files() == rotten, "{} is rotten", path.display());
        } else {
            // Nothing that is needed was told from this file: the version that is left is whole.
            std::fs::write(path, bytes).unwrap();
            let got = read(&scratch.root(), &"a".parse().unwrap()).await;
            let good = got.as_ref() == Ok(&disk(3, 3)) || irrelevant;
            assert!(good, "{}: {:?}", path.display(), got.err());
        }
        for (path, bytes) in &intact {
            std::fs::write(path, bytes).unwrap();
        }
    }
}

#[tokio::test]
async fn leftovers_of_killed_writers_go_and_files_of_others_stay() {
    let scratch = Scratch::new();
    let store = scratch.store().await;
    let (published, _) = publish(&store, "a", &disk(1, 3)).await.unwrap();
    let object = scratch
        .root()
        .join(published.manifest.disk.regions.digest.object_path());
    let leftovers = [
        PathBuf::from(format!("{}#1", object.display())),
        scratch.root().join("metadata/timestamp.json#7"),
        scratch.root().join("boot.ipxe#2"),
        scratch.root().join(".circular-export-Xy1"),
    ];
    let mine = [
        scratch.root().join("boot/undionly.kpxe"),
        scratch.root().join("objects/readme#a"),
        scratch.root().join("robots.txt"),
        scratch.root().join(".well-known/x#1"),
    ];
    for path in leftovers.iter().chain(&mine) {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, "x").unwrap();
    }
    collect_after(&store, 0, GRACE_DEFAULT, Mode::Sweep)
        .await
        .unwrap();
    assert!(leftovers.iter().all(|path| path.is_file()));
    collect_after(&store, 30, GRACE_DEFAULT, Mode::Sweep)
        .await
        .unwrap();
    assert!(!leftovers.iter().any(|path| path.exists()));
    assert!(mine.iter().all(|path| path.is_file()));
    assert!(scratch.root().join(".lock").is_file());
}

#[tokio::test]
async fn a_publisher_whose_objects_were_swept_is_told_and_stores_them_again() {
    let scratch = Scratch::new();
    let store = scratch.store().await;
    publish(&store, "a", &disk(1, 3)).await.unwrap();
    publish(&store, "a", &disk(3, 3)).await.unwrap();
    remove_version(&store, "a", "1").await;
    // One relies on chunks of the version that went, one has written all of its own.
    let relies = write(&store, &disk(1, 3)).await.unwrap();
    let fresh = write(&store, &disk(5, 3)).await.unwrap();
    sweep(&store).await;
    let ring = ring(&store);
    for (written, content) in [(relies, disk(1, 3)), (fresh, disk(5, 3))] {
        let refused = publication("b", written)
            .commit(&store, &signer(&ring))
            .await;
        assert!(matches!(refused, Err(PublishError::Gone { .. })));
        let (published, stats) = publish(&store, "b", &content).await.unwrap();
        assert_eq!(published.published_as, PublishedAs::NewVersion);
        assert_eq!(stats.new_chunks, 3);
        assert_eq!(read_back(&scratch.root(), "b").await, content);
    }
}

#[tokio::test]
async fn what_only_a_later_format_names_is_kept() {
    let scratch = Scratch::new();
    let store = scratch.store().await;
    let (published, _) = publish(&store, "a", &disk(1, 3)).await.unwrap();
    let later = store
        .put_object(b"of a later format".to_vec().into())
        .await
        .unwrap();
    let mut manifest: serde_json::Value =
        serde_json::from_slice(&published.manifest.encode()).unwrap();
    manifest["later"] = serde_json::json!([{ "parts": [later] }]);
    let manifest = store
        .put_object(manifest.to_string().into_bytes().into())
        .await
        .unwrap();
    let name: ImageName = "a".parse().unwrap();
    let names = store.names().await.unwrap();
    let mut catalogue = store.catalogue(&names, &name).await.unwrap();
    let entry = catalogue.versions.get_mut(&Version::FIRST).unwrap();
    entry.manifest = manifest;
    let bytes = catalogue.encode();
    let object = ObjectRef::of(&bytes);
    let path = scratch.root().join(catalogue_path(&name, &object.digest));
    std::fs::write(path, bytes).unwrap();
    let ring = ring(&store);
    let current = store.current(&ring.root().unwrap()).await.unwrap();
    let set = [(name.to_file_safe(), object)];
    signer(&ring).advance(&store, &current, &set).await.unwrap();
    sweep(&store).await;
    assert_eq!(
        store.object(&later).await.unwrap(),
        &b"of a later format"[..]
    );
}

#[tokio::test]
async fn a_list_that_cannot_be_read_is_begun_anew() {
    let scratch = Scratch::new();
    let store = scratch.store().await;
    publish(&store, "a", &disk(1, 3)).await.unwrap();
    publish(&store, "a", &disk(3, 3)).await.unwrap();
    remove_version(&store, "a", "1").await;
    collect_after(&store, 0, GRACE_DEFAULT, Mode::Sweep)
        .await
        .unwrap();
    std::fs::write(scratch.root().join(LIST_PATH), "{").unwrap();
    let collected = collect_after(&store, 40, GRACE_DEFAULT, Mode::Sweep).await;
    assert!(collected.unwrap().deleted.is_empty());
    let collected = collect_after(&store, 70, GRACE_DEFAULT, Mode::Sweep).await;
    assert!(!collected.unwrap().deleted.is_empty());
}

#[tokio::test]
async fn a_list_cannot_make_gc_delete_what_is_needed() {
    let scratch = Scratch::new();
    let store = scratch.store().await;
    let (published, _) = publish(&store, "a", &disk(1, 3)).await.unwrap();
    let regions = published.manifest.disk.regions.digest.object_path();
    let stranger = Digest::of(b"x").object_path();
    let list = serde_json::json!({
        "format": 1,
        "waiting": { regions: 0, "../keys/root.der": 0, "circular.json": 0, stranger: 0 },
    });
    std::fs::write(scratch.root().join(LIST_PATH), list.to_string()).unwrap();
    collect_after(&store, 40, GRACE_DEFAULT, Mode::Sweep)
        .await
        .unwrap();
    assert_eq!(read_back(&scratch.root(), "a").await, disk(1, 3));
    assert!(
        scratch
            .root()
            .with_file_name("keys")
            .join("root.der")
            .is_file()
    );
}
