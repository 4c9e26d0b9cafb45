//! The gate between an HTTP/1 connection and Pingora's engine.
//!
//! Inwards it lets one request pass and no byte more. Where a body ends is decided here, by the same rules that read
//! its head; what a client sends after it waits for the next request. An engine that read on its own would be a second
//! opinion on where requests begin, which is how they are smuggled.
//!
//! Outwards it is shut until the phases have admitted the request. The engine refuses what it cannot read before any
//! phase has heard of it: with an answer of its own, and no word to the access log. Nothing of that passes; when the
//! engine lets go of the connection, the stream comes back, and whoever [refuses](Refuse) says with what answer.

use std::fmt;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Buf, Bytes, BytesMut};
use parking_lot::Mutex;
use pingora::protocols::{IO, Shutdown};
use pingora_timeout::timeout;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::sync::watch;
use tokio::time::{Instant, Sleep, sleep_until};

use super::crowd::Full;
use super::encrypted::EncryptedStream;
use super::stream::{ClientStream, Connection, Stage};
use super::tunnel::Tunnel;
use crate::http::chunked::Chunked;
use crate::http::head::{Fault, Framing};
use crate::http::owed::{Owed, Terms};

/// How much of a request line is kept for the log. No more than most need: idle connections have the room too.
const KEPT: usize = 128;
/// How much is read of what a client sends before its last request is answered.
const AHEAD: usize = 1024;
/// How long a client that has its last answer may go on sending (nginx: `lingering_time`). A connection that is closed with
/// input unread is reset, which can take the answer away from the client.
const LINGER: Duration = Duration::from_secs(30);
/// How long it may be silent meanwhile, or all that a client has that was refused (nginx: `lingering_timeout`).
const LINGER_SILENT: Duration = Duration::from_secs(5);
/// All that a client has that took too long before.
const LINGER_OVERDUE: Duration = Duration::from_secs(1);
/// A client that ends its side so soon after its request has nothing more to ask, and waits for the answer; one that ends it
/// later does not wait any more. TCP has the same sign for both.
const HALF_CLOSE: Duration = Duration::from_millis(500);

/// Who answers for heads that no request came of.
pub trait Refuse: Send + Sync {
    /// The whole answer, empty where there is nobody to tell; and the place to log it.
    fn refuse(&self, refused: &Refused<'_>) -> Bytes;
}

/// A head that no request came of.
#[derive(Debug)]
pub struct Refused<'a> {
    pub connection: &'a Arc<Connection>,
    pub cause: Cause,
    /// The request line as it came, or the beginning of a long one; empty where it is not known.
    pub line: &'a [u8],
    /// Bytes of the head, as far as they are known.
    pub length: u64,
}

/// Why no request came of a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// It is not one that weir takes.
    Refused(Fault),
    /// The client sent the rest of it too late.
    TimedOut,
    /// The client went away in its middle.
    Closed,
    /// There is no place for the connection, and nobody has looked at what it brings.
    Full(Full),
}

/// What HTTP/1 is spoken on.
pub(super) trait Transport: IO + 'static {
    /// The socket to wait for when nothing is to be read; `None` where decrypted bytes wait already.
    fn idle_socket(&self) -> Option<&ClientStream>;
}

impl Transport for ClientStream {
    fn idle_socket(&self) -> Option<&ClientStream> {
        Some(self)
    }
}

impl Transport for EncryptedStream {
    fn idle_socket(&self) -> Option<&ClientStream> {
        let stream = self.get_ref();
        (stream.ssl().pending() == 0).then(|| stream.get_ref())
    }
}

/// See the module's description.
pub(super) struct Gate<S: Transport> {
    /// There until the gate is dropped.
    held: Option<Held<S>>,
    back: Back<S>,
}

/// Where that is found again which the engine let go of without a request.
pub(super) type Back<S> = Arc<Mutex<Option<Box<Held<S>>>>>;

