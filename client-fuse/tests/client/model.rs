//! The whole stack but FUSE is the flat disk, in any order of reads, restarts, damage and faults.

use std::collections::HashMap;
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex};

use client_fuse::fetch::Part;
use client_fuse::fetch::retry::RetryPolicy;
use proptest::collection::vec;
use proptest::prelude::*;

use crate::source::{Fault, Faults, MemorySource};
use crate::stack::{IMPATIENT, Setup, Stack, start};
use crate::store::{Random, Store, mixed_disk};

/// What may happen to a mount.
#[derive(Clone, Debug)]
enum Op {
    Read { offset: u64, len: u32 },
    Together { offsets: Vec<u64>, len: u32 },
    Restart { memory_blocks: usize },
    DamageCache { offset: u64, len: usize, byte: u8 },
    TruncateCache { length: u64 },
}

const BLOCKS: usize = 700;
const ODD: usize = 321;
const LENGTH: u64 = (BLOCKS * 4096 + ODD) as u64;

fn op() -> impl Strategy<Value = Op> {
    let offset = 0..LENGTH + 5000;
    prop_oneof![
        6 => (offset.clone(), 0..400_000_u32).prop_map(|(offset, len)| Op::Read { offset, len }),
        2 => (vec(offset.clone(), 2..6), 1..100_000_u32).prop_map(|(offsets, len)| Op::Together { offsets, len }),
        1 => (0..64_usize).prop_map(|memory_blocks| Op::Restart { memory_blocks }),
        2 => (offset.clone(), 1..20_000_usize, any::<u8>())
            .prop_map(|(offset, len, byte)| Op::DamageCache { offset, len, byte }),
        1 => offset.prop_map(|length| Op::TruncateCache { length }),
    ]
}

/// A fifth of the requests fail in one way or another; two in a row for one thing never do, so that
/// every read ends well.
fn faults(seed: u64) -> Faults {
    use Fault::{Break, Endless, Flip, Missing, Refuse, Truncate, Unavailable};
    let asked = Mutex::new(HashMap::<String, usize>::new());
    Arc::new(move |number, request| {
        // Whole files are asked for beside each other, so each has a count of its own.
        let number = match request.part {
            Part::Range { .. } => number,
            Part::Whole => {
                let mut asked = asked.lock().unwrap();
                let count = asked.entry(request.path.clone()).or_insert(number & !1);
                *count += 1;
                *count
            }
        };
        let random = Random(seed ^ (number as u64 / 2)).next();
        let kinds = [Refuse, Unavailable, Missing, Break, Truncate, Flip, Endless];
        if number % 2 == 0 && random % 5 < 2 {
            kinds[usize::try_from(random >> 8).unwrap_or(0) % 7]
        } else {
            Fault::None
        }
    })
}

async fn run(store: &Arc<Store>, ops: Vec<Op>, seed: u64, cache: &Path) {
    let source = MemorySource::faulty(store, faults(seed));
    // All faults end; how long that takes depends on what else the machine does.
    let policy = RetryPolicy {
        deadline: None,
        ..IMPATIENT
    };
    let setup = Setup {
        cache: Some(cache),
        policy,
        ..Setup::DEFAULT
    };
    let mut stack = start(&source, setup).await;
    for op in ops {
        match op {
            Op::Read { offset, len } => check(store, &stack, offset, len).await,
            Op::Together { offsets, len } => {
                let reads = offsets
                    .into_iter()
                    .map(|offset| check(store, &stack, offset, len));
                futures_util::future::join_all(reads).await;
            }
            Op::Restart { memory_blocks } => {
                drop(stack);
                stack = start(
                    &source,
                    Setup {
                        memory_bytes: memory_blocks * 4096,
                        ..setup
                    },
                )
                .await;
            }
            Op::DamageCache { offset, len, byte } => on_cache(store, cache, |file| {
                file.write_all_at(&vec![byte; len], offset).unwrap();
            }),
            Op::TruncateCache { length } => {
                on_cache(store, cache, |file| file.set_len(length).unwrap());
            }
        }
    }
}

/// Does something bad to the cache file, while it is used.
fn on_cache(store: &Store, cache: &Path, act: impl FnOnce(&std::fs::File)) {
    let path = cache
        .join("disks-v1")
        .join(format!("{}.raw", store.disk_digest));
    act(&OpenOptions::new().write(true).open(path).unwrap());
}

async fn check(store: &Store, stack: &Stack, offset: u64, len: u32) {
    let bytes = stack
        .disk
        .read(offset, len)
        .await
        .unwrap_or_else(|error| panic!("{offset} {len}: {error:?}"));
    assert!(
        bytes[..] == *store.flat(offset, len),
        "wrong bytes at {offset}, {len}"
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Whatever happens, what is read is what was published.
    #[test]
    fn the_stack_reads_as_the_flat_disk(ops in vec(op(), 1..25), seed: u64) {
        static STORE: std::sync::LazyLock<Arc<Store>> =
            std::sync::LazyLock::new(|| Arc::new(Store::of(mixed_disk(BLOCKS, ODD))));
        let cache = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(run(&STORE, ops, seed, cache.path()));
    }
}
