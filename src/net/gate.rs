//! The gate between an HTTP/1 connection and Pingora's engine.
//!
//! The engine refuses a head that it cannot read before any phase has heard of it: with an answer of its own, and no
//! word to the access log. So nothing that it writes passes until the phases have admitted the request; when it lets
//! go of the connection without that, the stream comes back, and whoever [refuses](Refuse) says with what answer.
//!
//! A good request pays for this with a look at a flag on each read and write, and with the copy of its first bytes,
//! which would be gone with the engine's buffer when they are to be logged.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use pingora::protocols::raw_connect::ProxyDigest;
use pingora::protocols::tls::{SslDigest, SslStream, TlsRef};
use pingora::protocols::{
    ALPN, GetProxyDigest, GetSocketDigest, GetTimingDigest, IO, Peek, Shutdown, SocketDigest, Ssl,
    TimingDigest, UniqueID, UniqueIDType,
};
use pingora_timeout::timeout;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};

use super::stream::{ClientStream, Connection};

/// How much of a head is kept for the log. No more than most request lines need: idle connections have the room too.
const KEPT: usize = 128;
/// How long a refused client may take to read the answer and to stop sending (nginx: `lingering_timeout`). A
/// connection that is closed with input unread is reset, which can take the answer away from the client.
const LINGER: Duration = Duration::from_secs(5);

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
    /// It is not HTTP, or contradicts itself.
    Malformed,
    /// The client sent the rest of it too late.
    TimedOut,
    /// The client went away in its middle.
    Closed,
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

impl Transport for SslStream<ClientStream> {
    fn idle_socket(&self) -> Option<&ClientStream> {
        (self.ssl().pending() == 0).then(|| self.get_ref())
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
    head: Head,
}

/// What is known of the head of the present request.
struct Head {
    /// Its beginning.
    kept: [u8; KEPT],
    /// Whether it was seen from its first byte on.
    line_known: bool,
    length: u64,
    /// What would be the reason if the engine gave up now: that is how its last read went.
    cause: Cause,
}

impl<S: Transport> Gate<S> {
    pub(super) fn new(stream: S, connection: Arc<Connection>) -> Box<Gate<S>> {
        let head = Head {
            kept: [0; KEPT],
            line_known: false,
            length: 0,
            cause: Cause::Malformed,
        };
        Box::new(Gate {
            held: Some(Held {
                stream,
                connection,
                head,
            }),
            back: Back::default(),
        })
    }

    pub(super) fn back(&self) -> Back<S> {
        self.back.clone()
    }

    /// Shuts the gate for the next request, which begins with these bytes; `None` where only the engine has them.
    pub(super) fn next_request(&mut self, bytes: Option<&[u8]>) {
        let held = self.held_mut();
        held.connection.set_admitted(false);
        held.head.begin(bytes);
    }

    /// The stream itself, between requests.
    pub(super) fn stream_mut(&mut self) -> &mut S {
        &mut self.held_mut().stream
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
        if !self.held().connection.is_admitted() {
            *self.back.lock() = self.held.take().map(Box::new);
        }
    }
}

impl<S: Transport> Held<S> {
    /// Answers the head and ends the connection, in a way that lets the client read the answer.
    pub(super) async fn refuse(mut self: Box<Self>, refuse: &dyn Refuse) {
        let answer = refuse.refuse(&Refused {
            connection: &self.connection,
            cause: self.head.cause,
            line: self.head.line(),
            length: self.head.length,
        });
        let stream = &mut self.stream;
        let end = async {
            stream.write_all(&answer).await?;
            AsyncWriteExt::shutdown(stream).await?;
            let mut unheard = vec![0; 16 * 1024];
            while stream.read(&mut unheard).await? > 0 {}
            io::Result::Ok(())
        };
        // The client may be gone already, or never stop; there is nobody else to tell.
        let _ = timeout(LINGER, end).await;
    }
}

impl Head {
    fn begin(&mut self, bytes: Option<&[u8]>) {
        self.length = 0;
        self.line_known = bytes.is_some();
        self.add(bytes.unwrap_or_default());
    }