/// What a gate stands in front of.
pub(super) struct Held<S> {
    stream: S,
    connection: Arc<Connection>,
    head: Kept,
    body: Body,
    /// How long the client may take with the body.
    terms: Terms,
    /// While more of the body is waited for.
    due: Option<Box<Due>>,
    end: End,
    /// What has been read beyond the present request.
    ahead: BytesMut,
    /// Tells when tunnels are to close.
    tunnels: Arc<watch::Sender<bool>>,
    /// Once it became a WebSocket.
    tunnel: Option<Box<Tunnel>>,
}

/// A body that is waited for.
struct Due {
    owed: Owed,
    /// Set to no later than when the client runs out of time.
    timer: Pin<Box<Sleep>>,
}

/// How the two directions of the connection are coming to their end.
#[derive(Default)]
struct End {
    /// Since when nothing but the client's leave is waited for.
    idle_since: Option<Instant>,
    /// The client has said that it sends nothing more, and waits.
    half_closed: bool,
    /// The client took too long with a body.
    overdue: bool,
    /// The engine has written all it wants to, and said so.
    said: bool,
}

/// What is known of the head of the present request.
struct Kept {
    /// The beginning of its first line.
    line: [u8; KEPT],
    line_length: usize,
    length: u64,
}

/// What is still to come of the present request.
enum Body {
    Length(u64),
    /// Boxed: every connection would have the room for it.
    Chunked(Box<Chunked>),
    Over,
}

impl<S: Transport> Gate<S> {
    /// `terms` are for bodies; `tunnels` turns true when tunnels are to close.
    pub(super) fn new(
        stream: S,
        connection: Arc<Connection>,
        terms: Terms,
        tunnels: Arc<watch::Sender<bool>>,
    ) -> Box<Gate<S>> {
        Box::new(Gate {
            held: Some(Held {
                stream,
                connection,
                head: Kept::new(),
                body: Body::Over,
                terms,
                due: None,
                end: End::default(),
                ahead: BytesMut::new(),
                tunnels,
                tunnel: None,
            }),
            back: Back::default(),
        })
    }

    pub(super) fn back(&self) -> Back<S> {
        self.back.clone()
    }

    /// Shuts the gate for the next request, whose head this is; `ahead` came along with it.
    pub(super) fn begin(&mut self, head: &[u8], framing: Framing, ahead: BytesMut) {
        let held = self.held_mut();
        held.connection.set_stage(Stage::Unknown);
        held.connection.requests.fetch_add(1, Ordering::Relaxed);
        held.head.keep(head);
        held.body = match framing {
            Framing::Length(0) => Body::Over,
            Framing::Length(length) => Body::Length(length),
            Framing::Chunked => Body::Chunked(Box::default()),
        };
        held.ahead = ahead;
        held.end = End::default();
    }

    /// What came after the last request; `None` when that has not come to its end.
    pub(super) fn take_ahead(&mut self) -> Option<BytesMut> {
        let held = self.held_mut();
        match held.body {
            Body::Over => Some(std::mem::take(&mut held.ahead)),
            Body::Length(_) | Body::Chunked(_) => None,
        }
    }

    /// The stream itself, between requests.
    pub(super) fn stream_mut(&mut self) -> &mut S {
        &mut self.held_mut().stream
    }

    /// Takes the gate down before a head of which no request came.
    pub(super) fn refuse(mut self, head: &[u8]) -> Box<Held<S>> {
        let mut held = self.held.take().expect("only `drop` takes it as well");
        held.head.keep(head);
        Box::new(held)
    }

    fn held(&self) -> &Held<S> {
        self.held.as_ref().expect("only `drop` takes it")
    }

    fn held_mut(&mut self) -> &mut Held<S> {
        self.held.as_mut().expect("only `drop` takes it")
    }
}

impl<S: Transport> Drop for Gate<S> {
    fn drop(&mut self) {
        if let Some(held) = self.held.take()
            && (held.is_unanswered() || held.may_hear_more())
        {
            *self.back.lock() = Some(Box::new(held));
        }
    }
}

