//! Tiny backends: well-behaved ones, and those that break off, lie and hang. They run in the test's process, record
//! what reaches them, and can be killed and revived on the same address.

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, JoinSet};

use super::message::{Framing, Head, Headers};
use super::port::Port;
use super::runtime;
use super::wait::{PATIENCE, eventually};
use super::websocket::{self, Frame};

/// Every origin answers this path by its state of health, whatever else it does.
pub const HEALTH_PATH: &str = "/healthz";

/// Between two bytes of a dribble: often enough for a connection not to seem silent.
const PAUSE: Duration = Duration::from_millis(20);

/// What an origin does with each request.
#[derive(Clone, Debug)]
pub enum Behaviour {
    /// 200 with this body.
    Fixed(String),
    /// As `Fixed`, and keeps no record of it: for millions.
    Quiet(String),
    /// 200 with the request, as it came, for body.
    Echo,
    /// Exactly these bytes, then a close.
    Raw(Vec<u8>),
    /// Exactly these bytes, then a reset.
    Reset(Vec<u8>),
    /// Exactly these bytes once the head of a request is there, whatever is still to come of it, then a close.
    Early(Vec<u8>),
    /// A header that never ends, a byte at a time.
    Dribble,
    /// As `Fixed`, but only once it is released.
    Held(String),
    /// As `Fixed`, so much later.
    Late(String, Duration),
    /// A chunked body in this many parts `part 0\n`, `part 1\n` ...; each waits to be released.
    Steps(usize),
    /// Reads the request and closes without a word.
    Close,
    /// Closes a connection as soon as it stands.
    CloseAtOnce,
    /// As `Fixed`, but a connection that was used before is closed when the next request comes on it.
    Once(String),
    /// A body of so many bytes, made as they go out.
    Big(u64),
    /// Takes a body of any size and answers with its length.
    Sink,
    /// Accepts an upgrade, and then sends each frame back.
    WebSocket,
}

/// A request as it arrived.
#[derive(Clone, Debug)]
pub struct Recorded {
    pub head: Head,
    pub body: Vec<u8>,
}

pub struct Origin {
    address: Address,
    state: Arc<State>,
    /// Ends, with all connections, when aborted.
    task: Option<JoinHandle<()>>,
    _port: Option<Port>,
}

#[derive(Clone, Debug)]
enum Address {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

struct State {
    behaviour: Mutex<Behaviour>,
    requests: Mutex<Vec<Recorded>>,
    connections: AtomicUsize,
    open: AtomicUsize,
    healthy: AtomicBool,
    probes: AtomicUsize,
    /// Bytes of bodies that sinks have taken so far.
    received: AtomicU64,
    released: Semaphore,
}

impl State {
    /// Waits for one call of [`Origin::release`].
    async fn released(&self) {
        let permit = self.released.acquire().await;
        permit.expect("the semaphore is never closed").forget();
    }
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {
    /// Has it end by a reset where its kind knows one.
    fn reset_when_closed(&self) -> io::Result<()>;
}

impl Stream for tokio::net::TcpStream {
    fn reset_when_closed(&self) -> io::Result<()> {
        self.set_zero_linger()
    }
}

impl Stream for tokio::net::UnixStream {
    fn reset_when_closed(&self) -> io::Result<()> {
        Ok(())
    }
}

impl Origin {
    pub fn start(behaviour: Behaviour) -> Origin {
        let port = Port::reserve();
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port.number()));
        Origin::listen(Address::Tcp(address), behaviour, Some(port))
    }

    /// A fixed origin on a port that is reserved already.
    pub fn fixed_at(port: u16, body: &str) -> Origin {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        Origin::listen(
            Address::Tcp(address),
            Behaviour::Fixed(body.to_owned()),
            None,
        )
    }

    /// An origin on a port that is reserved already, at an address of its own such as 127.0.0.2.
    pub fn start_at(ip: &str, port: u16, behaviour: Behaviour) -> Origin {
        let address = SocketAddr::new(ip.parse().expect("an IP address"), port);
        Origin::listen(Address::Tcp(address), behaviour, None)
    }

    pub fn start_on_unix_socket(path: &Path, behaviour: Behaviour) -> Origin {
        Origin::listen(Address::Unix(path.to_owned()), behaviour, None)
    }

