//! Handing the listening sockets to the next process.
//!
//! The new process (`weir -u`) listens on `upgrade_sock`; the running one connects on QUIT, sends its sockets and
//! goes on serving until the new one says that it serves too. If that word does not come, nothing has changed.
//! Connections that arrive in between wait in the sockets' queues, which both processes share.
//!
//! Pingora's own hand-over is not used: it carries 32 sockets at most, its socket is open to everybody, and the old
//! process ends even when it failed. One message here carries one socket and the address it was bound to, so neither
//! their number nor their names are limited.

use std::collections::HashMap;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    self, AddressFamily, Backlog, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag,
    SockType, UnixAddr, sockopt,
};

/// How long the new process waits for the running one to be told (QUIT).
const WAIT_FOR_SENDER: Duration = Duration::from_secs(60);
/// How long the running process looks for the new one, as Pingora does: QUIT may come before `weir -u`.
const WAIT_FOR_RECEIVER: Duration = Duration::from_secs(5);
/// How long the running process waits for the new one to serve.
const WAIT_FOR_READY: Duration = Duration::from_secs(60);
const READY: &[u8] = b"ready";
/// After the last socket.
const END: &[u8] = b"";
/// Longest address of a socket: `unix:` and a path (`sun_path` is shorter).
const MAX_NAME: usize = 1024;

/// Sockets by the address they were bound to, as written in the configuration.
pub type Sockets = HashMap<String, OwnedFd>;

/// The new process' end of the hand-over.
#[derive(Debug)]
pub struct Receiver {
    listener: OwnedFd,
}

impl Receiver {
    /// Starts to wait on `path`; only this user and root may connect.
    ///
    /// # Errors
    /// When the socket cannot be made there.
    pub fn listen(path: &Path) -> io::Result<Receiver> {
        let listener = seqpacket()?;
        match std::fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        socket::bind(listener.as_raw_fd(), &UnixAddr::new(path)?)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        socket::listen(&listener, Backlog::new(1)?)?;
        Ok(Receiver { listener })
    }

    /// Waits for the running process and takes its sockets.
    ///
    /// # Errors
    /// When nobody comes in time, somebody else comes, or the transfer breaks.
    pub fn receive(self) -> io::Result<(Sockets, Successor)> {
        wait_readable(self.listener.as_fd(), WAIT_FOR_SENDER)?;
        let fd = socket::accept4(self.listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC)?;
        let sender = own(fd);
        let peer = socket::getsockopt(&sender, sockopt::PeerCredentials)?;
        let us = nix::unistd::geteuid().as_raw();
        if peer.uid() != us && peer.uid() != 0 {
            let message = format!(
                "process {} of user {} is not allowed",
                peer.pid(),
                peer.uid()
            );
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, message));
        }
        let mut sockets = Sockets::new();
        loop {
            wait_readable(sender.as_fd(), WAIT_FOR_RECEIVER)?;
            match receive_one(sender.as_fd())? {
                Some((name, fd)) => sockets.insert(name, fd),
                None => return Ok((sockets, Successor { sender })),
            };
        }
    }
}

/// What the new process keeps until it serves.
#[derive(Debug)]
pub struct Successor {
    sender: OwnedFd,
}

impl Successor {
    /// Tells the old process to drain.
    ///
    /// # Errors
    /// When the old process is gone, which does not matter any more.
    pub fn ready(self) -> io::Result<()> {
        socket::send(self.sender.as_raw_fd(), READY, MsgFlags::MSG_NOSIGNAL)?;
        Ok(())
    }
}

/// What became of a hand-over.
#[derive(Debug)]
pub enum Handover {
    /// The new process serves; this one is to drain.
    Done,
    /// There is no new process.
    Nobody,
}

/// Sends the sockets to the process that waits on `path` and waits until that process serves. Blocks.
///
/// # Errors
/// When a new process was there but did not come to serve; this one must go on.
pub fn hand_over(path: &Path, sockets: &[(String, impl AsFd)]) -> io::Result<Handover> {
    let Some(receiver) = connect(path)? else {
        return Ok(Handover::Nobody);
    };
    for (name, fd) in sockets {
        send_one(
            receiver.as_fd(),
            name.as_bytes(),
            Some(fd.as_fd().as_raw_fd()),
        )?;
    }
    send_one(receiver.as_fd(), END, None)?;
    wait_readable(receiver.as_fd(), WAIT_FOR_READY)?;
    let mut word = [0; READY.len()];
    let n = socket::recv(receiver.as_raw_fd(), &mut word, MsgFlags::empty())?;
    if &word[..n] != READY {
        return Err(io::Error::other("the new process ended before it served"));
    }
    Ok(Handover::Done)
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

fn send_one(to: BorrowedFd<'_>, name: &[u8], fd: Option<RawFd>) -> io::Result<()> {
    let fds = fd.as_slice();
    let rights = [ControlMessage::ScmRights(fds)];
    let control = if fds.is_empty() { &[][..] } else { &rights[..] };
    // An empty message would look like the end of the stream, so each starts with a byte of its own.
    let parts = [IoSlice::new(b"s"), IoSlice::new(name)];
    socket::sendmsg::<UnixAddr>(
        to.as_raw_fd(),
        &parts,
        control,
        MsgFlags::MSG_NOSIGNAL,
        None,
    )?;
    Ok(())
}

fn receive_one(from: BorrowedFd<'_>) -> io::Result<Option<(String, OwnedFd)>> {
    let mut bytes = [0; MAX_NAME];
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
        ([b's', name @ ..], Some(fd)) => match std::str::from_utf8(name) {
            Ok(name) => Ok(Some((name.to_owned(), fd))),
            Err(_) => Err(io::ErrorKind::InvalidData.into()),
        },
        (b"s", None) => Ok(None),
        ([], _) => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
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

fn wait_readable(fd: BorrowedFd<'_>, limit: Duration) -> io::Result<()> {
    let deadline = Instant::now() + limit;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], left) {
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
    use super::*;

    #[test]
    fn more_sockets_than_one_message_holds_change_hands() {
        let dir = std::env::temp_dir().join(format!("weir-upgrade-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("upgrade.sock");
        let receiver = Receiver::listen(&path).unwrap();
        let sender = std::thread::spawn({
            let path = path.clone();
            move || {
                let file = std::fs::File::open("/dev/null").unwrap();
                let sockets: Vec<_> = (0..600)
                    .map(|i| (format!("unix:/with space/{i}"), file.as_fd()))
                    .collect();
                hand_over(&path, &sockets).unwrap()
            }
        });
        let (sockets, successor) = receiver.receive().unwrap();
        assert_eq!(sockets.len(), 600);
        assert!(sockets.contains_key("unix:/with space/599"));
        successor.ready().unwrap();
        assert!(matches!(sender.join().unwrap(), Handover::Done));
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_successor_that_dies_is_an_error_for_the_old_process() {
        let dir = std::env::temp_dir().join(format!("weir-upgrade-dies-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("upgrade.sock");
        let receiver = Receiver::listen(&path).unwrap();
        let sender = std::thread::spawn({
            let path = path.clone();
            move || hand_over(&path, &[] as &[(String, OwnedFd)])
        });
        let (_, successor) = receiver.receive().unwrap();
        drop(successor);
        assert!(sender.join().unwrap().is_err());
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
