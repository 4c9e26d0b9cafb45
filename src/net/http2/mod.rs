//! An HTTP/2 connection, from its preface to its end.
//!
//! The h2 crate multiplexes; what a client may do to it is bounded here, beneath it, by a look at the headers of the
//! frames that pass: how long it may take to begin, how long it may be silent, and how many frames it may send that bring
//! no request forward. What h2 bounds itself, such as CONTINUATION frames and resets of requests that nobody has looked at
//! yet, it ends with a GOAWAY, which is seen on its way out, so that both have their line in the log.
//!
//! ```text
//!  mod.rs          the connection: requests in, its deadlines, its end
//!  session.rs      one request, as Pingora's engine sees it
//!  websocket.rs    the request for a WebSocket, as what it would be on HTTP/1.1
//!  stalled.rs      answers that clients do not take, and which of them are given up
//! ```

use std::fmt;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Buf, Bytes, BytesMut};
use h2::server::{Builder, SendResponse};
use h2::{Reason, RecvStream};
use http::Request;
use pingora::apps::HttpServerApp;
use pingora::protocols::http::ServerSession;
use pingora::protocols::{Digest, IO, Shutdown};
use pingora::server::ShutdownWatch;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

use super::bounds::{Bounds, MOST_STREAMS};
use super::connection::{Patience, Shared};
use super::gate::Transport;
use super::stream::Connection;
use crate::http::frames::{Allowance, Frame, Frames, Kind, PREFACE};
use session::{Common, Session};

mod session;
mod stalled;
mod websocket;

pub use stalled::Stalled;

/// How long a client has, after a GOAWAY, to answer it or to end its last requests' silence.
const LINGER: Duration = Duration::from_secs(2);
/// How many bytes of an answer are framed ahead of a client that does not take them: one frame (RFC 9113 section 4.2).
/// Beyond that, the backend waits.
const SEND_BUFFER: usize = 16 * 1024;
/// How many bytes of bodies that nobody takes a connection may bring: those of four streams, each of which may bring 64 KiB
/// (RFC 9113 section 6.9.2). With no more than that one upload to a slow backend would hold up all others.
const RECEIVE_BUFFER: u32 = 256 * 1024;
/// The error code of a GOAWAY to clients that go too far (RFC 9113 section 7).
const ENHANCE_YOUR_CALM: [u8; 4] = [0, 0, 0, 0xb];
/// How many unfinished requests are told apart; the engine takes no more at a time.
const MOST_UNFINISHED: usize = MOST_STREAMS as usize;

/// Reads the preface; with what came behind it. `None`: it was another one, too late, or the client went away.
pub(super) async fn read_preface<S: Transport>(
    stream: &mut S,
    mut bytes: BytesMut,
    limit: Duration,
    patience: &mut Patience,
) -> Option<BytesMut> {
    let deadline = Instant::now() + limit;
    while bytes.len() < PREFACE.len() && PREFACE.starts_with(&bytes) {
        let read = patience.until(deadline, stream.read_buf(&mut bytes)).await;
        if read?.ok()? == 0 {
            return None;
        }
    }
    if !bytes.starts_with(PREFACE) {
        return None;
    }
    bytes.advance(PREFACE.len());
    Some(bytes)
}