impl<S: Transport> Held<S> {
    /// Nobody has understood the request.
    pub(super) fn is_unanswered(&self) -> bool {
        !self.connection.is_admitted()
    }

    /// The answer is complete, and the client may not be aware of it yet: it is still sending.
    fn may_hear_more(&self) -> bool {
        let is_request = self.connection.stage() == Stage::Admitted;
        self.end.said && is_request && !(matches!(self.body, Body::Over) && self.ahead.is_empty())
    }

    /// Hears out a client that has its answer, for as long as is decent.
    pub(super) async fn linger(mut self: Box<Self>) {
        let limit = match self.end.overdue {
            true => LINGER_OVERDUE,
            false => LINGER,
        };
        let _ = timeout(limit, hear_out(&mut self.stream)).await;
    }

    /// Answers the head and ends the connection, in a way that lets the client read the answer.
    pub(super) async fn refuse(mut self: Box<Self>, cause: Cause, refuse: &dyn Refuse) {
        if let Cause::Refused(fault) = cause {
            log::debug!("connection {}: {fault}", self.connection.number);
        }
        let answer = refuse.refuse(&Refused {
            connection: &self.connection,
            cause,
            line: self.head.line(),
            length: self.head.length,
        });
        let _ = timeout(LINGER_SILENT, part_with(&mut self.stream, &answer)).await;
    }

    /// Reads of the body, but nothing beyond its end.
    fn poll_body(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !self.ahead.is_empty() {
            let count = self.ahead.len().min(buf.remaining());
            let count = self.body.take(&self.ahead[..count])?;
            self.hand_out(count, buf);
            return Poll::Ready(Ok(()));
        }
        let start = buf.filled().len();
        let Poll::Ready(read) = Pin::new(&mut self.stream).poll_read(cx, buf) else {
            ready!(self.poll_overdue(cx));
            self.end.overdue = true;
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        };
        read?;
        if let Some(due) = &mut self.due {
            let count = buf.filled().len() - start;
            due.owed.receive(count, || Instant::now().into_std());
        }
        let end = start + self.body.take(&buf.filled()[start..])?;
        self.ahead.extend_from_slice(&buf.filled()[end..]);
        buf.set_filled(end);
        if matches!(self.body, Body::Over) {
            self.due = None;
        }
        Poll::Ready(Ok(()))
    }

    /// Ready when more of the body should have come long ago.
    fn poll_overdue(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let terms = self.terms;
        let now = Instant::now();
        let due = self.due.get_or_insert_with(|| {
            Box::new(Due {
                owed: Owed::new(terms),
                timer: Box::pin(sleep_until(now + terms.silence)),
            })
        });
        let deadline = Instant::from_std(due.owed.wait(now.into_std()));
        loop {
            // It may go off too early, never too late: a client only ever gains time.
            ready!(due.timer.as_mut().poll(cx));
            if Instant::now() >= deadline {
                return Poll::Ready(());
            }
            due.timer.as_mut().reset(deadline);
        }
    }

    /// Watches whether the client goes away, while nothing is to be read.
    fn poll_idle(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let stream = Pin::new(&mut self.stream);
        if !self.ahead.is_empty() || self.end.half_closed {
            // Whoever waits for input wants to see the output gone; a read of the stream would have done that.
            let _ = stream.poll_flush(cx)?;
            return Poll::Pending;
        }
        let mut room = [MaybeUninit::uninit(); AHEAD];
        let mut read = ReadBuf::uninit(&mut room);
        let Poll::Ready(done) = stream.poll_read(cx, &mut read) else {
            self.end.idle_since.get_or_insert_with(Instant::now);
            return Poll::Pending;
        };
        done?;
        if read.filled().is_empty() {
            let since = self.end.idle_since;
            self.end.half_closed = since.is_none_or(|since| since.elapsed() < HALF_CLOSE);
            if !self.end.half_closed {
                return Poll::Ready(Ok(()));
            }
            let _ = Pin::new(&mut self.stream).poll_flush(cx)?;
            return Poll::Pending;
        }
        self.ahead.extend_from_slice(read.filled());
        Poll::Pending
    }

