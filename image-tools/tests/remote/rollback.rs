//! A server that shows its publisher an older state than it saw.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::{Bench, ONCE, files};

fn contents(directory: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let read = |path: PathBuf| (path.clone(), fs::read(path).unwrap());
    files(directory).into_keys().map(read).collect()
}

fn write(files: &BTreeMap<PathBuf, Vec<u8>>) {
    for (path, bytes) in files {
        fs::write(path, bytes).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_went_back_gets_nothing_signed() {
    let bench = Bench::new().await;
    let (one, two) = (bench.image("one", 1, 1), bench.image("two", 2, 1));
    let publish = async |image, name| bench.publish("work", ONCE, image, name).await;
    publish(&one, "debian").await.unwrap();
    let metadata = bench.path("served").join("metadata");
    let old = contents(&metadata);
    publish(&two, "debian").await.unwrap();
    let new = contents(&metadata);
    for path in new.keys() {
        fs::remove_file(path).unwrap();
    }
    write(&old);
    for name in ["debian", "other"] {
        let error = format!("{:#}", publish(&one, name).await.unwrap_err());
        assert!(error.contains("rollback: the store shows"), "{error}");
    }
    assert_eq!(contents(&metadata), old);
    write(&new);
    publish(&one, "other").await.unwrap();
    bench.assert_served("debian", &two).await;
}