    fn add(&mut self, bytes: &[u8]) {
        let kept = self.kept_length();
        let room = &mut self.kept[kept..];
        let count = room.len().min(bytes.len());
        room[..count].copy_from_slice(&bytes[..count]);
        self.length += bytes.len() as u64;
        self.cause = Cause::Malformed;
    }

    fn kept_length(&self) -> usize {
        usize::try_from(self.length).map_or(KEPT, |length| length.min(KEPT))
    }

    fn line(&self) -> &[u8] {
        if !self.line_known {
            return &[];
        }
        let is_end = |byte: &u8| matches!(byte, b'\r' | b'\n');
        let kept = &self.kept[..self.kept_length()];
        // Empty lines before a request are no part of it (RFC 9112 section 2.2).
        let start = kept.iter().position(|byte| !is_end(byte));
        let line = &kept[start.unwrap_or(kept.len())..];
        &line[..line.iter().position(is_end).unwrap_or(line.len())]
    }
}

impl<S: Transport> AsyncRead for Gate<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let held = self.held_mut();
        let read = Pin::new(&mut held.stream).poll_read(cx, buf);
        if !held.connection.is_admitted() {
            match &read {
                Poll::Pending => held.head.cause = Cause::TimedOut,
                Poll::Ready(Ok(())) if buf.filled().len() > before => {
                    held.head.add(&buf.filled()[before..]);
                }
                Poll::Ready(_) => held.head.cause = Cause::Closed,
            }
        }
        read
    }
}

impl<S: Transport> AsyncWrite for Gate<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let held = self.held_mut();
        match held.connection.is_admitted() {
            true => Pin::new(&mut held.stream).poll_write(cx, bytes),
            false => Poll::Ready(Ok(bytes.len())),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(self.stream_mut()).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let held = self.held_mut();
        match held.connection.is_admitted() {
            true => Pin::new(&mut held.stream).poll_shutdown(cx),
            false => Poll::Ready(Ok(())),
        }
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

impl<S: Transport> UniqueID for Gate<S> {
    fn id(&self) -> UniqueIDType {
        self.held().stream.id()
    }
}

impl<S: Transport> Ssl for Gate<S> {
    fn get_ssl(&self) -> Option<&TlsRef> {
        self.held().stream.get_ssl()
    }

    fn get_ssl_digest(&self) -> Option<Arc<SslDigest>> {
        self.held().stream.get_ssl_digest()
    }

    fn selected_alpn_proto(&self) -> Option<ALPN> {
        self.held().stream.selected_alpn_proto()
    }
}

#[async_trait]
impl<S: Transport> Peek for Gate<S> {}

impl<S: Transport> GetTimingDigest for Gate<S> {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        self.held().stream.get_timing_digest()
    }
}

impl<S: Transport> GetProxyDigest for Gate<S> {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        self.held().stream.get_proxy_digest()
    }
}

impl<S: Transport> GetSocketDigest for Gate<S> {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        self.held().stream.get_socket_digest()
    }
}

#[cfg(test)]
mod tests {
    use pingora::http::ResponseHeader;
    use pingora::protocols::Stream;
    use pingora::protocols::http::ServerSession;
    use tokio::io::{DuplexStream, duplex};

    use super::*;

    impl Transport for DuplexStream {
        fn idle_socket(&self) -> Option<&ClientStream> {
            None
        }
    }

    /// Cause, line and length.
    type Refusal = (Cause, String, u64);

    /// Answers `no` and remembers what it refused.
    #[derive(Default)]
    struct Refusals(Mutex<Vec<Refusal>>);

    impl Refuse for Refusals {
        fn refuse(&self, refused: &Refused<'_>) -> Bytes {
            let line = String::from_utf8_lossy(refused.line).into_owned();
            self.0.lock().push((refused.cause, line, refused.length));
            Bytes::from_static(b"no")
        }
    }

    struct Scene {
        gate: Box<Gate<DuplexStream>>,
        connection: Arc<Connection>,
        client: DuplexStream,
    }

