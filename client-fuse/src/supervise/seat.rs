//! The worker's side: gets a mount from the supervisor, serves it, ends when told.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use fuser::Session;
use nix::sys::socket::{MsgFlags, send};
use tokio::sync::{mpsc, oneshot};

use super::beat::{Line, beat, pause};
use super::control::{Control, Kept, Order, Report, Take, messages};
use super::gate::{Behind, Gate, replace};
use super::opened::{Opened, OpenedError};
use super::wire;
use crate::config::{MountConfig, Role, Style};
use crate::fetch::Source;
use crate::fs::ImageFs;
use crate::fuse;
use crate::mount::{self, MountError, Mountpoint};
use crate::overlay;
use crate::process;

/// Tells a program that it is a worker: the descriptors of the line and of what was opened, how many
/// workers there were before, and whether a file is mounted.
pub(super) const VARIABLE: &str = "CIRCULAR_WORKER";

/// Tells a program that is a worker what silence is too long, in milliseconds: its supervisor listens for
/// beats. One of an older version does not say it.
pub(super) const WATCHED: &str = "CIRCULAR_WATCHED";

/// Longest answer to the kernel's offer.
const AGREED_BYTES_MAX: usize = 1024;

/// The place of a worker.
#[derive(Debug)]
pub struct Seat {
    control: Control,
    /// What the first worker opened; that one has none.
    kept: Option<Kept>,
    restarts: u64,
    /// Whether the disk itself is mounted, not a directory.
    is_file: bool,
    /// What silence is too long for the supervisor, if it listens for beats.
    watched: Option<Duration>,
}

/// What the first worker hands over: a name for the mount, and what others go on with.
#[derive(Debug)]
pub struct First {
    /// Of the mount, for lists of mounts.
    pub name: String,
    /// [`Opened::keep`].
    pub opened: OwnedFd,
    /// Of a disk that is written to.
    pub overlay: Option<overlay::Kept>,
}

impl First {
    /// As it is told to the supervisor.
    fn told(self) -> (String, Kept) {
        let kept = Kept {
            opened: self.opened,
            overlay: self.overlay,
        };
        (self.name, kept)
    }
}

/// What a worker does last before it serves, when no other one does any more: takes an overlay over.
pub type LastStep = Pin<Box<dyn Future<Output = io::Result<()>> + Send>>;

impl Seat {
    pub(super) const fn new(
        control: Control,
        kept: Option<Kept>,
        restarts: u64,
        is_file: bool,
        watched: Option<Duration>,
    ) -> Self {
        Self {
            control,
            kept,
            restarts,
            is_file,
            watched,
        }
    }

    /// The seat that a supervisor of another program left to this one, if it did.
    ///
    /// # Errors
    ///
    /// When what it says is not understood.
    pub fn inherited() -> io::Result<Option<Self>> {
        let Some(text) = std::env::var_os(VARIABLE) else {
            return Ok(None);
        };
        let unknown =
            || io::Error::new(io::ErrorKind::InvalidData, format!("{VARIABLE} is garbled"));
        let text = text.to_str().ok_or_else(unknown)?;
        let numbers: Vec<i32> = text
            .split(':')
            .map_while(|word| word.parse().ok())
            .collect();
        let &[control, opened, restarts, is_file, ref overlay @ ..] = &numbers[..] else {
            return Err(unknown());
        };
        let control = inherited(control)?;
        let kept = std::iter::once(&opened).chain(overlay);
        let kept = kept.map(|number| inherited(*number));
        let kept = Kept::of(kept.collect::<io::Result<_>>()?).ok_or_else(unknown)?;
        let restarts = u64::try_from(restarts).map_err(|_| unknown())?;
        let control = Control::of(control);
        let watched = std::env::var(WATCHED).ok();
        let watched = watched.and_then(|text| text.parse().ok().map(Duration::from_millis));
        let is_file = is_file != 0;
        Ok(Some(Self::new(
            control,
            Some(kept),
            restarts,
            is_file,
            watched,
        )))
    }

    /// Whether no worker was here before.
    #[must_use]
    pub const fn is_first(&self) -> bool {
        self.kept.is_none()
    }

    /// Whether the disk itself is mounted, not a directory.
    #[must_use]
    pub const fn is_file(&self) -> bool {
        self.is_file
    }

