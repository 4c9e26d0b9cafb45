//! The byte stream of one client connection, as Pingora's HTTP engine reads and writes it.
//!
//! Nothing is buffered while a connection is idle. Reads go from the socket straight into the parser's buffer. Small
//! writes (a header, chunk framing) are held back until a body or a flush follows, so that an answer leaves in one
//! segment and one system call; the buffer is given back as soon as it is empty.
//!
//! Files go from the kernel's memory to the socket without passing through ours (`sendfile`). The engine, which frames
//! and counts what it writes, knows bytes only. So it is given bytes that [stand in](stand_in) for those of the file that
//! was [lent](Connection::lend) to the connection; they are recognised here by where they are, and never looked at.

use std::fs::File;
use std::io::{self, IoSlice};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::pin::Pin;
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::Instant;

use async_trait::async_trait;
use bytes::{Buf, Bytes, BytesMut};
use http::HeaderValue;
use parking_lot::Mutex;
use pingora::http::ResponseHeader;
use pingora::protocols::raw_connect::ProxyDigest;
use pingora::protocols::{
    ALPN, GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl,
    TimingDigest, UniqueID, UniqueIDType,
};
use rustix::fs::sendfile;
use rustix::net::{SendFlags, send};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, Interest, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

use super::crowd::Crowd;
use crate::http::head::Limits;
use crate::http::outlet::Outlet;
use crate::http::owed::Terms;
use crate::tls::Shown;

/// Writes below this size wait for what follows; larger ones leave together with what waits, uncopied.
const SMALL_WRITE: usize = 4096;

/// How many answers a client of HTTP/2 may wait for until each of them is read ahead less. Of what is large, and makes a
/// difference, a browser seldom has as many.
const CROWD: usize = 16;

/// The most that one piece of [`stand_in`] stands for.
pub const MOST_STAND_IN: usize = 256 * 1024;

/// What [`stand_in`] gives away. No byte of it is ever read or written, so that it takes no memory.
static NOTHING: [u8; MOST_STAND_IN] = [0; MOST_STAND_IN];

/// Bytes to write in the place of the next `length` ones, at most [`MOST_STAND_IN`], of the file that was lent to a
/// connection. Not for any other: there they would be sent as they are.
pub fn stand_in(length: usize) -> Bytes {
    Bytes::from_static(&NOTHING[..length.min(MOST_STAND_IN)])
}

fn stands_in(bytes: &[u8]) -> bool {
    NOTHING.as_ptr_range().contains(&bytes.as_ptr())
}

/// Facts that all requests of one connection share.
#[derive(Debug, Default)]
pub struct Connection {
    /// Number of the connection within this process, from 1 (nginx's `$connection`).
    pub number: u64,
    /// The other end; `None` on a unix socket.
    pub peer: Option<SocketAddr>,
    /// Our end; `None` on a unix socket.
    pub local: Option<SocketAddr>,
    /// Whether a proxy in front has named both ends, by the PROXY protocol.
    pub by_proxy: bool,
    /// When it was accepted.
    pub since: Option<Instant>,
    /// How many requests have come on it so far.
    pub requests: AtomicU64,
    /// Name of the listener in the configuration.
    pub listener: Arc<str>,
    /// What the TLS handshake agreed on; `None` on a plain connection.
    pub tls: Option<TlsFacts>,
    /// The `X-Forwarded-For` of requests from here when nobody stands in between.
    pub forwarded_for: Option<HeaderValue>,
    /// How large the head of a request may be, where nobody has looked yet: on HTTP/2, which the engine reads.
    pub limits: Option<Limits>,
    /// How long the client may take with bodies, where nobody watches it yet: on HTTP/2.
    pub terms: Option<Terms>,
    /// Whether fields may have underscores in their names.
    pub underscores: bool,
    /// How many requests have no answer yet, or not all of it, on HTTP/2.
    pub(crate) open: AtomicUsize,
    /// How many answers the client does not take as fast as they come, on HTTP/2.
    pub(crate) held_up: AtomicUsize,
    /// Where answers go. With HTTP/2, each has its own as well.
    pub outlet: Arc<Outlet>,
    /// The [`Stage`] of the present request.
    pub(crate) stage: AtomicU8,
    /// See [`Connection::lend`].
    pub(crate) lent: Mutex<Option<Lent>>,
    /// For [`Connection::tcp_info`].
    pub(crate) socket: OnceLock<Arc<SocketDigest>>,
}

