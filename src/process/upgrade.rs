//! Handing the listening sockets to the next process.
//!
//! Two ways lead to it. By command (`weir upgrade`) the running process starts the new one itself and is connected with
//! it by a pair of sockets, of which the new one finds its end as standard input. By hand the new process (`weir -u`)
//! listens on `upgrade_sock`, and the running one connects on QUIT. What is said then is the same:
//!
//! ```text
//!  old -> new   each listening socket with the address it was bound to; the keys of session tickets; standard error,
//!               where the old one started the new one; the end
//!  new -> old   `ready PID VERSION` once it serves
//!  old -> new   `keep`, when the new one has stayed for a second: from here on the old one drains
//! ```
//!
//! Until the last word the old process serves as if nothing were happening, and goes on doing so if that word does not
//! come to pass. Connections that arrive in between wait in the sockets' queues, which both processes share.
//!
//! With a [probation](super::probation) there is more to say before that word:
//!
//! ```text
//!  old -> new   `probation`: the old one accepts no more
//!  new -> old   `figures REQUESTS FAILED P99` (in microseconds) each second, of what came since then
//!  old -> new   `reopen`, when the log files are to be opened anew
//!  old -> new   `keep`; or `withdraw`, and the old one accepts again while the new one drains
//! ```
//!
//! The end of the old process leaves everything to the new one, as `keep` does. That of the new one leaves everything to
//! the old one.
//!
//! Pingora's own hand-over is not used: it carries 32 sockets at most, its socket is open to everybody, and the old
//! process ends even when it failed. One message here carries one socket and the address it was bound to, so neither
//! their number nor their names are limited.

use std::collections::HashMap;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;
use std::process::Child;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    self, AddressFamily, Backlog, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag,
    SockType, UnixAddr, sockopt,
};
use tokio::net::UnixDatagram;
use tokio::time::interval;

use super::daemon;
use crate::runtime::figures::{Figures, Summary};

/// How long the new process waits for the running one to be told (QUIT).
const WAIT_FOR_SENDER: Duration = Duration::from_secs(60);
/// How long the running process looks for the new one, as Pingora does: QUIT may come before `weir -u`.
const WAIT_FOR_RECEIVER: Duration = Duration::from_secs(5);
/// How long the running process waits for the new one to serve, unless it is told otherwise.
pub const WAIT_FOR_READY: Duration = Duration::from_secs(60);
/// How long a new process must stay before the old one relies on it: what fails at once fails in this time.
const SETTLE: Duration = Duration::from_secs(1);
/// How long either waits for what the other one only has to write down.
const WAIT_FOR_MESSAGE: Duration = Duration::from_secs(5);
/// How often a new process on probation tells how it does.
const REPORT: Duration = Duration::from_secs(1);
const READY: &str = "ready";
const KEEP: &[u8] = b"keep";
const PROBATION: &[u8] = b"probation";
const REOPEN: &[u8] = b"reopen";
const WITHDRAW: &[u8] = b"withdraw";
const FIGURES: &str = "figures";
/// The keys of session tickets go among the sockets, by a name that no address has: a process that knows nothing of
/// them leaves them aside.
pub const TICKET_KEYS: &str = "ticket keys";
/// Longest message: a kind, `unix:` and a path (`sun_path` is shorter).
const MAX_MESSAGE: usize = 1024;

/// What a message of the old process is, by its first byte.
mod kind {
    pub const SOCKET: u8 = b's';
    pub const STDERR: u8 = b'e';
    pub const END: u8 = b'.';
}

/// Sockets by the address they were bound to, as written in the configuration.
pub type Sockets = HashMap<String, OwnedFd>;

/// The new process' end of the hand-over.
#[derive(Debug)]
pub enum Receiver {
    /// Whoever starts this process by hand tells the running one next.
    ByHand {
        listener: OwnedFd,
        user: Option<u32>,
    },
    /// The running process has started this one.
    Started { sender: OwnedFd },
}

