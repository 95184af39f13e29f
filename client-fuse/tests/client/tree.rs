//! A whole store as a tree: over a real mount, and in process where a clock has to move.

use std::fs;
use std::io;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use client_fuse::cache::memory::MemoryCache;
use client_fuse::fetch::fetcher::Fetcher;
use client_fuse::fetch::{Body, Request, Source, SourceError};
use client_fuse::stats::Stats;
use client_fuse::tree::images::Images;
use client_fuse::tree::names::{Names, REFRESH_AFTER};
use client_fuse::tree::numbers::ROOT;
use client_fuse::tree::{Tree, TreeError};
use image_format::catalogue::{Catalogue, VersionEntry, catalogue_path};
use image_format::digest::ObjectRef;
use image_format::manifest::Manifest;
use image_format::reference::{ImageName, Version};
use nix::libc::{EIO, EROFS};
use tokio::runtime::Handle;

use crate::mount::{Mounted, assert_ok, can_mount, mount_dir};
use crate::publisher::{Publisher, Release};
use crate::server::{Manner, serve};
use crate::source::MemorySource;
use crate::stack::{IMPATIENT, no_caches};
use crate::store::{Store, mixed_disk};

/// As in `client_fuse::tree::images`.
const LIVE_MAX: usize = 64;

/// A version of an image: its tag, its number, and the store with its disk.
type Tagged<'a> = (&'a str, u64, &'a Store);

