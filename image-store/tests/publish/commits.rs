//! Publishes one after another, at the same time, cut short, and into stores that are full.

use std::path::Path;

use image_format::catalogue::{CATALOGUE_BYTES_MAX, Catalogue, catalogue_path};
use image_format::{ImageName, ObjectRef, Version};
use image_store::publication::PublishError;
use image_store::trust::sign::Established;
use image_store::trust::{FIRST_ROOT_PATH, Names, TIMESTAMP_PATH};
use image_store::{KeyRing, PublishedAs, Store, StoreError};

use crate::{
    Scratch, boot, disk, publication, publish, publish_bootable, read_back, ring, signer, write,
};

#[tokio::test]
async fn publishing_twice_adds_nothing() {
    let scratch = Scratch::new();
    let store = scratch.store().await;
    let (first, stats) = publish(&store, "debian:12", &disk(1, 9)).await.unwrap();
    assert_eq!(
        (first.published_as, stats.new_chunks),
        (PublishedAs::NewVersion, 9)
    );
    let before = scratch.files();
    let (second, stats) = publish(&store, "debian:12", &disk(1, 9)).await.unwrap();
    assert_eq!(
        (second.published_as, stats.new_chunks),
        (PublishedAs::Unchanged, 0)
    );
    assert_eq!(second.reference, first.reference);
    assert!(scratch.files() == before, "the store changed");
}

#[tokio::test]
async fn a_disk_that_is_not_committed_is_not_visible_and_in_nobodys_way() {
    let scratch = Scratch::new();
    let store = scratch.store().await;
    publish(&store, "old", &disk(1, 3)).await.unwrap();
    drop(write(&store, &disk(2, 3)).await.unwrap());
    // What a kill in the middle of a write leaves: parts of files under other names.
    for path in scratch.files().into_keys() {
        let torn = format!("{}#1", path.display());
        std::fs::write(torn, b"CIRC").unwrap();
    }
    assert_eq!(store.names().await.unwrap().names.len(), 1);
    assert_eq!(read_back(&scratch.root(), "old").await, disk(1, 3));
    publish(&store, "new", &disk(2, 3)).await.unwrap();
    assert_eq!(read_back(&scratch.root(), "old").await, disk(1, 3));
    assert_eq!(read_back(&scratch.root(), "new").await, disk(2, 3));
}

#[tokio::test(flavor = "multi_thread")]
async fn publishers_at_the_same_time_lose_nothing() {
    let scratch = Scratch::new();
    let publishers: Vec<_> = (0..8)
        .map(|number| {
            let root = scratch.root();
            tokio::spawn(async move {
                // Each makes the store and its keys, if it comes first.
                let store = Store::open_or_create(&root).await.unwrap();
                let keys = root.with_file_name(format!("keys-{number}"));
                let fresh = KeyRing::generate(&keys).unwrap();
                let first = signer(&fresh).establish(&store).await.unwrap();
                let (Established::Before(trusted) | Established::Now(trusted)) = first;
                let keys = (0..8).map(|number| root.with_file_name(format!("keys-{number}")));
                let ring = keys
                    .filter_map(|keys| KeyRing::open(&keys).ok())
                    .find(|ring| ring.root().is_ok_and(|root| root == trusted))
                    .unwrap();
                let content = [disk(200, 3), disk(number, 3)].concat();
                for reference in [format!("own{number}"), format!("shared:t{number}")] {
                    let written = write(&store, &content).await.unwrap();
                    publication(&reference, written)
                        .commit(&store, &signer(&ring))
                        .await
                        .unwrap();
                }
            })
        })
        .collect();
    for publisher in publishers {
        publisher.await.unwrap();
    }
    for number in 0..8 {
        let content = [disk(200, 3), disk(number, 3)].concat();
        let own = read_back(&scratch.root(), &format!("own{number}")).await;
        assert!(own == content, "own{number}");
        let shared = read_back(&scratch.root(), &format!("shared:t{number}")).await;
        assert!(shared == content, "shared:t{number}");
    }
}

#[tokio::test]
async fn one_image_published_twice_at_once_is_indexed_once() {
    let scratch = Scratch::new();
    let store = scratch.store().await;
    let (one, two) = (
        write(&store, &disk(1, 3)).await.unwrap(),
        write(&store, &disk(1, 3)).await.unwrap(),
    );
    let first = publication("a", one)
        .commit(&store, &signer(&ring(&store)))
        .await
        .unwrap();
    let second = publication("a", two)
        .commit(&store, &signer(&ring(&store)))
        .await
        .unwrap();
    assert_eq!(first.reference, second.reference);
    assert_eq!(store.names().await.unwrap().chunk_indexes.len(), 1);
}