    /// How many workers were here before.
    #[must_use]
    pub const fn restarts(&self) -> u64 {
        self.restarts
    }

    /// What the first worker opened; `None` for that one.
    ///
    /// # Errors
    ///
    /// When it is of no use.
    pub fn opened(&mut self) -> Result<Option<Opened>, OpenedError> {
        let kept = self.kept.as_ref();
        let opened = kept.map(|kept| kept.opened.try_clone()).transpose();
        opened
            .map_err(OpenedError::Read)?
            .map(Opened::read)
            .transpose()
    }

    /// What a worker before this one left of the overlay, to be taken over when it serves no more; once.
    pub fn overlay(&mut self) -> Option<overlay::Kept> {
        self.kept.as_mut().and_then(|kept| kept.overlay.take())
    }

    /// Says that `fs` can be served, gets the mount, takes the `last_step`, and serves. The first worker
    /// leaves what it opened.
    ///
    /// # Errors
    ///
    /// When it gets no mount, or the mount does not answer.
    pub async fn take<S: Source>(
        self,
        first: Option<First>,
        mountpoint: Mountpoint,
        config: &MountConfig,
        fs: Arc<ImageFs<S>>,
        last_step: Option<LastStep>,
        style: Style,
    ) -> Result<Taken, MountError> {
        let path = mountpoint.path().to_owned();
        let length = fs.length(crate::fs::Node::Disk);
        let is_first = first.is_some();
        let taken = self.enter(first, &mountpoint, config, fs, last_step).await;
        let (control, taken) = taken.map_err(|source| MountError::NotHandedOver {
            path: path.clone(),
            source,
        })?;
        if is_first {
            mount::settle(&path, mountpoint.disk(), Some(length)).await?;
        }
        let told = process::leave_terminal(style).and_then(|()| control.report(&Report::Serving));
        let orders = told.and_then(|()| listen(control));
        let orders = orders.map_err(|source| MountError::NotHandedOver { path, source })?;
        Ok(Taken { orders, ..taken })
    }

    async fn enter<S: Source>(
        self,
        first: Option<First>,
        mountpoint: &Mountpoint,
        config: &MountConfig,
        fs: Arc<ImageFs<S>>,
        last_step: Option<LastStep>,
    ) -> io::Result<(Arc<Control>, Taken)> {
        let control = Arc::new(self.control);
        control.report(&Report::Ready(first.map(First::told)))?;
        let order = next_order(&control).await?;
        let Some(Order::Take(Take {
            offer,
            device,
            requests,
        })) = order
        else {
            return Err(gone());
        };
        let is_writable = fs.is_writable(crate::fs::Node::Disk);
        let gate = Arc::new(Gate::default());
        let device = Arc::new(device);
        let adapter = mount::adapter(fs, config, mountpoint).behind(Behind {
            gate: Arc::clone(&gate),
            device: requests.is_some().then(|| Arc::clone(&device)),
        });
        let (ours, theirs) = messages()?;
        say(&ours, &offer.request())?;
        let session = Session::from_fd(
            adapter,
            theirs,
            fuse::acl(config.access),
            fuse::session_config(),
        )?;
        let mut agreed = vec![0; AGREED_BYTES_MAX];
        let length = nix::unistd::read(&ours, &mut agreed)?;
        agreed.truncate(length);
        control.report(&Report::Agreed(agreed))?;
        let number = session.as_fd().as_raw_fd();
        let mut ended = mount::run(session)?;
        gather(&gate, &ours, is_writable, &mut ended).await?;
        let order = next_order(&control).await?;
        if !matches!(order, Some(Order::Go)) {
            return Err(gone());
        }
        if let Some(last_step) = last_step {
            beating(&control, self.watched, last_step).await?;
        }
        match &requests {
            Some(requests) => replace(number, requests)?,
            None => replace(number, &*device)?,
        }
        gate.open();
        let alone = requests.is_none();
        if let Some(limit) = self.watched {
            let line = requests.map_or(Line::Kernel(device), Line::Supervisor);
            tokio::spawn(beat(Arc::clone(&control), gate, line, limit));
        }
        let taken = Taken {
            path: mountpoint.path().to_owned(),
            ended,
            orders: mpsc::unbounded_channel().1,
            alone,
        };
        Ok((control, taken))
    }
}

