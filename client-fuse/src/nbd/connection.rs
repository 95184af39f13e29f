//! One client: reads what it says, does what it asks, writes the answers in whatever order they come.
//!
//! A request is a task. Before it is taken off the socket there must be room for it, so that a client
//! that asks for more than it takes waits, and costs no memory.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore};
use tokio::task::{JoinError, JoinSet};

use super::Export;
use super::handshake::{
    Agreed, Described, GREETING, Handshake, Malformed, OPTION_HEAD_BYTES, OptionHead, Turn,
};
use super::transmission::{Command, Failure, PAYLOAD_BYTES_MAX, REQUEST_BYTES, Request};
use crate::fetch::Source;
use crate::fs::Node;
use crate::overlay::OverlayError;
use crate::overlay::layered::LayeredError;

/// Requests at once: as many as the kernel has on a mounted disk.
const REQUESTS_MAX: usize = 32;

/// A client that wants something has said so after this long.
const HANDSHAKE_MAX: Duration = Duration::from_secs(30);

/// How often it is looked whether a client is still there.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Bytes of requests are counted in this unit.
const UNIT: u32 = 4096;

/// Why a connection ended early.
#[derive(Debug, thiserror::Error)]
enum Cut {
    #[error("it broke the protocol")]
    Malformed(#[from] Malformed),
    #[error("the connection broke")]
    Io(#[from] io::Error),
    #[error("it said nothing")]
    Silent,
    #[error("a request of it failed")]
    Failed(#[from] JoinError),
}

/// One client of an export.
#[derive(Debug)]
pub(super) struct Connection<S> {
    export: Arc<Export<S>>,
}

/// Answers to requests, and who may write one.
type Answers = Arc<Mutex<OwnedWriteHalf>>;

impl<S: Source> Connection<S> {
    pub(super) const fn new(export: Arc<Export<S>>) -> Self {
        Self { export }
    }

    /// Serves until the client goes, or has to.
    pub(super) async fn run(self, stream: UnixStream) {
        match self.serve(stream).await {
            Ok(()) => tracing::debug!("an NBD client is gone"),
            Err(Cut::Io(error)) => tracing::debug!(%error, "an NBD client is gone"),
            Err(error) => {
                let cause: &dyn std::error::Error = &error;
                tracing::warn!(error = cause, "an NBD client is cut off");
            }
        }
    }

    async fn serve(self, stream: UnixStream) -> Result<(), Cut> {
        let socket = stream.as_fd().try_clone_to_owned()?;
        let (mut reader, mut writer) = stream.into_split();
        let haggling = haggle(&mut reader, &mut writer, &self.export.described);
        let haggled = tokio::time::timeout(HANDSHAKE_MAX, haggling).await;
        match haggled.map_err(|_| Cut::Silent)?? {
            Some(agreed) => self.transmit(reader, writer, agreed, &socket).await,
            None => Ok(()),
        }
    }

    async fn transmit(
        self,
        mut reader: OwnedReadHalf,
        writer: OwnedWriteHalf,
        agreed: Agreed,
        socket: &OwnedFd,
    ) -> Result<(), Cut> {
        let room = Room::new();
        let this = Arc::new(self);
        let answers: Answers = Arc::new(Mutex::new(writer));
        // What fails in them ends the connection: its client would wait for ever.
        let (mut reads, mut changes) = (JoinSet::new(), JoinSet::new());
        // Nobody reads the socket while there is no room for a request: that a client is gone is not seen there.
        let hung_up = hung_up(socket);
        tokio::pin!(hung_up);
        let mut is_gone = false;
        let outcome = loop {
            let next = next(&mut reader, &room);
            tokio::pin!(next);
            let taken = loop {
                tokio::select! {
                    taken = &mut next => break taken,
                    () = &mut hung_up, if !is_gone => {
                        is_gone = true;
                        reads.abort_all();
                    }
                    Some(ended) = reads.join_next() => unless_aborted(ended)?,
                    Some(ended) = changes.join_next() => ended?,
                }
            };
            match taken {
                Ok(None) => break Ok(()),
                Ok(Some((request, _, _))) if is_gone && request.only_asks() => {}
                Ok(Some((request, payload, held))) => {
                    let (this, answers) = (Arc::clone(&this), Arc::clone(&answers));
                    let tasks = if request.only_asks() {
                        &mut reads
                    } else {
                        &mut changes
                    };
                    tasks.spawn(async move {
                        this.answer(request, payload, agreed, &answers).await;
                        drop(held);
                    });
                }
                Err(cut) => break Err(cut),
            }
        };
        // What was to be changed is, and who says good-bye gets all answers. A client that is just gone has
        // nobody who waits for what it read: that may take as long as a server is away.
        if outcome.is_err() {
            reads.abort_all();
        }
        while changes.join_next().await.is_some() {}
        while reads.join_next().await.is_some() {}
        outcome
    }

    async fn answer(&self, request: Request, payload: Bytes, agreed: Agreed, answers: &Answers) {
        let done = match request.check(&self.export.described, agreed) {
            Ok(()) => self.execute(request, payload, agreed).await,
            Err(failure) => Err(failure),
        };
        let (head, data) = match done {
            Ok(answer) => answer,
            Err(failure) => (request.failed(failure, agreed), Bytes::new()),
        };
        let mut writer = answers.lock().await;
        let write = async {
            writer.write_all(&head).await?;
            writer.write_all(&data).await
        };
        if let Err(error) = write.await {
            tracing::debug!(%error, "an NBD client does not take its answer");
        }
    }

    async fn execute(
        &self,
        request: Request,
        payload: Bytes,
        agreed: Agreed,
    ) -> Result<(Vec<u8>, Bytes), Failure> {
        let (offset, length) = (request.offset, request.length);
        let told = |error: LayeredError| {
            let cause: &dyn std::error::Error = &error;
            tracing::error!(offset, length, command = ?request.command, error = cause, "an NBD request fails");
            failure(&error)
        };
        let fs = &self.export.fs;
        let disk = fs.disk();
        match request.command {
            Command::Read => {
                let reading = fs.watch(Node::Disk, offset, length);
                let bytes = reading.of(disk.read(offset, length)).await.map_err(told)?;
                reading.answered();
                return Ok((request.data_head(bytes.len(), agreed), bytes));
            }
            Command::BlockStatus => {
                let extents = disk.extents(offset..offset + u64::from(length)).await;
                return Ok((request.status(&extents.map_err(told)?), Bytes::new()));
            }
            Command::Write => {
                disk.write(offset, payload).await.map_err(told)?;
            }
            Command::Trim | Command::WriteZeroes => {
                let discarded = disk.discard(offset, u64::from(length)).await;
                discarded.map_err(told)?;
            }
            Command::Flush => disk.sync().await.map_err(told)?,
            Command::Disconnect | Command::Other => return Err(Failure::Invalid),
        }
        if request.is_durable() {
            disk.sync().await.map_err(told)?;
        }
        Ok((request.done(), Bytes::new()))
    }
}

/// How a task ended, if it was not aborted.
fn unless_aborted(ended: Result<(), JoinError>) -> Result<(), JoinError> {
    match ended {
        Err(error) if error.is_cancelled() => Ok(()),
        ended => ended,
    }
}

/// Waits until the client has closed its end of the connection.
async fn hung_up(socket: &OwnedFd) {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let mut files = [PollFd::new(socket.as_fd(), PollFlags::empty())];
        let polled = poll(&mut files, PollTimeout::ZERO);
        if polled.is_ok_and(|ready| ready > 0) {
            return;
        }
    }
}

/// What a client is told.
const fn failure(error: &LayeredError) -> Failure {
    match error {
        LayeredError::Overlay(OverlayError::Full { .. }) | LayeredError::PastTheEnd => {
            Failure::NoSpace
        }
        LayeredError::Base(_) | LayeredError::Overlay(_) | LayeredError::NotYet => Failure::Disk,
        LayeredError::ReadOnly => Failure::Forbidden,
    }
}

/// Room for requests of one client.
struct Room {
    requests: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
}

/// Room that a request takes.
type Held = (OwnedSemaphorePermit, OwnedSemaphorePermit);

impl Room {
    fn new() -> Self {
        Self {
            requests: Arc::new(Semaphore::new(REQUESTS_MAX)),
            bytes: Arc::new(Semaphore::new((PAYLOAD_BYTES_MAX / UNIT) as usize)),
        }
    }

    /// Waits until there is room for a request of `bytes`.
    async fn take(&self, bytes: u32) -> Result<Held, Cut> {
        let gone = |_| Cut::Io(io::ErrorKind::BrokenPipe.into());
        let request = Arc::clone(&self.requests).acquire_owned().await;
        let request = request.map_err(gone)?;
        let units = bytes.div_ceil(UNIT);
        let bytes = Arc::clone(&self.bytes).acquire_many_owned(units).await;
        Ok((request, bytes.map_err(gone)?))
    }
}

/// The next request, with what it brings and the room it takes; `None`: the client says that there are no
/// more.
async fn next(
    reader: &mut OwnedReadHalf,
    room: &Room,
) -> Result<Option<(Request, Bytes, Held)>, Cut> {
    let mut head = [0; REQUEST_BYTES];
    reader.read_exact(&mut head).await?;
    let request = Request::decode(&head)?;
    if request.command == Command::Disconnect {
        return Ok(None);
    }
    let payload = request.payload()?;
    let held = room.take(request.weight()).await?;
    let mut bytes = BytesMut::zeroed(payload as usize);
    reader.read_exact(&mut bytes).await?;
    Ok(Some((request, bytes.freeze(), held)))
}

/// Goes through the handshake; `None`: the client wants no more.
async fn haggle(
    reader: &mut OwnedReadHalf,
    writer: &mut OwnedWriteHalf,
    export: &Described,
) -> Result<Option<Agreed>, Cut> {
    writer.write_all(&GREETING).await?;
    let mut handshake = Handshake::begin(export, reader.read_u32().await?)?;
    let mut data = Vec::new();
    loop {
        let mut head = [0; OPTION_HEAD_BYTES];
        reader.read_exact(&mut head).await?;
        let head = OptionHead::decode(&head)?;
        data.resize(head.length(), 0);
        reader.read_exact(&mut data).await?;
        let (reply, turn) = handshake.answer(head, &data)?;
        writer.write_all(&reply).await?;
        match turn {
            Turn::Haggle => {}
            Turn::Transmit(agreed) => return Ok(Some(agreed)),
            Turn::End => return Ok(None),
        }
    }
}