/// What the new process gets.
#[derive(Debug)]
pub struct Inheritance {
    pub sockets: Sockets,
    /// A file with the keys that the old process has made for session tickets.
    pub ticket_keys: Option<OwnedFd>,
    /// Where this process is to write its errors once it serves; so far, the old one reads them.
    pub stderr: Option<OwnedFd>,
    pub successor: Successor,
}

impl Receiver {
    /// The connection to the running process, if that has started this one.
    ///
    /// # Errors
    /// When there is no `/dev/null` to put in its place.
    pub fn started() -> io::Result<Option<Receiver>> {
        let stdin = io::stdin();
        if socket::getsockopt(&stdin, sockopt::SockType) != Ok(SockType::SeqPacket) {
            return Ok(None);
        }
        let sender = stdin.as_fd().try_clone_to_owned()?;
        nix::unistd::dup2_stdin(std::fs::File::open("/dev/null")?)?;
        Ok(Some(Receiver::Started { sender }))
    }

    /// Starts to wait on `path`; only this user, `user`, as whom the running process may go on, and root may connect.
    ///
    /// # Errors
    /// When the socket cannot be made there, or another process waits there.
    pub fn listen(path: &Path, user: Option<&str>) -> anyhow::Result<Receiver> {
        match socket::connect(seqpacket()?.as_raw_fd(), &UnixAddr::new(path)?) {
            Ok(()) => anyhow::bail!("another process waits there already"),
            // What a former hand-over has left. (Files that are no sockets refuse as well.)
            Err(Errno::ECONNREFUSED) if is_socket(path) => std::fs::remove_file(path)?,
            // There is none, or what is wrong with it is what bind(2) says.
            Err(_) => {}
        }
        let listener = seqpacket()?;
        // The file begins with the mode of the socket: it is never open to others.
        nix::sys::stat::fchmod(&listener, nix::sys::stat::Mode::from_bits_truncate(0o600))?;
        socket::bind(listener.as_raw_fd(), &UnixAddr::new(path)?)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        daemon::give(path, user)?;
        let user = daemon::id_of(user)?;
        socket::listen(&listener, Backlog::new(1)?)?;
        Ok(Receiver::ByHand { listener, user })
    }

    /// Waits for the running process and takes its sockets.
    ///
    /// # Errors
    /// When nobody comes in time, somebody else comes, or the transfer breaks.
    pub fn receive(self) -> io::Result<Inheritance> {
        let sender = match self {
            Receiver::Started { sender } => sender,
            Receiver::ByHand { listener, user } => accept(listener.as_fd(), user)?,
        };
        let mut sockets = Sockets::new();
        let mut stderr = None;
        loop {
            wait(sender.as_fd(), PollFlags::POLLIN, WAIT_FOR_MESSAGE)?;
            match receive_one(sender.as_fd())? {
                Message::Socket(name, fd) => {
                    sockets.insert(name, fd);
                }
                Message::Stderr(fd) => stderr = Some(fd),
                Message::End => break,
            }
        }
        Ok(Inheritance {
            ticket_keys: sockets.remove(TICKET_KEYS),
            sockets,
            stderr,
            successor: Successor { sender },
        })
    }
}

fn is_socket(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket())
}

/// The first who connects and has something to say: who only looks whether somebody waits here leaves at once.
fn accept(listener: BorrowedFd<'_>, user: Option<u32>) -> io::Result<OwnedFd> {
    let deadline = Instant::now() + WAIT_FOR_SENDER;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        wait(listener, PollFlags::POLLIN, left)?;
        let fd = socket::accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC)?;
        let sender = own(fd);
        if let Err(e) = check_peer(&sender, user) {
            log::warn!("whoever offers sockets is turned away: {e}");
            continue;
        }
        wait(sender.as_fd(), PollFlags::POLLIN, WAIT_FOR_MESSAGE)?;
        let mut first = [0];
        match socket::recv(sender.as_raw_fd(), &mut first, MsgFlags::MSG_PEEK)? {
            0 => {}
            _ => return Ok(sender),
        }
    }
}