    fn scene(head: Option<&[u8]>) -> Scene {
        let (client, stream) = duplex(4096);
        let connection = Arc::<Connection>::default();
        let mut gate = Gate::new(stream, connection.clone());
        gate.next_request(head);
        Scene {
            gate,
            connection,
            client,
        }
    }

    /// What becomes of a head that the engine does not like or waits for in vain, and what the client gets.
    async fn refused(scene: Scene, head: &[u8], silence: Duration) -> (String, Vec<Refusal>) {
        let Scene { gate, client, .. } = scene;
        let back = gate.back();
        let refusals = Refusals::default();
        let serve = async {
            let mut session = ServerSession::new_http1(gate as Stream);
            session.set_pipelined_prefix(head.into());
            session.set_keepalive(None);
            session.set_read_timeout(Some(silence));
            assert!(session.read_request().await.is_err());
            // the engine's own words about it
            let words = ResponseHeader::build(400, None).unwrap();
            let written = session.write_error_response(words, Bytes::new()).await;
            written.unwrap();
            session.shutdown().await;
            drop(session);
            let held = back.lock().take().expect("it comes back");
            held.refuse(&refusals).await;
        };
        let (_, answer) = tokio::join!(serve, read_to_end(client));
        (answer, refusals.0.into_inner())
    }

    async fn read_to_end(mut client: DuplexStream) -> String {
        let mut text = String::new();
        client.read_to_string(&mut text).await.unwrap();
        text
    }

    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn head_that_is_no_http_is_refused_in_the_place_of_the_engine() {
        let head = b"\r\nGARBAGE\r\n\r\n";
        let (answer, refusals) = refused(scene(Some(head)), head, LONG).await;
        assert_eq!(answer, "no");
        assert_eq!(refusals, [(Cause::Malformed, "GARBAGE".to_owned(), 13)]);
    }

    #[tokio::test]
    async fn head_that_stops_coming_is_timed_out() {
        let head = b"GET / HTTP/1.1\r\nHo";
        let silence = Duration::from_millis(10);
        let (answer, refusals) = refused(scene(Some(head)), head, silence).await;
        assert_eq!(answer, "no");
        let expected = (Cause::TimedOut, "GET / HTTP/1.1".to_owned(), 18);
        assert_eq!(refusals, [expected]);
    }

    #[tokio::test]
    async fn head_that_breaks_off_was_closed_by_the_client() {
        let head = b"GET / HT";
        let mut scene = scene(Some(head));
        scene.client.write_all(b"TP/1.1\r\nHo").await.unwrap();
        AsyncWriteExt::shutdown(&mut scene.client).await.unwrap();
        let (_, refusals) = refused(scene, head, LONG).await;
        let expected = (Cause::Closed, "GET / HTTP/1.1".to_owned(), 18);
        assert_eq!(refusals, [expected]);
    }

    #[tokio::test]
    async fn line_is_unknown_where_its_beginning_was_not_seen() {
        let mut scene = scene(None);
        scene.client.write_all(b"TP/1.1\r\nHo").await.unwrap();
        AsyncWriteExt::shutdown(&mut scene.client).await.unwrap();
        let (_, refusals) = refused(scene, b"GET / HT", LONG).await;
        assert_eq!(refusals, [(Cause::Closed, String::new(), 10)]);
    }

    #[tokio::test]
    async fn of_a_long_line_the_beginning_is_known() {
        let head = [b"GET /".as_slice(), &[b'x'; 1000]].concat();
        let scene = scene(Some(&head));
        assert_eq!(scene.gate.held().head.line(), &head[..KEPT]);
        assert_eq!(scene.gate.held().head.length, 1005);
    }

    #[tokio::test]
    async fn gate_is_open_for_an_admitted_request() {
        let Scene {
            mut gate,
            connection,
            client,
        } = scene(Some(b"GET / HTTP/1.1\r\n\r\n"));
        let back = gate.back();
        connection.admit();
        gate.write_all(b"yes").await.unwrap();
        Shutdown::shutdown(&mut *gate).await;
        drop(gate);
        assert_eq!(read_to_end(client).await, "yes");
        assert!(back.lock().is_none());
    }
}