/// What the kernel knows of the way to a client.
#[derive(Clone, Copy, Debug)]
pub struct TcpInfo {
    /// Round-trip time in microseconds, smoothed.
    pub rtt: u32,
    /// How much it varies.
    pub rttvar: u32,
    /// Segments that may be under way.
    pub snd_cwnd: u32,
    /// Bytes that the client may send.
    pub rcv_space: u32,
}

/// A file, and where the bytes of it that are to be sent next begin.
#[derive(Debug)]
pub(crate) struct Lent {
    file: Arc<File>,
    at: u64,
}

/// How far a request over HTTP/1 has come, as the gate of its connection must know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Nobody has understood it yet.
    Unknown,
    Admitted,
    /// It became a tunnel for what is no HTTP.
    Switched,
    /// From the head of its answer on, both sides send frames.
    WebSocket,
}

#[derive(Debug, Default)]
pub struct TlsFacts {
    /// Such as `TLSv1.3`.
    pub version: &'static str,
    pub cipher: &'static str,
    /// The group of the key exchange, such as `X25519`.
    pub group: &'static str,
    /// The protocol that was agreed on by ALPN; empty where the client offered none.
    pub alpn: &'static str,
    /// Whether a session was resumed.
    pub resumed: bool,
    /// Server name that the client asked for, lower case; empty when it named none.
    pub server_name: String,
    /// What the client has shown of itself, where it was asked.
    pub client: Option<Shown>,
}

impl Connection {
    /// Says that the present request was understood and what is written from now on is its answer. Whoever serves a
    /// request that came over HTTP/1 says this first; until then, nothing that is written reaches the client.
    pub fn admit(&self) {
        self.set_stage(Stage::Admitted);
    }

    /// Says that the connection is a tunnel from now on (RFC 9110 section 7.8), perhaps for a WebSocket: what the client
    /// sends is no request any more. Said before the client hears of it: what is written next is the answer to that.
    pub fn switch(&self, websocket: bool) {
        self.set_stage(match websocket {
            true => Stage::WebSocket,
            false => Stage::Switched,
        });
    }

    pub(super) fn set_stage(&self, stage: Stage) {
        // One task has the connection; with HTTP/2, where several have it, nobody asks.
        self.stage.store(stage as u8, Ordering::Relaxed);
    }

    pub(super) fn stage(&self) -> Stage {
        match self.stage.load(Ordering::Relaxed) {
            0 => Stage::Unknown,
            1 => Stage::Admitted,
            2 => Stage::Switched,
            _ => Stage::WebSocket,
        }
    }

    pub(super) fn is_admitted(&self) -> bool {
        self.stage() != Stage::Unknown
    }

    /// Whether an answer waits for the client. Only known on HTTP/2.
    pub fn is_held_up(&self) -> bool {
        self.held_up.load(Ordering::Relaxed) > 0
    }

    /// Whether the client has asked for so much at a time that each answer may hold little. Only known on HTTP/2.
    pub fn is_crowded(&self) -> bool {
        self.open.load(Ordering::Relaxed) > CROWD
    }

    /// Says what the bytes of [`stand_in`] stand for that are written next: those of `file` from `at` on. Only where the
    /// engine writes to the socket itself: on a plain connection that speaks HTTP/1.
    pub fn lend(&self, file: Arc<File>, at: u64) {
        *self.lent.lock() = Some(Lent { file, at });
    }