/// Sockets are given to, and taken from, this user, `user` and root only.
fn check_peer(peer: &OwnedFd, user: Option<u32>) -> io::Result<()> {
    let peer = socket::getsockopt(peer, sockopt::PeerCredentials)?;
    let us = nix::unistd::geteuid().as_raw();
    if [0, us].contains(&peer.uid()) || user == Some(peer.uid()) {
        return Ok(());
    }
    let message = format!(
        "process {} of user {} is not allowed",
        peer.pid(),
        peer.uid()
    );
    Err(io::Error::new(io::ErrorKind::PermissionDenied, message))
}

/// What the new process keeps until the old one relies on it.
#[derive(Debug)]
pub struct Successor {
    sender: OwnedFd,
}

impl Successor {
    /// Tells the old process that this one serves.
    ///
    /// # Errors
    /// When the old process is gone, which does not matter any more.
    pub fn ready(&self) -> io::Result<()> {
        let (process, version) = (std::process::id(), env!("CARGO_PKG_VERSION"));
        let word = format!("{READY} {process} {version}");
        socket::send(
            self.sender.as_raw_fd(),
            word.as_bytes(),
            MsgFlags::MSG_NOSIGNAL,
        )?;
        Ok(())
    }

    /// Tells how this process does as long as the old one wants to know, and returns when its fate is decided.
    ///
    /// # Errors
    /// When the runtime cannot watch the socket.
    pub async fn fate(self, figures: &Figures, reopen: impl Fn()) -> io::Result<Fate> {
        let line = Line::new(self.sender)?;
        let mut report = interval(REPORT);
        let mut begin = None;
        loop {
            tokio::select! {
                word = line.hear() => match word.as_slice() {
                    PROBATION => begin = Some(figures.totals()),
                    REOPEN => reopen(),
                    WITHDRAW => return Ok(Fate::Withdrawn),
                    _ => return Ok(Fate::Kept),
                },
                _ = report.tick() => {
                    if let Some(begin) = &begin {
                        line.tell(tell_figures(&figures.totals().since(begin)).as_bytes());
                    }
                }
            }
        }
    }
}

/// What the old process has decided about this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It has left everything to this one, in words or by ending.
    Kept,
    /// It goes on, and this one is to drain.
    Withdrawn,
}

fn tell_figures(summary: &Summary) -> String {
    let Summary {
        requests,
        failed,
        p99,
    } = summary;
    format!("{FIGURES} {requests} {failed} {}", p99.as_micros())
}

fn parse_figures(word: &[u8]) -> Option<Summary> {
    let numbers = std::str::from_utf8(word).ok()?.strip_prefix(FIGURES)?;
    let mut numbers = numbers.strip_prefix(' ')?.split(' ').map(str::parse);
    let mut next = || numbers.next()?.ok();
    Some(Summary {
        requests: next()?,
        failed: next()?,
        p99: Duration::from_micros(next()?),
    })
}

/// The connection between both processes, as the runtime watches it.
#[derive(Debug)]
struct Line(UnixDatagram);

impl Line {
    fn new(socket: OwnedFd) -> io::Result<Line> {
        // Of another kind in truth, which does not matter: of both, each read is a message.
        let socket = std::os::unix::net::UnixDatagram::from(socket);
        socket.set_nonblocking(true)?;
        UnixDatagram::from_std(socket).map(Line)
    }

    /// The next message; empty when the other process is gone.
    async fn hear(&self) -> Vec<u8> {
        let mut word = [0; MAX_MESSAGE];
        // It fails where the other one has gone with a message of this one unread.
        let length = self.0.recv(&mut word).await.unwrap_or_default();
        word[..length].to_vec()
    }

    fn tell(&self, word: &[u8]) {
        tell(&self.0, word);
    }
}

/// Says something to who may be gone, or listen to nothing: that is heard of soon enough.
fn tell(socket: &impl AsRawFd, word: &[u8]) {
    let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
    let _ = socket::send(socket.as_raw_fd(), word, flags);
}

