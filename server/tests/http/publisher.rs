//! A publisher elsewhere: a store of its own, and requests that bring it to the server.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use image_format::Digest;
use image_store::{KeyRing, Store};
use serde_json::{Value, json};
use server::config::UploadRoot;

use crate::support::{Answer, PUBLISH, Site, bearer, publish, ring};

/// A server that takes uploads into a new store, and the keys that it trusts.
pub(crate) async fn upload_site() -> Site {
    upload_site_in(tempfile::tempdir().unwrap()).await
}

/// As [`upload_site`], in this directory.
pub(crate) async fn upload_site_in(scratch: tempfile::TempDir) -> Site {
    let keys = scratch.path().join("keys");
    Publisher::new(&scratch.path().join("first"), &keys).await;
    let tokens = Site::tokens(scratch.path());
    Site::start_in(scratch, |config| {
        config.tokens = Some(tokens);
        config.upload = Some(UploadRoot::File(keys.join("root.json")));
    })
    .await
}

/// The body of a commit.
#[derive(Clone, Debug)]
pub(crate) struct Commit {
    pub(crate) follows: Option<String>,
    pub(crate) files: BTreeMap<String, String>,
    pub(crate) removes: Vec<String>,
}

impl Commit {
    pub(crate) fn json(&self) -> Value {
        json!({"follows": self.follows, "files": self.files, "removes": self.removes})
    }

    /// Sends it with a token to publish.
    pub(crate) async fn send(&self, site: &Site) -> Answer {
        post(site, "/upload/commit", &self.json()).await
    }
}

/// Sends JSON with a token to publish.
pub(crate) async fn post(site: &Site, path: &str, body: &Value) -> Answer {
    let lines = [("Authorization", &*bearer(PUBLISH))];
    site.send("POST", path, &lines, body.to_string().as_bytes())
        .await
}

/// Sends a file with a token to publish.
pub(crate) async fn put(site: &Site, path: &str, bytes: &[u8]) -> Answer {
    let lines = [("Authorization", &*bearer(PUBLISH))];
    site.send("PUT", path, &lines, bytes).await
}

/// A store of its own, signed with keys in a directory.
pub(crate) struct Publisher {
    root: PathBuf,
    pub(crate) keys: KeyRing,
}

impl Publisher {
    /// Makes the store in `root`.
    pub(crate) async fn new(root: &Path, keys: &Path) -> Self {
        let publisher = Self {
            root: root.to_owned(),
            keys: ring(keys),
        };
        let store = Store::open_or_create(root).await.unwrap();
        let signer = crate::support::signer(&publisher.keys);
        signer.establish(&store).await.unwrap();
        publisher
    }

    /// Makes the store with the keys that a site trusts.
    pub(crate) async fn of(site: &Site, name: &str) -> Self {
        let scratch = site.scratch.path();
        Self::new(&scratch.join(name), &scratch.join("keys")).await
    }

    pub(crate) async fn store(&self) -> Store {
        Store::open(&self.root).await.unwrap()
    }

    /// Publishes into its own store.
    pub(crate) async fn publish(&self, reference: &str, flat: &[u8]) {
        publish(&self.store().await, &self.keys, reference, flat).await;
    }

    /// Returns the paths of its objects and targets.
    pub(crate) fn uploads(&self) -> Vec<String> {
        let list = |path: &str| -> Vec<String> {
            let Ok(entries) = std::fs::read_dir(self.root.join(path)) else {
                return Vec::new();
            };
            let name = |entry: std::fs::DirEntry| entry.file_name().into_string().unwrap();
            let names = entries.map(|entry| name(entry.unwrap()));
            names.map(|name| format!("{path}/{name}")).collect()
        };
        let objects = list("objects");
        let objects = objects.iter().flat_map(|prefix| list(prefix));
        objects.chain(list("targets")).collect()
    }

    /// Returns the bytes of a file.
    pub(crate) fn read(&self, path: &str) -> Vec<u8> {
        std::fs::read(self.root.join(path)).unwrap()
    }

    /// Uploads every object and target but those that `skip` picks.
    pub(crate) async fn upload(&self, site: &Site, skip: impl Fn(&str) -> bool) {
        for path in self.uploads().iter().filter(|path| !skip(path)) {
            let got = put(site, &format!("/{path}"), &self.read(path)).await;
            assert!(matches!(got.status, 200 | 201), "{path}: {got:?}");
        }
    }

    /// Returns the commit that makes its metadata current after what the server has.
    pub(crate) fn commit(&self, site: &Site) -> Commit {
        let text = |file: &str| String::from_utf8(self.read(&format!("metadata/{file}"))).unwrap();
        let number = |text: &str, file: &str| -> u64 {
            let signed: Value = serde_json::from_str(text).unwrap();
            signed["signed"]["meta"][file]["version"].as_u64().unwrap()
        };
        let timestamp = text("timestamp.json");
        let snapshot_name = format!("{}.snapshot.json", number(&timestamp, "snapshot.json"));
        let snapshot = text(&snapshot_name);
        let targets_name = format!("{}.targets.json", number(&snapshot, "targets.json"));
        let targets = text(&targets_name);
        let current = site.scratch.path().join("store/metadata/timestamp.json");
        let follows = std::fs::read(current).ok();
        Commit {
            follows: follows.map(|bytes| Digest::of(&bytes).to_string()),
            files: BTreeMap::from([
                ("timestamp.json".to_owned(), timestamp),
                (snapshot_name, snapshot),
                (targets_name, targets),
            ]),
            removes: Vec::new(),
        }
    }

    /// Uploads what is missing and makes it current.
    pub(crate) async fn push(&self, site: &Site) -> Answer {
        self.upload(site, |_| false).await;
        self.commit(site).send(site).await
    }
}