    /// Ends that.
    pub fn take_back(&self) {
        *self.lent.lock() = None;
    }

    /// The address of the other end, IPv4 as such even on a socket for both.
    pub fn peer_ip(&self) -> Option<IpAddr> {
        self.peer.map(|peer| peer.ip().to_canonical())
    }

    /// What the kernel knows of the way to the client; `None` on a unix socket. A system call.
    pub fn tcp_info(&self) -> Option<TcpInfo> {
        let info = self.socket.get()?.tcp_info()?;
        Some(TcpInfo {
            rtt: info.tcpi_rtt,
            rttvar: info.tcpi_rttvar,
            snd_cwnd: info.tcpi_snd_cwnd,
            rcv_space: info.tcpi_rcv_space,
        })
    }

    /// The connection that a session's digest belongs to.
    pub fn of(digest: Option<&pingora::protocols::Digest>) -> Option<Arc<Connection>> {
        Connection::among(digest?.proxy_digest.as_ref()?).cloned()
    }

    fn among(facts: &ProxyDigest) -> Option<&Arc<Connection>> {
        facts.user_data.as_ref()?.downcast_ref()
    }
}

#[derive(Debug)]
pub(super) enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// See the module's description.
#[derive(Debug)]
pub struct ClientStream {
    socket: Socket,
    /// Bytes that were read to tell the protocol; they are read again first.
    unread: BytesMut,
    /// Bytes accepted for writing that the socket does not have yet.
    unsent: BytesMut,
    /// Whether the client opened with HTTP/2's preface on a plain listener.
    prior_knowledge: bool,
    /// Whether the socket takes nothing for now.
    blocked: bool,
    digest: Arc<SocketDigest>,
    /// Pingora's slot for what an application knows of a connection: the only one that reaches HTTP/2 requests.
    facts: OnceLock<Arc<ProxyDigest>>,
    _slot: Slot,
}

/// How many connections of one socket are open; they count for their service as well.
#[derive(Debug)]
pub struct Open {
    here: AtomicUsize,
    crowd: Arc<Crowd>,
}

impl Open {
    pub fn new(crowd: Arc<Crowd>) -> Arc<Open> {
        Arc::new(Open {
            here: AtomicUsize::new(0),
            crowd,
        })
    }

    pub fn count(&self) -> usize {
        self.here.load(Ordering::Relaxed)
    }
}

/// One connection that is open, counted until it is dropped.
#[derive(Debug)]
pub(super) struct Slot(Arc<Open>);

impl Slot {
    pub(super) fn take(open: &Arc<Open>) -> Slot {
        open.here.fetch_add(1, Ordering::Relaxed);
        open.crowd.come();
        Slot(open.clone())
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.here.fetch_sub(1, Ordering::Relaxed);
        self.0.crowd.go();
    }
}

impl ClientStream {
    pub(super) fn new(socket: Socket, peer: Option<SocketAddr>, slot: Slot) -> ClientStream {
        let digest = SocketDigest::from_raw_fd(socket.descriptor());
        // Known from accept(2): saves a getpeername(2) for each request.
        let _ = digest.peer_addr.set(peer.map(Into::into));
        ClientStream {
            socket,
            unread: BytesMut::new(),
            unsent: BytesMut::new(),
            prior_knowledge: false,
            blocked: false,
            digest: Arc::new(digest),
            facts: OnceLock::new(),
            _slot: slot,
        }
    }

    pub(super) fn identify(&self, connection: Arc<Connection>) {
        let _ = connection.socket.set(self.digest.clone());
        let no_response = Box::new(
            ResponseHeader::build_no_case(http::StatusCode::OK, Some(0)).expect("200 is a status"),
        );
        let facts = ProxyDigest::new(no_response, Some(Box::new(connection)));
        let _ = self.facts.set(Arc::new(facts));
    }

    pub(super) fn set_prior_knowledge(&mut self) {
        self.prior_knowledge = true;
    }

