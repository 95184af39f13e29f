//! Index deltas: what a publish says of the index since the version before.

use std::collections::BTreeSet;

use image_format::index_delta::Patches;
use image_format::manifest::{IndexDelta, Manifest};
use image_store::{ImageReader, Published, Revision, Store};

use super::collect::{remove_version, sweep};
use super::{Scratch, boot, disk, publication, ring, signer, write};

/// Publishes with the index delta that follows.
async fn publish(store: &Store, reference: &str, content: &[u8]) -> Published {
    let written = write(store, content).await.unwrap();
    let mut publication = publication(reference, written);
    let delta = store
        .build_index_delta(
            &publication.reference,
            &publication.written.disk,
            &BTreeSet::new(),
        )
        .await;
    publication.index_delta = delta.unwrap();
    let ring = ring(store);
    publication.commit(store, &signer(&ring)).await.unwrap()
}

/// Checks that all pages of `to` that have patches follow from those of `from`; returns how many have.
async fn check(store: &Store, from: &Manifest, to: &Manifest) -> usize {
    let delta = to.index_delta.unwrap();
    assert_eq!(delta.base, from.disk.regions.digest);
    let bytes = store.object(&delta.object).await.unwrap();
    let patches = Patches::decode(bytes).unwrap();
    let old = ImageReader::open(store.clone(), from).await.unwrap();
    let new = ImageReader::open(store.clone(), to).await.unwrap();
    for region in patches.regions() {
        let base = old.page(region).await.unwrap().unwrap().encode();
        let name = new.page_digest(region).await.unwrap().unwrap();
        let made = patches.page(region, &name, &base).unwrap().unwrap();
        assert_eq!(made, new.page(region).await.unwrap().unwrap().encode());
    }
    patches.regions().len()
}

#[tokio::test]
async fn the_next_version_says_what_changed_in_the_index() {
    let scratch = Scratch::new();
    let store = scratch.store().await;
    let content = disk(1, 200);
    let first = publish(&store, "lab/debian:12", &content).await.manifest;
    assert_eq!(first.index_delta, None, "there is no version before");
    let changed = [
        &content[..60 * 16_384],
        &disk(2, 2),
        &content[62 * 16_384..],
    ]
    .concat();
    let second = publish(&store, "lab/debian:12", &changed).await.manifest;
    assert_eq!(check(&store, &first, &second).await, 1);
    let length = second.index_delta.unwrap().object.length;
    assert!(length < 2000, "{length} bytes");
    // A tag of its own begins with the newest version, and goes on with its own.
    let other = [&content[..10 * 16_384], &disk(4, 3)].concat();
    let third = publish(&store, "lab/debian:test", &other).await.manifest;
    check(&store, &second, &third).await;
    let fourth = publish(&store, "lab/debian:12", &[changed, disk(6, 1)].concat()).await;
    check(&store, &second, &fourth.manifest).await;
    // Nothing in common: nothing is gained.
    let foreign = publish(&store, "lab/debian:12", &disk(8, 40)).await;
    assert_eq!(foreign.manifest.index_delta, None);
}

#[tokio::test]
async fn a_delta_stays_with_its_version_and_is_collected_with_it() {
    let scratch = Scratch::new();
    let store = scratch.store().await;
    let content = disk(1, 200);
    publish(&store, "lab/debian:12", &content).await;
    let changed = [&content[16_384..], &disk(2, 1)].concat();
    let second = publish(&store, "lab/debian:12", &changed).await.manifest;
    let delta = second.index_delta.unwrap();
    let path = scratch.root().join(delta.object.digest.object_path());
    assert!(path.exists());
    // The same disk again, and how to boot it.
    let mut again = publication("lab/debian:12", write(&store, &changed).await.unwrap());
    let objects = [b"kernel".to_vec(), b"initramfs".to_vec()];
    for object in objects {
        store.put_object(object.into()).await.unwrap();
    }
    again.boot = Some(boot());
    let ring = ring(&store);
    let revised = again.commit(&store, &signer(&ring)).await.unwrap();
    assert_eq!(revised.manifest.revision, 2);
    assert_eq!(revised.manifest.index_delta, Some(delta));
    // A revision keeps it, too, whatever it changes.
    let revision = Revision {
        reference: revised.reference,
        before: None,
        after: None,
    };
    let kept = revision.commit(&store, &signer(&ring)).await.unwrap();
    assert_eq!(kept.index_delta, Some(delta));
    sweep(&store).await;
    assert!(store.damaged([delta.object]).await.unwrap().is_empty());
    publish(&store, "lab/debian:12", &disk(4, 1)).await;
    remove_version(&store, "lab/debian", "2").await;
    sweep(&store).await;
    assert!(!path.exists());
}

#[tokio::test]
async fn a_delta_that_was_swept_meanwhile_is_noticed() {
    let scratch = Scratch::new();
    let store = scratch.store().await;
    let mut publication = publication("a", write(&store, &disk(1, 3)).await.unwrap());
    publication.index_delta = Some(IndexDelta {
        object: image_format::ObjectRef::of(b"swept"),
        base: image_format::Digest::of(b"base"),
    });
    let ring = ring(&store);
    let refused = publication.commit(&store, &signer(&ring)).await;
    assert!(refused.is_err());
}