/// Serves a connection whose preface was [read](read_preface) until it ends; `ahead` came behind the preface.
pub(super) async fn serve<S: Transport, A: HttpServerApp + Send + Sync + 'static>(
    shared: &Shared<A>,
    stream: S,
    ahead: BytesMut,
    connection: Arc<Connection>,
    bounds: &Bounds,
    drain: &mut ShutdownWatch,
) {
    let traffic = Arc::new(Traffic::new(connection.clone()));
    let name = name(&connection);
    let guard = Guard::new(
        stream,
        ahead,
        connection.clone(),
        bounds.header,
        traffic.clone(),
    );
    let common = Arc::new(Common {
        connection,
        digest: digest(&guard),
        stalled: shared.stalled.clone(),
        most_stalled: bounds.stalled,
        traffic: traffic.clone(),
        tunnels: shared.tunnels.clone(),
    });
    let Ok(mut engine) = options(bounds).handshake(guard).await else {
        return;
    };
    let mut draining = *drain.borrow();
    let mut told = false;
    let mut wake = pin!(sleep(bounds.idle));
    loop {
        // Not only a drain has the engine say goodbye, but silence as well.
        if draining && !std::mem::replace(&mut told, true) {
            engine.graceful_shutdown();
            wake.as_mut().reset(Instant::now() + LINGER);
        }
        tokio::select! {
            biased;
            accepted = engine.accept() => match accepted {
                Some(Ok((request, respond))) => {
                    let watch = drain.clone();
                    start(shared, request, respond, common.clone(), watch);
                }
                Some(Err(e)) => return log::debug!("{name}: {e}"),
                None => return,
            },
            _ = drain.changed(), if !draining => draining = true,
            () = &mut wake => match traffic.look(bounds.idle, draining) {
                Look::Again(instant) => wake.as_mut().reset(instant),
                // It was told, and says nothing.
                Look::Idle if draining => return,
                Look::Idle => draining = true,
                Look::Stalled => {
                    return log::info!("{name}: silent in the middle of a request, closed");
                }
            },
        }
    }
}

/// Has a request answered, beside the others.
fn start<A: HttpServerApp + Send + Sync + 'static>(
    shared: &Shared<A>,
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    common: Arc<Common>,
    drain: ShutdownWatch,
) {
    if common.stalled.refuses(common.connection.number) {
        return respond.send_reset(Reason::REFUSED_STREAM);
    }
    let open = OpenRequest::new(&common.connection);
    common.connection.requests.fetch_add(1, Ordering::Relaxed);
    let session = Session::new(request, respond, common);
    let session = ServerSession::new_custom(Box::new(session));
    let app = shared.app.clone();
    pingora_runtime::current_handle().spawn(async move {
        let _open = open;
        app.process_new_http(session, &drain).await;
    });
}

fn digest(stream: &impl IO) -> Digest {
    Digest {
        ssl_digest: stream.get_ssl_digest(),
        timing_digest: stream.get_timing_digest(),
        proxy_digest: stream.get_proxy_digest(),
        socket_digest: stream.get_socket_digest(),
    }
}

fn options(bounds: &Bounds) -> Builder {
    let mut options = Builder::new();
    options.max_concurrent_streams(bounds.streams);
    options.max_send_buffer_size(SEND_BUFFER);
    options.initial_connection_window_size(RECEIVE_BUFFER);
    options.enable_connect_protocol();
    // Fields count for more here than their bytes (RFC 9113 section 6.5.2). Up to twice the limits they are for the
    // phases to refuse, which tell the log; beyond that the engine does it.
    let fields = bounds.head.fields.saturating_mul(32);
    let list = bounds.head.head.saturating_mul(2).saturating_add(fields);
    options.max_header_list_size(u32::try_from(list).unwrap_or(u32::MAX));
    options
}

/// What happens on a connection, as far as its end depends on it.
#[derive(Debug)]
struct Traffic {
    connection: Arc<Connection>,
    opened: Instant,
    /// When bytes last passed that count, in milliseconds since then.
    last: AtomicU64,
    /// Requests that have not come to their end.
    unfinished: AtomicUsize,
    /// Those among them that are to be WebSockets: they have time.
    tunnels: AtomicUsize,
}

/// What a look at the traffic says.
enum Look {
    /// It goes on; to be looked at again then.
    Again(Instant),
    /// Nothing is under way, for long enough.
    Idle,
    /// The client owes the rest of a request, and says nothing for too long.
    Stalled,
}

