//! What publishing an image again restores, and that one disk stays one version.

use std::path::PathBuf;

use image_format::frame::Encoder;
use image_format::{Digest, ObjectRef};
use image_store::publication::PublishError;
use image_store::{PublishedAs, Store};

use crate::{
    Scratch, boot, boot_stored, disk, publication, publish, read_back, ring, signer, write,
    write_without,
};

fn encoded(level: i32) -> impl Fn(&[u8]) -> Vec<u8> {
    move |plain| Encoder::new(level).unwrap().encode(plain).unwrap()
}

fn files(scratch: &Scratch, magic: &[u8]) -> Vec<(PathBuf, Vec<u8>)> {
    let files = scratch.files().into_iter();
    files
        .filter(|(_, bytes)| bytes.starts_with(magic))
        .collect()
}

/// Publishes as the command does: what turns out to be gone is stored again.
async fn publish_again(
    store: &Store,
    reference: &str,
    content: &[u8],
    lost: &[Digest],
) -> image_store::Published {
    let written = write_without(store, content, lost, <[u8]>::to_vec)
        .await
        .unwrap();
    let ring = ring(store);
    publication(reference, written)
        .commit(store, &signer(&ring))
        .await
        .unwrap()
}

#[tokio::test]
async fn one_disk_stored_twice_is_one_version() {
    let scratch = Scratch::new();
    let store = scratch.store().await;
    let content = disk(1, 5);
    // Two publishers at once, at different levels: neither sees the chunks of the other.
    let one = write_without(&store, &content, &[], encoded(1))
        .await
        .unwrap();
    let two = write_without(&store, &content, &[], <[u8]>::to_vec)
        .await
        .unwrap();
    assert_ne!(one.disk.regions, two.disk.regions);
    assert_eq!(one.disk.content, two.disk.content);
    let ring = ring(&store);
    let first = publication("a", one)
        .commit(&store, &signer(&ring))
        .await
        .unwrap();
    let mut second = publication("a:again", two);
    second.boot = Some(boot_stored(&store).await);
    let second = second.commit(&store, &signer(&ring)).await.unwrap();
    assert_eq!(second.reference.version, first.reference.version);
    assert_eq!(second.published_as, PublishedAs::NewRevision);
    assert_eq!(second.manifest.disk, first.manifest.disk);
    assert_eq!(store.names().await.unwrap().chunk_indexes.len(), 1);
    assert_eq!(read_back(&scratch.root(), "a:again").await, content);
}

#[tokio::test]
async fn a_lost_pack_comes_back_when_its_image_is_published_again() {
    let scratch = Scratch::new();
    let store = scratch.store().await;
    publish(&store, "a", &disk(1, 5)).await.unwrap();
    publish(&store, "b", &[disk(1, 5), disk(3, 2)].concat())
        .await
        .unwrap();
    let (path, bytes) = files(&scratch, b"CIRCPACK")
        .into_iter()
        .max_by_key(|(_, bytes)| bytes.len())
        .unwrap();
    std::fs::remove_file(&path).unwrap();
    let Err(PublishError::Gone { objects }) = publish(&store, "a", &disk(1, 5)).await else {
        panic!("a lost pack was not noticed");
    };
    assert_eq!(objects, [ObjectRef::of(&bytes)]);
    let again = publish_again(&store, "a", &disk(1, 5), &[objects[0].digest]).await;
    assert_eq!(again.published_as, PublishedAs::Unchanged);
    assert!(std::fs::read(path).unwrap() == bytes, "another pack");
    // All that shared the pack is mended with it.
    assert_eq!(read_back(&scratch.root(), "a").await, disk(1, 5));
    let both = [disk(1, 5), disk(3, 2)].concat();
    assert_eq!(read_back(&scratch.root(), "b").await, both);
}