    /// Gives bytes back, to be read again.
    pub(super) fn unread(&mut self, bytes: BytesMut) {
        self.unread = bytes;
    }

    /// Ready when there is something to read, or the end.
    pub(super) fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.unread.is_empty() {
            return Poll::Ready(Ok(()));
        }
        match &self.socket {
            Socket::Tcp(socket) => socket.poll_read_ready(cx),
            Socket::Unix(socket) => socket.poll_read_ready(cx),
        }
    }

    /// Says it to whoever fetches the answer when the socket takes nothing, and when it does again.
    fn tell<T>(&mut self, written: Poll<T>) -> Poll<T> {
        if self.blocked == written.is_pending() {
            return written;
        }
        self.blocked = written.is_pending();
        if let Some(connection) = self.facts.get().and_then(|facts| Connection::among(facts)) {
            match self.blocked {
                true => connection.outlet.block(),
                false => connection.outlet.open(),
            }
        }
        written
    }

    /// Sends as much as the socket takes now of what waits.
    fn push_out(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if !self.unsent.is_empty()
            && let Poll::Ready(sent) = self.poll_send(cx, &[])
        {
            // A write that was given up while it waited says nothing any more.
            let _ = self.tell(Poll::Ready(()));
            sent?;
        }
        Ok(())
    }

    /// Writes what waits, then `more`; ready with how much of `more` the socket took, once nothing waits.
    fn poll_send(&mut self, cx: &mut Context<'_>, more: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let waiting = self.unsent.len();
            let parts = [IoSlice::new(&self.unsent), IoSlice::new(more)];
            let parts = if waiting == 0 {
                &parts[1..]
            } else {
                &parts[..]
            };
            let sent = ready!(self.socket.poll_write_vectored(cx, parts))?;
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            if sent >= waiting {
                self.unsent = BytesMut::new();
                if sent > waiting || more.is_empty() {
                    return Poll::Ready(Ok(sent - waiting));
                }
            } else {
                self.unsent.advance(sent);
            }
        }
    }

    /// Sends `length` bytes of the file that was lent, or fewer, after what waits.
    fn poll_send_file(&mut self, cx: &mut Context<'_>, length: usize) -> Poll<io::Result<usize>> {
        let connection = self.facts.get().and_then(|facts| Connection::among(facts));
        let mut lent = connection.map(|connection| connection.lent.lock());
        let Some(Some(Lent { file, at })) = lent.as_deref_mut() else {
            return Poll::Ready(Err(io::Error::other("no file was lent")));
        };
        while !self.unsent.is_empty() {
            // A header leaves in one segment with what follows (nginx: `tcp_nopush`).
            let flags = SendFlags::MORE | SendFlags::NOSIGNAL;
            let sent = ready!(
                self.socket
                    .poll_out(cx, |socket| { Ok(send(socket, &self.unsent, flags)?) })
            )?;
            self.unsent.advance(sent);
        }
        self.unsent = BytesMut::new();
        let sent = ready!(self.socket.poll_out(cx, |socket| {
            Ok(sendfile(socket, &**file, Some(&mut *at), length)?)
        }))?;
        match sent {
            // The length was promised already: the client must see that this is not all.
            0 => Poll::Ready(Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the file became shorter while it was sent",
            ))),
            sent => Poll::Ready(Ok(sent)),
        }
    }
}

impl Socket {
    pub(super) fn descriptor(&self) -> RawFd {
        match self {
            Socket::Tcp(socket) => socket.as_raw_fd(),
            Socket::Unix(socket) => socket.as_raw_fd(),
        }
    }

