//! Backends that speak TLS and HTTP/2. They answer each request with what they know of its connection, over HTTP/1 a
//! WebSocket with its frames, and over HTTP/2 `/echo` with each part of the request as it comes.

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use boring::ssl::{
    AlpnError, SslAcceptor, SslFiletype, SslMethod, SslRef, SslVerifyMode, SslVersion,
    select_next_proto,
};
use bytes::Bytes;
use h2::server::SendResponse;
use http::{HeaderMap, Request, Response};
use pingora::protocols::tls::server::handshake;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Barrier;
use tokio::task::{JoinHandle, JoinSet};

use super::certs::Pair;
use super::message::Head;
use super::port::Port;
use super::runtime;
use super::websocket::{self, Frame};

/// What a backend can.
#[derive(Clone, Default)]
pub struct Skills {
    pub tls: Option<SslAcceptor>,
    /// HTTP/2 without having chosen it by ALPN.
    pub prior_knowledge: bool,
    /// No request of HTTP/2 is answered before so many are there.
    pub crowd: Option<Arc<Barrier>>,
    /// How many requests may share a connection of HTTP/2; any number without.
    pub streams: Option<u32>,
}

impl Skills {
    pub fn tls(pair: &Pair, alpn: &'static [u8]) -> Skills {
        Skills {
            tls: Some(acceptor(pair, alpn, SslVersion::TLS1_3)),
            ..Skills::default()
        }
    }

    pub fn h2c() -> Skills {
        Skills {
            prior_knowledge: true,
            ..Skills::default()
        }
    }

    pub fn in_crowds_of(self, count: usize) -> Skills {
        Skills {
            crowd: Some(Arc::new(Barrier::new(count))),
            ..self
        }
    }
}

pub struct SecureOrigin {
    address: SocketAddr,
    seen: Arc<Seen>,
    task: JoinHandle<()>,
    _port: Port,
}

#[derive(Default)]
struct Seen {
    connections: AtomicUsize,
    resumptions: AtomicUsize,
}

impl SecureOrigin {
    pub fn start(skills: Skills) -> SecureOrigin {
        let port = Port::reserve();
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port.number()));
        let listener = runtime().block_on(TcpListener::bind(address));
        let seen = Arc::new(Seen::default());
        let accept = accept(listener.expect("bind an origin"), skills, seen.clone());
        SecureOrigin {
            address,
            seen,
            task: runtime().spawn(accept),
            _port: port,
        }
    }

    pub fn tls(pair: &Pair, alpn: &'static [u8]) -> SecureOrigin {
        SecureOrigin::start(Skills::tls(pair, alpn))
    }

    pub fn h2c() -> SecureOrigin {
        SecureOrigin::start(Skills::h2c())
    }

    pub fn connections(&self) -> usize {
        self.seen.connections.load(Ordering::Relaxed)
    }

    /// Connections on which a TLS session of an earlier one went on.
    pub fn resumptions(&self) -> usize {
        self.seen.resumptions.load(Ordering::Relaxed)
    }
}

impl Drop for SecureOrigin {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The address as a `backends:` entry.
impl fmt::Display for SecureOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.address.fmt(f)
    }
}

/// Asks for a certificate of the client, without insisting.
pub fn acceptor(pair: &Pair, alpn: &'static [u8], newest: SslVersion) -> SslAcceptor {
    let mut builder = SslAcceptor::mozilla_intermediate_v5(SslMethod::tls()).expect("a profile");
    let pem = SslFiletype::PEM;
    let loaded = builder
        .set_certificate_file(&pair.cert, pem)
        .and_then(|()| builder.set_private_key_file(&pair.key, pem))
        .and_then(|()| builder.set_min_proto_version(Some(SslVersion::TLS1)))
        .and_then(|()| builder.set_max_proto_version(Some(newest)));
    loaded.expect("a certificate and versions");
    builder.set_verify_callback(SslVerifyMode::PEER, |_, _| true);
    builder.set_alpn_select_callback(move |_, client| {
        select_next_proto(alpn, client).ok_or(AlpnError::NOACK)
    });
    builder.build()
}

async fn accept(listener: TcpListener, skills: Skills, seen: Arc<Seen>) {
    let mut tasks = JoinSet::new();
    while let Ok((socket, _)) = listener.accept().await {
        seen.connections.fetch_add(1, Ordering::Relaxed);
        tasks.spawn(serve(socket, skills.clone(), seen.clone()));
    }
}