    /// Reads whatever comes, for a connection that has changed to another protocol.
    fn poll_any(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.ahead.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, buf);
        }
        self.hand_out(self.ahead.len().min(buf.remaining()), buf);
        Poll::Ready(Ok(()))
    }

    /// For a connection that has become a WebSocket.
    fn tunnel(&mut self) -> (&mut Tunnel, &mut S) {
        let (tunnels, ahead) = (&self.tunnels, &mut self.ahead);
        let tunnel = self.tunnel.get_or_insert_with(|| {
            let ahead = std::mem::take(ahead);
            Box::new(Tunnel::new(tunnels.subscribe(), ahead))
        });
        (tunnel, &mut self.stream)
    }

    fn hand_out(&mut self, count: usize, buf: &mut ReadBuf<'_>) {
        buf.put_slice(&self.ahead[..count]);
        self.ahead.advance(count);
        if self.ahead.is_empty() {
            // It shares its memory with the head.
            self.ahead = BytesMut::new();
        }
    }
}

/// Ends a connection in a way that lets the client read what it is told last.
pub(super) async fn part_with<S: Transport>(stream: &mut S, answer: &[u8]) {
    // The client may be gone already, or never stop; there is nobody else to tell.
    if stream.write_all(answer).await.is_ok() && AsyncWriteExt::shutdown(stream).await.is_ok() {
        hear_out(stream).await;
    }
}

/// Reads on until the client stops, or is silent for too long.
async fn hear_out<S: Transport>(stream: &mut S) {
    let mut unheard = vec![0; 16 * 1024];
    while let Ok(Ok(1..)) = timeout(LINGER_SILENT, stream.read(&mut unheard)).await {}
}

impl Body {
    /// How many of the bytes that come next belong to it.
    fn take(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Body::Length(left) => {
                let count =
                    usize::try_from(*left).map_or(bytes.len(), |left| left.min(bytes.len()));
                *left -= count as u64;
                if *left == 0 {
                    *self = Body::Over;
                }
                Ok(count)
            }
            Body::Chunked(chunked) => {
                let count = chunked
                    .pass(bytes)
                    .map_err(|fault| io::Error::new(io::ErrorKind::InvalidData, fault))?;
                if chunked.is_over() {
                    *self = Body::Over;
                }
                Ok(count)
            }
            Body::Over => Ok(0),
        }
    }
}

impl Kept {
    fn new() -> Kept {
        Kept {
            line: [0; KEPT],
            line_length: 0,
            length: 0,
        }
    }

    fn keep(&mut self, head: &[u8]) {
        let is_end = |byte: &u8| matches!(byte, b'\r' | b'\n');
        // Empty lines before a request are no part of it (RFC 9112 section 2.2).
        let start = head.iter().position(|byte| !is_end(byte));
        let head_line = &head[start.unwrap_or(head.len())..];
        let head_line = &head_line[..head_line.len().min(KEPT)];
        let end = head_line.iter().position(is_end);
        self.line_length = end.unwrap_or(head_line.len());
        self.line[..self.line_length].copy_from_slice(&head_line[..self.line_length]);
        self.length = head.len() as u64;
    }

    fn line(&self) -> &[u8] {
        &self.line[..self.line_length]
    }
}

impl<S: Transport> AsyncRead for Gate<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let held = self.held_mut();
        match held.connection.stage() {
            Stage::Switched => return held.poll_any(cx, buf),
            Stage::WebSocket => {
                let (tunnel, stream) = held.tunnel();
                return tunnel.poll_read(stream, cx, buf);
            }
            Stage::Unknown | Stage::Admitted => {}
        }
        match held.body {
            Body::Over => held.poll_idle(cx),
            Body::Length(_) | Body::Chunked(_) => held.poll_body(cx, buf),
        }
    }
}

