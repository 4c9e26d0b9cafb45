//! Connections to backends: how one is made, what a request may expect of it, and where it waits for the next request.
//!
//! Pingora speaks HTTP over whatever stream it is given. Its own streams bound each read but not the whole header of an
//! answer, and read an answer before the request is out; so weir makes the stream itself ([`wire`]), as it does for
//! clients. With the stream come the idle connections ([`idle`]): a pool of Pingora's knows a stream of ours only by a
//! number that they all share, and spawns a task for each that it keeps.
//!
//! ```text
//!  Connector   what the pool's configuration says of connections
//!    Dialer    one member's: where it is, its idle connections
//!      Line    one try of a request: a fresh or a kept connection, and its time limits
//! ```

mod idle;
mod line;
mod timeouts;
mod tls;
mod turns;
mod wire;

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use pingora::connectors::L4Connect;
use pingora::protocols::l4::socket::SocketAddr;
use pingora::protocols::l4::stream::Stream;
use pingora::upstreams::peer::{HttpPeer, PeerOptions, Scheme};
use pingora::{Error, ErrorType, Result};
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpStream, UnixStream};

use crate::issue::{At, Issues, Sources};
use idle::Idle;
use tls::{Offer, Tls};
use turns::Turns;
use wire::{Io, Link};

use crate::http::proxy_protocol;
pub use crate::http::proxy_protocol::{Ends, Version as ProxyProtocol};
pub use line::Line;
pub use timeouts::{Limits, Timeouts};
pub use tls::TrueOr;

/// What a pool's backends speak.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// With `tls`: HTTP/2 where the backend chooses it by ALPN, HTTP/1.1 otherwise. Without: HTTP/1.1.
    #[default]
    Auto,
    /// HTTP/1.1.
    H1,
    /// HTTP/2 over TLS, and nothing else.
    H2,
    /// HTTP/2 without TLS, by prior knowledge.
    H2c,
}

/// How many requests share an HTTP/2 connection, if the backend allows as many.
const STREAMS: usize = 128;
/// What the key of Pingora's HTTP/2 connections is changed by, so that none of those is taken.
const FRESH: u64 = 0x9e37_79b9_7f4a_7c15;

/// What a backend that may choose has chosen.
const UNKNOWN: u8 = 0;
const HTTP1: u8 = 1;
const HTTP2: u8 = 2;

/// How the connections of a pool are made.
#[derive(Debug)]
pub struct Connector {
    limits: Limits,
    protocol: Protocol,
    tls: Option<Tls>,
    proxy_protocol: Option<ProxyProtocol>,
    /// How many idle connections to one member are kept.
    keepalive: usize,
}

impl Connector {
    pub fn compile(
        config: &super::Config,
        at: &At<'_>,
        sources: &Sources,
        issues: &mut Issues,
    ) -> Option<Arc<Connector>> {
        let limits = config.timeouts.compile(&at.key("timeouts"), issues);
        let tls = match &config.tls {
            Some(TrueOr(tls)) => tls.compile(&at.key("tls"), sources, issues).map(Some),
            None => Some(None),
        };
        match (config.protocol, &config.tls) {
            (Protocol::H2, None) => {
                issues
                    .error(&at.key("protocol"), "`h2` needs `tls`")
                    .hint("`h2c` is HTTP/2 without TLS");
                return None;
            }
            (Protocol::H2c, Some(_)) => {
                issues
                    .error(
                        &at.key("protocol"),
                        "`h2c` is without TLS, but `tls` is given",
                    )
                    .hint("`h2` is HTTP/2 over TLS");
                return None;
            }
            _ => {}
        }
        Some(Arc::new(Connector {
            limits: limits?,
            protocol: config.protocol,
            tls: tls?,
            proxy_protocol: config.proxy_protocol,
            keepalive: config.keepalive.get() as usize,
        }))
    }

