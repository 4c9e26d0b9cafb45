//! The stream of one connection to a backend, as Pingora reads and writes it.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Instant;

use pingora::protocols::l4::stream::Stream;
use pingora::protocols::l4::virt::{VirtualSockOpt, VirtualSocket};
use pingora::protocols::tls::SslStream;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Sleep, sleep_until};

use super::framing::Framing;
use super::line::{Line, Phase};
use super::pump::Pump;

/// A connection, whoever uses it.
pub(super) struct Link {
    io: Io,
    /// Whether HTTP/2 is spoken on it.
    pub http2: bool,
    /// Whether a request was answered on it.
    pub used: bool,
    /// Made for the first wait and set anew for others: a timer of its own for each would be made and thrown away with
    /// each request.
    timer: Option<Pin<Box<Sleep>>>,
}

pub(super) enum Io {
    Tcp(TcpStream),
    Unix(UnixStream),
    Tls(Box<SslStream<Stream>>),
}

impl Link {
    pub fn new(io: Io, http2: bool) -> Link {
        Link {
            io,
            http2,
            used: false,
            timer: None,
        }
    }

    /// Whether the connection stands and nothing waits to be read, as it is between two requests.
    pub fn is_idle(&mut self) -> bool {
        if self.http2 {
            // The backend has begun with its settings.
            return true;
        }
        let mut byte = [0];
        let mut context = Context::from_waker(Waker::noop());
        let read = self
            .io
            .poll_read(&mut context, &mut ReadBuf::new(&mut byte));
        read.is_pending()
    }

    /// As a stream that many requests share, which each have their own limits.
    ///
    /// Pingora tells such connections apart by their descriptors, and looks whom these belong to before each use. TLS of
    /// ours has none that it could see, so that it gets the end of a pair of sockets.
    pub fn share(self) -> io::Result<Stream> {
        match self.io {
            Io::Tcp(io) => Ok(io.into()),
            Io::Unix(io) => Ok(io.into()),
            Io::Tls(backend) => {
                let (ours, theirs) = UnixStream::pair()?;
                tokio::spawn(relay(ours, backend));
                Ok(theirs.into())
            }
        }
    }

    pub(super) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.io.poll_read(cx, buf)
    }

    /// Ready when it is `deadline`.
    fn poll_deadline(&mut self, cx: &mut Context<'_>, deadline: Instant) -> Poll<()> {
        let deadline = tokio::time::Instant::from_std(deadline);
        let timer = self
            .timer
            .get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        loop {
            // One that is due earlier is left to fire: most waits end before any timer does.
            if timer.is_elapsed() || timer.deadline() > deadline {
                timer.as_mut().reset(deadline);
            }
            ready!(timer.as_mut().poll(cx));
            if timer.deadline() >= deadline {
                return Poll::Ready(());
            }
        }
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").finish_non_exhaustive()
    }
}

impl Io {
    fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self {
            Io::Tcp(io) => Pin::new(io).poll_read(cx, buf),
            Io::Unix(io) => Pin::new(io).poll_read(cx, buf),
            Io::Tls(io) => Pin::new(io).poll_read(cx, buf),
        }
    }

    /// Reads at most so many bytes, and leaves the memory for more untouched: not even zeros are written there, which
    /// would cost as much as all else of a large answer.
    fn poll_read_piece(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
        most: usize,
    ) -> Poll<io::Result<()>> {
        let most = most as u64;
        match self {
            Io::Tcp(io) => Pin::new(&mut io.take(most)).poll_read(cx, buf),
            Io::Unix(io) => Pin::new(&mut io.take(most)).poll_read(cx, buf),
            Io::Tls(io) => Pin::new(&mut io.take(most)).poll_read(cx, buf),
        }
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self {
            Io::Tcp(io) => Pin::new(io).poll_write(cx, bytes),
            Io::Unix(io) => Pin::new(io).poll_write(cx, bytes),
            Io::Tls(io) => Pin::new(io).poll_write(cx, bytes),
        }
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Io::Tcp(io) => Pin::new(io).poll_flush(cx),
            Io::Unix(io) => Pin::new(io).poll_flush(cx),
            Io::Tls(io) => Pin::new(io).poll_flush(cx),
        }
    }

    fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Io::Tcp(io) => Pin::new(io).poll_shutdown(cx),
            Io::Unix(io) => Pin::new(io).poll_shutdown(cx),
            Io::Tls(io) => Pin::new(io).poll_shutdown(cx),
        }
    }
}

