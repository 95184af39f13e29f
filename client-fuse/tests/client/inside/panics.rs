//! A panic in one task, through reads of a real mount: what it costs, and that it is counted.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use client_fuse::config::{Access, MountConfig};
use client_fuse::fetch::{Part, Request};
use client_fuse::mount::{Mount, Mountpoint};
use client_fuse::panics;
use nix::libc::EIO;

use crate::mount::can_mount;
use crate::source::{Fault, Faults, MemorySource};
use crate::stack::{Setup, show};
use crate::store::{Store, mixed_disk};

/// A mount in this process, which goes when the test ends.
struct Here {
    directory: tempfile::TempDir,
    _mount: Mount,
}

impl Here {
    async fn of(source: &MemorySource) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let config = MountConfig {
            source: None,
            mountpoint: directory.path().to_owned(),
            access: Access::Owner,
        };
        let fs = show(source, Setup::DEFAULT).await;
        let mountpoint = Mountpoint::check(directory.path()).unwrap();
        let mount = Mount::start(mountpoint, &config, fs, "test", None).await;
        Self {
            directory,
            _mount: mount.unwrap(),
        }
    }

    /// Reads one block past the kernel's cache; the error number if that fails.
    async fn read(&self, offset: u64) -> Result<Vec<u8>, Option<i32>> {
        let path: PathBuf = self.directory.path().join("disk.raw");
        let reading = tokio::task::spawn_blocking(move || {
            let mut bytes = vec![0; 4096];
            let read = File::open(path)?.read_exact_at(&mut bytes, offset);
            read.map(|()| bytes)
        });
        reading.await.unwrap().map_err(|error| error.raw_os_error())
    }

    async fn panics(&self) -> u64 {
        let path = self.directory.path().join(".circular/stats.json");
        let text = tokio::task::spawn_blocking(|| fs::read_to_string(path)).await;
        let stats: serde_json::Value = serde_json::from_str(&text.unwrap().unwrap()).unwrap();
        stats["task_panics"].as_u64().unwrap()
    }
}

impl Drop for Here {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(self.directory.path(), nix::mount::MntFlags::MNT_DETACH);
    }
}

/// Counts panics, and shows them too: one of them may be this test's.
fn watch() {
    let showing = std::panic::take_hook();
    panics::watch();
    let counting = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        counting(panic);
        showing(panic);
    }));
}

/// A source that panics once for a request like this.
fn panics_once(
    store: &Arc<Store>,
    on: impl Fn(&Request) -> bool + Send + Sync + 'static,
) -> MemorySource {
    let armed = AtomicBool::new(true);
    let faults: Faults = Arc::new(move |_, request| {
        let due = on(request);
        assert!(!(due && armed.swap(false, Ordering::Relaxed)), "injected");
        Fault::None
    });
    MemorySource::faulty(store, faults)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_fetch_that_panics_is_made_again_and_nobody_notices() {
    if !can_mount() {
        return;
    }
    watch();
    let store = Arc::new(Store::of(mixed_disk(600, 0)));
    let source = panics_once(&store, |request| request.part != Part::Whole);
    let before = panics::count();
    let here = Here::of(&source).await;
    let offset = 400 * 4096;
    assert!(here.read(offset).await.unwrap() == store.flat(offset, 4096));
    assert!(here.panics().await > before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_read_that_panics_is_an_error_and_the_mount_serves_on() {
    if !can_mount() {
        return;
    }
    watch();
    let store = Arc::new(Store::of(mixed_disk(600, 0)));
    // A page of the index is fetched by the task that reads.
    let before = panics::count();
    let opening = [store.manifest.clone(), store.disk_digest.object_path()];
    let source = panics_once(&store, move |request| {
        let is_object = request.path.starts_with("objects/") && request.part == Part::Whole;
        is_object && !opening.contains(&request.path)
    });
    let here = Here::of(&source).await;
    let offset = 400 * 4096;
    let mut failures = 0;
    let bytes = loop {
        match here.read(offset).await {
            Ok(bytes) => break bytes,
            Err(errno) => assert_eq!(errno, Some(EIO)),
        }
        failures += 1;
        assert!(failures < 5, "it serves on");
    };
    assert!(bytes == store.flat(offset, 4096));
    assert!(here.panics().await > before);
}