    /// What comes of a system call that sends, once the socket takes something.
    fn poll_out<T>(
        &self,
        cx: &mut Context<'_>,
        mut call: impl FnMut(BorrowedFd<'_>) -> io::Result<T>,
    ) -> Poll<io::Result<T>> {
        loop {
            let tried = match self {
                Socket::Tcp(socket) => {
                    ready!(socket.poll_write_ready(cx))?;
                    socket.try_io(Interest::WRITABLE, || call(socket.as_fd()))
                }
                Socket::Unix(socket) => {
                    ready!(socket.poll_write_ready(cx))?;
                    socket.try_io(Interest::WRITABLE, || call(socket.as_fd()))
                }
            };
            match tried {
                // no longer ready, which the next look tells, and when it is again
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                done => return Poll::Ready(done),
            }
        }
    }

    fn poll_write_vectored(
        &mut self,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self {
            Socket::Tcp(socket) => Pin::new(socket).poll_write_vectored(cx, parts),
            Socket::Unix(socket) => Pin::new(socket).poll_write_vectored(cx, parts),
        }
    }
}

impl AsyncRead for ClientStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.unread.is_empty() {
            let n = self.unread.len().min(buf.remaining());
            buf.put_slice(&self.unread.split_to(n));
            if self.unread.is_empty() {
                self.unread = BytesMut::new();
            }
            return Poll::Ready(Ok(()));
        }
        let read = match &mut self.socket {
            Socket::Tcp(socket) => Pin::new(socket).poll_read(cx, buf),
            Socket::Unix(socket) => Pin::new(socket).poll_read(cx, buf),
        };
        if read.is_pending() {
            // Nothing more is to come for now, in either direction: what is held back must not wait for it.
            self.push_out(cx)?;
        }
        read
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        if stands_in(bytes) {
            // Nobody reads that from elsewhere.
            return self.poll_send_file(cx, bytes.len());
        }
        if self.unsent.len() + bytes.len() <= SMALL_WRITE {
            if self.unsent.capacity() == 0 {
                self.unsent.reserve(SMALL_WRITE);
            }
            self.unsent.extend_from_slice(bytes);
            return Poll::Ready(Ok(bytes.len()));
        }
        let written = self.poll_send(cx, bytes);
        self.tell(written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.unsent.is_empty() {
            return Poll::Ready(Ok(()));
        }
        let flushed = self.poll_send(cx, &[]).map_ok(|_| ());
        self.tell(flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.as_mut().poll_flush(cx))?;
        match &mut self.socket {
            Socket::Tcp(socket) => Pin::new(socket).poll_shutdown(cx),
            Socket::Unix(socket) => Pin::new(socket).poll_shutdown(cx),
        }
    }
}

impl Drop for ClientStream {
    /// The engine drops a connection on which an answer broke off: what there is of it is the client's.
    fn drop(&mut self) {
        if !self.unsent.is_empty() {
            // What the socket does not take now is lost, as it would be with the connection.
            let _ = match &self.socket {
                Socket::Tcp(socket) => socket.try_write(&self.unsent),
                Socket::Unix(socket) => socket.try_write(&self.unsent),
            };
        }
    }
}

#[async_trait]
impl Shutdown for ClientStream {
    async fn shutdown(&mut self) {
        // The client may be gone already; there is nobody to tell.
        let _ = AsyncWriteExt::shutdown(self).await;
    }
}

impl UniqueID for ClientStream {
    fn id(&self) -> UniqueIDType {
        match &self.socket {
            Socket::Tcp(socket) => socket.as_raw_fd(),
            Socket::Unix(socket) => socket.as_raw_fd(),
        }
    }
}

impl Ssl for ClientStream {
    /// How Pingora is told to speak HTTP/2 without TLS: as if ALPN had chosen it.
    fn selected_alpn_proto(&self) -> Option<ALPN> {
        self.prior_knowledge.then_some(ALPN::H2)
    }
}

#[async_trait]
impl Peek for ClientStream {}

impl GetTimingDigest for ClientStream {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        Vec::new()
    }
}

impl GetProxyDigest for ClientStream {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        self.facts.get().cloned()
    }
}

impl GetSocketDigest for ClientStream {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        Some(self.digest.clone())
    }
}