/// A new process that serves beside this one.
#[derive(Debug)]
pub struct Heir {
    receiver: OwnedFd,
    pub process: u32,
    pub version: String,
    /// Where this process has started it.
    pub child: Option<Child>,
}

impl Heir {
    /// Leaves everything to the new process: this one is to drain.
    pub fn keep(self) {
        // If it has ended in this moment, the sockets end with this process.
        tell(&self.receiver, KEEP);
    }

    /// Has the new process leave everything to this one, and drain.
    pub fn withdraw(&self) {
        tell(&self.receiver, WITHDRAW);
    }

    /// Has the new process open its log files anew.
    pub fn reopen(&self) {
        tell(&self.receiver, REOPEN);
    }

    /// Puts the new process on probation; what comes back tells how it does.
    ///
    /// # Errors
    /// When this process is out of file descriptors, or the runtime cannot watch the socket.
    pub fn examine(&self) -> io::Result<Reports> {
        let line = Line::new(self.receiver.try_clone()?)?;
        line.tell(PROBATION);
        Ok(Reports(line))
    }
}

/// What a new process on probation tells.
#[derive(Debug)]
pub struct Reports(Line);

impl Reports {
    /// The next one. `None`: the new process has let go, by ending most likely.
    pub async fn next(&self) -> Option<Summary> {
        loop {
            let word = self.0.hear().await;
            match parse_figures(&word) {
                None if word.is_empty() => return None,
                None => {}
                figures => return figures,
            }
        }
    }
}

/// Looks for a process that waits on `path`, sends it the sockets and waits until it serves. `None`: there is none.
/// Blocks.
///
/// # Errors
/// When a new process was there but did not come to serve; this one must go on.
pub fn hand_over(path: &Path, sockets: &[(String, impl AsFd)]) -> io::Result<Option<Heir>> {
    let Some(receiver) = connect(path)? else {
        return Ok(None);
    };
    check_peer(&receiver, None)?;
    pass(receiver, sockets, None, Instant::now() + WAIT_FOR_READY).map(Some)
}

/// Sends the sockets, and waits until the process at the other end of `receiver` serves and seems to go on doing so.
/// Blocks.
///
/// # Errors
/// When it does not come to serve; this one must go on.
pub fn pass(
    receiver: OwnedFd,
    sockets: &[(String, impl AsFd)],
    stderr: Option<BorrowedFd<'_>>,
    deadline: Instant,
) -> io::Result<Heir> {
    let send = |kind: u8, name: &str, fd: Option<BorrowedFd<'_>>| {
        let left = deadline.saturating_duration_since(Instant::now());
        wait(receiver.as_fd(), PollFlags::POLLOUT, left)?;
        send_one(receiver.as_fd(), kind, name.as_bytes(), fd)
    };
    for (name, fd) in sockets {
        send(kind::SOCKET, name, Some(fd.as_fd()))?;
    }
    if let Some(stderr) = stderr {
        send(kind::STDERR, "", Some(stderr))?;
    }
    send(kind::END, "", None)?;
    let left = deadline.saturating_duration_since(Instant::now());
    wait(receiver.as_fd(), PollFlags::POLLIN, left)?;
    let mut word = [0; MAX_MESSAGE];
    let n = socket::recv(receiver.as_raw_fd(), &mut word, MsgFlags::empty())?;
    let (process, version) = parse_ready(&word[..n])
        .ok_or_else(|| io::Error::other("the new process ended before it served"))?;
    match wait(receiver.as_fd(), PollFlags::POLLIN, SETTLE) {
        Err(e) if e.kind() == io::ErrorKind::TimedOut => Ok(Heir {
            receiver,
            process,
            version,
            child: None,
        }),
        Err(e) => Err(e),
        // It has nothing more to say, so this is its end.
        Ok(()) => Err(io::Error::other(
            "the new process ended as soon as it served",
        )),
    }
}