impl Traffic {
    fn new(connection: Arc<Connection>) -> Traffic {
        Traffic {
            connection,
            opened: Instant::now(),
            last: AtomicU64::new(0),
            unfinished: AtomicUsize::new(0),
            tunnels: AtomicUsize::new(0),
        }
    }

    /// Something has passed. While no request is open only what is part of one counts (`of_message`): a client that sends
    /// PING frames, or priorities of streams that are none, does not keep a connection for ever.
    fn pass(&self, of_message: bool, now: Instant) {
        if !of_message && !self.is_open() {
            return;
        }
        let since = now.duration_since(self.opened).as_millis();
        let since = u64::try_from(since).unwrap_or(u64::MAX);
        self.last.store(since, Ordering::Relaxed);
    }

    fn is_open(&self) -> bool {
        self.connection.open.load(Ordering::Acquire) > 0
    }

    fn look(&self, idle: Duration, draining: bool) -> Look {
        let now = Instant::now();
        let last = self.opened + Duration::from_millis(self.last.load(Ordering::Relaxed));
        let open = self.is_open();
        let unfinished = self.unfinished.load(Ordering::Relaxed);
        if open && unfinished <= self.tunnels.load(Ordering::Relaxed) {
            // It waits for us.
            return Look::Again(now + if draining { LINGER } else { idle });
        }
        let limit = if draining && !open { LINGER } else { idle };
        match last + limit {
            until if until > now => Look::Again(until),
            _ if open => Look::Stalled,
            _ => Look::Idle,
        }
    }
}

/// One request that is open, until it is dropped.
struct OpenRequest(Arc<Connection>);

impl OpenRequest {
    fn new(connection: &Arc<Connection>) -> OpenRequest {
        connection.open.fetch_add(1, Ordering::Relaxed);
        OpenRequest(connection.clone())
    }
}

impl Drop for OpenRequest {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Release);
    }
}

/// What the engine reads from and writes to.
struct Guard<S> {
    stream: S,
    connection: Arc<Connection>,
    traffic: Arc<Traffic>,
    /// What is left of the preface, for the engine to read it once more.
    preface: &'static [u8],
    /// What came behind it already.
    ahead: BytesMut,
    inward: Frames,
    outward: Frames,
    allowance: Allowance,
    /// Streams on which the client has not said its last word.
    unfinished: Vec<u32>,
    newest: u32,
    /// What must be complete in time.
    awaited: Awaited,
    /// How long that may take.
    limit: Duration,
    deadline: Option<Pin<Box<Sleep>>>,
}

/// What a client may not stop in the middle of. Its bodies have more time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Awaited {
    Nothing,
    /// Its settings, which come first.
    Settings,
    /// The rest of this frame.
    Frame,
    /// The rest of a header, in frames to come.
    Block,
}

impl<S> Guard<S> {
    fn new(
        stream: S,
        ahead: BytesMut,
        connection: Arc<Connection>,
        limit: Duration,
        traffic: Arc<Traffic>,
    ) -> Guard<S> {
        Guard {
            stream,
            connection,
            allowance: Allowance::new(traffic.opened.into_std()),
            traffic,
            preface: PREFACE,
            ahead,
            inward: Frames::default(),
            outward: Frames::default(),
            unfinished: Vec::new(),
            newest: 0,
            awaited: Awaited::Settings,
            limit,
            deadline: None,
        }
    }

    /// Looks at what the client sent.
    fn receive(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        let now = Instant::now();
        let mut of_message = self.inward.is_within_message();
        while let Some(frame) = self.inward.next(&mut bytes) {
            of_message |= frame.is_of_message();
            if self.awaited != Awaited::Block {
                self.deadline = None;
            }
            self.awaited = match frame.kind {
                _ if frame.opens_block() => Awaited::Block,
                Kind::Data => Awaited::Nothing,
                _ => Awaited::Frame,
            };
            self.follow(&frame);
            if !self.allowance.receive(&frame, now.into_std()) {
                let kind = frame.kind.name();
                log::warn!(
                    "{}: a flood of {kind} frames, closed",
                    name(&self.connection)
                );
                return Err(io::Error::other("too many frames"));
            }
        }
        if self.awaited == Awaited::Frame && self.inward.at_boundary() {
            self.awaited = Awaited::Nothing;
        }
        self.traffic.pass(of_message, now);
        Ok(())
    }