/// A mount that was handed over and is served.
#[derive(Debug)]
pub struct Taken {
    path: std::path::PathBuf,
    ended: oneshot::Receiver<io::Result<()>>,
    orders: mpsc::UnboundedReceiver<Order>,
    /// Whether it can be served without the supervisor.
    alone: bool,
}

impl Taken {
    /// Serves until the mount is gone, or the supervisor says so. If the supervisor is gone, a root
    /// disk is served on as long as that is possible.
    ///
    /// # Errors
    ///
    /// When the FUSE session broke.
    pub async fn serve(mut self, role: Role) -> Result<(), MountError> {
        loop {
            let order = tokio::select! {
                ended = &mut self.ended => return mount::outcome(&self.path, ended),
                order = self.orders.recv() => order,
            };
            match order {
                Some(Order::End) => return Ok(()),
                Some(_) => {}
                None if self.alone && role == Role::RootDisk => {
                    tracing::error!("the supervisor is gone; serving on without");
                    return mount::outcome(&self.path, self.ended.await);
                }
                None => return Ok(()),
            }
        }
    }
}

/// Waits until all threads of a session are at the gate, with memory for requests that they have touched; `line` is where
/// they read requests until then.
async fn gather(
    gate: &Arc<Gate>,
    line: &OwnedFd,
    is_writable: bool,
    ended: &mut oneshot::Receiver<io::Result<()>>,
) -> io::Result<()> {
    let write_bytes = if is_writable {
        fuse::SUPERVISED_WRITE_BYTES
    } else {
        0
    };
    let touch = wire::touch(write_bytes);
    for _ in 0..fuse::THREADS {
        say(line, &touch)?;
    }
    let gate = Arc::clone(gate);
    let gathered = tokio::task::spawn_blocking(move || gate.gather(fuse::THREADS));
    tokio::select! {
        gathered = gathered => gathered.map_err(io::Error::other),
        _ = ended => Err(io::Error::other("the FUSE session did not begin")),
    }
}

/// Takes the last step, which may last as long as a disk takes to sync, and beats meanwhile.
async fn beating(
    control: &Control,
    watched: Option<Duration>,
    mut last_step: LastStep,
) -> io::Result<()> {
    let Some(limit) = watched else {
        return last_step.await;
    };
    loop {
        tokio::select! {
            taken = &mut last_step => return taken,
            () = tokio::time::sleep(pause(limit)) => {
                // One that is not heard is followed by others.
                let _ = control.beat();
            }
        }
    }
}

/// The next order, waited for on a thread of its own.
async fn next_order(control: &Arc<Control>) -> io::Result<Option<Order>> {
    let control = Arc::clone(control);
    let waited = tokio::task::spawn_blocking(move || control.ordered());
    waited.await.map_err(io::Error::other)?
}

/// Orders as they come, until the supervisor is gone.
fn listen(control: Arc<Control>) -> io::Result<mpsc::UnboundedReceiver<Order>> {
    let (sender, receiver) = mpsc::unbounded_channel();
    let listen = move || {
        while let Ok(Some(order)) = control.ordered() {
            if sender.send(order).is_err() {
                return;
            }
        }
    };
    std::thread::Builder::new()
        .name("orders".to_owned())
        .spawn(listen)?;
    Ok(receiver)
}

fn say(socket: &OwnedFd, message: &[u8]) -> io::Result<()> {
    send(socket.as_raw_fd(), message, MsgFlags::MSG_NOSIGNAL)?;
    Ok(())
}

fn inherited(number: i32) -> io::Result<OwnedFd> {
    #[expect(unsafe_code, reason = "an inherited descriptor has only a number")]
    // SAFETY: the supervisor opened it for this program, which has not opened anything yet.
    let fd = unsafe { OwnedFd::from_raw_fd(number) };
    // Programs that we start must not hold it; and it must be open.
    let flag = nix::fcntl::FdFlag::FD_CLOEXEC;
    nix::fcntl::fcntl(fd.as_fd(), nix::fcntl::FcntlArg::F_SETFD(flag))?;
    Ok(fd)
}

fn gone() -> io::Error {
    io::Error::new(
        io::ErrorKind::UnexpectedEof,
        "the supervisor handed nothing over",
    )
}