#[tokio::test]
async fn past_sixteen_chunk_indexes_become_one_that_knows_all() {
    let scratch = Scratch::new();
    let store = scratch.store().await;
    for number in 0..17 {
        publish(&store, &format!("i{number}"), &disk(number * 2, 2))
            .await
            .unwrap();
        let indexes = store.names().await.unwrap().chunk_indexes.len();
        assert_eq!(
            indexes,
            if number == 16 {
                1
            } else {
                usize::from(number) + 1
            }
        );
    }
    for number in 0..17 {
        let (again, stats) = publish(&store, &format!("i{number}"), &disk(number * 2, 2))
            .await
            .unwrap();
        assert_eq!(
            (again.published_as, stats.new_chunks),
            (PublishedAs::Unchanged, 0)
        );
    }
}

#[tokio::test]
async fn a_publish_that_cannot_boot_takes_no_boot_away() {
    let scratch = Scratch::new();
    let store = scratch.store().await;
    publish_bootable(&store, "a:1", &disk(1, 2)).await.unwrap();
    let (again, _) = publish(&store, "a:2", &disk(1, 2)).await.unwrap();
    assert_eq!(again.manifest.boot, Some(boot()));
    assert!(scratch.root().join("boot/a=1.ipxe").is_file());
    assert!(scratch.root().join("boot/a=2.ipxe").is_file());
}

/// Makes `name` one whose catalogue has as many versions as fit.
async fn fill_catalogue(store: &Store, name: &str) -> usize {
    let names = store.names().await.unwrap();
    let name: ImageName = name.parse().unwrap();
    let mut catalogue = store.catalogue(&names, &name).await.unwrap();
    let entry = catalogue.versions[&Version::FIRST];
    let length = |catalogue: &Catalogue| catalogue.encode().len();
    let one = length(&catalogue);
    catalogue.versions.insert(Version::FIRST.next(), entry);
    // A few bytes more than needed for each: numbers grow.
    let each = length(&catalogue) - one + 4;
    while length(&catalogue) + each < CATALOGUE_BYTES_MAX {
        let room = (CATALOGUE_BYTES_MAX - length(&catalogue)) / each;
        for _ in 0..room {
            catalogue.versions.insert(catalogue.next_version(), entry);
        }
    }
    let bytes = catalogue.encode();
    let object = ObjectRef::of(&bytes);
    std::fs::write(
        store.root().join(catalogue_path(&name, &object.digest)),
        bytes,
    )
    .unwrap();
    let ring = ring(store);
    let current = store.current(&ring.root().unwrap()).await.unwrap();
    let set = [(name.to_file_safe(), object)];
    signer(&ring).advance(store, &current, &set).await.unwrap();
    catalogue.versions.len()
}

#[tokio::test]
async fn a_full_catalogue_refuses_more_and_stays_readable() {
    let scratch = Scratch::new();
    let store = scratch.store().await;
    publish(&store, "full", &disk(1, 2)).await.unwrap();
    assert!(fill_catalogue(&store, "full").await > 2000);
    let mut refused = None;
    for seed in 1..9 {
        let disk = disk(seed * 2, 2);
        if let Err(error) = publish(&store, "full", &disk).await {
            refused = Some(error);
            break;
        }
    }
    assert!(matches!(refused, Some(PublishError::CatalogueFull { .. })));
    assert_eq!(read_back(&scratch.root(), "full@1").await, disk(1, 2));
    publish(&store, "other", &disk(100, 2)).await.unwrap();
}

#[tokio::test]
async fn a_store_is_made_only_in_an_empty_directory() {
    let scratch = Scratch::new();
    let root = scratch.root();
    std::fs::create_dir_all(root.join("lost+found")).unwrap();
    scratch.store().await;
    let foreign = Path::new(env!("CARGO_MANIFEST_DIR"));
    assert!(matches!(
        Store::open_or_create(foreign).await,
        Err(StoreError::NotEmpty { .. })
    ));
}

#[tokio::test]
async fn a_new_store_offers_nothing_and_one_that_lost_its_list_is_damaged() {
    let scratch = Scratch::new();
    let store = scratch.store().await;
    assert_eq!(store.names().await.unwrap(), Names::default());
    publish(&store, "a", &disk(1, 2)).await.unwrap();
    let timestamp = scratch.root().join(TIMESTAMP_PATH);
    let kept = std::fs::read(&timestamp).unwrap();
    std::fs::remove_file(&timestamp).unwrap();
    assert!(matches!(
        publish(&store, "b", &disk(2, 2)).await,
        Err(PublishError::Store(StoreError::Trust(_)))
    ));
    std::fs::write(&timestamp, kept).unwrap();
    std::fs::remove_file(scratch.root().join(FIRST_ROOT_PATH)).unwrap();
    assert!(matches!(
        store.names().await,
        Err(StoreError::Missing { .. })
    ));
    let ring = ring(&store);
    assert!(signer(&ring).establish(&store).await.is_err());
}