impl<S: Transport> AsyncWrite for Gate<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let held = self.held_mut();
        match held.connection.stage() {
            Stage::Unknown => Poll::Ready(Ok(bytes.len())),
            Stage::Admitted | Stage::Switched => Pin::new(&mut held.stream).poll_write(cx, bytes),
            Stage::WebSocket => {
                let (tunnel, stream) = held.tunnel();
                tunnel.poll_write(stream, cx, bytes)
            }
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(self.stream_mut()).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let held = self.held_mut();
        if let Some(tunnel) = &mut held.tunnel {
            ready!(tunnel.poll_end(&mut held.stream, cx));
        }
        if held.connection.is_admitted() {
            ready!(Pin::new(&mut held.stream).poll_shutdown(cx))?;
            held.end.said = true;
        }
        Poll::Ready(Ok(()))
    }
}

#[async_trait]
impl<S: Transport> Shutdown for Gate<S> {
    async fn shutdown(&mut self) {
        // The client may be gone already; there is nobody to tell.
        let _ = AsyncWriteExt::shutdown(self).await;
    }
}

impl<S: Transport> fmt::Debug for Gate<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.held().stream.fmt(f)
    }
}

ask_beneath!([S: Transport] Gate<S>, |this| this.held().stream);

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::Waker;

    use pingora::http::ResponseHeader;
    use pingora::protocols::Stream;
    use pingora::protocols::http::ServerSession;
    use tokio::io::{DuplexStream, duplex};
    use tokio::task::unconstrained;

    use super::*;

    impl Transport for DuplexStream {
        fn idle_socket(&self) -> Option<&ClientStream> {
            None
        }
    }

    /// Line and length.
    type Refusal = (String, u64);

    /// Answers `no` and remembers what it refused.
    #[derive(Default)]
    struct Refusals(Mutex<Vec<Refusal>>);

    impl Refuse for Refusals {
        fn refuse(&self, refused: &Refused<'_>) -> Bytes {
            assert_eq!(refused.cause, Cause::Closed);
            let line = String::from_utf8_lossy(refused.line).into_owned();
            self.0.lock().push((line, refused.length));
            Bytes::from_static(b"no")
        }
    }

    struct Scene {
        gate: Box<Gate<DuplexStream>>,
        connection: Arc<Connection>,
        client: DuplexStream,
    }

    fn scene(head: &[u8], framing: Framing) -> Scene {
        let (client, stream) = duplex(4096);
        let connection = Arc::<Connection>::default();
        let terms = Terms {
            silence: Duration::from_secs(60),
            rate: 0,
        };
        let mut gate = Gate::new(stream, connection.clone(), terms, Arc::default());
        gate.begin(head, framing, BytesMut::new());
        Scene {
            gate,
            connection,
            client,
        }
    }

    async fn read_to_end(mut client: DuplexStream) -> String {
        let mut text = String::new();
        client.read_to_string(&mut text).await.unwrap();
        text
    }

    /// What comes of it without waiting.
    fn now<T>(future: impl Future<Output = T>) -> Option<T> {
        let mut cx = Context::from_waker(Waker::noop());
        match pin!(unconstrained(future)).poll(&mut cx) {
            Poll::Ready(outcome) => Some(outcome),
            Poll::Pending => None,
        }
    }

    /// What the engine reads until the gate gives nothing more, and what is left for the next request.
    async fn pass(framing: Framing, ahead: &str, pieces: &[&str]) -> io::Result<(String, String)> {
        let mut scene = scene(b"", framing);
        scene.gate.begin(b"", framing, ahead.into());
        let mut text = vec![0; 4096];
        let mut length = 0;
        for piece in pieces.iter().chain(&[""]) {
            scene.client.write_all(piece.as_bytes()).await.unwrap();
            while let Some(read) = now(scene.gate.read(&mut text[length..])) {
                length += read?;
            }
        }
        let left = scene.gate.take_ahead().expect("the body is over");
        let string = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok((string(&text[..length]), string(&left)))
    }

    #[tokio::test]
    async fn what_the_engine_does_not_like_is_refused_in_its_place() {
        let head = b"\r\nGARBAGE\r\n\r\n";
        let Scene { gate, client, .. } = scene(head, Framing::Length(0));
        let back = gate.back();
        let refusals = Refusals::default();
        let serve = async {
            let mut session = ServerSession::new_http1(gate as Stream);
            session.set_pipelined_prefix(head.as_slice().into());
            assert!(session.read_request().await.is_err());
            // the engine's own words about it
            let words = ResponseHeader::build(400, None).unwrap();
            let written = session.write_error_response(words, Bytes::new()).await;
            written.unwrap();
            session.shutdown().await;
            drop(session);
            let held = back.lock().take().expect("it comes back");
            held.refuse(Cause::Closed, &refusals).await;
        };
        let (_, answer) = tokio::join!(serve, read_to_end(client));
        assert_eq!(answer, "no");
        assert_eq!(refusals.0.into_inner(), [("GARBAGE".to_owned(), 13)]);
    }

    #[tokio::test]
    async fn of_a_long_line_the_beginning_is_known() {
        let head = [b"GET /".as_slice(), &[b'x'; 1000]].concat();
        let scene = scene(&head, Framing::Length(0));
        assert_eq!(scene.gate.held().head.line(), &head[..KEPT]);
        assert_eq!(scene.gate.held().head.length, 1005);
    }

    #[tokio::test]
    async fn gate_is_open_for_an_admitted_request() {
        let Scene {
            mut gate,
            connection,
            client,
        } = scene(b"GET / HTTP/1.1\r\n\r\n", Framing::Length(0));
        let back = gate.back();
        connection.admit();
        gate.write_all(b"yes").await.unwrap();
        Shutdown::shutdown(&mut *gate).await;
        drop(gate);
        assert_eq!(read_to_end(client).await, "yes");
        assert!(back.lock().is_none());
    }

    #[tokio::test]
    async fn engine_reads_no_byte_beyond_the_body() {
        for (framing, body) in [
            (Framing::Length(0), ""),
            (Framing::Length(5), "12345"),
            (Framing::Chunked, "1\r\na\r\n0\r\n\r\n"),
        ] {
            let text = format!("{body}GET /next");
            let expected = (body.to_owned(), "GET /next".to_owned());
            assert_eq!(pass(framing, "", &[&text]).await.unwrap(), expected);
            assert_eq!(pass(framing, &text, &[]).await.unwrap(), expected);
            for cut in 1..text.len() {
                let (first, second) = text.split_at(cut);
                let came_along = pass(framing, first, &[second]).await.unwrap();
                assert_eq!(came_along.0, expected.0);
                let pieces = pass(framing, "", &[first, second]).await.unwrap();
                assert_eq!(pieces.0, expected.0);
            }
        }
    }

    #[tokio::test]
    async fn chunks_that_are_none_are_an_error() {
        let error = pass(Framing::Chunked, "", &["1\nx\n"]).await.unwrap_err();
        assert!(error.get_ref().is_some_and(|fault| fault.is::<Fault>()));
    }

    #[tokio::test]
    async fn body_that_has_not_ended_hides_what_comes_next() {
        let mut scene = scene(b"", Framing::Length(3));
        assert!(scene.gate.take_ahead().is_none());
        scene.client.write_all(b"abc").await.unwrap();
        scene.gate.read_exact(&mut [0; 3]).await.unwrap();
        assert!(scene.gate.take_ahead().is_some());
    }

    #[tokio::test]
    async fn everything_passes_once_the_protocol_has_changed() {
        let mut scene = scene(b"", Framing::Length(0));
        scene.client.write_all(b"early").await.unwrap();
        assert!(now(scene.gate.read(&mut [0; 9])).is_none());
        scene.connection.switch(false);
        scene.client.write_all(b"late").await.unwrap();
        let mut text = [0; 9];
        scene.gate.read_exact(&mut text).await.unwrap();
        assert_eq!(&text, b"earlylate");
    }
}
