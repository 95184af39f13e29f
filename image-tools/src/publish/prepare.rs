//! The parallel part of a publish: hash, look up, compress, on all cores, in order.
//!
//! Jobs go to the workers through one queue; their results come back in the order of the jobs
//! through another, whose length bounds what is in memory: `batches_at_once` windows.

use std::io;
use std::num::NonZeroUsize;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use image_format::chunker::ChunkerParams;
use image_format::frame::Encoder;
use image_format::geometry::BLOCK_LEN;
use image_format::{ChunkId, page::Location};
use image_store::writer::WriteError;
use image_store::{ChunkIndexes, ImageWriter, IndexError, Prepared, Store, WrittenDisk};
use tokio::sync::{mpsc, oneshot};

use super::source::{Batch, CutChunk, Source, SourceError, Wanted};

/// Why an image could not be written to the store.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages are the docs")]
pub enum PrepareError {
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error(transparent)]
    Index(#[from] IndexError),
    #[error(transparent)]
    Write(#[from] WriteError),
    #[error("cannot compress")]
    Compress { source: io::Error },
    #[error("cannot start a thread")]
    Thread { source: io::Error },
    #[error("a worker thread died")]
    Died,
}

/// How an image is prepared.
#[derive(Clone, Copy, Debug)]
pub struct PrepareConfig {
    /// Worker threads: one a core, unless something else needs the machine.
    pub workers: NonZeroUsize,
    /// zstd level, 1 to 22. Level 3 compresses 200 MB/s a core; 19 saves a tenth more, at a
    /// hundredth of that speed. Readers decode all levels at the same speed.
    pub level: i32,
    /// How the disk is cut.
    pub chunker: ChunkerParams,
}

/// A chunk with what the store needs to know of it.
struct PreparedChunk {
    block: u64,
    blocks: u32,
    chunk: ChunkId,
    prepared: Prepared,
}

type Answer = Result<(u64, Vec<PreparedChunk>), PrepareError>;

struct Job {
    batch: Batch,
    answer: oneshot::Sender<Answer>,
}

/// How many windows are in memory at once, each 2 MiB and what it compresses to.
const fn batches_at_once(workers: NonZeroUsize) -> usize {
    workers.get() * 2 + 2
}

/// Writes the disk of `source` to `store`. `progress` is told the bytes done since it was last
/// called.
///
/// # Errors
/// The image cannot be read, or the store cannot be written.
///
/// # Cancel safety
/// Dropped before it ends, it leaves objects that nothing refers to; the threads end by themselves.
pub async fn write_disk(
    store: Store,
    source: Arc<Source>,
    known: Arc<ChunkIndexes>,
    config: PrepareConfig,
    mut progress: impl FnMut(u64),
) -> Result<WrittenDisk, PrepareError> {
    let at_once = batches_at_once(config.workers);
    let (jobs, queue) = sync_channel(at_once);
    let (answers, mut in_order) = mpsc::channel(at_once);
    start_workers(config, &known, queue)?;
    let length = source.length();
    let reader = thread::Builder::new()
        .name("cutter".to_owned())
        .spawn(move || cut(&source, &config.chunker, &jobs, &answers))
        .map_err(|source| PrepareError::Thread { source })?;
    let mut writer = ImageWriter::new(store, known);
    while let Some(answer) = in_order.recv().await {
        let (fresh_bytes, chunks) = answer.await.map_err(|_| PrepareError::Died)??;
        for part in chunks {
            writer
                .push(part.block, part.blocks, part.chunk, part.prepared)
                .await?;
        }
        progress(fresh_bytes);
    }
    tokio::task::spawn_blocking(|| reader.join())
        .await
        .map_err(|_| PrepareError::Died)?
        .map_err(|_| PrepareError::Died)??;
    Ok(writer.finish(length).await?)
}

/// Reads and cuts; ends when all is cut, or when nobody takes the answers any more.
fn cut(
    source: &Source,
    chunker: &ChunkerParams,
    jobs: &SyncSender<Job>,
    answers: &mpsc::Sender<oneshot::Receiver<Answer>>,
) -> Result<(), PrepareError> {
    source.cut(chunker, |batch| {
        let (answer, receiver) = oneshot::channel();
        let sent =
            answers.blocking_send(receiver).is_ok() && jobs.send(Job { batch, answer }).is_ok();
        if sent { Wanted::Yes } else { Wanted::No }
    })?;
    source.check_unchanged()?;
    Ok(())
}

fn start_workers(
    config: PrepareConfig,
    known: &Arc<ChunkIndexes>,
    queue: Receiver<Job>,
) -> Result<(), PrepareError> {
    let queue = Arc::new(Mutex::new(queue));
    for number in 0..config.workers.get() {
        let (queue, known) = (queue.clone(), known.clone());
        thread::Builder::new()
            .name(format!("prepare-{number}"))
            .spawn(move || work(config.level, &known, &queue))
            .map_err(|source| PrepareError::Thread { source })?;
    }
    Ok(())
}

/// Takes jobs until there are no more.
fn work(level: i32, known: &ChunkIndexes, queue: &Mutex<Receiver<Job>>) {
    let mut encoder = Encoder::new(level);
    loop {
        let job = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(Job { batch, answer }) = job else {
            return;
        };
        let result = match &mut encoder {
            Ok(encoder) => batch
                .chunks
                .iter()
                .map(|chunk| prepare(chunk, known, encoder))
                .collect::<Result<Vec<_>, _>>()
                .map(|chunks| (batch.fresh_bytes, chunks)),
            Err(error) => Err(PrepareError::Compress {
                source: io::Error::new(error.kind(), error.to_string()),
            }),
        };
        // Nobody waits for the answer when the publish has failed elsewhere.
        let _ = answer.send(result);
    }
}

fn prepare(
    cut: &CutChunk,
    known: &ChunkIndexes,
    encoder: &mut Encoder,
) -> Result<PreparedChunk, PrepareError> {
    let chunk = ChunkId::of(&cut.plain);
    let place: Option<Location> = known.find(chunk)?;
    let prepared = match place {
        Some(place) => Prepared::Known(place),
        None => {
            let bytes = encoder
                .encode(&cut.plain)
                .map_err(|source| PrepareError::Compress { source })?;
            Prepared::Encoded(bytes)
        }
    };
    Ok(PreparedChunk {
        block: cut.block,
        blocks: u32::try_from(cut.plain.len() / BLOCK_LEN).expect("a chunk has at most 256 blocks"),
        chunk,
        prepared,
    })
}