/// Copies both ways until either side ends.
async fn relay(ours: UnixStream, backend: Box<SslStream<Stream>>) {
    let (mut from_ours, mut to_ours) = ours.into_split();
    let (mut from_backend, mut to_backend) = tokio::io::split(backend);
    // However it ends, both sides find their connection closed.
    tokio::select! {
        _ = tokio::io::copy(&mut from_ours, &mut to_backend) => {}
        _ = tokio::io::copy(&mut from_backend, &mut to_ours) => {}
    }
    let _ = to_backend.shutdown().await;
}

/// A connection in use by one request.
#[derive(Debug)]
pub(super) struct Wire {
    /// Until it goes back to the idle ones, or is read by a task of its own.
    link: Option<Link>,
    /// What reads it then.
    pump: Option<Pump>,
    /// Whether some of the answer was read.
    begun: bool,
    line: Arc<Line>,
    wait: Wait,
    /// Whether the answer may be read already.
    gate: Gate,
    framing: Framing,
    /// What was read last is followed by what is no chunk.
    broken: bool,
    /// Whether the request is over and the connection can serve another one.
    free: bool,
}

/// What is waited for, and since when.
#[derive(Debug)]
struct Wait {
    phase: Phase,
    since: Option<Instant>,
}

/// Keeps the answer to an upgrade unread until the request is written to its end.
///
/// Pingora reads and writes at the same time, in random order when it can do both. When it reads the `101` of a quick
/// backend before it has ended the request, whose end is then the next thing that it finds to do, it takes that for
/// the client's end of the tunnel.
#[derive(Debug)]
enum Gate {
    Open,
    /// Until so many flushes: the first is the header's, the second the end's.
    Closed {
        flushes: u8,
        reader: Option<Waker>,
    },
}

impl Wire {
    pub fn new(link: Link, line: Arc<Line>) -> Wire {
        Wire {
            wait: Wait {
                phase: Phase::Header,
                since: None,
            },
            gate: match line.needs.upgrade {
                true => Gate::Closed {
                    flushes: 2,
                    reader: None,
                },
                false => Gate::Open,
            },
            framing: Framing::default(),
            broken: false,
            link: Some(link),
            pump: None,
            begun: false,
            line,
            free: false,
        }
    }

    /// The connection, whoever reads it.
    fn with_link<T>(&mut self, work: impl FnOnce(&mut Link) -> T) -> Option<T> {
        match (&mut self.link, &self.pump) {
            (Some(link), _) => Some(work(link)),
            (None, Some(pump)) => pump.with_link(work),
            (None, None) => None,
        }
    }

    /// There is more of the answer than came at once. If the request says so, it is read whether or not anybody asks for it.
    fn read_ahead(&mut self) {
        let needs = &self.line.needs;
        if let Some(ahead) = &needs.read_ahead
            && !needs.upgrade
            && let Some(link) = self.link.take()
        {
            self.pump = Some(Pump::start(link, ahead));
        }
    }

    fn poll_read_piece(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
        most: usize,
    ) -> Poll<io::Result<()>> {
        match (&mut self.link, &self.pump) {
            (Some(link), _) => link.io.poll_read_piece(cx, buf, most),
            (None, Some(pump)) => pump.poll_read(cx, buf, most),
            (None, None) => Poll::Ready(Ok(())),
        }
    }

