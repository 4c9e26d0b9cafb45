//! Backends that speak TLS and HTTP/2. They answer each request with what they know of its connection.

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
use tokio::task::{JoinHandle, JoinSet};

use super::certs::Pair;
use super::port::Port;
use super::runtime;

/// What a backend can.
#[derive(Clone, Default)]
pub struct Skills {
    pub tls: Option<SslAcceptor>,
    /// HTTP/2 without having chosen it by ALPN.
    pub prior_knowledge: bool,
}

pub struct SecureOrigin {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
    task: JoinHandle<()>,
    _port: Port,
}

impl SecureOrigin {
    pub fn start(skills: Skills) -> SecureOrigin {
        let port = Port::reserve();
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port.number()));
        let listener = runtime().block_on(TcpListener::bind(address));
        let connections = Arc::new(AtomicUsize::new(0));
        let accept = accept(
            listener.expect("bind an origin"),
            skills,
            connections.clone(),
        );
        SecureOrigin {
            address,
            connections,
            task: runtime().spawn(accept),
            _port: port,
        }
    }

    pub fn tls(pair: &Pair, alpn: &'static [u8]) -> SecureOrigin {
        SecureOrigin::start(Skills {
            tls: Some(acceptor(pair, alpn, SslVersion::TLS1_3)),
            prior_knowledge: false,
        })
    }

    pub fn h2c() -> SecureOrigin {
        SecureOrigin::start(Skills {
            tls: None,
            prior_knowledge: true,
        })
    }

    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
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

async fn accept(listener: TcpListener, skills: Skills, connections: Arc<AtomicUsize>) {
    let mut tasks = JoinSet::new();
    while let Ok((socket, _)) = listener.accept().await {
        connections.fetch_add(1, Ordering::Relaxed);
        tasks.spawn(serve(socket, skills.clone()));
    }
}

async fn serve(socket: TcpStream, skills: Skills) {
    // peers may go away at any time; what that means is for the test to judge
    let Some(tls) = &skills.tls else {
        match skills.prior_knowledge {
            true => http2(socket, "plain".to_owned()).await,
            false => drop(http1(socket, "plain".to_owned()).await),
        }
        return;
    };
    let socket = pingora::protocols::l4::stream::Stream::from(socket);
    let Ok(stream) = handshake(tls, socket).await else {
        return;
    };
    let facts = facts(stream.ssl());
    match stream.ssl().selected_alpn_protocol() {
        Some(b"h2") => http2(stream, facts).await,
        _ => drop(http1(stream, facts).await),
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

async fn http1(mut stream: impl AsyncRead + AsyncWrite + Unpin, facts: String) -> io::Result<()> {
    let mut head = Vec::new();
    loop {
        let end = head.windows(4).position(|window| window == b"\r\n\r\n");
        let Some(end) = end else {
            if stream.read_buf(&mut head).await? == 0 {
                return Ok(());
            }
            continue;
        };
        head.drain(..end + 4);
        let body = format!("h1 {facts}");
        let answer = format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(answer.as_bytes()).await?;
        stream.flush().await?;
    }
}

async fn http2(stream: impl AsyncRead + AsyncWrite + Unpin, facts: String) {
    let Ok(mut connection) = h2::server::handshake(stream).await else {
        return;
    };
    while let Some(Ok((request, respond))) = connection.accept().await {
        let _ = answer(request, respond, &facts);
    }
}

/// An answer with trailers, as gRPC has it.
fn answer(
    request: Request<h2::RecvStream>,
    mut respond: SendResponse<Bytes>,
    facts: &str,
) -> Result<(), h2::Error> {
    let mut head = Response::builder().status(200);
    let kind = request.headers().get(http::header::CONTENT_TYPE);
    if let Some(kind) = kind {
        head = head.header(http::header::CONTENT_TYPE, kind);
    }
    let mut body = respond.send_response(head.body(()).expect("a fixed head"), false)?;
    body.send_data(Bytes::from(format!("h2 {facts}")), false)?;
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", "0".parse().expect("a value"));
    body.send_trailers(trailers)
}