async fn serve(socket: TcpStream, skills: Skills, seen: Arc<Seen>) {
    // peers may go away at any time; what that means is for the test to judge
    let Some(tls) = &skills.tls else {
        match skills.prior_knowledge {
            true => http2(socket, "plain", &skills).await,
            false => drop(http1(socket, "plain").await),
        }
        return;
    };
    let socket = pingora::protocols::l4::stream::Stream::from(socket);
    let Ok(stream) = handshake(tls, socket).await else {
        return;
    };
    if stream.ssl().session_reused() {
        seen.resumptions.fetch_add(1, Ordering::Relaxed);
    }
    let facts = facts(stream.ssl());
    match stream.ssl().selected_alpn_protocol() {
        Some(b"h2") => http2(stream, &facts, &skills).await,
        _ => drop(http1(stream, &facts).await),
    }
}

fn facts(ssl: &SslRef) -> String {
    let name = ssl.servername(boring::ssl::NameType::HOST_NAME);
    let client = match ssl.peer_certificate() {
        Some(certificate) => super::certs::names(&certificate).join(","),
        None => "nobody".to_owned(),
    };
    let name = name.unwrap_or("no name");
    format!("{} for {name} from {client}", ssl.version_str())
}

async fn http1(mut stream: impl AsyncRead + AsyncWrite + Unpin, facts: &str) -> io::Result<()> {
    let mut read = Vec::new();
    loop {
        let Some((head, length)) = Head::parse(&read) else {
            if stream.read_buf(&mut read).await? == 0 {
                return Ok(());
            }
            continue;
        };
        read.drain(..length);
        if let Some(key) = head.headers.get("sec-websocket-key") {
            stream.write_all(websocket::agreed(key).as_bytes()).await?;
            stream.flush().await?;
            return echo_frames(stream, read).await;
        }
        let body = format!("h1 {facts}");
        let answer = format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(answer.as_bytes()).await?;
        stream.flush().await?;
    }
}

async fn echo_frames(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    mut read: Vec<u8>,
) -> io::Result<()> {
    loop {
        while let Some((frame, length)) = Frame::decode(&read) {
            read.drain(..length);
            stream.write_all(&frame.encode(None)).await?;
            stream.flush().await?;
        }
        if stream.read_buf(&mut read).await? == 0 {
            return Ok(());
        }
    }
}

async fn http2(stream: impl AsyncRead + AsyncWrite + Unpin, facts: &str, skills: &Skills) {
    let mut builder = h2::server::Builder::new();
    if let Some(streams) = skills.streams {
        builder.max_concurrent_streams(streams);
    }
    let Ok(mut connection) = builder.handshake(stream).await else {
        return;
    };
    let mut tasks = JoinSet::new();
    while let Some(Ok((request, respond))) = connection.accept().await {
        tasks.spawn(answer(
            request,
            respond,
            facts.to_owned(),
            skills.crowd.clone(),
        ));
    }
}

/// An answer with trailers, as gRPC has it; below `/404` with that status, at `/large` with 64 MiB, and at `/empty` a header
/// that is all.
async fn answer(
    request: Request<h2::RecvStream>,
    mut respond: SendResponse<Bytes>,
    facts: String,
    crowd: Option<Arc<Barrier>>,
) -> Result<(), h2::Error> {
    if let Some(crowd) = crowd {
        crowd.wait().await;
    }
    let path = request.uri().path().to_owned();
    let status = if path.starts_with("/404") { 404 } else { 200 };
    let mut head = Response::builder().status(status);
    if path.ends_with("/empty") {
        respond.send_response(head.body(()).expect("a fixed head"), true)?;
        return Ok(());
    }
    let kind = request.headers().get(http::header::CONTENT_TYPE);
    if let Some(kind) = kind {
        head = head.header(http::header::CONTENT_TYPE, kind);
    }
    let mut body = respond.send_response(head.body(()).expect("a fixed head"), false)?;
    if path == "/echo" {
        let mut parts = request.into_body();
        while let Some(part) = parts.data().await {
            let part = part?;
            parts.flow_control().release_capacity(part.len())?;
            body.send_data(part, false)?;
        }
    } else if path == "/large" {
        let part = Bytes::from_static(&[0; 1 << 20]);
        for _ in 0..64 {
            body.send_data(part.clone(), false)?;
        }
    } else {
        body.send_data(Bytes::from(format!("h2 {facts}")), false)?;
    }
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", "0".parse().expect("a value"));
    body.send_trailers(trailers)
}