    /// Keeps count of the requests that have not come to their end.
    fn follow(&mut self, frame: &Frame) {
        if frame.ends_stream() {
            self.finish(frame.stream);
        } else if frame.kind == Kind::Headers
            && frame.stream > self.newest
            && self.unfinished.len() < MOST_UNFINISHED
        {
            self.unfinished.push(frame.stream);
        }
        if frame.kind == Kind::Headers {
            self.newest = self.newest.max(frame.stream);
        }
        self.count();
    }

    fn finish(&mut self, stream: u32) {
        self.unfinished.retain(|unfinished| *unfinished != stream);
    }

    fn count(&self) {
        let count = self.unfinished.len();
        self.traffic.unfinished.store(count, Ordering::Relaxed);
    }

    /// Looks at what is sent to the client.
    fn send(&mut self, mut bytes: &[u8]) {
        let mut of_message = self.outward.is_within_message();
        while let Some(frame) = self.outward.next(&mut bytes) {
            of_message |= frame.is_of_message();
            self.allowance.send(&frame);
            if frame.ends_stream() && !self.unfinished.is_empty() {
                // Who has the answer need not hear the rest of the request.
                self.finish(frame.stream);
                self.count();
            }
            // The engine writes it in one piece.
            if frame.kind == Kind::Goaway && bytes.get(4..8) == Some(&ENHANCE_YOUR_CALM) {
                let why = bytes.get(8..frame.length).unwrap_or_default();
                let why = String::from_utf8_lossy(why);
                log::warn!("{}: a flood ({why}), closed", name(&self.connection));
            }
        }
        self.traffic.pass(of_message, Instant::now());
    }

    fn poll_input(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>>
    where
        S: AsyncRead + Unpin,
    {
        if self.ahead.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, buf);
        }
        let count = self.ahead.len().min(buf.remaining());
        buf.put_slice(&self.ahead[..count]);
        self.ahead.advance(count);
        if self.ahead.is_empty() {
            self.ahead = BytesMut::new();
        }
        Poll::Ready(Ok(()))
    }

    /// Ready when what is awaited is overdue.
    fn poll_overdue(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.awaited == Awaited::Nothing {
            self.deadline = None;
            return Poll::Pending;
        }
        let limit = self.limit;
        let deadline = self.deadline.get_or_insert_with(|| Box::pin(sleep(limit)));
        deadline.as_mut().poll(cx)
    }
}

fn name(connection: &Connection) -> String {
    let peer = super::connection::name_of(connection.peer);
    format!("connection {} from {peer}", connection.number)
}

impl<S: Transport> AsyncRead for Guard<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.preface.is_empty() {
            let (now, later) = self
                .preface
                .split_at(self.preface.len().min(buf.remaining()));
            buf.put_slice(now);
            self.preface = later;
            return Poll::Ready(Ok(()));
        }
        let start = buf.filled().len();
        match self.poll_input(cx, buf) {
            Poll::Ready(read) => {
                read?;
                Poll::Ready(self.receive(&buf.filled()[start..]))
            }
            Poll::Pending => {
                ready!(self.poll_overdue(cx));
                Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
            }
        }
    }
}

impl<S: Transport> AsyncWrite for Guard<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write(cx, bytes))?;
        self.send(&bytes[..written]);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[async_trait]
impl<S: Transport> Shutdown for Guard<S> {
    async fn shutdown(&mut self) {
        self.stream.shutdown().await;
    }
}

impl<S: Transport> fmt::Debug for Guard<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.stream.fmt(f)
    }
}

ask_beneath!([S: Transport] Guard<S>, |this| this.stream);