    /// Whether the files that the configuration names hold the same for both.
    pub fn has_same_files(&self, other: &Connector) -> bool {
        match (&self.tls, &other.tls) {
            (Some(tls), Some(other)) => tls.has_same_files(other),
            (tls, other) => tls.is_none() == other.is_none(),
        }
    }

    /// When a request that began at `started` has taken too long.
    pub fn deadline(&self, started: Instant) -> Option<Instant> {
        Some(started + self.limits.total?)
    }
}

#[cfg(test)]
impl Connector {
    /// What a pool has that says nothing of connections.
    pub fn plain() -> Arc<Connector> {
        let limits = Timeouts::default().compile(&At::Root, &mut Issues::default());
        Arc::new(Connector {
            limits: limits.expect("the defaults are right"),
            protocol: Protocol::Auto,
            tls: None,
            proxy_protocol: None,
            keepalive: super::default_keepalive().get() as usize,
        })
    }
}

/// How to reach one member.
#[derive(Debug)]
pub struct Dialer {
    connector: Arc<Connector>,
    address: SocketAddr,
    /// What its certificate must be for.
    name: String,
    /// What the backend chose when it was last asked.
    spoken: AtomicU8,
    turns: Arc<Turns>,
    idle: Idle,
    peer: HttpPeer,
}

/// What a try of a request needs of its connection.
#[derive(Clone, Copy, Debug, Default)]
pub struct Needs {
    /// No connection that was used before.
    pub fresh: bool,
    /// Waits while somebody else makes a connection that could be shared.
    pub patient: bool,
    /// The request asks for another protocol, and has no body: no answer may be read before all of it is written.
    pub upgrade: bool,
    /// The client wants a stream of events.
    pub events: bool,
    /// When the request has taken too long in all.
    pub deadline: Option<Instant>,
    /// The client's connection, for a backend that is told of it.
    pub ends: Option<Ends>,
}

/// A connection for a probe.
#[derive(Debug)]
pub struct Contact {
    pub stream: Stream,
    /// Whether HTTP/2 is spoken on it.
    pub http2: bool,
    /// Whether it is within TLS.
    pub secure: bool,
}

impl Dialer {
    /// `authority` is what its backend was written as.
    pub fn new(connector: Arc<Connector>, address: SocketAddr, authority: &str) -> Arc<Dialer> {
        /// Connections of one dialer are not for another one: what made them trustworthy may differ.
        static DIALERS: AtomicU64 = AtomicU64::new(0);
        let mut options = PeerOptions::new();
        options.write_timeout = Some(connector.limits.write);
        // `handler/proxy` does it in one pass over the headers that are there. Pingora would look up each of ten names in two
        // maps, 2k of the 89k instructions of a small request.
        options.http_upstream_request_policy.strip_hop_by_hop = false;
        // The constructors of `HttpPeer` would resolve a name here, and panic when they cannot.
        let peer = HttpPeer {
            _address: address.clone(),
            scheme: Scheme::HTTP,
            sni: String::new(),
            proxy: None,
            client_cert_key: None,
            group_key: DIALERS.fetch_add(1, Ordering::Relaxed),
            options,
        };
        Arc::new(Dialer {
            idle: Idle::new(connector.limits.idle, connector.keepalive),
            spoken: AtomicU8::new(UNKNOWN),
            turns: Arc::default(),
            name: host_of(authority).to_owned(),
            connector,
            address,
            peer,
        })
    }