    pub fn fixed(body: &str) -> Origin {
        Origin::start(Behaviour::Fixed(body.to_owned()))
    }

    pub fn echo() -> Origin {
        Origin::start(Behaviour::Echo)
    }

    pub fn raw(bytes: &str) -> Origin {
        Origin::start(Behaviour::Raw(bytes.into()))
    }

    fn listen(address: Address, behaviour: Behaviour, port: Option<Port>) -> Origin {
        let state = State {
            behaviour: Mutex::new(behaviour),
            requests: Mutex::default(),
            connections: AtomicUsize::new(0),
            open: AtomicUsize::new(0),
            healthy: AtomicBool::new(true),
            probes: AtomicUsize::new(0),
            received: AtomicU64::new(0),
            released: Semaphore::new(0),
        };
        let mut origin = Origin {
            address,
            state: Arc::new(state),
            task: None,
            _port: port,
        };
        origin.revive();
        origin
    }

    /// Listens again after [`Origin::kill`].
    pub fn revive(&mut self) {
        assert!(self.task.is_none(), "the origin is alive");
        let _guard = runtime().enter();
        let state = Arc::clone(&self.state);
        self.task = Some(match &self.address {
            Address::Tcp(address) => {
                let listener = runtime().block_on(TcpListener::bind(address));
                runtime().spawn(accept_tcp(listener.expect("bind an origin"), state))
            }
            Address::Unix(path) => {
                let _ = std::fs::remove_file(path); // of an earlier life
                let listener = UnixListener::bind(path).expect("bind an origin");
                runtime().spawn(accept_unix(listener, state))
            }
        });
    }

    /// Closes the listening socket and all connections: connecting is refused from now on.
    pub fn kill(&mut self) {
        let Some(task) = self.task.take() else { return };
        task.abort();
        let _ = runtime().block_on(task); // cancelled, as it should be
        if let Address::Tcp(address) = self.address {
            // a process that another test starts just now holds a copy of the socket from its fork to its exec
            eventually(PATIENCE, || TcpStream::connect(address).is_err());
        }
    }

    pub fn behave(&self, behaviour: Behaviour) {
        *lock(&self.state.behaviour) = behaviour;
    }

    /// What health checks by HTTP will be told.
    pub fn set_healthy(&self, healthy: bool) {
        self.state.healthy.store(healthy, Ordering::Relaxed);
    }

    /// Lets `count` more answers or parts go out.
    pub fn release(&self, count: usize) {
        self.state.released.add_permits(count);
    }

    /// All requests so far but health checks.
    pub fn requests(&self) -> Vec<Recorded> {
        lock(&self.state.requests).clone()
    }

    /// How many requests came so far, without health checks.
    pub fn hits(&self) -> usize {
        lock(&self.state.requests).len()
    }

    /// The only request so far.
    #[track_caller]
    pub fn request(&self) -> Recorded {
        let mut requests = self.requests();
        assert_eq!(requests.len(), 1, "{requests:?}");
        requests.remove(0)
    }

    /// All connections so far.
    pub fn connections(&self) -> usize {
        self.state.connections.load(Ordering::Relaxed)
    }

    /// Those that have not ended.
    pub fn open_connections(&self) -> usize {
        self.state.open.load(Ordering::Relaxed)
    }

    pub fn probes(&self) -> usize {
        self.state.probes.load(Ordering::Relaxed)
    }

    pub fn received(&self) -> u64 {
        self.state.received.load(Ordering::Relaxed)
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The address as a `backends:` entry.
impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.address {
            Address::Tcp(address) => address.fmt(f),
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl Recorded {
    pub fn method(&self) -> &str {
        self.head.word(0)
    }

    pub fn target(&self) -> &str {
        self.head.word(1)
    }

    pub fn headers(&self) -> &Headers {
        &self.head.headers
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.headers.get(name)
    }
}

async fn accept_tcp(listener: TcpListener, state: Arc<State>) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        state.connections.fetch_add(1, Ordering::Relaxed);
        connections.spawn(converse(Box::new(stream), Arc::clone(&state)));
    }
}

async fn accept_unix(listener: UnixListener, state: Arc<State>) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        state.connections.fetch_add(1, Ordering::Relaxed);
        connections.spawn(converse(Box::new(stream), Arc::clone(&state)));
    }
}