    /// Fails the wait when it is too long: for the backend, or for the client, which may owe the rest of its body.
    fn poll_wait(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let phase = self.line.phase();
        if phase != self.wait.phase {
            self.wait = Wait { phase, since: None };
        }
        let now = Instant::now();
        let is_owed = phase != Phase::Tunnel && self.line.is_owed();
        let backend = match is_owed && phase == Phase::Header {
            // It has not heard all of the question.
            true => {
                self.wait.since = None;
                self.line.needs.deadline
            }
            false => {
                let since = *self.wait.since.get_or_insert(now);
                Some(self.line.deadline(phase, since))
            }
        };
        let client = is_owed.then(|| self.line.patience(now)).flatten();
        let Some(deadline) = backend.into_iter().chain(client).min() else {
            return Poll::Pending;
        };
        let passed = self.with_link(|link| link.poll_deadline(cx, deadline));
        ready!(passed.unwrap_or(Poll::Ready(())));
        match client == Some(deadline) {
            true => self.line.give_up(),
            false => self.line.expire(),
        }
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if is_last_look(cx, buf) {
            if let Some(pump) = this.pump.take() {
                this.link = pump.stop();
            }
            this.free = this.link.as_mut().is_some_and(Link::is_idle);
            // To Pingora it is closed: keeping it is ours.
            return Poll::Ready(Ok(()));
        }
        if let Gate::Closed { reader, .. } = &mut this.gate {
            *reader = Some(cx.waker().clone());
            return this.poll_wait(cx);
        }
        if this.line.is_over() {
            this.line.expire();
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        if this.broken {
            return Poll::Ready(Err(no_chunk()));
        }
        if this.begun {
            this.read_ahead();
        }
        let before = buf.filled().len();
        let Some(most) = this.line.next_piece(cx) else {
            // It is not the backend that is waited for.
            this.wait.since = None;
            return Poll::Pending;
        };
        let read = this.poll_read_piece(cx, buf, most);
        this.line.read(buf.filled().len() - before);
        match read {
            Poll::Ready(read) => {
                let count = buf.filled().len() - before;
                this.begun = true;
                if count == most {
                    this.read_ahead();
                }
                let good = this.framing.pass(&buf.filled()[before..]);
                if good < count {
                    buf.set_filled(before + good);
                    this.broken = true;
                    if good == 0 {
                        return Poll::Ready(Err(no_chunk()));
                    }
                }
                // A header is waited for as a whole.
                if this.wait.phase != Phase::Header {
                    this.wait.since = None;
                }
                Poll::Ready(read)
            }
            Poll::Pending => match &this.pump {
                Some(pump) if pump.has_rest() => {
                    this.wait.since = None;
                    Poll::Pending
                }
                _ => this.poll_wait(cx),
            },
        }
    }
}

fn no_chunk() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        "no chunk where one should begin",
    )
}

/// Whether this is how Pingora looks at a connection once the answer has been read to its end and before it is kept: it
/// tries for one byte without waiting for it. The exact version is pinned; that connections are used again at all
/// holds it to this.
fn is_last_look(cx: &Context<'_>, buf: &ReadBuf<'_>) -> bool {
    buf.capacity() == 1 && cx.waker().data().is_null()
}

impl AsyncWrite for Wire {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let Some(written) = this.with_link(|link| link.io.poll_write(cx, bytes)) else {
            return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
        };
        match written.is_ready() {
            true => this.wait.since = None,
            false => this.line.pause(),
        }
        written
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let Some(flushed) = this.with_link(|link| link.io.poll_flush(cx)) else {
            return Poll::Ready(Ok(()));
        };
        ready!(flushed)?;
        if let Gate::Closed { flushes, reader } = &mut this.gate {
            *flushes -= 1;
            if *flushes == 0 {
                let reader = reader.take();
                this.gate = Gate::Open;
                reader.inspect(Waker::wake_by_ref);
            }
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let down = this.with_link(|link| link.io.poll_shutdown(cx));
        down.unwrap_or(Poll::Ready(Ok(())))
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        if self.free
            && let Some(mut link) = self.link.take()
        {
            link.used = true;
            self.line.dialer.stock.keep(link);
        }
    }
}

impl VirtualSocket for Wire {
    /// Those that Pingora asks for are set already.
    fn set_socket_option(&self, _option: VirtualSockOpt) -> io::Result<()> {
        Ok(())
    }
}
