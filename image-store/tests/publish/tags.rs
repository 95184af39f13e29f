//! Tags that are set, rolled back and deleted, and the boot files that follow them.

use std::path::Path;

use image_format::ObjectRef;
use image_format::hint::Hint;
use image_store::publication::PublishError;
use image_store::{KeyRing, Retagging, Store, TagChange};

use crate::roots::{at_each_change, store_with_image};
use crate::{Scratch, disk, publish, publish_bootable, read_back, ring, signer};

#[tokio::test]
async fn a_rollback_that_dies_anywhere_leaves_the_tag_before_or_after() {
    let scratch = Scratch::new();
    let (store, _) = store_with_image(&scratch).await;
    publish(&store, "a", &disk(7, 2)).await.unwrap();
    let back = Retagging {
        name: "a".parse().unwrap(),
        tag: "latest".parse().unwrap(),
        change: TagChange::RollBack {
            to: Some("1".parse().unwrap()),
        },
    };
    let act = async |store: Store, ring: KeyRing| {
        back.commit(&store, &signer(&ring)).await.unwrap();
    };
    let check = async |left: &Scratch| {
        let read = read_back(&left.root(), "a").await;
        assert!(read == disk(1, 2) || read == disk(7, 2));
        let store = Store::open(&left.root()).await.unwrap();
        back.commit(&store, &signer(&ring(&store))).await.unwrap();
        assert_eq!(read_back(&left.root(), "a").await, disk(1, 2));
        assert_eq!(read_back(&left.root(), "a@2").await, disk(7, 2));
    };
    assert!(at_each_change(&scratch, act, check).await >= 8);
}

#[tokio::test]
async fn a_rollback_that_dies_anywhere_is_ended_by_the_same_again_and_goes_no_further() {
    let scratch = Scratch::new();
    let (store, _) = store_with_image(&scratch).await;
    for seed in [7, 9] {
        publish(&store, "a", &disk(seed, 2)).await.unwrap();
    }
    let back = Retagging {
        name: "a".parse().unwrap(),
        tag: "latest".parse().unwrap(),
        change: TagChange::RollBack { to: None },
    };
    let act = async |store: Store, ring: KeyRing| {
        back.commit(&store, &signer(&ring)).await.unwrap();
    };
    let second = store.resolve(&"a@2".parse().unwrap()).await.unwrap();
    let second = ObjectRef::of(&second.manifest.encode());
    let hints_at_second = |left: &Scratch| {
        ["boot/a.json", "boot/a=latest.json"].iter().all(|path| {
            let hint = std::fs::read(left.root().join(path)).unwrap();
            Hint::decode(&hint).unwrap().manifest == second
        })
    };
    let ended = std::cell::Cell::new(0);
    let check = async |left: &Scratch| {
        let store = Store::open(&left.root()).await.unwrap();
        let was_done = hints_at_second(left);
        let moved = back.commit(&store, &signer(&ring(&store))).await.unwrap();
        ended.set(ended.get() + usize::from(moved.ended));
        let after = moved.after.unwrap().number();
        assert_eq!(after, if was_done { 1 } else { 2 });
        assert_eq!(hints_at_second(left), !was_done);
    };
    assert!(at_each_change(&scratch, act, check).await >= 8);
    assert!(ended.get() >= 4, "{}", ended.get());
}

#[tokio::test]
async fn damage_to_one_tag_leaves_the_boot_files_of_the_others_right() {
    let scratch = Scratch::new();
    let store = scratch.store().await;
    let ring = ring(&store);
    let put =
        async |tag: &str, seed| publish_bootable(&store, &format!("a:{tag}"), &disk(seed, 2)).await;
    let lost = put("11", 1).await.unwrap();
    let lost = ObjectRef::of(&lost.manifest.encode());
    std::fs::remove_file(scratch.root().join(lost.digest.object_path())).unwrap();
    let error = put("12", 3).await.unwrap_err();
    assert!(matches!(error, PublishError::BootFiles { .. }), "{error}");
    let read = |path: &str| std::fs::read_to_string(scratch.root().join(path)).unwrap();
    assert!(read("boot/a=12.ipxe").contains("a:12@2"));
    assert!(read("boot.ipxe").contains("a:12"));
    // What is advised then leaves a rolled back tag where it is.
    put("12", 5).await.unwrap_err();
    let back = |to: Option<&str>| Retagging {
        name: "a".parse().unwrap(),
        tag: "12".parse().unwrap(),
        change: TagChange::RollBack {
            to: to.map(|to| to.parse().unwrap()),
        },
    };
    let error = back(None).commit(&store, &signer(&ring)).await.unwrap_err();
    assert!(
        error.to_string().contains("circular rollback a:12 --to 2"),
        "{error}"
    );
    assert!(
        back(Some("2"))
            .commit(&store, &signer(&ring))
            .await
            .is_err()
    );
    assert!(read("boot/a=12.ipxe").contains("a:12@2"));
    // And who wants to get past a version that is damaged does.
    let behind = back(None).commit(&store, &signer(&ring)).await.unwrap_err();
    assert!(behind.to_string().contains("--to 1"), "{behind}");
}

#[tokio::test]
async fn a_deleted_tag_takes_its_boot_scripts_along() {
    let scratch = Scratch::new();
    let store = scratch.store().await;
    publish_bootable(&store, "a", &disk(1, 2)).await.unwrap();
    let ring = ring(&store);
    let retag = async |tag: &str, change| {
        let retagging = Retagging {
            name: "a".parse().unwrap(),
            tag: tag.parse().unwrap(),
            change,
        };
        retagging.commit(&store, &signer(&ring)).await
    };
    let exists = |path: &str| Path::new(&scratch.root()).join(path).exists();
    let to = "a@1".parse().unwrap();
    retag("stable", TagChange::Set { to }).await.unwrap();
    assert!(exists("boot/a=stable.ipxe") && exists("boot/a.ipxe"));
    retag("latest", TagChange::Delete).await.unwrap();
    assert!(exists("boot/a=stable.ipxe") && !exists("boot/a.ipxe"));
    assert!(!exists("boot/a=latest.ipxe"));
    let menu = std::fs::read_to_string(scratch.root().join("boot.ipxe")).unwrap();
    assert!(menu.contains("a:stable") && !menu.contains("a:latest"));
    assert!(retag("latest", TagChange::Delete).await.is_err());
}
