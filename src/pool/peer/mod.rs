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
mod wire;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use pingora::protocols::l4::socket::SocketAddr;
use pingora::upstreams::peer::{HttpPeer, PeerOptions, Scheme};
use pingora::{Error, ErrorType, Result};
use tokio::net::{TcpStream, UnixStream};

use crate::issue::{At, Issues};
use idle::Idle;
use wire::{Io, Link};

pub use line::Line;
pub use timeouts::{Limits, Timeouts};

/// How many idle connections to one member are kept.
const KEEPALIVE: usize = 128;

/// How the connections of a pool are made.
#[derive(Debug)]
pub struct Connector {
    limits: Limits,
}

impl Connector {
    pub fn compile(
        config: &super::Config,
        at: &At<'_>,
        issues: &mut Issues,
    ) -> Option<Arc<Connector>> {
        let limits = config.timeouts.compile(&at.key("timeouts"), issues)?;
        Some(Arc::new(Connector { limits }))
    }
}

#[cfg(test)]
impl Connector {
    /// What a pool has that says nothing of connections.
    pub fn plain() -> Arc<Connector> {
        let limits = Timeouts::default().compile(&At::Root, &mut Issues::default());
        Arc::new(Connector {
            limits: limits.expect("the defaults are right"),
        })
    }
}

/// How to reach one member.
#[derive(Debug)]
pub struct Dialer {
    connector: Arc<Connector>,
    address: SocketAddr,
    idle: Idle,
    peer: HttpPeer,
}

/// What a try of a request needs of its connection.
#[derive(Clone, Copy, Debug, Default)]
pub struct Needs {
    /// No connection that was used before.
    pub fresh: bool,
    /// The request asks for another protocol, and has no body: no answer may be read before all of it is written.
    pub upgrade: bool,
}

impl Dialer {
    pub fn new(connector: Arc<Connector>, address: SocketAddr) -> Arc<Dialer> {
        /// Connections of one dialer are not for another one: what made them trustworthy may differ.
        static DIALERS: AtomicU64 = AtomicU64::new(0);
        let mut options = PeerOptions::new();
        options.total_connection_timeout = Some(connector.limits.connect);
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
            idle: Idle::new(connector.limits.idle, KEEPALIVE),
            connector,
            address,
            peer,
        })
    }

    /// How Pingora gets the connection for one try of a request.
    pub fn peer(self: &Arc<Self>, needs: Needs) -> (Box<HttpPeer>, Arc<Line>) {
        let mut peer = Box::new(self.peer.clone());
        let line = Line::new(self.clone(), needs);
        peer.options.custom_l4 = Some(line.clone());
        (peer, line)
    }

    /// A connection that nobody has used.
    async fn dial(&self) -> Result<Link> {
        let io = match &self.address {
            SocketAddr::Inet(address) => TcpStream::connect(address).await.and_then(|socket| {
                // Pingora hands over whole messages.
                socket.set_nodelay(true)?;
                Ok(Io::Tcp(socket))
            }),
            SocketAddr::Unix(address) => {
                let path = address.as_pathname().unwrap_or("".as_ref());
                UnixStream::connect(path).await.map(Io::Unix)
            }
        };
        io.map(Link::new).map_err(|e| {
            use std::io::ErrorKind::{
                ConnectionRefused, HostUnreachable, NetworkUnreachable, TimedOut,
            };
            let kind = match e.kind() {
                ConnectionRefused => ErrorType::ConnectRefused,
                TimedOut => ErrorType::ConnectTimedout,
                HostUnreachable | NetworkUnreachable => ErrorType::ConnectNoRoute,
                _ => ErrorType::ConnectError,
            };
            Error::because(kind, format!("connecting to {}", self.address), e)
        })
    }
}