fn parse_ready(word: &[u8]) -> Option<(u32, String)> {
    let mut words = std::str::from_utf8(word).ok()?.split(' ');
    match (words.next()?, words.next()?, words.next()?) {
        (READY, process, version) => Some((process.parse().ok()?, version.to_owned())),
        _ => None,
    }
}

fn connect(path: &Path) -> io::Result<Option<OwnedFd>> {
    let deadline = Instant::now() + WAIT_FOR_RECEIVER;
    let address = UnixAddr::new(path)?;
    loop {
        let receiver = seqpacket()?;
        match socket::connect(receiver.as_raw_fd(), &address) {
            Ok(()) => return Ok(Some(receiver)),
            Err(Errno::ENOENT | Errno::ECONNREFUSED) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(50));
            }
            Err(Errno::ENOENT | Errno::ECONNREFUSED) => return Ok(None),
            Err(e) => return Err(e.into()),
        }
    }
}

fn send_one(
    to: BorrowedFd<'_>,
    kind: u8,
    name: &[u8],
    fd: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let fd = fd.map(|fd| fd.as_raw_fd());
    let fds = fd.as_slice();
    let rights = [ControlMessage::ScmRights(fds)];
    let control = if fds.is_empty() { &[][..] } else { &rights[..] };
    let kind = [kind];
    socket::sendmsg::<UnixAddr>(
        to.as_raw_fd(),
        &[IoSlice::new(&kind), IoSlice::new(name)],
        control,
        MsgFlags::MSG_NOSIGNAL,
        None,
    )?;
    Ok(())
}

enum Message {
    Socket(String, OwnedFd),
    Stderr(OwnedFd),
    End,
}

fn receive_one(from: BorrowedFd<'_>) -> io::Result<Message> {
    let mut bytes = [0; MAX_MESSAGE];
    let mut control = nix::cmsg_space!([RawFd; 1]);
    let (length, fd) = {
        let mut parts = [IoSliceMut::new(&mut bytes)];
        let message = socket::recvmsg::<UnixAddr>(
            from.as_raw_fd(),
            &mut parts,
            Some(&mut control),
            MsgFlags::MSG_CMSG_CLOEXEC,
        )?;
        let fd = message.cmsgs()?.find_map(|control| match control {
            ControlMessageOwned::ScmRights(fds) => fds.first().copied(),
            _ => None,
        });
        (message.bytes, fd.map(own))
    };
    match (&bytes[..length], fd) {
        ([kind::SOCKET, name @ ..], Some(fd)) => match std::str::from_utf8(name) {
            Ok(name) => Ok(Message::Socket(name.to_owned(), fd)),
            Err(_) => Err(io::ErrorKind::InvalidData.into()),
        },
        ([kind::STDERR], Some(fd)) => Ok(Message::Stderr(fd)),
        ([kind::END], None) => Ok(Message::End),
        ([], _) => Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            "the running process has let go",
        )),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// The two ends between a process and the new one that it starts.
///
/// # Errors
/// When the process is out of file descriptors.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let kind = SockType::SeqPacket;
    Ok(socket::socketpair(
        AddressFamily::Unix,
        kind,
        None,
        SockFlag::SOCK_CLOEXEC,
    )?)
}