/// A store with all these images, signed by `publisher` as its release `number`.
fn many(publisher: &Publisher, number: u64, images: &[(&str, &[Tagged<'_>])]) -> Store {
    let mut store = images[0].1[0].2.clone();
    store.files.retain(|path, _| !path.starts_with("metadata/"));
    store.targets.retain(|(name, _)| name.starts_with('_'));
    for (name, versions) in images {
        let name: ImageName = name.parse().unwrap();
        let mut catalogue = Catalogue::empty(name.clone());
        for (tag, version, part) in *versions {
            let version: Version = version.to_string().parse().unwrap();
            let entry = renamed(&mut store, part, &name, version);
            catalogue.versions.insert(version, entry);
            catalogue.tags.insert(tag.parse().unwrap(), version);
        }
        let bytes = catalogue.encode();
        let object = ObjectRef::of(&bytes);
        let path = catalogue_path(&name, &object.digest);
        store.files.insert(path, bytes.into());
        store.targets.push((name.to_file_safe(), object));
    }
    let signed = publisher.sign(Release::number(number), &store.targets);
    store.files.extend(signed);
    store.publisher = publisher.clone();
    store
}

/// Adds the disk of `part` under another name and version.
fn renamed(store: &mut Store, part: &Store, name: &ImageName, version: Version) -> VersionEntry {
    let objects = part.files.iter();
    let objects = objects.filter(|(path, _)| path.starts_with("objects/"));
    for (path, bytes) in objects {
        store.files.insert(path.clone(), bytes.clone());
    }
    let mut manifest = Manifest::decode(&part.files[&part.manifest]).unwrap();
    manifest.name = name.clone();
    manifest.version = version;
    let bytes = manifest.encode();
    let object = ObjectRef::of(&bytes);
    store
        .files
        .insert(object.digest.object_path(), bytes.into());
    VersionEntry {
        manifest: object,
        revision: 1,
        created: 1_700_000_000,
        disk: manifest.disk.regions.digest,
        content: manifest.disk.content,
        length: manifest.disk.length,
        bootable: false,
    }
}

/// Where the manifest of a version is.
fn manifest_of(store: &Store, name: &str, version: u64) -> String {
    let name: ImageName = name.parse().unwrap();
    let file_safe = name.to_file_safe();
    let (_, object) = store
        .targets
        .iter()
        .find(|(it, _)| *it == file_safe)
        .unwrap();
    let path = catalogue_path(&name, &object.digest);
    let catalogue = Catalogue::decode(&store.files[&path], &name).unwrap();
    let version = version.to_string().parse().unwrap();
    catalogue.versions[&version].manifest.digest.object_path()
}

fn mount_tree(store: &Arc<Store>) -> Mounted {
    let mounted = mount_dir(store);
    let base = serve(store, Manner::Right);
    let at = |name: &str| mounted.directory.path().join(name);
    let mut command = Command::new(env!("CARGO_BIN_EXE_circular-mount"));
    command.args(["tree", &base]).arg(mounted.point());
    command.arg("--root").arg(at("root.json"));
    command.arg("--state").arg(at("state"));
    command.arg("--cache").arg(at("cache"));
    assert_ok(&command.stdin(Stdio::null()).output().unwrap());
    mounted
}

fn names_in(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap();
    let mut names: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort_unstable();
    names
}

#[test]
fn a_store_is_a_tree_of_disks() {
    if !can_mount() {
        return;
    }
    let [first, second, third] = [300, 400, 500].map(|blocks| Store::of(mixed_disk(blocks, 0)));
    let store = Arc::new(many(
        &Publisher::new(),
        1,
        &[
            ("debian", &[("12", 1, &first), ("13", 2, &second)]),
            ("lab/debian", &[("12", 1, &second)]),
            ("lab/debian/arm", &[("next", 7, &third)]),
        ],
    ));
    let mounted = mount_tree(&store);
    let at = |path: &str| mounted.point().join(path);
    assert_eq!(names_in(&at("")), ["debian", "lab"]);
    assert_eq!(names_in(&at("debian")), ["12", "13"]);
    assert_eq!(names_in(&at("lab")), ["debian"]);
    assert_eq!(
        names_in(&at("lab/debian")),
        ["12", "arm"],
        "a tag, and a name"
    );
    assert_eq!(
        names_in(&at("lab/debian/12")),
        [".circular", "disk.raw", "disk.vmdk"]
    );
    for (path, disk) in [
        ("debian/12", &first.disk),
        ("debian/13", &second.disk),
        ("debian/@1", &first.disk),
        ("lab/debian/12", &second.disk),
        ("lab/debian/arm/next", &third.disk),
        ("lab/debian/arm/@7", &third.disk),
    ] {
        let raw = at(path).join("disk.raw");
        assert_eq!(
            fs::metadata(&raw).unwrap().len(),
            disk.len() as u64,
            "{path}"
        );
        assert!(fs::read(&raw).unwrap() == *disk, "{path}");
        let about = fs::read_to_string(at(path).join(".circular/image.json")).unwrap();
        assert!(about.contains(path.rsplit_once('/').unwrap().0), "{about}");
        assert!(
            !fs::read(at(path).join(".circular/stats.json"))
                .unwrap()
                .is_empty()
        );
    }
    for missing in [
        "arch",
        "debian/11",
        "debian/@3",
        "debian/12/p1.raw",
        "lab/debian/12/12",
    ] {
        let found = fs::metadata(at(missing)).unwrap_err();
        assert_eq!(found.kind(), io::ErrorKind::NotFound, "{missing}");
    }
    let write = fs::File::options()
        .write(true)
        .open(at("debian/12/disk.raw"));
    assert_eq!(write.unwrap_err().raw_os_error(), Some(EROFS));
    assert!(fs::create_dir(at("mine")).is_err());
    assert_walk_finds_disks(&at(""), 4);
}

/// Everything goes through names: a walk over all of it meets each disk once.
fn assert_walk_finds_disks(top: &Path, count: usize) {
    let walked = Command::new("find")
        .arg(top)
        .args(["-name", "disk.raw"])
        .output();
    let walked = walked.unwrap();
    assert_ok(&walked);
    assert_eq!(
        String::from_utf8_lossy(&walked.stdout).lines().count(),
        count
    );
}

#[test]
fn an_image_that_cannot_be_opened_is_an_error_there_and_nowhere_else() {
    if !can_mount() {
        return;
    }
    let [first, second] = [300, 400].map(|blocks| Store::of(mixed_disk(blocks, 0)));
    let mut store = many(
        &Publisher::new(),
        1,
        &[
            ("broken", &[("1", 1, &first), ("2", 2, &second)]),
            ("good", &[("1", 1, &second)]),
            ("lost", &[("1", 1, &first)]),
        ],
    );
    let manifest = manifest_of(&store, "broken", 1);
    store.files.insert(manifest, b"{}".as_slice().into());
    store.files.retain(|path, _| !path.ends_with(".lost"));
    let mounted = mount_tree(&Arc::new(store));
    let at = |path: &str| mounted.point().join(path);
    for _ in 0..2 {
        assert_eq!(names_in(&at("")), ["broken", "good", "lost"]);
        assert_eq!(names_in(&at("broken")), ["1", "2"]);
        assert!(names_in(&at("broken/1")).contains(&"disk.raw".to_owned()));
        let error = fs::read(at("broken/1/disk.raw")).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(EIO));
        assert_eq!(
            fs::read_dir(at("lost"))
                .unwrap()
                .next()
                .unwrap()
                .unwrap_err()
                .raw_os_error(),
            Some(EIO)
        );
        assert_eq!(
            fs::metadata(at("lost/1")).unwrap_err().raw_os_error(),
            Some(EIO)
        );
        assert!(fs::read(at("broken/2/disk.raw")).unwrap() == second.disk);
        assert!(fs::read(at("good/1/disk.raw")).unwrap() == second.disk);
    }
}

/// A store that becomes another one.
#[derive(Clone)]
struct Moving(Arc<Mutex<MemorySource>>);

impl Source for Moving {
    async fn open(&self, request: Request) -> Result<Body, SourceError> {
        let source = self.0.lock().unwrap().clone();
        source.open(request).await
    }
}

impl Moving {
    fn new(store: &Arc<Store>) -> Self {
        Self(Arc::new(Mutex::new(MemorySource::new(store))))
    }

    fn move_to(&self, store: &Arc<Store>) {
        *self.0.lock().unwrap() = MemorySource::new(store);
    }

    async fn tree(&self) -> Tree<Self> {
        let fetcher = || {
            Fetcher::new(
                self.clone(),
                8,
                IMPATIENT,
                no_caches(),
                Arc::new(Stats::default()),
            )
        };
        let base: client_fuse::config::BaseUrl = "http://store/".parse().unwrap();
        let metadata = Arc::new(fetcher());
        let trust = self.0.lock().unwrap().trust();
        let names = Names::load(Arc::clone(&metadata), base.clone(), trust);
        let names = names.await.unwrap();
        let memory = MemoryCache::new(64 << 20);
        let images = Images::new(metadata, fetcher(), memory, None, base, Handle::current());
        Tree::new(names, images, SystemTime::UNIX_EPOCH)
    }
}

/// The number of what is at `path`.
async fn find(tree: &Tree<Moving>, path: &str) -> Result<u64, TreeError> {
    let mut number = ROOT;
    for word in path.split('/') {
        number = tree.child(number, word).await?.number;
    }
    Ok(number)
}

async fn read(tree: &Tree<Moving>, handle: u64, len: usize) -> Vec<u8> {
    let bytes = tree.read(handle, 0, u32::try_from(len).unwrap()).await;
    bytes.unwrap().to_vec()
}

#[tokio::test(start_paused = true)]
async fn a_tag_that_moved_leads_to_the_new_disk_and_open_files_stay() {
    let publisher = Publisher::new();
    let [first, second] = [100, 200].map(|blocks| Store::of(mixed_disk(blocks, 0)));
    let before: &[Tagged<'_>] = &[("1", 1, &first)];
    let after: &[Tagged<'_>] = &[("old", 1, &first), ("1", 2, &second)];
    let before = Arc::new(many(&publisher, 1, &[("debian", before)]));
    let after = Arc::new(many(
        &publisher,
        2,
        &[("debian", after), ("new", &[("1", 1, &first)])],
    ));
    let source = Moving::new(&before);
    let tree = source.tree().await;
    let old = find(&tree, "debian/1/disk.raw").await.unwrap();
    let (open, _) = tree.open(old).await.unwrap();
    assert!(read(&tree, open, 1 << 20).await == first.disk);
    source.move_to(&after);
    assert_eq!(
        find(&tree, "debian/1/disk.raw").await.unwrap(),
        old,
        "nobody has looked yet"
    );
    tokio::time::advance(REFRESH_AFTER + Duration::from_secs(1)).await;
    let new = find(&tree, "debian/1/disk.raw").await.unwrap();
    assert_ne!(new, old);
    let (handle, _) = tree.open(new).await.unwrap();
    assert!(read(&tree, handle, 1 << 20).await == second.disk);
    assert!(
        read(&tree, open, 1 << 20).await == first.disk,
        "it is what was opened"
    );
    assert_eq!(
        find(&tree, "debian/old/disk.raw").await.unwrap(),
        old,
        "the same file"
    );
    assert!(find(&tree, "new/1/disk.raw").await.is_ok());
    // A store that goes back, or is gone, changes nothing.
    source.move_to(&before);
    tokio::time::advance(REFRESH_AFTER + Duration::from_secs(1)).await;
    let empty = Store {
        files: [].into(),
        ..(*before).clone()
    };
    source.move_to(&Arc::new(empty));
    tokio::time::advance(REFRESH_AFTER + Duration::from_secs(1)).await;
    assert!(find(&tree, "debian/old").await.is_ok());
    assert!(read(&tree, handle, 1 << 20).await == second.disk);
}

#[tokio::test]
async fn so_many_images_are_open_at_once_and_one_more_is_refused() {
    let part = Store::of(mixed_disk(10, 0));
    let tags: Vec<_> = (1..=LIVE_MAX as u64 + 1).map(|it| it.to_string()).collect();
    let versions: Vec<Tagged<'_>> = (1..)
        .zip(&tags)
        .map(|(it, tag)| (&**tag, it, &part))
        .collect();
    let store = Arc::new(many(&Publisher::new(), 1, &[("debian", &versions)]));
    let tree = Moving::new(&store).tree().await;
    // Without open files, all of them can be looked at.
    for tag in &tags {
        let number = find(&tree, &format!("debian/{tag}/disk.raw"))
            .await
            .unwrap();
        tree.forget(number, 1);
    }
    let mut open = Vec::new();
    for tag in &tags[..LIVE_MAX] {
        let number = find(&tree, &format!("debian/{tag}/disk.raw"))
            .await
            .unwrap();
        open.push(tree.open(number).await.unwrap().0);
    }
    let last = format!("debian/{}/disk.raw", tags[LIVE_MAX]);
    let refused = find(&tree, &last).await.unwrap_err();
    assert!(matches!(refused, TreeError::TooManyOpen), "{refused}");
    for handle in &open {
        assert!(read(&tree, *handle, 40_960).await == part.disk);
    }
    // Those that were opened last are kept for a while, the first is not.
    tree.release(open[0]);
    let number = find(&tree, &last).await.unwrap();
    let (handle, _) = tree.open(number).await.unwrap();
    assert!(read(&tree, handle, 40_960).await == part.disk);
}

#[tokio::test]
async fn many_who_open_one_image_open_it_once() {
    let part = Store::of(mixed_disk(10, 0));
    let store = Arc::new(many(
        &Publisher::new(),
        1,
        &[("debian", &[("1", 1, &part)])],
    ));
    let source = Moving::new(&store);
    let tree = source.tree().await;
    let all = (0..20).map(|_| find(&tree, "debian/1/disk.raw"));
    let numbers = futures_util::future::join_all(all).await;
    let first = *numbers[0].as_ref().unwrap();
    assert!(numbers.iter().all(|it| *it.as_ref().unwrap() == first));
    let manifest = manifest_of(&store, "debian", 1);
    let requests = source.0.lock().unwrap().requests();
    assert_eq!(requests.iter().filter(|it| it.path == manifest).count(), 1);
}
