//! The accept loop: one task per socket, which ends when its listener is closed or the process drains.

use std::future::ready;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use pingora::apps::HttpServerApp;
use pingora::server::ShutdownWatch;
use tokio::net::{TcpListener, UnixListener};
use tokio::task::unconstrained;

use super::Listener;
use super::bind::ListenSocket;
use super::connection::Shared;
use super::crowd::Room;
use super::stream::{Open, Slot, Socket};

/// How long to wait when the process is out of file descriptors: accepting at once would spin.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(100);

/// How many connections that wait already are let in before a socket closes, which would reset them. More than wait in
/// any queue but a flooded one, which must not keep a process from ending.
const LAST: usize = 4096;

enum Accepting {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// Accepts from `socket` until `drain` turns true, and then whoever has connected by then. New connections get what
/// `listener` holds at that moment, so a reload takes effect without touching the socket.
///
/// # Errors
/// When the runtime cannot watch the socket.
pub async fn run<A: HttpServerApp + Send + Sync + 'static>(
    shared: Arc<Shared<A>>,
    socket: &ListenSocket,
    open: Arc<Open>,
    listener: Arc<ArcSwap<Listener>>,
    mut drain: ShutdownWatch,
) -> io::Result<()> {
    let unix = socket.is_unix()?;
    // A socket that listens on one address tells the local end of its connections.
    let local = socket.local_addr();
    let wildcard = local.is_none_or(|addr| addr.ip().is_unspecified());
    let fd = OwnedFd::from(socket.try_clone()?.into_socket());
    let accepting = if unix {
        Accepting::Unix(UnixListener::from_std(fd.into())?)
    } else {
        Accepting::Tcp(TcpListener::from_std(fd.into())?)
    };
    let room = shared.crowd.room();
    // How many more may come in, once the end is near.
    let mut left = None;
    loop {
        let accepted = match &mut left {
            None => tokio::select! {
                biased;
                _ = drain.changed() => {
                    left = Some(LAST);
                    continue;
                }
                accepted = accept_into(room, &accepting) => accepted,
            },
            Some(0) => return Ok(()),
            Some(left) => {
                *left -= 1;
                tokio::select! {
                    biased;
                    accepted = unconstrained(accepting.accept()) => accepted,
                    () = ready(()) => return Ok(()),
                }
            }
        };
        let (socket, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(e) if is_exhausted(&e) => {
                if room.exhausted.note(Instant::now()) {
                    log::error!("listener {}: cannot accept: {e}", listener.load().name);
                }
                tokio::time::sleep(EXHAUSTED_PAUSE).await;
                continue;
            }
            // The client was gone before it was accepted.
            Err(_) => continue,
        };
        let local = match &socket {
            Socket::Tcp(socket) if wildcard => socket.local_addr().ok(),
            _ => local,
        };
        // Counted before its task first runs: a drain must not overlook it.
        let slot = Slot::take(&open);
        room.look(socket.descriptor());
        let serving = shared.clone().serve(
            slot,
            socket,
            peer,
            local,
            listener.load_full(),
            drain.clone(),
        );
        pingora_runtime::current_handle().spawn(serving);
    }
}

/// Accepts as soon as there is room.
async fn accept_into(
    room: &Room,
    accepting: &Accepting,
) -> io::Result<(Socket, Option<std::net::SocketAddr>)> {
    room.wait().await;
    accepting.accept().await
}

impl Accepting {
    async fn accept(&self) -> io::Result<(Socket, Option<std::net::SocketAddr>)> {
        match self {
            Accepting::Tcp(listener) => {
                let (socket, peer) = listener.accept().await?;
                Ok((Socket::Tcp(socket), Some(peer)))
            }
            Accepting::Unix(listener) => {
                let (socket, _) = listener.accept().await?;
                Ok((Socket::Unix(socket), None))
            }
        }
    }
}

fn is_exhausted(e: &io::Error) -> bool {
    use nix::libc::{EMFILE, ENFILE, ENOBUFS, ENOMEM};
    matches!(e.raw_os_error(), Some(EMFILE | ENFILE | ENOBUFS | ENOMEM))
}