#[tokio::test]
async fn chunks_that_go_elsewhere_become_a_revision_of_the_same_version() {
    let scratch = Scratch::new();
    let store = scratch.store().await;
    publish(&store, "a", &disk(1, 5)).await.unwrap();
    let content = [disk(1, 2), disk(3, 3)].concat();
    publish(&store, "b", &content).await.unwrap();
    let (path, bytes) = files(&scratch, b"CIRCPACK")
        .into_iter()
        .max_by_key(|(_, bytes)| bytes.len())
        .unwrap();
    std::fs::remove_file(&path).unwrap();
    let pack = ObjectRef::of(&bytes).digest;
    let mended = publish_again(&store, "b", &content, &[pack]).await;
    assert_eq!(mended.published_as, PublishedAs::Mended);
    assert_eq!(
        (mended.manifest.version.number(), mended.manifest.revision),
        (1, 2)
    );
    assert_eq!(read_back(&scratch.root(), "b@1").await, content);
    assert!(!path.exists());
    // The chunk index leads nobody to the lost pack any more.
    publish(&store, "c", &disk(1, 5)).await.unwrap();
    assert_eq!(read_back(&scratch.root(), "c").await, disk(1, 5));
}

#[tokio::test]
async fn a_flipped_pack_is_found_by_reading_it_and_replaced() {
    let scratch = Scratch::new();
    let store = scratch.store().await;
    publish(&store, "a", &disk(1, 5)).await.unwrap();
    let (path, bytes) = files(&scratch, b"CIRCPACK").remove(0);
    let mut flipped = bytes.clone();
    flipped[1000] ^= 1;
    std::fs::write(&path, flipped).unwrap();
    let written = write(&store, &disk(1, 5)).await.unwrap();
    let damaged = store.damaged(written.known_packs()).await.unwrap();
    assert_eq!(damaged, [ObjectRef::of(&bytes)]);
    let again = publish_again(&store, "a", &disk(1, 5), &[damaged[0].digest]).await;
    assert_eq!(again.published_as, PublishedAs::Unchanged);
    assert!(std::fs::read(path).unwrap() == bytes);
}

#[tokio::test]
async fn a_lost_manifest_is_written_again() {
    let scratch = Scratch::new();
    let store = scratch.store().await;
    let (published, _) = publish(&store, "a", &disk(1, 5)).await.unwrap();
    let object = ObjectRef::of(&published.manifest.encode());
    let path = scratch.root().join(object.digest.object_path());
    for spoil in [None, Some("{}")] {
        match spoil {
            None => std::fs::remove_file(&path).unwrap(),
            Some(bytes) => std::fs::write(&path, bytes).unwrap(),
        }
        let (again, _) = publish(&store, "a", &disk(1, 5)).await.unwrap();
        assert_eq!(again.published_as, PublishedAs::Unchanged);
        assert_eq!(read_back(&scratch.root(), "a").await, disk(1, 5));
    }
    // Another boot than before makes it another manifest: a revision.
    std::fs::remove_file(&path).unwrap();
    let mut bootable = publication("a", write(&store, &disk(1, 5)).await.unwrap());
    bootable.boot = Some(boot_stored(&store).await);
    let ring = ring(&store);
    let again = bootable.commit(&store, &signer(&ring)).await.unwrap();
    assert_eq!(
        (again.published_as, again.manifest.revision),
        (PublishedAs::Mended, 2)
    );
    assert_eq!(read_back(&scratch.root(), "a@1").await, disk(1, 5));
}

#[tokio::test]
async fn a_kernel_that_went_before_the_commit_stops_it() {
    let scratch = Scratch::new();
    let store = scratch.store().await;
    let mut bootable = publication("a", write(&store, &disk(1, 2)).await.unwrap());
    bootable.boot = Some(boot());
    let ring = ring(&store);
    let refused = bootable.commit(&store, &signer(&ring)).await;
    assert!(matches!(refused, Err(PublishError::Gone { objects }) if objects.len() == 2));
    assert!(store.names().await.unwrap().names.is_empty());
}