async fn converse(stream: Box<dyn Stream>, state: Arc<State>) {
    state.open.fetch_add(1, Ordering::Relaxed);
    let ended = Arc::clone(&state);
    let mut conversation = Conversation {
        stream,
        buffer: Vec::new(),
        state,
        used: false,
    };
    // peers may go away at any time; what that means is for the test to judge
    let _ = conversation.run().await;
    ended.open.fetch_sub(1, Ordering::Relaxed);
}

/// One connection to an origin.
struct Conversation {
    stream: Box<dyn Stream>,
    /// What has been received and not been read yet.
    buffer: Vec<u8>,
    state: Arc<State>,
    /// Whether a request has come on it.
    used: bool,
}

impl Conversation {
    async fn run(&mut self) -> io::Result<()> {
        if matches!(self.behaviour(), Behaviour::CloseAtOnce) {
            return Ok(());
        }
        loop {
            let head = self.read_head().await?;
            if head.word(1) == HEALTH_PATH {
                self.answer_probe().await?;
                continue;
            }
            let last = head.headers.get("connection") == Some("close");
            if !self.answer(head).await? || last {
                return Ok(());
            }
            self.used = true;
        }
    }

    fn behaviour(&self) -> Behaviour {
        lock(&self.state.behaviour).clone()
    }

    async fn answer_probe(&mut self) -> io::Result<()> {
        self.state.probes.fetch_add(1, Ordering::Relaxed);
        let healthy = self.state.healthy.load(Ordering::Relaxed);
        let status = if healthy { "200 OK" } else { "503 Ill" };
        self.write_answer(status, b"").await
    }

    /// Answers one request; `false` when the connection is not to be used again.
    async fn answer(&mut self, head: Head) -> io::Result<bool> {
        let behaviour = self.behaviour();
        if let Behaviour::Sink = behaviour {
            let length = self.count_body(&head).await?;
            self.record(&head, Vec::new());
            self.write_answer("200 OK", length.to_string().as_bytes())
                .await?;
            return Ok(true);
        }

        if let Behaviour::Early(bytes) = behaviour {
            self.record(&head, Vec::new());
            self.stream.write_all(&bytes).await?;
            return Ok(false);
        }

        let body = self.read_body(&head).await?;
        if let Behaviour::Quiet(text) = behaviour {
            self.write_answer("200 OK", text.as_bytes()).await?;
            return Ok(true);
        }
        self.record(&head, body.clone());
        match behaviour {
            Behaviour::Once(_) if self.used => return Ok(false),
            Behaviour::Fixed(text) | Behaviour::Once(text) => {
                self.write_answer("200 OK", text.as_bytes()).await?;
            }
            Behaviour::Echo => {
                let mut echo = format!("{}\r\n{}\r\n", head.first_line, head.headers).into_bytes();
                echo.extend(body);
                self.write_answer("200 OK", &echo).await?;
            }
            Behaviour::Raw(bytes) => {
                self.stream.write_all(&bytes).await?;
                self.stream.shutdown().await?;
                return Ok(false);
            }
            Behaviour::Reset(bytes) => {
                self.stream.write_all(&bytes).await?;
                self.stream.reset_when_closed()?;
                return Ok(false);
            }
            Behaviour::Dribble => self.dribble().await?,
            Behaviour::Held(text) => {
                self.state.released().await;
                self.write_answer("200 OK", text.as_bytes()).await?;
            }
            Behaviour::Late(text, by) => {
                tokio::time::sleep(by).await;
                self.write_answer("200 OK", text.as_bytes()).await?;
            }
            Behaviour::Steps(count) => self.write_steps(count).await?,
            Behaviour::Close | Behaviour::CloseAtOnce => return Ok(false),
            Behaviour::Big(length) => self.write_big(length).await?,
            Behaviour::WebSocket => {
                self.echo_frames(&head).await?;
                return Ok(false);
            }
            Behaviour::Quiet(_) | Behaviour::Sink | Behaviour::Early(_) => {
                unreachable!("answered above")
            }
        }
        Ok(true)
    }

    fn record(&self, head: &Head, body: Vec<u8>) {
        lock(&self.state.requests).push(Recorded {
            head: head.clone(),
            body,
        });
    }

    async fn write_answer(&mut self, status: &str, body: &[u8]) -> io::Result<()> {
        let length = body.len();
        let head = format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\n\r\n");
        // in one piece: the second of two would wait until the first is acknowledged
        self.stream
            .write_all(&[head.as_bytes(), body].concat())
            .await
    }