fn seqpacket() -> io::Result<OwnedFd> {
    let kind = SockType::SeqPacket;
    Ok(socket::socket(
        AddressFamily::Unix,
        kind,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?)
}

fn wait(fd: BorrowedFd<'_>, what: PollFlags, limit: Duration) -> io::Result<()> {
    let deadline = Instant::now() + limit;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(fd, what)], left) {
            Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
            Ok(_) => return Ok(()),
            Err(Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

#[expect(
    unsafe_code,
    reason = "accept4(2) and SCM_RIGHTS give bare numbers; nix has no owned form"
)]
fn own(fd: RawFd) -> OwnedFd {
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows its number.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::thread::{self, JoinHandle};

    use super::*;

    fn folder(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("weir-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        dir
    }

    fn send(path: &Path, sockets: usize) -> JoinHandle<io::Result<Option<Heir>>> {
        let path = path.to_owned();
        thread::spawn(move || {
            let file = std::fs::File::open("/dev/null").unwrap();
            let sockets: Vec<_> = (0..sockets)
                .map(|i| (format!("unix:/with space/{i}"), file.as_fd()))
                .collect();
            hand_over(&path, &sockets)
        })
    }

    #[test]
    fn more_sockets_than_one_message_holds_change_hands() {
        let dir = folder("upgrade");
        let path = dir.join("upgrade.sock");
        std::fs::write(&path, "").unwrap();
        assert!(
            Receiver::listen(&path, None).is_err(),
            "a file that is no socket stays"
        );
        std::fs::remove_file(&path).unwrap();
        drop(Receiver::listen(&path, None).unwrap()); // leaves a socket that nobody listens on
        let receiver = Receiver::listen(&path, None).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let error = Receiver::listen(&path, None).unwrap_err();
        assert_eq!(error.to_string(), "another process waits there already");
        let sender = send(&path, 600);
        let taken = receiver.receive().unwrap();
        assert_eq!(taken.sockets.len(), 600);
        assert!(taken.sockets.contains_key("unix:/with space/599"));
        taken.successor.ready().unwrap();
        let heir = sender.join().unwrap().unwrap().expect("somebody waits");
        assert_eq!(heir.process, std::process::id());
        assert_eq!(heir.version, env!("CARGO_PKG_VERSION"));
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn successor_that_dies_is_an_error_for_the_old_process() {
        let dir = folder("upgrade-dies");
        let path = dir.join("upgrade.sock");
        for serves in [false, true] {
            let receiver = Receiver::listen(&path, None).unwrap();
            let sender = send(&path, 0);
            let taken = receiver.receive().unwrap();
            if serves {
                taken.successor.ready().unwrap();
            }
            drop(taken);
            assert!(sender.join().unwrap().is_err());
        }
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn word_of_a_successor_is_read() {
        assert_eq!(
            parse_ready(b"ready 17 0.2.0"),
            Some((17, "0.2.0".to_owned()))
        );
        for nonsense in [&b""[..], b"ready", b"ready x 1", b"keep 1 1", b"\xff"] {
            assert_eq!(parse_ready(nonsense), None);
        }
    }
    #[test]
    fn figures_are_told_and_read() {
        let figures = Summary {
            requests: 1200,
            failed: 3,
            p99: Duration::from_micros(1250),
        };
        assert_eq!(tell_figures(&figures), "figures 1200 3 1250");
        assert_eq!(parse_figures(b"figures 1200 3 1250"), Some(figures));
        for nonsense in [
            &b""[..],
            b"figures",
            b"figures 1 2",
            b"figures a b c",
            b"\xff",
        ] {
            assert_eq!(parse_figures(nonsense), None);
        }
    }

    #[tokio::test]
    async fn new_process_on_probation_reports_until_its_fate_is_decided() {
        for (ends, decided) in [(false, Fate::Withdrawn), (true, Fate::Kept)] {
            let (ours, theirs) = pair().unwrap();
            let successor = Successor { sender: theirs };
            let heir = Heir {
                receiver: ours,
                process: 1,
                version: String::new(),
                child: None,
            };
            let figures = std::sync::Arc::new(Figures::default());
            let (counted, reopened) = (
                figures.clone(),
                std::sync::Arc::new(tokio::sync::Notify::new()),
            );
            let notify = reopened.clone();
            let fate =
                tokio::spawn(
                    async move { successor.fate(&counted, move || notify.notify_one()).await },
                );
            figures.count(500, Duration::ZERO);
            let reports = heir.examine().unwrap();
            let first = reports.next().await.unwrap();
            assert!(first.requests <= 1);
            heir.reopen();
            reopened.notified().await;
            figures.count(500, Duration::from_micros(3));
            while reports.next().await.unwrap().failed == 0 {}
            match ends {
                true => drop((heir, reports)),
                false => heir.withdraw(),
            }
            assert_eq!(fate.await.unwrap().unwrap(), decided);
        }
    }
}
