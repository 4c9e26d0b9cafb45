//! The connections to one member: what makes them, and those that are idle.
//!
//! Apart from its limits of time, which each request brings along, a connection does not know of the configuration that
//! it was made under. So a reload that leaves the means of a member's connections alone leaves it these, too.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Instant;

use pingora::protocols::l4::socket::SocketAddr;
use pingora::{Error, ErrorType, Result};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpStream, UnixStream};

use super::idle::Idle;
use super::tls::{Client, Offer};
use super::turns::Turns;
use super::wire::{Io, Link};
use super::{Means, Protocol};
use crate::http::proxy_protocol::{self, Ends};

#[derive(Debug)]
pub(super) struct Stock {
    means: Arc<Means>,
    address: SocketAddr,
    /// What its certificate must be for.
    name: String,
    tls: Option<Client>,
    /// What the backend chose when it was last asked.
    spoken: AtomicU8,
    pub turns: Arc<Turns>,
    pub idle: Idle,
    number: u64,
}

/// What a backend that may choose has chosen.
const UNKNOWN: u8 = 0;
const HTTP1: u8 = 1;
const HTTP2: u8 = 2;

impl Stock {
    pub fn new(means: Arc<Means>, address: SocketAddr, name: &str) -> Arc<Stock> {
        static STOCKS: AtomicU64 = AtomicU64::new(0);
        Arc::new(Stock {
            tls: means.tls.as_ref().map(|tls| tls.client(name)),
            spoken: AtomicU8::new(UNKNOWN),
            turns: Arc::default(),
            idle: Idle::new(means.idle, means.keepalive),
            number: STOCKS.fetch_add(1, Ordering::Relaxed),
            name: name.to_owned(),
            address,
            means,
        })
    }

    /// Whether it makes the same connections as the other.
    pub fn is_like(&self, other: &Stock) -> bool {
        *self.means == *other.means && self.address == other.address && self.name == other.name
    }

    /// What tells its connections from others where those stand side by side: what made them trustworthy may differ.
    pub fn number(&self) -> u64 {
        self.number
    }

    pub fn address(&self) -> &SocketAddr {
        &self.address
    }

    /// Whether its connections are within TLS.
    pub fn is_secure(&self) -> bool {
        self.tls.is_some()
    }

    /// Whether a connection is for one client only.
    pub fn is_per_client(&self) -> bool {
        self.means.proxy_protocol.is_some()
    }

    /// Whether to speak HTTP/2, and what to offer a backend that may choose.
    pub fn protocol(&self, upgrade: bool) -> (bool, Offer) {
        match self.means.protocol {
            Protocol::H1 => (false, Offer::Http1),
            Protocol::H2 | Protocol::H2c => (true, Offer::Http2),
            // Only HTTP/1.1 can become another protocol.
            Protocol::Auto if upgrade => (false, Offer::Http1),
            Protocol::Auto => (self.spoken().unwrap_or(false), Offer::Both),
        }
    }

    /// Whether the backend chose HTTP/2, once it was asked.
    pub fn spoken(&self) -> Option<bool> {
        match self.spoken.load(Ordering::Relaxed) {
            UNKNOWN => None,
            spoken => Some(spoken == HTTP2),
        }
    }

    pub fn learn(&self, http2: bool) {
        let spoken = if http2 { HTTP2 } else { HTTP1 };
        self.spoken.store(spoken, Ordering::Relaxed);
    }

    /// Keeps a connection for a later request.
    pub fn keep(&self, link: Link) {
        if !self.is_per_client() {
            self.idle.put(link, Instant::now());
        }
    }

    /// A connection that nobody has used.
    pub async fn dial(&self, offer: Offer, ends: Option<Ends>) -> Result<Link> {
        let greeting = self.means.proxy_protocol;
        let greeting = greeting.map(|version| proxy_protocol::header(version, ends));
        let socket = self.socket(greeting.unwrap_or_default()).await;
        let socket = socket.map_err(|e| self.explain(e))?;
        let Some(tls) = &self.tls else {
            let io = match socket {
                Socket::Tcp(socket) => Io::Tcp(socket),
                Socket::Unix(socket) => Io::Unix(socket),
            };
            return Ok(Link::new(io, offer == Offer::Http2));
        };
        let stream = match socket {
            Socket::Tcp(socket) => socket.into(),
            Socket::Unix(socket) => socket.into(),
        };
        let stream = tls.connect(stream, offer).await?;
        let http2 = stream.ssl().selected_alpn_protocol() == Some(b"h2");
        Ok(Link::new(Io::Tls(Box::new(stream)), http2))
    }

    /// A connected socket, on which the greeting is sent.
    async fn socket(&self, greeting: Vec<u8>) -> io::Result<Socket> {
        match &self.address {
            SocketAddr::Inet(address) => {
                let mut socket = TcpStream::connect(address).await?;
                // Pingora hands over whole messages.
                socket.set_nodelay(true)?;
                socket.write_all(&greeting).await?;
                Ok(Socket::Tcp(socket))
            }
            SocketAddr::Unix(address) => {
                let path = address.as_pathname().ok_or(io::ErrorKind::InvalidInput)?;
                let mut socket = UnixStream::connect(path).await?;
                socket.write_all(&greeting).await?;
                Ok(Socket::Unix(socket))
            }
        }
    }

    fn explain(&self, e: io::Error) -> Box<Error> {
        use io::ErrorKind::{ConnectionRefused, HostUnreachable, NetworkUnreachable, TimedOut};
        let kind = match e.kind() {
            ConnectionRefused => ErrorType::ConnectRefused,
            TimedOut => ErrorType::ConnectTimedout,
            HostUnreachable | NetworkUnreachable => ErrorType::ConnectNoRoute,
            _ => ErrorType::ConnectError,
        };
        Error::because(kind, format!("connecting to {}", self.address), e)
    }
}

enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}