    /// Ends with the connection.
    async fn dribble(&mut self) -> io::Result<()> {
        self.stream.write_all(b"HTTP/1.1 200 OK\r\nX: ").await?;
        loop {
            self.stream.write_all(b"x").await?;
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn write_steps(&mut self, count: usize) -> io::Result<()> {
        let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\
            Transfer-Encoding: chunked\r\n\r\n";
        self.stream.write_all(head.as_bytes()).await?;
        for i in 0..count {
            self.state.released().await;
            let part = format!("part {i}\n");
            let chunk = format!("{:x}\r\n{part}\r\n", part.len());
            self.stream.write_all(chunk.as_bytes()).await?;
        }
        self.stream.write_all(b"0\r\n\r\n").await
    }

    async fn write_big(&mut self, length: u64) -> io::Result<()> {
        let block = vec![b'x'; 64 * 1024];
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n");
        self.stream.write_all(head.as_bytes()).await?;
        let mut left = length;
        while left > 0 {
            let part = left.min(block.len() as u64);
            self.stream.write_all(&block[..part as usize]).await?;
            left -= part;
        }
        Ok(())
    }

    async fn echo_frames(&mut self, head: &Head) -> io::Result<()> {
        let key = head
            .headers
            .get("sec-websocket-key")
            .ok_or(io::ErrorKind::InvalidData)?;
        let answer = websocket::agreed(key);
        self.stream.write_all(answer.as_bytes()).await?;
        loop {
            while let Some((frame, length)) = Frame::decode(&self.buffer) {
                self.buffer.drain(..length);
                self.stream.write_all(&frame.encode(None)).await?;
                if frame.opcode == websocket::CLOSE {
                    return Ok(());
                }
            }
            self.receive().await?;
        }
    }

    async fn read_head(&mut self) -> io::Result<Head> {
        loop {
            if let Some((head, length)) = Head::parse(&self.buffer) {
                self.buffer.drain(..length);
                return Ok(head);
            }
            self.receive().await?;
        }
    }

    async fn read_body(&mut self, head: &Head) -> io::Result<Vec<u8>> {
        let mut body = Vec::new();
        self.read_body_into(head, |part| body.extend(part)).await?;
        Ok(body)
    }

    async fn count_body(&mut self, head: &Head) -> io::Result<u64> {
        let state = Arc::clone(&self.state);
        let mut length = 0;
        self.read_body_into(head, |part| {
            length += part.len() as u64;
            state
                .received
                .fetch_add(part.len() as u64, Ordering::Relaxed);
        })
        .await?;
        Ok(length)
    }

    async fn read_body_into(
        &mut self,
        head: &Head,
        mut take: impl FnMut(&[u8]) + Send,
    ) -> io::Result<()> {
        match head.framing() {
            Framing::Length(length) => self.read_length(length, &mut take).await,
            Framing::Neither => Ok(()),
            Framing::Chunked => loop {
                let line = self.read_line().await?;
                let length = u64::from_str_radix(&line, 16).map_err(io::Error::other)?;
                self.read_length(length, &mut take).await?;
                self.read_line().await?;
                if length == 0 {
                    return Ok(());
                }
            },
        }
    }

    async fn read_length(
        &mut self,
        length: u64,
        take: &mut (impl FnMut(&[u8]) + Send),
    ) -> io::Result<()> {
        let mut left = length;
        while left > 0 {
            if self.buffer.is_empty() {
                self.receive().await?;
            }
            let part = usize::try_from(left)
                .unwrap_or(usize::MAX)
                .min(self.buffer.len());
            take(&self.buffer[..part]);
            self.buffer.drain(..part);
            left -= part as u64;
        }
        Ok(())
    }

    async fn read_line(&mut self) -> io::Result<String> {
        loop {
            if let Some(end) = self.buffer.windows(2).position(|pair| pair == b"\r\n") {
                let line = String::from_utf8_lossy(&self.buffer[..end]).into_owned();
                self.buffer.drain(..end + 2);
                return Ok(line);
            }
            self.receive().await?;
        }
    }

    async fn receive(&mut self) -> io::Result<()> {
        self.buffer.reserve(64 * 1024);
        match self.stream.read_buf(&mut self.buffer).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no holder panics")
}

#[cfg(test)]
mod tests {
    use super::super::client::{Connection, Response, get, post};
    use super::*;

    fn connect(origin: &Origin) -> Connection {
        Connection::tcp(origin.to_string().parse().expect("an address")).expect("connect")
    }

    fn fetch(origin: &Origin) -> Response {
        connect(origin).fetch(&get("/")).expect("an answer")
    }

    #[test]
    fn fixed_origin_keeps_connections_and_records_requests() {
        let origin = Origin::fixed("hello");
        let mut connection = connect(&origin);
        for _ in 0..2 {
            let answer = connection.fetch(&get("/a")).expect("an answer");
            assert_eq!((answer.status, answer.text()), (200, "hello"));
        }
        assert_eq!((origin.hits(), origin.connections()), (2, 1));
        assert_eq!(origin.requests()[1].target(), "/a");
    }

    #[test]
    fn echo_origin_returns_the_request() {
        let origin = Origin::echo();
        let request = post("/x", "data").header("X-A", "1");
        let answer = connect(&origin).fetch(&request).expect("an answer");
        assert!(answer.text().starts_with("POST /x HTTP/1.1\r\n"));
        assert!(answer.text().contains("X-A: 1\r\n"));
        assert!(answer.text().ends_with("\r\n\r\ndata"));
    }

    #[test]
    fn broken_bodies_are_seen_as_incomplete() {
        let short = Origin::raw("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf");
        let cut = Origin::raw("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n");
        for origin in [short, cut] {
            let answer = fetch(&origin);
            assert_eq!((answer.text(), answer.complete), ("half", false));
        }
    }

    #[test]
    fn closing_origins_give_no_answer() {
        for behaviour in [Behaviour::Close, Behaviour::CloseAtOnce] {
            let origin = Origin::start(behaviour);
            assert!(connect(&origin).fetch(&get("/")).is_err());
        }
    }

    #[test]
    fn parts_go_out_as_they_are_released() {
        let origin = Origin::start(Behaviour::Steps(2));
        let mut connection = connect(&origin);
        connection.send_request(&get("/")).expect("send");
        connection.read_head().expect("a head");
        for part in ["part 0\n", "part 1\n"] {
            origin.release(1);
            let chunk = connection.read_chunk().expect("a chunk");
            assert_eq!(chunk, part.as_bytes());
        }
        assert_eq!(connection.read_chunk().expect("the last chunk"), b"");
    }

    #[test]
    fn big_bodies_are_made_and_counted() {
        const LENGTH: u64 = 1_000_000;
        let origin = Origin::start(Behaviour::Big(LENGTH));
        let mut connection = connect(&origin);
        connection.send_request(&get("/")).expect("send");
        let answer = connection.read_counting().expect("an answer");
        assert_eq!((answer.length, answer.complete), (LENGTH, true));

        origin.behave(Behaviour::Sink);
        let upload = post("/", vec![0; LENGTH as usize]);
        let answer = connection.fetch(&upload).expect("an answer");
        assert_eq!(answer.text(), LENGTH.to_string());
        assert_eq!(origin.received(), LENGTH);
    }

    #[test]
    fn frames_are_sent_back() {
        let origin = Origin::start(Behaviour::WebSocket);
        let mut connection = connect(&origin);
        let upgrade = get("/").header("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==");
        assert_eq!(connection.fetch(&upgrade).expect("an answer").status, 101);
        connection.send_frame(&Frame::text("hello")).expect("send");
        assert_eq!(
            connection.read_frame().expect("a frame"),
            Frame::text("hello")
        );
    }

    #[test]
    fn killed_origins_refuse_until_they_are_revived() {
        let mut origin = Origin::fixed("hello");
        let address = origin.to_string().parse().expect("an address");
        origin.kill();
        assert!(Connection::tcp(address).is_err());
        origin.revive();
        assert_eq!(fetch(&origin).status, 200);
    }

    #[test]
    fn health_is_told_and_probes_are_not_requests() {
        let origin = Origin::fixed("hello");
        origin.set_healthy(false);
        let answer = connect(&origin)
            .fetch(&get(HEALTH_PATH))
            .expect("an answer");
        assert_eq!(answer.status, 503);
        assert_eq!((origin.probes(), origin.hits()), (1, 0));
    }
}