    /// How Pingora gets the connection for one try of a request.
    pub fn peer(self: &Arc<Self>, needs: Needs) -> (Box<HttpPeer>, Arc<Line>) {
        let (http2, offer) = self.protocol(needs.upgrade);
        let line = Line::new(self.clone(), needs, http2, offer);
        let mut peer = Box::new(self.peer.clone());
        peer.options.custom_l4 = Some(line.clone());
        let limits = &self.connector.limits;
        let left = needs.deadline.map(|end| end.duration_since(Instant::now()));
        let within = |limit: Duration| left.map_or(limit, |left| limit.min(left));
        peer.options.total_connection_timeout = Some(within(limits.connect));
        if http2 {
            let read = if needs.events {
                limits.tunnel
            } else {
                limits.read
            };
            peer.options.read_timeout = Some(within(read));
            peer.options.idle_timeout = Some(limits.idle);
            // Pingora's way to say: HTTP/2 without TLS. What there is of TLS is in the stream.
            peer.options.set_http_version(2, 2);
            peer.options.max_h2_streams = STREAMS;
            if self.connector.tls.is_some() {
                // For Pingora it ends in a pair of sockets: the address that it takes to be anybody's.
                peer._address = SocketAddr::Inet((Ipv4Addr::UNSPECIFIED, 0).into());
            }
            if needs.fresh {
                peer.group_key ^= FRESH;
            }
            if self.connector.proxy_protocol.is_some() {
                // What was said of one client is not true of another.
                let mut hasher = DefaultHasher::new();
                (peer.group_key, needs.ends).hash(&mut hasher);
                peer.group_key = hasher.finish();
            }
        }
        (peer, line)
    }

    /// Whether to speak HTTP/2, and what to offer a backend that may choose.
    fn protocol(&self, upgrade: bool) -> (bool, Offer) {
        match self.connector.protocol {
            Protocol::H1 => (false, Offer::Http1),
            Protocol::H2 | Protocol::H2c => (true, Offer::Http2),
            // Only HTTP/1.1 can become another protocol.
            Protocol::Auto if upgrade => (false, Offer::Http1),
            Protocol::Auto => (self.spoken().unwrap_or(false), Offer::Both),
        }
    }

    /// Whether the backend chose HTTP/2, once it was asked.
    fn spoken(&self) -> Option<bool> {
        match self.spoken.load(Ordering::Relaxed) {
            UNKNOWN => None,
            spoken => Some(spoken == HTTP2),
        }
    }

    fn learn(&self, http2: bool) {
        let spoken = if http2 { HTTP2 } else { HTTP1 };
        self.spoken.store(spoken, Ordering::Relaxed);
    }

    /// Keeps a connection for a later request.
    fn keep(&self, link: Link) {
        if self.connector.proxy_protocol.is_none() {
            self.idle.put(link, Instant::now());
        }
    }

    /// A connection of its own, for a probe: HTTP/2 is spoken on it where the probe knows nothing else (`http2`) or the
    /// pool does, otherwise HTTP/1.1.
    ///
    /// # Errors
    /// When none comes about. There is no limit of time.
    pub async fn connect(self: &Arc<Self>, http2: bool) -> Result<Contact> {
        let needs = Needs {
            fresh: true,
            ..Needs::default()
        };
        // The same that an upgrade gets: a backend that may choose is to choose HTTP/1.1.
        let (http2, offer) = match http2 {
            true => (true, Offer::Http2),
            false => self.protocol(true),
        };
        let line = Line::new(self.clone(), needs, http2, offer);
        Ok(Contact {
            stream: line.connect(&self.address).await?,
            http2,
            secure: self.connector.tls.is_some(),
        })
    }

    /// A connection that nobody has used.
    async fn dial(&self, offer: Offer, ends: Option<Ends>) -> Result<Link> {
        let greeting = self.connector.proxy_protocol;
        let greeting = greeting.map(|version| proxy_protocol::header(version, ends));
        let socket = self.socket(greeting.unwrap_or_default()).await;
        let socket = socket.map_err(|e| self.explain(e))?;
        let Some(tls) = &self.connector.tls else {
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
        let stream = tls.connect(stream, &self.name, offer).await?;
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

/// The host of `host:port` and `[address]:port`.
fn host_of(authority: &str) -> &str {
    let host = match authority.rsplit_once(':') {
        Some((host, _)) if !host.contains(':') || host.ends_with(']') => host,
        _ => authority,
    };
    host.trim_start_matches('[').trim_end_matches(']')
}
