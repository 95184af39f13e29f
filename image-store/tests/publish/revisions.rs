//! A version gets another boot pack: all of it or nothing, and nobody's is lost unseen.

use std::collections::HashSet;

use image_format::profile::{Profile, StandIns, Touched};
use image_format::{ImageRef, ObjectRef};
use image_store::{
    BootPackError, ImageReader, PublishedAs, ReviseError, Revision, Store, StoreError,
};

use super::{Scratch, disk, publish, read_back, ring, signer};

/// The profile of one run that read the whole disk of `reference`, backwards.
async fn profile(store: &Store, reference: &ImageRef) -> Profile {
    let manifest = store.resolve(reference).await.unwrap().manifest;
    let reader = ImageReader::open(store.clone(), &manifest).await.unwrap();
    let page = reader.page(0).await.unwrap().unwrap();
    let touched = page.entries().iter().rev().map(|entry| Touched {
        chunk: entry.chunk,
        block: u64::from(entry.block),
        blocks: entry.blocks,
        runs: 1,
    });
    Profile {
        disk: manifest.disk.regions.digest,
        runs: 1,
        touched: touched.collect(),
    }
}

#[tokio::test]
async fn of_two_who_revise_at_once_one_is_told() {
    let scratch = Scratch::new();
    let store = scratch.store().await;
    let content = disk(1, 20);
    publish(&store, "a", &content).await.unwrap();
    let reference: ImageRef = "a".parse().unwrap();
    let manifest = store.resolve(&reference).await.unwrap().manifest;
    let profile = profile(&store, &reference).await;
    let built = store
        .build_boot_pack(
            &manifest.disk,
            &profile,
            &StandIns::new(),
            &HashSet::new(),
            3,
            2,
        )
        .await
        .unwrap();
    assert_eq!((built.chunks, built.profile), (20, profile));
    let keys = ring(&store);
    let revision = Revision {
        reference: reference.clone(),
        before: None,
        after: built.boot_pack,
    };
    let lost = Revision {
        after: built
            .boot_pack
            .map(|pack| image_format::manifest::BootPack {
                profile: ObjectRef::of(b"never stored"),
                ..pack
            }),
        ..revision.clone()
    };
    assert!(lost.commit(&store, &signer(&keys)).await.is_err());
    let revised = revision.clone().commit(&store, &signer(&keys)).await;
    assert_eq!(revised.unwrap().revision, 2);
    let files = scratch.files();
    let late = revision.commit(&store, &signer(&keys)).await.unwrap_err();
    assert!(matches!(late, ReviseError::Changed { .. }), "{late}");
    assert_eq!(scratch.files(), files);
    assert_eq!(read_back(&scratch.root(), "a@1").await, content);
    // The same disk, published again, keeps what it has.
    publish(&store, "a", &content).await.unwrap();
    let kept = store.resolve(&reference).await.unwrap().manifest;
    assert_eq!(kept.boot_pack, built.boot_pack);
    // Unless the store has lost it: no server takes a manifest that names what is not there.
    let object = built.boot_pack.unwrap().object.digest.object_path();
    std::fs::remove_file(scratch.root().join(object)).unwrap();
    let (published, _) = publish(&store, "a", &content).await.unwrap();
    assert_eq!(published.published_as, PublishedAs::Mended);
    let without = store.resolve(&reference).await.unwrap().manifest;
    assert_eq!((without.boot_pack, without.revision), (None, 3));
    assert_eq!(without.disk, kept.disk);
}

#[tokio::test]
async fn a_profile_that_is_gone_or_damaged_is_named() {
    let scratch = Scratch::new();
    let store = scratch.store().await;
    publish(&store, "a", &disk(1, 3)).await.unwrap();
    let reference: ImageRef = "a".parse().unwrap();
    let manifest = store.resolve(&reference).await.unwrap().manifest;
    let profile = profile(&store, &reference).await;
    let built = store
        .build_boot_pack(
            &manifest.disk,
            &profile,
            &StandIns::new(),
            &HashSet::new(),
            3,
            1,
        )
        .await
        .unwrap();
    let mut pack = built.boot_pack.unwrap();
    assert_eq!(store.profile(&pack).await.unwrap(), profile);
    pack.profile = store.put_object("hello\n".into()).await.unwrap();
    let damaged = store.profile(&pack).await.unwrap_err();
    assert!(
        matches!(damaged, BootPackError::Profile { .. }),
        "{damaged}"
    );
    pack.profile = ObjectRef::of(b"never stored");
    let gone = store.profile(&pack).await.unwrap_err();
    assert!(
        matches!(gone, BootPackError::Store(StoreError::Missing { .. })),
        "{gone}"
    );
}
